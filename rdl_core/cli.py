"""The command `rdl`."""

from __future__ import annotations

import json
import time
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Literal

import typer

from rdl_core.commands import nodes, own
from rdl_study.book import snakemake
from rdl_core.commands.shards import merge_runs
from rdl_core.commands.words import Collection, Format, Precision, Shard, refusals, shard_of
from rdl_core.data.downloads import fetch_group
from rdl_study.bench import ratios, summary
from rdl_core.progress import log_plainly
from rdl_study.batch import run_pages
from rdl_study.bench.measure import measure_part, peers_python
from rdl_study.bench.full_size import MS_MARCO, full_size_table, measure_full_size
from rdl_study.bench.parts import LLMS, PARTS
from rdl_study.bench.precision import measure_precisions, precision_table
from rdl_study.profile import load_profile
from rdl_study.store import project_folder
from rdl_core.teachers.endpoint import EndpointConfig
from rdl_core.teachers.listwise import SCHEDULES
from rdl_core.teachers.local_llm import MODES
from rdl_core.teachers.merge import merge as merge_shards
from rdl_core.teachers.teach import LocalConfig, ReplayConfig, TeachConfig, estimate
from rdl_core.teachers.teach import teach as teach_lists

__all__ = ["app"]

app = typer.Typer(no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False)


@app.callback()
def main() -> None:
    """Rank-DistiLLM, reproduced."""
    log_plainly()


@app.command()
def book(
    profile: Annotated[str, typer.Option(help="Profile that the notebooks run at.")] = "mini",
    executor: Annotated[
        str | None, typer.Option(help="Where jobs run: generic, kubernetes, slurm; none: here.")
    ] = None,
    jobs: Annotated[int, typer.Option(help="Most at once, or cores here; 0: as many as fit.")] = 0,
    threads: Annotated[int, typer.Option(help="Of each job; 0: all of this machine.")] = 0,
    gpus: Annotated[int, typer.Option(help="That each job asks the executor for.")] = 0,
    more: Annotated[
        list[str], typer.Argument(help="For Snakemake, behind --, such as -n or study.")
    ] = [],  # noqa: B006
) -> None:
    """Run the study at a profile, as far as the store does not hold it, and build the book."""
    started = time.monotonic()
    with refusals():
        failed = snakemake(
            profile, executor=executor, jobs=jobs or None, threads=threads or None, gpus=gpus,
            more=more,
        )  # fmt: skip
    if failed:
        typer.echo("\n".join(f"error: {line}" for line in failed), err=True)
        raise typer.Exit(1)
    page = project_folder() / "_build" / "html" / "index.html"
    if not more:
        typer.echo(f"done in {time.monotonic() - started:.0f} s; open {page.as_uri()}")


@app.command()
def study(
    profile: Annotated[str, typer.Option(help="Profile to run, such as trec-dl.")],
    page: Annotated[list[str], typer.Option(help="Page to run; again for more; none: all.")] = [],  # noqa: B006
    parameter: Annotated[
        list[str], typer.Option("-p", help=r"name=value of the page's notebook, such as losses=\[ranknet].")
    ] = [],  # noqa: B006
    seeds: Annotated[int, typer.Option(help="Only so many of the profile's seeds; 0: all.")] = 0,
    record: Annotated[bool, typer.Option(help="Keep figures and manifests under results/.")] = False,
) -> None:
    """Train and rank what pages compare, without notebooks, as far as the store does not hold it."""
    with refusals():
        run_pages(profile, page, dict(each.split("=", 1) for each in parameter), seeds, record)


@app.command()
def bench(
    part: Annotated[list[str], typer.Argument(help=f"What to race: {', '.join(PARTS)}; none: all.")] = [],  # noqa: B006
    profile: Annotated[str, typer.Option(help="Its test candidates are ranked.")] = "mini",
    model: Annotated[str | None, typer.Option(help="Weights; none: the profile's encoder.")] = None,
    queries: Annotated[int, typer.Option(help="So many of the test queries.")] = 8,
    repetitions: Annotated[int, typer.Option(help="How often each is gone through.")] = 5,
    peers: Annotated[bool, typer.Option(help="Lightning IR and training by others, too.")] = False,
    llm: Annotated[str, typer.Option(help=f"Sizes of the LLM: {', '.join(LLMS)}.")] = "toy",
    out: Annotated[Path, typer.Option(help="Folder of the figures.")] = Path("runs/bench"),
) -> None:
    """Race systems on the same passages, weights and lengths, and keep the figures.

    Peers get an environment of their own, .venv-peers, which the first call makes; training in
    sentence-transformers needs the package datasets.
    """
    with refusals():
        settings = load_profile(profile)
        python = peers_python() if peers else None
        for name in part or PARTS:
            measured = measure_part(
                name, replace(settings.test, n_queries=queries), model=model or settings.encoder,
                repetitions=repetitions, peers=python, llm=llm, folder=out,
            )  # fmt: skip
            shown = summary(measured.timings).round(1)
            shown["speed"] = ratios(measured.timings, shown.index[0])["median"]
            typer.echo(f"{name}: {measured.manifest['what']}\n{shown.round(2).to_string()}\n")
    typer.echo(f"figures in {out}")


@app.command()
def precision(
    model: Annotated[str, typer.Argument(help="Folder or hub id of a trained student.")],
    profile: Annotated[str, typer.Option(help="Its test candidates are ranked.")] = "mini",
    out: Annotated[Path, typer.Option(help="Folder of the figures.")] = Path("runs/bench"),
) -> None:
    """Measure what bfloat16 and int8 do to a student's effectiveness, and keep each query's value.

    Nothing checks that the student was not trained on the test queries.
    """
    with refusals():
        found = measure_precisions(load_profile(profile), model, folder=out)
    typer.echo(precision_table(found).to_string(index=False) + f"\nfigures in {out}")


@app.command()
def size(
    out: Annotated[Path, typer.Option(help="Folder of the figures.")] = Path("runs/bench"),
    passages: Annotated[int, typer.Option(help="Made-up passages.")] = MS_MARCO.n_passages,
    queries: Annotated[int, typer.Option(help="Queries with a list of 100.")] = MS_MARCO.n_queries,
    repetitions: Annotated[int, typer.Option(help="How often each is done.")] = 5,
) -> None:
    """Measure the data path at the size of MS MARCO, with made-up ids and tokens.

    Takes 2 GB of disk meanwhile, where TMPDIR says.
    """
    with refusals():
        much = replace(MS_MARCO, n_passages=passages, n_queries=queries)
        measured = measure_full_size(much, repetitions=repetitions, folder=out)
    typer.echo(full_size_table(measured).to_string(index=False) + f"\nfigures in {out}")


@app.command()
def fetch(
    group: Annotated[str, typer.Argument(help="trec-dl, vaswani, cranfield or rank-distillm.")],
) -> None:
    """Fetch the public files of a group, as far as neither RDL_MIRROR nor the cache holds them."""
    with refusals():
        paths = fetch_group(group)
    size_mb = sum(path.stat().st_size for path in paths) / 1e6
    folders = sorted({str(path).partition(f"/{group}/")[0] for path in paths})
    typer.echo(f"{group}: {len(paths)} files, {size_mb:.1f} MB, in {' and '.join(folders)}")


@app.command()
def teach(
    candidates: Annotated[Path, typer.Argument(help="Candidates, in any known format.")],
    out: Annotated[Path, typer.Argument(help="Folder of the lists; resumed where unfinished.")],
    model: Annotated[
        str, typer.Option(help="Name at the endpoint; folder or hub id; file of recorded answers.")
    ],
    backend: Annotated[Literal["endpoint", "local_llm", "replay"], typer.Option()] = "endpoint",
    collection: Collection = None,
    format: Format = None,
    depth: Annotated[int | None, typer.Option(help="Passages of each query; none: all.")] = None,
    schedule: Annotated[str, typer.Option(help=f"One of {', '.join(SCHEDULES)}.")] = "sliding",
    window_size: Annotated[int, typer.Option(help="Passages in a prompt.")] = 20,
    stride: Annotated[int, typer.Option(help="Places from window to window, if sliding.")] = 10,
    top_k: Annotated[int, typer.Option(help="Passages that win a tournament's group.")] = 10,
    passes: Annotated[int, typer.Option(help="Passes over each list.")] = 1,
    max_retries: Annotated[int, typer.Option(help="Times to ask again where unusable.")] = 1,
    shard: Shard = "1/1",
    dry_run: Annotated[bool, typer.Option(help="Say what would be asked; ask nothing.")] = False,
    max_words: Annotated[int, typer.Option(help="Words of a passage that are shown.")] = 300,
    base_url: Annotated[
        str, typer.Option(help="Endpoint: its address.")
    ] = "https://api.openai.com/v1",
    key_variable: Annotated[
        str, typer.Option(help="Endpoint: environment variable that holds the key.")
    ] = "OPENAI_API_KEY",
    temperature: Annotated[float, typer.Option(help="Endpoint: below 0 sends none.")] = 0.0,
    option: Annotated[
        list[str], typer.Option(help="Endpoint: field of each request, such as max_tokens=400.")
    ] = [],  # noqa: B006
    in_flight: Annotated[int, typer.Option(help="Endpoint: requests at the same time.")] = 8,
    per_minute: Annotated[
        float | None, typer.Option(help="Endpoint: most requests a minute.")
    ] = None,
    timeout_s: Annotated[float, typer.Option(help="Endpoint: longest silence, seconds.")] = 120.0,
    max_tries: Annotated[int, typer.Option(help="Endpoint: requests for one answer.")] = 10,
    longest_wait_s: Annotated[float, typer.Option(help="Endpoint: between two tries.")] = 60.0,
    input_usd: Annotated[
        float | None, typer.Option(help="Endpoint: dollars for a million tokens of prompts.")
    ] = None,
    output_usd: Annotated[
        float | None, typer.Option(help="Endpoint: dollars for a million tokens written.")
    ] = None,
    mode: Annotated[str, typer.Option(help=f"Local: one of {', '.join(MODES)}.")] = "free",
    max_new_tokens: Annotated[
        int | None, typer.Option(help="Local: longest answer; none: a ranking and a little more.")
    ] = None,
    batch_size: Annotated[int, typer.Option(help="Local: windows at once.")] = 8,
    precision: Precision = "auto",
) -> None:
    """Have a listwise teacher rank candidates, as lists to distil from.

    Every answer is kept as it comes: what broke off goes on when it is called again. The key of an
    endpoint is taken from the environment alone.
    """
    with refusals():
        if backend == "endpoint":
            who = EndpointConfig(
                base_url=base_url, model=model, key_variable=key_variable, max_words=max_words,
                temperature=None if temperature < 0 else temperature, options=_fields(option),
                max_in_flight=in_flight, requests_per_minute=per_minute, timeout_s=timeout_s,
                max_tries=max_tries, longest_wait_s=longest_wait_s, input_usd=input_usd,
                output_usd=output_usd,
            )  # fmt: skip
        elif backend == "local_llm":
            who = LocalConfig(
                model=model, mode=mode, max_words=max_words, max_new_tokens=max_new_tokens,
                batch_size=batch_size, precision=precision,
            )  # fmt: skip
        else:
            who = ReplayConfig(file=model)
        config = TeachConfig(
            candidates=str(candidates), format=format, collection=collection, depth=depth,
            backend=who, schedule=schedule, window_size=window_size, stride=stride, top_k=top_k,
            passes=passes, max_retries=max_retries, shard=shard_of(shard),
        )  # fmt: skip
        said = estimate(config, out) if dry_run else teach_lists(config, out)["totals"]
    typer.echo(said if dry_run else f"lists in {out}: {_totals(said)}")


@app.command()
def merge(
    out: Annotated[Path, typer.Argument(help="A new folder, or a run.")],
    shards: Annotated[list[Path], typer.Argument(help="Folders, or runs, of all shards.")],
) -> None:
    """Make all shards one, if nothing is missing: a teacher's lists, or runs of rdl rerank."""
    with refusals():
        if all(shard.is_file() for shard in shards):
            typer.echo(f"{out}: {merge_runs(shards, out)} queries")
            return
        report = merge_shards(shards, out)
    typer.echo(f"lists in {out}: {_totals(report['totals'])}")


def _fields(options: list[str]) -> dict[str, object]:
    """Values that are JSON as such, others as text."""
    fields = {}
    for option in options:
        name, given, value = option.partition("=")
        if not given:
            raise ValueError(f"option: expected name=value; given {option!r}: write the value, too")
        try:
            fields[name] = json.loads(value)
        except json.JSONDecodeError:
            fields[name] = value
    return fields


def _totals(totals: dict) -> str:
    """A report's totals in a line; what nobody counted is left out."""
    return ", ".join(f"{name} {value}" for name, value in totals.items() if value is not None)


for command in (nodes.run, *own.COMMANDS):
    app.command()(command)


if __name__ == "__main__":
    app()
