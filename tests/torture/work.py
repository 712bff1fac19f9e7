"""A folder with tiny real data, and commands run in processes that can be killed."""

import functools
import hashlib
import json
import multiprocessing
import random
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pandas as pd

from rdl_core.data.formats import write_requests, write_run
from tests.torture import child


class Trickle(BaseHTTPRequestHandler):
    """Sends a file slowly, from where it is asked to."""

    protocol_version = "HTTP/1.1"

    def do_GET(self):
        content = self.server.files[self.path.strip("/")]
        start = int(self.headers.get("Range", "bytes=0-")[6:-1])
        self.send_response(206 if start else 200)
        if start:
            self.send_header("Content-Range", f"bytes {start}-{len(content) - 1}/{len(content)}")
        self.send_header("Content-Length", str(len(content) - start))
        self.end_headers()
        for at in range(start, len(content), 1 << 14):
            self.wfile.write(content[at : min(len(content), at + (1 << 14))])
            time.sleep(0.005)

    def log_message(self, *_):
        """Say nothing."""


class Quiet(ThreadingHTTPServer):
    daemon_threads = True

    def handle_error(self, request, client_address):
        """Clients that are killed are no news."""


class Workshop:
    """Inputs, servers, and the results that nothing disturbed."""

    def __init__(self, base):
        self.base, self.numbers = base, iter(range(10**6))
        self.inputs = base / "inputs"
        self.inputs.mkdir()
        self._context = multiprocessing.get_context("forkserver")
        self._context.set_forkserver_preload(["tests.torture.child"])
        draw = random.Random(0)
        self.files = {f"vaswani/{n}": draw.randbytes(400_000) for n in ("a", "b", "c")}
        self.server = Quiet(("127.0.0.1", 0), Trickle)
        self.server.files = self.files
        threading.Thread(target=self.server.serve_forever, daemon=True).start()
        child.make_inputs(self.inputs)
        self._lists()
        url = f"http://127.0.0.1:{self.server.server_port}"
        rows = [
            {"name": name, "url": f"{url}/{name}", "sha256": hashlib.sha256(raw).hexdigest(),
             "bytes": len(raw), "what": "noise"} for name, raw in self.files.items()
        ]  # fmt: skip
        (self.inputs / "registry.json").write_text(json.dumps(rows))
        self.chat = child.chat_server()

    def _lists(self):
        rows = [
            {"query_id": f"q{q}", "query": f"w{q} w{q + 1}", "doc_id": f"q{q}d{i}", "rank": i + 1,
             "text": " ".join(f"w{(7 * q + 3 * i + k) % 40}" for k in range(12))}
            for q in range(30) for i in range(12)
        ]  # fmt: skip
        frame = pd.DataFrame(rows)
        write_requests(frame, self.inputs / "requests.jsonl")
        write_run(frame[["query_id", "doc_id", "rank"]], self.inputs / "first.run")
        worth = frame.assign(text=[str(37 * n % 1000) for n in range(len(frame))])
        write_requests(worth, self.inputs / "worth.jsonl")

    def close(self):
        self.server.shutdown()
        self.chat.shutdown()

    def folder(self):
        """A new folder to work in."""
        folder = self.base / f"work{next(self.numbers)}"
        folder.mkdir()
        return folder

    def start(self, task, folder, *, most_bytes=None):
        process = self._context.Process(
            target=child.run, args=(task, folder, self.inputs, self.chat.url, most_bytes)
        )
        process.start()
        return process

    def run(self, task, folder, *, kill_after=None, most_bytes=None):
        """Run a task; gives its exit code, negative where it was killed, and what it said."""
        said = folder / "said.txt"
        said.unlink(missing_ok=True)
        process = self.start(task, folder, most_bytes=most_bytes)
        process.join(kill_after if kill_after is not None else 300)
        if process.is_alive():
            process.kill()
            process.join()
        return process.exitcode, said.read_text(errors="replace") if said.exists() else ""

    @functools.cache  # noqa: B019 - there is one
    def whole(self, task):
        """The undisturbed result of a task, the folder, and how long it took."""
        folder, started = self.folder(), time.monotonic()
        code, said = self.run(task, folder)
        if code:
            raise RuntimeError(f"{task} failed undisturbed: {said}")
        return result(task, folder), folder, time.monotonic() - started


def result(task, folder):
    """SHA-256 of every file that a task is for."""
    names = [path for pattern in child.TASKS[task][1] for path in sorted(folder.glob(pattern))]
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in names
    }


