"""Pictures of README and method pages, from recorded figures and by the real code: ``make kept``.

They are kept as SVG in ``book/_static/``, to show where nothing runs; a test draws them anew.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path

import matplotlib as mpl
import numpy as np
import pandas as pd
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure

import rdl_study as study
from rdl_core.evaluate import compare
from rdl_core.samplers import single_relevant
from rdl_core.teachers.answers import Answer, Window
from rdl_core.teachers.listwise import plan_windows, rank_lists
from rdl_study.bench.race import recorded, summary
from rdl_study.store import project_folder

YEARS = ("2019", "2020")
#: By row of the main picture: the recorded system, the paper's.
ROWS = {
    "BM25": ("first stage", "first stage"),
    "bi-encoder": ("bi-encoder", None),
    "student": ("student", "dual/rank-distillm-colbert"),
    "teacher, 7 B": ("teacher (rank_vicuna)", "RankZephyr"),
}
PAPER_TIMES = {"student": "monoELECTRA-base", "teacher, 7 B": "RankZephyr-7B"}
OURS = "recorded here: a student of 22 M, teacher RankVicuna; on two CPU cores; 95 % intervals"
PAPERS = "published: a student of 110 M, teacher RankZephyr, other candidates; on a GPU"


def main_figures() -> pd.DataFrame:
    """nDCG@10 of each system by year, and ms per query, as recorded and published; NaN if unknown."""
    file = project_folder() / "results" / "trec-dl" / "effectiveness.csv"
    table, paper = pd.read_csv(file).query("measure == 'nDCG@10'"), study.published("trec_dl")
    ours, theirs = zip(*ROWS.values(), strict=True)
    columns = {}
    for year in YEARS:
        rows = table[table["collection"] == f"rdl/trec-dl-{year}"]
        values = rows.drop(columns="seed").groupby("system").mean(numeric_only=True).T.dropna()
        means = compare(values[list(ours)], ours[0])
        columns |= {(year, name): means[name].to_numpy() for name in ("mean", "ci_low", "ci_high")}
        columns[year, "published"] = paper[f"bm25/trec-dl-{year}"].reindex(theirs).to_numpy()
    window, rank = (summary(recorded(part).timings)["median_ms"] for part in ("window", "rank"))
    whole = len(plan_windows(100)) * window["listwise LLM (7B), a window"]  # one of them was timed
    ms = {"bi-encoder": rank["bi-encoder"], "student": window["ours"], "teacher, 7 B": whole}
    columns["time", "ms"] = pd.Series(ms).reindex(ROWS).to_numpy()
    seconds = study.published("efficiency")["seconds_per_query"]
    columns["time", "published"] = 1000 * seconds.reindex(map(PAPER_TIMES.get, ROWS)).to_numpy()
    return pd.DataFrame(columns, index=list(ROWS))


def main_result() -> Figure:
    """nDCG@10 of small and large models on TREC DL 2019 and 2020, and the time that a query takes."""
    shown = main_figures()
    figure, panels = study.canvas(3, height=3.9, columns=3, width=9.0)
    for axes, year in zip(panels, YEARS, strict=False):
        of_year = shown[year]
        spread = [of_year["mean"] - of_year["ci_low"], of_year["ci_high"] - of_year["mean"]]
        study.name_rows(axes, list(shown.index), f"nDCG@10, TREC DL {year}")
        mark(axes, of_year["mean"], of_year["published"], spread)
        axes.set(xticks=[0.45, 0.55, 0.65, 0.75], xlim=(0.39, 0.8))
    times = panels[2]
    study.name_rows(times, list(shown.index), "ms per query, 100 passages")
    mark(times, shown["time", "ms"], shown["time", "published"])
    times.set(xscale="log", xlim=(4, 6_000_000))
    times.set_xticks([10, 1000, 100_000], ["10", "1,000", "100,000"])
    times.minorticks_off()
    for row in np.flatnonzero(shown["time", "ms"].isna()):
        times.text(5, row, "not measured here", va="center", color="#5b6670", fontsize="small")
    for axes in panels[1:]:
        axes.set_yticklabels([])
    handles, labels = panels[0].get_legend_handles_labels()
    figure.legend(handles[::-1], labels[::-1], loc="outside lower center", frameon=False)
    return figure


def two_stages() -> Figure:
    """Which of a query's candidates the lists of each stage hold, and what each stage brought."""
    figure, (lists, gains) = study.canvas(2, height=6.0, stacked=[1.2, 1])
    figure.get_layout_engine().set(hspace=0.08)
    generator = torch.Generator().manual_seed(0)
    mask, relevant = torch.ones(8, 200, dtype=torch.bool), torch.zeros(8, 200, dtype=torch.bool)
    relevant[:, [2, 57]] = True
    drawn = single_relevant(mask, 8, generator=generator, relevant=relevant)
    for row, columns in enumerate(drawn.indices):
        good = relevant[row, columns]
        for chosen, shape, colour, size in ((~good, "|", study.INK, 9), (good, "D", study.PAPER, 6)):
            places = columns[chosen] + 1
            lists.plot(places, [row] * len(places), shape, color=colour, markersize=size)
    lists.plot(range(1, 101), [9] * 100, "|", color=study.OURS, markersize=14)
    label = {"va": "center", "color": study.OURS, "fontsize": "small"}
    lists.text(103, 9, "stage 2: all of the top 100", **label)
    lists.set(xlabel="rank for the first stage", ylabel="training lists", yticks=[], ylim=(10, -1))
    lists.set_title("eight lists of stage 1, one of stage 2, of the same query", fontsize="medium")
    lists.grid(visible=False)
    labels = {"first stage": "BM25", "student after stage 1": "after stage 1"}
    labels |= {"student": "after stage 2", "teacher (rank_vicuna)": "teacher"}
    kept = study.recorded("effectiveness", "bm25")
    means = compare(kept.values, kept.baseline).loc[list(labels)]
    study.name_rows(gains, [*labels.values()], "what was recorded: nDCG@10, TREC DL 2019 and 2020")
    spread = [means["mean"] - means["ci_low"], means["ci_high"] - means["mean"]]
    mark(gains, means["mean"], None, spread)
    gains.set_xticks([0.45, 0.55, 0.65])
    return figure


class Sorter:
    """A perfect teacher that keeps what it answered: it sorts each window by its passages' ids."""

    can_retry = False

    def __init__(self) -> None:
        self.answers: list[list[str]] = []

    def ask(self, windows: Sequence[Window]) -> Iterable[tuple[int, Answer]]:
        for number, window in enumerate(windows):
            order = np.argsort([int(doc_id) for doc_id in window.doc_ids], kind="stable")
            self.answers.append([window.doc_ids[place] for place in order])
            yield number, Answer(order=tuple(order.tolist()))


def sliding_window() -> Figure:
    """Which places each window covers, how a passage rises through them, and what one pass sorts."""
    n, plan, sorter = 100, plan_windows(100), Sorter()
    worst = [str(best) for best in range(n, 0, -1)]  # the first stage has it the wrong way round
    lists = {"query_id": "q", "query": "q", "doc_id": worst, "text": worst, "rank": range(1, n + 1)}
    once, _ = rank_lists(pd.DataFrame(lists), sorter)
    twice, _ = rank_lists(pd.DataFrame(lists), Sorter(), passes=2)
    figure, (windows, after) = study.canvas(2, height=7.6, stacked=[1, 1])
    figure.get_layout_engine().set(hspace=0.08)
    for step, places in enumerate(plan):
        windows.barh(
            step, len(places), left=places.start + 0.5, height=0.7, color="#dfe6ec",
            edgecolor=study.INK, linewidth=0.6,
        )
    for doc_id, name, shape, colour in (
        ("1", "the best passage", "o", study.OURS), ("15", "the 15th best", "D", study.PAPER)
    ):
        path = [(worst.index(doc_id) + 1, 0)]  # where it begins, then where each window leaves it
        path += [
            (plan[step].start + answer.index(doc_id) + 1, step)
            for step, answer in enumerate(sorter.answers) if doc_id in answer
        ]
        windows.plot(*zip(*path, strict=True), f"{shape}-", color=colour, label=name)
    windows.set(xlabel="place in the list", ylabel="windows, in the order asked")
    windows.set(yticks=range(len(plan)), yticklabels=range(1, len(plan) + 1), ylim=(8.6, -0.6))
    windows.set_title("windows of 20, each 10 places ahead of the last", fontsize="medium")
    windows.legend(frameon=False, loc="upper left")
    right = np.array([int(doc_id) for doc_id in worst])
    after.plot(right, once["teacher_rank"], "o", color=study.OURS, markersize=4, label="after one pass")
    after.plot(right, twice["teacher_rank"], "x", color=study.PAPER, markersize=4, label="after two")
    after.set(xlabel="its right place", ylabel="place that it gets")
    after.set_title("what comes of a list that began upside down", fontsize="medium")
    after.legend(frameon=False, loc="upper right")
    return figure


def draw(folder: Path) -> list[Path]:
    """Draw all pictures as ``<name>.svg``, the same bytes from the same figures."""
    paths = []
    with mpl.rc_context({"svg.hashsalt": "rdl"}):
        for picture in (main_result, two_stages, sliding_window):
            paths.append(folder / f"{picture.__name__}.svg")
            picture().savefig(paths[-1], metadata={"Date": None}, facecolor="white")
    return paths


def mark(axes: Axes, ours: pd.Series, paper: pd.Series | None, spread: list | None = None) -> None:
    """Ours as dots with their values, the paper's as open diamonds below."""
    rows = range(len(ours))
    look = {"color": study.OURS, "markersize": 8, "capsize": 4}
    axes.errorbar(ours, rows, xerr=spread, fmt="o", label=OURS, **look)
    look = {"textcoords": "offset points", "ha": "center", "color": study.OURS, "fontsize": "small"}
    for x, row in zip(ours, rows, strict=True):
        if pd.notna(x):
            axes.annotate(f"{x:.3f}".lstrip("0") if x < 1 else f"{x:,.0f}", (x, row), (0, 7), **look)
    if paper is not None:
        look = {"color": study.PAPER, "markersize": 6, "fillstyle": "none", "markeredgewidth": 1.6}
        axes.plot(paper, [row + 0.28 for row in rows], "D", label=PAPERS, **look)
    axes.set_ylim(len(ours) - 0.45, -0.55)


if __name__ == "__main__":
    draw(Path(__file__).parent / "_static")
