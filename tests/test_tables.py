"""What pages say is computed from what was measured.

Mutations seen to fail: the baseline tested against itself; a significant system left out of the
sentence; published figures mixed up; the passage of HTML unescaped; a verdict by the mean alone.
"""

import pandas as pd
import pytest

from rdl_study import tables
from rdl_study.claims import Claim, verdict
from rdl_study.figures import means
from rdl_study.profile import load_profile
from rdl_study.store import Run

MANIFEST = {
    "id": "rank-1", "inputs": ["train-1"], "wall_s": 2.0, "device": "<b>CPU</b>", "threads": 2,
    "versions": {"torch": "2"}, "commit": None,
}  # fmt: skip


@pytest.fixture
def results(tmp_path):
    queries = pd.Index([f"q{i}" for i in range(8)], name="query_id")
    base = pd.Series([0.1, 0.5, 0.3, 0.9, 0.2, 0.4, 0.6, 0.0], queries)
    noise = pd.Series([0.01, -0.02, 0.02, 0.0, 0.01, -0.01, 0.0, 0.01], queries)
    values = pd.DataFrame({"BM25": base, "good": base * 0.9 + 0.1 + noise, "same": base + noise})
    rankings = {name: (Run(tmp_path, MANIFEST),) for name in values}
    return tables.Results(load_profile("mini"), "BM25", values, rankings)


def test_the_sentence_names_the_best_and_what_differs(results):
    text = tables.sentence(tables.differences(results), results).data
    assert "On 8 queries" in text
    assert "**good** has the highest nDCG@10: 0.440" in text
    assert "Significantly different from BM25 (p < .05 after Holm): good (+0.065)." in text
    assert "same (" not in text


def test_no_significance_is_not_sold_as_equality(results):
    results = tables.Results(results.profile, results.baseline, results.values[["BM25", "same"]], results.rankings)
    text = tables.sentence(tables.differences(results), results).data
    assert "does not show that they are equal" in text


def test_matching_is_a_test_of_equivalence(results):
    assert "**same** matches **BM25** within 0.02" in tables.matching(results.values, "same", "BM25", "P").data
    assert "is not shown to match" in tables.matching(results.values, "good", "BM25", "P").data


def test_the_baseline_has_no_difference_and_no_p(results):
    table = tables.display_table(tables.differences(results), "nDCG@10")
    row = table.set_index("system").loc["BM25"]
    assert row["difference"] == "baseline"
    assert row["p (Holm)"] == row["95 % interval of it"] == ""
    assert "<th>0</th>" not in tables.as_html(table).data


def test_provenance_names_runs_and_escapes_what_machines_say(results):
    text = tables.provenance(results, "loss").data
    assert "train-1" in text
    assert "papermill notebooks/loss.ipynb out.ipynb -p profile mini" in text
    assert "rdl-badge-smoke" in text
    assert "<b>CPU" not in text
    assert "&lt;b&gt;CPU" in text


def test_a_long_name_takes_lines_and_not_the_figures_place():
    names = ["student + bi-encoder + first stage", "dual, lists from bm25+bm25_rm3+splade+tas_b+ada2"]
    values = {name: [0.4, 0.5] for name in ("mean", "ci_low", "ci_high")} | {"p_value": [None, 0.1]}
    shown = means(pd.DataFrame(values, index=names), measure="nDCG@10").axes[0].get_yticklabels()
    short, long = (label.get_text() for label in shown)
    assert short == names[0]
    assert long.split("\n") == ["dual, lists from bm25+bm25_rm3+", "splade+tas_b+ada2"]


def test_published_figures_are_the_papers():
    trec = tables.published("trec_dl")
    assert trec.loc["dual/rank-distillm-colbert"].tolist() == [0.72, 0.711, 0.768, 0.77]
    assert tables.published("depth").loc[50, "colbert"] == pytest.approx(0.772, abs=5e-4)
    assert tables.published("efficiency").loc["RankZephyr-7B", "seconds_per_query"] == 24.047
    assert tables.published("tirex").loc["RankZephyr", "cord19"] == 0.767


@pytest.mark.parametrize(
    ("gains", "equal", "says"),
    [
        ([0.10, 0.12, 0.11, 0.09], False, "reproduced"),
        ([0.10, -0.09, 0.12, -0.08], False, "partly"),
        ([-0.10, -0.12, 0.01, -0.09], False, "not reproduced"),
        ([0.001, -0.001, 0.002, 0.0], True, "reproduced"),
        ([0.20, -0.19, 0.18, -0.17], True, "partly"),
        ([0.10, 0.12, 0.11, 0.09], True, "not reproduced"),
    ],
)
def test_a_verdict_is_read_off_the_interval(gains, equal, says):
    worse = pd.Series([0.3, 0.4, 0.5, 0.6], index=list("abcd"))
    values = pd.DataFrame({"worse": worse, "better": worse + gains})
    claim = Claim(text="", published="", page="", equal=equal)
    assert verdict(values, claim)[0] == says
