"""Races: everybody in turns, each in a process of its own, timed inside it.

Seen to fail: the first system always first in its turn; warm-up counted; one number for all calls;
what a library prints taken for a reply; seconds for milliseconds; a ratio upside down; energy of a
round of calls taken for one call's, or in millijoules; time or energy of several lists taken for one's.
"""

import json
import os
import sys

import pandas as pd
import pytest

from rdl_study.bench import Job, System, race, ratios, summary

FILE = """
import os, time
from pathlib import Path

def echo(work, said="", log=None, wait=0.0):
    print("a library prints as it loads")
    def call(number):
        print("and as it works")
        if log:
            with open(log, "a") as file:
                file.write(f"{said}{number} ")
        time.sleep(wait)
        return [work["times"] * number, os.getpid()]
    return call

def together(work, wait=0.0, log=None):
    def call(number):
        time.sleep(wait)
        if log:
            with open(log, "a") as file:
                file.write("both ")
    call.lists_at_once = 2
    return call

def fails(work):
    def call(number):
        raise RuntimeError(f"no list {number}")
    return call
"""

# As nvidia-ml-py has it, for a counter that is the number of words in a file.
DRIVER = """
import os
from pathlib import Path

class NVMLError(Exception): pass

def nvmlInit(): pass

def nvmlDeviceGetHandleByIndex(index):
    return index

def nvmlDeviceGetHandleByUUID(uuid):
    raise NVMLError(uuid)

def nvmlDeviceGetTotalEnergyConsumption(device):
    file = Path(os.environ["COUNTER"])
    return 6000 * len(file.read_text().split()) if file.exists() else 0
"""


@pytest.fixture
def system(tmp_path):
    (tmp_path / "those.py").write_text(FILE)
    file = str(tmp_path / "those.py")
    return lambda function="echo", **options: System(function=function, options=options, file=file)


def test_systems_take_turns_and_each_opens_as_often(system, tmp_path):
    log = tmp_path / "log"
    systems = {name: system(said=name, log=str(log)) for name in "ab"}
    job = Job(systems=systems, work={"times": 10}, calls=[1, 2], repetitions=2, warmup=1)
    timings, machines, results = race(job)
    assert log.read_text().split() == ["a1", "b1", "a1", "b1", "b2", "a2", "a1", "b1", "b2", "a2"]
    assert len(timings) == 8  # without the warm-up
    assert [results["a"][n][0] for n in (1, 2)] == [10, 20]
    assert results["a"][1][1] != results["b"][1][1]  # processes
    assert (machines["peak_bytes"] > 0).all()
    assert (machines["peak_bytes"] >= machines["loaded_bytes"] / 2).all()


def test_times_are_those_of_the_calls(system):
    systems = {"slow": system(wait=0.05), "slower": system(wait=0.15)}
    timings, _, _ = race(Job(systems=systems, work={"times": 1}, calls=[0], repetitions=3))
    table = summary(timings)
    assert 50 <= table.loc["slow", "median_ms"] < 150 <= table.loc["slower", "median_ms"]
    assert table["n_timings"].tolist() == [3, 3]


def test_ratios_are_taken_turn_by_turn():
    """A machine that gets slower by half changes no ratio."""
    timings = pd.DataFrame(
        {
            "system": ["a", "b"] * 2, "call": 0, "turn": [0, 0, 1, 1],
            "ms": [6.0, 2.0, 9.0, 3.0],
        }
    )  # fmt: skip
    found = ratios(timings, "a")
    assert found.loc["b"].tolist() == [3.0, 3.0, 3.0]
    assert found.index.tolist() == ["a", "b"]


def test_a_system_that_fails_is_named_with_its_last_words(system):
    job = Job(systems={"x": system("fails")}, work={}, calls=[7], repetitions=1)
    with pytest.raises(ChildProcessError, match="x: expected a reply.*(?s:.*)no list 7"):
        race(job)


def test_a_call_of_several_lists_is_timed_per_list(system):
    job = Job(systems={"x": system("together", wait=0.2)}, work={}, calls=[0], repetitions=3)
    assert 50 <= race(job)[0]["ms"].min() < 150


def test_energy_is_told_per_list_where_the_driver_counts_it(system, tmp_path, monkeypatch):
    """A driver whose counter, in millijoules, moves by 6,000 with every call of whatever works."""
    (tmp_path / "pynvml.py").write_text(DRIVER)
    monkeypatch.setenv("COUNTER", str(tmp_path / "counter"))
    systems = {"x": system(log=str(tmp_path / "counter")), "y": system("together", log=str(tmp_path / "counter"))}
    job = Job(systems=systems, work={"times": 1}, calls=[0, 1], repetitions=1)
    assert "joules" not in race(job)[1]  # no driver
    monkeypatch.setenv("PYTHONPATH", str(tmp_path), prepend=os.pathsep)
    machines = race(job)[1]
    assert machines["joules"].to_dict() == {"x": 6.0, "y": 3.0}
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "GPU-elsewhere")
    assert "joules" not in race(job)[1]  # no such device


def test_a_job_of_nothing_is_refused(system):
    with pytest.raises(ValueError, match="at least one system, call and repetition"):
        Job(systems={}, work={}, calls=[1], repetitions=1)


def test_an_interpreter_of_one_s_own(system, tmp_path):
    """As Lightning IR needs one: the worker imports nothing of ours."""
    python = tmp_path / "python"
    python.write_text(f'#!/bin/sh\nexec env -u PYTHONPATH {sys.executable} -I "$@"\n')
    python.chmod(0o755)
    given = system()
    alone = System(function="echo", file=given.file, python=str(python))
    results = race(Job(systems={"x": alone}, work={"times": 2}, calls=[3], repetitions=1))[2]
    assert json.loads(json.dumps(results["x"][3]))[0] == 6
