"""`rdl distill`: a student from a file of ranked lists."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path

import torch

from rdl_core.config import StageConfig
from rdl_core.cross_encoder import LIMITS, CrossEncoder, model_path, training_record
from rdl_core.data.collections import Corpus, fingerprint, read_corpus, read_judgments
from rdl_core.devices import default_device, device_name, processes, resolve_precision
from rdl_core.distill import check, distill, held
from rdl_core.files import checked, content_hash, resumable
from rdl_core.lists import RankedLists
from rdl_core.rerank import dev_measure
from rdl_core.tokens import TokenCorpus, TokenStore
from rdl_tools.config import DistillConfig
from rdl_tools.student import tokens_of

__all__ = ["distill_files"]

_log = logging.getLogger(__name__)


def distill_files(config: DistillConfig, folder: str | Path) -> CrossEncoder:
    """Train a student on a file of ranked lists, or go on with it, or give it if it is finished.

    `folder` is new, empty, or was begun with the same configuration and data, else ValueError. It gets
    the texts' tokens, what `distill` writes, and the files of `resumable`.
    """
    folder = Path(folder)
    corpus = read_corpus(config.lists, format=config.format, collection=config.collection)
    torch.manual_seed(config.seed)  # the head's first weights
    limits = {name: getattr(config, name) for name in LIMITS}
    student = CrossEncoder.from_pretrained(config.encoder, **limits).to(default_device())
    stage = checked(StageConfig, {"precision": "auto"} | config.training, what="training")
    dev, dev_prints = _dev_of(config, stage, student, corpus)
    if "steps" not in config.training:  # every list three times
        steps = math.ceil(3 * len(corpus.ids("query_id")) / stage.queries_per_step)
        stage = replace(stage, steps=steps)
    stage = replace(stage, precision=resolve_precision(stage.precision, student.device))
    candidates = corpus.candidates
    if "teacher_rank" not in candidates:  # the file's own order and scores teach
        names = {"rank": "teacher_rank", "score": "teacher_score"}
        candidates = candidates.join(candidates.filter([*names]).rename(columns=names))
    query_ids, doc_ids = corpus.ids("query_id"), corpus.ids("doc_id")
    texts = TokenCorpus(query_ids, None, doc_ids, None)  # which take longest, and are not read before
    lists = RankedLists.from_frame(candidates, texts)
    check(lists, stage, dev)
    with held(folder, _identity(config, stage, student, corpus, dev_prints)) as work:
        if work.manifest is not None:
            _log.info("%s: finished before", folder)
            return CrossEncoder.from_pretrained(folder).eval()
        stores = {}
        with processes().main_process_first():
            for name, ids, texts, limit in (
                ("queries", query_ids, corpus.queries, student.query_tokens),
                ("passages", doc_ids, corpus.passages, student.passage_tokens * student.chunks),
            ):
                with resumable(folder / "tokens" / texts.what, work.identity, shared=True) as tokens:
                    if tokens.manifest is None:
                        size = {"max_tokens": limit, "total": len(ids)}
                        TokenStore.build(texts.each(ids), student.tokenizer, tokens.folder, **size)
                        tokens.finish()
                stores[name] = TokenStore.open(tokens.folder)
        distill(student, replace(lists, **stores), stage, seed=config.seed, folder=folder, dev=dev)
        if processes().is_main_process:
            work.finish(n_lists=len(lists), device=device_name(student.device))
    return student


def _dev_of(
    config: DistillConfig, stage: StageConfig, student: CrossEncoder, trained: Corpus
) -> tuple[Callable[[CrossEncoder], float] | None, list[str]]:
    """The measure of the dev queries, and fingerprints of what decides it; None without any."""
    if (config.dev is None) != (stage.dev_every == 0):
        got = f"got dev {config.dev} and dev_every {stage.dev_every}"
        raise ValueError(f"dev, dev_every: expected both or neither, {got}: give or leave out both")
    if config.dev is None:
        return None, []
    corpus = read_corpus(config.dev, format=config.format, collection=config.collection)
    candidates, query_ids = corpus.candidates, corpus.ids("query_id")
    if len(shared := query_ids.intersection(trained.ids("query_id"))):
        raise ValueError(f"dev: expected other queries than {config.lists} has; got {shared[0]!r}, too")
    if config.dev_qrels:
        qrels = read_judgments(config.dev_qrels)
        qrels = qrels[qrels["query_id"].isin(query_ids)]
    else:  # the teacher's first has grade 10
        ranks = candidates.get("teacher_rank", candidates["rank"]).fillna(0).astype("int64")
        grades = (11 - ranks.where(ranks > 0, 11)).clip(lower=0)
        qrels = candidates[["query_id", "doc_id"]].assign(relevance=grades)
    measure = dev_measure(candidates, qrels, tokens_of(corpus, student), stage.precision)
    return measure, [fingerprint(candidates), fingerprint(qrels)]


def _identity(
    config: DistillConfig, stage: StageConfig, student: CrossEncoder, corpus: Corpus,
    dev_prints: list[str],
) -> dict:  # fmt: skip
    """All that decides what the student becomes, earlier stages included."""
    earlier = training_record(config.encoder).get("config", {})
    lists = {
        "file": Path(config.lists).name, "collection": config.collection, "teacher": config.teacher,
        "n_queries": len(corpus.ids("query_id")), "n_passages": len(corpus.candidates),
    }  # fmt: skip
    settings = {
        "encoder": earlier.get("encoder", config.encoder), **student.limits, "seed": config.seed,
        "stages": [*earlier.get("stages", ()), {"lists": lists, "training": asdict(stage)}],
    }  # fmt: skip
    weights = sorted(Path(model_path(config.encoder)).glob("**/*.safetensors"))
    data = [fingerprint(corpus.candidates), *dev_prints, *map(content_hash, weights)]
    return {"kind": "distill", "config": settings, "data": "-".join(data)}
