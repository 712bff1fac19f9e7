"""Figures of the result pages. White ground and dark text, so that they read in either theme; marks
differ in shape and place, not in colour alone.
"""

from __future__ import annotations

import math
from textwrap import wrap

import matplotlib.pyplot as plt
import pandas as pd
import seaborn as sns
from matplotlib.axes import Axes
from matplotlib.figure import Figure

__all__ = [
    "INK", "MARKS", "OURS", "PAPER", "agreement", "canvas", "costs", "depth_curves", "gains",
    "latency", "means", "training_curves",
]  # fmt: skip

#: Text and axes; what is ours, what is the paper's: blue and orange, of different lightness.
INK, OURS, PAPER = "#1b1f24", "#0b62a4", "#a4510b"
#: Marks, in the order in which systems take them.
MARKS = ("o", "s", "D", "^", "v", "P", "X", "*")
_LABEL = 36  # characters in a line of a row's name


def canvas(
    panels: int, *, height: float, width: float = 5.8, columns: int = 1,
    stacked: list[float] | None = None,
) -> tuple[Figure, list[Axes]]:
    """Panels of a figure that is narrow enough to be read on a phone.

    Args:
        panels: How many.
        height: Of the whole figure, in inches.
        width: Likewise; the default suits a phone.
        columns: Panels beside each other.
        stacked: Proportions of the rows' heights; None makes them equal.

    >>> len(canvas(3, height=4.0, columns=2)[1])
    3
    """
    sns.set_theme(
        style="whitegrid", palette="colorblind",
        rc={"axes.edgecolor": INK, "text.color": INK, "font.size": 11, "hatch.linewidth": 0.6},
    )
    figure, axes = plt.subplots(
        math.ceil(panels / columns), columns, figsize=(width, height), layout="constrained",
        squeeze=False, facecolor="white", height_ratios=stacked,
    )
    for each in axes.flat[panels:]:
        each.remove()
    for each in axes.flat[:panels]:
        each.set_title(each.get_title(), fontsize="medium")
        sns.despine(ax=each)
    return figure, list(axes.flat[:panels])


def means(
    differences: pd.DataFrame | None, *, measure: str, recorded: pd.DataFrame | None = None,
    paper: pd.Series | None = None,
) -> Figure:
    """A dot and a 95 % interval per system, the baseline's mean as a line: a panel for each source.

    Args:
        differences: This run's, from `rdl_study.tables.differences`; None where there is none.
        measure: Label of the axis.
        recorded: The same of a recorded run: other data, other scale.
        paper: Published figures.

    >>> differences = pd.DataFrame({"mean": [0.4, 0.5], "ci_low": [0.3, 0.4], "ci_high": [0.5, 0.6],
    ...                             "p_value": [None, 0.1]}, index=["BM25", "student"])
    >>> len(means(differences, measure="nDCG@10").axes)
    1
    """
    tables = {f"{measure}, this run": differences, "nDCG@10, recorded": recorded}
    panels = {title: table for title, table in tables.items() if table is not None}
    if paper is not None:
        panels["nDCG@10, published"] = paper
    rows = [len(table) + 1.5 for table in panels.values()]
    figure, axes = canvas(len(panels), height=0.42 * sum(rows), stacked=rows)
    for each, (title, table) in zip(axes, panels.items(), strict=True):
        if table is paper:
            each.plot(paper.to_numpy(), range(len(paper)), "D", color=PAPER, markersize=7)
        else:
            _dots(each, table)
        _name_rows(each, list(table.index), title)
    return figure


def depth_curves(
    differences: pd.DataFrame, *, measure: str, recorded: pd.DataFrame | None = None,
    paper: pd.DataFrame,
) -> Figure:
    """Effectiveness against the depth of the training lists: a panel for each source.

    Args:
        differences: From `rdl_study.tables.differences`, a row ``"depth <n>"`` per depth.
        measure: Label of the axis.
        recorded: The same of a recorded run.
        paper: A column per first stage, a row per depth.

    >>> differences = pd.DataFrame({"mean": [0.4, 0.5], "ci_low": [0.3, 0.4], "ci_high": [0.5, 0.6]},
    ...                            index=["depth 5", "depth 10"])
    >>> paper = pd.DataFrame({"bm25": [0.6, 0.7]}, index=[10, 100])
    >>> len(depth_curves(differences, measure="nDCG@10", paper=paper).axes)
    2
    """
    tables = {f"{measure}, this run": differences, "nDCG@10, recorded": recorded}
    panels = {title: table for title, table in tables.items() if table is not None}
    figure, axes = canvas(len(panels) + 1, height=2.8 * (len(panels) + 1))
    for each, (title, table) in zip(axes, panels.items(), strict=False):
        depths = [int(label.split()[-1]) for label in table.index]
        each.fill_between(
            depths, table["ci_low"], table["ci_high"], color=OURS, alpha=0.15, linewidth=0
        )
        each.plot(depths, table["mean"], "o-", color=OURS)
        _log_depths(each, depths, title)
    for (name, values), mark in zip(paper.items(), MARKS, strict=False):
        axes[-1].plot(paper.index, values, f"{mark}--", label=name)
    axes[-1].legend(title="first stage", frameon=False)
    _log_depths(axes[-1], list(paper.index), "nDCG@10, published")
    return figure


def gains(values: pd.DataFrame, system: str, baseline: str, *, measure: str) -> Figure:
    """What each query gains or loses under a system, sorted: who pays for a better mean.

    >>> values = pd.DataFrame({"BM25": [0.1, 0.5], "student": [0.4, 0.3]})
    >>> [text.get_text() for text in gains(values, "student", "BM25", measure="RR").axes[0].texts]
    ['1 lose', '1 gain']
    """
    change = (values[system] - values[baseline]).sort_values(ignore_index=True)
    figure, (axes,) = canvas(1, height=3.2)
    colours = [OURS if x > 0 else PAPER for x in change]
    axes.bar(change.index, change, color=colours, width=1.0, linewidth=0)  # no white edges
    axes.axhline(0, color=INK, linewidth=0.8)
    better, worse = int((change > 0).sum()), int((change < 0).sum())
    axes.text(0.02, 0.92, f"{worse} lose", transform=axes.transAxes, color=PAPER, va="top")
    axes.text(0.98, 0.08, f"{better} gain", transform=axes.transAxes, color=OURS, ha="right")
    axes.set(xlabel=f"queries, by change ({len(change)})", title=f"{measure}: {system} minus {baseline}")
    return figure


def training_curves(log: pd.DataFrame) -> Figure:
    """Loss of every step, a panel per stage.

    Args:
        log: From `rdl_study.tables.training_log`.

    >>> log = pd.DataFrame({"stage": ["one"] * 2, "step": [0, 1], "loss": [1.0, 0.5]})
    >>> training_curves(log).axes[0].get_title()
    'one'
    """
    stages = list(log.groupby("stage"))
    figure, panels = canvas(len(stages), height=2.6 * len(stages))
    for axes, (stage, rows) in zip(panels, stages, strict=True):
        sns.lineplot(x=rows["step"], y=rows["loss"], ax=axes, color=OURS, alpha=0.35)
        smooth = rows["loss"].ewm(span=max(2, len(rows) // 10)).mean()
        sns.lineplot(x=rows["step"], y=smooth, ax=axes, color=OURS)
        axes.set(title=stage, xlabel="step", ylabel="loss")
    return figure


def agreement(found: pd.DataFrame) -> Figure:
    """Agreement of each query's repetitions, beside that with the first stage.

    Args:
        found: From `rdl_study.agreement.recorded`.

    >>> found = pd.DataFrame({"teacher": ["llm"], "year": [2019], "kendall_tau": [0.9],
    ...                       "first_stage_tau": [0.7]})
    >>> agreement(found).axes[0].get_yticklabels()[0].get_text()
    'llm, 2019'
    """
    groups = list(found.groupby(["teacher", "year"]))
    figure, (axes,) = canvas(1, height=0.7 * len(groups) + 1.4)
    looks = {
        "first_stage_tau": ("x", "with the first stage", PAPER, PAPER),
        "kendall_tau": ("o", "between repetitions", "none", OURS),
    }
    for row, (_, group) in enumerate(groups):
        for side, (name, (mark, label, face, edge)) in enumerate(looks.items()):
            spread = row + 0.2 - 0.4 * side + 0.012 * (pd.RangeIndex(len(group)) % 11 - 5)
            axes.plot(
                group[name], spread, mark, markerfacecolor=face, markeredgecolor=edge, markersize=5,
                label=label if row == 0 else None,
            )
    _name_rows(axes, [f"{teacher}, {year}" for (teacher, year), _ in groups], "")
    axes.set_xlabel("Kendall's tau")
    figure.legend(loc="outside lower center", ncols=2, frameon=False)
    return figure


def costs(rates: pd.DataFrame) -> Figure:
    """Passages per second by system, on a logarithmic axis; measured here, or published.

    Args:
        rates: From `rdl_study.bench.speed.cost_rates`.

    >>> rates = pd.DataFrame({"work": ["serving"], "system": ["s"], "where": ["CPU (measured)"],
    ...                       "passages per s": [100.0]})
    >>> costs(rates).axes[0].get_xscale()
    'log'
    """
    figure, (axes,) = canvas(1, height=0.42 * len(rates) + 1.3)
    measured = rates["where"].str.contains("measured")
    for which, mark, colour, label in (
        (measured, "o", OURS, "measured on a CPU"), (~measured, "D", PAPER, "published, on a GPU"),
    ):
        axes.plot(
            rates.loc[which, "passages per s"], which.to_numpy().nonzero()[0], mark, color=colour,
            markersize=8, label=label,
        )
    _name_rows(axes, [f"{row.work}: {row.system}" for row in rates.itertuples()], "")
    axes.set(xscale="log", xlabel="passages per second")
    figure.legend(loc="outside lower center", ncols=2, frameon=False)
    return figure


def latency(timings: pd.DataFrame, effectiveness: pd.Series, *, measure: str) -> Figure:
    """Effectiveness against the time a query takes, both of this run.

    Args:
        timings: From `rdl_study.bench.summary`: ``median_ms`` and ``p95_ms`` per system.
        effectiveness: Mean of the measure per system; systems without one are left out.
        measure: Label of the axis.

    >>> timings = pd.DataFrame({"median_ms": [5.0], "p95_ms": [6.0]}, index=["BM25"])
    >>> latency(timings, pd.Series({"BM25": 0.4}), measure="nDCG@10").axes[0].get_xscale()
    'log'
    """
    figure, (axes,) = canvas(1, height=3.8)
    shown = timings.index.intersection(effectiveness.index)
    for system, mark in zip(shown, MARKS, strict=False):
        row = timings.loc[system]
        spread = [[0.0], [row["p95_ms"] - row["median_ms"]]]
        axes.errorbar(
            [row["median_ms"]], [effectiveness[system]], xerr=spread, fmt=mark, markersize=8,
            capsize=3, label=system,
        )
    found = pd.DataFrame({"ms": timings["median_ms"], "mean": effectiveness}).loc[shown]
    found = found.sort_values("ms")
    front = found[found["mean"] > found["mean"].cummax().shift(fill_value=-1.0)]
    axes.plot(front["ms"], front["mean"], ":", color=INK, zorder=0)  # nothing beats these in both
    axes.set(xscale="log", xlabel="ms per query, median and 95th percentile", ylabel=measure)
    axes.legend(frameon=False, loc="best")
    return figure


def _dots(axes: Axes, differences: pd.DataFrame) -> None:
    spread = [
        differences["mean"] - differences["ci_low"], differences["ci_high"] - differences["mean"]
    ]
    axes.errorbar(
        differences["mean"], range(len(differences)), fmt="o", color=OURS, markersize=7, capsize=4,
        xerr=spread,
    )
    baseline = differences.index[differences["p_value"].isna()][0]
    axes.axvline(differences.loc[baseline, "mean"], color=INK, linewidth=1, linestyle=":")


def _log_depths(axes: Axes, depths: list[int], title: str) -> None:
    axes.set(xlabel="passages per training list", xscale="log")
    axes.set_title(title, fontsize="medium")
    axes.set_xticks(depths)
    axes.xaxis.set_major_formatter("{x:.0f}")
    axes.minorticks_off()


def _name_rows(axes: Axes, names: list[str], title: str) -> None:
    # Labels such as those of several first stages together would leave no room for the figure.
    lines = ["\n".join(wrap(name.replace("+", "+ "), _LABEL)).replace("+ ", "+") for name in names]
    axes.set_yticks(range(len(names)), lines)
    axes.set_ylim(len(names) - 0.5, -0.5)
    axes.set_title(title, fontsize="medium")
    axes.grid(axis="y", visible=False)
