"""Loads a decoder with everything that its steps need: the steps of a load in order, each in a module of its own.

Called by the runner. What comes out is an engine that waits for requests.
"""

from functools import cache, partial
from pathlib import Path

import torch

from tandem_api.fit import pool_blocks
from tandem_api.fit_steps import (
    CPU_BUDGET,
    CUDA_BUDGET,
    MOST_PROCESSORS,
    Steps,
    batch_sizes,
    cache_positions,
    together_rows,
)
from tandem_api.fit_weights import Packing
from tandem_server.engine.interface import LoadError, ProgressReporter
from tandem_server.engine.native.checkpoint import Checkpoint
from tandem_server.engine.native.config import DecoderConfig, NotFused, architecture_of, read_decoder_config, read_json
from tandem_server.engine.native.cpu_decoder import CpuDecoder
from tandem_server.engine.native.cpu_layout import cpu_layout, quantized_cpu_layout
from tandem_server.engine.native.cpu_linear import CompiledLinear
from tandem_server.engine.native.cpu_step import CpuStep
from tandem_server.engine.native.cuda import computing
from tandem_server.engine.native.decoder import Decoder
from tandem_server.engine.native.device import DEFAULT_SLOTS, open_device, used_bytes
from tandem_server.engine.native.dtype import (
    choose_cache_dtype,
    choose_dtype,
    choose_threads,
    time_largest_layer,
    time_threads,
)
from tandem_server.engine.native.engine import NativeEngine
from tandem_server.engine.native.gpu_decoder import GpuDecoder, gpu_kernels
from tandem_server.engine.native.gpu_step import GpuStep
from tandem_server.engine.native.graphs import CudaGraphs
from tandem_server.engine.native.library import LibraryWeights, load_library, read_library_config, shaped
from tandem_server.engine.native.library_decoder import LibraryDecoder
from tandem_server.engine.native.linear import row_invariant_sizes
from tandem_server.engine.native.loaded import (
    Formats,
    Room,
    Weights,
    attention_text,
    loaded_of,
    overhead_bytes,
    pool_text,
    way_text,
)
from tandem_server.engine.native.model import Model
from tandem_server.engine.native.quantized import layout_for
from tandem_server.engine.native.resources import (
    available_bytes,
    check_weights_fit,
    given_context,
    tidy,
    usable_bytes,
    wish_of,
)
from tandem_server.engine.native.scheduler import Limits
from tandem_server.engine.native.shape import inventory_of, step_shape_of
from tandem_server.engine.native.step import DeviceStep
from tandem_server.engine.native.warmup import warm_up
from tandem_server.engine.native.weights import load_decoder
from tandem_server.engine.wire import RunnerSpec


def load_generator(spec: RunnerSpec, report: ProgressReporter) -> NativeEngine:
    """Loads a decoder with everything a step needs. Raises LoadError."""
    config, why = _choose_decoder(Path(spec.path), spec)
    device = open_device(spec, config.hidden * max(2 * config.intermediate, config.qkv_width))
    with computing(device):
        return _load(spec, config, why, device, report)


def _load(
    spec: RunnerSpec, config: DecoderConfig, why: str | None, device: torch.device, report: ProgressReporter
) -> NativeEngine:
    """The rest of a load, `why` as `_choose_decoder` tells it."""
    slots = spec.slots or DEFAULT_SLOTS
    formats = _choose_formats(spec, config, device, slots, fused=why is None)
    before = used_bytes(device)
    with tidy(device):
        config, weights = _read_weights(spec, config, formats, device, report, fused=why is None)
    room = _make_room(spec, config, formats, device, slots, fused=why is None)
    with_weights = used_bytes(device)
    decoder = _make_decoder(config, weights, slots, room)
    decoder.prove_span()
    sizes = _row_sizes(decoder, formats.dtype)
    step = _make_step(decoder, sizes, room)
    limits = _limits(spec, decoder, room)
    warm_up(step, limits, device)
    overhead = overhead_bytes(device, before, with_weights, weights, decoder)
    # On a CPU a step gives back what it took; the largest one counts all the same.
    overhead += room.step_bytes if device.type == "cpu" else 0
    reason = (
        f"native engine: {way_text(config, decoder, why)}; {formats.reason}; "
        f"steps of {', '.join(map(str, sizes))} rows, "
        f"{attention_text(decoder)}{pool_text(limits)}"
    )
    loaded = loaded_of(spec, decoder, weights, formats, room, overhead, reason)
    return NativeEngine(spec, loaded, step, limits, device)


def _choose_decoder(folder: Path, spec: RunnerSpec) -> tuple[DecoderConfig, str | None]:
    """The model's shape, and why the fused decoder does not compute it (None: it does). Raises LoadError."""
    try:
        return read_decoder_config(folder), None
    except NotFused as error:
        raw = read_json(folder / "config.json")
        architecture = architecture_of(raw)
        for asked, wish, instead in (
            (spec.quantization != "None", f"quantization {spec.quantization}", "quantization to None"),
            (spec.shared_cache, "kvCache.policy Shared", "kvCache.policy to Guaranteed"),
        ):
            if asked:
                raise LoadError(
                    f"{wish} is for models with a fused decoder, and {architecture} has none: {error}; "
                    f"set {instead}, or use engine: VLLM"
                ) from None
        return read_library_config(folder, raw, architecture), str(error)


def _choose_formats(spec: RunnerSpec, config: DecoderConfig, device: torch.device, slots: int, fused: bool) -> Formats:
    """Layout and type of the matrices; on a CPU also the threads, which torch has from here on."""
    if device.type != "cpu" or spec.quantization not in ("None", "Int8", "Int4"):
        layout, by = layout_for(spec.quantization, device, slots), ""
        dtype, reason = choose_dtype(spec.dtype, config, device, slots, None, spec.quantization)
    elif spec.quantization != "None":
        layout, by = quantized_cpu_layout(spec.quantization, config, device, slots)
        dtype, reason = choose_dtype(spec.dtype, config, device, slots, None, spec.quantization)
    else:
        layouts = cache(partial(cpu_layout, config, slots=slots, fused=fused))
        dtype, reason = choose_dtype(
            spec.dtype,
            config,
            device,
            slots,
            lambda dtype: time_largest_layer(config, slots, dtype, layouts(dtype)[0].make),
        )
        layout, by = layouts(dtype)
    reason += f"; {by}" if by else ""
    if device.type == "cpu" and spec.threads is None:
        timer = partial(time_threads, config=config, slots=slots, dtype=dtype, make=layout.make)
        threads, threads_reason = choose_threads(torch.get_num_threads(), timer)
        torch.set_num_threads(threads)
        reason += f"; {threads_reason}" if threads_reason else ""
    return Formats(dtype, layout, Packing(dtype.itemsize, spec.quantization, device.type == "cuda"), reason)


def _read_weights(
    spec: RunnerSpec,
    config: DecoderConfig,
    formats: Formats,
    device: torch.device,
    report: ProgressReporter,
    fused: bool,
) -> tuple[DecoderConfig, Weights]:
    """The weights on the device, and the config with what they alone can tell. Raises LoadError."""
    folder, dtype = Path(spec.path), formats.dtype
    checkpoint = Checkpoint(folder, report)
    if fused:
        inventory = inventory_of(config)
        needed = inventory.bytes(formats.packing) + inventory.loading(formats.packing)
    else:
        needed = sum(tensor.elements for tensor in checkpoint.stored.values()) * dtype.itemsize
    check_weights_fit(needed, available_bytes(device, spec.memory_limit))
    weights: Weights
    if fused:
        weights = load_decoder(checkpoint, config, dtype, device, formats.layout)
    else:
        report("reading weights", 0, checkpoint.total_bytes)
        weights = load_library(folder, config, dtype, device, checkpoint.names())
        report("reading weights", checkpoint.total_bytes, checkpoint.total_bytes)
        config = shaped(config, weights)
    checkpoint.close()
    report("warming up", checkpoint.total_bytes, checkpoint.total_bytes)
    return config, weights


def _make_room(
    spec: RunnerSpec, config: DecoderConfig, formats: Formats, device: torch.device, slots: int, fused: bool
) -> Room:
    """How much context the memory that is left gives. Raises LoadError, DoesNotFit among them."""
    cache_dtype, on_gpu = choose_cache_dtype(spec.cache_dtype, formats.dtype, device, fused), device.type == "cuda"
    shape, unpacked = step_shape_of(config), inventory_of(config).unpacked(formats.packing) if fused else 0
    processors = torch.cuda.get_device_properties(device).multi_processor_count if on_gpu else MOST_PROCESSORS
    together = together_rows(on_gpu and fused, formats.dtype.itemsize)
    steps = Steps(shape, formats.dtype.itemsize, on_gpu, unpacked, processors, together)
    token, free = config.cache_bytes_per_token(cache_dtype.itemsize), usable_bytes(device, spec.memory_limit)

    def needed(context: int) -> int:
        return cache_positions(1 if spec.shared_cache else slots, context) * token + steps.bytes(slots, context)

    context, reason = given_context(wish_of(spec), config.context_limit, slots, free, needed)
    largest = steps.bytes(slots, context)
    pool = pool_blocks(context, slots, token, free - largest) if spec.shared_cache else None
    budget = CUDA_BUDGET if on_gpu else CPU_BUDGET
    return Room(context, reason, pool, cache_dtype, steps.chunk, budget, together, largest)


def _make_decoder(config: DecoderConfig, weights: Weights, slots: int, room: Room) -> Model:
    if isinstance(weights, LibraryWeights):
        return LibraryDecoder(config, weights, slots, room.context)
    if weights.embedding.device.type == "cuda":
        return GpuDecoder(config, weights, slots, room.context, gpu_kernels(), room.pool, room.cache_dtype)
    kind = CpuDecoder if isinstance(weights.head, CompiledLinear) else Decoder
    return kind(config, weights, slots, room.context, room.pool)


def _make_step(decoder: Model, sizes: tuple[int, ...], room: Room) -> DeviceStep:
    if isinstance(decoder, GpuDecoder):
        return GpuStep(decoder, sizes, CudaGraphs(), together=room.together)
    return CpuStep(decoder, sizes) if isinstance(decoder, CpuDecoder) else DeviceStep(decoder, sizes)


def _limits(spec: RunnerSpec, decoder: Model, room: Room) -> Limits:
    return Limits(
        slots=decoder.slots,
        context=room.context,
        vocabulary=decoder.config.vocabulary,
        chunk=room.chunk,
        budget=room.budget,
        slot_blocks=decoder.cache.slot_blocks,
        span=decoder.span,
        pool_blocks=room.pool,
        reads_own=isinstance(decoder, GpuDecoder | CpuDecoder),
        # What is kept of a sequence that may have to be read again does not hold for another.
        reuse=spec.prefix_cache and decoder.switch is None,
    )


def _row_sizes(decoder: Model, dtype: torch.dtype) -> tuple[int, ...]:
    """Numbers of rows that a step may compute.

    On a GPU other numbers of rows take other kernels, whose sums differ in the last bits: in the narrow formats that is
    told (two best tokens that are so near may change places), in float32 nothing may depend on the neighbours.
    """
    if decoder.device.type != "cpu":
        graphs = isinstance(decoder, GpuDecoder) and dtype.itemsize < torch.float32.itemsize
        return batch_sizes(decoder.slots) if graphs else (decoder.slots,)
    with torch.inference_mode():
        return row_invariant_sizes(decoder.linears(), decoder.slots, dtype)
