"""Metrics against what happened, under this project's names and vLLM's; and the report's figures."""

import asyncio
import os
import signal

import pytest
from prometheus_client.parser import text_string_to_metric_families
from server_site import ANSWER, fake_settings, until

from tandem_api.report import DeviceReport
from tandem_server.pod import Pod, size_of, with_reserved
from tandem_server.residency.ledger import Ledger, Need, Phase, Resident

CHAT = {"model": "fake", "messages": [{"role": "user", "content": "Hi"}]}


async def scrape(site):
    """Values by (name, labels) with the labels as sorted text."""
    text = (await site.client.get("/metrics")).text
    found = {}
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            labels = ",".join(f"{key}={value}" for key, value in sorted(sample.labels.items()))
            assert (sample.name, labels) not in found, "no series twice"
            found[sample.name, labels] = sample.value
    return found


OURS, THEIRS = "model=fake", "engine=0,model_name=fake"


@pytest.mark.process
async def test_a_scrape_under_load_tells_what_happens(serve, make_model):
    model = make_model()
    site = await serve(model.entry(slots=2, queue={"max": 3}), max_body_bytes=5000)
    model.hold()
    tasks = [asyncio.create_task(site.client.post("/v1/chat/completions", json=CHAT)) for _ in range(5)]
    line = site.host().admission.line
    await until(lambda: (len(line.running), len(line.waiting)) == (2, 3))
    for _ in range(2):
        assert (await site.client.post("/api/chat", json=CHAT)).status_code == 503
    now = await scrape(site)
    for prefix, labels in (("tandem_", OURS), ("vllm:", THEIRS)):
        assert now[prefix + "num_requests_running", labels] == 2
        assert now[prefix + "num_requests_waiting", labels] == 3
    assert now["vllm:kv_cache_usage_perc", THEIRS] == now["tandem_kv_cache_usage_ratio", OURS] == 1.0
    assert (now["tandem_pod_requests_running", ""], now["tandem_pod_requests_waiting", ""]) == (2, 3)
    assert now["tandem_requests_refused_total", "model=fake,reason=queue_full"] == 2
    assert now["tandem_http_responses_total", "code=503,dialect=ollama"] == 2
    assert (now["tandem_ready", ""], now["tandem_draining", ""], now["tandem_slots", OURS]) == (1, 0, 2)
    model.release()
    assert [answer.status_code for answer in await asyncio.gather(*tasks)] == [200] * 5
    await check_counts(site, await scrape(site), tasks[0].result().json())


async def check_counts(site, now, answer):
    tokens, prompt = answer["usage"]["completion_tokens"], answer["usage"]["prompt_tokens"]
    assert now["tandem_requests_total", "dialect=openai,model=fake,outcome=ok"] == 5
    for prefix, labels in (("tandem_", OURS), ("vllm:", THEIRS)):
        assert now[prefix + "generation_tokens_total", labels] == 5 * tokens
        assert now[prefix + "prompt_tokens_total", labels] == 5 * prompt
        assert now[prefix + "time_to_first_token_seconds_count", labels] == 5
        assert now[prefix + "inter_token_latency_seconds_count", labels] == 5 * (tokens - 1)
        assert now[prefix + "e2e_request_latency_seconds_count", labels] == 5
        assert now[prefix + "num_requests_running", labels] == now[prefix + "num_requests_waiting", labels] == 0
    assert now["vllm:request_success_total", f"{THEIRS.replace('engine=0,', 'engine=0,finished_reason=stop,')}"] == 5
    for name in ("queue_time", "prefill_time", "decode_time", "time_per_output_token"):
        assert now[f"vllm:request_{name}_seconds_count", THEIRS] == 5, name
    assert now["vllm:request_prompt_tokens_sum", THEIRS] == 5 * prompt
    assert now["vllm:request_generation_tokens_sum", THEIRS] == 5 * tokens
    assert now["tandem_http_responses_total", "code=200,dialect=openai"] == 5
    assert now["tandem_model_loads_total", "model=fake,outcome=ok"] == 1
    assert now["tandem_model_load_bytes_total", OURS] == 1000
    assert now["tandem_model_load_seconds_count", OURS] == 1


def finished(now, why):
    return now.get(("vllm:request_success_total", f"engine=0,finished_reason={why},model_name=fake"), 0)


@pytest.mark.process
async def test_every_other_end_is_counted_too(serve, make_model):
    model = make_model()
    site = await serve(model.entry(), max_body_bytes=5000)
    short = await site.client.post("/v1/chat/completions", json={**CHAT, "max_tokens": 2})
    assert short.json()["choices"][0]["finish_reason"] == "length"
    assert (await site.client.post("/v1/completions", json={"model": "fake", "prompt": "<|fail|>"})).status_code == 500
    assert (await site.client.post("/v1/completions", json={"model": "fake", "prompt": "<|death|>"})).status_code == 500
    await until(lambda: site.host().loaded, "the new runner")
    model.hold()
    leaving = asyncio.create_task(site.client.post("/v1/chat/completions", json=CHAT))
    await until(lambda: site.host().admission.line.running)
    leaving.cancel()
    await until(lambda: model.aborted() == 1)
    model.release()
    await until(lambda: not site.host().admission.line.running)
    assert (await site.client.post("/v1/chat/completions", json={"model": "no-such"})).status_code == 400
    assert (await site.client.post("/v1/chat/completions", json={"model": "a" * 6000})).status_code == 413
    now = await scrape(site)
    assert [finished(now, why) for why in ("stop", "length", "error", "abort")] == [0, 1, 2, 1]
    assert now["tandem_runner_restarts_total", OURS] == 1
    assert now["tandem_model_loads_total", "model=fake,outcome=ok"] == 2
    codes = {key[1]: value for key, value in now.items() if key[0] == "tandem_http_responses_total"}
    dialect = ",dialect=openai"
    assert codes == {
        f"code={code}{dialect}": count for code, count in ((200, 1), (500, 2), (499, 1), (400, 1), (413, 1))
    }


@pytest.mark.process
async def test_no_client_makes_new_series(serve, model):
    site = await serve(model.entry())
    before = {key for key in await scrape(site) if "_bucket" not in key[0]}
    for number in range(20):
        await site.client.post("/v1/chat/completions", json={**CHAT, "model": f"made-up-{number}"})
        await site.client.post(f"/v1/made/up/{number}", json=CHAT)
        await site.client.get(f"/made/up/{number}")
    after = {key for key in await scrape(site) if "_bucket" not in key[0]}
    assert {key[0] for key in after - before} <= {"tandem_http_responses_total", "tandem_http_responses_created"}
    assert not any("made" in labels for _, labels in after)


@pytest.mark.process
async def test_memory_of_runners_is_measured(serve, make_model):
    first, second = make_model("a"), make_model("b", descendants=["forked"])
    site = await serve(first.entry(), second.entry("other"))
    hosts = [site.host(), site.host("other")]
    await until(lambda: all(each.runner.memory for each in hosts), "the measurement")
    for each in hosts:
        each.runner._end_watch()  # no further measurement
        memory = each.runner.memory
        assert 1 << 20 < memory.pss <= memory.rss, "shared pages are divided"
    now = await scrape(site)
    assert now["tandem_runner_memory_bytes", "kind=rss,model=fake"] == hosts[0].runner.memory.rss
    assert now["tandem_runner_memory_bytes", "kind=device,model=fake"] == 0
    device = site.pod.report().devices[0]
    assert device.reserved_bytes == sum(size_of(each) for each in hosts)
    assert now["tandem_device_memory_bytes", "device=0,kind=reserved"] == device.reserved_bytes
    os.kill(hosts[0].runner.pid, signal.SIGKILL)
    await until(lambda: hosts[0].restarts == 1)
    assert (await site.client.post("/v1/chat/completions", json=CHAT)).json()["choices"][0]["message"][
        "content"
    ] == ANSWER


def test_what_is_promised_to_models_is_reserved_where_they_lie():
    gpus = [DeviceReport(name=name, kind="GPU", total_bytes=100, free_bytes=50) for name in "ab"]
    ledger = Ledger([90, 1 << 62], 6)
    ledger.residents["x"] = Resident("x", Need(30, 30), 0.0, phase=Phase.LOADED, device=1, bytes=30)
    told = with_reserved(gpus, ledger)
    assert [(device.total_bytes, device.reserved_bytes) for device in told] == [(90, 0), (100, 30)]
    assert with_reserved(gpus, None) == gpus


async def test_a_pod_without_models_can_be_scraped(tmp_path):
    assert b"tandem_ready 0.0" in Pod(fake_settings(tmp_path)).metrics.text()
