"""Pictures of the method: a query through every order, losses on lists of two and three, samplers.

What they show is computed here and now by the very functions that train; nothing is drawn by hand.
"""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
import pandas as pd
import seaborn as sns
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from rdl_core.losses import LOSSES
from rdl_study.figures import INK, MARKS, OURS, PAPER, canvas
from rdl_study.worked import Example

__all__ = ["drawn", "landscapes", "margins", "movers", "orders", "pulls", "rates", "together"]

_STYLES = ("-", "--", "-.", ":", (0, (5, 1, 1, 1, 1, 1)), (0, (1, 3)))
_REACH = 4.0  # scores this far apart are shown
_QUIET = "#8a939d"


def orders(example: Example) -> Figure:
    """Every passage's way through the orders of all systems; relevant ones stand out.

    >>> orders(example).axes[0].get_xticklabels()[-1].get_text()
    'student'
    """
    ranks, grades = example.ranks, example.passages["relevance"].fillna(0).astype(int)
    figure, (axes,) = canvas(1, height=0.24 * len(ranks) + 1.4)
    shown = sorted(set(grades[grades > 0]), reverse=True)
    looks = dict(zip(shown, [("o", OURS), ("s", PAPER), ("D", INK), ("^", INK)], strict=False))
    for doc_id, row in ranks.iterrows():
        if mark := looks.get(grades[doc_id]):
            shape, colour = mark
            axes.plot(row.to_numpy(), f"{shape}-", color=colour, lw=2.5, markersize=9, zorder=3)
        else:
            axes.plot(row.to_numpy(), ".-", color=_QUIET, linewidth=0.8, markersize=5)
    labels = [label.replace(" (", "\n(").replace(" after ", "\nafter ") for label in ranks]
    axes.set_xticks(range(len(labels)), labels)
    axes.set_yticks([1, *range(5, len(ranks) + 1, 5)])
    axes.set(ylim=(len(ranks) + 0.7, 0.3), ylabel="rank")
    axes.grid(axis="y", visible=False)
    keys = [
        Line2D([], [], marker=shape, color=colour, lw=2.5, markersize=8, label=f"relevance {grade}")
        for grade, (shape, colour) in looks.items()
    ] + [Line2D([], [], marker=".", color=_QUIET, lw=0.8, label="not judged relevant")]
    figure.legend(handles=keys, loc="outside lower center", ncols=min(3, len(keys)), frameon=False)
    return figure


def pulls(names: list[str], push: torch.Tensor, order: torch.Tensor) -> Figure:
    """Which way a loss pushes each score of a list, and how hard: minus its gradient.

    Args:
        names: Of the passages.
        push: ``[1, n]``.
        order: Ranks ``[1, n]`` that the rows are shown in, such as the teacher's.

    >>> figure = pulls(["1. a", "2. b"], torch.tensor([[-0.5, 0.5]]), torch.tensor([[2, 1]]))
    >>> [text.get_text() for text in figure.axes[0].get_yticklabels()]
    ['2. b', '1. a']
    """
    rows = order[0].argsort().tolist()
    values = push[0, rows].tolist()
    figure, (axes,) = canvas(1, height=0.27 * len(rows) + 1.0)
    bars = axes.barh(range(len(rows)), values, color=[OURS if v > 0 else "white" for v in values])
    for bar, value in zip(bars, values, strict=True):
        bar.set(edgecolor=OURS if value > 0 else PAPER, hatch="" if value > 0 else "////")
    axes.axvline(0, color=INK, linewidth=0.8)
    axes.set_yticks(range(len(rows)), [names[row] for row in rows], fontsize=9)
    axes.set(ylim=(len(rows) - 0.4, -0.6), xlabel="pushed down  ←   score   →  pushed up")
    axes.grid(axis="y", visible=False)
    return figure


def drawn(of_stages: dict[str, pd.DataFrame]) -> Figure:
    """What samplers draw: a row of dots for each draw, a panel for each stage.

    >>> table = pd.DataFrame([[True, False], [False, True]], columns=[1, 2])
    >>> drawn({"stage 1: random": table}).axes[0].get_title()
    'stage 1: random'
    """
    figure, panels = canvas(len(of_stages), height=2.1 * len(of_stages))
    for axes, (title, table) in zip(panels, of_stages.items(), strict=True):
        draw, column = np.nonzero(table.to_numpy())
        empty = np.nonzero(~table.to_numpy())
        axes.plot(table.columns[empty[1]], empty[0] + 1, ".", color="#c9d1da", markersize=3)
        axes.plot(table.columns[column], draw + 1, "s", color=OURS, markersize=7)
        axes.set_title(title, fontsize="medium")
        axes.set(ylim=(len(table) + 0.6, 0.4), ylabel="draw", yticks=range(1, len(table) + 1))
        axes.set_xticks([1, *range(5, table.shape[1] + 1, 5)])
        axes.grid(visible=False)
    panels[-1].set_xlabel("rank in the first stage's order")
    return figure


def movers(changes: pd.DataFrame, *, measure: str) -> Figure:
    """Before and after for the queries that lose and gain most: a dumbbell for each.

    Args:
        changes: From `rdl_study.movers.extremes`.
        measure: Label of the axis.

    >>> changes = pd.DataFrame({"query": ["fox"], "before": [0.1], "after": [0.4]})
    >>> movers(changes, measure="RR").axes[0].get_yticklabels()[0].get_text()
    'fox'
    """
    figure, (axes,) = canvas(1, height=0.42 * len(changes) + 1.3)
    for row, (before, after) in enumerate(zip(changes["before"], changes["after"], strict=True)):
        colour, style = (OURS, "-") if after > before else (PAPER, "--")
        axes.plot([before, after], [row, row], style, color=colour, linewidth=2, zorder=1)
        axes.plot(after, row, ">" if after > before else "<", color=colour, markersize=10)
    hollow = {"color": "white", "markeredgecolor": INK, "markersize": 8}
    axes.plot(changes["before"], range(len(changes)), "o", **hollow)
    axes.set_yticks(range(len(changes)), changes["query"], fontsize=9)
    axes.set(xlim=(-0.04, 1.04), ylim=(len(changes) - 0.4, -0.6), xlabel=measure)
    keys = [
        Line2D([], [], marker="o", linestyle="", label="before", **hollow),
        Line2D([], [], marker="<", color=PAPER, linestyle="--", markersize=8, label="after: loses"),
        Line2D([], [], marker=">", color=OURS, markersize=8, label="after: gains"),
    ]
    figure.legend(handles=keys, loc="outside lower center", ncols=3, frameon=False)
    return figure


def margins(losses: Iterable[str]) -> Figure:
    """Losses of a list of two, and how hard they pull, against the difference of its scores.

    Each is divided by its value at equal scores: those of two losses cannot be compared.

    >>> [axes.get_ylabel() for axes in margins(["ranknet"]).axes]
    ['loss, at 0 = 1', 'pull on the difference']
    """
    losses = list(losses)
    figure, panels = canvas(2, height=6.6)
    difference = torch.linspace(-_REACH, _REACH, 161, dtype=torch.float64)
    scores = torch.stack([difference, torch.zeros_like(difference)], dim=1)
    for place, name in enumerate(losses):
        values, push = (x / _values(name, torch.zeros(1, 2))[0] for x in _values(name, scores))
        look = {"linestyle": _STYLES[place % len(_STYLES)], "marker": MARKS[place % len(MARKS)]}
        for axes, y in zip(panels, (values, push[:, 0]), strict=True):
            axes.plot(difference, y, label=name, markevery=(8 + 3 * place, 40), linewidth=2, **look)
            axes.axvline(0, color=INK, linewidth=0.8)
    panels[0].set(ylabel="loss, at 0 = 1", xlabel="wrong order   ←   $s_1 - s_2$   →   right order")
    panels[1].set(ylabel="pull on the difference", xlabel="$s_1 - s_2$")
    keys = panels[0].get_legend_handles_labels()
    figure.legend(*keys, loc="outside lower center", ncols=3, frameon=False)
    return figure


def landscapes(losses: Iterable[str]) -> Figure:
    """Losses of a list of three as landscapes over its two score differences, with ways down.

    The teacher's order is 1, 2, 3; to the right and above, the student has it, too.

    >>> len(landscapes(["ranknet", "adr_mse"]).axes)
    2
    """
    losses = list(losses)
    columns = min(2, len(losses))
    figure, panels = canvas(len(losses), height=2.9 * -(-len(losses) // columns), columns=columns)
    fine, coarse = (np.linspace(-_REACH, _REACH, n) for n in (81, 9))
    for axes, name in zip(panels, losses, strict=True):
        values, _ = _values(name, _three(fine))
        heights = values.reshape(81, 81).numpy()
        axes.contourf(fine, fine, heights, levels=12, cmap="Blues", alpha=0.9)
        axes.contour(fine, fine, heights, levels=12, colors=INK, linewidths=0.4)
        _, push = _values(name, _three(coarse))
        # Of x = s1 - s2 and y = s2 - s3, s2 in the middle held: dx = ds1 - ds2, dy = ds2 - ds3.
        right, up = (push[:, 0] - push[:, 1]), (push[:, 1] - push[:, 2])
        axes.quiver(*np.meshgrid(coarse, coarse), right, up, color=PAPER, width=0.011, pivot="mid")
        axes.axhline(0, color=INK, linewidth=0.8)
        axes.axvline(0, color=INK, linewidth=0.8)
        axes.set_title(name, fontsize="medium")
        axes.set(aspect="equal", xticks=[-3, 0, 3], yticks=[-3, 0, 3])
    _outer_labels(panels, columns, "$s_1 - s_2$", "$s_2 - s_3$")
    return figure


def rates(found: dict[str, pd.DataFrame]) -> Figure:
    """How often samplers draw each rank, beside how often they should.

    Args:
        found: By sampler, ``exact`` and ``drawn`` for each rank; see `rdl_study.inclusion`.

    >>> table = pd.DataFrame({"exact": [1.0, 0.0], "drawn": [1.0, 0.0]}, index=[1, 2])
    >>> rates({"top": table}).axes[0].get_title()
    'top'
    """
    figure, panels = canvas(len(found), height=1.75 * -(-len(found) // 2), columns=2)
    for axes, (name, table) in zip(panels, found.items(), strict=True):
        axes.bar(table.index, table["drawn"], color="#a9cbe6", edgecolor=OURS, linewidth=0.6)
        axes.plot(table.index, table["exact"], "D", color=PAPER, markersize=5)
        axes.set_title(name, fontsize="medium")
        axes.set(ylim=(0, 1.12), yticks=[0, 0.5, 1], xticks=table.index)
        axes.tick_params(labelsize=9)
        axes.grid(axis="x", visible=False)
    _outer_labels(panels, 2, "rank", "share of lists")
    return figure


def together(found: dict[str, np.ndarray]) -> Figure:
    """How often two ranks come into the same list, by sampler.

    Args:
        found: By sampler, ``[depth, depth]``; see `rdl_study.inclusion.pairs_drawn`.

    >>> together({"top": np.eye(3)}).axes[0].get_title()
    'top'
    """
    columns = min(2, len(found))
    figure, panels = canvas(len(found), height=2.9 * -(-len(found) // 2), columns=columns)
    for axes, (name, shares) in zip(panels, found.items(), strict=True):
        ranks = range(1, len(shares) + 1)
        hidden = np.eye(len(shares), dtype=bool)
        sns.heatmap(
            shares, mask=hidden, ax=axes, cmap="Blues", vmin=0, vmax=0.6, square=True,
            xticklabels=ranks, yticklabels=ranks, linewidths=0.5, cbar_kws={"shrink": 0.7},
        )
        axes.set_title(name, fontsize="medium")
        axes.tick_params(labelsize=9, rotation=0)
    return figure


def _values(name: str, scores: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """A loss of each list in turn, the teacher's order being 1, 2, ..., and minus its gradient."""
    scores = scores.clone().requires_grad_()
    n = scores.shape[1]
    targets = torch.arange(n, 0, -1, dtype=scores.dtype).expand_as(scores)
    values = LOSSES[name](scores, targets, reduction="none")
    values.sum().backward()
    return values.detach(), -scores.grad


def _three(places: np.ndarray) -> torch.Tensor:
    """Scores ``[n * n, 3]`` of all pairs of differences, the middle one 0."""
    first, second = (torch.from_numpy(x.ravel()) for x in np.meshgrid(places, places))
    return torch.stack([first, torch.zeros_like(first), -second], dim=1)


def _outer_labels(panels: list[Axes], columns: int, x: str, y: str) -> None:
    for place, axes in enumerate(panels):
        if place % columns == 0:
            axes.set_ylabel(y)
        if place >= len(panels) - columns:
            axes.set_xlabel(x)
