"""A runner's life seen from outside: loads, deaths with their causes, restarts, reloads, removals, hung runners."""

import asyncio
import os
import signal
from pathlib import Path

import pytest
from server_site import ANSWER, lines, sse, until

from tandem_api.catalog import Catalog
from tandem_api.report import ModelState
from tandem_server.residency.causes import exit_cause
from tandem_server.residency.entry import needs_reload
from tandem_server.residency.record import backoff

pytestmark = pytest.mark.process

CHAT = {"model": "fake", "messages": [{"role": "user", "content": "Hi"}]}


def alive(pid: int) -> bool:
    """Whether a process is there and no zombie."""
    try:
        with open(f"/proc/{pid}/stat") as stat:
            return stat.read().rpartition(")")[2].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):  # the latter where it ends between the two calls
        return False


def parent(pid: int) -> int:
    """The process that started this one."""
    return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])


async def test_a_killed_runner_fails_only_its_own_requests_and_serves_again(serve, make_model):
    first, second = make_model("a"), make_model("b")
    site = await serve(first.entry(), second.entry("other"))
    first.hold()
    doomed = asyncio.create_task(site.client.post("/v1/chat/completions", json=CHAT))
    await until(lambda: len(first.admitted()) == 1)
    pid = site.host().runner.pid
    os.kill(pid, signal.SIGKILL)
    response = await doomed
    assert response.status_code == 500
    error = response.json()["error"]
    assert (error["type"], error["code"]) == ("server_error", "runner_died")
    assert f"the runner of model fake (process {pid}) was killed by signal 9 (SIGKILL)" in error["message"]
    first.release()
    after = await site.client.post("/v1/chat/completions", json=CHAT)
    assert after.json()["choices"][0]["message"]["content"] == ANSWER
    report = {entry.name: entry for entry in site.pod.report().models}
    assert (report["fake"].restarts, report["other"].restarts) == (1, 0)
    assert report["fake"].state is ModelState.LOADED
    assert site.host().runner.pid != pid


@pytest.mark.parametrize(("path", "read"), [("/v1/completions", sse), ("/api/generate", lines)])
async def test_a_death_midway_is_told_in_the_stream(serve, make_model, path, read):
    model = make_model(context=100_000, answer=[40, 41, 42])
    site = await serve(model.entry())
    ask = {"model": "fake", "prompt": "x", "raw": True, "stream": True, "max_tokens": 90_000}
    text = ""
    async with site.client.stream("POST", path, json=ask) as response:
        async for piece in response.aiter_text():
            if not text:
                os.kill(site.host().runner.pid, signal.SIGKILL)
            text += piece
    assert response.status_code == 200
    last = read(text)[-1]
    message = last["error"]["message"] if path.startswith("/v1") else last["error"]
    assert "was killed by signal 9 (SIGKILL)" in message


async def test_those_who_wait_survive_the_death(serve, model):
    site = await serve(model.entry(slots=1))
    doomed = asyncio.create_task(
        site.client.post("/v1/completions", json={"model": "fake", "prompt": "<|deaf|>", "max_tokens": 5})
    )
    await until(lambda: site.host().admission.line.running)
    waiting = asyncio.create_task(site.client.post("/v1/chat/completions", json=CHAT))
    await until(lambda: site.host().admission.line.waiting)
    os.kill(site.host().runner.pid, signal.SIGKILL)
    assert (await doomed).status_code == 500
    assert (await waiting).status_code == 200


async def test_requests_are_held_while_a_model_loads_and_a_load_outlives_its_client(serve, model):
    site = await serve(model.entry(), load=False)
    assert site.host().state is ModelState.UNLOADED
    assert (await site.client.get("/readyz")).status_code == 200
    ask = asyncio.create_task(site.client.post("/v1/chat/completions", json=CHAT))
    await until(lambda: site.host().state is not ModelState.UNLOADED, "the load's beginning")
    ask.cancel()
    await site.loaded()
    assert (await site.client.post("/v1/chat/completions", json=CHAT)).status_code == 200
    assert site.host().loads == 1


async def test_a_load_that_fails_is_told_and_healed(serve, make_model):
    model = make_model(die_at_load="tensor x is missing; fetch the checkpoint again")
    site = await serve(model.entry(), load=False, backoff_seconds=0.02)
    response = await site.client.post("/api/chat", json=CHAT)
    assert response.status_code == 503
    assert "tensor x is missing" in response.json()["error"]
    assert int(response.headers["retry-after"]) >= 1
    report = site.pod.report().models[0]
    assert (report.state, "tensor x is missing" in report.last_error) == (ModelState.FAILED, True)
    model.write()
    await site.loaded()
    assert site.pod.report().models[0].last_error is None
    assert (await site.client.post("/api/chat", json=CHAT)).status_code == 200


async def test_a_model_that_does_not_fit_says_so_with_the_first_failure(serve, make_model):
    model = make_model(die_at_load="4 slots of 99 tokens need too much", reason="DoesNotFit")
    site = await serve(model.entry(), load=False, backoff_seconds=0.05)
    report = site.pod.report
    site.host().want()
    await until(lambda: report().models[0].state is ModelState.FAILED, "the first failure to be told")
    assert report().models[0].error_reason == "DoesNotFit"
    model.write()
    await site.loaded()
    assert report().models[0].error_reason == ""


async def test_a_folder_that_is_not_there_is_told_at_once(serve, model):
    entry = model.entry(source=f"file://{model.folder}-gone")
    site = await serve(entry, load=False)
    response = await site.client.post("/v1/chat/completions", json=CHAT)
    assert response.status_code == 503
    assert "there is no folder" in response.json()["error"]["message"]


async def test_readiness_waits_for_the_preload_and_then_never_turns_back(serve, make_model):
    model = make_model(die_at_load="not today")
    site = await serve(load=False, backoff_seconds=0.02)
    site.pod.manager.apply(Catalog(models=[model.entry()], preload={"*": ["fake"]}))
    waiting = await site.client.get("/readyz")
    assert (waiting.status_code, waiting.text) == (503, "waiting for model fake\n")
    model.write()
    await site.loaded()
    assert (await site.client.get("/readyz")).status_code == 200
    os.kill(site.host().runner.pid, signal.SIGKILL)
    await until(lambda: site.host().loaded is None)
    assert (await site.client.get("/readyz")).status_code == 200


async def test_new_queue_bounds_apply_at_once_and_new_slots_after_what_runs(serve, model):
    site = await serve(model.entry())
    host, pid = site.host(), site.host().runner.pid
    site.pod.manager.apply(Catalog(models=[model.entry(queue={"max": 1, "timeoutSeconds": 7})]))
    assert (host.admission.line.queue_max, host.admission.line.timeout, host.runner.pid) == (1, 7.0, pid)
    model.hold()
    running = asyncio.create_task(site.client.post("/v1/chat/completions", json=CHAT))
    await until(lambda: len(model.admitted()) == 1)
    site.pod.manager.apply(Catalog(models=[model.entry(slots=2)]))
    waiting = asyncio.create_task(site.client.post("/v1/chat/completions", json=CHAT))
    await until(lambda: host.admission.line.waiting)
    assert alive(pid)
    model.release()
    assert (await running).status_code == 200
    assert (await waiting).status_code == 200
    assert not alive(pid)
    assert (host.loaded.slots, host.restarts) == (2, 0)


async def test_a_removed_model_finishes_what_runs_and_is_gone(serve, model):
    site = await serve(model.entry(slots=1))
    pid = site.host().runner.pid
    model.hold()
    running = asyncio.create_task(site.client.post("/v1/chat/completions", json=CHAT))
    await until(lambda: len(model.admitted()) == 1)
    waiting = asyncio.create_task(site.client.post("/v1/chat/completions", json=CHAT))
    await until(lambda: site.host().admission.line.waiting)
    site.pod.manager.apply(Catalog(models=[]))
    assert (await waiting).status_code == 404
    assert (await site.client.post("/v1/chat/completions", json=CHAT)).status_code == 404
    assert alive(pid)
    model.release()
    assert (await running).status_code == 200
    await until(lambda: not alive(pid), "the runner's end")


async def test_a_runner_that_does_not_abort_is_ended(serve, model):
    site = await serve(model.entry(), abort_seconds=0.2)
    pid = site.host().runner.pid
    ask = asyncio.create_task(site.client.post("/v1/completions", json={"model": "fake", "prompt": "<|deaf|>"}))
    await until(lambda: site.host().admission.line.running)
    ask.cancel()
    await until(lambda: not alive(pid), "the end of the deaf runner")
    await until(lambda: site.host().restarts == 1)
    assert "did not end an aborted request within 0.2 s" in site.host().last_error
    assert (await site.client.post("/v1/chat/completions", json=CHAT)).status_code == 200


async def test_a_runner_that_makes_no_step_is_ended(serve, model):
    site = await serve(model.entry(), stall_seconds=0.2)
    model.hold()
    ask = asyncio.create_task(site.client.post("/v1/chat/completions", json=CHAT))
    response = await ask
    assert response.status_code == 500
    assert "made no step for 0.2 s" in response.json()["error"]["message"]


async def test_a_prompt_that_kills_its_runner_does_so_only_for_itself(serve, model):
    site = await serve(model.entry())
    killer = await site.client.post("/v1/completions", json={"model": "fake", "prompt": "<|death|>"})
    assert killer.status_code == 500
    assert (await site.client.post("/v1/chat/completions", json=CHAT)).status_code == 200


async def test_no_process_and_no_folder_is_left(serve, make_model, tmp_path):
    runs = tmp_path / "run"
    runs.mkdir()
    model = make_model()
    site = await serve(model.entry(), run_folder=runs)
    pid = site.host().runner.pid
    assert [path.stat().st_mode & 0o777 for path in runs.iterdir()] == [0o700]
    assert os.getsid(pid) == pid
    await site.pod.manager.close()
    assert not alive(pid)
    assert list(runs.iterdir()) == []


async def test_a_signal_to_the_front_ends_group_reaches_no_runner(serve, model):
    site = await serve(model.entry())
    pid = site.host().runner.pid
    fork_server = parent(pid)
    assert os.getpgid(fork_server) == fork_server != os.getpgid(0)
    os.kill(fork_server, signal.SIGTERM)
    response = await site.client.post("/v1/chat/completions", json=CHAT)
    assert response.status_code == 200
    assert alive(fork_server)


@pytest.mark.parametrize(
    ("code", "kills", "words"),
    [
        (0, 0, "ended by itself with code 0"),
        (3, 0, "exit code 3"),
        (-9, 0, "killed by signal 9 (SIGKILL), as the kernel does when memory runs out"),
        (-9, 1, "because the container ran out of memory"),
        (-11, 0, "signal 11 (SIGSEGV), a fault in native code"),
        (-15, 0, "signal 15 (SIGTERM)"),
        (255, 0, "vanished together with the fork server"),
        (None, 0, "vanished"),
    ],
)
def test_causes(code, kills, words):
    assert words in exit_cause(code, kills)


def test_back_off_doubles_up_to_a_minute():
    assert [backoff(0.5, failures) for failures in (1, 2, 3, 8, 1000)] == [0.5, 1.0, 2.0, 60.0, 60.0]


@pytest.mark.parametrize(
    ("change", "reload"),
    [
        ({"queue": {"max": 3}}, False), ({"aliases": ["x"]}, False), ({"defaults": {"topK": 3}}, False),
        ({"generation": 9}, False), ({"slots": 2}, True), ({"context": {"length": 64}}, True),
        ({"source": "file:///x"}, True), ({"dtype": "Float32"}, True), ({"scheduling": "Plain"}, True),
        ({"revision": "main"}, True),
    ],
)  # fmt: skip
def test_what_needs_a_reload(model, change, reload):
    assert needs_reload(model.entry(), model.entry(**change)) is reload
