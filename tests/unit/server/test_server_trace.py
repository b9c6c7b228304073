"""A trace of a runner's steps: the form that Perfetto reads, and the route that gives it."""

import asyncio
import os
import signal

import pytest
from server_site import FakeModel, until

from tandem_server.engine.wire import StepRecord
from tandem_server.tracing import chrome_trace

STEPS = [
    StepRecord(1, 0, 30, True, (5.0, 5.001, 5.002, 5.002, 5.010, 5.011), (5.002, 5.008, 5.010)),
    StepRecord(2, 3, 0, False, (5.003, 5.004, 5.004, 5.011, 5.015, 5.016), (5.012, 5.013, 5.015)),
]


def test_every_part_of_a_step_is_an_event_on_the_track_of_who_did_it():
    told = chrome_trace("coder", 42, STEPS)
    complete = [event for event in told["traceEvents"] if event["ph"] == "X"]
    assert {event["pid"] for event in told["traceEvents"]} == {42}
    assert [(event["name"], event["tid"], event["ts"], event["dur"]) for event in complete[:6]] == [
        ("plan", 1, 0.0, 1000.0),
        ("launch", 1, 1000.0, 1000.0),
        ("wait for the device", 1, 2000.0, 8000.0),
        ("tell", 1, 10000.0, 1000.0),
        ("step 1", 2, 2000.0, 8000.0),
        ("sampling", 2, 8000.0, 2000.0),
    ]
    assert complete[0]["args"] == {"step": 1, "decoded": 0, "prompt_tokens": 30}
    assert "launch" not in [event["name"] for event in complete[6:]], "what took no time is no event"
    assert told["otherData"] == {"model": "coder", "steps": 2, "device_idle_share": round(2 / 13, 4)}
    assert chrome_trace("coder", 42, [])["otherData"]["steps"] == 0


@pytest.mark.process
async def test_the_route(serve, model: FakeModel):
    site = await serve(model.entry(), load=False)

    async def asked(model: str):
        return await site.client.get("/internal/trace", params={"model": model})

    early = await asked("fake")
    assert early.status_code == 409
    assert "model 'fake' is not loaded" in early.text
    site.host().want()
    await site.loaded()
    told = (await asked("fake")).json()
    assert told["otherData"] == {"model": "fake", "steps": 1, "device_idle_share": 0.0}
    assert [event["name"] for event in told["traceEvents"] if event["ph"] == "X"][-2:] == ["step 7", "sampling"]
    assert (await asked("nobody")).status_code == 404
    assert (await site.client.get("/internal/trace")).status_code == 422


@pytest.mark.process
async def test_a_runner_that_ends_or_is_silent_is_told(serve, model: FakeModel, monkeypatch):
    site = await serve(model.entry())
    runner = site.host().runner
    os.kill(runner.pid, signal.SIGSTOP)
    monkeypatch.setattr("tandem_server.http.internal.TRACE_SECONDS", 0.05)
    silent = await site.client.get("/internal/trace", params={"model": "fake"})
    assert silent.status_code == 504
    assert "said nothing for 0.05 s" in silent.text
    monkeypatch.setattr("tandem_server.http.internal.TRACE_SECONDS", 20)
    asking = asyncio.create_task(site.client.get("/internal/trace", params={"model": "fake"}))
    await until(lambda: runner.client.traces_awaited, "the question")
    os.kill(runner.pid, signal.SIGKILL)
    gone = await asking
    assert gone.status_code == 503
    assert "was killed by signal 9" in gone.text
