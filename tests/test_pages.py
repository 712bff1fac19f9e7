"""Numbers in the prose are those of the profiles, the recorded runs and the published tables."""

import re
from importlib import import_module
from inspect import ismodule

import pandas as pd

from rdl_core.data import pydocs
from rdl_core.data.collections import load
from rdl_core.evaluate import compare
from rdl_core.teachers.listwise import plan_windows
from rdl_study import tables
from rdl_study.bench.race import ratios, recorded
from rdl_study.notebook import cells, notebooks
from rdl_study.profile import load_profile
from rdl_study.store import project_folder
from rdl_study.tables import published

ROOT = project_folder()


def text(name):
    return " ".join((ROOT / name).read_text().split())


def test_what_examples_import_is_there_and_no_module_of_that_name():
    imported = []
    for page in (ROOT / "README.md", *ROOT.glob("book/**/*.md")):
        for module, names in re.findall(r"(?m)^from (rdl_[\w.]+) import (.+)$", page.read_text()):
            imported += [getattr(import_module(module), name) for name in names.split(", ")]
    assert len(imported) > 10
    assert not [x for x in imported if ismodule(x)]


def test_every_parameter_of_a_notebook_is_in_the_table():
    page = (ROOT / "book/run_it_yourself.md").read_text()
    for name in notebooks():
        row = re.search(rf"^\| `{name}` \| (.+) \|$", page, re.MULTILINE)[1]
        source = next(source for tags, source in cells(name) if "parameters" in tags)
        names = set(re.findall(r"^(\w+) =", source, re.MULTILINE)) - {"profile"}
        assert names <= set(re.findall(r"`(\w+)`", row)), name


def test_divergences_say_how_much_the_recorded_students_saw():
    page, profile = text("book/divergences.md"), load_profile("trec-dl")
    stages = (profile.stage1.training, profile.stage2.training)
    first, second = (x.steps * x.queries_per_step * x.list_size for x in stages)
    assert f"Stage 1 sees {first:,} passages, stage 2 another {second:,}" in page
    assert f"comes to {(20_000 * 32 * 8 + 3 * 10_000 * 100) / 1e6:.1f} million" in page
    limits = profile.query_tokens, profile.passage_tokens
    assert "queries are cut to {} tokens, passages to {}".format(*limits) in page
    assert "untouched, cannot be told from the student" in page
    values = tables.recorded("effectiveness", "bm25").values[["student", "bi-encoder"]]
    assert not compare(values, "bi-encoder").loc["student", "significant"]


def test_factor_of_the_abstract_is_that_of_the_published_times():
    seconds = published("efficiency")["seconds_per_query"]
    student, teacher = seconds["monoELECTRA-base"], seconds["RankZephyr-7B"]
    assert f"${teacher} / {student} = {teacher / student:.1f}$" in text("book/divergences.md")
    overview = text("book/method/overview.md")
    assert f"{student:.3f} seconds per query" in overview
    assert f"{teacher:.1f} seconds" in overview


def test_pages_on_teacher_and_data_count_as_the_code_does():
    assert len(plan_windows(100)) == 9
    assert "A list of 100 takes nine calls" in text("book/method/teacher.md")
    page = text("book/method/data.md")
    assert ", ".join(f"{100 * share:.0f} % {name}" for name, share in pydocs.SPLITS.items()) in page
    words = load("rdl/pydocs/test").queries["query"].str.split().str.len()
    low, high = map(int, re.search(r"(\d+) to (\d+) words\. Sentences", page).groups())
    assert low <= words.min() <= words.max() <= high


def test_readme_says_what_was_recorded_and_raced():
    readme, values = text("README.md"), tables.recorded("effectiveness", "bm25").values
    mean = values.mean().map("{:.3f}".format).str[1:]
    assert f"({len(values)} queries" in readme
    assert f"reaches nDCG@10 {mean['student']}; BM25 has {mean['first stage']}, RankVicuna" in readme
    assert f"RankVicuna {mean['teacher (rank_vicuna)']}, and the bi-encoder" in readme
    assert f"started from {mean['bi-encoder']}" in readme
    adopted = pd.read_csv(ROOT / "results" / "trec-dl" / "adopted.csv")
    mean = adopted.groupby(["system", "first_stage"])["nDCG@10"].mean().map("{:.3f}".format).str[1:]
    worst = f"SPLADE++ {mean['first stage', 'splade']}, re-ranked {mean['student', 'splade']}"
    mean = adopted.groupby("system")["nDCG@10"].mean().map("{:.3f}".format).str[1:]
    assert f"({worst})" in readme
    assert f"mean rises from {mean['first stage']} to {mean['adopted']}" in readme
    of_each = adopted.pivot(columns="system", index=["first_stage", "query_id"], values="nDCG@10")
    for _, values in of_each.groupby("first_stage"):
        assert compare(values.droplevel(0), "first stage").loc["adopted", "delta_high"] > 0
    docs = tables.recorded("effectiveness", "bm25", "docs").values.mean().map("{:.3f}".format).str[1:]
    assert f"BM25's {docs['first stage']} to {docs['student']}" in readme
    assert f"the LLM itself has {docs['smollm2']}" in readme
    assert f"level with the LLM ({docs['student + bi-encoder + first stage']}" in readme
    few = tables.recorded("depth", "queries", "docs").values.mean().map("{:.3f}".format).str[1:]
    says = f"250 give {few['250 queries']}, 1,000 give {few['1000 queries']}, 3,000 as much as all 5,720"
    assert f"{says} ({few['all queries']})." in readme
    assert few["3000 queries"] == few["all queries"]
    several = compare(tables.recorded("depth", "queries, several seeds", "docs").values, "250 queries")
    ahead = several.loc["all queries", ["delta", "delta_low", "delta_high"]].map("{:.3f}".format).str[1:]
    assert "ahead of 250 by {} ({} to {})".format(*ahead) in readme
    random = compare(tables.recorded("negatives", "hardness", "docs").values, "negatives from random")
    hard = random.loc["negatives from bm25+bi_encoder", ["delta", "delta_low", "delta_high"]]
    cost = "cost stage 1 {} ({} to {})".format(*hard.map("{:.3f}".format).str[1:])
    assert cost in " ".join(readme.split())
    starts = tables.recorded("negatives", "starts", "docs").values
    mean, beside = starts.mean().map("{:.3f}".format).str[1:], compare(starts, "pseudo-labels")
    says = f"gets to {mean['pseudo-labels']}, from labels to {mean['judgments']}, which cannot be told apart"
    assert f"{says}; without a stage 1 to {mean['none']}" in " ".join(readme.split())
    assert beside.loc["judgments", "delta_low"] < 0 < beside.loc["judgments", "delta_high"]
    timings = recorded("rank").timings
    theirs = timings[timings["system"].str.startswith("sentence-transformers")]
    best = theirs.groupby("system")["ms"].median().idxmin()
    times = ratios(timings, best).loc["ours", "median"]
    assert f"ranks {times:.2f} times as fast as sentence-transformers" in readme
    again = (ratios(recorded(x).timings, best).loc["ours", "median"] for x in ("runtimes", "runtimes_avx2"))
    assert "{:.2f} times on a Xeon, {:.2f} times without AVX-512".format(*again) in readme
    times = ratios(recorded("window").timings, "listwise LLM (7B), a window")["median"]
    factor = 9 * times["ours, ELECTRA-base"]  # nine windows of 20 by 10 in a list of 100
    assert f"takes {factor:.0f} times as long as a student of ELECTRA-base" in readme
