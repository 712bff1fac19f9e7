"""The templates: thin, unexecuted, checked, and readable by everyone.

Mutations seen to fail: an output left in; a second parameters cell; a `def` in a cell; a figure
without alternative text; a parameter that its dataclass does not have.
"""

import ast
import re

import nbformat
import pytest
import yaml

from rdl_core.settings import checked
from rdl_study.parameters import NOTEBOOKS, check_parameters
from rdl_study.profile import Profile, load_profile
from rdl_study.store import project_folder

FOLDER = project_folder() / "notebooks"


@pytest.fixture(params=sorted(NOTEBOOKS))
def notebook(request):
    return request.param, nbformat.read(FOLDER / f"{request.param}.ipynb", as_version=4)


def code_cells(notebook):
    return [cell for cell in notebook.cells if cell.cell_type == "code"]


def test_every_template_is_known():
    assert sorted(path.stem for path in FOLDER.glob("*.ipynb")) == sorted(NOTEBOOKS)


def test_no_outputs_and_a_portable_kernel(notebook):
    _, content = notebook
    assert not any(c.outputs or c.execution_count for c in code_cells(content))
    assert content.metadata.kernelspec.name == "python3"


def test_first_code_cell_holds_the_parameters_and_nothing_else(notebook):
    name, content = notebook
    tagged = [c for c in code_cells(content) if "parameters" in c.metadata.get("tags", [])]
    assert tagged == code_cells(content)[:1]
    assigned = {
        statement.targets[0].id: ast.literal_eval(statement.value)
        for statement in ast.parse(tagged[0].source).body
    }
    assert all("#" in line for line in tagged[0].source.splitlines()), "say what each one is"
    checked = check_parameters(name, assigned)
    assert set(assigned) == set(checked.__dataclass_fields__)


def test_cells_are_thin(notebook):
    _, content = notebook
    for cell in code_cells(content):
        assert len(cell.source.splitlines()) <= 15
        kinds = (ast.FunctionDef, ast.ClassDef, ast.Lambda)
        assert not any(isinstance(node, kinds) for node in ast.walk(ast.parse(cell.source)))
        assert "sys.path" not in cell.source


def test_every_figure_has_alternative_text_a_caption_and_a_name(notebook):
    _, content = notebook
    for cell in code_cells(content):
        if "figure =" in cell.source:
            shown = cell.metadata["mystnb"]
            assert len(shown["image"]["alt"]) > 20
            assert len(shown["figure"]["caption"]) > 20
            assert shown["figure"]["name"].startswith("fig-")


def test_figure_names_are_unique():
    names = [
        cell.metadata["mystnb"]["figure"]["name"]
        for path in FOLDER.glob("*.ipynb")
        for cell in code_cells(nbformat.read(path, as_version=4))
        if "mystnb" in cell.metadata
    ]
    assert len(names) == len(set(names)) > 0


@pytest.mark.parametrize("profile", [p.stem for p in project_folder().glob("profiles/*.yaml")])
def test_every_profile_gives_every_notebook_what_it_needs(profile):
    given = load_profile(profile).notebooks
    assert set(given) <= set(NOTEBOOKS)
    for name in NOTEBOOKS:
        check_parameters(name, {"profile": profile, **given.get(name, {})})


def prompts(notebook):
    """What the page asks its reader to change: values of parameters, and keys of the profile."""
    text = "\n".join(c.source for c in notebook.cells if c.cell_type == "markdown")
    text = text.partition("## Change one thing")[2].partition("\n## ")[0]
    given = {name: ast.literal_eval(v) for name, v in re.findall(r"`(\w+) = ([^`]+)`", text)}
    given |= dict(re.findall(r"-p (\w+) \"(\[[^\"]+)\"", text))
    return text, given, dict(re.findall(r"`([\w.]+): ([^`]+)`", text))


def test_what_a_page_asks_to_change_can_be_changed(notebook):
    """The negatives page once asked for a first stage without which it had no baseline."""
    name, content = notebook
    text, given, keys = prompts(content)
    if name in ("start", "costs"):
        assert not text
        return
    assert given or keys or name == "ten_minutes", "ask for something that can be tried"
    mini = yaml.safe_load((FOLDER.parent / "profiles" / "mini.yaml").read_text())
    before = checked(Profile, mini, what="mini")
    for key, value in keys.items():
        *path, last = key.split(".")
        place = mini
        for step in path:
            place = place[step]
        place[last] = yaml.safe_load(value)
    profile = checked(Profile, mini, what="the copy")
    asked = check_parameters(name, before.notebooks.get(name, {}) | given)
    for part in asked.parts_at(profile).values():
        assert part.baseline in part.systems
    unchanged = check_parameters(name, before.notebooks.get(name, {}))
    if keys:
        assert asked.parts_at(profile) != asked.parts_at(before), "it would change nothing"
    if given:
        assert asked != unchanged
