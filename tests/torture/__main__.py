"""Break the commands on purpose, run them again, and compare with what nothing disturbed.

``python -m tests.torture --repetitions 5`` writes ``results/torture/faults.csv``, a row for each fault,
and a manifest. Processes are really killed, disks really full, files really changed. A command that was
run again ended with the undisturbed result (resumed), or first said what to do and, that done, ended
with it (refused); or it did neither (lost), or ended with another result (wrong).
"""

import argparse
import functools
import hashlib
import json
import multiprocessing
import os
import random
import shutil
import signal
import tempfile
import time
from datetime import UTC, datetime
from pathlib import Path

import pandas as pd
from safetensors.torch import load_file, save_file

from rdl_study.store import machine, project_folder
from tests.torture import child

ENDS = ("resumed", "refused", "lost", "wrong")


class Workshop:
    """Inputs, servers, and the results that nothing disturbed. Each command is a forked process."""

    def __init__(self, base):
        self.base, self.inputs = base, base / "inputs"
        self._context = multiprocessing.get_context("forkserver")
        self._context.set_forkserver_preload(["tests.torture.child"])
        self.url = child.make_inputs(self.inputs)

    def folder(self):
        return Path(tempfile.mkdtemp(dir=self.base))

    def start(self, task, folder, most_bytes=None):
        (folder / "said.txt").unlink(missing_ok=True)
        arguments = (task, folder, self.inputs, self.url, most_bytes)
        process = self._context.Process(target=child.run, args=arguments)
        process.start()
        return process

    def run(self, task, folder, *, kill_after=300.0, most_bytes=None):
        """Run a task; its exit code, negative where it was killed, and its messages."""
        process, said = self.start(task, folder, most_bytes), folder / "said.txt"
        process.join(kill_after)
        if process.is_alive():
            process.kill()
            process.join()
        return process.exitcode, said.read_text(errors="replace") if said.exists() else ""

    @functools.cache  # noqa: B019 - there is one
    def whole(self, task):
        """The undisturbed result of a task, the folder, and how long it took."""
        folder, started = self.folder(), time.monotonic()
        code, said = self.run(task, folder)
        if code:
            raise RuntimeError(f"{task} failed undisturbed: {said}")
        return result(task, folder), folder, time.monotonic() - started

    def compared(self, task, folder, end):
        return end if result(task, folder) == self.whole(task)[0] else "wrong"

    def ended(self, task, folder, said="", *, refused=False):
        """Run undisturbed, and compare with the result that nothing disturbed."""
        code, now = self.run(task, folder)
        end = self.compared(task, folder, "refused" if refused else "resumed")
        return ("lost" if code else end), line_of(said) or line_of(now)

    def told(self, task, folder, word, mend):
        """Run on what is broken: where it is refused, with this word, mend it and run again."""
        code, said = self.run(task, folder)
        if code == 0:
            return self.compared(task, folder, "resumed"), line_of(said)
        if word not in said:
            return "lost", line_of(said)
        mend()
        return self.ended(task, folder, said, refused=True)


def result(task, folder):
    """SHA-256 of every file that a task is for."""
    paths = [path for pattern in child.TASKS[task] for path in sorted(folder.glob(pattern))]
    return {str(p.relative_to(folder)): hashlib.sha256(p.read_bytes()).hexdigest() for p in paths}


def line_of(said):
    """The last line that says what went wrong."""
    lines = [line for line in said.splitlines() if "rror" in line or "changed since" in line]
    return lines[-1] if lines else ""


def emptied(folder):
    shutil.rmtree(folder)
    folder.mkdir()


def killed(task, shop, draw):
    """SIGKILL once or twice at random moments, then to the end."""
    folder, (_, _, whole_s), hits = shop.folder(), shop.whole(task), 0
    while not hits:
        emptied(folder)  # it was done before
        for _ in range(draw.choice([1, 2])):
            hits += shop.run(task, folder, kill_after=draw.uniform(0, whole_s))[0] == -signal.SIGKILL
    return shop.ended(task, folder)


def disk_full(task, shop, draw):
    """No file may grow past a size drawn below that of the largest of the result."""
    whole, folder = shop.whole(task)[1], shop.folder()
    largest = max((whole / name).stat().st_size for name in result(task, whole))
    # The limit holds for its messages, too, which must have room.
    code, said = shop.run(task, folder, most_bytes=draw.randrange(2_000, largest))
    if code and "disk is full" not in said:
        return "lost", line_of(said)
    return shop.ended(task, folder, said, refused=bool(code))


def damaged(task, name, remedy, shop, draw, *, cut):
    """A file that an unfinished command left, or a finished one, changes before it runs again."""
    folder, (_, whole, whole_s) = shop.folder(), shop.whole(task)
    if remedy == "begun":
        while not (folder / name).exists() or (folder / "out/manifest.json").exists():
            emptied(folder)
            shop.run(task, folder, kill_after=draw.uniform(whole_s / 4, whole_s))
    else:
        shutil.copytree(whole, folder, dirs_exist_ok=True)
        for unfinished in remedy:
            (folder / unfinished).unlink()
    raw = bytearray((folder / name).read_bytes())
    if cut:
        del raw[draw.randrange(len(raw)) :]
    else:
        raw[draw.randrange(len(raw))] ^= 1 << draw.randrange(8)
    (folder / name).write_bytes(raw)
    mend = (folder / name).unlink if remedy == "begun" else functools.partial(emptied, folder)
    return shop.told(task, folder, name.rpartition("/")[2], mend)


def weights_of_nan(task, shop, draw):
    """A weight of the model is NaN: refused, and nothing is written."""
    file = shop.inputs / ("student" if task == "rerank" else "encoder") / "model.safetensors"
    right, weights, folder = file.read_bytes(), load_file(file), shop.folder()
    name = draw.choice([n for n, w in weights.items() if "layer.0" in n and w.is_floating_point()])
    weights[name].flatten()[draw.randrange(weights[name].numel())] = float("nan")
    save_file(weights, file, metadata={"format": "pt"})
    wrote = []

    def mend():
        wrote.extend(n for n in ("out.run", "out/model", "out/manifest.json") if (folder / n).exists())
        file.write_bytes(right)
        emptied(folder)

    try:
        end, said = shop.told(task, folder, "nan", mend)
    finally:
        file.write_bytes(right)
    return ("wrong" if wrote else end), said


def worker_dies(shop, draw):
    """SIGKILL for one of two processes at a random step; the launch must end by itself."""
    task, code = "two processes", 0
    while code == 0:  # it was done before
        folder, steps = shop.folder(), draw.randrange(25)
        launched, log = shop.start(task, folder), folder / "out" / "log.jsonl"
        while launched.is_alive() and (not log.exists() or log.read_text().count("\n") < steps):
            time.sleep(0.01)
        children = Path(f"/proc/{launched.pid}/task/{launched.pid}/children")
        if launched.is_alive() and (workers := children.read_text().split()):
            os.kill(int(draw.choice(workers)), signal.SIGKILL)
        launched.join(120)
        code = launched.exitcode
    return shop.ended(task, folder)


FAULTS = {f"SIGKILL, {task}": functools.partial(killed, task)
          for task in child.TASKS if task != "two processes"}  # fmt: skip
FAULTS["SIGKILL, one of two processes"] = worker_dies
for task in ("fetch", "teach", "distill", "rerank"):
    FAULTS[f"disk full, {task}"] = functools.partial(disk_full, task)
for how in ("truncated", "altered"):
    for what, task, name, remedy in (
        ("downloaded file", "fetch", "cache/downloads/vaswani/b", ()),
        ("token store", "distill", "out/tokens/passage/tokens.bin", ("out/manifest.json",)),
        ("checkpoint", "distill", "out/checkpoint.safetensors", "begun"),
        ("student", "distill", "out/model/model.safetensors", ()),
    ):
        fault = functools.partial(damaged, task, name, remedy, cut=how == "truncated")
        FAULTS[f"{how} {what}"] = fault
for task in ("distill", "rerank"):
    FAULTS[f"NaN in the weights, {task}"] = functools.partial(weights_of_nan, task)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--repetitions", type=int, default=3, help="of every fault")
    parser.add_argument("--seconds", type=float, default=800, help="no repetition begins later")
    parser.add_argument("--fault", default="", help="only those whose name has this in it")
    parser.add_argument("--out", type=Path, default=project_folder() / "results" / "torture")
    options = parser.parse_args()
    started, draw, rows, said = time.monotonic(), random.Random(0), [], {}
    with tempfile.TemporaryDirectory(prefix="torture-") as base:
        shop = Workshop(Path(base))
        for name in (name for name in FAULTS if options.fault in name):
            ends = []
            for number in range(options.repetitions):
                at = time.monotonic() - started
                if number == 0 or at < options.seconds:
                    end, message = FAULTS[name](shop, draw)
                    ends.append(end)
                    said[name] = message or said.get(name, "")
                    print(f"{at:4.0f} s  {name}: {end}  {message[:120]}", flush=True)
            rows.append({"fault": name, "tried": len(ends)} | {end: ends.count(end) for end in ENDS})
    options.out.mkdir(parents=True, exist_ok=True)
    manifest = {
        "command": "make torture", "seed": 0, "repetitions": options.repetitions,
        "wall_s": round(time.monotonic() - started), "load": os.getloadavg()[1], "said": said,
        "finished": datetime.now(UTC).isoformat(timespec="seconds"),
        **machine(),  # before the table itself changes the checkout
    }  # fmt: skip
    pd.DataFrame(rows).to_csv(options.out / "faults.csv", index=False)
    (options.out / "manifest.json").write_text(json.dumps(manifest, indent=1) + "\n")
    return any(row["lost"] + row["wrong"] for row in rows)


if __name__ == "__main__":
    raise SystemExit(main())
