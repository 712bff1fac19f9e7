"""Files of packages from the npm registry, for pages and checks that need a browser.

npm fetches them, where it is installed; no script of a package is run, only the named files are kept.
"""

from __future__ import annotations

import base64
import hashlib
import os
import shutil
import subprocess
import tarfile
import tempfile
from pathlib import Path
from typing import NamedTuple

from rdl_core.data.downloads import cache_folder

__all__ = ["AXE", "ONNXRUNTIME", "TOKENIZERS", "Package", "npm_files"]

_LONGEST_S = 300


class Package(NamedTuple):
    """A version of a package, and the files that are kept, under the last parts of their paths."""

    name: str
    version: str
    sha512: str  #: Of its archive, in base64, as npm states it.
    files: tuple[str, ...]


#: The smallest build: WebAssembly alone, no WebGPU. MIT.
ONNXRUNTIME = Package(
    "onnxruntime-web", "1.30.0",
    "q0y+JrrtukXSzsBWEMccVfqX25LRmosXHF+CaRJmg8pZClzcV7svNc4rKY3jL02Vb7QmRMDs1SigqR4CXAfKYQ==",
    ("dist/ort.wasm.min.mjs", "dist/ort-wasm-simd-threaded.mjs", "dist/ort-wasm-simd-threaded.wasm"),
)  # fmt: skip
#: Hugging Face's tokenizers for JavaScript. Apache-2.0.
TOKENIZERS = Package(
    "@huggingface/tokenizers", "0.2.0",
    "LidMHe1FpcSYH4vcSjXooda34pC0M8m1gmDOv7SQi6Iv+ib1zX7J3sHBCC9/3FPCkn2k1b55FneVqMRxrr99pg==",
    ("dist/tokenizers.min.mjs", "LICENSE"),
)  # fmt: skip
#: Accessibility rules; the tests use it, the book does not contain it. MPL-2.0.
AXE = Package(
    "axe-core", "4.14.1",
    "FHfa+lmNjQZfJz1q8wKqIDwC6DExcHt/pkjNQb09a3NPjCKg2rhu5qb2S4r76ASyFNNtuFooJpZe37OgudVGtQ==",
    ("axe.min.js",),
)  # fmt: skip


def npm_files(package: Package) -> Path:
    """The folder of a package's files, which are fetched once and kept in the cache.

    OSError: npm is missing or could not fetch them. ValueError: the archive is not the pinned one.
    """
    folder = cache_folder() / "npm" / f"{package.name.replace('/', '-')}-{package.version}"
    if folder.is_dir():
        return folder
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder.parent) as partial:
        archive, kept = _fetch(package, Path(partial)), Path(partial) / "kept"
        kept.mkdir()
        with tarfile.open(archive) as content:
            for name in package.files:
                (kept / Path(name).name).write_bytes(content.extractfile(f"package/{name}").read())
        try:
            os.replace(kept, folder)
        except OSError:  # another process was faster, with the same files
            if not folder.is_dir():
                raise
    return folder


def _fetch(package: Package, folder: Path) -> Path:
    """The package's archive, its hash checked."""
    wanted = f"{package.name}@{package.version}"
    if (npm := shutil.which("npm")) is None:
        raise OSError("npm is not installed")
    command = [npm, "pack", wanted, "--ignore-scripts", "--fetch-retries=1"]
    how = {"cwd": folder, "timeout": _LONGEST_S, "check": True, "capture_output": True, "text": True}
    try:
        subprocess.run(command, **how)
    except subprocess.TimeoutExpired:
        raise OSError(f"npm did not fetch {wanted} within {_LONGEST_S} s") from None
    except subprocess.CalledProcessError as error:
        reason = next((x for x in error.stderr.splitlines() if x.startswith("npm error")), "")
        raise OSError(f"npm could not fetch {wanted} ({reason.removeprefix('npm error ')})") from None
    archive = next(folder.glob("*.tgz"))
    sha512 = base64.b64encode(hashlib.sha512(archive.read_bytes()).digest()).decode()
    if sha512 != package.sha512:
        raise ValueError(f"{wanted}: expected SHA-512 {package.sha512}, got {sha512}: do not use it")
    return archive
