"""The package still computes what it computed at b3e02a5: every number of `pins.json` was recorded
there, before the library and the study moved apart.

Losses, samplers, three small trainings, scores in two precisions, a run and its measures, and the
file that ``rdl rerank`` writes. To record new ones on purpose: ``python tests/test_pins.py``.
"""

import json
import tempfile
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from click.testing import CliRunner
from transformers import AutoTokenizer, BertConfig, BertForSequenceClassification

from rdl_core.cli import app
from rdl_core.config import StageConfig
from rdl_core.cross_encoder import CrossEncoder
from rdl_core.data.downloads import EMBEDDED_ENCODER, encoder_path
from rdl_core.distill import distill
from rdl_core.evaluate import per_query, settle_ties
from rdl_core.lists import RankedLists
from rdl_core.losses import LOSSES
from rdl_core.rerank import rerank
from rdl_core.samplers import SAMPLERS, needs
from rdl_core.tokens import TokenCorpus

PINS = Path(__file__).with_name("pins.json")
WORDS = (
    "fox whale river stone cloud ember violet harbour lantern meadow copper thistle anchor willow "
    "saffron glacier pepper orchid falcon marble"
).split()
STAGES = [
    StageConfig(
        sampler="single_relevant", loss="info_nce", targets="judgments", list_size=4,
        queries_per_step=4, steps=6, learning_rate=1e-3, head_rate=10, warmup_steps=2, schedule="linear",
        max_gradient_norm=1.0, precision="float32",
    ),
    StageConfig(
        sampler="top", loss="ranknet", targets="teacher", list_size=10, queries_per_step=3, steps=6,
        learning_rate=1e-3, schedule="cosine", dropout=0.1, held_tokens=64, token_budget=128,
        precision="float32",
    ),
    StageConfig(
        sampler="stratified", loss="kl_div", targets="scores", score_scale=2.0, list_size=5,
        queries_per_step=5, steps=4, learning_rate=1e-3, train_word_embeddings=False,
        precision="float32",
    ),
]  # fmt: skip


def words(seed, n):
    return " ".join(WORDS[i] for i in np.random.RandomState(seed).randint(0, len(WORDS), n))


def texts_and_candidates():
    queries = {"query_id": [f"q{i}" for i in range(12)], "query": [words(i, 3 + i % 4) for i in range(12)]}
    passages = [words(100 + i, 5 + i % 17) for i in range(60)]
    passages = pd.DataFrame({"doc_id": [f"d{i}" for i in range(60)], "text": passages})
    rows = []
    for q in range(12):
        draw = np.random.RandomState(500 + q)
        docs, ranks = draw.permutation(60)[:10], draw.permutation(10) + 1
        rows += [
            (f"q{q}", f"d{doc}", k, int(rank), float(-rank) / 3, int(rank <= 2))
            for k, (doc, rank) in enumerate(zip(docs, ranks, strict=True), start=1)
        ]
    names = "query_id doc_id rank teacher_rank teacher_score relevance".split()
    return pd.DataFrame(queries), passages, pd.DataFrame(rows, columns=names)


def compute(folder):
    """All that is pinned, as JSON holds it."""
    out, draws = {}, torch.Generator().manual_seed(0)
    scores = torch.randn(4, 6, generator=draws)
    targets = torch.stack([torch.randperm(6, generator=draws) for _ in range(4)]).float()
    mask = torch.rand(4, 6, generator=draws) > 0.2
    out["losses"] = {
        name: loss(scores, targets, mask=mask, reduction="none").tolist() for name, loss in LOSSES.items()
    }
    mask = torch.rand(3, 12, generator=draws) > 0.2
    columns = {
        "relevant": torch.arange(12).expand(3, 12) % 5 == 2,
        "judged": torch.arange(12).expand(3, 12) % 2 == 0,
        "teacher_rank": torch.stack([torch.randperm(12, generator=draws) + 1 for _ in range(3)]),
    }
    out["samplers"] = {
        name: sampler(
            mask, 5, generator=torch.Generator().manual_seed(7),
            **{k: columns[k] for k in needs(name)}, **({"first": 2, "last": 9} if name == "hard" else {}),
        ).indices.tolist()
        for name, sampler in SAMPLERS.items()
    }  # fmt: skip

    tokenizer = AutoTokenizer.from_pretrained(encoder_path(EMBEDDED_ENCODER))
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=len(tokenizer), hidden_size=32, num_hidden_layers=2, num_attention_heads=4,
        intermediate_size=64, num_labels=1,
    )  # fmt: skip
    model = BertForSequenceClassification(config)
    student = CrossEncoder(model, tokenizer, query_tokens=8, passage_tokens=16)
    queries, passages, frame = texts_and_candidates()
    corpus = TokenCorpus.of(queries, passages, tokenizer)
    lists = RankedLists.from_frame(frame, corpus)
    out["training"] = []
    for seed, stage in enumerate(STAGES):
        distill(student, lists, stage, seed=seed, folder=folder / str(seed))
        log = [json.loads(line) for line in (folder / str(seed) / "log.jsonl").open()]
        out["training"].append([[s["loss"], s["learning_rate"], s["gradient_norm"]] for s in log])
    for precision in ("float32", "int8"):
        run = rerank(student, frame, corpus, precision=precision)
        out[f"scores_{precision}"] = run["score"].tolist()
    run = settle_ties(rerank(student, frame, corpus), frame)
    out["run"] = run["doc_id"].tolist()
    qrels = frame[["query_id", "doc_id", "relevance"]]
    values = per_query(qrels, run, ["nDCG@10", "RR", "AP(rel=1)"]).set_index("query_id")
    out["measures"] = values.mean().to_dict()

    student.save_pretrained(folder / "student")
    rows = frame[["query_id", "doc_id", "rank"]].merge(queries, "left").merge(passages, "left")
    rows.to_json(folder / "candidates.jsonl", orient="records", lines=True)
    command = ["rerank", "student", "candidates.jsonl", "out.run", "--precision", "float32"]
    command[1:4] = [str(folder / name) for name in command[1:4]]
    done = CliRunner().invoke(app, [*command, "--query-tokens", "8", "--passage-tokens", "16"])
    assert done.exit_code == 0, done.output
    lines = (folder / "out.run").read_text().splitlines()
    out["rdl_rerank"] = [" ".join(line.split()[:4]) for line in lines]
    return out


@pytest.fixture(scope="module")
def computed(tmp_path_factory):
    return compute(tmp_path_factory.mktemp("pins"))


# Another processor adds in another order: floats may differ in the last digits, and a training
# carries the difference on. Draws, orders and files may not differ at all.
@pytest.mark.parametrize(
    ("name", "allowed"),
    [
        ("losses", 1e-5), ("samplers", 0), ("training", 1e-3), ("scores_float32", 1e-3),
        ("scores_int8", 1e-2), ("run", 0), ("measures", 1e-6), ("rdl_rerank", 0),
    ],
)  # fmt: skip
def test_nothing_that_is_computed_has_changed(computed, name, allowed):
    pinned = json.loads(PINS.read_text())[name]
    check(computed[name], pinned, allowed)


def check(value, pinned, allowed):
    if isinstance(pinned, dict):
        assert value.keys() == pinned.keys()
        value, pinned = ([each[key] for key in pinned] for each in (value, pinned))
    if isinstance(pinned, list):
        assert len(value) == len(pinned)
        for one, two in zip(value, pinned, strict=True):
            check(one, two, allowed)
    elif isinstance(pinned, float):
        assert value == pytest.approx(pinned, abs=allowed, rel=allowed, nan_ok=True)
    else:
        assert value == pinned


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as folder:
        PINS.write_text(json.dumps(compute(Path(folder)), separators=(",", ":")))
