"""Configurations: every value that cannot be is refused, with the field, the value and what is valid."""

import math
from dataclasses import FrozenInstanceError, asdict, replace

import pytest

from rdl_core import config as c
from rdl_core.files import checked

REQUIRED = {
    c.DistillConfig: {"lists": "x", "encoder": "x"},
    c.RerankConfig: {"student": "x", "candidates": "x", "out": "x"},
    c.EvaluateConfig: {"qrels": "x", "runs": ("x",)}, c.ExportConfig: {"student": "x", "out": "x"},
    c.EndpointConfig: {"model": "x"}, c.LocalConfig: {"model": "x"}, c.ReplayConfig: {"model": "x"},
    c.TeachConfig: {"candidates": "x", "backend": {"model": "x"}}, c.StageConfig: {}, c.WindowConfig: {},
}  # fmt: skip
AT_LEAST = "greater than or equal to"
#: For each class: values that do not fit, and telling words of the refusal.
REFUSED = {
    c.StageConfig: [
        ({"sampler": "best"}, "sampler: expected one of denoised, .*top; got 'best'"),
        ({"sampler": "hard"}, "hard takes first, last; first is missing; last is missing"),
        ({"sampler_options": {"x": 1}}, "sampler_options: top takes none; x is unknown"),
        ({"loss": "mse"}, "loss: expected one of adr_mse, .*ranknet; got 'mse'"),
        ({"loss_options": {"temprature": 1}}, "loss_options: ranknet takes weighting; temprature is unknown"),
        ({"targets": "judgements"}, "targets: .*'teacher', 'scores' or 'judgments'.* got 'judgements'"),
        ({"schedule": "step"}, "schedule: .*'cosine'.* got 'step'"),
        ({"precision": "float16"}, "precision: .*'bfloat16'.* got 'float16'"),
        ({"list_size": 1}, f"list_size: .*{AT_LEAST} 2, got 1"),
        *(({x: 0}, f"{x}: .*{AT_LEAST} 1, got 0") for x in
          ("queries_per_step", "steps", "token_budget", "checkpoint_every", "positive_grade")),
        *(({x: -1}, f"{x}: .*{AT_LEAST} 0, got -1") for x in
          ("warmup_steps", "max_gradient_norm", "head_rate", "held_tokens", "dev_every", "patience")),
        ({"learning_rate": 0.0}, "learning_rate: .*greater than 0, got 0"),
        ({"learning_rate": 1.0}, "learning_rate: .*less than 1, got 1"),
        ({"dropout": 1.0}, "dropout: .*less than 1, got 1"), ({"dropout": -0.1}, f"{AT_LEAST} 0, got -0.1"),
        ({"score_scale": 0.0}, "score_scale: .*greater than 0"), ({"score_scale": math.inf}, "finite"),
        ({"patience": 2}, "patience: needs dev_every, got patience 2 alone"),
        ({"list_sise": 4}, "list_sise: unknown key"), ({"steps": "many"}, "steps: .*integer.* got 'many'"),
    ],
    c.WindowConfig: [
        ({"schedule": "bubble"}, "schedule: .*'tournament'.* got 'bubble'"),
        ({"window_size": 1}, f"window_size: .*{AT_LEAST} 2"), ({"stride": 0}, f"stride: .*{AT_LEAST} 1"),
        ({"passes": 0}, f"passes: .*{AT_LEAST} 1"), ({"max_retries": -1}, f"max_retries: .*{AT_LEAST} 0"),
        ({"stride": 21}, "stride: expected at most window_size, 20, got 21: more would skip"),
        ({"schedule": "tournament", "top_k": 11}, "top_k: expected at most half of window_size, 10, got 11"),
    ],
    c.EndpointConfig: [
        ({"base_url": "ftp://x"}, "base_url: expected http://host:port/v1, got 'ftp://x'"),
        ({"base_url": "http://a:b@x/v1"}, "no user, password or query, got one for x: .*OPENAI_API_KEY"),
        ({"options": {"n": 2}}, "options: n cannot be set here"), ({"in_flight": 0}, f"in_flight: .*{AT_LEAST} 1"),
        ({"per_minute": 0}, "per_minute: .*greater than 0"), ({"timeout_s": 0}, "timeout_s: .*greater than 0"),
        ({"max_tries": 0}, f"max_tries: .*{AT_LEAST} 1"), ({"max_words": 0}, f"max_words: .*{AT_LEAST} 1"),
    ],
    c.LocalConfig: [
        ({"mode": "x"}, "mode: .*'first_token'"), ({"max_words": 0}, f"max_words: .*{AT_LEAST} 1"),
        ({"batch_size": 0}, f"batch_size: .*{AT_LEAST} 1"), ({"max_new_tokens": 0}, f"{AT_LEAST} 1"),
    ],
    c.TeachConfig: [
        ({"depth": 0}, f"depth: .*{AT_LEAST} 1"), ({"stride": 21}, "stride: expected at most window_size"),
        ({"shard": "3/2"}, "shard: expected 1/N to N/N, such as 2/8; got '3/2'"),
    ],
    c.RerankConfig: [
        *(({"shard": x}, f"shard: expected 1/N to N/N, .* got '{x}'") for x in ("0/2", "1", "a/b", "3/2")),
        ({"precision": "int4"}, "precision: .*'int8'.* got 'int4'"), ({"query_tokens": 0}, f"{AT_LEAST} 1"),
    ],
    c.EvaluateConfig: [({"alpha": 1}, "alpha: .*less than 1"), ({"margin": 0}, "margin: .*greater than 0")],
    c.DistillConfig: [({"passage_tokens": 0}, f"passage_tokens: .*{AT_LEAST} 1"), ({"lists": None}, "lists: ")],
}  # fmt: skip
CASES = [(kind, *case) for kind, cases in REFUSED.items() for case in cases]


@pytest.mark.parametrize(("kind", "values", "says"), CASES)
def test_a_value_that_cannot_be_is_refused_by_name(kind, values, says):
    with pytest.raises(ValueError, match=f"^here does not fit:\n.*{says}"):
        checked(kind, REQUIRED[kind] | values, what="here")


@pytest.mark.parametrize("kind", REQUIRED)
def test_configurations_are_whole_frozen_and_explained(kind):
    made = checked(kind, REQUIRED[kind], what="here")
    assert asdict(made).keys() == kind.__pydantic_fields__.keys()
    for name in REQUIRED[kind]:
        with pytest.raises(ValueError, match=f"\n  {name}: missing"):
            checked(kind, {x: v for x, v in REQUIRED[kind].items() if x != name}, what="here")
    with pytest.raises(FrozenInstanceError):
        setattr(made, next(iter(kind.__pydantic_fields__)), 1)
    own = [info for name, info in kind.__pydantic_fields__.items() if name in vars(kind)["__annotations__"]]
    assert all(info.description for info in own)


def test_the_defaults_are_the_second_stage_of_the_paper():
    stage = c.StageConfig()
    assert (stage.loss, stage.sampler, stage.targets, stage.list_size) == ("ranknet", "top", "teacher", 100)
    with pytest.raises(ValueError, match="steps"):
        replace(stage, steps=0)


def test_an_endpoints_name_has_what_changes_answers_and_a_price_its_tokens():
    """Not the address, which may move; the key is not even read."""
    here, there = (c.EndpointConfig(model="m", base_url=f"http://{x}/v1", timeout_s=9.0) for x in "ab")
    assert here.name == there.name
    assert here.name != c.EndpointConfig(model="m", temperature=0.5).name
    assert here.usd(1, 1) is None
    assert c.EndpointConfig(model="m", input_usd=2.0, output_usd=8.0).usd(10**6, 500_000) == 6.0
