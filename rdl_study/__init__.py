"""The study: profiles, the run store, and what the notebooks ask of them.

A notebook checks its parameters, names some systems, compares them, and shows a sentence, a figure
and a table; nothing is computed in its cells.
"""

from rdl_study import (
    agreement,
    figures,
    inclusion,
    movers,
    pictures,
    recorded,
    speed,
    tables,
    worked,
)
from rdl_study.bench.measure import timings
from rdl_study.claims import ledger
from rdl_study.exported import exported, loaded_elsewhere
from rdl_study.bench.full_size import full_size_table
from rdl_study.grid import Part
from rdl_study.parameters import parameters
from rdl_study.bench.precision import recorded_precisions
from rdl_study.profile import load_profile

__all__ = [
    "Part", "agreement", "exported", "figures", "full_size_table", "inclusion", "ledger",
    "load_profile", "loaded_elsewhere", "movers", "parameters", "pictures", "recorded",
    "recorded_precisions", "speed", "tables", "timings", "worked",
]  # fmt: skip
