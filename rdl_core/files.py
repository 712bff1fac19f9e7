"""Atomic JSON, settings from YAML, hashes of files, and folders whose work resumes.

Such a folder has ``config.json`` from its start, the identity of the work: all that can change its
result; and ``manifest.json`` from its end: identity, circumstances, and a hash of every file.
"""

import hashlib
import json
import logging
import os
import platform
import reprlib
import shutil
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from datetime import UTC, datetime
from functools import lru_cache
from importlib import metadata
from pathlib import Path
from typing import Any, TypeVar

import yaml
from filelock import FileLock, Timeout
from pydantic import TypeAdapter, ValidationError

__all__ = ["Work", "checked", "content_hash", "partial", "read_json", "read_settings", "read_yaml",
           "resumable", "versions", "write_json"]  # fmt: skip

CONFIG, MANIFEST, _LOCK = "config.json", "manifest.json", ".lock"
_RESTORE = "restore the file, or start again in another folder"
_T = TypeVar("_T")
_log = logging.getLogger(__name__)


@contextmanager
def partial(path: Path) -> Iterator[Path]:
    """Name of a file or folder to write; it becomes `path` once it is whole, and is gone otherwise."""
    beside = path.with_name(f"{path.name}.partial")
    _delete(beside)  # which a killed process left
    try:
        yield beside
        os.replace(beside, path)
    finally:
        _delete(beside)


def _delete(path: Path) -> None:
    """Delete a file or a folder, if it is there."""
    shutil.rmtree(path, ignore_errors=True)
    path.unlink(missing_ok=True)


def read_json(path: Path) -> dict:
    """A JSON object from a file; ValueError if the file holds anything else."""
    try:
        value = json.loads(path.read_bytes())
        if not isinstance(value, dict):
            raise ValueError(f"it is {reprlib.repr(value)}")
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path} is damaged: expected a JSON object ({error}): {_RESTORE}") from None
    return value


def write_json(path: Path, value: Mapping) -> None:
    """Write a JSON object; a kill leaves the old file whole."""
    with partial(path) as beside:
        beside.write_text(json.dumps(value, indent=1))


def content_hash(path: Path) -> str:
    """SHA-256 of a file; read once per process for each size and time of change."""
    state = path.stat()
    return _sha256(path, state.st_mtime_ns, state.st_size)


@lru_cache
def _sha256(path: Path, mtime_ns: int, size: int) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def versions() -> dict[str, str]:
    """Installed versions of the libraries that can change a result."""
    names = "rdl-core torch transformers tokenizers sentence-transformers bm25s openai"
    return {name: metadata.version(name) for name in names.split()}


def read_yaml(path: Path) -> dict:
    """A mapping from a YAML file; ValueError names the file and the line that is not YAML."""
    try:
        values = yaml.safe_load(path.read_bytes())
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise ValueError(f"{path} is not valid YAML: {' '.join(str(error).split())}") from None
    if not isinstance(values, dict):
        raise ValueError(f"{path}: expected lines of name: value, got {reprlib.repr(values)}")
    return values


def read_settings(kind: type[_T], path: Path) -> _T:
    """A configuration from a YAML file of its fields; ValueError names the file and each misfit."""
    return checked(kind, read_yaml(path), what=str(path))


def checked(kind: type[_T], values: object, *, what: str) -> _T:
    """A configuration from its fields; numbers may be strings, as YAML's ``1e-5`` is one.

    ValueError has a line for each field that does not fit; `what` says where the values come from.
    """
    try:
        return TypeAdapter(kind).validate_python(values)
    except ValidationError as error:
        lines = [f"{what} does not fit:"]
        known = {"unexpected_keyword_argument": "unknown key", "missing": "missing"}
        for problem in error.errors():
            text, key = problem["msg"], ".".join(map(str, problem["loc"]))
            misfit = known.get(problem["type"], f"{text}, got {reprlib.repr(problem['input'])}")
            own = text.removeprefix("Value error, ")  # of a check of ours, which names the field
            lines.append(f"  {key}: {misfit}" if own == text else f"  {own}")
        raise ValueError("\n".join(lines)) from None


class Work:
    """Work in a folder: `manifest` once it is finished, None before."""

    def __init__(self, folder: Path, identity: dict, manifest: dict | None) -> None:
        self.folder, self.identity, self.manifest = folder, identity, manifest
        self._started = time.monotonic()

    def finish(self, **more: Any) -> dict:
        """Write the manifest, last of all: identity, circumstances, hashes of files, and `more`."""
        names = {path.relative_to(self.folder) for path in self.folder.rglob("*") if path.is_file()}
        names = {x.as_posix() for x in names if x.name[0] != "."} - {CONFIG, MANIFEST}
        self.manifest = self.identity | {
            "finished": datetime.now(UTC).isoformat(timespec="seconds"),
            "wall_s": round(time.monotonic() - self._started, 2),
            "versions": versions(), "python": platform.python_version(), **more,
            "files": {name: content_hash(self.folder / name) for name in sorted(names)},
        }  # fmt: skip
        write_json(self.folder / MANIFEST, self.manifest)
        return self.manifest


@contextmanager
def resumable(
    folder: Path, identity: Mapping, *, shared: bool = False, brought: str = ""
) -> Iterator[Work]:
    """Hold a folder, made if missing, for work that goes on when it was killed and is started again.

    `identity` is all that decides the result, as JSON; it may change until something is computed. A new
    folder may have one file, `brought`. ValueError if another process works in the folder, it holds
    another identity, or a file changed since the work was finished. A `shared` folder, of a store,
    waits for the process instead, and what is damaged is computed anew.
    """
    identity = json.loads(json.dumps(identity))
    if folder.is_file():
        raise ValueError(f"{folder} is a file: name a folder")
    folder.mkdir(parents=True, exist_ok=True)
    try:
        lock = FileLock(folder / _LOCK).acquire(timeout=-1 if shared else 0)
    except Timeout:
        raise ValueError(f"{folder}: another process works in this folder: wait for it") from None
    with lock:
        try:
            manifest = _claim(folder, identity, brought)
        except ValueError as error:
            if not shared:
                raise
            _log.warning("%s; computing it again", error)
            for path in folder.iterdir():
                if path.name != _LOCK:
                    _delete(path)
            manifest = _claim(folder, identity, brought)
        yield Work(folder, identity, manifest)


def _claim(folder: Path, identity: dict, brought: str) -> dict | None:
    """The manifest of finished work; a new or unfinished folder gets its ``config.json``."""
    held = {path.name for path in folder.iterdir() if path.suffix != ".partial"}
    held -= {_LOCK, CONFIG, brought}
    begun = read_json(folder / CONFIG) if (folder / CONFIG).exists() else None
    if held and begun != identity:
        told = f"{folder} holds {min(held)}: expected a new or empty folder"
        if begun is not None:
            was, now = _flat(begun), _flat(identity)
            changed = [key for key in was | now if was.get(key) != now.get(key)]
            told = "; ".join(f"{key} was {was.get(key)!r}, is {now.get(key)!r}" for key in changed[:3])
            told = f"{folder} was begun with another configuration ({told})"
        raise ValueError(f"{told}: name another folder")
    if not (folder / MANIFEST).exists():
        write_json(folder / CONFIG, identity)
        return None
    manifest = read_json(folder / MANIFEST)
    for name, expected in manifest.get("files", {}).items():
        path = folder / name
        if not path.is_file() or content_hash(path) != expected:
            raise ValueError(f"{path} changed since it was written: {_RESTORE}")
    return manifest


def _flat(value: object, key: str = "") -> dict[str, object]:
    """Nested settings under dotted names."""
    if not isinstance(value, (dict, list)):
        return {key: value}
    items = value.items() if isinstance(value, dict) else enumerate(value, start=1)
    return {name: x for k, v in items for name, x in _flat(v, f"{key}.{k}".strip(".")).items()}
