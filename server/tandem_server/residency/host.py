"""One model of the catalog in this pod: its runner's life from load to unload, death and restart, and its admission.

Owned by `manager`. A load belongs to the model, not to the request that caused it. Requests wait in admission while
the model loads; a runner's death fails only what ran on it. When to load, where, and when to go is `stay`'s to say.
"""

import asyncio
import enum
import logging
import time
from collections.abc import Callable, Coroutine
from contextlib import suppress
from pathlib import Path
from typing import Any

from tandem_api.catalog import CatalogModel
from tandem_api.dialects import ApiError
from tandem_api.report import ModelState, Progress
from tandem_server.admission import Admission
from tandem_server.chat.checkpoint import Checkpoint, CheckpointError, read_checkpoint
from tandem_server.config import Settings
from tandem_server.engine import wire
from tandem_server.engine.interface import DoesNotFit
from tandem_server.logs import size_text
from tandem_server.residency.entry import needs_reload, runner_spec
from tandem_server.residency.ledger import Grant, Why
from tandem_server.residency.need import Sizes
from tandem_server.residency.process import Launcher
from tandem_server.residency.progress import ProgressLog
from tandem_server.residency.record import Record, backoff
from tandem_server.residency.room import Room
from tandem_server.residency.runner import LoadFailed, Runner, start_runner
from tandem_server.residency.source import SourceError, resolve
from tandem_server.residency.stay import Stay, Unwanted
from tandem_server.residency.threads import in_thread

_log = logging.getLogger(__name__)


def not_here(name: str) -> ApiError:
    """What those are told who waited for a model that was taken away."""
    return ApiError(404, f"model '{name}' was removed from this server", code="model_not_found", param="model")


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


class Ended(enum.Enum):
    """Why a loaded runner serves no more."""

    DIED = "died"
    CHANGED = "its settings changed"
    SENT_AWAY = "sent away"


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
        self.stay = Stay(entry, admission, room, sizes, settings, on_unload)
        self._settings = settings
        self._launcher = launcher
        self._on_change = on_change
        self._on_load = on_load
        self._record = Record()
        self._wanted = asyncio.Event()
        self._reload = asyncio.Event()
        self._task = asyncio.create_task(self._live(), name=f"model {entry.name}")

    def want(self) -> None:
        """Load it if it is not loaded, and keep it for the usual time; returns at once."""
        self.stay.hold()
        self._wanted.set()

    def wake(self) -> None:
        """A request is about to come: load it if it is not loaded; returns at once."""
        self._wanted.set()

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
        self.stay.close_gate()

    def update(self, entry: CatalogModel) -> None:
        """New settings: queue bounds and defaults at once, the rest by a reload after what runs now."""
        reload = needs_reload(self.entry, entry)
        self.entry = entry
        self.admission.line.queue_max = entry.queue.max
        self.admission.line.timeout = float(entry.queue.timeout_seconds)
        self.stay.configure(entry)
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
        grows = self.stay.order is not None and self.stay.order.why is Why.GROWS
        if not grows and not self.admission.line.waiting:
            self._wanted.clear()

    async def _load(self) -> None:
        began = time.monotonic()
        entry = self.entry
        self._enter(ModelState.LOADING)
        note = ProgressLog(entry.name, self._progressed)
        _log.info("Loading model %s from %s.", entry.name, entry.source)
        folder = await resolve(entry.source, entry.revision, self._settings, note.told, entry.name)
        try:
            grant = await self.stay.room_for(folder, lambda: note.told(Progress(phase="waiting for memory")))
            loaded = await self._start(folder, grant, note)
        except BaseException:
            self.stay.gone()
            raise
        self.loads += 1
        self.load_seconds = time.monotonic() - began
        self._on_load(True, self.load_seconds, loaded.weight_bytes)
        self._record.loaded()
        self._tell_loaded(loaded)
        self._well()
        self.stay.began(loaded)

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
        probation, leave = self._record.probation, self.stay.sent_away
        if probation is not None:
            await _first(
                runner.ended, self._reload.wait(), leave.wait(), runner.client.served.wait(), seconds=probation
            )
            if not runner.ended.done() and not self._reload.is_set() and not leave.is_set():
                self._record.absolve(runner.client.served.is_set())
                self._well()
        await _first(runner.ended, self._reload.wait(), leave.wait())
        self.stay.ends()
        if not runner.ended.done():
            await _first(runner.ended, self.admission.idle(), seconds=self._settings.drain_seconds)
        died, sent = runner.ended.done(), leave.is_set()
        self.loaded = None
        self._enter(ModelState.UNLOADED if sent and not died else ModelState.LOADING)
        if died:
            self.runner = None
            self.stay.gone()
        else:
            why = self.stay.because or "the settings of its model changed"
            await self._stop(runner, f"was ended because {why}")
        return Ended.DIED if died else Ended.SENT_AWAY if sent else Ended.CHANGED

    async def _stop(self, runner: Runner, because: str) -> None:
        """Ends the runner and gives its room back, unless it cannot be ended: then it keeps its memory."""
        await runner.stop(because)
        self.runner = None
        self.stay.gone(lost=runner.abandoned)

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
        if not self.stay.wanted:
            self._wanted.clear()
            if not self._record.condemned:
                self._enter(ModelState.UNLOADED)

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
