"""Servers in one race: `PYTHONPATH=. python results/efficiency/serve.py NAME` writes `cpu/NAME.*`.

`rdl serve` and a plain server of FastAPI and sentence-transformers have the same weights and get the
same lists: TREC DL 2019 with BM25's top 100, 8 clients at once. In the same turns, the process of
`rdl bench rank` ranks these lists one after the other, without a server. Then 10,000 requests of 4
short texts each.
"""

import json
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

from rdl_core.cpu import has_operators
from rdl_core.files import versions, write_json
from rdl_study.bench.measure import UNCUT, _ours, _work
from rdl_study.bench.race import _process
from rdl_study.profile import load_profile
from rdl_study.store import machine

CLIENTS, REQUESTS, TURNS, SHORT = 8, 16, int(os.environ.get("TURNS", 5)), 10_000
WITHOUT = "rdl bench rank, without a server, float32"
FILE = Path(__file__).parent / "cpu" / f"{sys.argv[1]}.csv"
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
    work = _work(candidates, "all-MiniLM-L6-v2", weights, UNCUT)
    lists = work["lists"]
    (weights / "work.json").write_text(json.dumps(work))
    rank = stack.enter_context(_process("rank", _ours(precision="float32"), weights / "work.json"))
    rank("0")
    bodies = [{"query": x["query"], "documents": x["passages"]} for x in lists]
    ours = ["-m", "rdl_tools.cli", "serve", str(weights)]
    ours += [f"--{name.replace('_', '-')}={x}" for name, x in UNCUT.items()]
    names = ["float32", "bfloat16"] if has_operators("bfloat16") else ["float32"]
    commands = {f"rdl serve, {x}": [*ours, f"--precision={x}", "--port"] for x in names}
    commands["FastAPI over sentence-transformers"] = ["-c", PLAIN, str(weights)]
    ports = {name: 8101 + n for n, name in enumerate(commands)}
    servers = {x: started([*words, str(ports[x])], ports[x]) for x, words in commands.items()}
    for server in servers.values():
        stack.callback(server.kill)
    for port in ports.values():
        asked(port, bodies)  # does not count
    rows, pairs = [], sum(len(x["documents"]) for x in (bodies * REQUESTS)[:REQUESTS])
    for turn in range(TURNS):
        for name, port in ports.items():
            seconds, all_s = asked(port, (bodies * REQUESTS)[:REQUESTS])
            rows.append({"system": name, "turn": turn, "pairs_per_s": round(pairs / all_s, 1),
                         "p95_s": round(float(np.quantile(seconds, 0.95)), 3)})  # fmt: skip
            print(rows[-1], flush=True)
        all_s = sum(rank(str(n % len(lists)))["ms"] for n in range(REQUESTS)) / 1000
        rows.append({"system": WITHOUT, "turn": turn, "pairs_per_s": round(pairs / all_s, 1)})
        print(rows[-1], flush=True)
    memory = {}
    for part in range(5):
        each = [bodies[n % len(bodies)] for n in range(SHORT // 5)]
        short = [{"query": x["query"], "documents": [y[: 20 + n % 60] for y in x["documents"][:4]]}
                 for n, x in enumerate(each)]  # fmt: skip
        asked(ports["rdl serve, float32"], short)
        resident = psutil.Process(servers["rdl serve, float32"].pid).memory_info().rss / 1e6
        memory[str((part + 1) * SHORT // 5)] = round(resident)
        print(memory, flush=True)
pd.DataFrame(rows).to_csv(FILE, index=False)
about = {"clients": CLIENTS, "requests": REQUESTS, "lists": [len(x["documents"]) for x in bodies]}
about |= {"resident_mb": memory, **machine(), "versions": versions()}
write_json(FILE.with_suffix(".json"), about)
