"""Carries out a plan on the device: prompt chunks, decode rows, sampling, all from state kept there by slot.

Called by an executor, in plan order, by one thread. Nothing here waits for a token: the input of a decode row is
read from `last_tokens`, which the step before it wrote. What cannot be computed ends the requests that it was for,
and no others: memory that one long prompt does not find is no reason to drop its neighbours.
"""

import logging
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import torch

from tandem_server.engine.native.executors import Output
from tandem_server.engine.native.history import History
from tandem_server.engine.native.linear import smallest_size
from tandem_server.engine.native.model import Model
from tandem_server.engine.native.needs import Needs
from tandem_server.engine.native.plan import BAD_ROW, NOTHING, Chunk, StepPlan, StepResult
from tandem_server.engine.native.sampler import Sampler

FAILURES_IN_A_ROW = 8
"""So many failures of one kind, with no success between them, and it is the engine that is broken."""

log = logging.getLogger("tandem.runner")


@dataclass(frozen=True)
class StepOutput:
    """A step's outcome as tensors of the first `rows` slots, wherever they lie."""

    slots: list[int]
    """Those that were sampled."""
    tokens: torch.Tensor
    ids: torch.Tensor | None
    values: torch.Tensor | None
    failures: dict[int, str]
    """As in `StepResult`."""
    sampling: Any
    """See `Output`."""

    def to_host(self) -> StepResult:
        """Reads it; blocks until the device has made it, unless the tensors are on the host already."""
        tokens = self.tokens.tolist()
        result = StepResult({slot: tokens[slot] for slot in self.slots}, failures=self.failures)
        if self.ids is not None and self.values is not None:
            ids, values = self.ids.tolist(), self.values.tolist()
            for slot in self.slots:
                result.logprobs[slot] = list(zip(ids[slot], values[slot], strict=True))
        return result


class DeviceStep:
    """The device side of the engine: decoder, sampler and the buffers by slot."""

    def __init__(self, decoder: Model, sizes: tuple[int, ...], checked: bool = False) -> None:
        self._decoder = decoder
        self._sizes = sizes
        """Numbers of rows that may be computed, ascending, ending with the number of slots."""
        self._checked = checked
        """Assert that no poisoned token is ever read: costs a wait for the device in every step."""
        slots, device = decoder.slots, decoder.device
        self._sampler = Sampler(slots, decoder.config.vocabulary, device)
        self._last_tokens = torch.full((slots,), NOTHING, dtype=torch.int64, device=device)
        self._hidden = torch.zeros(slots, decoder.width, dtype=decoder.dtype, device=device)
        self._history = None if decoder.switch is None else History(decoder, decoder.switch)
        self._broken: set[int] = set()
        """Slots whose request has failed: left out of the steps until they are given out again."""
        self._in_a_row: dict[str, int] = {}

    @torch.inference_mode()
    def compute(self, plan: StepPlan) -> Output:
        """Launches (on a CPU: does) everything of `plan`."""
        failures: dict[int, str] = {}
        # Not contained: others would find the wrong content. It needs no memory either.
        self._decoder.cache.move(plan.moves)
        for seat in plan.reseated:
            if seat.more:
                self._decoder.cache.extend(seat.slot, seat.blocks)
            else:
                self._decoder.cache.admit(seat.slot, seat.blocks, seat.reused)
        for admission in plan.admitted:
            self._broken.discard(admission.slot)
            with self._contained("admission", (admission.slot,), failures):
                # Not by an assignment: to one number that is a copy from the host, which waits for the device.
                self._last_tokens[admission.slot : admission.slot + 1].fill_(NOTHING)
                self._decoder.cache.admit(admission.slot, admission.blocks, admission.reused)
                self._decoder.begin(admission.slot, len(admission.prompt))
                if self._history is not None:
                    self._history.admit(admission.slot, self._to_device(admission.prompt))
                self._sampler.admit(admission)
        if self._history is not None:
            for row in plan.decode:
                if row.slot not in self._broken:
                    with self._contained("second reading", (row.slot,), failures):
                        self._history.reread(row.slot, row.position)
        length_of = {row.slot: row.position + 1 for row in plan.decode if row.slot not in self._broken}
        self._prepare(length_of, [sample for sample in plan.samples if sample[0] not in self._broken])
        hidden = self._hidden
        if length_of:
            with self._contained("decode step", length_of, failures):
                decoded = self._decode(length_of)
                if plan.chunks or plan.late:
                    hidden[: len(decoded)] = decoded
                else:
                    hidden = decoded
        self._read([chunk for chunk in plan.chunks if chunk.slot not in self._broken], hidden, failures)
        samples = [(slot, position) for slot, position in plan.samples if slot not in self._broken]
        sampling = self._now()
        output = StepOutput([], self._last_tokens[:0], None, None, failures, sampling)
        if samples:
            with self._contained("sampling", [slot for slot, _ in samples], failures):
                output = self._sample(samples, plan, hidden, output)
        return output

    def _read(self, chunks: list[Chunk], hidden: torch.Tensor, failures: dict[int, str]) -> None:
        """Prompts, one chunk after the other; what is to be sampled from a final one goes to its slot's `hidden`."""
        for chunk in chunks:
            with self._contained("prompt chunk", (chunk.slot,), failures):
                last = self._decoder.prefill(chunk.slot, self._to_device(chunk.tokens), chunk.start)
                if chunk.final:
                    hidden[chunk.slot : chunk.slot + 1] = last

    def record(self, needs: Needs) -> None:
        """Called once, after the first steps, the last of which had `needs`: prepares for those that follow."""

    def _prepare(self, length_of: dict[int, int], samples: list[tuple[int, int]]) -> None:
        """Called once a step, before it computes: keys to attend to by slot, and (slot, place) of each new token."""

    def _now(self) -> Any:
        """The moment that the device has come to, for the timeline."""
        if self._decoder.device.type == "cpu":
            return time.perf_counter()
        event = torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]
        event.record()
        return event

    @contextmanager
    def _contained(self, what: str, slots: Iterable[int], failures: dict[int, str]) -> Iterator[None]:
        """Whatever fails within ends the requests of `slots` alone, unless the device cannot be trusted after it.

        On a GPU only memory that is short leaves the device as it was; any other error comes late, or stays for ever.
        """
        try:
            yield
        except RuntimeError as error:
            self._in_a_row[what] = self._in_a_row.get(what, 0) + 1
            alone = self._decoder.device.type == "cpu" or isinstance(error, torch.OutOfMemoryError)
            if not alone or self._in_a_row[what] >= FAILURES_IN_A_ROW:
                raise
            log.exception("a %s failed; the requests of slots %s end, the others go on", what, list(slots))
            first_line = next(iter(str(error).splitlines()), "it says no more")
            for slot in slots:
                failures[slot] = f"the {what} failed: {type(error).__name__}: {first_line}"
                self._broken.add(slot)
        else:
            self._in_a_row[what] = 0

    def _decode(self, length_of: dict[int, int]) -> torch.Tensor:
        rows = smallest_size(self._sizes, 1 + max(length_of))
        lengths = [length_of.get(slot, 0) for slot in range(rows)]
        positions, places = self._decoder.cache.locate(lengths)
        on_device = self._to_device([[int(length > 0) for length in lengths], positions, places])
        taking_part = on_device[0].bool()
        if self._checked:
            assert bool((self._last_tokens[:rows][taking_part] >= 0).all()), "a decode row read a poisoned token"
        tokens = torch.where(taking_part, self._last_tokens[:rows], 0)
        return self._decoder.decode(tokens, on_device[1], on_device[2], lengths)

    def _sample(
        self, samples: list[tuple[int, int]], plan: StepPlan, hidden: torch.Tensor, empty: StepOutput
    ) -> StepOutput:
        rows = smallest_size(self._sizes, 1 + max(slot for slot, _ in samples))
        taken, positions = [0] * rows, [0] * rows
        for slot, position in samples:
            taken[slot], positions[slot] = 1, position
        on_device = self._to_device([taken, positions])
        logits = self._decoder.head(hidden[:rows])
        if plan.masks:
            logits = masked(logits, plan.masks)
        tokens, ids, values = self._choose(logits, on_device[0].bool(), on_device[1], plan.needs)
        return replace(empty, slots=[slot for slot, _ in samples], tokens=tokens, ids=ids, values=values)

    def _choose(
        self, logits: torch.Tensor, taken: torch.Tensor, positions: torch.Tensor, needs: Needs
    ) -> tuple[torch.Tensor, torch.Tensor | None, torch.Tensor | None]:
        """Draws the rows' tokens and keeps those that are `taken`: what is told of each, and of its logprobs."""
        rows = len(logits)
        sampled = self._sampler.sample(logits, taken, positions, needs)
        self._last_tokens[:rows] = torch.where(taken, sampled.tokens, self._last_tokens[:rows])
        if self._history is not None:
            self._history.record(taken, positions, sampled.tokens)
        return torch.where(sampled.finite, sampled.tokens, BAD_ROW), sampled.ids, sampled.values

    def _to_device(self, numbers: list[int] | list[list[int]]) -> torch.Tensor:
        tensor = torch.tensor(numbers, dtype=torch.int64)
        if self._decoder.device.type == "cpu":
            return tensor
        return tensor.pin_memory().to(self._decoder.device, non_blocking=True)


def masked(logits: torch.Tensor, masks: dict[int, bytes]) -> torch.Tensor:
    """`logits` float32 `[rows, vocabulary]` with minus infinity where a slot's mask has no bit; see `Grammar.mask`."""
    rows, vocabulary = logits.shape
    words = torch.full((rows, -(-vocabulary // 32)), -1, dtype=torch.int32)
    for slot, mask in masks.items():
        words[slot] = torch.frombuffer(bytearray(mask), dtype=torch.int32)
    if logits.device.type != "cpu":
        words = words.pin_memory().to(logits.device, non_blocking=True)
    places = torch.arange(32, dtype=torch.int32, device=logits.device)
    possible = ((words[..., None] >> places) & 1).view(rows, -1)[:, :vocabulary].bool()
    return logits.masked_fill(~possible, float("-inf"))
