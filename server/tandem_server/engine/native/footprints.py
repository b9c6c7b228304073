"""The memory of each kind of model that the native engine loads, by its configuration and tensors' sizes. No torch.

Asked by `estimate.py` before there is a runner, and by the encoders' load. What only the libraries could tell is
bounded from above, and said so in `Footprint.bounds`.
"""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from tandem_api.fields import Device
from tandem_api.fit import CPU_FIXED, CPU_LIBRARY_FIXED, GPU_FIXED, Footprint, Wish, mib
from tandem_api.fit_steps import Steps
from tandem_api.fit_weights import Packing
from tandem_server.engine.interface import LoadError
from tandem_server.engine.native.config import DecoderConfig, refuse_quantised
from tandem_server.engine.native.formats import ITEMSIZES, format_of, stored_format
from tandem_server.engine.native.headers import Stored, read_headers
from tandem_server.engine.native.library_shape import LibraryShape
from tandem_server.engine.native.prompts import together_rows
from tandem_server.engine.native.sentence import BATCH_TOKENS, POOLER, TASK_HEADS, most_tokens, positions_of
from tandem_server.engine.native.shape import inventory_of, step_shape_of

Tensors = Mapping[str, Stored]


def fused_footprint(config: DecoderConfig, wish: Wish) -> Footprint:
    """Of a decoder of ours: known but for the format where that is measured, and the fixed part."""
    on_gpu = wish.device is Device.GPU
    dtype, bounds = _format(wish, stored_format(config.dtype))
    packing, inventory = Packing(ITEMSIZES[dtype], wish.quantization, on_gpu), inventory_of(config)
    return Footprint(
        architecture=config.architecture,
        context_limit=config.context_limit,
        weights=inventory.bytes(packing),
        token=config.cache_bytes_per_token(1 if wish.cache_dtype == "FP8" else packing.itemsize),
        fixed=GPU_FIXED if on_gpu else CPU_FIXED,
        loading=inventory.loading(packing),
        steps=Steps(
            step_shape_of(config),
            packing.itemsize,
            on_gpu,
            inventory.unpacked(packing),
            together=together_rows(on_gpu, packing.itemsize),
        ),
        parameters=inventory.parameters,
        dtype=dtype,
        bounds=(*bounds, *_gpu_bounds(on_gpu)),
    )


def library_footprint(
    folder: Path, raw: dict[str, Any], architecture: str, wish: Wish, tensors: Tensors | None
) -> Footprint:
    """Of a model that the transformers library computes. Raises LoadError for what only fused decoders have."""
    refuse_quantised(raw)
    for asked, what in (
        (wish.quantization != "None", f"quantization {wish.quantization}"),
        (wish.shared, "kvCache.policy Shared"),
        (wish.cache_dtype == "FP8", "kvCache.dtype FP8"),
    ):
        if asked:
            raise LoadError(f"{what} is for models with a fused decoder, and {architecture} has none")
    on_gpu, shape = wish.device is Device.GPU, LibraryShape(raw)
    dtype, bounds = _format(wish, stored_format(raw.get("dtype") or raw.get("torch_dtype")))
    itemsize, found = ITEMSIZES[dtype], (read_headers(folder) if tensors is None else tensors).values()
    elements = sum(tensor.elements for tensor in found if tensor.is_float)
    largest = max((tensor.elements for tensor in found if tensor.is_float), default=0)
    # On a CPU the head is replaced by a matrix of its own, so that a tied table is there twice.
    copies = shape.step.vocabulary * shape.step.hidden if shape.tied and not on_gpu else 0
    return Footprint(
        architecture=architecture,
        context_limit=shape.positions,
        weights=(elements + copies) * itemsize,
        token=shape.token_elements * itemsize,
        fixed=GPU_FIXED if on_gpu else CPU_LIBRARY_FIXED,
        loading=2 * largest * itemsize,
        steps=Steps(shape.step, itemsize, on_gpu),
        parameters=elements,
        dtype=dtype,
        bounds=(
            *bounds,
            "the transformers library computes it: its attention's shape is taken from config.json at its widest",
            *_gpu_bounds(on_gpu),
        ),
    )


def encoder_footprint(
    folder: Path, raw: dict[str, Any], architecture: str, wish: Wish, tensors: Tensors | None
) -> tuple[Footprint, Wish]:
    """Its memory, and the wish as encoders take it: they have no contexts that could shrink."""
    refuse_quantised(raw)
    if wish.quantization != "None":
        raise LoadError(f"quantization {wish.quantization} is for models that make text; {architecture} does not")
    on_gpu, stored = wish.device is Device.GPU, stored_format(raw.get("dtype") or raw.get("torch_dtype"))
    dtype = wish.dtype if wish.dtype in ITEMSIZES else stored if on_gpu else "Float32"
    itemsize, found = ITEMSIZES[dtype], read_headers(folder) if tensors is None else tensors
    elements = _encoder_elements(folder, raw, architecture, found)
    limit = positions_of(raw, architecture)
    limit = min(limit, most_tokens(folder) or limit)
    shape = LibraryShape(raw).step
    largest = max((tensor.elements for tensor in found.values() if tensor.is_float), default=0)

    def steps(slots: int, context: int) -> int:
        tokens: int = max(BATCH_TOKENS, context)
        # States, their residual, normed and mixed copies; projections; the inner layer, before and after.
        widths = 4 * shape.hidden + shape.qkv_width + 2 * shape.intermediate
        return tokens * (widths * itemsize + context * (1 + itemsize))

    footprint = Footprint(
        architecture=architecture,
        context_limit=limit,
        weights=elements * itemsize,
        token=0,
        fixed=GPU_FIXED if on_gpu else CPU_LIBRARY_FIXED,
        loading=largest * itemsize,
        steps=steps,
        parameters=elements,
        dtype=dtype,
        bounds=(
            "the transformers library computes it: intermediate results are bounded by its widths",
            *_gpu_bounds(on_gpu),
        ),
    )
    return footprint, replace(wish, context=min(wish.context or limit, limit), may_shrink=False, shared=False)


def _encoder_elements(folder: Path, raw: dict[str, Any], architecture: str, tensors: Tensors) -> int:
    """Numbers of the model and of the layers behind its pooling: what was trained for something else is not read."""
    heads = tuple(head for head in TASK_HEADS if head != POOLER)
    own = sum(tensor.elements for name, tensor in tensors.items() if tensor.is_float and not name.startswith(heads))
    hidden = int(raw.get("hidden_size") or 0)
    has_pooler = any(POOLER in name for name in tensors)
    # The library's class makes one where the checkpoint has none.
    made = 0 if has_pooler or not architecture.startswith(("Bert", "Roberta", "XLMRoberta", "MPNet")) else hidden
    behind = sum(
        tensor.elements for file in folder.glob("*/model.safetensors") for tensor in read_headers(file.parent).values()
    )
    return own + made * (made + 1) + behind


def _format(wish: Wish, stored: str) -> tuple[str, tuple[str, ...]]:
    """The format, and what of it is assumed."""
    dtype, _ = format_of(wish.dtype, stored, wish.device is Device.GPU, wish.quantization)
    if dtype is not None:
        return dtype, ()
    return "Float32", ("dtype Auto on a CPU is measured at load; Float32 is counted, BFloat16 would take half",)


def _gpu_bounds(on_gpu: bool) -> tuple[str, ...]:
    text = f"{mib(GPU_FIXED)} are assumed for the driver's context and kernels"
    return (text,) if on_gpu else ()
