"""What is installed is what is locked; what imports what is what the plan says."""

import ast
import subprocess
import sys
import tomllib
from graphlib import TopologicalSorter
from importlib import metadata
from pathlib import Path

import pytest
import yaml
from conftest import child_environment
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).resolve().parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
EXTRAS = PROJECT["optional-dependencies"]
WANTED = PROJECT["dependencies"] + [x for extra in ("study", "cluster", "dev") for x in EXTRAS[extra]]
WANTED = [x for x in map(Requirement, WANTED) if x.name != PROJECT["name"]]
LINES = (ROOT / "requirements.lock").read_text().splitlines()
LOCKED = {canonicalize_name(x.name): x.specifier for x in map(Requirement, LINES)}


@pytest.mark.parametrize("wanted", WANTED, ids=str)
def test_lock_pins_each_dependency_within_its_range(wanted):
    (pin,) = LOCKED[canonicalize_name(wanted.name)]
    assert pin.operator == "=="
    assert wanted.specifier.contains(pin.version)


def test_lock_pins_everything_and_the_cpu_build_of_torch():
    assert all([pin.operator for pin in pins] == ["=="] for pins in LOCKED.values())
    assert str(LOCKED["torch"]) == "==2.13.0"
    assert metadata.version("torch").split("+")[0] == "2.13.0"
    assert not any(name.startswith("nvidia-") for name in LOCKED)


def test_conda_environment_installs_the_lock_and_this_package():
    *conda, pip = yaml.safe_load((ROOT / "environment.yml").read_text())["dependencies"]
    assert pip == {"pip": ["-r requirements.lock", "-e ."]}
    assert set(conda) == {"python=3.11", "make", "git", "pip"}
    assert Requirement(f"python{PROJECT['requires-python']}").specifier.contains("3.11")


# --- modules --------------------------------------------------------------------------------------


def imported(tree, modules):
    """Our modules, and others by their first name, that a file imports, wherever in it."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert not node.level, "imports are absolute"
            names = [f"{node.module}.{alias.name}" for alias in node.names]
            yield from (name if name in modules else node.module for name in names)


def graph(package):
    files = {path: ast.parse(path.read_text()) for path in (ROOT / package).rglob("*.py")}
    named = {".".join(p.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"): t
             for p, t in files.items()}  # fmt: skip
    assert len(named) > 10
    return {name: set(imported(tree, named)) for name, tree in named.items()}


def test_the_library_imports_nothing_of_the_study():
    wrong = {name: x for name, x in graph("rdl_core").items() if any(y.startswith("rdl_study") for y in x)}
    assert not wrong


@pytest.mark.parametrize("package", ["rdl_core", "rdl_study"])
def test_no_module_imports_itself_in_a_circle(package):
    """Imports inside functions count: a circle that is put off is one, too."""
    modules = graph(package)
    TopologicalSorter({name: x & modules.keys() - {name} for name, x in modules.items()}).prepare()


@pytest.mark.parametrize("name", ["distill", "rerank"])
def test_a_training_needs_few_modules_and_nothing_of_the_study(name):
    code = f"import rdl_core.{name}, sys; print(*(x for x in sys.modules if x.startswith('rdl_')))"
    loaded = subprocess.check_output([sys.executable, "-c", code], text=True, env=child_environment()).split()
    assert 10 < len(loaded) <= 35
    assert not any(x.startswith("rdl_study") for x in loaded)
