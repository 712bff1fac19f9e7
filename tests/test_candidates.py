"""Candidates of a study: published lists where there are some, and everybody's order of them."""

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
from sentence_transformers import SentenceTransformer

from rdl_core.data import published
from rdl_core.data.collections import load
from rdl_core.teachers.encoders import fuse
from rdl_study.grid import RankingConfig, rank
from rdl_study.lists import ListsConfig, candidates_of, chosen_queries, lists, order_scores, text_sums

DEV = ListsConfig(collection="rdl/pydocs/dev", first_stage="bm25", depth=10, n_queries=40)
IDS = ["query_id", "doc_id"]
pytestmark = pytest.mark.usefixtures("runs")


def test_a_teachers_order_is_its_first_or_the_mean_of_several_and_a_cut_keeps_it(monkeypatch):
    pairs, draw = lists(replace(DEV, n_queries=9)), np.random.default_rng(0)
    ranks = [pairs.groupby("query_id")["rank"].transform(draw.permutation) for _ in range(3)]
    runs = [pairs[IDS].assign(teacher_rank=x) for x in ranks]
    monkeypatch.setattr(published, "teacher_runs", lambda *_: runs)
    for teacher, score in (("gpt_3.5", ranks[0]), ("gpt_3.5_mean", sum(ranks))):
        best_first = pairs.assign(score=score).sort_values(["query_id", "score", "rank"])
        for depth in (10, 4):
            frame = lists(replace(DEV, n_queries=9, depth=depth, teacher=teacher))
            order = frame.sort_values(["query_id", "teacher_rank"])["doc_id"].tolist()
            assert order == best_first.loc[best_first["rank"] <= depth, "doc_id"].tolist()


@pytest.mark.parametrize(("changes", "says"), [
    ({"first_stage": "splade"}, "bm25, bi_encoder, random for coll"),
    ({"n_queries": 2, "teacher": "gpt_3.5"}, "teacher: .*'gpt_3.5'"),
])  # fmt: skip
def test_lists_that_nobody_made_are_refused(changes, says):
    with pytest.raises(ValueError, match=says):
        lists(replace(DEV, **changes))


def test_candidates_and_a_teachers_order_may_come_from_files(tmp_path):
    first = load(DEV.collection).queries["query_id"][0]
    own, teacher = tmp_path / "own.run", tmp_path / "t.run"
    for path, order in ((own, "abc"), (teacher, "cab")):
        lines = (f"{first} Q0 {doc} {rank} {-rank} own\n" for rank, doc in enumerate(order, start=1))
        path.write_text("".join(lines))
    config = replace(DEV, first_stage=str(own), depth=2, teacher=str(teacher), n_queries=None)
    assert lists(config)[["doc_id", "teacher_rank"]].values.tolist() == [["a", 1], ["b", 2]]
    before = config.fingerprint
    teacher.write_text(f"{first} Q0 b 1 1 own")
    assert config.fingerprint != before
    assert lists(config)["teacher_rank"].tolist() == [0, 1]
    three = replace(config, depth=3)  # two of which the teacher left out
    run = rank(RankingConfig(candidates=three, system=str(teacher), precision="float32"))
    assert pd.read_parquet(run.folder / "run.parquet")["doc_id"].tolist() == ["b", "a", "c"]


def test_bi_encoders_teach_alone_and_together_by_standardised_scores(encoder_folder, files, tmp_path):
    other = str(tmp_path / "other")
    model = SentenceTransformer(encoder_folder, device="cpu")
    model.prompts = {"query": "the fox asks:", "document": "the whale says:"}
    model.save(other)
    names = (encoder_folder, other, f"{encoder_folder}+{other}")
    few = {"collection": str(files / "beir"), "depth": 5, "n_queries": 3}
    config = replace(DEV, teacher="bi_encoder", **few)
    plain, prompted, both = (replace(config, teacher_encoder=name) for name in names)
    frame = candidates_of(config)
    each = [order_scores(frame, one, "bi_encoder") for one in (plain, prompted)]
    assert not np.allclose(*each)  # the weights are the same: prompts were read
    np.testing.assert_allclose(order_scores(frame, both, "bi_encoder"), fuse(frame, *each))
    scores = frame["score"].to_numpy()
    np.testing.assert_allclose(order_scores(frame, both, "fused"), fuse(frame, *each, scores))
    for _, rows in lists(plain).groupby("query_id"):
        assert rows["teacher_score"].rank(ascending=False, method="first").eq(rows["teacher_rank"]).all()
        np.testing.assert_allclose(rows["teacher_score"].agg(["mean", "sem"]), [0, 0.5], atol=1e-6)
    assert "teacher_score" not in lists(replace(plain, teacher="first_stage"))
    prints = {both.fingerprint}
    model.prompts = {"query": "the whale asks:"}
    model.save(other)
    prints.add(both.fingerprint)
    model[0].auto_model.embeddings.LayerNorm.weight.data += 1
    model.save(other)
    assert len(prints | {both.fingerprint}) == 3
    with pytest.raises(ValueError, match="expected one bi-encoder behind the first stage"):
        replace(both, first_stage="bi_encoder")


def test_held_out_queries_are_the_others_and_more_hold_the_fewer():
    few, rest = replace(DEV, n_queries=9), replace(DEV, skip_queries=9, n_queries=None)
    everyone = chosen_queries(replace(DEV, n_queries=None))
    assert sorted(chosen_queries(few) + chosen_queries(rest)) == sorted(everyone)
    assert chosen_queries(replace(DEV, n_queries=3)) == chosen_queries(few)[:3]
    assert set(lists(few)["query_id"]) == set(chosen_queries(few))


@pytest.mark.parametrize("first_stage", ["bm25", "random"])
def test_lists_are_cut_and_missing_positives_come_behind(first_stage):
    config = replace(DEV, first_stage=first_stage, depth=3, add_relevant=True)
    frame, qrels = lists(config), load(DEV.collection).qrels
    relevant = qrels[qrels["query_id"].isin(chosen_queries(config)) & (qrels["relevance"] > 0)]
    assert len(frame.merge(relevant, on=IDS)) == len(relevant)
    behind = frame[frame["rank"] > 3]
    assert len(behind) > 0
    assert (behind["relevance"] > 0).all()
    bare = lists(replace(config, add_relevant=False))
    whole = replace(config, collection=f"{DEV.collection}/crops", first_stage="bm25", n_queries=3)
    pd.testing.assert_frame_equal(lists(whole), lists(replace(whole, add_relevant=False)))  # none missed
    assert bare.groupby("query_id").size().max() == 3 == bare["rank"].max()
    near = lists(replace(DEV, depth=100)).merge(bare, on=IDS)
    assert (len(near) == len(bare)) == (first_stage == "bm25")  # random ones are far from the query


def test_an_llm_is_asked_for_the_pairs_alone_whose_texts_changed(tmp_path, monkeypatch):
    wanted = replace(DEV, depth=3)
    pairs = lists(wanted)[IDS]
    folder, sums = tmp_path / "results" / "smollm2", text_sums(wanted.collection)
    folder.mkdir(parents=True)
    recorded = pairs.assign(rank=1, score=1.5).set_axis(["qid", "docno", "rank", "score"], axis=1)
    recorded["rank"] = recorded.groupby("qid").cumcount() + 1
    recorded.to_parquet(folder / "dev.parquet")
    changed = pairs["doc_id"].iloc[0]
    sums.loc[changed, "passage"] += 1  # as if the docstring had been another one
    sums.rename_axis("id").reset_index().to_parquet(folder / "texts.parquet")
    asked, name = [], "rdl_study.lists._asked"  # the LLM itself: tests/test_pointwise.py
    monkeypatch.setattr("rdl_study.lists.project_folder", lambda: tmp_path)
    monkeypatch.setattr(name, lambda left, *_: asked.append(left) or left.assign(score=7.0))
    scores = order_scores(pairs, wanted, "smollm2")
    again = (pairs["doc_id"] == changed).to_numpy()
    assert asked[0]["doc_id"].tolist() == [changed] * again.sum()
    assert scores.tolist() == [7.0 if x else 1.5 for x in again]
