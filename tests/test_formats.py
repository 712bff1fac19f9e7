"""Formats: every variant as the field writes it, real files, and refusals that name file and line."""

import gzip
import json
import logging
import os
import re
from pathlib import Path

import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rdl_core.data import formats
from rdl_core.data.formats import each_record, from_frame, read_candidates

MIRROR = os.environ.get("RDL_MIRROR")
real = pytest.mark.skipif(not MIRROR, reason="RDL_MIRROR names no folder with the real files")
few = settings(derandomize=True, deadline=None, max_examples=30, database=None)
KINDS = ["str", "str", "int64", "float64"]
TWO = "7 Q0 x 0 2.5 tag\n7 Q0 y 1 1.5 tag\n"


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
        path.write_bytes(gzip.compress(raw) if name.endswith(".gz") else raw)
        return path

    return write_file


def ranking(frame):
    """``"7: x y, 8: z"``, best first."""
    assert frame[["query_id", "doc_id", "rank", "score"]].dtypes.map(str).tolist() == KINDS
    groups = dict(list(frame.groupby("query_id", sort=False)))
    assert all(g["rank"].tolist() == list(range(1, len(g) + 1)) for g in groups.values())
    return ", ".join(f"{query}: {' '.join(rows['doc_id'])}" for query, rows in groups.items())


def jsonl(*values):
    return "".join(json.dumps(value) + "\n" for value in values)


def hit(docid, rank, score=1.0, qid=7):
    return {"content": f"text {docid}", "qid": qid, "docid": docid, "rank": rank, "score": score}


def hits(*passages):
    return {"query": "q", "hits": list(passages)}


def request(qid, *docids, **doc):
    passages = [
        {"docid": d, "score": -float(i), "doc": doc or {"text": "t"}} for i, d in enumerate(docids)
    ]
    return {"query": {"text": "what", "qid": qid}, "candidates": passages}

PAIRS = {"query_id": ["7", "7", "8"], "doc_id": ["x", "y", "x"]}
EXPECTED = {
    read_candidates: PAIRS | {"rank": [1, 2, 1], "score": [2.5, 1.5, 0.5]},
    formats.read_qrels: PAIRS | {"relevance": [3, 0, -1]},
    formats.read_passages: {"doc_id": ["1", "2"], "text": ["first  text ", ""]},
}
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
    "qrels of pools": "7 129 x 3\n7 127 y 0\n8 1 x -1\n",
    "qrels of 3 columns, CRLF": "7 x 3\r\n7 y 0\r\n8 x -1\r\n",
    "qrels of BEIR": "\nquery-id\tcorpus-id\tscore\n7\tx\t3\n\n7\ty\t0\n8\tx\t-1\n",
    "texts, byte order mark": "\ufeff1\tfirst  text \n2\t\n",
    "texts, CRLF": "1\tfirst  text \r\n\r\n2\t\r\n",
    "texts in lines": jsonl({"_id": "1", "text": "first  text ", "data": {}}, {"_id": 2, "text": ""}),
    "texts in an array": json.dumps([{"id": 1, "text": "first  text "}, {"id": 2, "text": ""}]),
}  # fmt: skip


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("name", ["no_suffix", "packed.gz"])
def test_every_variant_is_read(write, variant, name):
    kinds = dict(zip(("run", "qre", "tex"), EXPECTED, strict=True))
    read, path = kinds[variant[:3]], write(VARIANTS[variant], name)
    pd.testing.assert_frame_equal(read(path), pd.DataFrame(EXPECTED[read]))
    if read is formats.read_passages:
        assert formats.read_queries(path).columns.tolist() == ["query_id", "query"]


def test_ids_and_scores_stay_as_they_are_and_queries_in_the_order_of_the_file(write):
    """Ids were once numbers or missing values to a reader; a query called qid was once a header.

    A fast parser of decimals is one unit off in places, which makes and breaks ties.
    """
    frame = read_candidates(write('1e5 Q0 0012 1 1 T\n007 Q0 NA 1 2 T\n007 Q0 "q 2 1 T\n', "a.run"))
    assert ranking(frame) == '1e5: 0012, 007: NA "q'
    frame = read_candidates(write("qid Q0 x 1 2 T\nqid Q0 y 2 0.30000000000000004 T\n"))
    assert ranking(frame) == "qid: x y"
    assert repr(float(frame["score"][1])) == "0.30000000000000004"
    assert len(formats.read_qrels(write("qid 0 x 1\nquery-id 0 score 1\n"))) == 2
    qrels = formats.read_qrels(write("query-id\tcorpus-id\tscore\n\nq 1\td 1\t1\n"))
    assert qrels.values.tolist() == [["q 1", "d 1", 1]]


@pytest.mark.parametrize(
    ("content", "order", "log"),
    [  # RankGPT and RankLLM move passages and leave the first stage's scores where they were
        ("7 Q0 x 1 1.5 T\n7 Q0 y 2 2.5 T\n8 Q0 x 1 9 T\n", "7: x y, 8: x", "by rank; 1 scores rise"),
        (TWO + "8 Q0 x 0 9.5 tag\n", "7: x y, 8: x", "by rank; 0 scores rise, 0 tie"),
        ("7 Q0 x 1 1.5 T\n\n7 Q0 y 1 2.5 T\n7 Q0 z 2 1.5 T\n", "7: y x z",
         "by score, as ranks repeat, first in {path}, line 3; 0 scores rise, 1 tie"),
        ("7 y\n7 x\n", "7: y x", "by place, as there are no ranks and no scores; "),
    ],
)  # fmt: skip
def test_the_log_says_what_decided_the_order(write, caplog, content, order, log):
    caplog.set_level(logging.INFO)
    path = write(content, "a.run")
    assert ranking(read_candidates(path)) == order
    assert f"ordered {log.format(path=path)}" in caplog.text


OLD = [
    {"query": "what", "hits": [hit("x", 1, 2.5), hit("y", 2, 1.5)]},
    {"query": "who", "hits": [hit("0-0", 1, 1.0, qid="8")]},
]
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
    assert frame["query"].tolist() == ["what", "what", "who"]
    assert frame["text"].tolist() == ["text x", "text y", "text 0-0"]
    records, unit = each_record(path)
    assert ([value for _, value in records], unit) == (OLD, "line")
    new = read_candidates(write(LAYOUTS[layout]([request("7", "x", 5), request(8, "z")]), name))
    assert ranking(new) == "7: x 5, 8: z"
    assert new["score"].tolist() == [0.0, -1.0, 0.0]


def test_hits_are_ordered_by_rank_candidates_by_place_and_texts_have_many_names(write):
    assert ranking(read_candidates(write([hits(hit("x", 1, 9.0), hit("y", 0, 1.0))]))) == "7: y x"
    stale = request(7, "x", "y")
    stale["candidates"][1]["score"] = 5.0
    assert ranking(read_candidates(write(stale))) == "7: x y"
    for key in ("text", "segment", "contents", "content", "body", "passage"):
        frame = read_candidates(write(request(7, "x", **{key: "t", "title": "T", "url": "u"})))
        assert frame["text"].tolist() == ["T t"]
    content = jsonl({"_id": "1", "title": "T", "text": "x"}, {"_id": "2", "title": "", "text": "y"})
    assert formats.read_passages(write(content))["text"].tolist() == ["T x", "y"]


@pytest.mark.parametrize("name", ["l.jsonl", "l.parquet"])
def test_lists_of_sentence_transformers(write, name):
    def made(*rows):
        return write(pd.DataFrame(rows) if name == "l.parquet" else jsonl(*rows), name)

    teacher = read_candidates(made({"query_id": "7", "doc_ids": ["y", "x"]}))
    assert ranking(teacher) == "7: y x"
    assert teacher["teacher_rank"].dtype == "Int64"
    assert teacher["teacher_rank"].tolist() == [1, 2]
    labelled = read_candidates(made({"query_id": "7", "doc_ids": ["y", "x"], "labels": [1, 0]}))
    assert labelled["relevance"].tolist() == [1, 0]
    assert "teacher_rank" not in labelled
    rows = [{"query_id": str(i), "doc_ids": ["y", "x"], "labels": [1, 0][i:]} for i in range(2)]
    with pytest.raises(ValueError, match=f"{name}, .* 2: expected a label for each of 2"):
        read_candidates(made(*rows))


LIR = [{"qid": 7, "docno": n, "score": n + 0.5, "relevance": n} for n in range(2)]
RANKED = [row | {"rank": i} for i, row in enumerate(LIR)]
@pytest.mark.parametrize(
    ("name", "content", "order", "column", "values"),
    [
        ("trec_run", TWO, "7: x y", "score", [2.5, 1.5]),
        ("rank_llm", jsonl(request(7, "x")), "7: x", "text", ["t"]),
        ("lists", jsonl({"query_id": 7, "doc_ids": ["x"]}), "7: x", "rank", [1]),
        ("rows", jsonl(*LIR), "7: 1 0", "relevance", [1, 0]),  # of Lightning IR
        ("rows", jsonl(*RANKED), "7: 0 1", "score", [0.5, 1.5]),
        ("msmarco_top1000", "7\ty\tq\ty is  z \n7\tx\tq\tx\n", "7: y x", "text", ["y is  z ", "x"]),
    ],
)
def test_formats_are_recognised_and_can_be_named(write, caplog, name, content, order, column, values):
    caplog.set_level(logging.INFO)
    path = write(content, "data.txt.gz")
    frame = read_candidates(path)
    assert f"read as {name}" in caplog.text
    assert ranking(frame) == order
    assert frame[column].tolist() == values
    pd.testing.assert_frame_equal(frame, read_candidates(path, name))
    ranks = read_candidates(write("7\tx\t2\n7\ty\t1\n"), "msmarco_run")  # of integers: must be named
    assert ranking(ranks) == "7: y x"


# --- what is refused ------------------------------------------------------------------------------

BEIR = "query-id\tcorpus-id\tscore\n"
REFUSED = {
    read_candidates: [
        ("", "expected data; got an empty file"), ("\n \n", "expected data; got an empty file"),
        ("7 Q0 x 1 2.5\n", "line 1: expected candidates in one of these formats"),
        (TWO + "7 Q0 z 2 1 tag x\n", "line 3: expected a run", "6 as above; got 7 columns"),
        (TWO + "\n7 Q0 z 2.5 1 t\n", "line 4: expected rank as an integer", "got '2.5'"),
        *((f"7 Q0 z 2 {x} t\n{TWO}", f"line 1: expected finite scores; got '{x}'")
          for x in ("high", "nan", "-inf", "1e999")),
        (TWO + "8 Q0 x 0 1 t\n\n7 Q0 x 2 0.5 t\n", "line 5: expected each passage of a query once",
         "['7', 'x'] again, first in ", "line 1"),
        ("7 Q0 x 0 1 t\n7 Q0 y 0 1 t\n", "line 2: expected ranks that differ"),
        (TWO.encode() + b"7 Q0 \xff 2 1 t\n", "line 3: expected UTF-8"),
        ([hits(hit("x", 1), hit("y", 2, qid=8))], "line 1: expected hits of one query id; got ['7',"),
        (jsonl(OLD[0], hits()), "line 2: expected hits of one query id"),
        (jsonl(request(7, "x"), request(8)), "line 2: expected at least one entry"),
        (jsonl(request(7, "x"), request(8, "x"), request(7, "y")),
         "line 3: expected one record for each query; got '7' again, first in line 1"),
        (jsonl(hits(hit("x", 1), hit("y", None))), "line 1, candidate 2: expected rank as an integer"),
        *((jsonl(hits(hit("x", rank))), "line 1, candidate 1: expected rank as an integer")
          for rank in ("1", 2**63)),
        (jsonl(OLD[0], hits(hit("x", 1, "1", 8))), "line 2, candidate 1: expected finite"),
        (jsonl(request(7, "x", url="u")), "line 1: expected the key text or segment"),
        (jsonl(OLD[0], [5]), "line 2: expected an object; got 5"),
        (json.dumps([OLD[0], OLD[1] | {"hits": 5}], indent=1),
         f"line {json.dumps(OLD[:1], indent=1).count(chr(10)) + 1}: expected hits as a list"),
        (json.dumps(OLD, indent=1)[:-1], "expected a ] for each"),
        (jsonl(RANKED[0], LIR[1]), "line 2: expected rank as an integer"),
        ("[]", "expected candidates in one of these formats"),
        *((content, "line 1: expected candidates in one of these formats (trec_run: ", "rows: ", hint)
          for content, hint in (
              ("7\tx\t2\n", "name its format"), ("7 x\n", "name its format"),
              ("7 0 x 1\n", "use read_qrels"), ("7\t0\tx\t1\n", "use read_qrels"),
              ("9.5\t1.5\t7\tx\ty\n", "name its format"), ("six words are no run at all", "its format"),
              (jsonl({"prompt": "a", "response": "b"}), "rdl teach replays"),
              (jsonl({"query": {}, "invocations_history": []}), "rdl teach replays"),
              (jsonl({"qid": 7, "pos": [], "neg": {}}), "name its format"),
                    (jsonl({"_id": 7, "text": "x"}), "use read_passages or read_queries"),
          )),
    ],
    formats.read_qrels: [
        ("7 0 x 1\n7 0 y 0.5\n", "line 2: expected relevance as an integer; got '0.5'"),
        ("7 0 x 1\n\n7 1 x 1\n", "line 3: expected each judgment once; got ['7', 'x'] again"),
        ("7 0 x 1\n7 0 y\n", "line 2: expected judgments of 4 or 3 columns, 4 as above"),
        (BEIR + "7\t\t1\n", "line 2: expected an id"), (BEIR, "expected data; got a header alone"),
        (TWO, "line 1: expected judgments"),
    ],
    formats.read_passages: [
        ("1\tx\n2\n", "line 2: expected doc_id text with tabs between, 2 as above; got 1 columns"),
        ("1\tx\n2\ty\tz\n", "line 2: "), ("1\tx\n\tx\n", "line 2: expected an id"),
        ("1\tx\n\n1\ty\n", "line 3: expected each id once; got ['1'] again"),
        (jsonl({"_id": 1, "text": "x"}, {"_id": 2}), "line 2: expected the key text or segment"),
        *((jsonl({"_id": bad, "text": "x"}), "line 1: expected an id that is a str or an integer")
          for bad in (None, 1.0, True, "")),
        ('{"_id": 1, "text": "x"}\n{"_id": 2, "te\n', "line 2: expected JSON; got Unterminated"),
        ('{"_id": 1, "text": "\\ud800"}\n', "line 1: expected text as a str; got '\\ud800'"),
    ],
}  # fmt: skip
CASES = [(read, *case) for read, cases in REFUSED.items() for case in cases]


@pytest.mark.parametrize("name", ["bad", "bad.gz"])
@pytest.mark.parametrize("case", CASES, ids=lambda case: repr(case[1:])[:60])
def test_refusals_name_file_and_line(write, case, name):
    read, content, *telling = case
    with pytest.raises(ValueError, match=name) as error:
        read(write(content, name))
    assert [words for words in telling if words not in str(error.value)] == []


@pytest.mark.parametrize("header", ["id\ttext", "pid\tpassage", "_id\ttitle", "Doc_Id\tContents"])
def test_a_first_line_that_names_the_columns_is_no_text(write, header):
    for read in (formats.read_passages, formats.read_queries):
        assert read(write(f"{header}\n7\tred fox\n")).to_numpy().tolist() == [["7", "red fox"]]
        assert read(write("7\tid\n8\tquery\n")).shape == (2, 2)  # texts may say so
    top = "qid\tpid\tquery\tpassage\n7\tx\twhat\tthis\n"
    assert read_candidates(write(top)).to_numpy().tolist()[0][:2] == ["7", "x"]


JUDGED = pd.DataFrame({"query-id": ["7", "8"], "corpus-id": ["x", "y"], "score": [1, 0]})


@pytest.mark.parametrize("content", [
    JUDGED, JUDGED.astype({"score": float}),
    JUDGED.rename(columns={"query-id": "qid", "score": "label"}),
    JUDGED.to_dict("records"), JUDGED.to_json(orient="records", lines=True),
    "7 0 x 1.0\n8 0 y 0.0\n", "7\t0\tx\t1\n8\t0\ty\t0\n",
])  # fmt: skip
def test_judgments_may_be_records_and_grades_written_as_floats(write, content):
    qrels = formats.read_qrels(write(content))
    assert qrels.to_numpy().tolist() == [["7", "x", 1], ["8", "y", 0]]
    assert qrels["relevance"].dtype == "int64"


def test_judgments_that_are_others_are_refused_as_what_they_are(write):
    with pytest.raises(ValueError, match=r"line 1: expected the key query_id or .* got keys \['7'\]"):
        formats.read_qrels(write({"7": {"x": 1}}))
    with pytest.raises(ValueError, match="row 2: expected relevance as an integer"):
        formats.read_qrels(write(JUDGED.assign(score=[1, 0.5])))
    with pytest.raises(ValueError, match="row 1: expected relevance as an integer; got none"):
        formats.read_qrels(write(JUDGED.assign(score=[None, 1.0])))


def test_a_misfit_in_a_long_record_names_the_candidate(write):
    docs = [{"docid": str(i), "score": -i, "doc": {"text": "t"}} for i in range(100)]
    record = {"query": {"qid": "7", "text": "q"}, "candidates": docs}
    for change, says in (
        ({"score": "high"}, "line 1, candidate 38: expected finite scores; got 'high'"),
        ({"doc": {"body_": "t"}}, "expected the key text or .* in candidate 38"),
        ({"docid": None}, "line 1, candidate 38: expected an id"),
    ):
        docs[37] = {"docid": "37", "score": -37, "doc": {"text": "t"}, **change}
        with pytest.raises(ValueError, match=says):
            read_candidates(write(record))


def test_ids_that_no_run_can_hold_are_known_by_their_place_before_scores_are_made(write):
    lines = [{"query_id": "7", "doc_id": f"d{i}" if i != 4 else "a b", "score": -i} for i in range(6)]
    frame = read_candidates(write("\n".join(map(json.dumps, lines))))
    with pytest.raises(ValueError, match="file, line 5, doc_id 'a b': expected ids without blanks"):
        formats.check_run(frame[frame["rank"] < 3], "tag")
    formats.check_run(read_candidates(write(TWO)), "tag")
    with pytest.raises(ValueError, match="tag: expected a tag without blanks; got 'my run'"):
        formats.check_run(read_candidates(write(TWO)), "my run")


def test_packed_files_are_known_by_their_bytes_and_broken_ones_and_other_names_refused(write, tmp_path):
    assert ranking(read_candidates(write(gzip.compress(TWO.encode()), "a.run"))) == "7: x y"
    whole = gzip.compress(TWO.encode() * 50)
    for content in (whole[:-12], b"plain"):
        path = write(content)
        with pytest.raises(ValueError, match="a.run.gz.* expected a whole gzip file"):
            read_candidates(path.rename(path.with_name("a.run.gz")))
    with pytest.raises(ValueError, match="format: expected one of trec_run, .*; got 'trec'"):
        read_candidates(write(TWO), "trec")
    with pytest.raises(ValueError, match=r"p.parquet.* got keys \['a'\]"):
        read_candidates(write(pd.DataFrame({"a": [1]}), "p.parquet"))
    with pytest.raises(ValueError, match="file.* expected a whole parquet file"):
        read_candidates(write(b"PAR1 and no more"))
    with pytest.raises(FileNotFoundError, match="nowhere"):
        read_candidates(tmp_path / "nowhere")


@pytest.mark.parametrize("kind", ["str", "int64", "category", "object"])
def test_parquet_of_rank_distillm_and_pyterrier(write, kind):
    frame = pd.DataFrame({"qid": ["7", "7", "8"], "docid": [0, 1, 2], "docno": ["31", "32", "31"]})
    frame = frame.astype({"qid": kind, "docno": kind}).assign(rank=[1, 0, 0], score=[1, 2, 3.0])
    candidates = read_candidates(write(frame.assign(note="n"), "p.parquet"))
    assert ranking(candidates) == "7: 32 31, 8: 31"
    assert candidates["score"].tolist() == [2, 1, 3]
    pd.testing.assert_frame_equal(candidates, from_frame(frame))


@pytest.mark.parametrize(
    ("columns", "telling"),
    [
        ({"docno": ["x", None]}, "row 2: expected an id that is a str or an integer"),
        ({"docno": [1.0, 2.0]}, "row 1: expected an id that is a str or an integer; got 1.0"),
        ({"docno": ["x", "x"]}, "row 2: expected each passage of a query once"),
        ({"score": [1.0, float("nan")]}, "row 2: expected finite scores"),
        ({"rank": [0.0, 1.0]}, "row 1: expected rank as an integer, in every row; got 0.0"),
        ({"text": ["t", None]}, "row 2: expected text as a str; got None"),
        ({"relevance": [1, 0.5]}, "row 2: expected relevance as an integer; got 0.5"),
    ],
)
def test_refusals_of_tables_name_the_row(write, columns, telling):
    frame = pd.DataFrame({"qid": ["7", "7"], "docno": ["x", "y"]} | columns)
    with pytest.raises(ValueError, match=f"^frame, {re.escape(telling)}"):
        from_frame(frame)
    with pytest.raises(ValueError, match=f"p.parquet, {re.escape(telling)}"):
        read_candidates(write(frame, "p.parquet"))


def test_a_frame_needs_rows_and_each_column_once_and_judgments_may_have_gaps():
    """A merge gives judgments as floats, NaN where there are none."""
    for frame, telling in (
        (pd.DataFrame({"qid": ["7"], "document": ["x"]}), "a column doc_id or docno .* rename one"),
        (pd.DataFrame({"qid": [], "docno": []}, dtype="str"), "expected candidates; got none"),
        (pd.DataFrame([["7", "x", "y"]], columns=["qid", "docno", "docno"]), "'docno' twice"),
    ):
        with pytest.raises(ValueError, match=f"^frame: .*{telling}"):
            from_frame(frame)
    frame = pd.DataFrame({"qid": ["7", "7"], "docno": ["x", "y"], "relevance": [1.0, float("nan")]})
    assert from_frame(frame)["relevance"].tolist() == [1, pd.NA]

ids = st.text(st.characters(codec="utf-8", exclude_categories=("Z", "C")), min_size=1, max_size=5)
floats32 = st.floats(width=32, allow_nan=False, allow_infinity=False)


@st.composite
def candidates(draw):
    """Frames as read: some queries, scores that decrease in float32 or none, texts of all kinds."""
    parts = []
    for query_id in draw(st.lists(ids, min_size=1, max_size=4, unique=True)):
        doc_ids = draw(st.lists(ids, min_size=1, max_size=6, unique=True))
        n, text = len(doc_ids), st.text(st.characters(codec="utf-8"))
        own = {"query_id": query_id, "doc_id": doc_ids, "rank": range(1, n + 1)}
        scores = sorted(draw(st.lists(floats32, min_size=n, max_size=n, unique=True)))[::-1]
        own |= {"score": scores, "query": draw(text)}
        parts.append(pd.DataFrame(own | {"text": draw(st.lists(text, min_size=n, max_size=n))}))
    frame = pd.concat(parts, ignore_index=True)
    frame = frame.astype(dict(zip(frame, [*KINDS, "str", "str"], strict=True)))
    return frame if draw(st.booleans()) else frame.assign(score=float("nan"))


@few
@given(frame=candidates(), seed=st.integers(0, 9), packed=st.booleans())
def test_what_is_written_is_read_back(tmp_path_factory, frame, seed, packed):
    folder, suffix = tmp_path_factory.mktemp("formats"), ".gz" if packed else ""
    shuffled = frame.sample(frac=1, random_state=seed)
    frame = frame.set_index("query_id").loc[shuffled["query_id"].unique()].reset_index()
    plain = frame[["query_id", "doc_id", "rank", "score"]]
    filled = frame.assign(score=frame["score"].fillna(-frame["rank"]))
    formats.write_parquet(shuffled, folder / "p.parquet")
    pd.testing.assert_frame_equal(read_candidates(folder / "p.parquet"), plain)
    formats.write_run(shuffled, folder / f"r.run{suffix}", tag="own")
    pd.testing.assert_frame_equal(read_candidates(folder / f"r.run{suffix}"), filled[plain.columns])
    formats.write_requests(shuffled, folder / f"r.jsonl{suffix}")
    pd.testing.assert_frame_equal(read_candidates(folder / f"r.jsonl{suffix}"), filled)
    assert not list(folder.glob("*.partial"))


HALF = pd.Series(["whole", "\ud800"], dtype=object)
FRAME = pd.DataFrame({"query_id": ["7", "7"], "doc_id": ["x", "y"], "rank": [1, 2]})


@pytest.mark.parametrize(
    ("columns", "tag", "message"),
    [
        ({"score": [1.0, 1.0]}, "t", "decrease strictly .* got 1.0 at rank 2 .'y'. .*settle_ties"),
        ({"score": [1.0, 1.0 - 1e-12]}, "t", "decrease strictly with rank in float32"),
        ({"score": [1e300, 1.0]}, "t", "decrease strictly with rank in float32"),
        ({"doc_id": ["x", "y z"]}, "t", "row 2, doc_id 'y z': expected ids without blanks"),
        ({"doc_id": ["x", "x"]}, "t", "row 2: expected each passage of a query once"),
        ({}, "my run", "expected a tag without blanks; got 'my run'"),
        ({}, None, "got no query and text"),
        ({"query": "q", "text": HALF}, None, "row 2: expected text"),
    ],
)
def test_what_would_be_read_otherwise_is_not_written_and_the_old_file_stays(
    tmp_path, columns, tag, message
):
    path, frame = tmp_path / "r", FRAME.assign(**columns)
    path.write_text("before")
    with pytest.raises(ValueError, match=message):
        formats.write_run(frame, path, tag=tag) if tag else formats.write_requests(frame, path)
    assert path.read_text() == "before"
    assert [file.name for file in tmp_path.iterdir()] == ["r"]


def test_close_scores_stay_apart_and_equal_frames_give_equal_packed_files(tmp_path):
    """Six decimals, as many tools write them, would make two ties of these three."""
    close = [1e-7, 9.9e-8, 9.8e-8]
    frame = FRAME.reindex([0, 1, 1]).assign(doc_id=["x", "y", "z"], rank=[1, 2, 3], score=close)
    first, second = tmp_path / "a.run.gz", tmp_path / "b.run.gz"
    for path in (first, second):
        formats.write_run(frame, path)
        assert read_candidates(path)["score"].tolist() == close
    assert first.read_bytes() == second.read_bytes()
    assert first.read_bytes()[4:8] == bytes(4)  # no time, even if both were written in the same second


@real
@pytest.mark.parametrize(("folder", "n_files"), [("retrieve_results", 13), ("rerank_results", 57)])
def test_real_results_have_100_candidates_for_each_query(folder, n_files, caplog):
    caplog.set_level(logging.INFO)
    paths = sorted(Path(MIRROR, "trec-dl").glob(f"{folder}/*/*"))
    assert len(paths) == n_files
    for path in paths:
        frame = read_candidates(path)
        n = next(n for year, n in {"dl19": 43, "dl20": 54, "dl22": 76}.items() if year in path.name)
        assert frame["rank"].value_counts().to_dict() == dict.fromkeys(range(1, 101), n)
        if folder == "retrieve_results":
            hits = [hit for record in json.loads(path.read_text()) for hit in record["hits"]]
            for column, key in (("doc_id", "docid"), ("score", "score"), ("text", "content")):
                assert frame[column].tolist() == [hit[key] for hit in hits]
            assert (frame["text"] != "").all()
    assert caplog.text.count("ordered by rank; 0 scores rise") == n_files


@real
def test_real_runs_and_judgments_have_all_their_lines():
    lines = {
        "trec-dl/qrels/qrels.dl19-passage.txt": 9260, "trec-dl/qrels/qrels.dl20-passage.txt": 11386,
        "vaswani/qrels": 2083, "cranfield/cranqrel.trec.txt": 1837,
    }  # fmt: skip
    assert {name: len(formats.read_qrels(Path(MIRROR, name))) for name in lines} == lines
    lengths = [len(read_candidates(path)) for path in Path(MIRROR, "trec-dl/runs").iterdir()]
    assert sorted(lengths) == [43 * 500, 43 * 500, 54 * 500, 54 * 500]
