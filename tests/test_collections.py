"""Collections: ours are real ir_datasets datasets, and each part is read, named or refused.

Mutations seen to fail: files fetched when a collection is registered; the last list's text kept;
lists in the order of their names, of all years, only the first, re-rankings among them; 2022 with
judgments; Cranfield's queries with the numbers of its file, numbered from 0; its author for its
text; Vaswani's lines stripped; a fingerprint without judgments, one that demands them, one blind to
the order of rows; suggestions that lack what is missing; a store that gives what it does not have;
queries of all splits.
"""

import hashlib
import json
import logging
import os
import subprocess
import sys
from importlib import resources
from pathlib import Path
from typing import NamedTuple

import ir_datasets
import pytest
from ir_datasets.datasets.cranfield import CranfieldDoc
from ir_datasets.formats import BaseDocs, GenericDoc, GenericQuery, TrecQrel

from rdl_core.data import collections, downloads, pydocs, trec_dl
from rdl_core.data.collections import Collection, load

PYDOCS = ["rdl/pydocs", *(f"rdl/pydocs/{split}" for split in pydocs.SPLITS)]
FETCHED = [*(f"rdl/trec-dl-{year}" for year in trec_dl.YEARS), "rdl/vaswani", "rdl/cranfield"]
OURS = [*PYDOCS, *FETCHED]
ROOT = Path(collections.__file__).parents[2]
needs_data = pytest.mark.skipif(
    not os.environ.get("RDL_MIRROR"), reason="RDL_MIRROR names no folder of files"
)
splits = pytest.mark.parametrize("split", pydocs.SPLITS)


class TitledDoc(NamedTuple):
    """A passage with a title, as several collections of ir_datasets have them."""

    doc_id: str
    title: str

    def default_text(self):
        return f"{self.title}!"


class TwoDocs(BaseDocs):
    def docs_iter(self):
        yield from (TitledDoc("d1", "one"), TitledDoc("d2", "two"))


@pytest.fixture
def bare(monkeypatch):
    """A registered collection of two passages, without queries, judgments or splits."""
    monkeypatch.setitem(ir_datasets.registry._registered, "bare", ir_datasets.Dataset(TwoDocs()))
    return Collection("bare")


# --- ir_datasets reads ours ---------------------------------------------------------------------


@splits
def test_pydocs_is_a_real_dataset(split):
    dataset, frames = ir_datasets.load(f"rdl/pydocs/{split}"), pydocs.load()
    queries = frames.queries[frames.queries["split"] == split]
    qrels = frames.qrels[frames.qrels["query_id"].isin(queries["query_id"])]
    assert dataset.docs_count() == len(list(dataset.docs_iter())) == len(frames.passages)
    assert [(q.query_id, q.text) for q in dataset.queries_iter()] == list(
        queries[["query_id", "query"]].itertuples(index=False, name=None)
    )
    assert [(q.query_id, q.doc_id, q.relevance) for q in dataset.qrels_iter()] == list(
        qrels.itertuples(index=False, name=None)
    )
    assert len(dataset.qrels_dict()) == len(queries) > 300
    assert set(dataset.qrels_defs()) == set(qrels["relevance"])
    assert (dataset.docs_lang(), dataset.queries_lang()) == ("en", "en")


def test_pydocs_without_split_has_only_passages():
    dataset = ir_datasets.load("rdl/pydocs")
    assert (dataset.has_docs(), dataset.has_queries(), dataset.has_qrels()) == (True, False, False)


def test_docs_store_gets_passages_by_id():
    store = ir_datasets.load("rdl/pydocs").docs_store()
    passages = pydocs.load().passages
    first, last = (GenericDoc(*passages.iloc[i]) for i in (0, -1))
    assert store.get(first.doc_id) == first
    assert store.get(last.doc_id, "text") == last.text
    assert store.get_many([last.doc_id, "nobody", first.doc_id]) == {
        last.doc_id: last, first.doc_id: first,
    }  # fmt: skip
    with pytest.raises(KeyError, match="nobody"):
        store.get("nobody")


# --- collections as frames ----------------------------------------------------------------------


@splits
def test_frames_are_the_datasets(split):
    collection, frames = load(f"rdl/pydocs/{split}"), pydocs.load()
    own = frames.queries[frames.queries["split"] == split]
    assert collection.queries.to_dict("list") == own[["query_id", "query"]].to_dict("list")
    assert collection.passages.to_dict("list") == frames.passages.to_dict("list")
    judged = frames.qrels[frames.qrels["query_id"].isin(own["query_id"])]
    assert collection.qrels.to_dict("list") == judged.to_dict("list")


def test_text_of_a_passage_is_its_default_text(bare):
    assert bare.passages.to_dict("list") == {"doc_id": ["d1", "d2"], "text": ["one!", "two!"]}


def test_fingerprint_of_a_collection_sees_every_part():
    prints = [load(f"rdl/pydocs/{split}").fingerprint for split in pydocs.SPLITS]
    parts = [set(column) for column in zip(*(p.split("-") for p in prints), strict=True)]
    assert list(map(len, parts)) == [3, 1, 3]  # other queries and judgments, the same passages


@pytest.mark.parametrize("column", ["doc_id", "text"])
def test_fingerprint_changes_with_every_value_and_with_the_order(column):
    frame = load("rdl/pydocs/dev").passages.head(9)
    changed = frame.copy()
    changed.loc[4, column] += "."
    prints = {collections.fingerprint(f) for f in (frame, changed, frame[::-1])}
    assert len(prints) == 3
    assert collections.fingerprint(frame.copy()) in prints


# --- errors -------------------------------------------------------------------------------------


def test_unknown_id_lists_ours():
    with pytest.raises(ValueError, match="unknown collection 'rdl/pydoc'") as error:
        load("rdl/pydoc")
    assert str(error.value).endswith(", ".join(sorted(OURS)))


@pytest.mark.parametrize("part", ["queries", "qrels"])
def test_missing_part_is_named_with_the_splits_that_have_it(part):
    with pytest.raises(ValueError, match=f"to have {part}, but it has only docs") as error:
        getattr(load("rdl/pydocs"), part)
    assert all(split in str(error.value) for split in PYDOCS[1:])


@pytest.mark.parametrize("part", ["queries", "qrels"])
def test_missing_part_of_a_collection_without_splits(bare, part):
    with pytest.raises(ValueError, match=f"'bare' to have {part}, but it has only docs$"):
        getattr(bare, part)


def test_suggested_collections_have_what_is_missing():
    """``msmarco-passage`` has 20 subsets, some of them without judgments."""
    telling = "to have qrels, but it has only docs: try one of"
    with pytest.raises(ValueError, match=telling) as error:
        _ = load("msmarco-passage").qrels
    suggested = str(error.value).partition("try one of ")[2].split(", ")
    assert all(ir_datasets.load(name).has_qrels() for name in suggested)


# --- collections from files, tiny ones ----------------------------------------------------------


def list_of(*candidates):
    """One of RankLLM's lists; `candidates` are ``(query_id, doc_id, text)``."""
    ids = dict.fromkeys(query_id for query_id, _, _ in candidates)
    return json.dumps([
        {
            "query": f"query {query_id}",
            "hits": [
                {"content": text, "qid": query_id, "docid": doc_id, "rank": rank, "score": -rank}
                for rank, (q, doc_id, text) in enumerate(candidates, start=1)
                if q == query_id
            ],
        }
        for query_id in ids
    ])  # fmt: skip


FILES = {
    "trec-dl/retrieve_results/Z_FIRST/retrieve_results_dl22_top100.json": list_of(
        (7, "d2", "the first text"), (7, "d1", "one"), (5, "d3", "three")
    ),
    "trec-dl/retrieve_results/A_SECOND/retrieve_results_dl22_top100.json": list_of(
        (5, "d4", "four"), (5, "d2", "another text"), (7, "d1", "one")
    ),
    "trec-dl/retrieve_results/Z_FIRST/retrieve_results_dl19_top100.json": list_of(
        (9, "other", "of another year")
    ),
    "trec-dl/rerank_results/Z_FIRST/retrieve_results_dl22_top100.json": "no list",
    "trec-dl/qrels/qrels.dl19-passage.txt": "9 Q0 other 3\n9 Q0 unseen 0\n",
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
        sha256 = hashlib.sha256(text.encode()).hexdigest()
        rows.append({"name": name, "url": "", "sha256": sha256, "bytes": len(text), "what": ""})
    (tmp_path / "registry.json").write_text(json.dumps(rows))
    monkeypatch.setattr(downloads, "_REGISTRY", tmp_path / "registry.json")
    monkeypatch.setenv("RDL_MIRROR", str(tmp_path))
    caches = (downloads.registry, trec_dl.load_texts)
    for cache in caches:
        cache.cache_clear()
    yield
    for cache in caches:
        cache.cache_clear()


def test_texts_of_all_lists_of_a_year_the_first_one_where_they_differ(tiny, caplog):
    """First in the registry's order, which is not the order of the names."""
    collection = Collection("rdl/trec-dl-2022")
    with caplog.at_level(logging.INFO, logger=trec_dl.__name__):
        assert collection.passages.to_dict("list") == {
            "doc_id": ["d2", "d1", "d3", "d4"], "text": ["the first text", "one", "three", "four"],
        }  # fmt: skip
    assert caplog.messages == [
        "TREC DL 2022: 1 of 4 passages have another text in a later list; the first is kept"
    ]
    queries = {"query_id": ["7", "5"], "query": ["query 7", "query 5"]}
    assert collection.queries.to_dict("list") == queries


def test_year_without_judgments_says_so_and_has_a_fingerprint(tiny):
    collection = Collection("rdl/trec-dl-2022")
    assert not collection.has("qrels")
    with pytest.raises(ValueError, match="to have qrels, but it has only docs, queries$"):
        _ = collection.qrels
    assert collection.fingerprint.count("-") == 1


def test_judgments_of_passages_in_no_list_are_kept(tiny):
    assert list(ir_datasets.load("rdl/trec-dl-2019").qrels_iter()) == [
        TrecQrel("9", "other", 3, "Q0"), TrecQrel("9", "unseen", 0, "Q0"),
    ]  # fmt: skip


def test_vaswani_keeps_its_lines_as_ir_datasets_does(tiny):
    dataset = ir_datasets.load("rdl/vaswani")
    docs = [GenericDoc("1", "first  text\nof two lines\n"), GenericDoc("2", "second\n")]
    assert list(dataset.docs_iter()) == docs
    assert list(dataset.queries_iter()) == [GenericQuery("1", "WHAT\n")]
    assert list(dataset.qrels_iter()) == [TrecQrel("1", "2", 1, "0")]


def test_cranfield_queries_are_numbered_as_its_judgments_are(tiny):
    """Its file numbers them 1, 2, 4, 8 and so on up to 365; the judgments count 1 to 225."""
    dataset = ir_datasets.load("rdl/cranfield")
    queries = [GenericQuery("1", "ask 1 ."), GenericQuery("2", "ask 4 .")]
    assert list(dataset.queries_iter()) == queries
    doc = CranfieldDoc("1", "a wing .", "a wing .\n  flies .", "b,c.", "j. 1958")
    assert list(dataset.docs_iter()) == [doc]
    assert dataset.docs_store().get("1") == doc
    assert load("rdl/cranfield").dataset.docs_cls() is CranfieldDoc
    assert Collection("rdl/cranfield").passages["text"].tolist() == [doc.default_text()]


def test_importing_and_opening_fetch_nothing(tmp_path):
    code = f"""
from rdl_core.data import downloads
downloads._local = lambda file: exit(f"{{file}} was asked for")
from rdl_core.data.collections import load
official = ["msmarco-passage/trec-dl-2019/judged", "vaswani", "beir/scifact/test"]
print(*(load(name).has("qrels") for name in [*{FETCHED!r}, *official]))
"""
    opened = subprocess.run(
        [sys.executable, "-c", code], text=True, capture_output=True, cwd=ROOT,
        env=os.environ | {"IR_DATASETS_HOME": str(tmp_path)},
    )  # fmt: skip
    assert opened.stdout.split() == ["True"] * 2 + ["False"] + ["True"] * 5, opened.stderr


def test_without_files_the_error_names_them_and_the_remedies(monkeypatch, tmp_path):
    monkeypatch.setenv("RDL_MIRROR", str(tmp_path))
    monkeypatch.setenv("RDL_CACHE", str(tmp_path))
    for proxy in ("HTTPS_PROXY", "https_proxy"):
        monkeypatch.setenv(proxy, "http://127.0.0.1:9")  # nobody listens: no network
    with pytest.raises(ValueError, match="vaswani/qrels in RDL_MIRROR.*`rdl fetch vaswani`"):
        _ = Collection("rdl/vaswani").qrels


# --- collections from files, the real ones ------------------------------------------------------

FACTS = {  # queries, passages, judgments by grade, judged passages among the passages
    "rdl/trec-dl-2019": (43, 10_852, {0: 5158, 1: 1601, 2: 1804, 3: 697}, 3834),
    "rdl/trec-dl-2020": (54, 14_091, {0: 7780, 1: 1940, 2: 1020, 3: 646}, 5001),
    "rdl/trec-dl-2022": (76, 16_660, {}, 0),
    "rdl/vaswani": (93, 11_429, {1: 2083}, None),
    "rdl/cranfield": (225, 1400, {0: 225, 1: 1611, 3: 1}, None),
}


@needs_data
@pytest.mark.parametrize("name", FETCHED)
def test_facts(name):
    collection = load(name)
    n_queries, n_passages, grades, n_judged = FACTS[name]
    assert len(collection.queries) == n_queries
    assert collection.dataset.docs_count() == len(collection.passages) == n_passages
    assert collection.queries["query_id"].is_unique
    assert collection.passages["doc_id"].is_unique
    assert (collection.queries["query"].str.strip() != "").all()
    if not grades:
        assert not collection.has("qrels")
        return
    qrels = collection.qrels
    assert qrels["relevance"].value_counts().to_dict() == grades
    assert set(qrels["query_id"]) == set(collection.queries["query_id"])
    assert set(collection.dataset.qrels_defs()) == set(grades)
    judged = set(qrels["doc_id"]) & set(collection.passages["doc_id"])
    assert len(judged) == (qrels["doc_id"].nunique() if n_judged is None else n_judged)


@needs_data
@pytest.mark.parametrize("name", FETCHED)
def test_docs_store_gets_every_passage(name):
    dataset = ir_datasets.load(name)
    docs = list(dataset.docs_iter())
    found = dataset.docs_store().get_many([doc.doc_id for doc in docs])
    assert list(found.values()) == docs
    assert all(type(doc) is dataset.docs_cls() for doc in docs)


@needs_data
@pytest.mark.parametrize("year", [2019, 2020, 2022])
def test_every_candidate_of_every_list_resolves_to_its_text(year):
    """Where two lists differ they do so in white space alone, in 40 passages of 2022."""
    text = load(f"rdl/trec-dl-{year}").passages.set_index("doc_id")["text"]
    query = load(f"rdl/trec-dl-{year}").queries.set_index("query_id")["query"]
    names = trec_dl.list_names(year)
    assert len(names) == {2019: 5, 2020: 5, 2022: 3}[year]
    differing = set()
    for name in names:
        for ranking in json.loads((Path(os.environ["RDL_MIRROR"]) / name).read_text()):
            for hit in ranking["hits"]:
                assert query[str(hit["qid"])] == ranking["query"]
                assert "".join(text[hit["docid"]].split()) == "".join(hit["content"].split())
                if text[hit["docid"]] != hit["content"]:
                    differing.add(hit["docid"])
    assert len(differing) == {2019: 0, 2020: 0, 2022: 40}[year]


@needs_data
@pytest.mark.parametrize("name", ["vaswani", "cranfield"])
def test_as_many_of_each_as_ir_datasets_counts_in_its_own(name):
    facts = json.loads((resources.files("ir_datasets") / "etc/metadata.json").read_text())[name]
    own = load(f"rdl/{name}")
    counts = {"docs": len(own.passages), "queries": len(own.queries), "qrels": len(own.qrels)}
    assert counts == {part: facts[part]["count"] for part in counts}


@needs_data
def test_texts_are_those_ir_datasets_gives():
    """Its own integration tests name these."""
    vaswani, cranfield = (ir_datasets.load(f"rdl/{name}") for name in ("vaswani", "cranfield"))
    assert vaswani.docs_store().get("10").text == (
        "highspeed microwave switching of semiconductors part\n"
    )
    assert list(vaswani.queries_iter())[9].text == (
        "METHODS OF CALCULATING INSTANTANEOUS POWER DISSIPATION IN REACTIVE CIRCUITS\n"
    )
    assert list(vaswani.qrels_iter())[9] == TrecQrel("1", "6824", 1, "0")
    doc = cranfield.docs_store().get("10")
    assert doc.title == "the theory of the impact tube at low pressure ."
    assert (doc.author, doc.bib) == ("chambre,p.l. and schaaf,s.a.", "j. ae. scs. 15, 1948, 735.")
    assert doc.text.endswith("corresponding continuum relations .")
    assert list(cranfield.queries_iter())[9] == GenericQuery(
        "10",
        "are real-gas transport properties for air available over a wide range of\n"
        "enthalpies and densities .",
    )


@needs_data
def test_fingerprints_are_those_of_another_process():
    code = f"""
from rdl_core.data.collections import load
print(*(load(name).fingerprint for name in {FETCHED!r}))
"""
    there = subprocess.run(
        [sys.executable, "-c", code], env=os.environ | {"PYTHONHASHSEED": "7"}, text=True,
        capture_output=True, check=True, cwd=ROOT,
    )  # fmt: skip
    assert there.stdout.split() == [load(name).fingerprint for name in FETCHED]
    assert len(set(there.stdout.split())) == len(FETCHED)


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
def test_a_folder_is_a_collection(layout, tmp_path):
    write_folder(tmp_path, layout)
    own = load(str(tmp_path))
    assert own.queries.values.tolist() == [["1", "what is red"], ["2", "who sings"]]
    assert own.passages["doc_id"].tolist() == ["x", "y"]
    assert own.passages["text"].str.split().str.join(" ").tolist() == ["Fox is red", "whale sings"]
    assert own.qrels.values.tolist() == [["1", "x", 2]]
    assert load(str(tmp_path)) is own
    (document,) = ir_datasets.load(str(tmp_path)).docs_store().get_many(["y"]).values()
    assert document.default_text() == "whale sings"


def test_a_folder_without_judgments_says_so(tmp_path):
    write_folder(tmp_path, "tsv")
    (tmp_path / "qrels.tsv").unlink()
    with pytest.raises(ValueError, match="to have qrels, but it has only docs, queries"):
        _ = load(str(tmp_path)).qrels


def test_a_folder_of_something_else_is_refused(tmp_path):
    (tmp_path / "notes.txt").touch()
    with pytest.raises(ValueError, match=r"expected queries.jsonl .*found \['notes.txt'\]"):
        load(str(tmp_path))


def test_every_collection_has_crops(tmp_path):
    (tmp_path / "collection.tsv").write_text("x\tred foxes hunt small mice\ny\tno\n")
    (tmp_path / "queries.tsv").write_text("1\tfoxes\n")
    pseudo = load(f"{tmp_path}/crops")
    assert pseudo.queries["query_id"].tolist() == ["x.crop"]
    assert pseudo.qrels.values.tolist() == [["x.crop", "x", 1]]
    assert pseudo.passages.equals(load(str(tmp_path)).passages)
    assert load("rdl/pydocs/crops").passages.equals(load("rdl/pydocs").passages)
