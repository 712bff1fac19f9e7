"""Our collections' parts, as ir_datasets wants them."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import BinaryIO, NamedTuple

from ir_datasets.formats import BaseDocs, BaseQrels, BaseQueries, GenericDoc, GenericQuery, TrecQrel
from ir_datasets.indices import Docstore

from rdl_core.data.downloads import fetch

__all__ = ["Docs", "Fetched", "Qrels", "Queries"]


class Docs(BaseDocs):
    """Passages that fit into memory; `read` gives them all, in the collection's order."""

    def __init__(
        self, name: str, read: Callable[[], Iterable[NamedTuple]], cls: type = GenericDoc
    ) -> None:
        self._name, self._read, self._cls = name, read, cls

    def docs_iter(self) -> Iterator[NamedTuple]:
        return iter(self._read())

    def docs_count(self) -> int:
        return sum(1 for _ in self._read())

    def docs_store(self, options: object = None) -> Docstore:
        return _Docstore(self._cls, self._read)

    def docs_cls(self) -> type:
        return self._cls

    def docs_namespace(self) -> str:
        return self._name

    def docs_lang(self) -> str:
        return "en"


class _Docstore(Docstore):
    def __init__(self, cls: type, read: Callable[[], Iterable[NamedTuple]]) -> None:
        super().__init__(cls)
        self._read = read

    @cached_property
    def _by_id(self) -> dict[str, NamedTuple]:
        return {doc.doc_id: doc for doc in self._read()}

    def get_many_iter(self, doc_ids: Iterable[str]) -> Iterator[NamedTuple]:
        return (self._by_id[doc_id] for doc_id in doc_ids if doc_id in self._by_id)

    def clear_cache(self) -> None:
        self.__dict__.pop("_by_id", None)


class Queries(BaseQueries):
    def __init__(self, name: str, read: Callable[[], Iterable[GenericQuery]]) -> None:
        self._name, self._read = name, read

    def queries_iter(self) -> Iterator[GenericQuery]:
        return iter(self._read())

    def queries_namespace(self) -> str:
        return self._name

    def queries_lang(self) -> str:
        return "en"


@dataclass(frozen=True)
class Fetched:
    """A file of the registry, in the form in which ir_datasets' own readers take theirs."""

    name: str

    def path(self, force: bool = True) -> Path:
        return fetch(self.name)

    def stream(self) -> BinaryIO:
        return fetch(self.name).open("rb")


class Qrels(BaseQrels):
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
