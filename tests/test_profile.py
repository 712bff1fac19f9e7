"""Profiles and notebook parameters: every mistake is named before anything runs.

Mutations seen to fail: unknown keys ignored; strings that spell numbers refused; the list of valid
names left out; a change given to the wrong part of a stage.
"""

import copy

import pytest
import yaml

from rdl_core.settings import checked
from rdl_study.parameters import check_parameters, parameters
from rdl_study.profile import Profile, load_profile
from rdl_study.store import project_folder

MINI = yaml.safe_load((project_folder() / "profiles" / "mini.yaml").read_text())


def with_value(key, value):
    values = copy.deepcopy(MINI)
    *path, last = key.split(".")
    inner = values
    for part in path:
        inner = inner[part]
    inner[last] = value
    return values


@pytest.mark.parametrize(
    ("key", "value", "says"),
    [
        ("stage1.training.steps", "many", "stage1.training.steps: .*integer.*got 'many'"),
        ("stage1.training.steps", 0, "stage1.training.steps: expected at least 1, got 0"),
        ("stage2.training.loss", "rnknet", "stage2.training.loss: .*adr_mse.*ranknet.*got 'rnknet'"),
        ("stage2.training.sampler", "bes", "stage2.training.sampler: .*single_relevant.*got 'bes'"),
        ("stage2.lists.teacher", "gpt", "stage2.lists.teacher: .*fused.*got 'gpt'"),
        ("stage2.lists.first_stage", "tfidf", "stage2.lists.first_stage: .*bm25.*got 'tfidf'"),
        ("stage2.lists.depth", 101, "stage2.lists.depth: expected 1 to 100, got 101"),
        ("stage2.training.learning_rate", 2.0, "learning_rate: expected between 0 and 1"),
        ("stage2.training.learning_rat", 0.1, "stage2.training.learning_rat: unknown key"),
        ("head", "pooled", "head: expected one of own, similarity; got 'pooled'"),
        ("bogus", 1, "bogus: unknown key"),
        ("scale", "huge", "scale: expected smoke, subset or full, got 'huge'"),
    ],
)
def test_a_wrong_value_is_named(key, value, says):
    with pytest.raises(ValueError, match=says):
        checked(Profile, with_value(key, value), what="a profile")


def test_every_mistake_is_named_at_once():
    values = with_value("stage1.training.steps", 0) | {"bogus": 1}
    with pytest.raises(ValueError, match=r"(?s)stage1.training.steps.*bogus"):
        checked(Profile, values, what="a profile")


def test_a_rate_that_yaml_reads_as_text_is_a_number():
    values = with_value("stage2.training.learning_rate", yaml.safe_load("1e-5"))
    assert values["stage2"]["training"]["learning_rate"] == "1e-5"
    profile = checked(Profile, values, what="a profile")
    assert profile.stage2.training.learning_rate == 1e-5


def test_an_unknown_profile_lists_the_known():
    with pytest.raises(ValueError, match="unknown profile 'mny': expected one of .*mini"):
        load_profile("mny")


def test_students_differ_in_the_named_things_alone():
    profile = load_profile("mini")
    base, changed = profile.student(), profile.student(loss="listnet", depth=5, seed=7)
    assert changed.stages[0] == base.stages[0]
    assert changed.stages[1].training.loss == "listnet"
    assert changed.stages[1].lists.depth == 5
    assert changed.seed == 7
    assert profile.student("first").stages == base.stages[:1]
    assert profile.student("second").stages == base.stages[1:]


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ({"stages": "third"}, "stages: expected one of both, first, second; got 'third'"),
        ({"los": "listnet"}, r"unknown change \['los'\]: expected names among .*loss"),
        ({"loss": "nope"}, "loss: expected one of .*ranknet.*got 'nope'"),
    ],
)
def test_a_wrong_change_is_named(arguments, says):
    with pytest.raises(ValueError, match=says):
        load_profile("mini").student(**arguments)


@pytest.mark.parametrize(
    ("notebook", "values", "says"),
    [
        ("depth", {"depths": [5, 1]}, "depths: expected .*2 to 100; got"),
        ("depth", {"depths": [5, 5]}, "depths: expected one or more different"),
        ("depth", {"depths": "five"}, "depths: "),
        ("depth", {"depths": [5], "dephts": [7]}, r"dephts: unknown key\n.*profile, depths"),
        ("depth", {}, "depths: missing"),
        ("loss", {"losses": ["nope"]}, "losses: .*ranknet.*got"),
        ("effectiveness", {"profile": "nope", "first_stages": ["bm25"]}, "unknown profile 'nope'"),
        ("efficiency", {"n_queries": 0, "repetitions": 1}, "n_queries: expected at least 1"),
        ("other", {}, "expected a notebook of effectiveness"),
    ],
)
def test_a_wrong_parameter_is_named(notebook, values, says):
    with pytest.raises(ValueError, match=says):
        check_parameters(notebook, values)


def test_a_notebook_finds_what_papermill_injected_and_may_be_run_again():
    namespace = {"profile": "mini", "depths": [5], "_private": 1, "In": [], "pytest": pytest}
    assert parameters("depth", namespace).depths == (5,)
    namespace["results"] = "of a later cell"
    namespace["depths"] = [7]
    assert parameters("depth", namespace).depths == (7,)
    with pytest.raises(ValueError, match="dephts: unknown key"):
        parameters("depth", {"profile": "mini", "depths": [5], "dephts": [7]})


def test_a_list_arrives_from_papermills_command_line_as_text():
    """``-p depths "[5,10,20]"`` gives the text; it was once refused as no list."""
    assert check_parameters("depth", {"profile": "mini", "depths": "[5,10,20]"}).depths == (5, 10, 20)
    losses = '["ranknet", "adr_mse"]'
    assert check_parameters("loss", {"profile": "mini", "losses": losses}).losses[1] == "adr_mse"
    with pytest.raises(ValueError, match="depths: "):
        check_parameters("depth", {"profile": "mini", "depths": "[5,"})
