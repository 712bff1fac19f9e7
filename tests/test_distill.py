"""The loop: it learns, every step is its own, and a killed run ends like one that was not."""

import json
import logging
import math
import os
import random
import signal
import weakref
from dataclasses import replace
from functools import partial
from types import SimpleNamespace

import pandas as pd
import pytest
import torch
from conftest import PASSAGES, QUERIES, WORDS, make_candidates, make_student, make_tokenizer
from conftest import moved, read_log, weights
from safetensors.torch import load_file

from rdl_core import checkpoint
from rdl_core import distill as module
from rdl_core.config import DistillConfig, StageConfig
from rdl_core.cross_encoder import CrossEncoder
from rdl_core.devices import PRECISIONS, default_device, device_name
from rdl_core.distill import Training, distill, distill_files, draw, targets, two_stages
from rdl_core.lists import RankedLists
from rdl_core.losses import LOSSES
from rdl_core.samplers import SAMPLERS
from rdl_core.tokens import TokenCorpus, TokenStore

N_QUERIES, DEPTH = 6, 6
CONFIG = StageConfig(
    sampler="random", loss="ranknet", targets="teacher", list_size=4, queries_per_step=2, steps=12,
    learning_rate=0.003, warmup_steps=3, schedule="linear", token_budget=150, checkpoint_every=3,
)  # fmt: skip
SCORED = replace(CONFIG, loss="margin_mse", targets="scores", score_scale=0.5)
JUDGED = replace(CONFIG, sampler="single_relevant", loss="info_nce", targets="judgments")
WHOLE = replace(CONFIG, sampler="top", list_size=DEPTH, queries_per_step=N_QUERIES)


def make_lists():
    """Passage ``j`` of a query repeats a telling word ``DEPTH - j`` times; more is better."""
    choose = random.Random(0)
    queries = [f"w{i + 20} w{i + 30}" for i in range(N_QUERIES)]
    passages = []
    for _ in queries:
        for j in range(DEPTH):
            words = ["w0"] * (DEPTH - j) + choose.choices(WORDS[1:15], k=2 + j)
            passages.append(" ".join(choose.sample(words, len(words))))
    seeds = [torch.Generator().manual_seed(i) for i in range(N_QUERIES)]
    ranks = torch.stack([torch.randperm(DEPTH, generator=seed) for seed in seeds])
    first = torch.arange(N_QUERIES)[:, None] * DEPTH
    queries, passages = (TokenStore.of_texts(x, make_tokenizer("bert")) for x in (queries, passages))
    return RankedLists(
        queries=queries, passages=passages, query_rows=torch.arange(N_QUERIES),
        passage_rows=first + ranks, teacher_rank=ranks + 1, teacher_score=-2.0 * ranks,
        relevance=(ranks == 0) * 3, mask=torch.ones_like(ranks, dtype=torch.bool),
    )  # fmt: skip


def train(folder, config=CONFIG, *, seed=0, student=None, lists=None, dev=None):
    """Train a small student; its dropout draws random numbers, so that resuming is put to work."""
    student, lists = student or make_student(dropout=0.1), lists or make_lists()
    return distill(student, lists, config, seed=seed, folder=folder, dev=dev)


def score_all(student, lists):
    """Scores of all candidates, shaped like the lists."""
    rows = lists.query_rows[:, None].expand_as(lists.passage_rows)
    flat = rows.flatten(), lists.passage_rows.flatten()
    return student.score(lists.queries, lists.passages, *flat, token_budget=9999).view_as(rows)


@pytest.mark.parametrize("config", [CONFIG, SCORED, JUDGED], ids=["teacher", "scores", "judgments"])
@pytest.mark.parametrize("precision", PRECISIONS)
def test_loop_learns_the_order(tmp_path, config, precision):
    config = replace(config, steps=60, dropout=0.0, precision=precision)
    lists, before = make_lists(), weights(make_student())
    student = train(tmp_path, config, student=make_student(), lists=lists)
    losses = [line["loss"] for line in read_log(tmp_path)]
    assert sum(losses[-10:]) < 0.3 * sum(losses[:10])
    with torch.no_grad():
        order = lists.teacher_rank.gather(1, score_all(student, lists).argsort(1, descending=True))
    assert (order[:, 0] == 1).all()
    if config.targets != "judgments":
        assert (order == torch.arange(1, DEPTH + 1)).float().mean() > 0.9
    still = before.keys() - moved(before, weights(student))
    assert all("embeddings" in name or "key.bias" in name for name in still)
    assert not student.training


def test_training_in_bfloat16_on_a_cpu_has_few_shapes_and_the_same_losses(tmp_path, monkeypatch):
    """oneDNN keeps a kernel and its memory for each: MiniLM's process grew by 80 MB a step."""
    forward, shapes = CrossEncoder.forward, []

    def seen(self, packed):
        shapes.append((len(packed.input_ids), packed.max_length))
        return forward(self, packed)

    monkeypatch.setattr(CrossEncoder, "forward", seen)
    losses = {}
    for precision in ("float32", "bfloat16"):
        config = replace(CONFIG, steps=4, dropout=0.0, precision=precision)
        train(tmp_path / precision, config, student=make_student())
        losses[precision] = [line["loss"] for line in read_log(tmp_path / precision)]
    assert losses["bfloat16"] == pytest.approx(losses["float32"], rel=0.02)
    in_bfloat16 = shapes[len(shapes) // 2 :]
    assert all(n_tokens % 64 == 0 and width % 16 == 0 for n_tokens, width in in_bfloat16)
    assert len(set(in_bfloat16)) <= len(set(shapes[: len(shapes) // 2]))


def test_lists_without_a_preference_teach_nothing_and_are_refused(tmp_path):
    lists = make_lists()
    ties = {"teacher_rank": lists.teacher_rank.clip(1, 1), "teacher_score": 0 * lists.teacher_score}
    for config, (name, tied) in zip((CONFIG, SCORED), ties.items(), strict=True):
        with pytest.raises(ValueError, match="no list has two passages of different targets"):
            train(tmp_path, config, lists=replace(lists, **{name: tied}))
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("name", [*LOSSES, *SAMPLERS])
def test_every_loss_and_every_sampler_trains(tmp_path, name):
    own = {"loss": name} if name in LOSSES else {"sampler": name}
    own["sampler_options"] = {"first": 1, "last": 5} if name == "hard" else {}
    student = train(tmp_path, replace(CONFIG, **own, steps=2))
    assert all(line["gradient_norm"] > 0 for line in read_log(tmp_path))
    assert len(moved(weights(make_student()), weights(student))) > 20


def test_word_embeddings_may_be_frozen_and_the_head_has_its_own_rate(tmp_path):
    changed, before = [], weights(make_student("electra"))
    for number, own in enumerate(({"train_word_embeddings": False}, {"head_rate": 0}, {})):
        student, config = make_student("electra"), replace(CONFIG, steps=3, **own)
        train(tmp_path / str(number), config, student=student)
        changed.append(moved(before, weights(student)))
    head, embeddings = student.head_names(), {"electra.embeddings.word_embeddings.weight"}
    assert changed[2] >= head | embeddings
    assert changed[0] == changed[2] - embeddings
    assert changed[1] == changed[2] - head


def test_logged_step_is_the_formulas(tmp_path):
    """Loss, gradient norm and new weights of a first step, once more by hand."""
    config = replace(WHOLE, steps=1, dropout=0, warmup_steps=0, max_gradient_norm=0.5)
    lists, twin = make_lists(), make_student()
    student = train(tmp_path, config, student=make_student(), lists=lists)
    scores = score_all(twin, lists)
    better = lists.teacher_rank[:, :, None] < lists.teacher_rank[:, None, :]
    loss = torch.nn.functional.softplus(scores[:, None, :] - scores[:, :, None])[better].mean()
    optimiser = torch.optim.AdamW(twin.parameters(), lr=config.learning_rate, weight_decay=0.01)
    loss.backward()
    norm = torch.nn.utils.clip_grad_norm_(twin.parameters(), 0.5)
    optimiser.step()
    (line,) = read_log(tmp_path)
    assert (line["step"], line["loss"]) == (0, pytest.approx(loss.item(), rel=1e-5))
    assert line["gradient_norm"] == pytest.approx(norm.item(), rel=1e-4)
    assert norm > 0.5  # so that it was clipped
    for name, weight in weights(student).items():
        # Without a gradient, and Adam makes any rounding error a whole step:
        if "key.bias" not in name and name != "classifier.bias":
            torch.testing.assert_close(weight, weights(twin)[name], atol=1e-4, rtol=0, msg=name)


def test_draws_take_every_query_once_before_any_comes_again_and_differ_by_step_and_seed():
    """PyTorch's CPU generator reads the low 32 bits of a seed; ours once stood above them."""
    lists, config = make_lists(), replace(CONFIG, queries_per_step=4, sampler="top")
    drawn = [draw(lists, config, seed=3, step=step)[0] for step in range(3 * N_QUERIES)]
    rows = torch.cat([batch.query_rows for batch in drawn]).tolist()
    epochs = [rows[i : i + N_QUERIES] for i in range(0, 3 * N_QUERIES, N_QUERIES)]
    assert all(sorted(epoch) == list(range(N_QUERIES)) for epoch in epochs)
    assert len(set(map(tuple, epochs))) == 3  # each in another order
    config = replace(CONFIG, queries_per_step=N_QUERIES)
    drawn = [draw(lists, config, seed=seed, step=step)[1] for seed in range(3) for step in range(3)]
    assert len({tuple(x.indices.flatten().tolist()) for x in drawn}) == 9


def test_targets_are_ranks_with_those_of_nobody_last_or_scores_at_a_scale():
    """Rank 0 means unranked; it once became the best rank of all, and the highest target."""
    lists = make_lists()
    partly = replace(lists, teacher_rank=lists.teacher_rank.where(lists.teacher_rank < 4, 0))
    batch, sampled = draw(partly, WHOLE, seed=0, step=0)
    goals, ranked = targets(batch, sampled, WHOLE), batch.teacher_rank > 0
    assert goals[~ranked].max() < goals[ranked].min()
    batch, sampled = draw(lists, SCORED, seed=0, step=0)
    ranks = batch.teacher_rank.gather(1, sampled.indices)  # of the passages drawn, in this order
    assert len(ranks.unique()) > 3
    assert torch.equal(targets(batch, sampled, SCORED), 1.0 - ranks)  # half of -2 (rank - 1)


def gradients(folder, config, *, student=None, lists=None):
    """Loss and gradient of one step."""
    student = student or make_student()
    drawn = draw(lists or make_lists(), config, seed=3, step=0)
    loss, _ = Training(student, config, folder).step(*drawn, seed=3)
    return loss, {name: weight.grad for name, weight in student.model.named_parameters()}


@pytest.mark.parametrize("loss", ["ranknet", "adr_mse", "list_mle", "info_nce"])
@pytest.mark.parametrize("precision", PRECISIONS)
def test_scoring_lists_twice_and_smaller_batches_give_the_same_gradient(tmp_path, loss, precision):
    """With dropout, which must be the same both times a batch is scored, but not in other batches."""

    def same(one, other, atol):
        ours, theirs = gradients(tmp_path, one), gradients(tmp_path, other)
        assert ours[0] == pytest.approx(theirs[0], rel=10 * atol)
        # Biases of keys have no gradient but rounding.
        assert sum(gradient.abs().max() > 10 * atol for gradient in theirs[1].values()) > 20
        for name, gradient in theirs[1].items():
            torch.testing.assert_close(ours[1][name], gradient, atol=atol, rtol=1e-4, msg=name)

    config = replace(CONFIG, loss=loss, precision=precision, token_budget=60, queries_per_step=4)
    wet, dry = replace(config, dropout=0.3), replace(config, dropout=0.0, held_tokens=0)
    same(replace(wet, held_tokens=0), wet, atol=1e-6)
    if precision == "float32":
        for budget in (60, 1):
            same(replace(dry, token_budget=budget), replace(dry, token_budget=10**6), atol=1e-5)


def test_padding_is_not_scored_and_a_step_without_a_passage_changes_nothing(tmp_path, monkeypatch):
    mask = torch.arange(DEPTH) < torch.tensor([[1], [3], [DEPTH], [2], [4], [5]])
    lists, scored, real = replace(make_lists(), mask=mask), [], CrossEncoder.score_batch

    def score_batch(self, queries, passages, *rows, **own):
        scored.extend(zip(*(x.tolist() for x in rows), strict=True))
        return real(self, queries, passages, *rows, **own)

    monkeypatch.setattr(CrossEncoder, "score_batch", score_batch)
    gradients(tmp_path, WHOLE, lists=lists)
    expected = [(q, lists.passage_rows[q, j].item()) for q, j in mask.nonzero().tolist()]
    assert sorted(scored) == sorted(expected)
    lists = replace(lists, mask=lists.query_rows[:, None].expand_as(mask) == 0)  # those of one query
    config = replace(CONFIG, sampler="single_relevant", queries_per_step=1, steps=6)
    student = train(tmp_path, config, student=make_student(), lists=lists)
    assert sum(line["loss"] == 0 for line in read_log(tmp_path)) == 5
    assert moved(weights(make_student()), weights(student))


def test_memory_does_not_grow_with_the_list(tmp_path):
    """Some 3,000 tokens are scored and held for the backward pass at a time, whatever the lists."""
    words, peaks, live = TokenStore.from_lists([[4 + i % 40] * 20 for i in range(1000)]), [], []

    def hold(tensor):
        held = tensor.detach()
        live.append(live[-1] + held.nbytes)
        weakref.finalize(held, lambda n: live.append(live[-1] - n), held.nbytes)
        return held

    for size, n_lists in ((10, 40), (1000, 1)):
        ranks = torch.arange(1, size + 1).expand(n_lists, -1)
        lists = RankedLists(
            queries=words, passages=words, query_rows=torch.arange(n_lists), passage_rows=ranks - 1,
            teacher_rank=ranks, teacher_score=-ranks.float(), relevance=ranks * 0, mask=ranks > 0,
        )  # fmt: skip
        own = {"sampler": "top", "list_size": size, "loss": "info_nce", "queries_per_step": n_lists}
        config = replace(CONFIG, **own, token_budget=3000, held_tokens=3000)
        live[:] = [0]
        with torch.autograd.graph.saved_tensors_hooks(hold, lambda held: held):
            gradients(tmp_path, config, lists=lists)
        peaks.append(max(live))
    assert 1e6 < peaks[1] < 1.3 * peaks[0]  # activations of all passages would be 2.5 times as much


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
    assert len(moved(dev.shown[3], weights(student))) > 20
    for best in (student, CrossEncoder.from_pretrained(tmp_path / "model")):
        assert not moved(dev.shown[1], weights(best))
    measured = {line["step"]: line["dev"] for line in read_log(tmp_path) if "dev" in line}
    assert measured == {2: 0.1, 5: 0.7, 8: 0.4, 11: 0.6}
    assert not list(tmp_path.glob("*.safetensors"))


def test_training_stops_when_dev_grows_no_more_and_refuses_a_damaged_checkpoint(
    tmp_path, monkeypatch, caplog
):
    config, values = replace(CONFIG, dev_every=2, patience=3), (0.5, 0.9, 0.1, 0.2, 0.3, 1.0)
    whole, own = train(tmp_path / "whole", config, dev=(dev := Dev(*values))), tmp_path / "own"
    assert [line["step"] for line in read_log(tmp_path / "whole")] == list(range(10))
    assert not moved(dev.shown[1], weights(whole))
    real, left = Training.step, iter(range(7))

    def dies(self, *drawn, **own):
        if next(left, None) is None:
            raise KeyboardInterrupt
        return real(self, *drawn, **own)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(Training, "step", dies)
        train(own, config, dev=Dev(*values))
    path = own / "checkpoint.safetensors"
    saved = path.read_bytes()
    for damaged in (saved[:-9], saved[:-9] + bytes([saved[-9] ^ 1]) + saved[-8:], b""):
        path.write_bytes(damaged)
        with pytest.raises(ValueError, match="is no whole checkpoint .* the stage begins again"):
            train(own, config, dev=Dev())
    path.write_bytes(saved)
    student, lists, draws = make_student(dropout=0.1), make_lists(), torch.get_rng_state()
    with caplog.at_level(logging.INFO):  # three measures were taken
        train(own, config, student=student, lists=lists, dev=Dev(*values[3:]))
    assert "resuming training after step 6" in caplog.text
    assert torch.equal(torch.get_rng_state(), draws)  # the caller's draws stay
    assert not moved(weights(whole), weights(student))
    assert read_log(tmp_path / "whole") == read_log(own)


def _work_and_die(work, place, calls):
    """Work in this process, which is killed at its n-th pass by some place."""
    torch.set_num_threads(1)
    left = iter(range(calls))

    def dying(*args, **own):
        if next(left, None) is None:
            os.kill(os.getpid(), signal.SIGKILL)
        return function(*args, **own)

    if place in LOSSES:
        function = LOSSES[place]
        LOSSES[place] = dying
    elif place:
        owner = {"clip_grad_norm_": torch.nn.utils, "save_file": checkpoint}.get(place, os)
        function = getattr(owner, place)
        setattr(owner, place, dying)
    work()


@pytest.fixture(scope="module")
def run(server):
    """Do work in a process of its own that may be killed; gives the exit code."""

    def run(work, place=None, calls=0):
        process = server.Process(target=_work_and_die, args=(work, place, calls))
        process.start()
        process.join(100)
        return process.exitcode

    return run


def files_of(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir()}


KILLS = {
    "before any checkpoint": [("ranknet", 1)],
    "thrice": [("ranknet", 5), ("save_file", 0), ("ranknet", 4)],
    "while a checkpoint is put in place": [("replace", 0), ("replace", 1)],
    "in the last steps": [("clip_grad_norm_", 11), ("clip_grad_norm_", 1)],
    "while the log is cut": [("ranknet", 7), ("ftruncate", 0)],
}  # fmt: skip


@pytest.mark.parametrize("kills", KILLS.values(), ids=KILLS)
def test_killed_runs_end_byte_for_byte_like_one_that_was_not(run, tmp_path_factory, tmp_path, kills):
    whole, work = tmp_path_factory.getbasetemp() / "uninterrupted", partial(train, tmp_path)
    if not whole.exists():
        assert run(partial(train, whole)) == 0
    for place, calls in kills:
        assert run(work, place, calls) == -signal.SIGKILL
    assert run(work) == 0
    assert files_of(tmp_path / "model") == files_of(whole / "model")
    assert read_log(tmp_path) == read_log(whole)
    assert [line["step"] for line in read_log(tmp_path)] == list(range(CONFIG.steps))
    assert {path.name for path in tmp_path.iterdir()} == {"log.jsonl", "model"}


def recipe(folder, student=None, judged=None, steps=4):
    stages = {"contrastive": replace(JUDGED, steps=steps), "listwise": replace(CONFIG, steps=6)}
    student, judged = student or make_student(), judged or make_lists()
    return two_stages(student, judged, make_lists(), folder=folder, **stages)


def test_the_recipe_is_two_stages_and_goes_on_in_the_second_after_a_kill(run, tmp_path, monkeypatch):
    by_hand, own, done = make_student(), tmp_path / "own", []
    for name, config in (("1", replace(JUDGED, steps=4)), ("2", replace(CONFIG, steps=6))):
        by_hand = train(tmp_path / name, config, student=by_hand)
    assert run(partial(recipe, own), "ranknet", 4) == -signal.SIGKILL
    for name in ("info_nce", "ranknet"):
        count = lambda name, loss, *x, **own: done.append(name) or loss(*x, **own)  # noqa: E731
        monkeypatch.setitem(LOSSES, name, partial(count, name, LOSSES[name]))
    for student in (recipe(own), recipe(own, make_student(seed=1))):  # the second is not trained
        assert done == ["ranknet"] * 3
        assert not moved(weights(by_hand), weights(student))
        assert not student.training
    lists = make_lists()
    lists = replace(lists, relevance=lists.relevance.flip(1))
    for changed, says in (({"steps": 5}, "steps was 4, is 5"), ({"judged": lists}, "lists was")):
        with pytest.raises(ValueError, match=f"begun with another configuration .*{says}"):
            recipe(own, **changed)


TRAINING = {"list_size": 4, "queries_per_step": 2, "steps": 6, "checkpoint_every": 2}
TRAINING["precision"] = "float32"


def settings(files, **own):
    names = {"lists": "taught.parquet", "encoder": "student", "collection": "beir"} | own
    paths = {x: str(files / names.pop(x)) for x in ("lists", "encoder", "collection")}
    limits = {"query_tokens": 5, "passage_tokens": 20}
    return DistillConfig(**limits | {"training": TRAINING} | paths | names)


SCORES = {"targets": "scores", "loss": "margin_mse", "score_scale": 3.0}


@pytest.mark.parametrize(
    ("lists", "own"), [("first.run", {}), ("taught.parquet", {}), ("first.run", SCORES)]
)
def test_files_train_as_the_loop_does_on_the_teachers_order(files, tmp_path, lists, own):
    """Order and scores of the file are the teacher's, unless it says what the teacher's are."""
    distill_files(settings(files, lists=lists, training=TRAINING | own), tmp_path / "own")
    frame = make_candidates()
    ranks = frame.groupby("query_id")["rank"].rank(ascending=lists == "first.run").astype(int)
    frame = frame.assign(teacher_rank=ranks, teacher_score=frame["score"])
    corpus = TokenCorpus.of(
        pd.DataFrame(QUERIES.items(), columns=["query_id", "query"]),
        pd.DataFrame(PASSAGES.items(), columns=["doc_id", "text"]), make_tokenizer("bert"),
    )  # fmt: skip
    student = CrossEncoder.from_pretrained(files / "student")
    before, stage = weights(student), StageConfig(**TRAINING | own)
    distill(student, RankedLists.from_frame(frame, corpus), stage, seed=0, folder=tmp_path / "by hand")
    assert not moved(weights(CrossEncoder.from_pretrained(tmp_path / "own")), weights(student))
    assert len(moved(before, weights(student))) > 20


def test_a_students_record_names_limits_device_teacher_and_every_stage(files, tmp_path):
    """Without steps, every list is seen three times; the seed draws the head, too."""
    config = settings(files, encoder="encoder", teacher="a friend", seed=3)
    first, same = (weights(distill_files(config, tmp_path / name)) for name in ("own", "same"))
    other = weights(distill_files(replace(config, seed=4), tmp_path / "other"))
    assert not moved(first, same)
    assert (first["classifier.weight"] - other["classifier.weight"]).abs().max() > 0.01
    few = {"loss": "adr_mse", "queries_per_step": 2, "list_size": 4}
    again = replace(config, encoder=str(tmp_path / "own"), teacher=None, training=few)
    distill_files(replace(again, query_tokens=None, passage_tokens=None), tmp_path / "again")
    manifest = json.loads((tmp_path / "again" / "manifest.json").read_text())
    config, stages = manifest["config"], manifest["config"]["stages"]
    assert (manifest["n_lists"], manifest["device"]) == (6, device_name(default_device()))
    assert [config[x] for x in ("query_tokens", "passage_tokens")] == [5, 20]
    assert config["encoder"] == str(files / "encoder")
    assert [stage["lists"]["teacher"] for stage in stages] == ["a friend", None]
    assert [stage["training"]["loss"] for stage in stages] == ["ranknet", "adr_mse"]
    assert [stage["training"]["steps"] for stage in stages] == [6, 9]


def test_killed_work_on_files_goes_on_and_notices_other_work(run, files, tmp_path, monkeypatch, caplog):
    """The checkpoint of step 4 is gone on from; the tokens, damaged meanwhile, are made again."""
    config, own = settings(files), tmp_path / "own"
    distill_files(config, tmp_path / "whole")
    assert run(partial(distill_files, config, own), "ranknet", 5) == -signal.SIGKILL
    assert not (own / "manifest.json").exists()
    tokens = own / "tokens" / "passage" / "tokens.bin"
    tokens.write_bytes(bytes(len(tokens.read_bytes())))
    done, ranknet = [], LOSSES["ranknet"]
    monkeypatch.setitem(LOSSES, "ranknet", lambda *x, **own: done.append(1) or ranknet(*x, **own))
    distill_files(config, own)
    assert len(done) == 2
    assert "tokens.bin changed since it was written" in caplog.text
    assert files_of(own / "model") == files_of(tmp_path / "whole" / "model")
    assert read_log(own) == read_log(tmp_path / "whole")
    distill_files(config, own)  # finished: not trained again
    assert len(done) == 2
    before, other = files_of(own / "model"), "was begun with another configuration"
    for folder, changed, says in (
        (own, {"training": TRAINING | {"loss": "bce"}}, f"{other} .*loss was 'ranknet', is 'bce'"),
        (own, {"seed": 1}, f"{other} .*config.seed was 0, is 1"), (own, {"lists": "first.run"}, other),
        (own, {"training": {"dev_every": 5}}, "dev_every: this command measures no dev queries"),
        (files / "beir", {}, "beir holds corpus.jsonl: expected a new or empty folder"),
    ):  # fmt: skip
        with pytest.raises(ValueError, match=says):
            distill_files(settings(files, **changed), folder)
    assert files_of(own / "model") == before
    (own / "log.jsonl").write_text("")
    with pytest.raises(ValueError, match="log.jsonl changed since it was written: restore the file"):
        distill_files(config, own)


def test_what_is_not_finite_stops_and_never_reaches_a_checkpoint(tmp_path, monkeypatch):
    """A finite loss may have an infinite gradient; the weights it gives must not be saved."""
    student, own = make_student(), tmp_path / "own"
    student.model.classifier.weight.register_hook(lambda gradient: gradient * float("inf"))
    with pytest.raises(FloatingPointError, match="step 0"):
        train(tmp_path, replace(CONFIG, checkpoint_every=1), student=student)
    assert not (tmp_path / "checkpoint.safetensors").exists()
    real, calls = LOSSES["ranknet"], iter(range(99))

    def overflows(*x, **options):
        return real(*x, **options) * (math.nan if next(calls) == 7 else 1)

    monkeypatch.setitem(LOSSES, "ranknet", overflows)
    with pytest.raises(FloatingPointError, match="^loss nan, .* at step 7.*query rows") as error:
        train(own)
    assert str(own / "nonfinite.safetensors") in str(error.value)
    saved = load_file(own / "nonfinite.safetensors")
    assert saved["passage_rows"].shape == (CONFIG.queries_per_step, CONFIG.list_size)
    assert "rows " + ", ".join(map(str, saved["query_rows"][:, 0].tolist())) in str(error.value)
    assert saved["weight.classifier.weight"].isfinite().all()
    assert [line["step"] for line in read_log(own)] == list(range(7))
    train(own)  # goes on from step 6
    assert [line["step"] for line in read_log(own)] == list(range(12))


@pytest.mark.parametrize(
    ("config", "change", "says"),
    [
        (CONFIG, {"teacher_rank": 0}, "targets: the lists have no teacher_rank"),
        (SCORED, {}, "targets: 1 of 36 passages have no finite teacher_score"),
        (JUDGED, {"relevance": 0}, "no passage is judged 1 or more, .* targets 'judgments'"),
        (replace(CONFIG, sampler="single_relevant"), {"relevance": -1}, "sampler 'single_relevant'"),
        (replace(JUDGED, positive_grade=4), {}, "judged 4 or more"),
        (replace(CONFIG, dev_every=2), {}, "^dev_every: expected a dev measure if and only if"),
        (CONFIG, {"dev": Dev(0.5)}, "^dev_every"),
        (CONFIG, {"processes": 3}, "queries_per_step: expected a list for each of 3 processes"),
    ],
)  # fmt: skip
def test_a_stage_without_what_it_needs_is_refused(tmp_path, monkeypatch, config, change, says):
    lists, change = make_lists(), dict(change)
    lists.teacher_score[2, 3] = math.nan  # only `targets: scores` minds
    dev = change.pop("dev", None)
    if n := change.pop("processes", 0):
        monkeypatch.setattr(module, "processes", lambda: SimpleNamespace(num_processes=n))
    lists = replace(lists, **{x: torch.full_like(getattr(lists, x), y) for x, y in change.items()})
    with pytest.raises(ValueError, match=says):
        train(tmp_path / "run", config, lists=lists, dev=dev)
    assert not (tmp_path / "run").exists()
