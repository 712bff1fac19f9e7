"""`rdl evaluate`: judgments and runs in, a table of means, intervals and tests out."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import pandas as pd

from rdl_core.data.formats import read_candidates
from rdl_core.evaluate import compare, equivalence, per_query

__all__ = ["compare_runs", "read_runs", "shown"]


def read_runs(paths: Sequence[str | Path], format: str | None = None) -> dict[str, pd.DataFrame]:
    """Read runs, by the names of their files; by their paths where names repeat.

    Args:
        paths: Files in any format of `rdl_core.data.formats.FORMATS`. Each query's order is as
            `read_candidates` gives it, and its ranks stand for the scores: whoever keeps scores of
            another system in a file is still measured by the order that it states.
        format: Of all of them; without it, each file tells.

    Returns:
        ``query_id``, ``doc_id``, ``score`` of each.

    Raises:
        ValueError: As for `read_candidates`, or a file is named twice.

    >>> _ = (folder / "a.run").write_text("7 Q0 x 0 1.5 tag\\n7 Q0 y 1 1.5 tag\\n")
    >>> read_runs([folder / "a.run"])["a"].values.tolist()
    [['7', 'x', -1], ['7', 'y', -2]]
    """
    names = [Path(path).name.removesuffix(".gz").rpartition(".")[0] for path in paths]
    if len(set(names)) < len(names) or not all(names):
        names = list(map(str, paths))
    if repeated := [name for name in names if names.count(name) > 1]:
        raise ValueError(f"expected each run once; given {repeated[0]} twice: name it once")
    runs = {}
    for name, path in zip(names, paths, strict=True):
        frame = read_candidates(path, format)
        runs[name] = frame[["query_id", "doc_id"]].assign(score=-frame["rank"])
    return runs


def compare_runs(
    qrels: pd.DataFrame,
    runs: Mapping[str, pd.DataFrame],
    *,
    measures: Sequence[str] = ("nDCG@10",),
    baseline: str | None = None,
    alpha: float = 0.05,
    margin: float = 0.02,
) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Measure runs, and compare them with one of them.

    Args:
        qrels: ``query_id``, ``doc_id``, ``relevance``.
        runs: ``query_id``, ``doc_id``, ``score`` of each system.
        measures: ir_measures strings. Each has its own family of tests, all runs but the baseline.
        baseline: Name of a run; None takes the first.
        alpha: Level of the tests, of a family.
        margin: Differences from here on matter to `rdl_core.evaluate.equivalence`.

    Returns:
        Values (``system``, ``query_id``, a column for each measure), and what `compare` gives, by
        ``measure`` and ``system``, with ``p_tost`` and ``equivalent``.

    Raises:
        ValueError: As for `per_query`, `compare` and `equivalence`, or no run is called `baseline`.

    >>> qrels = pd.DataFrame({"query_id": ["1", "2"], "doc_id": ["a", "b"], "relevance": 1})
    >>> compare_runs(qrels, {"it": qrels.assign(score=1)})[1][["n_queries", "mean"]].values.tolist()
    [[2.0, 1.0]]
    """
    baseline = baseline or next(iter(runs))
    if baseline not in runs:
        raise ValueError(
            f"baseline: expected the name of a run, {', '.join(runs)}; given {baseline!r}: name one"
        )
    values = pd.concat(
        {name: per_query(qrels, run, measures) for name, run in runs.items()}, names=["system"]
    ).reset_index("system")
    tables = {}
    for measure in measures:
        wide = values.pivot(index="query_id", columns="system", values=measure)[list(runs)]
        table = compare(wide, baseline, alpha=alpha)
        for name in table.index.drop(baseline):
            found = equivalence(wide, name, baseline, margin=margin, alpha=alpha)
            table.loc[name, ["p_tost", "equivalent"]] = found.p_value, found.equivalent
        tables[measure] = table
    return values, pd.concat(tables, names=["measure"])


def shown(table: pd.DataFrame) -> str:
    """A table of `compare_runs` as text, one block for each measure.

    >>> qrels = pd.DataFrame({"query_id": ["1", "2"], "doc_id": ["a", "b"], "relevance": 1})
    >>> shown(compare_runs(qrels, {"it": qrels.assign(score=1)})[1]).splitlines()[0]
    'nDCG@10, 2 queries'
    """
    blocks = []
    for measure, rows in table.groupby("measure", sort=False):
        n_queries, columns = rows["n_queries"].iloc[0], rows.droplevel("measure")
        text = columns.drop(columns="n_queries").to_string(float_format="{:.4f}".format, na_rep="")
        blocks.append(f"{measure}, {n_queries:.0f} queries\n{text}")
    return "\n\n".join(blocks)
