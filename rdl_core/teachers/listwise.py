"""Listwise teachers: which windows of a list a model is asked, and how its answers reorder the list.

A window slides from the end of a list to its front and reorders the passages in it, so that none is
lost or doubled. A pass over ``n > 1`` passages takes ``1 + ceil((n - window_size) / stride)`` windows,
one if `window_size` is ``n`` or more. All queries advance in lockstep.

Reference: Sun et al., EMNLP 2023.
"""

import logging
import math
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import replace
from itertools import chain, product
from typing import Any, Protocol

import numpy as np
import pandas as pd

from rdl_core.config import WindowConfig
from rdl_core.data.formats import from_frame
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
    """Places of the windows of one pass over `n` passages; takes the fields of `WindowConfig`."""
    config = checked(WindowConfig, windows, what="plan_windows")
    if n < 2:
        return []
    starts = [*range(n - config.window_size, 0, -config.stride), 0]
    return [range(start, min(start + config.window_size, n)) for start in starts]


def rank_lists(
    candidates: pd.DataFrame, backend: Backend, *, answers: AnswerLog | None = None, **windows: Any
) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Rank each query's candidates by asking a backend.

    Args:
        candidates: ``query_id``, ``query``, ``doc_id``, ``text`` (all str), ``rank`` (1 is best).
        backend: Who answers.
        answers: Where answers are looked up before asking, and stored as they come.
        windows: Fields of `rdl_core.config.WindowConfig`. A window without a usable answer after
            `max_retries` retries keeps its order.

    Returns:
        The candidates with ``teacher_rank``, a permutation of 1..n in each query; and a report, a row
        per query: ``n_windows`` = ``n_clean`` + ``n_repaired`` + ``n_unusable``; ``n_missing``,
        ``n_repeated``, ``n_unknown`` over last answers; ``n_calls``, ``n_retries``, ``input_tokens``,
        ``output_tokens`` over all, stored ones too (NA if not counted); ``why`` some were unusable.
    """
    config = checked(WindowConfig, windows, what="rank_lists")
    check_candidates(candidates)
    frame = candidates.reset_index(drop=True)
    queries, doc_ids, texts = (frame[x].to_numpy(object) for x in ("query", "doc_id", "text"))
    by_query = frame.groupby("query_id", sort=False)["rank"]
    orders = {x: ranks.sort_values(kind="stable").index.to_numpy(copy=True) for x, ranks in by_query}
    plans = {n: plan_windows(n, **windows) for n in set(map(len, orders.values()))}
    counts, why = {query_id: dict.fromkeys(_COUNTS, 0) for query_id in orders}, defaultdict(list)
    n_tries = 1 + config.max_retries if backend.can_retry else 1
    n_steps = max(map(len, plans.values()), default=0)
    for pass_number, step in product(range(1, config.passes + 1), range(n_steps)):
        asked = []
        for query_id, order in orders.items():
            if step < len(plan := plans[len(order)]):
                rows, own = order[plan[step]], {"pass_number": pass_number, "start": plan[step].start}
                own |= {"query": queries[rows[0]], "passages": tuple(texts[rows])}
                asked.append(Window(query_id=query_id, doc_ids=tuple(doc_ids[rows]), **own))
        for attempt in range(n_tries):
            asked = [replace(window, attempt=attempt) for window in asked]
            left = []
            for window, answer in zip(asked, ask_all(asked, backend, answers), strict=True):
                reading, n = answer.read(len(window)), {"n_retries": int(attempt > 0), **vars(answer)}
                if reading.status == "unusable" and attempt + 1 < n_tries:
                    left.append(window)
                else:
                    n |= {"n_windows": 1, f"n_{reading.status}": 1, **vars(reading)}
                    rows = orders[window.query_id][window.start :][: len(window)]  # a view
                    rows[:] = rows[[*reading.order]]
                    if reading.status == "unusable":
                        why[window.query_id].append(answer.why or "no ranking in the answer")
                for name in n.keys() & {*_COUNTS}:
                    counts[window.query_id][name] += math.nan if n[name] is None else n[name]
            asked = left
    teacher_rank = np.zeros(len(frame), dtype="int64")
    for order in orders.values():
        teacher_rank[order] = np.arange(1, len(order) + 1)
    rows = [{"query_id": x, **n, "why": "; ".join(dict.fromkeys(why[x]))} for x, n in counts.items()]
    report = pd.DataFrame(rows, columns=["query_id", *_COUNTS, "why"])
    report = report.astype({"query_id": "str", "why": "str"} | dict.fromkeys(_COUNTS, "Int64"))
    if reasons := Counter(chain.from_iterable(why.values())).most_common(3):
        told = "; ".join(f"{reason} ({n} times)" for reason, n in reasons)
        sums = report["n_unusable"].sum(), report["n_windows"].sum()
        _log.warning("%d of %d windows had no usable answer, left in order: %s", *sums, told)
    return candidates.assign(teacher_rank=teacher_rank), report


def ask_all(windows: list[Window], backend: Backend, log: AnswerLog | None) -> list[Answer]:
    """An answer for each window, from the log or else the backend."""
    answers = [None if log is None else log.get(window) for window in windows]
    new = [i for i, answer in enumerate(answers) if answer is None]
    for number, answer in backend.ask([windows[i] for i in new]) if new else ():
        answers[new[number]] = answer
        if log is not None:
            log.add(windows[new[number]], answer)
    if missing := [windows[i].key for i in new if answers[i] is None]:
        which = f"{len(missing)} of {len(new)} windows, such as {missing[0]}"
        raise ValueError(f"{type(backend).__name__}.ask gave no answer for {which}")
    return answers


def check_candidates(candidates: pd.DataFrame) -> None:
    """Refuse a frame that a teacher cannot rank; ValueError says why."""
    columns = ["query_id", "query", "doc_id", "text", "rank"]
    if missing := ", ".join(x for x in columns if x not in candidates):
        raise ValueError(f"candidates lack {missing}: merge queries and passages into the frame")
    if len(candidates):
        from_frame(candidates[columns])  # refuses a passage that is there twice, and wrong kinds
    if (several := candidates.groupby("query_id")["query"].nunique() > 1).any():
        told = f"candidates: query {several.idxmax()!r} has several texts"
        raise ValueError(f"{told}: give each its own id")
