"""A run made in shards: what each of them is, and how they become one again.

A shard has every so-many-th query of the candidates. Beside its run lies a record of all that decides
the scores, so that runs of different students, candidates or precisions are never put together.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pandas as pd

from rdl_core.commands.students import model_path
from rdl_core.corpus import Corpus
from rdl_core.data.collections import fingerprint
from rdl_core.data.downloads import sha256_of
from rdl_core.data.formats import read_run, write_run
from rdl_core.records import read_record, write_record
from rdl_core.teachers.merge import common_config, in_turn, once

__all__ = ["merge_runs", "record_shard"]


def record_shard(
    run: Path, whole: Corpus, model: str, shard: tuple[int, int], **settings: object
) -> Path:
    """Write ``<run>.json``, once the run of a shard is whole.

    Args:
        run: The shard's run.
        whole: All candidates, those of the other shards too.
        model: Name of the student.
        shard: Its number, from 1, and how many there are.
        settings: What else decides the run, such as its precision.

    >>> from rdl_core.corpus import Texts
    >>> texts = Texts(what="text", source="this", find=lambda ids: dict.fromkeys(ids, "a fox"))
    >>> whole = Corpus(candidates=frame, queries=texts, passages=texts)
    >>> _ = (folder / "1.run").write_text("q Q0 a 1 2.5 rdl")
    >>> record_shard(folder / "1.run", whole, profile.encoder, (1, 2), tag="rdl").name
    '1.run.json'
    """
    weights = Path(model_path(model)) / "model.safetensors"
    config = {
        "student": sha256_of(weights) if weights.is_file() else model,
        "candidates": fingerprint(whole.candidates), "n_queries": len(whole.ids("query_id")),
        "shard": list(shard), **settings,
    }
    record = run.with_name(f"{run.name}.json")
    write_record(record, {"config": config, "sha256": sha256_of(run)})
    return record


def merge_runs(shards: Sequence[Path], out: Path) -> int:
    """Make one run of those of all shards, as if one process had made it.

    Args:
        shards: Runs of `rdl rerank --shard`, all of them, in any order.
        out: The run; packed if its name ends in ``.gz``.

    Returns:
        Number of queries.

    Raises:
        ValueError: A shard is missing, there twice, made of something else, or changed since.

    >>> merge_runs([folder / "1.run"], folder / "whole.run")
    Traceback (most recent call last):
    ValueError: ...: expected the run of a shard, with 1.run.json beside it; ...
    """
    records = {shard: _record(shard) for shard in shards}
    config = common_config(records)
    runs = [read_run(shard) for shard in sorted(records, key=lambda s: records[s]["config"]["shard"])]
    order = in_turn([run["query_id"].unique().tolist() for run in runs])
    once(order, config["n_queries"])
    by_query = dict(iter(pd.concat(runs).groupby("query_id", sort=False)))
    write_run(pd.concat([by_query[query] for query in order]), out, tag=config["tag"])
    return len(order)


def _record(shard: Path) -> dict:
    record = shard.with_name(f"{shard.name}.json")
    if not (shard.is_file() and record.is_file()):
        raise ValueError(
            f"{shard}: expected the run of a shard, with {record.name} beside it; given none: run "
            "rdl rerank --shard for it, and bring both files"
        )
    found = read_record(record)
    if found["sha256"] != sha256_of(shard):
        raise ValueError(
            f"{shard}: expected the run that {record.name} was written for; given one that changed "
            "since: run rdl rerank for this shard again"
        )
    return found
