r"""Ranking losses as plain functions of two tensors, ``[batch, n]``; dimension 1 is the list.

Every loss is ``name_loss(scores, targets, *, mask=None, reduction="mean", **own)``, stands in
:data:`LOSSES` under its name, and takes these four arguments; the docstrings list only its own:

- ``scores`` ``[batch, n]``: student logits, any real number, higher is better. float16 and
  bfloat16 are raised to float32; float64 stays float64, as does the returned loss.
- ``targets`` ``[batch, n]``: finite numbers, higher is better, constants (no gradient). They are
  relevance grades, teacher scores, or :func:`targets_from_ranks`, which turns the ranks
  :math:`1..n` of a teacher into :math:`n..1`. Losses that need ranks take them from the targets:
  :math:`p_i = 1 + |\{j: t_j > t_i\}| + \frac12 |\{j \ne i: t_j = t_i\}|`, so that tied passages
  share their average rank. Masked passages are never counted.
- ``mask`` ``[batch, n]`` bool: True = real passage; None = all are. A masked entry may hold
  anything, NaN included: it changes nothing and its gradient is exactly 0.
- ``reduction``: ``"none"`` gives ``[batch]``; ``"mean"`` the mean over the lists with a preference.

A list without a preference, i.e. whose passages are all tied, all masked, or only one, teaches no
order: its loss is 0, its gradient 0, and it is not counted in the mean. (A pointwise loss could
learn from a list of negatives alone; here it does not, so that all losses see the same lists.)
:func:`has_preference` tells which lists count. Within a list, pointwise and pairwise losses are
means over their items or pairs, where some papers take sums; the listwise likelihoods and
divergences are one number per list and stay as published. All raise ``ValueError`` for tensors
that are not 2-D and equal in shape or for an unknown choice, ``TypeError`` for a wrong dtype.

Example:
    >>> scores = torch.tensor([[2.0, 0.5, 1.0, -1.0]])
    >>> targets = targets_from_ranks(torch.tensor([[1, 2, 3, 4]]))
    >>> {name: round(LOSSES[name](scores, targets).item(), 4) for name in ("ranknet", "adr_mse")}
    {'ranknet': 0.3109, 'adr_mse': 0.211}
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable

import torch
from torch import Tensor
from torch.nn import functional as F

__all__ = [
    "LOSSES",
    "adr_mse",
    "approx_mrr",
    "approx_ndcg",
    "bce",
    "has_preference",
    "hinge",
    "info_nce",
    "kl_div",
    "lambda_loss",
    "list_mle",
    "listnet",
    "margin_mse",
    "neural_ndcg",
    "p_list_mle",
    "ranknet",
    "targets_from_ranks",
]

# --- from ranks to targets -------------------------------------------------------------------


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
    highest, lowest = _extremes(targets.to(torch.promote_types(targets.dtype, torch.float32)), mask)
    return mask.any(1) & (highest != lowest).squeeze(1)


# --- pairwise --------------------------------------------------------------------------------


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
        scores, targets, mask, reduction: as in the module's docstring, ``[batch, n]``.
        weighting: ``"uniform"``, :math:`w_{ij} = 1`, or ``"inverse_rank_sum"``,
            :math:`w_{ij} = 1 / (p_i + p_j)`, as in FIRST. The weights are not normalised.

    Returns:
        Scalar, or ``[batch]`` for ``reduction="none"``; >= 0.

    Raises:
        ValueError, TypeError: as in the module's docstring.

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
        scores, targets, mask, reduction: as in the module's docstring, ``[batch, n]``.
        margin: the same margin for every pair, > 0, in units of the scores; None takes the
            teacher's, :math:`m_{ij} = t_i - t_j`, so targets must then be on the scale of scores.

    Returns:
        Scalar, or ``[batch]`` for ``reduction="none"``; >= 0.

    Raises:
        ValueError, TypeError: as in the module's docstring; ValueError also for margin <= 0.

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
        scores, targets, mask, reduction: as in the module's docstring, ``[batch, n]``.
        comparison: ``"pairwise"`` (the first formula) or ``"pointwise"`` (the second).
        margin: :math:`m` > 0, in units of the scores.
        positives: which passages have :math:`y_i = 1` when pointwise, as in :func:`info_nce`.

    Returns:
        Scalar, or ``[batch]`` for ``reduction="none"``; >= 0.

    Raises:
        ValueError, TypeError: as in the module's docstring; ValueError also for margin <= 0.

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
        scores, targets, mask, reduction: as in the module's docstring, ``[batch, n]``.
        weighting: a name of the table.
        gain: of a target :math:`t \ge 0` (negative counts as 0): ``"exp2"``, :math:`2^t - 1`, safe
            for any t, or ``"linear"``, t. Unused by ``ranknet``, ``arp1`` and ``arp2``.
        mu: :math:`\mu` >= 0, share of NDCG-Loss2 in ``ndcg2pp``.
        scale: :math:`\sigma` > 0, multiplies the scores.

    Returns:
        Scalar, or ``[batch]`` for ``reduction="none"``; >= 0.

    Raises:
        ValueError, TypeError: as in the module's docstring; ValueError also for mu < 0, scale <= 0.

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


# --- listwise: likelihoods and divergences ---------------------------------------------------


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
        scores, targets, mask, reduction: as in the module's docstring, ``[batch, n]``.
        positives: :math:`P`: ``"best"``, the passages with the list's highest target (the relevant
            one among zeros, the teacher's first), or ``"all"``, those above its lowest target (all
            relevant grades among zeros). The others are negatives, so both sorts are always there.
        temperature: T > 0, divides the scores.

    Returns:
        Scalar, or ``[batch]`` for ``reduction="none"``; >= 0.

    Raises:
        ValueError, TypeError: as in the module's docstring; ValueError also for temperature <= 0.

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
        scores, targets, mask, reduction: as in the module's docstring, ``[batch, n]``.
        distribution: :math:`P`: ``"targets"``, softmax of the targets, which for ranks puts most of
            its weight on the first three passages, or ``"reciprocal_rank"``, softmax of
            :math:`1/p_i`, which is much flatter.
        temperature: T > 0, divides the scores only.

    Returns:
        Scalar, or ``[batch]`` for ``reduction="none"``; at least the entropy of :math:`P`, > 0.

    Raises:
        ValueError, TypeError: as in the module's docstring; ValueError also for temperature <= 0.

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
        scores, targets, mask, reduction: as in the module's docstring, ``[batch, n]``; the targets
            are meant to be the teacher's scores.
        temperature: T > 0, divides scores and targets. The loss is not multiplied by
            :math:`T^2`, which Hinton et al. advise when T varies.

    Returns:
        Scalar, or ``[batch]`` for ``reduction="none"``; >= 0.

    Raises:
        ValueError, TypeError: as in the module's docstring; ValueError also for temperature <= 0.

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
        scores, targets, mask, reduction: as in the module's docstring, ``[batch, n]``.

    Returns:
        Scalar, or ``[batch]`` for ``reduction="none"``; >= 0.

    Raises:
        ValueError, TypeError: as in the module's docstring.

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
        scores, targets, mask, reduction: as in the module's docstring, ``[batch, n]``.

    Returns:
        Scalar, or ``[batch]`` for ``reduction="none"``; >= 0.

    Raises:
        ValueError, TypeError: as in the module's docstring.

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


# --- listwise: smoothed ranks and measures ---------------------------------------------------


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
        scores, targets, mask, reduction: as in the module's docstring, ``[batch, n]``.
        discount: ``"log2"``, :math:`d(p) = 1 / \log_2(p + 1)`, ``"reciprocal"``, :math:`1 / p`, or
            ``"none"``, 1.
        temperature: T > 0, divides score differences; small T makes ranks hard and gradients rare.

    Returns:
        Scalar, or ``[batch]`` for ``reduction="none"``; >= 0.

    Raises:
        ValueError, TypeError: as in the module's docstring; ValueError also for temperature <= 0.

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
        scores, targets, mask, reduction: as in the module's docstring, ``[batch, n]``.
        gain: as in :func:`lambda_loss`; a list without a gain costs 0.
        temperature: T > 0, divides score differences.

    Returns:
        Scalar, or ``[batch]`` for ``reduction="none"``; 0 to 1.

    Raises:
        ValueError, TypeError: as in the module's docstring; ValueError also for temperature <= 0.

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
        scores, targets, mask, reduction: as in the module's docstring, ``[batch, n]``.
        positives: :math:`P`, ``"best"`` or ``"all"``, as in :func:`info_nce`.
        temperature: T > 0, divides score differences.

    Returns:
        Scalar, or ``[batch]`` for ``reduction="none"``; 0 to 1.

    Raises:
        ValueError, TypeError: as in the module's docstring; ValueError also for temperature <= 0.

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
        scores, targets, mask, reduction: as in the module's docstring, ``[batch, n]``.
        gain: as in :func:`lambda_loss`; a list without a gain costs 0.
        temperature: T > 0; small T makes the permutation hard.
        sinkhorn_steps: >= 0, how often columns, then rows, are scaled. Each costs memory for the
            backward pass; without any, a passage may be counted in several places.

    Returns:
        Scalar, or ``[batch]`` for ``reduction="none"``; 0 to 1 up to the error of the scaling.

    Raises:
        ValueError, TypeError: as in the module's docstring; ValueError also for temperature <= 0
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


# --- pointwise -------------------------------------------------------------------------------


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
        scores, targets, mask, reduction: as in the module's docstring, ``[batch, n]``.
        comparison: ``"pointwise"``, the formula, or ``"pairwise"``, which is :func:`ranknet`.
        positives: which passages have :math:`y_i = 1` when pointwise, as in :func:`info_nce`.

    Returns:
        Scalar, or ``[batch]`` for ``reduction="none"``; >= 0.

    Raises:
        ValueError, TypeError: as in the module's docstring.

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


LOSSES: dict[str, Callable[..., Tensor]] = {
    loss.__name__: loss
    for loss in (
        ranknet,
        adr_mse,
        info_nce,
        listnet,
        list_mle,
        p_list_mle,
        lambda_loss,
        approx_ndcg,
        approx_mrr,
        neural_ndcg,
        margin_mse,
        kl_div,
        bce,
        hinge,
    )
}
"""Every loss under its function's name."""

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
    mask = mask & has_preference(targets, mask)[:, None]
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


def _smooth_ranks(scores: Tensor, mask: Tensor, temperature: float) -> Tensor:
    """``[batch, n]``: 1 + sum over the other real passages of sigmoid((s_j - s_i) / T)."""
    beaten = torch.sigmoid(-_differences(scores) / temperature)
    return 1 + beaten.masked_fill(~_other_pairs(mask), 0).sum(2)


def _extremes(values: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
    """``[batch, 1]`` each: highest and lowest value of the real passages."""
    highest = values.masked_fill(~mask, -math.inf).amax(1, keepdim=True)
    lowest = values.masked_fill(~mask, math.inf).amin(1, keepdim=True)
    return highest, lowest


def _positives(targets: Tensor, mask: Tensor, which: str) -> Tensor:
    """``[batch, n]`` bool: passages at the list's highest, or above its lowest, target."""
    _choose("positives", which, ("best", "all"))
    highest, lowest = _extremes(targets, mask)
    return mask & (targets == highest if which == "best" else targets > lowest)


def _choice_losses(scores: Tensor, targets: Tensor, mask: Tensor) -> Tensor:
    """``[batch, n]``: -log of the chance to choose passage i before all that are worse."""
    itself = torch.eye(mask.shape[1], dtype=torch.bool, device=mask.device)
    left = _ordered_pairs(targets, mask) | itself
    return _logsumexp(scores[:, None, :].expand(left.shape), left) - scores


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
