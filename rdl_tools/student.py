"""What commands with a student have in common: how it is opened, and how candidates come to it."""

import logging
from collections.abc import Iterator
from dataclasses import replace

import numpy as np
import pandas as pd

from rdl_core.cross_encoder import LIMITS, CrossEncoder
from rdl_core.data.collections import Corpus
from rdl_core.devices import default_device, resolve_precision
from rdl_core.tokens import TokenCorpus
from rdl_tools.config import AdoptConfig, RerankConfig, ServeConfig

__all__ = ["open_student", "parts_of", "tokens_of"]

_PAIRS_IN_MEMORY = 2**15  # whose texts and tokens are held
_log = logging.getLogger(__name__)


def open_student(config: RerankConfig | AdoptConfig | ServeConfig) -> tuple[CrossEncoder, str]:
    """The student of a configuration, on its device, and the precision in which it computes."""
    limits = {name: getattr(config, name) for name in LIMITS}
    student = CrossEncoder.from_pretrained(config.student, **limits, trained=True).to(default_device())
    return student, resolve_precision(config.precision, student.device)


def parts_of(
    corpus: Corpus, student: CrossEncoder, *, depth: int | None = None
) -> Iterator[tuple[pd.DataFrame, TokenCorpus]]:
    """Candidates of some queries at a time, and the tokens of those down to a depth; None: of all."""
    for part in corpus.parts(_PAIRS_IN_MEMORY):
        frame = part.candidates.sort_values(["query_id", "rank"])
        tokens = tokens_of(replace(part, candidates=frame[frame["rank"] <= (depth or np.inf)]), student)
        yield frame, tokens
        _log.info("%d queries ranked", len(tokens.query_ids))


def tokens_of(corpus: Corpus, student: CrossEncoder) -> TokenCorpus:
    """A corpus' texts, tokenised for a student, in memory."""
    query_ids, doc_ids = corpus.ids("query_id"), corpus.ids("doc_id")
    queries = pd.DataFrame({"query_id": query_ids, "query": [*corpus.queries.each(query_ids)]})
    passages = pd.DataFrame({"doc_id": doc_ids, "text": [*corpus.passages.each(doc_ids)]})
    return TokenCorpus.of(queries, passages, student.tokenizer)
