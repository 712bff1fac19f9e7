"""Published lists: candidates of first stages, and how LLMs ranked them.

TREC DL: RankLLM's lists carry their texts; the union of a year's lists is a small collection, with all
candidates but not all judged passages (3,834 of 9,139 in 2019, 5,001 of 11,224 in 2020).

Rank-DistiLLM: a first stage's file has its top 500 of every judged training query, 250 M rows, which
are streamed; RankZephyr's its order of the top 100 of 10,000 of them. ColBERTv2's lists of test queries
are in an archive of which no hash is published.

Reference: Craswell et al., TREC 2019 and 2020; Pradeep et al., RankVicuna, arXiv 2309.15088; Schlatt
et al., ECIR 2025, zenodo.org/records/12528410 and 15150456.
"""

import fnmatch
import os
from collections.abc import Iterable
from functools import lru_cache
from pathlib import Path

import pandas as pd
import pyarrow as pa
import pyarrow.dataset as ds
from pyarrow import csv

from rdl_core.data.downloads import download_folder, fetch, group_names, registry
from rdl_core.data.formats import from_frame, read_candidates
from rdl_core.files import content_hash

__all__ = ["FIRST_STAGES", "JUDGED", "TEACHERS", "file_hashes", "first_stage", "ranked_queries",
           "teacher_runs", "teachers_of", "texts"]  # fmt: skip

JUDGED = "msmarco-passage/train/judged"  #: ir_datasets id of Rank-DistiLLM's training queries.
_YEARS = {  # of TREC DL, whose lists a collection's queries have; MS MARCO's own has the same ids
    **{f"rdl/trec-dl-{year}": year for year in (2019, 2020, 2022)},
    **{f"msmarco-passage/trec-dl-{year}/judged": year for year in (2019, 2020)},
}
_FOLDERS = {  # of TREC DL's first stages; 2022 has the first three
    "bm25": "BM25", "bm25_rm3": "BM25_RM3", "splade": "SPLADE_P_P_ENSEMBLE_DISTIL",
    "tas_b": "D_BERT_KD_TASB", "ada2": "OPEN_AI_ADA2",
}  # fmt: skip
_LLMS = {  # that ranked whole lists of TREC DL, 100 passages deep, and how their files' names begin
    "rank_vicuna": "output_v2_aug_vicuna_7b",
    "rank_vicuna_unaugmented": "output_v2_vicuna_7b",  # trained without shuffled lists
    "rank_vicuna_early": "vicuna-7b-checkpoint-800",
    "gpt_3.5": "gpt-3.5-turbo", "vicuna_7b": "vicuna-7b-v1.5", "vicuna_13b": "vicuna-13b-v1.5",
}  # fmt: skip
_TRAIN = {  # Rank-DistiLLM's file of each first stage
    "colbert": "rank-distillm/__colbert__msmarco-passage-train-judged.parquet",
    "bm25": "rank-distillm/__bm25__msmarco-passage-train-judged.run",
}
_ZEPHYR = {  # and what RankZephyr made of some of its queries
    x: path.replace(f"__{x}", f"__rankzephyr-{x}-10000-sampled-100") for x, path in _TRAIN.items()
}
FIRST_STAGES = (*_FOLDERS, "colbert")
TEACHERS = (*_LLMS, "rank_zephyr")
_fetched = lru_cache(fetch)  # checked once a process: hashing 13 GB takes half a minute


def first_stage(
    collection_id: str, name: str, depth: int, query_ids: Iterable[str] | None = None
) -> pd.DataFrame | None:
    """A first stage's published lists of a collection's queries; None if there are none.

    Gives ``query_id``, ``doc_id``, ``rank`` (1 to `depth`) and ``score``; ValueError names the others.
    """
    query_ids = None if query_ids is None else list(query_ids)
    if collection_id == JUDGED:
        _expect("first_stage", name, _TRAIN, collection_id)
        frame = _stream(_fetched(_TRAIN[name]), depth, query_ids)
    elif name == "colbert":
        frame = read_candidates(_by_hand(collection_id))
    elif collection_id in _YEARS and name in _FOLDERS:
        files = _lists(_YEARS[collection_id])
        _expect("first_stage", name, [x for x in _FOLDERS if _FOLDERS[x] in files], collection_id)
        frame = read_candidates(fetch(files[_FOLDERS[name]]))
    else:
        return None
    wanted = frame["rank"] <= depth
    if query_ids is not None:
        wanted &= frame["query_id"].isin(query_ids)
    return frame.loc[wanted, ["query_id", "doc_id", "rank", "score"]].reset_index(drop=True)


def teachers_of(collection_id: str, first_stage: str) -> list[str]:
    """Names of the LLMs that ranked a first stage's lists of a collection."""
    return [name for name, files in _files(collection_id, first_stage).items() if files]


@lru_cache(maxsize=2)
def teacher_runs(collection_id: str, first_stage: str, teacher: str) -> list[pd.DataFrame]:
    """Every ranking that a teacher made of a first stage's lists, the oldest first.

    Each has ``query_id``, ``doc_id``, ``teacher_rank`` (1 is best). None: nothing is published.
    """
    if not (files := _files(collection_id, first_stage)):
        return []
    known = teachers_of(collection_id, first_stage)
    _expect("teacher", teacher, known, f"{first_stage} of {collection_id}")
    frames = (read_candidates(_fetched(name)) for name in files[teacher])
    return [x[["query_id", "doc_id", "rank"]].rename(columns={"rank": "teacher_rank"}) for x in frames]


def ranked_queries(collection_id: str, first_stages: Iterable[str], teacher: str) -> pd.Index | None:
    """Ids of the queries that a published teacher ranked, where these are some of the collection's."""
    if collection_id != JUDGED or teacher != "rank_zephyr":
        return None
    runs = [run for name in first_stages for run in teacher_runs(collection_id, name, teacher)]
    return pd.Index(pd.concat(runs)["query_id"].unique())


def file_hashes(collection_id: str, first_stage: str, teacher: str) -> list[str]:
    """Hashes of Rank-DistiLLM's files behind a first stage's lists and a teacher's order."""
    if collection_id == JUDGED:
        names = [_TRAIN.get(first_stage), teacher == "rank_zephyr" and _ZEPHYR.get(first_stage)]
        return [registry()[name].hash.partition(":")[2] for name in names if name]
    return [content_hash(_by_hand(collection_id))[:16]] if first_stage == "colbert" else []


@lru_cache
def texts(year: int) -> dict[str, pd.DataFrame]:
    """``queries`` and ``docs`` of a year of TREC DL, in the order in which its lists name them."""
    lists = pd.concat([read_candidates(fetch(name)) for name in _lists(year).values()])
    columns = {"queries": ["query_id", "query"], "docs": ["doc_id", "text"]}
    return {x: lists[own].drop_duplicates(own[0], ignore_index=True) for x, own in columns.items()}


def _lists(year: int) -> dict[str, str]:
    """Registry names of a year's candidate lists, by the folder of their first stage."""
    pattern = f"trec-dl/retrieve_results/*_dl{year % 100}_top100.json"
    return {name.split("/")[2]: name for name in fnmatch.filter(group_names("trec-dl"), pattern)}


def _files(collection_id: str, first_stage: str) -> dict[str, list[str]]:
    """Registry names of rankings by teacher, those of a first stage's lists, the oldest first."""
    if collection_id == JUDGED:
        return {"rank_zephyr": [_ZEPHYR[first_stage]] if first_stage in _ZEPHYR else []}
    if not (year := _YEARS.get(collection_id)):
        return {}
    folder = f"trec-dl/rerank_results/{_FOLDERS.get(first_stage)}/"
    ends, names = f"_4096_100_*_dl{year % 100}_*", sorted(group_names("trec-dl"))
    return {x: fnmatch.filter(names, f"{folder}{start}{ends}") for x, start in _LLMS.items()}


def _by_hand(collection_id: str) -> Path:
    name = f"rank-distillm/__colbert__{collection_id.replace('/', '-')}.run"
    mirror = os.environ.get("RDL_MIRROR")
    for folder in filter(None, (mirror, download_folder())):
        if (path := Path(folder).expanduser() / name).is_file():
            return path
    places = f"RDL_MIRROR ({mirror or 'not set'}) or in the cache ({download_folder()})"
    remedy = "unpack experiments.tar.gz of zenodo.org/records/15150456 and copy ColBERTv2's run there"
    raise ValueError(f"expected {name} in {places}: {remedy}, or choose another first stage")


def _stream(path: Path, depth: int, query_ids: list[str] | None) -> pd.DataFrame:
    """The rows of some queries down to a rank of a parquet file or a TREC run, streamed past."""
    kinds = {"qid": pa.string(), "docno": pa.string(), "rank": pa.int64(), "score": pa.float64()}
    columns, form = {name: ds.field(name).cast(kind) for name, kind in kinds.items()}, "parquet"
    wanted = columns["rank"] <= depth  # counted from 0 or 1: counted anew by `from_frame`
    if query_ids is not None:
        wanted &= columns["qid"].isin(pa.array(query_ids, pa.string()))
    if path.suffix != ".parquet":
        with path.open() as file:
            delimiter = "\t" if "\t" in file.readline() else " "
        parse = csv.ParseOptions(delimiter=delimiter, quote_char=False)
        names = csv.ReadOptions(column_names=["qid", "iter", "docno", "rank", "score", "tag"])
        types = csv.ConvertOptions(column_types=kinds)
        form = ds.CsvFileFormat(parse, convert_options=types, read_options=names)
    try:
        table = ds.dataset(path, format=form).to_table(columns=columns, filter=wanted)
    except pa.ArrowInvalid as error:
        told = f"{path}: expected rows of {', '.join(columns)}; got {error}"
        raise ValueError(f"{told}: fetch the file again") from None
    return from_frame(table.to_pandas())


def _expect(what: str, name: str, known: Iterable[str], of: str) -> None:
    if name not in known:
        choices = ", ".join(known) or "none at all"
        raise ValueError(f"{what}: expected one of {choices} for {of!r}; got {name!r}")
