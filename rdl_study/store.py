"""The run store: nothing is computed twice, and nothing unfinished counts as done.

A run is a folder ``<kind>-<id>/``. The id is a hash of all that can change the result: configuration,
data, earlier runs, versions of libraries, and code without its prose, all that it imports of ours
included. `rdl_core.files.resumable` keeps the folder: killed work goes on, and a damaged run is
computed again.
"""

from __future__ import annotations

import ast
import hashlib
import importlib.util
import json
import logging
import os
import platform
import subprocess
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import asdict, dataclass, is_dataclass
from functools import lru_cache
from pathlib import Path
from threading import Lock

from rdl_core.files import read_json, resumable, versions

__all__ = ["Run", "code_hash", "libraries", "machine", "noted", "obtain", "own_imports", "stored",
           "project_folder", "runs_folder", "short_hash"]  # fmt: skip
_noted: ContextVar[dict[str, None] | None] = ContextVar("noted", default=None)
_parsing = Lock()  # Python 3.11's parser counts its depth for all threads together, and fails
_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Run:
    """A finished run: its folder, and the manifest with id, config, device, wall time and hashes."""

    folder: Path
    manifest: dict


def project_folder() -> Path:
    """The checkout this package runs from, else the folder in which the process started."""
    checkout = Path(__file__).resolve().parents[1]
    return checkout if (checkout / "profiles").is_dir() else Path.cwd()


def runs_folder() -> Path:
    """Where runs are kept: ``RDL_RUNS``, else ``runs/`` in the project."""
    return Path(os.environ.get("RDL_RUNS") or project_folder() / "runs").expanduser().resolve()


def obtain(
    kind: str, config: object, *, data: str, code: Iterable[str],
    compute: Callable[[Path], dict | None], inputs: Iterable[str] = (),
) -> Run:
    """The stored run, or one that is computed now; two processes never compute the same run.

    All but `compute` counts for the id: the configuration, a dataclass or JSON; a fingerprint of the
    data; names of the modules that do the work; ids of the runs that this one uses. `compute` fills a
    folder, new or left unfinished, and gives more entries for the manifest.
    """
    identity = {
        "kind": kind, "config": asdict(config) if is_dataclass(config) else config, "data": data,
        "inputs": list(inputs), "code": code_hash(*code), "versions": libraries(),
    }  # fmt: skip
    run_id = f"{kind}-{short_hash(identity)}"
    if (ids := _noted.get()) is not None:
        ids[run_id] = None
    with resumable(runs_folder() / run_id, identity, shared=True) as work:
        if work.manifest is not None:
            _log.info("%s: reused, same configuration, data and code", run_id)
            return Run(work.folder, work.manifest)
        _log.info("%s: computing", run_id)
        more = compute(work.folder) or {}
        manifest = work.finish(id=run_id, **machine(), **more)
        _log.info("%s: finished in %.0f s", run_id, manifest["wall_s"])
        return Run(work.folder, manifest)


def stored(run_id: str) -> Run:
    """A finished run by its id."""
    folder = runs_folder() / run_id
    return Run(folder, read_json(folder / "manifest.json"))


@contextmanager
def noted() -> Iterator[dict[str, None]]:
    """Collects the ids of all runs that `obtain` gives meanwhile, in order, as keys."""
    token = _noted.set(ids := {})
    try:
        yield ids
    finally:
        _noted.reset(token)


@lru_cache
def machine() -> dict:
    """Device, threads, Python and commit, for manifests."""
    import torch

    from rdl_core.devices import default_device, device_name

    words = ["git", "-C", str(project_folder()), "describe", "--always", "--dirty"]
    commit = subprocess.run(words, capture_output=True, text=True, check=False).stdout.strip()
    return {
        "device": device_name(default_device()), "threads": torch.get_num_threads(),
        "python": platform.python_version(), "commit": commit or None,
    }  # fmt: skip


def short_hash(value: object) -> str:
    """Twelve hexadecimal digits of a value that JSON can express."""
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()[:12]


def libraries() -> dict[str, str]:
    """Versions that count for ids; our code counts by its hash, and openai only carries requests."""
    return {name: x for name, x in versions().items() if name not in ("rdl-core", "openai")}


@lru_cache
def code_hash(*modules: str) -> str:
    """Hash of modules and of all of ours that they import, blind to docstrings and comments."""
    trees, waiting = {}, list(modules)
    while waiting:
        if (module := waiting.pop()) not in trees:
            trees[module], imported = _without_prose(module)
            waiting += imported
    return short_hash(trees)


@lru_cache  # most are behind several hashes
def _without_prose(module: str) -> tuple[str, list[str]]:
    """A module's code, as text, and the modules of ours that it imports."""
    source = Path(importlib.util.find_spec(module).origin).read_text(encoding="utf-8")
    with _parsing:
        tree = ast.parse(source)
    for node in ast.walk(tree):
        if isinstance(body := getattr(node, "body", None), list):
            doc = [x for x in body if isinstance(x, ast.Expr) and isinstance(x.value, ast.Constant)]
            node.body = [x for x in body if x not in doc]
    return ast.dump(tree), own_imports(tree)


def own_imports(tree: ast.Module) -> list[str]:
    """Modules of ours that a module imports; in ``from a import b``, ``a.b`` may be one too."""
    names = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            names |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
    return [name for name in names if name.startswith("rdl_") and _exists(name)]


def _exists(module: str) -> bool:
    """Whether this is a module, and not a name in one; imports neither."""
    parent = module.rpartition(".")[0]
    is_name = parent and importlib.util.find_spec(parent).submodule_search_locations is None
    return not is_name and importlib.util.find_spec(module) is not None
