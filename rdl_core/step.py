"""One training step: which lists, and the exact gradient of their loss in bounded memory.

A listwise loss needs the scores of whole lists, but not their activations. Where the lists of a
step are too long to hold these, they are scored twice: first without a graph, for the loss and its
gradient by each score; then batch by batch with one, to carry that gradient on to the weights. Both
ways give the same gradient; the second needs memory for one batch, however long the lists.

Every draw is seeded from the stage's seed and its own place, dropout included, so that a batch
scored twice is the same batch, and a step drawn again the same step. Reference: Gao et al. (gradient
caching), RepL4NLP 2021, for contrastive losses of bi-encoders.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from functools import lru_cache

import torch
from torch import Tensor

from rdl_core.cross_encoder import CrossEncoder
from rdl_core.lists import RankedLists
from rdl_core.tokens import TokenStore, plan_batches
from rdl_core.losses import LOSSES, has_preference, targets_from_ranks
from rdl_core.pieces import in_pieces, rounds
from rdl_core.samplers import SAMPLERS, SampledLists, needs
from rdl_core.stage import StageConfig

__all__ = ["Step", "draw", "seed_of", "targets"]


def draw(
    lists: RankedLists, config: StageConfig, *, seed: int, step: int
) -> tuple[RankedLists, SampledLists]:
    """Queries of a step and a list for each; every query comes once before any comes again.

    Args:
        lists: All training lists.
        config: Its sampler, list size and queries per step.
        seed: The stage's.
        step: Number of the step, from 0.

    Returns:
        The queries' lists, ``[queries_per_step, depth]``, and what was drawn from each.

    >>> lists = RankedLists.from_frame(frame, pd.Index(["q"]), pd.Index(["a", "b", "c"]))
    >>> draw(lists, profile.stage2.training, seed=0, step=0)[1].indices
    tensor([[0, 1, 2],
            [0, 1, 2]])
    """
    n, size, device = len(lists), config.queries_per_step, lists.mask.device
    places = range(step * size, (step + 1) * size)
    which = torch.stack([_shuffled(n, seed, place // n)[place % n] for place in places])
    batch = lists.take(which.to(device))
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
        eligible, config.list_size, generator=_generator(device, seed, "lists", step), **wanted,
        **config.sampler_options,
    )
    return batch, sampled


def targets(batch: RankedLists, sampled: SampledLists, config: StageConfig) -> Tensor:
    """What the sampled passages should score like; float32 ``[batch, list_size]``.

    Passages that the teacher left out share the place behind all that it ranked.

    >>> lists = RankedLists.from_frame(
    ...     frame.assign(teacher_rank=[2, 1, 0]), pd.Index(["q"]), pd.Index(["a", "b", "c"]))
    >>> targets(*draw(lists, profile.stage2.training, seed=0, step=0), profile.stage2.training)[0]
    tensor([2., 3., 1.])
    """
    if config.targets == "teacher":
        ranks = batch.teacher_rank.gather(1, sampled.indices)
        last = torch.iinfo(torch.int32).max
        return targets_from_ranks(ranks.where(ranks > 0, last), sampled.mask)
    if config.targets == "scores":
        return config.score_scale * batch.teacher_score.gather(1, sampled.indices)
    grades = batch.relevance.gather(1, sampled.indices)
    return torch.where(grades >= config.positive_grade, grades, 0).float()


@dataclass(frozen=True, kw_only=True)
class Step:
    """The lists of one step, or a share of them, and how they are scored.

    >>> lists = RankedLists.from_frame(
    ...     frame.assign(teacher_rank=[2, 1, 3]), pd.Index(["q"]), pd.Index(["a", "b", "c"]))
    >>> config = profile.stage2.training
    >>> drawn = dict(zip(("batch", "sampled"), draw(lists, config, seed=0, step=0)))
    >>> step = Step(student=tiny_student, queries=queries, passages=passages, config=config,
    ...             n_lists=torch.tensor(2), seed=0, **drawn)
    >>> bool(step.backward() > 0)
    True
    """

    student: CrossEncoder
    """In training mode."""
    queries: TokenStore
    """Token store of the queries, on the student's device."""
    passages: TokenStore
    """Token store of the passages, likewise."""
    config: StageConfig
    """The stage."""
    batch: RankedLists
    """Lists of the queries, from `draw`, or some rows of them."""
    sampled: SampledLists
    """What was drawn from these lists."""
    n_lists: Tensor
    """Lists with a preference in the whole step: what the loss is a mean over."""
    seed: int
    """Of dropout."""

    @classmethod
    def share(
        cls, batch: RankedLists, sampled: SampledLists, part: slice, config: StageConfig, **own: object
    ) -> Step:
        """Every so-many-th list of a step, its loss still a mean over all of them.

        >>> lists = RankedLists.from_frame(frame, pd.Index(["q"]), pd.Index(["a", "b", "c"]))
        >>> drawn = draw(lists, profile.stage2.training, seed=0, step=0)
        >>> own = dict(student=tiny_student, queries=queries, passages=passages, seed=0)
        >>> len(Step.share(*drawn, slice(0, None, 2), profile.stage2.training, **own).batch)
        1
        """
        preferred = has_preference(targets(batch, sampled, config), sampled.mask)
        rows = torch.arange(len(batch), device=preferred.device)[part]
        return cls(
            batch=batch.take(rows), sampled=SampledLists(*(part_[rows] for part_ in sampled)),
            n_lists=preferred.sum().clamp(min=1), config=config, **own,
        )

    def backward(self) -> Tensor:
        """Add the gradient of these lists to the weights'; gives their part of the mean loss."""
        batches, n_tokens = self._plan()
        n = rounds(self.student, len(batches))
        if n == 0:
            return torch.zeros((), device=self.sampled.mask.device)
        # In pieces, a process with fewer batches goes along with a pair that counts for nothing.
        spare = [self.sampled.indices.new_zeros(1)] * (n - len(batches))
        held = n_tokens <= self.config.held_tokens and not in_pieces(self.student)
        with torch.set_grad_enabled(held):
            scored = [self._score(i, places) for i, places in enumerate(batches + spare)]
            scores = self._together(batches, scored)
        if not held:
            scores.requires_grad_()
        loss = self._loss(scores)
        loss.backward()
        if not held:
            for i, places in enumerate(batches + spare):
                gradient = scores.grad.flatten()[places] * (i < len(batches))
                self._score(i, places).backward(gradient)
        return loss.detach()

    def drawn(self) -> dict[str, Tensor]:
        """The lists as tensors ``[batch, list_size]``, to look at after something went wrong."""
        query_rows, passage_rows = self._rows()
        return {
            "query_rows": query_rows.contiguous(), "passage_rows": passage_rows,
            "mask": self.sampled.mask, "targets": targets(self.batch, self.sampled, self.config),
        }

    def _rows(self) -> tuple[Tensor, Tensor]:
        passage_rows = self.batch.passage_rows.gather(1, self.sampled.indices)
        return self.batch.query_rows[:, None].expand_as(passage_rows), passage_rows

    def _plan(self) -> tuple[list[Tensor], int]:
        """Places of the pairs that are scored together, in the flattened lists; tokens in all."""
        places = self.sampled.mask.flatten().nonzero().squeeze(1)  # padding is not scored
        pairs = (rows.flatten()[places] for rows in self._rows())
        lengths = self.student.pair_lengths(self.queries, self.passages, *pairs).cpu()
        batches = plan_batches(lengths, self.config.token_budget)
        return [places[batch.to(places.device)] for batch in batches], int(lengths.sum())

    def _score(self, number: int, places: Tensor) -> Tensor:
        """Scores ``[n]`` of one batch, under the same dropout each time it is scored."""
        torch.manual_seed(seed_of(self.seed, "dropout", number))
        query_rows, passage_rows = (rows.flatten()[places] for rows in self._rows())
        return self.student.score(
            self.queries, self.passages, query_rows, passage_rows,
            token_budget=self.config.token_budget, precision=self.config.precision,
        )

    def _together(self, batches: list[Tensor], scores: list[Tensor]) -> Tensor:
        """Scores of all batches back in their lists; 0 in the padding."""
        flat = torch.zeros(self.sampled.mask.numel(), device=self.sampled.mask.device)
        for places, some in zip(batches, scores, strict=False):
            flat = flat.index_copy(0, places, some)
        return flat.view(self.sampled.mask.shape)

    def _loss(self, scores: Tensor) -> Tensor:
        each = LOSSES[self.config.loss](
            scores, targets(self.batch, self.sampled, self.config), mask=self.sampled.mask,
            reduction="none", **self.config.loss_options,
        )
        return each.sum() / self.n_lists


def seed_of(*parts: object) -> int:
    """A seed whose every bit depends on every part: CPU generators read the low 32 bits alone.

    >>> seed_of(0, "lists", 1) != seed_of(0, "lists", 2)
    True
    """
    return int.from_bytes(hashlib.blake2b(repr(parts).encode(), digest_size=7).digest())


def _generator(device: torch.device, *parts: object) -> torch.Generator:
    return torch.Generator(device).manual_seed(seed_of(*parts))


@lru_cache(maxsize=2)
def _shuffled(n: int, seed: int, epoch: int) -> Tensor:
    return torch.randperm(n, generator=_generator(torch.device("cpu"), seed, "queries", epoch))
