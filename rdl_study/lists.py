"""Candidates of a study, and who ordered them: published, or computed as runs of the store."""

from __future__ import annotations

import hashlib
import logging
import zlib
from collections.abc import Callable, Iterable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd

from rdl_core import config as c
from rdl_core.data import published, retrieval
from rdl_core.data.collections import fingerprint, load
from rdl_core.data.downloads import EMBEDDED_ENCODER, embedded_path
from rdl_core.data.formats import read_candidates, write_run
from rdl_core.files import content_hash, read_json, read_settings
from rdl_core.teachers import encoders
from rdl_core.teachers.replay import AnswerLog
from rdl_core.tokens import TokenCorpus, TokenStore
from rdl_study.store import Run, obtain, project_folder, runs_folder
from rdl_tools.config import TeachConfig
from rdl_tools.teach import ANSWERS, teach

__all__ = ["CODE", "FIRST_STAGES", "LLMS", "TEACHERS", "LLMTeacher", "ListsConfig", "ask_shard",
           "candidates_of", "chosen_queries", "corpus", "encoder_hashes", "lists", "llm_of",
           "llm_settings", "order_scores", "text_sums"]  # fmt: skip
_COMPUTED = ("bm25", "bi_encoder", "random")
#: First stages: those that are computed here, and those of which there are published lists.
FIRST_STAGES = tuple(dict.fromkeys((*_COMPUTED, *published.FIRST_STAGES)))
_ENCODERS, _MEAN, _FUSED = ("bi_encoder", "fused"), "_mean", "_fused"
#: LLMs that rank the embedded collection: ``teachers/<name>.yaml`` asks them, ``results/<name>/`` has
#: what they answered.
LLMS = ("smollm2",)
_FIRST_STAGE_WEIGHT = 0.25  # in an LLM's fused order, where LLM and bi-encoder have 1; from dev
#: Orders to learn from and to rank with. ``_mean`` behind an LLM's name: the mean of its ranks over all
#: the times that it ranked a list; ``_fused``: its scores with the bi-encoder's and the first stage's.
TEACHERS = (*_ENCODERS, *LLMS, *(name + _FUSED for name in LLMS), "first_stage", "judgments",
            "splade", *published.TEACHERS, *(name + _MEAN for name in published.TEACHERS))  # fmt: skip
#: Modules that decide what `lists` gives, for the ids of the runs that use it.
CODE = ("rdl_core.lists", "rdl_core.data.published", "rdl_core.data.retrieval",
        "rdl_core.teachers.encoders")  # fmt: skip
_CANDIDATES = 100  # computed once, cut to any depth up to it
_DEEPEST = {"colbert": 500}  # of lists that are published only
_SMALL = 100_000  # in a larger collection, the candidates alone become vectors
_STORED_TOKENS, _VECTOR_TOKENS = 512, 128
_IDS = ["query_id", "doc_id"]
_log = logging.getLogger(__name__)


@c.config
class ListsConfig:
    """Candidates of some queries, and who ordered them."""

    collection: str
    """ir_datasets id, or a folder."""
    first_stage: str
    """A member of `FIRST_STAGES`, or a file of candidates; ``+`` between several: a list from each."""
    depth: c.Positive
    """Candidates per list, cut from the first stage's top 100 (ColBERTv2: 500)."""
    skip_queries: c.Count = 0
    """Leave out the queries that ``n_queries`` of this many would take."""
    n_queries: c.Positive | None = None
    """This many queries, chosen by the hash of their ids; None takes all."""
    teacher: str = "judgments"
    """A member of `TEACHERS`, a file in the teacher's order, or a YAML file as `LLMTeacher`."""
    teacher_encoder: str = EMBEDDED_ENCODER
    """Bi-encoder of the dense first stage and of encoder teachers; these add up several (``+``)."""
    add_relevant: bool = False
    """Append the relevant passages that the first stage missed; with teacher judgments only."""
    pseudo_labels: bool = False
    """Relevance from the teacher instead of people: 3 for its first, 1 down to its fifth, then 0."""

    def __post_init__(self) -> None:
        named = [("first_stage", name, FIRST_STAGES) for name in self.first_stages]
        for field, value, valid in (*named, ("teacher", self.teacher, TEACHERS)):
            if value not in valid and not Path(value).is_file():
                names = ", ".join(valid)
                raise ValueError(f"{field}: expected one of {names}, or a file; got {value!r}")
        if "bi_encoder" in self.first_stages and "+" in self.teacher_encoder:
            raise ValueError(
                "teacher_encoder: expected one bi-encoder behind the first stage 'bi_encoder', got "
                f"{self.teacher_encoder!r}: choose one of them, or another first stage"
            )
        deepest = min(_DEEPEST.get(name, _CANDIDATES) for name in self.first_stages)
        if self.depth > deepest:
            raise ValueError(f"depth: expected 1 to {deepest}, got {self.depth}")
        if self.pseudo_labels and self.teacher == "judgments":
            raise ValueError("pseudo_labels: expected a teacher that ranks, got 'judgments'")
        if self.add_relevant and self.teacher != "judgments":
            raise ValueError(f"add_relevant: expected teacher 'judgments', got {self.teacher!r}")

    @property
    def first_stages(self) -> list[str]:
        """The first stages one by one."""
        return self.first_stage.split("+")

    @property
    def files(self) -> list[Path]:
        """Files behind the lists and their order, if there are any."""
        files = [path for path in map(Path, (*self.first_stages, self.teacher)) if path.is_file()]
        if llm := llm_of(self.teacher):
            files += filter(Path.is_file, _files_of(llm, self.collection))
        return files

    @property
    def fingerprint(self) -> str:
        """Hashes of the collection, and of the files and weights behind the lists and their order."""
        hashes = [load(self.collection).fingerprint, *(content_hash(x)[:16] for x in self.files)]
        if self.teacher in _ENCODERS or self.teacher.endswith(_FUSED):
            hashes += encoder_hashes(self.teacher_encoder)
        for name in self.first_stages:
            hashes += published.file_hashes(self.collection, name, self.teacher)
        return "-".join(hashes)

    def each(self) -> list[ListsConfig]:
        """The same with one first stage each."""
        return [replace(self, first_stage=name) for name in self.first_stages]


def lists(wanted: ListsConfig) -> pd.DataFrame:
    """Candidates of one first stage: ``query_id``, ``doc_id``, ``rank``, ``score``, and their order.

    That is ``teacher_rank`` (0: left out), and of encoders and `LLMS` ``teacher_score``, standardised
    within each list; or, with teacher judgments, ``relevance`` (missing where nobody judged).
    """
    frame = candidates_of(wanted)
    frame = frame[frame["rank"] <= wanted.depth].reset_index(drop=True)
    if wanted.teacher == "judgments":
        qrels = load(wanted.collection).qrels
        frame = frame.merge(qrels, on=_IDS, how="left")
        return _append_missing(frame, qrels) if wanted.add_relevant else frame
    scores = order_scores(frame, wanted, wanted.teacher)
    ranked = encoders.add_teacher_rank(frame, scores)
    if wanted.pseudo_labels:  # samplers leave out what is neither relevant nor 0
        grades = np.select([ranked["teacher_rank"] == 1, ranked["teacher_rank"] <= 5], [3, 1], 0)
        ranked = ranked.assign(relevance=grades)
    if wanted.teacher in _ENCODERS or llm_of(wanted.teacher):
        return ranked.assign(teacher_score=encoders.fuse(frame, scores))
    return ranked.assign(teacher_rank=ranked["teacher_rank"].where(np.isfinite(scores), 0))


def chosen_queries(wanted: ListsConfig) -> list[str]:
    """Ids in the order of their hashes, of the queries that a published teacher ranked, or of all."""
    by_whom = {"first_stages": wanted.first_stages, "teacher": wanted.teacher}
    if (ids := published.ranked_queries(wanted.collection, **by_whom)) is None:
        ids = load(wanted.collection).queries["query_id"]
    by_hash = sorted(ids, key=lambda query_id: hashlib.sha256(query_id.encode()).digest())
    return by_hash[wanted.skip_queries :][: wanted.n_queries]


def corpus(collection_id: str, encoder: str) -> TokenCorpus:
    """A collection's queries and passages as an encoder's tokens, from the store."""
    collection = load(collection_id)
    queries, doc_ids = collection.queries, collection.doc_ids
    passages = (text for part in collection.passage_chunks() for text in part["text"])
    return TokenCorpus(
        pd.Index(queries["query_id"].to_numpy(object)),
        _tokens(queries["query"], len(queries), fingerprint(queries), encoder),
        doc_ids, _tokens(passages, len(doc_ids), collection.passages_fingerprint, encoder),
    )  # fmt: skip


def candidates_of(wanted: ListsConfig) -> pd.DataFrame:
    """The chosen queries' candidates, at least as deep: from a file, published, or retrieved."""
    name, query_ids, frame = wanted.first_stage, chosen_queries(wanted), None
    if Path(name).is_file():
        frame = read_candidates(name)[[*_IDS, "rank", "score"]]
    elif name != "random":
        frame = published.first_stage(wanted.collection, name, wanted.depth, query_ids)
    if frame is not None:
        return frame[frame["query_id"].isin(query_ids)]
    if name not in _COMPUTED:
        raise ValueError(
            f"first_stage: expected one of {', '.join(_COMPUTED)} for collection "
            f"{wanted.collection!r}, of which no such lists are published; got {name!r}"
        )
    collection = load(wanted.collection)
    encoder = wanted.teacher_encoder if name == "bi_encoder" else None

    def retrieve(folder: Path) -> None:
        queries = collection.queries[collection.queries["query_id"].isin(query_ids)]
        if name == "random":  # of the passages, the ids are enough
            passages = pd.DataFrame({"doc_id": collection.doc_ids})
            frame = retrieval.random_candidates(queries, passages, depth=_CANDIDATES, seed=0)
        elif name == "bm25":
            frame = retrieval.bm25(queries, collection.passages, depth=_CANDIDATES)
        else:
            vectors = [_vectors(texts, encoder) for texts in (queries, collection.passages)]
            frame = retrieval.dense(queries, collection.passages, *vectors, depth=_CANDIDATES)
        frame.to_parquet(folder / "candidates.parquet", index=False)

    texts = (fingerprint(collection.queries), collection.passages_fingerprint)
    identity = {
        "collection": collection.id, "first_stage": name, "depth": _CANDIDATES,
        "skip_queries": wanted.skip_queries, "n_queries": wanted.n_queries, "encoder": encoder,
    }  # fmt: skip
    data, code = "-".join([*texts, *encoder_hashes(encoder)]), ("rdl_core.data.retrieval",)
    run = obtain("candidates", identity, data=data, code=code, compute=retrieve)
    return pd.read_parquet(run.folder / "candidates.parquet")


def encoder_hashes(names: str | None) -> list[str]:
    """Hashes of encoders' weights and of the settings that name their prompts, if they are files."""
    folders = [Path(embedded_path(name)) for name in (names.split("+") if names else ())]
    files = ("model.safetensors", "config_sentence_transformers.json")
    paths = [folder / file for folder in folders for file in files]
    return [content_hash(path)[:16] for path in paths if path.exists()]


def _tokens(texts: Iterable[str], total: int, of_texts: str, encoder: str) -> TokenStore:
    def tokenise(folder: Path) -> None:
        from transformers import AutoTokenizer

        tokenizer = AutoTokenizer.from_pretrained(embedded_path(encoder), trust_remote_code=False)
        TokenStore.build(texts, tokenizer, folder, max_tokens=_STORED_TOKENS, total=total)

    return TokenStore.open(_of_texts("tokens", encoder, _STORED_TOKENS, of_texts, tokenise))


def _vectors(texts: pd.DataFrame, encoder: str) -> np.ndarray:
    """Vectors of a frame of ids and texts, from the store; splits with the same passages share them."""

    def encode(folder: Path) -> None:
        words, queries = texts.iloc[:, 1].tolist(), "query" in texts
        vectors = retrieval.encode(words, encoder, max_tokens=_VECTOR_TOKENS, queries=queries)
        np.save(folder / "vectors.npy", vectors)

    folder = _of_texts("vectors", encoder, _VECTOR_TOKENS, fingerprint(texts), encode)
    return np.load(folder / "vectors.npy", allow_pickle=False)


def _of_texts(kind: str, encoder: str, max_tokens: int, of_texts: str, compute: Callable) -> Path:
    code = {"tokens": "rdl_core.tokens", "vectors": "rdl_core.data.retrieval"}[kind]
    data = "-".join([of_texts, *encoder_hashes(encoder)])
    wanted = {"encoder": encoder, "max_tokens": max_tokens}
    return obtain(kind, wanted, data=data, code=(code,), compute=compute).folder


def _append_missing(frame: pd.DataFrame, qrels: pd.DataFrame) -> pd.DataFrame:
    """Relevant passages that the first stage missed, behind the candidates of their queries."""
    relevant = qrels[(qrels["relevance"] > 0) & qrels["query_id"].isin(frame["query_id"])]
    listed = pd.MultiIndex.from_frame(frame[_IDS])
    missing = relevant[~pd.MultiIndex.from_frame(relevant[_IDS]).isin(listed)]
    last = frame.groupby("query_id")["rank"].max()[missing["query_id"]].to_numpy()
    place = missing.groupby("query_id").cumcount() + 1
    return pd.concat([frame, missing.assign(rank=last + place)], ignore_index=True)


def order_scores(candidates: pd.DataFrame, wanted: ListsConfig, order: str) -> np.ndarray:
    """Scores of an order, as `ListsConfig.teacher`: float64 ``[rows]``, minus infinity: left out."""
    if order == "first_stage":
        return -candidates["rank"].to_numpy(dtype="float64")
    if order in _ENCODERS:
        names = wanted.teacher_encoder.split("+")
        scores = [_similarity(candidates, wanted.collection, name) for name in names]
        if order == "fused":
            scores.append(candidates["score"].to_numpy())
        return scores[0] if len(scores) == 1 else encoders.fuse(candidates, *scores)
    if llm := llm_of(order):
        scores = _llm_scores(candidates, wanted.collection, llm)
        if order == llm:
            return scores
        similarity = order_scores(candidates, wanted, "bi_encoder")
        first_stage = encoders.fuse(candidates, candidates["score"].to_numpy())
        return encoders.fuse(candidates, scores, similarity) + _FIRST_STAGE_WEIGHT * first_stage
    keys = pd.MultiIndex.from_frame(candidates[_IDS])
    if order.endswith(".yaml"):
        asked = _asked(candidates_of(wanted), wanted.collection, Path(order))
        return asked.set_index(_IDS)["score"].reindex(keys, fill_value=-np.inf).to_numpy()
    ranks = [x.set_index(_IDS)[x.columns[2]].reindex(keys) for x in _rankings(wanted, order)]
    return -pd.concat(ranks, axis=1).mean(axis=1).fillna(np.inf).to_numpy()


def _rankings(wanted: ListsConfig, order: str) -> list[pd.DataFrame]:
    """A teacher's ranks: two ids and a rank, a frame for each time that it ranked the lists."""
    if Path(order).is_file():
        frame = read_candidates(order)
        return [frame[[*_IDS, "teacher_rank" if "teacher_rank" in frame else "rank"]]]
    collection, name = wanted.collection, order.removesuffix(_MEAN)
    if order == "splade":
        frame = published.first_stage(collection, order, _CANDIDATES, chosen_queries(wanted))
        frames = [] if frame is None else [frame[[*_IDS, "rank"]]]
    else:
        frames = published.teacher_runs(collection, wanted.first_stage, name)
    if not frames:
        raise ValueError(
            f"teacher: expected an order that can be computed for {collection!r}, whose lists no LLM "
            f"ranked that is published; got {order!r}"
        )
    return frames if order.endswith(_MEAN) else frames[:1]


def llm_of(order: str) -> str | None:
    """The LLM of `LLMS` whose scores an order needs."""
    return next((name for name in LLMS if order in (name, name + _FUSED)), None)


def llm_settings(name: str) -> LLMTeacher:
    """How an LLM of `LLMS` is asked."""
    return read_settings(LLMTeacher, _files_of(name, "")[0])


def _files_of(llm: str, collection: str) -> tuple[Path, Path]:
    """How an LLM is asked, and its recorded scores, if there are any."""
    scores = f"results/{llm}/{collection.removeprefix('rdl/pydocs/')}.parquet"
    return project_folder() / f"teachers/{llm}.yaml", project_folder() / scores


def text_sums(collection: str) -> pd.DataFrame:
    """CRC-32 of each text by its id, columns ``query`` and ``passage``: has a recorded one changed?"""

    def sums(texts: pd.DataFrame) -> pd.Series:
        return pd.Series([zlib.crc32(x.encode()) for x in texts.iloc[:, 1]], texts.iloc[:, 0])

    of = load(collection)
    return pd.DataFrame({"query": sums(of.queries), "passage": sums(of.passages)})


def _llm_scores(candidates: pd.DataFrame, collection: str, name: str) -> np.ndarray:
    """An LLM's score of each candidate: recorded for the same two texts, or else asked now."""
    settings, recorded = _files_of(name, collection)
    scores = pd.Series(np.nan, keys := pd.MultiIndex.from_frame(candidates[_IDS]))
    if recorded.is_file():
        known, now = pd.read_parquet(recorded), text_sums(collection)
        then = pd.read_parquet(recorded.with_name("texts.parquet")).set_index("id")
        same = now == then.reindex(now.index)
        of_query, of_passage = (same.index[same[x].fillna(False)] for x in ("query", "passage"))
        known = known[known["qid"].isin(candidates["query_id"])]  # of many thousand, a few perhaps
        known = known[known["qid"].isin(of_query) & known["docno"].isin(of_passage)]
        scores = known.set_index(["qid", "docno"])["score"].reindex(keys)
    if len(left := candidates[scores.isna().to_numpy()]):
        _log.info("%s: asking %s for %d pairs that are not recorded", collection, name, len(left))
        asked = _asked(left, collection, settings)
        scores = scores.fillna(asked.set_index(_IDS)["score"])
    return scores.to_numpy("float64")


def _similarity(candidates: pd.DataFrame, collection_id: str, encoder: str) -> np.ndarray:
    collection = load(collection_id)
    queries = collection.queries[collection.queries["query_id"].isin(candidates["query_id"])]
    small = len(collection.doc_ids) <= _SMALL
    passages = collection.passages if small else collection.passages_of(candidates["doc_id"])
    ids = [pd.Index(texts.iloc[:, 0].to_numpy(object)) for texts in (queries, passages)]
    vectors = [_vectors(texts, encoder) for texts in (queries, passages)]
    return encoders.similarity(candidates, ids[0], vectors[0], ids[1], vectors[1])


@c.config
class LLMTeacher(c.WindowConfig):
    """Who orders candidates, and how: exactly one of endpoint, local_llm and replay is set."""

    endpoint: c.EndpointConfig | None = None  # an LLM behind a server
    local_llm: c.LocalConfig | None = None  # one that runs where the job runs
    replay: c.ReplayConfig | None = None  # answers that others recorded
    depth: c.Positive = 100  # candidates of each query that it orders
    shards: c.Positive = 1  # parts of the queries, each a job; at most as many as there are queries

    def __post_init__(self) -> None:
        c.WindowConfig.__post_init__(self)
        if (n := sum(who is not None for who in (self.endpoint, self.local_llm, self.replay))) != 1:
            raise ValueError(f"expected one of endpoint, local_llm, replay; got {n} of them")

    @property
    def backend(self) -> c.EndpointConfig | c.LocalConfig | c.ReplayConfig:
        """The one that is set."""
        return self.endpoint or self.local_llm or self.replay


def _n_shards(teacher: Path, candidates: pd.DataFrame) -> int:
    """Number of shards that an LLM's YAML file asks for, at most one a query."""
    return min(read_settings(LLMTeacher, teacher).shards, candidates["query_id"].nunique())


def _asked(candidates: pd.DataFrame, collection: str, teacher: Path) -> pd.DataFrame:
    """An LLM's lists; shards that are not finished are asked here."""
    numbers = range(1, _n_shards(teacher, candidates) + 1)
    shards = [ask_shard(candidates, collection, teacher, n) for n in numbers]
    return pd.concat([read_candidates(x.folder / "lists" / "teacher.parquet") for x in shards])


def ask_shard(candidates: pd.DataFrame, collection: str, teacher: Path, number: int) -> Run:
    """An LLM's lists for one shard of the queries, ``lists/`` in the run's folder.

    No window is asked again that any run of the store has the same LLM's answer to. `candidates` are
    those of all queries; `teacher` is the YAML file of an `LLMTeacher`; shards count from 1.
    """
    settings = read_settings(LLMTeacher, teacher)
    who, windows, depth = settings.backend, settings.windows, settings.depth
    identity = {  # not its address, nor its speed
        "teacher": who.name, "collection": f"{collection} {load(collection).fingerprint}",
        "depth": depth, "windows": windows, "shard": f"{number}/{_n_shards(teacher, candidates)}",
    }  # fmt: skip

    def ask(folder: Path) -> dict:
        write_run(candidates[[*_IDS, "rank"]], run := folder / "candidates.run")
        (folder / "lists").mkdir(exist_ok=True)
        log = AnswerLog(folder / "lists" / ANSWERS, teacher=who.name)
        for path in sorted(runs_folder().glob("teach-*/config.json")):
            earlier, answers = read_json(path)["config"], path.parent / "lists" / ANSWERS
            same = all(earlier.get(key) == identity[key] for key in ("teacher", "collection"))
            if same and answers.exists():
                log.take(answers)
        own = {"depth": depth, "shard": identity["shard"], **windows}
        asked = TeachConfig(candidates=str(run), collection=collection, backend=who, **own)
        return {"totals": teach(asked, folder / "lists")["totals"]}

    data, code = fingerprint(candidates[[*_IDS, "rank"]]), ("rdl_tools.teach",)
    return obtain("teach", identity, data=data, code=code, compute=ask)
