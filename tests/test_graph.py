"""The graph: what waits for what, what is made again, and what executors are told."""

import json
import logging
import os
import re
import subprocess
import sys
from dataclasses import asdict, replace

import pytest
from click.testing import CliRunner
from common import child_environment
from tiny_notebooks import write_notebook

from rdl_study import cli, graph, grid, notebook, pages
from rdl_study.grid import Part, rankings
from rdl_study.profile import load_profile
from rdl_study.store import project_folder

ROOT = project_folder()
MINI = load_profile("mini")
pytestmark = pytest.mark.usefixtures("store")


@pytest.fixture(scope="module")
def mini():
    return graph.nodes("mini")


def jobs(**systems):
    part = Part(profile=MINI, systems=systems, baseline=next(iter(systems)))
    return graph.jobs({"page": [part]})[0]


def snakemake(*words, plan, config=(), **environment):
    """In a session of its own, so that no signal to its process group reaches this process."""
    words = [*words, "--nolock", "--config", f"plan={plan}", *config]
    return subprocess.run(
        [sys.executable, "-m", "snakemake", "-s", ROOT / "Snakefile", *words], cwd=ROOT, text=True,
        env=child_environment(**environment), capture_output=True, start_new_session=True,
    )  # fmt: skip


def test_nodes_come_behind_those_that_they_need_and_share_the_first_stage(mini):
    names = list(mini)
    assert all(set(mini[name].needs) <= set(names[:n]) for n, name in enumerate(names))
    assert names[-1].startswith("page-start-")
    *others, costs, start = (name for name in names if name.startswith("page-"))
    assert set(others) <= {*mini[costs].needs} & {*mini[start].needs}
    assert costs.startswith("page-costs-") and costs not in mini[start].needs  # they run side by side
    nodes = [node for node in mini.values() if node.kind == "student"]
    students = [student for node in nodes for do, (student,) in node.work if do is grid.train]
    assert len({repr(student) for student in students}) == len(students) > len(nodes)
    (shared,) = (node for node in nodes if (grid.train, (MINI.student(MINI.stage1),)) in node.work)
    later = [node for node in nodes if len(node.work[0][1][0].stages) == 2]
    assert all(shared.name in node.needs for node in later)
    assert len(later) == 3  # the student, that of a corpus of one's own, and all ablations together
    for page, parts in graph.declarations("mini").items():  # all that it ranks with is made before
        (node,) = (node for node in mini.values() if node.key.startswith(f"{page}-"))
        made = {repr(config) for name in node.needs for _, (config, *_) in mini[name].work}
        systems = [(part.profile, x) for part in parts.values() for x in part.systems.values()]
        assert {repr(config) for system in systems for config in rankings(*system)} <= made


def test_configuration_code_and_files_name_a_node_and_precision_does_not(tmp_path, monkeypatch):
    """A file's content counts in the store, which a marker must not hide."""
    here, there = (replace(MINI, precision=x).student() for x in ("float32", "bfloat16"))
    assert list(jobs(a=here)) == list(jobs(a=there))
    file = tmp_path / "teacher.run"
    file.write_text("q Q0 d 1 1.0 t\n")
    stage2 = replace(MINI.stage2, lists=replace(MINI.stage2.lists, teacher=str(file)))
    other = replace(stage2, training=replace(stage2.training, loss="listnet"))
    a, b = (MINI.student(MINI.stage1, stage) for stage in (stage2, other))
    one, two = jobs(a=a), jobs(a=a, b=b)
    assert [two[name].kind for name in two.keys() - one.keys()] == ["student"]
    os.utime(file, (0, 0))  # as in a job's own copy of the checkout, which once named other nodes
    assert jobs(a=a).keys() == one.keys()
    file.write_text("q Q0 e 1 1.0 t\nq Q0 d 2 0.5 t\n")
    changed = one.keys() - jobs(a=a).keys()
    assert sorted(one[name].kind for name in changed) == ["lists", "student"]  # not the first stage
    monkeypatch.setattr(graph, "code_hash", lambda *modules: "changed")
    assert not one.keys() & jobs(a=a).keys()


def test_a_marker_is_forgotten_when_a_run_of_its_is_gone(store, mini):
    marker, manifest = graph.marker(next(iter(mini))), store / "tokens-a" / "manifest.json"
    for file in (marker, manifest):
        file.parent.mkdir(parents=True)
        file.write_text('{"runs": ["tokens-a"]}')
    for expected in (True, False):
        graph.plan("mini")
        assert marker.exists() == expected
        manifest.unlink(missing_ok=True)


@pytest.mark.parametrize(("command", "words", "says"), [
    (cli.book, "--executor cloud", "expected one of generic, kubernetes, slurm"),
    (cli.study, "--profile mini --page nope", "expected one of .*got 'nope'"),
    (cli.run, "student-0", "expected one of .*'student-0'.*plan again"),
])  # fmt: skip
def test_a_mistake_is_named_before_anything_runs(command, words, says, caplog):
    caplog.set_level(logging.INFO)
    done = CliRunner().invoke(command, words.split())
    assert (done.exit_code, done.output[:7]) == (2, "error: ")
    assert re.search(says, done.output)
    assert "computing" not in caplog.text


def test_a_dry_run_names_every_node_once():
    plan = graph.plan("trec-dl")
    done = snakemake("-n", "--workflow-profile=cluster/kubernetes", plan=plan)
    assert done.returncode == 0, done.stderr
    for node in json.loads(plan.read_text())["nodes"]:
        assert f": {node['name']}: {node['what']}\n" in done.stdout + done.stderr


def test_slurm_is_asked_for_threads_memory_time_and_a_gpu(tmp_path, mini):
    """The plugin's own command, as a program in place of sbatch finds it."""
    for name in ("sbatch", "sacct", "squeue", "scancel", "sinfo", "scontrol", "sacctmgr"):
        failing = f"cat >> {tmp_path}/asked; exit 1" if name == "sbatch" else "exit 0"
        script = f'#!/bin/sh\nprintf "%s\\n" "{name}" "$@" >> {tmp_path}/asked\n{failing}\n'
        (tmp_path / name).write_text(script)
        (tmp_path / name).chmod(0o755)
    plan, first = graph.plan("mini", threads=7), next(iter(mini))
    words = "--workflow-profile cluster/slurm --retries 0 --slurm-init-seconds-before-status-checks 1"
    path = f"{tmp_path}:{os.environ['PATH']}"
    snakemake(str(graph.marker(first)), *words.split(), plan=plan, config=["gpu=1"], PATH=path)
    asked = (tmp_path / "asked").read_text().replace("\n", " ")
    for word in ("sbatch", "--cpus-per-task=7", "--gpus=1", "-t 60 --mem 6000", "Snakefile", first):
        assert word in asked
    assert f"plan={plan}" in asked


@pytest.fixture
def profile(tiny, tmp_path):
    file = tmp_path / "tiny.yaml"
    file.write_text(json.dumps(asdict(replace(tiny, notebooks={}))))
    return str(file)


def test_a_study_without_notebooks_is_recorded_and_done(profile, tmp_path, monkeypatch, runs):
    """A page's students are trained, recorded, and found by the graph."""
    for module in (notebook, pages, cli):
        monkeypatch.setattr(module, "project_folder", lambda: tmp_path)
    write_notebook(tmp_path, "loss")
    done = CliRunner().invoke(cli.study, ["--profile", profile, "--record", "-p", "losses=[listnet]"])
    assert done.exit_code == 0, done.output
    assert "losses,listnet" in (tmp_path / "results" / "tiny" / "loss.csv").read_text()
    parts = graph.declarations(profile, changes={"losses": ["listnet"]})["loss"]
    of_page = graph.jobs({"loss": parts.values()})[1]["loss"]
    assert all(graph.marker(name).exists() for name in of_page)


@pytest.mark.slow
def test_jobs_with_working_copies_of_their_own_give_the_same_bytes(profile, tmp_path, monkeypatch):
    """Two training runs, one after the other, here and through cluster-generic."""
    files = []
    for name, where in (("here", "--cores=2"), ("there", "--workflow-profile=cluster/generic")):
        folder = tmp_path / name
        monkeypatch.setenv("RDL_RUNS", str(folder))
        nodes, plan = graph.nodes(profile).values(), graph.plan(profile)
        last = next(node for node in nodes if any(x.startswith("student") for x in node.needs))
        done = snakemake(str(graph.marker(last.name)), where, "--scheduler", "greedy", plan=plan)
        assert done.returncode == 0, done.stderr
        paths = [*folder.glob("rank-*/run.parquet"), *folder.glob("train-*/model/model.safetensors")]
        files.append({path.relative_to(folder): path.read_bytes() for path in paths})
    assert files[0] == files[1]
    assert sum(path.suffix == ".safetensors" for path in files[0]) == 2
