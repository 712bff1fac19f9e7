"""Servers in one race: `PYTHONPATH=. python results/efficiency/serve.py`.

`rdl serve` and a plain server of FastAPI and sentence-transformers have the same weights and get the same
lists: TREC DL 2019 with BM25's top 100, 8 clients at once. Then 10,000 requests of 4 short texts each.
"""

import os
import subprocess
import sys
import tempfile
import threading
import time
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path

import httpx
import numpy as np
import pandas as pd
import psutil

from rdl_core.files import versions, write_json
from rdl_study.bench.measure import UNCUT, _work
from rdl_study.profile import load_profile
from rdl_study.store import machine

CLIENTS, REQUESTS, TURNS, SHORT = 8, 24, int(os.environ.get("TURNS", 5)), 10_000
FILE = Path(__file__).parent / "cpu" / "serve.csv"
PLAIN = """
import sys
import uvicorn
from fastapi import FastAPI
from pydantic import BaseModel
from sentence_transformers import CrossEncoder

model, app = CrossEncoder(sys.argv[1]), FastAPI()

class Request(BaseModel):
    query: str
    documents: list[str]

@app.post("/rerank")
def rerank(body: Request):
    pairs = [(body.query, document) for document in body.documents]
    scores = model.predict(pairs, show_progress_bar=False)
    return [{"index": int(i), "relevance_score": float(scores[i])} for i in (-scores).argsort()]

@app.get("/health")
def health():
    return {}

uvicorn.run(app, port=int(sys.argv[2]), log_level="warning")
"""


def started(command, port):
    process = subprocess.Popen([sys.executable, *command], stderr=subprocess.DEVNULL)
    for _ in range(600):
        try:
            httpx.get(f"http://127.0.0.1:{port}/health")
            return process
        except httpx.TransportError:
            time.sleep(0.1)
    raise OSError(f"{command} does not answer")


def asked(port, bodies):
    """Seconds of each request, by clients at the same time, and of all."""
    seconds, left, lock = [], list(bodies), threading.Lock()

    def client():
        with httpx.Client(timeout=300) as http:
            while True:
                with lock:
                    if not left:
                        return
                    body = left.pop()
                began = time.perf_counter()
                http.post(f"http://127.0.0.1:{port}/rerank", json=body).raise_for_status()
                seconds.append(time.perf_counter() - began)

    began = time.perf_counter()
    clients = [threading.Thread(target=client) for _ in range(CLIENTS)]
    for each in clients:
        each.start()
    for each in clients:
        each.join()
    return seconds, time.perf_counter() - began


with ExitStack() as stack:
    weights = Path(stack.enter_context(tempfile.TemporaryDirectory()))
    candidates = replace(load_profile("trec-dl").test, n_queries=4)
    lists = _work(candidates, "all-MiniLM-L6-v2", weights, UNCUT)["lists"]
    bodies = [{"query": x["query"], "documents": x["passages"]} for x in lists]
    limits = [f"--{name.replace('_', '-')}={x}" for name, x in UNCUT.items()]
    ours = ["-m", "rdl_core.cli", "serve", str(weights), *limits]
    commands = {
        "rdl serve": [*ours, "--port=8101", "--precision=float32"],
        "rdl serve, bfloat16": [*ours, "--port=8102", "--precision=bfloat16"],
        "FastAPI over sentence-transformers": ["-c", PLAIN, str(weights), "8103"],
    }
    ports = dict(zip(commands, (8101, 8102, 8103), strict=True))
    servers = {name: started(command, ports[name]) for name, command in commands.items()}
    for server in servers.values():
        stack.callback(server.kill)
    for port in ports.values():
        asked(port, bodies)  # does not count
    rows = []
    for turn in range(TURNS):
        for name, port in ports.items():
            seconds, all_s = asked(port, (bodies * REQUESTS)[:REQUESTS])
            pairs = sum(len(x["documents"]) for x in (bodies * REQUESTS)[:REQUESTS])
            rate = {"pairs_per_s": pairs / all_s, "p95_s": np.quantile(seconds, 0.95)}
            rows.append({"system": name, "turn": turn, **{x: round(y, 3) for x, y in rate.items()}})
            print(rows[-1], flush=True)
    memory = {}
    for part in range(5):
        short = [{"query": x["query"], "documents": [text[: 20 + n % 60] for text in x["documents"][:4]]}
                 for n in range(SHORT // 5) for x in [bodies[n % len(bodies)]]]  # fmt: skip
        asked(ports["rdl serve"], short)
        resident = psutil.Process(servers["rdl serve"].pid).memory_info().rss / 1e6
        memory[str((part + 1) * SHORT // 5)] = round(resident)
        print(memory, flush=True)
pd.DataFrame(rows).to_csv(FILE, index=False)
about = {"clients": CLIENTS, "requests": REQUESTS, "lists": [len(x["documents"]) for x in bodies]}
write_json(FILE.with_suffix(".json"), about | {"resident_mb": memory} | machine() | {"versions": versions()})
