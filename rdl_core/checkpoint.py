"""What a training needs to go on after it was killed: one file, replaced in one stroke.

Weights and AdamW's moments are tensors of a safetensors file; where the training stood is text
beside them. Nothing is pickled.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from rdl_core.devices import processes
from rdl_core.pieces import like, whole

__all__ = ["load", "save"]

_MOMENTS = ("step", "exp_avg", "exp_avg_sq")


def save(
    path: Path,
    weights: Mapping[str, Tensor],
    optimiser: torch.optim.AdamW | None = None,
    *,
    standing: Mapping[str, Any],
    **more: Tensor,
) -> None:
    """Write weights, and the optimiser's moments of them, so that a kill leaves the old file whole.

    Of several processes the first one writes; all must call, as each may hold pieces alone.

    Args:
        path: File to write; its folder exists.
        weights: By name.
        optimiser: Whose moments of these weights are written; None writes none.
        standing: What else to remember, as JSON takes it.
        **more: Other tensors, written under their names.

    >>> save(folder / "a.safetensors", {"w": torch.ones(2)}, standing={"step": 3})
    >>> load(folder / "a.safetensors", {"w": torch.zeros(2)})
    {'step': 3}
    """
    tensors = {f"weight.{name}": whole(weight.detach()) for name, weight in weights.items()} | more
    for name, weight in weights.items():
        moments = optimiser.state[weight] if optimiser else {}
        tensors |= {f"{key}.{name}": whole(value) for key, value in moments.items()}
    if not processes().is_main_process:
        return
    partial, said = path.with_name(f"{path.name}.partial"), json.dumps(standing)
    tensors = {name: tensor.contiguous() for name, tensor in tensors.items()}
    metadata = {"standing": said, "sha256": _digest(said, sorted(tensors.items()))}
    save_file(tensors, partial, metadata=metadata)
    os.replace(partial, path)


def load(
    path: Path, weights: Mapping[str, Tensor], optimiser: torch.optim.AdamW | None = None
) -> dict[str, Any]:
    """Put a file's state into weights and optimiser.

    Args:
        path: File that `save` wrote.
        weights: The same names; changed in place.
        optimiser: Gets the moments; None leaves them.

    Returns:
        What `save` was told to remember.

    Raises:
        ValueError: The file is damaged, or of other weights.

    >>> load(folder / "none.safetensors", {})
    Traceback (most recent call last):
    ValueError: expected a whole checkpoint in ...
    """
    try:
        with safe_open(path, "pt") as saved:
            said, stored = saved.metadata(), set(saved.keys())
            tensors = ((name, saved.get_tensor(name)) for name in sorted(stored))
            if said["sha256"] != _digest(said["standing"], tensors):
                raise ValueError("its content changed since it was written")
            standing = json.loads(said["standing"])
            with torch.no_grad():
                for name, weight in weights.items():
                    weight.copy_(like(weight, saved.get_tensor(f"weight.{name}")))
                    if optimiser and f"step.{name}" in stored:
                        moments = {key: saved.get_tensor(f"{key}.{name}") for key in _MOMENTS}
                        optimiser.state[weight] = {  # AdamW counts its steps on the CPU
                            key: value if key == "step" else like(weight, value)
                            for key, value in moments.items()
                        }
    except Exception as error:  # safetensors has errors of its own, and others for a cut file
        raise ValueError(
            f"expected a whole checkpoint in {path}, but it does not load ({error}): delete it, and "
            "the stage begins anew"
        ) from error
    return standing


def _digest(standing: str, tensors: Iterable[tuple[str, Tensor]]) -> str:
    """SHA-256 of names and bytes, in the order of the names."""
    seen = hashlib.sha256(standing.encode())
    for name, tensor in tensors:
        seen.update(name.encode())
        seen.update(tensor.detach().cpu().reshape(-1).view(torch.uint8).numpy())
    return seen.hexdigest()
