"""From notebooks to pages of the book, and what their readers can take along.

papermill executes each notebook with the profile's parameters, as a run of the store. The book gets a
copy without what differs between two executions, so that the same results give the same page.
"""

from __future__ import annotations

import ast
import hashlib
import logging
import re
import tempfile
import zipfile
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pandas as pd

import rdl_study
from rdl_core.data.collections import load
from rdl_core.data.formats import write_run
from rdl_study.grid import Part, measure
from rdl_study.notebook import cells, declared, notebooks
from rdl_study.profile import load_profile
from rdl_study.store import Run, obtain, own_imports, project_folder

__all__ = ["page", "page_code", "publish", "shown_in", "write_downloads"]

_log = logging.getLogger(__name__)


def publish(profile_name: str, pages: Path) -> list[Path]:
    """Execute every notebook at a profile, and write the book's pages and, in ``files/``, downloads.

    Wrong parameters are refused before any notebook runs; a notebook that fails is not published.
    """
    import nbformat  # takes longer than torch, and most jobs show no page

    parts = {name: declared(name, _parameters(profile_name, name)) for name in notebooks()}
    pages.mkdir(parents=True, exist_ok=True)
    written = []
    for name in parts:
        executed = nbformat.read(page(profile_name, name).folder / "page.ipynb", as_version=4)
        written.append(pages / f"{name}.ipynb")
        nbformat.write(_cleaned(executed), written[-1])
        if parts[name] and f"files/{name}.csv" in written[-1].read_text():
            write_downloads(name, parts[name], pages / "files")
    return written


def page(profile_name: str, name: str) -> Run:
    """A notebook executed at a profile, ``page.ipynb`` in the run's folder."""
    values, profile = _parameters(profile_name, name), load_profile(profile_name)

    def execute(folder: Path) -> None:
        import papermill

        _log.info("executing notebooks/%s.ipynb", name)
        papermill.execute_notebook(
            str(_path(name)), str(folder / "page.partial.ipynb"), parameters=values,
            kernel_name="python3", progress_bar=False, log_output=True,
        )  # fmt: skip
        (folder / "page.partial.ipynb").rename(folder / "page.ipynb")

    return obtain(
        "page", {"notebook": name, "parameters": values, "profile": asdict(profile)},
        code=page_code(name), compute=execute,
        data=f"{shown_in(name)}-{load(profile.test.collection).fingerprint}",
    )  # fmt: skip


def shown_in(name: str) -> str:
    """Hash of a notebook and of all that is recorded in ``results/``."""
    recorded = (path for path in (project_folder() / "results").rglob("*") if path.is_file())
    content = b"".join(path.read_bytes() for path in (_path(name), *sorted(recorded)))
    return hashlib.sha256(content).hexdigest()[:16]


def page_code(name: str) -> tuple[str, ...]:
    """Modules whose code a page shows results of: all that `rdl_study` offers, and its own imports."""
    lines = (line for _, source in cells(name) for line in source.splitlines() if line[:1] != "%")
    own = own_imports(ast.parse("\n".join(lines)))
    return tuple(sorted({*own, *(f"rdl_study.{x}" for x in rdl_study.WHERE.values())}))


def _path(name: str) -> Path:
    return project_folder() / "notebooks" / f"{name}.ipynb"


def _parameters(profile_name: str, name: str) -> dict:
    return {"profile": profile_name, **load_profile(profile_name).notebooks.get(name, {})}


def _cleaned(notebook: Any) -> Any:
    """Without what differs between two executions, and with the tags that the book reads."""
    notebook.metadata = {"kernelspec": notebook.metadata["kernelspec"]}
    for number, cell in enumerate(notebook.cells):
        cell.id = f"cell-{number}"
        tags = cell.metadata.get("tags", [])
        tags = tags + ["remove-cell"] * ("parameters" in tags)
        tags = tags + ["hide-input"] * ("injected-parameters" in tags)
        kept = {key: cell.metadata[key] for key in ("mystnb",) if key in cell.metadata}
        cell.metadata = {**kept, "tags": tags}
        if cell.cell_type == "code":
            cell.outputs = [o for o in cell.outputs if o.get("name") != "stderr"]
            if any(output.output_type == "error" for output in cell.outputs):
                raise ValueError(f"expected a notebook without errors, but cell {number} has one")
    return notebook


def write_downloads(name: str, parts: Mapping[str, Part], folder: Path) -> list[Path]:
    """Write a page's values and manifests, as `record` does, and its rankings, ``<name>-runs.zip``."""
    from rdl_study.tables import record  # and with it seaborn, which most jobs do not need

    results = {part: measure(parts[part]) for part in parts}
    values = record(name, results, folder)
    archive = folder / f"{name}-runs.zip"
    with zipfile.ZipFile(archive, "w") as file, tempfile.TemporaryDirectory() as temporary:
        path = Path(temporary) / "one.run"
        for part, result in results.items():
            for system, run in ((system, run) for system, runs in result.runs.items() for run in runs):
                config, tag = run.manifest["config"], _slug(system)
                seed = f"-seed{config['system']['seed']}" if isinstance(config["system"], dict) else ""
                end = f"{_slug(config['candidates']['collection'])}{seed}.run"
                entry = zipfile.ZipInfo(f"{_slug(part)}/{tag}-{end}", (1980, 1, 1, 0, 0, 0))  # no clock
                write_run(pd.read_parquet(run.folder / "run.parquet"), path, tag=tag)
                file.writestr(entry, path.read_bytes(), zipfile.ZIP_DEFLATED)
    return [values, values.with_suffix(".json"), archive]


def _slug(label: str) -> str:
    return re.sub(r"[^\w.+-]+", "-", label).strip("-")
