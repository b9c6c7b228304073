"""The proxy of the operator's tests leaves no connection behind, whatever moment its caller dies in."""

import asyncio
import gc
import warnings
from collections.abc import Iterator

import pytest

from tandem_devcluster.cluster import Cluster
from tandem_testing.kube import Kube, eventually
from tandem_testing.proxy import Proxy

NAMESPACE = "proxied"
CALLERS = 8


@pytest.fixture(scope="module")
def kube(control_plane: Cluster, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Kube]:
    made = Kube(control_plane, tmp_path_factory.mktemp("kube"))
    made.kubectl("create", "namespace", NAMESPACE)
    yield made
    made.kubectl("delete", "namespace", NAMESPACE, "--wait=false")
    made.close()


async def caller(port: int, query: str = "") -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    """Somebody who asked for the ConfigMaps of the namespace."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(f"GET /api/v1/namespaces/{NAMESPACE}/configmaps{query} HTTP/1.1\r\nHost: x\r\n\r\n".encode())
    await writer.drain()
    return reader, writer


async def test_watchers_and_callers_that_die_leave_nothing(kube: Kube) -> None:
    proxy = Proxy(kube)
    await proxy.start()
    watchers = [await caller(proxy.port, "?watch=1") for _ in range(CALLERS)]
    for reader, _ in watchers:
        assert b" 200 " in await reader.readline()
    askers = [await caller(proxy.port) for _ in range(CALLERS)]
    for _, writer in watchers + askers:
        writer.transport.abort()
    # The first event that cannot be passed on ends the watch with its answer half read.
    await asyncio.to_thread(kube.kubectl, "create", "configmap", "event", "-n", NAMESPACE)
    await eventually("the watches' ends are noticed", lambda: not proxy.watches)
    await proxy.stop()
    assert proxy.connections == 0
    with warnings.catch_warnings():
        warnings.simplefilter("error", ResourceWarning)
        gc.collect()
