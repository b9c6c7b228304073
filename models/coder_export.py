"""Writes the demo model as a Hugging Face folder: config, bf16 weights, tokenizer, chat template, generation defaults.

Called by `train_python_coder.py` for every snapshot and for the finished model. The JSON files are written by hand
rather than by `save_pretrained`, so that the folder reads the same under every version of the libraries.
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import torch
from coder_chat import BEGIN, CHAT_TEMPLATE, END, PAD, SPECIAL_TOKENS
from safetensors.torch import save_file
from tokenizers import Tokenizer
from transformers import LlamaConfig, LlamaForCausalLM


def config_json(config: LlamaConfig, tokenizer: Tokenizer) -> dict[str, Any]:
    """`config.json` of the folder; `rope_theta` stands at the top level, where every server looks for it."""
    rope = config.rope_parameters or {}
    return {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "vocab_size": config.vocab_size,
        "hidden_size": config.hidden_size,
        "intermediate_size": config.intermediate_size,
        "num_hidden_layers": config.num_hidden_layers,
        "num_attention_heads": config.num_attention_heads,
        "num_key_value_heads": config.num_key_value_heads,
        "head_dim": config.head_dim,
        "hidden_act": "silu",
        "max_position_embeddings": config.max_position_embeddings,
        "rms_norm_eps": config.rms_norm_eps,
        "rope_theta": rope["rope_theta"],
        "rope_scaling": None,
        "tie_word_embeddings": True,
        "attention_bias": False,
        "mlp_bias": False,
        "initializer_range": config.initializer_range,
        "bos_token_id": tokenizer.token_to_id(BEGIN),
        "eos_token_id": tokenizer.token_to_id(END),
        "pad_token_id": tokenizer.token_to_id(PAD),
        "torch_dtype": "bfloat16",
        "use_cache": True,
    }


def tokenizer_config_json(config: LlamaConfig, tokenizer: Tokenizer) -> dict[str, Any]:
    """`tokenizer_config.json` of the folder, the chat template within."""
    flags = {"lstrip": False, "normalized": False, "rstrip": False, "single_word": False, "special": True}
    return {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": BEGIN,
        "eos_token": END,
        "pad_token": PAD,
        "model_max_length": config.max_position_embeddings,
        "clean_up_tokenization_spaces": False,
        "added_tokens_decoder": {str(tokenizer.token_to_id(t)): {"content": t, **flags} for t in SPECIAL_TOKENS},
        "chat_template": CHAT_TEMPLATE,
    }


def export(model: LlamaForCausalLM, tokenizer: Tokenizer, folder: Path) -> None:
    """Write the model into `folder` (made if missing); each file is replaced at once, never left half written."""
    folder.mkdir(parents=True, exist_ok=True)
    config = model.config
    generation = {
        "bos_token_id": tokenizer.token_to_id(BEGIN),
        "eos_token_id": tokenizer.token_to_id(END),
        "pad_token_id": tokenizer.token_to_id(PAD),
        "do_sample": True,
        "temperature": 0.7,
        "top_p": 0.95,
    }
    texts = {
        "config.json": json.dumps(config_json(config, tokenizer), indent=2),
        "generation_config.json": json.dumps(generation, indent=2),
        "tokenizer_config.json": json.dumps(tokenizer_config_json(config, tokenizer), indent=2, ensure_ascii=False),
        "tokenizer.json": tokenizer.to_str(),
    }
    for name, text in texts.items():
        partial = folder / f".{name}.partial"
        partial.write_text(text + "\n", encoding="utf-8")
        os.replace(partial, folder / name)
    # The output head is the embedding table: stored once, under the table's name.
    weights = {
        name: tensor.detach().to(torch.bfloat16).contiguous()
        for name, tensor in model.state_dict().items()
        if name != "lm_head.weight"
    }
    partial = folder / ".model.safetensors.partial"
    save_file(weights, partial, metadata={"format": "pt"})
    partial.chmod(0o644)  # safetensors makes its files private to their owner; a pod's user must read them
    os.replace(partial, folder / "model.safetensors")
