"""A student of the study as a folder that other libraries load, and a look at what they make of it."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path

import numpy as np
import onnxruntime
import pandas as pd
import torch

from rdl_core.cross_encoder import CrossEncoder
from rdl_core.data.collections import load
from rdl_core.tokens import TokenStore
from rdl_core.export import export
from rdl_core.model_card import as_markdown
from rdl_study.candidates import lists
from rdl_study.jobs import StudentConfig, student
from rdl_study.store import Run, obtain
from rdl_study.tables import Results, differences, display_table

__all__ = ["exported", "loaded_elsewhere"]

_PAIRS = 64


def exported(results: Results, system: StudentConfig) -> Run:
    """Export a student, its card with the measures of a comparison.

    Args:
        results: What the card says of its effectiveness.
        system: The student.

    Returns:
        The run; ``student/`` in its folder is what others load, ``differences`` in its manifest how
        far the ONNX scores are from PyTorch's.

    >>> run = exported(results, profile.student())
    >>> (run.folder / "student" / "README.md").exists()
    True
    """
    trained = student(system)
    profile = results.profile
    table = display_table(differences(results), profile.measure)

    def write(folder: Path) -> dict:
        model = CrossEncoder.from_pretrained(
            trained.folder / "model", query_tokens=system.query_tokens,
            passage_tokens=system.passage_tokens,
        )
        found = export(
            model, folder / "student", pairs=_pairs(results), record=trained.manifest,
            measures=as_markdown(table),
        )
        return {"differences": [asdict(one) for one in found]}

    return obtain(
        "export", system, data=table.to_csv(index=False), code=("rdl_core.export",),
        inputs=[trained.manifest["id"]], compute=write,
    )


def loaded_elsewhere(run: Run, results: Results) -> pd.DataFrame:
    """What two other libraries make of the exported folder, on pairs that they need not cut.

    Args:
        run: From `exported`.
        results: Where the pairs come from.

    Returns:
        ``library``, ``pairs`` and ``largest difference``: of its scores from ours.

    >>> run = exported(results, profile.student())
    >>> loaded_elsewhere(run, results)["library"].tolist()
    ['sentence-transformers', 'onnxruntime']
    """
    from sentence_transformers import CrossEncoder as TheirCrossEncoder  # takes two seconds

    folder = run.folder / "student"
    limits = {name: run.manifest["config"][name] for name in ("query_tokens", "passage_tokens")}
    ours = CrossEncoder.from_pretrained(folder, **limits).eval()
    queries, passages = (
        TokenStore.of_texts(texts, ours.tokenizer) for texts in zip(*_pairs(results), strict=True)
    )
    rows = torch.arange(len(queries))
    whole = (queries.lengths(rows, 10**6) <= ours.query_tokens) & (
        passages.lengths(rows, 10**6) <= ours.passage_tokens
    )
    rows = rows[whole]
    with torch.inference_mode():
        expected = ours.score(queries, passages, rows, rows, token_budget=4096).numpy()
    pairs = [_pairs(results)[row] for row in rows.tolist()]
    found = {
        "sentence-transformers": TheirCrossEncoder(str(folder)).predict(
            pairs, show_progress_bar=False
        ),
        "onnxruntime": _by_onnx(folder, ours, pairs),
    }
    away = [f"{np.abs(scores - expected).max():.1e}" for scores in found.values()]
    return pd.DataFrame({"library": list(found), "pairs": len(pairs), "largest difference": away})


def _by_onnx(folder: Path, ours: CrossEncoder, pairs: list[tuple[str, str]]) -> np.ndarray:
    session = onnxruntime.InferenceSession(
        folder / "onnx" / "model.onnx", providers=["CPUExecutionProvider"]
    )
    inputs = ours.tokenizer(
        *map(list, zip(*pairs, strict=True)), padding=True, truncation=True, return_tensors="np"
    )
    return session.run(["logits"], dict(inputs))[0][:, 0]


def _pairs(results: Results) -> list[tuple[str, str]]:
    """The first test queries with their candidates, as texts."""
    test = results.profile.test
    candidates, collection = lists(test).head(_PAIRS), load(test.collection)
    queries = collection.queries.set_index("query_id")["query"]
    passages = collection.passages_of(candidates["doc_id"]).set_index("doc_id")["text"]
    return list(
        zip(queries[candidates["query_id"]], passages[candidates["doc_id"]], strict=True)
    )
