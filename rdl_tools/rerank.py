"""`rdl rerank`: candidates in, run out; machines share it by shards of queries."""

import logging
import shutil
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path

import pandas as pd
import torch

from rdl_core.checkpoint import digest
from rdl_core.cross_encoder import model_path
from rdl_core.data.collections import fingerprint, read_corpus
from rdl_core.data.formats import check_run, read_run, write_run
from rdl_core.evaluate import settle_ties
from rdl_core.files import content_hash, read_json, resumable, write_json
from rdl_core.rerank import rerank
from rdl_tools.adopt import adopted_of
from rdl_tools.config import RerankConfig
from rdl_tools.shards import each_on_a_gpu, in_turn, whole
from rdl_tools.student import open_student, parts_of

__all__ = ["merge_runs", "rerank_files"]

_log = logging.getLogger(__name__)


def rerank_files(config: RerankConfig) -> None:
    """Write a run of a student's scores, strictly decreasing, equal ones in the candidates' order.

    What was adopted for the student counts, unless `plain`. All GPUs of the machine share the queries.
    A shard gets ``<out>.json``, too. Some queries at a time are kept in ``<out>.unfinished``, until the
    run is written: what was killed goes on from there.
    """
    if (out := Path(config.out)).is_dir():
        raise ValueError(f"{out} is a folder: name the file of the run")
    every = read_corpus(config.candidates, format=config.format, collection=config.collection)
    check_run(every.candidates, config.tag)
    out.parent.mkdir(parents=True, exist_ok=True)
    n = min(torch.cuda.device_count(), len(every.ids("query_id")))
    if n > 1 and config.shard == "1/1":
        shards = [replace(config, shard=f"{i}/{n}", out=f"{out}.{i}of{n}") for i in range(1, n + 1)]
        each_on_a_gpu(rerank_files, [(shard,) for shard in shards])
        merge_runs([shard.out for shard in shards], out)
        for path in (f"{shard.out}{end}" for shard in shards for end in ("", ".json")):
            Path(path).unlink()
        return
    corpus = every.shard(*config.part)
    student, precision = open_student(config)
    adopted = None if config.plain else adopted_of(config.student)
    if adopted:
        message = "%s: what rdl adopt chose counts: the first %d passages, weight %g"
        _log.info(message, config.student, adopted.depth, adopted.weight)
    weights = Path(model_path(config.student), "model.safetensors")
    identity = {
        "student": content_hash(weights) if weights.is_file() else config.student,
        "precision": precision, **student.limits, "adopted": adopted and asdict(adopted),
    }  # fmt: skip
    unfinished, ranked = out.with_name(f"{out.name}.unfinished"), []
    parts = parts_of(corpus, student, depth=adopted and adopted.depth)
    for number, (frame, tokens) in enumerate(parts, start=1):
        stores = {"queries": tokens.queries, "passages": tokens.passages}
        texts = {f"{name} {x}": y for name, store in stores.items() for x, y in vars(store).items()}
        identity["data"] = digest(fingerprint(frame), texts)
        with resumable(unfinished / str(number), identity, shared=True) as work:
            path = work.folder / "run.parquet"
            if work.manifest is None:
                if adopted:
                    run = adopted.rerank(student, frame, tokens, precision=precision)
                else:
                    run = settle_ties(rerank(student, frame, tokens, precision=precision), frame)
                run.to_parquet(path, index=False)
                work.finish()
            ranked.append(pd.read_parquet(path))
    write_run(pd.concat(ranked), out, tag=config.tag)
    if config.part[1] > 1:
        identity["data"] = fingerprint(every.candidates)
        shard = {"n_queries": len(every.ids("query_id")), "shard": list(config.part), "tag": config.tag}
        write_json(out.with_name(f"{out.name}.json"), identity | shard | {"sha256": content_hash(out)})
    shutil.rmtree(unfinished)


def merge_runs(shards: Sequence[str | Path], out: str | Path) -> int:
    """Make one run of those of all shards; gives its number of queries. ValueError for shards that are
    missing, there twice, made of something else, or changed since.
    """
    records = {}
    for shard in map(Path, shards):
        record = shard.with_name(f"{shard.name}.json")
        if not (shard.is_file() and record.is_file()):
            told = f"{shard} is no run of a shard with {record.name} beside it"
            raise ValueError(f"{told}: bring both, or run rdl rerank --shard again")
        records[shard] = read_json(record)
        if records[shard].pop("sha256") != content_hash(shard):
            told = f"{shard} changed since {record.name} was written"
            raise ValueError(f"{told}: run rdl rerank again")
    identity = whole(records)
    runs = [read_run(shard) for shard in sorted(records, key=lambda x: records[x]["shard"])]
    order = in_turn([run["query_id"].unique().tolist() for run in runs])
    by_query = pd.concat(runs).groupby("query_id")
    write_run(pd.concat(map(by_query.get_group, order)), out, tag=identity["tag"])
    return len(order)
