"""The live page: BM25's candidates, re-ranked in the reader's browser by the student of this build.

Beside the built pages lie the student in ONNX with weights of 8 bits, its tokenizer, the embedded
collection's passages and, from npm, onnxruntime-web; scripts in ``book/_static/live`` do the rest. The
page itself has an example, for browsers that cannot run the model and for builds without a network.
"""

from __future__ import annotations

import gzip
import html
import json
import re
import shutil
import tempfile
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from bm25s.stopwords import STOPWORDS_EN
from onnxruntime import InferenceSession

from rdl_core.cross_encoder import CrossEncoder
from rdl_core.data.collections import load
from rdl_core.data.retrieval import bm25
from rdl_study.grid import train
from rdl_study.lists import ListsConfig, chosen_queries
from rdl_study.npm import ONNXRUNTIME, TOKENIZERS, npm_files
from rdl_study.profile import Profile, StudentConfig, load_profile
from rdl_study.store import Run, obtain, project_folder
from rdl_tools.export import export

__all__ = ["make_live"]

_SEARCHED = ListsConfig(collection="rdl/pydocs/test", first_stage="bm25", depth=20, n_queries=20)
_PAGE = Path("book", "live.html")
_DATA = Path("_static", "live", "data")
_LARGEST_BYTES = 40_000_000  # of the model: the whole site has to stay under 60 MB
_MARK = re.compile("<!-- live -->.*?<!-- /live -->", re.DOTALL)


def make_live(profile_name: str, site: Path) -> str:
    """Complete the live page of a built site; says what it has, or why it has the example alone."""
    profile, page = load_profile(profile_name), site / _PAGE
    if not page.is_file():
        raise ValueError(f"{site} has no page {_PAGE}: build the book first")
    run = _run(profile.student())
    about = json.loads((run.folder / "about.json").read_text())
    shutil.rmtree(site / _DATA, ignore_errors=True)
    try:
        size_mb = _copy(run.folder, about, site / _DATA)
        line = f"live page: {size_mb:.1f} MB that a reader's first query loads"
    except OSError as error:
        size_mb, line = None, f"live page: an example without the model, because {error}"
    widget = _widget(profile, run, about, size_mb)
    text = page.read_text(encoding="utf-8")
    page.write_text(_MARK.sub(lambda _: widget, text), encoding="utf-8")
    return line


def _run(system: StudentConfig) -> Run:
    """What the page needs of a student and of the collection, as a run of the store."""
    collection, trained = load(_SEARCHED.collection), train(system)

    def compute(folder: Path) -> None:
        limits = {name: getattr(system, name) for name in ("query_tokens", "passage_tokens")}
        model = CrossEncoder.from_pretrained(trained.folder / "model", **limits)
        with tempfile.TemporaryDirectory() as temporary:
            exported = Path(temporary) / "student"
            export(model, exported, quantise=True)
            small = exported / "onnx" / "model_int8.onnx"
            session = InferenceSession(small, providers=["CPUExecutionProvider"])
            _pack(small.read_bytes(), folder / "model.onnx.gz")
            _pack((exported / "tokenizer.json").read_bytes(), folder / "tokenizer.json.gz")
        passages = collection.passages[["doc_id", "text"]].to_numpy().tolist()
        _pack(json.dumps(passages, ensure_ascii=False).encode(), folder / "passages.json.gz")
        about = {
            "depth": _SEARCHED.depth, "stop_words": STOPWORDS_EN, "passages": len(passages), **limits,
            "template": asdict(model.template), "examples": _examples(model, session),
        }  # fmt: skip
        (folder / "about.json").write_text(json.dumps(about), encoding="utf-8")

    return obtain(
        "live", {"student": asdict(system), "searched": asdict(_SEARCHED)},
        data=collection.fingerprint, inputs=[trained.manifest["id"]], compute=compute,
        code=("rdl_tools.export", "rdl_core.data.retrieval", "rdl_study.live"),
    )  # fmt: skip


def _pack(content: bytes, target: Path) -> None:
    target.write_bytes(gzip.compress(content, mtime=0))


def _examples(model: CrossEncoder, session: InferenceSession) -> list[dict[str, Any]]:
    """Test queries whose own passage gains most places over BM25's (three), the median, and least."""
    collection = load(_SEARCHED.collection)
    queries = collection.queries[collection.queries["query_id"].isin(chosen_queries(_SEARCHED))]
    texts, gains = collection.passages.set_index("doc_id")["text"], []
    candidates = _candidates(queries, collection.passages)
    for query_id, query in queries[["query_id", "query"]].itertuples(index=False):
        own = candidates[candidates["query_id"] == query_id].drop(columns="query_id")
        if query_id in set(own["doc_id"]):
            own = own.assign(text=texts[own["doc_id"]].to_numpy())
            own["student"] = [_score(model, session, query, text) for text in own["text"]]
            # Equal scores stay in BM25's order.
            own["student_rank"] = own["student"].rank(ascending=False, method="first").astype(int)
            answer = own.set_index("doc_id").loc[query_id]
            example = {"query": query, "answer": query_id, "candidates": own.to_dict("records")}
            gains.append((int(answer["rank"] - answer["student_rank"]), query, example))
    gains.sort(key=lambda gain: (-gain[0], gain[1]))
    places = dict.fromkeys([0, 1, 2, len(gains) // 2, len(gains) - 1])
    return [gains[place][2] for place in places if place < len(gains)]


def _candidates(queries: pd.DataFrame, passages: pd.DataFrame) -> pd.DataFrame:
    """By BM25, equal scores in the passages' order, as ``bm25.js`` has them."""
    frame = bm25(queries, passages, depth=2 * _SEARCHED.depth)
    place = pd.Series(range(len(passages)), index=passages["doc_id"])
    frame = frame.assign(place=place[frame["doc_id"]].to_numpy())
    frame = frame.sort_values(["query_id", "score", "place"], ascending=[True, False, True])
    rank = frame.groupby("query_id").cumcount() + 1
    return frame.drop(columns="place").assign(rank=rank)[rank <= _SEARCHED.depth]


def _score(model: CrossEncoder, session: InferenceSession, query: str, passage: str) -> float:
    """Of one pair, alone in its batch, as ``worker.js`` asks for it."""
    template = model.template
    query_ids, passage_ids = (
        model.tokenizer(text, add_special_tokens=False)["input_ids"][:most]
        for text, most in ((query, model.query_tokens), (passage, model.passage_tokens))
    )
    first = [*template.before, *query_ids, *template.between]
    second = [*passage_ids, *template.after]
    segments = [n for n, ids in zip(template.segments, (first, second), strict=True) for _ in ids]
    ids = first + second
    inputs = {"input_ids": ids, "attention_mask": [1] * len(ids), "token_type_ids": segments}
    arrays = {x.name: np.array([inputs[x.name]], np.int64) for x in session.get_inputs()}
    return float(session.run(["logits"], arrays)[0][0, 0])


def _copy(run: Path, about: dict[str, Any], data: Path) -> float:
    """Everything that the scripts fetch, once npm has given what is not ours; how many MB."""
    if (size := (run / "model.onnx.gz").stat().st_size) > _LARGEST_BYTES:
        raise OSError(f"the student's {size / 1e6:.0f} MB are too many for a page")
    paths = [path for package in (ONNXRUNTIME, TOKENIZERS) for path in npm_files(package)]
    data.mkdir(parents=True)
    for path in (*paths, *run.glob("*.gz")):
        if path.suffix == ".wasm":
            _pack(path.read_bytes(), data / "runtime.wasm.gz")
        else:
            shutil.copyfile(path, data / path.name)
    names = ("runtime.wasm", "model.onnx", "tokenizer.json", "passages.json")  # as worker.js reads them
    sizes = {f"{name}.gz": (data / f"{name}.gz").stat().st_size for name in names}
    (data / "about.json").write_text(json.dumps({"files": sizes, **about}), encoding="utf-8")
    return sum(sizes.values()) / 1e6


def _html(template: str, **values: object) -> str:
    """A template of ``book/_static/live``, filled in."""
    path = project_folder() / "book" / "_static" / "live" / f"{template}.html.in"
    return path.read_text(encoding="utf-8").strip().format(**values)


def _widget(profile: Profile, run: Run, about: dict[str, Any], size_mb: float | None) -> str:
    """Form, chips, and the first example in the student's order; without a size no form."""
    examples = about["examples"]
    chips = [{name: html.escape(x[name]) for name in ("query", "answer")} for x in examples]
    ranked = sorted(examples[0]["candidates"], key=lambda candidate: candidate["student_rank"])
    best, worst = ranked[0]["student"], ranked[-1]["student"]
    rows = [_row(x, x["doc_id"] == examples[0]["answer"], best, worst) for x in ranked]
    buttons = "".join(_html("chip", **chip) for chip in chips)
    names = ("own", "way", "rank", "name", "moved", "was", "score", "text")
    return _html(
        "widget", ready="" if size_mb is None else " data-ready", scale=profile.scale, **chips[0],
        profile=html.escape(profile.name), student=run.manifest["inputs"][0],
        label=html.escape(profile.label), n_rows=len(rows), n_passages=about["passages"],
        form="" if size_mb is None else _html("form", chips=buttons, size=size_mb),
        rows="".join(rows), blank=_html("row", **dict.fromkeys(names, ""), share=0),
    )  # fmt: skip


def _row(candidate: dict[str, Any], own: bool, best: float, worst: float) -> str:
    up = candidate["rank"] - candidate["student_rank"]
    way, arrow = ("up", "▲") if up > 0 else ("down", "▼") if up < 0 else ("same", "=")
    share = (candidate["student"] - worst) / (best - worst) if best > worst else 1
    return _html(
        "row", own=" rdl-own" if own else "", way=way, share=f"{share:.3f}",
        name=html.escape(candidate["doc_id"]).replace(".", ".<wbr>"), rank=candidate["student_rank"],
        moved=f"{arrow} {abs(up)}" if up else arrow, was=f"BM25: {candidate['rank']}",
        score=f"{candidate['student']:.2f}", text=html.escape(candidate["text"]),
    )  # fmt: skip
