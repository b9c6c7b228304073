"""Builds the fused decoder's layers from a checkpoint, one layer at a time, so that little is held twice.

Third step of a load. Query, key and value become one matrix, gate and up another: fewer, larger multiplications.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import torch

from tandem_server.engine.native.checkpoint import Checkpoint
from tandem_server.engine.native.config import DecoderConfig, ExpertsConfig
from tandem_server.engine.native.families import ExpertNames
from tandem_server.engine.native.feedforward import Dense, Experts, FeedForward
from tandem_server.engine.native.gpu_experts import Matrices, StackedExperts, stacked
from tandem_server.engine.native.linear import Linear, PlainLinear
from tandem_server.engine.native.quantized import UNQUANTIZED, Layout
from tandem_server.engine.native.staging import CudaCopies, Staging


@dataclass(frozen=True)
class LayerWeights:
    """One transformer block."""

    input_norm: torch.Tensor
    qkv: Linear
    output: Linear
    attention_norm: torch.Tensor | None
    """Applied to what attention gives, before the residual is added (Gemma)."""
    feed_norm: torch.Tensor
    """Applied to what goes into the feed-forward."""
    feed: FeedForward
    feed_output_norm: torch.Tensor | None
    """Applied to what the feed-forward gives (Gemma)."""
    query_norm: torch.Tensor | None
    key_norm: torch.Tensor | None
    sinks: torch.Tensor | None
    """float32 `[heads]`: logits that take part in each head's softmax."""


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
        return [m for layer in self.layers for m in (layer.qkv, layer.output, *layer.feed.linears())] + [self.head]


class _Reader:
    """Reads tensors onto the device in the dtype of the computation, counting them."""

    def __init__(
        self, checkpoint: Checkpoint, config: DecoderConfig, dtype: torch.dtype, device: torch.device, layout: Layout
    ) -> None:
        self._checkpoint, self._config, self._dtype, self._device = checkpoint, config, dtype, device
        self._staging = Staging(device, CudaCopies(device)) if device.type == "cuda" else None
        self.held, self.exact = layout.make, layout.exact
        """How a matrix is held, and one that is never quantised."""
        self.stacks = device.type == "cuda" and layout is UNQUANTIZED
        """A layer's experts are one tensor; see `StackedExperts`."""
        self.parameters = 0
        self.small_bytes = 0

    def tensor(self, name: str, *shape: int, dtype: torch.dtype | None = None) -> torch.Tensor:
        return self._own(self._source(name, *shape), dtype)

    def vector(self, name: str, size: int, dtype: torch.dtype | None = None) -> torch.Tensor:
        result = self.tensor(name, size, dtype=dtype)
        self.small_bytes += result.nbytes
        return result

    def norm(self, name: str, size: int) -> torch.Tensor:
        """A norm's weight; in float32 where the family multiplies before it rounds."""
        result = self.vector(f"{name}.weight", size, torch.float32 if self._config.family.exact_norms else None)
        return result.add_(self._config.family.norm_offset) if self._config.family.norm_offset else result

    def linear(self, parts: list[tuple[str, int]], inputs: int, bias: bool, exact: bool = False) -> Linear:
        """The matrices `parts` (name without `.weight`, outputs) as one below the other; `exact` is never quantised."""
        return (self.exact if exact else self.held)(*self.matrix(parts, inputs, bias))

    def matrix(self, parts: list[tuple[str, int]], inputs: int, bias: bool = False) -> Matrices:
        """As `linear`, weight `[outputs, inputs]` and bias, before anything is made of it."""
        weight = torch.cat([self.tensor(f"{name}.weight", size, inputs) for name, size in parts])
        return weight, torch.cat([self.tensor(f"{name}.bias", size) for name, size in parts]) if bias else None

    def stacked(self, name: str, count: int, inputs: int, outputs: int, pairs: bool) -> Iterator[Matrices]:
        """`count` matrices with biases out of one tensor `[count, inputs, outputs]`.

        `pairs`: columns take turns between two matrices, which become one below the other.
        """
        order = [slice(0, None, 2), slice(1, None, 2)] if pairs else [slice(None)]
        weights = self._source(name, count, inputs, outputs)
        biases = self._source(f"{name}_bias", count, outputs)
        for weight, bias in zip(weights, biases, strict=True):
            turned, own = self._own(weight).t(), self._own(bias)
            yield torch.cat([turned[rows] for rows in order]), torch.cat([own[rows] for rows in order])

    def _source(self, name: str, *shape: int) -> torch.Tensor:
        source = self._checkpoint.read(name, shape)
        self.parameters += source.numel()
        return source

    def _own(self, source: torch.Tensor, dtype: torch.dtype | None = None) -> torch.Tensor:
        # A copy in every case: what stays mapped would fault when the file goes away, and would be read-only.
        if self._staging is not None:
            return self._staging.upload(source).to(dtype or self._dtype)
        return torch.empty(source.shape, dtype=dtype or self._dtype, device=self._device).copy_(source)


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
    reader = _Reader(checkpoint, config, dtype, device, layout)
    embedding = reader.tensor("model.embed_tokens.weight", config.vocabulary, config.hidden)
    layers = [
        _load_layer(reader, config, f"model.layers.{index}", layer.sparse)
        for index, layer in enumerate(config.layer_configs)
    ]
    norm = reader.norm("model.norm", config.hidden)
    if config.tied:
        head = layout.make(embedding, None)
    else:
        head = reader.linear([("lm_head", config.vocabulary)], config.hidden, bias=False)
    checkpoint.check_all_used((".rotary_emb.inv_freq", *(("lm_head.weight",) if config.tied else ())))
    weights = DecoderWeights(embedding, layers, norm, head, reader.parameters, 0)
    shared = config.tied and isinstance(head, PlainLinear)
    size = sum(m.bytes for m in weights.linears()) + reader.small_bytes + (0 if shared else embedding.nbytes)
    return DecoderWeights(embedding, layers, norm, head, reader.parameters, size)


def _load_layer(reader: _Reader, config: DecoderConfig, name: str, sparse: bool) -> LayerWeights:
    attention, family = f"{name}.self_attn", config.family
    query, keys = config.heads * config.head_size, config.kv_heads * config.head_size
    if family.fused:
        projections = [(f"{attention}.qkv_proj", config.qkv_width)]
    else:
        projections = [(f"{attention}.q_proj", query), (f"{attention}.k_proj", keys), (f"{attention}.v_proj", keys)]
    behind, before = f"{name}.post_attention_layernorm", f"{name}.pre_feedforward_layernorm"
    return LayerWeights(
        input_norm=reader.norm(f"{name}.input_layernorm", config.hidden),
        qkv=reader.linear(projections, config.hidden, config.qkv_bias),
        output=reader.linear([(f"{attention}.o_proj", config.hidden)], query, config.output_bias),
        attention_norm=reader.norm(behind, config.hidden) if family.sandwich else None,
        feed_norm=reader.norm(before if family.sandwich else behind, config.hidden),
        feed=_load_feed(reader, config, name, sparse),
        feed_output_norm=reader.norm(f"{name}.post_feedforward_layernorm", config.hidden) if family.sandwich else None,
        query_norm=reader.norm(f"{attention}.q_norm", config.head_size) if family.qk_norm else None,
        key_norm=reader.norm(f"{attention}.k_norm", config.head_size) if family.qk_norm else None,
        sinks=reader.vector(f"{attention}.sinks", config.heads, torch.float32) if family.sinks else None,
    )


def _load_feed(reader: _Reader, config: DecoderConfig, name: str, sparse: bool) -> FeedForward:
    if sparse and config.experts is not None and config.family.experts is not None:
        return _load_experts(reader, config, config.experts, config.family.experts, name)
    mlp, size = f"{name}.mlp", config.intermediate
    parts = [(f"{mlp}.gate_proj", size), (f"{mlp}.up_proj", size)]
    if config.family.fused:
        parts = [(f"{mlp}.gate_up_proj", 2 * size)]
    gate_up = reader.linear(parts, config.hidden, config.mlp_bias)
    return Dense(
        gate_up, reader.linear([(f"{mlp}.down_proj", config.hidden)], size, config.mlp_bias), config.activation
    )


def _load_experts(
    reader: _Reader, config: DecoderConfig, experts: ExpertsConfig, names: ExpertNames, layer: str
) -> Experts:
    hidden, size, count = config.hidden, experts.intermediate, experts.count
    # Small, and a wrong choice of experts costs more than its bits would save.
    router = reader.linear([(f"{layer}.{names.router}", count)], hidden, bias=bool(names.stacked), exact=True)
    if names.stacked:
        folder = f"{layer}.{names.stacked}"
        gate_ups = reader.stacked(f"{folder}.gate_up_proj", count, hidden, 2 * size, pairs=True)
        downs = reader.stacked(f"{folder}.down_proj", count, size, hidden, pairs=False)
    else:
        gates, ups, tails = (
            [f"{layer}.{part.format(n)}" for n in range(count)] for part in (names.gate, names.up, names.down)
        )
        gate_ups = (reader.matrix([(g, size), (u, size)], hidden) for g, u in zip(gates, ups, strict=True))
        downs = (reader.matrix([(tail, hidden)], size) for tail in tails)
    if reader.stacks:
        return StackedExperts(experts, router, stacked(gate_ups, count), stacked(downs, count), config.activation)
    held = [[reader.held(*matrix) for matrix in matrices] for matrices in (gate_ups, downs)]
    return Experts(experts, router, held[0], held[1], config.activation)
