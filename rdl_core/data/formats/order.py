"""The one frame of candidates: checked, and ordered by rank or, failing that, by score."""

from __future__ import annotations

import logging

import numpy as np
import pandas as pd
from pandas.api.types import is_integer_dtype, is_numeric_dtype, is_string_dtype

from rdl_core.data.formats._files import Source

__all__ = ["from_frame"]

NAMES = {
    "query_id": ("query_id", "qid"),
    "doc_id": ("doc_id", "docno", "pid", "passage_id", "docid"),
    "rank": ("rank",),
    "score": ("score",),
    "query": ("query",),
    "text": ("text",),
    "relevance": ("relevance",),
    "teacher_rank": ("teacher_rank",),
}  # pyterrier's docid is an internal number, so it comes last
NULLABLE = ("relevance", "teacher_rank")  # Int64, NA where nobody judged or ranked
_log = logging.getLogger(__name__)


def from_frame(frame: pd.DataFrame) -> pd.DataFrame:
    """Take candidates from a frame, such as pyterrier's (``qid, docno, rank, score, query, text``).

    Args:
        frame: Ids as ``query_id`` or ``qid`` and as ``doc_id``, ``docno``, ``pid``, ``passage_id``
            or ``docid``, str or integers; ``rank`` (counted from 0 or 1), ``score``, ``query``,
            ``text``, ``relevance``, ``teacher_rank`` where there are any. Others are left out.

    Returns:
        The frame that `read_candidates` gives.

    Raises:
        ValueError: As for `read_candidates`; names the row, counted from 1.

    >>> found = from_frame(pd.DataFrame({"qid": [7, 7], "docno": ["a", "b"], "rank": [1, 0]}))
    >>> found[["query_id", "doc_id", "rank"]].values.tolist()
    [['7', 'b', 1], ['7', 'a', 2]]
    """
    return from_columns(frame.reset_index(drop=True), Source("frame", unit="row"))


def from_columns(frame: pd.DataFrame, source: Source) -> pd.DataFrame:
    """`from_frame` for a frame of which `source` knows where its rows stand."""
    if not frame.columns.is_unique:
        given = f"{frame.columns[frame.columns.duplicated()][0]!r} twice"
        source.refuse(None, "each column once", given, "rename or remove one")
    found = {}
    for name, others in NAMES.items():
        if present := [other for other in others if other in frame.columns]:
            found[name] = frame[present[0]]
        elif name in ("query_id", "doc_id"):
            given = f"columns {list(frame.columns)}"
            source.refuse(None, f"a column {' or '.join(others)}", given, "rename one")
    if unused := set(frame.columns) - {column.name for column in found.values()}:
        _log.info("%s: columns %s are not read", source.path, sorted(map(str, unused)))
    for name in ("query_id", "doc_id"):
        found[name] = ids(found[name], source, name)
    if "score" in found and found["score"].isna().all():
        del found["score"]
    for name, right, kind in (
        ("rank", is_integer_dtype, "integers"), ("score", is_numeric_dtype, "numbers"),
        ("query", is_string_dtype, "str"), ("text", is_string_dtype, "str"),
    ):  # fmt: skip
        column = found.get(name)
        # A missing score is refused with its row, as all that are not finite are.
        gaps = 0 if column is None or name == "score" else int(column.isna().sum())
        if column is not None and (gaps or not right(column)):
            given = f"{column.dtype}, {gaps} missing"
            source.refuse(None, f"{name} as {kind}", given, "convert the column")
    for name in NULLABLE:
        try:
            found |= {name: found[name].astype("Int64")} if name in found else {}
        except (TypeError, ValueError) as error:
            source.refuse(None, f"{name} as integers", error, "convert the column")
    return ranked(pd.DataFrame(found), source)


def ids(column: pd.Series, source: Source, name: str) -> pd.Series:
    """Ids as str; integers become their digits, all else that is not a str is refused."""
    if isinstance(column.dtype, pd.CategoricalDtype):
        column = column.astype(column.cat.categories.dtype)
    plain = is_string_dtype(column) and not (column.isna() | (column == "")).any()
    if not plain and not is_integer_dtype(column):
        for row, value in enumerate(column):
            if not isinstance(value, str) or not value:
                given, remedy = f"{value!r} as {name}", "convert the column to str"
                source.refuse(row, "an id that is a str or an integer", given, remedy)
    return column.astype("str")


def ranked(frame: pd.DataFrame, source: Source, *, teacher: bool = False) -> pd.DataFrame:
    """Check candidates, order them, and count ``rank`` anew from 1.

    The rank decides if no two passages of a query share one and none is negative; otherwise the
    score; in a file without both, the order of its rows. The log says which, and whether they
    disagree: a run may hold scores of another system (RankGPT, RankLLM keep the first stage's).

    Args:
        frame: ``query_id``, ``doc_id`` (str), ``rank`` (int64) and ``score`` (float64) if known;
            other columns are kept.
        source: Where the rows stand.
        teacher: Whether the order is a teacher's: ``teacher_rank`` becomes ``rank``.
    """
    if frame.empty:
        source.refuse(None, "candidates", "none", "check where the file comes from")
    queries = pd.factorize(frame["query_id"])[0]
    _check(frame, queries, source)
    order = _order(frame, queries, source)
    if (np.diff(order) != 1).any():
        frame, queries = frame.iloc[order].reset_index(drop=True), queries[order]
    starts = np.flatnonzero(np.diff(queries, prepend=-1))
    places = np.arange(len(frame)) - np.repeat(starts, np.diff(starts, append=len(frame))) + 1
    first = {"query_id": frame["query_id"], "doc_id": frame["doc_id"], "rank": places}
    first["score"] = frame["score"].astype("float64") if "score" in frame else np.nan
    rest = {name: frame[name] for name in NAMES if name in frame and name not in first}
    if teacher:
        rest["teacher_rank"] = pd.array(places, "Int64")
    return pd.DataFrame(first | rest)


def _check(frame: pd.DataFrame, queries: np.ndarray, source: Source) -> None:
    docs = pd.factorize(frame["doc_id"])[0]
    pairs = queries.astype("int64") * (docs.max() + 1) + docs
    if (twice := pd.Series(pairs).duplicated().to_numpy()).any():
        row = int(twice.argmax())
        query_id, doc_id = frame.loc[row, ["query_id", "doc_id"]]
        earlier = source.number(int((pairs == pairs[row]).argmax()))
        given = f"{doc_id!r} for query {query_id!r} again, first in {source.unit} {earlier}"
        source.refuse(row, "each passage once per query", given, "remove duplicates first")
    if "score" in frame and not (finite := np.isfinite(frame["score"])).all():
        row = int(finite.argmin())
        source.refuse(row, "finite scores", frame["score"][row], "remove or correct it")


def _order(frame: pd.DataFrame, queries: np.ndarray, source: Source) -> np.ndarray:
    """Row numbers, best first within each query; queries as they first appear."""
    scores = frame["score"].to_numpy() if "score" in frame else None
    rank_fits, row = _ranks_fit(frame, queries)
    if rank_fits:
        order = np.lexsort((frame["rank"].to_numpy(), queries))
        _report(source, "rank", scores, order, queries)
    elif scores is not None and (row is None or _differ(scores, queries)):
        order = np.lexsort((-scores, queries))
        why = "no ranks" if row is None else f"ranks repeat, first in {_place(source, row)}"
        tied = int(((np.diff(scores[order]) == 0) & (np.diff(queries[order]) == 0)).sum())
        level = logging.INFO if row is None else logging.WARNING
        _log.log(level, "%s: ordered by score (%s); %d ties stay as in the file",
                 source.path, why, tied)  # fmt: skip
    elif row is None:
        order = np.argsort(queries, kind="stable")
        _log.warning("%s: ordered as in the file, which has no ranks and scores", source.path)
    else:
        given = f"{frame['rank'][row]} once more or below 0, and no scores that differ"
        source.refuse(row, "ranks that differ within a query", given, "correct one of them")
    return order


def _ranks_fit(frame: pd.DataFrame, queries: np.ndarray) -> tuple[bool, int | None]:
    """Whether ranks decide; if there are some but do not, the first row that shows it."""
    if "rank" not in frame:
        return False, None
    ranks = frame["rank"].to_numpy()
    pairs = pd.DataFrame({"query": queries, "rank": ranks})
    wrong = pairs.duplicated().to_numpy() | (ranks < 0)
    return not wrong.any(), int(wrong.argmax()) if wrong.any() else None


def _report(
    source: Source, by: str, scores: np.ndarray | None, order: np.ndarray, queries: np.ndarray
) -> None:
    if scores is None:
        _log.info("%s: ordered by %s; no scores", source.path, by)
        return
    rises = (np.diff(scores[order]) > 0) & (np.diff(queries[order]) == 0)
    if not rises.any():
        _log.info("%s: ordered by %s; scores agree", source.path, by)
        return
    n_queries = len(np.unique(queries[order][1:][rises]))
    _log.warning("%s: ordered by %s; scores disagree in %d of %d queries",
                 source.path, by, n_queries, queries.max() + 1)  # fmt: skip


def _differ(scores: np.ndarray, queries: np.ndarray) -> bool:
    """Whether any query has two scores."""
    return bool((pd.Series(scores).groupby(queries).nunique() > 1).any())


def _place(source: Source, row: int) -> str:
    return f"{source.unit} {source.number(row)}"
