"""Candidates in, a teacher's lists out: against a real server over TCP, killed, resumed, in shards."""

import json
import os
import shutil
import subprocess
import sys
import time
from dataclasses import asdict, replace
from pathlib import Path

import pandas as pd
import pytest
from chat_server import ChatServer
from test_local_llm import llama, words_tokenizer

from rdl_core.config import EndpointConfig, LocalConfig, ReplayConfig, TeachConfig
from rdl_core.data.formats import read_candidates, write_requests, write_run
from rdl_core.teachers.answers import identifiers
from rdl_core.teachers.endpoint import EndpointError
from rdl_core.teachers.listwise import plan_windows
from rdl_core.teachers.replay import AnswerLog
from rdl_core.teachers.teach import estimate, merge_lists, teach

MIRROR = os.environ.get("RDL_MIRROR")
KEY = "sk-a-secret-7391"
SIZES = [12, 7, 1, 25, 9]
N_WINDOWS = sum(len(plan_windows(n, window_size=6, stride=3)) for n in SIZES)
LISTS = ["config.json", "candidates.run", "teacher.run", "teacher.parquet", "requests.jsonl",
         "report.json"]  # fmt: skip
# A passage's text is its worth, which rises towards the end of each list.
CANDIDATES = pd.DataFrame(
    [(f"q{q}", f"query {q}", f"q{q}d{i}", i + 1, str(100 * q + 37 * i % 100))
     for q, n in enumerate(SIZES) for i in range(n)],
    columns=["query_id", "query", "doc_id", "rank", "text"],
)  # fmt: skip


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """Candidates with texts; without; in another order; with an odd id."""
    folder = tmp_path_factory.mktemp("files")
    write_requests(CANDIDATES, folder / "requests.jsonl")
    write_requests(CANDIDATES.assign(rank=99 - CANDIDATES["rank"]), folder / "turned.jsonl")
    write_requests(CANDIDATES.head(3).assign(query_id="a b"), folder / "blank.jsonl")
    write_run(CANDIDATES.drop(columns=["query", "text"]), folder / "first.run")
    return folder


@pytest.fixture(scope="module")
def config(files):
    """Make a configuration of an endpoint, whose fields may be given, too, or of another backend."""

    def make(url, candidates="requests.jsonl", backend=None, **own):
        fields = {name: own.pop(name) for name in [*own] if name in EndpointConfig.__dataclass_fields__}
        backend = backend or EndpointConfig(base_url=url, **{"model": "m"} | fields)
        small = {"window_size": 6, "stride": 3, "backend": backend}
        return TeachConfig(candidates=str(files / candidates), **small | own)

    return make


@pytest.fixture(scope="module")
def whole(config, tmp_path_factory):
    """Lists of one run that nothing disturbed."""
    out = tmp_path_factory.mktemp("whole") / "out"
    with ChatServer() as server:
        teach(config(server.url), out)
    assert len(server.requests) == N_WINDOWS
    return out


def keys_of(out):
    """Keys of the windows that are answered in the log, each once."""
    _, *lines = (out / "answers.jsonl").read_text().splitlines()
    keys = {tuple(json.loads(line)["key"]) for line in lines}
    assert len(keys) == len(lines)
    return keys


def same_lists(folder, other):
    for name in LISTS:
        assert (folder / name).read_bytes() == (other / name).read_bytes(), name


def test_lists_come_in_three_forms_in_the_teachers_order(whole):
    """Window 6, stride 3: the best three of each list are the three best, in their order."""
    lists = read_candidates(whole / "requests.jsonl")
    for query, rows in CANDIDATES.groupby("query_id"):
        best = rows.iloc[(-rows["text"].astype(int)).argsort()]["doc_id"].tolist()
        found = lists[lists["query_id"] == query]["doc_id"].tolist()
        assert found[:3] == best[:3]
        assert sorted(found) == sorted(best)
    assert (lists["text"].array == CANDIDATES.set_index("doc_id")["text"][lists["doc_id"]].array).all()
    assert (lists["score"] == -lists["rank"]).all()
    for name in ("teacher.run", "teacher.parquet"):
        assert read_candidates(whole / name).equals(lists[["query_id", "doc_id", "rank", "score"]])
    assert read_candidates(whole / "candidates.run")["doc_id"].tolist() == CANDIDATES["doc_id"].tolist()


def test_the_report_counts_windows_tokens_and_cost_as_estimated(config, tmp_path):
    """The server counts words; a ranking of n passages has 2n - 1. A dry run counts characters."""
    with ChatServer() as server:
        setup = config(server.url, input_usd=2.0, output_usd=8.0)
        plan = estimate(setup, tmp_path / "out")
        assert (server.requests, (tmp_path / "out").exists()) == ([], False)
        report = teach(setup, tmp_path / "out")
    prompts = [request["body"]["messages"][0]["content"] for request in server.requests]
    words, n = sum(len(text.split()) for text in prompts), N_WINDOWS
    assert report["totals"].items() >= {
        "n_queries": 5, "n_passages": sum(SIZES), "n_windows": n, "n_clean": n, "n_calls": n,
        "n_retries": 0, "input_tokens": words, "output_tokens": n * 11,
        "usd": round((2 * words + 8 * n * 11) / 1e6, 6),
    }.items()  # fmt: skip
    assert sum(row["n_windows"] for row in report["queries"]) == n
    tokens = plan.input_tokens, n * -(-len("[1] > [2] > [3] > [4] > [5] > [6]") // 2)
    assert tokens[0] == pytest.approx(sum(-(-len(text) // 4) for text in prompts), rel=0.01)
    usd = round((2 * tokens[0] + 8 * tokens[1]) / 1e6, 6)
    assert tuple(asdict(plan).values()) == (5, n, 0, *tokens, usd)
    assert str(plan).startswith(f"5 queries, {n} windows, 0 answered before; left: about {tokens[0]} ")
    manifest = json.loads((tmp_path / "out" / "manifest.json").read_text())
    assert (manifest["server"], manifest["teacher"]) == (server.url, setup.backend.name)


def test_a_configuration_decides_what_is_asked(config, tmp_path):
    how = {"window_size": 5, "stride": 4, "passes": 2}
    with ChatServer() as server:
        report = teach(config(server.url, depth=8, options={"max_tokens": 9}, **how), tmp_path / "out")
    lists = read_candidates(tmp_path / "out" / "requests.jsonl")
    assert set(lists["doc_id"]) == set(CANDIDATES.query("rank <= 8")["doc_id"])
    planned = 2 * sum(len(plan_windows(min(n, 8), **how)) for n in SIZES)
    assert report["totals"]["n_calls"] == planned == len(server.requests)
    assert server.requests[-1]["body"]["max_tokens"] == 9


@pytest.mark.parametrize("mode", ["free", "first_token"])
def test_a_local_model_is_a_teacher_and_a_dry_run_loads_none(config, tmp_path, mode):
    tokenizer = words_tokenizer([*identifiers(6), *"ABCDEFGHIJKLMNOPQRSTUVWXYZ"])
    for part in (llama(vocab=len(tokenizer)), tokenizer):
        part.save_pretrained(tmp_path / "tiny")
    local = LocalConfig(model=str(tmp_path / "tiny"), mode=mode, precision="float32")
    totals = teach(config("", backend=local), tmp_path / "out")["totals"]
    assert len(keys_of(tmp_path / "out")) == totals["n_calls"]
    assert mode == "free" or totals["n_clean"] == totals["n_calls"] == N_WINDOWS
    none = config("", backend=replace(local, model="no/such-model"))
    assert estimate(none, tmp_path / "new").n_windows == N_WINDOWS


@pytest.mark.skipif(not MIRROR, reason="needs RDL_MIRROR, the folder of recorded TREC DL data")
def test_replay_gives_the_recorded_ranking_of_all_43_lists(config, tmp_path):
    """387 windows of RankVicuna over BM25's top-100, TREC DL 2019, though a log was begun before."""
    folder, out, again = Path(MIRROR) / "trec-dl", tmp_path / "out", tmp_path / "again"
    name = "output_v2_aug_vicuna_7b_4096_100_PromptMode.RANK_GPT_dl19_2023-09-13T16:36:10.051205"
    candidates = folder / "retrieve_results/BM25/retrieve_results_dl19_top100.json"
    replay = ReplayConfig(model=str(folder / f"prompts_and_responses/BM25/{name}.json"))
    setup = config("", candidates, backend=replay, window_size=20, stride=10)
    assert teach(setup, out)["totals"]["n_clean"] == 387 == len(keys_of(out))
    again.mkdir()
    lines = (out / "answers.jsonl").read_bytes().splitlines(keepends=True)
    (again / "answers.jsonl").write_bytes(b"".join(lines[:100]))
    teach(setup, again)
    same_lists(again, out)
    runs = out / "teacher.run", folder / f"rerank_results/BM25/{name}.txt"
    runs = [read_candidates(run, "trec_run").groupby("query_id")["doc_id"].agg(list) for run in runs]
    assert (len(runs[1]), runs[0].to_dict()) == (43, runs[1].to_dict())


def test_an_error_keeps_what_was_answered_and_the_key_out(config, whole, tmp_path, monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    quoting, out = {"status": 401, "body": {"error": {"message": f"wrong key {KEY}"}}}, tmp_path / "out"
    with ChatServer(fault=lambda n, _: quoting if n >= 6 else None) as server:
        with pytest.raises(EndpointError, match=r"wrong key \*\*\*.* into OPENAI_API_KEY$"):
            teach(config(server.url, in_flight=2), out)
        before = {path.name: path.read_bytes() for path in out.iterdir()}
        assert estimate(config(server.url), out).n_answered == len(server.answered) == 6
    assert {path.name: path.read_bytes() for path in out.iterdir()} == before
    assert set(before) == {".lock", "answers.jsonl", "config.json"}
    with ChatServer(fault=lambda n, _: {"status": 500} if n % 4 == 0 else None) as other:
        report = teach(config(other.url, longest_wait_s=0.01), out)
    assert report["totals"]["n_calls"] == len(other.requests) + 6 > N_WINDOWS == len(keys_of(out))
    assert estimate(config(other.url), out).n_answered == N_WINDOWS
    assert not set(server.answered) & set(other.answered)
    assert (out / "teacher.run").read_bytes() == (whole / "teacher.run").read_bytes()
    assert not [path for path in out.iterdir() if KEY.encode() in path.read_bytes()]


def test_a_killed_run_goes_on_and_asks_only_for_what_is_missing(config, whole, tmp_path):
    """SIGKILL while requests are on their way; a line that was cut off counts as none."""
    out, log = tmp_path / "out", tmp_path / "out" / "answers.jsonl"
    with ChatServer(fault=lambda *_: {"wait_s": 0.1}) as server:
        setup = config(server.url, in_flight=2)
        code = "from rdl_core.config import *; from rdl_core.teachers.teach import teach; teach"
        process = subprocess.Popen([sys.executable, "-c", f"{code}({setup!r}, {str(out)!r})"])
        while not log.exists() or log.read_bytes().count(b"\n") < 4:
            assert process.poll() is None
            time.sleep(0.005)
        process.kill()
        assert process.wait() < 0
        with log.open("ab") as file:
            file.write(b'{"key": ["q')
        time.sleep(0.3)  # until the server is done with what was on its way
        known, before = len(AnswerLog(log, teacher=setup.backend.name)), len(server.requests)
        assert 3 <= known <= before <= known + 2  # two in flight at the kill
        teach(setup, out)
        assert len(server.requests) - before == N_WINDOWS - known
    assert len(keys_of(out)) == N_WINDOWS
    same_lists(out, whole)


def test_two_shards_merged_are_as_one_run_and_others_are_refused(config, whole, tmp_path):
    shards, out = [tmp_path / "2", tmp_path / "1"], tmp_path / "out"
    with ChatServer() as server:
        for shard in shards:
            teach(config(server.url, shard=f"{shard.name}/2"), shard)
        parts = [set(read_candidates(shard / "teacher.run")["query_id"]) for shard in shards]
        assert parts == [{"q1", "q3"}, {"q0", "q2", "q4"}]
        report = merge_lists(shards, out)
        same_lists(out, whole)
        assert keys_of(out) == keys_of(whole)
        assert teach(config(server.url), out) == merge_lists(shards, out) == report
        assert len(server.requests) == N_WINDOWS
    other, new, lists = tmp_path / "other", tmp_path / "new", shards[1] / "requests.jsonl"
    shutil.copytree(shards[1], other)
    (other / "config.json").write_bytes((shards[0] / "config.json").read_bytes())
    for parts, telling in (
        (shards[:1], "shards missing: 1/2"), ([tmp_path], "holds no finished lists: run rdl teach"),
        ([shards[1], other], r"each of 5 queries once, got 6, twice \['q0', 'q2', 'q4'\]"),
    ):  # fmt: skip
        with pytest.raises(ValueError, match=telling):
            merge_lists(parts, new)
    lists.write_text("")
    with pytest.raises(ValueError, match=f"{lists} changed since it was written"):
        merge_lists(shards, new)
    assert not new.exists()


def test_what_cannot_be_done_is_refused_before_anything_is_asked(config, whole, files, tmp_path):
    out = tmp_path / "out"
    shutil.copytree(whole, out)
    local, replay = LocalConfig(model="no/such"), ReplayConfig(model=str(files / "no-history"))
    with ChatServer() as server:
        for own, telling in (
            ({"shard": "1/6"}, "6 shards need 6 queries, it has 5"),
            ({"candidates": "blank.jsonl"}, "a run cannot hold query_id 'a b', with blanks"),
            ({"backend": local}, "cannot load no/such: .*check the name"),
            ({"backend": replay}, "no-history"),
            ({"candidates": "first.run", "collection": "no/such-texts"}, "no/such-texts"),
        ):
            with pytest.raises((ValueError, FileNotFoundError), match=telling):
                teach(config(server.url, **own), tmp_path / "new")
        for own, telling in (
            ({"passes": 2}, "passes was 1, is 2"), ({"max_words": 9}, "teacher was 'm, .*max_words=9"),
            ({"shard": "1/2"}, "shard"), ({"candidates": "turned.jsonl"}, "candidates was '"),
        ):
            with pytest.raises(ValueError, match=f"{out} was begun with another .*{telling}"):
                teach(config(server.url, **own), out)
        assert not server.requests
        same_lists(out, whole)
        (tmp_path / "new" / "answers.jsonl").write_bytes((whole / "answers.jsonl").read_bytes())
        teach(config(server.url, passes=2), tmp_path / "new")  # the first pass is not paid for again
        assert len(server.requests) == N_WINDOWS
        server.fault = lambda number, _: {"status": 404} if number == N_WINDOWS else None
        with pytest.raises(EndpointError, match="the model, 'mm'"):
            teach(config(server.url, model="mm", in_flight=1), tmp_path / "vain")
        teach(config(server.url), tmp_path / "vain")  # a misspelt model needs no other folder
    same_lists(tmp_path / "vain", whole)
