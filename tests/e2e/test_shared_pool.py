"""A ModelPool with Models in it as a user has it: one loaded at once, one with its first request, one that is held."""

from typing import Any

import pytest

from tandem_testing.installation import Site

API = "tandem.dev/v1alpha1"
NAMES = ("pooled-coder", "pooled-minilm", "elsewhere")


def model(name: str, folder: str, **spec: Any) -> dict[str, Any]:
    metadata = {"name": name, "namespace": "default"}
    return {
        "apiVersion": API, "kind": "Model", "metadata": metadata,
        "spec": {"source": f"pvc://demo-models/{folder}", "pool": "shared", **spec},
    }  # fmt: skip


POOL = {
    "apiVersion": API,
    "kind": "ModelPool",
    "metadata": {"name": "shared", "namespace": "default"},
    "spec": {
        "device": "CPU",
        "resources": {"cpu": "100m", "memory": "2Gi"},
        "volumes": [{"claim": "demo-models"}],
        "podTemplate": {"metadata": {"labels": {"team": "search"}}},
    },
}


@pytest.fixture(scope="module")
def pool(site: Site) -> Any:
    """The pool and its Models; gone afterwards."""
    site.kubernetes.apply(
        [
            POOL,
            model("pooled-coder", "python-coder", copies={"min": 1}, slots=2),
            model("pooled-minilm", "minilm", aliases=["sentences"]),
            model("elsewhere", "x", source="pvc://payroll/x"),
        ]
    )
    yield site
    site.kubernetes.kubectl("delete", "modelpool/shared", *(f"model/{name}" for name in NAMES), "--ignore-not-found")
    site.eventually("the pool's pods are gone", lambda: not site.pods("shared"))


def ready(site: Site, name: str, reason: str) -> bool:
    return bool(site.condition(name).get("reason") == reason)


def test_one_is_loaded_at_once_and_one_with_its_first_request(pool: Site) -> None:
    pool.eventually("the first copy", lambda: ready(pool, "pooled-coder", "Loaded"), 120)
    pool.eventually("the other is known", lambda: ready(pool, "pooled-minilm", "Unloaded"))
    assert len(pool.pods("shared")) == 1
    assert pool.pods("shared")[0]["metadata"]["labels"]["team"] == "search"
    status, body = pool.post("/v1/completions", {"model": "pooled-coder", "prompt": "def ", "max_tokens": 4})
    assert (status, body["usage"]["completion_tokens"]) == (200, 4)
    status, body = pool.post("/api/embed", {"model": "sentences", "input": "hello"}, timeout=120)
    assert (status, len(body["embeddings"][0])) == (200, 384)
    pool.eventually("it is loaded", lambda: ready(pool, "pooled-minilm", "Loaded"))
    lines = pool.kubernetes.kubectl("get", "modelpools").splitlines()
    print("\n".join(lines))
    assert lines[0].split() == ["NAME", "READY", "REPLICAS", "DEVICE", "MODELS", "LOADED", "MEMORY", "AGE"]
    assert lines[1].split()[:6] == ["shared", "True", "1", "CPU", "3", "2"]


def told(pool: Site, model: str) -> tuple[int, Any] | None:
    """How a gateway answers a request for a model that it knows."""
    status, body = pool.post("/v1/completions", {"model": model, "prompt": "x"})
    return None if status == 404 else (status, body)


def test_a_model_that_the_pool_cannot_read_is_held_and_told_to_callers(pool: Site) -> None:
    pool.eventually("it is held", lambda: ready(pool, "elsewhere", "VolumeNotInPool"))
    # A gateway hears of a new Model by a watch of its own, at times a moment later than the operator.
    status, body = pool.eventually("a gateway knows it", lambda: told(pool, "elsewhere"))
    assert status == 503
    assert "do not mount the claim payroll" in body["error"]["message"]
    held = pool.eventually(
        "the pool tells of it",
        lambda: [
            one
            for one in pool.kubernetes.get("modelpool", "shared", "-n", "default")
            .get("status", {})
            .get("conditions", [])
            if one["type"] == "ModelsHeld"
        ],
    )
    assert held[0]["message"].startswith("1 of 3 Models is not carried out: elsewhere (VolumeNotInPool).")


def test_a_changed_setting_reaches_the_running_pod_without_replacing_it(pool: Site) -> None:
    (before,) = pool.pods("shared")
    patch = '{"spec": {"slots": 3}}'
    pool.kubernetes.kubectl("patch", "model", "pooled-coder", "--type=merge", "-p", patch)
    pool.eventually(
        "three slots", lambda: str(pool.model("pooled-coder")["status"].get("slots", "")).endswith("/3"), 60
    )
    (after,) = pool.pods("shared")
    assert after["metadata"]["uid"] == before["metadata"]["uid"]
    assert after["status"]["containerStatuses"][0]["restartCount"] == 0


def test_a_model_that_leaves_is_unknown_to_callers(pool: Site) -> None:
    pool.kubernetes.kubectl("delete", "model", "pooled-minilm", "--wait=true")

    def gone() -> bool:
        return pool.post("/api/embed", {"model": "sentences", "input": "hello"})[0] == 404

    pool.eventually("it is gone", gone)
    status, _ = pool.post("/v1/completions", {"model": "pooled-coder", "prompt": "def ", "max_tokens": 1})
    assert status == 200
