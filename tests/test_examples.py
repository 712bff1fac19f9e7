"""`pytest rdl_core` runs a short example of every public function and class.

Mutation seen to fail: the example taken out of `rdl_core.tokens.plan_batches`.
"""

import importlib
import inspect
import pkgutil

import pytest

import rdl_core

MODULES = [
    module.name
    for module in pkgutil.walk_packages(rdl_core.__path__, "rdl_core.")
    if not module.name.rpartition(".")[2].startswith(("_", "conftest"))  # pytest's, not a reader's
]


def public():
    for name in MODULES:
        module = importlib.import_module(name)
        for attribute in getattr(module, "__all__", ()):
            value = getattr(module, attribute)
            if inspect.isroutine(value) and value.__module__ == name:
                yield pytest.param(value, id=f"{name}.{attribute}")


@pytest.mark.parametrize("function", list(public()))
def test_a_public_function_has_an_example_of_at_most_six_lines(function):
    lines = [line.strip() for line in inspect.getdoc(function).splitlines()]
    shown = [line for line in lines if line.startswith((">>>", "..."))]
    assert 1 <= len(shown) <= 6


@pytest.mark.parametrize("name", MODULES)
def test_a_module_says_what_it_is_and_what_is_public(name):
    module = importlib.import_module(name)
    if module.__file__.endswith("__init__.py") and not module.__doc__:
        return
    assert module.__doc__
    assert hasattr(module, "__all__")
