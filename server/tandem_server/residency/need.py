"""How much memory a model needs, before its runner starts: the catalog's entry and the checkpoint's config to bytes.

Between `source` and `room` on the path of a load. The arithmetic is `tandem_api.fit`'s, as the runner's own is.
"""

import logging
from pathlib import Path

from tandem_api.catalog import CatalogModel
from tandem_api.fields import CachePolicy, WhenShort
from tandem_api.fit import Wish
from tandem_server.config import Settings
from tandem_server.engine.estimate import estimate
from tandem_server.engine.interface import LoadError
from tandem_server.residency.ledger import Need

_log = logging.getLogger(__name__)
UNKNOWN = Need(0, 0)


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


def need_of(folder: Path, entry: CatalogModel, settings: Settings) -> Need:
    """Bytes that a runner needs; `UNKNOWN` where the runner itself must say why the checkpoint cannot be loaded."""
    try:
        found = estimate(folder, wish_of(entry, settings))
    except LoadError as error:
        _log.debug("The size of model %s is not known before its load: %s", entry.name, error)
        return UNKNOWN
    return Need(found.minimum_bytes, max(found.minimum_bytes, found.wanted_bytes))
