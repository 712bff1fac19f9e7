"""Formats: what the field stores in files, as one frame and back.

Candidates are ``query_id``, ``doc_id`` (str), ``rank`` (int64, 1 is best, counted anew), ``score``
(float64, NaN where the format has none) and, where the file has them, ``query``, ``text``,
``relevance`` and ``teacher_rank``; queries as they first appear, best passage first. What does not
fit is refused with file and line, never left out. Text files whose name ends in ``.gz`` are packed.

>>> _ = (folder / "first.run").write_text("7 Q0 x 0 1.5 tag\\n7 Q0 y 1 0.5 tag\\n")
>>> read_candidates(folder / "first.run").values.tolist()
[['7', 'x', 1, 1.5], ['7', 'y', 2, 0.5]]
"""

from __future__ import annotations

import logging
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pandas as pd

from rdl_core.data.formats import _unpack
from rdl_core.data.formats._files import Source, each_record, first_line, is_parquet, parquet
from rdl_core.data.formats.order import NAMES, from_frame, ranked
from rdl_core.data.formats.records import (
    from_records,
    read_hard_negatives,
    read_invocations,
    read_passages,
    read_queries,
    read_rankgpt,
    read_rows,
)
from rdl_core.data.formats.text import read_qrels, read_run, read_triples, read_tsv
from rdl_core.data.formats.write import write_parquet, write_qrels, write_requests, write_run

__all__ = [
    "FORMATS", "Format", "from_frame", "read_beir", "read_candidates", "read_hard_negatives",
    "read_invocations", "read_passages", "read_qrels", "read_queries", "read_rankgpt", "read_run",
    "read_triples", "write_parquet", "write_qrels", "write_requests", "write_run",
]  # fmt: skip

_log = logging.getLogger(__name__)
_RUN_NAME = re.compile(r"\.(run|trec|res)(\.gz)?$")
_ELSEWHERE = {
    "invocations_history": "read_invocations",
    "prompt": "read_invocations",
    "neg": "read_hard_negatives",
    "_id": "read_passages or read_queries",
}


@dataclass(frozen=True)
class Format:
    """One format of candidates.

    >>> FORMATS["msmarco_run"].shape
    'qid pid rank'
    """

    shape: str
    """What a record looks like."""
    read: Callable[[str | Path], pd.DataFrame]
    """Its reader."""
    keys: tuple[set[str], ...] = ()
    """Sets of names of which a JSON object or parquet row of this format has one whole."""


FORMATS = {
    "trec_run": Format("qid iter docid rank score tag, or qid docid [score]", read_run),
    "msmarco_run": Format("qid pid rank", lambda path: read_run(path, third="rank")),
    "msmarco_top1000": Format(
        "qid pid query passage, with tabs",
        lambda path: ranked(*read_tsv(path, ["query_id", "doc_id", "query", "text"])),
    ),
    "rank_llm": Format(
        "JSON(L) {query, hits} or {query, candidates}",
        lambda path: from_records(path, _unpack.rank_llm),
        ({"query", "hits"}, {"query", "candidates"}),
    ),
    "rankgpt": Format(
        "JSONL {query_id, query, retrieved_passages}", read_rankgpt,
        ({"query_id", "retrieved_passages"},),
    ),
    "lists": Format(
        "parquet or JSON(L) {query_id, doc_ids [, labels]}",
        lambda path: from_records(path, _unpack.id_list),
        ({"query_id", "doc_ids"},),
    ),
    "n_way": Format(
        "JSONL [qid, [pid, score], ...]",
        lambda path: from_records(path, _unpack.n_way, teacher=True),
    ),
    "rows": Format(
        "parquet or JSON(L), a row {query_id, doc_id [, rank, score, query, text]}", read_rows,
        tuple({query, doc} for query in NAMES["query_id"] for doc in NAMES["doc_id"]),
    ),
}  # fmt: skip
"""Formats of candidates by name; the first that fits is meant.

- ``trec_run``: RankLLM's rerank_results and Rank-DistiLLM's ``.run`` are some.
- ``msmarco_run``: as the script of MS MARCO's MRR takes it. ``msmarco_top1000``: states no order.
- ``rank_llm``: hits of 2023 are ordered by their rank, candidates by their place in the list. Texts
  are whole, a title before them; RankLLM's own cuts and replacements are not made.
- ``lists``: best first. sentence-transformers' ``rankzephyr-colbert``, ``rankgpt4-colbert`` get a
  ``teacher_rank``; ``labeled-list`` gets its labels as ``relevance``.
- ``n_way``: ColBERT's, ordered by the teacher's scores.
- ``rows``: Rank-DistiLLM's and pyterrier's parquet, lightning-ir's JSONL; columns as `from_frame`
  takes them. Such a file does not say whether a teacher made it.
"""


def read_candidates(path: str | Path, format: str | None = None) -> pd.DataFrame:
    """Read ranked candidates from a file of any format in `FORMATS`.

    Args:
        path: The file; a text file may be packed (``.gz``).
        format: A name in `FORMATS`; without it, the file's name and first record tell.

    Returns:
        ``query_id``, ``doc_id`` (str), ``rank`` (int64, 1 is best), ``score`` (float64) and, where
        the file has them, ``query``, ``text`` (str), ``relevance``, ``teacher_rank`` (Int64, NA
        where nobody judged or ranked).

    Raises:
        ValueError: The format is unknown or cannot be told, the file is empty or broken, a record
            does not fit, a passage stands twice in a query, a score is not finite, or neither ranks
            nor scores order a query. Names file and line.

    >>> _ = (folder / "some.txt").write_text('{"query_id": "7", "doc_id": "x", "score": 0.5}')
    >>> read_candidates(folder / "some.txt").values.tolist()
    [['7', 'x', 1, 0.5]]
    """
    name = format or _recognise(path)
    if name not in FORMATS:
        raise ValueError(f"expected a format out of {', '.join(FORMATS)}; given {name!r}")
    _log.info("%s: read as %s", path, name)
    return FORMATS[name].read(path)


def read_beir(folder: str | Path, split: str = "test") -> tuple[pd.DataFrame, ...]:
    """Read a BEIR folder: ``corpus.jsonl``, ``queries.jsonl``, ``qrels/<split>.tsv``.

    Returns:
        Passages (``doc_id``, ``text``), queries (``query_id``, ``query``; of all splits) and qrels
        (``query_id``, ``doc_id``, ``relevance``). Judgments of queries or passages that the folder
        lacks are kept, and counted in the log.

    Raises:
        ValueError: As for the three readers, or there is no such split.

    >>> _ = (folder / "corpus.jsonl").write_text('{"_id": "x", "title": "", "text": "y"}')
    >>> _ = (folder / "queries.jsonl").write_text('{"_id": "7", "text": "what is x"}')
    >>> (folder / "qrels").mkdir()
    >>> _ = (folder / "qrels" / "test.tsv").write_text("query-id corpus-id score\\n7 x 1\\n")
    >>> [len(part) for part in read_beir(folder)]
    [1, 1, 1]
    """
    folder = Path(folder)
    judged = folder / "qrels" / f"{split}.tsv"
    if not judged.exists():
        splits = sorted(path.stem for path in judged.parent.glob("*.tsv"))
        Source(judged).refuse(None, "judgments", "no such file", f"splits here are {splits}")
    passages = read_passages(folder / "corpus.jsonl")
    queries = read_queries(folder / "queries.jsonl")
    qrels = read_qrels(judged)
    for name, part in (("query_id", queries), ("doc_id", passages)):
        if n_unknown := int((~qrels[name].isin(part[name])).sum()):
            _log.warning("%s: %d judgments name no %s of the folder", judged, n_unknown, name)
    return passages, queries, qrels


def _recognise(path: str | Path) -> str:
    """Name of the format, by the file's name and first record."""
    if is_parquet(path):
        with parquet(path) as file:
            names = set(file.schema_arrow.names)
        return _by_keys(path, names)
    line = first_line(path)[1]
    if _RUN_NAME.search(str(path)):
        return "trec_run"
    if line.lstrip().startswith(("{", "[")):
        record = next(each_record(path)[0], (0, {}))[1]
        return _by_keys(path, set(record)) if isinstance(record, dict) else "n_way"
    return _by_columns(path, line)


def _by_keys(path: str | Path, keys: set[str]) -> str:
    for name, form in FORMATS.items():
        if any(wanted <= keys for wanted in form.keys):
            return name
    hint = next((f"use {_ELSEWHERE[key]}" for key in _ELSEWHERE if key in keys), None)
    return _unknown(path, f"keys {sorted(keys)}", hint)


def _by_columns(path: str | Path, line: str) -> str:
    """Columns alone must tell: three could be scores, ranks, judgments or triples."""
    tabs, cells = line.split("\t"), line.split()
    if len(cells) == 6 and re.fullmatch(r"-?\d+", cells[3]):
        return "trec_run"
    if len(tabs) == 4 and not (len(cells) == 4 and re.fullmatch(r"-?\d+", cells[3])):
        return "msmarco_top1000"
    if len(cells) == 3 and re.fullmatch(r"-?\d*\.\d+(e[-+]?\d+)?", cells[2].lower()):
        return "trec_run"
    hint = {4: "use read_qrels", 5: "use read_triples"}.get(len(cells))
    return _unknown(path, f"{len(cells)} columns, {line[:80]!r}", hint)


def _unknown(path: str | Path, given: str, hint: str | None) -> str:
    known = "; ".join(f"{name}: {form.shape}" for name, form in FORMATS.items())
    remedy = hint or "name its format, read_candidates(path, format)"
    row = None if is_parquet(path) else 0
    return Source(path).refuse(row, f"candidates in one of these formats ({known})", given, remedy)
