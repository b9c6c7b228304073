"""Loads in the background: models that load, slowly or not at all, take nothing from those that serve."""

import asyncio
import contextlib
import threading
import time

import pytest
from server_site import ANSWER, until

from tandem_api.report import ModelState
from tandem_server.residency import host, source

pytestmark = pytest.mark.process

LAG_SECONDS = 3.0
"""Generous, for a machine with much else to do: what blocks the loop in these tests does so for three times as long."""
BLOCK_SECONDS = 9.0
COLD = 12
"""More than the threads that asyncio shares on a small machine."""


def chat(name, text="Hi"):
    return {"model": name, "messages": [{"role": "user", "content": text}]}


@contextlib.asynccontextmanager
async def lag():
    """The longest time for which the event loop did not turn, in a list of one."""
    longest = [0.0]

    async def watch():
        last = time.monotonic()
        while True:
            await asyncio.sleep(0.005)
            now = time.monotonic()
            longest[0], last = max(longest[0], now - last), now

    task = asyncio.create_task(watch())
    try:
        yield longest
    finally:
        task.cancel()


async def answers(site, name, text="Hi"):
    made = await site.client.post("/v1/chat/completions", json=chat(name, text))
    assert made.json()["choices"][0]["message"]["content"] == ANSWER, made.text


async def test_a_third_model_that_loads_slowly_takes_nothing_from_two_warm_ones(serve, make_model):
    warm, other, cold = make_model("a"), make_model("b"), make_model("c")
    cold.slow_down()
    site = await serve(load=False)
    entries = [warm.entry("warm"), other.entry("other"), cold.entry("cold")]
    site.pod.manager.apply(site.pod.manager.catalog.model_copy(update={"models": entries}))
    for name in ("warm", "other"):
        site.host(name).want()
    await until(lambda: site.host("warm").loaded and site.host("other").loaded)
    async with lag() as longest:
        waiting = asyncio.create_task(site.client.post("/v1/chat/completions", json=chat("cold")))
        await until(lambda: site.host("cold").progress is not None, "the load's progress")
        for _ in range(20):
            await asyncio.gather(answers(site, "warm"), answers(site, "other"))
        cold_host = site.host("cold")
        assert (cold_host.state, cold_host.loaded, len(cold_host.admission.line.waiting)) == (
            ModelState.LOADING,
            None,
            1,
        )
        assert not waiting.done()
        cold.speed_up()
        assert (await waiting).status_code == 200
    assert longest[0] < LAG_SECONDS
    assert [site.host(name).restarts for name in ("warm", "other", "cold")] == [0, 0, 0]


@pytest.mark.parametrize("step", ["the disk", "the tokenizer"])
async def test_loads_that_hang_hold_up_neither_the_loop_nor_long_prompts(serve, make_model, monkeypatch, step):
    models = [make_model(f"m{number}", context=40_000) for number in range(COLD + 1)]
    site = await serve(load=False, max_loaded=COLD + 1)
    entries = [model.entry(f"m{number}") for number, model in enumerate(models)]
    site.pod.manager.apply(site.pod.manager.catalog.model_copy(update={"models": entries}))
    site.host("m0").want()
    await until(lambda: site.host("m0").loaded)

    released, hanging = threading.Event(), []
    module, name = (source, "_file") if step == "the disk" else (host, "read_checkpoint")
    real = getattr(module, name)

    def hang(*values):
        hanging.append(values)
        released.wait(BLOCK_SECONDS)
        return real(*values)

    monkeypatch.setattr(module, name, hang)
    async with lag() as longest:
        for number in range(1, COLD + 1):
            site.host(f"m{number}").want()
        await until(lambda: len(hanging) == COLD, "all loads to hang at once", BLOCK_SECONDS)
        await answers(site, "m0", "x" * 20_000)
        assert not released.is_set()
        assert not any(site.host(f"m{number}").loaded for number in range(1, COLD + 1))
        assert longest[0] < LAG_SECONDS


async def test_a_load_that_fails_for_ever_holds_up_nobody(serve, make_model):
    warm, broken = make_model("a"), make_model("b", die_at_load="tensor x is missing")
    site = await serve(load=False, backoff_seconds=0.01)
    entries = [warm.entry("warm"), broken.entry("broken")]
    site.pod.manager.apply(site.pod.manager.catalog.model_copy(update={"models": entries}))
    site.host("broken").want()
    await answers(site, "warm")
    await until(lambda: site.host("broken").state is ModelState.FAILED)
    await answers(site, "warm")
    assert site.host("warm").last_error is None
