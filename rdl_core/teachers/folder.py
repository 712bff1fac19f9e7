"""A folder of a teacher's lists, as `rdl teach` and `rdl merge` write it.

==================  ==============================================================================
``config.json``     what decides the lists; a folder keeps the first
``candidates.run``  what was ranked, in the first stage's order
``answers.jsonl``   every answer, as it came: a run that was killed asks for what is not there yet
``teacher.run``     the lists as a TREC run, ``teacher.parquet`` in Rank-DistiLLM's form,
                    ``requests.jsonl`` in RankLLM's, with texts. Scores are -rank.
``report.json``     what had to be repaired, tokens and cost, in all and for each query; written
                    last: a folder without it is not finished
==================  ==============================================================================

>>> with alone(folder):
...     claim(folder, {"teacher": "tiny"})
>>> json.loads((folder / "config.json").read_text())
{'teacher': 'tiny'}
"""

from __future__ import annotations

import json  # noqa: F401 - for the example
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

import pandas as pd
from filelock import FileLock, Timeout

from rdl_core.data.formats import write_parquet, write_requests, write_run
from rdl_core.records import read_record, write_record

__all__ = ["ANSWERS", "alone", "claim", "holds_something", "write_folder"]

#: Name of the log of answers.
ANSWERS = "answers.jsonl"

_LOCK = ".lock"


@contextmanager
def alone(folder: Path) -> Iterator[None]:
    """Keep other processes out of a folder; one that was killed does not.

    Raises:
        ValueError: Another process is in it.

    >>> with alone(folder):
    ...     sorted(path.name for path in folder.iterdir())
    ['.lock']
    """
    lock = FileLock(folder / _LOCK, timeout=0)
    try:
        lock.acquire()
    except Timeout:
        raise ValueError(
            f"{folder}: expected a folder that no other process works in; one does: wait for it, "
            "or name another folder"
        ) from None
    try:
        yield
    finally:
        lock.release()


def holds_something(folder: Path, besides: str = "") -> str | None:
    """A name in a folder, if there is any but the lock's and those of files begun in vain.

    Args:
        folder: It exists.
        besides: Another name that may be there.

    >>> _ = (folder / "config.json.partial").write_text("{")
    >>> holds_something(folder) is None
    True
    """
    names = sorted(path.name for path in folder.iterdir() if path.suffix != ".partial")
    return next((name for name in names if name not in (_LOCK, besides)), None)


def claim(folder: Path, config: Mapping) -> None:
    """Take a folder that is empty, or was begun with what gives the same lists.

    Args:
        folder: It may hold a log of answers, brought from another folder.
        config: What decides the lists. It may change as long as nothing was answered.

    Raises:
        ValueError: Something else decided, or it holds something else.

    >>> claim(folder, {"passes": 1})
    >>> _ = (folder / ANSWERS).write_text("teacher\\nanswer\\n")
    >>> claim(folder, {"passes": 2})
    Traceback (most recent call last):
    ValueError: ...: expected what the folder was begun with; given passes 2 where it was 1: ...
    """
    file, log = folder / "config.json", folder / ANSWERS
    begun = read_record(file) if file.exists() else None
    changed = [key for key, value in config.items() if begun and begun.get(key) != value]
    if begun is None:
        if other := holds_something(folder, besides=ANSWERS):
            raise ValueError(
                f"{folder}: expected a new or empty folder, or one begun before; given one that "
                f"holds {other}: name another"
            )
    elif changed and _is_answered(log):
        shown = "; ".join(f"{k} {config[k]!r} where it was {begun.get(k)!r}" for k in changed)
        raise ValueError(
            f"{folder}: expected what the folder was begun with; given {shown}: name another "
            f"folder (with a copy of {ANSWERS} in it, the same teacher is not asked twice)"
        )
    elif changed:  # begun in vain, such as with a misspelt model
        log.unlink(missing_ok=True)
    write_record(file, config)


def write_folder(
    folder: Path, ranked: pd.DataFrame, config: dict, rows: Sequence[Mapping], *,
    usd: float | None, made: object,
) -> dict:
    """Write lists and their report, the report last; gives the report.

    Args:
        folder: Where to.
        ranked: ``query_id``, ``query``, ``doc_id``, ``text``, ``teacher_rank``.
        config: What decided the lists.
        rows: Each query's counts.
        usd: What the answers cost, if that is known.
        made: When and with what.

    >>> texts = {"query_id": "7", "query": "x", "doc_id": "a", "text": "y", "teacher_rank": [1]}
    >>> found = write_folder(folder, pd.DataFrame(texts), {}, [{"query_id": "7", "n_calls": 0}],
    ...                      usd=None, made=None)
    >>> found["totals"], (folder / "teacher.run").read_text()
    ({'n_queries': 1, 'n_passages': 1, 'n_calls': 0, 'usd': None}, '7 Q0 a 1 -1.0 teacher\\n')
    """
    lists = ranked[["query_id", "doc_id", "query", "text"]].assign(
        rank=ranked["teacher_rank"], score=-ranked["teacher_rank"].astype("float64")
    )
    write_run(lists, folder / "teacher.run", tag="teacher")
    write_parquet(lists, folder / "teacher.parquet")
    write_requests(lists, folder / "requests.jsonl")
    names = [name for name in rows[0] if name != "query_id"]
    columns = {name: [row[name] for row in rows] for name in names}
    sums = {name: None if None in column else sum(column) for name, column in columns.items()}
    totals = {"n_queries": len(rows), "n_passages": len(lists)} | sums | {"usd": usd}
    report = {"config": config, "totals": totals, "made": made, "queries": list(rows)}
    write_record(folder / "report.json", report)
    return report


def _is_answered(log: Path) -> bool:
    """Whether there is a line behind the first, which names the teacher."""
    return log.exists() and log.read_bytes().count(b"\n") > 1
