"""README's recipe runs as it stands, on one query and a few steps; what is public is there."""

import importlib
import pkgutil
import re
from dataclasses import replace
from pathlib import Path

import pytest

import rdl_core
from rdl_core import bm25, distill, load
from rdl_core.config import StageConfig
from rdl_core.data.collections import Collection
from rdl_core.data.formats import write_run

README = (Path(__file__).resolve().parents[1] / "README.md").read_text()
BLOCK = re.search(r"```python\n(.*?)```", README, re.DOTALL)[1]
MODULES = [x.name for x in pkgutil.walk_packages(rdl_core.__path__, "rdl_core.")]
def test_the_recipe_of_the_readme_runs(tmp_path, monkeypatch):
    """With one query, 40 passages and two steps; BM25 in the place of an LLM."""
    lines = [line for line in BLOCK.splitlines() if line and not line.startswith("#")]
    assert len(lines) <= 12
    whole, few = {name: vars(Collection)[name].func for name in ("queries", "passages")}, {}
    for name, n in (("queries", 1), ("passages", 40)):
        part = property(lambda self, name=name, n=n: whole[name](self)[:n])
        monkeypatch.setattr(Collection, name, part)
    for name, stage in distill.two_stages.__kwdefaults__.items():
        if isinstance(stage, StageConfig):
            few[name] = replace(stage, steps=1, queries_per_step=2, list_size=4, token_budget=512)
    monkeypatch.setattr(distill.two_stages, "__kwdefaults__", distill.two_stages.__kwdefaults__ | few)
    monkeypatch.chdir(tmp_path)
    train = load("rdl/pydocs/train")
    write_run(bm25(train.queries, train.passages, depth=5), "teacher.run")
    exec("\n".join(lines), names := {})
    assert names["run"]["query_id"].nunique() == 1
    assert names["run"]["score"].nunique() > 10
    assert (tmp_path / "student" / "listwise" / "model" / "model.safetensors").exists()


@pytest.mark.parametrize("name", MODULES)
def test_a_module_says_what_it_is_and_what_is_public(name):
    module = importlib.import_module(name)
    if not module.__file__.endswith("__init__.py"):
        assert module.__doc__
        assert all(hasattr(module, x) for x in module.__all__)


def test_names_of_the_package_are_no_modules():
    """A module that was imported hides a function of its name: README's rerank was none."""
    assert not set(rdl_core.__all__) & {x.removeprefix("rdl_core.") for x in MODULES}
    assert all(callable(getattr(rdl_core, name)) for name in rdl_core.__all__)
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        rdl_core.nothing  # noqa: B018
