"""An endpoint of a language model in the test's own process, that answers as a test wants."""

from __future__ import annotations

import http.server
import json
import threading
from collections.abc import Callable
from typing import Any


def chat_answer(text: str | None, finish_reason: str = "stop", **message: Any) -> dict[str, Any]:
    """The JSON of a chat endpoint."""
    return {"choices": [{"finish_reason": finish_reason, "message": {"content": text, **message}}]}


class _Server(http.server.ThreadingHTTPServer):
    """A server at which many connections may wait."""

    request_queue_size = 128


class FakeEndpoint:
    """Answers each request by `reply(body, count)`: JSON, or (status, JSON); None closes the connection.

    `count` is how often this very question has been asked before.
    """

    def __init__(self, reply: Callable[[dict[str, Any], int], Any], models: tuple[str, ...] = ("m",)) -> None:
        self.reply, self.models = reply, models
        self.asked: list[dict[str, Any]] = []
        self.headers: list[dict[str, str]] = []
        self.most, self.now, lock = 0, 0, threading.Lock()
        outer = self

        class Handler(http.server.BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                self.send(200, {"data": [{"id": name} for name in outer.models]})

            def do_POST(self) -> None:
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                with lock:
                    count = sum(one["messages"] == body["messages"] for one in outer.asked)
                    outer.asked.append(body)
                    outer.headers.append(dict(self.headers))
                    outer.now += 1
                    outer.most = max(outer.most, outer.now)
                said = outer.reply(body, count)
                with lock:
                    outer.now -= 1
                if said is None:
                    self.close_connection = True
                    return
                self.send(*(said if isinstance(said, tuple) else (200, said)))

            def send(self, status: int, value: Any) -> None:
                data = json.dumps(value).encode()
                self.send_response(status)
                self.send_header("Content-Length", str(len(data)))
                self.end_headers()
                try:
                    self.wfile.write(data)
                except BrokenPipeError:  # the client had no patience
                    self.close_connection = True

            def log_message(self, *_: Any) -> None:
                return

        self.server = _Server(("127.0.0.1", 0), Handler)
        self.server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self.server.server_port}"
        threading.Thread(target=self.server.serve_forever, args=(0.01,), daemon=True).start()

    def close(self) -> None:
        """Stops it: further connections are refused."""
        self.server.shutdown()
        self.server.server_close()


def length_judge(body: dict[str, Any], count: int = 0) -> dict[str, Any]:
    """A verdict that follows from the question alone."""
    return chat_answer(f"So.\nScore: {sum(body['messages'][0]['content'].encode()) % 11}")
