"""The GPU's attention kernels, computed by triton's interpreter, against float64: blocks lie anywhere, unwritten
positions are NaN, and so is the memory for partial results."""

import dataclasses
import re

import pytest

pytestmark = pytest.mark.torch

pytest.importorskip("triton", reason="triton is not installed; it comes with torch for CUDA")

from kernel_cases import (  # noqa: E402
    Case,
    Interpreter,
    attention_error,
    crowd_changes,
    decoder_error,
    experts_error,
    gate_error,
    prompt_error,
    write_problems,
)

EXACT, HALF = 2e-6, 4e-3
BORDERS = (0, 1, 31, 32, 33, 63, 64, 65, 95, 96, 97, 127, 128)


@pytest.fixture(scope="module")
def interpreter():
    worker = Interpreter()
    yield worker
    worker.close()


def test_every_length_around_the_borders_of_blocks_and_shares(interpreter):
    assert interpreter.run(attention_error, Case(BORDERS)) < EXACT


@pytest.mark.parametrize("length", [160, 161, 256])
def test_shares_grow_with_the_sequence(interpreter, length):
    assert interpreter.run(attention_error, Case((length, 3), capacity=256, processors=1)) < EXACT


@pytest.mark.parametrize(("group", "size"), [(1, 80), (3, 96), (4, 128), (8, 256), (20, 64)])
def test_groups_and_sizes(interpreter, group, size):
    assert interpreter.run(attention_error, Case((1, 70, 128), group=group, size=size)) < EXACT


@pytest.mark.parametrize(
    "special",
    [
        {"cap": 2.0},
        {"window": 40},
        {"window": 1},
        {"sinks": True},
        {"cap": 2.0, "window": 33, "sinks": True},
    ],
    ids=str,
)
def test_caps_windows_and_sinks(interpreter, special):
    case = Case((0, 1, 40, 41, 73, 128), kv_heads=2, group=1, **special)
    assert interpreter.run(attention_error, case) < EXACT


@pytest.mark.parametrize(
    ("dtype", "query"),
    [("float16", "float16"), ("bfloat16", "bfloat16"), ("float8_e4m3fn", "float16"), ("float8_e4m3fn", "bfloat16")],
)
def test_narrow_formats(interpreter, dtype, query):
    # The interpreter truncates where a GPU rounds to bfloat16.
    tolerance = HALF * (4 if query == "bfloat16" else 1)
    case = Case((1, 50, 128), dtype=dtype, query=query)
    if dtype == "float8_e4m3fn":
        case = dataclasses.replace(case, key_scale=0.5, value_scale=2.0)
        tolerance *= 2
    assert interpreter.run(attention_error, case) < tolerance


def test_a_row_has_the_same_bits_alone_and_in_a_crowd(interpreter):
    case = Case((128, 0, 33, 96, 5), sinks=True, window=100)
    assert interpreter.run(crowd_changes, case) == []


PARTS = [(1, 0, 70), (0, 5, 1), (2, 60, 68), (3, 127, 1)]


@pytest.mark.parametrize(
    "special",
    [
        {"group": 4, "size": 128},
        {"group": 3, "size": 80},
        {"group": 20, "size": 64},
        {"window": 40},
        {"window": 1},
        {"cap": 2.0, "window": 33, "sinks": True, "kv_heads": 2},
    ],
    ids=str,
)
def test_many_tokens_of_many_prompts(interpreter, special):
    assert interpreter.run(prompt_error, Case((128,) * 4, **special), PARTS) < EXACT


def test_prompts_in_narrow_formats(interpreter):
    case = Case((128,) * 4, dtype="float8_e4m3fn", query="float16", key_scale=0.5, value_scale=2.0)
    assert interpreter.run(prompt_error, case, PARTS) < 2 * HALF


@pytest.mark.parametrize(
    ("dtype", "query", "scale"),
    [
        ("float32", "float32", 1.0),
        ("bfloat16", "bfloat16", 1.0),
        ("float16", "float16", 1.0),
        ("float8_e4m3fn", "float32", 2.0),
    ],
)
def test_new_keys_and_values_go_to_the_last_position_and_nowhere_else(interpreter, dtype, query, scale):
    case = Case((0, 1, 33, 128), kv_heads=2, size=80, dtype=dtype, query=query, key_scale=scale, value_scale=1 / scale)
    assert interpreter.run(write_problems, case) == []
    assert interpreter.run(write_problems, case, False, None, False, True) == []


def test_keys_and_queries_are_normed_and_turned(interpreter):
    case = Case((2, 0, 65), kv_heads=2, group=2)
    assert interpreter.run(write_problems, case, True) == []
    assert interpreter.run(write_problems, dataclasses.replace(case, size=80), True, 32, True) == []
    assert interpreter.run(write_problems, dataclasses.replace(case, group=5), True, 32, True, True) == []


@pytest.mark.parametrize("special", [False, True])
@pytest.mark.parametrize("rows", [2, 30])
def test_experts_whose_rows_the_host_does_not_know(interpreter, rows, special):
    difference, same = interpreter.run(experts_error, rows, special)
    assert difference < 2e-6
    assert same, "a row has other bits than alone"


@pytest.mark.parametrize("activation", ["silu", "gelu", "gelu_tanh"])
def test_the_gate(interpreter, activation):
    assert interpreter.run(gate_error, 1500, activation) < 2e-5


LONGROPE = {
    "rope_type": "longrope",
    "rope_theta": 1e4,
    "short_factor": [1.0, 1.1, 1.3, 1.7, 2.0, 2.1, 2.2, 2.3],
    "long_factor": [1.5, 2.5, 4.0, 8.0, 9.0, 9.0, 9.0, 9.0],
    "original_max_position_embeddings": 40,
}


@pytest.mark.parametrize(
    ("architecture", "special"),
    [
        ("Qwen3ForCausalLM", {"head_dim": 32}),
        ("Gemma2ForCausalLM", {"head_dim": 16, "sliding_window": 50}),
        ("Phi3ForCausalLM", {"rope_parameters": LONGROPE, "original_max_position_embeddings": 40}),
    ],
)
def test_a_decoder_gives_the_same_by_the_kernels_and_by_torch(interpreter, make_checkpoint, architecture, special):
    """Norms, positions, caches and all: the numbers of the CPU's way, which is compared with transformers elsewhere."""
    folder = make_checkpoint(architecture, **special)
    assert max(interpreter.run(decoder_error, str(folder), [45, 0, 4])) < 2e-5


LEAST_SHARED = {80: 101_376, 90: 232_448}
"""Bytes of shared memory that a program may have; 80 stands for its kin 86 and 89 too, which have less than it."""


@pytest.mark.parametrize(("processor", "size"), [(80, 128), (90, 128), (90, 256)])
def test_the_kernels_compile_for_a_gpu_that_is_not_here(processor, size, monkeypatch, tmp_path):
    """Down to machine code, with the assembler that comes with triton: what an interpreter accepts a GPU may not.

    Numbers of 32 bits are widened before they are multiplied: a cache may have more places than those count.
    """
    import torch
    import triton
    from triton.backends.compiler import GPUTarget

    from tandem_server.engine.native import expert_kernels, prompt_kernels
    from tandem_server.engine.native import paged_kernels as kernels
    from tandem_server.engine.native.paged_attention import JOINED_AT_ONCE, OPERANDS, KernelShape

    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))
    cache, element = ("fp8e4nv", 1) if processor >= 89 and size == 128 else ("bf16", 2)
    shape, operand = KernelShape(8, 4, size, 2048, element, 132), OPERANDS[torch.bfloat16]
    cut = {"SIZE": size, "SIZE_WIDE": size, "SHARES": shape.shares, "LEAST_TILES": 2, "TILE": shape.tile, "WINDOW": 512}
    common = {"layer": f"*{cache}", "tables": "*i32", "lengths": "*i32"}
    results = {"partial": "*fp32", "most_of": "*fp32", "sum_of": "*fp32"}
    share = {"KV_HEADS": 8, "GROUP": 4, "GROUP_WIDE": 16, "BLOCK": 32, "CAPPED": True, "OPERAND": operand}
    prompt = {name: value for name, value in {**cut, **share}.items() if name not in ("SHARES", "LEAST_TILES")}
    floats = dict.fromkeys(("scale", "cap", "value_scale", "epsilon", "key_factor", "value_factor"), "fp32")
    floats |= {"limit": "fp32", "alpha": "fp32", "sinks": "*fp32"}
    bf16 = ("query", "out", "projected", "query_norm", "key_norm", "cosines", "sines", "both", "x", "weights", "biases")
    pointers = {**dict.fromkeys((*bf16, "factors"), "*bf16"), **common, **results, **floats, "seats": "*i32"}
    pointers |= {"starts": "*i64", "work": "*i32", **dict.fromkeys(("experts", "order", "firsts", "counts"), "*i64")}
    rows = shape.prompt_rows(2)
    experts = {"INPUTS": 2048, "OUTPUTS": 1500, "CHOSEN": 8, "BIASED": True, "WEIGHTED": True, "OPERAND": operand}
    launches = [
        (kernels.attend_share, {**cut, **share}, 4, 3),
        (
            kernels.join_shares,
            {**cut, "HEADS": 32, "AT_ONCE": JOINED_AT_ONCE, "SINKS": True},
            4,
            3,
        ),
        (
            prompt_kernels.attend_prompt,
            {**prompt, "GROUP_WIDE": 4, "ROWS": rows, "SINKS": True},
            8 if rows >= 128 else 4,
            2,
        ),
    ]
    if size == 128:
        launches += [
            (
                kernels.turn_and_write,
                {
                    **{"HEADS": 32, "KV_HEADS": 8, "SIZE": 128, "SIZE_WIDE": 128, "ROTATED": 64, "BLOCK": 32},
                    **{"NORMED": True, "STARTS": True, "SEATED": True, "AT_ONCE": 8, "LIMIT": 448.0},
                },
                4,
                3,
            ),
            (kernels.gate, {"WIDTH": 3000, "PART": 1024, "ACTIVATION": "gelu_tanh", "LIMITED": False}, 4, 3),
            (expert_kernels.multiply, {**experts, "ROWS": 16, "COLUMNS": 64, "DEPTH": 64, "SORTED": False}, 4, 4),
            (expert_kernels.multiply, {**experts, "ROWS": 64, "COLUMNS": 128, "DEPTH": 64, "SORTED": True}, 4, 4),
        ]
    for kernel, constants, warps, stages in launches:
        names = kernel.arg_names
        signature = {name: "constexpr" if name in constants else pointers.get(name, "i32") for name in names}
        fixed = {(names.index(name),): value for name, value in constants.items()}
        aligned = {(names.index(name),): [["tt.divisibility", 16]] for name in names if signature[name][0] in "*i"}
        source = triton.compiler.ASTSource(fn=kernel, signature=signature, constexprs=fixed, attrs=aligned)
        made = triton.compile(
            source, target=GPUTarget("cuda", processor, 32), options={"num_warps": warps, "num_stages": stages}
        )
        assert made.asm["cubin"]
        assert made.metadata.shared <= LEAST_SHARED[processor], kernel.__name__
        strides = "|".join(name for name in names if name.endswith(("_row", "layer_head")))
        uses = re.findall(rf"^ *%\S+ = ([\w.]+) .*%(?:{strides})\b", made.asm["ttir"], re.M) if strides else []
        assert uses or not strides
        assert set(uses) <= {"arith.extsi", "tt.splat"}, (kernel.__name__, uses)
