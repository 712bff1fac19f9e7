"""Systems in turns: the same calls, one process each, timed inside the process."""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pandas as pd

from rdl_core.progress import progress

__all__ = ["Job", "System", "race", "ratios", "summary"]

_HERE = Path(__file__).parent


@dataclass(frozen=True, kw_only=True)
class System:
    """Something that can be called with a number: ranks, trains on or samples that list."""

    function: str
    """In `file`: takes the work and the options, returns the function of the number."""
    options: dict[str, Any] = field(default_factory=dict)
    """Further arguments of it."""
    file: str = str(_HERE / "systems.py")
    """Where it is defined."""
    python: str = sys.executable
    """The interpreter of the environment that it needs."""


@dataclass(frozen=True, kw_only=True)
class Job:
    """A race: who, over what, how often."""

    systems: dict[str, System]
    """By label."""
    work: dict[str, Any]
    """What systems are made from; JSON."""
    calls: list[int]
    """Numbers that each system is called with, in this order."""
    repetitions: int
    """How often the whole order is gone through; each time once for every system."""
    warmup: int = 1
    """Calls of each system before the clock runs, the first ones of the order."""

    def __post_init__(self) -> None:
        if not self.systems or not self.calls or self.repetitions < 1 or self.warmup < 0:
            raise ValueError(
                "expected at least one system, call and repetition, and warmup of 0 or more, got "
                f"{len(self.systems)} systems, {len(self.calls)} calls, {self.repetitions} "
                f"repetitions, warmup {self.warmup}"
            )


def race(job: Job) -> tuple[pd.DataFrame, pd.DataFrame, dict[str, dict[int, Any]]]:
    """Run a job.

    Returns:
        Timings, one row each (``system``, ``call``, ``turn``, ``ms``); of each system
        ``loaded_bytes`` (resident when it was ready) and ``peak_bytes`` (resident at most while it
        worked; with CUDA also ``loaded_device_bytes``, ``peak_allocated_bytes``,
        ``peak_reserved_bytes``, and with NVML ``joules`` of a list) and ``versions``; and by system and
        number what the calls gave.

    Raises:
        ChildProcessError: A system's process ended; its last words are in the text.

    >>> file = folder / "echo.py"
    >>> _ = file.write_text("def echo(work): return lambda number: work['said'] * number")
    >>> echo = System(function="echo", file=str(file))
    >>> job = Job(systems={"echo": echo}, work={"said": "a"}, calls=[2], repetitions=3, warmup=0)
    >>> race(job)[2]
    {'echo': {2: 'aa'}}
    """
    rows, results = [], {label: {} for label in job.systems}
    with ExitStack() as stack:
        work = Path(stack.enter_context(tempfile.TemporaryDirectory())) / "work.json"
        work.write_text(json.dumps(job.work))
        workers = {
            label: stack.enter_context(_started(label, system, work))
            for label, system in job.systems.items()
        }
        said = {label: worker.reply() for label, worker in workers.items()}
        for label, worker in workers.items():
            for call in job.calls[: job.warmup]:
                results[label][call] = worker.call(call)["result"]
        turns = [(turn, call) for turn in range(job.repetitions) for call in job.calls]
        labels = list(workers)
        for n, (turn, call) in enumerate(progress(turns, total=len(turns), what="timing")):
            first = n % len(labels)  # nobody always runs on the caches of the same neighbour
            for label in labels[first:] + labels[:first]:
                reply = workers[label].call(call)
                results[label][call] = reply["result"]
                rows.append({"system": label, "call": call, "turn": turn, "ms": reply["ms"]})
        for label, worker in workers.items():
            said[label] |= worker.energy(job.calls)
        for label, worker in workers.items():
            said[label] |= worker.end()
    machines = pd.DataFrame.from_dict(said, orient="index").rename_axis("system")
    return pd.DataFrame(rows), machines.dropna(axis=1, how="all"), results


def summary(timings: pd.DataFrame) -> pd.DataFrame:
    """Per system ``median_ms``, ``p95_ms`` and ``n_timings``, in the order of their first turn.

    >>> summary(pd.DataFrame({"system": ["a"] * 2, "ms": [4.0, 6.0]})).loc["a", "median_ms"]
    np.float64(5.0)
    """
    by = timings.groupby("system", sort=False)["ms"]
    return pd.DataFrame(
        {"median_ms": by.median(), "p95_ms": by.quantile(0.95), "n_timings": by.size()}
    )


def ratios(timings: pd.DataFrame, baseline: str) -> pd.DataFrame:
    """How many times as long as each system the baseline took, turn by turn.

    Returns:
        Per system ``median``, ``low`` and ``high`` (quartiles) of the baseline's time over its own.

    >>> timings = pd.DataFrame({"system": ["a", "b"], "call": 0, "turn": 0, "ms": [6.0, 2.0]})
    >>> ratios(timings, "a").loc["b", "median"]
    np.float64(3.0)
    """
    wide = timings.pivot_table(index=["turn", "call"], columns="system", values="ms")
    times = wide.rdiv(wide[baseline], axis=0)
    found = times.quantile([0.5, 0.25, 0.75]).T.set_axis(["median", "low", "high"], axis=1)
    return found.loc[timings["system"].unique()]


class _Worker:
    """A worker's process and its pipes."""

    def __init__(self, label: str, process: subprocess.Popen, errors: Path) -> None:
        self._label, self._process, self._errors = label, process, errors

    def reply(self) -> dict:
        line = self._process.stdout.readline()
        if not line:
            said = self._errors.read_text(errors="replace").strip().splitlines()[-8:]
            raise ChildProcessError(
                f"{self._label}: expected a reply, but its process ended: " + "\n".join(said)
            )
        return json.loads(line)

    def call(self, number: int) -> dict:
        return self._ask(str(number))

    def _ask(self, line: str) -> dict:
        try:
            self._process.stdin.write(line + "\n")
            self._process.stdin.flush()
        except BrokenPipeError:
            pass  # the reply tells why
        return self.reply()

    def energy(self, numbers: list[int]) -> dict:
        return self._ask(" ".join(map(str, ["energy", *numbers])))

    def end(self) -> dict:
        self._process.stdin.close()
        return self.reply()


@contextmanager
def _started(label: str, system: System, work: Path) -> Iterator[_Worker]:
    job = {
        "file": system.file, "function": system.function, "options": system.options,
        "work": str(work),
    }
    with tempfile.NamedTemporaryFile("w", suffix=".log") as errors:
        process = subprocess.Popen(
            [system.python, str(_HERE / "worker.py"), json.dumps(job)],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=errors, text=True,
        )
        try:
            yield _Worker(label, process, Path(errors.name))
        finally:
            process.kill()
            process.wait()
            process.stdin.close()
            process.stdout.close()
