"""Encoders as teachers: orders of candidates from a bi-encoder's similarity, alone or fused."""

import numpy as np
import pandas as pd

from rdl_core.lists import rows_of

__all__ = ["add_teacher_rank", "fuse", "similarity"]


def similarity(
    candidates: pd.DataFrame, query_ids: pd.Index, query_vectors: np.ndarray, doc_ids: pd.Index,
    passage_vectors: np.ndarray,
) -> np.ndarray:  # fmt: skip
    """Inner product of each candidate's vector ``[dim]`` with its query's; float32 ``[rows]``.

    Vectors are in the order of the ids; ValueError names a candidate that has none.
    """
    queries = query_vectors[rows_of(candidates["query_id"], query_ids, "query")]
    passages = passage_vectors[rows_of(candidates["doc_id"], doc_ids, "passage")]
    return np.einsum("nd,nd->n", queries, passages)


def fuse(candidates: pd.DataFrame, *scores: np.ndarray) -> np.ndarray:
    """Sum of scores, each standardised within its query; float64 ``[rows]``."""
    columns = pd.DataFrame(np.stack(scores, axis=1), dtype="float64")
    by_query = columns.groupby(candidates["query_id"].array)  # by place: their index may repeat
    spread = by_query.transform("std", ddof=0).replace(0.0, 1.0)
    return ((columns - by_query.transform("mean")) / spread).to_numpy().sum(axis=1)


def add_teacher_rank(candidates: pd.DataFrame, scores: np.ndarray) -> pd.DataFrame:
    """Candidates with a column ``teacher_rank``: by score, equal scores by first-stage rank."""
    keys = candidates[["query_id", "rank"]].reset_index(drop=True).assign(score=-scores)
    places = keys.sort_values(["query_id", "score", "rank"]).groupby("query_id").cumcount()
    return candidates.assign(teacher_rank=places.sort_index().to_numpy() + 1)
