"""A server of the Ollama and OpenAI APIs with scripted answers: real sockets and real HTTP, no model."""

import json
import threading
from collections.abc import Callable, Iterable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, Self

PAUSE = object()
"""In a scripted answer: wait here until the test releases it, or the client is gone."""
SILENCE = object()
"""The same, but nothing at all is sent meanwhile."""
BREAK = object()
"""In a scripted answer: the connection ends as if the server had died."""


class FakeServer:
    """Attributes are what it answers; change them before the request.

    Attributes:
        status: of answers to chats; with `headers` and `error` when it is not 200.
        lines: of a chat's answer, `PAUSE` and `BREAK` among them.
        only: paths that exist at all; None for all.
        seen: (path, headers, body) of each request.
        gone: set when a client went away while an answer paused.
    """

    def __init__(self) -> None:
        self.status = 200
        self.headers: dict[str, str] = {}
        self.error: Any = {"error": "told by the server"}
        self.lines: Iterable[Any] = ollama_lines("Hello", " there", "\n")
        self.models = ["coder", "vectors"]
        self.shown: dict[str, Any] = {
            "capabilities": ["completion"],
            "tandem": {"context_length": 4096, "context_reason": "", "slots": 4, "source": "file:///models/coder"},
        }
        self.ps: list[dict[str, Any]] = []
        self.report: dict[str, Any] | None = None
        self.traces: dict[str, Any] = {}
        self.only: set[str] | None = None
        self.seen: list[tuple[str, dict[str, str], Any]] = []
        self.release = threading.Event()
        self.paused = threading.Event()
        self.gone = threading.Event()
        self._http = ThreadingHTTPServer(("127.0.0.1", 0), type("Handler", (_Handler,), {"fake": self}))
        self._http.daemon_threads = True
        self.url = f"http://127.0.0.1:{self._http.server_port}"

    def __enter__(self) -> Self:
        threading.Thread(target=self._http.serve_forever, args=(0.02,), daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self.release.set()
        self._http.shutdown()
        self._http.server_close()

    def asked(self, path: str) -> Any:
        """The body of the last request of a path."""
        return [body for seen, _, body in self.seen if seen == path][-1]

    def told(self, path: str, body: Any) -> tuple[int, Any]:
        """Status and JSON of everything but a chat."""
        answers: dict[str, Callable[[], tuple[int, Any]]] = {
            "/api/version": lambda: (200, {"version": "1"}),
            "/api/tags": lambda: (200, {"models": [{"name": name} for name in self.models]}),
            "/v1/models": lambda: (200, {"data": [{"id": name} for name in self.models]}),
            "/api/ps": lambda: (200, {"models": self.ps}),
            "/api/show": lambda: self._show(body),
            "/internal/report": lambda: (404, {}) if self.report is None else (200, self.report),
        }
        if path.startswith("/internal/trace?model="):
            trace = self.traces.get(path.partition("=")[2])
            return (404, {"error": "nothing here"}) if trace is None else (200, trace)
        return answers.get(path, lambda: (404, {"error": "nothing here"}))()

    def _show(self, body: Any) -> tuple[int, Any]:
        return (200, self.shown) if body["model"] in self.models else (404, {"error": "not found"})


def ollama_lines(*parts: str, reason: str = "stop") -> list[str]:
    """The lines of an Ollama answer."""
    lines = [json.dumps({"message": {"content": part}, "done": False}) + "\n" for part in parts]
    last = {"message": {"content": ""}, "done": True, "done_reason": reason, "prompt_eval_count": 7, "eval_count": 3}
    return [*lines, json.dumps(last) + "\n"]


def openai_lines(*parts: str) -> list[str]:
    """The events of an OpenAI answer."""
    told: list[Any] = [{"choices": [{"delta": {"content": part}, "finish_reason": None}]} for part in parts]
    told += [{"choices": [{"delta": {}, "finish_reason": "length"}]}]
    told += [{"choices": [], "usage": {"prompt_tokens": 7, "completion_tokens": 3}}]
    return [": held\n\n", *(f"data: {json.dumps(value)}\n\n" for value in told), "data: [DONE]\n\n"]


class _Handler(BaseHTTPRequestHandler):
    fake: FakeServer
    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        self._serve(None)

    def do_POST(self) -> None:
        self._serve(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))

    def log_message(self, *_: object) -> None:
        return

    def _serve(self, body: Any) -> None:
        path = self.path
        self.fake.seen.append((path, {name.lower(): value for name, value in self.headers.items()}, body))
        if self.fake.only is not None and path not in self.fake.only:
            self._send(404, {"error": "nothing here"})
        elif path in ("/api/chat", "/v1/chat/completions"):
            self._chat()
        else:
            self._send(*self.fake.told(path, body))

    def _send(self, status: int, value: Any) -> None:
        data = value if isinstance(value, bytes) else json.dumps(value).encode()
        self.send_response(status)
        for name, header in (self.fake.headers if status >= 300 else {}).items():
            self.send_header(name, header)
        self.send_header("Content-Length", str(len(data)))
        self.send_header("Connection", "close")
        self.end_headers()
        self.wfile.write(data)

    def _chat(self) -> None:
        if self.fake.status != 200:
            self._send(self.fake.status, self.fake.error)
            return
        self.send_response(200)
        self.send_header("Transfer-Encoding", "chunked")
        self.end_headers()
        self.close_connection = True
        try:
            for line in self.fake.lines:
                if line is PAUSE:
                    self._pause()
                elif line is SILENCE:
                    self.fake.release.wait()
                elif line is BREAK:
                    return
                else:
                    self._chunk(line.encode())
            self._chunk(b"")
        except (BrokenPipeError, ConnectionResetError):
            self.fake.gone.set()

    def _pause(self) -> None:
        self.fake.paused.set()
        while not self.fake.release.wait(0.02):
            self._chunk(b" \n")  # as a gateway keeps a held connection alive

    def _chunk(self, data: bytes) -> None:
        self.wfile.write(f"{len(data):x}\r\n".encode() + data + b"\r\n")
        self.wfile.flush()
