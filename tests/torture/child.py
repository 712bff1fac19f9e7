"""What runs in the processes that are broken: the real commands on tiny data, in their own folder."""

import hashlib
import json
import os
import random
import resource
import shutil
import sys
import threading
import time
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import nbformat
import pandas as pd
import torch
from transformers import BertModel

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # where pytest finds them by itself
from chat_server import ChatServer
from conftest import make_model, make_student, make_tokenizer

from rdl_core import tokens
from rdl_core.cli import app
from rdl_core.data import downloads
from rdl_core.data.formats import write_requests
from rdl_study import cli, live, pages
from rdl_study.store import project_folder

torch.set_num_threads(1)
ASKED = "--model m --window-size 6 --stride 3 --in-flight 2"
LIMITS = "--query-tokens 5 --passage-tokens 20 --precision float32"
DISTILL = f"--list-size 6 --queries-per-step 4 --steps 40 --checkpoint-every 4 {LIMITS}"
COMMANDS = {
    "fetch": "fetch vaswani",
    "teach": f"teach {{0}}/worth.jsonl out --base-url {{1}} {ASKED}",
    "distill": f"distill {{0}}/requests.jsonl out --encoder {{0}}/encoder {DISTILL}",
    "rerank": f"rerank {{0}}/student {{0}}/requests.jsonl out.run {LIMITS}",
}
COMMANDS["two processes"] = COMMANDS["distill"]
#: What is run, and the files that it is for.
TASKS = {
    "fetch": ["cache/downloads/vaswani/[abc]"],
    "token store": ["store/*"],
    "teach": ["out/*.run", "out/*.parquet", "out/requests.jsonl"],
    "distill": ["out/model/*", "out/log.jsonl", "out/config.json"],
    "rerank": ["out.run"],
    "page": ["outputs.json"],
    "two processes": ["out/model/*", "out/log.jsonl", "out/config.json"],
    "book": ["_build/html/**/*.html", "book/pages/*.ipynb"],
}


def run(task, folder, inputs, url, most_bytes):
    """The target of a process: its messages go to ``said.txt``."""
    os.chdir(folder)
    said = os.open("said.txt", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(said, 1)
    os.dup2(said, 2)
    if most_bytes is not None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (most_bytes, resource.RLIM_INFINITY))
    os.environ |= {"RDL_CACHE": str(folder / "cache"), "RDL_RUNS": str(folder / "runs")}
    os.environ.pop("RDL_MIRROR", None)
    words = COMMANDS.get(task, "").format(inputs, url).split()
    if task == "token store":
        tokens._CHUNK = 200
        texts = [f"w{n % 40} w{n % 7} w{n % 11}" for n in range(40_000)]
        more = {"max_tokens": 8, "total": len(texts)}
        tokens.TokenStore.build(texts, make_tokenizer("bert"), folder / "store", **more)
    elif task == "page":  # by papermill; the kernel of one that is killed ends by itself
        executed = nbformat.read(pages.page("mini", "costs").folder / "page.ipynb", as_version=4)
        outputs = [cell.get("outputs") for cell in executed.cells]
        (folder / "outputs.json").write_text(json.dumps(outputs))
    elif task == "book":  # of two pages, one of which is executed
        shutil.copytree(inputs / "book", folder, dirs_exist_ok=True)
        pages.notebooks, cli.project_folder = lambda: ["costs"], lambda: folder
        live.make_live = lambda *_: "without a live page, which needs a student"
        cli.build([])
    elif task == "two processes":  # as torchrun and accelerate launch start them
        launch = "-m torch.distributed.run --standalone --nproc-per-node 2 -m rdl_core.cli"
        os.environ["OMP_NUM_THREADS"] = "1"
        os.execv(sys.executable, [sys.executable, *launch.split(), *words])
    else:
        downloads._REGISTRY = inputs / "registry.json" if task == "fetch" else downloads._REGISTRY
        app(words)


class Slow(SimpleHTTPRequestHandler):
    """Sends files slowly."""

    def copyfile(self, source, output):
        while piece := source.read(1 << 14):
            output.write(piece)
            time.sleep(0.005)

    def log_message(self, *_):
        pass


def make_inputs(folder):
    """Models, lists, the sources of a book, and files on a server; gives the chat server's url."""
    folder.mkdir()
    make_student().save_pretrained(folder / "student")
    BertModel(make_model("bert").config).save_pretrained(folder / "encoder")
    make_tokenizer("bert").save_pretrained(folder / "encoder")
    frame = pd.DataFrame(
        {"query_id": f"q{q}", "query": f"w{q} w{q + 1}", "doc_id": f"q{q}d{i}", "rank": i + 1,
         "text": " ".join(f"w{(7 * q + 3 * i + k) % 40}" for k in range(12))}
        for q in range(30) for i in range(12)
    )  # fmt: skip
    write_requests(frame, folder / "requests.jsonl")
    numbers = [str(37 * n % 1000) for n in range(len(frame))]  # what the chat server ranks by
    write_requests(frame.assign(text=numbers), folder / "worth.jsonl")
    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(Slow, directory=str(folder)))
    server.handle_error = lambda *_: None  # clients that are killed are no news
    (folder / "vaswani").mkdir()
    rows, draw = [], random.Random(0)
    for name in ("vaswani/a", "vaswani/b", "vaswani/c"):
        (folder / name).write_bytes(raw := draw.randbytes(400_000))
        about = {"url": f"http://127.0.0.1:{server.server_port}/{name}", "size_bytes": len(raw)}
        digits = hashlib.sha256(raw).hexdigest()
        rows.append({"name": name, "hash": f"sha256:{digits}", "what": "noise", **about})
    (folder / "registry.json").write_text(json.dumps(rows))
    book, root = folder / "book", project_folder()
    for name in ("book/_ext", "book/_static", "results/efficiency"):
        shutil.copytree(root / name, book / name)
    for name in ("_config.yml", "book/references.bib"):
        shutil.copy(root / name, book / name)
    toc = "format: jb-book\nroot: book/pages/efficiency\nchapters: [{file: book/pages/costs}]\n"
    (book / "_toc.yml").write_text(toc)
    (book / "book" / "pages").mkdir()
    page = nbformat.v4.new_notebook(cells=[nbformat.v4.new_markdown_cell("# Efficiency", id="0")])
    nbformat.write(page, book / "book" / "pages" / "efficiency.ipynb")
    chat = ChatServer(fault=lambda *_: {"wait_s": 0.02})
    for each in (server, chat):
        threading.Thread(target=each.serve_forever, args=(0.01,), daemon=True).start()
    return chat.url
