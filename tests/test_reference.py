"""The reference: all that `rdl` offers is on its page, and every module that is meant exists.

Mutations seen to fail: brackets not escaped; an option left out; paths left in; a module misspelt.
"""

import importlib
import importlib.util
import re

import pytest
import typer.main

from rdl_core.cli import app
from rdl_study.store import project_folder

BOOK = project_folder() / "book"
NAMED = re.compile(r"\.\. automodule:: (\S+)")
PAGES = [page.read_text() for page in sorted(BOOK.glob("api/*.md"))]
MODULES = [name for page in PAGES for name in NAMED.findall(page)]


@pytest.fixture(scope="module")
def extension():
    spec = importlib.util.spec_from_file_location("reference", BOOK / "_ext" / "reference.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_page_has_every_command_with_all_arguments_and_options(extension):
    page = extension.command_line()
    sections = dict(re.findall(r"^## `rdl (\w+)`\n(.*?)(?=^## |\Z)", page, re.S | re.M))
    commands = typer.main.get_command(app).commands
    assert sections.keys() == commands.keys()
    for name, command in commands.items():
        for parameter in command.params:
            said = parameter.opts[0] if parameter.param_type_name == "option" else parameter.name
            assert said in sections[name], f"{said} of rdl {name}"


def test_help_shows_brackets(extension):
    """Rich took ``[ranknet]`` for a style, and the example ended in ``losses=``."""
    assert "losses=[ranknet]" in extension.command_line()


@pytest.mark.parametrize("name", MODULES)
def test_modules_of_the_reference_say_what_is_public(name):
    module = importlib.import_module(name)
    assert module.__doc__
    assert module.__all__


def test_reference_has_what_a_user_imports():
    assert len(MODULES) == len(set(MODULES)) >= 25
    assert {"rdl_core.samplers", "rdl_core.losses", "rdl_core.data.formats"} <= set(MODULES)


def test_no_path_of_the_building_machine_is_a_default(extension):
    signature = "(file: str = '/home/me/x.py', own: dict = <factory>, n=1)"
    shown = extension._plain_defaults(None, "class", "Job", None, None, signature, None)
    assert shown == ("(file: str = ..., own: dict = ..., n=1)", None)
