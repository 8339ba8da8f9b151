"""A small Hub on the loopback interface: it knows one token, and keeps what is uploaded in memory."""

from __future__ import annotations

import base64
import json
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import unquote, urlsplit

import huggingface_hub
import pytest
import yaml
from huggingface_hub import constants

TOKEN = "hf_a_secret_of_the_tests"
NAME = re.compile(r"[\w.-]+/[\w.-]+")


class FakeHub:
    """What the Hub has, and what it refuses. The user `me` may write to `me/...` alone."""

    def __init__(self) -> None:
        self.branches: dict[tuple[str, str], dict[str, bytes]] = {}  # (repository, branch) → files
        self.private: dict[str, bool] = {}
        self.requests: list[str] = []
        self.commits: list[str] = []  # their messages
        self.refuses_commits = False
        self.endpoint = ""

    def answer(self, method: str, path: str, token: str, body: bytes) -> tuple[int, object]:
        """Returns the status and the JSON of one request."""
        self.requests.append(f"{method} {path}")
        if token != TOKEN:
            return 401, {"error": "Invalid username or password."}
        if path == "/api/whoami-v2":
            return 200, {"name": "me", "type": "user"}
        if path == "/api/validate-yaml":
            return self._validate(json.loads(body)["content"])
        if path == "/api/repos/create":
            return self._create(json.loads(body))
        found = re.fullmatch(r"/api/models/([^/]+/[^/]+)(?:/([a-z-]+)(?:/(.+))?)?", path)
        if not found:
            return 404, {"error": f"no such path: {path}"}
        repository, what, rest = found[1], found[2], unquote(found[3] or "")
        if (repository, "main") not in self.branches:
            return 404, {"error": "Repository not found"}
        return self._of_repository(repository, what, rest, body)

    def _of_repository(self, repository: str, what: str | None, rest: str, body: bytes) -> tuple[int, object]:
        if what is None:
            return 200, {"id": repository, "sha": "0" * 40, "siblings": []}
        if what == "auth-check":
            return (200, {}) if repository.startswith("me/") else (403, {"error": "Forbidden"})
        if what == "branch":
            new = (repository, rest) not in self.branches
            self.branches.setdefault((repository, rest), dict(self.branches[repository, "main"]))
            return (200, {}) if new else (409, {"error": "Reference already exists"})
        files = self.branches[repository, rest]
        if what == "tree":
            listed = [{"type": "file", "path": p, "size": len(c), "oid": "0"} for p, c in files.items()]
            return 200, listed
        if what == "preupload":
            wanted = json.loads(body)["files"]
            return 200, {
                "files": [{"path": f["path"], "uploadMode": "regular", "shouldIgnore": False} for f in wanted]
            }
        assert what == "commit"
        if self.refuses_commits:
            return 403, {"error": "Forbidden: your quota is used up"}
        for line in map(json.loads, body.splitlines()):
            value = line["value"]
            if line["key"] == "header":
                self.commits.append(value["summary"])
            elif line["key"] == "file":
                files[value["path"]] = base64.b64decode(value["content"])
            else:
                assert line["key"] == "deletedFile"
                del files[value["path"]]
        return 200, {"commitOid": "1" * 40, "commitUrl": f"{self.endpoint}/{repository}/commit/{'1' * 40}"}

    def _create(self, wanted: dict) -> tuple[int, object]:
        repository = f"{wanted['organization']}/{wanted['name']}"
        if wanted["organization"] != "me":
            return 403, {"error": "You don't have the rights to create a model under this namespace"}
        if (repository, "main") in self.branches:
            return 409, {
                "error": "You already created this model repo",
                "url": f"{self.endpoint}/{repository}",
            }
        self.branches[repository, "main"] = {".gitattributes": b""}
        self.private[repository] = wanted.get("visibility") == "private"
        return 200, {"url": f"{self.endpoint}/{repository}"}

    def _validate(self, text: str) -> tuple[int, object]:
        """Refuses what the Hub refuses: names of models and datasets that it can't have."""
        front = yaml.safe_load(text.split("---\n")[1])
        named = [front.get("base_model", "a/b"), *front.get("datasets", [])]
        bad = [name for name in named if not NAME.fullmatch(name)]
        return (400, {"errors": [{"message": f"{name} is not valid"} for name in bad]}) if bad else (200, {})


@contextmanager
def fake_hub(home: Path) -> Iterator[FakeHub]:
    """Serves a FakeHub as the Hub of this process, with its token in the environment."""
    hub = FakeHub()

    class Handler(BaseHTTPRequestHandler):
        def respond(self) -> None:
            body = (
                self.rfile.read(int(self.headers.get("Content-Length") or 0))
                if self.command == "POST"
                else b""
            )
            if self.headers.get("Transfer-Encoding") == "chunked":
                while size := int(self.rfile.readline(), 16):
                    body += self.rfile.read(size)
                    self.rfile.readline()
                self.rfile.readline()
            token = (self.headers.get("Authorization") or "").removeprefix("Bearer ")
            status, answer = hub.answer(self.command, urlsplit(self.path).path, token, body)
            text = json.dumps(answer).encode()
            self.send_response(status)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(text)))
            self.end_headers()
            self.wfile.write(text)

        do_GET = do_POST = respond

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    hub.endpoint = f"http://127.0.0.1:{server.server_port}"
    threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(constants, "ENDPOINT", hub.endpoint)
        patch.setattr(constants, "HF_HUB_OFFLINE", False)
        patch.setattr(constants, "HF_TOKEN_PATH", str(home / "no-token"))
        patch.setenv("HF_TOKEN", TOKEN)
        try:
            yield hub
        finally:
            huggingface_hub.close_session()
            server.shutdown()
            server.server_close()
