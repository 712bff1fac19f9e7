"""The data path at the size of MS MARCO, with made-up ids and tokens: what can be known without it.

Token stores are written in the layout of `TokenStore.build`, and lists as the parquet files of
Rank-DistiLLM have them. Then the study's own code opens, reads, draws and packs them, each kind of
work in a process of its own.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import pandas as pd
from transformers import AutoTokenizer

import rdl_study.bench as efficiency
from rdl_core.data.downloads import EMBEDDED_ENCODER, encoder_path
from rdl_core.tokens import PairTemplate, TokenStore
from rdl_study.bench import Job, System, race, summary
from rdl_study.bench.measure import Measured, keep
from rdl_study.store import machine

__all__ = ["MS_MARCO", "FullSize", "full_size_table", "make_full_size", "measure_full_size"]

_SYSTEMS = {
    "token store opened": "open_store", "lists made of a parquet file": "make_lists",
    "a batch drawn and packed": "draw_batch",
}  # fmt: skip
_AT_ONCE = 2**20  # passages made at once


@dataclass(frozen=True, kw_only=True)
class FullSize:
    """How much of everything there is."""

    n_passages: int
    """Passages in the token store."""
    n_queries: int
    """Queries, each with a list."""
    depth: int = 100
    """Passages in each list."""
    passage_tokens: int = 256
    """Longest passage that is packed; in the mean they have some 74 tokens, spread log-normally."""
    query_tokens: int = 32
    """Longest query that is packed."""
    n_lists: int = 32
    """Lists in a batch."""


#: MS MARCO's passages, and Rank-DistiLLM's lists.
MS_MARCO = FullSize(n_passages=8_841_823, n_queries=10_000)


def measure_full_size(size: FullSize, *, repetitions: int, folder: Path | None = None) -> Measured:
    """Time opening, list making and batches, and the memory of each.

    Args:
        size: How much there is.
        repetitions: How often each is done; batches ten times as often, each with other lists.
        folder: Gets ``full_size.csv`` and ``full_size.json``.

    Returns:
        The figures, as those of any race.

    >>> tiny = FullSize(n_passages=50, n_queries=4, depth=5, n_lists=2)
    >>> measure_full_size(tiny, repetitions=1).machines.index.tolist()[0]
    'token store opened'
    """
    started = datetime.now(UTC)
    rows, machines = [], []
    with tempfile.TemporaryDirectory() as made:
        work = make_full_size(size, Path(made))
        on_disk = sum(path.stat().st_size for path in Path(made).rglob("*") if path.is_file())
        for label, function in _SYSTEMS.items():  # one after the other: memory is not to be shared
            file = str(Path(efficiency.__file__).with_name("data_path.py"))
            calls = list(range(10 if function == "draw_batch" else 1))
            system = {label: System(function=function, file=file)}
            job = Job(systems=system, work=work, calls=calls, repetitions=repetitions, warmup=1)
            timed, of_process, _ = race(job)
            rows.append(timed)
            machines.append(of_process)
    manifest = {
        "part": "full_size", "what": "The data path, with made-up ids and tokens.",
        "sizes": asdict(size), "disk_bytes": on_disk, "repetitions": repetitions, **machine(),
        "finished": datetime.now(UTC).isoformat(timespec="seconds"),
        "wall_s": round((datetime.now(UTC) - started).total_seconds(), 1),
    }
    measured = Measured(timings=pd.concat(rows), machines=pd.concat(machines), manifest=manifest)
    if folder:
        keep(measured, folder)
    return measured


def full_size_table(measured: Measured) -> pd.DataFrame:
    """What each kind of work took, and the memory of its process, for people.

    >>> from rdl_study.bench.speed import recorded
    >>> full_size_table(recorded("full_size")).columns.tolist()
    ['what', 'median, ms', '95th percentile, ms', 'peak memory, MB', 'timings']
    """
    figures = summary(measured.timings)
    peak = measured.machines["peak_bytes"].loc[figures.index] / 1e6
    return pd.DataFrame(
        {
            "what": figures.index, "median, ms": figures["median_ms"].map("{:,.1f}".format),
            "95th percentile, ms": figures["p95_ms"].map("{:,.1f}".format),
            "peak memory, MB": peak.map("{:,.0f}".format), "timings": figures["n_timings"],
        }
    ).reset_index(drop=True)  # fmt: skip


def make_full_size(size: FullSize, folder: Path) -> dict:
    """Write stores, ids and lists into a folder, and say where they are.

    >>> tiny = FullSize(n_passages=50, n_queries=4, depth=5, n_lists=2)
    >>> len(TokenStore.open(Path(make_full_size(tiny, folder)["passages"])))
    50
    """
    draw = np.random.default_rng(0)
    tokenizer = AutoTokenizer.from_pretrained(encoder_path(EMBEDDED_ENCODER))
    work = {name: str(folder / name) for name in ("passages", "queries")}
    for name, n, mean in (("passages", size.n_passages, 74), ("queries", size.n_queries, 8)):
        TokenStore.build((), tokenizer, folder / name, max_tokens=512, total=0)
        _fill(folder / name, _lengths(n, mean, draw), draw, len(tokenizer))
    work |= {name: str(folder / f"{name}.parquet") for name in ("doc_ids", "query_ids", "candidates")}
    pd.DataFrame({"id": np.arange(size.n_passages).astype("str")}).to_parquet(work["doc_ids"])
    query_ids = (np.arange(size.n_queries) * 7).astype("str")
    pd.DataFrame({"id": query_ids}).to_parquet(work["query_ids"])
    _candidates(size, query_ids, draw).to_parquet(work["candidates"])
    limits = {name: getattr(size, name) for name in ("query_tokens", "passage_tokens", "n_lists")}
    return work | limits | {
        "list_size": size.depth, "template": asdict(PairTemplate.of(tokenizer)),
    }  # fmt: skip


def _lengths(n: int, mean: float, draw: np.random.Generator) -> Iterator[np.ndarray]:
    """Tokens of some passages at a time: log-normal, as texts' lengths about are."""
    for start in range(0, n, _AT_ONCE):
        drawn = draw.lognormal(np.log(mean) - 0.08, 0.4, min(_AT_ONCE, n - start))
        yield drawn.clip(1, 512).astype(np.int64)


def _fill(
    folder: Path, lengths: Iterator[np.ndarray], draw: np.random.Generator, n_ids: int
) -> None:
    """Put rows of random tokens into a finished store that has none."""
    said = json.loads((folder / "store.json").read_text())
    with (folder / "tokens.bin").open("ab") as tokens, (folder / "offsets.bin").open("ab") as offsets:
        for part in lengths:
            offsets.write(said["tokens"] + part.cumsum())
            n_tokens = int(part.sum())
            tokens.write(draw.integers(1000, n_ids, n_tokens, dtype=np.uint16))
            said["rows"], said["tokens"] = said["rows"] + len(part), said["tokens"] + n_tokens
    (folder / "store.json").write_text(json.dumps(said))


def _candidates(size: FullSize, query_ids: np.ndarray, draw: np.random.Generator) -> pd.DataFrame:
    """Lists as Rank-DistiLLM's parquet files have them, of passages from the whole collection."""
    step = size.n_passages // size.depth  # one of each stretch, so that none stands twice
    places = np.arange(size.depth) * step + draw.integers(0, step, (size.n_queries, size.depth))
    draw.permuted(places, axis=1, out=places)
    rank = np.tile(np.arange(1, size.depth + 1), size.n_queries)
    return pd.DataFrame(
        {
            "qid": np.repeat(query_ids, size.depth), "docno": places.ravel().astype("str"),
            "rank": rank, "score": 1.0 / rank,
        }
    )  # fmt: skip
