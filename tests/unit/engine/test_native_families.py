"""What families have that Llama has not, through the whole engine: windows, caps, experts, lengths that change all.

Beside `test_native_parity.py`, which compares numbers: here rows must not depend on their neighbours, and a sequence
that grows beyond longrope's switch must go on as if it had always been that long.
"""

import random

import pytest
import torch
from engine_fakes import RecordingLink, answers, scattered
from transformers import AutoModelForCausalLM

from tandem_server.engine.native.blocks import near_home
from tandem_server.engine.native.config import ExpertsConfig
from tandem_server.engine.native.engine import NativeEngine
from tandem_server.engine.native.executors import InlineExecutor, WorkerExecutor
from tandem_server.engine.native.feedforward import Experts
from tandem_server.engine.native.linear import packing_available
from tandem_server.engine.native.load import load_generator
from tandem_server.engine.native.loop import Loop
from tandem_server.engine.native.scheduler import Scheduler
from tandem_server.engine.native.stats import StatsKeeper
from tandem_server.engine.wire import Add, RunnerSpec, Sampling

pytestmark = pytest.mark.torch

SPARSE = {"num_local_experts": 6, "num_experts_per_tok": 2}
ALL_EXPERTS = {"num_local_experts": 6, "num_experts_per_tok": 6}
TYPES = ["sliding_attention", "full_attention"]
CROWDED = {
    "window": ("MistralForCausalLM", {"sliding_window": 50}),
    "caps": ("Gemma2ForCausalLM", {"sliding_window": 50, "head_dim": 16}),
    "experts": ("MixtralForCausalLM", SPARSE),
    "sinks": ("GptOssForCausalLM", {"head_dim": 16, "sliding_window": 50, "layer_types": TYPES, **SPARSE}),
    "library": ("Olmo2ForCausalLM", {}),
    "library-experts": ("OlmoeForCausalLM", {"num_experts": 4, "num_experts_per_tok": 2}),
}
SWITCH = 40
LONGROPE = {
    "rope_type": "longrope",
    "rope_theta": 1e4,
    "short_factor": [1.0, 1.1, 1.3, 1.7, 2.0, 2.1, 2.2, 2.3],
    "long_factor": [1.5, 2.5, 4.0, 8.0, 9.0, 9.0, 9.0, 9.0],
    "original_max_position_embeddings": SWITCH,
}
GREEDY = Sampling(temperature=0.0)


def load(folder, slots: int = 4, context: int = 900) -> NativeEngine:
    spec = RunnerSpec("m", str(folder), "", dtype="Float32", slots=slots, context=context, threads=1)
    return load_generator(spec, lambda *_: None)


def run(engine: NativeEngine, adds: list[Add], overlapped: bool = True, choose=near_home) -> dict[int, list[int]]:
    executor = (WorkerExecutor if overlapped else InlineExecutor)(engine._step.compute)
    scheduler, link = Scheduler(engine._limits, choose_blocks=choose), RecordingLink([(0, add) for add in adds])
    loop = Loop(scheduler, executor, link, StatsKeeper(link, scheduler, executor))
    if isinstance(executor, WorkerExecutor):
        executor.run_beside(loop.run_overlapped)
    else:
        loop.run_plain()
    ended = {request: ends[0] for request, ends in answers(link.sent).items()}
    assert {finish for _, finish in ended.values()} == {"length"}
    return {request: tokens for request, (tokens, _) in ended.items()}


@pytest.fixture
def packed(monkeypatch) -> None:
    """Small matrices as well are held in the layout whose smaller batches give the same bits on every CPU."""
    if not packing_available():
        pytest.skip("this build of torch does not pack weights")
    monkeypatch.setattr("tandem_server.engine.native.linear.PACK_FROM_ELEMENTS", 0)


@pytest.mark.usefixtures("packed")
@pytest.mark.parametrize("case", CROWDED)
def test_alone_and_in_a_crowd_give_identical_tokens(case, make_checkpoint):
    architecture, overrides = CROWDED[case]
    engine = load(make_checkpoint(architecture, **overrides))
    assert len(engine._step._sizes) > 1, "alone means a smaller batch here; otherwise the test shows nothing"
    rng = random.Random(11)
    adds = []
    for number in range(10):
        length = rng.choice([1, rng.randint(2, 80), rng.randint(540, 800)])
        sampling = rng.choice([GREEDY, Sampling(temperature=1.0, seed=rng.getrandbits(60))])
        adds.append(Add(number, [rng.randrange(150) for _ in range(length)], rng.randint(3, 24), sampling))
    crowd = run(engine, adds)
    assert run(engine, adds, overlapped=False, choose=scattered(rng)) == crowd
    for add in adds:
        assert run(engine, [add])[add.request] == crowd[add.request]


@pytest.mark.usefixtures("packed")
@torch.inference_mode()
def test_where_neighbours_are_sent_changes_no_bit(make_checkpoint):
    """A row among others, alone in a smaller batch, and beside rows of NaN: the same bits, expert by expert."""
    engine = load(make_checkpoint("MixtralForCausalLM", **SPARSE))
    layer = engine._step._decoder.weights.layers[0]
    assert isinstance(layer.feed, Experts)
    assert 2 in engine._step._sizes
    x = torch.randn(4, 64, generator=torch.Generator().manual_seed(3))
    whole = layer.feed(x, shared=True)
    assert torch.equal(layer.feed(x[:2], shared=True), whole[:2])
    others = torch.cat((x[:1], torch.full((3, 64), torch.nan)))
    assert torch.equal(layer.feed(others, shared=True)[0], whole[0])
    assert (layer.feed(x, shared=False) - whole).abs().max() <= 1e-5


class PlaceMatters:
    """A layer whose rows come out otherwise at other places of a batch, as matrix kernels are free to do."""

    inputs = outputs = 8
    bytes = 0

    def __init__(self, outputs: int, seed: int) -> None:
        self.outputs = outputs
        self._weight = torch.randn(8, outputs, generator=torch.Generator().manual_seed(seed))

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        return torch.stack([row @ self._weight for row in x]) + torch.arange(len(x))[:, None] / 100

    def onto(self, residual: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
        return residual + self(x)


@torch.inference_mode()
def test_a_row_keeps_its_place_whichever_expert_its_neighbours_go_to():
    router = torch.nn.Linear(8, 3, bias=False)
    experts = [PlaceMatters(16, seed) for seed in range(3)], [PlaceMatters(8, seed) for seed in range(3, 6)]
    feed = Experts(ExpertsConfig(3, 1, 8, True), router, *experts, "silu")
    generator = torch.Generator().manual_seed(1)
    row, others = torch.randn(1, 8, generator=generator), torch.randn(12, 2, 8, generator=generator)
    sent = {tuple(router(other).argmax(-1).tolist()) for other in others}
    assert len(sent) > 4, "the neighbours must go to several experts"
    results = [feed(torch.cat((other, row)), shared=True)[2] for other in others]
    assert all(torch.equal(result, results[0]) for result in results)


@pytest.mark.parametrize("overlapped", [False, True])
@torch.inference_mode()
def test_a_sequence_that_outgrows_the_original_context_is_read_again(overlapped, make_checkpoint):
    """Each token is what transformers gives for the whole sequence so far, on both sides of the switch."""
    folder = make_checkpoint(
        "Phi3ForCausalLM", original_max_position_embeddings=SWITCH, rope_parameters=LONGROPE, initializer_range=0.25
    )
    reference = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    engine = load(folder, slots=3, context=300)
    lengths = [SWITCH - 6, SWITCH - 1, SWITCH, SWITCH + 1, SWITCH + 60, 3]
    adds = [
        Add(number, [(i * (number + 7)) % 150 + 3 for i in range(length)], 12, GREEDY)
        for number, length in enumerate(lengths)
    ]
    got = run(engine, adds, overlapped)
    for add in adds:
        sequence = list(add.prompt)
        for token in got[add.request]:
            logits = reference(torch.tensor([sequence])).logits[0, -1]
            assert token == int(logits.argmax()), f"after {len(sequence)} tokens"
            sequence.append(token)


def test_nothing_is_reused_of_a_sequence_that_may_be_read_again(make_checkpoint):
    """What the cache holds of it depends on how long it became; a full context ends such an answer."""
    folder = make_checkpoint("Phi3ForCausalLM", original_max_position_embeddings=SWITCH, rope_parameters=LONGROPE)
    engine = load(folder, slots=2, context=300)
    assert not engine.loaded.shifts
    prompt = [(i * 7) % 150 + 3 for i in range(SWITCH - 4)]
    turns = [Add(number, prompt, 20, GREEDY) for number in range(2)]
    first = run(engine, turns[:1], overlapped=True)[0]
    both = run(engine, turns, overlapped=True)
    assert both == {0: first, 1: first}
    assert load(make_checkpoint("LlamaForCausalLM")).loaded.shifts


@pytest.mark.parametrize(
    ("architecture", "overrides"),
    [
        ("Gemma3ForCausalLM", {"head_dim": 16, "sliding_window": 50, "layer_types": TYPES}),
        ("GptOssForCausalLM", {"head_dim": 16, "sliding_window": 50, "layer_types": TYPES, **ALL_EXPERTS}),
        ("MixtralForCausalLM", ALL_EXPERTS),
        ("CohereForCausalLM", {}),
    ],
)
@torch.inference_mode()
def test_bfloat16_stays_near_float32(architecture, overrides, make_checkpoint):
    """The same rounded weights, computed in either format; all experts take part, for a rounded choice is another."""
    folder = make_checkpoint(architecture, dtype="bfloat16", **overrides)
    reference = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, attn_implementation="eager").eval()
    spec = RunnerSpec("m", str(folder), "", dtype="BFloat16", slots=2, context=300, threads=1)
    decoder = load_generator(spec, lambda *_: None)._step._decoder
    assert decoder.dtype is torch.bfloat16
    prompt = [(i * 37) % 150 + 3 for i in range(100)]
    blocks = decoder.cache.slot_blocks
    for slot in range(2):
        decoder.cache.admit(slot, range(slot * blocks, (slot + 1) * blocks))
        decoder.prefill(slot, torch.tensor(prompt), 0)
    positions, places = (torch.tensor(numbers) for numbers in decoder.cache.locate([101, 101]))
    logits = decoder.head(decoder.decode(torch.tensor([7, 7]), positions, places, [101, 101]))
    wanted = reference(torch.tensor([[*prompt, 7]])).logits[0, -1]
    assert torch.equal(logits[0], logits[1])
    assert torch.cosine_similarity(logits[0], wanted, dim=0) > 0.99


def test_a_context_within_the_original_one_needs_no_second_reading(make_checkpoint):
    folder = make_checkpoint("Phi3ForCausalLM", original_max_position_embeddings=SWITCH, rope_parameters=LONGROPE)
    assert load(folder, context=SWITCH)._step._history is None
    assert load(folder, context=SWITCH + 1)._step._history is not None
