"""Losses against peers, where the definitions agree and where they part; skipped without them.

Compared: sentence-transformers 6.2 and lightning-ir 0.0.6, value and gradient to 1e-5, on random
full lists without ties. The rest of the file states and tests each difference that was found.
The peers' models are replaced by given scores; their losses run as they are.
"""

import math
from types import SimpleNamespace

import pytest
import torch

from rdl_core.losses import LOSSES

torch.set_num_threads(1)


def untied_lists(batch=4, n=7, seed=0):
    generator = torch.Generator().manual_seed(seed)
    scores = 2 * torch.randn(batch, n, generator=generator)
    targets = torch.stack([torch.randperm(n, generator=generator) for _ in range(batch)])
    return scores, targets.float()


def relevance_lists(batch=4, n=7):
    """One relevant passage in each list, not always in the same place."""
    scores, targets = untied_lists(batch, n)
    return scores, (targets == n - 1).float()


def with_gradient(function, scores):
    scores = scores.clone().requires_grad_()
    value = function(scores)
    value.backward()
    return value.detach(), scores.grad


def assert_same(ours, theirs, scores):
    both = zip(with_gradient(ours, scores), with_gradient(theirs, scores), strict=True)
    for found, wanted in both:
        assert wanted.any()
        torch.testing.assert_close(found, wanted, rtol=1e-5, atol=1e-5)


def ours(name, targets, **own):
    return lambda scores: LOSSES[name](scores, targets, **own)


# --- sentence-transformers -------------------------------------------------------------------


def st():
    pytest.importorskip("sentence_transformers", minversion="6.2")
    from sentence_transformers.cross_encoder import losses

    return losses


def fixed_scores(scores):
    """A CrossEncoder whose passage "7" gets the seventh of the given scores."""
    from sentence_transformers import CrossEncoder

    class FixedScores(CrossEncoder):
        num_labels = 1
        device = torch.device("cpu")

        def __init__(self):
            torch.nn.Module.__init__(self)

        def preprocess(self, pairs, **_):
            return {"places": torch.tensor([int(passage) for _, passage in pairs])}

        def forward(self, features):
            return {"scores": scores.flatten()[features["places"]]}

    return FixedScores()


def st_listwise(build, targets, mask=None):
    """Their loss over lists as a function of a score matrix; ``build(model)`` makes the loss."""
    mask = torch.ones_like(targets, dtype=torch.bool) if mask is None else mask

    def loss(scores):
        places = torch.arange(mask.numel()).view(mask.shape)
        passages = [[str(i) for i in row[m].tolist()] for row, m in zip(places, mask, strict=True)]
        labels = [row[m] for row, m in zip(targets, mask, strict=True)]
        return build(fixed_scores(scores))([["query"] * len(passages), passages], labels)

    return loss


ST_CASES = {
    "ranknet": ("ranknet", {}, lambda m: st().RankNetLoss(m, reduction_log="natural")),
    "listnet": ("listnet", {}, lambda m: st().ListNetLoss(m)),
    "list_mle": ("list_mle", {}, lambda m: st().ListMLELoss(m, respect_input_order=False)),
    "p_list_mle": ("p_list_mle", {}, lambda m: st().PListMLELoss(m, respect_input_order=False)),
    "adr_mse": ("adr_mse", {}, lambda m: st().ADRMSELoss(m)),
    "adr_mse-alpha": ("adr_mse", {"temperature": 1 / 2}, lambda m: st().ADRMSELoss(m, alpha=2.0)),
    "lambda-none": (
        "lambda_loss",
        {"weighting": "ranknet"},
        lambda m: st().LambdaLoss(m, weighting_scheme=None),
    ),
    "lambda-lambdarank": (
        "lambda_loss",
        {"weighting": "lambdarank"},
        lambda m: st().LambdaLoss(m, weighting_scheme=st().LambdaRankScheme()),
    ),
    "lambda-ndcg2": (
        "lambda_loss",
        {"weighting": "ndcg2"},
        lambda m: st().LambdaLoss(m, weighting_scheme=st().NDCGLoss2Scheme()),
    ),
    "lambda-ndcg2pp": ("lambda_loss", {}, lambda m: st().LambdaLoss(m)),
    "lambda-scale-mu": (
        "lambda_loss",
        {"scale": 0.5, "mu": 3.0},
        lambda m: st().LambdaLoss(m, sigma=0.5, weighting_scheme=st().NDCGLoss2PPScheme(mu=3.0)),
    ),
}


@pytest.mark.parametrize("case", ST_CASES)
def test_same_as_sentence_transformers(case):
    name, own, build = ST_CASES[case]
    st()
    scores, targets = untied_lists()
    assert_same(ours(name, targets, **own), st_listwise(build, targets), scores)


def test_bce_is_theirs_on_relevance_labels():
    losses = st()
    scores, targets = relevance_lists()

    def theirs(s):
        passages = [str(i) for i in range(s.numel())]
        inputs = [["query"] * s.numel(), passages]
        return losses.BinaryCrossEntropyLoss(fixed_scores(s))(inputs, targets.flatten())

    assert_same(ours("bce", targets), theirs, scores)


def st_margin_mse(targets):
    """Theirs wants the positive in the first column."""
    losses = st()

    def loss(scores):
        columns = torch.arange(scores.numel()).view(scores.shape).T.tolist()
        inputs = [["query"] * len(scores), *([str(i) for i in column] for column in columns)]
        labels = [row[0] - row[1:] for row in targets]
        return losses.MarginMSELoss(fixed_scores(scores))(inputs, labels)

    return loss


def test_margin_mse_is_theirs_where_the_negatives_tie():
    scores, _ = untied_lists()
    targets = torch.tensor([[3.0] + [0.5] * 6] * 4)
    assert_same(ours("margin_mse", targets), st_margin_mse(targets), scores)


def test_margin_mse_differs_in_pairs_of_negatives_which_only_ours_compares():
    scores, targets = torch.tensor([[2.0, 1.0, -1.0]]), torch.tensor([[3.0, 1.0, 0.5]])
    theirs = st_margin_mse(targets)(scores).item()
    assert theirs == pytest.approx(((1 - 2) ** 2 + (3 - 2.5) ** 2) / 2)
    pair_of_negatives = (2 - 0.5) ** 2
    loss = LOSSES["margin_mse"](scores, targets).item()
    assert loss == pytest.approx((2 * theirs + pair_of_negatives) / 3)


def test_ndcg1_differs_in_the_pairs_of_a_passage_with_itself_which_only_theirs_counts():
    """Such a pair costs its weight, a constant: gradients differ by the divisor alone."""
    losses = st()
    n = 7
    scores, targets = untied_lists(n=n)
    theirs = st_listwise(
        lambda m: losses.LambdaLoss(m, weighting_scheme=losses.NDCGLoss1Scheme()), targets
    )
    their_value, their_gradient = with_gradient(theirs, scores)
    value, gradient = with_gradient(ours("lambda_loss", targets, weighting="ndcg1"), scores)
    torch.testing.assert_close(gradient * n * (n - 1), their_gradient * n * n)
    hard_ndcg = 1 - LOSSES["approx_ndcg"](scores, targets, temperature=1e-4)
    torch.testing.assert_close(value * n * (n - 1) + hard_ndcg, their_value * n * n)


def test_lists_of_unequal_length_weigh_the_same_here_but_by_passages_there():
    losses = st()
    scores, targets = untied_lists(batch=2)
    mask = torch.ones(2, 7, dtype=torch.bool)
    mask[1, 2:] = False
    each = LOSSES["adr_mse"](scores, targets, mask=mask, reduction="none")
    theirs = st_listwise(losses.ADRMSELoss, targets, mask)(scores)
    torch.testing.assert_close(theirs, (7 * each[0] + 2 * each[1]) / 9)
    torch.testing.assert_close(LOSSES["adr_mse"](scores, targets, mask=mask), each.mean())


def test_a_list_without_a_preference_costs_nothing_here():
    losses = st()
    scores, targets = torch.tensor([[2.0, 0.5]]), torch.tensor([[1.0, 1.0]])
    assert st_listwise(losses.ListNetLoss, targets)(scores) > math.log(2)
    assert LOSSES["listnet"](scores, targets) == 0


def test_tied_targets_do_not_depend_on_their_order_here():
    losses = st()
    scores, targets = torch.tensor([[2.0, 0.5, 1.0]]), torch.tensor([[1.0, 1.0, 0.0]])
    swapped = scores[:, [1, 0, 2]]
    theirs = st_listwise(lambda m: losses.ListMLELoss(m, respect_input_order=False), targets)
    assert abs(theirs(scores) - theirs(swapped)) > 0.1
    loss = ours("list_mle", targets)
    torch.testing.assert_close(loss(scores), loss(swapped))


# --- lightning-ir ----------------------------------------------------------------------------


def lir():
    return pytest.importorskip("lightning_ir.loss", exc_type=ImportError)


def lir_loss(loss, targets):
    return lambda scores: loss.compute_loss(
        SimpleNamespace(scores=scores), SimpleNamespace(targets=targets)
    )


LIR_CASES = {
    "ranknet": ("ranknet", {}, lambda: lir().RankNet()),
    "margin": ("margin_mse", {"margin": 1.5}, lambda: lir().ConstantMarginMSE(1.5)),
    "margin-teacher": ("margin_mse", {}, lambda: lir().SupervisedMarginMSE()),
    "kl_div": ("kl_div", {}, lambda: lir().KLDivergence()),
    "info_nce": ("info_nce", {}, lambda: lir().InfoNCE()),
    "adr_mse": ("adr_mse", {}, lambda: lir().ApproxRankMSE(discount="log2")),
    "adr_mse-reciprocal": (
        "adr_mse",
        {"discount": "reciprocal", "temperature": 2.0},
        lambda: lir().ApproxRankMSE(temperature=2.0, discount="reciprocal"),
    ),
    "adr_mse-none": ("adr_mse", {"discount": "none"}, lambda: lir().ApproxRankMSE()),
    "approx_ndcg": ("approx_ndcg", {}, lambda: lir().ApproxNDCG()),
    "approx_ndcg-linear": (
        "approx_ndcg",
        {"gain": "linear", "temperature": 0.5},
        lambda: lir().ApproxNDCG(temperature=0.5, scale_gains=False),
    ),
}


@pytest.mark.parametrize("case", LIR_CASES)
def test_same_as_lightning_ir(case):
    name, own, build = LIR_CASES[case]
    scores, targets = untied_lists()
    assert_same(ours(name, targets, **own), lir_loss(build(), targets), scores)


def test_same_as_lightning_ir_on_relevance_labels():
    scores, targets = relevance_lists()
    assert_same(ours("approx_mrr", targets), lir_loss(lir().ApproxMRR(), targets), scores)


def test_mrr_of_ranks_means_the_first_here_and_any_passage_there():
    scores, targets = torch.tensor([[1.0, 3.0, 2.0]]), torch.tensor([[3.0, 2.0, 1.0]])
    theirs = lir_loss(lir().ApproxMRR(temperature=0.01), targets)(scores)
    assert theirs.item() == pytest.approx(0, abs=1e-6)
    loss = LOSSES["approx_mrr"](scores, targets, temperature=0.01)
    assert loss.item() == pytest.approx(1 - 1 / 3)


def test_a_batch_without_a_pair_is_nan_there():
    scores, targets = torch.tensor([[1.0, 3.0]]), torch.tensor([[1.0, 1.0]])
    assert lir_loss(lir().RankNet(), targets)(scores).isnan()
    assert LOSSES["ranknet"](scores, targets) == 0


def test_ranknet_weighs_lists_the_same_here_but_by_pairs_there():
    scores = torch.tensor([[1.0, 3.0, 2.0], [1.0, 3.0, 2.0]])
    targets = torch.tensor([[3.0, 2.0, 1.0], [1.0, 0.0, 0.0]])
    each = LOSSES["ranknet"](scores, targets, reduction="none")
    theirs = lir_loss(lir().RankNet(), targets)(scores)
    torch.testing.assert_close(theirs, (3 * each[0] + 2 * each[1]) / 5)
    torch.testing.assert_close(LOSSES["ranknet"](scores, targets), each.mean())


def test_tied_targets_share_a_rank_here_and_get_two_there():
    """Two passages tied in target and score: ADR-MSE is 0 here, and teaches an order there."""
    scores, targets = torch.tensor([[0.0, 0.0, -50.0]]), torch.tensor([[1.0, 1.0, 0.0]])
    theirs = lir_loss(lir().ApproxRankMSE(discount="log2"), targets)(scores)
    assert theirs.item() == pytest.approx((0.5**2 + 0.5**2 / math.log2(3)) / 3)
    assert LOSSES["adr_mse"](scores, targets).item() == pytest.approx(0, abs=1e-6)
