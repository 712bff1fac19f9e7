"""What all losses are made of: checks, masked reductions, pairs, ranks and gains of a list.

Private to :mod:`rdl_core.losses`. Tensors are ``[batch, n]``, or ``[batch, n, n]`` for pairs, with
``mask`` True where a passage, or both of a pair, are real.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable

import torch
from torch import Tensor

# --- checks ----------------------------------------------------------------------------------


def _check(values: Tensor, name: str, mask: Tensor | None) -> Tensor:
    """Check one 2-D tensor and its mask; return the mask, all True for None."""
    if values.ndim != 2 or values.shape[1] == 0:
        raise ValueError(
            f"{name} must be 2-D, [batch, n] with n >= 1, got shape {tuple(values.shape)}; "
            "give a single list a leading dimension of 1"
        )
    if mask is None:
        return torch.ones_like(values, dtype=torch.bool)
    if mask.dtype != torch.bool:
        raise TypeError(f"mask must be bool, True = real passage, got {mask.dtype}; use .bool()")
    if mask.shape != values.shape:
        raise ValueError(
            f"mask must have the shape of {name}, {tuple(values.shape)}, got {tuple(mask.shape)}"
        )
    return mask


def _choose(name: str, value: str, choices: Iterable[str]) -> None:
    if value not in choices:
        raise ValueError(f"{name} must be one of {', '.join(choices)}, got {value!r}")


def _positive(name: str, value: float) -> None:
    if not value > 0:
        raise ValueError(f"{name} must be greater than 0, got {value}")


def _prepare(scores: Tensor, targets: Tensor, mask: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
    """Check the arguments, raise them to float32 and put 0 wherever the loss must not look.

    Lists without a preference come back wholly masked: no loss has to think of them again.
    """
    mask = _check(scores, "scores", mask)
    if not scores.is_floating_point():
        raise TypeError(f"scores must be floating, got {scores.dtype}; use scores.float()")
    if targets.shape != scores.shape:
        raise ValueError(
            f"targets must have the shape of scores, {tuple(scores.shape)}, "
            f"got {tuple(targets.shape)}"
        )
    dtype = torch.promote_types(scores.dtype, torch.float32)
    targets = targets.detach().to(dtype)
    mask = mask & _prefers(targets, mask)[:, None]
    return scores.to(dtype).masked_fill(~mask, 0), targets.masked_fill(~mask, 0), mask


# --- reductions ------------------------------------------------------------------------------


def _reduce(loss: Tensor, valid: Tensor, mask: Tensor, reduction: str) -> Tensor:
    """Mean over the valid items ``[batch, n]`` or pairs ``[batch, n, n]``, then over lists."""
    total = loss.masked_fill(~valid, 0).flatten(1).sum(1)
    return _reduce_lists(total / valid.flatten(1).sum(1).clamp(min=1), mask, reduction)


def _reduce_lists(loss: Tensor, mask: Tensor, reduction: str) -> Tensor:
    """Zero the losses ``[batch]`` of wholly masked lists; average those of the others."""
    _choose("reduction", reduction, ("mean", "none"))
    valid = mask.any(1)
    loss = loss.masked_fill(~valid, 0)
    return loss if reduction == "none" else loss.sum() / valid.sum().clamp(min=1)


def _logsumexp(values: Tensor, mask: Tensor, dim: int = -1) -> Tensor:
    """log-sum-exp over the real entries; a huge negative finite number where there are none."""
    return values.masked_fill(~mask, torch.finfo(values.dtype).min).logsumexp(dim)


def _log_softmax(values: Tensor, mask: Tensor, dim: int = -1) -> Tensor:
    """log-softmax over the real entries of ``dim``; 0 at the others, which get no gradient."""
    filled = values.masked_fill(~mask, torch.finfo(values.dtype).min)
    return filled.log_softmax(dim).masked_fill(~mask, 0)


# --- pairs, ranks, gains ---------------------------------------------------------------------


def _differences(values: Tensor) -> Tensor:
    """``[batch, n, n]``: entry (i, j) is value i minus value j."""
    return values[:, :, None] - values[:, None, :]


def _other_pairs(mask: Tensor) -> Tensor:
    """``[batch, n, n]``: two real passages, i and j different."""
    itself = torch.eye(mask.shape[1], dtype=torch.bool, device=mask.device)
    return mask[:, :, None] & mask[:, None, :] & ~itself


def _ordered_pairs(targets: Tensor, mask: Tensor) -> Tensor:
    """``[batch, n, n]``: two real passages, i better than j."""
    return _other_pairs(mask) & (targets[:, :, None] > targets[:, None, :])


def _ranks(values: Tensor, mask: Tensor, tie_break: Tensor | None = None) -> Tensor:
    """Rank of each real passage, 1 = highest value; ties by ``tie_break``, then averaged.

    Masked passages get 1, which is safe to divide by and to take a logarithm of.
    """
    ahead = values[:, :, None] < values[:, None, :]
    level = values[:, :, None] == values[:, None, :]
    if tie_break is not None:
        ahead = ahead | (level & (tie_break[:, :, None] < tie_break[:, None, :]))
        level = level & (tie_break[:, :, None] == tie_break[:, None, :])
    others = _other_pairs(mask)
    return 1 + (ahead & others).sum(2).to(values) + (level & others).sum(2).to(values) / 2


def _extremes(values: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
    """``[batch, 1]`` each: highest and lowest value of the real passages."""
    highest = values.masked_fill(~mask, -math.inf).amax(1, keepdim=True)
    lowest = values.masked_fill(~mask, math.inf).amin(1, keepdim=True)
    return highest, lowest


def _prefers(targets: Tensor, mask: Tensor) -> Tensor:
    """``[batch]`` bool: two real passages have different targets."""
    highest, lowest = _extremes(targets, mask)
    return mask.any(1) & (highest != lowest).squeeze(1)


def _positives(targets: Tensor, mask: Tensor, which: str) -> Tensor:
    """``[batch, n]`` bool: passages at the list's highest, or above its lowest, target."""
    _choose("positives", which, ("best", "all"))
    highest, lowest = _extremes(targets, mask)
    return mask & (targets == highest if which == "best" else targets > lowest)


def _gains(targets: Tensor, gain: str) -> Tensor:
    """``[batch, n]``: gains divided by the ideal DCG; 0 for a target of 0, thus where masked."""
    _choose("gain", gain, ("exp2", "linear"))
    gains = targets.clamp(min=0)
    if gain == "exp2":  # 2^t - 1 up to a factor that cancels, so that no t overflows
        top = gains.amax(1, keepdim=True)
        gains = torch.exp2(gains - top) - torch.exp2(-top)
    position = torch.arange(1, gains.shape[1] + 1, device=gains.device).to(gains)
    ideal = (gains.sort(1, descending=True).values / torch.log2(1 + position)).sum(1, keepdim=True)
    return gains / ideal.masked_fill(ideal == 0, 1)


_DISCOUNTS: dict[str, Callable[[Tensor], Tensor]] = {
    "log2": lambda ranks: 1 / torch.log2(1 + ranks),
    "reciprocal": lambda ranks: 1 / ranks,
    "none": torch.ones_like,
}
