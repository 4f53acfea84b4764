"""A server with the endpoints of the Hugging Face hub that an upload and a download of small files call."""

from __future__ import annotations

import base64
import contextlib
import hashlib
import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import unquote, urlsplit

TOKEN = "hf_test"


class Handler(BaseHTTPRequestHandler):
    """Answers requests from `server.repositories`: {USER/NAME: {"sha": commit, "files": {path: bytes}}}."""

    def do_POST(self):
        if self.headers["Authorization"] != f"Bearer {TOKEN}":
            return self.answer(401, {"error": "Invalid username or password."})
        body = self.rfile.read(int(self.headers["Content-Length"]))
        path = unquote(urlsplit(self.path).path)
        if path == "/api/repos/create":
            given = json.loads(body)
            name = f"{given['organization']}/{given['name']}" if given.get("organization") else given["name"]
            state = {"sha": "0" * 40, "files": {}, "private": given.get("private")}
            code = 409 if name in self.server.repositories else 200
            self.server.repositories.setdefault(name, state)
            return self.answer(code, {"url": f"{self.server.address}/{name}", "name": name})
        if path == "/api/validate-yaml":
            return self.answer(200, {"warnings": [], "errors": []})
        name, action = "/".join(path.split("/")[3:5]), path.split("/")[5]
        if action == "preupload":
            files = [
                {"path": f["path"], "uploadMode": "regular", "shouldIgnore": False} for f in json.loads(body)["files"]
            ]
            return self.answer(200, {"files": files})
        assert action == "commit", path
        repository = self.server.repositories[name]
        for line in map(json.loads, body.decode().splitlines()):
            if line["key"] == "file":
                repository["files"][line["value"]["path"]] = base64.b64decode(line["value"]["content"])
        repository["sha"] = hashlib.sha1(body).hexdigest()
        url = f"{self.server.address}/{name}/commit/{repository['sha']}"
        return self.answer(200, {"success": True, "commitOid": repository["sha"], "commitUrl": url})

    def do_GET(self, body=True):
        parts = unquote(urlsplit(self.path).path).strip("/").split("/")
        api = parts[0] == "api"
        name = "/".join(parts[2:4] if api else parts[:2])
        repository = self.server.repositories.get(name)
        if repository is None:
            return self.answer(404, {"error": "Repository not found"}, {"X-Error-Code": "RepoNotFound"})
        entries = [
            {"type": "file", "path": path, "size": len(content), "oid": blob(content)}
            for path, content in repository["files"].items()
        ]
        revision = parts[5] if api and len(parts) > 5 else parts[3]
        if revision not in ("main", repository["sha"]):
            return self.answer(404, {"error": "Revision not found"}, {"X-Error-Code": "RevisionNotFound"})
        if api and parts[4] == "revision":
            siblings = [{"rfilename": e["path"]} for e in entries]
            return self.answer(200, {"id": name, "sha": repository["sha"], "siblings": siblings, "tags": []})
        if api and parts[4] == "tree":
            return self.answer(200, entries)
        content = repository["files"]["/".join(parts[4:])]
        headers = {"ETag": f'"{blob(content)}"', "X-Repo-Commit": repository["sha"]}
        return self.answer(200, content, headers, body)

    def do_HEAD(self):
        self.do_GET(body=False)

    def answer(self, code, content, headers=(), body=True):
        raw = content if isinstance(content, bytes) else json.dumps(content).encode()
        self.send_response(code)
        kind = "application/octet-stream" if isinstance(content, bytes) else "application/json"
        for key, value in {"Content-Type": kind, "Content-Length": str(len(raw)), **dict(headers)}.items():
            self.send_header(key, value)
        self.end_headers()
        if body:
            self.wfile.write(raw)

    def log_message(self, *arguments):
        self.server.requests.append(f"{self.command} {urlsplit(self.path).path}")


def blob(content):
    """Return the id that git gives to a file."""
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()


@contextlib.contextmanager
def hub():
    """Yield a running server, with its `address`, `repositories` and `requests`."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.address = f"http://127.0.0.1:{server.server_port}"
    server.repositories, server.requests = {}, []
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield server
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
