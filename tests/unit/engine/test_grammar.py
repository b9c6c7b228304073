"""Grammars of llguidance over a checkpoint's tokenizer: masks, ends, what cannot be compiled, and a real engine."""

import asyncio
import json
import random
import time
from pathlib import Path

import pytest
from tokenizers import Tokenizer

from tandem_api.dialects import ApiError
from tandem_server.chat.grammar import ANY_OBJECT, json_grammar
from tandem_server.engine.native.grammar import CompiledGrammar, Grammars

MODEL = Path(__file__).resolve().parents[3] / "models" / "python-coder"
VOCABULARY = 3072
END, OTHER_END = 2, 5
SCHEMA = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "maxLength": 12},
        "age": {"type": "integer", "minimum": 0, "maximum": 150},
        "kind": {"enum": ["cat", "dog"]},
        "tags": {"type": "array", "items": {"type": "boolean"}, "maxItems": 3},
    },
    "required": ["name", "age", "kind", "tags"],
    "additionalProperties": False,
}


@pytest.fixture(scope="module")
def tokenizer():
    return Tokenizer.from_file(str(MODEL / "tokenizer.json"))


@pytest.fixture
def grammars():
    made = Grammars(MODEL, VOCABULARY)
    yield made
    made.close()


def compiled(grammars: Grammars, schema: dict, ends: tuple[int, ...] = (END,)) -> CompiledGrammar:
    grammar = grammars.begin(asyncio.run(json_grammar(schema, "format")), ends)
    deadline = time.monotonic() + 20
    while not grammar.ready:
        assert time.monotonic() < deadline
    return grammar


def allowed(grammar: CompiledGrammar) -> list[int]:
    mask = grammar.mask()
    assert len(mask) == VOCABULARY // 8
    return [token for token in range(VOCABULARY) if mask[token // 8] >> token % 8 & 1]


def test_any_way_through_the_masks_gives_a_text_of_the_schema(grammars, tokenizer):
    for seed in range(12):
        rng, grammar, tokens = random.Random(seed), compiled(grammars, SCHEMA), []
        while not grammar.complete:
            choice = allowed(grammar)
            assert END not in choice, "the text is not complete"
            tokens.append(rng.choice(choice))
            grammar.accept(tokens[-1])
            assert grammar.error == ""
        made = json.loads(tokenizer.decode(tokens, skip_special_tokens=False))
        assert list(made) == ["name", "age", "kind", "tags"]
        assert len(made["name"]) <= 12
        assert 0 <= made["age"] <= 150
        assert made["kind"] in ("cat", "dog")
        assert all(isinstance(tag, bool) for tag in made["tags"])
        assert len(made["tags"]) <= 3


@pytest.mark.parametrize("ends", [(END,), (END, OTHER_END), (OTHER_END,), ()])
def test_the_requests_own_ends_are_possible_exactly_where_the_text_may_end(grammars, tokenizer, ends):
    grammar = compiled(grammars, {"type": "integer"}, ends)
    assert not set(allowed(grammar)) & {END, OTHER_END}
    (digit,) = tokenizer.encode("7", add_special_tokens=False).ids
    grammar.accept(digit)
    assert not grammar.complete, "more digits may follow"
    assert set(allowed(grammar)) & {END, OTHER_END} == set(ends)


def test_a_token_that_the_mask_forbids_is_an_error_and_stays_one(grammars, tokenizer):
    grammar = compiled(grammars, ANY_OBJECT)
    grammar.accept(tokenizer.encode("x", add_special_tokens=False).ids[0])
    assert grammar.error
    assert not grammar.complete


def test_a_text_that_is_no_grammar(grammars):
    grammar = grammars.begin("nonsense {", (END,))
    while not grammar.ready:
        pass
    assert grammar.error


@pytest.mark.parametrize(
    ("schema", "why"),
    [
        ({"type": "nothing"}, "Invalid type: nothing"),
        ({"type": "object", "properties": {"a": {"$ref": "http://example.com/a"}}}, "retrieving it failed"),
        ({"not": {"type": "string"}}, 'Unimplemented keys: ["not"]'),
        ({"type": "string", "pattern": "("}, "unclosed group"),
    ],
)
async def test_a_schema_that_cannot_be_followed_is_refused_by_name(schema, why):
    with pytest.raises(ApiError) as refused:
        await json_grammar(schema, "response_format")
    assert refused.value.status == 400
    assert refused.value.message.startswith("response_format: this schema cannot be followed: ")
    assert why in refused.value.message
