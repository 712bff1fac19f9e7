"""The study as a graph of jobs, which Snakemake orders and spreads over machines.

A node names work that `rdl_study.store.obtain` does or finds done: a training stage with the rankings
of its student, as starting a process takes longer than most rankings, or several short stages; a
collection's lists, tokens and rankings without a student, behind a node for each shard of an LLM that
is asked; a page, behind all that it compares. A node's name ends with a hash of its configuration, code
and libraries, so that a change of these makes new nodes. A finished node has a marker, which names its
runs.
"""

from __future__ import annotations

import os
import resource
import sys
import time
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, fields, is_dataclass, replace
from importlib import metadata
from pathlib import Path
from typing import Any

import psutil
from filelock import FileLock

from rdl_core.data import pydocs
from rdl_core.data.collections import load
from rdl_core.data.downloads import fetch_group, registry
from rdl_core.files import content_hash, read_json, read_settings, write_json
from rdl_study.grid import Part, RankingConfig, StudentConfig, rank, rankings, train
from rdl_study.lists import ListsConfig, LLMTeacher, ask_shard, candidates_of, corpus, lists
from rdl_study.notebook import declared, notebooks
from rdl_study.pages import page, page_code, shown_in
from rdl_study.profile import load_profile
from rdl_study.store import code_hash, libraries, noted, runs_folder, short_hash

__all__ = ["Node", "declarations", "jobs", "marker", "nodes", "plan", "run"]

_SHORT = 1_000  # passages: trainings no longer than that, from the same student, share a job
_TIMING, _LAST = "efficiency", ("costs", "start")  # nothing runs beside it; these sum up all others
_VERSIONS = [metadata.version("scikit-learn" if x == "sklearn" else x) for x in pydocs.PACKAGES]
_Work = tuple[Callable[..., object], tuple]


@dataclass(frozen=True, kw_only=True)
class Node:
    """A job of the graph."""

    kind: str  # fetch, teach, lists, student or page
    key: str  # a hash, behind a page's name
    what: str  # a few words for people
    needs: tuple[str, ...] = ()  # names of the nodes that come before it
    work: tuple[_Work, ...]  # functions and their arguments; each does a part, or finds it done

    @property
    def name(self) -> str:
        """Kind and key."""
        return f"{self.kind}-{self.key}"


def declarations(profile_name: str, pages: Sequence[str] = (), changes: Mapping | None = None) -> dict:
    """Parts by notebook at a profile: of some `pages` or all, with `changes` of their parameters."""
    given = load_profile(profile_name).notebooks
    if unknown := ", ".join(given.keys() - set(notebooks())):
        raise ValueError(f"notebooks: expected some of {', '.join(notebooks())}; got {unknown}")
    base, changes = {"profile": profile_name}, dict(changes or {})
    return {x: declared(x, base | given.get(x, {}) | changes) for x in pages or notebooks()}


def nodes(profile_name: str) -> dict[str, Node]:
    """All nodes of a profile by name, each behind those that it needs."""
    profile, parts = load_profile(profile_name), declarations(profile_name)
    graph, of_page = jobs({name: each.values() for name, each in parts.items()})
    for name in sorted(parts, key=_LAST.__contains__):
        others = [x for x in graph if name in _LAST and x.startswith("page-") and "-costs-" not in x]
        made_of = [_code(*page_code(name)), _plain(profile), profile_name, shown_in(name)]
        key, work = f"{name}-{short_hash(made_of)}", [(page, (profile_name, name))]
        _node(graph, "page", f"page {name}", [*of_page[name], *others], work, key=key)
    return graph


def jobs(parts: Mapping[str, Iterable[Part]]) -> tuple[dict[str, Node], dict[str, list[str]]]:
    """The nodes that compute what pages compare, and the names of those that each page needs."""
    listed, trained = defaultdict(dict), defaultdict(dict)  # work by collection, by student
    needs: defaultdict[str, set[str]] = defaultdict(set)  # by page or student
    for name, each in parts.items():
        systems = [(part.profile, system) for part in each for system in part.systems.values()]
        for config in (config for system in systems for config in rankings(*system)):
            needs[name] |= _add(config, listed, trained, needs)
    graph: dict[str, Node] = {}
    names: dict[str, str] = {}  # of the node that does the work, by collection or student
    for collection, work in listed.items():
        before = _fetched(graph, collection)
        before += _asked(graph, work.values(), before)
        what = f"first stage and teacher of {collection}"
        names[collection] = _node(graph, "lists", what, before, work.values())
    for key, work in trained.items():
        (student,), before = next(iter(work.values()))[1], [names[x] for x in names if x in needs[key]]
        last, n, seed = student.stages[-1], len(student.stages), student.seed
        learnt = f"{last.training.loss} from {last.lists.teacher}, {last.lists.first_stage}"
        also = sum(do is train for do, _ in work.values()) - 1
        what = f"stage {n} of a student: {learnt} top {last.lists.depth}, seed {seed}"
        what += f", and of {also} more" * (also > 0)
        names[key] = _node(graph, "student", what, before, work.values())
    return graph, {page: [names[x] for x in names if x in needs[page]] for page in parts}


def marker(name: str) -> Path:
    """The file that says that a node is finished, and names its runs."""
    return runs_folder() / "graph" / f"{name}.json"


def run(node: Node) -> None:
    """Do a node's work, as far as the store does not hold it; leave a marker with what it took."""
    started, begun = psutil.Process().create_time(), time.time()
    with noted() as ids:
        for function, arguments in node.work:
            function(*arguments)
    used = [*map(resource.getrusage, (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))]  # and kernels
    ended = {"node": node.name, "what": node.what, "runs": list(ids), "start_s": begun - started,
             "wall_s": time.time() - started, "cpu_s": sum(x.ru_utime + x.ru_stime for x in used),
             "peak_mb": max(x.ru_maxrss for x in used) >> 10}  # fmt: skip
    with FileLock(f"{marker(node.name)}.lock"):  # two jobs may do the same node
        write_json(marker(node.name), ended)


def plan(profile_name: str, threads: int | None = None) -> Path:
    """Write a profile's nodes for Snakemake, and remove markers of runs that are gone; gives the file.

    Every job that computes has the same number of `threads`, as late digits of results depend on it.
    """
    graph, rows = nodes(profile_name), []
    for node in graph.values():
        file, alone = marker(node.name), node.key.startswith(f"{_TIMING}-")
        if file.exists():
            folders = [runs_folder() / run_id for run_id in read_json(file)["runs"]]
            if not all((folder / "manifest.json").exists() for folder in folders):
                file.unlink()
        rows.append({"name": node.name, "kind": node.kind, "what": node.what, "needs": node.needs,
                     "alone": node.kind == "page" and alone})  # fmt: skip
    planned = {
        "profile": profile_name, "scale": load_profile(profile_name).scale, "nodes": rows,
        "threads": threads or len(os.sched_getaffinity(0)), "folder": str(runs_folder() / "graph"),
    }  # fmt: skip
    file = marker(f"plan-{short_hash(planned)}")
    with FileLock(f"{file}.lock"):
        write_json(file, planned)
    return file


def _add(
    config: RankingConfig, listed: Mapping[str, dict[str, _Work]],
    trained: Mapping[str, dict[str, _Work]], needs: Mapping[str, set[str]],
) -> set[str]:
    """Add a ranking's work; gives the collections and students that it needs."""
    tested, before = config.candidates.collection, set()
    listed[tested][_id(config.candidates)] = (lists, (config.candidates,))
    if isinstance(config.system, str):
        listed[tested][_id(config)] = (rank, (config,))
        return {tested}
    for number, stage in enumerate(config.system.stages, start=1):
        for wanted in (x for x in (*stage.lists.each(), stage.dev) if x):
            listed[wanted.collection][_id(wanted)] = (lists, (wanted,))
            before.add(wanted.collection)
        student = replace(config.system, stages=config.system.stages[:number])
        needs[key := _job(student)] |= before
        trained[key].setdefault(_id(student), (train, (student,)))
        before.add(key)
    for name in {tested, *before} & listed.keys():
        texts = (name, config.system.encoder)
        listed[name][_id(texts)] = (corpus, texts)
    trained[key][_id(config)] = (rank, (config,))
    needs[key].add(tested)
    return {tested, *before}


def _fetched(graph: dict[str, Node], collection: str) -> list[str]:
    """The node that fetches a collection's files, if they come over a network."""
    base = collection.removesuffix("/crops")
    if base.startswith("rdl/pydocs/") or Path(base).is_dir():
        return []
    groups = {name.partition("/")[0] for name in registry()}
    group = next((g for g in groups if base.startswith(f"rdl/{g}")), None)
    work = (fetch_group, (group,)) if group else (_read, (base,))
    return [_node(graph, "fetch", f"files of {group or base}", (), [work])]


def _asked(graph: dict[str, Node], work: Iterable, needs: list[str]) -> list[str]:
    """The nodes of LLMs that are asked for lists or for rankings: one for each shard."""
    wanted = [
        x if function is lists else replace(x.candidates, teacher=x.system)
        for function, (x, *_) in work
        if function is lists or (function is rank and x.system.endswith(".yaml"))
    ]
    names = []
    for config in (x for x in wanted if x.teacher.endswith(".yaml")):
        n_shards = read_settings(LLMTeacher, Path(config.teacher)).shards
        for number in range(1, n_shards + 1):
            what = f"{config.teacher} orders {config.collection}, shard {number} of {n_shards}"
            names.append(_node(graph, "teach", what, needs, [(_ask, (config, number))]))
    return names


def _ask(wanted: ListsConfig, number: int) -> None:
    candidates = candidates_of(wanted)
    if number <= candidates["query_id"].nunique():  # else there is nothing for it to do
        ask_shard(candidates, wanted.collection, Path(wanted.teacher), number)


def _read(collection: str) -> str:  # all of it once, so that ir_datasets fetches its files
    return load(collection).fingerprint


def _node(
    graph: dict[str, Node], kind: str, what: str, needs: Iterable[str], work: Iterable[_Work],
    key: str | None = None,
) -> str:  # fmt: skip
    work = tuple(work)
    key = key or short_hash([_code("rdl_study.grid"), [[f.__name__, _plain(x)] for f, x in work]])
    node = Node(kind=kind, key=key, what=what, needs=tuple(needs), work=work)
    graph[node.name] = node
    return node.name


def _job(student: StudentConfig) -> str:
    *earlier, last = student.stages
    drawn = last.training.steps * last.training.queries_per_step * last.training.list_size
    return _id(student if drawn > _SHORT else [student.seed, *earlier])


def _id(config: object) -> str:
    return short_hash(_plain(config))


def _code(*modules: str) -> list[object]:
    """Code and libraries, with those whose documentation the embedded collection is."""
    return [code_hash(*modules), libraries(), sys.version, _VERSIONS]


def _plain(value: Any) -> Any:
    """A configuration as JSON, and the state of the files that it names.

    Without its precision: a job's machine may resolve auto to another one than the machine that plans.
    """
    if is_dataclass(value):
        own = {f.name: getattr(value, f.name) for f in fields(value)}
        if not isinstance(value, ListsConfig):
            return _plain(own)
        texts = [folder] if (folder := Path(value.collection)).is_file() else sorted(folder.glob("*"))
        states = [(x.name, x.stat().st_size, x.stat().st_mtime_ns) for x in texts if x.is_file()]
        # By content, as a job's own copy of the checkout has other paths and times; texts are large.
        return [own, [content_hash(path) for path in value.files], states]
    if isinstance(value, Mapping):
        return {key: _plain(x) for key, x in value.items() if key != "precision"}
    return [_plain(x) for x in value] if isinstance(value, (list, tuple)) else value
