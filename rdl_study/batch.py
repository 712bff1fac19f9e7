"""Pages without notebooks: train and rank all that they compare, and record it.

All nodes of the graph in one process: what a GPU for an hour is for, where a student takes less
time than a process takes to start. The notebooks, and the graph, then find everything done.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping
from dataclasses import replace

from rdl_study import recorded
from rdl_study.graph import jobs, marker, run
from rdl_study.grid import Part
from rdl_study.parameters import NOTEBOOKS, check_parameters
from rdl_study.profile import load_profile
from rdl_study.store import project_folder
from rdl_study.tables import compare

__all__ = ["run_pages"]

_log = logging.getLogger(__name__)


def run_pages(
    profile_name: str,
    pages: Iterable[str] = (),
    changes: Mapping[str, object] | None = None,
    n_seeds: int = 0,
    recording: bool = False,
) -> None:
    """Run pages one after the other, each recorded when it is done.

    Args:
        profile_name: Name of a profile.
        pages: Names of notebooks; none takes all that compare systems.
        changes: Values for parameters of these notebooks, in place of the profile's.
        n_seeds: Only so many of the profile's seeds; 0 takes all.
        recording: Whether figures and manifests go to ``results/<profile>``.

    Raises:
        ValueError: An unknown page, or a parameter that does not fit.

    >>> run_pages("mini", ["no such page"])
    Traceback (most recent call last):
    ValueError: expected a notebook of effectiveness, ...; got 'no such page'
    """
    profile = load_profile(profile_name)
    given = {
        page: check_parameters(
            page, {"profile": profile_name, **profile.notebooks.get(page, {}), **(changes or {})}
        )
        for page in (list(pages) or NOTEBOOKS)
    }
    parts = {
        page: {name: _at_seeds(part, n_seeds) for name, part in parameters.parts.items()}
        for page, parameters in given.items()
    }
    graph, of_page = jobs({page: each.values() for page, each in parts.items()})
    for page, each in parts.items():
        for node in of_page[page]:
            if not marker(node).exists():
                run(graph[node])
        results = {}
        for name, part in each.items():
            results[name] = compare(part)
            means = results[name].values.mean().map("{:.4f}".format)
            _log.info("%s, %s: %s %s", page, name, profile.measure, means.to_dict())
        if recording and results:
            folder = project_folder() / "results" / profile.name
            _log.info("recorded %s", recorded.write(page, profile, results, folder))


def _at_seeds(part: Part, n_seeds: int) -> Part:
    seeds = part.profile.seeds[: n_seeds or None]
    return replace(part, profile=replace(part.profile, seeds=seeds))
