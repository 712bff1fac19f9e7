"""Recorded runs: what is written is what was measured, and comes back with its manifests."""

import json
import logging
from dataclasses import replace
from io import StringIO

import pandas as pd
import pytest
from conftest import small_stage

from rdl_study import batch, recorded
from rdl_study.grid import Part
from rdl_study.profile import load_profile
from rdl_study.tables import compare


@pytest.fixture(scope="module")
def results(tmp_path_factory, encoder_folder):
    """Two seeds of a tiny student beside BM25, on six queries."""
    mini = load_profile("mini")
    stage = small_stage(mini.stage1, steps=2)
    test = replace(mini.test, n_queries=6, depth=5)
    profile = replace(
        mini, encoder=encoder_folder, stage1=stage, test=test, seeds=(0, 1), precision="float32",
        more_measures=("RR(rel=2)",),
    )
    systems = {"BM25": "first_stage", "student": profile.student("first")}
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RDL_RUNS", str(tmp_path_factory.mktemp("runs")))
        yield compare(Part(profile=profile, systems=systems, baseline="BM25"))


def test_values_come_back(results, tmp_path):
    recorded.write("page", results.profile, {"one": results}, tmp_path)
    kept = recorded.read("page", "one", folder=tmp_path)
    pd.testing.assert_frame_equal(kept.values, results.values, atol=1e-4, check_names=False)
    assert (kept.baseline, kept.measure, kept.seeds) == ("BM25", "nDCG@10", (0, 1))
    assert kept.collections == ("rdl/pydocs/test",)
    assert kept.candidates == "bm25 top 5"


def test_every_seed_and_every_run_behind_it_is_kept(results, tmp_path):
    path = recorded.write("page", results.profile, {"one": results}, tmp_path)
    table = pd.read_csv(path, dtype={"query_id": "str"})
    assert table.groupby(["system", "seed"]).size().to_dict() == {
        ("BM25", -1): 6, ("student", 0): 6, ("student", 1): 6
    }
    assert "RR(rel=2)" in table
    runs = json.loads(path.with_suffix(".json").read_text())["runs"]
    assert sorted(m["kind"] for m in runs.values()) == ["rank", "rank", "rank", "train", "train"]
    assert all(m["wall_s"] >= 0 and m["device"] and m["versions"] for m in runs.values())


def test_a_part_has_its_own_runs_and_no_others(results, tmp_path):
    alone = replace(results, rankings={"BM25": results.rankings["BM25"]})
    recorded.write("page", results.profile, {"one": results, "two": alone}, tmp_path)
    one, two = (recorded.read("page", part, folder=tmp_path) for part in ("one", "two"))
    assert [run["kind"] for run in two.runs] == ["rank"]
    assert len(one.runs) == 5
    assert (two.device, bool(one.device)) == ("", True)


def test_what_is_not_there_is_none(results, tmp_path):
    assert recorded.read("page", "one", folder=tmp_path) is None
    recorded.write("page", results.profile, {"one": results}, tmp_path)
    assert recorded.read("page", "other", folder=tmp_path) is None


def test_an_overview_has_a_mean_only_of_what_every_part_has(results, tmp_path):
    alone = replace(results, rankings={"BM25": results.rankings["BM25"]})
    recorded.write("page", results.profile, {"one": results, "two": alone}, tmp_path)
    shown = recorded.overview("page", folder=tmp_path).set_index("system")
    bm25, student = (f"{results.values[name].mean():.3f}" for name in ("BM25", "student"))
    assert shown.loc["BM25"].to_dict() == {"one": bm25, "two": bm25, "mean": bm25}
    assert shown.loc["student"].to_dict() == {"one": student, "two": "", "mean": ""}


def test_a_table_says_what_was_not_recorded_and_not_run(results, tmp_path, monkeypatch):
    monkeypatch.setattr(recorded, "project_folder", lambda: tmp_path)
    assert "Recorded: nothing yet" in recorded.side_by_side("page", "one", results).data
    recorded.write("page", results.profile, {"one": results}, tmp_path / "results" / "trec-dl")
    alone = recorded.page_tables("page", {}).data
    assert "<h3>one</h3>" in alone
    assert "Recorded: nDCG@10 on 6 queries of rdl/pydocs/test" in alone
    assert "2 seeds" in alone
    assert "This run: not run" in alone


def test_published_figures_stand_in_the_rows_of_their_systems(results):
    paper = pd.Series({"student": 0.72, "a system that nobody ran": 0.1})
    shown = recorded.side_by_side("page", "one", results, paper).data
    (table,) = pd.read_html(StringIO(shown), index_col=0)
    assert table.loc["student", ("published", "mean")] == 0.72
    assert pd.isna(table.loc["BM25", ("published", "mean")])
    assert table.loc["BM25", ("this run", "mean")] == pytest.approx(
        results.values["BM25"].mean(), abs=5e-4
    )
    assert table.loc["BM25", ("this run", "difference")] == "baseline"


@pytest.mark.parametrize(
    ("pages", "changes", "says"),
    [
        (["loss", "nope"], {}, "expected a notebook of .*got 'nope'"),
        (["loss"], {"losses": "[nope]"}, "losses: expected .*got .'nope'"),
    ],
)
def test_a_mistake_is_named_before_anything_runs(pages, changes, says, caplog):
    with caplog.at_level(logging.INFO), pytest.raises(ValueError, match=says):
        batch.run_pages("mini", pages, changes)
    assert not any("computing" in message for message in caplog.messages)
