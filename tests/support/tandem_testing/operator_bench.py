"""An operator of its own for one namespace of a shared cluster, and what a test does with it and asks of it.

It cares for this namespace alone, behind a `Proxy` of its own, so that a restart, a kill or a count in one test is no
concern of another.
"""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tandem_testing.cluster_state import owners
from tandem_testing.kube import Kube, Obj, eventually
from tandem_testing.operator_process import OperatorProcess
from tandem_testing.proxy import Proxy, Write

LISTED = "Listed the cluster"
_POLL_S = 0.3
API = "/apis/tandem.dev/v1alpha1"


@dataclass
class Bench:
    """One namespace and its operator."""

    kube: Kube
    namespace: str
    proxy: Proxy
    operator: OperatorProcess
    starts: int = 1

    @property
    def models(self) -> str:
        """Path of the namespace's Models."""
        return f"{API}/namespaces/{self.namespace}/models"

    def make(self, name: str, **spec: Any) -> Obj:
        """Creates a Model, on the CPU unless it is for a pool or says otherwise."""
        own = {} if "pool" in spec else {"device": "CPU"}
        return self._create("Model", name, {"source": "hf://org/name", **own, **spec})

    def make_pool(self, name: str, **spec: Any) -> Obj:
        """Creates a ModelPool on the CPU."""
        return self._create("ModelPool", name, {"device": "CPU", **spec})

    def _create(self, kind: str, name: str, spec: Obj) -> Obj:
        body = {"apiVersion": "tandem.dev/v1alpha1", "kind": kind, "metadata": {"name": name}, "spec": spec}
        return self.kube.request("POST", f"{API}/namespaces/{self.namespace}/{kind.lower()}s", body)

    def change(self, name: str, **spec: Any) -> Obj:
        """Merges fields into a Model's spec; None removes one."""
        return self.kube.request("PATCH", f"{self.models}/{name}", {"spec": spec}, "application/merge-patch+json")

    def delete(self, name: str) -> None:
        """Deletes a Model."""
        self.kube.request("DELETE", f"{self.models}/{name}")

    async def start(self) -> None:
        """Starts the operator and waits until it has seen the cluster."""
        self.starts += 1
        await self.operator.start()
        await self.seen()

    async def seen(self) -> None:
        """Waits until the operator has seen the cluster."""
        await eventually("the operator's start", lambda: self.operator.log.count(LISTED) == self.starts)

    async def restart(self) -> None:
        """kill -9 unless it is dead already, and a start; what was counted before is forgotten."""
        self.operator.kill()
        await self.operator.wait()
        self.proxy.clear()
        await self.start()

    async def settled(
        self, what: str, quiet: float, also: Callable[[], bool] = lambda: True, seconds: float = 60.0
    ) -> None:
        """Waits until every status is final, `also` is true, and nothing was written for `quiet` seconds."""

        async def final() -> bool:
            await asyncio.sleep(_POLL_S)
            found = list(owners(self.kube, self.namespace).values())
            return also() and all(map(is_final, found)) and all(counts_its_members(one, found) for one in found)

        await self.quiet(quiet, seconds, lambda: eventually(what, final, seconds))

    async def quiet(
        self, span: float, seconds: float = 60.0, first: Callable[[], Awaitable[Any]] | None = None
    ) -> None:
        """Waits until nothing was written for `span` seconds, each time after `first`; fails after `seconds`."""
        async with asyncio.timeout(seconds):
            before = -1
            while before != len(self.proxy.writes):
                if first is not None:
                    await first()
                before = len(self.proxy.writes)
                await asyncio.sleep(span)


def condition(model: Obj, kind: str) -> Obj:
    """One condition of a Model; empty when it has none of that type."""
    conditions = model.get("status", {}).get("conditions", [])
    return next((one for one in conditions if one["type"] == kind), {})


def is_final(owner: Obj) -> bool:
    """Whether the status of a Model or ModelPool speaks of the newest spec, and of pods that have done as it says."""
    status, spec = owner.get("status", {}), owner["spec"]
    complete = condition(owner, "Progressing").get("reason") == "Complete"
    kept = owner["kind"] == "Model" and (
        "pool" not in spec or spec.get("residency") == "Pinned" or spec.get("copies", {}).get("min", 0) > 0
    )
    loaded = not kept or condition(owner, "Loaded").get("status") == "True"
    return complete and loaded and status.get("observedGeneration") == owner["metadata"]["generation"]


def counts_its_members(owner: Obj, others: list[Obj]) -> bool:
    """Whether a ModelPool's status counts the Models that name it and are loaded; true of any Model."""
    if owner["kind"] != "ModelPool":
        return True
    members = [one for one in others if one["spec"].get("pool") == owner["metadata"]["name"]]
    loaded = sum(condition(one, "Loaded").get("status") == "True" for one in members)
    return (owner["status"].get("models"), owner["status"].get("loaded")) == (len(members), loaded)


def by_path(writes: list[Write]) -> dict[str, int]:
    """How often each path was written to."""
    found: dict[str, int] = {}
    for one in writes:
        found[one.path] = found.get(one.path, 0) + 1
    return found


@asynccontextmanager
async def running(kube: Kube, name: str, folder: Path, compare: bool = False, **options: Any) -> AsyncIterator[Bench]:
    """A bench in the new namespace `name` whose operator runs; at the end it must live, and is killed.

    `options` are those of `OperatorProcess`. The namespace stays, since its removal would cost the API server more
    than all that a test does in it; it goes with the cluster.
    """
    kube.request("POST", "/api/v1/namespaces", {"metadata": {"name": name}})
    account = f"/api/v1/namespaces/{name}/serviceaccounts/default"
    await eventually("a ServiceAccount for pods", lambda: kube.find(account))
    proxy = Proxy(kube, compare=compare)
    await proxy.start()
    operator = OperatorProcess(proxy, folder, more={"namespace": name}, **{"forked": True, **options})
    bench = Bench(kube, name, proxy, operator)
    await operator.start()
    try:
        await bench.seen()
        yield bench
        assert operator.running, operator.log
        assert "Traceback" not in operator.log
    except BaseException:
        print(operator.log[-8000:])
        raise
    finally:
        operator.kill()
        await operator.wait()
        await proxy.stop()
