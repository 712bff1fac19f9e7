"""From rankings to tables and sentences: what a result page shows comes from here.

`compare` turns named systems into per-query values; every table, sentence and provenance strip is
computed from its result, so that none of them can drift from another.
"""

from __future__ import annotations

import html
import json
from dataclasses import dataclass, replace
from functools import lru_cache
from importlib import resources

import pandas as pd
from IPython.display import HTML, Markdown

from rdl_core.data.collections import load
from rdl_core.evaluate import compare as compare_values
from rdl_core.evaluate import equivalence, per_query
from rdl_study.candidates import ListsConfig, chosen_queries
from rdl_study.grid import Part, rankings
from rdl_study.jobs import StudentConfig, ranking, student
from rdl_study.profile import Profile
from rdl_study.store import Run

__all__ = [
    "Results", "as_html", "as_p", "as_seeds", "compare", "differences", "display_table", "matching",
    "measured", "provenance", "published", "sentence", "training_log",
]  # fmt: skip


@dataclass(frozen=True)
class Results:
    """Systems compared on the same queries."""

    profile: Profile
    """The profile that they ran at."""
    baseline: str
    """The system that the others are compared with."""
    values: pd.DataFrame
    """The profile's measure, ``[query_id, system]``, mean over seeds."""
    rankings: dict[str, tuple[Run, ...]]
    """For each system, its rankings, one per seed."""


def compare(part: Part) -> Results:
    """Run, or fetch from the store, the systems of a part of a page.

    >>> part = Part(profile=profile, systems={"BM25": "first_stage"}, baseline="BM25")
    >>> compare(part).values.shape
    (6, 1)
    """
    found = {
        label: tuple(map(ranking, rankings(part.profile, system)))
        for label, system in part.systems.items()
    }
    columns = {label: _mean_over_seeds(runs, part.profile) for label, runs in found.items()}
    return Results(part.profile, part.baseline, pd.DataFrame(columns), found)


def measured(run: Run, measures: tuple[str, ...]) -> pd.DataFrame:
    """A ranking's measures for each of its test queries; one without candidates counts 0.

    >>> run = results.rankings["BM25"][0]
    >>> measured(run, ("nDCG@10", "RR")).columns.tolist()
    ['query_id', 'nDCG@10', 'RR']
    """
    asked = ListsConfig(**run.manifest["config"]["candidates"])
    qrels = load(asked.collection).qrels
    judged = qrels[qrels["query_id"].isin(chosen_queries(asked))]
    return per_query(judged, pd.read_parquet(run.folder / "run.parquet"), measures)


def differences(results: Results) -> pd.DataFrame:
    """Means, intervals and tests against the baseline; see `rdl_core.evaluate.compare`.

    >>> bool(differences(results).loc["BM25", "delta"] == 0)
    True
    """
    return compare_values(results.values, results.baseline)


def display_table(differences: pd.DataFrame, measure: str) -> pd.DataFrame:
    """A table for people: means and differences with their intervals, p after Holm.

    >>> display_table(differences(results), "nDCG@10")["system"].tolist()
    ['BM25', 'student']
    """
    baseline = differences["p_value"].isna()
    table = pd.DataFrame(
        {
            measure: differences["mean"].map("{:.3f}".format),
            "95 % interval": _intervals(differences, "ci_low", "ci_high", "{:.3f}"),
            "difference": differences["delta"].map("{:+.3f}".format).mask(baseline, "baseline"),
            "95 % interval of it": _intervals(
                differences, "delta_low", "delta_high", "{:+.3f}"
            ).mask(baseline, ""),
            "p (Holm)": differences["p_holm"].map(as_p).mask(baseline, ""),
        }
    )
    table.index.name = "system"
    return table.reset_index()


def as_p(value: float) -> str:
    """A p-value to three digits, and never as 0.

    >>> as_p(0.0123), as_p(1e-9)
    ('0.012', '< 0.001')
    """
    return "< 0.001" if value < 0.001 else f"{value:.3f}"


def as_seeds(number: int) -> str:
    """How many trainings of a student a figure is the mean of.

    >>> as_seeds(1), as_seeds(5)
    ('1 seed', '5 seeds')
    """
    return f"{number} seed{'s' * (number > 1)}"


def as_html(table: pd.DataFrame) -> HTML:
    """A table as the book shows it: numbers to three digits, an index only where it says something.

    >>> "<td>0.500</td>" in as_html(pd.DataFrame({"mean": [0.5]})).data
    True
    """
    named = not isinstance(table.index, pd.RangeIndex)
    return HTML(
        table.to_html(
            index=named, border=0, na_rep="", float_format="{:.3f}".format,
            classes="rdl-wide" if table.shape[1] > 6 else None,
        )
    )


def sentence(differences: pd.DataFrame, results: Results) -> Markdown:
    """The answer in words: the best system, and which differ from the baseline.

    >>> sentence(differences(results), results).data.startswith("On 6 queries")
    True
    """
    measure, n = results.profile.measure, len(results.values)
    baseline = differences.index[differences["p_value"].isna()][0]
    best = differences["mean"].idxmax()
    row = differences.loc[best]
    head = (
        f"On {n} queries of {_tested_on(results.profile)}, with "
        f"{as_seeds(len(results.profile.seeds))}, **{best}** has the highest {measure}: "
        f"{row['mean']:.3f} (95 % interval {row['ci_low']:.3f} to {row['ci_high']:.3f})."
    )
    differ = differences.index[differences["significant"].fillna(False).astype(bool)]
    if len(differ):
        listed = ", ".join(f"{name} ({differences.loc[name, 'delta']:+.3f})" for name in differ)
        tail = f"Significantly different from {baseline} (p < .05 after Holm): {listed}."
    else:
        tail = (
            f"None differs significantly from {baseline}, which does not show that they are equal: "
            f"the widest interval reaches from {differences['delta_low'].min():+.3f} to "
            f"{differences['delta_high'].max():+.3f}."
        )
    return Markdown(f"{head} {tail}")


def provenance(results: Results, page: str) -> HTML:
    """Where a page's figures come from: data, teacher, machine, runs, command.

    Args:
        results: What it compares.
        page: Its notebook's name.

    >>> "rdl-badge-smoke" in provenance(results, "loss").data
    True
    """
    profile = results.profile
    trained = {
        run.manifest["inputs"][0]: run
        for runs in results.rankings.values()
        for run in runs
        if run.manifest["inputs"]
    }
    first = next(iter(results.rankings.values()))[0].manifest
    seconds = sum(run.manifest["wall_s"] for runs in results.rankings.values() for run in runs)
    entries = {
        "Data and teacher": profile.label,
        "Test": f"{_tested_on(profile).replace('`', '')}, {len(results.values)} queries, "
        f"{profile.test.first_stage} top {profile.test.depth}",
        "Seeds": ", ".join(map(str, profile.seeds)),
        "Machine": f"{first['device']}, {first['threads']} threads",
        "Versions": ", ".join(f"{name} {v}" for name, v in first["versions"].items()),
        "Ranking took": f"{seconds:.0f} s in all",
        "Students": ", ".join(sorted(trained)) or "none",
        "Commit": first["commit"] or "not in git",
        "Command": f"papermill notebooks/{page}.ipynb out.ipynb -p profile {profile.name}",
    }
    rows = "".join(f"<dt>{k}</dt><dd>{html.escape(str(v))}</dd>" for k, v in entries.items())
    return HTML(
        f'<div class="rdl-provenance"><span class="rdl-badge rdl-badge-{profile.scale}">'
        f"{profile.scale}</span> profile <code>{html.escape(profile.name)}</code>"
        "<details><summary>Where these figures come from, and the command that makes them</summary>"
        f"<dl>{rows}</dl></details></div>"
    )


def published(table: str) -> pd.DataFrame:
    """A table of the paper (Schlatt et al., ECIR 2025), as nDCG@10.

    Args:
        table: ``"trec_dl"`` and ``"loss"`` (rows by columns), ``"depth"`` and ``"queries"`` (one
            row per depth or number of queries), ``"tirex"``, or ``"efficiency"``.

    >>> published("loss").loc["RankNet"].round(3).tolist()
    [0.72, 0.711, 0.768, 0.77]
    """
    data = _paper()[table]
    if "x" in data:
        columns = {name: data[name] for name in ("bm25", "colbert")}
        return pd.DataFrame(columns, index=pd.Index(data["x"], name=table))
    if table == "efficiency":
        return pd.DataFrame.from_dict(dict(data["rows"]), orient="index")
    return pd.DataFrame({name: row[0] for name, *row in data["rows"]}, index=data["columns"]).T


def training_log(config: StudentConfig) -> pd.DataFrame:
    """Loss and learning rate of every step of every stage of a student.

    >>> training_log(profile.student())["stage"].unique().tolist()
    ['stage 1: info_nce', 'stage 2: ranknet']
    """
    stages = []
    for n in range(1, len(config.stages) + 1):
        run = student(replace(config, stages=config.stages[:n]))
        log = pd.read_json(run.folder / "log.jsonl", lines=True)
        stages.append(log.assign(stage=f"stage {n}: {config.stages[n - 1].training.loss}"))
    return pd.concat(stages, ignore_index=True)


def _tested_on(profile: Profile) -> str:
    return " and ".join(f"`{test.collection}`" for test in profile.tests)


def _mean_over_seeds(runs: tuple[Run, ...], profile: Profile) -> pd.Series:
    """The profile's measure for every query of every collection tested on."""
    values = pd.concat([measured(run, (profile.measure,)) for run in runs])
    return values.groupby("query_id")[profile.measure].mean()


def _intervals(frame: pd.DataFrame, low: str, high: str, number: str) -> pd.Series:
    return frame[low].map(number.format) + " to " + frame[high].map(number.format)


@lru_cache(maxsize=1)
def _paper() -> dict:
    return json.loads(resources.files(__package__).joinpath("paper_tables.json").read_text())


def matching(values: pd.DataFrame, system: str, reference: str, measure: str) -> Markdown:
    """Whether a system matches a reference, in words: a test of equivalence, not of difference.

    Args:
        values: Of the measure, ``[query_id, system]``.
        system: One column.
        reference: Another.
        measure: Its name.

    >>> "TOST p =" in matching(results.values, "student", "BM25", "nDCG@10").data
    True
    """
    test = equivalence(values, system, reference)
    found = "matches" if test.equivalent else "is not shown to match"
    return Markdown(
        f"**{system}** {found} **{reference}** within {test.margin} {measure} "
        f"(difference {test.delta:+.3f}, 90 % interval {test.delta_low:+.3f} to "
        f"{test.delta_high:+.3f}, TOST p = {test.p_value:.3f})."
    )
