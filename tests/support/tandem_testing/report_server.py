"""Serving pods as far as the operator sees them: one server that answers `/internal/report` for hundreds of fake pods.

Beside kwok's nodes, whose pods have addresses of the loopback and run nothing. Which pod is asked is known by the
address that was called; what it has read of its catalog follows the kubelet's rule: the ConfigMap as it was when the
pod started, and anew after the pod's catalog annotation was touched.
"""

import asyncio
import contextlib
import json
import socket
from collections.abc import Callable
from dataclasses import dataclass, field

import aiohttp
from aiohttp import web

from tandem_api.catalog import Catalog
from tandem_api.keys import bearer_matches, pool_key
from tandem_api.names import (
    CATALOG_FILE,
    CATALOG_REVISION_ANNOTATION,
    MANAGED_BY,
    MANAGED_BY_LABEL,
    POOL_UID_LABEL,
)
from tandem_api.report import ModelReport, ModelState, Report
from tandem_api.status import Artifact
from tandem_testing.kube import Kube, Obj

KEEP_ALIVE_S = 75.0
"""What the serving pod tells uvicorn."""
_PODS = "/api/v1/pods"
_SELECTOR = f"{MANAGED_BY_LABEL}={MANAGED_BY}"
_ARTIFACT = Artifact(architecture="LlamaForCausalLM", parameters=3_000_000, weight_bytes=6_000_000, context_limit=4096)
Says = Callable[[Obj, str, bool], ModelReport]
"""(pod, model, whether the catalog asks this pod to preload it) -> what the pod says of the model."""


def loaded_when_preloaded(_: Obj, model: str, preload: bool) -> ModelReport:
    """What an idle pod says that did as its catalog asks."""
    if not preload:
        return ModelReport(name=model, state=ModelState.UNLOADED, artifact=_ARTIFACT)
    return ModelReport(
        name=model,
        state=ModelState.LOADED,
        size_bytes=12_000_000,
        processor="100% CPU",
        context_asked=2048,
        context_given=2048,
        slots=4,
        artifact=_ARTIFACT,
    )


@dataclass
class _Pod:
    """One pod as it was last seen, and the catalog that it has read (None: not since it started or was touched)."""

    obj: Obj
    touched: str
    catalog: Catalog | None = None


@dataclass
class ReportServer:
    """Answers for every pod that Tandem's label marks, while started. `says` decides what a model's entry holds."""

    kube: Kube
    master: str
    says: Says = loaded_when_preloaded
    asked: int = 0
    answered: set[str] = field(default_factory=set)
    refused: int = 0
    port: int = 0

    async def start(self) -> None:
        """Listens on every address of the loopback, on a free port, and on no other network."""
        self._pods: dict[str, _Pod] = {}
        self._by_uid: dict[str, str] = {}
        # The loopback device alone: its addresses are too many to name, and 0.0.0.0 would be open to the network.
        listening = socket.socket()
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_BINDTODEVICE, b"lo")
        listening.bind(("0.0.0.0", self.port))
        self.port = int(listening.getsockname()[1])
        self._http = aiohttp.ClientSession(
            self.kube.server,
            connector=aiohttp.TCPConnector(ssl=self.kube.admin, limit=0),
            timeout=aiohttp.ClientTimeout(total=None),
        )
        app = web.Application()
        app.router.add_get("/internal/report", self._answer)
        # As long as a serving pod keeps a connection that rests.
        self._runner = web.AppRunner(app, access_log=None, shutdown_timeout=0.1, keepalive_timeout=KEEP_ALIVE_S)
        await self._runner.setup()
        await web.SockSite(self._runner, listening, backlog=1024).start()
        self._following = asyncio.create_task(self._follow())

    async def stop(self) -> None:
        """Stops; raises what ended the watch, if anything did."""
        ended = self._following.done()
        self._following.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await self._following
        await self._runner.cleanup()
        await self._http.close()
        assert not ended, "the watch of the report server has ended"

    def forget(self) -> None:
        """Sets the counts back."""
        self.asked = 0
        self.answered.clear()

    async def _answer(self, request: web.Request) -> web.Response:
        assert request.transport is not None
        address = str(request.transport.get_extra_info("sockname")[0])
        pod = self._pods.get(address)
        if pod is None:
            return web.Response(status=503, text="no pod has this address")
        key = pool_key(self.master.encode(), pod.obj["metadata"]["labels"][POOL_UID_LABEL])
        if not bearer_matches(request.headers.get("Authorization"), key):
            self.refused += 1
            return web.Response(status=401)
        self.asked += 1
        if pod.catalog is None:
            pod.catalog = await self._read_catalog(pod.obj)
        self.answered.add(str(pod.obj["metadata"]["uid"]))
        text = self._report(pod.obj, pod.catalog).model_dump_json(by_alias=True)
        return web.Response(text=text, content_type="application/json")

    def _report(self, obj: Obj, catalog: Catalog) -> Report:
        name = str(obj["metadata"]["name"])
        preload = catalog.preload_of(name)
        entries = [self.says(obj, model.name, model.name in preload) for model in catalog.models]
        return Report(pod=name, version="0", ready=True, catalog_revision=catalog.revision, models=entries)

    async def _read_catalog(self, pod: Obj) -> Catalog:
        (name,) = (one["configMap"]["name"] for one in pod["spec"]["volumes"] if one["name"] == "catalog")
        path = f"/api/v1/namespaces/{pod['metadata']['namespace']}/configmaps/{name}"
        async with self._http.get(path, raise_for_status=True) as answer:
            return Catalog.read((await answer.json())["data"][CATALOG_FILE])

    async def _follow(self) -> None:
        """Lists and watches the pods, for ever; a watch that the API server ends is begun again."""
        while True:
            async with self._http.get(_PODS, params={"labelSelector": _SELECTOR}, raise_for_status=True) as answer:
                listed = await answer.json()
            for obj in listed["items"]:
                self._seen(obj)
            there = {str(obj["metadata"]["uid"]) for obj in listed["items"]}
            for known in [one.obj for one in self._pods.values() if one.obj["metadata"]["uid"] not in there]:
                self._gone(known)
            await self._watch(str(listed["metadata"]["resourceVersion"]))

    async def _watch(self, revision: str) -> None:
        params = {"labelSelector": _SELECTOR, "watch": "1", "resourceVersion": revision}
        async with self._http.get(_PODS, params=params, raise_for_status=True, read_bufsize=1 << 20) as answer:
            async for line in answer.content:
                event = json.loads(line)
                if event["type"] == "ERROR":
                    return
                if event["type"] == "DELETED":
                    self._gone(event["object"])
                else:
                    self._seen(event["object"])

    def _seen(self, obj: Obj) -> None:
        address = obj.get("status", {}).get("podIP")
        if not address:
            return
        uid = str(obj["metadata"]["uid"])
        touched = str((obj["metadata"].get("annotations") or {}).get(CATALOG_REVISION_ANNOTATION, ""))
        known = self._pods.get(address)
        if known is None or known.obj["metadata"]["uid"] != uid or known.touched != touched:
            self._pods[address] = _Pod(obj, touched)
            self._by_uid[uid] = address
        else:
            known.obj = obj

    def _gone(self, obj: Obj) -> None:
        uid = str(obj["metadata"]["uid"])
        address = self._by_uid.pop(uid, "")
        known = self._pods.get(address)
        if known is not None and known.obj["metadata"]["uid"] == uid:
            del self._pods[address]
