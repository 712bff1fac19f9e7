"""Profiles: what one run of the study is, read from YAML and checked before anything runs.

A profile fixes the data, the student, the two stages and the test; a notebook varies one thing of
it. ``profiles/<name>.yaml`` holds exactly the fields of `Profile`, and an unknown key, a wrong type
or a value out of range is an error that names the key.
"""

from __future__ import annotations

from dataclasses import dataclass, field, fields, replace
from functools import lru_cache
from pathlib import Path
from typing import Any, TypeVar

from rdl_core.cross_encoder import HEADS
from rdl_core.devices import PRECISIONS, default_device, resolve_precision
from rdl_core.settings import read_settings
from rdl_study.candidates import ListsConfig
from rdl_study.jobs import Stage, StudentConfig
from rdl_study.store import project_folder

__all__ = ["Profile", "load_profile"]

_T = TypeVar("_T", ListsConfig, Stage, StudentConfig)


@dataclass(frozen=True, kw_only=True)
class Profile:
    """One run of the study."""

    name: str
    """Short name, the file's."""
    scale: str
    """``"smoke"``, ``"subset"`` or ``"full"``: how much of the paper's experiment this is."""
    label: str
    """What the badge on every result page says of the data and the teacher."""
    encoder: str
    """Where the student's weights start."""
    query_tokens: int
    """Longest query, in tokens."""
    passage_tokens: int
    """Longest passage, in tokens."""
    stage1: Stage
    """Contrastive stage, on judgments with hard negatives."""
    stage2: Stage
    """Listwise stage, on the teacher's order."""
    test: ListsConfig
    """Test queries and their candidates."""
    more_encoders: tuple[str, ...] = ()
    """Where further students start that the first page shows."""
    head: str = "own"
    """What stands behind it: a member of `rdl_core.cross_encoder.HEADS`."""
    more_tests: tuple[str, ...] = ()
    """Further collections tested on like `test`: figures are over the queries of all."""
    ablation_queries: int | None = None
    """Test queries of the pages that compare many students; None takes the test's."""
    ablation_steps: int | None = None
    """Steps of the second stage there; None takes the stage's."""
    alike: str = "passages"
    """What students of lists of another depth or number have in common: ``"passages"``, the number
    that they are trained on, or ``"passes"`` over their queries, as in the paper."""
    both_ways: bool = False
    """Whether the second stage's collection and the test's also change places: every figure is
    then over the queries of both, each ranked by a student that learnt from the other."""
    precision: str = "auto"
    """In which students train and score: ``"auto"`` or a key of `rdl_core.devices.PRECISIONS`."""
    seeds: tuple[int, ...] = (0,)
    """One student is trained for each; a system's measure is the mean over them."""
    measure: str = "nDCG@10"
    """Main measure, an ir_measures string."""
    more_measures: tuple[str, ...] = ()
    """Further measures that a recorded run keeps."""
    notebooks: dict[str, dict[str, Any]] = field(default_factory=dict)
    """Parameters for each notebook, beside ``profile``."""

    __pydantic_config__ = {"extra": "forbid"}

    def __post_init__(self) -> None:
        if self.scale not in ("smoke", "subset", "full"):
            raise ValueError(f"scale: expected smoke, subset or full, got {self.scale!r}")
        for name, least in (("ablation_queries", 2), ("ablation_steps", 1)):
            if (value := getattr(self, name)) is not None and value < least:
                raise ValueError(f"{name}: expected at least {least}, got {value}")
        if self.alike not in ("passages", "passes"):
            raise ValueError(f"alike: expected passages or passes, got {self.alike!r}")
        if self.both_ways and self.more_tests:
            raise ValueError("more_tests: expected none with both_ways, which has a second of its own")
        if self.precision not in ("auto", *PRECISIONS):
            raise ValueError(
                f"precision: expected auto, {', '.join(PRECISIONS)}; got {self.precision!r}"
            )
        if self.head not in HEADS:
            raise ValueError(f"head: expected one of {', '.join(HEADS)}; got {self.head!r}")
        if not self.seeds:
            raise ValueError("seeds: expected at least one")

    @property
    def ablation(self) -> Profile:
        """This profile as the pages see it that compare many students: smaller, all alike."""
        steps = self.ablation_steps or self.stage2.training.steps
        return replace(
            self,
            stage2=replace(self.stage2, training=replace(self.stage2.training, steps=steps)),
            test=replace(self.test, n_queries=self.ablation_queries or self.test.n_queries),
        )

    @property
    def tests(self) -> list[ListsConfig]:
        """The test queries of each collection; two where training and test change places."""
        other = [self.swapped(self.test)] if self.both_ways else []
        return [self.test, *other, *(replace(self.test, collection=c) for c in self.more_tests)]

    def swapped(self, config: _T) -> _T:
        """A configuration in which training and test collection have changed places.

        Args:
            config: A `ListsConfig`, a `Stage` or a `StudentConfig`.
        """
        if isinstance(config, ListsConfig):
            one, other = self.stage2.lists.collection, self.test.collection
            places = {one: other, other: one}
            return replace(config, collection=places.get(config.collection, config.collection))
        if isinstance(config, Stage):
            dev = config.dev and self.swapped(config.dev)
            return replace(config, lists=self.swapped(config.lists), dev=dev)
        return replace(config, stages=tuple(map(self.swapped, config.stages)))

    def student(self, stages: str = "both", **changes: Any) -> StudentConfig:
        """The profile's student, or one that differs from it in the named things.

        Args:
            stages: ``"both"``, ``"first"`` or ``"second"``: which stages train it.
            **changes: New values for fields of the last stage, of its lists or of its training
                (``depth=10``, ``loss="listnet"``, ``teacher="bi_encoder"``), and ``seed``.

        Raises:
            ValueError: An unknown name; lists those there are.
        """
        choices = {
            "both": (self.stage1, self.stage2), "first": (self.stage1,), "second": (self.stage2,)
        }
        if stages not in choices:
            raise ValueError(f"stages: expected one of {', '.join(choices)}; got {stages!r}")
        *earlier, last = choices[stages]
        seed = changes.pop("seed", self.seeds[0])
        precision = {"precision": resolve_precision(self.precision, default_device())}
        return StudentConfig(
            encoder=self.encoder,
            query_tokens=self.query_tokens,
            passage_tokens=self.passage_tokens,
            stages=(
                *(_changed(stage, precision) for stage in earlier),
                _changed(last, precision | changes),
            ),
            seed=seed,
            head=self.head,
        )


@lru_cache
def load_profile(name: str) -> Profile:
    """Read a profile by name, or from a path that ends in ``.yaml``.

    Raises:
        ValueError: No such profile (lists those there are), or a value that does not fit (names
            its key).

    >>> load_profile("mini").scale
    'smoke'
    """
    folder = project_folder() / "profiles"
    path = Path(name) if name.endswith(".yaml") else folder / f"{name}.yaml"
    if not path.is_file():
        known = ", ".join(sorted(p.stem for p in folder.glob("*.yaml")))
        raise ValueError(f"unknown profile {name!r}: expected one of {known}, or a path to a .yaml")
    return read_settings(Profile, path)


def _changed(stage: Stage, changes: dict[str, Any]) -> Stage:
    of_lists = {f.name for f in fields(stage.lists)}
    of_training = {f.name for f in fields(stage.training)}
    if unknown := changes.keys() - of_lists - of_training:
        valid = ", ".join(sorted(of_lists | of_training | {"seed"}))
        raise ValueError(f"unknown change {sorted(unknown)}: expected names among {valid}")
    return replace(
        stage,
        lists=replace(stage.lists, **{k: v for k, v in changes.items() if k in of_lists}),
        training=replace(stage.training, **{k: v for k, v in changes.items() if k in of_training}),
    )
