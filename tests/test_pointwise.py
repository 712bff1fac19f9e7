"""Pointwise teachers: scores as of prompts of their own, from rows that share passages."""

import itertools
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from test_local_llm import bytes_tokenizer, llama, words_tokenizer

from rdl_core.config import PROMPTS, LocalConfig
from rdl_core.data.collections import load
from rdl_core.data.formats import read_candidates, write_requests
from rdl_core.teachers.local_llm import load_llm
from rdl_core.teachers.pointwise import PointwiseLLM, plan_groups, score_lists
from rdl_core.teachers.replay import AnswerLog
from rdl_study.lists import llm_settings
from rdl_tools import teach as teaching
from rdl_tools.config import TeachConfig

modes = pytest.mark.parametrize("mode", [*PROMPTS])
WORDS = ["Passage:", "Query:", "red", "green", "blue", "yes", "no", "Answer:"]


def candidates(n_queries=5, depth=4):
    """Lists that share passages; the first passage is in all of them."""
    rows = [
        {"query_id": f"q{q}", "query": "red " * (q + 1), "rank": rank, "doc_id": f"d{doc}",
         "text": " ".join(WORDS[2 : 3 + doc % 3] * (doc + 1))}
        for q in range(n_queries) for rank, doc in enumerate([0, *range(q + 1, q + depth)], start=1)
    ]  # fmt: skip
    return pd.DataFrame(rows)


def scorer(mode, **own):
    prompt = "Passage: {passage} Query: {query}" + " Answer:" * (mode == "yes_no")
    return PointwiseLLM(llama(), words_tokenizer(WORDS), mode=mode, prompt=prompt, **own)


def alone(llm, passage, query):
    """The score by the definition: one prompt, one forward pass, no mask."""
    encode, yes_no = llm.tokenizer.encode, llm.config.mode == "yes_no"
    start = encode(f"Passage: {passage} Query:")
    rest = encode(f"{query} Answer:" if yes_no else query)
    logits = llm.model(torch.tensor([start + rest])).logits[0].log_softmax(-1)
    if yes_no:
        yes, no = (encode(word)[0] for word in ("yes", "no"))
        return (logits[-1, yes] - logits[-1, no]).item()
    return sum(logits[len(start) - 1 + i, token].item() for i, token in enumerate(rest))


@modes
def test_scores_are_those_of_prompts_of_their_own(mode):
    frame, llm = candidates(), scorer(mode)
    ranked, report = score_lists(frame, llm)
    with torch.no_grad():
        expected = [alone(llm, *pair) for pair in zip(frame["text"], frame["query"], strict=True)]
    np.testing.assert_allclose(ranked["teacher_score"], expected, atol=1e-4)
    for _, rows in ranked.groupby("query_id"):
        assert sorted(rows["teacher_rank"]) == [1, 2, 3, 4]
        assert rows.sort_values("teacher_rank")["teacher_score"].is_monotonic_decreasing
    assert report["n_windows"].tolist() == [4] * 5 and (report["input_tokens"] > 0).all()


def test_a_passage_is_read_once_for_all_its_queries_and_stored_scores_are_not_computed_again(tmp_path):
    frame, llm = candidates(), scorer("query_likelihood")
    groups, many = plan_groups(frame), plan_groups(candidates(n_queries=70, depth=1))
    assert [len(group) for group in groups if group.doc_id == "d0"] == [5]
    assert (sum(map(len, groups)), [len(group) for group in many]) == (20, [32, 32, 6])
    log = AnswerLog(tmp_path / "log", teacher="t")
    for group, answer in itertools.islice(llm.ask(groups), 3):  # and then it is killed
        log.add(groups[group], answer)
    ranked, _ = score_lists(frame, llm, answers=AnswerLog(tmp_path / "log", teacher="t"))
    lines = (tmp_path / "log").read_text().splitlines()
    assert len(lines) == len(set(lines)) == 1 + len(groups)
    fresh, _ = score_lists(frame, llm)
    np.testing.assert_allclose(ranked["teacher_score"], fresh["teacher_score"], atol=1e-5)


def test_prompts_and_what_a_model_cannot_score_are_refused():
    for mode, prompt, says in (
        ("free", "{passage} {query}", "prompt: expected mode query_likelihood or"),
        ("query_likelihood", "{query} {passage}", r"expected {passage}, then {query}, once each"),
        ("query_likelihood", "{passage} {query}!", r"{query} last with query_like"),
        ("yes_no", "{passage} {passage} {query}", "once each"),
    ):
        with pytest.raises(ValueError, match=says):
            LocalConfig(model="m", mode=mode, prompt=prompt)
    frame = candidates()
    with pytest.raises(ValueError, match="no token for yes or no"):
        PointwiseLLM(llama(), bytes_tokenizer(), mode="yes_no")
    short = PointwiseLLM(llama(context=8), words_tokenizer(WORDS), mode="query_likelihood")
    with pytest.raises(ValueError, match="passage 'd.' and a query have .* at most 8: lower max_words"):
        score_lists(frame, short)
    broken = scorer("query_likelihood")
    broken.model.lm_head.weight.data.fill_(torch.nan)
    with pytest.raises(ValueError, match=r"passage 'd.' got scores .*nan.*: try precision float32"):
        score_lists(frame, broken)


@modes
def test_teach_keeps_scores_and_merges_shards(tmp_path, mode, monkeypatch):
    frame = candidates()
    write_requests(frame, tmp_path / "lists.jsonl")
    llm = scorer(mode)
    config = TeachConfig(candidates=str(tmp_path / "lists.jsonl"), backend=llm.config)
    monkeypatch.setattr(teaching, "open_backend", lambda backend: llm)
    plan = teaching.estimate(config, tmp_path / "new")
    assert (plan.n_windows, plan.n_answered, plan.output_tokens) == (20, 0, 0)
    report = teaching.teach(config, tmp_path / "whole")
    assert report["totals"]["n_windows"] == 20
    for number in (1, 2):
        part = TeachConfig(**asdict(config) | {"backend": llm.config, "shard": f"{number}/2"})
        teaching.teach(part, tmp_path / str(number))
    teaching.merge_lists([tmp_path / "1", tmp_path / "2"], tmp_path / "merged")
    expected, _ = score_lists(frame, llm)
    expected = expected.set_index(["query_id", "doc_id"])[["teacher_rank", "teacher_score"]]
    for folder in ("whole", "merged"):
        got = read_candidates(tmp_path / folder / "teacher.parquet").set_index(["query_id", "doc_id"])
        both = expected.join(got[["rank", "score"]])
        assert (both["teacher_rank"] == both["rank"]).all()
        np.testing.assert_allclose(both["teacher_score"], both["score"], atol=1e-4)


def test_the_embedded_llm_makes_ten_of_its_recorded_lists_again():
    collection = load("rdl/pydocs/test")
    recorded = read_candidates(Path(__file__).parents[1] / "results" / "smollm2" / "test.parquet")
    ten = recorded[recorded["query_id"].isin(recorded["query_id"].unique()[:10])]
    ten = ten[ten["rank"] % 8 == 1]  # an eighth of their passages, in an eighth of the time
    frame = ten.drop(columns="score").merge(collection.queries, on="query_id")
    frame = frame.merge(collection.passages_of(ten["doc_id"]), on="doc_id")
    config = llm_settings("smollm2").backend
    scores, _ = score_lists(frame, PointwiseLLM(*load_llm(config), **vars(config)))
    both = scores.merge(ten, on=["query_id", "doc_id"]).groupby("query_id")
    taus = both.apply(lambda x: x["teacher_score"].corr(x["score"], method="kendall"))
    assert len(taus) == 10
    assert taus.mean() > 0.9  # precisions differ: one swap of four passages is .67
    assert taus.min() > 0.6
