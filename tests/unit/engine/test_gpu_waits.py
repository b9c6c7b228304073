"""A GPU's step on tensors that only say where they lie: nothing in it makes the host wait for the device.

Every operation that a step asks of torch is looked at: none may read a number of the device, have a shape that depends
on one, or copy between host and device otherwise than from page-locked memory in stream order. On a GPU `tests/gpu`
has torch itself watch over the same.
"""

from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode

from tandem_server.engine.native import feedforward, gpu_decoder, gpu_experts, transfer
from tandem_server.engine.native.config import read_decoder_config
from tandem_server.engine.native.feedforward import Dense
from tandem_server.engine.native.gpu_decoder import GpuDecoder
from tandem_server.engine.native.gpu_experts import StackedExperts
from tandem_server.engine.native.gpu_step import GpuStep
from tandem_server.engine.native.graphs import NoGraphs
from tandem_server.engine.native.linear import PlainLinear
from tandem_server.engine.native.needs import needs_of
from tandem_server.engine.native.plan import Admission, Chunk, Decode, Reseat, StepPlan
from tandem_server.engine.native.weights import DecoderWeights, LayerWeights
from tandem_server.engine.wire import Sampling

pytestmark = pytest.mark.torch

SLOTS, CONTEXT = 4, 400
GPU = torch.device("cuda", 0)
READING = ("_local_scalar_dense", "nonzero", "masked_select", "_unique2", "bincount", "is_nonzero", "equal")


class Waits(TorchDispatchMode):
    """Notes what would make the host wait."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        name = function.__name__.split(".")[0]
        tensors = [value for value in args if isinstance(value, torch.Tensor)]
        on_gpu = any(tensor.device.type == "cuda" for tensor in tensors)
        if on_gpu and (name in READING or (name == "repeat_interleave" and len(tensors) > 1)):
            self.found.append(f"{name} reads from the device")
        if on_gpu and name in ("index", "index_put", "index_put_"):
            if any(index is not None and index.dtype in (torch.bool, torch.uint8) for index in args[1]):
                self.found.append(f"{name} by a mask has a shape that the host must learn")
            if any(value.device.type == "cpu" for value in tensors):
                self.found.append(f"{name} takes a number of the host")
        if name == "copy_":
            self._copied(args[1], args[0].device, kwargs.get("non_blocking", args[2] if len(args) > 2 else False))
        if name == "_to_copy":
            self._copied(args[0], kwargs.get("device") or args[0].device, kwargs.get("non_blocking", False))
        return function(*args, **kwargs)

    def _copied(self, source: torch.Tensor, target: torch.device, non_blocking: bool) -> None:
        if source.device.type != target.type:
            if target.type == "cpu":
                self.found.append("a copy to the host")
            elif not (non_blocking and getattr(source, "is_locked", False)):
                self.found.append(f"a copy of {tuple(source.shape)} to the device from ordinary memory")


def locked(tensor: torch.Tensor) -> torch.Tensor:
    tensor.is_locked = True
    tensor.constant = None  # else torch would compute with its value, on a GPU that is not there
    return tensor


class Ring:
    def __init__(self, shape, dtype, device, count=4) -> None:
        self._buffer = SimpleNamespace(tensor=locked(torch.zeros(*shape, dtype=dtype)), array=np.zeros(shape))

    def take(self):
        return self._buffer

    def used_until(self, fence) -> None:
        pass


class Kernels:
    """Launches take no time."""

    prompt_tokens = 16

    def turn_and_write(self, projected, norms, epsilon, rope, layer, tables, lengths, starts=None, seats=None):
        kv = len(layer) // 2
        rows, heads, size = projected.shape
        return projected.new_empty(rows, kv, (heads - 2 * kv) // kv, size)

    def attend(self, query, *others, **options):
        return torch.empty_like(query)

    attend_prompt = attend


class Launch:
    def __getitem__(self, grid):
        return lambda *arguments, **constants: None


def gated(both, *others):
    return both[:, : both.shape[1] // 2].contiguous()


@pytest.fixture
def gpu(monkeypatch):
    """A machine that has one, as far as shapes and places go."""
    monkeypatch.setattr(torch.Tensor, "pin_memory", lambda tensor: locked(torch.empty_like(tensor)))
    monkeypatch.setattr(torch.cuda, "Event", lambda **options: SimpleNamespace(record=lambda: None))
    monkeypatch.setattr(transfer, "PinnedRing", Ring)
    monkeypatch.setattr(
        gpu_decoder,
        "upload_each",
        lambda arrays, device: [transfer.upload(array.ravel().tolist(), torch.int32, device) for array in arrays],
    )
    monkeypatch.setattr(feedforward, "_gate_kernel", lambda: gated)
    kernel, paged = SimpleNamespace(multiply=Launch()), SimpleNamespace(gated=gated, OPERANDS={torch.bfloat16: None})
    monkeypatch.setattr(gpu_experts, "_kernels", lambda: (kernel, paged))
    with FakeTensorMode(allow_non_fake_inputs=True):
        yield


def decoder_of(folder) -> GpuDecoder:
    config = read_decoder_config(folder)

    def made(*shape: int, dtype: torch.dtype = torch.bfloat16) -> torch.Tensor:
        return torch.empty(shape, dtype=dtype, device=GPU)

    def linear(outputs: int, inputs: int) -> PlainLinear:
        return PlainLinear(made(outputs, inputs), None)

    hidden, family = config.hidden, config.family

    def layer(sparse: bool) -> LayerWeights:
        feed = Dense(linear(2 * config.intermediate, hidden), linear(hidden, config.intermediate), config.activation)
        if sparse and config.experts is not None:
            count, size = config.experts.count, config.experts.intermediate
            gate_up, down = (made(count, 2 * size, hidden), None), (made(count, hidden, size), None)
            feed = StackedExperts(config.experts, linear(count, hidden), gate_up, down, config.activation)
        head_norm = made(config.head_size) if family.qk_norm else None
        return LayerWeights(
            made(hidden),
            linear(config.qkv_width, hidden),
            linear(hidden, config.heads * config.head_size),
            made(hidden) if family.sandwich else None,
            made(hidden),
            feed,
            made(hidden) if family.sandwich else None,
            head_norm,
            head_norm,
            made(config.heads, dtype=torch.float32) if family.sinks else None,
        )

    embedding = made(config.vocabulary, hidden)
    layers = [layer(own.sparse) for own in config.layer_configs]
    weights = DecoderWeights(embedding, layers, made(hidden), PlainLinear(embedding, None), 0, 0)
    return GpuDecoder(config, weights, SLOTS, CONTEXT, lambda *others: Kernels(), pool_blocks=SLOTS * 16)


SAMPLINGS = [
    Sampling(temperature=0.0),
    Sampling(temperature=0.9, top_k=20, top_p=0.9, logprobs=3),
    Sampling(temperature=0.9, top_p=0.8, typical_p=0.9, repetition_penalty=1.2, presence_penalty=0.1),
    Sampling(temperature=0.9, min_p=0.1, logit_bias={3: 1.0}, bad_words=[[4, 5]], min_tokens=3),
]


def plans() -> list[StepPlan]:
    """Admissions, prompts together and alone, decode steps with and without prompts, samples that come late, moves."""
    needs = needs_of(SAMPLINGS)
    admitted = tuple(
        Admission(slot, sampling, [1, 2, 3], (7,), blocks=tuple(range(16 * slot, 16 * slot + 3)))
        for slot, sampling in enumerate(SAMPLINGS)
    )
    chunks = tuple(Chunk(slot, 0, [5] * (3 + 9 * slot), slot != 2) for slot in range(SLOTS))
    samples = tuple((slot, 40) for slot in (0, 1, 3))
    rows = tuple(Decode(slot, 45) for slot in (0, 1))
    vocabulary_bits = b"\xff" * 20
    return [
        StepPlan(0, admitted, chunks=chunks, samples=samples, needs=needs),
        StepPlan(1, decode=rows, chunks=(Chunk(2, 21, [4], True),), samples=((0, 46), (2, 22)), needs=needs),
        StepPlan(2, decode=rows, samples=((0, 46),), late=frozenset({1}), needs=needs),
        StepPlan(2, samples=((1, 46),), masks={1: vocabulary_bits}, needs=needs),
        StepPlan(
            3,
            moves=((1, 5), (2, 6)),
            reseated=(Reseat(0, (7,), 0, True), Reseat(1, (16, 17), 1, False)),
            decode=rows,
            samples=((0, 46), (1, 46)),
            needs=replace(needs, logprobs=None),
        ),
    ]


EXPERTS = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 32, "head_dim": 16}


@pytest.mark.parametrize(
    ("architecture", "special"),
    [
        ("Qwen3ForCausalLM", {"head_dim": 32}),
        ("Gemma2ForCausalLM", {"sliding_window": 50, "head_dim": 16}),
        ("Qwen3MoeForCausalLM", EXPERTS),
    ],
)
def test_no_step_makes_the_host_wait(architecture, special, make_checkpoint, request):
    folder = make_checkpoint(architecture, **special)
    request.getfixturevalue("gpu")
    decoder = decoder_of(folder)
    assert decoder.recordable
    step = GpuStep(decoder, (1, 2, SLOTS), NoGraphs(), together=1000)
    with Waits() as waits:
        outputs = [step.compute(plan) for plan in plans()]
    assert waits.found == []
    assert [output.failures for output in outputs] == [{}] * len(outputs)
    assert all(output.tokens.device == GPU for output in outputs)


def test_the_watch_finds_what_it_looks_for(gpu):
    numbers, mask = torch.zeros(4, device=GPU), torch.zeros(4, dtype=torch.bool, device=GPU)
    for wait in (
        lambda: numbers.__setitem__(1, 5.0),
        lambda: numbers.__setitem__(torch.tensor([1]).pin_memory().to(GPU, non_blocking=True), 5.0),
        lambda: torch.tensor([1]).to(GPU),
        lambda: torch.tensor([1]).pin_memory().to(GPU),
        lambda: numbers.cpu(),
        lambda: numbers[mask],
        lambda: numbers[0].item(),
    ):
        with Waits() as waits:
            try:
                wait()
            except RuntimeError:
                assert waits.found
        assert len(waits.found) == 1, waits.found
