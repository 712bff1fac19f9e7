"""Small JSON files that say what a folder is: written in one stroke, refused by name if damaged."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path

__all__ = ["read_record", "write_record"]


def read_record(path: Path) -> dict:
    """A JSON object from a file.

    Raises:
        ValueError: The file holds something else; names it.

    >>> _ = (folder / "config.json").write_text('{"seed": ')
    >>> read_record(folder / "config.json")
    Traceback (most recent call last):
    ValueError: .../config.json: expected a JSON object; given a damaged file (...): ...
    """
    try:
        record = json.loads(path.read_bytes())
        if not isinstance(record, dict):
            raise ValueError(f"it begins {path.read_text()[:40]!r}")
    except (ValueError, RecursionError) as error:
        raise ValueError(
            f"{path}: expected a JSON object; given a damaged file ({error}): put a copy in its "
            "place, or begin anew in another folder"
        ) from None
    return record


def write_record(path: Path, record: Mapping) -> None:
    """Write a JSON object, so that a kill leaves the old file whole.

    >>> write_record(folder / "config.json", {"seed": 0})
    >>> read_record(folder / "config.json")
    {'seed': 0}
    """
    partial = path.with_name(f"{path.name}.partial")
    partial.write_text(json.dumps(record, indent=1))
    os.replace(partial, path)
