"""Gives each of OpenMP's threads a CPU of its own while an engine on a CPU serves.

Called by the engine. Its threads sleep between steps (see `tandem_server.engine`), and Linux likes to wake a thread
where the one that wakes it runs: two threads then share a CPU while another idles, for seconds at a time, and a step
takes two to three times as long. Only where the threads are as many as the CPUs that this process may use: anywhere
else a fixed choice could be a bad one, and runners of the same machine would all make the same.
"""

import ctypes
import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager

log = logging.getLogger("tandem.runner")


@contextmanager
def own_cpus(threads: int, caller: bool) -> Iterator[None]:
    """The threads that compute for the calling thread stay where they are put until this ends.

    The calling thread is one of them. With `caller` it is put as well: the threads that it starts within inherit that.
    """
    cpus = sorted(os.sched_getaffinity(0))
    if threads < 2 or threads != len(cpus) or not _place(threads, [{cpu} for cpu in cpus], caller):
        yield
        return
    try:
        yield
    finally:
        _place(threads, [set(cpus)] * threads, caller)


def _place(threads: int, places: list[set[int]], caller: bool) -> bool:
    """Has each thread of the pool choose its CPUs; False where the pool is not GNU OpenMP's."""
    try:
        parallel = ctypes.CDLL("libgomp.so.1").GOMP_parallel  # the one that torch has loaded
        number = ctypes.CDLL("libgomp.so.1").omp_get_thread_num
    except (OSError, AttributeError) as error:
        log.warning("OpenMP's threads keep the places that the system gives them: %s", error)
        return False

    def choose(_: int | None) -> None:
        own = number()
        if own or caller:
            os.sched_setaffinity(0, places[own])

    parallel(ctypes.CFUNCTYPE(None, ctypes.c_void_p)(choose), None, ctypes.c_uint(threads), ctypes.c_uint(0))
    return True
