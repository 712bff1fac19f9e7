"""Configurations: a value that cannot be is refused, with the field, the value and what is valid."""

import math
from dataclasses import FrozenInstanceError, replace

import pytest

from rdl_core import config as c
from rdl_core.files import checked
from rdl_tools import config as t
from rdl_tools.teach import usd_of

REQUIRED = {
    t.DistillConfig: {"lists": "x", "encoder": "x"}, t.ExportConfig: {"student": "x", "out": "x"},
    t.RerankConfig: {"student": "x", "candidates": "x", "out": "x"},
    t.EvaluateConfig: {"qrels": "x", "runs": ("x",)}, c.EndpointConfig: {"model": "x"},
    c.LocalConfig: {"model": "x"}, c.ReplayConfig: {"model": "x"}, c.StageConfig: {},
    t.TeachConfig: {"candidates": "x", "backend": {"model": "x"}}, c.WindowConfig: {},
}  # fmt: skip
LEAST = {  # the smallest value of a field
    c.StageConfig: {
        "list_size": 2, "queries_per_step": 1, "steps": 1, "token_budget": 1, "checkpoint_every": 1,
        "positive_grade": 1, "warmup_steps": 0, "max_gradient_norm": 0, "head_rate": 0, "dropout": 0,
        "held_tokens": 0, "dev_every": 0, "patience": 0,
    },
    c.WindowConfig: {"window_size": 2, "stride": 1, "passes": 1, "max_retries": 0},
    c.EndpointConfig: {"in_flight": 1, "max_tries": 1, "max_words": 1},
    c.LocalConfig: {"max_words": 1, "batch_size": 1, "max_new_tokens": 1}, t.TeachConfig: {"depth": 1},
    t.RerankConfig: {"query_tokens": 1, "passage_tokens": 1},
}  # fmt: skip
ABOVE_0 = {
    c.StageConfig: ["learning_rate", "score_scale"], t.EvaluateConfig: ["alpha", "margin"],
    c.EndpointConfig: ["per_minute", "timeout_s", "longest_wait_s"],
}  # fmt: skip
OTHERS = {
    c.StageConfig: [
        ({"sampler": "best"}, "sampler: expected one of denoised, .*top; got 'best'"),
        ({"sampler": "hard"}, "hard takes first, last; first is missing; last is missing"),
        ({"sampler_options": {"x": 1}}, "sampler_options: top takes none; x is unknown"),
        ({"loss": "mse"}, "loss: expected one of adr_mse, .*ranknet; got 'mse'"),
        ({"loss_options": {"x": 1}}, "loss_options: ranknet takes weighting; x is unknown"),
        ({"targets": "x"}, "targets: .*'teacher', 'scores' or 'judgments'.* got 'x'"),
        ({"learning_rate": 1.0}, "learning_rate: .*less than 1, got 1"), ({"x": 4}, "x: unknown key"),
        ({"score_scale": math.inf}, "score_scale: .*finite"), ({"dropout": 1.0}, "less than 1"),
        ({"patience": 2}, "patience: needs dev_every, got patience 2"), ({"steps": "x"}, "got 'x'"),
    ],
    c.WindowConfig: [({"stride": 21}, "expected at most window_size, 20, got 21: more would skip")],
    c.EndpointConfig: [
        ({"base_url": "ftp://x"}, "base_url: expected http://host:port/v1, got 'ftp://x'"),
        ({"base_url": "http://a:b@x/v1"}, "no user, password or query, got one for x: .*OPENAI"),
        ({"options": {"n": 2}}, "options: n cannot be set here"),
    ],
    c.LocalConfig: [({"mode": "x"}, "mode: .*'first_token'")],
    t.TeachConfig: [({"stride": 21}, "stride: expected"), ({"shard": "3/2"}, "shard: expected 1/N")],
    t.RerankConfig: [({"precision": "int4"}, "precision: .*'int8'.* got 'int4'")]
    + [({"shard": x}, f"shard: expected 1/N to N/N, .* got '{x}'") for x in ("0/2", "1", "a/b", "3/2")],
    t.EvaluateConfig: [({"alpha": 1}, "alpha: .*less than 1")],
}  # fmt: skip
CASES = (
    [(k, {x: n - 1}, f"{x}: .*equal to {n}, got") for k, xs in LEAST.items() for x, n in xs.items()]
    + [(k, {x: 0}, f"{x}: .*greater than 0, got 0") for k, fields in ABOVE_0.items() for x in fields]
    + [(k, *case) for k, cases in OTHERS.items() for case in cases]
)


@pytest.mark.parametrize(("kind", "values", "says"), CASES)
def test_a_value_that_cannot_be_is_refused_by_name(kind, values, says):
    with pytest.raises(ValueError, match=f"^here does not fit:\n.*{says}"):
        checked(kind, REQUIRED[kind] | values, what="here")


@pytest.mark.parametrize("kind", REQUIRED)
def test_configurations_are_whole_frozen_and_explained(kind):
    made = checked(kind, REQUIRED[kind], what="here")
    for name in REQUIRED[kind]:
        with pytest.raises(ValueError, match=f"\n  {name}: missing"):
            checked(kind, {x: v for x, v in REQUIRED[kind].items() if x != name}, what="here")
    with pytest.raises(FrozenInstanceError):
        setattr(made, next(iter(kind.__pydantic_fields__)), 1)
    assert all(kind.__pydantic_fields__[x].description for x in vars(kind)["__annotations__"])


def test_an_endpoints_name_has_what_changes_answers_and_a_price_its_tokens():
    here, there = (c.EndpointConfig(model="m", base_url=f"http://{x}/v1", timeout_s=9.0) for x in "ab")
    assert here.name == there.name != c.EndpointConfig(model="m", temperature=0.5).name
    assert usd_of(here, 1, 1) is None
    assert usd_of(replace(here, input_usd=2.0, output_usd=8.0), 10**6, 500_000) == 6.0
