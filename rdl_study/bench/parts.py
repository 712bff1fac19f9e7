"""What ``rdl bench`` races: for each part, who takes part and over what.

A part is a function of what is `Given` to the work and the systems by label; its docstring says what
is compared.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import rdl_study.bench as efficiency
from rdl_core.devices import default_device, resolve_precision
from rdl_study.bench import System

__all__ = ["LLMS", "PARTS", "Given", "of_study"]

_HERE = Path(efficiency.__file__).parent
_DEPTHS = (10, 30, 100, 300, 1000)
_PASSAGE_WORDS = (32, 64, 128, 256, 445)
_LIST_SIZES = (8, 16, 32, 64, 128)
_LISTS_TOGETHER = 4  # whose windows a listwise LLM reads at once
#: Sizes of a listwise LLM: Mistral-7B's, and a toy of the same architecture for machines without GPU.
LLMS = {
    "7B": {
        "hidden_size": 4096, "intermediate_size": 14_336, "num_hidden_layers": 32,
        "num_attention_heads": 32, "num_key_value_heads": 8, "max_position_embeddings": 32_768,
    },
    "toy": {
        "hidden_size": 256, "intermediate_size": 896, "num_hidden_layers": 4,
        "num_attention_heads": 8, "num_key_value_heads": 2, "max_position_embeddings": 32_768,
    },
}  # fmt: skip
# Students of the paper beside them, likewise.
_ELECTRAS = {
    "7B": {
        "ELECTRA-base": {
            "embedding_size": 768, "hidden_size": 768, "intermediate_size": 3072,
            "num_hidden_layers": 12, "num_attention_heads": 12,
        },
        "ELECTRA-large": {
            "embedding_size": 1024, "hidden_size": 1024, "intermediate_size": 4096,
            "num_hidden_layers": 24, "num_attention_heads": 16,
        },
    },
    "toy": {
        "ELECTRA, a toy": {
            "embedding_size": 64, "hidden_size": 64, "intermediate_size": 256,
            "num_hidden_layers": 4, "num_attention_heads": 4,
        },
    },
}  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class Given:
    """What a part is made from."""

    work: dict
    """What systems are made from, as `rdl_study.bench.systems` has it."""
    peers: str | None
    """Interpreter of the environment that has Lightning IR; None leaves it out."""
    llm: str
    """A key of `LLMS`."""

    def cut(self, depth: int) -> dict:
        """The work with the first passages of each list alone.

        >>> given = Given(work={"lists": [{"passages": ["a", "b"]}]}, peers=None, llm="toy")
        >>> given.cut(1)
        {'lists': [{'passages': ['a']}]}
        """
        cut = [x | {"passages": x["passages"][:depth]} for x in self.work["lists"]]
        return self.work | {"lists": cut}


def _ours(**options: object) -> System:
    return System(function="rank_ours", options=options)


def _peer(function: str, python: str, **options: object) -> System:
    return System(
        function=function, options=options, file=str(_HERE / "peers" / "lightning_ir.py"), python=python
    )


def _training(function: str, **options: object) -> System:
    return System(function=function, options=options, file=str(_HERE / "training.py"))


def _theirs(batch_size: int) -> System:
    return System(function="rank_sentence_transformers", options={"batch_size": batch_size})


def _rank(given: Given) -> tuple[dict[str, System], dict]:
    """Passages of a query ranked, by everybody."""
    systems = {"ours": _ours(), "ours, tokenised before": _ours(stored=True)}
    systems |= {f"ours, {p}": _ours(precision=p) for p in ("bfloat16", "int8")}
    systems |= {f"sentence-transformers, {n} at once": _theirs(n) for n in (8, 16, 32)}
    if given.peers:
        systems["Lightning IR"] = _peer("rank", given.peers)
    return systems | {"bi-encoder": System(function="rank_bi_encoder")}, given.work


def _engine(given: Given) -> tuple[dict[str, System], dict]:
    """Our student without one thing or the other."""
    systems = {"ours": _ours(), "weights as they come": _ours(laid_out=False)}
    systems["batches not filled up"] = _ours(filled=False)
    systems["memory handed back"] = _ours(kept=False)
    systems["all cores at one batch of 2,048"] = _ours(apart=False, token_budget=2048)
    if shutil.which(os.environ.get("CXX", "g++")):
        systems["layers compiled"] = _ours(laid_out=False, compiled="default")
        if default_device().type == "cuda":
            systems["layers compiled, CUDA graphs"] = _ours(compiled="reduce-overhead")
    systems |= {f"batches of {n:,} tokens": _ours(token_budget=n) for n in (512, 2048, 4096)}
    return systems | {"sentence-transformers, 8 at once": _theirs(8)}, given.work


def _train(given: Given) -> tuple[dict[str, System], dict]:
    """A training step on a list of 32, RankNet, AdamW, all weights, dropout as in the encoder."""
    systems = {"ours": _training("train_ours")}
    systems["ours, bfloat16"] = _training("train_ours", precision="bfloat16")
    if given.peers:
        theirs = "train_sentence_transformers"
        systems["sentence-transformers"] = _training(theirs, mini_batch_size=None)
        systems["sentence-transformers, 8 at once"] = _training(theirs, mini_batch_size=8)
        systems["Lightning IR"] = _peer("train", given.peers)
    return systems, given.cut(32)


def _sample(given: Given) -> tuple[dict[str, System], dict]:
    """A batch of 32 lists of 100 drawn and made ready for the encoder."""
    lists = (given.work["lists"] * 32)[:32]
    size = {"n_lists": 32, "list_size": min(len(x["passages"]) for x in lists)}
    systems = {"ours": _training("sample_ours", **size)}
    if given.peers:
        systems["Lightning IR, texts"] = _peer("load", given.peers, **size)
        systems["Lightning IR, tokens"] = _peer("load", given.peers, tokenised=True, **size)
    return systems, given.work | {"lists": lists}


def _regrouped(given: Given, sizes: tuple[int, ...], texts: list[str]) -> dict:
    """One list of each size, of the first query; passages repeated where there are too few."""
    query = given.work["lists"][0]["query"]
    repeated = texts * (max(sizes) // len(texts) + 1)
    made = [{"query": query, "passages": repeated[:n]} for n in sizes]
    return given.work | {"lists": made, "sizes": sizes}


def _depth(given: Given) -> tuple[dict[str, System], dict]:
    """From 10 to 1,000 passages; a list beyond the first stage's depth takes other queries' ones."""
    every = list(dict.fromkeys(p for x in given.work["lists"] for p in x["passages"]))
    systems = {"ours": _ours(), "ours, int8": _ours(precision="int8")}
    systems["sentence-transformers, 8 at once"] = _theirs(8)
    return systems, _regrouped(given, _DEPTHS, every)


def _length(given: Given) -> tuple[dict[str, System], dict]:
    """32 passages of 32 to 445 words, cut to 445 tokens, of the first list's words."""
    words = " ".join(given.work["lists"][0]["passages"]).split()
    query = given.work["lists"][0]["query"]
    made = [
        {"query": query, "passages": [" ".join(words[i * 7 % 200 :][:n]) for i in range(32)]}
        for n in _PASSAGE_WORDS
    ]
    systems = {"ours": _ours(), "sentence-transformers, 8 at once": _theirs(8)}
    return systems, given.work | {"lists": made, "sizes": _PASSAGE_WORDS}


def _list_size(given: Given) -> tuple[dict[str, System], dict]:
    """A training step on one list of 8 to 128."""
    every = list(dict.fromkeys(p for x in given.work["lists"] for p in x["passages"]))
    return {"ours": _training("train_ours")}, _regrouped(given, _LIST_SIZES, every)


def _llm(given: Given) -> tuple[dict[str, System], dict]:
    """Students beside a listwise LLM that slides windows of 20 by 10 over the same lists."""
    systems = {"ours": _ours(precision="auto")}
    for name, sizes in _ELECTRAS[given.llm].items():
        systems[f"ours, {name}"] = _ours(precision="auto", sizes=sizes)
    llm, together = f"listwise LLM ({given.llm})", {"batch_size": _LISTS_TOGETHER}
    ways = {
        "": {}, ", static cache": {"cache": "static"}, f", {_LISTS_TOGETHER} lists together": together,
        ", one token a window": {"mode": "first_token"},
        f", one token, {_LISTS_TOGETHER} lists together": {"mode": "first_token"} | together,
    }  # fmt: skip
    for way, options in ways.items():
        options = {"sizes": LLMS[given.llm]} | options
        systems[llm + way] = System(function="rank_listwise_llm", options=options)
    return systems, given.work


def _limit(given: Given) -> tuple[dict[str, System], dict]:
    """What the encoder computes in a second, beside products of large matrices and nothing else."""
    systems = {}
    for precision in dict.fromkeys(("float32", resolve_precision("auto", default_device()))):
        options = {"precision": precision}
        systems[f"ours, {precision}"] = System(function="encode_ours", options=options)
        systems[f"matrix products, {precision}"] = System(function="matrix_products", options=options)
    return systems, given.work


#: What is compared, by name.
PARTS: dict[str, Callable[[Given], tuple[dict[str, System], dict]]] = {
    "rank": _rank, "engine": _engine, "train": _train, "sample": _sample, "depth": _depth,
    "length": _length, "list_size": _list_size, "llm": _llm, "limit": _limit,
}  # fmt: skip


def of_study(precision: str) -> dict[str, System]:
    """What the study ranks with, and the student in other precisions and hands.

    >>> [name for name in of_study("float32") if name.startswith("b")]
    ['bi-encoder']
    """
    device = default_device()
    others = [resolve_precision(precision, device), *(["int8"] if device.type == "cpu" else [])]
    return {
        "student": _ours(),
        **{f"student, {p}": _ours(precision=p) for p in others if p != "float32"},
        "student in sentence-transformers": _theirs(8),
        "bi-encoder": System(function="rank_bi_encoder"),
        "BM25": System(function="rank_bm25"),
    }
