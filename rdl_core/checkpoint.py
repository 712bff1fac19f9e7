"""Checkpoints: one safetensors file with weights and AdamW's moments, replaced atomically.

Its metadata has the training's progress as text, and a hash of all. Nothing is pickled.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from rdl_core.files import partial

__all__ = ["digest", "load", "save"]


def save(
    path: Path, weights: Mapping[str, Tensor], optimiser: torch.optim.AdamW, *,
    progress: Mapping[str, Any], **more: Tensor,
) -> None:  # fmt: skip
    """Write weights, moments, `more` tensors and `progress` (JSON); a kill keeps the old file whole."""
    tensors = {f"weight.{name}": weight.detach() for name, weight in weights.items()} | more
    for name, weight in weights.items():
        tensors |= {f"{key}.{name}": x for key, x in optimiser.state[weight].items()}
    tensors = {name: tensor.contiguous() for name, tensor in tensors.items()}
    text = json.dumps(progress)
    with partial(path) as beside:
        save_file(tensors, beside, {"progress": text, "sha256": digest(text, tensors)})


def load(
    path: Path, weights: Mapping[str, Tensor], optimiser: torch.optim.AdamW | None = None
) -> dict[str, Any]:
    """Put a file's state into weights and optimiser; gives its progress. ValueError if damaged."""
    try:
        with safe_open(path, "pt") as saved, torch.no_grad():
            metadata = saved.metadata()
            tensors = {name: saved.get_tensor(name) for name in saved.keys()}  # noqa: SIM118
            if metadata["sha256"] != digest(metadata["progress"], tensors):
                raise ValueError("its content changed since it was written")
            for name, weight in weights.items():
                weight.copy_(tensors[f"weight.{name}"])
                if optimiser and f"step.{name}" in tensors:
                    for key in ("step", "exp_avg", "exp_avg_sq"):
                        optimiser.state[weight][key] = tensors[f"{key}.{name}"].to(weight.device)
    except Exception as error:  # safetensors has errors of its own, and others for a cut file
        told = f"{path} is no whole checkpoint ({error}): delete it, and the stage begins again"
        raise ValueError(told) from error
    return json.loads(metadata["progress"])


def digest(progress: str, tensors: Mapping[str, Tensor]) -> str:
    """SHA-256 of names and bytes, in the order of the names."""
    seen = hashlib.sha256(progress.encode())
    for name in sorted(tensors):
        seen.update(name.encode())
        seen.update(tensors[name].cpu().reshape(-1).view(torch.uint8).numpy())
    return seen.hexdigest()
