"""Races: everybody in turns, each in a process of its own; and what the pages make of their figures.

Seen to fail: the first system always first in its turn; warm-up counted; one number for all calls;
what a library prints taken for a reply; seconds for milliseconds; a ratio upside down; energy of a
round of calls taken for one call's, or in millijoules; time or energy of several lists taken for one's;
a rate multiplied where it divides; eight machines that take longer than one; lists of another order
trained on; scores of all systems compared.
"""

import ast
import json
import os
import sys
from contextlib import suppress
from dataclasses import replace
from io import StringIO
from typing import get_args

import pandas as pd
import pytest
import torch
from conftest import small_stage
from pydantic import ValidationError

from rdl_core.data.downloads import EMBEDDED_ENCODER, encoder_path
from rdl_study import notebook
from rdl_study.bench import measure, systems, training
from rdl_study.bench.config import BenchConfig, Part, PrecisionConfig, SizeConfig
from rdl_study.bench.race import Measured, System, race, ratios, recorded, summary
from rdl_study.profile import load_profile

FILE = """
import os, time

def echo(work, name="", log=None, wait=0.0):
    print("a library prints as it loads")
    def call(number):
        print("and as it works")
        if log:
            with open(log, "a") as file:
                file.write(f"{name}{number} ")
        time.sleep(wait)
        return [work["times"] * number, os.getpid()]
    return call

def together(work, wait=0.0, log=None):
    call = echo(work, log=log, wait=wait)
    call.lists_at_once = 2
    return call

def loop(work, log, steps=100):
    def train(step_ended):
        for n in range(steps):
            with open(log, "a") as file:
                file.write(f"{n} ")
            step_ended()
    train.is_loop = True
    return train

def fails(work):
    def call(number):
        raise RuntimeError(f"no list {number}")
    return call
"""

# As nvidia-ml-py has it, for a counter that is the number of words in a file.
DRIVER = """
import os
from pathlib import Path

def nvmlInit(): pass

def nvmlDeviceGetHandleByIndex(index):
    return index

def nvmlDeviceGetHandleByUUID(uuid):
    raise LookupError(uuid)

def nvmlDeviceGetTotalEnergyConsumption(device):
    file = Path(os.environ["COUNTER"])
    return 6000 * len(file.read_text().split()) if file.exists() else 0
"""


@pytest.fixture
def system(tmp_path):
    (tmp_path / "those.py").write_text(FILE)
    file = str(tmp_path / "those.py")
    return lambda function="echo", **options: System(function=function, options=options, file=file)


def run(system, *, calls=(0,), repetitions=1, times=1):
    return race({"x": system}, {"times": times}, calls=list(calls), repetitions=repetitions)


# --- races ----------------------------------------------------------------------------------------


def test_systems_take_turns_and_each_opens_as_often(system, tmp_path):
    log = tmp_path / "log"
    both = {name: system(name=name, log=str(log)) for name in "ab"}
    timings, machines, results = race(both, {"times": 10}, calls=[1, 2], repetitions=2)
    expected = "a1 b1 a1 b1 b2 a2 a1 b1 b2 a2 ".split()
    assert log.read_text().split()[: len(expected)] == expected
    assert len(timings) == 8  # without the warm-up
    assert [results["a"][n][0] for n in (1, 2)] == [10, 20]
    assert results["a"][1][1] != results["b"][1][1]  # processes
    assert all(x["peak_bytes"] >= x["loaded_bytes"] / 2 > 0 for x in machines.values())


def test_times_are_those_of_the_calls_and_of_one_list(system):
    slow = {"slow": system(wait=0.05), "slower": system(wait=0.15), "two": system("together", wait=0.2)}
    timings, _, _ = race(slow, {"times": 1}, calls=[0], repetitions=3)
    ms = summary(timings)["median_ms"]
    assert 50 <= ms["slow"] < 150 <= ms["slower"]
    assert 100 <= ms["two"] < 200
    assert summary(timings)["n_timings"].tolist() == [3, 3, 3]


def test_ratios_are_taken_turn_by_turn():
    """A machine that gets slower by half changes no ratio."""
    turns = {"system": ["a", "b"] * 2, "call": 0, "turn": [0, 0, 1, 1], "ms": [6.0, 2.0, 9.0, 3.0]}
    table = ratios(pd.DataFrame(turns), "a")
    assert table.loc["b"].tolist() == [3.0, 3.0, 3.0]
    assert table.index.tolist() == ["a", "b"]


def test_a_training_loop_of_others_goes_on_step_by_step(system, tmp_path):
    log = tmp_path / "log"
    run(system("loop", log=str(log)), calls=[0, 1])
    assert log.read_text().split()[:5] == ["0", "1", "2", "3", "4"][: len(log.read_text().split())]
    with pytest.raises(ChildProcessError, match="(?s)x: expected a reply.*training loop ended"):
        run(system("loop", log=str(log), steps=2), calls=[0, 1])


def test_a_system_that_fails_is_named_with_its_last_words(system):
    with pytest.raises(ChildProcessError, match="(?s)x: expected a reply.*no list 7"):
        run(system("fails"), calls=[7])


def test_energy_is_told_per_list_where_the_driver_counts_it(system, tmp_path, monkeypatch):
    """A driver whose counter, in millijoules, moves by 6,000 with every call of whatever works."""
    log = str(tmp_path / "counter")
    assert "joules" not in run(system(log=log), calls=[0, 1])[1]["x"]  # no driver
    (tmp_path / "pynvml.py").write_text(DRIVER)
    monkeypatch.setenv("COUNTER", log)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path), prepend=os.pathsep)
    assert run(system(log=log), calls=[0, 1])[1]["x"]["joules"] == 6.0
    assert run(system("together", log=log), calls=[0, 1])[1]["x"]["joules"] == 3.0
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "GPU-elsewhere")
    assert "joules" not in run(system(log=log))[1]["x"]  # no such device


def test_an_interpreter_of_its_own(system, tmp_path):
    """As Lightning IR needs one: the worker imports nothing of ours."""
    python = tmp_path / "python"
    python.write_text(f'#!/bin/sh\nexec env -u PYTHONPATH {sys.executable} -I "$@"\n')
    python.chmod(0o755)
    results = run(replace(system(), python=str(python)), calls=[3], times=2)[2]
    assert results["x"][3][0] == 6


# --- systems --------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def work(encoder_folder):
    lists = [{"query": "red fox", "passages": ["a fox is red", "whales"]}] * 10
    lists.append({"query": "blue whale", "passages": ["noise and more noise", "whales sing"]})
    return {"model": encoder_folder, "bi_encoder": encoder_path(EMBEDDED_ENCODER), "query_tokens": 8,
            "passage_tokens": 8, "pair_tokens": 19, "lists": lists}  # fmt: skip


def lengths(work, number):
    """Tokens in the sequence of each pair of a list."""
    query, passages = work["lists"][number].values()
    tokenizer = systems.load_student(work).tokenizer
    return [len(tokenizer(query, text)["input_ids"]) for text in passages]


WAYS = [{}, {"stored": True}, {"laid_out": False}, {"fill": 1}, {"keep_pages": False}, {"workers": 1}]


@pytest.mark.parametrize("options", WAYS, ids=str)
def test_ours_scores_as_sentence_transformers_does(work, options):
    theirs = systems.rank_sentence_transformers(work, batch_size=2)(10)
    torch.testing.assert_close(systems.rank_ours(work, **options)(10).numpy(), theirs, atol=1e-5, rtol=0)


def test_others_rank_each_list(work):
    electra = {"embedding_size": 8, "hidden_size": 8, "num_hidden_layers": 2, "num_attention_heads": 2}
    rankers = [
        systems.rank_ours(work, sizes=electra), systems.rank_ours(work, precision="int8"),
        systems.rank_bi_encoder(work), systems.rank_bm25(work),
    ]  # fmt: skip
    assert [len(rank(10)) for rank in rankers] == [2] * 4


@pytest.mark.parametrize("mode", ["free", "constrained", "first_token"])
def test_a_listwise_llm_ranks_several_lists_at_once(work, mode):
    sizes = {"hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1,
             "num_attention_heads": 2, "num_key_value_heads": 1}  # fmt: skip
    rank = systems.rank_listwise_llm(work, sizes=sizes, mode=mode, batch_size=2)
    assert sorted(rank(10)) == [1, 2]
    assert rank.lists_at_once == 2


def test_operations_are_counted(work):
    """Of each sequence by itself; the last of two layers has one query and one output."""
    config = systems.load_student(work).model.config
    d, inner = config.hidden_size, config.intermediate_size
    sequences = [n * (4 * d * d + 2 * d * inner) + 2 * d * n * n + 2 * n * d * d + 2 * d * n
                 + 2 * d * d + 2 * d * inner for n in lengths(work, 0)]  # fmt: skip
    assert systems.encode_ours(work, precision="float32")(0) == 2 * sum(sequences)
    assert systems.matrix_products(work, precision="float32")(0) == 2 * 2048**3


def test_our_step_trains_on_the_list_of_its_number(work, monkeypatch):
    seen = []
    step = training.Training.step
    monkeypatch.setattr(
        training.Training, "step",
        lambda self, lists, *rest, **own: (seen.append(lists), step(self, lists, *rest, **own))[1],
    )  # fmt: skip
    assert training.train_ours(work)(10) > 0
    tokens = seen[0].passages.lengths(seen[0].passage_rows[0], 99)
    tokens += seen[0].queries.lengths(seen[0].query_rows, 99) + 3
    assert tokens.tolist() == lengths(work, 10) != lengths(work, 0)


def test_a_batch_is_drawn_and_packed(work):
    eleventh = work | {"lists": work["lists"][10:]}
    assert training.sample_ours(eleventh, n_lists=1, list_size=2)(0) == sum(lengths(work, 10))


# --- commands -------------------------------------------------------------------------------------


@pytest.fixture
def tiny(encoder_folder, tmp_path, monkeypatch):
    """A profile of a tiny student, and a store of its own."""
    monkeypatch.setenv("RDL_RUNS", str(tmp_path / "runs"))
    mini = load_profile("mini")
    stage = small_stage(mini.stage1, steps=1)
    test = replace(mini.test, n_queries=3, depth=5)
    profile = replace(mini, encoder=encoder_folder, stage1=stage, stage2=stage, test=test)
    monkeypatch.setattr(measure, "load_profile", lambda name: profile)
    return profile


def test_a_race_is_kept_with_all_that_pages_need(tiny, tmp_path):
    text = measure.bench(BenchConfig(parts=("sample",), queries=2, repetitions=1, out=str(tmp_path)))
    assert "sample: A batch of 32 lists" in text
    kept = measure.read(tmp_path / "sample.json")
    assert kept.timings["system"].unique().tolist() == ["ours"]  # peers were not asked for
    assert recorded("sample").manifest.keys() <= kept.manifest.keys() | {"python"}


def test_precisions_of_a_student(tiny, tmp_path):
    measure.precision(PrecisionConfig(model=tiny.encoder, out=str(tmp_path)))
    values = pd.read_csv(tmp_path / "precision.csv")
    assert values.groupby("precision")["query_id"].nunique().to_dict() == dict.fromkeys(
        ("float32", "bfloat16", "int8"), 3
    )
    assert json.loads((tmp_path / "precision.json").read_text())["weights"]


def test_the_way_of_data_in_made_up_files(tmp_path):
    made_up = measure._made_up(SizeConfig(passages=300, queries=40), tmp_path)
    steps = {step: training.data_path(made_up, step=step)(0) for step in ("open", "lists", "batch")}
    assert steps["lists"] == 40
    tokens = steps["batch"] / (32 * 100)  # 74 of a passage, 8 of a query, three special ones
    assert 70 < tokens < 100


def test_options_that_do_not_fit_are_refused():
    work = {"lists": [{"query": "q", "passages": ["a b"]}]}
    assert tuple(measure.parts(work, "toy")) == get_args(Part)
    for wrong in ({"parts": ("speed",)}, {"queries": 0}, {"repetitions": 0}, {"llm": "70B"}, {"speed": 1}):
        with pytest.raises(ValidationError, match=next(iter(wrong))):
            BenchConfig(**wrong)
    with pytest.raises(ValidationError, match="passages"):
        SizeConfig(passages=99)


# --- pages ----------------------------------------------------------------------------------------


def names_of(page):
    """What the functions, imports and constants in a notebook's cells are called and do."""
    kinds = (ast.FunctionDef, ast.Import, ast.ImportFrom)
    names = {}
    for _, source in notebook.cells(page):
        for node in ast.parse(source).body:
            constant = isinstance(node, ast.Assign) and getattr(node.targets[0], "id", "").isupper()
            if isinstance(node, kinds) or constant:
                with suppress(NameError):  # of a value that another cell computes
                    exec(compile(ast.Module([node], []), page, "exec"), names)
    return names


def measured(**manifest):
    rows = [(s, n, t, ms) for t in range(3) for n in range(2) for s, ms in (("a", 10.0), ("b", 25.0))]
    machine = {"loaded_bytes": 1e6, "peak_bytes": 2e6, "joules": 3.0}
    timings = pd.DataFrame(rows, columns=["system", "call", "turn", "ms"])
    return Measured(timings, manifest | {"machines": {"a": machine, "b": machine}})


def test_the_table_divides_the_baseline_by_each_system():
    table = names_of("efficiency")["compared"](measured(differences={"b": 3e-8}), "b").data
    [a, b] = pd.read_html(StringIO(table), keep_default_na=False)[0].astype(str).to_dict("records")
    assert (a["times as fast"], b["times as fast"]) == ("2.50", "baseline")
    assert (b["scores differ by"], a["peak, MB"], b["J"], a["timings"]) == ("3e-08", "2", "3.0", "6")


def test_scores_of_another_kind_are_not_compared():
    """A bi-encoder's differ from a cross-encoder's by what they are."""
    assert "scores differ" not in names_of("efficiency")["compared"](measured(differences={"b": 0.7}), "b").data


def test_the_sentence_names_both_and_the_number():
    assert names_of("efficiency")["times_as_fast"](measured(), "a", "b", "ranks") == (
        "**a** ranks 2.50 times as fast as **b** (median of 6 turns; the middle half of them 2.50 to 2.50)."
    )


def test_costs_by_hand():
    rates = {"work": ["labelling", "training"], "system": "s", "where": "w", "passages per s": [10.0, 50.0]}
    names, rates = names_of("costs"), pd.DataFrame(rates)
    table = names["scaled"](rates)
    assert table["10,000 pairs"].tolist() == ["16.7 minutes", "3.3 minutes"]
    assert table["1,000,000,000 on eight"].tolist() == ["144.7 days", "28.9 days"]
    assert names["price"](rates)["time"].tolist() == ["1.2 days", "16.7 hours"]
    assert names["duration"](0.5) == "0.5 seconds"


@pytest.mark.parametrize("part", [*get_args(Part), "full_size"])
def test_every_part_that_a_page_shows_is_recorded(part):
    timings, manifest = recorded(part)
    assert manifest["part"] == part
    assert set(manifest["machines"]) == set(timings["system"]) != set()
    assert "dirty" not in manifest["commit"]
