"""Written files: whole or not there, and read back as they were."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pandas as pd

from rdl_core.data.formats._files import Source, partial, write_lines
from rdl_core.data.formats.order import from_frame
from rdl_core.data.formats.text import once

__all__ = ["write_parquet", "write_qrels", "write_requests", "write_run"]

_FRAME = Source("frame", unit="row")


def write_run(candidates: pd.DataFrame, path: str | Path, *, tag: str = "rdl") -> None:
    """Write a TREC run: ``qid Q0 docid rank score tag``, scores strictly decreasing.

    Evaluation orders by score alone, in float32. Scores are written in as many digits as tell them
    apart (``repr``); where there are none, -rank stands for them.

    Args:
        candidates: What `from_frame` takes.
        path: The file, replaced when the new one is whole; packed if its name ends in ``.gz``.
        tag: Name of the system, without blanks.

    Raises:
        ValueError: As for `from_frame`, an id or the tag is empty or has blanks, or scores do not
            decrease strictly with rank in float32.

    >>> run = pd.DataFrame({"query_id": ["7"] * 2, "doc_id": ["x", "y"], "score": [0.5, 1.5]})
    >>> write_run(run, folder / "own.run")
    >>> (folder / "own.run").read_text().splitlines()
    ['7 Q0 y 1 1.5 rdl', '7 Q0 x 2 0.5 rdl']
    """
    frame = from_frame(candidates)
    _no_blanks(frame[["query_id", "doc_id"]], tag)
    frame["score"] = _decreasing(frame)
    columns = (frame[name].tolist() for name in ("query_id", "doc_id", "rank", "score"))
    write_lines(path, (f"{q} Q0 {d} {rank} {score!r} {tag}" for q, d, rank, score in zip(*columns)))


def write_qrels(qrels: pd.DataFrame, path: str | Path) -> None:
    """Write judgments in TREC's form: ``qid 0 docid rel``.

    Args:
        qrels: ``query_id``, ``doc_id`` (str), ``relevance`` (int).
        path: The file, replaced when the new one is whole; packed if its name ends in ``.gz``.

    Raises:
        ValueError: A column is missing, an id is empty or has blanks, a grade is not an integer, or
            a passage is judged twice for a query.

    >>> qrels = pd.DataFrame({"query_id": ["7"], "doc_id": ["x"], "relevance": [2]})
    >>> write_qrels(qrels, folder / "own.qrels")
    >>> (folder / "own.qrels").read_text()
    '7 0 x 2\\n'
    """
    names = ["query_id", "doc_id", "relevance"]
    if missing := [name for name in names if name not in qrels]:
        _FRAME.refuse(None, f"columns {names}", f"none called {missing}", "rename them")
    if not pd.api.types.is_integer_dtype(qrels["relevance"]):
        _FRAME.refuse(None, "integers as relevance", qrels["relevance"].dtype, "use .astype(int)")
    frame = qrels[names].reset_index(drop=True)
    _no_blanks(frame[["query_id", "doc_id"]])
    once(frame, ["query_id", "doc_id"], _FRAME, "judgment")
    columns = (frame[name].tolist() for name in names)
    write_lines(path, (f"{q} 0 {d} {grade}" for q, d, grade in zip(*columns)))


def write_requests(candidates: pd.DataFrame, path: str | Path) -> None:
    """Write RankLLM's requests: JSON lines ``{query, candidates}``, candidates best first.

    Args:
        candidates: What `from_frame` takes, with ``query`` and ``text``; -rank stands for scores
            where there are none.
        path: The file, replaced when the new one is whole; packed if its name ends in ``.gz``.

    Raises:
        ValueError: As for `from_frame`, or there are no texts.

    >>> texts = {"query": "what is x", "text": ["x is y"], "score": 1.5}
    >>> write_requests(pd.DataFrame({"query_id": "7", "doc_id": "x"} | texts), folder / "r.jsonl")
    >>> json.loads((folder / "r.jsonl").read_text())["candidates"]
    [{'docid': 'x', 'score': 1.5, 'doc': {'text': 'x is y'}}]
    """
    frame = from_frame(candidates)
    if missing := [name for name in ("query", "text") if name not in frame]:
        _FRAME.refuse(None, "texts", f"no {' and '.join(missing)}", "join them on by their ids")
    frame["score"] = frame["score"].fillna(-frame["rank"])
    write_lines(path, (_request(rows) for _, rows in frame.groupby("query_id", sort=False)))


def write_parquet(candidates: pd.DataFrame, path: str | Path) -> None:
    """Write parquet of Rank-DistiLLM's form: ``qid``, ``docno``, ``rank`` (1 is best), ``score``.

    Args:
        candidates: What `from_frame` takes; texts are not written.
        path: The file, replaced when the new one is whole.

    Raises:
        ValueError: As for `from_frame`.

    >>> write_parquet(pd.DataFrame({"qid": ["7"], "docno": ["x"], "rank": 0}), folder / "p.parquet")
    >>> pd.read_parquet(folder / "p.parquet").columns.tolist()
    ['qid', 'docno', 'rank', 'score']
    """
    frame = from_frame(candidates)[["query_id", "doc_id", "rank", "score"]]
    with partial(path) as beside:
        renamed = frame.rename(columns={"query_id": "qid", "doc_id": "docno"})
        renamed.to_parquet(beside, index=False)


def _decreasing(frame: pd.DataFrame) -> pd.Series:
    """The scores, if they fall strictly in float32 within each query; -rank where none are."""
    if frame["score"].isna().all():
        return -frame["rank"]
    with np.errstate(over="ignore"):
        seen = frame["score"].astype(np.float32)
    same = frame["query_id"] == frame["query_id"].shift()
    if (wrong := (same & ~(seen < seen.shift())) | np.isinf(seen)).any():
        query_id, doc_id, rank, score = frame.loc[wrong.idxmax()].iloc[:4]
        _FRAME.refuse(
            None, "scores that decrease strictly with rank in float32",
            f"{score} at rank {rank} ({doc_id!r}) of query {query_id!r}",
            "use evaluate.settle_ties, or drop the column score to write -rank",
        )  # fmt: skip
    return frame["score"]


def _request(rows: pd.DataFrame) -> str:
    columns = (rows[name].tolist() for name in ("doc_id", "score", "text"))
    passages = [{"docid": d, "score": s, "doc": {"text": text}} for d, s, text in zip(*columns)]
    query = {"text": rows["query"].iloc[0], "qid": rows["query_id"].iloc[0]}
    return json.dumps({"query": query, "candidates": passages}, ensure_ascii=False)


def _no_blanks(frame: pd.DataFrame, tag: str = "rdl") -> None:
    """Refuse what a file separated by blanks cannot hold."""
    if not tag or tag.split() != [tag]:
        _FRAME.refuse(None, "a tag without blanks", repr(tag), "join its words with - or _")
    for name, column in frame.items():
        if (bad := ~column.astype("str").str.fullmatch(r"\S+")).any():
            row = int(bad.to_numpy().argmax())
            given = f"{column.iloc[row]!r} as {name}"
            _FRAME.refuse(row, "ids without blanks, not empty", given, "replace the blanks")
