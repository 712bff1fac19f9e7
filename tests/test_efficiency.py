"""Efficiency: systems take turns, warm-up is not timed, and the figures are the timings'."""

import pytest
import torch
from conftest import make_model

from rdl_core import efficiency
from rdl_core.efficiency import measure, weight_bytes


class Clock:
    """A clock that moves only when work is done."""

    now = 0.0

    def perf_counter(self):
        return self.now


@pytest.fixture
def clock(monkeypatch):
    clock = Clock()
    monkeypatch.setattr(efficiency, "time", clock)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    return clock


def system(clock, name, seen, seconds):
    def rank(query):
        seen.append((name, query))
        clock.now += seconds[query]

    return rank


def test_figures_are_those_of_the_timed_rounds(clock):
    seconds = [0.010, 0.020, 0.040]
    table = measure(
        {"slow": system(clock, "slow", [], [10 * s for s in seconds]),
         "fast": system(clock, "fast", [], seconds)},
        range(3), passages_per_query=50, warmup=2, repetitions=4,
    )  # fmt: skip
    assert table.index.tolist() == ["slow", "fast"]
    assert table["n_timings"].tolist() == [12, 12]
    assert table["median_ms"].tolist() == pytest.approx([200, 20])
    assert table["p95_ms"].tolist() == pytest.approx([400, 40])
    assert table["passages_per_s"].tolist() == pytest.approx([50 / 0.2, 50 / 0.02])
    assert "peak_allocated_bytes" not in table


def test_p95_lies_between_the_timings(clock):
    table = measure({"one": system(clock, "one", [], [i / 1000 for i in range(21)])}, range(21),
                    passages_per_query=1, warmup=0, repetitions=1)  # fmt: skip
    assert table.loc["one", ["median_ms", "p95_ms"]].tolist() == pytest.approx([10, 19])


def test_systems_take_turns_after_the_warm_up(clock):
    seen = []
    systems = {name: system(clock, name, seen, [1, 1, 1]) for name in "ab"}
    measure(systems, range(3), passages_per_query=1, warmup=1, repetitions=2)
    warm, timed = seen[:2], seen[2:]
    assert warm == [("a", 0), ("b", 0)]
    assert timed == [(name, query) for _ in range(2) for query in range(3) for name in "ab"]


def test_weight_bytes_counts_weights_and_buffers_of_each_precision():
    model = make_model("bert")
    n_weights = sum(p.numel() for p in model.parameters())
    n_buffer_bytes = sum(b.numel() * b.element_size() for b in model.buffers())
    assert n_buffer_bytes > 0
    assert weight_bytes(model) == 4 * n_weights + n_buffer_bytes
    assert weight_bytes(model.bfloat16()) == 2 * n_weights + n_buffer_bytes
