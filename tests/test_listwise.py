"""Windows by hand, lists that lose nothing whatever is answered, reports that add up.

Windows of 20 with stride 10, from the end; a start is followed by the place behind its window:

- 1: none; 7: 0-7; 20: 0-20; 21: 1-21, 0-20.
- 95: 75-95, 65-85, 55-75, 45-65, 35-55, 25-45, 15-35, 5-25, 0-20. Loops that end when the start
  goes negative never see the first 5, and the first 9 of 99.
- 99: 79-99, 69-89, ..., 9-29, 0-20 (9 windows). 100: 80-100, 70-90, ..., 0-20 (9 windows).

Tournament, the best 10 of each group of 20 at most: 100 = 5 groups of 20, 50 left = 3 groups (17,
17, 16), 30 left = 2 groups of 15, 20 left = 1: 11 calls in 4 steps.

These 72 mutations were tried, one at a time, and each fails a test here:

- parsing: digits anywhere; letters not read; capitals only; cut-off bracket read; NFKC left out;
  lenticular left out; thoughts kept; thoughts opened by the prompt kept; tags case-sensitive;
  unended thoughts kept; first complete chain; no chains; longest number unlimited; missing
  reversed; missing in front; last naming counts; zero is known; n+1 known as n; repeated counted as
  unknown; unknown counts repeats; unusable only when empty; half missing is unusable; repaired
  forgets unknown; repaired forgets repeated; digest of ids only; digest joins texts; digest
  unordered; key without pass; key without attempt; order read as 1-based; brackets in passages
  kept; passages not cut.
- listwise: stops when start goes negative; from the front; last window short; one passage is asked;
  twice at the top; groups of neighbours; one fewer wins through; no final; passes ignored; pass
  number constant; count_calls without passes; inverse permutation; shown not frozen; start of all
  is 0; ranks by place; rows not sorted by rank; queries sorted by id; query by query; retry though
  it cannot help; never retry; retry one too many; all asked again; repaired asked again; attempt
  not told; first answer read; tokens of last answer only; retries counted with the first; calls
  counted one each; uncounted tokens are 0; log not asked; answers not stored; empty log taken
  for none; callback before store; number of all windows; asks for nothing; skipped windows pass;
  stride unchecked; top_k unchecked; options unchecked without lists; no warning.
"""

import logging
import math
import random
from collections import Counter

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rdl_core.teachers.listwise import SCHEDULES, count_calls, plan_windows, rank_lists
from rdl_core.teachers.answers import (
    Answer,
    Window,
    identifiers,
    listwise_prompt,
    read_answer,
    read_identifiers,
)
from rdl_core.teachers.replay import AnswerLog

few = settings(derandomize=True, deadline=None, max_examples=60, database=None)
REPORT = [
    "n_windows", "n_clean", "n_repaired", "n_unusable", "n_missing", "n_repeated", "n_unknown",
    "n_calls", "n_retries", "input_tokens", "output_tokens",
]  # fmt: skip


class Scripted:
    """Answers by a function of the window; remembers what it was asked, call by call."""

    def __init__(self, answer, *, can_retry=True, backwards=False):
        self.answer, self.can_retry, self.backwards = answer, can_retry, backwards
        self.calls = []

    @property
    def asked(self):
        return [window for call in self.calls for window in call]

    def ask(self, windows):
        self.calls.append([])
        numbered = list(enumerate(windows))
        for number, window in reversed(numbered) if self.backwards else numbered:
            self.calls[-1].append(window)
            answer = self.answer(window)
            yield number, answer if isinstance(answer, Answer) else Answer(text=answer)


def frame(sizes, seed=0):
    """Lists of so many passages; a passage's text is its worth, an integer; rows are shuffled."""
    draw = random.Random(seed)
    rows = [
        {"query_id": f"q{q}", "query": f"query {q}", "doc_id": f"d{i}", "rank": i + 1,
         "text": worth}
        for q, n in enumerate(sizes) for i, worth in enumerate(draw.sample(range(1000), n))
    ]  # fmt: skip
    draw.shuffle(rows)
    table = pd.DataFrame(rows, columns=["query_id", "query", "doc_id", "rank", "text"])
    return table.astype({"text": "str"})


def by_worth(window):
    best = sorted(range(len(window.passages)), key=lambda i: -int(window.passages[i]))
    return " > ".join(f"[{i + 1}]" for i in best)


def shown(window):
    """Whatever is answered, the list stays as it is."""
    return " > ".join(identifiers(len(window.passages)))


def order_of(ranked, query_id="q0"):
    rows = ranked[ranked["query_id"] == query_id].sort_values("teacher_rank")
    return rows["doc_id"].tolist()


def check_permutations(ranked, candidates):
    pd.testing.assert_frame_equal(ranked.drop(columns="teacher_rank"), candidates)
    assert ranked["teacher_rank"].dtype == np.int64
    for _, rows in ranked.groupby("query_id"):
        assert sorted(rows["teacher_rank"]) == list(range(1, len(rows) + 1))


# --- windows ------------------------------------------------------------------------------------

BY_HAND = {
    1: [],
    7: [(0, 7)],
    20: [(0, 20)],
    21: [(1, 21), (0, 20)],
    95: [(75, 95), (65, 85), (55, 75), (45, 65), (35, 55), (25, 45), (15, 35), (5, 25), (0, 20)],
    99: [(79, 99), (69, 89), (59, 79), (49, 69), (39, 59), (29, 49), (19, 39), (9, 29), (0, 20)],
    100: [(80, 100), (70, 90), (60, 80), (50, 70), (40, 60), (30, 50), (20, 40), (10, 30), (0, 20)],
}  # fmt: skip


@pytest.mark.parametrize("n", BY_HAND)
def test_sliding_windows_are_those_computed_by_hand(n):
    backend = Scripted(shown)
    candidates = frame([n])
    ranked, report = rank_lists(candidates, backend)
    places = [(w.start, w.start + len(w.passages)) for w in backend.asked]
    assert places == BY_HAND[n]
    seen = {doc for w in backend.asked for doc in w.doc_ids}
    assert len(seen) == (n if n > 1 else 0)
    assert (ranked["teacher_rank"] == ranked["rank"]).all()
    check_permutations(ranked, candidates)
    assert report["n_windows"].tolist() == [len(BY_HAND[n])] == [count_calls([n])]


@few
@given(
    n=st.integers(0, 130), window=st.integers(2, 25), stride=st.integers(1, 25),
    top_k=st.integers(1, 12), schedule=st.sampled_from(sorted(SCHEDULES)),
)  # fmt: skip
def test_plans_show_every_passage_in_windows_of_the_size(n, window, stride, top_k, schedule):
    how = {"schedule": schedule, "window_size": window, "stride": min(stride, window)}
    if schedule == "tournament":
        how["top_k"] = min(top_k, window // 2)
    plan = plan_windows(n, **how)
    assert all(step for step in plan)
    for step in plan:
        places = [place for one in step for place in one]
        assert len(set(places)) == len(places)  # windows of one step are asked at the same time
        assert all(0 <= place < n for place in places)
        assert all(2 <= len(one) for one in step) or schedule == "tournament"
        assert all(len(one) <= (n if schedule == "full" else window) for one in step)
    seen = {place for step in plan for one in step for place in one}
    assert seen == set(range(0 if n < 2 else min(n, window) if schedule == "single" else n))


@pytest.mark.parametrize(
    ("n", "calls", "steps"),
    [(1, 0, 0), (2, 1, 1), (20, 1, 1), (21, 3, 2), (100, 11, 4), (40, 3, 2), (30, 3, 2)],
)
def test_tournaments_are_those_computed_by_hand(n, calls, steps):
    plan = plan_windows(n, schedule="tournament", window_size=20, top_k=10)
    assert (sum(map(len, plan)), len(plan)) == (calls, steps)


def test_calls_are_told_before_anything_runs():
    sizes = [100, 95, 21, 7, 1]
    assert count_calls(sizes) == 9 + 9 + 2 + 1
    assert count_calls(sizes, passes=3) == 3 * 21
    assert count_calls(sizes, window_size=10, stride=5) == 19 + 18 + 4 + 1
    assert count_calls(sizes, schedule="single") == 4
    assert count_calls(sizes, schedule="full") == 4
    assert count_calls([100], schedule="tournament", top_k=5) == 5 + 2 + 1
    assert count_calls([10_000] * 2) == 2 * (1 + math.ceil(9_980 / 10))


@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize("passes", [1, 3])
def test_as_many_calls_are_made_as_were_told(schedule, passes):
    backend, sizes = Scripted(by_worth), [47, 20, 1, 33]
    how = {"schedule": schedule, "window_size": 8, "stride": 3, "top_k": 4, "passes": passes}
    candidates = frame(sizes)
    ranked, report = rank_lists(candidates, backend, **how)
    assert len(backend.asked) == count_calls(sizes, **how) == report["n_calls"].sum()
    assert {w.pass_number for w in backend.asked} == set(range(1, passes + 1))
    check_permutations(ranked, candidates)


def test_queries_advance_in_lockstep():
    backend = Scripted(by_worth)
    rank_lists(frame([100, 7, 40, 1]), backend)
    assert [len(call) for call in backend.calls] == [3, 2, 2] + [1] * 6
    assert {w.query_id for w in backend.calls[0]} == {"q0", "q1", "q2"}


# --- what a perfect teacher gets ----------------------------------------------------------------


def best(candidates, query_id):
    rows = candidates[candidates["query_id"] == query_id]
    return rows.iloc[np.argsort(-rows["text"].astype(int))]["doc_id"].tolist()


@pytest.mark.parametrize("n", [2, 20, 21, 64, 95, 100])
@pytest.mark.parametrize("schedule", ["sliding", "tournament", "full"])
def test_a_perfect_teachers_ten_best_come_first(n, schedule):
    candidates = frame([n, n])
    ranked, _ = rank_lists(candidates, Scripted(by_worth, backwards=True), schedule=schedule)
    for query_id in ("q0", "q1"):
        assert order_of(ranked, query_id)[:10] == best(candidates, query_id)[:10]
    if schedule == "full":
        assert order_of(ranked) == best(candidates, "q0")


def test_more_passes_sort_more():
    """Each pass of window 4, stride 2 makes two more places certain: 10 passages need 4 passes."""
    candidates = frame([10])
    for passes, sure in [(1, 2), (2, 4), (3, 6), (4, 10)]:
        ranked, _ = rank_lists(
            candidates, Scripted(by_worth), window_size=4, stride=2, passes=passes
        )
        assert order_of(ranked)[:sure] == best(candidates, "q0")[:sure]


def test_a_single_window_leaves_the_rest_in_order():
    candidates = frame([30])
    ranked, _ = rank_lists(candidates, Scripted(by_worth), schedule="single", window_size=5)
    first_five = candidates[candidates["rank"] <= 5]
    assert order_of(ranked)[:5] == best(first_five, "q0")
    assert order_of(ranked)[5:] == [f"d{i}" for i in range(5, 30)]


def test_those_out_of_a_tournament_stand_behind_by_their_place_in_their_group():
    """Groups (0 2 4) and (1 3 5), top 2: worths 9 8 7 and 3 2 1; the last of each are 4, then 5."""
    candidates = frame([6]).sort_values("rank").assign(text=["9", "3", "8", "2", "7", "1"])
    how = {"schedule": "tournament", "window_size": 4, "top_k": 2}
    ranked, _ = rank_lists(candidates, Scripted(by_worth), **how)
    assert order_of(ranked) == ["d0", "d2", "d1", "d3", "d4", "d5"]


# --- reading answers ----------------------------------------------------------------------------

CLEAN = (2, 0, 1)
# answer, order of three passages, (missing, repeated, unknown)
ANSWERS = {
    "plain": ("[3] > [1] > [2]", CLEAN, (0, 0, 0)),
    "letters": ("[C] > [A] > [B]", CLEAN, (0, 0, 0)),
    "small letters": ("[c] > [a] > [b]", CLEAN, (0, 0, 0)),
    "both": ("[C] > [1] > [B]", CLEAN, (0, 0, 0)),
    "no signs": ("[3][1]\n[2]", CLEAN, (0, 0, 0)),
    "numbered": ("1. [3]\n2. [1]\n3. [2]", CLEAN, (0, 0, 0)),
    "spaces inside": ("[ 3 ] > [1 ] > [ 2]", CLEAN, (0, 0, 0)),
    "one bracket": ("[3, 1, 2]", CLEAN, (0, 0, 0)),
    "leading zeros": ("[03] > [01] > [002]", CLEAN, (0, 0, 0)),
    "prose": ("Of these 3 passages, 2 fit: [3] > [1] > [2]. I hope 1 helps!", CLEAN, (0, 0, 0)),
    "discussed": ("[2] is off-topic, [1] is fine. So: [3] > [1] > [2]", CLEAN, (0, 0, 0)),
    "second thoughts": ("[1] > [2] > [3]? No: [3] > [1] > [2]", CLEAN, (0, 0, 0)),
    "thoughts": ("<think>[1] > [2] > [3]</think>\n[3] > [1] > [2]", CLEAN, (0, 0, 0)),
    "thoughts twice": ("<think>[1]</think>[3] > [1]<THINK>[3]</THINK> > [2]", CLEAN, (0, 0, 0)),
    "thoughts opened by the prompt": ("[1] > [2] > [3]</think>[3] > [1] > [2]", CLEAN, (0, 0, 0)),
    "nested thoughts": ("<think>a<think>[1]</think>[2]</think>[3] > [1] > [2]", CLEAN, (0, 0, 0)),
    "full-width": ("［３］ ＞ ［１］ ＞ ［２］", CLEAN, (0, 0, 0)),
    "arabic-indic": ("[٣] > [١] > [٢]", CLEAN, (0, 0, 0)),
    "devanagari": ("[३] > [१] > [२]", CLEAN, (0, 0, 0)),
    "circled": ("[③] > [①] > [②]", CLEAN, (0, 0, 0)),
    "lenticular": ("【3】 > 【1】 > 【2】", CLEAN, (0, 0, 0)),
    "one left out": ("[3] > [1]", CLEAN, (1, 0, 0)),
    "one alone": ("[2]", (1, 0, 2), (2, 0, 0)),
    "cut off": ("[3] > [1] > [2", CLEAN, (1, 0, 0)),
    "cut off early": ("[3] > [", (2, 0, 1), (2, 0, 0)),
    "twice": ("[3] > [1] > [3] > [2]", CLEAN, (0, 1, 0)),
    "only one": ("[3] > [3] > [3]", CLEAN, (2, 2, 0)),
    "out of range": ("[3] > [4] > [1] > [0] > [2] > [Z]", CLEAN, (0, 0, 3)),
    "all three": ("[3] > [99] > [3] > [1]", CLEAN, (1, 1, 1)),
    "huge": (f"[3] > [{'9' * 6000}] > [1] > [2]", CLEAN, (0, 0, 1)),
    "one reversed": ("[3] > ]2[ > [1]", CLEAN, (1, 0, 0)),
    "some in prose": ("Best is [3], worst is [2].", (2, 1, 0), (1, 0, 0)),
    "thoughts, then half": ("<think>[1]</think> [3]", CLEAN, (2, 0, 0)),
    "empty": ("", (0, 1, 2), (3, 0, 0)),
    "blank": (" \n\t", (0, 1, 2), (3, 0, 0)),
    "digits": ("3 > 1 > 2", (0, 1, 2), (3, 0, 0)),
    "stray digits": ("3 passages are provided.", (0, 1, 2), (3, 0, 0)),
    "refusal": ("I'm sorry, but I can't [sic] rank A and B.", (0, 1, 2), (3, 0, 0)),
    "reversed": ("]3[ > ]1[ > ]2[", (0, 1, 2), (3, 0, 0)),
    "empty brackets": ("[] > [] > []", (0, 1, 2), (3, 0, 0)),
    "others only": ("[7] > [-1] > [X] > [1.5]", (0, 1, 2), (3, 0, 2)),
    "endless thoughts": ("<think>[3] > [1] > [2]", (0, 1, 2), (3, 0, 0)),
    "superscripts": ("⁅3⁆ > (1) > {2}", (0, 1, 2), (3, 0, 0)),
}  # fmt: skip


@pytest.mark.parametrize("case", ANSWERS)
def test_what_is_read_from_an_answer_and_what_it_is_called(case):
    text, order, counts = ANSWERS[case]
    reading = read_answer(text, 3)
    assert reading.order == order
    assert (reading.n_missing, reading.n_repeated, reading.n_unknown) == counts
    usable = "clean" if counts == (0, 0, 0) else "repaired"
    assert reading.status == ("unusable" if counts[0] == 3 else usable)


def test_twenty_passages_are_provided_is_no_vote_for_passage_20():
    """Zero-shot Vicuna 13B, of which digits anywhere made passage 20 the best, 747 of 774 times."""
    reading = read_answer("Sure, 20 passages are provided, 20 in all.", 20)
    assert (reading.order[0], reading.status) == (0, "unusable")


PIECES = st.sampled_from(
    ["[", "]", "[1]", "[2]", "[20]", "[21]", "[0]", " > ", "[A]", "[t]", "[U]", "12", "<think>",
     "</think>", "\n", "［５］", "[٣]", "²", "[²]", "[1, 2]", "]3[", "\ud800", "[-4]", "İ", "🙂"]
)  # fmt: skip
TEXTS = st.one_of(st.text(max_size=60), st.lists(PIECES, max_size=40).map("".join))


@few
@given(text=TEXTS, n=st.integers(1, 25))
def test_any_text_gives_a_permutation_and_counts_that_add_up(text, n):
    reading = read_answer(text, n)
    assert sorted(reading.order) == list(range(n))
    assert 0 <= reading.n_missing <= n
    kept = reading.order[n - reading.n_missing :]
    assert list(kept) == sorted(kept)
    assert (reading.status == "unusable") == (reading.n_missing == n)
    flawless = reading.n_missing == reading.n_repeated == reading.n_unknown == 0
    assert (reading.status == "clean") == flawless


@few
@given(numbers=st.lists(st.integers(-3, 12), max_size=30), n=st.integers(1, 8))
def test_each_identifier_is_named_repeated_or_unknown(numbers, n):
    reading = read_identifiers(numbers, n)
    known = [i for i in numbers if 1 <= i <= n]
    assert reading.n_unknown == len(numbers) - len(known)
    assert reading.n_repeated == sum(count - 1 for count in Counter(known).values())
    assert reading.n_missing == n - len(set(known))
    firsts = [i for place, i in enumerate(known) if i not in known[:place]]
    assert [place + 1 for place in reading.order[: len(firsts)]] == firsts
    text = " and ".join(f"[{i}]" for i in numbers if i >= 0)
    assert read_answer(text, n).order == reading.order


@few
@given(
    sizes=st.lists(st.integers(0, 30), min_size=1, max_size=3), answers=st.lists(TEXTS, min_size=1),
    schedule=st.sampled_from(sorted(SCHEDULES)), passes=st.integers(1, 2),
    retries=st.integers(0, 2), backwards=st.booleans(),
)  # fmt: skip
def test_no_answers_lose_a_passage_and_every_window_is_counted(
    sizes, answers, schedule, passes, retries, backwards
):
    told = iter(range(10**9))
    given_texts = {}

    def answer(window):
        given_texts[window.key] = answers[next(told) % len(answers)]
        return given_texts[window.key]

    backend = Scripted(answer, backwards=backwards)
    candidates = frame(sizes)
    how = {"schedule": schedule, "window_size": 7, "stride": 4, "top_k": 3, "passes": passes}
    ranked, report = rank_lists(candidates, backend, max_retries=retries, **how)
    check_permutations(ranked, candidates)
    counts = dict.fromkeys(REPORT[1:7], 0)
    last = {key[:3] + key[4:]: (key, w) for w in backend.asked for key in [w.key]}
    for key, window in last.values():
        reading = read_answer(given_texts[key], len(window.passages))
        counts[f"n_{reading.status}"] += 1
        for name in ("n_missing", "n_repeated", "n_unknown"):
            counts[name] += getattr(reading, name)
    assert report[REPORT[1:7]].sum().to_dict() == counts
    assert report["n_windows"].sum() == count_calls(sizes, **how) == len(last)
    assert report["n_calls"].sum() == len(backend.asked)
    assert report["n_retries"].sum() == len(backend.asked) - len(last)


# --- report -------------------------------------------------------------------------------------


def test_a_report_counts_each_class_with_calls_and_tokens(caplog):
    """Window 3, stride 2 over 7 passages: starts 4, 2, 0; then one list of 3 and one of 1."""
    script = {
        ("q0", 4, 0): "[3] > [1] > [2]",
        ("q0", 2, 0): "sorry",
        ("q0", 2, 1): "[2] > [2] > [9]",
        ("q0", 0, 0): "",
        ("q0", 0, 1): "<think>",
        ("q0", 0, 2): "[4]",
        ("q1", 0, 0): "[A]",
    }

    def answer(window):
        text = script[window.query_id, window.start, window.attempt]
        return Answer(text=text, input_tokens=100, output_tokens=len(text), n_calls=2)

    with caplog.at_level(logging.WARNING):
        ranked, report = rank_lists(
            frame([7, 3, 1]), Scripted(answer), window_size=3, stride=2, max_retries=2
        )
    report = report.set_index("query_id")
    assert report.columns.tolist() == REPORT
    # windows, clean, repaired, unusable, missing, repeated, unknown, calls, retries, in, out
    written = 15 + 5 + 15 + 0 + 7 + 3
    assert report.loc["q0"].tolist() == [3, 1, 1, 1, 2 + 3, 1, 1 + 1, 12, 3, 600, written]
    assert report.loc["q1"].tolist() == [1, 0, 1, 0, 2, 0, 0, 2, 0, 100, 3]
    assert report.loc["q2"].tolist() == [0] * 11
    assert "1 of 4 windows had no usable answer: left in order" in caplog.text
    # 0 1 2 3 4 5 6 -> 0 1 2 3 6 4 5 -> 0 1 3 2 6 4 5 -> as it was
    assert order_of(ranked) == ["d0", "d1", "d3", "d2", "d6", "d4", "d5"]


def test_tokens_that_nobody_counted_are_not_reported_as_none_used():
    def answer(window):
        return Answer(text=by_worth(window), output_tokens=3 if window.start else None)

    _, report = rank_lists(frame([4, 2]), Scripted(answer), window_size=3, stride=1)
    assert report["input_tokens"].isna().all()
    assert report["output_tokens"].isna().all()


def test_only_unusable_windows_are_asked_again_and_only_where_that_can_help():
    texts = {"q0": "[1]", "q1": "no", "q2": "[2] > [1]"}
    for can_retry, asked in [(True, ["q0", "q1", "q2", "q1", "q1"]), (False, ["q0", "q1", "q2"])]:
        backend = Scripted(lambda window: texts[window.query_id], can_retry=can_retry)
        candidates = frame([2, 2, 2]).sort_values(["query_id", "rank"])
        _, report = rank_lists(candidates, backend, max_retries=2)
        assert [w.query_id for w in backend.asked] == asked
        assert [w.attempt for w in backend.asked] == [0, 0, 0, 1, 2][: len(asked)]
        assert report["n_unusable"].tolist() == [0, 1, 0]


@pytest.mark.parametrize(
    ("order", "status"),
    [((1, 0), "clean"), ((1,), "repaired"), ((1, 1), "repaired"), ((5, 1, 0), "repaired"),
     ((), "unusable"), ((-1, 2), "unusable")],
)  # fmt: skip
def test_orders_given_directly_are_counted_as_texts_are(order, status):
    backend = Scripted(lambda window: Answer(order=order), can_retry=False)
    ranked, report = rank_lists(frame([2]), backend)
    assert report[f"n_{status}"].tolist() == [1]
    assert order_of(ranked) == (["d0", "d1"] if status == "unusable" else ["d1", "d0"])


# --- log and resume -----------------------------------------------------------------------------


class Killed(Exception):
    pass


@pytest.mark.parametrize("schedule", ["sliding", "tournament"])
def test_a_killed_run_asks_no_window_twice(tmp_path, schedule):
    """Killed after every third answer until it gets through; the ranking is that of one run."""
    draw = random.Random(1)
    said = {}

    def answer(window):
        if window.key not in said:
            said[window.key] = draw.choice([by_worth(window), "[2]", "hm", "[3] > [3]"])
        return Answer(text=said[window.key], input_tokens=7, output_tokens=2)

    how = {"schedule": schedule, "window_size": 6, "stride": 3, "top_k": 3, "passes": 2}
    candidates, asked = frame([20, 13, 1, 6]), []
    expected = rank_lists(candidates, Scripted(answer), **how)

    def kill(window, _):
        asked.append(window.key)
        if len(asked) % 3 == 0:
            raise Killed

    for n_kills in range(40):
        try:
            log = AnswerLog(tmp_path / "answers.jsonl", teacher="t")
            found = rank_lists(candidates, Scripted(answer), answers=log, on_answer=kill, **how)
            break
        except Killed:
            continue
    assert 5 < n_kills < 39
    assert len(asked) == len(set(asked)) == expected[1]["n_calls"].sum()
    assert expected[1]["n_retries"].sum() > 0
    for ours, theirs in zip(found, expected, strict=True):
        pd.testing.assert_frame_equal(ours, theirs)


def test_an_answer_is_stored_before_the_next_one_is_asked(tmp_path):
    log = AnswerLog(tmp_path / "answers.jsonl", teacher="t")
    stored = []

    def answer(window):
        stored.append(len((tmp_path / "answers.jsonl").read_text().splitlines()) - 1)
        return by_worth(window)

    rank_lists(frame([5, 5, 5]), Scripted(answer), window_size=4, stride=2, answers=log)
    assert stored == list(range(6))


def test_a_finished_run_asks_nothing(tmp_path):
    path = tmp_path / "answers.jsonl"
    for n_asked in (6, 0):
        backend = Scripted(by_worth)
        log = AnswerLog(path, teacher="t")
        _, report = rank_lists(frame([5, 5, 5]), backend, window_size=4, stride=2, answers=log)
        assert len(backend.asked) == n_asked
        assert report["n_calls"].tolist() == [2, 2, 2]


def test_a_window_of_other_passages_is_asked_anew(tmp_path):
    log = AnswerLog(tmp_path / "answers.jsonl", teacher="t")
    for seed, n_asked in [(0, 1), (0, 0), (1, 1)]:
        backend = Scripted(by_worth)
        rank_lists(frame([5], seed=seed), backend, answers=log)
        assert len(backend.asked) == n_asked


# --- refusals -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "telling"),
    [
        ({"schedule": "heap"}, "schedule among .*'tournament'.*got 'heap'"),
        ({"window_size": 1}, "window_size >= 2, got 1"),
        ({"stride": 0}, r"stride in 1\.\.20, got 0"),
        ({"stride": 21}, "got 21: more would pass over passages"),
        ({"schedule": "tournament", "top_k": 11}, r"top_k in 1\.\.10, half a window, got 11"),
        ({"schedule": "tournament", "top_k": 0}, "got 0"),
        ({"passes": 0}, "passes >= 1.*got 0"),
        ({"max_retries": -1}, "max_retries >= 0; got 1, -1"),
    ],
)
@pytest.mark.parametrize("sizes", [[], [3]])
def test_options_that_do_not_fit_are_refused(options, telling, sizes):
    with pytest.raises(ValueError, match=telling):
        rank_lists(frame(sizes), Scripted(by_worth), **options)


@pytest.mark.parametrize(
    ("change", "telling"),
    [
        (lambda f: f.drop(columns="text"), "columns .*'text'.*merge queries and passages"),
        (lambda f: f.assign(query_id=1), "query_id as strings; given int64"),
        (lambda f: f.assign(text=["a", None, "b"]), "text as strings; given .* 1 missing"),
        (lambda f: f.assign(rank=[1, None, 2]), "a rank in every row"),
        (lambda f: f.assign(doc_id="d"), r"once per query; given twice .*\['q0', 'd'\]"),
        (lambda f: f.assign(query=["a", "b", "a"]), r"one text per query; .*several for \['q0'"),
    ],
)
def test_candidates_that_do_not_fit_are_refused(change, telling):
    with pytest.raises(ValueError, match=telling):
        rank_lists(change(frame([3])), Scripted(by_worth))


@pytest.mark.parametrize(
    ("change", "telling"),
    [
        (lambda answers: answers[:1], "each of 3 windows, got none for 2, .*correct Wrong.ask"),
        (lambda answers: answers * 2, "got a second one for .*correct Wrong.ask"),
    ],
    ids=["skips", "doubles"],
)
def test_a_backend_that_skips_or_doubles_windows_is_refused(change, telling):
    class Wrong(Scripted):
        def ask(self, windows):
            return change(list(super().ask(windows)))

    with pytest.raises(ValueError, match=telling):
        rank_lists(frame([2, 2, 2]), Wrong(by_worth))


def test_no_candidates_give_no_rows():
    ranked, report = rank_lists(frame([]), Scripted(by_worth))
    assert ranked.columns.tolist() == [*frame([]).columns, "teacher_rank"]
    assert report.columns.tolist() == ["query_id", *REPORT]
    assert len(ranked) == len(report) == 0


def test_rows_keep_their_order_and_labels_whatever_these_are():
    candidates = frame([7]).set_index(pd.Index([3] * 7))
    ranked, _ = rank_lists(candidates, Scripted(by_worth))
    mixed = frame([3, 2, 4]).sort_values("query_id", ascending=False, kind="stable")
    _, report = rank_lists(mixed, Scripted(by_worth))
    assert report["query_id"].tolist() == mixed["query_id"].unique().tolist()
    pd.testing.assert_index_equal(ranked.index, candidates.index)
    assert "teacher_rank" not in candidates
    worth = ranked["text"].astype(int).rank(ascending=False).astype(int)
    assert ranked["teacher_rank"].tolist() == worth.tolist()


# --- prompts ------------------------------------------------------------------------------------


def test_a_prompt_shows_passages_in_order_and_asks_for_the_ranking():
    passages = ["a fox", "see [2] and [A, B];\n [12]", "c d e f"]
    text = listwise_prompt("red\nfox", passages, max_words=3)
    assert text.startswith("Query: red fox\n\n[1] a fox\n[2] see (2) and\n[3] c d e\n\n")
    assert 'the query "red fox"' in text
    assert read_answer(text, 3).n_missing == 0  # names its passages, and no others
    assert read_answer(text, 3).n_unknown == 0


def test_letters_name_at_most_26_passages():
    text = listwise_prompt("q", ["x"] * 26, letters=True)
    assert "\n[A] x\n" in text
    assert "\n[Z] x\n" in text
    with pytest.raises(ValueError, match="at most 26 passages where letters name them, got 27"):
        listwise_prompt("q", ["x"] * 27, letters=True)


def test_an_answer_is_either_a_text_or_an_order():
    for wrong in ({}, {"text": "[1]", "order": (0,)}):
        with pytest.raises(ValueError, match="either text or order"):
            Answer(**wrong)


def test_windows_of_nothing_are_refused():
    with pytest.raises(ValueError, match="at least 1 passage, got 0"):
        read_answer("[1]", 0)


def test_windows_are_told_apart_by_all_that_a_prompt_shows():
    same = {"query_id": "q", "query": "x", "doc_ids": ("a", "b"), "passages": ("c", "d")}
    changes = [
        {}, {"query_id": "r"}, {"query": "y"}, {"doc_ids": ("b", "a")}, {"passages": ("d", "c")},
        {"passages": ("cd", "")}, {"pass_number": 2}, {"start": 1}, {"attempt": 1},
    ]  # fmt: skip
    assert len({Window(**same | change).key for change in changes}) == len(changes)
    assert Window(**same).key == Window(**same).key
