"""`rdl distill`: ranked lists and an encoder in, a student out.

The folder of a training holds ``config.json`` from its start, the tokens of its texts, what
`rdl_core.distill` writes, and ``manifest.json`` from its end.
"""

from __future__ import annotations

import json
import logging
from contextlib import nullcontext
from dataclasses import asdict, dataclass, field, replace
from datetime import UTC, datetime
from importlib import metadata
from math import ceil
from pathlib import Path
from typing import Any

import pandas as pd
import torch

from rdl_core.commands.students import model_path, open_student, record_of
from rdl_core.corpus import Corpus, Texts, read_corpus
from rdl_core.cross_encoder import CrossEncoder
from rdl_core.data.collections import fingerprint
from rdl_core.data.downloads import sha256_of
from rdl_core.lists import RankedLists
from rdl_core.tokens import TokenStore
from rdl_core.devices import default_device, device_name, processes, resolve_precision
from rdl_core.distill import distill
from rdl_core.records import read_record, write_record
from rdl_core.settings import checked
from rdl_core.stage import StageConfig
from rdl_study.candidates import data_of
from rdl_core.teachers.folder import alone, holds_something

__all__ = ["DistillConfig", "distill_corpus"]

#: Rank-DistiLLM's second stage (Schlatt et al., ECIR 2025).
_STAGE = {
    "sampler": "top", "loss": "ranknet", "targets": "teacher", "list_size": 100,
    "queries_per_step": 32, "learning_rate": 1e-5, "precision": "auto",
}  # fmt: skip
_PASSES = 3
_WEIGHTS = "model/model.safetensors"
_VERSIONS = ("rdl-core", "torch", "transformers", "tokenizers")
_log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class DistillConfig:
    """What a student is distilled from, and how.

    >>> DistillConfig(lists="teacher.run", encoder="all-MiniLM-L6-v2").seed
    0
    """

    lists: str
    """File of ranked lists. Its order is the teacher's, unless the file has a ``teacher_rank``; so are
    its scores, for ``training`` with ``targets: scores``."""
    format: str | None = None
    """The file's format; None: the file tells."""
    collection: str | None = None
    """BEIR folder or ir_datasets id that has the texts; None: they are in the file."""
    teacher: str | None = None
    """Who ranked the lists, in words, for the model card."""
    encoder: str
    """Where the weights start: an encoder or an earlier student."""
    query_tokens: int | None = None
    """Longest query, in tokens; None: what the earlier student records, else 32."""
    passage_tokens: int | None = None
    """Longest passage, in tokens; None likewise, else 256."""
    training: dict[str, Any] = field(default_factory=dict)
    """Fields of `StageConfig`; those left out are as in Rank-DistiLLM's second stage, with as many
    steps as show every list three times. ``dev_every`` stays 0."""
    seed: int = 0
    """Of the head's first weights, of draws and of dropout."""
    head: str = "own"
    """A member of `rdl_core.cross_encoder.HEADS`; an earlier student's similarity stays one."""


def distill_corpus(config: DistillConfig, folder: str | Path) -> CrossEncoder:
    """Train a student, or go on with it, or give it if it is finished.

    Args:
        config: All that makes the student.
        folder: New, empty, or one that was begun with the same configuration and data.

    Returns:
        The student in evaluation mode; ``model/`` in the folder holds it.

    Raises:
        ValueError: As for `read_corpus`, `open_student` and `distill`; a text is missing; a field
            of ``training`` does not fit; the folder holds something else; or another process, not
            of this launch, works in it.

    >>> lists = [{"query_id": "7", "doc_id": d, "query": "fox", "text": d} for d in ("fox", "tea")]
    >>> pd.DataFrame(lists).to_json(folder / "lists.jsonl", orient="records", lines=True)
    >>> config = DistillConfig(lists=str(folder / "lists.jsonl"), encoder=profile.encoder,
    ...                        query_tokens=8, passage_tokens=8, training={"list_size": 2})
    >>> distill_corpus(config, folder / "fox").query_tokens
    8
    """
    folder = Path(folder)
    corpus = read_corpus(config.lists, format=config.format, collection=config.collection)
    query_ids, doc_ids = corpus.ids("query_id"), corpus.ids("doc_id")
    torch.manual_seed(config.seed)  # the head's first weights
    student = open_student(
        config.encoder, query_tokens=config.query_tokens, passage_tokens=config.passage_tokens,
        trained=False, head=config.head,
    ).to(default_device())
    stage = _stage(config, corpus, student.device)
    identity = _identity(config, stage, student, corpus)
    folder.mkdir(parents=True, exist_ok=True)
    # Of several processes of one launch, the first one holds the folder for all.
    with alone(folder) if processes().is_main_process else nullcontext():
        with processes().main_process_first():
            _claim(folder, identity)
            if (folder / "manifest.json").exists():
                _log.info("%s: finished before", folder)
                return open_student(folder).eval()
            queries, passages = (
                _tokens(folder / "tokens" / texts.what, student, ids, texts, limit)
                for ids, texts, limit in (
                    (query_ids, corpus.queries, student.query_tokens),
                    (doc_ids, corpus.passages, student.passage_tokens),
                )
            )
        lists = _lists(corpus, query_ids, doc_ids)
        distill(student, lists, queries, passages, stage, seed=config.seed, folder=folder)
        if processes().is_main_process:
            made = _circumstances(student.device, len(lists))
            files = {_WEIGHTS: sha256_of(folder / _WEIGHTS)}
            write_record(folder / "manifest.json", identity | made | {"files": files})
    return student


def _lists(corpus: Corpus, query_ids: pd.Index, doc_ids: pd.Index) -> RankedLists:
    """The corpus' lists, whose own order and scores teach where no other order is given."""
    candidates = corpus.candidates
    if "teacher_rank" not in candidates:
        names = {"rank": "teacher_rank", "score": "teacher_score"}
        own = candidates[[name for name in names if name in candidates]].rename(columns=names)
        candidates = candidates.join(own)
    return RankedLists.from_frame(candidates, query_ids, doc_ids)


def _stage(config: DistillConfig, corpus: Corpus, device: torch.device) -> StageConfig:
    values = {"steps": 1} | _STAGE | config.training
    values["precision"] = resolve_precision(values["precision"], device)
    stage = checked(StageConfig, values, what="training")
    if stage.dev_every:
        raise ValueError(
            f"dev_every: expected 0, as this command measures no dev queries; given "
            f"{stage.dev_every}: leave it out, and compare students with rdl evaluate"
        )
    if "steps" not in config.training:
        n_lists = len(corpus.ids("query_id"))
        stage = replace(stage, steps=ceil(_PASSES * n_lists / stage.queries_per_step))
    return stage


def _identity(
    config: DistillConfig, stage: StageConfig, student: CrossEncoder, corpus: Corpus
) -> dict:
    """All that decides what the student becomes, earlier stages included."""
    earlier = record_of(config.encoder).get("config", {})
    lists = {
        "file": Path(config.lists).name, "collection": config.collection, "teacher": config.teacher,
        "n_queries": len(corpus.ids("query_id")), "n_passages": len(corpus.candidates),
    }
    settings = {
        "encoder": earlier.get("encoder", config.encoder), "query_tokens": student.query_tokens,
        "passage_tokens": student.passage_tokens, "seed": config.seed, "head": config.head,
        "stages": [*earlier.get("stages", ()), {"lists": lists, "training": asdict(stage)}],
    }
    data = data_of(model_path(config.encoder), fingerprint(corpus.candidates))
    return json.loads(json.dumps({"kind": "distill", "config": settings, "data": data}))


def _claim(folder: Path, identity: dict) -> None:
    """Take a new or empty folder, or one of the same identity."""
    file = folder / "config.json"
    if file.is_file():
        begun, now = _flat(read_record(file)), _flat(identity)
        if differing := [key for key in begun | now if begun.get(key) != now.get(key)]:
            shown = "; ".join(
                f"{key} {now.get(key)!r} where it was {begun.get(key)!r}" for key in differing[:3]
            )
            raise ValueError(
                f"{folder}: expected the configuration that the folder was begun with; given "
                f"{shown}: name another folder"
            )
    elif holds_something(folder):
        raise ValueError(
            f"{folder}: expected a new or empty folder, or one that rdl distill began; given one "
            "that holds something else: name another"
        )
    else:
        write_record(file, identity)


def _tokens(
    folder: Path, student: CrossEncoder, ids: pd.Index, texts: Texts, max_tokens: int
) -> TokenStore:
    if (folder / "store.json").exists():
        try:
            return TokenStore.open(folder, check=True)
        except ValueError as error:
            _log.warning("%s", error)  # which is done now
    return TokenStore.build(
        texts.each(ids), student.tokenizer, folder, max_tokens=max_tokens, total=len(ids)
    )


def _circumstances(device: torch.device, n_lists: int) -> dict:
    """What a reader must know to place the student."""
    return {
        "n_lists": n_lists,
        "versions": {name: metadata.version(name) for name in _VERSIONS},
        "device": device_name(device),
        "finished": datetime.now(UTC).isoformat(timespec="seconds"),
    }


def _flat(value: object, key: str = "") -> dict[str, object]:
    """Nested settings under dotted names."""
    if not isinstance(value, (dict, list)):
        return {key: value}
    items = value.items() if isinstance(value, dict) else enumerate(value, start=1)
    return {
        name: leaf for k, v in items for name, leaf in _flat(v, f"{key}.{k}".strip(".")).items()
    }
