"""Rank-DistiLLM: distil an LLM's rankings into cross-encoders.

These names are imported when they are first used, as most need torch. Modules hold the rest, such as
`rdl_core.rerank.rerank`: the package's attribute of a module's name is the module.
"""

from importlib import import_module

_FROM = {
    "CrossEncoder": "cross_encoder", "RankedLists": "lists", "StageConfig": "config",
    "TokenCorpus": "tokens", "bm25": "data.retrieval", "compare": "evaluate",
    "load": "data.collections", "per_query": "evaluate", "read_candidates": "data.formats",
    "settle_ties": "evaluate", "two_stages": "distill",
}  # fmt: skip
__all__ = sorted(_FROM)


def __getattr__(name: str) -> object:
    if name not in _FROM:
        raise AttributeError(f"module 'rdl_core' has no attribute {name!r}")
    return getattr(import_module(f"rdl_core.{_FROM[name]}"), name)
