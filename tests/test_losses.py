"""Losses: golden values, plain-loop oracles, and properties that hold for every registered loss."""

import inspect
import math
from statistics import fmean

import oracles
import pytest
import torch

from rdl_core.losses import LOSSES, __all__, has_preference, targets_from_ranks

OWN = {  # options, beside the defaults
    "ranknet": [{"weighting": "inverse_rank_sum"}], "margin_mse": [{"margin": 1.5}],
    "adr_mse": [{"discount": "reciprocal"}, {"discount": "none"}, {"temperature": 2.0}],
    "info_nce": [{"positives": "all"}, {"temperature": 0.5}], "bce": [{"positives": "all"}],
    "listnet": [{"distribution": "reciprocal_rank"}, {"temperature": 2.0}],
    "lambda_loss": [{"gain": "linear", "mu": 2.0, "scale": 0.5}]
    + [{"weighting": weighting} for weighting in ("lambdarank", "ndcg1", "ndcg2", "arp1", "arp2")],
    "approx_ndcg": [{"gain": "linear"}, {"temperature": 0.5}],
    "approx_mrr": [{"positives": "all"}, {"temperature": 0.5}], "kl_div": [{"temperature": 2.0}],
    "neural_ndcg": [{"gain": "linear"}, {"temperature": 2.0}, {"sinkhorn_steps": 0}],
}  # fmt: skip
VARIANTS = [(name, own) for name in LOSSES for own in ({}, *OWN.get(name, ()))]
no_cuda = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
every_variant = pytest.mark.parametrize(("name", "own"), VARIANTS)
DTYPES = [torch.float32, torch.bfloat16]
GARBAGE = [math.nan, math.inf, -math.inf, 3e38, -7.0]


def random_lists(seed):
    """float64 scores, half tied; tied targets, negative in the last list; lists 0-2 are degenerate."""
    generator = torch.Generator().manual_seed(seed)
    scores = 2 * torch.randn(6, 6, generator=generator, dtype=torch.float64)
    scores[::2] = scores[::2].round()
    targets = torch.randint(-1, 5, (6, 6), generator=generator).double()
    mask = torch.rand(6, 6, generator=generator) < 0.8
    mask[0], mask[1], targets[2] = False, torch.arange(6) == 2, 3.0
    targets[3:, 0], targets[3:, 1], mask[3:, :2] = 3.0, 0.0, True
    targets[-1] -= 9.0
    return scores, targets, mask


def value_and_gradient(name, scores, targets, **own):
    scores = scores.detach().clone().requires_grad_()
    loss = LOSSES[name](scores, targets, **own)
    return loss.detach(), *torch.autograd.grad(loss.sum(), scores)


def softplus(x):
    return math.log(1 + math.exp(x))


# One list: the best passage is scored last, the second first; ranks by score 3, 1, 2.
SCORES, TARGETS = [1.0, 3.0, 2.0], [2.0, 1.0, 0.0]
S1, S2 = 1 / (1 + math.exp(-1)), 1 / (1 + math.exp(-2))  # sigmoids of score differences
R = [1 + S2 + S1, 1 + (1 - S2) + (1 - S1), 1 + (1 - S1) + S1]
EXP, TEACHER = [math.e, math.e**3, math.e**2], [math.e**2, math.e, 1.0]
P, Q = [t / sum(TEACHER) for t in TEACHER], [e / sum(EXP) for e in EXP]
D1, D2, D3 = 1.0, 1 / math.log2(3), 1 / 2  # discounts of ranks 1, 2, 3
IDEAL = 3 * D1 + 1 * D2
PAIRS = [softplus(2), softplus(1), softplus(-1)]  # passages (1, 2), (1, 3), (2, 3)
SWAPS = [(D1 - D3) * 2 / IDEAL, (D2 - D3) * 3 / IDEAL, (D1 - D2) * 1 / IDEAL]
NEARS = [(D2 - D3) * 2 / IDEAL, (D1 - D2) * 3 / IDEAL, (D1 - D2) * 1 / IDEAL]


@pytest.mark.parametrize(("name", "own", "expected"), [
    ("ranknet", {}, fmean(PAIRS)),
    ("adr_mse", {}, fmean([(1 - R[0]) ** 2, (2 - R[1]) ** 2 / math.log2(3), (3 - R[2]) ** 2 / 2])),
    ("info_nce", {}, -math.log(EXP[0] / sum(EXP))),
    ("info_nce", {"positives": "all"}, fmean([softplus(2 - 1), softplus(2 - 3)])),
    ("listnet", {}, -sum(p * math.log(q) for p, q in zip(P, Q, strict=True))),
    ("kl_div", {}, sum(p * math.log(p / q) for p, q in zip(P, Q, strict=True))),
    ("list_mle", {}, math.log(sum(EXP)) - 1 + math.log(EXP[1] + EXP[2]) - 3),
    ("p_list_mle", {}, (3 * (math.log(sum(EXP)) - 1) + 1 * (math.log(EXP[1] + EXP[2]) - 3)) / (3 + 1)),
    ("lambda_loss", {}, fmean(pair * (swap + 10 * near) / math.log(2)
                              for pair, swap, near in zip(PAIRS, SWAPS, NEARS, strict=True))),
    ("approx_ndcg", {}, 1 - (3 / math.log2(1 + R[0]) + 1 / math.log2(1 + R[1])) / IDEAL),
    ("approx_mrr", {}, 1 - 1 / R[0]),
    ("margin_mse", {}, fmean([(-2 - 1) ** 2, (-1 - 2) ** 2, (1 - 1) ** 2])),
    ("bce", {}, fmean([softplus(-1), softplus(3), softplus(2)])),
])  # fmt: skip
def test_golden_value(name, own, expected):
    scores = torch.tensor([[*SCORES, math.nan]], dtype=torch.float64)
    loss = LOSSES[name](scores, torch.tensor([[*TARGETS, 9.0]]), mask=~scores.isnan(), **own)
    assert loss.item() == pytest.approx(expected)


def test_golden_values_of_neural_ndcg_and_of_the_list_of_the_book():
    """Of two passages NeuralSort makes [[a, 1 - a], [1 - a, a]], which needs no scaling."""
    loss = LOSSES["neural_ndcg"](torch.tensor([[1.0, 3.0]]), torch.tensor([[1, 0]])).item()
    assert loss == pytest.approx(1 - ((1 - S2) * D1 + S2 * D2))
    lists = torch.tensor([[2.0, 0.5, 1.0, -1.0]]), targets_from_ranks(torch.tensor([[1, 2, 3, 4]]))
    values = {"ranknet": 0.3109, "adr_mse": 0.2110, "list_mle": 1.6771, "info_nce": 0.4952}
    assert {name: LOSSES[name](*lists).item() for name in values} == pytest.approx(values, abs=5e-5)
    assert LOSSES["adr_mse"](*lists, discount="none").item() == pytest.approx(0.3386, abs=5e-5)


@every_variant
def test_agrees_with_the_plain_loop_whatever_the_batch_the_order_and_the_shift_of_scores(name, own):
    for seed in range(4):
        scores, targets, mask = random_lists(seed)
        lists = [(s[m].tolist(), t[m].tolist()) for s, t, m in zip(scores, targets, mask, strict=True)]
        counts = [len(set(wanted)) > 1 for _, wanted in lists]
        assert has_preference(targets, mask).tolist() == counts
        expected = [getattr(oracles, name)(*lists[n], **own) if counts[n] else 0.0 for n in range(6)]
        losses, gradient = value_and_gradient(name, scores, targets, mask=mask, reduction="none", **own)
        assert losses.tolist() == pytest.approx(expected, abs=1e-9)
        average = LOSSES[name](scores, targets, mask=mask, **own)
        assert average.item() == pytest.approx(sum(expected) / sum(counts), abs=1e-9) != 0
        if name != "bce":  # only differences of scores matter
            torch.testing.assert_close(LOSSES[name](scores + 5, targets, mask=mask, **own), average)
        order = torch.randperm(mask.shape[1], generator=torch.Generator().manual_seed(seed))
        options = {"mask": mask[:, order], "reduction": "none", **own}
        moved = value_and_gradient(name, scores[:, order], targets[:, order], **options)
        torch.testing.assert_close(moved[0], losses)
        if name != "approx_mrr":  # its maximum has no one gradient where positives tie in score
            torch.testing.assert_close(moved[1], gradient[:, order])


@every_variant
@pytest.mark.parametrize(("dtype", "rtol"), [(torch.float32, 1e-5), (torch.bfloat16, 1e-2)])
def test_garbage_where_masked_or_as_padding_changes_nothing(name, own, dtype, rtol):
    """Also sentence-transformers#3827: padding leaked into the normaliser of shorter lists."""
    for seed, garbage in enumerate(GARBAGE):
        scores, targets, mask = random_lists(seed)
        scores = (scores + torch.linspace(0, 0.2, 6)).to(dtype)  # untied, for approx_mrr's gradient
        targets = targets.float()
        dirt = torch.tensor(GARBAGE * 8)[seed : seed + mask.numel()].view(mask.shape)
        dirty = torch.where(mask, scores, dirt.to(dtype)), torch.where(mask, targets, dirt)
        clean = value_and_gradient(name, scores, targets, mask=mask, **own)
        masked = value_and_gradient(name, *dirty, mask=mask, **own)
        assert all(map(torch.equal, masked, clean))
        wide = [torch.nn.functional.pad(x, (2, 3), value=garbage) for x in dirty]
        wide_mask = torch.nn.functional.pad(mask, (2, 3), value=False)
        loss, gradient = value_and_gradient(name, *wide, mask=wide_mask, **own)
        torch.testing.assert_close(loss, clean[0], rtol=1e-5, atol=1e-6)
        torch.testing.assert_close(gradient[:, 2:-3], clean[1], rtol=rtol, atol=1e-5)
        assert (gradient[~wide_mask] == 0).all()


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("reduction", ["mean", "none"])
@every_variant
def test_lists_without_a_preference_cost_nothing(name, own, reduction, dtype):
    """Also sentence-transformers#4032: NaN where all labels tie or a list has one passage."""
    scores = torch.tensor([[3.0, -1.0, 0.5]] * 2 + [[math.inf, -1.0, 0.5]], dtype=dtype)
    targets = torch.tensor([[2.0, 1.0, 3.0], [2.0, 1.0, 3.0], [2.0, 2.0, 2.0]])
    mask = torch.tensor([[False] * 3, [False, True, False], [True] * 3])
    for rows, n in [([0], 3), ([1], 3), ([2], 3), ([0, 1, 2], 3), ([2], 1), ([], 3)]:
        s, t, m = (x[rows, :n] for x in (scores, targets, mask))
        with torch.autograd.set_detect_anomaly(True):  # raises at a NaN anywhere on the way
            loss, gradient = value_and_gradient(name, s, t, mask=m, reduction=reduction, **own)
        assert (loss.shape, gradient.shape) == ((len(rows),) * (reduction == "none"), (len(rows), n))
        assert not (loss.any() or gradient.any())


@every_variant
def test_extreme_scores_and_a_thousand_ranks_stay_finite_and_nan_is_not_hidden(name, own):
    """A loss that swallows NaN would train on garbage. 2^1000, a gain, is no float32."""
    extremes = torch.cartesian_prod(*[torch.tensor([-1e4, 0.0, 1e4])] * 4)
    targets = torch.tensor([[3.0, 2.0, 1.0, 0.0]]).expand(extremes.shape)
    for dtype in DTYPES:
        losses = value_and_gradient(name, extremes.to(dtype), targets, reduction="none", **own)
        assert all(x.isfinite().all() for x in losses)
        garbage = torch.tensor([[1.0, math.nan, 0.5]], dtype=dtype)
        assert LOSSES[name](garbage, targets[:1, 1:], **own).isnan()
    scores = torch.randn(1, 1000, generator=torch.Generator().manual_seed(0))
    targets = targets_from_ranks(torch.arange(1, 1001)[None])
    loss, gradient = value_and_gradient(name, scores, targets, **own)
    assert 0 < loss < math.inf
    assert 0 < gradient.abs().max() < math.inf


@every_variant
def test_teachers_order_beats_its_reverse(name, own):
    for n in range(2, 9):
        generator = torch.Generator().manual_seed(n)
        scores = (1 + 2 * torch.rand(1, n, generator=generator, dtype=torch.float64)).cumsum(1)
        targets = torch.randint(0, 7, (1, n), generator=generator).sort().values
        targets[0, -1] += 1  # at least one preference
        assert LOSSES[name](scores, targets, **own) < LOSSES[name](scores.flip(1), targets, **own)


@every_variant
def test_gradient_agrees_with_differences(name, own):
    lists = zip(*map(random_lists, range(3)), strict=True)
    scores, targets, mask = (torch.cat(x)[3::6] for x in lists)  # those whose scores do not tie
    own = {"mask": mask, "reduction": "none", **own}
    assert (value_and_gradient(name, scores, targets, **own)[1].abs().sum(1) > 1e-3).all()
    assert torch.autograd.gradcheck(lambda x: LOSSES[name](x, targets, **own), scores.requires_grad_())


@every_variant
def test_half_precision_is_raised_float64_stays_and_inputs_are_not_modified(name, own):
    inputs = scores, targets, mask = random_lists(seed=2)
    before = [x.clone() for x in inputs]
    for dtype in (torch.bfloat16, torch.float16):
        half = scores.to(dtype)
        loss, gradient = value_and_gradient(name, half, targets.to(dtype), mask=mask, **own)
        with torch.autocast("cpu", dtype=torch.bfloat16):  # does not lower it again
            raised, wanted = value_and_gradient(name, half.float(), targets.float(), mask=mask, **own)
        assert (loss.dtype, gradient.dtype) == (torch.float32, dtype)
        assert all(map(torch.equal, (loss, gradient), (raised, wanted.to(dtype))))
        assert gradient.any()
    loss = LOSSES[name](scores, targets.requires_grad_(), mask=mask, **own)
    assert (loss.dtype, loss.requires_grad) == (torch.float64, False)  # targets are constants
    assert LOSSES[name](scores, targets.long(), mask=mask, **own) == loss
    assert all(map(torch.equal, before, inputs))


@pytest.mark.parametrize("device", ["meta", pytest.param("cuda", marks=[pytest.mark.gpu, no_cuda])])
@every_variant
def test_nothing_asks_the_device_for_a_value(name, own, device):
    """Meta tensors have no values: .item(), a branch on data or a CPU constant would raise."""
    lists = random_lists(seed=6)
    scores, targets, mask = (x.to(device) for x in lists)
    debug = torch.cuda.set_sync_debug_mode if device == "cuda" else lambda mode: None
    debug("error")
    try:
        values = value_and_gradient(name, scores, targets, mask=mask, **own)
    finally:
        debug("default")
    assert [(x.device.type, x.shape) for x in values] == [(device, ()), (device, scores.shape)]
    if device == "cuda":
        wanted = value_and_gradient(name, *lists[:2], mask=lists[2], **own)
        torch.testing.assert_close(tuple(x.cpu() for x in values), wanted)


def test_all_losses_compile_whole_in_one_process():
    """While they shared the decorator's code, torch.compile gave up at the ninth."""
    scores, targets, mask = random_lists(seed=6)
    for loss in LOSSES.values():
        compiled = torch.compile(loss, backend="eager", fullgraph=True)(scores, targets, mask=mask)
        torch.testing.assert_close(compiled, loss(scores, targets, mask=mask))


def test_targets_turn_ranks_round_close_gaps_average_ties_and_never_count_masked_passages():
    ranks = torch.tensor([[2, 1, 4, 3], [56, 3, 17, 99], [1, 2, 2, 4]])
    assert targets_from_ranks(ranks).tolist() == [[3, 4, 1, 2], [2, 4, 3, 1], [4, 2.5, 2.5, 1]]
    dtypes = [targets_from_ranks(x).dtype for x in (ranks, ranks.half(), ranks.double())]
    assert dtypes == [torch.float32, torch.float32, torch.float64]
    for garbage in (0.0, -3.0, 1.5, math.nan, math.inf):
        rank, mask = torch.tensor([[3.0, garbage, 1.0, 2.0]]), torch.tensor([[True, False, True, True]])
        assert targets_from_ranks(rank, mask).tolist() == [[1, 0, 3, 2]]
        assert targets_from_ranks(rank, mask & False).tolist() == [[0, 0, 0, 0]]


def test_a_pair_in_the_wrong_order_keeps_its_gradient():
    """A sigmoid clamped before the logarithm gives 0 where a pair needs its gradient most."""
    pair = torch.tensor([[-1e4, 1e4]]), torch.tensor([[2, 1]])
    assert value_and_gradient("ranknet", *pair)[1].tolist() == [[-1, 1]]
    slopes = value_and_gradient("lambda_loss", *pair, weighting="arp2")[1] * math.log(2)
    assert slopes.tolist() == [pytest.approx([-1, 1])]


GOOD = torch.tensor([[1.0, 0.0]])
WRONG_TENSORS = [
    (GOOD[0], GOOD[0], None, ValueError, r"scores must be 2-D.*got shape \(2,\)"),
    (GOOD[:, :0], GOOD[:, :0], None, ValueError, r"n >= 1, got shape \(1, 0\)"),
    (GOOD, GOOD[:, :1], None, ValueError, r"targets must have the shape of scores, \(1, 2\)"),
    (GOOD, GOOD, GOOD[:, :1] > 0, ValueError, r"mask must have the shape of scores, \(1, 2\), got"),
    (GOOD, GOOD, GOOD, TypeError, "mask must be bool.*got torch.float32"),
    (GOOD.long(), GOOD, None, TypeError, "scores must be floating, got torch.int64"),
]
WRONG_OPTIONS = {
    "reduction": ("sum", "one of mean, none, got 'sum'"), "gain": ("e", "one of exp2, linear, got 'e'"),
    "weighting": ("sum", "one of (uniform, inverse_rank_sum|lambdarank, ndcg1, .*, arp2), got 'sum'"),
    "discount": (None, "one of log2, reciprocal, none, got None"),
    "positives": ("top", "one of best, all, got 'top'"), "sinkhorn_steps": (-1, "0 or more, got -1"),
    "distribution": ("", "one of targets, reciprocal_rank, got ''"),
    "temperature": (0.0, "greater than 0, got 0.0"), "scale": (-1.0, "greater than 0, got -1.0"),
    "margin": (math.nan, "greater than 0, got nan"), "mu": (math.nan, "0 or more, got nan"),
}  # fmt: skip


@pytest.mark.parametrize("name", LOSSES)
def test_every_loss_has_the_common_signature_and_refuses_wrong_tensors_and_options(name):
    parameters = list(inspect.signature(LOSSES[name]).parameters.values())
    assert [p.name for p in parameters[:4]] == ["scores", "targets", "mask", "reduction"]
    assert all(p.kind is p.KEYWORD_ONLY and p.default is not p.empty for p in parameters[2:])
    assert (name in __all__, "Reference: " in LOSSES[name].__doc__) == (True, True)
    for scores, targets, mask, error, words in WRONG_TENSORS:
        with pytest.raises(error, match=words):
            LOSSES[name](scores, targets, mask=mask)
        if "targets" not in words and "floating" not in words:  # helpers take one tensor, integers too
            for helper in (targets_from_ranks, has_preference):
                with pytest.raises(error, match=words.replace("scores", r"(targets|teacher_rank)")):
                    helper(scores, mask)
    for option in [p.name for p in parameters[3:]]:
        wrong, words = WRONG_OPTIONS[option]
        with pytest.raises(ValueError, match=f"{option} must be {words}"):
            LOSSES[name](GOOD, GOOD, **{option: wrong})
    with pytest.raises(TypeError, match=rf"{name}\(\) got an unexpected keyword argument 'alpha'"):
        LOSSES[name](GOOD, GOOD, alpha=1.0)
