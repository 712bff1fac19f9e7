"""Candidates of a study, and who ordered them: from a collection's name to a frame.

Where a collection comes with published lists (TREC DL, Rank-DistiLLM) its first stages are those
lists, and its teachers the LLMs that ranked them; anywhere else candidates are retrieved here, and
encoders teach.
Everything costly is a run of the store.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pandas as pd
from transformers import AutoTokenizer

from rdl_core.data import rank_distillm, retrieval, trec_dl
from rdl_core.data.collections import Collection, fingerprint, load
from rdl_core.data.downloads import EMBEDDED_ENCODER, encoder_path
from rdl_core.data.formats import read_candidates
from rdl_core.tokens import TokenStore
from rdl_study.store import content_hash, obtain
from rdl_study.taught import taught
from rdl_core.teachers import encoders

__all__ = [
    "CODE", "FIRST_STAGES", "TEACHERS", "ListsConfig", "candidates_of", "chosen_queries", "data_of",
    "lists", "order_scores", "passage_tokens", "tokens",
]  # fmt: skip

_COMPUTED = ("bm25", "bi_encoder")
#: First stages: the two that are computed here, and those of which there are published lists.
FIRST_STAGES = tuple(
    dict.fromkeys((*_COMPUTED, *trec_dl.FIRST_STAGES, *rank_distillm.FIRST_STAGES))
)
_OF_ENCODERS = ("bi_encoder", "fused")
_AVERAGED = "_mean"
#: Orders of candidates that a stage can learn from and a ranking can be made with. With ``_mean``
#: behind its name, an LLM's ranks are averaged over all the times that it was asked.
TEACHERS = (
    *_OF_ENCODERS, "first_stage", "judgments", "splade",
    *trec_dl.TEACHERS, *(name + _AVERAGED for name in trec_dl.TEACHERS), *rank_distillm.TEACHERS,
)  # fmt: skip
#: Modules that decide what `lists` gives, for the ids of runs that use it.
CODE = (
    "rdl_core.lists", "rdl_core.data.rank_distillm", "rdl_core.data.retrieval",
    "rdl_core.data.trec_dl", "rdl_core.teachers.encoders",
)  # fmt: skip
_CANDIDATES = 100  # computed once, cut to any depth up to it
_DEEPEST = {"colbert": rank_distillm.DEEPEST}  # of lists that are published only
_WHOLE = 100_000  # of more passages than these, the candidates alone become vectors
_STORED_TOKENS, _VECTOR_TOKENS = 512, 128
_OF_ENCODER = ("model.safetensors", "config_sentence_transformers.json")


@dataclass(frozen=True, kw_only=True)
class ListsConfig:
    """Candidates of some queries, and who ordered them."""

    collection: str
    """ir_datasets id."""
    first_stage: str
    """A member of `FIRST_STAGES`, or the path of a file of candidates that
    `rdl_core.data.formats` reads; several with ``+`` between them: a list from each."""
    depth: int
    """Candidates per list, cut from the first stage's top 100; ColBERTv2's have 500."""
    skip_queries: int = 0
    """This many queries are left out: those that ``n_queries`` of them would take first."""
    n_queries: int | None = None
    """This many queries, chosen by the hash of their ids; None takes all."""
    teacher: str = "judgments"
    """A member of `TEACHERS`, or the path of a file of the same kind: its order is the teacher's. A
    file that ends in ``.yaml`` names an LLM to ask, as `rdl_study.taught.LLMTeacher` has it."""
    teacher_encoder: str = EMBEDDED_ENCODER
    """The bi-encoder behind the dense first stage and the encoder teachers; for the latter also
    several with ``+`` between them: the sum of what they say, each standardised within a query."""
    add_relevant: bool = False
    """Whether relevant passages that the first stage missed are appended; judgments only."""

    __pydantic_config__ = {"extra": "forbid"}

    def __post_init__(self) -> None:
        named = [("first_stage", name, FIRST_STAGES) for name in self.first_stages]
        for field, value, valid in (*named, ("teacher", self.teacher, TEACHERS)):
            if value not in valid and not Path(value).is_file():
                raise ValueError(
                    f"{field}: expected one of {', '.join(valid)}, or a file; got {value!r}"
                )
        if "bi_encoder" in self.first_stages and "+" in self.teacher_encoder:
            raise ValueError(
                "teacher_encoder: expected one bi-encoder behind the first stage 'bi_encoder', got "
                f"{self.teacher_encoder!r}: choose one of them, or another first stage"
            )
        deepest = min(_DEEPEST.get(name, _CANDIDATES) for name in self.first_stages)
        if not 1 <= self.depth <= deepest:
            raise ValueError(f"depth: expected 1 to {deepest}, got {self.depth}")
        if self.add_relevant and self.teacher != "judgments":
            raise ValueError(
                f"add_relevant: expected teacher 'judgments', got {self.teacher!r}, which has not "
                "ranked what the first stage missed"
            )
        if self.n_queries is not None and self.n_queries < 1:
            raise ValueError(f"n_queries: expected at least 1, or nothing, got {self.n_queries}")
        if self.skip_queries < 0:
            raise ValueError(f"skip_queries: expected at least 0, got {self.skip_queries}")

    @property
    def first_stages(self) -> list[str]:
        """Each first stage by itself."""
        return self.first_stage.split("+")

    @property
    def fingerprint(self) -> str:
        """Of the collection, and of files among the first stages and the teacher, or behind it."""
        paths = map(Path, (*self.first_stages, self.teacher))
        files = [content_hash(path)[:16] for path in paths if path.is_file()]
        if self.teacher in _OF_ENCODERS:
            files += _hashes(self.teacher_encoder)
        for name in self.first_stages:
            files += rank_distillm.hash_of_lists(self.collection, name, self.teacher)
        return "-".join([load(self.collection).fingerprint, *files])

    def each(self) -> list[ListsConfig]:
        """The same with one first stage each."""
        return [replace(self, first_stage=name) for name in self.first_stages]


def lists(config: ListsConfig) -> pd.DataFrame:
    """Candidates with what is known of them.

    Args:
        config: Of one first stage.

    Returns:
        ``query_id``, ``doc_id``, ``rank``, ``score`` and either ``teacher_rank`` (0 where the
        teacher left a passage out), of encoders with a ``teacher_score``, standardised within each
        list, or, where the judgments teach, ``relevance`` (missing where nobody judged).

    Raises:
        ValueError: The collection lacks queries, passages or, where needed, judgments; or nobody
            made such lists of it.

    >>> lists(profile.stage2.lists).columns[3:].tolist()
    ['score', 'teacher_rank', 'teacher_score']
    """
    frame = candidates_of(config)
    frame = frame[frame["rank"] <= config.depth].reset_index(drop=True)
    if config.teacher != "judgments":
        scores = order_scores(frame, config, config.teacher)
        ranked = encoders.add_teacher_rank(frame, scores)
        if config.teacher in _OF_ENCODERS:
            return ranked.assign(teacher_score=encoders.fuse(frame, scores))
        return ranked.assign(teacher_rank=ranked["teacher_rank"].where(np.isfinite(scores), 0))
    qrels = load(config.collection).qrels
    frame = frame.merge(qrels, on=["query_id", "doc_id"], how="left")
    return _append_missing(frame, qrels) if config.add_relevant else frame


def chosen_queries(config: ListsConfig) -> list[str]:
    """Query ids in the order of their hashes: more queries contain the fewer.

    Where a published teacher ranked some of the collection's queries, these are what is chosen from.

    >>> from dataclasses import replace
    >>> chosen_queries(profile.test)[:3] == chosen_queries(replace(profile.test, n_queries=3))
    True
    """
    if _has_published_teacher(config):
        runs = [rank_distillm.teacher_run(config.teacher, name) for name in config.first_stages]
        ids = pd.concat(runs)["query_id"].unique()
    else:
        ids = load(config.collection).queries["query_id"]
    by_hash = sorted(ids, key=lambda query_id: hashlib.sha256(query_id.encode()).digest())
    return by_hash[config.skip_queries :][: config.n_queries]


def order_scores(candidates: pd.DataFrame, config: ListsConfig, order: str) -> np.ndarray:
    """Scores that put candidates in somebody's order.

    Args:
        candidates: ``query_id``, ``doc_id``, ``rank`` and ``score``.
        config: Where they come from.
        order: A member of `TEACHERS` other than ``"judgments"``.

    Returns:
        float64 ``[rows]``, higher is better; minus infinity for what the teacher left out.

    >>> order_scores(pd.DataFrame({"rank": [1, 2]}), profile.test, "first_stage").tolist()
    [-1.0, -2.0]
    """
    if order == "first_stage":
        return -candidates["rank"].to_numpy(dtype="float64")
    if order in _OF_ENCODERS:
        each = [_similarity(candidates, config, name) for name in config.teacher_encoder.split("+")]
        if order == "fused":
            each.append(candidates["score"].to_numpy())
        return each[0] if len(each) == 1 else encoders.fuse(candidates, *each)
    ranks = _ranks(config, order)
    keys = pd.MultiIndex.from_frame(candidates[["query_id", "doc_id"]])
    each = [
        frame.set_index(["query_id", "doc_id"])[frame.columns[2]].reindex(keys) for frame in ranks
    ]
    return -pd.concat(each, axis=1).mean(axis=1).fillna(np.inf).to_numpy()


def tokens(texts: pd.DataFrame, encoder: str) -> tuple[pd.Index, TokenStore]:
    """Ids and tokens of a frame of ids and texts, from the store.

    >>> ids, store = tokens(pd.DataFrame({"query_id": ["q"], "query": ["fox"]}), profile.encoder)
    >>> ids.tolist(), len(store)
    (['q'], 1)
    """

    return _ids(texts), _token_store(texts.iloc[:, 1], len(texts), fingerprint(texts), encoder)


def passage_tokens(collection: Collection, encoder: str) -> tuple[pd.Index, TokenStore]:
    """Ids and tokens of a collection's passages, from the store; texts pass through memory in parts.

    >>> ids, store = passage_tokens(load("rdl/pydocs/test"), profile.encoder)
    >>> len(ids) == len(store)
    True
    """
    texts = (text for part in collection.passage_chunks() for text in part["text"])
    ids = collection.doc_ids
    return ids, _token_store(texts, len(ids), collection.passages_fingerprint, encoder)


def data_of(encoder: str | None, *fingerprints: str) -> str:
    """One fingerprint of texts, judgments and, where they lie on disk, of encoders.

    >>> data_of(None, "texts", "judgments")
    'texts-judgments'
    """
    return "-".join([*fingerprints, *(_hashes(encoder) if encoder else ())])


def _hashes(encoder: str) -> list[str]:
    """Of encoders' weights, and of the settings that name their prompts, as far as they are files."""
    folders = [Path(encoder_path(name)) for name in encoder.split("+")]
    files = [folder / name for folder in folders for name in _OF_ENCODER]
    return [content_hash(file)[:16] for file in files if file.exists()]


@dataclass(frozen=True, kw_only=True)
class _CandidatesConfig:
    collection: str
    first_stage: str
    depth: int
    skip_queries: int
    n_queries: int | None
    encoder: str | None


@dataclass(frozen=True, kw_only=True)
class _TextConfig:
    """Texts as tokens or vectors; splits that share passages share the run."""

    encoder: str
    max_tokens: int


def _token_store(texts: Iterable[str], total: int, of_texts: str, encoder: str) -> TokenStore:
    def tokenise(folder: Path) -> None:
        tokenizer = AutoTokenizer.from_pretrained(encoder_path(encoder), trust_remote_code=False)
        TokenStore.build(texts, tokenizer, folder, max_tokens=_STORED_TOKENS, total=total)

    run = obtain(
        "tokens", _TextConfig(encoder=encoder, max_tokens=_STORED_TOKENS),
        data=data_of(encoder, of_texts), code=("rdl_core.tokens",), compute=tokenise,
    )
    return TokenStore.open(run.folder)


def _has_published_teacher(config: ListsConfig) -> bool:
    return config.collection == rank_distillm.COLLECTION and config.teacher in rank_distillm.TEACHERS


def candidates_of(config: ListsConfig) -> pd.DataFrame:
    """The chosen queries' candidates: from a file, published with the collection, or retrieved.

    Args:
        config: Of one first stage.

    Returns:
        ``query_id``, ``doc_id``, ``rank``, ``score``, no less deep than `config` asks.

    Raises:
        ValueError: As for `lists`.

    >>> bool(candidates_of(profile.test)["rank"].max() >= profile.test.depth)
    True
    """
    year, published = trec_dl.year_of(config.collection), None
    if Path(config.first_stage).is_file():
        published = read_candidates(config.first_stage)[["query_id", "doc_id", "rank", "score"]]
    elif year is not None and config.first_stage in trec_dl.FIRST_STAGES:
        published = trec_dl.candidates(year, config.first_stage)
    elif config.collection == rank_distillm.COLLECTION:
        every = config.n_queries is None and not (config.skip_queries or _has_published_teacher(config))
        chosen = None if every else chosen_queries(config)
        return rank_distillm.candidates(config.first_stage, config.depth, chosen)
    elif config.first_stage == "colbert":
        published = rank_distillm.lists_of_tests(config.collection)
    if published is not None:
        return published[published["query_id"].isin(chosen_queries(config))]
    if config.first_stage not in _COMPUTED:
        raise ValueError(
            f"first_stage: expected one of {', '.join(_COMPUTED)} for collection "
            f"{config.collection!r}, of which no lists are published; got {config.first_stage!r}"
        )
    collection = load(config.collection)

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
        skip_queries=config.skip_queries, n_queries=config.n_queries, encoder=encoder,
    )
    run = obtain(
        "candidates", wanted,
        data=data_of(encoder, fingerprint(collection.queries), collection.passages_fingerprint),
        code=("rdl_core.data.retrieval",), compute=retrieve,
    )
    return pd.read_parquet(run.folder / "candidates.parquet")


def _ranks(config: ListsConfig, order: str) -> list[pd.DataFrame]:
    """Ranks that somebody stated, as often as was asked: two ids and a rank in each row."""
    if order.endswith(".yaml"):
        return [taught(candidates_of(config), config.collection, Path(order))]
    if Path(order).is_file():
        frame = read_candidates(order)
        stated = "teacher_rank" if "teacher_rank" in frame else "rank"
        return [frame[["query_id", "doc_id", stated]]]
    if _has_published_teacher(config):
        return [rank_distillm.teacher_run(order, config.first_stage)]
    if (year := trec_dl.year_of(config.collection)) is None:
        raise ValueError(
            f"teacher: expected an order that can be computed for collection {config.collection!r}, "
            f"of which no LLM's lists are published; got {order!r}"
        )
    if order == "splade":
        return [trec_dl.candidates(year, order)]
    runs = trec_dl.teacher_runs(year, config.first_stage, order.removesuffix(_AVERAGED))
    return runs if order.endswith(_AVERAGED) else runs[:1]


def _append_missing(frame: pd.DataFrame, qrels: pd.DataFrame) -> pd.DataFrame:
    """Relevant passages that the first stage missed, behind the candidates of their queries."""
    relevant = qrels[(qrels["relevance"] > 0) & qrels["query_id"].isin(frame["query_id"])]
    found = pd.MultiIndex.from_frame(frame[["query_id", "doc_id"]])
    missing = relevant[~pd.MultiIndex.from_frame(relevant[["query_id", "doc_id"]]).isin(found)]
    last = missing["query_id"].map(frame.groupby("query_id")["rank"].max())
    place = missing.groupby("query_id").cumcount() + 1
    return pd.concat([frame, missing.assign(rank=last + place)], ignore_index=True)


def _similarity(candidates: pd.DataFrame, config: ListsConfig, encoder: str) -> np.ndarray:
    collection = load(config.collection)
    asked = collection.queries["query_id"].isin(candidates["query_id"])
    query_ids, query_vectors = _vectors(collection.queries[asked], encoder)
    whole = len(collection.doc_ids) <= _WHOLE
    passages = collection.passages if whole else collection.passages_of(candidates["doc_id"])
    doc_ids, passage_vectors = _vectors(passages, encoder)
    return encoders.similarity(candidates, query_ids, query_vectors, doc_ids, passage_vectors)


def _vectors(texts: pd.DataFrame, encoder: str) -> tuple[pd.Index, np.ndarray]:
    """Ids and vectors of a frame of ids and texts."""

    def encode(folder: Path) -> None:
        words, queries = texts.iloc[:, 1].tolist(), "query" in texts
        vectors = retrieval.encode(words, encoder, max_tokens=_VECTOR_TOKENS, queries=queries)
        np.save(folder / "vectors.npy", vectors)

    run = obtain(
        "vectors", _TextConfig(encoder=encoder, max_tokens=_VECTOR_TOKENS),
        data=data_of(encoder, fingerprint(texts)), code=("rdl_core.data.retrieval",), compute=encode,
    )
    return _ids(texts), np.load(run.folder / "vectors.npy", allow_pickle=False)


def _ids(texts: pd.DataFrame) -> pd.Index:
    return pd.Index(texts.iloc[:, 0].to_numpy(object))
