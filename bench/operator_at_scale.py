"""Hundreds of Models on fake nodes: what the operator costs, at work and at rest. `make bench-operator`.

A real control plane, kwok's nodes, one server that answers for all pods, and two processes side by side in each round:
the operator, and bare kopf with the same watches whose handlers do nothing, which is the floor of any operator on kopf.
Both see the same events in the same seconds. The last line of output is the result as JSON.

(Not named `operator.py`: Python would take it for the standard library's module of that name.)
"""

import argparse
import asyncio
import json
import os
import platform
import signal
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests" / "support"))

from tandem_devcluster import cluster
from tandem_devcluster.progress import Progress
from tandem_operator.cache import Cache
from tandem_operator.watch import settings_of, watch
from tandem_testing.cluster_state import owners
from tandem_testing.kube import Kube
from tandem_testing.operator_bench import Bench, counts_its_members, is_final, running
from tandem_testing.operator_process import MASTER
from tandem_testing.report_server import ReportServer

IDLE_TARGET = 1.0
CHANGES = 40
TICKS = os.sysconf("SC_CLK_TCK")


@dataclass
class Figures:
    """One value a round; seconds, percent of one core, and so on as `result` names them."""

    values: dict[str, list[float]] = field(default_factory=dict)

    def add(self, name: str, value: float) -> None:
        """Keeps and shows a value."""
        self.values.setdefault(name, []).append(value)
        print(f"{name}: {value:.2f}", file=sys.stderr, flush=True)


def cpu(pid: int) -> float:
    """User and system seconds of a process so far."""
    text = Path(f"/proc/{pid}/stat").read_text()
    fields = text[text.rindex(")") + 2 :].split()
    return (int(fields[11]) + int(fields[12])) / TICKS


def memory(pid: int) -> float:
    """Largest resident memory of a process, in MB."""
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return next(int(line.split()[1]) / 1000 for line in lines if line.startswith("VmHWM"))


class Deaf(Cache):
    """A cache that takes nothing in."""

    def put(self, *_: Any) -> bool:
        """Forgets it at once."""
        return False

    def drop(self, *_: Any) -> bool:
        """Knows of none."""
        return False


def floor(namespace: str) -> None:
    """Bare kopf with the operator's watches, until it is killed."""

    async def nothing() -> None:
        return

    async def watching() -> None:
        await watch(Deaf(lambda _: None), settings_of(), asyncio.Event(), nothing, lambda _: None, namespace)

    asyncio.run(watching())


async def until(what: str, probe: Callable[[], bool], seconds: float) -> None:
    """Waits until `probe`, asked in a thread twice a second, is true; TimeoutError after `seconds`."""
    end = time.monotonic() + seconds
    while not await asyncio.to_thread(probe):
        if time.monotonic() > end:
            raise TimeoutError(f"{what}: not within {seconds:.0f} s")
        await asyncio.sleep(0.5)


def make_all(bench: Bench, models: int) -> None:
    """Models with pods of their own, and a shared pool with five members."""
    bench.make_pool("shared", replicas=2)
    for number in range(5):
        bench.make(f"s-{number}", pool="shared", copies={"min": 1})
    for number in range(models):
        bench.make(f"m-{number:03d}")


def all_told(bench: Bench) -> bool:
    """Whether every status is final."""
    found = list(owners(bench.kube, bench.namespace).values())
    return all(map(is_final, found)) and all(counts_its_members(one, found) for one in found)


async def react(bench: Bench, figures: Figures) -> None:
    """Milliseconds from a change of a spec to the operator's write of the catalog, one Model after the other."""
    spans = []
    for number in range(CHANGES):
        name, seen = f"m-{number:03d}", len(bench.proxy.writes)
        began = time.monotonic()
        await asyncio.to_thread(bench.change, name, slots=7)
        async with asyncio.timeout(30):
            while not (  # noqa: ASYNC110 - the proxy has no event for it
                writes := [one for one in bench.proxy.writes[seen:] if f"configmaps/tandem-m-{name}" in one.path]
            ):
                await asyncio.sleep(0.001)
        spans.append((writes[0].at - began) * 1000)
        await asyncio.sleep(0.05)
    spans.sort()
    figures.add("react p50", statistics.median(spans))
    figures.add("react p95", spans[int(len(spans) * 0.95)])


async def one_round(bench: Bench, peer: int, options: argparse.Namespace, figures: Figures) -> None:
    """Settles, rests, reacts."""
    pids = {"operator": bench.operator.pid, "floor": peer}
    started = {name: cpu(pid) for name, pid in pids.items()}
    began = time.monotonic()
    await asyncio.to_thread(make_all, bench, options.models)
    await until("all statuses", lambda: all_told(bench), 60 + options.models)
    figures.add("seconds to all statuses", time.monotonic() - began)
    await bench.quiet(3.0, 60)
    for name, pid in pids.items():
        figures.add(f"{name} CPU to settle", cpu(pid) - started[name])
    writes = bench.proxy.writes
    total = options.models + 5 + 1
    figures.add(
        "writes of objects", sum("/events" not in one.path and "/status" not in one.path for one in writes) / total
    )
    figures.add("writes of statuses", sum(one.path.endswith("/status") for one in writes) / total)
    figures.add("Events", sum("/events" in one.path for one in writes) / total)
    bench.proxy.clear()
    began, started = time.monotonic(), {name: cpu(pid) for name, pid in pids.items()}
    await asyncio.sleep(options.idle)
    for name, pid in pids.items():
        figures.add(f"{name} idle CPU", 100 * (cpu(pid) - started[name]) / (time.monotonic() - began))
    figures.add("writes while idle", len(bench.proxy.writes))
    await react(bench, figures)
    for name, pid in pids.items():
        figures.add(f"{name} memory", memory(pid))


async def measure(kube: Kube, folder: Path, options: argparse.Namespace) -> Figures:
    """All rounds, each in a namespace and with processes of its own."""
    figures = Figures()
    server = ReportServer(kube, MASTER)
    await server.start()
    for number in range(options.rounds):
        name = f"round-{number}"
        # As it is installed, but for the settings that a test needs: relists and gauges are the defaults.
        async with running(kube, name, folder / name, report_port=server.port, forked=False) as bench:
            environment = {**os.environ, "KUBECONFIG": str(folder / name / "kubeconfig")}
            command = [sys.executable, __file__, "--floor", name]
            peer = await asyncio.create_subprocess_exec(*command, env=environment)
            try:
                await asyncio.sleep(3)  # its start is not measured
                await one_round(bench, peer.pid, options, figures)
            finally:
                peer.kill()
                await peer.wait()
    await server.stop()
    return figures


def result(figures: Figures, options: argparse.Namespace) -> dict[str, Any]:
    """The result in the form that `tools/record.py` keeps."""

    def aim(text: str, name: str, target: str = "-", ok: Callable[[float], bool] | None = None) -> dict[str, Any]:
        found = figures.values[name]
        value = statistics.median(found)
        return {
            "aim": text,
            "value": round(value, 2),
            "spread": f"{min(found):.2f} to {max(found):.2f}",
            "target": target,
            "ok": None if ok is None else ok(value),
        }

    idle = f"< {IDLE_TARGET:.0f}"
    return {
        "name": "operator",
        "machine": f"{platform.machine()}, {os.cpu_count()} cores, all processes on it; {options.models} Models with "
        f"pods of their own and 5 in a shared pool; {options.idle:.0f} s of rest",
        "versions": {"kubernetes": "1.34.2", **{name: version(name) for name in ("kopf", "aiohttp")}},
        "aims": [
            aim(
                "CPU of the operator at rest, percent of one core", "operator idle CPU", idle, lambda x: x < IDLE_TARGET
            ),
            aim("the same of bare kopf with the same watches", "floor idle CPU"),
            aim("API writes at rest", "writes while idle", "0", lambda x: x == 0),
            aim("seconds from the first Model's creation to the last status", "seconds to all statuses"),
            aim("CPU seconds until then", "operator CPU to settle"),
            aim("the same of bare kopf with the same watches", "floor CPU to settle"),
            aim("writes of objects a Model", "writes of objects"),
            aim("writes of statuses a Model", "writes of statuses", "<= 4", lambda x: x <= 4),
            aim("Events a Model", "Events", "<= 3", lambda x: x <= 3),
            aim("milliseconds from a change of a spec to the write of the catalog, p50", "react p50"),
            aim("the same, p95", "react p95"),
            aim("largest memory of the operator, MB", "operator memory"),
            aim("the same of bare kopf", "floor memory"),
        ],
    }


def main() -> None:
    """Runs the benchmark, or its peer."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--models", type=int, default=200)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--idle", type=float, default=60.0)
    parser.add_argument("--floor", metavar="NAMESPACE")
    options = parser.parse_args()
    if options.floor:
        floor(options.floor)
        return
    name = f"bench-{os.getpid()}"
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that the cluster goes then too
    try:
        made = cluster.up(name, progress=Progress(), qps=500, fake_nodes=4)
        with tempfile.TemporaryDirectory() as folder:
            kube = Kube(made, Path(folder))
            kube.install_crd()
            kube.kubectl("get", "models,modelpools", "-A")
            figures = asyncio.run(measure(kube, Path(folder), options))
            kube.close()
    finally:
        cluster.down(name)
    print(json.dumps(result(figures, options)))


if __name__ == "__main__":
    main()
