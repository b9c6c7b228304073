"""Installations for one namespace each, side by side: with only the Roles of the chart, and each for its own Models."""

import asyncio
import json
import os
import re
import socket
import sys
import urllib.error
import urllib.request
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import yaml

from tandem_devcluster.cluster import Cluster
from tandem_testing.helm import Helm
from tandem_testing.kube import Kube, Obj, eventually
from tandem_testing.operator_process import MASTER, OperatorProcess
from tandem_testing.proxy import Proxy

pytestmark = pytest.mark.timeout(180)

OUTSIDE = "scope-outside"
QUICK = {"leaseSeconds": 8, "renewSeconds": 5, "retrySeconds": 0.5}


@dataclass
class Site:
    """One installation: the release's namespace, the namespace that it cares for, and its processes."""

    kube: Kube
    helm: Helm
    cares_for: str
    folder: Path
    proxy: Proxy = field(init=False)
    operator: OperatorProcess = field(init=False)

    def __post_init__(self) -> None:
        self.proxy = Proxy(self.kube, as_caller=True)

    def token(self, role: str) -> str:
        return self.kube.kubectl("create", "token", f"tandem-{role}", "-n", self.helm.namespace).stdout.strip()

    async def start(self) -> None:
        """The operator with the ServiceAccount and the settings of the chart, only quicker."""
        place = f"/api/v1/namespaces/{self.helm.namespace}/configmaps/tandem-operator"
        settings = yaml.safe_load(self.kube.request("GET", place)["data"]["config.yaml"])
        kept = ("namespace", "installNamespace", "networkPolicy", "podTemplateAllows")
        more = {key: settings[key] for key in kept} | {"election": settings["election"] | QUICK}
        await self.proxy.start()
        self.operator = OperatorProcess(self.proxy, self.folder, token=self.token("operator"), relist=2, more=more)
        await self.operator.start()
        await eventually("the start", lambda: "Listed the cluster" in self.operator.log)

    def models(self, namespace: str = "") -> str:
        return f"/apis/tandem.dev/v1alpha1/namespaces/{namespace or self.cares_for}/models"

    def make(self, name: str, namespace: str = "", **spec: Any) -> None:
        body = {"apiVersion": "tandem.dev/v1alpha1", "kind": "Model", "metadata": {"name": name}, "spec": spec}
        self.kube.request("POST", self.models(namespace), body)

    def pool(self, name: str) -> None:
        body = {
            "apiVersion": "tandem.dev/v1alpha1", "kind": "ModelPool", "metadata": {"name": name},
            "spec": {"device": "CPU"},
        }  # fmt: skip
        self.kube.request("POST", self.models().replace("/models", "/modelpools"), body)

    async def cared_for(self, name: str) -> None:
        def probe() -> bool:
            model = self.kube.find(f"{self.models()}/{name}") or {}
            return bool(model.get("status", {}).get("conditions"))

        await eventually(f"Model {name} has a status", probe)

    async def calm(self) -> None:
        """Waits until the operator has written nothing for a second; fails when it never stops."""
        async with asyncio.timeout(30):
            before = -1
            while before != len(self.proxy.writes):
                before = len(self.proxy.writes)
                await asyncio.sleep(1.0)


@pytest.fixture(scope="module")
def kube(control_plane: Cluster, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Kube]:
    made = Kube(control_plane, tmp_path_factory.mktemp("kube"))
    made.install_crd()
    made.kubectl("create", "namespace", OUTSIDE)
    yield made
    made.kubectl("delete", "namespace", OUTSIDE, "--wait=false")
    made.close()


@asynccontextmanager
async def installed(kube: Kube, folder: Path, release: str, namespace: str) -> AsyncIterator[Site]:
    """The chart in the namespace `release`, for Models of `namespace`; everything is removed at the end."""
    for name in {release, namespace}:
        kube.kubectl("create", "namespace", name)
    site = Site(kube, Helm(kube.cluster, release), namespace, folder)
    site.helm.install(scope={"namespace": namespace}, crds={"install": False})
    try:
        await site.start()
        yield site
        assert site.operator.running
        assert await site.operator.stop() == 0
    except BaseException:
        if hasattr(site, "operator"):
            print(site.operator.log[-6000:])
        raise
    finally:
        if hasattr(site, "operator"):
            site.operator.kill()
            await site.operator.wait()
            await site.proxy.stop()
        site.helm.uninstall()
        for name in {release, namespace}:
            kube.kubectl("delete", "namespace", name, "--wait=false")


async def test_each_cares_for_its_own_namespace_with_no_right_elsewhere(kube: Kube, tmp_path: Path) -> None:
    async with (
        installed(kube, tmp_path / "red", "scope-red", "scope-red") as red,
        installed(kube, tmp_path / "blue", "scope-blue-system", "scope-blue") as blue,
    ):
        red.make("outsider", OUTSIDE, source="hf://a/b", device="CPU")
        for site in (red, blue):
            site.make("own", source="hf://a/b", device="CPU", aliases=["x"])
            site.pool("shared")
            site.make("pooled", source="hf://a/b", pool="shared")
        for site in (red, blue):
            await site.cared_for("own")
            await site.cared_for("pooled")
            assert kube.find(f"/apis/apps/v1/namespaces/{site.cares_for}/deployments/tandem-m-own") is not None
            await eventually(
                "the shared pool",
                lambda site=site: kube.find(f"/apis/apps/v1/namespaces/{site.cares_for}/deployments/tandem-p-shared"),
            )
        kube.request("PATCH", f"{red.models()}/own", {"spec": {"slots": 7}}, "application/merge-patch+json")
        catalog = f"/api/v1/namespaces/{red.cares_for}/configmaps/tandem-m-own"
        await eventually(
            "the catalog follows", lambda: '"slots":7' in (kube.find(catalog) or {})["data"]["catalog.json"]
        )
        for site in (red, blue):
            await site.calm()
            assert site.proxy.refused == []
            assert [one for one in site.proxy.writes if one.code >= 300] == []
            allowed = rf"/apis?/[a-z0-9.]*/?v1(alpha1)?/namespaces/({site.cares_for}|{site.helm.namespace})/.+"
            # Besides its namespace it asks for nothing but which kinds there are.
            asked = {one for one in site.proxy.paths if "/namespaces/" in one or "/models" in one or "/pods" in one}
            assert [one for one in asked if not re.fullmatch(allowed, one)] == []
        assert "status" not in (kube.find(f"{red.models(OUTSIDE)}/outsider") or {"status": "gone"})
        assert kube.items(f"/apis/apps/v1/namespaces/{OUTSIDE}/deployments") == []
        for role in ("operator", "gateway"):
            who = f"--as=system:serviceaccount:scope-red:tandem-{role}"
            for verb, what, where in (
                ("list", "models.tandem.dev", "scope-blue"), ("list", "pods", "scope-blue"),
                ("get", "secrets", "scope-blue"), ("list", "secrets", OUTSIDE), ("create", "pods", "scope-red"),
                ("update", "models.tandem.dev", "scope-red"),
            ):  # fmt: skip
                told = kube.kubectl("auth", "can-i", verb, what, "-n", where, who, check=False).stdout
                assert told.strip() == "no", (role, verb, what, where)
        await serves_only_its_own(red)


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        return int(taken.getsockname()[1])


async def serves_only_its_own(site: Site) -> None:
    """A gateway with the environment and the ServiceAccount of the chart."""
    path = f"/apis/apps/v1/namespaces/{site.helm.namespace}/deployments/tandem-gateway"
    container = site.kube.request("GET", path)["spec"]["template"]["spec"]["containers"][0]
    of_chart = {one["name"]: one.get("value", "") for one in container["env"]}
    settings = yaml.safe_load((site.folder / "kubeconfig").read_text())
    settings["users"][0]["user"]["token"] = site.token("gateway")
    (site.folder / "gateway-kubeconfig").write_text(yaml.safe_dump(settings))
    (site.folder / "key").write_text(MASTER)
    public, internal, health = free_port(), free_port(), free_port()
    environment = {
        **os.environ,
        **{name: of_chart[name] for name in ("TANDEM_NAMESPACE", "TANDEM_DEFAULT_NAMESPACE")},
        "KUBECONFIG": str(site.folder / "gateway-kubeconfig"),
        "TANDEM_MASTER_SECRET_FILE": str(site.folder / "key"),
        "TANDEM_GATEWAY_HOST": "127.0.0.1",
        "TANDEM_GATEWAY_PORT": str(public),
        "TANDEM_INTERNAL_PORT": str(internal),
        "TANDEM_HEALTH_PORT": str(health),
        "TANDEM_LINGER_SECONDS": "0.1",
    }

    def ask(url: str) -> tuple[int, Obj]:
        try:
            with urllib.request.urlopen(url, timeout=5) as answer:
                return answer.status, json.loads(answer.read() or b"{}")
        except urllib.error.HTTPError as error:
            with error:
                return error.code, json.loads(error.read())
        except (urllib.error.URLError, ValueError):
            return 0, {}

    with (site.folder / "gateway.log").open("wb") as log:
        process = await asyncio.create_subprocess_exec(
            sys.executable, "-m", "tandem_gateway", env=environment, stderr=log
        )
    try:

        async def names() -> list[str]:
            listing = await asyncio.to_thread(ask, f"http://127.0.0.1:{public}/v1/models")
            return [one["id"] for one in listing[1].get("data", [])]

        async def probe() -> bool:
            return {"own", "pooled"} <= set(await names())

        await eventually("the Models are listed", probe)
        assert not [one for one in await names() if "outsider" in one or "/" in one]
        code, _ = await asyncio.to_thread(ask, f"http://127.0.0.1:{public}/v1/models/{OUTSIDE}/outsider")
        assert code == 404
    finally:
        process.terminate()
        status = await asyncio.wait_for(process.wait(), 10)
    assert status == 0, (site.folder / "gateway.log").read_text()
    assert site.proxy.refused == []
