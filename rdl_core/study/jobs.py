"""What the study computes, each piece a run of the store: candidates, vectors, students, rankings.

A configuration names everything by value, down to the stage that another one starts from, so that
ablations that share a stage share its run.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from transformers import AutoTokenizer

from rdl_core.cross_encoder import CrossEncoder
from rdl_core.data import retrieval
from rdl_core.data.collections import Collection, fingerprint, load
from rdl_core.data.downloads import EMBEDDED_ENCODER, encoder_path, sha256_of
from rdl_core.data.lists import RankedLists
from rdl_core.data.tokens import TokenStore
from rdl_core.devices import default_device, resolve_precision
from rdl_core.distill import distill
from rdl_core.evaluate import per_query, settle_ties
from rdl_core.rerank import rerank
from rdl_core.stage import StageConfig
from rdl_core.study.runs import Run, obtain
from rdl_core.teachers import encoders

__all__ = [
    "FIRST_STAGES", "TEACHERS", "ListsConfig", "RankingConfig", "Stage", "StudentConfig",
    "chosen_queries", "lists", "ranking", "student",
]  # fmt: skip

FIRST_STAGES = ("bm25", "bi_encoder")
#: Orders of candidates that a stage can learn from and a ranking can be made with.
TEACHERS = ("bi_encoder", "fused", "first_stage", "judgments")
_CANDIDATES = 100  # computed once, cut to any depth up to it
_STORED_TOKENS, _VECTOR_TOKENS = 512, 128
_LISTS_CODE = ("rdl_core.data.lists", "rdl_core.data.retrieval", "rdl_core.teachers.encoders")


@dataclass(frozen=True, kw_only=True)
class ListsConfig:
    """Candidates of some queries, and who ordered them."""

    collection: str
    """ir_datasets id."""
    first_stage: str
    """A member of `FIRST_STAGES`."""
    depth: int
    """Candidates per query, cut from the first stage's top 100."""
    n_queries: int | None = None
    """This many queries, chosen by the hash of their ids; None takes all."""
    teacher: str = "judgments"
    """A member of `TEACHERS`."""
    teacher_encoder: str = EMBEDDED_ENCODER
    """The bi-encoder behind the dense first stage and the encoder teachers."""
    add_relevant: bool = False
    """Whether relevant passages that the first stage missed are appended; judgments only."""

    __pydantic_config__ = {"extra": "forbid"}

    def __post_init__(self) -> None:
        for name, valid in (("first_stage", FIRST_STAGES), ("teacher", TEACHERS)):
            if getattr(self, name) not in valid:
                raise ValueError(
                    f"{name}: expected one of {', '.join(valid)}; got {getattr(self, name)!r}"
                )
        if not 1 <= self.depth <= _CANDIDATES:
            raise ValueError(f"depth: expected 1 to {_CANDIDATES}, got {self.depth}")
        if self.add_relevant and self.teacher != "judgments":
            raise ValueError(
                f"add_relevant: expected teacher 'judgments', got {self.teacher!r}, which has not "
                "ranked what the first stage missed"
            )
        if self.n_queries is not None and self.n_queries < 1:
            raise ValueError(f"n_queries: expected at least 1, or nothing, got {self.n_queries}")


@dataclass(frozen=True, kw_only=True)
class Stage:
    """One stage of distillation: what is learnt from, and how."""

    lists: ListsConfig
    """Training lists."""
    training: StageConfig
    """The loop's configuration."""
    dev: ListsConfig | None = None
    """Judged queries whose nDCG@10 the training looks at, where it looks at any."""

    __pydantic_config__ = {"extra": "forbid"}

    def __post_init__(self) -> None:
        if (self.dev is None) != (self.training.dev_every == 0):
            raise ValueError(
                f"dev: expected queries to look at if and only if dev_every is not 0, got dev_every "
                f"{self.training.dev_every}: give both or neither"
            )


@dataclass(frozen=True, kw_only=True)
class StudentConfig:
    """A student, by everything that makes it."""

    encoder: str
    """Where its weights start: the embedded encoder, a folder or a hub id."""
    query_tokens: int
    """Longest query, in tokens."""
    passage_tokens: int
    """Longest passage, in tokens."""
    stages: tuple[Stage, ...]
    """Trained one after the other."""
    seed: int
    """Of the head's first weights, of draws and of dropout."""


@dataclass(frozen=True, kw_only=True)
class RankingConfig:
    """An order of test candidates."""

    candidates: ListsConfig
    """The test queries and what the first stage gave them."""
    system: str | StudentConfig
    """``"first_stage"``, ``"bi_encoder"``, ``"fused"``, or a student."""
    precision: str
    """In which a student scores: ``"auto"`` or a key of `rdl_core.devices.PRECISIONS`."""


def lists(config: ListsConfig) -> pd.DataFrame:
    """Candidates with what is known of them.

    Returns:
        ``query_id``, ``doc_id``, ``rank``, ``score`` and either ``teacher_rank`` or, where the
        judgments teach, ``relevance`` (missing where nobody judged).

    Raises:
        ValueError: The collection lacks queries, passages or, where needed, judgments.

    >>> lists(profile.stage2.lists).columns.tolist()
    ['query_id', 'doc_id', 'rank', 'score', 'teacher_rank']
    """
    collection = load(config.collection)
    frame = _candidates(collection, config)
    frame = frame[frame["rank"] <= config.depth].reset_index(drop=True)
    if config.teacher != "judgments":
        scores = _order_scores(frame, config, config.teacher)
        return encoders.add_teacher_rank(frame, scores)
    frame = frame.merge(collection.qrels, on=["query_id", "doc_id"], how="left")
    return _append_missing(frame, collection.qrels) if config.add_relevant else frame


def chosen_queries(config: ListsConfig) -> list[str]:
    """Query ids in the order of their hashes: more queries contain the fewer.

    >>> from dataclasses import replace
    >>> chosen_queries(profile.test)[:3] == chosen_queries(replace(profile.test, n_queries=3))
    True
    """
    ids = load(config.collection).queries["query_id"]
    by_hash = sorted(ids, key=lambda query_id: hashlib.sha256(query_id.encode()).digest())
    return by_hash[: config.n_queries]


def student(config: StudentConfig) -> Run:
    """A trained student; ``model/`` in its folder loads in transformers.

    >>> sorted(path.name for path in student(profile.student()).folder.glob("[!.]*"))
    ['config.json', 'log.jsonl', 'manifest.json', 'model']
    """
    *earlier, stage = config.stages
    start = (
        str(student(replace(config, stages=tuple(earlier))).folder / "model")
        if earlier
        else encoder_path(config.encoder)
    )
    collection = load(stage.lists.collection)

    def train(folder: Path) -> dict:
        torch.manual_seed(config.seed)  # the head's first weights
        model = CrossEncoder.from_pretrained(
            start, query_tokens=config.query_tokens, passage_tokens=config.passage_tokens
        ).to(default_device())
        query_ids, queries = _tokens(collection.queries, config.encoder)
        doc_ids, passages = _tokens(collection.passages, config.encoder)
        frame = lists(stage.lists)
        ranked = RankedLists.from_frame(frame, query_ids, doc_ids)
        distill(
            model, ranked, queries, passages, stage.training, seed=config.seed, folder=folder,
            dev=_dev_measure(stage.dev, config, frame) if stage.dev else None,
        )
        drawn = stage.training.steps * stage.training.queries_per_step * stage.training.list_size
        return {"n_lists": len(ranked), "passages_seen": drawn}

    read = dict.fromkeys(s.collection for s in (stage.lists, stage.dev) if s)
    return obtain(
        "train", config, data=_data(config.encoder, *(load(name).fingerprint for name in read)),
        code=("rdl_core.distill", "rdl_core.rerank", *_LISTS_CODE), compute=train,
    )


def ranking(config: RankingConfig) -> Run:
    """A run over the test candidates, ``run.parquet`` in its folder, ties settled.

    >>> config = RankingConfig(candidates=profile.test, system="first_stage", precision="float32")
    >>> ranking(config).manifest["n_queries"]
    6
    """
    collection = load(config.candidates.collection)
    system = config.system
    trained = student(system) if isinstance(system, StudentConfig) else None

    def rank(folder: Path) -> dict:
        candidates = lists(config.candidates)
        if trained:
            scored = _student_scores(trained, candidates, collection, config)
        else:
            scores = _order_scores(candidates, config.candidates, system)
            scored = candidates.assign(score=scores)[["query_id", "doc_id", "score"]]
        run = settle_ties(scored, candidates)
        run.to_parquet(folder / "run.parquet", index=False)
        return {
            "n_queries": run["query_id"].nunique(), "n_pairs": len(run),
            "precision": resolve_precision(config.precision, default_device()) if trained else None,
        }

    encoder = system.encoder if trained else config.candidates.teacher_encoder
    return obtain(
        "rank", config, data=_data(encoder, collection.fingerprint),
        code=("rdl_core.rerank", "rdl_core.evaluate", *_LISTS_CODE),
        inputs=[trained.manifest["id"]] if trained else [], compute=rank,
    )


def _student_scores(
    trained: Run, candidates: pd.DataFrame, collection: Collection, config: RankingConfig
) -> pd.DataFrame:
    system = config.system
    model = CrossEncoder.from_pretrained(
        trained.folder / "model",
        query_tokens=system.query_tokens,
        passage_tokens=system.passage_tokens,
    ).to(default_device())
    return _scores(model, candidates, collection, system.encoder, config.precision)


def _scores(
    model: CrossEncoder, candidates: pd.DataFrame, collection: Collection, encoder: str,
    precision: str,
) -> pd.DataFrame:
    query_ids, queries = _tokens(collection.queries, encoder)
    doc_ids, passages = _tokens(collection.passages, encoder)
    return rerank(
        model, candidates, queries, passages, query_ids=query_ids, doc_ids=doc_ids,
        precision=resolve_precision(precision, model.device),
    )


def _dev_measure(
    dev: ListsConfig, config: StudentConfig, trained_on: pd.DataFrame
) -> Callable[[CrossEncoder], float]:
    """Mean nDCG@10 of a student on judged queries, none of which it was trained on."""
    candidates, collection = lists(dev), load(dev.collection)
    asked = chosen_queries(dev)
    if seen := set(asked) & set(trained_on["query_id"]):
        raise ValueError(
            f"dev: expected queries that are not trained on, but {len(seen)} are, such as "
            f"{min(seen)!r}: choose another split or year"
        )
    judged = collection.qrels[collection.qrels["query_id"].isin(asked)]
    precision = config.stages[-1].training.precision

    def measure(model: CrossEncoder) -> float:
        scored = _scores(model, candidates, collection, config.encoder, precision)
        return float(per_query(judged, settle_ties(scored, candidates))["nDCG@10"].mean())

    return measure


@dataclass(frozen=True, kw_only=True)
class _CandidatesConfig:
    collection: str
    first_stage: str
    depth: int
    n_queries: int | None
    encoder: str | None


@dataclass(frozen=True, kw_only=True)
class _TextConfig:
    """Texts as tokens or vectors; splits that share passages share the run."""

    encoder: str
    max_tokens: int


def _candidates(collection: Collection, config: ListsConfig) -> pd.DataFrame:
    def retrieve(folder: Path) -> None:
        queries, passages = collection.queries, collection.passages
        chosen = queries["query_id"].isin(chosen_queries(config))
        if config.first_stage == "bm25":
            frame = retrieval.bm25(queries[chosen], passages, depth=_CANDIDATES)
        else:
            _, query_vectors = _vectors(queries[chosen], config.teacher_encoder)
            _, passage_vectors = _vectors(passages, config.teacher_encoder)
            frame = retrieval.dense(
                queries[chosen], passages, query_vectors, passage_vectors, depth=_CANDIDATES
            )
        frame.to_parquet(folder / "candidates.parquet", index=False)

    encoder = None if config.first_stage == "bm25" else config.teacher_encoder
    wanted = _CandidatesConfig(
        collection=collection.id, first_stage=config.first_stage, depth=_CANDIDATES,
        n_queries=config.n_queries, encoder=encoder,
    )
    run = obtain(
        "candidates", wanted,
        data=_data(encoder, fingerprint(collection.queries), fingerprint(collection.passages)),
        code=("rdl_core.data.retrieval",), compute=retrieve,
    )
    return pd.read_parquet(run.folder / "candidates.parquet")


def _append_missing(frame: pd.DataFrame, qrels: pd.DataFrame) -> pd.DataFrame:
    """Relevant passages that the first stage missed, behind the candidates of their queries."""
    relevant = qrels[(qrels["relevance"] > 0) & qrels["query_id"].isin(frame["query_id"])]
    found = pd.MultiIndex.from_frame(frame[["query_id", "doc_id"]])
    missing = relevant[~pd.MultiIndex.from_frame(relevant[["query_id", "doc_id"]]).isin(found)]
    last = missing["query_id"].map(frame.groupby("query_id")["rank"].max())
    place = missing.groupby("query_id").cumcount() + 1
    return pd.concat([frame, missing.assign(rank=last + place)], ignore_index=True)


def _order_scores(candidates: pd.DataFrame, config: ListsConfig, order: str) -> np.ndarray:
    """Scores that put candidates in the order of a teacher; higher is better."""
    first_stage = -candidates["rank"].to_numpy(dtype="float64")
    if order == "first_stage":
        return first_stage
    collection = load(config.collection)
    asked = collection.queries["query_id"].isin(candidates["query_id"])
    query_ids, query_vectors = _vectors(collection.queries[asked], config.teacher_encoder)
    doc_ids, passage_vectors = _vectors(collection.passages, config.teacher_encoder)
    similarity = encoders.similarity(candidates, query_ids, query_vectors, doc_ids, passage_vectors)
    if order == "bi_encoder":
        return similarity
    return encoders.fuse(candidates, similarity, candidates["score"].to_numpy())


def _vectors(texts: pd.DataFrame, encoder: str) -> tuple[pd.Index, np.ndarray]:
    """Ids and vectors of a frame of ids and texts."""

    def encode(folder: Path) -> None:
        vectors = retrieval.encode(
            texts.iloc[:, 1].tolist(), encoder, max_tokens=_VECTOR_TOKENS, what=texts.columns[1]
        )
        np.save(folder / "vectors.npy", vectors)

    run = obtain(
        "vectors", _TextConfig(encoder=encoder, max_tokens=_VECTOR_TOKENS),
        data=_data(encoder, fingerprint(texts)), code=("rdl_core.data.retrieval",), compute=encode,
    )
    return _ids(texts), np.load(run.folder / "vectors.npy", allow_pickle=False)


def _tokens(texts: pd.DataFrame, encoder: str) -> tuple[pd.Index, TokenStore]:
    """Ids and tokens of a frame of ids and texts."""

    def tokenise(folder: Path) -> None:
        tokenizer = AutoTokenizer.from_pretrained(encoder_path(encoder), trust_remote_code=False)
        TokenStore.build(
            texts.iloc[:, 1], tokenizer, folder, max_tokens=_STORED_TOKENS, total=len(texts)
        )

    run = obtain(
        "tokens", _TextConfig(encoder=encoder, max_tokens=_STORED_TOKENS),
        data=_data(encoder, fingerprint(texts)), code=("rdl_core.data.tokens",), compute=tokenise,
    )
    return _ids(texts), TokenStore.open(run.folder)


def _ids(texts: pd.DataFrame) -> pd.Index:
    return pd.Index(texts.iloc[:, 0].to_numpy(object))


def _data(encoder: str | None, *fingerprints: str) -> str:
    """One fingerprint of texts, judgments and, where they lie on disk, an encoder's weights."""
    weights = Path(encoder_path(encoder)) / "model.safetensors" if encoder else None
    of_weights = _sha256(weights)[:16] if weights and weights.exists() else ""
    return "-".join(filter(None, (*fingerprints, of_weights)))


_sha256 = lru_cache(sha256_of)
