"""Any file is read whole or refused with its name: never another error, never a line less.

Files are valid ones that were damaged, arbitrary bytes, and JSON and tables of arbitrary values.
``RDL_FUZZ_CASES=2000 pytest tests/test_fuzz.py`` tries so many of each kind, at random; without it
a few, always the same.
"""

import gzip
import json
import os
import re
from datetime import timedelta
from pathlib import Path

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from rdl_core.data import formats
from rdl_core.data.formats import FORMATS, read_candidates
from rdl_study.profile import load_profile
from rdl_study.store import project_folder
from rdl_core.teachers.replay import AnswerLog, read_history

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
MESSAGES = [{"role": "user", "content": "rank\nSearch query: q"}]


def lines(*values):
    return "".join(f"{json.dumps(value)}\n" for value in values).encode()


#: Reader, and a valid file of it.
TEXT = {
    "run": (formats.read_run, b"7 Q0 x 1 2.5 tag\n7\tQ0 y 2 1.5 tag\r\n\n8 Q0 x 1 .5 tag\n"),
    "run of three": (formats.read_run, b"7 x 2.5\n7 y 1e0\n8 x -3\n"),
    "run of two": (formats.read_run, b"7 x\n7 y\n8 x\n"),
    "MS MARCO's run": (FORMATS["msmarco_run"].read, b"7\tx\t1\n7\ty\t2\n8\tx\t1\n"),
    "qrels": (formats.read_qrels, b"7 0 x 2\n7 0 y 0\n8 0 x -1\n"),
    "qrels of BEIR": (formats.read_qrels, b"query-id\tcorpus-id\tscore\n7\tx\t2\n7\ty a\t0\n"),
    "triples": (formats.read_triples, b"7\tx\ty\n8\tx\tz\n"),
    "scored triples": (formats.read_triples, b"9.5\t1.5\t7\tx\ty\n2\t1\t8\tx\tz\n"),
    "queries": (formats.read_queries, "7\twhat is x\n8\tna\u00efve\n".encode()),
    "passages": (formats.read_passages, b"x\tone, two\ny\tthree  four\n"),
    "top 1000": (FORMATS["msmarco_top1000"].read, b"7\tx\tq\tone\n7\ty\tq\ttwo\n"),
}
RECORDS = {
    "rank_llm": (FORMATS["rank_llm"].read, [{"query": "q", "hits": HITS}]),
    "rank_llm requests": (
        FORMATS["rank_llm"].read, [{"query": {"qid": "7", "text": "q"}, "candidates": CANDIDATES}]
    ),
    "rankgpt": (
        formats.read_rankgpt,
        [{"query": "q", "query_id": 7, "positive_passages": [PASSAGES[0]],
          "retrieved_passages": PASSAGES}],
    ),
    "lists": (FORMATS["lists"].read, [{"query_id": 7, "doc_ids": ["x", 2], "labels": [1, 0]}]),
    "n_way": (FORMATS["n_way"].read, [[7, ["x", 1.5], ["y", 0.5]], [8, [1, 2]]]),
    "rows": (FORMATS["rows"].read, ROWS),
    "passages": (
        formats.read_passages, [{"_id": "x", "title": "", "text": "y"}, {"_id": "z", "text": "w"}]
    ),
    "queries": (formats.read_queries, [{"_id": "7", "text": "y"}, {"_id": "8", "text": "w"}]),
    "hard negatives": (
        formats.read_hard_negatives,
        [{"qid": 7, "pos": [1], "neg": {"bm25": [{"pid": 3, "ce-score": 0.5}, 4], "ance": ["x"]}}],
    ),
    "invocations": (
        formats.read_invocations,
        [{"query": {"text": "q", "qid": 7}, "invocations_history": [
            {"prompt": MESSAGES, "response": "[1]", "input_token_count": 3,
             "output_token_count": None}]}],
    ),
    "invocations of 2023": (formats.read_invocations, [{"prompt": "p", "response": "[2] > [1]"}]),
    "history": (
        read_history,
        [{"query": {"text": "q", "qid": 7}, "invocations_history": [
            {"prompt": MESSAGES, "response": "[1]", "input_token_count": 3}]}],
    ),
    "answers": (
        lambda path: AnswerLog(path, teacher="tiny"),
        [{"teacher": "tiny"}, {"key": ["7", 0, 0, 2], "answer": {
            "text": "[2] > [1]", "order": None, "input_tokens": 3, "output_tokens": None}}],
    ),
}  # fmt: skip
PARQUET = {
    "rows": (FORMATS["rows"].read, ROWS),
    "lists": (FORMATS["lists"].read, [{"query_id": 7, "doc_ids": ["x", "y"], "labels": [1, 0]}]),
    "passages": (formats.read_passages, [{"_id": "x", "title": "t", "text": "y"}]),
}
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
        raw = draw(
            st.sampled_from(NASTY).map(lambda new, a=raw[:start], b=raw[stop:]: a + new + b)
            | st.binary(max_size=4).map(lambda new, a=raw[:start], b=raw[stop:]: a + new + b)
            | st.just(raw[:start]) | st.just(raw[:stop] + raw[start:])
            | st.just(raw[:start] + raw[stop:])
        )  # fmt: skip
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
    """What a reader gives, or None where it refuses as it should."""
    try:
        return read(path)
    except ValueError as error:
        said = str(error)
        assert path.name in said, f"no file in {said!r}"
        assert len(said) < 4000, f"{len(said)} characters"
        return None


def check(frame):
    """What holds of everything that was read."""
    if not isinstance(frame, pd.DataFrame):
        return
    assert len(frame)
    for name in {"query_id", "doc_id", "positive_id", "negative_id"} & set(frame):
        assert frame[name].dtype == "str"
        if not frame[name].isna().all():  # invocations of 2023 know no query
            assert frame[name].str.len().gt(0).all()
    for name in {"query", "text", "prompt", "response"} & set(frame):
        assert frame[name].dtype == "str"
        assert frame[name].notna().all()
    if {"rank", "score"} <= set(frame) and "system" not in frame:
        assert not frame.duplicated(["query_id", "doc_id"]).any()
        assert frame["score"].isna().all() or frame["score"].abs().lt(float("inf")).all()
        for _, ranks in frame.groupby("query_id")["rank"]:
            assert ranks.tolist() == list(range(1, len(ranks) + 1))
    frame.to_json()  # holds no half characters


def data_lines(raw, *, headed):
    """Lines with something on them, less a header of BEIR: counted without the readers' code."""
    found = [line for line in raw.decode("utf-8-sig").split("\n") if line.strip(" \t\r\n\x0b\x0c")]
    header = headed and re.fullmatch(r"query-id[\t ]+\S+[\t ]+score", found[0].strip(" \t\r"))
    return found[1:] if header else found


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
        check(frame)
        if packed:
            raw = gzip.decompress(path.read_bytes())
        rows = data_lines(raw, headed=name.startswith("qrels"))
        assert len(frame) == len(rows)
        ids = {cell for line in rows for cell in re.split(r"[ \t\r]+|\t", line)}
        ids |= {cell for line in rows for cell in line.rstrip("\r").split("\t")}
        for column in {"query_id", "doc_id", "positive_id", "negative_id"} & set(frame):
            assert set(frame[column]) <= ids, "an id that is not in the file"


@pytest.mark.parametrize("name", RECORDS)
@fuzz
@given(data=st.data())
def test_damaged_json_is_read_or_refused(tmp_path, name, data):
    read, valid = RECORDS[name]
    raw = lines(*valid) if data.draw(st.booleans()) else json.dumps(valid, indent=1).encode()
    path = tmp_path / "file"
    path.write_bytes(data.draw(damaged(raw)))
    check(outcome(read, path))


@pytest.mark.parametrize("name", RECORDS)
@fuzz
@given(data=st.data())
def test_json_of_any_values_is_read_or_refused(tmp_path, name, data):
    read, valid = RECORDS[name]
    records = data.draw(replaced(valid))
    path = tmp_path / "file"
    each = data.draw(st.booleans()) and isinstance(records, list)
    path.write_bytes(lines(*records) if each else json.dumps(records).encode())
    if (found := outcome(read, path)) is not None:
        check(found)
        if each and name in ("rows", "passages", "queries"):
            assert len(found) == sum(len(r) if isinstance(r, list) else 1 for r in records)


@pytest.mark.parametrize("name", PARQUET)
@fuzz
@given(data=st.data())
def test_damaged_parquet_is_read_or_refused(tmp_path, name, data):
    read, valid = PARQUET[name]
    path = tmp_path / "file"
    pd.DataFrame(valid).to_parquet(path, write_page_checksum=data.draw(st.booleans()))
    path.write_bytes(data.draw(damaged(path.read_bytes())))
    outcome(read, path)


COLUMNS = st.sampled_from([
    (pa.string(), st.text(max_size=3)), (pa.int64(), st.integers(-(2**63), 2**63 - 1)),
    (pa.float64(), st.floats()), (pa.uint64(), st.integers(0, 2**64 - 1)), (pa.bool_(), st.booleans()),
    (pa.binary(), st.binary(max_size=3)), (pa.list_(pa.int64()), st.lists(st.integers(0, 9), max_size=2)),
    (pa.list_(pa.string()), st.lists(st.text(max_size=2), max_size=2)),
    (pa.timestamp("us"), st.datetimes()), (pa.decimal128(9, 2), st.decimals(-99, 99, places=2)),
    (pa.struct([("a", pa.int64())]), st.fixed_dictionaries({"a": st.integers(0, 9)})),
    (pa.dictionary(pa.int32(), pa.string()), st.sampled_from(["a", "b"])),
])  # fmt: skip
NAMES = st.sampled_from(
    ["query_id", "qid", "doc_id", "docno", "rank", "score", "query", "text", "relevance", "labels",
     "teacher_rank", "doc_ids", "_id", "title", "other"]
)  # fmt: skip


@pytest.mark.parametrize("name", PARQUET)
@fuzz
@given(data=st.data())
def test_tables_of_any_types_are_read_or_refused(tmp_path, name, data):
    read, valid = PARQUET[name]
    table = pa.Table.from_pylist(valid)
    for _ in range(data.draw(st.integers(1, 3))):
        kind, values = data.draw(COLUMNS)
        cells = data.draw(st.lists(st.none() | values, min_size=len(valid), max_size=len(valid)))
        own = data.draw(st.sampled_from(table.schema.names) | NAMES)
        if own in table.schema.names and data.draw(st.integers(0, 9)):
            table = table.remove_column(table.schema.get_all_field_indices(own)[0])
        table = table.append_column(own, pa.array(cells, kind))
    path = tmp_path / "file"
    pq.write_table(table, path)
    if (frame := outcome(read, path)) is not None:
        check(frame)
        if name != "lists":
            assert len(frame) == len(valid)


@fuzz
@given(raw=st.binary(max_size=60) | st.text(max_size=60).map(lambda text: text.encode("utf-8", "replace")))
def test_no_bytes_are_a_surprise(tmp_path, raw):
    path = tmp_path / "file"
    path.write_bytes(raw)
    readers = {read for read, _ in [*TEXT.values(), *RECORDS.values()]}
    for read in [*sorted(readers, key=repr), read_candidates]:
        if read is not RECORDS["answers"][0]:  # which drops an unfinished last line, and says so
            check(outcome(read, path))
        path.write_bytes(raw)
    table = tmp_path / "file.yaml"
    table.write_bytes(raw)
    outcome(lambda path: load_profile.__wrapped__(str(path)), table)


@fuzz
@given(data=st.data())
def test_candidates_of_any_kind_are_recognised_or_refused(tmp_path, data):
    name = data.draw(st.sampled_from(sorted({*TEXT, *RECORDS} - {"history", "answers"})))
    valid = TEXT[name][1] if name in TEXT else lines(*RECORDS[name][1])
    path = tmp_path / data.draw(st.sampled_from(["file", "file.run", "file.gz"]))
    path.write_bytes(data.draw(damaged(valid)))
    check(outcome(read_candidates, path))


PROFILE = (project_folder() / "profiles" / "mini.yaml").read_bytes()


@fuzz
@given(data=st.data())
def test_damaged_profiles_are_read_or_refused(tmp_path, data):
    path = tmp_path / "file.yaml"
    if data.draw(st.booleans()):
        path.write_bytes(data.draw(damaged(PROFILE)))
    else:
        path.write_text(yaml.safe_dump(data.draw(replaced(yaml.safe_load(PROFILE)))))
    outcome(lambda path: load_profile.__wrapped__(str(path)), path)


@pytest.mark.parametrize(
    "text",
    ["a: &a [x, x]\n" + "".join(f"{chr(98 + n)}: &{chr(98 + n)} [*{chr(97 + n)}, *{chr(97 + n)}]\n"
                                 for n in range(24)),
     "&a [*a]", "[" * 5000, "seeds: [" + "9" * 5000 + "]", "!!python/object/apply:os.system [ls]",
     "a: 1\nb: \x00", "? [a, b]\n: c"],
    ids=["billion laughs", "in itself", "deep", "long", "code", "nul", "odd key"],
)  # fmt: skip
def test_profiles_that_mean_harm_are_refused_at_once(tmp_path, text):
    path = Path(tmp_path, "file.yaml")
    path.write_text(text)
    with pytest.raises(ValueError, match="file.yaml") as refused:
        load_profile.__wrapped__(str(path))
    assert len(str(refused.value)) < 4000
