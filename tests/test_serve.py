"""The server: every dialect gives the student's scores, whoever asks together, and refuses in words."""

import asyncio
import os
import random
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from contextlib import suppress
from pathlib import Path
from types import SimpleNamespace

import cohere
import httpx
import numpy as np
import pandas as pd
import pytest
import schemathesis
import torch
from common import WORDS, child_environment, make_student
from fastapi.testclient import TestClient
from hypothesis import HealthCheck, settings
from scipy.special import expit

from rdl_core.cross_encoder import CrossEncoder
from rdl_core.rerank import rerank
from rdl_core.tokens import TokenCorpus, TokenStore
from rdl_tools.adopt import Adopted
from rdl_tools.config import ServeConfig
from rdl_tools.serve import make_app

STUDENT = make_student()
# LangChain's adapter needs an older cohere.
EXAMPLES = int(os.environ.get("EXAMPLES", 60))  # requests generated for each operation
LANGCHAIN = Path(__file__).parents[1] / ".venv-langchain" / "bin" / "python"
QUERY, TEXTS = "w1 w2", ["w3 w4 w5", "w1", "", "w2 w1 w9 w9", "w7 " * 50]


def logits(query=QUERY, texts=TEXTS):
    stores = [TokenStore.of_texts(x, STUDENT.tokenizer) for x in ([query], texts)]
    rows = torch.arange(len(texts))
    with torch.inference_mode():
        return STUDENT.score(*stores, rows * 0, rows, precision="float32", token_budget=999).numpy()


def client(adopted=None, **own):
    app = make_app(STUDENT, ServeConfig(student="fox", **own), adopted=adopted)
    return TestClient(app, raise_server_exceptions=False)


def by_index(results, name):
    assert [x[name] for x in results] == sorted((x[name] for x in results), reverse=True)
    return [x[name] for x in sorted(results, key=lambda x: x["index"])]


@pytest.mark.parametrize("path", ["/rerank", "/v1/rerank", "/v2/rerank"])
def test_documents_as_cohere_jina_and_vllm_send_them(path):
    objects = [{"text": text} for text in TEXTS]
    with client() as ask:
        for documents in (TEXTS, objects, [*TEXTS[:2], *objects[2:]]):
            answer = ask.post(path, json={"query": QUERY, "documents": documents, "model": "m"}).json()
            found = by_index(answer["results"], "relevance_score")
            assert found == pytest.approx(expit(logits()), abs=1e-6)
        lengths = [min(len(text.split()), STUDENT.passage_tokens) for text in TEXTS]
        n_tokens = sum(lengths) + 5 * (2 + STUDENT.template.n_tokens)
        assert (answer["model"], answer["usage"]["total_tokens"]) == ("m", n_tokens)
        own = {"query": QUERY, "documents": TEXTS, "top_n": 2, "return_documents": True}
        answer = ask.post(path, json=own).json()
        best = np.argsort(-logits())[:2].tolist()
        assert [x["index"] for x in answer["results"]] == best
        assert [x["document"] for x in answer["results"]] == [{"text": TEXTS[i]} for i in best]
        cut = ask.post(path, json=own | {"max_tokens_per_doc": 1, "top_n": 9}).json()["results"]
        first_words = [" ".join(text.split()[:1]) for text in TEXTS]
        expected = expit(logits(texts=first_words))
        assert by_index(cut, "relevance_score") == pytest.approx(expected, abs=1e-6)


def test_texts_as_tei_sends_them_and_pairs_as_vllm_does():
    with client() as ask:
        own = {"query": QUERY, "texts": TEXTS}
        assert by_index(ask.post("/rerank", json=own).json(), "score") == pytest.approx(expit(logits()))
        answer = ask.post("/rerank", json=own | {"raw_scores": True, "return_text": True}).json()
        assert by_index(answer, "score") == pytest.approx(logits(), abs=1e-6)
        assert all(x["text"] == TEXTS[x["index"]] for x in answer)
        refused = ask.post("/rerank", json=own | {"truncate": False})
        assert refused.status_code == 422
        assert "50 tokens is longer than" in refused.json()["message"]
        for text_1 in (QUERY, [QUERY] * len(TEXTS)):
            answer = ask.post("/score", json={"text_1": text_1, "text_2": TEXTS}).json()
            assert [x["score"] for x in answer["data"]] == pytest.approx(expit(logits()), abs=1e-6)
        assert ask.get("/health").json() == {"status": "ok"}
        told = ask.get("/metrics").text
        assert 'rdl_requests_total{path="/rerank",status="422"} 1.0' in told
        assert "rdl_pairs_total 20.0" in told


def test_long_documents_count_by_their_best_piece_as_in_ranking(tmp_path):
    reader = make_student()
    reader.passage_tokens, reader.chunks = 4, 3
    reader.save_pretrained(tmp_path)
    reader = CrossEncoder.from_pretrained(tmp_path, trained=True)  # without being told
    texts = [*TEXTS, "w7 w8 w9 w1 w2", " ".join(WORDS[:12]), " ".join(WORDS)]
    columns = {"query_id": "q", "query": QUERY, "doc_id": [*"01234567"], "rank": range(1, 9)}
    frame = pd.DataFrame(columns | {"text": texts})
    run = rerank(reader, frame, TokenCorpus.of(frame[:1], frame, reader.tokenizer))
    with TestClient(make_app(reader, ServeConfig(student="fox"))) as ask:
        answer = ask.post("/rerank", json={"query": QUERY, "documents": texts}).json()
    assert by_index(answer["results"], "relevance_score") == pytest.approx(expit(run.score), abs=1e-6)
    assert answer["usage"]["total_tokens"] == 49 + 15 * (2 + STUDENT.template.n_tokens)  # 15 pieces
    alone = logits(texts=[" ".join(WORDS[i : i + 4]) for i in (0, 4, 8)])
    assert alone[0] + 0.01 < max(alone) == pytest.approx(run["score"][7], abs=1e-5)


def test_what_was_adopted_counts_where_documents_bring_the_first_stages_scores():
    adopted = Adopted(weight=0.5, depth=4, slope=2.0, intercept=-1.0, evidence={})
    first = [3.0, 9.0, 1.0, 5.0, 4.0]
    documents = [{"text": text, "score": x} for text, x in zip(TEXTS, first, strict=True)]
    with client(adopted) as ask:
        plain = ask.post("/rerank", json={"query": QUERY, "documents": TEXTS}).json()["results"]
        assert by_index(plain, "relevance_score") == pytest.approx(expit(logits()), abs=1e-6)
        answer = ask.post("/rerank", json={"query": QUERY, "documents": documents}).json()["results"]
        told = ask.get("/metrics").text
    assert "rdl_pairs_total 9.0" in told  # the first stage's worst is not read
    top = [0, 1, 3, 4]
    parts = [(x[top] - x[top].mean()) / x[top].std() for x in (logits(), np.array(first))]
    expected = np.zeros(5)
    expected[top] = expit(2 * (0.5 * parts[0] + 0.5 * parts[1]) - 1)
    assert by_index(answer, "relevance_score") == pytest.approx(expected, abs=1e-5)


@pytest.mark.parametrize(("body", "status", "says"), [
    ({"query": QUERY}, 422, "expected documents or texts"), ({}, 422, "query: Field required"),
    ({"query": QUERY, "documents": []}, 422, "documents: List should have at least 1"),
    ({"query": 7, "documents": TEXTS}, 422, "query: Input should be a valid string"),
    ({"query": QUERY, "documents": [{"body": "x"}]}, 422, "documents.0"),
    ({"query": QUERY, "documents": TEXTS, "top_n": 0}, 422, "top_n: .*greater than or equal to 1"),
    ({"query": QUERY, "documents": ["x"] * 11}, 413, "at most 10 documents"),
    ({"query": QUERY, "documents": ["x" * 3000]}, 413, "at most 2000 bytes"),
    ("{", 422, "JSON"), (b"\xff\xfe", 422, "JSON"), ("[" * 1500, 400, ""),
    ('{"query": "\\ud800", "documents": ["a"]}', 422, "query: .*surrogates not allowed"),
])  # fmt: skip
def test_refusals_say_what_was_expected(body, status, says):
    kind = {"content": body} if isinstance(body, (str, bytes)) else {"json": body}
    with client(most_documents=10, most_bytes=2000) as ask:
        answer = ask.post("/rerank", headers={"content-type": "application/json"}, **kind)
        assert answer.status_code == status
        assert re.search(says, answer.json()["message"])
        assert "Traceback" not in answer.text


def test_a_key_is_asked_for_everywhere_but_for_health(monkeypatch):
    monkeypatch.setenv("RDL_SERVE_KEY", "secret")
    with client() as ask:
        for key, status in (("secret", 200), ("secre", 401), ("", 401), ("é", 401)):
            headers = {"authorization": f"Bearer {key}".encode()}
            answer = ask.post("/score", json={"text_1": "a", "text_2": "b"}, headers=headers)
            assert answer.status_code == status
        assert (ask.get("/health").status_code, ask.get("/metrics").status_code) == (200, 401)


def test_broken_weights_are_no_stack_trace_and_too_many_waiting_are_told():
    async def ask(app, n):
        transport = httpx.ASGITransport(app=app, raise_app_exceptions=False)
        async with httpx.AsyncClient(transport=transport, base_url="http://fox") as http:
            body = {"query": QUERY, "documents": TEXTS}
            await http.get("/health")  # what is imported late would count as waiting
            answers = await asyncio.gather(*(http.post("/rerank", json=body) for _ in range(n)))
            return *answers, await http.get("/metrics")

    original = STUDENT.score
    try:
        STUDENT.score = lambda *a, **b: time.sleep(3) or original(*a, **b)
        app = make_app(STUDENT, ServeConfig(student="fox", most_waiting=2, longest_wait_s=2))
        *answers, _ = asyncio.run(ask(app, 9))
        assert {answer.status_code for answer in answers} == {429, 503}
        STUDENT.score = lambda *a, **b: original(*a, **b) * float("nan")
        app = make_app(STUDENT, ServeConfig(student="fox"))
        answer, metrics = asyncio.run(ask(app, 1))
        assert 'rdl_requests_total{path="/rerank",status="500"} 1.0' in metrics.text
        told = {"message": "scoring failed: see the server's log"}
        assert (answer.status_code, answer.json()) == (500, told)
    finally:
        del STUDENT.score


def test_a_body_that_does_not_come_is_given_up():
    app, sent = make_app(STUDENT, ServeConfig(student="fox", longest_wait_s=0.2)), []
    scope = {"type": "http", "method": "POST", "path": "/rerank", "raw_path": b"", "query_string": b"",
             "headers": [(b"content-type", b"application/json")]}  # fmt: skip
    parts = iter([{"type": "http.request", "body": b"{", "more_body": True}])

    async def receive():
        for part in parts:
            return part
        await asyncio.sleep(60)

    async def send(message):
        sent.append(message)

    asyncio.run(app(scope, receive, send))
    assert sent[0]["status"] == 408


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    """A real server: its address, its process, and how to start it again at the same address."""
    folder = tmp_path_factory.mktemp("served")
    STUDENT.save_pretrained(folder)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = "127.0.0.1:{1}".format(*free.getsockname())
    command = [sys.executable, "-m", "rdl_tools.cli", "serve", str(folder), "--port", address[10:]]
    command += ["--precision", "float32", "--most-waiting", "999"]
    running = SimpleNamespace(address=f"http://{address}")

    def start():
        errors = subprocess.PIPE
        running.process = subprocess.Popen(command, env=child_environment(), stderr=errors, text=True)

    running.start = start
    start()
    eventually(lambda: httpx.get(f"{running.address}/health"))
    yield running
    running.process.kill()


def eventually(ask):
    """The answer, though the server may be starting, or be killed before it answers."""
    for _ in range(1800):
        try:
            return ask()
        except httpx.TransportError:
            time.sleep(0.1)
    raise TimeoutError("the server did not come back within three minutes")


def test_coheres_own_client_is_answered(server):
    api = cohere.ClientV2(api_key="any", base_url=server.address)
    answer = api.rerank(model="m", query=QUERY, documents=TEXTS, top_n=3)
    best = np.argsort(-logits())[:3].tolist()
    assert [x.index for x in answer.results] == best
    found = [x.relevance_score for x in answer.results]
    assert found == pytest.approx(expit(logits())[best].tolist(), abs=1e-6)


ASK_BY_LANGCHAIN = """
import sys
from cohere import ClientV2
from langchain_cohere import CohereRerank
from langchain_core.documents import Document

address, query, *texts = sys.argv[1:]
client = ClientV2(api_key="any", base_url=address)
reranker = CohereRerank(client=client, model="m", top_n=3, cohere_api_key="any")
for document in reranker.compress_documents([Document(text) for text in texts], query):
    print(texts.index(document.page_content), document.metadata["relevance_score"])
"""


@pytest.mark.skipif(not LANGCHAIN.exists(), reason="make peers makes its environment")
def test_langchains_adapter_is_answered(server):
    command = [LANGCHAIN, "-c", ASK_BY_LANGCHAIN, server.address, QUERY, *TEXTS]
    answer = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    ranking = [(int(n), float(score)) for n, score in map(str.split, answer.splitlines())]
    best = np.argsort(-logits())[:3].tolist()
    assert [n for n, _ in ranking] == best
    assert [score for _, score in ranking] == pytest.approx(expit(logits())[best].tolist(), abs=1e-6)


def test_no_answer_of_a_thousand_is_lost_or_mixed_up_though_clients_and_servers_go_away(server):
    """1,000 requests over 32 connections; one in ten is cut off, and the server is killed twice."""
    draw, failed, lock = random.Random(0), [], threading.Lock()
    works = [[" ".join(draw.choices(WORDS, k=draw.randint(0, 9))) for _ in range(draw.randint(1, 12))]
             for _ in range(1000)]  # fmt: skip
    expected = [expit(logits(f"w{n % 40}", texts)) for n, texts in enumerate(works)]
    left, host_and_port = list(range(1000)), server.address[7:].split(":")

    def ask():
        with httpx.Client(base_url=server.address, timeout=60) as http:
            while True:
                with lock:
                    if not left:
                        return
                    n = left.pop()
                    if n in (600, 300):
                        server.process.kill()
                        server.start()
                body = {"query": f"w{n % 40}", "documents": works[n]}
                if n % 10 == 0:
                    with suppress(OSError), socket.create_connection(host_and_port) as cut:
                        cut.send(b"POST /rerank HTTP/1.1\r\nHost: fox\r\nContent-Length: 99\r\n\r\n{")
                answer = eventually(lambda: http.post("/rerank", json=body))
                good = answer.is_success and np.allclose(
                    by_index(answer.json()["results"], "relevance_score"), expected[n], atol=1e-5
                )
                if not good:
                    failed.append((n, answer.text))

    threads = [threading.Thread(target=ask) for _ in range(32)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not left
    assert not failed


schema = schemathesis.openapi.from_asgi(
    "/openapi.json", make_app(STUDENT, ServeConfig(student="fox")))  # fmt: skip


@schema.parametrize()
@settings(max_examples=EXAMPLES, deadline=None, suppress_health_check=list(HealthCheck))
def test_no_generated_request_breaks_it(case):
    answer = case.call()
    assert answer.status_code < 500
    assert "Traceback" not in answer.text


def test_on_sigterm_what_came_is_answered_and_nothing_was_logged_of_texts(server):
    answers, client = [], httpx.Client(base_url=server.address)
    client.get("/health")  # connects, which can take longer than the wait below
    body = {"query": QUERY, "documents": ["w1 w2 w3 secretword"] * 900}
    asking = threading.Thread(target=lambda: answers.append(client.post("/rerank", json=body)))
    asking.start()
    time.sleep(0.2)
    os.kill(server.process.pid, signal.SIGTERM)
    asking.join()
    assert answers[0].is_success
    assert "secretword" not in server.process.communicate(timeout=30)[1]
