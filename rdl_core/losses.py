r"""Ranking losses as plain functions of two tensors, ``[batch, n]``; dimension 1 is the list.

Every loss is ``name(scores, targets, *, mask=None, reduction="mean", **own)``, in :data:`LOSSES`:

- ``scores``: student logits, higher is better. Half precision is raised to float32; float64 stays.
- ``targets``: finite, higher is better, no gradient: grades, scores, :func:`targets_from_ranks`.
  Their ranks average ties: :math:`p_i = 1 + |\{j: t_j > t_i\}| + \frac12 |\{j \ne i: t_j = t_i\}|`.
- ``mask`` bool: True = real passage; None = all. What is masked, NaN too, changes nothing; gradient 0.
- ``reduction``: ``"none"`` gives ``[batch]``; ``"mean"`` the mean over the lists with a preference.
- ``temperature`` T > 0 divides the scores; a small T makes smoothed ranks hard and gradients rare.
- ``positives``, the set P: passages at the list's ``"best"`` target, or ``"all"`` above its lowest.
- ``gain`` of a target t, negative counts as 0: ``"exp2"``, :math:`2^t - 1`, safe for any t, or
  ``"linear"``, t. :math:`G_i` is the gain divided by the ideal DCG; without a gain, a list costs 0.

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
        mask = _check(scores, "scores", mask)
        if not scores.is_floating_point():
            raise TypeError(f"scores must be floating, got {scores.dtype}; use scores.float()")
        if (got := tuple(targets.shape)) != (shape := tuple(scores.shape)):
            raise ValueError(f"targets must have the shape of scores, {shape}, got {got}")
        dtype = torch.promote_types(scores.dtype, torch.float32)
        scores, targets = scores.to(dtype), targets.detach().to(dtype)
        counts = has_preference(targets, mask)
        mask = mask & counts[:, None]
        losses = formula(scores.masked_fill(~mask, 0), targets.masked_fill(~mask, 0), mask, **own)
        losses = losses.masked_fill(~counts, 0)
        return losses if reduction == "none" else losses.sum() / counts.sum().clamp(min=1)

    common = list(inspect.signature(loss).parameters.values())[:-1]
    own = [p for p in inspect.signature(formula).parameters.values() if p.kind is p.KEYWORD_ONLY]
    literals = [p for p in common + own if get_origin(p.annotation) is Literal]
    choices = {p.name: get_args(p.annotation) for p in literals}
    loss.__signature__ = inspect.Signature(common + own, return_annotation=Tensor)
    # Code of its own: tracebacks then name the loss, and torch.compile keeps a cache for each.
    loss.__code__ = loss.__code__.replace(co_name=formula.__name__)
    LOSSES[formula.__name__] = loss
    __all__.append(formula.__name__)
    return functools.update_wrapper(loss, formula)


@_loss
def ranknet(scores, targets, mask, *, weighting: Literal["uniform", "inverse_rank_sum"] = "uniform"):
    r"""RankNet: the logistic loss of every pair that the targets order, mean over the pairs.

    .. math:: \ell = \operatorname{mean}_{t_i > t_j} w_{ij} \log(1 + e^{-(s_i - s_j)})

    ``weighting``: ``"uniform"``, 1, or ``"inverse_rank_sum"``, :math:`w_{ij} = 1 / (p_i + p_j)`.
    Reference: Burges et al., ICML 2005, who also take tied pairs, at probability 1/2. Weights: Gangi
    Reddy et al. (FIRST), EMNLP 2024; not normalised.
    """
    loss = F.softplus(-_differences(scores))
    if weighting == "inverse_rank_sum":
        ranks = _ranks(targets, mask)
        loss = loss / (ranks[:, :, None] + ranks[:, None, :])
    return _mean(loss, _ordered_pairs(targets, mask))


@_loss
def adr_mse(scores, targets, mask, *, discount: _Discount = "log2", temperature: float = 1.0):
    r"""ADR-MSE: discounted squared error of smoothed ranks, mean over the passages.

    .. math:: \ell = \frac1m \sum_i d(p_i) (p_i - r_i)^2, \qquad
        r_i = 1 + \sum_{j \ne i} \operatorname{sigmoid}\bigl((s_j - s_i) / T\bigr)

    ``discount`` :math:`d(p)`: ``"log2"``, 1 / log2(p + 1), ``"reciprocal"``, 1 / p, or ``"none"``, 1.
    Reference: Schlatt et al. (Rank-DistiLLM), ECIR 2025, with ``log2`` and T = 1.
    """
    ranks = _ranks(targets, mask)
    squares = (ranks - _smooth_ranks(scores, mask, temperature)) ** 2
    weights = {"log2": 1 / torch.log2(1 + ranks), "reciprocal": 1 / ranks, "none": 1.0}
    return _mean(squares * weights[discount], mask)


@_loss
def info_nce(scores, targets, mask, *, positives: _Positives = "best", temperature: float = 1.0):
    r"""InfoNCE, also localized contrastive estimation: each positive against all the negatives.

    .. math:: \ell = \operatorname{mean}_{i \in P}
        -\log \frac{e^{s_i / T}}{e^{s_i / T} + \sum_{j \notin P} e^{s_j / T}}

    Positives do not compete with one another; with one of them it is softmax cross-entropy.
    Reference: van den Oord et al., arXiv 1807.03748, 2018. LCE: Gao et al., ECIR 2021.
    """
    positive, scores = _positives(targets, mask, positives), scores / temperature
    negatives = _filled(scores, mask & ~positive).logsumexp(-1)
    return _mean(F.softplus(negatives[:, None] - scores), positive)


@_loss
def listnet(scores, targets, mask, *, distribution: _Labels = "targets", temperature: float = 1.0):
    r"""ListNet: cross-entropy of the top-one probabilities of teacher and student; never 0.

    .. math:: \ell = -\sum_i P_i \log \operatorname{softmax}(s / T)_i, \qquad
        P = \operatorname{softmax}(t) \;\text{or}\; \operatorname{softmax}(1 / p)

    ``distribution`` P: of ``"targets"`` (for ranks, the first three weigh most) or the much flatter
    ``"reciprocal_rank"``. T divides the student's scores only. Reference: Cao et al., ICML 2007. Labels
    1 / rank: the code of Sun et al. (RankGPT), EMNLP 2023.
    """
    wanted = targets if distribution == "targets" else 1 / _ranks(targets, mask)
    return (-_log_softmax(wanted, mask).exp() * _log_softmax(scores / temperature, mask)).sum(1)


@_loss
def list_mle(scores, targets, mask):
    r"""ListMLE: negative log-likelihood of the teacher's order under the Plackett-Luce model.

    .. math:: \ell = \sum_i \Bigl(\log \sum_{j = i \,\vee\, t_j < t_i} e^{s_j} - s_i\Bigr)

    Tied passages do not compete; one positive: :func:`info_nce`. Reference: Xia et al., ICML 2008.
    """
    return _choice_losses(scores, targets, mask).sum(1)


@_loss
def p_list_mle(scores, targets, mask):
    r"""Position-aware ListMLE: the terms of ListMLE weighted towards the head of the list.

    .. math:: \ell = \sum_i \alpha_i \Bigl(\log \sum_{j = i \,\vee\, t_j < t_i} e^{s_j} - s_i\Bigr),
        \qquad \alpha_i \propto 2^{m - p_i} - 1, \; \sum_i \alpha_i = 1

    Reference: Lan et al., UAI 2014, whose weights sum to about :math:`2^m`: no float for a long list.
    """
    length = mask.sum(1, keepdim=True).to(scores)
    weight = (torch.exp2(-_ranks(targets, mask)) - torch.exp2(-length)).masked_fill(~mask, 0)
    total = weight.sum(1, keepdim=True)
    weight = weight / total.masked_fill(total == 0, 1)
    return (_choice_losses(scores, targets, mask) * weight).sum(1)


@_loss
def lambda_loss(
    scores, targets, mask, *, weighting: _LambdaWeights = "ndcg2pp", gain: _Gain = "exp2",
    mu: float = 10.0, scale: float = 1.0,
):  # fmt: skip
    r"""LambdaLoss: pairwise logistic losses weighted by what the pair is worth to the measure.

    .. math:: \ell = \operatorname{mean}_{(i, j)} w_{ij} \log_2(1 + e^{-\sigma (s_i - s_j)})

    With the rank :math:`r_i` of passage i by score, :math:`D_i = \log_2(1 + r_i)` and
    :math:`\delta_{ij} = 1 / \log_2(1 + |r_i - r_j|) - 1 / \log_2(2 + |r_i - r_j|)`, the ``weighting``
    :math:`w_{ij}` of pairs with :math:`t_i > t_j` (ndcg1, arp1: of all pairs), without gradient, is
    ``lambdarank``: :math:`|1/D_i - 1/D_j| |G_i - G_j|`; ``ndcg1``: :math:`G_i / D_i`; ``ndcg2``:
    :math:`\delta_{ij} \, |G_i - G_j|`; ``ndcg2pp``: lambdarank's plus :math:`\mu` (``mu`` >= 0) times
    ndcg2's; ``arp1``: :math:`\max(t_i, 0)`; ``arp2``: :math:`t_i - t_j`. ``scale``: :math:`\sigma` > 0.

    Passages tied in score are ranked worst first: a student that ties all is not taken for a good one.
    Reference: Wang et al., CIKM 2018, who sum over the pairs. LambdaRank: Burges et al., NIPS 2006.
    """
    ranks = _ranks(scores.detach(), mask, tie_break=-targets)
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
    loss = weight * F.softplus(-scale * _differences(scores)) / math.log(2)
    all_pairs = weighting in ("ndcg1", "arp1")
    return _mean(loss, _other_pairs(mask) if all_pairs else _ordered_pairs(targets, mask))


@_loss
def approx_ndcg(scores, targets, mask, *, gain: _Gain = "exp2", temperature: float = 1.0):
    r"""ApproxNDCG: one minus nDCG at the smoothed ranks :math:`r_i` of :func:`adr_mse`.

    .. math:: \ell = 1 - \sum_i G_i / \log_2(1 + r_i)

    Reference: Qin et al., Information Retrieval 13(4), 2010. Revisited: Bruch et al., SIGIR 2019.
    """
    gains = _gains(targets, gain)
    dcg = (gains / torch.log2(1 + _smooth_ranks(scores, mask, temperature))).sum(1)
    return (gains > 0).any(1).to(dcg) - dcg


@_loss
def approx_mrr(scores, targets, mask, *, positives: _Positives = "best", temperature: float = 1.0):
    r"""ApproxMRR: one minus 1 / smoothed rank, as in :func:`adr_mse`, of the positive ranked first.

    .. math:: \ell = 1 - \max_{i \in P} 1 / r_i

    Reference: smoothed ranks of Qin et al., Information Retrieval 13(4), 2010, in reciprocal rank.
    """
    reciprocal = 1 / _smooth_ranks(scores, mask, temperature)
    return 1 - reciprocal.masked_fill(~_positives(targets, mask, positives), 0).amax(1)


@_loss
def neural_ndcg(
    scores, targets, mask, *, gain: _Gain = "exp2", temperature: float = 1.0, sinkhorn_steps: int = 10
):
    r"""NeuralNDCG: one minus nDCG of the list sorted by a relaxed permutation matrix.

    .. math:: \ell = 1 - \sum_{k=1}^{m} \frac{(\hat P G)_k}{\log_2(1 + k)}, \qquad
        \hat P_{k \cdot} = \operatorname{softmax}_i
        \Bigl(\bigl((m + 1 - 2k) s_i - \textstyle\sum_j |s_i - s_j|\bigr) / T\Bigr)

    ``sinkhorn_steps`` >= 0: how often columns, then rows, of :math:`\hat P` are scaled to sum to one;
    each costs memory; without them a passage may count repeatedly. Reference: Pobrotyn and
    Białobrzeski, arXiv 2102.07831, 2021. NeuralSort: Grover et al., ICLR 2019.
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
    r"""MarginMSE: squared error of the score difference of every ordered pair, mean over the pairs.

    .. math:: \ell = \operatorname{mean}_{t_i > t_j} \bigl((s_i - s_j) - m_{ij}\bigr)^2

    ``margin`` > 0 is for every pair; None takes :math:`m_{ij} = t_i - t_j`, with targets on the scores'
    scale. Reference: Hofstätter et al., arXiv 2010.02666, 2020 (one positive and one negative a query).
    """
    wanted = _differences(targets) if margin is None else margin
    return _mean((_differences(scores) - wanted) ** 2, _ordered_pairs(targets, mask))


@_loss
def kl_div(scores, targets, mask, *, temperature: float = 1.0):
    r"""Kullback-Leibler divergence of the student's softmax from that of the teacher's scores.

    .. math:: \ell = \sum_i P_i (\log P_i - \log Q_i), \qquad
        P = \operatorname{softmax}(t / T), \; Q = \operatorname{softmax}(s / T)

    At T = 1 the gradient is that of :func:`listnet`; the value is 0 where the student agrees.
    Reference: Hinton et al., arXiv 1503.02531, 2015; without their factor :math:`T^2`.
    """
    log_p = _log_softmax(targets / temperature, mask)
    log_q = _log_softmax(scores / temperature, mask)
    return (log_p.exp() * (log_p - log_q)).sum(1)


@_loss
def bce(scores, targets, mask, *, positives: _Positives = "best"):
    r"""Binary cross-entropy: is this passage one of the positives? Mean over the passages.

    .. math:: \ell = \operatorname{mean}_i \bigl(\log(1 + e^{s_i}) - y_i s_i\bigr), \; y_i = [i \in P]

    Reference: pointwise re-ranking, Nogueira and Cho, arXiv 1901.04085, 2019.
    """
    label = _positives(targets, mask, positives).to(scores)
    return _mean(F.softplus(scores) - label * scores, mask)


@_loss
def hinge(
    scores, targets, mask, *, comparison: Literal["pairwise", "pointwise"] = "pairwise",
    margin: float = 1.0, positives: _Positives = "best",
):  # fmt: skip
    r"""Hinge: every ordered pair, or every passage, should keep its margin.

    .. math:: \ell = \operatorname{mean}_{t_i > t_j} \max(0, m - (s_i - s_j))
        \quad\text{or}\quad \operatorname{mean}_i \max(0, m - y_i s_i), \; y_i = \pm 1

    ``comparison``: ``"pairwise"``, the first, or ``"pointwise"``, where positives have y = 1.
    ``margin``: :math:`m` > 0, in units of scores. Reference: Joachims (ranking SVM), KDD 2002.
    """
    if comparison == "pairwise":
        return _mean(F.relu(margin - _differences(scores)), _ordered_pairs(targets, mask))
    positive = _positives(targets, mask, positives)
    return _mean(F.relu(margin - torch.where(positive, scores, -scores)), mask)


def targets_from_ranks(teacher_rank: Tensor, mask: Tensor | None = None) -> Tensor:
    r"""Turn teacher ranks, 1 = best, into targets, float32 (float64 for float64), 0 where masked.

    Of :math:`m` real passages, :math:`t_i = m - p_i + 1`: gaps are closed, tied ranks averaged.
    """
    mask = _check(teacher_rank, "teacher_rank", mask)
    rank = teacher_rank.to(torch.promote_types(teacher_rank.dtype, torch.float32))
    return _ranks(rank.masked_fill(~mask, 0), mask).masked_fill(~mask, 0)  # 1 = largest rank


def has_preference(targets: Tensor, mask: Tensor | None = None) -> Tensor:
    """Tell which lists the mean counts, ``[batch]`` bool: those with two different real targets."""
    mask = _check(targets, "targets", mask)
    return _positives(targets.to(torch.promote_types(targets.dtype, torch.float32)), mask, "all").any(1)


def _check(values: Tensor, name: str, mask: Tensor | None) -> Tensor:
    """Check a tensor and its mask; gives the mask."""
    shape = tuple(values.shape)
    if len(shape) != 2 or shape[1] == 0:
        raise ValueError(f"{name} must be 2-D, [batch, n], n >= 1, got shape {shape}; use x[None]")
    if mask is None:
        return torch.ones_like(values, dtype=torch.bool)
    if mask.dtype != torch.bool:
        raise TypeError(f"mask must be bool, True = real passage, got {mask.dtype}; use .bool()")
    if mask.shape != values.shape:
        raise ValueError(f"mask must have the shape of {name}, {shape}, got {tuple(mask.shape)}")
    return mask


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


def _differences(values: Tensor) -> Tensor:
    return values[:, :, None] - values[:, None, :]


def _other_pairs(mask: Tensor) -> Tensor:
    itself = torch.eye(mask.shape[1], dtype=torch.bool, device=mask.device)
    return mask[:, :, None] & mask[:, None, :] & ~itself


def _ordered_pairs(targets: Tensor, mask: Tensor) -> Tensor:
    return _other_pairs(mask) & (targets[:, :, None] > targets[:, None, :])


def _ranks(values: Tensor, mask: Tensor, tie_break: Tensor | None = None) -> Tensor:
    """Rank of each real passage, 1 = highest; ties by ``tie_break``, then averaged; 1 if masked."""
    ahead = values[:, :, None] < values[:, None, :]
    level = values[:, :, None] == values[:, None, :]
    if tie_break is not None:
        ahead = ahead | (level & (tie_break[:, :, None] < tie_break[:, None, :]))
        level = level & (tie_break[:, :, None] == tie_break[:, None, :])
    others = _other_pairs(mask)
    return 1 + (ahead & others).sum(2).to(values) + (level & others).sum(2).to(values) / 2


def _smooth_ranks(scores: Tensor, mask: Tensor, temperature: float) -> Tensor:
    """1 + sum over the other real passages of sigmoid((s_j - s_i) / T)."""
    beaten = torch.sigmoid(-_differences(scores) / temperature)
    return 1 + beaten.masked_fill(~_other_pairs(mask), 0).sum(2)


def _choice_losses(scores: Tensor, targets: Tensor, mask: Tensor) -> Tensor:
    """-log of the chance to choose passage i before all that are worse."""
    itself = torch.eye(mask.shape[1], dtype=torch.bool, device=mask.device)
    left = _ordered_pairs(targets, mask) | itself
    return _filled(scores[:, None, :], left).logsumexp(-1) - scores


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
