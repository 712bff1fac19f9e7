"""Listwise teachers: which windows of a list a model is asked, and how its answers reorder the list.

A window slides from the end of a list to its front and reorders the passages in it, so that none is
lost or doubled. A pass over ``n > 1`` passages takes ``1 + ceil((n - window_size) / stride)`` windows,
one if `window_size` is ``n`` or more. All queries advance in lockstep: a :class:`Backend` gets the next
window of each at once.

Reference: Sun et al., EMNLP 2023.

>>> from rdl_core.teachers.listwise import plan_windows
>>> plan_windows(5, window_size=3, stride=2)
[range(2, 5), range(0, 3)]
"""

import logging
import math
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
import pandas as pd
from pandas.api.types import is_string_dtype

from rdl_core.config import WindowConfig
from rdl_core.files import checked
from rdl_core.teachers.answers import Answer, Window
from rdl_core.teachers.replay import AnswerLog

__all__ = ["Backend", "ask_all", "check_candidates", "plan_windows", "rank_lists"]

_COUNTS = ("n_windows", "n_clean", "n_repaired", "n_unusable", "n_missing", "n_repeated", "n_unknown",
           "n_calls", "n_retries", "input_tokens", "output_tokens")  # fmt: skip
_log = logging.getLogger(__name__)


class Backend(Protocol):
    """Who answers windows: an LLM, a server, recorded answers."""

    can_retry: bool  # whether a second answer can differ from the first

    def ask(self, windows: Sequence[Window]) -> Iterable[tuple[int, Answer]]:
        """Answer each window once; yield its number and its answer as soon as it is known."""


def plan_windows(n: int, **windows: Any) -> list[range]:
    """Places of the windows of one pass over `n` passages; takes `WindowConfig`'s fields."""
    config = checked(WindowConfig, windows, what="plan_windows")
    if n < 2:
        return []
    starts = [*range(n - config.window_size, 0, -config.stride), 0]
    return [range(start, min(start + config.window_size, n)) for start in starts]


def rank_lists(
    candidates: pd.DataFrame, backend: Backend, *, answers: AnswerLog | None = None,
    on_answer: Callable[[Window, Answer], None] | None = None, **windows: Any,
) -> tuple[pd.DataFrame, pd.DataFrame]:  # fmt: skip
    """Rank each query's candidates by asking a backend.

    Args:
        candidates: ``query_id``, ``query``, ``doc_id``, ``text`` (all str), ``rank`` (1 is best).
        backend: Who answers.
        answers: Where answers are looked up before asking, and stored as they come.
        on_answer: Called with each new answer, after it is stored.
        windows: Fields of `rdl_core.config.WindowConfig`. A window without a usable answer after
            `max_retries` retries keeps its order.

    Returns:
        The candidates with ``teacher_rank``, a permutation of 1..n in each query; and a report, a row
        per query: ``n_windows`` = ``n_clean`` + ``n_repaired`` + ``n_unusable``; ``n_missing``,
        ``n_repeated``, ``n_unknown`` over last answers; ``n_calls``, ``n_retries``, ``input_tokens``,
        ``output_tokens`` over all, stored ones too (NA if not counted); ``why`` some were unusable.

    Raises:
        ValueError: Candidates or options do not fit, or the backend skips a window.
    """
    config = checked(WindowConfig, windows, what="rank_lists")
    check_candidates(candidates)
    frame = candidates.reset_index(drop=True)
    plans = {n: plan_windows(n, **windows) for n in set(frame["query_id"].value_counts())}
    lists = []
    for query_id, rows in frame.groupby("query_id", sort=False):
        rows = rows.sort_values("rank", kind="stable")
        passages = [*zip(rows.index, rows["doc_id"], rows["text"], strict=True)]
        lists.append(_List(query_id, rows["query"].iloc[0], plans[len(rows)], passages))
    n_tries = 1 + config.max_retries if backend.can_retry else 1
    for pass_number in range(1, config.passes + 1):
        for step in range(max(map(len, plans.values()), default=0)):
            left = [x for x in lists if step < len(x.plan)]
            for attempt in range(n_tries):
                asked = [x.window(step, pass_number, attempt) for x in left]
                new = zip(left, ask_all(asked, backend, answers, on_answer), strict=True)
                left = [x for x, answer in new if not x.take(answer, step, attempt, n_tries)]
    ranks = np.zeros(len(candidates), dtype="int64")
    for x in lists:
        ranks[[row for row, _, _ in x.passages]] = np.arange(1, len(x.passages) + 1)
    rows = [{"query_id": x.query_id, **x.counts, "why": "; ".join(dict.fromkeys(x.why))} for x in lists]
    report = pd.DataFrame(rows, columns=["query_id", *_COUNTS, "why"])
    report = report.astype({"query_id": "str", "why": "str"} | dict.fromkeys(_COUNTS, "Int64"))
    if why := Counter(reason for x in lists for reason in x.why).most_common(3):
        counts = report["n_unusable"].sum(), report["n_windows"].sum()
        reasons = "; ".join(f"{reason} ({n} times)" for reason, n in why)
        _log.warning("%d of %d windows had no usable answer, left in order: %s", *counts, reasons)
    return candidates.assign(teacher_rank=ranks), report


@dataclass
class _List:
    """One query's passages in their present order, and what its answers add up to."""

    query_id: str
    query: str
    plan: list[range]
    passages: list[tuple[int, str, str]]  # row of the candidates, id, text
    counts: dict[str, float] = field(default_factory=lambda: dict.fromkeys(_COUNTS, 0))
    why: list[str] = field(default_factory=list)  # answers could not be used

    def window(self, step: int, pass_number: int, attempt: int) -> Window:
        places = self.plan[step]
        _, doc_ids, texts = zip(*self.passages[places.start : places.stop], strict=True)
        return Window(
            query_id=self.query_id, query=self.query, doc_ids=doc_ids, passages=texts,
            pass_number=pass_number, start=places.start, attempt=attempt,
        )  # fmt: skip

    def take(self, answer: Answer, step: int, attempt: int, n_tries: int) -> bool:
        """Count an answer and reorder by it; False, without reordering, if one may ask again."""
        places, counts = self.plan[step], {"n_retries": int(attempt > 0)}
        reading = answer.read(len(places))
        counts |= {x: getattr(answer, x) for x in ("n_calls", "input_tokens", "output_tokens")}
        if last := reading.status != "unusable" or attempt + 1 == n_tries:
            counts |= {x: getattr(reading, x) for x in ("n_missing", "n_repeated", "n_unknown")}
            counts |= {"n_windows": 1, f"n_{reading.status}": 1}
            moved = [self.passages[places[i]] for i in reading.order]
            self.passages[places.start : places.stop] = moved
            if reading.status == "unusable":
                self.why.append(answer.why or "no ranking in the answer")
        for name, n in counts.items():
            self.counts[name] += math.nan if n is None else n
        return last


def ask_all(
    windows: list[Window], backend: Backend, log: AnswerLog | None,
    on_answer: Callable[[Window, Answer], None] | None,
) -> list[Answer]:  # fmt: skip
    """An answer for each window, from the log or else the backend."""
    answers = [None if log is None else log.get(window) for window in windows]
    new = [i for i, answer in enumerate(answers) if answer is None]
    for number, answer in backend.ask([windows[i] for i in new]) if new else ():
        i = new[number]
        answers[i] = answer
        if log is not None:
            log.add(windows[i], answer)
        if on_answer is not None:
            on_answer(windows[i], answer)
    if missing := [windows[i].key for i in new if answers[i] is None]:
        which = f"{len(missing)} of {len(new)} windows, such as {missing[0]}"
        raise ValueError(f"{type(backend).__name__}.ask gave no answer for {which}")
    return answers


def check_candidates(candidates: pd.DataFrame) -> None:
    """Refuse a frame that a teacher cannot rank; ValueError says why."""
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
