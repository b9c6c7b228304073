"""The native engine for models that make text: one resident decoder, and the loop that runs on it.

Made by `load.py`; called by the runner.
"""

import logging
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from functools import partial
from pathlib import Path

import torch

from tandem_server.engine.interface import Link
from tandem_server.engine.native.affinity import own_cpus
from tandem_server.engine.native.cuda import CudaExecutor
from tandem_server.engine.native.executors import Executor, InlineExecutor, WorkerExecutor
from tandem_server.engine.native.grammar import Grammars
from tandem_server.engine.native.loop import Loop
from tandem_server.engine.native.scheduler import Limits, Scheduler
from tandem_server.engine.native.stats import StatsKeeper
from tandem_server.engine.native.step import DeviceStep
from tandem_server.engine.wire import Add, Loaded, RunnerSpec

log = logging.getLogger("tandem.runner")


class NativeEngine:
    """One resident decoder."""

    def __init__(
        self, spec: RunnerSpec, loaded: Loaded, step: DeviceStep, limits: Limits, device: torch.device
    ) -> None:
        self.loaded = loaded
        self.overlapped = spec.overlapped
        """Which loop `serve` runs."""
        self.reuse = limits.reuse
        """Whether `serve` keeps blocks for later requests."""
        self._step, self._limits, self._device = step, limits, device
        self._folder = Path(spec.path)
        self._admitted = 0

    def serve(self, link: Link) -> None:
        """Runs requests until a `Stop` arrives."""
        grammars = Grammars(self._folder, self._limits.vocabulary)
        scheduler = Scheduler(replace(self._limits, reuse=self.reuse), self._on_admit, compile=grammars.begin)
        executor = self._executor()
        loop = Loop(scheduler, executor, link, StatsKeeper(link, scheduler, executor))
        try:
            if not self.overlapped:
                with self._placed(caller=False):
                    loop.run_plain()
            elif isinstance(executor, WorkerExecutor):
                executor.run_beside(loop.run_overlapped)
            else:
                loop.run_overlapped()
        finally:
            executor.close()
            grammars.close()

    def _executor(self) -> Executor:
        if self._device.type == "cuda":
            return CudaExecutor(self._step.compute, self._device, self._limits.slots)
        if self.overlapped:
            return WorkerExecutor(self._step.compute, partial(self._placed, caller=True))
        return InlineExecutor(self._step.compute)

    def _placed(self, caller: bool) -> AbstractContextManager[None]:
        """Around the computing: see `own_cpus`."""
        return own_cpus(torch.get_num_threads(), caller) if self._device.type == "cpu" else nullcontext()

    def _on_admit(self, add: Add, slot: int) -> None:
        self._admitted += 1
        log.info(
            "admitted request %d to slot %d (admission %d: %d prompt tokens, at most %d new ones)",
            add.request,
            slot,
            self._admitted,
            len(add.prompt),
            add.max_tokens,
        )
