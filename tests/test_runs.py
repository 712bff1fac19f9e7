"""The run store: one computation per configuration, data and code; never a half one taken as whole.

Mutations seen to fail: data left out of the id; the manifest written before computing; docstrings
counted as code; imports not followed.
"""

import importlib
import json
import logging
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import pytest

import rdl_core
from rdl_study import runs

CODE = ("rdl_core.losses",)


@dataclass(frozen=True)
class Config:
    steps: int


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    monkeypatch.setenv("RDL_RUNS", str(tmp_path))
    return tmp_path


def write(text):
    return lambda folder: (folder / "result").write_text(text) and None


def obtain(config=Config(1), data="d", compute=None, kind="test", **more):
    return runs.obtain(kind, config, data=data, code=CODE, compute=compute or write("x"), **more)


def never(folder):
    raise AssertionError("computed again")


def test_a_finished_run_is_reused_and_says_so(caplog):
    first = obtain()
    with caplog.at_level(logging.INFO, "rdl_core"):
        again = obtain(compute=never)
    assert again == first
    assert (again.folder / "result").read_text() == "x"
    assert f"{first.manifest['id']}: reused" in caplog.text


@pytest.mark.parametrize(
    "change", [{"config": Config(2)}, {"data": "e"}, {"kind": "other"}, {"inputs": ["train-1"]}]
)
def test_whatever_can_change_the_result_changes_the_id(change):
    assert obtain(**change).manifest["id"] != obtain().manifest["id"]


def test_a_failed_run_is_handed_its_folder_again(folder):
    def fail(folder):
        (folder / "checkpoint").write_text("half")
        raise RuntimeError("power cut")

    with pytest.raises(RuntimeError, match="power cut"):
        obtain(compute=fail)
    assert not list(folder.glob("*/manifest.json"))
    seen = []
    obtain(compute=lambda folder: seen.append((folder / "checkpoint").read_text()))
    assert seen == ["half"]


def test_the_manifest_tells_what_a_reader_must_know():
    run = obtain(compute=lambda folder: {"n_lists": 3})
    saved = json.loads((run.folder / "manifest.json").read_text())
    assert saved == run.manifest
    assert saved["config"] == {"steps": 1}
    assert saved["n_lists"] == 3
    assert {"versions", "device", "threads", "python", "commit", "wall_s", "code"} <= set(saved)


def hash_of(folder, monkeypatch, **sources):
    """Code hash of ``rdl_core.fake`` with the given sources."""
    for name, source in sources.items():
        (folder / f"{name}.py").write_text(source)
    monkeypatch.setattr(rdl_core, "__path__", [*rdl_core.__path__, str(folder)])
    importlib.invalidate_caches()
    runs.code_hash.cache_clear()
    return runs.code_hash("rdl_core.fake")


def test_code_hash_follows_imports_and_is_blind_to_prose(tmp_path, monkeypatch):
    plain = {"fake": "from rdl_core.helper import f\nx = f(1)\n", "helper": "def f(a): return a\n"}
    before = hash_of(tmp_path, monkeypatch, **plain)
    commented = '"""New words."""\nfrom rdl_core.helper import f  # why\n\nx = f(1)\n'
    assert hash_of(tmp_path, monkeypatch, **plain | {"fake": commented}) == before
    documented = 'def f(a):\n    """Say more."""\n    return a\n'
    assert hash_of(tmp_path, monkeypatch, **plain | {"helper": documented}) == before
    assert hash_of(tmp_path, monkeypatch, **plain | {"helper": "def f(a): return -a\n"}) != before


def test_two_that_ask_at_once_compute_once(folder):
    def slow(folder):
        time.sleep(0.2)
        with (folder / "count").open("a") as file:
            file.write("x")

    with ThreadPoolExecutor(2) as pool:
        first, second = pool.map(lambda _: obtain(compute=slow), range(2))
    assert first == second
    assert (first.folder / "count").read_text() == "x"
