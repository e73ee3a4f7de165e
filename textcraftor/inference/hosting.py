"""A Gradio page that this machine serves to itself, or to others where `host=` says so."""

from __future__ import annotations

import contextlib
import errno
import html
import os
import signal
import socket
import tempfile
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

from textcraftor.errors import UsageError, one_line

EVERYWHERE = "0.0.0.0"
WAITING = 64  # requests that may wait for their turn
ERROR_STAYS = 12  # seconds that an error stands on the page
LOADING = b"""<!doctype html><html lang="en"><meta charset="utf-8"><title>TextCraftor</title>
<meta name="viewport" content="width=device-width">
<style>:root { color-scheme: light dark; font: 18px system-ui }</style>
<p>The model is loading. The page opens by itself.</p>
<script>setInterval(() => fetch("/", {cache: "no-store"}).then(a => a.ok && location.reload(), () => 0), 999)
</script>"""


def check_hosting(host: str, port: int) -> None:
    """Refuse an address that no page can be served from.

    Raises:
        UsageError: no Gradio, a port that is taken, a host that is not this machine's.
    """
    try:
        import gradio  # noqa: F401
    except ImportError as error:
        raise UsageError("the page needs Gradio: pip install 'textcraftor[app]'") from error
    free_port(host, port)


def free_port(host: str, port: int) -> int:
    """The port itself, or for 0 one that is free now.

    Raises:
        UsageError: it is taken, or the host is not this machine's.
    """
    try:
        with socket.socket() as probe:
            if os.name != "nt":  # a page that has just closed leaves its port waiting; there this option shares ports
                probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind((host, port))
            return probe.getsockname()[1]
    except (OSError, ValueError) as error:  # UnicodeError is a ValueError
        if isinstance(error, OSError) and error.errno == errno.EADDRINUSE:
            raise UsageError(f"port={port} is taken: choose another, or port=0 for a free one") from error
        why = one_line(error)
        raise UsageError(f"host={host} port={port} cannot serve a page ({why}): try host=127.0.0.1") from error


def friendly(function: Callable) -> Callable:
    """The same, with whatever goes wrong shown on the page, in one line; a traceback would tell nobody."""
    import gradio

    def wrapped(*values):
        try:
            return function(*values)
        except Exception as error:
            line = one_line(error) if isinstance(error, UsageError) else f"{type(error).__name__}: {one_line(error)}"
            raise gradio.Error(html.escape(line[:500]), duration=ERROR_STAYS, print_exception=False) from None

    return wrapped


class _Loading(BaseHTTPRequestHandler):
    """Answers whatever is asked for with the page that waits; 503 tells programs to come again."""

    def do_GET(self) -> None:
        self.send_response(503)
        self.send_header("Content-Type", "text/html")
        self.send_header("Retry-After", "2")
        self.end_headers()
        self.wfile.write(LOADING)

    def log_message(self, format: str, *values: object) -> None:
        """Print nothing."""


@contextlib.contextmanager
def loading_page(host: str, port: int) -> Iterator[None]:
    """While the model loads, serve a page that says so and later turns into the real one."""
    with ThreadingHTTPServer((host, port), _Loading) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.1,), daemon=True)
        thread.start()
        try:
            yield
        finally:
            server.shutdown()
            thread.join()


def serve(build: Callable[[Path], Any], host: str, port: int, ready: str = "", head: str | None = None) -> None:
    """Serve a page until it is interrupted.

    Args:
        build: makes the page, from the folder of the files that it serves; the folder is deleted afterwards.
        port: 0 means any free port.
        ready: printed before the address once the page is up, such as where answers go.
        head: HTML for the page's head: style and scripts.
    """
    os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"
    import gradio

    port = free_port(host, port)
    where = "this machine's address" if host == EVERYWHERE else host
    address = f"http://{where}:{port}/"
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # so that what is temporary goes then too
    with tempfile.TemporaryDirectory(prefix="textcraftor-", ignore_cleanup_errors=True) as outputs:
        os.environ["GRADIO_TEMP_DIR"] = outputs  # what the page may serve lies there, and nothing else does
        with loading_page(host, port):
            blocks = build(Path(outputs))
        fonts = ["system-ui", "sans-serif"]
        blocks.queue(api_open=False, max_size=WAITING)
        blocks.launch(
            server_name=host,
            server_port=port,
            theme=gradio.themes.Default(font=fonts, font_mono=["monospace"]),
            share=False,
            quiet=True,
            allowed_paths=[],
            show_error=False,
            footer_links=[],
            max_file_size=0,  # nobody needs to upload anything
            head=head,
            prevent_thread_lock=True,
        )
        print(f"textcraftor: {ready}open {address}", flush=True)
        blocks.block_thread()
