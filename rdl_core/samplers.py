r"""Samplers: which passages of a query go into one training list, drawn wholly on the device.

Every sampler is ``name(mask, list_size, *, generator, **own)``, stands in :data:`SAMPLERS` under
its name, takes these three arguments and gives :class:`SampledLists`, ``[batch, list_size]``:

- ``mask`` bool ``[batch, depth]``, depth >= 1: True = eligible candidate, in first-stage order.
- ``list_size``: passages per list, >= 1; a row with fewer to draw is padded.
- ``generator``: the only source of randomness, on the device of ``mask``.

All raise ``ValueError`` for one of another shape, dtype, size or device. No value is read, so
nothing waits for the device; for given shapes a generator advances alike whatever the data.
:func:`needs` names the tensors that a sampler takes besides, so that one line calls any of them::

    own = options | {key: tensors[key] for key in needs(name, options)}
    lists = SAMPLERS[name](mask, list_size, generator=generator, **own)
    docs = candidates.gather(1, lists.indices)  # in_corpus: lists.indices are corpus rows already

In the formulas :math:`M` is the set of eligible candidates, :math:`n = |M|`, :math:`L` the list
size, :math:`r_i` the first-stage rank of candidate :math:`i` (column + 1) and :math:`\pi_i` the
probability that the list holds :math:`i \in M`, exact but for the 53 or more bits of each draw.

>>> mask = torch.tensor([[True, False, True]])
>>> random(mask, 3, generator=torch.Generator())
SampledLists(indices=tensor([[0, 2, 0]]), mask=tensor([[ True,  True, False]]))
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Mapping
from typing import NamedTuple

import torch
from torch import Generator, Tensor
from torch.nn.functional import pad

__all__ = [
    "SAMPLERS", "SampledLists", "denoised", "hard", "in_corpus", "log_random", "mixed", "needs",
    "random", "single_relevant", "stratified", "top",
]  # fmt: skip


class SampledLists(NamedTuple):
    """One list per query: what was drawn, ascending and without repeats, then padding."""

    indices: Tensor
    """int64 ``[batch, list_size]``: 0-based column of the candidate; 0 where padded."""
    mask: Tensor
    """bool ``[batch, list_size]``: True = drawn, False = padding."""


def top(mask: Tensor, list_size: int, *, generator: Generator) -> SampledLists:
    r"""Take the first eligible candidates.

    .. math:: \pi_i = 1 \text{ if } |\{j \in M : r_j \le r_i\}| \le L \text{, else } 0

    Args:
        mask, list_size, generator: as in the module's docstring; the generator is not advanced.
    Reference: Schlatt et al., ECIR 2025 (second stage: the whole first-stage top 100).

    >>> top(torch.tensor([[False, True, True, True]]), 2, generator=torch.Generator()).indices
    tensor([[1, 2]])
    """
    _check(mask, list_size, generator)
    keys = torch.arange(mask.shape[1], 0, -1, device=mask.device, dtype=torch.float32)
    return _highest(keys.expand_as(mask), mask, list_size)


def random(mask: Tensor, list_size: int, *, generator: Generator) -> SampledLists:
    r"""Draw eligible candidates uniformly: every set of :math:`\min(L, n)` is equally likely.

    .. math:: \pi_i = \min(1, L / n)

    Args:
        mask, list_size, generator: as in the module's docstring.

    >>> random(torch.ones(2, 9, dtype=bool), 3, generator=torch.Generator()).indices.shape
    torch.Size([2, 3])
    """
    _check(mask, list_size, generator)
    return _highest(_uniform(mask, generator), mask, list_size)


def log_random(mask: Tensor, list_size: int, *, generator: Generator) -> SampledLists:
    r"""Draw one by one without replacement, with the weight of nDCG's discount at the rank.

    With :math:`w_i = 1 / \log_2(1 + r_i)`, :math:`W = \sum_{c \in M} w_c`, :math:`k = \min(L, n)`,
    summed over all ordered draws :math:`a = (a_1, \dots, a_k)` that hold :math:`i`,

    .. math:: \pi_i = \sum_{a \ni i} \prod_{j=1}^k \frac{w_{a_j}}{W - \sum_{l<j} w_{a_l}}

    Args:
        mask, list_size, generator: as in the module's docstring.
    Reference: Efraimidis and Spirakis, IPL 2006 (keys); Kool et al., ICML 2019 (Gumbel top-k).

    >>> lists = log_random(torch.ones(999, 50, dtype=bool), 5, generator=torch.Generator())
    >>> bool(lists.indices.double().mean() < 23)  # 24.5 if uniform
    True
    """
    _check(mask, list_size, generator)
    gumbel = -(-torch.log1p(-_uniform(mask, generator))).log()
    ranks = torch.arange(1, mask.shape[1] + 1, device=mask.device, dtype=gumbel.dtype)
    return _highest(gumbel - torch.log2(1 + ranks).log(), mask, list_size)


def stratified(mask: Tensor, list_size: int, *, generator: Generator) -> SampledLists:
    r"""Cut the eligible ranks 1..n into :math:`L` strata of equal width and draw one from each.

    Stratum :math:`s = 1..L` holds the eligible ranks :math:`b_{s-1} + 1` to :math:`b_s`: widths
    differ by at most one, and with :math:`n \le L` every candidate is drawn. In it,

    .. math:: \pi_i = 1 / (b_s - b_{s-1}), \qquad b_s = \lfloor s n / L \rfloor

    Args:
        mask, list_size, generator: as in the module's docstring.

    >>> stratified(torch.ones(1, 8, dtype=bool), 4, generator=torch.Generator()).indices // 2
    tensor([[0, 1, 2, 3]])
    """
    _check(mask, list_size, generator)
    bounds = torch.arange(list_size + 1, device=mask.device) * mask.sum(1)[:, None] // list_size
    width = bounds.diff(dim=1)
    eligible_rank = bounds[:, :-1] + (_uniform(width, generator) * width).long()  # 0-based
    columns = mask.to(torch.uint8).argsort(dim=1, descending=True, stable=True)
    drawn = columns.gather(1, eligible_rank.clamp(max=mask.shape[1] - 1))
    return _ascending(drawn, width > 0, list_size)


def hard(
    mask: Tensor, list_size: int, *, generator: Generator, first: int, last: int
) -> SampledLists:
    r"""Draw uniformly from the eligible candidates within a window of first-stage ranks.

    .. math:: \pi_i = \min(1, L / |\{j \in M : \mathrm{first} \le r_j \le \mathrm{last}\}|)
        \text{ if } \mathrm{first} \le r_i \le \mathrm{last} \text{, else } 0

    Args:
        mask, list_size, generator: as in the module's docstring.
        first, last: the window, both inclusive, 1 <= first <= last <= depth or ``ValueError``.

    >>> mask = torch.ones(1, 9, dtype=bool)
    >>> hard(mask, 2, generator=torch.Generator(), first=2, last=3).indices
    tensor([[1, 2]])
    """
    _check(mask, list_size, generator)
    if not 1 <= first <= last <= mask.shape[1]:
        expected = f"expected ranks 1 <= first <= last <= depth = {mask.shape[1]}"
        raise ValueError(f"{expected}, got first={first}, last={last}; narrow or move the window")
    window = pad(mask[:, first - 1 : last], (first - 1, mask.shape[1] - last))
    return _highest(_uniform(mask, generator), window, list_size)


def single_relevant(
    mask: Tensor, list_size: int, *, generator: Generator, relevant: Tensor
) -> SampledLists:
    r"""Draw one relevant candidate and fill the list with non-relevant ones, both uniformly.

    Of :math:`P` eligible relevant and :math:`N` eligible non-relevant candidates, if :math:`P > 0`,

    .. math:: \pi_i = 1 / P \text{ if relevant, else } \min(1, (L - 1) / N)

    Without an eligible relevant one the row is all False in the mask and carries no loss. To add
    positives that the first stage missed, append them to ``candidates`` as columns, and True for
    each (False for padding) to ``mask`` and ``relevant``: no rank moves.

    Args:
        mask, list_size, generator: as in the module's docstring.
        relevant: bool ``[batch, depth]``, True = relevant; ``ValueError`` if otherwise.
    Reference: Schlatt et al., ECIR 2025 (first stage: 1 relevant, 7 others of the top 200).

    >>> mask, relevant = torch.ones(1, 3, dtype=bool), torch.tensor([[False, True, True]])
    >>> single_relevant(mask, 3, generator=torch.Generator(), relevant=relevant).mask
    tensor([[ True,  True, False]])
    """
    own = {"judged": torch.ones_like(mask), "teacher_rank": mask.int()}  # nothing to drop
    return denoised(mask, list_size, generator=generator, relevant=relevant, **own)


def denoised(
    mask: Tensor, list_size: int, *, generator: Generator, relevant: Tensor, judged: Tensor,
    teacher_rank: Tensor,
) -> SampledLists:  # fmt: skip
    r"""Draw as :func:`single_relevant`, save the unjudged the teacher puts above the positive.

    Those are probably relevant, only nobody judged them. With :math:`P` and :math:`N` the eligible
    relevant and non-relevant candidates, :math:`t` the teacher's rank and
    :math:`N_p = \{i \in N : i \text{ judged or unranked, or } t_i \ge t_p\}`,

    .. math:: \pi_i = \frac{1}{|P|} \text{ for } i \in P, \quad \frac{1}{|P|}
        \sum_{p \in P : i \in N_p} \min(1, (L - 1) / |N_p|) \text{ for } i \in N

    Args:
        mask, list_size, generator: as in the module's docstring.
        relevant: bool ``[batch, depth]``, True = relevant.
        judged: bool ``[batch, depth]``, True = judged, relevant or not.
        teacher_rank: numbers ``[batch, depth]``, 1 = best, 0 = unranked: such a candidate is not
            dropped, such a positive drops none. ``ValueError`` if a tensor is otherwise.
    Reference: Qu et al. (RocketQA), NAACL 2021, "denoised hard negatives"; there a cross-encoder's
    score against a threshold decides, here the teacher's rank against that of the positive drawn.

    >>> yes, positive = torch.ones(1, 3, dtype=bool), torch.tensor([[False, True, False]])
    >>> own = dict(relevant=positive, judged=positive, teacher_rank=torch.tensor([[1, 2, 3]]))
    >>> denoised(yes, 2, generator=torch.Generator(), **own).indices
    tensor([[1, 2]])
    """
    _check(mask, list_size, generator, relevant=relevant, judged=judged, teacher_rank=teacher_rank)
    keys, positives = _uniform(mask, generator), mask & relevant
    columns = torch.arange(mask.shape[1], device=mask.device)
    positive = positives & (columns == keys.masked_fill(~positives, -1).argmax(1, keepdim=True))
    bar = teacher_rank.masked_fill(~positive, 0).sum(1, keepdim=True)  # the positive's rank
    noisy = ~judged & (teacher_rank > 0) & (teacher_rank < bar)
    negatives = mask & ~relevant & ~noisy & positive.any(1, keepdim=True)
    return _highest(keys.masked_fill(positive, 2), positive | negatives, list_size)


def mixed(
    mask: Tensor, list_size: int, *, generator: Generator, shares: Mapping[str, float],
    options: Mapping[str, Mapping[str, object]] | None = None, **tensors: Tensor,
) -> SampledLists:  # fmt: skip
    r"""Fill given shares of each list by other samplers, without repeats.

    Parts draw in the order given, each from what the earlier ones left; their sizes are
    ``list_size * share`` by largest remainder, and none makes up for another that runs short.
    ``single_relevant`` or ``denoised`` (one at most) speaks for the whole list: it draws first,
    rows without a positive stay empty and no other part adds a second. With :math:`S_k` the draw
    of part :math:`k` and :math:`\pi^{(k)}_i(A)` its probability for :math:`A` eligible,

    .. math:: \pi_i = \sum_k \mathrm{E} \, \pi^{(k)}_i(M \setminus (S_1 \cup \dots \cup S_{k-1}))

    Args:
        mask, list_size, generator: as in the module's docstring.
        shares: sampler name -> share > 0, of all but ``mixed`` and ``in_corpus``; ``ValueError``
            unless they sum to 1 and each comes to a passage.
        options: sampler name -> its other arguments, as ``{"hard": {"first": 11, "last": 50}}``.
        tensors: ``[batch, depth]`` each, as ``needs("mixed", {"shares": shares})`` names them;
            ``TypeError`` for one that is missing, or given and taken by no part.

    >>> own, mask = {"shares": {"top": 0.5, "random": 0.5}}, torch.ones(1, 9, dtype=bool)
    >>> mixed(mask, 4, generator=torch.Generator(), **own).indices[:, :2]
    tensor([[0, 1]])
    """
    _check(mask, list_size, generator)
    sizes, options = _sizes(shares, list_size), options or {}
    if unused := ({*tensors} - needs("mixed", {"shares": shares})) | ({*options} - {*shares}):
        raise TypeError(f"mixed() got {sorted(unused)}, taken by none of {[*shares]}; drop them")
    left, parts = mask, []
    for name in sorted(sizes, key=lambda name: "relevant" not in needs(name)):  # stable
        own = {key: tensors[key] for key in needs(name) & tensors.keys()}
        own = dict(**own, **options.get(name, {}))  # unlike |, refuses an argument given twice
        part = SAMPLERS[name](left, sizes[name], generator=generator, **own)
        drawn = part.indices.masked_fill(~part.mask, mask.shape[1])
        left = pad(left, (0, 1)).scatter(1, drawn, False)[:, :-1]
        if "relevant" in own:
            left = left & ~own["relevant"] & part.mask[:, :1]
        parts.append(part)
    indices, real = (torch.cat(pieces, dim=1) for pieces in zip(*parts, strict=True))
    return _ascending(indices, real, list_size)


def in_corpus(
    mask: Tensor, list_size: int, *, generator: Generator, n_passages: int, excluded: Tensor
) -> SampledLists:
    r"""Draw passages of the whole corpus uniformly, save those excluded as relevant.

    Here ``indices`` are rows of the corpus, not columns of ``mask``; a row of ``mask`` without any
    True is no query and its list stays empty. Every set is equally likely; time and memory do not
    grow with the corpus. For corpus row :math:`i`, :math:`C` passages and the excluded :math:`E`,

    .. math:: \pi_i = \min(1, L / (C - |E|)) \text{ if } i \notin E \text{, else } 0

    Args:
        mask, list_size, generator: as in the module's docstring.
        n_passages: passages of the corpus, >= 1 or ``ValueError``.
        excluded: int64 ``[batch, n_excluded]`` or ``ValueError``: corpus rows never to draw, in any
            order, padded by -1; repeats and rows beyond the corpus do no harm.
    Reference: R. Floyd in Bentley and Floyd, Communications of the ACM, 1987 (distinct numbers).

    >>> own = {"n_passages": 5, "excluded": torch.tensor([[3, 0, -1]])}
    >>> in_corpus(torch.ones(1, 1, dtype=bool), 3, generator=torch.Generator(), **own).indices
    tensor([[1, 2, 4]])
    """
    _check(mask, list_size, generator)
    if not isinstance(n_passages, int) or n_passages < 1:
        raise ValueError(f"expected n_passages as an int >= 1, got {n_passages!r}; correct it")
    if excluded.dtype != torch.int64 or excluded.shape[:-1] != mask.shape[:1]:
        expected = f"expected excluded as int64 [{len(mask)}, n_excluded]"
        raise ValueError(f"{expected}, got {excluded.dtype} {list(excluded.shape)}; pad by -1")
    beyond = n_passages + excluded.shape[1]  # sorts last and shifts nothing
    rows = excluded.masked_fill((excluded < 0) | (excluded >= n_passages), beyond).sort(1).values
    repeats = rows.diff(dim=1, prepend=rows[:, :1] - 1) == 0
    rows = rows.masked_fill(repeats, beyond).sort(1).values
    rank = _distinct_below(n_passages - (rows < beyond).sum(1), list_size, generator)
    allowed_before = rows - torch.arange(rows.shape[1], device=mask.device)
    indices = rank + torch.searchsorted(allowed_before, rank, right=True)
    return _ascending(indices, (rank >= 0) & mask.any(1, keepdim=True), list_size)


SAMPLERS: dict[str, Callable[..., SampledLists]] = {
    "top": top, "random": random, "log_random": log_random, "stratified": stratified,
    "hard": hard, "single_relevant": single_relevant, "denoised": denoised, "mixed": mixed,
    "in_corpus": in_corpus,
}  # fmt: skip
"""Every sampler by its name."""


def needs(name: str, options: Mapping[str, object] | None = None) -> frozenset[str]:
    """Name the tensors that a sampler takes besides ``mask``.

    Args:
        name: a key of :data:`SAMPLERS`; any other is a ``ValueError``.
        options: the other arguments; of them ``mixed`` must have, and alone uses, ``shares``.

    >>> sorted(needs("mixed", {"shares": {"top": 0.5, "single_relevant": 0.5}}))
    ['relevant']
    """
    if name not in SAMPLERS:
        raise ValueError(f"expected a sampler of {', '.join(SAMPLERS)}, got {name!r}; choose one")
    if name == "mixed":
        if not (options or {}).get("shares"):
            raise ValueError(f"expected the shares of mixed in options, got {options}; add them")
        return frozenset().union(*map(needs, options["shares"]))
    own = inspect.signature(SAMPLERS[name]).parameters
    return frozenset({"relevant", "judged", "teacher_rank", "excluded"}).intersection(own)


def _check(mask: Tensor, list_size: int, generator: Generator, **tensors: Tensor) -> None:
    if mask.dtype != torch.bool or mask.dim() != 2 or mask.shape[1] < 1:
        expected = "expected mask as bool [batch, depth >= 1]"
        raise ValueError(f"{expected}, got {mask.dtype} {list(mask.shape)}; convert or reshape it")
    if not isinstance(list_size, int) or list_size < 1:
        raise ValueError(f"expected list_size as an int >= 1, got {list_size!r}; raise it")
    where = getattr(generator, "device", None)
    if where is None or where.type != mask.device.type:
        expected = f"expected a generator on {mask.device} like the mask"
        raise ValueError(f"{expected}, got one on {where}; make it by torch.Generator(mask.device)")
    for name, tensor in tensors.items():
        wanted = "numbers" if name == "teacher_rank" else "bool"
        given = "bool" if tensor.dtype == torch.bool else "numbers"
        if (given, tensor.shape, tensor.device) != (wanted, mask.shape, mask.device):
            expected = f"expected {name} as {wanted} {list(mask.shape)} on {mask.device}"
            given = f"{tensor.dtype} {list(tensor.shape)} on {tensor.device}"
            raise ValueError(f"{expected} like the mask, got {given}; align it with the mask")


def _sizes(shares: Mapping[str, float], list_size: int) -> dict[str, int]:
    """Share out ``list_size`` by largest remainder; on a tie the earlier part gains."""
    parts = [name for name in SAMPLERS if name not in ("mixed", "in_corpus")]
    if not shares.keys() <= {*parts} or {"single_relevant", "denoised"} <= shares.keys():
        expected = f"expected shares of {', '.join(parts)}, with one at most of the last two"
        raise ValueError(f"{expected}, got {shares}; correct their names")
    if min(shares.values(), default=0) <= 0 or not math.isclose(sum(shares.values()), 1):
        raise ValueError(f"expected shares > 0 that sum to 1, got {shares}; rescale them")
    sizes = {name: math.floor(list_size * share) for name, share in shares.items()}
    behind = sorted(sizes, key=lambda name: round(sizes[name] - list_size * shares[name], 9))
    for name in behind[: list_size - sum(sizes.values())]:
        sizes[name] += 1
    if 0 in sizes.values():
        raise ValueError(f"expected list_size for a passage per share, got {sizes}; raise it")
    return sizes


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
    real = indices < 2**62
    missing = (0, list_size - indices.shape[1])
    return SampledLists(pad(indices.masked_fill(~real, 0), missing), pad(real, missing))


def _distinct_below(size: Tensor, count: int, generator: Generator) -> Tensor:
    """Draw ``count`` distinct integers in [0, size) per row; some negative if ``size`` is less.

    Floyd: for last = size - count .. size - 1 draw from 0..last; take last if the draw is taken, by
    an equal draw before or as the last of a step whose draw was taken: a chain, followed doubling.
    """
    step = torch.arange(count, device=size.device)
    last = size[:, None] - count + step
    bits = torch.randint(2**62, last.shape, generator=generator, device=last.device)
    draw = (bits % (last + 1).clamp(min=1)).where(last >= 0, last)
    ordered, order = draw.sort(dim=1, stable=True)
    repeats = ordered.diff(dim=1, prepend=ordered[:, :1] - 1) == 0
    taken = torch.zeros_like(repeats).scatter(1, order, repeats)
    origin = draw - last[:, :1]  # the step whose last it is
    origin = origin.where((origin >= 0) & (origin < step), step)
    for _ in range((count - 1).bit_length()):
        taken = taken | taken.gather(1, origin)
        origin = origin.gather(1, origin)
    return last.where(taken, draw)
