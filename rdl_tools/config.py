"""Options of the commands, beside those of training and of teachers (`rdl_core.config`)."""

from __future__ import annotations

import re
from typing import Annotated, Any, Literal, Self

from pydantic import Field, model_validator

from rdl_core.config import (
    Count, EndpointConfig, LocalConfig, Positive, ReplayConfig, WindowConfig, config,
)  # fmt: skip

__all__ = ["AdoptConfig", "AskConfig", "DistillConfig", "EvaluateConfig", "ExportConfig", "JudgeConfig",
           "RerankConfig", "ServeConfig", "TeachConfig"]  # fmt: skip


@config
class _Texts:
    collection: str | None = None
    """Folder (BEIR layout or tsv) or ir_datasets id that has the texts; none: the file has them."""
    format: str | None = None
    """Format of the file, a key of `rdl_core.data.formats.FORMATS`; none: the file tells."""


@config
class _Limits:
    query_tokens: Positive | None = None
    """Longest query, in tokens; none: what the student records, else 32."""
    passage_tokens: Positive | None = None
    """Longest passage, or piece of one, in tokens; none: what the student records, else 256."""
    chunks: Positive | None = None
    """Pieces read of a longer passage; the best one's score counts. None: as recorded, else 1."""


@config
class _Student(_Limits):
    student: str
    """Folder of a student or of its run, or a hub id."""
    precision: Literal["auto", "float32", "bfloat16", "int8"] = "auto"
    """In which the layers compute; int8: on CPUs."""


@config
class _Shard:
    shard: str = "1/1"
    """Part of the queries: 2/8 is the second of eight, with queries 2, 10, 18, ..."""

    @model_validator(mode="after")
    def _is_a_shard(self) -> Self:
        if not re.fullmatch(r"\d+/\d+", self.shard) or not 1 <= self.part[0] <= self.part[1]:
            raise ValueError(f"shard: expected 1/N to N/N, such as 2/8; got {self.shard!r}")
        return self

    @property
    def part(self) -> tuple[int, int]:
        """Number of the shard, from 1, and how many there are."""
        number, of = self.shard.split("/")
        return int(number), int(of)


@config
class DistillConfig(_Texts, _Limits):
    """What a student is distilled from, and how."""

    lists: str
    """File of ranked lists: order and scores are the teacher's, unless it has a teacher_rank."""
    teacher: str | None = None
    """Who ranked the lists, in words, for the model card."""
    encoder: str
    """Where the weights start: an encoder, an earlier student, or any cross-encoder of one output."""
    dev: str | None = None
    """File of candidates of other queries, measured every dev_every steps; the best state is kept."""
    dev_qrels: str | None = None
    """Their judgments, a file or an ir_datasets id; none: the teacher's first ten are relevant."""
    training: dict[str, Any] = Field(default_factory=dict)
    """Fields of `rdl_core.config.StageConfig`; without steps, every list is seen three times."""
    seed: int = 0
    """Seed of the head's first weights, of draws and of dropout."""


@config
class RerankConfig(_Texts, _Student, _Shard):
    """Candidates that a student scores."""

    candidates: str
    """File of candidates, in any known format."""
    out: str
    """The TREC run; packed if its name ends in .gz."""
    plain: bool = False
    """The student's scores alone, whatever rdl adopt chose."""
    tag: str = "rdl"
    """Name of the system in the run."""


@config
class AdoptConfig(_Texts, _Student):
    """Judged queries, to choose how much of a student to use behind a first stage."""

    student: str
    """Folder of a student, which gets what was chosen."""
    candidates: str
    """File of the first stage's candidates, in any known format."""
    qrels: str
    """Judgments: a file or an ir_datasets id."""
    measure: str = "nDCG@10"
    """What should be best, by its ir_measures name."""
    margin: Annotated[float, Field(gt=0)] = 0.02
    """Smallest difference that matters."""
    positive_grade: Positive = 1
    """Smallest relevance that counts as relevant."""
    folds: Annotated[int, Field(ge=2)] = 5
    """Parts of the queries: each is measured with what the others chose."""


@config
class ServeConfig(_Student):
    """A student that answers over HTTP."""

    host: str = "127.0.0.1"
    """Address to listen at; 0.0.0.0 for other machines, too."""
    port: Annotated[int, Field(ge=0, lt=2**16)] = 8000
    """Port to listen at."""
    key_variable: str = "RDL_SERVE_KEY"
    """Environment variable with the key that clients must give; unset: none."""
    most_documents: Positive = 1000
    """Documents in a request."""
    most_bytes: Positive = 2**23
    """Size of a request."""
    most_waiting: Positive = 64
    """Requests that may wait; more are refused."""
    longest_wait_s: Annotated[float, Field(gt=0)] = 60.0
    """Longest wait for an answer, seconds."""


@config
class EvaluateConfig:
    """Runs to measure, and to test against one of them."""

    qrels: str
    """Judgments: a file or an ir_datasets id."""
    runs: tuple[str, ...]
    """Runs, in any known format."""
    measures: tuple[str, ...] = ("nDCG@10",)
    """Measures by their ir_measures names, such as RR@10."""
    baseline: str | None = None
    """Name of the run that the others are tested against; none: the first."""
    alpha: Annotated[float, Field(gt=0, lt=1)] = 0.05
    """Level of the tests."""
    margin: Annotated[float, Field(gt=0)] = 0.02
    """Smallest difference that matters, for the equivalence test (TOST)."""
    per_query: str | None = None
    """CSV file to write with every query's values."""
    table: str | None = None
    """CSV file to write with the table."""
    format: str | None = None
    """Format of the runs, a key of `rdl_core.data.formats.FORMATS`; none: each file tells."""


@config
class ExportConfig(_Texts, _Limits):
    """A student to write for transformers, sentence-transformers and onnxruntime."""

    student: str
    """Folder of a student or of its run, or a hub id."""
    out: str
    """A new folder."""
    quantise: bool = False
    """Write an 8-bit ONNX file, too."""
    candidates: str | None = None
    """File whose first pairs the ONNX files are compared on; none: random words."""
    table: str | None = None
    """Measures for the model card, as rdl evaluate --table writes them."""
    licence: str = "other"
    """For the model card: an id of the Hugging Face hub, such as mit; other words become its name."""
    push: str | None = None
    """Repository of the Hugging Face hub to upload to, as user/name; a new one is private."""


@config
class TeachConfig(_Texts, WindowConfig, _Shard):
    """Candidates that a teacher ranks, and how it is asked."""

    candidates: str
    """File of candidates, in any known format."""
    depth: Positive | None = None
    """Passages of each query that are ranked, the first stage's best; none: all."""
    backend: EndpointConfig | LocalConfig | ReplayConfig
    """Who answers."""


@config
class _Labels:
    max_retries: Count = 1
    """How often is asked again what could not be read."""
    backend: EndpointConfig | LocalConfig
    """Who answers."""

    def __post_init__(self) -> None:
        if isinstance(self.backend, LocalConfig) and self.backend.mode != "free":
            raise ValueError(f"mode: expected free, as answers are texts; got {self.backend.mode!r}")


@config
class AskConfig(_Labels):
    """Passages that an LLM writes queries for."""

    collection: str
    """Folder (BEIR layout or tsv) or ir_datasets id with the passages."""
    n_passages: Positive = 1000
    """Passages that are asked about, drawn at random."""
    longest: Positive = 12
    """Words of a query."""
    depth: Positive = 100
    """BM25's candidates for each query."""
    found_within: Positive = 20
    """Among BM25's first so many a query must find its passage."""
    least_grade: Annotated[int, Field(ge=0, le=3)] = 0
    """Grade from 0 to 3 that the LLM must give a query's passage; 0: it is not asked."""
    seed: int = 0
    """Seed of the draw."""


@config
class JudgeConfig(_Texts, _Labels):
    """Candidates that an LLM grades."""

    candidates: str
    """File of candidates, in any known format."""
    depth: Positive = 10
    """Passages of each query that are graded, the best."""
    human: str | None = None
    """Human judgments, to say how far the grades agree: a file or an ir_datasets id."""
    runs: tuple[str, ...] = ()
    """Runs whose order by these grades and by human ones is compared."""
    measure: str = "nDCG@10"
    """Measure that orders the runs."""
