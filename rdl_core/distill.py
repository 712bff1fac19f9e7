"""The training loop: one stage, from a sampler over ranked lists to a saved student.

A stage reads top to bottom: draw queries, draw a list for each, score it, compare with the targets,
step. The recipe has two of them (Schlatt et al., ECIR 2025, section 3): contrastive on judgments
with hard negatives, then listwise on the teacher's order.

Every step seeds its generators from the stage's seed and its own number. A resumed run thus needs
no generator's state, only weights and optimiser: it ends with the same weights, byte for byte on
a CPU, as one that was never stopped.
"""

from __future__ import annotations

import json
import logging
import os
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from rdl_core.cross_encoder import CrossEncoder
from rdl_core.data.lists import RankedLists
from rdl_core.data.tokens import TokenStore
from rdl_core.devices import PRECISIONS
from rdl_core.losses import LOSSES, targets_from_ranks
from rdl_core.progress import progress
from rdl_core.samplers import SAMPLERS, SampledLists, needs

__all__ = ["StageConfig", "distill"]

_CHECKPOINT = "checkpoint.safetensors"
_log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class StageConfig:
    """How one stage trains."""

    sampler: str
    """A key of `rdl_core.samplers.SAMPLERS`; all but ``in_corpus``, which draws no candidates."""
    sampler_options: dict[str, Any] = field(default_factory=dict)
    """Further arguments of the sampler."""
    loss: str
    """A key of `rdl_core.losses.LOSSES`."""
    loss_options: dict[str, Any] = field(default_factory=dict)
    """Further arguments of the loss."""
    targets: str
    """``"teacher"``: the teacher's ranks; ``"judgments"``: relevance, unjudged counting 0."""
    positive_grade: int = 1
    """Smallest relevance that counts as positive; samplers leave out grades between it and 0."""
    list_size: int
    """Passages per query in one list."""
    queries_per_step: int
    """Lists per optimiser step."""
    steps: int
    """Optimiser steps."""
    learning_rate: float
    """Peak learning rate of AdamW."""
    warmup_steps: int = 0
    """Steps of linear warm-up; a linear decay to a tenth follows where `decay` is true."""
    decay: bool = False
    """Whether the learning rate decays."""
    head_rate: float = 1.0
    """The head's learning rate, as a multiple; a fresh head learns faster with 10."""
    weight_decay: float = 0.01
    """AdamW's decoupled weight decay."""
    max_gradient_norm: float = 0.0
    """Gradients are clipped to this norm; 0 leaves them."""
    dropout: float = 0.1
    """Hidden dropout while training."""
    train_word_embeddings: bool = True
    """Whether the word embeddings train; frozen ones save a third of the optimiser's memory."""
    token_budget: int = 2048
    """Most tokens that go through the encoder at once."""
    precision: str = "float32"
    """A key of `rdl_core.devices.PRECISIONS`."""
    checkpoint_every: int = 50
    """Steps between checkpoints."""

    __pydantic_config__ = {"extra": "forbid"}

    def __post_init__(self) -> None:
        for name, valid in (
            ("sampler", SAMPLERS.keys() - {"in_corpus"}),
            ("loss", LOSSES),
            ("targets", ("teacher", "judgments")),
            ("precision", PRECISIONS),
        ):
            if getattr(self, name) not in valid:
                raise ValueError(
                    f"{name}: expected one of {', '.join(sorted(valid))}; "
                    f"got {getattr(self, name)!r}"
                )
        for name, least in (
            ("list_size", 2), ("queries_per_step", 1), ("steps", 1), ("token_budget", 1),
            ("checkpoint_every", 1), ("warmup_steps", 0), ("max_gradient_norm", 0),
            ("weight_decay", 0), ("positive_grade", 1), ("head_rate", 0),
        ):
            if getattr(self, name) < least:
                raise ValueError(f"{name}: expected at least {least}, got {getattr(self, name)}")
        if not 0 < self.learning_rate < 1:
            raise ValueError(f"learning_rate: expected between 0 and 1, got {self.learning_rate}")
        if not 0 <= self.dropout < 1:
            raise ValueError(f"dropout: expected 0 or more and below 1, got {self.dropout}")


def distill(
    student: CrossEncoder,
    lists: RankedLists,
    queries: TokenStore,
    passages: TokenStore,
    config: StageConfig,
    *,
    seed: int,
    folder: Path,
) -> CrossEncoder:
    """Train a student on ranked lists; resumes from the folder's checkpoint, if there is one.

    Args:
        student: Changed in place.
        lists: Training lists; with ``teacher_rank`` where the targets are the teacher's.
        queries: Token store of the queries.
        passages: Token store of the passages.
        config: The stage.
        seed: Draws of queries, lists and dropout follow from it.
        folder: Gets ``log.jsonl`` (one line a step: step, loss, learning_rate, gradient_norm), the
            checkpoint, and in the end ``model/``.

    Returns:
        The student, in evaluation mode.

    Raises:
        ValueError: Lists without what the sampler or the targets need.
        FloatingPointError: A loss that is not finite; names the step and its queries. The last
            checkpoint stays.

    >>> lists = RankedLists.from_frame(
    ...     frame.assign(teacher_rank=[2, 1, 3]), pd.Index(["q", "r"]), pd.Index(["a", "b", "c"]))
    >>> config = StageConfig(sampler="top", loss="ranknet", targets="teacher", list_size=3,
    ...                      queries_per_step=1, steps=2, learning_rate=1e-3)
    >>> trained = distill(tiny_student, lists, queries, passages, config, seed=0, folder=folder)
    >>> pd.read_json(folder / "log.jsonl", lines=True)["step"].tolist()
    [0, 1]
    """
    _check(lists, config)
    folder.mkdir(parents=True, exist_ok=True)
    device = student.device
    lists, queries, passages = (x.to(device) for x in (lists, queries, passages))
    student.model.get_input_embeddings().requires_grad_(config.train_word_embeddings)
    weights = {n: p for n, p in student.model.named_parameters() if p.requires_grad}
    optimiser = _optimiser(student, weights, config)
    start = _resume(folder, weights, optimiser)
    student.train()
    _set_dropout(student, config.dropout)
    with torch.random.fork_rng(), (folder / "log.jsonl").open("a") as log:
        steps = progress(
            range(start, config.steps), total=config.steps, done=start, what="training"
        )
        for step in steps:
            batch, sampled = _draw(lists, config, seed=seed, step=step)
            scores = _scores(student, batch, sampled, queries, passages, config)
            loss = LOSSES[config.loss](
                scores, _targets(batch, sampled, config), mask=sampled.mask, **config.loss_options
            )
            _check_finite(loss, step, batch, folder)
            rate = _set_learning_rate(optimiser, config, step)
            optimiser.zero_grad()
            loss.backward()
            norm = torch.nn.utils.clip_grad_norm_(
                weights.values(), config.max_gradient_norm or float("inf")
            )
            optimiser.step()
            line = {"step": step, "loss": loss.item(), "learning_rate": rate}
            log.write(json.dumps(line | {"gradient_norm": norm.item()}) + "\n")
            if (step + 1) % config.checkpoint_every == 0:
                log.flush()
                _save_checkpoint(folder, weights, optimiser, step + 1)
    student.eval()
    student.save_pretrained(folder / "model")
    (folder / _CHECKPOINT).unlink(missing_ok=True)
    return student


def _check(lists: RankedLists, config: StageConfig) -> None:
    if config.targets == "teacher" and not (lists.teacher_rank > 0).any():
        raise ValueError(
            "targets: expected lists with a teacher_rank for targets 'teacher', got none: let a "
            "teacher rank the candidates first, or train on targets 'judgments'"
        )
    wanted = needs(config.sampler, config.sampler_options)
    by_judgments = config.targets == "judgments" or "relevant" in wanted
    if by_judgments and not (lists.relevance >= config.positive_grade).any():
        raise ValueError(
            f"expected lists with a passage judged at least {config.positive_grade} for sampler "
            f"{config.sampler!r} and targets {config.targets!r}, found none: give lists with "
            "judgments, or lower positive_grade"
        )


def _draw(
    lists: RankedLists, config: StageConfig, *, seed: int, step: int
) -> tuple[RankedLists, SampledLists]:
    """Queries of a step and a list for each; every query once before any comes again."""
    n, size = len(lists), config.queries_per_step
    device = lists.mask.device
    places = torch.arange(step * size, (step + 1) * size)
    which = torch.stack([_shuffled(n, seed, int(place) // n)[place % n] for place in places])
    batch = lists.take(which.to(device))
    generator = torch.Generator(device).manual_seed(_step_seed(seed, step))
    torch.manual_seed(_step_seed(seed, step))  # dropout
    known = {
        "relevant": batch.relevance >= config.positive_grade,
        "judged": batch.relevance >= 0,
        "teacher_rank": batch.teacher_rank,
    }
    wanted = {name: known[name] for name in needs(config.sampler, config.sampler_options)}
    # Passages judged, but below the positive grade, are neither positives nor fair negatives.
    between = (batch.relevance > 0) & ~known["relevant"]
    eligible = batch.mask & ~between if "relevant" in wanted else batch.mask
    sampled = SAMPLERS[config.sampler](
        eligible, config.list_size, generator=generator, **wanted, **config.sampler_options
    )
    return batch, sampled


def _scores(
    student: CrossEncoder,
    batch: RankedLists,
    sampled: SampledLists,
    queries: TokenStore,
    passages: TokenStore,
    config: StageConfig,
) -> Tensor:
    """Scores of the sampled passages, ``[batch, list_size]``; padding gets some score, masked."""
    passage_rows = batch.passage_rows.gather(1, sampled.indices)
    query_rows = batch.query_rows[:, None].expand_as(passage_rows)
    scores = student.score(
        queries, passages, query_rows.flatten(), passage_rows.flatten(),
        token_budget=config.token_budget, precision=config.precision,
    )
    return scores.view_as(passage_rows)


def _targets(batch: RankedLists, sampled: SampledLists, config: StageConfig) -> Tensor:
    """What the sampled passages should score like; float32 ``[batch, list_size]``."""
    if config.targets == "teacher":
        return targets_from_ranks(batch.teacher_rank.gather(1, sampled.indices), sampled.mask)
    grades = batch.relevance.gather(1, sampled.indices)
    return torch.where(grades >= config.positive_grade, grades, 0).float()


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
    """Linear warm-up, then constant or linear decay to a tenth; a function of the step alone."""
    rate = config.learning_rate * min(1.0, (step + 1) / max(1, config.warmup_steps))
    if config.decay and step >= config.warmup_steps:
        share = (step - config.warmup_steps) / max(1, config.steps - config.warmup_steps)
        rate *= 1.0 - 0.9 * share
    for group in optimiser.param_groups:
        group["lr"] = rate * group["multiple"]
    return rate


def _set_dropout(student: CrossEncoder, share: float) -> None:
    for module in student.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = share


def _check_finite(loss: Tensor, step: int, batch: RankedLists, folder: Path) -> None:
    if not torch.isfinite(loss):
        raise FloatingPointError(
            f"expected a finite loss, got {loss.item()} at step {step} (query rows "
            f"{batch.query_rows.tolist()}): lower learning_rate or set max_gradient_norm; the last "
            f"checkpoint and the log of every step are in {folder}"
        )


def _save_checkpoint(
    folder: Path, weights: dict[str, Tensor], optimiser: torch.optim.AdamW, step: int
) -> None:
    """Weights and optimiser moments in one file, replaced in one stroke."""
    tensors = {f"weight.{name}": weight.detach() for name, weight in weights.items()}
    for name, weight in weights.items():
        tensors |= {f"{key}.{name}": v for key, v in optimiser.state[weight].items()}
    partial = folder / f"{_CHECKPOINT}.partial"
    save_file(tensors, partial, metadata={"step": str(step)})
    os.replace(partial, folder / _CHECKPOINT)


def _resume(folder: Path, weights: dict[str, Tensor], optimiser: torch.optim.AdamW) -> int:
    """Put a checkpoint's state back and cut the log to it; the step to go on from, 0 without one."""
    log = folder / "log.jsonl"
    if not (folder / _CHECKPOINT).exists():
        log.unlink(missing_ok=True)
        return 0
    with safe_open(folder / _CHECKPOINT, "pt") as saved:
        step = int(saved.metadata()["step"])
        with torch.no_grad():
            for name, weight in weights.items():
                weight.copy_(saved.get_tensor(f"weight.{name}"))
                optimiser.state[weight] = {
                    key: saved.get_tensor(f"{key}.{name}").to(weight.device if key != "step" else "cpu")
                    for key in ("step", "exp_avg", "exp_avg_sq")
                }
    log.write_text("".join(log.read_text().splitlines(keepends=True)[:step]))
    _log.info("resuming training after step %d, from %s", step, folder)
    return step


def _step_seed(seed: int, step: int) -> int:
    return (seed << 32) + step


@lru_cache(maxsize=2)
def _shuffled(n: int, seed: int, epoch: int) -> Tensor:
    generator = torch.Generator().manual_seed(_step_seed(seed, -1 - epoch))
    return torch.randperm(n, generator=generator)
