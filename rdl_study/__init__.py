"""The study: profiles, the run store, and what several notebooks share.

Names are imported when they are first used, so that ``rdl --help`` and Snakemake need no torch.
"""

from importlib import import_module
from typing import Any

_NAMES = {
    "bench.measure": "timings", "claims": "ledger",
    "figures": "INK MARKS OURS PAPER canvas means name_rows",
    "grid": "Added Part RankingConfig Results measure rank rankings train training_log",
    "lists": "ListsConfig corpus", "notebook": "declared parameters",
    "profile": "Stage StudentConfig load_profile",
    "tables": "as_html as_p as_seeds display_table provenance published recorded sentence side_by_side",
}  # fmt: skip
#: Module of each name.
WHERE = {name: module for module, names in _NAMES.items() for name in names.split()}
__all__ = sorted(WHERE)


def __getattr__(name: str) -> Any:
    if name not in WHERE:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{WHERE[name]}"), name)
