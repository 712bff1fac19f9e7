"""The live page: BM25's candidates, re-ranked in the reader's browser by the student of this build.

Beside the built pages come the student as an ONNX file with weights of 8 bits, its tokenizer, the
passages of the embedded collection and, from npm, onnxruntime-web; scripts in ``book/_static/live``
do the rest.
One example is computed here and stands in the page itself: for browsers that cannot run the model,
and for builds without npm.
"""

from __future__ import annotations

import gzip
import html
import json
import re
import shutil
import tempfile
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pandas as pd
from bm25s.stopwords import STOPWORDS_EN
from onnx import helper, numpy_helper

from rdl_core.cross_encoder import CrossEncoder
from rdl_core.data.collections import load
from rdl_core.data.retrieval import bm25
from rdl_core.export import export
from rdl_study.candidates import ListsConfig, chosen_queries
from rdl_study.jobs import StudentConfig, student
from rdl_study.npm import ONNXRUNTIME, TOKENIZERS, npm_files
from rdl_study.profile import Profile, load_profile
from rdl_study.store import Run, obtain

__all__ = ["make_live"]

_SEARCHED = ListsConfig(collection="rdl/pydocs/test", first_stage="bm25", depth=20, n_queries=20)
_PAGE = Path("book", "live.html")
_SCRIPTS = Path("_static", "live")
_LARGEST_BYTES = 40_000_000  # of the model: the whole site has to stay under 60 MB
_FLOAT = onnx.TensorProto.FLOAT
_MARK = re.compile("<!-- live -->.*?<!-- /live -->", re.DOTALL)


@dataclass(frozen=True, kw_only=True)
class _LiveConfig:
    student: StudentConfig
    searched: ListsConfig


def make_live(profile_name: str, site: Path) -> str:
    """Give a built site its live page.

    Args:
        profile_name: Name of a profile, whose student the page runs.
        site: Root of the built site; its page ``book/live.html`` is completed.

    Returns:
        A line that says what the page has, or why it has the example alone.

    Raises:
        ValueError: The site has no such page.

    >>> make_live("no such profile", folder)
    Traceback (most recent call last):
    ValueError: unknown profile 'no such profile': ...
    """
    profile = load_profile(profile_name)
    page = site / _PAGE
    if not page.is_file():
        raise ValueError(f"expected a page {_PAGE} in {site}; given none: build the book first")
    run = _obtained(profile.student())
    about = json.loads((run.folder / "about.json").read_text())
    data = site / _SCRIPTS / "data"
    shutil.rmtree(data, ignore_errors=True)
    try:
        size_mb, missing = _copy(run.folder, about, data), None
    except OSError as error:
        size_mb, missing = None, error
    widget = _widget(profile, run, about, size_mb)
    text = page.read_text(encoding="utf-8")
    page.write_text(_MARK.sub(lambda _: widget, text), encoding="utf-8")
    if missing:
        return f"live page: an example without the model, because {missing}"
    return f"live page: {size_mb:.1f} MB that a reader's first query loads"


def _obtained(config: StudentConfig) -> Run:
    """What the page needs of a student and of the collection, as a run of the store."""
    collection = load(_SEARCHED.collection)
    trained = student(config)

    def write(folder: Path) -> None:
        model = CrossEncoder.from_pretrained(
            trained.folder / "model", query_tokens=config.query_tokens,
            passage_tokens=config.passage_tokens,
        )
        with tempfile.TemporaryDirectory() as temporary:
            exported = Path(temporary) / "student"
            export(model, exported)
            small = exported / "onnx" / "small.onnx"
            _in_eight_bits(exported / "onnx" / "model.onnx", small)
            session = onnxruntime.InferenceSession(small, providers=["CPUExecutionProvider"])
            _pack(small, folder / "model.onnx.gz")
            _pack(exported / "tokenizer.json", folder / "tokenizer.json.gz")
        passages = collection.passages[["doc_id", "text"]]
        texts = folder / "passages.json"
        texts.write_text(json.dumps(passages.to_numpy().tolist(), ensure_ascii=False), "utf-8")
        _pack(texts, folder / "passages.json.gz")
        texts.unlink()
        about = {
            "depth": _SEARCHED.depth, "stop_words": STOPWORDS_EN, "passages": len(passages),
            "query_tokens": config.query_tokens, "passage_tokens": config.passage_tokens,
            "template": asdict(model.template), "examples": _examples(model, session),
        }
        (folder / "about.json").write_text(json.dumps(about), encoding="utf-8")

    return obtain(
        "live", _LiveConfig(student=config, searched=_SEARCHED), data=collection.fingerprint,
        code=("rdl_core.export", "rdl_core.data.retrieval", "rdl_study.live"),
        inputs=[trained.manifest["id"]], compute=write,
    )


def _in_eight_bits(source: Path, target: Path) -> None:
    """The same graph, its matrices stored as 8-bit integers with a scale for each output or token.

    They are made floats again when the file is loaded, so that it computes as the whole one does:
    in 8-bit arithmetic, scores in a browser differed from those here by up to 0.14.
    """
    model = onnx.load(source)
    graph, nodes = model.graph, []
    tokens = {node.input[0] for node in graph.node if node.op_type == "Gather"}
    matrices = [x for x in graph.initializer if len(x.dims) == 2 and x.data_type == _FLOAT]
    for weight in matrices:
        name, values = weight.name, numpy_helper.to_array(weight)
        axis = 1 if name in tokens else 0  # that a scale is shared along
        scale = np.abs(values).max(axis, keepdims=True).clip(np.finfo(np.float32).tiny) / 127
        integers = (values / scale).round().astype(np.int8)
        graph.initializer.remove(weight)
        graph.initializer.extend(
            numpy_helper.from_array(part, f"{name}.{what}")
            for what, part in (("integers", integers), ("scale", scale.astype(np.float32)))
        )
        nodes += [
            helper.make_node("Cast", [f"{name}.integers"], [f"{name}.floats"], to=_FLOAT),
            helper.make_node("Mul", [f"{name}.floats", f"{name}.scale"], [name]),
        ]
    nodes += graph.node
    del graph.node[:]
    graph.node.extend(nodes)
    onnx.save(model, target)


def _examples(model: CrossEncoder, session: onnxruntime.InferenceSession) -> list[dict[str, Any]]:
    """Of some test queries: the three that gain most, the middle one and the one that loses most.

    What counts is the place of the query's own passage, where BM25 finds it at all.
    """
    collection = load(_SEARCHED.collection)
    queries = collection.queries[collection.queries["query_id"].isin(chosen_queries(_SEARCHED))]
    passages = collection.passages.set_index("doc_id")["text"]
    found = _candidates(queries, collection.passages)
    gains = []
    for query_id, query in zip(queries["query_id"], queries["query"], strict=True):
        candidates = found[found["query_id"] == query_id]
        if query_id in candidates["doc_id"].to_numpy():
            texts = passages[candidates["doc_id"]]
            scores = [_score(model, session, query, text) for text in texts]
            ranked = _ranked(candidates.assign(student=scores, text=texts.to_numpy()))
            own = ranked.set_index("doc_id").loc[query_id]
            example = {
                "query": query, "answer": query_id,
                "candidates": ranked.drop(columns="query_id").to_dict("records"),
            }
            gains.append((int(own["rank"] - own["student_rank"]), query, example))
    gains.sort(key=lambda one: (-one[0], one[1]))
    chosen = dict.fromkeys([0, 1, 2, len(gains) // 2, len(gains) - 1])
    return [gains[place][2] for place in chosen if place < len(gains)]


def _candidates(queries: pd.DataFrame, passages: pd.DataFrame) -> pd.DataFrame:
    """By BM25, equal scores in the passages' order, as ``bm25.js`` has them."""
    found = bm25(queries, passages, depth=2 * _SEARCHED.depth)
    place = pd.Series(range(len(passages)), index=passages["doc_id"])
    found = found.assign(place=place[found["doc_id"]].to_numpy())
    found = found.sort_values(["query_id", "score", "place"], ascending=[True, False, True])
    rank = found.groupby("query_id").cumcount() + 1
    return found.drop(columns="place").assign(rank=rank)[rank <= _SEARCHED.depth]


def _ranked(candidates: pd.DataFrame) -> pd.DataFrame:
    """With the student's ranks; equal scores stay in BM25's order."""
    order = candidates["student"].rank(ascending=False, method="first").astype(int)
    return candidates.assign(student_rank=order)


def _score(
    model: CrossEncoder, session: onnxruntime.InferenceSession, query: str, passage: str
) -> float:
    """Of one pair, alone in its batch, as ``worker.js`` asks for it."""

    def ids(text: str, most: int) -> list[int]:
        return model.tokenizer(text, add_special_tokens=False)["input_ids"][:most]

    template = model.template
    first = [*template.before, *ids(query, model.query_tokens), *template.between]
    second = [*ids(passage, model.passage_tokens), *template.after]
    one, other = template.segments
    inputs = {
        "input_ids": first + second,
        "attention_mask": [1] * len(first + second),
        "token_type_ids": [one] * len(first) + [other] * len(second),
    }
    asked = {x.name: np.array([inputs[x.name]], np.int64) for x in session.get_inputs()}
    return float(session.run(["logits"], asked)[0][0, 0])


def _pack(source: Path, target: Path) -> None:
    target.write_bytes(gzip.compress(source.read_bytes(), mtime=0))


def _copy(run: Path, about: dict[str, Any], data: Path) -> float:
    """Everything that the scripts fetch, once npm has given what is not ours; how many MB."""
    if (size := (run / "model.onnx.gz").stat().st_size) > _LARGEST_BYTES:
        raise OSError(f"the student's {size / 1e6:.0f} MB are too many for a page")
    runtime, tokenizers = npm_files(ONNXRUNTIME), npm_files(TOKENIZERS)
    data.mkdir(parents=True)
    for path in (*runtime.iterdir(), *tokenizers.iterdir()):
        if path.suffix == ".wasm":
            _pack(path, data / "runtime.wasm.gz")
        else:
            shutil.copyfile(path, data / path.name)
    names = ("model.onnx.gz", "tokenizer.json.gz", "passages.json.gz")
    for name in names:
        shutil.copyfile(run / name, data / name)
    sizes = {name: (data / name).stat().st_size for name in ("runtime.wasm.gz", *names)}
    (data / "about.json").write_text(json.dumps({"files": sizes, **about}), encoding="utf-8")
    return sum(sizes.values()) / 1e6


_ROW = """<li class="rdl-hit{own}" data-moved="{way}" style="--rdl-share: {share}">
<span class="rdl-rank" data-part="rank">{rank}</span>
<span class="rdl-name"><code data-part="name">{name}</code>
<span class="rdl-tag">its own passage</span></span>
<span class="rdl-moved"><span data-part="moved">{moved}</span>
<span class="rdl-was" data-part="was">{was}</span></span>
<span class="rdl-score"><span data-part="score">{score}</span></span>
<details class="rdl-text"><summary><span data-part="passage">{text}</span></summary></details>
</li>"""
_FORM = """<form data-part="ask" class="rdl-ask" hidden>
<label for="rdl-query">What are you looking for?</label>
<div class="rdl-line"><input id="rdl-query" data-part="query" type="search" maxlength="300"
 autocomplete="off" placeholder="a sentence, or a few words" required>
<button type="submit">Search and re-rank</button></div>
<p class="rdl-hint">The first query loads the student, {size:.0f} MB; then everything happens on
your device.</p>
<div class="rdl-chips" role="group" aria-label="Examples">{chips}</div>
</form>"""
_CHIP = '<button type="button" data-query="{query}" data-answer="{answer}">{query}</button>'
_WIDGET = """<!-- live -->
<div id="rdl-live" class="rdl-live"{ready}>
<p class="rdl-by"><span class="rdl-badge rdl-badge-{scale}">{scale}</span> student
<code>{student}</code> of profile <code>{profile}</code>: {label}</p>
{form}
<div class="rdl-state"><p data-part="status" role="status">{status}</p>
<progress data-part="progress" max="1" aria-label="Loading" hidden></progress>
<span data-part="loaded"></span></div>
<section data-part="answer" class="rdl-answer" aria-label="Result" data-own="{answer}">
<h2 class="rdl-asked" data-part="asked">{query}</h2>
<dl class="rdl-times"><div><dt>BM25</dt><dd data-part="first-ms">{first}</dd></div>
<div><dt>Student</dt><dd data-part="second-ms">{second}</dd></div></dl>
<fieldset data-part="orders" class="rdl-orders" hidden><legend>Order</legend>
<label><input type="radio" name="rdl-order" value="student" checked> student</label>
<label><input type="radio" name="rdl-order" value="bm25"> BM25</label></fieldset>
<ol class="rdl-results" data-part="results">{rows}</ol>
</section>
<template data-part="row">{blank}</template>
</div>
<!-- /live -->"""


def _widget(profile: Profile, run: Run, about: dict[str, Any], size_mb: float | None) -> str:
    """The page's own HTML: form, chips, and the first example in the student's order."""
    example = about["examples"][0]
    shown = sorted(example["candidates"], key=lambda one: one["student_rank"])
    scores = [one["student"] for one in shown]
    rows = [_row(one, one["doc_id"] == example["answer"], scores) for one in shown]
    chips = [
        _CHIP.format(query=html.escape(one["query"]), answer=html.escape(one["answer"]))
        for one in about["examples"]
    ]
    live = size_mb is not None
    return _WIDGET.format(
        ready=" data-ready" if live else "", scale=profile.scale, profile=html.escape(profile.name),
        student=run.manifest["inputs"][0], label=html.escape(profile.label),
        form=_FORM.format(chips="".join(chips), size=size_mb) if live else "",
        status="An example, computed when the book was built.",
        query=html.escape(example["query"]), answer=html.escape(example["answer"]),
        first=f"finds {len(shown)} of {about['passages']:,} passages", second="re-ranks them",
        rows="".join(rows), blank=_blank(),
    )


def _row(one: dict[str, Any], own: bool, scores: list[float]) -> str:
    up = one["rank"] - one["student_rank"]
    way, arrow = ("up", "▲") if up > 0 else ("down", "▼") if up < 0 else ("same", "=")
    best, worst = max(scores), min(scores)
    share = (one["student"] - worst) / (best - worst) if best > worst else 1
    return _ROW.format(
        own=" rdl-own" if own else "", way=way, share=f"{share:.3f}", rank=one["student_rank"],
        name=html.escape(one["doc_id"]).replace(".", ".<wbr>"), was=f"BM25: {one['rank']}",
        moved=f"{arrow} {abs(up)}" if up else arrow, score=f"{one['student']:.2f}",
        text=html.escape(one["text"]),
    )


def _blank() -> str:
    names = ("own", "way", "rank", "name", "moved", "was", "score", "text")
    return _ROW.format(**dict.fromkeys(names, ""), share=0)
