"""Values recorded before the library was rebuilt: whoever upgrades gets the same numbers."""

import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from common import read_log
from transformers import AutoTokenizer, BertConfig, BertForSequenceClassification

from rdl_core.config import StageConfig
from rdl_core.cross_encoder import CrossEncoder
from rdl_core.data.downloads import EMBEDDED_ENCODER, embedded_path
from rdl_core.distill import distill
from rdl_core.evaluate import per_query, settle_ties
from rdl_core.lists import RankedLists
from rdl_core.losses import LOSSES
from rdl_core.rerank import rerank
from rdl_core.samplers import SAMPLERS, needs
from rdl_core.tokens import TokenCorpus
from rdl_tools.config import RerankConfig
from rdl_tools.rerank import rerank_files

PINS = json.loads(Path(__file__).with_name("pins.json").read_text())
WORDS = (
    "fox whale river stone cloud ember violet harbour lantern meadow copper thistle "
    "anchor willow saffron glacier pepper orchid falcon marble"
).split()


def text(seed, n):
    return " ".join(WORDS[i] for i in np.random.RandomState(seed).randint(0, len(WORDS), n))


def candidates_of(query):
    draw = np.random.RandomState(500 + query)
    docs, ranks = draw.permutation(60)[:10], draw.permutation(10) + 1
    frame = pd.DataFrame({"query_id": f"q{query}", "doc_id": [f"d{x}" for x in docs]})
    order = {"rank": range(1, 11), "teacher_rank": ranks, "teacher_score": -ranks / 3}
    return frame.assign(**order, relevance=(ranks <= 2).astype(int))


QUERIES = pd.DataFrame({"query_id": f"q{i}", "query": text(i, 3 + i % 4)} for i in range(12))
PASSAGES = pd.DataFrame({"doc_id": f"d{i}", "text": text(100 + i, 5 + i % 17)} for i in range(60))
FRAME = pd.concat(map(candidates_of, range(12)), ignore_index=True)
STAGES = [
    {"sampler": "single_relevant", "loss": "info_nce", "targets": "judgments", "list_size": 4,
     "queries_per_step": 4, "steps": 6, "head_rate": 10, "warmup_steps": 2, "schedule": "linear",
     "max_gradient_norm": 1.0},
    {"list_size": 10, "queries_per_step": 3, "steps": 6, "schedule": "cosine", "held_tokens": 64,
     "token_budget": 128},
    {"sampler": "stratified", "loss": "kl_div", "targets": "scores", "score_scale": 2.0,
     "list_size": 5, "queries_per_step": 5, "steps": 4, "train_word_embeddings": False},
]  # fmt: skip


def test_losses_and_draws_are_those_of_before():
    draw = torch.Generator().manual_seed(0)
    scores = torch.randn(4, 6, generator=draw)
    targets = torch.stack([torch.randperm(6, generator=draw) for _ in range(4)]).float()
    mask = torch.rand(4, 6, generator=draw) > 0.2
    assert LOSSES.keys() == PINS["losses"].keys()
    for name, expected in PINS["losses"].items():
        values = LOSSES[name](scores, targets, mask=mask, reduction="none").tolist()
        assert values == pytest.approx(expected, abs=2e-6), name
    mask, places = torch.rand(3, 12, generator=draw) > 0.2, torch.arange(12).expand(3, 12)
    own = {"relevant": places % 5 == 2, "judged": places % 2 == 0}
    own["teacher_rank"] = torch.stack([torch.randperm(12, generator=draw) + 1 for _ in range(3)])
    assert SAMPLERS.keys() == PINS["samplers"].keys()
    for name, expected in PINS["samplers"].items():
        options = {x: own[x] for x in needs(name)} | ({"first": 2, "last": 9} if name == "hard" else {})
        drawn = SAMPLERS[name](mask, 5, generator=torch.Generator().manual_seed(7), **options)
        assert drawn.indices.tolist() == expected, name


def test_stages_scores_runs_and_measures_are_those_of_before(tmp_path):
    """But for a constant: no loss sees the last bias, whose gradient is the rounding of threads."""
    tokenizer = AutoTokenizer.from_pretrained(embedded_path(EMBEDDED_ENCODER))
    torch.manual_seed(0)
    sizes = {"vocab_size": len(tokenizer), "hidden_size": 32, "intermediate_size": 64}
    config = BertConfig(num_labels=1, num_hidden_layers=2, num_attention_heads=4, **sizes)
    model = BertForSequenceClassification(config)
    student = CrossEncoder(model, tokenizer, query_tokens=8, passage_tokens=16)
    corpus = TokenCorpus.of(QUERIES, PASSAGES, tokenizer)
    for n, (stage, expected) in enumerate(zip(STAGES, PINS["training"], strict=True)):
        folder, config = tmp_path / f"stage {n}", StageConfig(learning_rate=1e-3, **stage)
        distill(student, RankedLists.from_frame(FRAME, corpus), config, seed=n, folder=folder)
        log = [[x["loss"], x["learning_rate"], x["gradient_norm"]] for x in read_log(folder)]
        assert np.array(log) == pytest.approx(np.array(expected), rel=1e-6)
    for precision, most in (("float32", 1e-6), ("int8", 1e-4)):
        run = rerank(student, FRAME, corpus, precision=precision)
        away = run["score"] - PINS[f"scores_{precision}"]
        assert away.max() - away.min() < most
        assert away.abs().max() < 0.02
    run = settle_ties(rerank(student, FRAME, corpus), FRAME)
    assert run["doc_id"].tolist() == PINS["run"]
    values = per_query(FRAME[["query_id", "doc_id", "relevance"]], run, list(PINS["measures"]))
    assert values.set_index("query_id").mean().to_dict() == pytest.approx(PINS["measures"], abs=1e-6)
    student.save_pretrained(tmp_path / "student")
    frame = FRAME[["query_id", "doc_id", "rank"]].merge(QUERIES).merge(PASSAGES)
    frame.to_json(tmp_path / "c.jsonl", orient="records", lines=True)
    student, candidates, out = (str(tmp_path / name) for name in ("student", "c.jsonl", "out"))
    rerank_files(RerankConfig(student=student, candidates=candidates, out=out, precision="float32"))
    lines = (tmp_path / "out").read_text().splitlines()
    assert [" ".join(line.split()[:4]) for line in lines] == PINS["rdl_rerank"]
