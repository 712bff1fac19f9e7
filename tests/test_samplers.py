"""Samplers against exact enumeration; an oracle gives {list: probability} of a row."""

import inspect
import math
import re
import sys
from collections import defaultdict
from itertools import combinations, pairwise, permutations, product

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from rdl_core import losses, samplers
from rdl_core.samplers import SAMPLERS, needs

VARIANTS = [(name, {"first": 2, "last": 3} if name == "hard" else {}) for name in SAMPLERS]
VARIANTS += [("hard", {"first": 1, "last": 4})]
every_variant = pytest.mark.parametrize(("name", "options"), VARIANTS)


def seeded(seed, device="cpu"):
    return torch.Generator(device).manual_seed(seed)


def draw(name, options, mask, list_size, tensors, generator):
    own = options | {key: tensors[key] for key in needs(name)}
    return SAMPLERS[name](mask, list_size, generator=generator, **own)


def make_tensors(mask, seed):
    """Judgments and teacher ranks, some tied, 0 = unranked, for every row of the mask."""
    uniform = torch.rand(3, *mask.shape, generator=seeded(seed))
    judged, ranks = uniform[0] < 0.6, (uniform[1] * (mask.shape[1] + 1)).long()
    return {"judged": judged, "relevant": judged & (uniform[2] < 0.6), "teacher_rank": ranks}


def uniform_sets(items, size):
    sets = list(combinations(items, min(size, len(items))))
    return {drawn: 1 / len(sets) for drawn in sets}


def stratified(row, eligible, size):
    ends = [stratum * len(eligible) // size for stratum in range(size + 1)]
    lists = list(product(*(eligible[a:b] for a, b in pairwise(ends) if a < b)))
    return {drawn: 1 / len(lists) for drawn in lists}


def log_random(row, eligible, size):
    lists = defaultdict(float)
    for order in permutations(eligible, min(size, len(eligible))):
        left, probability = set(eligible), 1.0
        for item in order:
            probability /= math.log2(item + 2) * sum(1 / math.log2(other + 2) for other in left)
            left.remove(item)
        lists[tuple(sorted(order))] += probability
    return lists


def denoised(row, eligible, size):
    relevant, judged, ranks = row["relevant"], row["judged"], row["teacher_rank"]
    positives = [item for item in eligible if relevant[item]]
    lists = defaultdict(float) if positives else {(): 1}
    for positive in positives:
        above = range(1, ranks[positive])
        negatives = [x for x in eligible if not relevant[x] and (judged[x] or ranks[x] not in above)]
        for drawn, probability in uniform_sets(negatives, size - 1).items():
            lists[tuple(sorted((positive, *drawn)))] += probability / len(positives)
    return lists


ORACLES = {
    "top": lambda row, eligible, size: {tuple(eligible[:size]): 1},
    "random": lambda row, eligible, size: uniform_sets(eligible, size),
    "hard": lambda row, eligible, size, first, last: uniform_sets(
        [item for item in eligible if first <= item + 1 <= last], size),
    "log_random": log_random, "stratified": stratified, "denoised": denoised,
    "single_relevant": lambda row, *own: denoised(row | {"judged": [True] * 4}, *own),
}  # fmt: skip


@every_variant
def test_lists_are_in_form_and_as_likely_as_enumerated(name, options):
    """All 16 masks of depth 4 with three draws of judgments each."""
    n, base = 3000, torch.tensor(list(product([False, True], repeat=4)) * 3)
    tensors, rows = make_tensors(base, seed=5), torch.arange(len(base)).repeat_interleave(n)
    wide = {key: tensor[rows] for key, tensor in tensors.items()}
    for list_size in (1, 2, 3, 4, 5, 20):
        lists = draw(name, options, base[rows], list_size, wide, seeded(list_size))
        assert lists.indices.shape == lists.mask.shape == (len(rows), list_size)
        assert (lists.indices.dtype, lists.mask.dtype) == (torch.int64, torch.bool)
        padded = torch.where(lists.mask, lists.indices, 4 + torch.arange(list_size))
        assert (padded.diff(dim=1) > 0).all()  # ascending, padding last
        assert (lists.indices[~lists.mask] == 0).all()
        codes = ((1 << lists.indices) * lists.mask).sum(1).view(-1, n)  # a list as a bit set
        counts = torch.stack([row.bincount(minlength=16) for row in codes]).double()
        chance = torch.zeros(counts.shape, dtype=torch.float64)
        for index, eligible in enumerate(base.tolist()):
            row = {key: tensor[index].tolist() for key, tensor in tensors.items()}
            eligible = [column for column in range(4) if eligible[column]]
            for drawn, p in ORACLES[name](row, eligible, list_size, **options).items():
                chance[index, sum(1 << item for item in drawn)] = p
        assert torch.allclose(chance.sum(1), torch.ones(len(base), dtype=torch.float64))
        sigma = (n * chance * (1 - chance)).clamp(min=0).sqrt()
        assert ((counts - n * chance).abs() <= 5 * sigma + 1e-6).all()
    assert all(torch.equal(tensor, tensors[key][rows]) for key, tensor in wide.items())


@every_variant
def test_only_the_generator_brings_chance_and_no_value_is_read(name, options):
    """It advances alike for any mask, or a resumed run would depend on what it had seen."""
    mask, state, lists = torch.ones(64, 12, dtype=torch.bool), torch.get_rng_state(), []
    tensors, ends = make_tensors(mask, seed=3), [seeded(7).get_state()]
    tensors["relevant"][:, 4] = tensors["judged"][:, 4] = True
    odd = torch.arange(64)[:, None] % 2 == 1
    for eligible, seed in ((mask, 7), (mask & odd, 7), (mask & False, 7), (mask, 8)):
        generator = seeded(seed)
        lists.append(draw(name, options, eligible, 1, tensors, generator))
        ends.append(generator.get_state())
        assert torch.equal(lists[-1].mask.any(1), eligible.any(1))
    assert [torch.equal(ends[1], end) for end in ends[:4]] == [name == "top", True, True, True]
    assert torch.equal(lists[0].indices[1::2], lists[1].indices[1::2])
    assert torch.equal(lists[0].indices, lists[3].indices) == (name == "top")
    assert torch.equal(torch.get_rng_state(), state)  # the global one is not advanced
    empty = draw(name, options, mask[:0], 5, {key: x[:0] for key, x in tensors.items()}, generator)
    assert empty.indices.shape == empty.mask.shape == (0, 5)
    with FakeTensorMode():  # there are no values: .item(), nonzero and bool(tensor) raise
        mask = torch.ones(3, 9, dtype=torch.bool)
        tensors = {"relevant": mask, "judged": mask, "teacher_rank": mask.long()}
        assert draw(name, options, mask, 4, tensors, generator).indices.shape == (3, 4)
        pytest.raises(RuntimeError, mask.nonzero)  # so that a pass above means something


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@every_variant
def test_no_sampler_waits_for_the_gpu(name, options):
    mask, generator = (torch.rand(64, 100, generator=seeded(0)) < 0.8).cuda(), seeded(0, "cuda")
    tensors = {key: tensor.cuda() for key, tensor in make_tensors(mask.cpu(), seed=4).items()}
    draw(name, options, mask, 8, tensors, generator)  # load the kernels
    torch.cuda.set_sync_debug_mode("error")
    try:
        lists = draw(name, options, mask, 8, tensors, generator)
        with pytest.raises(RuntimeError, match="synchroniz"):
            mask.any().item()
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert mask.gather(1, lists.indices)[lists.mask].all()


def test_every_sampler_is_exported_names_its_tensors_and_imports_torch_only():
    assert SAMPLERS.keys() == set(samplers.__all__) - {"SAMPLERS", "SampledLists", "needs"}
    own = {"single_relevant": {"relevant"}, "denoised": {"relevant", "judged", "teacher_rank"}}
    assert {name: needs(name) for name in SAMPLERS if needs(name)} == own
    for module in (losses, samplers):
        names = set(re.findall(r"^ *(?:import|from) (\w+)", inspect.getsource(module), re.MULTILINE))
        assert {"torch"} < names <= {"torch", *sys.stdlib_module_names}


MASK = torch.ones(2, 4, dtype=torch.bool)
GOOD = {"mask": MASK, "list_size": 4, "generator": seeded(0), "relevant": MASK, "judged": MASK,
        "teacher_rank": MASK.int(), "first": 2, "last": 3}  # fmt: skip
REFUSALS = [
    *(("mask", x, "mask as bool .batch, de") for x in (MASK.int(), MASK[0], MASK[:, :0], MASK[None])),
    *(("list_size", x, rf"list_size as an int >= 1, got {x}") for x in (0, 2.0, None)),
    ("generator", None, "generator on cpu like the mask, got one on None"),
    *((key, x, rf"{key} as bool \[2, 4\] on cpu like the mask, got") for key in ("relevant", "judged")
      for x in (MASK[:, :3], MASK.to("meta"), MASK.int())),
    *(("teacher_rank", x, r"teacher_rank as numbers \[2, 4\] on cpu like the mask, got")
      for x in (MASK[:1].int(), MASK.int().to("meta"), MASK)),
    *(("first", x, f"depth = 4, got first={x}, last=3; narrow") for x in (0, 4)),
    ("last", 5, "depth = 4, got first=2, last=5; narrow"),
]  # fmt: skip


@pytest.mark.parametrize("name", SAMPLERS)
def test_wrong_arguments_are_refused(name):
    taken = {key: GOOD[key] for key in inspect.signature(SAMPLERS[name]).parameters}
    for key, wrong, words in [refusal for refusal in REFUSALS if refusal[0] in taken]:
        with pytest.raises(ValueError, match=words):
            SAMPLERS[name](**taken | {key: wrong})
    with pytest.raises(ValueError, match="generator on meta like the mask, got one on cpu"):
        SAMPLERS[name](**taken | {x: taken[x].to("meta") for x in ("mask", *needs(name))})
    assert SAMPLERS[name](**taken).indices.shape == (2, 4)
