"""What is raced: rankings, training steps, sampling and growth, over a profile's own passages.

`PARTS` says what each part compares. A part's figures are its timings, one row a call, and what each
system's process was; pages draw from both. What was recorded lies in ``results/efficiency/<name>/``.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import pandas as pd
import torch

from rdl_core import efficiency
from rdl_core.cross_encoder import CrossEncoder
from rdl_core.data.collections import load
from rdl_core.data.downloads import encoder_path
from rdl_core.devices import default_device, resolve_precision
from rdl_core.efficiency import Job, System, race
from rdl_core.study.candidates import ListsConfig, lists
from rdl_core.study.jobs import StudentConfig, student
from rdl_core.study.profile import Profile
from rdl_core.study.runs import Run, machine, obtain, project_folder

__all__ = ["LLMS", "PARTS", "Measured", "keep", "measure_part", "peers_python", "read", "timings"]

_MOST_CALLS = 8
_UNCUT = {"query_tokens": 64, "passage_tokens": 445}  # with three more, all that BERT reads
_HERE = Path(efficiency.__file__).parent
_DEPTHS = (10, 30, 100, 300, 1000)
_PASSAGE_WORDS = (32, 64, 128, 256, 445)
_LIST_SIZES = (8, 16, 32, 64, 128)
#: Sizes of a listwise LLM: Mistral-7B's, and a toy of the same architecture for machines without GPU.
LLMS = {
    "7B": {
        "hidden_size": 4096, "intermediate_size": 14_336, "num_hidden_layers": 32,
        "num_attention_heads": 32, "num_key_value_heads": 8, "max_position_embeddings": 32_768,
    },
    "toy": {
        "hidden_size": 256, "intermediate_size": 896, "num_hidden_layers": 4,
        "num_attention_heads": 8, "num_key_value_heads": 2, "max_position_embeddings": 32_768,
    },
}  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class Measured:
    """A part as it was measured."""

    timings: pd.DataFrame
    """One row a call: ``system``, ``call``, ``turn``, ``ms``."""
    machines: pd.DataFrame
    """By system: bytes and versions of its process."""
    manifest: dict
    """What ran where: ``part``, ``lists``, ``tokens``, ``differences`` (largest, of scores, from the
    first system's), ``device``, ``commit``, ``finished``, ``wall_s``."""


@dataclass(frozen=True, kw_only=True)
class _Given:
    """What a part is made from."""

    work: dict
    peers: str | None  # interpreter
    llm: str

    def cut(self, depth: int) -> dict:
        cut = [x | {"passages": x["passages"][:depth]} for x in self.work["lists"]]
        return self.work | {"lists": cut}


def _ours(**options: object) -> System:
    return System(function="rank_ours", options=options)


def _peer(function: str, python: str, **options: object) -> System:
    return System(
        function=function, options=options, file=str(_HERE / "peers" / "lightning_ir.py"), python=python
    )


def _theirs(batch_size: int) -> System:
    return System(function="rank_sentence_transformers", options={"batch_size": batch_size})


def _rank(given: _Given) -> tuple[dict[str, System], dict]:
    """Passages of a query ranked, by everybody."""
    systems = {"ours": _ours(), "ours, tokenised before": _ours(stored=True)}
    systems |= {f"ours, {p}": _ours(precision=p) for p in ("bfloat16", "int8")}
    systems |= {f"sentence-transformers, {n} at once": _theirs(n) for n in (8, 16, 32)}
    if given.peers:
        systems["Lightning IR"] = _peer("rank", given.peers)
    return systems | {"bi-encoder": System(function="rank_bi_encoder")}, given.work


def _engine(given: _Given) -> tuple[dict[str, System], dict]:
    """Our student without one thing or the other."""
    systems = {"ours": _ours(), "weights as they come": _ours(laid_out=False)}
    systems["batches not filled up"] = _ours(filled=False)
    systems["memory handed back"] = _ours(kept=False)
    if shutil.which(os.environ.get("CXX", "g++")):
        systems["layers compiled"] = _ours(laid_out=False, compiled=True)
    systems |= {f"batches of {n:,} tokens": _ours(token_budget=n) for n in (512, 1024, 4096, 8192)}
    return systems | {"sentence-transformers, 8 at once": _theirs(8)}, given.work


def _train(given: _Given) -> tuple[dict[str, System], dict]:
    """A training step on a list of 32, RankNet, AdamW, all weights, dropout as in the encoder."""
    systems = {"ours": System(function="train_ours")}
    systems["ours, bfloat16"] = System(function="train_ours", options={"precision": "bfloat16"})
    if given.peers:
        theirs = "train_sentence_transformers"
        systems |= {
            "sentence-transformers": System(function=theirs, options={"mini_batch_size": None}),
            "sentence-transformers, 8 at once": System(
                function=theirs, options={"mini_batch_size": 8}
            ),
            "Lightning IR": _peer("train", given.peers),
        }
    return systems, given.cut(32)


def _sample(given: _Given) -> tuple[dict[str, System], dict]:
    """A batch of 32 lists of 100 drawn and made ready for the encoder."""
    lists = (given.work["lists"] * 32)[:32]
    size = {"n_lists": 32, "list_size": min(len(x["passages"]) for x in lists)}
    systems = {"ours": System(function="sample_ours", options=size)}
    if given.peers:
        systems["Lightning IR, texts"] = _peer("load", given.peers, **size)
        systems["Lightning IR, tokens"] = _peer("load", given.peers, tokenised=True, **size)
    return systems, given.work | {"lists": lists}


def _regrouped(given: _Given, sizes: tuple[int, ...], texts: list[str]) -> dict:
    """One list of each size, of the first query; passages repeated where there are too few."""
    query = given.work["lists"][0]["query"]
    repeated = texts * (max(sizes) // len(texts) + 1)
    made = [{"query": query, "passages": repeated[:n]} for n in sizes]
    return given.work | {"lists": made, "sizes": sizes}


def _depth(given: _Given) -> tuple[dict[str, System], dict]:
    """From 10 to 1,000 passages; a list beyond the first stage's depth takes other queries' ones."""
    every = list(dict.fromkeys(p for x in given.work["lists"] for p in x["passages"]))
    systems = {"ours": _ours(), "ours, int8": _ours(precision="int8")}
    systems["sentence-transformers, 8 at once"] = _theirs(8)
    return systems, _regrouped(given, _DEPTHS, every)


def _length(given: _Given) -> tuple[dict[str, System], dict]:
    """32 passages of 32 to 445 words, cut to 445 tokens, of the first list's words."""
    words = " ".join(given.work["lists"][0]["passages"]).split()
    query = given.work["lists"][0]["query"]
    made = [
        {"query": query, "passages": [" ".join(words[i * 7 % 200 :][:n]) for i in range(32)]}
        for n in _PASSAGE_WORDS
    ]
    systems = {"ours": _ours(), "sentence-transformers, 8 at once": _theirs(8)}
    return systems, given.work | {"lists": made, "sizes": _PASSAGE_WORDS}


def _list_size(given: _Given) -> tuple[dict[str, System], dict]:
    """A training step on one list of 8 to 128."""
    every = list(dict.fromkeys(p for x in given.work["lists"] for p in x["passages"]))
    return {"ours": System(function="train_ours")}, _regrouped(given, _LIST_SIZES, every)


def _llm(given: _Given) -> tuple[dict[str, System], dict]:
    """The student beside a listwise LLM that slides windows of 20 by 10 over the same lists."""
    sizes = {"sizes": LLMS[given.llm]}
    llm = "rank_listwise_llm"
    systems = {
        "ours": _ours(precision="auto"),
        f"listwise LLM ({given.llm})": System(function=llm, options=sizes),
        f"listwise LLM ({given.llm}), one token a window": System(
            function=llm, options=sizes | {"mode": "first_token"}
        ),
    }
    return systems, given.work


#: What is compared, by name.
PARTS: dict[str, Callable[[_Given], tuple[dict[str, System], dict]]] = {
    "rank": _rank, "engine": _engine, "train": _train, "sample": _sample, "depth": _depth,
    "length": _length, "list_size": _list_size, "llm": _llm,
}  # fmt: skip


def measure_part(
    part: str, candidates: ListsConfig, *, model: str, repetitions: int, peers: str | None = None,
    llm: str = "toy", folder: Path | None = None,
) -> Measured:
    """Race a part's systems.

    Args:
        part: A key of `PARTS`.
        candidates: Queries and passages.
        model: Folder, hub id or name of a cross-encoder's or an encoder's weights; of the latter, a
            head is drawn at random, the same for all.
        repetitions: How often each list is gone through.
        peers: Interpreter of the environment that has Lightning IR; None leaves the peers out.
        llm: A key of `LLMS`.
        folder: Gets ``<part>.csv`` and ``<part>.json``; None keeps nothing.

    >>> found = measure_part("sample", profile.test, model=profile.encoder, repetitions=2)
    >>> found.timings["system"].unique().tolist()
    ['ours']
    """
    if part not in PARTS:
        raise ValueError(f"part: expected one of {', '.join(PARTS)}; given {part!r}")
    with tempfile.TemporaryDirectory() as weights:
        given = _Given(work=_work(candidates, model, Path(weights)), peers=peers, llm=llm)
        systems, work = PARTS[part](given)
        calls = list(range(min(len(work["lists"]), _MOST_CALLS)))
        job = Job(systems=systems, work=work, calls=calls, repetitions=repetitions)
        started = datetime.now(UTC)
        timed, machines, results = race(job)
    manifest = {
        "part": part, "what": " ".join(PARTS[part].__doc__.split()), "model": model,
        "collection": candidates.collection, "first_stage": candidates.first_stage,
        "lists": [len(each["passages"]) for each in work["lists"]],
        "sizes": work.get("sizes"),
        "query_tokens": work["query_tokens"], "passage_tokens": work["passage_tokens"],
        "repetitions": repetitions, "differences": _differences(results), **machine(),
        "finished": datetime.now(UTC).isoformat(timespec="seconds"),
        "wall_s": round((datetime.now(UTC) - started).total_seconds(), 1),
        "data": load(candidates.collection).fingerprint,
    }
    measured = Measured(timings=timed, machines=machines, manifest=manifest)
    if folder:
        keep(measured, folder)
    return measured


def timings(profile: Profile, *, n_queries: int, repetitions: int) -> tuple[Measured, Run]:
    """Time each system that the study ranks with, on a profile's test candidates.

    Args:
        profile: Its test candidates and its student are used.
        n_queries: So many of the test queries.
        repetitions: How often each is ranked.

    Returns:
        The figures, and the run of the store that holds them.

    >>> measured, run = timings(profile, n_queries=2, repetitions=1)
    >>> {"student", "BM25"} < set(measured.timings["system"])
    True
    """
    config = _TimingConfig(
        candidates=replace(profile.test, n_queries=n_queries), system=profile.student(),
        repetitions=repetitions,
    )
    trained = student(config.system)

    def compute(folder: Path) -> None:
        with tempfile.TemporaryDirectory() as weights:
            limits = {name: getattr(config.system, name) for name in _UNCUT}
            model = str(trained.folder / "model")
            work = _work(config.candidates, model, Path(weights), limits)
            calls = list(range(len(work["lists"])))
            systems = _of_study(profile.precision)
            job = Job(systems=systems, work=work, calls=calls, repetitions=repetitions)
            timed, machines, results = race(job)
        manifest = {"part": "timing", "differences": _differences(results), **machine()}
        keep(Measured(timings=timed, machines=machines, manifest=manifest), folder)

    run = obtain(
        "timing", config, data=load(config.candidates.collection).fingerprint,
        code=("rdl_core.study.bench", "rdl_core.efficiency.systems", "rdl_core.efficiency.worker"),
        inputs=[trained.manifest["id"]], compute=compute,
    )
    return read(run.folder / "timing.json"), run


def read(file: Path) -> Measured:
    """Figures of a part from ``<part>.json`` and the ``<part>.csv`` beside it.

    >>> found = measure_part("sample", profile.test, model=profile.encoder, repetitions=1,
    ...                      folder=folder)
    >>> read(folder / "sample.json").timings.equals(found.timings.round(3))
    True
    """
    manifest = json.loads(file.read_text())
    machines = pd.DataFrame.from_dict(manifest.pop("machines"), orient="index")
    return Measured(
        timings=pd.read_csv(file.with_suffix(".csv")),
        machines=machines.rename_axis("system"), manifest=manifest,
    )


def peers_python() -> str:
    """The interpreter of ``.venv-peers``, which is made where it is missing.

    Lightning IR 0.0.6 needs transformers 4, so its environment is its own.

    >>> peers_python()  # doctest: +SKIP
    '.../.venv-peers/bin/python'
    """
    folder = project_folder() / ".venv-peers"
    python = folder / "bin" / "python"
    if not (folder / ".ready").exists():
        shutil.rmtree(folder, ignore_errors=True)
        subprocess.run([sys.executable, "-m", "venv", folder], check=True)
        install = [python, "-m", "pip", "install", "-qq", "--no-compile"]
        subprocess.run([*install, "-r", str(_HERE / "peers" / "requirements.txt")], check=True)
        (folder / ".ready").touch()
    return str(python)


def _of_study(precision: str) -> dict[str, System]:
    """What the study ranks with, and the student in other precisions and hands."""
    device = default_device()
    others = [resolve_precision(precision, device), *(["int8"] if device.type == "cpu" else [])]
    return {
        "student": _ours(),
        **{f"student, {p}": _ours(precision=p) for p in others if p != "float32"},
        "student in sentence-transformers": _theirs(8),
        "bi-encoder": System(function="rank_bi_encoder"),
        "BM25": System(function="rank_bm25"),
    }


@dataclass(frozen=True, kw_only=True)
class _TimingConfig:
    """What the timing of a profile depends on."""

    candidates: ListsConfig
    system: StudentConfig
    repetitions: int


def _work(
    candidates: ListsConfig, model: str, folder: Path, limits: dict[str, int] | None = None
) -> dict:
    """Lists with texts, and weights that every system loads."""
    frame, collection = lists(candidates), load(candidates.collection)
    queries = collection.queries.set_index("query_id")["query"]
    texts = collection.passages_of(frame["doc_id"]).set_index("doc_id")["text"]
    asked = [
        {"query": queries[query_id], "passages": texts[rows["doc_id"]].tolist()}
        for query_id, rows in frame.groupby("query_id")
    ]
    torch.manual_seed(0)  # the head, where there is none
    limits = limits or _UNCUT
    saved = CrossEncoder.from_pretrained(encoder_path(model), **limits)
    saved.save_pretrained(folder)
    return {
        "model": str(folder), "bi_encoder": encoder_path(candidates.teacher_encoder),
        "lists": asked, **limits,
    }  # fmt: skip


def _differences(results: dict[str, dict[int, object]]) -> dict[str, float]:
    """Largest difference between scores of each system and the first one's, where it has scores."""
    first, *others = results
    found = {}
    for name in others:
        pairs = [(results[first][call], results[name][call]) for call in results[first]]
        if all(isinstance(x, list) and np.shape(x) == np.shape(y) for x, y in pairs):
            found[name] = max(float(np.abs(np.subtract(x, y)).max()) for x, y in pairs)
    return found


def keep(measured: Measured, folder: Path) -> None:
    """Write a part as `read` reads it.

    >>> keep(read(project_folder() / "results" / "efficiency" / "cpu" / "sample.json"), folder)
    >>> sorted(path.name for path in folder.iterdir())
    ['sample.csv', 'sample.json']
    """
    part = measured.manifest["part"]
    folder.mkdir(parents=True, exist_ok=True)
    measured.timings.round(3).to_csv(folder / f"{part}.csv", index=False)
    manifest = measured.manifest | {"machines": measured.machines.to_dict("index")}
    (folder / f"{part}.json").write_text(json.dumps(manifest, indent=1) + "\n")
