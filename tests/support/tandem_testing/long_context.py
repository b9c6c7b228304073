"""A checkpoint whose contexts are large and whose weights are small, to run short of memory with: random numbers."""

import json
import shutil
from pathlib import Path

import numpy
from safetensors.numpy import save_file

HIDDEN, LAYERS, HEADS, KV_HEADS, HEAD, INNER = 256, 16, 4, 4, 64, 512
CONTEXT = 32_768


def make(tokenizer: Path, folder: Path) -> None:
    """Writes it to `folder`, with the tokenizer of the checkpoint in `tokenizer`; 32 KiB of float32 a token."""
    if (folder / "model.safetensors").exists():
        return
    draft = folder.with_suffix(".draft")
    shutil.rmtree(draft, ignore_errors=True)
    draft.mkdir(parents=True)
    config = json.loads((tokenizer / "config.json").read_text())
    config |= {
        "hidden_size": HIDDEN, "num_hidden_layers": LAYERS, "num_attention_heads": HEADS, "head_dim": HEAD,
        "num_key_value_heads": KV_HEADS, "intermediate_size": INNER, "max_position_embeddings": CONTEXT,
        "tie_word_embeddings": True,
    }  # fmt: skip
    (draft / "config.json").write_text(json.dumps(config))
    for name in ("tokenizer.json", "tokenizer_config.json", "generation_config.json"):
        if (tokenizer / name).exists():
            shutil.copy(tokenizer / name, draft / name)
    random = numpy.random.default_rng(11)

    def matrix(rows: int, columns: int) -> numpy.ndarray:
        return (random.standard_normal((rows, columns)) * 0.02).astype(numpy.float32)

    tensors = {
        "model.embed_tokens.weight": matrix(config["vocab_size"], HIDDEN),
        "model.norm.weight": numpy.ones(HIDDEN, numpy.float32),
    }
    for layer in range(LAYERS):
        start = f"model.layers.{layer}."
        tensors |= {
            f"{start}input_layernorm.weight": numpy.ones(HIDDEN, numpy.float32),
            f"{start}post_attention_layernorm.weight": numpy.ones(HIDDEN, numpy.float32),
            f"{start}self_attn.q_proj.weight": matrix(HEADS * HEAD, HIDDEN),
            f"{start}self_attn.k_proj.weight": matrix(KV_HEADS * HEAD, HIDDEN),
            f"{start}self_attn.v_proj.weight": matrix(KV_HEADS * HEAD, HIDDEN),
            f"{start}self_attn.o_proj.weight": matrix(HIDDEN, HEADS * HEAD),
            f"{start}mlp.gate_proj.weight": matrix(INNER, HIDDEN),
            f"{start}mlp.up_proj.weight": matrix(INNER, HIDDEN),
            f"{start}mlp.down_proj.weight": matrix(HIDDEN, INNER),
        }
    save_file(tensors, draft / "model.safetensors")
    (draft / "model.safetensors").chmod(0o644)  # pods read it as another user
    draft.rename(folder)
