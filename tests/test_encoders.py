"""Encoders as teachers: similarity, fusion and ranks, against arithmetic.

Mutations seen to fail: ranks in sorted order instead of the rows'; the worst first; ties in any
order; a spread of 0 divided by; centred over all queries; the sample's spread instead of the
list's.
"""

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rdl_core.teachers.encoders import add_teacher_rank, fuse, similarity

few = settings(derandomize=True, deadline=None, max_examples=60, database=None)
QUERY_IDS, DOC_IDS = pd.Index(["qa", "qb"]), pd.Index(["d0", "d1", "d2"])
QUERIES = np.array([[1, 0], [0.6, 0.8]], "f4")
PASSAGES = np.array([[0, 1], [1, 0], [0.8, 0.6]], "f4")


def make(rows, index=None):
    cells = [row.split() for row in rows.split(",")]
    frame = pd.DataFrame(cells, columns=["query_id", "doc_id", "rank"], index=index)
    return frame.astype({"rank": int})


def test_similarity_is_the_inner_product_of_a_pair():
    found = similarity(
        make("qb d2 1, qa d1 1, qb d0 2, qa d0 2"), QUERY_IDS, QUERIES, DOC_IDS, PASSAGES
    )
    assert found.dtype == np.float32
    assert found.tolist() == pytest.approx([0.6 * 0.8 + 0.8 * 0.6, 1, 0.8, 0])


@pytest.mark.parametrize("rows", ["qx d0 1", "qa dx 1"])
def test_similarity_of_an_unknown_id_is_an_error(rows):
    """An unknown id once took the vector of the last text, in silence."""
    with pytest.raises(ValueError, match=rows.split()[rows == "qa dx 1"]):
        similarity(make(rows), QUERY_IDS, QUERIES, DOC_IDS, PASSAGES)


def test_fuse_adds_scores_standardised_within_each_query():
    candidates = make("qa d0 1, qb d0 1, qa d1 2, qb d1 2, qa d2 3", index=[9, 9, 4, 1, 0])
    one, two = np.array([1.0, 10, 2, 30, 6]), np.array([5.0, 7, 5, 7, 5])
    spread = np.sqrt(((1 - 3) ** 2 + (2 - 3) ** 2 + (6 - 3) ** 2) / 3)
    expected = [-2 / spread, -1, -1 / spread, 1, 3 / spread]
    assert fuse(candidates, one).tolist() == pytest.approx(expected)
    assert fuse(candidates, one, two).tolist() == pytest.approx(expected)  # two says nothing
    assert fuse(candidates, one, one * 100 - 7).tolist() == pytest.approx([2 * x for x in expected])


@few
@given(data=st.data())
def test_teacher_ranks_are_permutations_by_score_then_first_stage_rank(data):
    sizes = data.draw(st.lists(st.integers(1, 6), min_size=1, max_size=4))
    rows = [(f"q{q}", f"d{r}", r + 1) for q, size in enumerate(sizes) for r in range(size)]
    rows = data.draw(st.permutations(rows))
    index = data.draw(st.sampled_from(["fresh", "shifted"]))
    frame = pd.DataFrame(rows, columns=["query_id", "doc_id", "rank"])
    frame.index += 0 if index == "fresh" else 5
    scores = np.array(data.draw(st.lists(st.sampled_from([0.0, 0.5, 2.0]), min_size=len(rows),
                                         max_size=len(rows))))
    before = frame.copy()
    found = add_teacher_rank(frame, scores)
    assert frame.equals(before)
    assert found.drop(columns="teacher_rank").equals(frame)
    for query_id in frame["query_id"].unique():
        own = (frame["query_id"] == query_id).to_numpy()
        keys = list(zip(-scores[own], frame["rank"][own], strict=True))
        expected = [sorted(keys).index(key) + 1 for key in keys]
        assert found["teacher_rank"][own].tolist() == expected


def test_teacher_ranks_of_rows_with_a_repeated_index():
    """Frames put together with ``concat`` repeat their index; ranks must not mix the rows up."""
    frame = make("qa d0 1, qa d1 2, qa d2 3", index=[0, 1, 0])
    assert add_teacher_rank(frame, np.array([1.0, 3.0, 2.0]))["teacher_rank"].tolist() == [3, 1, 2]
