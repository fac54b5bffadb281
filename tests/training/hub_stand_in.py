"""A Hugging Face Hub on this machine: it takes what the hub's own library sends, by the hub's addresses."""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread
from typing import Any

LARGE = (".pth", ".safetensors")
"""Files that the hub takes by the protocol of git-lfs; others come with the commit."""


class Hub(ThreadingHTTPServer):
    """Repositories by name, each with its files by path."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Calls)
        self.address = f"http://127.0.0.1:{self.server_port}"
        self.visibility: dict[str, str] = {}
        self.files: dict[str, dict[str, bytes]] = {}
        self.tokens: set[str] = set()
        self.down = False
        """Whether it answers with nothing but 503."""
        self.large: dict[str, bytes] = {}
        """By their SHA-256."""


class Calls(BaseHTTPRequestHandler):
    server: Hub

    def do_POST(self) -> None:
        body = self._body()
        self.server.tokens.add(self.headers["Authorization"])
        if self.server.down:
            self.send_error(503)
            return
        match self.path.strip("/").split("/"):
            case ["api", "repos", "create"]:
                asked = json.loads(body)
                name = f"{asked['organization']}/{asked['name']}"
                self.server.visibility[name] = asked["visibility"]
                self.server.files.setdefault(name, {})
                self._answer({"url": f"{self.server.address}/{name}"})
            case ["api", "models", _, _, "preupload", "main"]:
                paths = [file["path"] for file in json.loads(body)["files"]]
                modes = {path: "lfs" if path.endswith(LARGE) else "regular" for path in paths}
                told = [{"path": path, "uploadMode": modes[path], "shouldIgnore": False} for path in paths]
                self._answer({"files": told})
            case [_, _, "info", "lfs", "objects", "batch"]:
                objects = json.loads(body)["objects"]
                for each in objects:
                    each["actions"] = {"upload": {"href": f"{self.server.address}/large/{each['oid']}"}}
                self._answer({"objects": objects})
            case ["api", "models", owner, name, "commit", "main"]:
                for line in body.splitlines():
                    self._commit(f"{owner}/{name}", **json.loads(line))
                self._answer(
                    {"commitUrl": f"{self.server.address}/{owner}/{name}/commit/1", "commitOid": "1"}
                )
            case ["api", "validate-yaml"]:
                self._answer({"errors": [], "warnings": []})
            case _:
                self.send_error(404)

    def do_PUT(self) -> None:
        body = self._body()
        assert self.path == f"/large/{hashlib.sha256(body).hexdigest()}"
        self.server.large[self.path.rpartition("/")[2]] = body
        self._answer({})

    def log_message(self, *_: object) -> None:
        pass

    def _commit(self, repository: str, key: str, value: dict[str, Any]) -> None:
        files = self.server.files[repository]
        if key == "file":
            files[value["path"]] = base64.b64decode(value["content"])
        elif key == "lfsFile":
            files[value["path"]] = self.server.large[value["oid"]]

    def _body(self) -> bytes:
        if self.headers["Transfer-Encoding"] != "chunked":
            return self.rfile.read(int(self.headers["Content-Length"] or 0))
        parts = []
        while size := int(self.rfile.readline(), 16):
            parts.append(self.rfile.read(size))
            self.rfile.readline()
        self.rfile.readline()
        return b"".join(parts)

    def _answer(self, values: dict[str, Any]) -> None:
        data = json.dumps(values).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)


@contextmanager
def hub() -> Iterator[Hub]:
    with Hub() as server:
        Thread(target=server.serve_forever, daemon=True).start()
        yield server
        server.shutdown()
