"""An LLM that a study asks itself: its lists of a first stage's candidates are runs of the store.

A profile names a YAML file where a teacher stands; the file says who answers and how, as
`LLMTeacher` has it. The queries are shared out in shards. Each is a run, which another machine may
work on, and one more run holds all lists. An answer is kept as it comes, and no window is asked
again that any run of the store has the same LLM's answer to, whatever code, libraries or shards
asked for it.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path

import pandas as pd

from rdl_core.data.collections import fingerprint, load
from rdl_core.data.formats import read_candidates, write_run
from rdl_core.records import read_record
from rdl_core.settings import read_settings
from rdl_study.store import Run, obtain, runs_folder
from rdl_core.teachers.endpoint import EndpointConfig
from rdl_core.teachers.folder import ANSWERS
from rdl_core.teachers.merge import merge
from rdl_core.teachers.replay import AnswerLog
from rdl_core.teachers.teach import Asking, LocalConfig, ReplayConfig, TeachConfig, teach

__all__ = ["LLMTeacher", "shard", "taught"]

_LISTS, _ASKED = "lists", "candidates.run"


@dataclass(frozen=True, kw_only=True)
class LLMTeacher(Asking):
    """Who orders candidates, and how; one of ``endpoint``, ``local_llm``, ``replay`` is given.

    >>> LLMTeacher(local_llm=LocalConfig(model="tiny")).shards
    1
    """

    endpoint: EndpointConfig | None = None
    """An LLM behind an endpoint like OpenAI's."""
    local_llm: LocalConfig | None = None
    """An LLM that runs where the job runs."""
    replay: ReplayConfig | None = None
    """Answers that others recorded."""
    depth: int = 100
    """Candidates of each query that it orders, the first stage's best."""
    shards: int = 1
    """Parts of the queries, each a job; fewer where there are fewer queries."""

    __pydantic_config__ = {"extra": "forbid"}

    def __post_init__(self) -> None:
        given = [who for who in (self.endpoint, self.local_llm, self.replay) if who]
        if len(given) != 1:
            raise ValueError(
                f"expected one of endpoint, local_llm, replay; given {len(given)} of them: say who "
                "answers"
            )
        if self.shards < 1:
            raise ValueError(f"shards: expected at least 1, got {self.shards}")
        if self.depth < 1:
            raise ValueError(f"depth: expected at least 1, got {self.depth}")
        super().__post_init__()

    @property
    def backend(self) -> EndpointConfig | LocalConfig | ReplayConfig:
        """The one that is given."""
        return self.endpoint or self.local_llm or self.replay

    def asking(self, candidates: str, collection: str, part: tuple[int, int]) -> TeachConfig:
        """What `rdl_core.teachers.teach.teach` takes for a part of some candidates."""
        return TeachConfig(
            candidates=candidates, collection=collection, backend=self.backend, depth=self.depth,
            shard=part, **self.how,
        )  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class _TaughtConfig:
    """What decides an LLM's lists; where it answers and how fast does not."""

    teacher: str
    collection: str
    depth: int
    how: dict[str, str | int]
    part: tuple[int, int]


def taught(candidates: pd.DataFrame, collection: str, teacher: Path) -> pd.DataFrame:
    """An LLM's order of candidates; all shards are worked on here that nobody has finished.

    Args:
        candidates: ``query_id``, ``doc_id``, ``rank``, of all queries that it is to rank.
        collection: Has their texts.
        teacher: The YAML file.

    Returns:
        ``query_id``, ``doc_id``, ``teacher_rank``.

    Raises:
        ValueError: As for `shard`.

    >>> _ = (folder / "llm.yaml").write_text("shards: 2")
    >>> taught(frame, "rdl/pydocs/test", folder / "llm.yaml")
    Traceback (most recent call last):
    ValueError: .../llm.yaml does not fit:
      expected one of endpoint, local_llm, replay; given 0 of them: say who answers
    """
    settings, n_queries = read_settings(LLMTeacher, teacher), candidates["query_id"].nunique()
    of = min(settings.shards, n_queries)
    parts = [shard(candidates, collection, teacher, number) for number in range(1, of + 1)]

    def put_together(folder: Path) -> dict:
        report = merge([part.folder / _LISTS for part in parts], folder / _LISTS)
        return {"totals": report["totals"]}

    config, data = _identity(candidates, collection, settings, (1, 1))
    whole = obtain(
        "taught", config, data=data, code=("rdl_core.teachers.merge",),
        inputs=[part.manifest["id"] for part in parts], compute=put_together,
    )  # fmt: skip
    lists = read_candidates(whole.folder / _LISTS / "teacher.run")
    return lists[["query_id", "doc_id", "rank"]].rename(columns={"rank": "teacher_rank"})


def shard(candidates: pd.DataFrame, collection: str, teacher: Path, number: int) -> Run:
    """The lists of a part of the queries, ``lists/`` in its folder as `rdl teach` writes it.

    Args:
        candidates: As for `taught`: of all queries, not of these alone.
        collection: Likewise.
        teacher: Likewise.
        number: Of the shard, from 1.

    Raises:
        ValueError: A setting does not fit, or as for `rdl_core.teachers.teach.teach`.
        EndpointError: The endpoint does not answer; what it answered is kept.

    >>> _ = (folder / "llm.yaml").write_text("{local_llm: {model: tiny}, shards: 0}")
    >>> shard(frame, "rdl/pydocs/test", folder / "llm.yaml", 1)
    Traceback (most recent call last):
    ValueError: .../llm.yaml does not fit:
      shards: expected at least 1, got 0
    """
    settings = read_settings(LLMTeacher, teacher)
    part = (number, min(settings.shards, candidates["query_id"].nunique()))
    config, data = _identity(candidates, collection, settings, part)

    def ask(folder: Path) -> dict:
        write_run(candidates, folder / _ASKED)
        (folder / _LISTS).mkdir(exist_ok=True)
        log = AnswerLog(folder / _LISTS / ANSWERS, teacher=settings.backend.name)
        for other in _earlier_answers(config):
            log.take(other)
        asked = settings.asking(str(folder / _ASKED), collection, part)
        return {"totals": teach(asked, folder / _LISTS)["totals"]}

    return obtain("teach", config, data=data, code=("rdl_core.teachers.teach",), compute=ask)


def _identity(
    candidates: pd.DataFrame, collection: str, settings: LLMTeacher, part: tuple[int, int]
) -> tuple[_TaughtConfig, str]:
    config = _TaughtConfig(
        teacher=settings.backend.name, collection=f"{collection} {load(collection).fingerprint}",
        depth=settings.depth, how=settings.how, part=part,
    )  # fmt: skip
    return config, fingerprint(candidates[["query_id", "doc_id", "rank"]])


def _earlier_answers(config: _TaughtConfig) -> list[Path]:
    """Logs of the same LLM on the same texts: it is asked nothing twice."""
    wanted = {key: asdict(config)[key] for key in ("teacher", "collection")}
    records = sorted(runs_folder().glob("teach-*/config.json"))
    logs = [
        record.parent / _LISTS / ANSWERS
        for record in records
        if wanted.items() <= read_record(record)["config"].items()
    ]
    return [log for log in logs if log.exists()]
