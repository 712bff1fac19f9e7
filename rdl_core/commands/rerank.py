"""`rdl rerank`: a file of candidates in, a TREC run out."""

from __future__ import annotations

import logging
import os
from pathlib import Path
from tempfile import TemporaryDirectory

from rdl_core.corpus import Corpus
from rdl_core.cross_encoder import CrossEncoder
from rdl_core.data.formats import write_run
from rdl_core.tokens import TokenStore
from rdl_core.devices import resolve_precision
from rdl_core.evaluate import settle_ties
from rdl_core.rerank import rerank

__all__ = ["rerank_corpus"]

_PAIRS_AT_ONCE = 2**15  # whose texts and tokens are in memory
_log = logging.getLogger(__name__)


def rerank_corpus(
    student: CrossEncoder, corpus: Corpus, out: str | Path, *, precision: str = "auto",
    tag: str = "rdl",
) -> None:
    """Write a run of a student's scores, some queries at a time.

    Args:
        student: The cross-encoder, on the device that computes.
        corpus: What it ranks. Equal scores keep the order of its candidates.
        out: The run, with strictly decreasing scores; packed if its name ends in ``.gz``. It takes
            its name when it is whole.
        precision: Of the layers, ``"auto"`` or as in `rdl_core.rerank.rerank`.
        tag: Name of the system in the run, without blanks.

    Raises:
        ValueError: As for `rdl_core.rerank.rerank`; a text is missing; or an id has blanks.

    >>> from rdl_core.corpus import Texts
    >>> texts = Texts(what="text", source="this", find=lambda ids: dict.fromkeys(ids, "a fox"))
    >>> rerank_corpus(tiny_student, Corpus(candidates=frame, queries=texts, passages=texts),
    ...               folder / "own.run", precision="float32")
    >>> [line.split()[2] for line in (folder / "own.run").read_text().splitlines()]
    ['a', 'b', 'c']
    """
    out, done, n_queries = Path(out), 0, len(corpus.ids("query_id"))
    out.parent.mkdir(parents=True, exist_ok=True)
    unfinished = out.with_name(f"{out.name}.partial")
    precision = resolve_precision(precision, student.device)
    try:
        with TemporaryDirectory() as beside, unfinished.open("wb") as whole:
            for part in corpus.parts(_PAIRS_AT_ONCE):
                query_ids, doc_ids = part.ids("query_id"), part.ids("doc_id")
                queries = TokenStore.of_texts(part.queries.of(query_ids), student.tokenizer)
                passages = TokenStore.of_texts(part.passages.of(doc_ids), student.tokenizer)
                run = rerank(
                    student, part.candidates, queries, passages, query_ids=query_ids,
                    doc_ids=doc_ids, precision=precision,
                )
                piece = Path(beside) / out.name
                write_run(settle_ties(run, part.candidates), piece, tag=tag)
                whole.write(piece.read_bytes())  # gzip files end to end are one, too
                done += len(query_ids)
                _log.info("%s: %d of %d queries", out, done, n_queries)
        os.replace(unfinished, out)
    finally:
        unfinished.unlink(missing_ok=True)
