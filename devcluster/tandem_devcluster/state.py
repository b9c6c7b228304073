"""What stands on disk about a cluster. Each file has one writer, so that no lock is needed to read it.

`spec.json` is written once by `cluster.up`; `state.json` by the keeper (who runs); `phase.json` by the supervisor
(how far it is). Processes are named by pid and start time, so that a pid used again is never taken for ours.
"""

import dataclasses
import json
import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class ProcessId:
    """A process of this machine: its pid and its start time in clock ticks since boot."""

    pid: int
    started: int


@dataclass(frozen=True)
class Spec:
    """What was asked for. `ports` is empty with a node, whose network namespace is its own."""

    name: str
    node: bool
    kubernetes: str
    coredns: str = ""
    images: list[str] = field(default_factory=list)
    ports: dict[str, int] = field(default_factory=dict)
    qps: int = 100
    gpus: int = 2
    kwok: str = ""
    fake_nodes: int = 0
    api_flags: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class State:
    """Who runs: the keeper outside the namespaces and the supervisor inside; `created` is a Unix time."""

    keeper: ProcessId
    created: float
    supervisor: ProcessId | None = None


@dataclass(frozen=True)
class Phase:
    """How far the supervisor is: `starting` (with the step), `ready`, or `failed` (with the reason)."""

    phase: str
    step: str = ""
    components: dict[str, int] = field(default_factory=dict)


def identify(pid: int) -> ProcessId | None:
    """The identity of a running process, None when there is none (a zombie counts as ended)."""
    try:
        text = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return None
    fields = text[text.rindex(")") + 2 :].split()  # the command's name may hold spaces and brackets
    return None if fields[0] in "ZX" else ProcessId(pid, int(fields[19]))


def alive(process: ProcessId | None) -> bool:
    """True while exactly this process runs."""
    return process is not None and identify(process.pid) == process


def write_json(path: Path, value: Any) -> None:
    """Replaces the file in one step: a reader sees the old text or the new, never half of it."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    temporary.write_text(json.dumps(dataclasses.asdict(value), indent=1) + "\n")
    temporary.replace(path)


def _read(path: Path) -> dict[str, Any] | None:
    try:
        value = json.loads(path.read_text())
    except (OSError, ValueError):
        return None
    return value if isinstance(value, dict) else None


def read_spec(folder: Path) -> Spec | None:
    """The cluster's spec, None when the folder has none that can be read."""
    value = _read(folder / "spec.json")
    return Spec(**value) if value else None


def read_state(folder: Path) -> State | None:
    """The cluster's processes, None when the folder has no such file."""
    value = _read(folder / "state.json")
    if not value:
        return None
    supervisor = ProcessId(**value["supervisor"]) if value["supervisor"] else None
    return State(ProcessId(**value["keeper"]), value["created"], supervisor)


def read_phase(folder: Path) -> Phase | None:
    """The supervisor's progress, None before its first step."""
    value = _read(folder / "phase.json")
    return Phase(**value) if value else None
