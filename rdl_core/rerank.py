"""Re-ranking: candidates in, run out.

The student scores every candidate of every query, a bounded number of pairs at a time, so that
memory does not grow with the number of queries.
"""

from __future__ import annotations

from functools import partial

import numpy as np
import pandas as pd
import torch

from rdl_core.cpu import keep_pages, ready
from rdl_core.cross_encoder import CrossEncoder
from rdl_core.lists import RankedLists
from rdl_core.tokens import TokenStore
from rdl_core.devices import fitting
from rdl_core.progress import progress

__all__ = ["rerank", "token_budget_of"]

_PAIRS_AT_ONCE = 1024
# Of 512 to 4,096 tokens, this many were the fastest for each core of a CPU with 32 MiB of cache; a GPU
# needs more to be busy.
_TOKEN_BUDGETS = {"cpu": 1024, "cuda": 65_536}


def rerank(
    student: CrossEncoder,
    candidates: pd.DataFrame,
    queries: TokenStore,
    passages: TokenStore,
    *,
    query_ids: pd.Index,
    doc_ids: pd.Index,
    token_budget: int | None = None,
    precision: str = "float32",
) -> pd.DataFrame:
    """Score candidates with a student.

    Args:
        student: The cross-encoder.
        candidates: ``query_id``, ``doc_id``, ``rank``.
        queries: Token store of the queries.
        passages: Token store of the passages.
        query_ids: Ids in the order of `queries`.
        doc_ids: Ids in the order of `passages`.
        token_budget: Most tokens in one batch; None takes what suits the device. It is halved, and
            that is logged, where the device lacks the memory.
        precision: A key of `rdl_core.devices.PRECISIONS`, or on a CPU ``"int8"``, as
            `rdl_core.cpu.ready` has it. Scores are float32.

    Returns:
        ``query_id``, ``doc_id``, ``score`` for each candidate, grouped by query; equal scores are
        settled by `rdl_core.evaluate.settle_ties`, not here.

    Raises:
        ValueError: An id that a store does not have, or a score that is not finite.
        MemoryError: As `rdl_core.devices.fitting` has it.

    >>> run = rerank(tiny_student, frame, queries, passages, query_ids=pd.Index(["q", "r"]),
    ...              doc_ids=pd.Index(["a", "b", "c"]))
    >>> run["doc_id"].tolist(), run["score"].dtype.name
    (['a', 'b', 'c'], 'float32')
    """
    lists = RankedLists.from_frame(candidates, query_ids, doc_ids)
    depth = lists.mask.shape[1]
    query_rows = lists.query_rows.repeat_interleave(depth)[lists.mask.flatten()]
    passage_rows = lists.passage_rows[lists.mask]
    queries, passages = queries.to(student.device), passages.to(student.device)
    starts = range(0, len(query_rows), _PAIRS_AT_ONCE)
    scores = [torch.empty(0)]
    keep_pages()
    engine = ready(student, precision)
    budget = token_budget or token_budget_of(student.device)
    layers = "float32" if precision == "int8" else precision
    with torch.inference_mode():
        for start in progress(starts, total=len(starts), what="re-ranking"):
            here = slice(start, start + _PAIRS_AT_ONCE)
            rows = query_rows[here].to(student.device), passage_rows[here].to(student.device)
            score = partial(engine.score, queries, passages, *rows, precision=layers)
            found, budget = fitting(score, budget)
            scores.append(found.cpu())
    score = torch.cat(scores).numpy()
    run = pd.DataFrame(
        {
            "query_id": query_ids.to_numpy(object)[query_rows.numpy()],
            "doc_id": doc_ids.to_numpy(object)[passage_rows.numpy()],
            "score": score,
        }
    )
    if not np.isfinite(score).all():
        broken = run.loc[~np.isfinite(score), "query_id"].iloc[0]
        raise ValueError(
            f"expected finite scores, but the student gave nan or infinity for query {broken!r}: "
            "its weights are broken; train it again with a lower learning rate"
        )
    return run


def token_budget_of(device: torch.device) -> int:
    """Tokens in a batch that keep a device busy.

    >>> token_budget_of(torch.device("cpu"))
    1024
    """
    return _TOKEN_BUDGETS.get(device.type, _TOKEN_BUDGETS["cpu"])
