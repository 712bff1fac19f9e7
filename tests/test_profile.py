"""Profiles and notebook parameters: every mistake is named before anything runs."""

from dataclasses import replace

import pytest
import yaml
from tiny_notebooks import write_notebook

from rdl_core.files import checked
from rdl_study import notebook
from rdl_study.notebook import declared
from rdl_study.profile import Profile, load_profile
from rdl_study.store import project_folder

MINI = (project_folder() / "profiles" / "mini.yaml").read_text()


def with_value(key, value):
    values = inner = yaml.safe_load(MINI)
    *path, last = key.split(".")
    for part in path:
        inner = inner[part]
    inner[last] = value
    return values


@pytest.mark.parametrize(("key", "value", "says"), [
    ("stage1.training.steps", "many", "stage1.training.steps: .*integer.*got 'many'"),
    ("stage2.training.learning_rat", 0.1, "stage2.training.learning_rat: unknown key"),
    ("stage2.lists.teacher", "gpt", "teacher: .*fused.*got 'gpt'"),
    ("stage2.lists.first_stage", "bm25+tfidf", "first_stage: .*bm25.*got 'tfidf'"),
    ("stage2.lists.depth", 101, "depth: expected 1 to 100, got 101"),
    ("test.skip_queries", -1, "test.skip_queries: .*got -1"),
    ("stage2.lists.add_relevant", True, "add_relevant: expected .*'judgments', got 'smollm2_fused'"),
    ("stage1.lists.teacher", "judgments", "pseudo_labels: expected a teacher that ranks"),
    ("stage2.training.dev_every", 2, "dev: expected dev queries if and only if"),
    ("seeds", [], "seeds: "),
    ("scale", "huge", "scale: .*'smoke', 'subset' or 'full', got 'huge'"),
])  # fmt: skip
def test_a_wrong_value_is_named(key, value, says):
    with pytest.raises(ValueError, match=says):
        checked(Profile, with_value(key, value), what="a profile")


def test_a_student_is_trained_in_the_named_stages_in_the_profiles_precision():
    profile = replace(load_profile("mini"), precision="bfloat16")
    both, second = profile.student(), profile.student(profile.stage2, seed=7)
    assert [stage.lists for stage in both.stages] == [profile.stage1.lists, profile.stage2.lists]
    assert (second.stages, second.seed) == (both.stages[1:], 7)
    assert {stage.training.precision for stage in both.stages} == {"bfloat16"}
    assert load_profile(profile) is profile


@pytest.fixture
def page(tmp_path, monkeypatch):
    """A notebook of its own, and what it declares with other values."""
    monkeypatch.setattr(notebook, "project_folder", lambda: tmp_path)
    write_notebook(tmp_path, "loss", "this = is never run")
    return lambda **values: declared("loss", values)


@pytest.mark.parametrize(("values", "says"), [
    ({"depths": [5, 1]}, r"depths: expected one or more .* values of 2 to 100; got \[5, 1\]"),
    ({"depths": [5, 5]}, "depths: expected one or more different"),
    ({"depths": "many"}, 'depths: expected a list of whole numbers, got "many"'),
    ({"depths": "[5,"}, "depths: expected a list of whole numbers"),
    ({"depths": [0.5]}, "depths: expected a list of whole numbers"),
    ({"dephts": [7]}, "'loss' has no parameter dephts: expected profile, losses, depths"),
    ({"losses": ["nope"]}, r'losses: .*ranknet.*got \["nope"\]'),
    ({"n_train": True}, "n_train: expected a whole number, got true"),
    ({"n_train": "few"}, 'n_train: expected a whole number, got "few"'),
    ({"profile": "nope"}, "unknown profile 'nope': expected one of .*mini"),
])  # fmt: skip
def test_a_wrong_parameter_is_named_before_anything_is_declared(page, values, says):
    with pytest.raises(ValueError, match=says):
        page(**values)


def test_a_notebook_declares_what_it_compares_with_the_values_that_it_is_given(page):
    part = page()["losses"]
    assert (list(part.systems), part.baseline) == (["ranknet"], "ranknet")
    other = replace(load_profile("mini"), encoder="another")
    part = page(profile=other, losses=["listnet", "adr_mse"])["losses"]
    encoders = {name: student.encoder for name, student in part.systems.items()}
    assert encoders == {"listnet": "another", "adr_mse": "another"}
    with pytest.raises(ValueError, match="notebook: expected one of loss; got 'nope'"):
        declared("nope", {})
    with pytest.raises(ValueError, match="baseline: expected one of listnet, adr_mse; got 'BM25'"):
        replace(part, baseline="BM25")


def test_values_may_be_papermills_text_and_the_cell_may_be_run_again_by_hand(page):
    """``-p depths "[5,10,20]"`` gives the text; it was once refused as no list."""
    namespace = {"profile": "mini", "losses": '["ranknet", "adr_mse"]', "depths": "[5,10,20]"}
    namespace |= {"n_train": "7", "rate": 1, "LOSSES": {}, "_private": 1, "In": [], "pytest": pytest}
    notebook.parameters("loss", namespace)
    assert (namespace["losses"], namespace["depths"]) == (["ranknet", "adr_mse"], [5, 10, 20])
    assert (namespace["n_train"], namespace["rate"]) == (7, 1)
    namespace |= {"later": "of another cell", "depths": [7], "profile": load_profile("mini")}
    notebook.parameters("loss", namespace)
    assert namespace["depths"] == [7]
