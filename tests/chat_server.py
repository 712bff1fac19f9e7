"""A real server of OpenAI's chat completions on 127.0.0.1, which can fail as servers do.

It ranks passages that are numbers, the greatest first. ``python chat_server.py PORT`` runs it in a
process of its own, to be killed.
"""

import json
import re
import sys
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

PASSAGE = re.compile(r"^\[(\d+)\] (\d+)$", re.MULTILINE)


def best_first(prompt):
    worths = {int(name): int(worth) for name, worth in PASSAGE.findall(prompt)}
    return " > ".join(f"[{name}]" for name in sorted(worths, key=lambda name: -worths[name]))


def completion(prompt, text):
    usage = {"prompt_tokens": len(prompt.split()), "completion_tokens": len(text.split())}
    return {
        "id": "1", "object": "chat.completion", "created": 0, "model": "m",
        "usage": usage | {"total_tokens": sum(usage.values())},
        "choices": [
            {"index": 0, "finish_reason": "stop", "message": {"role": "assistant", "content": text}}
        ],
    }  # fmt: skip


class ChatServer(ThreadingHTTPServer):
    """`fault` is given the number of a request and its prompt, and may give what goes wrong.

    A fault is a dict: ``wait_s``, ``status``, ``headers``, ``body`` (JSON or text), ``cut`` (bytes
    of the body after which the connection breaks off), ``text`` (the answer).
    """

    daemon_threads = True
    request_queue_size = 64

    def __init__(self, port=0, fault=None):
        super().__init__(("127.0.0.1", port), Handler)
        self.fault = fault or (lambda number, prompt: None)
        self.requests, self.answered, self.active, self.most_active = [], [], 0, 0
        self.lock = threading.Lock()

    @property
    def url(self):
        return f"http://127.0.0.1:{self.server_port}/v1"

    def handle_error(self, request, client_address):
        """Clients that left are no news."""

    def __enter__(self):
        threading.Thread(target=self.serve_forever, args=(0.01,), daemon=True).start()
        return self

    def __exit__(self, *_):
        self.shutdown()
        self.server_close()


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_POST(self):
        server, at = self.server, time.monotonic()
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        prompt = body["messages"][0]["content"]
        with server.lock:
            number = len(server.requests)
            server.requests.append({"at": at, "headers": self.headers, "body": body})
            server.active += 1
            server.most_active = max(server.most_active, server.active)
        try:
            self.answer(prompt, server.fault(number, prompt) or {})
        finally:
            with server.lock:
                server.active -= 1

    def answer(self, prompt, fault):
        time.sleep(fault.get("wait_s", 0))
        status = fault.get("status", 200)
        content = fault.get("body", completion(prompt, fault.get("text", best_first(prompt))))
        content = content if isinstance(content, str) else json.dumps(content)
        self.send_response(status)
        for name, value in {"Content-Type": "application/json", **fault.get("headers", {})}.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content.encode()[: fault.get("cut")])
        if "cut" in fault:
            self.close_connection = True
        elif status == 200 and "body" not in fault:
            with self.server.lock:
                self.server.answered.append(prompt)

    def log_message(self, *_):
        """Say nothing."""


if __name__ == "__main__":
    own = ChatServer(int(sys.argv[1]), fault=lambda number, prompt: {"wait_s": 0.05})
    sys.stdout.write(f"{own.url}\n")
    sys.stdout.flush()
    own.serve_forever()
