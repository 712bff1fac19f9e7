"""What pages compare: systems, the students among them, and the rankings behind their figures.

Configurations name everything by value, so that ablations share runs of stages.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from pydantic import Field

from rdl_core.config import Precision, config
from rdl_core.cross_encoder import CrossEncoder
from rdl_core.data.collections import load
from rdl_core.devices import default_device, resolve_precision
from rdl_core.distill import distill
from rdl_core.evaluate import per_query, settle_ties
from rdl_core.lists import RankedLists
from rdl_core.rerank import dev_measure, rerank
from rdl_core.teachers.encoders import fuse
from rdl_study.lists import (
    CODE,
    ListsConfig,
    chosen_queries,
    corpus,
    encoder_hashes,
    lists,
    order_scores,
)
from rdl_study.profile import Profile, Stage, StudentConfig
from rdl_study.store import Run, obtain

__all__ = ["Added", "Part", "RankingConfig", "Results", "Stage", "StudentConfig", "measure", "measured",
           "rank", "rankings", "train", "training_log"]  # fmt: skip
_IDS = ["query_id", "doc_id"]


@dataclass(frozen=True, kw_only=True)
class Added:
    """A student or an order with scores of others added, all standardised within each query."""

    system: str | StudentConfig
    others: dict[str, float]  # weights by order; of the first stage, its scores count


@dataclass(frozen=True, kw_only=True)
class Part:
    """Systems that are compared on the same queries: one table of a page."""

    profile: Profile  # whose test queries, seeds and measure
    systems: dict[str, str | StudentConfig | Added]  # by label; text is one of `lists.TEACHERS`
    baseline: str  # label of the system that the others are compared with

    def __post_init__(self) -> None:
        if self.baseline not in self.systems:
            labels = ", ".join(self.systems)
            raise ValueError(f"baseline: expected one of {labels}; got {self.baseline!r}")


@dataclass(frozen=True)
class Results:
    """What the systems of a part reached."""

    profile: Profile
    baseline: str
    values: pd.DataFrame  # the profile's measure, [query_id, system], mean over seeds
    runs: dict[str, tuple[Run, ...]]  # each system's rankings, by collection and seed


@config
class RankingConfig:
    """An order of test candidates."""

    candidates: ListsConfig
    """The test queries, and their candidates by one first stage."""
    system: str | StudentConfig
    """A student, an order of `rdl_study.lists.TEACHERS` other than judgments, or a file of one."""
    precision: Precision
    """In which a student scores."""
    added: dict[str, float] = Field(default_factory=dict)
    """Weights of other orders, as `Added.others`."""

    def __post_init__(self) -> None:
        if len(self.candidates.first_stages) > 1:
            raise ValueError(f"first_stage: expected one to rank, got {self.candidates.first_stage!r}")


def measure(part: Part) -> Results:
    """Each system's measure of each test query; trains and ranks what the store does not hold."""
    name, values, runs = part.profile.measure, {}, {}
    for test in part.profile.tests:  # before anything is trained
        judged = load(test.collection).qrels["query_id"]
        if not judged.isin(chosen_queries(test)).any():
            raise ValueError(
                f"no judged query of {test.collection!r} is left to test behind the first "
                f"{test.skip_queries}: train on fewer (n_train)"
            )
    for label, system in part.systems.items():
        runs[label] = tuple(map(rank, rankings(part.profile, system)))
        rows = pd.concat([measured(run, (name,)) for run in runs[label]])
        values[label] = rows.groupby("query_id")[name].mean()
    return Results(part.profile, part.baseline, pd.DataFrame(values), runs)


def measured(run: Run, measures: tuple[str, ...]) -> pd.DataFrame:
    """A ranking's measures for each of its test queries; one without candidates counts 0."""
    tested = ListsConfig(**run.manifest["config"]["candidates"])
    qrels = load(tested.collection).qrels
    qrels = qrels[qrels["query_id"].isin(chosen_queries(tested))]
    return per_query(qrels, pd.read_parquet(run.folder / "run.parquet"), measures)


def rankings(profile: Profile, system: str | StudentConfig | Added) -> list[RankingConfig]:
    """The rankings behind a system's figure: one for each collection tested on, and each seed."""
    configs, added = [], {}
    if isinstance(system, Added):
        system, added = system.system, system.others
    for number, test in enumerate(profile.tests):
        systems = [system]
        if isinstance(system, StudentConfig):
            student = profile.swapped(system) if number and profile.both_ways else system
            systems = [replace(student, seed=seed) for seed in profile.seeds]
        more = {"candidates": test, "precision": profile.precision, "added": added}
        configs += [RankingConfig(system=x, **more) for x in systems]
    return configs


def train(wanted: StudentConfig) -> Run:
    """A trained student; ``model/`` in the run's folder loads in transformers."""
    *earlier, stage = wanted.stages
    if stage.dev:
        _check_unseen(stage.dev, stage.lists, "dev")
    before = train(replace(wanted, stages=tuple(earlier))) if earlier else None
    start = before.folder / "model" if before else wanted.encoder

    def compute(folder: Path) -> dict:
        torch.manual_seed(wanted.seed)  # the head's first weights
        limits = {"query_tokens": wanted.query_tokens, "passage_tokens": wanted.passage_tokens}
        student = CrossEncoder.from_pretrained(start, **limits).to(default_device())
        texts = corpus(stage.lists.collection, wanted.encoder)
        of_each = [RankedLists.from_frame(lists(each), texts) for each in stage.lists.each()]
        ranked = RankedLists.concat(of_each)
        dev = _dev_measure(stage, wanted.encoder) if stage.dev else None
        distill(student, ranked, stage.training, seed=wanted.seed, folder=folder, dev=dev)
        drawn = stage.training.steps * stage.training.queries_per_step * stage.training.list_size
        return {"n_lists": len(ranked), "passages_seen": drawn}

    data = dict.fromkeys(read.fingerprint for read in (stage.lists, stage.dev) if read)
    return obtain(
        "train", wanted, data="-".join([*data, *encoder_hashes(wanted.encoder)]),
        code=("rdl_core.distill", "rdl_core.rerank", *CODE),
        inputs=[before.manifest["id"]] if before else [], compute=compute,
    )  # fmt: skip


def training_log(wanted: StudentConfig) -> pd.DataFrame:
    """Stage, step, loss and learning rate of every step of a student."""
    logs = []
    for number, stage in enumerate(wanted.stages, start=1):
        run = train(replace(wanted, stages=wanted.stages[:number]))
        log = pd.read_json(run.folder / "log.jsonl", lines=True)
        logs.append(log.assign(stage=f"stage {number}: {stage.training.loss}"))
    return pd.concat(logs, ignore_index=True)


def _dev_measure(stage: Stage, encoder: str) -> Callable[[CrossEncoder], float]:
    """Mean nDCG@10 of a student on judged queries."""
    candidates, qrels = lists(stage.dev), load(stage.dev.collection).qrels
    qrels = qrels[qrels["query_id"].isin(chosen_queries(stage.dev))]
    texts = corpus(stage.dev.collection, encoder)
    return dev_measure(candidates, qrels, texts, stage.training.precision)


def _check_unseen(wanted: ListsConfig, seen: ListsConfig, what: str) -> None:
    """Refuse queries that were trained on, by their ids or, under another id, word for word."""

    def names(of: ListsConfig) -> set[str]:
        queries = load(of.collection).queries.set_index("query_id")["query"][chosen_queries(of)]
        return {*queries.index, *queries.str.casefold().str.split().str.join(" ")}

    if both := names(wanted) & names(seen):
        raise ValueError(
            f"{what}: expected queries of {wanted.collection!r} that are not trained on, but "
            f"{min(both)!r} is in the lists of {seen.collection!r}: choose another split or year"
        )


def rank(wanted: RankingConfig) -> Run:
    """A ranking of the test candidates, ``run.parquet``; refuses queries that a student has seen."""
    if wanted.added:
        return _rank_added(wanted)
    system, candidates, trained = wanted.system, wanted.candidates, None
    if isinstance(system, StudentConfig):
        for seen in (x for stage in system.stages for x in (stage.lists, stage.dev) if x):
            _check_unseen(candidates, seen, "candidates")
        trained = train(system)
        hashes = encoder_hashes(system.encoder)
    else:  # perhaps a file, whose content then counts for the id
        candidates = replace(candidates, teacher=system)
        hashes = encoder_hashes(candidates.teacher_encoder)

    def compute(folder: Path) -> dict:
        frame, precision = lists(wanted.candidates), None
        if trained:
            precision = resolve_precision(wanted.precision, default_device())
            student = CrossEncoder.from_pretrained(trained.folder / "model").to(default_device())
            texts = corpus(wanted.candidates.collection, system.encoder)
            scored = rerank(student, frame, texts, precision=precision)
        else:
            scores = order_scores(frame, wanted.candidates, system)
            last = scores.min(where=np.isfinite(scores), initial=0) - 1
            scores = np.maximum(scores, last)  # what was left out comes behind, in its old order
            scored = frame[_IDS].assign(score=scores)
        run = settle_ties(scored, frame)
        run.to_parquet(folder / "run.parquet", index=False)
        return {"n_queries": run["query_id"].nunique(), "n_pairs": len(run), "precision": precision}

    return obtain(
        "rank", wanted, data="-".join([candidates.fingerprint, *hashes]),
        code=("rdl_core.rerank", "rdl_core.evaluate", *CODE),
        inputs=[trained.manifest["id"]] if trained else [], compute=compute,
    )  # fmt: skip


def _rank_added(wanted: RankingConfig) -> Run:
    """A ranking with the scores of others added."""
    alone = rank(replace(wanted, added={}))

    def compute(folder: Path) -> dict:
        candidates = lists(wanted.candidates)
        own = pd.read_parquet(alone.folder / "run.parquet").set_index(_IDS)["score"]
        own = own.reindex(pd.MultiIndex.from_frame(candidates[_IDS])).to_numpy()
        total = fuse(candidates, own)
        for order, weight in wanted.added.items():
            scores = candidates["score"].to_numpy()
            if order != "first_stage":
                scores = order_scores(candidates, wanted.candidates, order)
            total = total + weight * fuse(candidates, scores)
        run = settle_ties(candidates[_IDS].assign(score=total), candidates)
        run.to_parquet(folder / "run.parquet", index=False)
        return {name: alone.manifest[name] for name in ("n_queries", "n_pairs", "precision")}

    return obtain(
        "rank", wanted, data=alone.manifest["data"], code=("rdl_core.evaluate", *CODE),
        inputs=[alone.manifest["id"]], compute=compute,
    )  # fmt: skip
