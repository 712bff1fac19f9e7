"""Formats: every variant as the field writes it, real files, and refusals that name the line.

Mutations seen to fail, one at a time (68 tried in a copy; two survive because another check stands
behind them: JSON's infinite scores, and a header's line in a run of three columns):

- order: repeated or negative ranks decide, scores over ranks, ascending; constant scores decide;
  rank counted over all queries; duplicates or infinite scores pass, pairs of ids collide; ties or
  disagreement counted across queries; docid before docno; missing ids become "nan"; gaps in texts.
- files: NA missing, quotes read, long, short or blank lines pass, header or blank lines not counted,
  a query "qid" taken for a header, byte order mark kept, BEIR ids split at blanks, search for the
  wrong line the wrong way round; brackets or lines within records not counted, arrays in lines not
  taken apart, cut gzip, files written in place, the time in packed files.
- records: hits by place, candidates by score, hits of two queries, a query in two records, empty
  lists, partly missing ranks, columns reversed, titles dropped, bool ids, half characters; broken
  permutations kept, read from 0, as ranks, or out of prose; padding kept, answers one short;
  messages not as JSON.
- text: iter for the passage, judged twice, MS MARCO's rank as score, tabs in texts, -inf in triples.
- write: ties, scores compared in float64, six decimals, blanks in ids, 0 where no scores are,
  queries sorted, judged twice.
- the door: six words or three integers taken for a run, judgments for top1000.
"""

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
from rdl_core.data.formats import read_candidates
from rdl_core.lists import RankedLists

MIRROR = os.environ.get("RDL_MIRROR")
real = pytest.mark.skipif(not MIRROR, reason="RDL_MIRROR names no folder with the real files")
few = settings(derandomize=True, deadline=None, max_examples=30, database=None)
ONE_OF_EACH = "7 Q0 x 0 2.5 tag\n7 Q0 y 1 1.5 tag\n"


@pytest.fixture
def write(tmp_path):
    """Write a file and give its path; packed if its name says so."""

    def write_file(content, name="file"):
        path = tmp_path / name
        content = content if isinstance(content, (str, bytes)) else json.dumps(content)
        raw = content.encode() if isinstance(content, str) else content
        path.write_bytes(gzip.compress(raw) if name.endswith(".gz") else raw)
        return path

    return write_file


def ranking(frame):
    """``"7: x y, 8: z"``, best first, by column rank."""
    queries = dict(list(frame.groupby("query_id", sort=False)))
    lists = {query: " ".join(rows.sort_values("rank")["doc_id"]) for query, rows in queries.items()}
    assert all(
        rows["rank"].tolist() == list(range(1, len(rows) + 1)) for rows in queries.values()
    )
    assert frame["rank"].dtype == "int64"
    assert frame["score"].dtype == "float64"
    return ", ".join(f"{query}: {docs}" for query, docs in lists.items())


def jsonl(*values):
    return "".join(json.dumps(value) + "\n" for value in values)


# --- TREC runs ----------------------------------------------------------------------------------

RUNS = {
    "blanks": "7 Q0 x 1 2.5 tag.v1\n7 Q0 y 2 1.5 tag.v1\n8 Q0 x 1 0.5 tag.v1\n",
    "tabs, iter 0": "7\t0\tx\t1\t2.5\tT\n7\t0\ty\t2\t1.5\tT\n8\t0\tx\t1\t0.5\tT\n",
    "mixed, blank lines, CRLF": " 7 q0\tx  1 2.5 T \r\n\r\n7 q0 y 2 1.5 T\r\n  \r\n8 q0 x 1 .5 T",
    "byte order mark": "\ufeff7 Q0 x 1 2.5 T\n7 Q0 y 2 1.5 T\n8 Q0 x 1 5e-1 T\n",
    "from 0 (pyterrier)": "7 Q0 x 0 2.5 T\n7 Q0 y 1 1.5 T\n8 Q0 x 0 0.5 T\n",
    "lines in no order": "8 Q0 x 1 0.5 T\n7 Q0 y 2 1.5 T\n7 Q0 x 1 2.5 T\n",
    "queries apart": "7 Q0 x 1 2.5 T\n8 Q0 x 1 0.5 T\n7 Q0 y 2 1.5 T\n",
    "ranks with gaps": "7 Q0 x 3 2.5 T\n7 Q0 y 9 1.5 T\n8 Q0 x 2 0.5 T\n",
    "no ranks worth the name": "7 Q0 y 0 1.5 T\n7 Q0 x 0 2.5 T\n8 Q0 x 0 0.5 T\n",
    "negative ranks": "7 Q0 y -1 1.5 T\n7 Q0 x 0 2.5 T\n8 Q0 x 0 0.5 T\n",
    "3 columns": "7 x 2.5\n7 y 1.5\n8 x 0.5\n",
}  # fmt: skip


@pytest.mark.parametrize("variant", RUNS)
@pytest.mark.parametrize("name", ["a.run", "a.run.gz", "no_suffix"])
def test_runs_in_their_variants(write, variant, name):
    frame = read_candidates(write(RUNS[variant], name))
    assert ranking(frame.sort_values("query_id")) == "7: x y, 8: x"
    assert frame.sort_values(["query_id", "rank"])["score"].tolist() == [2.5, 1.5, 0.5]
    assert [frame[name].dtype for name in ("query_id", "doc_id")] == ["str", "str"]


def test_queries_stay_in_the_order_of_the_file(write):
    frame = read_candidates(write(RUNS["queries apart"].replace("7", "9"), "a.run"))
    assert frame["query_id"].tolist() == ["9", "9", "8"]


def test_ids_are_never_numbers_or_missing_values(write):
    frame = read_candidates(write('007 Q0 NA 1 2 T\n007 Q0 "q 2 1 T\n1e5 Q0 0012 1 1 T\n', "a.run"))
    assert frame["query_id"].tolist() == ["007", "007", "1e5"]
    assert frame["doc_id"].tolist() == ["NA", '"q', "0012"]


def test_a_query_called_qid_is_no_header(write):
    """Its first line was once left out as one, in runs too, which have none."""
    assert ranking(read_candidates(write("qid Q0 x 1 2 T\nqid Q0 y 2 1 T\n"))) == "qid: x y"
    assert len(formats.read_qrels(write("qid 0 x 1\nquery-id 0 score 1\n"))) == 2


def test_scores_are_rounded_correctly(write):
    """A fast parser of decimals is one unit off in places, which makes and breaks ties."""
    text = "0.30000000000000004"
    score = read_candidates(write(f"7 Q0 x 1 {text} T\n", "a.run"))["score"][0]
    assert repr(float(score)) == text


def test_rank_decides_over_stale_scores_and_the_log_says_so(write, caplog):
    """RankGPT and RankLLM permute passages and leave the first stage's score where it was."""
    caplog.set_level(logging.INFO)
    stale = "7 Q0 x 1 1.5 T\n7 Q0 y 2 2.5 T\n8 Q0 x 1 2 T\n8 Q0 y 2 1 T\n"
    assert ranking(read_candidates(write(stale, "a.run"))) == "7: x y, 8: x y"
    assert "ordered by rank; scores disagree in 1 of 2 queries" in caplog.text
    caplog.clear()
    read_candidates(write(ONE_OF_EACH + "8 Q0 x 0 9.5 tag\n", "a.run"))  # more, but another query
    assert "ordered by rank; scores agree" in caplog.text


def test_repeated_ranks_leave_it_to_the_scores_and_the_log_names_the_line(write, caplog):
    repeated = "7 Q0 x 1 1.5 T\n\n7 Q0 y 1 2.5 T\n7 Q0 z 2 1.5 T\n"
    path = write(repeated, "a.run")
    assert ranking(read_candidates(path)) == "7: y x z"
    assert "ordered by score (ranks repeat, first in line 3); 1 ties stay" in caplog.text


def test_two_columns_are_ordered_as_they_stand(write, caplog):
    frame = read_candidates(write("7 y\n7 x\n", "a.run"))
    assert ranking(frame) == "7: y x"
    assert frame["score"].isna().all()
    assert "no ranks and scores" in caplog.text


REFUSED_RUNS = {
    "empty": ("", "expected data; got an empty file"),
    "blank": ("\n \n", "expected data; got an empty file"),
    "5 columns": ("7 Q0 x 1 2.5\n", "line 1: expected a run of 6, 3 or 2 columns"),
    "too long": (ONE_OF_EACH + "7 Q0 z 2 1 tag x\n", "line 3: .* got 7"),
    "much too long": (ONE_OF_EACH + "7 Q0 z 2 1 tag x y z\n", "line 3: .* got 9"),
    "too short": (ONE_OF_EACH + "\n7 Q0 z 2 1\n", "line 4: .* got 5"),
    "rank": (ONE_OF_EACH + "\n7 Q0 z 2.5 1 t\n", "line 4: expected rank as an int.* '2.5'"),
    "long rank": ("7 Q0 z 99999999999999999999 1 t\n", "line 1: expected rank as an integer"),
    "score": (ONE_OF_EACH + "7 Q0 z 2 high t\n", "line 3: expected score as .* 'high'"),
    "nan": (ONE_OF_EACH + "7 Q0 z 2 nan t\n", "line 3: expected finite scores; got nan"),
    "inf": ("7 Q0 z 2 -inf t\n" + ONE_OF_EACH, "line 1: expected finite scores; got -inf"),
    "twice": (
        ONE_OF_EACH + "8 Q0 x 0 1 t\n\n7 Q0 x 2 0.5 t\n",
        "line 5: expected each passage once per query; got 'x' for query '7' again, "
        "first in line 1",
    ),
    "no order": ("7 Q0 x 0 1 t\n7 Q0 y 0 1 t\n", "line 2: expected ranks that differ"),
    "not UTF-8": (ONE_OF_EACH.encode() + b"7 Q0 \xff 2 1 t\n", "line 3: expected UTF-8"),
}  # fmt: skip


@pytest.mark.parametrize("name", ["bad.run", "bad.run.gz"])
@pytest.mark.parametrize("what", REFUSED_RUNS)
def test_refusals_of_runs_name_file_and_line(write, what, name):
    content, message = REFUSED_RUNS[what]
    with pytest.raises(ValueError, match=rf"{name}(, |: ){message}"):
        read_candidates(write(content, name))


@pytest.mark.parametrize("wrong", range(9))
def test_the_wrong_line_is_found_wherever_it_is(write, wrong):
    lines = [f"7 Q0 d{i} {i} {'?' if i == wrong else -i} t\n" for i in range(9)]
    with pytest.raises(ValueError, match=rf"line {wrong + 1}: expected score .* '\?'"):
        read_candidates(write("".join(lines), "a.run"))


def test_broken_gzip_is_refused(write, tmp_path):
    whole = gzip.compress(ONE_OF_EACH.encode() * 50)
    for content in (whole[:-12], b"plain"):
        path = tmp_path / "a.run.gz"
        path.write_bytes(content)
        with pytest.raises(ValueError, match=r"a.run.gz: expected a whole gzip file"):
            read_candidates(path)


# --- judgments, triples, texts ------------------------------------------------------------------

QRELS = {
    "NIST": "7 Q0 x 3\n7 Q0 y 0\n8 Q0 x -1\n",
    "pools": "7 129 x 3\n7 127 y 0\n8 1 x -1\n",
    "MS MARCO": "7\t0\tx\t3\n7\t0\ty\t0\n8\t0\tx\t-1\n",
    "3 columns, CRLF": "7 x 3\r\n7 y 0\r\n8 x -1\r\n",
    "BEIR after a blank line": "\nquery-id\tcorpus-id\tscore\n7\tx\t3\n7\ty\t0\n8\tx\t-1\n",
    "BEIR": "query-id\tcorpus-id\tscore\n7\tx\t3\n7\ty\t0\n8\tx\t-1\n",
}


@pytest.mark.parametrize("variant", QRELS)
@pytest.mark.parametrize("name", ["qrels", "qrels.gz"])
def test_qrels_in_their_variants(write, variant, name):
    qrels = formats.read_qrels(write(QRELS[variant], name))
    assert qrels.values.tolist() == [["7", "x", 3], ["7", "y", 0], ["8", "x", -1]]
    assert qrels["relevance"].dtype == "int64"


def test_ids_with_blanks_survive_in_beir_tables(write):
    qrels = formats.read_qrels(write("query-id\tcorpus-id\tscore\n\nq 1\td 1\t1\n"))
    assert qrels.values.tolist() == [["q 1", "d 1", 1]]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("7 0 x 1\n7 0 y 0.5\n", "line 2: expected relevance as an integer; got '0.5'"),
        ("7 0 x 1\n\n7 1 x 1\n", r"line 3: expected each judgment once; got \['7', 'x'\] again"),
        ("7 0 x 1\n7 0 y\n", "line 2: expected judgments of 4 or 3 columns, here 4"),
        ("query-id\tcorpus-id\tscore\n7\tx\t1\n\n7\ty\tz\n", "line 4: expected relevance"),
        ("query-id\tcorpus-id\tscore\n7\t\t1\n", "line 2: expected judgments"),
        ("query-id\tcorpus-id\tscore\n", "expected data; got a header alone"),
        (ONE_OF_EACH, "line 1: expected judgments"),
    ],
)
def test_refusals_of_qrels_name_file_and_line(write, content, message):
    with pytest.raises(ValueError, match=rf"file(, |: ){message}"):
        formats.read_qrels(write(content))


def test_triples_with_and_without_scores(write):
    plain = formats.read_triples(write("7\tx\ty\n7\tx\tz\n", "a.tsv.gz"))
    assert plain.values.tolist() == [["7", "x", "y"], ["7", "x", "z"]]
    scored = formats.read_triples(write("9.5\t-1.5\t7\tx\ty\n"))
    assert scored.to_dict("records") == [
        {"query_id": "7", "positive_id": "x", "negative_id": "y", "positive_score": 9.5,
         "negative_score": -1.5}
    ]  # fmt: skip
    for wrong in ("inf", "-inf", "nan"):
        with pytest.raises(ValueError, match=f"line 2: expected finite scores; got {wrong}"):
            formats.read_triples(write(f"9.5\t-1.5\t7\tx\ty\n9.5\t{wrong}\t7\tx\ty\n"))


TEXTS = {
    "tsv": "1\tfirst  text \n2\t\n",
    "tsv, byte order mark": "\ufeff1\tfirst  text \n2\t\n",
    "tsv, CRLF": "1\tfirst  text \r\n\r\n2\t\r\n",
    "jsonl": jsonl({"_id": "1", "text": "first  text ", "metadata": {}}, {"_id": 2, "text": ""}),
    "array, byte order mark": "\ufeff" + json.dumps(
        [{"id": 1, "text": "first  text "}, {"id": "2", "text": ""}], indent=1
    ),
    "array": json.dumps([{"id": 1, "text": "first  text "}, {"id": "2", "text": ""}], indent=1),
}


@pytest.mark.parametrize("variant", TEXTS)
@pytest.mark.parametrize("name", ["texts", "texts.gz"])
def test_texts_keep_their_blanks(write, variant, name):
    path = write(TEXTS[variant], name)
    expected = [["1", "first  text "], ["2", ""]]
    assert formats.read_queries(path).values.tolist() == expected
    passages = formats.read_passages(path)
    assert passages.values.tolist() == expected
    assert passages.columns.tolist() == ["doc_id", "text"]


def test_passages_have_their_title_before_them(write):
    content = jsonl({"_id": "1", "title": "T", "text": "x"}, {"_id": "2", "title": "", "text": "y"})
    assert formats.read_passages(write(content))["text"].tolist() == ["T x", "y"]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("1\tx\n2\n", "line 2: expected .* 1 cells"),
        ("1\tx\n2\ty\tz\n", "line 2: expected .* 3 cells"),
        ("1\tx\n\tx\n", "line 2: expected"),
        ("1\tx\n\n1\ty\n", r"line 3: expected each id once; got \['1'\] again"),
        (jsonl({"_id": 1, "text": "x"}, {"_id": 2}), r"line 2: .* the key text or .* \['_id'\]"),
        (jsonl({"_id": None, "text": "x"}), "line 1: expected _id .* as a string or an integer"),
        (jsonl({"_id": 1.0, "text": "x"}), "line 1: expected _id .* as a string or an integer"),
        (jsonl({"_id": True, "text": "x"}), "line 1: expected _id .* as a string or an integer"),
        (jsonl({"_id": "", "text": "x"}), "line 1: expected _id .* as a string or an integer"),
        (jsonl({"_id": 1, "text": 5}), "line 1: expected text .* as a string; got 5"),
        ('{"_id": 1, "text": "x"}\n{"_id": 2, "te\n', "line 2: expected JSON; got Unterminated"),
        ('{"_id": 1, "text": "\\ud800"}\n', "line 1: expected characters that UTF-8 has"),
    ],
)
def test_refusals_of_texts_name_file_and_line(write, content, message):
    with pytest.raises(ValueError, match=f"file, {message}"):
        formats.read_passages(write(content))


def test_beir_folder(tmp_path, caplog):
    (tmp_path / "corpus.jsonl").write_text(jsonl({"_id": "d1", "title": "T", "text": "x"}))
    (tmp_path / "queries.jsonl").write_text(jsonl({"_id": "q1", "text": "what"}))
    (tmp_path / "qrels").mkdir()
    table = "query-id\tcorpus-id\tscore\nq1\td1\t1\nq1\tno\t1\nq1\tnor\t1\n"
    (tmp_path / "qrels" / "test.tsv").write_text(table)
    passages, queries, qrels = formats.read_beir(tmp_path)
    assert passages.values.tolist() == [["d1", "T x"]]
    assert queries.values.tolist() == [["q1", "what"]]
    assert len(qrels) == 3
    assert "2 judgments name no doc_id of the folder" in caplog.text
    with pytest.raises(ValueError, match=r"dev.tsv: .* no such file: splits here are \['test'\]"):
        formats.read_beir(tmp_path, "dev")


# --- records ------------------------------------------------------------------------------------


def hit(docid, rank, score=1.0, qid=7):
    return {"content": f"text {docid}", "qid": qid, "docid": docid, "rank": rank, "score": score}


def request(qid, *docids, **doc):
    doc = doc or {"text": "t"}
    passages = [{"docid": d, "score": -float(i), "doc": doc} for i, d in enumerate(docids)]
    return {"query": {"text": "what", "qid": qid}, "candidates": passages}


OLD = [
    {"query": "what", "hits": [hit("x", 1, 2.5), hit("y", 2, 1.5)]},
    {"query": "who", "hits": [hit("0-0", 1, 1.0, qid="8")]},
]
LAYOUTS = {
    "indented array": lambda records: json.dumps(records, indent=2),
    "array in one line": json.dumps,
    "lines": lambda records: jsonl(*records),
    "objects one after another": lambda records: "".join(json.dumps(r, indent=1) for r in records),
    "arrays one after another": lambda rs: "\n".join(json.dumps([r], indent=1) for r in rs),
    "arrays line by line": lambda records: jsonl(*([record] for record in records)),
}


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("name", ["r.json", "r.jsonl.gz"])
def test_rank_llm_results_in_every_layout(write, layout, name):
    frame = read_candidates(write(LAYOUTS[layout](OLD), name))
    assert ranking(frame) == "7: x y, 8: 0-0"
    assert frame["query"].tolist() == ["what", "what", "who"]
    assert frame["text"].tolist() == ["text x", "text y", "text 0-0"]
    new = read_candidates(write(LAYOUTS[layout]([request("7", "x", 5), request(8, "z")]), name))
    assert ranking(new) == "7: x 5, 8: z"
    assert new["score"].tolist() == [0.0, -1.0, 0.0]


def test_hits_are_ordered_by_rank_and_candidates_by_place(write):
    hits = [{"query": "q", "hits": [hit("x", 1, 9.0), hit("y", 0, 1.0)]}]
    assert ranking(read_candidates(write(hits))) == "7: y x"
    stale = request(7, "x", "y")
    stale["candidates"][1]["score"] = 5.0
    assert ranking(read_candidates(write(stale))) == "7: x y"


@pytest.mark.parametrize("key", ["text", "segment", "contents", "content", "body", "passage"])
def test_texts_of_requests_have_many_names(write, key):
    frame = read_candidates(write(request(7, "x", **{key: "t", "title": "T", "url": "u"})))
    assert frame["text"].tolist() == ["T t"]


PASSAGES = [{"docid": d, "rank": i, "text": f"t{d}"} for i, d in enumerate("abc")]
MARCO = {
    "query": "q", "query_id": 7, "negative_passages": [],
    "positive_passages": [{"docid": "b", "title": "", "text": "tb"}, {"docid": "z", "text": "tz"}],
    "retrieved_passages": PASSAGES,
}  # fmt: skip


def test_rankgpt_lists_with_their_permutations(write, caplog):
    caplog.set_level(logging.INFO)
    records = [{**MARCO, "query_id": i} for i in range(5)]
    bad = ["[1] > [2]", "[1] > [2] > [2] > [3]", "[4] > [1] > [2]", "Sure: [1] > [2] > [3]"]
    train, answers = write(jsonl(*records), "t.jsonl"), write(["[3] > [1] > [2]", *bad], "gpt.json")
    frame = formats.read_rankgpt(train, answers)
    assert ranking(frame).startswith("0: a b c, 1: a b c")
    assert frame["teacher_rank"].tolist()[:3] == [2, 3, 1]
    assert frame["teacher_rank"][3:].isna().all()
    assert frame["relevance"].fillna(0).tolist() == [0, 1, 0] * 5
    assert "'n_answers': 5, 'n_missing': 2, 'n_repeated': 1, 'n_unknown': 1, 'n_unread': 1" in (
        caplog.text
    )
    lists = RankedLists.from_frame(frame, pd.Index(list("01234")), pd.Index(list("abc")))
    assert lists.teacher_rank.tolist() == [[2, 3, 1]] + [[0, 0, 0]] * 4
    assert lists.relevance[0].tolist() == [-1, 1, -1]
    assert "teacher_rank" not in read_candidates(train)
    with pytest.raises(ValueError, match=r"gpt.json: expected an answer for each of 5 .* got 4"):
        formats.read_rankgpt(train, write(bad, "gpt.json"))


def test_rankgpt_padding_is_no_passage(write):
    padding = {"docid": "", "text": "<padding_passage>"}
    padded = {**MARCO, "retrieved_passages": [*PASSAGES, padding]}
    answers = write(["[4] > [3] > [1] > [2]"], "gpt.json")
    frame = formats.read_rankgpt(write(jsonl(padded), "t.jsonl"), answers)
    assert frame["teacher_rank"].tolist() == [2, 3, 1]


@pytest.mark.parametrize("name", ["l.jsonl", "l.parquet"])
def test_lists_of_sentence_transformers(write, tmp_path, name):
    def made(rows):
        if name == "l.jsonl":
            return write(jsonl(*rows), name)
        pd.DataFrame(rows).to_parquet(tmp_path / name)
        return tmp_path / name

    teacher = read_candidates(made([{"query_id": "7", "doc_ids": ["y", "x"]}]))
    assert ranking(teacher) == "7: y x"
    assert teacher["teacher_rank"].tolist() == [1, 2]
    assert teacher["teacher_rank"].dtype == "Int64"
    assert teacher["score"].isna().all()
    labelled = read_candidates(made([{"query_id": "7", "doc_ids": ["y", "x"], "labels": [1, 0]}]))
    assert labelled["relevance"].tolist() == [1, 0]
    assert "teacher_rank" not in labelled
    unit = "line" if name == "l.jsonl" else "row"
    with pytest.raises(ValueError, match=rf"{name}, {unit} 2: expected a label for each of 2"):
        read_candidates(made([{"query_id": str(i), "doc_ids": ["y", "x"], "labels": [1, 0][i:]}
                              for i in range(2)]))  # fmt: skip


def test_n_way_lines_are_ordered_by_the_teachers_score(write):
    frame = read_candidates(write(jsonl([7, [3, -1.5], [1, 2.5]], ["8", ["x", 0]]), "n.json"))
    assert ranking(frame) == "7: 1 3, 8: x"
    assert frame["teacher_rank"].tolist() == [1, 2, 1]


def test_rows_of_lightning_ir(write, caplog):
    rows = [
        {"query_id": 7, "doc_id": 1, "score": 1.5, "query": "q", "text": "t1", "relevance": 0},
        {"query_id": 7, "doc_id": 2, "score": 2.5, "query": "q", "text": "t2", "relevance": 1},
    ]
    frame = read_candidates(write(jsonl(*rows)))
    assert ranking(frame) == "7: 2 1"
    assert frame["relevance"].tolist() == [1, 0]
    ranked = [row | {"rank": i} for i, row in enumerate(rows)]
    assert ranking(read_candidates(write(jsonl(*ranked)))) == "7: 1 2"
    with pytest.raises(ValueError, match="line 2: expected rank everywhere or nowhere"):
        read_candidates(write(jsonl(ranked[0], rows[1])))


@pytest.mark.parametrize("kind", ["str", "int64", "category", "object"])
def test_parquet_of_rank_distillm_and_pyterrier(tmp_path, kind, caplog):
    caplog.set_level(logging.INFO)
    frame = pd.DataFrame({"qid": ["7", "7", "8"], "docid": [0, 1, 2], "docno": ["31", "32", "31"]})
    frame = frame.astype({"qid": kind, "docno": kind}).assign(rank=[1, 0, 0], score=[1, 2, 3.0])
    frame.assign(note="n").to_parquet(tmp_path / "p.parquet")
    found = read_candidates(tmp_path / "p.parquet")
    assert ranking(found) == "7: 32 31, 8: 31"
    assert found["score"].tolist() == [2, 1, 3]
    pd.testing.assert_frame_equal(found, formats.from_frame(frame))


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        ({"docno": ["x", None]}, "row 2: expected an id that is a str or an integer"),
        ({"docno": ["x", ""]}, "row 2: expected an id"),
        ({"docno": [1.0, 2.0]}, "row 1: expected an id .* got 1.0"),
        ({"docno": ["x", "x"]}, "row 2: expected each passage once .* first in row 1"),
        ({"score": [1.0, float("nan")]}, "row 2: expected finite scores"),
        ({"score": ["1", "2"]}, "expected score as numbers; got str"),
        ({"rank": [0.0, 1.0]}, "expected rank as integers; got float64"),
        ({"text": ["t", None]}, "expected text as str; got str, 1 missing"),
        ({"query": [1, 2]}, "expected query as str; got int64"),
        ({"relevance": [0.5, 1]}, "expected relevance as integers"),
    ],
)
def test_refusals_of_tables_name_the_row(tmp_path, columns, message):
    frame = pd.DataFrame({"qid": ["7", "7"], "docno": ["x", "y"]} | columns)
    with pytest.raises(ValueError, match=f"frame(, |: ){message}"):
        formats.from_frame(frame)
    frame.to_parquet(tmp_path / "p.parquet")
    with pytest.raises(ValueError, match=f"p.parquet(, |: ){message}"):
        read_candidates(tmp_path / "p.parquet")


def test_a_column_of_ids_must_be_there():
    with pytest.raises(ValueError, match="a column doc_id or docno .* rename one"):
        formats.from_frame(pd.DataFrame({"qid": ["7"], "document": ["x"]}))
    with pytest.raises(ValueError, match="frame: expected candidates; got none"):
        formats.from_frame(pd.DataFrame({"qid": [], "docno": []}, dtype="str"))


def test_hard_negatives_by_system(write):
    record = {
        "qid": 7, "pos": [{"pid": 1, "ce-score": 9.5}],
        "neg": {"bm25": [{"pid": 3, "ce-score": -1.5}, {"pid": 4, "ce-score": 2.5}], "ance": []},
    }  # fmt: skip
    frame = formats.read_hard_negatives(write(jsonl(record)))
    assert frame.values.tolist() == [
        ["7", "1", "pos", 1, 9.5], ["7", "3", "bm25", 1, -1.5], ["7", "4", "bm25", 2, 2.5]
    ]  # fmt: skip
    with pytest.raises(ValueError, match="line 1: expected each passage of a system once"):
        formats.read_hard_negatives(write(jsonl({"qid": 7, "pos": [], "neg": {"bm25": [3, 3]}})))


def test_invocations_old_and_new(write):
    old = "".join(json.dumps({"prompt": p, "response": "[1]"}, indent=4) for p in "ab")
    frame = formats.read_invocations(write(old))
    assert frame["prompt"].tolist() == ["a", "b"]
    assert frame[["query_id", "input_tokens", "output_tokens"]].isna().all(axis=None)
    message = [{"role": "user", "content": "b"}]
    calls = [
        {"prompt": "a", "response": "[1]", "input_token_count": 9, "output_token_count": 2},
        {"prompt": message, "response": "[2]", "input_token_count": 8, "output_token_count": None},
    ]
    new = [{"query": {"text": "q", "qid": 7}, "invocations_history": calls}]
    frame = formats.read_invocations(write(json.dumps(new, indent=1)))
    assert frame["query_id"].tolist() == ["7", "7"]
    assert json.loads(frame["prompt"][1]) == message
    assert frame["input_tokens"].tolist() == [9, 8]
    assert frame["output_tokens"].isna().tolist() == [False, True]


REFUSED_RECORDS = {
    "two queries": (
        [{"query": "q", "hits": [hit("x", 1), hit("y", 2, qid=8)]}],
        r"line 1: expected hits of one query id; got \['7', '8'\]",
    ),
    "no hits": (jsonl(OLD[0], {"query": "q", "hits": []}), "line 2: expected hits of one query id"),
    "no candidates": (jsonl(request(7, "x"), request(8)), "line 2: expected at least one entry"),
    "query again": (
        jsonl(request(7, "x"), request(8, "x"), request(7, "y")),
        "line 3: expected one record for each query; got '7' again, first in line 1",
    ),
    "passage again": (jsonl(request(8, "x"), request(7, "x", "x")), "line 2: expected each"),
    "rank in part": (
        jsonl({"query": "q", "hits": [hit("x", 1), hit("y", None)]}),
        "line 1: expected rank everywhere or nowhere",
    ),
    "rank": (jsonl({"query": "q", "hits": [hit("x", "1")]}), "line 1: expected rank as an integer"),
    "score": (jsonl(OLD[0], {"query": "q", "hits": [hit("x", 1, "1", 8)]}), "line 2: .* finite"),
    "infinite": (jsonl({"query": "q", "hits": [hit("x", 1, float("inf"))]}), "line 1: .* finite"),
    "no text": (jsonl(request(7, "x", url="u")), "line 1: expected the key text or segment"),
    "line": ("[" + jsonl(OLD[0]) + ",\n {", "line 3: expected JSON"),
    "place": (
        json.dumps([OLD[0], OLD[1] | {"hits": 5}], indent=1),
        f"line {json.dumps(OLD[:1], indent=1).count(chr(10)) + 1}: expected hits as a list",
    ),
    "cut off": (json.dumps(OLD, indent=1)[:-1], "expected a ] for each"),
    "bracket": (json.dumps(OLD, indent=1) + "]", "expected a ] for each"),
    "n-way": (jsonl([7, ["x", 1.0]], [7, "x"]), r"line 2: expected \[qid, \[pid, score\]"),
    "no score": (jsonl([7, ["x", None]]), "line 1: expected a score for each passage"),
    "empty array": ("[]", "expected candidates in one of these formats"),
    "not UTF-8": (b'{"query": "\n\xff"}', "line 2: expected UTF-8"),
}  # fmt: skip


@pytest.mark.parametrize("what", REFUSED_RECORDS)
def test_refusals_of_records_name_file_and_line(write, what):
    content, message = REFUSED_RECORDS[what]
    with pytest.raises(ValueError, match=f"r.json.*{message}"):
        read_candidates(write(content, "r.json"))


# --- the door -----------------------------------------------------------------------------------

TOP1000 = "7\ty\twhat is x\ty is  z \n7\tx\twhat is x\tx\n"
RECOGNISED = {
    "trec_run": ONE_OF_EACH, "msmarco_top1000": TOP1000, "rank_llm": jsonl(request(7, "x")),
    "rankgpt": jsonl(MARCO), "lists": jsonl({"query_id": 7, "doc_ids": ["x"]}),
    "n_way": jsonl([7, ["x", 0.5]]), "rows": jsonl({"qid": 7, "docno": "x"}),
}  # fmt: skip


@pytest.mark.parametrize("name", RECOGNISED)
def test_formats_are_recognised_and_can_be_named(write, name, caplog):
    caplog.set_level(logging.INFO)
    path = write(RECOGNISED[name], "data.txt.gz")
    frame = read_candidates(path)
    assert f"read as {name}" in caplog.text
    pd.testing.assert_frame_equal(frame, read_candidates(path, name))


def test_every_format_is_recognised_or_must_be_named():
    assert set(formats.FORMATS) - set(RECOGNISED) == {"msmarco_run"}  # three columns of integers


def test_top1000_has_texts_and_no_order(write, caplog):
    frame = read_candidates(write(TOP1000))
    assert ranking(frame) == "7: y x"
    assert frame["text"].tolist() == ["y is  z ", "x"]
    assert "no ranks and scores" in caplog.text


def test_msmarco_runs_have_ranks_where_others_have_scores(write):
    path = write("7\tx\t2\n7\ty\t1\n")
    assert ranking(read_candidates(path, "msmarco_run")) == "7: y x"
    assert ranking(read_candidates(path, "trec_run")) == "7: x y"


@pytest.mark.parametrize(
    ("content", "hint"),
    [
        ("7\tx\t2\n", "name its format"), ("7 x\n", "name its format"),
        ("7 0 x 1\n", "use read_qrels"), ("7\t0\tx\t1\n", "use read_qrels"),
        ("9.5\t1.5\t7\tx\ty\n", "use read_triples"),
        (jsonl({"prompt": "a", "response": "b"}), "use read_invocations"),
        (jsonl({"query": {}, "invocations_history": []}), "use read_invocations"),
        (jsonl({"qid": 7, "pos": [], "neg": {}}), "use read_hard_negatives"),
        (jsonl({"_id": 7, "text": "x"}), "use read_passages or read_queries"),
        ("some prose", "name its format"), ("that has six words, no more", "name its format"),
    ],
)  # fmt: skip
def test_what_is_not_recognised_is_refused_with_a_list_of_formats(write, content, hint):
    with pytest.raises(ValueError, match=f"file, line 1: expected .*trec_run: .*rows: .*{hint}"):
        read_candidates(write(content))


def test_other_names_and_files_are_refused(write, tmp_path):
    with pytest.raises(ValueError, match="expected a format out of trec_run, .* got 'trec'"):
        read_candidates(write(ONE_OF_EACH), "trec")
    pd.DataFrame({"a": [1]}).to_parquet(tmp_path / "p.parquet")
    with pytest.raises(ValueError, match=r"p.parquet: expected candidates .* got keys \['a'\]"):
        read_candidates(tmp_path / "p.parquet")
    with pytest.raises(ValueError, match="file: expected a whole parquet file"):
        read_candidates(write(b"PAR1 and no more"))
    with pytest.raises(FileNotFoundError, match="nowhere"):
        read_candidates(tmp_path / "nowhere")


# --- writing ------------------------------------------------------------------------------------

ids = st.text(st.characters(codec="utf-8", exclude_categories=("Z", "C")), min_size=1, max_size=5)
floats32 = st.floats(width=32, allow_nan=False, allow_infinity=False)


@st.composite
def candidates(draw):
    """Frames as read: some queries, scores that decrease in float32 or none, texts of all kinds."""
    scored, parts = draw(st.booleans()), []
    for query_id in draw(st.lists(ids, min_size=1, max_size=4, unique=True)):
        doc_ids = draw(st.lists(ids, min_size=1, max_size=6, unique=True))
        n = len(doc_ids)
        scores = sorted(draw(st.lists(floats32, min_size=n, max_size=n, unique=True)))[::-1]
        texts = draw(st.lists(st.text(st.characters(codec="utf-8")), min_size=n, max_size=n))
        parts.append(
            pd.DataFrame({"doc_id": doc_ids, "score": scores, "text": texts}).assign(
                query_id=query_id, rank=range(1, n + 1), query=draw(st.text(max_size=9))
            )
        )
    frame = pd.concat(parts, ignore_index=True)
    kinds = {name: "str" for name in ("query_id", "doc_id", "query", "text")}
    frame = frame.astype(kinds | {"rank": "int64", "score": "float64"})
    frame = frame if scored else frame.assign(score=float("nan"))
    return frame[["query_id", "doc_id", "rank", "score", "query", "text"]]


@few
@given(frame=candidates(), seed=st.integers(0, 9), packed=st.booleans())
def test_what_is_written_is_read_back(tmp_path_factory, frame, seed, packed):
    folder, suffix = tmp_path_factory.mktemp("formats"), ".gz" if packed else ""
    shuffled = frame.sample(frac=1, random_state=seed)
    first_seen = shuffled["query_id"].unique()
    frame = frame.set_index("query_id").loc[first_seen].reset_index()
    plain = frame[["query_id", "doc_id", "rank", "score"]]
    filled = frame.assign(score=frame["score"].fillna(-frame["rank"]))
    formats.write_parquet(shuffled, folder / "p.parquet")
    pd.testing.assert_frame_equal(read_candidates(folder / "p.parquet"), plain)
    formats.write_run(shuffled, folder / f"r.run{suffix}", tag="own")
    pd.testing.assert_frame_equal(read_candidates(folder / f"r.run{suffix}"), filled[plain.columns])
    formats.write_requests(shuffled, folder / f"r.jsonl{suffix}")
    pd.testing.assert_frame_equal(read_candidates(folder / f"r.jsonl{suffix}"), filled)
    qrels = plain.assign(relevance=plain["rank"] - 2)[["query_id", "doc_id", "relevance"]]
    formats.write_qrels(qrels, folder / f"qrels{suffix}")
    pd.testing.assert_frame_equal(formats.read_qrels(folder / f"qrels{suffix}"), qrels)
    assert not list(folder.glob("*.partial"))


FRAME = pd.DataFrame({"query_id": ["7", "7"], "doc_id": ["x", "y"], "rank": [1, 2]})


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        ({"score": [1.0, 1.0]}, "decrease strictly .* got 1.0 at rank 2 .'y'. .*settle_ties"),
        ({"score": [1.0, 2.0]}, "decrease strictly"),
        ({"score": [1.0, 1.0 - 1e-12]}, "decrease strictly with rank in float32"),
        ({"score": [1e300, 1.0]}, "decrease strictly with rank in float32"),
        ({"doc_id": ["x", "y z"]}, "row 2: expected ids without blanks.* 'y z' as doc_id"),
        ({"query_id": ["7\t", "7"]}, "row 1: expected ids without blanks"),
        ({"doc_id": ["x", "x"]}, "row 2: expected each passage once"),
    ],
)
def test_runs_that_evaluation_would_read_otherwise_are_not_written(tmp_path, columns, message):
    path = tmp_path / "r.run"
    path.write_text("before")
    with pytest.raises(ValueError, match=message):
        formats.write_run(FRAME.assign(**columns), path)
    assert path.read_text() == "before"


def test_neighbours_in_float32_stay_apart(tmp_path):
    """Six decimals, as many tools write them, would make two ties of these three."""
    close = [1e-7, 9.9e-8, 9.8e-8]
    frame = FRAME.reindex([0, 1, 1]).assign(doc_id=["x", "y", "z"], rank=[1, 2, 3], score=close)
    formats.write_run(frame, tmp_path / "r.run")
    assert read_candidates(tmp_path / "r.run")["score"].tolist() == close


def test_other_refusals_of_writers(tmp_path):
    path = tmp_path / "r"
    with pytest.raises(ValueError, match="expected a tag without blanks; got 'my run'"):
        formats.write_run(FRAME, path, tag="my run")
    with pytest.raises(ValueError, match="expected texts; got no query and text"):
        formats.write_requests(FRAME, path)
    with pytest.raises(ValueError, match=r"none called \['relevance'\]"):
        formats.write_qrels(FRAME, path)
    with pytest.raises(ValueError, match="expected integers as relevance; got float64"):
        formats.write_qrels(FRAME.assign(relevance=0.5), path)
    with pytest.raises(ValueError, match="row 2: expected each judgment once"):
        formats.write_qrels(FRAME.assign(relevance=1, doc_id="x"), path)
    assert not list(tmp_path.iterdir())


def test_a_broken_off_write_leaves_the_old_file(tmp_path):
    path = tmp_path / "r.jsonl"
    path.write_text("before")
    half = FRAME.assign(query="q", text=pd.Series(["whole", "\ud800"], dtype=object))
    with pytest.raises(UnicodeEncodeError):
        formats.write_requests(half, path)
    assert path.read_text() == "before"
    assert [path.name for path in tmp_path.iterdir()] == ["r.jsonl"]


def test_equal_frames_give_equal_packed_files(tmp_path):
    for name in ("a.run.gz", "b.run.gz"):
        formats.write_run(FRAME, tmp_path / name)
    first, second = ((tmp_path / name).read_bytes() for name in ("a.run.gz", "b.run.gz"))
    assert first == second
    assert first[4:8] == bytes(4)  # no time, even if both were written in the same second


# --- real files ---------------------------------------------------------------------------------

N_QUERIES = {"dl19": 43, "dl20": 54, "dl22": 76}


def real_files(pattern):
    return sorted(Path(MIRROR or ".", "trec-dl").glob(pattern))


def n_queries(path):
    return next(n for name, n in N_QUERIES.items() if f"_{name}_" in path.name)


@real
@pytest.mark.parametrize(
    ("folder", "n_files"), [("retrieve_results", 13), ("rerank_results", 57)]
)
def test_real_results_have_100_candidates_for_each_query(folder, n_files, caplog):
    caplog.set_level(logging.INFO)
    paths = real_files(f"{folder}/*/*")
    assert len(paths) == n_files
    for path in paths:
        frame = read_candidates(path)
        counts = frame["rank"].value_counts()
        assert counts.to_dict() == dict.fromkeys(range(1, 101), n_queries(path))
        if folder == "retrieve_results":
            assert (frame["text"] != "").all()
    assert caplog.text.count("ordered by rank; scores agree") == n_files


@real
def test_real_hits_are_those_that_json_gives():
    path = real_files("retrieve_results/SPLADE*/*dl22*")[0]
    hits = [hit for record in json.loads(path.read_text()) for hit in record["hits"]]
    frame = read_candidates(path)
    assert frame["doc_id"].tolist() == [hit["docid"] for hit in hits]
    assert frame["query_id"].tolist() == [str(hit["qid"]) for hit in hits]
    assert frame["score"].tolist() == [hit["score"] for hit in hits]
    assert frame["text"].tolist() == [hit["content"] for hit in hits]


@real
@pytest.mark.parametrize(
    ("name", "n"), [("trec-dl/qrels/qrels.dl19-passage.txt", 9260),
                    ("trec-dl/qrels/qrels.dl20-passage.txt", 11386),
                    ("vaswani/qrels", 2083), ("cranfield/cranqrel.trec.txt", 1837)]
)  # fmt: skip
def test_real_judgments(name, n):
    assert len(formats.read_qrels(Path(MIRROR, name))) == n


@real
def test_real_first_stage_runs():
    lengths = {path.name: len(read_candidates(path)) for path in real_files("runs/*")}
    assert sorted(lengths.values()) == [43 * 500, 43 * 500, 54 * 500, 54 * 500]


@real
def test_real_history_has_nine_windows_for_each_query():
    frame = formats.read_invocations(real_files("prompts_and_responses/*/*")[0])
    assert len(frame) == 43 * 9
    assert frame["response"].str.fullmatch(r"\[.*\]\s*").mean() > 0.9
    assert (frame["prompt"].str.count(r"\n\[20\] ") >= 1).all()
