"""One door to every test collection: `load` takes an ir_datasets id and gives frames.

Ids are ir_datasets' own (``msmarco-passage/trec-dl-2019/judged``, ``vaswani``, ``beir/...``) and
ours, which importing this module registers with ir_datasets as real datasets, so that any tool that
speaks ir_datasets can read them too:

- ``rdl/pydocs/{train,dev,test}``: the embedded collection, which needs no network;
- ``rdl/trec-dl-{2019,2020,2022}``: the passages that RankLLM's candidate lists carry (see
  `rdl_core.data.trec_dl`); 2022 has no judgments;
- ``rdl/vaswani`` and ``rdl/cranfield``: ir_datasets' ``vaswani`` and ``cranfield`` from files that
  `rdl_core.data.downloads` fetches. Cranfield's judgments are coarser: 1 where ir_datasets has
  grades 1 to 4, 0 where it has -1;
- a folder of one's own, in BEIR's layout or with ``queries.tsv``, ``collection.tsv`` and, where there
  are judgments, ``qrels.tsv``; its path is the id;
- any of all these with ``/crops`` behind it: the same passages with a pseudo-query from each, to
  which only that passage is relevant (see `rdl_core.data.crops`).

Files are fetched when a collection is first read, not when it is opened.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import cached_property, lru_cache, partial
from itertools import islice, starmap
from pathlib import Path
from typing import NamedTuple
from xml.etree import ElementTree

import ir_datasets
import pandas as pd
from ir_datasets.datasets.cranfield import CranfieldDoc
from ir_datasets.formats import GenericDoc, GenericQuery, TrecQrels

from rdl_core.data import pydocs, trec_dl
from rdl_core.data._parts import Docs, Fetched, Qrels, Queries
from rdl_core.data.crops import crops
from rdl_core.data.downloads import fetch
from rdl_core.data.formats import read_passages, read_qrels, read_queries

__all__ = ["Collection", "fingerprint", "load"]

_CHUNK = 2**16  # passages read at once


@dataclass(frozen=True)
class Collection:
    """Queries, passages and judgments of one ir_datasets id, as frames, each read when asked for.

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
        rows = ((q.query_id, q.default_text()) for q in self._each("queries"))
        return pd.DataFrame(rows, columns=["query_id", "query"], dtype="str")

    @cached_property
    def passages(self) -> pd.DataFrame:
        """``doc_id`` and ``text``, in the collection's order; all of them in memory."""
        return pd.concat([_passages([]), *self.passage_chunks()], ignore_index=True)

    def passage_chunks(self) -> Iterator[pd.DataFrame]:
        """The same in parts, so that memory does not grow with the collection."""
        if "passages" in vars(self):  # read before
            yield self.passages
            return
        rows = ((d.doc_id, d.default_text()) for d in self._each("docs"))
        while part := list(islice(rows, _CHUNK)):
            yield _passages(part)

    def passages_of(self, doc_ids: Iterable[str]) -> pd.DataFrame:
        """The same of some ids alone, in the collection's order."""
        wanted = set(doc_ids)
        found = (part[part["doc_id"].isin(wanted)] for part in self.passage_chunks())
        return pd.concat([_passages([]), *found], ignore_index=True)

    @property
    def doc_ids(self) -> pd.Index:
        """Ids of all passages, in the collection's order."""
        return self._read_through[0]

    @property
    def passages_fingerprint(self) -> str:
        """What `fingerprint` gives for `passages`."""
        return self._read_through[1]

    @cached_property
    def _read_through(self) -> tuple[pd.Index, str]:
        """Ids and fingerprint of the passages, from one reading, without keeping their texts."""
        ids = []

        def parts() -> Iterator[pd.DataFrame]:
            for part in self.passage_chunks():
                ids.append(part["doc_id"].copy())
                yield part

        of_all = _fingerprint(parts())
        return pd.Index(pd.concat([_passages([])["doc_id"], *ids])), of_all

    @cached_property
    def qrels(self) -> pd.DataFrame:
        """``query_id``, ``doc_id`` and ``relevance``."""
        rows = ((q.query_id, q.doc_id, q.relevance) for q in self._each("qrels"))
        return pd.DataFrame(rows, columns=["query_id", "doc_id", "relevance"])

    @cached_property
    def fingerprint(self) -> str:
        """Fingerprints of queries, passages and judgments, as far as it has them, in one string."""
        parts = {
            "queries": lambda: fingerprint(self.queries), "docs": lambda: self.passages_fingerprint,
            "qrels": lambda: fingerprint(self.qrels),
        }  # fmt: skip
        return "-".join(of() for part, of in parts.items() if self.has(part))

    def has(self, part: str) -> bool:
        """Whether the collection has ``docs``, ``queries`` or ``qrels``."""
        return getattr(self.dataset, f"has_{part}")()

    def _each(self, part: str) -> Iterator[NamedTuple]:
        self._require(part)
        try:
            yield from getattr(self.dataset, f"{part}_iter")()
        except RuntimeError as error:  # ir_datasets' own, with a list of what it tried
            tried = error.args[1] if len(error.args) == 2 else [(error, None)]
            raise ValueError(
                f"expected {part} of collection {self.id!r} in {ir_datasets.util.home_path()} or at "
                + ", ".join(f"{source} ({type(why).__name__})" for source, why in tried)
                + ": set IR_DATASETS_HOME to a copy of that folder from a machine with a network"
            ) from error

    def _require(self, part: str) -> None:
        if not self.has(part):
            has = [p for p in ("docs", "queries", "qrels") if self.has(p)]
            subsets = (i for i in ir_datasets.registry if i.startswith(f"{self.id}/"))
            near = list(islice((i for i in subsets if Collection(i).has(part)), 8))
            raise ValueError(
                f"expected collection {self.id!r} to have {part}, but it has only "
                + (", ".join(has) or "nothing")
                + (f": try one of {', '.join(near)}" if near else "")
            )


@lru_cache(maxsize=8)
def load(collection_id: str) -> Collection:
    """Open a collection.

    Args:
        collection_id: An id that ir_datasets knows, ours included; a folder; or either with
            ``/crops`` behind it.

    Raises:
        ValueError: An unknown id; lists ours. Or a folder without queries and passages.

    >>> load("rdl/pydocs/test").queries.columns.tolist()
    ['query_id', 'query']
    """
    base, _, last = collection_id.rpartition("/")
    if collection_id in ir_datasets.registry:
        return Collection(collection_id)
    if last == "crops" and base:
        _register_crops(load(base), collection_id)
    elif Path(collection_id).is_dir():
        _register_folder(Path(collection_id))
    else:
        ours = sorted(i for i in ir_datasets.registry if i.startswith("rdl/"))
        raise ValueError(
            f"unknown collection {collection_id!r}: expected a folder, an ir_datasets id, or one of "
            f"ours: {', '.join(ours)}"
        )
    return Collection(collection_id)


def fingerprint(frame: pd.DataFrame) -> str:
    """16 hexadecimal digits that change with any value of a frame, or the order of its rows.

    >>> fingerprint(pd.DataFrame({"a": ["x"]})) == fingerprint(pd.DataFrame({"a": ["y"]}))
    False
    """
    return _fingerprint([frame])


def _fingerprint(parts: Iterable[pd.DataFrame]) -> str:
    """Of a frame in parts, the same however it is cut."""
    rows = hashlib.sha256()
    for part in parts:
        rows.update(pd.util.hash_pandas_object(part, index=False).to_numpy())
    return rows.hexdigest()[:16]


def _passages(rows: list[tuple[str, str]]) -> pd.DataFrame:
    return pd.DataFrame(rows, columns=["doc_id", "text"], dtype="str")


# --- the embedded collection --------------------------------------------------------------------


def _pydocs_qrels(split: str) -> Iterator[tuple[str, str, int]]:
    own = {query.query_id for query in _pydocs_queries(split)}
    return (row for row in pydocs.load().qrels.itertuples(index=False, name=None) if row[0] in own)


def _pydocs_docs() -> Iterator[GenericDoc]:
    return (GenericDoc(*row) for row in pydocs.load().passages.itertuples(index=False))


def _pydocs_queries(split: str) -> Iterator[GenericQuery]:
    queries = pydocs.load().queries
    own = queries.loc[queries["split"] == split, ["query_id", "query"]]
    return (GenericQuery(*row) for row in own.itertuples(index=False))


# --- TREC Deep Learning -------------------------------------------------------------------------


def _trec_dl_docs(year: int) -> Iterator[GenericDoc]:
    return (GenericDoc(*item) for item in trec_dl.load_texts(year).passages.items())


def _trec_dl_queries(year: int) -> Iterator[GenericQuery]:
    return (GenericQuery(*item) for item in trec_dl.load_texts(year).queries.items())


# --- Vaswani and Cranfield ----------------------------------------------------------------------


def _vaswani_docs() -> Iterator[GenericDoc]:
    for number in _elements("vaswani/doc-text.trec", "DOCNO"):
        yield GenericDoc(number.text, number.tail.removeprefix("\n"))


def _vaswani_queries() -> Iterator[GenericQuery]:
    for topic in _elements("vaswani/query-text.trec", "top"):
        yield GenericQuery(topic.findtext("num"), topic.findtext("title").removeprefix("\n"))


def _cranfield_docs() -> Iterator[CranfieldDoc]:
    for doc in _elements("cranfield/cran.all.1400.xml", "doc"):
        fields = ("docno", "title", "text", "author", "bib")
        yield CranfieldDoc(*(doc.findtext(field).strip() for field in fields))


def _cranfield_queries() -> Iterator[GenericQuery]:
    """Numbered 1 to 225 as the judgments number them; the file's own numbers go up to 365."""
    for number, topic in enumerate(_elements("cranfield/cran.qry.xml", "top"), start=1):
        yield GenericQuery(str(number), topic.findtext("title").strip())


def _elements(name: str, tag: str) -> Iterator[ElementTree.Element]:
    """Elements of a file that may lack the one element around all."""
    text = re.sub(r"^<\?xml[^>]*\?>", "", fetch(name).read_text(encoding="utf-8"))
    return ElementTree.fromstring(f"<all>{text}</all>").iter(tag)


def _register_pydocs() -> None:
    docs = Docs("rdl/pydocs", _pydocs_docs)
    ir_datasets.registry.register("rdl/pydocs", ir_datasets.Dataset(docs))
    for split in pydocs.SPLITS:
        queries = Queries("rdl/pydocs", partial(_pydocs_queries, split))
        grades = {3: "the passage that the query opens", 1: 'named in its "See Also" section'}
        qrels = Qrels(partial(_pydocs_qrels, split), grades)
        dataset = ir_datasets.Dataset(docs, queries, qrels)
        ir_datasets.registry.register(f"rdl/pydocs/{split}", dataset)


def _register_trec_dl() -> None:
    grades = {3: "perfectly relevant", 2: "highly relevant", 1: "related", 0: "irrelevant"}
    for year, judged in trec_dl.YEARS.items():
        name = f"rdl/trec-dl-{year}"
        parts = [Docs(name, partial(_trec_dl_docs, year))]
        parts.append(Queries(name, partial(_trec_dl_queries, year)))
        if judged:
            parts.append(TrecQrels(Fetched(trec_dl.qrels_name(year)), grades))
        ir_datasets.registry.register(name, ir_datasets.Dataset(*parts))


def _register_classics() -> None:
    vaswani = ir_datasets.Dataset(
        Docs("rdl/vaswani", _vaswani_docs),
        Queries("rdl/vaswani", _vaswani_queries),
        TrecQrels(Fetched("vaswani/qrels"), {1: "relevant"}),
    )
    cranfield = ir_datasets.Dataset(
        Docs("rdl/cranfield", _cranfield_docs, CranfieldDoc),
        Queries("rdl/cranfield", _cranfield_queries),
        TrecQrels(
            Fetched("cranfield/cranqrel.trec.txt"),
            {3: "relevant (one slip of the file)", 1: "relevant", 0: "of no interest"},
        ),
    )
    ir_datasets.registry.register("rdl/vaswani", vaswani)
    ir_datasets.registry.register("rdl/cranfield", cranfield)


# --- what has no name beforehand ----------------------------------------------------------------


def _register_crops(base: Collection, name: str) -> None:
    def queries() -> Iterator[GenericQuery]:
        return (GenericQuery(*row) for row in crops(base.passages).itertuples(index=False))

    def judgments() -> Iterator[tuple[str, str, int]]:
        return ((query.query_id, query.query_id.removesuffix(".crop"), 1) for query in queries())

    grades = {1: "the passage that the query was cut from"}
    parts = (Queries(name, queries), Qrels(judgments, grades), base.dataset)  # the first counts
    ir_datasets.registry.register(name, ir_datasets.Dataset(*parts))


def _register_folder(folder: Path) -> None:
    """Files of a folder, in BEIR's layout or as tsv; the first of each kind that is there."""

    def found(*names: str) -> Path | None:
        return next((folder / name for name in names if (folder / name).is_file()), None)

    queries, passages = found("queries.jsonl", "queries.tsv"), found("corpus.jsonl", "collection.tsv")
    if not (queries and passages):
        raise ValueError(
            f"{folder}: expected queries.jsonl and corpus.jsonl, or queries.tsv and collection.tsv; "
            f"found {sorted(path.name for path in folder.iterdir())[:9]}: rename or convert them"
        )
    parts = [
        Docs(str(folder), lambda: starmap(GenericDoc, read_passages(passages).to_numpy())),
        Queries(str(folder), lambda: starmap(GenericQuery, read_queries(queries).to_numpy())),
    ]
    if qrels := found("qrels/test.tsv", "qrels.tsv", "qrels/dev.tsv", "qrels/train.tsv"):
        parts.append(Qrels(lambda: map(tuple, read_qrels(qrels).to_numpy()), {1: "relevant"}))
    ir_datasets.registry.register(str(folder), ir_datasets.Dataset(*parts))


if "rdl/pydocs" not in ir_datasets.registry:
    _register_pydocs()
    _register_trec_dl()
    _register_classics()
