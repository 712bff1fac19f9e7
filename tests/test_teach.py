"""`rdl teach` and `rdl merge`, called as a person calls them, against a real server over TCP.

Mutations seen to fail: the log not asked; a replay's log kept; a shard's first query forgotten;
estimate without the log; what was answered not counted; a dry run that asks; depth ignored; the
folder not locked; any configuration taken; the first stage's scores kept; a missing shard let pass;
another configuration let pass; a lost query let pass; shards end to end; number of queries
unchecked.
"""

import json
import logging
import multiprocessing
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pandas as pd
import pytest
import torch
from chat_server import ChatServer
from filelock import FileLock
from test_local_llm import llama, words_tokenizer
from typer.testing import CliRunner

from rdl_core import cli
from rdl_core.data.collections import load
from rdl_core.data.formats import read_candidates, write_requests, write_run
from rdl_core.teachers.listwise import count_calls
from rdl_core.teachers.answers import identifiers
from rdl_core.teachers.replay import AnswerLog

MIRROR = os.environ.get("RDL_MIRROR")
KEY = "sk-a-secret-7391"
SIZES = [12, 7, 1, 25, 9]
SMALL = ["--window-size", "6", "--stride", "3"]
N_WINDOWS = count_calls(SIZES, window_size=6, stride=3)
LISTS = ["candidates.run", "teacher.run", "teacher.parquet", "requests.jsonl"]


def make_candidates(sizes=SIZES):
    """Lists of so many passages; a passage's text is its worth, which rises towards the end."""
    rows = [
        {"query_id": f"q{q}", "query": f"query {q}", "doc_id": f"q{q}d{i}", "rank": i + 1,
         "text": str(100 * q + 37 * i % 100)}
        for q, n in enumerate(sizes) for i in range(n)
    ]  # fmt: skip
    return pd.DataFrame(rows)


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """Candidates with texts, and without but with a BEIR folder; the same in another order."""
    folder, frame = tmp_path_factory.mktemp("files"), make_candidates()
    write_requests(frame, folder / "requests.jsonl")
    write_run(frame.drop(columns=["query", "text"]), folder / "first.run")
    write_requests(frame.assign(rank=99 - frame["rank"]), folder / "turned.jsonl")
    (folder / "beir").mkdir()
    for name, ids, text in (("queries", "query_id", "query"), ("corpus", "doc_id", "text")):
        pairs = frame[[ids, text]].drop_duplicates().itertuples(index=False)
        lines = [json.dumps({"_id": key, "text": text}) for key, text in pairs]
        (folder / "beir" / f"{name}.jsonl").write_text("\n".join(lines))
    return folder


@pytest.fixture
def rdl(files, monkeypatch):
    """Run a command in the folder of the files; gives its result."""
    monkeypatch.setattr(cli, "log_plainly", lambda: None)  # it would change logging for all tests
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    monkeypatch.chdir(files)

    def run(*words, code=0):
        done = CliRunner().invoke(cli.app, list(map(str, words)))
        assert done.exit_code == code, done.output
        return done

    return run


def words(server, out, *more, candidates="requests.jsonl"):
    address = ["--base-url", server if isinstance(server, str) else server.url, "--model", "m"]
    return ["teach", candidates, out, *address, *SMALL, *more]


def report_of(out):
    return json.loads((out / "report.json").read_text())


def keys_of(out):
    """Keys of the windows that are answered in the log."""
    _, *lines = (out / "answers.jsonl").read_text().splitlines()
    return [tuple(json.loads(line)["key"]) for line in lines]


def same_lists(one, other):
    for name in LISTS:
        assert (one / name).read_bytes() == (other / name).read_bytes()
    ours, theirs = report_of(one), report_of(other)
    for part in ("config", "totals", "queries"):
        assert ours[part] == theirs[part]


@pytest.fixture(scope="module")
def whole(files, tmp_path_factory):
    """Lists of one run that nothing disturbed."""
    out = tmp_path_factory.mktemp("whole") / "out"
    with pytest.MonkeyPatch.context() as patch, ChatServer() as server:
        patch.setattr(cli, "log_plainly", lambda: None)
        patch.chdir(files)
        done = CliRunner().invoke(cli.app, list(map(str, words(server, out))))
        assert done.exit_code == 0, done.output
        assert len(server.requests) == N_WINDOWS
    return out


# --- lists --------------------------------------------------------------------------------------


def test_lists_come_in_three_forms_in_the_teachers_order(whole):
    """Window 6, stride 3: the best three of each list are the three best, in their order."""
    lists = read_candidates(whole / "requests.jsonl")
    assert lists["query_id"].unique().tolist() == ["q0", "q1", "q2", "q3", "q4"]
    for query, rows in make_candidates().groupby("query_id"):
        best = rows.iloc[(-rows["text"].astype(int)).argsort()]["doc_id"].tolist()
        found = lists[lists["query_id"] == query]
        assert found["doc_id"].tolist()[:3] == best[:3]
        assert sorted(found["doc_id"]) == sorted(best)
    texts = dict(make_candidates()[["doc_id", "text"]].values)
    assert lists["text"].tolist() == [texts[doc_id] for doc_id in lists["doc_id"]]
    parquet = pd.read_parquet(whole / "teacher.parquet")
    assert parquet.columns.tolist() == ["qid", "docno", "rank", "score"]
    assert (parquet["score"] == -parquet["rank"]).all()
    for name in ("teacher.run", "teacher.parquet"):
        assert read_candidates(whole / name).equals(lists[["query_id", "doc_id", "rank", "score"]])
    first = read_candidates(whole / "candidates.run")
    assert first["doc_id"].tolist() == make_candidates()["doc_id"].tolist()


def test_the_report_counts_windows_tokens_and_cost(rdl, whole, tmp_path):
    """The server counts words; a ranking of n passages has 2n - 1 of them."""
    with ChatServer() as server:
        rdl(*words(server, tmp_path / "out", "--input-usd", 2, "--output-usd", 8))
    prompts = sum(len(r["body"]["messages"][0]["content"].split()) for r in server.requests)
    report = report_of(tmp_path / "out")
    totals = report["totals"]
    wanted = {
        "n_queries": 5, "n_passages": sum(SIZES), "n_windows": N_WINDOWS, "n_clean": N_WINDOWS,
        "n_calls": N_WINDOWS, "n_retries": 0, "input_tokens": prompts,
        "output_tokens": N_WINDOWS * 11,
    }  # fmt: skip
    assert totals.items() >= wanted.items()
    assert totals["usd"] == pytest.approx((2 * prompts + 8 * N_WINDOWS * 11) / 1e6, abs=1e-6)
    assert [row["n_windows"] for row in report["queries"]] == [
        count_calls([n], window_size=6, stride=3) for n in SIZES
    ]
    assert report["made"]["server"] == server.url
    assert report_of(whole)["totals"]["usd"] is None


def test_what_could_not_be_read_is_asked_again_and_reported(rdl, tmp_path):
    """The first window's answers name nobody; q1's name two of six."""

    def fault(number, prompt):
        if "Query: query 0\n" in prompt and "[1] 22\n" in prompt:
            return {"text": "I cannot rank these 6 passages."}
        return {"text": "[2] > [1]"} if "Query: query 1\n" in prompt else None

    with ChatServer(fault=fault) as server:
        done = rdl(*words(server, tmp_path / "out", "--max-retries", 2))
    first, second, *_ = report_of(tmp_path / "out")["queries"]
    assert (first["n_unusable"], first["n_retries"]) == (1, 2)
    assert (second["n_repaired"], second["n_missing"]) == (2, 8)
    assert f"n_repaired 2, n_unusable 1, n_missing {8 + 6}" in done.stdout
    assert len(server.requests) == N_WINDOWS + 2
    again = rdl(*words(server, tmp_path / "out", "--max-retries", 2, "--dry-run"))
    assert f"{N_WINDOWS} windows, {N_WINDOWS} answered before; left: about 0 tokens" in again.stdout


def test_texts_come_from_a_collection_too(rdl, whole, tmp_path):
    with ChatServer() as server:
        rdl(*words(server, tmp_path / "out", "--collection", "beir", candidates="first.run"))
    same_lists(tmp_path / "out", whole)
    collection = load("rdl/pydocs/test")
    query_id, query = collection.queries.iloc[0]
    passages = collection.passages.head(4)
    rows = passages.assign(query_id=query_id, rank=range(1, 5))[["query_id", "doc_id", "rank"]]
    write_run(rows, tmp_path / "pydocs.run")
    with ChatServer() as server:
        run = tmp_path / "pydocs.run"
        own = ["--collection", "rdl/pydocs/test", "--max-retries", 0]  # it ranks numbers alone
        rdl(*words(server, tmp_path / "docs", *own, candidates=run))
    [request] = server.requests
    prompt = request["body"]["messages"][0]["content"]
    assert f"Query: {query}\n" in prompt
    assert " ".join(passages["text"].iloc[3].split()[:20]) in prompt


def test_depth_cuts_each_list(rdl, tmp_path):
    with ChatServer() as server:
        rdl(*words(server, tmp_path / "out", "--depth", 8, "--schedule", "single"))
    lists = read_candidates(tmp_path / "out" / "requests.jsonl")
    sizes = lists.groupby("query_id").size()
    assert sizes.tolist() == [min(n, 8) for n in SIZES]
    assert set(lists["doc_id"]) == set(make_candidates().query("rank <= 8")["doc_id"])


def test_a_schedule_and_options_reach_the_server(rdl, tmp_path):
    own = ["--option", "max_tokens=9", "--option", "effort=low", "--temperature", -1]
    own += ["--schedule", "tournament", "--top-k", 2, "--passes", 2]
    with ChatServer() as server:
        rdl(*words(server, tmp_path / "out", *own))
    how = {"schedule": "tournament", "window_size": 6, "top_k": 2, "passes": 2}
    assert len(server.requests) == count_calls(SIZES, **how)
    body = server.requests[0]["body"]
    assert (body["max_tokens"], body["effort"]) == (9, "low")
    assert "temperature" not in body


def test_a_local_model_is_a_teacher(rdl, tmp_path):
    tokenizer = words_tokenizer(identifiers(6))
    llama(vocab=len(tokenizer)).save_pretrained(tmp_path / "tiny")
    tokenizer.save_pretrained(tmp_path / "tiny")
    torch.manual_seed(0)
    local = ["--backend", "local_llm", "--model", tmp_path / "tiny", "--mode", "constrained"]
    rdl("teach", "requests.jsonl", tmp_path / "out", *local, *SMALL, "--precision", "float32")
    totals = report_of(tmp_path / "out")["totals"]
    assert totals["n_clean"] == totals["n_calls"] == N_WINDOWS
    assert len(keys_of(tmp_path / "out")) == N_WINDOWS


def test_a_server_of_transformers_is_a_teacher(rdl, tmp_path):
    """``transformers serve``, with a model that says nothing of use: what it says is counted."""
    for module in ("fastapi", "uvicorn"):
        pytest.importorskip(module, reason="needs transformers[serving]")
    tokenizer = words_tokenizer(identifiers(6))
    tokenizer.chat_template = "{% for m in messages %}{{ m.content }}{% endfor %}"
    llama(vocab=len(tokenizer)).save_pretrained(tmp_path / "tiny")
    tokenizer.save_pretrained(tmp_path / "tiny")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    program = Path(sys.executable).with_name("transformers")
    command = [program, "serve", tmp_path / "tiny", "--device", "cpu", "--port", port]
    server = subprocess.Popen([*command, "--host", "127.0.0.1"], stderr=subprocess.DEVNULL)
    try:  # it is not there yet when the first window is asked, and asked for again until it is
        url, model = f"http://127.0.0.1:{port}/v1", ["--model", tmp_path / "tiny"]
        waits = ["--max-tries", 100, "--longest-wait-s", 1, "--option", "max_tokens=24"]
        rdl(*words(url, tmp_path / "out", *model, *waits))
    finally:
        server.kill()
        server.wait()
    totals = report_of(tmp_path / "out")["totals"]
    assert len(keys_of(tmp_path / "out")) == N_WINDOWS + totals["n_retries"]
    assert totals["input_tokens"] > 50 * N_WINDOWS
    assert totals["output_tokens"] > 0


@pytest.mark.skipif(not MIRROR, reason="needs RDL_MIRROR, the folder of recorded TREC DL data")
def test_replay_gives_the_recorded_ranking_of_all_43_lists(rdl, tmp_path):
    """387 windows of RankVicuna over BM25's top-100, TREC DL 2019; twice, as after a kill."""
    folder = Path(MIRROR) / "trec-dl"
    name = "output_v2_aug_vicuna_7b_4096_100_PromptMode.RANK_GPT_dl19_2023-09-13T16:36:10.051205"
    candidates = folder / "retrieve_results/BM25/retrieve_results_dl19_top100.json"
    recorded = folder / f"prompts_and_responses/BM25/{name}.json"
    for _ in range(2):
        rdl("teach", candidates, tmp_path / "out", "--backend", "replay", "--model", recorded)
        log = tmp_path / "out" / "answers.jsonl"
        assert len(set(keys_of(log.parent))) == log.read_bytes().count(b"\n") - 1 == 387
        log.write_bytes(b"".join(log.read_bytes().splitlines(keepends=True)[:100]))
    theirs = read_candidates(folder / f"rerank_results/BM25/{name}.txt", "trec_run")
    ours = read_candidates(tmp_path / "out" / "teacher.run")
    ours, theirs = (run.groupby("query_id")["doc_id"].agg(list) for run in (ours, theirs))
    assert len(theirs) == 43
    assert sum(ours[query_id] == theirs[query_id] for query_id in theirs.index) == 43
    assert report_of(tmp_path / "out")["totals"]["n_clean"] == 387


# --- nothing twice, nothing lost ----------------------------------------------------------------


def test_every_window_is_answered_once_in_the_log_and_never_paid_twice(rdl, whole, tmp_path):
    """Through 429s, server errors, time-outs and broken connections; then called once more."""
    faults = [
        {"status": 429, "headers": {"Retry-After": "0.1"}}, {"status": 500}, {"wait_s": 0.7},
        {"cut": 50}, {"body": "<html>"},
    ]  # fmt: skip

    def fault(number, prompt):
        return faults[number // 4 % 5] if number % 4 == 0 else None

    out = tmp_path / "out"
    with ChatServer(fault=fault) as server:
        for _ in range(2):
            rdl(*words(server, out, "--timeout-s", 0.5, "--in-flight", 3))
            n_requests = len(server.requests)
    failed = -(-n_requests // 4)
    assert len(server.answered) == len(set(server.answered)) == n_requests - failed == N_WINDOWS
    assert len(keys_of(out)) == len(set(keys_of(out))) == N_WINDOWS
    totals = report_of(out)["totals"]
    assert (totals["n_calls"], totals["n_retries"]) == (n_requests, 0)
    for name in LISTS:
        assert (out / name).read_bytes() == (whole / name).read_bytes()


def test_a_permanent_error_stops_and_keeps_what_was_answered(rdl, whole, tmp_path):
    out = tmp_path / "out"
    with ChatServer(fault=lambda n, p: {"status": 401} if n >= 6 else None) as server:
        done = rdl(*words(server, out, "--in-flight", 2), code=2)
    assert re.search(r"^error: .*401.*put a key that this server takes into OPENAI_API_KEY$",
                     done.stderr.strip().splitlines()[-1])  # fmt: skip
    assert len(keys_of(out)) == len(server.answered) == 6
    assert not (out / "report.json").exists()
    with ChatServer() as other:
        rdl(*words(other, out))
    assert len(other.requests) == N_WINDOWS - 6
    assert not set(server.answered) & set(other.answered)
    same_lists(out, whole)


def test_a_second_process_in_the_same_folder_is_refused(rdl, tmp_path):
    out = tmp_path / "out"
    out.mkdir()
    with FileLock(out / ".lock"), ChatServer() as server:
        done = rdl(*words(server, out), code=2)
    assert "out: expected a folder that no other process works in" in done.stderr
    assert not server.requests


def _teach(folder, command):
    torch.set_num_threads(1)
    os.chdir(folder)
    cli.app(command, standalone_mode=False)


@pytest.fixture(scope="module")
def start(files):
    """Start `rdl` in a process of its own, forked from one that has imported all it needs."""
    processes = multiprocessing.get_context("forkserver")
    processes.set_forkserver_preload(["test_teach"])
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", os.pathsep.join(sys.path))
        processes.Process(target=os.getpid).start()

    def run(command):
        process = processes.Process(target=_teach, args=(files, list(map(str, command))))
        process.start()
        return process

    return run


def test_a_killed_run_goes_on_and_asks_only_for_what_is_missing(rdl, start, whole, tmp_path):
    """SIGKILL while requests are on their way, twice; a line that was cut off counts as none."""
    out = tmp_path / "out"
    with ChatServer(fault=lambda *_: {"wait_s": 0.1}) as server:
        known = 0
        for more in (3, 4):
            process = start(words(server, out, "--in-flight", 2))
            log, until = out / "answers.jsonl", time.monotonic() + 120
            while not log.exists() or len(log.read_bytes().splitlines()) <= known + more:
                assert process.is_alive()
                assert time.monotonic() < until
                time.sleep(0.005)
            process.kill()
            process.join()
            assert process.exitcode == -signal.SIGKILL
            known = len(keys_of(out))
        with log.open("ab") as file:
            file.write(b'{"key": ["q')
        assert not (out / "report.json").exists()
        asked = len(server.requests)
        assert asked <= known + 2 * 2  # two in flight at each kill
        time.sleep(0.3)  # until the server is done with what was on its way
        before = len(server.requests)
        rdl(*words(server, out, "--in-flight", 2))
        assert len(server.requests) - before == N_WINDOWS - known
    assert len(keys_of(out)) == len(set(keys_of(out))) == N_WINDOWS
    same_lists(out, whole)


def test_the_key_is_in_no_file_and_no_log(rdl, tmp_path, monkeypatch, caplog):
    """Also where the run fails because of it, and all loggers say all they can."""
    monkeypatch.setenv("OWN_KEY", KEY)
    caplog.set_level(logging.DEBUG)
    quoting = {"body": {"error": {"message": f"Incorrect API key provided: {KEY}"}}}
    faults = {2: {"status": 500, **quoting}, 5: {"status": 401, **quoting}}
    shown = []
    with ChatServer(fault=lambda number, prompt: faults.get(number)) as server:
        for code in (2, 0):
            done = rdl(*words(server, tmp_path / "out", "--key-variable", "OWN_KEY"), code=code)
            shown.append(done.output)
    assert {r["headers"]["Authorization"] for r in server.requests} == {f"Bearer {KEY}"}
    shown += [path.read_bytes().decode("latin-1") for path in (tmp_path / "out").iterdir()]
    assert len(shown) >= 2 + len(LISTS) + 3
    assert "Incorrect API key provided: ***" in caplog.text
    assert not [text for text in [*shown, caplog.text] if KEY in text]


# --- before anything is asked -------------------------------------------------------------------


def test_a_dry_run_tells_windows_tokens_and_cost_and_asks_nothing(rdl, whole, tmp_path):
    """A token for every 4 characters of the prompts that a run sends for the lists as they are."""
    out, prices = tmp_path / "out", ["--input-usd", 1e6, "--output-usd", 0]
    with ChatServer() as server:
        said = rdl(*words(server, out, "--dry-run", *prices)).stdout
        assert not server.requests
        assert not out.exists()
        rdl(*words(server, out))
    sent = sum(-(-len(r["body"]["messages"][0]["content"]) // 4) for r in server.requests)
    found = re.fullmatch(
        r"5 queries, (\d+) windows, 0 answered before; left: about (\d+) tokens of prompts, (\d+) "
        r"of answers, (\d+)\.00 dollars\n", said,
    )  # fmt: skip
    n_windows, prompts, answers, usd = map(int, found.groups())
    assert n_windows == N_WINDOWS
    assert prompts == pytest.approx(sent, rel=0.01)
    assert usd == prompts
    assert answers == N_WINDOWS * -(-len("[1] > [2] > [3] > [4] > [5] > [6]") // 2)


def test_a_dry_run_of_what_was_begun_counts_what_is_left(rdl, tmp_path):
    out = tmp_path / "out"
    with ChatServer(fault=lambda n, p: {"status": 401} if n >= 6 else None) as server:
        rdl(*words(server, out), code=2)
        before = {path.name: path.read_bytes() for path in out.iterdir()}
        said = rdl(*words(server, out, "--dry-run")).stdout
        assert f"{N_WINDOWS} windows, {len(server.answered)} answered before" in said
        assert "0 answered before" in rdl(*words(server, tmp_path / "new", "--dry-run")).stdout
    assert {path.name: path.read_bytes() for path in out.iterdir()} == before


def test_a_dry_run_loads_no_model(rdl, tmp_path):
    local = ["--backend", "local_llm", "--model", "no/such-model", "--dry-run"]
    done = rdl("teach", "requests.jsonl", tmp_path / "out", *local, *SMALL)
    assert f"{N_WINDOWS} windows" in done.stdout


# --- shards -------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def shards(files, tmp_path_factory):
    """Two shards, by two servers."""
    folder = tmp_path_factory.mktemp("shards")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(cli, "log_plainly", lambda: None)
        patch.chdir(files)
        for number in (1, 2):
            with ChatServer() as server:
                command = words(server, folder / str(number), "--shard", f"{number}/2")
                done = CliRunner().invoke(cli.app, list(map(str, command)))
                assert done.exit_code == 0, done.output
    return folder


def test_two_shards_merged_are_as_one_run(rdl, whole, shards, tmp_path):
    parts = [set(read_candidates(shards / n / "teacher.run")["query_id"]) for n in "12"]
    assert parts == [{"q0", "q2", "q4"}, {"q1", "q3"}]
    done = rdl("merge", tmp_path / "out", shards / "2", shards / "1")
    assert "n_queries 5" in done.stdout
    same_lists(tmp_path / "out", whole)
    assert sorted(keys_of(tmp_path / "out")) == sorted(keys_of(whole))
    AnswerLog(tmp_path / "out" / "answers.jsonl", teacher=report_of(whole)["config"]["teacher"])
    with ChatServer() as server:
        rdl(*words(server, tmp_path / "out"))
        assert not server.requests


def altered(shards, tmp_path, number, **config):
    """A copy of a shard whose report says something else."""
    copy = tmp_path / f"copy{number}"
    shutil.copytree(shards / number, copy)
    report = report_of(copy)
    report["config"] |= config
    (copy / "report.json").write_text(json.dumps(report))
    return copy


def test_a_missing_shard_is_named(rdl, shards, tmp_path):
    done = rdl("merge", tmp_path / "out", shards / "1", code=2)
    assert "given 1/2; missing 2/2: run --shard 2/2" in done.stderr
    of_three = altered(shards, tmp_path, "2", shard=[3, 3])
    done = rdl("merge", tmp_path / "out", of_three, code=2)
    assert "given 3/3; missing 1/3, 2/3" in done.stderr
    assert not (tmp_path / "out").exists()


def test_shards_that_do_not_belong_together_are_refused(rdl, shards, tmp_path):
    first = shards / "1"
    twice = altered(shards, tmp_path, "1")
    done = rdl("merge", tmp_path / "out", first, twice, shards / "2", code=2)
    assert "given 1/2 more than once" in done.stderr
    other = altered(shards, tmp_path, "2", passes=3)
    done = rdl("merge", tmp_path / "out", first, other, code=2)
    assert f"copy2: expected the same configuration; given passes 3 where {first}" in done.stderr
    shutil.rmtree(other)
    other = altered(shards, tmp_path, "2", shard=[2, 3])
    done = rdl("merge", tmp_path / "out", first, other, code=2)
    assert "given shard [1, 3] where" in done.stderr
    assert not (tmp_path / "out").exists()


def test_a_shard_that_is_not_whole_is_refused(rdl, shards, tmp_path):
    broken = altered(shards, tmp_path, "1")
    lines = (broken / "requests.jsonl").read_text().splitlines(keepends=True)
    (broken / "requests.jsonl").write_text("".join(lines[1:]))
    done = rdl("merge", tmp_path / "out", broken, shards / "2", code=2)
    assert "3 queries and 22 passages; given 2 and 10, none for ['q0']" in done.stderr
    short = json.loads(lines[0])
    short["candidates"].pop()
    (broken / "requests.jsonl").write_text(json.dumps(short) + "\n" + "".join(lines[1:]))
    done = rdl("merge", tmp_path / "out", broken, shards / "2", code=2)
    assert "given 3 and 21: run rdl teach" in done.stderr
    (broken / "report.json").unlink()
    done = rdl("merge", tmp_path / "out", broken, shards / "2", code=2)
    assert "copy1: expected a finished shard" in done.stderr
    assert not (tmp_path / "out").exists()


def test_queries_in_two_shards_or_in_none_are_named(rdl, shards, tmp_path):
    fake = altered(shards, tmp_path, "1", shard=[2, 2])
    done = rdl("merge", tmp_path / "out", shards / "1", fake, code=2)
    assert "every one of 5 queries once; given 6, twice ['q0', 'q2', 'q4']" in done.stderr
    fewer = [altered(shards, tmp_path / n, n, n_queries=6) for n in "12"]
    done = rdl("merge", tmp_path / "out", *fewer, code=2)
    assert "every one of 6 queries once; given 5:" in done.stderr


def test_lists_are_merged_into_a_new_folder_only(rdl, whole, shards, tmp_path):
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "letter.txt").write_text("dear")
    done = rdl("merge", tmp_path / "full", shards / "1", shards / "2", code=2)
    assert "full: expected a new or empty folder" in done.stderr
    assert sorted(path.name for path in (tmp_path / "full").iterdir()) == [".lock", "letter.txt"]


# --- refusals -----------------------------------------------------------------------------------

REFUSALS = {
    "shard beyond": (["--shard", "3/2"], "expected a shard in 1/N..N/N, got 3/2"),
    "shard zero": (["--shard", "0/2"], "expected a shard in 1/N..N/N, got 0/2"),
    "shard in words": (["--shard", "second"], "expected two numbers, such as 2/8; given 'second'"),
    "more shards than queries": (["--shard", "1/6"], "for each of 6 shards; given 5: use fewer"),
    "depth": (["--depth", "0"], "expected depth >= 1, got 0"),
    "schedule": (["--schedule", "bubble"], "expected a schedule among .*'bubble'"),
    "stride": (["--stride", "7"], "expected stride in 1..6, got 7"),
    "option": (["--option", "max_tokens"], "expected name=value; given 'max_tokens'"),
    "address": (["--base-url", "localhost:8000"], "base_url as http://host:port/v1"),
    "mode": (["--backend", "local_llm", "--mode", "greedy"], "expected a mode among .*'greedy'"),
    "no such model": (["--backend", "local_llm"], "m: expected a folder .*check the name"),
    "recorded file": (["--backend", "replay"], "m: expected a file; given a name of none"),
}


@pytest.mark.parametrize(("more", "telling"), REFUSALS.values(), ids=REFUSALS)
def test_what_cannot_be_done_is_refused_before_anything_is_asked(rdl, tmp_path, more, telling):
    with ChatServer() as server:
        done = rdl(*words(server, tmp_path / "out", *more), code=2)
    assert not server.requests
    assert done.stderr.startswith("error: ")
    assert re.search(telling, done.stderr), done.stderr


def test_ids_that_a_run_cannot_hold_are_refused_before_anything_is_asked(rdl, tmp_path):
    write_requests(make_candidates([3]).assign(query_id="a b"), tmp_path / "blank.jsonl")
    with ChatServer() as server:
        command = words(server, tmp_path / "out", candidates=tmp_path / "blank.jsonl")
        done = rdl(*command, code=2)
    assert not server.requests
    assert "'a b' as query_id" in done.stderr


def test_a_folder_keeps_to_what_it_was_begun_with(rdl, whole, tmp_path):
    shutil.copytree(whole, tmp_path / "out")
    with ChatServer() as server:
        for more, telling in (
            (["--passes", 2], "given passes 2 where it was 1"),
            (["--max-words", 9], "given teacher 'm, temperature=0.0, max_words=9"),
            (["--shard", "1/2"], r"given shard \[1, 2\] where it was \[1, 1\]"),
        ):
            done = rdl(*words(server, tmp_path / "out", *more), code=2)
            assert re.search(telling, done.stderr), done.stderr
        done = rdl(*words(server, tmp_path / "out", candidates="turned.jsonl"), code=2)
        assert "given candidates '" in done.stderr
        assert not server.requests
        same_lists(tmp_path / "out", whole)
        (tmp_path / "more").mkdir()  # a second pass does not pay for the first again
        shutil.copy(whole / "answers.jsonl", tmp_path / "more")
        rdl(*words(server, tmp_path / "more", "--passes", 2))
        assert len(server.requests) == N_WINDOWS
        (tmp_path / "more" / "config.json").unlink()
        done = rdl(*words(server, tmp_path / "more"), code=2)
        assert "more: expected a new or empty folder, or one begun before" in done.stderr


def test_what_was_begun_in_vain_may_be_begun_anew(rdl, whole, tmp_path):
    """A misspelt model is no reason to name another folder."""
    with ChatServer(fault=lambda *_: {"status": 404}) as server:
        rdl(*words(server, tmp_path / "out", "--model", "mm", "--in-flight", 1), code=2)
        assert not keys_of(tmp_path / "out")
        server.fault = lambda number, prompt: None
        rdl(*words(server, tmp_path / "out"))
    same_lists(tmp_path / "out", whole)
