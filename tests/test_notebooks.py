"""The notebooks: declared, checked, run at a tiny profile; what they show is what the library computes.

Mutations seen to fail: an output left in; a second parameters cell; a figure without alternative
text; pairs the wrong way round; the rule by the teacher's lead alone; draws with replacement for the
exact shares; what stayed in the top shown as what left it; ranks below 10 for the top 10.
"""

import ast
import io
import re
from dataclasses import asdict, replace
from functools import cache

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
LINES = dict.fromkeys(("effectiveness", "negatives", "depth", "loss", "teacher"), (40, 80))


@pytest.fixture(scope="module", autouse=True)
def store(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RDL_RUNS", str(tmp_path_factory.mktemp("runs")))
        plt.switch_backend("agg")
        yield


@pytest.fixture(scope="module")
def tiny(encoder_folder):
    """Mini with two layers, four steps and eight queries."""
    own = {"teacher_encoder": encoder_folder}
    few = {"steps": 4, "lists": own, "learning_rate": 0.01}
    stages = [small_stage(stage, **few) for stage in (MINI.stage1, MINI.stage2)]
    test = replace(MINI.test, n_queries=8, depth=6, teacher_encoder=encoder_folder)
    few = {"ablation_queries": 6, "ablation_steps": 2, "precision": "float32", "test": test}
    return replace(MINI, encoder=encoder_folder, stage1=stages[0], stage2=stages[1], **few)


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
    """Namespace of a page at the tiny profile; each is executed once."""
    values = {"your_corpus": {"n_train": 300}}
    return cache(lambda name: executed(name, profile=tiny, **values.get(name, {})))


# --- what a notebook is ---------------------------------------------------------------------------


@pytest.fixture(params=notebooks())
def notebook(request):
    return request.param, nbformat.read(FOLDER / f"{request.param}.ipynb", as_version=4)


def code(notebook, tag=None):
    cells = [cell for cell in notebook.cells if cell.cell_type == "code"]
    return [cell for cell in cells if tag in (None, *cell.metadata.get("tags", []))]


def test_a_notebook_is_stored_without_outputs_and_says_what_its_parameters_are(notebook):
    name, content = notebook
    assert not any(cell.outputs or cell.execution_count for cell in code(content))
    assert content.metadata.kernelspec.name == "python3"
    assert code(content, "parameters") == code(content)[:1]
    source = code(content)[0].source
    lines = source.splitlines()
    for statement in ast.parse(source).body:
        ast.literal_eval(statement.value)
        assert "#" in lines[statement.lineno - 1], "say what each one is, with its unit"
    assert len(code(content, "systems")) == (name not in ("pictures", "costs"))
    assert not any("sys.path" in cell.source for cell in code(content))


def test_a_notebook_can_be_read_through(notebook):
    name, content = notebook
    shown = "\n".join(x.source for x in code(content) if "hide-input" not in x.metadata.get("tags", []))
    lines = [line for line in shown.splitlines() if line.strip()]
    least, most = LINES.get(name, (0, 150))
    assert least <= len(lines) <= most
    hidden = [cell for cell in code(content, "systems") if "hide-input" in cell.metadata.tags]
    assert not hidden or name in ("start", "ten_minutes"), "a page's systems are what it is about"


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
    ("teacher", "students, one way", "student of rank_vicuna, student of rank_vicuna_early, "
     "student of vicuna_7b, student of vicuna_13b", "student of rank_vicuna"),
    ("teacher", "teachers", "first_stage, rank_vicuna, gpt_3.5, gpt_3.5_mean, splade", "first_stage"),
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
    same = [replace(last.training, loss="ranknet") for _, last in stages.values()]
    assert same == same[:1] * len(same)
    depth = declared("depth", {"profile": MINI})["depths"].systems["depth 5"].stages[1]
    assert (depth.lists.depth, depth.training.list_size) == (5, 5)
    assert depth.training.queries_per_step == 16  # as many passages in a step as 4 lists of 20
    negatives = declared("negatives", {"first_stages": ["bm25", "random"]})["first stages"].systems
    stages = negatives["dual, lists from random"].stages
    assert [stage.lists.first_stage for stage in stages] == ["bm25", "random"]


@pytest.mark.parametrize(("name", "values", "message"), [
    ("loss", {"loses": ["ranknet"]}, "no parameter loses: expected profile, losses"),
    ("loss", {"losses": "ranknet"}, 'losses: expected a list of text, got "ranknet"'),
    ("loss", {"losses": ["rankent"]}, "losses: expected one or more different values of"),
    ("loss", {"profile": "maxi"}, "unknown profile 'maxi': expected one of mini"),
    ("depth", {"depths": "many"}, 'depths: expected a list of whole numbers, got "many"'),
    ("depth", {"depths": [1]}, "depths: expected one or more different values of 2 to 100"),
    ("negatives", {"first_stages": []}, "first_stages: expected one or more different values of bm25"),
    ("teacher", {"teachers": ["gpt_9"]}, "teachers: expected one or more different values of bi_enc"),
    ("pictures", {"list_size": 9}, "list_size: expected 2 to 8; got 9"),
    ("your_corpus", {"n_train": "few"}, 'n_train: expected a whole number, got "few"'),
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


@pytest.mark.parametrize("name", [*LINES, "out_of_domain"])  # others are run below
def test_a_page_runs_and_measures_what_it_declares(name, pages):
    results, parts = pages(name)["results"], pages(name)["parts"]
    assert {part: list(x.values) for part, x in results.items()} == {
        part: list(x.systems) for part, x in parts.items()
    }
    assert all(x.values.notna().all(axis=None) for x in results.values())


def test_another_list_of_losses_gives_another_table(tiny, tmp_path):
    """As a reader does it: papermill, with one parameter changed."""
    profile = asdict(tiny) | {"more_encoders": [], "more_tests": [], "more_measures": [], "seeds": [0]}
    (tmp_path / "tiny.yaml").write_text(yaml.safe_dump(profile))
    values = {"profile": str(tmp_path / "tiny.yaml"), "losses": '["ranknet", "list_mle"]'}
    done = papermill.execute_notebook(
        str(FOLDER / "loss.ipynb"), None, parameters=values, kernel_name="python3", progress_bar=False
    )
    outputs = [output.get("data", {}) for cell in code(done) for output in cell.outputs]
    table = next(x["text/html"] for x in outputs if "95 % interval of it" in x.get("text/html", ""))
    assert pd.read_html(io.StringIO(table))[0]["system"].tolist() == ["ranknet", "list_mle"]
    assert sum("image/png" in x for x in outputs) == 2


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
    changes = [(a, after, 0.9), (b, [teacher, after], 0.5)]
    changes += [(c, [teacher, first, after], 0.6), (d, after, 0.9), (d, [before, teacher], 0.2)]
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
    np.testing.assert_allclose(page["push"], push, atol=1e-6)
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
    halves = text.split("</details>")[0].split("had to leave it: ")
    came, left = (list(map(int, re.findall(r"rank \d+ → (\d+)", half))) for half in halves)
    assert came == sorted(came)
    assert max(came) <= 3 < min(left)


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
