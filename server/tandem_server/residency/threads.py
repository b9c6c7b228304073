"""Runs what may block for long (a start, a slow disk) on a thread of its own, away from everything else.

Beside the path of a load. Not asyncio's shared threads: those make the prompts of models that serve, and a few loads
that hang on a disk would take them all. Such a thread is a daemon, so that a disk that never answers does not hold
up the end of the process either.
"""

import asyncio
import threading
from collections.abc import Callable
from typing import Any, TypeVar

T = TypeVar("T")


async def in_thread(function: Callable[..., T], *values: Any) -> T:
    """What `function(*values)` gives or raises. When the wait is cancelled, the thread goes on by itself."""
    loop = asyncio.get_running_loop()
    future: asyncio.Future[T] = loop.create_future()

    def settle(result: T | None, error: BaseException | None) -> None:
        if future.done():
            return
        if error is not None:
            future.set_exception(error)
        else:
            future.set_result(result)  # type: ignore[arg-type]

    def run() -> None:
        result: T | None = None
        error: BaseException | None = None
        try:
            result = function(*values)
        except BaseException as raised:  # noqa: BLE001 - handed to the one who waits
            error = raised
        try:
            loop.call_soon_threadsafe(settle, result, error)
        except RuntimeError:  # the loop is closed: nobody waits any more
            return

    threading.Thread(target=run, name=f"load: {getattr(function, '__name__', 'step')}", daemon=True).start()
    return await future
