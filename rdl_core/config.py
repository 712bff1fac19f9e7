"""Options of training and of teachers, for Python, YAML files and commands; imports no torch."""

from __future__ import annotations

import re
from inspect import Parameter, signature
from pathlib import Path
from typing import Annotated, Any, Literal
from urllib.parse import urlsplit

from pydantic import ConfigDict, Field
from pydantic.dataclasses import dataclass

from rdl_core.files import content_hash

__all__ = ["BACKENDS", "EndpointConfig", "LocalConfig", "ReplayConfig", "StageConfig", "WindowConfig",
           "config"]  # fmt: skip

#: Makes a class a checked, frozen configuration; its errors quote no values, as a URL may hold a key.
config = dataclass(
    frozen=True, kw_only=True,
    config=ConfigDict(extra="forbid", use_attribute_docstrings=True, hide_input_in_errors=True),
)  # fmt: skip
Positive = Annotated[int, Field(ge=1)]
Count = Annotated[int, Field(ge=0)]
#: In which a model's layers compute; scores are float32 always.
Precision = Literal["auto", "float32", "bfloat16"]
#: What training itself passes to losses and samplers.
_OURS = {"mask", "reduction", "generator", "relevant", "judged", "teacher_rank"}


@config
class StageConfig:
    """One stage of distillation. The defaults are Rank-DistiLLM's second stage (ECIR 2025)."""

    sampler: str = "top"
    """Which candidates make a training list: a key of `rdl_core.samplers.SAMPLERS`."""
    sampler_options: dict[str, Any] = Field(default_factory=dict)
    """Further arguments of the sampler."""
    loss: str = "ranknet"
    """A key of `rdl_core.losses.LOSSES`, such as ranknet, adr_mse, info_nce."""
    loss_options: dict[str, Any] = Field(default_factory=dict)
    """Further arguments of the loss."""
    targets: Literal["teacher", "scores", "judgments"] = "teacher"
    """What scores are compared with: the teacher's ranks, its scores, or relevance (unjudged = 0)."""
    score_scale: Annotated[float, Field(gt=0, allow_inf_nan=False)] = 1.0
    """Factor on the teacher's scores, with targets scores."""
    positive_grade: Positive = 1
    """Smallest relevance that counts as positive; samplers leave out grades between it and 0."""
    list_size: Annotated[int, Field(ge=2)] = 100
    """Passages per query in a training list."""
    queries_per_step: Positive = 32
    """Lists per optimiser step, over all processes."""
    steps: Positive = 940
    """Optimiser steps."""
    learning_rate: Annotated[float, Field(gt=0, lt=1)] = 1e-5
    """Peak learning rate of AdamW."""
    warmup_steps: Count = 0
    """Steps of linear warm-up."""
    schedule: Literal["constant", "linear", "cosine"] = "constant"
    """Learning rate after the warm-up; linear and cosine end at a tenth of the peak."""
    head_rate: Annotated[float, Field(ge=0)] = 1.0
    """Learning rate of the head, as a multiple of the encoder's; 10 suits a fresh head."""
    max_gradient_norm: Annotated[float, Field(ge=0)] = 0.0
    """Gradients are clipped to this norm; 0 does not clip."""
    dropout: Annotated[float, Field(ge=0, lt=1)] = 0.1
    """Hidden dropout in training."""
    train_word_embeddings: bool = True
    """Train the word embeddings; frozen ones save a third of the optimiser's memory."""
    token_budget: Positive = 2048
    """Most tokens in one batch through the encoder."""
    held_tokens: Count = 8192
    """Most tokens per step whose activations are kept; what is more is scored twice."""
    precision: Precision = "float32"
    """In which the layers compute; auto: bfloat16 where the device has it."""
    dev_every: Count = 0
    """Steps between two dev measures; the best state is kept. 0: none, the last state is kept."""
    patience: Count = 0
    """Dev measures without a better one after which training stops; 0 never stops early."""
    checkpoint_every: Positive = 50
    """Steps between checkpoints."""

    def __post_init__(self) -> None:
        from rdl_core.losses import LOSSES  # torch takes a second, and `--help` needs none
        from rdl_core.samplers import SAMPLERS

        for kind, known in {"loss": LOSSES, "sampler": SAMPLERS}.items():
            name, options = getattr(self, kind), getattr(self, f"{kind}_options")
            if name not in known:
                raise ValueError(f"{kind}: expected one of {', '.join(sorted(known))}; got {name!r}")
            named = [x for x in signature(known[name]).parameters.values() if x.kind is x.KEYWORD_ONLY]
            own = {x.name: x.default for x in named if x.name not in _OURS}
            wrong = [f"{x} is unknown" for x in sorted(options.keys() - own.keys())]
            wrong += [f"{x} is missing" for x in own if own[x] is Parameter.empty and x not in options]
            if wrong:
                takes = ", ".join(own) or "none"
                raise ValueError(f"{kind}_options: {name} takes {takes}; {'; '.join(wrong)}")
        if self.patience and not self.dev_every:
            raise ValueError(f"patience: needs dev_every, got patience {self.patience} alone")


@config
class WindowConfig:
    """How a list becomes windows, and how often a window is asked."""

    window_size: Annotated[int, Field(ge=2)] = 20
    """Passages in a prompt."""
    stride: Positive = 10
    """Passages between the starts of two windows."""
    passes: Positive = 1
    """Passes over each list."""
    max_retries: Count = 1
    """How often a window is asked again whose answer is unusable."""

    def __post_init__(self) -> None:
        if self.stride > (most := self.window_size):
            told = f"stride: expected at most window_size, {most}, got {self.stride}"
            raise ValueError(f"{told}: more would skip passages")

    @property
    def windows(self) -> dict[str, Any]:
        """These fields alone, as named arguments of `rdl_core.teachers.listwise.rank_lists`."""
        return {name: getattr(self, name) for name in WindowConfig.__pydantic_fields__}


@config
class EndpointConfig:
    """A model behind a server that speaks OpenAI's chat completions, and what it costs."""

    model: str
    """The model's name at the server."""
    base_url: str = "https://api.openai.com/v1"
    """Address of the server; most end in /v1."""
    key_variable: str = "OPENAI_API_KEY"
    """Environment variable that holds the key; unset: asked without a key."""
    temperature: float | None = 0.0
    """Temperature of first answers; what is asked again has 0.7 at least. Below 0: none is sent."""
    max_words: Positive = 300
    """Words of a passage that are shown."""
    options: dict[str, Any] = Field(default_factory=dict)
    """Further fields of each request, such as max_tokens=400."""
    in_flight: Positive = 8
    """Requests at the same time."""
    per_minute: Annotated[float, Field(gt=0)] | None = None
    """Most requests that start in a minute; none: no limit."""
    timeout_s: Annotated[float, Field(gt=0)] = 120.0
    """Longest silence of the server, seconds."""
    max_tries: Positive = 10
    """Requests for one window before giving up."""
    longest_wait_s: Annotated[float, Field(gt=0)] = 60.0
    """Longest wait between two tries, seconds; a server that asks for more stops the run."""
    input_usd: float | None = None
    """Dollars for a million tokens of prompts."""
    output_usd: float | None = None
    """Dollars for a million tokens written."""

    def __post_init__(self) -> None:
        url = urlsplit(self.base_url)
        if url.username or url.password or url.query:
            told = f"base_url: expected no user, password or query, got one for {url.hostname}"
            raise ValueError(f"{told}: put the key into the environment variable {self.key_variable}")
        if url.scheme not in ("http", "https") or not url.hostname:
            raise ValueError(f"base_url: expected http://host:port/v1, got {self.base_url!r}")
        if ours := sorted({"messages", "model", "n", "stream"} & set(self.options)):
            raise ValueError(f"options: {', '.join(ours)} cannot be set here: leave them out")

    @property
    def name(self) -> str:
        """Model and settings that change answers; not the address, which may move."""
        temperature = None if (self.temperature or 0) < 0 else self.temperature
        options = f"max_words={self.max_words}, options={dict(sorted(self.options.items()))}"
        return f"{self.model}, temperature={temperature}, {options}"


#: Prompts of pointwise teachers, by mode.
PROMPTS = {
    "query_likelihood": "Passage: {passage}\nA search query that this passage answers: {query}",
    "yes_no": "Passage: {passage}\nQuery: {query}\nDoes the passage answer the query? Yes or no:",
}


@config
class LocalConfig:
    """A causal language model of transformers that runs here."""

    model: str
    """Folder, .gguf file, hub id, or SmolLM2-135M-Instruct: the embedded one."""
    mode: Literal["free", "first_token", "query_likelihood", "yes_no"] = "free"
    """How lists are ranked: `rdl_core.teachers.local_llm`; the last two: `.pointwise`."""
    prompt: str | None = None
    """Prompt of query_likelihood or yes_no, with {passage}, then {query}; none: a general one."""
    max_words: Positive = 300
    """Words of a passage that are shown, if they fit."""
    max_new_tokens: Positive | None = None
    """Longest answer of mode free, in tokens; none: a ranking and a short preamble."""
    batch_size: Positive = 8
    """Windows at once; pointwise modes fill rows of tokens instead."""
    precision: Precision = "auto"
    """In which the layers compute."""

    def __post_init__(self) -> None:
        if self.prompt is None:
            return
        if not self.pointwise:
            raise ValueError(f"prompt: expected mode {' or '.join(PROMPTS)}, got {self.mode}")
        ends = r"\s*" if self.mode == "query_likelihood" else ".*"  # what is scored stands last
        if not re.fullmatch(rf"[^{{}}]*{{passage}}[^{{}}]*{{query}}{ends}", self.prompt, re.DOTALL):
            told = "expected {passage}, then {query}, once each, {query} last with query_likelihood"
            raise ValueError(f"prompt: {told}; got {self.prompt!r}")

    @property
    def pointwise(self) -> bool:
        """Whether each passage gets a score of its own."""
        return self.mode in PROMPTS

    @property
    def name(self) -> str:
        """Model, by content if it is a file, and settings that change answers."""
        from rdl_core.data.downloads import embedded_path  # imports requests

        model, more = self.model, ""
        if (path := Path(embedded_path(model))).is_file():
            model = f"{path.name} {content_hash(path)[:16]}"
        if self.mode == "free":
            more = f", max_new_tokens={self.max_new_tokens}"
        elif self.pointwise:
            more = f", prompt={self.prompt or PROMPTS[self.mode]!r}"
        return f"{model}, {self.mode}, max_words={self.max_words}{more}"


@config
class ReplayConfig:
    """Answers that others recorded."""

    model: str
    """File of recorded answers: an invocation history of RankLLM."""

    @property
    def name(self) -> str:
        """The file by its content."""
        return f"recorded {content_hash(Path(self.model))[:16]}"


#: Teachers by the name of their backend.
BACKENDS = {"endpoint": EndpointConfig, "local_llm": LocalConfig, "replay": ReplayConfig}
