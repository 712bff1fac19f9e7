"""Where and in which precision models compute."""

from __future__ import annotations

import torch
from accelerate import PartialState

__all__ = ["PRECISIONS", "default_device", "processes", "resolve_precision"]

#: Precisions in which layers compute; scores are float32 always.
PRECISIONS = {"float32": torch.float32, "bfloat16": torch.bfloat16}


def processes() -> PartialState:
    """The processes of this run: one, unless ``accelerate launch`` or torchrun started several.

    They talk by NCCL where there is CUDA, else by gloo.

    >>> processes().num_processes
    1
    """
    return PartialState(cpu=not torch.cuda.is_available())


def default_device() -> torch.device:
    """This process's CUDA device, or the CPU where there is none.

    >>> default_device().type in ("cuda", "cpu")
    True
    """
    return processes().device


def resolve_precision(precision: str, device: torch.device) -> str:
    """The precision that ``"auto"`` stands for: bfloat16 where the device computes in it natively.

    Args:
        precision: ``"auto"`` or a key of `PRECISIONS`, which comes back as it is.
        device: Where the model will run.

    >>> resolve_precision("float32", torch.device("cpu"))
    'float32'
    """
    if precision != "auto":
        return precision
    if device.type == "cuda":
        return "bfloat16" if torch.cuda.is_bf16_supported(including_emulation=False) else "float32"
    can = getattr(torch.cpu, "get_capabilities", dict)()
    return "bfloat16" if can.get("avx512_bf16") or can.get("amx_bf16") else "float32"
