"""The pages of docs/scenarios as a user walks them: several models on one device, with the manifests of the pages."""

import json
import threading
import time
import urllib.error
import urllib.request
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import yaml

from tandem_cli.demo import assets
from tandem_testing import long_context
from tandem_testing.installation import Site

PAGES = Path(__file__).parents[2] / "docs" / "scenarios"


@contextmanager
def applied(site: Site, page: str) -> Iterator[list[str]]:
    """A page's objects, known to the gateway; gone afterwards. Gives the names of its Models."""
    objects = [one for one in yaml.safe_load_all((PAGES / f"{page}.yaml").read_text()) if one]
    for one in objects:
        one["metadata"]["namespace"] = "default"
    models = [one["metadata"]["name"] for one in objects if one["kind"] == "Model"]
    site.kubernetes.apply(objects)
    try:
        for name in models:
            site.eventually(f"{name} is served", lambda name=name: site.condition(name).get("status") == "True", 120)
            site.eventually(f"a gateway knows {name}", lambda name=name: known(site, name))
        yield models
    finally:
        for kind in ("model", "modelpool"):
            names = [one["metadata"]["name"] for one in objects if one["kind"].lower() == kind]
            if names:
                site.kubernetes.kubectl("delete", kind, *names, "--ignore-not-found")


def known(site: Site, name: str) -> bool:
    """Whether a gateway lists the model."""
    with urllib.request.urlopen(f"{site.gateway}/v1/models", timeout=10) as answer:
        return name in {one["id"] for one in json.load(answer)["data"]}


def call(site: Site, path: str, body: dict[str, Any]) -> tuple[int, dict[str, str], Any]:
    """Status, headers and JSON body of a POST; a connection that breaks raises."""
    request = urllib.request.Request(f"{site.gateway}{path}", json.dumps(body).encode())
    try:
        with urllib.request.urlopen(request, timeout=180) as answer:
            return answer.status, dict(answer.headers), json.load(answer)
    except urllib.error.HTTPError as error:
        with error:
            return error.code, dict(error.headers), json.load(error)


def say(site: Site, model: str, **more: Any) -> tuple[int, dict[str, str], Any]:
    """A short answer by Ollama's API."""
    options = {"num_predict": 8}
    return call(
        site, "/api/generate", {"model": model, "prompt": "def add(", "stream": False, "options": options} | more
    )


def events(site: Site, name: str, reason: str) -> list[dict[str, Any]]:
    """Events of a Model with this reason."""
    selector = f"involvedObject.kind=Model,involvedObject.name={name},reason={reason}"
    found: list[dict[str, Any]] = site.kubernetes.get("events", "-n", "default", "--field-selector", selector)["items"]
    return found


def column(site: Site, name: str, title: str) -> str:
    """What `kubectl get models` prints of a Model; no column before it may be empty."""
    head, row = site.kubernetes.kubectl("get", "model", name).splitlines()
    return row[head.index(title) :].split("  ")[0].strip()


@pytest.fixture(scope="module")
def desk(site: Site) -> Iterator[Site]:
    """The pool of most pages, and the checkpoint that is short of memory."""
    folder = assets.cache_folder() / "demo-models"
    long_context.make(folder / assets.CHAT_MODEL, folder / "long-context")
    pool = yaml.safe_load((PAGES / "pool.yaml").read_text())
    pool["metadata"]["namespace"] = "default"
    site.kubernetes.apply([pool])
    yield site
    site.kubernetes.kubectl("delete", "modelpool/desk", "--ignore-not-found")


def test_rag(desk: Site) -> None:
    """An embedding and a chat model share a device under load; neither is evicted."""
    with applied(desk, "rag"):

        def embed(number: int) -> int:
            return call(desk, "/v1/embeddings", {"model": "sentences", "input": [f"sentence {number}"] * 4})[0]

        def answer(number: int) -> int:
            return say(desk, "answers", prompt=f"def add_{number}(")[0]

        embed(0), answer(0)
        with ThreadPoolExecutor(12) as pool:
            statuses = [*pool.map(lambda number: (answer if number % 3 == 0 else embed)(number), range(60))]
        assert Counter(statuses) == {200: 60}
        for name in ("sentences", "answers"):
            desk.eventually(f"{name} is told", lambda name=name: desk.condition(name, "Loaded")["status"] == "True")
            assert not events(desk, name, "Unloaded")


def test_agents(site: Site) -> None:
    """Three chat models take turns on a device with room for two: the longest unused one makes way."""
    with applied(site, "agents") as agents:
        began = time.monotonic()
        for turn in range(9):
            status, _, body = say(site, agents[turn % 3], prompt=f"def turn_{turn}(")
            assert (status, body["done"]) == (200, True)
        seconds = time.monotonic() - began
        unloads = site.eventually(
            "an eviction is told",
            lambda: [one for name in agents for one in events(site, name, "Unloaded") if "needed its room" in str(one)],
        )
        print(f"9 turns of 3 agents on room for two: {seconds:.1f} s; told: {unloads[0].get('note') or unloads[0]}")
        told = site.eventually("two are loaded", lambda: pool_status(site, "small-desk", 2))
        assert {"critic", "coder"} == set(told["models"])


def pool_status(site: Site, pool: str, loaded: int) -> dict[str, Any] | None:
    """What the pool's status says of its one pod, once that holds so many models."""
    pods = site.kubernetes.get("modelpool", pool, "-n", "default").get("status", {}).get("pods", [])
    return pods[0] if pods and len(pods[0].get("models", [])) == loaded else None


def test_the_trap(desk: Site) -> None:
    """A context that does not fit: the user finds out in the status, in an Event and in the response."""
    with applied(desk, "trap"):
        status, headers, body = call(desk, "/v1/completions", {"model": "long", "prompt": "def ", "max_tokens": 2})
        assert status == 200, body
        given = int(headers["x-tandem-context-length"])
        assert 2048 <= given < 32_768
        reduced = desk.eventually("the condition", lambda: desk.condition("long", "ContextReduced"))
        assert (reduced["status"], reduced["reason"]) == ("True", "MemoryShort")
        assert reduced["message"].startswith(f"Each slot has {given} tokens of context instead of 32768, since 4 slots")
        print(reduced["message"])
        desk.eventually("the column", lambda: column(desk, "long", "CONTEXT") == str(given))
        (event,) = desk.eventually("the Event", lambda: events(desk, "long", "ContextReduced"))
        assert event["type"] == "Warning"
        with urllib.request.urlopen(f"{desk.gateway}/v1/models/long", timeout=10) as answer:
            assert json.load(answer)["max_model_len"] == given
        with urllib.request.urlopen(f"{desk.gateway}/api/ps", timeout=10) as answer:
            (mine,) = [one for one in json.load(answer)["models"] if one["name"] == "long"]
        assert mine["context_length"] == given


def test_keep_alive(desk: Site) -> None:
    """What requests wish is what UNTIL says."""
    with applied(desk, "keep-alive"):
        assert say(desk, "guest")[0] == 200
        desk.eventually("a time", lambda: column(desk, "guest", "UNTIL").endswith("Z"))
        status, headers, _ = say(desk, "guest", keep_alive=-1)
        assert (status, headers["x-tandem-keep-alive"]) == (200, "-1")
        desk.eventually("Forever", lambda: column(desk, "guest", "UNTIL") == "Forever")
        assert say(desk, "guest", keep_alive="10s")[0] == 200
        began = time.monotonic()
        desk.eventually("it goes", lambda: desk.condition("guest").get("reason") == "Unloaded", 30)
        assert time.monotonic() - began > 5
        assert "its keep-alive ended" in desk.condition("guest")["message"]
        assert say(desk, "guest", keep_alive=0)[0] == 200
        desk.eventually("gone at once", lambda: len(events(desk, "guest", "Loaded")) >= 1, 30)
        desk.eventually("it is unloaded", lambda: desk.condition("guest").get("reason") == "Unloaded", 30)


def test_queue(desk: Site) -> None:
    """Forty embeddings on one slot and a queue of sixteen, beside a long answer: refusals are counted."""
    with applied(desk, "queue"):
        assert call(desk, "/api/embed", {"model": "indexer", "input": "warm"})[0] == 200
        assert say(desk, "writer")[0] == 200
        answer: list[tuple[int, dict[str, str], Any]] = []
        body = {"model": "writer", "prompt": "def ", "stream": False, "options": {"num_predict": 1500, "seed": 1}}
        writing = threading.Thread(target=lambda: answer.append(call(desk, "/api/generate", body)))
        writing.start()
        text = ["a sentence of some words, said again and again " * 20] * 12
        with ThreadPoolExecutor(40) as pool:
            ask = {"model": "indexer", "input": text}
            outcomes = [*pool.map(lambda _: call(desk, "/api/embed", ask), range(40))]
        writing.join(180)
        assert answer[0][0] == 200
        statuses = Counter(status for status, _, _ in outcomes)
        assert statuses.keys() == {200, 503}
        assert statuses[200] >= 17
        for status, headers, told in outcomes:
            if status == 503:
                assert told["error"] == "server busy, please try again.  maximum pending requests exceeded"
                assert 1 <= int(headers["retry-after"]) <= 60
        rejected = desk.eventually("the count", lambda: desk.model("indexer")["status"].get("rejected"), 30)
        assert rejected == statuses[503]


def test_three_times_gpus(site: Site) -> None:
    """Seven models on two devices, six at once: the seventh takes the place of the longest unused."""
    with applied(site, "three-times-gpus") as names:
        for name in names[:6]:
            assert say(site, name)[0] == 200
        told = site.eventually("six are loaded", lambda: pool_status(site, "twins", 6))
        devices = Counter(entry.rsplit(" ", 1)[1] for entry in told["models"])
        assert devices == {"(0)": 3, "(1)": 3}
        assert len(told["devices"]) == 2
        assert say(site, names[6])[0] == 200
        told = site.eventually(
            "the seventh is there",
            lambda: (
                (one := pool_status(site, "twins", 6)) and any("small-7" in entry for entry in one["models"]) and one
            ),
        )
        assert not any(entry.startswith("small-1 ") for entry in told["models"])
        print(site.kubernetes.kubectl("get", "modelpools"))
