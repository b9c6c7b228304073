"""A real operator process, with a proxy (`proxy.py`) as its API server."""

import asyncio
import os
import re
import signal
import sys
from pathlib import Path
from typing import Any

import yaml

from tandem_testing.forked import Forked
from tandem_testing.proxy import Proxy

MASTER = "a-master-secret-for-tests"


class OperatorProcess:
    """`python -m tandem_operator` with the proxy as its API server."""

    def __init__(
        self,
        proxy: Proxy,
        folder: Path,
        report_port: int = 8081,
        token: str = "unused",
        relist: float = 60,
        gauges: float = 10,
        more: dict[str, Any] | None = None,
        forked: bool = False,
    ) -> None:
        """`more` are further settings, such as `namespace` and `election`; `forked` starts it the quick way."""
        folder.mkdir(exist_ok=True)
        self._folder = folder
        self._log = folder / "operator.log"
        self._proxy = proxy
        settings = {
            "server": {"image": "tandem.dev/server:test"},
            "installNamespace": "tandem-system",
            "reportPort": report_port,
            "relistSeconds": relist,
            "gaugeSeconds": gauges,
            "healthHost": "127.0.0.1",
            "healthPort": 0,
            "log": {"level": "debug"},
            **(more or {}),
        }
        (folder / "config.yaml").write_text(yaml.safe_dump(settings))
        (folder / "master").write_text(MASTER)
        kubeconfig = {
            "apiVersion": "v1",
            "kind": "Config",
            "current-context": "test",
            "contexts": [{"name": "test", "context": {"cluster": "test", "user": "test"}}],
            "clusters": [{"name": "test", "cluster": {"server": f"http://127.0.0.1:{proxy.port}"}}],
            "users": [{"name": "test", "user": {"token": token}}],
        }
        (folder / "kubeconfig").write_text(yaml.safe_dump(kubeconfig))
        self._forked = forked
        self._process: asyncio.subprocess.Process | Forked | None = None

    async def start(self) -> None:
        """Starts the process."""
        environment = {
            "KUBECONFIG": str(self._folder / "kubeconfig"),
            "TANDEM_OPERATOR_CONFIG": str(self._folder / "config.yaml"),
            "TANDEM_MASTER_SECRET_FILE": str(self._folder / "master"),
            "PYTHONSAFEPATH": "1",
        }
        if self._forked:
            self._process = Forked(environment, self._log)
            return
        with self._log.open("ab") as log:
            self._process = await asyncio.create_subprocess_exec(
                *[sys.executable, "-m", "tandem_operator"], env={**os.environ, **environment}, stdout=log, stderr=log
            )

    @property
    def log(self) -> str:
        """All that it has said."""
        return self._log.read_text() if self._log.exists() else ""

    @property
    def running(self) -> bool:
        """Whether it lives."""
        return self._process is not None and self._process.returncode is None

    @property
    def health_port(self) -> int:
        """Where its health is told, once it has started; of the latest start."""
        found = re.findall(r"its health is told on port (\d+)", self.log)
        return int(found[-1]) if found else 0

    @property
    def pid(self) -> int:
        """The process's id."""
        assert self._process is not None
        return self._process.pid

    def send(self, number: signal.Signals) -> None:
        """Sends a signal to the process while it lives."""
        if self._process is not None and self._process.returncode is None:
            self._process.send_signal(number)

    def kill(self) -> None:
        """kill -9, at once."""
        self.send(signal.SIGKILL)

    async def wait(self, seconds: float = 20.0) -> int:
        """Waits for its end; its exit status."""
        assert self._process is not None
        async with asyncio.timeout(seconds):
            return await self._process.wait()

    async def stop(self) -> int:
        """SIGTERM, and its exit status."""
        assert self._process is not None
        if self._process.returncode is None:
            self._process.terminate()
        return await self.wait()
