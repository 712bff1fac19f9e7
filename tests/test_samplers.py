"""Samplers against exact enumeration; an oracle gives {list: probability} of a row."""

import inspect
import math
import re
import sys
from collections import defaultdict
from itertools import combinations, permutations, product

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from rdl_core import losses, samplers
from rdl_core.samplers import SAMPLERS, SampledLists, needs

torch.set_num_threads(1)
WINDOWS = [{"first": 2, "last": 3}, {"first": 1, "last": 4}]
VARIANTS = [(name, own) for name in SAMPLERS for own in (WINDOWS if name == "hard" else [{}])]
every_variant = pytest.mark.parametrize(("name", "options"), VARIANTS)
UNSEEDED = {"top"}  # without chance


def seeded(seed, device="cpu"):
    return torch.Generator(device).manual_seed(seed)


def draw(name, options, mask, list_size, tensors, generator):
    """Call a sampler as the training loop does."""
    own = options | {key: tensors[key] for key in needs(name)}
    return SAMPLERS[name](mask, list_size, generator=generator, **own)


def make_tensors(mask, seed):
    """Judgments and teacher ranks, some tied, 0 = unranked, for every row of the mask."""
    uniform = torch.rand(4, *mask.shape, generator=seeded(seed))
    judged, ranks = uniform[0] < 0.6, (uniform[1] * mask.shape[1]).long() + 1
    return {"judged": judged, "relevant": judged & (uniform[2] < 0.6),
            "teacher_rank": ranks.masked_fill(uniform[3] < 0.2, 0)}  # fmt: skip


def drawn_lists(lists):
    return [tuple(row[real].tolist()) for row, real in zip(*lists, strict=True)]


def uniform_sets(items, size):
    sets = list(combinations(items, min(size, len(items))))
    return {drawn: 1 / len(sets) for drawn in sets}


def stratified(row, eligible, size):
    n = len(eligible)
    strata = [eligible[s * n // size : (s + 1) * n // size] for s in range(size)]
    lists = list(product(*filter(None, strata)))
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


def single_relevant(row, eligible, size, suspects=lambda positive: ()):
    positives = [item for item in eligible if row["relevant"][item]]
    lists = defaultdict(float) if positives else {(): 1}
    for positive in positives:
        negatives = set(eligible) - set(positives) - set(suspects(positive))
        for drawn, probability in uniform_sets(sorted(negatives), size - 1).items():
            lists[tuple(sorted((positive, *drawn)))] += probability / len(positives)
    return lists


def denoised(row, eligible, size):
    ranks, unjudged = row["teacher_rank"], [item for item in eligible if not row["judged"][item]]

    def above(positive):
        return [item for item in unjudged if ranks[item] in range(1, ranks[positive])]

    return single_relevant(row, eligible, size, above)


ORACLES = {
    "top": lambda row, eligible, size: {tuple(eligible[:size]): 1},
    "random": lambda row, eligible, size: uniform_sets(eligible, size),
    "hard": lambda row, eligible, size, first, last: uniform_sets(
        [item for item in eligible if first <= item + 1 <= last], size
    ),
    "log_random": log_random, "stratified": stratified,
    "single_relevant": single_relevant, "denoised": denoised,
}  # fmt: skip


@every_variant
def test_lists_are_in_form_and_as_likely_as_enumerated(name, options):
    """All 16 masks of depth 4 with three draws of judgments each; every list, then each passage."""
    n, base, n_random = 3000, torch.tensor(list(product([False, True], repeat=4)) * 3), 0
    tensors, rows = make_tensors(base, seed=5), torch.arange(len(base)).repeat_interleave(n)
    wide = {key: tensor[rows] for key, tensor in tensors.items()}
    holds = (torch.arange(16)[:, None] >> torch.arange(4) & 1).double()
    for list_size in (1, 2, 3, 4, 5, 20):
        lists = draw(name, options, base[rows], list_size, wide, seeded(list_size))
        assert isinstance(lists, SampledLists)
        assert lists.indices.shape == lists.mask.shape == (len(rows), list_size)
        assert (lists.indices.dtype, lists.mask.dtype) == (torch.int64, torch.bool)
        assert not (lists.mask[:, 1:] & ~lists.mask[:, :-1]).any()  # real entries first
        assert (lists.indices.diff(dim=1) > 0)[lists.mask[:, 1:]].all()
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
        n_random += int(((chance > 0) & (chance < 1 - 1e-9)).sum())
        for count, p in ((counts, chance), (counts @ holds, chance @ holds)):
            sigma = (n * p * (1 - p)).clamp(min=0).sqrt()  # 0 where p is 0 or 1
            assert ((count - n * p).abs() <= 5 * sigma + 1e-6).all()
    assert (n_random == 0) == (name in UNSEEDED)
    assert all(torch.equal(tensor, tensors[key][rows]) for key, tensor in wide.items())


@every_variant
def test_rows_without_candidates_are_empty_and_only_the_generator_brings_chance(name, options):
    """It advances alike for any mask, or a resumed run would depend on what it had seen."""
    mask, lists, state = torch.ones(3, 8, dtype=torch.bool), [], torch.get_rng_state()
    tensors = make_tensors(mask, seed=1)
    tensors["relevant"][:, 4] = tensors["judged"][:, 4] = True
    states = [seeded(0).get_state()]
    for eligible in (mask, mask & torch.tensor([[True], [False], [True]]), mask & False):
        generator = seeded(0)
        lists.append(drawn_lists(draw(name, options, eligible, 4, tensors, generator)))
        states.append(generator.get_state())
        assert [len(drawn) > 0 for drawn in lists[-1]] == eligible.any(1).tolist()
        assert torch.equal(states[-1], states[1])
    assert lists[0][::2] == lists[1][::2]
    assert torch.equal(states[0], states[1]) == (name in UNSEEDED)
    empty = draw(name, options, mask[:0], 5, {key: x[:0] for key, x in tensors.items()}, seeded(0))
    assert empty.indices.shape == empty.mask.shape == (0, 5)
    mask = torch.rand(64, 12, generator=seeded(0)) < 0.8
    tensors = make_tensors(mask, seed=3)
    lists = [drawn_lists(draw(name, options, mask, 1, tensors, seeded(seed))) for seed in (7, 7, 8)]
    assert lists[0] == lists[1]
    assert (lists[0] == lists[2]) == (name in UNSEEDED)
    assert torch.equal(torch.get_rng_state(), state)  # the global one is not advanced


@every_variant
def test_no_sampler_reads_a_value(name, options):
    """Under fake tensors there are no values: .item(), nonzero and bool(tensor) raise."""
    generator = seeded(0)
    with FakeTensorMode():
        mask = torch.ones(3, 9, dtype=torch.bool)
        tensors = {"relevant": mask, "judged": mask, "teacher_rank": mask.long()}
        assert draw(name, options, mask, 4, tensors, generator).indices.shape == (3, 4)
        with pytest.raises(RuntimeError):  # so that a pass above means something
            mask.nonzero()


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@every_variant
def test_no_sampler_waits_for_the_gpu(name, options):
    mask, generator = (torch.rand(64, 100, generator=seeded(0)) < 0.8).cuda(), seeded(0, "cuda")
    tensors = {key: tensor.cuda() for key, tensor in make_tensors(mask.cpu(), seed=4).items()}
    draw(name, options, mask, 8, tensors, generator)  # load the kernels
    torch.cuda.synchronize()
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
    assert {name: needs(name) for name in SAMPLERS} == {name: own.get(name, set()) for name in SAMPLERS}
    with pytest.raises(ValueError, match="top, random, log_random.*'best'"):
        needs("best")
    for module in (losses, samplers):
        names = set(re.findall(r"^ *(?:import|from) (\w+)", inspect.getsource(module), re.MULTILINE))
        assert {"torch"} < names <= {"torch", *sys.stdlib_module_names}


MASK = torch.ones(2, 4, dtype=torch.bool)
GOOD = {"mask": MASK, "list_size": 4, "generator": seeded(0), "relevant": MASK, "judged": MASK,
        "teacher_rank": MASK.int(), "first": 2, "last": 3}  # fmt: skip
ON_META = {key: x.to("meta") for key, x in GOOD.items() if isinstance(x, torch.Tensor)}
REFUSALS = [
    *(("mask", x, "mask as bool .batch, de") for x in (MASK.int(), MASK[0], MASK[:, :0], MASK[None])),
    *(("list_size", x, rf"list_size as an int >= 1, got {x}") for x in (0, 2.0, None)),
    ("generator", None, "generator on cpu like the mask, got one on None"),
    *((key, x, rf"{key} as bool \[2, 4\] on cpu like the mask, got") for key in ("relevant", "judged")
      for x in (MASK[:, :3], MASK.to("meta"), MASK.int())),
    *(("teacher_rank", x, r"teacher_rank as numbers \[2, 4\] on cpu like the mask, got")
      for x in (MASK[:1].int(), ON_META["teacher_rank"], MASK)),
    *(("first", x, f"depth = 4, got first={x}, last=3; narrow") for x in (0, 4)),
    ("last", 5, "depth = 4, got first=2, last=5; narrow"),
]  # fmt: skip


@pytest.mark.parametrize("name", SAMPLERS)
def test_wrong_arguments_are_refused(name):
    taken = {key: GOOD[key] for key in inspect.signature(SAMPLERS[name]).parameters}
    for key, wrong, words in REFUSALS:
        if key in taken:
            with pytest.raises(ValueError, match=words):
                SAMPLERS[name](**taken | {key: wrong})
    with pytest.raises(TypeError, match="scores"):
        SAMPLERS[name](**taken, scores=MASK)
    with pytest.raises(ValueError, match="generator on meta like the mask, got one on cpu"):
        SAMPLERS[name](**taken | {key: ON_META[key] for key in taken.keys() & ON_META.keys()})
    assert SAMPLERS[name](**taken).indices.shape == (2, 4)
