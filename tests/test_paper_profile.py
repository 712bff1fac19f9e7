"""The paper's profile: its values, its grid, and both stages on its files in small.

The recipe's table is that of the authors' configurations (webis-de/rank-distillm at commit 2b7e49d,
configs/pre-finetune.yaml and configs/finetune.yaml), the sections are the paper's (arXiv 2405.07920).
"""

import socket
from dataclasses import replace
from types import SimpleNamespace

import ir_datasets
import pytest
import test_published
from ir_datasets.formats import GenericDoc, GenericQuery, TrecQrel
from test_published import RANKED, TRAINED, rows, run_text

from rdl_core.data.collections import load
from rdl_study import graph, grid
from rdl_study.grid import rank, rankings, train
from rdl_study.profile import load_profile
from rdl_study.tables import published

PAPER, JUDGED = load_profile("paper"), "msmarco-passage/train/judged"
#: field: (first stage of training, second); section 4.1, pre-finetune.yaml, finetune.yaml
LISTS = {
    "collection": (JUDGED, JUDGED),  # train-judged
    "first_stage": ("colbert", "colbert"),  # rank-distillm-colbert
    "teacher": ("judgments", "rank_zephyr"),  # targets: relevance; targets: rank
    "depth": (200, 100),  # depth
    "n_queries": (None, 10_000),  # all judged; section 3: 10,000 queries
    "add_relevant": (True, False),  # add_docs_not_in_ranking
}
TRAINING = {
    "sampler": ("single_relevant", "top"),  # sampling_strategy
    "list_size": (8, 100),  # sample_size
    "loss": ("info_nce", "ranknet"),  # loss_functions
    "targets": ("judgments", "teacher"),  # targets
    "queries_per_step": (32, 32),  # train_batch_size
    "learning_rate": (1e-5, 1e-5),  # torch.optim.AdamW, lr
    "warmup_steps": (0, 0),  # no scheduler
    "schedule": ("constant", "constant"),  # no scheduler
    "max_gradient_norm": (0, 0),  # no gradient_clip_val
    "head_rate": (1, 1),  # one parameter group
    "train_word_embeddings": (True, True),  # all weights
    "dropout": (0.1, 0.1),  # hidden_dropout_prob of google/electra-*-discriminator
    "precision": ("bfloat16", "bfloat16"),  # bf16-mixed
    "dev_every": (0, 0),  # no validation
}


def test_the_recipe_value_by_value():
    first, second = PAPER.student().stages
    assert {x: (getattr(first.lists, x), getattr(second.lists, x)) for x in LISTS} == LISTS
    first, second = first.training, second.training
    assert {x: (getattr(first, x), getattr(second, x)) for x in TRAINING} == TRAINING
    assert first.steps == 20_000  # max_steps
    passes = second.steps * second.queries_per_step / PAPER.stage2.lists.n_queries
    assert passes == pytest.approx(3, abs=0.01)  # max_epochs
    assert PAPER.seeds == (42,)  # seed_everything
    assert (PAPER.query_tokens, PAPER.passage_tokens) == (32, 256)  # query_length, doc_length
    assert PAPER.encoder == "google/electra-base-discriminator"
    assert (PAPER.measure, PAPER.test.depth) == ("nDCG@10", 100)  # re-rank.yaml
    years = [f"msmarco-passage/trec-dl-{year}/judged" for year in (2019, 2020)]
    assert [test.collection for test in PAPER.tests] == years


def test_the_grid_is_the_papers_and_needs_neither_data_nor_network(tmp_path, monkeypatch):
    def refuse(*_, **__):
        raise AssertionError("reached for data or a network")

    for place, name in ((socket.socket, "connect"), (socket, "getaddrinfo"), (ir_datasets, "load")):
        monkeypatch.setattr(place, name, refuse)
    monkeypatch.setenv("RDL_CACHE", str(tmp_path))
    monkeypatch.delenv("RDL_MIRROR", raising=False)
    pages = graph.declarations("paper")
    assert not list(tmp_path.iterdir())
    assert {"bm25", "colbert"} <= set(pages["effectiveness"])
    last = [student.stages[-1] for student in pages["depth"]["depths"].systems.values()]
    depths = published("depth").index.tolist()
    assert [(x.lists.depth, x.training.list_size) for x in last] == [(x, x) for x in depths]
    assert {(x.training.queries_per_step, x.training.steps) for x in last} == {(32, 940)}
    last = [student.stages[-1] for student in pages["depth"]["queries"].systems.values()]
    assert [stage.lists.n_queries for stage in last] == published("queries").index.tolist()
    assert [stage.training.steps for stage in last] == [94, 188, 470, 940]  # three passes each
    losses = published("loss").index.str.lower().str.replace("-", "_")
    assert set(losses) == set(pages["loss"]["losses"].systems)
    corpora = pages["out_of_domain"]
    assert list(corpora) == [name for name in published("tirex") if not name.endswith("-mean")]
    tested = [test.collection for part in corpora.values() for test in part.profile.tests]
    assert len(tested) == len(set(tested)) == 29
    assert all(name in ir_datasets.registry for name in tested)


mirror = test_published.mirror


@pytest.fixture
def marco(mirror, monkeypatch):
    """MS MARCO's training queries and a test, with ColBERTv2's lists and RankZephyr's order of some."""
    name = "rank-distillm/__colbert__msmarco-passage-trec-dl-2019-judged.run"
    (mirror / name).write_text(run_text(rows(["7000", "7001"], depth=30, seed=5), "\t", "0"))
    for name, ids in ((JUDGED, TRAINED), ("msmarco-passage/trec-dl-2019/judged", ["7000", "7001"])):
        has = dict.fromkeys(("has_docs", "has_queries", "has_qrels"), lambda: True)
        dataset = SimpleNamespace(
            **has, docs_iter=lambda: (GenericDoc(str(n), f"fox number {n}") for n in range(48)),
            queries_iter=lambda ids=ids: (GenericQuery(x, f"which fox is {x}") for x in ids),
            qrels_iter=lambda ids=ids: (TrecQrel(x, str(n % 4), 1, "0") for n, x in enumerate(ids)),
        )  # fmt: skip
        monkeypatch.setitem(ir_datasets.registry._registered, name, dataset)
    load.cache_clear()
    yield
    load.cache_clear()


def test_both_stages_train_on_the_lists_and_rank_the_tests(runs, marco, encoder_folder):
    cut = {
        name: replace(stage, training=replace(stage.training, steps=2, queries_per_step=n))
        for name, stage, n in (("stage1", PAPER.stage1, 3), ("stage2", PAPER.stage2, 2))
    }
    small = {"query_tokens": 8, "passage_tokens": 16, "precision": "float32"}
    test = replace(PAPER.test, first_stage="colbert")
    tiny = replace(PAPER, encoder=encoder_folder, test=test, **small, **cut)
    run, first = train(tiny.student()), train(tiny.student(tiny.stage1))
    assert first.manifest["id"] in run.manifest["inputs"]
    assert first.manifest["n_lists"] == len(TRAINED)  # all judged queries, not RankZephyr's alone
    assert run.manifest["n_lists"] == len(RANKED)
    assert grid.training_log(tiny.student())["loss"].between(0, 3, inclusive="neither").all()
    (config, _) = rankings(tiny, tiny.student())
    assert rank(config).manifest["n_pairs"] == 60
