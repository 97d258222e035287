"""A local server with the part of the hub API that an upload needs."""

from __future__ import annotations

import base64
import json
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

TOKEN = "hf_verysecretword"


class FakeHub(ThreadingHTTPServer):
    """Requests with the token come from the user "someone", who may write."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.address = f"http://127.0.0.1:{self.server_address[1]}"
        self.role = "write"
        self.refused: tuple[str, ...] = ()
        """Parts of addresses that are answered with 403."""
        self.asked: list[str] = []
        self.repositories: dict[str, dict[str, bytes]] = {}

    def answer(self, path: str, content: bytes) -> dict[str, Any]:
        if path == "/api/whoami-v2":
            return {"name": "someone", "auth": {"accessToken": {"role": self.role}}}
        if path == "/api/repos/create":
            request = json.loads(content)
            name = f"{request['organization'] or 'someone'}/{request['name']}"
            self.repositories.setdefault(name, {})
            return {"url": f"{self.address}/{name}"}
        if path == "/api/validate-yaml":
            return {"errors": [], "warnings": []}
        match = re.fullmatch(r"/api/models/(.+)/(preupload|commit)/main", path)
        assert match, path
        if match[2] == "preupload":
            files = [entry["path"] for entry in json.loads(content)["files"]]
            return {"files": [{"path": path, "uploadMode": "regular", "shouldIgnore": False} for path in files]}
        for line in map(json.loads, content.splitlines()):
            if line["key"] == "file":
                self.repositories[match[1]][line["value"]["path"]] = base64.b64decode(line["value"]["content"])
        return {"commitUrl": f"{self.address}/{match[1]}/commit/1", "commitOid": "1" * 40}


class _Handler(BaseHTTPRequestHandler):
    server: FakeHub

    def do_GET(self) -> None:
        path = self.path.split("?")[0]
        self.server.asked.append(path)
        content = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        if self.headers.get("Authorization") != f"Bearer {TOKEN}":
            self._reply(401, {"error": "who are you?"})
        elif any(part in path for part in self.server.refused):
            self._reply(403, {"error": "not here"})
        else:
            self._reply(200, self.server.answer(path, content))

    do_POST = do_GET

    def _reply(self, status: int, answer: dict[str, Any]) -> None:
        content = json.dumps(answer).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, format: str, *arguments: Any) -> None:
        pass


@contextmanager
def running() -> Iterator[FakeHub]:
    hub = FakeHub()
    thread = threading.Thread(target=hub.serve_forever, daemon=True)
    thread.start()
    try:
        yield hub
    finally:
        hub.shutdown()
        hub.server_close()
        thread.join()
