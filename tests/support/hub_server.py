"""A Hugging Face Hub on loopback with one dataset, for the requests that the real client makes while it streams."""

import hashlib
import json
import re
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import unquote, urlsplit


class Hub:
    """Serves commits of files, of which `main` is the last. Set `HF_ENDPOINT` to its `url`."""

    def __init__(self, dataset: str) -> None:
        self.dataset, self.main = dataset, ""
        self.stopped = False
        self.commits: dict[str, dict[str, bytes]] = {}
        hub = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_GET(self) -> None:
                hub.answer(self)

            do_HEAD = do_GET  # noqa: N815

            def log_message(self, *arguments: Any) -> None:
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.server.daemon_threads = True
        threading.Thread(target=self.server.serve_forever, daemon=True).start()
        self.url = f"http://127.0.0.1:{self.server.server_port}"

    def commit(self, files: dict[str, bytes]) -> str:
        self.main = hashlib.sha1(repr(sorted(files.items())).encode()).hexdigest()
        self.commits[self.main] = files
        return self.main

    def stop(self) -> None:
        """Stop answering, also on open connections."""
        self.stopped = True
        self.server.shutdown()
        self.server.server_close()

    def answer(self, request: BaseHTTPRequestHandler) -> None:
        if self.stopped:
            request.close_connection = True
            return
        path = unquote(urlsplit(request.path).path)
        dataset = re.escape(self.dataset)
        if match := re.fullmatch(f"/api/datasets/{dataset}(?:/revision/(.*))?", path):
            commit = self._commit(match[1] or "main")
            siblings = [{"rfilename": name} for name in self.commits.get(commit, {})]
            self._json(
                request, {"id": self.dataset, "sha": commit, "tags": [], "siblings": siblings} if commit else None
            )
        elif match := re.fullmatch(f"/api/datasets/{dataset}/tree/([^/]*)/?(.*)", path):
            self._json(request, _listing(self.commits[self._commit(match[1])], match[2]))
        elif match := re.fullmatch(f"/datasets/{dataset}/resolve/([^/]*)/(.*)", path):
            commit = self._commit(match[1])
            data = self.commits[commit].get(match[2])
            if data is None:
                _send(request, 404, b"", {"X-Error-Code": "EntryNotFound"})
                return
            headers = {"ETag": f'"{hashlib.sha1(data).hexdigest()}"', "X-Repo-Commit": commit, "Accept-Ranges": "bytes"}
            if match := re.fullmatch(r"bytes=(\d+)-(\d*)", request.headers.get("Range") or ""):
                start, end = int(match[1]), min(int(match[2] or len(data)), len(data) - 1)
                _send(
                    request,
                    206,
                    data[start : end + 1],
                    {**headers, "Content-Range": f"bytes {start}-{end}/{len(data)}"},
                )
            else:
                _send(request, 200, data, headers)
        else:
            _send(request, 404, b"{}", {"X-Error-Code": "RepoNotFound"})

    def _commit(self, revision: str) -> str:
        return self.main if revision == "main" else revision if revision in self.commits else ""

    def _json(self, request: BaseHTTPRequestHandler, value: Any) -> None:
        if value is None:
            _send(request, 404, b"{}", {"X-Error-Code": "RevisionNotFound"})
        else:
            _send(request, 200, json.dumps(value).encode(), {"Content-Type": "application/json"})


def _listing(files: dict[str, bytes], folder: str) -> list[dict[str, Any]]:
    """Return the entries that are directly in a folder."""
    listed: dict[str, dict[str, Any]] = {}
    for name, data in files.items():
        if not folder or name.startswith(f"{folder}/"):
            first, *below = name[len(folder) :].strip("/").split("/")
            path = f"{folder}/{first}".strip("/")
            oid = hashlib.sha1(b"" if below else data).hexdigest()
            listed[path] = {"path": path, "oid": oid} | (
                {"type": "directory"} if below else {"type": "file", "size": len(data)}
            )
    return list(listed.values())


def _send(request: BaseHTTPRequestHandler, status: int, data: bytes, headers: dict[str, str]) -> None:
    request.send_response(status)
    for key, value in headers.items():
        request.send_header(key, value)
    request.send_header("Content-Length", str(len(data)))
    request.end_headers()
    if request.command != "HEAD":
        request.wfile.write(data)
