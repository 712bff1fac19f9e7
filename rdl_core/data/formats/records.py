"""Formats of records, one JSON value or parquet row each: lists of passages, texts, answers."""

from __future__ import annotations

import json  # noqa: F401 - for the examples
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd

from rdl_core.data.formats._files import Source, each_record, first_line, is_parquet, parquet
from rdl_core.data.formats._unpack import (
    TEXT,
    Misfit,
    Rows,
    hard_negatives,
    id_of,
    invocations,
    rankgpt,
    row,
    text_of,
)
from rdl_core.data.formats.order import NAMES, NULLABLE, from_columns, ranked
from rdl_core.data.formats.text import once, read_text_table

__all__ = [
    "read_hard_negatives", "read_invocations", "read_passages", "read_queries", "read_rankgpt",
]  # fmt: skip

_log = logging.getLogger(__name__)


def read_rankgpt(path: str | Path, permutations: str | Path | None = None) -> pd.DataFrame:
    """Read RankGPT's ``marco-train`` lines, with the teacher's answers where they are given.

    Candidates are the retrieved passages, in their order; those that are also among the positive
    ones have relevance 1, the rest none. Answers that are not one whole permutation of their list
    give no ``teacher_rank``; they are counted in the log.

    Args:
        path: JSON lines ``{query, query_id, positive_passages, retrieved_passages}``.
        permutations: A JSON list of strings ``"[5] > [18] > ..."``, one for each line of `path`.

    Returns:
        The frame that `read_candidates` gives, with ``relevance`` and, where permutations are
        given, ``teacher_rank``.

    Raises:
        ValueError: As for `read_candidates`, or there are not as many answers as lines.

    >>> passages = [{"docid": "x", "text": "one"}, {"docid": "y", "text": "two"}]
    >>> record = {"query": "q", "query_id": 7, "retrieved_passages": passages}
    >>> _ = (folder / "train.jsonl").write_text(json.dumps(record))
    >>> _ = (folder / "gpt.json").write_text('["[2] > [1]"]')
    >>> read_rankgpt(folder / "train.jsonl", folder / "gpt.json")["teacher_rank"].tolist()
    [2, 1]
    """
    answers = None if permutations is None else _answers(permutations)
    given = iter(answers or ())
    counts = {"n_answers": 0, "n_missing": 0, "n_repeated": 0, "n_unknown": 0, "n_unread": 0}

    def unpack(record: Any) -> Rows:
        counts["n_answers"] += 1
        return rankgpt(record, None if answers is None else next(given, ""), counts)

    frame = from_records(path, unpack)
    if answers is not None:
        if counts["n_answers"] != len(answers):
            Source(permutations).refuse(
                None, f"an answer for each of {counts['n_answers']} lines of {path}", len(answers),
                "are the two files of one pair?",
            )  # fmt: skip
        level = logging.WARNING if any(list(counts.values())[1:]) else logging.INFO
        _log.log(level, "%s: %s", permutations, counts)
    return frame


def read_hard_negatives(path: str | Path) -> pd.DataFrame:
    """Read SBERT's hard negatives ``{qid, pos, neg: {system: [...]}}``.

    Args:
        path: JSON lines; passages are ids or ``{pid, ce-score}``.

    Returns:
        ``query_id``, ``doc_id``, ``system`` (``"pos"`` or the retriever's name), ``rank`` (place in
        that system's list, 1 is first), ``score`` (the cross-encoder's; NaN where there is none).

    Raises:
        ValueError: A record that does not fit, or a passage twice in one system's list.

    >>> _ = (folder / "neg.jsonl").write_text('{"qid": 7, "pos": [1], "neg": {"bm25": [3, 4]}}')
    >>> read_hard_negatives(folder / "neg.jsonl")["system"].tolist()
    ['pos', 'bm25', 'bm25']
    """
    columns, source = _columns(path, hard_negatives, ("query_id", "doc_id", "system", "score"))
    frame = pd.DataFrame(columns)
    once(frame, ["query_id", "system", "doc_id"], source, "passage of a system")
    frame["rank"] = frame.groupby(["query_id", "system"], sort=False).cumcount() + 1
    kinds = {"query_id": "str", "doc_id": "str", "system": "str", "score": "float64"}
    return frame.astype(kinds)[["query_id", "doc_id", "system", "rank", "score"]]


def read_invocations(path: str | Path) -> pd.DataFrame:
    """Read RankLLM's invocation history: objects ``{prompt, response}`` of 2023, or by query.

    Args:
        path: The file; objects may follow each other without being one JSON document.

    Returns:
        In order of the file: ``query_id`` (NA where it is not recorded), ``prompt`` (messages as
        JSON), ``response``, ``input_tokens``, ``output_tokens`` (Int64, NA where not recorded).

    Raises:
        ValueError: A record that does not fit.

    >>> _ = (folder / "history.json").write_text('{"prompt": "rank", "response": "[2] > [1]"}')
    >>> read_invocations(folder / "history.json")["response"].tolist()
    ['[2] > [1]']
    """
    names = ("query_id", "prompt", "response", "input_tokens", "output_tokens")
    columns, _ = _columns(path, invocations, names, one_each=False)
    frame = pd.DataFrame(columns)
    text = {"query_id": "str", "prompt": "str", "response": "str"}
    return frame.astype(text | {"input_tokens": "Int64", "output_tokens": "Int64"})


def read_queries(path: str | Path) -> pd.DataFrame:
    """Read queries: ``qid text`` with a tab (MS MARCO), or JSON or parquet of records (BEIR).

    Returns:
        ``query_id``, ``query`` (str), in the order of the file.

    Raises:
        ValueError: A line that does not fit, or an id twice.

    >>> _ = (folder / "queries.tsv").write_text("7\\twhat is x\\n")
    >>> read_queries(folder / "queries.tsv").values.tolist()
    [['7', 'what is x']]
    """
    return _texts(path, ["query_id", "query"], ("_id", "query_id", "qid", "id"), ("query", "text"))


def read_passages(path: str | Path) -> pd.DataFrame:
    """Read passages: ``pid text`` with a tab (MS MARCO), or JSON or parquet of records (BEIR).

    A title stands before its text. Texts are not repaired: MS MARCO's ``collection.tsv`` has some
    that were encoded twice, which ir_datasets mends on loading.

    Returns:
        ``doc_id``, ``text`` (str), in the order of the file.

    Raises:
        ValueError: A line that does not fit, or an id twice.

    >>> _ = (folder / "corpus.jsonl").write_text('{"_id": "x", "title": "X", "text": "is y"}')
    >>> read_passages(folder / "corpus.jsonl").values.tolist()
    [['x', 'X is y']]
    """
    return _texts(path, ["doc_id", "text"], ("_id", *NAMES["doc_id"], "id"), TEXT)


def read_rows(path: str | Path) -> pd.DataFrame:
    """Read one candidate per row, from parquet by columns; which of `from_frame`'s names it has."""
    if not is_parquet(path):
        return from_records(path, row, one_each=False)
    known = {name for names in NAMES.values() for name in names}
    with parquet(path) as file:
        present = [name for name in file.schema_arrow.names if name in known]
        frame = file.read(present).to_pandas(ignore_metadata=True)
    return from_columns(frame, Source(path, unit="row"))


def from_records(
    path: str | Path, unpack: Callable, *, teacher: bool = False, one_each: bool = True
) -> pd.DataFrame:
    """Candidates of all records; `unpack` gives the rows of one, `teacher` as for `ranked`."""
    columns, source = _columns(path, unpack, tuple(NAMES), one_each=one_each)
    found = {}
    for name, values in columns.items():
        known = sum(value is not None for value in values)
        if name in NULLABLE:
            if known:
                found[name] = pd.array(values, "Int64")
        elif known == len(values):
            kinds = {"rank": "int64", "score": "float64"}
            found[name] = pd.Series(values, dtype=kinds.get(name, "str"))
        elif known:
            row = next(row for row, value in enumerate(values) if value is None)
            source.refuse(row, f"{name} everywhere or nowhere", "none here", "add or remove it")
    return ranked(pd.DataFrame(found), source, teacher=teacher)


def _columns(
    path: str | Path, unpack: Callable, names: tuple[str, ...], *, one_each: bool = True
) -> tuple[dict[str, list], Source]:
    """Rows of all records, as columns; with `one_each`, a query has one record."""
    columns, places, seen = {name: [] for name in names}, [], {}
    found, unit = each_record(path)
    for number, record in found:
        here = Source(path, unit, [number])
        try:
            rows = unpack(record)
        except Misfit as misfit:
            here.refuse(0, *misfit.args, "correct or remove this record")
        except UnicodeEncodeError as error:
            here.refuse(0, "characters that UTF-8 has", error, "correct or remove this record")
        size = len(next(value for value in rows.values() if isinstance(value, list)))
        if not size:
            here.refuse(0, "at least one entry", "an empty list", "remove this record")
        if one_each and seen.setdefault(rows["query_id"], number) != number:
            given = f"{rows['query_id']!r} again, first in {unit} {seen[rows['query_id']]}"
            here.refuse(0, "one record for each query", given, "merge or remove it")
        for name in names:
            value = rows.get(name)
            columns[name].extend(value if isinstance(value, list) else [value] * size)
        places.extend([number] * size)
    source = Source(path, unit, places)
    if not places:
        source.refuse(None, "records", "none", "check where the file comes from")
    return columns, source


def _texts(
    path: str | Path, names: list[str], id_names: tuple[str, ...], text_names: tuple[str, ...]
) -> pd.DataFrame:
    if not is_parquet(path) and not first_line(path)[1].lstrip().startswith(("{", "[")):
        return read_text_table(path, names)

    def unpack(record: Any) -> Rows:
        return {names[0]: [id_of(record, *id_names)], names[1]: [text_of(record, text_names)]}

    columns, source = _columns(path, unpack, tuple(names), one_each=False)
    frame = pd.DataFrame(columns, dtype="str")
    once(frame, names[:1], source, "id")
    return frame


def _answers(path: str | Path) -> list[str]:
    found = [value for _, value in each_record(path)[0]]
    answers = found[0] if len(found) == 1 and isinstance(found[0], list) else found
    if not answers or not all(isinstance(answer, str) for answer in answers):
        Source(path).refuse(None, 'a list of strings "[2] > [1]"', repr(answers)[:80], "check it")
    return answers
