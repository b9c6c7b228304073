"""A running installation of Tandem, as end-to-end tests see it."""

import json
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from tandem_cli.demo.cluster_node import NodeCluster
from tandem_cli.demo.commands import Kubernetes
from tandem_cli.demo.story import Story


@dataclass(frozen=True)
class Site:
    """A running installation: how to talk to Kubernetes, and where the gateway answers."""

    kubernetes: Kubernetes
    cluster: NodeCluster
    story: Story
    gateway: str

    def eventually(self, what: str, probe: Callable[[], Any], seconds: float = 60) -> Any:
        """The first true value of `probe`; fails after `seconds` with what was last seen."""
        end = time.monotonic() + seconds
        while not (seen := probe()):
            assert time.monotonic() < end, f"{what}: not within {seconds:.0f} s, last seen {seen!r}"
            time.sleep(0.1)
        return seen

    def model(self, name: str) -> dict[str, Any]:
        """A Model as the API server has it."""
        return self.kubernetes.get("-n", "default", "model", name)

    def condition(self, name: str, kind: str = "Ready") -> dict[str, Any]:
        """One condition of a Model; empty when it is not there yet."""
        conditions = self.model(name).get("status", {}).get("conditions", [])
        return next((entry for entry in conditions if entry["type"] == kind), {})

    def pods(self, model: str) -> list[dict[str, Any]]:
        """The serving pods of a Model."""
        items: list[dict[str, Any]] = self.kubernetes.get("pods", "-n", "default", "-l", f"tandem.dev/pool={model}")[
            "items"
        ]
        return items

    def post(self, path: str, body: dict[str, Any], timeout: float = 60) -> tuple[int, dict[str, Any]]:
        """Status and JSON body of a POST through the gateway."""
        data = json.dumps(body).encode()
        request = urllib.request.Request(f"{self.gateway}{path}", data, {"content-type": "application/json"})
        try:
            with urllib.request.urlopen(request, timeout=timeout) as response:
                return response.status, json.loads(response.read())
        except urllib.error.HTTPError as error:
            with error:
                return error.code, json.loads(error.read())
