"""Collections: ours are real ir_datasets datasets, each part is read, named or refused; and the door
to ranked candidates with their texts."""

import hashlib
import json
import logging
import os
import subprocess
import sys
import tracemalloc
from importlib import resources
from pathlib import Path
from typing import NamedTuple

import ir_datasets
import pandas as pd
import pytest
from bm25s.stopwords import STOPWORDS_EN_PLUS
from hypothesis import given
from hypothesis import strategies as st
from ir_datasets.formats import BaseDocs, GenericDoc, GenericQuery, TrecQrel

from rdl_core.data import collections, downloads, published, pydocs
from rdl_core.data.collections import (
    Collection,
    crops,
    fingerprint,
    load,
    read_corpus,
    read_judgments,
)

FETCHED = [*(f"rdl/trec-dl-{year}" for year in published.YEARS), "rdl/vaswani", "rdl/cranfield"]
OURS = ["rdl/pydocs", *(f"rdl/pydocs/{split}" for split in pydocs.SPLITS), *FETCHED]
ROOT = Path(collections.__file__).parents[2]
needs_data = pytest.mark.skipif(
    not os.environ.get("RDL_MIRROR"), reason="RDL_MIRROR names no folder of files"
)


def in_another_process(code, **environment):
    done = subprocess.run(
        [sys.executable, "-c", code], text=True, capture_output=True, cwd=ROOT,
        env=os.environ | environment,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


# --- our own are ir_datasets' datasets ------------------------------------------------------------


@pytest.mark.parametrize("split", pydocs.SPLITS)
def test_pydocs_is_a_real_dataset_and_its_frames_are_the_datasets(split):
    name, frames = f"rdl/pydocs/{split}", pydocs.load()
    own = frames.queries.loc[frames.queries["split"] == split, ["query_id", "query"]]
    qrels = frames.qrels[frames.qrels["query_id"].isin(own["query_id"])]
    dataset, collection = ir_datasets.load(name), load(name)
    for frame, part in ((frames.passages, "docs"), (own, "queries"), (qrels, "qrels")):
        rows = list(getattr(dataset, f"{part}_iter")())
        assert [row[: frame.shape[1]] for row in rows] == [*frame.itertuples(index=False, name=None)]
    assert dataset.docs_count() == len(frames.passages)
    assert len(dataset.qrels_dict()) == len(dataset.queries_dict()) == len(own) > 300
    assert set(dataset.qrels_defs()) == set(qrels["relevance"])
    for frame, expected in ((collection.queries, own), (collection.passages, frames.passages),
                            (collection.qrels, qrels)):  # fmt: skip
        assert frame.to_dict("list") == expected.to_dict("list")


def test_pydocs_without_split_has_only_passages_and_a_store_of_them():
    dataset, passages = ir_datasets.load("rdl/pydocs"), pydocs.load().passages
    assert (dataset.has_docs(), dataset.has_queries(), dataset.has_qrels()) == (True, False, False)
    store = dataset.docs_store()
    first, last = (GenericDoc(*passages.iloc[i]) for i in (0, -1))
    assert store.get(first.doc_id) == first
    assert store.get(last.doc_id, "text") == last.text
    ids = [last.doc_id, "nobody", first.doc_id]
    assert store.get_many(ids) == {last.doc_id: last, first.doc_id: first}
    with pytest.raises(KeyError, match="nobody"):
        store.get("nobody")


def test_fingerprints_see_every_part_every_value_and_the_order():
    prints = [load(f"rdl/pydocs/{split}").fingerprint for split in pydocs.SPLITS]
    parts = [set(column) for column in zip(*(p.split("-") for p in prints), strict=True)]
    assert list(map(len, parts)) == [3, 1, 3]  # other queries and judgments, the same passages
    frame = load("rdl/pydocs/dev").passages.head(9)
    changed = [frame.copy(), frame.copy()]
    changed[0].loc[4, "doc_id"] += "."
    changed[1].loc[4, "text"] += "."
    assert len({fingerprint(f) for f in (frame, *changed, frame[::-1])}) == 4


# --- what is not there ----------------------------------------------------------------------------


class TitledDoc(NamedTuple):
    """A passage with a title, as several collections of ir_datasets have them."""

    doc_id: str
    title: str

    def default_text(self):
        return f"{self.title}!"


class TwoDocs(BaseDocs):
    def docs_iter(self):
        yield from (TitledDoc("d1", "one"), TitledDoc("d2", "two"))


def test_a_missing_part_is_named_with_the_subsets_that_have_it(monkeypatch):
    monkeypatch.setitem(ir_datasets.registry._registered, "bare", ir_datasets.Dataset(TwoDocs()))
    bare = Collection("bare")
    assert bare.passages.to_dict("list") == {"doc_id": ["d1", "d2"], "text": ["one!", "two!"]}
    for part in ("queries", "qrels"):
        with pytest.raises(ValueError, match=f"'bare' has no {part}, only docs$"):
            getattr(bare, part)
        with pytest.raises(ValueError, match=f"has no {part}, only docs: try one of") as error:
            getattr(load("rdl/pydocs"), part)
        assert all(split in str(error.value) for split in OURS[1:4])
    with pytest.raises(ValueError, match="has no qrels") as error:  # 20 subsets, some without
        _ = load("msmarco-passage").qrels
    near = str(error.value).partition("try one of ")[2].split(", ")
    assert all(ir_datasets.load(name).has_qrels() for name in near)


def test_unknown_id_lists_ours():
    with pytest.raises(ValueError, match="unknown collection 'rdl/pydoc'") as error:
        load("rdl/pydoc")
    assert str(error.value).endswith(", ".join(sorted(OURS)))


# --- collections from files, tiny ones ------------------------------------------------------------


def list_of(*candidates):
    """One of RankLLM's lists; `candidates` are ``(query_id, doc_id, text)``."""
    ids = dict.fromkeys(query_id for query_id, _, _ in candidates)
    return json.dumps([
        {"query": f"query {query_id}", "hits": [
            {"content": text, "qid": query_id, "docid": doc_id, "rank": rank, "score": -rank}
            for rank, (q, doc_id, text) in enumerate(candidates, start=1) if q == query_id
        ]} for query_id in ids
    ])  # fmt: skip


FILES = {
    "trec-dl/retrieve_results/Z_FIRST/retrieve_results_dl22_top100.json": list_of(
        (7, "d2", "the first text"), (7, "d1", "one"), (5, "d3", "three")
    ),
    "trec-dl/retrieve_results/A_SECOND/retrieve_results_dl22_top100.json": list_of(
        (5, "d4", "four"), (5, "d2", "another text"), (7, "d1", "one")
    ),
    "trec-dl/retrieve_results/Z_FIRST/retrieve_results_dl19_top100.json": list_of((9, "a", "b")),
    "trec-dl/rerank_results/Z_FIRST/retrieve_results_dl22_top100.json": "no list",
    "trec-dl/qrels/qrels.dl19-passage.txt": "9 Q0 a 3\n9 Q0 unseen 0\n",
    "vaswani/doc-text.trec": "<DOC>\n<DOCNO>1</DOCNO>\nfirst  text\nof two lines\n</DOC>\n"
    "<DOC>\n<DOCNO>2</DOCNO>\nsecond\n</DOC>\n",
    "vaswani/query-text.trec": "<top>\n<num>1</num><title>\nWHAT\n</title>\n</top>\n",
    "vaswani/qrels": "1 0 2 1\n",
    "cranfield/cran.all.1400.xml": "<doc>\n<docno>1</docno>\n<title>a wing .</title>\n"
    "<author>b,c.</author>\n<bib>j. 1958</bib>\n<text>a wing .\n  flies .</text>\n</doc>\n",
    "cranfield/cran.qry.xml": "<?xml version='1.0' encoding='utf-8' standalone='yes'?>\n<xml>\n"
    + "".join(f"<top>\n<num> {n}</num> \n<title>\nask {n} .\n</title>\n</top>\n" for n in (1, 4))
    + "</xml>",
    "cranfield/cranqrel.trec.txt": "1 0 1 1\n2 0 1 0\n",
}


@pytest.fixture
def tiny(tmp_path, monkeypatch):
    """A mirror with a few texts under the names of the real files."""
    rows = []
    for name, text in FILES.items():
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
        digits = hashlib.sha256(text.encode()).hexdigest()
        rows.append({"name": name, "url": "", "hash": f"sha256:{digits}", "what": ""})
    (tmp_path / "registry.json").write_text(json.dumps(rows))
    monkeypatch.setattr(downloads, "_REGISTRY", tmp_path / "registry.json")
    monkeypatch.setenv("RDL_MIRROR", str(tmp_path))
    caches = (downloads.registry, published.texts)
    for cache in caches:
        cache.cache_clear()
    yield
    for cache in caches:
        cache.cache_clear()


def test_texts_of_all_lists_of_a_year_the_first_one_where_they_differ(tiny, caplog):
    """First in the registry's order, which is not the order of the names; 2022 has no judgments."""
    collection = Collection("rdl/trec-dl-2022")
    with caplog.at_level(logging.INFO, logger=published.__name__):
        assert collection.passages.to_dict("list") == {
            "doc_id": ["d2", "d1", "d3", "d4"], "text": ["the first text", "one", "three", "four"],
        }  # fmt: skip
    assert "1 of 4 passages have another text in a later list; the first is kept" in caplog.text
    queries = {"query_id": ["7", "5"], "query": ["query 7", "query 5"]}
    assert collection.queries.to_dict("list") == queries
    with pytest.raises(ValueError, match="has no qrels, only docs, queries$"):
        _ = collection.qrels
    assert collection.fingerprint.count("-") == 1
    judged = ir_datasets.load("rdl/trec-dl-2019").qrels_iter()  # of passages in no list, too
    assert list(judged) == [TrecQrel("9", "a", 3, "0"), TrecQrel("9", "unseen", 0, "0")]


def test_vaswani_keeps_its_lines_as_ir_datasets_does(tiny):
    dataset = ir_datasets.load("rdl/vaswani")
    docs = [GenericDoc("1", "first  text\nof two lines\n"), GenericDoc("2", "second\n")]
    assert list(dataset.docs_iter()) == docs
    assert list(dataset.queries_iter()) == [GenericQuery("1", "WHAT\n")]
    assert list(dataset.qrels_iter()) == [TrecQrel("1", "2", 1, "0")]


def test_cranfield_queries_are_numbered_as_its_judgments_are(tiny):
    """Its file numbers them 1, 2, 4, 8 and so on up to 365; the judgments count 1 to 225."""
    dataset = ir_datasets.load("rdl/cranfield")
    assert list(dataset.queries_iter()) == [GenericQuery("1", "ask 1 ."), GenericQuery("2", "ask 4 .")]
    (doc,) = dataset.docs_iter()
    assert dataset.docs_store().get("1") == doc == GenericDoc("1", "a wing . a wing .\n  flies .")


def test_importing_and_opening_fetch_nothing_and_import_little(tmp_path):
    code = f"""
import sys
from rdl_core.data import downloads
downloads._local = lambda file: exit(f"{{file}} was asked for")
from rdl_core.data.collections import load
assert not {{"torch", "bm25s", "transformers", "scipy"}} & set(sys.modules)
official = ["msmarco-passage/trec-dl-2019/judged", "vaswani", "beir/scifact/test"]
print(*(load(name).has("qrels") for name in [*{FETCHED!r}, *official]))
"""
    opened = in_another_process(code, IR_DATASETS_HOME=str(tmp_path))
    assert opened.split() == ["True"] * 2 + ["False"] + ["True"] * 5


def test_without_files_the_error_names_them_and_the_remedies(monkeypatch, tmp_path):
    monkeypatch.setenv("RDL_MIRROR", str(tmp_path))
    monkeypatch.setenv("RDL_CACHE", str(tmp_path))
    for proxy in ("HTTPS_PROXY", "https_proxy"):
        monkeypatch.setenv(proxy, "http://127.0.0.1:9")  # nobody listens: no network
    with pytest.raises(ValueError, match="vaswani/qrels in RDL_MIRROR.*`rdl fetch vaswani`"):
        _ = Collection("rdl/vaswani").qrels


# --- the real files -------------------------------------------------------------------------------

FACTS = {  # queries, passages, judgments by grade, judged passages among the passages, fingerprint
    "rdl/trec-dl-2019": (43, 10_852, {0: 5158, 1: 1601, 2: 1804, 3: 697}, 3834,
                         "79300d55e346e548-e5daaae48d7206c8-20e0bb622ed58136"),
    "rdl/trec-dl-2020": (54, 14_091, {0: 7780, 1: 1940, 2: 1020, 3: 646}, 5001,
                         "2de35c507ee94917-ac7f0899881deb07-294ee413908b7b34"),
    "rdl/trec-dl-2022": (76, 16_660, {}, 0, "765948046f1dd8b5-bb77e29665d0bddf"),
    "rdl/vaswani": (93, 11_429, {1: 2083}, None,
                    "d7e980a1f50e97e6-c807061128f42178-47fb67bdf9faa386"),
    "rdl/cranfield": (225, 1400, {0: 225, 1: 1611, 3: 1}, None,
                      "38a24c6c7858ab02-d33ccff5b4ec2f22-8f3154605db6eed9"),
}  # fmt: skip


@needs_data
@pytest.mark.parametrize("name", FETCHED)
def test_real_collections(name):
    collection, (n_queries, n_passages, grades, n_judged, known) = load(name), FACTS[name]
    assert collection.fingerprint == known  # recorded runs know their data by it
    queries, passages = collection.queries, collection.passages
    assert (len(queries), len(passages), collection.dataset.docs_count()) == (
        n_queries, n_passages, n_passages
    )  # fmt: skip
    assert queries["query_id"].is_unique
    assert passages["doc_id"].is_unique
    assert (queries["query"].str.strip() != "").all()
    docs = list(collection.dataset.docs_iter())
    assert [*collection.dataset.docs_store().get_many(passages["doc_id"]).values()] == docs
    assert collection.has("qrels") == bool(grades)
    if grades:
        qrels = collection.qrels
        assert qrels["relevance"].value_counts().to_dict() == grades
        assert set(qrels["query_id"]) == set(queries["query_id"])
        assert set(collection.dataset.qrels_defs()) == set(grades)
        judged = set(qrels["doc_id"]) & set(passages["doc_id"])
        assert len(judged) == (qrels["doc_id"].nunique() if n_judged is None else n_judged)


@needs_data
def test_vaswani_and_cranfield_are_those_of_ir_datasets():
    """Its own integration tests name these texts."""
    facts = json.loads((resources.files("ir_datasets") / "etc/metadata.json").read_text())
    for name in ("vaswani", "cranfield"):
        own = load(f"rdl/{name}")
        counts = {"docs": len(own.passages), "queries": len(own.queries), "qrels": len(own.qrels)}
        assert counts == {part: facts[name][part]["count"] for part in counts}
    vaswani, cranfield = (load(f"rdl/{name}") for name in ("vaswani", "cranfield"))
    text = vaswani.passages.set_index("doc_id")["text"]["10"]
    assert text == "highspeed microwave switching of semiconductors part\n"
    assert vaswani.queries["query"][9].endswith("POWER DISSIPATION IN REACTIVE CIRCUITS\n")
    text = cranfield.passages.set_index("doc_id")["text"]["10"]
    assert text.endswith("corresponding continuum relations .")
    assert cranfield.queries["query"][9].startswith("are real-gas transport properties for air")


# --- folders, crops, and collections too large for memory -----------------------------------------


def write_folder(folder, layout):
    """Two passages, two queries, one judgment, in one of the layouts."""
    if layout == "beir":
        docs = [{"_id": "x", "title": "Fox", "text": "is red"}, {"_id": "y", "text": "whale sings"}]
        queries = [{"_id": "1", "text": "what is red"}, {"_id": "2", "text": "who sings"}]
        for name, rows in (("corpus", docs), ("queries", queries)):
            (folder / f"{name}.jsonl").write_text("\n".join(map(json.dumps, rows)))
        (folder / "qrels").mkdir()
        (folder / "qrels" / "test.tsv").write_text("query-id\tcorpus-id\tscore\n1\tx\t2\n")
    else:
        (folder / "collection.tsv").write_text("x\tFox is red\ny\twhale sings\n")
        (folder / "queries.tsv").write_text("1\twhat is red\n2\twho sings\n")
        (folder / "qrels.tsv").write_text("1\t0\tx\t2\n")


@pytest.mark.parametrize("layout", ["beir", "tsv"])
def test_a_folder_is_a_collection_for_load_and_for_read_corpus(layout, tmp_path):
    write_folder(tmp_path, layout)
    own = load(str(tmp_path))
    assert own.queries.values.tolist() == [["1", "what is red"], ["2", "who sings"]]
    assert own.passages.values.tolist() == [["x", "Fox is red"], ["y", "whale sings"]]
    assert own.qrels.values.tolist() == [["1", "x", 2]]
    assert load(str(tmp_path)) is own
    (tmp_path / "first.run").write_text("2 Q0 y 1 2 t\n2 Q0 x 2 1 t\n1 Q0 x 1 1 t\n")
    corpus = read_corpus(tmp_path / "first.run", collection=str(tmp_path))
    assert corpus.queries.of(corpus.ids("query_id")) == ["who sings", "what is red"]
    assert corpus.passages.of(["y", "x", "y"]) == ["whale sings", "Fox is red", "whale sings"]
    assert [part.ids("query_id").tolist() for part in corpus.parts(2)] == [["2"], ["1"]]
    assert corpus.shard(2, 2).candidates["query_id"].tolist() == ["1"]


def test_texts_of_the_file_and_of_the_collection(tmp_path):
    row = {"query_id": "1", "doc_id": "x", "score": 0.5, "query": "of the file", "text": "its own"}
    path = tmp_path / "own.jsonl"
    path.write_text(json.dumps(row))
    write_folder(tmp_path, "tsv")
    alone, both = read_corpus(path), read_corpus(path, collection=str(tmp_path))
    assert (alone.queries.of(["1"]), alone.passages.of(["x"])) == (["of the file"], ["its own"])
    assert (both.queries.of(["1"]), both.passages.of(["x"])) == (["what is red"], ["Fox is red"])
    assert alone.candidates.columns.tolist() == ["query_id", "doc_id", "rank", "score"]


def test_what_a_corpus_lacks_is_refused_by_name(tmp_path):
    write_folder(tmp_path, "beir")
    run, two = tmp_path / "a.run", tmp_path / "two.tsv"
    run.write_text("1 Q0 x 1 1 t\n3 Q0 x 1 1 t\n")
    two.write_text("1\tx\tq\tone\n2\tx\tr\ttwo\n")
    for read, message in (
        (lambda: read_corpus(run), "a.run has no query texts: name a folder"),
        (lambda: read_corpus(run, collection="rdl/pydocs"), "no query texts and 'rdl/pydocs' has none"),
        (lambda: read_corpus(run, collection="nothing"), "unknown collection 'nothing'"),
        (lambda: read_corpus(two), "two.tsv has two texts for passage 'x': give each its own id"),
        (lambda: read_corpus(run, collection=str(tmp_path)).queries.of(["1", "3"]),
         "has no text for 1 of 2 query ids, such as '3': name the collection"),
        (lambda: read_corpus(run, collection=str(tmp_path)).shard(1, 3), "2 queries cannot be shared"),
        (lambda: read_judgments(tmp_path), "is a folder: name a file of judgments .*test.tsv"),
        (lambda: read_judgments("nothing"), "nothing is no file of judgments, and unknown collection"),
    ):  # fmt: skip
        with pytest.raises(ValueError, match=message):
            read()
    assert read_judgments(tmp_path / "qrels" / "test.tsv").values.tolist() == [["1", "x", 2]]
    assert read_judgments("rdl/pydocs/test").equals(load("rdl/pydocs/test").qrels)


def test_a_folder_without_judgments_or_of_something_else(tmp_path):
    (tmp_path / "notes.txt").touch()
    with pytest.raises(ValueError, match=r"expected queries.jsonl .*got \['notes.txt'\]"):
        load(str(tmp_path))
    write_folder(tmp_path, "tsv")
    (tmp_path / "qrels.tsv").unlink()
    with pytest.raises(ValueError, match="has no qrels, only docs, queries"):
        _ = load(str(tmp_path)).qrels


WORDS = ["Fox", "the", "of", "river", "runs.", "is", "blue;", "whale's", "sings", "(deep)", "a"]
LONG = "red foxes hunt small mice in the snow while blue whales sing under the ice all winter"


def frame(*texts):
    return pd.DataFrame({"doc_id": [f"d{n}" for n in range(len(texts))], "text": texts}, dtype="str")


@given(st.lists(st.sampled_from(WORDS), max_size=40))
def test_a_crop_is_some_words_in_a_row_of_one_sentence(words):
    text = " ".join(words)
    for query in crops(frame(text))["query"]:
        bare = "".join(c for c in text.lower() if c.isalnum() or c in "' -")
        assert f" {query} " in f" {bare} "
        assert 2 <= len(query.split()) <= 9
        assert not {query.split()[0], query.split()[-1]} & set(STOPWORDS_EN_PLUS)


def test_crops_are_the_same_everywhere_and_draw_for_themselves():
    """Python's own hash of a text differs between processes; a crop must not."""
    here = crops(frame(LONG, LONG))["query"]
    code = f"""
import pandas as pd; from rdl_core.data.collections import crops
print(crops(pd.DataFrame({frame(LONG).to_dict('list')}))['query'][0])"""
    assert in_another_process(code) == here[0]
    assert crops(frame(*[LONG] * 30))["query"].nunique() > 10


def test_every_collection_has_crops(tmp_path):
    (tmp_path / "collection.tsv").write_text("x\tred foxes hunt small mice\ny\tno\n")
    (tmp_path / "queries.tsv").write_text("1\tfoxes\n")
    pseudo = load(f"{tmp_path}/crops")
    assert pseudo.queries["query_id"].tolist() == ["x.crop"]
    assert pseudo.qrels.values.tolist() == [["x.crop", "x", 1]]
    assert pseudo.passages.equals(load(str(tmp_path)).passages)


class Large(BaseDocs):
    """2,000 passages of 10 kB, made one by one."""

    def docs_iter(self):
        return (GenericDoc(str(n), f"{n} fox " + "x" * 10_000) for n in range(2000))


def test_passages_are_never_all_in_memory_and_have_the_fingerprint_of_their_frame(monkeypatch):
    """All texts of 8.8 M passages once went into a frame, to be hashed."""
    monkeypatch.setitem(ir_datasets.registry._registered, "large", ir_datasets.Dataset(Large()))
    monkeypatch.setattr(collections, "_CHUNK", 200)
    large = Collection("large")
    tracemalloc.start()
    in_parts = large.passages_fingerprint
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 20e6  # some chunks of 2 to 4 MB; a frame of all the texts took 40 MB
    assert "passages" not in vars(large)
    assert large.passages_of(["7", "1999"])["doc_id"].tolist() == ["7", "1999"]
    assert in_parts == fingerprint(large.passages)
    assert large.doc_ids.tolist() == large.passages["doc_id"].tolist()
