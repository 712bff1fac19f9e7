"""The live page: its BM25 is ours. Browsers run the rest in test_browser.py."""

import json
import random
import re
import shutil
import subprocess
from dataclasses import replace

import pytest
from Stemmer import Stemmer

from rdl_core.data.collections import load
from rdl_core.data.retrieval import bm25
from rdl_study import live, npm
from rdl_study.store import project_folder

COLLECTION = load("rdl/pydocs/test")
SCRIPTS = project_folder() / "book" / "_static" / "live"
STEMS = 'import { stem } from "SCRIPTS/stem.js"; const answer = (words) => words.map(stem);'
SEARCH = """
import { BM25 } from "SCRIPTS/bm25.js";
const answer = ({ texts, stop_words, queries }) => {
  const index = new BM25(texts, stop_words);
  return queries.map((query) => index.search(query, 20));
};
"""
ANSWER = """
import { readFileSync } from "node:fs";
console.log(JSON.stringify(answer(JSON.parse(readFileSync(0)))));
"""


def in_node(script, value):
    """What the script's `answer` makes of a value, as JSON."""
    if not (node := shutil.which("node")):
        pytest.skip("node is not installed")
    code = (script + ANSWER).replace("SCRIPTS", SCRIPTS.as_uri())
    command = [node, "--input-type=module", "-e", code]
    return json.loads(subprocess.check_output(command, input=json.dumps(value), text=True))


def test_every_word_of_the_collection_has_snowballs_stem():
    text = " ".join([*COLLECTION.passages["text"], *COLLECTION.queries["query"]]).lower()
    words, draw = sorted(set(re.findall(r"\b\w\w+\b", text))), random.Random(0)
    ends = ["s", "ed", "ing", "ly", "ies", "ness", "ation", "izer", "alli", "ogist", "y", "e"]
    words += [draw.choice(words) + draw.choice(ends) for _ in range(20_000)]
    stems = zip(words, Stemmer("english").stemWords(words), in_node(STEMS, words), strict=True)
    assert [x for x in stems if x[1] != x[2]] == []
    assert len(words) > 25_000


def test_rankings_are_those_of_python():
    """Up to the order of passages with equal scores, which bm25s leaves open."""
    queries = COLLECTION.queries.head(150)
    expected = bm25(queries, COLLECTION.passages, depth=20)
    ids, texts = (COLLECTION.passages[column].tolist() for column in ("doc_id", "text"))
    value = {"texts": texts, "stop_words": live.STOPWORDS_EN, "queries": queries["query"].tolist()}
    for query_id, rows in zip(queries["query_id"], in_node(SEARCH, value), strict=True):
        python = expected[expected["query_id"] == query_id]
        scores = [row["score"] for row in rows]
        assert scores == pytest.approx(python["score"].tolist(), rel=1e-6)
        last = scores[-1] * (1 + 1e-5)
        above = {ids[row["row"]] for row in rows if row["score"] > last}
        assert above == set(python.loc[python["score"] > last, "doc_id"])


def test_without_npm_the_page_keeps_its_example(tmp_path, monkeypatch, runs, tiny):
    monkeypatch.setattr(live, "load_profile", lambda name: replace(tiny, label="<b>tiny</b>"))
    monkeypatch.setattr(live, "_SEARCHED", replace(live._SEARCHED, n_queries=6))
    monkeypatch.setenv("RDL_CACHE", str(tmp_path / "cache"))  # where npm's files may lie already
    monkeypatch.setattr(npm, "_REGISTRY", "http://127.0.0.1:9")  # where nobody listens
    file = tmp_path / "book" / "live.html"
    with pytest.raises(ValueError, match="no page .*build the book first"):
        live.make_live("tiny", tmp_path)
    file.parent.mkdir()
    file.write_text("<html><!-- live -->\n<p>nothing yet</p>\n<!-- /live --></html>")
    line = live.make_live("tiny", tmp_path)
    assert re.match("live page: an example without the model, because .*127.0.0.1", line)
    page = file.read_text()
    assert not any(x in page for x in ("nothing yet", "<form", "data-ready", "<b>tiny</b>"))
    assert "&lt;b&gt;tiny" in page
    assert page.count('<li class="rdl-hit') == 21  # twenty passages, and a row to copy
    live.make_live("tiny", tmp_path)
    assert file.read_text() == page
