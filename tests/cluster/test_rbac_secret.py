"""A person who may only edit Models names Secrets that are not meant for Models: nothing of them goes anywhere."""

import base64
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from tandem_devcluster.cluster import Cluster
from tandem_testing.helm import Helm
from tandem_testing.kube import Kube, Obj, eventually
from tandem_testing.operator_process import OperatorProcess
from tandem_testing.person import Person
from tandem_testing.proxy import Proxy

pytestmark = pytest.mark.timeout(180)

A, B = "secret-a", "secret-b"
LABEL = "tandem.dev/model-credentials"
GROUP = "/apis/tandem.dev/v1alpha1/namespaces"
COLLECTIONS = (
    "/api/v1/namespaces/{}/configmaps", "/api/v1/namespaces/{}/secrets", "/api/v1/namespaces/{}/services",
    "/api/v1/namespaces/{}/pods", "/apis/apps/v1/namespaces/{}/deployments",
    "/apis/apps/v1/namespaces/{}/replicasets", "/apis/tandem.dev/v1alpha1/namespaces/{}/models",
    "/apis/tandem.dev/v1alpha1/namespaces/{}/modelpools", "/apis/events.k8s.io/v1/namespaces/{}/events",
)  # fmt: skip
"""Where something could have been copied to."""


@pytest.fixture(scope="module")
def kube(control_plane: Cluster, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Kube]:
    made = Kube(control_plane, tmp_path_factory.mktemp("kube"))
    made.install_crd()
    rendered = Helm(control_plane, "tandem-system").render()
    editor = [one for one in rendered if one["kind"] == "ClusterRole" and "editor" in one["metadata"]["name"]]
    made.kubectl("apply", "-f", "-", text=yaml.safe_dump_all(editor))
    for namespace in (A, B):
        made.kubectl("create", "namespace", namespace)
    made.kubectl("create", "rolebinding", "edith", "-n", A, "--clusterrole=tandem-model-editor", "--user=edith")
    yield made
    for namespace in (A, B):
        made.kubectl("delete", "namespace", namespace, "--wait=false")
    made.close()


@pytest.fixture(autouse=True)
async def operator(kube: Kube, tmp_path: Path) -> AsyncIterator[None]:
    """An operator runs during the test."""
    proxy = Proxy(kube)
    await proxy.start()
    process = OperatorProcess(proxy, tmp_path)
    await process.start()
    try:
        yield
        assert process.running, process.log
    finally:
        process.kill()
        await process.wait()
        await proxy.stop()


@pytest.fixture
def edith(kube: Kube) -> Iterator[Person]:
    with Person(kube, "edith") as made:
        yield made


def secret(kube: Kube, namespace: str, name: str, value: str, label: str | None = None) -> None:
    labels = {} if label is None else {LABEL: label}
    body = {"metadata": {"name": name, "labels": labels}, "stringData": {"token": value}}
    kube.request("POST", f"/api/v1/namespaces/{namespace}/secrets", body)


def model(name: str, reference: str, **spec: Any) -> Obj:
    own = {} if "pool" in spec else {"device": "CPU"}
    return {
        "apiVersion": "tandem.dev/v1alpha1", "kind": "Model", "metadata": {"name": name},
        "spec": {"source": "hf://org/name", "secretRef": {"name": reference}, **own, **spec},
    }  # fmt: skip


def copies(kube: Kube, value: str, but: str) -> list[str]:
    """The objects of A, other than the Secret `but`, in which a value stands, plainly or encoded."""
    words = (value, base64.b64encode(value.encode()).decode().rstrip("="))
    found = []
    for collection in COLLECTIONS:
        for obj in kube.items(collection.format(A)):
            text = yaml.safe_dump(obj, width=1 << 20)
            if obj["metadata"]["name"] != but and any(word in text for word in words):
                found.append(f"{collection} {obj['metadata']['name']}")
    return found


async def ready(kube: Kube, name: str, reason: str) -> Obj:
    def probe() -> Obj | None:
        conditions = (kube.find(f"{GROUP}/{A}/models/{name}") or {}).get("status", {}).get("conditions", [])
        return next((one for one in conditions if one["type"] == "Ready" and one["reason"] == reason), None)

    found: Obj = await eventually(f"Ready of {name} is {reason}", probe)
    return found


@pytest.mark.parametrize(
    ("name", "where", "label"),
    [
        ("unlabelled", A, None),
        ("otherwise", A, "yes"),
        ("operators", A, "false"),
        ("elsewhere", B, "true"),
    ],
)
async def test_a_secret_not_meant_for_models_is_not_read(
    kube: Kube, edith: Person, name: str, where: str, label: str | None
) -> None:
    value = f"the-secret-value-of-{name}"
    secret(kube, where, name, value, label)
    assert edith.tries("POST", f"{GROUP}/{A}/models", model(name, name)).granted
    told = await ready(kube, name, "SecretNotFound")
    assert told["status"] == "False"
    assert told["message"].startswith(f"There is no Secret {name} with the label {LABEL}=true in namespace {A}.")
    assert copies(kube, value, but=name) == []
    assert kube.find(f"/apis/apps/v1/namespaces/{A}/deployments/tandem-m-{name}") is None
    assert kube.items(f"/api/v1/namespaces/{A}/pods?labelSelector=tandem.dev/pool={name}") == []


async def test_nor_by_a_detour_over_a_shared_pool(kube: Kube, edith: Person) -> None:
    value = "the-secret-value-of-the-detour"
    secret(kube, A, "detour", value)
    pool = {"apiVersion": "tandem.dev/v1alpha1", "kind": "ModelPool", "metadata": {"name": "shared"},
            "spec": {"device": "CPU"}}  # fmt: skip
    kube.request("POST", f"{GROUP}/{A}/modelpools", pool)
    assert edith.tries("POST", f"{GROUP}/{A}/models", model("detour", "detour", pool="shared")).granted
    await ready(kube, "detour", "SecretNotFound")
    path = f"/apis/apps/v1/namespaces/{A}/deployments/tandem-p-shared"
    await eventually("the pool itself is there", lambda: kube.find(path))
    assert copies(kube, value, but="detour") == []


async def test_nor_the_key_of_a_pool(kube: Kube, edith: Person) -> None:
    """The operator's own Secrets bear the label too, with another value."""
    plain = {"apiVersion": "tandem.dev/v1alpha1", "kind": "Model", "metadata": {"name": "victim"},
             "spec": {"source": "hf://org/name", "device": "CPU"}}  # fmt: skip
    assert edith.tries("POST", f"{GROUP}/{A}/models", plain).granted
    place = f"/api/v1/namespaces/{A}/secrets/tandem-m-victim"
    key = await eventually("the pool's key", lambda: kube.find(place))
    assert edith.tries("POST", f"{GROUP}/{A}/models", model("thief", "tandem-m-victim")).granted
    await ready(kube, "thief", "SecretNotFound")
    (encoded,) = set(key["data"].values())
    assert copies(kube, base64.b64decode(encoded).decode(), but="tandem-m-victim") == []


async def test_one_that_is_meant_for_models_is(kube: Kube, edith: Person) -> None:
    """The same in all but the label: what is refused above is refused for the label's sake alone."""
    value = "the-secret-value-for-models"
    secret(kube, A, "meant", value)
    assert edith.tries("POST", f"{GROUP}/{A}/models", model("meant", "meant")).granted
    await ready(kube, "meant", "SecretNotFound")
    labelled = {"metadata": {"labels": {LABEL: "true"}}}
    kube.request("PATCH", f"/api/v1/namespaces/{A}/secrets/meant", labelled, "application/merge-patch+json")
    await eventually("it is gathered", lambda: copies(kube, value, but="meant"))
    (copy,) = copies(kube, value, but="meant")
    assert "/secrets tandem-m-meant" in copy
    path = f"/apis/apps/v1/namespaces/{A}/deployments/tandem-m-meant"
    await eventually("its pods are asked for", lambda: kube.find(path))
