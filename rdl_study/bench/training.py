"""Training steps of this environment, ours and sentence-transformers', and what a step draws.

Each function takes the work, as in `rdl_study.bench.systems` but with passages in the teacher's
order, and its options, and returns what a worker calls with a number of the work's ``lists``.
"""

from __future__ import annotations

import queue
import tempfile
import threading
from collections.abc import Callable
from itertools import chain
from pathlib import Path

import pandas as pd
import torch

from rdl_core.cross_encoder import CrossEncoder
from rdl_core.lists import RankedLists
from rdl_core.tokens import TokenStore, pack, plan_batches
from rdl_core.distill import Training
from rdl_study.bench.systems import load_student, longest
from rdl_core.stage import StageConfig
from rdl_core.step import Step, draw

__all__ = ["sample_ours", "train_ours", "train_sentence_transformers"]


def _stores(work: dict, student: CrossEncoder) -> tuple[RankedLists, TokenStore, TokenStore]:
    """All lists in the teacher's order, and their texts tokenised once."""
    passages = list(chain.from_iterable(x["passages"] for x in work["lists"]))
    frame = pd.DataFrame(
        [
            {"query_id": n, "rank": i + 1, "teacher_rank": i + 1}
            for n, each in enumerate(work["lists"])
            for i in range(len(each["passages"]))
        ]
    )
    frame["doc_id"] = range(len(passages))
    lists = RankedLists.from_frame(
        frame, pd.RangeIndex(len(work["lists"])), pd.RangeIndex(len(passages))
    )
    queries = TokenStore.of_texts([x["query"] for x in work["lists"]], student.tokenizer)
    stores = queries, TokenStore.of_texts(passages, student.tokenizer)
    return tuple(x.to(student.device) for x in (lists, *stores))


def _stage(work: dict, list_size: int, **own: object) -> StageConfig:
    return StageConfig(
        **{
            "sampler": "top", "loss": "ranknet", "targets": "teacher", "list_size": list_size,
            "queries_per_step": 1, "steps": 1, "learning_rate": 1e-5, "max_gradient_norm": 1.0,
        } | own
    )  # fmt: skip


def train_ours(work: dict, **own: object) -> Callable[[int], float]:
    """A step of our loop on one list, the draw from it included.

    Args:
        work: See the module.
        own: Fields of `StageConfig`.

    >>> train_ours(work)(0) > 0
    True
    """
    student = load_student(work)
    lists, queries, passages = _stores(work, student)
    config = _stage(work, lists.mask.shape[1], **own)
    training = Training(student, config, Path(tempfile.mkdtemp()))

    def step(number: int) -> float:
        one = lists.take(torch.tensor([number], device=student.device))
        drawn = draw(one, config, seed=0, step=number)
        return training.descend(
            Step.share(
                *drawn, slice(None), config, student=student, queries=queries, passages=passages,
                seed=number,
            )
        )[0]

    return step


class _OneByOne:
    """A library's training loop, in a thread of its own, that goes on for one step when called."""

    def __init__(self, fit: Callable[[Callable[[float], None]], None]) -> None:
        self._go, self._done = queue.Queue(), queue.Queue()
        threading.Thread(target=self._run, args=(fit,), daemon=True).start()
        self._wait()

    def _run(self, fit: Callable[[Callable[[float], None]], None]) -> None:
        try:
            fit(self._step_ended)
        except BaseException as error:
            self._done.put(error)

    def _step_ended(self) -> None:
        self._done.put(None)
        self._go.get()

    def _wait(self) -> None:
        if error := self._done.get():
            raise error

    def __call__(self, number: int) -> None:
        self._go.put(None)
        self._wait()


def train_sentence_transformers(work: dict, *, mini_batch_size: int | None) -> Callable[[int], None]:
    """A step of sentence-transformers' trainer with its RankNet loss, loading included.

    >>> train_sentence_transformers(work, mini_batch_size=None)(0)  # doctest: +SKIP
    """
    from datasets import Dataset
    from sentence_transformers import CrossEncoder as TheirCrossEncoder
    from sentence_transformers.cross_encoder import (
        CrossEncoderTrainer,
        CrossEncoderTrainingArguments,
    )
    from sentence_transformers.cross_encoder.losses import RankNetLoss
    from transformers import TrainerCallback

    def fit(step_ended: Callable[[], None]) -> None:
        class Stop(TrainerCallback):
            def on_step_end(self, *_: object, **__: object) -> None:
                step_ended()

        model = TheirCrossEncoder(work["model"], max_length=longest(work), trust_remote_code=False)
        lists = work["lists"] * 1000
        rows = {
            "query": [x["query"] for x in lists],
            "docs": [x["passages"] for x in lists],
            "labels": [[float(-i) for i in range(len(x["passages"]))] for x in lists],
        }
        arguments = CrossEncoderTrainingArguments(
            output_dir=tempfile.mkdtemp(), per_device_train_batch_size=1, learning_rate=1e-5,
            save_strategy="no", report_to="none", disable_tqdm=True, logging_strategy="no",
        )
        CrossEncoderTrainer(
            model=model, args=arguments, train_dataset=Dataset.from_dict(rows),
            loss=RankNetLoss(model, mini_batch_size=mini_batch_size), callbacks=[Stop()],
        ).train()

    return _OneByOne(fit)


def sample_ours(work: dict, *, n_lists: int, list_size: int) -> Callable[[int], int]:
    """A step's lists drawn and packed, with nothing computed on them; gives their tokens.

    >>> sample_ours(work, n_lists=1, list_size=2)(0) > 0
    True
    """
    student = load_student(work)
    lists, queries, passages = _stores(work, student)
    config = _stage(work, list_size, sampler="random", queries_per_step=n_lists)
    device = student.device

    def sample(number: int) -> int:
        batch, sampled = draw(lists, config, seed=0, step=number)
        passage_rows = batch.passage_rows.gather(1, sampled.indices).flatten()
        query_rows = batch.query_rows.repeat_interleave(list_size)
        lengths = student.pair_lengths(queries, passages, query_rows, passage_rows)
        packed = [
            pack(
                queries, passages, query_rows[rows], passage_rows[rows],
                template=student.template, query_tokens=student.query_tokens,
                passage_tokens=student.passage_tokens,
            )
            for rows in (rows.to(device) for rows in plan_batches(lengths.cpu(), 16_384))
        ]
        return sum(len(part.input_ids) for part in packed)

    return sample
