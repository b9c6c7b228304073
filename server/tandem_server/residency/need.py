"""How much memory a model needs, before its runner starts: the catalog's entry and the checkpoint's config to bytes.

Between `source` and `room` on the path of a load. The arithmetic is `tandem_api.fit`'s, as the runner's own is. What a
process takes by itself (libraries, a driver's context) is assumed for the first runner of its kind, and known from
what that one measured for those that follow.
"""

import logging
from dataclasses import dataclass
from pathlib import Path

from tandem_api.catalog import CatalogModel
from tandem_api.fit import Estimate
from tandem_server.config import Settings
from tandem_server.engine.estimate import estimate
from tandem_server.engine.interface import LoadError
from tandem_server.engine.wire import Loaded
from tandem_server.residency.entry import wish_of
from tandem_server.residency.ledger import Need

_log = logging.getLogger(__name__)
SPREAD = 1.05
SPREAD_BYTES = 16 << 20
"""Two processes of one kind do not take the same to the byte."""


@dataclass(frozen=True)
class Sized:
    """A model's need, and the estimate that it comes from; None where only the runner can say what is wrong with it."""

    need: Need
    estimate: Estimate | None = None
    kind: int = 0
    """Tells kinds of processes apart: what is assumed for its kind."""


UNKNOWN = Sized(Need(0, 0))


class Sizes:
    """Sizes models of one pod; learns from those that were loaded."""

    def __init__(self) -> None:
        self._fixed: dict[int, int] = {}

    def of(self, folder: Path, entry: CatalogModel, settings: Settings) -> Sized:
        """What a runner needs."""
        wish = wish_of(entry, settings)
        try:
            found = estimate(folder, wish)
            kind = found.footprint.fixed
            if kind in self._fixed:
                found = estimate(folder, wish, fixed=self._fixed[kind])
        except LoadError as error:
            _log.debug("The size of model %s is not known before its load: %s", entry.name, error)
            return UNKNOWN
        least = found.minimum_bytes
        return Sized(Need(least, max(least, found.wanted_bytes)), found, kind)

    def learn(self, sized: Sized, loaded: Loaded) -> None:
        """A runner was loaded: what it took beyond weights, contexts and steps is what its kind takes by itself."""
        if sized.estimate is None or not loaded.total_bytes:
            return
        steps = sized.estimate.parts_at(loaded.context).steps
        fixed = loaded.total_bytes - loaded.weight_bytes - loaded.cache_bytes - steps
        known = self._fixed.get(sized.kind, 0)
        self._fixed[sized.kind] = max(known, int(max(0, fixed) * SPREAD) + SPREAD_BYTES)
