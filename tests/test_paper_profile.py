"""The paper's profile: its values, its grid, and its files in small, from 127.0.0.1 to two steps.

The recipe's table is that of the authors' configurations (webis-de/rank-distillm at commit 2b7e49d,
configs/pre-finetune.yaml and configs/finetune.yaml), the sections are the paper's (arXiv 2405.07920).

Mutations seen to fail: passages tokenised from a frame of all of them; and, in one run, another
depth and number of steps in the profile, steps alike whatever the number of queries, the student
swapped for a corpus' second collection, queries chosen from all the judged, the first
stage's file read deeper than asked, and a mirror's file taken unchecked.
"""

import hashlib
import json
import os
import socket
import subprocess
import sys
import tracemalloc
from dataclasses import replace
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread

import ir_datasets
import pandas as pd
import pytest
import torch
from ir_datasets.formats import GenericDoc, TrecQrels, TsvDocs, TsvQueries

from rdl_core import cli
from rdl_core.data import collections, downloads, rank_distillm
from rdl_core.data._parts import Docs, Fetched
from rdl_core.data.collections import Collection, fingerprint, load
from rdl_core.data.downloads import download_folder, fetch, group_names, registry
from rdl_core.data.formats import read_triples
from rdl_core.lists import RankedLists
from rdl_study import grid
from rdl_study.candidates import ListsConfig, chosen_queries, lists, passage_tokens, tokens
from rdl_study.jobs import RankingConfig, ranking, student
from rdl_study.parameters import NOTEBOOKS, check_parameters
from rdl_study.profile import load_profile
from rdl_study.store import project_folder

PAPER = json.loads((project_folder() / "rdl_core" / "study" / "paper_tables.json").read_text())
JUDGED = "msmarco-passage/train/judged"
DL19 = "msmarco-passage/trec-dl-2019/judged"

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
    "weight_decay": (0.01, 0.01),  # torch.optim.AdamW's default
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


def pages(profile):
    return {
        page: check_parameters(page, {"profile": "paper", **profile.notebooks.get(page, {})}).parts
        for page in NOTEBOOKS
    }


# --- the profile --------------------------------------------------------------------------------


@pytest.mark.parametrize("number", [0, 1], ids=["stage1", "stage2"])
@pytest.mark.parametrize("field", [*LISTS, *TRAINING])
def test_the_recipe_value_by_value(profile, field, number):
    stage = profile.student().stages[number]
    table, config = (LISTS, stage.lists) if field in LISTS else (TRAINING, stage.training)
    assert getattr(config, field) == table[field][number]


def test_the_recipe_around_the_stages(profile):
    first, second = profile.student().stages
    assert first.training.steps == 20_000  # max_steps
    passes = second.training.steps * second.training.queries_per_step / second.lists.n_queries
    assert passes == pytest.approx(3, abs=0.01)  # max_epochs
    assert profile.seeds == (42,)  # seed_everything
    assert (profile.query_tokens, profile.passage_tokens) == (32, 256)  # query_length, doc_length
    sizes = (profile.encoder, *profile.more_encoders)
    assert sizes == ("google/electra-base-discriminator", "google/electra-large-discriminator")
    assert profile.measure == PAPER["measure"]
    assert profile.test.depth == 100  # re-rank.yaml
    years = [f"msmarco-passage/trec-dl-{year}/judged" for year in (2019, 2020)]
    assert [test.collection for test in profile.tests] == years


def test_the_grid_is_the_papers(profile):
    of = pages(profile)
    assert [*of["effectiveness"]] == ["bm25", "colbert"]
    shown = of["effectiveness"]["colbert"].systems
    assert [s.encoder for label, s in shown.items() if label.startswith("student, ")] == [
        "google/electra-large-discriminator"
    ]
    assert [*of["negatives"]["first stages"].systems] == [
        f"{stages}, lists from {name}"
        for stages in ("single", "dual") for name in ("bm25", "colbert")
    ]  # fmt: skip
    depths = of["depth"]["depths"].systems.values()
    last = [system.stages[-1] for system in depths]
    assert [stage.lists.depth for stage in last] == PAPER["depth"]["x"]
    assert [stage.training.list_size for stage in last] == PAPER["depth"]["x"]
    assert {(s.training.queries_per_step, s.training.steps) for s in last} == {(32, 940)}
    last = [system.stages[-1] for system in of["depth"]["queries"].systems.values()]
    assert [stage.lists.n_queries for stage in last] == PAPER["queries"]["x"]
    assert [stage.training.steps for stage in last] == [94, 188, 470, 940]  # three passes each
    losses = [name.lower().replace("-", "_") for name, _ in PAPER["loss"]["rows"]]
    assert [*of["loss"]["losses"].systems] == losses
    corpora = [name for name in PAPER["tirex"]["columns"] if not name.endswith("-mean")]
    assert [*of["out_of_domain"]] == corpora
    tested = [test.collection for part in of["out_of_domain"].values() for test in part.profile.tests]
    assert len(tested) == len(set(tested)) == 29
    assert all(name in ir_datasets.registry for name in tested)


def test_a_corpus_is_tested_on_by_the_same_student(profile):
    """Further collections are no swap: only `both_ways` trains on the other's lists."""
    part = pages(profile)["out_of_domain"]["medline"]
    configs = grid.rankings(part.profile, part.systems["student"])
    assert [config.system for config in configs] == [profile.student()] * 4
    with pytest.raises(ValueError, match="more_tests: expected none with both_ways"):
        replace(profile, both_ways=True)


def test_profile_and_grid_need_neither_data_nor_network(tmp_path, monkeypatch):
    def refuse(*_, **__):
        raise AssertionError("reached for data or a network")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    monkeypatch.setattr(Collection, "_each", refuse)
    monkeypatch.setenv("RDL_CACHE", str(tmp_path))
    monkeypatch.delenv("RDL_MIRROR", raising=False)
    load_profile.cache_clear()
    parts = [part for of in pages(load_profile("paper")).values() for part in of.values()]
    configs = [c for p in parts for s in p.systems.values() for c in grid.rankings(p.profile, s)]
    assert len(configs) > 100
    assert not list(tmp_path.iterdir())


# --- its files in small, from a server of this test ----------------------------------------------

TOPICS = [
    "red foxes hunt mice", "blue whales sing low", "bread rises with yeast", "tides follow the moon"
]  # fmt: skip
PASSAGES = [f"{topic}, said number {n}" for n in range(12) for topic in TOPICS]
N = len(PASSAGES)
TRAINED = [str(100 + n) for n in range(12)]  # judged training queries
RANKED = TRAINED[::2]  # those that RankZephyr ranked
ASKED = ["7000", "7001"]


def rows(query_ids, *, depth, seed):
    """``qid docno rank score`` of some queries."""
    draw = torch.Generator().manual_seed(seed)
    found = []
    for query_id in query_ids:
        for place, doc in enumerate(torch.randperm(N, generator=draw)[:depth].tolist()):
            found.append((query_id, str(doc), place + 1, float(depth - place)))
    return pd.DataFrame(found, columns=["qid", "docno", "rank", "score"])


def run_text(frame, separator, iteration="Q0"):
    each = frame.itertuples(index=False)
    return "".join(separator.join((q, iteration, d, str(r), str(s), "tag")) + "\n" for q, d, r, s in each)


def made(folder):
    """Every file under its registry name, in exactly the published shape."""
    def write(name, content):
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        if isinstance(content, pd.DataFrame):
            content.to_parquet(path, index=False)
        else:
            path.write_text(content, encoding="utf-8")

    first = rows(TRAINED, depth=30, seed=1)
    colbert, zephyr, bm25, zephyr_of_bm25 = group_names("rank-distillm")
    write(colbert, first)
    of_ranked = first[first["qid"].isin(RANKED)]
    write(zephyr, of_ranked.assign(rank=31 - of_ranked["rank"], score=1.0 / (31 - of_ranked["rank"])))
    first = rows(TRAINED, depth=30, seed=2)
    write(bm25, run_text(first, " "))  # blanks, from 1
    of_ranked = first[first["qid"].isin(RANKED)]
    write(zephyr_of_bm25, run_text(of_ranked.assign(rank=of_ranked["rank"] - 1), "\t", "0"))
    write("msmarco/collection.tsv", "".join(f"{n}\t{text}\n" for n, text in enumerate(PASSAGES)))
    asked = [f"{q}\t{TOPICS[n % 4]} again {q}\n" for n, q in enumerate([*TRAINED, *ASKED])]
    write("msmarco/queries.train.tsv", "".join(asked[: len(TRAINED)]))
    write("msmarco/queries.dl19.tsv", "".join(asked[len(TRAINED) :]))
    relevant = [f"{q}\t0\t{n % 4}\t1\n" for n, q in enumerate(TRAINED)]
    write("msmarco/qrels.train.tsv", "".join(relevant))
    write("msmarco/qrels.dl19.txt", "".join(f"{q} Q0 {n} {n % 4}\n" for q in ASKED for n in range(8)))
    triples = "".join(f"{q}\t{n % 4}\t{n + 4}\n" for n, q in enumerate(TRAINED))
    write("msmarco/qidpidtriples.train.full.2.tsv", triples)
    hits = [
        {"query": "?", "hits": [
            {"content": PASSAGES[n], "qid": int(q), "docid": str(n), "rank": n + 1, "score": 9.0 - n}
            for n in range(8)
        ]}
        for q in ASKED
    ]  # fmt: skip
    write("trec-dl/retrieve_results/BM25/retrieve_results_dl19_top100.json", json.dumps(hits))


@pytest.fixture
def served(tmp_path, monkeypatch):
    """The files on 127.0.0.1, a registry of them, and MS MARCO's two collections out of them."""
    folder = tmp_path / "public"
    made(folder)

    class Handler(SimpleHTTPRequestHandler):
        def __init__(self, *args, **kwargs):
            super().__init__(*args, directory=str(folder), **kwargs)

        def log_message(self, *_):
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = Thread(target=server.serve_forever, args=(0.02,))
    thread.start()
    names = sorted(p.relative_to(folder).as_posix() for p in folder.rglob("*") if p.is_file())
    entries = [
        {
            "name": name, "url": f"http://127.0.0.1:{server.server_port}/{name}?download=1",
            "md5": hashlib.md5((folder / name).read_bytes()).hexdigest(), "what": "of the test",
        }
        for name in names
    ]  # fmt: skip
    (tmp_path / "registry.json").write_text(json.dumps(entries))
    monkeypatch.setattr(downloads, "_REGISTRY", tmp_path / "registry.json")
    for name, value in (("RDL_CACHE", "cache"), ("RDL_RUNS", "runs"), ("IR_DATASETS_HOME", "ir")):
        monkeypatch.setenv(name, str(tmp_path / value))
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.delenv("RDL_MIRROR", raising=False)
    cleared = (registry, load, rank_distillm.teacher_run, rank_distillm._fetched)
    for function in cleared:
        function.cache_clear()
    given = Fetched
    docs = TsvDocs(given("msmarco/collection.tsv"), GenericDoc, namespace="msmarco-passage")
    for name, part, judged in ((JUDGED, "train", "train.tsv"), (DL19, "dl19", "dl19.txt")):
        queries = TsvQueries(given(f"msmarco/queries.{part}.tsv"), namespace="msmarco")
        qrels = TrecQrels(given(f"msmarco/qrels.{judged}"), {1: "relevant"})
        dataset = ir_datasets.Dataset(docs, queries, qrels)
        monkeypatch.setitem(ir_datasets.registry._registered, name, dataset)
    yield server
    server.shutdown()
    thread.join()
    server.server_close()
    for function in cleared:
        function.cache_clear()


def test_fetch_takes_the_published_lists_by_their_publishers_hash(served, monkeypatch, capsys):
    cli.fetch("rank-distillm")
    assert "rank-distillm: 4 files" in capsys.readouterr().out
    path = fetch(rank_distillm.FIRST_STAGES["bm25"])
    path.write_text("7 Q0 7 1 1.0 tag\n")  # altered: fetched again
    assert len(fetch(rank_distillm.FIRST_STAGES["bm25"]).read_text()) > 1000
    monkeypatch.setenv("RDL_MIRROR", str(download_folder()))
    path.write_text("7 Q0 7 1 1.0 tag\n")  # in a mirror: refused
    md5 = registry()[rank_distillm.FIRST_STAGES["bm25"]].md5
    with pytest.raises(ValueError, match=f"to have MD5 {md5}, found"):
        fetch(rank_distillm.FIRST_STAGES["bm25"])


@pytest.mark.parametrize("first_stage", ["colbert", "bm25"])
def test_first_stage_and_teacher_each_keep_their_own_order(served, first_stage):
    """The teacher's file states no first-stage rank: taken from it, every depth was the teacher's."""
    first = rows(TRAINED, depth=30, seed={"colbert": 1, "bm25": 2}[first_stage])
    config = ListsConfig(
        collection=JUDGED, first_stage=first_stage, depth=10, teacher="rank_zephyr", n_queries=4
    )
    found = lists(config)
    assert set(found["query_id"]) == set(chosen_queries(config)) <= set(RANKED)
    assert found["query_id"].nunique() == 4
    expected = first[first["qid"].isin(chosen_queries(config)) & (first["rank"] <= 10)]
    by_pair = expected.set_index(["qid", "docno"])["rank"].to_dict()
    assert found.set_index(["query_id", "doc_id"])["rank"].to_dict() == by_pair
    # the teacher of ColBERT's lists turned them round, that of BM25's left them as they were
    turned = found["rank"].sub(11).abs() if first_stage == "colbert" else found["rank"]
    assert found["teacher_rank"].tolist() == turned.tolist()


def test_integers_as_ids_and_a_rank_from_0_are_the_same_lists(served, tmp_path):
    frame = rows(TRAINED[:2], depth=9, seed=3)
    numbers = frame.assign(qid=frame["qid"].astype(int), docno=frame["docno"].astype(int))
    numbers.to_parquet(tmp_path / "a.parquet")
    (tmp_path / "b.run").write_text(run_text(frame.assign(rank=frame["rank"] - 1), "\t"))
    one, other = (rank_distillm._read(tmp_path / name, 4, None) for name in ("a.parquet", "b.run"))
    other = other[other["rank"] <= 4].reset_index(drop=True)
    pd.testing.assert_frame_equal(one, other)
    assert one.groupby("query_id").size().tolist() == [4, 4]
    (tmp_path / "c.run").write_text("only three columns\n")
    with pytest.raises(ValueError, match="c.run: expected rows of .*: fetch the file again"):
        rank_distillm._read(tmp_path / "c.run", 4, None)
    pd.DataFrame({"other": [1]}).to_parquet(tmp_path / "d.parquet")
    with pytest.raises(ValueError, match="d.parquet: expected rows of rank, score, qid, docno"):
        rank_distillm._read(tmp_path / "d.parquet", 4, None)


def test_triples_name_passages_of_the_collection(served):
    found = read_triples(fetch("msmarco/qidpidtriples.train.full.2.tsv"))
    assert found.columns.tolist() == ["query_id", "positive_id", "negative_id"]
    assert len(found) == len(TRAINED)
    assert set(found["negative_id"]) <= set(load(JUDGED).doc_ids)


def small(profile, encoder):
    """The paper's profile with a tiny encoder and two steps of each stage; all else as it is."""
    def cut(stage, **own):
        return replace(stage, training=replace(stage.training, steps=2, **own))

    return replace(
        profile, encoder=encoder, precision="float32", query_tokens=8, passage_tokens=16,
        stage1=cut(profile.stage1, queries_per_step=3), stage2=cut(profile.stage2, queries_per_step=2),
    )  # fmt: skip


def test_both_stages_train_on_the_published_files_and_rank_the_tests(served, profile, encoder_folder):
    tiny = small(profile, encoder_folder)
    run = student(tiny.student())
    lines = [json.loads(line) for line in (run.folder / "log.jsonl").open()]
    assert [line["step"] for line in lines] == [0, 1]
    assert all(0 < line["loss"] < 2 and line["gradient_norm"] > 0 for line in lines)
    assert run.manifest["n_lists"] == len(RANKED)
    first = student(tiny.student("first"))
    assert first.manifest["id"] in run.manifest["inputs"]
    assert first.manifest["n_lists"] == len(TRAINED)  # all judged queries, not RankZephyr's alone
    md5 = registry()[rank_distillm.TEACHERS["rank_zephyr"]["colbert"]].md5
    assert md5 in run.manifest["data"]
    config = RankingConfig(candidates=tiny.test, system=tiny.student(), precision="float32")
    assert ranking(config).manifest["n_pairs"] == 16


def test_stage_1_adds_the_relevant_that_colbert_missed(served, profile):
    found = lists(profile.stage1.lists)
    ranked = RankedLists.from_frame(
        found, pd.Index(load(JUDGED).queries["query_id"]), load(JUDGED).doc_ids
    )
    assert ranked.relevance.eq(1).sum(1).tolist() == [1] * len(TRAINED)
    missed = found[found["score"].isna()]
    assert 0 < len(missed) < len(TRAINED)
    assert (missed["relevance"] == 1).all()
    assert (missed["rank"] == 31).all()


# --- what is not there, and what is large ---------------------------------------------------------


def test_colberts_lists_of_the_tests_are_asked_for_by_name(served, profile):
    test = replace(profile.test, first_stage="colbert")
    name = "rank-distillm/__colbert__msmarco-passage-trec-dl-2019-judged.run"
    with pytest.raises(ValueError, match=f"expected {name} in RDL_MIRROR .*15150456 and copy"):
        lists(test)
    path = download_folder() / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(run_text(rows(ASKED, depth=30, seed=5), "\t", "0"))
    assert lists(test)["query_id"].unique().tolist() == ASKED
    before = test.fingerprint
    path.write_text(run_text(rows(ASKED, depth=30, seed=6), "\t", "0"))
    assert test.fingerprint != before


def test_without_files_and_network_the_error_names_both_and_the_remedy(tmp_path, monkeypatch):
    nothing = {
        "RDL_CACHE": str(tmp_path), "RDL_MIRROR": "", "RDL_RUNS": str(tmp_path / "runs"),
        "IR_DATASETS_HOME": str(tmp_path / "ir"), "IR_DATASETS_DL_TRIES": "1",
        "https_proxy": "http://127.0.0.1:9", "http_proxy": "http://127.0.0.1:9",  # nobody's port
    }  # fmt: skip
    command = [sys.executable, "-m", "rdl_core.cli", "study", "--profile", "paper"]
    done = subprocess.run(
        [*command, "--page", "effectiveness"], text=True, capture_output=True, cwd=project_folder(),
        env=os.environ | nothing,
    )  # fmt: skip
    assert done.returncode == 2, done.stderr
    said = done.stderr.splitlines()[-1]
    assert said.startswith("error: expected trec-dl/retrieve_results/")
    assert "or run `rdl fetch trec-dl` on a machine with a network and set RDL_MIRROR" in said
    assert "Traceback" not in done.stderr
    for name, value in nothing.items():
        monkeypatch.setenv(name, value)
    name = "rank-distillm/__colbert__msmarco-passage-train-judged.parquet"
    with pytest.raises(ValueError, match=f"expected {name} in RDL_MIRROR") as error:
        rank_distillm.candidates("colbert", 9)
    assert "run `rdl fetch rank-distillm` on a machine with a network" in str(error.value)


class _Large:
    """A collection of 2,000 passages of 10 kB, made one by one."""

    n = 2000

    def docs_iter(self):
        return (GenericDoc(str(n), f"{n} fox " + "x" * 10_000) for n in range(self.n))


@pytest.fixture
def large(monkeypatch):
    made_of = Docs("large", _Large().docs_iter)
    monkeypatch.setitem(ir_datasets.registry._registered, "large", ir_datasets.Dataset(made_of))
    monkeypatch.setattr(collections, "_CHUNK", 200)
    return Collection("large")


def test_passages_are_never_all_in_memory(large, tmp_path, monkeypatch, encoder_folder):
    """All texts of 8.8 M passages once went into a frame, to be hashed and tokenised."""
    monkeypatch.setenv("RDL_RUNS", str(tmp_path))
    tokens(pd.DataFrame({"doc_id": ["a"], "text": ["fox"]}), encoder_folder)  # what loading takes
    tracemalloc.start()
    ids, store = passage_tokens(large, encoder_folder)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 20e6  # some parts of 2 to 4 MB; a frame of all the texts took 40 MB
    assert "passages" not in vars(large)
    assert len(ids) == len(store) == _Large.n
    assert large.passages_of(["7", "1999"])["doc_id"].tolist() == ["7", "1999"]


def test_a_collection_read_in_parts_has_the_fingerprint_of_its_frame(large, tmp_path, monkeypatch):
    """Recorded runs know their data by it."""
    in_parts = large.passages_fingerprint
    assert in_parts == fingerprint(large.passages)
    assert large.doc_ids.tolist() == large.passages["doc_id"].tolist()
    pydocs = Collection("rdl/pydocs/dev")
    assert pydocs.passages_fingerprint == fingerprint(load("rdl/pydocs/dev").passages)
