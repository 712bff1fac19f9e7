"""The figure and the frame that several pages share: white ground, marks that differ in shape."""

from __future__ import annotations

import math
import re
from textwrap import wrap

import matplotlib.pyplot as plt
import pandas as pd
import seaborn as sns
from matplotlib.axes import Axes
from matplotlib.figure import Figure

__all__ = ["INK", "MARKS", "OURS", "PAPER", "canvas", "in_words", "means", "name_rows"]

#: Text and axes; what is ours, what is the paper's: blue and orange, of different lightness.
INK, OURS, PAPER = "#1b1f24", "#0b62a4", "#a4510b"
#: Marks, in the order in which systems take them.
MARKS = ("o", "s", "D", "^", "v", "P", "X", "*")
_LABEL = 36  # characters in a line of a row's name
_WORDS = {
    "rank_vicuna_unaugmented": "RankVicuna, no augmentation", "rank_vicuna": "RankVicuna",
    "rank_vicuna_early": "RankVicuna, early", "rank_zephyr": "RankZephyr", "gpt_3.5": "GPT-3.5",
    "gpt_3.5_mean": "GPT-3.5, mean of five", "vicuna_7b": "Vicuna 7B", "vicuna_13b": "Vicuna 13B",
    "smollm2": "SmolLM2", "smollm2_yes_no": "SmolLM2, yes", "smollm2_windows": "SmolLM2, windows",
    "smollm2_fused": "SmolLM2 + bi-encoder + first stage", "fused": "bi-encoder + first stage",
    "bi_encoder": "bi-encoder", "first_stage": "first stage", "bm25_rm3": "BM25+RM3", "bm25": "BM25",
    "splade": "SPLADE++", "tas_b": "TAS-B", "ada2": "Ada-2", "colbert": "ColBERTv2",
}  # fmt: skip
_NAMED = re.compile(rf"(?<![\w/])(?:{'|'.join(sorted(map(re.escape, _WORDS), key=len)[::-1])})(?!\w)")


def canvas(
    panels: int, *, height: float, width: float = 5.8, columns: int = 1,
    stacked: list[float] | None = None,
) -> tuple[Figure, list[Axes]]:
    """Panels of a figure for a phone: inches, panels beside each other, proportions of their rows."""
    sns.set_theme(
        style="whitegrid", palette="colorblind",
        rc={"axes.edgecolor": INK, "text.color": INK, "font.size": 11, "hatch.linewidth": 0.6},
    )
    figure, grid = plt.subplots(
        math.ceil(panels / columns), columns, figsize=(width, height), layout="constrained",
        squeeze=False, facecolor="white", height_ratios=stacked,
    )
    for axes in grid.flat[panels:]:
        axes.remove()
    for axes in grid.flat[:panels]:
        axes.set_title("", fontsize="medium")
        sns.despine(ax=axes)
    return figure, list(grid.flat[:panels])


def means(
    table: pd.DataFrame | None, *, measure: str, recorded: pd.DataFrame | None = None,
    paper: pd.Series | None = None,
) -> Figure:
    """A dot and a 95 % interval per system, the baseline's mean as a line: a panel for each source.

    Tables are those of `rdl_core.evaluate.compare`, of this run and of a recorded one.
    """
    tables = {f"{measure}, this run": table, "nDCG@10, recorded": recorded, "nDCG@10, published": paper}
    panels = {title: table for title, table in tables.items() if table is not None}
    rows = [len(table) + 1.5 for table in panels.values()]
    figure, grid = canvas(len(panels), height=0.42 * sum(rows), stacked=rows)
    for axes, (title, table) in zip(grid, panels.items(), strict=True):
        places = range(len(table))
        if table is paper:
            axes.plot(paper.to_numpy(), places, "D", color=PAPER, markersize=7)
        else:
            mean = table["mean"]
            spread = [mean - table["ci_low"], table["ci_high"] - mean]
            axes.errorbar(mean, places, xerr=spread, fmt="o", color=OURS, markersize=7, capsize=4)
            axes.axvline(mean[table["p_value"].isna()].iloc[0], color=INK, linewidth=1, linestyle=":")
        name_rows(axes, list(table.index), title)
    return figure


def in_words(label: str) -> str:
    """A system's label as people say it: ``lists from bm25+tas_b`` is ``lists from BM25 and TAS-B``."""
    return _NAMED.sub(lambda name: _WORDS[name[0]], re.sub(r"(?<=\w)\+(?=[a-z])", " and ", label))


def name_rows(axes: Axes, names: list[str], title: str) -> None:
    """Label rows from the top; long names, such as of several first stages, take several lines."""
    axes.set_yticks(range(len(names)), ["\n".join(wrap(in_words(name), _LABEL)) for name in names])
    axes.set_ylim(len(names) - 0.5, -0.5)
    axes.set_title(title, fontsize="medium")
    axes.grid(axis="y", visible=False)
