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
from typing import TYPE_CHECKING, Any

from rdl_core.data.collections import load
from rdl_study import files
from rdl_study.parameters import NOTEBOOKS, check_parameters
from rdl_study.profile import Profile, load_profile
from rdl_study.store import Run, obtain, project_folder

if TYPE_CHECKING:
    import nbformat

__all__ = ["page", "publish", "shown_in"]

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
    import nbformat  # takes longer than torch, and most jobs show no page

    given = {name: check_parameters(name, _parameters(profile_name, name)) for name in NOTEBOOKS}
    pages.mkdir(parents=True, exist_ok=True)
    written = []
    for name in NOTEBOOKS:
        executed = nbformat.read(page(profile_name, name).folder / "page.ipynb", as_version=4)
        written.append(pages / f"{name}.ipynb")
        nbformat.write(_cleaned(executed), written[-1])
        if f"files/{name}.csv" in written[-1].read_text():
            files.write(name, given[name].parts, pages / "files")
    return written


def page(profile_name: str, name: str) -> Run:
    """A notebook executed at a profile, ``page.ipynb`` in its folder.

    Args:
        profile_name: Name of a profile.
        name: A key of `NOTEBOOKS`.

    Raises:
        ValueError: A parameter in the profile that the notebook does not take.
        papermill.PapermillExecutionError: The notebook failed.

    >>> page("mini", "no such page")
    Traceback (most recent call last):
    ValueError: expected a notebook of effectiveness, ...; got 'no such page'
    """
    values, profile = _parameters(profile_name, name), load_profile(profile_name)

    def execute(folder: Path) -> None:
        import papermill  # likewise

        _log.info("executing notebooks/%s.ipynb", name)
        papermill.execute_notebook(
            str(_template(name)), str(folder / "page.partial.ipynb"), parameters=values,
            kernel_name="python3", progress_bar=False, log_output=True,
        )
        (folder / "page.partial.ipynb").rename(folder / "page.ipynb")

    return obtain(
        "page", _PageConfig(notebook=name, parameters=values, profile=profile),
        data=f"{shown_in(name)}-{load(profile.test.collection).fingerprint}",
        code=("rdl_study",), compute=execute,
    )


def shown_in(name: str) -> str:
    """Hash of a notebook's template and of all that is recorded in ``results/``.

    >>> shown_in("depth") == shown_in("loss")
    False
    """
    recorded = (path for path in (project_folder() / "results").rglob("*") if path.is_file())
    content = b"".join(path.read_bytes() for path in (_template(name), *sorted(recorded)))
    return hashlib.sha256(content).hexdigest()[:16]


def _template(name: str) -> Path:
    return project_folder() / "notebooks" / f"{name}.ipynb"


def _parameters(profile_name: str, name: str) -> dict[str, Any]:
    """What papermill injects into a notebook, checked."""
    values = {"profile": profile_name, **load_profile(profile_name).notebooks.get(name, {})}
    check_parameters(name, values)
    return values


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
