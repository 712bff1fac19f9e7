"""Answers as models write them: what is read as the ranking, and what is no vote."""

import re

import pytest

from rdl_core.teachers.answers import Answer, Window, read_answer
from rdl_core.words import first_words, n_tokens_about, n_words

CLEAN, NONE = ((2, 0, 1), (0, 0, 0)), ((0, 1, 2), (3, 0, 0))
# answer: order of three passages, (missing, repeated, unknown)
ANSWERS = dict.fromkeys([
    "[3] > [1] > [2]", "[c] > [A] > [b]", "[C] > [1] > [B]", "[3][1]\n[2]", "1. [3]\n2. [1]\n3. [2]",
    "[ 3 ] > [1 ] > [ 2]", "[3, 1, 2]", "[03] > [01] > [002]",
    "Of these 3 passages, 2 fit: [3] > [1] > [2]. I hope 1 helps!",
    "[2] is off-topic, [1] is fine. So: [3] > [1] > [2]", "[1] > [2] > [3]? No: [3] > [1] > [2]",
    "<think>[1] > [2] > [3]</think>\n[3] > [1] > [2]", "[1] > [2] > [3]</think>[3] > [1] > [2]",
    "<think>[1]</think>[3] > [1]<THINK>[3]</THINK> > [2]",
    "<think>a<think>[1]</think>[2]</think>[3] > [1] > [2]", "［３］ ＞ ［１］ ＞ ［２］",
    "[٣] > [१] > [②]", "【3】 > 【1】 > 【2】", "3 > 1 > 2", "⁅3⁆ > (1) > {2}",
], CLEAN) | dict.fromkeys([
    "", " \n\t", "3 1 2", "[] > []",
    "I'm sorry, but I can't [sic] rank A and B.", "<think>[3] > [1] > [2]",
], NONE) | {
    "[3] > [1]": ((2, 0, 1), (1, 0, 0)), "[2]": ((1, 0, 2), (2, 0, 0)),
    "[3] > [1] > [2": ((2, 0, 1), (1, 0, 0)), "[3] > [": ((2, 0, 1), (2, 0, 0)),  # cut off
    "[3] > [1] > [3] > [2]": ((2, 0, 1), (0, 1, 0)), "[3] > [3] > [3]": ((2, 0, 1), (2, 2, 0)),
    "[3] > [4] > [1] > [0] > [2]": ((2, 0, 1), (0, 0, 2)),
    "[3] > [99] > [3] > [1]": ((2, 0, 1), (1, 1, 1)),
    f"[3] > [{'9' * 6000}] > [1] > [2]": ((2, 0, 1), (0, 0, 1)),
    "[3] > ]2[ > [1]": ((2, 0, 1), (1, 0, 0)), "<think>[1]</think> [3]": ((2, 0, 1), (2, 0, 0)),
    "Best is [3], worst is [2].": ((2, 1, 0), (1, 0, 0)),
    "[7] > [-1] > [X] > [1.5]": ((0, 1, 2), (3, 0, 2)),
} | dict.fromkeys([  # however the ranking is wrapped
    "Passage [1] is off-topic.\n\nFinal ranking: **[3]** > **[2]** > **[1]**",
    "[1] is off-topic.\n1. [3]\n2. [2]\n3. [1]", "1) [3]\n2) [2]\n3) [1]",
    "Rank 1: [3]\nRank 2: [2]\nRank 3: [1]", "| [3] | 9 |\n| [2] | 8.5 |\n| [1] | 1 |",
    "[1] is off-topic. Passage [3] > Passage [2] > Passage [1]", "[3], then [2], then [1]",
    "[3] → [2] → [1]", "[3] -> [2] -> [1]", "[3]>[2]>[1]", "`[3]`, `[2]`, `[1]`",
    "[3] (0.9) > [2] (0.4) > [1] (0)", "[3] > [2] > [1]\n[1] is poor.", "[3]\n\n[2]\n\n[1]",
    '[1] is bad. {"ranking": ["[3]", "[2]", "[1]"]}', '```json\n{"ranking": [3, 2, 1]}\n```',
    '{"ranking": ["3", "2", "1"]}', r"\boxed{[3] > [2] > [1]}", "Passage 3 > Passage 2 > Passage 1",
    "Passage [1] is about tea.\n1. [3] is best, better than [2]\n2. [2] follows\n3. [1] is last",
    "Ranking: [3] > [2] > [1]\n\n[1] is poor. [2] and [3] are fine. Passages [1], [2] overlap.",
    "[THINK][1] > [2] > [3][/THINK][3] > [2] > [1]",
    "◁think▷[1] > [2] > [3]◁/think▷[3] > [2] > [1]",
    "<|begin_of_thought|>[1] > [2] > [3]<|end_of_thought|>[3] > [2] > [1]",
    '<thinking budget="9">[1] > [2] > [3]</thinking>[3] > [2] > [1]',
    *(f"<{tag}>[1] > [2] > [3]</{tag}>\n[3] > [2] > [1]"
      for tag in ("think", "thought", "thoughts", "reasoning", "analysis", "seed:think", "Scratchpad")),
    "<|channel|>analysis<|message|>[1] > [2] > [3]<|end|><|start|>assistant<|channel|>final<|message|>"
    "[3] > [2] > [1]<|return|>",
], ((2, 1, 0), (0, 0, 0))) | {  # what is incomplete is never called clean
    "Passage [5] is off-topic.\nFinal: [1] > [2] > [3] > [4]": ((0, 1, 2, 3, 4), (1, 0, 0)),
    "<thought>[1] is off-topic</thought>[3] > [2]": ((2, 1, 0), (1, 0, 0)),
    "[1] > [2] > [3] > [4]? No: [4] > [3] > [2]": ((3, 2, 1, 0, 4), (2, 0, 0)),
    "[2] is best, [3] is not": ((1, 2, 0), (1, 0, 0)),
    "<|channel|>analysis<|message|>[3] > [2] > [1]": ((0, 1, 2), (3, 0, 0)),
    "20 passages, 3 of them good, 7 > 9 words": ((0, 1, 2), (3, 0, 2)),
}  # fmt: skip


@pytest.mark.parametrize("text", ANSWERS, ids=range(len(ANSWERS)))
def test_what_is_read_from_an_answer_and_what_it_is_called(text):
    order, counts = ANSWERS[text]
    reading = read_answer(text, len(order))
    assert reading.order == order
    assert (reading.n_missing, reading.n_repeated, reading.n_unknown) == counts
    usable = "repaired" if any(counts) else "clean"
    assert reading.status == ("unusable" if counts[0] == len(order) else usable)


@pytest.mark.parametrize("piece", ["[1] ", "1 > ", "<think>", "[<|think", "a > ", "[1] 1 1 1 "])
def test_long_answers_are_read_in_a_moment(piece):
    assert len(read_answer(piece * 20_000, 3).order) == 3


def prompt(query, passages, *, max_words=300, letters=False):
    window = Window(query_id="q", query=query, doc_ids=(), passages=tuple(passages))
    return window.prompt(max_words=max_words, letters=letters)


def test_words_are_counted_in_scripts_without_spaces():
    for text in ("狐狸在夜间捕猎", "สุนัขจิ้งจอก", "キツネは夜に", "x" * 30):
        text *= 300
        assert len(first_words(text, 20)) <= 20 * 40
        assert n_words(first_words(text, 20)) == min(20, n_words(text))
        assert len(prompt("q", [text], max_words=20)) < 1100
    assert n_tokens_about("狐狸" * 50) == 100
    assert n_tokens_about("four" * 25) == 25


def test_a_prompt_shows_passages_in_order_and_windows_are_told_apart_by_all_it_shows():
    text = prompt("red\nfox", ["a fox", "see [2] and [A, B];\n [12]", "c d e f"], max_words=3)
    assert text.startswith("Query: red fox\n\n[1] a fox\n[2] see (2) and\n[3] c d e\n\n")
    assert 'the query "red fox"' in text
    assert re.findall(r"\[.*?\]", text) == ["[1]", "[2]", "[3]", "[2]", "[1]"]
    assert "\n[Z] x\n" in prompt("q", ["x"] * 26, letters=True)
    with pytest.raises(ValueError, match="letters name at most 26 passages, got 27"):
        prompt("q", ["x"] * 27, letters=True)
    same = {"query_id": "q", "query": "x", "doc_ids": ("a", "b"), "passages": ("c", "d")}
    changes = [
        {}, {"query_id": "r"}, {"query": "y"}, {"doc_ids": ("b", "a")}, {"passages": ("d", "c")},
        {"passages": ("cd", "")}, {"pass_number": 2}, {"start": 1}, {"attempt": 1},
    ]  # fmt: skip
    assert len({Window(**same | change).key for change in changes}) == len(changes)
    window = Window(query_id="q", query="red fox", doc_ids=("a",), passages=("A fox.",))
    assert window.key == ("q", 1, 0, 0, "a6d1417f47e23a18")  # recorded answers are found by it


def test_answers_are_a_text_or_an_order():
    orders = {(1, 0): (1, 0), (1,): (1, 0), (5, 1, 1, 0): (1, 0), (): (0, 1), (-1, 2): (0, 1)}
    assert {order: Answer(order=order).read(2).order for order in orders} == orders
    for wrong in ({}, {"text": "[1]", "order": (0,)}):
        with pytest.raises(ValueError, match="one of text, order and scores"):
            Answer(**wrong)
