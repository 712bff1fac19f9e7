"""First stages: BM25, a dense bi-encoder, random passages; from frames of text to frames of candidates.

All take queries (``query_id``, ``query``) and passages (``doc_id``, ``text``) and give ``query_id``,
``doc_id``, ``rank`` (1 is best) and ``score``, at most `depth` rows per query.

Reference: Robertson & Zaragoza, FnTIR 2009 (BM25); Lù, 2024 (bm25s); Reimers & Gurevych, EMNLP 2019.
"""

import hashlib
import logging
import sys
from collections.abc import Sequence

import bm25s
import numpy as np
import pandas as pd
import torch
from Stemmer import Stemmer
from torch.nn.functional import normalize

from rdl_core.data.downloads import embedded_path
from rdl_core.devices import PRECISIONS, default_device, resolve_precision
from rdl_core.words import bigrams

__all__ = ["bm25", "dense", "encode", "random_candidates"]

_SCORES_AT_ONCE = 2**28  # of queries and all passages: 1 GiB
_log = logging.getLogger(__name__)


def bm25(queries: pd.DataFrame, passages: pd.DataFrame, *, depth: int) -> pd.DataFrame:
    """Candidates by BM25 (k1 = 1.2, b = 0.75, English stop words, Snowball's English stemmer).

    Passages that share no word with a query are left out; stop words and single letters are no words.
    Scripts without spaces are indexed by pairs of characters.
    """
    bars, index = sys.stderr.isatty(), bm25s.BM25(k1=1.2, b=0.75)
    options = {"stopwords": "en", "stemmer": Stemmer("english"), "show_progress": False}
    texts = passages["text"], queries["query"]
    words, query_words = (bm25s.tokenize(list(map(bigrams, x)), **options) for x in texts)
    if not (query_words.ids and words.vocab):  # which bm25s does not take
        _log.warning("BM25: no passage or no query has a word, so that there are no candidates")
        return _candidates(queries, passages, np.empty((len(queries), 0), np.int64), np.empty((0, 0)))
    index.index(words, show_progress=bars)
    rows, scores = index.retrieve(query_words, k=min(depth, len(passages)), show_progress=bars)
    frame = _candidates(queries, passages, rows.astype(np.int64), scores)
    return frame[frame["score"] > 0].reset_index(drop=True)


def random_candidates(
    queries: pd.DataFrame, passages: pd.DataFrame, *, depth: int, seed: int = 0
) -> pd.DataFrame:
    """Passages drawn uniformly for each query, in the order in which they were drawn.

    Draws depend on query id, seed and number of passages alone; the score is minus the rank.
    """
    depth = min(depth, len(passages))
    rows = np.empty((len(queries), depth), np.int64)
    for row, query_id in zip(rows, queries["query_id"], strict=True):
        key = hashlib.blake2b(f"{seed} {query_id}".encode(), digest_size=8).digest()
        generator = np.random.default_rng(int.from_bytes(key))
        row[:] = generator.choice(len(passages), depth, replace=False)
    scores = np.broadcast_to(-np.arange(1.0, depth + 1), rows.shape)
    return _candidates(queries, passages, rows, scores)


def encode(texts: Sequence[str], encoder: str, *, max_tokens: int, queries: bool) -> np.ndarray:
    """Unit vectors of texts from a bi-encoder, float32 ``[n, dim]``; each text is cut to `max_tokens`.

    `encoder` is the embedded one, or a folder or hub id of a sentence-transformers model. Its prompt
    for `queries` or for passages, if it names one, goes before each text.
    """
    from sentence_transformers import SentenceTransformer  # two seconds; most processes encode nothing

    device = default_device()
    own = {"dtype": PRECISIONS[resolve_precision("auto", device)], "use_safetensors": True}
    more = {"device": str(device), "trust_remote_code": False, "model_kwargs": own}
    model = SentenceTransformer(embedded_path(encoder), **more)
    model.max_seq_length = max_tokens
    to_vectors = model.encode_query if queries else model.encode_document
    vectors = to_vectors(list(texts), show_progress_bar=sys.stderr.isatty())
    shape = len(texts), model.get_embedding_dimension()
    return normalize(torch.from_numpy(vectors).float().reshape(shape)).numpy()  # in float32: exact


def dense(
    queries: pd.DataFrame, passages: pd.DataFrame, query_vectors: np.ndarray,
    passage_vectors: np.ndarray, *, depth: int,
) -> pd.DataFrame:  # fmt: skip
    """Candidates by the inner product of vectors, float32 ``[n, dim]``; exact, no index."""
    of_passages, k = torch.from_numpy(passage_vectors).T, min(depth, len(passages))
    n_queries = max(1, _SCORES_AT_ONCE // max(1, len(passages)))
    best = [(x @ of_passages).topk(k) for x in torch.from_numpy(query_vectors).split(n_queries)]
    scores, rows = map(torch.cat, zip(*best, strict=True))
    return _candidates(queries, passages, rows.numpy(), scores.numpy())


def _candidates(
    queries: pd.DataFrame, passages: pd.DataFrame, rows: np.ndarray, scores: np.ndarray
) -> pd.DataFrame:
    """Candidates from rows of the passages ``[n_queries, depth]``, best first, and their scores."""
    n, depth = rows.shape
    return pd.DataFrame({
        "query_id": np.repeat(queries["query_id"].to_numpy(object), depth),
        "doc_id": passages["doc_id"].to_numpy(object)[rows.ravel()],
        "rank": np.tile(np.arange(1, depth + 1), n), "score": scores.ravel(),
    })  # fmt: skip
