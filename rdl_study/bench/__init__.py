"""What ranking, training and sampling cost: systems side by side, each in a process of its own.

`race` lets systems take turns call by call, so that a machine whose speed drifts drifts for all
alike; ratios are taken turn by turn. `worker` is the process of one system; `systems` and `training`
hold ours and those of our own environment, the folder ``peers`` Lightning IR's, which needs another
one.
"""

from rdl_study.bench.race import Job, System, race, ratios, summary

__all__ = ["Job", "System", "race", "ratios", "summary"]
