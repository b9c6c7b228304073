"""Models that fail again and again: when the report says Failed, for how long, and what their requests get."""

import asyncio
import os
import signal

import pytest
from server_site import ANSWER, until

from tandem_api.catalog import Catalog
from tandem_api.report import ModelState
from tandem_server.residency.record import FAILED_AFTER, Record

CHAT = {"model": "fake", "messages": [{"role": "user", "content": "Hi"}]}
DEATH = {"model": "fake", "prompt": "<|death|>"}


class States:
    """Every state that a model was in, in order."""

    def __init__(self, host):
        self.seen = [host.state]
        inner = host._on_change

        def changed():
            inner()
            if host.state is not self.seen[-1]:
                self.seen.append(host.state)

        host._on_change = changed


async def die(site, times):
    for _ in range(times):
        await until(lambda: site.host().loaded, "a runner to kill")
        pid = site.host().runner.pid
        os.kill(pid, signal.SIGKILL)
        await until(lambda pid=pid: site.host().runner is None or site.host().runner.pid != pid, "its end")


@pytest.mark.process
async def test_a_crash_loop_is_failed_and_stays_so_until_it_serves(serve, model):
    site = await serve(model.entry(), backoff_seconds=0.02)
    await die(site, FAILED_AFTER)
    states = States(site.host())
    report = lambda: site.pod.report().models[0]  # noqa: E731
    assert report().state is ModelState.FAILED
    assert "was killed by signal 9" in report().last_error
    await die(site, 2)
    await until(lambda: site.host().loaded, "the next runner")
    assert (report().state, report().restarts) == (ModelState.FAILED, FAILED_AFTER + 2)
    assert "was killed by signal 9" in report().last_error
    assert states.seen == [ModelState.FAILED], "loading again is no reason to look well"
    answer = await site.client.post("/v1/chat/completions", json=CHAT)
    assert answer.json()["choices"][0]["message"]["content"] == ANSWER, "who comes is served all the same"
    await until(lambda: report().state is ModelState.LOADED, "the end of the doubt")
    assert report().last_error is None
    await die(site, 1)
    assert report().state is not ModelState.FAILED, "the count began anew"


@pytest.mark.process
async def test_requests_that_kill_fail_alone_and_those_behind_them_are_told_in_time(serve, model):
    site = await serve(model.entry(slots=1), backoff_seconds=0.02)
    killers = [asyncio.create_task(site.client.post("/v1/completions", json=DEATH)) for _ in range(FAILED_AFTER)]
    await until(lambda: len(site.host().admission.line.waiting) + site.host().restarts >= FAILED_AFTER - 1)
    behind = asyncio.create_task(site.client.post("/v1/chat/completions", json=CHAT))
    assert [answer.status_code for answer in await asyncio.gather(*killers)] == [500] * FAILED_AFTER
    told = await behind
    assert told.status_code == 503
    assert told.json()["error"]["code"] == "model_load_failed"
    assert "was killed by signal 9" in told.json()["error"]["message"]
    assert int(told.headers["retry-after"]) >= 1


@pytest.mark.process
async def test_new_settings_begin_a_new_record(serve, make_model):
    model = make_model(die_at_load="tensor x is missing")
    site = await serve(model.entry(), load=False, backoff_seconds=30.0)
    site.host().want()
    site.host()._record.failures = FAILED_AFTER
    await until(lambda: site.host().state is ModelState.FAILED)
    model.write()
    site.pod.manager.apply(Catalog(models=[model.entry(slots=2)]))
    await site.loaded()
    assert (site.host().state, site.host().last_error) == (ModelState.LOADED, None)


@pytest.mark.process
async def test_a_fault_of_the_servers_own_in_a_load_does_not_end_the_model(serve, model, monkeypatch):
    from tandem_server.residency import host

    real = host.read_checkpoint
    monkeypatch.setattr(host, "read_checkpoint", lambda *values: 1 / 0)
    site = await serve(model.entry(), load=False, backoff_seconds=0.05)
    site.host().want()
    await until(lambda: "ZeroDivisionError" in (site.host().last_error or ""), "the fault to be told")
    monkeypatch.setattr(host, "read_checkpoint", real)
    await site.loaded()


def test_the_record():
    record = Record()
    assert record.probation is None
    for _ in range(FAILED_AFTER):
        assert not record.condemned
        record.died(served=False, lived_seconds=1.0)
    assert (record.condemned, record.probation) == (True, 30.0)
    record.loaded()
    assert record.condemned, "a load cures no crash loop"
    record.absolve(served=False)
    assert not record.condemned
    record.died(served=False, lived_seconds=100.0)
    assert (record.condemned, record.probation) == (True, 60.0), "each time it is believed later"
    record.died(served=True, lived_seconds=100.0)
    assert (record.condemned, record.deaths, record.failures) == (False, 1, 1)
    for _ in range(FAILED_AFTER):
        record.load_failed(lasting=False)
    assert record.condemned
    record.loaded()
    assert not record.condemned, "a load cures failing loads"
    record.load_failed(lasting=True)
    assert record.condemned
    record.forget()
    assert record == Record()
    for _ in range(40):
        record.died(served=False, lived_seconds=0.0)
    assert record.probation == 600.0
