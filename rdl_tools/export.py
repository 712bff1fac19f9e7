"""Export: a student as a folder that other libraries load unaided, with the same scores.

It holds files of transformers and sentence-transformers, ``onnx/model.onnx``, and a model card.
"""

import functools
import logging
import random
import re
import warnings
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import ir_datasets
import numpy as np
import onnx
import onnxruntime
import pandas as pd
import torch
from huggingface_hub import HfApi, ModelCardData
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from rdl_core.cross_encoder import LIMITS, CrossEncoder, training_record
from rdl_core.data.collections import read_corpus
from rdl_core.data.downloads import EMBEDDED_ENCODER
from rdl_core.files import partial
from rdl_tools.adopt import Adopted, adopted_of, write_adopted
from rdl_tools.config import ExportConfig

__all__ = ["TOLERANCE", "export", "export_files"]

TOLERANCE = 1e-4  #: Largest difference between scores of the ONNX file and of PyTorch.
_markdown = functools.partial(pd.DataFrame.to_markdown, index=False, disable_numparse=True)
_ONE_FILE_BYTES = 2**30  # an ONNX file may have 2 GiB; larger weights go into a file beside it
_CARD = """\
---
{metadata}
---

# {name}
A cross-encoder ({kind}, {n_weights:.1f} million weights): from a query and a passage it computes a
score, a logit; higher is better.

## Data, teacher and training
{training}

## Measures
{measures}

## Limits
- rdl-core cuts queries to {query_tokens} tokens and passages to {passages}. The libraries below
  cut the longer text until the pair has {total_tokens} tokens: scores of longer texts can differ.
- Scores order the passages of one query. They are not probabilities.
- Nothing is known about domains and languages that this card does not list.
- Licence: {licence}. The encoder and the data have theirs.

## Files
`model.safetensors` has the weights in float32. Differences between the scores of ONNX files and of
PyTorch, on pairs of {words}, beside the standard deviation (spread) of PyTorch's:

{differences}

## Use
`folder` is this folder, or its id on the Hugging Face hub. Three libraries, the same scores:

```python
queries, passages = ["what is a fox"] * 2, ["A fox is a small wild dog.", "Tea."]

from sentence_transformers import CrossEncoder
scores = CrossEncoder(folder).predict(list(zip(queries, passages)))

from transformers import AutoModelForSequenceClassification, AutoTokenizer
inputs = AutoTokenizer.from_pretrained(folder)(
    queries, passages, padding=True, truncation=True, return_tensors="pt")
scores = AutoModelForSequenceClassification.from_pretrained(folder)(**inputs).logits[:, 0]

import onnxruntime
session = onnxruntime.InferenceSession(f"{{folder}}/onnx/model.onnx")
scores = session.run(["logits"], {{name: x.numpy() for name, x in inputs.items()}})[0][:, 0]
```
"""


def export(
    student: CrossEncoder, folder: str | Path, *, quantise: bool = False,
    pairs: Sequence[tuple[str, str]] = (), record: Mapping[str, Any] | None = None, measures: str = "",
    metrics: Iterable[str] = (), licence: str = "other", adopted: Adopted | None = None,
) -> pd.DataFrame:  # fmt: skip
    """Write a student for other libraries, to a new or empty folder, named so once it is whole.

    With `quantise` there is ``onnx/model_int8.onnx``, too: weights of 8 bits, products of floats. The
    card has `record`, the training's manifest, `measures`, Markdown, their names, `metrics`, the
    `licence`, an id of the hub or words, and what was `adopted`. The student moves to the CPU, with its
    tokenizer's limit its own. Returns for each ONNX ``file`` how far scores of `pairs` (none: of random
    words) are from PyTorch's: ``n_pairs``, ``largest`` and ``mean`` difference, ``spread`` (standard
    deviation of PyTorch's). ValueError if ``model.onnx`` differs by more than `TOLERANCE`.
    """
    folder = Path(folder)
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise ValueError(f"{folder} is not an empty folder: name a new one, or delete it")
    model, tokenizer, template = student.to("cpu").model, student.tokenizer, student.template
    tokenizer.model_max_length = student.query_tokens + student.passage_tokens + template.n_tokens
    passages = str(student.passage_tokens)
    if student.chunks > 1:
        passages = f"{student.chunks} pieces of {passages}, the best of which counts"
    with partial(folder) as unfinished:  # `folder` may be there, empty
        student.save_pretrained(unfinished)
        differences = _write_onnx(unfinished, quantise, list(pairs) or _random_pairs(student))
        short = differences.map(lambda x: f"{x:.2g}" if isinstance(x, float) else x)
        card = _CARD.format(
            metadata=_metadata(record or {}, metrics, licence), name=folder.name, licence=licence,
            kind=model.config.model_type, n_weights=model.num_parameters() / 1e6,
            training=_training(record or {}), query_tokens=student.query_tokens,
            measures=measures or "None were known when this folder was written.",
            passages=passages, total_tokens=tokenizer.model_max_length,
            words="texts" if pairs else "random words", differences=_markdown(short),
        )  # fmt: skip
        (unfinished / "README.md").write_text(card, encoding="utf-8")
        if adopted:
            write_adopted(adopted, unfinished)
    return differences


def export_files(config: ExportConfig) -> pd.DataFrame:
    """`rdl export`: `export`, with the manifest of the student's training; a push to the hub."""
    own = {"quantise": config.quantise, "record": training_record(config.student)}
    own["licence"], own["adopted"] = config.licence, adopted_of(config.student)
    if config.table:
        try:
            table = pd.read_csv(config.table).set_index(["measure", "system"]).round(4)
        except (KeyError, ValueError) as error:
            raise ValueError(f"{config.table} is not of rdl evaluate --table: {error}") from None
        own["metrics"] = table.index.get_level_values("measure").unique()
        own["measures"] = _markdown(table.reset_index().astype(object).fillna(""))
    limits = {name: getattr(config, name) for name in LIMITS}
    student = CrossEncoder.from_pretrained(config.student, trained=True, **limits)
    if config.candidates:
        corpus = read_corpus(config.candidates, format=config.format, collection=config.collection)
        texts = replace(corpus, candidates=corpus.candidates[:256]).with_texts()
        own["pairs"] = [*zip(texts["query"], texts["text"], strict=True)]
    differences = export(student, config.out, **own)
    if config.push:
        try:
            api = HfApi(token=True)  # an error without one
            repository = api.create_repo(config.push, private=True, exist_ok=True).repo_id
            api.upload_folder(repo_id=repository, folder_path=config.out)
        except Exception as error:  # of huggingface_hub, its HTTP client or its Rust extension
            told = f"{config.out} is written; expected to push it, got: {error}\nCheck HF_TOKEN, then"
            raise ValueError(f"{told} hf upload {config.push} {config.out} . --private") from None
    return differences


def _write_onnx(folder: Path, quantise: bool, pairs: Sequence[tuple[str, str]]) -> pd.DataFrame:
    """Write ONNX files of the model that transformers loads from a folder, and compare scores."""
    model = AutoModelForSequenceClassification.from_pretrained(folder, use_safetensors=True).eval()
    tokenizer = AutoTokenizer.from_pretrained(folder)
    inputs = tokenizer(["a", "b"], ["c", "d"], return_tensors="pt")
    files = [folder / "onnx" / "model.onnx"]
    files[0].parent.mkdir()
    logging.getLogger("torch.onnx").setLevel(logging.ERROR)  # the exporter warns about itself
    with warnings.catch_warnings(action="ignore"):
        torch.onnx.export(
            model, kwargs=dict(inputs), f=files[0], input_names=list(inputs), output_names=["logits"],
            dynamic_shapes={name: {0: "batch", 1: "sequence"} for name in inputs},
            external_data=model.get_memory_footprint() > _ONE_FILE_BYTES, verbose=False,
        )  # fmt: skip
    if quantise:
        files.append(files[0].with_name("model_int8.onnx"))
        logging.root.addHandler(logging.NullHandler())  # or onnxruntime sets up everybody's logs
        from onnxruntime.quantization import matmul_nbits_quantizer, quantize_dynamic

        own = {"bits": 8, "block_size": 32, "is_symmetric": True}  # activations stay floats
        products = matmul_nbits_quantizer.MatMulNBitsQuantizer(onnx.load(files[0]), **own)
        products.process()
        quantize_dynamic(products.model.model, files[1], op_types_to_quantize=["Gather"])
    parts = [pairs[:1], *(pairs[i : i + 32] for i in range(1, len(pairs), 32))]
    batches = [tokenizer(x, padding=True, truncation=True, return_tensors="pt") for x in parts]
    with torch.inference_mode():
        expected = np.concatenate([model(**batch).logits[:, 0].numpy() for batch in batches])
    rows = []
    for file in files:
        session = onnxruntime.InferenceSession(file, providers=["CPUExecutionProvider"])
        arrays = ({name: x.numpy() for name, x in batch.items()} for batch in batches)
        scores = np.concatenate([session.run(["logits"], batch)[0][:, 0] for batch in arrays])
        name, away = str(file.relative_to(folder)), np.abs(scores - expected)
        rows.append((name, len(away), float(away.max()), float(away.mean()), float(expected.std())))
    if not (largest := rows[0][2]) <= TOLERANCE:  # nor NaN
        told = f"expected ONNX scores within {TOLERANCE} of PyTorch's, got {largest} away"
        raise ValueError(f"{told}: report this architecture, {model.config.model_type}")
    return pd.DataFrame(rows, columns=["file", "n_pairs", "largest", "mean", "spread"])


def _random_pairs(student: CrossEncoder) -> list[tuple[str, str]]:
    """Words from the vocabulary, of all lengths."""
    draw, tokenizer = random.Random(0), student.tokenizer
    words = sorted(set(tokenizer.get_vocab().values()) - set(tokenizer.all_special_ids))
    limits = student.query_tokens, student.passage_tokens
    lengths = ([draw.randint(1, longest) for longest in limits] for _ in range(64))
    return [tuple(tokenizer.decode(draw.choices(words, k=k)) for k in pair) for pair in lengths]


def _metadata(record: Mapping[str, Any], metrics: Iterable[str], licence: str) -> str:
    """The card's front matter, in YAML, as the hub takes it."""
    config, licence, name = record.get("config", {}), licence.strip().lower(), None
    if not re.fullmatch(r"[a-z0-9.+-]+", licence):  # is no id, as mit is
        licence, name = "other", re.sub(r"[^a-z0-9.]+", "-", licence).strip("-.") or None
    encoder = re.sub(f"^{EMBEDDED_ENCODER}$", r"sentence-transformers/\g<0>", config.get("encoder", ""))
    on_hub = re.fullmatch(r"(\w[\w.-]*/)?\w[\w.-]*", encoder) and not Path(encoder).exists()
    collections = dict.fromkeys(x["lists"].get("collection") for x in config.get("stages", ()))
    datasets = [f"irds/{x.replace('/', '_')}" for x in collections if x in ir_datasets.registry]
    names = [re.sub(r"[\W_]+", "_", x.lower().replace("@", "_at_")).strip("_") for x in metrics]
    return ModelCardData(
        library_name="sentence-transformers", pipeline_tag="text-ranking", license=licence,
        license_name=name, tags=["cross-encoder", "reranker", "distillation"], metrics=names or None,
        base_model=encoder if on_hub else None, datasets=datasets or None,
    ).to_yaml()  # fmt: skip


def _training(record: Mapping[str, Any]) -> str:
    """What a manifest says about a training, in Markdown."""
    config = record.get("config", {})
    if not config.get("stages"):
        return "Not recorded: the student came without the manifest of its training."
    stages = enumerate(config["stages"], start=1)
    table = pd.DataFrame({f"stage {n}": x["lists"] | x["training"] for n, x in stages}, dtype=object)
    known = table.map(lambda x: x not in (None, "", {}) and x == x).any(axis=1)
    versions = record.get("versions", {})
    about, names = {**config, **record, **versions}, ["encoder", "seed", "device", "finished", "commit"]
    lines = [f"- {x}: {about[x]}" for x in (*names, *versions) if about.get(x) is not None]
    return "\n".join([_markdown(table[known].reset_index(names="")), "", *lines])
