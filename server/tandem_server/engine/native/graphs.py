"""CUDA graphs: the kernels of a step recorded once and launched as one, so that the host's work does not set the pace.

Used by the GPU's step, which records a graph for each batch size at load. What a graph reads and writes must stand
still: buffers by slot, block tables, weights, and the memory that its intermediate results got when it was recorded,
which all graphs share, since they follow each other on one stream. Results that a graph makes itself hold until the
next graph runs, and their memory is nobody else's: what is large is written to buffers.
"""

from collections.abc import Callable
from typing import Protocol, TypeVar

import torch

Result = TypeVar("Result")


class Graphs(Protocol):
    """Makes replays."""

    def record(self, compute: Callable[[], Result]) -> Callable[[], Result]:
        """What does again all that `compute` does to the device; its results are always the same tensors.

        `compute` must have run before with the same shapes, so that nothing is compiled or set up while recording.
        """


class CudaGraphs:
    """Real ones, in one pool of memory."""

    def __init__(self) -> None:
        self._pool = torch.cuda.graph_pool_handle()
        self._stream = torch.cuda.Stream()  # type: ignore[no-untyped-call]

    def record(self, compute: Callable[[], Result]) -> Callable[[], Result]:
        graph = torch.cuda.CUDAGraph()
        # Nothing may be recorded on the default stream, and what is recorded is not run: no other stream has to wait.
        with torch.cuda.stream(self._stream):
            # Other threads may go on using the device, which the strictest mode forbids.
            graph.capture_begin(pool=self._pool, capture_error_mode="thread_local")
            try:
                results = compute()
            finally:
                graph.capture_end()

        def replay() -> Result:
            graph.replay()
            return results

        return replay


class NoGraphs:
    """Computes anew each time: where graphs are not to be used, and in tests without a GPU."""

    def record(self, compute: Callable[[], Result]) -> Callable[[], Result]:
        return compute
