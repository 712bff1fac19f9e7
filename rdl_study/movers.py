"""Who gains and who loses by re-ranking, query by query, and what moved.

A mean hides it; the passages that came into the top, and those that had to leave it, show why.
"""

from __future__ import annotations

import html
import textwrap

import pandas as pd
from IPython.display import HTML, Markdown

from rdl_core.data.collections import load
from rdl_study.store import Run
from rdl_study.tables import Results
from rdl_study.worked import Example, example_of, head

__all__ = ["extremes", "reasons", "table", "texts"]

_TOP = 3


def extremes(
    values: pd.DataFrame, system: str, baseline: str, n: int, queries: pd.Series | None = None
) -> pd.DataFrame:
    """The queries that lose most, then those that gain most, the largest changes outermost.

    Args:
        values: A measure, ``[query_id, system]``.
        system: Label of the one after.
        baseline: Label of the one before.
        n: How many of each.
        queries: Texts by query id; None shows ids.

    Returns:
        ``query``, ``before``, ``after`` by query id; fewer where fewer lose or gain.

    >>> values = pd.DataFrame({"a": [0.1, 0.5], "b": [0.4, 0.3]}, index=["q", "r"])
    >>> extremes(values, "b", "a", 1).index.tolist()
    ['r', 'q']
    """
    change = (values[system] - values[baseline]).sort_values(kind="stable")
    chosen = [*change[change < 0].index[:n], *change[change > 0].index[-n:]]
    names = pd.Series(chosen, chosen) if queries is None else queries.loc[chosen]
    before, after = (values.loc[chosen, label] for label in (baseline, system))
    return pd.DataFrame({"query": names.map(_narrow), "before": before, "after": after})


def texts(results: Results) -> pd.Series:
    """Texts of all queries tested on, by id.

    >>> len(texts(results)) >= 6
    True
    """
    asked = [load(test.collection).queries for test in results.profile.tests]
    return pd.concat(asked).set_index("query_id")["query"]


def table(changes: pd.DataFrame, results: Results, system: str) -> HTML:
    """What came into the top three of each query and what left it, with the texts, folded.

    Args:
        changes: From `extremes`.
        results: Where the systems were compared.
        system: Label of the one after; the baseline is the one before.

    >>> changes = extremes(results.values, "student", "BM25", 1)
    >>> "came in" in table(changes, results, "student").data
    True
    """
    blocks = []
    for query_id, row in changes.iterrows():
        one = example_of(results, query_id, [results.baseline, system])
        before, after = (one.ranks[label] for label in (results.baseline, system))
        came = _passages(one, (after <= _TOP) & (before > _TOP), system)
        left = _passages(one, (before <= _TOP) & (after > _TOP), system)
        blocks.append(
            f"<details><summary><b>{html.escape(one.query)}</b> {row['before']:.3f} → "
            f"{row['after']:.3f}</summary>came into the top {_TOP}: {came}"
            f"had to leave it: {left}</details>"
        )
    return HTML(f'<div class="rdl-provenance">{"".join(blocks)}</div>')


def reasons(results: Results, system: str) -> Markdown:
    """How often what came into the top is judged relevant, for losers and gainers, in words.

    >>> reasons(results, "student").data.split(":")[0]
    'Into the top 3 came'
    """
    change = results.values[system] - results.values[results.baseline]
    moved = _moved(results, system).groupby("query_id")["relevant"].agg(["sum", "size"])
    told = []
    for name, ids in (("lose", change.index[change < 0]), ("gain", change.index[change > 0])):
        here = moved.reindex(ids).fillna(0).sum()
        told.append(
            f"for the {len(ids)} queries that {name}, {here['size']:.0f} passages, "
            f"{here['sum']:.0f} of them judged relevant"
        )
    return Markdown(f"Into the top {_TOP} came: {'; '.join(told)}.")


def _moved(results: Results, system: str) -> pd.DataFrame:
    """Every passage that came into the top: ``query_id`` and whether it is judged relevant."""
    before = {_collection(run): run for run in results.rankings[results.baseline]}
    after = {_collection(run): run for run in reversed(results.rankings[system])}  # first seed's
    found = []
    for asked in after:
        pair = (before[asked], after[asked])
        tops = [_top(pd.read_parquet(run.folder / "run.parquet")) for run in pair]
        new = tops[1].merge(tops[0], how="left", indicator=True)
        new = new[new["_merge"] == "left_only"].drop(columns="_merge")
        qrels = load(asked).qrels
        judged = qrels[qrels["relevance"] > 0][["query_id", "doc_id"]]
        found.append(new.merge(judged.assign(relevant=1), how="left").fillna({"relevant": 0}))
    return pd.concat(found)


def _collection(run: Run) -> str:
    return run.manifest["config"]["candidates"]["collection"]


def _top(run: pd.DataFrame) -> pd.DataFrame:
    best = run.sort_values("score", ascending=False).groupby("query_id").head(_TOP)
    return best[["query_id", "doc_id"]]


def _passages(one: Example, which: pd.Series, system: str) -> str:
    """Passages with their relevance and the way they went, the best first."""
    told = []
    for doc_id in one.ranks.index[which][one.ranks.loc[which, system].argsort()]:
        before, after = one.ranks.loc[doc_id]
        grade = one.passages.loc[doc_id, "relevance"]
        judged = "not judged" if pd.isna(grade) else f"relevance {grade:.0f}"
        text = html.escape(head(one.passages.loc[doc_id, "text"]))
        told.append(f"<li>{text}<br><small>{judged}, rank {before} → {after}</small></li>")
    return f"<ul>{''.join(told)}</ul>" if told else "nothing"


def _narrow(text: str) -> str:
    """In two short lines at most, so that the plot keeps its room."""
    return "\n".join(textwrap.wrap(head(text, 52), 28))
