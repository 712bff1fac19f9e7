"""What runs in the processes that are broken: the real commands, in a folder of their own."""

import json
import os
import resource
import shutil
import sys
import threading
from pathlib import Path

import nbformat
import torch
from transformers import BertModel

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # where pytest finds them by itself
from chat_server import ChatServer
from conftest import make_model, make_student, make_tokenizer

from rdl_core import cli
from rdl_core.commands import nodes
from rdl_core.data import downloads, tokens
from rdl_core.tokens import TokenStore
from rdl_study import publish
from rdl_study.store import project_folder

torch.set_num_threads(1)
LIMITS = ["--query-tokens", "5", "--passage-tokens", "20"]


def distil_words(inputs):
    return [
        "distill", f"{inputs}/requests.jsonl", "out", "--encoder", f"{inputs}/encoder", *LIMITS,
        "--list-size", "6", "--queries-per-step", "4", "--steps", "40", "--precision", "float32",
        "--config", f"{inputs}/stage.yaml",
    ]  # fmt: skip


def distil(folder, inputs, url):
    rdl(*distil_words(inputs))


def rerank(folder, inputs, url):
    rdl("rerank", f"{inputs}/student", f"{inputs}/requests.jsonl", "out.run", *LIMITS,
        "--precision", "float32")  # fmt: skip


def teach(folder, inputs, url):
    words = ["--base-url", url, "--model", "m", "--window-size", "6", "--stride", "3"]
    rdl("teach", f"{inputs}/worth.jsonl", "out", *words, "--in-flight", "2")


def fetch(folder, inputs, url):
    os.environ["RDL_CACHE"] = str(folder / "cache")
    os.environ.pop("RDL_MIRROR", None)
    downloads._REGISTRY = inputs / "registry.json"
    rdl("fetch", "vaswani")


def tokenise(folder, inputs, url):
    tokens._CHUNK = 200
    texts = [f"w{n % 40} w{n % 7} w{n % 11}" for n in range(40_000)]
    tokenizer = make_tokenizer("bert")
    TokenStore.build(texts, tokenizer, folder / "store", max_tokens=8, total=len(texts))


def execute_page(folder, inputs, url):
    """A notebook, by papermill; the kernel of one that is killed ends by itself."""
    os.environ["RDL_RUNS"] = str(folder / "runs")
    executed = publish.page("mini", "costs").folder / "page.ipynb"
    cells = nbformat.read(executed, as_version=4).cells
    (folder / "outputs.json").write_text(json.dumps([cell.get("outputs") for cell in cells]))


def build_book(folder, inputs, url):
    """The last job of the graph, for a book of two pages; a builder that it started lives on."""
    os.environ["RDL_RUNS"] = str(folder / "runs")
    shutil.copytree(inputs / "book", folder, dirs_exist_ok=True)
    publish.NOTEBOOKS = {"costs": publish.NOTEBOOKS["costs"]}
    nodes.project_folder = lambda: folder
    nodes.make_live = lambda *_: "without a live page, which needs a student"
    nodes.app(["build"], standalone_mode=True)


def make_book(folder):
    """What the book of two pages is built from."""
    for name in ("_config.yml", "book/references.bib"):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(project_folder() / name, folder / name)
    for name in ("book/_ext", "book/_static", "results/efficiency"):
        shutil.copytree(project_folder() / name, folder / name)
    (folder / "_toc.yml").write_text(
        "format: jb-book\nroot: book/pages/efficiency\nchapters: [{file: book/pages/costs}]\n"
    )
    (folder / "book" / "pages").mkdir()
    page = nbformat.v4.new_notebook(cells=[nbformat.v4.new_markdown_cell("# Efficiency", id="0")])
    nbformat.write(page, folder / "book" / "pages" / "efficiency.ipynb")


#: What is run, and the files that it is for.
TASKS = {
    "fetch": (fetch, ["cache/downloads/vaswani/[abc]"]),
    "token store": (tokenise, ["store/*"]),
    "teach": (teach, ["out/*.run", "out/*.parquet", "out/requests.jsonl"]),
    "distill": (distil, ["out/model/*", "out/log.jsonl", "out/config.json"]),
    "rerank": (rerank, ["out.run"]),
    "page": (execute_page, ["outputs.json"]),
    "book": (build_book, ["_build/html/**/*.html", "book/pages/*.ipynb"]),
}  # fmt: skip


def rdl(*words):
    cli.app(list(words), standalone_mode=True)


def run(task, folder, inputs, url, most_bytes):
    """The target of a process: what it says goes to ``said.txt``."""
    os.chdir(folder)
    said = os.open("said.txt", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(said, 1)
    os.dup2(said, 2)
    if most_bytes is not None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (most_bytes, resource.RLIM_INFINITY))
    TASKS[task][0](folder, inputs, url)


def make_inputs(folder):
    make_student().save_pretrained(folder / "student")
    BertModel(make_model("bert").config).save_pretrained(folder / "encoder")
    make_tokenizer("bert").save_pretrained(folder / "encoder")
    (folder / "stage.yaml").write_text("checkpoint_every: 4\n")
    make_book(folder / "book")


def chat_server():
    server = ChatServer(fault=lambda *_: {"wait_s": 0.02})
    threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
    return server
