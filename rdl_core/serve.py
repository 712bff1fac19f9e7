"""A server for a student: ``/rerank`` as Cohere, Jina, vLLM and TEI have it, and ``/score``.

Texts are tokenised as requests come; one thread scores all that wait together, in batches of a token
budget. Scores are logistic functions of the student's logits, which order the passages of a query.
Where the documents of a request bring the first stage's ``score``, what `rdl adopt` chose counts:
``relevance_score`` is then a probability of relevance. Texts are never logged.
"""

import asyncio
import hmac
import math
import os
import time
import uuid
from collections.abc import AsyncIterator, Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path
from typing import Annotated, Any, NamedTuple

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

from rdl_core.adopt import Adopted, adopted_of
from rdl_core.config import Positive, ServeConfig
from rdl_core.cpu import engine
from rdl_core.cross_encoder import CrossEncoder
from rdl_core.devices import fitting
from rdl_core.rerank import open_student, token_budget_of
from rdl_core.tokens import TokenStore

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


class _Pairs(NamedTuple):
    """Token ids of pairs that wait for their scores."""

    queries: list[list[int]]
    passages: list[list[int]]
    scores: asyncio.Future


class _Scorer:
    """One thread that scores whatever waits, together."""

    def __init__(self, student: CrossEncoder, precision: str) -> None:
        self.student, self._engine = student, engine(student, precision)
        self._budget = token_budget_of(student.device)
        self.n_asked = 0  # requests that are not answered yet
        self._queue: asyncio.Queue[_Pairs] = asyncio.Queue()
        self._thread = ThreadPoolExecutor(1)

    def tokenise(self, texts: list[str], max_tokens: int | None) -> list[list[int]]:
        """Token ids of texts, cut to so many."""
        encoded = self.student.tokenizer(texts, add_special_tokens=False)
        return [ids[:max_tokens] for ids in encoded["input_ids"]]

    async def scores(self, queries: list[list[int]], passages: list[list[int]]) -> np.ndarray:
        """Logits of pairs, once it is their turn."""
        pairs = _Pairs(queries, passages, asyncio.get_running_loop().create_future())
        self._queue.put_nowait(pairs)
        return await pairs.scores  # cancelled if nobody waits for them any more

    async def work(self) -> None:
        """Score until cancelled."""
        while True:
            batch = [await self._queue.get()]
            while not self._queue.empty() and sum(len(x.passages) for x in batch) < _PAIRS_AT_ONCE:
                batch.append(self._queue.get_nowait())
            if not (batch := [pairs for pairs in batch if not pairs.scores.done()]):
                continue
            loop, ends = asyncio.get_running_loop(), np.cumsum([len(x.passages) for x in batch])
            error, parts = None, [None] * len(batch)
            try:
                scores = await loop.run_in_executor(self._thread, self._score, batch)
                parts = np.split(scores, ends[:-1])
            except Exception as problem:  # the next requests may be answered
                error = problem
            for pairs, own_scores in zip(batch, parts, strict=True):
                if not pairs.scores.done():
                    pairs.scores.set_exception(error) if error else pairs.scores.set_result(own_scores)

    def _score(self, batch: list[_Pairs]) -> np.ndarray:
        device = self.student.device
        queries = TokenStore.from_lists([ids for pairs in batch for ids in pairs.queries]).to(device)
        passages = TokenStore.from_lists([ids for pairs in batch for ids in pairs.passages]).to(device)
        rows = torch.arange(len(passages), device=device)
        score = partial(self._engine.score, queries, passages, rows, rows)
        scores, self._budget = fitting(score, self._budget)
        if not np.isfinite(scores := scores.cpu().numpy()).all():
            raise ValueError("the student scored nan or infinity: its weights are broken")
        return scores


def make_app(
    student: CrossEncoder, config: ServeConfig, *, precision: str = "float32",
    adopted: Adopted | None = None,
) -> FastAPI:  # fmt: skip
    """The server as an ASGI application; `adopted` counts where documents bring scores.

    Errors are JSON with a ``message``: 401 key, 408 too slow, 413 too large, 422 not understood, 429
    too many wait, 503 waited too long.
    """
    scorer, registry = _Scorer(student, precision), prometheus.CollectorRegistry()
    counts = {
        name: prometheus.Counter(f"rdl_{name}", what, registry=registry)
        for name, what in (("pairs", "Pairs scored."), ("tokens", "Their tokens, special ones too."))
    }
    requests = prometheus.Counter("rdl_requests", "Answers.", ["path", "status"], registry=registry)
    seconds = prometheus.Histogram("rdl_seconds", "Time to an answer.", ["path"], registry=registry)
    waiting = prometheus.Gauge("rdl_waiting", "Requests without an answer yet.", registry=registry)
    waiting.set_function(lambda: scorer.n_asked)
    name, key = Path(config.student).name, os.environ.get(config.key_variable)

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        worker = asyncio.create_task(scorer.work())
        yield
        worker.cancel()

    app = FastAPI(title=f"Re-ranker {name}", lifespan=lifespan, docs_url=None, redoc_url=None)
    app.add_middleware(_Limited, most_bytes=config.most_bytes, longest_s=config.longest_wait_s)

    @app.middleware("http")
    async def measured(request: Request, answer: Callable) -> Response:
        started, path = time.perf_counter(), request.url.path
        token = request.headers.get("authorization", "").removeprefix("Bearer ")
        open_to_all = path == "/health" or not key
        if open_to_all or hmac.compare_digest(token.encode(), key.encode()):
            response = await answer(request)
        else:
            response = _refusal(401, f"expected the key of {config.key_variable} as a bearer token")
        path = path if path in paths else "other"
        requests.labels(path, response.status_code).inc()
        seconds.labels(path).observe(time.perf_counter() - started)
        return response

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

    async def logits(
        request: Request, queries: list[str], passages: list[str], *, cut: int | None = None,
        truncate: bool = True,
    ) -> tuple[np.ndarray, int]:  # fmt: skip
        """Logits of pairs, or of one query's, and how many tokens they have."""
        if len(passages) > config.most_documents:
            raise HTTPException(413, f"expected at most {config.most_documents} documents")
        if scorer.n_asked >= config.most_waiting:
            raise HTTPException(429, f"{config.most_waiting} requests wait already: try again later")
        scorer.n_asked += 1
        try:
            query_ids, passage_ids = await asyncio.gather(
                asyncio.to_thread(scorer.tokenise, queries, None),
                asyncio.to_thread(scorer.tokenise, passages, cut),
            )
            limits = student.query_tokens, student.passage_tokens * student.chunks
            for what, ids, limit in (("query", query_ids, limits[0]), ("text", passage_ids, limits[1])):
                if not truncate and (longest := max(map(len, ids))) > limit:
                    too_long = f"a {what} of {longest} tokens is longer than {limit}"
                    raise HTTPException(422, f"{too_long}, and truncate is false")
            query_ids = query_ids * len(passages) if len(queries) == 1 else query_ids
            scoring = asyncio.ensure_future(scorer.scores(query_ids, passage_ids))
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
            n = min(len(y), limits[1])
            n_tokens += n + max(1, -(-n // size)) * (min(len(x), limits[0]) + special)
        counts["pairs"].inc(len(passages))
        counts["tokens"].inc(n_tokens)
        return scoring.result(), n_tokens

    @app.post("/rerank")
    @app.post("/v1/rerank")
    @app.post("/v2/rerank")
    async def rerank(body: RerankRequest, request: Request) -> Any:
        if (body.documents is None) == (body.texts is None):
            raise HTTPException(422, "documents: expected documents or texts, one of the two")
        documents = [x if isinstance(x, Document) else Document(text=x)
                     for x in body.documents or body.texts]  # fmt: skip
        texts, first_stage = [x.text for x in documents], [x.score for x in documents]
        options = {"cut": body.max_tokens_per_doc, "truncate": body.truncate}
        scores, n_tokens = await logits(request, [body.query], texts, **options)
        if adopted and None not in first_stage:
            scores = _adopted_scores(adopted, scores, first_stage)
        elif not body.raw_scores:
            scores = expit(scores)
        order = np.argsort(-scores, kind="stable")[: body.top_n].tolist()
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


class _Limited:
    """Refuses bodies that are too large, whatever their headers say, or that do not come."""

    def __init__(self, app: Callable, most_bytes: int, longest_s: float) -> None:
        self.app, self.most_bytes, self.longest_s = app, most_bytes, longest_s

    async def __call__(self, scope: dict, receive: Callable, send: Callable) -> None:
        n_bytes, more = 0, True

        async def counted() -> dict:
            nonlocal n_bytes, more
            try:  # behind the body comes only word that the client is gone
                message = await asyncio.wait_for(receive(), self.longest_s if more else None)
            except TimeoutError:
                raise HTTPException(408, f"the body did not come within {self.longest_s:g} s") from None
            n_bytes += len(message.get("body", b""))
            more = message.get("more_body", False)
            if n_bytes > self.most_bytes:
                raise HTTPException(413, f"expected a body of at most {self.most_bytes} bytes")
            return message

        await self.app(scope, counted if scope["type"] == "http" else receive, send)


async def _gone(request: Request) -> None:
    """Wait until the client is."""
    while (await request.receive())["type"] != "http.disconnect":
        pass


def _adopted_scores(adopted: Adopted, scores: np.ndarray, first_stage: list[float]) -> np.ndarray:
    """What `rdl adopt` chose, for one query's documents with the first stage's scores."""
    ids = [*map(str, range(len(first_stage)))]
    frame = pd.DataFrame({"query_id": "q", "doc_id": ids, "score": first_stage})
    frame["rank"] = frame["score"].rank(ascending=False, method="first").astype(int)
    run = adopted.apply(frame, scores).set_index("doc_id")["score"]
    return run[frame["doc_id"]].to_numpy(float)


def _refusal(status: int, message: str) -> Response:
    return JSONResponse({"message": message}, status)
