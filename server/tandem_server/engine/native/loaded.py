"""What a load has decided and come to, and how the runner tells it.

Beside `load.py`, which decides. Texts end up in the log, in `/api/show` and in a Model's status.
"""

from dataclasses import dataclass

import torch

from tandem_api.fit_weights import Packing
from tandem_server.engine.native.config import DecoderConfig
from tandem_server.engine.native.cpu_decoder import CpuDecoder
from tandem_server.engine.native.device import device_name, used_bytes
from tandem_server.engine.native.gpu_decoder import GpuDecoder
from tandem_server.engine.native.library import LibraryWeights
from tandem_server.engine.native.library_decoder import LibraryDecoder
from tandem_server.engine.native.model import Model
from tandem_server.engine.native.quantized import Layout
from tandem_server.engine.native.resources import taken_bytes
from tandem_server.engine.native.scheduler import Limits
from tandem_server.engine.native.weights import DecoderWeights
from tandem_server.engine.wire import Loaded, RunnerSpec

Weights = DecoderWeights | LibraryWeights


@dataclass(frozen=True)
class Formats:
    """How numbers are held and computed, and why."""

    dtype: torch.dtype
    layout: Layout
    packing: Packing
    reason: str


@dataclass(frozen=True)
class Room:
    """What fits beside the weights: tokens a slot, and why they are fewer than asked; blocks of a shared pool."""

    context: int
    reason: str
    pool: int | None
    cache_dtype: torch.dtype
    chunk: int
    budget: int
    together: int
    """Rows of prompts that share a forward; see `GpuStep`."""
    step_bytes: int
    """Of the largest step."""


def way_text(config: DecoderConfig, decoder: Model, why: str | None) -> str:
    """Whose code computes it; `why` not the fused decoder (None: it does)."""
    if not isinstance(decoder, LibraryDecoder):
        return f"{config.architecture} has a fused decoder"
    rows = "together" if decoder.together else "one by one"
    return f"{why}, so {config.architecture} goes through the transformers library, its rows {rows}"


def loaded_of(
    spec: RunnerSpec, decoder: Model, weights: Weights, formats: Formats, room: Room, overhead: int, reason: str
) -> Loaded:
    """What the runner tells of its model; `reason` is how it is computed."""
    config, slots, on_cpu = decoder.config, decoder.slots, decoder.device.type == "cpu"
    counted = weights.bytes + decoder.cache_bytes + overhead
    return Loaded(
        task="Generate",
        architecture=config.architecture,
        parameters=weights.parameters,
        weight_bytes=weights.bytes,
        cache_bytes=decoder.cache_bytes,
        overhead_bytes=overhead,
        device=device_name(decoder.device),
        device_kind="GPU" if decoder.device.type == "cuda" else "CPU",
        dtype=str(formats.dtype).removeprefix("torch.") if spec.quantization == "None" else spec.quantization.lower(),
        slots=slots,
        context_limit=config.context_limit,
        context=room.context,
        context_reason=room.reason,
        embedding_size=0,
        engine_reason=reason,
        pool_tokens=min(slots * room.context, decoder.cache.scratch),
        shifts=decoder.switch is None,
        total_bytes=counted if on_cpu else taken_bytes(decoder.device),
    )


def attention_text(decoder: Model) -> str:
    """What computes its attention."""
    if isinstance(decoder, CpuDecoder):
        return "attention by kernels"
    if not isinstance(decoder, GpuDecoder):
        return f"attention by {decoder.span} keys"
    graphs = "in graphs" if decoder.recordable else "without graphs, which quantised experts rule out"
    return f"attention by kernels, {graphs}"


def pool_text(limits: Limits) -> str:
    """How slots share memory, if they do."""
    if limits.pool_blocks is None:
        return ""
    return f"; {limits.slots} slots share memory for {limits.pool_blocks * limits.block} tokens"


def overhead_bytes(device: torch.device, before: int, with_weights: int, weights: Weights, decoder: Model) -> int:
    """What the load took beyond weights and contexts; on a CPU libraries and interpreter count too.

    On a CPU it is measured before the contexts are made: how much of those is resident differs from what they may take.
    What a step takes is given back there after each; on a GPU the allocator keeps what the largest one took.
    """
    if device.type == "cpu":
        return max(0, with_weights - weights.bytes)
    return max(0, used_bytes(device) - before - weights.bytes - decoder.cache_bytes)
