"""A runner's last steps as a trace that Perfetto and Chrome's tracing page draw.

Behind `/internal/trace`, from the records that the runner keeps (`engine/native/timeline.py`). Pure. The format is the
Trace Event Format's JSON: complete events ("X") with microseconds, one track for the host and one for the device.
"""

from collections.abc import Sequence
from typing import Any

from tandem_server.engine.native.timeline import device_idle_share
from tandem_server.engine.wire import StepRecord

HOST, DEVICE = 1, 2
"""Tracks."""


def chrome_trace(model: str, pid: int, steps: Sequence[StepRecord]) -> dict[str, Any]:
    """The JSON object; times begin with the first step."""
    zero = min((step.host[0] for step in steps), default=0.0)
    events: list[dict[str, Any]] = [
        _named(pid, "process_name", f"model {model}", 0),
        _named(pid, "thread_name", "host: plan, launch, wait, tell", HOST),
        _named(pid, "thread_name", "device: forward, sampling", DEVICE),
    ]

    def add(name: str, track: int, began: float, ended: float, **more: Any) -> None:
        if ended > began:
            ts, duration = _microseconds(began - zero), _microseconds(ended - began)
            events.append({"name": name, "ph": "X", "pid": pid, "tid": track, "ts": ts, "dur": duration, "args": more})

    for step in steps:
        about = {"step": step.step, "decoded": step.decoded, "prompt_tokens": step.prompt_tokens}
        began, planned, launched, asked, known, told = step.host
        add("plan", HOST, began, planned, **about)
        add("launch", HOST, planned, launched, **about)
        add("wait for the device", HOST, asked, known, **about)
        add("tell", HOST, known, told, **about)
        device_began, sampling, device_ended = step.device
        add(f"step {step.step}", DEVICE, device_began, device_ended, **about)
        add("sampling", DEVICE, sampling, device_ended)
        rows = {"sequences that decode": step.decoded, "prompt tokens": step.prompt_tokens}
        events.append(
            {"name": "in a step", "ph": "C", "pid": pid, "ts": _microseconds(device_began - zero), "args": rows}
        )
    told_too = {"model": model, "steps": len(steps), "device_idle_share": round(device_idle_share(steps), 4)}
    return {"traceEvents": events, "displayTimeUnit": "ms", "otherData": told_too}


def _named(pid: int, what: str, name: str, track: int) -> dict[str, Any]:
    return {"name": what, "ph": "M", "pid": pid, "tid": track, "args": {"name": name}}


def _microseconds(seconds: float) -> float:
    return round(seconds * 1e6, 3)
