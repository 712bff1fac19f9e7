"""Systems of this environment: ours, sentence-transformers', BM25, and a listwise LLM.

Each function takes the work and its options, and returns what a worker calls with a number of the
work's ``lists``. The work is a dict: ``model`` (folder of a cross-encoder), ``bi_encoder``,
``query_tokens``, ``passage_tokens`` and ``lists``, each with a ``query`` and its ``passages``, for
training in the teacher's order.

Whoever ranks returns scores; tokenising is part of the call unless the texts are ``stored``.
"""

from __future__ import annotations

import queue
import tempfile
import threading
from collections.abc import Callable
from itertools import chain
from pathlib import Path

import bm25s
import numpy as np
import pandas as pd
import torch
from torch import Tensor

from rdl_core.cpu import keep_pages, ready
from rdl_core.cross_encoder import CrossEncoder
from rdl_core.data.lists import RankedLists
from rdl_core.data.tokens import TokenStore, pack, plan_batches
from rdl_core.devices import default_device, resolve_precision
from rdl_core.distill import Training
from rdl_core.rerank import token_budget_of
from rdl_core.stage import StageConfig
from rdl_core.step import Step, draw
from rdl_core.teachers.listwise import rank_lists
from rdl_core.teachers.local_llm import MODES, LocalLLM  # noqa: F401 - the example goes through the modes

__all__ = [
    "rank_bi_encoder", "rank_bm25", "rank_listwise_llm", "rank_ours",
    "rank_sentence_transformers", "sample_ours", "train_ours", "train_sentence_transformers",
]  # fmt: skip


def _cross_encoder(work: dict) -> CrossEncoder:
    limits = {name: work[name] for name in ("query_tokens", "passage_tokens")}
    return CrossEncoder.from_pretrained(work["model"], **limits).to(default_device()).eval()


def _longest(work: dict) -> int:
    return work["query_tokens"] + work["passage_tokens"] + 3  # [CLS] query [SEP] passage [SEP]


# --- ranking ------------------------------------------------------------------------------------


def rank_ours(
    work: dict, *, precision: str = "float32", stored: bool = False, laid_out: bool = True,
    compiled: bool = False, filled: bool = True, kept: bool = True, token_budget: int | None = None,
) -> Callable[[int], Tensor]:
    """Our student.

    Args:
        work: See the module.
        precision: As `rdl_core.rerank.rerank` takes it.
        stored: Whether passages come tokenised, as `rdl_core.rerank` has them from a token store.
        laid_out: Whether the weights are laid out for the CPU; off to see what that brings.
        compiled: Whether ``torch.compile`` compiles the layers, which it cannot do once they are
            laid out. Needs a C++ compiler.
        filled: Whether batches are filled up to few shapes.
        kept: Whether freed memory is kept for the next layer.
        token_budget: Most tokens in a batch; None takes what suits the device.

    >>> rank_ours(work)(0).shape
    torch.Size([2])
    """
    engine = _cross_encoder(work)
    tokenizer, device = engine.tokenizer, engine.device
    precision = resolve_precision(precision, device)
    if kept:
        keep_pages()
    engine = ready(engine, precision) if laid_out else engine
    if not filled:
        engine.fill = 1
    for layer in engine.layers() if compiled else ():
        layer.compile(dynamic=True)
    layers = "float32" if precision == "int8" else precision
    budget = token_budget or token_budget_of(device)
    kept = [TokenStore.of_texts(x["passages"], tokenizer).to(device) for x in work["lists"] if stored]

    def rank(number: int) -> Tensor:
        asked = work["lists"][number]
        query = TokenStore.of_texts([asked["query"]], tokenizer).to(device)
        passages = kept[number] if stored else TokenStore.of_texts(asked["passages"], tokenizer)
        rows = torch.arange(len(passages), device=device)
        with torch.inference_mode():
            return engine.score(
                query, passages.to(device), torch.zeros_like(rows), rows,
                token_budget=budget, precision=layers,
            ).cpu()  # fmt: skip

    return rank


def rank_sentence_transformers(
    work: dict, *, batch_size: int, precision: str = "float32"
) -> Callable[[int], np.ndarray]:
    """The same weights in sentence-transformers' ``CrossEncoder.predict``.

    >>> bool(np.allclose(rank_sentence_transformers(work, batch_size=2)(0), rank_ours(work)(0)))
    True
    """
    from sentence_transformers import CrossEncoder as TheirCrossEncoder

    dtype = {"float32": torch.float32, "bfloat16": torch.bfloat16}[precision]
    model = TheirCrossEncoder(
        work["model"], max_length=_longest(work), trust_remote_code=False,
        model_kwargs={"dtype": dtype},
    )

    def rank(number: int) -> np.ndarray:
        asked = work["lists"][number]
        pairs = [(asked["query"], passage) for passage in asked["passages"]]
        return model.predict(pairs, batch_size=batch_size, show_progress_bar=False)

    return rank


def rank_bi_encoder(work: dict) -> Callable[[int], np.ndarray]:
    """The query encoded, and multiplied with the passages' stored vectors.

    >>> rank_bi_encoder(work)(0).shape
    (2,)
    """
    from sentence_transformers import SentenceTransformer

    model = SentenceTransformer(work["bi_encoder"])
    kept = [model.encode(x["passages"], show_progress_bar=False) for x in work["lists"]]
    return lambda number: (
        model.encode(work["lists"][number]["query"], show_progress_bar=False) @ kept[number].T
    )


def rank_bm25(work: dict) -> Callable[[int], np.ndarray]:
    """BM25 over all passages of the work, its index made.

    >>> rank_bm25(work)(0).shape
    (2,)
    """
    every = list(chain.from_iterable(x["passages"] for x in work["lists"]))
    index = bm25s.BM25()
    index.index(bm25s.tokenize(every, stopwords="en", show_progress=False), show_progress=False)

    def rank(number: int) -> np.ndarray:
        asked = work["lists"][number]
        words = bm25s.tokenize([asked["query"]], stopwords="en", show_progress=False)
        return index.retrieve(words, k=len(asked["passages"]), show_progress=False).scores[0]

    return rank


def rank_listwise_llm(
    work: dict, *, sizes: dict, mode: str = "free", batch_size: int = 1, window_size: int = 20,
    stride: int = 10, precision: str = "auto",
) -> Callable[[int], list[int]]:
    """A listwise LLM of random weights over sliding windows: time does not depend on their values.

    Answers have the length of a permutation, whatever the model would write: in mode ``"free"`` it
    writes as many tokens as ``[1] > ... > [20]`` has.

    Args:
        work: See the module; the tokenizer is the cross-encoder's.
        sizes: Of transformers' ``MistralConfig``.
        mode: Of `rdl_core.teachers.local_llm.MODES`.
        batch_size: Windows at once: those of several lists, as one list's follow each other.
        window_size: Passages in a prompt.
        stride: Places from window to window.
        precision: Of the layers.

    >>> sizes = {"hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1,
    ...          "num_attention_heads": 2, "num_key_value_heads": 1}
    >>> [sorted(rank_listwise_llm(work, sizes=sizes, mode=mode)(0)) for mode in MODES]
    [[0, 1], [0, 1], [0, 1]]
    """
    from transformers import AutoTokenizer, MistralConfig, MistralForCausalLM

    from rdl_core.devices import PRECISIONS

    tokenizer = AutoTokenizer.from_pretrained(work["model"])
    tokenizer.eos_token, device = tokenizer.sep_token, default_device()
    config = MistralConfig(vocab_size=len(tokenizer), eos_token_id=tokenizer.sep_token_id, **sizes)
    dtype = PRECISIONS[resolve_precision(precision, device)]
    with torch.device(device):
        model = MistralForCausalLM._from_config(config, dtype=dtype)
    model.generation_config.eos_token_id = -1  # it never ends before its time
    answer = len(tokenizer(" > ".join(f"[{i + 1}]" for i in range(window_size))).input_ids) - 2
    llm = LocalLLM(model, tokenizer, mode=mode, batch_size=batch_size, max_new_tokens=answer)
    llm._ends = [-1]
    # Which tokens are compared does not matter to time; this tokenizer knows no capital letters.
    letters = tokenizer.convert_tokens_to_ids(list("abcdefghijklmnopqrstuvwxyz"))
    llm._letter_tokens = torch.tensor(letters, device=device)

    def rank(number: int) -> list[int]:
        asked = work["lists"][number : number + batch_size]
        candidates = pd.DataFrame(
            [
                {"query_id": str(n), "query": each["query"], "doc_id": str(i), "text": passage,
                 "rank": i + 1}
                for n, each in enumerate(asked)
                for i, passage in enumerate(each["passages"])
            ]
        )  # fmt: skip
        ranked, _ = rank_lists(
            candidates, llm, window_size=window_size, stride=stride, max_retries=0
        )
        return [int(x) for x in ranked["doc_id"]]

    return rank


# --- training -----------------------------------------------------------------------------------


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
    student = _cross_encoder(work)
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

        model = TheirCrossEncoder(work["model"], max_length=_longest(work), trust_remote_code=False)
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
    student = _cross_encoder(work)
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
