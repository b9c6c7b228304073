"""A CPU's step: where nothing but decode rows is computed, one call of our kernels does it all.

Takes the place of `DeviceStep` beside `cpu_decoder.py`. The call draws each token from the slot's last one to its next
one without a torch operator: each of those comes anew from memory while the weights stream through the caches, and
each lets the loop's thread have the interpreter, which the step then waits for. Any other step goes the usual way.
"""

import ctypes
from dataclasses import dataclass

import torch

from tandem_server.engine.native.cpu_compiler import kernels
from tandem_server.engine.native.cpu_decoder import CpuDecoder
from tandem_server.engine.native.cpu_linear import LANES
from tandem_server.engine.native.executors import Output
from tandem_server.engine.native.linear import smallest_size
from tandem_server.engine.native.plan import BAD_ROW, StepPlan, StepResult
from tandem_server.engine.native.step import DeviceStep


@dataclass(frozen=True)
class Drawn:
    """See `Output`: tokens that are on the host already."""

    tokens: dict[int, int]
    sampling: float
    failures: dict[int, str]

    def to_host(self) -> StepResult:
        """As they are."""
        return StepResult(self.tokens, failures=self.failures)


class CpuStep(DeviceStep):
    """See `DeviceStep`."""

    def __init__(self, decoder: CpuDecoder, sizes: tuple[int, ...], checked: bool = False) -> None:
        super().__init__(decoder, sizes, checked)
        self._compiled = decoder
        slots, vocabulary = decoder.slots, decoder.config.vocabulary
        draws = None if vocabulary % LANES else self._sampler.compiled
        self._is_fused = draws is not None
        if draws is None:
            return
        self._kernel = kernels(decoder.dtype).tandem_step
        # By slot. Plain arrays are written by plain assignments, and read in the same way.
        self._turned, self._positions = (ctypes.c_int64 * slots)(), (ctypes.c_int64 * slots)()
        self._lengths, self._taken = (ctypes.c_int32 * slots)(), (ctypes.c_uint8 * slots)()
        self._tokens, self._finite = (ctypes.c_int64 * slots)(), (ctypes.c_uint8 * slots)()
        self._x = torch.empty(slots, decoder.config.hidden)
        self._logits = torch.empty(slots, vocabulary)
        self._ends = decoder.ends_struct(self._logits)
        positions, taken = ctypes.addressof(self._positions), ctypes.addressof(self._taken)
        tokens, finite = ctypes.addressof(self._tokens), ctypes.addressof(self._finite)
        logits, last = self._logits.data_ptr(), self._last_tokens.data_ptr()
        self._draw = draws.struct(slots, logits, positions, taken, tokens, finite, last)
        inputs = (ctypes.addressof(self._turned), ctypes.addressof(self._lengths))
        self._addresses = (*inputs, self._x.data_ptr(), self._hidden.data_ptr())

    def compute(self, plan: StepPlan) -> Output:
        """See `DeviceStep.compute`."""
        if not self._is_fused or not self._is_plain(plan):
            return super().compute(plan)
        failures: dict[int, str] = {}
        tokens: dict[int, int] = {}
        with self._contained("decode step", [row.slot for row in plan.decode], failures):
            tokens = self._run(plan)
        return Drawn(tokens, self._ends.headed, failures)

    def _run(self, plan: StepPlan) -> dict[int, int]:
        """Each sampled slot's new token."""
        rows = smallest_size(self._sizes, 1 + max(row.slot for row in plan.decode))
        self._fill(plan, rows)
        if self._checked:
            read = (int(self._last_tokens[slot]) for slot in range(rows) if self._lengths[slot])
            assert min(read) >= 0, "a decode row read a poisoned token"
        step = self._compiled.decode_struct(rows, *self._addresses)
        self._draw.rows = rows
        model, ends, draw = self._compiled.model, self._ends, self._draw
        self._kernel(ctypes.byref(model), ctypes.byref(step), ctypes.byref(ends), ctypes.byref(draw))
        tokens, finite = self._tokens[:rows], self._finite[:rows]
        return {slot: tokens[slot] if finite[slot] else BAD_ROW for slot, _ in plan.samples}

    def _is_plain(self, plan: StepPlan) -> bool:
        """Whether it is decode rows alone, drawn in the kernel's ways, by positions that are never read again."""
        needs = plan.needs
        more = plan.admitted or plan.chunks or plan.late or plan.masks or plan.moves or plan.reseated
        beyond = needs.penalties or needs.biases or needs.typical or needs.logprobs is not None
        if more or beyond or self._history is not None or not plan.decode:
            return False
        return self._broken.isdisjoint(row.slot for row in plan.decode)

    def _fill(self, plan: StepPlan, rows: int) -> None:
        """The kernel's inputs for the first `rows` slots."""
        ctypes.memset(self._lengths, 0, rows * ctypes.sizeof(ctypes.c_int32))
        ctypes.memset(self._taken, 0, rows)
        for row in plan.decode:
            self._lengths[row.slot], self._turned[row.slot] = row.position + 1, row.position
        for slot, position in plan.samples:
            self._taken[slot], self._positions[slot] = 1, position
