"""The recorded faults: every one of the script was tried, and nothing was lost or wrong."""

import json

import pandas as pd

from rdl_study.store import project_folder
from tests.torture.__main__ import ENDS, FAULTS


def test_every_fault_was_tried_and_none_is_lost_or_wrong():
    folder = project_folder() / "results" / "torture"
    rows = pd.read_csv(folder / "faults.csv", index_col="fault")
    assert rows.index.tolist() == [*FAULTS]
    assert (rows[[*ENDS]].sum(axis=1) == rows["tried"]).all()
    assert rows["tried"].min() >= 1
    assert not rows[["lost", "wrong"]].any(axis=None)
    said = json.loads((folder / "manifest.json").read_text())["said"]
    for name in rows.index[rows["refused"] > 0]:
        assert said[name].startswith("error: "), name  # and says what to do
