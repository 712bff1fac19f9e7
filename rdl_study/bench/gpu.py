"""What needs a GPU, in the order of its worth, within a budget: ``rdl bench gpu``."""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from rdl_core.data.downloads import EMBEDDED_ENCODER, embedded_path
from rdl_study.bench.config import BenchConfig
from rdl_study.bench.measure import ELECTRAS, UNCUT
from rdl_study.bench.systems import load_student
from rdl_study.store import project_folder

_RDL = sys.executable, "-m", "rdl_tools.cli"


def spend(config: BenchConfig) -> None:
    """Run what needs a GPU, step by step, each with its files and log in ``out``; see `run`."""
    out = Path(config.out).resolve()
    with tempfile.TemporaryDirectory() as models:
        run(steps(config, out, Path(models)), out, config.budget_s)


def run(commands: dict[str, list[str]], out: Path, budget_s: float) -> None:
    """Run commands one after the other; after each, ``gpu.json`` has how they ended.

    The one that the budget ends in is stopped; parts that it had finished are there.
    """
    started, done = time.monotonic(), {}
    out.mkdir(parents=True, exist_ok=True)
    for name, command in commands.items():
        begun = time.monotonic()
        done[name] = {"ended": "not begun"}
        if (left := budget_s - (begun - started)) > 0:
            with (out / f"{name}.log").open("w") as log:
                how = {"stdout": log, "stderr": subprocess.STDOUT, "cwd": project_folder()}
                try:
                    ended = subprocess.run(command, timeout=left, check=False, **how).returncode
                except subprocess.TimeoutExpired:
                    ended = "out of time"
            done[name] = {"ended": ended, "wall_s": round(time.monotonic() - begun, 1)}
        (out / "gpu.json").write_text(json.dumps(done, indent=1) + "\n")
        print(name, done[name], flush=True)


def steps(config: BenchConfig, out: Path, models: Path) -> dict[str, list[str]]:
    """Commands by name: tests, races, the study of the profile."""

    def bench(*parts: str, to: str, **own: object) -> list[str]:
        options = [x for name, value in own.items() for x in (f"--{name}", value)]
        common = ["--profile", config.profile, "--llm", config.llm, "--queries", config.queries,
                  "--repetitions", config.repetitions, "--out", out / to]  # fmt: skip
        return [*_RDL, "bench", *parts, *map(str, [*common, *options])]

    commands = {
        "tests": [sys.executable, "-m", "pytest", "-q", "-m", "gpu", f"--junitxml={out / 'tests.xml'}",
                  "tests/test_samplers.py", "tests/test_losses.py", "tests/test_cross_encoder.py"],
        "rank": bench("rank", to="minilm"),
    }  # fmt: skip
    for name, sizes in ELECTRAS[config.llm].items():
        student = load_student({"model": embedded_path(EMBEDDED_ENCODER), **UNCUT}, sizes)
        student.save_pretrained(models / name)
        commands[f"rank-{name}"] = bench("rank", to=name, model=models / name)
    commands["llm"] = bench("llm", to="llm")
    commands["training"] = bench("limit", "train", "sample", to="training")
    study = ["--profile", config.profile, "--page", "effectiveness", "--record"]
    return commands | {"study": [*_RDL, "study", *study]}
