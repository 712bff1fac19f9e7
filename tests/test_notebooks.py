"""The notebooks: what they declare; and run at a tiny profile, that they show what is computed."""

import ast
import json
import re
from dataclasses import replace
from functools import cache

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
import torch
import yaml

import rdl_study as study
from rdl_core.data.collections import load
from rdl_core.losses import LOSSES
from rdl_study.graph import declarations
from rdl_study.notebook import cells, declared, notebooks
from rdl_study.store import project_folder

FOLDER = project_folder() / "notebooks"
MINI = study.load_profile("mini")
VARIED = ("effectiveness", "negatives", "depth", "loss", "teacher")
MEASURED = (*VARIED, "out_of_domain")
NOTEBOOKS = notebooks()
pytestmark = pytest.mark.usefixtures("runs")


@cache
def read(name):
    import nbformat  # takes longer than torch, and other workers need none

    return nbformat.read(FOLDER / f"{name}.ipynb", as_version=4)


def code(notebook, tag=None):
    cells = [cell for cell in notebook.cells if cell.cell_type == "code"]
    return [cell for cell in cells if tag in (None, *cell.metadata.get("tags", []))]


def executed(name, **values):
    """All that a notebook's cells define, run in order in this process, but for an LLM's part."""
    plt.switch_backend("agg")
    namespace = {}
    for tags, source in cells(name):
        if "LocalConfig" in source:  # `make book` runs it
            break
        exec(compile(source, name, "exec"), namespace)
        if "parameters" in tags:
            namespace |= values
    plt.close("all")
    return namespace


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    """A folder in BEIR's layout: 40 embedded queries, their passages and others."""
    folder, dev = tmp_path_factory.mktemp("corpus"), load("rdl/pydocs/dev")
    queries = dev.queries[:40]
    qrels = dev.qrels[dev.qrels["query_id"].isin(queries["query_id"])]
    passages = pd.concat([dev.passages_of(qrels["doc_id"]), dev.passages[:600]])
    passages = passages.drop_duplicates("doc_id")
    for name, frame in (("queries", queries), ("corpus", passages)):
        frame.set_axis(["_id", "text"], axis=1).to_json(
            folder / f"{name}.jsonl", orient="records", lines=True
        )
    (folder / "qrels").mkdir()
    renamed = qrels.set_axis(["query-id", "corpus-id", "score"], axis=1)
    renamed.to_csv(folder / "qrels" / "test.tsv", sep="\t", index=False)
    return str(folder)


@pytest.fixture(scope="module")
def pages(runs, tiny, corpus):
    """Namespace of a page at the tiny profile; each is executed once."""
    teachers = ["fused", "first_stage", "judgments"]  # no LLM is asked
    corpus = {"collection": corpus, "n_train": 28, "n_passes": 1}
    own = {"your_corpus": corpus, "teacher": {"teachers": teachers}}
    own["negatives"] = {"first_stages": ["bm25"], "starts": ["none", "crops", "judgments"]}
    return cache(lambda name: executed(name, profile=tiny, **own.get(name, {})))


@pytest.mark.parametrize("name", NOTEBOOKS)
def test_a_notebook_is_stored_without_outputs_and_can_be_read_through(name):
    content = read(name)
    assert content.metadata.kernelspec.name == "python3"
    assert not any(cell.outputs or cell.execution_count for cell in code(content))
    assert code(content, "parameters") == code(content)[:1]
    source = code(content)[0].source
    for statement in ast.parse(source).body:
        ast.literal_eval(statement.value)
        assert "#" in source.splitlines()[statement.lineno - 1], "say what each one is, with its unit"
    hidden, systems = code(content, "hide-input"), code(content, "systems")
    shown = [cell.source for cell in code(content) if cell not in hidden]
    least, most = (40, 80) if name in (*VARIED, "efficiency") else (0, 150)
    assert least <= len(re.findall(r"(?m)^.*\S", "\n".join(shown))) <= most
    assert len(systems) == (name not in ("pictures", "costs"))
    if name not in ("start", "ten_minutes"):  # a page's systems are what it is about
        assert not [cell for cell in systems if cell in hidden]


def test_figures_have_alternative_texts_captions_and_names_of_their_own():
    all_cells = [cell for name in NOTEBOOKS for cell in code(read(name))]
    drawn = [cell for cell in all_cells if re.search(r"(?m)^figure\b.* = ", cell.source)]
    figures = [cell.metadata["mystnb"] for cell in drawn]
    texts = [text for x in figures for text in (x["image"]["alt"], x["figure"]["caption"])]
    assert min(map(len, texts)) > 20
    names = {x["figure"]["name"] for x in figures if x["figure"]["name"].startswith("fig-")}
    assert len(names) == len(figures) > 15


def test_every_notebook_takes_what_every_profile_gives_it():
    for path in project_folder().glob("profiles/*.yaml"):
        assert declarations(path.stem).keys() == {*NOTEBOOKS}


@pytest.mark.parametrize(("profile", "name"), [
    (profile, name) for profile in ("docs", "trec-dl") for name in MEASURED
    if (project_folder() / "results" / profile / f"{name}.csv").exists()
])  # fmt: skip
def test_pages_declare_the_systems_that_were_recorded(profile, name):
    file = project_folder() / "results" / profile / f"{name}.csv"
    recorded = json.loads(file.with_suffix(".json").read_text())["parts"]
    parts, systems = declarations(profile, [name])[name], pd.read_csv(file).groupby("part")["system"]
    assert parts.keys() & recorded.keys()
    for part in parts.keys() & recorded.keys():  # some parts were recorded from other profiles
        assert set(systems.get_group(part)) <= parts[part].systems.keys()
        assert recorded[part]["baseline"] == parts[part].baseline


def test_students_differ_in_what_the_page_is_about():
    students = declared("loss", {"profile": MINI})["losses"].systems
    last = {name: student.stages[-1].training for name, student in students.items()}
    assert [training.loss for training in last.values()] == list(last)
    assert len({repr(replace(training, loss="ranknet")) for training in last.values()}) == 1
    depth = declared("depth", {"profile": MINI})["depths"].systems["depth 5"].stages[1]
    # about as many passages in a step as 4 lists of 8
    steps = depth.lists.depth, depth.training.list_size, depth.training.queries_per_step
    assert steps == (5, 5, 6)
    negatives = declared("negatives", {"first_stages": ["bm25", "random"]})["first stages"].systems
    stages = negatives["dual, lists from random"].stages
    assert [stage.lists.first_stage for stage in stages] == ["bm25+bi_encoder", "random"]


def test_losses_of_the_order_alone_get_one_student_and_step_sizes_see_as_many_passages(pages):
    scores, targets = torch.randn(2, 4, 6, generator=torch.Generator().manual_seed(0))
    ranked = targets.argsort(1).argsort(1).float()
    alike = {name for name, x in LOSSES.items() if torch.equal(x(scores, targets), x(scores, ranked))}
    assert pages("loss")["ORDER_ALONE"] == alike
    values = {"profile": replace(MINI, ablation_steps=64), "targets": ["scores", "teacher"]}
    parts = declared("loss", {**values, "losses": ["kl_div", "bce"], "tournament": ["kl_div", "bce"]})
    assert list(parts["losses"].systems) == ["kl_div, scores", "kl_div", "bce"]
    one, many = (parts["tournament"].systems[f"bce, {n} a step"].stages[1].training for n in (1, 32))
    assert one.steps == 32 * many.steps
    assert many.learning_rate == pytest.approx(one.learning_rate * 32**0.5)


def test_learning_rates_are_compared_on_dev_queries():
    rates = declared("loss", {"profile": MINI, "learning_rates": [1e-4, 3e-4]})["rates"]
    assert rates.profile.test.collection == "rdl/pydocs/dev"
    assert len(rates.systems) == 2 * len(declared("loss", {"profile": MINI})["losses"].systems)
    assert rates.systems["ranknet, 0.0003"].stages[-1].training.learning_rate == 3e-4


@pytest.mark.parametrize("name", [x for x in NOTEBOOKS if x not in ("start", "costs")])
def test_what_a_page_asks_to_change_can_be_changed(name):
    """The negatives page once asked for a first stage without which it had no baseline."""
    text = "\n".join(x.source for x in read(name).cells if x.cell_type == "markdown")
    text = text.partition("## Change one thing")[2].partition("\n## ")[0]
    values = {name: ast.literal_eval(x) for name, x in re.findall(r"`(\w+) = ([^`]+)`", text)}
    values |= {name: yaml.safe_load(x) for name, x in re.findall(r"-p (\w+) \"(\[[^\"]+)\"", text)}
    assert values or name == "ten_minutes", "ask for something that can be tried"
    of_profile = {key: yaml.safe_load(x) for key, x in re.findall(r"`([\w.]+): ([^`]+)`", text)}
    given = MINI.notebooks.get(name, {})
    before = declared(name, {"profile": MINI} | given)
    after = declared(name, {"profile": replace(MINI, **of_profile)} | given | values)
    assert (after != before) == bool(before or after) or name in ("ten_minutes", "efficiency")


@pytest.mark.parametrize("name", MEASURED)  # others are run below
def test_a_page_runs_and_measures_what_it_declares(name, pages):
    values = {part: measured.values for part, measured in pages(name)["results"].items()}
    systems = {name: list(part.systems) for name, part in pages(name)["parts"].items()}
    assert {part: list(table) for part, table in values.items()} == systems
    assert all(table.notna().all(axis=None) for table in values.values())


def test_the_worked_example_is_what_the_study_computes(pages):
    page = pages("ten_minutes")
    pairs, n, logged = page["pairs"], len(page["ranks"]), page["log"]["loss"][0]
    assert len(pairs) == n * (n - 1) / 2
    assert float(pairs["loss"].mean()) == pytest.approx(page["loss"].item(), abs=1e-6)
    each = (1 - pairs["chance"]) / len(pairs)
    push = np.bincount(pairs["above"], each, n) - np.bincount(pairs["below"], each, n)
    np.testing.assert_allclose(page["push"], push, atol=1e-6)
    computed = page["by_hand"].item(), page["line"]["loss"]
    assert computed == pytest.approx((logged, logged), abs=1e-6)
    assert page["line"]["learning_rate"] == pytest.approx(0.01 / 20)
    before, one, every = page["losses"].values()
    assert before[0] != one[0] != every[0]


def test_losers_come_first_and_what_moved_is_shown(pages):
    page = pages("effectiveness")
    values = pd.DataFrame({"first stage": [0.5] * 4, "student": [0.1, 0.5, 0.9, 0.6]}, list("wxyz"))
    assert page["extremes"](values, 1).index.tolist() == ["w", "y"]
    assert page["extremes"](values, 9).index.tolist() == ["w", "z", "y"]
    text, moved = "".join(page["blocks"]), page["moved"]
    assert text.count("<li>") == len(moved) > 0
    assert all(f"rank {x.before} → {x.after}" in text for x in moved.itertuples())
    came, left = text.split("</details>")[0].split("had to leave it: ")
    came, left = (list(map(int, re.findall(r"rank \d+ → (\d+)", half))) for half in (came, left))
    assert came == sorted(came)
    assert max(came) <= 3 < min(left)


def test_agreement_is_kendalls_tau_and_the_shared_top(pages):
    """Two answers that differ in one swap over a third, next to a first stage turned round."""
    run = pd.DataFrame({"query_id": "q", "doc_id": [*"abcdefghijkl"], "teacher_rank": range(1, 13)})
    run["rank"] = run["teacher_rank"].iloc[::-1].array
    swapped = run.assign(teacher_rank=[1, 2, 3, 4, 5, 6, 7, 8, 11, 10, 9, 12])
    row = pages("teacher")["between"]([run, swapped], run).loc["q"]
    tau = (66 - 6) / 66  # three of 66 pairs disagree
    expected = {"kendall_tau": tau, "overlap": 9 / 10, "first_stage_tau": (-1 - tau) / 2}
    assert row[[*expected]].to_dict() == pytest.approx(expected)


def test_other_libraries_give_an_exported_students_scores(pages):
    page = pages("your_corpus")
    assert len(page["both"]) > 3
    for scores in page["scores"].values():
        np.testing.assert_allclose(scores, page["both"]["score"], atol=1e-4)


def test_pictures_show_the_losses_slope_and_the_samplers_exact_shares():
    for depth, list_size in ((8, 4), (6, 2), (5, 5)):
        own = {"depth": depth, "list_size": list_size, "n_draws": 4000}
        page = executed("pictures", losses=["ranknet"], **own)
        drawn, exact = page["shares"]["drawn"], page["shares"]["exact"]
        assert ((drawn - exact).abs() <= 5 * np.sqrt(exact * (1 - exact) / 4000) + 1e-9).all()
    margins, x = page["margins"], np.linspace(-4, 4, 161)
    np.testing.assert_allclose(margins["value"], np.log1p(np.exp(-x)) / np.log(2), atol=1e-6)
    slope = np.gradient(margins["value"].to_numpy(), x)
    np.testing.assert_allclose(margins["pull"][1:-1], -slope[1:-1], atol=1e-3)
