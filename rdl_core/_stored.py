"""How far a token store on disk is written, from what, and whether its files are as written."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path

import numpy as np
from tokenizers import Tokenizer

from rdl_core.records import write_record

__all__ = [
    "FINISHED", "OFFSETS", "TOKENS", "UNFINISHED", "Written", "digests", "hashes", "record", "resume",
]  # fmt: skip

TOKENS, OFFSETS = "tokens.bin", "offsets.bin"
UNFINISHED, FINISHED = "progress.json", "store.json"
_PIECE_BYTES = 1 << 20


@dataclass(frozen=True)
class Written:
    """How far a store is written, and from what: ``progress.json`` and ``store.json``."""

    encoder: str  # hash of the tokenizer and its settings
    max_tokens: int
    dtype: str
    rows: int
    tokens: int
    texts: str  # hash of the texts of these rows
    contents: Mapping[str, str] = field(default_factory=dict)  # hash of each file's whole part

    @classmethod
    def nothing(cls, encoder: Tokenizer, max_tokens: int) -> Written:
        described = f"{encoder.encode_special_tokens} {encoder.to_str()}".encode()
        large = max(encoder.get_vocab().values(), default=0) >= 2**16
        dtype = "int32" if large else "uint16"
        return cls(hashlib.blake2b(described).hexdigest(), max_tokens, dtype, 0, 0, "")

    @property
    def sizes(self) -> dict[str, int]:
        """Bytes of the files as far as they are whole."""
        return {TOKENS: self.tokens * np.dtype(self.dtype).itemsize, OFFSETS: 8 * self.rows + 8}


def resume(folder: Path, fresh: Written) -> Written:
    """Cut the files to what an earlier build of the same kind finished, else to nothing."""
    try:
        written = Written(**json.loads((folder / UNFINISHED).read_text()))
        whole = all((folder / name).stat().st_size >= n for name, n in written.sizes.items())
        whole = whole and digests(hashes(folder, written)) == written.contents
    except (OSError, TypeError, ValueError):
        whole = False
    if not whole or replace(written, rows=0, tokens=0, texts="", contents={}) != fresh:
        written = fresh
        record(folder, written)
        (folder / TOKENS).touch()
        (folder / OFFSETS).write_bytes(bytes(8))
    for name, n_bytes in written.sizes.items():
        os.truncate(folder / name, n_bytes)
    return written


def record(folder: Path, written: Written) -> None:
    """Say how far the files are whole, in one stroke."""
    write_record(folder / UNFINISHED, asdict(written))


def hashes(folder: Path, written: Written) -> dict[str, hashlib._Hash]:
    """Of each file, as far as it is whole; to go on with while more is written."""
    found = {}
    for name, left in written.sizes.items():
        found[name] = hashlib.sha256()
        with (folder / name).open("rb") as file:
            while left and (piece := file.read(min(left, _PIECE_BYTES))):
                found[name].update(piece)
                left -= len(piece)
    return found


def digests(found: Mapping[str, hashlib._Hash]) -> dict[str, str]:
    """Hashes as text."""
    return {name: one.hexdigest() for name, one in found.items()}
