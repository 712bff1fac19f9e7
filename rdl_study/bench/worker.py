"""The process of one system: loads it, then answers lines of standard input with lines of JSON.

Run by path, by any Python that has the system's libraries; it needs nothing else. It is asked
``ready``, numbers of calls to time, ``energy`` and the numbers of calls to repeat, and ``end``. A call
that does several lists at once has ``lists_at_once``, and is timed per list. What has ``is_loop`` is a
training loop: it is handed what to call after each step, and a call is one step.
"""

import gc
import json
import os
import platform
import queue
import runpy
import sys
import threading
import time
from contextlib import suppress
from importlib import metadata
from pathlib import Path

_LIBRARIES = ("torch", "transformers", "sentence-transformers", "lightning-ir", "tokenizers",
              "fastembed", "infinity-emb", "nncf", "onnxruntime", "openvino")  # fmt: skip


def _main(file: str, function: str, work: str, options: dict) -> None:
    sys.path.pop(0)  # this folder: no place to import from
    replies = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)  # what libraries print is no reply
    call = runpy.run_path(file)[function](json.loads(Path(work).read_text()), **options)
    lists = getattr(call, "lists_at_once", 1)
    call = _step_by_step(call) if hasattr(call, "is_loop") else call
    torch = sys.modules.get("torch")
    cuda = torch.cuda if torch and torch.cuda.is_available() else None
    wait = cuda.synchronize if cuda else lambda: None
    gc.collect()  # what was only needed to load
    with suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")  # the peak counts from here on

    def timed(number: str) -> dict:
        wait()
        started = time.perf_counter()
        result = call(int(number))
        wait()
        ms = (time.perf_counter() - started) * 1000 / lists
        return {"ms": ms, "result": result.tolist() if hasattr(result, "tolist") else result}

    for line in sys.stdin:
        command, *numbers = line.split()
        if command == "ready":
            used = [name for name in _LIBRARIES if name.replace("-", "_") in sys.modules]
            versions = {"python": platform.python_version()} | {x: metadata.version(x) for x in used}
            reply = {"loaded_bytes": _memory("VmRSS"), "versions": versions}
            reply |= {"settings": call.settings} if hasattr(call, "settings") else {}
            reply |= {"loaded_device_bytes": cuda.memory_allocated()} if cuda else {}
        elif command == "energy":
            reply = {"joules": x / lists} if (x := _joules(timed, numbers)) else {}
        elif command == "end":
            reply = {"peak_bytes": _memory("VmHWM")}
            for what in ("allocated", "reserved") if cuda else ():
                reply[f"peak_{what}_bytes"] = getattr(cuda, f"max_memory_{what}")()
        else:
            reply = timed(command)
        replies.write(json.dumps(reply) + "\n")


def _step_by_step(loop):
    """A call that lets a training loop, in a thread of its own, run for one step."""
    go, done = queue.Queue(), queue.Queue()

    def run() -> None:
        try:
            loop(lambda: (done.put(None), go.get()))
            raise RuntimeError("the training loop ended")
        except BaseException as error:
            done.put(error)

    def step(number: int) -> None:
        go.put(None) if thread.is_alive() else thread.start()
        if error := done.get():
            raise error

    thread = threading.Thread(target=run, daemon=True)
    step(0)  # the first one is not timed
    return step


def _memory(name: str) -> int:
    """Bytes that are resident now (VmRSS), or were at most (VmHWM)."""
    return int(Path("/proc/self/status").read_text().split(f"{name}:")[1].split()[0]) * 1024


def _joules(timed, numbers: list[str]) -> float:
    """Energy of a call, idle power included, on the GPU or else the CPU; 0 where nobody counts it."""
    visible = os.environ.get("CUDA_VISIBLE_DEVICES", "0").split(",")[0]
    try:
        import pynvml as nvml

        nvml.nvmlInit()
        by = nvml.nvmlDeviceGetHandleByIndex if visible.isdigit() else nvml.nvmlDeviceGetHandleByUUID
        device = by(int(visible) if visible.isdigit() else visible)
        joules = lambda: nvml.nvmlDeviceGetTotalEnergyConsumption(device) / 1e3  # noqa: E731
        before = joules()
    except Exception:  # RAPL counts whole processors, and only for root
        counters = [*Path("/sys/class/powercap").glob("intel-rapl:?/energy_uj")]
        if not all(os.access(x, os.R_OK) for x in counters) or not counters:
            return 0.0
        joules = lambda: sum(int(x.read_text()) for x in counters) / 1e6  # noqa: E731
        before = joules()
    started, calls = time.perf_counter(), 0
    while time.perf_counter() - started < 3:  # the counter moves some ten times a second only
        calls += len([timed(number) for number in numbers])
    return (joules() - before) / calls


if __name__ == "__main__":
    _main(**json.loads(sys.argv[1]))
