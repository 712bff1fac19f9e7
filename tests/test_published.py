"""Published lists: TREC DL's with the figures they are known by, Rank-DistiLLM's in small."""

import hashlib
import os

import pandas as pd
import pytest
import torch

from rdl_core.data import published
from rdl_core.data.collections import load
from rdl_core.data.downloads import group_names, registry
from rdl_core.data.published import JUDGED, first_stage, teacher_runs
from rdl_core.evaluate import per_query, settle_ties

needs_data = pytest.mark.skipif("RDL_MIRROR" not in os.environ, reason="RDL_MIRROR names no folder")
#: nDCG@10 as a right evaluation of the public files gives it; then of BM25's lists, RankVicuna's and
#: the least and the greatest of GPT's.
KNOWN = {
    "rdl/trec-dl-2019": (
        {"bm25": 0.5058, "bm25_rm3": 0.5216, "splade": 0.7308, "tas_b": 0.7210, "ada2": 0.7035},
        0.6682, (0.674, 0.694),
    ),
    "rdl/trec-dl-2020": (
        {"bm25": 0.4796, "bm25_rm3": 0.4896, "splade": 0.7197, "tas_b": 0.6854, "ada2": 0.6759},
        0.6549, (0.618, 0.639),
    ),
}  # fmt: skip


def ndcg(collection, run):
    if "teacher_rank" in run:
        run = run.assign(score=-run["teacher_rank"])
    return round(per_query(load(collection).qrels, settle_ties(run))["nDCG@10"].mean(), 4)


@needs_data
@pytest.mark.parametrize("collection", KNOWN)
def test_lists_have_their_known_ndcg_and_rank_vicuna_ranked_each_candidate(collection):
    """GPT ranked each list five times: a single repetition is a draw, not the teacher."""
    known, vicuna, gpt = KNOWN[collection]
    for name, value in known.items():
        listed = first_stage(collection, name, 100)
        (ranks,) = teacher_runs(collection, name, "rank_vicuna")
        assert first_stage(f"msmarco-passage/{collection[4:]}/judged", name, 100).equals(listed)
        assert ndcg(collection, listed) == value
        joined = listed.merge(ranks, on=["query_id", "doc_id"], validate="one_to_one")
        assert len(joined) == len(listed) == len(ranks)
        counted = joined.sort_values("teacher_rank").groupby("query_id").cumcount() + 1
        assert counted.sort_index().tolist() == joined["teacher_rank"].tolist()
    (ranks,) = teacher_runs(collection, "bm25", "rank_vicuna")
    assert ndcg(collection, ranks) == vicuna
    values = [ndcg(collection, run) for run in teacher_runs(collection, "bm25", "gpt_3.5")]
    assert len(values) == 5
    assert (min(values), max(values)) == pytest.approx(gpt, abs=0.0006)


def test_what_nobody_published_is_none_and_what_others_published_is_refused():
    for collection, name, teachers in (
        ("rdl/trec-dl-2020", "ada2", ["rank_vicuna"]), ("rdl/trec-dl-2022", "bm25", []),
        ("rdl/vaswani", "bm25", []), ("rdl/trec-dl-2019", "bi_encoder", []),
        ("rdl/trec-dl-2019/crops", "bm25", []), (JUDGED, "colbert", ["rank_zephyr"]),
    ):  # fmt: skip
        assert published.teachers_of(collection, name) == teachers
    for collection in ("rdl/vaswani", "rdl/trec-dl-2019", "rdl/trec-dl-2019/crops"):
        assert first_stage(collection, "bi_encoder", 9) is None
    assert first_stage("rdl/trec-dl-2019/crops", "bm25", 9) is None
    assert teacher_runs("rdl/vaswani", "bm25", "gpt_3.5") == []
    assert published.ranked_queries("rdl/trec-dl-2019", ["bm25"], "gpt_3.5") is None
    assert published.file_hashes("rdl/vaswani", "bm25", "judgments") == []
    for ask, (collection, name, what), message in (
        (first_stage, ("rdl/trec-dl-2022", "ada2", 9), "one of bm25, bm25_rm3, splade for"),
        (first_stage, (JUDGED, "splade", 9), "first_stage: expected one of colbert, bm25 for"),
        (teacher_runs, ("rdl/trec-dl-2019", "tas_b", "gpt_3.5"), "one of rank_vicuna.*'gpt_3.5'"),
        (teacher_runs, ("rdl/trec-dl-2022", "bm25", "rank_vicuna"), "one of none at all for"),
        (teacher_runs, (JUDGED, "colbert", "gpt_3.5"), "one of rank_zephyr for .*'gpt_3.5'"),
    ):
        with pytest.raises(ValueError, match=message):
            ask(collection, name, what)


TRAINED = [str(100 + n) for n in range(12)]  # judged training queries of Rank-DistiLLM, in small
RANKED = TRAINED[::2]  # those that RankZephyr ranked


def rows(query_ids, *, depth, seed):
    """``qid docno rank score`` of some queries."""
    draw = torch.Generator().manual_seed(seed)
    docs = ((x, doc) for x in query_ids for doc in torch.randperm(48, generator=draw)[:depth].tolist())
    frame = pd.DataFrame(docs, columns=["qid", "docno"]).astype({"docno": "str"})
    rank = frame.groupby("qid").cumcount() + 1
    return frame.assign(rank=rank, score=1.0 + depth - rank)


def run_text(frame, separator, iteration="Q0"):
    lines = ((q, iteration, d, str(r), str(s), "tag\n") for q, d, r, s in frame.itertuples(index=False))
    return "".join(map(separator.join, lines))


@pytest.fixture
def mirror(tmp_path, monkeypatch):
    """A mirror with the four files in exactly the published shape, and their MD5."""
    (tmp_path / "rank-distillm").mkdir()
    names = colbert, zephyr, bm25, zephyr_of_bm25 = group_names("rank-distillm")
    of_colbert, of_bm25 = (rows(TRAINED, depth=30, seed=seed) for seed in (1, 2))
    ranked = of_colbert["qid"].isin(RANKED)  # the same rows of both
    turned = 31 - of_colbert["rank"]
    of_colbert.to_parquet(tmp_path / colbert, index=False)
    of_colbert.assign(rank=turned, score=1 / turned)[ranked].to_parquet(tmp_path / zephyr, index=False)
    (tmp_path / bm25).write_text(run_text(of_bm25, " "))  # blanks, from 1
    from_0 = of_bm25.assign(rank=of_bm25["rank"] - 1)[ranked]
    (tmp_path / zephyr_of_bm25).write_text(run_text(from_0, "\t", "0"))
    for name in names:
        digits = hashlib.md5((tmp_path / name).read_bytes()).hexdigest()
        monkeypatch.setitem(registry(), name, registry()[name]._replace(hash=f"md5:{digits}"))
    monkeypatch.setenv("RDL_MIRROR", str(tmp_path))
    monkeypatch.setenv("RDL_CACHE", str(tmp_path / "cache"))
    yield tmp_path
    published._fetched.cache_clear()
    published.teacher_runs.cache_clear()


@pytest.mark.parametrize("name", ["colbert", "bm25"])
def test_first_stage_and_teacher_each_keep_their_own_order(mirror, name):
    """The teacher's file states no first-stage rank: taken from it, every depth was the teacher's."""
    first = rows(TRAINED, depth=30, seed={"colbert": 1, "bm25": 2}[name])
    listed = first_stage(JUDGED, name, 10, RANKED[:4])
    expected = first[first["qid"].isin(RANKED[:4]) & (first["rank"] <= 10)]
    assert listed.values.tolist() == expected.values.tolist()
    assert len(first_stage(JUDGED, name, 500)) == len(first)
    (ranks,) = teacher_runs(JUDGED, name, "rank_zephyr")
    joined = listed.merge(ranks, on=["query_id", "doc_id"], validate="one_to_one")
    # the teacher of ColBERT's lists turned them round, that of BM25's left them as they were
    turned = 31 - joined["rank"] if name == "colbert" else joined["rank"]
    assert joined["teacher_rank"].tolist() == turned.tolist()
    assert sorted(published.ranked_queries(JUDGED, [name], "rank_zephyr")) == sorted(RANKED)
    assert published.ranked_queries(JUDGED, [name], "judgments") is None
    hashes = [registry()[x].hash[4:] for x in group_names("rank-distillm") if name in x]
    assert published.file_hashes(JUDGED, name, "rank_zephyr") == hashes
    assert published.file_hashes(JUDGED, name, "judgments") == hashes[:1]


def test_integers_as_ids_and_a_rank_from_0_are_the_same_lists(tmp_path):
    frame = rows(TRAINED[:2], depth=9, seed=3)
    frame.astype({"qid": int, "docno": int}).to_parquet(tmp_path / "a.parquet")
    (tmp_path / "b.run").write_text(run_text(frame.assign(rank=frame["rank"] - 1), "\t"))
    one, other = (published._stream(tmp_path / name, 4, None) for name in ("a.parquet", "b.run"))
    pd.testing.assert_frame_equal(one, other[other["rank"] <= 4].reset_index(drop=True))
    assert one.groupby("query_id").size().tolist() == [4, 4]
    (tmp_path / "c.run").write_text("only three columns\n")
    pd.DataFrame({"other": [1]}).to_parquet(tmp_path / "d.parquet")
    for name in ("c.run", "d.parquet"):
        with pytest.raises(ValueError, match=f"{name}: expected rows of qid, docno, rank, score; got"):
            published._stream(tmp_path / name, 4, None)


def test_colberts_lists_of_test_queries_are_put_there_by_hand(mirror):
    collection = "msmarco-passage/trec-dl-2019/judged"
    name = "rank-distillm/__colbert__msmarco-passage-trec-dl-2019-judged.run"
    with pytest.raises(ValueError, match=f"expected {name} in RDL_MIRROR .*15150456 and copy"):
        first_stage(collection, "colbert", 9)
    hashes = []
    for seed in (5, 6):
        run = rows(["7000", "7001"], depth=30, seed=seed)
        (mirror / name).write_text(run_text(run, "\t", "0"))
        cut = first_stage(collection, "colbert", 20, ["7001"])
        assert cut.values.tolist() == run[(run["qid"] == "7001") & (run["rank"] <= 20)].values.tolist()
        hashes += published.file_hashes(collection, "colbert", "judgments")
    assert len(set(hashes)) == 2
