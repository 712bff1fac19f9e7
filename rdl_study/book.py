"""`rdl book`: Snakemake with what it needs to know, and what failed in a line each."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import psutil
import torch

from rdl_study import graph
from rdl_study.store import project_folder, runs_folder

__all__ = ["snakemake"]

_ALWAYS = (
    # Markers are named by all that they depend on: whether they are there is all that counts. Two
    # processes never compute the same run, so that a lock left by a killed one need stop nobody.
    "--rerun-triggers", "mtime", "--rerun-incomplete", "--nolock", "--scheduler", "greedy",
    "--keep-going",
)  # fmt: skip


def snakemake(
    profile: str,
    *,
    executor: str | None = None,
    jobs: int | None = None,
    threads: int | None = None,
    gpus: int = 0,
    more: Sequence[str] = (),
) -> list[str]:
    """Run the graph of a profile as far as it is not done.

    Args:
        profile: Name of a profile, or a path of one.
        executor: A folder of ``cluster/``, or another folder of Snakemake's settings; None runs
            jobs on this machine.
        jobs: Most jobs at the same time, or cores of this machine; None takes the executor's
            number, or all cores.
        threads: Of each job that computes; None takes this machine's.
        gpus: That each of these jobs asks the executor for.
        more: Further arguments for Snakemake, such as ``-n``.

    Returns:
        What failed, a line each; nothing where all went well.

    Raises:
        ValueError: An unknown profile or executor.

    >>> snakemake("mini", executor="no such queue")
    Traceback (most recent call last):
    ValueError: executor: expected one of generic, kubernetes, slurm, ...
    """
    root = project_folder()
    there, memory_mb = ["--cores", str(jobs or "all")], _memory_mb()
    if executor:
        known = {path.parent.name: path.parent for path in root.glob("cluster/*/config.yaml")}
        folder = known.get(executor, Path(executor).resolve())
        if not (folder / "config.yaml").is_file():
            raise ValueError(
                f"executor: expected one of {', '.join(sorted(known))}, or a folder with "
                f"config.yaml; given {executor!r}"
            )
        memory_mb = 0  # the executor's matter
        there = ["--workflow-profile", str(folder), *(["--jobs", str(jobs)] if jobs else [])]
    profile = str(Path(profile).resolve()) if profile.endswith(".yaml") else profile
    planned = graph.plan(profile, threads)
    command = [
        str(Path(sys.executable).with_name("snakemake")), "--snakefile", str(root / "Snakefile"),
        *there, *_ALWAYS, *more, "--config", f"plan={planned}", f"gpu={gpus}",
        f"memory_mb={memory_mb}",
    ]  # fmt: skip
    environment = {**os.environ, "RDL_RUNS": str(runs_folder())}
    started = time.time()
    done = subprocess.run(command, cwd=root, env=environment, check=False).returncode
    return _failures(planned, started) if done else []


def _memory_mb() -> int:
    """For jobs side by side; none where they would share a GPU, whose memory nobody deals out."""
    return 0 if torch.cuda.is_available() else psutil.virtual_memory().total // 2**20


def _failures(planned: Path, started: float) -> list[str]:
    """The last line of each job's log that has no marker; else, that the graph itself failed."""
    told = []
    for node in json.loads(planned.read_text())["nodes"]:
        marker = graph.marker(node["name"])
        log = marker.parent / "logs" / f"{node['name']}.log"
        if log.exists() and log.stat().st_mtime >= started and not marker.exists():
            lines = log.read_text(errors="replace").split("\n")
            last = next((line for line in reversed(lines) if line.strip()), "nothing was said")
            told.append(f"{node['what']}: {last.removeprefix('error: ')} (all of it: {log})")
    return told or ["the graph stopped; what Snakemake says stands above"]
