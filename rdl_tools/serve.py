"""A server for a student: ``/rerank`` as Cohere, Jina, vLLM and TEI have it, and ``/score``.

Texts are tokenised as requests come; one thread scores all that wait together, in batches of a token
budget. Scores are logistic functions of the student's logits, which order the passages of a query.
Where the documents of a request bring the first stage's ``score``, what `rdl adopt` chose counts:
``relevance_score`` is then a probability of relevance, and 0 for documents below the adopted depth,
which are not read and keep their order. Texts are never logged.
"""

import asyncio
import hmac
import math
import os
import time
import uuid
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from pathlib import Path
from queue import SimpleQueue
from typing import Annotated, Any

import numpy as np
import pandas as pd
import prometheus_client as prometheus
import torch
import uvicorn
from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse, Response
from pydantic import AfterValidator, BaseModel, Field
from scipy.special import expit
from starlette.exceptions import HTTPException

from rdl_core.config import Positive
from rdl_core.cpu import engine
from rdl_core.cross_encoder import CrossEncoder
from rdl_core.devices import fitting
from rdl_core.rerank import token_budget_of
from rdl_core.tokens import TokenStore
from rdl_tools.adopt import Adopted, adopted_of
from rdl_tools.config import ServeConfig
from rdl_tools.student import open_student

__all__ = ["make_app", "serve"]

_PAIRS_AT_ONCE = 1024  # scored together; what comes meanwhile waits for the next turn
#: Text that UTF-8 can hold: JSON can name half a character, which no tokenizer takes.
_Text = Annotated[str, AfterValidator(lambda text: text.encode().decode())]


class Document(BaseModel):
    """A passage, perhaps with what the first stage gave it."""

    text: _Text
    score: Annotated[float, Field(allow_inf_nan=False)] | None = None


class RerankRequest(BaseModel):
    """A query, and `documents` (Cohere, Jina, vLLM) or `texts` (TEI). Other fields are ignored."""

    query: _Text
    documents: Annotated[list[_Text | Document], Field(min_length=1)] | None = None
    texts: Annotated[list[_Text], Field(min_length=1)] | None = None
    model: str | None = None
    top_n: Positive | None = None
    return_documents: bool = False
    max_tokens_per_doc: Positive | None = None
    return_text: bool = False
    raw_scores: bool = False
    truncate: bool = True


class ScoreRequest(BaseModel):
    """Pairs: a text and several, or two lists of the same length (vLLM)."""

    text_1: _Text | Annotated[list[_Text], Field(min_length=1)]
    text_2: _Text | Annotated[list[_Text], Field(min_length=1)]
    model: str | None = None


class _Scorer:
    """One thread that scores whatever waits, together."""

    def __init__(self, student: CrossEncoder, precision: str) -> None:
        self.student, self._engine = student, engine(student, precision)
        self._budget = token_budget_of(student.device)
        self.n_asked = 0  # requests that are not answered yet
        self._queue = SimpleQueue()  # token ids of queries and of passages, and the future scores
        self._thread = ThreadPoolExecutor(1)

    def tokenise(
        self, what: str, texts: list[str], limit: int, cut: int | None = None, truncate: bool = True
    ) -> list[list[int]]:
        """Token ids of texts, `cut` to so many, and to the limit unless `truncate` forbids that."""
        encoded = self.student.tokenizer(texts, add_special_tokens=False)["input_ids"]
        encoded = [ids[:cut] for ids in encoded]
        if not truncate and (longest := max(map(len, encoded))) > limit:
            too_long = f"a {what} of {longest} tokens is longer than {limit}"
            raise HTTPException(422, f"{too_long}, and truncate is false")
        return [ids[:limit] for ids in encoded]

    def scores(self, queries: list[list[int]], passages: list[list[int]]) -> asyncio.Future:
        """Logits of pairs, once it is their turn; cancel it if nobody waits for them any more."""
        scores = Future()
        self._queue.put((queries, passages, scores))
        self._thread.submit(self._score)  # once for each, so that none is left in the queue
        return asyncio.wrap_future(scores)

    def _score(self) -> None:
        """Score what waits, unless it was scored with others before."""
        queries, passages, futures, ends = [], [], [], []
        while len(passages) < _PAIRS_AT_ONCE and not self._queue.empty():
            own_queries, own_passages, future = self._queue.get()
            if future.set_running_or_notify_cancel():  # else it was cancelled
                queries += own_queries
                passages += own_passages
                futures.append(future)
                ends.append(len(passages))
        if not futures:
            return
        device = self.student.device
        try:
            stores = [TokenStore.from_lists(x).to(device) for x in (queries, passages)]
            rows = torch.arange(len(passages), device=device)
            score = partial(self._engine.score, *stores, rows, rows)
            scores, self._budget = fitting(score, self._budget)
            if not np.isfinite(scores := scores.cpu().numpy()).all():
                raise ValueError("the student scored nan or infinity: its weights are broken")
            for future, own_scores in zip(futures, np.split(scores, ends[:-1]), strict=True):
                future.set_result(own_scores)
        except Exception as error:  # the next requests may be answered
            for future in futures:
                future.set_exception(error)


def make_app(
    student: CrossEncoder, config: ServeConfig, *, precision: str = "float32",
    adopted: Adopted | None = None,
) -> FastAPI:  # fmt: skip
    """The server as an ASGI application; `adopted` counts where documents bring scores.

    Errors are JSON with a ``message``: 401 key, 408 too slow, 413 too large, 422 not understood, 429
    too many wait, 503 waited too long.
    """
    scorer, registry = _Scorer(student, precision), prometheus.CollectorRegistry()
    pairs = prometheus.Counter("rdl_pairs", "Pairs scored.", registry=registry)
    tokens = prometheus.Counter("rdl_tokens", "Their tokens, special ones too.", registry=registry)
    requests = prometheus.Counter("rdl_requests", "Answers.", ["path", "status"], registry=registry)
    seconds = prometheus.Histogram("rdl_seconds", "Time to an answer.", ["path"], registry=registry)
    waiting = prometheus.Gauge("rdl_waiting", "Requests without an answer yet.", registry=registry)
    waiting.set_function(lambda: scorer.n_asked)
    name, key = Path(config.student).name, os.environ.get(config.key_variable)
    app = FastAPI(title=f"Re-ranker {name}", docs_url=None, redoc_url=None)
    app.add_middleware(_limited, most_bytes=config.most_bytes, longest_s=config.longest_wait_s)

    @app.middleware("http")
    async def measured(request: Request, answer: Callable) -> Response:
        started, path, status = time.perf_counter(), request.url.path, 500  # where scoring fails
        token = request.headers.get("authorization", "").removeprefix("Bearer ")
        try:
            if path == "/health" or not key or hmac.compare_digest(token.encode(), key.encode()):
                response = await answer(request)
            else:
                response = _refusal(401, f"expected the key of {config.key_variable} as a bearer token")
            status = response.status_code
            return response
        finally:
            path = path if path in paths else "other"
            requests.labels(path, status).inc()
            seconds.labels(path).observe(time.perf_counter() - started)

    @app.exception_handler(RequestValidationError)
    async def not_understood(_: Request, error: RequestValidationError) -> Response:
        places = (f"{'.'.join(map(str, x['loc'][1:]))}: {x['msg']}" for x in error.errors()[:3])
        return _refusal(422, "; ".join(places))

    @app.exception_handler(HTTPException)
    async def refused(_: Request, error: HTTPException) -> Response:
        return _refusal(error.status_code, str(error.detail))

    @app.exception_handler(Exception)
    async def broken(_: Request, error: Exception) -> Response:
        return _refusal(500, "scoring failed: see the server's log")

    def check_number(texts: list) -> None:
        if len(texts) > config.most_documents:
            raise HTTPException(413, f"expected at most {config.most_documents} documents")

    async def logits(
        request: Request, queries: list[str], passages: list[str], *, cut: int | None = None,
        truncate: bool = True,
    ) -> tuple[np.ndarray, int]:  # fmt: skip
        """Logits of pairs, or of one query's, and how many tokens they have."""
        if scorer.n_asked >= config.most_waiting:
            raise HTTPException(429, f"{config.most_waiting} requests wait already: try again later")
        scorer.n_asked += 1
        try:
            tokenise = partial(asyncio.to_thread, scorer.tokenise, truncate=truncate)
            query_ids, passage_ids = await asyncio.gather(
                tokenise("query", queries, student.query_tokens),
                tokenise("text", passages, student.passage_tokens * student.chunks, cut),
            )
            query_ids = query_ids * len(passages) if len(queries) == 1 else query_ids
            scoring = scorer.scores(query_ids, passage_ids)
            gone = asyncio.ensure_future(_gone(request))
            first = {"timeout": config.longest_wait_s, "return_when": asyncio.FIRST_COMPLETED}
            _, unfinished = await asyncio.wait({scoring, gone}, **first)
            for task in unfinished:
                task.cancel()
            if scoring in unfinished:
                raise HTTPException(503, f"waited {config.longest_wait_s:g} s: try again later")
        finally:
            scorer.n_asked -= 1
        n_tokens, size, special = 0, student.passage_tokens, student.template.n_tokens
        for x, y in zip(query_ids, passage_ids, strict=True):
            n_tokens += len(y) + max(1, -(-len(y) // size)) * (len(x) + special)
        pairs.inc(len(passages))
        tokens.inc(n_tokens)
        return scoring.result(), n_tokens

    @app.post("/rerank")
    @app.post("/v1/rerank")
    @app.post("/v2/rerank")
    async def rerank(body: RerankRequest, request: Request) -> Any:
        if (body.documents is None) == (body.texts is None):
            raise HTTPException(422, "documents: expected documents or texts, one of the two")
        documents = [x if isinstance(x, Document) else Document(text=x)
                     for x in body.documents or body.texts]  # fmt: skip
        check_number(documents)
        texts, first_stage = [x.text for x in documents], [x.score for x in documents]
        options = {"cut": body.max_tokens_per_doc, "truncate": body.truncate}
        scored, frame = np.arange(len(texts)), None
        if adopted and None not in first_stage:
            ids = [*map(str, scored)]
            frame = pd.DataFrame({"query_id": "q", "doc_id": ids, "score": first_stage})
            frame["rank"] = frame["score"].rank(ascending=False, method="first").astype(int)
            scored = np.flatnonzero(frame["rank"] <= adopted.depth)
        passages, scores = [texts[i] for i in scored], np.full(len(texts), np.nan)
        scores[scored], n_tokens = await logits(request, [body.query], passages, **options)
        if frame is not None:
            scores = adopted.apply(frame, scores).set_index("doc_id")["score"][ids].to_numpy(float)
        elif not body.raw_scores:
            scores = expit(scores)
        order = np.argsort(-scores, kind="stable")[: body.top_n].tolist()
        if frame is not None:  # what was not scored has minus its rank; clients expect 0 to 1
            scores = scores.clip(min=0)
        if body.texts is not None:
            results = [{"index": i, "score": float(scores[i])} for i in order]
            return [x | {"text": texts[x["index"]]} if body.return_text else x for x in results]
        results = [{"index": i, "relevance_score": float(scores[i])} for i in order]
        for result in results if body.return_documents else ():
            result["document"] = {"text": texts[result["index"]]}
        return {
            "id": str(uuid.uuid4()), "model": body.model or name, "results": results,
            "usage": {"total_tokens": n_tokens}, "meta": {"api_version": {"version": "2"}},
        }  # fmt: skip

    @app.post("/score")
    @app.post("/v1/score")
    async def score(body: ScoreRequest, request: Request) -> Any:
        left, right = ([x] if isinstance(x, str) else x for x in (body.text_1, body.text_2))
        check_number(right)
        if len(left) not in (1, len(right)):
            expected = f"one text, or as many as text_2 has, {len(right)}"
            raise HTTPException(422, f"text_1: expected {expected}; got {len(left)}")
        scores, n_tokens = await logits(request, left, right)
        rows = enumerate(expit(scores).tolist())
        data = [{"index": i, "object": "score", "score": score} for i, score in rows]
        return {"id": str(uuid.uuid4()), "object": "list", "created": int(time.time()),
                "model": body.model or name, "data": data,
                "usage": {"prompt_tokens": n_tokens, "total_tokens": n_tokens}}  # fmt: skip

    @app.get("/health")
    async def health() -> dict[str, str]:
        return {"status": "ok"}

    @app.get("/metrics", response_class=Response)
    async def metrics() -> Response:
        return Response(prometheus.generate_latest(registry), media_type="text/plain; version=0.0.4")

    paths = {route.path for route in app.routes}
    return app


def serve(config: ServeConfig) -> None:
    """`rdl serve`: answer until stopped; on SIGTERM, requests that came are answered first."""
    student, precision = open_student(config)
    app = make_app(student, config, precision=precision, adopted=adopted_of(config.student))
    uvicorn.run(
        app, host=config.host, port=config.port, log_level="warning", access_log=False,
        timeout_graceful_shutdown=math.ceil(config.longest_wait_s),
    )  # fmt: skip


def _limited(app: Callable, most_bytes: int, longest_s: float) -> Callable:
    """Refuses bodies that are too large, whatever their headers say, or that do not come."""

    async def limited(scope: dict, receive: Callable, send: Callable) -> None:
        n_bytes, more = 0, True

        async def counted() -> dict:
            nonlocal n_bytes, more
            try:  # behind the body comes only word that the client is gone
                message = await asyncio.wait_for(receive(), longest_s if more else None)
            except TimeoutError:
                raise HTTPException(408, f"the body did not come within {longest_s:g} s") from None
            n_bytes += len(message.get("body", b""))
            more = message.get("more_body", False)
            if n_bytes > most_bytes:
                raise HTTPException(413, f"expected a body of at most {most_bytes} bytes")
            return message

        await app(scope, counted if scope["type"] == "http" else receive, send)

    return limited


async def _gone(request: Request) -> None:
    """Wait until the client is."""
    while (await request.receive())["type"] != "http.disconnect":
        pass


def _refusal(status: int, message: str) -> Response:
    return JSONResponse({"message": message}, status)
