"""Whether a teacher says the same twice: agreement between repetitions of an LLM's rankings.

Some LLMs were asked several times for the same lists, and each answer is published. `write` reads
them once and keeps a row for each query, so that pages show them without the files. Beside it
stands the agreement with the first stage: a teacher that changes nothing agrees with itself.
"""

from __future__ import annotations

from datetime import UTC, datetime
from itertools import combinations
from pathlib import Path

import numpy as np
import pandas as pd
from scipy.stats import kendalltau

from rdl_core.data import trec_dl
from rdl_core.data.collections import load
from rdl_core.records import write_record
from rdl_study.store import machine, project_folder

__all__ = ["between", "recorded", "summary", "write"]

_TOP = 10
_MEASURES = {
    "kendall_tau": "Kendall's tau between two repetitions",
    "overlap": f"shared of the top {_TOP}",
    "first_stage_tau": "tau with the first stage",
}


def between(runs: list[pd.DataFrame], candidates: pd.DataFrame) -> pd.DataFrame:
    """Agreement of repetitions, query by query, mean over their pairs.

    Args:
        runs: ``query_id``, ``doc_id`` and ``teacher_rank`` each, of the same lists.
        candidates: ``query_id``, ``doc_id`` and ``rank``: the first stage's order of these lists.

    Returns:
        By ``query_id``: ``kendall_tau`` of two whole lists, -1 to 1; ``overlap``, the share of the
        top 10 that two repetitions have in common; ``first_stage_tau``, a repetition's with the
        first stage.

    >>> run = pd.DataFrame({"query_id": "q", "doc_id": ["a", "b"], "teacher_rank": [1, 2]})
    >>> between([run, run], run.assign(rank=[2, 1])).loc["q"].tolist()
    [1.0, 1.0, -1.0]
    """
    keys = ["query_id", "doc_id"]
    ranks = [run.set_index(keys)["teacher_rank"] for run in runs]
    first = candidates.set_index(keys)["rank"].rename("first")
    rows = {}
    for query_id, table in pd.concat([*ranks, first], axis=1).groupby("query_id"):
        *repeated, before = (table.iloc[:, place] for place in range(table.shape[1]))
        top = min(_TOP, len(table))
        pairs = list(combinations(repeated, 2))
        rows[query_id] = {
            "kendall_tau": np.mean([_tau(one, other) for one, other in pairs]),
            "overlap": np.mean([((a <= top) & (b <= top)).sum() / top for a, b in pairs]),
            "first_stage_tau": np.mean([_tau(one, before) for one in repeated]),
        }
    return pd.DataFrame.from_dict(rows, orient="index").rename_axis("query_id")


def write(folder: Path, first_stage: str = "bm25") -> Path:
    """Write the agreement of every LLM that ranked a first stage's lists of a year more than once.

    Args:
        folder: Gets ``teacher_agreement.csv``, and a manifest beside it.
        first_stage: Whose lists.

    >>> write(folder).name  # doctest: +SKIP
    'teacher_agreement.csv'
    """
    parts = []
    for year in (2019, 2020):
        for teacher in trec_dl.teachers_of(year, first_stage):
            runs = trec_dl.teacher_runs(year, first_stage, teacher)
            if len(runs) > 1:
                about = {"teacher": teacher, "year": year, "repetitions": len(runs)}
                found = between(runs, trec_dl.candidates(year, first_stage))
                parts.append(found.reset_index().assign(**about))
    columns = ["teacher", "year", "repetitions", "query_id", *_MEASURES]
    path, here = folder / "teacher_agreement.csv", machine()  # before the file changes the checkout
    pd.concat(parts)[columns].round(4).to_csv(path, index=False)
    data = {name: load(f"rdl/trec-dl-{name}").fingerprint for name in (2019, 2020)}
    finished = datetime.now(UTC).isoformat(timespec="seconds")
    manifest = {"first_stage": first_stage, "data": data, "finished": finished, **here}
    write_record(path.with_suffix(".json"), manifest)
    return path


def recorded() -> pd.DataFrame:
    """What was recorded of it, a row for each teacher, year and query.

    >>> recorded().columns.tolist()[-2:]
    ['overlap', 'first_stage_tau']
    """
    path = project_folder() / "results" / "trec-dl" / "teacher_agreement.csv"
    return pd.read_csv(path, dtype={"query_id": "str"})


def summary(found: pd.DataFrame) -> pd.DataFrame:
    """A row for each teacher and year: the median of each measure, and its quartiles.

    >>> summary(recorded())["queries"].gt(0).all()
    np.True_
    """
    groups = found.groupby(["teacher", "year", "repetitions"])
    table = groups.agg(queries=("query_id", "nunique"))
    for name, label in _MEASURES.items():
        quartiles = (groups[name].quantile(q) for q in (0.25, 0.5, 0.75))
        low, middle, high = (each.map("{:.2f}".format) for each in quartiles)
        table[label] = middle + " (" + low + " to " + high + ")"
    return table.reset_index()


def _tau(one: pd.Series, other: pd.Series) -> float:
    both = one.notna() & other.notna()
    return kendalltau(one[both], other[both]).statistic
