"""What the ``Snakefile`` calls: one process plans, others run a node each, one makes the book.

Apart from `rdl_core.cli`, so that each of many processes imports less.
"""

from __future__ import annotations

import logging
import shutil
import time
from contextlib import chdir
from typing import Annotated

import typer
from jupyter_book.cli.main import main as jupyter_book

from rdl_core.commands.words import refusals
from rdl_core.progress import log_plainly
from rdl_study import graph
from rdl_study.live import make_live
from rdl_study.publish import publish
from rdl_study.store import project_folder
from rdl_study.site import broken_links

__all__ = ["app"]

app = typer.Typer(no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False)
_STRICT = ("-W", "-n", "--keep-going", "-q")
_log = logging.getLogger(__name__)
Profile = Annotated[str, typer.Option(help="Profile of the study.")]


@app.callback()
def _main() -> None:
    log_plainly()


@app.command()
def plan(
    profile: Profile = "mini",
    threads: Annotated[int, typer.Option(help="Of each job; 0: this machine's.")] = 0,
) -> None:
    """Write down the nodes of a profile's graph, and say where."""
    with refusals():
        typer.echo(graph.plan(profile, threads or None))


@app.command()
def run(
    node: Annotated[str, typer.Argument(help="Its name, such as student-0123456789ab.")],
    profile: Profile = "mini",
) -> None:
    """Run one node of the graph, as far as the store does not hold it."""
    with refusals():
        nodes = graph.nodes(profile)
        if node not in nodes:
            raise ValueError(
                f"expected one of {len(nodes)} nodes of profile {profile!r}, given {node!r}: code "
                "or configuration changed since it was planned; plan again"
            )
        graph.run(nodes[node])


@app.command()
def build(profile: Profile = "mini") -> None:
    """Gather the executed pages and build the book from them.

    It is built from nothing in a folder of its own, and then takes an earlier one's place as a whole.
    """
    started, root = time.monotonic(), project_folder()
    with refusals():
        publish(profile, root / "book" / "pages")
    fresh = root / "_build" / "fresh"
    shutil.rmtree(fresh, ignore_errors=True)
    # In this process: a builder of its own would outlive a kill, and write into the next build.
    try:
        with chdir(root):
            words = ["build", ".", *_STRICT, "--path-output", str(fresh)]
            jupyter_book(words, standalone_mode=False)
    except (RuntimeError, ValueError) as error:
        typer.echo(f"error: {error}", err=True)
        raise typer.Exit(1) from None
    site = fresh / "_build" / "html"
    index = site / "index.html"  # leads on: a browser shall not ask for its icon meanwhile
    index.write_text(f'<link rel="icon" href="data:,">\n{index.read_text()}')
    with refusals():
        _log.info(make_live(profile, site))
    if broken := broken_links(site):
        typer.echo("error: the book has broken links\n" + "\n".join(broken), err=True)
        raise typer.Exit(1)
    shutil.rmtree(root / "_build" / "html", ignore_errors=True)
    site.rename(root / "_build" / "html")
    shutil.rmtree(fresh)
    _log.info("book built in %.0f s", time.monotonic() - started)


if __name__ == "__main__":
    app()
