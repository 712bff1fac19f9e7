"""From a teacher's ranks to targets, and which lists have something to teach.

The two functions on the data's side of a loss: :func:`targets_from_ranks` turns ranks, where lower
is better, into targets ``[batch, n]``, where higher is better, and :func:`has_preference` tells
which lists order any two passages and thus count in a mean. Dimension 1 is the list.
"""

from __future__ import annotations

import torch
from torch import Tensor

from rdl_core.losses._lists import (
    _check,
    _prefers,
    _ranks,
)

__all__ = ["has_preference", "targets_from_ranks"]


def targets_from_ranks(teacher_rank: Tensor, mask: Tensor | None = None) -> Tensor:
    r"""Turn teacher ranks into targets: :math:`t_i = m - p_i + 1` for :math:`m` real passages.

    :math:`p_i` is the rank within the list as it stands: gaps left by sampling are closed and
    tied ranks averaged, so the targets of an untied list are always :math:`m..1`.

    Args:
        teacher_rank: ``[batch, n]``, 1 = best, integer or floating.
        mask: ``[batch, n]`` bool, True = real passage; None = all are.

    Returns:
        ``[batch, n]`` float32 (float64 for float64 ranks), higher is better, 0 where masked.

    Raises:
        ValueError, TypeError: as for the losses.

    Example:
        >>> rank = torch.tensor([[1, 40, 7], [2, 1, 0]])
        >>> targets_from_ranks(rank, rank > 0)
        tensor([[3., 1., 2.],
                [1., 2., 0.]])
    """
    mask = _check(teacher_rank, "teacher_rank", mask)
    rank = teacher_rank.to(torch.promote_types(teacher_rank.dtype, torch.float32))
    worse = _ranks(rank.masked_fill(~mask, 0), mask)  # 1 = largest rank = worst passage
    return worse.masked_fill(~mask, 0)


def has_preference(targets: Tensor, mask: Tensor | None = None) -> Tensor:
    r"""Tell which lists prefer some passage to another: the lists that ``"mean"`` averages over.

    For every loss, ``loss(..., reduction="none").sum() / has_preference(targets, mask).sum()``
    is ``loss(..., reduction="mean")``; so a batch cut in pieces can be averaged exactly.

    Args:
        targets: ``[batch, n]``, finite where real.
        mask: ``[batch, n]`` bool, True = real passage; None = all are.

    Returns:
        ``[batch]`` bool, True where two real passages have different targets.

    Raises:
        ValueError, TypeError: as for the losses.

    Example:
        >>> has_preference(torch.tensor([[1.0, 0.0], [1.0, 1.0]]))
        tensor([ True, False])
    """
    mask = _check(targets, "targets", mask)
    return _prefers(targets.to(torch.promote_types(targets.dtype, torch.float32)), mask)
