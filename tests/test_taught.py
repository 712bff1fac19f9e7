"""An LLM as a study's teacher: who is asked, how often, and what becomes of the answers."""

import json
from dataclasses import replace

import pandas as pd
import pytest
import yaml
from chat_server import ChatServer

from rdl_core.data.formats import write_run
from rdl_study import graph
from rdl_study.grid import Part
from rdl_study.lists import ListsConfig, lists
from rdl_study.profile import load_profile

N_QUERIES, DEPTH = 5, 7


@pytest.fixture
def server(store, monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", "none")
    with ChatServer() as server:
        yield server


@pytest.fixture
def teacher(tmp_path, server):
    def write(model="m", **settings):
        who = {"endpoint": {"base_url": server.url, "model": model}}
        file = tmp_path / "llm.yaml"
        file.write_text(yaml.safe_dump(who | {"shards": 3, "window_size": 4, "stride": 2} | settings))
        return str(file)

    return write


@pytest.fixture
def wanted(tmp_path, teacher):
    """Lists of a folder in BEIR's layout, whose passages are numbers."""
    rows = [(f"q{q}", f"d{7 * q + i}", i + 1) for q in range(N_QUERIES) for i in range(DEPTH)]
    frame = pd.DataFrame(rows, columns=["query_id", "doc_id", "rank"])
    write_run(frame.assign(score=-frame["rank"]), tmp_path / "first.run")
    (tmp_path / "beir").mkdir()
    for name, ids in (("queries", frame["query_id"].unique()), ("corpus", frame["doc_id"])):
        texts = [{"_id": x, "text": str(worth(x)) if x[0] == "d" else x} for x in ids]
        (tmp_path / "beir" / f"{name}.jsonl").write_text("\n".join(map(json.dumps, texts)))
    return ListsConfig(
        collection=str(tmp_path / "beir"), first_stage=str(tmp_path / "first.run"), depth=DEPTH,
        teacher=teacher(),
    )  # fmt: skip


def worth(doc_id):
    return int(doc_id[1:]) * 37 % 101


def check_order(frame):
    for _, rows in frame.groupby("query_id"):
        best = sorted(rows["doc_id"], key=lambda doc_id: -worth(doc_id))[:2]  # a window's overlap
        assert rows.sort_values("teacher_rank")["doc_id"].tolist()[:2] == best


def test_an_llm_orders_lists_in_shards_and_is_asked_nothing_twice(wanted, server, teacher, store):
    frame = lists(wanted)
    assert len(frame) == N_QUERIES * DEPTH
    check_order(frame)
    runs = [json.loads(file.read_text()) for file in store.glob("teach-*/manifest.json")]
    assert sorted(run["config"]["shard"] for run in runs) == ["1/3", "2/3", "3/3"]
    n_asked = len(server.requests)
    assert sum(run["totals"]["n_clean"] for run in runs) == n_asked
    assert server.url not in json.dumps([run["config"] for run in runs])
    lists(wanted)
    lists(replace(wanted, depth=3))  # a list is ranked whole, and cut behind it
    check_order(lists(replace(wanted, teacher=teacher(shards=2), n_queries=3)))
    for manifest in store.glob("teach-*/manifest.json"):
        manifest.unlink()
    check_order(lists(wanted))
    assert len(server.requests) == n_asked
    check_order(lists(replace(wanted, teacher=teacher(model="another"))))
    assert len(server.requests) == 2 * n_asked


def test_shards_are_jobs_that_come_before_the_lists(wanted, server, teacher, store):
    mini = load_profile("mini")
    stage = replace(mini.stage2, lists=replace(wanted, n_queries=4))
    profile = replace(mini, stage2=stage, test=replace(wanted, teacher="judgments"))
    systems = {"student": profile.student(stage), "teacher": wanted.teacher}
    nodes, _ = graph.jobs({"page": [Part(profile=profile, systems=systems, baseline="student")]})
    shards = [node for node in nodes.values() if node.kind == "teach"]
    (listed,) = (node for node in nodes.values() if node.kind == "lists")
    assert len(shards) == 6  # for training and for the test
    assert {node.name for node in shards} <= set(listed.needs)
    for node in shards:
        graph.run(node)
    n_asked = len(server.requests)
    assert n_asked > 0
    check_order(lists(stage.lists))
    assert len(server.requests) == n_asked
    more, n_runs = replace(wanted, teacher=teacher(shards=9, passes=2)), len(list(store.iterdir()))
    graph._ask(more, 9)  # it has nothing to do
    assert len(list(store.iterdir())) == n_runs
    check_order(lists(more))


@pytest.mark.parametrize(("settings", "says"), [
    ({"endpoint": None}, "expected one of endpoint, local_llm, replay; got 0"),
    ({"local_llm": {"model": "x"}}, "got 2 of them"), ({"shards": 0}, "shards: .*got 0"),
])  # fmt: skip
def test_settings_that_do_not_fit_are_refused_by_name(wanted, teacher, server, settings, says):
    with pytest.raises(ValueError, match=f"(?s)llm.yaml.*{says}"):
        lists(replace(wanted, teacher=teacher(**settings)))
    assert not server.requests
