"""What the study computes: stages share runs, dev queries stay apart, cuts are what they say.

Mutations seen to fail: dev queries that are trained on accepted; a depth that is not cut; passages
that the first stage missed left out; added scores' weights ignored, ranks added for scores, scores
added as they are.
"""

import json
import logging
from dataclasses import replace

import pandas as pd
import pytest
from conftest import small_stage

from rdl_core.data.collections import load
from rdl_study import candidates, jobs
from rdl_study.profile import load_profile


@pytest.fixture(scope="module", autouse=True)
def store(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RDL_RUNS", str(tmp_path_factory.mktemp("runs")))
        yield


@pytest.fixture
def config(encoder_folder):
    """Two short stages; the second learns the order of the first stage, which costs nothing."""
    mini = load_profile("mini")
    stages = [
        small_stage(stage, steps=4, lists=lists)
        for stage, lists in ((mini.stage1, {}), (mini.stage2, {"teacher": "first_stage"}))
    ]
    return jobs.StudentConfig(
        encoder=encoder_folder, query_tokens=8, passage_tokens=8, stages=tuple(stages), seed=0
    )


def with_dev(config, collection, n_queries):
    *earlier, last = config.stages
    dev = replace(last.lists, collection=collection, teacher="judgments", n_queries=n_queries)
    last = replace(last, dev=dev, training=replace(last.training, dev_every=2, patience=9))
    return replace(config, stages=(*earlier, last))


def trained(messages):
    return sum(message.startswith("train-") and "computing" in message for message in messages)


def test_students_share_the_stages_that_they_share(config, caplog):
    with caplog.at_level(logging.INFO, "rdl_core"):
        jobs.student(config)
        assert trained(caplog.messages) == 2
        caplog.clear()
        last = config.stages[-1]
        other = replace(last, training=replace(last.training, loss="adr_mse"))
        jobs.student(replace(config, stages=(config.stages[0], other)))
        assert trained(caplog.messages) == 1
        caplog.clear()
        jobs.student(replace(config, seed=1))
        assert trained(caplog.messages) == 2


def test_dev_queries_are_measured_while_training(config):
    run = jobs.student(with_dev(config, "rdl/pydocs/dev", 5))
    log = pd.read_json(run.folder / "log.jsonl", lines=True)
    measured = log["dev"].dropna()
    assert measured.index.tolist() == [1, 3]
    assert measured.between(0, 1).all()
    assert (measured > 0).any()


def test_dev_queries_that_are_trained_on_are_refused(config):
    with pytest.raises(ValueError, match="dev: expected queries of .* not trained on"):
        jobs.student(with_dev(config, "rdl/pydocs/train", 5))


@pytest.mark.parametrize("stage", [0, 1])
def test_test_queries_that_any_stage_was_trained_on_are_refused(config, stage):
    """A test query that stage 1 alone has seen is a leak as much as one of stage 2."""
    stages = list(config.stages)
    for number, each in enumerate(stages):
        first = 0 if number == stage else 10
        stages[number] = replace(each, lists=replace(each.lists, skip_queries=first))
    asked = replace(config.stages[0].lists, n_queries=3, add_relevant=False)
    student = replace(config, stages=tuple(stages))
    with pytest.raises(ValueError, match="candidates: expected queries of .* not trained on"):
        jobs.ranking(jobs.RankingConfig(candidates=asked, system=student, precision="float32"))


def test_the_same_words_under_another_id_are_no_new_query(config, monkeypatch):
    """TREC DL's years number their queries anew; the id alone would let one through."""
    lists = config.stages[0].lists
    queries = load(lists.collection).queries
    renamed = queries.assign(query_id=queries["query_id"] + "-2", query=queries["query"].str.upper())
    other = load("rdl/pydocs/dev")
    monkeypatch.setitem(vars(other), "queries", renamed)
    asked = replace(lists, collection="rdl/pydocs/dev", n_queries=None, add_relevant=False)
    with pytest.raises(ValueError, match="not trained on"):
        jobs.ranking(jobs.RankingConfig(candidates=asked, system=config, precision="float32"))


def test_dev_queries_and_when_to_look_belong_together(config):
    last = config.stages[-1]
    with pytest.raises(ValueError, match="dev: expected queries to look at if and only if"):
        replace(last, training=replace(last.training, dev_every=2))


def test_more_queries_hold_the_fewer(config):
    lists = config.stages[0].lists
    few, more = (candidates.chosen_queries(replace(lists, n_queries=n)) for n in (3, 9))
    assert more[:3] == few
    assert len(set(more)) == 9


@pytest.mark.parametrize("depth", [3, 10])
def test_lists_are_cut_and_missing_positives_come_behind(config, depth):
    lists = replace(config.stages[0].lists, depth=depth, n_queries=40)
    frame = candidates.lists(lists)
    qrels = load(lists.collection).qrels
    asked = frame["query_id"].unique()
    relevant = qrels[qrels["query_id"].isin(asked) & (qrels["relevance"] > 0)]
    assert len(frame.merge(relevant, on=["query_id", "doc_id"])) == len(relevant)
    behind = frame[frame["rank"] > depth]
    assert len(behind) > 0
    assert (behind["relevance"] > 0).all()
    bare = candidates.lists(replace(lists, add_relevant=False))
    assert bare.groupby("query_id").size().max() == depth == bare["rank"].max()


def test_manifest_says_what_was_trained_on(config):
    manifest = json.loads((jobs.student(config).folder / "manifest.json").read_text())
    assert manifest["n_lists"] == 6
    assert manifest["passages_seen"] == 4 * 2 * 3


def test_scores_of_others_are_added_by_weight():
    test = replace(load_profile("mini").test, n_queries=3, depth=10)
    config = jobs.RankingConfig(
        candidates=test, system="first_stage", precision="float32", added={"first_stage": 0.3}
    )
    found = pd.read_parquet(jobs.ranking(config).folder / "run.parquet")
    frame = candidates.lists(test)
    expected = sum(
        weight * values.groupby(frame["query_id"]).transform(lambda x: (x - x.mean()) / x.std(ddof=0))
        for weight, values in ((1.0, -frame["rank"]), (0.3, frame["score"]))
    )
    keys = ["query_id", "doc_id"]
    both = found.merge(frame[keys].assign(expected=expected), on=keys, validate="1:1")
    assert len(both) == 30
    assert both["score"].to_numpy() == pytest.approx(both["expected"].to_numpy(), abs=1e-5)
