"""Rankers: ours, sentence-transformers', a bi-encoder, BM25, a listwise LLM; and matrix products.

Each function takes the work and options, and returns what a worker calls with the number of a list,
for its scores; tokenising is part of the call. The work has the folder of a ``model``, ``bi_encoder``,
``query_tokens``, ``passage_tokens``, ``pair_tokens``, and ``lists`` of a ``query`` and ``passages``.
"""

from __future__ import annotations

import time
from collections.abc import Callable

import numpy as np
import pandas as pd
import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode
from transformers import AutoTokenizer, ElectraConfig, ElectraForSequenceClassification

from rdl_core import cpu
from rdl_core.config import LocalConfig
from rdl_core.cross_encoder import CrossEncoder
from rdl_core.devices import PRECISIONS, default_device, resolve_precision
from rdl_core.rerank import token_budget_of
from rdl_core.teachers.listwise import rank_lists
from rdl_core.teachers.local_llm import LocalLLM, load_llm
from rdl_core.teachers.pointwise import PointwiseLLM, score_lists
from rdl_core.tokens import TokenStore


def load_student(work: dict, sizes: dict | None = None) -> CrossEncoder:
    """The work's cross-encoder, or an ELECTRA of such sizes with random weights."""
    limits = {name: work[name] for name in ("query_tokens", "passage_tokens")}
    if sizes is None:
        return CrossEncoder.from_pretrained(work["model"], **limits).to(default_device()).eval()
    tokenizer = AutoTokenizer.from_pretrained(work["model"])
    config = ElectraConfig(vocab_size=len(tokenizer), num_labels=1, **sizes)
    model = ElectraForSequenceClassification(config).to(default_device())
    return CrossEncoder(model, tokenizer, **limits).eval()


def candidates_of(lists: list[dict]) -> pd.DataFrame:
    """Lists as a frame of candidates with their texts; query ids sort like the lists."""
    rows = [(f"{n:04}", x["query"], f"{n}-{i}", text, i + 1)
            for n, x in enumerate(lists) for i, text in enumerate(x["passages"])]  # fmt: skip
    return pd.DataFrame(rows, columns=["query_id", "query", "doc_id", "text", "rank"])


def rank_ours(
    work: dict, *, sizes: dict | None = None, precision: str = "float32", stored: bool = False,
    compiled: str | None = None, laid_out: bool = True, token_budget: int | None = None,
    **engine: object,
) -> Callable[[int], Tensor]:  # fmt: skip
    """Our student; further options are those of `load_student` and `rdl_core.cpu.engine`.

    `stored`: passages were tokenised before. `compiled`: mode of ``torch.compile`` for the layers,
    which it cannot compile once they are laid out; needs a C++ compiler. `laid_out`: whether the
    engine scores, or the student itself, in float32.
    """
    student, lists = load_student(work, sizes), work["lists"]
    for layer in student.model.base_model.encoder.layer[:-1] if compiled else ():
        layer.compile(mode=compiled, dynamic=True)
    precision = resolve_precision(precision, student.device)
    scorer = cpu.engine(student, precision, **engine) if laid_out else student
    budget = token_budget or token_budget_of(student.device)

    def tokens(texts: list[str]) -> TokenStore:
        return TokenStore.of_texts(texts, student.tokenizer).to(student.device)

    kept = [tokens(each["passages"]) for each in lists if stored]

    @torch.inference_mode()
    def rank(number: int) -> Tensor:
        passages = kept[number] if stored else tokens(lists[number]["passages"])
        rows, query = torch.arange(len(passages), device=student.device), lists[number]["query"]
        return scorer.score(tokens([query]), passages, rows * 0, rows, token_budget=budget).cpu()

    return rank


def rank_sentence_transformers(
    work: dict, *, batch_size: int, precision: str = "float32", attention: str = "sdpa"
) -> Callable[[int], np.ndarray]:
    """The same weights in sentence-transformers' ``CrossEncoder.predict``; flash attention packs."""
    from sentence_transformers import CrossEncoder as TheirCrossEncoder

    own = {"dtype": PRECISIONS[precision], "attn_implementation": attention}
    options = {"max_length": work["pair_tokens"], "model_kwargs": own}
    model = TheirCrossEncoder(work["model"], trust_remote_code=False, **options)

    def rank(number: int) -> np.ndarray:
        pairs = [(work["lists"][number]["query"], text) for text in work["lists"][number]["passages"]]
        return model.predict(pairs, batch_size=batch_size, show_progress_bar=False)

    return rank


def rank_bi_encoder(work: dict) -> Callable[[int], np.ndarray]:
    """The query encoded, and multiplied with the passages' stored vectors."""
    from sentence_transformers import SentenceTransformer

    model = SentenceTransformer(work["bi_encoder"])
    kept = [model.encode(each["passages"], show_progress_bar=False) for each in work["lists"]]
    return lambda n: model.encode(work["lists"][n]["query"], show_progress_bar=False) @ kept[n].T


def rank_bm25(work: dict) -> Callable[[int], np.ndarray]:
    """BM25 over all passages of the work, its index made before."""
    import bm25s

    quiet, lists, index = {"show_progress": False}, work["lists"], bm25s.BM25()
    every = [text for each in lists for text in each["passages"]]
    index.index(bm25s.tokenize(every, stopwords="en", **quiet), **quiet)

    def rank(number: int) -> np.ndarray:
        words = bm25s.tokenize([lists[number]["query"]], stopwords="en", **quiet)
        return index.retrieve(words, k=len(lists[number]["passages"]), **quiet).scores[0]

    return rank


def rank_listwise_llm(
    work: dict, *, sizes: dict, mode: str = "free", batch_size: int = 1, cache: str | None = None,
    first: int | None = None,
) -> Callable[[int], list[int] | int]:  # fmt: skip
    """A listwise LLM over windows of 20 by 10, with random weights: they do not change the time.

    Answers are as long as a permutation, ``[1] > ... > [20]``, whatever the model writes. `sizes` are
    transformers' ``MistralConfig``'s; `batch_size` is of lists, as a list's windows follow each other.
    With `first`, a call ranks that many passages, and returns milliseconds up to the first token.
    """
    from transformers import MistralConfig, MistralForCausalLM

    tokenizer, device = AutoTokenizer.from_pretrained(work["model"]), default_device()
    tokenizer.eos_token = tokenizer.sep_token
    config = MistralConfig(vocab_size=len(tokenizer), eos_token_id=tokenizer.sep_token_id, **sizes)
    dtype = PRECISIONS[resolve_precision("auto", device)]
    with torch.device("meta"):
        model = MistralForCausalLM._from_config(config, dtype=dtype)
    model.to_empty(device=device)
    noise = torch.randn(2**22, dtype=dtype, device=device) * config.initializer_range
    for weight in model.parameters():  # copied, as 7 billion draws take minutes on a CPU
        for part in weight.data.view(-1).split(len(noise)):
            part.copy_(noise[: len(part)])
    model.model.rotary_emb = type(model.model.rotary_emb)(config).to(device)
    model.generation_config.eos_token_id = -1  # it never ends before its time
    answer = len(tokenizer(" > ".join(f"[{i + 1}]" for i in range(20))).input_ids) - 2
    own = {"mode": mode, "batch_size": batch_size, "max_new_tokens": answer}
    llm = LocalLLM(model, tokenizer, cache=cache, **own)
    llm._ends = [-1]
    # Which tokens are compared does not matter to time; this tokenizer knows no capital letters.
    letters = tokenizer.convert_tokens_to_ids(list("abcdefghijklmnopqrstuvwxyz"))
    llm._letter_tokens = torch.tensor(letters, device=device)

    token_times = []  # when each token was there
    model.register_forward_hook(lambda *_: token_times.append(time.perf_counter()))

    def rank(number: int) -> list[int] | int:
        started = time.perf_counter()
        token_times.clear()
        lists = [work["lists"][(number + i) % len(work["lists"])] for i in range(batch_size)]
        lists = [each | {"passages": each["passages"][:first]} for each in lists]
        ranked, _ = rank_lists(candidates_of(lists), llm, window_size=20, stride=10, max_retries=0)
        first_list = ranked.loc[ranked["query_id"] == "0000", "teacher_rank"].tolist()
        return round((token_times[0] - started) * 1000) if first else first_list

    rank.lists_at_once = batch_size
    return rank


def rank_pointwise_llm(work: dict, *, settings: dict) -> Callable[[int], list[float]]:
    """An LLM that scores each passage; `settings` are `LocalConfig`'s."""
    config = LocalConfig(**settings)
    llm = PointwiseLLM(*load_llm(config), **settings)
    return lambda n: score_lists(candidates_of([work["lists"][n]]), llm)[0]["teacher_score"].tolist()


def matrix_products(work: dict, *, precision: str) -> Callable[[int], int]:
    """Products of square matrices and nothing else; returns their floating-point operations."""
    device, size = default_device(), 8192 if torch.cuda.is_available() else 2048
    square = torch.rand(size, size, device=device).to(PRECISIONS[precision])
    layer = torch.nn.Linear(size, size, bias=False)
    with_onednn = device.type == "cpu" and cpu.has_operators()  # beats `torch.mm`
    layer = cpu.laid_out(layer, precision) if with_onednn else layer.to(square)

    @torch.inference_mode()
    def multiply(number: int) -> int:
        layer(square)
        return 2 * size**3

    return multiply


def rank_and_count(work: dict, *, precision: str = "float32", batch_size: int = 0) -> Callable:
    """`rank_ours` on stored tokens, or, with a batch size, `rank_sentence_transformers`.

    Returns the floating-point operations of its matrix products: PyTorch's counter sees only its own.
    """
    if batch_size:
        rank = plain = rank_sentence_transformers(work, batch_size=batch_size)
    else:
        rank = rank_ours(work, stored=True, precision=precision)
        plain = rank_ours(work, stored=True, laid_out=False)
    operations = []
    for number in range(len(work["lists"])):
        with FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH):
            plain(number)
        operations.append(counter.get_total_flops())
    return lambda number: (rank(number), operations[number])[1]
