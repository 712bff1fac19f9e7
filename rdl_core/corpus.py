"""A corpus of one's own: ranked candidates from a file of any format, and the texts behind the ids.

Texts stand in the file itself (RankLLM's JSON, MS MARCO's top 1000), in a BEIR folder, or in a
collection that ir_datasets knows. Ids are read whole. Texts of an ir_datasets collection are looked
up some thousands at a time; those of a file or a folder are read whole, each once.

>>> row = {"query_id": "7", "doc_id": "x", "score": 0.5, "query": "what is x", "text": "x is y"}
>>> pd.DataFrame([row]).to_json(folder / "own.jsonl", orient="records", lines=True)
>>> read_corpus(folder / "own.jsonl").passages.of(["x"])
['x is y']
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path

import pandas as pd

from rdl_core.data.collections import Collection, load
from rdl_core.data.formats import read_candidates, read_passages, read_qrels, read_queries

__all__ = ["Corpus", "Texts", "read_corpus", "read_judgments"]

_LOOKED_UP = 4096  # texts at once


@dataclass(frozen=True, kw_only=True)
class Texts:
    """Texts by id.

    >>> Texts(what="query", source="a dictionary", find=lambda ids: {"7": "what is x"}).of(["7"])
    ['what is x']
    """

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
            found = self.find(some)
            if missing := [one for one in some if one not in found]:
                raise ValueError(
                    f"{self.source}: expected a text for every {self.what} that is ranked; given "
                    f"none for {len(missing)} of {len(some)}, such as {missing[0]!r}: name the "
                    "collection that was ranked (--collection)"
                )
            yield from (found[one] for one in some)

    def of(self, ids: Sequence[str]) -> list[str]:
        """The same as a list."""
        return list(self.each(ids))


@dataclass(frozen=True, kw_only=True)
class Corpus:
    """Ranked candidates, and the texts behind their ids; the module's example reads one."""

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
        """Every so-many-th query: of eight, the second has queries 2, 10, 18, ...

        Raises:
            ValueError: No such shard, or there are fewer queries than shards.
        """
        queries = self.ids("query_id")
        if not 1 <= number <= of <= len(queries):
            raise ValueError(
                f"shard: expected 1/N to N/N, and a query for each of the N; given {number}/{of} "
                f"and {len(queries)} queries: the second of eight is 2/8"
            )
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
        collection: A BEIR folder or an ir_datasets id; its texts come before those in the file.

    Raises:
        ValueError: As for `read_candidates`; an id has two texts in the file; there is no such
            collection; or neither the file nor the collection has queries, or passages.

    >>> _ = (folder / "own.run").write_text("0 Q0 0 1 1.5 tag")
    >>> read_corpus(folder / "own.run")
    Traceback (most recent call last):
    ValueError: .../own.run: expected the query of each id in the file or in a collection; ...
    """
    candidates = read_candidates(path, format)
    found = _of_file(candidates, path) | (_of_collection(collection) if collection else {})
    for what in ("query", "passage"):
        if what not in found:
            given = f"none in {collection!r} either" if collection else "ids alone"
            raise ValueError(
                f"{path}: expected the {what} of each id in the file or in a collection; given "
                f"{given}: name a BEIR folder or an ir_datasets id (--collection)"
            )
    candidates = candidates.drop(columns=["query", "text"], errors="ignore")
    return Corpus(candidates=candidates, queries=found["query"], passages=found["passage"])


def read_judgments(source: str | Path) -> pd.DataFrame:
    """Read judgments of a file, or of a collection.

    Args:
        source: A file as `rdl_core.data.formats.read_qrels` takes it, or an ir_datasets id.

    Returns:
        ``query_id``, ``doc_id``, ``relevance``.

    Raises:
        ValueError: As for `read_qrels`, or it is neither a file nor an id.

    >>> read_judgments("rdl/pydocs/test").columns.tolist()
    ['query_id', 'doc_id', 'relevance']
    """
    if Path(source).is_dir():
        splits = [str(path) for path in sorted(Path(source).glob("qrels/*.tsv"))]
        raise ValueError(
            f"{source}: expected judgments; given a folder: name a file of it, such as "
            f"{splits or 'qrels/test.tsv'}"
        )
    return read_qrels(source) if Path(source).exists() else _open(str(source)).qrels


def _of_file(candidates: pd.DataFrame, path: str | Path) -> dict[str, Texts]:
    """Texts that the candidates' own file has."""
    found = {}
    for what, key, text in (("query", "query_id", "query"), ("passage", "doc_id", "text")):
        if text in candidates:
            pairs = candidates[[key, text]].drop_duplicates()
            if (twice := pairs[key].duplicated()).any():
                raise ValueError(
                    f"{path}: expected one text for each {what}; given two for "
                    f"{pairs.loc[twice, key].iloc[0]!r}: give each text an id of its own"
                )
            found[what] = _looked_up(what, str(path), pairs)
    return found


def _of_collection(name: str) -> dict[str, Texts]:
    """Texts of a BEIR folder or an ir_datasets collection."""
    if (folder := Path(name)).is_dir():
        return {
            "query": _looked_up("query", name, read_queries(folder / "queries.jsonl")),
            "passage": _looked_up("passage", name, read_passages(folder / "corpus.jsonl")),
        }
    collection, found = _open(name), {}
    if collection.has("queries"):
        found["query"] = _looked_up("query", f"collection {name!r}", collection.queries)
    if collection.has("docs"):
        store = collection.dataset.docs_store()

        def find(ids: list[str]) -> dict[str, str]:
            return {key: doc.default_text() for key, doc in store.get_many(ids).items()}

        found["passage"] = Texts(what="passage", source=f"collection {name!r}", find=find)
    return found


def _looked_up(what: str, source: str, texts: pd.DataFrame) -> Texts:
    """Texts of a frame of ids and texts."""
    by_id = dict(zip(*(texts[column] for column in texts.columns), strict=True))
    return Texts(what=what, source=source, find=lambda ids: by_id)


def _open(name: str) -> Collection:
    try:
        return load(name)
    except ValueError as error:
        raise ValueError(f"{name}: expected a file or folder, or an id; {error}") from None
