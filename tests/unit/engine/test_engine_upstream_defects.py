"""Defects that the engine which first had this loop had after its merge: for each a test that would have caught it.

Each docstring begins with the commit (and issue) that repaired the defect there. Some are caught by other files too,
which the docstring names; what clients' disconnects do between socket and runner is tested with the front end.
"""

import random
import threading
from types import SimpleNamespace

import pytest
import torch
from engine_fakes import RecordingLink, answers
from fake_device import FakeDevice, expected
from torch.profiler import ProfilerActivity, profile

from tandem_api.fit import Wish, fit_context
from tandem_api.fit_steps import cache_positions, step_bytes
from tandem_server.engine.native.decoder import Decoder
from tandem_server.engine.native.encoder import BATCH_TOKENS, EmbeddingEngine, load_encoder
from tandem_server.engine.native.engine import NativeEngine
from tandem_server.engine.native.executors import Executor, InlineExecutor, WorkerExecutor
from tandem_server.engine.native.load import load_generator
from tandem_server.engine.native.loop import Loop
from tandem_server.engine.native.plan import StepPlan, StepResult
from tandem_server.engine.native.scheduler import Limits, Scheduler
from tandem_server.engine.native.shape import step_shape_of
from tandem_server.engine.native.stats import StatsKeeper
from tandem_server.engine.native.warmup import warm_up_plans
from tandem_server.engine.wire import (
    Abort,
    Add,
    Embed,
    Embedded,
    RunnerSpec,
    Sampling,
    Stats,
    TokenRow,
    Tokens,
    ToRunner,
)

pytestmark = pytest.mark.torch

LIMITS = Limits(slots=1, context=24, vocabulary=30, chunk=4, budget=8, slot_blocks=6, block=4, span=4)
GREEDY = Sampling(temperature=0.0)
DEADLINE = 20.0
both_loops = pytest.mark.parametrize("overlapped", [False, True])


def run(
    arrivals: list[tuple[int, ToRunner]], overlapped: bool, limits: Limits = LIMITS, executor: Executor | None = None
) -> RecordingLink:
    """One loop on the fake device, or on `executor`; ends within `DEADLINE`, or raises what the loop raised."""
    scheduler, link = Scheduler(limits), RecordingLink(arrivals)
    device = executor or FakeDevice(limits)
    loop = Loop(scheduler, device, link, StatsKeeper(link, scheduler, device, clock=lambda: 0.0))
    raised: list[BaseException] = []

    def target() -> None:
        try:
            if isinstance(device, WorkerExecutor):
                device.run_beside(loop.run_overlapped)
            else:
                (loop.run_overlapped if overlapped else loop.run_plain)()
        except BaseException as error:  # noqa: BLE001 - it is raised again below
            raised.append(error)

    thread = threading.Thread(target=target, daemon=True)
    thread.start()
    thread.join(DEADLINE)
    assert not thread.is_alive(), "the loop hangs"
    if raised:
        raise raised[0]
    return link


@both_loops
@pytest.mark.parametrize("failing_step", [1, 2, 3])
def test_an_error_while_the_next_step_is_built_does_not_hang(overlapped, failing_step):
    """1a2feb2a9: a deadlock, when a hard error was sent while the builder waited for the computation to start."""

    def compute(plan: StepPlan) -> SimpleNamespace:
        if plan.number == failing_step:
            raise ValueError("the device is gone")
        return SimpleNamespace(sampling=0.0, to_host=lambda: StepResult({slot: 3 for slot, _ in plan.samples}))

    executor = (WorkerExecutor if overlapped else InlineExecutor)(compute)
    with pytest.raises(ValueError, match="the device is gone"):
        run([(0, Add(1, [1, 2, 3], 9, GREEDY)), (2, Add(2, [4], 9, GREEDY))], overlapped, executor=executor)


@both_loops
def test_a_replacement_never_sees_its_predecessors_tokens(overlapped):
    """f7102ba82 (14072): stale logits decoded into the sequence that had taken the slot meanwhile.

    One slot; each predecessor ends by a stop token, or is aborted, while a step with its row is in flight.
    Also: `test_fuzzed_loops.py`, `test_native_poison.py`.
    """
    rng = random.Random(4)
    prompts = [[rng.randrange(1, 30) for _ in range(rng.randint(1, 9))] for _ in range(40)]
    first = [expected(Add(0, prompt, 3, GREEDY), 30)[0] for prompt in prompts]
    adds = [
        Add(n, prompt, 12, GREEDY, [own[1 + n % 2]] if n % 3 else [])
        for n, (prompt, own) in enumerate(zip(prompts, first, strict=True))
    ]
    arrivals: list[tuple[int, ToRunner]] = [(0, add) for add in adds]
    aborted = {n for n in range(40) if n % 3 == 0}
    arrivals += [(6 + 8 * n, Abort(n)) for n in sorted(aborted)]
    got = answers(run(sorted(arrivals, key=lambda arrival: arrival[0]), overlapped).sent)
    assert {got[n][0][1] for n in range(40)} >= {"stop", "abort"}
    for add in adds:
        tokens, finish = got[add.request][0]
        wanted = expected(add, 30)
        assert (tokens, finish) == wanted or (finish == "abort" and tokens == wanted[0][: len(tokens)])


@both_loops
@pytest.mark.parametrize("most", [1, 2, 3, 10])
def test_the_token_limit_gives_that_many_tokens(overlapped, most):
    """c61023f55: the token limit returned one token too few."""
    got = answers(run([(0, Add(1, [5, 6], most, GREEDY))], overlapped).sent)
    assert len(got[1][0][0]) == most
    assert got[1][0][1] == "length"


def test_inactive_time_is_no_part_of_a_rate():
    """967a82f52: durations counted inactive time."""
    clock = SimpleNamespace(now=0.0)

    class IdlingLink(RecordingLink):
        def receive(self, timeout: float | None) -> list[ToRunner]:
            clock.now += 1000.0 if timeout is None else 0.25
            return super().receive(timeout)

    scheduler, device, link = Scheduler(LIMITS), FakeDevice(LIMITS), IdlingLink([])
    link._arrivals.extend((10_000 * n, Add(n, [1], 20, GREEDY)) for n in range(3))
    loop = Loop(scheduler, device, link, StatsKeeper(link, scheduler, device, clock=lambda: clock.now))
    loop.run_overlapped()
    rates = [message.step_rate for message in link.sent if isinstance(message, Stats) and message.step_rate]
    assert len(rates) > 3
    assert 3 <= min(rates) <= max(rates) <= 5, (
        "four steps a second whenever there is work; a thousand seconds of sleep between"
    )


def test_a_model_without_a_cache_takes_every_message():
    """9714e38dd (12215): a cache that was not there was used. Embedding models have none."""
    loaded = SimpleNamespace(embedding_size=2, context=8)
    engine = EmbeddingEngine(torch.nn.Linear(1, 1), SimpleNamespace(kind="mean"), loaded, 10)
    messages: list[ToRunner] = [Abort(1), Add(2, [1], 3, GREEDY), Embed(3, []), Embed(4, [[]]), Abort(3), Abort(9)]
    link = RecordingLink([(0, message) for message in messages])
    engine.serve(link)
    rows = {row.request: row for message in link.sent if isinstance(message, Tokens) for row in message.rows}
    assert rows[2] == TokenRow(2, [], "error", "this model makes embeddings; it writes no text")
    assert rows[3].finish == "abort"
    told = [message for message in link.sent if isinstance(message, Embedded)]
    assert [(message.request, message.error) for message in told] == [(4, "input 0 has no tokens")]


def test_embeddings_that_need_several_batches(make_checkpoint):
    """3475d915c (13429): embeddings split across batches crashed."""
    folder = make_checkpoint("BertModel", max_position_embeddings=1024)
    spec = RunnerSpec("m", str(folder), "", task="Embed", dtype="Float32", threads=1)
    engine = load_encoder(spec, lambda *_: None)
    rng = random.Random(1)
    inputs = [[rng.randrange(3, 160) for _ in range(length)] for length in (1000, 3, 900, 1024, 1, 700, 1024, 40, 900)]
    assert sum(map(len, inputs)) > BATCH_TOKENS
    link = RecordingLink([(0, Embed(1, inputs))])
    engine.serve(link)
    embedded = next(message for message in link.sent if isinstance(message, Embedded))
    assert embedded.error is None
    assert engine._forwards > 1
    together = torch.frombuffer(bytearray(embedded.vectors), dtype=torch.float32).view(len(inputs), -1)
    for tokens, vector in zip(inputs, together, strict=True):
        assert (engine.embed([tokens])[0] - vector).abs().max() < 1e-5


@pytest.mark.parametrize(("slots", "context", "dtype"), [(4, 1000, "Float32"), (16, 600, "BFloat16")])
def test_memory_is_reserved_for_prompt_and_decode_together(make_checkpoint, slots, context, dtype, draws):
    """26465fb85: worst-case memory has to hold both the prompt's and the decode step's share.

    What the largest step takes is measured; the bound by which the context is fitted must hold it, and not waste where
    torch's operators draw the tokens: compiled kernels need less, but whether they can be had shows only at the load.
    """
    folder = make_checkpoint("LlamaForCausalLM", vocab_size=6000, intermediate_size=256)
    spec = RunnerSpec("m", str(folder), "", dtype=dtype, slots=slots, context=context, threads=1)
    engine = load_generator(spec, lambda *_: None)
    config = engine._step._decoder.config
    bound = step_bytes(step_shape_of(config), slots, engine._limits.chunk, 4 if dtype == "Float32" else 2, context)
    peaks = []
    for plan in warm_up_plans(engine._limits, worst=True):
        with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiled:
            engine._step.compute(plan)
        events = [event for event in profiled.profiler.kineto_results.events() if event.name() == "[memory]"]
        held = peak = 0
        for event in sorted(events, key=lambda event: event.start_ns()):
            held += event.nbytes()
            peak = max(peak, held)
        peaks.append(peak)
    assert max(peaks) < bound
    assert draws == "compiled" or max(peaks) > 0.2 * bound


def test_what_a_step_needs_is_taken_off_the_context():
    """26465fb85: the other half: the bound is heeded."""
    mib = 1 << 20
    wish = Wish(context=None, min_context=64)
    fitted = [
        fit_context(wish, 4096, 4, 344 * mib, lambda tokens, n=n: n * mib + cache_positions(4, tokens) * (32 << 10), "")
        for n in (0, 80, 160)
    ]
    assert [context for context, _ in fitted] == [2560, 2048, 1024]


@both_loops
@pytest.mark.parametrize("prompt", [1, 4, 5, 14, 23])
def test_a_full_context_ends_after_its_last_token_is_sampled(overlapped, prompt):
    """(unfixed there) `shift=false`: the length cut closed a sequence whose last token was not sampled yet."""
    add = Add(1, list(range(1, prompt + 1)), LIMITS.context - prompt, GREEDY)
    got = answers(run([(0, add), (0, Add(2, [3], 5, GREEDY))], overlapped).sent)
    assert got[1] == [expected(add, LIMITS.vocabulary)]
    assert len(got[1][0][0]) + prompt == LIMITS.context
    assert got[2] == [expected(Add(2, [3], 5, GREEDY), LIMITS.vocabulary)]


@pytest.fixture(scope="module")
def engine(make_checkpoint) -> NativeEngine:
    folder = make_checkpoint("LlamaForCausalLM", hidden_size=32)
    spec = RunnerSpec("m", str(folder), "", dtype="Float32", slots=3, context=600, threads=1)
    return load_generator(spec, lambda *_: None)


@both_loops
@pytest.mark.parametrize("part", ["prefill", "decode"])
def test_a_hard_error_ends_the_requests_that_it_concerns_and_no_others(engine, monkeypatch, overlapped, part):
    """(unfixed there) one hard error panicked the whole runner.

    A prompt for which there is no memory ends its own request; a decode step that fails ends those who decode.
    """
    engine.overlapped = overlapped
    adds = [Add(n, [n + 3, 5], 40, GREEDY) for n in range(2)]
    later = Add(7, [9, 9], 12, GREEDY)
    broken = Add(5, [4] * 300, 5, GREEDY)
    alone = {add.request: serve(engine, [(0, add)])[add.request] for add in (*adds, later)}
    real_prefill, real_decode, decodes = Decoder.prefill, Decoder.decode, iter(range(10_000))

    def prefill(decoder: Decoder, slot: int, tokens: torch.Tensor, start: int) -> torch.Tensor:
        if start:
            raise RuntimeError("not enough memory: you tried to allocate 1 byte")
        return real_prefill(decoder, slot, tokens, start)

    def decode(decoder: Decoder, *arguments: object) -> torch.Tensor:
        if next(decodes) == 20:
            raise RuntimeError("not enough memory: you tried to allocate 1 byte")
        return real_decode(decoder, *arguments)

    if part == "prefill":
        monkeypatch.setattr(Decoder, "prefill", prefill)
        arrivals: list[tuple[int, ToRunner]] = [(0, adds[0]), (0, adds[1]), (5, broken), (9, later)]
        concerned = {5}
    else:
        monkeypatch.setattr(Decoder, "decode", decode)
        arrivals = [(0, adds[0]), (0, adds[1]), (60, later)]
        concerned = {0, 1}
    got = serve(engine, arrivals)
    for request, (tokens, finish) in got.items():
        if request in concerned:
            assert finish == "error"
            assert tokens == alone.get(request, ([], ""))[0][: len(tokens)]
        else:
            assert (tokens, finish) == alone[request]
    assert set(got) >= {0, 1, 7} | concerned


def serve(engine: NativeEngine, arrivals: list[tuple[int, ToRunner]]) -> dict[int, tuple[list[int], str]]:
    """Answers of the engine as it is, with its own executor."""
    link = RecordingLink(arrivals)
    engine.serve(link)
    return {request: ends[0] for request, ends in answers(link.sent).items()}
