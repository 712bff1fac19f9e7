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
_TEXT = ("text", "segment", "contents", "content", "body", "passage")  # RankLLM's order
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
    return _candidates(_table(path, "a run of 6, 3 or 2 columns", *layouts), strict=False)


def read_qrels(path: str | Path) -> pd.DataFrame:
    """Read judgments: ``qid iter docid rel``, ``qid docid rel``, BEIR's table, JSON or parquet rows.

    Gives ``query_id``, ``doc_id`` (str), ``relevance`` (int64), in the order of the file.
    """
    if _kind(path) != "table":
        frame = _unpacked(path, lambda record: {x: _get(record, *_JUDGMENT[x]) for x in _JUDGMENT})
    else:
        layouts = ["query_id", "_", "doc_id", "relevance"], [*_JUDGMENT]
        frame = _table(path, "judgments of 4 or 3 columns", *layouts, header=True)
    frame = _checked(frame, _JUDGMENT, strict=False)
    if (empty := frame["relevance"].isna()).any():
        _refuse(_place(frame, empty.argmax()), "relevance as an integer", "none")
    return _once(frame, _IDS, "judgment").astype({"relevance": "int64"}).reset_index(drop=True)


def read_queries(path: str | Path) -> pd.DataFrame:
    """Read ``query_id``, ``query``: MS MARCO's table with tabs, or JSON or parquet as BEIR has it."""
    return _texts(path, ["query_id", "query"], ("_id", "query_id", "qid", "id"), ("query", "text"))


def read_passages(path: str | Path) -> pd.DataFrame:
    """Read ``doc_id``, ``text``, likewise, a title first; text encoded twice is not repaired."""
    return _texts(path, ["doc_id", "text"], ("_id", *_COLUMNS["doc_id"][0], "id"), _TEXT)


def check_run(candidates: pd.DataFrame, tag: str) -> None:
    """ValueError if no run can hold a tag, or the ids of candidates: known before these are scored."""
    if tag.split() != [tag]:
        _refuse("tag", "a tag without blanks", repr(tag), "join its words with - or _")
    if place := candidates.attrs.get("blank"):
        _refuse(place, "ids without blanks", "one that no run can hold", "replace the blanks")


def each_record(path: str | Path) -> tuple[Iterator[tuple[int, Any]], str]:
    """Number and content of each record of a parquet or JSON file, and what the numbers count."""
    return (enumerate(_parquet(path), 1), "row") if _kind(path) == "parquet" else (_json(path), "line")


def from_frame(frame: pd.DataFrame) -> pd.DataFrame:
    """Candidates from a frame, such as pyterrier's (``qid, docno, rank, score, query, text``).

    Ids are str or integers, ``query_id`` or ``qid``, and ``doc_id``, ``docno``, ``pid``, ``passage_id``
    or ``docid``; ranks count from 0 or 1; other columns are left out. ValueError names the row, from 1.
    """
    if len(twice := frame.columns[frame.columns.duplicated()]):
        _refuse("frame", "each column once", f"{twice[0]!r} twice", "rename or remove one")
    used = {name: x for name, own in _COLUMNS.items() for x in reversed(own[0]) if x in frame}
    if missing := [" or ".join(_COLUMNS[name][0]) for name in _IDS if name not in used]:
        _refuse("frame", f"a column {missing[0]}", f"columns {list(frame.columns)}", "rename one")
    if unused := sorted(map(str, set(frame.columns) - set(used.values()))):
        _log.info("frame: columns %s are not read", unused)
    index = pd.RangeIndex(1, len(frame) + 1, name="frame, row")
    return _candidates(frame[[*used.values()]].set_axis([*used], axis=1).set_axis(index))


def write_run(candidates: pd.DataFrame, path: str | Path, *, tag: str = "rdl") -> None:
    """Write a TREC run, ``qid Q0 docid rank score tag``; -rank stands for scores where there are none.

    ValueError also for scores that do not strictly decrease in float32, in which evaluation compares.
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
    rows = frame[[*_IDS, "rank", "score"]].itertuples(index=False, name=None)
    _write(path, (f"{q} Q0 {d} {rank} {score!r} {tag}" for q, d, rank, score in rows))


def write_requests(candidates: pd.DataFrame, path: str | Path) -> None:
    """Write RankLLM's requests, JSON lines ``{query, candidates}``; needs ``query`` and ``text``."""
    frame = from_frame(candidates)
    if missing := [name for name in ("query", "text") if name not in frame]:
        _refuse("frame", "texts", f"no {' and '.join(missing)}", "join them on by their ids")
    frame["score"] = frame["score"].fillna(-frame["rank"])
    lines = []
    for query_id, rows in frame.groupby("query_id", sort=False):
        hits = zip(*(rows[name].tolist() for name in ("doc_id", "score", "text")), strict=True)
        candidates = [{"docid": d, "score": score, "doc": {"text": text}} for d, score, text in hits]
        query = {"text": rows["query"].iloc[0], "qid": query_id}
        lines.append(json.dumps({"query": query, "candidates": candidates}, ensure_ascii=False))
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
    kind, hint = _kind(path), "name its format, read_candidates(path, format)"
    number, line = (0, "") if kind == "parquet" else _first_line(path)
    is_run = line and re.search(r"\.(run|trec|res)(\.gz)?$", str(path))
    if kind != "table" and not is_run:
        record = next(each_record(path)[0], (0, {}))[1]
        keys = set(record) if isinstance(record, dict) else set()
        for name, form in FORMATS.items():
            if any(wanted <= keys for wanted in form.keys):
                return name
        got = f"keys {sorted(keys)}"
        hint = "use read_passages or read_queries" if "_id" in keys else hint
        hint = "rdl teach replays it" if keys & {"prompt", "invocations_history"} else hint
    else:
        cells, got = line.split(), f"{len(line.split())} columns, {line[:80]!r}"
        run = r"(\S+ ){3}-?\d+( \S+){2}|(\S+ ){2}-?\d*\.\d+(e[-+]?\d+)?"
        if is_run or re.fullmatch(run, " ".join(cells), re.IGNORECASE):
            return "trec_run"
        if line.count("\t") == 3 and not re.fullmatch(r"(\S+ ){3}-?\d+", " ".join(cells)):
            return "msmarco_top1000"
        hint = "use read_qrels" if len(cells) == 4 else hint
    known = "; ".join(f"{name}: {form.shape}" for name, form in FORMATS.items())
    place = f"{path}, line {number}" if number else path
    return _refuse(place, f"candidates in one of these formats ({known})", got, hint)


def _lines(path: str | Path, *, blank: bool = False) -> Iterator[tuple[int, str]]:
    """Number, from 1, and text of each line; blank ones only if asked for."""
    try:
        with open(path, "rb") as raw:
            packed = str(path).endswith(".gz") or raw.peek(2).startswith(b"\x1f\x8b")
            for number, line in enumerate(gzip.open(raw) if packed else raw, 1):
                if blank or line.strip():
                    yield number, line.decode("utf-8-sig" if number == 1 else "utf-8").rstrip("\r\n")
    except UnicodeDecodeError as error:
        _refuse(f"{path}, line {number}", "UTF-8", error, "convert the file first")
    except (gzip.BadGzipFile, EOFError, zlib.error) as error:
        _refuse(path, "a whole gzip file", error, "fetch or pack it again")


def _first_line(path: str | Path) -> tuple[int, str]:
    return next(_lines(path), None) or _refuse(path, "data", "an empty file", "check its source")


def _table(
    path: str | Path, what: str, *layouts: list[str], tabs: bool = False, header: bool = False
) -> pd.DataFrame:
    """Columns (str) between white space or single tabs, named by a layout of as many."""
    rows, names, width = {}, {len(layout): layout for layout in layouts}, 0
    for number, line in _lines(path):
        words = line.split("\t") if tabs else line.split()
        is_header = header and not width and {word.strip().lower() for word in words} <= _HEADER
        tabs = tabs or (is_header and "\t" in line)
        cells = line.split("\t") if tabs else re.split(r"[ \t\r]+", line.strip(" \t\r"))
        if len(cells) not in names or width not in (0, len(cells)):
            expected = f"{what}, {width} as above" if width else what
            _refuse(f"{path}, line {number}", expected, f"{len(cells)} columns, {line[:80]!r}")
        width = len(cells)
        if is_header:
            _log.info("%s: the first line names the columns", path)
        else:
            rows[number] = cells
    if not rows:
        _refuse(path, "data", "a header alone" if width else "an empty file", "check its source")
    return pd.DataFrame.from_dict(rows, "index", "str", names[width]).rename_axis(f"{path}, line")


def _kind(path: str | Path) -> str:
    with open(path, "rb") as file:
        if file.read(4) == b"PAR1":
            return "parquet"
    return "JSON" if _first_line(path)[1].lstrip().startswith(("{", "[")) else "table"


def _parquet(path: str | Path) -> Iterator[dict]:
    try:
        for batch in pq.ParquetFile(path, page_checksum_verification=True).iter_batches():
            yield from batch.to_pylist()
    except (pa.ArrowException, MemoryError, OSError, UnicodeDecodeError) as error:
        _refuse(path, "a whole parquet file", error, "fetch it again")


def _json(path: str | Path) -> Iterator[tuple[int, Any]]:
    """Values line by line or, where the first line is no value, of the whole text."""
    gap, decoder, depth = re.compile(r"[\s,\[\]]*"), json.JSONDecoder(), 0  # brackets are only counted
    try:
        json.loads(_first_line(path)[1].strip(" \t,"))
        texts = _lines(path)
    except (ValueError, RecursionError):  # also numbers of thousands of digits, a thousand brackets
        texts = [(1, "\n".join(line for _, line in _lines(path, blank=True)))]
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


def _text(record: Any, names: tuple[str, ...] = _TEXT) -> str:
    """A text with its title before it, as ir_datasets joins them."""
    text = _get(record, *names, kind=str)
    return f"{_get(record, 'title', kind=str)} {text}" if record.get("title") else text


def _rank_llm(record: dict) -> list[dict]:
    """Hits (2023) are ordered by rank and each has the query's id, candidates (today) by place."""
    query, rows = _get(record, "query"), []
    if old := "hits" in record:
        hits = _get(record, "hits", kind=list)
        ids = list(dict.fromkeys(str(_get(hit, "qid")) for hit in hits))
        if len(ids) != 1:
            raise ValueError("hits of one query id", ids or "no hits, so that it is unknown")
        query_id = hits[0]["qid"]
    else:
        hits = _get(record, "candidates", kind=list)
        query_id, query = _get(query, "qid"), _get(query, "text")
    for place, hit in enumerate(hits, start=1):
        try:
            row = {"query_id": query_id, "query": query, "doc_id": _get(hit, "docid")}
            row |= {"rank": hit.get("rank") if old else place, "score": hit.get("score")}
            rows.append(row | {"text": _text(hit if old else _get(hit, "doc"))})
        except ValueError as misfit:
            raise ValueError(f"{misfit.args[0]} in candidate {place}", misfit.args[1]) from None
    return rows


def _id_list(record: dict) -> list[dict]:
    query_id, ids = _get(record, "query_id"), _get(record, "doc_ids", kind=list)
    name = "relevance" if "labels" in record else "teacher_rank"
    values = _get(record, "labels", kind=list) if "labels" in record else range(1, len(ids) + 1)
    if len(values) != len(ids) or None in values:
        raise ValueError(f"a label for each of {len(ids)} doc_ids", repr(values)[:80])
    ranked = enumerate(zip(ids, values, strict=True), 1)
    return [{"query_id": query_id, "doc_id": d, "rank": rank, name: x} for rank, (d, x) in ranked]


def _unpacked(path: str | Path, unpack: Callable) -> pd.DataFrame:
    """Columns of all records: `unpack` gives a record's one row, or a list of all rows of its query."""
    columns, places, seen = {name: [] for name in _COLUMNS}, [], {}
    records, unit = each_record(path)
    for number, record in records:
        place = f"{path}, {unit} {number}"
        try:
            rows = unpack(record if isinstance(record, dict) else _get(record))
        except ValueError as misfit:
            _refuse(place, *misfit.args)
        if isinstance(rows, dict):
            rows = [rows]
            places.append(number)
        elif not rows:
            _refuse(place, "at least one entry", "an empty list")
        elif seen.setdefault(query_id := str(rows[0]["query_id"]), number) != number:
            got = f"{query_id!r} again, first in {unit} {seen[query_id]}"
            _refuse(place, "one record for each query", got, "merge or remove it")
        else:
            places.extend(f"{number}, candidate {n}" for n in range(1, len(rows) + 1))
        for name, values in columns.items():
            values.extend(row.get(name) for row in rows)
    if not places:
        _refuse(path, "records", "none", "check its source")
    return pd.DataFrame(columns, pd.Index(places, name=f"{path}, {unit}"), dtype=object)


def _texts(path: str | Path, names: list[str], ids: tuple, texts: tuple) -> pd.DataFrame:
    if _kind(path) != "table":
        frame = _unpacked(path, lambda x: {names[0]: _get(x, *ids), names[1]: _text(x, texts)})
    else:
        frame = _table(path, f"{' '.join(names)} with tabs between", names, tabs=True, header=True)
    return _once(_checked(frame, names), names[:1], "id").reset_index(drop=True)


#: Text that UTF-8 can hold: JSON can name half a character, which no file or frame can.
_UTF8 = AfterValidator(lambda value: str(value).encode().decode())
_Id = Annotated[Annotated[StrictStr, Field(min_length=1)] | StrictInt, _UTF8]
_Str, _Int = Annotated[str, _UTF8], Annotated[int, Field(ge=-(2**63), lt=2**63)]
_AN_ID = "an id that is a str or an integer"
#: Names of each column in files and frames (pyterrier's docid is an internal number, so it comes last),
#: what its values are, its type, and how errors call it.
_COLUMNS = {
    "query_id": (("query_id", "qid"), _Id, "str", _AN_ID),
    "doc_id": (("doc_id", "docno", "pid", "passage_id", "docid"), _Id, "str", _AN_ID),
    "rank": (("rank",), _Int, "int64", "rank as an integer, in every row"),
    "score": (("score",), Annotated[float, Field(allow_inf_nan=False)], "float64", "finite scores"),
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


def _checked(frame: pd.DataFrame, names: Iterable[str], *, strict: bool = True) -> pd.DataFrame:
    """Columns of their kinds, not `strict` where numbers are text; names the first row that is not."""
    checked = pd.DataFrame(index=frame.index)
    for name in names:
        column, (_, kind, dtype, expected) = frame[name], _COLUMNS[name]
        values = column.astype(object).where(column.notna(), None).tolist()
        if dtype == "Int64":  # floats where a merge left gaps
            values = [int(x) if isinstance(x, float) and x.is_integer() else x for x in values]
        try:
            adapter = TypeAdapter(Annotated[list[kind], FailFast()])
            values = adapter.validate_python(values, strict=strict)
        except ValidationError as error:
            problem = error.errors(include_url=False)[0]
            _refuse(_place(frame, problem["loc"][0]), expected, repr(problem["input"])[:80])
        checked[name] = pd.Series(values, frame.index, dtype)
    return checked


def _once(frame: pd.DataFrame, key: list[str], what: str) -> pd.DataFrame:
    if (twice := frame.duplicated(key)).any():
        row = frame[key].iloc[twice.argmax()]
        first = _place(frame, (frame[key] == row).all(axis=1).argmax())
        place, got = _place(frame, twice.argmax()), f"{row.tolist()} again, first in {first}"
        _refuse(place, f"each {what} once", got)
    return frame


def _candidates(frame: pd.DataFrame, *, strict: bool = True) -> pd.DataFrame:
    """Check columns, order the rows of each query, and count their rank anew from 1."""
    kept = [x for x in _COLUMNS if x in _IDS or (x in frame and frame[x].notna().any())]
    frame = _once(_checked(frame, kept, strict=strict), _IDS, "passage of a query")
    source = frame.index.name.rpartition(", ")[0]
    if frame.empty:
        _refuse(source, "candidates", "none", "check its source")
    for name in _IDS if strict else ():  # else blanks separate the columns
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


Format = namedtuple("Format", "shape read keys", defaults=((),))
#: Formats by name: what a record looks like, its reader, and keys that tell it; the first fit is meant.
FORMATS = {
    "trec_run": Format("qid iter docid rank score tag, or qid docid [score]", read_run),
    "msmarco_run": Format("qid pid rank", lambda path: read_run(path, third="rank")),
    "msmarco_top1000": Format("qid pid query passage, with tabs", lambda path: _candidates(
        _table(path, "4 columns", [*_IDS, "query", "text"], tabs=True, header=True))),
    "rank_llm": Format("JSON(L) {query, hits} or {query, candidates}", lambda path: _candidates(
        _unpacked(path, _rank_llm)), ({"query", "hits"}, {"query", "candidates"})),
    "lists": Format("parquet or JSON(L) {query_id, doc_ids [, labels]}", lambda path: _candidates(
        _unpacked(path, _id_list)), ({"query_id", "doc_ids"},)),
    "rows": Format(
        "parquet or JSON(L), a row {query_id, doc_id [, rank, score, query, text]}",
        lambda path: _candidates(_unpacked(
            path, lambda row: row | {name: _get(row, *_COLUMNS[name][0]) for name in _IDS})),
        tuple({query, doc} for query in _COLUMNS["query_id"][0] for doc in _COLUMNS["doc_id"][0]),
    ),
}  # fmt: skip
