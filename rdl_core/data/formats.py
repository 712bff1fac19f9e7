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
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Annotated, Any, NoReturn

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
from pydantic import AfterValidator, FailFast, Field, StrictInt, StrictStr, TypeAdapter, ValidationError

from rdl_core.files import partial

__all__ = ["FORMATS", "check_run", "each_record", "from_frame", "read_candidates", "read_passages",
           "read_qrels", "read_queries", "read_run", "write_parquet", "write_requests",
           "write_run"]  # fmt: skip

_IDS = ["query_id", "doc_id"]
_Records = Iterator[tuple[int, Any]]
_log = logging.getLogger(__name__)


def read_candidates(path: str | Path, format: str | None = None) -> pd.DataFrame:
    """Read ranked candidates from a file of any format in `FORMATS`; None: the file tells which.

    Ranks decide the order if they differ within each query, else scores; the log says which. ValueError
    names what does not fit, and its place.
    """
    name = format or _recognise(path)
    if name not in FORMATS:
        _refuse("format", f"one of {', '.join(FORMATS)}", repr(name))
    _log.info("%s: read as %s", path, name)
    return FORMATS[name].read(path)


def read_run(path: str | Path, *, third: str = "score") -> pd.DataFrame:
    """Read a TREC run; `third` says what the last of three columns is, score or rank."""
    layouts = ["query_id", "_", "doc_id", "rank", "score", "_"], [*_IDS, third], _IDS
    table = _table(path, "a run of 6, 3 or 2 columns", *layouts)
    return _candidates(_unpacked(path, _row, table), strict=False)


def read_qrels(path: str | Path) -> pd.DataFrame:
    """Read judgments: ``qid iter docid rel``, ``qid docid rel``, BEIR's table, JSON or parquet rows.

    Gives ``query_id``, ``doc_id`` (str), ``relevance`` (int64), in the order of the file.
    """
    layouts = ["query_id", "_", "doc_id", "relevance"], [*_JUDGMENT]
    return _rows(path, _JUDGMENT, "judgments of 4 or 3 columns", *layouts)


def read_queries(path: str | Path) -> pd.DataFrame:
    """Read ``query_id``, ``query``: MS MARCO's table with tabs, or JSON or parquet as BEIR has it."""
    return _rows(path, _QUERY, "query_id query with tabs between", [*_QUERY], tabs=True)


def read_passages(path: str | Path) -> pd.DataFrame:
    """Read ``doc_id``, ``text``, likewise, a title first; text encoded twice is not repaired."""
    return _rows(path, _PASSAGE, "doc_id text with tabs between", [*_PASSAGE], tabs=True)


def check_run(candidates: pd.DataFrame, tag: str) -> None:
    """ValueError if no run can hold a tag, or the ids of candidates: known before these are scored."""
    if tag.split() != [tag]:
        _refuse("tag", "a tag without blanks", repr(tag), "join its words with - or _")
    if place := candidates.attrs.get("blank"):
        _refuse(place, "ids without blanks", "one that no run can hold", "replace the blanks")


def each_record(path: str | Path) -> tuple[_Records, str]:
    """Number and content of each record of a parquet or JSON file, and what the numbers count."""
    return (_parquet(path), "row") if _first(path)[0] == "parquet" else (_json(path), "line")


def from_frame(frame: pd.DataFrame) -> pd.DataFrame:
    """Candidates from a frame, such as pyterrier's (``qid, docno, rank, score, query, text``).

    Ids are str or integers, ``query_id`` or ``qid``, and ``doc_id``, ``docno``, ``pid``, ``passage_id``
    or ``docid``; ranks count from 0 or 1; other columns are left out. ValueError names the row, from 1.
    """
    if len(twice := frame.columns[frame.columns.duplicated()]):
        _refuse("frame", "each column once", f"{twice[0]!r} twice", "rename or remove one")
    used = {name: x for name, (names, _) in _COLUMNS.items() for x in reversed(names) if x in frame}
    if missing := [" or ".join(_COLUMNS[name][0]) for name in _IDS if name not in used]:
        _refuse("frame", f"a column {missing[0]}", f"columns {list(frame.columns)}", "rename one")
    index = pd.RangeIndex(1, len(frame) + 1, name="frame, row")
    return _candidates(frame[[*used.values()]].set_axis([*used], axis=1).set_axis(index))


def write_run(candidates: pd.DataFrame, path: str | Path, *, tag: str = "rdl") -> None:
    """Write a TREC run, ``qid Q0 docid rank score tag``; -rank stands for scores where there are none.

    ValueError also for scores that do not strictly decrease in float32, in which evaluation compares.
    """
    frame = from_frame(candidates)
    check_run(frame, tag)
    frame["score"] = frame["score"].fillna(-frame["rank"])
    with np.errstate(over="ignore"):
        scores = frame["score"].astype(np.float32)
    steps = scores.groupby(frame["query_id"]).diff()
    if (wrong := (steps >= 0) | np.isinf(scores)).any():
        query_id, doc_id, rank, score = frame.loc[wrong.idxmax()].iloc[:4]
        got = f"{score} at rank {rank} ({doc_id!r}) of query {query_id!r}"
        remedy = "use evaluate.settle_ties, or drop the column score to write -rank"
        _refuse("frame", "scores that decrease strictly with rank in float32", got, remedy)
    rows = frame[[*_IDS, "rank", "score"]].itertuples(index=False, name=None)
    _write(path, (f"{q} Q0 {d} {rank} {score!r} {tag}" for q, d, rank, score in rows))


def write_requests(candidates: pd.DataFrame, path: str | Path) -> None:
    """Write RankLLM's requests, JSON lines ``{query, candidates}``; needs ``query`` and ``text``."""
    frame, lines = from_frame(candidates), []
    if missing := [name for name in ("query", "text") if name not in frame]:
        _refuse("frame", "texts", f"no {' and '.join(missing)}", "join them on by their ids")
    frame["score"] = frame["score"].fillna(-frame["rank"])
    for query_id, rows in frame.groupby("query_id", sort=False):
        hits = zip(rows["doc_id"], rows["score"], rows["text"], strict=True)
        hits = [{"docid": d, "score": score, "doc": {"text": text}} for d, score, text in hits]
        record = {"query": {"text": rows["query"].iloc[0], "qid": query_id}, "candidates": hits}
        lines.append(json.dumps(record, ensure_ascii=False))
    _write(path, lines)


def write_parquet(candidates: pd.DataFrame, path: str | Path) -> None:
    """Write Rank-DistiLLM's parquet: ``qid``, ``docno``, ``rank`` (1 is best), ``score``."""
    frame = from_frame(candidates)[[*_IDS, "rank", "score"]]
    with partial(Path(path)) as beside:
        frame.set_axis(["qid", "docno", "rank", "score"], axis=1).to_parquet(beside, index=False)


def _write(path: str | Path, rows: Iterable[str]) -> None:
    """Write lines of UTF-8; equal lines give equal bytes, packed or not."""
    with partial(Path(path)) as beside:
        raw = "".join(f"{row}\n" for row in rows).encode()
        beside.write_bytes(gzip.compress(raw, mtime=0) if str(path).endswith(".gz") else raw)


def _refuse(place: object, expected: str, got: object, do: str = "correct or remove it") -> NoReturn:
    raise ValueError(f"{place}: expected {expected}; got {textwrap.shorten(str(got), 500)}: {do}")


def _place(frame: pd.DataFrame, row: int) -> str:
    """Where a row is from: the index has the numbers of lines or rows, its name says of which file."""
    return f"{frame.index.name} {frame.index[row]}"


def _recognise(path: str | Path) -> str:
    """Name of the format by the file's name and first record; three integers could be anything."""
    if re.search(r"\.(run|trec|res)(\.gz)?$", str(path)):
        return "trec_run"
    kind, number, line = _first(path)
    keys, unit, got = set(), "line", f"{len(line.split())} columns, {line[:80]!r}"
    if kind != "table":
        records, unit = each_record(path)
        number, record = next(records, (1, None))
        line, keys = "", set(record) if isinstance(record, dict) else keys
        got = f"keys {sorted(keys)}"
    for name, form in FORMATS.items():
        if (line and re.fullmatch(form.line, line)) or any(wanted <= keys for wanted in form.keys):
            return name
    known = "; ".join(f"{name}: {form.shape}" for name, form in FORMATS.items())
    hint = "name its format, read_candidates(path, format)"
    hint = "use read_qrels" if len(line.split()) == 4 else hint
    hint = "use read_passages or read_queries" if "_id" in keys else hint
    hint = "rdl teach replays it" if keys & {"prompt", "invocations_history"} else hint
    expected = f"candidates in one of these formats ({known})"
    return _refuse(f"{path}, {unit} {number}", expected, got, hint)


def _lines(path: str | Path) -> Iterator[tuple[int, str]]:
    """Number, from 1, and text of each line."""
    try:
        with open(path, "rb") as raw:
            packed = str(path).endswith(".gz") or raw.peek(2).startswith(b"\x1f\x8b")
            for number, line in enumerate(gzip.open(raw) if packed else raw, 1):
                yield number, line.decode("utf-8-sig" if number == 1 else "utf-8").rstrip("\r\n")
    except UnicodeDecodeError as error:
        _refuse(f"{path}, line {number}", "UTF-8", error, "convert the file first")
    except (gzip.BadGzipFile, EOFError, zlib.error) as error:
        _refuse(path, "a whole gzip file", error, "fetch or pack it again")


def _first(path: str | Path) -> tuple[str, int, str]:
    """Kind of a file, and number and text of its first line that is not blank."""
    with open(path, "rb") as file:
        if file.read(4) == b"PAR1":
            return "parquet", 0, ""
    first = next((x for x in _lines(path) if x[1].strip()), None)
    number, line = first or _refuse(path, "data", "an empty file", "check its source")
    return "JSON" if line.lstrip().startswith(("{", "[")) else "table", number, line


def _table(path: str | Path, what: str, *layouts: list[str], tabs: bool = False) -> _Records:
    """Number and columns of each row, between white space or tabs; a layout of as many names them."""
    names, width = {len(layout): layout for layout in layouts}, 0
    for number, line in _lines(path):
        if not line.strip():
            continue
        words = line.split("\t") if tabs else line.split()
        is_header = not width and {word.strip().lower() for word in words} <= _HEADER
        tabs = tabs or (is_header and "\t" in line)
        cells = line.split("\t") if tabs else re.split(r"[ \t\r]+", line.strip(" \t\r"))
        if len(cells) not in names or width not in (0, len(cells)):
            expected = f"{what}, {width} as above" if width else what
            _refuse(f"{path}, line {number}", expected, f"{len(cells)} columns, {line[:80]!r}")
        width = len(cells)
        if is_header:
            _log.info("%s: the first line names the columns", path)
        else:
            yield number, dict(zip(names[width], cells, strict=True))


def _parquet(path: str | Path) -> _Records:
    try:
        batches = pq.ParquetFile(path, page_checksum_verification=True).iter_batches()
        yield from enumerate((row for batch in batches for row in batch.to_pylist()), start=1)
    except (pa.ArrowException, MemoryError, OSError, UnicodeDecodeError) as error:
        _refuse(path, "a whole parquet file", error, "fetch it again")


def _json(path: str | Path) -> _Records:
    """Values line by line or, where the first line is no value, of the whole text."""
    gap, decoder, depth = re.compile(r"[\s,\[\]]*"), json.JSONDecoder(), 0  # brackets are only counted
    texts = _lines(path)
    try:
        json.loads(_first(path)[2].strip(" \t,"))
    except (ValueError, RecursionError):  # also numbers of thousands of digits, a thousand brackets
        texts = [(1, "\n".join(line for _, line in texts))]
    for number, text in texts:
        at = 0
        while True:
            between = gap.match(text, at)[0]
            number += between.count("\n")
            depth += between.count("[") - between.count("]")
            if (start := at + len(between)) == len(text):
                break
            try:
                value, at = decoder.raw_decode(text, start)
            except (ValueError, RecursionError) as error:
                line = number + text.count("\n", start, getattr(error, "pos", start))
                got = f"{getattr(error, 'msg', error)} in the record of line {number}"
                _refuse(f"{path}, line {line}", "JSON", got, "is the file whole?")
            yield number, value
            number += text.count("\n", start, at)
    if depth:
        _refuse(f"{path}, line {number}", "a ] for each [", f"{depth} [ more", "is the file whole?")


def _get(record: Any, *names: str, kind: type = object) -> Any:
    """The first of some names that an object has, of a kind; errors hold what was expected and got."""
    if not isinstance(record, dict):
        raise ValueError("an object", repr(record)[:80])
    if not (own := [name for name in names if name in record]):
        raise ValueError(f"the key {' or '.join(names)}", f"keys {list(record)}")
    if not isinstance(value := record[own[0]], kind):
        raise ValueError(f"{own[0]} as a {kind.__name__}", repr(value)[:80])
    return value


def _text(record: Any, *names: str) -> str:
    """A text with its title before it, as ir_datasets joins them."""
    text = _get(record, *names, kind=str)
    return f"{_get(record, 'title', kind=str)} {text}" if record.get("title") else text


def _rank_llm(record: Any) -> Iterator[dict]:
    """Hits (2023) are ordered by rank and each has the query's id, candidates (today) by place."""
    query = _get(record, "query")
    if "hits" in record:
        hits = _get(record, "hits", kind=list)
        ids = list(dict.fromkeys(str(_get(hit, "qid")) for hit in hits))
        if len(ids) != 1:
            raise ValueError("hits of one query id", ids or "no hits, so that it is unknown")
        for hit in hits:
            row = {"query_id": hit["qid"], "query": query, "doc_id": _get(hit, "docid")}
            yield row | {"rank": hit.get("rank"), "score": hit.get("score"), "text": _text(hit, *_TEXT)}
    else:
        about = {"query_id": _get(query, "qid"), "query": _get(query, "text")}
        for rank, hit in enumerate(_get(record, "candidates", kind=list), start=1):
            row = about | {"doc_id": _get(hit, "docid"), "rank": rank}
            yield row | {"score": hit.get("score"), "text": _text(_get(hit, "doc"), *_TEXT)}


def _id_list(record: Any) -> Iterator[dict]:
    query_id, ids = _get(record, "query_id"), _get(record, "doc_ids", kind=list)
    name, labels = "teacher_rank", range(1, len(ids) + 1)
    if "labels" in record:
        name, labels = "relevance", _get(record, "labels", kind=list)
    if len(labels) != len(ids) or None in labels:
        raise ValueError(f"a label for each of {len(ids)} doc_ids", repr(labels)[:80])
    for rank, (doc_id, label) in enumerate(zip(ids, labels, strict=True), start=1):
        yield {"query_id": query_id, "doc_id": doc_id, "rank": rank, name: label}


def _row(row: Any) -> Iterator[dict]:
    yield row | {name: _get(row, *_COLUMNS[name][0]) for name in _IDS}


def _unpacked(
    path: str | Path, unpack: Callable, table: _Records | None = None, *, lists: bool = False
) -> pd.DataFrame:
    """Columns of all records: `unpack` gives a record's rows, which are all of a query in `lists`."""
    values, places, seen = [], [], {}
    records, unit = (table, "line") if table else each_record(path)
    for number, record in records:
        rows = []
        try:
            rows.extend(unpack(record))  # keeps those before a misfit, so that it can be counted
        except ValueError as misfit:
            candidate = f", candidate {len(rows) + 1}" if rows else ""
            _refuse(f"{path}, {unit} {number}{candidate}", *misfit.args)
        if not rows:
            _refuse(f"{path}, {unit} {number}", "at least one entry", "an empty list")
        query_id = str(rows[0].get("query_id"))
        if lists and seen.setdefault(query_id, number) != number:
            got = f"{query_id!r} again, first in {unit} {seen[query_id]}"
            _refuse(f"{path}, {unit} {number}", "one record for each query", got, "merge or remove it")
        counted = (f"{number}, candidate {n}" for n in range(1, len(rows) + 1))
        places.extend(counted if lists else [number])
        values.extend([row.get(name) for name in _COLUMNS] for row in rows)
    return pd.DataFrame(values, pd.Index(places, name=f"{path}, {unit}"), [*_COLUMNS], dtype=object)


def _rows(
    path: str | Path, columns: dict, what: str, *layouts: list[str], tabs: bool = False
) -> pd.DataFrame:
    """Columns of a table, or of records that name them; each id, or pair of ids, once."""
    table = _table(path, what, *layouts, tabs=tabs) if _first(path)[0] == "table" else None
    get = {name: _text if name in ("query", "text") else _get for name in columns}
    frame = _unpacked(path, lambda record: [{x: get[x](record, *columns[x][0]) for x in get}], table)
    return _checked(frame, columns, strict=False).reset_index(drop=True)


#: What a column's values are, its type, and how errors call it.
Kind = namedtuple("Kind", "type dtype expected")
#: Text that UTF-8 can hold: JSON can name half a character, which no file or frame can.
_UTF8 = AfterValidator(lambda value: str(value).encode().decode())
_Integer = Annotated[int, Field(ge=-(2**63), lt=2**63)]
_ID = Kind(Annotated[Annotated[StrictStr, Field(min_length=1)] | StrictInt, _UTF8], "str",
           "an id that is a str or an integer")  # fmt: skip
_STR = Kind(Annotated[str, _UTF8], "str", "{} as a str")
_INT = Kind(_Integer, "int64", "{} as an integer, in every row")
_LABEL = Kind(_Integer | None, "Int64", "{} as an integer")
_SCORE = Kind(Annotated[float, Field(allow_inf_nan=False)], "float64", "finite scores")
_TEXT = ("text", "segment", "contents", "content", "body", "passage")  # RankLLM's order
_DOC_ID = ("doc_id", "docno", "pid", "passage_id", "docid")  # pyterrier's docid: an internal number
#: Names of each column in files and frames, and what its values are: of candidates, and of other files.
_COLUMNS = {
    "query_id": (("query_id", "qid"), _ID), "doc_id": (_DOC_ID, _ID),
    "rank": (("rank",), _INT), "score": (("score",), _SCORE),
    "query": (("query",), _STR), "text": (("text",), _STR),
    "relevance": (("relevance",), _LABEL), "teacher_rank": (("teacher_rank",), _LABEL),
}  # fmt: skip
_JUDGMENT = {
    "query_id": (("query_id", "query-id", "qid"), _ID), "doc_id": (("corpus-id", *_DOC_ID), _ID),
    "relevance": (("relevance", "score", "label", "rel"), _INT),
}  # fmt: skip
_QUERY = {"query_id": (("_id", "query_id", "qid", "id"), _ID), "query": (("query", "text"), _STR)}
_PASSAGE = {"doc_id": (("_id", *_DOC_ID, "id"), _ID), "text": (_TEXT, _STR)}
_ALL = (_COLUMNS, _JUDGMENT, _QUERY, _PASSAGE)  # words of a line that names the columns:
_HEADER = {"title", *(x for columns in _ALL for names, _ in columns.values() for x in names)}


def _checked(frame: pd.DataFrame, columns: dict, *, strict: bool = True) -> pd.DataFrame:
    """Columns of their kinds, not `strict` where numbers are text; each id, or pair of ids, once."""
    if frame.empty:
        _refuse(frame.index.name.rpartition(", ")[0], "records", "none", "check its source")
    checked = pd.DataFrame(index=frame.index)
    for name, (_, kind) in columns.items():
        values = frame[name].astype(object).where(frame[name].notna(), None).tolist()
        if kind is _LABEL:  # floats where a merge left gaps
            values = [int(x) if isinstance(x, float) and x.is_integer() else x for x in values]
        try:
            adapter = TypeAdapter(Annotated[list[kind.type], FailFast()])
            values = adapter.validate_python(values, strict=strict or None)
        except ValidationError as error:
            problem = error.errors(include_url=False)[0]
            place, got = _place(frame, problem["loc"][0]), repr(problem["input"])[:80]
            _refuse(place, kind.expected.format(name), got)
        checked[name] = pd.Series(values, frame.index, kind.dtype)
    ids = checked[[name for name in _IDS if name in checked]]
    if (twice := ids.duplicated()).any():
        again = ids.iloc[twice.argmax()]
        first = _place(frame, (ids == again).all(axis=1).argmax())
        got = f"{again.tolist()} again, first in {first}"
        _refuse(_place(frame, twice.argmax()), f"each {' and '.join(ids)} once", got)
    return checked


def _candidates(frame: pd.DataFrame, *, strict: bool = True) -> pd.DataFrame:
    """Check columns, order the rows of each query, and count their rank anew from 1."""
    kept = {x: _COLUMNS[x] for x in _COLUMNS if x in _IDS or (x in frame and frame[x].notna().any())}
    frame, source = _checked(frame, kept, strict=strict), frame.index.name.rpartition(", ")[0]
    for name in _IDS:
        if blank := [x for x in frame[name].unique() if x.split() != [x]]:
            place = _place(frame, (frame[name] == blank[0]).argmax())
            frame.attrs["blank"] = f"{place}, {name} {blank[0]!r}"
    queries, ranks, scores = pd.factorize(frame["query_id"])[0], frame.get("rank"), frame.get("score")
    key, by, doubtful = ranks, "rank", False
    if ranks is None and scores is None:
        key, by, doubtful = queries, "place, as there are no ranks and no scores", True
    elif ranks is None:
        key, by = -scores, "score, as there are no ranks"
    elif (again := frame.duplicated(["query_id", "rank"]) | (ranks < 0)).any():
        place = _place(frame, again.argmax())
        if scores is None or scores.groupby(queries).nunique().max() == 1:
            got = f"{ranks.iloc[again.argmax()]} again or below 0, and no scores that differ"
            _refuse(place, "ranks that differ within a query", got)
        key, by, doubtful = -scores, f"score, as ranks repeat, first in {place}", True
    order = np.lexsort((key, queries))
    frame = frame.iloc[order].reset_index(drop=True)
    frame["score"] = np.nan if scores is None else frame["score"]
    frame["rank"] = frame.groupby("query_id", sort=False).cumcount() + 1
    # RankGPT and RankLLM leave the first stage's scores where they were
    steps = np.diff(frame["score"])[np.diff(queries[order]) == 0]
    level = logging.WARNING if doubtful or (steps > 0).any() else logging.INFO
    told = "%s: ordered by %s; %d scores rise, %d tie"
    _log.log(level, told, source, by, (steps > 0).sum(), (steps == 0).sum())
    return frame[[name for name in _COLUMNS if name in frame]]


#: A format: what a record looks like, its reader, and the first line or keys that tell it.
Format = namedtuple("Format", "shape read line keys", defaults=("(?!)", ()))
_RUN = r"\s*(\S+\s+){3}-?\d+(\s+\S+){2}\s*|\s*(\S+\s+){2}-?\d*\.\d+([eE][-+]?\d+)?\s*"
#: Formats by name; the first that fits is meant.
FORMATS = {
    "trec_run": Format("qid iter docid rank score tag, or qid docid [score]", read_run, _RUN),
    "msmarco_run": Format("qid pid rank", lambda path: read_run(path, third="rank")),
    "msmarco_top1000": Format("qid pid query passage, with tabs", lambda path: _candidates(_unpacked(
        path, _row, _table(path, "4 columns", [*_IDS, "query", "text"], tabs=True))),
        r"(?!(\S+\s+){3}-?\d+\s*$)[^\t]*(\t[^\t]*){3}"),  # those are judgments
    "rank_llm": Format("JSON(L) {query, hits} or {query, candidates}", lambda path: _candidates(
        _unpacked(path, _rank_llm, lists=True)), keys=({"query", "hits"}, {"query", "candidates"})),
    "lists": Format("parquet or JSON(L) {query_id, doc_ids [, labels]}", lambda path: _candidates(
        _unpacked(path, _id_list, lists=True)), keys=({"query_id", "doc_ids"},)),
    "rows": Format("parquet or JSON(L), a row {query_id, doc_id [, rank, score, query, text]}",
                   lambda path: _candidates(_unpacked(path, _row)),
                   keys=[{q, doc} for q in _COLUMNS["query_id"][0] for doc in _DOC_ID]),
}  # fmt: skip
