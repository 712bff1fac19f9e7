"""Ranked lists: whatever the order of the rows, column j is first-stage rank j + 1.

Mutations seen to fail: what a left join leaves empty kept as NaN; rows in their own order instead of
by rank; ranks of a cut from one sorting instead of two, or 1 where nobody ranked; unknown ids taken;
a passage that stands twice taken, where its rank differs; scores 0 where nobody scored or where
lists end, or moved by a cut.
"""

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from rdl_core.lists import RankedLists

few = settings(derandomize=True, deadline=None, max_examples=60, database=None)
QUERY_IDS, DOC_IDS = pd.Index(["q0", "q1", "q2"]), pd.Index(["d0", "d1", "d2", "d3"])
FRAME = pd.DataFrame(
    [
        ("q2", "d3", 1, 2, 0), ("q2", "d0", 2, 3, 3), ("q2", "d1", 3, 1, None),
        ("q0", "d1", 1, 1, None), ("q0", "d2", 4, 2, 1),
    ],
    columns=["query_id", "doc_id", "rank", "teacher_rank", "relevance"],
)


def make(frame):
    return RankedLists.from_frame(frame, QUERY_IDS, DOC_IDS)


def by_query(lists):
    """Each list by the row of its query, so that the order of the lists does not matter."""
    parts = (lists.passage_rows, lists.teacher_rank, lists.relevance, lists.mask)
    return {q: [p[i].tolist() for p in parts] for i, q in enumerate(lists.query_rows.tolist())}


@few
@given(order=st.permutations(range(len(FRAME))))
def test_any_order_of_rows_gives_the_same_padded_lists(order):
    lists = make(FRAME.iloc[order])
    assert by_query(lists) == {
        2: [[3, 0, 1], [2, 3, 1], [0, 3, -1], [True, True, True]],
        0: [[1, 2, 0], [1, 2, 0], [-1, 1, -1], [True, True, False]],
    }
    assert {lists.query_rows.dtype, lists.teacher_rank.dtype, lists.relevance.dtype} == {torch.int64}
    assert len(lists) == 2


def test_what_nobody_ranked_or_judged_is_0_and_minus_1():
    lists = make(FRAME[["query_id", "doc_id", "rank"]])
    assert (lists.teacher_rank == 0).all()
    assert (lists.relevance == -1).all()
    assert lists.mask.sum() == 5


def test_teacher_scores_are_nan_where_there_are_none():
    scored = make(FRAME.assign(teacher_score=[0.5, -1.5, 2.0, 0.0, np.nan]))
    rows = dict(zip(scored.query_rows.tolist(), scored.teacher_score, strict=True))
    assert rows[2].tolist() == [0.5, -1.5, 2.0]
    assert rows[0][0] == 0.0
    assert rows[0][1:].isnan().all()
    assert rows[0].dtype == torch.float32
    assert make(FRAME).teacher_score.isnan().all()
    both = RankedLists.concat([scored.cut(1), scored])
    assert both.teacher_score[:2, 1:].isnan().all()
    assert torch.allclose(both.teacher_score[2:], scored.teacher_score, equal_nan=True)


def test_candidates_that_the_teacher_left_out_have_rank_0():
    """A left join gives NaN for them, which once became the rank -9223372036854775808."""
    left_out = FRAME.assign(teacher_rank=[2, 3, 1, 1, np.nan])
    assert by_query(make(left_out))[0][1] == [1, 0, 0]


def test_no_candidates_give_no_lists():
    lists = make(FRAME[:0])
    assert len(lists) == 0
    assert lists.mask.shape == (0, 0)


def test_take_and_to_keep_lists_whole():
    lists = make(FRAME)
    taken = lists.take(torch.tensor([1, 0, 1]))
    both = by_query(lists)
    assert taken.query_rows.tolist() == [lists.query_rows[i].item() for i in (1, 0, 1)]
    assert by_query(taken) == both == by_query(lists.to("cpu"))
    assert make(FRAME).to("meta").mask.device.type == "meta"


# --- cutting ------------------------------------------------------------------------------------


@st.composite
def teacher_ranks(draw):
    """Teacher's ranks of up to five lists of a common depth, short and partly ranked ones too."""
    depth = draw(st.integers(1, 8))
    rows = []
    for _ in range(draw(st.integers(1, 5))):
        ranks = draw(st.permutations(range(1, depth + 1)))
        ranked = draw(st.lists(st.booleans(), min_size=depth, max_size=depth))
        rows.append([r if keep else 0 for r, keep in zip(ranks, ranked, strict=True)])
    return torch.tensor(rows)


@few
@given(ranks=teacher_ranks(), depth=st.integers(1, 10))
def test_cut_ranks_again_from_1_in_the_same_order(ranks, depth):
    n, full = ranks.shape
    columns = torch.arange(n * full).view(n, full)
    lists = RankedLists(
        query_rows=torch.arange(n), passage_rows=columns, teacher_rank=ranks,
        teacher_score=-columns.float(), relevance=columns + 1, mask=torch.ones(n, full, dtype=torch.bool),
    )
    cut = lists.cut(depth)
    kept = min(depth, full)
    for before, after in zip(ranks[:, :kept].tolist(), cut.teacher_rank.tolist(), strict=True):
        places = {rank: i + 1 for i, rank in enumerate(sorted(r for r in before if r))}
        assert after == [places.get(rank, 0) for rank in before]
    assert cut.passage_rows.tolist() == columns[:, :kept].tolist()
    assert cut.teacher_score.tolist() == (-columns[:, :kept]).tolist()
    assert cut.relevance.tolist() == (columns[:, :kept] + 1).tolist()
    assert cut.mask.shape == (n, kept)
    assert lists.teacher_rank is ranks  # the lists that were cut stay as they were


def test_cut_needs_a_depth():
    with pytest.raises(ValueError, match="at least 1, got 0"):
        make(FRAME).cut(0)


# --- errors -------------------------------------------------------------------------------------


@pytest.mark.parametrize("column", ["query_id", "doc_id", "rank"])
def test_missing_column_is_named(column):
    with pytest.raises(ValueError, match=rf"missing: \['{column}'\]"):
        make(FRAME.drop(columns=column))


@pytest.mark.parametrize(("column", "what"), [("query_id", "query"), ("doc_id", "passage")])
def test_unknown_id_is_named(column, what):
    frame = FRAME.copy()
    frame.loc[3, column] = "nobody"
    with pytest.raises(ValueError, match=f"every {what} id to be in .*'nobody' is not"):
        make(frame)


def test_passage_twice_is_named():
    frame = pd.concat([FRAME, FRAME.iloc[[1]].assign(rank=9)])
    with pytest.raises(ValueError, match="'d0' stands twice for query 'q2'"):
        make(frame)
