"""Evaluation: measures per query, runs without ties, tests of differences between systems.

``qrels`` have ``query_id, doc_id, relevance``, a ``run`` has ``query_id, doc_id, score``; ids are str.
Measures are those of ir_measures. In tests queries are the sample: average seeds for each query first.

References: McSherry and Najork, ECIR 2008 (ties); Smucker et al., CIKM 2007 (t-test, bootstrap); Holm,
Scandinavian Journal of Statistics 1979; Schuirmann, J. Pharmacokinetics and Biopharmaceutics 1987.
"""

import logging
from collections.abc import Sequence
from subprocess import CalledProcessError
from typing import NamedTuple

import ir_measures
import numpy as np
import pandas as pd
import scipy  # scipy.stats takes a second to load, and loads when it is first used
from pandas.api.types import is_integer_dtype, is_string_dtype

__all__ = ["Equivalence", "compare", "equivalence", "per_query", "settle_ties"]

_IDS = ["query_id", "doc_id"]
_DECIMALS = 12  # smaller differences are rounding (seeds averaged in another order), not effects
_TINY = np.finfo(np.float32).tiny
_log = logging.getLogger(__name__)


def per_query(
    qrels: pd.DataFrame, run: pd.DataFrame, measures: str | Sequence[str] = ("nDCG@10",)
) -> pd.DataFrame:
    """Measure a run: each judged query in a row (without results: 0), each measure in a column."""
    names = [measures] if isinstance(measures, str) else list(measures)
    _expect(len(set(names)) == len(names) > 0, "measures, each once", names, "such as nDCG@10, RR@10")
    _expect(len(qrels) > 0, "judgments", "empty qrels", "check which file or id was read")
    _numbers("qrels", qrels, "relevance")
    grades = qrels["relevance"]
    _expect(is_integer_dtype(grades), "relevance as integers", grades.dtype, "use .astype(int)")
    run = run.assign(score=_numbers("run", run, "score").astype(np.float32))
    kept = run[run["query_id"].isin(qrels["query_id"])]
    n_judged, n_kept = qrels["query_id"].nunique(), kept["query_id"].nunique()
    if n_judged > n_kept:
        _log.warning("%d of %d judged queries have no results: count 0", n_judged - n_kept, n_judged)
    if n_tied := int(kept.duplicated(["query_id", "score"]).sum()):
        _log.warning("%d passages tie with another of their query: use settle_ties", n_tied)
    if len(run) and kept[_IDS].merge(qrels[_IDS]).empty:
        _log.warning("no passage of the run is judged: do run and qrels use the same ids?")
    # gdeval (ERR) misreads query ids that are no numbers, and blanks. Passages' order decides ties.
    numbers = {x: str(n) for n, x in enumerate(sorted(set(qrels["query_id"])))}
    places = {x: f"{n:012d}" for n, x in enumerate(sorted({*qrels["doc_id"], *kept["doc_id"]}))}
    judged, retrieved = {}, {}
    for by_query, frame, name in ((judged, qrels, "relevance"), (retrieved, kept, "score")):
        for query_id, doc_id, value in zip(*(frame[x].tolist() for x in (*_IDS, name)), strict=True):
            by_query.setdefault(numbers[query_id], {})[places[doc_id]] = value
    table = pd.DataFrame({"query_id": list(numbers)})
    for name in names:  # one by one, as ir_measures 0.4.3 can confuse nDCG@10 and nDCG(gains=...)@10
        try:
            measure = ir_measures.parse_measure(name)
            if measure.params.get("cutoff", 1) < 1:  # would abort the whole process inside trec_eval
                raise ValueError("the cutoff must be at least 1")
            values = {value.query_id: value.value for value in measure.iter_calc(judged, retrieved)}
            if values.keys() != set(numbers.values()):
                raise ValueError(f"it measured {len(values)} of {len(numbers)} queries")
        except Exception as error:  # ir_measures raises five kinds, none of which names the measure
            if isinstance(error, CalledProcessError):  # gdeval, which says why on standard error
                error = "it needs grades from 0 to 4: map the grades"
            expected = f"a measure for grades {grades.min()} to {grades.max()}, such as 'nDCG@10'"
            raise ValueError(f"expected {expected}; got {name!r}: {error}") from None
        table[name] = [float(values[number]) for number in numbers.values()]
    return table


def settle_ties(run: pd.DataFrame, first_stage: pd.DataFrame | None = None) -> pd.DataFrame:
    """Order each query's passages, best first, and make their scores strictly decrease in float32.

    trec_eval breaks ties in float32 by document id. Here they keep the ``rank`` of `first_stage`, else
    the run's own ``rank``, else the order of rows. Files need nine significant digits (``"%.9g"``).
    """
    ranked = run if "rank" in run else run.assign(rank=range(len(run)))
    if first_stage is not None:
        _numbers("first_stage", first_stage, "rank")
        ranked = run[_IDS].merge(first_stage[[*_IDS, "rank"]], on=_IDS, how="left")
    scores, ranks = _numbers("run", run, "score"), _numbers("run or first_stage", ranked, "rank")
    query = pd.factorize(run["query_id"])[0]
    order = np.lexsort((ranks, -scores, query))
    scores, query = np.maximum(scores[order], -3e38).astype(np.float32), query[order]
    scores[np.abs(scores) < _TINY] = 0  # some libraries flush subnormals
    same_query = query[1:] == query[:-1]
    while (late := same_query & (scores[1:] >= scores[:-1])).any():
        above = scores[:-1][late]
        below = np.nextafter(above, np.float32(-np.inf))
        scores[1:][late] = np.where(np.abs(below) < _TINY, above - _TINY, below)
    settled = run.iloc[order].reset_index(drop=True).assign(score=scores)
    return settled.assign(rank=settled.groupby(query).cumcount() + 1)


def compare(values: pd.DataFrame, baseline: str, *, alpha: float = 0.05, seed: int = 0) -> pd.DataFrame:
    """Compare systems with a baseline: paired t-tests, Holm's correction, 95 % bootstrap intervals.

    `values` have a row per query (index ``query_id``) and a column per system; all but the baseline are
    the family of tests, with level `alpha`. Returns for each ``system``: ``n_queries``; ``mean``,
    ``ci_low``, ``ci_high``; ``delta`` (minus the baseline), ``delta_low``, ``delta_high``; ``p_value``,
    ``p_holm``, ``significant``. One query has no intervals and p-values: NaN.
    """
    _expect(0 < alpha < 1, "alpha in (0, 1)", alpha, "0.05 is usual")
    values = _checked_values(values, [*values.columns, baseline])
    differences = values.sub(values[baseline], axis=0).round(_DECIMALS)
    both, p_values = np.stack([values, differences]), pd.Series(np.nan, index=values.columns)
    low = high = np.full((2, len(values.columns)), np.nan)
    if len(values) > 1:
        low, high = scipy.stats.bootstrap(  # BCa covers no better, and is NaN where all are equal
            (both,), np.mean, axis=1, method="percentile", confidence_level=0.95, n_resamples=9_999,
            batch=max(1, 1_000_000 // both.size), rng=np.random.default_rng(seed),
        ).confidence_interval  # fmt: skip
        for name, sample in differences.drop(columns=baseline).items():
            varies = np.ptp(sample) > 0  # else the t-test's limit
            p_value = scipy.stats.ttest_1samp(sample, 0.0).pvalue if varies else sample.iloc[0] == 0
            p_values[name] = float(p_value)
    ordered = p_values.dropna().sort_values()
    p_holm = (ordered * np.arange(len(ordered), 0, -1)).cummax().clip(upper=1)
    table = pd.DataFrame({
        "n_queries": len(values), "mean": values.mean(), "ci_low": low[0], "ci_high": high[0],
        "delta": differences.mean(), "delta_low": low[1], "delta_high": high[1],
        "p_value": p_values, "p_holm": p_holm.reindex(values.columns),
    }, index=values.columns).rename_axis("system")  # fmt: skip
    return table.assign(significant=table["p_holm"] < alpha)


class Equivalence(NamedTuple):
    """Result of `equivalence`; the interval has level 1 - 2 alpha. One query alone: NaN."""

    delta: float  #: Mean difference, system minus reference.
    delta_low: float
    delta_high: float
    p_value: float  #: The larger p-value of the two one-sided tests.
    margin: float  #: Smallest difference that matters, in units of the measure.
    equivalent: bool  #: Whether a difference of `margin` or more, either way, is rejected.


def equivalence(
    values: pd.DataFrame, system: str, reference: str, *, margin: float = 0.02, alpha: float = 0.05
) -> Equivalence:
    """Test whether two systems differ by less than a margin: two one-sided paired t-tests (TOST).

    Choose the margin before looking. Not equivalent does not mean different: queries may be too few.
    """
    _expect(0 < alpha < 0.5, "alpha in (0, 0.5)", alpha, "0.05 is usual")
    _expect(0 < margin < np.inf, "a margin > 0", margin, "choose from where differences matter")
    values = _checked_values(values, [system, reference])
    differences = (values[system] - values[reference]).round(_DECIMALS).to_numpy()
    low = high = delta = differences.mean()
    p_value = float(abs(differences[0]) >= margin)
    if len(differences) < 2:
        p_value = low = high = np.nan
    elif np.ptp(differences) > 0:
        test, sides = scipy.stats.ttest_1samp, {"greater": -margin, "less": margin}
        p_value = max(test(differences, x, alternative=side).pvalue for side, x in sides.items())
        low, high = test(differences, 0.0).confidence_interval(1 - 2 * alpha)
    return Equivalence(*map(float, (delta, low, high, p_value)), margin, bool(p_value < alpha))


def _numbers(name: str, frame: pd.DataFrame, column: str) -> np.ndarray:
    """A column as float64; requires finite values, ids that are strings, no passage twice."""
    columns, has = [*_IDS, column], list(frame.columns)
    _expect(set(columns) <= set(has), f"{name} with columns {columns}", has, "rename or add columns")
    for key in _IDS:
        missing, dtype = frame[key].isna().sum(), frame[key].dtype
        good, got = is_string_dtype(frame[key]) and not missing, f"{dtype}, {missing} missing"
        _expect(good, f"{name} with {key} as strings", got, "read ids as str, drop empty rows")
    values = pd.to_numeric(frame[column], errors="coerce").to_numpy(float, na_value=np.nan)
    for wrong, what in (
        (frame.duplicated(_IDS), "each passage once in a query"),
        (~(np.abs(values) <= np.finfo(np.float32).max), f"{column} finite in float32"),
    ):
        bad = frame.loc[wrong, columns]
        got = f"{len(bad)} of {len(frame)} rows that are not, first {bad[:1].to_dict('records')}"
        _expect(bad.empty, f"{name} with {what}", got, "correct or drop them")
    return values


def _checked_values(values: pd.DataFrame, systems: list[str]) -> pd.DataFrame:
    """Columns of systems as finite float64, queries sorted."""
    _expect("query_id" not in values, "query_id as index", "a column", "use set_index('query_id')")
    twice = [x for labels in values.axes for x in labels[labels.duplicated()]][:3]
    _expect(not twice, "each query and system once", f"{twice} twice", "average or rename them")
    unknown = [name for name in systems if name not in values]
    _expect(not unknown, f"systems among {list(values.columns)}", unknown, "name a column")
    _expect(len(values) > 0, "one or more queries", 0, "add judged queries")
    values = values[list(dict.fromkeys(systems))].apply(pd.to_numeric, errors="coerce")
    values = values.astype(float).sort_index()
    bad = values.stack(future_stack=True)[lambda x: ~np.isfinite(x)].index.tolist()
    got = f"{len(bad)} others, first (query, system) {bad[:3]}"
    _expect(not bad, "finite values of all systems", got, "measure all on the same queries")
    return values


def _expect(good: bool, expected: str, got: object, remedy: str) -> None:
    if not good:
        raise ValueError(f"expected {expected}; got {got}: {remedy}")
