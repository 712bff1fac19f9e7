"""A teacher ranks candidates, in a folder whose work can be killed and goes on.

- ``config.json``: all that decides the lists; ``manifest.json``, written last: see `rdl_core.files`.
- ``answers.jsonl``: every answer as it came. A killed run asks only for what is missing.
- ``candidates.run``: what was ranked, in the first stage's order.
- ``teacher.run``, ``teacher.parquet`` (Rank-DistiLLM's form), ``requests.jsonl`` (RankLLM's, with
  texts): the lists. Scores are -rank, in the latter two those of a pointwise teacher.
- ``report.json``: what had to be repaired, tokens and cost, in all and for each query.
"""

import json
import logging
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import repeat
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pandas as pd

from rdl_core.config import EndpointConfig, LocalConfig, ReplayConfig
from rdl_core.data.collections import fingerprint, read_corpus
from rdl_core.data.formats import check_run, read_candidates, write_parquet, write_requests, write_run
from rdl_core.files import CONFIG, MANIFEST, Work, read_json, resumable, write_json
from rdl_core.progress import progress
from rdl_core.teachers.answers import Answer
from rdl_core.teachers.listwise import Backend, rank_lists
from rdl_core.teachers.replay import AnswerLog, Replay, read_history
from rdl_core.words import n_tokens_about
from rdl_tools.config import TeachConfig
from rdl_tools.shards import each_on_a_gpu, in_turn, whole

__all__ = ["ANSWERS", "Estimate", "estimate", "finished_report", "merge_lists", "open_backend",
           "teach", "usd_of"]  # fmt: skip

ANSWERS = "answers.jsonl"
_log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class Estimate:
    """What is to be asked, before anything is."""

    n_queries: int
    n_windows: int  # if none has to be asked for again
    n_answered: int  # in the folder's log
    input_tokens: int  # of prompts not answered yet, about
    output_tokens: int  # of answers without thoughts, a token for every 2 characters
    usd: float | None  # None without prices

    def __str__(self) -> str:
        cost = "" if self.usd is None else f", {self.usd:.2f} dollars"
        return (
            f"{self.n_queries} queries, {self.n_windows} windows, {self.n_answered} answered before; "
            f"left: about {self.input_tokens} tokens of prompts, {self.output_tokens} of answers{cost}"
        )


def estimate(config: TeachConfig, folder: str | Path, lists: pd.DataFrame | None = None) -> Estimate:
    """Count windows, tokens and cost of :func:`teach`; asks nothing and writes nothing.

    Goes through a run in which what the log lacks keeps its order; `lists`: candidates, if read before.
    """
    log, new = AnswerLog(Path(folder) / ANSWERS, teacher=config.backend.name), []
    backend = SimpleNamespace(  # equal scores keep the order
        ask=lambda windows: enumerate(Answer(scores=(0.0,) * len(x), input_tokens=0) for x in windows),
        can_retry=True,  # of unusable answers, the next is looked up
    )
    answers = SimpleNamespace(get=log.get, add=lambda window, _: new.append(window))
    _, table = _rank(config, _read(config)[0] if lists is None else lists, backend, answers)
    max_words = getattr(config.backend, "max_words", 300)
    prompts = sum(n_tokens_about(window.prompt(max_words=max_words)) for window in new)
    writes = getattr(config.backend, "mode", None) != "first_token"
    rankings = sum(-(-len(window.longest_answer) // 2) for window in new if writes)
    n_windows = int(table["n_windows"].sum())
    n_new = sum(len(getattr(x, "queries", [x])) for x in new)  # a passage stands for several
    return Estimate(
        n_queries=len(table), n_windows=n_windows, n_answered=n_windows - n_new,
        input_tokens=prompts, output_tokens=rankings, usd=usd_of(config.backend, prompts, rankings),
    )  # fmt: skip


def teach(config: TeachConfig, folder: str | Path) -> dict:
    """Have a teacher rank candidates, or go on with it; gives the content of ``report.json``.

    The folder is new, or begun with what gives the same lists: addresses, batch sizes and prices may
    change. A new one may hold another's ``answers.jsonl``: nothing is asked twice. EndpointError: no
    answer; what came is kept. A local model is asked on all GPUs, in shards whose folders stay.
    """
    folder = Path(folder)
    lists, identity = _read(config)
    if isinstance(config.backend, LocalConfig) and not folder.exists() and config.shard == "1/1":
        from torch.cuda import device_count

        if (n := min(device_count(), identity["n_queries"])) > 1:
            shards = {f"{folder}.{i}of{n}": replace(config, shard=f"{i}/{n}") for i in range(1, n + 1)}
            each_on_a_gpu(teach, [(each, shard) for shard, each in shards.items()])
            return merge_lists([*shards], folder)
    with resumable(folder, identity, brought=ANSWERS) as work:
        if report := finished_report(work, config.backend):
            return report
        if isinstance(config.backend, ReplayConfig):  # it answers in its own order, from the first
            (folder / ANSWERS).unlink(missing_ok=True)
        log = AnswerLog(folder / ANSWERS, teacher=config.backend.name)
        plan = estimate(config, folder, lists)
        _log.info("%s: %s", folder, plan)
        steps = progress(repeat(None), total=plan.n_windows, what="windows", done=plan.n_answered)

        def add(asked: Any, answer: Answer) -> None:
            log.add(asked, answer)
            for _ in answer.scores or [asked]:  # a passage stands for as many as it has queries
                next(steps)

        answers = SimpleNamespace(get=log.get, add=add)
        ranked, table = _rank(config, lists, open_backend(config.backend), answers)
        steps.close()
        if "why" in table and 0 < table["n_windows"].sum() == table["n_unusable"].sum():
            told = f"{folder}: no answer could be used: {table['why'].iloc[0]}"
            raise ValueError(f"{told}: mend that, and run this again, which asks anew")
        rows = json.loads(table.to_json(orient="records"))
        usd = usd_of(config.backend, *table[["input_tokens", "output_tokens"]].sum(skipna=False))
        scores = ranked.get("teacher_score", -ranked["teacher_rank"].astype("float64"))
        ranked = ranked.assign(rank=ranked["teacher_rank"], score=scores)
        return _finish(work, lists, ranked, rows, usd, server=getattr(config.backend, "base_url", None))


def finished_report(work: Work, backend: EndpointConfig | LocalConfig | ReplayConfig) -> dict | None:
    """The report of finished work; None, too, where a server may now answer what it did not."""
    report = read_json(work.folder / "report.json") if work.manifest else {}
    if report.get("totals", report).get("n_unusable") and isinstance(backend, EndpointConfig):
        (work.folder / MANIFEST).unlink()
        return None
    return report or None


def merge_lists(shards: Sequence[str | Path], folder: str | Path) -> dict:
    """Make the folder that one run would have left of those of all its shards; gives its report."""
    folder, identities = Path(folder), {}
    for shard in map(Path, shards):
        if not ((shard / MANIFEST).is_file() and (shard / "report.json").is_file()):
            raise ValueError(f"{shard} holds no finished lists: run rdl teach again, which goes on")
        with resumable(shard, read_json(shard / CONFIG)) as work:  # refuses changed files
            identities[shard] = work.identity
    identity = whole(identities)
    parts = sorted(identities, key=lambda part: identities[part]["shard"])
    reports = [read_json(part / "report.json") for part in parts]
    rows = in_turn([report["queries"] for report in reports])
    query_ids = [row["query_id"] for row in rows]
    costs = [report["totals"]["usd"] for report in reports]
    usd = None if None in costs else round(sum(costs), 6)
    with resumable(folder, identity) as work:
        if work.manifest is not None:
            return read_json(folder / "report.json")
        log = AnswerLog(folder / ANSWERS, teacher=identity["teacher"])
        for part in parts:
            log.take(part / ANSWERS)
        names = "candidates.run", "requests.jsonl"
        joined = (pd.concat([read_candidates(part / name) for part in parts]) for name in names)
        lists = [x.set_index("query_id").loc[query_ids].reset_index() for x in joined]
        return _finish(work, *lists, rows, usd, shards=[read_json(part / MANIFEST) for part in parts])


def _read(config: TeachConfig) -> tuple[pd.DataFrame, dict]:
    """The shard's candidates with texts, and the identity: all that decides the lists."""
    corpus = read_corpus(config.candidates, format=config.format, collection=config.collection)
    check_run(corpus.candidates, "teacher")
    frame = corpus.candidates[["query_id", "doc_id", "rank"]]
    corpus = replace(corpus, candidates=frame[frame["rank"] <= (config.depth or len(frame))])
    windows = {} if getattr(config.backend, "pointwise", False) else config.windows
    identity = {"teacher": config.backend.name, "candidates": fingerprint(corpus.candidates)} | windows
    identity |= {"depth": config.depth, "n_queries": len(corpus.ids("query_id")), "shard": config.part}
    return corpus.shard(*config.part).with_texts(), identity


def _rank(
    config: TeachConfig, lists: pd.DataFrame, backend: Any, answers: Any
) -> tuple[pd.DataFrame, pd.DataFrame]:
    """The lists as a listwise or a pointwise teacher ranks them, and a report."""
    if getattr(config.backend, "pointwise", False):
        from rdl_core.teachers.pointwise import score_lists  # imports torch

        return score_lists(lists, backend, answers=answers)
    return rank_lists(lists, backend, answers=answers, **config.windows)


def open_backend(config: EndpointConfig | LocalConfig | ReplayConfig) -> Backend:
    """Who answers, ready to be asked."""
    if isinstance(config, ReplayConfig):
        return Replay(read_history(config.model))
    if isinstance(config, EndpointConfig):
        from rdl_core.teachers.endpoint import Endpoint  # imports openai

        return Endpoint(config)
    from rdl_core.teachers.local_llm import LocalLLM, load_llm  # imports torch
    from rdl_core.teachers.pointwise import PointwiseLLM

    kind = PointwiseLLM if config.pointwise else LocalLLM
    return kind(*load_llm(config), **vars(config))


def usd_of(backend: EndpointConfig | LocalConfig | ReplayConfig, *tokens: int) -> float | None:
    """Dollars for tokens of prompts and answers; None without prices, or if some were not counted."""
    prices = [getattr(backend, f"{x}_usd", None) for x in ("input", "output")]
    if None in prices or any(map(pd.isna, tokens)):
        return None
    return round(sum(n * price for n, price in zip(tokens, prices, strict=True)) / 1e6, 6)


def _finish(
    work: Work, candidates: pd.DataFrame, ranked: pd.DataFrame, rows: list[dict], usd: float | None,
    **more: Any,
) -> dict:  # fmt: skip
    """Write candidates, ranked lists, their report with `rows` of each query's counts, the manifest."""
    folder, lists = work.folder, ranked[["query_id", "doc_id", "query", "text", "rank", "score"]]
    write_run(candidates[["query_id", "doc_id", "rank"]], folder / "candidates.run")
    write_run(lists.drop(columns="score"), folder / "teacher.run", tag="teacher")  # scores may tie
    write_parquet(lists, folder / "teacher.parquet")
    write_requests(lists, folder / "requests.jsonl")
    columns = {name: [row[name] for row in rows] for name in rows[0] if name not in ("query_id", "why")}
    sums = {name: None if None in column else sum(column) for name, column in columns.items()}
    totals = {"n_queries": len(rows), "n_passages": len(lists)} | sums | {"usd": usd}
    report = {"totals": totals, "queries": rows}
    write_json(folder / "report.json", report)
    work.finish(**more)
    return report
