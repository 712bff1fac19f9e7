"""Any file is read whole or refused with its name: never another error, never a line less.

Files are valid ones that were damaged, arbitrary bytes, JSON, tables and YAML of arbitrary values: a
few, always the same; with ``RDL_FUZZ_CASES=2000`` so many of each kind, at random.
"""

import gzip
import json
import os
import re
from datetime import timedelta

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from test_formats import jsonl

from rdl_core.data import formats
from rdl_core.data.formats import FORMATS, read_candidates
from rdl_core.files import read_settings
from rdl_core.teachers.replay import AnswerLog, read_history
from rdl_tools.config import DistillConfig

CASES = os.environ.get("RDL_FUZZ_CASES")
fuzz = settings(
    max_examples=int(CASES or 25), derandomize=not CASES, database=None,
    deadline=timedelta(seconds=10), phases=[Phase.generate],
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture],
)  # fmt: skip

PASSAGES = [{"docid": "x", "title": "T", "text": "one"}, {"docid": "y", "text": "two, \u00e9"}]
HITS = [{"qid": 7, "docid": p["docid"], "rank": n, "score": -n, "content": p["text"]}
        for n, p in enumerate(PASSAGES)]  # fmt: skip
CANDIDATES = [{"docid": p["docid"], "score": 1.5 - n, "doc": p} for n, p in enumerate(PASSAGES)]
ROWS = [{"query_id": q, "doc_id": d, "rank": n, "score": -n, "query": "q", "text": "t",
         "relevance": n, "teacher_rank": n} for q in "78" for n, d in enumerate("xyz")]  # fmt: skip
CALL = {"prompt": [{"role": "user", "content": "Search query: q"}], "response": "[1]"}
LISTS = [{"query_id": 7, "doc_ids": ["x", "y"], "labels": [1, 0]}]
TITLED = [{"_id": "x", "title": "t", "text": "y"}]

#: Reader, and a valid file of it.
TEXT = {
    "run": (formats.read_run, b"7 Q0 x 1 2.5 tag\n7\tQ0 y 2 1.5 tag\r\n\n8 Q0 x 1 .5 tag\n"),
    "run of three": (formats.read_run, b"7 x 2.5\n7 y 1e0\n8 x -3\n"),
    "run of two": (formats.read_run, b"7 x\n7 y\n8 x\n"),
    "MS MARCO's run": (FORMATS["msmarco_run"].read, b"7\tx\t1\n7\ty\t2\n8\tx\t1\n"),
    "qrels": (formats.read_qrels, b"7 0 x 2\n7 0 y 0\n8 0 x -1\n"),
    "qrels of BEIR": (formats.read_qrels, b"query-id\tcorpus-id\tscore\n7\tx\t2\n7\ty a\t0\n"),
    "queries": (formats.read_queries, "7\twhat is x\n8\tna\u00efve\n".encode()),
    "passages": (formats.read_passages, b"x\tone, two\ny\tthree  four\n"),
    "top 1000": (FORMATS["msmarco_top1000"].read, b"7\tx\tq\tone\n7\ty\tq\ttwo\n"),
}
RANK_LLM = [{"query": "q", "hits": HITS}]
REQUESTS = [{"query": {"qid": "7", "text": "q"}, "candidates": CANDIDATES}]
ANSWER = {"text": "[2] > [1]", "order": None, "input_tokens": 3, "output_tokens": None}


RECORDS = {
    "rank_llm": (FORMATS["rank_llm"].read, RANK_LLM),
    "rank_llm requests": (FORMATS["rank_llm"].read, REQUESTS),
    "lists": (FORMATS["lists"].read, LISTS),
    "rows": (FORMATS["rows"].read, ROWS),
    "passages": (formats.read_passages, [*TITLED, {"_id": "z", "text": "w"}]),
    "queries": (formats.read_queries, [{"_id": "7", "text": "y"}, {"_id": "8", "text": "w"}]),
    "history": (read_history, [{"query": {"qid": 7}, "invocations_history": [CALL]}, CALL]),
    "answers": (lambda path: AnswerLog(path, teacher="tiny"),
                [{"teacher": "tiny"}, {"key": ["7", 0, 0, 2], "answer": ANSWER}]),
    "settings": (lambda path: read_settings(DistillConfig, path),
                 {"lists": "a.run", "encoder": "e", "training": {"steps": 3}}),
}  # fmt: skip
HEADER = r"query-id[\t ]+\S+[\t ]+score"
NASTY = [
    b"\x00", b"\r", b"\x0c", b"\x1a", b"\xff", b"\xef\xbb\xbf", b"\xc2\x85", "\u2028".encode(), b'"',
    b"\n\n", b"\t", b" ", b"nan", b"inf", b"-", b"1e999", b"9" * 30, b"9" * 5000, b"0x1", b"\\ud800",
    b"[" * 3000, b"{", b"]", b"null", b"true", b"\x85", b"#", b",", b"1_0", b"NA",
]  # fmt: skip
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5)
    | st.sampled_from([2**63, -(2**63) - 1, 2**200, 10**400, "", "\ud800", "7", "x", float("nan")]),
    lambda inner: st.lists(inner, max_size=3)
    | st.dictionaries(st.text(max_size=4), inner, max_size=3),
    max_leaves=5,
)  # fmt: skip


@st.composite
def damaged(draw, raw):
    """A file after one to four accidents."""
    for _ in range(draw(st.integers(1, 4))):
        start = draw(st.integers(0, len(raw)))
        stop = min(len(raw), start + draw(st.integers(0, 12)))
        new = draw(st.sampled_from(NASTY) | st.binary(max_size=4))
        ends = [raw[:start] + new + raw[stop:], raw[:start], raw[:stop] + raw[start:]]
        raw = draw(st.sampled_from([ends[0], *ends, raw[:start] + raw[stop:]]))
    return raw


@st.composite
def replaced(draw, value):
    """A JSON value with one part of it, at any depth, replaced, removed or renamed."""
    if isinstance(value, (list, dict)) and value and draw(st.integers(0, 3)):
        keys = list(value) if isinstance(value, dict) else range(len(value))
        key, value = draw(st.sampled_from(keys)), value.copy()
        what = draw(st.sampled_from(["in", "in", "in", "remove", "rename"]))
        if what == "in" or isinstance(value, list):
            value[key] = draw(replaced(value[key]))
            return value
        kept = value.pop(key)
        return value | ({draw(st.text(max_size=4)): kept} if what == "rename" else {})
    return draw(VALUES)


def outcome(read, path):
    """What a reader gives, checked, or None where it refuses as it should."""
    try:
        frame = read(path)
    except ValueError as error:
        frame = str(error)
    if isinstance(frame, str):
        assert path.name in frame
        assert len(frame) < 4000
        return None
    if isinstance(frame, pd.DataFrame):
        assert len(frame)
        for name in {"query_id", "doc_id", "query", "text"} & set(frame):
            assert frame[name].dtype == "str"
            assert frame[name].notna().all()
            assert not name.endswith("_id") or frame[name].str.len().gt(0).all()
        if {"rank", "score"} <= set(frame):
            assert not frame.duplicated(["query_id", "doc_id"]).any()
            assert frame["score"].isna().all() or frame["score"].abs().lt(float("inf")).all()
            for _, ranks in frame.groupby("query_id")["rank"]:
                assert ranks.tolist() == list(range(1, len(ranks) + 1))
        frame.to_json()  # holds no half characters
    return frame


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("name", TEXT)
@fuzz
@given(data=st.data())
def test_damaged_text_is_read_line_by_line_or_refused(tmp_path, name, packed, data):
    read, valid = TEXT[name]
    raw = data.draw(damaged(valid))
    path = tmp_path / ("file.gz" if packed else "file")
    path.write_bytes(gzip.compress(raw, 1) if packed else raw)
    if packed:
        path.write_bytes(data.draw(damaged(path.read_bytes()) | st.just(path.read_bytes())))
    if (frame := outcome(read, path)) is not None:
        raw = gzip.decompress(path.read_bytes()) if packed else raw
        rows = [line for line in raw.decode("utf-8-sig").split("\n") if line.strip(" \t\r\n\x0b\x0c")]
        if name.startswith("qrels") and re.fullmatch(HEADER, rows[0].strip(" \t\r")):
            rows = rows[1:]
        assert len(frame) == len(rows)
        ids = {cell for line in rows for cell in re.split(r"[ \t\r]+|\t", line)}
        ids |= {cell for line in rows for cell in line.rstrip("\r").split("\t")}
        for column in {"query_id", "doc_id"} & set(frame):
            assert set(frame[column]) <= ids, "an id that is not in the file"


@pytest.mark.parametrize("name", RECORDS)
@fuzz
@given(data=st.data())
def test_json_that_is_damaged_or_of_any_values_is_read_or_refused(tmp_path, name, data):
    """Settings are YAML, which this JSON is too."""
    read, records = RECORDS[name]
    path, whole = tmp_path / "file", data.draw(st.booleans())
    records = data.draw(replaced(records)) if whole else records
    by_line = data.draw(st.booleans()) and isinstance(records, list)
    raw = jsonl(*records).encode() if by_line else json.dumps(records, indent=1).encode()
    path.write_bytes(raw if whole else data.draw(damaged(raw)))
    frame = outcome(read, path)
    if frame is not None and whole and by_line and name in ("rows", "passages", "queries"):
        values = [value if isinstance(value, list) else [value] for value in records]
        assert len(frame) == sum(map(len, values))


COLUMNS = st.sampled_from([
    (pa.string(), st.text(max_size=3)), (pa.int64(), st.integers(-(2**63), 2**63 - 1)),
    (pa.float64(), st.floats()), (pa.uint64(), st.integers(0, 2**64 - 1)), (pa.bool_(), st.booleans()),
    (pa.binary(), st.binary(max_size=3)), (pa.timestamp("us"), st.datetimes()),
    (pa.list_(pa.string()), st.lists(st.text(max_size=2), max_size=2)),
    (pa.decimal128(9, 2), st.decimals(-99, 99, places=2)),
    (pa.dictionary(pa.int32(), pa.string()), st.sampled_from(["a", "b"])),
])  # fmt: skip
NAMES = st.sampled_from((
    "query_id qid doc_id docno rank score query text relevance labels teacher_rank doc_ids _id title "
    "other").split())  # fmt: skip


@pytest.mark.parametrize("name", ["rows", "lists", "passages"])
@fuzz
@given(data=st.data())
def test_parquet_that_is_damaged_or_of_any_types_is_read_or_refused(tmp_path, name, data):
    read, valid = (RECORDS | {"passages": (formats.read_passages, TITLED)})[name]
    path, table = tmp_path / "file", pa.Table.from_pylist(valid)
    if data.draw(st.booleans()):
        pq.write_table(table, path, write_page_checksum=True)
        path.write_bytes(data.draw(damaged(path.read_bytes())))
        outcome(read, path)
        return
    for _ in range(data.draw(st.integers(1, 3))):
        kind, values = data.draw(COLUMNS)
        cells = data.draw(st.lists(st.none() | values, min_size=len(valid), max_size=len(valid)))
        own = data.draw(st.sampled_from(table.schema.names) | NAMES)
        if own in table.schema.names and data.draw(st.integers(0, 9)):
            table = table.remove_column(table.schema.get_all_field_indices(own)[0])
        table = table.append_column(own, pa.array(cells, kind))
    pq.write_table(table, path)
    frame = outcome(read, path)
    assert frame is None or name == "lists" or len(frame) == len(valid)


@fuzz
@given(data=st.data())
def test_candidates_of_any_kind_and_arbitrary_bytes_are_recognised_or_refused(tmp_path, data):
    path = tmp_path / data.draw(st.sampled_from(["file", "file.run", "file.gz"]))
    valid = [raw for _, raw in TEXT.values()]
    valid += [jsonl(*x).encode() for x in (RANK_LLM, REQUESTS, LISTS, ROWS)]
    path.write_bytes(data.draw(damaged(data.draw(st.sampled_from(valid)))))
    outcome(read_candidates, path)
    path.write_bytes(data.draw(st.binary(max_size=60)))
    # A log of answers drops an unfinished last line, and says so.
    readers = {read for name, (read, _) in [*TEXT.items(), *RECORDS.items()] if name != "answers"}
    for read in readers | {read_candidates}:
        outcome(read, path)
