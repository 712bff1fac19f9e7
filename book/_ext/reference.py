"""The reference from docstrings: what names in single backticks are, and the command line.

Docstrings say `name` of whatever has one: a function of this package, an argument, a file. Where
the reference has such an object the name becomes a link to it, else it is shown as code. Types in
signatures are treated alike, as most of them belong to other libraries. A role that names its kind,
such as ``:func:``, still has to lead somewhere, or a strict build fails.

The page of the command line lists each command's arguments and options, as ``--help`` shows them.

>>> "## `rdl fetch`" in command_line()
True
"""

from __future__ import annotations

import re

import click
from docutils import nodes
from sphinx.addnodes import pending_xref
from sphinx.application import Sphinx
from sphinx.environment import BuildEnvironment
from sphinx.ext.autodoc import Documenter, ModuleDocumenter
from sphinx.ext.autodoc.preserve_defaults import update_defvalue

from rdl_tools.cli import app as rdl

__all__ = ["command_line", "setup"]

_COMMAND_LINE = "book/api/command_line"
_kept: dict[str, list[str]] = {}


def command_line() -> str:
    """Markdown of all commands of `rdl`, their arguments and options."""
    context, text = click.Context(rdl, info_name="rdl"), []
    for name in sorted(rdl.list_commands(context)):
        command = rdl.get_command(context, name)
        own = click.Context(command, parent=context, info_name=name)
        usage = " ".join(["rdl", name, *command.collect_usage_pieces(own)])
        options = (option.get_help_record(own) for option in command.params)
        rows = [f"- `{flags}`: {help}" for flags, help in filter(None, options)]
        help_text = " ".join((command.help or "").split())
        text.append(f"## `rdl {name}`\n\n{help_text}\n\n```console\n$ {usage}\n```\n")
        text.append("\n".join(rows) + "\n")
    return "\n".join(text)


class _SourceOrder(ModuleDocumenter):
    """A module's objects as they stand in its source, not as in `__all__`, by alphabet."""

    priority = ModuleDocumenter.priority + 1

    def sort_members(self, documenters: list, order: str) -> list:
        return Documenter.sort_members(self, documenters, order)


def _fill(app: Sphinx, docname: str, source: list[str]) -> None:
    if docname == _COMMAND_LINE:
        source[0] += f"\n{command_line()}"


def _plain(
    app: Sphinx, env: BuildEnvironment, node: pending_xref, shown: nodes.TextElement
) -> nodes.TextElement | None:
    in_signature = "refwarn" not in node  # only roles in a text have it
    if node.get("refdomain") == "py" and (in_signature or node["reftype"] == "obj"):
        return shown
    return None


def _plain_defaults(
    app: Sphinx, what: str, name: str, obj: object, options: object, signature: str, returns: str
) -> tuple[str, str] | None:
    """No path of the machine that builds the book, no ``<factory>``, which Sphinx cannot parse."""
    return (re.sub(r"'/[^']*'|<[^<>]*>", "...", signature), returns) if signature else None


def _defaults_of_source(app: Sphinx, obj: object, bound_method: bool) -> None:
    """Defaults as the source spells them; of a signature made by code, such as a loss's, values."""
    if "__signature__" not in getattr(obj, "__dict__", {}):
        app.config.autodoc_preserve_defaults = True
        update_defvalue(app, obj, bound_method)
        app.config.autodoc_preserve_defaults = False


def _keep(
    app: Sphinx, what: str, name: str, obj: object, options: object, lines: list[str]
) -> None:
    """Napoleon takes a field's text up to a colon for its type; `_put_back` undoes that."""
    if what in ("attribute", "data", "property"):
        _kept[name] = list(lines)


def _put_back(
    app: Sphinx, what: str, name: str, obj: object, options: object, lines: list[str]
) -> None:
    lines[:] = _kept.pop(name, lines)


def setup(app: Sphinx) -> dict[str, object]:
    """Register with Sphinx what fills pages and settles names."""
    app.setup_extension("sphinx.ext.autodoc")
    app.add_autodocumenter(_SourceOrder, override=True)
    app.connect("source-read", _fill)
    app.connect("missing-reference", _plain)
    app.connect("autodoc-before-process-signature", _defaults_of_source)
    app.connect("autodoc-process-signature", _plain_defaults)
    app.connect("autodoc-process-docstring", _keep, priority=400)  # napoleon's is 500
    app.connect("autodoc-process-docstring", _put_back, priority=600)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
