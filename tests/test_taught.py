"""An LLM as a study's teacher: who is asked, how often, and what becomes of the answers.

The endpoint is a real server on 127.0.0.1, which ranks numbers, the greatest first.

Mutations seen to fail, one at a time: earlier answers of another model taken; no earlier answers
taken; the graph's lists not behind its shards; shards numbered from 0; a list cut before it is
ranked.
"""

import json
from dataclasses import replace

import pandas as pd
import pytest
import yaml
from chat_server import ChatServer

from rdl_core.data.formats import write_run
from rdl_study import graph
from rdl_study.candidates import ListsConfig, lists
from rdl_study.grid import Part
from rdl_study.profile import load_profile
from rdl_core.teachers.replay import AnswerLog

N_QUERIES, DEPTH = 5, 7


@pytest.fixture(autouse=True)
def store(tmp_path, monkeypatch):
    monkeypatch.setenv("RDL_RUNS", str(tmp_path / "runs"))
    monkeypatch.setenv("OPENAI_API_KEY", "none")
    return tmp_path / "runs"


@pytest.fixture
def server():
    with ChatServer() as server:
        yield server


@pytest.fixture
def teacher(tmp_path, server):
    """Write the settings of an LLM; gives the file."""

    def write(model="m", name="llm", **settings):
        who = {"endpoint": {"base_url": server.url, "model": model}}
        values = {"shards": 3, "window_size": 4, "stride": 2}
        file = tmp_path / f"{name}.yaml"
        file.write_text(yaml.safe_dump(who | values | settings))
        return str(file)

    return write


@pytest.fixture
def asked(tmp_path, teacher):
    """Lists of a folder in BEIR's layout, whose passages are numbers."""
    beir = tmp_path / "beir"
    beir.mkdir()
    frame = pd.DataFrame(
        [(f"q{q}", f"d{7 * q + i}", i + 1) for q in range(N_QUERIES) for i in range(DEPTH)],
        columns=["query_id", "doc_id", "rank"],
    )
    write_run(frame.assign(score=-frame["rank"]), tmp_path / "first.run")
    texts = {"queries": frame["query_id"].unique(), "corpus": frame["doc_id"]}
    for name, ids in texts.items():
        rows = [{"_id": one, "text": str(worth(one)) if one[0] == "d" else one} for one in ids]
        (beir / f"{name}.jsonl").write_text("\n".join(map(json.dumps, rows)))
    first = str(tmp_path / "first.run")
    return ListsConfig(collection=str(beir), first_stage=first, depth=DEPTH, teacher=teacher())


def worth(doc_id):
    return int(doc_id[1:]) * 37 % 101


def check_order(frame):
    for _, rows in frame.groupby("query_id"):
        best = sorted(rows["doc_id"], key=lambda doc_id: -worth(doc_id))[:2]  # a window's overlap
        assert rows.sort_values("teacher_rank")["doc_id"].tolist()[:2] == best


def test_an_llm_orders_lists_in_shards_that_are_runs(asked, server, store):
    frame = lists(asked)
    assert len(frame) == N_QUERIES * DEPTH
    check_order(frame)
    runs = [json.loads(file.read_text()) for file in store.glob("teach-*/manifest.json")]
    assert sorted(run["config"]["part"] for run in runs) == [[1, 3], [2, 3], [3, 3]]
    assert sum(run["totals"]["n_clean"] for run in runs) == len(server.requests)
    whole = next(store.glob("taught-*/manifest.json"))
    assert sorted(json.loads(whole.read_text())["inputs"]) == sorted(run["id"] for run in runs)
    assert server.url not in whole.read_text()


def test_nothing_is_asked_twice_whatever_else_changes(asked, server, teacher, store):
    lists(asked)
    n_asked = len(server.requests)
    lists(asked)
    lists(replace(asked, depth=3))  # a list is ranked whole, and cut behind it
    frame = lists(replace(asked, teacher=teacher(shards=2), n_queries=3))
    check_order(frame)
    for manifest in store.glob("t*/manifest.json"):
        manifest.unlink()
    check_order(lists(asked))
    assert len(server.requests) == n_asked
    check_order(lists(replace(asked, teacher=teacher(model="another"))))
    assert len(server.requests) == 2 * n_asked


def test_shards_are_jobs_that_come_before_the_lists(asked, server, teacher):
    mini = load_profile("mini")
    stage = replace(mini.stage2, lists=replace(asked, n_queries=4))
    profile = replace(mini, stage2=stage, test=replace(asked, teacher="judgments"))
    systems = {"student": profile.student("second"), "teacher": asked.teacher}
    given, _ = graph.jobs({"page": [Part(profile=profile, systems=systems, baseline="student")]})
    shards = [node for node in given.values() if node.kind == "teach"]
    (listed,) = (node for node in given.values() if node.kind == "lists")
    assert len(shards) == 6  # for training and for the test
    assert {node.name for node in shards} <= set(listed.needs)
    assert list(given).index(listed.name) > max(list(given).index(node.name) for node in shards)
    for node in shards:
        graph.run(node)
    n_asked = len(server.requests)
    assert n_asked > 0
    check_order(lists(stage.lists))
    assert len(server.requests) == n_asked


def test_more_shards_than_queries_leave_some_with_nothing_to_do(asked, teacher, store):
    config = replace(asked, teacher=teacher(shards=9))
    graph._teach(graph._Shard(lists=config, number=9))
    assert not list(store.glob("teach-*"))
    check_order(lists(config))


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"endpoint": None}, "expected one of endpoint, local_llm, replay; given 0"),
        ({"shards": 0}, "shards: expected at least 1, got 0"),
        ({"windowsize": 3}, "windowsize: unknown key"),
        ({"stride": 0}, "stride"),
        ({"depth": 0}, "depth: expected at least 1, got 0"),
        ({"endpoint": {"base_url": "x", "model": "m", "temprature": 1}}, "temprature: unknown key"),
        ({"endpoint": None, "local_llm": {"model": "m", "batch": 1}}, "batch: unknown key"),
        ({"local_llm": {"model": "x"}}, "given 2 of them"),
    ],
)
def test_settings_that_do_not_fit_are_refused_by_name(asked, teacher, server, settings, said):
    with pytest.raises(ValueError, match=said) as refused:
        lists(replace(asked, teacher=teacher(**settings)))
    assert "llm.yaml" in str(refused.value)
    assert not server.requests


def test_another_log_is_read_as_it_grows_and_left_alone(asked, store, tmp_path):
    lists(asked)
    other = max(store.glob("teach-*/lists/answers.jsonl"))
    growing = other.read_bytes() + b'{"key": ["q'
    other.write_bytes(growing)
    log = AnswerLog(tmp_path / "own.jsonl", teacher="m")
    n_answers = growing.count(b"\n") - 1
    assert log.take(other) == len(log) == n_answers > 0
    assert log.take(other) == 0
    assert other.read_bytes() == growing
    again = AnswerLog(tmp_path / "own.jsonl", teacher="m")
    assert len(again) == n_answers
