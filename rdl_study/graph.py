"""The study as a graph: which jobs make it, and which of them wait for which.

The graph schedules, the store decides. A node names work that `rdl_study.store.obtain` does or
finds done; Snakemake (``Snakefile``) brings nodes in order and spreads them. Each training run is a
node of its own. The rankings with its student belong to it: a process takes longer to start than
most of them take. What is listed and ranked without a student is one node for each collection,
behind one for each shard of the lists of an LLM that the study asks itself. A page needs all that
it compares, so that notebooks only gather.

A node's name ends with a hash of its configuration, its code and the versions of libraries: a
change of these makes new nodes and leaves the others alone. A node that is done has a marker, which
names its runs. Nodes are enumerated without loading data.
"""

from __future__ import annotations

import hashlib
import json
import os
import sys
from collections import defaultdict
from collections.abc import Callable, Iterable
from dataclasses import dataclass, is_dataclass, replace
from functools import partial
from importlib import metadata
from pathlib import Path
from typing import Any

from rdl_core.data import pydocs
from rdl_core.data.collections import load
from rdl_core.data.downloads import fetch_group, registry
from rdl_core.settings import read_settings
from rdl_study.candidates import (
    ListsConfig,
    candidates_of,
    lists,
    passage_tokens,
    tokens,
)
from rdl_study.grid import Part, rankings
from rdl_study.jobs import RankingConfig, StudentConfig, ranking, student
from rdl_study.parameters import NOTEBOOKS, check_parameters
from rdl_study.profile import load_profile
from rdl_study.publish import page, shown_in
from rdl_study.store import code_hash, noted, runs_folder, versions
from rdl_study.taught import LLMTeacher, shard

__all__ = ["Node", "jobs", "marker", "nodes", "plan", "run"]

_CODE = "rdl_study.jobs"
_TIMING = "efficiency"  # the page that times: nothing else may run beside it
_LLM = ".yaml"  # ends the name of a teacher that is asked
_LAST = "start"  # the page that sums up all others


@dataclass(frozen=True, kw_only=True)
class Node:
    """A job of the graph."""

    kind: str
    """``"fetch"``, ``"teach"``, ``"lists"``, ``"student"`` or ``"page"``."""
    key: str
    """A hash, behind a page's name."""
    what: str
    """A few words for people."""
    needs: tuple[str, ...] = ()
    """Names of the nodes that come before it."""
    work: tuple[tuple[Callable[[Any], object], Any], ...]
    """What is called, and with what; each call does a part of it or finds it done."""

    @property
    def name(self) -> str:
        """Kind and key."""
        return f"{self.kind}-{self.key}"


def nodes(profile_name: str) -> dict[str, Node]:
    """All nodes of a profile by name, each behind those that it needs.

    Args:
        profile_name: Name of a profile, or a path of one.

    Raises:
        ValueError: An unknown profile, or a parameter in it that a notebook does not take.

    >>> [node.what for node in nodes("mini").values()][0]
    'first stage and teacher of rdl/pydocs/test'
    """
    profile = load_profile(profile_name)
    given = {
        name: check_parameters(name, {"profile": profile_name, **profile.notebooks.get(name, {})})
        for name in NOTEBOOKS
    }
    graph, of_page = jobs({name: each.parts.values() for name, each in given.items()})
    for name in sorted(NOTEBOOKS, key=lambda name: name == _LAST):
        others = [other for other in graph if name == _LAST and other.startswith("page-")]
        made_of = [_made_by("rdl_study"), _plain(given[name]), _plain(profile), shown_in(name)]
        node = Node(
            kind="page", key=f"{name}-{_hash_of(made_of)}", what=f"page {name}",
            needs=(*of_page[name], *others), work=((partial(page, profile_name), name),),
        )  # fmt: skip
        graph[node.name] = node
    return graph


def jobs(parts: dict[str, Iterable[Part]]) -> tuple[dict[str, Node], dict[str, list[str]]]:
    """The nodes that compute what pages compare, and which of them each page needs.

    Args:
        parts: What pages compare, by their names.

    >>> part = Part(profile=profile, systems={"student": profile.student()}, baseline="student")
    >>> [node.kind for node in jobs({"page": [part]})[0].values()]
    ['lists', 'lists', 'student', 'student']
    """
    asked = {
        name: [
            config
            for part in each
            for system in part.systems.values()
            for config in rankings(part.profile, system)
        ]
        for name, each in parts.items()
    }
    listed, trained = _work([config for each in asked.values() for config in each])
    graph: dict[str, Node] = {}
    names: dict[str, str] = {}  # of the node that makes it, by a collection or a student's id
    for collection, work in listed.items():
        fetched = _fetched(graph, collection)
        asked_first = _taught(graph, work.values(), fetched)
        what = f"first stage and teacher of {collection}"
        node = _node("lists", what, [*fetched, *asked_first], work.values())
        graph[node.name], names[collection] = node, node.name
    for student_id, work in trained.items():
        (_, config), *others = work.values()
        behind = [x for _, one in others for x in _behind(one)] + _behind_student(config)
        needs = dict.fromkeys(names[one] for one in behind if one != student_id)
        node = _node("student", _words(config), needs, work.values())
        graph[node.name], names[student_id] = node, node.name
    of_page = {
        name: list(dict.fromkeys(names[one] for config in each for one in _behind(config)))
        for name, each in asked.items()
    }
    return graph, of_page


def marker(name: str) -> Path:
    """The file that says that a node is done, and names its runs.

    >>> marker("student-0123456789ab").name
    'student-0123456789ab.json'
    """
    return runs_folder() / "graph" / f"{name}.json"


def run(node: Node) -> None:
    """Do a node's work, as far as the store does not hold it, and leave its marker.

    >>> graph, _ = jobs({"page": [Part(profile=profile, systems={"a": "bm25"}, baseline="a")]})
    >>> [marker(name).exists() for name in graph]
    [False]
    """
    with noted() as ids:
        for do, what in node.work:
            do(what)
    _write(marker(node.name), {"node": node.name, "what": node.what, "runs": list(ids)})


def plan(profile_name: str, threads: int | None = None) -> Path:
    """Write down a profile's nodes for Snakemake, which then needs not to import this package.

    A marker is forgotten if one of its runs is gone from the store, so that it is made again.

    Args:
        profile_name: Name of a profile, or a path of one.
        threads: Of each job that computes; None takes this machine's. Late digits depend on it, so
            every job of a plan has as many, wherever it runs.

    Returns:
        A JSON file, named by its content.

    >>> plan("mini").suffix
    '.json'
    """
    graph = nodes(profile_name)
    for name in graph:
        _forget_if_lost(marker(name))
    rows = [
        {"name": node.name, "kind": node.kind, "what": node.what, "needs": node.needs,
         "alone": node.kind == "page" and node.key.startswith(f"{_TIMING}-")}
        for node in graph.values()
    ]  # fmt: skip
    planned = {
        "profile": profile_name, "scale": load_profile(profile_name).scale, "nodes": rows,
        "threads": threads or len(os.sched_getaffinity(0)), "folder": str(runs_folder() / "graph"),
    }
    file = marker(f"plan-{_hash_of(planned)}")
    _write(file, planned)
    return file


_Work = dict[str, tuple[Callable[[Any], object], Any]]


def _work(asked: Iterable[RankingConfig]) -> tuple[dict[str, _Work], dict[str, _Work]]:
    """What is to do for each collection, and for each student by its id: first train it."""
    listed: defaultdict[str, _Work] = defaultdict(dict)
    trained: defaultdict[str, _Work] = defaultdict(dict)
    for config in asked:
        students = _stages(config.system)
        read = [config.candidates, *(one for last in students[-1:] for one in _lists(last))]
        for one in read:
            listed[one.collection][_id(one)] = (lists, one)
        for one in read if students else ():
            texts = (one.collection, config.system.encoder)
            listed[one.collection][_id(texts)] = (_tokens, texts)
        for each in students:
            trained[_id(each)].setdefault(_id(each), (student, each))
        ranks = trained[_id(config.system)] if students else listed[config.candidates.collection]
        ranks[_id(config)] = (ranking, config)
    return listed, trained


def _stages(system: str | StudentConfig) -> list[StudentConfig]:
    """A student after each of its stages."""
    if isinstance(system, str):
        return []
    return [replace(system, stages=system.stages[: n + 1]) for n in range(len(system.stages))]


def _lists(config: StudentConfig) -> list[ListsConfig]:
    read = [one for stage in config.stages for one in (*stage.lists.each(), stage.dev)]
    return [one for one in read if one]


def _behind(config: RankingConfig) -> list[str]:
    """The collections and students of a ranking."""
    students = _stages(config.system)
    return [config.candidates.collection, *(x for s in students[-1:] for x in _behind_student(s))]


def _behind_student(config: StudentConfig) -> list[str]:
    return [*(one.collection for one in _lists(config)), *map(_id, _stages(config))]


def _fetched(graph: dict[str, Node], collection: str) -> list[str]:
    """The node that fetches a collection's files, if they come over a network."""
    base = collection.removesuffix("/crops")
    if base.startswith("rdl/pydocs/") or Path(base).is_dir():
        return []
    groups = {name.partition("/")[0] for name in registry()}
    group = next((g for g in groups if base.startswith(f"rdl/{g}")), None)
    work = (fetch_group, group) if group else (_read, base)
    node = _node("fetch", f"files of {group or base}", (), [work])
    graph[node.name] = node
    return [node.name]


@dataclass(frozen=True, kw_only=True)
class _Shard:
    lists: ListsConfig
    number: int


def _taught(
    graph: dict[str, Node], work: Iterable[tuple[Callable[[Any], object], Any]], needs: list[str]
) -> list[str]:
    """The nodes of LLMs that are asked for lists or for rankings: one for each shard."""
    asked = [one for do, one in work if do is lists] + [
        replace(one.candidates, teacher=one.system)
        for do, one in work
        if do is ranking and one.system.endswith(_LLM)
    ]
    names = []
    for config in (one for one in asked if one.teacher.endswith(_LLM)):
        of = read_settings(LLMTeacher, Path(config.teacher)).shards
        for number in range(1, of + 1):
            what = f"{config.teacher} orders {config.collection}, shard {number} of {of}"
            node = _node("teach", what, needs, [(_teach, _Shard(lists=config, number=number))])
            graph[node.name] = node
            names.append(node.name)
    return names


def _teach(part: _Shard) -> None:
    candidates = candidates_of(part.lists)
    if part.number <= candidates["query_id"].nunique():  # else there is nothing for it to do
        shard(candidates, part.lists.collection, Path(part.lists.teacher), part.number)


def _read(collection: str) -> str:
    """Read all of a collection once, which has ir_datasets fetch its files."""
    return load(collection).fingerprint


def _tokens(what: tuple[str, str]) -> None:
    collection, encoder = load(what[0]), what[1]
    tokens(collection.queries, encoder)
    passage_tokens(collection, encoder)  # in parts, however many there are


def _node(
    kind: str, what: str, needs: Iterable[str], work: Iterable[tuple[Callable[[Any], object], Any]]
) -> Node:
    work = tuple(work)
    key = _hash_of([_made_by(_CODE), [[do.__name__, _plain(one)] for do, one in work]])
    return Node(kind=kind, key=key, what=what, needs=tuple(needs), work=work)


def _words(config: StudentConfig) -> str:
    last, n = config.stages[-1], len(config.stages)
    learnt = f"{last.training.loss} from {last.lists.teacher}, {last.lists.first_stage} top "
    return f"stage {n} of a student: {learnt}{last.lists.depth}, seed {config.seed}"


def _id(config: object) -> str:
    return _hash_of(_plain(config))


def _made_by(*modules: str) -> list[object]:
    """Code and libraries; what the embedded collection is read from among them."""
    libraries = ["scikit-learn" if name == "sklearn" else name for name in pydocs.PACKAGES]
    return [code_hash(*modules), versions(), sys.version, list(map(metadata.version, libraries))]


def _plain(value: Any) -> Any:
    """A configuration as JSON, and the state of files that it names.

    Without its precision: where a job runs, ``auto`` may stand for another one than where it is
    planned.
    """
    if isinstance(value, ListsConfig):
        named = (*value.first_stages, value.teacher, value.collection)
        files = [(str(x), x.stat().st_size, x.stat().st_mtime_ns) for x in _files(named)]
        return [files, vars(value)]
    if is_dataclass(value):
        value = vars(value)
    if isinstance(value, dict):
        return {key: _plain(one) for key, one in value.items() if key != "precision"}
    return list(map(_plain, value)) if isinstance(value, (list, tuple)) else value


def _files(named: Iterable[str]) -> list[Path]:
    """Those among names, and in folders among them."""
    paths = [Path(name) for name in named]
    inside = [one for path in paths if path.is_dir() for one in sorted(path.iterdir())]
    return [path for path in (*paths, *inside) if path.is_file()]


def _hash_of(value: object) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()[:12]


def _forget_if_lost(file: Path) -> None:
    if file.exists():
        runs = json.loads(file.read_text())["runs"]
        if not all((runs_folder() / run_id / "manifest.json").exists() for run_id in runs):
            file.unlink()


def _write(file: Path, content: dict) -> None:
    """In one stroke, and under a name of its own until then: two calls may do the same node."""
    file.parent.mkdir(parents=True, exist_ok=True)
    unfinished = file.with_suffix(f".{os.getpid()}.partial")
    unfinished.write_text(json.dumps(content, indent=1))
    os.replace(unfinished, file)
