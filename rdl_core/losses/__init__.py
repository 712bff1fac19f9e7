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

from collections.abc import Callable

import torch

from rdl_core.losses.listwise import info_nce, kl_div, list_mle, listnet, p_list_mle
from rdl_core.losses.pairwise import lambda_loss, margin_mse, ranknet
from rdl_core.losses.pointwise import bce, hinge
from rdl_core.losses.ranks import adr_mse, approx_mrr, approx_ndcg, neural_ndcg
from rdl_core.losses.targets import has_preference, targets_from_ranks

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

LOSSES: dict[str, Callable[..., torch.Tensor]] = {
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
