"""Options that several commands take, and how they refuse."""

from __future__ import annotations

import errno
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Annotated, Literal

import typer
from safetensors import SafetensorError

__all__ = [
    "Collection", "Format", "PassageTokens", "Precision", "QueryTokens", "Shard", "refusals",
    "shard_of",
]  # fmt: skip

Collection = Annotated[
    str | None,
    typer.Option(help="BEIR folder or ir_datasets id that has the texts; none: the file has them."),
]
Format = Annotated[
    str | None, typer.Option(help="Format of the file, a name of rdl_core.data.formats.FORMATS.")
]
QueryTokens = Annotated[
    int | None, typer.Option(help="Longest query, in tokens; none: as recorded, else 32.")
]
PassageTokens = Annotated[
    int | None, typer.Option(help="Longest passage, in tokens; none: as recorded, else 256.")
]
Precision = Annotated[
    Literal["auto", "float32", "bfloat16"], typer.Option(help="In which the layers compute.")
]
Shard = Annotated[str, typer.Option(help="Part of the queries, such as 2/8.")]
_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


def shard_of(text: str) -> tuple[int, int]:
    """The two numbers of a shard.

    >>> shard_of("2/8")
    (2, 8)
    """
    try:
        number, of = map(int, text.split("/"))
    except ValueError:
        raise ValueError(f"shard: expected two numbers, such as 2/8; given {text!r}") from None
    return number, of


@contextmanager
def refusals() -> Iterator[None]:
    """Whatever is refused becomes a line on standard error and exit code 2, without a traceback.

    >>> with refusals():
    ...     pass
    """
    try:
        yield
    except FileNotFoundError as error:
        refusal = f"{error.filename}: expected a file; given a name of none: check the name"
    except (OSError, ValueError, FloatingPointError, MemoryError, SafetensorError) as error:
        refusal = _told(error)
    else:
        return
    typer.echo(f"error: {refusal}", err=True)
    raise typer.Exit(2)


def _told(error: Exception) -> str:
    """An error as a line; of a full disk, the system says neither what it means nor what to do."""
    number = getattr(error, "errno", None) or re.search(r"\(os error (\d+)\)", str(error))
    number = int(number[1]) if isinstance(number, re.Match) else number
    if number not in _FULL:
        return str(error)
    where = getattr(error, "filename", None) or "a file"
    return (
        f"{where}: expected room to write; given a full disk ({os.strerror(number)}): free "
        "some and run the same again, which goes on with what is finished"
    )
