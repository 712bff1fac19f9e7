"""Races over a profile's own passages: rankings, training steps, sampling, growth and limits.

`rdl_study.bench.parts` says what each part compares. A part's figures are its timings, one row a
call, and what each system's process was; pages draw from both. What was recorded lies in
``results/efficiency/<name>/``.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import tempfile
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import pandas as pd
import torch

import rdl_study.bench as efficiency
from rdl_core.cross_encoder import CrossEncoder
from rdl_core.data.collections import load
from rdl_core.data.downloads import encoder_path
from rdl_study.bench import Job, race
from rdl_study.candidates import ListsConfig, lists
from rdl_study.jobs import StudentConfig, student
from rdl_study.bench.parts import PARTS, Given, of_study
from rdl_study.profile import Profile
from rdl_study.store import Run, machine, obtain, project_folder

__all__ = ["Measured", "keep", "measure_part", "peers_python", "read", "timings"]

_MOST_CALLS = 8
_UNCUT = {"query_tokens": 64, "passage_tokens": 445}  # with three more, all that BERT reads
_HERE = Path(efficiency.__file__).parent


@dataclass(frozen=True, kw_only=True)
class Measured:
    """A part as it was measured."""

    timings: pd.DataFrame
    """One row a call: ``system``, ``call``, ``turn``, ``ms``."""
    machines: pd.DataFrame
    """By system: bytes and versions of its process."""
    manifest: dict
    """What ran where: ``part``, ``lists``, ``tokens``, ``differences`` (largest, of scores, from the
    first system's), ``counts`` (by system and call, where calls give numbers), ``device``, ``commit``,
    ``finished``, ``wall_s``."""


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
        given = Given(work=_work(candidates, model, Path(weights)), peers=peers, llm=llm)
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
        "repetitions": repetitions, "differences": _differences(results),
        "counts": {name: found for name, found in results.items() if _numbers(found)}, **machine(),
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
            systems = of_study(profile.precision)
            job = Job(systems=systems, work=work, calls=calls, repetitions=repetitions)
            timed, machines, results = race(job)
        manifest = {"part": "timing", "differences": _differences(results), **machine()}
        keep(Measured(timings=timed, machines=machines, manifest=manifest), folder)

    run = obtain(
        "timing", config, data=load(config.candidates.collection).fingerprint,
        code=("rdl_study.bench.measure", "rdl_study.bench.systems", "rdl_study.bench.worker"),
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


def _numbers(found: dict[int, object]) -> bool:
    return all(isinstance(each, int) for each in found.values())


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
