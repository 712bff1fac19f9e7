"""The process of one system: loads it, then does its work call by call when it is told to.

Run by path, by any Python that has the system's libraries; needs nothing else. Its one argument is
JSON: ``file`` and ``function``, which makes the system from ``work`` (a path to JSON) and
``options``; then each line of standard input is the number of a call, and each reply a line of JSON.
A call that does several lists has ``lists_at_once``, and its time is told per list. A line of
``energy`` and numbers asks what the GPU uses while these calls are gone through again and again.
"""

import gc
import importlib.util
import json
import os
import platform
import resource
import sys
import time
from collections.abc import Callable
from importlib import metadata
from pathlib import Path

__all__: list[str] = []

_ENERGY_SECONDS = 3
_PAGE_BYTES = resource.getpagesize()


def _main() -> None:
    """Load the system, say so, and answer calls until standard input ends."""
    sys.path.pop(0)  # this folder: no place to import from
    replies = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what libraries print is no reply

    def reply(**fields: object) -> None:
        replies.write(json.dumps(fields) + "\n")
        replies.flush()

    job = json.loads(sys.argv[1])
    spec = importlib.util.spec_from_file_location("system", job["file"])
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    work = json.loads(Path(job["work"]).read_text())
    call = getattr(module, job["function"])(work, **job["options"])
    torch = sys.modules.get("torch")
    cuda = torch is not None and torch.cuda.is_available()
    gc.collect()  # what was only needed to load
    peak_is_reset = _forget_peak()
    loaded = _resident()
    allocated = torch.cuda.memory_allocated() if cuda else None
    reply(loaded_bytes=loaded, loaded_device_bytes=allocated, versions=_versions())
    lists = getattr(call, "lists_at_once", 1)

    def timed(number: int) -> tuple[float, object]:
        if cuda:
            torch.cuda.synchronize()
        started = time.perf_counter()
        result = call(number)
        if cuda:
            torch.cuda.synchronize()
        return time.perf_counter() - started, result

    for line in sys.stdin:
        asked, *numbers = line.split()
        if asked == "energy":
            used = _energy_of(lambda numbers=numbers: [timed(int(number)) for number in numbers])
            reply(joules=used and used / len(numbers) / lists)
            continue
        seconds, result = timed(int(asked))
        result = result.tolist() if hasattr(result, "tolist") else result
        reply(ms=seconds * 1000 / lists, result=result)
    device = {}
    if cuda:
        device = {
            "peak_allocated_bytes": torch.cuda.max_memory_allocated(),
            "peak_reserved_bytes": torch.cuda.max_memory_reserved(),
            "device": torch.cuda.get_device_name(),
        }
    reply(peak_bytes=_peak(peak_is_reset), **device)


def _energy_of(work: Callable[[], object]) -> float | None:
    """Joules that the GPU uses for a piece of work, idle power included; None without NVML.

    Its counter moves some ten times a second only, so that the work is done over and over.
    """
    try:
        import pynvml
    except ImportError:
        return None
    visible = os.environ.get("CUDA_VISIBLE_DEVICES", "0").split(",")[0]
    try:
        pynvml.nvmlInit()
        by = "Index" if visible.isdigit() else "UUID"
        device = getattr(pynvml, f"nvmlDeviceGetHandleBy{by}")(int(visible) if by == "Index" else visible)
        before = pynvml.nvmlDeviceGetTotalEnergyConsumption(device)
    except pynvml.NVMLError:
        return None
    started, times = time.perf_counter(), 0
    while not times or time.perf_counter() - started < _ENERGY_SECONDS:
        work()
        times += 1
    return (pynvml.nvmlDeviceGetTotalEnergyConsumption(device) - before) / 1000 / times


def _versions() -> dict:
    libraries = ("torch", "transformers", "sentence-transformers", "lightning-ir", "tokenizers")
    found = {"python": platform.python_version()}
    for name in libraries:
        if name.replace("-", "_") in sys.modules:
            found[name] = metadata.version(name)
    return found


def _resident() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * _PAGE_BYTES


def _forget_peak() -> bool:
    """Let the kernel count the peak of resident memory from here on, where it can."""
    try:
        Path("/proc/self/clear_refs").write_text("5")
    except OSError:
        return False
    return True


def _peak(reset: bool) -> int:
    if not reset:
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    status = Path("/proc/self/status").read_text()
    return int(status.split("VmHWM:")[1].split()[0]) * 1024


if __name__ == "__main__":
    _main()
