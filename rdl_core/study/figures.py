"""Figures of the result pages. White ground and dark text, so that they read in either theme; marks
differ in shape and place, not in colour alone.
"""

from __future__ import annotations

import matplotlib.pyplot as plt
import pandas as pd
import seaborn as sns
from matplotlib.axes import Axes
from matplotlib.figure import Figure

__all__ = ["depth_curves", "gains", "latency", "means", "training_curves"]

_INK, _OURS, _PAPER = "#1b1f24", "#0b62a4", "#a4510b"
_MARKS = ("o", "s", "D", "^", "v", "P", "X", "*")


def means(
    differences: pd.DataFrame, *, baseline: str, measure: str, paper: pd.Series | None = None
) -> Figure:
    """A dot and a 95 % interval per system; the baseline's mean as a line; the paper's beside it.

    Args:
        differences: From `rdl_core.study.tables.differences`.
        baseline: The system whose mean is drawn through.
        measure: Label of the axis.
        paper: Published figures, drawn in a panel of their own: other data, other scale.

    >>> differences = pd.DataFrame({"mean": [0.4, 0.5], "ci_low": [0.3, 0.4], "ci_high": [0.5, 0.6]},
    ...                            index=["BM25", "student"])
    >>> len(means(differences, baseline="BM25", measure="nDCG@10").axes)
    1
    """
    panels = 1 if paper is None else 2
    rows = max(len(differences), 0 if paper is None else len(paper))
    figure, axes = _canvas(panels, height=1.4 + 0.42 * rows)
    ours = axes[0]
    places = range(len(differences))
    ours.errorbar(
        differences["mean"], places, fmt="o", color=_OURS, markersize=7, capsize=4,
        xerr=[
            differences["mean"] - differences["ci_low"],
            differences["ci_high"] - differences["mean"],
        ],
    )
    ours.axvline(differences.loc[baseline, "mean"], color=_INK, linewidth=1, linestyle=":")
    _name_rows(ours, list(differences.index), f"{measure}, this run")
    if paper is not None:
        axes[1].plot(paper.to_numpy(), range(len(paper)), "D", color=_PAPER, markersize=7)
        _name_rows(axes[1], list(paper.index), "nDCG@10, published (TREC DL)")
    return figure


def depth_curves(
    differences: pd.DataFrame, depths: list[int], *, measure: str, paper: pd.DataFrame
) -> Figure:
    """Effectiveness against the depth of the training lists, this run and published.

    Args:
        differences: From `rdl_core.study.tables.differences`, a row per depth, in the order of
            `depths`.
        depths: Passages per training list.
        measure: Label of the axis.
        paper: A column per first stage, a row per depth.

    >>> differences = pd.DataFrame({"mean": [0.4, 0.5], "ci_low": [0.3, 0.4], "ci_high": [0.5, 0.6]})
    >>> paper = pd.DataFrame({"bm25": [0.6, 0.7]}, index=[10, 100])
    >>> len(depth_curves(differences, [5, 10], measure="nDCG@10", paper=paper).axes)
    2
    """
    figure, (ours, theirs) = _canvas(2, height=3.6)
    low, high = differences["ci_low"], differences["ci_high"]
    ours.fill_between(depths, low, high, color=_OURS, alpha=0.15, linewidth=0)
    ours.plot(depths, differences["mean"], "o-", color=_OURS)
    for (name, values), mark in zip(paper.items(), _MARKS, strict=False):
        theirs.plot(paper.index, values, f"{mark}--", label=name)
    theirs.legend(title="first stage", frameon=False)
    for axes, title in ((ours, f"{measure}, this run"), (theirs, "nDCG@10, published (TREC DL)")):
        axes.set(xlabel="passages per training list", title=title, xscale="log")
        axes.set_xticks(depths if axes is ours else list(paper.index))
        axes.xaxis.set_major_formatter("{x:.0f}")
        axes.minorticks_off()
    return figure


def gains(values: pd.DataFrame, system: str, baseline: str, *, measure: str) -> Figure:
    """What each query gains or loses under a system, sorted: who pays for a better mean.

    >>> values = pd.DataFrame({"BM25": [0.1, 0.5], "student": [0.4, 0.3]})
    >>> [text.get_text() for text in gains(values, "student", "BM25", measure="RR").axes[0].texts]
    ['1 lose', '1 gain']
    """
    change = (values[system] - values[baseline]).sort_values(ignore_index=True)
    figure, (axes,) = _canvas(1, height=3.2)
    colours = [_OURS if x > 0 else _PAPER for x in change]
    axes.bar(change.index, change, color=colours, width=1.0, linewidth=0)  # no white edges
    axes.axhline(0, color=_INK, linewidth=0.8)
    better, worse = int((change > 0).sum()), int((change < 0).sum())
    axes.text(0.02, 0.92, f"{worse} lose", transform=axes.transAxes, color=_PAPER, va="top")
    axes.text(0.98, 0.08, f"{better} gain", transform=axes.transAxes, color=_OURS, ha="right")
    axes.set(xlabel=f"queries, by change ({len(change)})", title=f"{measure}: {system} minus {baseline}")
    return figure


def training_curves(log: pd.DataFrame) -> Figure:
    """Loss of every step, a panel per stage.

    Args:
        log: From `rdl_core.study.tables.training_log`.

    >>> log = pd.DataFrame({"stage": ["one"] * 2, "step": [0, 1], "loss": [1.0, 0.5]})
    >>> training_curves(log).axes[0].get_title()
    'one'
    """
    stages = list(log.groupby("stage"))
    figure, panels = _canvas(len(stages), height=2.8)
    for axes, (stage, rows) in zip(panels, stages, strict=True):
        sns.lineplot(x=rows["step"], y=rows["loss"], ax=axes, color=_OURS, alpha=0.35)
        smooth = rows["loss"].ewm(span=max(2, len(rows) // 10)).mean()
        sns.lineplot(x=rows["step"], y=smooth, ax=axes, color=_OURS)
        axes.set(title=stage, xlabel="step", ylabel="loss")
    return figure


def latency(timings: pd.DataFrame, effectiveness: pd.Series, *, measure: str) -> Figure:
    """Effectiveness against the time a query takes, both of this run.

    Args:
        timings: From `rdl_core.efficiency.measure`: ``median_ms`` and ``p95_ms`` per system.
        effectiveness: Mean of the measure per system; systems without one are left out.
        measure: Label of the axis.

    >>> timings = pd.DataFrame({"median_ms": [5.0], "p95_ms": [6.0]}, index=["BM25"])
    >>> latency(timings, pd.Series({"BM25": 0.4}), measure="nDCG@10").axes[0].get_xscale()
    'log'
    """
    figure, (axes,) = _canvas(1, height=3.8)
    shown = timings.index.intersection(effectiveness.index)
    for system, mark in zip(shown, _MARKS, strict=False):
        row = timings.loc[system]
        spread = [[0.0], [row["p95_ms"] - row["median_ms"]]]
        axes.errorbar(
            [row["median_ms"]], [effectiveness[system]], xerr=spread, fmt=mark, markersize=8,
            capsize=3, label=system,
        )
    axes.set(xscale="log", xlabel="ms per query, median and 95th percentile", ylabel=measure)
    axes.legend(frameon=False, loc="lower right")
    return figure


def _canvas(panels: int, *, height: float) -> tuple[Figure, list[Axes]]:
    sns.set_theme(style="whitegrid", palette="colorblind", rc={"axes.edgecolor": _INK})
    width = 7.2 if panels == 1 else 9.0
    figure, axes = plt.subplots(
        1, panels, figsize=(width, height), layout="constrained", squeeze=False, facecolor="white"
    )
    for each in axes[0]:
        each.set_title(each.get_title(), fontsize="medium")
        sns.despine(ax=each)
    return figure, list(axes[0])


def _name_rows(axes: Axes, names: list[str], title: str) -> None:
    axes.set_yticks(range(len(names)), names)
    axes.set_ylim(len(names) - 0.5, -0.5)
    axes.set_title(title, fontsize="medium")
    axes.grid(axis="y", visible=False)
