"""A teacher behind a server: real requests over TCP, to a server that fails as servers do.

Mutations seen to fail: waits not doubled; no jitter; a named time for one window only; dates not
read; tried for ever; 429 does not pass; no credit passes; key quoted; the cause that quotes it
kept; told to stop too late; answers on their way dropped; limit of requests in flight ignored; rate
ignored; no time-out; key of another variable; asked again greedily.
"""

import logging
import random
import subprocess
import sys
import time
import traceback
from dataclasses import replace
from email.utils import formatdate
from itertools import pairwise
from pathlib import Path

import chat_server
import pytest
from chat_server import ChatServer

from rdl_core.teachers.endpoint import Endpoint, EndpointConfig, EndpointError
from rdl_core.teachers.answers import Window

KEY = "sk-a-secret-7391"
QUICK = {"first_wait_s": 0.01, "model": "m"}


def windows(n, size=3):
    draw = random.Random(0)
    for number in range(n):
        yield Window(
            query_id=f"q{number}", query=f"query {number}", start=number,
            doc_ids=tuple(f"d{i}" for i in range(size)),
            passages=tuple(map(str, draw.sample(range(1000), size))),
        )  # fmt: skip


def only(*numbers, **fault):
    """A fault of the requests with these numbers."""
    return lambda number, prompt: fault if number in numbers else None


def at_query(query, **fault):
    """A fault of all requests about a query."""
    return lambda number, prompt: fault if f"Query: query {query}\n" in prompt else None


def ask(server, asked, **own):
    """Answers by number; those of windows that are answered twice would clash."""
    found = {}
    for number, answer in Endpoint(EndpointConfig(base_url=server.url, **QUICK | own)).ask(asked):
        assert number not in found
        found[number] = answer
    return found


def check(answers, asked):
    """Each window has its own order, best first."""
    assert sorted(answers) == list(range(len(asked)))
    for number, window in enumerate(asked):
        worths = [int(text) for text in window.passages]
        order = answers[number].read(len(worths)).order
        assert [worths[place] for place in order] == sorted(worths, reverse=True)


def gaps(server):
    return [later["at"] - sooner["at"] for sooner, later in pairwise(server.requests)]


# --- what goes well -----------------------------------------------------------------------------


def test_every_window_is_asked_once_and_so_many_at_a_time():
    asked = list(windows(20))
    with ChatServer(fault=lambda *_: {"wait_s": 0.05}) as server:
        answers = ask(server, asked, max_in_flight=4)
    check(answers, asked)
    assert server.most_active == 4
    assert len(server.requests) == len(set(server.answered)) == 20
    assert {answer.n_calls for answer in answers.values()} == {1}
    tokens = [(answers[i].input_tokens, answers[i].output_tokens) for i in range(20)]
    prompts = {prompt.split("\n")[0]: len(prompt.split()) for prompt in server.answered}
    assert tokens == [(prompts[f"Query: query {i}"], 5) for i in range(20)]


def test_no_more_requests_start_in_a_minute_than_allowed():
    with ChatServer() as server:
        ask(server, list(windows(8)), max_in_flight=8, requests_per_minute=60 / 0.05)
    starts = sorted(request["at"] for request in server.requests)
    assert starts[-1] - starts[0] >= 7 * 0.05 - 0.02


def test_what_is_sent_is_what_the_configuration_says():
    [window] = windows(1)
    with ChatServer() as server:
        ask(server, [window])
        ask(server, [replace(window, attempt=1)])
        ask(server, [window], temperature=None, options={"max_tokens": 9, "effort": "low"})
        ask(server, [replace(window, attempt=1)], temperature=0.9)
    bodies = [request["body"] for request in server.requests]
    [message] = bodies[0]["messages"]
    assert message["role"] == "user"
    assert message["content"].startswith("Query: query 0\n\n[1] ")
    assert [body.get("temperature") for body in bodies] == [0.0, 0.7, None, 0.9]
    assert bodies[0].keys() == {"model", "messages", "temperature"}
    assert bodies[2].items() >= {"max_tokens": 9, "effort": "low", "model": "m"}.items()


def test_what_a_server_leaves_out_is_not_made_up():
    body = {"choices": [{"message": {"role": "assistant", "content": None}}]}
    with ChatServer(fault=lambda *_: {"body": body}) as server:
        [answer] = ask(server, list(windows(1))).values()
    assert (answer.text, answer.input_tokens, answer.output_tokens) == ("", None, None)
    assert answer.read(3).status == "unusable"


# --- what passes --------------------------------------------------------------------------------

PASSING = {
    "too many": {"status": 429, "body": {"error": {"message": "slow down"}}},
    "server error": {"status": 500, "body": "oops"},
    "overloaded": {"status": 503, "body": {"error": {"code": 503}}},
    "gateway's page": {"status": 502, "body": "<html>", "headers": {"Content-Type": "text/html"}},
    "page for an answer": {"body": "<html>", "headers": {"Content-Type": "text/html"}},
    "broken JSON": {"body": '{"choices": [{"mess'},
    "error for an answer": {"body": {"error": {"message": "upstream"}}},
    "empty answer": {"body": {"choices": [{}]}},
    "cut in the middle": {"cut": 100},
    "cut before the answer": {"cut": 0},
    "slow": {"wait_s": 0.6},
}


@pytest.mark.parametrize("fault", PASSING.values(), ids=PASSING)
def test_what_passes_is_tried_again(fault, caplog):
    asked = list(windows(3))
    with ChatServer(fault=only(1, **fault)) as server:
        answers = ask(server, asked, timeout_s=0.3, max_in_flight=1)
    check(answers, asked)
    assert [answers[i].n_calls for i in range(3)] == [1, 2, 1]
    assert len(server.requests) == 4
    assert "try 2 of 10 in 0.0 s" in caplog.text


@pytest.mark.parametrize("form", ["seconds", "date"])
def test_a_server_that_names_a_time_is_not_asked_before(form):
    said = "0.6" if form == "seconds" else formatdate(time.time() + 2, usegmt=True)
    fault = only(0, status=429, headers={"Retry-After": said})
    with ChatServer(fault=fault) as server:
        check(ask(server, list(windows(1))), list(windows(1)))
    assert gaps(server)[0] >= (0.6 if form == "seconds" else 0.95)


def test_a_named_time_holds_for_all_windows():
    """The second request ends at once; the third waits with the first."""
    fault = only(0, status=429, headers={"Retry-After": "0.6"})
    with ChatServer(fault=lambda n, p: fault(n, p) or {"wait_s": 0.1}) as server:
        ask(server, list(windows(6)), max_in_flight=2)
    first, *others = sorted(request["at"] for request in server.requests)
    assert len([at for at in others if at - first < 0.55]) <= 1


def test_waits_double_and_differ():
    random.seed(0)
    with ChatServer(fault=lambda n, p: {"status": 500} if n < 3 else None) as server:
        ask(server, list(windows(1)), first_wait_s=0.1)
    for gap, longest in zip(gaps(server), [0.1, 0.2, 0.4], strict=True):
        assert longest / 2 <= gap < longest + 0.1
    with ChatServer(fault=lambda n, p: {"status": 500} if n < 6 else None) as server:
        ask(server, list(windows(6)), first_wait_s=0.4, max_in_flight=6)
    starts = sorted(request["at"] for request in server.requests[6:])
    assert starts[-1] - starts[0] > 0.05


def test_a_server_killed_and_started_again_in_the_middle():
    """Only what was on its way when it died is asked again."""
    script = Path(chat_server.__file__)

    def start(port):
        process = subprocess.Popen(
            [sys.executable, script, str(port)], stdout=subprocess.PIPE, text=True
        )
        return process, process.stdout.readline().strip()

    process, url = start(0)
    asked, answers = list(windows(30)), {}
    config = EndpointConfig(base_url=url, max_in_flight=3, **QUICK | {"first_wait_s": 0.1})
    try:
        for number, answer in Endpoint(config).ask(asked):
            answers[number] = answer
            if len(answers) == 8:
                process.kill()
                process.wait()
                process, again = start(int(url.split(":")[2].split("/")[0]))
                assert again == url
    finally:
        process.kill()
        process.wait()
    check(answers, asked)
    assert 1 <= sum(answer.n_calls > 1 for answer in answers.values()) <= 3


# --- what does not pass -------------------------------------------------------------------------

QUOTA = {"error": {"code": "insufficient_quota", "message": "You exceeded your quota"}}
PERMANENT = {
    "key": ({"status": 401, "body": {"error": {"message": "no"}}}, "401 - no: put a key.*OWN_KEY"),
    "right": ({"status": 403}, "403.*the key in OWN_KEY may not do this"),
    "model": ({"status": 404}, "404.*check base_url, most end in /v1, and the model, 'm'"),
    "prompt": ({"status": 400}, "400.*use a smaller window or fewer max_words"),
    "field": ({"status": 422}, "422.*leave out options the model does not take"),
    "other": ({"status": 451}, "451.*see what the server says"),
    "credit": ({"status": 429, "body": QUOTA}, "exceeded your quota: .*no credit left: add some"),
    "long wait": (
        {"status": 429, "headers": {"Retry-After": "86400"}}, "asks to wait 86400 s: .*longest_wait"
    ),
}  # fmt: skip


@pytest.mark.parametrize(("fault", "telling"), PERMANENT.values(), ids=PERMANENT)
def test_what_does_not_pass_stops_at_once_and_says_what_to_do(fault, telling):
    place = "expected an answer for query 'q0', pass 1, start 0; got .*"
    with (
        ChatServer(fault=only(0, **fault)) as server,
        pytest.raises(EndpointError, match=place + telling),
    ):
        ask(server, list(windows(9)), max_in_flight=1, key_variable="OWN_KEY")
    assert len(server.requests) == 1


def test_answers_on_their_way_at_a_permanent_error_are_not_lost():
    fault, found = at_query(3, status=404, wait_s=0.1), []
    config = {"max_in_flight": 5, **QUICK}
    with ChatServer(fault=lambda n, p: fault(n, p) or {"wait_s": 0.2}) as server:
        endpoint = Endpoint(EndpointConfig(base_url=server.url, **config))
        with pytest.raises(EndpointError, match="query 'q3'"):
            found.extend(number for number, _ in endpoint.ask(list(windows(30))))
    assert len(server.requests) < 10
    assert len(found) == len(server.answered) >= 4


def test_nothing_is_tried_for_ever():
    with (
        ChatServer(fault=lambda *_: {"status": 500, "body": "oops"}) as server,
        pytest.raises(EndpointError, match="got .*500: 3 tries: see that the server runs"),
    ):
        ask(server, list(windows(4)), max_tries=3, max_in_flight=1)
    assert len(server.requests) == 3


def test_no_server_is_an_error_that_says_where():
    with ChatServer() as server:
        url = server.url
    config = EndpointConfig(base_url=url, max_tries=2, **QUICK)
    with pytest.raises(EndpointError, match=rf"{url}: .*ConnectError.*refused.*: 2 tries"):
        list(Endpoint(config).ask(list(windows(1))))


def test_an_iteration_that_is_left_asks_no_more():
    with ChatServer(fault=lambda *_: {"wait_s": 0.02}) as server:
        endpoint = Endpoint(EndpointConfig(base_url=server.url, max_in_flight=2, **QUICK))
        asking = endpoint.ask(list(windows(50)))
        next(asking)
        asking.close()
        time.sleep(0.2)
        assert len(server.requests) <= 4


# --- the key ------------------------------------------------------------------------------------


def test_the_key_is_sent_and_nowhere_else(monkeypatch, caplog):
    """Also where the server quotes it in its refusal, and all loggers say all they can."""
    monkeypatch.setenv("OWN_KEY", KEY)
    caplog.set_level(logging.DEBUG)
    for name in ("openai", "httpx", "httpx2", "httpcore"):
        caplog.set_level(logging.DEBUG, logger=name)
    quoting = {"body": {"error": {"message": f"Incorrect API key provided: {KEY}"}}}
    faults = [{"status": 500, **quoting}, None, {"status": 401, **quoting}]
    with ChatServer(fault=lambda number, prompt: faults[number]) as server:
        own = {"base_url": server.url, "key_variable": "OWN_KEY", "max_in_flight": 1}
        endpoint = Endpoint(EndpointConfig(**QUICK, **own))
        with pytest.raises(EndpointError, match=r"provided: \*\*\*: put a key") as refused:
            list(endpoint.ask(list(windows(2))))
    assert [r["headers"]["Authorization"] for r in server.requests] == [f"Bearer {KEY}"] * 3
    assert "provided: ***; try 2 of 10" in caplog.text
    traced = "".join(traceback.format_exception(refused.value))
    shown = [caplog.text, traced, endpoint.config.name, repr(endpoint.config)]
    assert not [text for text in shown if KEY in text]


def test_without_a_key_a_server_is_asked_without_one(monkeypatch, caplog):
    monkeypatch.delenv("OWN_KEY", raising=False)
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    caplog.set_level(logging.INFO)
    with ChatServer() as server:
        ask(server, list(windows(1)), key_variable="OWN_KEY")
    assert "OWN_KEY is not set" in caplog.text
    assert KEY not in str(server.requests)


# --- configuration ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("own", "telling"),
    [
        ({"base_url": "localhost:8000/v1"}, "base_url as http://host:port/v1"),
        ({"base_url": f"http://me:{KEY}@host/v1"}, "without user.*OPENAI_API_KEY"),
        ({"base_url": f"http://host/v1?key={KEY}"}, "without user.*OPENAI_API_KEY"),
        ({"max_in_flight": 0}, "max_in_flight above 0, got 0"),
        ({"requests_per_minute": -1}, "requests_per_minute above 0, got -1"),
        ({"max_tries": 0}, "max_tries above 0"),
        ({"options": {"stream": True, "top_p": 1}}, r"other than .*, got \['stream'\]"),
    ],
)
def test_what_cannot_be_asked_is_refused_without_quoting_a_key(own, telling):
    with pytest.raises(ValueError, match=telling) as refused:
        EndpointConfig(**{"base_url": "http://host/v1", "model": "m"} | own)
    assert KEY not in str(refused.value)


def test_a_name_tells_all_that_changes_answers_and_nothing_else():
    config = EndpointConfig(base_url="http://host/v1", model="m")
    other = [
        {"model": "n"}, {"temperature": 0.5}, {"temperature": None}, {"max_words": 9},
        {"options": {"max_tokens": 9}},
    ]  # fmt: skip
    assert len({config.name} | {replace(config, **own).name for own in other}) == 1 + len(other)
    same = {"base_url": "http://other/v1", "max_in_flight": 2, "input_usd": 1.0, "timeout_s": 9.0}
    assert replace(config, **same).name == config.name
    turned = [{"a": 1, "b": 2}, {"b": 2, "a": 1}]
    assert len({replace(config, options=options).name for options in turned}) == 1


def test_cost_is_that_of_both_kinds_of_tokens():
    config = EndpointConfig(base_url="http://host/v1", model="m", input_usd=3.0, output_usd=15.0)
    assert config.usd(2_000_000, 100_000) == 2 * 3.0 + 0.1 * 15.0
    assert replace(config, output_usd=None).usd(1, 1) is None
