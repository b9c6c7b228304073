"""A real API server as cluster tests talk to it: kubectl for what people type, plain HTTP for the rest."""

import asyncio
import base64
import ssl
import subprocess
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import httpx
import yaml

from tandem_api.crd import KINDS, crd_yaml
from tandem_devcluster.cluster import Cluster

Obj = dict[str, Any]


class Kube:
    """The administrator of one cluster."""

    def __init__(self, cluster: Cluster, scratch: Path) -> None:
        self.cluster = cluster
        config = yaml.safe_load(cluster.kubeconfig.read_text())
        connection, user = config["clusters"][0]["cluster"], config["users"][0]["user"]
        self.server: str = connection["server"]
        files = {
            "ca": connection["certificate-authority-data"],
            "cert": user["client-certificate-data"],
            "key": user["client-key-data"],
        }
        for name, data in files.items():
            (scratch / name).write_bytes(base64.b64decode(data))
        self.trust = ssl.create_default_context(cafile=scratch / "ca")
        self.admin = ssl.create_default_context(cafile=scratch / "ca")
        self.admin.load_cert_chain(scratch / "cert", scratch / "key")
        self._http = httpx.Client(base_url=self.server, verify=self.admin, timeout=30)

    def close(self) -> None:
        """Closes connections."""
        self._http.close()

    def kubectl(self, *arguments: str, text: str | None = None, check: bool = True) -> subprocess.CompletedProcess[str]:
        """Runs kubectl; `text` is its standard input."""
        command = [str(self.cluster.bin_dir / "kubectl"), "--kubeconfig", str(self.cluster.kubeconfig), *arguments]
        result = subprocess.run(command, input=text, capture_output=True, text=True, check=False, timeout=60)
        assert not check or result.returncode == 0, result.stderr
        return result

    def request(self, method: str, path: str, body: Any = None, content_type: str = "application/json") -> Obj:
        """One call of the API; fails unless it succeeds."""
        answer = self._http.request(method, path, json=body, headers={"Content-Type": content_type})
        assert answer.status_code < 300, f"{method} {path}: {answer.status_code} {answer.text}"
        found: Obj = answer.json()
        return found

    def attempt(
        self, method: str, path: str, body: Any = None, content_type: str = "application/json"
    ) -> tuple[int, Obj]:
        """One call of the API that may be refused: its HTTP status and what was answered."""
        answer = self._http.request(method, path, json=body, headers={"Content-Type": content_type})
        told: Obj = answer.json()
        return answer.status_code, told

    def find(self, path: str) -> Obj | None:
        """One object, or None when there is none."""
        answer = self._http.get(path)
        if answer.status_code == 404:
            return None
        found: Obj = answer.raise_for_status().json()
        return found

    def items(self, path: str) -> list[Obj]:
        """A list's items."""
        items: list[Obj] = self.request("GET", path)["items"]
        return items

    def install_crd(self) -> None:
        """The CRDs of Model and ModelPool, served."""
        self.kubectl("apply", "-f", "-", text="---\n".join(crd_yaml(kind) for kind in KINDS))
        names = [f"crd/{kind.plural}.tandem.dev" for kind in KINDS]
        self.kubectl("wait", "--for=condition=Established", *names, "--timeout=30s")


async def eventually(what: str, probe: Callable[[], Any], seconds: float = 60.0) -> Any:
    """The first true value of `probe`; fails after `seconds` with what was last seen."""
    end = time.monotonic() + seconds
    while True:
        seen = probe()
        if isinstance(seen, Awaitable):
            seen = await seen
        if seen:
            return seen
        assert time.monotonic() < end, f"{what}: not within {seconds:.0f} s, last seen {seen!r}"
        await asyncio.sleep(0.05)
