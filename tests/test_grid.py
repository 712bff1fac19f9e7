"""What pages compare: stages share runs, test and dev queries stay apart, scores add up.

Mutations seen to fail: dev queries that are trained on accepted; added scores' weights ignored, ranks
added for scores, scores added as they are.
"""

import json
import logging
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest

from rdl_core.data.collections import load
from rdl_study import grid
from rdl_study.grid import Added, Part, RankingConfig, StudentConfig
from rdl_study.lists import lists
from rdl_study.profile import load_profile

MINI, TREC = load_profile("mini"), load_profile("trec-dl")


@pytest.fixture(scope="module", autouse=True)
def store(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RDL_RUNS", str(tmp_path_factory.mktemp("runs")))
        yield


def small(stage, **of_lists):
    """A stage of four steps that draws three passages of each of six queries."""
    own = replace(stage.lists, n_queries=6, **of_lists)
    training = replace(stage.training, steps=4, queries_per_step=2, list_size=3)
    return replace(stage, lists=own, training=training)


@pytest.fixture
def config(encoder_folder):
    """Two short stages; the second learns the order of the first stage, which costs nothing."""
    stages = (small(MINI.stage1), small(MINI.stage2, teacher="first_stage"))
    return StudentConfig(
        encoder=encoder_folder, query_tokens=8, passage_tokens=8, stages=stages, seed=0
    )


def with_dev(config, collection):
    *earlier, last = config.stages
    dev = replace(last.lists, collection=collection, teacher="judgments", n_queries=5)
    last = replace(last, dev=dev, training=replace(last.training, dev_every=2, patience=9))
    return replace(config, stages=(*earlier, last))


def ranking(candidates, system, **more):
    return RankingConfig(candidates=candidates, system=system, precision="float32", **more)


def test_students_share_the_stages_that_they_share(config, caplog):
    def n_trained(student):
        caplog.clear()
        with caplog.at_level(logging.INFO, "rdl_study"):
            grid.train(student)
        return sum(x.startswith("train-") and "computing" in x for x in caplog.messages)

    first, last = config.stages
    other = replace(last, training=replace(last.training, loss="adr_mse"))
    assert n_trained(config) == 2
    assert n_trained(replace(config, stages=(first, other))) == 1
    assert n_trained(replace(config, seed=1)) == 2
    manifest = json.loads((grid.train(config).folder / "manifest.json").read_text())
    assert (manifest["n_lists"], manifest["passages_seen"]) == (6, 4 * 2 * 3)
    log = grid.training_log(config)
    assert log["stage"].tolist() == ["stage 1: info_nce"] * 4 + ["stage 2: ranknet"] * 4


def test_dev_queries_are_measured_while_training(config):
    run = grid.train(with_dev(config, "rdl/pydocs/dev"))
    measured = pd.read_json(run.folder / "log.jsonl", lines=True)["dev"].dropna()
    assert measured.index.tolist() == [1, 3]
    assert measured.between(0, 1).all()
    assert (measured > 0).any()


def test_queries_that_were_trained_on_are_refused_in_dev_and_test(config, monkeypatch):
    """A test query that stage 1 alone has seen is a leak as much as one of stage 2; TREC DL's years
    number their queries anew, so that the id alone would let one through.
    """
    with pytest.raises(ValueError, match="dev: expected queries of .* not trained on"):
        grid.train(with_dev(config, "rdl/pydocs/train"))
    trained_on = replace(config.stages[0].lists, add_relevant=False)
    tested = replace(trained_on, n_queries=3)
    for seen in (0, 1):
        skipped = [0 if number == seen else 10 for number in (0, 1)]
        stages = tuple(
            replace(stage, lists=replace(stage.lists, skip_queries=n))
            for stage, n in zip(config.stages, skipped, strict=True)
        )
        with pytest.raises(ValueError, match="candidates: expected queries of .* not trained on"):
            grid.rank(ranking(tested, replace(config, stages=stages)))
    queries = load(trained_on.collection).queries
    renamed = queries.assign(query_id=queries["query_id"] + "-2", query=queries["query"].str.upper())
    monkeypatch.setitem(vars(load("rdl/pydocs/dev")), "queries", renamed)
    with pytest.raises(ValueError, match="not trained on"):
        grid.rank(ranking(replace(trained_on, collection="rdl/pydocs/dev", n_queries=None), config))


def test_candidates_of_several_first_stages_are_learnt_from_and_not_ranked(config):
    several = replace(MINI.test, first_stage="bm25+random")
    with pytest.raises(ValueError, match="first_stage: expected one to rank, got 'bm25\\+random'"):
        ranking(several, "bi_encoder")
    first, last = config.stages
    last = replace(last, lists=replace(last.lists, first_stage="bm25+random"))
    assert grid.train(replace(config, stages=(first, last))).manifest["n_lists"] == 12


def test_scores_of_others_are_added_by_weight():
    test = replace(MINI.test, n_queries=3, depth=10)
    run = grid.rank(ranking(test, "first_stage", added={"first_stage": 0.3}))
    frame = lists(test)
    expected = sum(
        weight * values.groupby(frame["query_id"]).transform(lambda x: (x - x.mean()) / x.std(ddof=0))
        for weight, values in ((1.0, -frame["rank"]), (0.3, frame["score"]))
    )
    keys, written = ["query_id", "doc_id"], pd.read_parquet(run.folder / "run.parquet")
    both = written.merge(frame[keys].assign(expected=expected), on=keys, validate="1:1")
    assert len(both) == 30
    np.testing.assert_allclose(both["score"], both["expected"], atol=1e-5)


def test_a_measure_is_the_mean_over_seeds(config):
    test = replace(MINI.test, n_queries=4, depth=5)
    profile = replace(MINI, test=test, seeds=(0, 1), precision="float32")
    systems = {"BM25": "first_stage", "student": config, "sum": Added(system=config, others={})}
    results = grid.measure(Part(profile=profile, systems=systems, baseline="BM25"))
    assert results.values.shape == (4, 3)
    seeds = [grid.measured(run, ("nDCG@10",))["nDCG@10"].mean() for run in results.runs["student"]]
    assert len(seeds) == 2
    assert results.values["student"].mean() == pytest.approx(np.mean(seeds))
    pd.testing.assert_series_equal(
        results.values["sum"], results.values["student"], check_names=False
    )


def test_each_year_is_ranked_by_a_student_of_the_other():
    configs = grid.rankings(TREC, TREC.student())
    pairs = {
        (config.candidates.collection, config.system.stages[-1].lists.collection)
        for config in configs
    }
    years = "rdl/trec-dl-2019", "rdl/trec-dl-2020"
    assert pairs == {years, years[::-1]}
    assert len(configs) == 2 * len(TREC.seeds)
    further = replace(TREC, both_ways=False, more_tests=("rdl/vaswani",), seeds=(0,))
    configs = grid.rankings(further, TREC.student())  # a further collection is no swap
    assert [config.system for config in configs] == [TREC.student()] * 2
    with pytest.raises(ValueError, match="more_tests: expected none with both_ways"):
        replace(TREC, more_tests=("rdl/vaswani",))
