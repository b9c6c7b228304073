"""The gateway's current knowledge: the table of Models and pods, made anew when an informer reports a change.

Between the informers, which say `changed`, and requests, which read `table` and may wait for it to change.
"""

import asyncio
import random
from collections.abc import Iterable, Mapping
from dataclasses import replace

from tandem_gateway import placing, routing
from tandem_gateway.loads import Loads
from tandem_gateway.objects import DEFAULT_SLOTS, ModelView, PodView
from tandem_gateway.placing import Choice, PodLoad, Want, Warmth
from tandem_gateway.routing import Table


class Directory:
    """Models, pods and loads of this moment.

    Args:
        loads: told which pods are gone.
        default_namespace: where bare names are looked up.
    """

    def __init__(self, loads: Loads, default_namespace: str) -> None:
        self.loads = loads
        self.default_namespace = default_namespace
        self._models: Mapping[str, ModelView] = {}
        self._pods: Mapping[str, PodView] = {}
        self._seen_ready: set[str] = set()
        self._table: Table | None = None
        self._change = asyncio.Event()

    def follow(self, models: Mapping[str, ModelView], pods: Mapping[str, PodView]) -> None:
        """Takes these views, by UID, as what there is now; cheap enough for every event of a watch."""
        self._models, self._pods = models, pods
        self._seen_ready = {uid for uid, pod in pods.items() if pod.ready or uid in self._seen_ready}
        self._table = None
        self._change.set()
        self._change = asyncio.Event()

    @property
    def table(self) -> Table:
        """The table; made at the first look after a change, so that a burst of events costs one."""
        if self._table is None:
            self.loads.forget_all_but(self._pods.keys())
            self._table = routing.build(self._models.values(), self._remembered(self._pods.values()))
        return self._table

    def pods(self) -> list[PodView]:
        """All serving pods, with and without an address."""
        return list(self._remembered(self._pods.values()))

    async def wait_for_change(self, seconds: float) -> None:
        """Returns after the next change, or after `seconds`."""
        try:
            async with asyncio.timeout(seconds):
                await self._change.wait()
        except TimeoutError:
            return

    def resolve(self, name: str) -> ModelView | None:
        """The Model that a request means by `name`."""
        return routing.resolve(self.table, name, self.default_namespace)

    def public_name(self, model: ModelView) -> str:
        """What requests call the Model."""
        return routing.public_name(model, self.default_namespace)

    def choose(self, model: ModelView, *, computing: bool = True) -> Choice:
        """The pods that may serve a request for the model, best first; equals in random order.

        `computing`: the request makes a pod load the model.
        """
        pods = self.table.pods_of(model)

        def load_of(pod: PodView) -> PodLoad:
            load = self.loads.of(pod, model.name)
            return load if load.slots else replace(load, slots=model.slots or DEFAULT_SLOTS)

        found = placing.choose(
            pods,
            load_of,
            lambda _: random.random(),  # noqa: S311
            Want(model.uid, self.loads.size(pods, model.name), model.copies_max, computing),
        )
        if not model.shared_pool or model.ready is None or model.ready.status == "True":
            return found
        # The pool's pods serve others; of a Model that is not ready they would say that there is no such model.
        return replace(found, pods=[pod for pod in found.pods if load_of(pod).warmth < Warmth.ABSENT])

    def _remembered(self, pods: Iterable[PodView]) -> Iterable[PodView]:
        for pod in pods:
            yield replace(pod, was_ready=True) if pod.uid in self._seen_ready else pod
