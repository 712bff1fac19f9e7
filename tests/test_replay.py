"""Recorded answers: the log survives a kill; a replay gives the recorded ranking, or says why not.

These 26 mutations were tried, one at a time, and each fails a test here:

- replay: any passages; passages as a set; number of passages unchecked; exact texts; any word
  alike; first query match; one queue for all; last answer first; answers never used up; examples
  are passages; letters no names; cut at any query; ids as they are; token counts not read; commas
  not skipped; half line kept; half line dropped in memory only; half line dropped silently; whole
  log dropped; second answer overwrites; written before checked; no fsync; fsync before flush;
  teacher unchecked; order stays a list; replay can retry.
"""

import json
import os
import re
from dataclasses import replace
from pathlib import Path

import pandas as pd
import pytest

from rdl_core.teachers.listwise import rank_lists
from rdl_core.teachers.answers import Answer, Window
from rdl_core.teachers.replay import AnswerLog, Recorded, Replay, read_history

MIRROR = os.environ.get("RDL_MIRROR")
WORDS = "ant bee cat dog eel fox gnu hen ibis jay kite lynx mole newt owl pig".split()


def passage(number):
    return f"{WORDS[number % 16]} {WORDS[number // 16]}{number} number{number}"


def frame(sizes, start=0):
    """Candidates of queries 'q0', 'q1', ... with so many passages each."""
    rows = [
        {"query_id": f"q{q}", "query": f"what of query {q}?", "doc_id": f"d{q}-{i}", "rank": i + 1,
         "text": passage(start + i)}
        for q, n in enumerate(sizes) for i in range(n)
    ]  # fmt: skip
    return pd.DataFrame(rows)


def prompt(passages, query):
    shown = "\n".join(f"[{i}] {text}" for i, text in enumerate(passages, start=1))
    return f"Rank for the search query: {query}.\n\n{shown}\nSearch Query: {query}.\nRank them."


def window(n=3, **own):
    passages = tuple(passage(i) for i in range(n))
    docs = tuple(f"d{i}" for i in range(n))
    return Window(**{"query_id": "q", "query": "who?", "doc_ids": docs, "passages": passages} | own)


def recorded(response="[2] > [1] > [3]", n=3, **own):
    return Recorded(prompt=prompt(window(n).passages, "who?"), response=response, **own)


# --- replay -------------------------------------------------------------------------------------


@pytest.mark.skipif(not MIRROR, reason="needs RDL_MIRROR, the folder of recorded TREC DL data")
def test_the_recorded_answers_give_the_recorded_ranking():
    """387 windows of RankVicuna over BM25's top-100, TREC DL 2019: 43 of 43 lists identical."""
    folder = Path(MIRROR) / "trec-dl"
    name = "output_v2_aug_vicuna_7b_4096_100_PromptMode.RANK_GPT_dl19_2023-09-13T16:36:10.051205"
    path = folder / "retrieve_results/BM25/retrieve_results_dl19_top100.json"
    first_stage = json.loads(path.read_text())
    candidates = pd.DataFrame(
        {"query_id": str(hit["qid"]), "query": query["query"], "doc_id": hit["docid"],
         "rank": hit["rank"], "text": hit["content"]}
        for query in first_stage for hit in query["hits"]
    )  # fmt: skip
    columns = ["query_id", "q0", "doc_id", "rank", "score", "tag"]
    path = folder / f"rerank_results/BM25/{name}.txt"
    run = pd.read_csv(path, sep=" ", names=columns, dtype="str")
    replay = Replay(read_history(folder / f"prompts_and_responses/BM25/{name}.json"))
    assert replay.n_unused == 387

    ranked, report = rank_lists(candidates, replay)

    assert report[["n_windows", "n_clean", "n_calls"]].sum().tolist() == [387] * 3
    assert replay.n_unused == 0
    ours = ranked.sort_values("teacher_rank").groupby("query_id")["doc_id"].agg(list)
    theirs = run.assign(rank=run["rank"].astype(int)).sort_values("rank")
    theirs = theirs.groupby("query_id")["doc_id"].agg(list)
    assert len(theirs) == 43
    assert sum(ours[query_id] == theirs[query_id] for query_id in theirs.index) == 43
    assert (ranked["teacher_rank"] != ranked["rank"]).any()


def test_queries_in_lockstep_get_their_own_answers_from_a_file_that_goes_query_by_query():
    """Two lists of 5, window 4, stride 2: windows at 1 and 0 of each, recorded one by one."""
    candidates, records = frame([5, 5]), []
    for q in (1, 0):  # another order of queries than the candidates'
        texts = [passage(i) for i in range(5)]
        records.append(prompt(texts[1:5], f"what of query {q}?"))
        texts = [texts[0], *reversed(texts[1:5])]
        records.append(prompt(texts[:4], f"what of query {q}?"))
    said = ["[4] > [3] > [2] > [1]", "[2] > [1] > [3] > [4]"]
    replay = Replay([Recorded(prompt=p, response=said[i % 2]) for i, p in enumerate(records)])
    ranked, _ = rank_lists(candidates, replay, window_size=4, stride=2)
    # 0 1 2 3 4 -> 0 4 3 2 1 -> 4 0 3 2 1
    assert ranked["teacher_rank"].tolist() == [2, 5, 4, 3, 1] * 2


def test_replay_never_asks_again_for_what_was_recorded_unusable():
    replay = Replay([recorded("I cannot.", query_id="q0")])
    ranked, report = rank_lists(frame([3]), replay, max_retries=5)
    assert ranked["teacher_rank"].tolist() == [1, 2, 3]
    assert report[["n_unusable", "n_retries", "n_calls"]].values.tolist() == [[1, 0, 1]]


def test_replay_says_which_query_has_no_answer_left():
    replay = Replay([recorded()])
    assert dict(replay.ask([window()]))[0].text == "[2] > [1] > [3]"
    with pytest.raises(ValueError, match=r"query 'q' .*, pass 2, start 0, found none left"):
        list(replay.ask([window(pass_number=2)]))


def test_replay_says_which_query_was_never_recorded():
    with pytest.raises(ValueError, match=r"query 'q9' \('whom\?'\).*found none left"):
        list(Replay([recorded()]).ask([window(query_id="q9", query="whom?")]))


def test_replay_refuses_other_passages_and_says_where():
    texts = [passage(0), passage(2), passage(1)]
    shuffled = window(passages=tuple(texts), doc_ids=("d0", "d2", "d1"))
    with pytest.raises(ValueError, match=r"query 'q'.*at \[2\] passage d2, 'cat.*it shows ' bee"):
        list(Replay([recorded()]).ask([shuffled]))


def test_replay_refuses_passages_that_share_six_words_in_ten():
    red, blue = "the red fox runs home", "the blue fox sits home"
    record = Recorded(prompt=prompt([red, blue], "who?"), response="[1]")
    with pytest.raises(ValueError, match=r"at \[1\] passage a, 'the blue"):
        list(Replay([record]).ask([window(doc_ids=("a", "b"), passages=(blue, red))]))


def test_replay_refuses_another_number_of_passages():
    with pytest.raises(ValueError, match=r"query 'q'.*to show 4 passages; it shows 3: replay the"):
        list(Replay([recorded()]).ask([window(4)]))


def test_replay_takes_passages_that_were_cut_or_repaired():
    long = "The caf\u00e9 \u201copens\u201d at nine, [12] every day but Sunday; " + "later " * 300
    shown = 'the cafe\u0301 "opens" at nine, (12) every day but Sunday'
    record = Recorded(prompt=prompt([shown, "", "..."], "who?"), response="[1]")
    given = window(passages=(long, "", "!"))
    assert dict(Replay([record]).ask([given]))[0].text == "[1]"


def test_a_passage_may_itself_speak_of_a_search_query():
    odd = "He typed the search query: cats and dogs.\n"
    record = Recorded(prompt=prompt([odd, passage(1)], "who?"), response="[2] > [1]")
    given = window(doc_ids=("a", "b"), passages=(odd, passage(1)))
    assert dict(Replay([record]).ask([given]))[0].text == "[2] > [1]"


def test_a_line_with_an_example_is_no_passage():
    texts = "[A] x says:\nsearch query: cats\n[B] y\nAnswer in this form:\n[B] > [A]"
    given = window(doc_ids=("a", "b"), passages=("x says: search query: cats", "y"))
    by_id = Replay([Recorded(prompt=texts, response="[B]", query_id="q")])
    assert dict(by_id.ask([given]))[0].text == "[B]"


def test_a_prompt_without_its_query_needs_an_id_or_a_pattern():
    texts = "[1] x\n[2] y\nQuestion <who?>"
    with pytest.raises(ValueError, match="record 1 begins '.1. x.*give query_pattern"):
        Replay([Recorded(prompt=texts, response="[2]")])
    given = window(doc_ids=("a", "b"), passages=("x", "y"))
    by_id = Replay([Recorded(prompt=texts, response="[2]", query_id="q")])
    by_text = Replay([Recorded(prompt=texts, response="[2]")], query_pattern="question <(.*)>")
    assert dict(by_id.ask([given])) == dict(by_text.ask([given])) == {0: Answer(text="[2]")}


# --- histories ----------------------------------------------------------------------------------

FLAT = [{"prompt": "p1", "response": "[1]"}, {"prompt": "p2", "response": "[2]"}]
TODAY = {
    "query": {"text": "who?", "qid": 7},
    "invocations_history": [
        {"prompt": [{"role": "system", "content": "Rank."}, {"role": "user", "content": "p1"}],
         "response": "[1]", "input_token_count": 11, "output_token_count": 3, "reasoning": None},
        {"prompt": "p2", "response": "[2]"},
    ],
}  # fmt: skip


@pytest.mark.parametrize("between", ["", "\n", ", ", " ,\r\n "])
def test_histories_of_2023_are_objects_one_after_the_other(tmp_path, between):
    path = tmp_path / "h.json"
    path.write_text(between.join(json.dumps(item, indent=4) for item in FLAT) + between)
    assert [(r.prompt, r.response, r.query_id) for r in read_history(path)] == [
        ("p1", "[1]", None), ("p2", "[2]", None)
    ]  # fmt: skip


@pytest.mark.parametrize(
    "text", [json.dumps([TODAY]), json.dumps(TODAY) + "\n", json.dumps([TODAY], indent=1)]
)
def test_histories_of_today_tell_query_and_tokens(tmp_path, text):
    path = tmp_path / "h.json"
    path.write_text(text)
    assert read_history(path) == [
        Recorded(
            prompt="Rank.\np1", response="[1]", query_id="7", input_tokens=11, output_tokens=3
        ),
        Recorded(prompt="p2", response="[2]", query_id="7"),
    ]  # fmt: skip


def test_several_arrays_in_one_file_are_read_one_after_the_other(tmp_path):
    path = tmp_path / "h.json"
    path.write_text(json.dumps([TODAY]) + json.dumps([TODAY]))
    assert len(read_history(path)) == 4


@pytest.mark.parametrize(
    ("text", "telling"),
    [
        (json.dumps(FLAT[0]) + '\n{"prompt": "p2", "resp', "line 2, found .*cut off"),
        ('{"prompt": "p"}', "character 0: KeyError.'response'"),
        ('{"prompt": "p", "response": "r"} 7', "character 33: TypeError"),
        (json.dumps({"query": {"text": "x"}, "invocations_history": []}), "KeyError.'qid'"),
    ],
)
def test_what_is_no_history_is_refused_with_its_place(tmp_path, text, telling):
    path = tmp_path / "h.json"
    path.write_text(text)
    with pytest.raises(ValueError, match=re.escape(str(path)) + ".*" + telling):
        read_history(path)


# --- log ----------------------------------------------------------------------------------------


def test_a_log_keeps_every_answer_as_it_was(tmp_path):
    path = tmp_path / "answers.jsonl"
    given = {
        window(): Answer(text="[1]\n\u2028 \ud800 \u00e9", input_tokens=5),
        window(attempt=1): Answer(order=(2, 0, 1), n_calls=3, output_tokens=0),
        window(pass_number=2): Answer(text=""),
        window(start=10): Answer(text="x"),
        window(query_id="r"): Answer(text="y"),
        window(passages=("a", "b", "c")): Answer(text="z"),
        window(query="whose?"): Answer(text="w"),
    }
    log = AnswerLog(path, teacher="t")
    for key, answer in given.items():
        assert log.get(key) is None
        log.add(key, answer)
        assert json.loads(path.read_text().splitlines()[-1])["answer"]["text"] == answer.text
    again = AnswerLog(path, teacher="t")
    assert len(again) == len(log) == len(given)
    assert all(again.get(key) == log.get(key) == answer for key, answer in given.items())
    order = window(passages=window().passages[::-1], doc_ids=window().doc_ids[::-1])
    assert again.get(order) is None


@pytest.mark.parametrize("kept", [0, 1, 2])
def test_whatever_byte_a_kill_stops_at_whole_lines_are_kept(tmp_path, caplog, kept):
    path = tmp_path / "answers.jsonl"
    log, windows = AnswerLog(path, teacher="t\u00e9"), [window(start=i) for i in range(2)]
    for one in windows:
        log.add(one, Answer(text="[1] \u00e9"))
    whole = path.read_bytes()
    lines = whole.splitlines(keepends=True)
    before = sum(map(len, lines[:kept]))
    for end in range(before, before + len(lines[kept])):
        path.write_bytes(whole[:end])
        caplog.clear()
        log = AnswerLog(path, teacher="t\u00e9")
        assert len(log) == max(kept - 1, 0)
        assert ("dropped an unfinished last line" in caplog.text) == (end > before)
        for one in windows[len(log) :]:
            log.add(one, Answer(text="[1] \u00e9"))
        assert path.read_bytes() == whole


def test_a_second_answer_for_a_window_is_refused_and_not_written(tmp_path):
    path = tmp_path / "answers.jsonl"
    log = AnswerLog(path, teacher="t")
    log.add(window(), Answer(text="[1]"))
    before = path.read_bytes()
    with pytest.raises(ValueError, match=r"expected one answer for each window.*'q', 1, 0, 0"):
        log.add(window(), Answer(text="[2]"))
    assert path.read_bytes() == before
    assert log.get(window()).text == "[1]"
    path.write_bytes(before + before.splitlines(keepends=True)[-1])
    with pytest.raises(ValueError, match=r"line 3: .*second one"):
        AnswerLog(path, teacher="t")


def test_one_teachers_answers_are_not_taken_for_anothers(tmp_path):
    path = tmp_path / "answers.jsonl"
    AnswerLog(path, teacher="vicuna")
    with pytest.raises(ValueError, match=r"expected answers of 'zephyr'.*line 1.*'vicuna'"):
        AnswerLog(path, teacher="zephyr")


@pytest.mark.parametrize("damage", ["{", "7", "{}", '{"key": ["q"], "answer": {"order": null}}'])
def test_a_damaged_line_inside_is_refused_with_its_number(tmp_path, damage):
    path = tmp_path / "answers.jsonl"
    log = AnswerLog(path, teacher="t")
    log.add(window(), Answer(text="[1]"))
    path.write_text(path.read_text() + damage + "\n")
    with pytest.raises(ValueError, match="line 3: .*repair or remove that line"):
        AnswerLog(path, teacher="t")


def test_each_line_is_on_the_disk_before_add_returns(tmp_path, monkeypatch):
    synced = []
    monkeypatch.setattr(os, "fsync", lambda number: synced.append(os.fstat(number).st_size))
    path = tmp_path / "answers.jsonl"
    log = AnswerLog(path, teacher="t")
    for start in range(3):
        log.add(replace(window(), start=start), Answer(text="[1]"))
        assert synced[-1] == path.stat().st_size
    assert len(synced) == 4
