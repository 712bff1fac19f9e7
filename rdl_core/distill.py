"""The training loop: one stage, from a sampler over ranked lists to a saved student.

A stage reads top to bottom: draw queries, draw a list for each, score it, compare with the targets,
step. The recipe has two of them (Schlatt et al., ECIR 2025, section 3): contrastive on judgments
with hard negatives, then listwise on the teacher's order.

Every random draw is seeded from the stage's seed and its own place. A resumed run thus needs no
generator's state, only weights and optimiser: it ends with the same weights, byte for byte on
a CPU, as one that was never stopped. For the same reason the lists of a step do not depend on the
number of processes that share them.
"""

from __future__ import annotations

import json
import logging
import math
import os
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path

import torch
from accelerate.utils import broadcast_object_list, reduce
from torch import Tensor
from torch.utils.tensorboard import SummaryWriter

from rdl_core import checkpoint
from rdl_core.cross_encoder import CrossEncoder
from rdl_core.lists import RankedLists
from rdl_core.tokens import TokenStore
from rdl_core.devices import fitting, processes
from rdl_core.pieces import asked, in_pieces, split, whole
from rdl_core.progress import progress
from rdl_core.samplers import needs
from rdl_core.stage import StageConfig
from rdl_core.step import Step, draw, seed_of

__all__ = ["Training", "distill"]

_CHECKPOINT, _BEST, _BROKEN = (
    f"{name}.safetensors" for name in ("checkpoint", "best", "nonfinite")
)
_log = logging.getLogger(__name__)


def distill(
    student: CrossEncoder,
    lists: RankedLists,
    queries: TokenStore,
    passages: TokenStore,
    config: StageConfig,
    *,
    seed: int,
    folder: Path,
    dev: Callable[[CrossEncoder], float] | None = None,
) -> CrossEncoder:
    """Train a student on ranked lists; resumes from the folder's checkpoint, if there is one.

    Started by ``accelerate launch``, processes share the lists of each step and add up their
    gradients; the first of them writes. With ``--use_fsdp`` each holds a piece of every weight.

    Args:
        student: Changed in place.
        lists: Training lists; with ``teacher_rank`` where the targets are the teacher's, and with
            ``teacher_score`` where they are its scores.
        queries: Token store of the queries.
        passages: Token store of the passages.
        config: The stage.
        seed: Draws of queries, lists and dropout follow from it.
        folder: Gets ``log.jsonl`` (one line a step: step, loss, learning_rate, gradient_norm, and
            dev where it was measured), the same in ``tensorboard/``, the checkpoint, and in the
            end ``model/``.
        dev: The measure that ``dev_every`` asks for, higher is better, of queries that are not in
            `lists`.

    Returns:
        The student in evaluation mode: its last state, or with `dev` the best that was measured;
        in pieces, where it was trained in pieces.

    Raises:
        ValueError: Lists without what the sampler or the targets need; more processes than lists in
            a step; only one of `dev` and ``dev_every``.
        MemoryError: As `rdl_core.devices.fitting` has it; with less memory than ``token_budget``
            takes, a smaller one is used, and that is logged.
        FloatingPointError: A loss or gradient that is not finite; names the step and its queries.
            State and lists go to ``nonfinite.safetensors``; the last checkpoint stays.

    >>> lists = RankedLists.from_frame(
    ...     frame.assign(teacher_rank=[2, 1, 3]), pd.Index(["q", "r"]), pd.Index(["a", "b", "c"]))
    >>> stage = profile.stage2.training
    >>> trained = distill(tiny_student, lists, queries, passages, stage, seed=0, folder=folder)
    >>> pd.read_json(folder / "log.jsonl", lines=True)["step"].tolist()
    [0, 1]
    """
    _check(lists, config, dev)
    folder.mkdir(parents=True, exist_ok=True)
    lists, queries, passages = (x.to(student.device) for x in (lists, queries, passages))
    training = Training(student, config, folder)
    with torch.random.fork_rng(), _Log(folder, training.standing.step) as log:
        for step in training.steps():
            rate = _set_learning_rate(training.optimiser, config, step)
            drawn = Step.share(
                *draw(lists, config, seed=seed, step=step), _own_share(), config, student=student,
                queries=queries, passages=passages, seed=seed_of(seed, "dropout", step),
            )
            loss, norm = training.descend(drawn)
            line = {"loss": loss, "learning_rate": rate, "gradient_norm": norm}
            log.write({"step": step} | line | training.measure(dev))
            if (step + 1) % config.checkpoint_every == 0:
                log.flush()
                training.save(_CHECKPOINT)
    return training.finish()


@dataclass(kw_only=True)
class _Standing:
    """Where a training stands, beside its weights and moments."""

    step: int = 0
    """Steps done."""
    best: float = -math.inf
    """Best dev measure so far."""
    worse_since: int = 0
    """Dev measures since the best one."""


class Training:
    """A student on its way: weights, optimiser, and where it stands.

    Args:
        student: Made ready to train as the stage says.
        config: The stage.
        folder: Where checkpoints are kept; one that is there is read.

    >>> Training(tiny_student, profile.stage2.training, folder).standing.step
    0
    """

    def __init__(self, student: CrossEncoder, config: StageConfig, folder: Path) -> None:
        _set_up(student, config)
        if asked():
            split(student)
        self.student, self.config, self.folder = student, config, folder
        self.weights = {n: p for n, p in student.model.named_parameters() if p.requires_grad}
        self.optimiser = _optimiser(student, self.weights, config)
        self.standing = _Standing()
        self._token_budget = config.token_budget
        if (folder / _CHECKPOINT).exists():
            self.standing = _Standing(
                **checkpoint.load(folder / _CHECKPOINT, self.weights, self.optimiser)
            )
            _log.info("resuming training after step %d, from %s", self.standing.step, folder)

    def steps(self) -> Iterator[int]:
        """Steps that are left, until the dev measure has not grown for long enough."""
        done, total = self.standing.step, self.config.steps
        for step in progress(range(done, total), total=total, done=done, what="training"):
            if self.config.patience and self.standing.worse_since >= self.config.patience:
                _log.info("stopping early after %d steps, best dev %.4f", step, self.standing.best)
                return
            yield step

    def descend(self, drawn: Step) -> tuple[float, float]:
        """One optimiser step on the lists of all processes; their loss and gradient norm."""
        if in_pieces(self.student):  # one process with smaller batches would leave the others waiting
            loss = reduce(self._backward(drawn, token_budget=self._token_budget), "sum")
        else:
            own, self._token_budget = fitting(partial(self._backward, drawn), self._token_budget)
            loss = _sum_over_processes(own, self.weights)
        limit = self.config.max_gradient_norm or math.inf
        norm = whole(torch.nn.utils.clip_grad_norm_(self.weights.values(), limit))
        self._check_finite(loss, norm, drawn)
        self.optimiser.step()
        self.standing.step += 1
        return loss.item(), norm.item()

    def _backward(self, drawn: Step, *, token_budget: int) -> Tensor:
        """Gradients of this process's lists alone; held activations shrink with the budget."""
        self.optimiser.zero_grad()
        held = self.config.held_tokens * token_budget // self.config.token_budget
        smaller = replace(self.config, token_budget=token_budget, held_tokens=held)
        return replace(drawn, config=smaller).backward()

    def measure(self, dev: Callable[[CrossEncoder], float] | None) -> dict[str, float]:
        """The dev measure where it is due, taken by the first process for all.

        In pieces no process can take it alone.
        """
        if dev is None or self.standing.step % self.config.dev_every:
            return {}
        takes = processes().is_main_process or in_pieces(self.student)
        value = [dev(self.student.eval()) if takes else None]
        broadcast_object_list(value)
        self.student.train()
        if value[0] > self.standing.best:
            self.standing.best, self.standing.worse_since = value[0], 0
            self.save(_BEST)
        else:
            self.standing.worse_since += 1
        return {"dev": value[0]}

    def save(self, name: str, **more: Tensor) -> None:
        """Write weights, moments and standing into a file of the folder."""
        standing = asdict(self.standing)
        checkpoint.save(self.folder / name, self.weights, self.optimiser, standing=standing, **more)

    def finish(self) -> CrossEncoder:
        """Put the best state back, where there was a choice, and write the student."""
        if (self.folder / _BEST).exists():
            checkpoint.load(self.folder / _BEST, self.weights)
        weights = {name: whole(w) for name, w in self.student.eval().model.state_dict().items()}
        if processes().is_main_process:
            self.student.save_pretrained(self.folder / "model", weights)
        processes().wait_for_everyone()
        for name in (_CHECKPOINT, _BEST):
            (self.folder / name).unlink(missing_ok=True)
        return self.student

    def _check_finite(self, loss: Tensor, norm: Tensor, drawn: Step) -> None:
        for what, value in (("loss", loss), ("gradient", norm)):
            if not torch.isfinite(value):
                self.save(_BROKEN, **drawn.drawn())
                raise FloatingPointError(
                    f"expected a finite {what}, got {value.item()} at step {self.standing.step} "
                    f"(query rows {drawn.batch.query_rows.tolist()}): lower learning_rate or set "
                    f"max_gradient_norm; state and lists are in {self.folder / _BROKEN}, the last "
                    "checkpoint and the log of every step beside it"
                )


class _Log:
    """A line of JSON a step, and TensorBoard's events; from the first process alone."""

    def __init__(self, folder: Path, start: int) -> None:
        self._writes = processes().is_main_process
        self._path, self._start = folder / "log.jsonl", start

    def __enter__(self) -> _Log:
        if self._writes:
            self._cut()
            self._lines = self._path.open("a")
            events = self._path.with_name("tensorboard")
            self._events = SummaryWriter(events, purge_step=self._start)
        return self

    def __exit__(self, *_: object) -> None:
        if self._writes:
            self._lines.close()
            self._events.close()

    def write(self, line: dict[str, float]) -> None:
        if self._writes:
            self._lines.write(json.dumps(line) + "\n")
            for name, value in line.items():
                self._events.add_scalar(name, value, line["step"])

    def flush(self) -> None:
        if self._writes:
            self._lines.flush()

    def _cut(self) -> None:
        """Take off lines after the step that the training goes on from, in one stroke."""
        with self._path.open("ab+") as file:
            file.seek(0)
            kept = sum(len(line) for line, _ in zip(file, range(self._start), strict=False))
        os.truncate(self._path, kept)


def _check(
    lists: RankedLists, config: StageConfig, dev: Callable[[CrossEncoder], float] | None
) -> None:
    if config.targets == "teacher" and not (lists.teacher_rank > 0).any():
        raise ValueError(
            "targets: expected lists with a teacher_rank for targets 'teacher', got none: let a "
            "teacher rank the candidates first, or train on targets 'judgments'"
        )
    if config.targets == "scores" and (left := lists.mask & ~lists.teacher_score.isfinite()).any():
        raise ValueError(
            "targets: expected a finite teacher_score for every passage with targets 'scores', but "
            f"{int(left.sum())} of {int(lists.mask.sum())} have none: give them, or train on targets "
            "'teacher', which takes ranks"
        )
    wanted = needs(config.sampler, config.sampler_options)
    by_judgments = config.targets == "judgments" or "relevant" in wanted
    if by_judgments and not (lists.relevance >= config.positive_grade).any():
        raise ValueError(
            f"expected lists with a passage judged at least {config.positive_grade} for sampler "
            f"{config.sampler!r} and targets {config.targets!r}, found none: give lists with "
            "judgments, or lower positive_grade"
        )
    if (dev is None) != (config.dev_every == 0):
        raise ValueError(
            f"dev_every: expected a dev measure if and only if it is not 0, got {config.dev_every} "
            f"and {'no' if dev is None else 'a'} measure: give both or neither"
        )
    if (n_processes := processes().num_processes) > config.queries_per_step:
        raise ValueError(
            f"queries_per_step: expected at least one list for each of {n_processes} processes, got "
            f"{config.queries_per_step}: raise it or start fewer processes"
        )


def _set_up(student: CrossEncoder, config: StageConfig) -> None:
    """What of the student itself a stage decides."""
    student.model.get_input_embeddings().requires_grad_(config.train_word_embeddings)
    student.gradient_checkpointing(config.gradient_checkpointing)
    for module in student.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = config.dropout
    student.train()


def _optimiser(
    student: CrossEncoder, weights: dict[str, Tensor], config: StageConfig
) -> torch.optim.AdamW:
    head = student.head_names()
    groups = [
        {"params": [w for name, w in weights.items() if (name in head) == of_head], "multiple": rate}
        for of_head, rate in ((False, 1.0), (True, config.head_rate))
    ]
    return torch.optim.AdamW(groups, lr=config.learning_rate, weight_decay=config.weight_decay)


def _set_learning_rate(
    optimiser: torch.optim.Optimizer, config: StageConfig, step: int
) -> float:
    """Linear warm-up, then the schedule; a function of the step alone. Gives the encoder's rate."""
    rate = config.learning_rate * min(1.0, (step + 1) / max(1, config.warmup_steps))
    if config.schedule != "constant" and step >= config.warmup_steps:
        share = (step - config.warmup_steps) / max(1, config.steps - config.warmup_steps)
        if config.schedule == "cosine":
            share = (1 - math.cos(math.pi * share)) / 2
        rate *= 1 - (1 - config.final_rate) * share
    for group in optimiser.param_groups:
        group["lr"] = rate * group["multiple"]
    return rate


def _own_share() -> slice:
    """Every so-many-th list of a step is this process's."""
    state = processes()
    return slice(state.process_index, None, state.num_processes)


def _sum_over_processes(loss: Tensor, weights: dict[str, Tensor]) -> Tensor:
    """Add up the loss and, in place, the gradients of all processes, in one exchange."""
    if processes().num_processes == 1:
        return loss
    for weight in weights.values():
        if weight.grad is None:  # a share without a single passage
            weight.grad = torch.zeros_like(weight)
    gradients = [weight.grad for weight in weights.values()]
    total = reduce(torch.cat([loss[None], *(g.flatten() for g in gradients)]), "sum")
    parts = total[1:].split([g.numel() for g in gradients])
    for gradient, part in zip(gradients, parts, strict=True):
        gradient.copy_(part.view_as(gradient))
    return total[0]
