"""The informer against a scripted API: lists, watches, 410 Gone, broken and silent watches, repairs."""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import pytest

from tandem_gateway.informer import Informer, Pace, SourceError
from tandem_gateway.objects import ModelView, model_view

FAST = Pace(relist=3600, list_timeout=1, silence=3600, first_backoff=0.001, last_backoff=0.002)


@asynccontextmanager
async def following(source: Any, pace: Pace = FAST) -> AsyncIterator[Informer[ModelView]]:
    informer: Informer[ModelView] = Informer("Models", source, model_view, lambda: None, pace)
    running = asyncio.create_task(informer.run())
    try:
        yield informer
    finally:
        running.cancel()
        await asyncio.wait({running})


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(5):
        while not condition():  # noqa: ASYNC110
            await asyncio.sleep(0.001)


def names(informer: Informer[ModelView]) -> list[str]:
    return sorted(view.name for view in informer.items.values())


@pytest.fixture
def source(behave: Any) -> Any:
    made = behave.source()
    made.put(behave.model("a"))
    return made


async def test_lists_then_follows(source: Any, behave: Any) -> None:
    async with following(source) as informer:
        await asyncio.wait_for(informer.synced.wait(), 5)
        assert names(informer) == ["a"]
        source.put(behave.model("b"))
        await until(lambda: names(informer) == ["a", "b"])
        source.put(behave.model("b", aliases=["c"]))
        await until(lambda: informer.items["uid-default-b"].aliases == ("c",))
        source.remove(source.objects["uid-default-a"])
        await until(lambda: names(informer) == ["b"])
        assert source.lists == 1


async def test_a_broken_watch_goes_on_where_it_was(source: Any, behave: Any) -> None:
    async with following(source) as informer:
        await until(lambda: len(source.watched_from) == 1)
        version = source.bookmark()
        await until(lambda: informer._version == version)
        source.break_watch(SourceError("connection reset"))
        await until(lambda: len(source.watched_from) == 2)
        source.put(behave.model("b"))
        await until(lambda: names(informer) == ["a", "b"])
    assert source.lists == 1
    assert source.watched_from[1] == version


async def test_after_gone_it_lists_anew_and_drops_what_vanished(source: Any, behave: Any) -> None:
    async with following(source) as informer:
        source.put(behave.model("b"))
        await until(lambda: names(informer) == ["a", "b"])
        source.remove(source.objects["uid-default-b"], silently=True)
        source.forget()
        source.break_watch(SourceError("connection reset"))
        await until(lambda: names(informer) == ["a"])
        assert source.lists == 2


async def test_the_repairing_list_finds_what_the_watch_lost(source: Any, behave: Any) -> None:
    pace = Pace(relist=0.05, list_timeout=1, silence=3600, first_backoff=0.001, last_backoff=0.002)
    async with following(source, pace) as informer:
        source.put(behave.model("b"))
        await until(lambda: names(informer) == ["a", "b"])
        source.remove(source.objects["uid-default-b"], silently=True)
        await until(lambda: names(informer) == ["a"])


async def test_a_silent_watch_is_taken_for_dead(source: Any) -> None:
    pace = Pace(relist=3600, list_timeout=1, silence=0.05, first_backoff=0.001, last_backoff=0.002)
    async with following(source, pace) as informer:
        await until(lambda: len(source.watched_from) >= 2)
        assert informer.last_error is not None
        assert "silent" in informer.last_error
        assert names(informer) == ["a"]
        assert not informer.stuck


async def test_an_api_that_fails_is_tried_again_and_told(source: Any) -> None:
    class Failing:
        tries = 0

        async def list(self) -> Any:
            self.tries += 1
            if self.tries < 4:
                raise SourceError("the API server is away")
            return await source.list()

        def watch(self, version: str) -> Any:
            return source.watch(version)

    failing = Failing()
    async with following(failing) as informer:
        await until(lambda: failing.tries == 2)
        assert informer.last_error == "the API server is away"
        assert not informer.synced.is_set()
        await asyncio.wait_for(informer.synced.wait(), 5)
        assert names(informer) == ["a"]


async def test_a_list_that_hangs_is_given_up(source: Any) -> None:
    class Hanging:
        tries = 0

        async def list(self) -> Any:
            self.tries += 1
            if self.tries == 1:
                await asyncio.Event().wait()
            return await source.list()

        def watch(self, version: str) -> Any:
            return source.watch(version)

    pace = Pace(relist=3600, list_timeout=0.05, silence=3600, first_backoff=0.001, last_backoff=0.002)
    async with following(Hanging(), pace) as informer:
        await asyncio.wait_for(informer.synced.wait(), 5)


def test_only_an_informer_that_neither_hears_nor_fails_is_stuck() -> None:
    now = 0.0
    informer: Informer[ModelView] = Informer("Models", None, model_view, lambda: None, Pace(), lambda: now)  # type: ignore[arg-type]
    now = 300.0
    assert not informer.stuck
    assert informer.age == 300
    now = 400.0
    assert informer.stuck
