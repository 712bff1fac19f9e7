"""Collections: ours are real ir_datasets datasets, and each part is read, named or refused.

MUTATIONS
"""

from typing import NamedTuple

import ir_datasets
import pytest
from ir_datasets.formats import BaseDocs, GenericDoc

from rdl_core.data import collections, pydocs
from rdl_core.data.collections import Collection, load

OURS = ["rdl/pydocs", *(f"rdl/pydocs/{split}" for split in pydocs.SPLITS)]
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
    assert all(split in str(error.value) for split in OURS[1:])


@pytest.mark.parametrize("part", ["queries", "qrels"])
def test_missing_part_of_a_collection_without_splits(bare, part):
    with pytest.raises(ValueError, match=f"'bare' to have {part}, but it has only docs$"):
        getattr(bare, part)


def test_suggested_collections_have_what_is_missing():
    """``msmarco-passage`` has 20 subsets, some of them without judgments."""
    with pytest.raises(ValueError, match="to have qrels, but it has only docs: try one of") as error:
        _ = load("msmarco-passage").qrels
    suggested = str(error.value).partition("try one of ")[2].split(", ")
    assert all(ir_datasets.load(name).has_qrels() for name in suggested)
