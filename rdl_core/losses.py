"""Ranking losses as plain functions of two tensors, ``[batch, n]``; dimension 1 is the list.

Every loss is ``name(scores, targets, *, mask=None, reduction="mean", **own)``, in :data:`LOSSES`:

- ``scores`` s: student logits, higher is better. Half precision is raised to float32; float64 stays.
- ``targets`` t: finite, higher is better, no gradient: grades, scores, :func:`targets_from_ranks`.
  Their ranks p, 1 = best, average ties.
- ``mask`` bool: True = real passage; None = all. What is masked, NaN too, changes nothing; gradient 0.
- ``reduction``: ``"none"`` gives ``[batch]``; ``"mean"`` the mean over the lists with a preference.
- ``temperature`` T > 0 divides the scores; a small T makes smoothed ranks hard and gradients rare.
- ``positives``, the set P: passages at the list's ``"best"`` target, or ``"all"`` above its lowest.
- ``gain`` of a target t, negative counts as 0: ``"exp2"``, 2^t - 1, safe for any t, or ``"linear"``,
  t. G is the gain divided by the ideal DCG; a list without a gain costs 0.

A list without a preference (all passages tied or masked, or only one) has loss and gradient 0, and the
mean does not count it. Pointwise and pairwise losses are means over a list's items or pairs, where some
papers take sums; listwise losses are one number per list, as published. ``ValueError``: wrong shape or
value; ``TypeError``: wrong dtype or unknown option.

>>> import torch
>>> from rdl_core.losses import ranknet, targets_from_ranks
>>> targets = targets_from_ranks(torch.tensor([[1, 2, 3, 4]]))
>>> round(ranknet(torch.tensor([[2.0, 0.5, 1.0, -1.0]]), targets).item(), 4)
0.3109
"""

import functools
import inspect
import math
from collections.abc import Callable
from typing import Any, Literal, get_args, get_origin

import torch
from torch import Tensor
from torch.nn import functional as F

__all__ = ["LOSSES", "has_preference", "targets_from_ranks"]  # and every loss

LOSSES: dict[str, Callable[..., Tensor]] = {}  #: Every loss by its name.
_Positives = Literal["best", "all"]
_Gain = Literal["exp2", "linear"]
_Discount = Literal["log2", "reciprocal", "none"]
_Labels = Literal["targets", "reciprocal_rank"]
_LambdaWeights = Literal["lambdarank", "ndcg1", "ndcg2", "ndcg2pp", "arp1", "arp2"]


def _loss(formula: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """Register a loss made of ``formula(scores, targets, mask, *, options)``, which gives ``[batch]``.

    It gets float32 or float64, 0 where masked; lists without a preference are wholly masked.
    """

    def loss(
        scores: Tensor, targets: Tensor, *, mask: Tensor | None = None,
        reduction: Literal["mean", "none"] = "mean", **own: Any,
    ) -> Tensor:  # fmt: skip
        for name, value in {"reduction": reduction, **own}.items():
            if name in choices and value not in choices[name]:
                raise ValueError(f"{name} must be one of {', '.join(choices[name])}, got {value!r}")
            if name in ("temperature", "scale", "margin") and not (value is None or value > 0):
                raise ValueError(f"{name} must be greater than 0, got {value}")
            if name in ("mu", "sinkhorn_steps") and not value >= 0:
                raise ValueError(f"{name} must be 0 or more, got {value}")
        if not scores.is_floating_point():
            raise TypeError(f"scores must be floating, got {scores.dtype}; use scores.float()")
        scores, mask = _checked(scores, "scores", mask)
        if (got := tuple(targets.shape)) != (shape := tuple(scores.shape)):
            raise ValueError(f"targets must have the shape of scores, {shape}, got {got}")
        targets = targets.detach().to(scores.dtype)
        counts = has_preference(targets, mask)
        mask = mask & counts[:, None]
        losses = formula(scores.masked_fill(~mask, 0), targets.masked_fill(~mask, 0), mask, **own)
        losses = losses.masked_fill(~counts, 0)
        return losses if reduction == "none" else losses.sum() / counts.sum().clamp(min=1)

    options = list(inspect.signature(formula).parameters.values())[3:]
    taken = list(inspect.signature(loss).parameters.values())[:-1] + options
    choices = {p.name: get_args(p.annotation) for p in taken if get_origin(p.annotation) is Literal}
    loss.__signature__ = inspect.Signature(taken, return_annotation=Tensor)
    # Code of its own: tracebacks then name the loss, and torch.compile keeps a cache for each.
    loss.__code__ = loss.__code__.replace(co_name=formula.__name__)
    LOSSES[formula.__name__] = loss
    __all__.append(formula.__name__)
    return functools.update_wrapper(loss, formula)


@_loss
def ranknet(scores, targets, mask, *, weighting: Literal["uniform", "inverse_rank_sum"] = "uniform"):
    """RankNet: ``w_ij log(1 + exp(s_j - s_i))``, mean over the pairs with ``t_i > t_j``.

    ``weighting`` w: ``"uniform"``, 1, or ``"inverse_rank_sum"``, ``1 / (p_i + p_j)``, not normalised.
    Reference: Burges et al., ICML 2005, who also take tied pairs, at probability 1/2. Weights: Gangi
    Reddy et al. (FIRST), EMNLP 2024.
    """
    loss = F.softplus(-_differences(scores))
    if weighting == "inverse_rank_sum":
        ranks = _ranks(_differences(targets), mask)
        loss = loss / (ranks[:, :, None] + ranks[:, None, :])
    return _mean(loss, _ordered_pairs(targets, mask))


@_loss
def adr_mse(scores, targets, mask, *, discount: _Discount = "log2", temperature: float = 1.0):
    """ADR-MSE: ``d(p_i) (p_i - r_i)^2``, mean over the passages, with smoothed ranks of the student.

    ``r_i = 1 + sum over j != i of sigmoid((s_j - s_i) / T)``. ``discount`` d(p): ``"log2"``,
    ``1 / log2(p + 1)``, ``"reciprocal"``, ``1 / p``, or ``"none"``, 1.
    Reference: Schlatt et al. (Rank-DistiLLM), ECIR 2025, with ``log2`` and T = 1.
    """
    ranks = _ranks(_differences(targets), mask)
    squares = (ranks - _ranks(_differences(scores), mask, temperature)) ** 2
    weights = {"log2": 1 / torch.log2(1 + ranks), "reciprocal": 1 / ranks, "none": 1.0}
    return _mean(squares * weights[discount], mask)


@_loss
def info_nce(scores, targets, mask, *, positives: _Positives = "best", temperature: float = 1.0):
    """InfoNCE, also localized contrastive estimation: each positive against all the negatives.

    ``-log(exp(s_i / T) / (exp(s_i / T) + sum over j not in P of exp(s_j / T)))``, mean over i in P.
    Positives do not compete with one another; with one of them it is softmax cross-entropy.
    Reference: van den Oord et al., arXiv 1807.03748, 2018. LCE: Gao et al., ECIR 2021.
    """
    positive = _positives(targets, mask, positives)
    return _mean(_choice_losses(scores / temperature, (mask & ~positive)[:, None, :]), positive)


@_loss
def listnet(scores, targets, mask, *, distribution: _Labels = "targets", temperature: float = 1.0):
    """ListNet: ``-sum of P_i log softmax(s / T)_i``, cross-entropy of top-one probabilities; never 0.

    ``distribution`` P: softmax of ``"targets"`` (for ranks, the first three weigh most) or the much
    flatter one of 1 / p, ``"reciprocal_rank"``. T divides the student's scores only.
    Reference: Cao et al., ICML 2007. Labels 1 / p: the code of Sun et al. (RankGPT), EMNLP 2023.
    """
    wanted = targets if distribution == "targets" else 1 / _ranks(_differences(targets), mask)
    return (-_log_softmax(wanted, mask).exp() * _log_softmax(scores / temperature, mask)).sum(1)


@_loss
def list_mle(scores, targets, mask):
    """ListMLE: negative log-likelihood of the teacher's order under the Plackett-Luce model.

    ``sum over i of log(sum over j = i or t_j < t_i of exp(s_j)) - s_i``: tied passages do not compete;
    one positive: :func:`info_nce`. Reference: Xia et al., ICML 2008.
    """
    return _choice_losses(scores, _ordered_pairs(targets, mask)).sum(1)


@_loss
def p_list_mle(scores, targets, mask):
    """Position-aware ListMLE: its terms weighted by ``2^(m - p_i) - 1``, of m passages, sum 1.

    Reference: Lan et al., UAI 2014, whose weights sum to about 2^m: no float for a long list.
    """
    ranks, length = _ranks(_differences(targets), mask), mask.sum(1, keepdim=True).to(scores)
    weight = (torch.exp2(-ranks) - torch.exp2(-length)).masked_fill(~mask, 0)
    total = weight.sum(1)
    loss = (_choice_losses(scores, _ordered_pairs(targets, mask)) * weight).sum(1)
    return loss / total.masked_fill(total == 0, 1)


@_loss
def lambda_loss(
    scores, targets, mask, *, weighting: _LambdaWeights = "ndcg2pp", gain: _Gain = "exp2",
    mu: float = 10.0, scale: float = 1.0,
):  # fmt: skip
    """LambdaLoss: ``w_ij log2(1 + exp(-scale (s_i - s_j)))``, mean over the pairs with ``t_i > t_j``.

    With the rank r by score, ``D = log2(1 + r)``, ``d = |r_i - r_j|`` and
    ``near = 1 / log2(1 + d) - 1 / log2(2 + d)``, the ``weighting`` w, without gradient, is
    ``lambdarank``: ``|1/D_i - 1/D_j| |G_i - G_j|``; ``ndcg2``: ``near |G_i - G_j|``; ``ndcg2pp``:
    lambdarank's + ``mu`` (>= 0) ndcg2's; ``arp2``: ``t_i - t_j``; of all pairs, ``ndcg1``:
    ``G_i / D_i``, and ``arp1``: ``max(t_i, 0)``. ``scale`` > 0.
    Passages tied in score are ranked worst first: a student that ties all is not taken for a good one.
    Reference: Wang et al., CIKM 2018, who sum over the pairs. LambdaRank: Burges et al., NIPS 2006.
    """
    lead = _differences(scores)
    ranks = _ranks(torch.where(lead == 0, -_differences(targets), lead).detach(), mask)
    gains, discounts = _gains(targets, gain), 1 / torch.log2(1 + ranks)
    gap = _differences(gains).abs()
    swap = _differences(discounts).abs() * gap  # change of nDCG when i and j swap places
    distance = _differences(ranks).abs().clamp(min=1)  # 0 only for i = j and exact duplicates
    near = (1 / torch.log2(1 + distance) - 1 / torch.log2(2 + distance)) * gap
    weight = {
        "lambdarank": swap, "ndcg1": (gains * discounts)[:, :, None], "ndcg2": near,
        "ndcg2pp": swap + mu * near, "arp1": targets.clamp(min=0)[:, :, None],
        "arp2": _differences(targets),
    }[weighting]  # fmt: skip
    pairs = _other_pairs(mask) if weighting in ("ndcg1", "arp1") else _ordered_pairs(targets, mask)
    return _mean(weight * F.softplus(-scale * lead) / math.log(2), pairs)


@_loss
def approx_ndcg(scores, targets, mask, *, gain: _Gain = "exp2", temperature: float = 1.0):
    """ApproxNDCG: ``1 - sum of G_i / log2(1 + r_i)``, with the smoothed ranks of :func:`adr_mse`.

    Reference: Qin et al., Information Retrieval 13(4), 2010. Revisited: Bruch et al., SIGIR 2019.
    """
    gains, ranks = _gains(targets, gain), _ranks(_differences(scores), mask, temperature)
    return (gains > 0).any(1).to(gains) - (gains / torch.log2(1 + ranks)).sum(1)


@_loss
def approx_mrr(scores, targets, mask, *, positives: _Positives = "best", temperature: float = 1.0):
    """ApproxMRR: ``1 - max over i in P of 1 / r_i``, with the smoothed ranks of :func:`adr_mse`.

    Reference: smoothed ranks of Qin et al., Information Retrieval 13(4), 2010, in reciprocal rank.
    """
    reciprocal = 1 / _ranks(_differences(scores), mask, temperature)
    return 1 - reciprocal.masked_fill(~_positives(targets, mask, positives), 0).amax(1)


@_loss
def neural_ndcg(
    scores, targets, mask, *, gain: _Gain = "exp2", temperature: float = 1.0, sinkhorn_steps: int = 10
):
    """NeuralNDCG: ``1 - sum over k of (A G)_k / log2(1 + k)``, A a relaxed permutation matrix.

    Of m passages, row k of A is the softmax over i of ``((m + 1 - 2k) s_i - sum_j |s_i - s_j|) / T``.
    ``sinkhorn_steps`` >= 0: how often its columns, then rows, are scaled to sum to one; each costs
    memory; without them a passage may count repeatedly. Reference: Pobrotyn and Białobrzeski, arXiv
    2102.07831, 2021. NeuralSort: Grover et al., ICLR 2019.
    """
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
    return (gains > 0).any(1).to(dcg) - dcg


@_loss
def margin_mse(scores, targets, mask, *, margin: float | None = None):
    """MarginMSE: ``((s_i - s_j) - m_ij)^2``, mean over the pairs with ``t_i > t_j``.

    ``margin`` > 0 is m for every pair; None takes ``t_i - t_j``, with targets on the scores' scale.
    Reference: Hofstätter et al., arXiv 2010.02666, 2020 (one positive and one negative a query).
    """
    wanted = _differences(targets) if margin is None else margin
    return _mean((_differences(scores) - wanted) ** 2, _ordered_pairs(targets, mask))


@_loss
def kl_div(scores, targets, mask, *, temperature: float = 1.0):
    """Kullback-Leibler divergence, ``P = softmax(t / T)`` from ``softmax(s / T)``; 0 if they agree.

    At T = 1 the gradient is that of :func:`listnet`.
    Reference: Hinton et al., arXiv 1503.02531, 2015; without their factor T^2.
    """
    log_p = _log_softmax(targets / temperature, mask)
    log_q = _log_softmax(scores / temperature, mask)
    return (log_p.exp() * (log_p - log_q)).sum(1)


@_loss
def bce(scores, targets, mask, *, positives: _Positives = "best"):
    """Binary cross-entropy: ``log(1 + exp(s_i)) - [i in P] s_i``, mean over the passages.

    Reference: pointwise re-ranking, Nogueira and Cho, arXiv 1901.04085, 2019.
    """
    label = _positives(targets, mask, positives).to(scores)
    return _mean(F.softplus(scores) - label * scores, mask)


def targets_from_ranks(teacher_rank: Tensor, mask: Tensor | None = None) -> Tensor:
    """Turn teacher ranks, 1 = best, into targets, float32 (float64 for float64), 0 where masked.

    The best of m real passages gets m, the worst 1: gaps are closed, tied ranks averaged.
    """
    rank, mask = _checked(teacher_rank, "teacher_rank", mask)
    return _ranks(_differences(rank), mask).masked_fill(~mask, 0)  # 1 = largest rank


def has_preference(targets: Tensor, mask: Tensor | None = None) -> Tensor:
    """Tell which lists the mean counts, ``[batch]`` bool: those with two different real targets."""
    return _positives(*_checked(targets, "targets", mask), "all").any(1)


def _checked(values: Tensor, name: str, mask: Tensor | None) -> tuple[Tensor, Tensor]:
    """Values of float32 or float64, 0 where masked, and their mask."""
    shape = tuple(values.shape)
    if len(shape) != 2 or shape[1] == 0:
        raise ValueError(f"{name} must be 2-D, [batch, n], n >= 1, got shape {shape}; use x[None]")
    mask = torch.ones_like(values, dtype=torch.bool) if mask is None else mask
    if mask.dtype != torch.bool:
        raise TypeError(f"mask must be bool, True = real passage, got {mask.dtype}; use .bool()")
    if mask.shape != values.shape:
        raise ValueError(f"mask must have the shape of {name}, {shape}, got {tuple(mask.shape)}")
    dtype = torch.promote_types(values.dtype, torch.float32)
    return values.to(dtype).masked_fill(~mask, 0), mask


def _mean(loss: Tensor, valid: Tensor) -> Tensor:
    """Mean over a list's valid passages or pairs, 0 where there are none."""
    total = loss.masked_fill(~valid, 0).flatten(1).sum(1)
    return total / valid.flatten(1).sum(1).clamp(min=1)


def _filled(values: Tensor, mask: Tensor) -> Tensor:
    """A huge negative finite number where masked, so that no sum of exponentials is empty."""
    return values.masked_fill(~mask, torch.finfo(values.dtype).min)


def _log_softmax(values: Tensor, mask: Tensor, dim: int = -1) -> Tensor:
    """log-softmax over the real entries of ``dim``; 0 at the others, which get no gradient."""
    return _filled(values, mask).log_softmax(dim).masked_fill(~mask, 0)


def _choice_losses(scores: Tensor, rivals: Tensor) -> Tensor:
    """-log of the chance to choose passage i before its rivals, ``rivals[:, i]``."""
    return F.softplus(_filled(scores[:, None, :], rivals).logsumexp(-1) - scores)


def _differences(values: Tensor) -> Tensor:
    return values[:, :, None] - values[:, None, :]


def _other_pairs(mask: Tensor) -> Tensor:
    itself = torch.eye(mask.shape[1], dtype=torch.bool, device=mask.device)
    return mask[:, :, None] & mask[:, None, :] & ~itself


def _ordered_pairs(targets: Tensor, mask: Tensor) -> Tensor:
    return _other_pairs(mask) & (targets[:, :, None] > targets[:, None, :])


def _ranks(lead: Tensor, mask: Tensor, temperature: float | None = None) -> Tensor:
    """Ranks, 1 = best, by the lead of i over j, ``[batch, n, n]``; ties averaged, or all smoothed."""
    behind = (1 - lead.sign()) / 2 if temperature is None else torch.sigmoid(-lead / temperature)
    return 1 + behind.masked_fill(~_other_pairs(mask), 0).sum(2)


def _positives(targets: Tensor, mask: Tensor, which: str) -> Tensor:
    """Passages at the list's highest target ("best"), or not at its lowest ("all")."""
    if which == "best":
        return mask & (targets == targets.masked_fill(~mask, -math.inf).amax(1, keepdim=True))
    return mask & (targets != targets.masked_fill(~mask, math.inf).amin(1, keepdim=True))


def _gains(targets: Tensor, gain: str) -> Tensor:
    """Gains divided by the ideal DCG; 0 for a target of 0, thus where masked."""
    gains = targets.clamp(min=0)
    if gain == "exp2":  # 2^t - 1 up to a factor that cancels, so that no t overflows
        top = gains.amax(1, keepdim=True)
        gains = torch.exp2(gains - top) - torch.exp2(-top)
    position = torch.arange(1, gains.shape[1] + 1, device=gains.device).to(gains)
    ideal = (gains.sort(1, descending=True).values / torch.log2(1 + position)).sum(1, keepdim=True)
    return gains / ideal.masked_fill(ideal == 0, 1)
