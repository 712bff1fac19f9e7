"""Pages: executed once, cleaned, and never published when they failed.

Mutations seen to fail: the partial notebook renamed before papermill returned; error outputs let
through; standard error kept; a page executed again though nothing changed.
"""

from dataclasses import replace

import nbformat
import papermill
import pytest
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook, new_output

from rdl_study import publish
from rdl_study.parameters import NOTEBOOKS
from rdl_study.profile import load_profile

KERNEL = {"kernelspec": {"name": "python3", "display_name": "Python 3", "language": "python"}}


@pytest.fixture
def template(tmp_path, monkeypatch):
    """Puts one notebook, of one cell after its parameters, in the place of all others."""
    monkeypatch.setenv("RDL_RUNS", str(tmp_path / "runs"))
    monkeypatch.setattr(publish, "project_folder", lambda: tmp_path)
    monkeypatch.setattr(publish, "NOTEBOOKS", {"start": NOTEBOOKS["start"]})
    (tmp_path / "notebooks").mkdir()

    def write(source):
        parameters = new_code_cell('profile = "mini"', metadata={"tags": ["parameters"]})
        cells = [new_markdown_cell("# Title"), parameters, new_code_cell(source)]
        nbformat.write(
            new_notebook(cells=cells, metadata=KERNEL), tmp_path / "notebooks" / "start.ipynb"
        )

    return write


def test_a_page_is_executed_once_and_cleaned(template, tmp_path):
    counter = tmp_path / "count"
    template(
        f"import sys; open({str(counter)!r}, 'a').write('x')\n"
        "print(profile); print('noise', file=sys.stderr)"
    )
    for _ in range(2):
        (page,) = publish.publish("mini", tmp_path / "pages")
    assert counter.read_text() == "x"
    cells = nbformat.read(page, as_version=4).cells
    tags = [cell.metadata.get("tags", []) for cell in cells]
    assert tags == [[], ["parameters", "remove-cell"], ["injected-parameters", "hide-input"], []]
    assert [(o.name, o.text) for o in cells[-1].outputs] == [("stdout", "mini\n")]
    assert [cell.id for cell in cells] == [f"cell-{i}" for i in range(4)]
    assert all("papermill" not in cell.metadata for cell in cells)


def test_what_is_recorded_anew_is_shown_anew(template, tmp_path):
    counter = tmp_path / "count"
    template(f"open({str(counter)!r}, 'a').write('x')")
    publish.publish("mini", tmp_path / "pages")
    (tmp_path / "results" / "trec-dl").mkdir(parents=True)
    (tmp_path / "results" / "trec-dl" / "loss.csv").write_text("part\n")
    for _ in range(2):
        publish.publish("mini", tmp_path / "pages")
    assert counter.read_text() == "xx"


def test_a_failed_page_is_not_published_and_not_taken_for_done(template, tmp_path):
    template("raise RuntimeError('no such luck')")
    for _ in range(2):
        with pytest.raises(papermill.PapermillExecutionError, match="no such luck"):
            publish.publish("mini", tmp_path / "pages")
    assert list((tmp_path / "pages").iterdir()) == []
    assert not list(tmp_path.glob("runs/*/manifest.json"))


def test_an_error_output_is_refused():
    error = new_output("error", ename="E", evalue="v", traceback=[])
    notebook = new_notebook(cells=[new_code_cell("1", outputs=[error])], metadata=KERNEL)
    with pytest.raises(ValueError, match="cell 0 has one"):
        publish._cleaned(notebook)


def test_a_wrong_parameter_stops_before_anything_runs(template, tmp_path, monkeypatch):
    template("1")
    wrong = load_profile("mini").notebooks | {"start": {"dephts": [1]}}
    monkeypatch.setattr(
        publish, "load_profile", lambda name: replace(load_profile(name), notebooks=wrong)
    )
    with pytest.raises(ValueError, match="dephts: unknown key"):
        publish.publish("mini", tmp_path / "pages")
    assert not (tmp_path / "runs").exists()
