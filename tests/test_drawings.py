"""The pictures in the repository are what the code draws from the recorded figures."""

import re

import numpy as np
import pandas as pd
import pytest
from common import module_of

from rdl_study.store import project_folder

BOOK = project_folder() / "book"
NUMBER = re.compile(r"-?\d+\.?\d*")
MADE_UP = re.compile(r"[a-zA-Z]\w*[0-9a-f]{10}|Matplotlib v[\d.]+")
drawings = module_of(BOOK / "drawings.py")


def test_kept_pictures_are_what_the_code_draws(tmp_path):
    """Up to names that matplotlib makes of hashes, and a twentieth of a point: machines round."""
    paths = drawings.draw(tmp_path)
    assert [path.stem for path in paths] == ["main_result", "two_stages", "sliding_window"]
    for path in paths:
        kept, new = (MADE_UP.sub("", (x / path.name).read_text()) for x in (BOOK / "_static", tmp_path))
        assert NUMBER.sub("#", kept) == NUMBER.sub("#", new), f"{path.name} is old: make kept"
        numbers = [np.array(NUMBER.findall(text), dtype=float) for text in (kept, new)]
        np.testing.assert_allclose(*numbers, atol=0.05, err_msg="make kept")


def test_main_figures_are_the_recorded_and_the_published_ones():
    table = pd.read_csv(project_folder() / "results" / "trec-dl" / "effectiveness.csv")
    table = table[(table["measure"] == "nDCG@10") & (table["system"] == "student")]
    shown = drawings.main_figures()
    for year, n in (("2019", 43), ("2020", 54)):
        student = table[table["collection"].str.endswith(year)].iloc[:, 5:].dropna(axis="columns")
        assert student.shape[1] == n
        assert shown.loc["student", (year, "mean")] == pytest.approx(student.to_numpy().mean())
        assert shown[year, "mean"].between(shown[year, "ci_low"], shown[year, "ci_high"]).all()
    assert shown.loc["BM25", ("2019", "mean")] == pytest.approx(0.5058, abs=1e-4)
    assert shown.loc["student", ("2019", "published")] == 0.72
    assert shown.loc["student", ("time", "published")] == pytest.approx(138.6)
    assert shown["time", "ms"].isna().tolist() == [True, False, False, False]
    assert shown.loc["teacher, 7 B", ("time", "ms")] == pytest.approx(9 * 94_957.9, abs=1)
    texts = [[text.get_text() for text in axes.texts] for axes in drawings.main_result().axes]
    assert texts[0][2] == f"{shown.loc['student', ('2019', 'mean')]:.3f}"[1:]
    assert texts[2].count("not measured here") == 1
