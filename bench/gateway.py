"""Calls through the gateway against direct ones: what the gateway adds to a request. `make bench-gateway`.

Four processes on this machine: a stand-in for the Kubernetes API (one Model, one pod), a stand-in for the pod that
answers at once, the real gateway, and this one, which calls the pod directly and through the gateway in turns. The
stand-ins do no work of their own, so that the difference is the gateway's alone; with a real model behind it the
share is far smaller. The last line of output is the result as JSON.
"""

import argparse
import asyncio
import json
import os
import platform
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Awaitable, Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any

import aiohttp
import uvloop
from aiohttp import web

PIECES = 64
BODY = {"model": "bench", "messages": [{"role": "user", "content": "x" * 2000}]}
UID = "uid-bench"
TARGET_MS = 2.0


async def small(_: web.Request) -> web.StreamResponse:
    """An answer of one piece."""
    return web.json_response({"choices": [{"message": {"content": "y" * 200}}]})


async def stream(request: web.Request) -> web.StreamResponse:
    """An answer of many pieces, as fast as they are taken."""
    response = web.StreamResponse(headers={"Content-Type": "text/event-stream"})
    await response.prepare(request)
    for _ in range(PIECES):
        await response.write(b'data: {"choices": [{"delta": {"content": "token"}}]}\n\n')
        await asyncio.sleep(0)
    return response


async def objects(request: web.Request) -> web.StreamResponse:
    """The API server's list, and a watch in which nothing happens."""
    if request.query.get("watch"):
        response = web.StreamResponse()
        await response.prepare(request)
        await asyncio.sleep(3600)
        return response
    meta = {"name": "bench", "namespace": "default", "creationTimestamp": "2026-01-01T00:00:00Z"}
    model = {"metadata": {**meta, "uid": UID}, "spec": {}}
    pod = {
        "metadata": {**meta, "uid": "uid-pod", "labels": {"tandem.dev/pool-uid": UID}},
        "status": {"phase": "Running", "podIP": "127.0.0.1", "conditions": [{"type": "Ready", "status": "True"}]},
    }
    items = [model if request.path.endswith("models") else pod]
    return web.json_response({"metadata": {"resourceVersion": "1"}, "items": items})


def stand_in(role: str, port: int) -> None:
    """Runs a stand-in until it is killed."""
    app = web.Application()
    if role == "pod":
        app.router.add_post("/v1/chat/completions", small)
        app.router.add_post("/v1/completions", stream)
    else:
        app.router.add_get("/{rest:.*}", objects)
    web.run_app(app, host="127.0.0.1", port=port, print=lambda _: None, loop=uvloop.new_event_loop(), access_log=None)


def free_ports(count: int) -> list[int]:
    """Ports that nobody listens on now."""
    taken = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
    ports = [each.getsockname()[1] for each in taken]
    for each in taken:
        each.close()
    return ports


def start(folder: Path) -> tuple[list[subprocess.Popen[bytes]], str, str, str]:
    """Starts the stand-ins and the gateway: processes, the pod's address, the gateway's, its health address."""
    api, pod, public, internal, health = free_ports(5)
    (folder / "master").write_text("a master secret of a benchmark")
    config = {
        "current-context": "b",
        "contexts": [{"name": "b", "context": {"cluster": "b"}}],
        "clusters": [{"name": "b", "cluster": {"server": f"http://127.0.0.1:{api}"}}],
    }
    (folder / "kubeconfig").write_text(json.dumps(config))
    environment = {
        **os.environ,
        "KUBECONFIG": str(folder / "kubeconfig"),
        "TANDEM_MASTER_SECRET_FILE": str(folder / "master"),
        "TANDEM_GATEWAY_HOST": "127.0.0.1",
        "TANDEM_GATEWAY_PORT": str(public),
        "TANDEM_INTERNAL_PORT": str(internal),
        "TANDEM_HEALTH_PORT": str(health),
        "TANDEM_POD_HTTP_PORT": str(pod),
        "TANDEM_LINGER_SECONDS": "0",
    }
    own = [sys.executable, __file__, "--stand-in"]
    processes = [
        subprocess.Popen([*own, "pod", "--port", str(pod)]),
        subprocess.Popen([*own, "api", "--port", str(api)]),
        subprocess.Popen([sys.executable, "-m", "tandem_gateway"], env=environment, stderr=subprocess.DEVNULL),
    ]
    base = "http://127.0.0.1:"
    return processes, f"{base}{pod}", f"{base}{public}", f"{base}{health}/readyz"


async def wait_until_served(session: aiohttp.ClientSession, direct: str, gateway: str, ready: str) -> None:
    """Returns when pod and gateway answer."""
    async with asyncio.timeout(30):
        while True:
            try:
                async with session.get(ready) as health, session.post(direct + "/v1/chat/completions") as pod:
                    if health.status == 200 and pod.status == 200:
                        return
            except aiohttp.ClientConnectorError:
                pass
            await asyncio.sleep(0.05)


async def call(session: aiohttp.ClientSession, url: str) -> float:
    """Milliseconds of one whole call."""
    began = time.perf_counter()
    async with session.post(url, json=BODY) as response:
        await response.read()
        if response.status != 200:
            raise RuntimeError(f"{url} answered {response.status}")
    return (time.perf_counter() - began) * 1000


async def latency(session: aiohttp.ClientSession, base: str, count: int) -> float:
    """Median milliseconds of small calls, one after the other."""
    return statistics.median([await call(session, base + "/v1/chat/completions") for _ in range(count)])


async def streams(session: aiohttp.ClientSession, base: str, count: int) -> float:
    """Streams a second with 16 at once."""
    left = count

    async def client() -> None:
        nonlocal left
        while left > 0:
            left -= 1
            await call(session, base + "/v1/completions")

    began = time.perf_counter()
    await asyncio.gather(*(client() for _ in range(16)))
    return count / (time.perf_counter() - began)


async def measure(direct: str, gateway: str, ready: str, rounds: int) -> dict[str, list[tuple[float, float]]]:
    """Pairs (direct, through the gateway) of each measure, one pair a round."""
    measures: dict[str, tuple[Callable[..., Awaitable[float]], int]] = {
        "latency": (latency, 200),
        "streams": (streams, 320),
    }
    found: dict[str, list[tuple[float, float]]] = {name: [] for name in measures}
    async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0)) as session:
        await wait_until_served(session, direct, gateway, ready)
        for number in range(rounds + 1):
            for name, (function, count) in measures.items():
                pair = (await function(session, direct, count), await function(session, gateway, count))
                if number:  # the first round warms everything up
                    found[name].append(pair)
                    print(f"round {number}, {name}: direct {pair[0]:.2f}, gateway {pair[1]:.2f}", flush=True)
    return found


def result(found: dict[str, list[tuple[float, float]]]) -> dict[str, Any]:
    """The result in the form that `tools/record.py` keeps."""
    added = [through - direct for direct, through in found["latency"]]
    share = [through / direct for direct, through in found["streams"]]

    def aim(text: str, values: list[float], target: str, ok: bool | None) -> dict[str, Any]:
        spread = f"{min(values):.2f} to {max(values):.2f}"
        return {"aim": text, "value": round(statistics.median(values), 2), "spread": spread, "target": target, "ok": ok}

    return {
        "name": "gateway",
        "machine": f"{platform.machine()}, {os.cpu_count()} cores, all processes on it",
        "versions": {name: version(name) for name in ("aiohttp", "uvicorn", "uvloop")},
        "aims": [
            aim(
                "milliseconds that the gateway adds to a small call (median of medians)",
                added,
                f"<= {TARGET_MS}",
                statistics.median(added) <= TARGET_MS,
            ),
            aim(
                f"streams of {PIECES} pieces a second, 16 at once, through the gateway / direct",
                share,
                "-",
                None,
            ),
        ],
    }


def main() -> None:
    """Runs the benchmark, or one of its stand-ins."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--stand-in", choices=("pod", "api"))
    parser.add_argument("--port", type=int, default=0)
    options = parser.parse_args()
    if options.stand_in:
        stand_in(options.stand_in, options.port)
        return
    with tempfile.TemporaryDirectory() as folder:
        processes, direct, gateway, ready = start(Path(folder))
        try:
            found = uvloop.run(measure(direct, gateway, ready, options.rounds))
        finally:
            for process in processes:
                process.kill()
                process.wait()
    print(json.dumps(result(found)))


if __name__ == "__main__":
    main()
