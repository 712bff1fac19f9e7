"""What samplers draw: each rank's share of many lists, beside the probability that it should have.

One query with `depth` candidates, all eligible. `hard` draws from the middle ranks; for
`single_relevant` and `denoised` rank 3 is relevant, and for `denoised` the teacher puts the two
before it, which nobody judged, above it.
"""

from __future__ import annotations

from collections.abc import Iterable
from itertools import permutations

import numpy as np
import pandas as pd
import torch
from IPython.display import Markdown
from torch import Tensor

from rdl_core.samplers import SAMPLERS, needs

__all__ = ["agreement", "drawn", "exact", "pairs_drawn", "said"]

_RELEVANT = 3
#: Deepest list whose ordered draws are counted out one by one.
_DEEPEST = 9


def drawn(name: str, depth: int, list_size: int, n_draws: int, *, seed: int = 0) -> np.ndarray:
    """Draw many lists of one query.

    Args:
        name: A key of `rdl_core.samplers.SAMPLERS` other than ``mixed`` and ``in_corpus``.
        depth: Candidates.
        list_size: Passages in a list.
        n_draws: Lists.
        seed: Of the draws.

    Returns:
        bool ``[n_draws, depth]``: whether a list holds a rank.

    >>> drawn("top", 4, 2, 3).tolist()[0]
    [True, True, False, False]
    """
    mask = torch.ones(n_draws, depth, dtype=torch.bool)
    known = {key: value.expand(n_draws, depth) for key, value in _known(depth).items()}
    own = {key: known[key] for key in needs(name)} | _options(name, depth)
    generator = torch.Generator().manual_seed(seed)
    lists = SAMPLERS[name](mask, list_size, generator=generator, **own)
    held = torch.zeros(n_draws, depth).scatter_add(1, lists.indices, lists.mask.float())
    return held.bool().numpy()


def exact(name: str, depth: int, list_size: int) -> np.ndarray:
    """The probability that a list holds each rank, by the formulas of `rdl_core.samplers`.

    Raises:
        ValueError: A sampler without a formula here, or a list too deep to count out its draws.

    >>> exact("stratified", 4, 2).tolist(), exact("top", 4, 2).tolist()
    ([0.5, 0.5, 0.5, 0.5], [1.0, 1.0, 0.0, 0.0])
    """
    if not list_size <= depth <= _DEEPEST:
        raise ValueError(f"expected list_size <= depth <= {_DEEPEST}, got {list_size} and {depth}")
    ranks = np.arange(1, depth + 1)
    if name == "log_random":
        return _counted_out(1 / np.log2(1 + ranks), list_size)
    if name == "stratified":
        bounds = np.arange(list_size + 1) * depth // list_size
        return np.repeat(1 / np.diff(bounds), np.diff(bounds))
    if name in ("single_relevant", "denoised"):
        fair = (ranks > _RELEVANT) if name == "denoised" else (ranks != _RELEVANT)
        others = np.where(fair, min(1, (list_size - 1) / fair.sum()), 0.0)
        return np.where(ranks == _RELEVANT, 1.0, others)
    first, last = {"top": (1, list_size), "random": (1, depth)}.get(name, (0, 0))
    if name == "hard":
        first, last = _options(name, depth).values()
    if not last:
        raise ValueError(f"expected a sampler whose probabilities are known, got {name!r}")
    inside = (ranks >= first) & (ranks <= last)
    return np.where(inside, min(1, list_size / inside.sum()), 0.0)


def agreement(
    samplers: Iterable[str], depth: int, list_size: int, n_draws: int
) -> dict[str, pd.DataFrame]:
    """For each sampler, ``exact`` and ``drawn`` by rank.

    >>> agreement(["top"], 4, 2, 10)["top"].loc[1].tolist()
    [1.0, 1.0]
    """
    return {
        name: pd.DataFrame(
            {
                "exact": exact(name, depth, list_size),
                "drawn": drawn(name, depth, list_size, n_draws).mean(axis=0),
            },
            index=range(1, depth + 1),
        )
        for name in samplers
    }


def said(found: dict[str, pd.DataFrame], n_draws: int) -> Markdown:
    """How far the drawn shares are from the exact ones, and what chance allows, in words.

    >>> said(agreement(["top"], 4, 2, 10), 10).data.startswith("Of 10 lists each")
    True
    """
    every = pd.concat(found, names=["sampler", "rank"])
    away = (every["drawn"] - every["exact"]).abs()
    error = np.sqrt(every["exact"] * (1 - every["exact"]) / n_draws)
    name, rank = away.idxmax()
    return Markdown(
        f"Of {n_draws:,} lists each, the share that is furthest from its exact value is that of "
        f"rank {rank} with `{name}`: {away.max():.4f} away, where one standard error is "
        f"{error.loc[name, rank]:.4f}."
    )


def pairs_drawn(samplers: Iterable[str], depth: int, list_size: int, n_draws: int) -> dict:
    """For each sampler, the share of lists that hold both of two ranks, ``[depth, depth]``.

    >>> pairs_drawn(["top"], 3, 2, 4)["top"][0].tolist()
    [1.0, 1.0, 0.0]
    """
    held = {name: drawn(name, depth, list_size, n_draws).astype(float) for name in samplers}
    return {name: lists.T @ lists / n_draws for name, lists in held.items()}


def _known(depth: int) -> dict[str, Tensor]:
    ranks = torch.arange(1, depth + 1)
    relevant = ranks == _RELEVANT
    return {"relevant": relevant, "judged": relevant, "teacher_rank": ranks}


def _options(name: str, depth: int) -> dict[str, int]:
    return {"first": 2, "last": depth - 2} if name == "hard" else {}


def _counted_out(weights: np.ndarray, list_size: int) -> np.ndarray:
    """Over all ordered draws without replacement: the chance of those that hold each rank."""
    draws = np.array(list(permutations(range(len(weights)), list_size)))
    each = weights[draws]
    left = weights.sum() - each.cumsum(axis=1) + each  # before each draw of a list
    chance = (each / left).prod(axis=1)
    held = np.zeros(len(weights))
    np.add.at(held, draws, chance[:, None])
    return held
