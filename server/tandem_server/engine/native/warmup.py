"""The first steps of a loaded model, on nobody's behalf, so that no request pays for set-up or finds memory short.

Last part of a load. On a CPU a short prompt and one decode row do. On a GPU they are the largest there can be: as many
prompt tokens as a step reads, and a whole chunk that ends the context while every other slot decodes, through the
sampler's most expensive parts. What that takes stays with the allocator, so it is counted into the model's size, and
memory that is short shows now.
"""

import torch

from tandem_server.engine.interface import DoesNotFit, LoadError
from tandem_server.engine.native.needs import needs_of
from tandem_server.engine.native.plan import Admission, Chunk, Decode, StepPlan
from tandem_server.engine.native.scheduler import Limits
from tandem_server.engine.native.step import DeviceStep
from tandem_server.engine.wire import Sampling

PROMPT = 32
MOST_EXPENSIVE = Sampling(top_p=0.9, repetition_penalty=1.1, presence_penalty=0.1, logprobs=20)


def warm_up(step: DeviceStep, limits: Limits, device: torch.device) -> None:
    """Computes the steps. Raises DoesNotFit where memory is short, LoadError where the device fails otherwise."""
    for plan in warm_up_plans(limits, worst=device.type == "cuda"):
        failures = step.compute(plan).to_host().failures
        if failures:
            error = LoadError if device.type == "cpu" else DoesNotFit
            raise error(f"the first step of the loaded model could not be computed: {next(iter(failures.values()))}")
    try:
        step.record(needs_of([MOST_EXPENSIVE]))
    except torch.OutOfMemoryError as error:
        raise DoesNotFit(f"the model's steps could not be recorded: {next(iter(str(error).splitlines()))}") from None


def warm_up_plans(limits: Limits, worst: bool) -> list[StepPlan]:
    """`worst`: the largest steps that `limits` allow; else small ones."""
    sampling = MOST_EXPENSIVE if worst else Sampling(temperature=0.0)
    others = range(1, limits.slots) if worst else range(0)
    length = min(limits.chunk if worst else PROMPT, limits.context - 1)
    end = limits.context - 1 if worst else length
    chunk = Chunk(0, end - length, [0] * length, True)

    def plan(chunks: tuple[Chunk, ...], decode: tuple[Decode, ...], admitted: tuple[Admission, ...] = ()) -> StepPlan:
        samples = [(part.slot, part.start + len(part.tokens)) for part in chunks]
        samples += [(row.slot, row.position + 1) for row in decode]
        return StepPlan(0, admitted, decode, chunks, tuple(samples), needs=needs_of([sampling]))

    count, apart, most = limits.blocks_for(limits.context), limits.slot_blocks, limits.slots
    if limits.pool_blocks is not None:
        # Where the pool has not room for all, several use the same blocks: nothing is read from them later.
        apart, most = count, limits.pool_blocks // count
    starts = {slot: min(slot, most - 1) * apart for slot in (0, *others)}
    admitted = tuple(
        Admission(slot, sampling, [0], blocks=tuple(range(start, start + count))) for slot, start in starts.items()
    )
    left = limits.budget - length - len(others)
    first = [chunk]
    for slot in others:
        more = max(0, min(length - 1, left))
        left -= more
        first.append(Chunk(slot, 0, [0] * (1 + more), True))
    plans = [plan(tuple(first), (), admitted)]
    if others:
        plans.append(plan((chunk,), tuple(Decode(slot, 1) for slot in others)))
    if worst:
        # Few rows take other kernels than many.
        plans.append(plan((Chunk(0, 0, [0] * min(2 * PROMPT, length), True),), ()))
    plans.append(plan((), (Decode(0, end), *(Decode(slot, 2) for slot in others))))
    return plans
