"""The command `rdl`."""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path
from typing import Annotated

import typer

from rdl_core.data.downloads import fetch_group
from rdl_core.progress import log_plainly
from rdl_core.study.batch import run_pages
from rdl_core.study.publish import publish
from rdl_core.study.runs import project_folder
from rdl_core.study.site import broken_links

__all__ = ["app"]

app = typer.Typer(no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False)


@app.callback()
def main() -> None:
    """Rank-DistiLLM, reproduced."""
    log_plainly()


@app.command()
def book(
    profile: Annotated[str, typer.Option(help="Profile that the notebooks run at.")] = "mini",
) -> None:
    """Run the study at a profile, as far as the store does not hold it, and build the book."""
    started = time.monotonic()
    root = project_folder()
    try:
        publish(profile, root / "book" / "pages")
    except ValueError as error:
        typer.echo(f"error: {error}", err=True)
        raise typer.Exit(2) from None
    studied = time.monotonic()
    builder = str(Path(sys.executable).with_name("jupyter-book"))
    command = [builder, "build", ".", "--all", "-W", "-n", "--keep-going", "-q"]
    built = subprocess.run(command, cwd=root, check=False)
    if built.returncode:
        raise typer.Exit(built.returncode)
    site = root / "_build" / "html"
    if broken := broken_links(site):
        typer.echo("error: the book has broken links\n" + "\n".join(broken), err=True)
        raise typer.Exit(1)
    page = site / "index.html"
    typer.echo(
        f"study {studied - started:.0f} s, book {time.monotonic() - studied:.0f} s; open {page.as_uri()}"
    )


@app.command()
def study(
    profile: Annotated[str, typer.Option(help="Profile to run, such as trec-dl.")],
    page: Annotated[list[str], typer.Option(help="Page to run; again for more; none: all.")] = [],  # noqa: B006
    parameter: Annotated[
        list[str], typer.Option("-p", help="name=value of the page's notebook, such as losses=[ranknet].")
    ] = [],  # noqa: B006
    seeds: Annotated[int, typer.Option(help="Only so many of the profile's seeds; 0: all.")] = 0,
    record: Annotated[bool, typer.Option(help="Keep figures and manifests under results/.")] = False,
) -> None:
    """Train and rank what pages compare, without notebooks, as far as the store does not hold it."""
    try:
        run_pages(profile, page, dict(each.split("=", 1) for each in parameter), seeds, record)
    except ValueError as error:
        typer.echo(f"error: {error}", err=True)
        raise typer.Exit(2) from None


@app.command()
def fetch(
    group: Annotated[str, typer.Argument(help="Files of one kind: trec-dl, vaswani, cranfield.")],
) -> None:
    """Fetch the public files of a group, as far as neither RDL_MIRROR nor the cache holds them."""
    try:
        paths = fetch_group(group)
    except ValueError as error:
        typer.echo(f"error: {error}", err=True)
        raise typer.Exit(2) from None
    size_mb = sum(path.stat().st_size for path in paths) / 1e6
    folders = sorted({str(path).partition(f"/{group}/")[0] for path in paths})
    typer.echo(f"{group}: {len(paths)} files, {size_mb:.1f} MB, in {' and '.join(folders)}")


if __name__ == "__main__":
    app()
