"""What pages say is computed from what was measured; what is recorded comes back."""

import json
from dataclasses import replace
from io import StringIO
from itertools import product

import pandas as pd
import pytest

from rdl_core.evaluate import compare
from rdl_study import claims, grid, tables
from rdl_study.claims import Claim, verdict
from rdl_study.profile import load_profile
from rdl_study.store import Run, project_folder

ROOT = project_folder()


def test_pages_name_the_best_what_differs_and_the_runs_and_markup_is_text(tmp_path):
    queries = pd.Index([f"q{i}" for i in range(8)], name="query_id")
    base = pd.Series([0.1, 0.5, 0.3, 0.9, 0.2, 0.4, 0.6, 0.0], queries)
    noise = pd.Series([0.01, -0.02, 0.02, 0.0, 0.01, -0.01, 0.0, 0.01], queries)
    good = base * 0.9 + 0.1 + noise
    values = pd.DataFrame({"BM25": base, "of bm25+bm25_rm3": good, "same": base + noise})
    manifest = {
        "id": "rank-1", "inputs": ["train-1"], "wall_s": 2.0, "device": "<b>CPU</b>", "threads": 2,
        "versions": {"torch": "2"}, "commit": None,
    }  # fmt: skip
    runs = dict.fromkeys(values, (Run(tmp_path, manifest),))
    results = grid.Results(load_profile("mini"), "BM25", values, runs)
    statistics = compare(values, "BM25")
    text = tables.sentence(statistics, results).data
    for expected in (
        "On 8 queries of `rdl/pydocs/test`, with 1 seed, **of BM25 and BM25+RM3** has the highest",
        "nDCG@10: 0.440",
        "Significantly different from BM25 (p < .05 after Holm): of BM25 and BM25+RM3 (+0.065).",
    ):  # fmt: skip
        assert expected in text
    assert "same (" not in text
    text = tables.sentence(compare(values[["BM25", "same"]], "BM25"), results).data
    assert "does not show that they are equal" in text
    table = tables.display_table(statistics, "nDCG@10").set_index("system")
    row = table.loc["BM25", ["difference", "p (Holm)", "95 % interval of it"]]
    assert row.tolist() == ["baseline", "", ""]
    text = tables.provenance(results, "loss").data
    for expected in ("train-1", "papermill notebooks/loss.ipynb", "rdl-badge-smoke", "&lt;b&gt;CPU"):
        assert expected in text
    assert "<b>CPU" not in text
    harm = "<script>alert('x')</script>"
    table = tables.as_html(pd.DataFrame({"query": [harm], harm: [1.0]}, index=[harm])).data
    assert (table.count("&lt;script&gt;"), table.count("<script")) == (3, 0)


def test_published_figures_are_the_papers():
    trec = tables.published("trec_dl")
    assert trec.loc["dual/rank-distillm-colbert"].tolist() == [0.72, 0.711, 0.768, 0.77]
    assert tables.published("depth").loc[50, "colbert"] == pytest.approx(0.772, abs=5e-4)
    assert tables.published("tirex").loc["RankZephyr", "cord19"] == 0.767


@pytest.fixture(scope="module")
def measured(runs, tiny):
    profile = replace(tiny, seeds=(0, 1), more_measures=("RR(rel=2)",))
    systems = {"BM25": "first_stage", "student": profile.student(profile.stage1)}
    return grid.measure(grid.Part(profile=profile, systems=systems, baseline="BM25"))


def test_what_is_recorded_comes_back_with_every_run_behind_it(measured, tmp_path):
    alone = replace(measured, runs={"BM25": measured.runs["BM25"]})
    path = tables.record("page", {"one": measured, "two": alone}, tmp_path)
    kept, other = (tables.recorded("page", part, folder=tmp_path) for part in ("one", "two"))
    pd.testing.assert_frame_equal(kept.values, measured.values, atol=1e-4, check_names=False)
    assert (kept.baseline, kept.measure, kept.seeds) == ("BM25", "nDCG@10", (0, 1))
    assert (kept.collections, kept.candidates) == (("rdl/pydocs/test",), "bm25 top 6")
    assert (other.device, bool(kept.device)) == ("", True)
    text = tables.sentence(compare(kept.values, "BM25"), kept).data
    assert text.startswith("On 8 queries of `rdl/pydocs/test`, with 2 seeds, **")
    table = pd.read_csv(path).query("part == 'one'").set_index(["system", "seed", "measure"])
    counts = table.iloc[:, 2:].notna().sum(axis="columns").to_dict()
    rows = product([("BM25", -1), ("student", 0), ("student", 1)], ("nDCG@10", "RR(rel=2)"))
    assert counts == {(*row, measure): 8 for row, measure in rows}
    assert sorted(run["kind"] for run in kept.runs) == ["rank", "rank", "rank", "train", "train"]
    assert [run["kind"] for run in other.runs] == ["rank"]
    assert all(run["wall_s"] >= 0 and run["device"] and run["versions"] for run in kept.runs)
    assert tables.recorded("page", "three", folder=tmp_path) is None
    assert tables.recorded("other", "one", folder=tmp_path) is None


def test_published_recorded_and_this_run_stand_side_by_side(measured, tmp_path, monkeypatch):
    monkeypatch.setattr(tables, "project_folder", lambda: tmp_path)
    assert "Nothing was recorded" in tables.side_by_side("page", {}).data
    paper = pd.Series({"student": 0.72, "a system that nobody ran": 0.1})
    page = tables.side_by_side("page", {"one": measured}, {"one": paper}).data
    assert "Recorded: nothing yet" in page
    (table,) = pd.read_html(StringIO(page), index_col=0)
    assert table["published", "mean"]["student"] == 0.72
    assert pd.isna(table["published", "mean"]["BM25"])
    bm25 = measured.values["BM25"].mean()
    assert table["this run", "mean"]["BM25"] == pytest.approx(bm25, abs=5e-4)
    assert table["this run", "difference"]["BM25"] == "baseline"
    tables.record("page", {"one": measured}, tmp_path / "results" / "trec-dl")
    page = tables.side_by_side("page", {}).data
    for expected in ("<h3>one</h3>", "8 queries of rdl/pydocs/test", "2 seeds", "This run: not run"):
        assert expected in page


RECORDED = [x for x in sorted(ROOT.glob("results/*/*.csv")) if x.read_text().startswith("part,")]


@pytest.mark.parametrize("path", RECORDED, ids=lambda path: f"{path.parent.name}/{path.stem}")
def test_every_recorded_figure_has_its_manifests(path):
    table = pd.read_csv(path)
    assert not table.duplicated(["part", "system", "collection", "seed", "measure"]).any()
    about, behind = json.loads(path.with_suffix(".json").read_text()), set()
    for manifest in (x for x in about["runs"].values() if x["kind"] == "rank"):
        config, system = manifest["config"], manifest["config"]["system"]
        seed = system["seed"] if isinstance(system, dict) else -1
        behind.add((config["candidates"]["collection"], seed))
        assert manifest["commit"]
        assert about["runs"].keys() >= set(manifest["inputs"])
    assert set(map(tuple, table[["collection", "seed"]].to_numpy())) == behind
    for part, entry in about["parts"].items():
        kept = tables.recorded(path.stem, part, path.parent.name)
        assert kept.values.notna().all(axis=None)
        assert entry["baseline"] in kept.values


@pytest.mark.parametrize(("gains", "equal", "says"), [
    ([0.10, 0.12, 0.11, 0.09], False, "reproduced"),
    ([0.10, -0.09, 0.12, -0.08], False, "partly"),
    ([-0.10, -0.12, 0.01, -0.09], False, "not reproduced"),
    ([0.001, -0.001, 0.002, 0.0], True, "reproduced"),
    ([0.20, -0.19, 0.18, -0.17], True, "partly"),
    ([0.10, 0.12, 0.11, 0.09], True, "not reproduced"),
])  # fmt: skip
def test_a_verdict_is_read_off_the_interval(gains, equal, says):
    worse = pd.Series([0.3, 0.4, 0.5, 0.6], index=list("abcd"))
    values = pd.DataFrame({"worse": worse, "better": worse + gains})
    assert verdict(values, Claim("", "", "", equal=equal))[0] == says


def test_the_log_is_whole_and_our_rows_are_what_was_recorded():
    """Rows of others come by pull request; ours say what the recorded runs say."""
    log = pd.read_csv(ROOT / "book" / "reproductions.csv", dtype=str, keep_default_na=False)
    assert ",".join(log) == "figure,expected,found,verdict,date,who,profile,machine,commit"
    assert log.apply(lambda column: column.str.strip() != "").all(axis=None)
    assert set(log["verdict"]) <= {"reproduced", "partly", "not reproduced", "not comparable"}
    assert pd.to_datetime(log["date"], format="%Y-%m-%d").notna().all()
    bm25 = tables.recorded("effectiveness", "bm25").values["first stage"].mean()
    ours, compared = log[log["who"] == "maintainers"].set_index("figure"), set()
    for claim in claims.claims():
        kept = tables.recorded(claim.page, claim.part) if claim.part else None
        pair = None if kept is None else claims.pair_of(kept.values, claim)
        if pair is not None:
            row, runs = ours.loc[claim.text], [run for run in kept.runs if run["kind"] == "rank"]
            assert (row["verdict"], row["found"]) == verdict(pair, claim, bm25)
            assert row["expected"] == claim.published
            assert row["date"] == max(run["finished"] for run in runs)[:10]
            assert set(row["commit"].split(", ")) == {run["commit"] for run in runs}
            compared.add(claim.text)
    assert len(ours) == len(compared) >= 5
