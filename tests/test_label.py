"""Queries and grades by an LLM, against a real server: what is kept, what is asked again, agreement."""

import json
import re

import numpy as np
import pandas as pd
import pytest
from chat_server import ChatServer
from test_local_llm import bytes_tokenizer, saying

from rdl_core.config import EndpointConfig, LocalConfig
from rdl_core.data.collections import load
from rdl_core.data.formats import read_candidates, read_qrels, write_run
from rdl_core.teachers.local_llm import LocalLLM
from rdl_tools import label
from rdl_tools.config import AskConfig, JudgeConfig, TeachConfig
from rdl_tools.label import agreement, ask, estimate, judge
from rdl_tools.teach import teach

WORDS = ["fox", "tea", "whale", "piano", "volcano", "bread", "glacier", "violin", "desert", "harbour"]
PASSAGES = {f"d{i}": f"The {x} near {WORDS[i - 1]} is a thing of its own." for i, x in enumerate(WORDS)}


@pytest.fixture
def corpus(tmp_path):
    """A folder in BEIR's layout, and a run of every passage for each query."""
    queries = {f"q{i}": f"where is a {x}" for i, x in enumerate(WORDS[:5])}
    for name, texts in (("corpus", PASSAGES), ("queries", queries)):
        lines = (json.dumps({"_id": key, "text": text}) for key, text in texts.items())
        (tmp_path / f"{name}.jsonl").write_text("\n".join(lines))
    rows = [(q, d, n) for q in queries for n, d in enumerate(PASSAGES, 1)]
    frame = pd.DataFrame(rows, columns=["query_id", "doc_id", "rank"])
    write_run(frame, tmp_path / "first.run")
    write_run(frame.assign(rank=11 - frame["rank"]), tmp_path / "turned.run")
    return tmp_path


def backend(server, **own):
    return EndpointConfig(model="m", base_url=server.url, **own)


def grade_of(query_number, doc_number):
    return {0: 3, 1: 1}.get((query_number - doc_number) % 10, 0)


def grader(number, prompt):
    """A grade behind thoughts, in words of its own; for one pair only when it is asked again."""
    query, passage = re.search(r"where is a (\w+)\n\nPassage: The (\w+)", prompt).groups()
    grade = grade_of(WORDS.index(query), WORDS.index(passage))
    if (query, passage) == ("tea", "bread"):
        return {"text": "I would rather not."} if number < 50 else {"text": "0"}
    if (query, passage) == ("tea", "piano"):
        return {"text": "no digit, ever: 17, 2.5, 4"}
    return {"text": f"<think>3 or 2?</think> Of 3 points **Grade: {grade}**."}


def test_grades_are_read_asked_again_kept_and_compared_with_humans(corpus, tmp_path):
    human = "".join(f"q{q} 0 d{d} {min(grade_of(q, d), 2)}\n" for q in range(4) for d in range(6))
    (tmp_path / "human.txt").write_text(human)
    own = {"candidates": str(corpus / "first.run"), "collection": str(corpus), "depth": 10}
    own |= {"human": str(tmp_path / "human.txt")}
    own |= {"runs": (str(corpus / "first.run"), str(corpus / "turned.run"))}
    with ChatServer(grader) as server:
        config = JudgeConfig(backend=backend(server), **own)
        plan = estimate(config, tmp_path / "out")
        assert (plan.n_queries, plan.n_answered, plan.output_tokens) == (50, 0, 50)
        report = judge(config, tmp_path / "out")
        assert len(server.requests) == 52  # two were asked again
        assert judge(config, tmp_path / "out") == report  # asks again what a server may answer now
        assert len(server.requests) == 54
    assert (report["n_asked"], report["n_unusable"], report["grades"]["3"]) == (50, 1, 5)
    assert (report["n_answers"], report["why"]) == (52, {})
    qrels = read_qrels(tmp_path / "out" / "qrels.txt")
    pairs = [(q, d) for q in range(5) for d in range(10) if (q, d) != (1, 3)]
    expected = [(f"q{q}", f"d{d}", grade_of(q, d)) for q, d in pairs]
    assert [*qrels.itertuples(index=False, name=None)] == expected
    told = report["agreement"]
    assert (told["n_pairs"], told["kappa_relevant"], told["tau"]) == (23, 1.0, 1.0)
    assert 0 < told["kappa"] < 1  # humans gave no 3


def test_agreement_is_cohens_and_kendalls():
    ids = {"query_id": ["a"] * 4, "doc_id": list("wxyz")}
    qrels, human = (pd.DataFrame(ids | {"relevance": x}) for x in ([0, 0, 1, 1], [0, 1, 1, 1]))
    told = agreement(qrels, human, {})
    chance = 0.5 * 0.25 + 0.5 * 0.75
    assert told["kappa"] == told["kappa_relevant"] == pytest.approx((0.75 - chance) / (1 - chance))
    assert told["tau"] is None
    runs = {str(i): pd.DataFrame(ids | {"score": x}) for i, x in enumerate(np.eye(4) + 0.1)}
    assert -1 <= agreement(qrels, human, runs, "RR@1")["tau"] <= 1
    assert agreement(qrels, human.assign(query_id="b"), runs)["kappa"] is None


QUERIES = {
    "fox": 'A question: "where does a fox live"', "tea": "\n\n  tea near the harbour?\n(That is it.)",
    "whale": "", "piano": "word " * 40, "volcano": "what is this thing", "bread": "what is this thing",
    "glacier": "submarine telephone exchange", "violin": "violin violin", "desert": "<think>x",
    "harbour": "a",
}  # fmt: skip


def asker(number, prompt):
    if prompt.startswith("Query: "):  # graded: all but the violin
        return {"text": "0" if "violin" in prompt else "3"}
    return {"text": QUERIES[re.search(r"Passage: The (\w+)", prompt)[1]]}


def test_queries_are_kept_that_find_their_passage_and_that_it_answers(corpus, tmp_path):
    own = {"collection": str(corpus), "n_passages": 99, "depth": 4, "found_within": 3, "least_grade": 2}
    with ChatServer(asker) as server:
        prices = {"input_usd": 1.0, "output_usd": 0.0}
        config = AskConfig(backend=backend(server, **prices), **own)
        assert estimate(config, tmp_path / "out").n_windows == 10
        report = ask(config, tmp_path / "out")
        n_requests, n_words = len(server.requests), sum(len(x.split()) for x in server.answered)
        assert report["usd"] == pytest.approx(n_words / 1e6)  # grades and retries, too
        assert ask(config, tmp_path / "out") == report
        assert len(server.requests) == n_requests + 2 * 4  # what was unusable, twice
    counts = {"n_asked": 10, "n_unusable": 4, "n_several": 2, "n_not_found": 1, "n_not_answered": 1}
    assert report.items() >= (counts | {"n_queries": 2}).items()
    asked = [json.loads(x) for x in (tmp_path / "out" / "queries.jsonl").read_text().splitlines()]
    assert asked == [{"_id": "d0.asked", "text": "where does a fox live"},
                     {"_id": "d1.asked", "text": "tea near the harbour?"}]  # fmt: skip
    qrels = read_qrels(tmp_path / "out" / "qrels" / "train.tsv")
    assert [*qrels.itertuples(index=False, name=None)] == [("d0.asked", "d0", 1), ("d1.asked", "d1", 1)]
    candidates = read_candidates(tmp_path / "out" / "requests.jsonl")
    assert candidates.groupby("query_id")["rank"].max().between(1, 4).all()
    found = candidates.merge(qrels, on=["query_id", "doc_id"])
    assert (found["text"] == found["doc_id"].map(PASSAGES)).all()
    with ChatServer() as server:  # what a teacher ranks next
        lists = str(tmp_path / "out" / "requests.jsonl")
        teaching = TeachConfig(candidates=lists, backend=backend(server), max_retries=0)
        with pytest.raises(ValueError, match="no answer could be used"):  # texts are no numbers here
            teach(teaching, tmp_path / "lists")


def test_passages_are_drawn_by_seed_and_a_killed_run_goes_on(corpus, tmp_path):
    own = {"collection": str(corpus), "n_passages": 4, "found_within": 10, "longest": 9}
    down = {"on": True}

    def fails(number, prompt):
        name = re.search(r"Passage: The (\w+)", prompt)[1]
        return {"status": 400} if down["on"] and number == 2 else {"text": f"the {name} of my town"}

    with ChatServer(fails) as server:
        config = AskConfig(backend=backend(server, in_flight=1, max_tries=1), **own)
        with pytest.raises(OSError, match="no answer for query"):
            ask(config, tmp_path / "out")
        down["on"], n_before = False, len(server.answered)
        assert ask(config, tmp_path / "out")["n_queries"] == 4
        assert len(server.answered) == 4
        assert n_before > 0
    ids = [x.query_id for x in label._passages(config)]
    assert ids == sorted(ids)
    assert set(ids) < set(load(str(corpus)).doc_ids)
    others = [x.query_id for x in label._passages(AskConfig(backend=config.backend, seed=1, **own))]
    assert others != ids


@pytest.mark.parametrize(("change", "says"), [
    ({"collection": "nowhere"}, "unknown collection 'nowhere'"),
    ({"backend": LocalConfig(model="m", mode="first_token")}, "mode: expected free, as answers are"),
    ({"least_grade": 4}, "least_grade"), ({"longest": 0}, "longest"),
])  # fmt: skip
def test_what_cannot_be_asked_is_refused(corpus, tmp_path, change, says):
    backend = EndpointConfig(model="m", base_url="http://127.0.0.1:9/v1")
    with pytest.raises(ValueError, match=says):
        estimate(AskConfig(**{"collection": str(corpus), "backend": backend} | change), tmp_path)


def test_a_model_that_runs_here_is_asked_too_a_useless_one_told(corpus, tmp_path, monkeypatch):
    own = {"candidates": str(corpus / "first.run"), "collection": str(corpus), "depth": 2}
    with ChatServer(lambda *_: {"text": "I cannot help with that"}) as server:
        config = JudgeConfig(backend=backend(server), max_retries=0, **own)
        with pytest.raises(ValueError, match="no answer could be read, the first: 'I cannot help"):
            judge(config, tmp_path / "silent")
    tokenizer = bytes_tokenizer()
    llm = LocalLLM(saying("2", tokenizer), tokenizer)
    monkeypatch.setattr(label, "open_backend", lambda _: llm)
    report = judge(JudgeConfig(backend=LocalConfig(model="m"), **own), tmp_path / "out")
    assert report["grades"] == {"0": 0, "1": 0, "2": 10, "3": 0}
    assert (report["usd"], report["output_tokens"]) == (None, 20)
