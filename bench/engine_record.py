"""What a run of a benchmark tells: progress while it works, and one JSON object at its end, also where it ends early.

Shared by the benchmarks that set engines of several processes against each other (`engine.py`, `engine_http.py`,
`long_prompt.py`).
"""

import json
import os
import platform
import signal
import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from engine_arms import ArmError


class Ended(Exception):
    """A signal asked this process to end."""


@dataclass
class Record:
    """What is known so far; a run that is ended early still has a result."""

    name: str
    rows: Callable[[list[Any]], list[dict[str, Any]]]
    """From what was found to the rows of the result."""
    found: list[Any] = field(default_factory=list)
    versions: dict[str, str] = field(default_factory=lambda: {"python": platform.python_version()})
    threads: dict[str, int] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    """What else a reader must know of the machine or the settings."""
    loads: list[float] = field(default_factory=lambda: [os.getloadavg()[0]])
    ended_early: str = ""

    def json(self) -> str:
        """The form that `tools/record.py` keeps."""
        machine = [cpu_name()]
        machine += [f"{name} on {count} thread{'s' * (count > 1)}" for name, count in self.threads.items()]
        machine += self.notes
        machine.append(f"load average {min(self.loads):.1f} to {max(self.loads):.1f}, other work included")
        machine += [f"ended early: {self.ended_early}"] if self.ended_early else []
        told = {"name": self.name, "machine": "; ".join(machine), "versions": self.versions}
        return json.dumps({**told, "aims": self.rows(self.found)})


def cpu_name() -> str:
    """Model and vector extensions, which decide the figures."""
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    fields = {name.strip(): value.strip() for name, _, value in (line.partition(":") for line in lines)}
    flags = set(fields.get("flags", "").split()) & {"avx2", "avx512f", "avx512_bf16", "amx_bf16"}
    return f"{fields.get('model name', platform.machine())}, {os.cpu_count()} CPUs, {' '.join(sorted(flags))}"


def tell(text: str) -> None:
    """Progress, at once on standard error: what is printed is kept back until the end by `tools/record.py`."""
    sys.stderr.write(text + "\n")
    sys.stderr.flush()


def kept(record: Record, work: Callable[[Path], None]) -> None:
    """Runs `work` with a scratch folder, then prints the record; exits with 1 where nothing was found."""
    signal.signal(signal.SIGTERM, _end)
    with tempfile.TemporaryDirectory() as name:
        try:
            work(Path(name))
        except (ArmError, Ended) as error:
            tell(f"bench-{record.name} ends early: {error}")
            record.ended_early = str(error).splitlines()[0]
    record.loads.append(os.getloadavg()[0])
    if not record.found:
        raise SystemExit(1)
    print(record.json())


def _end(number: int, _: object) -> None:
    raise Ended(signal.Signals(number).name)
