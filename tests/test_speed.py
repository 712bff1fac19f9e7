"""What races found, for people: ratios the right way up, times that can be checked by hand.

Seen to fail: a rate multiplied where it divides; eight machines that take longer than one; a slope
of the sizes over the times; scores of all systems compared; three passes of labelling.
"""

import pandas as pd
import pytest

from rdl_study import bench, speed
from rdl_study.bench.measure import Measured
from rdl_study.bench.parts import PARTS


def measured(timings, **manifest):
    systems = timings["system"].unique()
    machines = pd.DataFrame(
        {"loaded_bytes": 1e6, "peak_bytes": 2e6, "versions": [{"torch": "2"}] * len(systems)},
        index=systems,
    )
    return Measured(timings=timings, machines=machines, manifest=manifest)


@pytest.fixture
def race():
    rows = [(s, n, t, ms) for t in range(3) for n in range(2) for s, ms in (("a", 10.0), ("b", 25.0))]
    timings = pd.DataFrame(rows, columns=["system", "call", "turn", "ms"])
    return measured(timings, differences={"b": 3e-8})


def test_the_table_divides_the_baseline_by_each(race):
    table = speed.table(race, "b").set_index("system")
    assert table.loc["a", "times as fast"] == "2.50"
    assert table.loc["b", "times as fast"] == "baseline"
    assert table.loc["b", "scores differ by"] == "3e-08"
    assert table.loc["a", "peak, MB"] == "2"
    assert table["timings"].tolist() == [6, 6]


def test_scores_of_another_kind_are_not_compared(race):
    """A bi-encoder's differ from a cross-encoder's by what they are."""
    shown = speed.table(measured(race.timings, differences={"b": 0.7}), "b")
    assert "scores differ by" not in shown


def test_the_answer_names_both_and_the_number(race):
    assert speed.answer(race, "a", "b", "ranks").data == (
        "**a** ranks 2.50 times as fast as **b** (median of 6 turns; the middle half of them 2.50 "
        "to 2.50)."
    )


def test_growth_is_a_slope_in_logarithms(monkeypatch):
    """Time as the square root of the size: 0.5."""
    sizes = [1, 100, 10_000]
    rows = [("a", n, 0, float(size**0.5)) for n, size in enumerate(sizes)]
    timings = pd.DataFrame(rows, columns=["system", "call", "turn", "ms"])
    monkeypatch.setattr(speed, "recorded", lambda part: measured(timings, sizes=sizes))
    assert "0.50 for **a**" in speed.slope_sentence("depth", 1).data


def test_costs_by_hand():
    rates = pd.DataFrame(
        {"work": ["labelling", "training"], "system": "s", "where": "w", "passages per s": [10.0, 50.0]}
    )
    table = speed.cost_table(rates)
    assert table["10,000 pairs"].tolist() == ["16.7 minutes", "3.3 minutes"]
    assert table["1,000,000,000 on eight"].tolist() == ["144.7 days", "28.9 days"]
    assert speed.student_price(rates)["time"].tolist() == ["1.2 days", "16.7 hours"]


def test_every_part_that_a_page_shows_is_recorded():
    for part in PARTS:
        found = speed.recorded(part)
        assert found.manifest["part"] == part
        assert not found.timings.empty
        assert set(found.machines.index) == set(found.timings["system"])
        assert "dirty" not in found.manifest["commit"]


def test_an_unknown_part_is_refused():
    with pytest.raises(ValueError, match="part: expected one of rank, engine.*given 'speed'"):
        bench.measure_part("speed", None, model="", repetitions=1)
