"""One door to every test collection: `load` takes an ir_datasets id and gives frames.

Ids are ir_datasets' own (``msmarco-passage/trec-dl-2019/judged``, ``vaswani``, ``beir/...``) and
ours, which importing this module registers with ir_datasets as real datasets, so that any tool that
speaks ir_datasets can read them too.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import cached_property, lru_cache

import ir_datasets
import pandas as pd
from ir_datasets.formats import (
    BaseDocs,
    BaseQrels,
    BaseQueries,
    GenericDoc,
    GenericQuery,
    TrecQrel,
)
from ir_datasets.indices import Docstore

from rdl_core.data import pydocs

__all__ = ["Collection", "fingerprint", "load"]


@dataclass(frozen=True)
class Collection:
    """Queries, passages and judgments of one ir_datasets id, as frames; each is read when asked for.

    Args:
        id: An ir_datasets id.
    """

    id: str

    @property
    def dataset(self) -> ir_datasets.Dataset:
        """The ir_datasets dataset behind this collection."""
        return ir_datasets.load(self.id)

    @cached_property
    def queries(self) -> pd.DataFrame:
        """``query_id`` and ``query``, in the collection's order."""
        self._require("queries")
        rows = ((q.query_id, q.default_text()) for q in self.dataset.queries_iter())
        return pd.DataFrame(rows, columns=["query_id", "query"], dtype="str")

    @cached_property
    def passages(self) -> pd.DataFrame:
        """``doc_id`` and ``text``, in the collection's order."""
        self._require("docs")
        rows = ((d.doc_id, d.default_text()) for d in self.dataset.docs_iter())
        return pd.DataFrame(rows, columns=["doc_id", "text"], dtype="str")

    @cached_property
    def qrels(self) -> pd.DataFrame:
        """``query_id``, ``doc_id`` and ``relevance``."""
        self._require("qrels")
        rows = ((q.query_id, q.doc_id, q.relevance) for q in self.dataset.qrels_iter())
        return pd.DataFrame(rows, columns=["query_id", "doc_id", "relevance"])

    @cached_property
    def fingerprint(self) -> str:
        """Fingerprint of queries, passages and judgments together."""
        return "-".join(fingerprint(part) for part in (self.queries, self.passages, self.qrels))

    def has(self, part: str) -> bool:
        """Whether the collection has ``docs``, ``queries`` or ``qrels``."""
        return getattr(self.dataset, f"has_{part}")()

    def _require(self, part: str) -> None:
        if not self.has(part):
            has = [p for p in ("docs", "queries", "qrels") if self.has(p)]
            near = [i for i in ir_datasets.registry if i.startswith(f"{self.id}/")][:8]
            raise ValueError(
                f"expected collection {self.id!r} to have {part}, but it has only "
                f"{', '.join(has) or 'nothing'}" + (f": try one of {', '.join(near)}" if near else "")
            )


@lru_cache(maxsize=8)
def load(collection_id: str) -> Collection:
    """Open a collection.

    Args:
        collection_id: An id that ir_datasets knows, ours included.

    Raises:
        ValueError: An unknown id; lists ours.

    >>> load("rdl/pydocs/test").queries.columns.tolist()
    ['query_id', 'query']
    """
    try:
        ir_datasets.load(collection_id)
    except KeyError:
        ours = sorted(i for i in ir_datasets.registry if i.startswith("rdl/"))
        raise ValueError(
            f"unknown collection {collection_id!r}: expected an ir_datasets id, or one of ours: "
            f"{', '.join(ours)}"
        ) from None
    return Collection(collection_id)


def fingerprint(frame: pd.DataFrame) -> str:
    """16 hexadecimal digits that change with any value of a frame, or the order of its rows.

    >>> fingerprint(pd.DataFrame({"a": ["x"]})) == fingerprint(pd.DataFrame({"a": ["y"]}))
    False
    """
    rows = pd.util.hash_pandas_object(frame, index=False)
    return hashlib.sha256(rows.to_numpy()).hexdigest()[:16]


class _PydocsDocs(BaseDocs):
    def docs_iter(self) -> Iterator[GenericDoc]:
        return (GenericDoc(*row) for row in pydocs.load().passages.itertuples(index=False))

    def docs_count(self) -> int:
        return len(pydocs.load().passages)

    def docs_store(self, options: object = None) -> Docstore:
        return _PydocsDocstore(GenericDoc)

    def docs_namespace(self) -> str:
        return "rdl/pydocs"

    def docs_lang(self) -> str:
        return "en"


class _PydocsDocstore(Docstore):
    def get_many_iter(self, doc_ids: Iterable[str]) -> Iterator[GenericDoc]:
        text = pydocs.load().passages.set_index("doc_id")["text"]
        return (GenericDoc(doc_id, text[doc_id]) for doc_id in doc_ids if doc_id in text.index)


class _PydocsQueries(BaseQueries):
    def __init__(self, split: str) -> None:
        self._split = split

    def queries_iter(self) -> Iterator[GenericQuery]:
        queries = pydocs.load().queries
        own = queries.loc[queries["split"] == self._split, ["query_id", "query"]]
        return (GenericQuery(*row) for row in own.itertuples(index=False))

    def queries_namespace(self) -> str:
        return "rdl/pydocs"

    def queries_lang(self) -> str:
        return "en"


class _PydocsQrels(BaseQrels):
    def __init__(self, split: str) -> None:
        self._split = split

    def qrels_iter(self) -> Iterator[TrecQrel]:
        frames = pydocs.load()
        queries = frames.queries
        own = set(queries.loc[queries["split"] == self._split, "query_id"])
        for query_id, doc_id, relevance in frames.qrels.itertuples(index=False):
            if query_id in own:
                yield TrecQrel(query_id, doc_id, relevance, "0")

    def qrels_cls(self) -> type:
        return TrecQrel

    def qrels_defs(self) -> dict[int, str]:
        return {3: "the passage that the query opens", 1: 'named in its "See Also" section'}


def _register_pydocs() -> None:
    docs = _PydocsDocs()
    ir_datasets.registry.register("rdl/pydocs", ir_datasets.Dataset(docs))
    for split in pydocs.SPLITS:
        dataset = ir_datasets.Dataset(docs, _PydocsQueries(split), _PydocsQrels(split))
        ir_datasets.registry.register(f"rdl/pydocs/{split}", dataset)


if "rdl/pydocs" not in ir_datasets.registry:
    _register_pydocs()
