"""The commands for a corpus of one's own, called as a person calls them, on files of every kind.

Mutations seen to fail, one at a time:

- texts: the file's before the collection's; an id without one not noticed; two of one id.
- rerank: all queries at once; what a killed run left gone on with, or left behind by one that was
  refused; ties in the order of ids.
- students: recorded limits ignored; an encoder without a head, or with two outputs, taken.
- evaluate: scores instead of the order that a run states; the first run always the baseline; the
  margin not handed on; unanswered queries left out.
- distill: a file's teacher_rank ignored; a finished student trained again; data not compared;
  another configuration, or a folder of other things, accepted; the YAML file before the options;
  one pass; earlier stages not recorded; passages cut short; the head not seeded; the seed not
  handed on; a checkpoint thrown away.
- refusals: a traceback for a file that is missing; exit code 1.
"""

import gzip
import json
import multiprocessing
import os
import re
import shutil
import signal
import sys

import pandas as pd
import pytest
import torch
from conftest import make_model, make_student, make_texts, make_tokenizer
from safetensors.torch import load_file
from transformers import BertModel
from transformers.utils import logging as transformers_logging
from typer.testing import CliRunner

from rdl_core import cli
from rdl_core.commands import distill as distill_command
from rdl_core.commands import evaluate, rerank
from rdl_core.commands.students import open_student
from rdl_core.corpus import read_corpus, read_judgments
from rdl_core.cross_encoder import CrossEncoder
from rdl_core.data.collections import load
from rdl_core.data.formats import read_qrels, read_run, write_parquet, write_requests, write_run
from rdl_core.lists import RankedLists
from rdl_core.tokens import TokenStore
from rdl_core.devices import default_device, device_name
from rdl_core.distill import distill
from rdl_core.evaluate import compare, equivalence, per_query, settle_ties
from rdl_core.losses import LOSSES
from rdl_core.stage import StageConfig

QUERY_IDS = [f"q{i}" for i in range(6)]
QUERIES = dict(zip(QUERY_IDS, make_texts(6, seed=1, longest=8), strict=True))
PASSAGES = {f"d{i}": text for i, text in enumerate(make_texts(13, seed=2, longest=30))}
PASSAGES |= {"twin": PASSAGES["d0"]}  # two passages that any model scores alike
LIMITS = ["--query-tokens", "5", "--passage-tokens", "20"]
STAGE = [
    *LIMITS, "--list-size", "4", "--queries-per-step", "2", "--steps", "6", "--precision",
    "float32", "--config", "stage.yaml",
]


def make_candidates():
    """Four to nine candidates of each query, both twins among them, either before the other."""
    rows = []
    for number, query_id in enumerate(QUERY_IDS):
        others = [f"d{(number + 5 * place) % 12 + 1}" for place in range(2 + number)]
        twins = ["twin", "d0"] if number % 2 else ["d0", "twin"]
        docs = [twins[0], *others, twins[1]]
        rows += [(query_id, doc_id, place) for place, doc_id in enumerate(docs, start=1)]
    frame = pd.DataFrame(rows, columns=["query_id", "doc_id", "rank"])
    texts = {"query": frame["query_id"].map(QUERIES), "text": frame["doc_id"].map(PASSAGES)}
    return frame.assign(score=-frame["rank"] / 2, **texts)


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """Candidates in several formats, a BEIR folder, judgments, a student and an encoder."""
    folder, frame = tmp_path_factory.mktemp("files"), make_candidates()
    write_run(frame, folder / "first.run")
    write_parquet(frame, folder / "first.parquet")
    write_requests(frame, folder / "requests.jsonl")
    rows = frame[["query_id", "doc_id", "query", "text"]]
    rows.to_csv(folder / "top1000.tsv", sep="\t", header=False, index=False)
    (folder / "beir").mkdir()
    for name, texts in (("queries", QUERIES), ("corpus", PASSAGES)):
        records = [json.dumps({"_id": key, "text": text}) for key, text in texts.items()]
        (folder / "beir" / f"{name}.jsonl").write_text("\n".join(records))
    (folder / "qrels.txt").write_text(
        "".join(f"{q} 0 d{i} {i % 3}\n" for q in QUERY_IDS for i in range(13)) + "q9 0 d1 1\n"
    )
    (folder / "stage.yaml").write_text("checkpoint_every: 2\n")
    make_student().save_pretrained(folder / "student")
    make_model("bert", num_labels=2).save_pretrained(folder / "two")
    (folder / "config").mkdir()
    shutil.copy(folder / "student" / "config.json", folder / "config")
    turned = frame.groupby("query_id")["rank"].rank(ascending=False).astype(int)
    frame.assign(teacher_rank=turned).to_parquet(folder / "taught.parquet")
    BertModel(make_model("bert").config).save_pretrained(folder / "encoder")
    make_tokenizer("bert").save_pretrained(folder / "encoder")
    return folder


@pytest.fixture
def rdl(files, monkeypatch):
    """Run a command in the folder of the files; gives its result."""
    monkeypatch.setattr(cli, "log_plainly", lambda: None)  # it would change logging for all tests
    monkeypatch.chdir(files)
    transformers_logging.disable_progress_bar()  # as it does

    def run(*words, code=0):
        done = CliRunner().invoke(cli.app, list(map(str, words)))
        assert done.exit_code == code, done.output
        return done

    yield run
    transformers_logging.enable_progress_bar()


def rerank_with(rdl, out, candidates="first.run", *more):
    collection = [] if candidates in ("requests.jsonl", "top1000.tsv") else ["--collection", "beir"]
    rdl("rerank", "student", candidates, out, *collection, *LIMITS, "--precision", "float32", *more)
    return out


# --- rerank -------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def by_hand():
    """Each query's passages as plain transformers scores them, the first stage settling ties."""
    model, tokenizer, frame = make_model("bert").eval(), make_tokenizer("bert"), make_candidates()
    cut = [
        [" ".join(text.split()[:most]) for text in frame[column]]
        for column, most in (("query", 5), ("text", 20))
    ]
    with torch.no_grad():
        scores = model(**tokenizer(*cut, padding=True, return_tensors="pt")).logits[:, 0]
    frame = frame.assign(score=scores.numpy().round(5))
    return frame.sort_values(["query_id", "score", "rank"], ascending=[True, False, True])


@pytest.mark.parametrize(
    "candidates", ["first.run", "first.parquet", "requests.jsonl", "top1000.tsv"]
)
def test_rerank_orders_as_transformers_whatever_the_format(rdl, tmp_path, by_hand, candidates):
    run = read_run(rerank_with(rdl, tmp_path / "own.run", candidates))
    assert run["doc_id"].tolist() == by_hand["doc_id"].tolist()
    assert run["score"].to_numpy() == pytest.approx(by_hand["score"].to_numpy(), abs=2e-5)
    assert run.groupby("query_id")["score"].diff().dropna().lt(0).all()
    twins = run[run["doc_id"].isin(["d0", "twin"])].groupby("query_id", sort=False)
    assert twins["doc_id"].first().tolist() == ["d0", "twin"] * 3


def test_every_format_gives_the_same_bytes(rdl, tmp_path):
    names = ["first.run", "first.parquet", "requests.jsonl", "top1000.tsv"]
    paths = [rerank_with(rdl, tmp_path / f"{name}.run", name) for name in names]
    assert len({path.read_bytes() for path in paths}) == 1


@pytest.mark.parametrize("pairs_at_once", [1, 10])
def test_rerank_takes_a_few_queries_at_a_time(rdl, tmp_path, monkeypatch, pairs_at_once):
    """However many there are, the texts in memory are those of `pairs_at_once` and a list."""
    whole = rerank_with(rdl, tmp_path / "whole.run")
    monkeypatch.setattr(rerank, "_PAIRS_AT_ONCE", pairs_at_once)
    sizes, of_texts = [], TokenStore.of_texts
    monkeypatch.setattr(
        TokenStore, "of_texts", lambda texts, own: sizes.append(len(texts)) or of_texts(texts, own)
    )
    parts = rerank_with(rdl, tmp_path / "parts.run.gz")
    longest = make_candidates().groupby("query_id").size().max()
    assert max(sizes) < pairs_at_once + longest
    assert len(sizes) == (12 if pairs_at_once == 1 else 8)
    found, wanted = read_run(parts), read_run(whole)
    assert found[["query_id", "doc_id"]].equals(wanted[["query_id", "doc_id"]])
    assert found["score"].to_numpy() == pytest.approx(wanted["score"].to_numpy(), abs=1e-5)
    assert gzip.decompress(parts.read_bytes()).startswith(b"q0 Q0 ")


def test_a_run_that_breaks_off_leaves_nothing_that_looks_whole(rdl, tmp_path, monkeypatch, files):
    """The text that is missing is the last query's; those before it were ranked by then."""
    monkeypatch.setattr(rerank, "_PAIRS_AT_ONCE", 1)
    broken = tmp_path / "broken.run"
    broken.write_text((files / "first.run").read_text() + "q5 Q0 d99 10 -9.0 rdl\n")
    for before in (None, "whole"):
        out = tmp_path / f"{before}.run"
        if before:
            out.write_text(before)
        words = ("rerank", "student", broken, out, "--collection", "beir", *LIMITS)
        assert "'d99'" in rdl(*words, code=2).stderr
        assert (out.read_text() if out.exists() else None) == before
    assert not list(tmp_path.glob("*.partial"))


def test_what_a_killed_run_left_is_not_taken_up(rdl, tmp_path):
    (tmp_path / "own.run.partial").write_text("q0 Q0 d99 1 99.0 rdl\n")
    out = rerank_with(rdl, tmp_path / "own.run")
    assert out.read_bytes() == rerank_with(rdl, tmp_path / "other.run").read_bytes()
    assert not (tmp_path / "own.run.partial").exists()


def test_texts_come_from_the_collection_before_the_file(files, tmp_path):
    frame = make_candidates().assign(text="w1")
    write_requests(frame, tmp_path / "requests.jsonl")
    own = read_corpus(tmp_path / "requests.jsonl")
    both = read_corpus(tmp_path / "requests.jsonl", collection=str(files / "beir"))
    assert own.passages.of(["d3"]) == ["w1"]
    assert both.passages.of(["d3", "d0", "d3"]) == [PASSAGES[key] for key in ("d3", "d0", "d3")]
    assert both.queries.of(["q5"]) == own.queries.of(["q5"]) == [QUERIES["q5"]]


def test_texts_of_an_ir_datasets_id(tmp_path):
    collection = load("rdl/pydocs/test")
    (query_id, query), (doc_id, text) = (
        frame.iloc[7] for frame in (collection.queries, collection.passages)
    )
    (tmp_path / "first.run").write_text(f"{query_id} Q0 {doc_id} 1 0.5 tag\n")
    corpus = read_corpus(tmp_path / "first.run", collection="rdl/pydocs/test")
    assert corpus.queries.of([query_id]) == [query]
    assert corpus.passages.of([doc_id]) == [text]
    assert read_judgments("rdl/pydocs/test").equals(collection.qrels)


# --- evaluate -----------------------------------------------------------------------------------


@pytest.fixture
def runs(rdl, tmp_path):
    rdl("rerank", "student", "requests.jsonl", tmp_path / "student.run", *LIMITS)
    return ["first.run", tmp_path / "student.run"]


def test_evaluate_prints_what_evaluate_gives(rdl, runs, tmp_path):
    measures = ["nDCG@10", "RR(rel=2)@10"]
    done = rdl(
        "evaluate", "qrels.txt", *runs, "--measures", measures[0], "--measures", measures[1],
        "--baseline", "student", "--margin", 0.1, "--per-query", tmp_path / "queries.csv",
        "--table", tmp_path / "table.csv",
    )
    qrels = read_qrels("qrels.txt")
    each = [
        per_query(qrels, settle_ties(read_run(run)), measures).set_index("query_id") for run in runs
    ]
    blocks = done.stdout.split("\n\n")
    assert len(blocks) == 2
    table = pd.read_csv(tmp_path / "table.csv").set_index(["measure", "system"])
    for measure, block in zip(measures, blocks, strict=True):
        values = pd.DataFrame({"first": each[0][measure], "student": each[1][measure]})
        wanted = compare(values, "student")
        tost = equivalence(values, "first", "student", margin=0.1)
        head, columns, _, first, student = block.splitlines()[:5]
        assert head == f"{measure}, 7 queries"
        found = dict(zip(columns.split(), first.split()[1:], strict=True))
        numbers = wanted.loc["first"].drop(["n_queries", "significant"])
        assert {name: float(found[name]) for name in numbers.index} == numbers.round(4).to_dict()
        assert float(found["p_tost"]) == round(tost.p_value, 4)
        assert found["equivalent"] == str(tost.equivalent)
        assert float(student.split()[1]) == round(wanted.loc["student", "mean"], 4)
        p_holm = wanted.loc["first", "p_holm"]
        assert table.loc[(measure, "first"), "p_holm"] == pytest.approx(p_holm)
    values = pd.read_csv(tmp_path / "queries.csv")
    assert values["system"].value_counts().to_dict() == {"first": 7, "student": 7}
    of_student = values[values["system"] == "student"].set_index("query_id")[measures]
    pd.testing.assert_frame_equal(of_student, each[1], check_index_type=False)
    assert of_student.loc["q9"].tolist() == [0, 0]  # not answered


def test_runs_are_measured_in_the_order_that_they_state(tmp_path):
    """A run may keep the first stage's scores, or tie; trec_eval would go by these."""
    (tmp_path / "a.run").write_text("7 Q0 x 1 1.0 t\n7 Q0 y 2 2.0 t\n7 Q0 z 3 2.0 t\n")
    run = evaluate.read_runs([tmp_path / "a.run"])["a"]
    assert run.sort_values("score", ascending=False)["doc_id"].tolist() == ["x", "y", "z"]


def test_runs_of_one_name_are_told_apart_by_their_paths(tmp_path):
    paths = [tmp_path / name / "own.run.gz" for name in ("a", "b")]
    for path in paths:
        path.parent.mkdir()
        path.write_bytes(gzip.compress(b"7 Q0 x 1 1.0 t\n"))
    assert list(evaluate.read_runs(paths[:1])) == ["own"]
    assert list(evaluate.read_runs(paths)) == list(map(str, paths))
    with pytest.raises(ValueError, match="expected each run once; given .*own.run.gz"):
        evaluate.read_runs(paths[:1] * 2)


# --- distill ------------------------------------------------------------------------------------


def weights(folder):
    return load_file(folder / "model" / "model.safetensors")


def distill_with(rdl, out, lists="requests.jsonl", *more, **own):
    rdl("distill", lists, out, "--encoder", "student", *STAGE, *more, **own)
    return out


@pytest.mark.parametrize("lists", ["requests.jsonl", "first.run", "taught.parquet"])
def test_distill_trains_as_the_loop_does_on_the_teacher_s_order(rdl, tmp_path, lists):
    """The order of the file is the teacher's, unless it says what the teacher's is."""
    more = ["--collection", "beir"] if lists == "first.run" else []
    out = distill_with(rdl, tmp_path / "own", lists, "--loss", "listnet", *more)
    stage = StageConfig(
        sampler="top", loss="listnet", targets="teacher", list_size=4, queries_per_step=2, steps=6,
        learning_rate=1e-5,
    )
    frame = make_candidates()
    ranks = frame.groupby("query_id")["rank"].rank(ascending=lists != "taught.parquet")
    frame = frame.assign(teacher_rank=ranks.astype(int))
    lists = RankedLists.from_frame(frame, pd.Index(QUERIES), pd.Index(PASSAGES))
    stores = [
        TokenStore.of_texts(list(texts.values()), make_tokenizer("bert"))
        for texts in (QUERIES, PASSAGES)
    ]
    student = CrossEncoder.from_pretrained("student", query_tokens=5, passage_tokens=20)
    before = {name: weight.clone() for name, weight in student.model.state_dict().items()}
    distill(student, lists, *stores, stage, seed=0, folder=tmp_path / "by hand")
    found = weights(out)
    for name, weight in student.model.state_dict().items():
        torch.testing.assert_close(found[name], weight, atol=0, rtol=0)
    assert any((found[name] - before[name]).abs().max() > 1e-5 for name in found)


def test_distill_learns_from_a_runs_scores_where_it_is_told_to(rdl, tmp_path):
    """As far apart as the file has them: other scores of the same order make another student."""
    stage = "targets: scores\nscore_scale: 3.0\ncheckpoint_every: 2\n"
    (tmp_path / "stage.yaml").write_text(stage)
    more = ("--collection", "beir", "--loss", "margin_mse", "--config", tmp_path / "stage.yaml")
    frame = make_candidates()
    write_run(frame.assign(score=1 / frame["rank"]), tmp_path / "other.run")
    students = [
        weights(distill_with(rdl, tmp_path / str(number), lists, *more))
        for number, lists in enumerate(["first.run", tmp_path / "other.run"])
    ]
    assert any(not torch.equal(students[0][name], students[1][name]) for name in students[0])
    done = rdl(
        "distill", "taught.parquet", tmp_path / "x", "--encoder", "student", *STAGE, *more, code=2
    )
    assert "expected a finite teacher_score" in done.stderr


def test_a_distilled_student_is_known_by_its_folder_and_records_its_limits(rdl, tmp_path):
    out = distill_with(rdl, tmp_path / "own", "requests.jsonl", "--teacher", "a friend")
    found = open_student(out)
    assert (found.query_tokens, found.passage_tokens) == (5, 20)
    rdl("rerank", out, "requests.jsonl", tmp_path / "a.run", "--precision", "float32")
    words = ("rerank", out / "model", "requests.jsonl", tmp_path / "b.run", *LIMITS)
    rdl(*words, "--precision", "float32")
    assert (tmp_path / "a.run").read_bytes() == (tmp_path / "b.run").read_bytes()
    manifest = json.loads((out / "manifest.json").read_text())
    assert manifest["device"] == device_name(default_device())
    [stage] = manifest["config"]["stages"]
    assert stage["lists"]["teacher"] == "a friend"
    assert stage["training"]["loss"] == "ranknet"
    again = tmp_path / "again"
    rdl("distill", "requests.jsonl", again, "--encoder", out, *STAGE, "--loss", "adr_mse")
    stages = json.loads((again / "manifest.json").read_text())["config"]["stages"]
    assert [stage["training"]["loss"] for stage in stages] == ["ranknet", "adr_mse"]


def test_a_similarity_stays_one_through_the_stages(rdl, tmp_path):
    out = tmp_path / "own"
    rdl("distill", "requests.jsonl", out, "--encoder", "encoder", *STAGE, "--head", "similarity")
    again = tmp_path / "again"
    rdl("distill", "requests.jsonl", again, "--encoder", out, *STAGE)
    kinds = {open_student(folder).model.config.model_type for folder in (out, again)}
    assert kinds == {"bert-similarity"}


def test_options_come_before_the_file_and_defaults_are_three_passes(rdl, tmp_path):
    settings = "loss: adr_mse\nlearning_rate: 1e-3\nqueries_per_step: 2\n"
    (tmp_path / "stage.yaml").write_text(settings)
    words = ("--encoder", "student", *LIMITS, "--config", tmp_path / "stage.yaml")
    rdl("distill", "requests.jsonl", tmp_path / "own", *words, "--loss", "listnet")
    config = json.loads((tmp_path / "own" / "config.json").read_text())["config"]
    wanted = {"loss": "listnet", "learning_rate": 1e-3, "steps": 9, "list_size": 100}
    assert {name: config["stages"][0]["training"][name] for name in wanted} == wanted


def test_the_seed_draws_the_head_too(rdl, tmp_path):
    """Whatever was drawn in this process before."""
    found = []
    for name, seed in (("one", 0), ("same", 0), ("other", 1)):
        out = tmp_path / name
        rdl("distill", "requests.jsonl", out, "--encoder", "encoder", *STAGE, "--seed", seed)
        found.append(weights(out)["classifier.weight"])
    assert torch.equal(found[0], found[1])
    assert (found[0] - found[2]).abs().max() > 0.01


def test_a_finished_student_is_not_trained_again(rdl, tmp_path):
    out = distill_with(rdl, tmp_path / "own")
    log = (out / "log.jsonl").stat().st_mtime_ns
    distill_with(rdl, out)
    assert (out / "log.jsonl").stat().st_mtime_ns == log


def test_a_folder_of_another_configuration_is_refused(rdl, tmp_path, files):
    out = distill_with(rdl, tmp_path / "own")
    before = weights(out)
    done = distill_with_code(rdl, out, "--loss", "adr_mse")
    assert "stages.1.training.loss 'adr_mse' where it was 'ranknet'" in done.stderr
    done = distill_with_code(rdl, out, "--seed", "1")
    assert "seed 1 where it was 0" in done.stderr
    frame = make_candidates()
    turned = frame.assign(rank=99 - frame["rank"], score=frame["rank"])
    write_requests(turned, tmp_path / "requests.jsonl")
    done = distill_with_code(rdl, out, lists=tmp_path / "requests.jsonl")
    assert "data" in done.stderr
    assert all(torch.equal(before[name], weight) for name, weight in weights(out).items())
    done = distill_with_code(rdl, files / "beir")
    assert "one that holds something else" in done.stderr


def distill_with_code(rdl, out, *more, lists="requests.jsonl"):
    return rdl("distill", lists, out, "--encoder", "student", *STAGE, *more, code=2)


def _distill_and_die(folder, out, place, calls):
    """Distil in this process, and die in some place at its n-th call."""
    torch.set_num_threads(1)
    os.chdir(folder)
    left = iter(range(calls))

    def dying(function):
        def wrapped(*args, **own):
            if next(left, None) is None:
                os.kill(os.getpid(), signal.SIGKILL)
            return function(*args, **own)

        return wrapped

    if place == "loss":
        LOSSES["ranknet"] = dying(LOSSES["ranknet"])
    elif place == "write":
        distill_command.write_record = dying(distill_command.write_record)
    words = ["distill", "requests.jsonl", str(out), "--encoder", "student", *STAGE]
    cli.app(words, standalone_mode=False)


@pytest.fixture(scope="module")
def killed(files):
    """Run `rdl distill` in a process of its own, forked from one that has imported all it needs."""
    processes = multiprocessing.get_context("forkserver")
    processes.set_forkserver_preload(["test_commands"])
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", os.pathsep.join(sys.path))
        processes.Process(target=os.getpid).start()

    def run(out, place, calls):
        process = processes.Process(target=_distill_and_die, args=(files, out, place, calls))
        process.start()
        process.join(100)
        return process.exitcode

    return run


@pytest.mark.parametrize(
    ("kills", "left"),
    [([("loss", 5)], 2), ([("write", 1)], 6), ([("loss", 1), ("loss", 3)], 4)],
    ids=["in training", "before the manifest", "twice"],
)
def test_distill_killed_and_called_again_ends_with_the_same_weights(
    rdl, killed, tmp_path, monkeypatch, kills, left
):
    """Checkpoints come every other step; those steps are not done again."""
    whole = distill_with(rdl, tmp_path / "whole")
    for place, calls in kills:
        assert killed(tmp_path / "own", place, calls) == -signal.SIGKILL
        assert not (tmp_path / "own" / "manifest.json").exists()
    done, ranknet = [], LOSSES["ranknet"]
    monkeypatch.setitem(
        LOSSES, "ranknet", lambda *args, **own: done.append(1) or ranknet(*args, **own)
    )
    again = distill_with(rdl, tmp_path / "own")
    assert len(done) == left
    found, wanted = weights(again), weights(whole)
    assert all(torch.equal(found[name], weight) for name, weight in wanted.items())
    assert (again / "log.jsonl").read_text() == (whole / "log.jsonl").read_text()
    assert (again / "manifest.json").exists()


# --- refusals -----------------------------------------------------------------------------------

RERANK = ("rerank", "student")
OUT = ("out.run", "--collection", "beir")
FIRST = (*RERANK, "first.run", "out.run")
REFUSALS = {
    "no such file": (
        [*RERANK, "none.run", *OUT], "none.run: expected a file; given a name of none: check"
    ),
    "format that is none": (
        [*RERANK, "first.run", *OUT, "--format", "trec"],
        "expected a format out of trec_run, .*'trec'",
    ),
    "format that cannot be told": (
        [*RERANK, "qrels.txt", *OUT], "qrels.txt, line 1: expected candidates in one .*read_qrels"
    ),
    "ids alone": (
        [*FIRST],
        r"first.run: expected the query of each id .*; given ids alone: .* \(--collection\)",
    ),
    "no such collection": (
        [*FIRST, "--collection", "biere"],
        "biere: expected a file or folder, or an id; unknown collection 'biere'",
    ),
    "texts of another collection": (
        [*FIRST, *LIMITS, "--collection", "rdl/pydocs/test"],
        "'rdl/pydocs/test': expected a text for every query .*none for 6 of 6, such as 'q0'",
    ),
    "student that is none": (
        ["rerank", "beir", "first.run", *OUT], "beir: expected a folder or hub id .*check the name"
    ),
    "encoder without a head": (
        ["rerank", "encoder", "first.run", *OUT], "encoder: expected a trained .* would be random"
    ),
    "two outputs": (["rerank", "two", "first.run", *OUT], "two: expected a model with one output"),
    "no weights": (
        ["rerank", "config", "first.run", *OUT, *LIMITS], "config: expected a folder or hub id "
    ),
    "longer than the encoder": (
        [*RERANK, "first.run", *OUT], "expected at most 64 tokens for this encoder"
    ),
    "judgments in a folder": (
        ["evaluate", "beir", "first.run"], "beir: expected judgments; given a folder: name a file"
    ),
    "judgments that are none": (
        ["evaluate", "nobody", "first.run"], "nobody: expected a file or folder, or an id; unknown"
    ),
    "baseline that is none": (
        ["evaluate", "qrels.txt", "first.run", "--baseline", "bm25"],
        "baseline: expected the name of a run, first; given 'bm25'",
    ),
    "measure that is none": (
        ["evaluate", "qrels.txt", "first.run", "--measures", "nDGC@10"], "expected .*'nDGC@10'"
    ),
    "YAML that is none": (
        ["distill", "requests.jsonl", "out", "--encoder", "student", "--config", "qrels.txt"],
        "qrels.txt: expected YAML of StageConfig's fields; given 'q0 0 d0 0",
    ),
    "export to a folder that is full": (
        ["export", "student", "beir", *LIMITS], "beir: expected a new or an empty folder; .*delete"
    ),
    "table that is none": (
        ["export", "student", "out", *LIMITS, "--table", "first.run"], "first.run: expected what "
    ),
}


@pytest.mark.parametrize("words", REFUSALS.values(), ids=REFUSALS)
def test_a_refusal_is_one_line_that_says_what_to_do(rdl, files, words):
    command, wanted = words
    done = rdl(*command, code=2)
    assert isinstance(done.exception, SystemExit)
    assert done.stdout == ""
    assert done.stderr.count("\n") == 1
    assert done.stderr.startswith("error: ")
    assert re.search(wanted, done.stderr), done.stderr
    assert not (files / "out.run").exists()
    assert not (files / "out").exists()


def test_settings_that_do_not_fit_are_named(rdl, tmp_path):
    (tmp_path / "stage.yaml").write_text("list_sise: 4\nloss: rank\n")
    words = ("distill", "requests.jsonl", tmp_path / "own", "--encoder", "student", *LIMITS)
    done = rdl(*words, "--config", tmp_path / "stage.yaml", code=2)
    assert "list_sise: unknown key" in done.stderr
    done = rdl(*words, "--loss", "rank", code=2)
    assert "loss: expected one of adr_mse, " in done.stderr
    (tmp_path / "stage.yaml").write_text("dev_every: 5\n")
    done = rdl(*words, "--config", tmp_path / "stage.yaml", code=2)
    assert "dev_every: expected 0" in done.stderr


def test_one_id_with_two_texts_is_refused(tmp_path):
    frame = make_candidates()
    frame.loc[frame.index[-1], "text"] = "w1 w1"
    rows = frame[["query_id", "doc_id", "query", "text"]]
    rows.to_csv(tmp_path / "top1000.tsv", sep="\t", header=False, index=False)
    with pytest.raises(ValueError, match="top1000.tsv: expected one text for each passage; given"):
        read_corpus(tmp_path / "top1000.tsv")
