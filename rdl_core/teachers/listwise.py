"""Listwise teachers: which windows of a list a model is asked, and how its answers reorder the list.

A plan has steps, whose windows share no place and are asked at once. All queries advance in lockstep:
a :class:`Backend` gets one step's windows of all of them. An answer only moves passages among the
places of its window, so none is lost or doubled.

==============  ====================================================  ============================
schedule        calls for ``n`` passages (none if ``n < 2``)          orders
==============  ====================================================  ============================
``sliding``     1 + ceil((n - window_size) / stride), one by one      all; best ones surest
``tournament``  ceil(m / window_size) for m left in a round, at once  the best `top_k`, rest roughly
``single``      1                                                     the first `window_size`
``full``        1 of n passages, for models of long context           all
==============  ====================================================  ============================

References: Sun et al., EMNLP 2023 (sliding windows); Chen et al., arXiv 2406.11678 (tournaments).

>>> from rdl_core.teachers.listwise import plan_windows
>>> plan_windows(5, window_size=3, stride=2)
[[range(2, 5)], [range(0, 3)]]
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Protocol

import numpy as np
import pandas as pd
from pandas.api.types import is_string_dtype

from rdl_core.config import WindowConfig
from rdl_core.files import checked
from rdl_core.teachers.answers import Answer, Reading, Window
from rdl_core.teachers.replay import AnswerLog

__all__ = ["SCHEDULES", "Backend", "plan_windows", "rank_lists"]

Plan = list[list[range]]
_COUNTS = ("n_windows", "n_clean", "n_repaired", "n_unusable", "n_missing", "n_repeated", "n_unknown",
           "n_calls", "n_retries", "input_tokens", "output_tokens")  # fmt: skip
_log = logging.getLogger(__name__)


class Backend(Protocol):
    """Who answers windows: an LLM, a server, recorded answers."""

    can_retry: bool  # whether a second answer can differ from the first

    def ask(self, windows: Sequence[Window]) -> Iterable[tuple[int, Answer]]:
        """Answer each window once; yield its number and its answer as soon as it is known."""


def plan_windows(n: int, **windows: Any) -> Plan:
    """Steps of one pass over `n` passages, each a list of windows; takes `WindowConfig`'s fields."""
    return _plan(n, checked(WindowConfig, windows, what="plan_windows"))


def rank_lists(
    candidates: pd.DataFrame,
    backend: Backend,
    *,
    answers: AnswerLog | None = None,
    on_answer: Callable[[Window, Answer], None] | None = None,
    **windows: Any,
) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Rank each query's candidates by asking a backend.

    Args:
        candidates: ``query_id``, ``query``, ``doc_id``, ``text`` (all str), ``rank`` (1 is best).
        backend: Who answers.
        answers: Where answers are looked up before asking, and stored as they come.
        on_answer: Called with each new answer, after it is stored.
        windows: Fields of `rdl_core.config.WindowConfig`. A window whose answers stay unusable after
            `max_retries` retries keeps its order.

    Returns:
        The candidates with ``teacher_rank``, a permutation of 1..n in each query; and a report, one
        row per query: ``n_windows`` = ``n_clean`` + ``n_repaired`` + ``n_unusable``; ``n_missing``,
        ``n_repeated``, ``n_unknown`` over the windows' last answers; ``n_calls``, ``n_retries``,
        ``input_tokens``, ``output_tokens`` over all, stored ones included (NA if nobody counted).

    Raises:
        ValueError: Candidates or options do not fit, or the backend skips or repeats a window.
    """
    config = checked(WindowConfig, windows, what="rank_lists")
    _check(candidates)
    queries = pd.factorize(candidates["query_id"])[0]
    frame = candidates.reset_index(drop=True).iloc[np.lexsort((candidates["rank"], queries))]
    lists = [
        _List(query_id, rows["query"].iloc[0], [*zip(rows["doc_id"], rows["text"], strict=True)],
              rows.index.to_numpy(), _plan(len(rows), config), list(range(len(rows))))
        for query_id, rows in frame.groupby("query_id", sort=False)
    ]  # fmt: skip
    retries = config.max_retries if backend.can_retry else 0
    for pass_number in range(1, config.passes + 1):
        for step in range(max((len(x.plan) for x in lists), default=0)):
            pairs = [(x, places) for x in lists if step < len(x.plan) for places in x.plan[step]]
            asked = [x.window(places, pass_number) for x, places in pairs]
            tries = _ask(asked, backend, retries, answers, on_answer)
            for (x, places), answers_of_window in zip(pairs, tries, strict=True):
                x.take(places, answers_of_window)
    ranks = np.zeros(len(candidates), dtype="int64")
    for x in lists:
        ranks[x.rows[x.order]] = np.arange(1, len(x.order) + 1)
    return candidates.assign(teacher_rank=ranks), _report(lists)


@dataclass
class _List:
    """One query's passages in the first stage's order, their present order, and all answers."""

    query_id: str
    query: str
    texts: list[tuple[str, str]]  # id and text of each passage
    rows: np.ndarray  # in the frame of candidates
    plan: Plan
    order: list[int]  # of texts and rows
    readings: list[Reading] = field(default_factory=list)
    answers: list[Answer] = field(default_factory=list)

    def window(self, places: range, pass_number: int) -> Window:
        doc_ids, passages = zip(*(self.texts[self.order[place]] for place in places), strict=True)
        texts = {"query": self.query, "doc_ids": doc_ids, "passages": passages}
        return Window(query_id=self.query_id, pass_number=pass_number, start=places.start, **texts)

    def take(self, places: range, tries: list[Answer]) -> None:
        """Reorder the passages in `places` by the last of a window's answers; keep all of them."""
        reading = tries[-1].read(len(places))
        members = [self.order[place] for place in places]
        self.order[places.start : places.stop : places.step] = [members[i] for i in reading.order]
        self.readings.append(reading)
        self.answers += tries


def _ask(
    windows: list[Window], backend: Backend, retries: int, log: AnswerLog | None,
    on_answer: Callable[[Window, Answer], None] | None,
) -> list[list[Answer]]:
    """All answers for each window, the last one usable if any is; from the log or else the backend."""
    kind, tries, left = type(backend).__name__, [[] for _ in windows], [*range(len(windows))]
    for attempt in range(retries + 1):
        asked = {i: replace(windows[i], attempt=attempt) for i in left}
        answers = {i: None if log is None else log.get(window) for i, window in asked.items()}
        new = [i for i in left if answers[i] is None]
        for number, answer in backend.ask([asked[i] for i in new]) if new else ():
            i = new[number]
            if answers[i] is not None:
                raise ValueError(f"{kind}.ask gave a second answer for window {asked[i].key}")
            answers[i] = answer
            if log is not None:
                log.add(asked[i], answer)
            if on_answer is not None:
                on_answer(asked[i], answer)
        if missing := [asked[i].key for i in new if answers[i] is None]:
            missed = f"{len(missing)} of {len(new)} windows, such as {missing[0]}"
            raise ValueError(f"{kind}.ask gave no answer for {missed}")
        for i in left:
            tries[i].append(answers[i])
        left = [i for i in left if answers[i].read(len(windows[i].passages)).status == "unusable"]
    return tries


def _sliding(n: int, config: WindowConfig) -> Plan:
    """From the end to the front; the last window asked, at the front, is full, too."""
    starts = [*range(n - config.window_size, 0, -config.stride), 0]
    return [[range(start, min(start + config.window_size, n))] for start in starts]


def _tournament(n: int, config: WindowConfig) -> Plan:
    """Rounds of groups, whose best `top_k` meet in the next round, until one group is left."""
    # Group g of G holds places g, g + G, ...: the best k of all groups then stand in places 0..kG - 1.
    plan = []
    while n > config.window_size:
        groups = -(-n // config.window_size)
        plan.append([range(group, n, groups) for group in range(groups)])
        n = min(n, groups * config.top_k)
    return [*plan, [range(n)]]


#: Schedules by name; each gives the plan of one pass over two passages or more.
SCHEDULES: dict[str, Callable[[int, WindowConfig], Plan]] = {
    "sliding": _sliding, "tournament": _tournament,
    "single": lambda n, c: [[range(min(n, c.window_size))]], "full": lambda n, c: [[range(n)]],
}  # fmt: skip


def _plan(n: int, config: WindowConfig) -> Plan:
    return SCHEDULES[config.schedule](n, config) if n > 1 else []


def _check(candidates: pd.DataFrame) -> None:
    texts, ids, problem = ["query_id", "query", "doc_id", "text"], ["query_id", "doc_id"], None
    if missing := sorted({*texts, "rank"} - set(candidates.columns)):
        problem = f"columns {', '.join(missing)} are missing: merge queries and passages into the frame"
    elif candidates["rank"].isna().any():
        problem = "some rows have no rank: number each query's rows, 1 is best"
    elif len(twice := candidates.loc[candidates.duplicated(ids), ids]):
        problem = f"a passage is twice in a query's list: {twice.values.tolist()[:3]}"
    elif len(more := (n := candidates.groupby("query_id")["query"].nunique())[n > 1]):
        problem = f"a query has several texts: {more.index.tolist()[:3]}"
    for name in texts if len(candidates) and not problem else ():
        column = candidates[name]
        if not is_string_dtype(column) or column.isna().any():
            problem = f"{name} must be strings, got {column.dtype}, {column.isna().sum()} missing"
    if problem:
        raise ValueError(f"candidates: {problem}")


def _report(lists: list[_List]) -> pd.DataFrame:
    rows = []
    for x in lists:
        row = {"query_id": x.query_id, "n_windows": len(x.readings)}
        row |= Counter(f"n_{reading.status}" for reading in x.readings)
        row["n_retries"] = len(x.answers) - len(x.readings)
        for name in ("n_missing", "n_repeated", "n_unknown"):
            row[name] = sum(getattr(reading, name) for reading in x.readings)
        for name in ("n_calls", "input_tokens", "output_tokens"):
            values = [getattr(answer, name) for answer in x.answers]
            row[name] = pd.NA if None in values else sum(values)
        rows.append({name: row.get(name, 0) for name in ("query_id", *_COUNTS)})
    table = pd.DataFrame(rows, columns=["query_id", *_COUNTS])
    table = table.astype({"query_id": "str"} | dict.fromkeys(_COUNTS, "Int64"))
    if table["n_unusable"].any():
        counts = table["n_unusable"].sum(), table["n_windows"].sum()
        _log.warning("%d of %d windows had no usable answer: left in order", *counts)
    return table
