"""Collections: each part is read, named or refused; ranked candidates find their texts."""

import gzip
import hashlib
import json
import os
import subprocess
import sys
from typing import NamedTuple

import ir_datasets
import pandas as pd
import pytest
from bm25s.stopwords import STOPWORDS_EN_PLUS
from common import child_environment
from hypothesis import given
from hypothesis import strategies as st
from ir_datasets.formats import BaseDocs, BaseQueries
from ir_datasets.indices import Docstore

from rdl_core.data import collections, downloads, published, pydocs
from rdl_core.data.collections import crops, fingerprint, load, read_corpus, read_judgments

FACTS = {  # queries, passages, judgments; recorded runs know their data by the fingerprint
    "rdl/trec-dl-2019": (43, 10_852, 9260, "79300d55e346e548-e5daaae48d7206c8-20e0bb622ed58136"),
    "rdl/trec-dl-2020": (54, 14_091, 11_386, "2de35c507ee94917-ac7f0899881deb07-294ee413908b7b34"),
    "rdl/trec-dl-2022": (76, 16_660, 0, "765948046f1dd8b5-bb77e29665d0bddf"),
    "rdl/vaswani": (93, 11_429, 2083, "d7e980a1f50e97e6-c807061128f42178-47fb67bdf9faa386"),
    "rdl/cranfield": (225, 1400, 1837, "38a24c6c7858ab02-d33ccff5b4ec2f22-8f3154605db6eed9"),
}
OURS = ["rdl/pydocs", *(f"rdl/pydocs/{split}" for split in pydocs.SPLITS), *FACTS]


def write_files(folder, files, end=""):
    for name, text in files.items():
        path = folder / f"{name}{end}"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(gzip.compress(text.encode()) if end else text.encode())


def rows(frame):
    return frame.values.tolist()


def test_splits_share_passages_and_fingerprints_see_every_value_and_the_order(monkeypatch):
    collection, (queries, passages, qrels) = load("rdl/pydocs/dev"), pydocs.load()
    own = queries.loc[queries["split"] == "dev", ["query_id", "query"]]
    assert rows(collection.queries) == rows(own) != []
    assert rows(collection.passages) == rows(passages)
    assert rows(collection.qrels) == rows(qrels[qrels["query_id"].isin(own["query_id"])])
    prints = [load(f"rdl/pydocs/{split}").fingerprint.split("-") for split in pydocs.SPLITS]
    assert [len(set(part)) for part in zip(*prints, strict=True)] == [3, 1, 3]
    frame = passages.head(9)
    changed = [frame.replace({name: {frame.loc[4, name]: ""}}) for name in frame]
    assert len({fingerprint(f) for f in (frame, *changed, frame[::-1])}) == 4
    monkeypatch.setattr(collections, "_CHUNK", 1000)
    own = load.__wrapped__("rdl/pydocs/dev")  # all texts of 8.8 M passages once went into a frame
    assert own.passages_fingerprint == fingerprint(passages)
    assert own.doc_ids.tolist() == passages["doc_id"].tolist()
    assert rows(own.passages_of(passages["doc_id"][[1500, 7]])) == rows(passages.loc[[7, 1500]])
    assert max(map(len, own.passage_chunks())) == 1000
    assert "passages" not in vars(own)


class TitledDoc(NamedTuple):
    doc_id: str
    title: str

    def default_text(self):
        return f"{self.title}!"


class Docs(BaseDocs):
    def docs_iter(self):
        return iter([TitledDoc("1", "one"), TitledDoc("2", "two")])

    def docs_store(self):  # looks texts up without reading the above
        store = Docstore(TitledDoc)
        store.get_many_iter = lambda ids: (TitledDoc(x, f"looked up {x}") for x in ids if x.isdigit())
        return store


class Unreachable(BaseQueries):
    def queries_iter(self):
        raise RuntimeError("all failed", [("http://a", OSError()), ("http://b", TimeoutError())])


def test_datasets_of_ir_datasets_and_the_subsets_that_have_what_they_lack(monkeypatch, tmp_path):
    dataset = ir_datasets.Dataset(Docs(), Unreachable())
    monkeypatch.setitem(ir_datasets.registry._registered, "two", dataset)
    two = load.__wrapped__("two")
    assert rows(two.passages) == [["1", "one!"], ["2", "two!"]]
    with pytest.raises(ValueError, match=r"queries of .*'two'.*'http://a', OSError\(\)\), \('http://b"):
        _ = two.queries
    assert two.find(["7", "x"]) == {"7": "looked up 7!"}
    with pytest.raises(ValueError, match="has no qrels") as error:  # 20 subsets, some without
        _ = load("msmarco-passage").qrels
    near = str(error.value).partition("try one of ")[2].split(", ")
    assert all(ir_datasets.load(name).has_qrels() for name in near)


LIST = "trec-dl/retrieve_results/{}/retrieve_results_dl{}_top100.json"
FILES = {
    LIST.format("Z_FIRST", 22): "7\td2\tseven\tthe first\n7\td1\tseven\tone\n5\td3\tfive\tthree\n",
    LIST.format("A_SECOND", 22): "5\td4\tfive\tfour\n5\td2\tfive\tanother\n7\td1\tseven\tone\n",
    LIST.format("Z_FIRST", 19): "9\ta\tnine\tb\n",
    "trec-dl/rerank_results/Z_FIRST/retrieve_results_dl22_top100.json": "no list",
    "trec-dl/qrels/qrels.dl19-passage.txt": "9 Q0 a 3\n9 Q0 unseen 0\n",
    "vaswani/doc-text.trec": "<DOC>\n<DOCNO>1</DOCNO>\nfirst  text\nof two lines\n</DOC>\n",
    "vaswani/query-text.trec": "<top>\n<num>1</num><title>\nWHAT\n</title>\n</top>\n",
    "vaswani/qrels": "1 0 2 1\n",
    "cranfield/cran.all.1400.xml": "<doc>\n<docno>1</docno>\n<title>a wing .</title>\n"
    "<author>b,c.</author>\n<bib>j. 1958</bib>\n<text>a wing .\n  flies .</text>\n</doc>\n",
    "cranfield/cran.qry.xml": "<?xml version='1.0' encoding='utf-8' standalone='yes'?>\n"
    + "".join(f"<top>\n<num> {n}</num> \n<title>\nask {n} .\n</title>\n</top>\n" for n in (1, 4)),
    "cranfield/cranqrel.trec.txt": "1 0 1 1\n2 0 1 0\n",
}


def test_parts_of_published_collections(tmp_path, monkeypatch):
    """TREC DL: of two texts the first in the registry's order counts, which is not the order of names;
    judgments may be of passages in no list. Cranfield's file numbers its queries 1, 2, 4, ..., 365."""
    hashes = {name: hashlib.sha256(text.encode()).hexdigest() for name, text in FILES.items()}
    registry = [{"name": x, "url": "", "hash": f"sha256:{hashes[x]}", "what": ""} for x in FILES]
    write_files(tmp_path, FILES | {"registry.json": json.dumps(registry)})
    monkeypatch.setattr(downloads, "_REGISTRY", tmp_path / "registry.json")
    monkeypatch.setenv("RDL_MIRROR", str(tmp_path))
    for module, name in ((downloads, "registry"), (published, "texts"), (collections, "load")):
        monkeypatch.setattr(module, name, getattr(module, name).__wrapped__)  # without its cache
    load = collections.load
    year = load("rdl/trec-dl-2022")
    assert rows(year.passages) == [["d2", "the first"], ["d1", "one"], ["d3", "three"], ["d4", "four"]]
    assert rows(year.queries) == [["7", "seven"], ["5", "five"]]
    assert ("qrels" in year.parts, year.fingerprint.count("-")) == (False, 1)
    assert rows(load("rdl/trec-dl-2019").qrels) == [["9", "a", 3], ["9", "unseen", 0]]
    vaswani, cranfield = load("rdl/vaswani"), load("rdl/cranfield")
    assert rows(vaswani.passages) == [["1", "first  text\nof two lines\n"]]
    assert (rows(vaswani.queries), rows(vaswani.qrels)) == ([["1", "WHAT\n"]], [["1", "2", 1]])
    assert rows(cranfield.passages) == [["1", "a wing . a wing .\n  flies ."]]
    assert rows(cranfield.queries) == [["1", "ask 1 ."], ["2", "ask 4 ."]]
    assert rows(cranfield.qrels) == [["1", "1", 1], ["2", "1", 0]]


def test_importing_and_opening_fetch_nothing_and_import_little(tmp_path):
    code = f"""
import sys
from rdl_core.data import downloads
downloads.fetch = lambda file: exit(f"{{file}} was asked for")
from rdl_core.data.collections import load
assert not {{"torch", "bm25s", "transformers", "scipy"}} & set(sys.modules)
import rdl_core.evaluate
assert "torch" not in sys.modules
official = ["msmarco-passage/trec-dl-2019/judged", "vaswani", "beir/scifact/test"]
print(*("qrels" in load(name).parts for name in [*{[*FACTS]!r}, *official]))
"""
    own = child_environment(IR_DATASETS_HOME=str(tmp_path))
    opened = subprocess.check_output([sys.executable, "-c", code], text=True, env=own)
    assert opened.split() == ["True"] * 2 + ["False"] + ["True"] * 5


@pytest.mark.skipif("RDL_MIRROR" not in os.environ, reason="RDL_MIRROR names no folder")
@pytest.mark.parametrize("name", FACTS)
def test_real_collections(name):
    own = load(name)
    qrels = own.qrels if "qrels" in own.parts else ()
    assert (len(own.queries), len(own.passages), len(qrels), own.fingerprint) == FACTS[name]


LAYOUTS = {  # of two passages, two queries and one judgment
    "beir": {
        "corpus.jsonl": '{"_id": "x", "title": "Fox", "text": "is red"}\n'
        '{"_id": "y", "text": "whale sings"}\n',
        "queries.jsonl": '{"_id": "1", "text": "what is red"}\n{"_id": "2", "text": "who sings"}\n',
        "qrels/test.tsv": "query-id\tcorpus-id\tscore\n1\tx\t2\n",
    },
    "tsv": {
        "collection.tsv": "x\tFox is red\ny\twhale sings\n",
        "queries.tsv": "1\twhat is red\n2\twho sings\n", "qrels.tsv": "1\t0\tx\t2\n",
    },
}  # fmt: skip


@pytest.mark.parametrize("end", ["", ".gz"])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_folder_is_a_collection_for_load_and_for_read_corpus(layout, end, tmp_path):
    """Its texts come before those in the file of candidates."""
    write_files(tmp_path, LAYOUTS[layout], end)
    own = load(str(tmp_path))
    assert rows(own.queries) == [["1", "what is red"], ["2", "who sings"]]
    assert rows(own.passages) == [["x", "Fox is red"], ["y", "whale sings"]]
    assert rows(own.qrels) == [["1", "x", 2]]
    assert load(str(tmp_path)) is own
    first = tmp_path / "first.tsv"
    first.write_text("2\ty\tof the file\tits own\n2\tx\tof the file\talso\n1\tx\tanother\talso\n")
    alone, corpus = read_corpus(first), read_corpus(first, collection=str(tmp_path))
    assert [*alone.queries.each(["1"]), *alone.passages.each(["x"])] == ["another", "also"]
    assert [*corpus.queries.each(corpus.ids("query_id"))] == ["who sings", "what is red"]
    assert [*corpus.passages.each(["y", "x", "y"])] == ["whale sings", "Fox is red", "whale sings"]
    assert corpus.candidates.columns.tolist() == ["query_id", "doc_id", "rank", "score"]
    assert [part.ids("query_id").tolist() for part in corpus.parts(2)] == [["2"], ["1"]]
    assert corpus.shard(2, 2).candidates["query_id"].tolist() == ["1"]


def test_what_is_unknown_or_lacking_is_refused_by_name(tmp_path):
    own, other, bare = tmp_path / "own", tmp_path / "other", tmp_path / "bare"
    write_files(own, LAYOUTS["beir"])
    write_files(other, {"a.run": "1 Q0 x 1 1 t\n3 Q0 x 1 1 t\n", "b.tsv": "1\tx\tq\ta\n2\tx\tr\tb\n"})
    write_files(bare, {name: LAYOUTS["tsv"][name] for name in ("collection.tsv", "queries.tsv")})
    run, ours, splits = other / "a.run", ", ".join(sorted(OURS)), ", ".join(OURS[1:4])
    for read, message in (
        (lambda: load("rdl/pydoc"), f"unknown collection 'rdl/pydoc': expected a folder.*: {ours}$"),
        (lambda: load("rdl/pydocs").queries, f"no queries, only docs: try one of {splits}$"),
        (lambda: load("rdl/pydocs").qrels, f"no qrels, only docs: try one of {splits}$"),
        (lambda: load(str(other)), r"expected queries.jsonl .*got \['a.run', 'b.tsv'\]"),
        (lambda: load(str(bare)).qrels, "bare' has no qrels, only queries, docs$"),
        (lambda: read_corpus(run), "a.run has no query texts: name a folder"),
        (lambda: read_corpus(run, collection="rdl/pydocs"), "no query texts and 'rdl/pydocs' has none"),
        (lambda: read_corpus(other / "b.tsv"), "has two texts for passage 'x': give each its own id"),
        (lambda: [*read_corpus(run, collection=str(own)).queries.each(["1", "3"])],
         "has no text for 1 of 2 query ids, such as '3': name the collection"),
        (lambda: read_corpus(run, collection=str(own)).shard(1, 3), "2 queries cannot be shared"),
        (lambda: read_judgments("nothing"), "nothing is no file of judgments, and unknown collection"),
    ):  # fmt: skip
        with pytest.raises(ValueError, match=message):
            read()
    for source in (own, own / "qrels" / "test.tsv"):
        assert rows(read_judgments(source)) == [["1", "x", 2]]
    assert read_judgments("rdl/pydocs/test").equals(load("rdl/pydocs/test").qrels)


def frame(*texts):
    return pd.DataFrame({"doc_id": [f"d{n}" for n in range(len(texts))], "text": texts}, dtype="str")


@given(st.lists(st.sampled_from("Fox the of river runs. blue; whale's (deep) a".split()), max_size=40))
def test_a_crop_is_some_words_in_a_row_of_one_sentence(words):
    text = " ".join(words)
    for query in crops(frame(text))["query"]:
        bare = "".join(c for c in text.lower() if c.isalnum() or c in "' -")
        assert f" {query} " in f" {bare} "
        assert 2 <= len(query.split()) <= 9
        assert not {query.split()[0], query.split()[-1]} & set(STOPWORDS_EN_PLUS)


def test_every_collection_has_crops_the_same_everywhere_that_draw_for_themselves(tmp_path):
    """Python's own hash of a text differs between processes; a crop must not."""
    text = "red foxes hunt small mice in the snow while blue whales sing under the ice all winter"
    drawn = crops(frame(*[text] * 30))["query"]
    assert drawn[:2].tolist() == ["whales sing", "blue whales sing"]
    assert drawn.nunique() > 10
    passages = "x\tred foxes hunt small mice\ny\tno\n"
    write_files(tmp_path, {"collection.tsv": passages, "queries.tsv": "1\tfoxes\n"})
    pseudo = load(f"{tmp_path}/crops")
    assert pseudo.queries["query_id"].tolist() == ["x.crop"]
    assert pseudo.qrels.values.tolist() == [["x.crop", "x", 1]]
    assert pseudo.passages.equals(load(str(tmp_path)).passages)
