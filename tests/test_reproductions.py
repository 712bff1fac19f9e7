"""The reproduction log: our rows say what was recorded, others' rows are whole.

Mutations seen to fail: dates of trainings; our old rows kept; lines counted without the header;
another number in the log.
"""

import json

import pandas as pd
import pytest

from rdl_study import reproductions
from rdl_study.store import project_folder

ROW = {
    "figure": "nDCG@10 of the student", "expected": "recorded .603", "found": ".601",
    "verdict": "reproduced", "date": "2027-01-31", "who": "somebody", "profile": "trec-dl",
    "machine": "a GPU", "commit": "0123abc",
}  # fmt: skip


def test_our_rows_are_those_of_the_recorded_runs():
    log = reproductions.read_log()
    ours = log[log["who"] == reproductions.MAINTAINERS].reset_index(drop=True)
    pd.testing.assert_frame_equal(ours, reproductions.own_rows().astype(ours.dtypes))
    assert len(ours) >= 5


def test_a_row_is_what_manifests_and_figures_say():
    """One row by hand: the student does not match its teacher."""
    results = project_folder() / "results" / "trec-dl"
    runs = json.loads((results / "effectiveness.json").read_text())["runs"].values()
    values = pd.read_csv(results / "effectiveness.csv").groupby("system")["nDCG@10"].mean()
    row = reproductions.own_rows().iloc[0]
    assert row["figure"].startswith("A student matches its LLM teacher")
    difference = values["student"] - values["teacher (rank_vicuna)"]
    assert row["found"].split()[0] == f"{difference:+.3f}"
    assert row["verdict"] == "not reproduced"
    assert row["date"] == max(run["finished"] for run in runs if run["kind"] == "rank")[:10]
    assert set(row["commit"].split(", ")) == {r["commit"] for r in runs if r["kind"] == "rank"}


def test_the_pages_word_on_seeds_holds():
    table = pd.read_csv(project_folder() / "results" / "trec-dl" / "effectiveness.csv")
    seeds = table[table["system"] == "student"].groupby("seed")["nDCG@10"].mean()
    page = (project_folder() / "book" / "reproduction_log.md").read_text()
    assert f"{seeds.max() - seeds.min():.3f} apart"[1:] in page


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"verdict": "good"}, "line 2: expected a verdict among reproduced, .* got 'good'"),
        ({"date": "31 Jan"}, "line 2: expected a date as 2026-11-24, got '31 Jan'"),
        ({"machine": " "}, r"line 2: expected something in \['machine'\]"),
        ({"mood": "fine"}, "expected columns .* got .*'mood'"),
    ],
)
def test_a_row_that_is_not_whole_is_refused(tmp_path, change, says):
    path = tmp_path / "log.csv"
    pd.DataFrame([ROW | change]).to_csv(path, index=False)
    with pytest.raises(ValueError, match=says):
        reproductions.read_log(path)


def test_update_leaves_others_rows_as_they_are(tmp_path):
    path = tmp_path / "log.csv"
    pd.DataFrame([ROW | {"who": reproductions.MAINTAINERS}, ROW]).to_csv(path, index=False)
    log = reproductions.read_log(reproductions.update(path))
    assert log.iloc[-1].to_dict() == ROW
    assert len(log) == len(reproductions.own_rows()) + 1
