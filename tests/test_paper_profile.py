"""The paper's profile: its values, its grid, and both stages on its files in small.

The recipe's table is that of the authors' configurations (webis-de/rank-distillm at commit 2b7e49d,
configs/pre-finetune.yaml and configs/finetune.yaml), the sections are the paper's (arXiv 2405.07920).

Mutations seen to fail: another depth and number of steps in the profile, steps alike whatever the
number of queries, queries chosen from all the judged, passages tokenised from a frame of all of them.
"""

import socket
import tracemalloc
from dataclasses import replace
from types import SimpleNamespace

import ir_datasets
import pandas as pd
import pytest
from ir_datasets.formats import GenericDoc, GenericQuery, TrecQrel

from rdl_core.data import collections
from rdl_core.data.collections import load
from rdl_study import graph, grid, lists
from rdl_study.grid import RankingConfig, rank, rankings, train
from rdl_study.lists import corpus
from rdl_study.profile import load_profile
from rdl_study.tables import published

JUDGED = "msmarco-passage/train/judged"

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


@pytest.fixture(scope="module")
def profile():
    return load_profile("paper")


@pytest.mark.parametrize("field", [*LISTS, *TRAINING])
def test_the_recipe_value_by_value(profile, field):
    table = LISTS if field in LISTS else TRAINING
    stages = profile.student().stages
    configs = [stage.lists if field in LISTS else stage.training for stage in stages]
    assert tuple(getattr(config, field) for config in configs) == table[field]


def test_the_recipe_around_the_stages(profile):
    first, second = profile.student().stages
    assert first.training.steps == 20_000  # max_steps
    passes = second.training.steps * second.training.queries_per_step / second.lists.n_queries
    assert passes == pytest.approx(3, abs=0.01)  # max_epochs
    assert profile.seeds == (42,)  # seed_everything
    assert (profile.query_tokens, profile.passage_tokens) == (32, 256)  # query_length, doc_length
    assert profile.encoder == "google/electra-base-discriminator"
    assert (profile.measure, profile.test.depth) == ("nDCG@10", 100)  # re-rank.yaml
    years = [f"msmarco-passage/trec-dl-{year}/judged" for year in (2019, 2020)]
    assert [test.collection for test in profile.tests] == years


def test_the_grid_is_the_papers_and_needs_neither_data_nor_network(tmp_path, monkeypatch):
    def refuse(*_, **__):
        raise AssertionError("reached for data or a network")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    monkeypatch.setattr(ir_datasets, "load", refuse)
    monkeypatch.setenv("RDL_CACHE", str(tmp_path))
    monkeypatch.delenv("RDL_MIRROR", raising=False)
    pages = graph.declarations("paper")
    assert not list(tmp_path.iterdir())
    assert {"bm25", "colbert"} <= set(pages["effectiveness"])
    last = [s.stages[-1] for s in pages["depth"]["depths"].systems.values()]
    depths = published("depth").index.tolist()
    assert [stage.lists.depth for stage in last] == depths
    assert [stage.training.list_size for stage in last] == depths
    assert {(s.training.queries_per_step, s.training.steps) for s in last} == {(32, 940)}
    last = [s.stages[-1] for s in pages["depth"]["queries"].systems.values()]
    assert [stage.lists.n_queries for stage in last] == published("queries").index.tolist()
    assert [stage.training.steps for stage in last] == [94, 188, 470, 940]  # three passes each
    losses = {name.lower().replace("-", "_") for name in published("loss").index}
    assert losses == set(pages["loss"]["losses"].systems)
    corpora = [name for name in published("tirex") if not name.endswith("-mean")]
    assert list(pages["out_of_domain"]) == corpora
    tested = [x.collection for part in pages["out_of_domain"].values() for x in part.profile.tests]
    assert len(tested) == len(set(tested)) == 29
    assert all(name in ir_datasets.registry for name in tested)
    part = pages["out_of_domain"]["medline"]  # further collections are no swap: the same student
    students = [config.system for config in rankings(part.profile, part.systems["student"])]
    assert students == [load_profile("paper").student()] * 4


TRAINED = [str(100 + n) for n in range(12)]  # judged training queries
RANKED = TRAINED[::2]  # those that RankZephyr ranked
N = 48


def register(monkeypatch, name, **parts):
    """A dataset for ir_datasets; parts are functions that iterate."""
    has = {f"has_{part}": lambda x=part: x in parts for part in ("docs", "queries", "qrels")}
    dataset = SimpleNamespace(**has, **{f"{part}_iter": read for part, read in parts.items()})
    monkeypatch.setitem(ir_datasets.registry._registered, name, dataset)


@pytest.fixture
def marco(tmp_path, monkeypatch):
    """MS MARCO's training queries and a test, with ColBERTv2's lists and RankZephyr's order of some."""
    monkeypatch.setenv("RDL_RUNS", str(tmp_path))
    for name, ids in ((JUDGED, TRAINED), ("msmarco-passage/trec-dl-2019/judged", ["7000", "7001"])):
        register(
            monkeypatch, name,
            docs=lambda: (GenericDoc(str(n), f"fox number {n}") for n in range(N)),
            queries=lambda ids=ids: (GenericQuery(x, f"which fox is {x}") for x in ids),
            qrels=lambda ids=ids: (TrecQrel(x, str(n % 4), 1, "0") for n, x in enumerate(ids)),
        )  # fmt: skip
    load.cache_clear()
    frame = pd.DataFrame(
        [(x, str((int(x) * 7 + n) % N), n + 1, 30.0 - n) for x in [*TRAINED, "7000", "7001"]
         for n in range(30)], columns=["query_id", "doc_id", "rank", "score"],
    )  # fmt: skip
    ranked = frame[frame["query_id"].isin(RANKED)]
    orders = ranked[["query_id", "doc_id"]].assign(teacher_rank=31 - ranked["rank"])
    door = {
        "first_stage": lambda c, name, depth, ids: frame[frame["query_id"].isin(ids)],
        "ranked_queries": lambda c, first_stages, teacher: None if teacher == "judgments" else RANKED,
        "teacher_runs": lambda c, name, teacher: [orders],
    }
    for name, function in door.items():
        monkeypatch.setattr(lists.published, name, function)
    yield
    load.cache_clear()


def test_both_stages_train_on_the_lists_and_rank_the_tests(marco, profile, encoder_folder):
    def cut(stage, n):
        return replace(stage, training=replace(stage.training, steps=2, queries_per_step=n))

    tiny = replace(
        profile, encoder=encoder_folder, precision="float32", query_tokens=8, passage_tokens=16,
        stage1=cut(profile.stage1, 3), stage2=cut(profile.stage2, 2),
    )  # fmt: skip
    run, first = train(tiny.student()), train(tiny.student(tiny.stage1))
    assert first.manifest["id"] in run.manifest["inputs"]
    assert first.manifest["n_lists"] == len(TRAINED)  # all judged queries, not RankZephyr's alone
    assert run.manifest["n_lists"] == len(RANKED)
    log = grid.training_log(tiny.student())
    assert log["loss"].between(0, 3, inclusive="neither").all()
    config = RankingConfig(candidates=tiny.test, system=tiny.student(), precision="float32")
    assert rank(config).manifest["n_pairs"] == 60


def test_passages_are_never_all_in_memory(tmp_path, monkeypatch, encoder_folder):
    """All texts of 8.8 M passages once went into a frame, to be hashed and tokenised."""
    monkeypatch.setenv("RDL_RUNS", str(tmp_path))
    monkeypatch.setattr(collections, "_CHUNK", 200)
    register(
        monkeypatch, "large", queries=lambda: iter([GenericQuery("1", "fox")]),
        docs=lambda: (GenericDoc(str(n), f"{n} fox " + "x" * 10_000) for n in range(2000)),
    )  # fmt: skip
    corpus("rdl/pydocs/dev", encoder_folder)  # what loading takes
    tracemalloc.start()
    tokens = corpus("large", encoder_folder)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 20e6  # some parts of 2 to 4 MB; a frame of all the texts took 40 MB
    assert len(tokens.doc_ids) == len(tokens.passages) == 2000
    assert "passages" not in vars(load("large"))
    load.cache_clear()
