"""What all formats share: files opened, lines and records found again, misfits refused by name."""

from __future__ import annotations

import csv
import gzip
import io
import json
import os
import re
import textwrap
import zlib
from collections.abc import Collection, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import IO, Any, NoReturn

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

_BLANKS = " \t\r\n"
_NO_JSON = (ValueError, RecursionError)  # also numbers of thousands of digits, a thousand brackets
_GAP = re.compile(r"[\s,\[\]]*")
_SHOWN = 80  # characters of a line that an error shows
_LONGEST = 500  # characters of what an error says was given


@dataclass(frozen=True)
class Source:
    """Where the rows of a frame come from, so that a refusal can name file and line."""

    path: str | Path
    """The file, or what else to call it."""
    unit: str = "line"
    """What is counted: ``"line"`` of a text file, ``"row"`` of a table."""
    numbers: list[int] | None = None
    """Line of each row; None: rows are the lines that are not blank, after `skip` of them."""
    skip: int = 0
    """Lines of the header."""

    def refuse(self, row: int | None, expected: str, given: object, remedy: str) -> NoReturn:
        """Raise `ValueError` about a row, counted from 0, or about the whole (None)."""
        place = "" if row is None else f", {self.unit} {self.number(row)}"
        given = textwrap.shorten(str(given), _LONGEST)
        raise ValueError(f"{self.path}{place}: expected {expected}; given {given}: {remedy}")

    def number(self, row: int) -> int:
        """Line or row, counted from 1; a text file is read again to find it."""
        if self.numbers is not None:
            return self.numbers[row]
        if self.unit == "row":
            return row + 1
        return next(islice(lines(self.path), row + self.skip, None))[0]


@contextmanager
def opened(path: str | Path) -> Iterator[IO[bytes]]:
    """A file's bytes, unpacked if its name ends in ``.gz``."""
    try:
        with gzip.open(path) if str(path).endswith(".gz") else open(path, "rb") as file:
            yield file
    except (gzip.BadGzipFile, EOFError, zlib.error) as error:
        Source(path).refuse(None, "a whole gzip file", error, "fetch or pack it again")


@contextmanager
def partial(path: str | Path) -> Iterator[Path]:
    """A name to write to; what is there takes the real name once it is whole."""
    beside = Path(f"{path}.partial")
    try:
        yield beside
        os.replace(beside, path)
    finally:
        beside.unlink(missing_ok=True)


def write_lines(path: str | Path, rows: Iterable[str]) -> None:
    """Write lines as UTF-8, packed if the name ends in ``.gz``; equal lines give equal bytes."""
    with partial(path) as beside, open(beside, "wb") as file:
        packed = str(path).endswith(".gz")
        binary = gzip.GzipFile("", "wb", fileobj=file, mtime=0) if packed else file
        with io.TextIOWrapper(binary, encoding="utf-8", newline="\n") as text:
            text.writelines(f"{row}\n" for row in rows)


def lines(path: str | Path) -> Iterator[tuple[int, str]]:
    """Number, counted from 1, and text of each line that is not blank."""
    with opened(path) as file:
        for number, raw in enumerate(file, 1):
            if not raw.strip():
                continue
            try:
                yield number, raw.decode("utf-8-sig" if number == 1 else "utf-8").rstrip("\r\n")
            except UnicodeDecodeError as error:
                Source(path, numbers=[number]).refuse(0, "UTF-8", error, "convert the file first")


def first_line(path: str | Path) -> tuple[int, str]:
    """Number and text of the first line that is not blank."""
    for number, line in lines(path):
        return number, line
    return Source(path).refuse(None, "data", "an empty file", "check where it comes from")


def table(
    path: str | Path, widths: Collection[int], what: str, *, headed: bool = False
) -> tuple[pd.DataFrame, Source]:
    """Columns 0, 1, ... (str) of a file separated by white space, and where the rows stand.

    Where it may be `headed`, BEIR's ``query-id corpus-id score`` is skipped and no tab below it is
    mixed with blanks, which may be in ids.
    """
    start, first = first_line(path)
    header = headed and _cells(first)[::2] == ["query-id", "score"]
    separator = "\t" if header and "\t" in first else r"\s+"
    source = Source(path, skip=int(header))
    width = len(_cells(first, separator))
    if width not in widths:
        source.refuse(-source.skip, what, repr(first[:_SHOWN]), "check the file or name its format")
    try:
        with opened(path) as file:
            # One column more than there should be, to notice lines that are too long; those that
            # are too short have an empty last cell.
            frame = pd.read_csv(
                file, sep=separator, header=None, names=range(width + 1), index_col=False,
                skiprows=start if header else 0, dtype="str", na_filter=False,
                quoting=csv.QUOTE_NONE,
            )  # fmt: skip
        fits = (frame[width] == "").all() and not (frame.drop(columns=width) == "").any(axis=None)
    except (pd.errors.ParserError, UnicodeDecodeError):
        fits = False
    if not fits:
        _refuse_width(path, width, separator, what)
    if frame.empty:
        source.refuse(None, "data", "a header alone", "check where it comes from")
    return frame.drop(columns=width), source


def numbers(column: pd.Series, kind: str, source: Source, what: str) -> pd.Series:
    """A column of str as ``"int64"`` or ``"float64"``, correctly rounded, or a refusal."""
    cells = pa.array(column, pa.string())

    def cast(start: int, stop: int) -> pa.Array | None:
        try:
            return cells[start:stop].cast(kind)
        except pa.ArrowInvalid:
            return None

    if (found := cast(0, len(cells))) is not None:
        return pd.Series(found.to_numpy(zero_copy_only=False))
    start, stop = 0, len(cells)  # halved, as a file may be long: the first wrong cell lies between
    while stop - start > 1:
        middle = (start + stop) // 2
        start, stop = (start, middle) if cast(start, middle) is None else (middle, stop)
    expected = f"{what} as {'an integer' if kind == 'int64' else 'a number'}"
    return source.refuse(start, expected, repr(column[start]), "correct or remove this line")


def each_record(path: str | Path) -> tuple[Iterator[tuple[int, Any]], str]:
    """Number and content of each record of a JSON or parquet file, and what the numbers count.

    JSON may be JSON Lines, arrays, or objects one after another; arrays are taken apart.
    """
    if is_parquet(path):
        return enumerate(_parquet_rows(path), 1), "row"
    return (_json_lines(path) if _parses(first_line(path)[1]) else _json_values(path)), "line"


def is_parquet(path: str | Path) -> bool:
    """Whether a file begins as parquet does."""
    with open(path, "rb") as file:
        return file.read(4) == b"PAR1"


@contextmanager
def parquet(path: str | Path) -> Iterator[pq.ParquetFile]:
    """A parquet file, refused by name where it does not open or, in this context, read."""
    try:
        yield pq.ParquetFile(path, page_checksum_verification=True)
    except (pa.ArrowException, MemoryError, OSError, UnicodeDecodeError) as error:
        Source(path).refuse(None, "a whole parquet file", error, "fetch it again")


def _cells(line: str, separator: str = r"\s+") -> list[str]:
    """Cells as pandas' reader finds them: blank and tab separate, other white space does not."""
    return line.split("\t") if separator == "\t" else re.split(r"[ \t]+", line.strip(_BLANKS))


def _refuse_width(path: str | Path, width: int, separator: str, what: str) -> NoReturn:
    for number, line in lines(path):
        cells = _cells(line, separator)
        if len(cells) != width or "" in cells:
            expected = f"{what}, here {width} columns as in the first line"
            given = f"{len(cells)}, {line[:_SHOWN]!r}"
            Source(path, numbers=[number]).refuse(0, expected, given, "correct or remove this line")
    Source(path).refuse(None, what, "lines that could not be separated", "check its line ends")


def _parquet_rows(path: str | Path) -> Iterator[dict]:
    with parquet(path) as file:
        for batch in file.iter_batches():
            yield from batch.to_pylist()


def _parses(line: str) -> bool:
    try:
        json.loads(line)
    except _NO_JSON:
        return False
    return True


def _json_lines(path: str | Path) -> Iterator[tuple[int, Any]]:
    for number, line in lines(path):
        try:
            value = json.loads(line)
        except _NO_JSON as error:
            given = f"{getattr(error, 'msg', error)} in {line[:_SHOWN]!r}"
            Source(path, numbers=[number]).refuse(0, "JSON", given, "is the file whole?")
        nested = isinstance(value, list) and (not value or isinstance(value[0], (dict, list)))
        yield from ((number, element) for element in (value if nested else [value]))


def _json_values(path: str | Path) -> Iterator[tuple[int, Any]]:
    """Objects one after another, in arrays or not; their brackets are only counted."""
    with opened(path) as file:
        raw = file.read()
    try:
        text = raw.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        at = raw.count(b"\n", 0, error.start) + 1
        Source(path, numbers=[at]).refuse(0, "UTF-8", error, "convert the file first")
    decoder, at, number, depth = json.JSONDecoder(), 0, 1, 0
    while True:
        gap = _GAP.match(text, at)
        number += gap[0].count("\n")
        depth += gap[0].count("[") - gap[0].count("]")
        if (start := gap.end()) == len(text):
            break
        try:
            value, at = decoder.raw_decode(text, start)
        except _NO_JSON as error:
            given = f"{getattr(error, 'msg', error)} in the record of line {number}"
            at = getattr(error, "lineno", number)
            Source(path, numbers=[at]).refuse(0, "JSON", given, "is the file whole?")
        yield number, value
        number += text.count("\n", start, at)
    if depth:
        given = f"{abs(depth)} missing" if depth > 0 else f"{-depth} too many"
        Source(path, numbers=[number]).refuse(0, "a ] for each [", given, "is the file whole?")
