"""`rdl merge`: the shards of one teacher's lists become one folder, as if it had run at once.

Shards go by queries in turn: of eight, the second has queries 2, 10, 18, ... of the candidates.

>>> merge([folder], folder / "whole")
Traceback (most recent call last):
ValueError: ...: expected a finished shard; given a folder without report.json: run rdl teach ...
"""

from __future__ import annotations

import json  # noqa: F401 - for the example
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TypeVar

import pandas as pd

from rdl_core.data.formats import read_candidates, write_run
from rdl_core.records import read_record
from rdl_core.teachers.folder import ANSWERS, alone, claim, write_folder

__all__ = ["common_config", "in_turn", "merge", "once"]

_T = TypeVar("_T")


def merge(shards: Sequence[str | Path], folder: str | Path) -> dict:
    """Make one folder of all shards.

    Args:
        shards: Folders of `rdl_core.teachers.teach.teach`, all of them, in any order.
        folder: New or empty. What one run would have left, answers included.

    Returns:
        What its ``report.json`` holds.

    Raises:
        ValueError: A shard is missing, there twice, not finished, or of another configuration, or
            its lists are not those that its report names.

    >>> report = {"config": {"shard": [2, 2], "n_queries": 2}}
    >>> _ = (folder / "report.json").write_text(json.dumps(report))
    >>> merge([folder], folder / "whole")
    Traceback (most recent call last):
    ValueError: expected all 2 shards once; given 2/2; missing 1/2: run --shard 1/2, or ...
    """
    folder, reports = Path(folder), {Path(shard): _report(Path(shard)) for shard in shards}
    config = common_config(reports)
    parts = sorted(reports, key=lambda shard: reports[shard]["config"]["shard"])
    lists = [_lists(part, reports[part]) for part in parts]
    rows = in_turn([reports[part]["queries"] for part in parts])
    order = [row["query_id"] for row in rows]
    once(order, config["n_queries"])
    first = pd.concat([read_candidates(part / "candidates.run") for part in parts])
    costs = [reports[part]["totals"]["usd"] for part in parts]
    folder.mkdir(parents=True, exist_ok=True)
    with alone(folder):
        claim(folder, config)
        with (folder / ANSWERS).open("wb") as file:
            for number, part in enumerate(parts):
                lines = (part / ANSWERS).read_bytes().splitlines(keepends=True)
                file.writelines(lines[bool(number) :])  # the first line names the teacher
        write_run(_in_order(first, order).drop(columns="score"), folder / "candidates.run")
        return write_folder(
            folder, _in_order(pd.concat(lists), order), config, rows,
            usd=None if None in costs else round(sum(costs), 6),
            made=[reports[part]["made"] for part in parts],
        )  # fmt: skip


def _report(shard: Path) -> dict:
    file = shard / "report.json"
    if not file.exists():
        raise ValueError(
            f"{shard}: expected a finished shard; given a folder without {file.name}: run rdl "
            "teach for it again, which goes on where it was"
        )
    return read_record(file)


def common_config(reports: Mapping[Path, Mapping]) -> dict:
    """The configuration of all shards, as that of a run without shards.

    Args:
        reports: By shard; each with a ``config`` whose ``shard`` is its number and that of all.

    Raises:
        ValueError: A shard is missing, there twice, or of another configuration.

    >>> common_config({Path("a"): {"config": {"shard": [1, 1], "depth": 9}}})
    {'shard': [1, 1], 'depth': 9}
    """
    (first, report), *others = reports.items()
    wanted = report["config"]
    of = wanted["shard"][1]
    for shard, other in others:
        given = other["config"] | {"shard": [wanted["shard"][0], other["config"]["shard"][1]]}
        if changed := [key for key in wanted | given if given.get(key) != wanted.get(key)]:
            shown = "; ".join(
                f"{key} {given.get(key)!r} where {first} has {wanted.get(key)!r}" for key in changed
            )
            raise ValueError(
                f"{shard}: expected the same configuration; given {shown}: leave it out"
            )
    numbers = Counter(other["config"]["shard"][0] for other in reports.values())
    if missing := [f"{number}/{of}" for number in range(1, of + 1) if number not in numbers]:
        given = ", ".join(f"{number}/{of}" for number in numbers)
        raise ValueError(
            f"expected all {of} shards once; given {given}; missing {', '.join(missing)}: run "
            f"--shard {missing[0]}, or name what it left"
        )
    if twice := [f"{number}/{of}" for number, times in numbers.items() if times > 1]:
        raise ValueError(
            f"expected all {of} shards once; given {twice[0]} more than once: name one of them"
        )
    return wanted | {"shard": [1, 1]}


def _lists(shard: Path, report: dict) -> pd.DataFrame:
    """A shard's lists, if they are those that its report names."""
    lists = read_candidates(shard / "requests.jsonl", "rank_llm")
    named = [row["query_id"] for row in report["queries"]]
    found = set(lists["query_id"])
    lost = [query for query in named if query not in found]
    size = report["totals"]["n_passages"]
    if lost or found - set(named) or len(lists) != size:
        missing = f", none for {lost[:3]}" if lost else ""
        raise ValueError(
            f"{shard}: expected lists of {len(named)} queries and {size} passages; given "
            f"{len(found)} and {len(lists)}{missing}: run rdl teach for this shard again"
        )
    return lists.assign(teacher_rank=lists["rank"])


def in_turn(parts: Sequence[Sequence[_T]]) -> list[_T]:
    """Rows of all shards in the order of the candidates: the first of each, the second of each.

    >>> in_turn([["q1", "q3"], ["q2"]])
    ['q1', 'q2', 'q3']
    """
    longest = max(map(len, parts))
    return [part[place] for place in range(longest) for part in parts if place < len(part)]


def once(queries: Sequence[str], n_queries: int) -> None:
    """Refuse queries that are there twice, or are not as many as they should be.

    >>> once(["q1", "q1"], 2)
    Traceback (most recent call last):
    ValueError: expected every one of 2 queries once; given 2, twice ['q1']: ...
    """
    twice = [query for query, times in Counter(queries).items() if times > 1]
    if twice or len(queries) != n_queries:
        raise ValueError(
            f"expected every one of {n_queries} queries once; given {len(queries)}"
            + (f", twice {twice[:3]}" if twice else "")
            + ": were all shards made of one file of candidates? Run those that were not again"
        )


def _in_order(lists: pd.DataFrame, queries: list[str]) -> pd.DataFrame:
    """Rows by query, as listed, best first."""
    place = lists["query_id"].map({query: place for place, query in enumerate(queries)})
    return lists.assign(place=place).sort_values(["place", "rank"]).drop(columns="place")
