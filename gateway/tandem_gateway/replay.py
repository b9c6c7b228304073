"""Finds a pod that answers: sends a request, and sends it again elsewhere while no byte of an answer has come.

On the path of a request between routing and the relay of the answer. `Tries` decides, without any I/O, which pod may
be asked again when, and when to give up; `Dispatcher` acts on it. A full queue is an answer and is never replayed.
"""

import logging
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import Protocol

import aiohttp

from tandem_api.dialects import ApiError
from tandem_gateway.directory import Directory
from tandem_gateway.objects import ModelView, PodView
from tandem_gateway.placing import Further
from tandem_gateway.upstream import AttemptFailed, Fault, Outgoing, load_of

logger = logging.getLogger(__name__)

FOR_EVER = float("inf")


@dataclass(frozen=True, slots=True)
class Patience:
    """How long and how often a request is tried, times in seconds."""

    unanswered: float = 10.0
    """From the first failure on, where pods could not be reached."""
    draining: float = 30.0
    """From the first failure on, where a pod said that it drains: its successor is on its way."""
    resets: int = 2
    """Replays after a pod took the request and died: a request that kills pods must not visit them all."""
    stale: int = 8
    """Replays over kept connections that were closed."""
    first_pause: float = 0.1
    last_pause: float = 2.0


@dataclass(slots=True)
class Tries:
    """What one request has tried so far."""

    patience: Patience
    faults: list[tuple[PodView, AttemptFailed]] = field(default_factory=list)
    _not_before: dict[str, float] = field(default_factory=dict)
    _first_failure: float | None = None

    def failed(self, pod: PodView, failure: AttemptFailed, now: float) -> bool:
        """Notes a failure; whether the request may be sent again at all."""
        if self._first_failure is None:
            self._first_failure = now
        self.faults.append((pod, failure))
        count = sum(1 for _, other in self.faults if other.fault is failure.fault)
        again_here = sum(1 for other, _ in self.faults if other.uid == pod.uid)
        pause = min(self.patience.first_pause * 2 ** (again_here - 1), self.patience.last_pause)
        match failure.fault:
            case Fault.DRAINING:
                self._not_before[pod.uid] = FOR_EVER
            case Fault.STALE:
                return count <= self.patience.stale
            case Fault.RESET:
                self._not_before[pod.uid] = now + pause
                return count <= self.patience.resets
            case Fault.SILENT:
                return False
            case Fault.CONNECT | Fault.KEY:
                self._not_before[pod.uid] = now + pause
        return True

    def choose(self, ordered: list[PodView], now: float) -> PodView | None:
        """The first of the candidates that may be asked now."""
        return next((pod for pod in ordered if self._not_before.get(pod.uid, 0.0) <= now), None)

    def wait(self, ordered: list[PodView], now: float) -> float | None:
        """Seconds to wait for a change or for the next pod's turn; None when it is time to give up."""
        if self._first_failure is None:
            return None
        drains = any(failure.fault is Fault.DRAINING for _, failure in self.faults)
        deadline = self._first_failure + (self.patience.draining if drains else self.patience.unanswered)
        if now >= deadline:
            return None
        return max(0.0, min([deadline, *(self._not_before.get(pod.uid, 0.0) for pod in ordered)]) - now)

    def story(self) -> str:
        """The last failure of each pod, in words."""
        last = {pod.name: failure.cause for pod, failure in self.faults}
        return "; ".join(f"pod {name}: {cause}" for name, cause in last.items())


@dataclass(slots=True)
class Answer:
    """A pod's answer whose head has come; `release` must be called once when the request is over."""

    response: aiohttp.ClientResponse
    pod: PodView
    replays: int
    release: Callable[[], None]


class Sender(Protocol):
    """What sends one request to one pod; raises AttemptFailed."""

    async def send(self, pod: PodView, request: Outgoing) -> aiohttp.ClientResponse:
        """The answer, once its head is there."""
        ...


class Dispatcher:
    """Brings requests to pods.

    Args:
        directory: what pods there are, and how loaded.
        sender: sends to one pod.
        on_replay: told the fault of every attempt that failed.
        on_further: told the Model of every request that opens a further copy.
        patience: how long to try.
    """

    def __init__(
        self,
        directory: Directory,
        sender: Sender,
        on_replay: Callable[[Fault], None],
        on_further: Callable[[ModelView], None],
        patience: Patience = Patience(),
    ) -> None:
        self._directory = directory
        self._sender = sender
        self._on_replay = on_replay
        self._on_further = on_further
        self._patience = patience

    async def answer(
        self, model: ModelView, outgoing: Callable[[PodView], Outgoing], *, computing: bool = True
    ) -> Answer:
        """The first answer that a pod of the model gives. `computing`: the request makes a pod load the model.

        Raises:
            ApiError: 503 when no pod could take the request in time, 502 when pods died of it, 504 for a silent one.
        """
        tries = Tries(self._patience)
        loads = self._directory.loads
        while True:
            now = time.monotonic()
            choice = self._directory.choose(model, computing=computing)
            pod = tries.choose(choice.pods, now)
            if pod is None:
                seconds = tries.wait(choice.pods, now)
                current = self._directory.table.names.get((model.namespace, model.name))
                if current is None or current.uid != model.uid:
                    raise deleted(model)
                if seconds is None:
                    raise unserved(current, tries)
                await self._directory.wait_for_change(seconds)
                continue
            if choice.further is not None and choice.further.pod is pod:
                self._opens(model, choice.further)
            loads.begin(pod.uid, model.name)
            taken = False
            try:
                response = await self._sender.send(pod, outgoing(pod))
                taken = True
            except AttemptFailed as failure:
                self._note(pod, model, failure)
                if not tries.failed(pod, failure, time.monotonic()):
                    raise died(model, tries, failure) from failure
                continue
            finally:
                if not taken:
                    loads.end(pod.uid, model.name)
            loads.answered(pod.uid)
            if load := load_of(response):
                loads.observe(pod.uid, model.name, load)
            return Answer(response, pod, len(tries.faults), partial(loads.end, pod.uid, model.name))

    def _opens(self, model: ModelView, further: Further) -> None:
        self._on_further(model)
        logger.info(
            "Pod %s is to load a further copy of model %s: where it is loaded (%s) more requests than slots "
            "have waited for %.0f s, and this pod has room for it beside what it holds.",
            further.pod,
            model.name,
            ", ".join(str(pod) for pod in further.holders),
            further.seconds,
        )

    def _note(self, pod: PodView, model: ModelView, failure: AttemptFailed) -> None:
        self._on_replay(failure.fault)
        harmless = failure.fault in (Fault.DRAINING, Fault.STALE)
        logger.log(
            logging.INFO if harmless else logging.WARNING,
            "Pod %s did not answer a request for model %s: %s.",
            pod,
            model.name,
            failure.cause,
        )
        if failure.fault is Fault.DRAINING:
            self._directory.loads.draining(pod.uid)
        elif not harmless:
            self._directory.loads.suspect(pod.uid)


def unserved(model: ModelView, tries: Tries) -> ApiError:
    """503: no pod took the request; told with the pods' causes, or with the sentence of the Ready condition."""
    if tries.faults:
        why = f"no pod took the request in time ({tries.story()})"
    elif model.ready is None:
        why = "it has no ready pod, and its status says nothing yet"
    elif model.ready.status == "True":
        why = "it has no ready pod at this moment"
    else:
        why = f"it has no ready pod ({model.ready.reason}: {model.ready.message.rstrip('. ')})"
    return ApiError(503, f"Model {model.name} cannot serve now: {why}.", code="no_ready_pod", retry_after=5)


def deleted(model: ModelView) -> ApiError:
    """503: the Model went while the request looked for a pod; there is nothing to wait for."""
    return ApiError(
        503, f"Model {model.name} was deleted before a pod took the request.", code="model_deleted", retry_after=5
    )


def died(model: ModelView, tries: Tries, last: AttemptFailed) -> ApiError:
    """502 or 504: pods took the request and gave no answer; it is not sent to further ones."""
    if last.fault is Fault.SILENT:
        return ApiError(504, f"Model {model.name} did not answer: {tries.story()}.", code="pod_silent")
    return ApiError(
        502,
        f"Model {model.name} did not answer: its pods took the request and broke off {len(tries.faults)} times "
        f"({tries.story()}).",
        code="pod_died",
    )
