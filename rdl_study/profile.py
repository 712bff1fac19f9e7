"""Profiles: data, student, stages and test of a run of the study; a notebook varies one of them."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field

from rdl_core.config import Positive, Precision, StageConfig, config
from rdl_core.files import read_settings
from rdl_study.lists import ListsConfig
from rdl_study.store import project_folder

__all__ = ["Profile", "Stage", "StudentConfig", "load_profile"]


@config
class Stage:
    """One stage of distillation: what a student learns from, and how."""

    lists: ListsConfig
    """Training lists."""
    training: StageConfig
    """The loop's configuration."""
    dev: ListsConfig | None = None
    """Judged queries whose nDCG@10 decides which state is kept, if ``dev_every`` is set."""

    def __post_init__(self) -> None:
        if (self.dev is None) != (self.training.dev_every == 0):
            got = f"got dev_every {self.training.dev_every}: give both or neither"
            raise ValueError(f"dev: expected dev queries if and only if dev_every is not 0, {got}")


@config
class _Encoder:
    encoder: str
    """Where the student's weights start: the embedded encoder, a folder or a hub id."""
    query_tokens: Positive
    """Longest query, in tokens."""
    passage_tokens: Positive
    """Longest passage, in tokens."""


@config
class StudentConfig(_Encoder):
    """A student, by everything that makes it."""

    stages: Annotated[tuple[Stage, ...], Field(min_length=1)]
    """Trained one after the other."""
    seed: int
    """Seed of the head's first weights, of draws and of dropout."""


@config
class Profile(_Encoder):
    """One run of the study: the fields of ``profiles/<name>.yaml``."""

    name: str
    """The file's name."""
    scale: Literal["smoke", "subset", "full"]
    """How much of the paper's experiment this is."""
    label: str
    """What result pages say of the data and the teacher."""
    stage1: Stage
    """Contrastive stage, on judgments with hard negatives."""
    stage2: Stage
    """Listwise stage, on the teacher's order."""
    test: ListsConfig
    """Test queries and their candidates."""
    more_encoders: tuple[str, ...] = ()
    """Encoders of further students on the effectiveness page."""
    more_tests: tuple[str, ...] = ()
    """Further collections to test on like `test`; figures are over the queries of all."""
    ablation_queries: Annotated[int, Field(ge=2)] | None = None
    """Test queries of the pages that compare many students; None takes the test's."""
    ablation_steps: Positive | None = None
    """Steps of the second stage there; None takes the stage's."""
    ablation_lists: str | None = None
    """First stages of the second stage's lists there; None takes the stage's."""
    alike: Literal["passages", "passes"] = "passages"
    """What lists of other depth or number have in common: passages, or passes as in the paper."""
    both_ways: bool = False
    """Stage 2's collection and the test's also change places; figures are over the queries of both."""
    precision: Precision = "auto"
    """In which students train and score."""
    seeds: Annotated[tuple[int, ...], Field(min_length=1)] = (0,)
    """One student is trained for each; a system's measure is the mean over them."""
    measure: str = "nDCG@10"
    """Main measure, an ir_measures name."""
    more_measures: tuple[str, ...] = ()
    """Further measures that a recorded run keeps."""
    notebooks: dict[str, dict[str, Any]] = Field(default_factory=dict)
    """Parameters for each notebook, beside ``profile``."""

    def __post_init__(self) -> None:
        if self.both_ways and self.more_tests:
            raise ValueError("more_tests: expected none with both_ways, which has a second of its own")

    @property
    def ablation(self) -> Profile:
        """This profile for the pages that compare many students: fewer steps and test queries."""
        stage = self.stage2
        training = replace(stage.training, steps=self.ablation_steps or stage.training.steps)
        lists = replace(stage.lists, first_stage=self.ablation_lists or stage.lists.first_stage)
        test = replace(self.test, n_queries=self.ablation_queries or self.test.n_queries)
        return replace(self, stage2=replace(stage, lists=lists, training=training), test=test)

    @property
    def tests(self) -> list[ListsConfig]:
        """The test queries of each collection; two where training and test change places."""
        other = [self.swapped(self.test)] if self.both_ways else []
        return [self.test, *other, *(replace(self.test, collection=c) for c in self.more_tests)]

    def swapped(self, wanted: Any) -> Any:
        """Lists, a stage or a student with training and test collection in each other's place."""
        if isinstance(wanted, ListsConfig):
            training, test = self.stage2.lists.collection, self.test.collection
            other = {training: test, test: training}
            return replace(wanted, collection=other.get(wanted.collection, wanted.collection))
        if isinstance(wanted, Stage):
            dev = wanted.dev and self.swapped(wanted.dev)
            return replace(wanted, lists=self.swapped(wanted.lists), dev=dev)
        return replace(wanted, stages=tuple(map(self.swapped, wanted.stages)))

    def student(self, *stages: Stage, seed: int | None = None) -> StudentConfig:
        """A student of these stages, or the profile's two; precision auto is what this machine has."""
        from rdl_core.devices import default_device, resolve_precision

        precision = resolve_precision(self.precision, default_device())
        return StudentConfig(
            encoder=self.encoder, query_tokens=self.query_tokens, passage_tokens=self.passage_tokens,
            seed=self.seeds[0] if seed is None else seed,
            stages=tuple(
                replace(stage, training=replace(stage.training, precision=precision))
                for stage in stages or (self.stage1, self.stage2)
            ),
        )  # fmt: skip


def load_profile(name: str | Profile) -> Profile:
    """Read a profile by name, or from a path that ends in ``.yaml``; a profile comes back as it is."""
    if isinstance(name, Profile):
        return name
    folder = project_folder() / "profiles"
    path = Path(name) if name.endswith(".yaml") else folder / f"{name}.yaml"
    if not path.is_file():
        known = ", ".join(sorted(p.stem for p in folder.glob("*.yaml")))
        raise ValueError(f"unknown profile {name!r}: expected one of {known}, or a path to a .yaml")
    return read_settings(Profile, path)
