"""A race: systems take turns, each in a process of its own, and are timed inside that process.

They take turns call by call, so that a machine whose speed drifts slows all of them alike. A race is
kept as ``<part>.csv``, one row a call, and ``<part>.json``.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import pandas as pd

from rdl_core.progress import progress
from rdl_study.store import project_folder

_HERE = Path(__file__).parent


@dataclass(frozen=True, kw_only=True)
class System:
    """A function that takes the work and options, and returns what is called with numbers."""

    function: str
    options: dict[str, Any] = field(default_factory=dict)
    file: str = "systems.py"  # relative to this folder, or absolute
    python: str = sys.executable  # of the environment that it needs
    peer: bool = False  # runs only where peers are asked for
    threads: int | None = None  # of PyTorch; none: one for each core


class Measured(NamedTuple):
    """A race's ``system``, ``call``, ``turn``, ``ms`` of each call; and what ran where, as kept."""

    timings: pd.DataFrame
    manifest: dict[str, Any]


def read(file: Path) -> Measured:
    """A race that was kept, by its ``<part>.json``."""
    return Measured(pd.read_csv(file.with_suffix(".csv")), json.loads(file.read_text()))


def recorded(part: str, machine: str = "cpu") -> Measured:
    """A race that is kept in the repository."""
    return read(project_folder() / "results" / "efficiency" / machine / f"{part}.json")


def race(
    systems: dict[str, System], work: dict, *, calls: list[int], repetitions: int
) -> tuple[pd.DataFrame, dict[str, dict], dict[str, dict[int, Any]]]:
    """Race systems, by label, after a call of each that does not count.

    The work is JSON; the calls are the numbers that systems are called with, in this order. Gives the
    timings; memory in bytes and versions of each system, with CUDA also its memory on the GPU, with
    NVML the ``joules`` of a list; and what calls returned, by system and number. ChildProcessError has
    the last words of a system whose process ended.
    """
    rows, results = [], {label: {} for label in systems}
    with ExitStack() as stack:
        file = Path(stack.enter_context(tempfile.TemporaryDirectory())) / "work.json"
        file.write_text(json.dumps(work))
        ask = {label: stack.enter_context(_process(label, x, file)) for label, x in systems.items()}
        machines = {label: ask[label]("ready") for label in ask}
        for label in ask:
            ask[label](str(calls[0]))
        turns = [(turn, call) for turn in range(repetitions) for call in calls]
        for n, (turn, call) in enumerate(progress(turns, total=len(turns), what="timing")):
            first = n % len(ask)  # no system always runs on the caches that the same one has left
            for label in (list(ask) * 2)[first : first + len(ask)]:
                reply = ask[label](str(call))
                results[label][call] = reply["result"]
                rows.append({"system": label, "call": call, "turn": turn, "ms": reply["ms"]})
        for command in (" ".join(["energy", *map(str, calls)]), "end"):
            for label in ask:
                machines[label] |= ask[label](command)
    return pd.DataFrame(rows), machines, results


@contextmanager
def _process(label: str, system: System, work: Path) -> Iterator[Callable[[str], dict]]:
    """A system's process, as a function from a line to the reply to it."""
    job = {"file": str(_HERE / system.file), "function": system.function, "options": system.options}
    command = [system.python, str(_HERE / "worker.py"), json.dumps(job | {"work": str(work)})]
    # Threads that sleep while they wait suit jobs that share the cores, and slow a timed system down.
    own = {name: x for name, x in os.environ.items() if name != "OMP_WAIT_POLICY"}
    own |= {"OMP_NUM_THREADS": str(system.threads)} if system.threads else {}
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True, "env": own}
    with tempfile.TemporaryFile("w+", errors="replace") as log:
        process = subprocess.Popen(command, stderr=log, **pipes)

        def ask(line: str) -> dict:
            with suppress(BrokenPipeError):  # the missing reply tells why
                process.stdin.write(line + "\n")
                process.stdin.flush()
            if reply := process.stdout.readline():
                return json.loads(reply)
            log.seek(0)
            last_words = "\n".join(log.read().strip().splitlines()[-8:])
            raise ChildProcessError(f"{label}: expected a reply, but its process ended: {last_words}")

        try:
            yield ask
        finally:
            process.kill()
            process.communicate()


def summary(timings: pd.DataFrame) -> pd.DataFrame:
    """Per system ``median_ms``, ``p95_ms`` and ``n_timings``, in the order of their first turn."""
    ms = timings.groupby("system", sort=False)["ms"]
    return pd.DataFrame({"median_ms": ms.median(), "p95_ms": ms.quantile(0.95), "n_timings": ms.size()})


def ratios(timings: pd.DataFrame, baseline: str) -> pd.DataFrame:
    """Times as fast as a baseline, over all turns: ``median``, and quartiles ``low`` and ``high``."""
    ms = timings.pivot_table(index=["turn", "call"], columns="system", values="ms")
    times = ms.rdiv(ms[baseline], axis=0).quantile([0.5, 0.25, 0.75]).T
    return times.set_axis(["median", "low", "high"], axis=1).loc[timings["system"].unique()]


def machine_line(manifest: dict[str, Any]) -> str:
    """Where a race ran, on what, with which versions; Markdown."""
    versions = {k: v for of in manifest["machines"].values() for k, v in of["versions"].items()}
    libraries = ", ".join(f"{k} {v}" for k, v in sorted(versions.items()) if k != "tokenizers")
    lengths = ", ".join(map(str, sorted(set(manifest["lists"]))))
    return (
        "*{device}, {threads} threads; {collection}, {first_stage}; lists of {lengths}; weights of "
        "{model}; {libraries}; commit {commit}, {finished:.10}.*"
    ).format(**manifest, lengths=lengths, libraries=libraries)
