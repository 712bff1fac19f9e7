"""Losses: golden values, plain-loop oracles, and properties that hold for every registered loss.

Mutations tried, one at a time; each made at least one test here fail:

- targets_from_ranks: best gets 1; masked places left non-zero. has_preference: masked counted.
- pairs: i - j transposed; ties are pairs; masked are pairs. Ranks: from 0; lowest first; masked
  counted; ties by place. Positives: above the lowest as best; lowest too; masked too.
- ranknet: sign; log(sigmoid + eps); weight 1 / (p_i p_j); weight off by one.
- margin_mse: sign of the margin; fixed margin ignored. hinge: sign; labels swapped. bce: sign;
  labels swapped.
- lambda_loss: sign; natural logarithm; scale ignored; tied scores averaged, or best first; ndcg1
  and arp1 on ordered pairs only; ndcg1 with the gain of the other passage; ndcg2 distance off by
  one; mu ignored; lambdarank without gains; arp1 not clamped; arp2 without targets.
- gains: 2^t; overflowing at 2^1000; not normalised; ideal unsorted, or ascending; negative targets;
  division by an ideal of 0.
- info_nce: sign; positives or masked passages among the negatives; temperature multiplies.
- listnet: sign; teacher and student swapped; 1 / (p + 1); temperature multiplies. kl_div:
  direction; temperature on the scores only.
- list_mle: reversed; chosen passage or padding wrongly summed; ties compete. p_list_mle: weights
  off by one, reversed, not normalised, of the padded length.
- adr_mse: log2(p + 2); discount of the student's rank; 1 / p^2. Smooth ranks: sign; from 0; wrong
  axis; against itself; masked counted; temperature multiplies.
- approx_ndcg: log2(2 + r); sign; 1 where nothing can be gained. approx_mrr: worst positive; any
  passage. neural_ndcg: ascending; m for m + 1; padded length; masked in the spread; rows before
  columns; no scaling; discount off by one; gains in padded places; 1 where nothing can be gained.
- preparation: masked scores or targets left in, or multiplied by 0; mask ignored; lists without a
  preference kept; half precision kept; float64 lowered; gradient into targets; inputs overwritten.
- reductions: sum within the list; mean over padding, over all lists, over pairs of the batch;
  invalid items kept; 0 / 0; .item(). Softmax and log-sum-exp: masked entries kept; filled with
  -inf (NaN in the backward pass, seen by anomaly detection).
"""

import ast
import inspect
import itertools
import math
from pathlib import Path

import oracles
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from rdl_core import losses as losses_module
from rdl_core.losses import LOSSES, has_preference, lambda_loss, targets_from_ranks

torch.set_num_threads(1)
few = settings(derandomize=True, deadline=None, max_examples=10, database=None)

OWN = {
    "ranknet": [{}, {"weighting": "inverse_rank_sum"}],
    "adr_mse": [{}, {"discount": "reciprocal"}, {"discount": "none"}, {"temperature": 2.0}],
    "info_nce": [{}, {"positives": "all"}, {"temperature": 0.5}],
    "listnet": [{}, {"distribution": "reciprocal_rank"}, {"temperature": 2.0}],
    "list_mle": [{}],
    "p_list_mle": [{}],
    "lambda_loss": [
        {},
        *({"weighting": w} for w in ("ranknet", "lambdarank", "ndcg1", "ndcg2", "arp1", "arp2")),
        {"gain": "linear", "mu": 2.0, "scale": 0.5},
    ],
    "approx_ndcg": [{}, {"gain": "linear"}, {"temperature": 0.5}],
    "approx_mrr": [{}, {"positives": "all"}, {"temperature": 0.5}],
    "neural_ndcg": [{}, {"gain": "linear"}, {"temperature": 2.0}, {"sinkhorn_steps": 0}],
    "margin_mse": [{}, {"margin": 1.5}],
    "kl_div": [{}, {"temperature": 2.0}],
    "bce": [{}, {"positives": "all"}, {"comparison": "pairwise"}],
    "hinge": [{}, {"margin": 0.5}, {"comparison": "pointwise", "positives": "all"}],
}
VARIANTS = [
    pytest.param(name, own, id="-".join([name, *map(str, own.values())]))
    for name, variants in OWN.items()
    for own in variants
]
every_loss = pytest.mark.parametrize("name", LOSSES)
every_variant = pytest.mark.parametrize(("name", "own"), VARIANTS)
DTYPES = [torch.float32, torch.bfloat16]
both_dtypes = pytest.mark.parametrize("dtype", DTYPES, ids=str)
GARBAGE = [math.nan, math.inf, -math.inf, 3e38, -7.0]


# --- lists to test on ------------------------------------------------------------------------

scores_of = st.one_of(st.sampled_from([-1.0, 0.0, 0.5, 2.0]), st.floats(-4, 4, width=16))
targets_of = st.integers(-1, 4).map(float)


@st.composite
def batches(draw, max_batch=3, max_n=6):
    """Lists with ties in scores and targets, any mask, some lists without a preference."""
    batch, n = draw(st.integers(1, max_batch)), draw(st.integers(1, max_n))

    def table(values):
        rows = st.lists(st.lists(values, min_size=n, max_size=n), min_size=batch, max_size=batch)
        return torch.tensor(draw(rows))

    return table(scores_of), table(targets_of), table(st.integers(0, 3)) > 0


def random_lists(seed, batch=6, n=6):
    """float64 scores (ties in half of the lists), tied targets, masks; lists 0-2 are degenerate."""
    generator = torch.Generator().manual_seed(seed)
    scores = 2 * torch.randn(batch, n, generator=generator, dtype=torch.float64)
    scores[::2] = scores[::2].round()
    targets = torch.randint(-1, 5, (batch, n), generator=generator).double()
    mask = torch.rand(batch, n, generator=generator) < 0.8
    mask[0] = False
    mask[1] = torch.arange(n) == 2
    targets[2] = 3.0
    targets[3:, 0], targets[3:, 1], mask[3:, :2] = 3.0, 0.0, True
    return scores, targets, mask


def value_and_gradient(name, scores, targets, **own):
    scores = scores.detach().clone().requires_grad_()
    loss = LOSSES[name](scores, targets, **own)
    loss.sum().backward()
    return loss.detach(), scores.grad


# --- golden values ---------------------------------------------------------------------------


def sigmoid(x):
    return 1 / (1 + math.exp(-x))


def softplus(x):
    return math.log(1 + math.exp(x))


# One list: the best passage is scored last, the second first; ranks by score 3, 1, 2.
SCORES, TARGETS = [1.0, 3.0, 2.0], [2.0, 1.0, 0.0]
R = [1 + sigmoid(2) + sigmoid(1), 1 + sigmoid(-2) + sigmoid(-1), 1 + sigmoid(-1) + sigmoid(1)]
EXP = [math.e, math.e**3, math.e**2]
TEACHER = [math.e**2, math.e, 1.0]
D1, D2, D3 = 1.0, 1 / math.log2(3), 1 / 2  # discounts of ranks 1, 2, 3
IDEAL = 3 * D1 + 1 * D2
PAIRS = [softplus(2), softplus(1), softplus(-1)]  # passages (1, 2), (1, 3), (2, 3)
SWAPS = [(D1 - D3) * 2 / IDEAL, (D2 - D3) * 3 / IDEAL, (D1 - D2) * 1 / IDEAL]
NEARS = [(D2 - D3) * 2 / IDEAL, (D1 - D2) * 3 / IDEAL, (D1 - D2) * 1 / IDEAL]


def mean(*values):
    return sum(values) / len(values)


def weighted(weights):
    return mean(*(w * p / math.log(2) for w, p in zip(weights, PAIRS, strict=True)))


GOLDEN = [
    ("ranknet", {}, mean(*PAIRS)),
    (
        "ranknet",
        {"weighting": "inverse_rank_sum"},
        mean(softplus(2) / (1 + 2), softplus(1) / (1 + 3), softplus(-1) / (2 + 3)),
    ),
    (
        "adr_mse",
        {},
        mean(
            (1 - R[0]) ** 2 / math.log2(2),
            (2 - R[1]) ** 2 / math.log2(3),
            (3 - R[2]) ** 2 / math.log2(4),
        ),
    ),
    (
        "adr_mse",
        {"discount": "reciprocal"},
        mean((1 - R[0]) ** 2, (2 - R[1]) ** 2 / 2, (3 - R[2]) ** 2 / 3),
    ),
    (
        "adr_mse",
        {"discount": "none"},
        mean((1 - R[0]) ** 2, (2 - R[1]) ** 2, (3 - R[2]) ** 2),
    ),
    ("info_nce", {}, -math.log(EXP[0] / sum(EXP))),
    (
        "info_nce",
        {"positives": "all"},
        mean(-math.log(EXP[0] / (EXP[0] + EXP[2])), -math.log(EXP[1] / (EXP[1] + EXP[2]))),
    ),
    (
        "listnet",
        {},
        -sum(t / sum(TEACHER) * math.log(e / sum(EXP)) for t, e in zip(TEACHER, EXP, strict=True)),
    ),
    (
        "listnet",
        {"distribution": "reciprocal_rank"},
        -sum(
            math.exp(1 / p)
            / sum(math.exp(1 / k) for k in (1, 2, 3))
            * math.log(EXP[p - 1] / sum(EXP))
            for p in (1, 2, 3)
        ),
    ),
    (
        "kl_div",
        {},
        sum(
            t / sum(TEACHER) * math.log((t / sum(TEACHER)) / (e / sum(EXP)))
            for t, e in zip(TEACHER, EXP, strict=True)
        ),
    ),
    ("list_mle", {}, math.log(sum(EXP)) - 1 + math.log(EXP[1] + EXP[2]) - 3),
    (
        "p_list_mle",
        {},
        ((2**2 - 1) * (math.log(sum(EXP)) - 1) + (2**1 - 1) * (math.log(EXP[1] + EXP[2]) - 3))
        / ((2**2 - 1) + (2**1 - 1)),
    ),
    ("lambda_loss", {"weighting": "ranknet"}, weighted([1, 1, 1])),
    ("lambda_loss", {"weighting": "lambdarank"}, weighted(SWAPS)),
    ("lambda_loss", {"weighting": "ndcg2"}, weighted(NEARS)),
    (
        "lambda_loss",
        {},
        weighted([swap + 10 * near for swap, near in zip(SWAPS, NEARS, strict=True)]),
    ),
    (
        "lambda_loss",
        {"weighting": "ndcg1"},
        (3 * D3 * (softplus(2) + softplus(1)) + 1 * D1 * (softplus(-2) + softplus(-1)))
        / IDEAL
        / math.log(2)
        / 6,
    ),
    (
        "lambda_loss",
        {"weighting": "arp1"},
        (2 * (softplus(2) + softplus(1)) + 1 * (softplus(-2) + softplus(-1))) / math.log(2) / 6,
    ),
    ("lambda_loss", {"weighting": "arp2"}, weighted([1, 2, 1])),
    ("approx_ndcg", {}, 1 - (3 / math.log2(1 + R[0]) + 1 / math.log2(1 + R[1])) / IDEAL),
    (
        "approx_ndcg",
        {"gain": "linear"},
        1 - (2 / math.log2(1 + R[0]) + 1 / math.log2(1 + R[1])) / (2 + 1 * D2),
    ),
    ("approx_mrr", {}, 1 - 1 / R[0]),
    ("approx_mrr", {"positives": "all"}, 1 - 1 / R[1]),
    ("margin_mse", {}, mean((-2 - 1) ** 2, (-1 - 2) ** 2, (1 - 1) ** 2)),
    ("margin_mse", {"margin": 1.0}, mean((-2 - 1) ** 2, (-1 - 1) ** 2, (1 - 1) ** 2)),
    ("bce", {}, mean(softplus(-1), softplus(3), softplus(2))),
    ("bce", {"positives": "all"}, mean(softplus(-1), softplus(-3), softplus(2))),
    ("hinge", {}, mean(1 + 2, 1 + 1, 0)),
    ("hinge", {"comparison": "pointwise"}, mean(1 - 1, 1 + 3, 1 + 2)),
]


@pytest.mark.parametrize(("name", "own", "expected"), GOLDEN)
def test_golden_value(name, own, expected):
    scores = torch.tensor([[*SCORES, math.nan]], dtype=torch.float64)
    targets = torch.tensor([[*TARGETS, 9.0]])
    mask = torch.tensor([[True, True, True, False]])
    assert LOSSES[name](scores, targets, mask=mask, **own).item() == pytest.approx(expected)


def test_golden_value_of_neural_ndcg():
    """Of two passages NeuralSort makes [[a, 1 - a], [1 - a, a]], which needs no scaling."""
    worse_first = torch.tensor([[1.0, 3.0]], dtype=torch.float64)
    expected = 1 - (sigmoid(1 - 3) / math.log2(2) + sigmoid(3 - 1) / math.log2(3))
    loss = LOSSES["neural_ndcg"](worse_first, torch.tensor([[1, 0]]))
    assert loss.item() == pytest.approx(expected)


ANCHORS = [
    ("adr_mse", {}, 0.210967),
    ("adr_mse", {"temperature": 1 / 0.5}, 0.364240),
    ("adr_mse", {"temperature": 1 / 2}, 0.178530),
    ("adr_mse", {"temperature": 1 / 10}, 0.278972),
    ("adr_mse", {"discount": "none"}, 0.338595),
    ("adr_mse", {"discount": "reciprocal"}, 0.167936),
    ("ranknet", {}, 0.310947),
    ("ranknet", {"weighting": "inverse_rank_sum"}, 0.066948),
    ("info_nce", {}, 0.495182),
    ("list_mle", {}, 1.677067),
    ("listnet", {}, 1.033826),
    ("listnet", {"distribution": "reciprocal_rank"}, 1.590849),
]


@pytest.mark.parametrize(("name", "own", "expected"), ANCHORS)
def test_anchor_computed_by_hand(name, own, expected):
    scores = torch.tensor([[2.0, 0.5, 1.0, -1.0]])
    targets = targets_from_ranks(torch.tensor([[1, 2, 3, 4]]))
    assert LOSSES[name](scores, targets, **own).item() == pytest.approx(expected, abs=1e-6)


@every_variant
def test_agrees_with_the_plain_loop(name, own):
    for seed in range(4):
        scores, targets, mask = random_lists(seed)
        losses, counts = oracles.batch_losses(
            name, scores.tolist(), targets.tolist(), mask.tolist(), **own
        )
        found = LOSSES[name](scores, targets, mask=mask, reduction="none", **own)
        assert found.tolist() == pytest.approx(losses, abs=1e-9)
        assert any(losses)
        assert sum(counts) == 3
        average = LOSSES[name](scores, targets, mask=mask, **own)
        assert average.item() == pytest.approx(sum(losses) / sum(counts), abs=1e-9)


# --- properties of every loss ----------------------------------------------------------------


@every_loss
def test_registered_under_its_name_with_an_oracle_and_the_common_signature(name):
    loss = LOSSES[name]
    parameters = list(inspect.signature(loss).parameters.values())
    assert loss.__name__ == name
    assert name in losses_module.__all__
    assert name in oracles.LOSS_ORACLES
    assert name in OWN
    assert [p.name for p in parameters[:4]] == ["scores", "targets", "mask", "reduction"]
    assert [p.kind for p in parameters[:2]] == [inspect.Parameter.POSITIONAL_OR_KEYWORD] * 2
    assert all(p.kind == inspect.Parameter.KEYWORD_ONLY for p in parameters[2:])
    assert all(p.default is not inspect.Parameter.empty for p in parameters[2:])


def test_names_that_profiles_use_are_registered():
    assert {"ranknet", "adr_mse", "info_nce", "listnet"} <= set(LOSSES)


@every_variant
@few
@given(lists=batches(), garbage=st.permutations(GARBAGE))
def test_garbage_in_masked_places_changes_nothing(name, own, lists, garbage):
    scores, targets, mask = lists
    dirt = torch.tensor(list(itertools.islice(itertools.cycle(garbage), mask.numel())))
    dirt = dirt.view(mask.shape)
    dirty_scores, dirty_targets = (torch.where(mask, x, dirt) for x in (scores, targets))
    for dtype in DTYPES:
        clean = value_and_gradient(name, scores.to(dtype), targets, mask=mask, **own)
        dirty = value_and_gradient(name, dirty_scores.to(dtype), dirty_targets, mask=mask, **own)
        assert torch.equal(clean[0], dirty[0])
        assert torch.equal(clean[1], dirty[1])
        assert (dirty[1][~mask] == 0).all()


@every_variant
@few
@given(lists=batches(), garbage=st.sampled_from(GARBAGE), width=st.integers(1, 3))
def test_padding_changes_nothing(name, own, lists, garbage, width):
    def pad(x, value):
        return torch.nn.functional.pad(x, (width, width), value=value)

    scores, targets, mask = lists
    wide = pad(scores, garbage), pad(targets, garbage), pad(mask, False)
    for dtype, rtol in zip(DTYPES, (1e-5, 1e-2), strict=True):
        loss, gradient = value_and_gradient(name, scores.to(dtype), targets, mask=mask, **own)
        wide_loss, wide_gradient = value_and_gradient(
            name, wide[0].to(dtype), wide[1], mask=wide[2], **own
        )
        torch.testing.assert_close(wide_loss, loss, rtol=1e-5, atol=1e-6)
        torch.testing.assert_close(wide_gradient[:, width:-width], gradient, rtol=rtol, atol=1e-5)
        assert (wide_gradient[:, :width] == 0).all()
        assert (wide_gradient[:, -width:] == 0).all()


@every_variant
@few
@given(lists=batches(max_batch=4))
def test_batch_is_the_mean_of_its_lists_with_a_preference(name, own, lists):
    scores, targets, mask = lists
    each = LOSSES[name](scores, targets, mask=mask, reduction="none", **own)
    alone = [
        LOSSES[name](s[None], t[None], mask=m[None], **own)
        for s, t, m in zip(scores, targets, mask, strict=True)
    ]
    torch.testing.assert_close(each, torch.stack(alone))
    assert each.shape == (len(scores),)
    counts = has_preference(targets, mask)
    assert (each[~counts] == 0).all()
    average = LOSSES[name](scores, targets, mask=mask, **own)
    torch.testing.assert_close(average, each.sum() / max(int(counts.sum()), 1))


@every_variant
@few
@given(lists=batches(max_batch=1), data=st.data())
def test_joint_permutation_changes_nothing(name, own, lists, data):
    scores, targets, mask = lists
    order = data.draw(st.permutations(range(mask.shape[1])))
    loss, gradient = value_and_gradient(name, scores.double(), targets, mask=mask, **own)
    moved_loss, moved_gradient = value_and_gradient(
        name, scores[:, order].double(), targets[:, order], mask=mask[:, order], **own
    )
    torch.testing.assert_close(moved_loss, loss)
    if name != "approx_mrr":  # its maximum has no one gradient where positives tie in score
        torch.testing.assert_close(moved_gradient, gradient[:, order])


@both_dtypes
@pytest.mark.parametrize("reduction", ["mean", "none"])
@every_variant
def test_lists_without_a_preference_cost_nothing(name, own, reduction, dtype):
    """Also sentence-transformers#4032: NaN where all labels tie or a list has one passage."""
    scores = torch.tensor([[3.0, -1.0, 0.5]] * 3, dtype=dtype)
    targets = torch.tensor([[2.0, 1.0, 3.0], [2.0, 1.0, 3.0], [2.0, 2.0, 2.0]])
    mask = torch.tensor([[False] * 3, [False, True, False], [True] * 3])
    for rows in ([0], [1], [2], [0, 1, 2]):
        with torch.autograd.set_detect_anomaly(True):  # raises at a NaN anywhere on the way
            loss, gradient = value_and_gradient(
                name, scores[rows], targets[rows], mask=mask[rows], reduction=reduction, **own
            )
        assert (loss == 0).all()
        assert (gradient == 0).all()
    one, gradient = value_and_gradient(name, scores[:1, :1], targets[:1, :1], **own)
    assert one.item() == 0
    assert gradient.item() == 0


@every_variant
def test_empty_batch_costs_nothing(name, own):
    loss, gradient = value_and_gradient(name, torch.zeros(0, 3), torch.zeros(0, 3), **own)
    assert loss.item() == 0
    assert gradient.shape == (0, 3)


@both_dtypes
@every_variant
def test_extreme_scores_stay_finite(name, own, dtype):
    values = [-1e4, 0.0, 1e4]
    scores = torch.tensor(list(itertools.product(values, repeat=4)), dtype=dtype)
    targets = torch.tensor([[3.0, 2.0, 1.0, 0.0]]).expand(scores.shape)
    loss, gradient = value_and_gradient(name, scores, targets, reduction="none", **own)
    assert loss.isfinite().all()
    assert gradient.isfinite().all()
    worst = value_and_gradient(name, torch.tensor([values], dtype=dtype), targets[:1, :3], **own)
    assert worst[0] > 0


@every_variant
@few
@given(
    gaps=st.lists(st.floats(1, 3, width=16), min_size=1, max_size=7),
    targets=st.lists(st.integers(0, 6), min_size=8, max_size=8),
)
def test_teachers_order_beats_its_reverse(name, own, gaps, targets):
    steps = torch.tensor([0.0, *gaps], dtype=torch.float64).cumsum(0)[None]
    targets = torch.tensor([sorted(targets[: steps.shape[1]])])
    targets[0, -1] += 1  # at least one preference
    right = LOSSES[name](steps, targets, **own)
    wrong = LOSSES[name](steps.flip(1), targets, **own)
    assert right < wrong


@every_variant
def test_shift_of_all_scores_changes_only_pointwise_losses(name, own):
    shift = 5.0
    scores, targets, mask = random_lists(seed=1)
    loss, gradient = value_and_gradient(name, scores, targets, mask=mask, **own)
    moved, moved_gradient = value_and_gradient(name, scores + shift, targets, mask=mask, **own)
    pointwise = own.get("comparison", "pointwise" if name == "bce" else None) == "pointwise"
    if pointwise:
        assert abs(moved - loss) > 0.1
    else:
        torch.testing.assert_close(moved, loss)
        torch.testing.assert_close(moved_gradient, gradient)
        torch.testing.assert_close(gradient.sum(1), torch.zeros(6, dtype=torch.float64))


@every_variant
def test_gradient_agrees_with_differences(name, own):
    generator = torch.Generator().manual_seed(7)
    scores = torch.randn(3, 5, generator=generator, dtype=torch.float64, requires_grad=True)
    targets = torch.tensor([[4.0, 0, 2, 2, 1], [1, 0, 0, 9, 9], [3, 1, 2, 0, 0]])
    mask = torch.tensor([[True] * 5, [True, True, True, False, False], [True] * 5])

    def loss(x):
        return LOSSES[name](x, targets, mask=mask, reduction="none", **own)

    (gradient,) = torch.autograd.grad(loss(scores).sum(), scores)
    assert (gradient.abs().sum(1) > 1e-3).all()
    assert torch.autograd.gradcheck(loss, (scores,))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
@every_variant
def test_half_precision_is_raised_to_float32_and_float64_stays(name, own, dtype):
    scores, targets, mask = random_lists(seed=2)
    half = scores.to(dtype)
    loss, gradient = value_and_gradient(name, half, targets.to(dtype), mask=mask, **own)
    raised, wanted = value_and_gradient(name, half.float(), targets.float(), mask=mask, **own)
    assert loss.dtype == torch.float32
    assert gradient.dtype == dtype
    assert torch.equal(loss, raised)
    assert torch.equal(gradient, wanted.to(dtype))
    assert gradient.any()
    assert LOSSES[name](scores, targets, mask=mask, **own).dtype == torch.float64


@every_variant
def test_autocast_does_not_lower_the_precision(name, own):
    scores, targets, mask = random_lists(seed=3)
    plain = value_and_gradient(name, scores.float(), targets, mask=mask, **own)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        cast = value_and_gradient(name, scores.float(), targets, mask=mask, **own)
    assert torch.equal(plain[0], cast[0])
    assert torch.equal(plain[1], cast[1])


@every_variant
def test_inputs_are_not_modified_and_targets_get_no_gradient(name, own):
    scores, targets, mask = random_lists(seed=4)
    before = [x.clone() for x in (scores, targets, mask)]
    scores.requires_grad_(), targets.requires_grad_()
    LOSSES[name](scores, targets, mask=mask, **own).backward()
    assert scores.grad.any()
    assert targets.grad is None
    assert all(torch.equal(a, b) for a, b in zip(before, (scores, targets, mask), strict=True))


@every_variant
def test_integer_targets_are_the_same_as_floating_ones(name, own):
    scores, targets, mask = random_lists(seed=5)
    wanted = LOSSES[name](scores, targets, mask=mask, **own)
    assert LOSSES[name](scores, targets.long(), mask=mask, **own) == wanted


@every_variant
def test_nan_of_a_real_passage_is_not_hidden(name, own):
    """The loop stops at a non-finite loss; a loss that swallows NaN would train on garbage."""
    scores = torch.tensor([[1.0, math.nan, 0.5]])
    assert LOSSES[name](scores, torch.tensor([[2, 3, 1]]), **own).isnan()


@every_variant
def test_nothing_asks_the_device_for_a_value(name, own):
    """Meta tensors have no values: .item(), a branch on data or a CPU constant would raise."""
    scores = torch.zeros(2, 3, device="meta", requires_grad=True)
    targets, mask = torch.zeros(2, 3, device="meta"), torch.ones(2, 3, device="meta").bool()
    loss = LOSSES[name](scores, targets, mask=mask, **own)
    loss.backward()
    assert loss.device.type == "meta"
    assert scores.grad.shape == (2, 3)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@every_variant
def test_no_host_synchronisation_on_cuda(name, own):
    scores, targets, mask = random_lists(seed=6)
    wanted, wanted_gradient = value_and_gradient(name, scores, targets, mask=mask, **own)
    scores, targets, mask = scores.cuda(), targets.cuda(), mask.cuda()
    torch.cuda.set_sync_debug_mode("error")
    try:
        loss, gradient = value_and_gradient(name, scores, targets, mask=mask, **own)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    torch.testing.assert_close(loss.cpu(), wanted)
    torch.testing.assert_close(gradient.cpu(), wanted_gradient)


# --- targets ---------------------------------------------------------------------------------


def test_targets_turn_ranks_round():
    assert targets_from_ranks(torch.tensor([[2, 1, 4, 3]])).tolist() == [[3, 4, 1, 2]]


def test_targets_close_the_gaps_that_sampling_leaves():
    assert targets_from_ranks(torch.tensor([[56, 3, 17]])).tolist() == [[1, 3, 2]]


def test_targets_of_tied_ranks_are_averaged():
    assert targets_from_ranks(torch.tensor([[1, 2, 2, 4]])).tolist() == [[4, 2.5, 2.5, 1]]


@pytest.mark.parametrize("garbage", [0.0, -3.0, 1.5, math.nan, math.inf])
def test_targets_never_count_masked_passages(garbage):
    rank = torch.tensor([[3.0, garbage, 1.0, 2.0]])
    mask = torch.tensor([[True, False, True, True]])
    assert targets_from_ranks(rank, mask).tolist() == [[1, 0, 3, 2]]
    assert targets_from_ranks(rank, torch.zeros_like(mask)).tolist() == [[0, 0, 0, 0]]


def test_targets_are_floating_whatever_the_ranks():
    assert targets_from_ranks(torch.tensor([[1, 2]])).dtype == torch.float32
    assert targets_from_ranks(torch.tensor([[1, 2]], dtype=torch.float64)).dtype == torch.float64
    assert targets_from_ranks(torch.arange(1, 1001).half()[None]).dtype == torch.float32


def test_has_preference():
    targets = torch.tensor([[1, 2, 2], [2, 2, 2], [1, 2, 2], [1, 2, 2], [1, 2, 2]])
    mask = torch.tensor([[1, 1, 1], [1, 1, 1], [0, 1, 1], [0, 0, 1], [0, 0, 0]]).bool()
    assert has_preference(targets, mask).tolist() == [True, False, False, False, False]
    assert has_preference(targets).tolist() == [True, False, True, True, True]


# --- what single losses promise --------------------------------------------------------------


@pytest.mark.parametrize("positives", ["best", "all"])
def test_info_nce_of_relevance_labels_is_softmax_cross_entropy(positives):
    """Stage 1: one relevant passage and seven negatives."""
    scores = torch.randn(4, 8, generator=torch.Generator().manual_seed(0))
    relevant = torch.tensor([0, 3, 7, 3])
    targets = torch.nn.functional.one_hot(relevant, 8)
    wanted = torch.nn.functional.cross_entropy(scores, relevant)
    torch.testing.assert_close(LOSSES["info_nce"](scores, targets, positives=positives), wanted)


def test_info_nce_of_several_positives_is_the_mean_over_lists_with_one():
    scores = torch.tensor([[0.3, -1.0, 2.0, 0.7]])
    both = LOSSES["info_nce"](scores, torch.tensor([[2, 1, 0, 0]]), positives="all")
    first = LOSSES["info_nce"](scores[:, [0, 2, 3]], torch.tensor([[1, 0, 0]]))
    second = LOSSES["info_nce"](scores[:, [1, 2, 3]], torch.tensor([[1, 0, 0]]))
    torch.testing.assert_close(both, (first + second) / 2)
    tied = LOSSES["info_nce"](scores, torch.tensor([[1, 1, 0, 0]]))
    torch.testing.assert_close(both, tied)


def test_list_mle_of_one_positive_among_equals_is_info_nce():
    """Equal passages do not compete: their order in the tensor must not teach anything."""
    scores, targets = torch.tensor([[0.3, -1.0, 2.0, 0.7]]), torch.tensor([[0, 1, 0, 0]])
    wanted = LOSSES["info_nce"](scores, targets)
    torch.testing.assert_close(LOSSES["list_mle"](scores, targets), wanted)


def test_list_mle_does_not_depend_on_the_longest_list():
    """sentence-transformers#3827: padding leaked into the normaliser of shorter lists."""
    short, targets = torch.tensor([[-8.0, -9.0]]), torch.tensor([[2, 1]])
    wanted = softplus(-1)
    padded = torch.nn.functional.pad(short, (0, 50))
    goals = torch.nn.functional.pad(targets, (0, 50))
    for name in ("list_mle", "p_list_mle"):
        assert LOSSES[name](short, targets).item() == pytest.approx(wanted)
        loss = LOSSES[name](padded, goals, mask=goals > 0)
        assert loss.item() == pytest.approx(wanted)


def test_p_list_mle_gives_the_last_passage_no_weight_and_the_first_most():
    """sentence-transformers#4051: weights one place off, and tests that transcribed the bug."""
    scores, targets = torch.tensor([[0.0, 0.0, 0.0]]), torch.tensor([[3, 2, 1]])
    loss = LOSSES["p_list_mle"](scores, targets)
    assert loss.item() == pytest.approx(3 / 4 * math.log(3) + 1 / 4 * math.log(2))


@pytest.mark.parametrize(
    ("name", "own"), [("ranknet", {}), ("lambda_loss", {"weighting": "ranknet"})]
)
def test_a_badly_ordered_pair_keeps_its_full_gradient(name, own):
    """A sigmoid clamped before the logarithm gives 0 here, where the pair needs it most."""
    _, gradient = value_and_gradient(
        name, torch.tensor([[-1e4, 1e4]]), torch.tensor([[2, 1]]), **own
    )
    slope = 1 if name == "ranknet" else 1 / math.log(2)
    assert gradient.tolist() == [pytest.approx([-slope, slope])]


def test_ranknet_has_three_names():
    scores, targets, mask = random_lists(seed=8)
    wanted = LOSSES["ranknet"](scores, targets, mask=mask)
    pairwise = LOSSES["bce"](scores, targets, mask=mask, comparison="pairwise")
    uniform = lambda_loss(scores, targets, mask=mask, weighting="ranknet")
    torch.testing.assert_close(pairwise, wanted)
    torch.testing.assert_close(uniform * math.log(2), wanted)


@pytest.mark.parametrize("weighting", ["lambdarank", "ndcg1", "ndcg2", "ndcg2pp"])
def test_lambda_loss_does_not_trust_a_student_that_ties_everything(weighting):
    """Equal scores are ranked worst first, wherever the passages stand in the tensor."""
    for order in itertools.permutations([2, 1, 0]):
        loss, gradient = value_and_gradient(
            "lambda_loss", torch.zeros(1, 3), torch.tensor([order]), weighting=weighting
        )
        best, worst = order.index(2), order.index(0)
        assert loss > 0
        assert gradient[0, best] < 0
        assert gradient[0, best] < gradient[0, worst]


@pytest.mark.parametrize("name", ["approx_ndcg", "neural_ndcg"])
@pytest.mark.parametrize(
    ("targets", "gain", "gains"),
    [([3, 0, 1, 2], "exp2", [7, 0, 1, 3]), ([3, -2, 1, 2], "linear", [3, 0, 1, 2])],
)
def test_cold_ndcg_losses_are_one_minus_ndcg(name, targets, gain, gains):
    scores = torch.tensor([[1.0, 4.0, 2.0, 3.0]], dtype=torch.float64)  # ranks 4, 1, 3, 2
    discounts = [1 / math.log2(1 + k) for k in (1, 2, 3, 4)]
    by_score = [gains[1], gains[3], gains[2], gains[0]]
    dcg = sum(g * d for g, d in zip(by_score, discounts, strict=True))
    ideal = sum(g * d for g, d in zip(sorted(gains, reverse=True), discounts, strict=True))
    loss = LOSSES[name](scores, torch.tensor([targets]), gain=gain, temperature=1e-3)
    assert loss.item() == pytest.approx(1 - dcg / ideal)


def test_cold_mrr_loss_is_one_minus_reciprocal_rank():
    scores, targets = torch.tensor([[1.0, 4.0, 2.0, 3.0]]), torch.tensor([[0, 0, 1, 1]])
    loss = LOSSES["approx_mrr"](scores, targets, temperature=1e-3)
    assert loss.item() == pytest.approx(1 - 1 / 2)


@pytest.mark.parametrize("name", ["approx_ndcg", "neural_ndcg", "lambda_loss"])
def test_lists_without_a_gain_cost_nothing(name):
    """nDCG is not defined there; a preference between -1 and 0 earns none."""
    loss, gradient = value_and_gradient(
        name, torch.tensor([[1.0, 2.0]]), torch.tensor([[0.0, -1.0]])
    )
    assert loss == 0
    assert (gradient == 0).all()


@every_variant
def test_a_list_of_a_thousand_ranks_does_not_overflow(name, own):
    """2^1000 is no float32, so gains and weights must be normalised before they are formed."""
    if name == "neural_ndcg":
        own = {"sinkhorn_steps": 1, **own}
    targets = targets_from_ranks(torch.arange(1, 1001)[None])
    scores = torch.randn(1, 1000, generator=torch.Generator().manual_seed(0))
    loss, gradient = value_and_gradient(name, scores, targets, **own)
    assert loss.isfinite()
    assert loss > 0
    assert gradient.isfinite().all()
    assert gradient.any()


def test_sinkhorn_scaling_stops_a_passage_from_being_counted_twice():
    """Unscaled, the gain of the one good passage appears in all the places it nearly fits."""
    scores, targets = torch.tensor([[3.0, 0.1, 0.0, 0.05]]), torch.tensor([[0, 1, 0, 0]])
    losses = [
        LOSSES["neural_ndcg"](scores, targets, sinkhorn_steps=steps, temperature=0.3).item()
        for steps in (0, 10, 60)
    ]
    assert losses[1] == pytest.approx(losses[2], abs=1e-3)
    assert abs(losses[0] - losses[2]) > 0.01


# --- errors ----------------------------------------------------------------------------------

GOOD = torch.tensor([[1.0, 0.0]])


@every_loss
@pytest.mark.parametrize(
    ("scores", "targets", "mask", "error", "words"),
    [
        (GOOD[0], GOOD[0], None, ValueError, r"scores must be 2-D.*got shape \(2,\)"),
        (GOOD[None], GOOD[None], None, ValueError, r"scores must be 2-D.*got shape \(1, 1, 2\)"),
        (GOOD[:, :0], GOOD[:, :0], None, ValueError, r"n >= 1, got shape \(1, 0\)"),
        (GOOD, GOOD[:, :1], None, ValueError, r"targets must have the shape of scores, \(1, 2\)"),
        (GOOD, GOOD, GOOD[:, :1] > 0, ValueError, r"mask must have the shape of scores.*\(1, 1\)"),
        (GOOD, GOOD, GOOD, TypeError, "mask must be bool.*got torch.float32"),
        (GOOD.long(), GOOD, None, TypeError, "scores must be floating, got torch.int64"),
    ],
)
def test_wrong_tensors_are_refused(name, scores, targets, mask, error, words):
    with pytest.raises(error, match=words):
        LOSSES[name](scores, targets, mask=mask)


@pytest.mark.parametrize("function", [targets_from_ranks, has_preference])
def test_helpers_refuse_wrong_tensors(function):
    with pytest.raises(ValueError, match=r"must be 2-D.*got shape \(2,\)"):
        function(GOOD[0])
    with pytest.raises(ValueError, match=r"mask must have the shape of .*, \(1, 2\), got \(1, 1\)"):
        function(GOOD, GOOD[:, :1] > 0)
    with pytest.raises(TypeError, match="mask must be bool"):
        function(GOOD, GOOD)


@every_loss
def test_unknown_choices_are_refused_with_the_known_ones(name):
    own = {
        "reduction": "mean, none",
        "weighting": "ranknet, lambdarank" if name == "lambda_loss" else "uniform, inverse",
        "comparison": "pairwise|pointwise",
        "positives": "best, all",
        "gain": "exp2, linear",
        "discount": "log2, reciprocal, none",
        "distribution": "targets, reciprocal_rank",
    }
    taken = [p for p in inspect.signature(LOSSES[name]).parameters if p in own]
    assert "reduction" in taken
    for parameter in taken:
        with pytest.raises(ValueError, match=f"{parameter} must be one of .*({own[parameter]})"):
            LOSSES[name](GOOD, GOOD, **{parameter: "sum"})


@every_loss
def test_numbers_out_of_range_are_refused(name):
    bad = {"temperature": 0.0, "scale": -1.0, "margin": 0.0, "mu": -1.0, "sinkhorn_steps": -1}
    taken = [p for p in inspect.signature(LOSSES[name]).parameters if p in bad]
    for parameter in taken:
        with pytest.raises(ValueError, match=f"{parameter} must be .*, got {bad[parameter]}"):
            LOSSES[name](GOOD, GOOD, **{parameter: bad[parameter]})
        if parameter != "sinkhorn_steps":
            with pytest.raises(ValueError, match=parameter):
                LOSSES[name](GOOD, GOOD, **{parameter: math.nan})


def test_the_package_imports_torch_alone():
    imported = set()
    for file in Path(losses_module.__file__).parent.glob("*.py"):
        for node in ast.walk(ast.parse(file.read_text())):
            if isinstance(node, ast.Import):
                imported |= {alias.name for alias in node.names}
            elif isinstance(node, ast.ImportFrom):
                imported.add(node.module)
    others = {name.split(".")[0] for name in imported if not name.startswith("rdl_core.losses.")}
    assert others == {"__future__", "math", "collections", "torch"}
