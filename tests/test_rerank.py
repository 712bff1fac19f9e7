"""Re-ranking: the scores of one pair at a time, whatever the chunks, budgets and row order.

Mutations seen to fail: queries repeated in the wrong order; the last pair of a chunk dropped; the
student left in training mode; broken scores passed on; nothing to rank an error; bfloat16 ignored.
"""

import pandas as pd
import pytest
import torch
from conftest import make_student

from rdl_core import rerank as rerank_module
from rdl_core.rerank import rerank

QUERY_IDS = pd.Index([f"q{i}" for i in range(7)])
DOC_IDS = pd.Index([f"d{i}" for i in range(13)])


def make_candidates():
    """One to seven candidates of six queries; the row order is nobody's order."""
    rows = [(f"q{q}", f"d{(3 * q + 5 * r) % 13}", r + 1) for q in range(1, 7) for r in range(8 - q)]
    frame = pd.DataFrame(rows, columns=["query_id", "doc_id", "rank"])
    return frame.sample(frac=1, random_state=0)


@pytest.fixture(scope="module")
def one_by_one(stores):
    """Score of each candidate, from a batch of its own."""
    student, scores = make_student(), {}
    for query_id, doc_id, _ in make_candidates().itertuples(index=False):
        pair = (torch.tensor([int(query_id[1:])]), torch.tensor([int(doc_id[1:])]))
        with torch.no_grad():
            scores[query_id, doc_id] = student.score(*stores, *pair, token_budget=1).item()
    return scores


def run_of(stores, student=None, candidates=None, **own):
    return rerank(
        student or make_student(), make_candidates() if candidates is None else candidates, *stores,
        query_ids=QUERY_IDS, doc_ids=DOC_IDS, **own,
    )


def by_pair(run):
    return {(q, d): score for q, d, score in run[["query_id", "doc_id", "score"]].itertuples(index=False)}


@pytest.mark.parametrize("pairs_at_once", [1, 4, 27, 1000])
@pytest.mark.parametrize("token_budget", [1, 60, 4096])
def test_rerank_scores_like_one_by_one(stores, one_by_one, monkeypatch, pairs_at_once, token_budget):
    monkeypatch.setattr(rerank_module, "_PAIRS_AT_ONCE", pairs_at_once)
    run = run_of(stores, token_budget=token_budget)
    assert run.columns.tolist() == ["query_id", "doc_id", "score"]
    assert len(run) == len(one_by_one) == 27
    assert by_pair(run) == pytest.approx(one_by_one, abs=1e-5)
    blocks = run["query_id"].ne(run["query_id"].shift()).sum()
    assert blocks == run["query_id"].nunique() == 6
    assert len(run["score"].unique()) > 20


def test_training_mode_and_gradients_do_not_reach_the_scores(stores, one_by_one):
    student = make_student(dropout=0.5).train()
    assert by_pair(run_of(stores, student)) == pytest.approx(one_by_one, abs=1e-5)
    assert all(weight.grad is None for weight in student.parameters())


def test_bfloat16_scores_are_near_and_not_rounded(stores, one_by_one):
    scores = by_pair(run_of(stores, precision="bfloat16"))
    assert scores == pytest.approx(one_by_one, abs=0.1)
    assert max(abs(scores[pair] - one_by_one[pair]) for pair in scores) > 1e-4  # no float32
    assert len(set(scores.values())) > 20


def test_nothing_to_rerank_gives_an_empty_run(stores):
    """BM25 finds nothing for some queries, and of a small test set perhaps for none."""
    run = run_of(stores, candidates=make_candidates()[:0])
    assert run.empty
    assert run.columns.tolist() == ["query_id", "doc_id", "score"]


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_broken_weights_are_named_as_such(stores, value):
    student = make_student()
    with torch.no_grad():
        student.model.classifier.bias.fill_(value)
    with pytest.raises(ValueError, match="nan or infinity for query 'q1': its weights are broken"):
        run_of(stores, student)


def test_unknown_id_is_named(stores):
    candidates = pd.DataFrame({"query_id": ["q1"], "doc_id": ["d99"], "rank": [1]})
    with pytest.raises(ValueError, match="'d99' is not"):
        run_of(stores, candidates=candidates)
