"""What happens to data before a student sees them, as systems of a race; no student, no weights.

Each function takes the work and returns what a worker calls. The work is a dict: ``passages`` and
``queries`` (folders of token stores), ``candidates`` (a parquet file), ``doc_ids`` and ``query_ids``
(parquet files of the ids in the stores' order), ``template`` (fields of a `PairTemplate`),
``query_tokens``, ``passage_tokens``, ``n_lists`` and ``list_size``.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pandas as pd

from rdl_core.data.formats import read_candidates
from rdl_core.lists import RankedLists
from rdl_core.tokens import PairTemplate, TokenStore, pack, plan_batches
from rdl_core.stage import StageConfig
from rdl_core.step import draw

__all__ = ["draw_batch", "make_lists", "open_store"]

_TOKENS_AT_ONCE = 16_384


def open_store(work: dict) -> Callable[[int], int]:
    """Open the passages' token store, and read one passage; gives the number of passages.

    >>> open_store(full_size_work)(0)
    50
    """

    def call(number: int) -> int:
        store = TokenStore.open(Path(work["passages"]))
        store.gather(store.offsets.new_tensor([number]), work["passage_tokens"])
        return len(store)

    return call


def make_lists(work: dict) -> Callable[[int], int]:
    """Read candidates from parquet, find their rows in the stores, make tensors; gives their number.

    >>> make_lists(full_size_work)(0)
    4
    """

    def call(number: int) -> int:
        return len(_lists(work))

    return call


def draw_batch(work: dict) -> Callable[[int], int]:
    """Draw a step's lists, gather and pack them; gives their tokens.

    >>> draw_batch(full_size_work)(0) > 0
    True
    """
    lists = _lists(work)
    queries, passages = (TokenStore.open(Path(work[name])) for name in ("queries", "passages"))
    template = PairTemplate(**{k: tuple(v) for k, v in work["template"].items()})
    limits = {name: work[name] for name in ("query_tokens", "passage_tokens")}
    config = StageConfig(
        sampler="random", loss="ranknet", targets="teacher", list_size=work["list_size"],
        queries_per_step=work["n_lists"], steps=1, learning_rate=1e-5,
    )

    def call(number: int) -> int:
        batch, sampled = draw(lists, config, seed=0, step=number)
        passage_rows = batch.passage_rows.gather(1, sampled.indices).flatten()
        query_rows = batch.query_rows.repeat_interleave(work["list_size"])
        lengths = queries.lengths(query_rows, limits["query_tokens"]) + template.n_tokens
        lengths += passages.lengths(passage_rows, limits["passage_tokens"])
        packed = [
            pack(queries, passages, query_rows[rows], passage_rows[rows], template=template, **limits)
            for rows in plan_batches(lengths, _TOKENS_AT_ONCE)
        ]
        return sum(len(part.input_ids) for part in packed)

    return call


def _lists(work: dict) -> RankedLists:
    query_ids, doc_ids = (
        pd.Index(pd.read_parquet(work[name])["id"]) for name in ("query_ids", "doc_ids")
    )
    return RankedLists.from_frame(read_candidates(work["candidates"]), query_ids, doc_ids)
