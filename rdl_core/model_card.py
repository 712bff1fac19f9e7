"""The model card of an exported student: what is known of it, and how to load it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib import metadata
from typing import Any

import pandas as pd

from rdl_core.cross_encoder import CrossEncoder

__all__ = ["Difference", "as_markdown", "model_card"]

_CARD = """\
---
library_name: sentence-transformers
pipeline_tag: text-ranking
tags:
- cross-encoder
- reranker
- distillation
---

# {name}

A cross-encoder ({kind}, {n_weights:.1f} million weights): it reads a query and a passage and gives
one score, a logit; higher is better. Written by rdl_core {version}.

## Data and teacher

{data}

## Training

{training}

## Measures

{measures}

## Limits

- rdl_core cuts queries to {query_tokens} tokens and passages to {passage_tokens}. The libraries
  below cut a pair to {total_tokens} tokens, from the longer text: where a text is longer than its
  limit, the score may be another one.
- Scores are for ordering the passages of one query. They are no probabilities.
- Of what this card does not list, such as other domains and languages, nothing is known.
- The licence follows from those of the encoder and the data, and is not stated here.

## Files

{files}

## Use

`folder` is this folder, or the id under which it stands on the Hugging Face hub.{code}

```python
from sentence_transformers import CrossEncoder

model = CrossEncoder(folder{trust})
scores = model.predict([("what is a fox", "A fox is a small wild dog."), ("what is a fox", "Tea.")])
```

```python
import torch
from transformers import AutoModelForSequenceClassification, AutoTokenizer

tokenizer = AutoTokenizer.from_pretrained(folder)
model = AutoModelForSequenceClassification.from_pretrained(folder{trust}).eval()
queries, passages = ["what is a fox"] * 2, ["A fox is a small wild dog.", "Tea."]
inputs = tokenizer(queries, passages, padding=True, truncation=True, return_tensors="pt")
with torch.inference_mode():
    scores = model(**inputs).logits[:, 0]
```

```python
import onnxruntime
from transformers import AutoTokenizer

tokenizer = AutoTokenizer.from_pretrained(folder)
session = onnxruntime.InferenceSession(f"{{folder}}/onnx/model.onnx")
queries, passages = ["what is a fox"] * 2, ["A fox is a small wild dog.", "Tea."]
inputs = tokenizer(queries, passages, padding=True, truncation=True, return_tensors="np")
scores = session.run(["logits"], dict(inputs))[0][:, 0]
```
"""


_OWN_CODE = """
The model is none of transformers' own: `similarity.py` beside the weights defines it, and loading runs
that file where it is told to trust it. The ONNX file needs none."""


@dataclass(frozen=True, kw_only=True)
class Difference:
    """How far the scores of an exported file are from PyTorch's.

    >>> Difference(file="onnx/model.onnx", n_pairs=2, largest=2e-6, mean=1e-6, spread=3.0).n_pairs
    2
    """

    file: str
    """Its path in the folder."""
    n_pairs: int
    """Pairs that both scored."""
    largest: float
    """Largest absolute difference."""
    mean: float
    """Mean absolute difference."""
    spread: float
    """Standard deviation of PyTorch's scores, to see the others in proportion."""


def model_card(
    name: str,
    student: CrossEncoder,
    *,
    record: Mapping[str, Any],
    differences: Sequence[Difference],
    on_random_words: bool,
    measures: str = "",
) -> str:
    """Text of a model card, in Markdown with the hub's header.

    Args:
        name: Title.
        student: The cross-encoder.
        record: Manifest of the run that trained it; empty where nobody recorded one.
        differences: Of the ONNX files.
        on_random_words: Whether these were measured on random words.
        measures: Markdown that says how well it ranks.

    >>> card = model_card("fox", tiny_student, record={}, differences=[], on_random_words=True)
    >>> "cuts queries to 8 tokens" in card, "# fox" in card
    (True, True)
    """
    config = record.get("config", {})
    stages = config.get("stages", ())
    about = {key: config.get(key) for key in ("encoder", "seed")}
    about |= {key: record.get(key) for key in ("device", "finished", "commit")}
    about |= record.get("versions", {})
    own_code = "auto_map" in student.model.config.to_dict()
    settings = [f"- {key}: {value}" for key, value in about.items() if value is not None]
    return _CARD.format(
        name=name,
        version=metadata.version("rdl-core"),
        kind=student.model.config.model_type,
        n_weights=student.model.num_parameters() / 1e6,
        data=_table(stages, "lists"),
        training="\n".join([_table(stages, "training"), "", *settings]),
        measures=measures or "None were given when this folder was written.",
        query_tokens=student.query_tokens,
        passage_tokens=student.passage_tokens,
        total_tokens=student.tokenizer.model_max_length,
        files=_files(differences, on_random_words),
        trust=", trust_remote_code=True" if own_code else "",
        code=_OWN_CODE if own_code else "",
    )


def as_markdown(table: pd.DataFrame) -> str:
    """A table in Markdown.

    >>> print(as_markdown(pd.DataFrame({"measure": ["nDCG@10"], "mean": [0.5]})))
    | measure | mean |
    | --- | --- |
    | nDCG@10 | 0.5 |
    """
    rows = [list(table.columns), ["---"] * table.shape[1], *table.to_numpy(object).tolist()]
    cells = ([str(cell).replace("|", "/") for cell in row] for row in rows)
    return "\n".join(f"| {' | '.join(row)} |" for row in cells)


def _table(stages: Sequence[Mapping[str, Any]], part: str) -> str:
    """What one part of each stage's configuration says, a column for each stage."""
    if not stages:
        return "Not recorded: the student came without the manifest of its training."
    table = pd.DataFrame([stage[part] for stage in stages], dtype=object).T
    said = table.map(lambda value: value not in (None, "", {}) and value == value).any(axis=1)
    numbered = [f"stage {number}" for number in range(1, len(stages) + 1)]
    return as_markdown(table[said].set_axis(numbered, axis=1).reset_index(names=part))


def _files(differences: Sequence[Difference], on_random_words: bool) -> str:
    lines = ["- `model.safetensors`: weights in float32."]
    for found in differences:
        pairs = f"{found.n_pairs} pairs of {'random words' if on_random_words else 'texts'}"
        lines.append(
            f"- `{found.file}`: on {pairs}, scores differ from PyTorch's by {found.largest:.2g} at "
            f"most and {found.mean:.2g} on average; the scores' standard deviation is "
            f"{found.spread:.2g}."
        )
    return "\n".join(lines)
