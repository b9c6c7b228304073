"""People with the chart's roles against a real API server: what each may do, and each refusal in its own words.

Above all: whoever may only edit Models reaches no Secret, no host path, no other ServiceAccount and no other
namespace, neither by the API nor by what the operator makes of a Model.
"""

import asyncio
import re
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
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

A, B = "people-a", "people-b"
GROUP = "/apis/tandem.dev/v1alpha1/namespaces"


def models(namespace: str = A, name: str = "", sub: str = "") -> str:
    return "/".join(part for part in (GROUP, namespace, "models", name, sub) if part)


def pools(namespace: str = A, name: str = "", sub: str = "") -> str:
    return models(namespace, name, sub).replace("/models", "/modelpools")


def model(name: str, **spec: Any) -> Obj:
    return {
        "apiVersion": "tandem.dev/v1alpha1", "kind": "Model", "metadata": {"name": name},
        "spec": {"source": "hf://org/name", **({} if "pool" in spec else {"device": "CPU"}), **spec},
    }  # fmt: skip


def pool(name: str, **spec: Any) -> Obj:
    return {
        "apiVersion": "tandem.dev/v1alpha1", "kind": "ModelPool", "metadata": {"name": name},
        "spec": {"device": "CPU", **spec},
    }  # fmt: skip


@pytest.fixture(scope="module")
def kube(control_plane: Cluster, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Kube]:
    """Two namespaces; the chart's roles, each given to one person in A only."""
    made = Kube(control_plane, tmp_path_factory.mktemp("kube"))
    made.install_crd()
    rendered = Helm(control_plane, "tandem-system").render()
    roles = [one for one in rendered if one["kind"] == "ClusterRole" and "/status" in str(one["rules"])]
    roles = [one for one in roles if one["metadata"]["name"].startswith(("tandem-model-", "tandem-pool-"))]
    assert len(roles) == 3
    made.kubectl("apply", "-f", "-", text=yaml.safe_dump_all(roles))
    for namespace in (A, B):
        made.kubectl("create", "namespace", namespace)
    given = {"edith": "tandem-model-editor", "vic": "tandem-model-viewer", "paul": "tandem-pool-admin",
             "kate": "edit", "vera": "view"}  # fmt: skip
    for person, role in given.items():
        made.kubectl("create", "rolebinding", person, "-n", A, f"--clusterrole={role}", f"--user={person}")
    made.request("POST", pools(B), pool("shared"))
    secret = {"metadata": {"name": "plain"}, "stringData": {"token": "hidden"}}
    made.request("POST", f"/api/v1/namespaces/{A}/secrets", secret)
    yield made
    for namespace in (A, B):
        made.kubectl("delete", "namespace", namespace, "--wait=false")
    made.close()


@asynccontextmanager
async def operating(kube: Kube, folder: Path) -> AsyncIterator[None]:
    """An operator runs."""
    proxy = Proxy(kube)
    await proxy.start()
    process = OperatorProcess(proxy, folder, more={"installNamespace": "tandem-system"})
    await process.start()
    try:
        yield
        assert process.running, process.log
    finally:
        process.kill()
        await process.wait()
        await proxy.stop()


@pytest.fixture(scope="module")
def served(kube: Kube, tmp_path_factory: pytest.TempPathFactory) -> None:
    """In A a Model `served` with all that an operator makes of it."""

    async def make() -> None:
        async with operating(kube, tmp_path_factory.mktemp("operator")):
            kube.request("POST", models(), model("served", replicas=1))
            path = f"/apis/apps/v1/namespaces/{A}/deployments/tandem-m-served"
            await eventually("the objects of the Model", lambda: kube.find(path))

    asyncio.run(make())


@pytest.fixture
async def operator(kube: Kube, tmp_path: Path) -> AsyncIterator[None]:
    """An operator runs during the test."""
    async with operating(kube, tmp_path):
        yield


@pytest.fixture
def edith(kube: Kube) -> Iterator[Person]:
    """May edit Models in A, by the chart's own role."""
    with Person(kube, "edith") as made:
        yield made


def test_an_editor_may_do_all_that_models_need(kube: Kube, edith: Person) -> None:
    assert kube.kubectl("auth", "can-i", "watch", "models.tandem.dev", "-n", A, "--as=edith").stdout == "yes\n"
    made = edith.tries("POST", models(), model("mine"))
    assert made.granted, made.message
    place = models(A, "mine")
    assert edith.tries("GET", place).granted
    assert edith.tries("GET", models()).granted
    assert edith.patches(place, {"spec": {"slots": 3}}).granted
    live = edith.tries("GET", place).body
    assert edith.tries("PUT", place, {**live, "spec": {**live["spec"], "slots": 4}}).granted
    assert edith.patches(f"{place}/scale", {"spec": {"replicas": 2}}).granted
    assert edith.tries("GET", f"{place}/scale").body["spec"]["replicas"] == 2
    assert edith.tries("GET", f"{place}/status").granted
    assert edith.tries("GET", pools()).granted, "to see what pools there are"
    assert edith.tries("DELETE", place).granted


FORBIDDEN: dict[str, tuple[str, str, Any, str]] = {
    "read a Secret": ("GET", f"/api/v1/namespaces/{A}/secrets/plain", None,
        'secrets "plain" is forbidden: User "edith" cannot get resource "secrets" in API group "" in the namespace '
        '"people-a"'),
    "list Secrets": ("GET", f"/api/v1/namespaces/{A}/secrets", None,
        'secrets is forbidden: User "edith" cannot list resource "secrets" in API group "" in the '
        'namespace "people-a"'),
    "label a Secret": ("PATCH", f"/api/v1/namespaces/{A}/secrets/plain",
        {"metadata": {"labels": {"tandem.dev/model-credentials": "true"}}},
        'secrets "plain" is forbidden: User "edith" cannot patch resource "secrets"'),
    "make a pool": ("POST", pools(), pool("own"),
        'modelpools.tandem.dev is forbidden: User "edith" cannot create resource "modelpools" in API group '
        '"tandem.dev" in the namespace "people-a"'),
    "change a pool": ("PATCH", pools(A, "any"), {"spec": {"image": "evil"}},
        'modelpools.tandem.dev "any" is forbidden: User "edith" cannot patch resource "modelpools"'),
    "scale a pool": ("PATCH", pools(A, "any", "scale"), {"spec": {"replicas": 9}},
        'modelpools.tandem.dev "any" is forbidden: User "edith" cannot patch resource "modelpools/scale"'),
    "make a Model elsewhere": ("POST", models(B), model("mine"),
        'models.tandem.dev is forbidden: User "edith" cannot create resource "models" in API group "tandem.dev" in '
        'the namespace "people-b"'),
    "see Models elsewhere": ("GET", models(B), None,
        'models.tandem.dev is forbidden: User "edith" cannot list resource "models"'),
    "see pools elsewhere": ("GET", pools(B, "shared"), None,
        'modelpools.tandem.dev "shared" is forbidden: User "edith" cannot get resource "modelpools"'),
    "see all Models": ("GET", "/apis/tandem.dev/v1alpha1/models", None, "at the cluster scope"),
    "write a status": ("PATCH", models(A, "served", "status"), {"status": {"replicas": 7}},
        'models.tandem.dev "served" is forbidden: User "edith" cannot patch resource "models/status"'),
    "make a pod": ("POST", f"/api/v1/namespaces/{A}/pods",
        {"metadata": {"name": "p"}, "spec": {"containers": [{"name": "c", "image": "i"}]}},
        'pods is forbidden: User "edith" cannot create resource "pods"'),
    "change the Deployment of a Model": ("PATCH", f"/apis/apps/v1/namespaces/{A}/deployments/tandem-m-served",
        {"spec": {"replicas": 5}},
        'deployments.apps "tandem-m-served" is forbidden: User "edith" cannot patch resource "deployments"'),
    "change the catalog of a Model": ("PATCH", f"/api/v1/namespaces/{A}/configmaps/tandem-m-served",
        {"data": {"catalog.json": "{}"}},
        'configmaps "tandem-m-served" is forbidden: User "edith" cannot patch resource "configmaps"'),
    "read the key of a pool": ("GET", f"/api/v1/namespaces/{A}/secrets/tandem-m-served", None,
        'secrets "tandem-m-served" is forbidden: User "edith" cannot get resource "secrets"'),
    "change the Service of a Model": ("PATCH", f"/api/v1/namespaces/{A}/services/tandem-m-served",
        {"spec": {"selector": {"a": "b"}}},
        'services "tandem-m-served" is forbidden: User "edith" cannot patch resource "services"'),
    "open the network to a Model": ("DELETE",
        f"/apis/networking.k8s.io/v1/namespaces/{A}/networkpolicies/tandem-m-served", None,
        'networkpolicies.networking.k8s.io "tandem-m-served" is forbidden: User "edith" cannot delete resource'),
    "run a command in a pod": ("POST", f"/api/v1/namespaces/{A}/pods/any/exec?command=id&stdout=true", None,
        'pods "any" is forbidden: User "edith" cannot create resource "pods/exec"'),
    "get a token": ("POST", f"/api/v1/namespaces/{A}/serviceaccounts/default/token", {"spec": {}},
        'serviceaccounts "default" is forbidden: User "edith" cannot create resource "serviceaccounts/token"'),
    "give herself more": ("POST", f"/apis/rbac.authorization.k8s.io/v1/namespaces/{A}/rolebindings",
        {"metadata": {"name": "more"}, "subjects": [{"kind": "User", "name": "edith"}],
         "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": "tandem-pool-admin"}},
        'rolebindings.rbac.authorization.k8s.io is forbidden: User "edith" cannot create resource "rolebindings"'),
}  # fmt: skip


@pytest.mark.parametrize("deed", FORBIDDEN)
def test_an_editor_may_not(edith: Person, served: None, deed: str) -> None:
    method, path, body, said = FORBIDDEN[deed]
    kind = "application/merge-patch+json" if method == "PATCH" else "application/json"
    answer = edith.tries(method, path, body, kind)
    assert answer.code == 403, answer
    assert said in answer.message


def unknown(field: str) -> str:
    return (
        f'Model in version "v1alpha1" cannot be handled as a Model: strict decoding error: unknown field "spec.{field}"'
    )


SMUGGLED: dict[str, tuple[Obj, str]] = {
    "an image": ({"image": "evil"}, unknown("image")),
    "a pod template": ({"podTemplate": {"spec": {"hostNetwork": True}}}, unknown("podTemplate")),
    "volumes": ({"volumes": [{"claim": "x"}]}, unknown("volumes")),
    "a host path": ({"hostPath": "/etc"}, unknown("hostPath")),
    "a ServiceAccount": ({"serviceAccountName": "default"}, unknown("serviceAccountName")),
    "a node": ({"nodeName": "n1"}, unknown("nodeName")),
    "a command": ({"command": ["sh"]}, unknown("command")),
    "environment": ({"env": [{"name": "A", "value": "b"}]}, unknown("env")),
    "roots of files": ({"fileRoots": ["/"]}, unknown("fileRoots")),
    "a host path among resources": ({"resources": {"hostPath": "/etc"}}, unknown("resources.hostPath")),
    "a namespace of a Secret": (
        {"secretRef": {"name": "x", "namespace": "people-b"}}, unknown("secretRef.namespace")),
    "a key of a Secret": ({"secretRef": {"name": "x", "key": "password"}}, unknown("secretRef.key")),
    "another namespace's Secret": (
        {"secretRef": {"name": "people-b/x"}},
        "spec.secretRef.name: Invalid value: \"people-b/x\": spec.secretRef.name in body should match"),
    "another namespace's pool": (
        {"pool": "people-b/shared"},
        "spec.pool: Invalid value: \"people-b/shared\": spec.pool in body should match"),
    "another namespace's claim": (
        {"source": "pvc://people-b/../weights"},
        "spec.source: Invalid value: \"object\": a pvc:// source is pvc://claim or pvc://claim/folder, without . or .. "
        "in its path"),
    "a folder above a claim": (
        {"source": "pvc://weights/../../etc"}, "without . or .. in its path"),
    "a folder of the pod": (
        {"source": "file:///etc"}, "a file:// source needs a pool, whose fileRoots say which folders may be read"),
    "a folder beside a root": (
        {"source": "file:///models/../etc", "pool": "shared"},
        "a file:// source is file:///folder, an absolute path without . or .."),
    "a scheme that reads hosts": (
        {"source": "host:///etc"}, "source must begin with hf://, pvc://, file://, s3://, gs:// or oci://"),
    "the pods of a pool": (
        {"pool": "shared", "resources": {"cpu": "1"}},
        "spec.resources: Forbidden: resources is for a Model with pods of its own"),
}  # fmt: skip


@pytest.mark.parametrize("thing", SMUGGLED)
def test_nothing_can_be_smuggled_into_a_model(edith: Person, thing: str) -> None:
    spec, said = SMUGGLED[thing]
    answer = edith.tries("POST", models(), model("smuggled", **spec))
    assert answer.code in (400, 422), answer
    assert said in answer.message


async def test_what_a_lax_client_smuggles_is_dropped_and_reaches_no_pod(
    kube: Kube, edith: Person, operator: None
) -> None:
    """Strictness is the client's choice; without it the API server prunes what the definition does not know."""
    extra = {
        "image": "evil", "podTemplate": {"spec": {"hostNetwork": True}}, "hostPath": "/etc", "nodeName": "n1",
        "serviceAccountName": "mighty", "volumes": [{"name": "v", "hostPath": {"path": "/"}}], "command": ["sh"],
    }  # fmt: skip
    made = edith.tries("POST", models(), model("lax", **extra), validation="Ignore")
    assert made.granted
    assert not set(extra) & set(made.body["spec"])
    path = f"/apis/apps/v1/namespaces/{A}/deployments/tandem-m-lax"
    deployment = await eventually("the Deployment", lambda: kube.find(path))
    spec = deployment["spec"]["template"]["spec"]
    text = yaml.safe_dump(spec)
    for word in ("evil", "mighty", "hostPath", "n1", "hostNetwork: true"):
        assert not re.search(rf"\b{word}\b", text), word
    assert spec["automountServiceAccountToken"] is False
    assert spec.get("serviceAccountName", "default") == "default"
    assert spec["containers"][0]["securityContext"]["allowPrivilegeEscalation"] is False


async def test_another_namespaces_pool_is_not_found(kube: Kube, edith: Person, operator: None) -> None:
    assert edith.tries("POST", models(), model("stray", pool="shared")).granted

    def ready() -> Obj | None:
        found = (kube.find(models(A, "stray")) or {}).get("status", {}).get("conditions", [])
        return next((one for one in found if one["type"] == "Ready"), None)

    told = await eventually("its status", ready)
    assert (told["status"], told["reason"]) == ("False", "PoolNotFound")
    assert told["message"].startswith(f"There is no ModelPool shared in namespace {A}; there is none at all.")
    catalog = f"/api/v1/namespaces/{B}/configmaps/tandem-p-shared"
    found = await eventually("the pool of the other namespace", lambda: kube.find(catalog))
    assert "stray" not in found["data"]["catalog.json"]
    assert kube.find(f"/apis/apps/v1/namespaces/{A}/deployments/tandem-m-stray") is None


def test_a_viewer_reads_and_nothing_else(kube: Kube, served: None) -> None:
    with Person(kube, "vic") as vic:
        for path in (
            models(),
            models(A, "served"),
            models(A, "served", "status"),
            models(A, "served", "scale"),
            pools(),
        ):
            assert vic.tries("GET", path).granted, path
        for method, path, body in (
            ("POST", models(), model("x")), ("DELETE", models(A, "served"), None), ("POST", pools(), pool("x")),
            ("GET", f"/api/v1/namespaces/{A}/secrets", None), ("GET", models(B), None),
        ):  # fmt: skip
            assert vic.tries(method, path, body).code == 403, (method, path)
        for path in (models(A, "served"), models(A, "served", "scale"), models(A, "served", "status")):
            assert vic.patches(path, {"spec": {"replicas": 3}}).code == 403, path


def test_a_pool_admin_has_pools_and_their_scale_but_no_status(kube: Kube) -> None:
    with Person(kube, "paul") as paul:
        assert paul.tries("POST", pools(), pool("own")).granted
        assert paul.patches(pools(A, "own", "scale"), {"spec": {"replicas": 2}}).granted
        assert paul.patches(pools(A, "own"), {"spec": {"maxLoadedModels": 2}}).granted
        assert paul.patches(pools(A, "own", "status"), {"status": {"replicas": 2}}).code == 403
        assert paul.tries("POST", models(), model("x")).code == 403
        assert paul.tries("POST", pools(B), pool("own")).code == 403
        assert paul.tries("DELETE", pools(A, "own")).granted


async def test_kubernetes_own_roles_include_models_but_no_pools(kube: Kube, served: None) -> None:
    """kate has `edit` and vera `view`; the chart's roles are added to them, but that of pools is not."""
    with Person(kube, "kate") as kate, Person(kube, "vera") as vera:
        await eventually("edit includes Models", lambda: kate.tries("POST", models(), model("kates")).granted, 30)
        await eventually("view includes Models", lambda: vera.tries("GET", models()).granted, 30)
        assert kate.tries("DELETE", models(A, "kates")).granted
        assert kate.tries("GET", pools()).granted
        assert kate.tries("POST", pools(), pool("kates")).code == 403
        assert kate.patches(models(A, "served", "status"), {"status": {"replicas": 7}}).code == 403
        assert vera.tries("GET", pools()).granted
        assert vera.tries("POST", models(), model("veras")).code == 403
