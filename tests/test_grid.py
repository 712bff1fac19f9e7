"""The grid: every part can be named, both ways stay apart, and what is recorded comes back."""

import json
from dataclasses import replace

import pandas as pd
import pytest

from rdl_study import grid, recorded
from rdl_study.parameters import NOTEBOOKS, check_parameters
from rdl_study.profile import load_profile
from rdl_study.store import project_folder

TREC = load_profile("trec-dl")
PAGES = {
    (profile, page): values
    for profile in ("mini", "trec-dl")
    for page, values in load_profile(profile).notebooks.items()
}


@pytest.mark.parametrize(("profile", "page"), PAGES)
def test_the_baseline_is_one_of_the_systems(profile, page):
    given = check_parameters(page, {"profile": profile, **PAGES[profile, page]})
    for part in given.parts.values():
        assert part.baseline in part.systems


def test_each_year_is_ranked_by_a_student_of_the_other():
    configs = grid.rankings(TREC, TREC.student())
    seen = {
        (config.candidates.collection, config.system.stages[-1].lists.collection)
        for config in configs
    }
    years = "rdl/trec-dl-2019", "rdl/trec-dl-2020"
    assert seen == {years, years[::-1]}
    assert len(configs) == 2 * len(TREC.seeds)


def test_no_student_of_the_grid_learnt_from_a_year_that_it_is_tested_on():
    """By the collections' names, for every page at once; `jobs.ranking` checks the queries. One's
    own corpus is cut in two instead.
    """
    for (profile, page), values in PAGES.items():
        if page == "your_corpus":
            continue
        given = check_parameters(page, {"profile": profile, **values})
        for part in given.parts.values():
            for system in part.systems.values():
                for config in grid.rankings(part.profile, system):
                    stages = getattr(config.system, "stages", ())
                    names = {stage.lists.collection for stage in stages}
                    assert config.candidates.collection not in names


def test_teachers_with_lists_of_one_year_are_tested_on_the_other():
    parts = grid.teacher(TREC, ["rank_vicuna", "vicuna_7b"])
    assert "student of vicuna_7b" not in parts["students"].systems
    there = parts["students, one way"]
    (config, *_) = grid.rankings(there.profile, there.systems["student of vicuna_7b"])
    assert config.candidates.collection == "rdl/trec-dl-2020"
    assert config.system.stages[-1].lists.collection == "rdl/trec-dl-2019"


def test_who_did_not_order_the_test_is_no_system_of_it():
    lists = replace(TREC.stage2.lists, teacher="judgments")
    profile = replace(TREC, stage2=replace(TREC.stage2, lists=lists))
    systems = grid.effectiveness(profile, ["bm25"])["bm25"].systems
    assert "judgments" not in systems.values()
    assert "teacher (rank_vicuna)" in grid.effectiveness(TREC, ["bm25"])["bm25"].systems


def test_depths_cost_the_same_number_of_passages():
    for student in grid.depth(TREC, [10, 20, 50, 100], [])["depths"].systems.values():
        training = student.stages[-1].training
        assert training.list_size * training.queries_per_step == 200
        assert training.list_size == student.stages[-1].lists.depth


RECORDED = [x for x in project_folder().glob("results/*/*.csv") if x.stem in NOTEBOOKS]


@pytest.mark.parametrize("path", sorted(RECORDED), ids=lambda path: path.stem)
def test_what_is_recorded_has_its_manifests(path):
    table = pd.read_csv(path, dtype={"query_id": "str"})
    assert not table.duplicated(["part", "system", "collection", "seed", "query_id"]).any()
    about = json.loads(path.with_suffix(".json").read_text())
    rankings = [m for m in about["runs"].values() if m["kind"] == "rank"]
    recorded_for = set(map(tuple, table[["collection", "seed"]].drop_duplicates().to_numpy()))
    behind = {
        (
            m["config"]["candidates"]["collection"],
            m["config"]["system"]["seed"] if isinstance(m["config"]["system"], dict) else -1,
        )
        for m in rankings
    }
    assert recorded_for == behind
    for manifest in rankings:
        assert all(name in about["runs"] for name in manifest["inputs"])
        assert manifest["commit"]
    for part, known in about["parts"].items():
        kept = recorded.read(path.stem, part, profile=path.parent.name)
        assert kept.values.notna().all(axis=None)
        assert known["baseline"] in kept.values


def test_nothing_recorded_is_none(tmp_path):
    assert recorded.read("loss", "losses", folder=tmp_path) is None
