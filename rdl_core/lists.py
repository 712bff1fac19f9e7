"""Ranked lists: what a teacher, a first stage and the judgments say of each query, as tensors.

Column ``j`` of every tensor is the candidate at first-stage rank ``j + 1``.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import pandas as pd
import torch
from torch import Tensor
from torch.nn.functional import pad

from rdl_core.tokens import TokenCorpus, TokenStore

__all__ = ["RankedLists", "rows_of"]

# Tables [n, depth], and what stands where there is no candidate or nothing is known of it.
_EMPTY = dict(passage_rows=0, teacher_rank=0, teacher_score=math.nan, relevance=-1, mask=False)


@dataclass(frozen=True, kw_only=True)
class RankedLists:
    """Candidates of `n` queries, at most `depth` each, padded to the right, and their texts."""

    queries: TokenStore
    passages: TokenStore
    query_rows: Tensor  #: int64 ``[n]``: row of each query in `queries`.
    passage_rows: Tensor  #: int64 ``[n, depth]``: row of each candidate in `passages`.
    teacher_rank: Tensor  #: int64 ``[n, depth]``: 1 is best; 0 where not ranked or masked.
    teacher_score: Tensor  #: float32 ``[n, depth]``: higher is better; NaN where not scored or masked.
    relevance: Tensor  #: int64 ``[n, depth]``: judged grade; -1 where not judged or masked.
    mask: Tensor  #: bool ``[n, depth]``: True for a real candidate.
    query_ids: Sequence[str] = ()  #: Ids of the rows of `queries`, for messages.

    @classmethod
    def from_frame(cls, candidates: pd.DataFrame, corpus: TokenCorpus) -> RankedLists:
        """Make tensors from ``query_id``, ``doc_id``, ``rank`` (1 is best) and, where known,
        ``teacher_rank``, ``teacher_score``, ``relevance``; any order of rows. ValueError where a column
        is missing, the corpus lacks an id, or a query has a passage twice.
        """
        if missing := {"query_id", "doc_id", "rank"} - set(candidates.columns):
            raise ValueError(f"expected columns query_id, doc_id, rank; missing: {sorted(missing)}")
        if (repeated := candidates.duplicated(["query_id", "doc_id"])).any():
            query_id, doc_id = candidates.loc[repeated, ["query_id", "doc_id"]].iloc[0]
            raise ValueError(f"{doc_id!r} stands twice for query {query_id!r}: remove duplicates first")
        frame = candidates.sort_values(["query_id", "rank"], kind="stable").assign(mask=True)
        frame["passage_rows"] = rows_of(frame["doc_id"], corpus.doc_ids, "passage")
        list_number, query_ids = pd.factorize(frame["query_id"])
        column = frame.groupby("query_id").cumcount().to_numpy()
        shape, tables = (len(query_ids), int(column.max(initial=-1)) + 1), {}
        for name, empty in _EMPTY.items():
            tables[name] = torch.full(shape, empty)
            if name in frame:
                tables[name].numpy()[list_number, column] = frame[name].fillna(empty)
        query_rows = torch.from_numpy(rows_of(query_ids.to_series(), corpus.query_ids, "query"))
        texts = {"queries": corpus.queries, "passages": corpus.passages, "query_ids": corpus.query_ids}
        return cls(query_rows=query_rows, **texts, **tables)

    @classmethod
    def concat(cls, parts: Sequence[RankedLists]) -> RankedLists:
        """Lists of several sets over one corpus, padded to the deepest; a query may be in several."""
        depth = max(lists.mask.shape[1] for lists in parts)
        tables = {"query_rows": torch.cat([lists.query_rows for lists in parts])}
        for name, empty in _EMPTY.items():
            padded = [pad(getattr(x, name), (0, depth - x.mask.shape[1]), value=empty) for x in parts]
            tables[name] = torch.cat(padded)
        return replace(parts[0], **tables)

    def __len__(self) -> int:
        return len(self.query_rows)

    def to(self, device: torch.device | str) -> RankedLists:
        """The same lists, texts included, on another device."""
        names = ("queries", "passages", "query_rows", *_EMPTY)
        return replace(self, **{name: getattr(self, name).to(device) for name in names})

    def take(self, which: Tensor) -> RankedLists:
        """Some of the lists, by int64 index ``[m]``."""
        return replace(self, **{x: getattr(self, x)[which] for x in ("query_rows", *_EMPTY)})


def rows_of(ids: pd.Series, store_ids: pd.Index, what: str) -> np.ndarray:
    """Row of each id, repeats too, in a store; int64 ``[n]``; ValueError names a `what` it lacks."""
    # The store's ids are looked up among the wanted: a hash table of millions is slow to build.
    number, wanted = pd.factorize(ids)  # -1 for no id
    places = pd.Index(wanted).get_indexer(store_ids)  # -1 where not wanted
    row_of = np.full(len(wanted) + 1, -1)
    row_of[places] = np.arange(len(places))  # the last place is nobody's
    row_of[-1] = -1
    rows = row_of[number]
    if len(lacking := ids[rows < 0]):
        told = f"expected every {what} id in the collection ({len(store_ids)} ids), but"
        raise ValueError(f"{told} {lacking.iloc[0]!r} is not: is it of another collection?")
    return rows
