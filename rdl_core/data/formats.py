"""Formats: what the field stores in files, as one frame and back.

Candidates are ``query_id``, ``doc_id`` (str), ``rank`` (int64, 1 is best, counted anew), ``score``
(float64, NaN where the file has none) and, where the file has them, ``query``, ``text`` (str),
``relevance`` and ``teacher_rank`` (Int64, NA where unknown). Queries keep the order of the file, best
passage first. Misfits are refused with file and line. Text may be packed by gzip.
"""

import gzip
import json
import logging
import re
import textwrap
import zlib
from collections import namedtuple
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import islice
from pathlib import Path
from typing import IO, Annotated, Any, NoReturn

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
from pydantic import AfterValidator, BeforeValidator, FailFast, Field, TypeAdapter, ValidationError

from rdl_core.files import partial

__all__ = ["FORMATS", "check_run", "each_record", "from_frame", "read_candidates", "read_passages",
           "read_qrels", "read_queries", "read_run", "write_parquet", "write_requests",
           "write_run"]  # fmt: skip

_TEXT = ("text", "segment", "contents", "content", "body", "passage")  # RankLLM's order
_NO_JSON = (ValueError, RecursionError)  # also numbers of thousands of digits, a thousand brackets
_Places = Callable[..., str]
_log = logging.getLogger(__name__)


def read_candidates(path: str | Path, format: str | None = None) -> pd.DataFrame:
    """Read ranked candidates from a file of any format in `FORMATS`; None: the file tells which.

    Ranks decide the order if they differ within each query, else scores; the log says which.
    ValueError names the format, record, repeated passage, score or unordered query that does not fit.
    """
    name = format or _recognise(path)
    if name not in FORMATS:
        raise ValueError(f"format: expected one of {', '.join(FORMATS)}; got {name!r}")
    _log.info("%s: read as %s", path, name)
    return FORMATS[name].read(path)


def read_run(path: str | Path, *, third: str = "score") -> pd.DataFrame:
    """Read a TREC run; `third` says what the last of three columns is, score or rank."""
    names = ("query_id", "_", "doc_id", "rank", "score", "_")
    layouts = {6: names, 3: ("query_id", "doc_id", third), 2: ("query_id", "doc_id")}
    return _candidates(*_table(path, layouts, "a run of 6, 3 or 2 columns"), strict=False)


def read_qrels(path: str | Path) -> pd.DataFrame:
    """Read judgments: ``qid iter docid rel``, ``qid docid rel``, BEIR's table, JSON or parquet rows.

    Gives ``query_id``, ``doc_id`` (str), ``relevance`` (int64), in the order of the file.
    """
    names = ("query_id", "doc_id", "relevance")
    if _has_records(path):
        frame, at = _unpacked(path, lambda record: {x: _get(record, *_JUDGMENT[x]) for x in names})
    else:
        header = re.fullmatch(r"[ \t]*query-id([\t ]+)\S+[\t ]+score[ \t]*", _first_line(path)[1])
        frame, at = _table(
            path, {4: ("query_id", "_", *names[1:]), 3: names}, "judgments of 4 or 3 columns",
            tabs=header is not None and "\t" in header[1], skip=int(header is not None),
        )  # fmt: skip
    frame = pd.DataFrame({name: _checked(frame[name], at, name, strict=False) for name in names})
    if (empty := frame["relevance"].isna()).any():
        _refuse(at(int(empty.argmax())), "relevance as an integer", "none")
    return _once(frame, ["query_id", "doc_id"], at, "judgment").astype({"relevance": "int64"})


def read_queries(path: str | Path) -> pd.DataFrame:
    """Read ``query_id``, ``query``: MS MARCO's table with tabs, or JSON or parquet as BEIR has it."""
    return _texts(path, ["query_id", "query"], ("_id", "query_id", "qid", "id"), ("query", "text"))


def read_passages(path: str | Path) -> pd.DataFrame:
    """Read ``doc_id``, ``text``: MS MARCO's table with tabs, or JSON or parquet as BEIR has it.

    A title stands before its text. Texts encoded twice, as in ``collection.tsv``, are not repaired.
    """
    return _texts(path, ["doc_id", "text"], ("_id", *_COLUMNS["doc_id"][0], "id"), _TEXT)


def check_run(candidates: pd.DataFrame, tag: str) -> None:
    """ValueError if no run can hold a tag, or the ids of candidates: known before these are scored."""
    if tag.split() != [tag]:
        _refuse("tag", "a tag without blanks", repr(tag), "join its words with - or _")
    if place := candidates.attrs.get("blank"):
        _refuse(place, "ids without blanks", "one that no run can hold", "replace the blanks")


def each_record(path: str | Path) -> tuple[Iterator[tuple[int, Any]], str]:
    """Number and content of each record of a JSON or parquet file, and what the numbers count.

    JSON may be values one after another, with or without commas or line ends, or arrays of them.
    """
    return (enumerate(_parquet_rows(path), 1), "row") if _is_parquet(path) else (_json(path), "line")


def from_frame(frame: pd.DataFrame) -> pd.DataFrame:
    """Candidates from a frame, such as pyterrier's (``qid, docno, rank, score, query, text``).

    Ids are str or integers, ``query_id`` or ``qid``, and ``doc_id``, ``docno``, ``pid``, ``passage_id``
    or ``docid``; ranks count from 0 or 1; other columns are left out. ValueError names the row, from 1.
    """
    return _from_columns(frame.reset_index(drop=True), _places("frame", "row"))


def write_run(candidates: pd.DataFrame, path: str | Path, *, tag: str = "rdl") -> None:
    """Write a TREC run, ``qid Q0 docid rank score tag``; -rank stands for scores where there are none.

    ValueError as `from_frame`, and for blanks in ids or tag, or scores that do not decrease strictly
    with rank in float32, in which evaluation compares them.
    """
    frame = from_frame(candidates)
    check_run(frame, tag)
    frame["score"] = -frame["rank"] if frame["score"].isna().all() else frame["score"]
    with np.errstate(over="ignore"):
        scores = frame["score"].astype(np.float32)
    same = frame["query_id"] == frame["query_id"].shift()
    if (wrong := (same & ~(scores < scores.shift())) | np.isinf(scores)).any():
        query_id, doc_id, rank, score = frame.loc[wrong.idxmax()].iloc[:4]
        got = f"{score} at rank {rank} ({doc_id!r}) of query {query_id!r}"
        remedy = "use evaluate.settle_ties, or drop the column score to write -rank"
        _refuse("frame", "scores that decrease strictly with rank in float32", got, remedy)
    rows = zip(*(frame[x].tolist() for x in ("query_id", "doc_id", "rank", "score")), strict=True)
    _write(path, (f"{q} Q0 {d} {rank} {score!r} {tag}" for q, d, rank, score in rows))


def write_requests(candidates: pd.DataFrame, path: str | Path) -> None:
    """Write RankLLM's requests, JSON lines ``{query, candidates}``; needs ``query`` and ``text``."""
    frame = from_frame(candidates)
    if missing := [name for name in ("query", "text") if name not in frame]:
        _refuse("frame", "texts", f"no {' and '.join(missing)}", "join them on by their ids")
    frame["score"] = frame["score"].fillna(-frame["rank"])

    def request(rows: pd.DataFrame) -> str:
        hits = zip(*(rows[name].tolist() for name in ("doc_id", "score", "text")), strict=True)
        candidates = [{"docid": d, "score": score, "doc": {"text": text}} for d, score, text in hits]
        query = {"text": rows["query"].iloc[0], "qid": rows["query_id"].iloc[0]}
        return json.dumps({"query": query, "candidates": candidates}, ensure_ascii=False)

    _write(path, (request(rows) for _, rows in frame.groupby("query_id", sort=False)))


def write_parquet(candidates: pd.DataFrame, path: str | Path) -> None:
    """Write Rank-DistiLLM's parquet: ``qid``, ``docno``, ``rank`` (1 is best), ``score``."""
    frame = from_frame(candidates)[["query_id", "doc_id", "rank", "score"]]
    with partial(Path(path)) as beside:
        frame.set_axis(["qid", "docno", "rank", "score"], axis=1).to_parquet(beside, index=False)


def _write(path: str | Path, rows: Iterable[str]) -> None:
    """Write lines of UTF-8; equal lines give equal bytes, packed or not."""
    with partial(Path(path)) as beside:
        raw = "".join(f"{row}\n" for row in rows).encode()
        beside.write_bytes(gzip.compress(raw, mtime=0) if str(path).endswith(".gz") else raw)


def _refuse(place: object, expected: str, got: object, do: str = "correct or remove it") -> NoReturn:
    raise ValueError(f"{place}: expected {expected}; got {textwrap.shorten(str(got), 500)}: {do}")


def _places(path: str | Path, unit: str, number: Callable[[int], object] = (1).__add__) -> _Places:
    """Where each row of a frame stands, such as a file and its line; the file itself for no row."""
    return lambda row=None: str(path) if row is None else f"{path}, {unit} {number(row)}"


def _recognise(path: str | Path) -> str:
    """Name of the format by the file's name and first record; three integers could be anything."""
    parquet = _is_parquet(path)
    number, line = (1, "") if parquet else _first_line(path)
    if parquet or (line.lstrip()[:1] in "{[" and not _RUN_NAME.search(str(path))):
        record = next(each_record(path)[0], (0, {}))[1]
        keys = set(record) if isinstance(record, dict) else set()
        for name, form in FORMATS.items():
            if any(wanted <= keys for wanted in form.keys):
                return name
        got, hint = f"keys {sorted(keys)}", "use read_passages or read_queries" if "_id" in keys else ""
        if keys & {"prompt", "invocations_history"}:
            hint = "rdl teach replays such a history"
    else:
        cells, got = line.split(), f"{len(line.split())} columns, {line[:80]!r}"
        fourth = len(cells) > 3 and re.fullmatch(r"-?\d+", cells[3])
        scored = len(cells) == 3 and re.fullmatch(r"-?\d*\.\d+(e[-+]?\d+)?", cells[2].lower())
        if _RUN_NAME.search(str(path)) or scored or (len(cells) == 6 and fourth):
            return "trec_run"
        if line.count("\t") == 3 and not (len(cells) == 4 and fourth):
            return "msmarco_top1000"
        hint = "use read_qrels" if len(cells) == 4 else ""
    known = "; ".join(f"{name}: {form.shape}" for name, form in FORMATS.items())
    place = path if parquet else f"{path}, line {number}"
    hint = hint or "name its format, read_candidates(path, format)"
    return _refuse(place, f"candidates in one of these formats ({known})", got, hint)


@contextmanager
def _opened(path: str | Path) -> Iterator[IO[bytes]]:
    try:
        with open(path, "rb") as raw:
            packed = str(path).endswith(".gz") or raw.peek(2).startswith(b"\x1f\x8b")
            with gzip.open(raw) if packed else raw as file:
                yield file
    except (gzip.BadGzipFile, EOFError, zlib.error) as error:
        _refuse(path, "a whole gzip file", error, "fetch or pack it again")


def _lines(path: str | Path, *, blank: bool = False) -> Iterator[tuple[int, str]]:
    """Number, from 1, and text of each line; blank ones only if asked for."""
    with _opened(path) as file:
        for number, raw in enumerate(file, 1):
            if blank or raw.strip():
                try:
                    yield number, raw.decode("utf-8-sig" if number == 1 else "utf-8").rstrip("\r\n")
                except UnicodeDecodeError as error:
                    _refuse(f"{path}, line {number}", "UTF-8", error, "convert the file first")


def _first_line(path: str | Path) -> tuple[int, str]:
    for number, line in _lines(path):
        return number, line
    return _refuse(path, "data", "an empty file", "check where it comes from")


def _table(
    path: str | Path, layouts: Mapping[int, Sequence[str]], what: str, *, tabs: bool = False,
    skip: int = 0,
) -> tuple[pd.DataFrame, _Places]:  # fmt: skip
    """Columns (str) of a file separated by white space or single tabs, all lines alike.

    `layouts` names them by how many there are; those named _ are left out.
    """
    rows, numbers = [], []
    for number, line in islice(_lines(path), skip, None):
        cells = line.split("\t") if tabs else re.split(r"[ \t\r]+", line.strip(" \t\r"))
        if len(cells) not in layouts or (rows and len(cells) != len(rows[0])):
            expected = f"{what}, {len(rows[0])} as above" if rows else what
            _refuse(f"{path}, line {number}", expected, f"{len(cells)} columns, {line[:80]!r}")
        rows.append(cells)
        numbers.append(number)
    if not rows:
        _refuse(path, "data", "a header alone" if skip else "an empty file", "check its source")
    frame = pd.DataFrame(rows, columns=layouts[len(rows[0])], dtype="str")
    return frame.drop(columns="_", errors="ignore"), _places(path, "line", numbers.__getitem__)


def _named_table(path: str | Path, *names: str) -> tuple[pd.DataFrame, _Places]:
    if header := {cell.strip().lower() for cell in _first_line(path)[1].split("\t")} <= _HEADER:
        _log.info("%s: the first line names the columns", path)
    what = f"{' '.join(names)} with tabs between"
    return _table(path, {len(names): names}, what, tabs=True, skip=int(header))


def _has_records(path: str | Path) -> bool:
    return _is_parquet(path) or _first_line(path)[1].lstrip().startswith(("{", "["))


def _is_parquet(path: str | Path) -> bool:
    with open(path, "rb") as file:
        return file.read(4) == b"PAR1"


@contextmanager
def _parquet(path: str | Path) -> Iterator[pq.ParquetFile]:
    try:
        yield pq.ParquetFile(path, page_checksum_verification=True)
    except (pa.ArrowException, MemoryError, OSError, UnicodeDecodeError) as error:
        _refuse(path, "a whole parquet file", error, "fetch it again")


def _parquet_rows(path: str | Path) -> Iterator[dict]:
    with _parquet(path) as file:
        for batch in file.iter_batches():
            yield from batch.to_pylist()


def _json(path: str | Path) -> Iterator[tuple[int, Any]]:
    """Values line by line or, where the first line is no value, of the whole text."""
    gap, decoder, depth = re.compile(r"[\s,\[\]]*"), json.JSONDecoder(), 0  # brackets are only counted
    try:
        json.loads(_first_line(path)[1].strip(" \t,"))
        texts = _lines(path)
    except _NO_JSON:
        texts = [(1, "\n".join(line for _, line in _lines(path, blank=True)))]
    for number, text in texts:
        first, at = number, 0
        while True:
            between = gap.match(text, at)[0]
            number += between.count("\n")
            depth += between.count("[") - between.count("]")
            if (start := at + len(between)) == len(text):
                break
            try:
                value, at = decoder.raw_decode(text, start)
            except _NO_JSON as error:
                line = first - 1 + getattr(error, "lineno", number - first + 1)
                got = f"{getattr(error, 'msg', error)} in the record of line {number}"
                _refuse(f"{path}, line {line}", "JSON", got, "is the file whole?")
            yield number, value
            number += text.count("\n", start, at)
    if depth:
        got = f"{depth} missing" if depth > 0 else f"{-depth} too many"
        _refuse(f"{path}, line {number}", "a ] for each [", got, "is the file whole?")


def _get(record: Any, *names: str, kind: type = object) -> Any:
    """The first of some names that an object has, of a kind; errors hold what was expected and got."""
    if not isinstance(record, dict):
        raise ValueError("an object", repr(record)[:80])
    if not (own := [name for name in names if name in record]):
        raise ValueError(f"the key {' or '.join(names)}", f"keys {list(record)}")
    if not isinstance(value := record[own[0]], kind):
        raise ValueError(f"{own[0]} as a {kind.__name__}", repr(value)[:80])
    return value


def _text(record: Any, names: tuple[str, ...] = _TEXT) -> str:
    """A text with its title before it, as ir_datasets joins them."""
    text = _get(record, *names, kind=str)
    return f"{_get(record, 'title', kind=str)} {text}" if record.get("title") else text


def _rank_llm(record: dict) -> list[dict]:
    if old := "hits" in record:
        hits = _get(record, "hits", kind=list)
        ids = list(dict.fromkeys(str(_get(hit, "qid")) for hit in hits))
        if len(ids) != 1:
            raise ValueError("hits of one query id", ids or "no hits, so that it is unknown")
        query_id, query = hits[0]["qid"], _get(record, "query")
    else:
        hits, query = _get(record, "candidates", kind=list), _get(record, "query")
        query_id, query = _get(query, "qid"), _get(query, "text")
    rows = []
    for place, hit in enumerate(hits, start=1):
        try:
            row = {"query_id": query_id, "query": query, "doc_id": _get(hit, "docid")}
            row |= {"rank": hit.get("rank") if old else place, "score": hit.get("score")}
            rows.append(row | {"text": _text(hit if old else _get(hit, "doc"))})
        except ValueError as misfit:
            expected, got = misfit.args
            raise ValueError(f"{expected} in candidate {place}", got) from None
    return rows


def _id_list(record: dict) -> list[dict]:
    query_id, ids = _get(record, "query_id"), _get(record, "doc_ids", kind=list)
    name, values = "teacher_rank", range(1, len(ids) + 1)
    if "labels" in record:
        name, values = "relevance", _get(record, "labels", kind=list)
        if len(values) != len(ids) or None in values:
            raise ValueError(f"a label for each of {len(ids)} doc_ids", repr(values)[:80])
    ranked = enumerate(zip(ids, values, strict=True), 1)
    return [{"query_id": query_id, "doc_id": d, "rank": r, name: value} for r, (d, value) in ranked]


def _row(record: dict) -> dict:
    return record | {name: _get(record, *_COLUMNS[name][0]) for name in ("query_id", "doc_id")}


def _unpacked(path: str | Path, unpack: Callable) -> tuple[pd.DataFrame, _Places]:
    """Columns of all records: `unpack` gives a record's one row, or a list of all rows of its query."""
    columns, numbers, seen = {name: [] for name in _COLUMNS}, [], {}
    records, unit = each_record(path)
    for number, record in records:
        place = f"{path}, {unit} {number}"
        try:
            rows = unpack(record if isinstance(record, dict) else _get(record))
        except ValueError as misfit:
            _refuse(place, *misfit.args)
        if not rows:
            _refuse(place, "at least one entry", "an empty list")
        if isinstance(rows, dict):
            rows = [rows]
        elif seen.setdefault(query_id := str(rows[0]["query_id"]), number) != number:
            got = f"{query_id!r} again, first in {unit} {seen[query_id]}"
            _refuse(place, "one record for each query", got, "merge or remove it")
        for name, values in columns.items():
            values.extend(row.get(name) for row in rows)
        numbers.extend([number] * len(rows))
    if not numbers:
        _refuse(path, "records", "none", "check where the file comes from")

    def place_of(row: int) -> str:
        place = str(numbers[row])
        return f"{place}, candidate {row - numbers.index(numbers[row]) + 1}" if seen else place

    return pd.DataFrame(columns, dtype=object), _places(path, unit, place_of)


def _texts(path: str | Path, names: list[str], ids: tuple, texts: tuple) -> pd.DataFrame:
    def unpack(record: dict) -> dict:
        return {names[0]: _get(record, *ids), names[1]: _text(record, texts)}

    columns, at = _unpacked(path, unpack) if _has_records(path) else _named_table(path, *names)
    frame = pd.DataFrame({name: _checked(columns[name], at, name) for name in names})
    return _once(frame, names[:1], at, "id")


def _rows(path: str | Path) -> pd.DataFrame:
    if not _is_parquet(path):
        return _candidates(*_unpacked(path, _row))
    known = {name for names, *_ in _COLUMNS.values() for name in names}
    with _parquet(path) as file:
        table = file.read([name for name in file.schema_arrow.names if name in known])
        return _from_columns(table.to_pandas(ignore_metadata=True), _places(path, "row"))


def _as_id(value: Any) -> str:
    if isinstance(value, (str, int)) and not isinstance(value, bool) and value != "":
        return str(value)
    raise ValueError("no id")


#: Text that UTF-8 can hold: JSON can name half a character, which no file or frame can.
_Str = Annotated[str, AfterValidator(lambda text: text.encode().decode())]
_Id = (Annotated[_Str, BeforeValidator(_as_id)], "str", "an id that is a str or an integer")
_Int = Annotated[int, Field(ge=-(2**63), lt=2**63)]
_Float = Annotated[float, Field(allow_inf_nan=False)]
#: Names of each column in files and frames (pyterrier's docid is an internal number, so it comes last),
#: what its values are, its type, and how errors call it.
_COLUMNS = {
    "query_id": (("query_id", "qid"), *_Id),
    "doc_id": (("doc_id", "docno", "pid", "passage_id", "docid"), *_Id),
    "rank": (("rank",), _Int, "int64", "rank as an integer, in every row"),
    "score": (("score",), _Float, "float64", "finite scores"),
    "query": (("query",), _Str, "str", "query as a str"),
    "text": (("text",), _Str, "str", "text as a str"),
    "relevance": (("relevance",), _Int | None, "Int64", "relevance as an integer"),
    "teacher_rank": (("teacher_rank",), _Int | None, "Int64", "teacher_rank as an integer"),
}
#: How judgments in JSON or parquet name their columns; and what a header line may say.
_JUDGMENT = {
    "query_id": ("query_id", "query-id", "qid"), "doc_id": ("corpus-id", *_COLUMNS["doc_id"][0]),
    "relevance": ("relevance", "score", "label", "rel"),
}  # fmt: skip
_HEADER = {"_id", "id", "corpus-id", "query-id", "title", *_TEXT}
_HEADER |= {name for names, *_ in _COLUMNS.values() for name in names}


def _checked(column: pd.Series, at: _Places, name: str, *, strict: bool = True) -> pd.Series:
    """A column of its kind, not `strict` where numbers are text; names the first row that is not."""
    _, kind, dtype, expected = _COLUMNS[name]
    if str(column.dtype) == dtype and not column.isna().any():  # quick: no Python objects
        wrong = np.isinf(column) if name == "score" else column == ("" if "id" in name else None)
        if not wrong.any():
            return column
    values = column.astype(object).where(column.notna(), None).tolist()
    if dtype == "Int64":  # floats where a merge left gaps
        values = [int(x) if isinstance(x, float) and x.is_integer() else x for x in values]
    try:
        adapter = TypeAdapter(Annotated[list[kind], FailFast()])
        return pd.Series(adapter.validate_python(values, strict=strict), dtype=dtype)
    except ValidationError as error:
        problem = error.errors(include_url=False)[0]
        return _refuse(at(problem["loc"][0]), expected, repr(problem["input"])[:80])


def _once(frame: pd.DataFrame, key: list[str], at: _Places, what: str) -> pd.DataFrame:
    if (twice := frame.duplicated(key)).any():
        row = int(twice.argmax())
        first = at(int((frame[key] == frame.loc[row, key]).all(axis=1).argmax()))
        _refuse(at(row), f"each {what} once", f"{frame.loc[row, key].tolist()} again, first in {first}")
    return frame


def _from_columns(frame: pd.DataFrame, at: _Places) -> pd.DataFrame:
    if not frame.columns.is_unique:
        got = f"{frame.columns[frame.columns.duplicated()][0]!r} twice"
        _refuse(at(), "each column once", got, "rename or remove one")
    used = {name: next((x for x in own[0] if x in frame), None) for name, own in _COLUMNS.items()}
    for name in ("query_id", "doc_id"):
        if used[name] is None:
            got = f"columns {list(frame.columns)}"
            _refuse(at(), f"a column {' or '.join(_COLUMNS[name][0])}", got, "rename one")
    if unused := sorted(map(str, set(frame.columns) - set(used.values()))):
        _log.info("%s: columns %s are not read", at(), unused)
    return _candidates({name: frame[x] for name, x in used.items() if x is not None}, at)


def _candidates(columns: Mapping[str, pd.Series], at: _Places, *, strict: bool = True) -> pd.DataFrame:
    """Check columns, order the rows of each query, and count their rank anew from 1."""
    kept = [name for name in columns if name in ("query_id", "doc_id") or columns[name].notna().any()]
    frame = pd.DataFrame({name: _checked(columns[name], at, name, strict=strict) for name in kept})
    if frame.empty:
        _refuse(at(), "candidates", "none", "check where the file comes from")
    _once(frame, ["query_id", "doc_id"], at, "passage of a query")
    for name in ("query_id", "doc_id") if strict else ():  # else blanks separate the columns
        if blank := [x for x in frame[name].unique() if x.split() != [x]]:
            row = int((frame[name] == blank[0]).argmax())
            frame.attrs["blank"] = f"{at(row)}, {name} {blank[0]!r}"
    ranks, scores, why, doubtful = frame.get("rank"), frame.get("score"), "there are no ranks", False
    queries = pd.factorize(frame["query_id"])[0]
    if ranks is not None and (again := frame.duplicated(["query_id", "rank"]) | (ranks < 0)).any():
        place = at(int(again.argmax()))
        if scores is None or scores.groupby(queries).nunique().max() == 1:
            got = f"{ranks[again.argmax()]} again or below 0, and no scores that differ"
            _refuse(place, "ranks that differ within a query", got)
        ranks, why, doubtful = None, f"ranks repeat, first in {place}", True
    if ranks is not None:
        key, by = ranks, "rank"
    elif scores is not None:
        key, by = -scores, f"score, as {why}"
    else:
        key, by, doubtful = np.zeros(len(frame)), f"place, as {why} and no scores", True
    order = np.lexsort((key, queries))
    n_rise = n_tie = 0
    if scores is not None:  # RankGPT and RankLLM leave the first stage's where they were
        steps = np.diff(scores.iloc[order])[np.diff(queries[order]) == 0]
        n_rise, n_tie = int((steps > 0).sum()), int((steps == 0).sum())
    level = logging.WARNING if doubtful or n_rise else logging.INFO
    _log.log(level, "%s: ordered by %s; %d scores rise, %d tie", at(), by, n_rise, n_tie)
    frame = frame.iloc[order].reset_index(drop=True)
    frame["rank"] = frame.groupby("query_id", sort=False).cumcount() + 1
    frame["score"] = np.nan if scores is None else frame["score"]
    return frame[[name for name in _COLUMNS if name in frame]]


#: What a record of a format looks like, its reader, and sets of keys that tell it.
Format = namedtuple("Format", "shape read keys", defaults=((),))
_RUN_NAME = re.compile(r"\.(run|trec|res)(\.gz)?$")
#: Formats by name; the first that fits is meant. Hits of ``rank_llm`` (2023) are ordered by rank,
#: candidates (today) and ``lists`` by place. Lists without labels are a teacher's.
FORMATS = {
    "trec_run": Format("qid iter docid rank score tag, or qid docid [score]", read_run),
    "msmarco_run": Format("qid pid rank", lambda path: read_run(path, third="rank")),
    "msmarco_top1000": Format(
        "qid pid query passage, with tabs",
        lambda path: _candidates(*_named_table(path, "query_id", "doc_id", "query", "text")),
    ),
    "rank_llm": Format(
        "JSON(L) {query, hits} or {query, candidates}",
        lambda path: _candidates(*_unpacked(path, _rank_llm)),
        ({"query", "hits"}, {"query", "candidates"}),
    ),
    "lists": Format(
        "parquet or JSON(L) {query_id, doc_ids [, labels]}",
        lambda path: _candidates(*_unpacked(path, _id_list)), ({"query_id", "doc_ids"},),
    ),
    "rows": Format(
        "parquet or JSON(L), a row {query_id, doc_id [, rank, score, query, text]}", _rows,
        tuple({query, doc} for query in _COLUMNS["query_id"][0] for doc in _COLUMNS["doc_id"][0]),
    ),
}  # fmt: skip
