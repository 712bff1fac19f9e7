"""Listwise losses that compare distributions: over the passages of a list, or over its orders.

The scores are taken as logits of a softmax over the list. The loss is the likelihood of the
positives (InfoNCE) or of the teacher's whole order (ListMLE), or the cross-entropy with, or
divergence from, the softmax of the targets (ListNet, Kullback-Leibler). :mod:`rdl_core.losses`
states what they share.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from rdl_core.losses._lists import (
    _choose,
    _log_softmax,
    _logsumexp,
    _ordered_pairs,
    _positive,
    _positives,
    _prepare,
    _ranks,
    _reduce,
    _reduce_lists,
)

__all__ = ["info_nce", "kl_div", "list_mle", "listnet", "p_list_mle"]


def info_nce(
    scores: Tensor,
    targets: Tensor,
    *,
    mask: Tensor | None = None,
    reduction: str = "mean",
    positives: str = "best",
    temperature: float = 1.0,
) -> Tensor:
    r"""InfoNCE, also localized contrastive estimation: each positive against all the negatives.

    .. math:: \ell = \operatorname{mean}_{i \in P}
        -\log \frac{e^{s_i / T}}{e^{s_i / T} + \sum_{j \notin P} e^{s_j / T}}

    Several positives do not compete with one another: the loss is the mean of the losses of the
    lists that keep one positive each. With one positive it is softmax cross-entropy.

    Args:
        scores, targets, mask, reduction: as in :mod:`rdl_core.losses`, ``[batch, n]``.
        positives: :math:`P`: ``"best"``, the passages with the list's highest target (the relevant
            one among zeros, the teacher's first), or ``"all"``, those above its lowest target (all
            relevant grades among zeros). The others are negatives, so both sorts are always there.
        temperature: T > 0, divides the scores.

    Returns:
        Scalar, or ``[batch]`` for ``reduction="none"``; >= 0.

    Raises:
        ValueError, TypeError: as in :mod:`rdl_core.losses`; ValueError also for temperature <= 0.

    Reference: van den Oord et al., arXiv 1807.03748, 2018. LCE: Gao et al., ECIR 2021.

    Example:
        >>> scores = torch.tensor([[2.0, 0.5, 1.0, -1.0]])
        >>> round(info_nce(scores, torch.tensor([[1, 0, 0, 0]])).item(), 4)
        0.4952
    """
    _positive("temperature", temperature)
    scores, targets, mask = _prepare(scores, targets, mask)
    positive = _positives(targets, mask, positives)
    scores = scores / temperature
    negatives = _logsumexp(scores, mask & ~positive)
    return _reduce(F.softplus(negatives[:, None] - scores), positive, mask, reduction)


def listnet(
    scores: Tensor,
    targets: Tensor,
    *,
    mask: Tensor | None = None,
    reduction: str = "mean",
    distribution: str = "targets",
    temperature: float = 1.0,
) -> Tensor:
    r"""ListNet: cross-entropy of the top-one probabilities of teacher and student.

    .. math:: \ell = -\sum_i P_i \log \operatorname{softmax}(s / T)_i, \qquad
        P = \operatorname{softmax}(t) \;\text{or}\; \operatorname{softmax}(1 / p)

    Args:
        scores, targets, mask, reduction: as in :mod:`rdl_core.losses`, ``[batch, n]``.
        distribution: :math:`P`: ``"targets"``, softmax of the targets, which for ranks puts most of
            its weight on the first three passages, or ``"reciprocal_rank"``, softmax of
            :math:`1/p_i`, which is much flatter.
        temperature: T > 0, divides the scores only.

    Returns:
        Scalar, or ``[batch]`` for ``reduction="none"``; at least the entropy of :math:`P`, > 0.

    Raises:
        ValueError, TypeError: as in :mod:`rdl_core.losses`; ValueError also for temperature <= 0.

    Reference: Cao et al., ICML 2007. Labels 1 / rank: the code of Sun et al. (RankGPT), EMNLP 2023.

    Example:
        >>> round(listnet(torch.tensor([[2.0, 0.5]]), torch.tensor([[2, 1]])).item(), 4)
        0.6048
    """
    _choose("distribution", distribution, ("targets", "reciprocal_rank"))
    _positive("temperature", temperature)
    scores, targets, mask = _prepare(scores, targets, mask)
    wanted = targets if distribution == "targets" else 1 / _ranks(targets, mask)
    cross_entropy = -_log_softmax(wanted, mask).exp() * _log_softmax(scores / temperature, mask)
    return _reduce_lists(cross_entropy.sum(1), mask, reduction)


def kl_div(
    scores: Tensor,
    targets: Tensor,
    *,
    mask: Tensor | None = None,
    reduction: str = "mean",
    temperature: float = 1.0,
) -> Tensor:
    r"""Kullback-Leibler divergence of the student's softmax from the teacher's.

    .. math:: \ell = \sum_i P_i (\log P_i - \log Q_i), \qquad
        P = \operatorname{softmax}(t / T), \; Q = \operatorname{softmax}(s / T)

    At T = 1 the gradient is that of :func:`listnet`; the value is 0 where the student agrees.

    Args:
        scores, targets, mask, reduction: as in :mod:`rdl_core.losses`, ``[batch, n]``; the targets
            are meant to be the teacher's scores.
        temperature: T > 0, divides scores and targets. The loss is not multiplied by
            :math:`T^2`, which Hinton et al. advise when T varies.

    Returns:
        Scalar, or ``[batch]`` for ``reduction="none"``; >= 0.

    Raises:
        ValueError, TypeError: as in :mod:`rdl_core.losses`; ValueError also for temperature <= 0.

    Reference: Hinton et al., arXiv 1503.02531, 2015.

    Example:
        >>> round(kl_div(torch.tensor([[2.0, 0.5]]), torch.tensor([[2, 1]])).item(), 4)
        0.0226
    """
    _positive("temperature", temperature)
    scores, targets, mask = _prepare(scores, targets, mask)
    log_p = _log_softmax(targets / temperature, mask)
    log_q = _log_softmax(scores / temperature, mask)
    return _reduce_lists((log_p.exp() * (log_p - log_q)).sum(1), mask, reduction)


def list_mle(
    scores: Tensor, targets: Tensor, *, mask: Tensor | None = None, reduction: str = "mean"
) -> Tensor:
    r"""ListMLE: negative log-likelihood of the teacher's order under the Plackett-Luce model.

    .. math:: \ell = \sum_i \Bigl(\log \sum_{j = i \,\vee\, t_j < t_i} e^{s_j} - s_i\Bigr)

    For an untied list this is the published sum over positions. Tied passages do not compete with
    one another, so their order in the tensor does not matter, and with one positive among equals
    the loss is :func:`info_nce`.

    Args:
        scores, targets, mask, reduction: as in :mod:`rdl_core.losses`, ``[batch, n]``.

    Returns:
        Scalar, or ``[batch]`` for ``reduction="none"``; >= 0.

    Raises:
        ValueError, TypeError: as in :mod:`rdl_core.losses`.

    Reference: Xia et al., ICML 2008.

    Example:
        >>> scores, targets = torch.tensor([[2.0, 0.5, 1.0, -1.0]]), torch.tensor([[4, 3, 2, 1]])
        >>> round(list_mle(scores, targets).item(), 4)
        1.6771
    """
    scores, targets, mask = _prepare(scores, targets, mask)
    return _reduce_lists(_choice_losses(scores, targets, mask).sum(1), mask, reduction)


def p_list_mle(
    scores: Tensor, targets: Tensor, *, mask: Tensor | None = None, reduction: str = "mean"
) -> Tensor:
    r"""Position-aware ListMLE: the terms of ListMLE weighted towards the head of the list.

    .. math:: \ell = \sum_i \alpha_i \Bigl(\log \sum_{j = i \,\vee\, t_j < t_i} e^{s_j} - s_i\Bigr),
        \qquad \alpha_i \propto 2^{m - p_i} - 1, \; \sum_i \alpha_i = 1

    :math:`m` is the number of real passages. The paper does not normalise its weights, whose sum
    would be about :math:`2^m`; normalised, they fit into float32 for any list.

    Args:
        scores, targets, mask, reduction: as in :mod:`rdl_core.losses`, ``[batch, n]``.

    Returns:
        Scalar, or ``[batch]`` for ``reduction="none"``; >= 0.

    Raises:
        ValueError, TypeError: as in :mod:`rdl_core.losses`.

    Reference: Lan et al., UAI 2014.

    Example:
        >>> round(p_list_mle(torch.tensor([[2.0, 0.5]]), torch.tensor([[2, 1]])).item(), 4)
        0.2014
    """
    scores, targets, mask = _prepare(scores, targets, mask)
    length = mask.sum(1, keepdim=True).to(scores)
    weight = (torch.exp2(-_ranks(targets, mask)) - torch.exp2(-length)).masked_fill(~mask, 0)
    total = weight.sum(1, keepdim=True)
    loss = _choice_losses(scores, targets, mask) * (weight / total.masked_fill(total == 0, 1))
    return _reduce_lists(loss.sum(1), mask, reduction)


def _choice_losses(scores: Tensor, targets: Tensor, mask: Tensor) -> Tensor:
    """``[batch, n]``: -log of the chance to choose passage i before all that are worse."""
    itself = torch.eye(mask.shape[1], dtype=torch.bool, device=mask.device)
    left = _ordered_pairs(targets, mask) | itself
    return _logsumexp(scores[:, None, :].expand(left.shape), left) - scores
