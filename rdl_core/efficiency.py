"""What a query costs: latency, throughput and memory, measured the same way for every system.

A system is a function that ranks the passages of one query, tokenising included where it takes
text. Systems take turns query by query, so that a machine whose speed drifts drifts for all alike.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence

import pandas as pd
import torch

from rdl_core.progress import progress

__all__ = ["measure", "weight_bytes"]


def measure(
    systems: Mapping[str, Callable[[int], object]],
    queries: Sequence[int],
    *,
    passages_per_query: int,
    warmup: int,
    repetitions: int,
) -> pd.DataFrame:
    """Time systems on the same queries, in turns.

    Args:
        systems: By label: ranks the passages of one query, given its number.
        queries: Numbers of the queries.
        passages_per_query: How many passages a query has.
        warmup: Queries ranked before the clock runs.
        repetitions: How often each query is ranked.

    Returns:
        Per system ``median_ms``, ``p95_ms`` and ``passages_per_s`` (from the median), over
        ``n_timings`` timings; with CUDA also ``peak_allocated_bytes``.

    >>> measure({"none": lambda query: None}, [0], passages_per_query=1, warmup=0,
    ...         repetitions=2)["n_timings"].tolist()
    [2]
    """
    cuda = torch.cuda.is_available()
    timings: dict[str, list[float]] = {name: [] for name in systems}
    peaks = dict.fromkeys(systems, 0)
    for rank in systems.values():
        for query in queries[:warmup]:
            rank(query)
    rounds = [query for _ in range(repetitions) for query in queries]
    for query in progress(rounds, total=len(rounds), what="timing"):
        for name, rank in systems.items():
            if cuda:
                torch.cuda.reset_peak_memory_stats()
                torch.cuda.synchronize()
            started = time.perf_counter()
            rank(query)
            if cuda:
                torch.cuda.synchronize()
                peaks[name] = max(peaks[name], torch.cuda.max_memory_allocated())
            timings[name].append((time.perf_counter() - started) * 1000)
    table = pd.DataFrame(timings).agg(["median", lambda x: x.quantile(0.95), "count"]).T
    table.columns = ["median_ms", "p95_ms", "n_timings"]
    table["passages_per_s"] = passages_per_query / table["median_ms"] * 1000
    if cuda:
        table["peak_allocated_bytes"] = pd.Series(peaks)
    return table.astype({"n_timings": int}).rename_axis("system")


def weight_bytes(model: torch.nn.Module) -> int:
    """Bytes of a model's weights and buffers.

    >>> weight_bytes(torch.nn.Linear(2, 1))
    12
    """
    tensors = (*model.parameters(), *model.buffers())
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors)
