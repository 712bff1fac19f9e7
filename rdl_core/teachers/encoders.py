"""Encoders as teachers: orders of candidates from a bi-encoder's similarity, alone or fused."""

from __future__ import annotations

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
    standard = []
    for score in scores:
        by_query = pd.Series(score, candidates.index, dtype="float64").groupby(candidates["query_id"])
        spread = by_query.transform("std", ddof=0).replace(0.0, 1.0)
        standard.append(((score - by_query.transform("mean")) / spread).to_numpy())
    return np.sum(standard, axis=0)


def add_teacher_rank(candidates: pd.DataFrame, scores: np.ndarray) -> pd.DataFrame:
    """Candidates with a column ``teacher_rank``: by score, equal scores by first-stage rank."""
    keys = pd.DataFrame(  # by place: the index of the candidates may repeat
        {"query_id": candidates["query_id"].array, "score": -scores, "rank": candidates["rank"].array}
    )
    places = keys.sort_values(["query_id", "score", "rank"]).groupby("query_id").cumcount()
    return candidates.assign(teacher_rank=places.sort_index().to_numpy() + 1)
