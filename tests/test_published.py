"""Published lists: the public lists and LLM rankings of TREC DL with the figures they are known by, and
Rank-DistiLLM's files in small, in exactly their shape."""

import hashlib
import json
import os

import pandas as pd
import pytest
import torch

from rdl_core.data import downloads, published
from rdl_core.data.collections import load
from rdl_core.data.downloads import fetch, group_names, registry
from rdl_core.data.published import JUDGED, first_stage, teacher_runs
from rdl_core.evaluate import per_query, settle_ties

needs_data = pytest.mark.skipif(
    not os.environ.get("RDL_MIRROR"), reason="RDL_MIRROR names no folder of files"
)
#: nDCG@10 on 2019 and 2020, as a right evaluation of the public files gives it.
KNOWN = {
    "bm25": (0.5058, 0.4796), "bm25_rm3": (0.5216, 0.4896), "splade": (0.7308, 0.7197),
    "tas_b": (0.7210, 0.6854), "ada2": (0.7035, 0.6759),
}  # fmt: skip
YEARS = {"rdl/trec-dl-2019": 0, "rdl/trec-dl-2020": 1}


def ndcg(collection, run):
    if "teacher_rank" in run:
        run = run.assign(score=-run["teacher_rank"])
    return per_query(load(collection).qrels, settle_ties(run))["nDCG@10"].mean()


# --- TREC DL --------------------------------------------------------------------------------------


@needs_data
@pytest.mark.parametrize("name", KNOWN)
@pytest.mark.parametrize("collection", YEARS)
def test_first_stages_have_their_known_ndcg_and_rank_vicuna_ranked_each_candidate(collection, name):
    listed = first_stage(collection, name, 100)
    assert round(ndcg(collection, listed), 4) == KNOWN[name][YEARS[collection]]
    (ranks,) = teacher_runs(collection, name, "rank_vicuna")
    joined = listed.merge(ranks, on=["query_id", "doc_id"], validate="one_to_one")
    assert len(joined) == len(listed) == len(ranks)
    for _, rows in joined.groupby("query_id"):
        assert sorted(rows["teacher_rank"]) == list(range(1, len(rows) + 1))


@needs_data
@pytest.mark.parametrize(
    ("collection", "vicuna", "gpt"),
    [("rdl/trec-dl-2019", 0.6682, (0.674, 0.694)), ("rdl/trec-dl-2020", 0.6549, (0.618, 0.639))],
)
def test_llms_have_their_known_ndcg(collection, vicuna, gpt):
    """GPT ranked each list five times: a single repetition is a draw, not the teacher."""
    (ranks,) = teacher_runs(collection, "bm25", "rank_vicuna")
    assert round(ndcg(collection, ranks), 4) == vicuna
    values = [ndcg(collection, run) for run in teacher_runs(collection, "bm25", "gpt_3.5")]
    assert len(values) == 5
    assert (min(values), max(values)) == pytest.approx(gpt, abs=0.0006)


@needs_data
def test_candidates_are_passages_of_the_collection_cut_to_depth_and_queries():
    listed = first_stage("rdl/trec-dl-2022", "splade", 100)
    assert set(listed["doc_id"]) <= set(load("rdl/trec-dl-2022").passages["doc_id"])
    assert listed.groupby("query_id").size().tolist() == [100] * 76
    two = listed["query_id"].unique()[[3, 1]]
    cut = first_stage("rdl/trec-dl-2022", "splade", 7, two)
    expected = listed[listed["query_id"].isin(two) & (listed["rank"] <= 7)].reset_index(drop=True)
    pd.testing.assert_frame_equal(cut, expected)
    official = first_stage("msmarco-passage/trec-dl-2019/judged", "bm25", 5)
    pd.testing.assert_frame_equal(official, first_stage("rdl/trec-dl-2019", "bm25", 5))


def test_what_nobody_published_is_none_and_what_others_published_is_refused():
    for collection, name in (("rdl/vaswani", "bm25"), ("rdl/trec-dl-2019", "bi_encoder"),
                             ("rdl/trec-dl-2019/crops", "bm25")):  # fmt: skip
        assert first_stage(collection, name, 9) is None
    assert teacher_runs("rdl/vaswani", "bm25", "gpt_3.5") == []
    assert published.teachers_of("rdl/trec-dl-2020", "ada2") == ["rank_vicuna"]
    assert published.teachers_of("rdl/trec-dl-2022", "bm25") == []
    assert published.teachers_of("rdl/vaswani", "bm25") == []
    assert published.teachers_of(JUDGED, "colbert") == ["rank_zephyr"]
    assert published.ranked_queries("rdl/trec-dl-2019", ["bm25"], "gpt_3.5") is None
    assert published.file_hashes("rdl/vaswani", "bm25", "judgments") == []
    for ask, message in (
        (lambda: first_stage("rdl/trec-dl-2022", "ada2", 9), "one of bm25, bm25_rm3, splade for"),
        (lambda: first_stage(JUDGED, "splade", 9), "first_stage: expected one of colbert, bm25 for"),
        (lambda: teacher_runs("rdl/trec-dl-2019", "tas_b", "gpt_3.5"), "one of rank_vicuna.*'gpt_3.5'"),
        (lambda: teacher_runs("rdl/trec-dl-2022", "bm25", "rank_vicuna"), "one of none at all for"),
        (lambda: teacher_runs(JUDGED, "colbert", "gpt_3.5"), "one of rank_zephyr for .*'gpt_3.5'"),
    ):  # fmt: skip
        with pytest.raises(ValueError, match=message):
            ask()


# --- Rank-DistiLLM, in small ----------------------------------------------------------------------

TRAINED = [str(100 + n) for n in range(12)]  # judged training queries
RANKED = TRAINED[::2]  # those that RankZephyr ranked


def rows(query_ids, *, depth, seed):
    """``qid docno rank score`` of some queries."""
    draw = torch.Generator().manual_seed(seed)
    found = [
        (query_id, str(doc), place + 1, float(depth - place))
        for query_id in query_ids
        for place, doc in enumerate(torch.randperm(48, generator=draw)[:depth].tolist())
    ]
    return pd.DataFrame(found, columns=["qid", "docno", "rank", "score"])


def run_text(frame, separator, iteration="Q0"):
    lines = ((q, iteration, d, str(r), str(s), "tag\n") for q, d, r, s in frame.itertuples(index=False))
    return "".join(map(separator.join, lines))


@pytest.fixture
def mirror(tmp_path, monkeypatch):
    """A mirror with the four files in exactly the published shape, and a registry of their MD5."""
    folder = tmp_path / "mirror"
    (folder / "rank-distillm").mkdir(parents=True)
    colbert, zephyr, bm25, zephyr_of_bm25 = group_names("rank-distillm")
    first = rows(TRAINED, depth=30, seed=1)
    first.to_parquet(folder / colbert, index=False)
    turned = first[first["qid"].isin(RANKED)]
    turned = turned.assign(rank=31 - turned["rank"], score=1.0 / (31 - turned["rank"]))
    turned.to_parquet(folder / zephyr, index=False)
    first = rows(TRAINED, depth=30, seed=2)
    (folder / bm25).write_text(run_text(first, " "))  # blanks, from 1
    kept = first[first["qid"].isin(RANKED)]
    (folder / zephyr_of_bm25).write_text(run_text(kept.assign(rank=kept["rank"] - 1), "\t", "0"))
    entries = [
        {"name": name, "url": "", "what": "",
         "hash": f"md5:{hashlib.md5((folder / name).read_bytes()).hexdigest()}"}
        for name in (colbert, zephyr, bm25, zephyr_of_bm25)
    ]  # fmt: skip
    (tmp_path / "registry.json").write_text(json.dumps(entries))
    monkeypatch.setattr(downloads, "_REGISTRY", tmp_path / "registry.json")
    monkeypatch.setenv("RDL_MIRROR", str(folder))
    monkeypatch.setenv("RDL_CACHE", str(tmp_path / "cache"))
    cleared = (registry, published._fetched, published._ranking)
    for function in cleared:
        function.cache_clear()
    yield folder
    for function in cleared:
        function.cache_clear()


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
    hashes = [file.hash[4:] for file in registry().values() if f"{name}" in file.name]
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
        with pytest.raises(ValueError, match=f"{name}: expected rows of rank, score, qid, docno; got"):
            published._stream(tmp_path / name, 4, None)


def test_files_that_are_wrong_or_nowhere_are_named_with_the_remedies(mirror, monkeypatch):
    name = "rank-distillm/__bm25__msmarco-passage-train-judged.run"
    (mirror / name).write_text("7 Q0 7 1 1.0 tag\n")
    with pytest.raises(ValueError, match=f"{name}: expected {registry()[name].hash}; got md5:"):
        first_stage(JUDGED, "bm25", 9)
    (mirror / name).unlink()
    downloads.registry()[name] = registry()[name]._replace(url="http://127.0.0.1:9/a")  # nobody's port
    with pytest.raises(ValueError, match=f"expected {name} in RDL_MIRROR.*`rdl fetch rank-distillm`"):
        fetch(name)


def test_colberts_lists_of_test_queries_are_put_there_by_hand(mirror):
    collection = "msmarco-passage/trec-dl-2019/judged"
    name = "rank-distillm/__colbert__msmarco-passage-trec-dl-2019-judged.run"
    with pytest.raises(ValueError, match=f"expected {name} in RDL_MIRROR .*15150456 and copy"):
        first_stage(collection, "colbert", 9)
    hashes = set()
    for seed in (5, 6):
        run = rows(["7000", "7001"], depth=30, seed=seed)
        (mirror / name).write_text(run_text(run, "\t", "0"))
        listed = first_stage(collection, "colbert", 30)
        assert listed.values.tolist() == run.values.tolist()
        hashes.add(tuple(published.file_hashes(collection, "colbert", "judgments")))
    assert len(hashes) == 2
