"""One model of the catalog in this pod: its runner's life from load to unload, death and restart, and its admission.

Owned by `manager`. A load belongs to the model, not to the request that caused it. Requests wait in admission while
the model loads; a runner's death fails only what ran on it. When to load, where, and when to go is `room`'s to say.
"""

import asyncio
import enum
import logging
import math
import time
from collections.abc import Callable, Coroutine
from contextlib import suppress
from pathlib import Path
from typing import Any

from tandem_api.catalog import CatalogModel
from tandem_api.dialects import ApiError
from tandem_api.fields import CachePolicy, Residency, Scheduling, WhenShort
from tandem_api.report import ModelState, Progress
from tandem_api.scalars import FOREVER, duration_seconds
from tandem_server.admission import Admission
from tandem_server.chat.checkpoint import Checkpoint, CheckpointError, read_checkpoint
from tandem_server.config import Settings
from tandem_server.engine import wire
from tandem_server.engine.interface import DoesNotFit
from tandem_server.logs import size_text
from tandem_server.residency.holds import Holds, Wish
from tandem_server.residency.ledger import Grant, Leave, Phase, Why
from tandem_server.residency.need import UNKNOWN, Sizes
from tandem_server.residency.process import Launcher
from tandem_server.residency.progress import ProgressLog
from tandem_server.residency.record import Record, backoff
from tandem_server.residency.room import Room
from tandem_server.residency.runner import LoadFailed, Runner, start_runner
from tandem_server.residency.source import SourceError, resolve
from tandem_server.residency.threads import in_thread

_log = logging.getLogger(__name__)


def not_here(name: str) -> ApiError:
    """What those are told who waited for a model that was taken away."""
    return ApiError(404, f"model '{name}' was removed from this server", code="model_not_found", param="model")


def needs_reload(old: CatalogModel, new: CatalogModel) -> bool:
    """Whether a running runner cannot take over the new settings."""
    kept = {"aliases", "queue", "defaults", "keep_alive", "keep_alive_max", "residency"}
    return old.model_dump(exclude=kept) != new.model_dump(exclude=kept)


async def _first(
    future: asyncio.Future[str], *others: Coroutine[object, object, object], seconds: float | None = None
) -> None:
    """Returns when any is done; `future` is left alone, `others` are ended."""
    tasks = [asyncio.ensure_future(other) for other in others]
    try:
        waited: list[asyncio.Future[Any]] = [future, *tasks]
        await asyncio.wait(waited, timeout=seconds, return_when=asyncio.FIRST_COMPLETED)
    finally:
        for task in tasks:
            task.cancel()


class Unwanted(Exception):
    """Nobody wants the model that waited for room."""


class Ended(enum.Enum):
    """Why a loaded runner serves no more."""

    DIED = "died"
    CHANGED = "its settings changed"
    SENT_AWAY = "sent away"


def seconds_of(keep_alive: int | str | None) -> float:
    """A keep-alive of the API as seconds; absent and -1 are for ever."""
    if keep_alive is None or keep_alive == FOREVER:
        return math.inf
    return duration_seconds(keep_alive)


def runner_spec(entry: CatalogModel, folder: Path, settings: Settings, grant: Grant) -> wire.RunnerSpec:
    """What a runner of `entry` is started with; its address is filled in by the start."""
    length = entry.context.length
    return wire.RunnerSpec(
        model=entry.name,
        path=str(folder),
        address="",
        task=entry.task.value,
        device=settings.device.value,
        dtype=entry.dtype.value,
        quantization=entry.quantization.value,
        slots=entry.slots if isinstance(entry.slots, int) else None,
        context=length if isinstance(length, int) else None,
        min_context=entry.context.min_length,
        may_shrink=entry.context.when_short is not WhenShort.FAIL,
        overlapped=entry.scheduling is Scheduling.OVERLAPPED,
        threads=settings.threads,
        cache_dtype=entry.kv_cache.dtype.value,
        shared_cache=entry.kv_cache.policy is CachePolicy.SHARED,
        device_index=grant.device,
        memory_limit=grant.bytes or None,
    )


class ModelHost:
    """See the module. `state`, `progress`, `loaded`, `last_error` and the counters are for reading only."""

    def __init__(
        self,
        entry: CatalogModel,
        settings: Settings,
        launcher: Launcher,
        admission: Admission,
        room: Room,
        sizes: Sizes,
        on_change: Callable[[], None] = lambda: None,
        on_load: Callable[[bool, float, int], None] = lambda worked, seconds, size: None,
        on_unload: Callable[[Why], None] = lambda why: None,
    ) -> None:
        self.entry = entry
        self.admission = admission
        self.state = ModelState.UNLOADED
        self.progress: Progress | None = None
        self.checkpoint: Checkpoint | None = None
        self.loaded: wire.Loaded | None = None
        self.last_loaded: wire.Loaded | None = None
        """Outlives the runner: what the checkpoint is does not change with it."""
        self.runner: Runner | None = None
        self.last_error: str | None = None
        self.error_reason = ""
        self.restarts = 0
        self.loads = 0
        self.load_seconds = 0.0
        self.retry_at: float | None = None
        self.sized = UNKNOWN
        """As it was estimated last."""
        self.kept = False
        """Loaded again by itself when it is lost: it is preloaded here."""
        self.expires_at: float | None = None
        """When its keep-alive ends if nobody asks, in seconds of the wall clock; None: never."""
        usual = seconds_of(entry.keep_alive)
        self._holds = Holds(usual, usual)
        self._configure_holds()
        self._room = room
        self._sizes = sizes
        self._grant: asyncio.Future[Grant] | None = None
        self.unloaded_because = ""
        """The end of a sentence that says why it was unloaded last; empty while it is loaded."""
        self._sent_away: Leave | None = None
        self._leave = asyncio.Event()
        admission.on_use = self._used
        self._settings = settings
        self._launcher = launcher
        self._on_change = on_change
        self._on_load = on_load
        self._on_unload = on_unload
        self._record = Record()
        self._wanted = asyncio.Event()
        self._reload = asyncio.Event()
        self._task = asyncio.create_task(self._live(), name=f"model {entry.name}")

    def want(self) -> None:
        """Load it if it is not loaded, and keep it for the usual time; returns at once."""
        self._holds.loaded(time.monotonic())
        self._wanted.set()

    def wake(self) -> None:
        """A request is about to come: load it if it is not loaded; returns at once."""
        self._wanted.set()

    def arrive(self, wish: Wish) -> float:
        """A request for it came; `depart` when it ends. Returns the seconds for which it then keeps the model."""
        seconds = self._holds.used(wish, time.monotonic())
        self._used()
        return seconds

    def release(self, wish: Wish) -> float:
        """The caller wants it no more, and asks for nothing else; the seconds are those of `arrive`."""
        seconds = self._holds.used(wish, time.monotonic())
        self._used()
        return seconds

    def depart(self, wish: Wish) -> None:
        """A request that `arrive` was called for ended."""
        self._holds.ended(wish.caller, time.monotonic())
        self._used()

    def refusal(self) -> ApiError | None:
        """The error that a request gets at once because the model cannot be loaded; None while there is hope."""
        if self.state is not ModelState.FAILED or self.loaded is not None:
            return None
        wait = max(1.0, (self.retry_at or 0.0) - time.monotonic())
        return ApiError(
            503,
            f"model '{self.entry.name}' cannot be loaded: {self.last_error}",
            code="model_load_failed",
            retry_after=wait,
        )

    def widen(self, context: int) -> None:
        """More context is wanted than the model was asked to have: it is loaded anew with that, after what runs."""
        asked, limit = self.entry.context.length, self.last_loaded.context_limit if self.last_loaded else context
        if not isinstance(asked, int) or min(context, limit) <= asked:
            return
        wider = self.entry.context.model_copy(update={"length": min(context, limit)})
        self.update(self.entry.model_copy(update={"context": wider}))
        self.admission.resize(0)

    def update(self, entry: CatalogModel) -> None:
        """New settings: queue bounds and defaults at once, the rest by a reload after what runs now."""
        reload = needs_reload(self.entry, entry)
        self.entry = entry
        self.admission.line.queue_max = entry.queue.max
        self.admission.line.timeout = float(entry.queue.timeout_seconds)
        self._configure_holds()
        self._room.pin(entry.name, self.pinned)
        self._used()
        if reload:
            _log.info("The settings of model %s changed; it is loaded again once its running requests end.", entry.name)
            self._record.forget()
            self.last_error, self.error_reason = None, ""
            self._reload.set()

    async def close(self) -> None:
        """Ends the model here: those who wait are sent elsewhere, the runner and all of its processes are gone."""
        self._task.cancel()
        await asyncio.gather(self._task, return_exceptions=True)
        self.admission.hand_back(not_here(self.entry.name))
        if self.runner is not None:
            await self._stop(self.runner, "was ended because its model is no longer wanted here")
        self.loaded = None
        self._enter(ModelState.UNLOADED)

    def _enter(self, state: ModelState) -> None:
        self.state = ModelState.FAILED if self._record.condemned and state is not ModelState.UNLOADED else state
        if state is not ModelState.LOADING:
            self.progress = None
        self._on_change()

    @property
    def device(self) -> int | None:
        """Index of the device that it lies on, or is being loaded to."""
        one = self._room.of(self.entry.name)
        return None if one is None or one.phase is Phase.WAITING else one.device

    @property
    def pinned(self) -> bool:
        """Whether it stays loaded whatever others need."""
        return self.entry.residency is Residency.PINNED

    def granted(self, grant: Grant) -> None:
        """See `room.Tenant`."""
        if self._grant is not None and not self._grant.done():
            self._grant.set_result(grant)

    def refused(self, sentence: str) -> None:
        """See `room.Tenant`."""
        if self._grant is not None and not self._grant.done():
            self._grant.set_exception(LoadFailed(sentence, DoesNotFit.reason))

    def later(self) -> None:
        """See `room.Tenant`."""
        if self._grant is not None and not self._grant.done():
            _log.info("Model %s does not fit beside the others; it is loaded when it is asked for.", self.entry.name)
            self._grant.set_exception(Unwanted())

    def leave(self, order: Leave) -> None:
        """See `room.Tenant`."""
        self._sent_away = order
        self.unloaded_because = order.because
        self._on_unload(order.why)
        self._leave.set()
        self.admission.resize(0)

    def pause(self) -> None:
        """See `room.Tenant`."""
        self.admission.resize(0)

    def resume(self) -> None:
        """See `room.Tenant`."""
        if self.loaded is not None and not self._reload.is_set():
            self.admission.resize(self.loaded.slots)

    def _configure_holds(self) -> None:
        most = self.entry.keep_alive_max
        self._holds.configure(seconds_of(self.entry.keep_alive), None if most is None else seconds_of(most))

    def _used(self) -> None:
        """Tells the room how many requests there are, and when the keep-alive ends if no more come."""
        line, end = self.admission.line, math.inf if self.pinned else self._holds.end()
        self.expires_at = time.time() + max(0.0, end - time.monotonic()) if end < math.inf else None
        self._room.use(self.entry.name, len(line.running), len(line.waiting), end)
        one = self._room.of(self.entry.name)
        waits = one is not None and one.phase is Phase.WAITING
        if waits and self._grant is not None and not self._grant.done() and not self._still_wanted():
            self._grant.set_exception(Unwanted())

    def _still_wanted(self) -> bool:
        """Whether it is to be loaded again by itself, or goes on waiting for room."""
        held = self.kept or self.pinned or self._holds.end() > time.monotonic()
        return held or bool(self.admission.line.waiting)

    async def _live(self) -> None:
        while True:
            await self._wanted.wait()
            self._reload.clear()
            try:
                await self._load()
            except Unwanted:
                if not self.admission.line.waiting:
                    self._wanted.clear()
                self._enter(ModelState.UNLOADED)
                continue
            except (SourceError, CheckpointError, LoadFailed, OSError) as error:
                self.error_reason = error.reason if isinstance(error, LoadFailed) else ""
                lasting = isinstance(error, CheckpointError) or (isinstance(error, SourceError) and error.lasting)
                # Memory may come back, but those who wait learn now that it is short.
                lasting = lasting or self.error_reason == DoesNotFit.reason
                self._record.load_failed(lasting)
                self._on_load(False, 0.0, 0)
                await self._failed(str(error))
                continue
            except Exception as error:  # noqa: BLE001 - whatever it is, the model goes on trying
                _log.exception("The load of model %s met a fault in the server.", self.entry.name)
                self._record.load_failed(lasting=False)
                self._on_load(False, 0.0, 0)
                await self._failed(f"the load met a fault in the server: {type(error).__name__}: {error}")
                continue
            began = time.monotonic()
            runner = self.runner
            assert runner is not None
            ended = await self._serve(runner)
            if ended is Ended.DIED:
                self._record.died(runner.client.served.is_set(), time.monotonic() - began)
                self.restarts += 1
                self.error_reason = ""
                await self._failed(runner.ended.result())
            elif ended is Ended.SENT_AWAY:
                self._rest()

    def _rest(self) -> None:
        """It was unloaded: it stays so until somebody asks, unless somebody does, or it only makes way for itself."""
        grows = self._sent_away is not None and self._sent_away.why is Why.GROWS
        self._sent_away = None
        if not grows and not self.admission.line.waiting:
            self._wanted.clear()

    async def _load(self) -> None:
        began = time.monotonic()
        entry = self.entry
        self._enter(ModelState.LOADING)
        note = ProgressLog(entry.name, self._progressed)
        _log.info("Loading model %s from %s.", entry.name, entry.source)
        folder = await resolve(entry.source, entry.revision, self._settings, note.told, entry.name)
        self.sized = await in_thread(self._sizes.of, folder, entry, self._settings)
        try:
            grant = await self._room_for(note)
            loaded = await self._start(folder, grant, note)
        except BaseException:
            self._give_room_back()
            raise
        self.loads += 1
        self.unloaded_because = ""
        self.load_seconds = time.monotonic() - began
        self._on_load(True, self.load_seconds, loaded.weight_bytes)
        self._record.loaded()
        self._sizes.learn(self.sized, loaded)
        self._tell_loaded(loaded)
        self._well()
        self._holds.loaded(time.monotonic())
        size = loaded.total_bytes or loaded.weight_bytes + loaded.cache_bytes + loaded.overhead_bytes
        self._room.loaded(entry.name, size, self._holds.end())
        if self._sent_away is None:
            self.admission.resize(loaded.slots)

    async def _room_for(self, note: ProgressLog) -> Grant:
        """Waits for its turn and for memory. Raises LoadFailed, Unwanted."""
        self._leave.clear()
        self._grant = asyncio.get_running_loop().create_future()
        try:
            queued, modest = len(self.admission.line.waiting), self._settings.one_user
            self._room.ask(self.entry.name, self.sized.need, self, queued, self.pinned, modest)
            if not self._grant.done():
                note.told(Progress(phase="waiting for memory"))
            return await self._grant
        finally:
            self._grant = None

    async def _start(self, folder: Path, grant: Grant, note: ProgressLog) -> wire.Loaded:
        """Starts the runner and waits until the model is loaded. Raises LoadFailed, CheckpointError, OSError."""
        spec = runner_spec(self.entry, folder, self._settings, grant)
        note.told(Progress(phase="starting"))
        self.runner = runner = await start_runner(
            self._launcher, spec, self._settings, note.told_by_runner, lambda: self.admission.resize(0)
        )
        try:
            self.checkpoint = await in_thread(read_checkpoint, folder, self.checkpoint)
            self.loaded = self.last_loaded = await runner.loaded()
        except BaseException:
            if runner.ended.done():
                self.runner = None
            else:
                await asyncio.shield(self._stop(runner, "was ended because its load was given up"))
            raise
        return self.loaded

    async def _serve(self, runner: Runner) -> Ended:
        """Until the runner dies or is to be ended; it is gone then."""
        probation = self._record.probation
        if probation is not None:
            await _first(
                runner.ended, self._reload.wait(), self._leave.wait(), runner.client.served.wait(), seconds=probation
            )
            if not runner.ended.done() and not self._reload.is_set() and not self._leave.is_set():
                self._record.absolve(runner.client.served.is_set())
                self._well()
        await _first(runner.ended, self._reload.wait(), self._leave.wait())
        self._room.leaving(self.entry.name)
        self.admission.resize(0)
        if not runner.ended.done():
            await _first(runner.ended, self.admission.idle(), seconds=self._settings.drain_seconds)
        died, sent = runner.ended.done(), self._leave.is_set()
        self.loaded = None
        self._enter(ModelState.UNLOADED if sent and not died else ModelState.LOADING)
        if died:
            self.runner = None
            self._give_room_back()
        else:
            why = self._sent_away.because if self._sent_away is not None else "the settings of its model changed"
            await self._stop(runner, f"was ended because {why}")
        return Ended.DIED if died else Ended.SENT_AWAY if sent else Ended.CHANGED

    async def _stop(self, runner: Runner, because: str) -> None:
        """Ends the runner and gives its room back, unless it cannot be ended: then it keeps its memory."""
        await runner.stop(because)
        self.runner = None
        self._give_room_back(lost=runner.abandoned)

    def _give_room_back(self, lost: bool = False) -> None:
        self._room.gone(self.entry.name, lost)

    def _well(self) -> None:
        """It is loaded: told so, unless its runners died so often that it must serve first."""
        if not self._record.condemned:
            self.last_error, self.error_reason = None, ""
        self._enter(ModelState.LOADED)

    async def _failed(self, cause: str) -> None:
        self.last_error = cause
        wait = backoff(self._settings.backoff_seconds, self._record.failures)
        self.retry_at = time.monotonic() + wait
        sentence = cause[:1].upper() + cause[1:]
        _log.error("Model %s does not serve: %s. Trying again in %.1f s.", self.entry.name, sentence.rstrip("."), wait)
        self.progress = None
        self._enter(ModelState.LOADING)
        refusal = self.refusal()
        if refusal is not None:
            self.admission.hand_back(refusal)
        with suppress(TimeoutError):
            await asyncio.wait_for(self._reload.wait(), wait)
        self.retry_at = None
        self._sent_away = None
        if not self._still_wanted():
            self._wanted.clear()

    def _progressed(self, progress: Progress) -> None:
        self.progress = progress
        self._on_change()

    def _tell_loaded(self, loaded: wire.Loaded) -> None:
        size = loaded.weight_bytes + loaded.cache_bytes + loaded.overhead_bytes
        _log.info(
            "Loaded model %s in %.1f s: %s with %s parameters in %s on %s; %d slots of %d tokens each%s; %s in all "
            "(weights %s, contexts %s). %s%s",
            self.entry.name,
            self.load_seconds,
            loaded.architecture,
            f"{loaded.parameters:,}",
            loaded.dtype,
            loaded.device,
            loaded.slots,
            loaded.context,
            f", {loaded.pool_tokens} together" if loaded.shares else "",
            size_text(size),
            size_text(loaded.weight_bytes),
            size_text(loaded.cache_bytes),
            loaded.engine_reason,
            f" {loaded.context_reason}" if loaded.context_reason else "",
        )
