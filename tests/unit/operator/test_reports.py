"""Asking pods for reports: how often, with which key, and what becomes of those that do not answer."""

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import pytest
from aiohttp import web

from tandem_api.keys import pool_key
from tandem_api.report import ModelReport, Report
from tandem_operator.kinds import Key, Obj
from tandem_operator.observe import Seen
from tandem_operator.reports import Reports, Target, interval, moved, target_of
from tandem_testing.kube import eventually
from tandem_testing.operator_world import KEY, MASTER, UID, loaded, loading, pod, report, running, seen

TARGET = Target("uid-pod-a", UID, KEY, "127.0.0.1", True)


@pytest.mark.parametrize(
    ("ready", "told", "expected", "seconds"),
    [
        (True, seen(loaded()), None, 15.0),
        (True, seen(loaded()), "rev", 15.0),
        (True, seen(loaded()), "newer", 1.0),
        (True, seen(loaded(busy=1)), None, 1.0),
        (True, seen(loaded(queued=1)), None, 1.0),
        (True, seen(loading()), None, 1.0),
        (True, Seen(), None, 1.0),
        (True, Seen(stale=True), None, 1.0),
        (True, seen(loaded(), stale=True), None, 15.0),
        (False, seen(loaded()), None, 1.0),
    ],
)
def test_interval(ready: bool, told: Seen, expected: str | None, seconds: float) -> None:
    assert interval(Target("u", UID, KEY, "a", ready), told, expected) == seconds


@pytest.mark.parametrize(
    ("obj", "asked"),
    [
        (running(), True),
        (running(ready=False), True),
        (pod(phase="Pending", podIP="10.0.0.1"), False),
        (pod(phase="Running"), False),
        (pod(phase="Succeeded", podIP="10.0.0.1"), False),
        ({**running(), "metadata": {**running()["metadata"], "deletionTimestamp": "now"}}, False),
        ({**running(), "metadata": {**running()["metadata"], "labels": {}}}, False),
    ],
)
def test_who_is_asked(obj: Obj, asked: bool) -> None:
    assert (target_of(obj) is not None) == asked


@pytest.mark.parametrize(
    ("after", "expected"),
    [
        (report(loaded()), False),
        (report(loaded(step_rate=9.0, admitted_total=5)), False),
        (report(loaded(busy=1)), True),
        (report(loaded(), revision="other"), True),
        (report(loaded(), draining=True), True),
        (report(loading()), True),
        (report(), True),
    ],
)
def test_what_is_news(after: Report, expected: bool) -> None:
    assert moved(KEY, seen(loaded()), after) == ({KEY} if expected else set())
    assert moved(KEY, seen(loaded(), stale=True), after) == {KEY}


class Pods:
    """Pods that a test names, and the time that it sets."""

    def __init__(self) -> None:
        self.pods: list[Obj] = []
        self.now = 100.0
        self.nudged: list[Key] = []
        self.reports = Reports(
            lambda: self.pods, self.nudged.append, lambda pool: [pool], MASTER, 8081, lambda: self.now
        )


def test_at_most_64_are_asked_at_once_the_longest_due_first() -> None:
    bench = Pods()
    bench.pods = [running(f"pod-{number}") for number in range(100)]
    first = bench.reports.due()
    assert len(first) == 64
    for target in first:
        bench.reports.answered(target, report(loaded()))
    assert len(bench.reports.due()) == 36


def test_idle_pods_are_asked_many_at_a_time_and_not_all_at_once() -> None:
    bench = Pods()
    bench.pods = [running(f"pod-{number}") for number in range(60)]
    for target in bench.reports.due():
        bench.reports.answered(target, report(loaded()))
    counts = []
    for _ in range(200):
        bench.now += 0.1
        counts.append(len(bench.reports.due()))
    assert counts[130] == 0, "each was asked 13 s ago"
    rounds = sorted({count for count in counts if count})
    assert len(rounds) in (2, 3), "13.5 to 16.5 s, in rounds of 3 s"
    assert rounds[-1] == 60


def test_a_pod_that_turned_ready_while_it_was_asked_is_asked_again_at_once() -> None:
    bench = Pods()
    bench.pods = [running(ready=False)]
    (unready,) = bench.reports.due()
    bench.pods = [running()]
    bench.reports.due()
    bench.reports.answered(unready, report(loaded()))
    assert len(bench.reports.due()) == 1


def test_a_pod_that_fell_silent_keeps_its_last_report_and_is_told_of_once() -> None:
    bench = Pods()
    bench.pods = [running()]
    bench.reports.answered(TARGET, report(loaded()))
    bench.reports.failed(TARGET, "timeout")
    bench.reports.failed(TARGET, "timeout again")
    kept = bench.reports.seen[TARGET.uid]
    assert kept == Seen(report(loaded()), 100.0, True, "timeout again")
    assert bench.nudged == [KEY, KEY]
    bench.reports.answered(TARGET, report(loaded()))
    assert bench.nudged == [KEY, KEY, KEY]
    assert not bench.reports.seen[TARGET.uid].stale


def test_a_pod_that_is_gone_is_forgotten() -> None:
    bench = Pods()
    bench.pods = [running()]
    bench.reports.answered(TARGET, report(loaded()))
    bench.pods = []
    assert bench.reports.due() == []
    assert bench.reports.seen == {}


def test_a_pod_that_turned_ready_or_unready_is_asked_at_once() -> None:
    bench = Pods()
    bench.pods = [running(ready=False)]
    for target in bench.reports.due():
        bench.reports.answered(target, report(loading()))
    assert bench.reports.due() == []
    bench.pods = [running()]
    (ready,) = bench.reports.due()
    assert ready.ready
    bench.reports.answered(ready, report(loaded()))
    assert bench.reports.due() == []
    bench.pods = [running(ready=False)]
    assert len(bench.reports.due()) == 1


def test_a_pod_that_should_read_a_new_catalog_is_asked_at_once() -> None:
    bench = Pods()
    bench.pods = [running()]
    bench.reports.answered(TARGET, report(loaded()))
    bench.reports.expect(TARGET.uid, "rev")
    bench.reports.expect(TARGET.uid, "rev")
    assert [target.uid for target in bench.reports.due()] == [TARGET.uid]


@pytest.fixture
async def served() -> AsyncIterator[tuple[int, dict[str, Any]]]:
    """A pod's internal port on loopback; `behaviour` says what it answers."""
    behaviour: dict[str, Any] = {"status": 200, "body": report(loaded()).model_dump_json(by_alias=True), "keys": []}

    async def answer(request: web.Request) -> web.Response:
        behaviour["keys"].append(request.headers.get("Authorization"))
        return web.Response(status=behaviour["status"], text=behaviour["body"], headers=behaviour.get("headers"))

    app = web.Application()
    app.router.add_get("/internal/report", answer)
    runner = web.AppRunner(app, access_log=None)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    yield runner.addresses[0][1], behaviour
    await runner.cleanup()


async def asked_once(port: int) -> Seen:
    """What is known of a pod after it was asked over real HTTP."""
    told = asyncio.Event()
    reports = Reports(lambda: [running()], lambda _: told.set(), lambda pool: [pool], MASTER, port)
    task = asyncio.create_task(reports.run())
    async with asyncio.timeout(10):
        await told.wait()
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
    return reports.seen["uid-pod-a"]


async def test_the_pool_key_is_sent_and_the_report_read(served: tuple[int, dict[str, Any]]) -> None:
    port, behaviour = served
    found = await asked_once(port)
    assert found.report == report(loaded())
    assert not found.stale
    assert behaviour["keys"][0] == f"Bearer {pool_key(MASTER, UID)}"


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"status": 401}, "HTTP 401"),
        ({"status": 302, "headers": {"Location": "http://127.0.0.1:1/"}}, "HTTP 302"),
        ({"body": "{"}, "not as agreed"),
        ({"body": "[]"}, "not as agreed"),
        ({"body": '{"pod": "a", "version": "0", "models": [{"name": 1}]}'}, "not as agreed"),
        ({"body": " " * (2 << 20)}, "longer than 1048576 bytes"),
    ],
)
async def test_an_answer_that_cannot_be_used(
    served: tuple[int, dict[str, Any]], change: dict[str, Any], words: str
) -> None:
    port, behaviour = served
    behaviour.update(change)
    found = await asked_once(port)
    assert found.report is None
    assert found.stale
    assert words in found.error


async def test_a_reconcile_makes_it_look_at_once_and_equal_texts_are_one_report(
    served: tuple[int, dict[str, Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("BUSY_SECONDS", "IDLE_SECONDS", "_LONGEST_PAUSE_SECONDS"):
        monkeypatch.setattr(f"tandem_operator.reports.{name}", 60.0)
    port, _ = served
    told, pods = asyncio.Event(), [running()]
    reports = Reports(lambda: pods, lambda _: told.set(), lambda pool: [pool], MASTER, port)
    task = asyncio.create_task(reports.run())
    async with asyncio.timeout(20):
        await told.wait()
    first = reports.seen["uid-pod-a"]
    reports.expect("uid-pod-a", "a new revision")
    await eventually("the second answer", lambda: reports.seen["uid-pod-a"] is not first, 20)
    assert reports.seen["uid-pod-a"].report is first.report
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)


async def test_a_closed_port() -> None:
    server = await asyncio.start_server(lambda *_: None, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    server.close()
    await server.wait_closed()
    found = await asked_once(port)
    assert found.stale
    assert str(port) in found.error


def test_reports_of_a_newer_version_are_read() -> None:
    text = '{"pod": "a", "version": "9", "new": {}, "models": [{"name": "coder", "state": "Loaded", "more": 1}]}'
    assert Report.model_validate_json(text).models == [ModelReport(name="coder", state="Loaded")]  # type: ignore[arg-type]
