"""Values recorded before the library was rebuilt: whoever upgrades gets the same numbers."""

import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from conftest import read_log
from transformers import AutoTokenizer, BertConfig, BertForSequenceClassification

from rdl_core.config import RerankConfig, StageConfig
from rdl_core.cross_encoder import CrossEncoder
from rdl_core.data.downloads import EMBEDDED_ENCODER, encoder_path
from rdl_core.distill import distill
from rdl_core.evaluate import per_query, settle_ties
from rdl_core.lists import RankedLists
from rdl_core.losses import LOSSES
from rdl_core.rerank import rerank, rerank_files
from rdl_core.samplers import SAMPLERS, needs
from rdl_core.tokens import TokenCorpus

PINS = json.loads(Path(__file__).with_name("pins.json").read_text())
WORDS = (
    "fox whale river stone cloud ember violet harbour lantern meadow copper thistle "
    "anchor willow saffron glacier pepper orchid falcon marble"
).split()


def text(seed, n):
    return " ".join(WORDS[i] for i in np.random.RandomState(seed).randint(0, len(WORDS), n))


QUERIES = pd.DataFrame([(f"q{i}", text(i, 3 + i % 4)) for i in range(12)], columns=["query_id", "query"])
PASSAGES = pd.DataFrame([(f"d{i}", text(100 + i, 5 + i % 17)) for i in range(60)], columns=["doc_id", "text"])


def make_frame():
    rows = []
    for q in range(12):
        draw = np.random.RandomState(500 + q)
        docs, ranks = draw.permutation(60)[:10], draw.permutation(10) + 1
        rows += [(f"q{q}", f"d{docs[k]}", k + 1, ranks[k], -ranks[k] / 3, int(ranks[k] <= 2)) for k in range(10)]
    return pd.DataFrame(rows, columns="query_id doc_id rank teacher_rank teacher_score relevance".split())


FRAME = make_frame()


@pytest.fixture(scope="module")
def before():
    """A student as it was drawn then."""
    tokenizer = AutoTokenizer.from_pretrained(encoder_path(EMBEDDED_ENCODER))
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=len(tokenizer), hidden_size=32, num_hidden_layers=2, num_attention_heads=4,
        intermediate_size=64, num_labels=1,
    )  # fmt: skip
    return CrossEncoder(BertForSequenceClassification(config), tokenizer, query_tokens=8, passage_tokens=16)


_CONTRASTIVE = {"sampler": "single_relevant", "loss": "info_nce", "targets": "judgments"}
STAGES = [
    StageConfig(
        **_CONTRASTIVE, list_size=4, queries_per_step=4, steps=6, learning_rate=1e-3, head_rate=10,
        warmup_steps=2, schedule="linear", max_gradient_norm=1.0,
    ),
    StageConfig(
        list_size=10, queries_per_step=3, steps=6, learning_rate=1e-3, schedule="cosine", held_tokens=64,
        token_budget=128,
    ),
    StageConfig(  # then with gradient checkpointing, which changed memory alone
        sampler="stratified", loss="kl_div", targets="scores", score_scale=2.0, list_size=5,
        queries_per_step=5, steps=4, learning_rate=1e-3, train_word_embeddings=False,
    ),
]  # fmt: skip


@pytest.fixture(scope="module")
def trained(before, tmp_path_factory):
    """The same student, trained in three stages, its corpus, and the logs."""
    student, corpus = before, TokenCorpus.of(QUERIES, PASSAGES, before.tokenizer)
    lists, logs = RankedLists.from_frame(FRAME, corpus), []
    for n, stage in enumerate(STAGES):
        folder = tmp_path_factory.mktemp("stage")
        distill(student, lists, stage, seed=n, folder=folder)
        logs.append([[x["loss"], x["learning_rate"], x["gradient_norm"]] for x in read_log(folder)])
    return student, corpus, logs


def test_losses_are_those_of_before():
    draw = torch.Generator().manual_seed(0)
    scores = torch.randn(4, 6, generator=draw)
    targets = torch.stack([torch.randperm(6, generator=draw) for _ in range(4)]).float()
    mask = torch.rand(4, 6, generator=draw) > 0.2
    values = {n: f(scores, targets, mask=mask, reduction="none").tolist() for n, f in LOSSES.items()}
    assert values.keys() == PINS["losses"].keys()
    for name, expected in PINS["losses"].items():
        assert values[name] == pytest.approx(expected, abs=2e-6), name


def test_samplers_draw_what_they_drew():
    draw = torch.Generator().manual_seed(0)
    for _ in (torch.randn(4, 6, generator=draw), *(torch.randperm(6, generator=draw) for _ in range(4))):
        pass
    torch.rand(4, 6, generator=draw)
    mask = torch.rand(3, 12, generator=draw) > 0.2
    places = torch.arange(12).expand(3, 12)
    own = {"relevant": places % 5 == 2, "judged": places % 2 == 0}
    own["teacher_rank"] = torch.stack([torch.randperm(12, generator=draw) + 1 for _ in range(3)])
    drawn = {}
    for name, sampler in SAMPLERS.items():
        options = {x: own[x] for x in needs(name)} | ({"first": 2, "last": 9} if name == "hard" else {})
        drawn[name] = sampler(mask, 5, generator=torch.Generator().manual_seed(7), **options).indices.tolist()
    assert drawn == PINS["samplers"]


def test_three_stages_log_what_they_logged(trained):
    for stage, expected in zip(trained[2], PINS["training"], strict=True):
        assert np.array(stage) == pytest.approx(np.array(expected), rel=1e-6)


def test_scores_run_and_measures_are_those_of_before(trained):
    """But for a constant: no loss sees the last bias, whose gradient is the rounding of threads."""
    student, corpus, _ = trained
    for precision, most in (("float32", 1e-6), ("int8", 1e-4)):
        away = rerank(student, FRAME, corpus, precision=precision)["score"] - PINS[f"scores_{precision}"]
        assert away.max() - away.min() < most
        assert away.abs().max() < 0.02
    run = settle_ties(rerank(student, FRAME, corpus), FRAME)
    assert run["doc_id"].tolist() == PINS["run"]
    qrels = FRAME[["query_id", "doc_id", "relevance"]]
    means = per_query(qrels, run, list(PINS["measures"])).set_index("query_id").round(6).mean()
    assert means.to_dict() == pytest.approx(PINS["measures"], abs=1e-9)


def test_a_run_file_holds_what_it_held(trained, tmp_path):
    trained[0].save_pretrained(tmp_path / "student")
    frame = FRAME[["query_id", "doc_id", "rank"]].merge(QUERIES).merge(PASSAGES)
    frame.to_json(tmp_path / "c.jsonl", orient="records", lines=True)
    names = {x: str(tmp_path / y) for x, y in (("student", "student"), ("candidates", "c.jsonl"), ("out", "run"))}
    rerank_files(RerankConfig(**names, precision="float32"))
    assert [" ".join(x.split()[:4]) for x in (tmp_path / "run").read_text().splitlines()] == PINS["rdl_rerank"]
