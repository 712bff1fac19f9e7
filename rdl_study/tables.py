"""Tables and sentences that several pages share: published, recorded and this run's figures.

``results/<profile>/<page>.csv`` has what was recorded, ``<page>.json`` the manifest of every run.
"""

from __future__ import annotations

import html
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import pandas as pd
from IPython.display import HTML, Markdown

from rdl_core.evaluate import compare
from rdl_study.figures import in_words
from rdl_study.grid import Results, measured
from rdl_study.profile import Profile
from rdl_study.store import Run, project_folder, stored

__all__ = ["PROFILES", "Recorded", "as_html", "as_p", "as_seeds", "display_table", "provenance",
           "published", "record", "recorded", "sentence", "side_by_side"]  # fmt: skip
_KEYS = ["part", "system", "collection", "seed", "measure"]  # of a row; then a column for each query
_SPACE = "\N{NO-BREAK SPACE}"
#: Profiles with recorded runs under ``results/``, in words.
PROFILES = {"docs": "docstrings", "trec-dl": "TREC DL"}


def as_p(value: float) -> str:
    """A p-value to three digits, and never as 0."""
    return "< 0.001" if value < 0.001 else f"{value:.3f}"


def as_seeds(number: int) -> str:
    """Number of trainings of a student that a figure is the mean of, such as ``5 seeds``."""
    return f"{number} seed{'s' * (number != 1)}"


def as_html(table: pd.DataFrame) -> HTML:
    """A table as the book shows it: numbers to three digits, an index only where it says something."""
    named, wide = not isinstance(table.index, pd.RangeIndex), table.shape[1] > 6
    looks = {"border": 0, "na_rep": "", "classes": "rdl-wide" if wide else None}
    return HTML(table.to_html(index=named, float_format="{:.3f}".format, **looks))


def display_table(table: pd.DataFrame, measure: str) -> pd.DataFrame:
    """`rdl_core.evaluate.compare`'s table for people: intervals as text, p after Holm."""
    baseline = table["p_value"].isna()

    def interval(name: str, number: str) -> pd.Series:
        low, high = (table[f"{name}_{end}"].map(number.format) for end in ("low", "high"))
        return low + " to " + high

    columns = {
        measure: table["mean"].map("{:.3f}".format),
        "95 % interval": interval("ci", "{:.3f}"),
        "difference": table["delta"].map("{:+.3f}".format).mask(baseline, "baseline"),
        "95 % interval of it": interval("delta", "{:+.3f}").mask(baseline, ""),
        "p (Holm)": table["p_holm"].map(as_p).mask(baseline, ""),
    }
    return pd.DataFrame(columns).rename(index=in_words).rename_axis("system").reset_index()


def sentence(table: pd.DataFrame, results: Results | Recorded) -> Markdown:
    """The best system, and which differ from the baseline, in words; of `compare`'s table."""
    table = table.rename(index=in_words)
    of, best = getattr(results, "profile", results), table["mean"].idxmax()
    baseline = table.index[table["p_value"].isna()][0]
    row, differ = table.loc[best], table.index[table["significant"].fillna(False).astype(bool)]
    trained = f" with {as_seeds(len(of.seeds))}," if of.seeds else ""
    head = (
        f"On {len(results.values)} queries of {_tested_on(of)},{trained} "
        f"**{best}** has the highest {of.measure}: {row['mean']:.3f} (95 % interval "
        f"{row['ci_low']:.3f} to {row['ci_high']:.3f})."
    )
    systems = ", ".join(f"{name} ({table.loc[name, 'delta']:+.3f})" for name in differ)
    tail = f"Significantly different from {baseline} (p < .05 after Holm): {systems}."
    if not systems:
        low, high = table["delta_low"].min(), table["delta_high"].max()
        tail = (
            f"None differs significantly from {baseline}, which does not show that they are equal: the "
            f"widest interval is from {low:+.3f} to {high:+.3f}."
        )
    return Markdown(f"{head} {tail}")


def provenance(results: Results, page: str) -> HTML:
    """Where a page's figures come from: data, teacher, machine, runs, command."""
    profile, runs = results.profile, [run for x in results.runs.values() for run in x]
    behind, first = {x for run in runs for x in run.manifest["inputs"]}, runs[0].manifest
    entries = {
        "Data and teacher": profile.label,
        "Test": f"{_tested_on(profile).replace('`', '')}, {len(results.values)} queries, "
        f"{profile.test.first_stage} top {profile.test.depth}",
        "Seeds": ", ".join(map(str, profile.seeds)),
        "Machine": f"{first['device']}, {first['threads']} threads",
        "Versions": ", ".join(f"{name} {v}" for name, v in first["versions"].items()),
        "Ranking took": f"{sum(run.manifest['wall_s'] for run in runs):.0f} s in all",
        "Students": ", ".join(sorted(x for x in behind if x.startswith("train-"))) or "none",
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


def _tested_on(of: Profile | Recorded) -> str:
    names = getattr(of, "collections", None) or [test.collection for test in of.tests]
    return " and ".join(f"`{name}`" for name in names)


def published(table: str) -> pd.DataFrame:
    """A table of the paper (Schlatt et al., ECIR 2025): trec_dl, loss, tirex, depth, queries (all
    nDCG@10) or efficiency (seconds per query, GB).
    """
    data = json.loads((project_folder() / "results" / "published.json").read_text())[table]
    index = pd.Index([row[0] for row in data["rows"]], name=table if "note" in data else None)
    values = [row[1] for row in data["rows"]]
    return pd.DataFrame(values, index=index, columns=data["columns"], dtype="float64")


@dataclass(frozen=True)
class Recorded:
    """One part of a page as it was recorded."""

    values: pd.DataFrame  # the main measure, [query_id, system], mean over seeds
    measure: str
    baseline: str
    candidates: str  # first stage and depth
    seeds: tuple[int, ...]
    collections: tuple[str, ...]  # tested on
    device: str  # that trained its students
    label: str  # data and teacher
    runs: tuple[dict, ...]  # manifests of its rankings and trainings


def recorded(
    page: str, part: str, profile: str = "trec-dl", *, folder: Path | None = None
) -> Recorded | None:
    """A part of a page, if it was recorded; `folder` stands for the project's ``results/<profile>``."""
    folder = folder or project_folder() / "results" / profile
    if not (folder / f"{page}.csv").exists():
        return None
    table = pd.read_csv(folder / f"{page}.csv")
    table = table[table["part"] == part]
    if table.empty:
        return None
    about = json.loads((folder / f"{page}.json").read_text())
    main, entry = table["measure"].iloc[0], about["parts"][part]
    runs = tuple(about["runs"][name] for name in entry["runs"])
    # Students of the study are runs of kind train, those of `rdl distill` of kind distill.
    devices = {run["device"] for run in runs if run["kind"] in ("train", "distill")}
    by_system = table[table["measure"] == main].groupby("system", sort=False)
    values = by_system[[*table.columns[len(_KEYS) :]]].mean().T.dropna(how="all").sort_index()
    return Recorded(
        values=values.rename_axis("query_id"), measure=main, baseline=entry["baseline"],
        candidates=entry["candidates"], seeds=tuple(sorted(set(table["seed"]) - {-1})),
        collections=tuple(table["collection"].unique()), device=", ".join(sorted(devices)),
        label=about["label"], runs=runs,
    )  # fmt: skip


def record(page: str, results: Mapping[str, Results], folder: Path) -> Path:
    """Write ``<page>.csv`` and ``<page>.json`` with a page's results, by part; gives the csv file."""
    profile = next(iter(results.values())).profile
    measures = (profile.measure, *profile.more_measures)
    rows, manifests, parts = [], {}, {}
    for part, result in results.items():
        ids: set[str] = set()
        for system, run in ((system, run) for system, runs in result.runs.items() for run in runs):
            config = run.manifest["config"]
            seed = config["system"]["seed"] if isinstance(config["system"], dict) else -1
            keys = [part, system, config["candidates"]["collection"], seed]
            values = measured(run, measures).set_index("query_id").round(4)
            rows += [dict(zip(_KEYS, [*keys, x], strict=True)) | values[x].to_dict() for x in measures]
            behind = _manifests(run)
            manifests |= behind
            ids |= behind.keys()
        test = result.profile.test
        candidates = f"{test.first_stage} top {test.depth}"
        parts[part] = {"baseline": result.baseline, "candidates": candidates, "runs": sorted(ids)}
    about = {"profile": profile.name, "label": profile.label, "parts": parts, "runs": manifests}
    folder.mkdir(parents=True, exist_ok=True)
    (folder / f"{page}.json").write_text(json.dumps(about, indent=1, sort_keys=True) + "\n")
    pd.DataFrame(rows).to_csv(folder / f"{page}.csv", index=False)
    return folder / f"{page}.csv"


def _manifests(run: Run) -> dict[str, dict]:
    """A ranking's manifest, and those of the runs that trained its student."""
    manifests = {run.manifest["id"]: run.manifest}
    for run_id in run.manifest["inputs"]:
        manifests |= _manifests(stored(run_id))
    return manifests


def side_by_side(
    page: str, results: Mapping[str, Results], paper: Mapping[str, pd.Series] | None = None
) -> HTML:
    """Published, recorded and this run's figures: a table for each part that was run or recorded.

    `paper` has published figures by part, each by the labels of the part's systems.
    """
    parts = dict.fromkeys(results)
    for profile in PROFILES:
        path = project_folder() / "results" / profile / f"{page}.csv"
        parts |= dict.fromkeys(pd.read_csv(path, usecols=["part"])["part"] if path.exists() else ())
    blocks = []
    for part in parts:
        kept = {words: recorded(page, part, name) for name, words in PROFILES.items()}
        table = _one_part(kept, results.get(part), (paper or {}).get(part))
        blocks.append(f"<h3>{html.escape(part)}</h3>{table}")
    nothing = '<p class="rdl-note">Nothing was recorded for this page, nor run here.</p>'
    return HTML("".join(blocks) or nothing)


def _one_part(
    kept: Mapping[str, Recorded | None], results: Results | None, paper: pd.Series | None
) -> str:
    columns: dict[tuple[str, str], pd.Series] = {}
    named = {f"recorded, {words}": source for words, source in kept.items()} | {"this run": results}
    sources = {where: source for where, source in named.items() if source is not None}
    if paper is not None:
        columns["published", "mean"] = paper.map("{:.3f}".format)
        baseline = next(iter(sources.values())).baseline
        if baseline in paper:
            delta = (paper - paper[baseline]).map("{:+.3f}".format)
            columns["published", "difference"] = delta.mask(paper.index == baseline, "baseline")
    for where, source in sources.items():
        columns |= _columns(where, compare(source.values, source.baseline))
    table = pd.DataFrame(columns).dropna(how="all")
    order = [label for source in sources.values() for label in source.values]
    table = table.reindex(dict.fromkeys([*order, *table.index]))
    table.columns = pd.MultiIndex.from_tuples(table.columns)
    # Runs beside each other fit a page if figures are as short as in the field's tables.
    table = table.rename_axis(None).replace(r"\b0\.(?=\d)", ".", regex=True)
    table.index = table.index.map(in_words).str.replace("_", "_\N{ZERO WIDTH SPACE}")
    notes = "".join(f'<p class="rdl-note">{html.escape(x)}</p>' for x in _notes(kept, results))
    return table.to_html(border=0, na_rep="", classes="rdl-wide") + notes


def _columns(where: str, table: pd.DataFrame) -> dict[tuple[str, str], pd.Series]:
    names = ("delta", "delta_low", "delta_high")
    delta, low, high = (table[name].map("{:+.3f}".format) for name in names)
    interval = "(" + low + _SPACE + "to" + _SPACE + high + ")"  # on a line of its own
    delta = delta.str.cat(interval, sep=" ").mask(table["p_value"].isna(), "baseline")
    means = table["mean"].map("{:.3f}".format)
    return {(where, "mean"): means, (where, "difference"): delta}


def _notes(kept: Mapping[str, Recorded | None], results: Results | None) -> list[str]:
    notes = ["Recorded: nothing yet for this table."] * (not any(kept.values()))
    for words, of in kept.items():
        if of is not None:
            trained = f"; {as_seeds(len(of.seeds))}, trained on {of.device}" if of.seeds else ""
            notes.append(
                f"Recorded, {words}: {of.measure} on {len(of.values)} queries of "
                f"{' and '.join(of.collections)}, {of.candidates}; {of.label}{trained}."
            )
    if results is None:
        return [*notes, "This run: not run at this profile."]
    profile, test = results.profile, results.profile.test
    return [
        *notes,
        f"This run: {profile.measure} on {len(results.values)} queries of "
        f"{_tested_on(profile).replace('`', '')}, {test.first_stage} top {test.depth}; "
        f"{profile.label}; {as_seeds(len(profile.seeds))}; scale {profile.scale}.",
    ]
