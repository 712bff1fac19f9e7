"""The run store: one computation per configuration, data and code; nothing half computed counts."""

import importlib
import logging

import pytest

import rdl_core
import rdl_study
from rdl_study import store

pytestmark = pytest.mark.usefixtures("store")


def obtain(config=None, data="d", compute=None, kind="test", **more):
    compute = compute or (lambda folder: (folder / "result").write_text("x") and {"n_lists": 3})
    more |= {"config": config or {"steps": 1}, "data": data, "compute": compute}
    return store.obtain(kind, code=("rdl_core.progress",), **more)


def test_a_finished_run_is_reused_and_tells_what_a_reader_must_know(caplog):
    first = obtain()
    with caplog.at_level(logging.INFO, "rdl_study"), store.noted() as ids:
        again = obtain(compute=pytest.fail)
    assert again == first == store.stored(first.manifest["id"])
    assert (again.folder / "result").read_text() == "x"
    assert f"{first.manifest['id']}: reused" in caplog.text
    assert list(ids) == [first.manifest["id"]]
    assert (first.manifest["config"], first.manifest["n_lists"]) == ({"steps": 1}, 3)
    known = {"versions", "device", "threads", "python", "commit", "wall_s", "code"}
    assert known <= first.manifest.keys()
    assert store.libraries().keys() == first.manifest["versions"].keys() - {"rdl-core", "openai"}


@pytest.mark.parametrize(
    "change", [{"config": {"steps": 2}}, {"data": "e"}, {"kind": "other"}, {"inputs": ["train-1"]}]
)
def test_whatever_can_change_the_result_changes_the_id(change):
    assert obtain(**change).manifest["id"] != obtain().manifest["id"]


def test_a_damaged_run_is_computed_again():
    (obtain().folder / "result").write_text("damaged")
    assert (obtain().folder / "result").read_text() == "x"


def test_code_hash_follows_imports_and_is_blind_to_prose(tmp_path, monkeypatch):
    """In both packages: a core module's code, and that of a module of the study."""
    for package in (rdl_core, rdl_study):
        monkeypatch.setattr(package, "__path__", [*package.__path__, str(tmp_path)])

    def hash_of(main, helper):
        (tmp_path / "fake.py").write_text(main)
        (tmp_path / "helper.py").write_text(helper)
        importlib.invalidate_caches()
        for cached in (store.code_hash, store._without_prose):
            cached.cache_clear()
        return store.code_hash("rdl_core.fake")

    main, helper = "from rdl_study.helper import f\nx = f(1)\n", "def f(a): return a\n"
    before = hash_of(main, helper)
    assert hash_of(f'"""Words."""\n{main}  # why\n', helper) == before
    assert hash_of(main, 'def f(a):\n    """Say more."""\n    return a\n') == before
    assert hash_of(main, "def f(a): return -a\n") != before
