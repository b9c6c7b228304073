"""A model's record of failures in this pod: how long to wait before the next try, and when it counts as failed.

Beside the path of a load; `host` writes into it and asks. Rules without a clock. A model whose loads fail, or whose
runners die before they served anything, is condemned after the third time: the report says Failed, whatever is being
tried meanwhile, until it is loaded again, or, where runners died, until one has served a request. So a crash loop
does not flap.
"""

from dataclasses import dataclass

FAILED_AFTER = 3
"""Failures in a row after which those who wait are told instead of held; trying goes on."""
HEALTHY_SECONDS = 30.0
"""A runner that served and lived this long starts the count of failures anew."""
BACKOFF_MAX = 60.0
PROBATION_MAX = 600.0


def backoff(first: float, failures: int) -> float:
    """Seconds before the next try after so many failures in a row (at least one)."""
    return float(min(BACKOFF_MAX, first * 2 ** min(failures - 1, 16)))


@dataclass
class Record:
    """See the module.

    Attributes:
        failures: in a row, of loads and of runners.
        deaths: of runners in a row that had served nothing.
        condemned: whether the report says Failed.
    """

    failures: int = 0
    deaths: int = 0
    condemned: bool = False

    def load_failed(self, lasting: bool) -> None:
        """A load ended with an error; a `lasting` one will not go away by trying again soon."""
        self.failures += 1
        self.condemned = self.condemned or lasting or self.failures >= FAILED_AFTER

    def loaded(self) -> None:
        """A load worked."""
        self.condemned = self.deaths >= FAILED_AFTER

    def died(self, served: bool, lived_seconds: float) -> None:
        """A loaded runner died; `served`: it had finished a request."""
        if served and lived_seconds > HEALTHY_SECONDS:
            self.failures = 0
        self.failures += 1
        self.deaths = 1 if served else self.deaths + 1
        self.condemned = self.deaths >= FAILED_AFTER

    def absolve(self, served: bool) -> None:
        """The loaded runner is taken for well: it served, or lived for the time of its probation."""
        self.condemned = False
        if served:
            self.deaths = 0

    def forget(self) -> None:
        """The settings changed: what failed before says nothing any more."""
        self.failures = self.deaths = 0
        self.condemned = False

    @property
    def probation(self) -> float | None:
        """Seconds that a loaded runner must live before it is taken for well without having served; None: no need."""
        if not self.condemned:
            return None
        return float(min(PROBATION_MAX, HEALTHY_SECONDS * 2 ** min(self.deaths - FAILED_AFTER, 16)))
