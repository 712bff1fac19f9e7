"""Rank-DistiLLM as published: candidates of MS MARCO's training queries, RankZephyr's order of some.

A first stage's file has its top 500 of every judged training query, some 250 M rows in 10 GB: it is
read from disk in passing, and only the rows that were asked for stay. A teacher's file has its order
of the first stage's top 100 of 10,000 of these queries; it does not say where the first stage had put
them, so ranks come from the first stage's own file.

ColBERTv2's lists of the test queries are in an archive of the same authors, of which no hash is
published. Such a file is taken from ``RDL_MIRROR`` or the cache as it is, and its own hash counts for
the ids of runs.

Reference: Schlatt et al., ECIR 2025; zenodo.org/records/12528410 and 15150456.

>>> sorted(FIRST_STAGES)
['bm25', 'colbert']
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from functools import lru_cache
from pathlib import Path

import pandas as pd
import pyarrow as pa
import pyarrow.dataset as ds
from pyarrow import csv

from rdl_core.data.downloads import download_folder, fetch, registry, sha256_of
from rdl_core.data.formats import from_frame, read_candidates

__all__ = [
    "COLLECTION", "DEEPEST", "FIRST_STAGES", "TEACHERS", "candidates", "hash_of_lists",
    "lists_of_tests", "teacher_run",
]  # fmt: skip

#: ir_datasets id of the queries that have lists.
COLLECTION = "msmarco-passage/train/judged"
#: Passages in each of a first stage's lists.
DEEPEST = 500
_ENDING = "__msmarco-passage-train-judged"
#: First stages, and the registry names of their files.
FIRST_STAGES = {
    "colbert": f"rank-distillm/__colbert{_ENDING}.parquet",
    "bm25": f"rank-distillm/__bm25{_ENDING}.run",
}
#: Teachers, and the registry names of their files by first stage.
TEACHERS = {
    "rank_zephyr": {
        "colbert": f"rank-distillm/__rankzephyr-colbert-10000-sampled-100{_ENDING}.parquet",
        "bm25": f"rank-distillm/__rankzephyr-bm25-10000-sampled-100{_ENDING}.run",
    }
}
_COLUMNS = ("qid", "iter", "docno", "rank", "score", "tag")


def candidates(
    first_stage: str, depth: int, query_ids: Iterable[str] | None = None
) -> pd.DataFrame:
    """A first stage's lists, fetched if need be.

    Args:
        first_stage: A key of `FIRST_STAGES`.
        depth: Candidates per query, at most 500.
        query_ids: Training queries; None takes all.

    Returns:
        ``query_id``, ``doc_id``, ``rank`` (1 is best), ``score``.

    Raises:
        ValueError: An unknown first stage, or a file that is not to be had or is not of this form.

    >>> candidates("colbert", 200, ["1185869"])  # doctest: +SKIP
    """
    if first_stage not in FIRST_STAGES:
        raise ValueError(
            f"first_stage: expected one of {', '.join(FIRST_STAGES)} for collection {COLLECTION!r}; "
            f"got {first_stage!r}"
        )
    found = _read(_fetched(FIRST_STAGES[first_stage]), depth, query_ids)
    return found[found["rank"] <= depth].reset_index(drop=True)


@lru_cache(maxsize=2)
def teacher_run(teacher: str, first_stage: str) -> pd.DataFrame:
    """A teacher's order of a first stage's top 100 of 10,000 training queries.

    Returns:
        ``query_id``, ``doc_id``, ``teacher_rank`` (1 is best).

    Raises:
        ValueError: As for `candidates`.

    >>> teacher_run("rank_zephyr", "colbert")["query_id"].nunique()  # doctest: +SKIP
    10000
    """
    if first_stage not in TEACHERS.get(teacher, ()):
        known = [f"{name} of {stage}" for name, files in TEACHERS.items() for stage in files]
        raise ValueError(
            f"teacher: expected one of {', '.join(known)} for collection {COLLECTION!r}; got "
            f"{teacher!r} of {first_stage!r}"
        )
    frame = read_candidates(_fetched(TEACHERS[teacher][first_stage]))
    return frame[["query_id", "doc_id", "rank"]].rename(columns={"rank": "teacher_rank"})


def lists_of_tests(collection_id: str) -> pd.DataFrame:
    """ColBERTv2's lists of test queries, from a file that has to be put there by hand.

    Args:
        collection_id: ir_datasets id of the test queries.

    Returns:
        ``query_id``, ``doc_id``, ``rank`` (1 is best), ``score``.

    Raises:
        ValueError: There is no such file; says where it is from and where it belongs.

    >>> lists_of_tests("vaswani")
    Traceback (most recent call last):
    ValueError: expected rank-distillm/__colbert__vaswani.run in RDL_MIRROR ...
    """
    return read_candidates(_by_hand(collection_id))[["query_id", "doc_id", "rank", "score"]]


def hash_of_lists(collection_id: str, first_stage: str, teacher: str) -> list[str]:
    """Hashes of the files behind a first stage's lists and a teacher's order, as far as any are.

    >>> hash_of_lists(COLLECTION, "colbert", "judgments")
    ['1e927d52af085516bf5a3de2865809d5']
    >>> hash_of_lists("vaswani", "bm25", "judgments")
    []
    """
    if collection_id == COLLECTION:
        names = [FIRST_STAGES.get(first_stage), TEACHERS.get(teacher, {}).get(first_stage)]
        return [registry()[name].hash[1] for name in names if name]
    return [sha256_of(_by_hand(collection_id))[:16]] if first_stage == "colbert" else []


def _by_hand(collection_id: str) -> Path:
    name = f"rank-distillm/__colbert__{collection_id.replace('/', '-')}.run"
    mirror = os.environ.get("RDL_MIRROR")
    for folder in (mirror, download_folder()):
        if folder and (path := Path(folder).expanduser() / name).is_file():
            return path
    raise ValueError(
        f"expected {name} in RDL_MIRROR ({mirror or 'not set'}) or in the cache "
        f"({download_folder()}): unpack experiments.tar.gz of zenodo.org/records/15150456 and copy "
        "ColBERTv2's run of this collection there under this name, or choose another first stage"
    )


@lru_cache
def _fetched(name: str) -> Path:
    """Checked once a process: hashing 13 GB takes half a minute."""
    return fetch(name)


def _read(path: Path, depth: int, query_ids: Iterable[str] | None) -> pd.DataFrame:
    """The rows of some queries down to a rank, streamed past."""
    text = pa.string()
    wanted = ds.field("rank") <= depth  # counted from 0 or 1: counted anew by `from_frame`
    if query_ids is not None:
        wanted &= ds.field("qid").cast(text).isin(pa.array(list(query_ids), text))
    columns = {name: ds.field(name) for name in ("rank", "score")}
    columns |= {name: ds.field(name).cast(text) for name in ("qid", "docno")}
    try:
        form = "parquet" if path.suffix == ".parquet" else _run_format(path)
        table = ds.dataset(path, format=form).to_table(columns=columns, filter=wanted)
    except pa.ArrowInvalid as error:
        raise ValueError(
            f"{path}: expected rows of {', '.join(columns)}; {error}: fetch the file again"
        ) from None
    return from_frame(table.to_pandas())


def _run_format(path: Path) -> ds.CsvFileFormat:
    """A TREC run, separated by single tabs or single blanks."""
    with path.open() as file:
        delimiter = "\t" if "\t" in file.readline() else " "
    kinds = {"qid": pa.string(), "docno": pa.string(), "rank": pa.int64(), "score": pa.float64()}
    return ds.CsvFileFormat(
        parse_options=csv.ParseOptions(delimiter=delimiter, quote_char=False),
        read_options=csv.ReadOptions(column_names=_COLUMNS),
        convert_options=csv.ConvertOptions(column_types=kinds),
    )
