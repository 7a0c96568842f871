"""A hub of models on this machine, as far as downloads need one, with faults on demand."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread
from typing import Any

COMMIT = "0123456789abcdef0123456789abcdef01234567"
SMALL_BYTES = 200
"""Files up to this size lie in the repository itself; larger ones elsewhere, and are known by their SHA-256."""


@dataclass
class FakeHub:
    """What it offers, how it fails, and what was asked of it."""

    repositories: Mapping[str, Mapping[str, bytes]]
    """Files by repository and name."""
    licence: str | None = "apache-2.0"
    """Licence on every model's card."""
    cut_after_bytes: int | None = None
    """Answers end early, after so many bytes, without a word; once per file, or always."""
    is_always_cut: bool = False
    """Whether that happens every time."""
    is_continuing: bool = True
    """Whether it answers to a range of bytes."""
    damaged: frozenset[str] = frozenset()
    """Files of which it sends other bytes than it announces."""
    unstated: frozenset[str] = frozenset()
    """Facts about files that it keeps to itself."""
    errors: Mapping[str, tuple[int, str]] = field(default_factory=dict)
    """Status and error code with which repositories are refused."""
    file_status: int = 200
    """Status of every answer to a request for a file."""
    url: str = ""
    """Where it is."""
    sent: list[tuple[str, int, int]] = field(default_factory=list)
    """File, first byte and number of bytes of every answer."""
    _was_cut: set[str] = field(default_factory=set)

    def describe(self, repo_id: str) -> dict[str, Any]:
        """Say what a repository holds, as the hub's interface does."""
        siblings = []
        for name, content in self.repositories[repo_id].items():
            sibling: dict[str, Any] = {"rfilename": name, "size": len(content), "blobId": git_digest(content)}
            if len(content) > SMALL_BYTES:
                digest = hashlib.sha256(content).hexdigest()
                sibling["lfs"] = {"sha256": digest, "size": len(content), "pointerSize": 130}
            siblings.append({fact: value for fact, value in sibling.items() if fact not in self.unstated})
        card = {} if self.licence is None else {"cardData": {"license": self.licence}}
        return {"id": repo_id, "modelId": repo_id, "sha": COMMIT, "siblings": siblings, "tags": [], **card}

    def answer(self, request: BaseHTTPRequestHandler) -> None:
        """Answer one request."""
        path = request.path.partition("?")[0]
        if about := re.fullmatch(r"/api/models/(.+)", path):
            self._answer_about(request, about[1])
        elif self.file_status != 200 and "/resolve/" in path:
            self.sent.append((path.rpartition("/")[2], 0, 0))
            request.send_error(self.file_status)
        elif file := re.fullmatch(rf"/(.+)/(resolve|storage)/{COMMIT}/(.+)", path):
            content = self.repositories[file[1]][file[3]]
            if file[2] == "resolve" and len(content) > SMALL_BYTES:
                request.send_response(302)
                request.send_header("Location", path.replace("/resolve/", "/storage/"))
                request.send_header("Content-Length", "0")
                request.end_headers()
            else:
                self._send_file(request, file[3], content)
        else:
            request.send_error(404)

    def _answer_about(self, request: BaseHTTPRequestHandler, repo_id: str) -> None:
        status, code = self.errors.get(repo_id, (200, ""))
        body = b"{}" if code or status != 200 else json.dumps(self.describe(repo_id)).encode()
        request.send_response(status)
        request.send_header("Content-Type", "application/json")
        request.send_header("Content-Length", str(len(body)))
        request.send_header("X-Error-Code", code)
        request.end_headers()
        request.wfile.write(body)

    def _send_file(self, request: BaseHTTPRequestHandler, name: str, content: bytes) -> None:
        asked = re.fullmatch(r"bytes=(\d+)-", request.headers.get("Range", ""))
        first = int(asked[1]) if asked and self.is_continuing else 0
        body = content[first:]
        if name in self.damaged:
            body = bytes(byte ^ 1 for byte in body)
        request.send_response(206 if asked and self.is_continuing else 200)
        request.send_header("Content-Length", str(len(body)))
        if asked and self.is_continuing:
            request.send_header("Content-Range", f"bytes {first}-{len(content) - 1}/{len(content)}")
        request.end_headers()
        if self.cut_after_bytes is not None and self._is_cut_now(name) and len(body) > self.cut_after_bytes:
            body = body[: self.cut_after_bytes]
            request.close_connection = True
        self.sent.append((name, first, len(body)))
        request.wfile.write(body)

    def _is_cut_now(self, name: str) -> bool:
        is_first = name not in self._was_cut
        self._was_cut.add(name)
        return is_first or self.is_always_cut

    @contextmanager
    def running(self) -> Iterator[FakeHub]:
        """Serve until the end of the block."""

        class Handler(BaseHTTPRequestHandler):
            def do_GET(handler) -> None:  # noqa: N805
                self.answer(handler)

            def log_message(handler, *arguments: object) -> None:  # noqa: N805
                pass

        with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
            thread = Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
            thread.start()
            self.url = f"http://127.0.0.1:{server.server_port}"
            try:
                yield self
            finally:
                server.shutdown()
                thread.join()


def git_digest(content: bytes) -> str:
    """What git knows a file by."""
    return hashlib.sha1(b"blob %d\0" % len(content) + content, usedforsecurity=False).hexdigest()
