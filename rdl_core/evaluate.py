"""Evaluation: measures per query, runs without ties, and what differences between systems mean.

Frames in, frames out: ``qrels`` have ``query_id, doc_id, relevance``, a ``run`` has ``query_id,
doc_id, score``; measures are named as ir_measures prints them and computed by it. In order of use:

1. :func:`settle_ties`: trec_eval orders by score alone, in float32, breaks ties by document id and
   ignores the rank column, so that a constant scorer can look good. Here equal scores fall back to
   the first stage's order: who says nothing gains nothing.
2. :func:`per_query` measures *every* judged query. One without results counts 0, so that keeping
   silent does not pay and all systems have the same queries.
3. :func:`compare` tests systems against one baseline (paired t-test) and corrects for their number
   (Holm). The family is all systems of one call; the paper makes one for each first stage and test
   collection. Bootstrap intervals show how large a difference may be.
4. :func:`equivalence` asks what a t-test cannot: "no significant difference" may only mean that 43
   queries are few. Two one-sided tests (TOST) can show that a student matches its teacher.

A system trained with several seeds enters 3 and 4 once, averaged for each query (queries are the
sample): ``pd.concat(frames).groupby("query_id").mean()``.

References: McSherry and Najork, ECIR 2008 (ties); Smucker et al., CIKM 2007 (t-test and bootstrap
for retrieval); Holm, Scandinavian Journal of Statistics 1979.

>>> qrels = pd.DataFrame({"query_id": ["1", "2"], "doc_id": ["a", "b"], "relevance": [1, 1]})
>>> run = pd.DataFrame({"query_id": ["1", "1"], "doc_id": ["c", "a"], "score": [0.5, 0.5]})
>>> per_query(qrels, settle_ties(run), ["RR"]).set_index("query_id").mean().to_dict()
{'RR': 0.25}
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass

import ir_measures
import numpy as np
import pandas as pd
from pandas.api.types import is_integer_dtype
from scipy.stats import bootstrap, ttest_1samp
from statsmodels.stats.multitest import multipletests
from statsmodels.stats.weightstats import ttost_paired

from rdl_core._frames import (
    as_numbers,
    check_frame,
    checked_values,
    expect,
    expect_rows,
    finite_scores,
)

__all__ = ["Equivalence", "compare", "equivalence", "per_query", "settle_ties"]

_EXAMPLES = "'nDCG@10', 'RR(rel=2)', 'AP(rel=2)', 'RR@10'"
_DECIMALS = 12  # differences below are rounding (seeds averaged in another order), not effects
_SUBNORMAL_BITS = 0x007F_FFFF  # of float32's largest subnormal; some libraries flush these to 0
_LOWEST_KEY = _SUBNORMAL_BITS - 0x7F7F_FFFF  # of float32's lowest finite value
_log = logging.getLogger(__name__)


def per_query(
    qrels: pd.DataFrame, run: pd.DataFrame, measures: str | Sequence[str] = ("nDCG@10",)
) -> pd.DataFrame:
    """Measure a run for each judged query.

    Logged, with their number: queries of the run without judgments, left out; judged queries
    without results, counted 0; passages tied in float32, which the measures order by document id
    (nDCG descending, ``RR@10`` ascending). Also, if no passage of the run is judged.

    Args:
        qrels: ``query_id``, ``doc_id`` (str), ``relevance`` (int); any order of rows.
        run: ``query_id``, ``doc_id`` (str), ``score`` (higher is better); any order of rows. A
            column ``rank`` is ignored.
        measures: ir_measures strings, such as ``"nDCG@10"``, ``"RR(rel=2)"``, ``"AP(rel=2)"``.

    Returns:
        ``query_id`` and one column for each measure, named as given; one row for each query in
        `qrels`, sorted by ``query_id``.

    Raises:
        ValueError: A column is missing, ids are not strings, a passage stands twice in a query,
            `qrels` are empty, a relevance is not an integer, a score is not finite in float32, or
            a measure is unknown, given twice or not computable here.

    >>> qrels = pd.DataFrame({"query_id": ["2", "1"], "doc_id": ["a", "a"], "relevance": [1, 2]})
    >>> run = pd.DataFrame({"query_id": ["1", "1"], "doc_id": ["b", "a"], "score": [9.0, 7.0]})
    >>> per_query(qrels, run, ["RR(rel=2)", "P@1"]).values.tolist()
    [['1', 0.5, 0.0], ['2', 0.0, 0.0]]
    """
    names = [measures] if isinstance(measures, str) else list(measures)
    once = len(set(names)) == len(names) > 0
    expect(once, "one or more measures, each once", names, f"name them as {_EXAMPLES}")
    parsed = {name: _parse(name) for name in names}
    expect(len(qrels) > 0, "judgments", "empty qrels", "check which file or id was read")
    check_frame("qrels", qrels, "relevance")
    grades = qrels["relevance"].dtype
    expect(is_integer_dtype(grades), "relevance as integers", grades, "use .astype(int) on it")
    run = run.assign(score=finite_scores(run).astype(np.float32))
    kept = run[run["query_id"].isin(qrels["query_id"])]
    judged, retrieved = _by_query(qrels, "relevance"), _by_query(kept, "score")
    _log_gaps(run, kept, judged, retrieved)
    table = pd.DataFrame({"query_id": sorted(judged)})
    # One measure at a time: ir_measures 0.4.3 confuses nDCG@10 with nDCG(gains=...)@10 when asked
    # for both at once, for some values of Python's hash seed.
    for name, measure in parsed.items():
        values = {metric.query_id: metric.value for metric in measure.iter_calc(judged, retrieved)}
        table[name] = table["query_id"].map(values).astype(float)
    return table


def settle_ties(run: pd.DataFrame, first_stage: pd.DataFrame | None = None) -> pd.DataFrame:
    """Order each query's passages and make their scores strictly decreasing.

    Passages are ordered by score; equal scores by first-stage rank. Scores become float32, in which
    trec_eval compares; one that is then not below the score before it becomes the next float32
    below. (Magnitudes under 1.2e-38 become 0. At float32's lowest value the upper ones are raised.)

    Files must hold nine significant digits, ``"%.9g"`` or Python's ``repr``: as many as tell any
    two float32 apart. The order does not survive six decimals.

    Args:
        run: ``query_id``, ``doc_id`` (str), ``score`` (higher is better); other columns are kept.
            Unchanged.
        first_stage: ``query_id``, ``doc_id``, ``rank`` (1 is best) of at least the passages in
            `run`. Without it, equal scores are ordered by the run's own ``rank`` where it has that
            column, else by row.

    Returns:
        A new frame: queries in the order in which they appear, the best passage first, ``score``
        float32, ``rank`` 1..k in each query.

    Raises:
        ValueError: A column is missing, ids are not strings, a passage stands twice in a query or
            has no first-stage rank, or a score is not finite in float32.

    >>> run = pd.DataFrame({"query_id": ["1"] * 3, "doc_id": ["c", "b", "a"], "score": [1, 1, 2.0]})
    >>> first_stage = run[["query_id", "doc_id"]].assign(rank=[2, 1, 3])
    >>> settled = settle_ties(run, first_stage)
    >>> settled["doc_id"].tolist(), settled["score"].tolist()
    (['a', 'b', 'c'], [2.0, 1.0, 0.9999999403953552])
    """
    scores = finite_scores(run)
    query = pd.factorize(run["query_id"])[0]
    order = np.lexsort((_tie_ranks(run, first_stage), -scores, query))
    settled = run.iloc[order].reset_index(drop=True)
    settled["score"] = _strictly_decreasing(scores[order].astype(np.float32), query[order])
    settled["rank"] = settled.groupby("query_id", sort=False).cumcount() + 1
    return settled


def compare(
    values: pd.DataFrame, baseline: str, *, alpha: float = 0.05, seed: int = 0
) -> pd.DataFrame:
    """Compare systems with a baseline, query by query.

    Intervals are 95 % bootstrap intervals over queries, which every system meets in the same draws.
    They are percentile intervals: BCa is NaN where all values are equal, and brings nothing here
    (samples of 43 TREC DL queries: both hold the mean of all 97 in 92 to 96 % of draws, at widths
    equal to 0.004). p-values are of the paired t-test, on differences rounded to 12 decimals; all
    0 give p = 1, so that a copy of the baseline is not NaN and does not void the correction.

    Args:
        values: One row for each query, indexed by ``query_id``; one column for each system, all of
            one measure. Neither order matters for any figure.
        baseline: The column that the others are compared with.
        alpha: Level of the whole family, in (0, 1); the family is all other columns.
        seed: Of the bootstrap.

    Returns:
        One row for each system (index ``system``), in the order of the columns: ``n_queries``,
        ``mean``, ``ci_low``, ``ci_high``; ``delta`` (system minus baseline), ``delta_low``,
        ``delta_high``; ``p_value``, ``p_holm`` (NaN for the baseline) and ``significant``
        (``p_holm < alpha``).

    Raises:
        ValueError: `values` are not indexed by query, name a query or a system twice, hold a value
            that is not finite, have fewer than two queries, or lack `baseline`; or `alpha` is not
            in (0, 1).

    >>> values = pd.DataFrame({"bm25": [0.1, 0.2, 0.4, 0.3], "student": [0.5, 0.4, 0.7, 0.8]},
    ...                       index=["1", "2", "3", "4"])
    >>> compare(values, "bm25").loc["student", ["mean", "delta", "p_holm"]].round(3).tolist()
    [0.6, 0.35, 0.012]
    """
    expect(0 < alpha < 1, "alpha in (0, 1)", alpha, "0.05 is usual")
    checked = checked_values(values, [baseline], list(values.columns))
    rows = [_compare_one(checked[name], checked[baseline], seed) for name in checked]
    table = pd.DataFrame(rows, index=pd.Index(checked.columns, name="system"))
    table.loc[baseline, "p_value"] = table["p_holm"] = np.nan
    family = table.index != baseline
    if family.any():  # statsmodels 0.14 fails on none
        p_values = table.loc[family, "p_value"]
        table.loc[family, "p_holm"] = multipletests(p_values, alpha=alpha, method="holm")[1]
    return table.assign(significant=table["p_holm"] < alpha)


@dataclass(frozen=True, kw_only=True)
class Equivalence:
    """What :func:`equivalence` found; its example shows one."""

    n_queries: int
    """Queries in the sample."""
    delta: float
    """Mean difference, system minus reference."""
    delta_low: float
    """Lower end of the interval of `delta` at level 1 - 2 alpha (90 % for alpha 0.05)."""
    delta_high: float
    """Upper end of that interval."""
    p_value: float
    """The larger p-value of the two one-sided tests."""
    margin: float
    """Differences from here on matter, in units of the measure."""
    alpha: float
    """Level of the test."""

    @property
    def equivalent(self) -> bool:
        """True if a difference of `margin` or more, either way, is rejected at `alpha`."""
        return self.p_value < self.alpha


def equivalence(
    values: pd.DataFrame, system: str, reference: str, *, margin: float = 0.02, alpha: float = 0.05
) -> Equivalence:
    r"""Test whether two systems are the same up to a margin (TOST, paired).

    :math:`H_0: |\mu| \ge m` against :math:`|\mu| < m`, where :math:`\mu` is the mean difference
    and :math:`m` the margin, chosen before looking at the values. Two one-sided paired t-tests;
    equivalent if both reject, that is if the 1 - 2 alpha interval lies within :math:`(-m, m)`.
    Not equivalent does not mean different: the queries may be too few to tell. Where the difference
    is the same for every query, p is 0 inside the margin and 1 elsewhere.

    Args:
        values: As for :func:`compare`; other columns are ignored.
        system: Column of the system, such as the student.
        reference: Column that it should match, such as the teacher.
        margin: Differences from here on matter; > 0, in units of the measure.
        alpha: Level, in (0, 0.5).

    Returns:
        Mean difference, its interval, the p-value and the verdict.

    Raises:
        ValueError: As for :func:`compare`; or `margin` is not a positive number, or `alpha` is not
            in (0, 0.5).

    Reference: Schuirmann, Journal of Pharmacokinetics and Biopharmaceutics 1987.

    >>> values = pd.DataFrame({"student": [0.51, 0.40, 0.69], "teacher": [0.50, 0.41, 0.70]})
    >>> result = equivalence(values, "student", "teacher", margin=0.05)
    >>> round(result.p_value, 3), result.equivalent
    (0.01, True)
    """
    expect(0 < alpha < 0.5, "alpha in (0, 0.5)", alpha, "0.05 is usual")
    expect(0 < margin < np.inf, "a margin > 0", margin, "state from where differences matter")
    checked = checked_values(values, [system, reference], [system, reference])
    differences = (checked[system] - checked[reference]).round(_DECIMALS).to_numpy()
    delta = float(differences.mean())
    if np.ptp(differences) == 0:
        p_value, low, high = float(abs(differences[0]) >= margin), delta, delta
    else:
        p_value = ttost_paired(differences, np.zeros_like(differences), -margin, margin)[0]
        low, high = ttest_1samp(differences, 0.0).confidence_interval(1 - 2 * alpha)
    return Equivalence(
        n_queries=len(differences), delta=delta, delta_low=float(low), delta_high=float(high),
        p_value=float(p_value), margin=margin, alpha=alpha,
    )  # fmt: skip


def _parse(name: str) -> ir_measures.Measure:
    """The measure of that name, tried on a query of two passages."""
    try:
        measure = ir_measures.parse_measure(name)
        if measure.params.get("cutoff", 1) < 1:  # would abort the whole process inside trec_eval
            raise ValueError("the cutoff must be at least 1")
        list(measure.iter_calc({"1": {"a": 1, "b": 0}}, {"1": {"a": 2.0, "b": 1.0}}))
    except Exception as error:  # ir_measures raises five kinds, none of which names the measure
        raise ValueError(
            f"expected measures that ir_measures can compute here, such as {_EXAMPLES}; given "
            f"{name!r}: {error}"
        ) from error
    return measure


def _by_query(frame: pd.DataFrame, column: str) -> dict[str, dict[str, float]]:
    """``{query_id: {doc_id: value}}``, as ir_measures' providers take it without conversion."""
    return {
        query_id: dict(zip(rows["doc_id"], rows[column].tolist()))
        for query_id, rows in frame.groupby("query_id", sort=False)
    }


def _log_gaps(run: pd.DataFrame, kept: pd.DataFrame, judged: dict, retrieved: dict) -> None:
    """Say what of the run is not measured, counts 0 or is left to the document ids."""
    n_queries = run["query_id"].nunique()
    if n_unjudged := n_queries - len(retrieved):
        _log.info("%d of the run's %d queries have no judgments: left out", n_unjudged, n_queries)
    if n_unanswered := len(judged) - len(retrieved):
        _log.warning("%d of %d judged queries have no results: count 0", n_unanswered, len(judged))
    if n_tied := int(kept.duplicated(["query_id", "score"]).sum()):
        _log.warning("%d passages tie with another of their query: use settle_ties", n_tied)
    pairs = ((query_id, doc_id) for query_id, docs in retrieved.items() for doc_id in docs)
    if len(run) and not any(doc_id in judged[query_id] for query_id, doc_id in pairs):
        _log.warning("no passage of the run is judged: do run and qrels use the same ids?")


def _tie_ranks(run: pd.DataFrame, first_stage: pd.DataFrame | None) -> np.ndarray:
    """What orders equal scores, for each row of `run`; lower is better."""
    if first_stage is None:
        ranks = run.get("rank", pd.Series(np.arange(len(run)), index=run.index))
    else:
        check_frame("first_stage", first_stage, "rank")
        ids = ["query_id", "doc_id"]
        ranks = run[ids].merge(first_stage[[*ids, "rank"]], on=ids, how="left")["rank"]
    numbers = as_numbers(ranks)
    expected = "a first-stage rank for every passage of the run"
    expect_rows(run, np.isfinite(numbers), expected, "give the first stage they were drawn from")
    return numbers


def _strictly_decreasing(scores: np.ndarray, query: np.ndarray) -> np.ndarray:
    """Lower scores as little as float32 allows, so that each query's strictly decrease.

    Integers in the order of the normal float32 stand for the scores: one less is the next smaller.
    With :math:`k_i` for the score at position :math:`i`, the highest strictly decreasing sequence
    nowhere above is :math:`min_{j <= i} (k_j + j) - i`. `scores` are float32 and never rise within
    a query; `query` is the query of each, equal ones adjacent.
    """
    bits = scores.view(np.int32).astype(np.int64)
    steps = np.maximum((bits & 0x7FFF_FFFF) - _SUBNORMAL_BITS, 0)
    keys = pd.DataFrame({"query": query, "key": np.where(bits < 0, -steps, steps)})
    position = keys.groupby("query").cumcount()
    n_below = keys.groupby("query")["key"].transform("size") - 1 - position
    lowered = (keys["key"] + position).groupby(keys["query"]).cummin() - position
    lowered = np.maximum(lowered, _LOWEST_KEY + n_below).to_numpy()
    magnitude = np.where(lowered == 0, 0, np.abs(lowered) + _SUBNORMAL_BITS)
    return np.where(lowered < 0, magnitude | 0x8000_0000, magnitude).astype(np.uint32).view("f4")


def _compare_one(system: pd.Series, baseline: pd.Series, seed: int) -> dict[str, float]:
    """One row of :func:`compare`, before the correction."""
    differences = (system - baseline).round(_DECIMALS).to_numpy()
    row = {"n_queries": len(system), "mean": system.mean()}
    row["ci_low"], row["ci_high"] = _interval(system.to_numpy(), seed)
    row["delta"] = differences.mean()
    row["delta_low"], row["delta_high"] = _interval(differences, seed)
    if np.ptp(differences) == 0:  # no variance: 1 for no difference, else 0, the t-test's limit
        return row | {"p_value": float(differences[0] == 0)}
    return row | {"p_value": ttest_1samp(differences, 0.0).pvalue}


def _interval(sample: np.ndarray, seed: int) -> tuple[float, float]:
    """Percentile bootstrap interval of the mean; one seed draws the same queries every time."""
    batch = max(1, 100_000 // len(sample))  # resampled values at once: 0.8 MB stay in the cache
    result = bootstrap(
        (sample,), np.mean, method="percentile", confidence_level=0.95, n_resamples=9_999,
        batch=batch, rng=np.random.default_rng(seed),
    )  # fmt: skip
    return tuple(map(float, result.confidence_interval))
