"""A stand-in for the Hugging Face hub: serves local model directories over HTTP and keeps a log."""

import contextlib
import hashlib
import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

SHA = "0123456789abcdef0123456789abcdef01234567"


class Hub:
    """The server's address, its repositories and what was asked of it."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.requests: list[str] = []
        self.token: str | None = None
        self.url = ""

    def downloads(self, model: str) -> list[str]:
        """Return the files of OWNER/MODEL that were fetched, sorted."""
        start = f"GET /{model}/resolve/"
        return sorted(
            line.removeprefix(start).partition("/")[2]  # after the revision
            for line in self.requests
            if line.startswith(start)
        )


@contextlib.contextmanager
def serve(root: Path) -> Iterator[Hub]:
    """Serve ROOT/OWNER/MODEL/FILES as the models OWNER/MODEL, revisions main and v1."""
    hub = Hub(root)

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            self._answer(body=True)

        def do_HEAD(self) -> None:
            self._answer(body=False)

        def log_message(self, *_: object) -> None:
            pass

        def _answer(self, body: bool) -> None:
            path = self.path.partition("?")[0].replace("%2F", "/")
            hub.requests.append(f"{self.command} {path}")
            if hub.token and self.headers.get("Authorization") != f"Bearer {hub.token}":
                return self._send(401, b"{}", {"X-Error-Code": "RepoNotFound"}, body)
            if path.startswith("/api/models/"):
                name, _, rest = path.removeprefix("/api/models/").partition("/revision/")
                name, _, tree = name.partition("/tree/")
                revision = rest or tree or "main"
                directory = root / name
                if not directory.is_dir():
                    return self._send(404, b"{}", {"X-Error-Code": "RepoNotFound"}, body)
                if revision not in ("main", "v1", SHA):
                    return self._send(404, b"{}", {"X-Error-Code": "RevisionNotFound"}, body)
                files = sorted(p for p in directory.rglob("*") if p.is_file())
                names = [str(p.relative_to(directory)) for p in files]
                if tree:
                    entries = [
                        {"type": "file", "path": n, "size": p.stat().st_size, "oid": _etag(p)}
                        for n, p in zip(names, files, strict=True)
                    ]
                    return self._send(200, json.dumps(entries).encode(), {}, body)
                info = {"id": name, "sha": SHA, "siblings": [{"rfilename": n} for n in names]}
                return self._send(200, json.dumps(info).encode(), {}, body)
            name, _, rest = path.lstrip("/").partition("/resolve/")
            file = root / name / rest.partition("/")[2]
            if not file.is_file():
                return self._send(404, b"", {"X-Error-Code": "EntryNotFound"}, body)
            headers = {"X-Repo-Commit": SHA, "ETag": f'"{_etag(file)}"'}
            return self._send(200, file.read_bytes(), headers, body)

        def _send(self, code: int, content: bytes, headers: dict[str, str], body: bool) -> None:
            self.send_response(code)
            for key, value in {**headers, "Content-Length": str(len(content))}.items():
                self.send_header(key, value)
            self.end_headers()
            if body:
                self.wfile.write(content)

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        hub.url = f"http://127.0.0.1:{server.server_port}"
        try:
            yield hub
        finally:
            server.shutdown()
            thread.join()


def _etag(file: Path) -> str:
    return hashlib.sha1(file.read_bytes()).hexdigest()
