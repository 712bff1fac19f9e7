"""One query, from its candidates to the student: what the worked example shows.

The query is a test query, so nothing here trains on it: the step that is shown is the first one of
the profile's own second stage, on the lists which that stage drew, and the query looks on.
"""

from __future__ import annotations

import html
import tempfile
import textwrap
import time
from dataclasses import dataclass, replace
from pathlib import Path

import pandas as pd
import torch
from IPython.display import Markdown
from torch import Tensor

from rdl_core.cross_encoder import CrossEncoder
from rdl_core.data.collections import load
from rdl_core.lists import RankedLists
from rdl_core.tokens import TokenStore
from rdl_core.devices import default_device
from rdl_core.distill import distill
from rdl_core.losses import LOSSES, targets_from_ranks
from rdl_core.rerank import rerank
from rdl_core.stage import StageConfig
from rdl_core.step import Step, draw
from rdl_study.candidates import chosen_queries, lists, passage_tokens, tokens
from rdl_study.jobs import StudentConfig, student
from rdl_study.profile import Profile
from rdl_study.store import machine
from rdl_study.tables import Results

__all__ = [
    "Example", "FirstStep", "draws", "example_of", "first_step", "head", "named", "pairs", "pick",
    "times",
]  # fmt: skip

_STAGE_1 = "student after stage 1"


@dataclass(frozen=True, kw_only=True)
class Example:
    """A query's candidates, in the order of the first stage, as each system ranks them."""

    query_id: str
    """Its id in the test collection."""
    query: str
    """Its text."""
    passages: pd.DataFrame
    """``text`` and ``relevance`` (missing where nobody judged), by ``doc_id``."""
    ranks: pd.DataFrame
    """Rank of each passage, 1 is best, ``[doc_id, system]``; the first stage comes first."""
    scores: pd.DataFrame
    """What each system orders by, higher is better, ``[doc_id, system]``."""
    values: pd.Series
    """The profile's measure for this query, by system."""

    @property
    def teacher(self) -> str:
        """Label of the system that taught."""
        return next(label for label in self.ranks if label.startswith("teacher"))

    @property
    def teacher_rank(self) -> Tensor:
        """The teacher's ranks as a loss's targets are made of them, int64 ``[1, n]``."""
        return torch.tensor(self.ranks[self.teacher].to_numpy())[None]

    def scores_of(self, system: str) -> Tensor:
        """A system's scores as a loss takes them, float32 ``[1, n]``."""
        return torch.tensor(self.scores[system].to_numpy(), dtype=torch.float32)[None]

    def names(self, longest: int) -> list[str]:
        """First-stage rank and first words of each passage, ✓ between where it is relevant."""
        marks = self.passages["relevance"].gt(0).map({True: " ✓", False: ""})
        told = zip(self.passages["text"], marks, strict=True)
        return [f"{n}.{mark} {head(text, longest)}" for n, (text, mark) in enumerate(told, start=1)]

    def table(self, top: int = 3) -> pd.DataFrame:
        """Passages that are relevant, or that some system has at its top, with all their ranks."""
        shown = (self.ranks <= top).any(axis=1) | (self.passages["relevance"] > 0)
        grades = self.passages["relevance"].astype("Int64").astype("string").fillna("")
        texts = self.passages["text"].map(head).rename("passage")
        table = pd.concat([self.ranks, grades.rename("relevance"), texts], axis=1)
        return table[shown].reset_index(drop=True)

    def said(self, measure: str) -> Markdown:
        """The query, and what each system makes of it, in words."""
        values = ", ".join(f"{system} {value:.3f}" for system, value in self.values.items())
        return Markdown(f"The query: **{html.escape(self.query)}**\n\n{measure}: {values}.")


@dataclass(frozen=True, kw_only=True)
class FirstStep:
    """What the first step of the second stage did, taken again."""

    losses: pd.DataFrame
    """The loss of the step's own lists and of the example's: before, after it, after the stage."""
    loss: float
    """As the step reported it."""
    logged: float
    """As the log of the study's own training has it: the same weights, the same draw."""
    learning_rate: float
    """Of this step; the warm-up has only begun."""
    step_s: float
    """Seconds that it took, with what surrounds it."""
    rank_ms: float
    """Milliseconds in which the student ranked the example's candidates."""

    def said(self) -> Markdown:
        """That it is the real step, in words."""
        return Markdown(
            f"Its loss is {self.loss:.6f}; the log of the study's own training has "
            f"{self.logged:.6f} for the same step. The learning rate stood at "
            f"{self.learning_rate:.1e}."
        )


def pick(results: Results, query_id: str = "") -> Example:
    """The test query that the second stage improves most, where there was something to learn.

    That is: where the teacher does better than the first stage and than the student before. Among
    equals, where the teacher is furthest ahead of the first stage; without any such query, the one
    that the second stage improves most. Of the first collection tested on.

    Args:
        results: The effectiveness page's: first stage, teacher, student before and after.
        query_id: Another query; empty follows the rule.

    Raises:
        ValueError: A query that was not tested on.

    >>> pick(main_page).teacher
    'teacher (fused)'
    """
    teacher = next(label for label in results.values if label.startswith("teacher"))
    systems = [results.baseline, teacher, _STAGE_1, "student"]
    values = results.values[results.values.index.isin(chosen_queries(results.profile.test))]
    if query_id and query_id not in values.index:
        raise ValueError(
            f"query_id: expected one of the {len(values)} test queries, such as "
            f"{values.index[0]!r}, or nothing; got {query_id!r}"
        )
    first, taught, before, after = (values[label] for label in systems)
    found = pd.DataFrame({"gain": after - before, "ahead": taught - first})
    better = (taught > first) & (taught > before) & (after > before)
    best = (found[better] if better.any() else found).sort_values(["gain", "ahead"]).index[-1]
    return example_of(results, query_id or best, systems)


def example_of(results: Results, query_id: str, systems: list[str]) -> Example:
    """What systems make of one query, each with its first seed.

    Args:
        results: Where they were compared.
        query_id: A test query.
        systems: Their labels; the first is the first stage.

    >>> example_of(results, results.values.index[0], ["BM25", "student"]).scores.shape
    (5, 2)
    """
    found = {label: _order(results, label, query_id) for label in systems}
    collection = load(next(iter(found.values())).name)
    scores = pd.DataFrame(found).sort_values(systems[0], ascending=False)
    judged = collection.qrels[collection.qrels["query_id"] == query_id].set_index("doc_id")
    texts = collection.passages_of(scores.index).set_index("doc_id")["text"].loc[scores.index]
    return Example(
        query_id=query_id,
        query=collection.queries.set_index("query_id").loc[query_id, "query"],
        passages=pd.DataFrame(
            {"text": texts, "relevance": judged["relevance"].reindex(texts.index)}
        ),
        ranks=scores.rank(ascending=False).astype(int), scores=scores,
        values=results.values.loc[query_id, systems],
    )


def head(text: str, longest: int = 90) -> str:
    """The first words of a text.

    >>> head("one two three", 9)
    'one two …'
    """
    return textwrap.shorten(text, longest, placeholder=" …")


def pairs(scores: Tensor, targets: Tensor) -> pd.DataFrame:
    """RankNet pair by pair, the costliest first: its loss is the mean over them.

    Args:
        scores: ``[1, n]``, as losses take them.
        targets: Likewise.

    Returns:
        ``above`` and ``below``, columns of the list that should stand so; ``difference`` of their
        scores; ``chance``, what the student gives to this order; ``push``, the force with which the
        pair drives its two scores apart; and ``loss``.

    >>> one = pairs(torch.tensor([[0.0, 2.0]]), torch.tensor([[2.0, 1.0]])).iloc[0]
    >>> [round(float(value), 3) for value in one]
    [0.0, 1.0, -2.0, 0.119, 0.881, 2.127]
    """
    above, below = (targets[0, :, None] > targets[0, None, :]).nonzero(as_tuple=True)
    both = scores.detach()[0, torch.stack([above, below], dim=1)]
    order = torch.tensor([2.0, 1.0]).expand_as(both)
    chance, push = both.softmax(dim=1).unbind(dim=1)
    table = pd.DataFrame(
        {
            "above": above, "below": below, "difference": both[:, 0] - both[:, 1],
            "chance": chance, "push": push,
            "loss": LOSSES["ranknet"](both, order, reduction="none"),
        }
    )
    return table.sort_values("loss", ascending=False, ignore_index=True)


def named(pairs: pd.DataFrame, example: Example) -> pd.DataFrame:
    """Pairs of a list with the first words of their passages in place of columns.

    >>> one = example_of(results, results.values.index[0], ["BM25", "student"])
    >>> two = pairs(torch.zeros(1, 2), torch.tensor([[1.0, 2.0]]))
    >>> named(two, one)[["difference", "chance", "loss"]].iloc[0].tolist()
    ['+0.00', '0.50', '0.69']
    """
    names = example.names(60)
    return pd.DataFrame(
        {
            "teacher has": [names[column] for column in pairs["above"]],
            "before": [names[column] for column in pairs["below"]],
            "difference": pairs["difference"].map("{:+.2f}".format),
            "chance": pairs["chance"].map("{:.2f}".format),
            "loss": pairs["loss"].map("{:.2f}".format),
        }
    )


def draws(example: Example, config: StageConfig, n: int, *, seed: int) -> pd.DataFrame:
    """Which of the example's candidates a stage's sampler would draw, time after time.

    Args:
        example: The query; the draw teaches nobody.
        config: The stage.
        n: Draws.
        seed: Of the draws.

    Returns:
        bool, a row for each draw, a column for each first-stage rank.

    >>> example = pick(main_page)
    >>> draws(example, profile.stage2.training, 2, seed=0).sum(axis=1).tolist()
    [3, 3]
    """
    own = _ranked(example, pd.Index([example.query_id]), example.ranks.index)
    drawn = torch.zeros(n, own.mask.shape[1], dtype=torch.bool)
    for step in range(n):
        _, sampled = draw(own, replace(config, queries_per_step=1), seed=seed, step=step)
        drawn[step, sampled.indices[sampled.mask]] = True
    return pd.DataFrame(drawn.numpy(), columns=range(1, drawn.shape[1] + 1))


def first_step(profile: Profile, example: Example) -> FirstStep:
    """Take the first step of the second stage again, and look what it did.

    >>> example = pick(main_page)
    >>> step = first_step(profile, example)
    >>> bool(abs(step.loss - step.logged) < 1e-5)
    True
    """
    config = replace(profile.student(), seed=profile.seeds[0])
    stage, whole = config.stages[-1].training, student(config).folder
    ranked, *stores = _training_data(config)
    model = _model(student(replace(config, stages=config.stages[:-1])).folder, config)
    told = [_loss_of_step(model, ranked, stores, config)]
    with tempfile.TemporaryDirectory() as name:
        started = time.perf_counter()
        only = replace(stage, steps=1, dev_every=0, patience=0)
        distill(model, ranked, *stores, only, seed=config.seed, folder=Path(name))
        step_s = time.perf_counter() - started
        line = pd.read_json(Path(name) / "log.jsonl", lines=True).iloc[0]
    told.append(_loss_of_step(model, ranked, stores, config))
    told.append(_loss_of_step(_model(whole, config), ranked, stores, config))
    moved, rank_ms = _rank(model, example, profile)
    scores = [example.scores_of(_STAGE_1), moved, example.scores_of("student")]
    targets = targets_from_ranks(example.teacher_rank)
    ours = [LOSSES[stage.loss](each, targets, **stage.loss_options).item() for each in scores]
    return FirstStep(
        losses=pd.DataFrame(
            [told, ours], columns=["before", "after this step", f"after all {stage.steps}"],
            index=[f"the step's own {stage.queries_per_step} lists", "the list of our query"],
        ),
        loss=line["loss"], logged=pd.read_json(whole / "log.jsonl", lines=True)["loss"].iloc[0],
        learning_rate=line["learning_rate"], step_s=step_s, rank_ms=rank_ms,
    )


def times(profile: Profile, step: FirstStep) -> pd.DataFrame:
    """What the way took: each stage as its manifest has it, the rest as measured just now.

    >>> example = pick(main_page)
    >>> times(profile, first_step(profile, example))["took"].str.split().str[1].tolist()
    ['s', 's', 's', 'ms']
    """
    config = replace(profile.student(), seed=profile.seeds[0])
    rows, per_step = [], config.stages[-1].training.queries_per_step
    for n, stage in enumerate(config.stages, start=1):
        run = student(replace(config, stages=config.stages[:n])).manifest
        seen = f"{stage.training.steps} steps of {stage.training.queries_per_step} lists"
        took, on = f"{run['wall_s']:.0f} s", run["device"]
        rows.append((f"stage {n}, from its manifest", seen, took, on))
    here = machine()["device"]
    rows.append(("one step of it, just now", f"{per_step} lists", f"{step.step_s:.1f} s", here))
    n = f"{profile.test.depth} passages"
    rows.append(("ranking our query, just now", n, f"{step.rank_ms:.0f} ms", here))
    return pd.DataFrame(rows, columns=["what", "of", "took", "on"])


def _order(results: Results, label: str, query_id: str) -> pd.Series:
    """A system's scores of a query's passages, by ``doc_id``; named after the collection."""
    for run in results.rankings[label]:
        table = pd.read_parquet(run.folder / "run.parquet")
        own = table[table["query_id"] == query_id].set_index("doc_id")["score"]
        if len(own):
            return own.rename(run.manifest["config"]["candidates"]["collection"])
    raise ValueError(f"expected a query that {label!r} ranked passages for, got {query_id!r}")


def _ranked(example: Example, query_ids: pd.Index, doc_ids: pd.Index) -> RankedLists:
    """The example as a training list would have it."""
    frame = pd.DataFrame(
        {
            "query_id": example.query_id, "doc_id": example.ranks.index,
            "rank": range(1, len(example.ranks) + 1),
            "teacher_rank": example.teacher_rank[0].numpy(),
            "relevance": example.passages["relevance"].to_numpy(),
        }
    )
    return RankedLists.from_frame(frame, query_ids, doc_ids)


def _training_data(config: StudentConfig) -> tuple[RankedLists, TokenStore, TokenStore]:
    """Lists of the last stage, queries and passages."""
    configs = config.stages[-1].lists.each()
    collection = load(configs[0].collection)
    query_ids, queries = tokens(collection.queries, config.encoder)
    doc_ids, passages = passage_tokens(collection, config.encoder)
    frames = map(lists, configs)
    ranked = [RankedLists.from_frame(frame, query_ids, doc_ids) for frame in frames]
    return tuple(x.to(default_device()) for x in (RankedLists.concat(ranked), queries, passages))


def _model(folder: Path, config: StudentConfig) -> CrossEncoder:
    limits = {"query_tokens": config.query_tokens, "passage_tokens": config.passage_tokens}
    return CrossEncoder.from_pretrained(folder / "model", **limits).to(default_device())


def _loss_of_step(
    model: CrossEncoder, ranked: RankedLists, stores: list[TokenStore], config: StudentConfig
) -> float:
    """Mean loss of the first step's lists, as training computes it but without dropout."""
    for module in model.train().modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
    stage = config.stages[-1].training
    drawn = draw(ranked, stage, seed=config.seed, step=0)
    own = dict(zip(("queries", "passages"), stores, strict=True), student=model, seed=0)
    loss = Step.share(*drawn, slice(None), stage, **own).backward().item()
    model.zero_grad()
    return loss


def _rank(model: CrossEncoder, example: Example, profile: Profile) -> tuple[Tensor, float]:
    """Scores ``[1, n]`` of the example's candidates, and what that took, once warm."""
    collection = load(profile.test.collection)
    query_ids, queries = tokens(collection.queries, profile.encoder)
    doc_ids, passages = passage_tokens(collection, profile.encoder)
    candidates = pd.DataFrame({"query_id": example.query_id, "doc_id": example.ranks.index})
    candidates["rank"] = range(1, len(candidates) + 1)
    own = {"query_ids": query_ids, "doc_ids": doc_ids}
    for _ in range(2):
        started = time.perf_counter()
        scored = rerank(model.eval(), candidates, queries, passages, **own)
        took_ms = 1000 * (time.perf_counter() - started)
    scores = scored.set_index("doc_id")["score"].loc[example.ranks.index]
    return torch.tensor(scores.to_numpy())[None], took_ms
