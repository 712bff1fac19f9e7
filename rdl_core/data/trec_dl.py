"""TREC Deep Learning as small collections: the texts that RankLLM's candidate lists carry.

A list has the query's text and the passages' texts, so the union of all first stages' lists of one
year is a collection small enough for a laptop: 10,852 passages in 2019, 14,091 in 2020, 16,660 in
2022, out of 8.8 M and 138 M. It holds every candidate, and not every judged passage: 3,834 of the
9,139 judged in 2019, 5,001 of 11,224 in 2020. Measures do not need the others' texts.

In 2022 the texts of 40 passages differ between the first stages, in white space alone. The first
file in the registry's order (BM25, then BM25+RM3, SPLADE++, TAS-B, Ada-2) is the one that counts.

`candidates` gives these lists, `teacher_runs` what LLMs made of them.

Reference: Craswell et al., TREC 2019 and 2020 Deep Learning Track; Pradeep, Sharifymoghaddam, Lin,
RankVicuna, arXiv 2309.15088 (the lists and the LLMs' rankings).

>>> sorted(YEARS)
[2019, 2020, 2022]
"""

from __future__ import annotations

import logging
from dataclasses import dataclass
from functools import lru_cache

import pandas as pd

from rdl_core.data.downloads import fetch, fetch_all, group_names
from rdl_core.data.formats import read_candidates

__all__ = [
    "FIRST_STAGES", "TEACHERS", "YEARS", "Texts", "candidates", "list_names", "load_texts",
    "qrels_name", "teacher_runs", "teachers_of", "year_of",
]  # fmt: skip

#: Whether a year's judgments are among the public files.
YEARS = {2019: True, 2020: True, 2022: False}
#: First stages whose lists are public, and the folder that holds them. 2022 has the first three.
FIRST_STAGES = {
    "bm25": "BM25", "bm25_rm3": "BM25_RM3", "splade": "SPLADE_P_P_ENSEMBLE_DISTIL",
    "tas_b": "D_BERT_KD_TASB", "ada2": "OPEN_AI_ADA2",
}  # fmt: skip
#: LLMs that ranked whole lists, 100 passages deep, and how their files' names begin.
TEACHERS = {
    "rank_vicuna": "output_v2_aug_vicuna_7b",
    "rank_vicuna_unaugmented": "output_v2_vicuna_7b",  # trained without shuffled lists
    "rank_vicuna_early": "vicuna-7b-checkpoint-800",
    "gpt_3.5": "gpt-3.5-turbo",
    "vicuna_7b": "vicuna-7b-v1.5",
    "vicuna_13b": "vicuna-13b-v1.5",
}
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
    end = f"{_of(year)}top100.json"
    lists = (name for name in group_names("trec-dl") if name.split("/")[1] == "retrieve_results")
    return [name for name in lists if name.endswith(end)]


def qrels_name(year: int) -> str:
    """Registry name of a year's judgments.

    >>> qrels_name(2019)
    'trec-dl/qrels/qrels.dl19-passage.txt'
    """
    return f"trec-dl/qrels/qrels.dl{year % 100}-passage.txt"


def year_of(collection_id: str) -> int | None:
    """The year whose lists a collection's queries have; None for any other collection.

    In 2019 and 2020, MS MARCO's own collection has the same ids.

    >>> year_of("rdl/trec-dl-2019"), year_of("msmarco-passage/trec-dl-2019/judged")
    (2019, 2019)
    >>> year_of("rdl/trec-dl-2019/crops") is None
    True
    """
    names = {f"rdl/trec-dl-{year}": year for year in YEARS}
    names |= {f"msmarco-passage/trec-dl-{year}/judged": year for year in (2019, 2020)}
    return names.get(collection_id)


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
        hits = read_candidates(path)
        for query_id, query in zip(hits["query_id"], hits["query"]):
            queries.setdefault(query_id, query)
        for doc_id, text in zip(hits["doc_id"], hits["text"]):
            if passages.setdefault(doc_id, text) != text:
                differing.add(doc_id)
    if differing:
        _log.info(
            "TREC DL %d: %d of %d passages have another text in a later list; the first is kept",
            year, len(differing), len(passages),
        )  # fmt: skip
    return Texts(queries, passages, len(differing))


def candidates(year: int, first_stage: str) -> pd.DataFrame:
    """A first stage's list of each query of a year, 100 passages deep.

    Args:
        year: 2019, 2020 or 2022.
        first_stage: A key of `FIRST_STAGES`.

    Returns:
        ``query_id``, ``doc_id``, ``rank`` (1 is best), ``score``.

    Raises:
        ValueError: A first stage that is unknown, or has no list of this year; lists those there
            are.

    >>> candidates(2019, "bm25")["query_id"].nunique()  # doctest: +SKIP
    43
    """
    names = {folder: name for name in list_names(year) for folder in [name.split("/")[2]]}
    known = [key for key, folder in FIRST_STAGES.items() if folder in names]
    _expect(first_stage in known, f"a first stage of {year}", known, first_stage)
    frame = read_candidates(fetch(names[FIRST_STAGES[first_stage]]))
    return frame[["query_id", "doc_id", "rank", "score"]]


def teachers_of(year: int, first_stage: str) -> list[str]:
    """LLMs that ranked a first stage's lists of a year; none is known for 2022.

    >>> teachers_of(2020, "ada2")
    ['rank_vicuna']
    """
    return [teacher for teacher, names in _teacher_files(year, first_stage).items() if names]


def teacher_runs(year: int, first_stage: str, teacher: str) -> list[pd.DataFrame]:
    """What an LLM made of a first stage's lists, once for each time that it was asked.

    Args:
        year: 2019 or 2020.
        first_stage: A key of `FIRST_STAGES`.
        teacher: A key of `TEACHERS`.

    Returns:
        For each repetition, the oldest first, ``query_id``, ``doc_id`` and ``teacher_rank`` (1 is
        best).

    Raises:
        ValueError: The teacher ranked no such lists; lists those that did.

    >>> len(teacher_runs(2019, "bm25", "gpt_3.5"))  # doctest: +SKIP
    5
    """
    runs = _teacher_files(year, first_stage)
    known = teachers_of(year, first_stage)
    _expect(teacher in known, f"a teacher of {first_stage}'s lists of {year}", known, teacher)
    frames = (read_candidates(path) for path in fetch_all(runs[teacher]))
    return [f[["query_id", "doc_id", "rank"]].rename(columns={"rank": "teacher_rank"}) for f in frames]


def _teacher_files(year: int, first_stage: str) -> dict[str, list[str]]:
    _expect(first_stage in FIRST_STAGES, "a first stage", list(FIRST_STAGES), first_stage)
    of_lists = f"trec-dl/rerank_results/{FIRST_STAGES[first_stage]}/"
    names = sorted(name for name in group_names("trec-dl") if name.startswith(of_lists))
    return {
        key: [n for n in names if n.startswith(f"{of_lists}{start}_4096_100_") and _of(year) in n]
        for key, start in TEACHERS.items()
    }


def _of(year: int) -> str:
    return f"_dl{year % 100}_"


def _expect(good: bool, expected: str, known: list[str], given: object) -> None:
    if not good:
        raise ValueError(
            f"expected {expected} among {', '.join(known) or 'none at all'}; got {given!r}"
        )
