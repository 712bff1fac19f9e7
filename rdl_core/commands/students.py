"""A student by its name: a folder of transformers, a run with ``model/`` in it, or a hub id."""

from __future__ import annotations

import logging
from pathlib import Path

from transformers import AutoConfig, PretrainedConfig

from rdl_core.cross_encoder import CrossEncoder
from rdl_core.data.downloads import encoder_path, sha256_of
from rdl_core.records import read_record

__all__ = ["model_path", "open_student", "record_of"]

_LIMITS = {"query_tokens": 32, "passage_tokens": 256}  # Rank-DistiLLM's (Schlatt et al., ECIR 2025)
_KEY = "rdl_core"  # in config.json
_log = logging.getLogger(__name__)


def open_student(
    name: str | Path,
    *,
    query_tokens: int | None = None,
    passage_tokens: int | None = None,
    trained: bool = True,
    head: str = "own",
) -> CrossEncoder:
    """Load a cross-encoder.

    Args:
        name: A folder or hub id, the folder of a run, or the embedded encoder's name.
        query_tokens: Longer queries are cut to this many tokens. None takes what the model records,
            or else 32. The model that is loaded records it.
        passage_tokens: The same of passages; else 256.
        trained: Whether a model without a head is refused, which would be drawn at random.
        head: As `CrossEncoder.from_pretrained` has it.

    Raises:
        ValueError: No such model, one that gives no single score, limits past the encoder's, or
            weights that changed since they were trained.

    >>> open_student(profile.encoder, query_tokens=5).passage_tokens
    256
    """
    path = model_path(name)
    try:
        config = AutoConfig.from_pretrained(path, trust_remote_code=False)
    except (OSError, ValueError) as error:
        raise _refusal(name, error) from None
    _check(name, config, trained)
    _check_whole(name, path)
    recorded = getattr(config, _KEY, None) or record_of(name).get("config", {})
    given = {"query_tokens": query_tokens, "passage_tokens": passage_tokens}
    limits = {key: given[key] or recorded.get(key, _LIMITS[key]) for key in _LIMITS}
    try:
        student = CrossEncoder.from_pretrained(path, **limits, head=head)
    except ValueError:
        raise
    except Exception as error:  # safetensors and tokenizers have errors of their own
        raise _refusal(name, error) from None
    _log.info("%s: queries are cut to %d tokens, passages to %d", name, *limits.values())
    setattr(student.model.config, _KEY, limits)
    return student


def record_of(name: str | Path) -> dict:
    """The manifest of the run that trained a student, or nothing where there is none.

    >>> record_of(profile.encoder)
    {}
    """
    for folder in (Path(name), Path(name).parent):
        if (manifest := folder / "manifest.json").is_file():
            return read_record(manifest)
    return {}


def model_path(name: str | Path) -> str:
    """Where transformers finds a model: a run's folder stands for the one in it.

    >>> model_path("google/electra-base-discriminator")
    'google/electra-base-discriminator'
    """
    inside = Path(name) / "model"
    return str(inside) if (inside / "config.json").is_file() else encoder_path(str(name))


def _refusal(name: str | Path, error: Exception) -> ValueError:
    reason = str(error).splitlines()[0]  # of several sentences and lines
    return ValueError(
        f"{name}: expected a folder or hub id of a model that transformers loads; given one that "
        f"it does not ({reason}): check the name"
    )


def _check_whole(name: str | Path, path: str) -> None:
    """Refuse weights that are not those that were trained, where their run says which these are."""
    weights = Path(path) / "model.safetensors"
    trained = record_of(name).get("files", {}).get("model/model.safetensors")
    if trained and weights.is_file() and (found := sha256_of(weights)) != trained:
        raise ValueError(
            f"{weights}: expected the weights that were trained, SHA-256 {trained}; given {found}: "
            "the file is damaged; put a copy in its place, or train again in another folder"
        )


def _check(name: str | Path, config: PretrainedConfig, trained: bool) -> None:
    kinds = config.architectures or ["no architecture"]
    scores = any(kind.endswith("ForSequenceClassification") for kind in kinds)
    if scores and config.num_labels != 1:
        raise ValueError(
            f"{name}: expected a model with one output, the score; given {config.num_labels} "
            "outputs: name another model"
        )
    if trained and not scores:
        raise ValueError(
            f"{name}: expected a trained cross-encoder (...ForSequenceClassification); given "
            f"{', '.join(kinds)}, whose scores would be random: distil a student from it first"
        )
