"""The run store: nothing is computed twice, nothing half computed is taken for whole.

A run is a folder ``<kind>-<id>/`` whose id is the hash of all that can change its result: its
configuration, the fingerprint of its data, and the code that computes it. That code is the module
which does the work and every module of ours that it imports, read as syntax trees without
docstrings and comments, so that better prose recomputes nothing. ``manifest.json`` is written last;
a folder without one is unfinished, and the computation goes on in it. It names the files with their
hashes: what was damaged since is computed anew.
"""

from __future__ import annotations

import ast
import hashlib
import importlib.util
import json
import logging
import os
import platform
import shutil
import subprocess
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from functools import lru_cache
from importlib import metadata
from pathlib import Path
from threading import Lock

import torch
from filelock import FileLock

from rdl_core.data.downloads import sha256_of
from rdl_core.devices import default_device, device_name
from rdl_core.records import read_record, write_record

__all__ = [
    "Run", "code_hash", "content_hash", "machine", "noted", "obtain", "project_folder",
    "runs_folder", "stored", "versions",
]  # fmt: skip

_VERSIONS = ("torch", "transformers", "tokenizers", "sentence-transformers", "bm25s")
_asked: ContextVar[dict[str, None] | None] = ContextVar("asked", default=None)
_parsing = Lock()  # Python 3.11's parser counts its depth for all threads together, and fails
_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Run:
    """A finished run."""

    folder: Path
    manifest: dict
    """``id``, ``kind``, ``config``, ``data``, ``code``, ``versions``, ``device``, ``wall_s``, ..."""


def project_folder() -> Path:
    """The checkout this package runs from, else the folder the process started in.

    >>> project_folder().is_dir()
    True
    """
    checkout = Path(__file__).resolve().parents[2]
    return checkout if (checkout / "profiles").is_dir() else Path.cwd()


def runs_folder() -> Path:
    """Where runs are kept: ``RDL_RUNS``, else ``runs/`` in the project.

    >>> runs_folder().is_absolute()
    True
    """
    return Path(os.environ.get("RDL_RUNS") or project_folder() / "runs").expanduser().resolve()


def obtain(
    kind: str,
    config: object,
    *,
    data: str,
    code: Iterable[str],
    compute: Callable[[Path], dict | None],
    inputs: Iterable[str] = (),
) -> Run:
    """Give a finished run: the stored one, or one computed now.

    Args:
        kind: What is computed, such as ``"train"``; the first part of the folder's name.
        config: A dataclass; all of it counts for the id.
        data: Fingerprint of the data that go in.
        code: Names of the modules that do the work; those they import count too.
        compute: Fills the folder it is given and may return more entries for the manifest. Found
            unfinished, a folder is handed to it again as it was left.
        inputs: Ids of other runs that go in.

    Returns:
        The run. Two processes that ask for the same run do not both compute it.

    >>> config = profile.test
    >>> run = obtain("example", config, data="none", code=(), compute=lambda folder: {"answer": 42})
    >>> run.manifest["answer"]
    42
    """
    identity = {
        "kind": kind, "config": asdict(config), "data": data, "inputs": list(inputs),
        "code": code_hash(*code), "versions": versions(),
    }
    run_id = f"{kind}-{_hash(json.dumps(identity, sort_keys=True))}"
    if (noting := _asked.get()) is not None:
        noting[run_id] = None
    folder = runs_folder() / run_id
    folder.mkdir(parents=True, exist_ok=True)
    with FileLock(folder / ".lock"):
        manifest_file = folder / "manifest.json"
        if manifest := _finished(folder, identity):
            _log.info("%s: reused, same configuration, data and code", run_id)
            return Run(folder, manifest)
        write_record(folder / "config.json", identity)
        _log.info("%s: computing", run_id)
        started = time.monotonic()
        more = compute(folder) or {}
        manifest = {
            "id": run_id, **identity, "finished": datetime.now(UTC).isoformat(timespec="seconds"),
            "wall_s": round(time.monotonic() - started, 2), **machine(), **more,
            "files": {name: content_hash(folder / name) for name in _results(folder)},
        }
        write_record(manifest_file, manifest)
        _log.info("%s: finished in %.0f s", run_id, manifest["wall_s"])
        return Run(folder, manifest)


def content_hash(path: Path) -> str:
    """SHA-256 of a file, read once for each state of it that a process sees.

    >>> _ = (folder / "empty").write_bytes(b"")
    >>> content_hash(folder / "empty")[:8]
    'e3b0c442'
    """
    state = path.stat()
    return _hash_at(path, state.st_mtime_ns, state.st_size)


def stored(run_id: str) -> Run:
    """A finished run by its id.

    >>> stored(results.rankings["BM25"][0].manifest["id"]).manifest["kind"]
    'rank'
    """
    folder = runs_folder() / run_id
    return Run(folder, read_record(folder / "manifest.json"))


@contextmanager
def noted() -> Iterator[dict[str, None]]:
    """Collect the ids of the runs that are asked for meanwhile, in their order, as keys.

    >>> with noted() as ids:
    ...     _ = obtain("noted", profile.test, data="none", code=(), compute=lambda folder: None)
    >>> len(ids)
    1
    """
    ids: dict[str, None] = {}
    token = _asked.set(ids)
    try:
        yield ids
    finally:
        _asked.reset(token)


@lru_cache
def code_hash(*modules: str) -> str:
    """Hash of modules and of all of ours that they import, blind to docstrings and comments.

    >>> code_hash("rdl_core.losses") != code_hash("rdl_core.samplers")
    True
    """
    trees: dict[str, str] = {}
    waiting = list(modules)
    while waiting:
        module = waiting.pop()
        if module not in trees:
            source = Path(importlib.util.find_spec(module).origin).read_bytes()
            with _parsing:
                tree = ast.parse(source)
            waiting += _own_imports(tree)
            trees[module] = ast.dump(_without_docstrings(tree))
    return _hash(json.dumps(trees, sort_keys=True))


def _finished(folder: Path, identity: dict) -> dict | None:
    """A run's manifest, or None where it has none; a damaged run is emptied."""
    file = folder / "manifest.json"
    if not file.exists():
        return None
    try:
        manifest = read_record(file)
        wrong = [n for n, h in manifest.get("files", {}).items() if content_hash(folder / n) != h]
        as_asked = {key: manifest.get(key) for key in identity} == json.loads(json.dumps(identity))
    except (OSError, ValueError) as error:
        wrong, as_asked = [error], True
    if as_asked and not wrong:
        return manifest
    changed = wrong[0] if wrong else file
    _log.warning("%s: %s is not as it was written; computing it anew", folder.name, changed)
    for path in folder.iterdir():
        if path.is_dir():
            shutil.rmtree(path)
        elif path.name != ".lock":
            path.unlink()
    return None


def _results(folder: Path) -> list[str]:
    """Files of a run that others read."""
    files = (path.relative_to(folder) for path in folder.rglob("*") if path.is_file())
    aside = ("config.json", "tensorboard")
    return sorted(f.as_posix() for f in files if f.parts[0] not in aside and f.name[0] != ".")


@lru_cache
def _hash_at(path: Path, mtime_ns: int, size: int) -> str:
    return sha256_of(path)


def _hash(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:12]


def _own_imports(tree: ast.Module) -> list[str]:
    """Modules of ours that a module imports; in ``from a import b``, ``a.b`` may be one too."""
    named = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            named |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            named |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
    return [name for name in named if name.startswith("rdl_core") and _is_module(name)]


def _is_module(name: str) -> bool:
    parent, _, _ = name.rpartition(".")
    if parent and importlib.util.find_spec(parent).submodule_search_locations is None:
        return False  # a name in a module
    return importlib.util.find_spec(name) is not None


def _without_docstrings(tree: ast.Module) -> ast.Module:
    for node in ast.walk(tree):
        body = getattr(node, "body", None)
        if isinstance(body, list):
            node.body = [
                statement
                for statement in body
                if not (isinstance(statement, ast.Expr) and isinstance(statement.value, ast.Constant))
            ]
    return tree


def versions() -> dict[str, str]:
    """Installed versions of the libraries that can change a result.

    >>> "torch" in versions()
    True
    """
    return {name: metadata.version(name) for name in _VERSIONS}


@lru_cache(maxsize=1)
def machine() -> dict:
    """What a reader must know of the machine to place a result.

    >>> sorted(machine())
    ['commit', 'device', 'python', 'threads']
    """
    commit = subprocess.run(
        ["git", "-C", str(project_folder()), "describe", "--always", "--dirty"],
        capture_output=True, text=True, check=False,
    ).stdout.strip()
    return {
        "device": device_name(default_device()),
        "threads": torch.get_num_threads(),
        "python": platform.python_version(),
        "commit": commit or None,
    }
