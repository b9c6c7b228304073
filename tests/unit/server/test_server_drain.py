"""The way out: SIGTERM, handed-back requests, the linger, open streams, the deadline, the second signal."""

import asyncio
import logging
import os
import signal

import httpx
import pytest
from server_site import fake_settings, lines, until

from tandem_api.catalog import Catalog
from tandem_server.drain import LOOK_SECONDS
from tandem_server.http.guard import Guard
from tandem_server.serve import run_pod

pytestmark = pytest.mark.process

CHAT = {"model": "fake", "messages": [{"role": "user", "content": "Hi"}]}


class Running:
    """A pod in this process, as the command line runs it."""

    def __init__(self, settings, entries):
        self.pod = None
        self.url = ""
        catalog = Catalog(models=entries, preload={"*": [entry.name for entry in entries]})
        self.task = asyncio.create_task(run_pod(settings, fixed=catalog, companion=self._seen))

    async def _seen(self, pod, port):
        self.pod, self.url = pod, f"http://127.0.0.1:{port}"

    async def ready(self):
        await until(lambda: self.task.done() or (self.pod and self.pod.manager.ready), "readiness")
        return self

    @property
    def line(self):
        return self.pod.manager.hosts["fake"].admission.line


@pytest.fixture
async def running(tmp_path):
    """Starts a pod; it must have ended by itself when the test ends."""
    started = []

    async def start(*entries, **settings):
        started.append(Running(fake_settings(tmp_path, **settings), list(entries)))
        return await started[-1].ready()

    yield start
    for each in started:
        await asyncio.wait_for(each.task, 10)


def term():
    os.kill(os.getpid(), signal.SIGTERM)


async def test_a_drain_loses_nothing(running, model, caplog):
    caplog.set_level(logging.INFO, "tandem_server")
    pod = await running(model.entry(slots=2), linger_seconds=0.3)
    model.hold()
    async with httpx.AsyncClient(base_url=pod.url, timeout=20) as client:
        streams = [asyncio.create_task(client.post("/api/chat", json=CHAT))]
        await until(lambda: len(pod.line.running) == 1)
        streams.append(asyncio.create_task(client.post("/v1/chat/completions", json=CHAT)))
        await until(lambda: len(pod.line.running) == 2)
        queued = [asyncio.create_task(client.post("/v1/chat/completions", json=CHAT)) for _ in range(3)]
        await until(lambda: len(pod.line.waiting) == 3)
        term()
        for response in await asyncio.gather(*queued):
            assert (response.status_code, response.headers["x-tandem-refused"]) == (503, "draining")
            assert response.headers["connection"] == "close"
        ready = await client.get("/readyz")
        assert (ready.status_code, ready.text) == (503, "draining\n")
        assert (await client.get("/healthz")).status_code == 200
        assert (await client.get("/internal/report")).json()["draining"] is True
        late = await client.post("/v1/chat/completions", json=CHAT)
        assert late.headers["x-tandem-refused"] == "draining", "no slot is free"
        model.release()
        first, second = await asyncio.gather(*streams)
        assert lines(first.text)[-1]["done"] is True
        assert second.json()["choices"][0]["finish_reason"] == "stop"
    await asyncio.wait_for(pod.task, 10)
    text = caplog.text
    assert "Got SIGTERM: shutting down; not ready from now on." in text
    assert "Handed back 3 waiting requests; 2 run." in text
    assert "All requests are finished." in text
    assert "Shut down in order." in text


async def test_newcomers_are_served_in_the_linger_and_refused_after_it(running, model):
    pod = await running(model.entry(slots=2), linger_seconds=0.5)
    model.hold()
    async with httpx.AsyncClient(base_url=pod.url, timeout=20) as client:
        holder = asyncio.create_task(client.post("/v1/chat/completions", json=CHAT))
        await until(lambda: len(pod.line.running) == 1)
        term()
        await until(lambda: pod.pod.draining)
        newcomer = asyncio.create_task(client.post("/v1/chat/completions", json=CHAT))
        await until(lambda: len(pod.line.running) == 2, "the newcomer on the free slot")
        await until(lambda: pod.line.gate.value == "closed", "the end of the linger")
        refused = await client.post("/v1/chat/completions", json=CHAT)
        assert (refused.status_code, refused.headers["x-tandem-refused"]) == (503, "draining")
        model.release()
        assert [(await task).status_code for task in (holder, newcomer)] == [200, 200]


async def test_an_idle_pod_ends_after_the_linger(running, model):
    pod = await running(model.entry(), linger_seconds=0.05)
    term()
    await asyncio.wait_for(pod.task, 5)


@pytest.mark.parametrize("hasten", [True, False])
async def test_a_second_signal_or_the_deadline_cuts_off_with_an_error(running, model, hasten):
    pod = await running(model.entry(), linger_seconds=0.05, drain_seconds=60 if hasten else 0.1)
    async with httpx.AsyncClient(base_url=pod.url, timeout=20) as client:
        model.hold()
        stuck = asyncio.create_task(client.post("/v1/chat/completions", json=CHAT))
        await until(lambda: len(pod.line.running) == 1)
        term()
        await until(lambda: pod.pod.draining)
        if hasten:
            term()
        response = await stuck
        assert response.status_code == 500
        assert response.json()["error"]["code"] == "runner_died"


async def test_a_taken_port_is_told_in_one_sentence(running, model, tmp_path):
    from tandem_server.config import SettingsError

    pod = await running(model.entry())
    port = int(pod.url.rpartition(":")[2])
    with pytest.raises(SettingsError, match=f"the port 127.0.0.1:{port} for everything cannot be used"):
        await run_pod(fake_settings(tmp_path, http_port=port), fixed=Catalog())
    term()


async def test_an_answer_that_a_client_still_reads_is_not_cut_off(running, model):
    pod = await running(model.entry(), linger_seconds=0.05)
    reached, taken = asyncio.Event(), asyncio.Event()

    async def answering(scope, receive, send):
        await send({"type": "http.response.start", "status": 200, "headers": []})

    async def slowly(message):
        reached.set()
        await taken.wait()

    scope = {"type": "http", "path": "/v1/chat/completions", "headers": []}
    reading = asyncio.create_task(Guard(answering, pod.pod, None)(scope, None, slowly))
    await reached.wait()
    term()
    await until(lambda: pod.pod.manager.hosts["fake"].admission.line.gate.value == "closed", "the end of the linger")
    done, _ = await asyncio.wait({pod.task}, timeout=5 * LOOK_SECONDS)
    assert not done, "no slot is held, yet a client waits for its last bytes"
    taken.set()
    await reading
    await asyncio.wait_for(pod.task, 10)


@pytest.mark.parametrize("path", ["/api/chat", "/v1/chat/completions"])
async def test_a_drain_does_not_wait_for_a_load(running, model, path):
    model.slow_down()
    starting = Running(fake_settings(model.folder, linger_seconds=0.05), [model.entry()])
    await until(lambda: starting.pod and starting.pod.manager.hosts["fake"].progress, "the load")
    async with httpx.AsyncClient(base_url=starting.url, timeout=20) as client:
        body = {"model": "fake"} if path == "/api/chat" else CHAT
        waiting = asyncio.create_task(client.post(path, json=body))
        await until(lambda: starting.line.waiting, "the wait for the load")
        term()
        answer = await waiting
        assert (answer.status_code, answer.headers["x-tandem-refused"]) == (503, "draining")
    await asyncio.wait_for(starting.task, 10)
