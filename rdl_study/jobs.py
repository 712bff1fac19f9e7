"""What the study computes, each piece a run of the store: students and rankings.

A configuration names everything by value, down to the stage that another one starts from, so that
ablations that share a stage share its run. No student is ranked with on a query that it was trained
on, or that a choice was made on: `ranking` refuses.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import pandas as pd
import torch

from rdl_core.cross_encoder import CrossEncoder
from rdl_core.data.collections import Collection, load
from rdl_core.data.downloads import encoder_path
from rdl_core.lists import RankedLists
from rdl_core.devices import default_device, resolve_precision
from rdl_core.distill import distill
from rdl_core.evaluate import per_query, settle_ties
from rdl_core.rerank import rerank
from rdl_core.stage import StageConfig
from rdl_study.candidates import (
    CODE,
    ListsConfig,
    chosen_queries,
    data_of,
    lists,
    order_scores,
    passage_tokens,
    tokens,
)
from rdl_study.store import Run, obtain
from rdl_core.teachers import encoders

__all__ = ["RankingConfig", "Stage", "StudentConfig", "ranking", "student"]


@dataclass(frozen=True, kw_only=True)
class Stage:
    """One stage of distillation: what is learnt from, and how."""

    lists: ListsConfig
    """Training lists."""
    training: StageConfig
    """The loop's configuration."""
    dev: ListsConfig | None = None
    """Judged queries whose nDCG@10 the training looks at, where it looks at any."""

    __pydantic_config__ = {"extra": "forbid"}

    def __post_init__(self) -> None:
        if (self.dev is None) != (self.training.dev_every == 0):
            raise ValueError(
                f"dev: expected queries to look at if and only if dev_every is not 0, got dev_every "
                f"{self.training.dev_every}: give both or neither"
            )


@dataclass(frozen=True, kw_only=True)
class StudentConfig:
    """A student, by everything that makes it."""

    encoder: str
    """Where its weights start: the embedded encoder, a folder or a hub id."""
    query_tokens: int
    """Longest query, in tokens."""
    passage_tokens: int
    """Longest passage, in tokens."""
    stages: tuple[Stage, ...]
    """Trained one after the other."""
    seed: int
    """Of the head's first weights, of draws and of dropout."""
    head: str = "own"
    """A member of `rdl_core.cross_encoder.HEADS`."""


@dataclass(frozen=True, kw_only=True)
class RankingConfig:
    """An order of test candidates."""

    candidates: ListsConfig
    """The test queries and what the first stage gave them."""
    system: str | StudentConfig
    """An order of `rdl_study.candidates.TEACHERS` other than the judgments', a file of one, or a
    student."""
    precision: str
    """In which a student scores: ``"auto"`` or a key of `rdl_core.devices.PRECISIONS`."""
    added: dict[str, float] = field(default_factory=dict)
    """Weights of other orders by name, whose scores are added to these, all standardised within each
    query; of the first stage, its scores and not its ranks."""


def student(config: StudentConfig) -> Run:
    """A trained student; ``model/`` in its folder loads in transformers.

    >>> sorted(path.name for path in student(profile.student()).folder.glob("[!.]*"))
    ['config.json', 'log.jsonl', 'manifest.json', 'model', 'tensorboard']
    """
    *earlier, stage = config.stages
    if stage.dev:
        _check_unseen(stage.dev, stage.lists, "dev")
    before = student(replace(config, stages=tuple(earlier))) if earlier else None
    start = str(before.folder / "model") if before else encoder_path(config.encoder)
    collection = load(stage.lists.collection)

    def train(folder: Path) -> dict:
        torch.manual_seed(config.seed)  # the head's first weights
        model = CrossEncoder.from_pretrained(
            start, query_tokens=config.query_tokens, passage_tokens=config.passage_tokens,
            head=config.head,
        ).to(default_device())
        query_ids, queries = tokens(collection.queries, config.encoder)
        doc_ids, passages = passage_tokens(collection, config.encoder)
        frames = [lists(one) for one in stage.lists.each()]
        ranked = RankedLists.concat(
            [RankedLists.from_frame(frame, query_ids, doc_ids) for frame in frames]
        )
        distill(
            model, ranked, queries, passages, stage.training, seed=config.seed, folder=folder,
            dev=_dev_measure(stage.dev, config) if stage.dev else None,
        )
        drawn = stage.training.steps * stage.training.queries_per_step * stage.training.list_size
        return {"n_lists": len(ranked), "passages_seen": drawn}

    read = dict.fromkeys(s.fingerprint for s in (stage.lists, stage.dev) if s)
    return obtain(
        "train", config, data=data_of(config.encoder, *read),
        code=("rdl_core.distill", "rdl_core.rerank", *CODE),
        inputs=[before.manifest["id"]] if before else [], compute=train,
    )


def ranking(config: RankingConfig) -> Run:
    """A run over the test candidates, ``run.parquet`` in its folder, ties settled.

    >>> config = RankingConfig(candidates=profile.test, system="first_stage", precision="float32")
    >>> ranking(config).manifest["n_queries"]
    6
    """
    if config.added:
        return _fused(config)
    collection = load(config.candidates.collection)
    system = config.system
    trained = None
    if isinstance(system, StudentConfig):
        for seen in (x for stage in system.stages for x in (stage.lists, stage.dev) if x):
            _check_unseen(config.candidates, seen, "candidates")
        trained = student(system)

    def rank(folder: Path) -> dict:
        candidates = lists(config.candidates)
        if trained:
            scored = _student_scores(trained, candidates, collection, config)
        else:
            scores = order_scores(candidates, config.candidates, system)
            last = scores.min(where=np.isfinite(scores), initial=0) - 1
            scores = np.maximum(scores, last)  # what was left out comes behind, in its old order
            scored = candidates.assign(score=scores)[["query_id", "doc_id", "score"]]
        run = settle_ties(scored, candidates)
        run.to_parquet(folder / "run.parquet", index=False)
        return {
            "n_queries": run["query_id"].nunique(), "n_pairs": len(run),
            "precision": resolve_precision(config.precision, default_device()) if trained else None,
        }

    encoder, asked = config.candidates.teacher_encoder, config.candidates
    if trained:
        encoder = system.encoder
    else:
        asked = replace(asked, teacher=system)  # perhaps a file, which then counts for the id
    return obtain(
        "rank", config, data=data_of(encoder, asked.fingerprint),
        code=("rdl_core.rerank", "rdl_core.evaluate", *CODE),
        inputs=[trained.manifest["id"]] if trained else [], compute=rank,
    )


def _fused(config: RankingConfig) -> Run:
    """A ranking with the scores of others added."""
    alone = ranking(replace(config, added={}))

    def rank(folder: Path) -> dict:
        candidates = lists(config.candidates)
        keys = ["query_id", "doc_id"]
        own = pd.read_parquet(alone.folder / "run.parquet").set_index(keys)["score"]
        own = own.reindex(pd.MultiIndex.from_frame(candidates[keys])).to_numpy()
        total = encoders.fuse(candidates, own)
        for order, weight in config.added.items():
            other = (
                candidates["score"].to_numpy() if order == "first_stage"
                else order_scores(candidates, config.candidates, order)
            )
            total = total + weight * encoders.fuse(candidates, other)
        scored = candidates[keys].assign(score=total)
        settle_ties(scored, candidates).to_parquet(folder / "run.parquet", index=False)
        return {name: alone.manifest[name] for name in ("n_queries", "n_pairs", "precision")}

    return obtain(
        "rank", config, data=alone.manifest["data"], code=("rdl_core.evaluate", *CODE),
        inputs=[alone.manifest["id"]], compute=rank,
    )


def _student_scores(
    trained: Run, candidates: pd.DataFrame, collection: Collection, config: RankingConfig
) -> pd.DataFrame:
    system = config.system
    model = CrossEncoder.from_pretrained(
        trained.folder / "model",
        query_tokens=system.query_tokens,
        passage_tokens=system.passage_tokens,
    ).to(default_device())
    return _scores(model, candidates, collection, system.encoder, config.precision)


def _scores(
    model: CrossEncoder, candidates: pd.DataFrame, collection: Collection, encoder: str,
    precision: str,
) -> pd.DataFrame:
    query_ids, queries = tokens(collection.queries, encoder)
    doc_ids, passages = passage_tokens(collection, encoder)
    return rerank(
        model, candidates, queries, passages, query_ids=query_ids, doc_ids=doc_ids,
        precision=resolve_precision(precision, model.device),
    )


def _dev_measure(dev: ListsConfig, config: StudentConfig) -> Callable[[CrossEncoder], float]:
    """Mean nDCG@10 of a student on judged queries."""
    candidates, collection = lists(dev), load(dev.collection)
    judged = collection.qrels[collection.qrels["query_id"].isin(chosen_queries(dev))]
    precision = config.stages[-1].training.precision

    def measure(model: CrossEncoder) -> float:
        scored = _scores(model, candidates, collection, config.encoder, precision)
        return float(per_query(judged, settle_ties(scored, candidates))["nDCG@10"].mean())

    return measure


def _check_unseen(asked: ListsConfig, seen: ListsConfig, what: str) -> None:
    """Refuse queries that were trained on, whether by id or, under another id, word for word."""

    def named(config: ListsConfig) -> set[str]:
        queries = load(config.collection).queries.set_index("query_id")["query"]
        chosen = queries[chosen_queries(config)]
        return {*chosen.index, *chosen.str.casefold().str.split().str.join(" ")}

    if both := named(asked) & named(seen):
        raise ValueError(
            f"{what}: expected queries of {asked.collection!r} that are not trained on, but some "
            f"are in the lists of {seen.collection!r}, such as {min(both)!r}: choose another split "
            "or year"
        )
