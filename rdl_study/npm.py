"""Files of packages from the npm registry, for pages that need them in a browser."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import pooch
from filelock import FileLock

from rdl_core.data.downloads import cache_folder

__all__ = ["ONNXRUNTIME", "TOKENIZERS", "Package", "npm_files"]

_REGISTRY = "https://registry.npmjs.org"


class Package(NamedTuple):
    """A version of a package, the SHA-512 of its archive, and the files of it that are kept."""

    name: str
    version: str
    sha512: str
    files: tuple[str, ...]


#: The smallest build: WebAssembly alone, no WebGPU. MIT.
ONNXRUNTIME = Package(
    "onnxruntime-web", "1.30.0",
    "ab4cbe26baedba45d2cec05610c71c55fa97db92d19a8b171c5f8269126683ca"
    "590a5cdc57bb2f35ce2b298de32f4d956fb42644c0ecd528a0a91e025c07ca61",
    ("dist/ort.wasm.min.mjs", "dist/ort-wasm-simd-threaded.mjs", "dist/ort-wasm-simd-threaded.wasm"),
)  # fmt: skip
#: Hugging Face's tokenizers for JavaScript. Apache-2.0.
TOKENIZERS = Package(
    "@huggingface/tokenizers", "0.2.0",
    "2e274c1ded45a5c4981f8bdc4a35e8a1d6b7e290b433c9b58260cebfb4908ba2"
    "2ffa26f5cd7ec9dec1c1082f7fdc53c2927da4d5be79167795a8c471aebf7da6",
    ("dist/tokenizers.min.mjs", "LICENSE"),
)  # fmt: skip


def npm_files(package: Package) -> list[Path]:
    """A package's files, fetched once into the cache; OSError where the registry does not give them."""
    base = package.name.rpartition("/")[2]
    url = f"{_REGISTRY}/{package.name}/-/{base}-{package.version}.tgz"
    folder = cache_folder() / "npm" / f"{base}-{package.version}"
    with FileLock(f"{folder}.lock"):
        files = pooch.retrieve(
            url, f"sha512:{package.sha512}", "package.tgz", folder,
            processor=pooch.Untar([f"package/{x}" for x in package.files], extract_dir="files"),
        )  # fmt: skip
    return sorted(map(Path, files))
