"""Ranked lists: whatever the order of the rows, column j is first-stage rank j + 1."""

import math

import pandas as pd
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from rdl_core.lists import RankedLists
from rdl_core.tokens import TokenCorpus, TokenStore

QUERIES, PASSAGES = TokenStore.from_lists([[1], [2], [3]]), TokenStore.from_lists([[4], [5], [6], [7]])
CORPUS = TokenCorpus(pd.Index("q0 q1 q2".split()), QUERIES, pd.Index("d0 d1 d2 d3".split()), PASSAGES)
FRAME = pd.DataFrame(
    [
        ("q2", "d3", 1, 2, 0), ("q2", "d0", 2, 3, 3), ("q2", "d1", 3, 1, None),
        ("q0", "d1", 1, 1, None), ("q0", "d2", 4, 2, 1),
    ],
    columns=["query_id", "doc_id", "rank", "teacher_rank", "relevance"],
)  # fmt: skip


def make(frame=FRAME):
    return RankedLists.from_frame(frame, CORPUS)


def by_query(lists):
    """Each list by the row of its query, so that the order of the lists does not matter."""
    parts = (lists.passage_rows, lists.teacher_rank, lists.relevance, lists.mask)
    return {q: [p[i].tolist() for p in parts] for i, q in enumerate(lists.query_rows.tolist())}


@settings(derandomize=True, deadline=None, max_examples=60, database=None)
@given(order=st.permutations(range(len(FRAME))))
def test_any_order_of_rows_gives_the_same_padded_lists(order):
    lists = make(FRAME.iloc[order])
    assert by_query(lists) == {
        2: [[3, 0, 1], [2, 3, 1], [0, 3, -1], [True, True, True]],
        0: [[1, 2, 0], [1, 2, 0], [-1, 1, -1], [True, True, False]],
    }
    assert {lists.query_rows.dtype, lists.teacher_rank.dtype, lists.relevance.dtype} == {torch.int64}
    assert (len(lists), lists.queries, lists.passages) == (2, QUERIES, PASSAGES)


def test_what_nobody_ranked_or_judged_is_0_and_minus_1():
    """A left join leaves NaN, which once became the rank -9223372036854775808."""
    lists = make(FRAME[["query_id", "doc_id", "rank"]])
    assert (lists.teacher_rank == 0).all()
    assert (lists.relevance == -1).all()
    assert lists.mask.sum() == 5
    assert by_query(make(FRAME.assign(teacher_rank=[2, 3, 1, 1, math.nan])))[0][1] == [1, 0, 0]
    assert make(FRAME[:0]).mask.shape == (0, 0)  # no candidates, no lists


def test_teacher_scores_are_nan_where_there_are_none():
    scored = make(FRAME.assign(teacher_score=[0.5, -1.5, 2.0, 0.0, math.nan]).sort_values("query_id"))
    expected = torch.tensor([[0.0, math.nan, math.nan], [0.5, -1.5, 2.0]])
    torch.testing.assert_close(scored.teacher_score, expected, equal_nan=True)
    both = RankedLists.concat([make(FRAME[FRAME["rank"] == 1]), scored])
    assert both.teacher_score[:2].isnan().all()
    torch.testing.assert_close(both.teacher_score[2:], expected, equal_nan=True)
    assert both.mask[:2].tolist() == [[True, False, False]] * 2


def test_take_and_to_keep_lists_whole():
    lists = make()
    taken = lists.take(torch.tensor([1, 0, 1]))
    assert taken.query_rows.tolist() == [lists.query_rows[i].item() for i in (1, 0, 1)]
    assert by_query(taken) == by_query(lists) == by_query(lists.to("cpu"))
    moved = lists.to("meta")
    assert {moved.mask.device.type, moved.passages.flat.device.type} == {"meta"}


@pytest.mark.parametrize(("change", "says"), [
    (lambda f: f.drop(columns=["rank", "doc_id"]), r"missing: \['doc_id', 'rank'\]"),
    (lambda f: f.replace("q0", "nobody"), r"every query id .* \(3 ids\), but 'nobody' is not"),
    (lambda f: f.replace("d1", "nobody"), r"every passage id .* \(4 ids\), but 'nobody' is not"),
    (lambda f: f.replace("d1", None), r"every passage id .* \(4 ids\), but (None|nan) is not"),
    (lambda f: pd.concat([f, f[1:2].assign(rank=9)]), "'d0' stands twice for query 'q2'"),
])  # fmt: skip
def test_frames_that_do_not_fit_are_refused(change, says):
    with pytest.raises(ValueError, match=says):
        make(change(FRAME))
