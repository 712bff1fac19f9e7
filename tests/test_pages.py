"""Numbers in the prose are those of the profiles, the recorded runs and the published tables.

Mutations seen to fail: other steps in the profile; another factor, number of calls, share of a
split or order of student and bi-encoder on a page.
"""

import re

import pandas as pd

from rdl_core.data import pydocs
from rdl_core.data.collections import load
from rdl_study.bench import ratios
from rdl_study import speed
from rdl_study.profile import load_profile
from rdl_study.store import project_folder
from rdl_study.tables import published
from rdl_core.teachers.listwise import count_calls, plan_windows

BOOK = project_folder() / "book"


def seen(stage):
    """Passages that a stage trains on, repetitions counted."""
    training = stage.training
    return training.steps * training.queries_per_step * training.list_size


def test_divergences_say_how_much_the_recorded_students_saw():
    page, profile = (BOOK / "divergences.md").read_text(), load_profile("trec-dl")
    first, second = seen(profile.stage1), seen(profile.stage2)
    assert f"Stage 1 sees {first:,} passages, stage 2 another {second:,}" in page
    paper = (20_000 * 32 * 8 + 3 * 10_000 * 100) / 1e6
    assert f"comes to {paper:.1f} million" in page
    cut = f"queries are cut to {profile.query_tokens} tokens, passages to {profile.passage_tokens}"
    assert cut in page


def test_divergences_name_the_order_of_student_and_bi_encoder():
    assert "untouched, beats the student" in (BOOK / "divergences.md").read_text()
    table = pd.read_csv(project_folder() / "results" / "trec-dl" / "effectiveness.csv")
    means = table.groupby("system")["nDCG@10"].mean()
    assert means["first stage"] < means["student"] < means["bi-encoder"]


def test_factor_of_the_abstract_is_that_of_the_published_times():
    seconds = published("efficiency")["seconds_per_query"]
    student, teacher = seconds["monoELECTRA-base"], seconds["RankZephyr-7B"]
    page = (BOOK / "divergences.md").read_text()
    assert f"${teacher} / {student} = {teacher / student:.1f}$" in page
    overview = (BOOK / "method" / "overview.md").read_text()
    assert f"{student:.3f} seconds per query" in overview
    assert f"{teacher:.1f} seconds" in overview


def test_page_on_the_teacher_counts_as_the_code_does():
    page = (BOOK / "method" / "teacher.md").read_text()
    assert count_calls([100]) == len(plan_windows(100)) == 9
    assert "A list of 100 takes nine calls" in page


def test_table_of_collections_has_the_embedded_ones_words_right():
    """The page names shares and words; the collection is made by them."""
    page = (BOOK / "method" / "data.md").read_text()
    train, dev, test = (f"{100 * share:.0f} % {name}" for name, share in pydocs.SPLITS.items())
    assert f"{train}, {dev}, {test}" in page
    words = load("rdl/pydocs/test").queries["query"].str.split().str.len()
    low, high = map(int, re.search(r"(\d+) to (\d+) words\. Sentences", page).groups())
    assert low <= words.min()
    assert words.max() <= high


def test_readme_says_what_was_recorded():
    readme = " ".join((project_folder() / "README.md").read_text().split())
    table = pd.read_csv(project_folder() / "results" / "trec-dl" / "effectiveness.csv")
    table = table[table["part"] == "bm25"]
    by_query = table.groupby(["system", "query_id"])["nDCG@10"].mean()
    mean = by_query.groupby("system").mean().map(lambda value: f"{value:.3f}".lstrip("0"))
    assert f"({by_query['student'].size} queries" in readme
    assert f"BM25 {mean['first stage']}, the student {mean['student']}, its teacher" in readme
    assert f"(7 B) {mean['teacher (rank_vicuna)']}, the bi-encoder" in readme
    assert f"started from {mean['bi-encoder']}" in readme


def test_readme_says_what_was_raced():
    readme = " ".join((project_folder() / "README.md").read_text().split())
    ranked, trained = (speed.recorded(part).timings for part in ("rank", "train"))
    theirs = ranked[ranked["system"].str.startswith("sentence-transformers")]
    best = theirs.groupby("system")["ms"].median().idxmin()
    times = [ratios(ranked, name).loc["ours", "median"] for name in (best, "Lightning IR")]
    assert f"100 passages {times[0]:.2f} times as fast as sentence-transformers" in readme
    assert f"and {times[1]:.2f} times as fast as Lightning IR" in readme
    theirs = trained[trained["system"].str.startswith("sentence-transformers")]
    best = theirs.groupby("system")["ms"].median().idxmin()
    step = ratios(trained, best).loc["ours", "median"]
    assert f"on a list of 32 {step:.2f} times as fast" in readme
