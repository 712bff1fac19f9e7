"""TREC Deep Learning: the public lists and LLM rankings, and the figures that they are known by.

Mutations seen to fail: repetitions in the registry's order taken for that of time; rankings of 20
passages among those of 100; two first stages swapped; another model's files for GPT's; one year's
rankings for both.
"""

import os

import pytest

from rdl_core.data import trec_dl
from rdl_core.data.collections import load
from rdl_core.evaluate import per_query, settle_ties

needs_data = pytest.mark.skipif(
    not os.environ.get("RDL_MIRROR"), reason="RDL_MIRROR names no folder of files"
)
#: nDCG@10 on 2019 and 2020, as a right evaluation of the public files gives it.
KNOWN = {
    "bm25": (0.5058, 0.4796), "bm25_rm3": (0.5216, 0.4896), "splade": (0.7308, 0.7197),
    "tas_b": (0.7210, 0.6854), "ada2": (0.7035, 0.6759),
}  # fmt: skip
YEARS = (2019, 2020)


def ndcg(year, run):
    return per_query(load(f"rdl/trec-dl-{year}").qrels, settle_ties(run))["nDCG@10"].mean()


def teacher_ndcg(year, ranks):
    return ndcg(year, ranks.assign(score=-ranks["teacher_rank"]))


@needs_data
@pytest.mark.parametrize("first_stage", trec_dl.FIRST_STAGES)
@pytest.mark.parametrize("year", YEARS)
def test_first_stages_have_their_known_ndcg(year, first_stage):
    found = ndcg(year, trec_dl.candidates(year, first_stage))
    assert round(found, 4) == KNOWN[first_stage][YEARS.index(year)]


@needs_data
@pytest.mark.parametrize(("year", "known"), [(2019, 0.6682), (2020, 0.6549)])
def test_rank_vicuna_has_its_known_ndcg(year, known):
    (ranks,) = trec_dl.teacher_runs(year, "bm25", "rank_vicuna")
    assert round(teacher_ndcg(year, ranks), 4) == known


@needs_data
@pytest.mark.parametrize(("year", "low", "high"), [(2019, 0.674, 0.694), (2020, 0.618, 0.639)])
def test_repetitions_of_gpt_span_what_is_known(year, low, high):
    """Five each: a single repetition is a draw, not the teacher."""
    found = [teacher_ndcg(year, ranks) for ranks in trec_dl.teacher_runs(year, "bm25", "gpt_3.5")]
    assert len(found) == 5
    assert (min(found), max(found)) == pytest.approx((low, high), abs=0.0006)


@needs_data
@pytest.mark.parametrize("first_stage", trec_dl.FIRST_STAGES)
@pytest.mark.parametrize("year", YEARS)
def test_rank_vicuna_ranked_every_candidate_of_every_first_stage(year, first_stage):
    listed = trec_dl.candidates(year, first_stage)
    (ranks,) = trec_dl.teacher_runs(year, first_stage, "rank_vicuna")
    joined = listed.merge(ranks, on=["query_id", "doc_id"], validate="one_to_one")
    assert len(joined) == len(listed) == len(ranks)
    for _, rows in joined.groupby("query_id"):
        assert sorted(rows["teacher_rank"]) == list(range(1, len(rows) + 1))


@needs_data
def test_candidates_are_passages_of_the_collection():
    listed = trec_dl.candidates(2022, "splade")
    assert set(listed["doc_id"]) <= set(load("rdl/trec-dl-2022").passages["doc_id"])
    assert listed.groupby("query_id").size().tolist() == [100] * 76


@pytest.mark.parametrize(
    ("ask", "says"),
    [
        (lambda: trec_dl.candidates(2022, "ada2"), "of 2022 among bm25, bm25_rm3, splade; got 'ada2'"),
        (lambda: trec_dl.teacher_runs(2019, "bm26", "gpt_3.5"), "a first stage among bm25, .*'bm26'"),
        (lambda: trec_dl.teacher_runs(2019, "tas_b", "gpt_3.5"), "among rank_vicuna, .*'gpt_3.5'"),
        (lambda: trec_dl.teacher_runs(2022, "bm25", "rank_vicuna"), "2022 among none at all"),
    ],
)
def test_lists_that_nobody_made_are_refused_with_those_there_are(ask, says):
    with pytest.raises(ValueError, match=says):
        ask()
