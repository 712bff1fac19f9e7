"""Licences of the locked packages, as their metadata state them: ``make licences``."""

import csv
import re
import sys
from importlib import metadata
from pathlib import Path

LOCK = Path(__file__).parents[1] / "requirements.lock"


def locked():
    """Name and version of each line of the lock file."""
    return [tuple(line.split("==")) for line in LOCK.read_text().split() if "==" in line]


def licence_of(name):
    """The expression, else the classifiers, else the first words of the free text."""
    try:
        about = metadata.metadata(name)
    except metadata.PackageNotFoundError:
        return "not installed here"
    if stated := about.get("License-Expression"):
        return stated
    classified = [c.rpartition(" :: ")[2] for c in about.get_all("Classifier", [])
                  if c.startswith("License :: ")]  # fmt: skip
    free = re.split(r"[\n,]", about.get("License") or "")[0].strip()
    return "; ".join(classified) or free[:60] or "not stated"


if __name__ == "__main__":
    table = csv.writer(sys.stdout, lineterminator="\n")
    table.writerow(("package", "version", "licence"))
    table.writerows((name, version, licence_of(name)) for name, version in locked())
