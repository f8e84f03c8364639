"""A server on this machine that speaks the Hub's protocol to the unmodified huggingface_hub client, and fails on request.

Repositories, branches, commits and large files live in memory. Large files go the LFS way: start the client with
HF_HUB_DISABLE_XET=1.
"""

from __future__ import annotations

import base64
import hashlib
import json
import threading
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import parse_qs, unquote, urlsplit

import yaml

LFS_BYTES = 4_000  # larger files, and all weights, are large files here


@dataclass
class Commit:
    oid: str
    message: str
    files: dict[str, tuple[bytes, bool]]  # content, and whether it is a large file


@dataclass
class Repo:
    private: bool
    branches: dict[str, list[Commit]] = field(default_factory=dict)


@dataclass
class Hub:
    """What the server holds, what it was asked, and what it shall do wrong."""

    token: str = "hf_SecretOfTheTests"
    role: str = "write"
    user: str = "tester"
    repos: dict[str, Repo] = field(default_factory=dict)
    large_files: dict[str, bytes] = field(default_factory=dict)
    requests: list[tuple[str, str]] = field(default_factory=list)
    puts: list[str] = field(default_factory=list)  # oids of large files that were sent, refused ones included
    failing_put: int | None = None  # number of the PUT that is refused, from 1
    failing_status: int = 403  # with which
    failing_commits: int = 0
    refuse_writing: bool = False  # as a token does whose rights are for other repositories
    endpoint: str = ""
    lock: threading.Lock = field(default_factory=threading.Lock)

    def files(self, repo_id: str, revision: str = "main") -> dict[str, bytes]:
        return {name: content for name, (content, _) in self.repos[repo_id].branches[revision][-1].files.items()}

    def add(self, repo_id: str, files: dict[str, bytes], private: bool = False) -> None:
        """A repository that is there before, with one commit."""
        repo = self.repos[repo_id] = Repo(private, {"main": [first_commit()]})
        kept = {name: (content, name.endswith(".safetensors")) for name, content in files.items()}
        repo.branches["main"].append(Commit(oid_of(repo_id, 1), "earlier", repo.branches["main"][-1].files | kept))


def first_commit() -> Commit:
    return Commit(oid_of("first", 0), "initial commit", {".gitattributes": (b"*.safetensors filter=lfs\n", False)})


def oid_of(*parts) -> str:
    return hashlib.sha1(repr(parts).encode()).hexdigest()


def blob_id(content: bytes) -> str:
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()


def etag(content: bytes, is_large: bool) -> str:
    return hashlib.sha256(content).hexdigest() if is_large else blob_id(content)


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    hub: Hub

    def log_message(self, *arguments):
        pass

    def body(self) -> bytes:
        if "chunked" not in self.headers.get("Transfer-Encoding", ""):
            return self.rfile.read(int(self.headers.get("Content-Length", 0)))
        parts = []
        while size := int(self.rfile.readline(), 16):
            parts.append(self.rfile.read(size))
            self.rfile.readline()
        self.rfile.readline()
        return b"".join(parts)

    def reply(self, status: int, content=b"", headers: dict | None = None, code: str | None = None) -> None:
        if not isinstance(content, bytes):
            content = json.dumps(content).encode()
        headers = {"Content-Type": "application/json", "Content-Length": str(len(content)), **(headers or {})}
        if code:
            headers["X-Error-Code"] = code
        if status >= 400 and "X-Error-Message" not in headers:
            headers["X-Error-Message"] = code or "refused by the tests"
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)

    def handle_any(self) -> None:
        body, url = self.body(), urlsplit(self.path)
        self.query = parse_qs(url.query)
        with self.hub.lock:
            self.hub.requests.append((self.command, url.path))
            self.route([unquote(part) for part in url.path.strip("/").split("/")], body)

    do_GET = do_HEAD = do_POST = do_PUT = handle_any

    @property
    def signed_in(self) -> bool:
        return self.headers.get("Authorization") == f"Bearer {self.hub.token}"

    def route(self, parts: list[str], body: bytes) -> None:
        hub = self.hub
        if self.command == "PUT":
            return self.put(parts[-1], body)
        if parts == ["api", "whoami-v2"]:
            return self.whoami()
        if parts == ["lfs-verify"]:
            stored = hub.large_files.get(json.loads(body)["oid"])
            return self.reply(200 if stored is not None and len(stored) == json.loads(body)["size"] else 404, {})
        if parts == ["api", "validate-yaml"]:
            return self.validate(json.loads(body)["content"])
        if parts == ["api", "repos", "create"]:
            return self.create(json.loads(body))
        if parts[:2] == ["api", "models"] and len(parts) >= 4:
            return self.api("/".join(parts[2:4]), parts[4:], body)
        if len(parts) > 2 and parts[1].endswith(".git"):
            return self.batch(json.loads(body))
        if len(parts) > 4 and parts[2] == "resolve":
            return self.resolve("/".join(parts[:2]), parts[3], "/".join(parts[4:]))
        self.reply(404, {"error": "no such page"})

    def whoami(self) -> None:
        if not self.signed_in:
            wrong = "Invalid credentials in Authorization header"
            return self.reply(401, {"error": wrong}, {"X-Error-Message": wrong})
        auth = {"type": "access_token", "accessToken": {"displayName": "tests", "role": self.hub.role}}
        self.reply(200, {"type": "user", "name": self.hub.user, "orgs": [], "auth": auth})

    def may_write(self) -> bool:
        if self.signed_in and self.hub.role != "read" and not self.hub.refuse_writing:
            return True
        self.reply(403, {"error": "You don't have the rights to write here"})
        return False

    def validate(self, content: str) -> None:
        if content.startswith("---\n") and isinstance(yaml.safe_load(content.split("---")[1]), dict):
            return self.reply(200, {"errors": [], "warnings": []})
        self.reply(400, {"errors": [{"message": "no metadata"}], "warnings": []})

    def create(self, wanted: dict) -> None:
        if not self.may_write():
            return
        repo_id = f"{wanted.get('organization') or self.hub.user}/{wanted['name']}"
        if repo_id in self.hub.repos:
            there = {"error": "You already created this model repo", "url": f"{self.hub.endpoint}/{repo_id}"}
            return self.reply(409, there)
        private = wanted.get("visibility") == "private" or bool(wanted.get("private"))
        self.hub.repos[repo_id] = Repo(private, {"main": [first_commit()]})
        self.reply(200, {"url": f"{self.hub.endpoint}/{repo_id}", "id": repo_id})

    def find(self, repo_id: str, revision: str = "main") -> Commit | None:
        """The commit of a branch or an oid; answers what the Hub answers where there is none."""
        repo = self.hub.repos.get(repo_id)
        if repo is None or (repo.private and not self.signed_in):
            return self.reply(404 if self.signed_in else 401, {"error": "Repository not found"}, code="RepoNotFound")
        if revision in repo.branches:
            return repo.branches[revision][-1]
        for commits in repo.branches.values():
            for commit in commits:
                if commit.oid == revision:
                    return commit
        return self.reply(404, {"error": f"Invalid rev id: {revision}"}, code="RevisionNotFound")

    def api(self, repo_id: str, rest: list[str], body: bytes) -> None:
        action, revision = (rest + ["", ""])[0], (rest + ["main", "main"])[1] if len(rest) > 1 else "main"
        if action in ("", "revision"):
            commit = self.find(repo_id, revision)
            return None if commit is None else self.info(repo_id, commit)
        if action == "tree":
            commit = self.find(repo_id, revision)
            return None if commit is None else self.tree(commit, "/".join(rest[2:]))
        if not self.may_write():
            return
        if action == "branch":
            branches = self.hub.repos[repo_id].branches
            if revision in branches:
                return self.reply(409, {"error": "Reference already exists"})
            branches[revision] = list(branches["main"])
            return self.reply(200, {})
        if self.find(repo_id, revision) is None:
            return
        if action == "preupload":
            return self.preupload(self.hub.repos[repo_id].branches[revision][-1], json.loads(body)["files"])
        if action == "commit":
            return self.commit(repo_id, revision, body)
        self.reply(404, {"error": action})

    def info(self, repo_id: str, commit: Commit) -> None:
        siblings = []
        for name, (content, is_large) in commit.files.items():
            sibling = {"rfilename": name, "size": len(content), "blobId": blob_id(content)}
            if is_large:
                sibling["lfs"] = {"sha256": etag(content, True), "size": len(content), "pointerSize": 130}
            siblings.append(sibling)
        private = self.hub.repos[repo_id].private
        card = commit.files.get("README.md", (b"", False))[0].decode()
        data = yaml.safe_load(card.split("---")[1]) if card.startswith("---\n") else None
        self.reply(
            200,
            {
                "id": repo_id,
                "modelId": repo_id,
                "sha": commit.oid,
                "private": private,
                "tags": [],
                "siblings": siblings,
                "cardData": data,
            },
        )

    def tree(self, commit: Commit, folder: str) -> None:
        found = []
        for name, (content, is_large) in commit.files.items():
            entry = {"type": "file", "path": name, "size": len(content), "oid": blob_id(content)}
            if is_large:
                entry["lfs"] = {"oid": etag(content, True), "size": len(content), "pointerSize": 130}
            found.append(entry)
        if folder:
            return self.reply(404, {"error": f"{folder} does not exist"}, code="EntryNotFound")
        self.reply(200, found)

    def preupload(self, commit: Commit, files: list[dict]) -> None:
        answers = []
        for wanted in files:
            is_large = wanted["size"] > LFS_BYTES or wanted["path"].endswith(".safetensors")
            answer = {"path": wanted["path"], "uploadMode": "lfs" if is_large else "regular", "shouldIgnore": False}
            if wanted["path"] in commit.files:
                answer["oid"] = etag(*commit.files[wanted["path"]])
            answers.append(answer)
        self.reply(200, {"files": answers})

    def batch(self, wanted: dict) -> None:
        objects = []
        for item in wanted["objects"]:
            answer = {"oid": item["oid"], "size": item["size"]}
            if item["oid"] not in self.hub.large_files:
                answer["actions"] = {
                    "upload": {"href": f"{self.hub.endpoint}/lfs/{item['oid']}"},
                    "verify": {"href": f"{self.hub.endpoint}/lfs-verify"},
                }
            objects.append(answer)
        self.reply(200, {"transfer": "basic", "objects": objects})

    def put(self, oid: str, body: bytes) -> None:
        self.hub.puts.append(oid)
        if len(self.hub.puts) == self.hub.failing_put:
            return self.reply(self.hub.failing_status, {"error": "the storage refuses"})
        if hashlib.sha256(body).hexdigest() != oid:
            return self.reply(400, {"error": "other content"})
        self.hub.large_files[oid] = body
        self.reply(200)

    def commit(self, repo_id: str, revision: str, body: bytes) -> None:
        if self.hub.failing_commits:
            self.hub.failing_commits -= 1
            return self.reply(500, {"error": "the Hub is in trouble"})
        commits, message = self.hub.repos[repo_id].branches[revision], ""
        files = dict(commits[-1].files)
        for line in body.splitlines():
            item = json.loads(line)
            value = item["value"]
            if item["key"] == "header":
                message = value["summary"]
            elif item["key"] == "file":
                files[value["path"]] = (base64.b64decode(value["content"]), False)
            elif item["key"] == "lfsFile":
                files[value["path"]] = (self.hub.large_files[value["oid"]], True)
            else:
                del files[value["path"]]
        commits.append(Commit(oid_of(repo_id, revision, len(commits)), message, files))
        url = f"{self.hub.endpoint}/{repo_id}/commit/{commits[-1].oid}"
        self.reply(200, {"success": True, "commitOid": commits[-1].oid, "commitUrl": url})

    def resolve(self, repo_id: str, revision: str, name: str) -> None:
        commit = self.find(repo_id, revision)
        if commit is None:
            return
        if name not in commit.files:
            return self.reply(404, {"error": "Entry not found"}, {"X-Repo-Commit": commit.oid}, code="EntryNotFound")
        content, is_large = commit.files[name]
        headers = {"X-Repo-Commit": commit.oid, "ETag": f'"{etag(content, is_large)}"'}
        self.reply(200, content, headers | {"Content-Type": "application/octet-stream"})


@contextmanager
def serving():
    """A Hub that answers at ``hub.endpoint`` while the block runs."""
    hub = Hub()
    server = ThreadingHTTPServer(("127.0.0.1", 0), type("BoundHandler", (Handler,), {"hub": hub}))
    server.daemon_threads = True
    hub.endpoint = f"http://127.0.0.1:{server.server_address[1]}"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
    thread.start()
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
