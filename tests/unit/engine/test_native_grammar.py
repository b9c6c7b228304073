"""Answers that follow a grammar, in the real engine: both loops, alone and in a crowd, and nobody else notices."""

import asyncio
import json
import random
from pathlib import Path

import pytest
import torch
from tokenizers import Tokenizer

from tandem_server.chat.grammar import json_grammar
from tandem_server.engine.native.engine import NativeEngine
from tandem_server.engine.native.load import load_generator
from tandem_server.engine.native.step import masked
from tandem_server.engine.wire import Abort, Add, RunnerSpec, Sampling, Tokens

pytestmark = pytest.mark.torch

MODEL = Path(__file__).resolve().parents[3] / "models" / "python-coder"
SCHEMA = {
    "type": "object",
    "properties": {
        "kind": {"enum": ["cat", "dog"]},
        "legs": {"type": "array", "items": {"type": "boolean"}, "maxItems": 4},
    },
    "required": ["kind", "legs"],
    "additionalProperties": False,
}
END = 2


@pytest.fixture(scope="module")
def engine() -> NativeEngine:
    spec = RunnerSpec("coder", str(MODEL), "", dtype="Float32", slots=4, context=512, threads=1)
    return load_generator(spec, lambda *_: None)


def requests() -> list[Add]:
    """Some that follow the schema, some that are free, in turn; one whose grammar is nonsense."""
    rng, grammar = random.Random(3), asyncio.run(json_grammar(SCHEMA, "format"))
    adds = []
    for number in range(14):
        sampling = Sampling(temperature=rng.choice([0.0, 0.8, 1.5]), top_k=rng.choice([0, 40]), seed=number)
        prompt = [rng.randrange(20, 3000) for _ in range(rng.randint(1, 300))]
        adds.append(Add(number, prompt, 150, sampling, [END], grammar=grammar if number % 2 else ""))
    return [*adds, Add(99, [30], 5, Sampling(), [END], grammar="nonsense {")]


def answered(engine: NativeEngine, overlapped: bool, arrivals, recording_link) -> dict[int, tuple[list[int], str]]:
    engine.overlapped = overlapped
    link = recording_link(arrivals)
    engine.serve(link)
    tokens: dict[int, list[int]] = {}
    ends: dict[int, str] = {}
    for row in (row for message in link.sent if isinstance(message, Tokens) for row in message.rows):
        tokens.setdefault(row.request, []).extend(row.tokens)
        ends |= {row.request: row.finish} if row.finish else {}
    return {number: (tokens[number], ends[number]) for number in ends}


def test_both_loops_keep_to_the_grammar_and_disturb_nobody(engine, recording_link):
    tokenizer, adds = Tokenizer.from_file(str(MODEL / "tokenizer.json")), requests()
    plain = answered(engine, False, [(0, add) for add in adds], recording_link)
    overlapped = answered(engine, True, [(0, add) for add in adds], recording_link)
    assert plain == overlapped
    assert plain[99][1] == "error"
    free = answered(engine, True, [(0, add) for add in adds if not add.grammar], recording_link)
    assert {number: plain[number] for number in free} == free
    complete = 0
    for add in adds[:-1]:
        tokens, finish = plain[add.request]
        if add.grammar and finish == "stop":
            made = json.loads(tokenizer.decode(tokens, skip_special_tokens=False))
            assert made["kind"] in ("cat", "dog")
            assert all(isinstance(leg, bool) for leg in made["legs"])
            complete += 1
    assert complete >= 5


def test_an_abort_while_it_follows_a_grammar_or_compiles(engine, recording_link):
    adds = requests()[:6]
    for moment in (0, 1, 2, 5, 20):
        arrivals = [(0, add) for add in adds] + [(moment, Abort(1)), (moment + 1, Abort(3))]
        found = answered(engine, True, sorted(arrivals, key=lambda arrival: arrival[0]), recording_link)
        assert {found[1][1], found[3][1]} <= {"abort", "stop"}
        assert set(found) == set(range(6))


def test_the_mask_leaves_what_has_a_bit_and_nothing_else():
    logits = torch.arange(3 * 70, dtype=torch.float32).view(3, 70)
    bits = sum(1 << token for token in (0, 31, 32, 69))
    found = masked(logits, {1: bits.to_bytes(12, "little")})
    assert torch.equal(found[0], logits[0])
    assert torch.equal(found[2], logits[2])
    assert found[1].isfinite().nonzero()[:, 0].tolist() == [0, 31, 32, 69]
    assert torch.equal(found[1][[0, 31, 32, 69]], logits[1][[0, 31, 32, 69]])
