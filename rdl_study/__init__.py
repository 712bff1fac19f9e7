"""The study: profiles, the run store, and what several notebooks share.

Names are imported when they are first used, so that ``rdl --help`` and Snakemake need no torch.
"""

from importlib import import_module
from typing import Any

#: Module of each name.
WHERE = {
    "INK": "figures", "MARKS": "figures", "OURS": "figures", "PAPER": "figures",
    "Added": "grid", "ListsConfig": "lists", "Part": "grid", "RankingConfig": "grid",
    "Results": "grid", "Stage": "profile", "StudentConfig": "profile",
    "as_html": "tables", "as_p": "tables", "as_seeds": "tables", "canvas": "figures",
    "corpus": "lists", "declared": "notebook", "display_table": "tables", "ledger": "claims",
    "lists": "lists", "load_profile": "profile", "means": "figures", "measure": "grid",
    "parameters": "notebook", "provenance": "tables", "published": "tables", "rank": "grid",
    "rankings": "grid", "recorded": "tables", "sentence": "tables", "side_by_side": "tables",
    "timings": "bench.measure", "train": "grid", "training_log": "grid",
}  # fmt: skip
__all__ = sorted(WHERE)


def __getattr__(name: str) -> Any:
    if name not in WHERE:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{WHERE[name]}"), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *WHERE})
