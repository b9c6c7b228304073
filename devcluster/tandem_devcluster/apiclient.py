"""A few calls of the Kubernetes API with the standard library: what the supervisor needs to see and to set."""

import http.client
import json
import ssl
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

_TIMEOUT_S = 10.0


class Api:
    """The API of one cluster, called as the administrator whose certificate lies in `pki`."""

    def __init__(self, server: str, pki: Path) -> None:
        self._address = urlsplit(server)
        self._tls = ssl.create_default_context(cafile=str(pki / "ca.crt"))
        self._tls.load_cert_chain(pki / "admin.crt", pki / "admin.key")

    def call(self, method: str, path: str, body: Any = None, kind: str = "application/json") -> tuple[int, Any]:
        """Status and parsed answer. A server that cannot be reached answers (0, reason)."""
        connection = http.client.HTTPSConnection(
            self._address.hostname or "", self._address.port, timeout=_TIMEOUT_S, context=self._tls
        )
        try:
            connection.request(
                method, path, json.dumps(body) if body is not None else None, {"Content-Type": kind} if body else {}
            )
            answer = connection.getresponse()
            text = answer.read().decode(errors="replace")
        except (OSError, http.client.HTTPException) as error:
            return 0, str(error)
        finally:
            connection.close()
        try:
            return answer.status, json.loads(text)
        except ValueError:
            return answer.status, text

    def ok(self, path: str) -> bool:
        """True when a GET of the path succeeds."""
        return self.call("GET", path)[0] == 200

    def apply(self, path: str, value: dict[str, Any]) -> None:
        """Server-side apply. Raises RuntimeError with the API's answer."""
        query = "?fieldManager=tandem-devcluster&force=true"
        status, answer = self.call("PATCH", path + query, value, "application/apply-patch+yaml")
        if status not in {200, 201}:
            raise RuntimeError(f"applying {path} was answered {status}: {answer}")
