"""Measures against hand arithmetic, runs without ties, tests against formulas, real figures."""

import gzip
import math
import os
from itertools import product
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from rdl_core.data.formats import read_candidates, read_qrels
from rdl_core.evaluate import compare, equivalence, per_query, settle_ties
from rdl_tools.config import EvaluateConfig
from rdl_tools.evaluate import evaluate_files

MIRROR = os.environ.get("RDL_MIRROR")
N_QUERIES = 43
TINY, LOWEST = np.finfo(np.float32).tiny, np.finfo(np.float32).min


def frame(column, rows):
    """Rows ``query doc value``, for example ``frame("score", "1 a 0.5, 1 b 0.25")``."""
    cells = [row.split() for row in rows.split(",")]
    table = pd.DataFrame(cells, columns=["query_id", "doc_id", column])
    return table.astype({column: float if column == "score" else int})


def by_query(table, measure="nDCG@10"):
    return table.set_index("query_id")[measure].to_dict()


QRELS = frame("relevance", "q1 a 3, q1 b 1, q1 c 0, q1 d 2, q2 a 1, q3 x 0")
RUN = frame("score", "q1 c 4, q1 a 3, q1 u 2, q1 b 1, q2 z 9, q2 a 8, q3 x 1")


def test_measures_are_those_of_hand_arithmetic_under_their_given_names():
    """nDCG has linear gains; unjudged passages are not relevant; two of q1's are of grade 2 or more."""
    gained = 3 / math.log2(3) + 1 / math.log2(5)  # ranks 2 and 4; d was not retrieved
    ideal = 3 / math.log2(2) + 2 / math.log2(3) + 1 / math.log2(4)
    names = ("nDCG@10", "RR(rel=2)", "AP( rel = 2 )", "RR@10")
    table = per_query(QRELS, RUN, names)
    assert table.columns.tolist() == ["query_id", *names]
    rows = [[gained / ideal, 1 / 2, 1 / 4, 1 / 2], [1 / math.log2(3), 0, 0, 1 / 2], [0] * 4]
    np.testing.assert_allclose(table[[*names]], rows, atol=1e-12)
    pd.testing.assert_frame_equal(per_query(QRELS[::-1], RUN[::-1], names), table)
    assert per_query(QRELS, RUN, "P@1").columns.tolist() == ["query_id", "P@1"]


def test_a_query_without_results_counts_0_and_gaps_are_logged(caplog):
    """A mean over answered queries rewards silence. Cranfield's published 0.01 for every system, BM25
    included, comes of ids that differ."""
    per_query(QRELS, RUN)
    assert caplog.text == ""
    run = pd.concat([RUN[RUN["query_id"] != "q1"], frame("score", "q9 a 1, q8 a 1")])
    assert by_query(per_query(QRELS, run, ["RR"]), "RR") == {"q1": 0.0, "q2": 0.5, "q3": 0.0}
    assert by_query(per_query(QRELS, RUN.iloc[:0])) == {"q1": 0, "q2": 0, "q3": 0}
    per_query(QRELS, RUN.assign(doc_id="doc-" + RUN["doc_id"]))
    assert "1 of 3 judged queries have no results" in caplog.text
    assert "no passage of the run is judged" in caplog.text


def test_measures_computed_together_equal_those_computed_alone():
    """ir_measures takes one nDCG for the other when asked for both, by Python's hash seed."""
    names = ["nDCG@10", *(f"nDCG(gains={{1:{gain}}})@10" for gain in range(2, 9))]
    run, discounts = frame("score", "q1 b 3, q1 a 2, q1 d 1"), 1 / np.log2([2, 3, 4])
    gains = [np.array([gain, 3, 2]) for gain in range(1, 9)]
    expected = [discounts @ gain / (discounts @ np.sort(gain)[::-1]) for gain in gains]
    table = per_query(QRELS[QRELS["query_id"] == "q1"], run, names)
    assert table[names].iloc[0].tolist() == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize(("measure", "reason"), [
    ("ndcg@10", "measure not found: ndcg"), ("nDCG 10", "invalid syntax"), (10, "10"),
    ("nDCG(foo=2)@10", "unsupported params found"), ("P", "invalid param cutoff"),
    ("P@0", "cutoff must be at least 1"),  # trec_eval aborts the process
    ("AP(rel=0)", "relevance_level should be positive"),
])  # fmt: skip
def test_a_measure_that_cannot_be_computed_is_named_with_an_example(measure, reason):
    with pytest.raises(ValueError, match=r"such as 'nDCG@10'") as error:
        per_query(QRELS.assign(relevance=[5, 0, 0, 0, 1, 0]), RUN, ["RR", measure])
    assert f"got {measure!r}: " in str(error.value)
    assert reason in str(error.value)
    for measures in ([], ["RR", "RR"]):
        with pytest.raises(ValueError, match="expected measures, each once; got"):
            per_query(QRELS, RUN, measures)


@pytest.mark.parametrize(("compute", "frames", "message"), [
    (per_query, (QRELS.iloc[:0], RUN), "judgments; got empty qrels"),
    (per_query, (QRELS.drop(columns="relevance"), RUN), r"qrels with columns .*'relevance'\]; got"),
    (per_query, (QRELS.astype({"relevance": float}), RUN), "relevance as integers; got float64"),
    *((per_query, (QRELS, run), message) for run, message in (
        (RUN.assign(doc_id=range(7)), "run with doc_id as strings; got int64"),
        (RUN.assign(query_id=[None, *RUN["query_id"][1:]]), "query_id as str.*1 missing"),
        (RUN.iloc[[0, 1, 2, 1]], "run with each passage once.*1 of 4.*'q1', 'doc_id': 'a'"),
        (RUN.assign(score=[1, 2, np.nan, 4, 5, 6, 7]), "score finite.*1 of 7.*'doc_id': 'u'"),
        (RUN.assign(score=[1, 1e39, 3, 4, 5, 6, 7]), "finite in float32.*1e\\+39"),
        (RUN.assign(score="high"), "finite in float32; got 7 of 7 rows"),
    )),
    (settle_ties, (RUN, RUN), r"first_stage with columns \['query_id', 'doc_id', 'rank'\]"),
    (settle_ties, (RUN, RUN.assign(rank=1)[1:]), "run or first_stage with.*1 of 7.*'doc_id': 'c'"),
    (settle_ties, (RUN.assign(rank=np.nan),), "first_stage with rank finite in float32; got 7 of 7"),
])  # fmt: skip
def test_frames_that_do_not_fit_are_refused(compute, frames, message):
    with pytest.raises(ValueError, match=f"expected .*{message}"):
        compute(*frames)


@pytest.mark.parametrize("other", [1.0, 1.0 - 1e-9], ids=["equal", "equal in float32"])
def test_measures_break_ties_by_document_id_and_say_so(caplog, other):
    """nDCG takes the larger id first, RR@10 the smaller: two orders in one line of results."""
    run = frame("score", "1 b 1, 1 a 1").assign(score=[other, 1.0])
    table = per_query(frame("relevance", "1 a 1"), run, ["nDCG@10", "RR@10", "RR"])
    assert table.iloc[0, 1:].tolist() == pytest.approx([1 / math.log2(3), 1, 1 / 2])
    assert "1 passages tie with another of their query: use settle_ties" in caplog.text


def test_equal_scores_follow_the_first_stage_else_the_own_rank_else_the_row():
    run = frame("score", "1 a 1, 1 b 1, 1 c 2")
    first_stage = frame("rank", "1 c 1, 1 b 2, 1 a 3, 1 unused 4, 2 unused 1")
    assert "".join(settle_ties(run.assign(rank=[7, 8, 9]), first_stage)["doc_id"]) == "cba"
    assert "".join(settle_ties(run.assign(rank=[9, 8, 7]))["doc_id"]) == "cba"
    assert "".join(settle_ties(run)["doc_id"]) == "cab"
    assert settle_ties(run.assign(score=LOWEST))["score"].is_unique
    assert settle_ties(RUN.iloc[:0]).columns.tolist() == ["query_id", "doc_id", "score", "rank"]


@pytest.mark.parametrize("seed", range(60))
def test_settled_scores_are_those_of_a_loop_that_steps_below_the_one_before(seed):
    """In the order of scores, then of the first stage, whatever the rows; no further than it must."""
    rng = np.random.default_rng(seed)
    close = [0.0, -0.0, 1.0, -1.0, np.nextafter(np.float32(1), LOWEST), TINY, -TINY, 1e-45]
    scores = rng.choice(np.float32([*close, *rng.normal(0, 2.0**90, 4)]), rng.integers(1, 30))
    run = pd.DataFrame({"query_id": rng.choice([*"123"], len(scores)), "score": scores})
    run = run.assign(doc_id=[f"d{n}" for n in range(len(run))], text="t")
    first_stage = run[["query_id", "doc_id"]].assign(rank=rng.permutation(len(run)))
    keys = run.merge(first_stage).sort_values(["score", "rank"], ascending=[False, True])
    below_tiny = {float(TINY): np.float32(0), 0.0: -TINY}  # the next that is not subnormal
    before, settled = run.copy(), settle_ties(run, first_stage)
    pd.testing.assert_frame_equal(run, before)
    assert settled.columns.tolist() == [*run, "rank"]
    assert settled["query_id"].unique().tolist() == run["query_id"].unique().tolist()
    for query_id, rows in settled.groupby("query_id"):
        best_first = keys[keys["query_id"] == query_id]
        assert rows["doc_id"].tolist() == best_first["doc_id"].tolist()
        assert rows["rank"].tolist() == [*range(1, len(rows) + 1)]
        expected = [np.float32(np.inf)]
        for score in best_first["score"]:
            below = below_tiny.get(float(expected[-1]), np.nextafter(expected[-1], LOWEST))
            expected.append(min(score if abs(score) >= TINY else np.float32(0), below))
        assert rows["score"].tolist() == expected[1:]
        read = np.float32([float(f"{score:.9g}") for score in rows["score"]])  # from a file
        assert (np.diff(read) < 0).all()


def _values(seed=1, n_queries=N_QUERIES):
    """A baseline and systems that differ from it by much, something and nothing."""
    rng = np.random.default_rng(seed)
    base = rng.uniform(0.2, 0.7, n_queries)
    effects = {"much": 0.10, "some": 0.045, "none": 0.0}
    noisy = {name: base + rng.normal(effect, 0.1, n_queries) for name, effect in effects.items()}
    return pd.DataFrame({"base": base} | noisy, index=[f"q{n:02}" for n in range(n_queries)])


def test_p_values_are_of_the_paired_t_test_corrected_by_holm():
    values, others = _values()[["none", "base", "some", "much"]], ["much", "some", "none"]
    table = compare(values, "base")
    assert [*table["n_queries"].items()] == [(name, N_QUERIES) for name in values]
    assert table["mean"].tolist() == pytest.approx(values.mean().tolist())
    assert table.loc["base", ["delta", "delta_low", "delta_high"]].tolist() == [0, 0, 0]
    assert table.loc["base", ["p_value", "p_holm"]].isna().all()
    for name in others:
        difference = values[name] - values["base"]
        t = difference.mean() / (difference.std(ddof=1) / math.sqrt(N_QUERIES))
        assert table.loc[name, "delta"] == pytest.approx(difference.mean())
        assert table.loc[name, "p_value"] == pytest.approx(2 * stats.t.sf(abs(t), N_QUERIES - 1))
    much, some, none = table.loc[others, "p_value"]
    assert much < some < none
    second = max(3 * much, 2 * some)
    expected = [3 * much, second, max(second, none)]
    assert table.loc[others, "p_holm"].tolist() == pytest.approx(expected)
    assert table["significant"].tolist() == [False, False, True, True]
    assert compare(values, "base", alpha=0.99 * second)["significant"].sum() == 1
    pd.testing.assert_frame_equal(compare(values[["base"]], "base"), table.loc[["base"]])
    shuffled = values.sample(frac=1, random_state=0)  # p-values were wrong for queries in other orders
    pd.testing.assert_frame_equal(compare(shuffled, "base"), table, rtol=1e-12)


def test_differences_that_do_not_vary_have_p_0_or_1_and_leave_the_others_their_correction():
    """One NaN inside the correction has voided every corrected p-value before."""
    values = _values()
    rounded = values["base"] * 3 - values["base"] * 2
    assert (rounded != values["base"]).any()
    values = values.assign(copy=values["base"], nearly=values["base"] + 1e-17, sum=rounded)
    table = compare(values.assign(shifted=values["base"] + 0.1), "base")
    assert table.loc[["copy", "nearly", "sum"], ["p_value", "p_holm"]].eq(1).all(axis=None)
    assert table.loc["much", "p_holm"] == pytest.approx(6 * table.loc["much", "p_value"])
    constant = table.loc["shifted"]  # as significant as can be
    assert (constant["p_value"], constant["p_holm"], constant["significant"]) == (0, 0, True)
    assert [constant["delta_low"], constant["delta_high"]] == pytest.approx([0.1, 0.1])
    for shift, p_value in ((0, 0), (0.01, 0), (0.02, 1), (-1, 1)):
        result = equivalence(values.assign(shifted=values["base"] + shift), "shifted", "base")
        assert (result.p_value, result.equivalent) == (p_value, p_value == 0)
        assert (result.delta, result.delta_low, result.delta_high) == pytest.approx((shift,) * 3)


def test_intervals_are_seeded_of_each_system_alone_and_as_wide_as_the_mean_s_spread():
    values, intervals = _values(n_queries=400), ["ci_low", "ci_high", "delta_low", "delta_high"]
    row, other = (compare(values, "base", seed=seed).loc["some"] for seed in (0, 4))
    two = compare(values[["some", "base"]], "base").loc["some"]
    assert two[intervals].tolist() == row[intervals].tolist()
    assert (other[intervals] != row[intervals]).all()
    assert other["p_value"] == row["p_value"]
    for name, sample in (("ci", values["some"]), ("delta", values["some"] - values["base"])):
        half = stats.norm.ppf(0.975) * sample.std() / math.sqrt(400)
        expected = [sample.mean() - half, sample.mean() + half]
        assert [row[f"{name}_low"], row[f"{name}_high"]] == pytest.approx(expected, abs=0.1 * half)


@pytest.mark.parametrize(("margin", "alpha"), [(0.02, 0.05), (0.06, 0.05), (0.04, 0.01)])
@pytest.mark.parametrize("system", ["much", "some", "none"])
def test_tost_is_two_one_sided_t_tests(system, margin, alpha):
    values = _values().assign(unused=np.nan)
    for pair, order in (((system, "base"), 1), (("base", system), -1)):
        difference = values[pair[0]] - values[pair[1]]
        mean, error = difference.mean(), difference.std(ddof=1) / math.sqrt(N_QUERIES)
        p_low = stats.t.sf((mean + margin) / error, N_QUERIES - 1)
        p_high = stats.t.cdf((mean - margin) / error, N_QUERIES - 1)
        half = stats.t.ppf(1 - alpha, N_QUERIES - 1) * error
        result = equivalence(values.iloc[::order], *pair, margin=margin, alpha=alpha)
        assert result.p_value == pytest.approx(max(p_low, p_high))
        expected = pytest.approx((mean, mean - half, mean + half))
        assert (result.delta, result.delta_low, result.delta_high) == expected
        assert result.equivalent == (-margin < mean - half and mean + half < margin)
    assert result.margin == margin


def test_one_query_has_a_mean_and_no_test():
    """It was refused: "expected two or more queries"."""
    values = _values().iloc[:1]
    table = compare(values, "base")
    assert table["mean"].tolist() == values.iloc[0].tolist()
    assert table["delta"].tolist() == pytest.approx((values.iloc[0] - values.iloc[0, 0]).tolist())
    assert table[["ci_low", "ci_high", "delta_low", "p_value", "p_holm"]].isna().all(axis=None)
    result, significant = equivalence(values, "base", "base"), table["significant"].any()
    assert (math.isnan(result.p_value), result.equivalent, significant) == (True, False, False)


@pytest.mark.parametrize(("change", "message"), [
    (lambda v: v.rename(columns={"base": "bm25"}), r"systems among \['bm25'.*got \['base'\]"),
    (lambda v: v.reset_index(names="query_id"), r"query_id as index.*set_index"),
    (lambda v: v.rename(index={"q01": "q00"}), r"query and system once; got \['q00'\] twice"),
    (lambda v: v.rename(columns={"much": "some"}), r"query and system once; got \['some'\] twice"),
    (lambda v: v.iloc[:0], "one or more queries; got 0"),
    (lambda v: v.assign(much=v["much"].drop("q07")), r"1 others, first.*\('q07', 'much'\)"),
    (lambda v: v.assign(much=v["much"].mask(v.index == "q07", np.inf)), r"\('q07', 'much'\)"),
    (lambda v: v.assign(much="high"), r"43 others, first.*\('q00', 'much'\)"),
])  # fmt: skip
def test_values_that_cannot_be_compared_are_refused(change, message):
    for test in (lambda v: compare(v, "base"), lambda v: equivalence(v, "much", "base")):
        with pytest.raises(ValueError, match=f"expected .*{message}"):
            test(change(_values()))


@pytest.mark.parametrize("value", [0, -0.02, math.inf, math.nan])
def test_levels_and_margins_are_in_their_ranges(value):
    for name, expected in (("alpha", r"alpha in \(0, 0.5\)"), ("margin", "margin > 0")):
        with pytest.raises(ValueError, match=f"{expected}; got {value}"):
            equivalence(_values(), "some", "base", **{name: value})
    with pytest.raises(ValueError, match=rf"alpha in \(0, 1\); got {value}"):
        compare(_values(), "base", alpha=value)


def _config(folder, qrels, runs, **own):
    (folder / "qrels").write_text(qrels)
    return EvaluateConfig(qrels=str(folder / "qrels"), runs=tuple(map(str, runs)), **own)


def test_files_are_measured_compared_and_written(tmp_path):
    """By the order that a file states: it may keep the first stage's scores, or tie."""
    orders, queries = {"first": RUN, "own": RUN[::-1]}, []
    for name, run in orders.items():  # ranks in the order of the rows, scores that tie
        ranks = run.groupby("query_id").cumcount() + 1
        lines = zip(run["query_id"], run["doc_id"], ranks, strict=True)
        text = "".join(f"{query} Q0 {doc} {rank} 1.5 tag\n" for query, doc, rank in lines)
        (tmp_path / f"{name}.run").write_text(text)
    config = _config(
        tmp_path, "q1 0 a 3\nq1 0 b 1\nq2 0 a 1\nq3 0 x 2\nq4 0 x 2\n",
        [tmp_path / f"{name}.run" for name in orders], measures=("nDCG@10", "RR(rel=2)@10"), margin=0.1,
        baseline="own", per_query=str(tmp_path / "queries.csv"), table=str(tmp_path / "table.csv"),
    )  # fmt: skip
    blocks = evaluate_files(config).split("\n\n")
    qrels = frame("relevance", "q1 a 3, q1 b 1, q2 a 1, q3 x 2, q4 x 2")
    for name, run in orders.items():
        measured = per_query(qrels, run.assign(score=-np.arange(7.0)), config.measures)
        queries.append(measured.assign(system=name)[["system", *measured]])
    queries = pd.concat(queries, ignore_index=True)
    pd.testing.assert_frame_equal(pd.read_csv(config.per_query), queries)
    table = pd.read_csv(config.table, index_col=["measure", "system"])
    for measure, block in zip(config.measures, blocks, strict=True):
        values = queries.pivot(index="query_id", columns="system", values=measure)
        row = compare(values, "own").loc["first"].drop(["n_queries", "significant"])
        row["p_tost"] = equivalence(values, "first", "own", margin=0.1).p_value
        assert table.loc[(measure, "first"), row.index].tolist() == pytest.approx(row.tolist())
        title, names, _, first, _ = block.splitlines()
        assert title == f"{measure}, 4 queries"
        printed = dict(zip(names.split(), first.split()[1:], strict=True))
        assert {x: float(printed[x]) for x in row.index} == row.round(4).to_dict()


def test_runs_have_the_names_of_their_files_or_their_paths(tmp_path):
    paths = [tmp_path / name / "own.run.gz" for name in ("a", "b")]
    for path in paths:
        path.parent.mkdir()
        path.write_bytes(gzip.compress(b"7 Q0 x 1 1.0 t\n"))
    for some, names in ((paths[:1], ["own"]), (paths, list(map(str, paths)))):
        title, columns, _, *lines = evaluate_files(_config(tmp_path, "7 0 x 1\n", some)).splitlines()
        assert title == "nDCG@10, 1 query, too few for tests"
        assert columns.split()[:3] == ["mean", "delta", "significant"]  # no tests
        assert [line.split()[0] for line in lines] == names
    with pytest.raises(ValueError, match="expected each run once; got .*own.run.gz"):
        evaluate_files(_config(tmp_path, "7 0 x 1\n", paths[:1] * 2))


@pytest.mark.skipif(not MIRROR, reason="RDL_MIRROR is not set: it names the folder with trec-dl/")
@pytest.mark.parametrize(("year", "figure", "n_queries"), [(2019, 0.7316, 43), (2020, 0.7254, 54)])
def test_real_runs_whose_scores_tie_have_their_reference_ndcg(year, figure, n_queries):
    [path] = Path(MIRROR, "trec-dl").glob(f"runs/__colbert__*-{year}-judged.run")
    qrels = read_qrels(f"{MIRROR}/trec-dl/qrels/qrels.dl{year % 100}-passage.txt")
    values = per_query(qrels, settle_ties(read_candidates(path)))["nDCG@10"]
    assert (len(values), values.mean()) == (n_queries, pytest.approx(figure, abs=5e-5))


@pytest.mark.parametrize("docs", [["x", "y"], ["x y", "d-1"]])
def test_measures_of_other_programs_are_right_whatever_the_ids_and_refused_grades_named(docs):
    """gdeval took ids such as clef-1 for 0 and gave a perfect run 0; q1 was a traceback."""
    ids = ["clef-1", "clef-2", "q1", "q2", "7", "8", "a b", "a c", "é", "-1"]
    run = pd.DataFrame(product(ids, docs), columns=["query_id", "doc_id"], dtype="str")
    run = run.assign(score=[2.0, 1.0] * 10)
    values = per_query(run.assign(relevance=[3, 0, 0, 1] * 5), run, ["ERR@10", "nDCG@10"])
    values = values.set_index("query_id").loc[ids]
    assert values["ERR@10"].tolist() == pytest.approx([7 / 16, 1 / 16 / 2] * 5, abs=1e-5)
    assert values["nDCG@10"].tolist() == pytest.approx([1, 1 / math.log2(3)] * 5)
    with pytest.raises(ValueError, match="grades 1 to 5, .*; got 'ERR@10': .* from 0 to 4"):
        per_query(run.assign(relevance=[1, 1, 1, 5] * 5), run, "ERR@10")
