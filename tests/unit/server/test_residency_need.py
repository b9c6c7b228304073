"""What a model needs before its runner starts, and what runners that were loaded teach."""

import json

from server_site import FakeModel, fake_settings

from tandem_api.catalog import CatalogModel
from tandem_api.report import DeviceReport
from tandem_server.engine.wire import Loaded
from tandem_server.residency.manager import UNBOUNDED, capacity_of
from tandem_server.residency.need import SPREAD, SPREAD_BYTES, UNKNOWN, Sizes

LLAMA = {
    "architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_size": 64, "intermediate_size": 128,
    "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2, "vocab_size": 100,
    "max_position_embeddings": 4096, "rms_norm_eps": 1e-5, "torch_dtype": "float32", "hidden_act": "silu",
}  # fmt: skip


def sized(tmp_path, sizes, **fields):
    """Of a small Llama; only its config is there."""
    (tmp_path / "config.json").write_text(json.dumps(LLAMA))
    entry = CatalogModel.model_validate({"name": "x", "source": "file:///x", "dtype": "Float32", **fields})
    return sizes.of(tmp_path, entry, fake_settings(tmp_path))


def told(found, total, context):
    """As a runner tells it whose steps take what was computed."""
    estimate = found.estimate
    parts = estimate.parts_at(context)
    return Loaded(
        "Generate", "LlamaForCausalLM", 1, parts.weights, parts.cache, 0, "CPU", "CPU", "float32", 4, 4096, context, "",
        0, "", total_bytes=total,
    )  # fmt: skip


def test_less_context_than_asked_needs_less(tmp_path):
    need = sized(tmp_path, Sizes()).need
    assert need.minimum < need.wanted
    fixed = sized(tmp_path, Sizes(), context={"whenShort": "Fail"}).need
    assert fixed.minimum == fixed.wanted == need.wanted


def test_a_process_of_a_kind_is_assumed_first_and_known_later(tmp_path):
    sizes = Sizes()
    first = sized(tmp_path, sizes)
    parts = first.estimate.parts_at(4096)
    own = 100 << 20
    sizes.learn(first, told(first, own + parts.weights + parts.cache + parts.steps, 4096))
    second = sized(tmp_path, sizes)
    assert first.need.wanted - second.need.wanted == parts.fixed - (int(own * SPREAD) + SPREAD_BYTES)
    assert second.kind == first.kind


def test_the_largest_of_a_kind_counts(tmp_path):
    sizes = Sizes()
    first = sized(tmp_path, sizes)
    for own in (900 << 20, 100 << 20):
        parts = first.estimate.parts_at(4096)
        sizes.learn(first, told(first, own + parts.weights + parts.cache + parts.steps, 4096))
    assert sized(tmp_path, sizes).need.wanted > first.need.wanted


def test_a_checkpoint_that_cannot_be_read_is_left_to_its_runner(tmp_path, tokenizer):
    model = FakeModel.make(tmp_path / "x", tokenizer)
    sizes = Sizes()
    found = sizes.of(model.folder, model.entry(), fake_settings(tmp_path))
    assert found == UNKNOWN
    sizes.learn(found, told(sized(tmp_path, sizes), 1 << 30, 64))


def test_a_budget_is_used_to_the_last_and_of_a_machine_something_is_kept_for_others():
    device = DeviceReport(name="x", kind="GPU", total_bytes=100 << 30, free_bytes=80 << 30)
    assert capacity_of(device, budgeted=True) == 80 << 30
    assert capacity_of(device, budgeted=False) == 76 << 30
    assert capacity_of(device.model_copy(update={"total_bytes": 0, "free_bytes": 0}), budgeted=False) == UNBOUNDED
