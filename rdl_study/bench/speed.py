"""What races found, for people: tables, sentences, figures, and what it means at scale.

Recorded figures lie in ``results/efficiency/<machine>/``, written by ``rdl bench``.
"""

from __future__ import annotations

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import seaborn as sns
from IPython.display import Markdown
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, NullFormatter

from rdl_study.bench import ratios, summary
from rdl_study.bench.measure import Measured, read
from rdl_study.store import project_folder
from rdl_study.tables import published

__all__ = [
    "answer", "cost_answer", "cost_rates", "cost_table", "growth", "growth_figure", "limit_answer",
    "machine_line", "optimisations", "recorded", "slope_sentence", "student_price", "summary", "table",
]  # fmt: skip

_OURS, _THEIRS = "ours", "sentence-transformers, 8 at once"
_ON_GPU = {
    "on the GPU, loaded, GB": ("loaded_device_bytes", 1e9),
    "allocated at most, GB": ("peak_allocated_bytes", 1e9),
    "reserved at most, GB": ("peak_reserved_bytes", 1e9), "J": ("joules", 1),
}  # fmt: skip
_PAIRS = (10_000, 1_000_000, 1_000_000_000)
_UNITS = ((365.25 * 86_400, "years"), (86_400, "days"), (3_600, "hours"), (60, "minutes"))


def recorded(part: str, machine: str = "cpu") -> Measured:
    """A part as it was recorded on a machine.

    >>> recorded("rank").timings["system"].iloc[0] in ("ours", "Lightning IR")
    True
    """
    return read(project_folder() / "results" / "efficiency" / machine / f"{part}.json")


def table(measured: Measured, baseline: str) -> pd.DataFrame:
    """Median and 95th percentile, how many times as fast as a baseline, and memory.

    Args:
        measured: A part.
        baseline: The system whose time is divided by each one's, turn by turn.

    >>> table(recorded("rank"), "sentence-transformers, 8 at once")["system"].iloc[0]
    'ours'
    """
    figures, times = summary(measured.timings), ratios(measured.timings, baseline)
    order = measured.machines.index.intersection(figures.index, sort=False)
    figures, times, machines = figures.loc[order], times.loc[order], measured.machines.loc[order]
    shown = pd.DataFrame(
        {
            "median, ms": figures["median_ms"].map("{:,.1f}".format),
            "95th percentile, ms": figures["p95_ms"].map("{:,.1f}".format),
            "times as fast": times["median"].map("{:.2f}".format),
            "middle half": [f"{low:.2f} to {high:.2f}" for low, high in times[["low", "high"]].values],
            "memory, loaded, MB": (machines["loaded_bytes"] / 1e6).map("{:,.0f}".format),
            "peak, MB": (machines["peak_bytes"] / 1e6).map("{:,.0f}".format),
        }
    )
    for name, (column, unit) in _ON_GPU.items():
        if column in machines:
            shown[name] = (machines[column] / unit).map("{:,.1f}".format)
    shown.loc[baseline, ["times as fast", "middle half"]] = ["baseline", ""]
    differences = pd.Series(measured.manifest.get("differences", {}), dtype=float)
    differences = differences[differences < 1e-2]  # others do not compute the same
    if len(differences):
        shown["scores differ by"] = differences.map("{:.0e}".format).reindex(order).fillna("")
    shown["timings"] = figures["n_timings"]
    return shown.rename_axis("system").reset_index()


def answer(measured: Measured, system: str, baseline: str, what: str) -> Markdown:
    """How many times as fast one system is as another, in words.

    >>> answer(recorded("rank"), "ours", "Lightning IR", "ranks").data.startswith("**ours** ranks")
    True
    """
    row = ratios(measured.timings, baseline).loc[system]
    n = summary(measured.timings).loc[system, "n_timings"]
    return Markdown(
        f"**{system}** {what} {row['median']:.2f} times as fast as **{baseline}** (median of "
        f"{n} turns; the middle half of them {row['low']:.2f} to {row['high']:.2f})."
    )


def limit_answer(measured: Measured, precision: str) -> Markdown:
    """How much of what matrix products alone reach the encoder reaches, in words.

    Args:
        measured: Part ``"limit"``.
        precision: One that it was measured in.

    >>> "of what products" in limit_answer(recorded("limit"), "float32").data
    True
    """
    counts = measured.manifest["counts"]
    operations = pd.Series({(s, int(n)): x for s, of in counts.items() for n, x in of.items()})
    times = measured.timings.set_index(["system", "call"])["ms"]
    rates = operations.reindex(times.index).div(times * 1e6).groupby("system").median()
    reached, limit = (rates[f"{who}, {precision}"] for who in ("ours", "matrix products"))
    return Markdown(
        f"In {precision}, ranking computes {reached:,.0f} billion operations a second, "
        f"**{reached / limit:.0%}** of what products of large matrices reach on the same machine "
        f"({limit:,.0f})."
    )


def machine_line(measured: Measured) -> Markdown:
    """Where, on what, with which versions.

    >>> "threads" in machine_line(recorded("rank")).data
    True
    """
    said = measured.manifest
    versions = {
        name: version
        for each in measured.machines["versions"] for name, version in each.items()
        if name != "tokenizers"
    }  # fmt: skip
    libraries = ", ".join(f"{name} {version}" for name, version in sorted(versions.items()))
    return Markdown(
        f"*{said['device']}, {said['threads']} threads; {said['collection']}, "
        f"{said['first_stage']}; lists of {', '.join(map(str, sorted(set(said['lists']))))}; "
        f"weights of {said['model']}; {libraries}; commit {said['commit']}, {said['finished'][:10]}.*"
    )


def growth(part: str) -> pd.DataFrame:
    """Median time against the size of a list: ``system``, ``size``, ``ms``.

    Args:
        part: ``"depth"``, ``"length"`` (size in words of a passage) or ``"list_size"``.

    >>> growth("depth")["size"].max()
    np.int64(1000)
    """
    measured = recorded(part)
    sizes = measured.manifest["sizes"]
    timings = measured.timings.assign(size=measured.timings["call"].map(dict(enumerate(sizes))))
    return timings.groupby(["system", "size"], as_index=False)["ms"].median()


def growth_figure() -> Figure:
    """Time against depth, passage length and training list size, as recorded.

    >>> len(growth_figure().axes)
    3
    """
    sns.set_theme(style="whitegrid", palette="colorblind")
    labels = {
        "depth": ("passages of a query", "ranking, ms"),
        "length": ("words of a passage", "ranking 32, ms"),
        "list_size": ("passages of a training list", "training step, ms"),
    }
    figure, axes = plt.subplots(3, 1, figsize=(6.4, 9.6), layout="constrained")
    for each, (part, (x, y)) in zip(axes, labels.items(), strict=True):
        grown = growth(part)
        sns.lineplot(
            grown, x="size", y="ms", hue="system", style="system", markers=True, ax=each
        )
        each.set(xscale="log", yscale="log", xlabel=x, ylabel=y)
        each.set_xticks(grown["size"].unique(), map("{:,}".format, grown["size"].unique()))
        each.set_xticks([], minor=True)
        each.yaxis.set_major_locator(LogLocator(subs=(1, 3)))
        each.yaxis.set_major_formatter("{x:,.0f}")
        each.yaxis.set_minor_formatter(NullFormatter())
        each.legend(frameon=False, title=None)
    return figure


def slope_sentence(part: str, at_least: int) -> Markdown:
    """How fast time grows with size, from a size on, in words.

    >>> "From 100 on" in slope_sentence("depth", 100).data
    True
    """
    grown = growth(part)
    grown = grown[grown["size"] >= at_least]
    slopes = grown.groupby("system")[["size", "ms"]].apply(
        lambda x: np.polyfit(np.log(x["size"]), np.log(x["ms"]), 1)[0]
    )
    said = ", ".join(f"{slope:.2f} for **{system}**" for system, slope in slopes.items())
    return Markdown(f"From {at_least} on, time grows with size to the power of {said}; 1 is linear.")


#: By system of a recorded part, with or without it: what it is, what was expected, what came of it.
_OPTIMISATIONS = {
    "engine": {
        _THEIRS: (
            "all of it, beside sentence-transformers: packing, the last layer for [CLS] alone and "
            "without keys and values (a sixth of the layers' work), and what follows",
            "1.6 to 2", "kept",
        ),
        "weights as they come": (
            "weights laid out once for oneDNN, GELU fused, query, key and value in one product",
            "1.2", "kept",
        ),
        "layers compiled": (
            "that instead of layers that torch.compile compiles, which takes a minute and a C++ "
            "compiler", "1", "kept",
        ),
        "batches not filled up": (
            "batches filled up to a multiple of 64 tokens, so that oneDNN keeps few kernels",
            "1, with less memory", "kept",
        ),
        "memory handed back": (
            "freed memory kept for the next layer, instead of handed back to the system", "1.05", "kept",
        ),
        "all cores at one batch of 2,048": (
            "a batch of 1,024 tokens for each core, instead of one of 2,048 for both together", "1.05",
            "kept",
        ),
        "batches of 512 tokens": ("batches of 1,024 tokens instead of 512", "more than 1", "kept"),
        "batches of 2,048 tokens": ("1,024 instead of 2,048", "1, with less memory", "kept"),
        "batches of 4,096 tokens": ("1,024 instead of 4,096", "1, with less memory", "kept"),
    },
    "rank": {
        "ours, tokenised before": ("tokenising left out: passages from a token store", "1.01", "kept"),
        "ours, bfloat16": ("bfloat16 instead of float32", "2 for the products alone", "kept"),
        "ours, int8": ("int8 for the linear layers", "3 for the products alone", "an option"),
    },
    "train": {"ours, bfloat16": ("training in bfloat16", "1.5", "an option")},
}  # fmt: skip


def optimisations() -> pd.DataFrame:
    """What each optimisation of the engine was expected to bring, and what it brought.

    >>> optimisations().columns.tolist()
    ['what', 'expected, times as fast', 'brought', '']
    """
    rows = []
    for part, systems in _OPTIMISATIONS.items():
        times = ratios(recorded(part).timings, _OURS)["median"]
        for system, (what, expected, came_of_it) in systems.items():
            with_it = system.startswith("ours")
            brought = times[system] if with_it else 1 / times[system]
            rows.append([what, expected, f"{brought:.2f}", came_of_it])
    return pd.DataFrame(rows, columns=["what", "expected, times as fast", "brought", ""])


def cost_rates() -> pd.DataFrame:
    """Passages per second by whom and where: measured here, or published.

    >>> cost_rates()["passages per s"].gt(0).all()
    np.True_
    """
    rank, train = recorded("rank"), recorded("train")
    depth, list_size = rank.manifest["lists"][0], train.manifest["lists"][0]
    ms = summary(rank.timings)["median_ms"]
    step_ms = summary(train.timings)["median_ms"]
    paper = published("efficiency")["seconds_per_query"]
    threads = rank.manifest["threads"]
    here = f"CPU, {threads} threads, measured"
    rows = [
        ("serving", "student, float32", here, 1000 * depth / ms[_OURS]),
        ("serving", "student, bfloat16", here, 1000 * depth / ms["ours, bfloat16"]),
        ("serving", "student, int8", here, 1000 * depth / ms["ours, int8"]),
        ("training", "student, float32", here, 1000 * list_size / step_ms[_OURS]),
        ("training", "student, bfloat16", here, 1000 * list_size / step_ms["ours, bfloat16"]),
    ]
    of_paper = "one GPU, published; which one is not said"
    students = {"monoELECTRA-base": "student of 110 M", "RankZephyr-7B": "LLM of 7 B"}
    rows += [
        ("labelling" if "LLM" in name else "serving", name, of_paper, 100 / paper[key])
        for key, name in students.items()
    ]
    return pd.DataFrame(rows, columns=["work", "system", "where", "passages per s"])


def cost_table(rates: pd.DataFrame) -> pd.DataFrame:
    """Time for 10 thousand, a million and a billion pairs, and on eight machines.

    >>> rates = pd.DataFrame({"work": ["serving"], "system": ["s"], "where": ["here"],
    ...                       "passages per s": [100.0]})
    >>> cost_table(rates)["1,000,000 pairs"].tolist()
    ['2.8 hours']
    """
    shown = rates.drop(columns="passages per s")
    for pairs in _PAIRS:
        shown[f"{pairs:,} pairs"] = (pairs / rates["passages per s"]).map(_duration)
    shown[f"{_PAIRS[-1]:,} on eight"] = (_PAIRS[-1] / rates["passages per s"] / 8).map(_duration)
    return shown


def cost_answer(rates: pd.DataFrame) -> Markdown:
    """How long a million pairs take, in words, each system on its own machine.

    Args:
        rates: From `cost_rates`.

    >>> "A million pairs take" in cost_answer(cost_rates()).data
    True
    """
    shown = cost_table(rates[rates["work"] != "training"])
    told = [
        f"**{row[f'{_PAIRS[1]:,} pairs']}** with the {row['system']} ({row['where']})"
        for _, row in shown.iterrows()
    ]
    return Markdown(f"A million pairs take {'; '.join(told)}.")


def student_price(rates: pd.DataFrame) -> pd.DataFrame:
    """Labelling 10,000 lists of 100 once, and three passes of training over them.

    >>> student_price(cost_rates())["work"].unique().tolist()
    ['labelling', 'training']
    """
    spent = rates[rates["work"].isin(["labelling", "training"])].sort_values("work")
    passages = spent["work"].map({"labelling": 1_000_000, "training": 3_000_000})
    shown = spent.assign(passages=passages.map("{:,}".format))
    shown["time"] = (passages / spent["passages per s"]).map(_duration)
    return shown.drop(columns="passages per s").reset_index(drop=True)


def _duration(seconds: float) -> str:
    for size, unit in _UNITS:
        if seconds >= size:
            return f"{seconds / size:,.1f} {unit}"
    return f"{seconds:,.1f} seconds"
