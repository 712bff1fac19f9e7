"""Listwise losses on smoothed ranks: squared errors of ranks, and measures made differentiable.

A rank is a count of the passages ahead; with a sigmoid, or a relaxed permutation, in place of the
count it has a gradient. The loss is then the distance from the teacher's ranks (ADR-MSE), or one
minus a measure at the smoothed ranks (nDCG, reciprocal rank). :mod:`rdl_core.losses` states what
they share.
"""

from __future__ import annotations

import torch
from torch import Tensor

from rdl_core.losses._lists import (
    _DISCOUNTS,
    _choose,
    _differences,
    _gains,
    _log_softmax,
    _other_pairs,
    _positive,
    _positives,
    _prepare,
    _ranks,
    _reduce,
    _reduce_lists,
)

__all__ = ["adr_mse", "approx_mrr", "approx_ndcg", "neural_ndcg"]


def adr_mse(
    scores: Tensor,
    targets: Tensor,
    *,
    mask: Tensor | None = None,
    reduction: str = "mean",
    discount: str = "log2",
    temperature: float = 1.0,
) -> Tensor:
    r"""ADR-MSE: discounted squared error of smoothed ranks, mean over the passages.

    .. math:: \ell = \frac1m \sum_i d(p_i) (p_i - r_i)^2, \qquad
        r_i = 1 + \sum_{j \ne i} \operatorname{sigmoid}\bigl((s_j - s_i) / T\bigr)

    Args:
        scores, targets, mask, reduction: as in :mod:`rdl_core.losses`, ``[batch, n]``.
        discount: ``"log2"``, :math:`d(p) = 1 / \log_2(p + 1)`, ``"reciprocal"``, :math:`1 / p`, or
            ``"none"``, 1.
        temperature: T > 0, divides score differences; small T makes ranks hard and gradients rare.

    Returns:
        Scalar, or ``[batch]`` for ``reduction="none"``; >= 0.

    Raises:
        ValueError, TypeError: as in :mod:`rdl_core.losses`; ValueError also for temperature <= 0.

    Reference: Schlatt et al. (Rank-DistiLLM), ECIR 2025, with ``log2`` and T = 1.

    Example:
        >>> scores, targets = torch.tensor([[2.0, 0.5, 1.0, -1.0]]), torch.tensor([[4, 3, 2, 1]])
        >>> round(adr_mse(scores, targets, discount="none").item(), 4)
        0.3386
    """
    _choose("discount", discount, _DISCOUNTS)
    _positive("temperature", temperature)
    scores, targets, mask = _prepare(scores, targets, mask)
    ranks = _ranks(targets, mask)
    loss = (ranks - _smooth_ranks(scores, mask, temperature)) ** 2 * _DISCOUNTS[discount](ranks)
    return _reduce(loss, mask, mask, reduction)


def approx_ndcg(
    scores: Tensor,
    targets: Tensor,
    *,
    mask: Tensor | None = None,
    reduction: str = "mean",
    gain: str = "exp2",
    temperature: float = 1.0,
) -> Tensor:
    r"""ApproxNDCG: one minus nDCG at smoothed ranks.

    .. math:: \ell = 1 - \sum_i G_i / \log_2(1 + r_i)

    with :math:`r_i` as in :func:`adr_mse` and gains :math:`G_i` divided by the ideal DCG.

    Args:
        scores, targets, mask, reduction: as in :mod:`rdl_core.losses`, ``[batch, n]``.
        gain: as in :func:`lambda_loss`; a list without a gain costs 0.
        temperature: T > 0, divides score differences.

    Returns:
        Scalar, or ``[batch]`` for ``reduction="none"``; 0 to 1.

    Raises:
        ValueError, TypeError: as in :mod:`rdl_core.losses`; ValueError also for temperature <= 0.

    Reference: Qin et al., Information Retrieval 13(4), 2010. Revisited: Bruch et al., SIGIR 2019.

    Example:
        >>> round(approx_ndcg(torch.tensor([[2.0, 0.5]]), torch.tensor([[1, 0]])).item(), 4)
        0.1118
    """
    _positive("temperature", temperature)
    scores, targets, mask = _prepare(scores, targets, mask)
    gains = _gains(targets, gain)
    dcg = gains / torch.log2(1 + _smooth_ranks(scores, mask, temperature))
    return _reduce_lists((gains > 0).any(1).to(dcg) - dcg.sum(1), mask, reduction)


def approx_mrr(
    scores: Tensor,
    targets: Tensor,
    *,
    mask: Tensor | None = None,
    reduction: str = "mean",
    positives: str = "best",
    temperature: float = 1.0,
) -> Tensor:
    r"""ApproxMRR: one minus the reciprocal smoothed rank of the positive ranked first.

    .. math:: \ell = 1 - \max_{i \in P} 1 / r_i

    with :math:`r_i` as in :func:`adr_mse`.

    Args:
        scores, targets, mask, reduction: as in :mod:`rdl_core.losses`, ``[batch, n]``.
        positives: :math:`P`, ``"best"`` or ``"all"``, as in :func:`info_nce`.
        temperature: T > 0, divides score differences.

    Returns:
        Scalar, or ``[batch]`` for ``reduction="none"``; 0 to 1.

    Raises:
        ValueError, TypeError: as in :mod:`rdl_core.losses`; ValueError also for temperature <= 0.

    Reference: smoothed ranks of Qin et al., Information Retrieval 13(4), 2010, in reciprocal rank.

    Example:
        >>> round(approx_mrr(torch.tensor([[2.0, 0.5]]), torch.tensor([[1, 0]])).item(), 4)
        0.1543
    """
    _positive("temperature", temperature)
    scores, targets, mask = _prepare(scores, targets, mask)
    positive = _positives(targets, mask, positives)
    reciprocal = (1 / _smooth_ranks(scores, mask, temperature)).masked_fill(~positive, 0)
    return _reduce_lists(1 - reciprocal.amax(1), mask, reduction)


def neural_ndcg(
    scores: Tensor,
    targets: Tensor,
    *,
    mask: Tensor | None = None,
    reduction: str = "mean",
    gain: str = "exp2",
    temperature: float = 1.0,
    sinkhorn_steps: int = 10,
) -> Tensor:
    r"""NeuralNDCG: one minus nDCG of the list sorted by a relaxed permutation matrix.

    .. math:: \ell = 1 - \sum_{k=1}^{m} \frac{(\hat P G)_k}{\log_2(1 + k)}, \qquad
        \hat P_{k \cdot} = \operatorname{softmax}_i
        \Bigl(\bigl((m + 1 - 2k) s_i - \textstyle\sum_j |s_i - s_j|\bigr) / T\Bigr)

    :math:`\hat P` (NeuralSort) is then scaled to columns and rows that sum to one (Sinkhorn).

    Args:
        scores, targets, mask, reduction: as in :mod:`rdl_core.losses`, ``[batch, n]``.
        gain: as in :func:`lambda_loss`; a list without a gain costs 0.
        temperature: T > 0; small T makes the permutation hard.
        sinkhorn_steps: >= 0, how often columns, then rows, are scaled. Each costs memory for the
            backward pass; without any, a passage may be counted in several places.

    Returns:
        Scalar, or ``[batch]`` for ``reduction="none"``; 0 to 1 up to the error of the scaling.

    Raises:
        ValueError, TypeError: as in :mod:`rdl_core.losses`; ValueError also for temperature <= 0
            or sinkhorn_steps < 0.

    Reference: Pobrotyn and Białobrzeski, arXiv 2102.07831, 2021. NeuralSort: Grover et al.,
    ICLR 2019.

    Example:
        >>> round(neural_ndcg(torch.tensor([[2.0, 0.5]]), torch.tensor([[1, 0]])).item(), 4)
        0.0673
    """
    _positive("temperature", temperature)
    if sinkhorn_steps < 0:
        raise ValueError(f"sinkhorn_steps must be 0 or more, got {sinkhorn_steps}; 10 is usual")
    scores, targets, mask = _prepare(scores, targets, mask)
    length = mask.sum(1)[:, None, None]
    position = torch.arange(1, scores.shape[1] + 1, device=scores.device)[:, None]
    cells = (position <= length) & mask[:, None, :]
    spread = _differences(scores).abs().masked_fill(~_other_pairs(mask), 0).sum(2)
    logits = (length + 1 - 2 * position) * scores[:, None, :] - spread[:, None, :]
    log_p = _log_softmax(logits / temperature, cells)
    for _ in range(sinkhorn_steps):
        log_p = _log_softmax(_log_softmax(log_p, cells, dim=1), cells, dim=2)
    gains = _gains(targets, gain)
    gain_at = (log_p.exp().masked_fill(~cells, 0) * gains[:, None, :]).sum(2)
    dcg = (gain_at / torch.log2(1 + position.squeeze(1).to(scores))).sum(1)
    return _reduce_lists((gains > 0).any(1).to(dcg) - dcg, mask, reduction)


def _smooth_ranks(scores: Tensor, mask: Tensor, temperature: float) -> Tensor:
    """``[batch, n]``: 1 + sum over the other real passages of sigmoid((s_j - s_i) / T)."""
    beaten = torch.sigmoid(-_differences(scores) / temperature)
    return 1 + beaten.masked_fill(~_other_pairs(mask), 0).sum(2)
