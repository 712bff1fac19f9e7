"""Rankers of this environment: ours, sentence-transformers', BM25, and a listwise LLM.

Each function takes the work and its options, and returns what a worker calls with a number of the
work's ``lists``. The work is a dict: ``model`` (folder of a cross-encoder), ``bi_encoder``,
``query_tokens``, ``passage_tokens`` and ``lists``, each with a ``query`` and its ``passages``.

Whoever ranks returns scores; tokenising is part of the call unless the texts are ``stored``.
"""

from __future__ import annotations

from collections.abc import Callable
from itertools import chain

import numpy as np
import pandas as pd
import torch
from torch import Tensor
from transformers import AutoTokenizer, ElectraConfig, ElectraForSequenceClassification

from rdl_core import cpu
from rdl_core.cross_encoder import CrossEncoder
from rdl_core.tokens import TokenStore
from rdl_core.devices import PRECISIONS, default_device, resolve_precision
from rdl_core.rerank import token_budget_of
from rdl_core.teachers.listwise import rank_lists
from rdl_core.teachers.local_llm import MODES, LocalLLM  # noqa: F401 - the example goes through the modes

__all__ = [
    "encode_ours", "load_student", "longest", "matrix_products", "rank_bi_encoder",
    "rank_bm25", "rank_listwise_llm", "rank_ours", "rank_sentence_transformers",
]  # fmt: skip


def load_student(work: dict, sizes: dict | None = None) -> CrossEncoder:
    """The work's cross-encoder, or an ELECTRA of some sizes and random weights, ready to score.

    >>> load_student(work).training
    False
    """
    limits = {name: work[name] for name in ("query_tokens", "passage_tokens")}
    if sizes is None:
        return CrossEncoder.from_pretrained(work["model"], **limits).to(default_device()).eval()
    tokenizer = AutoTokenizer.from_pretrained(work["model"])
    config = ElectraConfig(vocab_size=len(tokenizer), num_labels=1, **sizes)
    model = ElectraForSequenceClassification(config).to(default_device())
    return CrossEncoder(model, tokenizer, **limits).eval()


def longest(work: dict) -> int:
    """Most tokens of a sequence.

    >>> longest({"query_tokens": 4, "passage_tokens": 8})
    15
    """
    return work["query_tokens"] + work["passage_tokens"] + 3  # [CLS] query [SEP] passage [SEP]


# --- ranking ------------------------------------------------------------------------------------


def rank_ours(
    work: dict, *, sizes: dict | None = None, precision: str = "float32", stored: bool = False,
    laid_out: bool = True, compiled: str | None = None, filled: bool = True, kept: bool = True,
    apart: bool = True, token_budget: int | None = None,
) -> Callable[[int], Tensor]:
    """Our student.

    Args:
        work: See the module.
        sizes: Of transformers' ``ElectraConfig``, for an ELECTRA of random weights instead of the
            work's model.
        precision: As `rdl_core.rerank.rerank` takes it.
        stored: Whether passages come tokenised, as `rdl_core.rerank` has them from a token store.
        laid_out: Whether the weights are laid out for the CPU; off to see what that brings.
        compiled: Mode of ``torch.compile`` for the layers, which it cannot compile once they are
            laid out; ``"reduce-overhead"`` records CUDA graphs. Needs a C++ compiler.
        filled: Whether batches are filled up to few shapes.
        kept: Whether freed memory is kept for the next layer.
        apart: Whether cores take batches of their own, where the weights are laid out.
        token_budget: Most tokens in a batch; None takes what suits the device.

    >>> rank_ours(work)(0).shape
    torch.Size([2])
    """
    engine = load_student(work, sizes)
    tokenizer, device = engine.tokenizer, engine.device
    precision = resolve_precision(precision, device)
    if kept:
        cpu.keep_pages()
    engine = cpu.ready(engine, precision) if laid_out else engine
    if not filled:
        engine.fill = 1
    if not apart:
        engine.at_once, engine.each = 1, map
    for layer in engine.layers() if compiled else ():
        layer.compile(mode=compiled, dynamic=True)
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
        work["model"], max_length=longest(work), trust_remote_code=False,
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
    import bm25s

    every = list(chain.from_iterable(x["passages"] for x in work["lists"]))
    index = bm25s.BM25()
    index.index(bm25s.tokenize(every, stopwords="en", show_progress=False), show_progress=False)

    def rank(number: int) -> np.ndarray:
        asked = work["lists"][number]
        words = bm25s.tokenize([asked["query"]], stopwords="en", show_progress=False)
        return index.retrieve(words, k=len(asked["passages"]), show_progress=False).scores[0]

    return rank


def rank_listwise_llm(
    work: dict, *, sizes: dict, mode: str = "free", batch_size: int = 1, cache: str | None = None,
    window_size: int = 20, stride: int = 10, precision: str = "auto",
) -> Callable[[int], list[int]]:
    """A listwise LLM of random weights over sliding windows: time does not depend on their values.

    Answers have the length of a permutation, whatever the model would write: in mode ``"free"`` it
    writes as many tokens as ``[1] > ... > [20]`` has.

    Args:
        work: See the module; the tokenizer is the cross-encoder's.
        sizes: Of transformers' ``MistralConfig``.
        mode: Of `rdl_core.teachers.local_llm.MODES`.
        batch_size: Windows at once: those of several lists, as one list's follow each other.
        cache: Of `rdl_core.teachers.local_llm.LocalLLM`.
        window_size: Passages in a prompt.
        stride: Places from window to window.
        precision: Of the layers.

    >>> sizes = {"hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1,
    ...          "num_attention_heads": 2, "num_key_value_heads": 1}
    >>> [sorted(rank_listwise_llm(work, sizes=sizes, mode=mode)(0)) for mode in MODES]
    [[0, 1], [0, 1], [0, 1]]
    """
    from transformers import MistralConfig, MistralForCausalLM

    tokenizer = AutoTokenizer.from_pretrained(work["model"])
    tokenizer.eos_token, device = tokenizer.sep_token, default_device()
    config = MistralConfig(vocab_size=len(tokenizer), eos_token_id=tokenizer.sep_token_id, **sizes)
    dtype = PRECISIONS[resolve_precision(precision, device)]
    with torch.device(device):
        model = MistralForCausalLM._from_config(config, dtype=dtype)
    model.generation_config.eos_token_id = -1  # it never ends before its time
    answer = len(tokenizer(" > ".join(f"[{i + 1}]" for i in range(window_size))).input_ids) - 2
    llm = LocalLLM(
        model, tokenizer, mode=mode, batch_size=batch_size, max_new_tokens=answer, cache=cache
    )
    llm._ends = [-1]
    # Which tokens are compared does not matter to time; this tokenizer knows no capital letters.
    letters = tokenizer.convert_tokens_to_ids(list("abcdefghijklmnopqrstuvwxyz"))
    llm._letter_tokens = torch.tensor(letters, device=device)

    def rank(number: int) -> list[int]:
        following = range(number, number + batch_size)
        asked = [work["lists"][n % len(work["lists"])] for n in following]
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
        return [int(x) for x in ranked.loc[ranked["query_id"] == "0", "doc_id"]]

    rank.lists_at_once = batch_size
    return rank


# --- what a machine can do at most --------------------------------------------------------------


def matrix_products(
    work: dict, *, precision: str = "float32", size: int | None = None
) -> Callable[[int], int]:
    """Products of square matrices and nothing else; gives their floating-point operations.

    >>> matrix_products(work, size=8)(0)
    1024
    """
    device = default_device()
    size = size or {"cuda": 8192}.get(device.type, 2048)
    precision = resolve_precision(precision, device)
    square = torch.rand(size, size, device=device).to(PRECISIONS[precision])
    layer = torch.nn.Linear(size, size, bias=False)
    if device.type == "cpu" and torch.backends.mkldnn.is_available():
        layer = cpu.laid_out(layer, precision)  # faster than the library of `torch.mm`
    else:
        layer = layer.to(square)

    def multiply(number: int) -> int:
        with torch.inference_mode():
            layer(square)
        return 2 * size**3

    return multiply


def encode_ours(work: dict, **options: object) -> Callable[[int], int]:
    """As `rank_ours` on stored tokens; gives the floating-point operations that scores need.

    Those of matrix products alone, of the last layer what the first position needs.

    >>> encode_ours(work)(0) > 0
    True
    """
    rank, student = rank_ours(work, stored=True, **options), load_student(work)
    config = student.model.config
    wide, inner, layers = config.hidden_size, config.intermediate_size, config.num_hidden_layers - 1

    def operations(asked: dict) -> int:
        query = TokenStore.of_texts([asked["query"]], student.tokenizer)
        passages = TokenStore.of_texts(asked["passages"], student.tokenizer)
        rows = torch.arange(len(passages))
        lengths = student.pair_lengths(query, passages, torch.zeros_like(rows), rows)
        n, t, squares = len(lengths), int(lengths.sum()), int(lengths.square().sum())
        whole = t * (4 * wide**2 + 2 * wide * inner) + 2 * wide * squares
        last = 2 * t * wide**2 + 2 * wide * t + n * (2 * wide**2 + 2 * wide * inner)
        return 2 * (layers * whole + last)

    counted = [operations(asked) for asked in work["lists"]]

    def encode(number: int) -> int:
        rank(number)
        return counted[number]

    return encode
