"""The GPU's step: decode rows and their sampling are CUDA graphs that read everything from the device.

Takes the place of `DeviceStep` where the fused decoder runs on a GPU. For a step in which no prompt is read, the host
makes one small copy and launches two graphs, whatever the model's size and the number of sequences. Graphs of the
forward are recorded at load, one for each number of rows; those of the sampler when a mix of parameters comes for the
second time, since there are too many mixes to record them all.
"""

from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial

import torch

from tandem_server.engine.native.gpu_decoder import GpuDecoder
from tandem_server.engine.native.graphs import Graphs
from tandem_server.engine.native.linear import smallest_size
from tandem_server.engine.native.needs import Needs
from tandem_server.engine.native.plan import Chunk, StepPlan
from tandem_server.engine.native.prompts import Part, packs
from tandem_server.engine.native.step import DeviceStep, StepOutput, masked
from tandem_server.engine.native.transfer import StepInputs, upload

REMEMBERED_DRAWS = 48
"""Graphs of the sampler that are kept; some hundred kilobytes each."""


@dataclass(frozen=True)
class Forward:
    """What a forward of the first rows gives; both are overwritten by the next one."""

    hidden: torch.Tensor
    logits: torch.Tensor


@dataclass(frozen=True)
class Drawn:
    """What the sampler gives the host; see `StepOutput`."""

    tokens: torch.Tensor
    ids: torch.Tensor | None
    values: torch.Tensor | None


class GpuStep(DeviceStep):
    """See `DeviceStep`.

    Args:
        decoder: whose `decode_on_device` computes.
        sizes: numbers of rows that may be computed, ascending, ending with the number of slots.
        graphs: how launches are recorded.
        checked: see `DeviceStep`.
        together: rows of prompts that share a forward at most. Other numbers of rows take other matrix kernels, so in
            float32, where nothing may depend on the neighbours, it is 0: each chunk has its own.
    """

    def __init__(
        self,
        decoder: GpuDecoder,
        sizes: tuple[int, ...],
        graphs: Graphs,
        checked: bool = False,
        together: int = 0,
    ) -> None:
        super().__init__(decoder, sizes, checked)
        self._together = together
        self._fused, self._graphs = decoder, graphs
        self._inputs = StepInputs(decoder.slots, decoder.device)
        # All forwards write here: results of their own would be held for each number of rows.
        self._results = Forward(
            torch.zeros_like(self._hidden),
            torch.zeros(decoder.slots, decoder.config.vocabulary, dtype=torch.float32, device=decoder.device),
        )
        self._forwards: dict[int, Callable[[], Forward]] = {}
        self._draws: OrderedDict[tuple[int, Needs], Callable[[], Drawn] | None] = OrderedDict()
        self._latest: int | None = None
        """Rows of this step's forward."""

    @torch.inference_mode()
    def record(self, needs: Needs) -> None:
        """Records the forward for each number of rows, and the sampler for all slots with `needs`, the most there are.

        The largest comes first: its memory serves the others as well, so that none is taken later. No row takes part,
        so nothing is written to the cache.
        """
        self._inputs.write({}, ())
        for rows in reversed(self._sizes):
            forward = partial(self._forward, rows)
            forward()
            if self._fused.recordable:
                self._forwards[rows] = self._graphs.record(forward)
        rows = self._sizes[-1]
        self._draws[rows, needs] = self._graphs.record(partial(self._draw, self._results.logits[:rows], needs))

    def _prepare(self, length_of: dict[int, int], samples: list[tuple[int, int]]) -> None:
        self._latest = None
        self._inputs.write(length_of, samples)

    def _decode(self, length_of: dict[int, int]) -> torch.Tensor:
        rows = smallest_size(self._sizes, 1 + max(length_of))
        if self._checked:
            poisoned = self._last_tokens[:rows][self._inputs.lengths[:rows] > 0] < 0
            assert not bool(poisoned.any()), "a decode row read a poisoned token"
        forward = self._forwards.get(rows) or partial(self._forward, rows)
        self._latest = rows
        return forward().hidden

    def _read(self, chunks: list[Chunk], hidden: torch.Tensor, failures: dict[int, str]) -> None:
        parts = [Part(chunk.slot, chunk.start, len(chunk.tokens)) for chunk in chunks]
        for pack in packs(parts, self._together):
            own = [chunks[number] for number in pack]
            if len(own) == 1 or not self._read_together(own, [parts[number] for number in pack], hidden):
                super()._read(own, hidden, failures)

    def _read_together(self, chunks: list[Chunk], parts: list[Part], hidden: torch.Tensor) -> bool:
        """False where memory is short for all of them at once: it may do for one after the other."""
        tokens = upload([token for chunk in chunks for token in chunk.tokens], torch.int64, hidden.device)
        slots = upload([part.slot for part in parts], torch.int64, hidden.device)
        try:
            # Rows of chunks that are not final go along: nobody reads them.
            hidden.index_copy_(0, slots, self._fused.prefill_together(tokens, parts))
        except torch.OutOfMemoryError:
            return False
        return True

    def _sample(
        self, samples: list[tuple[int, int]], plan: StepPlan, hidden: torch.Tensor, empty: StepOutput
    ) -> StepOutput:
        rows = smallest_size(self._sizes, 1 + max(slot for slot, _ in samples))
        logits = self._results.logits[:rows]
        if self._latest != rows or plan.chunks:
            # Prompts end in this step, or it only samples what was left for later: rows of several forwards.
            self._fused.head_into(hidden[:rows], logits)
        if plan.masks:
            drawn = self._draw(masked(logits, plan.masks), plan.needs)
        else:
            drawn = self._draw_of(rows, plan.needs, logits)()
        # A graph's results are overwritten by the next step, while this one's may still be on their way to the host.
        tokens, ids, values = (None if t is None else t.clone() for t in (drawn.tokens, drawn.ids, drawn.values))
        assert tokens is not None
        return replace(empty, slots=[slot for slot, _ in samples], tokens=tokens, ids=ids, values=values)

    def _forward(self, rows: int) -> Forward:
        lengths = self._inputs.lengths[:rows]
        tokens = torch.where(lengths > 0, self._last_tokens[:rows], 0)
        results = Forward(self._results.hidden[:rows], self._results.logits[:rows])
        results.hidden.copy_(self._fused.decode_on_device(tokens, lengths))
        self._fused.head_into(results.hidden, results.logits)
        return results

    def _draw(self, logits: torch.Tensor, needs: Needs) -> Drawn:
        rows = len(logits)
        taken, positions = self._inputs.taken[:rows] > 0, self._inputs.positions[:rows].long()
        tokens, ids, values = self._choose(logits, taken, positions, needs)
        return Drawn(tokens, ids, values)

    def _draw_of(self, rows: int, needs: Needs, logits: torch.Tensor) -> Callable[[], Drawn]:
        """The sampler for this mix: computed anew the first time, recorded the second time, then replayed."""
        key, draw = (rows, needs), partial(self._draw, logits, needs)
        if key not in self._draws:
            self._draws[key] = None
            if len(self._draws) > REMEMBERED_DRAWS:
                self._draws.popitem(last=False)
            return draw
        self._draws.move_to_end(key)
        replay = self._draws[key]
        if replay is None:
            replay = self._draws[key] = self._graphs.record(draw)
        return replay
