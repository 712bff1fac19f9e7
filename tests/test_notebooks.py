"""The templates: unexecuted, checked, and readable by everyone.

Mutations seen to fail: an output left in; a second parameters cell; a figure without alternative
text; a parameter that a profile misspells.
"""

import ast
import re

import nbformat
import pytest
import yaml

from rdl_core.files import checked
from rdl_study import notebook as declarations
from rdl_study.profile import Profile, load_profile
from rdl_study.store import project_folder

FOLDER = project_folder() / "notebooks"
NAMES = declarations.notebooks()


@pytest.fixture(params=NAMES)
def notebook(request):
    return request.param, nbformat.read(FOLDER / f"{request.param}.ipynb", as_version=4)


def code_cells(notebook):
    return [cell for cell in notebook.cells if cell.cell_type == "code"]


def test_no_outputs_and_a_portable_kernel(notebook):
    _, content = notebook
    assert not any(c.outputs or c.execution_count for c in code_cells(content))
    assert content.metadata.kernelspec.name == "python3"


def test_first_code_cell_holds_the_parameters_and_nothing_else(notebook):
    _, content = notebook
    tagged = [c for c in code_cells(content) if "parameters" in c.metadata.get("tags", [])]
    assert tagged == code_cells(content)[:1]
    for statement in ast.parse(tagged[0].source).body:
        ast.literal_eval(statement.value)
        assert "#" in ast.get_source_segment(tagged[0].source, statement, padded=True) or (
            "#" in tagged[0].source.splitlines()[statement.end_lineno - 1]
        ), "say what each one is"


def test_no_cell_finds_the_package_by_a_path(notebook):
    assert not any("sys.path" in cell.source for cell in code_cells(notebook[1]))


def test_every_figure_has_alternative_text_a_caption_and_a_name(notebook):
    _, content = notebook
    for cell in code_cells(content):
        if re.search(r"^figure =", cell.source, re.M):
            shown = cell.metadata["mystnb"]
            assert len(shown["image"]["alt"]) > 20
            assert len(shown["figure"]["caption"]) > 20
            assert shown["figure"]["name"].startswith("fig-")


def test_figure_names_are_unique():
    names = [
        cell.metadata["mystnb"]["figure"]["name"]
        for name in NAMES
        for cell in code_cells(nbformat.read(FOLDER / f"{name}.ipynb", as_version=4))
        if "mystnb" in cell.metadata
    ]
    assert len(names) == len(set(names)) > 0


@pytest.mark.parametrize("profile", [p.stem for p in project_folder().glob("profiles/*.yaml")])
def test_every_profile_gives_every_notebook_what_it_needs(profile):
    given = load_profile(profile).notebooks
    assert set(given) <= set(NAMES)
    for name in NAMES:
        parts = declarations.declared(name, {"profile": profile, **given.get(name, {})})
        assert all(part.baseline in part.systems for part in parts.values())


def prompts(notebook):
    """What the page asks its reader to change: values of parameters, and keys of the profile."""
    text = "\n".join(c.source for c in notebook.cells if c.cell_type == "markdown")
    text = text.partition("## Change one thing")[2].partition("\n## ")[0]
    given = {name: ast.literal_eval(v) for name, v in re.findall(r"`(\w+) = ([^`]+)`", text)}
    given |= {name: yaml.safe_load(v) for name, v in re.findall(r"-p (\w+) \"(\[[^\"]+)\"", text)}
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
    own = before.notebooks.get(name, {})
    for key, value in keys.items():
        *path, last = key.split(".")
        place = mini
        for step in path:
            place = place[step]
        place[last] = yaml.safe_load(value)
    profile = checked(Profile, mini, what="the copy")
    unchanged = declarations.declared(name, {"profile": before, **own})
    asked = declarations.declared(name, {"profile": profile, **own, **given})
    assert all(part.baseline in part.systems for part in asked.values())
    if (keys or given) and unchanged and name != "efficiency":  # how often it measures is no system
        assert asked != unchanged, "it would change nothing"
