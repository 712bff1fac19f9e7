"""The commands for a corpus of one's own, as typer takes them from the command line."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer
import yaml

from rdl_core.commands.distill import DistillConfig, distill_corpus
from rdl_core.commands.evaluate import compare_runs, read_runs, shown
from rdl_core.commands.export import export_student
from rdl_core.commands.rerank import rerank_corpus
from rdl_core.commands.shards import record_shard
from rdl_core.commands.students import open_student
from rdl_core.commands.words import (
    Collection,
    Format,
    PassageTokens,
    QueryTokens,
    Shard,
    refusals,
    shard_of,
)
from rdl_core.corpus import read_corpus, read_judgments
from rdl_core.devices import default_device, resolve_precision

__all__ = ["COMMANDS"]


def distill(
    lists: Annotated[Path, typer.Argument(help="A teacher's ranked lists, in any known format.")],
    out: Annotated[Path, typer.Argument(help="Folder of the student; resumed where unfinished.")],
    encoder: Annotated[str, typer.Option(help="Encoder or earlier student to start from.")],
    collection: Collection = None,
    format: Format = None,
    teacher: Annotated[str | None, typer.Option(help="Who ranked, in words, for the card.")] = None,
    config: Annotated[Path | None, typer.Option(help="YAML of StageConfig's fields.")] = None,
    loss: Annotated[str | None, typer.Option(help="ranknet, adr_mse, listnet, ...")] = None,
    sampler: Annotated[str | None, typer.Option(help="top, random, log_random, ...")] = None,
    list_size: Annotated[int | None, typer.Option(help="Passages in a list.")] = None,
    queries_per_step: Annotated[int | None, typer.Option(help="Lists in a step.")] = None,
    steps: Annotated[int | None, typer.Option(help="Steps; none: every list three times.")] = None,
    learning_rate: Annotated[float | None, typer.Option(help="Peak learning rate.")] = None,
    precision: Annotated[Literal["auto", "float32", "bfloat16"] | None, typer.Option()] = None,
    query_tokens: QueryTokens = None,
    passage_tokens: PassageTokens = None,
    head: Annotated[
        Literal["own", "similarity"], typer.Option(help="similarity: starts as a bi-encoder scores.")
    ] = "own",
    seed: Annotated[int, typer.Option(help="Of first weights, draws and dropout.")] = 0,
) -> None:
    """Distil a student from ranked lists.

    Options come before the YAML file; what neither says is as in Rank-DistiLLM's second stage.
    """
    options = {
        "loss": loss, "sampler": sampler, "list_size": list_size, "precision": precision,
        "queries_per_step": queries_per_step, "steps": steps, "learning_rate": learning_rate,
    }  # fmt: skip
    with refusals():
        training = _settings(config) | {k: v for k, v in options.items() if v is not None}
        distill_corpus(
            DistillConfig(
                lists=str(lists), format=format, collection=collection, teacher=teacher,
                encoder=encoder, query_tokens=query_tokens, passage_tokens=passage_tokens,
                training=training, head=head, seed=seed,
            ),
            out,
        )  # fmt: skip
    typer.echo(f"student in {out / 'model'}")


def rerank(
    model: Annotated[str, typer.Argument(help="Folder of a student or of its run, or a hub id.")],
    candidates: Annotated[Path, typer.Argument(help="Candidates, in any known format.")],
    out: Annotated[Path, typer.Argument(help="The TREC run; packed if its name ends in .gz.")],
    collection: Collection = None,
    format: Format = None,
    query_tokens: QueryTokens = None,
    passage_tokens: PassageTokens = None,
    precision: Annotated[
        Literal["auto", "float32", "bfloat16", "int8"],
        typer.Option(help="In which the layers compute; int8: CPUs only."),
    ] = "auto",
    tag: Annotated[str, typer.Option(help="Name of the system in the run.")] = "rdl",
    shard: Shard = "1/1",
) -> None:
    """Re-rank candidates with a student; rdl merge puts the runs of shards together."""
    with refusals():
        whole = read_corpus(candidates, format=format, collection=collection)
        number, of = shard_of(shard)
        corpus = whole.shard(number, of)
        student = open_student(model, query_tokens=query_tokens, passage_tokens=passage_tokens)
        student = student.to(default_device())
        rerank_corpus(student, corpus, out, precision=precision, tag=tag)
        if of > 1:
            record_shard(
                out, whole, model, (number, of), tag=tag,
                precision=resolve_precision(precision, student.device),
                query_tokens=student.query_tokens, passage_tokens=student.passage_tokens,
            )  # fmt: skip


def evaluate(
    qrels: Annotated[str, typer.Argument(help="Judgments: a file or an ir_datasets id.")],
    runs: Annotated[list[Path], typer.Argument(help="Runs, in any known format.")],
    measures: Annotated[
        list[str], typer.Option(help="ir_measures' name; again for more, such as RR@10.")
    ] = ["nDCG@10"],  # noqa: B006
    baseline: Annotated[
        str | None, typer.Option(help="Name of a run's file without its ending; none: the first.")
    ] = None,
    alpha: Annotated[float, typer.Option(help="Level of the tests.")] = 0.05,
    margin: Annotated[float, typer.Option(help="Difference that matters, for TOST.")] = 0.02,
    per_query: Annotated[Path | None, typer.Option(help="CSV of every query's values.")] = None,
    table: Annotated[Path | None, typer.Option(help="CSV of the table.")] = None,
    format: Format = None,
) -> None:
    """Measure runs, and test them against one of them.

    Means with 95 % bootstrap intervals; differences from the baseline with theirs, the paired
    t-test, corrected by Holm over the other runs, and TOST for equivalence up to the margin.
    """
    with refusals():
        values, found = compare_runs(
            read_judgments(qrels), read_runs(runs, format), measures=measures, baseline=baseline,
            alpha=alpha, margin=margin,
        )  # fmt: skip
        if per_query:
            values.to_csv(per_query, index=False)
        if table:
            found.to_csv(table)
    typer.echo(shown(found))


def export(
    student: Annotated[str, typer.Argument(help="Folder of a student or of its run, or a hub id.")],
    out: Annotated[Path, typer.Argument(help="A new folder.")],
    quantise: Annotated[bool, typer.Option(help="Write an 8-bit ONNX file, too.")] = False,
    candidates: Annotated[
        Path | None,
        typer.Option(help="The ONNX files are compared on its first pairs; none: random words."),
    ] = None,
    collection: Collection = None,
    format: Format = None,
    table: Annotated[
        Path | None, typer.Option(help="Measures for the card, from rdl evaluate --table.")
    ] = None,
    query_tokens: QueryTokens = None,
    passage_tokens: PassageTokens = None,
) -> None:
    """Write a student for transformers, sentence-transformers and onnxruntime."""
    with refusals():
        corpus = candidates and read_corpus(candidates, format=format, collection=collection)
        differences = export_student(
            student, out, query_tokens=query_tokens, passage_tokens=passage_tokens,
            quantise=quantise, corpus=corpus, table=table,
        )  # fmt: skip
    for found in differences:
        typer.echo(
            f"{out / found.file}: at most {found.largest:.2g} and on average {found.mean:.2g} from "
            f"PyTorch's scores of {found.n_pairs} pairs (standard deviation {found.spread:.2g})"
        )


#: Functions whose names and arguments are those of the command line.
COMMANDS = (distill, rerank, evaluate, export)


def _settings(file: Path | None) -> dict:
    """What a YAML file says, if there is one."""
    try:
        settings = yaml.safe_load(file.read_text()) if file else {}
    except yaml.YAMLError as error:  # of several lines
        settings = " ".join(str(error).split())
    if not isinstance(settings, dict):
        raise ValueError(
            f"{file}: expected YAML of StageConfig's fields; given {settings!r}: write name: value"
        )
    return settings
