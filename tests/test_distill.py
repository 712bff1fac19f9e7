"""The loop: it learns, every step is its own, and a killed run ends like one that was not."""

import json
import logging
import math
import os
import random
import signal
from dataclasses import replace
from functools import partial

import pytest
import torch
from common import WORDS, make_candidates, make_student, make_tokenizer, moved, read_log, weights
from safetensors.torch import load_file
from test_rerank import CORPUS

from rdl_core import checkpoint
from rdl_core.config import StageConfig
from rdl_core.cross_encoder import CrossEncoder
from rdl_core.data.formats import read_qrels, read_run
from rdl_core.devices import PRECISIONS, default_device, device_name, processes
from rdl_core.distill import Training, distill, draw, targets, two_stages
from rdl_core.evaluate import per_query, settle_ties
from rdl_core.lists import RankedLists
from rdl_core.losses import LOSSES
from rdl_core.rerank import rerank
from rdl_core.samplers import SAMPLERS
from rdl_core.tokens import TokenStore
from rdl_tools.config import DistillConfig
from rdl_tools.distill import distill_files

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
    choose, passages = random.Random(0), []
    queries = [f"w{i + 20} w{i + 30}" for i in range(N_QUERIES)]
    for j in [*range(DEPTH)] * N_QUERIES:
        words = ["w0"] * (DEPTH - j) + choose.choices(WORDS[1:15], k=2 + j)
        passages.append(" ".join(choose.sample(words, len(words))))
    ranks = torch.rand(N_QUERIES, DEPTH, generator=torch.Generator().manual_seed(0)).argsort(1)
    first = torch.arange(N_QUERIES)[:, None] * DEPTH
    queries, passages = (TokenStore.of_texts(x, make_tokenizer("bert")) for x in (queries, passages))
    return RankedLists(
        queries=queries, passages=passages, query_rows=torch.arange(N_QUERIES),
        passage_rows=first + ranks, teacher_rank=ranks + 1, teacher_score=-2.0 * ranks,
        relevance=(ranks == 0) * 3, mask=torch.ones_like(ranks, dtype=torch.bool),
    )  # fmt: skip


def train(folder, config=CONFIG, *, student=None, lists=None, dev=None):
    """Train a small student; its dropout draws random numbers, so that resuming is put to work."""
    student, lists = student or make_student(dropout=0.1), lists or make_lists()
    return distill(student, lists, config, seed=0, folder=folder, dev=dev)


def score_all(student, lists):
    rows = lists.query_rows[:, None].expand_as(lists.passage_rows)
    flat = rows.flatten(), lists.passage_rows.flatten()
    return student.score(lists.queries, lists.passages, *flat, token_budget=9999).view_as(rows)


@pytest.mark.parametrize("config", [CONFIG, SCORED, JUDGED], ids=["teacher", "scores", "judgments"])
@pytest.mark.parametrize("precision", PRECISIONS)
def test_loop_learns_the_order(tmp_path, config, precision):
    lists, student, packs = make_lists(), make_student(), []
    before = weights(student)
    student.register_forward_pre_hook(lambda _, inputs: packs.extend(inputs))
    train(tmp_path, replace(config, steps=60, dropout=0.0, precision=precision), student=student)
    losses = [line["loss"] for line in read_log(tmp_path)]
    assert sum(losses[-10:]) < 0.3 * sum(losses[:10])
    if precision == "bfloat16":  # oneDNN keeps a kernel and its memory for each shape on a CPU
        assert {(len(x.input_ids) % 64, x.max_length % 16) for x in packs} == {(0, 0)}
    with torch.no_grad():
        order = lists.teacher_rank.gather(1, score_all(student, lists).argsort(1, descending=True))
    assert (order[:, 0] == 1).all()
    if config.targets != "judgments":
        assert (order == torch.arange(1, DEPTH + 1)).float().mean() > 0.9
    still = before.keys() - moved(before, weights(student))
    assert all("embeddings" in name or "key.bias" in name for name in still)
    assert not student.training


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
        student = make_student("electra")
        train(tmp_path / str(number), replace(CONFIG, steps=3, **own), student=student)
        changed.append(moved(before, weights(student)))
    head, embeddings = student.head_names(), {"electra.embeddings.word_embeddings.weight"}
    assert changed[2] >= head | embeddings
    assert changed[0] == changed[2] - embeddings
    assert changed[1] == changed[2] - head


def test_logged_step_is_the_formulas(tmp_path):
    """Loss, gradient norm and weights of a first step by hand; padding is not scored."""
    config = replace(WHOLE, steps=1, dropout=0, warmup_steps=0, max_gradient_norm=0.5)
    lists, twin, packs = make_lists(), make_student(), []
    mask = torch.arange(DEPTH) < torch.tensor([[1], [3], [DEPTH], [2], [4], [5]])
    for precision in ("bfloat16", "float32"):
        own, student = replace(config, precision=precision), make_student()
        student.register_forward_pre_hook(lambda _, inputs: packs.append(inputs[0]))
        packs.clear()
        train(tmp_path / precision, own, student=student, lists=replace(lists, mask=mask))
    assert sum(len(packed.cu_seqlens) - 1 for packed in packs) == mask.sum()
    scores = score_all(twin, lists)
    better = lists.teacher_rank[:, :, None] < lists.teacher_rank[:, None, :]
    better &= mask[:, :, None] & mask[:, None, :]
    pairs = torch.nn.functional.softplus(scores[:, None, :] - scores[:, :, None])
    loss = torch.stack([pairs[i][better[i]].mean() for i in range(1, N_QUERIES)]).mean()
    optimiser = torch.optim.AdamW(twin.parameters(), lr=config.learning_rate, weight_decay=0.01)
    loss.backward()
    norm = torch.nn.utils.clip_grad_norm_(twin.parameters(), 0.5).item()
    optimiser.step()
    assert norm > 0.5  # so that it was clipped
    for precision, rel in (("float32", 1e-5), ("bfloat16", 0.02)):
        (line,) = read_log(tmp_path / precision)
        assert (line["step"], line["loss"]) == (0, pytest.approx(loss.item(), rel=rel))
        assert line["gradient_norm"] == pytest.approx(norm, rel=10 * rel)
    for name, weight in weights(student).items():
        # Without a gradient, and Adam makes any rounding error a whole step:
        if "key.bias" not in name and name != "classifier.bias":
            torch.testing.assert_close(weight, weights(twin)[name], atol=1e-4, rtol=0, msg=name)


def test_gradients_go_through_the_best_piece_of_each_passage(tmp_path):
    """As in a plain loop: each piece by itself, the best of a passage, the loss."""
    lists, student, twin = make_lists(), make_student(), make_student().train()
    student.passage_tokens, student.chunks = 3, 2  # of 8 tokens
    pieces = TokenStore.from_lists(lists.passages.flat.view(-1, 8)[:, :6].reshape(-1, 3).tolist())
    alone = [twin.score(lists.queries, pieces, row // (2 * DEPTH), row, token_budget=99)
             for row in torch.arange(len(pieces)).split(1)]  # fmt: skip
    scores, best = torch.cat(alone).view(-1, 2).max(1)
    assert 5 < best.sum() < len(best) - 5
    config = replace(WHOLE, dropout=0, held_tokens=60, token_budget=40)  # one batch is held
    batch, sampled = draw(lists, config, seed=0, step=0)
    loss = LOSSES["ranknet"](scores[batch.passage_rows], targets(batch, sampled, config))
    loss.backward()
    training = Training(student, config, tmp_path)
    assert training.step(batch, sampled, seed=0)[0] == pytest.approx(loss.item(), rel=1e-5)
    for name, weight in twin.model.named_parameters():
        torch.testing.assert_close(training.weights[name].grad, weight.grad, atol=1e-5, rtol=1e-4)
    assert student.model.classifier.weight.grad.abs().max() > 0.01


def test_draws_take_every_query_once_before_any_comes_again_and_differ_by_step_and_seed():
    """PyTorch's CPU generator reads the low 32 bits of a seed; ours once stood above them."""
    lists, config = make_lists(), replace(CONFIG, queries_per_step=4, sampler="top")
    rows = [draw(lists, config, seed=3, step=step)[0].query_rows for step in range(9)]
    epochs = torch.cat(rows).view(-1, N_QUERIES)
    assert (epochs.sort().values == torch.arange(N_QUERIES)).all()
    assert len(epochs.unique(dim=0)) == 6  # each in another order
    config = replace(CONFIG, queries_per_step=N_QUERIES)
    drawn = [draw(lists, config, seed=seed, step=step)[1] for seed in range(3) for step in range(3)]
    assert len({tuple(x.indices.flatten().tolist()) for x in drawn}) == 9


def test_unranked_passages_come_last_and_teacher_scores_are_scaled():
    """Rank 0 means unranked; it once became the best rank of all, and the highest target."""
    lists = make_lists()
    partly = replace(lists, teacher_rank=lists.teacher_rank.where(lists.teacher_rank < 4, 0))
    batch, sampled = draw(partly, WHOLE, seed=0, step=0)
    goals, ranked = targets(batch, sampled, WHOLE), batch.teacher_rank > 0
    assert goals[~ranked].max() < goals[ranked].min()
    batch, sampled = draw(lists, SCORED, seed=0, step=0)
    ranks = batch.teacher_rank.gather(1, sampled.indices)
    assert len(ranks.unique()) > 3
    assert torch.equal(targets(batch, sampled, SCORED), 1.0 - ranks)  # half of -2 (rank - 1)


@pytest.mark.parametrize("loss", ["ranknet", "adr_mse", "list_mle", "info_nce"])
@pytest.mark.parametrize("precision", PRECISIONS)
def test_batches_not_held_are_scored_twice_for_the_same_gradient(tmp_path, loss, precision):
    """With dropout, which must be the same both times that a batch is scored."""
    config = replace(CONFIG, loss=loss, precision=precision, token_budget=60, dropout=0.3)
    results, passes = [], []
    for held_tokens in (config.held_tokens, 60, 0):
        student, drawn, graphs = make_student(), draw(make_lists(), config, seed=3, step=0), []
        student.register_forward_pre_hook(lambda *_, x=graphs: x.append(torch.is_grad_enabled()))
        training = Training(student, replace(config, held_tokens=held_tokens), tmp_path)
        result = {"loss": torch.tensor(training.step(*drawn, seed=3)[0])}
        results.append(result | {name: weight.grad for name, weight in training.weights.items()})
        passes.append(graphs)
    n_batches = len(passes[0])
    for n_held, graphs in zip((n_batches, 1, 0), passes, strict=True):
        n_twice = n_batches - n_held
        assert graphs == [True] * n_held + [False] * n_twice + [True] * n_twice
    assert n_batches > 1
    torch.testing.assert_close(results[1:], results[:1] * 2, atol=1e-6, rtol=1e-4)
    assert sum(gradient.abs().max() > 1e-5 for gradient in results[0].values()) > 20


def test_a_step_without_a_passage_has_loss_0_and_others_train(tmp_path):
    lists = make_lists()
    lists = replace(lists, mask=lists.query_rows[:, None].expand_as(lists.mask) == 0)  # of one query
    config = replace(CONFIG, sampler="single_relevant", queries_per_step=1, steps=6)
    student = train(tmp_path, config, student=make_student(), lists=lists)
    assert sum(line["loss"] == 0 for line in read_log(tmp_path)) == 5
    assert moved(weights(make_student()), weights(student))


def test_best_state_by_dev_is_restored_training_stops_early_and_resumes(tmp_path, caplog):
    """A peer's reload once restored only a part of the best state (sentence-transformers#3360)."""
    config, values = replace(CONFIG, dev_every=2, patience=3), (0.5, 0.9, 0.1, 0.2, 0.3, 1.0)
    whole, own, states = tmp_path / "whole", tmp_path / "own", []

    def dev(*values):
        values = iter(values)
        return lambda student: states.append((student.training, weights(student))) or next(values)

    student = train(whole, config, dev=dev(*values))
    assert not any(training for training, _ in states)
    assert len(moved(states[4][1], weights(student))) > 20
    for best in (student, CrossEncoder.from_pretrained(whole / "model")):
        assert not moved(states[1][1], weights(best))
    assert [line.get("dev") for line in read_log(whole)] == [x for y in values[:5] for x in (None, y)]
    assert not list(whole.glob("*.safetensors"))
    with pytest.raises(StopIteration):
        train(own, config, dev=dev(*values[:3]))
    path = own / "checkpoint.safetensors"
    saved = path.read_bytes()
    for damaged in (saved[:-9], saved[:-9] + bytes([saved[-9] ^ 1]) + saved[-8:], b""):
        path.write_bytes(damaged)
        with pytest.raises(ValueError, match="is no whole checkpoint .* the stage begins again"):
            train(own, config, dev=dev())
    path.write_bytes(saved)
    again, draws = make_student(dropout=0.1), torch.get_rng_state()
    with caplog.at_level(logging.INFO):
        train(own, config, student=again, dev=dev(*values[3:]))
    assert "resuming training after step 6" in caplog.text
    assert torch.equal(torch.get_rng_state(), draws)  # the caller's draws stay
    assert not moved(weights(student), weights(again))
    assert read_log(own) == read_log(whole)


def _work_and_die(work, place, calls):
    """Work in this process, which is killed when it has called a function so many times."""
    torch.set_num_threads(1)
    owner = {"clip_grad_norm_": torch.nn.utils, "save_file": checkpoint}.get(place, os)
    function, left = getattr(owner, place), iter(range(calls))

    def dying(*args, **own):
        if next(left, None) is None:
            os.kill(os.getpid(), signal.SIGKILL)
        return function(*args, **own)

    setattr(owner, place, dying)
    work()


def kill(server, work, place, calls):
    process = server.Process(target=_work_and_die, args=(work, place, calls))
    process.start()
    process.join(100)
    assert process.exitcode == -signal.SIGKILL


@pytest.mark.parametrize("kills", [
    [("clip_grad_norm_", 1), ("clip_grad_norm_", 5), ("save_file", 0), ("clip_grad_norm_", 4)],
    [("replace", 0), ("replace", 1)],  # while a checkpoint is put in place
    [("clip_grad_norm_", 11), ("ftruncate", 0), ("clip_grad_norm_", 1)],  # while the log is cut
])  # fmt: skip
def test_killed_runs_end_byte_for_byte_like_one_that_was_not(server, tmp_path, kills):
    whole, own = tmp_path / "whole", tmp_path / "own"
    for place, calls in kills:
        kill(server, partial(train, own), place, calls)
    for folder in (own, whole):
        train(folder)
    models = [{x.name: x.read_bytes() for x in (y / "model").iterdir()} for y in (own, whole)]
    assert models[0] == models[1]
    assert read_log(own) == read_log(whole)
    assert [line["step"] for line in read_log(own)] == list(range(CONFIG.steps))
    assert {path.name for path in own.iterdir()} == {"log.jsonl", "model"}


def recipe(folder, student=None, judged=None, steps=4):
    stages = {"contrastive": replace(JUDGED, steps=steps), "listwise": replace(CONFIG, steps=6)}
    student, judged = student or make_student(), judged or make_lists()
    return two_stages(student, judged, make_lists(), folder=folder, **stages)


def test_the_recipe_is_two_stages_and_resumes_in_the_second(server, tmp_path, monkeypatch, caplog):
    by_hand, own = make_student(), tmp_path / "own"
    for name, config in (("1", replace(JUDGED, steps=4)), ("2", replace(CONFIG, steps=6))):
        by_hand = train(tmp_path / name, config, student=by_hand)
    kill(server, partial(recipe, own), "clip_grad_norm_", 4 + 4)
    caplog.set_level(logging.INFO)
    for trained_before in ("info_nce", "ranknet"):
        monkeypatch.setitem(LOSSES, trained_before, len)  # fails where it is called
        student = recipe(own, make_student(seed=1))
        assert not moved(weights(by_hand), weights(student))
        assert not student.training
    assert "resuming training after step 3" in caplog.text
    lists = replace(make_lists(), relevance=make_lists().relevance.flip(1))
    for changed, says in (({"steps": 5}, "steps was 4, is 5"), ({"judged": lists}, "lists was")):
        with pytest.raises(ValueError, match=f"begun with another configuration .*{says}"):
            recipe(own, **changed)


TRAINING = {"list_size": 4, "queries_per_step": 2, "steps": 6, "precision": "float32"}


def settings(files, lists="taught.parquet", encoder="student", **own):
    paths = zip(("lists", "encoder", "collection"), (lists, encoder, "beir"), strict=True)
    own = {"training": TRAINING, "query_tokens": 5, "passage_tokens": 20} | own
    return DistillConfig(**{name: str(files / path) for name, path in paths}, **own)


@pytest.mark.parametrize(("lists", "own", "limits"), [
    ("taught.parquet", {}, {}), ("first.run", {}, {"passage_tokens": 8, "chunks": 2}),
    ("first.run", {"targets": "scores", "loss": "margin_mse", "score_scale": 3.0}, {}),
])  # fmt: skip
def test_files_train_as_the_loop_does_on_the_teachers_order(files, tmp_path, lists, own, limits):
    """Order and scores of the file are the teacher's, unless it says what the teacher's are."""
    distill_files(settings(files, lists=lists, training=TRAINING | own, **limits), tmp_path / "own")
    frame = make_candidates()
    ranks = frame.groupby("query_id")["rank"].rank(ascending=lists == "first.run").astype(int)
    frame = frame.assign(teacher_rank=ranks, teacher_score=frame["score"])
    lists = RankedLists.from_frame(frame, CORPUS)
    student = CrossEncoder.from_pretrained(files / "student", **limits)
    train(tmp_path / "by hand", StageConfig(**TRAINING | own), student=student, lists=lists)
    assert not moved(weights(CrossEncoder.from_pretrained(tmp_path / "own")), weights(student))
    assert len(moved(weights(make_student()), weights(student))) > 20


def test_work_on_files_is_recorded_and_done_once(files, tmp_path, monkeypatch, caplog):
    """Unfinished work whose tokens were damaged meanwhile makes them again, and the same student."""
    config, own = settings(files, encoder="encoder", teacher="a friend"), tmp_path / "own"
    first, tokens = weights(distill_files(config, own)), own / "tokens" / "passage" / "tokens.bin"
    tokens.write_bytes(bytes(tokens.stat().st_size))
    (own / "manifest.json").unlink()
    assert not moved(first, weights(distill_files(config, own)))
    assert "tokens.bin changed since it was written" in caplog.text
    other = weights(distill_files(replace(config, seed=1), tmp_path / "other"))
    assert (first["classifier.weight"] - other["classifier.weight"]).abs().max() > 0.01
    monkeypatch.setattr(Training, "step", None)  # fails where it is called
    begun = "was begun with another configuration"
    for changed, says in (
        ({"training": TRAINING | {"loss": "bce"}}, f"{begun} .*loss was 'ranknet', is 'bce'"),
        ({"seed": 1}, f"{begun} .*seed was 0, is 1"), ({"lists": str(files / "first.run")}, begun),
        ({"training": {"dev_every": 5}}, "dev, dev_every: expected both or neither, got dev None"),
        ({"dev": str(files / "first.run")}, "expected both or neither, .* and dev_every 0"),
        ({"dev": str(files / "first.run"), "training": {"dev_every": 5}}, "dev: expected other"),
    ):  # fmt: skip
        with pytest.raises(ValueError, match=says):
            distill_files(replace(config, **changed), own)
    assert not moved(first, weights(distill_files(config, own)))
    monkeypatch.undo()
    without = {"teacher": None, "query_tokens": None, "passage_tokens": None}
    without["training"] = {"loss": "adr_mse", "queries_per_step": 2, "list_size": 4}
    distill_files(replace(config, encoder=str(own), **without), tmp_path / "further")
    manifest = json.loads((tmp_path / "further" / "manifest.json").read_text())
    config, stages = manifest["config"], manifest["config"]["stages"]
    assert (manifest["n_lists"], manifest["device"]) == (6, device_name(default_device()))
    recorded = [config[x] for x in ("query_tokens", "passage_tokens", "encoder")]
    assert recorded == [5, 20, str(files / "encoder")]
    assert [stage["lists"]["teacher"] for stage in stages] == ["a friend", None]
    training = [stage["training"] for stage in stages]  # without steps, every list is seen three times
    assert [(x["loss"], x["steps"]) for x in training] == [("ranknet", 6), ("adr_mse", 9)]


@pytest.mark.parametrize("judged", [True, False])
def test_dev_queries_of_a_file_choose_the_state_that_is_kept(files, tmp_path, judged):
    first = (files / "first.run").read_text().splitlines(keepends=True)
    for name, own in (("train", lambda line: line < "q4"), ("dev", lambda line: line >= "q4")):
        (tmp_path / f"{name}.run").write_text("".join(filter(own, first)))
    more = {"dev": str(tmp_path / "dev.run"), "dev_qrels": str(files / "qrels.txt") if judged else None}
    training = TRAINING | {"dev_every": 1, "steps": 6, "learning_rate": 0.1}
    config = replace(settings(files, training=training), lists=str(tmp_path / "train.run"), **more)
    student = distill_files(config, tmp_path / "own")
    log = [line["dev"] for line in read_log(tmp_path / "own")]
    assert len(set(log)) > 1
    dev = read_run(tmp_path / "dev.run")
    run = settle_ties(rerank(student, dev, CORPUS, precision="float32"), dev)
    qrels = dev.assign(relevance=(11 - dev["rank"]).clip(0))
    qrels = read_qrels(files / "qrels.txt") if judged else qrels
    qrels = qrels[qrels["query_id"].isin(dev["query_id"])]
    assert per_query(qrels, run)["nDCG@10"].mean() == pytest.approx(max(log), abs=1e-6)


def test_what_is_not_finite_stops_and_never_reaches_a_checkpoint(tmp_path, monkeypatch):
    """A finite loss may have an infinite gradient; the weights it gives must not be saved."""
    student, own = make_student(), tmp_path / "own"
    student.model.classifier.weight.register_hook(lambda gradient: gradient * math.inf)
    with pytest.raises(FloatingPointError, match="step 0"):
        train(tmp_path, replace(CONFIG, checkpoint_every=1), student=student)
    assert not (tmp_path / "checkpoint.safetensors").exists()
    real, factors = LOSSES["ranknet"], iter([*[1] * 8, math.nan, *[1] * 9])  # one tries
    monkeypatch.setitem(LOSSES, "ranknet", lambda *x, **own: next(factors) * real(*x, **own))
    with pytest.raises(FloatingPointError, match="^loss nan, .* at step 7.*queries") as error:
        train(own)
    assert str(own / "nonfinite.safetensors") in str(error.value)
    saved = load_file(own / "nonfinite.safetensors")
    assert "queries " + ", ".join(map(str, saved["query_rows"][:, 0].tolist())) in str(error.value)
    assert saved["weight.classifier.weight"].isfinite().all()
    assert [line["step"] for line in read_log(own)] == list(range(7))
    train(own)  # goes on from step 6
    assert [line["step"] for line in read_log(own)] == list(range(12))


@pytest.mark.parametrize(("config", "change", "says"), [
    (CONFIG, {"teacher_rank": 0}, "targets: the lists have no teacher_rank"),
    (CONFIG, {"teacher_rank": 1}, "no list has two passages of different targets"),
    (SCORED, {"teacher_score": 0}, "no list has two passages of different targets"),
    (SCORED, {}, "targets: 1 of 36 passages have no finite teacher_score"),
    (JUDGED, {"relevance": 0}, "no passage is judged 1 or more, .* targets 'judgments'"),
    (replace(CONFIG, sampler="single_relevant"), {"relevance": -1}, "sampler 'single_relevant'"),
    (replace(JUDGED, positive_grade=4), {}, "judged 4 or more"),
    (replace(CONFIG, sampler="hard", sampler_options={"first": 1, "last": 99}), {}, "<= depth = 6"),
    (replace(CONFIG, sampler="hard", sampler_options={"first": "1", "last": 2}), {},
     "options of the types that hard and ranknet take"),
    (replace(CONFIG, loss_options={"weighting": "none"}), {}, "weighting must be one of uniform, "),
    (replace(CONFIG, loss="lambda_loss", loss_options={"mu": "ten"}), {}, "random and lambda_loss"),
    (replace(CONFIG, dev_every=2), {}, "^dev_every: expected a dev measure if and only if"),
    (CONFIG, {"dev": len}, "^dev_every"),
    (CONFIG, {"processes": 3}, "queries_per_step: expected a list for each of 3 processes"),
])  # fmt: skip
def test_a_stage_without_what_it_needs_is_refused(tmp_path, monkeypatch, config, change, says):
    lists, change = make_lists(), dict(change)
    lists.teacher_score[2, 3] = math.nan  # only `targets: scores` minds
    dev = change.pop("dev", None)
    monkeypatch.setattr(processes(), "num_processes", change.pop("processes", 1))
    lists = replace(lists, **{x: torch.full_like(getattr(lists, x), y) for x, y in change.items()})
    with pytest.raises(ValueError, match=says):
        train(tmp_path / "run", config, lists=lists, dev=dev)
    assert not (tmp_path / "run").exists()
