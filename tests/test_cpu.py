"""Students laid out for a CPU: the scores of before, whatever shares a batch."""

import time
from concurrent.futures import ThreadPoolExecutor
from threading import get_ident

import pytest
import torch
from common import make_student, moved, weights
from test_cross_encoder import score

from rdl_core import cpu
from rdl_core.cpu import engine
from rdl_core.cross_encoder import CrossEncoder

CLOSE = {"float32": 1e-4, "bfloat16": 0.12, "int8": 0.25}  # of the scores' spread


def watch(monkeypatch, of_batch):
    """A set that gets what a function gives for each batch from now on."""
    seen, forward = set(), CrossEncoder.forward
    own = lambda self, packed: seen.add(of_batch(packed)) or forward(self, packed)  # noqa: E731
    monkeypatch.setattr(CrossEncoder, "forward", own)
    return seen


@pytest.mark.parametrize("precision", CLOSE)
def test_scores_are_those_of_the_student(kind, stores, precision):
    student = make_student(kind)
    with torch.no_grad():
        expected = score(student, stores, precision=precision.replace("int8", "float32"))
    scores = score(engine(student, precision), stores)
    assert expected.std() > 0.05
    torch.testing.assert_close(scores, expected, atol=CLOSE[precision] * expected.std().item(), rtol=0)
    assert precision != "int8" or not torch.equal(scores, expected)


def test_an_int8_score_does_not_depend_on_its_batch(kind, stores):
    """But for the last bits of attention, which now and then tip an activation that is rounded next."""
    scorer = engine(make_student(kind), "int8")
    alone, together = (score(scorer, stores, token_budget=n) for n in (1, 2000))
    away = (alone - together).abs()
    assert (away < 1e-5).float().mean() > 0.9
    assert away.max() < 0.02 * alone.std()


@torch.inference_mode()
def test_an_int8_layer_overwrites_only_what_gelu_made():
    student = make_student()
    both = student, engine(student, "int8").student
    own, layer = (x.model.base_model.encoder.layer[0] for x in both)
    state = torch.linspace(-2, 2, 72).view(3, 24)
    wide = layer.intermediate(state)
    assert torch.equal(state, torch.linspace(-2, 2, 72).view(3, 24))
    # What GELU makes of numbers below 0 is at most 0.17 below: that much every step reaches.
    wide[0] = torch.nn.functional.gelu(torch.full_like(wide[0], -0.75))
    expected = own.output.dense(wide)
    torch.testing.assert_close(layer.output.dense(wide), expected, atol=0.1 * expected.std(), rtol=0)


def test_each_core_takes_batches_of_its_own(kind, stores, monkeypatch):
    def thread(_):
        time.sleep(0.02)
        modes = torch.is_inference_mode_enabled(), torch.is_grad_enabled()
        return get_ident(), torch.get_num_threads(), *modes

    student, seen = make_student(kind), watch(monkeypatch, thread)
    expected = score(engine(student, "float32"), stores)
    assert {ident for ident, *_ in seen} == {get_ident()}  # one core needs no others
    seen.clear()
    cpu._pool.cache_clear()
    torch.set_num_threads(2)
    try:
        scores = score(engine(student, "float32"), stores, token_budget=100)
        with ThreadPoolExecutor(1) as another:
            assert another.submit(torch.get_num_threads).result() == 2
    finally:
        torch.set_num_threads(1)
    assert len(seen) == 2
    assert {tuple(rest) for _, *rest in seen} == {(1, True, False)}
    assert get_ident() not in {ident for ident, *_ in seen}
    torch.testing.assert_close(scores, expected, atol=1e-5, rtol=0)


@torch.inference_mode()
def test_projections_of_two_threads_do_not_mix():
    model = engine(make_student(), "float32").student.model
    attention = model.base_model.encoder.layer[0].attention.self
    parts, results = (attention.query, attention.key, attention.value), []
    with ThreadPoolExecutor(1) as first, ThreadPoolExecutor(1) as second:
        work = [(first, torch.full((2, 24), 0.5)), (second, torch.full((2, 24), 2.0))]
        for part in parts:
            results += [pool.submit(part, x).result() for pool, x in work]  # in turn
    for i, (_, x) in enumerate(work):
        for n, part in enumerate(parts):
            torch.testing.assert_close(results[2 * n + i], part(x))


def test_kernels_are_made_for_few_shapes(kind, stores, monkeypatch):
    student, sizes = make_student(kind), watch(monkeypatch, lambda packed: len(packed.input_ids) % 64)
    filled = score(engine(student, "float32"), stores, token_budget=300)
    assert sizes == {0}
    unfilled = score(engine(student, "float32", fill=1), stores, token_budget=300)
    torch.testing.assert_close(filled, unfilled)
    assert len(sizes) > 1


def test_the_student_stays_as_it_is_and_goes_on_learning(stores):
    student = make_student().train()
    before, copied = weights(student), engine(student, "int8").student
    assert (student.training, copied.training) == (True, False)
    assert not moved(before, weights(student))
    assert copied.model.get_input_embeddings().weight is student.model.get_input_embeddings().weight
    score(student, stores).sum().backward()
    assert student.model.base_model.encoder.layer[0].output.dense.weight.grad.abs().sum() > 0


@pytest.mark.parametrize("lacking", ["oneDNN", "an operator"])
def test_where_pytorch_lacks_the_kernels(monkeypatch, stores, lacking):
    if lacking == "oneDNN":
        monkeypatch.setattr(torch.backends.mkldnn, "is_available", lambda: False)
    else:  # they are the compiler's own, and may have another name one day
        monkeypatch.setattr(torch.ops, "onednn", object())
    scorer = engine(make_student(dropout=0.5).train(), "float32")
    assert torch.equal(score(scorer, stores), score(scorer, stores))
    with pytest.raises(ValueError, match="int8 needs a CPU and PyTorch with oneDNN, got 'cpu'"):
        engine(make_student(), "int8")
