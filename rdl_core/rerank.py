"""Re-ranking: scores of candidates by a student, on any device."""

from collections.abc import Callable
from functools import partial

import numpy as np
import pandas as pd
import torch

from rdl_core.cpu import engine
from rdl_core.cross_encoder import CrossEncoder
from rdl_core.devices import fitting, resolve_precision
from rdl_core.evaluate import per_query, settle_ties
from rdl_core.lists import RankedLists
from rdl_core.progress import progress
from rdl_core.tokens import TokenCorpus

__all__ = ["dev_measure", "rerank", "token_budget_of"]

_PAIRS_AT_ONCE = 1024  # scored between two lines of progress


def rerank(
    student: CrossEncoder, candidates: pd.DataFrame, corpus: TokenCorpus, *,
    token_budget: int | None = None, precision: str = "float32",
) -> pd.DataFrame:  # fmt: skip
    """Score candidates ``query_id, doc_id, rank``, whose texts are in the corpus.

    Gives ``query_id, doc_id, score`` (float32), grouped by query; ties are for
    `rdl_core.evaluate.settle_ties`. `precision` is a key of `rdl_core.devices.PRECISIONS`, or on a
    CPU ``"int8"``. A batch has at most `token_budget` tokens, halved after each out-of-memory error;
    None suits the device. ValueError for an id that the corpus lacks, or a score that is not finite.
    """
    lists = RankedLists.from_frame(candidates, corpus)
    query_rows = lists.query_rows[:, None].expand_as(lists.mask)
    rows = torch.stack([query_rows, lists.passage_rows])[:, lists.mask]  # of pairs
    queries, passages = (x.to(student.device) for x in (corpus.queries, corpus.passages))
    starts = range(0, rows.shape[1], _PAIRS_AT_ONCE)
    scorer, scores = engine(student, precision), [torch.empty(0)]
    budget = token_budget or token_budget_of(student.device)
    for start in progress(starts, total=len(starts), what="re-ranking"):
        pairs = rows[:, start : start + _PAIRS_AT_ONCE].to(student.device)
        some, budget = fitting(partial(scorer.score, queries, passages, *pairs), budget)
        scores.append(some.cpu())
    score = torch.cat(scores).numpy()
    query_ids = corpus.query_ids.to_numpy(object)[rows[0].numpy()]
    doc_ids = corpus.doc_ids.to_numpy(object)[rows[1].numpy()]
    if len(broken := query_ids[~np.isfinite(score)]):
        told = f"the student scored nan or infinity for query {broken[0]!r}"
        raise ValueError(f"{told}: its weights are broken; train it again with a lower learning rate")
    return pd.DataFrame({"query_id": query_ids, "doc_id": doc_ids, "score": score})


def token_budget_of(device: torch.device) -> int:
    """Tokens in a batch: for a CPU core with 32 MiB of cache, fastest; for a GPU, enough to be busy."""
    return 65_536 if device.type == "cuda" else 1024


def dev_measure(
    candidates: pd.DataFrame, qrels: pd.DataFrame, corpus: TokenCorpus, precision: str
) -> Callable[[CrossEncoder], float]:
    """Mean nDCG@10 of candidates by a student, as `rdl_core.distill.distill` takes it for ``dev``."""

    def measure(student: CrossEncoder) -> float:
        precise = resolve_precision(precision, student.device)
        run = settle_ties(rerank(student, candidates, corpus, precision=precise), candidates)
        return float(per_query(qrels, run)["nDCG@10"].mean())

    return measure
