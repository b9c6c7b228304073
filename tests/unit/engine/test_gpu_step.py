"""The GPU's step on a CPU: everything read from buffers that stand still, graphs whose memory is shared, late reading.

The kernels are plain torch here (`gpu_fakes.py`); the real ones are tested in `test_paged_attention.py`, and all of it
together on a GPU in `tests/gpu`.
"""

import random
import subprocess
import sys
from dataclasses import replace

import msgspec
import pytest
import torch
from engine_fakes import RecordingLink, answers, scattered
from fake_grammar import compiler, possible
from gpu_fakes import LateExecutor, SharedMemoryGraphs, TorchKernels
from torch.utils._python_dispatch import TorchDispatchMode

from tandem_api.fit_steps import batch_sizes
from tandem_server.engine.interface import LoadError
from tandem_server.engine.native import gpu_decoder
from tandem_server.engine.native.blocks import near_home
from tandem_server.engine.native.cache import PagedCache
from tandem_server.engine.native.dtype import FP8
from tandem_server.engine.native.engine import NativeEngine
from tandem_server.engine.native.executors import InlineExecutor
from tandem_server.engine.native.gpu_decoder import GpuDecoder
from tandem_server.engine.native.gpu_step import GpuStep
from tandem_server.engine.native.load import load_generator
from tandem_server.engine.native.loop import Loop
from tandem_server.engine.native.needs import needs_of
from tandem_server.engine.native.plan import Admission, Chunk, Decode, StepPlan
from tandem_server.engine.native.scheduler import Scheduler
from tandem_server.engine.native.stats import StatsKeeper
from tandem_server.engine.wire import Add, RunnerSpec, Sampling

pytestmark = pytest.mark.torch

SLOTS = 4
SHORT = {
    "Llama": ("LlamaForCausalLM", {}),
    "Qwen3": ("Qwen3ForCausalLM", {"head_dim": 32}),
    "caps and windows": ("Gemma2ForCausalLM", {"sliding_window": 50, "head_dim": 16}),
    "experts and sinks": (
        "GptOssForCausalLM",
        {
            "head_dim": 16,
            "sliding_window": 50,
            "layer_types": ["sliding_attention", "full_attention"],
            "num_local_experts": 4,
            "num_experts_per_tok": 2,
        },
    ),
}


def load(folder, **settings) -> NativeEngine:
    spec = RunnerSpec("m", str(folder), "", dtype="Float32", slots=SLOTS, context=400, threads=1, **settings)
    return load_generator(spec, lambda *_: None)


def gpu_step(engine: NativeEngine, checked: bool = True, together: int = 0) -> tuple[GpuStep, SharedMemoryGraphs]:
    """A step of the GPU's kind over the weights of an engine that was loaded for the CPU."""
    own, graphs = engine._step._decoder, SharedMemoryGraphs()
    decoder = GpuDecoder(own.config, own.weights, SLOTS, own.context, TorchKernels.of, engine._limits.pool_blocks)
    decoder.cache.pool.fill_(float("nan"))
    step = GpuStep(decoder, engine._step._sizes, graphs, checked, together)
    step.record(needs_of([Sampling(temperature=0.0)]))
    return step, graphs


def run(engine: NativeEngine, executor, adds: list[Add], overlapped: bool, choose=near_home, apart: int = 3):
    vocabulary = engine._limits.vocabulary
    scheduler = Scheduler(engine._limits, choose_blocks=choose, compile=compiler(vocabulary, random.Random(0)))
    link = RecordingLink([(apart * number, add) for number, add in enumerate(adds)])
    loop = Loop(scheduler, executor, link, StatsKeeper(link, scheduler, executor))
    (loop.run_overlapped if overlapped else loop.run_plain)()
    return answers(link.sent)


def requests(count: int, vocabulary: int) -> list[Add]:
    rng = random.Random(1)
    shared = [rng.randrange(vocabulary) for _ in range(70)]
    samplings = [
        Sampling(temperature=0.0),
        Sampling(temperature=0.9, seed=5),
        Sampling(temperature=0.9, top_k=20, top_p=0.9, seed=6, logprobs=2),
        Sampling(temperature=0.8, top_p=0.9, repetition_penalty=1.2, logit_bias={3: 2.0}, seed=7),
    ]
    return [
        Add(
            number,
            shared[: rng.choice([0, 40, 70])] + [rng.randrange(vocabulary) for _ in range(rng.choice([1, 20, 31]))],
            rng.randint(3, 40),
            samplings[number % len(samplings)],
            rng.sample(range(vocabulary), 3),
        )
        for number in range(count)
    ]


@pytest.mark.parametrize(("family", "settings"), [*((name, {}) for name in SHORT), ("Llama", {"shared_cache": True})])
def test_graphs_give_the_tokens_of_the_cpu_in_both_loops(family, settings, make_checkpoint):
    architecture, overrides = SHORT[family]
    engine = load(make_checkpoint(architecture, **overrides), **settings)
    adds = requests(9, engine._limits.vocabulary)
    wanted = run(engine, InlineExecutor(engine._step.compute), adds, False)
    step, graphs = gpu_step(engine)
    engine._limits = replace(engine._limits, reads_own=True)
    recordable = step._fused.recordable
    assert graphs.recorded == (len(step._sizes) if recordable else 0) + 1
    for overlapped in (False, True):
        choose = scattered(random.Random(3))
        assert run(engine, LateExecutor(step.compute), adds, overlapped, choose) == wanted
    assert graphs.replayed > (100 if recordable else 10)
    assert graphs.recorded > (len(step._sizes) if recordable else 0) + 1


@pytest.mark.parametrize("flash_from", [gpu_decoder.FLASH_FROM, 20])
@pytest.mark.parametrize("family", ["Qwen3", "caps and windows"])
def test_prompts_that_share_a_forward_get_the_tokens_that_they_get_alone(
    family, flash_from, make_checkpoint, monkeypatch
):
    """All of a step's, as many as fit, by the kernel and by torch beside each other."""
    monkeypatch.setattr(gpu_decoder, "FLASH_FROM", flash_from)
    architecture, overrides = SHORT[family]
    engine = load(make_checkpoint(architecture, **overrides))
    adds = requests(9, engine._limits.vocabulary)
    wanted = run(engine, InlineExecutor(engine._step.compute), adds, False)
    step, _ = gpu_step(engine, together=230)
    together = []
    compute = step._fused.prefill_together
    monkeypatch.setattr(
        step._fused, "prefill_together", lambda tokens, parts: together.append(len(parts)) or compute(tokens, parts)
    )
    engine._limits = replace(engine._limits, reads_own=True)
    assert run(engine, LateExecutor(step.compute), adds, True, scattered(random.Random(3)), apart=0) == wanted
    assert max(together) > 1


def test_memory_that_is_short_for_all_prompts_may_do_for_one_after_the_other(make_checkpoint, monkeypatch):
    engine = load(make_checkpoint("LlamaForCausalLM"))
    adds = requests(9, engine._limits.vocabulary)
    wanted = run(engine, InlineExecutor(engine._step.compute), adds, False)
    step, _ = gpu_step(engine, together=1000)
    compute, refused = step._fused.prefill_together, []

    def short(tokens, parts):
        if len(parts) > 1:
            refused.append(len(parts))
            raise torch.OutOfMemoryError("no memory for so many")
        return compute(tokens, parts)

    monkeypatch.setattr(step._fused, "prefill_together", short)
    engine._limits = replace(engine._limits, reads_own=True)
    assert run(engine, LateExecutor(step.compute), adds, True, apart=0) == wanted
    assert refused


def test_rows_that_follow_a_grammar_are_sampled_later_and_the_others_in_graphs(make_checkpoint):
    engine = load(make_checkpoint("LlamaForCausalLM"))
    adds = [
        msgspec.structs.replace(add, grammar="12" if add.request % 3 == 0 else "", stop_tokens=[])
        for add in requests(9, engine._limits.vocabulary)
    ]
    wanted = run(engine, InlineExecutor(engine._step.compute), adds, False)
    step, _ = gpu_step(engine)
    engine._limits = replace(engine._limits, reads_own=True)
    for overlapped in (False, True):
        assert run(engine, LateExecutor(step.compute), adds, overlapped) == wanted
    followed = [wanted[add.request][0][0] for add in adds if add.grammar]
    assert all(possible(token, place) for tokens in followed for place, token in enumerate(tokens[:12]))


def test_fp8_keys_and_values_are_nearly_those_of_the_computation(make_checkpoint):
    """Prompts are read through the narrow cache in chunks, decoded from it, and near to what float32 gives."""
    engine = load(make_checkpoint("LlamaForCausalLM"))
    own = engine._step._decoder
    wide, narrow = (
        GpuDecoder(own.config, own.weights, SLOTS, own.context, TorchKernels.of, None, dtype) for dtype in (None, FP8)
    )
    assert narrow.cache_bytes * 4 == wide.cache_bytes
    tokens, lengths = torch.arange(60) % 150, torch.tensor([61, 0], dtype=torch.int32)
    hidden = []
    with torch.inference_mode():
        for decoder in (wide, narrow):
            decoder.cache.admit(0, list(reversed(range(decoder.cache.slot_blocks))))
            read = [decoder.prefill(0, tokens[:40], 0), decoder.prefill(0, tokens[40:], 40)]
            hidden.append(torch.cat((*read, decoder.decode_on_device(torch.tensor([7, 0]), lengths)[:1])))
        logits = [wide.head(rows) for rows in hidden]
    difference = (logits[0] - logits[1]).abs().max() / logits[0].std()
    assert 0 < difference < 0.3


def test_what_is_too_large_for_fp8_becomes_its_largest_number(make_checkpoint):
    decoder = load(make_checkpoint("LlamaForCausalLM"))._step._decoder
    for blocks in ([0, 1, 2, 3], [2, 0, 1, 3]):
        cache = PagedCache(decoder.config, 1, 90, FP8, torch.device("cpu"))
        cache.admit(0, blocks)
        cache.write(0, 0, 30, torch.full((4, 5, 16), 1e6))
        assert bool((cache.read(0, 0, 35)[:, 30:].float() == 448).all())


def test_fp8_is_refused_by_name_where_there_is_no_gpu(make_checkpoint):
    spec = RunnerSpec("m", str(make_checkpoint("LlamaForCausalLM")), "", cache_dtype="FP8")
    with pytest.raises(LoadError, match=r"kvCache\.dtype FP8 needs a GPU"):
        load_generator(spec, lambda *_: None)


class Outside(TorchDispatchMode):
    """Counts what torch is asked to do outside of graphs."""

    def __init__(self, graphs: SharedMemoryGraphs) -> None:
        super().__init__()
        self._graphs = graphs
        self.names: list[str] = []

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        if not self._graphs.replaying:
            self.names.append(str(function))
        return function(*args, **(kwargs or {}))


def test_a_decode_step_costs_the_host_a_copy_and_two_graphs(make_checkpoint):
    engine = load(make_checkpoint("LlamaForCausalLM"))
    step, graphs = gpu_step(engine, checked=False)
    sampling, blocks = Sampling(temperature=0.8, top_k=5, seed=1), engine._limits.slot_blocks
    admitted = tuple(
        Admission(slot, sampling, [1], blocks=tuple(range(slot * blocks, (slot + 1) * blocks))) for slot in range(SLOTS)
    )
    chunks = tuple(Chunk(slot, 0, [1], True) for slot in range(SLOTS))
    samples, needs = tuple((slot, 1) for slot in range(SLOTS)), needs_of([sampling])
    step.compute(StepPlan(0, admitted, chunks=chunks, samples=samples, needs=needs))
    counts = []
    for position, rows in enumerate((SLOTS, SLOTS, SLOTS, 1, 1, 1), start=1):
        decode = tuple(Decode(slot, position) for slot in range(rows))
        drawn = tuple((slot, position + 1) for slot in range(rows))
        with Outside(graphs) as outside:
            step.compute(StepPlan(position, decode=decode, samples=drawn, needs=needs))
        counts.append(outside.names)
    # The third time the sampler's graph is there as well: one copy in, one of the tokens, and a view for the failures.
    assert counts[2] == counts[5]
    assert len(counts[2]) <= 4, counts[2]


def test_batch_sizes_end_with_the_slots_and_waste_little():
    assert batch_sizes(1) == (1,)
    assert batch_sizes(6) == (1, 2, 4, 6)
    assert batch_sizes(256)[-3:] == (192, 224, 256)
    sizes = batch_sizes(512)
    assert list(sizes) == sorted(set(sizes))
    for rows in range(1, 513):
        chosen = next(size for size in sizes if size >= rows)
        assert (chosen - rows) / chosen < (0.2 if rows >= 32 else 0.5)


@pytest.mark.process
def test_the_engine_needs_no_triton_where_there_is_no_gpu():
    hidden = "import sys; sys.modules['triton'] = None; import tandem_server.engine.runner as runner; "
    then = "from tandem_server.engine.native.gpu_decoder import gpu_kernels\ntry: gpu_kernels()\n"
    then += "except runner.LoadError as error: print(error)"
    done = subprocess.run([sys.executable, "-c", hidden + then], capture_output=True, text=True, check=True)
    assert "needs triton" in done.stdout
