"""The lock, pyproject.toml and environment.yml say the same.

Mutations seen to fail: a dependency taken out of the lock; torch unpinned; environment.yml without
the lock; a second Python version in environment.yml.
"""

import tomllib
from importlib import metadata

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from rdl_study.store import project_folder

ROOT = project_folder()
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
EXTRAS = PROJECT["optional-dependencies"]
WANTED = [*PROJECT["dependencies"], *(x for name in ("study", "cluster", "dev") for x in EXTRAS[name] if not x.startswith("rdl-core"))]
LOCKED = {
    canonicalize_name(r.name): r
    for r in map(Requirement, (ROOT / "requirements.lock").read_text().splitlines())
}


@pytest.mark.parametrize("wanted", WANTED)
def test_lock_pins_each_dependency_within_its_range(wanted):
    requirement = Requirement(wanted)
    (pin,) = LOCKED[canonicalize_name(requirement.name)].specifier
    assert pin.operator == "=="
    assert requirement.specifier.contains(pin.version)


def test_lock_pins_everything_and_the_cpu_build_of_torch():
    assert all(
        [pin.operator for pin in locked.specifier] == ["=="] for locked in LOCKED.values()
    )
    assert str(LOCKED["torch"].specifier) == "==2.13.0"
    assert not any(name.startswith("nvidia-") for name in LOCKED)


def test_conda_environment_installs_the_lock_and_this_package():
    environment = yaml.safe_load((ROOT / "environment.yml").read_text())
    *conda, pip = environment["dependencies"]
    assert pip == {"pip": ["-r requirements.lock", "-e ."]}
    assert set(conda) == {"python=3.11", "make", "git", "pip"}
    assert Requirement(f"python{PROJECT['requires-python']}").specifier.contains("3.11")


def test_this_environment_has_the_locked_torch():
    assert metadata.version("torch").split("+")[0] == "2.13.0"
