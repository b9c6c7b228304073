"""The loop around the decisions: what it writes, how long it waits for an answer, what it says, how it gives up."""

import asyncio
import logging
from collections.abc import Awaitable, Callable
from typing import Any

import kopf
import pytest
from aiohttp import web
from prometheus_client import REGISTRY
from pydantic import ValidationError

from tandem_operator.api import Api, ApiError
from tandem_operator.config import ElectionConfig
from tandem_operator.election import LEASE, Alone, Election, identity
from tandem_operator.kinds import CONFIG_MAP, Kind, Obj

CONFIG = ElectionConfig(enabled=True, namespace="system", name="lead", lease_seconds=15)


class Leases:
    """An API server that keeps one Lease. `trouble` is raised, or awaited, before each answer."""

    def __init__(self) -> None:
        self.lease: Obj | None = None
        self.asked: list[str] = []
        self.trouble: Callable[[], Awaitable[None]] | Exception | None = None
        self._version = 0

    async def _before(self, verb: str) -> None:
        self.asked.append(verb)
        if isinstance(self.trouble, Exception):
            raise self.trouble
        if self.trouble is not None:
            await self.trouble()

    def keep(self, body: Obj) -> Obj:
        self._version += 1
        self.lease = {**body, "metadata": {**body["metadata"], "resourceVersion": str(self._version)}}
        return self.lease

    def hold(self, holder: str) -> None:
        """Somebody else writes the Lease."""
        spec = {"holderIdentity": holder, "leaseDurationSeconds": 15, "leaseTransitions": 7}
        self.keep({"metadata": {"name": "lead", "namespace": "system"}, "spec": spec})

    async def get(self, kind: Kind, namespace: str, name: str) -> Obj:
        await self._before("get")
        assert (kind, namespace, name) == (LEASE, "system", "lead")
        if self.lease is None:
            raise ApiError(404, "NotFound", "not found")
        return self.lease

    async def create(self, kind: Kind, obj: Obj) -> Obj:
        await self._before("create")
        if self.lease is not None:
            raise ApiError(409, "AlreadyExists", "exists")
        return self.keep(obj)

    async def update(self, kind: Kind, obj: Obj) -> Obj:
        await self._before("update")
        if self.lease is None or obj["metadata"]["resourceVersion"] != self.lease["metadata"]["resourceVersion"]:
            raise ApiError(409, "Conflict", "changed")
        return self.keep(obj)


class Clock:
    """A clock that a sleeping election moves on; `at` runs something when its time has come."""

    def __init__(self) -> None:
        self.now = 1000.0
        self.plan: list[tuple[float, Callable[[], Any]]] = []

    def at(self, after: float, what: Callable[[], Any]) -> None:
        self.plan.append((self.now + after, what))
        self.plan.sort(key=lambda one: one[0])

    async def sleep(self, seconds: float) -> None:
        await asyncio.sleep(0)
        end = self.now + seconds
        while self.plan and self.plan[0][0] <= end:
            self.now, what = self.plan.pop(0)
            what()
        self.now = end


class Ended(Exception):
    """The test has seen enough."""


def stop() -> None:
    raise Ended


@pytest.fixture
def leases() -> Leases:
    return Leases()


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def election(leases: Leases, clock: Clock) -> Election:
    return Election(leases, CONFIG, "me", lambda: clock.now, clock.sleep)


async def test_it_takes_a_free_lease_and_renews_it(
    election: Election, leases: Leases, clock: Clock, caplog: pytest.LogCaptureFixture
) -> None:
    assert not election.may_write()
    assert election.standby() == "standby: the Lease system/lead could not be read yet"
    assert not election.knows()
    clock.at(9.0, stop)
    with caplog.at_level(logging.INFO), pytest.raises(Ended):
        await election.run()
    assert leases.asked == ["get", "create", "update", "update", "update", "update"], "one request each 2 s"
    assert leases.lease is not None
    spec = leases.lease["spec"]
    assert (spec["holderIdentity"], spec["leaseDurationSeconds"], spec["leaseTransitions"]) == ("me", 15, 0)
    assert spec["acquireTime"] <= spec["renewTime"]
    assert spec["renewTime"].endswith("Z")
    assert election.led.is_set()
    assert election.may_write()
    assert election.standby() == ""
    assert REGISTRY.get_sample_value("tandem_operator_leader") == 1
    assert caplog.messages == ["This process, me, leads: it holds the Lease system/lead."]
    clock.now += 11
    assert not election.may_write(), "a process that was stopped must not write when it wakes"


async def test_a_standby_says_once_who_leads_and_follows_within_the_lease(
    election: Election, leases: Leases, clock: Clock, caplog: pytest.LogCaptureFixture
) -> None:
    leases.hold("you")
    began = clock.now
    times: list[float] = []

    async def note() -> None:
        times.append(clock.now - began)

    leases.trouble = note
    clock.at(10.0, lambda: told.append((election.standby(), election.knows(), election.healthy())))
    told: list[Any] = []
    with caplog.at_level(logging.INFO):
        running = asyncio.ensure_future(election.run())
        await asyncio.wait_for(election.led.wait(), 5)
        running.cancel()
    first = leases.asked.index("update")
    assert times[first] == 15.0
    assert told == [("standby: you holds the Lease system/lead", True, True)]
    assert caplog.messages == [
        "Standing by: you holds the Lease system/lead and leads.",
        "This process, me, leads: it holds the Lease system/lead.",
    ]
    assert leases.lease is not None
    assert leases.lease["spec"]["leaseTransitions"] == 8
    assert REGISTRY.get_sample_value("tandem_operator_lease_transitions") == 8


async def test_a_released_lease_is_taken_at_once(election: Election, leases: Leases, clock: Clock) -> None:
    leases.hold("you")
    began = clock.now
    times: list[float] = []

    async def note() -> None:
        times.append(clock.now - began)

    leases.trouble = note
    clock.at(6.5, lambda: leases.hold(""))
    running = asyncio.ensure_future(election.run())
    await asyncio.wait_for(election.led.wait(), 5)
    running.cancel()
    assert times[leases.asked.index("update")] == 8.0


async def test_without_an_api_server_the_lead_is_lost_in_time_and_told_once(
    election: Election, leases: Leases, clock: Clock, caplog: pytest.LogCaptureFixture
) -> None:
    began = clock.now
    clock.at(3.0, lambda: setattr(leases, "trouble", ApiError(0, "Unreachable", "no route")))
    why = await election.run()
    assert why == "the Lease could not be renewed for 10 s: no route"
    assert clock.now - began == pytest.approx(12.0), "10 s after the last renewal, which was 2 s after the start"
    assert not election.may_write()
    assert REGISTRY.get_sample_value("tandem_operator_leader") == 0
    told = "The Lease system/lead cannot be renewed: no route. It is tried again every 2 s."
    assert caplog.messages == [told]


async def test_another_that_took_it_ends_the_lead(election: Election, leases: Leases, clock: Clock) -> None:
    clock.at(3.0, lambda: leases.hold("you"))
    assert await election.run() == "you holds the Lease now, by no doing of this process"


async def test_an_answer_that_never_comes_is_not_waited_for(leases: Leases) -> None:
    quick = ElectionConfig(
        enabled=True, namespace="system", name="lead", lease_seconds=1, renew_seconds=0.4, retry_seconds=0.05
    )
    election = Election(leases, quick, "me")

    async def hang() -> None:
        if election.led.is_set():
            await asyncio.Event().wait()

    leases.trouble = hang
    async with asyncio.timeout(5):
        assert await election.run() == "the Lease could not be renewed for 0.4 s: the API server did not answer in time"


async def test_the_lead_is_given_up_even_when_a_renewal_was_cut_off(
    election: Election, leases: Leases, clock: Clock
) -> None:
    clock.at(5.0, stop)
    with pytest.raises(Ended):
        await election.run()
    assert leases.lease is not None
    leases.keep(leases.lease)  # a renewal of ours whose answer nobody waits for any more
    await election.release()
    assert leases.lease["spec"]["holderIdentity"] == ""
    assert not election.may_write()
    asked = len(leases.asked)
    await election.release()
    assert len(leases.asked) == asked, "once is enough"


async def test_what_is_not_held_is_not_released(election: Election, leases: Leases, clock: Clock) -> None:
    await election.release()
    assert leases.asked == []
    clock.at(3.0, lambda: leases.hold("you"))
    await election.run()
    asked = len(leases.asked)
    await election.release()
    assert len(leases.asked) == asked


async def test_a_release_that_fails_is_told(
    election: Election, leases: Leases, clock: Clock, caplog: pytest.LogCaptureFixture
) -> None:
    clock.at(3.0, stop)
    with pytest.raises(Ended):
        await election.run()
    leases.trouble = ApiError(0, "Unreachable", "no route")
    await election.release()
    assert caplog.messages[-1] == "The Lease system/lead could not be released: no route. It expires by itself."


async def test_alone_there_is_no_election() -> None:
    alone = Alone()
    assert alone.led.is_set()
    assert alone.may_write()
    await alone.release()


def test_no_two_processes_have_one_name() -> None:
    assert identity() != identity()


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"renewSeconds": 15}, "retrySeconds must be less than renewSeconds"),
        ({"retrySeconds": 10}, "retrySeconds must be less than renewSeconds"),
        ({"namespace": ""}, "needs the namespace"),
    ],
)
def test_times_that_would_make_two_leaders_are_refused(values: dict[str, Any], said: str) -> None:
    with pytest.raises(ValidationError, match=said):
        ElectionConfig.model_validate({"enabled": True, "namespace": "x", **values})


async def test_the_client_asks_whether_to_write_before_it_connects_and_after() -> None:
    """A write that had to wait for its connection is not sent when the lead was lost meanwhile."""
    arrived: list[str] = []

    async def answer(request: web.Request) -> web.Response:
        arrived.append(request.method)
        return web.json_response({"metadata": {"resourceVersion": "1"}, "items": []})

    app = web.Application()
    app.router.add_route("*", "/{path:.*}", answer)
    runner = web.AppRunner(app, shutdown_timeout=0.1)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    says: list[bool] = []
    obj = {"metadata": {"name": "a", "namespace": "b"}}
    info = kopf.ConnectionInfo(server=f"http://127.0.0.1:{runner.addresses[0][1]}")
    try:
        async with Api(info, may_write=lambda: says.pop(0)) as api:
            for answers, arrives in (([False], 0), ([True, False], 0), ([True, True], 1), ([True, False], 1)):
                says[:] = answers
                if answers[-1]:
                    await api.create(CONFIG_MAP, obj)
                else:
                    with pytest.raises(ApiError, match="another process may lead by now"):
                        await api.create(CONFIG_MAP, obj)
                assert says == []
                assert len(arrived) == arrives
            await api.list(CONFIG_MAP)
            assert arrived[-1] == "GET", "reading is free"
    finally:
        await runner.cleanup()
