"""One door to every collection: `load` takes an id and gives frames; `read_corpus` reads candidates.

An id is one of ir_datasets (``msmarco-passage/trec-dl-2019/judged``, ``beir/...``), or one of:

- ``rdl/pydocs/{train,dev,test}``: the embedded collection, which needs no network;
- ``rdl/trec-dl-{2019,2020,2022}``: the passages of RankLLM's lists; 2022 has no judgments;
- ``rdl/vaswani`` and ``rdl/cranfield``: those of ir_datasets, from files of the registry. Cranfield's
  judgments are coarser: 1 where ir_datasets has grades 1 to 4, 0 where it has -1;
- a folder in BEIR's layout, or with ``queries.tsv``, ``collection.tsv`` and perhaps ``qrels.tsv``;
- any of these with ``/crops`` behind it: the same passages, and pseudo-queries from `crops`.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache, cached_property, lru_cache, partial
from itertools import islice
from pathlib import Path
from random import Random

import ir_datasets
import pandas as pd

from rdl_core.data import published, pydocs
from rdl_core.data.downloads import fetch
from rdl_core.data.formats import read_candidates, read_passages, read_qrels, read_queries

__all__ = ["Collection", "Corpus", "Texts", "crops", "fingerprint", "load", "read_corpus",
           "read_judgments"]  # fmt: skip

_PARTS = ("queries", "docs", "qrels")
_CHUNK = 2**16  # texts read, or looked up, at once
_Find = Callable[[list[str]], Mapping[str, str]]
_Parts = dict[str, Callable[[], Iterable[tuple] | pd.DataFrame]]


@dataclass(frozen=True, eq=False)
class Collection:
    """Queries, passages and judgments, as frames, each read when it is asked for."""

    id: str
    parts: _Parts  # read docs, queries and qrels, as far as there are any: a frame, or its rows
    find: _Find | None = None  # looks passages up, where this needs no reading of all

    @cached_property
    def queries(self) -> pd.DataFrame:
        """``query_id`` and ``query``, in the collection's order."""
        return pd.DataFrame(self._rows("queries"), columns=["query_id", "query"], dtype="str")

    @cached_property
    def passages(self) -> pd.DataFrame:
        """``doc_id`` and ``text``, in the collection's order; all of them in memory."""
        return pd.concat(self.passage_chunks(), ignore_index=True)

    def passage_chunks(self) -> Iterator[pd.DataFrame]:
        """The same in parts, so that memory does not grow with the collection."""
        rows = self._rows("docs")
        while chunk := list(islice(rows, _CHUNK)):
            yield pd.DataFrame(chunk, columns=["doc_id", "text"], dtype="str")

    def passages_of(self, doc_ids: Iterable[str]) -> pd.DataFrame:
        """The same of some ids alone, in the collection's order."""
        wanted = set(doc_ids)
        chunks = (chunk[chunk["doc_id"].isin(wanted)] for chunk in self.passage_chunks())
        return pd.concat(chunks, ignore_index=True)

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
        ids, rows = [], hashlib.sha256()
        for chunk in self.passage_chunks():
            ids.append(chunk["doc_id"].copy())
            rows.update(pd.util.hash_pandas_object(chunk, index=False).to_numpy())
        return pd.Index(pd.concat(ids)), rows.hexdigest()[:16]

    @cached_property
    def qrels(self) -> pd.DataFrame:
        """``query_id``, ``doc_id`` and ``relevance``."""
        return pd.DataFrame(self._rows("qrels"), columns=["query_id", "doc_id", "relevance"])

    @cached_property
    def fingerprint(self) -> str:
        """Fingerprints of queries, passages and judgments, as far as it has them, in one string."""
        own = (x for x in _PARTS if x in self.parts)
        prints = (self._read_through[1] if x == "docs" else fingerprint(getattr(self, x)) for x in own)
        return "-".join(prints)

    def _rows(self, part: str) -> Iterator[tuple]:
        if part not in self.parts:
            has = ", ".join(x for x in _PARTS if x in self.parts) or "nothing"
            subsets = (i for i in (*_OURS, *ir_datasets.registry) if i.startswith(f"{self.id}/"))
            near = ", ".join(islice((i for i in subsets if part in load.__wrapped__(i).parts), 8))
            remedy = f": try one of {near}" if near else ""
            raise ValueError(f"collection {self.id!r} has no {part}, only {has}{remedy}")
        rows = self.parts[part]()
        return rows.itertuples(index=False, name=None) if isinstance(rows, pd.DataFrame) else iter(rows)


@lru_cache(maxsize=8)
def load(collection_id: str) -> Collection:
    """Open a collection; ValueError for an unknown id, or a folder without queries and passages."""
    base, _, last = collection_id.rpartition("/")
    if collection_id in _OURS:
        return Collection(collection_id, _OURS[collection_id])
    if Path(collection_id).is_dir():  # before an id of its name: ir_datasets has a "beir" without texts
        return Collection(collection_id, _folder(Path(collection_id).resolve()))
    if collection_id in ir_datasets.registry:
        return _indexed(collection_id)
    if base and last == "crops":
        source = load(base)
        queries = cache(lambda: crops(source.passages))
        own = {
            "queries": queries,
            "qrels": lambda: ((x, x.removesuffix(".crop"), 1) for x in queries()["query_id"]),
        }
        return Collection(collection_id, source.parts | own, source.find)
    known = f"a folder, an ir_datasets id, or one of ours: {', '.join(sorted(_OURS))}"
    raise ValueError(f"unknown collection {collection_id!r}: expected {known}")


def fingerprint(frame: pd.DataFrame) -> str:
    """16 hexadecimal digits that change with any value of a frame, or the order of its rows."""
    rows = pd.util.hash_pandas_object(frame, index=False).to_numpy()
    return hashlib.sha256(rows).hexdigest()[:16]


def crops(passages: pd.DataFrame) -> pd.DataFrame:
    """A pseudo-query from each passage: 4 to 9 words in a row of one of its sentences.

    Gives ``query_id``, the ``doc_id`` with ``.crop`` behind it, and ``query``: lower case, without
    punctuation, stop words at either end taken off; none if fewer than two words are left. Each draws
    from its own id and text alone.

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


@dataclass(frozen=True, kw_only=True)
class Texts:
    """Texts by id."""

    what: str  # query or passage
    source: str  # for errors
    find: _Find  # gives the texts of some ids, as far as there are any

    def each(self, ids: Sequence[str]) -> Iterator[str]:
        """The text of each id, looked up some thousands at a time; ValueError for an id without one."""
        rest = iter(ids)
        while some := list(islice(rest, _CHUNK)):
            texts = self.find(some)
            if missing := [x for x in some if x not in texts]:
                told = f"{len(missing)} of {len(some)} {self.what} ids, such as {missing[0]!r}"
                raise ValueError(f"{self.source} has no text for {told}: name the collection ranked")
            yield from (texts[x] for x in some)


@dataclass(frozen=True, kw_only=True)
class Corpus:
    """Ranked candidates, and the texts behind their ids."""

    candidates: pd.DataFrame  # what `read_candidates` gives, without texts
    queries: Texts
    passages: Texts

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

    def with_texts(self) -> pd.DataFrame:
        """The candidates with columns ``query`` and ``text``, all in memory."""
        frame = self.candidates.reset_index(drop=True)
        columns = ("query", "query_id", self.queries), ("text", "doc_id", self.passages)
        for name, key, texts in columns:
            ids = self.ids(key)
            frame[name] = frame[key].map(dict(zip(ids, texts.each(ids), strict=True))).astype("str")
        return frame


def read_corpus(
    path: str | Path, *, format: str | None = None, collection: str | None = None
) -> Corpus:
    """Read ranked candidates, and find their texts: in what `load` opens, or in the file."""
    candidates = read_candidates(path, format)
    opened = load(collection) if collection else Collection("", {})

    def texts(what: str, part: str, key: str, column: str) -> Texts:
        if part in opened.parts:
            texts = cache(lambda: dict(opened._rows(part)))  # read when the first is looked up
            find = opened.find if part == "docs" else None
            return Texts(what=what, source=opened.id, find=find or (lambda ids: texts()))
        if column not in candidates:
            either = f" and {collection!r} has none either" if collection else ""
            raise ValueError(f"{path} has no {what} texts{either}: name a folder or id (--collection)")
        pairs = candidates[[key, column]].drop_duplicates()
        if len(twice := pairs[key][pairs[key].duplicated()]):
            raise ValueError(f"{path} has two texts for {what} {twice.iloc[0]!r}: give each its own id")
        known = dict(zip(pairs[key], pairs[column], strict=True))
        return Texts(what=what, source=str(path), find=lambda ids: known)

    queries = texts("query", "queries", "query_id", "query")
    passages = texts("passage", "docs", "doc_id", "text")
    bare = candidates.drop(columns=["query", "text"], errors="ignore")
    return Corpus(candidates=bare, queries=queries, passages=passages)


def read_judgments(source: str | Path) -> pd.DataFrame:
    """Judgments of a file, or of a collection: ``query_id``, ``doc_id``, ``relevance``."""
    if Path(source).is_file():
        return read_qrels(source)
    try:
        return load(str(source)).qrels
    except ValueError as error:
        raise ValueError(f"{source} is no file of judgments, and {error}") from None


def _indexed(collection_id: str) -> Collection:
    """One of ir_datasets, which keeps an index of the texts."""
    dataset = ir_datasets.load(collection_id)
    store = cache(lambda: dataset.docs_store())

    def find(ids: list[str]) -> dict[str, str]:
        return {key: doc.default_text() for key, doc in store().get_many(ids).items()}

    def read(part: str) -> Iterator[tuple]:
        try:
            for x in getattr(dataset, f"{part}_iter")():
                yield (x[0], x.doc_id, x.relevance) if part == "qrels" else (x[0], x.default_text())
        except RuntimeError as error:  # ir_datasets' own, with a list of what it tried
            told = f"{part} of collection {collection_id!r} are neither here nor fetched: {error}"
            remedy = f"set IR_DATASETS_HOME to a copy of {ir_datasets.util.home_path()} with them"
            raise ValueError(f"{told}: {remedy}") from error

    parts = {part: partial(read, part) for part in _PARTS if getattr(dataset, f"has_{part}")()}
    return Collection(collection_id, parts, find)


def _folder(folder: Path) -> _Parts:
    """Files in BEIR's layout or as tsv, packed or not; the first of each kind that is there."""
    parts = {}
    for part, read, *names in (
        ("docs", read_passages, "corpus.jsonl", "collection.tsv"),
        ("queries", read_queries, "queries.jsonl", "queries.tsv"),
        ("qrels", read_qrels, "qrels/test.tsv", "qrels.tsv", "qrels/dev.tsv", "qrels/train.tsv"),
    ):
        paths = (folder / f"{name}{packed}" for name in names for packed in ("", ".gz"))
        if path := next(filter(Path.is_file, paths), None):
            parts[part] = partial(read, path)
    if not parts.keys() >= {"docs", "queries"}:
        expected = "queries.jsonl and corpus.jsonl, or queries.tsv and collection.tsv"
        got = sorted(path.name for path in folder.iterdir())[:9]
        raise ValueError(f"{folder}: expected {expected}; got {got}: rename or convert them")
    return parts


def _pydocs(split: str, part: str) -> pd.DataFrame:
    queries, passages, qrels = pydocs.load()
    own = queries.loc[queries["split"] == split, ["query_id", "query"]]
    judged = qrels[qrels["query_id"].isin(own["query_id"])]
    return {"docs": passages, "queries": own, "qrels": judged}[part]


def _trec_dl(year: int) -> _Parts:
    return {part: lambda part=part: published.texts(year)[part] for part in ("queries", "docs")}


def _judged(name: str) -> _Parts:
    return {"qrels": lambda: read_qrels(fetch(name))}


def _matches(name: str, pattern: str) -> list:
    """What a pattern finds in a public file; XML's parsers want one element around all."""
    return re.findall(pattern, fetch(name).read_text(encoding="utf-8"), re.DOTALL)


_CRANFIELD = r"<docno>\s*(.*?)\s*</docno>.*?<title>\s*(.*?)\s*</title>.*?<text>\s*(.*?)\s*</text>"
_OURS = {
    "rdl/pydocs": {"docs": lambda: pydocs.load().passages},
    **{f"rdl/pydocs/{x}": {part: partial(_pydocs, x, part) for part in _PARTS} for x in pydocs.SPLITS},
    "rdl/trec-dl-2019": _trec_dl(2019) | _judged("trec-dl/qrels/qrels.dl19-passage.txt"),
    "rdl/trec-dl-2020": _trec_dl(2020) | _judged("trec-dl/qrels/qrels.dl20-passage.txt"),
    "rdl/trec-dl-2022": _trec_dl(2022),  # nobody published its judgments
    "rdl/vaswani": _judged("vaswani/qrels") | {
        "docs": lambda: _matches("vaswani/doc-text.trec", r"<DOCNO>(.*?)</DOCNO>\n(.*?)</DOC>"),
        "queries": lambda: _matches("vaswani/query-text.trec", r"<num>(.*?)</num>.*?\n(.*?)</title>"),
    },
    "rdl/cranfield": _judged("cranfield/cranqrel.trec.txt") | {
        "docs": lambda: (
            (x, f"{title} {text}")
            for x, title, text in _matches("cranfield/cran.all.1400.xml", _CRANFIELD)
        ),
        "queries": lambda: (  # numbered from 1, as its judgments number them
            (str(n), query.strip())
            for n, query in enumerate(_matches("cranfield/cran.qry.xml", "<title>(.*?)</title>"), 1)
        ),
    },
}  # fmt: skip
