"""The graph: what waits for what, what is made again, and what executors are told.

Jobs are planned, and one graph is run for real, at a profile of a few queries.

Mutation seen to fail: this machine's precision counted in a node's name.
"""

import json
import logging
import os
import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import yaml
from click.testing import CliRunner
from tiny_notebooks import write_notebook

from rdl_study import cli, graph, grid, notebook, pages
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


def jobs(**systems):
    part = Part(profile=MINI, systems=systems, baseline=next(iter(systems)))
    return graph.jobs({"page": [part]})[0]


def call(*more, plan, environment=(), config=()):
    command = [SNAKEMAKE, "-s", str(ROOT / "Snakefile"), *more, "--nolock"]
    command += ["--config", f"plan={plan}", *config]
    environment = {**os.environ, **dict(environment)}
    return subprocess.run(
        command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False
    )


def test_nodes_come_behind_those_that_they_need_and_share_the_first_stage(mini):
    seen = set()
    for name, node in mini.items():
        assert seen >= set(node.needs)
        seen.add(name)
    last = list(mini.values())[-1]
    assert last.key.startswith("start-")
    assert set(last.needs) >= {name for name in mini if name.startswith("page-")} - {last.name}
    students = [node for node in mini.values() if node.kind == "student"]
    configs = [config for node in students for do, config in node.work if do is grid.train]
    assert len({repr(config) for config in configs}) == len(configs) == len(students)
    (shared,) = (n for n, c in zip(students, configs, strict=True) if c == MINI.student(MINI.stage1))
    stage2 = [n for n, c in zip(students, configs, strict=True) if len(c.stages) == 2]
    assert len(stage2) > 5
    assert all(shared.name in node.needs for node in stage2)


def test_pages_find_all_that_they_rank_with_made_before(mini):
    for page, parts in graph.declarations("mini").items():
        (node,) = (node for node in mini.values() if node.key.startswith(f"{page}-"))
        made = {repr(config) for name in node.needs for do, config in mini[name].work}
        for part in parts.values():
            wanted = {repr(x) for s in part.systems.values() for x in rankings(part.profile, s)}
            assert wanted <= made


def test_configuration_code_and_files_name_a_node_and_precision_does_not(tmp_path, monkeypatch):
    """A file's content counts in the store, which a marker must not hide."""
    here, there = (replace(MINI, precision=x).student() for x in ("float32", "bfloat16"))
    assert list(jobs(a=here)) == list(jobs(a=there))
    file = tmp_path / "teacher.run"
    file.write_text("q Q0 d 1 1.0 t\n")
    stage2 = replace(MINI.stage2, lists=replace(MINI.stage2.lists, teacher=str(file)))
    student = MINI.student(MINI.stage1, stage2)
    one = jobs(a=student)
    other = replace(stage2, training=replace(stage2.training, loss="listnet"))
    (added,) = set(two := jobs(a=student, b=MINI.student(MINI.stage1, other))) - set(one)
    assert two[added].kind == "student"
    file.write_text("q Q0 e 1 1.0 t\nq Q0 d 2 0.5 t\n")
    changed = set(one) - set(jobs(a=student))
    assert sorted(one[name].kind for name in changed) == ["lists", "student"]  # not the first stage
    monkeypatch.setattr(graph, "code_hash", lambda *modules: "changed")
    assert not set(one) & set(jobs(a=student))


def test_a_marker_is_forgotten_when_a_run_of_its_is_gone(store, mini):
    marker, manifest = graph.marker(next(iter(mini))), store / "tokens-a" / "manifest.json"
    for file in (marker, manifest):
        file.parent.mkdir(parents=True)
        file.write_text(json.dumps({"runs": ["tokens-a"]}))
    graph.plan("mini")
    assert marker.exists()
    manifest.unlink()
    graph.plan("mini")
    assert not marker.exists()


@pytest.mark.parametrize(
    ("command", "words", "says"),
    [
        (cli.book, ["--executor", "cloud"], "expected one of generic, kubernetes, slurm"),
        (cli.book, ["--profile", "mny"], "unknown profile 'mny'"),
        (cli.study, ["--profile", "mini", "--page", "nope"], "expected one of .*got 'nope'"),
        (cli.study, ["--profile", "mini", "--page", "loss", "-p", "losses=[nope]"], "losses: .*nope"),
        (cli.run, ["student-0"], "expected one of .*'student-0'.*plan again"),
    ],
)
def test_a_mistake_is_named_before_anything_runs(command, words, says, store, caplog):
    with caplog.at_level(logging.INFO):
        done = CliRunner().invoke(command, words)
    assert done.exit_code == 2
    assert done.output.startswith("error: ")
    assert re.search(says, done.output)
    assert not any("computing" in message for message in caplog.messages)


@pytest.mark.parametrize(("profile", "executor"), [("trec-dl", None), ("mini", "kubernetes")])
def test_a_dry_run_names_every_node_once(profile, executor):
    plan = graph.plan(profile)
    where = ["--workflow-profile", f"cluster/{executor}"] if executor else ["--cores", "2"]
    done = call("-n", *where, plan=plan)
    assert done.returncode == 0, done.stderr
    for node in json.loads(plan.read_text())["nodes"]:
        assert f": {node['name']}: {node['what']}\n" in done.stdout + done.stderr


def test_slurm_is_asked_for_threads_memory_time_and_a_gpu(tmp_path, mini):
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
    plan, first = graph.plan("mini", threads=7), next(iter(mini))
    call(
        str(graph.marker(first)), "--workflow-profile", "cluster/slurm", "--retries", "0",
        "--slurm-init-seconds-before-status-checks", "1", plan=plan, config=["gpu=1"],
        environment={"PATH": f"{bin_folder}:{os.environ['PATH']}"},
    )  # fmt: skip
    asked = (tmp_path / "asked").read_text().replace("\n", " ")
    for word in ("sbatch", "--cpus-per-task=7", "--gpus=1", "-t 60 --mem 6000", "Snakefile", first):
        assert word in asked
    assert f"plan={plan}" in asked  # jobs read the plan that was made once


@pytest.fixture
def tiny(tmp_path):
    """A profile of a few queries."""
    values = yaml.safe_load((ROOT / "profiles" / "mini.yaml").read_text())
    for stage, n in (("stage1", 30), ("stage2", 10)):
        values[stage]["lists"] |= {"n_queries": n, "teacher": "judgments"}
        values[stage]["training"] |= {"steps": 2, "warmup_steps": 1, "targets": "judgments"}
    values["test"] |= {"n_queries": 10, "depth": 10}
    file = tmp_path / "tiny.yaml"
    file.write_text(yaml.safe_dump(values))
    return file


def test_a_study_without_notebooks_is_recorded_and_done(tiny, tmp_path, monkeypatch, store):
    """A page's students are trained, recorded, and found by the graph."""
    for module in (notebook, pages, cli):
        monkeypatch.setattr(module, "project_folder", lambda: tmp_path)
    write_notebook(tmp_path, "loss")
    tiny.write_text(yaml.safe_dump(yaml.safe_load(tiny.read_text()) | {"notebooks": {}}))
    words = ["--profile", str(tiny), "--record", "-p", "losses=[listnet]"]
    done = CliRunner().invoke(cli.study, words)
    assert done.exit_code == 0, done.output
    assert "losses,listnet" in (tmp_path / "results" / "tiny" / "loss.csv").read_text()
    parts = graph.declarations(str(tiny), changes={"losses": ["listnet"]})["loss"]
    _, of_page = graph.jobs({"loss": parts.values()})
    assert all(graph.marker(name).exists() for name in of_page["loss"])
    assert len(list(store.glob("train-*/manifest.json"))) == 1


@pytest.mark.slow
def test_jobs_with_working_copies_of_their_own_give_the_same_bytes(tiny, tmp_path, monkeypatch):
    """Two training runs, one after the other, here and through cluster-generic."""
    files = []
    for name, where in (("here", "--cores=2"), ("there", "--workflow-profile=cluster/generic")):
        monkeypatch.setenv("RDL_RUNS", str(tmp_path / name))
        nodes, plan = graph.nodes(str(tiny)), graph.plan(str(tiny))
        last = next(n for n in nodes.values() if any(x.startswith("student") for x in n.needs))
        done = call(str(graph.marker(last.name)), where, "--scheduler", "greedy", plan=plan)
        assert done.returncode == 0, done.stderr
        paths = sorted((tmp_path / name).glob("rank-*/run.parquet"))
        paths += sorted((tmp_path / name).glob("train-*/model/model.safetensors"))
        files.append({str(x.relative_to(tmp_path / name)): x.read_bytes() for x in paths})
    assert files[0] == files[1]
    assert sum(path.startswith("train-") for path in files[0]) == 2
