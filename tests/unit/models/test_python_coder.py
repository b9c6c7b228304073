"""The demo model's folder `models/python-coder`: small, safe to load, whole, and able to predict code it never saw."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from jinja2.sandbox import ImmutableSandboxedEnvironment
from safetensors import safe_open
from tokenizers import Tokenizer

FOLDER = Path(__file__).parents[3] / "models" / "python-coder"
LARGEST = 8_000_000  # bytes, the whole folder
# Measured: 1.85 nats per token; after four minutes of training it was 3.6, and untrained weights give about 8.
HIGHEST_LOSS = 2.1

# Written for this test, so it is in no training set.
SNIPPET = '''
def merge_intervals(intervals):
    """Return the intervals merged where they overlap, sorted by start."""
    merged = []
    for start, end in sorted(intervals):
        if merged and start <= merged[-1][1]:
            merged[-1] = (merged[-1][0], max(merged[-1][1], end))
        else:
            merged.append((start, end))
    return merged


class Cache:
    """A mapping that forgets its oldest entries."""

    def __init__(self, size=128):
        self.size = size
        self.items = {}

    def get(self, key, default=None):
        if key not in self.items:
            return default
        return self.items[key]

    def put(self, key, value):
        if len(self.items) >= self.size:
            raise ValueError("the cache is full: %r" % (key,))
        self.items[key] = value
'''


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return Tokenizer.from_file(str(FOLDER / "tokenizer.json"))


@pytest.fixture(scope="module")
def config() -> dict[str, Any]:
    return json.loads((FOLDER / "config.json").read_text())


def render(messages: list[dict[str, Any]], add_generation_prompt: bool = True) -> str:
    template = json.loads((FOLDER / "tokenizer_config.json").read_text())["chat_template"]
    environment = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True)
    return environment.from_string(template).render(messages=messages, add_generation_prompt=add_generation_prompt)


def test_folder_is_small_and_holds_only_data() -> None:
    files = {path.name: path.stat().st_size for path in FOLDER.iterdir()}
    assert set(files) == {
        "config.json",
        "generation_config.json",
        "model.safetensors",
        "tokenizer.json",
        "tokenizer_config.json",
    }
    assert sum(files.values()) <= LARGEST


def test_weights_are_bf16_and_match_the_config(config: dict[str, Any]) -> None:
    with safe_open(FOLDER / "model.safetensors", framework="np") as weights:
        shapes = {name: weights.get_slice(name).get_shape() for name in weights.keys()}  # noqa: SIM118 - not a mapping
        kinds = {weights.get_slice(name).get_dtype() for name in shapes}
    assert kinds == {"BF16"}
    width, head = config["hidden_size"], config["head_dim"]
    assert len(shapes) == 9 * config["num_hidden_layers"] + 2
    assert shapes["model.embed_tokens.weight"] == [config["vocab_size"], width]
    assert "lm_head.weight" not in shapes
    assert config["tie_word_embeddings"] is True
    last = f"model.layers.{config['num_hidden_layers'] - 1}.self_attn"
    assert shapes[f"{last}.q_proj.weight"] == [config["num_attention_heads"] * head, width]
    assert shapes[f"{last}.k_proj.weight"] == [config["num_key_value_heads"] * head, width]
    assert config["num_key_value_heads"] < config["num_attention_heads"]
    assert head % 32 == 0


def test_special_tokens_agree_across_the_files(tokenizer: Tokenizer, config: dict[str, Any]) -> None:
    generation = json.loads((FOLDER / "generation_config.json").read_text())
    names = json.loads((FOLDER / "tokenizer_config.json").read_text())
    for kind in ("bos", "eos", "pad"):
        number = tokenizer.token_to_id(names[f"{kind}_token"])
        assert number is not None
        assert number == config[f"{kind}_token_id"] == generation[f"{kind}_token_id"]
    assert tokenizer.get_vocab_size() == config["vocab_size"]
    assert names["model_max_length"] == config["max_position_embeddings"] >= 2048


@pytest.mark.parametrize(
    "text",
    [
        "def f(x):\n    return x + 1\n",
        "\tif x:\r\n\t\tpass\n\n\n   \n",
        "café, naïve, Ω ≤ ∞, 世界, здравствуй, e\u0301",
        "\U0001f642 \U0001f469\u200d\U0001f4bb \x00\x7f\u200b\ufeff",
        "  two leading and two trailing  ",
        "",
    ],
)
def test_any_text_round_trips(tokenizer: Tokenizer, text: str) -> None:
    ids = tokenizer.encode(text, add_special_tokens=False).ids
    assert tokenizer.decode(ids, skip_special_tokens=False) == text


def test_plain_text_gets_the_begin_token_and_chats_bring_their_own(tokenizer: Tokenizer) -> None:
    begin = tokenizer.token_to_id("<|begin|>")
    assert tokenizer.encode("import json").ids[0] == begin
    chat = tokenizer.encode(render([{"role": "user", "content": "import json"}]), add_special_tokens=False)
    assert chat.ids.count(begin) == 1
    assert chat.ids[0] == begin
    assert chat.tokens[1] == "<|user|>"
    assert chat.tokens[-2:] == ["<|end|>", "<|assistant|>"]


def test_template_renders_every_role_in_the_sandbox() -> None:
    messages = [
        {"role": "system", "content": " Be brief.\n"},
        {"role": "user", "content": "def f(x):\n"},
        {"role": "assistant", "content": "    return x"},
        {"role": "user", "content": [{"type": "text", "text": "class A:"}, {"type": "image_url", "image_url": {}}]},
        {"role": "assistant", "content": None, "tool_calls": []},
        {"role": "tool", "content": "42"},
    ]
    assert render(messages) == (
        "<|begin|><|system|>Be brief.<|end|><|user|>def f(x):<|end|><|assistant|>    return x<|end|>"
        "<|user|>class A:<|end|><|assistant|><|end|><|user|>42<|end|><|assistant|>"
    )
    assert render(messages[:2], add_generation_prompt=False).endswith("<|user|>def f(x):<|end|>")


@pytest.mark.torch
def test_model_predicts_code_it_never_saw(tokenizer: Tokenizer) -> None:
    import torch
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(FOLDER, dtype=torch.float32).eval()
    ids = torch.tensor([tokenizer.encode(SNIPPET).ids])
    with torch.inference_mode():
        loss = float(model(input_ids=ids, labels=ids).loss)
    assert loss < HIGHEST_LOSS, f"{loss:.3f} nats per token on code that a sound checkpoint predicts better"
