"""Samplers against exact enumeration, the shape of their lists, and the absence of host syncs.

Every sampler has an oracle below that names, in plain Python, each list it may draw and with what
probability. These 79 mutations of ``rdl_core/samplers.py`` were tried, and each makes a test fail:

- lists: mask ignored; cut one short; not ascending; padding in front, marked real, or not 0; the
  same noise for every row; global RNG; mask changed in place.
- top: the worst instead of the best; first columns instead of first eligible ones.
- random: better ranks slightly likelier.
- log_random: weight off by one rank, inverted, 1 / rank, its log forgotten, of the eligible rank;
  minimum instead of maximum Gumbel noise.
- stratified: strata of all columns; the first of a stratum always, or its last never; bounds
  rounded up; empty strata kept; columns of the masked ones first.
- hard: window one late, one short, ignored; mask ignored; first = 0 and last > depth accepted.
- single_relevant: relevant swapped; unjudged dropped; positive or negatives not eligible; several
  positives; always the first positive; positive may fall out; rows without a positive filled.
- denoised: judged ignored or swapped; below instead of above; ties or unranked dropped; one bar for
  all positives.
- mixed: repeats; padding strikes out column 0; alphabetical order; positive not drawn first, a
  second one allowed, rows without one filled; sizes rounded down, remainder to the smallest, float
  noise in ties; unused tensors or options ignored, options override tensors; parts not merged.
- in_corpus: exclusions ignored, shift off by one, repeats counted twice, padding or rows beyond the
  corpus counted, size not reduced; mask ignored; short corpora not padded; replacement allowed;
  Floyd's chain not followed, followed one step, or one doubling short; draws below last, last one
  too far, the last of equal draws kept; global RNG; a tensor of corpus size.
- host syncs: ``.item()`` in the shared draw; ``if not mask.any()``.
- checks: shape or kind of tensors, sum of shares not checked.
"""

import ast
import math
import sys
from collections import defaultdict
from itertools import combinations, permutations, product
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode

from rdl_core import samplers
from rdl_core.samplers import SAMPLERS, SampledLists, needs

N_PASSAGES = 7
MS_MARCO = 8_841_823  # passages

# Sampler and the options to try it with, over depth 4; every sampler must occur.
VARIANTS = {
    "top": ("top", {}),
    "random": ("random", {}),
    "log_random": ("log_random", {}),
    "stratified": ("stratified", {}),
    "hard 2..3": ("hard", {"first": 2, "last": 3}),
    "hard 1..4": ("hard", {"first": 1, "last": 4}),
    "single_relevant": ("single_relevant", {}),
    "denoised": ("denoised", {}),
    "in_corpus": ("in_corpus", {"n_passages": N_PASSAGES}),
    "mixed, random last": ("mixed", {"shares": {"top": 0.5, "random": 0.5}}),
    "mixed, random first": ("mixed", {"shares": {"random": 0.5, "top": 0.5}}),
    "mixed, three parts": (
        "mixed",
        {
            "shares": {"hard": 0.3, "stratified": 0.3, "log_random": 0.4},
            "options": {"hard": {"first": 2, "last": 4}},
        },
    ),
    "mixed, one positive": ("mixed", {"shares": {"top": 0.5, "single_relevant": 0.5}}),
    "mixed, denoised": ("mixed", {"shares": {"denoised": 0.6, "random": 0.4}}),
}
UNSEEDED = {"top"}  # variants without chance


@pytest.fixture(autouse=True, scope="module")
def one_thread():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def seeded(seed, device="cpu"):
    return torch.Generator(device).manual_seed(seed)


def draw(variant, mask, list_size, tensors, generator):
    """Call a sampler as the training loop does."""
    name, options = VARIANTS[variant]
    own = options | {key: tensors[key] for key in needs(name, options)}
    return SAMPLERS[name](mask, list_size, generator=generator, **own)


def make_tensors(mask, seed):
    """Judgments, teacher ranks (0 = unranked) and corpus rows to exclude for every row of mask."""
    generator, shape = seeded(seed), mask.shape
    judged = torch.rand(shape, generator=generator) < 0.6
    relevant = judged & (torch.rand(shape, generator=generator) < 0.6)
    teacher_rank = torch.rand(shape, generator=generator).argsort(1).argsort(1) + 1
    unranked = torch.rand(shape, generator=generator) < 0.2
    excluded = torch.randint(-2, N_PASSAGES + 2, (len(mask), 5), generator=generator)
    return {
        "relevant": relevant,
        "judged": judged,
        "teacher_rank": teacher_rank.masked_fill(unranked, 0),
        "excluded": excluded,
    }


def all_masks(depth, copies):
    """Every mask of that depth, ``copies`` times: bool [copies * 2**depth, depth]."""
    return torch.tensor(list(product([False, True], repeat=depth)) * copies)


# --- oracles: {list: probability} of one row ----------------------------------------------------


def uniform_sets(items, size):
    sets = list(combinations(items, min(size, len(items))))
    return {drawn: 1 / len(sets) for drawn in sets}


def oracle_top(row, eligible, size):
    return {tuple(eligible[:size]): 1}


def oracle_random(row, eligible, size):
    return uniform_sets(eligible, size)


def oracle_log_random(row, eligible, size):
    lists = defaultdict(float)
    for order in permutations(eligible, min(size, len(eligible))):
        left, probability = set(eligible), 1.0
        for item in order:
            probability /= math.log2(item + 2) * sum(1 / math.log2(other + 2) for other in left)
            left.remove(item)
        lists[tuple(sorted(order))] += probability
    return lists


def oracle_stratified(row, eligible, size):
    n = len(eligible)
    strata = [eligible[s * n // size : (s + 1) * n // size] for s in range(size)]
    lists = list(product(*filter(None, strata)))
    return {drawn: 1 / len(lists) for drawn in lists}


def oracle_hard(row, eligible, size, first, last):
    return uniform_sets([item for item in eligible if item + 1 in range(first, last + 1)], size)


def oracle_single_relevant(row, eligible, size, suspects=lambda positive: ()):
    positives = [item for item in eligible if row["relevant"][item]]
    if not positives:
        return {(): 1}
    lists = defaultdict(float)
    for positive in positives:
        negatives = set(eligible) - set(positives) - set(suspects(positive))
        for drawn, probability in uniform_sets(sorted(negatives), size - 1).items():
            lists[tuple(sorted((positive, *drawn)))] += probability / len(positives)
    return lists


def oracle_denoised(row, eligible, size):
    ranks = row["teacher_rank"]

    def suspects(positive):
        unjudged = [item for item in eligible if not row["judged"][item]]
        return [item for item in unjudged if ranks[item] in range(1, ranks[positive])]

    return oracle_single_relevant(row, eligible, size, suspects)


def oracle_in_corpus(row, eligible, size, n_passages):
    allowed = [item for item in range(n_passages) if item not in row["excluded"]]
    return uniform_sets(allowed, size) if eligible else {(): 1}


def oracle_mixed(row, eligible, size, shares, options=None):
    sizes = part_sizes(shares, size)
    parts = sorted(sizes, key=lambda name: name not in ("single_relevant", "denoised"))
    lists = {((), tuple(eligible)): 1.0}  # drawn so far, left to draw from
    for name in parts:
        extended = defaultdict(float)
        for (drawn, left), before in lists.items():
            part = ORACLES[name](row, list(left), sizes[name], **(options or {}).get(name, {}))
            for new, probability in part.items():
                after = [item for item in left if item not in new]
                if name in ("single_relevant", "denoised"):
                    after = [item for item in after if new and not row["relevant"][item]]
                extended[drawn + new, tuple(after)] += before * probability
        lists = extended
    merged = defaultdict(float)
    for (drawn, _), probability in lists.items():
        merged[tuple(sorted(drawn))] += probability
    return merged


def part_sizes(shares, size):
    sizes = {name: int(size * share + 1e-9) for name, share in shares.items()}
    while sum(sizes.values()) < size:
        sizes[max(shares, key=lambda name: size * shares[name] - sizes[name])] += 1
    return sizes


ORACLES = {name: globals()[f"oracle_{name}"] for name in SAMPLERS}


def expected_lists(variant, mask, tensors, index, list_size):
    name, options = VARIANTS[variant]
    row = {key: tensor[index].tolist() for key, tensor in tensors.items()}
    eligible = [column for column, real in enumerate(mask[index].tolist()) if real]
    return ORACLES[name](row, eligible, list_size, **options)


def drawn_lists(lists):
    return [
        tuple(index for index, real in zip(*row, strict=True) if real)
        for row in zip(lists.indices.tolist(), lists.mask.tolist(), strict=True)
    ]


def smallest_list(variant):
    return len(VARIANTS[variant][1].get("shares", [1]))


def assert_frequencies(count, n, probability):
    """Counts of n draws within 5 sigma; exact where the outcome is impossible or certain."""
    deviation = (count - n * probability).abs()
    sigma = (n * probability * (1 - probability)).clamp(min=0).sqrt()
    worst = (deviation - 5 * sigma).argmax()
    assert (deviation <= 5 * sigma + 1e-6).all(), (worst, count[worst], n * probability[worst])


# --- what is drawn, and how often --------------------------------------------------------------


def test_every_sampler_has_a_variant_and_an_oracle():
    assert {name for name, _ in VARIANTS.values()} == set(SAMPLERS) == set(ORACLES)
    assert {"top", "random", "hard", "single_relevant"} <= set(SAMPLERS)


@pytest.mark.parametrize("variant", VARIANTS)
def test_lists_and_inclusion_are_as_likely_as_enumerated(variant):
    """All 16 masks of depth 4 with three draws of judgments each; every list, then each passage."""
    n, base = 3000, all_masks(4, copies=3)
    tensors = make_tensors(base, seed=5)
    rows = torch.arange(len(base)).repeat_interleave(n)
    wide = {key: tensor[rows] for key, tensor in tensors.items()}
    n_random = 0
    for list_size in range(smallest_list(variant), 6):
        lists = draw(variant, base[rows], list_size, wide, seeded(list_size))
        codes = ((1 << lists.indices) * lists.mask).sum(1)  # a list as a bit set
        counts = [row.bincount(minlength=1 << N_PASSAGES) for row in codes.view(-1, n)]
        counts = torch.stack(counts).double()
        probability = torch.zeros(counts.shape, dtype=torch.float64)
        for index in range(len(base)):
            for drawn, p in expected_lists(variant, base, tensors, index, list_size).items():
                probability[index, sum(1 << item for item in drawn)] = p
        assert torch.allclose(probability.sum(1), torch.ones(len(base), dtype=torch.float64))
        n_random += int(((probability > 0) & (probability < 1 - 1e-9)).sum())
        assert_frequencies(counts.flatten(), n, probability.flatten())
        holds = (torch.arange(1 << N_PASSAGES)[:, None] >> torch.arange(N_PASSAGES) & 1).double()
        assert_frequencies((counts @ holds).flatten(), n, (probability @ holds).flatten())
    assert (n_random == 0) == (variant in UNSEEDED)


@pytest.mark.parametrize(("n_passages", "list_size"), [(11, 8), (12, 6), (6, 6), (4, 9)])
def test_in_corpus_draws_every_set_equally_often(n_passages, list_size):
    """Lists long against the corpus, so that Floyd's replacements chain several steps back."""
    mask, n = torch.ones(1, 1, dtype=torch.bool).expand(100_000, 1), 100_000
    excluded = torch.tensor([[2, -1]]).expand(n, 2)
    own = {"n_passages": n_passages, "excluded": excluded}
    lists = samplers.in_corpus(mask, list_size, generator=seeded(1), **own)
    counts = ((1 << lists.indices) * lists.mask).sum(1).bincount(minlength=1 << n_passages)
    allowed = [row for row in range(n_passages) if row != 2]
    probability = torch.zeros(1 << n_passages, dtype=torch.float64)
    for drawn, p in uniform_sets(allowed, list_size).items():
        probability[sum(1 << row for row in drawn)] = p
    assert_frequencies(counts, n, probability)


def test_in_corpus_covers_ms_marco_evenly_in_little_memory():
    """16 lists of 1000 from 8.8 M rows: no tensor grows with the corpus, every region is drawn."""

    class Largest(TorchDispatchMode):
        numel = 0

        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            out = func(*args, **(kwargs or {}))
            for value in out if isinstance(out, tuple | list) else [out]:
                if isinstance(value, torch.Tensor):
                    self.numel = max(self.numel, value.numel())
            return out

    batch, list_size, n_excluded = 16, 1000, 50
    mask = torch.ones(batch, 3, dtype=torch.bool)
    excluded = torch.randint(MS_MARCO, (batch, n_excluded), generator=seeded(0))
    excluded[:, -1] = MS_MARCO - 1
    with Largest() as largest:
        lists = samplers.in_corpus(
            mask, list_size, generator=seeded(1), n_passages=MS_MARCO, excluded=excluded
        )
    assert batch * list_size <= largest.numel <= batch * (list_size + n_excluded + 1)
    assert lists.mask.all()
    assert (lists.indices.diff(dim=1) > 0).all()
    assert lists.indices.min() >= 0
    assert lists.indices.max() < MS_MARCO - 1
    assert not (lists.indices[:, :, None] == excluded[:, None, :]).any()
    tenths = (lists.indices * 10 // MS_MARCO).flatten().bincount(minlength=10)
    assert_frequencies(tenths, batch * list_size, torch.full((10,), 0.1, dtype=torch.float64))


def test_in_corpus_without_exclusions():
    own = {"n_passages": 3, "excluded": torch.empty(2, 0, dtype=torch.int64)}
    lists = samplers.in_corpus(torch.ones(2, 1, dtype=torch.bool), 4, generator=seeded(0), **own)
    assert drawn_lists(lists) == [(0, 1, 2)] * 2


def test_log_random_weighs_a_deep_list_by_the_discount():
    """One passage of 100: the probabilities are the normalised weights themselves."""
    n, weights = 40_000, torch.tensor([1 / math.log2(1 + r) for r in range(1, 101)]).double()
    mask = torch.ones(n, 100, dtype=torch.bool)
    lists = samplers.log_random(mask, 1, generator=seeded(3))
    assert_frequencies(lists.indices.flatten().bincount(minlength=100), n, weights / weights.sum())


# --- the form of the lists ----------------------------------------------------------------------


@settings(derandomize=True, deadline=None, max_examples=25)
@given(data=st.data())
@pytest.mark.parametrize("variant", VARIANTS)
def test_lists_are_eligible_distinct_ascending_and_padded_behind(variant, data):
    depth = data.draw(st.integers(4, 6))
    rows = st.lists(st.booleans(), min_size=depth, max_size=depth)
    mask = torch.tensor(data.draw(st.lists(rows, min_size=1, max_size=4)))
    list_size = data.draw(st.integers(smallest_list(variant), depth + 2))
    seed = data.draw(st.integers(0, 2**32))
    tensors = make_tensors(mask, seed)
    before = {key: tensor.clone() for key, tensor in (tensors | {"mask": mask}).items()}

    lists = draw(variant, mask, list_size, tensors, seeded(seed))

    assert isinstance(lists, SampledLists)
    assert lists.indices.shape == lists.mask.shape == (len(mask), list_size)
    assert (lists.indices.dtype, lists.mask.dtype) == (torch.int64, torch.bool)
    assert not (lists.mask[:, 1:] & ~lists.mask[:, :-1]).any()  # real entries first
    assert (lists.indices[~lists.mask] == 0).all()
    for index, drawn in enumerate(drawn_lists(lists)):
        assert drawn == tuple(sorted(set(drawn)))
        assert expected_lists(variant, mask, tensors, index, list_size).get(drawn, 0) > 0
    for key, tensor in (tensors | {"mask": mask}).items():
        assert torch.equal(tensor, before[key])


@pytest.mark.parametrize("variant", VARIANTS)
def test_rows_without_candidates_are_empty_and_leave_the_others_alone(variant):
    mask = torch.ones(3, 8, dtype=torch.bool)
    tensors = make_tensors(mask, seed=1)
    tensors["relevant"][:, 4] = tensors["judged"][:, 4] = True
    full = draw(variant, mask, 4, tensors, seeded(0))
    mask[1] = False
    lists = draw(variant, mask, 4, tensors, seeded(0))
    assert full.mask.any(1).all()
    assert not lists.mask[1].any()
    assert torch.equal(lists.indices[::2], full.indices[::2])
    assert torch.equal(lists.mask[::2], full.mask[::2])
    none = draw(variant, torch.zeros_like(mask), 4, tensors, seeded(0))
    assert not none.mask.any()
    assert not none.indices.any()


@pytest.mark.parametrize("variant", VARIANTS)
def test_lists_longer_than_the_depth_and_empty_batches(variant):
    mask = torch.tensor([[True, False, True, True]])
    tensors = make_tensors(mask, seed=2)
    lists = draw(variant, mask, 300, tensors, seeded(0))
    assert lists.indices.shape == lists.mask.shape == (1, 300)
    assert lists.mask.sum() <= (N_PASSAGES if variant == "in_corpus" else 3)
    tensors = {key: tensor[:0] for key, tensor in tensors.items()}
    assert draw(variant, mask[:0], 5, tensors, seeded(0)).indices.shape == (0, 5)


@pytest.mark.parametrize("variant", VARIANTS)
def test_the_generator_is_the_only_source_of_chance(variant):
    mask = torch.rand(64, 12, generator=seeded(0)) < 0.8
    tensors, list_size = make_tensors(mask, seed=3), smallest_list(variant)
    torch.manual_seed(0)
    state = torch.get_rng_state()
    first = draw(variant, mask, list_size, tensors, seeded(7))
    assert torch.equal(torch.get_rng_state(), state)  # the global one is not advanced
    torch.manual_seed(1)
    again = draw(variant, mask, list_size, tensors, seeded(7))
    assert torch.equal(first.indices, again.indices)
    assert torch.equal(first.mask, again.mask)
    other = draw(variant, mask, list_size, tensors, seeded(8))
    assert torch.equal(first.indices, other.indices) == (variant in UNSEEDED)


@pytest.mark.parametrize("variant", VARIANTS)
def test_the_generator_advances_alike_whatever_the_data(variant):
    """Or a run resumed from a saved generator would depend on what it had seen."""
    states = []
    for mask in (torch.ones(5, 8, dtype=torch.bool), torch.zeros(5, 8, dtype=torch.bool)):
        generator = seeded(9)
        draw(variant, mask, 4, make_tensors(mask, seed=len(states)), generator)
        states.append(generator.get_state())
    assert torch.equal(*states)
    assert torch.equal(states[0], seeded(9).get_state()) == (variant in UNSEEDED)


# --- no host synchronisation --------------------------------------------------------------------


@pytest.mark.parametrize("variant", VARIANTS)
def test_no_sampler_reads_a_value(variant):
    """Under fake tensors there are no values: .item(), nonzero and bool(tensor) raise."""
    generator = seeded(0)
    with FakeTensorMode():
        mask = torch.ones(3, 9, dtype=torch.bool)
        tensors = {key: torch.ones_like(mask) for key in ("relevant", "judged")}
        tensors |= {key: torch.ones(3, 9).long() for key in ("teacher_rank", "excluded")}
        lists = draw(variant, mask, 4, tensors, generator)
        assert lists.indices.shape == lists.mask.shape == (3, 4)
        with pytest.raises(RuntimeError):  # so that a pass above means something
            mask.nonzero()


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("variant", VARIANTS)
def test_no_sampler_waits_for_the_gpu(variant):
    mask = torch.rand(64, 100, generator=seeded(0)) < 0.8
    tensors = make_tensors(mask, seed=4)
    on_gpu = {key: tensor.cuda() for key, tensor in tensors.items()}
    mask_on_gpu, generator = mask.cuda(), seeded(0, "cuda")
    draw(variant, mask_on_gpu, 8, on_gpu, generator)  # load the kernels
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        lists = draw(variant, mask_on_gpu, 8, on_gpu, generator)
        with pytest.raises(RuntimeError, match="synchroniz"):
            mask_on_gpu.any().item()
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert lists.indices.is_cuda
    assert lists.mask.is_cuda
    for index, drawn in enumerate(drawn_lists(lists)):
        assert drawn == tuple(sorted(set(drawn)))
        if variant != "in_corpus":
            assert all(mask[index, column] for column in drawn)


# --- single samplers ----------------------------------------------------------------------------


def test_single_relevant_takes_a_positive_that_the_first_stage_missed():
    """Appended as a column, as its docstring says; the padded extra column is never drawn."""
    mask = torch.ones(2, 5, dtype=torch.bool)
    relevant = torch.zeros_like(mask)
    extra = torch.tensor([[True], [False]])
    mask, relevant = torch.cat([mask, extra], 1), torch.cat([relevant, extra], 1)
    lists = samplers.single_relevant(mask, 4, generator=seeded(0), relevant=relevant)
    assert drawn_lists(lists)[0][-1] == 5
    assert len(drawn_lists(lists)[0]) == 4
    assert drawn_lists(lists)[1] == ()


def test_denoised_drops_what_is_unjudged_and_above_the_positive():
    #                       0      1      2 (positive)  3     4
    judged = torch.tensor([[True, False, True, False, False]])
    relevant = torch.tensor([[False, False, True, False, False]])
    own = {"judged": judged, "relevant": relevant}
    mask = torch.ones_like(judged)
    expected = {
        (1, 2, 3, 4, 5): (0, 2, 3, 4),  # 1 is unjudged and above; 0 is above but judged
        (5, 4, 1, 2, 3): (0, 1, 2, 3, 4),  # nothing is above
        (1, 2, 5, 3, 4): (0, 2),  # all unjudged are above
        (1, 0, 5, 0, 4): (0, 1, 2, 3),  # 0 is unranked, which is not above
        (1, 2, 0, 3, 4): (0, 1, 2, 3, 4),  # the teacher has not seen the positive
        (1, 3, 3, 3, 4): (0, 1, 2, 3, 4),  # a tie is not above
    }
    for ranks, drawn in expected.items():
        for dtype in (torch.int32, torch.int64, torch.float32):
            teacher_rank = torch.tensor([ranks], dtype=dtype)
            lists = samplers.denoised(
                mask, 5, generator=seeded(0), teacher_rank=teacher_rank, **own
            )
            assert drawn_lists(lists) == [drawn]


def test_mixed_draws_one_positive_hard_and_random_negatives():
    """The usual contrastive list: 1 positive, half from a window, the rest from anywhere."""
    mask = torch.ones(200, 30, dtype=torch.bool)
    relevant = torch.zeros_like(mask)
    relevant[:, [3, 20]] = True
    relevant[-1] = False
    lists = samplers.mixed(
        mask,
        8,
        generator=seeded(0),
        shares={"hard": 4 / 8, "random": 3 / 8, "single_relevant": 1 / 8},
        options={"hard": {"first": 1, "last": 5}},
        relevant=relevant,
    )
    n_relevant = (relevant.gather(1, lists.indices) & lists.mask).sum(1)
    assert n_relevant.tolist() == [1] * 199 + [0]
    assert lists.mask.sum(1).tolist() == [8] * 199 + [0]
    # ranks 1..5 without the relevant rank 4 are exactly the 4 passages of the window's share
    assert all(set(drawn) >= {0, 1, 2, 4} for drawn in drawn_lists(lists)[:-1])


@pytest.mark.parametrize(
    ("shares", "list_size", "top_size"),
    [
        ({"top": 0.5, "random": 0.5}, 8, 4),
        ({"top": 0.5, "random": 0.5}, 7, 4),  # the earlier part gains on a tie
        ({"random": 0.5, "top": 0.5}, 7, 3),
        ({"top": 0.29, "random": 0.71}, 100, 29),  # 0.29 * 100 is 28.999999999999996
        ({"top": 0.7, "random": 0.1, "hard": 0.2}, 8, 6),  # 5.6, 0.8, 1.6
        ({"top": 1}, 3, 3),
    ],
)
def test_mixed_shares_out_by_largest_remainder(shares, list_size, top_size):
    """At a depth of 5000 the other parts rarely reach the first places, so top's share shows."""
    mask = torch.ones(100, 5000, dtype=torch.bool)
    options = {"hard": {"first": 4000, "last": 5000}} if "hard" in shares else None
    lists = samplers.mixed(mask, list_size, generator=seeded(0), shares=shares, options=options)
    in_order = (lists.indices == torch.arange(list_size)).cumprod(1).sum(1)
    assert lists.mask.all()
    assert in_order.mode().values == top_size


# --- how they are called ------------------------------------------------------------------------


def test_needs_names_the_tensors_of_a_sampler():
    expected = {
        "single_relevant": {"relevant"},
        "denoised": {"relevant", "judged", "teacher_rank"},
        "in_corpus": {"excluded"},
    }
    for name in set(SAMPLERS) - {"mixed"}:
        assert needs(name) == expected.get(name, set())
        assert isinstance(needs(name), frozenset)
    shares = {"top": 0.5, "denoised": 0.5}
    assert needs("mixed", {"shares": shares, "options": {}}) == expected["denoised"]
    assert needs("hard", {"first": 1, "last": 2}) == frozenset()
    with pytest.raises(ValueError, match="top, random, log_random.*'best'"):
        needs("best")
    for options in (None, {}, {"shares": {}}):
        with pytest.raises(ValueError, match="shares of mixed"):
            needs("mixed", options)


def test_the_module_imports_torch_and_the_standard_library_only():
    tree = ast.parse(Path(samplers.__file__).read_text(encoding="utf-8"))
    found = {
        name.split(".")[0]
        for node in ast.walk(tree)
        if isinstance(node, ast.Import | ast.ImportFrom)
        for name in [getattr(node, "module", None) or node.names[0].name]
    }
    assert "torch" in found
    assert found - {"torch"} <= set(sys.stdlib_module_names)


@pytest.mark.parametrize("variant", VARIANTS)
def test_wrong_arguments_are_refused(variant):
    mask = torch.ones(2, 4, dtype=torch.bool)
    tensors, generator = make_tensors(mask, seed=0), seeded(0)
    for wrong in (mask.int(), mask[0], mask[:, :0], mask[None]):
        with pytest.raises(ValueError, match=r"mask as bool \[batch, depth"):
            draw(variant, wrong, 4, tensors, generator)
    for wrong in (0, -1, 2.0, None):
        with pytest.raises(ValueError, match=rf"list_size as an int >= 1, got {wrong}"):
            draw(variant, mask, wrong, tensors, generator)
    with pytest.raises(ValueError, match="generator on meta like the mask, got one on cpu"):
        draw(variant, mask.to("meta"), 4, {k: t.to("meta") for k, t in tensors.items()}, generator)
    with pytest.raises(ValueError, match="generator on cpu like the mask, got one on None"):
        draw(variant, mask, 4, tensors, None)
    name, options = VARIANTS[variant]
    own = options | {key: tensors[key] for key in needs(name, options)}
    with pytest.raises(TypeError, match="scores"):
        SAMPLERS[name](mask, 4, generator=generator, scores=mask, **own)
    with pytest.raises(TypeError, match="generator"):
        SAMPLERS[name](mask, 4, **own)
    for key in own.keys() - {"options"}:
        less = {other: value for other, value in own.items() if other != key}
        with pytest.raises(TypeError, match=f"missing.*'{key}'"):
            SAMPLERS[name](mask, 4, generator=generator, **less)


@pytest.mark.parametrize("key", ["relevant", "judged", "teacher_rank"])
def test_tensors_that_do_not_fit_the_mask_are_refused(key):
    mask = torch.ones(2, 4, dtype=torch.bool)
    own = make_tensors(mask, seed=0)
    del own["excluded"]
    other_kind = own[key].int() if key != "teacher_rank" else own[key] > 1
    for wrong in (own[key][:, :3], own[key][:1], own[key].to("meta"), other_kind):
        with pytest.raises(ValueError, match=rf"{key} as \w+ \[2, 4\] on cpu like the mask, got"):
            samplers.denoised(mask, 3, generator=seeded(0), **(own | {key: wrong}))
    with pytest.raises(ValueError, match=r"relevant as bool \[2, 4\].*got torch.int64 \[2, 4\]"):
        samplers.single_relevant(mask, 3, generator=seeded(0), relevant=mask.long())


@pytest.mark.parametrize(("first", "last"), [(0, 3), (-1, 3), (3, 2), (1, 5), (5, 5)])
def test_windows_outside_the_ranks_are_refused(first, last):
    mask = torch.ones(2, 4, dtype=torch.bool)
    with pytest.raises(ValueError, match=f"depth = 4, got first={first}, last={last}"):
        samplers.hard(mask, 2, generator=seeded(0), first=first, last=last)


@pytest.mark.parametrize(
    ("shares", "list_size", "message"),
    [
        ({"top": 0.5, "random": 0.4}, 8, "sum to 1"),
        ({"top": 1.5, "random": -0.5}, 8, "shares > 0"),
        ({"top": 1.0, "random": 0.0}, 8, "shares > 0"),
        ({"top": math.nan, "random": 0.5}, 8, "sum to 1"),
        ({}, 8, "sum to 1"),
        ({"top": 0.5, "best": 0.5}, 8, "shares of top, random, log_random"),
        ({"top": 0.5, "mixed": 0.5}, 8, "shares of top, random, log_random"),
        ({"top": 0.5, "in_corpus": 0.5}, 8, "shares of top, random, log_random"),
        ({"single_relevant": 0.5, "denoised": 0.5}, 8, "one at most of the last two"),
        ({"top": 0.9, "random": 0.1}, 4, "a passage per share"),
    ],
)
def test_wrong_shares_are_refused(shares, list_size, message):
    mask = torch.ones(2, 10, dtype=torch.bool)
    with pytest.raises(ValueError, match=message):
        samplers.mixed(mask, list_size, generator=seeded(0), shares=shares)


def test_mixed_ignores_nothing():
    """A tensor or an option that no part takes is refused, and so is one given twice."""
    mask = torch.ones(2, 10, dtype=torch.bool)
    halves = {"shares": {"top": 0.5, "random": 0.5}, "generator": seeded(0)}
    for wrong in ({"relevant": mask}, {"options": {"hard": {}}}, {"random": mask}):
        with pytest.raises(TypeError, match="taken by none of .*top.*drop"):
            samplers.mixed(mask, 4, **halves, **wrong)
    with pytest.raises(TypeError, match="first"):
        samplers.mixed(mask, 4, **halves, options={"top": {"first": 1}})
    one = {"shares": {"top": 0.5, "single_relevant": 0.5}, "generator": seeded(0)}
    twice = {"relevant": mask, "options": {"single_relevant": {"relevant": mask}}}
    with pytest.raises(TypeError, match="multiple values.*relevant"):
        samplers.mixed(mask, 4, **one, **twice)


@pytest.mark.parametrize("n_passages", [0, -3, 5.0, None])
def test_corpora_without_passages_are_refused(n_passages):
    mask, excluded = torch.ones(2, 4, dtype=torch.bool), torch.zeros(2, 1, dtype=torch.int64)
    own = {"n_passages": n_passages, "excluded": excluded}
    with pytest.raises(ValueError, match=f"n_passages as an int >= 1, got {n_passages}"):
        samplers.in_corpus(mask, 2, generator=seeded(0), **own)


@pytest.mark.parametrize("shape", [(3, 1), (2,), (2, 1, 1)])
def test_exclusions_of_another_shape_are_refused(shape):
    mask = torch.ones(2, 4, dtype=torch.bool)
    own = {"n_passages": 9, "excluded": torch.zeros(shape, dtype=torch.int64)}
    with pytest.raises(ValueError, match=r"excluded as int64 \[2, n_excluded\], got torch.int64"):
        samplers.in_corpus(mask, 2, generator=seeded(0), **own)
    own["excluded"] = torch.zeros(2, 1)
    with pytest.raises(ValueError, match=r"got torch.float32 \[2, 1\]"):
        samplers.in_corpus(mask, 2, generator=seeded(0), **own)
