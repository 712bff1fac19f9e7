"""How one stage of distillation trains: everything that a run of the loop can be told.

>>> StageConfig(sampler="top", loss="ranknet", targets="teacher", list_size=100,
...             queries_per_step=32, steps=940, learning_rate=1e-5).schedule
'constant'
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any

from rdl_core.devices import PRECISIONS
from rdl_core.losses import LOSSES
from rdl_core.samplers import SAMPLERS

__all__ = ["SCHEDULES", "TARGETS", "StageConfig"]

#: Courses of the learning rate after its warm-up.
SCHEDULES = ("constant", "linear", "cosine")
#: What a student's scores are compared with.
TARGETS = ("teacher", "scores", "judgments")


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
    """A member of `TARGETS`. ``"teacher"``: the teacher's ranks; ``"scores"``: its scores, for losses
    that take their size; ``"judgments"``: relevance, unjudged counting 0."""
    score_scale: float = 1.0
    """What the teacher's scores are multiplied by, to be as far apart as the student's should be."""
    positive_grade: int = 1
    """Smallest relevance that counts as positive; samplers leave out grades between it and 0."""
    list_size: int
    """Passages per query in one list."""
    queries_per_step: int
    """Lists per optimiser step, over all processes."""
    steps: int
    """Optimiser steps, at most."""
    learning_rate: float
    """Peak learning rate of AdamW."""
    warmup_steps: int = 0
    """Steps of linear warm-up."""
    schedule: str = "constant"
    """A member of `SCHEDULES`: how the rate goes on after the warm-up."""
    final_rate: float = 0.1
    """Share of the peak rate that a schedule other than ``"constant"`` ends at."""
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
    held_tokens: int = 16_384
    """Most tokens whose activations are held for the backward pass; lists of a step that come to
    more are scored twice, which costs a third more time and memory that does not grow with them."""
    gradient_checkpointing: bool = False
    """Whether layers keep only their inputs and compute the rest again in the backward pass."""
    precision: str = "float32"
    """A key of `rdl_core.devices.PRECISIONS`."""
    dev_every: int = 0
    """Steps between two looks at the dev measure; the best state seen is restored at the end. 0
    never looks and keeps the last state."""
    patience: int = 0
    """Looks in a row without a better one after which training stops; 0 goes on to the end."""
    checkpoint_every: int = 50
    """Steps between checkpoints."""

    __pydantic_config__ = {"extra": "forbid"}

    def __post_init__(self) -> None:
        for name, valid in (
            ("sampler", SAMPLERS.keys() - {"in_corpus"}),
            ("loss", LOSSES),
            ("targets", TARGETS),
            ("schedule", SCHEDULES),
            ("precision", PRECISIONS),
        ):
            if getattr(self, name) not in valid:
                raise ValueError(
                    f"{name}: expected one of {', '.join(sorted(valid))}; "
                    f"got {getattr(self, name)!r}"
                )
        for name, least in (
            ("list_size", 2), ("queries_per_step", 1), ("steps", 1), ("token_budget", 1),
            ("held_tokens", 0), ("checkpoint_every", 1), ("dev_every", 0), ("patience", 0),
            ("warmup_steps", 0), ("max_gradient_norm", 0), ("weight_decay", 0),
            ("positive_grade", 1), ("head_rate", 0),
        ):
            if getattr(self, name) < least:
                raise ValueError(f"{name}: expected at least {least}, got {getattr(self, name)}")
        if not 0 < self.learning_rate < 1:
            raise ValueError(f"learning_rate: expected between 0 and 1, got {self.learning_rate}")
        if not 0 < self.score_scale < math.inf:
            raise ValueError(f"score_scale: expected a number above 0, got {self.score_scale}")
        if not 0 <= self.dropout < 1:
            raise ValueError(f"dropout: expected 0 or more and below 1, got {self.dropout}")
        if not 0 <= self.final_rate <= 1:
            raise ValueError(f"final_rate: expected a share from 0 to 1, got {self.final_rate}")
        if self.patience and not self.dev_every:
            raise ValueError(f"patience: expected dev_every with it, got {self.patience} alone")
