"""Buffers between host and GPU, none of which is written while a copy may read it; the memory that graphs hold."""

import pytest
import torch

from tandem_api.fit_steps import BYTES_PER_GRAPH, LEAST_SHARE, graph_bytes, workspace_bytes
from tandem_server.engine.native.config import read_decoder_config
from tandem_server.engine.native.kernel_shape import KernelShape
from tandem_server.engine.native.shape import step_shape_of
from tandem_server.engine.native.transfer import PinnedRing, StepInputs, upload

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
