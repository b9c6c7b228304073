"""Carries out a plan on the device: prompt chunks, decode rows, sampling, all from state kept there by slot.

Called by an executor, in plan order, by one thread. Nothing here waits for a token: the input of a decode row is
read from `last_tokens`, which the step before it wrote.
"""

from dataclasses import dataclass

import torch

from tandem_server.engine.native.decoder import Decoder
from tandem_server.engine.native.linear import smallest_size
from tandem_server.engine.native.plan import BAD_ROW, NOTHING, StepPlan, StepResult
from tandem_server.engine.native.sampler import Sampler


@dataclass(frozen=True)
class StepOutput:
    """A step's outcome as tensors of the first `rows` slots, wherever they lie."""

    plan: StepPlan
    tokens: torch.Tensor
    ids: torch.Tensor | None
    values: torch.Tensor | None

    def to_host(self) -> StepResult:
        """Reads it; blocks until the device has made it, unless the tensors are on the host already."""
        tokens = self.tokens.tolist()
        result = StepResult({slot: tokens[slot] for slot, _ in self.plan.samples})
        if self.ids is not None and self.values is not None:
            ids, values = self.ids.tolist(), self.values.tolist()
            for slot, _ in self.plan.samples:
                result.logprobs[slot] = list(zip(ids[slot], values[slot], strict=True))
        return result


class DeviceStep:
    """The device side of the engine: decoder, sampler and the buffers by slot."""

    def __init__(self, decoder: Decoder, sizes: tuple[int, ...], checked: bool = False) -> None:
        self._decoder = decoder
        self._sizes = sizes
        """Numbers of rows that may be computed, ascending, ending with the number of slots."""
        self._checked = checked
        """Assert that no poisoned token is ever read: costs a wait for the device in every step."""
        slots, device = decoder.slots, decoder.device
        self._sampler = Sampler(slots, decoder.config.vocabulary, device)
        self._last_tokens = torch.full((slots,), NOTHING, dtype=torch.int64, device=device)
        self._hidden = torch.zeros(slots, decoder.config.hidden, dtype=decoder.dtype, device=device)

    @torch.inference_mode()
    def compute(self, plan: StepPlan) -> StepOutput:
        """Launches (on a CPU: does) everything of `plan`."""
        for admission in plan.admitted:
            self._last_tokens[admission.slot] = NOTHING
            self._sampler.admit(admission)
            self._decoder.cache.admit(admission.slot, admission.blocks)
        hidden = self._hidden
        if plan.decode:
            decoded = self._decode(plan)
            if plan.chunks:
                hidden[: len(decoded)] = decoded
            else:
                hidden = decoded
        for chunk in plan.chunks:
            last = self._decoder.prefill(chunk.slot, self._to_device(chunk.tokens), chunk.start)
            if chunk.final:
                hidden[chunk.slot : chunk.slot + 1] = last
        return self._sample(plan, hidden)

    def _decode(self, plan: StepPlan) -> torch.Tensor:
        rows = smallest_size(self._sizes, 1 + max(row.slot for row in plan.decode))
        lengths = [0] * rows
        for row in plan.decode:
            lengths[row.slot] = row.position + 1
        positions, places = self._decoder.cache.locate(lengths)
        on_device = self._to_device([[int(length > 0) for length in lengths], positions, places])
        taking_part = on_device[0].bool()
        if self._checked:
            assert bool((self._last_tokens[:rows][taking_part] >= 0).all()), "a decode row read a poisoned token"
        tokens = torch.where(taking_part, self._last_tokens[:rows], 0)
        return self._decoder.decode(tokens, on_device[1], on_device[2], lengths)

    def _sample(self, plan: StepPlan, hidden: torch.Tensor) -> StepOutput:
        if not plan.samples:
            return StepOutput(plan, self._last_tokens[:0], None, None)
        rows = smallest_size(self._sizes, 1 + max(slot for slot, _ in plan.samples))
        taken, positions = [0] * rows, [0] * rows
        for slot, position in plan.samples:
            taken[slot], positions[slot] = 1, position
        on_device = self._to_device([taken, positions])
        is_taken = on_device[0].bool()
        sampled = self._sampler.sample(self._decoder.head(hidden[:rows]), is_taken, on_device[1], plan.needs)
        self._last_tokens[:rows] = torch.where(is_taken, sampled.tokens, self._last_tokens[:rows])
        told = torch.where(sampled.finite, sampled.tokens, BAD_ROW)
        return StepOutput(plan, told, sampled.ids, sampled.values)

    def _to_device(self, numbers: list[int] | list[list[int]]) -> torch.Tensor:
        tensor = torch.tensor(numbers, dtype=torch.int64)
        if self._decoder.device.type == "cpu":
            return tensor
        return tensor.pin_memory().to(self._decoder.device, non_blocking=True)
