"""Training steps, ours and sentence-transformers', and the way of data to a step.

Functions are like those of `rdl_study.bench.systems`; passages are in the teacher's order.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from pathlib import Path

import torch

from rdl_core.config import StageConfig
from rdl_core.cross_encoder import CrossEncoder
from rdl_core.distill import Training, draw
from rdl_core.lists import RankedLists
from rdl_core.tokens import TokenCorpus, pack, plan_batches
from rdl_study.bench.systems import candidates_of, load_student


def train_ours(work: dict, **stage: object) -> Callable[[int], float]:
    """A step of our loop on one list, drawing included; returns the loss. Options are a stage's."""
    student = load_student(work)
    lists = _lists_of(work, student)
    size = {"list_size": lists.mask.shape[1], "queries_per_step": 1}
    config = StageConfig(**size, max_gradient_norm=1.0, **stage)
    training = Training(student, config, Path(tempfile.mkdtemp()))

    def step(number: int) -> float:
        one_list = lists.take(torch.tensor([number], device=student.device))
        return training.step(*draw(one_list, config, seed=0, step=number), seed=number)[0]

    return step


def train_theirs(work: dict, *, mini_batch_size: int | None) -> Callable:
    """A step of sentence-transformers' trainer with its RankNet loss, loading included."""
    from datasets import Dataset
    from sentence_transformers import CrossEncoder as TheirCrossEncoder
    from sentence_transformers.cross_encoder import CrossEncoderTrainer, CrossEncoderTrainingArguments
    from sentence_transformers.cross_encoder.losses import RankNetLoss
    from transformers import TrainerCallback

    def loop(step_ended: Callable[[], object]) -> None:
        class Stop(TrainerCallback):
            def on_step_end(self, *_: object, **__: object) -> None:
                step_ended()

        model = TheirCrossEncoder(work["model"], max_length=work["pair_tokens"])
        rows = [{"query": x["query"], "docs": x["passages"],
                 "labels": [-float(i) for i in range(len(x["passages"]))]}
                for x in work["lists"] * 1000]  # fmt: skip
        arguments = CrossEncoderTrainingArguments(
            output_dir=tempfile.mkdtemp(), per_device_train_batch_size=1, learning_rate=1e-5,
            save_strategy="no", report_to="none", disable_tqdm=True, logging_strategy="no",
        )  # fmt: skip
        CrossEncoderTrainer(
            model=model, args=arguments, train_dataset=Dataset.from_list(rows),
            loss=RankNetLoss(model, mini_batch_size=mini_batch_size), callbacks=[Stop()],
        ).train()  # fmt: skip

    loop.is_loop = True
    return loop


def sample_ours(work: dict, *, n_lists: int, list_size: int) -> Callable[[int], int]:
    """A step's lists drawn and packed, with nothing computed on them; returns their tokens."""
    student = load_student(work)
    lists, template = _lists_of(work, student), student.template
    config = StageConfig(sampler="random", list_size=list_size, queries_per_step=n_lists)
    limits = {name: work[name] for name in ("query_tokens", "passage_tokens")}

    def draw_and_pack(number: int) -> int:
        drawn, sampled = draw(lists, config, seed=0, step=number)
        passage_rows = drawn.passage_rows.gather(1, sampled.indices).flatten()
        query_rows = drawn.query_rows.repeat_interleave(list_size)
        lengths = lists.queries.lengths(query_rows, limits["query_tokens"]) + template.n_tokens
        lengths += lists.passages.lengths(passage_rows, limits["passage_tokens"])
        n_tokens = 0
        for batch in plan_batches(lengths.cpu(), 16_384):
            rows = (x[batch.to(x.device)] for x in (query_rows, passage_rows))
            packed = pack(lists.queries, lists.passages, *rows, template=template, **limits)
            n_tokens += len(packed.input_ids)
        return n_tokens

    return draw_and_pack


def _lists_of(work: dict, student: CrossEncoder) -> RankedLists:
    frame = candidates_of(work["lists"])
    queries = frame[["query_id", "query"]].drop_duplicates()
    corpus = TokenCorpus.of(queries, frame[["doc_id", "text"]], student.tokenizer)
    ranked = frame.assign(teacher_rank=frame["rank"])
    return RankedLists.from_frame(ranked, corpus).to(student.device)
