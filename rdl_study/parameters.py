"""Parameters of the notebooks: one dataclass each, checked before anything runs.

papermill injects whatever it is given: a name that no cell uses only warns, a list may arrive as a
string. So the first cell of each notebook hands all that it finds to `parameters`.
"""

from __future__ import annotations

from collections.abc import Mapping, MutableMapping
from dataclasses import dataclass, fields
from types import ModuleType
from typing import Any

import yaml

from rdl_core.losses import LOSSES
from rdl_core.progress import log_plainly
from rdl_core.samplers import SAMPLERS
from rdl_core.settings import checked
from rdl_study import grid
from rdl_study.candidates import FIRST_STAGES, TEACHERS
from rdl_study.grid import Part
from rdl_study.profile import Profile, load_profile

__all__ = ["NOTEBOOKS", "check_parameters", "parameters"]

_OF_JUPYTER = {"In", "Out", "exit", "quit", "open", "get_ipython"}


@dataclass(frozen=True, kw_only=True)
class _OnlyProfile:
    profile: str = "mini"
    """Name of a profile, or path to one."""

    __pydantic_config__ = {"extra": "forbid"}

    def __post_init__(self) -> None:
        load_profile(self.profile)

    @property
    def settings(self) -> Profile:
        """The profile that was named."""
        return load_profile(self.profile)

    @property
    def parts(self) -> dict[str, Part]:
        """What the page compares."""
        return self.parts_at(self.settings)

    def parts_at(self, profile: Profile) -> dict[str, Part]:
        """The same at another profile; see `rdl_study.grid`."""
        return {}


@dataclass(frozen=True, kw_only=True)
class Effectiveness(_OnlyProfile):
    """First stages whose candidates are re-ranked."""

    first_stages: tuple[str, ...]
    """Members of `FIRST_STAGES`."""

    def __post_init__(self) -> None:
        super().__post_init__()
        _check_names("first_stages", self.first_stages, FIRST_STAGES)

    def parts_at(self, profile: Profile) -> dict[str, Part]:
        return grid.effectiveness(profile, self.first_stages)


@dataclass(frozen=True, kw_only=True)
class Negatives(_OnlyProfile):
    """First stages that the training lists come from."""

    first_stages: tuple[str, ...]
    """Members of `FIRST_STAGES`, or several with ``+`` between them: a list from each."""

    def __post_init__(self) -> None:
        super().__post_init__()
        for names in self.first_stages:
            _check_names("first_stages", tuple(names.split("+")), FIRST_STAGES)

    def parts_at(self, profile: Profile) -> dict[str, Part]:
        return grid.negatives(profile, self.first_stages)


@dataclass(frozen=True, kw_only=True)
class Depth(_OnlyProfile):
    """Depths of the training lists, and how many there are."""

    depths: tuple[int, ...]
    """Candidates per training list, 2 to 100, each once."""
    n_queries: tuple[int | None, ...] = ()
    """Training queries; None stands for all of them. Empty: not compared."""

    def __post_init__(self) -> None:
        super().__post_init__()
        _check_names("depths", self.depths, range(2, 101))

    def parts_at(self, profile: Profile) -> dict[str, Part]:
        return grid.depth(profile, self.depths, self.n_queries)


@dataclass(frozen=True, kw_only=True)
class Loss(_OnlyProfile):
    """Losses of the second stage."""

    losses: tuple[str, ...]
    """Keys of `rdl_core.losses.LOSSES`."""

    def __post_init__(self) -> None:
        super().__post_init__()
        _check_names("losses", self.losses, LOSSES)

    def parts_at(self, profile: Profile) -> dict[str, Part]:
        return grid.loss(profile, self.losses)


@dataclass(frozen=True, kw_only=True)
class Teacher(_OnlyProfile):
    """Teachers of the second stage."""

    teachers: tuple[str, ...]
    """Members of `TEACHERS`."""

    def __post_init__(self) -> None:
        super().__post_init__()
        _check_names("teachers", self.teachers, TEACHERS)

    def parts_at(self, profile: Profile) -> dict[str, Part]:
        return grid.teacher(profile, self.teachers)


@dataclass(frozen=True, kw_only=True)
class OutOfDomain(_OnlyProfile):
    """Collections that nothing was trained on."""

    collections: tuple[str, ...]
    """ir_datasets ids; may be none, and the page then shows recorded figures alone."""
    depth: int
    """Candidates per query, from BM25."""

    def parts_at(self, profile: Profile) -> dict[str, Part]:
        return grid.out_of_domain(profile, self.collections, self.depth)


@dataclass(frozen=True, kw_only=True)
class Efficiency(_OnlyProfile):
    """How much is timed."""

    n_queries: int
    """Test queries that are ranked."""
    repetitions: int
    """How often each of them is."""

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("n_queries", "repetitions"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}: expected at least 1, got {getattr(self, name)}")

    def parts_at(self, profile: Profile) -> dict[str, Part]:
        return grid.latency(profile)


@dataclass(frozen=True, kw_only=True)
class Costs(_OnlyProfile):
    """Reckoned from recorded rates."""


@dataclass(frozen=True, kw_only=True)
class YourCorpus(_OnlyProfile):
    """A corpus, and who ranks its candidates."""

    collection: str
    """A folder, or an ir_datasets id."""
    n_train: int
    """Queries that the student learns from; the others test it."""
    teacher: str
    """A member of `TEACHERS`, or a file of ranked lists, such as ``rdl teach`` writes."""

    def parts_at(self, profile: Profile) -> dict[str, Part]:
        return grid.your_corpus(profile, self.collection, self.n_train, self.teacher)


@dataclass(frozen=True, kw_only=True)
class Start(_OnlyProfile):
    """The first page takes its figures from the effectiveness page's first part."""

    def parts_at(self, profile: Profile) -> dict[str, Part]:
        return grid.effectiveness(profile, [profile.test.first_stage])


@dataclass(frozen=True, kw_only=True)
class TenMinutes(Start):
    """One query of the effectiveness page's first part."""

    query_id: str = ""
    """A test query; empty takes the one that the rule of `rdl_study.worked.pick` finds."""


@dataclass(frozen=True, kw_only=True)
class Pictures(_OnlyProfile):
    """Losses and samplers that are drawn, on lists of their own."""

    losses: tuple[str, ...] = ("ranknet", "adr_mse")
    """Keys of `rdl_core.losses.LOSSES`."""
    samplers: tuple[str, ...] = ("random", "stratified")
    """Those whose probabilities are known exactly."""
    depth: int = 8
    """Candidates that samplers draw from, list_size to 9."""
    list_size: int = 4
    """Passages that they draw."""
    n_draws: int = 10_000
    """Lists that are drawn to count."""

    def __post_init__(self) -> None:
        super().__post_init__()
        _check_names("losses", self.losses, LOSSES)
        _check_names("samplers", self.samplers, SAMPLERS.keys() - {"mixed", "in_corpus"})
        for name, least in (("list_size", 2), ("depth", max(5, self.list_size)), ("n_draws", 1)):
            if getattr(self, name) < least:
                raise ValueError(f"{name}: expected at least {least}, got {getattr(self, name)}")


#: Every notebook and its parameters, in the order in which a book is made.
NOTEBOOKS: dict[str, type[_OnlyProfile]] = {
    "effectiveness": Effectiveness,
    "negatives": Negatives,
    "depth": Depth,
    "loss": Loss,
    "teacher": Teacher,
    "out_of_domain": OutOfDomain,
    "efficiency": Efficiency,
    "costs": Costs,
    "your_corpus": YourCorpus,
    "ten_minutes": TenMinutes,
    "pictures": Pictures,
    "start": Start,
}


def parameters(notebook: str, namespace: MutableMapping[str, Any]) -> Any:
    """Check a notebook's parameters, from inside it.

    Args:
        notebook: A key of `NOTEBOOKS`.
        namespace: The notebook's ``globals()``.

    Raises:
        ValueError: A name that is no parameter, or a value that does not fit.

    >>> parameters("depth", {"profile": "mini", "depths": [5, 10]}).depths
    (5, 10)
    """
    log_plainly()
    found = {
        name
        for name, value in namespace.items()
        if not (name.startswith("_") or name in _OF_JUPYTER or isinstance(value, ModuleType))
    }
    # Run again by hand, the cell also finds what later cells have made.
    first_time = namespace.setdefault("_rdl_parameters", found)
    return check_parameters(notebook, {name: namespace[name] for name in found & first_time})


def check_parameters(notebook: str, values: Mapping[str, object]) -> Any:
    """Check a notebook's parameters.

    >>> check_parameters("depth", {"profile": "mini", "depths": [5, 10]}).depths
    (5, 10)
    """
    if notebook not in NOTEBOOKS:
        raise ValueError(f"expected a notebook of {', '.join(NOTEBOOKS)}; got {notebook!r}")
    kind = NOTEBOOKS[notebook]
    try:
        read = {name: _read(value) for name, value in values.items()}
        return checked(kind, read, what=f"notebook {notebook!r}")
    except ValueError as error:
        names = ", ".join(f.name for f in fields(kind))
        raise ValueError(f"{error}\nIts parameters are: {names}") from None


def _read(value: object) -> object:
    """A list that papermill's ``-p`` handed over as the text that spells it."""
    if not (isinstance(value, str) and value.startswith("[")):
        return value
    try:
        return yaml.safe_load(value)
    except yaml.YAMLError:
        return value


def _check_names(key: str, given: tuple, valid: Any) -> None:
    unknown = [value for value in given if value not in valid]
    if unknown or not given or len(set(given)) < len(given):
        choices = f"{valid.start} to {valid.stop - 1}" if isinstance(valid, range) else ", ".join(valid)
        raise ValueError(
            f"{key}: expected one or more different values of {choices}; got {list(given)}"
        )
