"""Listwise teachers: which windows of a list are asked, and what becomes of the answers.

No model is known here. A :class:`Backend` takes windows and gives answers; all queries advance in
lockstep, so that it gets the windows of one step of every query at once. A plan is a list of steps,
each with the places that one window shows; its answer moves passages among these places only, so
nothing is lost or doubled whatever a model says. Plans depend on the length of a list alone, hence
:func:`count_calls` before anything runs.

==============  ====================================================  ============================
schedule        calls for ``n`` passages (none if ``n < 2``)          orders
==============  ====================================================  ============================
``sliding``     1 + ceil((n - window_size) / stride), one by one      all; best ones surest
``tournament``  ceil(m / window_size) for m left in a round, at once  the best `top_k`, rest roughly
``single``      1                                                     the first `window_size`
``full``        1 of n passages, for models of long context           all
==============  ====================================================  ============================

References: Sun et al., EMNLP 2023 (sliding windows); Chen et al., arXiv 2406.11678 (tournaments).

>>> [list(places) for (places,) in plan_windows(5, window_size=3, stride=2)]
[[2, 3, 4], [0, 1, 2]]
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from typing import Protocol

import numpy as np
import pandas as pd
from pandas.api.types import is_string_dtype

from rdl_core.teachers.answers import Answer, Reading, Window
from rdl_core.teachers.replay import AnswerLog

__all__ = ["SCHEDULES", "Backend", "count_calls", "plan_windows", "rank_lists"]

Plan = list[list[range]]  # steps; the windows of a step share no place

_COUNTS = (
    "n_windows", "n_clean", "n_repaired", "n_unusable", "n_missing", "n_repeated", "n_unknown",
    "n_calls", "n_retries", "input_tokens", "output_tokens",
)  # fmt: skip
_log = logging.getLogger(__name__)


class Backend(Protocol):
    """What :func:`rank_lists` asks: an LLM, a server, or recorded answers.

    >>> class Reverser:
    ...     can_retry = False
    ...     def ask(self, windows):
    ...         for number, window in enumerate(windows):
    ...             yield number, Answer(order=tuple(range(len(window.passages)))[::-1])
    """

    can_retry: bool
    """False where asking again is bound to give the same answer."""

    def ask(self, windows: Sequence[Window]) -> Iterable[tuple[int, Answer]]:
        """Answer every window once; yield its number and its answer as soon as it is there."""


def plan_windows(
    n: int, *, schedule: str = "sliding", window_size: int = 20, stride: int = 10, top_k: int = 10
) -> Plan:
    """Which places of a list each window of one pass shows.

    Args:
        n: Passages in the list.
        schedule: A key of `SCHEDULES`; the table above tells them apart.
        window_size: Passages in a prompt, at least 2; ``full`` ignores it.
        stride: Places that the next window of ``sliding`` lies further ahead, 1..window_size.
            ``window_size - stride`` passages can rise from one window to the next.
        top_k: Passages that win through in ``tournament``, 1..window_size // 2.

    Returns:
        Steps, one after the other, each a list of windows, which may be asked at the same time.

    >>> plan_windows(6, schedule="tournament", window_size=4, top_k=2)
    [[range(0, 6, 2), range(1, 6, 2)], [range(0, 4)]]
    """
    if schedule not in SCHEDULES:
        raise ValueError(f"expected a schedule among {sorted(SCHEDULES)}, got {schedule!r}")
    if window_size < 2:
        raise ValueError(f"expected window_size >= 2, got {window_size}: 20 is usual")
    if schedule == "sliding" and not 1 <= stride <= window_size:
        raise ValueError(
            f"expected stride in 1..{window_size}, got {stride}: more would pass over passages"
        )
    if schedule == "tournament" and not 1 <= top_k <= window_size // 2:
        raise ValueError(
            f"expected top_k in 1..{window_size // 2}, half a window, got {top_k}: with more, the "
            "rounds would not get smaller"
        )
    return SCHEDULES[schedule](n, window_size, stride, top_k) if n > 1 else []


def count_calls(sizes: Iterable[int], *, passes: int = 1, **schedule) -> int:
    """LLM calls for lists of these sizes, if no answer has to be asked for again.

    Args:
        sizes: Passages in each list.
        passes: Passes over each list.
        schedule: Named arguments of :func:`plan_windows`.

    >>> count_calls([100] * 43), count_calls([100], schedule="tournament", passes=2)
    (387, 22)
    """
    return passes * sum(len(step) for n in sizes for step in plan_windows(n, **schedule))


def rank_lists(
    candidates: pd.DataFrame,
    backend: Backend,
    *,
    schedule: str = "sliding",
    window_size: int = 20,
    stride: int = 10,
    top_k: int = 10,
    passes: int = 1,
    max_retries: int = 1,
    answers: AnswerLog | None = None,
    on_answer: Callable[[Window, Answer], None] | None = None,
) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Rank each query's candidates by asking a backend.

    Args:
        candidates: ``query_id``, ``query``, ``doc_id``, ``text`` (all str), ``rank`` (1 is best).
        backend: Who answers.
        schedule: As in :func:`plan_windows`; so are `window_size`, `stride` and `top_k`.
        passes: Passes over each list, at least 1; each starts from the order of the one before.
        max_retries: How often a window is asked again whose answer is unusable, if the backend can
            do better. Still unusable, it stays in order and is counted.
        answers: Where answers are looked up before asking, and stored as they come.
        on_answer: Called with each new answer, after it is stored.

    Returns:
        The candidates with ``teacher_rank``, a permutation of 1..n in each query; and a report, one
        row for each query, as they appear: ``query_id``, ``n_windows`` = ``n_clean`` +
        ``n_repaired`` + ``n_unusable``; ``n_missing``, ``n_repeated``, ``n_unknown`` over the
        windows' last answers; ``n_calls``, ``n_retries``, ``input_tokens``, ``output_tokens`` over
        all answers, also those stored and those asked for again (NA if a backend did not count).

    Raises:
        ValueError: Candidates do not fit, options do not, or a backend skips a window.

    >>> from rdl_core.teachers.replay import Recorded, Replay
    >>> said = Recorded(prompt="[1] a dog\\n[2] a fox", response="[2]", query_id="q")
    >>> columns = {"query_id": "q", "query": "fox", "doc_id": ["a", "b"], "rank": [1, 2]}
    >>> candidates = pd.DataFrame(columns | {"text": ["a dog", "a fox"]})
    >>> ranked, report = rank_lists(candidates, Replay([said]))
    >>> ranked["teacher_rank"].tolist(), report["n_repaired"].tolist()
    ([2, 1], [1])
    """
    if passes < 1 or max_retries < 0:
        raise ValueError(f"expected passes >= 1, max_retries >= 0; got {passes}, {max_retries}")
    retries = max_retries if backend.can_retry else 0
    desk = _Desk(backend, retries, answers, on_answer)
    how = {"schedule": schedule, "window_size": window_size, "stride": stride, "top_k": top_k}
    lists = _lists(candidates, how)
    for pass_number in range(1, passes + 1):
        for step in range(max((len(one.plan) for one in lists), default=0)):
            _advance([one for one in lists if step < len(one.plan)], pass_number, step, desk)
    ranks = np.zeros(len(candidates), dtype="int64")
    for one in lists:
        ranks[one.rows[one.order]] = np.arange(1, len(one.order) + 1)
    return candidates.assign(teacher_rank=ranks), _report(lists)


@dataclass(kw_only=True)
class _List:
    """One query's passages, their present order, and what was counted."""

    query_id: str
    query: str
    rows: np.ndarray  # places in the frame of candidates, first stage's best first
    doc_ids: list[str]
    passages: list[str]
    order: list[int]
    plan: Plan
    counts: Counter = field(default_factory=Counter)
    uncounted: set[str] = field(default_factory=set)

    def window(self, places: range, pass_number: int) -> Window:
        shown = [self.order[place] for place in places]
        return Window(
            query_id=self.query_id, query=self.query, pass_number=pass_number, start=places.start,
            doc_ids=tuple(self.doc_ids[i] for i in shown),
            passages=tuple(self.passages[i] for i in shown),
        )  # fmt: skip

    def take(self, places: range, reading: Reading, answers: list[Answer]) -> None:
        """Reorder what stands in `places`, and count."""
        shown = [self.order[place] for place in places]
        for place, best in zip(places, reading.order, strict=True):
            self.order[place] = shown[best]
        self.counts.update(["n_windows", f"n_{reading.status}"])
        for name in ("n_missing", "n_repeated", "n_unknown"):
            self.counts[name] += getattr(reading, name)
        self.counts["n_retries"] += len(answers) - 1
        for answer in answers:
            self.counts["n_calls"] += answer.n_calls
            for name in ("input_tokens", "output_tokens"):
                self.counts[name] += getattr(answer, name) or 0
                self.uncounted |= {name} if getattr(answer, name) is None else set()


class _Desk:
    """Where windows go in and readings come out: looks answers up, asks, stores, asks again."""

    def __init__(
        self,
        backend: Backend,
        retries: int,
        log: AnswerLog | None,
        on_answer: Callable[[Window, Answer], None] | None,
    ) -> None:
        self.backend, self.retries, self.log, self.on_answer = backend, retries, log, on_answer

    def settle(self, windows: list[Window]) -> list[tuple[Reading, list[Answer]]]:
        """For each window what its last answer says, and all answers that it took."""
        given: list[list[Answer]] = [[] for _ in windows]
        readings: list[Reading | None] = [None] * len(windows)
        todo = list(range(len(windows)))
        for attempt in range(self.retries + 1):
            asked = [replace(windows[i], attempt=attempt) for i in todo]
            for i, answer in zip(todo, self._answers(asked), strict=True):
                given[i].append(answer)
                readings[i] = answer.read(len(windows[i].passages))
            todo = [i for i in todo if readings[i].status == "unusable"]
        return list(zip(readings, given, strict=True))

    def _answers(self, windows: list[Window]) -> list[Answer]:
        stored = [None if self.log is None else self.log.get(window) for window in windows]
        todo = [i for i, answer in enumerate(stored) if answer is None]
        for number, answer in self.backend.ask([windows[i] for i in todo]) if todo else ():
            i = todo[number]
            if stored[i] is not None:
                raise ValueError(
                    f"expected one answer for each window, got a second one for {windows[i].key}: "
                    f"correct {type(self.backend).__name__}.ask"
                )
            stored[i] = answer
            if self.log is not None:
                self.log.add(windows[i], answer)
            if self.on_answer is not None:
                self.on_answer(windows[i], answer)
        if missing := [window.key for window, answer in zip(windows, stored) if answer is None]:
            raise ValueError(
                f"expected an answer for each of {len(todo)} windows, got none for {len(missing)}, "
                f"first {missing[0]}: correct {type(self.backend).__name__}.ask"
            )
        return stored


def _sliding(n: int, window_size: int, stride: int, top_k: int) -> Plan:
    """From the end to the front; the first window is full too, where others stop short of it."""
    starts = [*range(n - window_size, 0, -stride), 0]
    return [[range(start, min(start + window_size, n))] for start in starts]


def _tournament(n: int, window_size: int, stride: int, top_k: int) -> Plan:
    """Rounds of groups, whose best `top_k` meet in the next round, until one group is left.

    Group g of G holds places g, g + G, ..., so the best k of each group stand in places 0..kG - 1,
    and those that drop out stand behind them, by their place in their group.
    """
    plan = []
    while n > window_size:
        groups = -(-n // window_size)
        plan.append([range(group, n, groups) for group in range(groups)])
        n = min(n, groups * top_k)
    return [*plan, [range(n)]]


def _single(n: int, window_size: int, stride: int, top_k: int) -> Plan:
    return [[range(min(n, window_size))]]


def _full(n: int, window_size: int, stride: int, top_k: int) -> Plan:
    return [[range(n)]]


#: Schedules by name; each gives the plan of one pass over two passages or more.
SCHEDULES: dict[str, Callable[[int, int, int, int], Plan]] = {
    "sliding": _sliding, "tournament": _tournament, "single": _single, "full": _full,
}  # fmt: skip


def _advance(lists: list[_List], pass_number: int, step: int, desk: _Desk) -> None:
    """One step of every list."""
    asked = [(one, places) for one in lists for places in one.plan[step]]
    windows = [one.window(places, pass_number) for one, places in asked]
    for (one, places), (reading, answers) in zip(asked, desk.settle(windows), strict=True):
        one.take(places, reading, answers)


def _lists(candidates: pd.DataFrame, how: dict) -> list[_List]:
    plan_windows(0, **how)  # refuses wrong options, also where there are no candidates
    _check(candidates)
    queries = pd.factorize(candidates["query_id"])[0]
    frame = candidates.reset_index(drop=True).iloc[np.lexsort((candidates["rank"], queries))]
    return [
        _List(
            query_id=query_id, query=rows["query"].iloc[0], rows=rows.index.to_numpy(),
            doc_ids=rows["doc_id"].tolist(), passages=rows["text"].tolist(),
            order=list(range(len(rows))), plan=plan_windows(len(rows), **how),
        )
        for query_id, rows in frame.groupby("query_id", sort=False)
    ]  # fmt: skip


def _check(candidates: pd.DataFrame) -> None:
    texts = ["query_id", "query", "doc_id", "text"]
    there = {*texts, "rank"} <= set(candidates.columns)
    columns = list(candidates.columns)
    _expect(there, f"columns {[*texts, 'rank']}", columns, "merge queries and passages into it")
    for name in texts if len(candidates) else ():
        column = candidates[name]
        given = f"{column.dtype}, {column.isna().sum()} missing"
        strings = is_string_dtype(column) and not column.isna().any()
        _expect(strings, f"{name} as strings", given, "read it as str, drop empty rows")
    ranked = not candidates["rank"].isna().any()
    _expect(ranked, "a rank in every row", "none in some", "number each query's rows, 1 is best")
    ids = ["query_id", "doc_id"]
    twice = candidates.loc[candidates.duplicated(ids), ids].values.tolist()
    _expect(not twice, "each passage once per query", f"twice {twice[:3]}", "drop duplicates")
    wordings = candidates[texts[:2]].drop_duplicates()["query_id"]
    several = wordings[wordings.duplicated()].tolist()
    _expect(not several, "one text per query", f"several for {several[:3]}", "keep one of them")


def _expect(good: bool, expected: str, given: object, remedy: str) -> None:
    if not good:
        raise ValueError(f"expected candidates with {expected}; given {given}: {remedy}")


def _report(lists: list[_List]) -> pd.DataFrame:
    rows = [
        {"query_id": one.query_id}
        | {name: pd.NA if name in one.uncounted else one.counts[name] for name in _COUNTS}
        for one in lists
    ]
    table = pd.DataFrame(rows, columns=["query_id", *_COUNTS])
    table = table.astype({"query_id": "str"} | dict.fromkeys(_COUNTS, "Int64"))
    n_windows, n_unusable = int(table["n_windows"].sum()), int(table["n_unusable"].sum())
    if n_unusable:
        _log.warning("%d of %d windows had no usable answer: left in order", n_unusable, n_windows)
    return table
