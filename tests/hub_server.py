"""A stand-in for the hub: its interface for models, as far as pushing and fetching use it, over files in memory."""

import base64
import hashlib
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

TOKEN = "hf_of_ann"


class Hub(ThreadingHTTPServer):
    """Models by user/name, each a dictionary of files; ``asked`` are the requests."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.models: dict[str, dict[str, bytes]] = {}
        self.asked: list[str] = []

    @property
    def address(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"

    def commit_of(self, name: str) -> str:
        content = json.dumps({file: data.hex() for file, data in self.models[name].items()})
        return hashlib.sha1(content.encode()).hexdigest()


class Handler(BaseHTTPRequestHandler):
    server: Hub
    protocol_version = "HTTP/1.1"

    def log_message(self, *_: Any) -> None:
        pass

    def answer(self, status: int, body: Any = b"", **headers: str) -> None:
        body = body if isinstance(body, bytes) else json.dumps(body).encode()
        self.send_response(status)
        for name, value in {"Content-Length": str(len(body)), **headers}.items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def missing(self) -> None:
        self.answer(404, {"error": "Repository not found"}, X_Error_Code="RepoNotFound")

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        self.server.asked.append(f"POST {self.path}")
        if self.path == "/api/validate-yaml":
            return self.answer(200, {"errors": [], "warnings": []})
        if self.headers.get("Authorization") != f"Bearer {TOKEN}":
            return self.answer(401, {"error": "Invalid username or password."})
        if self.path == "/api/repos/create":
            asked = json.loads(body)
            name = f"{asked.get('organization') or 'ann'}/{asked['name']}"
            is_new = self.server.models.setdefault(name, {}) == {}
            return self.answer(200 if is_new else 409, {"url": f"{self.server.address}/{name}"})
        _, _, _, user, model, action, *_ = self.path.split("/")
        files = self.server.models[f"{user}/{model}"]
        if action == "preupload":
            rows = [
                {"path": file["path"], "uploadMode": "regular", "shouldIgnore": False}
                for file in json.loads(body)["files"]
            ]
            return self.answer(200, {"files": rows})
        for line in map(json.loads, body.splitlines()):
            if line["key"] == "file":
                files[line["value"]["path"]] = base64.b64decode(line["value"]["content"])
        commit = self.server.commit_of(f"{user}/{model}")
        self.answer(
            200,
            {
                "success": True,
                "commitOid": commit,
                "commitUrl": f"{self.server.address}/{user}/{model}/commit/{commit}",
            },
        )

    def do_GET(self) -> None:
        path = self.path.partition("?")[0]
        self.server.asked.append(f"{self.command} {path}")
        parts = path.strip("/").split("/")
        name = "/".join(parts[2:4] if parts[0] == "api" else parts[:2])
        if name not in self.server.models:
            return self.missing()
        files, commit = self.server.models[name], self.server.commit_of(name)
        if "revision" in parts and parts[parts.index("revision") + 1] not in ("main", commit):
            return self.answer(404, {"error": "Invalid rev id"}, X_Error_Code="RevisionNotFound")
        if parts[0] == "api" and "tree" in parts:
            rows = [
                {"type": "file", "path": file, "size": len(data), "oid": blob_of(data)} for file, data in files.items()
            ]
            return self.answer(200, rows)
        if parts[0] == "api":
            about = {
                "id": name,
                "sha": commit,
                "private": False,
                "tags": [],
                "siblings": [{"rfilename": file} for file in files],
            }
            return self.answer(200, about)
        data = files.get("/".join(parts[4:]))
        if data is None:
            return self.answer(404, {"error": "Entry not found"}, X_Error_Code="EntryNotFound")
        self.answer(200, data, ETag=f'"{blob_of(data)}"', X_Repo_Commit=commit)

    do_HEAD = do_GET


def blob_of(data: bytes) -> str:
    """What git calls a file of that content."""
    return hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()


@contextmanager
def served() -> Iterator[Hub]:
    """A hub that runs inside."""
    hub = Hub()
    thread = threading.Thread(target=hub.serve_forever, daemon=True)
    thread.start()
    try:
        yield hub
    finally:
        hub.shutdown()
        thread.join()
        hub.server_close()
