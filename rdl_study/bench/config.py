"""Options of ``rdl bench``, ``rdl precision`` and ``rdl size``; importing them needs no torch."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from rdl_core.config import Positive, config

#: What can be raced; `rdl_study.bench.measure.parts` says what each part compares.
Part = Literal["rank", "engine", "train", "sample", "depth", "length", "list_size", "llm", "limit"]


@config
class _Ranking:
    profile: str = "mini"
    """Profile whose test candidates are ranked."""
    out: str = "runs/bench"
    """Folder of the figures."""


@config
class BenchConfig(_Ranking):
    """Systems to race on the same passages, weights and lengths."""

    parts: tuple[Part, ...] = ()
    """rank, engine, train, sample, depth, length, list_size, llm, limit; none: all of them."""
    model: str | None = None
    """Folder, hub id or name of weights; none: the profile's encoder. A missing head is random."""
    queries: Positive = 8
    """Test queries that are ranked."""
    repetitions: Positive = 5
    """How often each of them is ranked."""
    peers: bool = False
    """Race Lightning IR and other trainers, too; makes an environment of its own, .venv-peers."""
    llm: Literal["7B", "toy"] = "toy"
    """Sizes of the listwise LLM, and of the students beside it."""


@config
class PrecisionConfig(_Ranking):
    """A student to rank with in each precision; that it never saw the test queries is not checked."""

    model: str
    """Folder or hub id of a trained student."""


@config
class SizeConfig:
    """A made-up collection of MS MARCO's size, which takes 2 GB in TMPDIR meanwhile."""

    passages: Annotated[int, Field(ge=100)] = 8_841_823
    """Made-up passages."""
    queries: Positive = 10_000
    """Queries, each with a list of 100."""
    repetitions: Positive = 5
    """How often each step is timed."""
    out: str = "runs/bench"
    """Folder of the figures."""
