"""The native engine for models that make text: loads a decoder, then runs one of the two loops.

Called by the runner. `load_generator` does the steps of a load in order, each in a module of its own.
"""

import logging
from dataclasses import replace
from functools import partial
from pathlib import Path

import torch

from tandem_server.engine.interface import Link, LoadError, ProgressReporter
from tandem_server.engine.native.checkpoint import Checkpoint
from tandem_server.engine.native.config import DecoderConfig, NotFused, architecture_of, read_decoder_config, read_json
from tandem_server.engine.native.cuda import CudaExecutor
from tandem_server.engine.native.decoder import Decoder
from tandem_server.engine.native.dtype import (
    choose_cache_dtype,
    choose_dtype,
    choose_threads,
    stored_dtype,
    time_threads,
)
from tandem_server.engine.native.executors import Executor, InlineExecutor, WorkerExecutor
from tandem_server.engine.native.gpu_decoder import GpuDecoder, MakeKernels
from tandem_server.engine.native.gpu_step import GpuStep
from tandem_server.engine.native.grammar import Grammars
from tandem_server.engine.native.graphs import CudaGraphs, batch_sizes
from tandem_server.engine.native.library import LibraryWeights, load_library, read_library_config, shaped
from tandem_server.engine.native.library_decoder import LibraryDecoder
from tandem_server.engine.native.linear import row_invariant_sizes
from tandem_server.engine.native.loop import Loop
from tandem_server.engine.native.model import Model
from tandem_server.engine.native.quantized import layout_for, weight_bytes
from tandem_server.engine.native.resources import (
    ContextWish,
    available_bytes,
    check_weights_fit,
    cpu_threads,
    fit_context,
    fit_pool,
    resident_bytes,
    steps_bytes,
)
from tandem_server.engine.native.scheduler import Limits, Scheduler
from tandem_server.engine.native.stats import StatsKeeper
from tandem_server.engine.native.step import DeviceStep
from tandem_server.engine.native.warmup import warm_up
from tandem_server.engine.native.weights import DecoderWeights, load_decoder
from tandem_server.engine.wire import Add, Loaded, RunnerSpec

log = logging.getLogger("tandem.runner")

DEFAULT_SLOTS = 4
ONE_THREAD_BELOW = 1 << 19
"""Elements of the largest layer matrix."""
CUDA_CHUNK, CUDA_BUDGET = 2048, 8192


class NativeEngine:
    """One resident decoder."""

    def __init__(
        self, spec: RunnerSpec, loaded: Loaded, step: DeviceStep, limits: Limits, device: torch.device
    ) -> None:
        self.loaded = loaded
        self.overlapped = spec.overlapped
        """Which loop `serve` runs."""
        self.reuse = limits.reuse
        """Whether `serve` keeps blocks for later requests."""
        self._step, self._limits, self._device = step, limits, device
        self._folder = Path(spec.path)
        self._admitted = 0

    def serve(self, link: Link) -> None:
        """Runs requests until a `Stop` arrives."""
        grammars = Grammars(self._folder, self._limits.vocabulary)
        scheduler = Scheduler(replace(self._limits, reuse=self.reuse), self._on_admit, compile=grammars.begin)
        executor = self._executor()
        loop = Loop(scheduler, executor, link, StatsKeeper(link, scheduler, executor))
        try:
            if not self.overlapped:
                loop.run_plain()
            elif isinstance(executor, WorkerExecutor):
                executor.run_beside(loop.run_overlapped)
            else:
                loop.run_overlapped()
        finally:
            executor.close()
            grammars.close()

    def _executor(self) -> Executor:
        if self._device.type == "cuda":
            return CudaExecutor(self._step.compute, self._device, self._limits.slots)
        return (WorkerExecutor if self.overlapped else InlineExecutor)(self._step.compute)

    def _on_admit(self, add: Add, slot: int) -> None:
        self._admitted += 1
        log.info(
            "admitted request %d to slot %d (admission %d: %d prompt tokens, at most %d new ones)",
            add.request,
            slot,
            self._admitted,
            len(add.prompt),
            add.max_tokens,
        )


def open_device(spec: RunnerSpec, widest: int) -> tuple[torch.device, str]:
    """The device that the pod was told to use, and its name. Raises LoadError when it is not there.

    `widest` is the number of elements of the model's largest layer matrix: for small ones a second CPU thread costs
    more in handing over than it saves, and where the CPUs are shared it stalls every operation.
    """
    if spec.device != "GPU":
        threads = cpu_threads(spec.threads or (1 if widest < ONE_THREAD_BELOW else None))
        torch.set_num_threads(threads)
        return torch.device("cpu"), _cpu_name(threads)
    try:
        torch.cuda.init()  # type: ignore[no-untyped-call]
        return torch.device("cuda", 0), torch.cuda.get_device_name(0)
    except (RuntimeError, AssertionError) as error:
        raise LoadError(
            f"a GPU was asked for and none can be used: {error}; set device: CPU to compute on the CPU"
        ) from None


def load_generator(spec: RunnerSpec, report: ProgressReporter) -> NativeEngine:
    """Loads a decoder with everything a step needs. Raises LoadError."""
    folder = Path(spec.path)
    config, why = _choose_decoder(folder, spec)
    device, device_name = open_device(spec, config.hidden * max(2 * config.intermediate, config.qkv_width))
    slots = spec.slots or DEFAULT_SLOTS
    layout = layout_for(spec.quantization, device, slots)
    dtype, dtype_reason = choose_dtype(spec.dtype, config, device, slots, None, spec.quantization)
    threads_reason = ""
    if device.type == "cpu" and spec.threads is None:
        timer = partial(time_threads, config=config, slots=slots, dtype=dtype)
        threads, threads_reason = choose_threads(torch.get_num_threads(), timer)
        torch.set_num_threads(threads)
        device_name = _cpu_name(threads)
    before = _used(device)
    checkpoint = Checkpoint(folder, report)
    elements = checkpoint.total_bytes // stored_dtype(config).itemsize
    check_weights_fit(weight_bytes(elements, config, layout, dtype.itemsize), available_bytes(device))
    weights: DecoderWeights | LibraryWeights
    if why is None:
        weights = load_decoder(checkpoint, config, dtype, device, layout)
    else:
        report("reading weights", 0, checkpoint.total_bytes)
        weights = load_library(folder, config, dtype, device, checkpoint.names())
        report("reading weights", checkpoint.total_bytes, checkpoint.total_bytes)
        config = shaped(config, weights)
    checkpoint.close()
    cache_dtype = choose_cache_dtype(spec.cache_dtype, dtype, device, why is None)
    chunk, budget = (CUDA_CHUNK, CUDA_BUDGET) if device.type == "cuda" else (Limits.chunk, Limits.budget)
    largest_step = partial(steps_bytes, config, slots, chunk, dtype.itemsize, cache_dtype.itemsize, device)
    token_bytes, available = config.cache_bytes_per_token(cache_dtype.itemsize), available_bytes(device)
    context, reason = fit_context(
        ContextWish(spec.context, spec.min_context, spec.may_shrink),
        config.context_limit,
        1 if spec.shared_cache else slots,
        token_bytes,
        available,
        largest_step,
    )
    pool = fit_pool(context, slots, token_bytes, available, largest_step(context)) if spec.shared_cache else None
    report("warming up", checkpoint.total_bytes, checkpoint.total_bytes)
    with_weights = _used(device)
    decoder: Model
    if isinstance(weights, LibraryWeights):
        decoder = LibraryDecoder(config, weights, slots, context)
    elif device.type == "cuda":
        decoder = GpuDecoder(config, weights, slots, context, gpu_kernels(), pool, cache_dtype)
    else:
        decoder = Decoder(config, weights, slots, context, pool)
    decoder.prove_span()
    sizes = _row_sizes(decoder, dtype)
    step = GpuStep(decoder, sizes, CudaGraphs()) if isinstance(decoder, GpuDecoder) else DeviceStep(decoder, sizes)
    limits = Limits(
        slots=slots,
        context=context,
        vocabulary=config.vocabulary,
        chunk=chunk,
        budget=budget,
        slot_blocks=decoder.cache.slot_blocks,
        span=decoder.span,
        pool_blocks=pool,
        reads_own=isinstance(decoder, GpuDecoder),
        # What is kept of a sequence that may have to be read again does not hold for another.
        reuse=spec.prefix_cache and decoder.switch is None,
    )
    warm_up(step, limits, device)
    loaded = Loaded(
        task="Generate",
        architecture=config.architecture,
        parameters=weights.parameters,
        weight_bytes=weights.bytes,
        cache_bytes=decoder.cache_bytes,
        overhead_bytes=_overhead(device, before, with_weights, weights, decoder)
        + (largest_step(context) if device.type == "cpu" else 0),
        device=device_name,
        device_kind="GPU" if device.type == "cuda" else "CPU",
        dtype=str(dtype).removeprefix("torch.") if spec.quantization == "None" else spec.quantization.lower(),
        slots=slots,
        context_limit=config.context_limit,
        context=context,
        context_reason=reason,
        embedding_size=0,
        engine_reason=f"native engine: {_way(config, decoder, why)}; {dtype_reason}; "
        f"{threads_reason}{'; ' if threads_reason else ''}"
        f"steps of {', '.join(map(str, sizes))} rows, {_attention_text(decoder)}{_pool_text(limits)}",
        pool_tokens=min(slots * context, decoder.cache.scratch),
        shifts=decoder.switch is None,
    )
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


def _way(config: DecoderConfig, decoder: Model, why: str | None) -> str:
    if not isinstance(decoder, LibraryDecoder):
        return f"{config.architecture} has a fused decoder"
    rows = "together" if decoder.together else "one by one"
    return f"{why}, so {config.architecture} goes through the transformers library, its rows {rows}"


def _cpu_name(threads: int) -> str:
    return f"CPU ({threads} thread{'s' if threads > 1 else ''})"


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


def gpu_kernels() -> MakeKernels:
    """Makes the kernels that a GPU attends by. Raises LoadError where triton is missing."""
    try:
        from tandem_server.engine.native.paged_attention import PagedAttention
    except ImportError as error:
        raise LoadError(f"attention on a GPU needs triton, which comes with torch for CUDA: {error}") from None
    return PagedAttention.of


def _attention_text(decoder: Model) -> str:
    if not isinstance(decoder, GpuDecoder):
        return f"attention by {decoder.span} keys"
    return f"attention by kernels, {'in graphs' if decoder.recordable else 'without graphs, which experts rule out'}"


def _pool_text(limits: Limits) -> str:
    if limits.pool_blocks is None:
        return ""
    return f"; {limits.slots} slots share memory for {limits.pool_blocks * limits.block} tokens"


def _used(device: torch.device) -> int:
    """Memory in use: of this process on a CPU, of the allocator on a GPU."""
    return resident_bytes() if device.type == "cpu" else torch.cuda.memory_reserved(device)


def _overhead(
    device: torch.device, before: int, with_weights: int, weights: DecoderWeights | LibraryWeights, decoder: Model
) -> int:
    """What the load took beyond weights and contexts; on a CPU libraries and interpreter count too.

    On a CPU it is measured before the contexts are made: how much of those is resident differs from what they may take.
    What a step takes is given back there after each; on a GPU the allocator keeps what the largest one took.
    """
    if device.type == "cpu":
        return max(0, with_weights - weights.bytes)
    return max(0, _used(device) - before - weights.bytes - decoder.cache_bytes)
