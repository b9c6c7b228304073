"""Compares the Triton kernels with float64: on a GPU, or under triton's interpreter in a process of its own.

The interpreter is chosen when triton is imported and holds for the whole process, so `run` sends each case to a worker
that has `TRITON_INTERPRET` set before it imports anything, and gets plain numbers back.
"""

import os
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from multiprocessing import get_context
from typing import Any

BLOCK = 32


@dataclass(frozen=True)
class Case:
    """One launch. `dtype` is the cache's format, `query` that of queries and results."""

    lengths: tuple[int, ...]
    kv_heads: int = 1
    group: int = 2
    size: int = 64
    capacity: int = 128
    dtype: str = "float32"
    query: str = "float32"
    processors: int = 2
    least_share: int = 32
    cap: float | None = None
    window: int | None = None
    sinks: bool = False
    key_scale: float = 1.0
    value_scale: float = 1.0
    seed: int = 0
    device: str = "cpu"


class Interpreter:
    """The worker."""

    def __init__(self) -> None:
        self._pool = ProcessPoolExecutor(1, mp_context=get_context("spawn"), initializer=_interpret)

    def run(self, function: Callable[..., Any], *arguments: Any) -> Any:
        return self._pool.submit(function, *arguments).result()

    def close(self) -> None:
        self._pool.shutdown()


def _interpret() -> None:
    os.environ["TRITON_INTERPRET"] = "1"
    import torch

    torch.set_num_threads(1)


def attention_error(case: Case) -> float:
    """Largest difference from float64, NaN counted as infinite."""
    import torch

    got, wanted = _attend(case)
    if not got.isfinite().all():
        return float("inf")
    return float((got.double() - torch.stack(wanted)).abs().max())


def prompt_error(case: Case, parts: list[tuple[int, int, int]]) -> float:
    """As `attention_error`, of `parts` (sequence, first token, tokens) in one launch."""
    import torch

    from tandem_server.engine.native.prompts import Part, rows_of, work_of

    generator = torch.Generator().manual_seed(case.seed)
    cache, tables = _cache(case, generator)
    parts = [Part(*part) for part in parts]
    for part in parts:
        places = _places(tables, part.slot, torch.arange(part.start + part.count))
        shape = (2 * case.kv_heads, len(places), case.size)
        cache[:, places] = torch.randn(shape, generator=generator).to(cache.dtype)
    seats, lengths, _ = rows_of(parts)
    heads = (case.kv_heads, case.group)
    query = torch.randn(len(seats), *heads, case.size, generator=generator).to(getattr(torch, case.query))
    sinks = torch.randn(case.kv_heads * case.group, generator=generator) if case.sinks else None
    attention = _kernels(case, 1, cache)
    work = torch.from_numpy(work_of(parts, attention.prompt_tokens, lambda part: False))
    scale, options = case.size**-0.5, {"cap": case.cap, "window": case.window}
    arguments = _moved((query, cache, tables, work), case.device)
    on_device = _moved((sinks,), case.device)[0]
    got = attention.attend_prompt(*arguments, scale=scale, sinks=on_device, **options).cpu()
    if not got.isfinite().all():
        return float("inf")
    scales = {"key_scale": case.key_scale, "value_scale": case.value_scale}
    wanted = [
        reference(query[row], cache[:, _places(tables, seat, torch.arange(n))], scale, sinks=sinks, **options, **scales)
        for row, (seat, n) in enumerate(zip(seats.tolist(), lengths.tolist(), strict=True))
    ]
    return float((got.double() - torch.stack(wanted)).abs().max())


def crowd_changes(case: Case) -> list[int]:
    """Rows whose bits differ between the whole launch and one in which all the others are absent."""
    import torch

    crowd, _ = _attend(case)
    changed = []
    for row, length in enumerate(case.lengths):
        if length:
            alone, _ = _attend(case, only=row)
            if not torch.equal(alone[row], crowd[row]) or any(alone[other].any() for other in range(row)):
                changed.append(row)
    return changed


def write_problems(
    case: Case, normed: bool = False, rotated: int | None = None, starts: bool = False, seated: bool = False
) -> list[str]:
    """What `turn_and_write` put elsewhere than at the rows' last positions, or otherwise than float64 has it.

    `seated`: the sequences' tables stand in another order than the rows.
    """
    import torch

    generator = torch.Generator().manual_seed(case.seed)
    cache, tables = _cache(case, generator)
    wanted = cache.double()
    rows, kv, heads, size = len(case.lengths), case.kv_heads, case.kv_heads * case.group, case.size
    # Numbers that every format holds exactly; those beyond FP8's largest must come out as that.
    new = torch.randint(-8, 9, (rows, heads + 2 * kv, size), generator=generator) / 4
    new[:, -1, 0] = 900.0
    new = new.to(getattr(torch, case.query))
    turning = size if rotated is None else rotated
    angles = torch.randn(2 * case.capacity, turning, generator=generator)
    rope = (angles.cos(), angles.sin()) if normed else (torch.ones_like(angles), torch.zeros_like(angles))
    norms = [torch.randn(size, generator=generator) if normed else None for _ in range(2)]
    begins = torch.arange(rows) * 3 if starts else None
    lengths = torch.tensor(case.lengths, dtype=torch.int32)
    arguments = (new, tuple(norms), 1e-5, rope, cache, tables, lengths, begins)
    if seated:
        seats = torch.arange(rows - 1, -1, -1, dtype=torch.int32)
        turned = None if begins is None else begins.flip(0)
        arguments = (*arguments[:5], tables.flip(0), lengths, turned, seats)
    moved = _moved(arguments, case.device)
    query = _kernels(case, rows, cache).turn_and_write(*moved).cpu()
    cache = moved[4].cpu()
    limit = 448.0 if cache.dtype.itemsize == 1 else 1e9
    tolerance = 1e-5 if normed else 0.0
    problems = []
    for row, length in enumerate(case.lengths):
        if not length:
            continue
        qk, values = new[row, : heads + kv].double(), new[row, heads + kv :].double()
        if normed:
            qk = qk / (qk.square().mean(-1, keepdim=True) + 1e-5).sqrt()
            qk = torch.cat((qk[:heads] * norms[0], qk[heads:] * norms[1]))
        at = length - 1 + (3 * row if starts else 0)
        part = qk[:, :turning]
        part = part * rope[0][at] + part.roll(turning // 2, -1) * rope[1][at]
        qk = torch.cat((part, qk[:, turning:]), -1)
        place = _places(tables, row, torch.tensor([length - 1]))
        wanted[:kv, place] = (qk[heads:] / case.key_scale).clamp(-limit, limit)[:, None]
        wanted[kv:, place] = (values / case.value_scale).clamp(-limit, limit)[:, None]
        error = float((query[row].double().view(heads, size) - qk[:heads]).abs().max())
        problems += [f"query of row {row} is {error} off"] if error > tolerance else []
    wrong = ((cache.double().nan_to_num(nan=1e9) - wanted.nan_to_num(nan=1e9)).abs() > tolerance).nonzero()
    return problems + [f"head {head} place {place} number {number}" for head, place, number in wrong[:5].tolist()]


def gate_error(width: int, activation: str, device: str = "cpu") -> float:
    """Largest difference of `gated` from float64."""
    import torch
    import torch.nn.functional as F

    from tandem_server.engine.native.paged_attention import gated

    both = torch.randn(3, 2 * width, generator=torch.Generator().manual_seed(1)) * 3
    x, up = both.double().chunk(2, -1)
    wanted = {"silu": F.silu(x), "gelu": F.gelu(x), "gelu_tanh": F.gelu(x, approximate="tanh")}[activation] * up
    return float((gated(both.to(device), activation).cpu() - wanted).abs().max())


def experts_error(rows: int, special: bool = False, dtype: str = "float32", device: str = "cpu") -> tuple[float, bool]:
    """Largest difference of all experts in one tensor from one after the other; and whether rows have the same bits
    alone. `special`: biases and a limit, as gpt-oss has them."""
    import torch

    from tandem_server.engine.native.config import ExpertsConfig
    from tandem_server.engine.native.feedforward import Experts
    from tandem_server.engine.native.gpu_experts import StackedExperts
    from tandem_server.engine.native.linear import PlainLinear

    hidden, inner, count = 72, 40, 5
    config = ExpertsConfig(count, 2, inner, not special, **({"limit": 1.5, "alpha": 1.7} if special else {}))
    generator, number = torch.Generator().manual_seed(3), getattr(torch, dtype)

    def made(*shape: int) -> torch.Tensor:
        return (torch.randn(shape, generator=generator) * shape[-1] ** -0.5).to(device, number)

    sizes = ((2 * inner, hidden), (hidden, inner))
    gate_up, down = ((made(count, *size), made(count, size[0]) if special else None) for size in sizes)

    class Router(PlainLinear):
        """Torch's own product may differ in the last bits with the number of rows."""

        def __call__(self, x: torch.Tensor) -> torch.Tensor:
            return torch.cat([super(Router, self).__call__(row[None]) for row in x])

    router = Router(made(count, hidden), None)
    lists = [[PlainLinear(w[n], None if b is None else b[n]) for n in range(count)] for w, b in (gate_up, down)]
    plain = Experts(config, router, lists[0], lists[1], "silu")
    ours = StackedExperts(config, router, gate_up, down, "silu")
    x = made(rows, hidden) * 4
    with torch.inference_mode():
        together = ours(x, True)
        some = sorted({0, rows // 2, rows - 1})
        alone = torch.cat([ours(x[row : row + 1], True) for row in some])
        difference = float((together.float() - plain(x, True).float()).abs().max())
    return difference, torch.equal(together[some], alone)


def decoder_error(folder: str, lengths: list[int], device: str = "CPU") -> tuple[float, float]:
    """Largest differences between the CPU's way and the kernels': of a prompt's last token, and of one more token.

    The prompts, one shorter than `lengths`, are read in two chunks into blocks that lie anywhere.
    """
    import torch

    from tandem_server.engine.native.decoder import Decoder
    from tandem_server.engine.native.gpu_decoder import GpuDecoder
    from tandem_server.engine.native.load import load_generator
    from tandem_server.engine.native.paged_attention import PagedAttention
    from tandem_server.engine.wire import RunnerSpec

    slots = len(lengths)
    spec = RunnerSpec("m", folder, "", dtype="Float32", slots=slots, context=128, threads=1, device=device)
    own = load_generator(spec, lambda *_: None)._step._decoder
    plain = Decoder(own.config, own.weights, slots, own.context)
    paged = GpuDecoder(own.config, own.weights, slots, own.context, PagedAttention.of)
    generator = torch.Generator().manual_seed(1)
    order = torch.randperm(slots * own.cache.slot_blocks, generator=generator).view(slots, -1)
    prompts = [torch.randint(150, (length,), generator=generator).to(own.device) for length in lengths]
    hidden = []
    with torch.inference_mode():
        for decoder in (plain, paged):
            decoder.cache.pool.fill_(float("nan"))
            decoder.cache.pool[:, :, decoder.cache.scratch :] = 0
            last = []
            for slot, prompt in enumerate(prompts):
                decoder.cache.admit(slot, order[slot].tolist())
                decoder.begin(slot, len(prompt))
                middle = (len(prompt) - 1) // 2
                for start, end in ((0, middle), (middle, len(prompt) - 1)):
                    if start < end:
                        last.append(decoder.prefill(slot, prompt[start:end], start))
            tokens = torch.stack([prompt[-1] if len(prompt) else torch.zeros_like(order[0, 0]) for prompt in prompts])
            if isinstance(decoder, GpuDecoder):
                on_device = torch.tensor(lengths, dtype=torch.int32, device=own.device)
                decoded = decoder.decode_on_device(tokens, on_device)
            else:
                positions, places = (torch.tensor(n, device=own.device) for n in decoder.cache.locate(lengths))
                decoded = decoder.decode(tokens, positions, places, lengths)
            hidden.append((torch.cat(last), decoded[[slot for slot, length in enumerate(lengths) if length]]))
    differences = [float((one - other).abs().max()) for one, other in zip(*hidden, strict=True)]
    return differences[0], differences[1]


def _attend(case: Case, only: int | None = None) -> Any:
    """The kernels' result and the reference; with `only` that row alone takes part, in as few rows as hold it."""
    import torch

    generator = torch.Generator().manual_seed(case.seed)
    cache, tables = _cache(case, generator)
    for row, length in enumerate(case.lengths):
        places = _places(tables, row, torch.arange(length))
        shape = (2 * case.kv_heads, length, case.size)
        cache[:, places] = torch.randn(shape, generator=generator).to(cache.dtype)
    heads = (case.kv_heads, case.group)
    query = torch.randn(len(case.lengths), *heads, case.size, generator=generator).to(getattr(torch, case.query))
    sinks = torch.randn(case.kv_heads * case.group, generator=generator) if case.sinks else None
    lengths = [n if only in (None, row) else 0 for row, n in enumerate(case.lengths)]
    rows = len(lengths) if only is None else only + 1
    attention = _kernels(case, rows, cache)
    for poisoned in (attention._partial, attention._most, attention._sums):
        poisoned.fill_(float("nan"))
    scale = case.size**-0.5
    options = {"cap": case.cap, "window": case.window, "sinks": sinks}
    scales = {"key_scale": case.key_scale, "value_scale": case.value_scale}
    on_device = torch.tensor(lengths[:rows], dtype=torch.int32)
    arguments = [tensor.to(case.device) for tensor in (query[:rows], cache, tables, on_device)]
    on_device_too = {**options, "sinks": None if sinks is None else sinks.to(case.device)}
    got = attention.attend(*arguments, scale=scale, **on_device_too).cpu()
    wanted = [
        reference(query[row], cache[:, _places(tables, row, torch.arange(length))], scale, **options, **scales)
        for row, length in enumerate(lengths[:rows])
    ]
    return got, wanted


def _kernels(case: Case, rows: int, cache: Any) -> Any:
    import torch

    from tandem_server.engine.native.paged_attention import KernelShape, PagedAttention

    size, capacity = case.size, case.capacity
    shape = KernelShape(
        case.kv_heads, case.group, size, capacity, cache.itemsize, case.processors, least_share=case.least_share
    )
    operand = torch.float16 if case.query == "float16" else torch.float32
    if case.device != "cpu":
        operand = getattr(torch, case.query)
    return PagedAttention(shape, rows, operand, torch.device(case.device), case.key_scale, case.value_scale)


def _moved(arguments: Any, device: str) -> Any:
    import torch

    if isinstance(arguments, tuple):
        return tuple(_moved(argument, device) for argument in arguments)
    return arguments.to(device) if isinstance(arguments, torch.Tensor) else arguments


def _cache(case: Case, generator: Any) -> Any:
    """A pool full of NaN whose blocks are dealt out at random, with one block more than anybody has."""
    import torch

    blocks = case.capacity // BLOCK
    count = len(case.lengths) * blocks
    order = torch.randperm(count + 1, generator=generator)[:count]
    cache = torch.full((2 * case.kv_heads, (count + 1) * BLOCK, case.size), float("nan"))
    return cache.to(getattr(torch, case.dtype)), order.view(-1, blocks).to(torch.int32)


def _places(tables: Any, row: int, positions: Any) -> Any:
    return tables[row].long()[positions // BLOCK] * BLOCK + positions % BLOCK


def reference(
    query: Any,
    cached: Any,
    scale: float,
    cap: float | None = None,
    window: int | None = None,
    sinks: Any = None,
    key_scale: float = 1.0,
    value_scale: float = 1.0,
) -> Any:
    """One row in float64: `query` `[kv_heads, group, size]`, `cached` `[2 x kv_heads, length, size]`."""
    import torch

    kv_heads = len(query)
    if cached.shape[1] == 0:
        return torch.zeros(query.shape, dtype=torch.float64)
    cached = cached[:, -window:] if window else cached
    keys, values = cached[:kv_heads].double() * key_scale, cached[kv_heads:].double() * value_scale
    scores = query.double() @ keys.transpose(1, 2) * scale
    if cap is not None:
        scores = cap * torch.tanh(scores / cap)
    if sinks is not None:
        scores = torch.cat((scores, sinks.double().view(kv_heads, -1, 1)), -1)
    return scores.softmax(-1)[..., : keys.shape[1]] @ values
