"""Estimates made from files alone are what the engine then allocates: to the byte, or never below where so told."""

import json
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from family_cases import CASES
from test_native_embeddings import add_dense, with_pooling
from test_native_library import ONE_BY_ONE, TOGETHER

from tandem_api.fields import Device
from tandem_api.fit import CPU_FIXED, GPU_FIXED, Fit, Refusal, Wish
from tandem_api.fit_steps import Steps
from tandem_api.fit_weights import Packing
from tandem_server.engine.estimate import estimate
from tandem_server.engine.interface import DoesNotFit, LoadError
from tandem_server.engine.native.checkpoint import Checkpoint
from tandem_server.engine.native.config import read_decoder_config
from tandem_server.engine.native.decoder import Decoder
from tandem_server.engine.native.encoder import load_encoder
from tandem_server.engine.native.headers import read_headers
from tandem_server.engine.native.linear import PlainLinear
from tandem_server.engine.native.load import load_generator
from tandem_server.engine.native.quantized import Layout, layout_for
from tandem_server.engine.native.shape import inventory_of
from tandem_server.engine.native.weights import load_decoder
from tandem_server.engine.wire import RunnerSpec

pytestmark = pytest.mark.torch

MIB = 1 << 20
CPU = torch.device("cpu")
QUIET = lambda *_: None  # noqa: E731
ON_CPU = Wish(device=Device.CPU, dtype="Float32", slots=3, context=1000)


@pytest.mark.parametrize("case", CASES)
def test_weights_and_contexts_of_every_family_are_known_to_the_byte(case, make_checkpoint):
    architecture, overrides = CASES[case]
    folder = make_checkpoint(architecture, **overrides)
    config, before = read_decoder_config(folder), estimate(folder, ON_CPU)
    weights = load_decoder(Checkpoint(folder, QUIET), config, torch.float32, CPU)
    decoder = Decoder(config, weights, 3, 1000)
    assert before.footprint.weights == weights.bytes
    assert before.footprint.parameters == weights.parameters
    assert before.parts_at(1000).cache == decoder.cache_bytes
    assert before.footprint.bounds == ()
    # Matrices as a GPU holds them, where a tied table is there once.
    plain = load_decoder(Checkpoint(folder, QUIET), config, torch.bfloat16, CPU, Layout(PlainLinear))
    assert inventory_of(config).bytes(Packing(2, on_gpu=True)) == plain.bytes
    assert estimate(folder, replace(ON_CPU, device=Device.GPU, dtype="BFloat16")).footprint.weights == plain.bytes


@pytest.mark.parametrize("kind", ["Int8", "Int4"])
@pytest.mark.parametrize(
    "case", ["llama-biases", "qwen2-window", "mixtral", "gpt-oss", "gemma2", "qwen3-moe-some-dense"]
)
def test_quantised_weights_are_known_to_the_byte(case, kind, make_checkpoint):
    architecture, overrides = CASES[case]
    folder = make_checkpoint(architecture, **overrides)
    config, before = read_decoder_config(folder), estimate(folder, replace(ON_CPU, dtype="Auto", quantization=kind))
    weights = load_decoder(Checkpoint(folder, QUIET), config, torch.bfloat16, CPU, layout_for(kind, CPU, 3))
    assert before.footprint.weights == weights.bytes


@pytest.mark.parametrize("case", [*TOGETHER, *ONE_BY_ONE])
def test_the_librarys_models_are_never_more_than_foretold(case, make_checkpoint):
    architecture, overrides = {**TOGETHER, **ONE_BY_ONE}[case]
    folder = make_checkpoint(architecture, **overrides)
    before = estimate(folder, replace(ON_CPU, context=400))
    spec = RunnerSpec("m", str(folder), "", dtype="Float32", slots=3, threads=1, context=400)
    loaded = load_generator(spec, QUIET).loaded
    assert "the transformers library computes it" in " ".join(before.footprint.bounds)
    assert loaded.weight_bytes <= before.footprint.weights <= 1.25 * loaded.weight_bytes
    assert loaded.cache_bytes <= before.parts_at(400).cache
    assert loaded.context_limit == before.footprint.context_limit


@pytest.mark.parametrize("architecture", ["BertModel", "XLMRobertaModel", "MPNetModel", "DistilBertModel"])
def test_encoders_are_known_but_for_their_steps(architecture, make_checkpoint):
    overrides = {"dim": 64, "n_heads": 4, "n_layers": 2} if architecture == "DistilBertModel" else {}
    folder = make_checkpoint(architecture, **overrides)
    before = estimate(folder, Wish(device=Device.CPU, context=5000))
    loaded = load_encoder(RunnerSpec("e", str(folder), "", context=5000, threads=1), QUIET).loaded
    assert before.footprint.weights == loaded.weight_bytes
    assert (before.footprint.token, before.asked) == (0, loaded.context)
    given = before.fitting(10**12)
    assert isinstance(given, Fit)
    assert given.context == loaded.context
    assert isinstance(before.fitting(MIB), Refusal)


def test_layers_behind_the_pooling_count(make_checkpoint, tmp_path):
    folder = with_pooling(make_checkpoint("BertModel"), tmp_path / "m", {"pooling_mode_cls_token": True}, max_tokens=60)
    add_dense(folder, 2, 64, 48, True, "Tanh")
    before = estimate(folder, Wish(device=Device.CPU))
    loaded = load_encoder(RunnerSpec("e", str(folder), "", threads=1), QUIET).loaded
    assert (before.footprint.weights, before.asked) == (loaded.weight_bytes, 60)


def test_an_estimate_needs_no_torch_and_no_weights(make_checkpoint, tmp_path):
    """The front end asks it, and `tandem plan` of a model whose headers alone it has."""
    folder = make_checkpoint("LlamaForCausalLM")
    shutil.copy(folder / "config.json", tmp_path)
    code = (
        "import sys; from pathlib import Path; from tandem_api.fit import Wish\n"
        "from tandem_server.engine.estimate import estimate\n"
        f"print(estimate(Path({str(tmp_path)!r}), Wish()).wanted_bytes)\n"
        "print([name for name in ('torch', 'transformers', 'numpy') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split("\n")[:2] == [str(estimate(folder, Wish()).wanted_bytes), "[]"]


def test_headers_take_the_place_of_weights_that_are_not_at_hand(make_checkpoint, tmp_path):
    folder = make_checkpoint("BertModel")
    shutil.copy(folder / "config.json", tmp_path)
    afar = estimate(tmp_path, Wish(device=Device.CPU), read_headers(folder))
    assert afar.wanted_bytes == estimate(folder, Wish(device=Device.CPU)).wanted_bytes
    with pytest.raises(LoadError, match=r"has no model\.safetensors"):
        estimate(tmp_path, Wish(device=Device.CPU))


@pytest.mark.parametrize(
    ("changes", "wish", "said"),
    [
        ({"quantization_config": {"quant_method": "awq"}}, Wish(), "the weights are quantised"),
        ({}, Wish(dtype="Float8"), "dtype Float8 is not known"),
        ({"architectures": ["Olmo2ForCausalLM"]}, Wish(quantization="Int8"), "is for models with a fused decoder"),
        ({"architectures": ["Olmo2ForCausalLM"], "num_hidden_layers": 0}, Wish(), "does not say num_hidden_layers"),
        ({"architectures": ["BertModel"]}, Wish(quantization="Int4"), "is for models that make text"),
    ],
)
def test_what_would_not_load_is_refused_before_a_runner_starts(changes, wish, said, make_checkpoint, tmp_path):
    folder = make_checkpoint("LlamaForCausalLM")
    raw = json.loads((folder / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({**raw, **changes}))
    shutil.copy(folder / "model.safetensors", tmp_path)
    with pytest.raises(LoadError, match=said):
        estimate(tmp_path, wish)


def test_what_is_assumed_is_told_and_a_measured_overhead_takes_its_place(make_checkpoint):
    folder = make_checkpoint("LlamaForCausalLM", dtype="bfloat16")
    auto = estimate(folder, Wish(device=Device.CPU))
    assert auto.footprint.dtype == "Float32"
    assert "measured at load" in auto.footprint.bounds[0]
    on_gpu = estimate(folder, Wish())
    assert (on_gpu.footprint.dtype, on_gpu.footprint.fixed) == ("BFloat16", GPU_FIXED)
    assert "are assumed for the driver's context" in on_gpu.footprint.bounds[0]
    assert isinstance(on_gpu.footprint.steps, Steps)
    assert estimate(folder, Wish(device=Device.CPU), fixed=5).footprint.fixed == 5
    assert auto.footprint.fixed == CPU_FIXED


def load(folder: Path, **settings):
    spec = RunnerSpec("m", str(folder), "", **{"dtype": "Float32", "slots": 4, "threads": 1, **settings})
    return load_generator(spec, QUIET).loaded


def test_a_runner_keeps_to_its_limit(make_checkpoint, monkeypatch):
    """What the process holds already counts; with what is left it shrinks, or says by how much it falls short."""
    folder = make_checkpoint("LlamaForCausalLM", max_position_embeddings=8192)
    monkeypatch.setattr("tandem_server.engine.native.resources.resident_bytes", lambda: 300 * MIB)
    whole = estimate(folder, Wish(device=Device.CPU, dtype="Float32", slots=4), fixed=300 * MIB)
    exact = load(folder, memory_limit=whole.bytes_at(8192) - whole.footprint.weights)
    assert (exact.context, exact.context_reason) == (8192, "")
    less = load(folder, memory_limit=whole.bytes_at(4096) - whole.footprint.weights)
    assert less.context == 4096
    assert "4 slots of 8192 tokens need" in less.context_reason
    for settings, said in (
        ({"may_shrink": False}, "the context does not fit"),
        ({"min_context": 4200}, "at least 4200"),
    ):
        with pytest.raises(DoesNotFit, match=said):
            load(folder, memory_limit=whole.bytes_at(4096) - whole.footprint.weights, **settings)
    with pytest.raises(DoesNotFit, match="the weights need"):
        load(folder, memory_limit=300 * MIB + 1000)


def test_what_a_runner_takes_in_all_is_told(make_checkpoint):
    loaded = load(make_checkpoint("LlamaForCausalLM"))
    assert loaded.total_bytes == loaded.weight_bytes + loaded.cache_bytes + loaded.overhead_bytes
    encoder = load_encoder(RunnerSpec("e", str(make_checkpoint("BertModel")), "", threads=1), QUIET).loaded
    assert encoder.total_bytes == encoder.weight_bytes + encoder.overhead_bytes > 100 * MIB
