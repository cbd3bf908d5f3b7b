"""A server that plays the Hugging Face hub, as huggingface_hub asks it: for the tests of `hf:` models."""

from __future__ import annotations

import hashlib
import json
import re
import socket
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler
from typing import Any

from web import Server

COMMIT = "c" * 40


def hang_up(request: BaseHTTPRequestHandler) -> None:
    """End the connection in the midst of an answer, or before one."""
    request.wfile.flush()
    request.close_connection = True
    request.connection.shutdown(socket.SHUT_RDWR)


@dataclass
class Hub:
    """The repositories of a hub, each with its files; tests change how it behaves.

    Attributes:
        gated: what may be read of only with `token`.
        stops_after: bytes after which each answer with a file's content ends, while `n_stops` lasts.
        lies: file names whose content is another than was announced.
    """

    server: Server
    repos: dict[str, dict[str, bytes]] = field(default_factory=dict)
    gated: set[str] = field(default_factory=set)
    token: str = "hf_secret"
    stops_after: int | None = None
    n_stops: int = 0
    lies: set[str] = field(default_factory=set)
    sizes: dict[str, int] = field(default_factory=dict)
    ranges: list[str] = field(default_factory=list)
    tokens: list[str | None] = field(default_factory=list)

    def add(self, repo: str, files: dict[str, bytes]) -> None:
        """Put a repository onto the hub."""
        self.repos[repo] = files
        for path in (
            f"/api/models/{repo}",
            f"/api/models/{repo}/revision/main",
            f"/api/models/{repo}/revision/{COMMIT}",
        ):
            self.server.pages[path] = lambda request, repo=repo: self._info(request, repo)
        for revision in ("main", COMMIT):
            self.server.pages[f"/api/models/{repo}/tree/{revision}"] = lambda request, repo=repo: self._tree(
                request, repo
            )
            for name in files:
                self.server.pages[f"/{repo}/resolve/{revision}/{name}"] = lambda request, repo=repo, name=name: (
                    self._resolve(request, repo, name)
                )
        for name in files:
            self.server.pages[f"/cdn/{repo}/{name}"] = lambda request, repo=repo, name=name: self._content(
                request, repo, name
            )

    def _size(self, repo: str, name: str) -> int:
        return self.sizes.get(name, len(self.repos[repo][name]))

    def _info(self, request: BaseHTTPRequestHandler, repo: str) -> None:
        siblings: list[dict[str, Any]] = []
        for name, data in self.repos[repo].items():
            sibling: dict[str, Any] = {"rfilename": name, "size": self._size(repo, name), "blobId": "b" * 40}
            if name.endswith(".gguf"):
                sha256 = hashlib.sha256(data).hexdigest()
                sibling["lfs"] = {"sha256": sha256, "size": self._size(repo, name), "pointerSize": 134}
            siblings.append(sibling)
        self._json(request, {"id": repo, "modelId": repo, "sha": COMMIT, "siblings": siblings, "private": False})

    def _tree(self, request: BaseHTTPRequestHandler, repo: str) -> None:
        files = [
            {
                "type": "file",
                "path": name,
                "oid": "b" * 40,
                "size": self._size(repo, name),
                "lfs": {"oid": hashlib.sha256(data).hexdigest(), "size": self._size(repo, name), "pointerSize": 134},
            }
            for name, data in self.repos[repo].items()
        ]
        self._json(request, files)

    def _json(self, request: BaseHTTPRequestHandler, content: Any) -> None:
        body = json.dumps(content).encode()
        request.send_response(200)
        request.send_header("Content-Type", "application/json")
        request.send_header("Content-Length", str(len(body)))
        request.end_headers()
        if request.command == "GET":
            request.wfile.write(body)

    def _resolve(self, request: BaseHTTPRequestHandler, repo: str, name: str) -> None:
        """As the hub: a large file is announced, and lies elsewhere."""
        if repo in self.gated and request.headers.get("Authorization") != f"Bearer {self.token}":
            request.send_response(401)
            request.send_header("X-Error-Code", "GatedRepo")
            request.send_header("X-Error-Message", f"Access to model {repo} is restricted.")
            request.send_header("Content-Length", "0")
            request.end_headers()
            return
        request.send_response(302)
        # Another host, as at the hub: the library asks redirects within a host itself, and the token stays behind.
        elsewhere = self.server.url.replace("127.0.0.1", "localhost")
        request.send_header("Location", f"{elsewhere}/cdn/{repo}/{name}")
        request.send_header("X-Repo-Commit", COMMIT)
        request.send_header("X-Linked-Etag", f'"{hashlib.sha256(self.repos[repo][name]).hexdigest()}"')
        request.send_header("X-Linked-Size", str(self._size(repo, name)))
        request.send_header("Content-Length", "0")
        request.end_headers()

    def _content(self, request: BaseHTTPRequestHandler, repo: str, name: str) -> None:
        data = self.repos[repo][name]
        if name in self.lies:
            data = bytes(len(data))
        self.tokens.append(request.headers.get("Authorization"))
        start = 0
        if match := re.fullmatch(r"bytes=(\d+)-", request.headers.get("Range", "")):
            start = int(match[1])
            self.ranges.append(match[0])
        request.send_response(206 if start else 200)
        if start:
            request.send_header("Content-Range", f"bytes {start}-{len(data) - 1}/{len(data)}")
        request.send_header("Content-Length", str(len(data) - start))
        request.end_headers()
        end = len(data)
        if self.n_stops and self.stops_after:
            self.n_stops -= 1
            end = min(end, start + self.stops_after)
        if request.command == "GET":
            request.wfile.write(data[start:end])
        if end < len(data):
            hang_up(request)
