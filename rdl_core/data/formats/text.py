"""Text formats: TREC runs and judgments, MS MARCO's tables."""

from __future__ import annotations

from pathlib import Path

import pandas as pd

from rdl_core.data.formats._files import Source, lines, numbers, table
from rdl_core.data.formats.order import ranked

__all__ = ["read_qrels", "read_run", "read_triples"]


def read_run(path: str | Path, *, third: str = "score") -> pd.DataFrame:
    """Read a TREC run (RankLLM's rerank_results and Rank-DistiLLM's ``.run`` are some).

    Six columns ``qid iter docid rank score tag``, three ``qid docid score`` or two ``qid docid``,
    separated by any blanks and tabs. MS MARCO's own runs have three too: ``qid pid rank``.

    Args:
        path: The file; packed if its name ends in ``.gz``.
        third: What the last of three columns is, ``"score"`` or ``"rank"``.

    Returns:
        The frame that `read_candidates` gives.

    Raises:
        ValueError: As for `read_candidates`.

    >>> _ = (folder / "a.run").write_text("7 Q0 x 0 1.5 tag\\n7 Q0 y 1 0.5 tag\\n")
    >>> read_run(folder / "a.run").values.tolist()
    [['7', 'x', 1, 1.5], ['7', 'y', 2, 0.5]]
    """
    frame, source = table(path, (6, 3, 2), "a run of 6, 3 or 2 columns")
    columns = {2: {}, 3: {third: 2}, 6: {"rank": 3, "score": 4}}[frame.shape[1]]
    found = {"query_id": frame[0], "doc_id": frame[2 if frame.shape[1] == 6 else 1]}
    for name, column in columns.items():
        kind = "int64" if name == "rank" else "float64"
        found[name] = numbers(frame[column], kind, source, name)
    return ranked(pd.DataFrame(found), source)


def read_qrels(path: str | Path) -> pd.DataFrame:
    """Read judgments: TREC's ``qid iter docid rel``, ``qid docid rel``, or BEIR's with a header.

    Grades are as they stand; of TREC DL passages, grade 1 is not yet relevant for binary measures.

    Args:
        path: The file; packed if its name ends in ``.gz``.

    Returns:
        ``query_id``, ``doc_id`` (str), ``relevance`` (int64), in the order of the file.

    Raises:
        ValueError: A line that does not fit, or a passage judged twice for a query; names both.

    >>> _ = (folder / "qrels").write_text("7 0 x 2\\n7 0 y 0\\n")
    >>> read_qrels(folder / "qrels").values.tolist()
    [['7', 'x', 2], ['7', 'y', 0]]
    """
    frame, source = table(path, (4, 3), "judgments of 4 or 3 columns", headed=True)
    query, doc, grade = (0, 2, 3) if frame.shape[1] == 4 else (0, 1, 2)
    grades = numbers(frame[grade], "int64", source, "relevance")
    found = pd.DataFrame({"query_id": frame[query], "doc_id": frame[doc], "relevance": grades})
    once(found, ["query_id", "doc_id"], source, "judgment")
    return found


def read_triples(path: str | Path) -> pd.DataFrame:
    """Read training triples: MS MARCO's ``qid pos neg`` or Hofstätter's with two scores before.

    Args:
        path: The file; packed if its name ends in ``.gz``.

    Returns:
        ``query_id``, ``positive_id``, ``negative_id`` (str) and, where the file has scores
        (``pos_score neg_score qid pos neg``), ``positive_score``, ``negative_score``.

    Raises:
        ValueError: A line that does not fit.

    >>> _ = (folder / "pairs.tsv").write_text("9.5\\t1.5\\t7\\tx\\ty\\n")
    >>> read_triples(folder / "pairs.tsv").values.tolist()
    [['7', 'x', 'y', 9.5, 1.5]]
    """
    frame, source = table(path, (3, 5), "triples of 3 columns, or 5 with scores")
    names = ["query_id", "positive_id", "negative_id"]
    found = frame[frame.columns[-3:]].set_axis(names, axis=1)
    for column, name in enumerate(["positive_score", "negative_score"][: frame.shape[1] - 3]):
        found[name] = numbers(frame[column], "float64", source, name)
        if not (finite := found[name].abs() < float("inf")).all():
            source.refuse(int(finite.argmin()), "finite scores", frame[column][finite.argmin()],
                          "remove or correct it")  # fmt: skip
    return found


def read_text_table(path: str | Path, names: list[str]) -> pd.DataFrame:
    """Read ``id text``, separated by one tab; each id once."""
    frame, source = read_tsv(path, names)
    once(frame, names[:1], source, "id")
    return frame


def once(frame: pd.DataFrame, key: list[str], source: Source, what: str) -> None:
    """Refuse the first row whose `key` stood before."""
    if (twice := frame.duplicated(key)).any():
        row = int(twice.argmax())
        given = f"{frame.loc[row, key].tolist()} again"
        source.refuse(row, f"each {what} once", given, "remove or merge the duplicates")


def read_tsv(path: str | Path, names: list[str]) -> tuple[pd.DataFrame, Source]:
    """Columns separated by single tabs, the last half of them texts, which keep their blanks."""
    rows, places = [], []
    for number, line in lines(path):
        cells = line.split("\t")
        if len(cells) != len(names) or not all(cells[: len(names) // 2]):
            expected = f"{' '.join(names)}, separated by single tabs"
            Source(path, numbers=[number]).refuse(
                0, expected, f"{len(cells)} cells, {line[:80]!r}", "correct or remove this line"
            )
        rows.append(cells)
        places.append(number)
    source = Source(path, numbers=places)
    if not rows:
        source.refuse(None, "data", "an empty file", "check where it comes from")
    return pd.DataFrame(rows, columns=names, dtype="str"), source
