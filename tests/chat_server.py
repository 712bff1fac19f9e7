"""A real server of OpenAI's chat completions on 127.0.0.1, which can fail as servers do.

It ranks passages that are numbers, the greatest first.
"""

import json
import re
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


def completion(prompt, text=None):
    worths = {name: int(worth) for name, worth in re.findall(r"(?m)^\[(\d+)\] (\d+)$", prompt)}
    best = " > ".join(f"[{name}]" for name in sorted(worths, key=lambda name: -worths[name]))
    text = best if text is None else text
    usage = {"prompt_tokens": len(prompt.split()), "completion_tokens": len(text.split())}
    message = {"role": "assistant", "content": text}
    return {"usage": usage, "choices": [{"index": 0, "finish_reason": "stop", "message": message}]}


class ChatServer(ThreadingHTTPServer):
    """`fault(number of a request, its prompt)` may give what goes wrong: ``wait_s``, ``status``,
    ``headers``, ``body`` (JSON or text), ``cut`` (bytes until it breaks off), ``text``.
    """

    daemon_threads, request_queue_size = True, 64

    def __init__(self, fault=None):
        super().__init__(("127.0.0.1", 0), Handler)
        self.fault = fault or (lambda number, prompt: None)
        self.requests, self.answered, self.active, self.most_active = [], [], 0, 0
        self.lock, self.url = threading.Lock(), f"http://127.0.0.1:{self.server_port}/v1"

    def handle_error(self, *_):
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
        content = fault.get("body", completion(prompt, fault.get("text")))
        content = content if isinstance(content, str) else json.dumps(content)
        self.send_response(status := fault.get("status", 200))
        for name, value in {"Content-Type": "application/json", **fault.get("headers", {})}.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content.encode()[: fault.get("cut")])
        self.close_connection = "cut" in fault
        if status == 200 and not {"cut", "body"} & set(fault):
            with self.server.lock:
                self.server.answered.append(prompt)

    def log_message(self, *_):
        """Say nothing."""
