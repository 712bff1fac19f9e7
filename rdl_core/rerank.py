"""Re-ranking: candidates in, run out; machines share it by shards of queries."""

import logging
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path

import numpy as np
import pandas as pd
import torch

from rdl_core.adopt import Adopted, adopt, adopted_of, write_adopted
from rdl_core.config import AdoptConfig, RerankConfig, ServeConfig
from rdl_core.cpu import engine
from rdl_core.cross_encoder import LIMITS, CrossEncoder, model_path
from rdl_core.data.collections import Corpus, fingerprint, read_corpus, read_judgments
from rdl_core.data.formats import check_run, read_run, write_run
from rdl_core.devices import default_device, fitting, resolve_precision
from rdl_core.evaluate import per_query, settle_ties
from rdl_core.files import content_hash, read_json, write_json
from rdl_core.lists import RankedLists
from rdl_core.progress import progress
from rdl_core.shards import each_on_a_gpu, in_turn, whole
from rdl_core.tokens import TokenCorpus

__all__ = ["adopt_files", "dev_measure", "merge_runs", "open_student", "rerank", "rerank_files",
           "token_budget_of", "tokens_of"]  # fmt: skip

_IDS = ["query_id", "doc_id"]
_PAIRS_AT_ONCE = 1024  # scored between two lines of progress
_PAIRS_IN_MEMORY = 2**15  # whose texts and tokens are held
_log = logging.getLogger(__name__)


def rerank(
    student: CrossEncoder, candidates: pd.DataFrame, corpus: TokenCorpus, *,
    token_budget: int | None = None, precision: str = "float32", adopted: Adopted | None = None,
) -> pd.DataFrame:  # fmt: skip
    """Score candidates ``query_id, doc_id, rank``, whose texts are in the corpus.

    Gives ``query_id, doc_id, score`` (float32), grouped by query; ties are for
    `rdl_core.evaluate.settle_ties`. With what was `adopted` (`rdl_core.adopt.adopted_of`), gives
    `Adopted.apply`'s run instead. `precision` is a key of `rdl_core.devices.PRECISIONS`, or on a CPU
    ``"int8"``. A batch has at most `token_budget` tokens, halved after each out-of-memory error; None
    suits the device. ValueError for an id that the corpus lacks, or a score that is not finite.
    """
    if adopted:
        top, own = candidates["rank"] <= adopted.depth, {"token_budget": token_budget}
        run = rerank(student, candidates[top], corpus, precision=precision, **own)
        return adopted.apply(candidates, candidates[_IDS].merge(run, "left", _IDS)["score"].to_numpy())
    lists = RankedLists.from_frame(candidates, corpus)
    query_rows = lists.query_rows[:, None].expand_as(lists.mask)
    rows = torch.stack([query_rows, lists.passage_rows])[:, lists.mask]  # of pairs
    queries, passages = (x.to(student.device) for x in (corpus.queries, corpus.passages))
    starts = range(0, rows.shape[1], _PAIRS_AT_ONCE)
    scorer, scores = engine(student, precision), [torch.empty(0)]
    budget = token_budget or token_budget_of(student.device)
    for start in progress(starts, total=len(starts), what="re-ranking"):
        pairs = rows[:, start : start + _PAIRS_AT_ONCE].to(student.device)
        some, budget = fitting(partial(scorer.score, queries, passages, *pairs), budget)
        scores.append(some.cpu())
    score = torch.cat(scores).numpy()
    query_ids = corpus.query_ids.to_numpy(object)[rows[0].numpy()]
    doc_ids = corpus.doc_ids.to_numpy(object)[rows[1].numpy()]
    if len(broken := query_ids[~np.isfinite(score)]):
        told = f"the student scored nan or infinity for query {broken[0]!r}"
        raise ValueError(f"{told}: its weights are broken; train it again with a lower learning rate")
    return pd.DataFrame({"query_id": query_ids, "doc_id": doc_ids, "score": score})


def token_budget_of(device: torch.device) -> int:
    """Tokens in a batch: for a CPU core with 32 MiB of cache, fastest; for a GPU, enough to be busy."""
    return 65_536 if device.type == "cuda" else 1024


def rerank_files(config: RerankConfig) -> None:
    """Write a run of a student's scores, strictly decreasing, equal ones in the candidates' order.

    What was adopted for the student counts, unless `plain`. All GPUs of the machine share the queries.
    A shard gets ``<out>.json``, too.
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
    ranked = []
    for frame, tokens in _parts(corpus, student, depth=adopted and adopted.depth):
        run = rerank(student, frame, tokens, precision=precision, adopted=adopted)
        ranked.append(run if adopted else settle_ties(run, frame))
    write_run(pd.concat(ranked), out, tag=config.tag)
    if config.part[1] > 1:
        weights = Path(model_path(config.student), "model.safetensors")
        write_json(out.with_name(f"{out.name}.json"), {
            "student": content_hash(weights) if weights.is_file() else config.student,
            "candidates": fingerprint(every.candidates), "n_queries": len(every.ids("query_id")),
            "shard": list(config.part), "tag": config.tag, "precision": precision,
            **student.limits, "adopted": adopted and asdict(adopted), "sha256": content_hash(out),
        })  # fmt: skip


def open_student(config: RerankConfig | AdoptConfig | ServeConfig) -> tuple[CrossEncoder, str]:
    """The student of a configuration, on its device, and the precision in which it computes."""
    limits = {name: getattr(config, name) for name in LIMITS}
    student = CrossEncoder.from_pretrained(config.student, **limits, trained=True).to(default_device())
    return student, resolve_precision(config.precision, student.device)


def _parts(
    corpus: Corpus, student: CrossEncoder, *, depth: int | None = None
) -> Iterator[tuple[pd.DataFrame, TokenCorpus]]:
    """Candidates of some queries at a time, and the tokens of those down to a depth; None: of all."""
    for part in corpus.parts(_PAIRS_IN_MEMORY):
        frame = part.candidates.sort_values(["query_id", "rank"])
        tokens = tokens_of(replace(part, candidates=frame[frame["rank"] <= (depth or np.inf)]), student)
        yield frame, tokens
        _log.info("%d queries ranked", len(tokens.query_ids))


def tokens_of(corpus: Corpus, student: CrossEncoder) -> TokenCorpus:
    """A corpus' texts, tokenised for a student, in memory."""
    query_ids, doc_ids = corpus.ids("query_id"), corpus.ids("doc_id")
    queries = pd.DataFrame({"query_id": query_ids, "query": [*corpus.queries.each(query_ids)]})
    passages = pd.DataFrame({"doc_id": doc_ids, "text": [*corpus.passages.each(doc_ids)]})
    return TokenCorpus.of(queries, passages, student.tokenizer)


def dev_measure(
    candidates: pd.DataFrame, qrels: pd.DataFrame, corpus: TokenCorpus, precision: str
) -> Callable[[CrossEncoder], float]:
    """Mean nDCG@10 of candidates by a student, as `rdl_core.distill.distill` takes it for ``dev``."""

    def measure(student: CrossEncoder) -> float:
        precise = resolve_precision(precision, student.device)
        run = settle_ties(rerank(student, candidates, corpus, precision=precise), candidates)
        return float(per_query(qrels, run)["nDCG@10"].mean())

    return measure


def adopt_files(config: AdoptConfig) -> Adopted:
    """`rdl adopt`: `adopt` on files, written into the student's folder."""
    if not (folder := Path(model_path(config.student))).is_dir():
        raise ValueError(f"{config.student}: expected the folder of a student, to write into")
    corpus = read_corpus(config.candidates, format=config.format, collection=config.collection)
    qrels = read_judgments(config.qrels)
    if not (judged := corpus.candidates["query_id"].isin(qrels["query_id"])).any():
        raise ValueError(f"{config.qrels} judges no query of {config.candidates}: are ids the same?")
    corpus = replace(corpus, candidates=corpus.candidates[judged])
    options = {x: getattr(config, x) for x in ("measure", "margin", "positive_grade", "folds")}
    # By the first stage's order, which takes seconds: what cannot be chosen from is refused here.
    adopt(corpus.candidates, -corpus.candidates["rank"].to_numpy(float), qrels, **options)
    student, precision = open_student(config)
    scored = [rerank(student, *part, precision=precision) for part in _parts(corpus, student)]
    scores = pd.concat(scored).rename(columns={"score": "student"})
    candidates = corpus.candidates.sort_values(["query_id", "rank"]).merge(scores, on=_IDS)
    adopted = adopt(candidates, candidates["student"].to_numpy(), qrels, **options)
    write_adopted(adopted, folder)
    return adopted


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
