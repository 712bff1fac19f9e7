"""What is raced: for each part, what it compares, which systems take part, and over which lists."""

from __future__ import annotations

import os
import shutil

from rdl_core.devices import default_device, resolve_precision
from rdl_study.bench.config import BenchConfig
from rdl_study.bench.race import System
from rdl_study.store import project_folder

#: Environment of Lightning IR, which needs transformers 4.
PEERS = project_folder() / ".venv-peers"
_PASSAGE_WORDS = (32, 64, 128, 256, 445)


def _sizes(hidden: int, inner: int, layers: int, heads: int, **more: int) -> dict[str, int]:
    return {"hidden_size": hidden, "intermediate_size": inner, "num_hidden_layers": layers,
            "num_attention_heads": heads, **more}  # fmt: skip


# Of a listwise LLM, Mistral-7B's and a toy's for machines without GPU; of the paper's students beside it.
_LLMS = {
    "7B": _sizes(4096, 14_336, 32, 32, num_key_value_heads=8, max_position_embeddings=32_768),
    "toy": _sizes(256, 896, 4, 8, num_key_value_heads=2, max_position_embeddings=32_768),
}
_ELECTRAS = {
    "7B": {"ELECTRA-base": _sizes(768, 3072, 12, 12, embedding_size=768),
           "ELECTRA-large": _sizes(1024, 4096, 24, 16, embedding_size=1024)},
    "toy": {"ELECTRA, a toy": _sizes(64, 256, 4, 4, embedding_size=64)},
}  # fmt: skip
_LLM_WAYS = {
    "": {}, ", static cache": {"cache": "static"}, ", 4 lists together": {"batch_size": 4},
    ", one token a window": {"mode": "first_token"},
    ", one token, 4 lists together": {"mode": "first_token", "batch_size": 4},
}  # fmt: skip


def _ours(**options: object) -> System:
    return System(function="rank_ours", options=options)


def _theirs(batch_size: int) -> System:
    return System(function="rank_sentence_transformers", options={"batch_size": batch_size})


def _training(function: str, peer: bool = False, **options: object) -> System:
    return System(function=function, options=options, file="training.py", peer=peer)


def _lightning_ir(function: str, **options: object) -> System:
    python = str(PEERS / "bin" / "python")
    return System(function=function, options=options, file="peers/lightning_ir.py", python=python, peer=True)


def parts(work: dict, config: BenchConfig) -> dict[str, tuple[str, dict[str, System], dict]]:
    """Of every part what it compares, its systems by label, and the work that they do."""
    first, words = work["lists"][0], " ".join(work["lists"][0]["passages"]).split()
    texts = list(dict.fromkeys(text for each in work["lists"] for text in each["passages"]))
    by_words = [[" ".join(words[i * 7 % 200 :][:n]) for i in range(32)] for n in _PASSAGE_WORDS]
    many = (work["lists"] * 32)[:32]
    batch = {"n_lists": 32, "list_size": min(len(each["passages"]) for each in many)}
    device, compiled = default_device(), {}
    if shutil.which(os.environ.get("CXX", "g++")):
        compiled["layers compiled"] = _ours(laid_out=False, compiled="default")
        if device.type == "cuda":
            compiled["layers compiled, CUDA graphs"] = _ours(compiled="reduce-overhead")

    def lists_of(passages: list[list[str]], sizes: tuple[int, ...]) -> dict:
        lists = [{"query": first["query"], "passages": each} for each in passages]
        return work | {"lists": lists, "sizes": sizes}

    def of_sizes(*sizes: int) -> dict:  # passages repeated where there are too few
        return lists_of([(texts * (n // len(texts) + 1))[:n] for n in sizes], sizes)

    return {
        "rank": ("Passages of a query ranked, by everybody.", {
            "ours": _ours(), "ours, tokenised before": _ours(stored=True),
            "ours, bfloat16": _ours(precision="bfloat16"), "ours, int8": _ours(precision="int8"),
            **{f"sentence-transformers, {n} at once": _theirs(n) for n in (8, 16, 32)},
            "Lightning IR": _lightning_ir("rank"), "bi-encoder": System(function="rank_bi_encoder"),
        }, work),
        "engine": ("Our student without one thing or the other.", {
            "ours": _ours(), "weights as they come": _ours(laid_out=False),
            "batches not filled up": _ours(fill=1), "memory handed back": _ours(keep_pages=False),
            "all cores at one batch of 2,048": _ours(workers=1, token_budget=2048),
            **compiled, **{f"batches of {n:,} tokens": _ours(token_budget=n) for n in (512, 2048, 4096)},
            "sentence-transformers, 8 at once": _theirs(8),
        }, work),
        "train": ("A training step on a list of 32, RankNet, AdamW, all weights, dropout.", {
            "ours": _training("train_ours"),
            "ours, bfloat16": _training("train_ours", precision="bfloat16"),
            "sentence-transformers": _training("train_sentence_transformers", True, mini_batch_size=None),
            "sentence-transformers, 8 at once":
                _training("train_sentence_transformers", True, mini_batch_size=8),
            "Lightning IR": _lightning_ir("train"),
        }, work | {"lists": [x | {"passages": x["passages"][:32]} for x in work["lists"]]}),
        "sample": ("A batch of 32 lists of 100 drawn and made ready for the encoder.", {
            "ours": _training("sample_ours", **batch),
            "Lightning IR, texts": _lightning_ir("load", **batch),
            "Lightning IR, tokens": _lightning_ir("load", tokenised=True, **batch),
        }, work | {"lists": many}),
        "depth": ("From 10 to 1,000 passages, beyond the first stage's depth other queries'.", {
            "ours": _ours(), "ours, int8": _ours(precision="int8"),
            "sentence-transformers, 8 at once": _theirs(8),
        }, of_sizes(10, 30, 100, 300, 1000)),
        "length": ("32 passages of 32 to 445 words of the first list, cut to 445 tokens.", {
            "ours": _ours(), "sentence-transformers, 8 at once": _theirs(8),
        }, lists_of(by_words, _PASSAGE_WORDS)),
        "list_size": ("A training step on one list of 8 to 128.", {
            "ours": _training("train_ours"),
        }, of_sizes(8, 16, 32, 64, 128)),
        "llm": ("Students beside a listwise LLM that slides windows of 20 by 10 over the lists.", {
            "ours": _ours(precision="auto"),
            **{f"ours, {name}": _ours(precision="auto", sizes=sizes)
               for name, sizes in _ELECTRAS[config.llm].items()},
            **{f"listwise LLM ({config.llm}){way}":
               System(function="rank_listwise_llm", options={"sizes": _LLMS[config.llm], **options})
               for way, options in _LLM_WAYS.items()},
        }, work),
        "limit": ("What the encoder computes in a second, beside products of large matrices alone.", {
            f"{who}, {precision}": System(function=function, options={"precision": precision})
            for precision in dict.fromkeys(("float32", resolve_precision("auto", device)))
            for who, function in (("ours", "encode_ours"), ("matrix products", "matrix_products"))
        }, work),
    }  # fmt: skip


def of_study(precision: str) -> dict[str, System]:
    """What the study ranks with, and the student in other precisions and hands."""
    device = default_device()
    others = {resolve_precision(precision, device), *(["int8"] if device.type == "cpu" else [])}
    return {
        "student": _ours(),
        **{f"student, {other}": _ours(precision=other) for other in sorted(others - {"float32"})},
        "student in sentence-transformers": _theirs(8),
        "bi-encoder": System(function="rank_bi_encoder"), "BM25": System(function="rank_bm25"),
    }  # fmt: skip
