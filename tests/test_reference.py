"""The reference: all that `rdl` offers is on its page, and every module that is meant exists."""

import importlib
import importlib.util
import re

import click

from rdl_study.store import project_folder
from rdl_tools.cli import app

BOOK = project_folder() / "book"
PAGES = [page.read_text() for page in sorted(BOOK.glob("api/*.md"))]
MODULES = [name for page in PAGES for name in re.findall(r"\.\. automodule:: (\S+)", page)]


SPEC = importlib.util.spec_from_file_location("reference", BOOK / "_ext" / "reference.py")
extension = importlib.util.module_from_spec(SPEC)
SPEC.loader.exec_module(extension)


def test_page_has_every_command_with_all_arguments_and_options():
    page, context = extension.command_line(), click.Context(app, info_name="rdl")
    sections = dict(re.findall(r"^## `rdl (\w+)`\n(.*?)(?=^## |\Z)", page, re.DOTALL | re.MULTILINE))
    assert sections.keys() == set(app.list_commands(context))
    for name, section in sections.items():
        for parameter in app.get_command(context, name).params:
            option = parameter.param_type_name == "option"
            assert (parameter.opts[0] if option else parameter.name.upper()) in section, name


def test_reference_has_what_a_user_imports_and_it_says_what_it_is():
    assert all(importlib.import_module(name).__doc__ for name in MODULES)
    assert len(MODULES) == len(set(MODULES)) >= 35
    assert {"rdl_core.samplers", "rdl_core.data.formats", "rdl_study.store"} <= set(MODULES)


def test_no_path_of_the_building_machine_is_a_default():
    signature = "(file: str = '/home/me/x.py', own: dict = <factory>, n=1)"
    shown = extension._plain_defaults(None, "class", "Job", None, None, signature, None)
    assert shown == ("(file: str = ..., own: dict = ..., n=1)", None)
