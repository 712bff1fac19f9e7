"""`rdl export`: a student's name in, a folder for other libraries out."""

from __future__ import annotations

from pathlib import Path

import pandas as pd

from rdl_core.commands.students import open_student, record_of
from rdl_core.corpus import Corpus
from rdl_core.export import export
from rdl_core.model_card import Difference, as_markdown

__all__ = ["export_student"]

_COMPARED = 256  # pairs of the corpus


def export_student(
    name: str | Path,
    folder: str | Path,
    *,
    query_tokens: int | None = None,
    passage_tokens: int | None = None,
    quantise: bool = False,
    corpus: Corpus | None = None,
    table: str | Path | None = None,
) -> list[Difference]:
    """Export a student, with what its training's manifest says on its card.

    Args:
        name: What `open_student` takes.
        folder: What `rdl_core.export.export` takes.
        query_tokens: What `open_student` takes.
        passage_tokens: Likewise.
        quantise: Whether an 8-bit ONNX file is written too.
        corpus: Its first pairs are those that the ONNX files are compared on; None: random words.
        table: What ``rdl evaluate --table`` wrote, for the card.

    Raises:
        ValueError: As for `open_student` and `export`; a text is missing; or the table is none.

    >>> [found] = export_student(profile.encoder, folder / "exported", query_tokens=8,
    ...                          passage_tokens=8)
    >>> (folder / "exported" / found.file).name
    'model.onnx'
    """
    measures = "" if table is None else as_markdown(_read(table))
    student = open_student(name, query_tokens=query_tokens, passage_tokens=passage_tokens)
    pairs = []
    if corpus:
        first = corpus.candidates[:_COMPARED]
        queries = corpus.queries.of(first["query_id"].tolist())
        pairs = list(zip(queries, corpus.passages.of(first["doc_id"].tolist()), strict=True))
    return export(
        student, folder, quantise=quantise, pairs=pairs, record=record_of(name), measures=measures
    )


def _read(table: str | Path) -> pd.DataFrame:
    try:
        frame = pd.read_csv(table).round(4)
    except ValueError as error:  # pandas' own are some
        raise ValueError(
            f"{table}: expected what rdl evaluate --table writes; given no CSV ({error}): write it "
            "anew"
        ) from None
    if not {"measure", "system", "mean"} <= set(frame.columns):
        raise ValueError(
            f"{table}: expected what rdl evaluate --table writes; given columns "
            f"{list(frame.columns)}: write it anew"
        )
    return frame.astype(object).fillna("")
