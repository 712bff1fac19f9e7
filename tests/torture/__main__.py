"""Break the commands on purpose, run them again, and compare with what nothing disturbed.

``python -m tests.torture`` writes ``results/torture/faults.csv``, a row for each fault, and a manifest.
Processes are really killed, disks really full, files really changed. A command that was run again ended
with the undisturbed result (resumed), or first said what to do and, that done, ended with it (refused);
or it did neither (lost), or ended with another result (wrong).
"""

import functools
import hashlib
import json
import multiprocessing
import os
import random
import resource
import shutil
import signal
import sys
import tempfile
import threading
import time
from datetime import UTC, datetime
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import nbformat
import pandas as pd
import torch
from safetensors.torch import load_file, save_file
from transformers import BertModel

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # where pytest finds them by itself
from chat_server import ChatServer
from common import make_model, make_student, make_tokenizer

from rdl_core import tokens
from rdl_core.data import downloads
from rdl_core.data.formats import write_requests
from rdl_study import cli, live, pages
from rdl_study.store import machine, project_folder
from rdl_tools.cli import app

torch.set_num_threads(1)
ENDS, REPETITIONS = ("resumed", "refused", "lost", "wrong"), 3
LIMITS = "--query-tokens 5 --passage-tokens 20 --precision float32"
#: The command, and the files that it is for.
TASKS = {
    "fetch": ("fetch vaswani", "cache/downloads/vaswani/[abc]"),
    "token store": ("", "store/*"),
    "teach": ("teach {0}/worth.jsonl out --base-url {1} --model m --window-size 6 --stride 3 "
              "--in-flight 2", "out/*.run", "out/*.parquet", "out/requests.jsonl"),
    "distill": ("distill {0}/requests.jsonl out --encoder {0}/encoder --list-size 6 --steps 40 "
                f"--queries-per-step 4 --checkpoint-every 4 {LIMITS}",
                "out/model/*", "out/log.jsonl", "out/config.json"),
    "rerank": (f"rerank {{0}}/student {{0}}/requests.jsonl out.run {LIMITS}", "out.run"),
    "page": ("", "outputs.json"),
    "book": ("", "_build/html/**/*.html", "book/pages/*.ipynb"),
}  # fmt: skip


def command(task, folder, inputs, url, most_bytes):
    """The target of a process: a command on tiny data; its messages go to ``said.txt``."""
    os.chdir(folder)
    said = os.open("said.txt", os.O_WRONLY | os.O_APPEND)
    os.dup2(said, 1)
    os.dup2(said, 2)
    if most_bytes is not None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (most_bytes, resource.RLIM_INFINITY))
    os.environ |= {"RDL_CACHE": str(folder / "cache"), "RDL_RUNS": str(folder / "runs")}
    os.environ.pop("RDL_MIRROR", None)
    if task == "token store":
        tokens._CHUNK = 200
        texts = [f"w{n % 40} w{n % 7} w{n % 11}" for n in range(40_000)]
        more = {"max_tokens": 8, "total": len(texts)}
        tokens.TokenStore.build(texts, make_tokenizer("bert"), folder / "store", **more)
    elif task == "page":  # by papermill; the kernel of one that is killed ends by itself
        executed = nbformat.read(pages.page("mini", "pictures").folder / "page.ipynb", as_version=4)
        outputs = [cell.get("outputs") for cell in executed.cells]
        (folder / "outputs.json").write_text(json.dumps(outputs))
    elif task == "book":  # of two pages, one of which is executed
        shutil.copytree(inputs / "book", folder, dirs_exist_ok=True)
        pages.notebooks, cli.project_folder = lambda: ["pictures"], lambda: folder
        live.make_live = lambda *_: "without a live page, which needs a student"
        cli.build([])
    else:
        downloads._REGISTRY = inputs / "registry.json" if task == "fetch" else downloads._REGISTRY
        app(TASKS[task][0].format(inputs, url).split())


class Slow(SimpleHTTPRequestHandler):
    def copyfile(self, source, output):
        while piece := source.read(1 << 14):
            output.write(piece)
            time.sleep(0.005)


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
    server = ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Slow, directory=str(folder)))
    server.handle_error = Slow.log_message = lambda *_: None  # clients that are killed are no news
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
    linked = ("losses", "samplers")  # from the page that is executed
    names = ("pages/pictures", *(f"method/{name}" for name in linked))
    files = ", ".join(f"{{file: book/{name}}}" for name in names)
    toc = f"format: jb-book\nroot: book/pages/efficiency\nchapters: [{files}]\n"
    (book / "_toc.yml").write_text(toc)
    for name in ("pages", "method"):
        (book / "book" / name).mkdir()
    for name in linked:
        (book / "book" / "method" / f"{name}.md").write_text(f"# {name}\n")
    page = nbformat.v4.new_notebook(cells=[nbformat.v4.new_markdown_cell("# Efficiency", id="0")])
    nbformat.write(page, book / "book" / "pages" / "efficiency.ipynb")
    chat = ChatServer(fault=lambda *_: {"wait_s": 0.02})
    for each in (server, chat):
        threading.Thread(target=each.serve_forever, args=(0.01,), daemon=True).start()
    return chat.url


class Workshop:
    """Inputs, servers, and the results that nothing disturbed. Each command is a forked process."""

    def __init__(self, base):
        self.base, self.inputs = base, base / "inputs"
        self._context = multiprocessing.get_context("forkserver")
        self._context.set_forkserver_preload(["tests.torture.__main__"])
        self.url = make_inputs(self.inputs)

    def folder(self):
        return Path(tempfile.mkdtemp(dir=self.base))

    def run(self, task, folder, *, kill_after=300.0, most_bytes=None):
        """Run a task; its exit code, negative where it was killed, and its messages."""
        from tests.torture.__main__ import command  # a child finds it by this name

        (folder / "said.txt").write_text("")
        arguments = (task, folder, self.inputs, self.url, most_bytes)
        process = self._context.Process(target=command, args=arguments)
        process.start()
        process.join(kill_after)
        process.kill()
        process.join()
        return process.exitcode, (folder / "said.txt").read_text(errors="replace")

    @functools.cache  # noqa: B019 - there is one
    def whole(self, task):
        """The undisturbed result of a task, the folder, and how long it took."""
        folder, started = self.folder(), time.monotonic()
        code, said = self.run(task, folder)
        if code:
            raise RuntimeError(f"{task} failed undisturbed: {said}")
        return result(task, folder), folder, time.monotonic() - started

    def ended(self, task, folder, word="", mend=None, **limit):
        """Run, and once more where it is refused with this word and mended, perhaps in a new folder.

        Gives how it ended, compared with the undisturbed result, and the line that says what is wrong.
        """
        code, said = self.run(task, folder, **limit)
        end, line = "resumed", line_of(said)
        if code and mend and word in said:
            folder, end = mend() or folder, "refused"
            code, said = self.run(task, folder)
        if code == 0 and result(task, folder) != self.whole(task)[0]:
            end = "wrong"
        return ("lost" if code else end), line or line_of(said)


def result(task, folder):
    """SHA-256 of every file that a task is for."""
    paths = [path for pattern in TASKS[task][1:] for path in sorted(folder.glob(pattern))]
    return {path.relative_to(folder): hashlib.sha256(path.read_bytes()).digest() for path in paths}


def line_of(said):
    """The last line that says what went wrong."""
    lines = [line for line in said.splitlines() if "rror" in line or "changed since" in line]
    return lines[-1] if lines else ""


def killed(task, shop, draw):
    """SIGKILL once or twice at random moments, then to the end."""
    whole_s, codes = shop.whole(task)[2], []
    while -signal.SIGKILL not in codes:  # it was done before
        folder = shop.folder()
        waits_s = [draw.uniform(0, whole_s) for _ in range(draw.choice([1, 2]))]
        codes = [shop.run(task, folder, kill_after=wait_s)[0] for wait_s in waits_s]
    return shop.ended(task, folder)


def disk_full(task, shop, draw):
    """No file may grow past a size drawn below that of the largest of the result."""
    files, whole, _ = shop.whole(task)
    folder, largest = shop.folder(), max((whole / name).stat().st_size for name in files)
    # The limit holds for its messages, too, which must have room.
    limit = {"most_bytes": draw.randrange(2_000, largest)}
    return shop.ended(task, folder, "disk is full", lambda: folder, **limit)


def damaged(task, name, remedy, shop, draw, *, cut):
    """A file that an unfinished command left, or a finished one, changes before it runs again."""
    folder, (_, whole, whole_s) = shop.folder(), shop.whole(task)
    if remedy == "begun":
        while not (folder / name).exists() or (folder / "out/manifest.json").exists():
            folder = shop.folder()
            shop.run(task, folder, kill_after=draw.uniform(whole_s / 4, whole_s))
    else:
        shutil.copytree(whole, folder, dirs_exist_ok=True)
        for unfinished in remedy:
            (folder / unfinished).unlink()
    raw = bytearray((folder / name).read_bytes())
    place = draw.randrange(len(raw))
    raw[place] ^= 1 << draw.randrange(8)
    (folder / name).write_bytes(raw[:place] if cut else raw)
    mend = (folder / name).unlink if remedy == "begun" else shop.folder
    return shop.ended(task, folder, name.rpartition("/")[2], mend)


def weights_of_nan(task, shop, draw):
    """A weight of the model is NaN: refused, and nothing is written."""
    file = shop.inputs / ("student" if task == "rerank" else "encoder") / "model.safetensors"
    right, weights, folder = file.read_bytes(), load_file(file), shop.folder()
    name = draw.choice([n for n, w in weights.items() if "layer.0" in n and w.is_floating_point()])
    weights[name].flatten()[draw.randrange(weights[name].numel())] = float("nan")
    save_file(weights, file, metadata={"format": "pt"})
    end, line = shop.ended(task, folder, "nan", lambda: file.write_bytes(right) and shop.folder())
    file.write_bytes(right)
    wrote = [n for n in ("out.run", "out/model", "out/manifest.json") if (folder / n).exists()]
    return ("wrong" if wrote else end), line


FAULTS = {f"SIGKILL, {task}": functools.partial(killed, task) for task in TASKS}
for task in ("fetch", "teach", "distill", "rerank"):
    FAULTS[f"disk full, {task}"] = functools.partial(disk_full, task)
for how in ("truncated", "altered"):
    for what, *arguments in (
        ("downloaded file", "fetch", "cache/downloads/vaswani/b", ()),
        ("token store", "distill", "out/tokens/passage/tokens.bin", ("out/manifest.json",)),
        ("checkpoint", "distill", "out/checkpoint.safetensors", "begun"),
        ("student", "distill", "out/model/model.safetensors", ()),
    ):
        FAULTS[f"{how} {what}"] = functools.partial(damaged, *arguments, cut=how == "truncated")
for task in ("distill", "rerank"):
    FAULTS[f"NaN in the weights, {task}"] = functools.partial(weights_of_nan, task)


def main(only=""):
    """Try every fault and record it; or `only` those whose name has this in it, without a record."""
    started, draw, rows, said = time.monotonic(), random.Random(0), [], {}
    with tempfile.TemporaryDirectory(prefix="torture-") as base:
        shop = Workshop(Path(base))
        for name in (name for name in FAULTS if only in name):
            ends = []
            for _ in range(REPETITIONS):
                end, line = FAULTS[name](shop, draw)
                ends.append(end)
                said[name] = line or said.get(name, "")
                print(f"{time.monotonic() - started:4.0f} s  {name}: {end}  {line[:120]}", flush=True)
            rows.append({"fault": name, "tried": len(ends)} | {end: ends.count(end) for end in ENDS})
    if not only:
        manifest = {
            "command": "make torture", "seed": 0, "repetitions": REPETITIONS, "said": said,
            "wall_s": round(time.monotonic() - started), "load": os.getloadavg()[1],
            "finished": datetime.now(UTC).isoformat(timespec="seconds"), **machine(),
        }  # fmt: skip
        out = project_folder() / "results" / "torture"
        pd.DataFrame(rows).to_csv(out / "faults.csv", index=False)
        (out / "manifest.json").write_text(json.dumps(manifest, indent=1) + "\n")
    return any(row["lost"] + row["wrong"] for row in rows)


if __name__ == "__main__":
    raise SystemExit(main(*sys.argv[1:]))
