"""What is raced, and ``rdl bench``; the book's figures lie in ``results/efficiency/<machine>/``."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import tempfile
import time
from dataclasses import asdict, replace
from datetime import UTC, datetime
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch

from rdl_core.cross_encoder import CrossEncoder
from rdl_core.data.collections import load
from rdl_core.data.downloads import embedded_path
from rdl_core.devices import default_device, resolve_precision
from rdl_core.evaluate import per_query, settle_ties
from rdl_study.bench.config import BenchConfig
from rdl_study.bench.race import Measured, System, race, ratios, read, summary
from rdl_study.grid import train
from rdl_study.lists import ListsConfig, lists, llm_of, llm_settings
from rdl_study.profile import Profile, load_profile
from rdl_study.store import machine, obtain, project_folder
from rdl_tools.export import export

_PASSAGE_WORDS = 32, 64, 128, 256, 445
UNCUT = {"query_tokens": 64, "passage_tokens": 445}  # with three more, all that BERT reads


def _sizes(hidden: int, inner: int, layers: int, heads: int, **more: int) -> dict[str, int]:
    return {"hidden_size": hidden, "intermediate_size": inner, "num_hidden_layers": layers,
            "num_attention_heads": heads, **more}  # fmt: skip


# Of a listwise LLM: Mistral-7B's, and a toy's for machines without GPU; of students beside it.
_LLMS = {
    "7B": _sizes(4096, 14_336, 32, 32, num_key_value_heads=8, max_position_embeddings=32_768),
    "toy": _sizes(256, 896, 4, 8, num_key_value_heads=2, max_position_embeddings=32_768),
}
ELECTRAS = {
    "7B": {"ELECTRA-base": _sizes(768, 3072, 12, 12, embedding_size=768),
           "ELECTRA-large": _sizes(1024, 4096, 24, 16, embedding_size=1024)},
    "toy": {"ELECTRA, a toy": _sizes(64, 256, 4, 4, embedding_size=64)},
}  # fmt: skip
_LLM_WAYS = {
    "": {}, ", static cache": {"cache": "static"}, ", 4 lists together": {"batch_size": 4},
    ", one token a window": {"mode": "first_token"},
    ", one token, 4 lists together": {"mode": "first_token", "batch_size": 4},
}  # fmt: skip


def _ranking(function: str, file: str = "systems.py", peer: bool = False, **options: object) -> System:
    return System(function=function, options=options, file=file, peer=peer)


_ours = partial(_ranking, "rank_ours")
_training = partial(_ranking, file="training.py")


def _peer(file: str, function: str, environment: str = "peers", **options: object) -> System:
    root = project_folder()
    python = str(root / f".venv-{environment}" / "bin" / "python")
    own = {"file": str(root / "peers" / file), "python": python, "peer": True}
    return System(function=function, options=options, **own)


_lightning_ir = partial(_peer, "lightning_ir.py")
_runtime = partial(_peer, "runtimes.py")


def parts(work: dict, llm: str) -> dict[str, tuple[str, dict[str, System], dict]]:
    """Of each part what it compares, its systems by label, and the work that they do."""
    words = " ".join(work["lists"][0]["passages"]).split()
    texts = list(dict.fromkeys(text for each in work["lists"] for text in each["passages"]))
    by_words = [[" ".join(words[i * 7 % 200 :][:n]) for i in range(32)] for n in _PASSAGE_WORDS]
    many = (work["lists"] * 32)[:32]
    batch = {"n_lists": 32, "list_size": min(len(each["passages"]) for each in many)}
    device, auto = default_device().type, resolve_precision("auto", default_device())
    in_st = partial(_ranking, "rank_sentence_transformers")
    theirs = {f"sentence-transformers, {n} at once": in_st(batch_size=n) for n in (8, 16, 32)}
    best, compiled = {x: theirs[x] for x in ("sentence-transformers, 8 at once",)}, {}
    ours = {"ours, bfloat16": _ours(precision="bfloat16"), "ours, int8": _ours(precision="int8")}
    if device == "cuda":
        del ours["ours, int8"]
        packed = {", packed": "flash_attention_2"} if find_spec("flash_attn") else {}
        theirs = {
            f"sentence-transformers, bfloat16{how}, {n} at once": in_st(
                batch_size=n, precision="bfloat16", attention=attention)
            for n in (32, 128, 512) for how, attention in ({"": "sdpa"} | packed).items()
        }  # fmt: skip
    if shutil.which(os.environ.get("CXX", "g++")):
        compiled["layers compiled"] = _ours(laid_out=False, compiled="default")
    short = work | {"lists": [x | {"passages": x["passages"][:32]} for x in work["lists"]]}

    def lists_of(passages: list[list[str]], sizes: tuple[int, ...]) -> dict:
        first = [{"query": work["lists"][0]["query"], "passages": each} for each in passages]
        return work | {"lists": first, "sizes": sizes}

    def of_sizes(*sizes: int) -> dict:  # passages repeated where there are too few
        return lists_of([(texts * (n // len(texts) + 1))[:n] for n in sizes], sizes)

    return {
        "rank": ("Passages of a query ranked, by everybody.", {
            "ours": _ours(), "ours, tokenised before": _ours(stored=True), **ours, **theirs,
            "Lightning IR": _lightning_ir("rank"), "bi-encoder": _ranking("rank_bi_encoder"),
        }, work),
        "runtimes": ("Passages of a query ranked, by runtimes and programs for CPUs.", {
            "ours": _ours(), **ours, **best,
            "ONNX Runtime": _runtime("onnxruntime"),
            "ONNX Runtime, int8": _runtime("onnxruntime", int8=True),
            "OpenVINO": _runtime("openvino", precision="float32"),
            **{f"OpenVINO, {x}": _runtime("openvino", precision=x) for x in ("bfloat16", "int8")},
            "sentence-transformers on ONNX Runtime": _runtime("sentence_transformers"),
            "FastEmbed": _runtime("fastembed"),
            "Infinity": _runtime("infinity", "infinity"),
        }, work),
        "engine": ("Our student without one thing or the other.", {
            "ours": _ours(), "weights as they come": _ours(laid_out=False),
            "batches not filled up": _ours(fill=1),
            "all cores at one batch of 2,048": _ours(workers=1, token_budget=2048), **compiled,
            **{f"batches of {n:,} tokens": _ours(token_budget=n) for n in (512, 2048, 4096)}, **best,
        }, work),
        "train": ("A training step on a list of 32, RankNet, AdamW, all weights, dropout.", {
            "ours": _training("train_ours"),
            "ours, bfloat16": _training("train_ours", precision="bfloat16"),
            "sentence-transformers": _training("train_theirs", peer=True, mini_batch_size=None),
            "sentence-transformers, 8 at once": _training("train_theirs", peer=True, mini_batch_size=8),
            "Lightning IR": _lightning_ir("train"),
        }, short),
        "sample": ("A batch of 32 lists of 100 drawn and made ready for the encoder.", {
            "ours": _training("sample_ours", **batch),
            "Lightning IR, texts": _lightning_ir("load", **batch),
            "Lightning IR, tokens": _lightning_ir("load", tokenised=True, **batch),
        }, work | {"lists": many}),
        "depth": ("From 10 to 1,000 passages, beyond the first stage's depth other queries'.", {
            "ours": _ours(), "ours, int8": _ours(precision="int8"), **best,
        }, of_sizes(10, 30, 100, 300, 1000)),
        "length": ("32 passages of 32 to 445 words of the first list, cut to 445 tokens.", {
            "ours": _ours(), **best,
        }, lists_of(by_words, _PASSAGE_WORDS)),
        "list_size": ("A training step on one list of 8 to 128.", {
            "ours": _training("train_ours"),
        }, of_sizes(8, 16, 32, 64, 128)),
        "cores": ("A list of 32 ranked, or trained on, with one core and with two.", {
            f"{what}, cores: {n}": replace(system, threads=n) for n in (1, 2)
            for what, system in (("ranking", _ours()), ("training", _training("train_ours")))
        }, short),
        "llm": ("Students beside a listwise LLM that slides windows of 20 by 10 over the lists.", {
            "ours": _ours(precision="auto"),
            **{f"ours, {name}": _ours(precision="auto", sizes=x) for name, x in ELECTRAS[llm].items()},
            **{f"listwise LLM ({llm}){way}": _ranking("rank_listwise_llm", sizes=_LLMS[llm], **options)
               for way, options in _LLM_WAYS.items()},
        }, work),
        "window": ("Students rank a list; a listwise LLM reads and answers one window of 20.", {
            "ours": _ours(precision="auto"),
            **{f"ours, {name}": _ours(precision="auto", sizes=x) for name, x in ELECTRAS[llm].items()},
            f"listwise LLM ({llm}), a window": _ranking(
                "rank_listwise_llm", sizes=_LLMS[llm], first=20),
        }, work),
        "limit": ("Operations in a second of rankers, and of products of large matrices alone.", {
            f"{who}, {precision}": _ranking(function, precision=precision)
            for precision in sorted({"float32", auto}, reverse=True)
            for who, function in (("ours", "rank_and_count"), ("matrix products", "matrix_products"))
        } | {next(iter(best)): _ranking("rank_and_count", batch_size=8)}, work),
    }  # fmt: skip


def bench(config: BenchConfig) -> None:
    """Race systems, part by part; print how fast they are, and keep the figures."""
    profile = load_profile(config.profile)
    candidates, model = replace(profile.test, n_queries=config.queries), config.model or profile.encoder
    if config.peers:
        made = [f".venv-{name}/.ready" for name in ("peers", "infinity")]
        subprocess.run(["make", "-sC", project_folder(), *made], check=True)
    with tempfile.TemporaryDirectory() as weights:
        every = parts(_work(candidates, model, Path(weights), UNCUT, config.peers), config.llm)
        for name in config.parts or every:
            started, (what, systems, work) = time.monotonic(), every[name]
            systems = {label: x for label, x in systems.items() if config.peers or not x.peer}
            calls = list(range(min(len(work["lists"]), config.queries)))
            timed, machines, results = race(systems, work, calls=calls, repetitions=config.repetitions)
            about = {
                "what": what, "model": model, "collection": candidates.collection,
                "first_stage": candidates.first_stage, "sizes": work.get("sizes"), **UNCUT,
                "lists": [len(each["passages"]) for each in work["lists"]],
                "repetitions": config.repetitions, "machines": machines, **_compared(results),
                "ndcg_at_10": _effectiveness(candidates, results) if name == "runtimes" else {},
                "data": load(candidates.collection).fingerprint,
            }  # fmt: skip
            _keep(config.out, name, timed, about, started)
            table = summary(timed).assign(speed=ratios(timed, next(iter(systems)))["median"])
            print(f"{name}: {what}\n{table.round(2).to_string()}\n")
    print(f"figures in {config.out}")


def timings(profile: Profile, *, n_queries: int, repetitions: int) -> Measured:
    """Time what the study ranks with on some of a profile's test queries, unless the store has it."""
    candidates, system = replace(profile.test, n_queries=n_queries), profile.student()
    limits, trained = {name: getattr(system, name) for name in UNCUT}, train(system)
    identity = {"candidates": asdict(candidates), "system": asdict(system), "repetitions": repetitions}
    device = default_device()
    more = {resolve_precision(profile.precision, device), *(["int8"] if device.type == "cpu" else [])}
    systems = {
        "student": _ours(), **{f"student, {x}": _ours(precision=x) for x in sorted(more - {"float32"})},
        "student in sentence-transformers": _ranking("rank_sentence_transformers", batch_size=8),
        "bi-encoder": _ranking("rank_bi_encoder"), "BM25": _ranking("rank_bm25"),
    }  # fmt: skip
    if name := llm_of(profile.stage2.lists.teacher):
        systems[name] = _ranking("rank_pointwise_llm", settings=asdict(llm_settings(name).backend))

    def compute(folder: Path) -> None:
        started = time.monotonic()
        with tempfile.TemporaryDirectory() as weights:
            work = _work(candidates, str(trained.folder / "model"), Path(weights), limits)
            calls = list(range(len(work["lists"])))
            timed, machines, results = race(systems, work, calls=calls, repetitions=repetitions)
        _keep(folder, "timing", timed, {"machines": machines, **_compared(results)}, started)

    run = obtain(
        "timing", identity, data=load(candidates.collection).fingerprint, compute=compute,
        code=[f"rdl_study.bench.{x}" for x in ("measure", "systems", "worker")],
        inputs=[trained.manifest["id"]],
    )  # fmt: skip
    return read(run.folder / "timing.json")


def _work(
    candidates: ListsConfig, model: str, folder: Path, limits: dict[str, int], onnx: bool = False
) -> dict:
    """Lists with texts, and weights in a folder that every system loads, perhaps as ONNX, too."""
    frame, collection = lists(candidates), load(candidates.collection)
    queries = collection.queries.set_index("query_id")["query"]
    texts = collection.passages_of(frame["doc_id"]).set_index("doc_id")["text"]
    torch.manual_seed(0)  # the head, where there is none
    student = CrossEncoder.from_pretrained(model, **limits)
    export(student, folder) if onnx else student.save_pretrained(folder)
    return {
        "model": str(folder), "bi_encoder": embedded_path(candidates.teacher_encoder),
        "lists": [{"query": queries[query_id], "passages": texts[rows["doc_id"]].tolist()}
                  for query_id, rows in frame.groupby("query_id")],
        "pair_tokens": sum(limits.values()) + 3, **limits,  # [CLS] query [SEP] passage [SEP]
    }  # fmt: skip


def _compared(results: dict[str, dict[int, Any]]) -> dict[str, dict]:
    """Largest differences of systems' scores from the first one's; counts that are no scores."""
    first, differences = next(iter(results.values())), {}
    for name, other in list(results.items())[1:]:
        pairs = [(scores, other[call]) for call, scores in first.items()]
        if all(isinstance(x, list) and np.shape(x) == np.shape(y) for x, y in pairs):
            differences[name] = max(float(np.abs(np.subtract(x, y)).max()) for x, y in pairs)
    counts = {x: of for x, of in results.items() if all(isinstance(n, int) for n in of.values())}
    return {"differences": differences, "counts": counts}


def _effectiveness(candidates: ListsConfig, results: dict[str, dict[int, Any]]) -> dict[str, float]:
    """Mean nDCG@10 of systems that scored whole lists, where these are judged."""
    frame, qrels = lists(candidates), load(candidates.collection).qrels
    by_query, means = [rows for _, rows in frame.groupby("query_id")], {}
    for name, of in results.items():
        if all(np.shape(scores) == (len(by_query[n]),) for n, scores in of.items()):
            run = pd.concat([by_query[n].assign(score=scores) for n, scores in of.items()])
            run, judged = settle_ties(run, run), qrels[qrels["query_id"].isin(run["query_id"])]
            means[name] = float(per_query(judged, run, "nDCG@10")["nDCG@10"].mean())
    return means


def _keep(folder: str | Path, part: str, table: pd.DataFrame, about: dict, started: float) -> None:
    file = Path(folder) / f"{part}.json"
    file.parent.mkdir(parents=True, exist_ok=True)
    table.round(4).to_csv(file.with_suffix(".csv"), index=False)
    now = datetime.now(UTC).isoformat(timespec="seconds")
    circumstances = machine() | {"finished": now, "wall_s": round(time.monotonic() - started, 1)}
    file.write_text(json.dumps({"part": part, **about, **circumstances}, indent=1) + "\n")
