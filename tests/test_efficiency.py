"""Races: systems take turns, each in a process of its own; and what the pages make of their figures."""

import ast
import json
import os
import sys
import time
from contextlib import suppress
from dataclasses import replace
from typing import get_args

import numpy as np
import pandas as pd
import pytest
from pydantic import ValidationError

from rdl_core.data.collections import load
from rdl_core.data.downloads import EMBEDDED_ENCODER, embedded_path
from rdl_core.evaluate import per_query
from rdl_study import notebook
from rdl_study.bench import gpu, measure, systems, training
from rdl_study.bench.config import BenchConfig, Part
from rdl_study.bench.race import System, race, ratios, recorded, summary
from rdl_study.lists import lists
from rdl_tools import cli

FILE = """
import os, time

def echo(work, name="", log=None, wait=0.0, lists_at_once=1):
    print("a library prints as it loads")
    def call(number):
        print("and as it works")
        if log:
            with open(log, "a") as file:
                file.write(f"{name}{number} ")
        time.sleep(wait)
        return [work["times"] * number, os.getpid()]
    call.lists_at_once = lists_at_once
    return call

def loop(work, log, steps):
    def train(step_ended):
        for n in range(steps):
            with open(log, "a") as file:
                file.write(f"{n} ")
            step_ended()
    train.is_loop = True
    return train

def threads_that_wait(work):
    return lambda number: os.environ.get("OMP_WAIT_POLICY", "as PyTorch has it")
"""
# As nvidia-ml-py has it, for a counter, in millijoules, that moves by 6,000 with every call of `echo`.
DRIVER = """
from pathlib import Path
nvmlInit, nvmlDeviceGetHandleByIndex = lambda: None, int
def nvmlDeviceGetTotalEnergyConsumption(device):
    return 6000 * len(Path(__file__).with_name("log").read_text().split())
"""


@pytest.fixture
def system(tmp_path):
    file = tmp_path / "those.py"
    file.write_text(FILE)
    return lambda function="echo", **options: System(function=function, options=options, file=str(file))


def machine(system, *calls):
    """What a system's process says of itself, raced alone."""
    return race({"x": system}, {"times": 2}, calls=list(calls), repetitions=1)[1]["x"]


def test_systems_take_turns_and_each_opens_as_often(system, tmp_path):
    """One by an interpreter of its own, as Lightning IR's: a worker that imports nothing of ours."""
    log, python = tmp_path / "log", tmp_path / "python"
    python.write_text(f'#!/bin/sh\nexec env -u PYTHONPATH {sys.executable} -I "$@"\n')
    python.chmod(0o755)
    both = {name: system(name=name, log=str(log), wait=0.05) for name in "ab"}
    both["b"] = replace(system(name="b", log=str(log), wait=0.3, lists_at_once=2), python=str(python))
    timings, machines, results = race(both, {"times": 10}, calls=[1, 2], repetitions=2)
    assert log.read_text() == "a1 b1 a1 b1 b2 a2 a1 b1 b2 a2 "
    table = summary(timings)  # without the warm-up, of one list
    assert table["n_timings"].tolist() == [4, 4]
    assert 50 <= table["median_ms"]["a"] < 150 <= table["median_ms"]["b"] < 300
    assert [results["a"][n][0] for n in (1, 2)] == [10, 20]
    assert results["a"][1][1] != results["b"][1][1]  # processes
    assert all(x["peak_bytes"] >= x["loaded_bytes"] / 2 > 0 for x in machines.values())
    assert not any("joules" in x for x in machines.values())  # no driver


def test_a_training_loop_goes_on_step_by_step_and_its_last_words_are_told(system, tmp_path):
    log = tmp_path / "log"
    machine(system("loop", log=str(log), steps=9), 0, 1)
    assert log.read_text() == "0 1 2 3 "  # one to load, one to warm up
    with pytest.raises(ChildProcessError, match="(?s)x: expected a reply.*training loop ended"):
        machine(system("loop", log=str(log), steps=2), 0, 1)


def test_energy_is_told_per_list_where_the_driver_counts_it(system, tmp_path, monkeypatch):
    twice = system(log=str(tmp_path / "log"), lists_at_once=2)
    (tmp_path / "pynvml.py").write_text(DRIVER)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path), prepend=os.pathsep)
    assert machine(twice, 0, 1)["joules"] == 3.0
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "GPU-elsewhere")
    assert "joules" not in machine(twice, 0)  # no such device


def test_who_is_timed_has_the_cores_alone(system, monkeypatch):
    """`make book` has threads sleep, as jobs share the cores: sentence-transformers is slower then."""
    monkeypatch.setenv("OMP_WAIT_POLICY", "PASSIVE")
    results = race({"x": system("threads_that_wait")}, {}, calls=[0], repetitions=1)[2]
    assert results == {"x": {0: "as PyTorch has it"}}


@pytest.fixture(scope="module")
def work(encoder_folder):
    lists = [{"query": "red fox", "passages": ["a fox is red", "whales"]}] * 10
    lists.append({"query": "blue whale", "passages": ["noise and more noise", "whales sing"]})
    return {"model": encoder_folder, "bi_encoder": embedded_path(EMBEDDED_ENCODER), "query_tokens": 8,
            "passage_tokens": 8, "pair_tokens": 19, "lists": lists}  # fmt: skip


def lengths(work, number):
    """Tokens in the sequence of each pair of a list."""
    query, passages = work["lists"][number].values()
    tokenizer = systems.load_student(work).tokenizer
    return [len(tokenizer(query, text)["input_ids"]) for text in passages]


def test_ours_scores_as_sentence_transformers_does_in_every_way(work):
    theirs = systems.rank_sentence_transformers(work, batch_size=2)(10)
    for options in ({}, {"stored": True}, {"laid_out": False}, {"fill": 1}, {"workers": 1}):
        ours = systems.rank_ours(work, **options)(10).numpy()
        np.testing.assert_allclose(ours, theirs, atol=1e-5, err_msg=str(options))
    electra = {"embedding_size": 8, "hidden_size": 8, "num_hidden_layers": 2, "num_attention_heads": 2}
    assert len(systems.rank_ours(work, sizes=electra)(10)) == 2
    assert len(systems.rank_bi_encoder(work)(10)) == len(systems.rank_bm25(work)(10)) == 2
    llama = {"hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1,
             "num_attention_heads": 2, "num_key_value_heads": 1}  # fmt: skip
    for mode in ("free", "first_token"):
        rank = systems.rank_listwise_llm(work, sizes=llama, mode=mode, batch_size=2)
        assert (sorted(rank(10)), rank.lists_at_once) == ([1, 2], 2)
    started, rank = time.perf_counter(), systems.rank_listwise_llm(work, sizes=llama, first=2)
    assert 0 <= rank(10) < (time.perf_counter() - started) * 1000


def test_operations_are_counted(work):
    """Of width 8 everywhere; our second and last layer has one query, and keys and values of none."""
    of_pairs = lengths(work, 0)
    n, longest = len(of_pairs), max(of_pairs)
    attention, head = 2 * 8 * n * longest**2, n * (64 + 8)
    last = n * 6 * 64 + 2 * attention // longest
    ours = 6 * 64 * sum(of_pairs) + attention + last + head
    theirs = 2 * (6 * 64 * n * longest + attention) + head
    assert systems.rank_and_count(work)(0) == 2 * ours
    assert systems.rank_and_count(work, batch_size=2)(0) == 2 * theirs
    assert systems.matrix_products(work, precision="float32")(0) == 2 * 2048**3


def test_a_step_trains_on_the_list_of_its_number(work, monkeypatch):
    """With ids as text, list 10 once came before list 2."""
    seen, step = [], training.Training.step
    monkeypatch.setattr(training.Training, "step", lambda self, x, *rest, **own: (
        seen.append(x), step(self, x, *rest, **own))[1])  # fmt: skip
    assert training.train_ours(work)(10) > 0
    [lists] = seen
    tokens = lists.passages.lengths(lists.passage_rows[0], 99)
    tokens += lists.queries.lengths(lists.query_rows, 99) + 3
    assert tokens.tolist() == lengths(work, 10) != lengths(work, 0)
    one_list = work | {"lists": work["lists"][10:]}
    assert training.sample_ours(one_list, n_lists=1, list_size=2)(0) == sum(lengths(work, 10))


def test_figures_are_kept_and_other_options_refused(tiny, runs, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(measure, "load_profile", lambda name: tiny)
    measure.bench(BenchConfig(parts=("sample",), repetitions=1, out=str(tmp_path)))
    assert "sample: A batch" in capsys.readouterr().out
    kept = measure.read(tmp_path / "sample.json")
    assert kept.timings["system"].unique().tolist() == ["ours"]  # peers were not asked for
    assert recorded("sample").manifest.keys() <= kept.manifest.keys()
    work = {"lists": [{"query": "q", "passages": ["a b"]}]}
    assert set(measure.parts(work, "toy")) == set(get_args(Part))
    for wrong in ({"parts": ("speed",)}, {"queries": 0}, {"llm": "70B"}, {"x": 1}):
        with pytest.raises(ValidationError, match=next(iter(wrong))):
            BenchConfig(**wrong)


def test_steps_for_a_gpu_keep_the_budget_and_say_how_they_ended(tmp_path):
    python = [sys.executable, "-c"]
    commands = {"a": [*python, "print('told')"], "b": [*python, "raise SystemExit(3)"],
                "c": [*python, "import time; time.sleep(60)"], "d": [*python, ""]}  # fmt: skip
    gpu.run(commands, tmp_path, budget_s=5)
    steps = json.loads((tmp_path / "gpu.json").read_text())
    assert [step["ended"] for step in steps.values()] == [0, 3, "out of time", "not begun"]
    assert sum(step.get("wall_s", 0) for step in steps.values()) < 9
    assert (tmp_path / "a.log").read_text() == "told\n"


def test_every_step_for_a_gpu_is_a_command_that_rdl_takes(tmp_path):
    commands = gpu.steps(BenchConfig(parts=("gpu",), profile="mini"), tmp_path / "out", tmp_path)
    assert [*commands] == ["tests", "rank", "rank-ELECTRA, a toy", "llm", "training", "study"]
    for name in [*commands][1:]:
        _, _, _, which, *words = commands[name]
        with cli.app.get_command(None, which).make_context(which, words) as context:
            assert context.params["profile"] == "mini", name


def test_effectiveness_is_that_of_the_scores(tiny, runs):
    test = replace(tiny.test, n_queries=3)
    frame, qrels = lists(test), load(test.collection).qrels
    sizes = frame.groupby("query_id").size().tolist()
    results = {"first": {n: list(range(size, 0, -1)) for n, size in enumerate(sizes)}, "other": {0: 3}}
    judged = qrels[qrels["query_id"].isin(frame["query_id"])]
    expected = per_query(judged, frame.assign(score=-frame["rank"]), "nDCG@10")["nDCG@10"].mean()
    assert measure._effectiveness(test, results) == {"first": pytest.approx(expected)}


def test_ratios_are_taken_turn_by_turn():
    """Other work slows the second turn of three."""
    turns = {"system": ["a", "b"] * 3, "call": 0, "turn": [0, 0, 1, 1, 2, 2]}
    timings = pd.DataFrame(turns | {"ms": [10.0, 25.0, 60.0, 120.0, 10.0, 25.0]})
    table = ratios(timings, "b").T.to_dict("list")  # median and quartiles
    assert table == {"a": pytest.approx([2.5, 2.25, 2.5]), "b": [1.0, 1.0, 1.0]}


def test_costs_by_hand():
    """The page's functions and constants, without what it measures."""
    names = {}
    for node in ast.parse("\n".join(source for _, source in notebook.cells("costs"))).body:
        constant = isinstance(node, ast.Assign) and getattr(node.targets[0], "id", "").isupper()
        if constant or isinstance(node, (ast.FunctionDef, ast.Import, ast.ImportFrom)):
            with suppress(NameError):  # of a value that another cell computes
                exec(compile(ast.Module([node], []), "costs", "exec"), names)
    rates = pd.DataFrame({"work": ["labelling", "training"], "passages per s": [10.0, 50.0]})
    table = names["scaled"](rates)
    assert table["10,000 pairs"].tolist() == ["16.7 minutes", "3.3 minutes"]
    assert table["1,000,000,000 on eight"].tolist() == ["144.7 days", "28.9 days"]
    assert names["price"](rates)["time"].tolist() == ["1.2 days", "16.7 hours"]


@pytest.mark.parametrize("part", [*get_args(Part), "full_size"])
def test_every_part_that_a_page_shows_is_recorded(part):
    timings, manifest = recorded(part)
    assert manifest["part"] == part
    assert set(manifest["machines"]) == set(timings["system"]) != set()
    assert "dirty" not in manifest["commit"]
