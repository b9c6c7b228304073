"""Somebody who is not the administrator, as the API server sees him: by impersonation."""

from dataclasses import dataclass
from typing import Any, Self

import httpx

from tandem_testing.kube import Kube, Obj


@dataclass(frozen=True)
class Answer:
    """What the API server said: HTTP status, and the message of a refusal ("" when it was granted)."""

    code: int
    message: str
    body: Obj

    @property
    def granted(self) -> bool:
        """Whether it was done."""
        return self.code < 300


class Person:
    """Speaks with the API server as `name`, in the groups that every authenticated user has."""

    def __init__(self, kube: Kube, name: str) -> None:
        self.name = name
        headers = {"Impersonate-User": name, "Impersonate-Group": "system:authenticated"}
        self._http = httpx.Client(base_url=kube.server, verify=kube.admin, timeout=30, headers=headers)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._http.close()

    def tries(
        self,
        method: str,
        path: str,
        body: Any = None,
        content_type: str = "application/json",
        validation: str = "Strict",
    ) -> Answer:
        """One call, by default as strictly validated as kubectl asks for."""
        params = {"fieldValidation": validation} if body is not None else {}
        headers = {"Content-Type": content_type}
        answer = self._http.request(method, path, params=params, json=body, headers=headers)
        found: Obj = answer.json()
        return Answer(answer.status_code, "" if answer.is_success else str(found.get("message", "")), found)

    def patches(self, path: str, body: Any) -> Answer:
        """A merge patch."""
        return self.tries("PATCH", path, body, "application/merge-patch+json")
