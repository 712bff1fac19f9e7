"""What the Snakefile calls; a module of its own, as the book imports `rdl_study.cli` once more."""

from rdl_study.cli import nodes

nodes()
