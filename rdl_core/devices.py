"""Where, in which precision, and in how much memory models compute."""

from __future__ import annotations

import logging
import platform
import re
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import TypeVar

import torch
from accelerate import PartialState
from accelerate.utils.memory import clear_device_cache, should_reduce_batch_size

__all__ = ["PRECISIONS", "cpu_has", "default_device", "device_name", "fitting", "processes",
           "resolve_precision"]  # fmt: skip

_T = TypeVar("_T")
_log = logging.getLogger(__name__)

PRECISIONS = {"float32": torch.float32, "bfloat16": torch.bfloat16}


def processes() -> PartialState:
    """The processes of this run: one, unless ``accelerate launch`` or torchrun started several."""
    waiting = timedelta(hours=2)  # the first process may have to tokenise a collection
    return PartialState(cpu=not torch.cuda.is_available(), timeout=waiting)


def default_device() -> torch.device:
    """This process's CUDA device, or the CPU where there is none."""
    return processes().device


def device_name(device: torch.device) -> str:
    """Model name of a GPU or CPU, for manifests."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    info = Path("/proc/cpuinfo")
    names = re.findall(r"model name\s*: (.+)", info.read_text() if info.exists() else "")
    return names[0].strip() if names else platform.processor() or platform.machine()


def resolve_precision(precision: str, device: torch.device) -> str:
    """For ``"auto"``, bfloat16 where the device computes in it natively; others as they are."""
    if precision != "auto":
        return precision
    if device.type == "cuda":
        return "bfloat16" if torch.cuda.is_bf16_supported(including_emulation=False) else "float32"
    return "bfloat16" if cpu_has("avx512_bf16", "amx_bf16") else "float32"


def cpu_has(*features: str) -> bool:
    """Whether the CPU has one of some features, by PyTorch's names; no, where it does not tell."""
    known = getattr(torch.cpu, "get_capabilities", dict)()
    return any(map(known.get, features))


def fitting(compute: Callable[..., _T], token_budget: int) -> tuple[_T, int]:
    """Compute with a ``token_budget``, anew with half of it after each out-of-memory error; gives the
    last one, too. MemoryError where 256 tokens are too many.
    """
    while True:
        try:
            return compute(token_budget=token_budget), token_budget
        except RuntimeError as error:
            of_onednn = "could not create a primitive" in str(error)  # all that it says then
            if not (of_onednn or should_reduce_batch_size(error)):
                raise
            if token_budget <= 256:
                told = f"the device lacks the memory for {token_budget} tokens at once ({error})"
                raise MemoryError(f"{told}: free some, or choose a smaller encoder") from error
        # After the except block: the error holds on to all that had been allocated.
        clear_device_cache(garbage_collection=True)
        before, token_budget = token_budget, token_budget // 2
        _log.warning("out of memory with %d tokens at once; going on with %d", before, token_budget)
