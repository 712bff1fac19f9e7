"""Export: a student as a folder that other libraries load unaided, with the same scores.

The folder holds what `transformers.AutoModelForSequenceClassification` and
`sentence_transformers.CrossEncoder` read, ``onnx/model.onnx`` for onnxruntime, and a model card.
The ONNX file is not taken on trust: it scores pairs beside the PyTorch model in batches of several
sizes, and a difference past `TOLERANCE` is an error.
"""

from __future__ import annotations

import logging
import os
import random
import shutil
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import torch
from transformers import (
    AutoModelForSequenceClassification,
    AutoTokenizer,
    BatchEncoding,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from rdl_core.cross_encoder import CrossEncoder
from rdl_core.model_card import Difference, model_card

__all__ = ["TOLERANCE", "export"]

#: Most that a score of the ONNX file may differ from PyTorch's.
TOLERANCE = 1e-4
_LARGEST_BATCH = 32
_ONE_FILE_BYTES = 2**30  # an ONNX file may have 2 GiB; weights past this go into one beside it


def export(
    student: CrossEncoder,
    folder: str | Path,
    *,
    quantise: bool = False,
    pairs: Sequence[tuple[str, str]] = (),
    record: Mapping[str, Any] | None = None,
    measures: str = "",
) -> list[Difference]:
    """Write a student for other libraries.

    Args:
        student: The cross-encoder; moved to the CPU, its tokenizer's ``model_max_length`` set to
            the tokens that it reads.
        folder: Gets ``model.safetensors``, the tokenizer, ``onnx/`` and ``README.md``. It takes its
            name when it is whole.
        quantise: Whether ``onnx/model_uint8.onnx`` is written too: weights as 8-bit integers, with
            a scale for each channel, activations quantised as they come.
        pairs: Queries and passages that the files are compared on; none: random words.
        record: Manifest of the run that trained the student, for the card.
        measures: Markdown for the card.

    Returns:
        For each ONNX file, how far its scores are from PyTorch's.

    Raises:
        ValueError: The folder is there and not empty, or the ONNX scores differ.

    >>> [found] = export(tiny_student, folder / "exported")
    >>> found.file, found.largest < TOLERANCE
    ('onnx/model.onnx', True)
    """
    folder = Path(folder)
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise ValueError(
            f"{folder}: expected a new or an empty folder; given one that holds something: name "
            "another, or delete it"
        )
    unfinished = folder.with_name(f"{folder.name}.partial")
    shutil.rmtree(unfinished, ignore_errors=True)
    student.to("cpu").tokenizer.model_max_length = (
        student.query_tokens + student.passage_tokens + student.template.n_tokens
    )
    try:
        student.save_pretrained(unfinished)
        (unfinished / "onnx").mkdir()
        differences = _write_onnx(unfinished, quantise, list(pairs) or _random_pairs(student))
        card = model_card(
            folder.name, student, record=record or {}, differences=differences,
            on_random_words=not pairs, measures=measures,
        )
        (unfinished / "README.md").write_text(card, encoding="utf-8")
        os.replace(unfinished, folder)  # also where an empty one is
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)
    return differences


def _write_onnx(
    folder: Path, quantise: bool, pairs: Sequence[tuple[str, str]]
) -> list[Difference]:
    """ONNX files of the model that transformers finds in a folder, compared with it."""
    model = AutoModelForSequenceClassification.from_pretrained(folder, use_safetensors=True).eval()
    tokenizer = AutoTokenizer.from_pretrained(folder)
    columns = (map(list, zip(*batch, strict=True)) for batch in _batches(pairs))
    batches = [
        tokenizer(queries, passages, padding=True, truncation=True, return_tensors="pt")
        for queries, passages in columns
    ]
    expected = _scores(batches, lambda batch: model(**batch).logits.numpy())
    file = folder / "onnx" / "model.onnx"
    with _quiet():
        _trace(model, tokenizer, file)
    differences = [_difference(folder, file, batches, expected)]
    if not differences[0].largest <= TOLERANCE:  # nor NaN
        raise ValueError(
            f"expected ONNX scores within {TOLERANCE} of PyTorch's; given a difference of "
            f"{differences[0].largest}: report this architecture, {model.config.model_type}"
        )
    if quantise:
        from onnxruntime.quantization import QuantType, quantize_dynamic  # half a second for a rare use

        small = file.with_name("model_uint8.onnx")
        with _quiet():
            # Of six settings tried on a student of MiniLM, this one came nearest.
            quantize_dynamic(file, small, weight_type=QuantType.QUInt8, per_channel=True)
        differences.append(_difference(folder, small, batches, expected))
    return differences


def _trace(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, file: Path) -> None:
    """Any number of pairs of any length, by the inputs that the tokenizer gives."""
    inputs = tokenizer(["a", "b"], ["c", "d"], return_tensors="pt")
    torch.onnx.export(
        model, kwargs=dict(inputs), f=file, input_names=list(inputs), output_names=["logits"],
        dynamic_shapes={name: {0: "batch", 1: "sequence"} for name in inputs},
        external_data=model.get_memory_footprint() > _ONE_FILE_BYTES, verbose=False,
    )


def _difference(
    folder: Path, file: Path, batches: list[BatchEncoding], expected: np.ndarray
) -> Difference:
    session = onnxruntime.InferenceSession(file, providers=["CPUExecutionProvider"])

    def run(batch: BatchEncoding) -> np.ndarray:
        return session.run(["logits"], {name: value.numpy() for name, value in batch.items()})[0]

    away = np.abs(_scores(batches, run) - expected)
    return Difference(
        file=str(file.relative_to(folder)), n_pairs=len(away), largest=float(away.max()),
        mean=float(away.mean()), spread=float(expected.std()),
    )


@torch.inference_mode()
def _scores(
    batches: list[BatchEncoding], run: Callable[[BatchEncoding], np.ndarray]
) -> np.ndarray:
    return np.concatenate([run(batch)[:, 0] for batch in batches])


def _batches(pairs: Sequence[tuple[str, str]]) -> Iterator[Sequence[tuple[str, str]]]:
    """Batches of 1, 2, 4, ... pairs."""
    start, size = 0, 1
    while start < len(pairs):
        yield pairs[start : start + size]
        start, size = start + size, min(2 * size, _LARGEST_BATCH)


def _random_pairs(student: CrossEncoder) -> list[tuple[str, str]]:
    """As many as fill a batch of each size, of words from the vocabulary, of all lengths."""
    draw, tokenizer = random.Random(0), student.tokenizer
    words = sorted(set(tokenizer.get_vocab().values()) - set(tokenizer.all_special_ids))

    def text(most: int) -> str:
        return tokenizer.decode(draw.choices(words, k=draw.randint(1, most)))

    n_pairs = 2 * _LARGEST_BATCH - 1
    return [(text(student.query_tokens), text(student.passage_tokens)) for _ in range(n_pairs)]


@contextmanager
def _quiet() -> Iterator[None]:
    """Without warnings of the exporter about itself, and of what to do before quantising."""
    loggers = [logging.getLogger(name) for name in ("torch.onnx", "root")]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)
