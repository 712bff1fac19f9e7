"""The live page: its BM25 is ours, and its example is what the exported student says.

Browsers run the rest in test_browser.py.
"""

import json
import random
import re
import shutil
import subprocess
from dataclasses import replace

import pytest
from conftest import small_stage
from Stemmer import Stemmer

from rdl_core.data.collections import load
from rdl_core.data.retrieval import bm25
from rdl_study import live
from rdl_study.profile import load_profile
from rdl_study.store import project_folder

SCRIPTS = project_folder() / "book" / "_static" / "live"
PAGE = "<html><!-- live -->\n<p>nothing yet</p>\n<!-- /live --></html>"
STEMS = """
import { stem } from "SCRIPTS/stem.js";
import { readFileSync } from "node:fs";
console.log(JSON.stringify(JSON.parse(readFileSync(0)).map(stem)));
"""
SEARCH = """
import { BM25 } from "SCRIPTS/bm25.js";
import { readFileSync } from "node:fs";
const { texts, stop_words, queries } = JSON.parse(readFileSync(0));
const index = new BM25(texts, stop_words);
console.log(JSON.stringify(queries.map((query) => index.search(query, 20))));
"""


@pytest.fixture(scope="module")
def collection():
    return load("rdl/pydocs/test")


def in_node(script, given):
    """What a script prints, asked on standard input, as JSON."""
    if not (node := shutil.which("node")):
        pytest.skip("node is not installed")
    code = script.replace("SCRIPTS", SCRIPTS.as_uri())
    done = subprocess.run(
        [node, "--input-type=module", "-e", code], input=json.dumps(given), capture_output=True,
        text=True, check=False,
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def test_every_word_of_the_collection_has_snowballs_stem(collection):
    text = " ".join([*collection.passages["text"], *collection.queries["query"]]).lower()
    words = sorted(set(re.findall(r"\b\w\w+\b", text)))
    draw = random.Random(0)
    ends = ["s", "ed", "ing", "ly", "ies", "ness", "ation", "izer", "alli", "ogist", "y", "e"]
    words += [draw.choice(words) + draw.choice(ends) for _ in range(20_000)]
    found = in_node(STEMS, words)
    stems = Stemmer("english").stemWords(words)
    wrong = [x for x in zip(words, stems, found, strict=True) if x[1] != x[2]]
    assert wrong == []
    assert len(words) > 25_000


def test_rankings_are_those_of_python(collection):
    """Up to the order of passages with equal scores, which bm25s leaves open."""
    queries = collection.queries.head(150)
    expected = bm25(queries, collection.passages, depth=20)
    ids, texts = (collection.passages[column].tolist() for column in ("doc_id", "text"))
    asked = {
        "texts": texts, "stop_words": list(live.STOPWORDS_EN), "queries": queries["query"].tolist()
    }
    found = in_node(SEARCH, asked)
    for query_id, rows in zip(queries["query_id"], found, strict=True):
        python = expected[expected["query_id"] == query_id]
        scores = [row["score"] for row in rows]
        assert scores == pytest.approx(python["score"].tolist(), rel=1e-6)
        last = scores[-1] * (1 + 1e-5)
        above = {ids[row["row"]] for row in rows if row["score"] > last}
        assert above == set(python.loc[python["score"] > last, "doc_id"])


@pytest.fixture(scope="module")
def made(tmp_path_factory, encoder_folder):
    """A profile of a tiny student, in the place of all others."""
    mini = load_profile("mini")
    stage = small_stage(mini.stage1, steps=1)
    profile = replace(
        mini, encoder=encoder_folder, stage1=stage, stage2=stage, label="<b>tiny</b>",
        precision="float32",
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RDL_RUNS", str(tmp_path_factory.mktemp("runs")))
        patch.setattr(live, "load_profile", lambda name: profile)
        patch.setattr(live, "_SEARCHED", replace(live._SEARCHED, n_queries=6))
        yield


def site(folder):
    (folder / "book").mkdir()
    (folder / "book" / "live.html").write_text(PAGE)
    return folder


@pytest.mark.usefixtures("made")
def test_without_npm_the_page_keeps_its_example(tmp_path, monkeypatch):
    monkeypatch.setenv("RDL_CACHE", str(tmp_path / "cache"))  # where npm's files may lie already
    (tmp_path / "git").symlink_to(shutil.which("git"))
    monkeypatch.setenv("PATH", str(tmp_path))
    said = live.make_live("tiny", site(tmp_path))
    assert said == "live page: an example without the model, because npm is not installed"
    page = (tmp_path / "book" / "live.html").read_text()
    assert "nothing yet" not in page
    assert "<form" not in page
    assert "data-ready" not in page
    assert "<b>tiny</b>" not in page
    assert "&lt;b&gt;tiny" in page
    assert page.count('<li class="rdl-hit') == 21  # twenty passages, and a row to copy
    live.make_live("tiny", tmp_path)
    assert (tmp_path / "book" / "live.html").read_text() == page
