"""The bounded queue as clients meet it: 40 raw requests on 4 slots and a queue of 16."""

import asyncio
import json
import re

from tandem_testing.installation import Site
from tandem_testing.load import Outcome

NAME = "bounded"


async def raw(address: str, model: str, number: int) -> tuple[int, Outcome]:
    """One long generation over a socket of its own; the whole answer is read."""
    body = {
        "model": model,
        "stream": True,
        "max_tokens": 1200,
        "ignore_eos": True,
        "messages": [{"role": "user", "content": f"def function_{number}("}],
    }
    data = json.dumps(body).encode()
    reader, writer = await asyncio.open_connection(address, 80)
    fields = [f"Host: {address}", "Connection: close", "Content-Type: application/json", f"Content-Length: {len(data)}"]
    writer.write("\r\n".join(["POST /v1/chat/completions HTTP/1.1", *fields, "", ""]).encode() + data)
    await writer.drain()
    answer = await reader.read()
    writer.close()
    await writer.wait_closed()
    head_bytes, _, rest = answer.partition(b"\r\n\r\n")
    lines = head_bytes.decode().split("\r\n")
    headers = {key.lower(): value for key, value in (line.split(": ", 1) for line in lines[1:])}
    outcome = Outcome(status=int(lines[0].split()[1]), headers=headers, done=b"data: [DONE]" in rest)
    outcome.error = rest.decode() if outcome.status != 200 else None
    return number, outcome


async def test_forty_requests_on_four_slots_and_a_queue_of_sixteen(site: Site) -> None:
    spec = {
        **site.model("python-coder")["spec"],
        "aliases": [],
        "slots": 4,
        "queue": {"max": 16, "timeoutSeconds": 300},
    }
    spec["resources"] = {"cpu": "100m", "memory": "2Gi"}
    manifest = {
        "apiVersion": "tandem.dev/v1alpha1",
        "kind": "Model",
        "metadata": {"name": NAME, "namespace": "default"},
        "spec": spec,
    }
    site.kubernetes.apply([manifest])
    try:
        await asyncio.to_thread(
            site.eventually, "it is ready", lambda: site.condition(NAME).get("status") == "True", 120
        )
        address = site.gateway.removeprefix("http://")
        outcomes = [
            outcome for _, outcome in await asyncio.gather(*(raw(address, NAME, number) for number in range(40)))
        ]
        served = [outcome for outcome in outcomes if outcome.status == 200]
        refused = [outcome for outcome in outcomes if outcome.status == 503]
        assert (len(served), len(refused)) == (20, 20)
        assert all(outcome.done for outcome in served)
        for outcome in refused:
            assert outcome.error
            assert json.loads(outcome.error)["error"]["code"] == "queue_full"
            assert outcome.headers["x-tandem-refused"] == "queue_full"
            assert 1 <= int(outcome.headers["retry-after"]) <= 60
        pod = site.pods(NAME)[0]["metadata"]["name"]
        log = await asyncio.to_thread(site.kubernetes.kubectl, "logs", pod)
        admitted = [int(number) for number in re.findall(r"admitted request (\d+)", log)]
        assert len(admitted) == 20
        assert admitted == sorted(admitted), "requests run in the order in which they came"
        rejected = await asyncio.to_thread(
            site.eventually, "status counts them", lambda: site.model(NAME)["status"].get("rejected"), 20
        )
        assert rejected == 20
    finally:
        site.kubernetes.kubectl("delete", "model", NAME, "--wait=false")
