"""One door to every corpus: `load` takes an ir_datasets id or a folder and gives frames.

Ids are ir_datasets' own (``msmarco-passage/trec-dl-2019/judged``, ``vaswani``, ``beir/...``) and
ours, which importing this module registers with ir_datasets as real datasets, so that any tool that
speaks ir_datasets can read them too:

- ``rdl/pydocs/{train,dev,test}``: the embedded collection, which needs no network;
- ``rdl/trec-dl-{2019,2020,2022}``: the passages that RankLLM's candidate lists carry (see
  `rdl_core.data.published`); 2022 has no judgments;
- ``rdl/vaswani`` and ``rdl/cranfield``: ir_datasets' ``vaswani`` and ``cranfield`` from files that
  `rdl_core.data.downloads` fetches. Cranfield's judgments are coarser: 1 where ir_datasets has
  grades 1 to 4, 0 where it has -1;
- a folder in BEIR's layout or with ``queries.tsv``, ``collection.tsv`` and, where there are
  judgments, ``qrels.tsv``; its path is the id;
- any of these with ``/crops`` behind it: the same passages with a pseudo-query from each, to which
  only that passage is relevant (see `crops`).

Files are fetched when a collection is first read, not when it is opened. `read_corpus` reads ranked
candidates of any format and finds the texts behind their ids.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, lru_cache, partial
from itertools import islice, starmap
from pathlib import Path
from random import Random
from typing import BinaryIO, NamedTuple
from xml.etree import ElementTree

import ir_datasets
import pandas as pd
from bm25s.stopwords import STOPWORDS_EN_PLUS
from ir_datasets.datasets.cranfield import CranfieldDoc
from ir_datasets.formats import (
    BaseDocs,
    BaseQrels,
    BaseQueries,
    GenericDoc,
    GenericQuery,
    TrecQrel,
    TrecQrels,
)
from ir_datasets.indices import Docstore

from rdl_core.data import published, pydocs
from rdl_core.data.downloads import fetch
from rdl_core.data.formats import read_candidates, read_passages, read_qrels, read_queries

__all__ = [
    "Collection", "Corpus", "Texts", "crops", "fingerprint", "load", "read_corpus", "read_judgments",
]  # fmt: skip

_CHUNK = 2**16  # passages read at once
_LOOKED_UP = 4096  # texts at once


@dataclass(frozen=True)
class Collection:
    """Queries, passages and judgments of one ir_datasets id, as frames, each read when needed."""

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
        """The same in chunks, so that memory does not grow with the collection."""
        if "passages" in vars(self):  # read before
            yield self.passages
            return
        rows = ((d.doc_id, d.default_text()) for d in self._each("docs"))
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
        ids = []

        def chunks() -> Iterator[pd.DataFrame]:
            for chunk in self.passage_chunks():
                ids.append(chunk["doc_id"].copy())
                yield chunk

        of_all = _fingerprint(chunks())
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
                f"{part} of collection {self.id!r} are neither in {ir_datasets.util.home_path()} nor at "
                + ", ".join(f"{source} ({type(why).__name__})" for source, why in tried)
                + ": set IR_DATASETS_HOME to a copy of that folder from a machine with a network"
            ) from error


@lru_cache(maxsize=8)
def load(collection_id: str) -> Collection:
    """Open a collection by an ir_datasets id, ours included, a folder, or either with ``/crops``.

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
        ours = sorted(i for i in ir_datasets.registry if i.startswith("rdl/"))
        raise ValueError(
            f"unknown collection {collection_id!r}: expected a folder, an ir_datasets id, or one of "
            f"ours: {', '.join(ours)}"
        )
    return Collection(collection_id)


def fingerprint(frame: pd.DataFrame) -> str:
    """16 hexadecimal digits that change with any value of a frame, or the order of its rows."""
    return _fingerprint([frame])


def _fingerprint(chunks: Iterable[pd.DataFrame]) -> str:
    """Of a frame in chunks, the same however it is cut."""
    rows = hashlib.sha256()
    for chunk in chunks:
        rows.update(pd.util.hash_pandas_object(chunk, index=False).to_numpy())
    return rows.hexdigest()[:16]


def _passages(rows: list[tuple[str, str]]) -> pd.DataFrame:
    return pd.DataFrame(rows, columns=["doc_id", "text"], dtype="str")


# --- candidates with the texts behind their ids ---------------------------------------------------


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
        """The text of each id, looked up some thousands at a time.

        Raises:
            ValueError: An id without a text.
        """
        waiting = iter(ids)
        while some := list(islice(waiting, _LOOKED_UP)):
            texts = self.find(some)
            if missing := [i for i in some if i not in texts]:
                raise ValueError(
                    f"{self.source} has no text for {len(missing)} of {len(some)} {self.what} ids, such "
                    f"as {missing[0]!r}: name the collection that was ranked (--collection)"
                )
            yield from (texts[i] for i in some)

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
        part = (sizes.cumsum() - sizes) // n_pairs
        for _, some in self.candidates.groupby(self.candidates["query_id"].map(part), sort=False):
            yield replace(self, candidates=some)

    def shard(self, number: int, of: int) -> Corpus:
        """The queries of a shard: of eight, the second has queries 2, 10, 18, ...

        Raises:
            ValueError: There are fewer queries than shards.
        """
        queries = self.ids("query_id")
        if of > len(queries):
            raise ValueError(f"{len(queries)} queries cannot be shared by {of} shards: use fewer shards")
        own = self.candidates["query_id"].isin(queries[number - 1 :: of])
        return replace(self, candidates=self.candidates[own])

    def ids(self, column: str) -> pd.Index:
        """Each id of a column once, as it first appears."""
        return pd.Index(self.candidates[column].unique().astype(object))


def read_corpus(
    path: str | Path, *, format: str | None = None, collection: str | None = None
) -> Corpus:
    """Read ranked candidates, and find their texts: in a collection, or in the file itself.

    Args:
        path: Candidates, in any format of `rdl_core.data.formats.FORMATS`.
        format: Its name there; None: the file tells.
        collection: What `load` takes; its texts come before those in the file.

    Raises:
        ValueError: As for `read_candidates` and `load`; an id has two texts in the file; or neither
            the file nor the collection has queries, or passages.
    """
    candidates = read_candidates(path, format)
    texts = _texts_in(candidates, path) | (_texts_of(collection) if collection else {})
    for what in ("query", "passage"):
        if what not in texts:
            where = f" and {collection!r} has none either" if collection else ""
            raise ValueError(
                f"{path} has no {what} texts{where}: name a folder or an ir_datasets id that has them "
                "(--collection)"
            )
    candidates = candidates.drop(columns=["query", "text"], errors="ignore")
    return Corpus(candidates=candidates, queries=texts["query"], passages=texts["passage"])


def read_judgments(source: str | Path) -> pd.DataFrame:
    """Judgments of a file, or of a collection: ``query_id``, ``doc_id``, ``relevance``."""
    if Path(source).is_dir():
        splits = [str(path) for path in sorted(Path(source).glob("qrels/*.tsv"))]
        raise ValueError(
            f"{source} is a folder: name a file of judgments in it, such as "
            f"{splits or 'qrels/test.tsv'}"
        )
    if Path(source).exists():
        return read_qrels(source)
    try:
        return load(str(source)).qrels
    except ValueError as error:
        raise ValueError(f"{source} is no file of judgments, and {error}") from None


def _texts_in(candidates: pd.DataFrame, path: str | Path) -> dict[str, Texts]:
    """Texts that the candidates' own file has."""
    texts = {}
    for what, key, column in (("query", "query_id", "query"), ("passage", "doc_id", "text")):
        if column in candidates:
            pairs = candidates[[key, column]].drop_duplicates()
            if (repeated := pairs[key].duplicated()).any():
                raise ValueError(
                    f"{path} has two texts for {what} {pairs.loc[repeated, key].iloc[0]!r}: give each "
                    "text an id of its own"
                )
            texts[what] = _looked_up(what, str(path), pairs)
    return texts


def _texts_of(name: str) -> dict[str, Texts]:
    """Texts of a collection; passages are looked up, not read whole."""
    collection, texts = load(name), {}
    if collection.has("queries"):
        texts["query"] = _looked_up("query", f"collection {name!r}", collection.queries)
    if collection.has("docs"):
        store = collection.dataset.docs_store()

        def find(ids: list[str]) -> dict[str, str]:
            return {key: doc.default_text() for key, doc in store.get_many(ids).items()}

        texts["passage"] = Texts(what="passage", source=f"collection {name!r}", find=find)
    return texts


def _looked_up(what: str, source: str, texts: pd.DataFrame) -> Texts:
    by_id = dict(zip(*(texts[column] for column in texts.columns), strict=True))
    return Texts(what=what, source=source, find=lambda ids: by_id)


# --- pseudo-queries -------------------------------------------------------------------------------

_SENTENCE_END = re.compile(r"(?<=[.!?:;])\s+")
_PUNCTUATION = re.compile(r"[^\w' -]")
_STOP_WORDS = frozenset(STOPWORDS_EN_PLUS)
_CROP_WORDS = (4, 9)  # of the shortest and the longest crop


def crops(passages: pd.DataFrame) -> pd.DataFrame:
    """A pseudo-query from each passage: 4 to 9 words in a row of a sentence of it.

    A fresh head must see thousands of different queries before it matches words with passages at
    all, and a test collection has dozens. Crops cost nothing and need no model.

    Args:
        passages: ``doc_id`` and ``text``.

    Returns:
        ``query_id``, the passage's id with ``.crop`` behind it, and ``query``: lower case, without
        punctuation, stop words at either end taken off, two words or more. A passage whose crop
        falls on stop words has none. Each draws from its own id and text alone.

    Reference: Baldelli et al., TWOLAR, ECIR 2024; Lee et al., ACL 2019.
    """
    rows = [
        (f"{doc_id}.crop", query)
        for doc_id, text in zip(passages["doc_id"], passages["text"], strict=True)
        if (query := _crop(doc_id, text))
    ]
    return pd.DataFrame(rows, columns=["query_id", "query"], dtype="str")


def _crop(doc_id: str, text: str) -> str:
    fewest, most = _CROP_WORDS
    sentences = [_PUNCTUATION.sub("", s).lower().split() for s in _SENTENCE_END.split(text)]
    if not (long_enough := [words for words in sentences if len(words) >= fewest]):
        return ""
    draw = Random(f"{doc_id} {text}")  # of text: the same draws in every process and version
    words = draw.choice(long_enough)
    size = min(len(words), draw.randint(fewest, most))
    start = draw.randrange(len(words) - size + 1)
    telling = [n for n, word in enumerate(words[start : start + size]) if word not in _STOP_WORDS]
    if len(telling) < 2:
        return ""
    return " ".join(words[start + telling[0] : start + telling[-1] + 1])


# --- our collections, as ir_datasets wants them ---------------------------------------------------


class _Docs(BaseDocs):
    """Passages that fit into memory; `read` gives them all, in the collection's order."""

    def __init__(
        self, name: str, read: Callable[[], Iterable[NamedTuple]], kind: type = GenericDoc
    ) -> None:
        self._name, self._read, self._kind = name, read, kind

    def docs_iter(self) -> Iterator[NamedTuple]:
        return iter(self._read())

    def docs_count(self) -> int:
        return sum(1 for _ in self._read())

    def docs_store(self, options: object = None) -> Docstore:
        return _Docstore(self._kind, self._read)

    def docs_cls(self) -> type:
        return self._kind

    def docs_namespace(self) -> str:
        return self._name

    def docs_lang(self) -> str:
        return "en"


class _Docstore(Docstore):
    def __init__(self, kind: type, read: Callable[[], Iterable[NamedTuple]]) -> None:
        super().__init__(kind)
        self._read = read

    @cached_property
    def _by_id(self) -> dict[str, NamedTuple]:
        return {doc.doc_id: doc for doc in self._read()}

    def get_many_iter(self, doc_ids: Iterable[str]) -> Iterator[NamedTuple]:
        return (self._by_id[doc_id] for doc_id in doc_ids if doc_id in self._by_id)

    def clear_cache(self) -> None:
        self.__dict__.pop("_by_id", None)


class _Queries(BaseQueries):
    def __init__(self, name: str, read: Callable[[], Iterable[GenericQuery]]) -> None:
        self._name, self._read = name, read

    def queries_iter(self) -> Iterator[GenericQuery]:
        return iter(self._read())

    def queries_namespace(self) -> str:
        return self._name

    def queries_lang(self) -> str:
        return "en"


class _Qrels(BaseQrels):
    """Judgments, as triples of ids and relevance, and what each grade means."""

    def __init__(
        self, read: Callable[[], Iterable[tuple[str, str, int]]], grades: dict[int, str]
    ) -> None:
        self._read, self._grades = read, grades

    def qrels_iter(self) -> Iterator[TrecQrel]:
        return (TrecQrel(*row, "0") for row in self._read())

    def qrels_cls(self) -> type:
        return TrecQrel

    def qrels_defs(self) -> dict[int, str]:
        return self._grades


@dataclass(frozen=True)
class _Fetched:
    """A file of the registry, in the form in which ir_datasets' own readers take theirs."""

    name: str

    def path(self, force: bool = True) -> Path:
        return fetch(self.name)

    def stream(self) -> BinaryIO:
        return fetch(self.name).open("rb")


def _pydocs_queries(split: str) -> Iterator[GenericQuery]:
    queries = pydocs.load().queries
    own = queries.loc[queries["split"] == split, ["query_id", "query"]]
    return starmap(GenericQuery, own.itertuples(index=False))


def _pydocs_qrels(split: str) -> Iterator[tuple[str, str, int]]:
    own = {query.query_id for query in _pydocs_queries(split)}
    return (row for row in pydocs.load().qrels.itertuples(index=False, name=None) if row[0] in own)


def _register_pydocs() -> None:
    docs = _Docs(
        "rdl/pydocs", lambda: starmap(GenericDoc, pydocs.load().passages.itertuples(index=False))
    )
    ir_datasets.registry.register("rdl/pydocs", ir_datasets.Dataset(docs))
    grades = {3: "the passage that the query opens", 1: 'named in its "See Also" section'}
    for split in pydocs.SPLITS:
        queries = _Queries("rdl/pydocs", partial(_pydocs_queries, split))
        dataset = ir_datasets.Dataset(docs, queries, _Qrels(partial(_pydocs_qrels, split), grades))
        ir_datasets.registry.register(f"rdl/pydocs/{split}", dataset)


def _register_trec_dl() -> None:
    grades = {3: "perfectly relevant", 2: "highly relevant", 1: "related", 0: "irrelevant"}
    for year, judged in published.YEARS.items():
        name = f"rdl/trec-dl-{year}"

        def texts(which: int, kind: type, year: int = year) -> Iterator[NamedTuple]:
            return starmap(kind, published.texts_of_year(year)[which].items())

        parts = [_Docs(name, partial(texts, 1, GenericDoc)), _Queries(name, partial(texts, 0, GenericQuery))]
        if judged:
            parts.append(TrecQrels(_Fetched(published.qrels_name(year)), grades))
        ir_datasets.registry.register(name, ir_datasets.Dataset(*parts))


def _elements(name: str, tag: str) -> Iterator[ElementTree.Element]:
    """Elements of a file that may lack the one element around all."""
    text = re.sub(r"^<\?xml[^>]*\?>", "", fetch(name).read_text(encoding="utf-8"))
    return ElementTree.fromstring(f"<all>{text}</all>").iter(tag)


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


def _register_classics() -> None:
    vaswani = ir_datasets.Dataset(
        _Docs("rdl/vaswani", _vaswani_docs), _Queries("rdl/vaswani", _vaswani_queries),
        TrecQrels(_Fetched("vaswani/qrels"), {1: "relevant"}),
    )  # fmt: skip
    grades = {3: "relevant (one slip of the file)", 1: "relevant", 0: "of no interest"}
    cranfield = ir_datasets.Dataset(
        _Docs("rdl/cranfield", _cranfield_docs, CranfieldDoc),
        _Queries("rdl/cranfield", _cranfield_queries),
        TrecQrels(_Fetched("cranfield/cranqrel.trec.txt"), grades),
    )
    ir_datasets.registry.register("rdl/vaswani", vaswani)
    ir_datasets.registry.register("rdl/cranfield", cranfield)


def _register_crops(base: Collection, name: str) -> None:
    def queries() -> Iterator[GenericQuery]:
        return starmap(GenericQuery, crops(base.passages).itertuples(index=False))

    def judgments() -> Iterator[tuple[str, str, int]]:
        return ((query.query_id, query.query_id.removesuffix(".crop"), 1) for query in queries())

    grades = {1: "the passage that the query was cut from"}
    parts = (_Queries(name, queries), _Qrels(judgments, grades), base.dataset)  # the first counts
    ir_datasets.registry.register(name, ir_datasets.Dataset(*parts))


def _register_folder(folder: Path) -> None:
    """Files of a folder, in BEIR's layout or as tsv; the first of each kind that is there."""

    def first(*names: str) -> Path | None:
        return next((folder / name for name in names if (folder / name).is_file()), None)

    queries, passages = first("queries.jsonl", "queries.tsv"), first("corpus.jsonl", "collection.tsv")
    if not (queries and passages):
        raise ValueError(
            f"{folder}: expected queries.jsonl and corpus.jsonl, or queries.tsv and collection.tsv, "
            f"got {sorted(path.name for path in folder.iterdir())[:9]}: rename or convert them"
        )
    parts = [
        _Docs(str(folder), lambda: starmap(GenericDoc, read_passages(passages).to_numpy())),
        _Queries(str(folder), lambda: starmap(GenericQuery, read_queries(queries).to_numpy())),
    ]
    if qrels := first("qrels/test.tsv", "qrels.tsv", "qrels/dev.tsv", "qrels/train.tsv"):
        parts.append(_Qrels(lambda: map(tuple, read_qrels(qrels).to_numpy()), {1: "relevant"}))
    ir_datasets.registry.register(str(folder), ir_datasets.Dataset(*parts))


if "rdl/pydocs" not in ir_datasets.registry:
    _register_pydocs()
    _register_trec_dl()
    _register_classics()
