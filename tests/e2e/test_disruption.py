"""What clients notice of rolling changes, a dead operator and a dead runner: nothing, or a named cause."""

import asyncio
import json
from typing import Any

import pytest

from tandem_testing import processes
from tandem_testing.installation import Site
from tandem_testing.load import Load, Outcome

MODEL = "python-coder"
pytestmark = pytest.mark.timeout(420)


async def roll(site: Site, memory: str) -> None:
    """Changes the pods' memory limit, which replaces them."""
    patch = json.dumps({"spec": {"resources": {"memory": memory}}})
    await asyncio.to_thread(site.kubernetes.kubectl, "patch", "model", MODEL, "--type=merge", "-p", patch)


async def rolled(site: Site, before: set[str]) -> None:
    """Returns once none of the pods in `before` exists and a new one is ready."""

    def probe() -> bool:
        pods = site.pods(MODEL)
        fresh = [pod for pod in pods if pod["metadata"]["uid"] not in before]
        return len(fresh) == len(pods) and any(ready(pod) for pod in fresh)

    await asyncio.to_thread(site.eventually, "the old pods are replaced", probe, 150)


def ready(pod: dict[str, Any]) -> bool:
    """Whether the pod's Ready condition is true."""
    return any(c["type"] == "Ready" and c["status"] == "True" for c in pod["status"].get("conditions", []))


def uids(site: Site) -> set[str]:
    """The UIDs of the Model's pods."""
    return {pod["metadata"]["uid"] for pod in site.pods(MODEL)}


def kill_operator(site: Site) -> None:
    """SIGKILL to the operator's process."""
    pods = site.kubernetes.get("pods", "-n", "tandem-system", "-l", "app.kubernetes.io/component=operator")["items"]
    victims = [pid for pod in pods for pid in processes.of_pod(pod["metadata"]["uid"])]
    victims = [pid for pid in victims if "tandem_operator" in processes.command(pid)]
    assert victims, "the operator's process was not found"
    for pid in victims:
        processes.kill(pid)


async def test_two_rolling_changes_and_a_killed_operator_lose_no_request(site: Site) -> None:
    load = Load(site.gateway, MODEL, clients=6, total=500, max_tokens=40)
    running = asyncio.create_task(load.run())
    try:
        await load.reached(20)
        before = uids(site)
        await roll(site, "2100Mi")
        await rolled(site, before)
        first = len(load.outcomes)
        before = uids(site)
        await roll(site, "2200Mi")
        await asyncio.to_thread(kill_operator, site)
        await rolled(site, before)
    finally:
        load.enough.set()
        outcomes = await running
    print(f"{len(outcomes)} requests, {first} of them until the end of the first change")
    assert len(outcomes) >= 500
    assert load.failures() == []


async def test_a_killed_runner_fails_only_its_own_requests_and_the_model_serves_again(site: Site) -> None:
    pod = site.eventually("one pod", lambda: [p for p in site.pods(MODEL) if ready(p)])[0]
    load = Load(site.gateway, MODEL, clients=4, total=4, max_tokens=1900, to_the_end=True)
    load.enough.set()
    running = asyncio.create_task(load.run())
    await load.flowing()
    embedding = asyncio.create_task(
        asyncio.to_thread(site.post, "/v1/embeddings", {"model": "minilm", "input": "still here"})
    )
    victims = processes.runners(pod["metadata"]["uid"])
    assert len(victims) == 1
    processes.kill(victims[0])
    outcomes = await running
    assert (await embedding)[0] == 200, "another model notices nothing"
    assert [outcome for outcome in outcomes if not outcome.served], "the runner had requests"
    assert all(named(outcome) for outcome in outcomes if not outcome.served), [o.error for o in outcomes]
    answer = await asyncio.to_thread(
        site.eventually,
        "the model serves again",
        lambda: site.post("/v1/completions", {"model": MODEL, "prompt": "def "})[0] == 200,
    )
    assert answer
    again = next(p for p in site.pods(MODEL) if p["metadata"]["uid"] == pod["metadata"]["uid"])
    assert again["status"]["containerStatuses"][0]["restartCount"] == 0, "the runner was replaced, not the pod"


def named(outcome: Outcome) -> bool:
    """Whether the error says that the runner was killed."""
    return outcome.error is not None and "SIGKILL" in outcome.error


async def test_a_deleted_model_is_gone_within_ten_seconds_of_its_last_request(site: Site) -> None:
    name = "short-lived"
    spec = {**site.model(MODEL)["spec"], "aliases": [], "resources": {"cpu": "100m", "memory": "2Gi"}}
    site.kubernetes.apply(
        [
            {
                "apiVersion": "tandem.dev/v1alpha1",
                "kind": "Model",
                "metadata": {"name": name, "namespace": "default"},
                "spec": spec,
            }
        ]
    )
    await asyncio.to_thread(site.eventually, "it is ready", lambda: site.condition(name).get("status") == "True", 120)
    load = Load(site.gateway, name, clients=2, total=2, max_tokens=1000, to_the_end=True)
    load.enough.set()
    running = asyncio.create_task(load.run())
    await load.flowing()
    await asyncio.to_thread(site.kubernetes.kubectl, "delete", "model", name, "--wait=false")
    await running
    assert load.failures() == [], "requests that run when a Model is deleted are finished"
    await asyncio.to_thread(site.eventually, "all of it is gone", lambda: left(site, name) == [] or None, 10)


def left(site: Site, name: str) -> list[str]:
    """What still exists of the Model."""
    kinds = "deployments,replicasets,services,configmaps,secrets,pods"
    items = site.kubernetes.get(kinds, "-n", "default", "-l", f"tandem.dev/pool={name}")["items"]
    return [f"{item['kind']}/{item['metadata']['name']}" for item in items]
