"""Where, in which precision, and in how much memory models compute."""

from __future__ import annotations

import logging
import platform
import sys
from datetime import timedelta
from pathlib import Path
from typing import Protocol, TypeVar

import torch
from accelerate import PartialState
from accelerate.utils.memory import clear_device_cache, should_reduce_batch_size

__all__ = [
    "PRECISIONS", "default_device", "device_name", "fitting", "processes", "resolve_precision",
]  # fmt: skip

_T = TypeVar("_T", covariant=True)
_LEAST_TOKENS = 256
_LONGEST_WAIT = timedelta(hours=2)
_ONEDNN_OUT_OF_MEMORY = "could not create a primitive"  # all that oneDNN says then
_log = logging.getLogger(__name__)

#: Precisions in which layers compute; scores are float32 always.
PRECISIONS = {"float32": torch.float32, "bfloat16": torch.bfloat16}


class _Compute(Protocol[_T]):
    def __call__(self, *, token_budget: int) -> _T: ...


def processes() -> PartialState:
    """The processes of this run: one, unless ``accelerate launch`` or torchrun started several.

    They talk by NCCL where there is CUDA, else by gloo, and wait up to two hours for each other, as
    the first one may have to tokenise a collection.
    """
    return PartialState(cpu=not torch.cuda.is_available(), timeout=_LONGEST_WAIT)


def default_device() -> torch.device:
    """This process's CUDA device, or the CPU where there is none."""
    return processes().device


def device_name(device: torch.device) -> str:
    """What its maker calls a device, for manifests: the GPU, or the CPU by its model."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    if sys.platform == "linux":
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def resolve_precision(precision: str, device: torch.device) -> str:
    """The precision that ``"auto"`` stands for: bfloat16 where the device computes in it natively.

    Other precisions come back as they are.
    """
    if precision != "auto":
        return precision
    if device.type == "cuda":
        return "bfloat16" if torch.cuda.is_bf16_supported(including_emulation=False) else "float32"
    can = getattr(torch.cpu, "get_capabilities", dict)()
    return "bfloat16" if can.get("avx512_bf16") or can.get("amx_bf16") else "float32"


def fitting(compute: _Compute[_T], token_budget: int) -> tuple[_T, int]:
    """Compute with a token budget that is halved after each out-of-memory error.

    Args:
        compute: Takes ``token_budget``; what it did before memory ran out is done again.
        token_budget: Most tokens that go through the encoder at once.

    Returns:
        The result, and the budget that sufficed.

    Raises:
        MemoryError: 256 tokens are too many, too.
    """
    while True:
        try:
            return compute(token_budget=token_budget), token_budget
        except RuntimeError as error:
            if not (should_reduce_batch_size(error) or _ONEDNN_OUT_OF_MEMORY in str(error)):
                raise
            if token_budget <= _LEAST_TOKENS:
                raise MemoryError(
                    f"the device lacks the memory for {token_budget} tokens at once ({error}): free "
                    "some, shorten passages, or choose a smaller encoder"
                ) from error
        # After the except block: the error holds on to all that had been allocated.
        clear_device_cache(garbage_collection=True)
        _log.warning(
            "out of memory with %d tokens at once; going on with %d", token_budget, token_budget // 2
        )
        token_budget //= 2
