"""What the gateway itself answers: lists of models in each dialect, version, and the root."""

import json
from typing import Any

import pytest

from tandem_gateway.listings import NEVER

pytestmark = pytest.mark.asyncio(loop_scope="module")


async def get(site: Any, path: str) -> Any:
    async with site.client.get(site.url + path) as response:
        assert response.status == 200
        return json.loads(await response.read())


@pytest.fixture
def artifact() -> dict[str, Any]:
    return {"architecture": "LlamaForCausalLM", "parameters": 3_200_000, "weightBytes": 7, "dtype": "float32"}


async def test_models_in_openais_shape(site: Any, behave: Any) -> None:
    await site.model(behave.model("coder", "team"))
    await site.model({**behave.model("known"), "status": {"context": 2048}})
    listed = await get(site, "/v1/models")
    assert listed["object"] == "list"
    assert [entry["id"] for entry in listed["data"]] == ["coder", "known", "team/coder"]
    assert listed["data"][0] == {"id": "coder", "object": "model", "created": 1767225600, "owned_by": "default"}
    assert await get(site, "/v1/models/known") == listed["data"][1]
    assert listed["data"][1]["context_length"] == 2048
    assert (await get(site, "/v1/models/team/coder"))["id"] == "team/coder"


async def test_tags_in_ollamas_shape(site: Any, behave: Any, artifact: dict[str, Any]) -> None:
    await site.model({**behave.model("known"), "status": {"artifact": artifact}})
    listed = (await get(site, "/api/tags"))["models"]
    assert [entry["name"] for entry in listed] == ["coder", "known"]
    assert listed[1]["size"] == 7
    assert listed[1]["details"]["parameter_size"] == "3.2M"
    assert listed[1]["details"]["family"] == "llama"


async def test_ps_tells_what_is_loaded_in_the_pods(site: Any, behave: Any, artifact: dict[str, Any]) -> None:
    assert await get(site, "/api/ps") == {"models": []}
    for number, state, context in ((2, "Loaded", 512), (3, "Loaded", 256), (4, "Loading", 4)):
        pod = await site.pod(f"127.0.0.{number}", known=False)
        entry = {"name": "coder", "state": state, "sizeBytes": 9, "processor": "100% GPU", "contextGiven": context}
        pod.report = {"pod": pod.ip, "version": "1", "models": [{**entry, "artifact": artifact}]}
        await site.show(behave.pod(pod.ip))
    await site.until(lambda: len(site.gateway.directory.loads.reports) == 3)
    (listed,) = (await get(site, "/api/ps"))["models"]
    assert (listed["name"], listed["size"], listed["size_vram"], listed["context_length"]) == ("coder", 9, 9, 256)
    assert listed["expires_at"] == NEVER
    assert (await get(site, "/v1/models/coder"))["context_length"] == 256
    assert "tandem" not in await get(site, "/v1/models/coder"), "nothing was reduced"


async def test_ps_sums_up_the_copies_and_tells_of_reduced_contexts(site: Any, behave: Any) -> None:
    """The latest expiry counts, and the least context with its reason: which copy answers nobody knows before."""
    await site.model(behave.model("other"))
    base = {"state": "Loaded", "slots": 4, "busy": 1, "queued": 2, "sizeBytes": 9}
    copies = [
        ("coder", "2026-01-02T00:00:00Z", 512, ""),
        ("coder", "2026-01-03T00:00:00Z", 256, "256 of 512 tokens fit"),
        ("coder", "2026-01-01T00:00:00Z", 384, "384 of 512 tokens fit"),
        ("other", None, 64, ""),
    ]
    for number, (name, expiry, context, reason) in enumerate(copies, 2):
        entry = {**base, "name": name, "expiresAt": expiry, "contextGiven": context, "contextReason": reason}
        pod = await site.pod(f"127.0.0.{number}", known=False)
        pod.report = {"pod": pod.ip, "version": "1", "models": [entry]}
        await site.show(behave.pod(pod.ip, model=name))
    await site.until(lambda: len(site.gateway.directory.loads.reports) == 4)
    other, coder = (await get(site, "/api/ps"))["models"]
    assert (other["name"], other["expires_at"]) == ("other", NEVER)
    assert (coder["expires_at"], coder["context_length"]) == ("2026-01-03T00:00:00Z", 256)
    assert coder["tandem"] == {
        "copies": 3, "slots": 12, "busy": 3, "queued": 6, "context_reason": "256 of 512 tokens fit"
    }  # fmt: skip
    assert other["tandem"]["context_reason"] == ""
    listed = {entry["id"]: entry for entry in (await get(site, "/v1/models"))["data"]}
    assert listed["coder"]["context_length"] == 256
    assert listed["coder"]["tandem"] == {"context_reason": "256 of 512 tokens fit"}
    assert "tandem" not in listed["other"]


async def test_version_and_root(site: Any) -> None:
    assert (await get(site, "/api/version"))["version"]
    async with site.client.get(site.url + "/") as response:
        assert await response.text() == "Ollama is running"
    async with site.client.head(site.url + "/") as response:
        assert (response.status, await response.read()) == (200, b"")
