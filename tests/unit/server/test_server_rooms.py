"""Several models in one pod's memory, over HTTP with fake runners: eviction, keep-alive, yielding, refusals."""

import asyncio
from datetime import UTC, datetime

import pytest
from server_site import until

from tandem_api.fields import Residency
from tandem_api.names import CALLER_HEADER, KEEP_ALIVE_HEADER
from tandem_api.report import ModelState
from tandem_server.residency.ledger import Need
from tandem_server.residency.need import Sized, Sizes

pytestmark = pytest.mark.process
SIZE = 1230
"""Bytes that a fake runner says it holds."""


@pytest.fixture
def rooms(serve, make_model, monkeypatch):
    """Starts a pod with room for some fake models, each of `SIZE` bytes."""
    monkeypatch.setattr(Sizes, "of", lambda sizes, folder, entry, settings: Sized(Need(SIZE, SIZE)))

    async def start(count, room, fields=None, fake=None, **settings):
        models = [make_model(f"m{number}", **(fake or {})) for number in range(count)]
        site = await serve(load=False, **settings)
        site.pod.manager.room.ledger.capacity = [room * SIZE]
        entries = [model.entry(f"m{number}", **(fields or {})) for number, model in enumerate(models)]
        site.pod.manager.apply(site.pod.manager.catalog.model_copy(update={"models": entries}))
        site.models = models
        return site

    return start


async def ask(site, name, caller="", **more):
    """One short answer by Ollama's API."""
    body = {"model": name, "prompt": "Hi", "raw": True, "stream": False, "options": {"num_predict": 3}, **more}
    return await site.client.post("/api/generate", json=body, headers={CALLER_HEADER: caller})


def resident(site):
    """Names of the models that are loaded."""
    return sorted(name for name, host in site.pod.manager.hosts.items() if host.loaded is not None)


async def ps(site):
    """`/api/ps` by name."""
    found = (await site.client.get("/api/ps")).json()["models"]
    return {entry["name"]: entry for entry in found}


async def test_the_longest_unused_model_makes_way_and_no_request_is_lost(rooms):
    site = await rooms(3, room=2)
    for name in ("m0", "m1", "m0"):
        assert (await ask(site, name)).status_code == 200
    assert resident(site) == ["m0", "m1"]
    assert (await ask(site, "m2")).status_code == 200
    assert resident(site) == ["m0", "m2"]
    report = {entry.name: entry for entry in site.pod.report().models}
    assert report["m1"].state is ModelState.UNLOADED
    assert report["m1"].last_error is None
    assert (report["m1"].need_bytes, report["m2"].device, report["m1"].device) == (SIZE, 0, None)
    assert 'tandem_model_unloads_total{model="m1",why="room"} 1.0' in (await site.client.get("/metrics")).text
    room = site.pod.report().room
    assert (room.free_bytes, room.reach_bytes, room.free_seats, room.reach_seats) == (0, 2 * SIZE, 1, 3)


async def test_a_round_of_conversations_over_more_models_than_fit(rooms):
    site = await rooms(3, room=2)
    for _ in range(3):
        answers = await asyncio.gather(*(ask(site, f"m{number}") for number in (0, 1, 2, 0, 1, 2)))
        assert [answer.status_code for answer in answers] == [200] * 6


async def test_a_busy_model_is_not_touched_and_who_waits_for_memory_is_told_so(rooms):
    site = await rooms(2, room=1)
    site.models[0].hold()
    await _loaded(site, "m0")
    running = asyncio.create_task(ask(site, "m0"))
    await until(lambda: site.models[0].admitted())
    waiting = asyncio.create_task(ask(site, "m1"))
    await until(lambda: (progress := site.host("m1").progress) and progress.phase == "waiting for memory")
    assert resident(site) == ["m0"]
    site.models[0].release()
    assert (await running).status_code == 200
    assert (await waiting).status_code == 200
    assert resident(site) == ["m1"]


async def test_a_busy_model_yields_to_one_that_waits_for_long(rooms):
    site = await rooms(2, room=1, fields={"slots": 1})
    times = site.pod.manager.room._times
    site.pod.manager.room._times = type(times)(patience=0.1, stay=0.2, quiet=9.0)
    await _loaded(site, "m0")
    served = 0

    async def keep_busy():
        nonlocal served
        while True:
            assert (await ask(site, "m0")).status_code == 200
            served += 1

    busy = [asyncio.create_task(keep_busy()) for _ in range(3)]
    await until(lambda: served > 3)
    assert (await ask(site, "m1")).status_code == 200
    before = served
    await until(lambda: served > before + 3, "the first model's next turn")
    for task in busy:
        task.cancel()
    await asyncio.gather(*busy, return_exceptions=True)


async def test_what_can_never_fit_is_refused_with_the_numbers(rooms):
    site = await rooms(1, room=0)
    answer = await ask(site, "m0")
    assert answer.status_code == 503
    assert "the model needs at least" in answer.json()["error"]
    assert site.pod.report().models[0].error_reason == "DoesNotFit"


async def test_a_failing_load_gives_its_room_back(rooms):
    site = await rooms(2, room=1, fake={"die_at_load": "a tensor is missing"}, backoff_seconds=30.0)
    site.models[1].write()
    failing = asyncio.create_task(ask(site, "m0"))
    assert (await ask(site, "m1")).status_code == 200
    failing.cancel()
    await asyncio.gather(failing, return_exceptions=True)


async def test_keep_alive_ends_a_model_and_the_next_request_loads_it_again(rooms):
    site = await rooms(1, room=1, fields={"keepAlive": "500ms"})
    assert (await ask(site, "m0")).status_code == 200
    await until(lambda: not resident(site), "the end of the keep-alive")
    assert site.host("m0").state is ModelState.UNLOADED
    assert (await site.client.get("/readyz")).status_code == 200
    assert (await ask(site, "m0")).status_code == 200
    assert site.host("m0").loads == 2


async def test_ps_and_the_report_say_until_when(rooms):
    site = await rooms(1, room=1, fields={"keepAlive": "5m", "keepAliveMax": -1})
    answer = await ask(site, "m0")
    assert KEEP_ALIVE_HEADER not in answer.headers
    ends = datetime.fromisoformat((await ps(site))["m0"]["expires_at"])
    assert 290 < (ends - datetime.now(UTC)).total_seconds() <= 301
    assert site.pod.report().models[0].expires_at is not None
    answer = await ask(site, "m0", keep_alive=-1)
    assert answer.headers[KEEP_ALIVE_HEADER] == "-1"
    assert datetime.fromisoformat((await ps(site))["m0"]["expires_at"]).year > 2100
    assert site.pod.report().models[0].expires_at is None


async def test_a_wish_is_cut_to_the_models_bound_and_told(rooms):
    site = await rooms(1, room=1, fields={"keepAlive": "1m"})
    answer = await ask(site, "m0", keep_alive="2h")
    assert answer.headers[KEEP_ALIVE_HEADER] == "60"


async def test_one_caller_does_not_unload_what_another_uses(rooms):
    site = await rooms(1, room=1, fields={"keepAlive": "5m"})
    await ask(site, "m0", caller="a")
    unload = await site.client.post(
        "/api/generate", json={"model": "m0", "keep_alive": 0, "stream": False}, headers={CALLER_HEADER: "b"}
    )
    assert unload.json()["done_reason"] == "unload"
    assert resident(site) == ["m0"]
    await ask(site, "m0", caller="a", keep_alive=0)
    await until(lambda: not resident(site))


@pytest.mark.parametrize("zero", [0, "0", "0s", 0.0])
async def test_under_one_user_zero_unloads_at_once(rooms, zero):
    site = await rooms(1, room=1, one_user=True)
    await ask(site, "m0", keep_alive="1h")
    body = {"model": "m0", "messages": [], "keep_alive": zero, "stream": False}
    answer = await site.client.post("/api/chat", json=body)
    assert (answer.status_code, answer.json()["done_reason"]) == (200, "unload")
    await until(lambda: not resident(site))
    assert (await site.client.post("/api/chat", json=body)).json()["done_reason"] == "unload"
    assert not resident(site)


async def test_who_comes_while_the_model_is_being_unloaded_is_served(rooms):
    site = await rooms(1, room=1, fields={"keepAlive": 0})
    answers = []
    for _ in range(12):  # each finds the model loaded, on its way out, or gone
        answers.append(await ask(site, "m0"))
        await asyncio.sleep(0)
    assert {answer.status_code for answer in answers} == {200}


async def test_a_pinned_model_stays_whatever_others_need(rooms):
    site = await rooms(2, room=1)
    entries = [entry.model_copy(update={"residency": Residency.PINNED}) if entry.name == "m0" else entry
               for entry in site.pod.manager.catalog.models]  # fmt: skip
    site.pod.manager.apply(site.pod.manager.catalog.model_copy(update={"models": entries}))
    await until(lambda: resident(site) == ["m0"], "the pinned model, which nobody asked for")
    answer = await ask(site, "m1")
    assert answer.status_code == 503
    assert "beside the pinned models m0" in answer.json()["error"]


async def test_more_models_than_may_be_loaded_take_turns(rooms):
    site = await rooms(4, room=9, max_loaded=2)
    for number in range(4):
        assert (await ask(site, f"m{number}")).status_code == 200
        assert len(resident(site)) <= 2
    assert resident(site) == ["m2", "m3"]


async def test_a_crashed_model_gives_its_room_back_and_comes_again(rooms):
    site = await rooms(2, room=1)
    await _loaded(site, "m0")
    crash = await ask(site, "m0", prompt="<|death|>")
    assert crash.status_code == 500
    assert (await ask(site, "m1")).status_code == 200
    assert (await ask(site, "m0")).status_code == 200


async def test_one_user_who_asks_for_more_context_gets_it_by_another_load(rooms):
    site = await rooms(1, room=1, fields={"context": {"length": 64}}, one_user=True)
    assert (await ask(site, "m0")).headers["x-tandem-context-length"] == "64"
    wider = await ask(site, "m0", options={"num_ctx": 128, "num_predict": 3})
    assert (wider.status_code, wider.headers["x-tandem-context-length"]) == (200, "128")
    assert (await ask(site, "m0", options={"num_ctx": 32, "num_predict": 3})).headers[
        "x-tandem-context-length"
    ] == "128"
    assert (await ask(site, "m0", options={"num_ctx": 99_999, "num_predict": 3})).status_code == 200
    assert (await ps(site))["m0"]["context_length"] == 256
    assert site.host("m0").loads == 3


async def test_in_a_shared_pod_more_context_never_reloads(rooms):
    site = await rooms(1, room=1, fields={"context": {"length": 64}})
    answer = await ask(site, "m0", options={"num_ctx": 128, "num_predict": 3})
    assert (answer.status_code, answer.headers["x-tandem-context-length"]) == (200, "64")
    assert site.host("m0").loads == 1


async def test_a_shrunk_model_says_so_and_grows_back_when_memory_is_free(rooms, monkeypatch):
    """One byte a token: two models of 200 tokens each on 300 bytes, of which the first is busy for a while."""
    monkeypatch.setattr(Sizes, "of", lambda sizes, folder, entry, settings: Sized(Need(64, 200)))
    site = await rooms(2, room=1, fake={"token_bytes": 1, "context": 200})
    room = site.pod.manager.room
    room.ledger.capacity = [300]
    room._times = type(room._times)(patience=0.1, stay=60.0, quiet=0.1)
    site.models[0].hold()
    running = asyncio.create_task(ask(site, "m0"))
    await until(lambda: site.models[0].admitted())
    answer = await ask(site, "m1")
    assert (answer.status_code, answer.headers["x-tandem-context-length"]) == (200, "100")
    entry = (await ps(site))["m1"]
    assert (entry["context_length"], entry["tandem"]["context_reason"]) == (
        100,
        "200 tokens were asked for and 100 fit",
    )
    site.models[0].release()
    assert (await running).status_code == 200
    await site.client.post("/api/generate", json={"model": "m0", "keep_alive": 0})
    await until(lambda: (told := site.host("m1").loaded) and told.context == 200, "the model to grow back")
    assert site.host("m1").loads == 2
    report = site.pod.report().models[1]
    assert (report.context_given, report.context_reason) == (200, "")


async def _loaded(site, name):
    site.host(name).want()
    await until(lambda: site.host(name).loaded is not None)
