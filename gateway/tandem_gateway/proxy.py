"""One request for a model, from its first byte to its answer's last: the ASGI endpoint that everything passes.

Reads the body and the model's name, finds the Model, lets `replay` find a pod that answers, and relays the answer.
A client that leaves cancels all of it at once; whatever goes wrong is told in the client's dialect.
"""

import asyncio
import json
import logging
import time
from collections.abc import Callable

from starlette.types import Receive, Scope, Send

from tandem_api.dialects import ApiError, answer
from tandem_gateway.access import CLIENT_GONE, Record
from tandem_gateway.body import Body, BodyRoom, ClientGone, model_field, with_model
from tandem_gateway.directory import Directory
from tandem_gateway.headers import to_pod
from tandem_gateway.lifecycle import Lifecycle
from tandem_gateway.metrics import Metrics
from tandem_gateway.objects import ModelView, PodView
from tandem_gateway.relay import BrokenOff, Relay
from tandem_gateway.replay import Answer, Dispatcher
from tandem_gateway.upstream import Outgoing

logger = logging.getLogger(__name__)

ASKING = ("/api/show",)
"""Paths of requests that only ask about a model."""
MAX_NAMES = 20
"""Models that a 404 names at most."""


class Proxy:
    """The endpoint of every path that a pod answers.

    Args:
        directory: what Models and pods there are.
        dispatcher: finds a pod that answers.
        key_of: the pool key by the pool's UID.
        lifecycle: whether the gateway is about to end, and how many requests it has.
        metrics: where requests are counted.
        max_body_bytes: of one request.
        room: for all bodies together.
    """

    def __init__(
        self,
        directory: Directory,
        dispatcher: Dispatcher,
        key_of: Callable[[str], str],
        lifecycle: Lifecycle,
        metrics: Metrics,
        max_body_bytes: int,
        room: BodyRoom,
    ) -> None:
        self._directory = directory
        self._dispatcher = dispatcher
        self._key_of = key_of
        self._lifecycle = lifecycle
        self._metrics = metrics
        self._max_body_bytes = max_body_bytes
        self._room = room
        self._relays: set[Relay] = set()

    def cut(self, why: str) -> None:
        """Ends every answer that is being relayed, naming `why` where its stream has a place for it."""
        for relay in list(self._relays):
            relay.cut(why)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serves one request; never raises but for what cuts the client's connection."""
        record = Record(scope["method"], scope["path"])
        body = Body(self._room, self._max_body_bytes)
        self._lifecycle.requests += 1
        try:
            await self._guarded(scope, receive, send, record, body)
        finally:
            self._lifecycle.requests -= 1
            body.free()
            record.finish(self._metrics)

    async def _guarded(self, scope: Scope, receive: Receive, send: Send, record: Record, body: Body) -> None:
        try:
            self._lifecycle.check_room()
            await body.read(scope, receive)
            work = asyncio.create_task(self._serve(scope, send, record, body))
            await _unless_client_leaves(work, receive)
        except ClientGone:
            record.status, record.note = CLIENT_GONE, "the client left"
        except ApiError as error:
            record.note = error.message
            await self._refuse(error, send, record)

    async def _serve(self, scope: Scope, send: Send, record: Record, body: Body) -> None:
        path = scope["path"]
        record.asked = model_field(body.data, path)[:200]
        model = self._directory.resolve(record.asked)
        if model is None:
            raise self._not_found(record.asked)
        record.namespace, record.model = model.namespace, model.name
        outgoing = self._outgoing(scope, body, model, record.asked)
        found = await self._dispatcher.answer(model, outgoing, computing=path not in ASKING)
        body.free()
        record.pod, record.replays, record.status = found.pod.name, found.replays, found.response.status
        self._metrics.first_byte_seconds.labels(model.namespace, model.name).observe(time.monotonic() - record.began)
        await self._relay(found, send, record)

    async def _relay(self, found: Answer, send: Send, record: Record) -> None:
        relay = Relay(found.response, record.dialect, found.pod.name)
        self._relays.add(relay)
        try:
            await relay.run(send, closing=self._lifecycle.draining)
        except BrokenOff as error:
            # Returning without an end makes the HTTP server cut the connection: the client sees a short body.
            logger.error("An answer was cut: %s.", error)
        finally:
            self._relays.discard(relay)
            record.sent_bytes, record.note = relay.sent_bytes, relay.broken or record.note
            found.response.close()
            found.release()

    def _outgoing(self, scope: Scope, body: Body, model: ModelView, asked: str) -> Callable[[PodView], Outgoing]:
        path = scope["path"]
        # A pod knows its models by bare name and alias only.
        if asked.startswith(f"{model.namespace}/") and asked not in model.aliases:
            body.data = with_model(body.data, path, asked.removeprefix(f"{model.namespace}/"))
        query = scope["query_string"].decode("latin-1")
        target = f"{path}?{query}" if query else path

        # Until callers are authenticated, they are told apart by their addresses.
        caller = str((scope.get("client") or ("",))[0])

        def outgoing(pod: PodView) -> Outgoing:
            headers = to_pod(scope["headers"], self._key_of(pod.pool_uid), caller)
            return Outgoing(scope["method"], target, headers, body.data)

        return outgoing

    def _not_found(self, asked: str) -> ApiError:
        names = [self._directory.public_name(model) for model in self._directory.table.models()]
        there = ", ".join(names[:MAX_NAMES]) or "none"
        more = f" and {len(names) - MAX_NAMES} more" if len(names) > MAX_NAMES else ""
        return ApiError(
            404, f"model '{asked}' not found, models that exist: {there}{more}", code="model_not_found", param="model"
        )

    async def _refuse(self, error: ApiError, send: Send, record: Record) -> None:
        told = answer(error, record.dialect)
        data = json.dumps(told.body, ensure_ascii=False).encode()
        headers = {"content-type": "application/json", "content-length": str(len(data)), **told.headers}
        if self._lifecycle.draining:
            headers["connection"] = "close"
        raw = [(name.lower().encode(), value.encode()) for name, value in headers.items()]
        record.status, record.sent_bytes = told.status, len(data)
        await send({"type": "http.response.start", "status": told.status, "headers": raw})
        await send({"type": "http.response.body", "body": data})


async def _unless_client_leaves(work: asyncio.Task[None], receive: Receive) -> None:
    """Awaits `work`; cancels it, and raises ClientGone, as soon as the client closes its connection."""
    left = asyncio.create_task(_disconnect(receive))
    try:
        await asyncio.wait({work, left}, return_when=asyncio.FIRST_COMPLETED)
        if not work.done():
            work.cancel()
            await asyncio.wait({work})
            if not work.cancelled() and (error := work.exception()):
                logger.debug("A request failed while its client left: %s.", error)
            raise ClientGone
        work.result()
    finally:
        for task in (work, left):
            task.cancel()
        await asyncio.wait({work, left})


async def _disconnect(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass
