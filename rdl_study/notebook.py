"""Notebooks as declarations: their parameters, and the systems that they compare.

The first code cell, tagged ``parameters``, has literals, which papermill may set. The one tagged
``systems`` makes ``parts`` of them, a `rdl_study.grid.Part` by name, with the imports of the one tagged
``setup``. `declared` runs these cells alone: graph, claims and ``rdl study`` use no other declaration.
"""

from __future__ import annotations

import ast
import json
from collections.abc import Collection, Mapping, MutableMapping
from contextlib import suppress
from types import NoneType
from typing import Any

import yaml

from rdl_core.progress import set_up_process
from rdl_study.grid import Part
from rdl_study.profile import Profile, load_profile
from rdl_study.store import project_folder

__all__ = ["cells", "declared", "notebooks", "parameters"]

_OF_JUPYTER = {"In", "Out"}
_PLAIN = (str, int, float, bool, list, tuple, dict, NoneType)
_WORDS = {str: "text", int: "a whole number", float: "a number", bool: "true or false"}


def notebooks() -> list[str]:
    """Names of all notebooks; the start page, which sums up the others, is the last."""
    names = (path.stem for path in (project_folder() / "notebooks").glob("*.ipynb"))
    return sorted(names, key=lambda name: (name == "start", name))


def cells(name: str) -> list[tuple[list[str], str]]:
    """Tags and source of a notebook's code cells."""
    if name not in (known := notebooks()):
        raise ValueError(f"notebook: expected one of {', '.join(known)}; got {name!r}")
    path = project_folder() / "notebooks" / f"{name}.ipynb"
    content = json.loads(path.read_text(encoding="utf-8"))
    return [
        (cell["metadata"].get("tags", []), "".join(cell["source"]))
        for cell in content["cells"] if cell["cell_type"] == "code"
    ]  # fmt: skip


def declared(name: str, values: Mapping[str, Any]) -> dict[str, Part]:
    """The parts that a notebook compares, by name; none for a notebook without a ``systems`` cell.

    `values` replace its parameters; ValueError names one that it does not have or that does not fit.
    """
    namespace: dict[str, Any] = {}
    for tags, source in cells(name):
        if {"parameters", "setup", "systems"}.intersection(tags):
            exec(compile(source, f"notebooks/{name}.ipynb, {tags[0]}", "exec"), namespace)
        if "parameters" in tags:
            namespace |= values
    return namespace.get("parts", {})


def parameters(notebook: str, namespace: MutableMapping[str, Any], **choices: Collection[Any]) -> None:
    """Check a notebook's parameters in its ``globals()``, and put the checked values there.

    A list may be the text that papermill's ``-p`` makes of it. `choices` are valid values of some
    parameters: a list must have one or more different ones; text may be several with ``+`` between.
    """
    set_up_process()
    defaults = _defaults(notebook)
    names = {
        name for name, value in namespace.items()
        if isinstance(value, _PLAIN) and name[0] != "_" and name not in _OF_JUPYTER
    }  # fmt: skip
    # Run again by hand, the cell also finds what later cells have made.
    names &= namespace.setdefault("_rdl_names", names)
    if unknown := sorted(names - defaults.keys() - _bound(notebook, "setup")):
        names, known = ", ".join(unknown), ", ".join(defaults)
        raise ValueError(f"notebook {notebook!r} has no parameter {names}: expected {known}")
    for name, default in defaults.items():
        value = _checked(name, namespace[name], default)
        if name in choices and value != default:  # which may be an empty list
            _check_choice(name, value, choices[name])
        namespace[name] = value
    load_profile(namespace["profile"])


def _defaults(notebook: str) -> dict[str, Any]:
    """Names and literals of the ``parameters`` cell."""
    source = next(source for tags, source in cells(notebook) if "parameters" in tags)
    return {
        statement.targets[0].id: ast.literal_eval(statement.value)
        for statement in ast.parse(source).body
    }


def _bound(notebook: str, tag: str) -> set[str]:
    """Names that the imports and assignments of a notebook's tagged cells bind."""
    trees = [ast.parse(source) for tags, source in cells(notebook) if tag in tags]
    nodes = [node for tree in trees for node in ast.walk(tree)]
    names = {(x.asname or x.name).partition(".")[0] for x in nodes if isinstance(x, ast.alias)}
    return names | {x.id for x in nodes if isinstance(x, ast.Name) and isinstance(x.ctx, ast.Store)}


def _checked(name: str, value: Any, default: Any) -> Any:
    """The value as the default's type; text is read where another type is expected."""
    if default is None or (isinstance(value, Profile) and name == "profile"):
        return value
    if isinstance(value, str) and not isinstance(default, str):
        with suppress(yaml.YAMLError):
            value = yaml.safe_load(value)
    if isinstance(default, list):
        kinds = {type(x) for x in default} or {str, int, float}
        words = [_WORDS[x].removeprefix("a ").replace("number", "numbers") for x in kinds - {NoneType}]
        expected = f"a list of {' or '.join(words)}"
        items = list(value) if isinstance(value, (list, tuple)) else [object()]
        value = items if isinstance(value, tuple) else value
    else:
        kinds, items, expected = {type(default)}, [value], _WORDS[type(default)]
    if float in kinds:
        kinds = kinds | {int}
    # Null is a value of lists that say so, such as all queries.
    if all(type(x) in kinds or (x is None and isinstance(default, list)) for x in items):
        return value
    raise ValueError(f"{name}: expected {expected}, got {json.dumps(value, default=str)}")


def _check_choice(name: str, value: Any, valid: Collection[Any]) -> None:
    values = value if isinstance(value, list) else [value]
    words = [x for value in values for x in (value.split("+") if isinstance(value, str) else [value])]
    if all(x in valid for x in words) and values and len(set(values)) == len(values):
        return
    names = f"{valid[0]} to {valid[-1]}" if isinstance(valid, range) else ", ".join(map(str, valid))
    expected = f"one or more different values of {names}" if isinstance(value, list) else names
    raise ValueError(f"{name}: expected {expected}; got {json.dumps(value, default=str)}")
