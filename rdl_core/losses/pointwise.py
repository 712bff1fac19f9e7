"""Losses of a yes-or-no question, asked of each passage or of each pair: ``comparison`` says which.

Asked of a passage: is it one of the positives? Asked of a pair: which of the two is better? The
answer is judged by its likelihood (binary cross-entropy) or its margin (hinge).
:mod:`rdl_core.losses` states what they share.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from rdl_core.losses._lists import (
    _choose,
    _differences,
    _ordered_pairs,
    _positive,
    _positives,
    _prepare,
    _reduce,
)
from rdl_core.losses.pairwise import ranknet

__all__ = ["bce", "hinge"]


def bce(
    scores: Tensor,
    targets: Tensor,
    *,
    mask: Tensor | None = None,
    reduction: str = "mean",
    comparison: str = "pointwise",
    positives: str = "best",
) -> Tensor:
    r"""Binary cross-entropy: is this passage, or the better of this pair, the right one?

    .. math:: \ell = \operatorname{mean}_i \bigl(\log(1 + e^{s_i}) - y_i s_i\bigr),
        \qquad y_i \in \{0, 1\}

    Args:
        scores, targets, mask, reduction: as in :mod:`rdl_core.losses`, ``[batch, n]``.
        comparison: ``"pointwise"``, the formula, or ``"pairwise"``, which is :func:`ranknet`.
        positives: which passages have :math:`y_i = 1` when pointwise, as in :func:`info_nce`.

    Returns:
        Scalar, or ``[batch]`` for ``reduction="none"``; >= 0.

    Raises:
        ValueError, TypeError: as in :mod:`rdl_core.losses`.

    Reference: pointwise re-ranking, Nogueira and Cho, arXiv 1901.04085, 2019.

    Example:
        >>> round(bce(torch.tensor([[2.0, 0.5]]), torch.tensor([[1, 0]])).item(), 4)
        0.5505
    """
    _choose("comparison", comparison, ("pointwise", "pairwise"))
    _choose("positives", positives, ("best", "all"))
    if comparison == "pairwise":
        return ranknet(scores, targets, mask=mask, reduction=reduction)
    scores, targets, mask = _prepare(scores, targets, mask)
    label = _positives(targets, mask, positives).to(scores)
    return _reduce(F.softplus(scores) - label * scores, mask, mask, reduction)


def hinge(
    scores: Tensor,
    targets: Tensor,
    *,
    mask: Tensor | None = None,
    reduction: str = "mean",
    comparison: str = "pairwise",
    margin: float = 1.0,
    positives: str = "best",
) -> Tensor:
    r"""Hinge: every ordered pair, or every passage, should keep its margin.

    .. math:: \ell = \operatorname{mean}_{t_i > t_j} \max(0, m - (s_i - s_j))
        \quad\text{or}\quad \operatorname{mean}_i \max(0, m - y_i s_i), \; y_i = \pm 1

    Args:
        scores, targets, mask, reduction: as in :mod:`rdl_core.losses`, ``[batch, n]``.
        comparison: ``"pairwise"`` (the first formula) or ``"pointwise"`` (the second).
        margin: :math:`m` > 0, in units of the scores.
        positives: which passages have :math:`y_i = 1` when pointwise, as in :func:`info_nce`.

    Returns:
        Scalar, or ``[batch]`` for ``reduction="none"``; >= 0.

    Raises:
        ValueError, TypeError: as in :mod:`rdl_core.losses`; ValueError also for margin <= 0.

    Reference: pairwise, Joachims (ranking SVM), KDD 2002.

    Example:
        >>> hinge(torch.tensor([[2.0, 1.5]]), torch.tensor([[2, 1]])).item()
        0.5
    """
    _choose("comparison", comparison, ("pairwise", "pointwise"))
    _positive("margin", margin)
    scores, targets, mask = _prepare(scores, targets, mask)
    positive = _positives(targets, mask, positives)
    if comparison == "pairwise":
        pairs = _ordered_pairs(targets, mask)
        return _reduce(F.relu(margin - _differences(scores)), pairs, mask, reduction)
    return _reduce(F.relu(margin - torch.where(positive, scores, -scores)), mask, mask, reduction)
