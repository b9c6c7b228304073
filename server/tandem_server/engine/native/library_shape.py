"""Bounds of a model that the transformers library computes, from `config.json` alone, for estimates without it.

What its layers really ask of the cache shows only when it runs (`library.py`), and is never more than this.
"""

from typing import Any

from tandem_api.fit_steps import StepShape
from tandem_server.engine.interface import LoadError

HIDDEN = ("hidden_size", "n_embd", "d_model", "n_embed", "dim")
INNER = ("intermediate_size", "moe_intermediate_size", "n_inner", "ffn_dim", "hidden_dim")
LAYERS = ("num_hidden_layers", "n_layer", "n_layers", "num_layers")
HEADS = ("num_attention_heads", "n_head", "n_heads", "num_heads")
SCORED = ("attn_logit_softcapping", "attention_sink", "sinks")
"""Keys of attention that the library's kernels do not compute."""
POSITIONS = ("max_position_embeddings", "n_positions", "n_ctx", "max_seq_len")


class LibraryShape:
    """Numbers of `raw`, which is `config.json`. Raises LoadError where one is missing that a bound needs."""

    def __init__(self, raw: dict[str, Any]) -> None:
        inner = raw.get("text_config")
        self._raw = {**raw, **inner} if isinstance(inner, dict) else raw
        self.layers, heads, hidden = self._number(*LAYERS), self._number(*HEADS), self._number(*HIDDEN)
        self.positions = self._number(*POSITIONS)
        self.tied = bool(self._raw.get("tie_word_embeddings", True))
        compressed = self._raw.get("kv_lora_rank")
        kv_heads = heads if compressed else int(self._raw.get("num_key_value_heads") or heads)
        sizes = (
            int(self._raw.get("head_dim") or 0),
            -(-hidden // heads),
            int(self._raw.get("qk_nope_head_dim") or 0) + int(self._raw.get("qk_rope_head_dim") or 0),
            int(self._raw.get("v_head_dim") or 0),
        )
        inner_width = max(int(self._raw.get(key) or 0) for key in INNER)
        self.step = StepShape(
            hidden=hidden,
            qkv_width=(heads + 2 * kv_heads) * max(sizes),
            intermediate=inner_width or 4 * hidden,
            heads=heads,
            kv_heads=kv_heads,
            head_size=max(sizes),
            vocabulary=self._number("vocab_size"),
            windows=2 if self._raw.get("sliding_window") else 1,
            plain_attention=not any(self._raw.get(key) for key in SCORED),
        )

    @property
    def token_elements(self) -> int:
        """Numbers of one token's keys and values."""
        return 2 * self.layers * self.step.kv_heads * self.step.head_size

    def _number(self, *keys: str) -> int:
        value = next((self._raw[key] for key in keys if self._raw.get(key)), None)
        if not isinstance(value, int) or value < 1:
            raise LoadError(f"config.json does not say {keys[0]}, without which the model's size cannot be told")
        return value
