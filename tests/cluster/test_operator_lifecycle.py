"""The operator as a process against a real API server: what it makes, repairs, leaves alone, and never repeats."""

import asyncio
import json
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
import yaml
from aiohttp import web

from tandem_api.keys import pool_key
from tandem_api.report import ModelReport, ModelState, Progress, Report
from tandem_devcluster.cluster import Cluster
from tandem_testing.kube import Kube, Obj, eventually
from tandem_testing.operator_process import MASTER, OperatorProcess
from tandem_testing.operator_world import loaded
from tandem_testing.proxy import Proxy

pytestmark = pytest.mark.timeout(180)

NAMESPACE = "operator-test"
MODELS = f"/apis/tandem.dev/v1alpha1/namespaces/{NAMESPACE}/models"
CORE = f"/api/v1/namespaces/{NAMESPACE}"
DEPLOYMENTS = f"/apis/apps/v1/namespaces/{NAMESPACE}/deployments"
POLICIES = f"/apis/networking.k8s.io/v1/namespaces/{NAMESPACE}/networkpolicies"
BUDGETS = f"/apis/policy/v1/namespaces/{NAMESPACE}/poddisruptionbudgets"
OBJECTS = 6
"""How many objects a Model with pods of its own has."""
ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def kube(control_plane: Cluster, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Kube]:
    made = Kube(control_plane, tmp_path_factory.mktemp("kube"))
    made.install_crd()
    made.kubectl("create", "namespace", NAMESPACE)
    made.kubectl("label", "namespace", NAMESPACE, "pod-security.kubernetes.io/enforce=restricted")
    yield made
    made.kubectl("delete", "namespace", NAMESPACE, "--wait=false")
    made.close()


@dataclass
class Bench:
    """An operator behind a counting proxy, and the administrator beside it."""

    kube: Kube
    proxy: Proxy
    operator: OperatorProcess

    def make(self, name: str, **spec: Any) -> Obj:
        body = {
            "apiVersion": "tandem.dev/v1alpha1",
            "kind": "Model",
            "metadata": {"name": name},
            "spec": {"source": "pvc://weights/x", "device": "CPU", **spec},
        }
        return self.kube.request("POST", MODELS, body)

    def change(self, name: str, **spec: Any) -> Obj:
        return self.kube.request("PATCH", f"{MODELS}/{name}", {"spec": spec}, "application/merge-patch+json")

    def owned(self, name: str) -> dict[str, Obj | None]:
        """The objects of a Model."""
        bare = f"tandem-m-{name}"
        return {
            "ConfigMap": self.kube.find(f"{CORE}/configmaps/{bare}"),
            "Secret": self.kube.find(f"{CORE}/secrets/{bare}"),
            "Service": self.kube.find(f"{CORE}/services/{bare}"),
            "NetworkPolicy": self.kube.find(f"{POLICIES}/{bare}"),
            "PodDisruptionBudget": self.kube.find(f"{BUDGETS}/{bare}"),
            "Deployment": self.kube.find(f"{DEPLOYMENTS}/{bare}"),
        }

    async def complete(self, name: str) -> dict[str, Obj]:
        """Waits until all exist."""

        def probe() -> dict[str, Obj] | None:
            found = {kind: obj for kind, obj in self.owned(name).items() if obj is not None}
            return found if len(found) == len(self.owned(name)) else None

        found: dict[str, Obj] = await eventually(f"objects of {name}", probe)
        return found

    def condition(self, name: str, kind: str = "Ready") -> Obj:
        model = self.kube.find(f"{MODELS}/{name}") or {}
        conditions = model.get("status", {}).get("conditions", [])
        return next((one for one in conditions if one["type"] == kind), {})

    async def reaches(self, name: str, reason: str, kind: str = "Ready") -> Obj:
        """Waits until a condition has a reason."""

        def probe() -> Obj | None:
            found = self.condition(name, kind)
            return found if found.get("reason") == reason else None

        found: Obj = await eventually(f"{kind} of {name} is {reason}", probe)
        return found

    async def calm(self) -> None:
        """Waits until the operator has written nothing for a second; fails when it never stops."""
        async with asyncio.timeout(30):
            before = -1
            while before != len(self.proxy.writes):
                before = len(self.proxy.writes)
                await asyncio.sleep(1.0)

    def pods(self, name: str) -> list[Obj]:
        return self.kube.items(f"{CORE}/pods?labelSelector=tandem.dev/pool={name}")

    def notes(self, name: str) -> list[tuple[str, str]]:
        """Reason and note of the Model's Events, in order."""
        found = self.kube.items(f"/apis/events.k8s.io/v1/namespaces/{NAMESPACE}/events")
        ours = [one for one in found if one["regarding"].get("name") == name and one["regarding"]["kind"] == "Model"]
        return [(one["reason"], one["note"]) for one in sorted(ours, key=lambda one: str(one["eventTime"]))]


@asynccontextmanager
async def running(kube: Kube, folder: Path, **options: Any) -> AsyncIterator[Bench]:
    """A bench whose operator runs; at the end it must still live and end well when told to."""
    as_caller = "token" in options
    proxy = Proxy(kube, as_caller)
    await proxy.start()
    operator = OperatorProcess(proxy, folder, **options)
    await operator.start()
    try:
        yield Bench(kube, proxy, operator)
        assert operator.running, operator.log
        assert await operator.stop() == 0, operator.log
        assert "Traceback" not in operator.log
    except BaseException:
        print(operator.log[-8000:])
        raise
    finally:
        operator.kill()
        await operator.wait()
        await proxy.stop()
        kube.request("DELETE", MODELS)


@pytest.fixture
async def bench(kube: Kube, tmp_path: Path) -> AsyncIterator[Bench]:
    async with running(kube, tmp_path) as made:
        yield made


async def test_changes_of_the_spec_and_by_others_are_brought_in_line(bench: Bench) -> None:
    bench.make("second")
    before = await bench.complete("second")
    bench.change("second", slots=7)
    await eventually(
        "the catalog follows", lambda: '"slots":7' in (bench.owned("second")["ConfigMap"] or {})["data"]["catalog.json"]
    )
    assert bench.owned("second")["Deployment"]["metadata"]["generation"] == 1, "the pods' own spec is unchanged"  # type: ignore[index]
    bench.change("second", replicas=2, source="hf://org/name")

    def moved() -> bool:
        spec = bench.owned("second")["Deployment"]["spec"]  # type: ignore[index]
        names = {one["name"] for one in spec["template"]["spec"]["volumes"]}
        return spec["replicas"] == 2 and "source" not in names

    await eventually("a volume that is no longer wanted goes", moved)
    path = f"{DEPLOYMENTS}/tandem-m-second"
    bench.kube.request("PATCH", path, {"spec": {"replicas": 9}}, "application/merge-patch+json")
    await eventually("replicas are set back", moved)
    bench.kube.request("DELETE", f"{CORE}/services/tandem-m-second")
    await eventually("the Service is made anew", lambda: bench.owned("second")["Service"])
    assert before["Service"]["metadata"]["uid"] != bench.owned("second")["Service"]["metadata"]["uid"]  # type: ignore[index]


async def test_a_foreign_object_is_left_untouched_and_told(bench: Bench) -> None:
    foreign = bench.kube.request(
        "POST", f"{CORE}/configmaps", {"metadata": {"name": "tandem-m-third"}, "data": {"mine": "yes"}}
    )
    bench.make("third")
    told = await bench.reaches("third", "NameTaken", "NameConflict")
    assert "the ConfigMap tandem-m-third exists and nobody's controller reference is on it" in told["message"]
    await bench.calm()
    assert bench.kube.find(f"{CORE}/configmaps/tandem-m-third") == foreign
    assert "NameConflict" in dict(bench.notes("third"))
    bench.kube.request("DELETE", f"{CORE}/configmaps/tandem-m-third")
    await bench.complete("third")
    await eventually("the condition goes", lambda: not bench.condition("third", "NameConflict"), 70)


async def test_a_restart_writes_nothing(kube: Kube, tmp_path: Path) -> None:
    names = [f"many-{number}" for number in range(20)]
    async with running(kube, tmp_path) as bench:
        for name in names:
            bench.make(name, slots=2, resources={"cpu": "0.5", "memory": "1024Mi"})
        for name in names:
            await bench.reaches(name, "Unschedulable")
        await bench.calm()
        made = [one for one in bench.proxy.effective if one.method == "POST"]
        assert len(made) == 20 * OBJECTS
        bench.operator.kill()
        await bench.operator.wait()
        bench.proxy.clear()
        await bench.operator.start()
        await eventually("the second start", lambda: bench.operator.log.count("Listed the cluster") == 2)
        await bench.calm()
        assert bench.proxy.writes == []


class Pod:
    """A serving pod as far as the operator sees one: a report behind a key."""

    def __init__(self) -> None:
        self.uid = ""
        self.port = 0
        self.report = Report(pod="p", version="0")
        self.asked = 0

    async def start(self) -> None:
        app = web.Application()
        app.router.add_get("/internal/report", self._answer)
        self._runner = web.AppRunner(app, access_log=None, shutdown_timeout=0.1)
        await self._runner.setup()
        await web.TCPSite(self._runner, "127.0.0.1", 0).start()
        self.port = int(self._runner.addresses[0][1])

    async def stop(self) -> None:
        await self._runner.cleanup()

    async def _answer(self, request: web.Request) -> web.Response:
        if request.headers.get("Authorization") != f"Bearer {pool_key(MASTER.encode(), self.uid)}":
            return web.Response(status=401)
        self.asked += 1
        return web.Response(text=self.report.model_dump_json(by_alias=True), content_type="application/json")

    def says(self, entry: ModelReport, revision: str = "") -> None:
        self.report = Report(pod="p", version="0", catalog_revision=revision, models=[entry])


@pytest.fixture
async def pod() -> AsyncIterator[Pod]:
    made = Pod()
    await made.start()
    yield made
    await made.stop()


def bind(kube: Kube, name: str, ready: bool) -> None:
    """Makes a pod look as one that runs on a node."""
    path = f"{CORE}/pods/{name}"
    if not (kube.find(path) or {})["spec"].get("nodeName"):
        target = {"apiVersion": "v1", "kind": "Node", "name": "no-such-node"}
        kube.request("POST", f"{path}/binding", {"metadata": {"name": name}, "target": target})
    turned = datetime.now(UTC)
    state = {"running": {"startedAt": (turned - timedelta(seconds=42)).strftime("%Y-%m-%dT%H:%M:%SZ")}}
    container = {"name": "server", "ready": ready, "restartCount": 0, "image": "x", "imageID": "x", "state": state}
    status = {
        "phase": "Running",
        "podIP": "127.0.0.1",
        "podIPs": [{"ip": "127.0.0.1"}],
        "conditions": [
            {"type": "Ready", "status": str(ready), "lastTransitionTime": turned.strftime("%Y-%m-%dT%H:%M:%SZ")},
        ],
        "containerStatuses": [container],
    }
    kube.request("PATCH", f"{path}/status", {"status": status}, "application/strategic-merge-patch+json")


async def test_status_follows_the_reports_of_pods(kube: Kube, tmp_path: Path, pod: Pod) -> None:
    async with running(kube, tmp_path, report_port=pod.port) as bench:
        pod.uid = bench.make("served")["metadata"]["uid"]
        found = await bench.complete("served")
        revision = json.loads(found["ConfigMap"]["data"]["catalog.json"])["revision"]
        await bench.reaches("served", "Unschedulable")
        (made,) = bench.pods("served")
        name = made["metadata"]["name"]
        progress = Progress(phase="reading weights", fraction=0.25, total_bytes=4_000_000)
        pod.says(ModelReport(name="served", state=ModelState.LOADING, progress=progress), revision)
        bind(kube, name, ready=False)
        load = await bench.reaches("served", "Loading")
        assert load["message"] == f"Pod {name} is reading weights: 25% of 4.0 MB."
        entry = loaded(name="served", context_asked=8192, context_given=2048, busy=1, queued=2)
        pod.says(entry, revision)
        bind(kube, name, ready=True)
        await bench.reaches("served", "Loaded")
        reduced = await bench.reaches("served", "MemoryShort", "ContextReduced")
        assert "2048 tokens of context instead of 8192" in reduced["message"]
        line = kube.kubectl("get", "model", "served", "-n", NAMESPACE).stdout.splitlines()[1]
        assert " ".join(line.split()).startswith("served True 1 12 MB 100% CPU 2048 1/4 in use")
        expected = ["Created", "Unschedulable", "Loading", "Loaded", "ContextReduced"]
        await eventually("the Events", lambda: [reason for reason, _ in bench.notes("served")] == expected)
        assert "Loaded in 42 s" in dict(bench.notes("served"))["Loaded"]
        assert pod.asked > 0
        await touched_when_the_catalog_changes(bench, pod, name, entry)
        await told_when_its_runner_dies(bench, pod, entry)
        await silent_after_a_restart(bench, pod)
        kube.request("DELETE", f"{CORE}/pods/{name}?gracePeriodSeconds=0")


async def touched_when_the_catalog_changes(bench: Bench, pod: Pod, name: str, entry: ModelReport) -> None:
    """The pod's annotation changes at once, and again while its report says an older catalog."""

    def annotation() -> str:
        live = bench.kube.find(f"{CORE}/pods/{name}") or {}
        return str(live["metadata"].get("annotations", {}).get("tandem.dev/catalog-revision", ""))

    bench.change("served", slots=6)
    first = await eventually("the first touch", annotation)
    second = await eventually("the second touch", lambda: annotation() if annotation() != first else "")
    assert second == f"{first}.2"
    pod.says(entry, first)
    await bench.calm()
    live = bench.owned("served")["ConfigMap"]
    assert live is not None
    assert json.loads(live["data"]["catalog.json"])["revision"] == first


async def told_when_its_runner_dies(bench: Bench, pod: Pod, entry: ModelReport) -> None:
    """An Event names the cause."""
    revision = pod.report.catalog_revision
    pod.says(entry.model_copy(update={"restarts": 1, "last_error": "killed by signal 9"}), revision)
    await eventually("the Event", lambda: "RunnerDied" in dict(bench.notes("served")))
    assert dict(bench.notes("served"))["RunnerDied"].endswith("(restart 1): killed by signal 9")


async def silent_after_a_restart(bench: Bench, pod: Pod) -> None:
    """What a running pod says after the restart is what was known before it."""
    await bench.calm()
    bench.operator.kill()
    await bench.operator.wait()
    bench.proxy.clear()
    asked = pod.asked
    await bench.operator.start()
    await eventually("the pod is asked again", lambda: pod.asked > asked + 1)
    await bench.calm()
    assert bench.proxy.writes == []


async def test_gauges_under_load_are_written_seldom(kube: Kube, tmp_path: Path, pod: Pod) -> None:
    async with running(kube, tmp_path, report_port=pod.port, gauges=3) as bench:
        pod.uid = bench.make("busy")["metadata"]["uid"]
        found = await bench.complete("busy")
        revision = json.loads(found["ConfigMap"]["data"]["catalog.json"])["revision"]
        await bench.reaches("busy", "Unschedulable")
        (made,) = bench.pods("busy")
        pod.says(loaded(name="busy", busy=1), revision)
        bind(kube, made["metadata"]["name"], ready=True)
        await bench.reaches("busy", "Loaded")
        await bench.calm()
        bench.proxy.clear()
        asked = pod.asked
        loop = asyncio.get_running_loop()
        end = loop.time() + 5.0
        count = 0
        while loop.time() < end:
            count += 1
            pod.says(loaded(name="busy", busy=1 + count % 4, queued=count), revision)
            await asyncio.sleep(0.2)
        writes = [one for one in bench.proxy.writes if one.path.endswith("/busy/status")]
        assert pod.asked - asked >= 3, "a busy pod is asked about once a second"
        assert 1 <= len(writes) <= 2, writes
        kube.request("DELETE", f"{CORE}/pods/{made['metadata']['name']}?gracePeriodSeconds=0")


async def test_a_model_gets_its_objects_and_they_go_with_it(bench: Bench) -> None:
    model = bench.make("first", slots=3)
    found = await bench.complete("first")
    for obj in found.values():
        (owner,) = obj["metadata"]["ownerReferences"]
        assert (owner["uid"], owner["controller"]) == (model["metadata"]["uid"], True)
    catalog = json.loads(found["ConfigMap"]["data"]["catalog.json"])
    assert catalog["models"][0]["slots"] == 3
    assert bench.kube.find(f"{MODELS}/first")["metadata"].get("finalizers") is None  # type: ignore[index]
    unschedulable = await bench.reaches("first", "Unschedulable")
    assert "no nodes available to schedule pods" in unschedulable["message"]
    await bench.calm()
    assert [reason for reason, _ in bench.notes("first")] == ["Created", "Unschedulable"]
    assert [one.method for one in bench.proxy.effective].count("POST") == OBJECTS
    bench.kube.request("DELETE", f"{MODELS}/first")
    # Well under a second, once the garbage collector knows of a new kind, which it looks for every 30 s.
    await eventually("all is gone", lambda: not any(bench.owned("first").values()) and not bench.pods("first"), 60)
    bench.proxy.clear()
    await bench.calm()
    assert bench.proxy.writes == [], "a deleted Model needs no write of the operator"


def chart_rights() -> list[Obj]:
    """The operator's ServiceAccount and roles, as the plain manifests have them."""
    objects = yaml.safe_load_all((ROOT / "manifests" / "tandem.yaml").read_text())
    kinds = {"ClusterRole", "ClusterRoleBinding", "ServiceAccount", "Namespace"}
    wanted = {"tandem-operator", "tandem-system"}
    return [one for one in objects if one and one["kind"] in kinds and one["metadata"]["name"] in wanted]


async def test_the_rights_of_the_chart_suffice_and_nothing_is_refused(kube: Kube, tmp_path: Path) -> None:
    rights = chart_rights()
    assert len(rights) == 4
    kube.kubectl("apply", "-f", "-", text=yaml.safe_dump_all(rights))
    token = kube.kubectl("create", "token", "tandem-operator", "-n", "tandem-system").stdout.strip()
    async with running(kube, tmp_path, token=token) as bench:
        bench.make("rights")
        await bench.complete("rights")
        await bench.reaches("rights", "Unschedulable")
        bench.change("rights", slots=9, replicas=2, source="hf://a/b")
        await eventually("the change", lambda: bench.owned("rights")["Deployment"]["spec"]["replicas"] == 2)  # type: ignore[index]
        await eventually("the Events", lambda: len(bench.notes("rights")) >= 2)
        await bench.calm()
        assert bench.proxy.refused == []
        assert [one for one in bench.proxy.writes if one.code >= 300] == []
    who = "--as=system:serviceaccount:tandem-system:tandem-operator"
    for verb, resource in (("create", "pods"), ("update", "models"), ("delete", "models"), ("get", "nodes")):
        assert kube.kubectl("auth", "can-i", verb, resource, who, check=False).stdout.strip() == "no"


async def test_it_outlives_an_api_server_that_is_away(kube: Kube, tmp_path: Path) -> None:
    async with running(kube, tmp_path, relist=1) as bench:
        bench.make("before")
        await bench.complete("before")
        await bench.proxy.stop()
        await eventually("it says so", lambda: "The cluster cannot be listed" in bench.operator.log)
        bench.make("meanwhile")
        kube.request("DELETE", f"{CORE}/services/tandem-m-before")
        await bench.proxy.start()
        await bench.complete("meanwhile")
        await bench.complete("before")
        bench.make("after")
        await bench.complete("after")
        assert bench.operator.log.count("The operator watches") == 1, "it is the same process"


async def test_without_a_cluster_it_waits_and_says_so(kube: Kube, tmp_path: Path) -> None:
    """Started before the API server answers, it goes on by itself; told to end, it ends."""
    proxy = Proxy(kube)
    await proxy.start()
    operator = OperatorProcess(proxy, tmp_path)
    await proxy.stop()
    await operator.start()
    await eventually("it says so", lambda: "The cluster cannot be listed" in operator.log)
    assert operator.running
    assert await operator.stop() == 0
    assert "Traceback" not in operator.log
