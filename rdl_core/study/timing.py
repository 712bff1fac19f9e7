"""The study's timing run: first stage, bi-encoder and student on the same queries and passages."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import bm25s
import pandas as pd
import torch
from sentence_transformers import CrossEncoder as SentenceTransformersCrossEncoder
from sentence_transformers import SentenceTransformer

from rdl_core.cross_encoder import CrossEncoder
from rdl_core.data.collections import load
from rdl_core.data.downloads import encoder_path
from rdl_core.data.tokens import TokenStore
from rdl_core.devices import default_device, resolve_precision
from rdl_core.efficiency import measure, weight_bytes
from rdl_core.study.candidates import ListsConfig, lists
from rdl_core.study.jobs import StudentConfig, student
from rdl_core.study.profile import Profile
from rdl_core.study.runs import Run, obtain

__all__ = ["TimingConfig", "timings"]


@dataclass(frozen=True, kw_only=True)
class TimingConfig:
    """What is timed."""

    candidates: ListsConfig
    """Queries and their passages."""
    system: StudentConfig
    """The student."""
    precision: str
    """The student's precision."""
    repetitions: int
    """How often each query is ranked."""


def timings(profile: Profile, *, n_queries: int, repetitions: int) -> tuple[pd.DataFrame, Run]:
    """Time each system that the study ranks with, query by query in turns.

    Args:
        profile: Its test candidates and its student are used.
        n_queries: So many of the test queries.
        repetitions: How often each is ranked.

    Returns:
        The table of `rdl_core.efficiency.measure` with ``weight_bytes``, and the run that holds it.

    >>> table, run = timings(profile, n_queries=2, repetitions=1)
    >>> table["n_timings"].unique().tolist()
    [2]
    """
    config = TimingConfig(
        candidates=replace(profile.test, n_queries=n_queries), system=profile.student(),
        precision=profile.precision, repetitions=repetitions,
    )
    trained = student(config.system)

    def run_timing(folder: Path) -> None:
        candidates = lists(config.candidates)
        queries = load(config.candidates.collection).queries.set_index("query_id")["query"]
        texts = load(config.candidates.collection).passages.set_index("doc_id")["text"]
        asked = [
            (queries[query_id], texts[rows["doc_id"]].tolist())
            for query_id, rows in candidates.groupby("query_id")
        ]
        systems, weights = _systems(asked, trained, config)
        table = measure(
            systems, range(len(asked)), passages_per_query=config.candidates.depth, warmup=2,
            repetitions=repetitions,
        )
        table["weight_bytes"] = pd.Series(weights)
        table.to_parquet(folder / "timings.parquet")

    run = obtain(
        "timing", config, data=load(config.candidates.collection).fingerprint,
        code=("rdl_core.study.timing",), inputs=[trained.manifest["id"]], compute=run_timing,
    )
    return pd.read_parquet(run.folder / "timings.parquet"), run


def _systems(
    asked: list[tuple[str, list[str]]], trained: Run, config: TimingConfig
) -> tuple[dict[str, Callable[[int], object]], dict[str, int]]:
    """Each system as a function of the query's number, tokenising included, and its weights."""
    device = default_device()
    folder, cuts = trained.folder / "model", config.system
    ours = CrossEncoder.from_pretrained(
        folder, query_tokens=cuts.query_tokens, passage_tokens=cuts.passage_tokens
    ).to(device).eval()
    peer = SentenceTransformersCrossEncoder(
        str(folder), max_length=cuts.query_tokens + cuts.passage_tokens + ours.template.n_tokens,
        trust_remote_code=False,
    )
    bi_encoder = SentenceTransformer(encoder_path(config.candidates.teacher_encoder))
    every = [text for _, passages in asked for text in passages]
    index = bm25s.BM25()
    index.index(bm25s.tokenize(every, stopwords="en", show_progress=False), show_progress=False)
    stored = bi_encoder.encode(every, show_progress_bar=False)
    precision = resolve_precision(config.precision, device)

    def rank_ours(number: int, at: str) -> torch.Tensor:
        query, passages = asked[number]
        rows = torch.arange(len(passages), device=device)
        with torch.inference_mode():
            return ours.score(
                TokenStore.of_texts([query], ours.tokenizer).to(device),
                TokenStore.of_texts(passages, ours.tokenizer).to(device),
                torch.zeros_like(rows), rows, token_budget=4096, precision=at,
            )

    def rank_bm25(number: int) -> object:
        words = bm25s.tokenize([asked[number][0]], stopwords="en", show_progress=False)
        return index.retrieve(words, k=config.candidates.depth, show_progress=False)

    systems: dict[str, Callable[[int], object]] = {
        "BM25": rank_bm25,
        "bi-encoder": lambda n: bi_encoder.encode(asked[n][0], show_progress_bar=False) @ stored.T,
        "student": lambda n: rank_ours(n, "float32"),
        "student in sentence-transformers": lambda n: peer.predict(
            [(asked[n][0], passage) for passage in asked[n][1]], show_progress_bar=False
        ),
    }
    if precision != "float32":
        systems[f"student, {precision}"] = lambda n: rank_ours(n, precision)
    weights = dict.fromkeys(systems, weight_bytes(ours))
    return systems, weights | {"BM25": 0, "bi-encoder": weight_bytes(bi_encoder)}
