"""From notebook templates to pages of the book.

Each template is executed by papermill with the profile's parameters and kept as a run of the store:
a page whose template, parameters, data and code are unchanged is not executed again. The book gets
a copy of the executed notebook, cleaned so that two builds of the same results give the same page.
A notebook that failed or did not finish is never published.
"""

from __future__ import annotations

import hashlib
import logging
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import nbformat
import papermill

from rdl_core.data.collections import load
from rdl_core.study import files
from rdl_core.study.parameters import NOTEBOOKS, check_parameters
from rdl_core.study.profile import Profile, load_profile
from rdl_core.study.runs import obtain, project_folder

__all__ = ["publish"]

_log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class _PageConfig:
    notebook: str
    parameters: dict[str, Any]
    profile: Profile


def publish(profile_name: str, pages: Path) -> list[Path]:
    """Execute every notebook at a profile and write the book's pages.

    Args:
        profile_name: Name of a profile.
        pages: Folder that gets one ``.ipynb`` per notebook, and in ``files/`` what these link to.

    Returns:
        The pages' paths.

    Raises:
        ValueError: A parameter in the profile that a notebook does not take, before any of them
            runs.
        papermill.PapermillExecutionError: A notebook failed; it is not published, the others stay.

    >>> publish("no such profile", folder)
    Traceback (most recent call last):
    ValueError: unknown profile 'no such profile': ...
    """
    profile = load_profile(profile_name)
    parameters = {
        name: {"profile": profile_name, **profile.notebooks.get(name, {})} for name in NOTEBOOKS
    }
    for name, values in parameters.items():
        check_parameters(name, values)
    pages.mkdir(parents=True, exist_ok=True)
    written = []
    for name, values in parameters.items():
        executed = _executed(_PageConfig(notebook=name, parameters=values, profile=profile))
        written.append(pages / f"{name}.ipynb")
        nbformat.write(_cleaned(executed), written[-1])
        if f"files/{name}.csv" in written[-1].read_text():
            files.write(name, check_parameters(name, values).parts, pages / "files")
    return written


def _executed(config: _PageConfig) -> nbformat.NotebookNode:
    template = project_folder() / "notebooks" / f"{config.notebook}.ipynb"

    def execute(folder: Path) -> None:
        _log.info("executing notebooks/%s.ipynb", config.notebook)
        papermill.execute_notebook(
            str(template), str(folder / "page.partial.ipynb"), parameters=config.parameters,
            kernel_name="python3", progress_bar=False, log_output=True,
        )
        (folder / "page.partial.ipynb").rename(folder / "page.ipynb")

    recorded = (path for path in (project_folder() / "results").rglob("*") if path.is_file())
    shown = [template, *sorted(recorded)]
    of_files = hashlib.sha256(b"".join(path.read_bytes() for path in shown)).hexdigest()[:16]
    of_data = load(config.profile.test.collection).fingerprint
    run = obtain(
        "page", config, data=f"{of_files}-{of_data}", code=("rdl_core.study",), compute=execute
    )
    return nbformat.read(run.folder / "page.ipynb", as_version=4)


def _cleaned(notebook: nbformat.NotebookNode) -> nbformat.NotebookNode:
    """Without what differs between two executions, and with the tags that the book reads."""
    notebook.metadata = {"kernelspec": notebook.metadata["kernelspec"]}
    for number, cell in enumerate(notebook.cells):
        cell.id = f"cell-{number}"
        tags = cell.metadata.get("tags", [])
        if "parameters" in tags:
            tags = [*tags, "remove-cell"]
        if "injected-parameters" in tags:
            tags = [*tags, "hide-input"]
        kept = {key: cell.metadata[key] for key in ("mystnb",) if key in cell.metadata}
        cell.metadata = {**kept, "tags": tags}
        if cell.cell_type == "code":
            cell.outputs = [o for o in cell.outputs if o.get("name") != "stderr"]
            if any(output.output_type == "error" for output in cell.outputs):
                raise ValueError(f"expected a notebook without errors, but cell {number} has one")
    return notebook
