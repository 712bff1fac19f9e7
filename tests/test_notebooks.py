"""The notebooks: declared, checked, run at a tiny profile; what they show is what the library computes.

Mutations seen to fail: an output left in; a second parameters cell; a figure without alternative
text; a baseline that is not compared; another loss without another table; pairs the wrong way round;
the rule by the teacher's lead alone; draws with replacement for the exact shares; what stayed in the
top shown as what left it; ranks below 10 for the top 10.
"""

import ast
import re
from dataclasses import asdict, replace

import matplotlib.pyplot as plt
import nbformat
import numpy as np
import pandas as pd
import papermill
import pytest
import torch
import yaml
from conftest import small_stage

import rdl_study as study
from rdl_study.notebook import cells, declared, notebooks
from rdl_study.store import project_folder

FOLDER = project_folder() / "notebooks"
MINI = study.load_profile("mini")
#: Visible lines of code; without an entry, at most 150.
LINES = dict.fromkeys(("negatives", "depth", "loss", "teacher", "effectiveness"), (40, 80))
PAGES = ["effectiveness", "negatives", "depth", "loss", "teacher", "out_of_domain", "ten_minutes",
         "your_corpus"]  # fmt: skip


@pytest.fixture(scope="module", autouse=True)
def store(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RDL_RUNS", str(tmp_path_factory.mktemp("runs")))
        patch.setattr(plt, "show", lambda: None)
        plt.switch_backend("agg")
        yield


@pytest.fixture(scope="module")
def tiny(encoder_folder):
    """Mini with two layers, four steps and eight queries."""
    own = {"teacher_encoder": encoder_folder}
    stages = [
        small_stage(stage, steps=4, lists=own, learning_rate=0.01) for stage in (MINI.stage1, MINI.stage2)
    ]
    test = replace(MINI.test, n_queries=8, depth=6, teacher_encoder=encoder_folder)
    return replace(
        MINI, encoder=encoder_folder, stage1=stages[0], stage2=stages[1], test=test, seeds=(0, 1),
        ablation_queries=6, ablation_steps=2, precision="float32",
    )  # fmt: skip


def executed(name, **values):
    """Everything that a notebook's cells define, run in order in this process."""
    namespace = {}
    for tags, source in cells(name):
        exec(compile(source, name, "exec"), namespace)
        if "parameters" in tags:
            namespace |= values
    plt.close("all")
    return namespace


@pytest.fixture(scope="module")
def pages(tiny):
    """Namespaces of pages at the tiny profile, each made when it is first asked for."""
    made = {}

    def page(name):
        values = {"n_train": 300} if name == "your_corpus" else {}
        if name not in made:
            made[name] = executed(name, profile=tiny, **values)
        return made[name]

    return page


# --- what a notebook is ---------------------------------------------------------------------------


@pytest.fixture(params=notebooks())
def notebook(request):
    return request.param, nbformat.read(FOLDER / f"{request.param}.ipynb", as_version=4)


def code(notebook, tag=None):
    return [
        cell for cell in notebook.cells
        if cell.cell_type == "code" and (tag is None or tag in cell.metadata.get("tags", []))
    ]  # fmt: skip


def test_a_notebook_is_stored_without_outputs_and_says_what_its_parameters_are(notebook):
    name, content = notebook
    assert not any(cell.outputs or cell.execution_count for cell in code(content))
    assert content.metadata.kernelspec.name == "python3"
    assert code(content, "parameters") == code(content)[:1]
    (tagged,) = code(content, "parameters")
    lines = tagged.source.splitlines()
    for statement in ast.parse(tagged.source).body:
        ast.literal_eval(statement.value)
        assert "#" in lines[statement.lineno - 1], "say what each one is, with its unit"
    assert len(code(content, "systems")) == (name not in ("pictures", "costs"))
    assert not any("sys.path" in cell.source for cell in code(content))


def test_a_notebook_can_be_read_through(notebook):
    name, content = notebook
    shown = [x.source for x in code(content) if "hide-input" not in x.metadata.get("tags", [])]
    lines = [line for source in shown for line in source.splitlines() if line.strip()]
    least, most = LINES.get(name, (0, 150))
    assert least <= len(lines) <= most
    for systems in code(content, "systems"):
        hidden = "hide-input" in systems.metadata.tags
        assert not hidden or name in ("start", "ten_minutes"), "the page's systems are what it is about"


def test_figures_have_alternative_texts_captions_and_names_of_their_own():
    names = []
    for name in notebooks():
        for cell in code(nbformat.read(FOLDER / f"{name}.ipynb", as_version=4)):
            if re.search(r"^figure\b.* = ", cell.source, re.MULTILINE):
                shown = cell.metadata["mystnb"]
                assert len(shown["image"]["alt"]) > 20, name
                assert len(shown["figure"]["caption"]) > 20, name
                names.append(shown["figure"]["name"])
    assert len(names) == len(set(names)) > 15
    assert all(name.startswith("fig-") for name in names)


# --- what a notebook compares ---------------------------------------------------------------------


@pytest.mark.parametrize("profile", [path.stem for path in project_folder().glob("profiles/*.yaml")])
def test_every_notebook_takes_what_every_profile_gives_it(profile):
    values = study.load_profile(profile).notebooks
    assert set(values) <= set(notebooks())
    for name in notebooks():
        declared(name, {"profile": profile, **values.get(name, {})})


@pytest.mark.parametrize(("name", "part", "labels", "baseline"), [
    ("effectiveness", "bm25", "first stage, bi-encoder, bi-encoder + first stage, "
     "rank_vicuna_unaugmented, gpt_3.5, teacher (rank_vicuna), student after stage 1, student, "
     "student + first stage, student + bi-encoder, student + bi-encoder + first stage", "first stage"),
    ("depth", "depths", "depth 10, depth 20, depth 50, depth 100", "depth 100"),
    ("depth", "queries", "10 queries, 20 queries, all queries", "all queries"),
    ("teacher", "students, one way", "student of rank_vicuna, student of rank_vicuna_early, "
     "student of vicuna_7b, student of vicuna_13b", "student of rank_vicuna"),
    ("teacher", "teachers", "first_stage, rank_vicuna, gpt_3.5, gpt_3.5_mean, splade", "first_stage"),
    ("out_of_domain", "cranfield", "first stage, bi-encoder, student after stage 1, student",
     "first stage"),
])  # fmt: skip
def test_systems_are_those_that_were_recorded(name, part, labels, baseline):
    values = study.load_profile("trec-dl").notebooks[name]
    made = declared(name, {"profile": "trec-dl", **values})[part]
    assert ", ".join(made.systems) == labels
    assert made.baseline == baseline


def test_students_differ_in_what_the_page_is_about():
    loss = declared("loss", {"profile": MINI})["losses"].systems
    stages = {name: student.stages for name, student in loss.items()}
    assert {name: last.training.loss for name, (_, last) in stages.items()} == {x: x for x in stages}
    assert len({replace(x[1].training, loss="ranknet") for x in stages.values()}) == 1
    depth = declared("depth", {"profile": MINI})["depths"].systems["depth 5"].stages[1]
    assert (depth.lists.depth, depth.training.list_size) == (5, 5)
    assert depth.training.queries_per_step == 16  # as many passages in a step as 4 lists of 20
    negatives = declared("negatives", {"profile": MINI, "first_stages": ["bm25", "random"]})
    student = negatives["first stages"].systems["dual, lists from random"]
    assert [x.lists.first_stage for x in student.stages] == ["bm25", "random"]


@pytest.mark.parametrize(("name", "values", "message"), [
    ("loss", {"loses": ["ranknet"]}, "no parameter loses: expected profile, losses"),
    ("loss", {"losses": "ranknet"}, 'losses: expected a list of text, got "ranknet"'),
    ("loss", {"losses": ["rankent"]}, "losses: expected one or more different values of"),
    ("loss", {"losses": ["ranknet", "ranknet"]}, "losses: expected one or more different values of"),
    ("loss", {"profile": "maxi"}, "unknown profile 'maxi': expected one of mini"),
    ("depth", {"depths": "many"}, 'depths: expected a list of whole numbers, got "many"'),
    ("depth", {"depths": [1]}, "depths: expected one or more different values of 2 to 100"),
    ("negatives", {"first_stages": []}, "first_stages: expected one or more different values of bm25"),
    ("teacher", {"teachers": ["gpt_9"]}, "teachers: expected one or more different values of bi_enc"),
    ("pictures", {"list_size": 9}, "list_size: expected 2 to 8; got 9"),
    ("your_corpus", {"n_train": "few"}, 'n_train: expected whole number, got "few"'),
])  # fmt: skip
def test_parameters_that_do_not_fit_are_refused_before_work_is_spent(name, values, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        executed(name, **values)


def prompts(content):
    """What a page asks its reader to change: values of parameters, and keys of the profile."""
    text = "\n".join(cell.source for cell in content.cells if cell.cell_type == "markdown")
    text = text.partition("## Change one thing")[2].partition("\n## ")[0]
    values = {name: ast.literal_eval(v) for name, v in re.findall(r"`(\w+) = ([^`]+)`", text)}
    values |= {name: yaml.safe_load(v) for name, v in re.findall(r"-p (\w+) \"(\[[^\"]+)\"", text)}
    return text, values, dict(re.findall(r"`([\w.]+): ([^`]+)`", text))


def test_what_a_page_asks_to_change_can_be_changed(notebook):
    """The negatives page once asked for a first stage without which it had no baseline."""
    name, content = notebook
    text, values, keys = prompts(content)
    if name in ("start", "costs"):
        assert not text
        return
    assert values or name == "ten_minutes", "ask for something that can be tried"
    before = declared(name, {"profile": MINI, **MINI.notebooks.get(name, {})})
    profile = replace(MINI, **{key: yaml.safe_load(value) for key, value in keys.items()})
    after = declared(name, {"profile": profile, **MINI.notebooks.get(name, {}), **values})
    assert (after != before) == bool(before or after) or name in ("ten_minutes", "efficiency")


# --- notebooks at work ----------------------------------------------------------------------------


@pytest.mark.parametrize("name", PAGES)
def test_a_page_runs_and_measures_what_it_declares(name, pages):
    page = pages(name)
    results = page["results"]
    for part, made in page["parts"].items():
        result = results[part] if isinstance(results, dict) else results
        assert set(result.values) == set(made.systems) or name == "ten_minutes"
        assert result.values.notna().all(axis=None)


def test_another_loss_gives_another_table(tiny, tmp_path):
    """As a reader does it: papermill, with the list of losses changed."""
    path = tmp_path / "tiny.yaml"
    path.write_text(yaml.safe_dump(asdict(tiny) | {"seeds": [0], "more_encoders": [], "more_tests": [],
                                                   "more_measures": []}))  # fmt: skip
    tables = []
    for losses in ('["ranknet"]', '["ranknet", "list_mle"]'):
        done = papermill.execute_notebook(
            str(FOLDER / "loss.ipynb"), None, parameters={"profile": str(path), "losses": losses},
            kernel_name="python3", progress_bar=False,
        )  # fmt: skip
        html = [o.data["text/html"] for x in code(done) for o in x.outputs if "text/html" in o.get("data", {})]
        tables.append(next(x for x in html if "95 % interval of it" in x))
    assert "list_mle" in tables[1]
    assert "list_mle" not in tables[0]


def test_the_query_is_what_stage_2_improves_most_where_the_teacher_knows_better(pages):
    page = dict(pages("ten_minutes"))
    first, before, after, teacher = (page[x] for x in ("first", "before", "after", "teacher"))
    source = next(source for _, source in cells("ten_minutes") if "better.any()" in source)

    def chosen(changes, query_id=""):
        values = page["results"].values * 0.0
        for query, column, value in changes:
            values.loc[query, column] = value
        results = replace(page["results"], values=values)
        own = page | {"results": results, "query_id": query_id}
        exec(source, own)
        return own["query_id"]

    a, b, c, d = page["results"].values.index[:4]
    changes = [(a, after, 0.9), (b, [teacher, after], 0.5), (c, [teacher, first, after], 0.6),
               (d, [before, teacher], 0.7)]  # fmt: skip
    assert chosen(changes) == b
    assert chosen([*changes, (c, teacher, 0.7)]) == c
    assert chosen([*changes, (slice(None), teacher, 0.0)]) == a
    assert chosen(changes, d) == d
    with pytest.raises(ValueError, match="query_id: expected a test query such as"):
        chosen(changes, "nobody's")


def test_the_worked_example_is_what_the_study_computes(pages):
    page = pages("ten_minutes")
    pairs, n = page["pairs"], len(page["ranks"])
    assert len(pairs) == n * (n - 1) / 2
    assert float(pairs["loss"].mean()) == pytest.approx(page["loss"].item(), abs=1e-6)
    push = torch.zeros(n)
    for row in pairs.itertuples():
        push[row.above] += (1 - row.chance) / len(pairs)
        push[row.below] -= (1 - row.chance) / len(pairs)
    torch.testing.assert_close(page["push"], push)
    assert page["ranks"][page["first"]].tolist() == list(range(1, n + 1))
    logged = page["log"]["loss"][0]
    assert page["by_hand"].item() == pytest.approx(logged, abs=1e-6)
    assert page["line"]["loss"] == pytest.approx(logged, abs=1e-6)
    assert page["line"]["learning_rate"] == pytest.approx(0.01 / 4)
    before, one, every = (page["losses"][x] for x in page["losses"])
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
    assert re.findall(r"→ (\d+)", came) == sorted(re.findall(r"→ ([123])\b", came))
    assert not re.findall(r"→ [123]\b", left)


def test_agreement_is_kendalls_tau_and_the_shared_top(pages):
    """Two answers that differ in one swap over a third, next to a first stage turned round."""
    ids = [f"d{i}" for i in range(12)]
    run = pd.DataFrame({"query_id": "q", "doc_id": ids, "teacher_rank": range(1, 13)})
    swapped = run.assign(teacher_rank=[1, 2, 3, 4, 5, 6, 7, 8, 11, 10, 9, 12])
    first = run.assign(rank=run["teacher_rank"].to_numpy()[::-1])
    row = pages("teacher")["between"]([run, swapped], first).loc["q"]
    pairs = 12 * 11 / 2
    assert row["kendall_tau"] == pytest.approx((pairs - 6) / pairs)
    assert row["overlap"] == pytest.approx(9 / 10)
    assert row["first_stage_tau"] == pytest.approx((-1 - (pairs - 6) / pairs) / 2)


def test_other_libraries_give_an_exported_students_scores(pages):
    page = pages("your_corpus")
    assert len(page["both"]) > 3
    for scores in page["scores"].values():
        np.testing.assert_allclose(scores, page["both"]["score"], atol=1e-4)


@pytest.mark.parametrize(("depth", "list_size"), [(8, 4), (6, 2), (5, 5)])
def test_pictures_show_the_losses_slope_and_the_samplers_exact_shares(depth, list_size):
    n = 4000
    page = executed("pictures", losses=["ranknet"], depth=depth, list_size=list_size, n_draws=n)
    margins, x = page["margins"], np.linspace(-4, 4, 161)
    np.testing.assert_allclose(margins["value"], np.log1p(np.exp(-x)) / np.log(2), atol=1e-6)
    slope = np.gradient(margins["value"].to_numpy(), x)
    np.testing.assert_allclose(margins["pull"][1:-1], -slope[1:-1], atol=1e-3)
    shares = page["shares"]
    error = np.sqrt(shares["exact"] * (1 - shares["exact"]) / n)
    assert ((shares["drawn"] - shares["exact"]).abs() <= 5 * error + 1e-9).all()
