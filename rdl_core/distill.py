"""Distillation, top down: the recipe (`two_stages`), a stage (`distill`), a step.

Every random draw is seeded from the stage's seed and its own place. So a resumed run ends with the same
weights, byte for byte on a CPU, and a step's lists do not depend on the number of processes.
"""

from __future__ import annotations

import hashlib
import json
import logging
import math
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, replace
from functools import lru_cache
from pathlib import Path
from typing import TextIO

import torch
from accelerate.utils import broadcast_object_list, reduce
from torch import Tensor
from torch.nn.utils import parameters_to_vector, vector_to_parameters

from rdl_core import checkpoint
from rdl_core.config import StageConfig
from rdl_core.cross_encoder import CrossEncoder, best_of
from rdl_core.devices import fitting, processes, resolve_precision
from rdl_core.files import MANIFEST, Work, read_json, resumable
from rdl_core.lists import RankedLists
from rdl_core.losses import LOSSES, has_preference, targets_from_ranks
from rdl_core.progress import progress
from rdl_core.samplers import SAMPLERS, SampledLists, needs
from rdl_core.tokens import plan_batches

__all__ = ["CONTRASTIVE", "LISTWISE", "StageConfig", "Training", "check", "distill", "draw", "held",
           "targets", "two_stages"]  # fmt: skip

#: Stage 1 of the paper: the relevant passage against seven hard negatives of the first stage.
CONTRASTIVE = StageConfig(
    sampler="single_relevant", loss="info_nce", targets="judgments", list_size=8, steps=20_000
)
#: Stage 2 of the paper: the teacher's order of the first stage's top 100.
LISTWISE = StageConfig(sampler="top", loss="ranknet", targets="teacher", list_size=100, steps=940)
_CHECKPOINT, _BEST, _NONFINITE = (f"{x}.safetensors" for x in ("checkpoint", "best", "nonfinite"))
_log = logging.getLogger(__name__)
# oneDNN keeps 1,024 kernels, each with memory of its own: 64 take half a gigabyte less. Read when it is
# first used.
os.environ.setdefault("ONEDNN_PRIMITIVE_CACHE_CAPACITY", "64")


def two_stages(
    student: CrossEncoder, judged: RankedLists, ranked: RankedLists, *, folder: str | Path,
    seed: int = 0, contrastive: StageConfig = CONTRASTIVE, listwise: StageConfig = LISTWISE,
) -> CrossEncoder:  # fmt: skip
    """Distil a student by Rank-DistiLLM's recipe (Schlatt et al., ECIR 2025, section 3).

    First contrastive: the student learns to tell the relevant passage from hard negatives (lists with
    ``relevance``). Then listwise: it learns the LLM's order of a first stage's top passages (lists with
    ``teacher_rank``). The student, with a fresh head, is changed in place and returned in evaluation
    mode. `folder` gets ``contrastive/`` and ``listwise/``; resumes where it was killed.
    """
    for name, lists, config in (("contrastive", judged, contrastive), ("listwise", ranked, listwise)):
        tables = ("query_rows", "passage_rows", "teacher_rank", "teacher_score", "relevance")
        data = checkpoint.digest("", {table: getattr(lists, table) for table in tables})
        identity = {"stage": asdict(config), "seed": seed, "lists": data}
        with held(Path(folder) / name, identity) as work:
            if work.manifest is None:
                distill(student, lists, config, seed=seed, folder=work.folder)
                if processes().is_main_process:
                    work.finish()
            else:
                finished = CrossEncoder.from_pretrained(work.folder / "model")
                student.load_state_dict(finished.state_dict())
    return student.eval()


def distill(
    student: CrossEncoder, lists: RankedLists, config: StageConfig, *, seed: int, folder: Path,
    dev: Callable[[CrossEncoder], float] | None = None,
) -> CrossEncoder:  # fmt: skip
    """Train a student, in place, on ranked lists: one stage; resumes from the folder's checkpoint.

    Processes of one ``accelerate launch`` share the lists of each step; the first of them writes.
    `folder` gets ``log.jsonl`` (per step: step, loss, learning_rate, gradient_norm, perhaps dev), the
    checkpoint, and at the end ``model/``. `dev`, higher is better, is the measure for ``dev_every``.
    Gives the student in evaluation mode: its last state, or with `dev` the best.

    ValueError where the lists lack what the stage needs. FloatingPointError for a loss or gradient that
    is not finite names step and queries; state and lists go to ``nonfinite.safetensors``.
    """
    check(lists, config, dev)
    folder.mkdir(parents=True, exist_ok=True)
    training, lists = Training(student, config, folder), lists.to(student.device)
    start, total = training.progress["step"], config.steps
    with torch.random.fork_rng(), _log_of_steps(folder, start) as log:
        for step in progress(range(start, total), total=total, done=start, what="training"):
            if config.patience and training.progress["worse_since"] >= config.patience:
                _log.info("stopping early after %d steps, best %.4f", step, training.progress["best"])
                break
            rate = training.set_learning_rate(step)
            batch, sampled = draw(lists, config, seed=seed, step=step)
            loss, norm = training.step(batch, sampled, seed=seed_of(seed, "dropout", step))
            line = {"step": step, "loss": loss, "learning_rate": rate, "gradient_norm": norm}
            log.write(json.dumps(line | training.measure(dev)) + "\n")
            if (step + 1) % config.checkpoint_every == 0:
                training.save(_CHECKPOINT)
    return training.finish()


def draw(
    lists: RankedLists, config: StageConfig, *, seed: int, step: int
) -> tuple[RankedLists, SampledLists]:
    """The queries of a step, counted from 0, and a list of each; all come before one comes again."""
    n, size, device = len(lists), config.queries_per_step, lists.mask.device
    places = range(step * size, (step + 1) * size)
    which = torch.stack([_shuffled(n, seed, place // n)[place % n] for place in places])
    batch = lists.take(which.to(device))
    relevant, judged = batch.relevance >= config.positive_grade, batch.relevance >= 0
    known = {"relevant": relevant, "judged": judged, "teacher_rank": batch.teacher_rank}
    wanted = {name: known[name] for name in needs(config.sampler)}
    # Passages judged, but below the positive grade, are neither positives nor fair negatives.
    between = (batch.relevance > 0) & ~relevant
    eligible = batch.mask & ~between if "relevant" in wanted else batch.mask
    generator = torch.Generator(device).manual_seed(seed_of(seed, "lists", step))
    options = wanted | config.sampler_options | {"generator": generator}
    return batch, SAMPLERS[config.sampler](eligible, config.list_size, **options)


def targets(lists: RankedLists, sampled: SampledLists, config: StageConfig) -> Tensor:
    """Targets of the drawn passages, float32 ``[batch, list_size]``; the unranked are last."""
    if config.targets == "teacher":
        ranks = lists.teacher_rank.gather(1, sampled.indices)
        return targets_from_ranks(ranks.where(ranks > 0, 2**31 - 1), sampled.mask)
    if config.targets == "scores":
        return config.score_scale * lists.teacher_score.gather(1, sampled.indices)
    grades = lists.relevance.gather(1, sampled.indices)
    return torch.where(grades >= config.positive_grade, grades, 0).float()


class Training:
    """A student in training: weights, optimiser, progress; goes on from the folder's checkpoint."""

    def __init__(self, student: CrossEncoder, config: StageConfig, folder: Path) -> None:
        self.student, self.config, self.folder = student, config, folder
        self.precision = resolve_precision(config.precision, student.device)
        on_onednn = student.device.type == "cpu" and self.precision == "bfloat16"
        # oneDNN keeps a kernel, and its memory, for each shape: few shapes are better.
        self._padded = {"fill": 64, "lengths": 16} if on_onednn else {"fill": 1, "lengths": 1}
        student.model.get_input_embeddings().requires_grad_(config.train_word_embeddings)
        for module in student.train().modules():
            if isinstance(module, torch.nn.Dropout):
                module.p = config.dropout
        self.weights = {n: p for n, p in student.model.named_parameters() if p.requires_grad}
        head = student.head_names()
        groups = [
            {"params": [w for n, w in self.weights.items() if n not in head], "multiple": 1.0},
            {"params": [w for n, w in self.weights.items() if n in head], "multiple": config.head_rate},
        ]
        self.optimiser = torch.optim.AdamW(groups, lr=config.learning_rate, fused=True)
        # Steps done, the best dev measure so far, and how many measures ago that was.
        self.progress = {"step": 0, "best": -math.inf, "worse_since": 0}
        self._token_budget = config.token_budget
        if (folder / _CHECKPOINT).exists():
            self.progress = checkpoint.load(folder / _CHECKPOINT, self.weights, self.optimiser)
            _log.info("resuming training after step %d, from %s", self.progress["step"], folder)

    def set_learning_rate(self, step: int) -> float:
        """Linear warm-up, then the schedule; a function of the step alone. Gives the encoder's rate."""
        config = self.config
        rate = config.learning_rate * min(1.0, (step + 1) / max(1, config.warmup_steps))
        if config.schedule != "constant" and step >= config.warmup_steps:
            share = (step - config.warmup_steps) / max(1, config.steps - config.warmup_steps)
            if config.schedule == "cosine":
                share = (1 - math.cos(math.pi * share)) / 2
            rate *= 1 - 0.9 * share  # down to a tenth
        for group in self.optimiser.param_groups:
            group["lr"] = rate * group["multiple"]
        return rate

    def step(self, lists: RankedLists, sampled: SampledLists, *, seed: int) -> tuple[float, float]:
        """One optimiser step on lists from `draw`, shared by all processes; loss and gradient norm.

        Batches whose activations are too many to hold are scored twice: without a graph, for the loss
        and its gradient by each score; then with one (Gao et al., RepL4NLP 2021).
        """
        goals = targets(lists, sampled, self.config)
        n_lists = has_preference(goals, sampled.mask).sum().clamp(min=1)
        passage_rows = lists.passage_rows.gather(1, sampled.indices)
        query_rows = lists.query_rows[:, None].expand_as(passage_rows)
        own = slice(processes().process_index, None, processes().num_processes)  # of this process
        mask = sampled.mask[own]
        places = mask.flatten().nonzero().squeeze(1)  # padding is not scored
        limits = self.student.passage_tokens, self.student.chunks
        passages, pieces, source = lists.passages.pieces(passage_rows[own].flatten()[places], *limits)
        places = places[source]  # of pieces
        texts, pairs = (lists.queries, passages), (query_rows[own].flatten()[places], pieces)
        lengths = self.student.pair_lengths(*texts, *pairs).cpu()
        widths = -(-lengths // self._padded["lengths"]) * self._padded["lengths"]

        def score(number: int, batch: Tensor) -> Tensor:
            torch.manual_seed(seed_of(seed, "dropout", number))  # the same when scored again
            rows = (x[batch] for x in pairs)
            return self.student.score_batch(*texts, *rows, precision=self.precision, **self._padded)

        def backward(*, token_budget: int) -> Tensor:
            self.optimiser.zero_grad()
            batches = [x.to(mask.device) for x in plan_batches(widths, token_budget)]
            if not batches:
                return torch.zeros((), device=mask.device)
            # What is held shrinks with the budget, where memory ran out.
            left = self.config.held_tokens * token_budget // self.config.token_budget
            flat = []
            for number, batch in enumerate(batches):
                left -= int(widths[batch.cpu()].sum())
                with torch.set_grad_enabled(left >= 0):
                    flat.append(score(number, batch))
            of_pieces = torch.cat(flat).detach().requires_grad_()
            scores = best_of(of_pieces, places[torch.cat(batches)], mask.numel()).view(mask.shape)
            own_options = {"mask": mask, "reduction": "none", **self.config.loss_options}
            losses = LOSSES[self.config.loss](scores.where(mask, 0), goals[own], **own_options)
            loss = losses.sum() / n_lists
            loss.backward()
            gradients = of_pieces.grad.split([*map(len, batches)])
            for number, batch in enumerate(batches):
                again = flat[number] if flat[number].requires_grad else score(number, batch)
                again.backward(gradients[number])
                flat[number] = again.detach()  # its activations are free
            return loss.detach()

        loss, self._token_budget = fitting(backward, self._token_budget)
        loss = _sum_over_processes(loss, self.weights)
        limit = self.config.max_gradient_norm or math.inf
        norm = torch.nn.utils.clip_grad_norm_(self.weights.values(), limit)
        if not (torch.isfinite(loss) and torch.isfinite(norm)):
            drawn = {"query_rows": query_rows, "passage_rows": passage_rows, "mask": sampled.mask}
            self.save(_NONFINITE, targets=goals, **drawn)
            rows = lists.query_rows.tolist()
            names = [lists.query_ids[row] for row in rows] if len(lists.query_ids) else rows
            remedy = "lower learning_rate or set max_gradient_norm"
            if not goals[sampled.mask].isfinite().all():
                remedy = "the targets are not finite: correct the teacher's scores"
            raise FloatingPointError(
                f"loss {loss.item()}, gradient norm {norm.item()} at step {self.progress['step']}, "
                f"queries {', '.join(map(str, names))}: {remedy}; state: {self.folder / _NONFINITE}"
            )
        self.optimiser.step()
        self.progress["step"] += 1
        return loss.item(), norm.item()

    def measure(self, dev: Callable[[CrossEncoder], float] | None) -> dict[str, float]:
        """The dev measure where it is due, taken by the first process for all."""
        if dev is None or self.progress["step"] % self.config.dev_every:
            return {}
        value = [dev(self.student.eval()) if processes().is_main_process else None]
        broadcast_object_list(value)
        self.student.train()
        self.progress["worse_since"] += 1
        if value[0] > self.progress["best"]:
            self.progress |= {"best": value[0], "worse_since": 0}
            self.save(_BEST)
        return {"dev": value[0]}

    def save(self, name: str, **more: Tensor) -> None:
        """Write weights, moments and progress into a file of the folder; the first process does."""
        if processes().is_main_process:
            path = self.folder / name
            checkpoint.save(path, self.weights, self.optimiser, progress=self.progress, **more)

    def finish(self) -> CrossEncoder:
        """Restore the best state, where dev was measured, and write the student."""
        if (self.folder / _BEST).exists():
            checkpoint.load(self.folder / _BEST, self.weights)
        self.student.eval()
        processes().wait_for_everyone()
        if processes().is_main_process:
            self.student.save_pretrained(self.folder / "model")
            for name in (_CHECKPOINT, _BEST):
                (self.folder / name).unlink(missing_ok=True)
        return self.student


def seed_of(*parts: object) -> int:
    """A seed whose every bit depends on every part: CPU generators read the low 32 bits alone."""
    return int.from_bytes(hashlib.blake2b(repr(parts).encode(), digest_size=7).digest())


@lru_cache(maxsize=2)
def _shuffled(n: int, seed: int, epoch: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed_of(seed, "queries", epoch))
    return torch.randperm(n, generator=generator)


def _sum_over_processes(loss: Tensor, weights: dict[str, Tensor]) -> Tensor:
    """Add up the loss and, in place, the gradients of all processes, in one exchange."""
    if processes().num_processes == 1:
        return loss
    for weight in weights.values():
        if weight.grad is None:  # a share without a single passage
            weight.grad = torch.zeros_like(weight)
    gradients = [weight.grad for weight in weights.values()]
    total = reduce(torch.cat([loss[None], parameters_to_vector(gradients)]), "sum")
    vector_to_parameters(total[1:], gradients)
    return total[0]


def _log_of_steps(folder: Path, start: int) -> TextIO:
    """Open ``log.jsonl`` to append lines; those from `start` on go. The first process alone writes."""
    if not processes().is_main_process:
        return open(os.devnull, "w")
    log = (folder / "log.jsonl").open("a+", buffering=1)
    log.seek(0)
    for _ in range(start):
        log.readline()
    os.ftruncate(log.fileno(), log.tell())
    return log


def check(lists: RankedLists, config: StageConfig, dev: Callable | None) -> None:
    """ValueError where lists, options or `dev` are not what a stage needs; reads no text."""
    unscored = lists.mask & ~lists.teacher_score.isfinite()
    by_judgments = config.targets == "judgments" or "relevant" in needs(config.sampler)
    n_processes, n_lists = processes().num_processes, config.queries_per_step
    refusals = (
        (config.targets == "teacher" and not (lists.teacher_rank > 0).any(),
         "targets: the lists have no teacher_rank: let a teacher rank first, or use 'judgments'"),
        (config.targets == "scores" and unscored.any(),
         f"targets: {int(unscored.sum())} of {int(lists.mask.sum())} passages have no finite "
         "teacher_score: give them, or train on targets 'teacher'"),
        (by_judgments and not (lists.relevance >= config.positive_grade).any(),
         f"no passage is judged {config.positive_grade} or more, which sampler {config.sampler!r} and "
         f"targets {config.targets!r} need: give lists with judgments, or lower positive_grade"),
        ((dev is None) != (config.dev_every == 0),
         f"dev_every: expected a dev measure if and only if it is not 0, got {config.dev_every}"),
        (n_processes > n_lists,
         f"queries_per_step: expected a list for each of {n_processes} processes, got {n_lists}: "
         "raise it or start fewer processes"),
    )  # fmt: skip
    for refused, message in refusals:
        if refused:
            raise ValueError(message)
    try:  # options by their values, too
        _, one = draw(lists, replace(config, queries_per_step=1), seed=0, step=0)
        trial, mask = torch.zeros(one.mask.shape), one.mask.cpu()
        LOSSES[config.loss](trial, trial, mask=mask, **config.loss_options)
    except TypeError as error:
        told = f"expected options of the types that {config.sampler} and {config.loss} take"
        raise ValueError(f"sampler_options, loss_options: {told}; {error}") from None
    whole = torch.arange(lists.mask.shape[1], device=lists.mask.device).expand(lists.mask.shape)
    if not has_preference(targets(lists, SampledLists(whole, lists.mask), config), lists.mask).any():
        told = "no list has two passages of different targets: nothing can be learnt"
        raise ValueError(f"{told}; check what ranked or judged them")


@contextmanager
def held(folder: Path, identity: dict) -> Iterator[Work]:
    """`resumable`; of several processes of one launch, the first one holds the folder for all."""
    if processes().is_main_process:
        with resumable(folder, identity) as work:
            processes().wait_for_everyone()
            yield work
    else:
        processes().wait_for_everyone()
        path = folder / MANIFEST
        yield Work(folder, identity, read_json(path) if path.exists() else None)
