"""Encoders as teachers: similarity, fusion and ranks, against arithmetic."""

import numpy as np
import pandas as pd
import pytest

from rdl_core.teachers.encoders import add_teacher_rank, fuse, similarity


def make(rows, index=None):
    cells = [row.split() for row in rows.split(",")]
    frame = pd.DataFrame(cells, columns=["query_id", "doc_id", "rank"], index=index)
    return frame.astype({"rank": int})


def test_similarity_is_the_inner_product_of_a_pair_and_unknown_ids_are_refused():
    """An unknown id once took the vector of the last text, in silence."""
    own = pd.Index(["qa", "qb"]), np.array([[1, 0], [0.6, 0.8]], "f4"), pd.Index(["d0", "d1", "d2"])
    passages = np.array([[0, 1], [1, 0], [0.8, 0.6]], "f4")
    found = similarity(make("qb d2 1, qa d1 1, qb d0 2, qa d0 2"), *own, passages)
    assert found.dtype == np.float32
    assert found.tolist() == pytest.approx([0.6 * 0.8 + 0.8 * 0.6, 1, 0.8, 0])
    for rows, unknown in (("qx d0 1", "qx"), ("qa dx 1", "dx")):
        with pytest.raises(ValueError, match=unknown):
            similarity(make(rows), *own, passages)


def test_fuse_adds_scores_standardised_within_each_query():
    candidates = make("qa d0 1, qb d0 1, qa d1 2, qb d1 2, qa d2 3", index=[9, 9, 4, 1, 0])
    scores, same = np.array([1.0, 10, 2, 30, 6]), np.array([5.0, 7, 5, 7, 5])
    spread = np.sqrt(((1 - 3) ** 2 + (2 - 3) ** 2 + (6 - 3) ** 2) / 3)
    expected = np.array([-2 / spread, -1, -1 / spread, 1, 3 / spread])
    assert fuse(candidates, scores) == pytest.approx(expected)
    assert fuse(candidates, scores, same) == pytest.approx(expected)  # equal scores say nothing
    assert fuse(candidates, scores, scores * 100 - 7) == pytest.approx(2 * expected)


def test_teacher_ranks_go_by_score_then_first_stage_rank_whatever_the_index():
    """Frames put together with ``concat`` repeat their index; ranks must not mix the rows up."""
    frame = make("qb d0 2, qa d1 3, qa d2 1, qb d3 1, qa d4 2", index=[0, 1, 0, 1, 0])
    before = frame.copy()
    found = add_teacher_rank(frame, np.array([0.5, 2.0, 0.5, 0.5, 0.5]))
    assert found["teacher_rank"].tolist() == [2, 1, 2, 1, 3]
    assert found.drop(columns="teacher_rank").equals(before)
    assert frame.equals(before)
