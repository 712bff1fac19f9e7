"""What `rdl_core.evaluate` demands of its frames, each refusal in three parts."""

from __future__ import annotations

import numpy as np
import pandas as pd
from pandas.api.types import is_string_dtype

__all__ = [
    "as_numbers", "check_frame", "checked_values", "expect", "expect_rows", "finite_scores",
]  # fmt: skip


def check_frame(name: str, frame: pd.DataFrame, column: str) -> None:
    """Columns are there, ids are strings, no passage stands twice in a query."""
    columns = ["query_id", "doc_id", column]
    there = set(columns) <= set(frame.columns)
    expect(there, f"{name} with columns {columns}", list(frame.columns), "rename or add columns")
    for key in columns[:2]:
        strings = is_string_dtype(frame[key]) and not frame[key].isna().any()
        given = f"{frame[key].dtype}, {frame[key].isna().sum()} missing"
        expect(strings, f"{name} with {key} as strings", given, "read ids as str, drop empty rows")
    repeated = frame.duplicated(columns[:2]).to_numpy()
    expect_rows(frame, ~repeated, f"each passage once in a query's {name}", "keep one row of each")


def finite_scores(run: pd.DataFrame) -> np.ndarray:
    """Scores of a checked run, float64 and finite in float32."""
    check_frame("run", run, "score")
    scores = as_numbers(run["score"])
    finite = np.abs(scores) <= np.finfo(np.float32).max
    expect_rows(run, finite, "scores finite in float32", "check the model or file they are from")
    return scores


def as_numbers(column: pd.Series) -> np.ndarray:
    """As float64; NaN for what is no number."""
    return pd.to_numeric(column, errors="coerce").to_numpy(float, na_value=np.nan)


def checked_values(values: pd.DataFrame, named: list[str], used: list[str]) -> pd.DataFrame:
    """Columns `used` as finite float64, queries in one order whatever the order given."""
    wide = "query_id" not in values.columns
    expect(wide, "values indexed by query_id", "a column", "use values.set_index('query_id')")
    for what, labels in (("query", values.index), ("system", values.columns)):
        twice = labels[labels.duplicated()].tolist()
        expect(not twice, f"each {what} once", f"twice {twice[:3]}", "average or rename them")
    unknown = [name for name in named if name not in values.columns]
    expect(not unknown, f"systems among {list(values.columns)}", unknown, "name a column")
    expect(len(values) > 1, "two or more queries", len(values), "add judged queries")
    numbers = values[list(dict.fromkeys(used))].apply(pd.to_numeric, errors="coerce")
    numbers = numbers.astype(float).sort_index()
    bad = np.argwhere(~np.isfinite(numbers.to_numpy()))
    first = [(numbers.index[row], numbers.columns[column]) for row, column in bad[:3]]
    expect(
        not first, "a finite value for every query and system",
        f"{len(bad)} others, first (query, system) {first}",
        "measure all over the same judged queries (per_query counts an unanswered one as 0)",
    )  # fmt: skip
    return numbers


def expect(good: bool, expected: str, given: object, remedy: str) -> None:
    """Raise unless `good`, in three parts: what was expected, what was given, what to do."""
    if not good:
        raise ValueError(f"expected {expected}; given {given}: {remedy}")


def expect_rows(frame: pd.DataFrame, good: np.ndarray, expected: str, remedy: str) -> None:
    """Raise unless every row is `good`, and show the first that is not."""
    if not good.all():
        shown = frame.columns.intersection(["query_id", "doc_id", "score"])
        first = frame[shown].iloc[int(good.argmin())].to_dict()
        given = f"{(~good).sum()} of {len(frame)} rows that are not so, first {first}"
        expect(False, expected, given, remedy)
