"""Adoption: a useless student does no harm, a good one helps, and it holds on other queries."""

import json
import shutil

import numpy as np
import pandas as pd
import pytest
from scipy.special import expit

from rdl_core.cross_encoder import CrossEncoder
from rdl_core.data.formats import read_run
from rdl_core.evaluate import per_query
from rdl_tools.adopt import Adopted, adopt, adopted_of, write_adopted


def searches(n_queries=60, n=30, seed=0, first=1.0, student=1.0):
    """Candidates, a student's scores and judgments; scores are noise, and more for the relevant."""
    draw = np.random.default_rng(seed)
    relevant = draw.random((n_queries, n)) < 0.15
    own, theirs = (x * relevant + draw.normal(size=relevant.shape) for x in (student, first))
    order = np.argsort(-theirs, axis=1)
    relevant, own, theirs = (np.take_along_axis(x, order, axis=1) for x in (relevant, own, theirs))
    ids = [f"q{q:02}" for q in range(n_queries) for _ in range(n)]
    frame = pd.DataFrame({
        "query_id": ids, "doc_id": [f"d{i}" for i in range(n)] * n_queries,
        "rank": np.tile(np.arange(1, n + 1), n_queries), "score": theirs.ravel(),
    })  # fmt: skip
    qrels = frame[["query_id", "doc_id"]].assign(relevance=relevant.ravel().astype(int))
    return frame, own.ravel(), qrels


def test_a_good_student_helps_and_others_do_no_harm(tmp_path):
    for strength, alone, weights in ((3.0, "helps", (0.6, 1.0)), (0.0, "harms", (0.0, 0.2)),
                                     (-3.0, "harms", (0.0, 0.0))):  # fmt: skip
        frame, scores, qrels = searches(student=strength)
        adopted = adopt(frame, scores, qrels)
        assert adopted.evidence["student"]["verdict"] == alone
        assert weights[0] <= adopted.weight <= weights[1]
        write_adopted(adopted, tmp_path)
        assert adopted_of(tmp_path) == adopted
        told = adopted.evidence["adopted"]
        assert told["verdict"] == "helps" if alone == "helps" else told["delta"] > -0.02
        assert f"student alone: {adopted.evidence['student']['mean']:.3f}, **{alone}**" in str(adopted)


def test_both_are_better_than_either_where_each_knows_a_part_and_it_holds_elsewhere():
    adopted = adopt(*searches(first=1.5, student=1.5))
    assert 0.2 < adopted.weight < 0.8
    frame, scores, qrels = searches(seed=1, n_queries=200, first=1.5, student=1.5)
    both, alone = (x.merge(frame[["query_id", "doc_id"]]) for x in (
        adopted.apply(frame, scores), frame.assign(score=scores)))  # fmt: skip
    means = [per_query(qrels, run)["nDCG@10"].mean() for run in (both, alone, frame)]
    assert means[0] > max(means[1:]) + 0.03
    assert means[0] == pytest.approx(adopted.evidence["adopted"]["mean"], abs=0.05)


def test_scores_are_probabilities_of_relevance():
    adopted = adopt(*searches(n_queries=300))
    low, error, high = (adopted.evidence[x] for x in ("ece_low", "ece", "ece_high"))
    assert 0 <= low <= error <= high < 0.05
    frame, scores, qrels = searches(seed=1, n_queries=300)
    run = adopted.apply(frame, scores).merge(qrels, on=["query_id", "doc_id"])
    reranked = run[run["score"] > 0]
    assert len(reranked) == 300 * adopted.depth
    by_bin = reranked.groupby((reranked["score"] * 10).astype(int))[["score", "relevance"]].mean()
    counts = reranked.groupby((reranked["score"] * 10).astype(int)).size()
    gap = (by_bin["score"] - by_bin["relevance"]).abs()[counts > 300]
    assert len(gap) > 2
    assert gap.max() < 0.06


@pytest.mark.parametrize("kept", ["score", "none", "stale"])
def test_weight_depth_and_calibration_are_what_they_say(kept):
    frame = pd.DataFrame({
        "query_id": ["q"] * 4 + ["r"] * 2, "doc_id": list("abcdab"), "rank": [1, 2, 3, 4, 1, 2],
        "score": [9.0, 8.0, 4.0, 1.0, 2.0, 1.0],
    })  # fmt: skip
    frame = frame.drop(columns="score") if kept == "none" else frame
    frame = frame.assign(score=frame["score"][::-1].to_numpy()) if kept == "stale" else frame
    scores = np.array([0.0, 1.0, 5.0, np.nan, 3.0, 3.0])  # below the depth nothing is scored
    adopted = Adopted(weight=0.75, depth=3, slope=2.0, intercept=-1.0, evidence={})
    run = adopted.apply(frame, scores)
    student = (np.array([0, 1, 5]) - 2) / np.std([0, 1, 5])
    first = np.array([9, 8, 4] if kept == "score" else [-1, -2, -3])
    first = (first - first.mean()) / first.std()
    wanted = sorted(expit(2 * (0.75 * student + 0.25 * first) - 1), reverse=True)
    assert run["doc_id"].tolist()[:4] == ["c", "b", "a", "d"]
    assert run["score"].tolist()[:4] == pytest.approx([*wanted, -4.0])
    assert run["doc_id"].tolist()[4:] == ["a", "b"]  # the student ties them


@pytest.mark.parametrize(("change", "says"), [
    ({"folds": 40}, "at least 80 judged queries; got 60"),
    ({"positive_grade": 2}, "none is relevant: check ids and positive_grade"),
    ({"measure": "nDGC@10"}, "nDGC@10"), ({"margin": 0}, "margin"),
])  # fmt: skip
def test_what_nothing_can_be_chosen_from_is_refused(change, says):
    with pytest.raises(ValueError, match=says):
        adopt(*searches(), **change)


def test_what_was_adopted_is_written_applied_and_exported(rdl, files, tmp_path, monkeypatch):
    student, card = tmp_path / "student", tmp_path / "student" / "README.md"
    shutil.copytree(files / "student", student)
    card.write_text("# A student\n")
    words = ("--collection", "beir", "--precision", "float32")
    rdl("rerank", student, "first.run", tmp_path / "before.run", *words)
    for _ in range(2):  # the card has the last one alone
        told = rdl("adopt", student, "first.run", "qrels.txt", *words, "--folds", 3).stdout
    adopted = adopted_of(student)
    assert told == f"{adopted}\n"
    assert card.read_text() == f"# A student\n\n## Adopted\n{adopted}\n"
    (student / "adopted.json").write_text(json.dumps(vars(adopted) | {"weight": 0.5, "depth": 3}))
    assert CrossEncoder.from_pretrained(student)
    rdl("rerank", student, "first.run", tmp_path / "plain.run", *words, "--plain")
    assert (tmp_path / "plain.run").read_text() == (tmp_path / "before.run").read_text()
    rdl("rerank", student, "first.run", tmp_path / "own.run", *words)
    ids, first = ["query_id", "doc_id"], read_run(files / "first.run")
    scores = first[ids].merge(read_run(tmp_path / "plain.run")[[*ids, "score"]], on=ids)["score"]
    wanted = adopted_of(student).apply(first, scores.to_numpy())
    own = read_run(tmp_path / "own.run")
    assert own[ids].to_numpy().tolist() == wanted[ids].to_numpy().tolist()
    assert own["score"].to_numpy() == pytest.approx(wanted["score"].to_numpy(), abs=1e-5)
    rdl("export", student, tmp_path / "exported")
    assert adopted_of(tmp_path / "exported") == adopted_of(student)
    assert "## Adopted\n" in (tmp_path / "exported" / "README.md").read_text()
    monkeypatch.setattr("rdl_tools.adopt.rerank", None)  # fails where it is called
    for own, says in (("--folds 9", "at least 18 judged"), ("--folds 3 --measure x", "got 'x'")):
        done = rdl("adopt", student, "first.run", "qrels.txt", *words, *own.split(), code=2)
        assert says in done.stderr
    message = rdl("adopt", "sentence-transformers/x", "first.run", "qrels.txt", *words, code=2).stderr
    assert "expected the folder of a student" in message
