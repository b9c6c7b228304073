"""Buffers between host and GPU, none of which is written while a copy may read it; the memory that graphs hold."""

import time

import numpy as np
import pytest
import torch

from tandem_api.fit_steps import BYTES_PER_GRAPH, LEAST_SHARE, graph_bytes, workspace_bytes
from tandem_server.engine.native.config import read_decoder_config
from tandem_server.engine.native.cuda import CudaExecutor
from tandem_server.engine.native.kernel_shape import KernelShape
from tandem_server.engine.native.shape import step_shape_of
from tandem_server.engine.native.staging import Staging
from tandem_server.engine.native.transfer import PinnedRing, StepInputs, upload, upload_each

pytestmark = pytest.mark.torch

CPU = torch.device("cpu")


class Fence:
    def __init__(self) -> None:
        self.waited = 0

    def synchronize(self) -> None:
        self.waited += 1


def test_a_buffer_is_handed_out_again_only_after_the_copy_that_used_it():
    ring = PinnedRing((3,), torch.int64, CPU, count=3)
    fences, seen = [Fence() for _ in range(7)], []
    for number, fence in enumerate(fences):
        buffer = ring.take()
        seen.append(buffer.tensor.data_ptr())
        assert [other.waited for other in fences[:number]] == [int(other <= number - 3) for other in range(number)]
        ring.used_until(fence)
    assert len(set(seen)) == 3
    assert seen[:3] == seen[3:6]


def test_the_host_writes_what_the_device_reads():
    ring = PinnedRing((2,), torch.int32, CPU)
    buffer = ring.take()
    buffer.array[:] = (4, 5)
    assert buffer.tensor.tolist() == [4, 5]


def test_a_steps_inputs_replace_those_of_the_step_before():
    inputs = StepInputs(4, CPU)
    lengths, taken, positions = inputs.lengths, inputs.taken, inputs.positions
    inputs.write({0: 7, 3: 9}, [(3, 9), (1, 2)])
    assert lengths.tolist() == [7, 0, 0, 9]
    assert taken.tolist() == [0, 1, 0, 1]
    assert positions.tolist() == [0, 2, 0, 9]
    inputs.write({1: 1}, ())
    assert (lengths.tolist(), taken.tolist(), positions.tolist()) == ([0, 1, 0, 0], [0] * 4, [0] * 4)


class LateCopies:
    """Copies nothing before somebody waits for it, as a device may."""

    def __init__(self) -> None:
        self._queued: list[tuple[torch.Tensor, torch.Tensor]] = []

    def begin(self) -> None:
        assert not self._queued

    def copy(self, target, source):
        self._queued.append((target, source))
        return LateFence(self, len(self._queued))

    def end(self) -> None:
        self.carry_out(len(self._queued))

    def carry_out(self, count: int) -> None:
        for target, source in self._queued[:count]:
            target.copy_(source)
        # Fences count from the first copy of the tensor.
        self._queued[:count] = [(target, target) for target, _ in self._queued[:count]]
        if count == len(self._queued):
            self._queued.clear()


class LateFence:
    def __init__(self, copies: LateCopies, count: int) -> None:
        self._copies, self._count = copies, count

    def synchronize(self) -> None:
        self._copies.carry_out(self._count)


def test_moments_of_the_device_are_told_from_a_recent_one():
    """A float of 24 bits, as the driver gives, counts no tenths of a millisecond after half an hour."""

    class Event:
        def __init__(self, at: float) -> None:
            self.at = at

        def elapsed_time(self, other: "Event") -> float:
            return float(np.float32((other.at - self.at) * 1000))

    executor = CudaExecutor.__new__(CudaExecutor)
    executor._anchor, executor._anchored = Event(0.0), 100.0
    for second in range(1, 5001):
        event = Event(second * 1.1)
        happened = executor.on_host_clock(event)
        executor.anchor(event, happened)
    assert abs(happened - (100.0 + 5500.0)) < 1e-3
    executor.anchor(Event(1e9), 1e9)
    assert executor._anchored <= time.perf_counter()


@pytest.mark.parametrize("shape", [(3,), (64,), (65,), (1, 0), (37, 11)])
def test_a_checkpoints_tensor_goes_through_two_buffers_none_of_which_is_written_while_it_is_read(shape):
    staging = Staging(CPU, LateCopies(), size=128)
    for seed in range(2):
        tensor = torch.randn(shape, generator=torch.Generator().manual_seed(seed))
        source = tensor.clone()
        moved = staging.upload(source)
        source.fill_(7)
        assert torch.equal(moved, tensor)
    turned = torch.arange(12.0).view(3, 4).t().bfloat16()
    assert torch.equal(staging.upload(turned), turned)


def test_numbers_that_go_up_together_begin_where_kernels_want_them():
    arrays = [np.arange(n, dtype=np.int32).reshape(-1, width) for n, width in ((5, 1), (0, 4), (8, 4), (1, 1))]
    tensors = upload_each(arrays, CPU)
    assert [tensor.tolist() for tensor in tensors] == [array.ravel().tolist() for array in arrays]
    assert all(tensor.storage_offset() % 4 == 0 for tensor in tensors)


def test_an_upload_has_the_numbers_and_the_format():
    tensor = upload([[1, 2], [3, 4]], torch.int32, CPU)
    assert tensor.tolist() == [[1, 2], [3, 4]]
    assert tensor.dtype == torch.int32


@pytest.mark.parametrize(
    ("capacity", "processors", "shares"), [(512, 132, 4), (4096, 132, 32), (65_536, 132, 64), (65_536, 20, 8)]
)
def test_a_sequence_alone_keeps_the_processors_busy_and_no_share_is_too_short(capacity, processors, shares):
    shape = KernelShape(8, 4, 128, capacity, 2, processors)
    assert shape.shares == shares
    assert capacity // shape.shares >= LEAST_SHARE


def test_what_graphs_hold_is_counted_by_slots_workspace_and_number(make_checkpoint):
    config = step_shape_of(read_decoder_config(make_checkpoint("LlamaForCausalLM")))
    small, large = (graph_bytes(config, slots, 2, 0, 0) for slots in (8, 16))
    assert large == 2 * small
    assert graph_bytes(config, 8, 2, 1000, 5) == small + 1000 + 5 * BYTES_PER_GRAPH
    assert small > 8 * config.vocabulary * 6
    assert workspace_bytes(config, 10, 3) == 10 * 4 * 3 * (16 + 2) * 4
