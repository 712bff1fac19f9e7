"""What readers of a page can take along: a value for each query, and each ranking as a TREC run."""

from __future__ import annotations

import re
import tempfile
import zipfile
from collections.abc import Mapping
from pathlib import Path

import pandas as pd

from rdl_core.data.formats import write_run
from rdl_study import recorded
from rdl_study.grid import Part
from rdl_study.store import Run
from rdl_study.tables import Results, compare

__all__ = ["write"]

_ALWAYS = (1980, 1, 1, 0, 0, 0)  # the same runs give the same archive


def write(page: str, parts: Mapping[str, Part], folder: Path) -> list[Path]:
    """Write a page's values, manifests and rankings, from the store.

    Args:
        page: The page's name.
        parts: What it compares; without any, nothing is written.
        folder: Gets ``<page>.csv`` and ``<page>.json``, as `rdl_study.recorded` writes them,
            and ``<page>-runs.zip``.

    Returns:
        The files.

    >>> part = Part(profile=profile, systems={"BM25": "first_stage"}, baseline="BM25")
    >>> [path.name for path in write("loss", {"losses": part}, folder)]
    ['loss.csv', 'loss.json', 'loss-runs.zip']
    """
    if not parts:
        return []
    results = {name: compare(part) for name, part in parts.items()}
    first = next(iter(results.values())).profile
    values = recorded.write(page, first, results, folder)
    runs = folder / f"{page}-runs.zip"
    with zipfile.ZipFile(runs, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, text in _rankings(results).items():
            entry = zipfile.ZipInfo(name, date_time=_ALWAYS)
            archive.writestr(entry, text, compress_type=zipfile.ZIP_DEFLATED)
    return [values, values.with_suffix(".json"), runs]


def _rankings(results: dict[str, Results]) -> dict[str, str]:
    """TREC runs by file name."""
    texts = {}
    for part, one in results.items():
        for system, runs in one.rankings.items():
            for run in runs:
                name, tag = _name(run), _slug(system)
                texts[f"{_slug(part)}/{tag}{name}.run"] = _text(run, tag)
    return texts


def _name(run: Run) -> str:
    """What tells a system's rankings apart: the collection, and a student's seed."""
    config = run.manifest["config"]
    seed = f"-seed{config['system']['seed']}" if isinstance(config["system"], dict) else ""
    return f"-{_slug(config['candidates']['collection'])}{seed}"


def _text(run: Run, tag: str) -> str:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "one.run"
        write_run(pd.read_parquet(run.folder / "run.parquet"), path, tag=tag)
        return path.read_text()


def _slug(label: str) -> str:
    return re.sub(r"[^\w.+-]+", "-", label).strip("-")
