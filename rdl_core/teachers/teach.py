"""`rdl teach`: candidates in, a teacher's ranked lists out, in a folder.

What is in it, :mod:`rdl_core.teachers.folder` tells. Many machines share the work by shards of the
queries, each with a folder of its own; :mod:`rdl_core.teachers.merge` makes them one.

>>> backend = EndpointConfig(base_url="http://127.0.0.1:8000/v1", model="tiny")
>>> TeachConfig(candidates="bm25.run", backend=backend, schedule="tournament").how["top_k"]
10
"""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib import metadata
from itertools import repeat
from pathlib import Path
from types import SimpleNamespace

import pandas as pd

from rdl_core.corpus import read_corpus
from rdl_core.data.collections import fingerprint
from rdl_core.data.formats import write_run
from rdl_core.progress import progress
from rdl_core.teachers.endpoint import EndpointConfig
from rdl_core.teachers.folder import ANSWERS, alone, claim, write_folder
from rdl_core.teachers.listwise import plan_windows, rank_lists
from rdl_core.teachers.local_llm import MODES, LocalLLM
from rdl_core.teachers.answers import Answer, Window, identifiers, listwise_prompt
from rdl_core.teachers.replay import AnswerLog, Replay, read_history

__all__ = ["Asking", "Estimate", "LocalConfig", "ReplayConfig", "TeachConfig", "estimate", "teach"]

_SHOWN, _WRITTEN = 4, 2  # characters of prompts and of rankings that are taken for a token
_VERSIONS = ("rdl-core", "openai", "torch", "transformers")
_log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class LocalConfig:
    """A model of transformers that runs here; as in `rdl_core.teachers.local_llm.LocalLLM`.

    >>> LocalConfig(model="tiny", mode="constrained").name
    'tiny, constrained, max_words=300'
    """

    model: str
    """A folder or hub id."""
    mode: str = "free"
    """How an order is got, one of `rdl_core.teachers.local_llm.MODES`."""
    max_words: int = 300
    """Words of a passage that are shown, if they fit."""
    max_new_tokens: int | None = None
    """Longest answer of mode ``free``; None: a ranking and a short preamble."""
    batch_size: int = 8
    """Windows at once."""
    precision: str = "auto"
    """As in `rdl_core.devices.resolve_precision`."""

    __pydantic_config__ = {"extra": "forbid"}

    def __post_init__(self) -> None:
        if self.mode not in MODES:
            raise ValueError(f"expected a mode among {MODES}, got {self.mode!r}: name one")

    @property
    def name(self) -> str:
        """Model and settings that change answers."""
        longest = f", max_new_tokens={self.max_new_tokens}" if self.mode == "free" else ""
        return f"{self.model}, {self.mode}, max_words={self.max_words}{longest}"

    def open(self) -> LocalLLM:
        """The backend, with the model loaded."""
        try:
            return LocalLLM.load(
                self.model, precision=self.precision, mode=self.mode, batch_size=self.batch_size,
                max_words=self.max_words, max_new_tokens=self.max_new_tokens,
            )  # fmt: skip
        except OSError as error:
            raise ValueError(
                f"{self.model}: expected a folder or hub id of a model that transformers loads; "
                f"given one that it does not ({str(error).splitlines()[0]}): check the name"
            ) from None


@dataclass(frozen=True, kw_only=True)
class ReplayConfig:
    """Answers that others recorded.

    >>> _ = (folder / "h").write_text('{"prompt": "[1] x, search query: y", "response": ""}')
    >>> ReplayConfig(file=str(folder / "h")).open().n_unused
    1
    """

    file: str
    """An invocation history, as `rdl_core.teachers.replay.read_history` takes it."""

    __pydantic_config__ = {"extra": "forbid"}

    @property
    def name(self) -> str:
        """The file by what is in it."""
        return f"recorded {hashlib.sha256(Path(self.file).read_bytes()).hexdigest()[:16]}"

    def open(self) -> Replay:
        """The backend, with the file read."""
        return Replay(read_history(self.file))


@dataclass(frozen=True, kw_only=True)
class Asking:
    """How a list becomes windows, and how often a window is asked.

    >>> Asking(window_size=4, stride=2).how["stride"]
    2
    """

    schedule: str = "sliding"
    """A key of `rdl_core.teachers.listwise.SCHEDULES`."""
    window_size: int = 20
    """Passages in a prompt."""
    stride: int = 10
    """Places that the next window of ``sliding`` lies further ahead."""
    top_k: int = 10
    """Passages that win through in ``tournament``."""
    passes: int = 1
    """Passes over each list."""
    max_retries: int = 1
    """How often a window is asked again whose answer is unusable."""

    def __post_init__(self) -> None:
        plan_windows(0, **{k: v for k, v in self.how.items() if k not in ("passes", "max_retries")})

    @property
    def how(self) -> dict[str, str | int]:
        """Named arguments of `rank_lists`."""
        names = ("schedule", "window_size", "stride", "top_k", "passes", "max_retries")
        return {name: getattr(self, name) for name in names}


@dataclass(frozen=True, kw_only=True)
class TeachConfig(Asking):
    """What is ranked, by whom and how; the module's example makes one."""

    candidates: str
    """File of candidates, in any format of `rdl_core.data.formats.FORMATS`."""
    format: str | None = None
    """Its name there; None: the file tells."""
    collection: str | None = None
    """BEIR folder or ir_datasets id that has the texts; None: they are in the file."""
    depth: int | None = None
    """Passages of each query that are ranked, the first stage's best; None: all."""
    backend: EndpointConfig | LocalConfig | ReplayConfig
    """Who answers."""
    shard: tuple[int, int] = (1, 1)
    """Part of the queries, from 1, and number of parts: (2, 8) has every eighth from the 2nd."""

    def __post_init__(self) -> None:
        number, of = self.shard
        if not 1 <= number <= of:
            raise ValueError(
                f"expected a shard in 1/N..N/N, got {number}/{of}: the second of eight is 2/8"
            )
        if self.depth is not None and self.depth < 1:
            raise ValueError(f"expected depth >= 1, got {self.depth}: leave it out to rank all")
        super().__post_init__()


@dataclass(frozen=True, kw_only=True)
class Estimate:
    """What is to be asked, before anything is.

    >>> print(Estimate(n_queries=43, n_windows=387, n_answered=0, input_tokens=9, output_tokens=3))
    43 queries, 387 windows, 0 answered before; left: about 9 tokens of prompts, 3 of answers
    """

    n_queries: int
    n_windows: int
    """If none has to be asked for again."""
    n_answered: int
    """Windows that the folder's log has answers for."""
    input_tokens: int
    """Of prompts not answered yet, a token for every 4 characters."""
    output_tokens: int
    """Of answers without thoughts, a token for every 2 characters."""
    usd: float | None = None
    """What these cost; None without prices."""

    def __str__(self) -> str:
        cost = "" if self.usd is None else f", {self.usd:.2f} dollars"
        return (
            f"{self.n_queries} queries, {self.n_windows} windows, {self.n_answered} answered "
            f"before; left: about {self.input_tokens} tokens of prompts, {self.output_tokens} of "
            f"answers{cost}"
        )


def estimate(config: TeachConfig, folder: str | Path) -> Estimate:
    """Count windows, and estimate tokens and cost, without asking anything.

    Args:
        config: As for :func:`teach`.
        folder: Its log's answers are taken off, if there are any; nothing is written.

    >>> rows = {"query_id": "7", "query": "fox", "doc_id": ["a", "b"], "text": ["a dog", "a fox"]}
    >>> pd.DataFrame(rows).to_json(folder / "two.jsonl", orient="records", lines=True)
    >>> backend = EndpointConfig(base_url="http://127.0.0.1:8000/v1", model="tiny")
    >>> config = TeachConfig(candidates=str(folder / "two.jsonl"), backend=backend)
    >>> estimate(config, "new").n_windows
    1
    """
    folder = Path(folder)
    lists, _ = _read(config)
    if not (folder / ANSWERS).exists():
        return _estimate(config, lists, None)
    with alone(folder):
        return _estimate(config, lists, _log_of(config, folder))


def teach(config: TeachConfig, folder: str | Path) -> dict:
    """Have a teacher rank candidates, or go on with it.

    Args:
        config: What is ranked, by whom and how.
        folder: New, empty, or begun with what gives the same lists. What does not change these may
            change: the endpoint's address and limits, batch size, prices.

    Returns:
        What ``report.json`` holds.

    Raises:
        ValueError: As for `read_corpus` and `rank_lists`; the folder was begun with something else;
            another process is at work in it; or there are fewer queries than shards.
        EndpointError: The endpoint does not answer. What it answered is in the log.

    >>> rows = {"query_id": "7", "query": "y", "doc_id": ["a", "b"], "text": ["a dog", "a fox"]}
    >>> pd.DataFrame(rows).to_json(folder / "two.jsonl", orient="records", lines=True)
    >>> prompt = r'{"prompt": "[1] a dog\\n[2] a fox\\nSearch query: y", "response": "[2] > [1]"}'
    >>> _, backend = (folder / "h").write_text(prompt), ReplayConfig(file=str(folder / "h"))
    >>> teach(TeachConfig(candidates=str(folder / "two.jsonl"), backend=backend), folder / "out")[
    ...     "totals"]["n_clean"]
    1
    """
    folder = Path(folder)
    lists, identity = _read(config)
    folder.mkdir(parents=True, exist_ok=True)
    with alone(folder):
        claim(folder, identity)
        write_run(lists[["query_id", "doc_id", "rank"]], folder / "candidates.run")
        if isinstance(config.backend, ReplayConfig):  # all is there to be asked again
            (folder / ANSWERS).unlink(missing_ok=True)
        log = _log_of(config, folder)
        expected = _estimate(config, lists, log)
        _log.info("%s: %s", folder, expected)
        done, total = expected.n_answered, expected.n_windows
        steps = progress(repeat(None), total=total, what="windows", done=done)
        ranked, table = rank_lists(
            lists, config.backend.open(), answers=log, on_answer=lambda *_: next(steps),
            **config.how,
        )  # fmt: skip
        steps.close()
        rows = json.loads(table.to_json(orient="records"))
        tokens = [table[name].sum(skipna=False) for name in ("input_tokens", "output_tokens")]
        usd = _usd(config, *tokens) if pd.notna(tokens).all() else None
        made = {
            "finished": datetime.now(UTC).isoformat(timespec="seconds"),
            "server": getattr(config.backend, "base_url", None),
            "versions": {name: metadata.version(name) for name in _VERSIONS},
        }
        return write_folder(folder, ranked, identity, rows, usd=usd, made=made)


class _Counter:
    """Answers each window in the order shown, and counts what a model would be asked."""

    can_retry = True  # where the log's answer is unusable, the next one is looked up, too

    def __init__(self, max_words: int, *, writes: bool) -> None:
        self.max_words, self.writes = max_words, writes
        self.n_windows = self.prompts = self.rankings = 0

    def ask(self, windows: Sequence[Window]) -> Iterator[tuple[int, Answer]]:
        for number, window in enumerate(windows):
            shown = listwise_prompt(window.query, window.passages, max_words=self.max_words)
            ranking = " > ".join(identifiers(len(window.passages)))
            self.n_windows += 1
            self.prompts += -(-len(shown) // _SHOWN)
            self.rankings += -(-len(ranking) // _WRITTEN) * self.writes
            yield number, Answer(order=tuple(range(len(window.passages))))


def _estimate(config: TeachConfig, lists: pd.DataFrame, log: AnswerLog | None) -> Estimate:
    mode = getattr(config.backend, "mode", "free")
    counter = _Counter(getattr(config.backend, "max_words", 300), writes=mode != "first_token")
    stored = None if log is None else SimpleNamespace(get=log.get, add=lambda *_: None)
    _, table = rank_lists(lists, counter, answers=stored, **config.how)
    n_windows = int(table["n_windows"].sum())
    return Estimate(
        n_queries=len(table), n_windows=n_windows, n_answered=n_windows - counter.n_windows,
        input_tokens=counter.prompts, output_tokens=counter.rankings,
        usd=_usd(config, counter.prompts, counter.rankings),
    )  # fmt: skip


def _usd(config: TeachConfig, input_tokens: int, output_tokens: int) -> float | None:
    paid = isinstance(config.backend, EndpointConfig)
    return config.backend.usd(int(input_tokens), int(output_tokens)) if paid else None


def _read(config: TeachConfig) -> tuple[pd.DataFrame, dict]:
    """The shard's candidates with texts, and what decides the lists."""
    corpus = read_corpus(config.candidates, format=config.format, collection=config.collection)
    number, of = config.shard
    frame = corpus.candidates[["query_id", "doc_id", "rank"]]
    frame = frame[frame["rank"] <= (config.depth or len(frame))]
    every = frame["query_id"].unique()
    if of > len(every):
        raise ValueError(
            f"{config.candidates}: expected a query for each of {of} shards; given {len(every)}: "
            "use fewer shards"
        )
    identity = {
        "teacher": config.backend.name, "candidates": fingerprint(frame), "depth": config.depth,
        "n_queries": len(every), **config.how, "shard": [number, of],
    }  # fmt: skip
    frame = frame[frame["query_id"].isin(every[number - 1 :: of])].reset_index(drop=True)
    for name, key, texts in (
        ("query", "query_id", corpus.queries), ("text", "doc_id", corpus.passages)
    ):  # fmt: skip
        found = frame[key].unique()
        frame[name] = frame[key].map(dict(zip(found, texts.of(found), strict=True))).astype("str")
    return frame, identity


def _log_of(config: TeachConfig, folder: Path) -> AnswerLog:
    return AnswerLog(folder / ANSWERS, teacher=config.backend.name)
