"""Recorded answers: the log survives a kill; a replay gives the recorded ranking, or says why not."""

import json
import os

import pandas as pd
import pytest

from rdl_core.teachers.answers import Answer, Window
from rdl_core.teachers.listwise import rank_lists
from rdl_core.teachers.replay import AnswerLog, Recorded, Replay, read_history

TEXTS = [f"ant bee{number} number{number} cat" * (number % 3 + 1) for number in range(9)]
RED, BLUE = "the red fox runs home", "the blue fox sits home"


def window(n=3, **own):
    texts = {"doc_ids": tuple(f"d{i}" for i in range(n)), "passages": tuple(TEXTS[:n])}
    return Window(**{"query_id": "q", "query": "who?"} | texts | own)


def recorded(passages=tuple(TEXTS[:3]), text="[2] > [1] > [3]", query="who?", **own):
    listing = "\n".join(f"[{i}] {text}" for i, text in enumerate(passages, start=1))
    prompt = f"Rank for the search query: as below.\n\n{listing}\nSearch Query: {query}.\nRank them."
    return Recorded(prompt, Answer(text=text), **own)


def frame(n_queries, n):
    rows = [(f"q{q}", f"what of {q}?", f"d{i}", i + 1, TEXTS[i])
            for q in range(n_queries) for i in range(n)]  # fmt: skip
    return pd.DataFrame(rows, columns=["query_id", "query", "doc_id", "rank", "text"])


def test_queries_in_lockstep_get_their_own_answers_once_from_a_file_that_goes_query_by_query():
    """Two lists of 5, window 4, stride 2: windows at 1 and 0 of each, recorded one by one."""
    records = []
    for query in ("what of 1?", "what of 0?"):  # another order of queries than the candidates'
        moved = [TEXTS[i] for i in (0, 4, 3, 2)]
        records.append(recorded(TEXTS[1:5], "[4] > [3] > [2] > [1]", query))
        records.append(recorded(moved, "[2] > [1] > [3] > [4]", query))
    ranked, _ = rank_lists(frame(2, 5), Replay(records), window_size=4, stride=2)
    # 0 1 2 3 4 -> 0 4 3 2 1 -> 4 0 3 2 1
    assert ranked["teacher_rank"].tolist() == [2, 5, 4, 3, 1] * 2
    # What was recorded unusable is not asked for again.
    replay = Replay([recorded(text="I cannot.", query_id="q0")])
    ranked, report = rank_lists(frame(1, 3), replay, max_retries=5)
    assert ranked["teacher_rank"].tolist() == [1, 2, 3]
    assert report[["n_unusable", "n_retries", "n_calls"]].values.tolist() == [[1, 0, 1]]


@pytest.mark.parametrize(("asked", "says"), [
    (window(passages=(TEXTS[0], TEXTS[2], TEXTS[1])), "as passage 2 of 3, recorded"),
    (window(4), "expected 'ant bee3 .* as passage 4 of 4, recorded was None, 4 of 3"),
    (window(2), "expected None as passage 3 of 2"),
    (window(query_id="q9", query="whom?"), r"no recorded answer is left for query 'q9' \('whom\?'\)"),
    (window(query="r", passages=(BLUE, RED)), "expected 'the blue .* passage 1"),  # 6 words in 10
    (window(query="used"), "no recorded answer is left for query 'q'"),
])  # fmt: skip
def test_replay_refuses_what_was_not_recorded_and_says_where(asked, says):
    replay = Replay([recorded(), recorded(query="used"), recorded([RED, BLUE], query="r")])
    assert dict(replay.ask([window(query="used")])) == {0: Answer(text="[2] > [1] > [3]")}
    with pytest.raises(ValueError, match=f"{says}.*pass 1, start 0: replay the list"):
        list(replay.ask([asked]))


LONG = "The caf\u00e9 \u201copens\u201d at nine, [12] every day but Sunday; " + "later " * 300


@pytest.mark.parametrize(("ours", "shown"), [
    (LONG, 'the cafe\u0301 "opens" at nine, (12) every day but Sunday'), ("", "..."),
    ("He typed the search query: cats and dogs.\n",) * 2, ("Kőbánya ősz", "Kőbánya ősz"),
    ("A cimbalom a gyakori szereplÅ\x91je, mikÃ¶zben", "A cimbalom a gyakori szereplője, mik"),
    ("KÅ\x91bÃ¡nya Å\x91sz TÅ±z", "Kőbánya ősz Tűz"), ("donâ\x80\x99t cafÃ©s", "don’t cafés"),
    ("donâ€™t cafÃ©s", "don’t cafés"), ("Ｒｅｄ Ｆｏｘ", "Red Fox"),
    ("\x1b[36;44mred\x1b[0m fox", "red fox"),
    *((text.encode().decode("latin-1"), text) for text in (
        "Москва — столица России", "القاهرة هي عاصمة مصر", "दिल्ली भारत की राजधानी है",
        "狐狸在夜间捕猎，白天休息", "Hà Nội là thủ đô", "naïve 😀 pizza")),
])  # fmt: skip
def test_a_passage_that_the_recording_cut_or_whose_encoding_it_repaired_is_the_same(ours, shown):
    replay = Replay([recorded([shown, "tea"])] * 2)
    assert dict(replay.ask([window(2, passages=(ours, "tea"))]))
    with pytest.raises(ValueError, match="as passage 1 of 2"):
        list(replay.ask([window(2, passages=("Ã©s a bor", "tea"))]))


def test_replay_takes_passages_that_speak_of_prompts():
    example = "[A] x says:\nsearch query: cats\n[B] y\nAnswer in this form:\n[B] > [A]"
    asked = window(2, passages=("x says: search query: cats", "y"))
    assert dict(Replay([Recorded(example, Answer(text="[B]"), "q")]).ask([asked]))
    with pytest.raises(ValueError, match="recorded prompt 2 names no query: '.1. x"):
        Replay([recorded(), Recorded("[1] x\n[2] y\nQuestion <who?>", Answer(text="[2]"))])


FLAT = [{"prompt": "p1", "response": "[1]"}, {"prompt": "p2", "response": "[2]"}]
CHAT = [{"role": "system", "content": "Rank."}, {"role": "user", "content": "p1"}]
COUNTED = {"prompt": CHAT, "response": "[1]", "input_token_count": 11, "output_token_count": 3}
TODAY = {"query": {"text": "who?", "qid": 7}, "invocations_history": [COUNTED, FLAT[1]]}


def test_histories_of_2023_and_of_today_are_read_however_they_are_joined(tmp_path):
    path, counted = tmp_path / "h.json", Answer(text="[1]", input_tokens=11, output_tokens=3)
    flat = [Recorded("p1", Answer(text="[1]")), Recorded("p2", Answer(text="[2]"))]
    today = [Recorded("Rank.\np1", counted, "7"), flat[1]._replace(query_id="7")]
    array = json.dumps([TODAY])
    texts = [between.join(json.dumps(item, indent=4) for item in FLAT) + between
             for between in ("", "\n", ", ", " ,\r\n ")]  # fmt: skip
    cases = dict.fromkeys(texts, flat) | dict.fromkeys([array, json.dumps(TODAY) + "\n"], today)
    for text, expected in (cases | {array + array: today * 2}).items():
        path.write_text(text)
        assert read_history(path) == expected


@pytest.mark.parametrize(("text", "says"), [
    (json.dumps(FLAT[0]) + '\n{"prompt": "p2", "resp', "line 2"),
    ('{"prompt": "p"}', "line 1: expected .*KeyError.'response'"),
    ('{"prompt": "p", "response": "r"} 7', "line 1: .*TypeError"),
    ('{"prompt": "p", "response": 7}', "line 1: .*must be texts"),
    ('\n{"query": {"text": "x"}, "invocations_history": []}', "line 2: .*KeyError.'qid'"),
])  # fmt: skip
def test_what_is_no_history_is_refused_with_its_place(tmp_path, text, says):
    (tmp_path / "h.json").write_text(text)
    with pytest.raises(ValueError, match=f"h.json.*{says}"):
        read_history(tmp_path / "h.json")


def test_a_log_keeps_every_answer_as_it_was_on_the_disk_and_is_not_made_before(tmp_path, monkeypatch):
    synced, path = [], tmp_path / "answers.jsonl"
    monkeypatch.setattr(os, "fsync", lambda number: synced.append(os.fstat(number).st_size))
    answers = {
        window(): Answer(text="[1]\n\u2028 \ud800 \u00e9", input_tokens=5),
        window(attempt=1): Answer(order=(2, 0, 1), n_calls=3, output_tokens=0),
        window(start=10): Answer(text="x"), window(query="whose?"): Answer(text=""),
    }  # fmt: skip
    log = AnswerLog(path, teacher="t")
    assert not path.exists()
    for key, answer in answers.items():
        assert log.get(key) is None
        log.add(key, answer)
        assert synced[-1] == path.stat().st_size
    again = AnswerLog(path, teacher="t")
    assert len(again._answers) == len(synced) == len(answers)
    assert all(log.get(key) == answer for key, answer in answers.items())
    unusable = [key for key, answer in answers.items() if answer.text in ("x", "")]
    assert [key for key in answers if again.get(key) != answers[key]] == unusable  # asked again
    again.add(unusable[0], Answer(text="[1]"))
    third = AnswerLog(path, teacher="t")
    assert (third.get(unusable[0]).text, third.get(unusable[1])) == ("[1]", None)
    log.add(window(), Answer(text="[2]"))
    assert AnswerLog(path, teacher="t").get(window()) == log.get(window()) == Answer(text="[2]")


def test_whatever_byte_a_kill_stops_at_whole_lines_are_kept_and_reading_changes_nothing(tmp_path):
    path, windows = tmp_path / "answers.jsonl", [window(start=i) for i in range(2)]
    log, other = AnswerLog(path, teacher="t\u00e9"), AnswerLog(tmp_path / "other", teacher="t\u00e9")
    for asked in windows:
        log.add(asked, Answer(text="[1] \u00e9"))
    whole = path.read_bytes()
    for end in range(len(whole)):
        path.write_bytes(whole[:end])
        log = AnswerLog(path, teacher="t\u00e9")
        other.take(path)  # what it lacks of another log, which may be growing
        assert other._answers == log._answers
        assert len(log._answers) == max(whole[:end].count(b"\n") - 1, 0)
        assert path.read_bytes() == whole[:end]
        for asked in windows[len(log._answers) :]:
            log.add(asked, Answer(text="[1] \u00e9"))
        assert path.read_bytes() == whole


@pytest.mark.parametrize("line", ["{", "7", "{}", '{"key": ["q"], "answer": {"order": null}}'])
def test_damage_inside_and_another_teacher_are_refused_with_their_place(tmp_path, line):
    path = tmp_path / "answers.jsonl"
    AnswerLog(path, teacher="t").add(window(), Answer(text="[1]"))
    with pytest.raises(ValueError, match="line 1: expected answers of 'zephyr'.*these are .*'t'"):
        AnswerLog(path, teacher="zephyr")
    path.write_text(path.read_text() + line + "\n")
    with pytest.raises(ValueError, match="line 3: .*repair or remove that line"):
        AnswerLog(path, teacher="t")
