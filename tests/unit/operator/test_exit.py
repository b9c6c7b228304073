"""The end of the operator's process is quiet: a watch that is cut off in the middle of an event is no error."""

import asyncio
import logging
from collections.abc import AsyncIterator

import pytest

from tandem_operator.app import at_exit


def test_a_generator_that_does_not_close_is_not_told_as_an_error(caplog: pytest.LogCaptureFixture) -> None:
    async def stubborn() -> AsyncIterator[int]:
        try:
            yield 1
        finally:
            raise RuntimeError("generator didn't stop after athrow()")

    async def main() -> None:
        asyncio.get_running_loop().set_exception_handler(at_exit)
        kept.append(stubborn())
        await anext(kept[0])

    kept: list[AsyncIterator[int]] = []
    with caplog.at_level(logging.DEBUG):
        asyncio.run(main())
    assert [record.levelname for record in caplog.records if "cut off" in record.message] == ["DEBUG"]
    assert not [record for record in caplog.records if record.levelno >= logging.WARNING]


def test_any_other_trouble_is_told(caplog: pytest.LogCaptureFixture) -> None:
    loop = asyncio.new_event_loop()
    try:
        at_exit(loop, {"message": "a task was destroyed"})
    finally:
        loop.close()
    assert "a task was destroyed" in caplog.text
