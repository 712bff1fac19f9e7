"""Recorded runs: what was measured once, on real data, kept in the repository with its manifests.

``results/<profile>/<page>.csv`` has one row for each system, part, seed and query, with the
profile's measures; ``<page>.json`` beside it has the manifest of every run behind them: its
configuration, seed, commit, versions, device, fingerprints of data and wall time. Pages show these
figures beside the published ones and those of the reader's own run.
"""

from __future__ import annotations

import html
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import pandas as pd
from IPython.display import HTML, Markdown

from rdl_core.evaluate import compare as compare_values
from rdl_study.grid import Part
from rdl_study.profile import Profile
from rdl_study.store import Run, project_folder, stored
from rdl_study.tables import Results, as_p, as_seeds, compare, measured

__all__ = [
    "Recorded", "answers", "differences", "headline", "overview", "page_tables", "read", "side_by_side",
    "write",
]  # fmt: skip

_KEYS = ["part", "system", "collection", "seed", "query_id"]


@dataclass(frozen=True)
class Recorded:
    """One part of a page as it was recorded."""

    values: pd.DataFrame
    """The main measure, ``[query_id, system]``, mean over seeds."""
    measure: str
    """Which one."""
    baseline: str
    """The system that the others are compared with."""
    candidates: str
    """First stage and depth of what was re-ranked."""
    seeds: tuple[int, ...]
    """Seeds of its students."""
    collections: tuple[str, ...]
    """Collections tested on."""
    device: str
    """Machine that its students were trained on."""
    label: str
    """The profile's: data and teacher."""
    runs: tuple[dict, ...]
    """Manifests of its rankings and trainings."""


def write(page: str, profile: Profile, parts: dict[str, Results], folder: Path) -> Path:
    """Write what a page's systems measured, in place of what was recorded of it before.

    Args:
        page: The page's name.
        profile: The profile that was run.
        parts: The page's results, by part.
        folder: Gets ``<page>.csv`` and ``<page>.json``.

    Returns:
        The csv file.

    >>> write("loss", profile, {"losses": results}, folder).name
    'loss.csv'
    """
    measures = (profile.measure, *profile.more_measures)
    rows, manifests, ids = [], {}, {part: set() for part in parts}
    for part, results in parts.items():
        for system, runs in results.rankings.items():
            for run in runs:
                config = run.manifest["config"]
                trained = isinstance(config["system"], dict)
                rows.append(
                    measured(run, measures).round(4).assign(
                        part=part, system=system, collection=config["candidates"]["collection"],
                        seed=config["system"]["seed"] if trained else -1,
                    )
                )
                behind = _manifests(run)
                manifests |= behind
                ids[part] |= behind.keys()
    folder.mkdir(parents=True, exist_ok=True)
    about = {
        "profile": profile.name, "label": profile.label,
        "parts": {
            part: {
                "baseline": results.baseline,
                "candidates": f"{results.profile.test.first_stage} top {results.profile.test.depth}",
                "runs": sorted(ids[part]),
            }
            for part, results in parts.items()
        },
        "runs": manifests,
    }
    (folder / f"{page}.json").write_text(json.dumps(about, indent=1, sort_keys=True) + "\n")
    table = pd.concat(rows)[[*_KEYS, *measures]]
    table.to_csv(folder / f"{page}.csv", index=False)
    return folder / f"{page}.csv"


def read(
    page: str, part: str, *, profile: str = "trec-dl", folder: Path | None = None
) -> Recorded | None:
    """Read a part of a page, if it was recorded.

    Args:
        page: The page's name.
        part: The part's.
        profile: The profile that was run.
        folder: Where; None is ``results/<profile>`` of the project.

    >>> _ = write("loss", profile, {"losses": results}, folder)
    >>> read("loss", "losses", folder=folder).values.columns.tolist()
    ['BM25', 'student']
    """
    folder = folder or project_folder() / "results" / profile
    if not (folder / f"{page}.csv").exists():
        return None
    table = pd.read_csv(folder / f"{page}.csv", dtype={"query_id": "str"})
    table = table[table["part"] == part]
    if table.empty:
        return None
    about = json.loads((folder / f"{page}.json").read_text())
    main = table.columns[len(_KEYS)]
    values = table.groupby(["query_id", "system"])[main].mean().unstack()
    told = about["parts"][part]
    runs = tuple(about["runs"][name] for name in told["runs"])
    # Students of the study's jobs are of kind train, those of `rdl distill` of kind distill.
    devices = {run["device"] for run in runs if run["kind"] in ("train", "distill")}
    return Recorded(
        values=values[table["system"].unique()], measure=main, runs=runs,
        baseline=told["baseline"], candidates=told["candidates"],
        seeds=tuple(sorted(set(table["seed"]) - {-1})),
        collections=tuple(table["collection"].unique()),
        device=", ".join(sorted(devices)), label=about["label"],
    )


def side_by_side(
    page: str, part: str, results: Results | None = None, paper: pd.Series | None = None, *,
    profile: str = "trec-dl",
) -> HTML:
    """Published, recorded and this run's figures in one table, each with its difference.

    Args:
        page: The page's name.
        part: Its part.
        results: This run's; None where it did not run the part.
        paper: Published figures, by the labels that the part's systems have.
        profile: The profile that was recorded.

    >>> "this run" in side_by_side("loss", "losses", results).data
    True
    """
    kept = read(page, part, profile=profile)
    columns: dict[tuple[str, str], pd.Series] = {}
    if paper is not None:
        columns["published", "mean"] = paper.map("{:.3f}".format)
        baseline = kept.baseline if kept else results.baseline
        if baseline in paper:
            delta = (paper - paper[baseline]).map("{:+.3f}".format)
            columns["published", "difference"] = delta.mask(paper.index == baseline, "baseline")
    if kept is not None:
        columns |= _shown("recorded", compare_values(kept.values, kept.baseline))
    if results is not None:
        columns |= _shown("this run", compare_values(results.values, results.baseline))
    table = pd.DataFrame(columns).dropna(how="all")
    order = [*(kept.values if kept else []), *(results.values if results else [])]
    table = table.reindex(dict.fromkeys([*order, *table.index]))
    table.columns = pd.MultiIndex.from_tuples(table.columns)
    # Three runs beside each other fit a page if figures are as short as in the field's tables.
    table = table.rename_axis(None).replace(r"\b0\.(?=\d)", ".", regex=True)
    table.index = table.index.str.replace("_", "_\N{ZERO WIDTH SPACE}")
    shown = table.to_html(border=0, na_rep="", classes="rdl-wide")
    return HTML(shown + _about(kept, results))


def page_tables(
    page: str, parts: Mapping[str, Part], paper: Mapping[str, pd.Series] | None = None, *,
    profile: str = "trec-dl",
) -> HTML:
    """A table for each part of a page, this run's and those that were only recorded.

    Args:
        page: The page's name.
        parts: This run's parts; their systems are compared now, or come from the store.
        paper: Published figures of some parts, by the labels that their systems have.
        profile: The profile that was recorded.

    >>> part = Part(profile=profile, systems={"BM25": "first_stage"}, baseline="BM25")
    >>> "<h3>latency</h3>" in page_tables("efficiency", {"latency": part}).data
    True
    """
    path = project_folder() / "results" / profile / f"{page}.csv"
    kept = pd.read_csv(path, usecols=["part"])["part"].unique() if path.exists() else ()
    blocks = []
    for name in dict.fromkeys([*parts, *kept]):
        results = compare(parts[name]) if name in parts else None
        published = (paper or {}).get(name)
        table = side_by_side(page, name, results, published, profile=profile)
        blocks.append(f"<h3>{html.escape(name)}</h3>{table.data}")
    if not blocks:
        return HTML('<p class="rdl-note">Nothing was recorded for this page, nor run here.</p>')
    return HTML("".join(blocks))


def overview(page: str, *, profile: str = "trec-dl", folder: Path | None = None) -> pd.DataFrame:
    """Means of the main measure in every recorded part of a page, and the mean of these.

    Args:
        page: The page's name.
        profile: The profile that was recorded.
        folder: As for `read`.

    Returns:
        ``system``, a column for each part and ``mean``, figures as text; empty where a part lacks a
        system.

    >>> _ = write("loss", profile, {"losses": results}, folder)
    >>> overview("loss", folder=folder).columns.tolist()
    ['system', 'losses', 'mean']
    """
    path = (folder or project_folder() / "results" / profile) / f"{page}.csv"
    table = pd.read_csv(path, usecols=["part", "system"])
    parts = {
        part: read(page, part, profile=profile, folder=folder).values.mean()
        for part in table["part"].unique()
    }
    means = pd.DataFrame(parts).reindex(table["system"].unique())
    means["mean"] = means.mean(axis=1, skipna=False)
    shown = means.map("{:.3f}".format).mask(means.isna(), "")
    return shown.rename_axis("system").reset_index()


def differences(page: str, part: str) -> pd.DataFrame | None:
    """A recorded part's differences, as `rdl_study.tables.differences` gives them of a run.

    >>> differences("loss", "no such part") is None
    True
    """
    kept = read(page, part)
    return None if kept is None else compare_values(kept.values, kept.baseline)


def answers() -> pd.DataFrame:
    """What could be read from a recorded teacher's answers: the totals of `rdl teach`'s report.

    Returns:
        One row: lists, windows, and how many answers were clean, repaired or unusable; passages that
        the repaired ones left out, repeated or made up.

    >>> answers().columns.tolist()[:3]
    ['lists', 'windows', 'clean']
    """
    path = project_folder() / "results" / "trec-dl" / "teacher_report.json"
    totals = json.loads(path.read_text())["totals"]
    names = {"n_queries": "lists"} | {
        f"n_{name}": name
        for name in ("windows", "clean", "repaired", "unusable", "missing", "repeated", "unknown")
    }
    return pd.DataFrame([{shown: totals[name] for name, shown in names.items()}])


def headline(
    page: str, part: str, system: str, references: Sequence[str], *, profile: str = "trec-dl"
) -> Markdown:
    """What a recorded system reached beside others, in words.

    >>> headline("loss", "no such part", "student", ["BM25"]).data
    'Nothing was recorded yet.'
    """
    kept = read(page, part, profile=profile)
    if kept is None:
        return Markdown("Nothing was recorded yet.")
    beside = [
        label for label in kept.values if label != system and label.startswith(tuple(references))
    ]
    ours = kept.values[system]
    told = []
    for label in beside:
        row = compare_values(kept.values[[label, system]], label).loc[system]
        told.append(
            f"{label} {kept.values[label].mean():.3f} (difference {row['delta']:+.3f}, 95 % interval "
            f"{row['delta_low']:+.3f} to {row['delta_high']:+.3f})"
        )
    return Markdown(
        f"Recorded on {len(kept.values)} queries of {' and '.join(kept.collections)}, "
        f"{kept.candidates}, {as_seeds(len(kept.seeds))}; {kept.label}: "
        f"the {system} reaches {kept.measure} **{ours.mean():.3f}**; {'; '.join(told)}."
    )


def _shown(where: str, table: pd.DataFrame) -> dict[tuple[str, str], pd.Series]:
    baseline = table["p_value"].isna()
    delta = table["delta"].map("{:+.3f}".format)
    low, high = (table[f"delta_{end}"].map("{:+.3f}".format) for end in ("low", "high"))
    space = "\N{NO-BREAK SPACE}"  # an interval has a line of its own
    interval = "(" + low + space + "to" + space + high + ")"
    return {
        (where, "mean"): table["mean"].map("{:.3f}".format),
        (where, "difference"): delta.str.cat(interval, sep=" ").mask(baseline, "baseline"),
        (where, "p (Holm)"): table["p_holm"].map(as_p).str.replace(" ", space).mask(baseline, ""),
    }


def _about(kept: Recorded | None, results: Results | None) -> str:
    lines = []
    if kept is None:
        lines.append("Recorded: nothing yet for this table.")
    else:
        seeds = as_seeds(len(kept.seeds))
        trained = f"; {seeds}, trained on {kept.device}" if kept.seeds else ""
        lines.append(
            f"Recorded: {kept.measure} on {len(kept.values)} queries of "
            f"{' and '.join(kept.collections)}, {kept.candidates}; {kept.label}{trained}."
        )
    if results is None:
        lines.append("This run: not run at this profile.")
    else:
        profile = results.profile
        tested = " and ".join(test.collection for test in profile.tests)
        lines.append(
            f"This run: {profile.measure} on {len(results.values)} queries of {tested}, "
            f"{profile.test.first_stage} top {profile.test.depth}; {profile.label}; "
            f"{as_seeds(len(profile.seeds))}; scale {profile.scale}."
        )
    return "".join(f'<p class="rdl-note">{html.escape(line)}</p>' for line in lines)


def _manifests(run: Run) -> dict[str, dict]:
    """A ranking's manifest, and those of the runs that trained its student."""
    found, waiting = {}, [run]
    while waiting:
        one = waiting.pop()
        found[one.manifest["id"]] = one.manifest
        waiting += [stored(name) for name in one.manifest["inputs"]]
    return found
