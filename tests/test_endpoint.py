"""A teacher behind a server: real requests over TCP, to a server that fails as servers do."""

import logging
import random
import re
import time
import traceback
from dataclasses import replace
from itertools import pairwise

import pytest
from chat_server import ChatServer

from rdl_core.config import EndpointConfig
from rdl_core.teachers.answers import Window
from rdl_core.teachers.endpoint import Endpoint, EndpointError

KEY = "sk-a-secret-7391"


def windows(n):
    draw = random.Random(0)
    texts = [tuple(map(str, draw.sample(range(1000), 3))) for _ in range(n)]
    own = [{"query_id": f"q{i}", "query": f"query {i}", "start": i} for i in range(n)]
    return [Window(doc_ids=("a", "b", "c"), passages=texts[i], **own[i]) for i in range(n)]


def only(*numbers, **fault):
    return lambda number, prompt: fault if number in numbers else None


def endpoint(url, **own):
    return Endpoint(EndpointConfig(base_url=url, **{"model": "m", "longest_wait_s": 1.0} | own))


def ask(server, asked, **own):
    """Answers by number, each once; a clean one has its window's order, best first."""
    answers = list(endpoint(server.url, **own).ask(asked))
    assert sorted(number for number, _ in answers) == list(range(len(asked)))
    for number, reading in ((number, answer.read(3)) for number, answer in answers):
        worths = [int(asked[number].passages[place]) for place in reading.order]
        assert reading.status != "clean" or worths == sorted(worths, reverse=True)
    return dict(answers)


def waits_s(server):
    """Seconds between the starts of requests."""
    starts = sorted(request["at"] for request in server.requests)
    return [later - earlier for earlier, later in pairwise(starts)]


def test_every_window_is_asked_once_so_many_at_a_time_and_in_a_minute():
    with ChatServer(fault=lambda *_: {"wait_s": 0.05}) as server:
        answers = ask(server, windows(20), in_flight=4)
    assert server.most_active == 4
    assert len(server.requests) == len(set(server.answered)) == 20
    words = sorted(len(prompt.split()) for prompt in server.answered)
    assert sorted(answer.input_tokens for answer in answers.values()) == words
    counts = {(x.n_calls, x.output_tokens, x.read(3).status) for x in answers.values()}
    assert counts == {(1, 5, "clean")}
    with ChatServer() as server:
        ask(server, windows(8), in_flight=8, per_minute=60 / 0.05)
    assert sum(waits_s(server)) >= 7 * 0.05 - 0.02


def message(content, reason="stop", **own):
    choice = {"index": 0, "finish_reason": reason, "message": {"content": content, **own}}
    return {"body": {"choices": [choice]}}


def refusal(**error):
    return {"status": 400, "body": {"error": error}}


@pytest.mark.parametrize(("fault", "text", "why"), [
    (message([{"type": "thinking", "thinking": "hm"}, {"type": "text", "text": "[2] > "},
              {"type": "text", "text": "[1]"}]), "[2] > [1]", None),
    (message([]), "", "empty"), (message(None), "", "empty"), (message(" \n"), " \n", "empty"),
    (message(None, reasoning_content="[1] > [2]"), "", "thoughts alone"),
    (message("", reasoning="[1] > [2]"), "", "thoughts alone"),
    (message("[2] > [", "length"), "[2] > [", "cut off .* max_tokens"),
    (message(None, "length", reasoning_content="hm"), "", "cut off"),
    (message(None, "content_filter"), "", "content filter"),
    (message(None, refusal="I can't help\nwith that."), "", "refused: I can't help with that."),
    (refusal(code="content_filter", message="filtered"), "", "content filter"),
    (refusal(message="triggering our content management policy"), "", "content filter"),
])  # fmt: skip
def test_what_is_no_answer_is_told_with_the_reason_and_stops_nothing(fault, text, why):
    with ChatServer(fault=only(1, **fault)) as server:
        answers = ask(server, windows(4), in_flight=1)
    [odd] = [answer for answer in answers.values() if answer.n_calls and answer.text == text]
    assert re.match(why, odd.why.removeprefix("held back by a ")) if why else odd.why is None
    assert sum(answer.read(3).status == "clean" for answer in answers.values()) >= 3


def test_what_is_sent_is_what_the_configuration_says_and_nothing_is_made_up():
    [window] = windows(1)
    again, options = replace(window, attempt=1), {"max_tokens": 9, "effort": "low"}
    calls = [(window, {}), (again, {}), (window, {"temperature": None, "options": options}),
             (again, {"temperature": -1.0}), (again, {"temperature": 0.9})]  # fmt: skip
    with ChatServer() as server:
        for asked, own in calls:
            ask(server, [asked], **own)
        server.fault = lambda *_: {"body": {"choices": [{"message": {"content": None}}]}}
        [answer] = ask(server, [window]).values()
    assert (answer.text, answer.input_tokens, answer.output_tokens) == ("", None, None)
    first, _, third, *_ = bodies = [request["body"] for request in server.requests]
    assert first["messages"][0]["content"].startswith("Query: query 0\n\n[1] ")
    assert [body.get("temperature") for body in bodies] == [0.0, 0.7, None, None, 0.9, 0.0]
    assert first.keys() == {"model", "messages", "temperature"}
    assert third.items() >= {"max_tokens": 9, "effort": "low", "model": "m"}.items()


PAGE = {"body": "<html>", "headers": {"Content-Type": "text/html"}}


@pytest.mark.parametrize("fault", [
    {"status": 429, "body": {"error": {"message": "slow down"}}}, {"status": 500, "body": "oops"},
    {"status": 502, **PAGE}, {"status": 503, "body": {"error": {"code": 503}}}, {"wait_s": 0.6}, PAGE,
    {"body": {"error": {"message": "upstream"}}}, {"body": '{"choices": [{"mess'},
    {"body": {"choices": [{}]}}, {"cut": 100}, {"cut": 0},
])  # fmt: skip
def test_what_passes_is_tried_again(fault, caplog):
    with ChatServer(fault=only(1, **fault)) as server:
        answers = ask(server, windows(3), timeout_s=0.3, in_flight=1, longest_wait_s=0.01)
    calls = [(answers[i].n_calls, answers[i].read(3).status) for i in range(3)]
    assert calls == [(1, "clean"), (2, "clean"), (1, "clean")]
    assert len(server.requests) == 4
    assert "try 2 in 0.0 s" in caplog.text


def test_waits_are_what_the_server_names_for_any_window_else_double_and_differ(caplog):
    """The second request ends at once, the third waits with the first."""
    fault = only(0, status=429, headers={"Retry-After": "0.6"})
    with ChatServer(fault=lambda n, p: fault(n, p) or {"wait_s": 0.1}) as server:
        ask(server, windows(6), in_flight=2)
    assert sum(waits_s(server)[:2]) >= 0.55
    caplog.clear()
    with ChatServer(fault=only(0, 1, status=500)) as server:
        ask(server, windows(1), longest_wait_s=9)
    assert 0.25 <= waits_s(server)[0] < 0.9
    assert 0.5 <= waits_s(server)[1] < 1.6
    random.seed(0)
    with ChatServer(fault=only(*range(6), status=500)) as server:
        ask(server, windows(6), in_flight=6)
    assert len(set(re.findall(r"try 2 in (\S+) s", caplog.text))) > 2


@pytest.mark.parametrize(("fault", "telling"), [
    ({"status": 403}, "403.*the key in OWN_KEY may not do this"),
    ({"status": 404}, "404.*check base_url, most end in /v1, and the model, 'm'"),
    *(({"status": n}, f"{n}.*see what it says; a smaller --window-size") for n in (400, 413, 422)),
    (refusal(message="'temperature' does not support 0.0"), "send none .--temperature -1."),
    (refusal(code="insufficient_quota", message="No quota") | {"status": 429}, "no credit left: add"),
    ({"status": 429, "headers": {"Retry-After": "86400"}}, "asks to wait 86400 s: .*longest_wait"),
])  # fmt: skip
def test_what_does_not_pass_stops_at_once_and_says_what_to_do(fault, telling):
    telling = f"no answer for query 'q0', pass 1, start 0: .*{telling}"
    with ChatServer(fault=only(0, **fault)) as server, pytest.raises(EndpointError, match=telling):
        ask(server, windows(9), in_flight=1, key_variable="OWN_KEY")
    assert len(server.requests) == 1


def test_nothing_is_tried_for_ever_nor_asked_for_an_iteration_that_was_left():
    own = {"max_tries": 3, "in_flight": 1, "longest_wait_s": 0.01}
    with ChatServer(fault=lambda *_: {"status": 500}) as server:
        with pytest.raises(EndpointError, match="500: 3 tries: see that the server runs"):
            ask(server, windows(4), **own)
        assert len(server.requests) == 3
        server.fault = lambda *_: {"wait_s": 0.02}
        asking = endpoint(server.url, in_flight=2).ask(windows(50))
        next(asking)
        asking.close()
        time.sleep(0.2)
        assert len(server.requests) <= 3 + 4
    with pytest.raises(EndpointError, match=rf"{server.url}: .*ConnectError.*refused.*: 3 tries"):
        ask(server, windows(1), **own)


def test_the_key_is_sent_and_nowhere_else(monkeypatch, caplog):
    """Also where the server quotes it, cut off or not, and all loggers say all they can."""
    monkeypatch.setenv("OWN_KEY", KEY)
    monkeypatch.setenv("OPENAI_API_KEY", "another's")
    for name in (None, "openai", "httpx", "httpx2", "httpcore"):
        caplog.set_level(logging.DEBUG, logger=name)
    quoting = {"body": {"error": {"message": f"Incorrect API key provided: {KEY}"}}}
    page = {"body": "<p>" * 92 + KEY, "headers": {"Content-Type": "text/html"}}
    faults = [{"status": 500, **quoting}, page, None, {"status": 401, **quoting}, None]
    own = {"in_flight": 1, "longest_wait_s": 0.01}
    with ChatServer(fault=lambda number, prompt: faults[number]) as server:
        teacher = endpoint(server.url, key_variable="OWN_KEY", **own)
        with pytest.raises(EndpointError, match=r"provided: \*\*\*.*: put a key") as refused:
            list(teacher.ask(windows(2)))
        ask(server, windows(1), key_variable="OTHER_KEY")
    sent = [request["headers"]["Authorization"] for request in server.requests]
    assert sent == [f"Bearer {KEY}"] * 4 + ["Bearer none"]
    assert "OTHER_KEY is not set" in caplog.text
    assert "provided: ***" in caplog.text
    shown = caplog.text + "".join(traceback.format_exception(refused.value)) + repr(teacher.config)
    assert KEY[:9] not in shown
    with pytest.raises(ValueError, match="expected no user, .* got one for host: .*OPENAI_API_KEY"):
        EndpointConfig(model="m", base_url=f"http://host/v1?key={KEY}")
