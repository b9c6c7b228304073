"""The watches, by kopf, and the process shell that kopf is. The only file that knows kopf's handlers.

Every event is put into the cache, which nudges the queue; nothing is decided here. kopf itself writes nothing: no
finalizer, no annotation, no Event, no peering.
"""

import asyncio
import logging
from collections.abc import Awaitable, Callable
from typing import Any

import kopf

from tandem_operator.cache import Cache
from tandem_operator.credentials import connection
from tandem_operator.kinds import WATCHED, Kind, Obj

log = logging.getLogger(__name__)


class NoDiffBase(kopf.DiffBaseStorage):
    """Remembers no earlier version of objects: `on.event` uses none, and the copying would double the cost."""

    def build(self, **_: Any) -> Any:
        """No essence of the object."""
        return {}

    def fetch(self, **_: Any) -> Any:
        """No earlier essence."""
        return None

    def store(self, **_: Any) -> None:
        """Stores nothing."""


def settings_of() -> kopf.OperatorSettings:
    """kopf as a mere watcher."""
    settings = kopf.OperatorSettings()
    settings.posting.enabled = False
    settings.peering.standalone = True
    # Kinds are known and installed before the operator; watching CRDs and namespaces would need further rights.
    settings.scanning.disabled = True
    settings.persistence.diffbase_storage = NoDiffBase()
    settings.networking.error_backoffs = (0.2, 0.5, 1, 2, 5)
    settings.networking.connect_timeout = 5
    settings.watching.connect_timeout = 5
    # The API server ends a watch by itself now and then; so does this bound when a connection died silently.
    settings.watching.server_timeout = 300
    for kind in WATCHED:
        if kind.selector is not None:
            settings.watching.label_selectors[kind.group, kind.version, kind.plural] = kind.selector
    return settings


def _handler(cache: Cache, kind: Kind, heard: Callable[[Kind], None]) -> Callable[..., Awaitable[None]]:
    # A coroutine, and one that never waits: a blocking handler would stall every watch. It returns None: kopf would
    # write anything else into the object's status.
    async def observe_event(event: Any, **_: Any) -> None:
        heard(kind)
        obj: Obj = dict(event["object"])
        obj.setdefault("apiVersion", kind.api_version)
        obj.setdefault("kind", kind.name)
        if event["type"] == "DELETED":
            cache.drop(kind, obj)
        else:
            cache.put(kind, obj)

    return observe_event


async def watch(
    cache: Cache,
    settings: kopf.OperatorSettings,
    stop: asyncio.Event,
    on_stop: Callable[[], Awaitable[None]],
    heard: Callable[[Kind], None],
    namespace: str = "",
) -> None:
    """Watches all namespaces, or one, until the process is told to end or `stop` is set.

    `on_stop` must end every task of ours; `heard` is told of each event's kind.

    Raises what ended kopf, such as lasting refusal of a watch.
    """
    registry = kopf.OperatorRegistry()

    @kopf.on.login(registry=registry)
    def login(**_: Any) -> kopf.ConnectionInfo:
        return connection(settings)

    @kopf.on.cleanup(registry=registry)
    async def cleanup(**_: Any) -> None:
        await on_stop()

    for kind in WATCHED:
        kopf.on.event(kind.group, kind.version, kind.plural, registry=registry)(_handler(cache, kind, heard))
    await kopf.operator(
        registry=registry,
        settings=settings,
        clusterwide=not namespace,
        namespaces=[namespace] if namespace else [],
        standalone=True,
        stop_flag=stop,
    )
