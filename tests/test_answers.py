"""Answers as models write them: what is read as the ranking, and what is no vote."""

import pytest

from rdl_core.teachers.answers import listwise_prompt, read_answer
from rdl_core.words import first_words, n_tokens_about, n_words

WRAPPED = [  # each says 3, 2, 1
    "Passage [1] is off-topic.\n\nFinal ranking: **[3]** > **[2]** > **[1]**",
    "[1] is off-topic.\n1. [3]\n2. [2]\n3. [1]", "1) [3]\n2) [2]\n3) [1]",
    "Rank 1: [3]\nRank 2: [2]\nRank 3: [1]", "| [3] | 9 |\n| [2] | 8.5 |\n| [1] | 1 |",
    "[1] is off-topic. Passage [3] > Passage [2] > Passage [1]", "[3], then [2], then [1]",
    "[3] → [2] → [1]", "[3] -> [2] -> [1]", "[3]>[2]>[1]", "`[3]`, `[2]`, `[1]`",
    "[3] (0.9) > [2] (0.4) > [1] (0)", "[3] > [2] > [1]\n[1] is poor.", "[3]\n\n[2]\n\n[1]",
    '[1] is bad. {"ranking": ["[3]", "[2]", "[1]"]}', '```json\n{"ranking": [3, 2, 1]}\n```',
    '{"ranking": ["3", "2", "1"]}', r"\boxed{[3] > [2] > [1]}", "3 > 2 > 1",
    "Passage 3 > Passage 2 > Passage 1", "[C] > [B] > [A]", "【3】＞【2】＞【1】",
    "Passage [1] is about tea.\n1. [3] is best, better than [2]\n2. [2] follows\n3. [1] is last",
    "Ranking: [3] > [2] > [1]\n\n[1] is poor. [2] and [3] are fine. Passages [1], [2] overlap.",
    "[1] > [2] > [3]. On second thought: [3] > [2] > [1]",
    "[THINK][1] > [2] > [3][/THINK][3] > [2] > [1]", "[1] > [2] > [3]</think>[3] > [2] > [1]",
    "◁think▷[1] > [2] > [3]◁/think▷[3] > [2] > [1]",
    "<|begin_of_thought|>[1] > [2] > [3]<|end_of_thought|>[3] > [2] > [1]",
    '<thinking budget="9">[1] > [2] > [3]</thinking>[3] > [2] > [1]',
    *(f"<{tag}>[1] > [2] > [3]</{tag}>\n[3] > [2] > [1]"
      for tag in ("think", "thought", "thoughts", "reasoning", "analysis", "seed:think", "Scratchpad")),
    "<|channel|>analysis<|message|>[1] > [2] > [3]<|end|><|start|>assistant<|channel|>final<|message|>"
    "[3] > [2] > [1]<|return|>",
]  # fmt: skip


@pytest.mark.parametrize("text", WRAPPED)
def test_the_ranking_counts_whatever_wraps_it(text):
    reading = read_answer(text, 3)
    assert (reading.order, reading.status) == ((2, 1, 0), "clean")


@pytest.mark.parametrize(
    ("text", "n", "order", "status"),
    [
        ("Passage [5] is off-topic.\nFinal: [1] > [2] > [3] > [4]", 5, "12345", "repaired"),
        ("<thought>[1] is off-topic</thought>[3] > [2]", 3, "321", "repaired"),
        ("[1] > [2] > [3] > [4]? No: [4] > [3] > [2]", 5, "43215", "repaired"),
        ("[2] is best, [3] is not", 3, "231", "repaired"),
        ("<think>[3] > [2] > [1]", 3, "123", "unusable"),
        ("<|channel|>analysis<|message|>[3] > [2] > [1]", 3, "123", "unusable"),
        ("20 passages, 3 of them good, 7 > 9 words", 3, "123", "unusable"),
        ("", 3, "123", "unusable"),
    ],
)
def test_what_is_incomplete_is_never_called_clean(text, n, order, status):
    reading = read_answer(text, n)
    assert ("".join(str(place + 1) for place in reading.order), reading.status) == (order, status)


@pytest.mark.parametrize("piece", ["[1] ", "1 > ", "<think>", "[<|think", "a > ", "[1] 1 1 1 "])
def test_long_answers_are_read_in_a_moment(piece):
    assert len(read_answer(piece * 20_000, 3).order) == 3


def test_words_are_counted_in_scripts_without_spaces():
    for text in ("狐狸在夜间捕猎", "สุนัขจิ้งจอก", "キツネは夜に", "x" * 30, "red fox "):
        text *= 300
        assert len(first_words(text, 20)) <= 20 * 40
        assert n_words(first_words(text, 20)) == min(20, n_words(text))
        assert len(listwise_prompt("q", [text], max_words=20)) < 1100
    assert n_tokens_about("狐狸" * 50) == 100
    assert n_tokens_about("four" * 25) == 25
