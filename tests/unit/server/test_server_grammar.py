"""Answers in JSON, asked for in both dialects: what reaches the runner, and what a real one makes of it."""

import json
from pathlib import Path

import pytest
from server_site import REAL, FakeModel

from tandem_api.catalog import CatalogModel

CODER = Path(__file__).resolve().parents[3] / "models" / "python-coder"
SCHEMA = {
    "type": "object",
    "properties": {"name": {"enum": ["cat", "dog"]}, "legs": {"type": "integer", "minimum": 0, "maximum": 8}},
    "required": ["name", "legs"],
    "additionalProperties": False,
}
CHAT = {"messages": [{"role": "user", "content": "An animal?"}], "stream": False}
OPENAI = {"type": "json_schema", "json_schema": {"name": "animal", "schema": SCHEMA, "strict": True}}


@pytest.mark.process
@pytest.mark.parametrize(
    ("path", "wish", "schema"),
    [
        ("/v1/chat/completions", {"response_format": {"type": "text"}}, None),
        ("/v1/chat/completions", {"response_format": {"type": "json_object"}}, {"type": "object"}),
        ("/v1/chat/completions", {"response_format": OPENAI}, SCHEMA),
        ("/api/chat", {"format": ""}, None),
        ("/api/chat", {"format": "json"}, {"type": "object"}),
        ("/api/generate", {"format": SCHEMA, "prompt": "An animal?"}, SCHEMA),
    ],
)
async def test_the_runner_is_told_the_grammar(serve, model: FakeModel, path, wish, schema):
    site = await serve(model.entry())
    answer = await site.client.post(path, json={"model": "fake", **CHAT, **wish})
    assert answer.status_code == 200, answer.text
    told = json.loads((model.folder / "grammars").read_text().splitlines()[-1])
    if schema is None:
        assert told == ""
    else:
        found = json.loads(told)["grammars"][0]["json_schema"]
        assert {key: found[key] for key in schema} == schema


@pytest.mark.torch
@pytest.mark.process
async def test_a_real_model_keeps_to_the_schema_whatever_it_would_rather_write(serve):
    entry = CatalogModel.model_validate(
        {"name": "coder", "source": f"file://{CODER}", "slots": 2, "context": {"length": 512}}
    )
    site = await serve(entry, **REAL)
    for seed in range(3):
        body = {"model": "coder", **CHAT, "options": {"seed": seed, "num_predict": 300}, "format": SCHEMA}
        answer = (await site.client.post("/api/chat", json=body)).json()
        assert answer["done_reason"] == "stop"
        made = json.loads(answer["message"]["content"])
        assert made["name"] in ("cat", "dog")
        assert 0 <= made["legs"] <= 8
    body = {"model": "coder", **CHAT, "response_format": OPENAI, "temperature": 0, "max_tokens": 300}
    answer = (await site.client.post("/v1/chat/completions", json=body)).json()
    assert set(json.loads(answer["choices"][0]["message"]["content"])) == {"name", "legs"}
