"""Builds the fused decoder's layers from a checkpoint, one layer at a time, so that little is held twice.

Third step of a load. Query, key and value become one matrix, gate and up another: fewer, larger multiplications.
"""

from dataclasses import dataclass

import torch

from tandem_server.engine.native.checkpoint import Checkpoint
from tandem_server.engine.native.config import DecoderConfig
from tandem_server.engine.native.linear import Linear, PlainLinear
from tandem_server.engine.native.quantized import UNQUANTIZED, Layout


@dataclass(frozen=True)
class LayerWeights:
    """One transformer block."""

    input_norm: torch.Tensor
    qkv: Linear
    output: Linear
    post_norm: torch.Tensor
    gate_up: Linear
    down: Linear
    query_norm: torch.Tensor | None
    key_norm: torch.Tensor | None


@dataclass(frozen=True)
class DecoderWeights:
    """All of a decoder; `bytes` is what it takes on the device, `parameters` counts tied ones once."""

    embedding: torch.Tensor
    layers: list[LayerWeights]
    norm: torch.Tensor
    head: Linear
    parameters: int
    bytes: int

    def linears(self) -> list[Linear]:
        """Every matrix that a step multiplies by."""
        return [m for layer in self.layers for m in (layer.qkv, layer.output, layer.gate_up, layer.down)] + [self.head]


class _Reader:
    """Reads tensors onto the device in the dtype of the computation, counting them."""

    def __init__(self, checkpoint: Checkpoint, dtype: torch.dtype, device: torch.device, layout: Layout) -> None:
        self._checkpoint, self._dtype, self._device, self._layout = checkpoint, dtype, device, layout
        self.parameters = 0
        self.small_bytes = 0

    def tensor(self, name: str, *shape: int) -> torch.Tensor:
        source = self._checkpoint.read(name, shape)
        self.parameters += source.numel()
        # A copy in every case: what stays mapped would fault when the file goes away, and would be read-only.
        return torch.empty(shape, dtype=self._dtype, device=self._device).copy_(source)

    def vector(self, name: str, size: int) -> torch.Tensor:
        result = self.tensor(name, size)
        self.small_bytes += result.nbytes
        return result

    def linear(self, parts: list[tuple[str, int]], inputs: int, bias: bool) -> Linear:
        """The matrices `parts` (name without `.weight`, outputs) as one below the other."""
        weight = torch.cat([self.tensor(f"{name}.weight", size, inputs) for name, size in parts])
        biases = [self.tensor(f"{name}.bias", size) for name, size in parts] if bias else []
        return self._layout.make(weight, torch.cat(biases) if biases else None)


def load_decoder(
    checkpoint: Checkpoint,
    config: DecoderConfig,
    dtype: torch.dtype,
    device: torch.device,
    layout: Layout = UNQUANTIZED,
) -> DecoderWeights:
    """Reads everything `config` calls for, then makes sure that nothing else is in the checkpoint.

    Raises:
        LoadError: a tensor is missing, of another shape, or not known to the architecture.
    """
    reader = _Reader(checkpoint, dtype, device, layout)
    embedding = reader.tensor("model.embed_tokens.weight", config.vocabulary, config.hidden)
    layers = [_load_layer(reader, config, f"model.layers.{index}") for index in range(config.layers)]
    norm = reader.vector("model.norm.weight", config.hidden)
    if config.tied:
        head = layout.make(embedding, None)
    else:
        head = reader.linear([("lm_head", config.vocabulary)], config.hidden, bias=False)
    checkpoint.check_all_used((".rotary_emb.inv_freq", *(("lm_head.weight",) if config.tied else ())))
    weights = DecoderWeights(embedding, layers, norm, head, reader.parameters, 0)
    shared = config.tied and isinstance(head, PlainLinear)
    size = sum(m.bytes for m in weights.linears()) + reader.small_bytes + (0 if shared else embedding.nbytes)
    return DecoderWeights(embedding, layers, norm, head, reader.parameters, size)


def _load_layer(reader: _Reader, config: DecoderConfig, name: str) -> LayerWeights:
    attention, mlp = f"{name}.self_attn", f"{name}.mlp"
    query, keys = config.heads * config.head_size, config.kv_heads * config.head_size
    return LayerWeights(
        input_norm=reader.vector(f"{name}.input_layernorm.weight", config.hidden),
        qkv=reader.linear(
            [(f"{attention}.q_proj", query), (f"{attention}.k_proj", keys), (f"{attention}.v_proj", keys)],
            config.hidden,
            config.qkv_bias,
        ),
        output=reader.linear([(f"{attention}.o_proj", config.hidden)], query, config.output_bias),
        post_norm=reader.vector(f"{name}.post_attention_layernorm.weight", config.hidden),
        gate_up=reader.linear(
            [(f"{mlp}.gate_proj", config.intermediate), (f"{mlp}.up_proj", config.intermediate)],
            config.hidden,
            config.mlp_bias,
        ),
        down=reader.linear([(f"{mlp}.down_proj", config.hidden)], config.intermediate, config.mlp_bias),
        query_norm=reader.vector(f"{attention}.q_norm.weight", config.head_size) if config.qk_norm else None,
        key_norm=reader.vector(f"{attention}.k_norm.weight", config.head_size) if config.qk_norm else None,
    )
