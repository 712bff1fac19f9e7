"""Samplers: which passages of a query go into one training list, drawn wholly on the device.

Every sampler is ``name(mask, list_size, *, generator, **own)``, in :data:`SAMPLERS`:

- ``mask`` bool ``[batch, depth]``, depth >= 1: True = eligible candidate, in first-stage order.
- ``list_size``: passages per list, >= 1; a row with fewer to draw is padded.
- ``generator``: the only source of randomness, on the device of ``mask``.

Some take tensors ``[batch, depth]`` besides, which :func:`needs` names: ``relevant`` and ``judged``,
bool, and ``teacher_rank``, numbers, 1 = best, 0 = unranked. ``ValueError`` for another shape, dtype,
size or device. No value is read: nothing waits for the device, and a generator advances alike. Below,
n is the number of eligible candidates, L the list size, r the first-stage rank (column + 1), and pi the
probability that the list holds an eligible candidate.

>>> import torch
>>> from rdl_core.samplers import random
>>> random(torch.tensor([[True, False, True]]), 3, generator=torch.Generator())
SampledLists(indices=tensor([[0, 2, 0]]), mask=tensor([[ True,  True, False]]))
"""

import functools
import inspect
import math
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Generator, Tensor
from torch.nn.functional import pad

__all__ = ["SAMPLERS", "SampledLists", "needs"]  # and every sampler


class SampledLists(NamedTuple):
    """One list per query: what was drawn, ascending and without repeats, then padding."""

    indices: Tensor  #: int64 ``[batch, list_size]``: 0-based column of the candidate; 0 where padded.
    mask: Tensor  #: bool ``[batch, list_size]``: True = drawn, False = padding.


SAMPLERS: dict[str, Callable[..., SampledLists]] = {}  #: Every sampler by its name.
_TENSORS = frozenset({"relevant", "judged", "teacher_rank"})


def _sampler(draw: Callable[..., SampledLists]) -> Callable[..., SampledLists]:
    """Check a sampler's arguments before it draws, and register it under its name."""

    @functools.wraps(draw)
    def checked(mask: Tensor, list_size: int, *, generator: Generator, **own):
        shape, device = list(mask.shape), mask.device
        if mask.dtype != torch.bool or mask.dim() != 2 or mask.shape[1] < 1:
            raise ValueError(f"expected mask as bool [batch, depth >= 1], got {mask.dtype} {shape}")
        if not isinstance(list_size, int) or list_size < 1:
            raise ValueError(f"expected list_size as an int >= 1, got {list_size!r}")
        where = getattr(generator, "device", None)
        if where is None or where.type != device.type:
            raise ValueError(f"expected a generator on {device} like the mask, got one on {where}")
        for name in _TENSORS & own.keys():
            tensor, kind = own[name], "numbers" if name == "teacher_rank" else "bool"
            like = (tensor.shape, tensor.device) == (mask.shape, device)
            if not like or (tensor.dtype == torch.bool) != (kind == "bool"):
                told = f"expected {name} as {kind} {shape} on {device} like the mask"
                raise ValueError(f"{told}, got {tensor.dtype} {list(tensor.shape)} on {tensor.device}")
        return draw(mask, list_size, generator=generator, **own)

    SAMPLERS[draw.__name__] = checked
    __all__.append(draw.__name__)
    return checked


@_sampler
def top(mask: Tensor, list_size: int, *, generator: Generator) -> SampledLists:
    """Take the first L eligible candidates, not at random (Schlatt et al., ECIR 2025)."""
    keys = torch.arange(mask.shape[1], 0, -1, device=mask.device, dtype=torch.float32)
    return _highest(keys.expand_as(mask), mask, list_size)


@_sampler
def random(mask: Tensor, list_size: int, *, generator: Generator) -> SampledLists:
    """Draw eligible candidates uniformly: ``pi = min(1, L / n)``, every set equally likely."""
    return _highest(_uniform(mask, generator), mask, list_size)


@_sampler
def log_random(mask: Tensor, list_size: int, *, generator: Generator) -> SampledLists:
    """Draw one by one without replacement, with the weight of nDCG's discount, ``1 / log2(1 + r)``.

    Reference: Efraimidis and Spirakis, IPL 2006 (keys); Kool et al., ICML 2019 (Gumbel top-k).
    """
    gumbel = -(-torch.log1p(-_uniform(mask, generator))).log()
    ranks = torch.arange(1, mask.shape[1] + 1, device=mask.device, dtype=gumbel.dtype)
    return _highest(gumbel - torch.log2(1 + ranks).log(), mask, list_size)


@_sampler
def stratified(mask: Tensor, list_size: int, *, generator: Generator) -> SampledLists:
    """Cut the eligible ranks 1..n into L strata of equal width and draw one from each.

    Stratum s = 1..L ends at rank ``floor(s n / L)``; each of its candidates has ``pi = 1 / width``.
    """
    bounds = torch.arange(list_size + 1, device=mask.device) * mask.sum(1)[:, None] // list_size
    width = bounds.diff(dim=1)
    eligible_rank = bounds[:, :-1] + (_uniform(width, generator) * width).long()  # 0-based
    columns = mask.to(torch.uint8).argsort(dim=1, descending=True, stable=True)
    drawn = columns.gather(1, eligible_rank.clamp(max=mask.shape[1] - 1))
    return _ascending(drawn, width > 0, list_size)


@_sampler
def hard(mask: Tensor, list_size: int, *, generator: Generator, first: int, last: int) -> SampledLists:
    """Draw uniformly from the eligible candidates of first-stage ranks ``first`` to ``last``.

    Of m of them, each has ``pi = min(1, L / m)``. Needs 1 <= first <= last <= depth.
    """
    depth = mask.shape[1]
    if not 1 <= first <= last <= depth:
        told = f"expected ranks 1 <= first <= last <= depth = {depth}, got first={first}, last={last}"
        raise ValueError(f"{told}; narrow or move the window")
    window = pad(mask[:, first - 1 : last], (first - 1, depth - last))
    return _highest(_uniform(mask, generator), window, list_size)


@_sampler
def single_relevant(
    mask: Tensor, list_size: int, *, generator: Generator, relevant: Tensor
) -> SampledLists:
    """Draw one relevant candidate and fill the list with non-relevant ones, both uniformly.

    Of P eligible relevant and N other candidates ``pi = 1 / P`` if relevant, else
    ``min(1, (L - 1) / N)``; if P = 0, the row is empty. To add positives that the first stage missed,
    append columns, True in ``mask`` and ``relevant``: no rank moves.
    Reference: Schlatt et al., ECIR 2025 (stage 1: 1 relevant, 7 others of the top 200).
    """
    own = {"judged": mask, "teacher_rank": mask.int()}  # nothing to drop
    return denoised(mask, list_size, generator=generator, relevant=relevant, **own)


@_sampler
def denoised(
    mask: Tensor, list_size: int, *, generator: Generator, relevant: Tensor, judged: Tensor,
    teacher_rank: Tensor,
) -> SampledLists:  # fmt: skip
    """Draw as :func:`single_relevant`, save the unjudged the teacher puts above the positive.

    Those are probably relevant. Unranked candidates stay, and an unranked positive drops none. A
    candidate's pi is that of :func:`single_relevant` without what is dropped, mean over the positives.
    Reference: Qu et al. (RocketQA), NAACL 2021, who compare a cross-encoder's score with a threshold.
    """
    keys, positives = _uniform(mask, generator), mask & relevant
    columns = torch.arange(mask.shape[1], device=mask.device)
    positive = positives & (columns == keys.masked_fill(~positives, -1).argmax(1, keepdim=True))
    bar = teacher_rank.masked_fill(~positive, 0).sum(1, keepdim=True)  # the positive's rank
    noisy = ~judged & (teacher_rank > 0) & (teacher_rank < bar)
    negatives = mask & ~relevant & ~noisy & positive.any(1, keepdim=True)
    return _highest(keys.masked_fill(positive, 2), positive | negatives, list_size)


def needs(name: str) -> frozenset[str]:
    """Name the tensors that a sampler takes besides ``mask``: relevant, judged, teacher_rank."""
    return _TENSORS.intersection(inspect.signature(SAMPLERS[name]).parameters)


def _uniform(like: Tensor, generator: Generator) -> Tensor:
    dtype = torch.float32 if like.device.type == "mps" else torch.float64  # MPS has no float64
    return torch.rand(like.shape, generator=generator, device=like.device, dtype=dtype)


def _highest(keys: Tensor, eligible: Tensor, list_size: int) -> SampledLists:
    keys = keys.masked_fill(~eligible, -math.inf)
    drawn = keys.topk(min(list_size, keys.shape[1]), dim=1).indices
    return _ascending(drawn, eligible.gather(1, drawn), list_size)


def _ascending(indices: Tensor, real: Tensor, list_size: int) -> SampledLists:
    """Bring what is real to the front, ascending, and pad to ``list_size``."""
    indices = indices.masked_fill(~real, 2**62).sort(dim=1).values
    indices = pad(indices, (0, list_size - indices.shape[1]), value=2**62)
    real = indices < 2**62
    return SampledLists(indices.masked_fill(~real, 0), real)
