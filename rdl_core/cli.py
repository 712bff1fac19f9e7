"""The command `rdl`: one command for each configuration of `rdl_core.config`, made from its fields.

Names, types, defaults and help texts of options are those of the configuration. Commands of other
packages, such as the study's, are found through the entry points ``rdl.commands``. What a command
needs is imported when it runs, so that ``--help`` is quick.
"""

from __future__ import annotations

import errno
import inspect
import json
import os
import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from importlib.metadata import entry_points
from pathlib import Path
from typing import Annotated, Any, Literal, get_args, get_origin, get_type_hints

import click
from pydantic_core import PydanticUndefined

from rdl_core import config as c
from rdl_core.files import checked, read_yaml
from rdl_core.progress import log_plainly

__all__ = ["app", "command", "refusals"]

_DISK_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
_NONE = type(None)
_WHAT = "the command line"  # in errors


def command(
    *positional: str, flat: Mapping[str, type] | None = None,
    choices: Mapping[str, Mapping[str, type]] | None = None,
) -> Callable[[Callable[..., str | None]], click.Command]:  # fmt: skip
    """Make a command of a function, whose docstring is its help; what it returns is printed.

    A parameter ``config``, annotated with a configuration's class, becomes one option per field; any
    other, annotated as ``Annotated[type, help]`` or ``Annotated[type, "--name", help]``, one option.

    Args:
        positional: Names of fields or parameters that are given without their names, in this order;
            one that holds several comes last.
        flat: Dict fields whose entries are options too, by the configuration that declares them.
        choices: Fields that hold one of several configurations: by field, these by the value of the
            option that chooses.
    """
    nested = {**{name: {"": kind} for name, kind in (flat or {}).items()}, **(choices or {})}

    def decorate(function: Callable[..., str | None]) -> click.Command:
        hints = get_type_hints(function, include_extras=True)
        kind, extras = hints.pop("config", None), {n: x for n, x in hints.items() if n != "return"}
        fields = {name: x for name, x in _fields(kind).items() if name not in nested}
        for name, hint in extras.items():
            inner, *flags, text = get_args(hint)
            default = inspect.signature(function).parameters[name].default
            fields[name] = (inner, default, text, flags)
        params = {name: _parameter(name, *field, name in positional) for name, field in fields.items()}
        for name, classes in nested.items():
            for each in classes.values():
                for key, field in _fields(each).items():
                    params.setdefault(key, _parameter(key, *field, False))
            if name in (choices or {}):
                params[name] = click.Option(
                    [_flag(name)], type=click.Choice(list(classes)), default=next(iter(classes)),
                    show_default=True, help=_fields(kind)[name][2],
                )  # fmt: skip

        def run(**values: Any) -> None:
            log_plainly()
            with refusals():
                given = {name: x for name, x in values.items() if x not in (None, ())}
                settings = {name: given.pop(name) for name in fields if name in given}
                arguments = {name: settings.pop(name) for name in extras if name in settings}
                for name, classes in nested.items():
                    value = given.pop(name, "")
                    settings[name] = _one_of(given, classes, name, value)
                    if value:  # several configurations have fields of the same names
                        settings[name] = checked(classes[value], settings[name], what=_WHAT)
                if kind:
                    arguments["config"] = checked(kind, settings, what=_WHAT)
                text = function(**arguments)
            if text:
                click.echo(text)

        order = sorted(params, key=lambda n: positional.index(n) if n in positional else 99)
        name = function.__name__
        return click.Command(name, None, run, [params[n] for n in order], help=function.__doc__)

    return decorate


# --- from fields to options -----------------------------------------------------------------------


def _fields(kind: type | None) -> dict[str, tuple[Any, Any, str, list[str]]]:
    """Type, default, help and flags of a configuration's fields; a subclass lacks inherited helps."""
    bases = [x for x in getattr(kind, "__mro__", ()) if hasattr(x, "__pydantic_fields__")]
    fields = {}
    for name, info in bases[0].__pydantic_fields__.items() if bases else ():
        helps = (x.__pydantic_fields__[name].description for x in bases if name in x.__pydantic_fields__)
        default = None if info.default_factory else info.default
        default = inspect.Parameter.empty if default is PydanticUndefined else default
        fields[name] = (info.annotation, default, next(filter(None, helps), ""), [])
    return fields


def _parameter(
    name: str, hint: Any, default: Any, text: str, flags: list[str], positional: bool
) -> click.Parameter:
    kind = next((x for x in get_args(hint) if x is not _NONE), hint) if _optional(hint) else hint
    required = default is inspect.Parameter.empty
    several = get_origin(kind) is tuple or get_origin(kind) is dict
    if positional:
        return click.Argument([name], required=required, nargs=-1 if several else 1)
    options: dict[str, Any] = {"required": required, "multiple": several}
    if default not in (inspect.Parameter.empty, None, (), ""):
        shown = ", ".join(default) if isinstance(default, tuple) else default
        text += f" [default: {shown}]" if default is not False else ""
    text = " ".join(re.sub(r"`(?:rdl_core\.[\w.]*\.)?(\w+)`", r"\1", text).split())
    if get_origin(kind) is Literal:
        options["type"] = click.Choice([str(x) for x in get_args(kind)])
    elif kind is bool:
        flags = flags or [f"{_flag(name)}/{_flag(f'no_{name}')}" if default else _flag(name)]
        options = {"default": None, "is_flag": True}
    elif get_origin(kind) is dict:
        options |= {"metavar": "NAME=VALUE", "callback": _named_values}
    else:
        base = get_args(kind)[0] if get_origin(kind) in (Annotated, tuple) else kind
        options["metavar"] = {int: "INTEGER", float: "NUMBER"}.get(base, "TEXT")
    return click.Option([*(flags or [_flag(name)]), name], help=text, **options)


def _optional(hint: Any) -> bool:
    return _NONE in get_args(hint)


def _flag(name: str) -> str:
    return f"--{name.replace('_', '-')}"


def _named_values(
    context: click.Context, parameter: click.Parameter, values: tuple[str, ...]
) -> dict[str, Any] | None:
    """``name=value`` options as a dict; values are JSON where they parse as such, else text."""
    pairs = {}
    for text in values:
        name, equals, value = text.partition("=")
        if not equals:
            raise click.BadParameter(f"expected name=value, got {text!r}", context, parameter)
        try:
            pairs[name] = json.loads(value)
        except json.JSONDecodeError:
            pairs[name] = value
    return pairs or None


def _one_of(
    given: dict[str, Any], classes: Mapping[str, type], name: str, value: str
) -> dict[str, Any]:
    """The options that were given of the nested configuration that was chosen."""
    own = {key: given.pop(key) for key in list(given) if key in _fields(classes[value])}
    for key in given:
        if users := [other for other, kind in classes.items() if key in _fields(kind)]:
            raise ValueError(
                f"{key}: an option of {name} {' and '.join(users)}, but {name} is {value}: leave it "
                f"out, or choose {users[0]}"
            )
    return own


@contextmanager
def refusals() -> Iterator[None]:
    """Errors that a user can mend become one line on standard error and exit code 2."""
    from safetensors import SafetensorError

    try:
        yield
    except FileNotFoundError as error:
        message = f"No such file: {error.filename}"
    except (OSError, ValueError, FloatingPointError, MemoryError, SafetensorError) as error:
        message = _in_words(error)
    else:
        return
    click.echo(f"error: {message}", err=True)
    raise click.exceptions.Exit(2)


def _in_words(error: Exception) -> str:
    """An error as a line; of a full disk, the system says neither what it means nor what to do."""
    number = getattr(error, "errno", None)
    if in_text := re.search(r"\(os error (\d+)\)", str(error)):
        number = number or int(in_text[1])
    if number not in _DISK_FULL:
        return str(error)
    where = getattr(error, "filename", None) or "a file"
    return (
        f"{where} was not written, the disk is full ({os.strerror(number)}): free some space and run "
        "the command again, which goes on with what is finished"
    )


# --- the library's commands -----------------------------------------------------------------------


@command("lists", "out", flat={"training": c.StageConfig})
def distill(
    config: c.DistillConfig,
    out: Annotated[str, "Folder of the student; resumed where unfinished."],
    settings: Annotated[str | None, "--config", "YAML of training options; others come first."] = None,
) -> str:
    """Distil a student from ranked lists.

    Training options that nobody gives are those of Rank-DistiLLM's second stage, with as many steps
    as show every list three times.
    """
    from rdl_core.distill import distill_files

    if settings:
        config = replace(config, training=read_yaml(Path(settings)) | config.training)
    distill_files(config, out)
    return f"student in {out}/model"


@command("candidates", "out", choices={"backend": c.BACKENDS})
def teach(
    config: c.TeachConfig,
    out: Annotated[str, "Folder of the lists; resumed where unfinished."],
    dry_run: Annotated[bool, "Say what would be asked; ask nothing."] = False,
) -> str:
    """Have a teacher rank candidates, as lists to distil from.

    Every answer is kept as it comes: what broke off goes on when the command is called again. The
    key of an endpoint is taken from the environment alone.
    """
    from rdl_core.teachers import teach as teaching

    if dry_run:
        return str(teaching.estimate(config, out))
    return f"lists in {out}: {_totals(teaching.teach(config, out))}"


@command("out", "shards")
def merge(
    out: Annotated[str, "A new folder, or a run."],
    shards: Annotated[tuple[str, ...], "Folders of rdl teach, or runs of rdl rerank: all shards."],
) -> str:
    """Make all shards one, if nothing is missing: a teacher's lists, or runs of rdl rerank."""
    if all(Path(shard).is_file() for shard in shards):
        from rdl_core.rerank import merge_runs

        return f"{out}: {merge_runs(shards, out)} queries"
    from rdl_core.teachers.teach import merge_lists

    return f"lists in {out}: {_totals(merge_lists(shards, out))}"


@command("student", "candidates", "out")
def rerank(config: c.RerankConfig) -> None:
    """Re-rank candidates with a student; rdl merge joins the runs of shards."""
    from rdl_core.rerank import rerank_files

    rerank_files(config)


@command("qrels", "runs")
def evaluate(config: c.EvaluateConfig) -> str:
    """Measure runs, and test them against one of them.

    Means with 95 % bootstrap intervals; differences from the baseline with theirs, the paired
    t-test, corrected by Holm over the other runs, and TOST for equivalence up to the margin.
    """
    from rdl_core.evaluate import evaluate_files

    return evaluate_files(config)


@command("student", "out")
def export(config: c.ExportConfig) -> str:
    """Write a student for transformers, sentence-transformers and onnxruntime."""
    from rdl_core.export import export_files

    differences = export_files(config).to_string(index=False)
    return f"{config.out}: how far the scores of ONNX files are from PyTorch's\n{differences}"


@command("group")
def fetch(group: Annotated[str, "trec-dl, vaswani, cranfield or rank-distillm."]) -> str:
    """Fetch the public files of a group, as far as neither RDL_MIRROR nor the cache holds them."""
    from rdl_core.data.downloads import fetch_group

    paths = fetch_group(group)
    folders = sorted({str(path).partition(f"/{group}/")[0] for path in paths})
    size_mb = sum(path.stat().st_size for path in paths) / 1e6
    return f"{group}: {len(paths)} files, {size_mb:.1f} MB, in {' and '.join(folders)}"


def _totals(report: dict) -> str:
    """A report's totals in a line, without what nobody counted."""
    return ", ".join(f"{name} {x}" for name, x in report["totals"].items() if x is not None)


class _Commands(click.Group):
    """The library's commands, and those that the entry points ``rdl.commands`` name."""

    def list_commands(self, context: click.Context) -> list[str]:
        return [*super().list_commands(context), *entry_points(group="rdl.commands").names]

    def get_command(self, context: click.Context, name: str) -> click.Command | None:
        if library := super().get_command(context, name):
            return library
        others = entry_points(group="rdl.commands", name=name)
        return next(iter(others)).load() if others else None


app = _Commands(
    "rdl", commands=[teach, distill, rerank, evaluate, export, merge, fetch], no_args_is_help=True,
    help="Rank-DistiLLM: distil an LLM's rankings into cross-encoders.",
)  # fmt: skip


if __name__ == "__main__":
    app()
