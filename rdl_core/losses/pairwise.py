"""Pairwise losses: a mean over the pairs ``(i, j)`` of a list, mostly those with t_i > t_j.

Each pair asks that the better passage be scored higher: by as much as possible (RankNet), by
exactly a given margin (MarginMSE), or in proportion to what the pair is worth to a measure
(LambdaLoss). :mod:`rdl_core.losses` states what they share; the pairwise hinge is in
:mod:`rdl_core.losses.pointwise`.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional as F

from rdl_core.losses._lists import (
    _DISCOUNTS,
    _choose,
    _differences,
    _gains,
    _ordered_pairs,
    _other_pairs,
    _positive,
    _prepare,
    _ranks,
    _reduce,
)

__all__ = ["lambda_loss", "margin_mse", "ranknet"]


def ranknet(
    scores: Tensor,
    targets: Tensor,
    *,
    mask: Tensor | None = None,
    reduction: str = "mean",
    weighting: str = "uniform",
) -> Tensor:
    r"""RankNet: the logistic loss of every pair that the targets order, mean over the pairs.

    .. math:: \ell = \operatorname{mean}_{t_i > t_j} w_{ij} \log(1 + e^{-(s_i - s_j)})

    Pairs tied in the targets carry no preference and are left out (Burges et al. give them a
    target probability of 1/2).

    Args:
        scores, targets, mask, reduction: as in :mod:`rdl_core.losses`, ``[batch, n]``.
        weighting: ``"uniform"``, :math:`w_{ij} = 1`, or ``"inverse_rank_sum"``,
            :math:`w_{ij} = 1 / (p_i + p_j)`, as in FIRST. The weights are not normalised.

    Returns:
        Scalar, or ``[batch]`` for ``reduction="none"``; >= 0.

    Raises:
        ValueError, TypeError: as in :mod:`rdl_core.losses`.

    Reference: Burges et al., ICML 2005. Weights: Gangi Reddy et al. (FIRST), EMNLP 2024.

    Example:
        >>> round(ranknet(torch.tensor([[2.0, 0.5]]), torch.tensor([[2, 1]])).item(), 4)
        0.2014
    """
    _choose("weighting", weighting, ("uniform", "inverse_rank_sum"))
    scores, targets, mask = _prepare(scores, targets, mask)
    loss = F.softplus(-_differences(scores))
    if weighting == "inverse_rank_sum":
        ranks = _ranks(targets, mask)
        loss = loss / (ranks[:, :, None] + ranks[:, None, :])
    return _reduce(loss, _ordered_pairs(targets, mask), mask, reduction)


def margin_mse(
    scores: Tensor,
    targets: Tensor,
    *,
    mask: Tensor | None = None,
    reduction: str = "mean",
    margin: float | None = None,
) -> Tensor:
    r"""MarginMSE: squared error of the score difference of every ordered pair, mean over the pairs.

    .. math:: \ell = \operatorname{mean}_{t_i > t_j} \bigl((s_i - s_j) - m_{ij}\bigr)^2

    Args:
        scores, targets, mask, reduction: as in :mod:`rdl_core.losses`, ``[batch, n]``.
        margin: the same margin for every pair, > 0, in units of the scores; None takes the
            teacher's, :math:`m_{ij} = t_i - t_j`, so targets must then be on the scale of scores.

    Returns:
        Scalar, or ``[batch]`` for ``reduction="none"``; >= 0.

    Raises:
        ValueError, TypeError: as in :mod:`rdl_core.losses`; ValueError also for margin <= 0.

    Reference: Hofstätter et al., arXiv 2010.02666, 2020 (one positive and one negative a query).

    Example:
        >>> margin_mse(torch.tensor([[2.0, 0.5]]), torch.tensor([[3.0, 1.0]])).item()
        0.25
    """
    if margin is not None:
        _positive("margin", margin)
    scores, targets, mask = _prepare(scores, targets, mask)
    wanted = _differences(targets) if margin is None else margin
    loss = (_differences(scores) - wanted) ** 2
    return _reduce(loss, _ordered_pairs(targets, mask), mask, reduction)


def lambda_loss(
    scores: Tensor,
    targets: Tensor,
    *,
    mask: Tensor | None = None,
    reduction: str = "mean",
    weighting: str = "ndcg2pp",
    gain: str = "exp2",
    mu: float = 10.0,
    scale: float = 1.0,
) -> Tensor:
    r"""LambdaLoss: pairwise logistic losses weighted by what the pair is worth to the measure.

    .. math:: \ell = \operatorname{mean}_{(i, j)} w_{ij} \log_2(1 + e^{-\sigma (s_i - s_j)})

    With the rank :math:`r_i` of passage i by score, :math:`D_i = \log_2(1 + r_i)`, gains
    :math:`G_i` divided by the ideal DCG, and
    :math:`\delta_{ij} = 1 / \log_2(1 + |r_i - r_j|) - 1 / \log_2(2 + |r_i - r_j|)`:

    ============== ============================================================== ===============
    weighting      :math:`w_{ij}`                                                 pairs
    ============== ============================================================== ===============
    ``ranknet``    1                                                              :math:`t_i > t_j`
    ``lambdarank`` :math:`|1/D_i - 1/D_j| \, |G_i - G_j|`                         :math:`t_i > t_j`
    ``ndcg1``      :math:`G_i / D_i`                                              :math:`i \ne j`
    ``ndcg2``      :math:`\delta_{ij} \, |G_i - G_j|`                             :math:`t_i > t_j`
    ``ndcg2pp``    :math:`(|1/D_i - 1/D_j| + \mu \delta_{ij}) \, |G_i - G_j|`     :math:`t_i > t_j`
    ``arp1``       :math:`\max(t_i, 0)`                                           :math:`i \ne j`
    ``arp2``       :math:`t_i - t_j`                                              :math:`t_i > t_j`
    ============== ============================================================== ===============

    The weights are constants: ranks by score carry no gradient. Passages tied in score are ranked
    worst target first, so a student that gives one score to all is never taken for a good one.

    Args:
        scores, targets, mask, reduction: as in :mod:`rdl_core.losses`, ``[batch, n]``.
        weighting: a name of the table.
        gain: of a target :math:`t \ge 0` (negative counts as 0): ``"exp2"``, :math:`2^t - 1`, safe
            for any t, or ``"linear"``, t. Unused by ``ranknet``, ``arp1`` and ``arp2``.
        mu: :math:`\mu` >= 0, share of NDCG-Loss2 in ``ndcg2pp``.
        scale: :math:`\sigma` > 0, multiplies the scores.

    Returns:
        Scalar, or ``[batch]`` for ``reduction="none"``; >= 0.

    Raises:
        ValueError, TypeError: as in :mod:`rdl_core.losses`; ValueError also for mu < 0, scale <= 0.

    Reference: Wang et al., CIKM 2018, who sum over the pairs. LambdaRank: Burges et al., NIPS 2006.

    Example:
        >>> scores, targets = torch.tensor([[2.0, 0.5]]), torch.tensor([[2, 1]])
        >>> round(lambda_loss(scores, targets, weighting="lambdarank").item(), 4)
        0.0591
    """
    _choose("weighting", weighting, _LAMBDA_WEIGHTS)
    _positive("scale", scale)
    if not mu >= 0:
        raise ValueError(f"mu must be 0 or more, got {mu}; 0 leaves LambdaRank's weights alone")
    scores, targets, mask = _prepare(scores, targets, mask)
    ranks = _ranks(scores.detach(), mask, tie_break=-targets)
    weight = _LAMBDA_WEIGHTS[weighting](targets, _gains(targets, gain), ranks, mu)
    loss = weight * F.softplus(-scale * _differences(scores)) / math.log(2)
    every_pair = weighting in ("ndcg1", "arp1")
    pairs = _other_pairs(mask) if every_pair else _ordered_pairs(targets, mask)
    return _reduce(loss, pairs, mask, reduction)


def _lambda_rank(gains: Tensor, ranks: Tensor) -> Tensor:
    """Change of nDCG when i and j swap places."""
    return _differences(_DISCOUNTS["log2"](ranks)).abs() * _differences(gains).abs()


def _lambda_near(gains: Tensor, ranks: Tensor) -> Tensor:
    """Change of nDCG by one step at the distance of i and j: the weights of NDCG-Loss2."""
    log2 = _DISCOUNTS["log2"]
    distance = _differences(ranks).abs().clamp(min=1)  # 0 only for i = j and exact duplicates
    return (log2(distance) - log2(distance + 1)) * _differences(gains).abs()


_LAMBDA_WEIGHTS: dict[str, Callable[[Tensor, Tensor, Tensor, float], Tensor]] = {
    "ranknet": lambda targets, gains, ranks, mu: torch.ones_like(_differences(gains)),
    "lambdarank": lambda targets, gains, ranks, mu: _lambda_rank(gains, ranks),
    "ndcg1": lambda targets, gains, ranks, mu: (gains * _DISCOUNTS["log2"](ranks))[:, :, None],
    "ndcg2": lambda targets, gains, ranks, mu: _lambda_near(gains, ranks),
    "ndcg2pp": lambda targets, gains, ranks, mu: (
        _lambda_rank(gains, ranks) + mu * _lambda_near(gains, ranks)
    ),
    "arp1": lambda targets, gains, ranks, mu: targets.clamp(min=0)[:, :, None],
    "arp2": lambda targets, gains, ranks, mu: _differences(targets),
}
