"""What the machine gives a runner: CPU threads and memory, as the container's limits have it, not as the host has.

Read at load. The arithmetic (`fit_context`) is pure; the probes around it read `/proc`, `/sys/fs/cgroup` and CUDA.
"""

import math
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch

from tandem_server.engine.interface import DoesNotFit, LoadError
from tandem_server.engine.native.blocks import BLOCK, cache_positions, capacity_for
from tandem_server.engine.native.config import SCORES_AT_ONCE, DecoderConfig

CGROUP = Path("/sys/fs/cgroup")
SAMPLER_BYTES_PER_LOGIT = 64
"""Logits, their penalised and sorted copies with ids, shares, noise and its making, counts of tokens; measured."""
RESERVE_SHARE = 0.05
RESERVE_BYTES = 256 << 20
"""Left free beside weights, contexts and what a step needs: the larger of the two."""


def cpu_threads(asked: int | None, cgroup: Path = CGROUP) -> int:
    """Threads to compute with: `asked`, else the CPUs that affinity and the cgroup's quota leave."""
    if asked:
        return asked
    return max(1, math.ceil(min(len(os.sched_getaffinity(0)), _cpu_quota(cgroup))))


def _cpu_quota(cgroup: Path) -> float:
    try:
        quota, period = (cgroup / "cpu.max").read_text().split()
    except (OSError, ValueError):
        try:
            quota = (cgroup / "cpu/cpu.cfs_quota_us").read_text().strip()
            period = (cgroup / "cpu/cpu.cfs_period_us").read_text().strip()
        except OSError:
            return math.inf
    return math.inf if quota in ("max", "-1") else int(quota) / int(period)


def available_bytes(device: torch.device, cgroup: Path = CGROUP) -> int:
    """Memory that may still be taken on `device`."""
    if device.type == "cuda":
        return int(torch.cuda.mem_get_info(device)[0])
    return min(_machine_available(), _container_available(cgroup))


def _machine_available() -> int:
    for line in Path("/proc/meminfo").read_text().splitlines():
        if line.startswith("MemAvailable:"):
            return int(line.split()[1]) * 1024
    return 1 << 62


def _container_available(cgroup: Path) -> int:
    try:
        limit = (cgroup / "memory.max").read_text().strip()
        used = int((cgroup / "memory.current").read_text())
        reclaimable = _stat(cgroup / "memory.stat", "inactive_file")
    except OSError:
        try:
            limit = (cgroup / "memory/memory.limit_in_bytes").read_text().strip()
            used = int((cgroup / "memory/memory.usage_in_bytes").read_text())
            reclaimable = _stat(cgroup / "memory/memory.stat", "total_inactive_file")
        except OSError:
            return 1 << 62
    return 1 << 62 if limit == "max" else max(0, int(limit) - used + reclaimable)


def _stat(file: Path, key: str) -> int:
    for line in file.read_text().splitlines():
        name, _, value = line.partition(" ")
        if name == key:
            return int(value)
    return 0


def resident_bytes() -> int:
    """Memory of this process that is really in RAM."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


@dataclass(frozen=True)
class ContextWish:
    """What was asked of the context, in tokens a slot."""

    asked: int | None
    minimum: int
    may_shrink: bool


def step_bytes(config: DecoderConfig, slots: int, chunk: int, element_bytes: int, context: int) -> int:
    """Bound of what one step takes at its worst: a whole prompt chunk at the context's end, and all slots decoding.

    Both are in one step, so both count, and so does a sampler that sorts the vocabulary for every slot.
    """
    # A row's input, its normed copy, residual and output; projections, turned and joined; gate, up and their product.
    widths = 6 * config.hidden + 5 * config.qkv_width + 5 * config.intermediate
    # A mask is made of bools and then of numbers; attention may want a copy of the latter. One for each window.
    masks = len({layer.window for layer in config.layer_configs}) * context * (2 * element_bytes + 1)
    # Scores in float32, with a sink, as shares, and as shares in the number format.
    scores = 0 if config.plain_attention else 4 * 4 * config.heads * min(chunk, SCORES_AT_ONCE) * context
    return (
        scores
        + (chunk + slots) * (widths * element_bytes + masks)
        + slots * config.vocabulary * SAMPLER_BYTES_PER_LOGIT
    )


def fit_context(
    wish: ContextWish,
    limit: int,
    slots: int,
    bytes_per_token: int,
    available: int,
    step: Callable[[int], int] = lambda context: 0,
) -> tuple[int, str]:
    """The context that each slot gets, and why it is smaller than asked (or "").

    Args:
        wish: asked, minimum, and whether less than asked will do.
        limit: what the model was made for.
        slots: sequences that run at once, each with its whole context.
        bytes_per_token: keys and values of one token.
        available: memory left once the weights are loaded.
        step: what a step needs when the slots have so long a context.

    Raises:
        LoadError: more was asked for than the model was made for, and less will not do.
        DoesNotFit: not even the least context that will do fits; the text has the numbers.
    """
    reason = ""
    context = wish.asked or limit
    if context > limit:
        reason = f"{context} tokens were asked for, the model was made for {limit}"
        if not wish.may_shrink:
            raise LoadError(f"{reason}; lower context.length, or allow it to shrink (whenShort: Shrink)")
        context = limit
    budget = _budget(available)

    def needed(tokens: int) -> int:
        return cache_positions(slots, tokens) * bytes_per_token + step(tokens)

    if needed(context) <= budget:
        return context, reason
    fitting = min(context, max(0, budget) // (slots * bytes_per_token)) // 64 * 64
    while fitting > 0 and needed(fitting) > budget:
        fitting -= 64
    numbers = (
        f"{slots} slot{'s' if slots > 1 else ''} of {context} tokens need{'' if slots > 1 else 's'} "
        f"{_mib(needed(context))} "
        f"and {_mib(max(0, budget))} is free beside the weights"
    )
    least = min(wish.minimum, context)
    if not wish.may_shrink or fitting < least:
        least_text = f"; at least {least} tokens are asked for" if wish.may_shrink else ""
        raise DoesNotFit(
            f"the context does not fit: {numbers}{least_text}; give it more memory, fewer slots or less context"
        )
    return fitting, numbers


def fit_pool(context: int, slots: int, bytes_per_token: int, available: int, step_bytes: int) -> int:
    """Blocks of a pool for slots that share it: as many as there is memory for, at most what all contexts need.

    A whole context fits: `fit_context` has made sure of it for one slot.
    """
    fitting = (_budget(available) - step_bytes) // (bytes_per_token * BLOCK) - 1
    whole = capacity_for(context) // BLOCK
    return max(whole, min(fitting, slots * whole))


def _budget(available: int) -> int:
    return available - max(RESERVE_BYTES, int(available * RESERVE_SHARE))


def check_weights_fit(needed: int, available: int) -> None:
    """Raises DoesNotFit with both numbers when the weights alone are too large."""
    if needed > available:
        raise DoesNotFit(
            f"the weights need {_mib(needed)}, {_mib(available)} is free; give the pod more memory or use a smaller "
            "model"
        )


def _mib(size: int) -> str:
    return f"{size / (1 << 20):,.0f} MiB"
