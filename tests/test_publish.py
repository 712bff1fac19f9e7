"""Pages: executed once, cleaned, and never published when they failed."""

import zipfile
from dataclasses import replace

import nbformat
import papermill
import pytest
from nbformat.v4 import new_code_cell, new_notebook, new_output
from tiny_notebooks import KERNEL, write_notebook

from rdl_study import notebook, pages
from rdl_study.grid import Part
from rdl_study.profile import load_profile

pytestmark = pytest.mark.usefixtures("store")


@pytest.fixture
def template(tmp_path, monkeypatch):
    """Writes one notebook, which stands in the place of all others."""
    for module in (pages, notebook):
        monkeypatch.setattr(module, "project_folder", lambda: tmp_path)
    return lambda source: write_notebook(
        tmp_path, "start", source, parameters='profile = "mini"', setup="", systems=""
    )


def test_a_page_is_executed_once_and_cleaned(template, tmp_path):
    counter = tmp_path / "count"
    template(
        f"import sys; open({str(counter)!r}, 'a').write('x')\n"
        "print(profile); print('noise', file=sys.stderr)"
    )
    for _ in range(2):
        (page,) = pages.publish("mini", tmp_path / "pages")
    assert counter.read_text() == "x"
    cells = nbformat.read(page, as_version=4).cells
    tags = [cell.metadata.get("tags", []) for cell in cells]
    assert tags == [[], ["parameters", "remove-cell"], ["injected-parameters", "hide-input"], []]
    assert [(o.name, o.text) for o in cells[-1].outputs] == [("stdout", "mini\n")]
    assert [cell.id for cell in cells] == [f"cell-{i}" for i in range(4)]
    assert all("papermill" not in cell.metadata for cell in cells)
    (tmp_path / "results").mkdir()
    (tmp_path / "results" / "loss.csv").write_text("part\n")
    pages.publish("mini", tmp_path / "pages")  # what is recorded anew is shown anew
    assert counter.read_text() == "xx"


def test_a_failed_page_is_not_published_and_not_taken_for_done(template, tmp_path):
    template("raise RuntimeError('no such luck')")
    with pytest.raises(papermill.PapermillExecutionError, match="no such luck"):
        pages.publish("mini", tmp_path / "pages")
    assert list((tmp_path / "pages").iterdir()) == []
    assert not list(tmp_path.glob("runs/*/manifest.json"))
    error = new_output("error", ename="E", evalue="v", traceback=[])
    broken = new_notebook(cells=[new_code_cell("1", outputs=[error])], metadata=KERNEL)
    with pytest.raises(ValueError, match="cell 0 has one"):
        pages._cleaned(broken)


def test_a_wrong_parameter_stops_before_anything_runs(template, tmp_path, monkeypatch):
    template("1")
    write_notebook(tmp_path, "loss")
    wrong = replace(load_profile("mini"), notebooks={"loss": {"dephts": [1]}})
    monkeypatch.setattr(pages, "load_profile", lambda name: wrong)
    with pytest.raises(ValueError, match="no parameter dephts"):
        pages.publish("mini", tmp_path / "pages")
    assert not (tmp_path / "runs").exists()


def test_a_page_offers_its_values_and_rankings(tmp_path):
    mini = load_profile("mini")
    profile = replace(mini, test=replace(mini.test, n_queries=3, depth=5))
    part = Part(profile=profile, systems={"first stage": "first_stage"}, baseline="first stage")
    archives = []
    for folder in (tmp_path / "a", tmp_path / "b"):
        values, about, archive = pages.write_downloads("loss", {"all of it": part}, folder)
        assert (values.name, about.name, archive.name) == ("loss.csv", "loss.json", "loss-runs.zip")
        archives.append(archive.read_bytes())
    assert archives[0] == archives[1]
    with zipfile.ZipFile(archive) as file:
        (name,) = file.namelist()
        assert name == "all-of-it/first-stage-rdl-pydocs-test.run"
        assert len(file.read(name).splitlines()) == 15
