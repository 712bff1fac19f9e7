"""Candidates in, a teacher's lists out: against a real server over TCP, resumed, in shards."""

import json
import math
import os
from dataclasses import asdict, replace
from pathlib import Path

import pandas as pd
import pytest
from chat_server import ChatServer
from test_local_llm import llama, words_tokenizer

from rdl_core.config import EndpointConfig, LocalConfig, ReplayConfig
from rdl_core.data.formats import read_candidates, write_requests, write_run
from rdl_core.teachers.answers import identifiers
from rdl_core.teachers.endpoint import EndpointError
from rdl_core.teachers.listwise import plan_windows
from rdl_tools.config import TeachConfig
from rdl_tools.shards import each_on_a_gpu
from rdl_tools.teach import estimate, merge_lists, teach

KEY = "sk-a-secret-7391"
SIZES = [12, 7, 1, 25, 9]
N_WINDOWS = sum(len(plan_windows(n, window_size=6, stride=3)) for n in SIZES)
# A passage's text is its worth, which rises towards the end of each list.
CANDIDATES = pd.DataFrame(
    [(f"q{q}", f"query {q}", f"q{q}d{i}", i + 1, str(100 * q + 37 * i % 100))
     for q, n in enumerate(SIZES) for i in range(n)],
    columns=["query_id", "query", "doc_id", "rank", "text"],
)  # fmt: skip


@pytest.fixture(scope="module")
def config(tmp_path_factory):
    """Make a configuration of an endpoint with some fields, or of another backend."""
    folder = tmp_path_factory.mktemp("files")
    write_requests(CANDIDATES, folder / "requests.jsonl")
    write_requests(CANDIDATES.assign(rank=99 - CANDIDATES["rank"]), folder / "turned.jsonl")
    write_requests(CANDIDATES.head(3).assign(query_id="a b"), folder / "blank.jsonl")
    write_run(CANDIDATES.drop(columns=["query", "text"]), folder / "first.run")

    def make(url="http://nobody/v1", *, candidates="requests.jsonl", endpoint=None, **own):
        backend = EndpointConfig(base_url=url, **{"model": "m"} | (endpoint or {}))
        fields = {"window_size": 6, "stride": 3, "backend": backend} | own
        return TeachConfig(candidates=str(folder / candidates), **fields)

    return make


@pytest.fixture(scope="module")
def whole(config, tmp_path_factory):
    """Lists of one run that nothing disturbed."""
    out = tmp_path_factory.mktemp("whole") / "out"
    with ChatServer() as server:
        teach(config(server.url), out)
    assert len(server.requests) == N_WINDOWS
    return out


def same_lists(folder, other):
    names = ("candidates.run", "teacher.run", "teacher.parquet", "requests.jsonl", "report.json")
    for name in ("config.json", *names):
        assert (folder / name).read_bytes() == (other / name).read_bytes(), name


def test_what_was_unusable_is_left_in_order_and_asked_again_by_the_same_command(config, tmp_path):
    """A server whose answers are empty, or whose filter refuses one query, and is mended later."""
    with ChatServer(fault=lambda *_: {"text": ""}) as server:
        with pytest.raises(ValueError, match="no answer could be used: empty"):
            teach(config(server.url), tmp_path)
        assert not (tmp_path / "teacher.run").exists()
        filtered = {"status": 400, "body": {"error": {"code": "content_filter", "message": "no"}}}
        server.fault = lambda _, prompt: filtered if "query 4" in prompt else None
        report = teach(config(server.url), tmp_path)
        totals, n_of_4 = report["totals"], len(plan_windows(SIZES[4], window_size=6, stride=3))
        assert totals["n_unusable"] == n_of_4 == totals["n_windows"] - totals["n_clean"]
        assert report["queries"][4]["why"] == "held back by a content filter"
        of_4 = read_candidates(tmp_path / "teacher.run").query("query_id == 'q4'")
        assert of_4["doc_id"].tolist() == [f"q4d{i}" for i in range(SIZES[4])]
        server.fault, n_asked = lambda *_: None, len(server.requests)
        report = teach(config(server.url), tmp_path)
        assert report["totals"]["n_clean"] == report["totals"]["n_windows"]
        assert 0 < len(server.requests) - n_asked <= n_of_4  # later windows may be of another order
        n_asked = len(server.requests)
        assert teach(config(server.url), tmp_path) == report
        assert len(server.requests) == n_asked


def test_lists_come_in_three_forms_in_the_teachers_order(whole):
    """Window 6, stride 3: the first three of each list are the best three, in their order."""
    lists = read_candidates(whole / "requests.jsonl")
    assert sorted(lists["doc_id"]) == sorted(CANDIDATES["doc_id"])
    best = CANDIDATES.sort_values("text", key=lambda worth: -worth.astype(int)).groupby("query_id")
    first = lists.groupby("query_id")["doc_id"].agg(lambda doc_ids: doc_ids.tolist()[:3])
    assert first.to_dict() == best["doc_id"].agg(lambda doc_ids: doc_ids.tolist()[:3]).to_dict()
    texts = CANDIDATES.set_index("doc_id")["text"]
    assert lists["text"].tolist() == texts[lists["doc_id"]].tolist()
    assert (lists["score"] == -lists["rank"]).all()
    for name in ("teacher.run", "teacher.parquet"):
        assert read_candidates(whole / name).equals(lists[["query_id", "doc_id", "rank", "score"]])
    assert read_candidates(whole / "candidates.run")["doc_id"].tolist() == CANDIDATES["doc_id"].tolist()


def test_the_report_counts_windows_tokens_and_cost_as_estimated(config, tmp_path):
    """The server counts words; a ranking of n passages has 2n - 1. A dry run counts characters."""
    with ChatServer() as server:
        setup = config(server.url, endpoint={"input_usd": 2.0, "output_usd": 8.0})
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
    assert tokens[0] == pytest.approx(sum(map(len, prompts)) / 4, rel=0.01)
    usd = round((2 * tokens[0] + 8 * tokens[1]) / 1e6, 6)
    assert tuple(asdict(plan).values()) == (5, n, 0, *tokens, usd)
    manifest = json.loads((tmp_path / "out" / "manifest.json").read_text())
    assert (manifest["server"], manifest["teacher"]) == (server.url, setup.backend.name)


@pytest.mark.parametrize("mode", ["free", "first_token"])
def test_a_local_model_is_a_teacher_and_a_dry_run_loads_none(config, tmp_path, mode, monkeypatch):
    tokenizer = words_tokenizer([*identifiers(6), *"ABCDEFGHIJKLMNOPQRSTUVWXYZ"])
    for part in (llama(vocab=len(tokenizer)), tokenizer):
        part.save_pretrained(tmp_path / "tiny")
    local = LocalConfig(model=str(tmp_path / "tiny"), mode=mode, precision="float32")
    totals = teach(config(backend=local, depth=8, passes=2), tmp_path / "out")["totals"]
    lists = read_candidates(tmp_path / "out" / "requests.jsonl")
    assert set(lists["doc_id"]) == set(CANDIDATES.query("rank <= 8")["doc_id"])
    n_windows = 2 * sum(len(plan_windows(min(n, 8), window_size=6, stride=3)) for n in SIZES)
    assert mode == "free" or totals["n_clean"] == totals["n_calls"] == n_windows
    none = config(backend=replace(local, model="no/such-model"))
    assert estimate(none, tmp_path / "new").n_windows == N_WINDOWS
    if mode == "free":
        return
    monkeypatch.setattr("torch.cuda.device_count", lambda: 2)  # here; the processes compute on the CPU
    assert teach(config(backend=local, depth=8, passes=2), tmp_path / "both")["totals"] == totals
    one, both = ((tmp_path / x / "teacher.run").read_bytes() for x in ("out", "both"))
    assert one == both
    with pytest.raises(ChildProcessError, match=r"shards \[1\] of 2, .*failed: their errors"):
        each_on_a_gpu(math.sqrt, [(-1,), (4,)])


@pytest.mark.skipif("RDL_MIRROR" not in os.environ, reason="it names the recorded TREC DL data")
def test_replay_gives_the_recorded_ranking_of_all_43_lists(config, tmp_path):
    """387 windows of RankVicuna over BM25's top-100, TREC DL 2019, though a log was begun before."""
    folder, out, again = Path(os.environ["RDL_MIRROR"], "trec-dl"), tmp_path / "out", tmp_path / "again"
    name = "output_v2_aug_vicuna_7b_4096_100_PromptMode.RANK_GPT_dl19_2023-09-13T16:36:10.051205"
    candidates = folder / "retrieve_results/BM25/retrieve_results_dl19_top100.json"
    replay = ReplayConfig(model=str(folder / f"prompts_and_responses/BM25/{name}.json"))
    setup = config(candidates=candidates, backend=replay, window_size=20, stride=10)
    assert teach(setup, out)["totals"]["n_clean"] == 387 == estimate(setup, out).n_answered
    again.mkdir()
    lines = (out / "answers.jsonl").read_bytes().splitlines(keepends=True)
    (again / "answers.jsonl").write_bytes(b"".join(lines[:100]))
    teach(setup, again)
    same_lists(again, out)
    runs = out / "teacher.run", folder / f"rerank_results/BM25/{name}.txt"
    runs = [read_candidates(run, "trec_run").groupby("query_id")["doc_id"].agg(list) for run in runs]
    assert (len(runs[1]), runs[0].to_dict()) == (43, runs[1].to_dict())


def test_an_error_keeps_what_was_answered_and_the_key_out(config, whole, tmp_path, monkeypatch):
    """Also the answer that is on its way; nothing more is asked."""
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    quoting, out = {"status": 401, "body": {"error": {"message": f"wrong key {KEY}"}}}, tmp_path / "out"
    with ChatServer(fault=lambda n, _: quoting if n == 6 else {"wait_s": 0.2}) as server:
        with pytest.raises(EndpointError, match=r"wrong key \*\*\*.* into OPENAI_API_KEY$"):
            teach(config(server.url, endpoint={"in_flight": 2}), out)
        before = {path.name: path.read_bytes() for path in out.iterdir()}
        n_answered = estimate(config(server.url), out).n_answered
        assert n_answered == len(server.answered) == len(server.requests) - 1 <= 7
    assert {path.name: path.read_bytes() for path in out.iterdir()} == before
    assert set(before) == {".lock", "answers.jsonl", "config.json"}
    with ChatServer(fault=lambda n, _: {"status": 500} if n % 4 == 0 else None) as other:
        report = teach(config(other.url, endpoint={"longest_wait_s": 0.01}), out)
    assert report["totals"]["n_calls"] == len(other.requests) + n_answered > N_WINDOWS
    assert not set(server.answered) & set(other.answered)
    assert (out / "teacher.run").read_bytes() == (whole / "teacher.run").read_bytes()
    assert not [path for path in out.iterdir() if KEY.encode() in path.read_bytes()]


def test_two_shards_merged_are_as_one_run_and_others_are_refused(config, whole, tmp_path):
    shards, out, again = [tmp_path / "2", tmp_path / "1"], tmp_path / "out", tmp_path / "again"
    with ChatServer() as server:
        for shard in shards:
            teach(config(server.url, shard=f"{shard.name}/2"), shard)
        parts = [set(read_candidates(shard / "teacher.run")["query_id"]) for shard in shards]
        assert parts == [{"q1", "q3"}, {"q0", "q2", "q4"}]
        report = merge_lists(shards, out)
        same_lists(out, whole)
        assert estimate(config(server.url), out).n_answered == N_WINDOWS
        assert teach(config(server.url), out) == merge_lists(shards, out) == report
        assert len(server.requests) == N_WINDOWS
        again.mkdir()
        (again / "answers.jsonl").write_bytes((out / "answers.jsonl").read_bytes())
        teach(config(server.url, passes=2), again)
        assert len(server.requests) == 2 * N_WINDOWS  # of the second pass alone
    with pytest.raises(ValueError, match="holds no finished lists: run rdl teach"):
        merge_lists([*shards, whole.parent], tmp_path / "new")
    (shards[1] / "requests.jsonl").write_text("")
    with pytest.raises(ValueError, match="1/requests.jsonl changed since it was written"):
        merge_lists(shards, tmp_path / "new")
    assert not (tmp_path / "new").exists()


@pytest.mark.parametrize(("begun", "own", "says"), [
    (False, {"shard": "1/6"}, "5 queries cannot be shared by 6 shards: use fewer"),
    (False, {"candidates": "blank.jsonl"}, "query_id 'a b': expected ids without blanks"),
    (False, {"backend": LocalConfig(model="no/such")}, "cannot load no/such: .*check the name"),
    (False, {"backend": ReplayConfig(model="no-history")}, "no-history"),
    (False, {"candidates": "first.run", "collection": "no/such-texts"}, "no/such-texts"),
    (True, {"passes": 2}, "begun with another .*passes was 1, is 2"),
    (True, {"endpoint": {"max_words": 9}}, "begun with another .*teacher was 'm, .*max_words=9"),
    (True, {"candidates": "turned.jsonl"}, "begun with another .*candidates was '"),
])  # fmt: skip
def test_refusals_come_before_anything_is_asked(config, whole, tmp_path, begun, own, says):
    out = whole if begun else tmp_path / "out"
    with ChatServer() as server:
        with pytest.raises((ValueError, FileNotFoundError), match=says):
            teach(config(server.url, **own), out)
        assert not server.requests
        assert len(teach(config(server.url), whole)["queries"]) == len(SIZES)  # it stays as it is
