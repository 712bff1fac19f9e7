"""Options of ``rdl bench``; importing them needs no torch."""

from __future__ import annotations

from typing import Literal

from rdl_core.config import Positive, config

#: What can be raced; `rdl_study.bench.measure.parts` says what each part compares.
Part = Literal["rank", "runtimes", "engine", "train", "sample", "depth", "length", "list_size",
               "cores", "llm", "window", "limit"]  # fmt: skip


@config
class BenchConfig:
    """Systems to race on the same passages, weights and lengths."""

    profile: str = "mini"
    """Profile whose test candidates are ranked."""
    out: str = "runs/bench"
    """Folder of the figures."""
    parts: tuple[Part | Literal["gpu"], ...] = ()
    """Parts, as `Part` names them; none: all of them; gpu: what needs a GPU, alone."""
    model: str | None = None
    """Folder, hub id or name of weights; none: the profile's encoder. A missing head is random."""
    queries: Positive = 8
    """Test queries that are ranked."""
    repetitions: Positive = 5
    """How often each of them is ranked."""
    peers: bool = False
    """Race others, too, in environments of their own, which are made: .venv-peers, .venv-infinity."""
    llm: Literal["7B", "toy"] = "toy"
    """Sizes of the listwise LLM, and of the students beside it."""
    budget_s: Positive = 660
    """Seconds that gpu may take."""
