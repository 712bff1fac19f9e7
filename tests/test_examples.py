"""README's recipe runs as it stands, on one query and a few steps; what is public is there."""

import importlib
import pkgutil
import re
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import child_environment

import rdl_core

README = (Path(__file__).resolve().parents[1] / "README.md").read_text()
BLOCK = re.search(r"```python\n(.*?)```", README, re.DOTALL)[1]
MODULES = [x.name for x in pkgutil.walk_packages(rdl_core.__path__, "rdl_core.")]
#: One query, fewer passages and steps than the recipe has, and an LLM's rankings.
FEW = """
from dataclasses import replace
from rdl_core.data.collections import Collection
from rdl_core.data.formats import write_run
from rdl_core.distill import CONTRASTIVE, LISTWISE
from rdl_core import bm25, load, two_stages
whole = {name: vars(Collection)[name].func for name in ("queries", "passages")}
Collection.queries = property(lambda self: whole["queries"](self)[:1])
Collection.passages = property(lambda self: whole["passages"](self)[:500])
train, few = load("rdl/pydocs/train"), dict(steps=2, queries_per_step=2, list_size=4, token_budget=512)
write_run(bm25(train.queries, train.passages, depth=5), "teacher.run")
few = {"contrastive": replace(CONTRASTIVE, **few), "listwise": replace(LISTWISE, **few)}
two_stages.__kwdefaults__.update(few)
"""


def test_the_recipe_of_the_readme_runs(tmp_path):
    lines = [line for line in BLOCK.splitlines() if line and not line.startswith("#")]
    assert len(lines) <= 12
    check = "assert run['query_id'].nunique() == 1 and run['score'].nunique() > 50, run"
    words = [sys.executable, "-c", "\n".join([FEW, *lines, check])]
    subprocess.run(words, cwd=tmp_path, env=child_environment(), check=True)
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
