"""Files of packages from the npm registry, for pages and checks that need a browser.

npm itself fetches them, where it is installed; the versions and their hashes are fixed here, no
script of a package is run, and only the named files are kept.
"""

from __future__ import annotations

import base64
import hashlib
import os
import shutil
import subprocess
import tarfile
import tempfile
from dataclasses import dataclass
from pathlib import Path

from rdl_core.data.downloads import cache_folder

__all__ = ["AXE", "ONNXRUNTIME", "TOKENIZERS", "Package", "npm_files"]

_LONGEST_S = 300


@dataclass(frozen=True, kw_only=True)
class Package:
    """One version of a package, and what is wanted of it."""

    name: str
    """As npm knows it."""
    version: str
    """Exactly this one."""
    sha512: str
    """Of its archive, in base64, as npm states it."""
    files: tuple[str, ...]
    """Paths in it; they are kept under their last parts."""


#: The smallest build of onnxruntime-web: WebAssembly alone, no WebGPU. MIT.
ONNXRUNTIME = Package(
    name="onnxruntime-web", version="1.30.0",
    sha512="q0y+JrrtukXSzsBWEMccVfqX25LRmosXHF+CaRJmg8pZClzcV7svNc4rKY3jL02Vb7QmRMDs1SigqR4CXAfKYQ==",
    files=(
        "dist/ort.wasm.min.mjs", "dist/ort-wasm-simd-threaded.mjs",
        "dist/ort-wasm-simd-threaded.wasm",
    ),
)  # fmt: skip
#: Hugging Face's tokenizers for JavaScript. Apache-2.0.
TOKENIZERS = Package(
    name="@huggingface/tokenizers", version="0.2.0",
    sha512="LidMHe1FpcSYH4vcSjXooda34pC0M8m1gmDOv7SQi6Iv+ib1zX7J3sHBCC9/3FPCkn2k1b55FneVqMRxrr99pg==",
    files=("dist/tokenizers.min.mjs", "LICENSE"),
)  # fmt: skip
#: Accessibility rules; the tests use it, the book does not contain it. MPL-2.0.
AXE = Package(
    name="axe-core", version="4.14.1",
    sha512="FHfa+lmNjQZfJz1q8wKqIDwC6DExcHt/pkjNQb09a3NPjCKg2rhu5qb2S4r76ASyFNNtuFooJpZe37OgudVGtQ==",
    files=("axe.min.js",),
)  # fmt: skip


def npm_files(package: Package) -> Path:
    """Fetch a package's files, once; afterwards the cache has them.

    Args:
        package: What is wanted.

    Returns:
        The folder that holds the files.

    Raises:
        OSError: npm is not installed, or could not fetch the package.
        ValueError: What came is not what was pinned.

    >>> sorted(path.name for path in npm_files(TOKENIZERS).iterdir())  # doctest: +SKIP
    ['LICENSE', 'tokenizers.min.mjs']
    """
    folder = cache_folder() / "npm" / f"{package.name.replace('/', '-')}-{package.version}"
    if folder.is_dir():
        return folder
    if (npm := shutil.which("npm")) is None:
        raise OSError("npm is not installed")
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder.parent) as partial:
        archive = _packed(npm, package, Path(partial))
        kept = Path(partial) / "kept"
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


def _packed(npm: str, package: Package, folder: Path) -> Path:
    """The package's archive, its hash checked."""
    wanted = f"{package.name}@{package.version}"
    options = ["--ignore-scripts", "--fetch-retries=1", "--pack-destination", str(folder)]
    try:
        done = subprocess.run(
            [npm, "pack", wanted, *options], capture_output=True, text=True, check=False,
            timeout=_LONGEST_S, cwd=folder,
        )
    except subprocess.TimeoutExpired:
        raise OSError(f"npm did not fetch {wanted} within {_LONGEST_S} s") from None
    if done.returncode:
        reasons = [x for x in done.stderr.splitlines() if x.startswith("npm error")] or [""]
        raise OSError(f"npm could not fetch {wanted} ({reasons[0].removeprefix('npm error ')})")
    archive = next(folder.glob("*.tgz"))
    given = base64.b64encode(hashlib.sha512(archive.read_bytes()).digest()).decode()
    if given != package.sha512:
        raise ValueError(
            f"{wanted}: expected an archive of SHA-512 {package.sha512}; given one of {given}: do "
            "not use it, and look who changed the package"
        )
    return archive
