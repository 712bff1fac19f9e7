"""The loop: it learns, every step is its own, and a killed run ends like one that was not.

Runs that are to be killed are processes of their own, forked from a server that has imported all
they need, so that each starts in milliseconds.

Mutations seen to fail: a batch scored twice under other dropout; gradients of the wrong scores; held
activations of a whole step; padding scored; unranked candidates as the best; equal lists in every
step; one order for all passes; a step without passages an error; the worst dev state kept; the best
one not restored; patience off by one; student left in evaluation mode after a dev measure; the log
not cut; an infinite gradient accepted; state not saved where a loss is not finite; stage 1 trained
again after a kill in stage 2.
"""

import json
import logging
import math
import multiprocessing
import os
import random
import signal
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pandas as pd
import pytest
import torch
from conftest import WORDS, make_student, make_tokenizer, moved, read_log, weights
from safetensors.torch import load_file

from rdl_core import checkpoint
from rdl_core import distill as distill_module
from rdl_core.config import StageConfig
from rdl_core.cross_encoder import CrossEncoder
from rdl_core.devices import PRECISIONS
from rdl_core.distill import Training, distill, draw, targets, two_stages
from rdl_core.lists import RankedLists
from rdl_core.losses import LOSSES
from rdl_core.samplers import SAMPLERS
from rdl_core.tokens import TokenCorpus, TokenStore

N_QUERIES, DEPTH = 6, 6
CONFIG = StageConfig(
    sampler="random", loss="ranknet", targets="teacher", list_size=4, queries_per_step=2, steps=12,
    learning_rate=0.003, warmup_steps=3, schedule="linear", token_budget=150, checkpoint_every=3,
)
SCORED = replace(CONFIG, loss="margin_mse", targets="scores", score_scale=0.5)
JUDGED = replace(CONFIG, sampler="single_relevant", loss="info_nce", targets="judgments")


@pytest.fixture(scope="module")
def server():
    """Starts processes that have imported all they need."""
    processes = multiprocessing.get_context("forkserver")
    processes.set_forkserver_preload(["test_distill"])
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", os.pathsep.join(sys.path))  # the server looks nowhere else
        processes.Process(target=os.getpid).start()
    return processes


def make_lists():
    """Passage ``j`` of a query repeats a telling word ``DEPTH - j`` times; more is better."""
    draw = random.Random(0)
    queries = [f"w{i + 20} w{i + 30}" for i in range(N_QUERIES)]
    passages, rows = [], []
    for query in range(N_QUERIES):
        ranks = torch.randperm(DEPTH, generator=torch.Generator().manual_seed(query)).tolist()
        for j in range(DEPTH):
            words = ["w0"] * (DEPTH - j) + draw.choices(WORDS[1:15], k=2 + j)
            passages.append(" ".join(draw.sample(words, len(words))))
        rows += [(query, query * DEPTH + r, n + 1, r + 1, -2.0 * r, 3 * (r == 0)) for n, r in enumerate(ranks)]
    columns = ["query_id", "doc_id", "rank", "teacher_rank", "teacher_score", "relevance"]
    frame = pd.DataFrame(rows, columns=columns).astype({"query_id": "str", "doc_id": "str"})
    ids = [pd.Index([str(i) for i in range(len(texts))]) for texts in (queries, passages)]
    stores = [TokenStore.of_texts(texts, make_tokenizer("bert")) for texts in (queries, passages)]
    corpus = TokenCorpus(ids[0], stores[0], ids[1], stores[1])
    return RankedLists.from_frame(frame, corpus)


def train(folder, config=CONFIG, *, seed=0, student=None, lists=None, dev=None):
    """Train a small student; its dropout draws random numbers, so that resuming is put to work."""
    student, lists = student or make_student(dropout=0.1), lists or make_lists()
    return distill(student, lists, config, seed=seed, folder=folder, dev=dev)


def score_lists(student, lists):
    """Scores of all candidates, ``[n, depth]``."""
    rows = lists.query_rows[:, None].expand_as(lists.passage_rows).flatten()
    pairs = (lists.queries, lists.passages, rows, lists.passage_rows.flatten())
    return student.score(*pairs, token_budget=9999).view(lists.mask.shape)


# --- it learns ----------------------------------------------------------------------------------


@pytest.mark.parametrize("config", [CONFIG, SCORED, JUDGED], ids=["teacher", "scores", "judgments"])
@pytest.mark.parametrize("precision", PRECISIONS)
def test_loop_learns_the_order(tmp_path, config, precision):
    config = replace(config, steps=60, dropout=0.0, precision=precision)
    lists, before = make_lists(), weights(make_student())
    student = train(tmp_path, config, student=make_student(), lists=lists)
    losses = [line["loss"] for line in read_log(tmp_path)]
    assert sum(losses[-10:]) < 0.3 * sum(losses[:10])
    with torch.no_grad():
        order = score_lists(student, lists).argsort(1, descending=True)
    ranks = lists.teacher_rank.gather(1, order)
    assert (ranks[:, 0] == 1).all()
    if config.targets != "judgments":
        assert (ranks == torch.arange(1, DEPTH + 1)).float().mean() > 0.9
    still = before.keys() - moved(before, weights(student))
    assert all("embeddings" in name or "key.bias" in name for name in still)
    assert not student.training


@pytest.mark.parametrize("name", LOSSES)
def test_every_loss_trains(tmp_path, name):
    student = make_student(dropout=0.1)
    before = weights(student)
    train(tmp_path, replace(CONFIG, loss=name, steps=2), student=student)
    assert all(line["gradient_norm"] > 0 for line in read_log(tmp_path))
    assert len(moved(before, weights(student))) > 20


@pytest.mark.parametrize("name", sorted(SAMPLERS))
def test_every_sampler_trains(tmp_path, name):
    options = {"first": 1, "last": 5} if name == "hard" else {}
    train(tmp_path, replace(CONFIG, sampler=name, sampler_options=options, steps=2))
    assert all(line["gradient_norm"] > 0 for line in read_log(tmp_path))


def test_frozen_word_embeddings_stay(tmp_path):
    before, name = weights(make_student()), "bert.embeddings.word_embeddings.weight"
    after = {
        trains: weights(train(tmp_path / str(trains), replace(CONFIG, train_word_embeddings=trains, steps=3)))
        for trains in (False, True)
    }
    assert name not in moved(before, after[False])
    assert len(moved(before, after[False])) > 20
    assert name in moved(before, after[True])


@pytest.mark.parametrize("kind", ["bert", "electra"])
def test_head_has_its_own_rate(tmp_path, kind):
    student = make_student(kind)
    head, before = student.head_names(), weights(student)
    assert head == {n for n in before if "classifier" in n or "pooler" in n} != set()
    train(tmp_path, replace(CONFIG, head_rate=0, steps=3), student=student)
    assert not moved(before, weights(student)) & head
    assert len(moved(before, weights(student))) > 20


# --- one step -----------------------------------------------------------------------------------


def test_logged_step_is_the_formulas(tmp_path):
    """Loss, gradient norm and new weights of a first step, once more by hand."""
    config = replace(
        CONFIG, sampler="top", list_size=DEPTH, queries_per_step=N_QUERIES, steps=1, dropout=0.0,
        warmup_steps=0, schedule="constant", max_gradient_norm=0.5, token_budget=9999,
    )
    lists, twin = make_lists(), make_student()
    student = train(tmp_path, config, student=make_student(), lists=lists)
    scores = score_lists(twin, lists)
    better = lists.teacher_rank[:, :, None] < lists.teacher_rank[:, None, :]
    loss = torch.nn.functional.softplus(scores[:, None, :] - scores[:, :, None])[better].mean()
    optimiser = torch.optim.AdamW(twin.parameters(), lr=config.learning_rate)
    loss.backward()
    norm = torch.nn.utils.clip_grad_norm_(twin.parameters(), 0.5)
    optimiser.step()
    (line,) = read_log(tmp_path)
    assert line["step"] == 0
    assert line["loss"] == pytest.approx(loss.item(), rel=1e-5)
    assert line["gradient_norm"] == pytest.approx(norm.item(), rel=1e-4)
    assert norm > 0.5  # so that it was clipped
    for name, weight in weights(student).items():
        # Without a gradient, and Adam makes any rounding error a whole step:
        if "key.bias" not in name and name != "classifier.bias":
            torch.testing.assert_close(weight, weights(twin)[name], atol=1e-4, rtol=0, msg=name)


@pytest.mark.parametrize(
    ("schedule", "expected"),
    [
        ("constant", [1 / 2, 1, 1, 1, 1, 1]),
        ("linear", [1 / 2, 1, *(1 - 0.9 * i / 4 for i in range(4))]),
        ("cosine", [1 / 2, 1, *(0.1 + 0.9 * (1 + math.cos(math.pi * i / 4)) / 2 for i in range(4))]),
    ],
)
def test_learning_rate_warms_up_and_follows_its_schedule(tmp_path, schedule, expected):
    train(tmp_path, replace(CONFIG, steps=6, warmup_steps=2, schedule=schedule))
    rates = [line["learning_rate"] / CONFIG.learning_rate for line in read_log(tmp_path)]
    assert rates == pytest.approx(expected)


@pytest.mark.parametrize("queries_per_step", [1, 4, 5])
def test_every_query_comes_once_before_any_comes_again(queries_per_step):
    lists, config = make_lists(), replace(CONFIG, queries_per_step=queries_per_step, sampler="top")
    batches = [draw(lists, config, seed=3, step=step)[0] for step in range(3 * N_QUERIES)]
    rows = torch.cat([batch.query_rows for batch in batches]).tolist()
    epochs = [rows[i : i + N_QUERIES] for i in range(0, 3 * N_QUERIES, N_QUERIES)]
    assert all(sorted(epoch) == list(range(N_QUERIES)) for epoch in epochs)
    assert len(set(map(tuple, epochs))) == 3  # each in another order


def test_steps_and_seeds_draw_other_lists():
    """PyTorch's CPU generator reads the low 32 bits of a seed; ours once stood above them."""
    lists, config = make_lists(), replace(CONFIG, queries_per_step=N_QUERIES)
    drawn = {
        tuple(draw(lists, config, seed=seed, step=step)[1].indices.flatten().tolist())
        for seed in range(3)
        for step in range(3)
    }
    assert len(drawn) == 9


def test_candidates_without_a_teacher_rank_are_not_the_best():
    """Rank 0 means unranked; it once became the best rank of all, and the highest target."""
    lists = make_lists()
    config = replace(CONFIG, sampler="top", list_size=DEPTH, queries_per_step=N_QUERIES)
    partly = replace(lists, teacher_rank=lists.teacher_rank.where(lists.teacher_rank < 4, 0))
    batch, sampled = draw(partly, config, seed=0, step=0)
    wanted, ranked = targets(batch, sampled, config), batch.teacher_rank > 0
    assert wanted[~ranked].max() < wanted[ranked].min()


def test_targets_may_be_the_teachers_scores_at_a_scale():
    """Of the passages drawn, in the order drawn."""
    batch, sampled = draw(make_lists(), SCORED, seed=0, step=0)
    ranks = batch.teacher_rank.gather(1, sampled.indices)
    assert len(ranks.unique()) > 3
    assert torch.equal(targets(batch, sampled, SCORED), 1.0 - ranks)  # half of -2 (rank - 1)


# --- bounded memory -----------------------------------------------------------------------------


def gradients(config, *, student=None, seed=3, lists=None):
    """Gradient of one step, and its loss."""
    lists, student = lists or make_lists(), student or make_student(dropout=0.3)
    training = Training(student, config, Path("nowhere"))
    loss, _ = training.step(*draw(lists, config, seed=seed, step=0), seed=seed)
    return loss, {name: weight.grad for name, weight in student.model.named_parameters()}


def same(some, others, *, atol):
    """Equal, and not because there is nothing; biases of keys have no gradient but rounding."""
    assert sum(others[name].abs().max() > 10 * atol for name in others) > 20
    for name in others:
        torch.testing.assert_close(some[name], others[name], atol=atol, rtol=1e-4, msg=name)


@pytest.mark.parametrize("loss", ["ranknet", "adr_mse", "list_mle", "info_nce"])
@pytest.mark.parametrize("precision", PRECISIONS)
def test_scoring_lists_twice_gives_the_gradient_of_scoring_them_once(loss, precision):
    """With dropout, which must be the same both times a batch is scored."""
    config = replace(
        CONFIG, loss=loss, queries_per_step=4, token_budget=60, held_tokens=10**6, precision=precision,
        dropout=0.3,
    )
    once, twice = gradients(config), gradients(replace(config, held_tokens=0))
    assert once[0] == pytest.approx(twice[0], rel=1e-6)
    same(twice[1], once[1], atol=1e-6)


def test_batches_of_a_step_do_not_change_its_gradient():
    config = replace(CONFIG, queries_per_step=5, held_tokens=0, dropout=0.0)
    (loss, wanted), *others = (
        gradients(replace(config, token_budget=budget)) for budget in (10**6, 60, 1)
    )
    for other_loss, other in others:
        assert other_loss == pytest.approx(loss, rel=1e-5)
        same(other, wanted, atol=1e-5)


def test_padding_is_not_scored(monkeypatch):
    lists = make_lists()
    mask = torch.arange(DEPTH) < torch.tensor([[1], [3], [DEPTH], [2], [4], [5]])
    config = replace(CONFIG, sampler="top", list_size=DEPTH, queries_per_step=N_QUERIES)
    scored, real = [], CrossEncoder.score_batch

    def score(self, queries, passages, query_rows, passage_rows, **own):
        scored.extend(zip(query_rows.tolist(), passage_rows.tolist(), strict=True))
        return real(self, queries, passages, query_rows, passage_rows, **own)

    monkeypatch.setattr(CrossEncoder, "score_batch", score)
    gradients(config, lists=replace(lists, mask=mask))
    wanted = [(q, lists.passage_rows[q, j].item()) for q, j in mask.nonzero().tolist()]
    assert sorted(scored) == sorted(wanted)


def test_step_without_a_single_passage_changes_nothing(tmp_path):
    lists = make_lists()
    lists = replace(lists, mask=lists.query_rows[:, None].expand_as(lists.mask) == 0)
    config = replace(CONFIG, queries_per_step=1, steps=6, sampler="single_relevant")
    before = weights(make_student())
    after = train(tmp_path, config, student=make_student(), lists=lists)
    assert sum(line["loss"] == 0 for line in read_log(tmp_path)) == 5
    assert moved(before, weights(after))


def _status(key):
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(key))


def _measure_peak(file, size, n_lists):
    """Memory that one step adds, in kB: some 3,000 tokens at a time, whatever the lists."""
    torch.set_num_threads(1)
    torch.manual_seed(0)
    words = TokenStore.from_lists(torch.randint(4, 44, (1000, 24)).tolist())
    ranks = torch.stack([torch.randperm(size) + 1 for _ in range(n_lists)])
    lists = RankedLists(
        queries=words, passages=words, query_rows=torch.arange(n_lists), passage_rows=ranks - 1,
        teacher_rank=ranks, teacher_score=-ranks.float(), relevance=ranks * 0, mask=ranks > 0,
    )
    config = replace(
        CONFIG, sampler="top", list_size=size, queries_per_step=n_lists, token_budget=3000,
        held_tokens=3000,
    )
    student = make_student(passage_tokens=24, hidden_size=192, intermediate_size=768, layers=3)
    before = _status("VmRSS")
    Path("/proc/self/clear_refs").write_text("5")  # the peak counts anew
    gradients(config, student=student, lists=lists)
    file.write_text(str(_status("VmHWM") - before))


@pytest.mark.skipif(not os.path.exists("/proc/self/clear_refs"), reason="peaks are read from /proc")
def test_memory_does_not_grow_with_the_list(server, tmp_path):
    """Lists of 10, 100 and 1000 passages. The allocator adds some 15 % by chance, never less; held
    activations of the longest list would add 150 %.
    """
    peaks = {}
    for size, n_lists in 3 * ((10, 40), (100, 4), (1000, 1)):
        process = server.Process(target=_measure_peak, args=(tmp_path / "peak", size, n_lists))
        process.start()
        process.join(120)
        peak = int((tmp_path / "peak").read_text())
        peaks[size] = min(peak, peaks.get(size, peak))
    assert min(peaks.values()) > 50_000  # activations, not noise
    assert max(peaks.values()) < 1.3 * min(peaks.values()), peaks


# --- the dev measure ----------------------------------------------------------------------------


class Dev:
    """A measure that takes given values, and keeps the weights that it was shown."""

    def __init__(self, *values):
        self.values, self.shown = iter(values), []

    def __call__(self, student):
        assert not student.training
        self.shown.append(weights(student))
        return next(self.values)


def test_best_state_by_the_dev_measure_is_restored_whole(tmp_path):
    """A peer's reload once restored only a part of it (sentence-transformers#3360)."""
    dev = Dev(0.1, 0.7, 0.4, 0.6)
    student = train(tmp_path, replace(CONFIG, dev_every=3), dev=dev)
    assert not moved(dev.shown[1], weights(student))
    assert len(moved(dev.shown[3], weights(student))) > 20
    saved = CrossEncoder.from_pretrained(tmp_path / "model", query_tokens=5, passage_tokens=20)
    assert not moved(dev.shown[1], weights(saved))
    measured = {line["step"]: line["dev"] for line in read_log(tmp_path) if "dev" in line}
    assert measured == {2: 0.1, 5: 0.7, 8: 0.4, 11: 0.6}
    assert not list(tmp_path.glob("*.safetensors"))


def test_training_stops_when_the_dev_measure_grows_no_more(tmp_path):
    dev = Dev(0.5, 0.4, 0.5, 0.9)
    student = train(tmp_path, replace(CONFIG, dev_every=2, patience=2), dev=dev)
    assert [line["step"] for line in read_log(tmp_path)] == list(range(6))
    assert not moved(dev.shown[0], weights(student))


def test_resumed_training_remembers_the_best_state(tmp_path, monkeypatch):
    config, values = replace(CONFIG, dev_every=2, patience=3), (0.5, 0.9, 0.1, 0.2, 0.3, 1.0)
    whole = train(tmp_path / "whole", config, dev=Dev(*values))
    real, calls = Training.step, iter(range(99))

    def dies(self, *lists, seed):
        if next(calls) == 7:
            raise KeyboardInterrupt
        return real(self, *lists, seed=seed)

    monkeypatch.setattr(Training, "step", dies)
    with pytest.raises(KeyboardInterrupt):
        train(tmp_path / "cut", config, dev=Dev(*values))
    monkeypatch.undo()
    resumed = train(tmp_path / "cut", config, dev=Dev(*values[3:]))  # after step 6, three measures
    assert not moved(weights(whole), weights(resumed))
    assert read_log(tmp_path / "whole") == read_log(tmp_path / "cut")


# --- killed and resumed -------------------------------------------------------------------------


def _dies(function, calls):
    """The function, but the process is killed at its n-th call."""
    left = iter(range(calls))

    def dying(*args, **kwargs):
        if next(left, None) is None:
            os.kill(os.getpid(), signal.SIGKILL)
        return function(*args, **kwargs)

    return dying


def _die_at(place, calls):
    """Have this process killed in some place of the loop, at its n-th pass."""
    torch.set_num_threads(1)
    if place == "loss":
        LOSSES[CONFIG.loss] = _dies(LOSSES[CONFIG.loss], calls)
    elif place == "os.replace":
        os.replace = _dies(os.replace, calls)
    elif place == "save_file":
        checkpoint.save_file = _dies(checkpoint.save_file, calls)
    elif place == "os.truncate":
        os.truncate = _dies(os.truncate, calls)


def _train_and_die(folder, place, calls):
    _die_at(place, calls)
    train(folder)


def _two_stages_and_die(folder, place, calls):
    _die_at(place, calls)
    two_stages(make_student(), make_lists(), make_lists(), folder=folder, contrastive=JUDGED, listwise=CONFIG)


@pytest.fixture(scope="module")
def run(server):
    """Run a training in a process of its own; gives the exit code."""

    def run(folder, place=None, calls=0, target=_train_and_die):
        process = server.Process(target=target, args=(folder, place, calls))
        process.start()
        process.join(60)
        return process.exitcode

    return run


def files(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()}


KILLS = [
    pytest.param([("loss", 7)], id="once"),
    pytest.param([("loss", 1)], id="before any checkpoint"),
    pytest.param([("loss", 5), ("save_file", 0), ("loss", 4)], id="thrice"),
    pytest.param([("os.replace", 0), ("os.replace", 1)], id="while a checkpoint is put in place"),
    pytest.param([("loss", 8), ("os.truncate", 0)], id="while the log is cut to the checkpoint"),
]


@pytest.fixture(scope="module")
def uninterrupted(run, tmp_path_factory):
    folder = tmp_path_factory.mktemp("uninterrupted")
    assert run(folder) == 0
    return folder


@pytest.mark.parametrize("kills", KILLS)
def test_killed_runs_end_byte_for_byte_like_one_that_was_not(run, uninterrupted, tmp_path, kills):
    for place, calls in kills:
        assert run(tmp_path, place, calls) == -signal.SIGKILL
    assert run(tmp_path) == 0
    assert files(tmp_path / "model") == files(uninterrupted / "model")
    assert read_log(tmp_path) == read_log(uninterrupted)
    assert [line["step"] for line in read_log(tmp_path)] == list(range(CONFIG.steps))
    assert not [*tmp_path.glob("*.partial"), *tmp_path.glob("checkpoint*")]


def test_two_stages_resume_in_the_stage_that_was_killed(run, tmp_path):
    """A kill in stage 2: stage 1 is not trained again, and both end as without the kill."""
    assert run(tmp_path / "whole", target=_two_stages_and_die) == 0
    assert run(tmp_path / "cut", "loss", 7, target=_two_stages_and_die) == -signal.SIGKILL
    first = tmp_path / "cut" / "contrastive"
    before = (first / "manifest.json").read_bytes()
    assert json.loads(before)["stage"]["loss"] == "info_nce"
    assert run(tmp_path / "cut", target=_two_stages_and_die) == 0
    assert (first / "manifest.json").read_bytes() == before
    for stage in ("contrastive", "listwise"):
        logs = [read_log(tmp_path / which / stage) for which in ("whole", "cut")]
        assert logs[0] == logs[1]
        models = [files(tmp_path / which / stage / "model") for which in ("whole", "cut")]
        assert models[0] == models[1]


def test_resuming_goes_on_from_the_checkpoint(run, tmp_path, caplog):
    run(tmp_path, "loss", 7)
    lines = (tmp_path / "log.jsonl").read_text().splitlines()
    with caplog.at_level(logging.INFO):
        train(tmp_path)
    assert "resuming training after step 6" in caplog.text
    assert (tmp_path / "log.jsonl").read_text().splitlines()[:6] == lines[:6]


def test_damaged_checkpoint_is_refused_by_name(run, tmp_path):
    run(tmp_path, "loss", 7)
    file = tmp_path / "checkpoint.safetensors"
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(content)
    with pytest.raises(ValueError, match="checkpoint.safetensors is no whole checkpoint .*delete it"):
        train(tmp_path)


def test_same_seed_same_weights_other_seed_others(tmp_path):
    first, again, other = (weights(train(tmp_path / str(i), seed=s)) for i, s in enumerate((5, 5, 6)))
    assert not moved(first, again)
    assert len(moved(first, other)) > 20


def test_callers_random_numbers_are_left_alone(tmp_path):
    student = make_student(dropout=0.1)
    torch.manual_seed(0)
    expected = torch.rand(3)
    torch.manual_seed(0)
    train(tmp_path, replace(CONFIG, steps=2), student=student)
    assert torch.equal(torch.rand(3), expected)


# --- errors -------------------------------------------------------------------------------------


def test_loss_that_is_not_finite_stops_and_keeps_the_checkpoint(tmp_path, monkeypatch):
    real, calls = LOSSES["ranknet"], iter(range(99))

    def overflows(scores, *args, **kwargs):
        return real(scores, *args, **kwargs) * (float("nan") if next(calls) == 7 else 1)

    monkeypatch.setitem(LOSSES, "ranknet", overflows)
    with pytest.raises(FloatingPointError, match="loss nan, .* at step 7 .*query rows") as error:
        train(tmp_path)
    assert str(tmp_path / "nonfinite.safetensors") in str(error.value)
    saved = load_file(tmp_path / "nonfinite.safetensors")
    assert saved["passage_rows"].shape == (CONFIG.queries_per_step, CONFIG.list_size)
    assert str(saved["query_rows"][:, 0].tolist()) in str(error.value)
    assert saved["weight.classifier.weight"].isfinite().all()
    assert [line["step"] for line in read_log(tmp_path)] == list(range(7))
    monkeypatch.undo()
    train(tmp_path)  # goes on from step 6
    assert [line["step"] for line in read_log(tmp_path)] == list(range(12))


def test_gradient_that_is_not_finite_never_reaches_a_checkpoint(tmp_path):
    """A finite loss may have an infinite gradient; the weights it gives must not be saved."""
    student = make_student()
    student.model.classifier.weight.register_hook(lambda gradient: gradient * float("inf"))
    with pytest.raises(FloatingPointError, match="step 0"):
        train(tmp_path, replace(CONFIG, checkpoint_every=1), student=student)
    assert not (tmp_path / "checkpoint.safetensors").exists()


@pytest.mark.parametrize(
    ("config", "table", "nothing", "words"),
    [
        (CONFIG, "teacher_rank", 0, "targets: the lists have no teacher_rank"),
        (SCORED, "teacher_score", math.nan, "targets: 36 of 36 passages have no finite teacher_score"),
        (JUDGED, "relevance", 0, "no passage is judged 1 or more, .* targets 'judgments'"),
        (replace(CONFIG, sampler="single_relevant"), "relevance", -1, "sampler 'single_relevant'"),
        (replace(JUDGED, positive_grade=4), None, None, "judged 4 or more"),
        (replace(CONFIG, dev_every=2), None, None, "^dev_every: expected a dev measure if and only if"),
    ],
)
def test_lists_without_what_the_stage_needs(tmp_path, config, table, nothing, words):
    lists = make_lists()
    if table:
        lists = replace(lists, **{table: torch.full_like(getattr(lists, table), nothing)})
    with pytest.raises(ValueError, match=words):
        train(tmp_path / "run", config, lists=lists)
    assert not (tmp_path / "run").exists()


def test_more_processes_than_lists_are_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(distill_module, "processes", lambda: SimpleNamespace(num_processes=3))
    with pytest.raises(ValueError, match="queries_per_step: expected a list for each of 3 processes"):
        train(tmp_path / "run")
    assert not (tmp_path / "run").exists()
