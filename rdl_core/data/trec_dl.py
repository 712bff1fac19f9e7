"""TREC Deep Learning as small collections: the texts that RankLLM's candidate lists carry.

A list has the query's text and the passages' texts, so the union of all first stages' lists of one
year is a collection small enough for a laptop: 10,852 passages in 2019, 14,091 in 2020, 16,660 in
2022, out of 8.8 M and 138 M. It holds every candidate, and not every judged passage: 3,834 of the
9,139 judged in 2019, 5,001 of 11,224 in 2020. Measures do not need the others' texts.

In 2022 the texts of 40 passages differ between the first stages, in white space alone. The first
file in the registry's order (BM25, then BM25+RM3, SPLADE++, TAS-B, Ada-2) is the one that counts.

Reference: Craswell et al., TREC 2019 and 2020 Deep Learning Track; Pradeep, Sharifymoghaddam, Lin,
RankVicuna, arXiv 2309.15088 (the lists).

>>> sorted(YEARS)
[2019, 2020, 2022]
"""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

from rdl_core.data.downloads import fetch_all, group_names

__all__ = ["YEARS", "Texts", "list_names", "load_texts", "qrels_name"]

#: Whether a year's judgments are among the public files.
YEARS = {2019: True, 2020: True, 2022: False}
_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Texts:
    """Texts of one year, by id, in the order in which the lists name them."""

    queries: dict[str, str]
    passages: dict[str, str]
    n_differing: int
    """Passages of which a later list has another text, which is not kept."""


def list_names(year: int) -> list[str]:
    """Registry names of a year's candidate lists, one for each first stage.

    >>> [name.split("/")[2] for name in list_names(2022)]
    ['BM25', 'BM25_RM3', 'SPLADE_P_P_ENSEMBLE_DISTIL']
    """
    end = f"_dl{year % 100}_top100.json"
    lists = (name for name in group_names("trec-dl") if name.split("/")[1] == "retrieve_results")
    return [name for name in lists if name.endswith(end)]


def qrels_name(year: int) -> str:
    """Registry name of a year's judgments.

    >>> qrels_name(2019)
    'trec-dl/qrels/qrels.dl19-passage.txt'
    """
    return f"trec-dl/qrels/qrels.dl{year % 100}-passage.txt"


@lru_cache(maxsize=len(YEARS))
def load_texts(year: int) -> Texts:
    """Queries and passages of one year, fetched if need be.

    Args:
        year: 2019, 2020 or 2022.

    >>> len(load_texts(2019).queries)  # doctest: +SKIP
    43
    """
    queries: dict[str, str] = {}
    passages: dict[str, str] = {}
    differing = set()
    for path in fetch_all(list_names(year)):
        for query_id, query, doc_id, text in _read_list(path):
            queries.setdefault(query_id, query)
            if passages.setdefault(doc_id, text) != text:
                differing.add(doc_id)
    if differing:
        _log.info(
            "TREC DL %d: %d of %d passages have another text in a later list; the first is kept",
            year, len(differing), len(passages),
        )  # fmt: skip
    return Texts(queries, passages, len(differing))


def _read_list(path: Path) -> Iterator[tuple[str, str, str, str]]:
    """Query id, query, passage id and passage of every candidate in one of RankLLM's lists."""
    for ranking in json.loads(path.read_text(encoding="utf-8")):
        for hit in ranking["hits"]:
            yield str(hit["qid"]), ranking["query"], str(hit["docid"]), hit["content"]
