"""Two operators on a real API server: one leads, and however it ends the other goes on and nothing is done twice."""

import asyncio
import signal
import time
import urllib.error
import urllib.request
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest

from tandem_devcluster.cluster import Cluster
from tandem_operator.kinds import OWNED
from tandem_testing.kube import Kube, Obj, eventually
from tandem_testing.operator_process import OperatorProcess
from tandem_testing.proxy import Proxy

pytestmark = pytest.mark.timeout(180)

NAMESPACE = "election-test"
MODELS = f"/apis/tandem.dev/v1alpha1/namespaces/{NAMESPACE}/models"
CORE = f"/api/v1/namespaces/{NAMESPACE}"
LEASES = f"/apis/coordination.k8s.io/v1/namespaces/{NAMESPACE}/leases"
LEASE_SECONDS, RENEW_SECONDS, RETRY_SECONDS = 6, 4.0, 0.3
WORKERS = 8


@pytest.fixture(scope="module")
def kube(control_plane: Cluster, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Kube]:
    made = Kube(control_plane, tmp_path_factory.mktemp("kube"))
    made.install_crd()
    made.kubectl("create", "namespace", NAMESPACE)
    yield made
    made.kubectl("delete", "namespace", NAMESPACE, "--wait=false")
    made.close()


class Replica:
    """One operator behind a proxy of its own."""

    def __init__(self, kube: Kube, folder: Path) -> None:
        self._kube = kube
        self._folder = folder
        self.proxy = Proxy(kube)
        self.process: OperatorProcess

    async def start(self) -> None:
        await self.proxy.start()
        election = {
            "enabled": True, "namespace": NAMESPACE, "name": "lead",
            "leaseSeconds": LEASE_SECONDS, "renewSeconds": RENEW_SECONDS, "retrySeconds": RETRY_SECONDS,
        }  # fmt: skip
        self.process = OperatorProcess(self.proxy, self._folder, more={"election": election, "namespace": NAMESPACE})
        await self.process.start()

    def ask(self, path: str) -> tuple[int, str]:
        """Status and text of its health endpoint."""
        url = f"http://127.0.0.1:{self.process.health_port}{path}"
        try:
            with urllib.request.urlopen(url, timeout=5) as answer:
                return answer.status, answer.read().decode()
        except urllib.error.HTTPError as error:
            with error:
                return error.code, error.read().decode()

    def leading(self) -> bool:
        return "leads: it holds the Lease" in self.process.log.rsplit("The operator has started", 1)[-1]


@dataclass
class Pair:
    """A leader, a standby, and the administrator."""

    kube: Kube
    leader: Replica
    standby: Replica

    def make(self, name: str) -> None:
        spec = {"source": "pvc://weights/x", "device": "CPU"}
        body = {"apiVersion": "tandem.dev/v1alpha1", "kind": "Model", "metadata": {"name": name}, "spec": spec}
        self.kube.request("POST", MODELS, body)

    async def served(self, name: str) -> None:
        """Waits until a Model has its objects and a status."""

        def told() -> bool:
            model = self.kube.find(f"{MODELS}/{name}") or {}
            ready = [one for one in model.get("status", {}).get("conditions", []) if one["type"] == "Ready"]
            return bool(ready) and ready[0]["reason"] == "Unschedulable"

        await eventually(f"Model {name} is cared for", told)

    def lease(self) -> Obj:
        return self.kube.request("GET", f"{LEASES}/lead")["spec"]  # type: ignore[no-any-return]

    async def calm(self, *replicas: Replica) -> None:
        """Waits until the replicas have written nothing for a second."""
        async with asyncio.timeout(30):
            before = -1
            while before != (count := sum(len(one.proxy.writes) for one in replicas)):
                before = count
                await asyncio.sleep(1.0)

    async def takes_over(self) -> None:
        await eventually("the standby leads", self.standby.leading, LEASE_SECONDS + 20)


@pytest.fixture
async def pair(kube: Kube, tmp_path: Path) -> AsyncIterator[Pair]:
    first, second = Replica(kube, tmp_path / "first"), Replica(kube, tmp_path / "second")
    async with ended(first, second):
        await first.start()
        await eventually("the first leads", first.leading)
        await second.start()
        await eventually("the second stands by", lambda: "Standing by: " in second.process.log)
        yield Pair(kube, first, second)
    kube.request("DELETE", MODELS)
    kube.request("DELETE", LEASES)


@asynccontextmanager
async def ended(*replicas: Replica) -> AsyncIterator[None]:
    """Whatever happens, no process stays; what they said is printed when something failed."""
    try:
        yield
    except BaseException:
        for one in replicas:
            print(one.process.log[-4000:])
        raise
    finally:
        for one in replicas:
            if hasattr(one, "process"):
                one.process.kill()
                await one.process.wait()
                await one.proxy.stop()


async def test_one_leads_and_the_other_waits_ready_and_silent(pair: Pair) -> None:
    pair.make("one")
    await pair.served("one")
    await pair.calm(pair.leader, pair.standby)
    assert pair.leader.proxy.effective
    assert pair.standby.proxy.writes == []
    holder = pair.lease()["holderIdentity"]
    assert pair.lease()["leaseTransitions"] == 0
    assert holder in pair.leader.process.log
    code, told = pair.standby.ask("/readyz")
    assert (code, told) == (200, f"standby: {holder} holds the Lease {NAMESPACE}/lead\n")
    assert pair.standby.ask("/healthz") == (200, told)
    assert pair.leader.ask("/readyz") == (200, "ready\n")
    for replica, leads in ((pair.leader, 1), (pair.standby, 0)):
        metrics = replica.ask("/metrics")[1]
        assert f"tandem_operator_leader {leads}.0" in metrics
    assert pair.standby.proxy.paths == {f"{LEASES}/lead"}, "it watches, lists and polls nothing"
    assert pair.standby.process.log.count("Standing by: ") == 1


async def test_killed_the_leader_is_followed_within_the_lease_and_nothing_is_done_twice(pair: Pair) -> None:
    for name in ("two", "three"):
        pair.make(name)
        await pair.served(name)
    await pair.calm(pair.leader, pair.standby)
    began = time.monotonic()
    pair.leader.process.kill()
    await pair.leader.process.wait()
    pair.make("four")
    await pair.takes_over()
    took = time.monotonic() - began
    assert took >= LEASE_SECONDS - 2 * RETRY_SECONDS - 0.5, "not before the Lease was over"
    await pair.served("four")
    await pair.calm(pair.standby)
    of_others = [one for one in pair.standby.proxy.effective if "four" not in one.path and one.method != "POST"]
    assert of_others == [], "what was there is left as it is"
    made = [one.path for one in pair.standby.proxy.effective if one.method == "POST"]
    assert len(made) == len(set(made)) == len(OWNED), made
    assert pair.lease()["leaseTransitions"] == 1


async def test_told_to_end_the_leader_hands_over_at_once(pair: Pair) -> None:
    pair.make("five")
    await pair.served("five")
    assert await pair.leader.process.stop() == 0
    assert "The Lease election-test/lead is released." in pair.leader.process.log
    began = time.monotonic()
    await pair.takes_over()
    assert time.monotonic() - began < LEASE_SECONDS - 1.5, "it did not wait for the Lease to expire"
    pair.make("six")
    await pair.served("six")
    assert await pair.standby.process.stop() == 0
    assert pair.lease()["holderIdentity"] == ""


async def test_stopped_and_woken_the_old_leader_writes_nothing_and_ends(pair: Pair) -> None:
    pair.make("seven")
    await pair.served("seven")
    await pair.calm(pair.leader)
    pair.leader.proxy.clear()
    # It is stopped in the middle of its work: each worker waits for the answer to a write, and finds it when it wakes.
    pair.leader.proxy.answering.clear()
    for number in range(10):
        pair.make(f"many-{number}")
    await eventually("every worker has written", lambda: len(pair.leader.proxy.writes) == WORKERS, 2)
    pair.leader.process.send(signal.SIGSTOP)
    pair.leader.proxy.answering.set()
    await pair.takes_over()
    followed = time.monotonic()
    for number in range(10):
        await pair.served(f"many-{number}")
    pair.kube.request("DELETE", f"{CORE}/services/tandem-m-seven")  # more to do, for both
    await eventually("the Service is made anew", lambda: pair.kube.find(f"{CORE}/services/tandem-m-seven"))
    pair.leader.process.send(signal.SIGCONT)
    assert await pair.leader.process.wait() == 1
    late = [one for one in pair.leader.proxy.writes if one.at > followed]
    assert late == []
    last = pair.leader.process.log.strip().splitlines()
    said = [line for line in last if "The operator ends, since" in line]
    assert len(said) == 1
    assert "the Lease could not be renewed for 4 s" in said[0]
    assert "Traceback" not in pair.leader.process.log
    assert pair.lease()["leaseTransitions"] == 1


async def test_without_an_api_server_the_leader_ends_and_a_restarted_one_goes_on(kube: Kube, tmp_path: Path) -> None:
    alone = Replica(kube, tmp_path / "alone")
    async with ended(alone):
        await alone.start()
        await eventually("it leads", alone.leading)
        pair = Pair(kube, alone, alone)
        pair.make("eight")
        await pair.served("eight")
        began = time.monotonic()
        await alone.proxy.stop()
        assert await alone.process.wait() == 1
        assert time.monotonic() - began < RENEW_SECONDS + 5
        assert "The operator ends, since the Lease could not be renewed for 4 s: " in alone.process.log
        assert "Traceback" not in alone.process.log
        await alone.process.start()
        await eventually("it says so", lambda: "cannot be acquired" in alone.process.log)
        code, told = await asyncio.to_thread(alone.ask, "/readyz")
        assert (code, told) == (503, f"standby: the Lease {NAMESPACE}/lead could not be read yet\n")
        assert (await asyncio.to_thread(alone.ask, "/healthz"))[0] == 200
        pair.make("nine")
        await alone.proxy.start()
        await eventually("it leads again", alone.leading)
        await pair.served("nine")
        assert await alone.process.stop() == 0
    kube.request("DELETE", MODELS)
    kube.request("DELETE", LEASES)


async def test_the_standby_that_is_told_to_end_disturbs_nobody(pair: Pair) -> None:
    assert await pair.standby.process.stop() == 0
    pair.make("ten")
    await pair.served("ten")
    assert pair.leader.process.running
    assert pair.standby.proxy.writes == []
    assert pair.lease()["leaseTransitions"] == 0
