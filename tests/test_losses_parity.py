"""Losses against sentence-transformers 6.2 and Lightning IR 0.0.6; skipped where they are missing.

Value and gradient to 1e-5 on full lists without ties, where the definitions agree; then the differences
that were found. The peers' models are replaced by given scores; their losses run as they are.
"""

import math
from types import SimpleNamespace

import pytest
import torch

from rdl_core.losses import LOSSES

torch.set_num_threads(1)
GENERATOR = torch.Generator().manual_seed(0)
SCORES = 2 * torch.randn(4, 7, generator=GENERATOR)
RANKED = torch.stack([torch.randperm(7, generator=GENERATOR) for _ in range(4)]).float()
RELEVANT = (RANKED == 6).float()  # one in each list, not always in the same place
ONE, TIED = torch.tensor([[2.0, 0.5, 1.0]]), torch.tensor([[1.0, 1.0, 0.0]])


def with_gradient(function, scores):
    scores = scores.clone().requires_grad_()
    value = function(scores)
    return value.detach(), *torch.autograd.grad(value, scores)


def st(name, targets, mask=None, scheme=None, **own):
    """A loss of sentence-transformers of a score matrix, where passage "7" gets the seventh score."""
    pytest.importorskip("sentence_transformers", minversion="6.2")
    from sentence_transformers import CrossEncoder
    from sentence_transformers.cross_encoder import losses

    class FixedScores(CrossEncoder):
        num_labels = 1
        device = torch.device("cpu")

        def __init__(self, scores):
            torch.nn.Module.__init__(self)
            self.flat_scores = scores.flatten()

        def preprocess(self, pairs, **_):
            return {"places": torch.tensor([int(passage) for _, passage in pairs])}

        def forward(self, features):
            return {"scores": self.flat_scores[features["places"]]}

    own = own if scheme is None else own | {"weighting_scheme": getattr(losses, scheme[0])(**scheme[1])}
    mask = torch.ones_like(targets, dtype=torch.bool) if mask is None else mask
    places = torch.arange(mask.numel()).view(mask.shape)
    passages = [[str(i) for i in row[real].tolist()] for row, real in zip(places, mask, strict=True)]
    labels = [row[real] for row, real in zip(targets, mask, strict=True)]
    inputs = [["query"] * len(mask), passages]
    return lambda scores: getattr(losses, name)(FixedScores(scores), **own)(inputs, labels)


def lir(name, targets, **own):
    """A loss of Lightning IR of a score matrix."""
    loss = getattr(pytest.importorskip("lightning_ir.loss", exc_type=ImportError), name)(**own)
    batch = SimpleNamespace(targets=targets)
    return lambda scores: loss.compute_loss(SimpleNamespace(scores=scores), batch)


TARGETS_ORDER = {"respect_input_order": False}
CASES = [
    ("ranknet", {}, st, "RankNetLoss", {"reduction_log": "natural"}),
    ("listnet", {}, st, "ListNetLoss", {}),
    ("list_mle", {}, st, "ListMLELoss", TARGETS_ORDER),
    ("p_list_mle", {}, st, "PListMLELoss", TARGETS_ORDER),
    ("adr_mse", {}, st, "ADRMSELoss", {}),
    ("adr_mse", {"temperature": 1 / 2}, st, "ADRMSELoss", {"alpha": 2.0}),
    ("lambda_loss", {"weighting": "lambdarank"}, st, "LambdaLoss",
     {"scheme": ("LambdaRankScheme", {})}),
    ("lambda_loss", {"weighting": "ndcg2"}, st, "LambdaLoss", {"scheme": ("NDCGLoss2Scheme", {})}),
    ("lambda_loss", {}, st, "LambdaLoss", {}),
    ("lambda_loss", {"scale": 0.5, "mu": 3.0}, st, "LambdaLoss",
     {"scheme": ("NDCGLoss2PPScheme", {"mu": 3.0}), "sigma": 0.5}),
    ("ranknet", {}, lir, "RankNet", {}),
    ("margin_mse", {"margin": 1.5}, lir, "ConstantMarginMSE", {"margin": 1.5}),
    ("margin_mse", {}, lir, "SupervisedMarginMSE", {}),
    ("kl_div", {}, lir, "KLDivergence", {}),
    ("info_nce", {}, lir, "InfoNCE", {}),
    ("adr_mse", {}, lir, "ApproxRankMSE", {"discount": "log2"}),
    ("adr_mse", {"discount": "reciprocal", "temperature": 2.0}, lir, "ApproxRankMSE",
     {"discount": "reciprocal", "temperature": 2.0}),
    ("adr_mse", {"discount": "none"}, lir, "ApproxRankMSE", {}),
    ("approx_ndcg", {}, lir, "ApproxNDCG", {}),
    ("approx_ndcg", {"gain": "linear", "temperature": 0.5}, lir, "ApproxNDCG",
     {"scale_gains": False, "temperature": 0.5}),
    ("approx_mrr", {}, lir, "ApproxMRR", {}),
]  # fmt: skip


@pytest.mark.parametrize(("name", "own", "peer", "theirs", "their_own"), CASES)
def test_same_as_the_peer(name, own, peer, theirs, their_own):
    targets = RELEVANT if name == "approx_mrr" else RANKED
    expected = with_gradient(peer(theirs, targets, **their_own), SCORES)
    assert expected[1].any()
    loss = with_gradient(lambda scores: LOSSES[name](scores, targets, **own), SCORES)
    torch.testing.assert_close(loss, expected, rtol=1e-5, atol=1e-5)


def test_differences_from_sentence_transformers():
    """Theirs counts the pairs of a passage with itself, weighs lists by passages, and orders ties."""
    theirs = with_gradient(st("LambdaLoss", RANKED, scheme=("NDCGLoss1Scheme", {})), SCORES)
    loss = with_gradient(lambda s: LOSSES["lambda_loss"](s, RANKED, weighting="ndcg1"), SCORES)
    torch.testing.assert_close(loss[1] * 7 * 6, theirs[1] * 7 * 7)
    mask = torch.arange(7) < torch.tensor([[7], [2], [7], [7]])
    losses = LOSSES["adr_mse"](SCORES, RANKED, mask=mask, reduction="none")
    theirs = st("ADRMSELoss", RANKED, mask)(SCORES)
    torch.testing.assert_close(theirs, (losses * mask.sum(1)).sum() / mask.sum())
    torch.testing.assert_close(LOSSES["adr_mse"](SCORES, RANKED, mask=mask), losses.mean())
    theirs, swapped = st("ListMLELoss", TIED, **TARGETS_ORDER), ONE[:, [1, 0, 2]]
    assert abs(theirs(ONE) - theirs(swapped)) > 0.1
    torch.testing.assert_close(LOSSES["list_mle"](ONE, TIED), LOSSES["list_mle"](swapped, TIED))


def test_differences_from_lightning_ir():
    """Theirs weighs lists by pairs (none: NaN), ranks ties apart, and takes any rank for relevant."""
    targets = torch.tensor([[3.0, 2.0, 1.0], [1.0, 0.0, 0.0]])
    losses = LOSSES["ranknet"](ONE.expand(2, 3), targets, reduction="none")
    theirs = lir("RankNet", targets)(ONE.expand(2, 3))
    torch.testing.assert_close(theirs, (3 * losses[0] + 2 * losses[1]) / 5)
    torch.testing.assert_close(LOSSES["ranknet"](ONE.expand(2, 3), targets), losses.mean())
    assert lir("RankNet", ONE * 0)(ONE).isnan()
    assert LOSSES["ranknet"](ONE, ONE * 0) == 0
    tied = torch.tensor([[0.0, 0.0, -50.0]])
    theirs = lir("ApproxRankMSE", TIED, discount="log2")(tied)
    assert theirs.item() == pytest.approx((0.5**2 + 0.5**2 / math.log2(3)) / 3)
    assert LOSSES["adr_mse"](tied, TIED).item() == pytest.approx(0, abs=1e-6)
    scores, targets = torch.tensor([[1.0, 3.0, 2.0]]), torch.tensor([[3.0, 2.0, 1.0]])
    assert lir("ApproxMRR", targets, temperature=0.01)(scores).item() == pytest.approx(0, abs=1e-6)
    assert LOSSES["approx_mrr"](scores, targets, temperature=0.01).item() == pytest.approx(1 - 1 / 3)
