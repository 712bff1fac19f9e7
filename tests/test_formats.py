"""Formats: every variant as the field writes it, real files, and refusals that name file and line."""

import gzip
import json
import logging
import os
from pathlib import Path

import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rdl_core.data import formats
from rdl_core.data.formats import each_record, from_frame, read_candidates

MIRROR = os.environ.get("RDL_MIRROR")
KINDS = ["str", "str", "int64", "float64"]
TWO, BEIR = "7 Q0 x 0 2.5 tag\n7 Q0 y 1 1.5 tag\n", "query-id\tcorpus-id\tscore\n"


@pytest.fixture
def write(tmp_path):
    """Write a file and give its path; packed if its name says so."""

    def write_file(content, name="file"):
        path = tmp_path / name
        if isinstance(content, pd.DataFrame):
            content.to_parquet(path)
            return path
        content = content if isinstance(content, (str, bytes)) else json.dumps(content)
        raw = content.encode() if isinstance(content, str) else content
        path.write_bytes(gzip.compress(raw) if "gz" in name else raw)
        return path

    return write_file


def ranking(frame):
    """``"7: x y, 8: z"``, best first."""
    assert frame[["query_id", "doc_id", "rank", "score"]].dtypes.map(str).tolist() == KINDS
    queries = frame.groupby("query_id", sort=False)
    assert frame["rank"].tolist() == (queries.cumcount() + 1).tolist()
    return ", ".join(f"{query}: {' '.join(doc_ids)}" for query, doc_ids in queries["doc_id"])


def jsonl(*values):
    return "".join(json.dumps(value) + "\n" for value in values)


def hits(*candidates, query="q", qid=7):
    """RankLLM's record of 2023; `candidates` are ``(docid, rank, score)``."""
    rows = [dict(zip(("docid", "rank", "score"), x, strict=True)) for x in candidates]
    return {"query": query, "hits": [x | {"qid": qid, "content": f"text {x['docid']}"} for x in rows]}


def request(qid, *docids, **doc):
    """RankLLM's record of today, whose scores are those of another order."""
    rows = [{"docid": d, "score": float(i), "doc": doc or {"text": "t"}} for i, d in enumerate(docids)]
    return {"query": {"text": "what", "qid": qid}, "candidates": rows}


PAIRS = {"query_id": ["7", "7", "8"], "doc_id": ["x", "y", "x"]}
EXPECTED = {
    read_candidates: PAIRS | {"rank": [1, 2, 1], "score": [2.5, 1.5, 0.5]},
    formats.read_qrels: PAIRS | {"relevance": [3, 0, -1]},
    formats.read_passages: {"doc_id": ["1", "2"], "text": ["first  text ", ""]},
}
JUDGED = pd.DataFrame(EXPECTED[formats.read_qrels]).set_axis(["query-id", "corpus-id", "score"], axis=1)
VARIANTS = {
    "run with blanks": "7 Q0 x 1 2.5 tag.v1\n7 Q0 y 2 1.5 tag.v1\n8 Q0 x 1 0.5 tag.v1\n",
    "run with tabs, iter 0": "7\t0\tx\t1\t2.5\tT\n7\t0\ty\t2\t1.5\tT\n8\t0\tx\t1\t0.5\tT\n",
    "run, mixed, CRLF": " 7 q0\tx  1 2.5 T \r\n\r\n7 q0 y 2 1.5 T\r\n  \r\n8 q0 x 1 .5 T",
    "run, byte order mark": "\ufeff7 Q0 x 1 2.5 T\n7 Q0 y 2 1.5 T\n8 Q0 x 1 5e-1 T\n",
    "run from 0 (pyterrier)": "7 Q0 x 0 2.5 T\n7 Q0 y 1 1.5 T\n8 Q0 x 0 0.5 T\n",
    "run in no order": "7 Q0 y 2 1.5 T\n8 Q0 x 1 0.5 T\n7 Q0 x 1 2.5 T\n",
    "run, all ranks 0": "7 Q0 y 0 1.5 T\n7 Q0 x 0 2.5 T\n8 Q0 x 0 0.5 T\n",
    "run of 3 columns": "7 x 2.5\n7 y 1.5\n8 x 0.5\n",
    "qrels of NIST": "7 Q0 x 3\n7 Q0 y 0\n8 Q0 x -1\n",
    "qrels of pools, with tabs": "7\t129\tx\t3\n7\t127\ty\t0\n8\t1\tx\t-1\n",
    "qrels of 3 columns, CRLF": "7 x 3\r\n7 y 0\r\n8 x -1\r\n",
    "qrels of BEIR": f"\n{BEIR}7\tx\t3\n\n7\ty\t0\n8\tx\t-1\n",
    "qrels, grades as floats": "7 0 x 3.0\n7 0 y 0.0\n8 0 x -1.0\n",
    "qrels in parquet": JUDGED, "qrels in parquet, as floats": JUDGED.astype({"score": float}),
    "qrels in parquet, other names": JUDGED.rename(columns={"query-id": "qid", "score": "label"}),
    "qrels in an array": JUDGED.to_dict("records"),
    "qrels in lines": JUDGED.to_json(orient="records", lines=True),
    "texts, byte order mark": "\ufeff1\tfirst  text \n2\t\n",
    "texts, CRLF": "1\tfirst  text \r\n\r\n2\t\r\n",
    **{f"texts under {header}": f"{header}\n1\tfirst  text \n2\t\n"
       for header in ("id\ttext", "pid\tpassage", "_id\ttitle", "Doc_Id\tContents")},
    "texts in lines": jsonl({"_id": "1", "text": "first  text ", "data": {}}, {"_id": 2, "text": ""}),
    "texts titled": [{"id": 1, "title": "first", "text": " text "}, {"id": 2, "title": "", "text": ""}],
}  # fmt: skip


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("name", ["plain", "packed.gz", "gz_by_its_bytes"])
def test_every_variant_is_read(write, variant, name):
    kinds = dict(zip(("run", "qre", "tex"), EXPECTED, strict=True))
    read, path = kinds[variant[:3]], write(VARIANTS[variant], name)
    expected = pd.DataFrame(EXPECTED[read])
    pd.testing.assert_frame_equal(read(path), expected)
    if read is formats.read_passages:
        expected = expected.set_axis(["query_id", "query"], axis=1)
        pd.testing.assert_frame_equal(formats.read_queries(path), expected)


def test_ids_and_texts_may_be_words_of_headers_and_hold_blanks(write):
    assert formats.read_qrels(write("qid 0 x 1\nquery-id 0 score 1\n")).shape == (2, 3)
    assert formats.read_qrels(write(BEIR + "\nq 1\td 1\t1\n")).values.tolist() == [["q 1", "d 1", 1]]
    for read in (formats.read_passages, formats.read_queries):
        assert read(write("7\tid\n8\tquery\n")).shape == (2, 2)


@pytest.mark.parametrize(("content", "order", "log"), [
    # RankGPT and RankLLM move passages and leave the first stage's scores where they were
    ("7 Q0 x 1 1.5 T\n7 Q0 y 2 2.5 T\n8 Q0 x 1 9 T\n", "7: x y, 8: x", "by rank; 1 scores rise"),
    (TWO + "8 Q0 x 0 9.5 tag\n", "7: x y, 8: x", "by rank; 0 scores rise, 0 tie"),
    ("7 Q0 x 1 1.5 T\n\n7 Q0 y 1 2.5 T\n7 Q0 z 2 1.5 T\n", "7: y x z",
     "by score, as ranks repeat, first in {path}, line 3; 0 scores rise, 1 tie"),
    ("7 y\n7 x\n", "7: y x", "by place, as there are no ranks and no scores; "),
    ('1e5 Q0 0012 1 1 T\n007 Q0 NA 1 2 T\n007 Q0 "q 2 1 T\n', '1e5: 0012, 007: NA "q', "by rank; 0"),
    ("qid Q0 x 1 2 T\nqid Q0 y 2 1 T\n", "qid: x y", "by rank; 0"),  # ids were numbers, NaN, a header
])  # fmt: skip
def test_the_log_says_what_decided_the_order_and_ids_stay(write, caplog, content, order, log):
    caplog.set_level(logging.INFO)
    path = write(content, "a.run")
    assert ranking(read_candidates(path)) == order
    assert f"ordered {log.format(path=path)}" in caplog.text


OLD = [hits(("x", 1, 2.5), ("y", 2, 1.5), query="what"), hits(("0-0", 1, 1.0), query="who", qid="8")]
LAYOUTS = {
    "indented array": lambda records: json.dumps(records, indent=2),
    "array in one line": json.dumps,
    "lines": lambda records: jsonl(*records),
    "one after another": lambda records: "".join(json.dumps(r, indent=1) for r in records),
    "one after another, with commas": lambda records: ", ".join(map(json.dumps, records)),
    "arrays one after another": lambda rs: "\n".join(json.dumps([r], indent=1) for r in rs),
}


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("name", ["r.json", "r.jsonl.gz"])
def test_rank_llm_results_in_every_layout(write, layout, name):
    path = write(LAYOUTS[layout](OLD), name)
    frame = read_candidates(path)
    assert ranking(frame) == "7: x y, 8: 0-0"
    assert list(frame["query"] + " " + frame["text"]) == ["what text x", "what text y", "who text 0-0"]
    records, unit = each_record(path)
    assert ([value for _, value in records], unit) == (OLD, "line")
    new = read_candidates(write(LAYOUTS[layout]([request("7", "x", 5), request(8, "z")]), name))
    assert ranking(new) == "7: x 5, 8: z"
    assert new["score"].tolist() == [0.0, 1.0, 0.0]


LIR = [{"qid": 7, "docno": n, "score": n + 0.5, "relevance": n} for n in range(2)]
LIST = {"query_id": "7", "doc_ids": ["y", "x"]}  # of sentence-transformers, a teacher's
LABELLED = LIST | {"labels": [1, 0]}


@pytest.mark.parametrize(("name", "content", "order", "column", "values"), [
    ("trec_run", TWO, "7: x y", "score", [2.5, 1.5]),
    ("rank_llm", hits(("x", 1, 9.0), ("y", 0, 1.0)), "7: y x", "text", ["text y", "text x"]),
    *(("rank_llm", request(7, "x", **{key: "t", "title": "T", "url": "u"}), "7: x", "text", ["T t"])
      for key in ("text", "segment", "contents", "content", "body", "passage")),
    *(("lists", made([LIST]), "7: y x", "teacher_rank", [1, 2]) for made in (list, pd.DataFrame)),
    *(("lists", made([LABELLED]), "7: y x", "relevance", [1, 0]) for made in (list, pd.DataFrame)),
    ("rows", jsonl(*LIR), "7: 1 0", "relevance", [1, 0]),  # of Lightning IR
    ("rows", [row | {"rank": n} for n, row in enumerate(LIR)], "7: 0 1", "relevance", [0, 1]),
    ("msmarco_top1000", "7\ty\tq\ty is  z \n7\tx\tq\tx\n", "7: y x", "text", ["y is  z ", "x"]),
    ("msmarco_top1000", "qid\tpid\tquery\tpassage\n7\tx\twhat\tthis\n", "7: x", "text", ["this"]),
])  # fmt: skip
def test_formats_are_recognised_and_can_be_named(write, caplog, name, content, order, column, values):
    caplog.set_level(logging.INFO)
    path = write(content, "data.txt.gz")
    frame = read_candidates(path)
    assert f"read as {name}" in caplog.text
    assert ranking(frame) == order
    assert frame[column].tolist() == values
    labels = frame.columns.intersection(["relevance", "teacher_rank"])
    assert {x: str(frame[x].dtype) for x in labels} == ({column: "Int64"} if len(labels) else {})
    pd.testing.assert_frame_equal(frame, read_candidates(path, name))
    three_integers = write("7\tx\t2\n7\ty\t1\n")  # could be anything
    assert ranking(read_candidates(three_integers, "msmarco_run")) == "7: y x"


@pytest.mark.parametrize("kind", ["str", "int64", "category", "object"])
def test_frames_and_parquet_of_rank_distillm_and_pyterrier(write, kind):
    """A merge gives judgments as floats, NaN where there are none."""
    frame = pd.DataFrame({"qid": ["7", "7", "8"], "docid": [0, 1, 2], "docno": ["31", "32", "31"]})
    frame = frame.astype({"qid": kind, "docno": kind})
    frame = frame.assign(rank=[1, 0, 0], score=[1, 2, 3.0], relevance=[1.0, float("nan"), 0.0])
    candidates = read_candidates(write(frame.assign(note="n"), "p.parquet"))
    assert ranking(candidates) == "7: 32 31, 8: 31"
    assert candidates["score"].tolist() == [2, 1, 3]
    assert candidates["relevance"].tolist() == [pd.NA, 1, 0]
    pd.testing.assert_frame_equal(candidates, from_frame(frame))


def table(**columns):
    return pd.DataFrame({"qid": ["7", "7"], "docno": ["x", "y"]} | columns)


TABLES = [
    (table(docno=["x", None]), ", row 2: expected an id that is a str or an integer"),
    (table(docno=[1.0, 2.0]), ", row 1: expected an id that is a str or an integer; got 1.0"),
    (table(docno=["x", "x"]), ", row 2: expected each query_id and doc_id once"),
    (table(score=[1.0, float("nan")]), ", row 2: expected finite scores"),
    (table(rank=[0.0, 1.0]), ", row 1: expected rank as an integer, in every row; got 0.0"),
    (table(text=["t", None]), ", row 2: expected text as a str; got None"),
    (table(relevance=[1, 0.5]), ", row 2: expected relevance as an integer; got 0.5"),
]
REFUSED = {
    from_frame: [
        *TABLES, (table()[:0], "frame: expected records; got none"),
        (table().set_axis(["qid", "document"], axis=1), "a column doc_id or docno", "rename one"),
        (table(text="t").set_axis(["qid", "docno", "docno"], axis=1), "frame: ", "'docno' twice"),
    ],
    read_candidates: [
        *TABLES, (pd.DataFrame({"a": [1]}), "got keys ['a']"),
        *((blank, "expected data; got an empty file") for blank in ("", "\n \n")),
        (TWO + "7 Q0 z 2 1 tag x\n", "line 3: expected a run", "6 as above; got 7 columns"),
        (TWO + "\n7 Q0 z 2.5 1 t\n", "line 4: expected rank as an integer", "got '2.5'"),
        *((f"7 Q0 z 2 {x} t\n{TWO}", f"line 1: expected finite scores; got '{x}'")
          for x in ("high", "nan", "-inf", "1e999")),
        (TWO + "8 Q0 x 0 1 t\n\n7 Q0 x 2 0.5 t\n", "line 5: expected each query_id and doc_id once",
         "['7', 'x'] again, first in ", "line 1"),
        ("7 Q0 x 0 1 t\n7 Q0 y 0 1 t\n", "line 2: expected ranks that differ"),
        (TWO.encode() + b"7 Q0 \xff 2 1 t\n", "line 3: expected UTF-8"),
        ([{"query": "q", "hits": OLD[0]["hits"] + OLD[1]["hits"]}],
         "line 1: expected hits of one query id; got ['7',"),
        (jsonl(OLD[0], hits()), "line 2: expected hits of one query id"),
        (jsonl(request(7, "x"), request(8)), "line 2: expected at least one entry"),
        (jsonl(request(7, "x"), request(8, "x"), request(7, "y")),
         "line 3: expected one record for each query; got '7' again, first in line 1"),
        *((hits(("x", 1, 1.0), ("y", rank, 1.0)), "line 1, candidate 2: expected rank as an integer")
          for rank in ("1", None, 2**63)),
        (jsonl(OLD[0], hits(("x", 1, "1"), qid=8)), "line 2, candidate 1: expected finite"),
        (request(7, "x", url="u"), "line 1: expected the key text or segment"),
        (request(7, "x", None, "z"), "line 1, candidate 2: expected an id"),
        (jsonl(OLD[0], [5]), "line 2: expected an object; got 5"),
        (json.dumps([OLD[0], OLD[1] | {"hits": 5}], indent=1),
         f"line {json.dumps(OLD[:1], indent=1).count(chr(10)) + 1}: expected hits as a list"),
        (json.dumps(OLD, indent=1)[:-1], "expected a ] for each"),
        (jsonl(LABELLED, LIST | {"labels": [1]}), "line 2: expected a label for each of 2"),
        (pd.DataFrame([LABELLED | {"labels": [1]}]), "row 1: expected a label for each of 2"),
        ("[]", "expected candidates in one of these formats"),
        *((content, "line 1: expected candidates in one of these formats (trec_run: ", "rows: ", hint)
          for hint, *contents in (
              ("name its format", "7 Q0 x 1 2.5\n", "7\tx\t2\n", "7 x\n", "9.5\t1.5\t7\tx\ty\n",
               "six words are no run at all", {"qid": 7, "pos": [], "neg": {}}),
              ("use read_qrels", "7 0 x 1\n", "7\t0\tx\t1\n"),
              ("rdl teach replays", {"prompt": "a"}, {"query": {}, "invocations_history": []}),
              ("use read_passages or read_queries", {"_id": 7, "text": "x"}),
          ) for content in contents),
    ],
    formats.read_qrels: [
        ("7 0 x 1\n7 0 y 0.5\n", "line 2: expected relevance as an integer", "; got '0.5'"),
        ("7 0 x 1\n\n7 1 x 1\n", "line 3: expected each query_id and doc_id once; got ['7', 'x']"),
        ("7 0 x 1\n7 0 y\n", "line 2: expected judgments of 4 or 3 columns, 4 as above"),
        (BEIR + "7\t\t1\n", "line 2: expected an id"), (BEIR, "expected records; got none"),
        (TWO, "line 1: expected judgments"),
        ({"7": {"x": 1}}, "line 1: expected the key query_id or ", "got keys ['7']"),
        (JUDGED.assign(score=[1, 0.5, 0]), "row 2: expected relevance as an integer"),
        (JUDGED.assign(score=[None, 1, 0]), "row 1: expected relevance as an integer", "got None"),
    ],
    formats.read_passages: [
        ("1\tx\n2\n", "line 2: expected doc_id text with tabs between, 2 as above; got 1 columns"),
        ("1\tx\n2\ty\tz\n", "line 2: "), ("1\tx\n\tx\n", "line 2: expected an id"),
        ("1\tx\n\n1\ty\n", "line 3: expected each doc_id once; got ['1'] again"),
        (jsonl({"_id": 1, "text": "x"}, {"_id": 2}), "line 2: expected the key text or segment"),
        *(({"_id": bad, "text": "x"}, "line 1: expected an id that is a str or an integer")
          for bad in (None, 1.0, True, "")),
        ('{"_id": 1, "text": "x"}\n{"_id": 2, "te\n', "line 2: expected JSON; got Unterminated"),
        ('{"_id": 1, "text": "\\ud800"}\n', "line 1: expected text as a str; got '\\ud800'"),
    ],
}  # fmt: skip
CASES = [(read, *case) for read, cases in REFUSED.items() for case in cases]


@pytest.mark.parametrize("name", ["bad", "bad.gz"])
@pytest.mark.parametrize("case", CASES, ids=lambda case: case[2][:60])
def test_refusals_name_file_and_line(write, case, name):
    read, content, *telling = case
    source, place = (content, "^frame") if read is from_frame else (write(content, name), name)
    with pytest.raises(ValueError, match=place) as error:
        read(source)
    assert [words for words in telling if words not in str(error.value)] == []


def test_broken_files_unknown_formats_and_ids_no_run_can_hold_are_refused(write, tmp_path):
    for content in (gzip.compress(TWO.encode() * 50)[:-12], b"plain"):
        with pytest.raises(ValueError, match="a.run.gz.* expected a whole gzip file"):
            read_candidates(write(content).rename(tmp_path / "a.run.gz"))
    with pytest.raises(ValueError, match="format: expected one of trec_run, .*; got 'trec'"):
        read_candidates(write(TWO), "trec")
    with pytest.raises(ValueError, match="file.* expected a whole parquet file"):
        read_candidates(write(b"PAR1 and no more"))
    rows = ({"query_id": "7", "doc_id": "a b" if i == 4 else f"d{i}", "score": -i} for i in range(6))
    frame = read_candidates(write(jsonl(*rows)))
    tabs = formats.read_run(write("query_id\tdoc_id\tscore\n7\td0\t1\n7\ta b\t0\n"))
    for read, line in ((frame[frame["rank"] < 3], 5), (tabs, 3)):
        with pytest.raises(ValueError, match=f"line {line}, doc_id 'a b': expected ids without blanks"):
            formats.check_run(read, "tag")


IDS = st.text(st.characters(codec="utf-8", exclude_categories=("Z", "C")), min_size=1, max_size=5)
DOC_IDS = st.lists(IDS, min_size=1, max_size=6, unique=True)
TEXT = st.text(st.characters(codec="utf-8"))
FLOATS = st.floats(width=32, allow_nan=False, allow_infinity=False)


@st.composite
def candidates(draw):
    """Frames as read: some queries, scores that decrease in float32 or none, texts of all kinds."""
    queries = draw(st.dictionaries(IDS, st.tuples(TEXT, DOC_IDS), min_size=1, max_size=4)).items()
    rows = [(x, doc_id, n, query, draw(TEXT)) for x, (query, doc_ids) in queries
            for n, doc_id in enumerate(doc_ids, start=1)]  # fmt: skip
    frame = pd.DataFrame(rows, columns=["query_id", "doc_id", "rank", "query", "text"])
    scores = draw(st.lists(FLOATS, min_size=len(rows), max_size=len(rows), unique=True))
    frame.insert(3, "score", sorted(scores)[::-1] if draw(st.booleans()) else float("nan"))
    return frame.astype(dict(zip(frame, [*KINDS, "str", "str"], strict=True)))


@settings(derandomize=True, deadline=None, max_examples=30, database=None)
@given(frame=candidates(), seed=st.integers(0, 9), packed=st.booleans())
def test_what_is_written_is_read_back_to_the_last_bit(tmp_path_factory, frame, seed, packed):
    """Six decimals, as many tools write them, tie small scores; fast parsers are one unit off."""
    folder, suffix = tmp_path_factory.mktemp("formats"), ".gz" if packed else ""
    shuffled = frame.sample(frac=1, random_state=seed)
    frame = frame.set_index("query_id").loc[shuffled["query_id"].unique()].reset_index()
    columns = ["query_id", "doc_id", "rank", "score"]
    filled = frame.assign(score=frame["score"].fillna(-frame["rank"]))
    for name, write, expected in (
        ("p.parquet", formats.write_parquet, frame[columns]),
        (f"r.run{suffix}", formats.write_run, filled[columns]),
        (f"r.jsonl{suffix}", formats.write_requests, filled),
    ):
        write(shuffled, folder / name)
        pd.testing.assert_frame_equal(read_candidates(folder / name), expected, check_exact=True)
        if name.endswith(".gz"):  # no time: equal frames give equal files
            assert (folder / name).read_bytes()[4:8] == bytes(4)
    assert not list(folder.glob("*.partial"))


@pytest.mark.parametrize(("columns", "tag", "message"), [
    ({"score": [1.0, 1.0]}, "t", "decrease strictly .* got 1.0 at rank 2 .'y'. .*settle_ties"),
    ({"score": [1.0, 1.0 - 1e-12]}, "t", "decrease strictly with rank in float32"),
    ({"score": [1e300, 1.0]}, "t", "decrease strictly with rank in float32"),
    ({"docno": ["x", "y z"]}, "t", "row 2, doc_id 'y z': expected ids without blanks"),
    ({"docno": ["x", "x"]}, "t", "row 2: expected each query_id and doc_id once"),
    ({}, "my run", "tag: expected a tag without blanks; got 'my run'"),
    ({}, None, "got no query and text"),
    ({"query": "q", "text": pd.Series(["t", "\ud800"], dtype=object)}, None, "row 2: expected text"),
])  # fmt: skip
def test_what_would_be_read_otherwise_is_not_written(tmp_path, columns, tag, message):
    path, frame = tmp_path / "r", table(rank=[1, 2], **columns)
    path.write_text("before")
    with pytest.raises(ValueError, match=message):
        formats.write_run(frame, path, tag=tag) if tag else formats.write_requests(frame, path)
    assert {file.name: file.read_text() for file in tmp_path.iterdir()} == {"r": "before"}


@pytest.mark.skipif(not MIRROR, reason="RDL_MIRROR names no folder with the real files")
@pytest.mark.parametrize(("pattern", "n_files", "depth"), [
    ("retrieve_results/*/*", 13, 100), ("rerank_results/*/*", 57, 100), ("runs/*", 4, 500)
])  # fmt: skip
def test_real_results_have_all_candidates_of_each_query(pattern, n_files, depth, caplog):
    caplog.set_level(logging.INFO)
    paths = sorted(Path(MIRROR, "trec-dl").glob(pattern))
    assert len(paths) == n_files
    years = {"dl19": 43, "dl20": 54, "dl22": 76, "-2019-": 43, "-2020-": 54}
    for path in paths:
        n = next(n for year, n in years.items() if year in path.name)
        ranks = read_candidates(path)["rank"].value_counts().to_dict()
        assert ranks == dict.fromkeys(range(1, depth + 1), n)
    assert caplog.text.count("ordered by rank; 0 scores rise") == n_files
