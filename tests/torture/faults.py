"""The faults: each breaks one thing, runs again, and says how it ended."""

import functools
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

from safetensors.torch import load_file, save_file

from tests.torture import child
from tests.torture.work import result


def line_of(said):
    """The last line that says what went wrong."""
    found = [line for line in said.splitlines() if "rror" in line or "not as it was" in line]
    return found[-1] if found else ""


def ended(shop, task, folder, said="", *, refused=False):
    """Run undisturbed, and compare with the result that nothing disturbed."""
    code, now = shop.run(task, folder)
    if code:
        return "lost", line_of(now)
    if result(task, folder) != shop.whole(task)[0]:
        return "wrong", line_of(now)
    return ("refused" if refused else "resumed"), line_of(said) or line_of(now)


def killed(task, shop, draw):
    """SIGKILL once or twice at random moments, then to the end."""
    folder, (_, _, whole_s) = shop.folder(), shop.whole(task)
    hits = 0
    while not hits:
        for _ in range(draw.choice([1, 2])):
            code, _ = shop.run(task, folder, kill_after=draw.uniform(0, whole_s))
            hits += code == -9
        if not hits:  # it was done before
            shutil.rmtree(folder)
            folder.mkdir()
    return ended(shop, task, folder)


def disk_full(task, shop, draw):
    """No file may grow past a size drawn below that of the largest of the result."""
    _, there, _ = shop.whole(task)
    largest = max((there / name).stat().st_size for name in result(task, there))
    folder = shop.folder()
    # The limit holds for what it says, too, which must have room.
    code, said = shop.run(task, folder, most_bytes=draw.randrange(2_000, largest))
    if code == 0:
        return ended(shop, task, folder)
    if "full disk" not in said:
        return "lost", line_of(said)
    return ended(shop, task, folder, said, refused=True)


def damage(path, draw, *, cut):
    raw = bytearray(path.read_bytes())
    if cut:
        del raw[draw.randrange(len(raw)) :]
    else:
        raw[draw.randrange(len(raw))] ^= 1 << draw.randrange(8)
    path.write_bytes(raw)


def damaged_file(task, name, remedy, shop, draw, *, cut):
    """A file that an unfinished command left, or a finished one, changes before it runs again."""
    folder = shop.folder()
    _, there, whole_s = shop.whole(task)
    if remedy == "begun":
        while not (folder / name).exists() or (folder / "out/manifest.json").exists():
            shutil.rmtree(folder)
            folder.mkdir()
            shop.run(task, folder, kill_after=draw.uniform(whole_s / 4, whole_s))
    else:
        shutil.copytree(there, folder, dirs_exist_ok=True)
        for unfinished in remedy:
            (folder / unfinished).unlink()
    damage(folder / name, draw, cut=cut)
    code, said = shop.run(task, folder)
    if code == 0:
        good = result(task, folder) == shop.whole(task)[0]
        return ("resumed" if good else "wrong"), line_of(said)
    if name.rpartition("/")[2] not in said:
        return "lost", line_of(said)
    if remedy == "begun":
        (folder / name).unlink()  # as it says
    else:
        shutil.rmtree(folder)
        folder.mkdir()
    return ended(shop, task, folder, said, refused=True)


def weights_of_nan(task, shop, draw):
    """A weight of the model is NaN: refused, and nothing is written."""
    file = shop.inputs / ("student" if task == "rerank" else "encoder") / "model.safetensors"
    right, weights = file.read_bytes(), load_file(file)
    name = draw.choice([n for n, w in weights.items() if "layer.0" in n and w.is_floating_point()])
    weights[name].flatten()[draw.randrange(weights[name].numel())] = float("nan")
    save_file(weights, file, metadata={"format": "pt"})
    folder = shop.folder()
    try:
        code, said = shop.run(task, folder)
    finally:
        file.write_bytes(right)
    wrote = any((folder / n).exists() for n in ("out.run", "out/model", "out/manifest.json"))
    if code == 0 or wrote:
        return "wrong", line_of(said)
    if "finite" not in said:
        return "lost", line_of(said)
    shutil.rmtree(folder)
    folder.mkdir()
    return ended(shop, task, folder, said, refused=True)


@functools.cache
def trained_by_two(shop):
    folder = shop.folder()
    launched = launch(shop, folder)
    if launched.wait(300):
        raise RuntimeError(f"two processes failed undisturbed: {folder}/said.txt")
    return result("distill", folder)


def launch(shop, folder):
    """One training by two processes, as torchrun and accelerate launch start them."""
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    with (folder / "said.txt").open("w") as said:
        return subprocess.Popen(
            [*command, "-m", "rdl_core.cli", *child.distil_words(shop.inputs)], cwd=folder,
            stdout=said, stderr=said, env=os.environ | {"OMP_NUM_THREADS": "1"},
        )  # fmt: skip


def worker_dies(shop, draw):
    """SIGKILL for one of two processes at a random step; the launch must end by itself."""
    code = 0
    while code == 0:  # it was done before
        folder = shop.folder()
        launched, log, steps = launch(shop, folder), folder / "out" / "log.jsonl", draw.randrange(25)
        while launched.poll() is None and (not log.exists() or log.read_text().count("\n") < steps):
            time.sleep(0.01)
        children = Path(f"/proc/{launched.pid}/task/{launched.pid}/children")
        if launched.poll() is None and (workers := children.read_text().split()):
            os.kill(int(draw.choice(workers)), signal.SIGKILL)
        code = launched.wait(120)
    if launch(shop, folder).wait(300):
        return "lost", line_of((folder / "said.txt").read_text())
    good = result("distill", folder) == trained_by_two(shop)
    return ("resumed" if good else "wrong"), ""


FAULTS = {f"SIGKILL, {task}": functools.partial(killed, task) for task in child.TASKS}
FAULTS["SIGKILL, one of two processes"] = worker_dies
FAULTS |= {f"disk full, {task}": functools.partial(disk_full, task)
           for task in ("fetch", "teach", "distill", "rerank")}  # fmt: skip
for how, cut in (("truncated", True), ("altered", False)):
    for what, task, name, remedy in (
        ("downloaded file", "fetch", "cache/downloads/vaswani/b", ()),
        ("token store", "distill", "out/tokens/passage/tokens.bin", ("out/manifest.json",)),
        ("checkpoint", "distill", "out/checkpoint.safetensors", "begun"),
        ("student", "distill", "out/model/model.safetensors", ()),
    ):
        FAULTS[f"{how} {what}"] = functools.partial(damaged_file, task, name, remedy, cut=cut)
FAULTS |= {f"NaN in the weights, {task}": functools.partial(weights_of_nan, task)
           for task in ("distill", "rerank")}  # fmt: skip
