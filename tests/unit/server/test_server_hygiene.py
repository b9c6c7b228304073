"""What a runner may leave behind: nothing, however it ends; and how one that hangs is noticed."""

import asyncio
import os
import signal
import sys
import time
from pathlib import Path

import pytest
from server_site import ANSWER, fake_settings, until

from tandem_server import processes
from tandem_server.residency.causes import memory_kills
from tandem_server.residency.watchdog import Look, Watchdog

CHAT = {"model": "fake", "messages": [{"role": "user", "content": "Hi"}]}
OTHER = {**CHAT, "model": "other"}
KINDS = ["watches", "forked", "executed"]


def gone(pid: int) -> bool:
    """Whether nothing is left of a process, not even a zombie."""
    return processes.stat_of(pid) is None


@pytest.mark.process
@pytest.mark.parametrize("how", ["kill", "stop"])
async def test_descendants_in_sessions_of_their_own_end_with_the_runner(serve, make_model, how):
    model = make_model(descendants=KINDS)
    site = await serve(model.entry(), backoff_seconds=30.0)
    pids, runner = model.descendants(), site.host().runner
    assert pids.keys() == set(KINDS)
    assert all(os.getsid(pid) == pid for pid in pids.values()), "each left the runner's session"
    assert processes.members(runner._process.kin).keys() == {runner.pid, *pids.values()}
    began = time.monotonic()
    if how == "kill":
        os.kill(runner.pid, signal.SIGKILL)
    else:
        await runner.stop("was ended by the test")
    await until(runner.ended.done, "the runner's end")
    assert time.monotonic() - began < 15.0
    await until(lambda: all(map(gone, [runner.pid, *pids.values()])), "the end of all, reaped")


SCRIPT = """
import asyncio, sys
sys.path.insert(0, {tests!r})
from pathlib import Path
from server_site import fake_settings
from tandem_api.catalog import Catalog, CatalogModel
from tandem_server.serve import run_pod

async def told(pod, port):
    host = pod.manager.hosts["fake"]
    while host.loaded is None:
        await asyncio.sleep(0.01)
    print(host.runner.pid, flush=True)

entry = CatalogModel(name="fake", source={source!r})
catalog = Catalog(models=[entry], preload={{"*": ["fake"]}})
asyncio.run(run_pod(fake_settings(Path({folder!r}), run_folder={folder!r}), fixed=catalog, companion=told))
"""


@pytest.mark.process
async def test_nothing_is_left_when_the_pod_is_killed(make_model, tmp_path):
    model = make_model(descendants=KINDS)
    script = SCRIPT.format(tests=str(Path(__file__).parent), source=model.entry().source, folder=str(tmp_path))
    process = await asyncio.create_subprocess_exec(sys.executable, "-c", script, stdout=asyncio.subprocess.PIPE)
    try:
        pid = int(await asyncio.wait_for(process.stdout.readline(), 30))
        left = [pid, processes.stat_of(pid).parent, *model.descendants().values()]
        assert not any(map(gone, left))
    finally:
        process.kill()
        await process.wait()

    def ended(pid: int) -> bool:
        stat = processes.stat_of(pid)  # this machine's own first process reaps these orphans, when it likes
        return stat is None or stat.state == "Z"

    await until(lambda: all(map(ended, left)), "the end of runner, fork server and descendants")


async def slowest(site, done=None, least=15):
    """The longest answer of the other model, in seconds, over `least` requests and until `done` is."""
    found = []
    while len(found) < least or (done is not None and not done.done()):
        began = time.monotonic()
        answer = await site.client.post("/v1/chat/completions", json=OTHER)
        assert answer.json()["choices"][0]["message"]["content"] == ANSWER
        found.append(time.monotonic() - began)
    return max(found)


@pytest.mark.process
@pytest.mark.parametrize("number", [signal.SIGSTOP, signal.SIGKILL])
async def test_a_stopped_or_killed_runner_is_told_and_nobody_else_notices(serve, make_model, number):
    first, second = make_model("a"), make_model("b")
    site = await serve(first.entry(), second.entry("other"), heartbeat_seconds=1.5)
    first.hold()
    doomed = asyncio.create_task(site.client.post("/v1/chat/completions", json=CHAT))
    await until(lambda: len(first.admitted()) == 1)
    runner, before = site.host().runner, await slowest(site)
    os.kill(runner.pid, number)
    beside = await slowest(site, doomed)
    assert beside < 10 * before + 1.0, "generous: what would couple the two would do so until the restart at least"
    error = (await doomed).json()["error"]
    assert error["code"] == "runner_died"
    told = {
        signal.SIGSTOP: "gave no sign of life for 1.5 s (it is stopped, as by SIGSTOP or a debugger) and was killed",
        signal.SIGKILL: "was killed by signal 9 (SIGKILL)",
    }
    assert told[number] in error["message"]
    assert site.host("other").restarts == 0
    first.release()
    assert (await site.client.post("/v1/chat/completions", json=CHAT)).status_code == 200
    await until(lambda: gone(runner.pid), "the end of the stopped process")


@pytest.mark.process
async def test_an_idle_runner_that_is_stopped_is_replaced_before_the_next_request(serve, model):
    site = await serve(model.entry(), heartbeat_seconds=1.0)
    os.kill(site.host().runner.pid, signal.SIGSTOP)
    await until(lambda: site.host().restarts == 1 and site.host().loaded, "the new runner")
    assert (await site.client.post("/v1/chat/completions", json=CHAT)).status_code == 200


@pytest.mark.process
async def test_a_deadlock_is_noticed_although_the_heart_beats(serve, model):
    site = await serve(model.entry(), wedge_seconds=0.8)
    response = await site.client.post("/v1/completions", json={"model": "fake", "prompt": "<|wedge|>"})
    assert response.status_code == 500
    assert "used no CPU" in response.json()["error"]["message"]
    assert (await site.client.post("/v1/chat/completions", json=CHAT)).status_code == 200


@pytest.mark.process
async def test_a_stopped_load_is_noticed_and_a_slow_one_is_not(serve, model):
    model.slow_down()
    site = await serve(model.entry(), load=False, heartbeat_seconds=1.0, backoff_seconds=0.05)
    site.host().want()
    await until(lambda: site.host().runner and site.host().progress, "the load")
    pid = site.host().runner.pid
    began = time.monotonic()
    await until(lambda: time.monotonic() > began + 2.0)  # twice as long as a stopped one would live
    assert site.host().runner.pid == pid
    os.kill(pid, signal.SIGSTOP)
    await until(lambda: "gave no sign of life" in (site.host().last_error or ""), "the end of the stopped load")
    model.speed_up()
    await site.loaded()


@pytest.mark.process
async def test_a_runner_that_cannot_be_killed_is_given_up_and_told(serve, model, monkeypatch, caplog):
    site = await serve(model.entry(), stop_seconds=0.3, kill_seconds=0.3, backoff_seconds=0.05)
    doomed = asyncio.create_task(site.client.post("/v1/completions", json={"model": "fake", "prompt": "<|wedge|>"}))
    await until(lambda: site.host().runner.client.streams)
    runner = site.host().runner
    monkeypatch.setattr(runner._process, "signal", lambda number: None)  # as a process that hangs in a driver
    await runner.stop("was ended by the test")
    assert "cannot be killed (state" in (await doomed).json()["error"]["message"]
    assert "is left behind" in caplog.text
    await until(lambda: site.host().loaded and site.host().runner is not runner, "another runner")
    monkeypatch.undo()
    os.kill(runner.pid, signal.SIGKILL)  # in the end it ends after all
    await until(lambda: gone(runner.pid) and runner._process._reaped, "its end")
    assert (await site.client.post("/v1/chat/completions", json=CHAT)).status_code == 200
    assert site.host().admission.line.slots == 4, "the new runner's slots are untouched"


class World:
    """What a watchdog sees, one look after the other."""

    def __init__(self, tmp_path, **bounds):
        settings = fake_settings(tmp_path, **{"heartbeat_seconds": 12.0, "wedge_seconds": 20.0, **bounds})
        self.dog = Watchdog(settings)
        self.now = 1000.0
        self.spoke = 1000.0

    def after(self, seconds, *, step=None, beaten=True, running=1, cpu=0.0, state="S", abort=None):
        """Looks every interval for so long; `cpu` is the share of a CPU that is used. The first complaint, or None."""
        end = self.now + seconds
        while self.now < end:
            self.now += self.dog.interval if step is None else step
            look = Look(self.now, beaten, state, running, self.spoke, abort, cpu * self.now)
            said = self.dog.hung(look)
            if said:
                return said
        return None


def test_a_hang_is_told_by_what_it_lacks(tmp_path):
    assert "gave no sign of life for 12 s and" in World(tmp_path).after(14, beaten=False, running=0)
    assert World(tmp_path).after(11, beaten=False) is None
    assert "no CPU for 2" in World(tmp_path).after(25)
    assert World(tmp_path).after(25, running=0) is None, "an idle one needs no CPU"
    assert World(tmp_path).after(290, cpu=0.9) is None, "a long prompt"
    assert "made no step for 300 s" in World(tmp_path).after(302, cpu=0.9)
    assert "did not end an aborted request within 30 s" in World(tmp_path).after(40, cpu=0.9, abort=1000.0)


def test_a_long_prompt_that_then_locks_up_is_noticed_soon(tmp_path):
    world = World(tmp_path)
    assert world.after(100, cpu=0.9) is None
    world_now = world.now
    frozen = 0.9 * world_now
    while True:
        world.now += world.dog.interval
        said = world.dog.hung(Look(world.now, True, "S", 1, world.spoke, None, frozen))
        if said:
            break
    assert 10 <= world.now - world_now <= 21


def test_a_front_end_that_itself_stood_still_blames_nobody(tmp_path):
    world = World(tmp_path)
    assert world.after(5, abort=1000.0) is None
    assert world.after(1, step=3600.0, beaten=False, abort=1000.0) is None
    assert world.after(5, abort=1000.0) is None
    assert world.after(30, abort=1000.0, cpu=0.9) is not None, "it is measured from then"


def test_kills_for_memory_are_counted_in_both_kinds_of_cgroups(tmp_path):
    own = tmp_path / "cgroup"
    own.write_text("0::/pod/x\n")
    events = tmp_path / "two" / "pod" / "x"
    events.mkdir(parents=True)
    (events / "memory.events").write_text("low 0\noom 3\noom_kill 2\noom_group_kill 0\n")
    assert memory_kills(tmp_path / "two", own) == 2
    (tmp_path / "inside").mkdir()
    (tmp_path / "inside" / "memory.events").write_text("oom_kill 5\n")
    assert memory_kills(tmp_path / "inside", own) == 5, "a container sees its own cgroup as the root"
    own.write_text("9:cpu,cpuacct:/c\n4:memory:/pod/y\n0::/\n")
    older = tmp_path / "one" / "memory" / "pod" / "y"
    older.mkdir(parents=True)
    (older / "memory.oom_control").write_text("oom_kill_disable 0\nunder_oom 0\noom_kill 7\n")
    assert memory_kills(tmp_path / "one", own) == 7
    assert memory_kills(tmp_path / "nothing", tmp_path / "absent") == 0
