"""The loop: it learns, every step is its own, and a killed run ends like one that was not.

Runs that are to be killed are processes of their own, forked from a server that has imported all
they need, so that each starts in milliseconds.

Mutations seen to fail: a batch scored twice under other dropout; gradients of the wrong scores; a
share's loss as a mean over the share; activations of a whole step held; padding scored; unranked
candidates as the best; equal lists in every step; one order for all passes; a step without passages
an error; the worst dev state kept; the best one not restored; patience off by one; student left in
evaluation mode after a look; the log not cut; an infinite gradient accepted; state not saved where
a loss is not finite; gradients of processes not added; another cosine;
scores unscaled, of the passages first in a list, or missing where any are given.
"""

import json
import logging
import math
import multiprocessing
import os
import random
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from conftest import WORDS, make_student, make_tokenizer
from safetensors.torch import load_file
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from rdl_core import checkpoint
from rdl_core import distill as distill_module
from rdl_core.cross_encoder import CrossEncoder
from rdl_core.lists import RankedLists
from rdl_core.tokens import TokenStore
from rdl_core.devices import PRECISIONS, processes  # noqa: F401 - scripts here import it
from rdl_core.distill import distill
from rdl_core.losses import LOSSES
from rdl_core.samplers import SAMPLERS
from rdl_core.stage import StageConfig
from rdl_core.step import Step, draw, targets

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


def make_task():
    """Passage ``j`` of a query repeats a telling word ``DEPTH - j`` times; more is better."""
    draw = random.Random(0)
    queries = [f"w{i + 20} w{i + 30}" for i in range(N_QUERIES)]
    passages = []
    for _ in queries:
        for j in range(DEPTH):
            words = ["w0"] * (DEPTH - j) + draw.choices(WORDS[1:15], k=2 + j)
            passages.append(" ".join(draw.sample(words, len(words))))
    ranks = torch.stack([torch.randperm(DEPTH, generator=_seeded(i)) for i in range(N_QUERIES)])
    first = torch.arange(N_QUERIES)[:, None] * DEPTH
    lists = RankedLists(
        query_rows=torch.arange(N_QUERIES), passage_rows=first + ranks, teacher_rank=ranks + 1,
        teacher_score=-2.0 * ranks,
        relevance=(ranks == 0) * 3, mask=torch.ones_like(ranks, dtype=torch.bool),
    )
    stores = (TokenStore.of_texts(texts, make_tokenizer("bert")) for texts in (queries, passages))
    return lists, *stores


def _seeded(seed):
    return torch.Generator().manual_seed(seed)


def train(folder, config=CONFIG, *, seed=0, student=None, task=None):
    """Train a small student; its dropout draws random numbers, so that resuming is put to work."""
    return distill(
        student or make_student(dropout=0.1), *(task or make_task()), config, seed=seed,
        folder=folder,
    )


def read_log(folder):
    return [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]


def weights(student):
    return {name: weight.detach().clone() for name, weight in student.model.named_parameters()}


def moved(before, after):
    return {name for name, weight in after.items() if not torch.equal(weight, before[name])}


# --- it learns ----------------------------------------------------------------------------------


@pytest.mark.parametrize("config", [CONFIG, SCORED, JUDGED], ids=["teacher", "scores", "judgments"])
@pytest.mark.parametrize("precision", PRECISIONS)
def test_loop_learns_the_order(tmp_path, config, precision):
    config = replace(config, steps=60, dropout=0.0, precision=precision)
    before = weights(make_student())
    lists, queries, passages = task = make_task()
    student = train(tmp_path, config, student=make_student(), task=task)
    losses = [line["loss"] for line in read_log(tmp_path)]
    assert sum(losses[-10:]) < 0.3 * sum(losses[:10])
    with torch.no_grad():
        rows = lists.query_rows[:, None].expand_as(lists.passage_rows)
        scores = student.score(
            queries, passages, rows.flatten(), lists.passage_rows.flatten(), token_budget=500
        ).view_as(rows)
    best = scores.argmax(1)
    assert (lists.teacher_rank.gather(1, best[:, None]) == 1).all()
    if config.targets != "judgments":
        order = lists.teacher_rank.gather(1, scores.argsort(1, descending=True))
        assert (order == torch.arange(1, DEPTH + 1)).float().mean() > 0.9
    still = {name for name in before if name not in moved(before, weights(student))}
    assert all("embeddings" in name or "key.bias" in name for name in still)
    assert not student.training


@pytest.mark.parametrize("name", LOSSES)
def test_every_loss_trains(tmp_path, name):
    config = replace(CONFIG, loss=name, steps=2)
    before = weights(make_student())
    train(tmp_path, config)
    log = read_log(tmp_path)
    assert all(line["gradient_norm"] > 0 for line in log)
    assert len(moved(before, weights(train(tmp_path, config)))) > 20


@pytest.mark.parametrize("name", sorted(SAMPLERS.keys() - {"in_corpus"}))
def test_every_sampler_trains(tmp_path, name):
    options = {
        "hard": {"first": 1, "last": 5}, "mixed": {"shares": {"top": 0.5, "single_relevant": 0.5}}
    }
    train(tmp_path, replace(CONFIG, sampler=name, sampler_options=options.get(name, {}), steps=2))
    assert all(line["gradient_norm"] > 0 for line in read_log(tmp_path))


def test_frozen_word_embeddings_stay(tmp_path):
    before = weights(make_student())
    config = replace(CONFIG, train_word_embeddings=False, steps=3)
    after = weights(train(tmp_path, config))
    name = "bert.embeddings.word_embeddings.weight"
    assert name not in moved(before, after)
    assert len(moved(before, after)) > 20
    assert name in moved(before, weights(train(tmp_path, replace(config, train_word_embeddings=True))))


@pytest.mark.parametrize("kind", ["bert", "electra"])
def test_head_has_its_own_rate(tmp_path, kind):
    student = make_student(kind)
    head = student.head_names()
    assert head == {n for n in weights(student) if "classifier" in n or "pooler" in n} != set()
    before = weights(student)
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
    lists, queries, passages = make_task()
    student, twin = train(tmp_path, config, student=make_student()), make_student()
    rows = lists.query_rows[:, None].expand_as(lists.passage_rows)
    scores = twin.score(
        queries, passages, rows.flatten(), lists.passage_rows.flatten(), token_budget=9999
    ).view_as(rows)
    better = lists.teacher_rank[:, :, None] < lists.teacher_rank[:, None, :]
    loss = torch.nn.functional.softplus(scores[:, None, :] - scores[:, :, None])[better].mean()
    optimiser = torch.optim.AdamW(twin.parameters(), lr=config.learning_rate, weight_decay=0.01)
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


def test_learning_rate_warms_up_and_decays(tmp_path):
    train(tmp_path, replace(CONFIG, steps=8, warmup_steps=4))
    rates = [line["learning_rate"] / CONFIG.learning_rate for line in read_log(tmp_path)]
    expected = [1 / 4, 2 / 4, 3 / 4, 1, *(1 - 0.9 * i / 4 for i in range(4))]
    assert rates == pytest.approx(expected)
    train(tmp_path, replace(CONFIG, steps=3, warmup_steps=0, schedule="constant"))
    assert {line["learning_rate"] for line in read_log(tmp_path)} == {CONFIG.learning_rate}


def test_learning_rate_on_a_cosine(tmp_path):
    train(tmp_path, replace(CONFIG, steps=6, warmup_steps=2, schedule="cosine", final_rate=0.2))
    rates = [line["learning_rate"] / CONFIG.learning_rate for line in read_log(tmp_path)]
    cosine = [(1 + math.cos(math.pi * i / 4)) / 2 for i in range(4)]
    assert rates == pytest.approx([1 / 2, 1, *(0.2 + 0.8 * share for share in cosine)])


def test_tensorboard_shows_what_the_log_says(tmp_path):
    train(tmp_path, replace(CONFIG, steps=3))
    shown = EventAccumulator(str(tmp_path / "tensorboard")).Reload()
    log = read_log(tmp_path)
    for name in ("loss", "learning_rate", "gradient_norm"):
        events = shown.Scalars(name)
        assert [event.step for event in events] == [0, 1, 2]
        assert [event.value for event in events] == pytest.approx([x[name] for x in log], rel=1e-6)


@pytest.mark.parametrize("queries_per_step", [1, 4, 5])
def test_every_query_comes_once_before_any_comes_again(queries_per_step):
    lists = make_task()[0]
    config = replace(CONFIG, queries_per_step=queries_per_step, sampler="top")
    steps = range(3 * N_QUERIES)
    drawn = [draw(lists, config, seed=3, step=step)[0] for step in steps]
    rows = torch.cat([batch.query_rows for batch in drawn]).tolist()
    epochs = [rows[i : i + N_QUERIES] for i in range(0, 3 * N_QUERIES, N_QUERIES)]
    assert all(sorted(epoch) == list(range(N_QUERIES)) for epoch in epochs)
    assert len(set(map(tuple, epochs))) == 3  # each in another order


def test_steps_and_seeds_draw_other_lists():
    """PyTorch's CPU generator reads the low 32 bits of a seed; ours once stood above them."""
    lists = make_task()[0]
    drawn = {
        tuple(draw(lists, config, seed=seed, step=step)[1].indices.flatten().tolist())
        for config in [replace(CONFIG, queries_per_step=N_QUERIES)]
        for seed in range(3)
        for step in range(3)
    }
    assert len(drawn) == 9


def test_candidates_without_a_teacher_rank_are_not_the_best():
    """Rank 0 means unranked; it once became the best rank of all, and the highest target."""
    lists, *_ = make_task()
    config = replace(CONFIG, sampler="top", list_size=DEPTH, queries_per_step=N_QUERIES)
    partly = replace(lists, teacher_rank=lists.teacher_rank.where(lists.teacher_rank < 4, 0))
    batch, sampled = draw(partly, config, seed=0, step=0)
    wanted = targets(batch, sampled, config)
    ranked = batch.teacher_rank > 0
    assert wanted[~ranked].max() < wanted[ranked].min()


def test_targets_may_be_the_teachers_scores_at_a_scale():
    """Of the passages drawn, in the order drawn."""
    lists, *_ = make_task()
    batch, sampled = draw(lists, SCORED, seed=0, step=0)
    ranks = batch.teacher_rank.gather(1, sampled.indices)
    assert len(ranks.unique()) > 3
    assert torch.equal(targets(batch, sampled, SCORED), 1.0 - ranks)  # half of -2 (rank - 1)


def test_one_passage_without_a_score_is_too_few(tmp_path):
    lists, *stores = make_task()
    lists.teacher_score[2, 3] = math.nan
    with pytest.raises(ValueError, match="finite teacher_score .* but 1 of 36 have none"):
        train(tmp_path / "run", SCORED, task=(lists, *stores))


# --- bounded memory -----------------------------------------------------------------------------


def gradients(config, *, student=None, seed=3, task=None, shares=1):
    """Gradient of one step, summed over shares of its lists, and the sum of their losses."""
    lists, queries, passages = task or make_task()
    student = (student or make_student(dropout=0.3)).train()
    drawn = draw(lists, config, seed=seed, step=0)
    loss = sum(
        Step.share(
            *drawn, slice(i, None, shares), config, student=student, queries=queries,
            passages=passages, seed=seed,
        ).backward()
        for i in range(shares)
    )
    return loss.item(), {name: weight.grad for name, weight in student.model.named_parameters()}


def same(found, wanted, *, atol):
    """Equal, and not because there is nothing; biases of keys have no gradient but rounding."""
    assert sum(wanted[name].abs().max() > 10 * atol for name in wanted) > 20
    for name in wanted:
        torch.testing.assert_close(found[name], wanted[name], atol=atol, rtol=1e-4, msg=name)


@pytest.mark.parametrize("loss", ["ranknet", "adr_mse", "list_mle", "info_nce"])
@pytest.mark.parametrize("precision", PRECISIONS)
def test_scoring_lists_twice_gives_the_gradient_of_scoring_them_once(loss, precision):
    """With dropout, which must be the same both times a batch is scored."""
    config = replace(
        CONFIG, loss=loss, queries_per_step=4, token_budget=60, held_tokens=10**6,
        precision=precision,
    )
    once, twice = gradients(config), gradients(replace(config, held_tokens=0))
    assert once[0] == pytest.approx(twice[0], rel=1e-6)
    same(twice[1], once[1], atol=1e-6)


def test_batches_of_a_step_do_not_change_its_gradient():
    config = replace(CONFIG, queries_per_step=5, held_tokens=0)
    (loss, wanted), *others = (
        gradients(replace(config, token_budget=budget), student=make_student())
        for budget in (10**6, 60, 1)
    )
    for other_loss, found in others:
        assert other_loss == pytest.approx(loss, rel=1e-5)
        same(found, wanted, atol=1e-5)


def test_shares_add_up_to_the_step():
    config = replace(CONFIG, queries_per_step=5)
    whole = gradients(config, student=make_student())
    parts = gradients(config, student=make_student(), shares=3)
    assert parts[0] == pytest.approx(whole[0], rel=1e-5)
    same(parts[1], whole[1], atol=1e-5)


def test_padding_is_not_scored(monkeypatch):
    lists, *stores = make_task()
    mask = torch.arange(DEPTH) < torch.tensor([[1], [3], [DEPTH], [2], [4], [5]])
    config = replace(CONFIG, sampler="top", list_size=DEPTH, queries_per_step=N_QUERIES)
    scored, real = [], CrossEncoder.score

    def score(self, queries, passages, query_rows, passage_rows, **own):
        scored.extend(zip(query_rows.tolist(), passage_rows.tolist(), strict=True))
        return real(self, queries, passages, query_rows, passage_rows, **own)

    monkeypatch.setattr(CrossEncoder, "score", score)
    gradients(config, task=(replace(lists, mask=mask), *stores))
    wanted = [(q, lists.passage_rows[q, j].item()) for q, j in mask.nonzero().tolist()]
    assert sorted(scored) == sorted(wanted)


def test_step_without_a_single_passage_changes_nothing(tmp_path):
    lists, *stores = make_task()
    lists = replace(lists, mask=lists.query_rows[:, None].expand_as(lists.mask) == 0)
    before, config = weights(make_student()), replace(CONFIG, queries_per_step=1, steps=6)
    first = replace(config, sampler="single_relevant")
    after = train(tmp_path, first, student=make_student(), task=(lists, *stores))
    losses = [line["loss"] for line in read_log(tmp_path)]
    assert sum(loss == 0 for loss in losses) == 5
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
        query_rows=torch.arange(n_lists), passage_rows=ranks - 1, teacher_rank=ranks,
        teacher_score=-ranks.float(),
        relevance=ranks * 0, mask=ranks > 0,
    )
    config = replace(
        CONFIG, sampler="top", list_size=size, queries_per_step=n_lists, token_budget=3000,
        held_tokens=3000,
    )
    student = make_student(passage_tokens=24, hidden_size=192, intermediate_size=768, layers=3)
    before = _status("VmRSS")
    Path("/proc/self/clear_refs").write_text("5")  # the peak counts anew
    gradients(config, student=student, task=(lists, words, words))
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
    student = distill(
        make_student(), *make_task(), replace(CONFIG, dev_every=3), seed=0, folder=tmp_path, dev=dev
    )
    assert not moved(dev.shown[1], weights(student))
    assert len(moved(dev.shown[3], weights(student))) > 20
    saved = CrossEncoder.from_pretrained(tmp_path / "model", query_tokens=5, passage_tokens=20)
    assert not moved(dev.shown[1], weights(saved))
    assert {line["step"]: line["dev"] for line in read_log(tmp_path) if "dev" in line} == {
        2: 0.1, 5: 0.7, 8: 0.4, 11: 0.6
    }  # fmt: skip
    assert not list(tmp_path.glob("*.safetensors"))


def test_training_stops_when_the_dev_measure_grows_no_more(tmp_path):
    dev = Dev(0.5, 0.4, 0.5, 0.9)
    config = replace(CONFIG, dev_every=2, patience=2)
    student = distill(make_student(), *make_task(), config, seed=0, folder=tmp_path, dev=dev)
    assert [line["step"] for line in read_log(tmp_path)] == list(range(6))
    assert not moved(dev.shown[0], weights(student))


def test_resumed_training_remembers_the_best_state(tmp_path, monkeypatch):
    config = replace(CONFIG, dev_every=2, patience=3)
    values = (0.5, 0.9, 0.1, 0.2, 0.3, 1.0)
    whole = distill(
        make_student(), *make_task(), config, seed=0, folder=tmp_path / "whole", dev=Dev(*values)
    )
    real, calls = Step.backward, iter(range(99))

    def dies(self):
        if next(calls) == 7:
            raise KeyboardInterrupt
        return real(self)

    monkeypatch.setattr(Step, "backward", dies)
    with pytest.raises(KeyboardInterrupt):
        distill(
            make_student(), *make_task(), config, seed=0, folder=tmp_path / "cut", dev=Dev(*values)
        )
    monkeypatch.undo()
    resumed = distill(  # after step 6, that is with three looks behind it
        make_student(), *make_task(), config, seed=0, folder=tmp_path / "cut", dev=Dev(*values[3:])
    )
    assert not moved(weights(whole), weights(resumed))
    assert read_log(tmp_path / "whole") == read_log(tmp_path / "cut")


@pytest.mark.parametrize(("dev_every", "dev"), [(2, None), (0, lambda student: 0.0)])
def test_dev_measure_and_when_to_look_belong_together(tmp_path, dev_every, dev):
    with pytest.raises(ValueError, match="^dev_every: expected a dev measure if and only if"):
        distill(
            make_student(), *make_task(), replace(CONFIG, dev_every=dev_every), seed=0,
            folder=tmp_path / "run", dev=dev,
        )
    assert not (tmp_path / "run").exists()


# --- several processes --------------------------------------------------------------------------


def _train_on(folder, config):
    torch.set_num_threads(1)
    distill(
        make_student(), *make_task(), config, seed=0, folder=folder,
        dev=(lambda student: 0.5) if config.dev_every else None,
    )


def launch(folder, config, n):
    """Run a training in processes that talk over loopback (gloo), as torchrun starts them."""
    script = folder.with_suffix(".py")
    script.write_text(
        f"""
import pathlib, sys
sys.path.insert(0, {os.path.dirname(__file__)!r})
from test_distill import CONFIG, processes, _train_on, replace
_train_on(pathlib.Path({str(folder)!r}), replace(CONFIG, **{config!r}))
print(f"[{{processes().num_processes}}]", end="")
"""
    )
    command = [
        sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", str(n),
        "--standalone", str(script),
    ]
    environment = os.environ | {"ACCELERATE_USE_CPU": "true", "OMP_NUM_THREADS": "1"}
    return subprocess.run(command, capture_output=True, text=True, timeout=120, env=environment)


def test_two_processes_train_like_one(tmp_path):
    """Loss curve to 1e-5 and weights alike; the log has one line a step, not one a process."""
    config = {"dropout": 0.0, "queries_per_step": 3, "steps": 8, "dev_every": 4}
    done = launch(tmp_path / "two", config, 2)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("[2]") == 2
    _train_on(tmp_path / "one", replace(CONFIG, **config))
    one, two = read_log(tmp_path / "one"), read_log(tmp_path / "two")
    assert [line["step"] for line in two] == list(range(8))
    for key in ("loss", "gradient_norm"):
        assert [x[key] for x in two] == pytest.approx([x[key] for x in one], rel=1e-5)
    a, b = (
        weights(CrossEncoder.from_pretrained(f / "model", query_tokens=5, passage_tokens=20))
        for f in (tmp_path / "one", tmp_path / "two")
    )
    for name in a:
        if "key.bias" not in name and name != "classifier.bias":
            torch.testing.assert_close(b[name], a[name], atol=1e-4, rtol=0, msg=name)


def test_more_processes_than_lists_are_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(distill_module, "processes", lambda: SimpleNamespace(num_processes=3))
    with pytest.raises(ValueError, match="queries_per_step: .* one list for each of 3 processes"):
        train(tmp_path / "run")
    assert not (tmp_path / "run").exists()


# --- killed and resumed -------------------------------------------------------------------------


def _dies(function, calls):
    """The function, but the process is killed at its n-th call."""
    left = iter(range(calls))

    def dying(*args, **kwargs):
        if next(left, None) is None:
            os.kill(os.getpid(), signal.SIGKILL)
        return function(*args, **kwargs)

    return dying


def _dies_where_a_file_is_emptied(event, args):
    """Kill the process right after it opened the log to write it anew."""
    if event == "open" and str(args[0]).endswith("log.jsonl") and "w" in str(args[1]):
        os.truncate(args[0], 0)
        os.kill(os.getpid(), signal.SIGKILL)


def _train_and_die(folder, place, calls):
    """Train in this process, and die in some place of the loop at its n-th pass."""
    torch.set_num_threads(1)
    if place == "os":
        os.replace = _dies(os.replace, calls)
    elif place == "loss":
        LOSSES[CONFIG.loss] = _dies(LOSSES[CONFIG.loss], calls)
    elif place == "log":
        sys.addaudithook(_dies_where_a_file_is_emptied)
    elif place == "save_file":
        checkpoint.save_file = _dies(checkpoint.save_file, calls)
    elif place == "_check_finite":
        training = distill_module.Training
        training._check_finite = _dies(training._check_finite, calls)
    train(folder)


@pytest.fixture(scope="module")
def run(server):
    """Run the training in a process of its own; gives the exit code."""

    def run(folder, place=None, calls=0):
        process = server.Process(target=_train_and_die, args=(folder, place, calls))
        process.start()
        process.join(60)
        return process.exitcode

    return run


def files(folder):
    return {path.name: path.read_bytes() for path in (folder / "model").iterdir()}


KILLS = [
    pytest.param([("loss", 7)], id="once"),
    pytest.param([("loss", 1)], id="before any checkpoint"),
    pytest.param([("loss", 5), ("save_file", 0), ("loss", 4)], id="thrice"),
    pytest.param([("os", 0), ("os", 1)], id="while a checkpoint is put in place"),
    pytest.param([("_check_finite", 11), ("_check_finite", 1)], id="in the last steps"),
    pytest.param([("loss", step) for step in random.Random(0).choices(range(6), k=3)], id="at random"),
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
    assert files(tmp_path) == files(uninterrupted)
    assert read_log(tmp_path) == read_log(uninterrupted)
    assert [line["step"] for line in read_log(tmp_path)] == list(range(CONFIG.steps))
    assert not list(tmp_path.glob("*.partial"))
    assert not (tmp_path / "checkpoint.safetensors").exists()


def test_log_survives_a_kill_while_it_is_cut_to_the_checkpoint(run, uninterrupted, tmp_path):
    assert run(tmp_path, "loss", 7) == -signal.SIGKILL
    run(tmp_path, "log")
    assert run(tmp_path) == 0
    assert read_log(tmp_path) == read_log(uninterrupted)


def test_resuming_goes_on_from_the_checkpoint(run, tmp_path, caplog):
    run(tmp_path, "loss", 7)
    lines = (tmp_path / "log.jsonl").read_text().splitlines()
    with caplog.at_level(logging.INFO):
        train(tmp_path)
    assert "resuming training after step 6" in caplog.text
    assert (tmp_path / "log.jsonl").read_text().splitlines()[:6] == lines[:6]


def test_same_seed_same_weights_other_seed_others(tmp_path):
    first, again, other = (weights(train(tmp_path / str(i), seed=s)) for i, s in enumerate((5, 5, 6)))
    assert not moved(first, again)
    assert len(moved(first, other)) > 20


def test_callers_random_numbers_are_left_alone(tmp_path):
    torch.manual_seed(0)
    expected = torch.rand(3)
    torch.manual_seed(0)
    task, student = make_task(), make_student()
    torch.manual_seed(0)
    train(tmp_path, replace(CONFIG, steps=2), student=student, task=task)
    assert torch.equal(torch.rand(3), expected)


# --- errors -------------------------------------------------------------------------------------


def test_loss_that_is_not_finite_stops_and_keeps_the_checkpoint(tmp_path, monkeypatch):
    real, calls = LOSSES["ranknet"], iter(range(99))

    def overflows(scores, *args, **kwargs):
        return real(scores, *args, **kwargs) * (float("nan") if next(calls) == 7 else 1)

    monkeypatch.setitem(LOSSES, "ranknet", overflows)
    with pytest.raises(FloatingPointError, match="got nan at step 7 .*query rows") as error:
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


def test_broken_weights_name_the_first_step(tmp_path):
    student = make_student()
    with torch.no_grad():
        student.model.classifier.bias.fill_(float("inf"))
    with pytest.raises(FloatingPointError, match="at step 0"):
        train(tmp_path, student=student)


def test_gradient_that_is_not_finite_never_reaches_a_checkpoint(tmp_path):
    """A finite loss may have an infinite gradient; the weights it gives must not be saved."""
    student = make_student()
    student.model.classifier.weight.register_hook(lambda gradient: gradient * float("inf"))
    with pytest.raises(FloatingPointError, match="step 0"):
        train(tmp_path, replace(CONFIG, checkpoint_every=1), student=student)
    assert not (tmp_path / "checkpoint.safetensors").exists()


@pytest.mark.parametrize(
    ("name", "value", "says"),
    [
        ("sampler", "best", "single_relevant"), ("sampler", "in_corpus", "single_relevant"),
        ("loss", "mse", "ranknet"), ("targets", "judgements", "judgments, scores, teacher"),
        ("precision", "auto", "bfloat16, float32"), ("list_size", 1, "at least 2, got 1"),
        ("queries_per_step", 0, "at least 1"), ("steps", 0, "at least 1"),
        ("token_budget", 0, "at least 1"), ("checkpoint_every", 0, "at least 1"),
        ("warmup_steps", -1, "at least 0"), ("max_gradient_norm", -1.0, "at least 0"),
        ("weight_decay", -0.1, "at least 0"), ("positive_grade", 0, "at least 1"),
        ("head_rate", -1, "at least 0"), ("learning_rate", 0.0, "between 0 and 1"),
        ("learning_rate", 1.0, "between 0 and 1"), ("dropout", 1.0, "below 1"),
        ("score_scale", 0.0, "above 0"), ("score_scale", math.inf, "above 0"),
        ("dropout", -0.1, "0 or more"),
    ],
)  # fmt: skip
def test_wrong_setting_is_named_with_what_is_valid(name, value, says):
    with pytest.raises(ValueError, match=f"^{name}: expected .*{says}") as error:
        replace(CONFIG, **{name: value})
    assert str(value) in str(error.value)


@pytest.mark.parametrize(
    ("config", "part", "nothing", "says"),
    [
        (CONFIG, "teacher_rank", 0, "targets: expected lists with a teacher_rank"),
        (SCORED, "teacher_score", math.nan, "targets: expected a finite teacher_score .* 36 of 36"),
        (JUDGED, "relevance", 0, "passage judged at least 1 .* targets 'judgments'"),
        (replace(CONFIG, sampler="single_relevant"), "relevance", -1, "sampler 'single_relevant'"),
        (replace(JUDGED, positive_grade=4), None, None, "judged at least 4"),
    ],
)
def test_lists_without_what_the_stage_needs(tmp_path, config, part, nothing, says):
    lists, *stores = make_task()
    if part:
        lists = replace(lists, **{part: torch.full_like(getattr(lists, part), nothing)})
    with pytest.raises(ValueError, match=says):
        train(tmp_path / "run", config, task=(lists, *stores))
    assert not (tmp_path / "run").exists()
