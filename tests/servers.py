"""A server on this machine that answers as an OpenAI-compatible one, by what a test sets."""

from __future__ import annotations

import contextlib
import json
import threading
from collections.abc import Iterator
from functools import partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from textcraftor.captioning import endpoint


class Handler(BaseHTTPRequestHandler):
    """Gives the server's next reply and keeps the request."""

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        self.server.requests.append((self.path, dict(self.headers), json.loads(body)))
        status, headers, content = self.server.reply(self.server.requests)
        self.send_response(status)
        for name, value in {"Content-Length": str(len(content)), **headers}.items():
            self.send_header(name, value)
        self.end_headers()
        with contextlib.suppress(ConnectionError):  # whoever asks may leave before the end
            self.wfile.write(content)

    def log_message(self, format: str, *args: object) -> None:
        """Say nothing."""


class Server(ThreadingHTTPServer):
    """A server on this machine whose replies, a number of the request each or all alike, are set by a test."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server_port}/v1"
        self.requests: list[tuple[str, dict, dict]] = []

    def replies(self, *replies: tuple) -> None:
        """These one after the other, and the last again and again."""
        self.reply = lambda requests: replies[min(len(requests), len(replies)) - 1]


@contextlib.contextmanager
def serving(monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    """A server at work, which nobody waits for before a request is sent again."""
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    monkeypatch.setattr(endpoint, "FIRST_WAIT", 0.0)
    with Server() as server:
        threading.Thread(target=partial(server.serve_forever, poll_interval=0.01)).start()
        yield server
        server.shutdown()


def told(text: str | None) -> tuple:
    """A server's answer that says a text."""
    choice = {"index": 0, "message": {"role": "assistant", "content": text}, "finish_reason": "stop"}
    return 200, {}, json.dumps({"id": "1", "choices": [choice]}).encode()
