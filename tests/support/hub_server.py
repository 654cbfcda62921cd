"""A hub on loopback that huggingface_hub's own client talks to (HF_ENDPOINT): it keeps repositories in memory.

Small files come within a commit, weights by the LFS protocol before it, as on the real one.
"""

import base64
import hashlib
import json
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import unquote

USER = "someone"
LARGE = (".safetensors",)


class Hub:
    """What the server holds and was asked; `refused`: a part of a path → the status that is answered to it."""

    def __init__(self) -> None:
        self.repositories: dict[str, dict[str, Any]] = {}
        self.blobs: dict[str, bytes] = {}
        self.requests: list[str] = []
        self.tokens: set[str] = set()
        self.refused: dict[str, int] = {}
        self.endpoint = ""

    def create(self, name: str, private: bool) -> tuple[int, str]:
        """The status, and the full name of the repository, which is made unless it is there."""
        full = name if "/" in name else f"{USER}/{name}"
        if full in self.repositories:
            return 409, full
        self.repositories[full] = {"private": private, "branches": {"main": {}}, "commits": []}
        return 200, full

    def commit(self, name: str, branch: str, lines: list[dict]) -> str:
        """Adds the files of a commit's NDJSON; its id."""
        repository = self.repositories[name]
        files = dict(repository["branches"][branch])
        for line in lines:
            value = line["value"]
            if line["key"] == "file":
                files[value["path"]] = base64.b64decode(value["content"])
            elif line["key"] == "lfsFile":
                files[value["path"]] = self.blobs[value["oid"]]
        repository["branches"][branch] = files
        repository["commits"].append(next(line["value"]["summary"] for line in lines if line["key"] == "header"))
        return hashlib.sha1(repr(sorted(files.items())).encode()).hexdigest()


def hash_as_git(content: bytes) -> str:
    """The id that git gives to a file."""
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()


class Handler(BaseHTTPRequestHandler):
    """Answers what create_repo, create_branch, auth_check and create_commit ask."""

    hub: Hub
    protocol_version = "HTTP/1.1"

    def log_message(self, *_):
        pass

    def answer(self, status: int, value: Any = None) -> None:
        content = json.dumps(value if value is not None else {}).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(content)))
        if status >= 400:
            self.send_header("X-Error-Message", f"refused with {status}")
        self.end_headers()
        self.wfile.write(content)

    def handle_any(self) -> None:
        path, hub = unquote(self.path.partition("?")[0]), self.hub
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        hub.requests.append(f"{self.command} {path}")
        hub.tokens.add(self.headers.get("Authorization", ""))
        refused = next((status for part, status in hub.refused.items() if part in path), None)
        if refused is not None:
            return self.answer(refused, {"error": f"refused with {refused}"})
        if path.startswith("/blobs/"):
            hub.blobs[path.removeprefix("/blobs/")] = body
            return self.answer(200)
        if path == "/api/validate-yaml":
            return self.answer(200, {"warnings": [], "errors": []})
        if path == "/api/repos/create":
            asked = json.loads(body)
            named = f"{asked['organization']}/{asked['name']}" if asked["organization"] else asked["name"]
            status, name = hub.create(named, asked.get("visibility") == "private")
            return self.answer(status, {"url": f"{hub.endpoint}/{name}"})
        if path.endswith(".git/info/lfs/objects/batch"):
            return self.answer(200, {"objects": [self.describe_blob(each) for each in json.loads(body)["objects"]]})
        return self.answer_about_repository(path, body)

    do_GET = do_POST = do_PUT = handle_any

    def describe_blob(self, asked: dict[str, Any]) -> dict[str, Any]:
        upload = {"upload": {"href": f"{self.hub.endpoint}/blobs/{asked['oid']}", "header": {}}}
        return asked | ({} if asked["oid"] in self.hub.blobs else {"actions": upload})

    def answer_about_repository(self, path: str, body: bytes) -> None:
        asked = re.fullmatch(
            r"/api/models/([^/]+/[^/]+)(?:/(auth-check|branch|preupload|commit|revision)/?(.*))?", path
        )
        repository = self.hub.repositories.get(asked[1]) if asked else None
        if repository is None:
            return self.answer(404, {"error": "Repository not found"})
        what, rest = asked[2], asked[3]
        if what == "branch":
            status = 409 if rest in repository["branches"] else 200
            repository["branches"].setdefault(rest, dict(repository["branches"]["main"]))
            return self.answer(status)
        if what == "preupload":
            files = repository["branches"][rest]
            return self.answer(200, {"files": [self.choose_mode(each, files) for each in json.loads(body)["files"]]})
        if what == "commit":
            oid = self.hub.commit(asked[1], rest, [json.loads(line) for line in body.splitlines()])
            url = f"{self.hub.endpoint}/{asked[1]}/commit/{oid}"
            return self.answer(200, {"success": True, "commitOid": oid, "commitUrl": url})
        return self.answer(200, {"id": asked[1], "private": repository["private"], "sha": "0" * 40, "siblings": []})

    def choose_mode(self, asked: dict[str, Any], files: dict[str, bytes]) -> dict[str, Any]:
        held, large = files.get(asked["path"]), asked["path"].endswith(LARGE)
        answer = {"path": asked["path"], "uploadMode": "lfs" if large else "regular", "shouldIgnore": False}
        if held is not None:
            answer["oid"] = hashlib.sha256(held).hexdigest() if large else hash_as_git(held)
        return answer


@contextmanager
def serving_hub() -> Iterator[Hub]:
    """A hub that listens while the block runs."""
    hub = Hub()
    server = ThreadingHTTPServer(("127.0.0.1", 0), type("HubHandler", (Handler,), {"hub": hub}))
    hub.endpoint = f"http://127.0.0.1:{server.server_address[1]}"
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
