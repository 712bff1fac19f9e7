"""The grid: which systems each page of the book compares.

A page has one or more parts, each a table: systems by label, ranked on the same queries, and the one
that the others are compared with. Notebooks show parts, `rdl study` computes them, and a recorded
run keeps them under the same names.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass, replace

from rdl_core.data import rank_distillm, trec_dl
from rdl_study.candidates import ListsConfig
from rdl_study.jobs import RankingConfig, StudentConfig
from rdl_study.profile import Profile

__all__ = [
    "Added", "Part", "depth", "effectiveness", "latency", "loss", "negatives", "out_of_domain",
    "rankings", "teacher", "your_corpus",
]  # fmt: skip


#: Teachers that did not rank the candidates of test queries.
_WITHOUT_ORDER = ("judgments", *rank_distillm.TEACHERS)
# What the first stage's scores count where others count 1. Of 0.1 to 1, this was the best with each
# year's judgments for student and bi-encoder, so that each chooses it for the other year.
_OF_FIRST_STAGE = 0.3


@dataclass(frozen=True, kw_only=True)
class Added:
    """A student or an order with scores of others added, all standardised within each query.

    >>> rankings(profile, Added(system="bi_encoder", others={"first_stage": 0.3}))[0].added
    {'first_stage': 0.3}
    """

    system: str | StudentConfig
    """A student, or a member of `rdl_study.candidates.TEACHERS`."""
    others: dict[str, float]
    """Weights of others by name, a member of the same; of the first stage, its scores count."""


#: What a part compares: an order, a student, or several together.
System = str | StudentConfig | Added


@dataclass(frozen=True, kw_only=True)
class Part:
    """Systems compared on the same queries."""

    profile: Profile
    """Whose test queries, and whose seeds."""
    systems: dict[str, System]
    """By label: an order of `rdl_study.candidates.TEACHERS`, a student, or several together."""
    baseline: str
    """Label of the system that the others are compared with."""


def rankings(profile: Profile, system: System) -> list[RankingConfig]:
    """The rankings behind a system's figure: one for each collection tested on, and each seed.

    >>> [ranking.system.seed for ranking in rankings(profile, profile.student())]
    [0]
    """
    configs, added = [], {}
    if isinstance(system, Added):
        system, added = system.system, system.others
    for number, test in enumerate(profile.tests):
        swapped = number and profile.both_ways and isinstance(system, StudentConfig)
        there = profile.swapped(system) if swapped else system
        seeded = (
            [replace(there, seed=seed) for seed in profile.seeds]
            if isinstance(there, StudentConfig)
            else [there]
        )
        configs += [
            RankingConfig(
                candidates=test, system=one, precision=profile.precision, added=added
            )
            for one in seeded
        ]
    return configs


def effectiveness(profile: Profile, first_stages: Iterable[str]) -> dict[str, Part]:
    """First stage, encoders, LLMs and students; a part for each first stage that is re-ranked.

    >>> list(effectiveness(profile, ["bm25"])["bm25"].systems)
    ['first stage', 'bi-encoder', ..., 'student + bi-encoder + first stage']
    """
    taught_by, more = profile.stage2.lists.teacher, profile.more_encoders
    student, first_stage = profile.student(), {"first_stage": _OF_FIRST_STAGE}
    parts = {}
    for name in first_stages:
        there = replace(profile, test=replace(profile.test, first_stage=name))
        others = [llm for llm in _llms(there.tests) if llm != taught_by]
        teacher = {f"teacher ({taught_by})": taught_by} if taught_by not in _WITHOUT_ORDER else {}
        parts[name] = Part(
            profile=there, baseline="first stage",
            systems={
                "first stage": "first_stage",
                "bi-encoder": "bi_encoder",
                "bi-encoder + first stage": Added(system="bi_encoder", others=first_stage),
                **{llm: llm for llm in others},
                **teacher,
                "student after stage 1": profile.student("first"),
                "student": student,
                "student + first stage": Added(system=student, others=first_stage),
                "student + bi-encoder": Added(system=student, others={"bi_encoder": 1.0}),
                "student + bi-encoder + first stage": Added(
                    system=student, others={"bi_encoder": 1.0, **first_stage}
                ),
                **{f"student, {x}": replace(profile, encoder=x).student() for x in more},
            },
        )
    return parts


def negatives(profile: Profile, first_stages: Iterable[str]) -> dict[str, Part]:
    """Where training lists come from, with and without the contrastive stage.

    >>> list(negatives(profile, ["bm25"])["first stages"].systems)
    ['single, lists from bm25', 'dual, lists from bm25']
    """
    profile, first_stages = profile.ablation, list(first_stages)
    systems = {
        f"{label}, lists from {name}": profile.student(stages, first_stage=name)
        for stages, label in (("second", "single"), ("both", "dual"))
        for name in first_stages
    }
    own = profile.stage2.lists.first_stage
    baseline = f"dual, lists from {own if own in first_stages else first_stages[0]}"
    return {"first stages": _part(profile, systems, baseline)}


def depth(
    profile: Profile, depths: Iterable[int], n_queries: Iterable[int | None]
) -> dict[str, Part]:
    """How deep training lists are, and how many queries have one.

    >>> list(depth(profile, [2, 3], [1, None])["queries"].systems)
    ['1 query', 'all queries']
    """
    profile = profile.ablation
    by_depth = {f"depth {n}": _student_at(profile, n) for n in depths}
    by_number = {_queries(n): _student_of(profile, n) for n in n_queries}
    parts = {"depths": _part(profile, by_depth, list(by_depth)[-1])}
    if by_number:
        parts["queries"] = _part(profile, by_number, list(by_number)[-1])
    return parts


def loss(profile: Profile, losses: Iterable[str]) -> dict[str, Part]:
    """Losses of the second stage, at equal budgets.

    >>> list(loss(profile, ["ranknet", "adr_mse"])["losses"].systems)
    ['ranknet', 'adr_mse']
    """
    profile = profile.ablation
    systems = {name: profile.student(loss=name, loss_options={}) for name in losses}
    return {"losses": _part(profile, systems, next(iter(systems)))}


def teacher(profile: Profile, teachers: Iterable[str]) -> dict[str, Part]:
    """Who orders the training lists; and what these orders are worth themselves.

    >>> list(teacher(profile, ["fused", "judgments"]))
    ['students', 'teachers']
    """
    profile = profile.ablation
    parts = _taught(profile, [name for name in teachers if not _one_way(profile, name)])
    if elsewhere := [name for name in teachers if _one_way(profile, name)]:
        # Lists of the first test collection alone: it teaches, the other one tests.
        there = replace(profile, stage2=profile.swapped(profile.stage2), both_ways=False)
        there = replace(there, test=profile.swapped(profile.test))
        names = [profile.stage2.lists.teacher, *elsewhere]
        parts["students, one way"] = _taught(there, names)["students"]
        here = replace(profile, both_ways=False)
        parts["teachers, one way"] = _taught(here, names)["teachers"]
    return parts


def out_of_domain(profile: Profile, collections: Iterable[str], depth: int) -> dict[str, Part]:
    """Collections that nothing was trained on; a part for each corpus, its collections' queries
    together.

    >>> list(out_of_domain(profile, ["rdl/vaswani"], 100))
    ['vaswani']
    """
    systems = {
        "first stage": "first_stage",
        "bi-encoder": "bi_encoder",
        "student after stage 1": profile.student("first"),
        "student": profile.student(),
    }
    by_corpus: dict[str, list[str]] = {}
    for name in collections:
        by_corpus.setdefault(name.removeprefix("rdl/").partition("/")[0], []).append(name)
    parts = {}
    for corpus, (first, *others) in by_corpus.items():
        test = ListsConfig(collection=first, first_stage="bm25", depth=depth)
        there = replace(profile, test=test, more_tests=tuple(others), both_ways=False)
        parts[corpus] = Part(profile=there, systems=systems, baseline="first stage")
    return parts


def _taught(profile: Profile, teachers: list[str]) -> dict[str, Part]:
    students = {
        f"student of {name}": profile.student(
            teacher=name, targets="judgments" if name == "judgments" else "teacher"
        )
        for name in teachers
    }
    orders = {name: name for name in ("first_stage", *teachers) if name not in _WITHOUT_ORDER}
    return {
        "students": _part(profile, students, next(iter(students))),
        "teachers": _part(profile, orders, "first_stage"),
    }


def _one_way(profile: Profile, teacher: str) -> bool:
    """Whether an LLM ranked lists of the test collection, but none of the training collection."""
    llm = teacher in trec_dl.TEACHERS
    return profile.both_ways and llm and teacher not in _llms([profile.stage2.lists])


def _part(profile: Profile, systems: dict[str, System], baseline: str) -> Part:
    return Part(profile=profile, systems=systems, baseline=baseline)


def your_corpus(
    profile: Profile, collection: str, n_train: int, teacher: str
) -> dict[str, Part]:
    """A corpus of one's own: the profile's stage 1, a second stage on some of the corpus' queries,
    and a test on the others.

    >>> list(your_corpus(profile, "rdl/pydocs/dev", 5, "fused")["corpus"].systems)
    ['first stage', 'teacher', 'student before', 'student']
    """
    own = {"collection": collection, "first_stage": "bm25"}
    stage2 = replace(
        profile.stage2,
        lists=replace(profile.stage2.lists, **own, n_queries=n_train, teacher=teacher),
    )
    test = replace(profile.test, **own, skip_queries=n_train, n_queries=None)
    profile = replace(profile, stage2=stage2, test=test, both_ways=False, more_tests=())
    systems = {
        "first stage": "first_stage",
        "teacher": teacher,
        "student before": profile.student("first"),
        "student": profile.student(),
    }
    return {"corpus": _part(profile, systems, "first stage")}


def latency(profile: Profile) -> dict[str, Part]:
    """What is timed on the efficiency page, for the effectiveness beside it.

    >>> list(latency(profile)["latency"].systems)
    ['BM25', 'bi-encoder', 'student']
    """
    systems = {"BM25": "first_stage", "bi-encoder": "bi_encoder", "student": profile.student()}
    return {"latency": _part(profile, systems, "BM25")}


def _llms(candidates: Iterable[ListsConfig]) -> list[str]:
    """LLMs that ranked all of these candidates."""
    of_each = []
    for config in candidates:
        year = trec_dl.year_of(config.collection)
        published = year is not None and config.first_stage in trec_dl.FIRST_STAGES
        of_each.append(trec_dl.teachers_of(year, config.first_stage) if published else [])
    return [name for name in of_each[0] if all(name in others for others in of_each)]


def _student_at(profile: Profile, depth: int) -> StudentConfig:
    """Trained on lists of another depth, at as many passages a step or, if need be, queries."""
    training = profile.stage2.training
    if profile.alike == "passes":
        return profile.student(depth=depth, list_size=min(depth, training.list_size))
    passages = training.list_size * training.queries_per_step
    return profile.student(
        depth=depth, list_size=min(depth, training.list_size),
        queries_per_step=max(1, passages // min(depth, training.list_size)),
    )


def _student_of(profile: Profile, n_queries: int | None) -> StudentConfig:
    """Trained on the lists of so many queries, for as many steps or, if need be, passes."""
    most, steps = profile.stage2.lists.n_queries, profile.stage2.training.steps
    if profile.alike == "passes" and most and n_queries:
        steps = math.ceil(steps * n_queries / most)
    return profile.student(n_queries=n_queries, steps=steps)


def _queries(n: int | None) -> str:
    if n is None:
        return "all queries"
    return f"{n} quer{'y' if n == 1 else 'ies'}"
