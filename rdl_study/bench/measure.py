"""The commands ``rdl bench``, ``rdl precision`` and ``rdl size``, and the timings of a notebook's own run.

Figures go into a folder; those of the book lie in ``results/efficiency/<machine>/``.
"""

from __future__ import annotations

import json
import logging
import shutil
import subprocess
import sys
import tempfile
import time
from dataclasses import asdict, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from transformers import AutoTokenizer

from rdl_core.cross_encoder import CrossEncoder, model_path
from rdl_core.data.collections import load
from rdl_core.data.downloads import EMBEDDED_ENCODER, encoder_path
from rdl_core.devices import PRECISIONS, default_device
from rdl_core.evaluate import per_query, settle_ties
from rdl_core.files import content_hash
from rdl_core.rerank import rerank
from rdl_core.tokens import PairTemplate, TokenStore
from rdl_study.bench.config import BenchConfig, PrecisionConfig, SizeConfig
from rdl_study.bench.parts import PEERS, of_study, parts
from rdl_study.bench.race import Measured, System, race, ratios, read, summary
from rdl_study.grid import train
from rdl_study.lists import ListsConfig, corpus, lists
from rdl_study.profile import Profile, load_profile
from rdl_study.store import machine, obtain

_MOST_CALLS = 8
_UNCUT = {"query_tokens": 64, "passage_tokens": 445}  # with three more, all that BERT reads
_log = logging.getLogger(__name__)


def bench(config: BenchConfig) -> str:
    """Race systems, part by part, and keep the figures; how fast they are, as text."""
    profile = load_profile(config.profile)
    candidates, model = replace(profile.test, n_queries=config.queries), config.model or profile.encoder
    texts = []
    if config.peers:
        peers_python()
    with tempfile.TemporaryDirectory() as weights:
        every = parts(_work(candidates, model, Path(weights), _UNCUT), config)
        for name in config.parts or every:
            started, (what, systems, work) = time.monotonic(), every[name]
            systems = {label: x for label, x in systems.items() if config.peers or not x.peer}
            calls = list(range(min(len(work["lists"]), _MOST_CALLS)))
            timed, machines, results = race(systems, work, calls=calls, repetitions=config.repetitions)
            about = {
                "what": what, "model": model, "collection": candidates.collection,
                "first_stage": candidates.first_stage, "sizes": work.get("sizes"),
                "lists": [len(each["passages"]) for each in work["lists"]], **_UNCUT,
                "repetitions": config.repetitions, "machines": machines, **_compared(results),
                "data": load(candidates.collection).fingerprint,
            }  # fmt: skip
            _keep(config.out, name, timed, about, started)
            table = summary(timed).assign(speed=ratios(timed, next(iter(systems)))["median"])
            texts.append(f"{name}: {what}\n{table.round(2).to_string()}\n")
            _log.info("%s", texts[-1])
    return "\n".join([*texts, f"figures in {config.out}"])


def peers_python() -> str:
    """Interpreter of the environment of Lightning IR, which is made where it is missing."""
    python, packages = str(PEERS / "bin" / "python"), Path(__file__).parent / "peers" / "requirements.txt"
    if not (PEERS / ".ready").exists():
        shutil.rmtree(PEERS, ignore_errors=True)
        subprocess.run([sys.executable, "-m", "venv", PEERS], check=True)
        install = [python, "-m", "pip", "install", "-qq", "--no-compile", "-r", packages]
        subprocess.run(install, check=True)
        (PEERS / ".ready").touch()
    return python


def timings(profile: Profile, *, n_queries: int, repetitions: int) -> Measured:
    """Time what the study ranks with on some of a profile's test queries, unless the store has it."""
    candidates, system = replace(profile.test, n_queries=n_queries), profile.student()
    limits, trained = {name: getattr(system, name) for name in _UNCUT}, train(system)
    identity = {"candidates": asdict(candidates), "system": asdict(system), "repetitions": repetitions}

    def compute(folder: Path) -> None:
        started = time.monotonic()
        with tempfile.TemporaryDirectory() as weights:
            work = _work(candidates, str(trained.folder / "model"), Path(weights), limits)
            calls, systems = list(range(len(work["lists"]))), of_study(profile.precision)
            timed, machines, results = race(systems, work, calls=calls, repetitions=repetitions)
        _keep(folder, "timing", timed, {"machines": machines, **_compared(results)}, started)

    run = obtain(
        "timing", identity, data=load(candidates.collection).fingerprint, compute=compute,
        inputs=[trained.manifest["id"]],
        code=("rdl_study.bench.measure", "rdl_study.bench.systems", "rdl_study.bench.worker"),
    )  # fmt: skip
    return read(run.folder / "timing.json")


def _work(candidates: ListsConfig, model: str, folder: Path, limits: dict[str, int]) -> dict:
    """Lists with texts, and weights in a folder that every system loads."""
    frame, collection = lists(candidates), load(candidates.collection)
    queries = collection.queries.set_index("query_id")["query"]
    texts = collection.passages_of(frame["doc_id"]).set_index("doc_id")["text"]
    torch.manual_seed(0)  # the head, where there is none
    CrossEncoder.from_pretrained(model, **limits).save_pretrained(folder)
    return {
        "model": str(folder), "bi_encoder": encoder_path(candidates.teacher_encoder),
        "lists": [{"query": queries[query_id], "passages": texts[rows["doc_id"]].tolist()}
                  for query_id, rows in frame.groupby("query_id")],
        "pair_tokens": sum(limits.values()) + 3, **limits,  # [CLS] query [SEP] passage [SEP]
    }  # fmt: skip


def _compared(results: dict[str, dict[int, Any]]) -> dict[str, dict]:
    """Largest difference of each system's scores from the first one's; calls that gave a number."""
    first, differences = next(iter(results.values())), {}
    for name, other in list(results.items())[1:]:
        pairs = [(first[call], other[call]) for call in first]
        if all(isinstance(x, list) and np.shape(x) == np.shape(y) for x, y in pairs):
            differences[name] = max(float(np.abs(np.subtract(x, y)).max()) for x, y in pairs)
    counts = {x: of for x, of in results.items() if all(isinstance(n, int) for n in of.values())}
    return {"differences": differences, "counts": counts}


def _keep(folder: str | Path, part: str, table: pd.DataFrame, about: dict, started: float) -> None:
    file = Path(folder) / f"{part}.json"
    file.parent.mkdir(parents=True, exist_ok=True)
    table.round(4).to_csv(file.with_suffix(".csv"), index=False)
    now = datetime.now(UTC).isoformat(timespec="seconds")
    circumstances = machine() | {"finished": now, "wall_s": round(time.monotonic() - started, 1)}
    file.write_text(json.dumps({"part": part, **about, **circumstances}, indent=1) + "\n")


def precision(config: PrecisionConfig) -> str:
    """Rank a profile's test candidates with a student in each precision; keep every query's measure."""
    profile, started, tables = load_profile(config.profile), time.monotonic(), []
    name, limits = model_path(config.model), {limit: getattr(profile, limit) for limit in _UNCUT}
    model = CrossEncoder.from_pretrained(config.model, **limits, trained=True).to(default_device())
    for test in profile.tests:
        candidates, collection = lists(test), load(test.collection)
        texts = corpus(test.collection, name)
        judged = collection.qrels[collection.qrels["query_id"].isin(candidates["query_id"])]
        for layers in [*PRECISIONS, *(["int8"] if model.device.type == "cpu" else [])]:
            run = settle_ties(rerank(model, candidates, texts, precision=layers), candidates)
            values = per_query(judged, run, [profile.measure])
            tables.append(values.assign(collection=test.collection, precision=layers))
    values = pd.concat(tables)[["collection", "precision", "query_id", profile.measure]]
    weights = Path(name, "model.safetensors")
    about = {
        "model": Path(config.model).name, "weights": content_hash(weights) if weights.exists() else None,
        "profile": profile.name, "candidates": f"{profile.test.first_stage} top {profile.test.depth}",
        "data": [load(test.collection).fingerprint for test in profile.tests],
    }  # fmt: skip
    _keep(config.out, "precision", values, about, started)
    means = values.groupby(["collection", "precision"], sort=False)[profile.measure].mean()
    return f"{means.round(4).to_string()}\nfigures in {config.out}"


def size(config: SizeConfig) -> str:
    """Time the way of data at the size of MS MARCO, with made-up ids and tokens; keep the figures."""
    started, races = time.monotonic(), []
    steps = {"token store opened": "open", "lists made of a parquet file": "lists",
             "a batch drawn and packed": "batch"}  # fmt: skip
    with tempfile.TemporaryDirectory() as made:
        work = _made_up(config, Path(made))
        on_disk = sum(path.stat().st_size for path in Path(made).rglob("*") if path.is_file())
        for label, step in steps.items():  # one after the other: memory is not to be shared
            system = System(function="data_path", options={"step": step}, file="training.py")
            calls = list(range(10 if step == "batch" else 1))
            races.append(race({label: system}, work, calls=calls, repetitions=config.repetitions))
    timed = pd.concat([timings for timings, _, _ in races])
    machines = {label: of for _, of_step, _ in races for label, of in of_step.items()}
    what = "The data path, with made-up ids and tokens."
    about = {"what": what, "sizes": asdict(config), "disk_bytes": on_disk, "machines": machines}
    _keep(config.out, "full_size", timed, about, started)
    peak_mb = {label: of["peak_bytes"] / 1e6 for label, of in machines.items()}
    return f"{summary(timed).assign(peak_MB=peak_mb).round(1).to_string()}\nfigures in {config.out}"


def _made_up(config: SizeConfig, folder: Path) -> dict:
    """Write stores, ids and lists of 100 as Rank-DistiLLM has them; where they are, as a race's work."""
    rng, tokenizer = np.random.default_rng(0), AutoTokenizer.from_pretrained(encoder_path(EMBEDDED_ENCODER))
    for name, n, mean in (("passages", config.passages, 74), ("queries", config.queries, 8)):
        TokenStore.build((), tokenizer, folder / name, max_tokens=512, total=0)  # filled by hand
        lengths = rng.lognormal(np.log(mean) - 0.08, 0.4, n).clip(1, 512).astype(np.int64)
        with (folder / name / "offsets.bin").open("ab") as offsets:
            offsets.write(lengths.cumsum())
        n_tokens = int(lengths.sum())
        ids = rng.integers(1000, len(tokenizer), n_tokens, dtype=np.uint16)
        ids.tofile(folder / name / "tokens.bin")
        about = json.loads((folder / name / "store.json").read_text()) | {"rows": n, "tokens": n_tokens}
        (folder / name / "store.json").write_text(json.dumps(about))
    doc_ids, query_ids = (np.arange(n).astype("str") for n in (config.passages, config.queries))
    stretch = config.passages // 100  # a passage of each stretch, so that none stands twice
    places = np.arange(100) * stretch + rng.integers(0, stretch, (config.queries, 100))
    docno = rng.permuted(places, axis=1).ravel().astype("str")
    rank = np.tile(np.arange(1, 101), config.queries)
    tables = {
        "doc_ids": {"id": doc_ids}, "query_ids": {"id": query_ids},
        "candidates": {"qid": query_ids.repeat(100), "docno": docno, "rank": rank, "score": 1 / rank},
    }  # fmt: skip
    for name, table in tables.items():
        pd.DataFrame(table).to_parquet(folder / f"{name}.parquet")
    paths = {name: str(folder / f"{name}.parquet") for name in tables}
    paths |= {name: str(folder / name) for name in ("passages", "queries")}
    sizes = {"query_tokens": 32, "passage_tokens": 256, "n_lists": 32, "list_size": 100}
    return paths | sizes | {"template": asdict(PairTemplate.of(tokenizer))}
