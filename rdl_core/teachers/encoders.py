"""Encoders as teachers: orders of candidates from a bi-encoder's similarity, alone or fused.

At profile ``mini`` a small bi-encoder stands in for the LLM, so that the whole study runs on a
laptop without a network; every page that uses it says so. A teacher adds ``teacher_rank`` to a
frame of candidates: a permutation, 1 is best.
"""

from __future__ import annotations

import numpy as np
import pandas as pd

from rdl_core.lists import rows_of

__all__ = ["add_teacher_rank", "fuse", "similarity"]


def similarity(
    candidates: pd.DataFrame,
    query_ids: pd.Index,
    query_vectors: np.ndarray,
    doc_ids: pd.Index,
    passage_vectors: np.ndarray,
) -> np.ndarray:
    """Inner product of each candidate's vector with its query's; float32 ``[rows]``.

    Args:
        candidates: ``query_id`` and ``doc_id``.
        query_ids: Ids in the order of `query_vectors`.
        query_vectors: float32 ``[n_queries, dim]``.
        doc_ids: Ids in the order of `passage_vectors`.
        passage_vectors: float32 ``[n_passages, dim]``.

    Raises:
        ValueError: A candidate whose query or passage has no vector.

    >>> candidates, ids = pd.DataFrame({"query_id": ["q"], "doc_id": ["b"]}), pd.Index(["a", "b"])
    >>> vectors = np.eye(2, dtype=np.float32)
    >>> similarity(candidates, pd.Index(["q"]), vectors[1:], ids, vectors).tolist()
    [1.0]
    """
    queries = query_vectors[rows_of(candidates["query_id"], query_ids, "query")]
    passages = passage_vectors[rows_of(candidates["doc_id"], doc_ids, "passage")]
    return np.einsum("nd,nd->n", queries, passages)


def fuse(candidates: pd.DataFrame, *scores: np.ndarray) -> np.ndarray:
    """Sum of scores, each standardised within its query; float64 ``[rows]``.

    >>> candidates = pd.DataFrame({"query_id": ["q", "q", "q"]})
    >>> fuse(candidates, np.array([1.0, 2.0, 3.0]), np.array([9.0, 7.0, 5.0])).round(6).tolist()
    [0.0, 0.0, 0.0]
    """
    standard = [_standardised(candidates["query_id"], score) for score in scores]
    return np.sum(standard, axis=0)


def add_teacher_rank(candidates: pd.DataFrame, scores: np.ndarray) -> pd.DataFrame:
    """Candidates with a column ``teacher_rank``: by score, equal scores by first-stage rank.

    >>> candidates = pd.DataFrame({"query_id": ["q", "q"], "doc_id": ["a", "b"], "rank": [1, 2]})
    >>> add_teacher_rank(candidates, np.array([0.1, 0.9]))["teacher_rank"].tolist()
    [2, 1]
    """
    keys = pd.DataFrame(
        {"query_id": candidates["query_id"].array, "score": -scores, "rank": candidates["rank"].array}
    )  # by place: the index of the candidates may repeat
    places = keys.sort_values(["query_id", "score", "rank"]).groupby("query_id").cumcount()
    return candidates.assign(teacher_rank=places.sort_index().to_numpy() + 1)


def _standardised(query_ids: pd.Series, scores: np.ndarray) -> np.ndarray:
    by_query = pd.Series(scores, query_ids.index, dtype="float64").groupby(query_ids)
    centred = scores - by_query.transform("mean")
    spread = by_query.transform("std", ddof=0).replace(0.0, 1.0)
    return (centred / spread).to_numpy()
