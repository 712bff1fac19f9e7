"""One door to every collection: `load` takes an id and gives frames; `read_corpus` reads candidates.

An id is one of ir_datasets (``msmarco-passage/trec-dl-2019/judged``, ``beir/...``) or one of ours,
which importing this module registers with ir_datasets, for all tools that speak it:

- ``rdl/pydocs/{train,dev,test}``: the embedded collection, which needs no network;
- ``rdl/trec-dl-{2019,2020,2022}``: the passages of RankLLM's lists; 2022 has no judgments;
- ``rdl/vaswani`` and ``rdl/cranfield``: those of ir_datasets, from files of the registry. Cranfield's
  judgments are coarser: 1 where ir_datasets has grades 1 to 4, 0 where it has -1;
- a folder in BEIR's layout, or with ``queries.tsv``, ``collection.tsv`` and perhaps ``qrels.tsv``;
- any of these with ``/crops`` behind it: the same passages, and pseudo-queries from `crops`.

Files are fetched when a collection is first read, not when it is opened.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, lru_cache, partial
from itertools import islice
from pathlib import Path
from random import Random
from typing import NamedTuple
from xml.etree import ElementTree

import ir_datasets
import pandas as pd
from ir_datasets.datasets.cranfield import CranfieldDoc
from ir_datasets.formats import BaseDocs, BaseQrels, BaseQueries, GenericDoc, GenericQuery, TrecQrel
from ir_datasets.indices import Docstore

from rdl_core.data import published, pydocs
from rdl_core.data.downloads import fetch
from rdl_core.data.formats import read_candidates, read_passages, read_qrels, read_queries

__all__ = [
    "Collection", "Corpus", "Texts", "crops", "fingerprint", "load", "read_corpus", "read_judgments",
]  # fmt: skip

_CHUNK = 2**16  # passages read at once
_LOOKED_UP = 4096  # texts looked up at once


@dataclass(frozen=True)
class Collection:
    """Queries, passages and judgments of one id, as frames, each read when it is asked for."""

    id: str

    @property
    def dataset(self) -> ir_datasets.Dataset:
        """The ir_datasets dataset behind this collection."""
        return ir_datasets.load(self.id)

    @cached_property
    def queries(self) -> pd.DataFrame:
        """``query_id`` and ``query``, in the collection's order."""
        rows = ((q.query_id, q.default_text()) for q in self._rows("queries"))
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
        rows = ((d.doc_id, d.default_text()) for d in self._rows("docs"))
        while chunk := list(islice(rows, _CHUNK)):
            yield _passages(chunk)

    def passages_of(self, doc_ids: Iterable[str]) -> pd.DataFrame:
        """The same of some ids alone, in the collection's order."""
        wanted = set(doc_ids)
        chunks = (chunk[chunk["doc_id"].isin(wanted)] for chunk in self.passage_chunks())
        return pd.concat([_passages([]), *chunks], ignore_index=True)

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
        ids, rows = [_passages([])["doc_id"]], hashlib.sha256()
        for chunk in self.passage_chunks():
            ids.append(chunk["doc_id"].copy())
            rows.update(pd.util.hash_pandas_object(chunk, index=False).to_numpy())
        return pd.Index(pd.concat(ids)), rows.hexdigest()[:16]

    @cached_property
    def qrels(self) -> pd.DataFrame:
        """``query_id``, ``doc_id`` and ``relevance``."""
        rows = ((q.query_id, q.doc_id, q.relevance) for q in self._rows("qrels"))
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

    def _rows(self, part: str) -> Iterator[NamedTuple]:
        if not self.has(part):
            has = [p for p in ("docs", "queries", "qrels") if self.has(p)]
            subsets = (i for i in ir_datasets.registry if i.startswith(f"{self.id}/"))
            near = list(islice((i for i in subsets if Collection(i).has(part)), 8))
            raise ValueError(
                f"collection {self.id!r} has no {part}, only {', '.join(has) or 'nothing'}"
                + (f": try one of {', '.join(near)}" if near else "")
            )
        try:
            yield from getattr(self.dataset, f"{part}_iter")()
        except RuntimeError as error:  # ir_datasets' own, with a list of what it tried
            tried = error.args[1] if len(error.args) == 2 else [(error, None)]
            raise ValueError(
                f"{part} of collection {self.id!r} are neither in {ir_datasets.util.home_path()} nor "
                + ", ".join(f"at {source} ({type(why).__name__})" for source, why in tried)
                + ": set IR_DATASETS_HOME to a copy of that folder from a machine with a network"
            ) from error


@lru_cache(maxsize=8)
def load(collection_id: str) -> Collection:
    """Open a collection: an id that ir_datasets knows, ours included; a folder; either with ``/crops``.

    Raises:
        ValueError: An unknown id; lists ours. Or a folder without queries and passages.
    """
    base, _, last = collection_id.rpartition("/")
    if collection_id in ir_datasets.registry:
        return Collection(collection_id)
    if last == "crops" and base:
        _register_crops(load(base), collection_id)
    elif Path(collection_id).is_dir():
        _register_folder(Path(collection_id))
    else:
        ours = ", ".join(sorted(i for i in ir_datasets.registry if i.startswith("rdl/")))
        raise ValueError(
            f"unknown collection {collection_id!r}: expected a folder, an ir_datasets id, or one of "
            f"ours: {ours}"
        )
    return Collection(collection_id)


def fingerprint(frame: pd.DataFrame) -> str:
    """16 hexadecimal digits that change with any value of a frame, or the order of its rows."""
    rows = pd.util.hash_pandas_object(frame, index=False).to_numpy()
    return hashlib.sha256(rows).hexdigest()[:16]


def crops(passages: pd.DataFrame) -> pd.DataFrame:
    """A pseudo-query from each passage: 4 to 9 words in a row of one of its sentences.

    Args:
        passages: ``doc_id`` and ``text``; each draws from its own id and text alone.

    Returns:
        ``query_id``, the passage's id with ``.crop`` behind it, and ``query``: lower case, without
        punctuation, stop words at either end taken off. A passage has none if fewer than two words are
        left, or all its sentences are shorter.

    Reference: Baldelli et al., TWOLAR, ECIR 2024; Lee et al., ACL 2019.
    """
    from bm25s.stopwords import STOPWORDS_EN_PLUS  # nearly a second; few processes crop

    rows, stop_words = [], frozenset(STOPWORDS_EN_PLUS)
    for doc_id, text in zip(passages["doc_id"], passages["text"], strict=True):
        sentences = re.split(r"(?<=[.!?:;])\s+", text)
        words_of = [re.sub(r"[^\w' -]", "", sentence).lower().split() for sentence in sentences]
        if long_enough := [words for words in words_of if len(words) >= 4]:
            draw = Random(f"{doc_id} {text}")  # of text: the same draws in every process and version
            words = draw.choice(long_enough)
            size = min(len(words), draw.randint(4, 9))
            start = draw.randrange(len(words) - size + 1)
            crop = words[start : start + size]
            telling = [n for n, word in enumerate(crop) if word not in stop_words]
            if len(telling) > 1:
                rows.append((f"{doc_id}.crop", " ".join(crop[telling[0] : telling[-1] + 1])))
    return pd.DataFrame(rows, columns=["query_id", "query"], dtype="str")


def _passages(rows: list[tuple[str, str]]) -> pd.DataFrame:
    return pd.DataFrame(rows, columns=["doc_id", "text"], dtype="str")


# --- ranked candidates and the texts behind them --------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class Texts:
    """Texts by id."""

    what: str
    """``"query"`` or ``"passage"``."""
    source: str
    """Where they are from, for errors."""
    find: Callable[[list[str]], Mapping[str, str]]
    """Gives the texts of some ids, as far as there are any."""

    def each(self, ids: Sequence[str]) -> Iterator[str]:
        """The text of each id, looked up some thousands at a time; ValueError for an id without one."""
        rest = iter(ids)
        while some := list(islice(rest, _LOOKED_UP)):
            texts = self.find(some)
            if missing := [x for x in some if x not in texts]:
                raise ValueError(
                    f"{self.source} has no text for {len(missing)} of {len(some)} {self.what} ids, "
                    f"such as {missing[0]!r}: name the collection that was ranked (--collection)"
                )
            yield from (texts[x] for x in some)

    def of(self, ids: Sequence[str]) -> list[str]:
        """The same as a list."""
        return list(self.each(ids))


@dataclass(frozen=True, kw_only=True)
class Corpus:
    """Ranked candidates, and the texts behind their ids."""

    candidates: pd.DataFrame
    """What `read_candidates` gives, without texts."""
    queries: Texts
    """Of the candidates' queries."""
    passages: Texts
    """Of the candidates."""

    def parts(self, n_pairs: int) -> Iterator[Corpus]:
        """Whole queries, as many at a time as hold some `n_pairs` candidates."""
        sizes = self.candidates.groupby("query_id", sort=False).size()
        part = self.candidates["query_id"].map((sizes.cumsum() - sizes) // n_pairs)
        for _, rows in self.candidates.groupby(part, sort=False):
            yield replace(self, candidates=rows)

    def shard(self, number: int, of: int) -> Corpus:
        """The queries of a shard: of eight, the second has queries 2, 10, 18, ..."""
        queries = self.ids("query_id")
        if of > len(queries):
            raise ValueError(f"{len(queries)} queries cannot be shared by {of} shards: use fewer")
        own = self.candidates["query_id"].isin(queries[number - 1 :: of])
        return replace(self, candidates=self.candidates[own])

    def ids(self, column: str) -> pd.Index:
        """Each id of a column once, as it first appears."""
        return pd.Index(self.candidates[column].unique().astype(object))


def read_corpus(
    path: str | Path, *, format: str | None = None, collection: str | None = None
) -> Corpus:
    """Read ranked candidates, and find out where their texts are.

    Args:
        path: Candidates, in any format of `rdl_core.data.formats.FORMATS`.
        format: Its name there; without it, the file tells.
        collection: What `load` takes; its texts come before those in the file.

    Raises:
        ValueError: As for `read_candidates` and `load`; an id has two texts in the file; or neither the
            file nor the collection has queries, or passages.
    """
    candidates, texts = read_candidates(path, format), {}
    for what, key, column in (("query", "query_id", "query"), ("passage", "doc_id", "text")):
        if column in candidates:
            pairs = candidates[[key, column]].drop_duplicates()
            if (twice := pairs[key].duplicated()).any():
                first = pairs.loc[twice, key].iloc[0]
                raise ValueError(f"{path} has two texts for {what} {first!r}: give each its own id")
            texts[what] = _looked_up(what, str(path), pairs)
    if collection:
        # A folder comes before an id of its name: ir_datasets knows a "beir" without texts.
        own = Path(collection).is_dir() and str(Path(collection).resolve())
        opened, source = load(own or collection), f"collection {collection!r}"
        if opened.has("queries"):
            texts["query"] = _looked_up("query", source, opened.queries)
        if opened.has("docs"):
            store = opened.dataset.docs_store()

            def find(ids: list[str]) -> dict[str, str]:
                return {key: doc.default_text() for key, doc in store.get_many(ids).items()}

            texts["passage"] = Texts(what="passage", source=source, find=find)
    for what in ("query", "passage"):
        if what not in texts:
            either = f" and {collection!r} has none either" if collection else ""
            raise ValueError(
                f"{path} has no {what} texts{either}: name a folder or an ir_datasets id that has them "
                "(--collection)"
            )
    candidates = candidates.drop(columns=["query", "text"], errors="ignore")
    return Corpus(candidates=candidates, queries=texts["query"], passages=texts["passage"])


def read_judgments(source: str | Path) -> pd.DataFrame:
    """Judgments of a file, or of a collection: ``query_id``, ``doc_id``, ``relevance``."""
    if Path(source).is_dir():
        splits = [str(path) for path in sorted(Path(source).glob("qrels/*.tsv"))]
        near = splits or "qrels/test.tsv"
        raise ValueError(f"{source} is a folder: name a file of judgments in it, such as {near}")
    if Path(source).exists():
        return read_qrels(source)
    try:
        return load(str(source)).qrels
    except ValueError as error:
        raise ValueError(f"{source} is no file of judgments, and {error}") from None


def _looked_up(what: str, source: str, texts: pd.DataFrame) -> Texts:
    by_id = dict(texts.itertuples(index=False, name=None))
    return Texts(what=what, source=source, find=lambda ids: by_id)


# --- our own, for ir_datasets ---------------------------------------------------------------------

_Rows = Callable[[], Iterable[tuple]]


@dataclass
class _Docs(BaseDocs):
    """Passages that fit into memory."""

    rows: _Rows

    def docs_iter(self) -> Iterator[GenericDoc]:
        return map(GenericDoc._make, self.rows())

    def docs_count(self) -> int:
        return sum(1 for _ in self.rows())

    def docs_store(self, options: object = None) -> Docstore:
        store, by_id = Docstore(GenericDoc), lru_cache(lambda: {d.doc_id: d for d in self.docs_iter()})
        store.get_many_iter = lambda doc_ids: (by_id()[x] for x in doc_ids if x in by_id())
        return store


@dataclass
class _Queries(BaseQueries):
    rows: _Rows

    def queries_iter(self) -> Iterator[GenericQuery]:
        return map(GenericQuery._make, self.rows())


@dataclass
class _Qrels(BaseQrels):
    rows: _Rows
    grades: dict[int, str]

    def qrels_iter(self) -> Iterator[TrecQrel]:
        return (TrecQrel(*row, "0") for row in self.rows())

    def qrels_cls(self) -> type:
        return TrecQrel

    def qrels_defs(self) -> dict[int, str]:
        return self.grades


def _register(name: str, *parts: object) -> None:
    """Make a dataset of its parts; of two that have passages, queries or judgments the first counts."""
    ir_datasets.registry.register(name, ir_datasets.Dataset(*filter(None, parts)))


def _tuples(frame: Callable[[], pd.DataFrame]) -> _Rows:
    return lambda: frame().itertuples(index=False, name=None)


def _register_crops(base: Collection, name: str) -> None:
    def queries() -> pd.DataFrame:
        return crops(base.passages)

    def qrels() -> Iterator[tuple]:
        return ((query_id, query_id.removesuffix(".crop"), 1) for query_id in queries()["query_id"])

    grades = {1: "the passage that the query was cut from"}
    _register(name, _Queries(_tuples(queries)), _Qrels(qrels, grades), base.dataset)


def _register_folder(folder: Path) -> None:
    """Files of a folder, in BEIR's layout or as tsv; the first of each kind that is there."""

    def first(*names: str) -> Path | None:
        return next((folder / name for name in names if (folder / name).is_file()), None)

    queries, passages = first("queries.jsonl", "queries.tsv"), first("corpus.jsonl", "collection.tsv")
    if not (queries and passages):
        raise ValueError(
            f"{folder}: expected queries.jsonl and corpus.jsonl, or queries.tsv and collection.tsv; "
            f"got {sorted(path.name for path in folder.iterdir())[:9]}: rename or convert them"
        )
    qrels = first("qrels/test.tsv", "qrels.tsv", "qrels/dev.tsv", "qrels/train.tsv")
    _register(
        str(folder), _Docs(_tuples(partial(read_passages, passages))),
        _Queries(_tuples(partial(read_queries, queries))),
        qrels and _Qrels(_tuples(partial(read_qrels, qrels)), {1: "relevant"}),
    )  # fmt: skip


def _register_pydocs() -> None:
    def queries(split: str) -> pd.DataFrame:
        every = pydocs.load().queries
        return every.loc[every["split"] == split, ["query_id", "query"]]

    def qrels(split: str) -> pd.DataFrame:
        every = pydocs.load().qrels
        return every[every["query_id"].isin(queries(split)["query_id"])]

    docs = _Docs(_tuples(lambda: pydocs.load().passages))
    _register("rdl/pydocs", docs)
    grades = {3: "the passage that the query opens", 1: 'named in its "See Also" section'}
    for split in pydocs.SPLITS:
        own, judged = (_tuples(partial(part, split)) for part in (queries, qrels))
        _register(f"rdl/pydocs/{split}", docs, _Queries(own), _Qrels(judged, grades))


def _register_fetched() -> None:
    """TREC DL, Vaswani, Cranfield."""

    def elements(name: str, tag: str) -> Iterator[ElementTree.Element]:  # may lack one around all
        text = re.sub(r"^<\?xml[^>]*\?>", "", fetch(name).read_text(encoding="utf-8"))
        return ElementTree.fromstring(f"<all>{text}</all>").iter(tag)

    def judged(name: str, grades: dict[int, str]) -> _Qrels:
        return _Qrels(_tuples(lambda: read_qrels(fetch(name))), grades)

    def vaswani_docs() -> Iterator[tuple]:
        numbers = elements("vaswani/doc-text.trec", "DOCNO")
        return ((number.text, number.tail.removeprefix("\n")) for number in numbers)

    def vaswani_queries() -> Iterator[tuple]:
        topics = elements("vaswani/query-text.trec", "top")
        return ((t.findtext("num"), t.findtext("title").removeprefix("\n")) for t in topics)

    def cranfield_docs() -> Iterator[tuple]:
        for doc in elements("cranfield/cran.all.1400.xml", "doc"):
            fields = (doc.findtext(x).strip() for x in ("docno", "title", "text", "author", "bib"))
            made = CranfieldDoc(*fields)
            yield made.doc_id, made.default_text()

    def cranfield_queries() -> Iterator[tuple]:  # numbered 1 to 225 as its judgments number them
        topics = enumerate(elements("cranfield/cran.qry.xml", "top"), start=1)
        return ((str(number), topic.findtext("title").strip()) for number, topic in topics)

    grades = {3: "perfectly relevant", 2: "highly relevant", 1: "related", 0: "irrelevant"}
    for year, has_qrels in published.YEARS.items():
        queries, docs = (_tuples(lambda year=year, n=n: published.texts(year)[n]) for n in (0, 1))
        qrels = judged(published.qrels_name(year), grades) if has_qrels else None
        _register(f"rdl/trec-dl-{year}", _Docs(docs), _Queries(queries), qrels)
    qrels = judged("vaswani/qrels", {1: "relevant"})
    _register("rdl/vaswani", _Docs(vaswani_docs), _Queries(vaswani_queries), qrels)
    grades = {3: "relevant (one slip of the file)", 1: "relevant", 0: "of no interest"}
    qrels = judged("cranfield/cranqrel.trec.txt", grades)
    _register("rdl/cranfield", _Docs(cranfield_docs), _Queries(cranfield_queries), qrels)


if "rdl/pydocs" not in ir_datasets.registry:
    _register_pydocs()
    _register_fetched()
