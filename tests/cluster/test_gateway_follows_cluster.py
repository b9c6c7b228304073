"""A gateway process against a real API server: real Models and Pods, a ServiceAccount with only its own rights."""

import asyncio
import os
import signal
import socket
import subprocess
import sys
import time
import uuid
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import aiohttp
import pytest
import yaml
from aiohttp import web
from lightkube import AsyncClient, KubeConfig
from lightkube.core.exceptions import ApiError
from lightkube.generic_resource import create_namespaced_resource
from lightkube.models.authentication_v1 import TokenRequestSpec
from lightkube.models.meta_v1 import ObjectMeta
from lightkube.resources.apiextensions_v1 import CustomResourceDefinition
from lightkube.resources.core_v1 import Namespace, Pod, ServiceAccount, ServiceAccountToken
from lightkube.resources.rbac_authorization_v1 import ClusterRole, ClusterRoleBinding

from tandem_api import placement
from tandem_api.crd import KINDS, crd_of
from tandem_api.keys import pool_key
from tandem_devcluster.cluster import Cluster

pytestmark = pytest.mark.timeout(120)

Model = create_namespaced_resource("tandem.dev", "v1alpha1", "Model", "models")
MASTER = "a master secret of a test"
RULES = [
    {"apiGroups": ["tandem.dev"], "resources": ["models"], "verbs": ["list", "watch"]},
    {"apiGroups": [""], "resources": ["pods"], "verbs": ["list", "watch"]},
]


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        return int(taken.getsockname()[1])


@asynccontextmanager
async def serving(ip: str, port: int, report: dict[str, Any] | None = None) -> AsyncIterator[list[str]]:
    """A server that answers every request with its address; yields the credentials that it was sent."""

    async def reported(_: web.Request) -> web.Response:
        return web.json_response(report, status=404 if report is None else 200)

    seen: list[str] = []

    async def handler(request: web.Request) -> web.Response:
        seen.append(request.headers.get("Authorization", ""))
        return web.json_response({"served_by": ip})

    app = web.Application()
    app.router.add_get("/internal/report", reported)
    app.router.add_post("/{rest:.*}", handler)
    runner = web.AppRunner(app, shutdown_timeout=0.1)
    await runner.setup()
    await web.TCPSite(runner, ip, port).start()
    try:
        yield seen
    finally:
        await runner.cleanup()


@dataclass
class Api:
    """The administrator's hands on the cluster."""

    client: AsyncClient
    space: str
    """A namespace of the test's own."""

    async def apply(self, kind: Any, value: dict[str, Any], **options: Any) -> Any:
        return await self.client.apply(kind.from_dict(value), field_manager="test", force=True, **options)

    async def model(self, name: str, **spec: Any) -> str:
        """Creates or changes a Model; its UID."""
        value = {
            "apiVersion": "tandem.dev/v1alpha1",
            "kind": "Model",
            "metadata": {"name": name, "namespace": self.space},
            "spec": {"source": "hf://org/name", **({} if "pool" in spec else {"device": "CPU"}), **spec},
        }
        made = await self.client.apply(Model(value), field_manager="test", force=True, namespace=self.space)
        return str(made.metadata.uid)

    async def pod(self, name: str, pool_uid: str, ip: str, **more: str) -> str:
        """Creates a pod that no scheduler can place, and says of it that it runs, Ready, at `ip`; its UID."""
        labels = {"app.kubernetes.io/managed-by": "tandem", "tandem.dev/pool-uid": pool_uid, **more}
        metadata = {"name": name, "namespace": self.space, "labels": labels, "finalizers": ["tandem.dev/test"]}
        spec = {"containers": [{"name": "server", "image": "none"}], "nodeSelector": {"no": "where"}}
        made = await self.client.create(Pod.from_dict({"metadata": metadata, "spec": spec}))
        await self.status(name, ip, ready=True)
        return str(made.metadata.uid)

    async def status(self, name: str, ip: str, *, ready: bool) -> None:
        """Patches the pod's status."""
        condition = {"type": "Ready", "status": "True" if ready else "False"}
        status = {"phase": "Running", "podIP": ip, "podIPs": [{"ip": ip}], "conditions": [condition]}
        await self.client.patch(Pod.Status, name, {"status": status}, namespace=self.space)

    async def release(self, name: str) -> None:
        """Lets a deleted pod go."""
        await self.client.patch(Pod, name, {"metadata": {"finalizers": None}}, namespace=self.space)

    async def service_account(self) -> str:
        """A token of an account that may do what the gateway needs, and no more."""
        name = {"name": "gateway-test"}
        await self.apply(ServiceAccount, {"metadata": {**name, "namespace": self.space}})
        await self.apply(ClusterRole, {"metadata": name, "rules": RULES})
        subject = {"kind": "ServiceAccount", "namespace": self.space, **name}
        role = {"apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", **name}
        await self.apply(ClusterRoleBinding, {"metadata": name, "roleRef": role, "subjects": [subject]})
        request = ServiceAccountToken(metadata=ObjectMeta(), spec=TokenRequestSpec(audiences=[]))
        made = await self.client.create(request, "gateway-test", namespace=self.space)
        return str(made.status.token)


async def until(condition: Callable[[], Any], what: str, seconds: float = 20.0) -> None:
    """Awaits `condition()` again and again until it is true."""
    deadline = time.monotonic() + seconds
    while not await condition():
        assert time.monotonic() < deadline, f"{what} did not come true in {seconds} s"
        await asyncio.sleep(0.02)


@pytest.fixture
async def api(control_plane: Cluster) -> AsyncIterator[Api]:
    client = AsyncClient(config=KubeConfig.from_file(str(control_plane.kubeconfig)))
    made = Api(client, f"gateway-{uuid.uuid4().hex[:8]}")
    (models,) = [kind for kind in KINDS if kind.plural == "models"]
    crd = await made.apply(CustomResourceDefinition, crd_of(models))
    await client.wait(CustomResourceDefinition, crd.metadata.name, for_conditions=["Established"])
    await made.apply(Namespace, {"metadata": {"name": made.space}})

    async def admits_pods() -> bool:
        """Pods are admitted once the controllers have made the namespace's default account."""
        try:
            await client.get(ServiceAccount, "default", namespace=made.space)
        except ApiError:
            return False
        return True

    await until(admits_pods, "the default ServiceAccount")
    try:
        yield made
    finally:
        async for pod in client.list(Pod, namespace=made.space):
            await made.release(pod.metadata.name)
        await client.delete(Namespace, made.space)
        await client.close()


@dataclass
class Gateway:
    """A gateway process and how to call it."""

    process: subprocess.Popen[bytes]
    url: str
    health: str
    pod_port: int
    log: Path
    session: aiohttp.ClientSession

    async def ready(self) -> bool:
        try:
            async with self.session.get(f"{self.health}/readyz") as response:
                return response.status == 200
        except aiohttp.ClientConnectorError:
            return False

    async def chat(self, model: str) -> tuple[int, dict[str, Any]]:
        async with self.session.post(f"{self.url}/v1/chat/completions", json={"model": model}) as response:
            return response.status, await response.json()

    async def served_by(self, model: str, ip: str) -> bool:
        status, body = await self.chat(model)
        return status == 200 and body == {"served_by": ip}


def start(environment: dict[str, str], log: Path) -> subprocess.Popen[bytes]:
    with log.open("wb") as file:
        return subprocess.Popen([sys.executable, "-m", "tandem_gateway"], env=environment, stderr=file)


@pytest.fixture
async def gateway(control_plane: Cluster, api: Api, tmp_path: Path) -> AsyncIterator[Gateway]:
    """`python -m tandem_gateway` with a kubeconfig of its ServiceAccount."""
    (tmp_path / "token").write_text(await api.service_account())
    (tmp_path / "master").write_text(MASTER)
    config = yaml.safe_load(control_plane.kubeconfig.read_text())
    config["users"][0]["user"] = {"tokenFile": str(tmp_path / "token")}
    (tmp_path / "kubeconfig").write_text(yaml.safe_dump(config))
    ports = [free_port() for _ in range(4)]
    environment = {
        **os.environ,
        "KUBECONFIG": str(tmp_path / "kubeconfig"),
        "TANDEM_MASTER_SECRET_FILE": str(tmp_path / "master"),
        "TANDEM_DEFAULT_NAMESPACE": api.space,
        "TANDEM_GATEWAY_HOST": "127.0.0.1",
        "TANDEM_GATEWAY_PORT": str(ports[0]),
        "TANDEM_INTERNAL_PORT": str(ports[1]),
        "TANDEM_HEALTH_PORT": str(ports[2]),
        "TANDEM_POD_HTTP_PORT": str(ports[3]),
        "TANDEM_POD_INTERNAL_PORT": str(ports[3]),
        "TANDEM_LINGER_SECONDS": "0.2",
    }
    log = tmp_path / "log"
    process = start(environment, log)
    async with aiohttp.ClientSession() as session:
        urls = [f"http://127.0.0.1:{port}" for port in ports]
        made = Gateway(process, urls[0], urls[2], ports[3], log, session)
        try:
            await until(made.ready, "the gateway's readiness")
            yield made
        finally:
            process.send_signal(signal.SIGTERM)
            status = process.wait(10)
    assert status == 0, log.read_text()


async def test_routes_real_models_to_real_pods_and_follows_their_changes(api: Api, gateway: Gateway) -> None:
    port = gateway.pod_port
    assert (await gateway.chat("coder"))[0] == 404
    uid = await api.model("coder", aliases=["coder:1b"])

    async def known() -> bool:
        return (await gateway.chat("coder"))[0] == 503

    await until(known, "the Model's arrival")
    async with serving("127.0.0.2", port) as first, serving("127.0.0.3", port):
        await api.pod("one", uid, "127.0.0.2")
        await until(lambda: gateway.served_by("coder", "127.0.0.2"), "the first pod")
        assert await gateway.served_by("coder:1b", "127.0.0.2")
        assert await gateway.served_by(f"{api.space}/coder:latest", "127.0.0.2")
        assert set(first) == {f"Bearer {pool_key(MASTER.encode(), uid)}"}

        await api.pod("two", uid, "127.0.0.3")
        await until(lambda: gateway.served_by("coder", "127.0.0.3"), "the second pod")
        await api.status("one", "127.0.0.2", ready=False)
        await until(lambda: served_only_by(gateway, "127.0.0.3"), "the first pod's leaving")
        await api.status("one", "127.0.0.2", ready=True)
        await until(lambda: gateway.served_by("coder", "127.0.0.2"), "the first pod's return")
        await api.client.delete(Pod, "two", namespace=api.space)
        await until(lambda: served_only_by(gateway, "127.0.0.2"), "the terminating pod's leaving")
        await api.release("two")

        await api.model("coder", aliases=["renamed"])
        await until(lambda: gateway.served_by("renamed", "127.0.0.2"), "the new alias")
        assert (await gateway.chat("coder:1b"))[0] == 404
        await api.client.delete(Model, "coder", namespace=api.space)

        async def gone() -> bool:
            return (await gateway.chat("coder"))[0] == 404

        await until(gone, "the Model's end")
    assert "Following Models: there are" in gateway.log.read_text()
    assert f"model {api.space}/coder: pod one answered 200" in gateway.log.read_text()


async def served_only_by(gateway: Gateway, ip: str) -> bool:
    """Whether ten requests in a row are all answered by the pod at `ip`."""
    return all([await gateway.served_by("coder", ip) for _ in range(10)])


async def test_pods_of_another_model_or_namespace_get_nothing(api: Api, gateway: Gateway) -> None:
    uid = await api.model("mine")
    async with serving("127.0.0.4", gateway.pod_port) as foreign, serving("127.0.0.5", gateway.pod_port):
        await api.pod("foreign", "uid-of-somebody-else", "127.0.0.4")
        await api.pod("mine", uid, "127.0.0.5")
        await until(lambda: gateway.served_by("mine", "127.0.0.5"), "the pod")
        for _ in range(20):
            assert await gateway.served_by("mine", "127.0.0.5")
        assert foreign == []


async def test_a_pools_model_is_loaded_where_it_fits_and_in_no_pod_too_many(api: Api, gateway: Gateway) -> None:
    """By the objects' real UIDs; no pod is full, so the first of the order gets it, and with it all the rest."""
    uid = await api.model("pooled", pool="shared", copies={"max": 1})
    room = {"freeBytes": 9, "reachBytes": 9, "freeSeats": 1, "reachSeats": 1}
    report = {"pod": "p", "version": "1", "room": room, "models": [{"name": "pooled", "state": "Unloaded"}]}
    labels = {"tandem.dev/pool": "shared", "tandem.dev/pool-kind": "ModelPool"}
    ips = {}
    async with AsyncExitStack() as stack:
        for number in range(6, 9):
            ip = f"127.0.0.{number}"
            await stack.enter_async_context(serving(ip, gateway.pod_port, report))
            ips[await api.pod(f"shared-{number}", "uid-of-pool", ip, **labels)] = ip
        first = ips[placement.order(uid, ips)[0]]
        await until(lambda: gateway.served_by("pooled", first), "the first pod of the order")
        for _ in range(20):
            assert await gateway.served_by("pooled", first)
