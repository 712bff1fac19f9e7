"""The recorded faults: every one that we speak of was tried, and nothing was lost or wrong."""

import csv
import json

import pytest

from rdl_study.store import project_folder
from tests.torture.faults import FAULTS

FOLDER = project_folder() / "results" / "torture"
PAGE = (project_folder() / "book" / "faults.md").read_text()


@pytest.fixture(scope="module")
def rows():
    with (FOLDER / "faults.csv").open() as file:
        return {row["fault"]: row for row in csv.DictReader(file)}


def test_every_fault_of_the_script_was_tried(rows):
    assert rows.keys() == FAULTS.keys()
    assert all(int(row["tried"]) >= 1 for row in rows.values())


def test_every_trial_has_an_end_and_none_is_lost_or_wrong(rows):
    for name, row in rows.items():
        ends = {end: int(row[end]) for end in ("resumed", "refused", "lost", "wrong")}
        assert sum(ends.values()) == int(row["tried"]), name
        assert ends["lost"] == ends["wrong"] == 0, name


def test_a_refusal_says_what_to_do(rows):
    said = json.loads((FOLDER / "manifest.json").read_text())["said"]
    for name, row in rows.items():
        assert not int(row["refused"]) or said[name].startswith("error: "), name


@pytest.mark.parametrize(
    ("told", "fault"),
    [*((f"SIGKILL, {task}", f"SIGKILL, {task}")
       for task in ("fetch", "token store", "teach", "distill", "rerank", "page", "book")),
     ("", "SIGKILL, one of two processes"), ("runs out", None)],
)  # fmt: skip
def test_faults_that_should_be_tried_are_or_the_page_says_that_they_are_not(rows, told, fault):
    assert fault in rows or told in PAGE.partition("Not in the table")[2]
