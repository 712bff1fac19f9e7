"""The command `rdl`: its commands are made from the fields of configurations (`rdl_tools.config`).

Other packages add commands by entry points ``rdl.commands``. What a command needs is imported when run.
"""

import json
import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import replace
from importlib.metadata import entry_points
from pathlib import Path
from types import NoneType
from typing import Annotated, Any, Literal, get_args, get_origin

import click
from pydantic.fields import FieldInfo

from rdl_core.config import BACKENDS, StageConfig
from rdl_core.files import checked, read_yaml
from rdl_core.progress import set_up_process
from rdl_tools import config as c

__all__ = ["app", "command", "named_values", "refusals"]


def command(
    kind: type | None = None, *positional: str, **nested: Mapping[str, type]
) -> Callable[[Callable[..., str | None]], click.Command]:
    """Make a command of a function, whose docstring is its help; what it returns is printed.

    Args:
        kind: Configuration whose fields become options; the function gets one as ``config``.
        positional: Fields given without a name, in this order; the last may be several.
        nested: Field that holds another configuration, whose fields are options, too: classes by the
            value of the option that chooses, or ``{"": class}`` for a dict of fields.
    """

    def decorate(function: Callable[..., str | None]) -> click.Command:
        # Click's own decorators, below this one, add parameters that no configuration has.
        fields, more = _fields(kind), getattr(function, "__click_params__", [])[::-1]
        for name, classes in nested.items():
            field, first = fields.pop(name), next(iter(classes))
            if first:
                own = {"default": first, "description": field.description}
                fields[name] = FieldInfo(annotation=Literal[*classes], **own)
            for each in classes.values():
                fields = {**fields, **_fields(each), **fields}  # the first of a name counts

        def run(**values: Any) -> None:
            set_up_process()
            arguments = {parameter.name: values.pop(parameter.name) for parameter in more}
            given = {name: x for name, x in values.items() if x not in (None, (), {})}
            settings = {name: given.pop(name) for name in _fields(kind) if name in given}
            with refusals():
                for name, classes in nested.items():
                    choice, settings[name] = settings.pop(name, next(iter(classes))), given
                    if choice:  # several configurations have fields of the same names
                        settings[name] = checked(classes[choice], given, what=f"{name} {choice}")
                if kind:
                    arguments["config"] = checked(kind, settings, what="the command line")
                if text := function(**arguments):
                    click.echo(text)

        order = [*positional, *(name for name in fields if name not in positional)]
        params = [_parameter(name, fields[name], name in positional) for name in order]
        return click.Command(function.__name__, None, run, params + more, help=function.__doc__)

    return decorate


def _fields(kind: type | None) -> dict[str, FieldInfo]:
    """A configuration's fields, as the class declares them that has their help."""
    bases = [vars(x).get("__pydantic_fields__", {}) for x in kind.__mro__] if kind else [{}]
    return {n: next(x[n] for x in bases if n in x and x[n].description) for n in bases[0]}


def _parameter(name: str, field: FieldInfo, positional: bool) -> click.Parameter:
    hint, default, text = field.annotation, field.default, field.description
    kind = get_args(hint)[0] if NoneType in get_args(hint) else hint
    origin, required = get_origin(kind), field.is_required()
    if positional:
        return click.Argument([name], required=required, nargs=-1 if origin is tuple else 1)
    flag, options = f"--{name.replace('_', '-')}", {"required": required}
    if origin is Literal:
        options["type"] = click.Choice(get_args(kind))
    elif kind is bool:
        flag += flag.replace("--", "/--no-") if default else ""
        options = {"default": None, "is_flag": True}
    elif origin is dict:
        options |= {"multiple": True, "metavar": "NAME=VALUE", "callback": named_values}
    else:
        base = get_args(kind)[0] if origin in (Annotated, tuple) else kind
        metavar = {int: "INTEGER", float: "NUMBER"}.get(base, "TEXT")
        options |= {"multiple": origin is tuple, "metavar": metavar}
    if isinstance(default, (str, int, float, tuple)) and str(default) not in ("", "()", "False"):
        text += f" [default: {', '.join(default) if isinstance(default, tuple) else default}]"
    text = " ".join(re.sub(r"`(?:[\w.]*\.)?(\w+)`", r"\1", text).split())
    return click.Option([flag, name], help=text, **options)


def named_values(_: click.Context, __: click.Parameter, values: tuple[str, ...]) -> dict[str, Any]:
    """``name=value`` options as a dict; values are JSON where they parse as such, else text."""
    pairs = {}
    for text in values:
        name, equals, value = text.partition("=")
        if not equals:
            raise click.BadParameter(f"expected name=value, got {text!r}")
        with suppress(json.JSONDecodeError):
            value = json.loads(value)
        pairs[name] = value
    return pairs


@contextmanager
def refusals() -> Iterator[None]:
    """Errors that a user can mend become one line on standard error and exit code 2."""
    from safetensors import SafetensorError

    try:
        yield
    except (OSError, ValueError, FloatingPointError, MemoryError, SafetensorError) as error:
        message = str(error)
        if isinstance(error, FileNotFoundError):
            message = f"No such file: {error.filename}"
        elif re.search(r"No space left|quota exceeded|File too large|os error (27|28|122)", message):
            message += ": the disk is full: free some space and run the command again, which goes on"
        click.echo(f"error: {message}", err=True)
        raise click.exceptions.Exit(2) from None


@command(c.DistillConfig, "lists", training={"": StageConfig})
@click.argument("out")
@click.option("--config", "settings", help="YAML of training options; others come first.")
def distill(config: c.DistillConfig, out: str, settings: str | None) -> str:
    """Distil a student from ranked lists into a folder, or go on where that stopped.

    Training is by default Rank-DistiLLM's second stage, with steps that show every list three times.
    """
    from rdl_tools.distill import distill_files

    if settings:
        config = replace(config, training=read_yaml(Path(settings)) | config.training)
    distill_files(config, out)
    return f"student in {out}/model"


@command(c.TeachConfig, "candidates", backend=BACKENDS)
@click.argument("out")
@click.option("--dry-run", is_flag=True, help="Say what would be asked; ask nothing.")
def teach(config: c.TeachConfig, out: str, dry_run: bool) -> str:
    """Have a teacher rank candidates, as lists to distil from, or go on where that stopped.

    Every answer is kept as it comes. An endpoint's key is taken from the environment alone.
    """
    from rdl_tools import teach as teaching

    if dry_run:
        return str(teaching.estimate(config, out))
    return f"lists in {out}: {_counts_of(teaching.teach(config, out))}"


_WRITERS = {name: kind for name, kind in BACKENDS.items() if name != "replay"}


@command(c.AskConfig, "collection", backend=_WRITERS)
@click.argument("out")
@click.option("--dry-run", is_flag=True, help="Say what would be asked; ask nothing.")
def ask(config: c.AskConfig, out: str, dry_run: bool) -> str:
    """Have an LLM write queries for passages, and keep those that find their passage.

    The folder has queries, judgments, and BM25's candidates with texts, which rdl teach takes.
    """
    return _label("ask", config, out, dry_run)


@command(c.JudgeConfig, "candidates", backend=_WRITERS)
@click.argument("out")
@click.option("--dry-run", is_flag=True, help="Say what would be asked; ask nothing.")
def judge(config: c.JudgeConfig, out: str, dry_run: bool) -> str:
    """Have an LLM grade candidates from 0 to 3, and say how far it agrees with human judgments."""
    return _label("judge", config, out, dry_run)


def _label(work: str, config: c.AskConfig | c.JudgeConfig, out: str, dry_run: bool) -> str:
    from rdl_tools import label

    if dry_run:
        return str(label.estimate(config, out))
    return f"{out}: {_counts_of(getattr(label, work)(config, out))}"


@command()
@click.argument("out")
@click.argument("shards", nargs=-1, required=True)
def merge(out: str, shards: tuple[str, ...]) -> str:
    """Join all shards, if none is missing: folders of rdl teach, or runs of rdl rerank."""
    if all(Path(shard).is_file() for shard in shards):
        from rdl_tools.rerank import merge_runs

        return f"{out}: {merge_runs(shards, out)} queries"
    from rdl_tools.teach import merge_lists

    return f"lists in {out}: {_counts_of(merge_lists(shards, out))}"


@command(c.RerankConfig, "student", "candidates", "out")
def rerank(config: c.RerankConfig) -> None:
    """Re-rank candidates with a student; rdl merge joins the runs of shards."""
    from rdl_tools.rerank import rerank_files

    rerank_files(config)


@command(c.ServeConfig, "student")
def serve(config: c.ServeConfig) -> None:
    """Serve a student over HTTP: /rerank as Cohere, Jina, vLLM and TEI have it, and /score."""
    try:
        from rdl_tools.serve import serve as answer
    except ModuleNotFoundError as error:
        raise ValueError(f"{error}: pip install rdl-core[serve]") from None
    answer(config)


@command(c.AdoptConfig, "student", "candidates", "qrels")
def adopt(config: c.AdoptConfig) -> str:
    """Choose, by judged queries, how much of a student to use behind a first stage.

    Weight and depth of re-ranking, and what scores mean as probabilities of relevance, measured on
    queries that had no part in choosing. rdl rerank applies it, unless it is told --plain.
    """
    from rdl_tools.adopt import adopt_files

    return str(adopt_files(config))


@command(c.EvaluateConfig, "qrels", "runs")
def evaluate(config: c.EvaluateConfig) -> str:
    """Measure runs, and test them against one of them.

    Means and differences from the baseline with 95 % bootstrap intervals; paired t-tests, corrected
    by Holm over the other runs; TOST for equivalence up to the margin.
    """
    from rdl_tools.evaluate import evaluate_files

    return evaluate_files(config)


@command(c.ExportConfig, "student", "out")
def export(config: c.ExportConfig) -> str:
    """Write a student for transformers, sentence-transformers and onnxruntime, and --push it."""
    from rdl_tools.export import export_files

    differences = export_files(config).to_string(index=False)
    return f"{config.out}: how far the scores of ONNX files are from PyTorch's\n{differences}"


@command()
@click.argument("group")
def fetch(group: str) -> str:
    """Fetch the public files of trec-dl, vaswani, cranfield or rank-distillm that are not here yet."""
    from rdl_core.data.downloads import fetch_group

    paths = fetch_group(group)
    folders = sorted({str(path).partition(f"/{group}/")[0] for path in paths})
    size_mb = sum(path.stat().st_size for path in paths) / 1e6
    return f"{group}: {len(paths)} files, {size_mb:.1f} MB, in {' and '.join(folders)}"


def _counts_of(report: dict) -> str:
    """A report's counts in a line, without what nobody counted."""
    counts = report.get("totals", report).items()
    return ", ".join(f"{name} {x}" for name, x in counts if x not in (None, {}))


class _Commands(click.Group):
    """The library's commands, and those that the entry points ``rdl.commands`` name."""

    def list_commands(self, context: click.Context) -> list[str]:
        return [*super().list_commands(context), *entry_points(group="rdl.commands").names]

    def get_command(self, context: click.Context, name: str) -> click.Command | None:
        others = entry_points(group="rdl.commands", name=name)
        return super().get_command(context, name) or next((x.load() for x in others), None)


app = _Commands(
    "rdl", commands=[ask, judge, teach, distill, rerank, adopt, serve, evaluate, export, merge, fetch],
    help="Rank-DistiLLM: distil an LLM's rankings into cross-encoders.", no_args_is_help=True,
)  # fmt: skip

if __name__ == "__main__":
    app()
