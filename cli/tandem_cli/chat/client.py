"""A server as `tandem run` and `tandem ps` see it: `tandem serve`, a gateway, or anything else with one of both APIs.

On the path of every request of these commands. Blocking, in one thread: Ctrl-C ends an answer by closing its
connection, which every such server takes as an abort.
"""

import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from ipaddress import ip_address
from typing import Any
from urllib.parse import urlsplit

import httpx

from tandem_api.report import Report
from tandem_cli.chat.dialects import ChatDialect, Message, Ollama, OpenAI, Piece
from tandem_cli.chat.settings import Value
from tandem_cli.chat.trouble import NoServer, Trouble, UnknownModel, broken, refusal

CONNECT_SECONDS = 5.0
_ERRNO = re.compile(r"^\[Errno -?\d+\] ")
TELL_SECONDS = 10.0
"""For what a server answers from memory."""


@dataclass(frozen=True)
class Described:
    """What a server says of one model; None and empty where it does not say."""

    name: str
    context: int | None = None
    context_reason: str = ""
    slots: int | None = None
    embeds: bool = False
    source: str | None = None


class Server:
    """One address.

    Args:
        url: without a slash at its end.
        key: sent as a bearer token where there is one.
        patience: seconds to wait for the next part of an answer, the load of a cold model included.
    """

    def __init__(self, url: str, key: str | None = None, patience: float = 600.0) -> None:
        self.url = url
        headers = {"Authorization": f"Bearer {key}"} if key else {}
        timeout = httpx.Timeout(TELL_SECONDS, connect=CONNECT_SECONDS)
        # A proxy of the environment is for the world outside, not for this machine.
        self._http = httpx.Client(base_url=url, headers=headers, timeout=timeout, trust_env=not is_local(url))
        self._patience = httpx.Timeout(patience, connect=CONNECT_SECONDS)
        self._dialect: ChatDialect | None = None

    def close(self) -> None:
        """Closes connections."""
        self._http.close()

    def dialect(self) -> ChatDialect:
        """The API that the server speaks, Ollama's where it has both. Raises Trouble."""
        if self._dialect is None:
            if self._get("/api/version").is_success:
                self._dialect = Ollama()
                return self._dialect
            models = self._get("/v1/models")
            if models.status_code in (401, 403):
                raise refusal(models.status_code, models.headers, models.content, self.url, "")
            if not models.is_success:
                raise Trouble(f"what answers at {self.url} speaks neither Ollama's API nor OpenAI's; see --url")
            self._dialect = OpenAI()
        return self._dialect

    def names(self) -> list[str]:
        """The models that the server could serve. Raises Trouble."""
        if isinstance(self.dialect(), Ollama):
            return [str(entry["name"]) for entry in self._told("/api/tags").get("models") or []]
        return [str(entry["id"]) for entry in self._told("/v1/models").get("data") or []]

    def describe(self, model: str) -> Described:
        """One model. Raises UnknownModel, or another Trouble."""
        if not isinstance(self.dialect(), Ollama):
            if model not in self.names():
                raise UnknownModel(self.url, model, self.names())
            return Described(model)
        with self._speaking():
            answer = self._http.post("/api/show", json={"model": model}, timeout=self._patience)
        self._check(answer.status_code, answer.headers, answer.content, model)
        told = self._object(answer)
        ours = told.get("tandem") or {}
        capabilities = told.get("capabilities") or []
        return Described(
            model,
            ours.get("context_length"),
            ours.get("context_reason") or "",
            ours.get("slots"),
            "embedding" in capabilities and "completion" not in capabilities,
            ours.get("source"),
        )

    def running(self) -> list[dict[str, Any]]:
        """`/api/ps`: what is loaded. Raises Trouble."""
        return list(self._told("/api/ps").get("models") or [])

    def report(self) -> Report | None:
        """The pod's own report, where `tandem serve` gives it on its only port. Raises Trouble for a dead server."""
        answer = self._get("/internal/report")
        if not answer.is_success:
            return None
        try:
            return Report.model_validate_json(answer.content)
        except ValueError:
            return None  # another server, which answers every path

    def trace(self, model: str) -> dict[str, Any]:
        """What the steps of a model's runner did and when, in the form that Perfetto reads. Raises Trouble."""
        with self._speaking():
            answer = self._http.get("/internal/trace", params={"model": model}, timeout=2 * TELL_SECONDS)
        if answer.status_code == 404 and model in self.names():
            raise Trouble(f"the server at {self.url} tells no traces; ask 'tandem serve', or a pod's internal port")
        self._check(answer.status_code, answer.headers, answer.content, model)
        return self._object(answer)

    def answer(self, model: str, messages: list[Message], settings: dict[str, Value]) -> Iterator[Piece]:
        """The answer as it is made. Raises Trouble; closing the iterator aborts the request."""
        dialect = self.dialect()
        try:
            body = dialect.body(model, messages, settings)
        except ValueError as error:
            raise Trouble(str(error)) from None
        began = False
        try:
            with self._http.stream("POST", dialect.path, json=body, timeout=self._patience) as answer:
                if not answer.is_success:
                    answer.read()
                    self._check(answer.status_code, answer.headers, answer.content, model)
                for piece in dialect.pieces(answer.iter_lines()):
                    began = True
                    yield piece
                    if piece.finish is not None:
                        return
        except httpx.TransportError as error:
            if began or isinstance(error, httpx.ReadError | httpx.RemoteProtocolError):
                # Chunked answers that end early raise here; those without a length only lack their last line.
                raise broken(self.url, model, error) from error
            raise self._unreachable(error) from error
        raise broken(self.url, model, "it ended without the last line")

    def _check(self, status: int, headers: httpx.Headers, body: bytes, model: str) -> None:
        if status == 404:
            raise UnknownModel(self.url, model, self.names())
        if status >= 300:
            raise refusal(status, headers, body, self.url, model)

    def _get(self, path: str) -> httpx.Response:
        with self._speaking():
            return self._http.get(path)

    def _told(self, path: str) -> dict[str, Any]:
        answer = self._get(path)
        if not answer.is_success:
            raise refusal(answer.status_code, answer.headers, answer.content, self.url, "the server")
        return self._object(answer)

    def _object(self, answer: httpx.Response) -> dict[str, Any]:
        try:
            told = answer.json()
        except ValueError:
            told = None
        if not isinstance(told, dict):
            raise Trouble(f"what answers at {self.url} does not speak Ollama's API; see --url")
        return told

    @contextmanager
    def _speaking(self) -> Iterator[None]:
        try:
            yield
        except httpx.TransportError as error:
            raise self._unreachable(error) from error

    def _unreachable(self, error: httpx.TransportError) -> Trouble:
        if isinstance(error, httpx.ReadTimeout):
            return Trouble(f"the server at {self.url} did not answer in time; its log may say why")
        return NoServer(self.url, _ERRNO.sub("", str(error)) or type(error).__name__)


def is_local(url: str) -> bool:
    """Whether an address is this machine's own."""
    host = urlsplit(url).hostname or ""
    if host == "localhost":
        return True
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return False
