"""A Model of the catalog in the terms of others: what a runner is started with, what the arithmetic of memory asks.

Beside the path of a load. Pure.
"""

import math
from pathlib import Path

from tandem_api.catalog import CatalogModel
from tandem_api.fields import CachePolicy, Scheduling, WhenShort
from tandem_api.fit import Wish
from tandem_api.scalars import FOREVER, duration_seconds
from tandem_server.config import Settings
from tandem_server.engine.wire import RunnerSpec
from tandem_server.residency.ledger import Grant


def needs_reload(old: CatalogModel, new: CatalogModel) -> bool:
    """Whether a running runner cannot take over the new settings."""
    kept = {"aliases", "queue", "defaults", "keep_alive", "keep_alive_max", "residency"}
    return old.model_dump(exclude=kept) != new.model_dump(exclude=kept)


def seconds_of(keep_alive: int | str | None) -> float:
    """A keep-alive of the API as seconds; absent and -1 are for ever."""
    if keep_alive is None or keep_alive == FOREVER:
        return math.inf
    return duration_seconds(keep_alive)


def wish_of(entry: CatalogModel, settings: Settings) -> Wish:
    """What a Model asks for, in the terms of the arithmetic."""
    length = entry.context.length
    return Wish(
        device=settings.device,
        dtype=entry.dtype.value,
        quantization=entry.quantization.value,
        slots=entry.slots if isinstance(entry.slots, int) else None,
        context=length if isinstance(length, int) else None,
        min_context=entry.context.min_length,
        may_shrink=entry.context.when_short is not WhenShort.FAIL,
        cache_dtype=entry.kv_cache.dtype.value,
        shared=entry.kv_cache.policy is CachePolicy.SHARED,
        task=entry.task.value,
    )


def runner_spec(entry: CatalogModel, folder: Path, settings: Settings, grant: Grant) -> RunnerSpec:
    """What a runner of `entry` is started with; its address is filled in by the start."""
    wish = wish_of(entry, settings)
    return RunnerSpec(
        model=entry.name,
        path=str(folder),
        address="",
        task=wish.task,
        device=wish.device.value,
        dtype=wish.dtype,
        quantization=wish.quantization,
        slots=wish.slots,
        context=wish.context,
        min_context=wish.min_context,
        may_shrink=wish.may_shrink,
        overlapped=entry.scheduling is Scheduling.OVERLAPPED,
        threads=settings.threads,
        cache_dtype=wish.cache_dtype,
        shared_cache=wish.shared,
        device_index=grant.device,
        memory_limit=grant.bytes or None,
    )
