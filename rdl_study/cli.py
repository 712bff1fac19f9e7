"""The study's commands of `rdl`; ``python -m rdl_study`` has those that the ``Snakefile`` calls.

Importing this module needs no torch, so that ``--help`` is quick.
"""

from __future__ import annotations

import json
import logging
import os
import shutil
import subprocess
import sys
import time
from contextlib import chdir
from dataclasses import replace
from pathlib import Path
from typing import Any

import click

from rdl_core.config import Count, config
from rdl_study.bench.config import BenchConfig
from rdl_study.store import project_folder, runs_folder
from rdl_tools.cli import command, named_values

__all__ = ["bench", "book", "build", "plan", "run", "snakemake", "study"]
# Markers are named after all that they depend on: only whether they exist counts. Two processes never
# compute the same run, so that the lock of a killed one need not stop anybody.
_SNAKEMAKE = ("--rerun-triggers", "mtime", "--rerun-incomplete", "--nolock", "--keep-going",
              "--scheduler", "greedy")  # fmt: skip
_log = logging.getLogger(__name__)


@config
class ProfileConfig:
    profile: str = "mini"
    """A profile in profiles/, or a path of one."""
    threads: Count = 0
    """Threads of each job; 0: all of this machine."""


@config
class BookConfig(ProfileConfig):
    executor: str | None = None
    """Where jobs run: generic, kubernetes, slurm, or a folder of Snakemake's settings; none: here."""
    jobs: Count = 0
    """Jobs at once, or cores of this machine; 0: as many as fit."""
    gpus: Count = 0
    """GPUs that each job asks the executor for."""
    more: tuple[str, ...] = ()
    """For Snakemake, behind --, such as -n or study."""


@config
class StudyConfig:
    profile: str
    """Profile to run, such as trec-dl."""
    page: tuple[str, ...] = ()
    """Page to run; again for more; none: all."""
    seeds: Count = 0
    """Only this many of the profile's seeds; 0: all."""
    record: bool = False
    """Keep figures and manifests under results/."""


@config
class RunConfig(ProfileConfig):
    node: str
    """Its name, such as student-0123456789ab."""


@command(BookConfig, "more")
def book(config: BookConfig) -> str | None:
    """Run the study at a profile, as far as the store does not hold it, and build the book."""
    started = time.time()
    if failures := snakemake(config):
        click.echo("\n".join(f"error: {line}" for line in failures), err=True)
        raise click.exceptions.Exit(1)
    page = project_folder() / "_build" / "html" / "index.html"
    return None if config.more else f"done in {time.time() - started:.0f} s; open {page.as_uri()}"


@command(StudyConfig)
@click.option("-p", "parameters", multiple=True, metavar="NAME=VALUE", callback=named_values,
              help="Parameter of the page's notebook, such as losses=[ranknet].")  # fmt: skip
def study(config: StudyConfig, parameters: dict[str, Any]) -> None:
    """Train and rank what pages compare, in one process, as far as the store does not hold it.

    For a GPU that is there for an hour: no process has to start, and notebooks and graph find all done.
    """
    from rdl_study import graph, grid, tables

    pages, seeds = graph.declarations(config.profile, config.page, parameters), config.seeds
    for parts in pages.values() if seeds else ():
        for name, part in parts.items():
            few = replace(part.profile, seeds=part.profile.seeds[:seeds])
            parts[name] = replace(part, profile=few)
    nodes, of_page = graph.jobs({page: parts.values() for page, parts in pages.items()})
    for page, parts in pages.items():
        for name in (name for name in of_page[page] if not graph.marker(name).exists()):
            graph.run(nodes[name])
        results = {name: grid.measure(part) for name, part in parts.items()}
        for name, result in results.items():
            means = result.values.mean().map("{:.4f}".format).to_dict()
            _log.info("%s, %s: %s %s", page, name, result.profile.measure, means)
        if config.record and results:
            folder = project_folder() / "results" / Path(config.profile).stem
            _log.info("recorded %s", tables.record(page, results, folder))


@command(RunConfig, "node")
def run(config: RunConfig) -> None:
    """Run one job of the graph, as far as the store does not hold it."""
    from rdl_study import graph

    nodes = graph.nodes(config.profile)
    if config.node not in nodes:
        raise ValueError(
            f"node: expected one of {len(nodes)} of {config.profile!r}, got {config.node!r}: code or "
            "configuration changed since it was planned; plan again"
        )
    graph.run(nodes[config.node])


@command(BenchConfig, "parts")
def bench(config: BenchConfig) -> None:
    """Race systems on the same passages, weights and lengths, and keep the figures.

    Parts are rank, runtimes, engine, train, sample, depth, length, list_size, cores, llm, window,
    limit; none: all. gpu: what needs a GPU, the most telling first, within a budget.
    """
    from rdl_study.bench import gpu, measure

    (gpu.spend if "gpu" in config.parts else measure.bench)(config)


@command(ProfileConfig)
def plan(config: ProfileConfig) -> str:
    """Write a profile's graph for Snakemake; prints the file's path."""
    from rdl_study import graph

    return str(graph.plan(config.profile, config.threads or None))


@command(ProfileConfig)
def build(config: ProfileConfig) -> None:
    """Gather the executed pages and build the book in a new folder, which then replaces the last."""
    from jupyter_book.cli.main import main as jupyter_book

    from rdl_study import live, pages, site

    started, root = time.monotonic(), project_folder()
    pages.publish(config.profile, root / "book" / "pages")
    fresh = root / "_build" / "fresh"
    shutil.rmtree(fresh, ignore_errors=True)
    words = ["build", ".", "-W", "-n", "--keep-going", "-q", "--path-output", str(fresh)]
    try:  # in this process: a builder of its own would outlive a kill, and write into the next build
        with chdir(root):
            jupyter_book(words, standalone_mode=False)
    except RuntimeError as error:
        raise ValueError(str(error)) from None
    logging.getLogger().handlers.clear()  # a package of its theme's shows the messages of all others
    built = fresh / "_build" / "html"
    index = built / "index.html"  # leads on: a browser shall not ask for its icon meanwhile
    index.write_text(f'<link rel="icon" href="data:,">\n{index.read_text()}')
    _log.info(live.make_live(config.profile, built))
    if broken := site.broken_links(built):
        raise ValueError("the book has broken links\n" + "\n".join(broken))
    shutil.rmtree(root / "_build" / "html", ignore_errors=True)
    built.rename(root / "_build" / "html")
    shutil.rmtree(fresh)
    _log.info("book built in %.0f s", time.monotonic() - started)


def snakemake(config: BookConfig) -> list[str]:
    """Run a profile's graph as far as it is not done; gives a line for each job that failed."""
    import psutil
    import torch

    from rdl_study import graph

    root = project_folder()
    where = ["--cores", str(config.jobs or "all")]
    # Two jobs side by side only without a GPU, whose memory nobody shares out; else the executor's.
    memory_mb = 0 if torch.cuda.is_available() else psutil.virtual_memory().total // 2**20
    if config.executor:
        known = {path.parent.name: path.parent for path in root.glob("cluster/*/config.yaml")}
        folder = known.get(config.executor, Path(config.executor).resolve())
        if not (folder / "config.yaml").is_file():
            raise ValueError(
                f"executor: expected one of {', '.join(sorted(known))}, or a folder with config.yaml; "
                f"got {config.executor!r}"
            )
        where, memory_mb = ["--workflow-profile", str(folder)], 0
        where += ["--jobs", str(config.jobs)] if config.jobs else []
    profile = config.profile  # a job may run in another folder
    profile = str(Path(profile).resolve()) if profile.endswith(".yaml") else profile
    planned, started = graph.plan(profile, config.threads or None), time.time()
    words = [
        str(Path(sys.executable).with_name("snakemake")), "--snakefile", str(root / "Snakefile"),
        *where, *_SNAKEMAKE, *config.more, "--config", f"plan={planned}", f"gpu={config.gpus}",
        f"memory_mb={memory_mb}",
    ]  # fmt: skip
    environment = {**os.environ, "RDL_RUNS": str(runs_folder())}
    if not subprocess.run(words, cwd=root, env=environment, check=False).returncode:
        return []
    failures = []
    for node in json.loads(planned.read_text())["nodes"]:
        marker = graph.marker(node["name"])
        log = marker.parent / "logs" / f"{node['name']}.log"
        if log.exists() and log.stat().st_mtime >= started and not marker.exists():
            lines = filter(str.strip, log.read_text(errors="replace").split("\n"))
            *_, last = "the log is empty", *lines
            failures.append(f"{node['what']}: {last.removeprefix('error: ')} (log: {log})")
    return failures or ["the graph stopped; see Snakemake's messages above"]


#: Commands that the Snakefile calls.
nodes = click.Group(commands=[plan, run, build])
