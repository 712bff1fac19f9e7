"""Ranked lists: what a teacher, a first stage and the judgments say of each query, as tensors.

Frames come in, tensors go to the middle. The list axis is the second; column ``j`` of every tensor
is the candidate at first-stage rank ``j + 1``.

Reference: the shape of Rank-DistiLLM's data, Schlatt et al., ECIR 2025, section 3.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, fields, replace

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
import torch
from torch import Tensor
from torch.nn.functional import pad

__all__ = ["RankedLists", "rows_of"]


@dataclass(frozen=True, kw_only=True)
class RankedLists:
    """Candidates of `n` queries, at most `depth` each, padded to the right.

    >>> frame = pd.DataFrame({"query_id": ["a", "a"], "doc_id": ["x", "y"], "rank": [1, 2],
    ...                       "teacher_rank": [2, 1]})
    >>> lists = RankedLists.from_frame(frame, pd.Index(["a"]), pd.Index(["y", "x"]))
    >>> lists.passage_rows, lists.teacher_rank
    (tensor([[1, 0]]), tensor([[2, 1]]))
    """

    query_rows: Tensor
    """int64 ``[n]``: row of each query in its token store."""
    passage_rows: Tensor
    """int64 ``[n, depth]``: row of each candidate in the passages' token store."""
    teacher_rank: Tensor
    """int64 ``[n, depth]``: 1 is best; 0 where no teacher ranked or `mask` is False."""
    teacher_score: Tensor
    """float32 ``[n, depth]``: higher is better; NaN where no teacher scored or `mask` is False."""
    relevance: Tensor
    """int64 ``[n, depth]``: judged grade; -1 where nobody judged or `mask` is False."""
    mask: Tensor
    """bool ``[n, depth]``: True for a real candidate."""

    @classmethod
    def from_frame(
        cls, candidates: pd.DataFrame, query_ids: pd.Index, doc_ids: pd.Index
    ) -> RankedLists:
        """Make tensors from a frame of candidates.

        Args:
            candidates: ``query_id``, ``doc_id``, ``rank`` (1 is best) and, where known,
                ``teacher_rank``, ``teacher_score`` and ``relevance``; any order of rows.
            query_ids: Ids in the order of the queries' token store.
            doc_ids: Ids in the order of the passages' token store.

        Raises:
            ValueError: A column is missing, an id is not in its store, or a passage stands twice
                in one query's candidates.
        """
        if missing := {"query_id", "doc_id", "rank"} - set(candidates.columns):
            raise ValueError(
                f"expected candidates with columns query_id, doc_id, rank; missing: {sorted(missing)}"
            )
        if (twice := candidates.duplicated(["query_id", "doc_id"])).any():
            query_id, doc_id = candidates.loc[twice, ["query_id", "doc_id"]].iloc[0]
            raise ValueError(
                f"expected each passage once per query, but {doc_id!r} stands twice for query "
                f"{query_id!r}: remove duplicates first"
            )
        frame = candidates.sort_values(["query_id", "rank"], kind="stable")
        list_number, kept_ids = pd.factorize(frame["query_id"])
        place = frame.groupby("query_id").cumcount().to_numpy()
        shape = (len(kept_ids), int(place.max(initial=-1)) + 1)
        where = (torch.tensor(list_number), torch.tensor(place))

        def table(values: pd.Series | None, empty: float, dtype: str = "int64") -> Tensor:
            tensor = torch.full(shape, empty, dtype=getattr(torch, dtype))
            if values is not None:
                tensor[where] = torch.from_numpy(values.to_numpy(dtype=dtype, copy=True))
            return tensor

        def known(column: str, empty: float, dtype: str = "int64") -> Tensor:
            return table(frame[column].fillna(empty) if column in frame else None, empty, dtype)

        return cls(
            query_rows=torch.from_numpy(rows_of(pd.Series(kept_ids), query_ids, "query")),
            passage_rows=table(pd.Series(rows_of(frame["doc_id"], doc_ids, "passage")), 0),
            teacher_rank=known("teacher_rank", 0),
            teacher_score=known("teacher_score", math.nan, "float32"),
            relevance=known("relevance", -1),
            mask=table(pd.Series(1, index=frame.index), 0).bool(),
        )

    @classmethod
    def concat(cls, parts: Sequence[RankedLists]) -> RankedLists:
        """All lists of several sets, padded to the deepest; a query may have a list in each.

        >>> frame = pd.DataFrame({"query_id": ["a", "a"], "doc_id": ["x", "y"], "rank": [1, 2]})
        >>> parts = [RankedLists.from_frame(f, pd.Index(["a"]), pd.Index(["x", "y"]))
        ...          for f in (frame, frame[:1])]
        >>> RankedLists.concat(parts).mask
        tensor([[ True,  True],
                [ True, False]])
        """
        depth = max(part.mask.shape[1] for part in parts)
        empty = {
            "teacher_rank": 0, "teacher_score": math.nan, "relevance": -1, "passage_rows": 0,
            "mask": False,
        }  # fmt: skip
        return cls(
            query_rows=torch.cat([part.query_rows for part in parts]),
            **{
                name: torch.cat(
                    [
                        pad(table, (0, depth - table.shape[1]), value=value)
                        for table in (getattr(part, name) for part in parts)
                    ]
                )
                for name, value in empty.items()
            },
        )

    def __len__(self) -> int:
        return len(self.query_rows)

    def to(self, device: torch.device | str) -> RankedLists:
        """The same lists on another device."""
        return replace(self, **{f.name: getattr(self, f.name).to(device) for f in fields(self)})

    def take(self, which: Tensor) -> RankedLists:
        """Some of the lists, by int64 index ``[m]``."""
        return replace(self, **{f.name: getattr(self, f.name)[which] for f in fields(self)})

    def cut(self, depth: int) -> RankedLists:
        """The first `depth` candidates; teacher ranks become 1..depth again, in the same order.

        Shallower training data are cut from the teacher's deep order, not ranked anew (Schlatt et
        al., ECIR 2025), so that a cut changes the depth alone.
        """
        if depth < 1:
            raise ValueError(f"expected a depth of at least 1, got {depth}")
        mask = self.mask[:, :depth]
        ranks = self.teacher_rank[:, :depth]
        ranked = ranks > 0
        last = torch.where(ranked, ranks, torch.iinfo(torch.int64).max)
        again = last.argsort(dim=1).argsort(dim=1) + 1
        return replace(
            self,
            passage_rows=self.passage_rows[:, :depth],
            teacher_rank=torch.where(ranked, again, 0),
            teacher_score=self.teacher_score[:, :depth],
            relevance=self.relevance[:, :depth],
            mask=mask,
        )


def rows_of(ids: pd.Series, store_ids: pd.Index, what: str) -> np.ndarray:
    """Row of each id in a store; int64 ``[n]``.

    Args:
        ids: Any number of ids, repeats allowed.
        store_ids: Ids in the order of the store's rows.
        what: What has these ids, for the error: ``"query"`` or ``"passage"``.

    Raises:
        ValueError: An id that is not in the store.

    >>> rows_of(pd.Series(["b", "a"]), pd.Index(["a", "b"]), "passage").tolist()
    [1, 0]
    """
    # Looking the store's ids up among the wanted ones: a hash table of millions of ids would take
    # longer to build than to use.
    number, asked = pd.factorize(ids)
    places = pc.index_in(_arrow(store_ids), value_set=_arrow(asked)).fill_null(-1).to_numpy()
    row_of = np.full(len(asked) + 1, -1)
    row_of[places] = np.arange(len(places))  # the last place is nobody's
    rows = row_of[:-1][number]
    if (rows < 0).any():
        unknown = ids[rows < 0].iloc[0]
        raise ValueError(
            f"expected every {what} id to be in the collection ({len(store_ids)} ids), but "
            f"{unknown!r} is not: were the candidates made for another collection?"
        )
    return rows


def _arrow(ids: pd.Index) -> pa.Array:
    return pa.array(ids.astype("str"), pa.large_string())
