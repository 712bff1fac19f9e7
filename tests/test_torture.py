"""The recorded faults: every one of the script was tried, and nothing was lost or wrong."""

import csv
import json

from rdl_study.store import project_folder
from tests.torture.__main__ import ENDS, FAULTS

FOLDER = project_folder() / "results" / "torture"


def test_every_fault_was_tried_and_none_is_lost_or_wrong():
    with (FOLDER / "faults.csv").open() as file:
        rows = {row["fault"]: row for row in csv.DictReader(file)}
    said = json.loads((FOLDER / "manifest.json").read_text())["said"]
    assert rows.keys() == FAULTS.keys()
    for name, row in rows.items():
        ends = {end: int(row[end]) for end in ENDS}
        assert sum(ends.values()) == int(row["tried"]) >= 1, name
        assert ends["lost"] == ends["wrong"] == 0, name
        assert not ends["refused"] or said[name].startswith("error: "), name  # and says what to do
