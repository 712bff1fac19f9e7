"""The reproduction log: who ran what, where, and what came of it.

``book/reproductions.csv`` has one row for each figure. Rows of others come by pull request; ours
are made here from the recorded runs and their manifests, so that they cannot say anything else.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import pandas as pd

from rdl_study import recorded
from rdl_study.claims import claims, pair_of, verdict
from rdl_study.store import project_folder

__all__ = ["COLUMNS", "MAINTAINERS", "VERDICTS", "log_file", "own_rows", "read_log", "update"]

COLUMNS = (
    "figure", "expected", "found", "verdict", "date", "who", "profile", "machine", "commit",
)  # fmt: skip
VERDICTS = ("reproduced", "partly", "not reproduced", "not comparable")
#: Who made our own rows.
MAINTAINERS = "maintainers"


def log_file() -> Path:
    """Where the log is kept.

    >>> log_file().name
    'reproductions.csv'
    """
    return project_folder() / "book" / "reproductions.csv"


def read_log(path: Path | None = None) -> pd.DataFrame:
    """The log as it is kept, every cell a text.

    Args:
        path: Another file than the project's.

    Raises:
        ValueError: A column is missing or unknown, a cell is empty, a date or a verdict is none.

    >>> read_log()["verdict"].isin(VERDICTS).all()
    np.True_
    """
    path = path or log_file()
    log = pd.read_csv(path, dtype=str, keep_default_na=False)
    if tuple(log.columns) != COLUMNS:
        raise ValueError(f"{path.name}: expected columns {list(COLUMNS)}, got {list(log.columns)}")
    for number, row in enumerate(log.to_dict("records"), start=2):
        if empty := [name for name, cell in row.items() if not cell.strip()]:
            raise ValueError(f"{path.name}, line {number}: expected something in {empty}")
        if row["verdict"] not in VERDICTS:
            raise ValueError(
                f"{path.name}, line {number}: expected a verdict among {', '.join(VERDICTS)}; "
                f"got {row['verdict']!r}"
            )
        if pd.isna(pd.to_datetime(row["date"], format="%Y-%m-%d", errors="coerce")):
            raise ValueError(
                f"{path.name}, line {number}: expected a date as 2026-11-24, got {row['date']!r}"
            )
    return log


def own_rows(profile: str = "trec-dl") -> pd.DataFrame:
    """Our rows: each claim of the paper that a recorded run speaks to.

    Args:
        profile: The profile that was recorded.

    Returns:
        `COLUMNS`; ``found`` is the difference of two systems with its interval, of 95 % where a
        system should be better and of 90 % where two should be equal.

    >>> tuple(own_rows().columns) == COLUMNS
    True
    """
    rows = []
    for claim in claims():
        kept = recorded.read(claim.page, claim.part, profile=profile) if claim.part else None
        pair = None if kept is None else pair_of(kept.values, claim)
        if pair is None:
            continue
        said, found = verdict(pair, claim)
        runs = [run for run in kept.runs if run["kind"] == "rank"]
        rows.append(
            {
                "figure": claim.text, "expected": claim.published, "found": found, "verdict": said,
                "date": max(run["finished"] for run in runs)[:10], "who": MAINTAINERS,
                "profile": profile, "machine": _joined(map(_machine, runs)),
                "commit": _joined(run["commit"] for run in runs),
            }  # fmt: skip
        )
    return pd.DataFrame(rows, columns=list(COLUMNS))


def update(path: Path | None = None) -> Path:
    """Write our rows anew, in front of those of others, which stay as they are.

    Args:
        path: Another file than the project's.

    >>> update(folder / "log.csv").name
    'log.csv'
    """
    path = path or log_file()
    own = own_rows()
    if path.exists():
        log = read_log(path)
        own = pd.concat([own, log[log["who"] != MAINTAINERS]])
    own.to_csv(path, index=False, lineterminator="\n")
    return path


def _joined(names: Iterable[str]) -> str:
    return ", ".join(sorted(set(names)))


def _machine(run: dict) -> str:
    return f"{run['device']}, {run['threads']} threads"
