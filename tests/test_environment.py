"""What is installed is what is locked; what imports what is what the plan says."""

import ast
import subprocess
import sys
import tomllib
from graphlib import TopologicalSorter
from importlib import metadata
from pathlib import Path

import pandas as pd
import yaml
from common import child_environment
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).resolve().parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
EXTRAS = PROJECT["optional-dependencies"]
WANTED = PROJECT["dependencies"] + [
    x for extra in ("study", "cluster", "pyterrier", "serve", "dev") for x in EXTRAS[extra]
]
WANTED = [x for x in map(Requirement, WANTED) if x.name != PROJECT["name"]]
LINES = (ROOT / "requirements.lock").read_text().splitlines()
LOCKED = {canonicalize_name(x.name): x.specifier for x in map(Requirement, LINES)}


def test_the_lock_pins_all_within_its_range_and_conda_and_licences_follow_it():
    assert all([pin.operator for pin in pins] == ["=="] for pins in LOCKED.values())
    for wanted in WANTED:
        (pin,) = LOCKED[canonicalize_name(wanted.name)]
        assert wanted.specifier.contains(pin.version), wanted
    assert len(WANTED) > 30
    assert str(LOCKED["torch"]) == "==2.13.0"  # for CPUs
    assert metadata.version("torch").split("+")[0] == "2.13.0"
    assert not any(name.startswith("nvidia-") for name in LOCKED)
    licences = pd.read_csv(ROOT / "book" / "licences.csv", dtype="str")
    assert sorted(licences["package"] + "==" + licences["version"]) == sorted(LINES)
    *conda, pip = yaml.safe_load((ROOT / "environment.yml").read_text())["dependencies"]
    assert pip == {"pip": ["-r requirements.lock", "-e ."]}
    assert set(conda) == {"python=3.11", "make", "git", "pip"}
    assert Requirement(f"python{PROJECT['requires-python']}").specifier.contains("3.11")


def graph(package):
    """Modules of a package, and what each imports, wherever in it."""
    files = {p.relative_to(ROOT).with_suffix(""): p.read_text() for p in (ROOT / package).rglob("*.py")}
    modules = {".".join(p.parts).removesuffix(".__init__"): set() for p in files}
    for name, source in zip(modules, files.values(), strict=True):
        for node in ast.walk(ast.parse(source)):
            if isinstance(node, ast.Import):
                modules[name] |= {alias.name for alias in node.names}
            elif isinstance(node, ast.ImportFrom):
                names = [f"{node.module}.{alias.name}" for alias in node.names]
                modules[name] |= {x if x in modules else node.module for x in names}
    assert len(modules) > 10
    return modules


def test_rooms_import_one_way_and_no_module_in_a_circle():
    for package, above in (
        ("rdl_core", ("rdl_tools", "rdl_study")), ("rdl_tools", ("rdl_study",)), ("rdl_study", ())
    ):  # fmt: skip
        modules = graph(package)
        assert not [x for x in modules.items() if any(name.startswith(above) for name in x[1])]
        TopologicalSorter({x: y & modules.keys() - {x} for x, y in modules.items()}).prepare()


def test_training_and_ranking_load_few_modules_and_none_of_the_study():
    code = "import rdl_tools.distill, rdl_tools.rerank, sys; print(*sys.modules)"
    loaded = subprocess.check_output([sys.executable, "-c", code], text=True, env=child_environment())
    assert 10 < len(ours := [x for x in loaded.split() if x.startswith("rdl_")]) <= 35
    assert not any(x.startswith("rdl_study") for x in ours)
