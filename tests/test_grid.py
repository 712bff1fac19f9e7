"""What pages compare: stages share runs, test and dev queries stay apart, scores add up."""

import logging
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest

from rdl_core.data.collections import load
from rdl_study import grid
from rdl_study.grid import Added, Part, RankingConfig
from rdl_study.lists import lists
from rdl_study.profile import load_profile

TREC = load_profile("trec-dl")
pytestmark = pytest.mark.usefixtures("runs")


def changed(config, n, **fields):
    """A student whose stage `n` learns from other lists."""
    stages = list(config.stages)
    stages[n] = replace(stages[n], lists=replace(stages[n].lists, **fields))
    return replace(config, stages=tuple(stages))


@pytest.fixture
def config(tiny):
    """Two short stages; the second learns the order of the first stage, which costs nothing."""
    return changed(tiny.student(seed=8), -1, first_stage="bm25", teacher="first_stage")


def with_dev(config, collection):
    *earlier, last = config.stages
    dev = replace(last.lists, collection=collection, teacher="judgments", n_queries=5)
    last = replace(last, dev=dev, training=replace(last.training, dev_every=2, patience=9))
    return replace(config, stages=(*earlier, last))


def ranking(candidates, system, **more):
    return RankingConfig(candidates=candidates, system=system, precision="float32", **more)


def test_students_share_the_stages_that_they_share(config, caplog):
    caplog.set_level(logging.INFO, "rdl_study")

    def n_trained(student):
        caplog.clear()
        grid.train(student)
        return sum(x.startswith("train-") and "computing" in x for x in caplog.messages)

    first, last = config.stages
    other = replace(last, training=replace(last.training, loss="adr_mse"))
    assert n_trained(config) == 2
    assert n_trained(replace(config, stages=(first, other))) == 1
    assert n_trained(replace(config, seed=9)) == 2
    manifest = grid.train(config).manifest
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
    trained_on = replace(config.stages[0].lists, first_stage="bm25")
    for other in (0, 1):  # the stage that has not seen them
        with pytest.raises(ValueError, match="candidates: expected queries of .* not trained on"):
            grid.rank(ranking(trained_on, changed(config, other, skip_queries=10)))
    queries = load(trained_on.collection).queries
    renamed = queries.assign(query_id=queries["query_id"] + "-2", query=queries["query"].str.upper())
    monkeypatch.setitem(vars(load("rdl/pydocs/dev")), "queries", renamed)
    with pytest.raises(ValueError, match="not trained on"):
        grid.rank(ranking(replace(trained_on, collection="rdl/pydocs/dev", n_queries=None), config))


def test_candidates_of_several_first_stages_are_learnt_from_and_not_ranked(config, tiny):
    with pytest.raises(ValueError, match="first_stage: expected one to rank, got 'bm25\\+random'"):
        ranking(replace(tiny.test, first_stage="bm25+random"), "bi_encoder")
    several = changed(config, -1, first_stage="bm25+random")
    assert grid.train(several).manifest["n_lists"] == 12


def test_scores_of_others_are_added_by_weight(tiny):
    run = grid.rank(ranking(tiny.test, "first_stage", added={"first_stage": 0.3}))
    frame, written = lists(tiny.test), pd.read_parquet(run.folder / "run.parquet")
    by_query = {"of_rank": -frame["rank"], "of_score": frame["score"]}
    for name, values in by_query.items():
        groups = values.groupby(frame["query_id"])
        frame[name] = (values - groups.transform("mean")) / groups.transform("std", ddof=0)
    both = written.merge(frame, on=["query_id", "doc_id"], validate="1:1", suffixes=("", "_first"))
    assert len(both) == 8 * 6
    np.testing.assert_allclose(both["score"], both["of_rank"] + 0.3 * both["of_score"], atol=1e-5)


def test_a_measure_is_the_mean_over_seeds(config, tiny):
    systems = {"BM25": "first_stage", "student": config, "sum": Added(system=config, others={})}
    profile = replace(tiny, seeds=(0, 1))
    results = grid.measure(Part(profile=profile, systems=systems, baseline="BM25"))
    assert results.values.shape == (8, 3)
    seeds = [grid.measured(run, ("nDCG@10",))["nDCG@10"].mean() for run in results.runs["student"]]
    assert len(seeds) == 2
    assert results.values["student"].mean() == pytest.approx(np.mean(seeds))
    assert results.values["sum"].tolist() == results.values["student"].tolist()


def test_each_year_is_ranked_by_a_student_of_the_other():
    configs = grid.rankings(TREC, TREC.student())
    pairs = {(x.candidates.collection, x.system.stages[-1].lists.collection) for x in configs}
    years = "rdl/trec-dl-2019", "rdl/trec-dl-2020"
    assert pairs == {years, years[::-1]}
    assert len(configs) == 2 * len(TREC.seeds)
    further = replace(TREC, both_ways=False, more_tests=("rdl/vaswani",), seeds=(0,))
    configs = grid.rankings(further, TREC.student())  # a further collection is no swap
    assert [config.system for config in configs] == [TREC.student()] * 2
    with pytest.raises(ValueError, match="more_tests: expected none with both_ways"):
        replace(TREC, more_tests=("rdl/vaswani",))


def test_a_comparison_without_a_query_to_test_is_refused_before_anything_is_trained(tiny, config):
    profile = replace(tiny, test=replace(tiny.test, skip_queries=10**6))
    with pytest.raises(ValueError, match="no judged query of 'rdl/pydocs/.*' is left to test behind"):
        grid.measure(Part(profile=profile, systems={"student": config}, baseline="student"))
