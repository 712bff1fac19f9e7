"""Settings that people write: YAML read, and each value checked and named if it is wrong."""

from __future__ import annotations

import reprlib
from pathlib import Path
from typing import TypeVar

import yaml
from pydantic import TypeAdapter, ValidationError

__all__ = ["checked", "read_settings"]

_T = TypeVar("_T")


def read_settings(kind: type[_T], path: Path) -> _T:
    """A dataclass from a YAML file of its fields.

    Args:
        kind: The dataclass.
        path: The file.

    Raises:
        ValueError: It is no YAML, or a value does not fit; names the file.

    >>> _ = (folder / "own.yaml").write_text("steps: [")
    >>> read_settings(dict, folder / "own.yaml")
    Traceback (most recent call last):
    ValueError: .../own.yaml: expected YAML; given what is none (...): correct it
    """
    try:
        values = yaml.safe_load(path.read_bytes())
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        said = " ".join(str(error).split())  # of several lines
        raise ValueError(f"{path}: expected YAML; given what is none ({said}): correct it") from None
    return checked(kind, values, what=str(path))


def checked(kind: type[_T], values: object, *, what: str) -> _T:
    """Make a dataclass of untyped values, each checked and named if wrong.

    Args:
        kind: The dataclass.
        values: A mapping of its fields; numbers may be strings that spell them (YAML reads 1e-5 as
            one).
        what: Where the values come from, for the error.

    Raises:
        ValueError: One line for each value that does not fit.

    >>> checked(type(profile.stage2), {"lists": {}}, what="stage")
    Traceback (most recent call last):
    ValueError: stage does not fit:
      lists.collection: missing
    ...
    """
    try:
        return TypeAdapter(kind).validate_python(values)
    except ValidationError as error:
        lines = [_line(problem) for problem in error.errors()]
        raise ValueError(f"{what} does not fit:\n" + "\n".join(lines)) from None


def _line(problem: dict) -> str:
    key = ".".join(map(str, problem["loc"]))
    text = problem["msg"].removeprefix("Value error, ")
    if problem["type"] in ("unexpected_keyword_argument", "extra_forbidden"):
        return f"  {key}: unknown key"
    if problem["type"] == "missing":
        return f"  {key}: missing"
    if problem["type"] == "value_error":  # raised by __post_init__, which names the field itself
        return f"  {key}.{text}" if key else f"  {text}"
    return f"  {key}: {text[0].lower()}{text[1:]}, got {reprlib.repr(problem['input'])}"
