"""Windows by hand, lists that lose nothing whatever is answered, reports that add up."""

import random
from types import SimpleNamespace

import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rdl_core.teachers.answers import Answer, identifiers, read_answer
from rdl_core.teachers.listwise import plan_windows, rank_lists

LAZY = SimpleNamespace(can_retry=True, ask=lambda windows: [(0, Answer(text=""))])
STATUSES, FAULTS = ["n_clean", "n_repaired", "n_unusable"], ["n_missing", "n_repeated", "n_unknown"]
REPORT = ["n_windows", *STATUSES, *FAULTS, *"n_calls n_retries input_tokens output_tokens why".split()]


class Scripted:
    """Answers by a function of the window, last window first; remembers what it was asked."""

    can_retry = True

    def __init__(self, answer):
        self.answer, self.calls, self.asked = answer, [], []

    def ask(self, windows):
        self.calls.append(len(windows))
        self.asked += windows
        for number, window in reversed(list(enumerate(windows))):
            answer = self.answer(window)
            yield number, answer if isinstance(answer, Answer) else Answer(text=answer)


def by_worth(window):
    best = sorted(range(len(window.passages)), key=lambda i: -int(window.passages[i]))
    return " > ".join(f"[{i + 1}]" for i in best)


def frame(sizes, seed=0):
    """Lists of so many passages: texts are their worths, integers; rows shuffled, labels all alike."""
    draw = random.Random(seed)
    lists = enumerate(draw.sample(range(1000), n) for n in sizes)
    rows = [(f"q{q}", f"query {q}", f"d{i}", i + 1, str(worth))
            for q, worths in lists for i, worth in enumerate(worths)]  # fmt: skip
    draw.shuffle(rows)
    columns = ["query_id", "query", "doc_id", "rank", "text"]
    table = pd.DataFrame(rows, columns=columns, index=[3] * len(rows))
    return table.astype(dict.fromkeys(columns, "str") | {"rank": int})


def test_windows_are_those_computed_by_hand_and_queries_advance_in_lockstep():
    """Loops that end when the start goes negative never see the first 9 of 99."""
    sliding = {1: [], 7: [0], 20: [0], 21: [1, 0], 99: [*range(79, 0, -10), 0]}
    for n, starts in (sliding | {100: [*range(80, -1, -10)]}).items():
        backend = Scripted(lambda window: " > ".join(identifiers(len(window.passages))))
        ranked, _ = rank_lists(frame([n]), backend)
        assert [w.start for w in backend.asked] == starts
        assert {len(w.passages) for w in backend.asked} <= {min(n, 20)}
        assert (ranked["teacher_rank"] == ranked["rank"]).all()
    rank_lists(frame([100, 7, 40, 1]), lockstep := Scripted(by_worth))
    assert lockstep.calls == [3, 2, 2] + [1] * 6
    assert {w.query_id for w in lockstep.asked[:3]} == {"q0", "q1", "q2"}


def test_what_each_pass_and_window_sorts_is_certain():
    """Each pass of window 4, stride 2 makes two more places certain: 10 passages need 4 passes."""
    cases = [(10, 4, 2, passes, sure) for passes, sure in [(1, 2), (2, 4), (3, 6), (4, 10)]]
    cases += [(n, 20, 10, 1, 10) for n in (2, 20, 21, 64, 95, 100)] + [(95, 95, 95, 1, 95)]
    for n, window_size, stride, passes, sure in cases:
        how = {"window_size": window_size, "stride": stride, "passes": passes}
        ranked, _ = rank_lists(frame([n, n]), Scripted(by_worth), **how)
        worth = ranked["text"].astype(int).groupby(ranked["query_id"]).rank(ascending=False)
        first = ranked["teacher_rank"] <= sure
        assert ranked.loc[first, "teacher_rank"].tolist() == worth[first].tolist()


PIECES = st.sampled_from(
    "[ ] [1] [2] [20] [21] [0] > [A] [t] [U] 12 <think> [²] </think> ［５］ [٣] ² [1,2] ]3[ İ 🙂".split()
    + ["\n", "\ud800", " "]
)
TEXTS = st.one_of(st.text(max_size=60), st.lists(PIECES, max_size=40).map("".join))


@settings(derandomize=True, deadline=None, max_examples=80, database=None)
@given(sizes=st.lists(st.integers(0, 30), max_size=3), passes=st.integers(1, 2),
       said=st.lists(TEXTS, min_size=1), retries=st.integers(0, 2))  # fmt: skip
def test_no_answers_lose_a_passage_and_every_window_is_counted(sizes, said, passes, retries):
    texts, candidates = {}, frame(sizes)
    backend = Scripted(lambda w: texts.setdefault(w.key, said[len(texts) % len(said)]))
    how = {"window_size": 7, "stride": 4, "passes": passes, "max_retries": retries}
    ranked, report = rank_lists(candidates, backend, **how)
    pd.testing.assert_frame_equal(ranked.drop(columns="teacher_rank"), candidates)
    assert report.columns.tolist() == ["query_id", *REPORT]
    assert report["query_id"].tolist() == candidates["query_id"].unique().tolist()
    for _, ranks in ranked.groupby("query_id")["teacher_rank"]:
        assert sorted(ranks) == list(range(1, len(ranks) + 1))
    assert all(2 <= len(window.passages) <= 7 for window in backend.asked)
    last = {w.key[:3] + w.key[4:]: w for w in backend.asked}
    readings = [read_answer(texts[w.key], len(w.passages)) for w in last.values()]
    statuses, sums = [f"n_{reading.status}" for reading in readings], report.sum(numeric_only=True)
    assert sums[STATUSES].tolist() == [*map(statuses.count, STATUSES)]
    assert sums[FAULTS].tolist() == [sum(getattr(r, name) for r in readings) for name in FAULTS]
    planned, n_calls = passes * sum(len(plan_windows(n, **how)) for n in sizes), len(backend.asked)
    counts = ["n_windows", "n_calls", "n_retries"]
    assert sums[counts].tolist() == [planned, n_calls, n_calls - planned]
    assert planned == len(last)


def test_a_report_counts_each_class_with_calls_and_tokens(caplog):
    """Window 3, stride 2 over 7 passages: starts 4, 2, 0; no answers where no retry is needed."""
    script = {
        ("q0", 4, 0): "[3] > [1] > [2]", ("q0", 2, 0): "sorry", ("q0", 2, 1): "[2] > [2] > [9]",
        ("q0", 0, 0): "", ("q0", 0, 1): "<think>", ("q0", 0, 2): "[4]", ("q1", 0, 0): "[A]",
    }  # fmt: skip

    def answer(window):
        text = script[window.query_id, window.start, window.attempt]
        return Answer(text=text, input_tokens=100, output_tokens=len(text), n_calls=2)

    how = {"window_size": 3, "stride": 2, "max_retries": 2}
    ranked, report = rank_lists(frame([7, 3, 1]), Scripted(answer), **how)
    report = report.set_index("query_id")
    # windows, clean, repaired, unusable, missing, repeated, unknown, calls, retries, in, out
    written, why = 15 + 5 + 15 + 0 + 7 + 3, "no ranking in the answer"
    assert report.loc["q0"].tolist() == [3, 1, 1, 1, 2 + 3, 1, 1 + 1, 12, 3, 600, written, why]
    assert report.loc["q1"].tolist() == [1, 0, 1, 0, 2, 0, 0, 2, 0, 100, 3, ""]
    assert report.loc["q2"].tolist() == [0] * 11 + [""]
    assert f"1 of 4 windows had no usable answer, left in order: {why} (1 times)" in caplog.text
    # 0 1 2 3 4 5 6 -> 0 1 2 3 6 4 5 -> 0 1 3 2 6 4 5 -> as it was
    ranked = ranked[ranked["query_id"] == "q0"].sort_values("teacher_rank")
    assert ranked["doc_id"].tolist() == ["d0", "d1", "d3", "d2", "d6", "d4", "d5"]
    partly = Scripted(lambda window: Answer(text="[1]", output_tokens=window.start or None))
    _, report = rank_lists(frame([7]), partly)
    assert report[["input_tokens", "output_tokens"]].isna().all(axis=None)  # nobody counted some


@pytest.mark.parametrize(("change", "own", "says"), [
    (dict, {"passes": 0}, "passes: .*got 0"), (dict, {"windowsize": 3}, "windowsize: unknown"),
    (lambda f: f.drop(columns="text"), {}, "candidates lack text: merge queries and passages"),
    (lambda f: f.assign(query_id=1.0), {}, "row 1: expected an id that is a str or an integer"),
    (lambda f: f.assign(text=["a", None, "b"]), {}, "row 2: expected text as a str; got None"),
    (lambda f: f.assign(rank=[1, None, 2]), {}, "row 1: expected rank as an integer"),
    (lambda f: f.assign(doc_id="d"), {}, r"row 2: expected each .* once; got \['q0', 'd'\] again"),
    (lambda f: f.assign(query=["a", "b", "a"]), {}, "query 'q0' has several texts"),
    (lambda f: frame([2, 2, 2]), {"backend": LAZY}, "SimpleNamespace.ask gave no answer for 2 of"),
])  # fmt: skip
def test_options_candidates_and_backends_that_do_not_fit_are_refused(change, own, says):
    with pytest.raises(ValueError, match=says):
        rank_lists(change(frame([3])), **{"backend": Scripted(by_worth)} | own)
