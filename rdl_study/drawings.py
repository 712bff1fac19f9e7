"""Pictures of the README and the method pages, drawn from recorded figures and by the real code.

They are kept as SVG under ``book/_static/`` (``make kept``), so that they show where nothing
runs; a test draws them anew and compares.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

import matplotlib as mpl
import numpy as np
import pandas as pd
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from rdl_study.bench import summary
from rdl_core.evaluate import compare
from rdl_core.samplers import single_relevant
from rdl_study import recorded, speed
from rdl_study.figures import INK, OURS, PAPER, canvas
from rdl_study.store import project_folder
from rdl_study.tables import published
from rdl_core.teachers.listwise import plan_windows, rank_lists
from rdl_core.teachers.answers import Answer, Window

__all__ = ["DRAWINGS", "draw", "main_figures", "main_result", "sliding_window", "two_stages"]

_YEARS = ("2019", "2020")
#: By row of the main picture: the recorded system, the paper's, and whose time was raced.
_ROWS = {
    "BM25": ("first stage", "first stage", None),
    "bi-encoder": ("bi-encoder", None, "bi-encoder"),
    "student": ("student", "dual/rank-distillm-colbert", "ours"),
    "teacher, 7 B": ("teacher (rank_vicuna)", "RankZephyr", None),
}
_PAPER_TIMES = {"student": "monoELECTRA-base", "teacher, 7 B": "RankZephyr-7B"}
_HERE = "recorded here: a student of 22 M, teacher RankVicuna; on two CPU cores; 95 % intervals"
_THERE = "published: a student of 110 M, teacher RankZephyr, other candidates; on a GPU"
_MUTED = "#5b6670"


def main_figures() -> pd.DataFrame:
    """What the main picture shows: a row per system and column per year, source and bound.

    Returns:
        Per year ``mean``, ``ci_low`` and ``ci_high`` of nDCG@10 as recorded and ``published``, then
        ``ms`` and ``published ms`` of a query's 100 passages; NaN where nobody measured.

    >>> bool((main_figures()["2019", "mean"] > 0.4).all())
    True
    """
    table = pd.read_csv(
        project_folder() / "results" / "trec-dl" / "effectiveness.csv", dtype={"query_id": "str"}
    )
    paper = published("trec_dl")
    ours, theirs, raced = zip(*_ROWS.values(), strict=True)
    shown = {}
    for year in _YEARS:
        of_year = table[table["collection"] == f"rdl/trec-dl-{year}"]
        values = of_year.groupby(["query_id", "system"])["nDCG@10"].mean().unstack()[list(ours)]
        found = compare(values, ours[0]).loc[list(ours)]
        shown |= {(year, name): found[name].to_numpy() for name in ("mean", "ci_low", "ci_high")}
        shown[year, "published"] = paper[f"bm25/trec-dl-{year}"].reindex(theirs).to_numpy()
    ms = summary(speed.recorded("rank").timings)["median_ms"]
    seconds = published("efficiency")["seconds_per_query"].reindex(map(_PAPER_TIMES.get, _ROWS))
    shown["time", "ms"] = ms.reindex(raced).to_numpy()
    shown["time", "published"] = 1000 * seconds.to_numpy()
    return pd.DataFrame(shown, index=list(_ROWS))


def main_result() -> Figure:
    """What small and large models reach on TREC DL 2019 and 2020, and what a query takes.

    >>> len(main_result().axes)
    3
    """
    shown = main_figures()
    figure, axes = canvas(3, height=3.9, columns=3, width=9.0)
    for each, year in zip(axes, _YEARS, strict=False):
        found = shown[year]
        spread = [found["mean"] - found["ci_low"], found["ci_high"] - found["mean"]]
        _mark(each, found["mean"], found["published"], spread)
        _rows(each, shown.index, f"nDCG@10, TREC DL {year}", "0.45 0.55 0.65 0.75")
        each.set_xlim(0.39, 0.8)
    _mark(axes[2], shown["time", "ms"], shown["time", "published"])
    _rows(axes[2], shown.index, "ms per query, 100 passages", "10 100 1000 10000")
    axes[2].set(xscale="log", xlim=(4, 80_000))
    axes[2].set_xticks([10, 100, 1000, 10_000], ["10", "100", "1,000", "10,000"])
    axes[2].minorticks_off()
    for row, system in enumerate(shown.index):
        if pd.isna(shown.loc[system, ("time", "ms")]):
            axes[2].text(5, row, "not measured here", va="center", color=_MUTED, fontsize="small")
    for each in axes[1:]:
        each.set_yticklabels([])
    handles, labels = axes[0].get_legend_handles_labels()
    figure.legend(handles[::-1], labels[::-1], loc="outside lower center", frameon=False)
    return figure


def two_stages() -> Figure:
    """What one list of each stage shows of a query's candidates, and what each stage brought.

    >>> two_stages().axes[0].get_ylabel()
    'training lists'
    """
    figure, (lists, gains) = canvas(2, height=6.0, stacked=[1.2, 1])
    figure.get_layout_engine().set(hspace=0.08)
    generator = torch.Generator().manual_seed(0)
    mask, relevant = torch.ones(8, 200, dtype=torch.bool), torch.zeros(8, 200, dtype=torch.bool)
    relevant[:, [2, 57]] = True
    drawn = single_relevant(mask, 8, generator=generator, relevant=relevant)
    for row, columns in enumerate(drawn.indices):
        good = relevant[row, columns]
        lists.plot(columns[~good] + 1, [row] * int((~good).sum()), "|", color=INK, markersize=9)
        lists.plot(columns[good] + 1, [row] * int(good.sum()), "D", color=PAPER, markersize=6)
    lists.plot(range(1, 101), [9] * 100, "|", color=OURS, markersize=14)
    lists.text(103, 9, "stage 2: all of the top 100", va="center", color=OURS, fontsize="small")
    lists.set(xlabel="rank for the first stage", ylabel="training lists", yticks=[], ylim=(10, -1))
    lists.set_title("eight lists of stage 1, one of stage 2, of the same query", fontsize="medium")
    lists.grid(visible=False)
    labels = {"first stage": "BM25", "student after stage 1": "after stage 1"}
    labels |= {"student": "after stage 2", "teacher (rank_vicuna)": "teacher"}
    found = recorded.differences("effectiveness", "bm25").loc[list(labels)]
    spread = [found["mean"] - found["ci_low"], found["ci_high"] - found["mean"]]
    _mark(gains, found["mean"], None, spread)
    title = "what was recorded: nDCG@10, TREC DL 2019 and 2020"
    _rows(gains, labels.values(), title, "0.45 0.55 0.65")
    return figure


class _Sorter:
    """A perfect teacher, watched: it sorts each window by the numbers that passages have as ids."""

    can_retry = False

    def __init__(self) -> None:
        self.seen: list[list[str]] = []

    def ask(self, windows: Sequence[Window]) -> Iterable[tuple[int, Answer]]:
        for number, window in enumerate(windows):
            order = np.argsort([int(doc_id) for doc_id in window.doc_ids], kind="stable")
            self.seen.append([window.doc_ids[place] for place in order])
            yield number, Answer(order=tuple(order.tolist()))


def sliding_window() -> Figure:
    """Which places each window shows, how a passage rises through them, and what one pass sorts.

    >>> len(sliding_window().axes)
    2
    """
    n, plan, sorter = 100, plan_windows(100), _Sorter()
    worst = [str(best) for best in range(n, 0, -1)]  # the first stage has it the wrong way round
    lists = {"query_id": "q", "query": "q", "doc_id": worst, "text": worst, "rank": range(1, n + 1)}
    once, _ = rank_lists(pd.DataFrame(lists), sorter)
    twice, _ = rank_lists(pd.DataFrame(lists), _Sorter(), passes=2)
    figure, (windows, after) = canvas(2, height=7.6, stacked=[1, 1])
    figure.get_layout_engine().set(hspace=0.08)
    for step, (places,) in enumerate(plan):
        windows.barh(
            step, len(places), left=places.start + 0.5, height=0.7, color="#dfe6ec",
            edgecolor=INK, linewidth=0.6,
        )
    for doc_id, name, mark, colour in (
        ("1", "the best passage", "o", OURS), ("15", "the 15th best", "D", PAPER)
    ):
        path = [(worst.index(doc_id) + 1, 0)]  # where it begins, then where each window leaves it
        path += [
            (plan[step][0].start + shown.index(doc_id) + 1, step)
            for step, shown in enumerate(sorter.seen) if doc_id in shown
        ]
        windows.plot(*zip(*path, strict=True), f"{mark}-", color=colour, label=name)
    windows.set(xlabel="place in the list", ylabel="windows, in the order asked")
    windows.set(yticks=range(len(plan)), yticklabels=range(1, len(plan) + 1), ylim=(8.6, -0.6))
    windows.set_title("windows of 20, each 10 places ahead of the last", fontsize="medium")
    windows.legend(frameon=False, loc="upper left")
    right = np.array([int(doc_id) for doc_id in worst])
    for ranked, mark, colour, label in (
        (once, "o", OURS, "after one pass"), (twice, "x", PAPER, "after two")
    ):
        after.plot(right, ranked["teacher_rank"], mark, color=colour, markersize=4, label=label)
    after.set(xlabel="its right place", ylabel="place that it gets")
    after.set_title("what comes of a list that began upside down", fontsize="medium")
    after.legend(frameon=False, loc="upper right")
    return figure


#: Pictures by the name of their file.
DRAWINGS: dict[str, Callable[[], Figure]] = {
    "main_result": main_result, "two_stages": two_stages, "sliding_window": sliding_window,
}  # fmt: skip


def draw(folder: Path) -> list[Path]:
    """Draw all of `DRAWINGS` as SVG, the same bytes from the same figures.

    Args:
        folder: Gets ``<name>.svg``.

    >>> [path.name for path in draw(folder)]
    ['main_result.svg', 'two_stages.svg', 'sliding_window.svg']
    """
    paths = []
    with mpl.rc_context({"svg.hashsalt": "rdl"}):
        for name, picture in DRAWINGS.items():
            paths.append(folder / f"{name}.svg")
            picture().savefig(paths[-1], metadata={"Date": None}, facecolor="white")
    return paths


def _mark(
    axes: Axes, ours: pd.Series, paper: pd.Series | None, spread: list[pd.Series] | None = None
) -> None:
    """Ours as dots with their values, the paper's as open diamonds below."""
    rows = range(len(ours))
    axes.errorbar(
        ours, rows, xerr=spread, fmt="o", color=OURS, markersize=8, capsize=4,
        label=_HERE,
    )
    for x, row in zip(ours, rows, strict=True):
        if pd.notna(x):
            text = f"{x:.3f}".lstrip("0") if x < 1 else f"{x:,.0f}"
            axes.annotate(
                text, (x, row), (0, 7), textcoords="offset points", ha="center", color=OURS,
                fontsize="small",
            )
    if paper is not None:
        axes.plot(
            paper, [row + 0.28 for row in rows], "D", color=PAPER, markersize=6, fillstyle="none",
            markeredgewidth=1.6, label=_THERE,
        )


def _rows(axes: Axes, names: Iterable[str], title: str, ticks: str) -> None:
    names = list(names)
    axes.set_yticks(range(len(names)), names)
    axes.set_ylim(len(names) - 0.45, -0.55)
    axes.set_title(title, fontsize="medium")
    axes.set_xticks([float(tick) for tick in ticks.split()])
    axes.grid(axis="y", visible=False)
