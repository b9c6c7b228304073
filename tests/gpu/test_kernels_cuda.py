"""The Triton kernels on a GPU against float64: longer sequences and more heads than an interpreter could do.

`make test-gpu`. Skipped where there is no CUDA device.
"""

import dataclasses

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("triton")

from kernel_cases import (  # noqa: E402
    Case,
    attention_error,
    crowd_changes,
    experts_error,
    gate_error,
    prompt_error,
    write_problems,
)

from tandem_server.engine.native.kernel_shape import LEAST_SHARE, KernelShape  # noqa: E402
from tandem_server.engine.native.paged_attention import PagedAttention  # noqa: E402

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no CUDA device")

BORDERS = tuple(n + d for n in (0, 32, 64, 128, 256, 512, 1024, 2048) for d in (-1, 0, 1) if 0 <= n + d <= 2048)
BASE = Case(
    BORDERS,
    kv_heads=4,
    group=4,
    size=128,
    capacity=2048,
    dtype="bfloat16",
    query="bfloat16",
    processors=132,
    least_share=LEAST_SHARE,
    device="cuda",
)
needs_fp8 = pytest.mark.skipif(
    torch.cuda.is_available() and torch.cuda.get_device_capability() < (8, 9), reason="the GPU has no FP8"
)


@pytest.mark.parametrize(
    ("special", "tolerance"),
    [
        ({}, 1e-2),
        ({"dtype": "float16", "query": "float16"}, 2e-3),
        ({"dtype": "float32", "query": "float32"}, 1e-5),
        ({"group": 1, "size": 80}, 1e-2),
        ({"group": 3, "size": 96}, 1e-2),
        ({"group": 8, "size": 64}, 1e-2),
        ({"group": 8, "size": 256, "kv_heads": 2}, 1e-2),
        ({"cap": 5.0, "window": 300, "sinks": True}, 1e-2),
        ({"window": 1}, 1e-2),
    ],
    ids=str,
)
def test_attention(special, tolerance):
    assert attention_error(dataclasses.replace(BASE, **special)) < tolerance


PARTS = [(0, 0, 700), (1, 0, 1), (2, 1900, 100), (3, 63, 65), (4, 512, 130)]


@pytest.mark.parametrize(
    ("special", "tolerance"),
    [
        ({}, 1e-2),
        ({"dtype": "float16", "query": "float16"}, 2e-3),
        ({"dtype": "float32", "query": "float32"}, 1e-5),
        ({"group": 3, "size": 80}, 1e-2),
        ({"group": 8, "size": 64}, 1e-2),
        ({"group": 2, "size": 256, "kv_heads": 2}, 1e-2),
        ({"cap": 5.0, "window": 300, "sinks": True}, 1e-2),
    ],
    ids=str,
)
def test_prompts(special, tolerance):
    assert prompt_error(dataclasses.replace(BASE, lengths=(2048,) * 5, **special), PARTS) < tolerance


@needs_fp8
def test_prompts_from_fp8():
    case = dataclasses.replace(BASE, lengths=(2048,) * 5, dtype="float8_e4m3fn", key_scale=0.5, value_scale=2.0)
    assert prompt_error(case, PARTS) < 2e-2


@pytest.mark.parametrize("special", [False, True])
@pytest.mark.parametrize("rows", [1, 2, 40, 600])
def test_experts(rows, special):
    difference, same = experts_error(rows, special, "float32", "cuda")
    assert difference < 1e-5
    assert same
    assert experts_error(rows, special, "bfloat16", "cuda")[0] < 0.1


@needs_fp8
@pytest.mark.parametrize("query", ["bfloat16", "float16", "float32"])
def test_fp8(query):
    case = dataclasses.replace(BASE, dtype="float8_e4m3fn", query=query, key_scale=0.5, value_scale=2.0)
    assert attention_error(case) < (1e-5 if query == "float32" else 2e-2)
    small = dataclasses.replace(case, lengths=(0, 1, 33, 2048), query="float32")
    assert write_problems(dataclasses.replace(small, key_scale=2.0)) == []


def test_a_row_has_the_same_bits_alone_and_in_a_crowd():
    assert crowd_changes(dataclasses.replace(BASE, lengths=(2048, 0, 33, 1000, 5, 129, 513), sinks=True)) == []


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_new_keys_and_values(dtype):
    assert write_problems(dataclasses.replace(BASE, dtype=dtype, query=dtype)) == []


def test_norms_and_positions():
    case = dataclasses.replace(BASE, dtype="float32", query="float32", lengths=(1, 0, 700))
    assert write_problems(case, True) == []
    assert write_problems(dataclasses.replace(case, size=80), True, 32, True) == []
    assert write_problems(dataclasses.replace(case, size=80), True, 32, True, True) == []


@pytest.mark.parametrize("activation", ["silu", "gelu", "gelu_tanh"])
def test_the_gate(activation):
    assert gate_error(12_288, activation, "cuda") < 1e-4


@needs_fp8
def test_places_beyond_what_32_bits_count():
    """A cache of more than 2**31 numbers, the sequence in its last blocks."""
    size, positions = 128, (1 << 21) + 1024
    cache = torch.empty(16, positions, size, dtype=torch.float8_e4m3fn, device="cuda")
    shape = KernelShape(8, 1, size, 1024, 1, 132)
    attention = PagedAttention(shape, 1, torch.bfloat16, cache.device)
    blocks = positions // 32
    tables = torch.arange(blocks - 32, blocks, dtype=torch.int32, device="cuda")[None]
    lengths = torch.tensor([1024], dtype=torch.int32, device="cuda")
    new = torch.randn(1, 24, size, device="cuda", dtype=torch.bfloat16)
    turn = torch.ones(1024, size, device="cuda"), torch.zeros(1024, size, device="cuda")
    cache[:, -1024:] = torch.zeros(16, 1024, size, device="cuda").to(cache.dtype)
    query = attention.turn_and_write(new, (None, None), 1e-6, turn, cache, tables, lengths)
    assert torch.equal(cache[8:, -1].float(), new[0, 16:].to(cache.dtype).float())
    mixed = attention.attend(query, cache, tables, lengths, scale=0.0)
    assert torch.allclose(mixed[0, :, 0].float(), cache[8:, -1].float() / 1024, rtol=1e-2, atol=1e-5)
