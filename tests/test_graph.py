"""The graph: what waits for what, what is made again, and what executors are told.

Jobs are planned, and one graph is run for real, at a profile of a few queries.

Mutation seen to fail: this machine's precision counted in a node's name.
"""

import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import yaml

from rdl_study.book import snakemake
from rdl_study import graph
from rdl_study.grid import Part, rankings
from rdl_study.profile import load_profile
from rdl_study.store import project_folder

ROOT = project_folder()
MINI = load_profile("mini")
SNAKEMAKE = str(Path(sys.executable).with_name("snakemake"))


@pytest.fixture(autouse=True)
def store(tmp_path, monkeypatch):
    monkeypatch.setenv("RDL_RUNS", str(tmp_path / "runs"))
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    return tmp_path / "runs"


@pytest.fixture(scope="module")
def mini():
    return graph.nodes("mini")


def part_of(**systems):
    return Part(profile=MINI, systems=systems, baseline=next(iter(systems)))


def call(*more, plan, environment=(), config=()):
    command = [SNAKEMAKE, "-s", str(ROOT / "Snakefile"), *more, "--nolock"]
    command += ["--config", f"plan={plan}", *config]
    return subprocess.run(
        command, cwd=ROOT, env={**os.environ, **dict(environment)}, capture_output=True, text=True,
        check=False,
    )  # fmt: skip


def test_every_node_comes_behind_those_that_it_needs(mini):
    seen = set()
    for name, node in mini.items():
        assert seen >= set(node.needs)
        seen.add(name)


def test_each_training_is_a_node_of_its_own_and_the_first_stage_is_shared(mini):
    trained = [node for node in mini.values() if node.kind == "student"]
    configs = [config for node in trained for do, config in node.work if do is graph.student]
    assert len(configs) == len(trained)  # one each
    assert len({repr(config) for config in configs}) == len(configs)  # none twice
    first = [n for n, c in zip(trained, configs, strict=True) if c == MINI.student("first")]
    (shared,) = first
    stage2 = [n for n, c in zip(trained, configs, strict=True) if len(c.stages) == 2]
    assert len(stage2) > 5
    assert all(shared.name in node.needs for node in stage2)


def test_pages_find_all_that_they_rank_with_made_before(mini):
    for page, part in (("loss", "losses"), ("effectiveness", "bm25")):
        given = graph.check_parameters(page, {"profile": "mini", **MINI.notebooks[page]})
        asked = given.parts[part]
        wanted = {repr(r) for s in asked.systems.values() for r in rankings(asked.profile, s)}
        (node,) = [node for node in mini.values() if node.key.startswith(f"{page}-")]
        made = {repr(config) for name in node.needs for do, config in mini[name].work}
        assert wanted <= made


def test_the_last_page_waits_for_all_others(mini):
    (start,) = [node for node in mini.values() if node.key.startswith("start-")]
    assert set(start.needs) >= {name for name in mini if name.startswith("page-")} - {start.name}


def test_another_configuration_makes_another_node_and_leaves_the_others_alone():
    one, _ = graph.jobs({"page": [part_of(a=MINI.student())]})
    two, _ = graph.jobs({"page": [part_of(a=MINI.student(), b=MINI.student(loss="listnet"))]})
    added = set(two) - set(one)
    assert len(added) == 1
    assert two[added.pop()].kind == "student"


def test_changed_code_makes_other_nodes(monkeypatch):
    one, _ = graph.jobs({"page": [part_of(a=MINI.student())]})
    monkeypatch.setattr(graph, "code_hash", lambda *modules: "changed")
    two, _ = graph.jobs({"page": [part_of(a=MINI.student())]})
    assert not set(one) & set(two)
    assert len(one) == len(two)


def test_a_changed_file_of_lists_makes_other_nodes(tmp_path):
    """Its content counts in the store, which a marker must not hide."""
    file = tmp_path / "teacher.run"
    file.write_text("q Q0 d 1 1.0 t\n")
    there = replace(MINI.stage2.lists, teacher=str(file))
    student = replace(MINI, stage2=replace(MINI.stage2, lists=there)).student
    one, _ = graph.jobs({"page": [part_of(a=student())]})
    file.write_text("q Q0 e 1 1.0 t\nq Q0 d 2 0.5 t\n")
    two, _ = graph.jobs({"page": [part_of(a=student())]})
    kinds = sorted(one[name].kind for name in set(one) - set(two))
    assert kinds == ["lists", "student"]  # the second stage alone: the first reads judgments


def test_what_auto_precision_means_on_this_machine_does_not_name_nodes():
    here, _ = graph.jobs({"page": [part_of(a=MINI.student(precision="float32"))]})
    there, _ = graph.jobs({"page": [part_of(a=MINI.student(precision="bfloat16"))]})
    assert list(here) == list(there)


def test_a_marker_is_forgotten_when_a_run_of_its_is_gone(store, mini):
    first = next(iter(mini))
    graph.marker(first).parent.mkdir(parents=True)
    graph.marker(first).write_text(json.dumps({"runs": ["tokens-a"]}))
    (store / "tokens-a").mkdir()
    (store / "tokens-a" / "manifest.json").write_text("{}")
    graph.plan("mini")
    assert graph.marker(first).exists()
    (store / "tokens-a" / "manifest.json").unlink()
    graph.plan("mini")
    assert not graph.marker(first).exists()


def test_an_unknown_executor_is_refused():
    with pytest.raises(ValueError, match="expected one of generic, kubernetes, slurm"):
        snakemake("mini", executor="cloud")


@pytest.mark.parametrize(
    ("profile", "executor"),
    [("trec-dl", None), ("mini", "generic"), ("mini", "slurm"), ("mini", "kubernetes")],
)
def test_a_dry_run_names_every_node_once(profile, executor):
    plan = graph.plan(profile)
    there = ["--workflow-profile", f"cluster/{executor}"] if executor else ["--cores", "2"]
    done = call("-n", *there, plan=plan)
    assert done.returncode == 0, done.stderr
    for node in json.loads(plan.read_text())["nodes"]:
        assert f": {node['name']}: {node['what']}\n" in done.stdout + done.stderr


def test_slurm_is_asked_for_threads_memory_time_and_a_gpu(tmp_path):
    """The plugin's own command, as a program in place of sbatch finds it."""
    bin_folder = tmp_path / "bin"
    bin_folder.mkdir()
    for name in ("sbatch", "sacct", "squeue", "scancel", "sinfo", "scontrol", "sacctmgr"):
        tool = bin_folder / name
        tool.write_text(
            f'#!/bin/sh\nprintf "%s\\n" "{name}" "$@" >> {tmp_path}/asked\n'
            f"[ {name} = sbatch ] && cat >> {tmp_path}/asked && exit 1\nexit 0\n"
        )
        tool.chmod(0o755)
    plan = graph.plan("mini", threads=7)
    first = next(iter(graph.nodes("mini")))
    call(
        str(graph.marker(first)), "--workflow-profile", "cluster/slurm", "--retries", "0",
        "--slurm-init-seconds-before-status-checks", "1", plan=plan, config=["gpu=1"],
        environment={"PATH": f"{bin_folder}:{os.environ['PATH']}"},
    )  # fmt: skip
    asked = (tmp_path / "asked").read_text()
    assert "sbatch" in asked
    assert "--cpus-per-task=7" in asked
    assert "--gpus=1" in asked
    assert "-t 60 --mem 6000" in asked.replace("\n", " ")
    assert f"plan={plan}" in asked  # jobs read the plan that was made once
    assert "Snakefile" in asked
    assert first in asked




@pytest.fixture
def tiny(tmp_path):
    """A study of a few queries."""
    values = yaml.safe_load((ROOT / "profiles" / "mini.yaml").read_text())
    for stage, n in (("stage1", 30), ("stage2", 10)):
        values[stage]["lists"] |= {"n_queries": n, "teacher": "judgments"}
        values[stage]["training"] |= {"steps": 2, "warmup_steps": 1, "targets": "judgments"}
    values["test"] |= {"n_queries": 10, "depth": 10}
    file = tmp_path / "tiny.yaml"
    file.write_text(yaml.safe_dump(values))
    return file


@pytest.mark.slow
def test_jobs_with_working_copies_of_their_own_give_the_same_bytes(tiny, tmp_path, monkeypatch):
    """Two training runs, one after the other, here and through cluster-generic."""
    found = []
    executors = (("here", ["--cores", "2"]), ("there", ["--workflow-profile", "cluster/generic"]))
    for name, there in executors:
        monkeypatch.setenv("RDL_RUNS", str(tmp_path / name))
        given = graph.nodes(str(tiny))
        plan = graph.plan(str(tiny))
        last = next(n for n in given.values() if any(x.startswith("student") for x in n.needs))
        done = call(str(graph.marker(last.name)), *there, "--scheduler", "greedy", plan=plan)
        assert done.returncode == 0, done.stderr
        runs = sorted((tmp_path / name).glob("rank-*/run.parquet"))
        weights = sorted((tmp_path / name).glob("train-*/model/model.safetensors"))
        found.append({file.parent.name: file.read_bytes() for file in runs})
        found[-1] |= {file.parts[-3]: file.read_bytes() for file in weights}
    assert found[0] == found[1]
    assert sum(run.startswith("train-") for run in found[0]) == 2
