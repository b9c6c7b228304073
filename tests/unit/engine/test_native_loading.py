"""Loading: every tensor accounted for, no pickle, memory fitted with numbers, formats chosen and told."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from tandem_api.fit import Wish
from tandem_server.engine.interface import DoesNotFit, LoadError
from tandem_server.engine.native.config import read_decoder_config
from tandem_server.engine.native.device import wait_for_memory
from tandem_server.engine.native.dtype import choose_dtype, choose_threads
from tandem_server.engine.native.load import load_generator
from tandem_server.engine.native.resources import (
    available_bytes,
    check_weights_fit,
    cpu_threads,
    given_context,
)
from tandem_server.engine.wire import RunnerSpec

pytestmark = pytest.mark.torch

MIB = 1 << 20
CPU = torch.device("cpu")


def load(folder: Path, **settings):
    progress: list[tuple[str, int, int]] = []
    spec = RunnerSpec("m", str(folder), "", **{"dtype": "Float32", "threads": 1, **settings})
    return load_generator(spec, lambda *report: progress.append(report)), progress


@pytest.fixture
def changed(make_checkpoint, tmp_path):
    """A copy of a checkpoint whose tensors went through `change`."""

    def make(change, **overrides) -> Path:
        folder = tmp_path / "changed"
        shutil.copytree(make_checkpoint("LlamaForCausalLM", **overrides), folder)
        tensors = load_file(folder / "model.safetensors")
        change(tensors)
        save_file(tensors, folder / "model.safetensors")
        return folder

    return make


def test_slots_that_share_have_a_longer_context_than_those_that_do_not(make_checkpoint, monkeypatch):
    folder = make_checkpoint("LlamaForCausalLM", max_position_embeddings=4096)
    loaded = {}
    for shared in (False, True):
        monkeypatch.setattr("tandem_server.engine.native.load.usable_bytes", lambda *_: 14 * MIB)
        spec = RunnerSpec("m", str(folder), "", dtype="Float32", slots=4, threads=1, shared_cache=shared)
        loaded[shared] = load_generator(spec, lambda *_: None).loaded
    apart, together = loaded[False], loaded[True]
    assert apart.context < together.context == 4096
    assert "4 slots of 4096 tokens need" in apart.context_reason
    assert together.context_reason == ""
    assert apart.pool_tokens == 4 * apart.context
    assert 4096 <= together.pool_tokens < 4 * 4096
    assert f"4 slots share memory for {together.pool_tokens} tokens" in together.engine_reason


def test_progress_counts_bytes_up_to_all(make_checkpoint):
    engine, progress = load(make_checkpoint("LlamaForCausalLM"))
    reading = [(done, total) for phase, done, total in progress if phase == "reading weights"]
    assert [done for done, _ in reading] == sorted(done for done, _ in reading)
    assert reading[-1] == (engine.loaded.weight_bytes, engine.loaded.weight_bytes)
    assert progress[-1][0] == "warming up"


def test_missing_tensor(changed):
    folder = changed(lambda tensors: tensors.pop("model.layers.1.mlp.up_proj.weight"))
    with pytest.raises(LoadError, match=r"tensor model\.layers\.1\.mlp\.up_proj\.weight is missing"):
        load(folder)


def test_unexpected_tensor(changed):
    folder = changed(lambda tensors: tensors.update({"model.layers.0.self_attn.q_proj.lora": torch.zeros(2, 2)}))
    with pytest.raises(LoadError, match=r"does not use: model\.layers\.0\.self_attn\.q_proj\.lora"):
        load(folder)


def test_frequency_buffers_of_old_checkpoints_are_left_out(changed, make_checkpoint):
    folder = changed(lambda tensors: tensors.update({"model.layers.0.self_attn.rotary_emb.inv_freq": torch.zeros(8)}))
    old, _ = load(folder)
    plain, _ = load(make_checkpoint("LlamaForCausalLM"))
    assert (old.loaded.parameters, old.loaded.weight_bytes) == (plain.loaded.parameters, plain.loaded.weight_bytes)


def test_quantised_tensors_are_refused(changed):
    name = "model.layers.0.mlp.up_proj.weight"
    folder = changed(lambda tensors: tensors.update({name: tensors[name].to(torch.int8)}))
    with pytest.raises(LoadError, match="quantised weights are not supported"):
        load(folder)


def test_pickle_only_checkpoint_is_refused_unread(make_checkpoint, tmp_path):
    shutil.copy(make_checkpoint("LlamaForCausalLM") / "config.json", tmp_path)
    (tmp_path / "pytorch_model.bin").write_bytes(b"not even a pickle")
    with pytest.raises(LoadError, match=r"pytorch_model\.bin but no model\.safetensors; only safetensors are read"):
        load(tmp_path)


def test_a_gguf_file_names_the_engine_that_reads_it(make_checkpoint, tmp_path):
    shutil.copy(make_checkpoint("LlamaForCausalLM") / "config.json", tmp_path)
    (tmp_path / "model-q4.gguf").write_bytes(b"GGUF")
    with pytest.raises(LoadError, match=r"carries model-q4\.gguf; .*set engine: VLLM"):
        load(tmp_path)


@pytest.mark.parametrize(
    ("architecture", "overrides", "name"),
    [
        ("Phi3ForCausalLM", {}, "model.layers.1.mlp.gate_up_proj.weight"),
        ("Gemma2ForCausalLM", {"head_dim": 16}, "model.layers.0.post_feedforward_layernorm.weight"),
        ("MixtralForCausalLM", {}, "model.layers.0.block_sparse_moe.experts.7.w3.weight"),
        ("GptOssForCausalLM", {"num_local_experts": 4}, "model.layers.1.self_attn.sinks"),
    ],
)
def test_every_tensor_of_a_family_is_needed_and_counted(architecture, overrides, name, make_checkpoint, tmp_path):
    source = make_checkpoint(architecture, **overrides)
    tensors = load_file(source / "model.safetensors")
    loaded = load(source)[0].loaded
    count = sum(tensor.numel() for tensor in tensors.values())
    table = tensors["model.embed_tokens.weight"].numel() if architecture == "Gemma2ForCausalLM" else 0
    assert (loaded.parameters, loaded.weight_bytes) == (count, 4 * (count + table)), "a tied table is held twice"
    folder = tmp_path / "changed"
    shutil.copytree(source, folder)
    tensors.pop(name)
    save_file(tensors, folder / "model.safetensors")
    with pytest.raises(LoadError, match=f"tensor {name} is missing"):
        load(folder)


def test_missing_shard_and_cut_off_file(make_checkpoint, tmp_path):
    folder = tmp_path / "cut"
    shutil.copytree(make_checkpoint("LlamaForCausalLM", shard="60KB"), folder)
    shard = sorted(folder.glob("model-*.safetensors"))[1]
    content = shard.read_bytes()
    shard.write_bytes(content[:-100])
    with pytest.raises(LoadError, match=f"{shard.name} is no readable safetensors file: it is shorter"):
        load(folder)
    shard.unlink()
    with pytest.raises(LoadError, match=f"names {shard.name}, which is missing"):
        load(folder)


def test_an_index_may_not_point_outside(make_checkpoint, tmp_path):
    shutil.copy(make_checkpoint("LlamaForCausalLM") / "config.json", tmp_path)
    index = {"weight_map": {"model.norm.weight": "../elsewhere.safetensors"}}
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(LoadError, match="no safetensors file of the folder itself"):
        load(tmp_path)


@pytest.mark.parametrize("dtype", ["Float32", "BFloat16"])
def test_bfloat16_checkpoints_load_in_either_format(make_checkpoint, dtype):
    engine, _ = load(make_checkpoint("LlamaForCausalLM", dtype="bfloat16"), dtype=dtype)
    assert engine.loaded.dtype == dtype.lower()
    assert f"{dtype} as asked" in engine.loaded.engine_reason
    assert engine.loaded.weight_bytes == engine.loaded.parameters * (4 if dtype == "Float32" else 2)


def test_auto_takes_the_faster_format_and_says_so(make_checkpoint):
    config = read_decoder_config(make_checkpoint("LlamaForCausalLM", dtype="bfloat16"))
    times = {torch.float32: 100e-6, torch.bfloat16: 50e-6}
    chosen, reason = choose_dtype("Auto", config, CPU, 4, times.__getitem__)
    assert chosen is torch.bfloat16
    assert "100 us in Float32, 50 us in BFloat16" in reason
    times[torch.bfloat16] = 95e-6
    assert choose_dtype("Auto", config, CPU, 4, times.__getitem__)[0] is torch.float32
    measured, reason = choose_dtype("Auto", config, CPU, 4, None)
    assert measured in (torch.float32, torch.bfloat16)
    assert "by measurement" in reason
    exact = read_decoder_config(make_checkpoint("LlamaForCausalLM"))
    assert choose_dtype("Auto", exact, CPU, 4, None)[0] is torch.float32, "never less than the checkpoint has"


def test_more_threads_are_taken_only_where_they_are_faster():
    times = {1: 100e-6, 2: 60e-6, 8: 95e-6}
    assert choose_threads(2, times.__getitem__) == (
        2,
        "2 threads by measurement (the largest layer takes 100 us with 1, 60 us with 2)",
    )
    assert choose_threads(8, times.__getitem__)[0] == 1, "hardly faster, and it leaves seven CPUs to others"
    assert choose_threads(1, times.__getitem__) == (1, "")


@pytest.mark.parametrize(("later", "threads"), [(500e-6, 2), (990e-6, 1)])
def test_threads_that_share_a_core_just_now_are_measured_again(later, threads):
    times, rests = {1: [1e-3], 2: [995e-6, 992e-6, later, 990e-6]}, []
    chosen, reason = choose_threads(2, lambda count: times[count].pop(0), rests.append)
    assert chosen == threads
    assert f"takes 1000 us with 1, {later * 1e6:.0f} us with 2" in reason
    assert len(rests) == (2 if threads == 2 else 3), "no rest that changes nothing, and an end to it"


@pytest.mark.parametrize("faster", [1, 3])
def test_the_threads_that_were_measured_compute_and_are_told(faster, make_checkpoint, monkeypatch):
    def timer(threads: int, **_: object) -> float:
        return 1.0 if threads == faster else 2.0

    monkeypatch.setattr("tandem_server.engine.native.device.ONE_THREAD_BELOW", 0)
    monkeypatch.setattr("tandem_server.engine.native.device.cpu_threads", lambda asked: asked or 3)
    monkeypatch.setattr("tandem_server.engine.native.load.time_threads", timer)
    before = torch.get_num_threads()
    try:
        engine, _ = load(make_checkpoint("LlamaForCausalLM"), threads=None)
        assert torch.get_num_threads() == faster
        asked, _ = load(make_checkpoint("LlamaForCausalLM"), threads=2)
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)
    assert f"({faster} thread" in engine.loaded.device
    assert f"{faster} thread{'s' * (faster > 1)} by measurement" in engine.loaded.engine_reason
    assert "by measurement" not in asked.loaded.engine_reason


def test_what_does_not_fit_is_refused_by_reason():
    def needed(tokens: int) -> int:
        return 4 * tokens * MIB

    with pytest.raises(DoesNotFit, match="4 slots of 4096 tokens need 16,384 MiB and 744 MiB is free beside the weigh"):
        given_context(Wish(context=4096, may_shrink=False), 4096, 4, 744 * MIB, needed)
    with pytest.raises(LoadError, match="the model was made for 4096") as caught:
        given_context(Wish(context=9000, may_shrink=False), 4096, 4, 10**12, needed)
    assert caught.type is LoadError
    context, reason = given_context(Wish(context=4096), 4096, 4, 2000 * MIB, needed)
    assert context == 448
    assert "is free beside the weights" in reason


def test_weights_that_do_not_fit():
    with pytest.raises(LoadError, match="the weights need 200 MiB, 100 MiB is free"):
        check_weights_fit(200 * MIB, 100 * MIB)


def test_container_limits_are_respected(tmp_path):
    (tmp_path / "cpu.max").write_text("150000 100000\n")
    (tmp_path / "memory.max").write_text(f"{300 * MIB}\n")
    (tmp_path / "memory.current").write_text(f"{250 * MIB}\n")
    (tmp_path / "memory.stat").write_text(f"anon 1\ninactive_file {50 * MIB}\n")
    assert cpu_threads(None, tmp_path) <= 2
    assert cpu_threads(7, tmp_path) == 7
    assert available_bytes(CPU, cgroup=tmp_path) == 100 * MIB
    (tmp_path / "cpu.max").write_text("50000 100000\n")
    assert cpu_threads(None, tmp_path) == 1
    (tmp_path / "cpu.max").write_text("max 100000\n")
    (tmp_path / "memory.max").write_text("max\n")
    assert cpu_threads(None, tmp_path) >= 1
    assert available_bytes(CPU, cgroup=tmp_path) > 100 * MIB


def test_memory_of_a_runner_that_just_ended_is_waited_for_and_not_for_ever():
    seen = iter([1, 2, 8, 9])
    wait_for_memory(lambda: next(seen), wanted=8)
    assert next(seen) == 9
    wait_for_memory(lambda: 1, wanted=8, seconds=0.05)
