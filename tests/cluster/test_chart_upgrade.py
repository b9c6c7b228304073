"""A life with helm on a cluster of its own: install, upgrade values and definitions, remove, install again.

No Model is ever touched by it, and no second installation gets in the way of a first.
"""

import json
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

from tandem_devcluster import cluster
from tandem_devcluster.cluster import Cluster
from tandem_devcluster.progress import Progress
from tandem_testing.helm import CHART, Helm
from tandem_testing.kube import Kube, Obj, eventually

pytestmark = pytest.mark.timeout(180)

SYSTEM, TEAM = "tandem-system", "team"
MODELS = f"/apis/tandem.dev/v1alpha1/namespaces/{TEAM}/models"
DEFINITIONS = "/apis/apiextensions.k8s.io/v1/customresourcedefinitions"
CLUSTER_ROLES = "/apis/rbac.authorization.k8s.io/v1/clusterroles"


@pytest.fixture(scope="module")
def fresh() -> Iterator[Cluster]:
    """A cluster that has never heard of Tandem: only there an installation is a first one."""
    name = f"chart-{os.getpid()}"
    made = cluster.up(name, progress=Progress(), qps=300, helm=True)
    try:
        yield made
    finally:
        cluster.down(name)


@pytest.fixture(scope="module")
def kube(fresh: Cluster, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Kube]:
    made = Kube(fresh, tmp_path_factory.mktemp("kube"))
    made.kubectl("create", "namespace", TEAM)
    yield made
    made.close()


@pytest.fixture(scope="module")
def helm(fresh: Cluster) -> Helm:
    return Helm(fresh, SYSTEM)


def definition(kube: Kube, plural: str = "models") -> Obj:
    found = kube.find(f"{DEFINITIONS}/{plural}.tandem.dev")
    assert found is not None
    return found


def spec_fields(kube: Kube) -> set[str]:
    schema = definition(kube)["spec"]["versions"][0]["schema"]["openAPIV3Schema"]
    return set(schema["properties"]["spec"]["properties"])


def essence(model: Obj | None) -> tuple[object, ...]:
    """What an installation must leave as it is."""
    assert model is not None
    metadata = model["metadata"]
    return metadata["uid"], metadata["generation"], metadata["resourceVersion"], model["spec"], model.get("status")


def with_a_new_field(folder: Path) -> Path:
    """A copy of the chart whose Model has one more optional field."""
    chart = folder / "tandem"
    shutil.copytree(CHART, chart)
    template = chart / "templates" / "crd-models.yaml"
    opening, *body, closing = template.read_text().splitlines()
    crd = yaml.safe_load("\n".join(body))
    for version in crd["spec"]["versions"]:
        version["schema"]["openAPIV3Schema"]["properties"]["spec"]["properties"]["moonPhase"] = {
            "type": "string", "maxLength": 10
        }  # fmt: skip
    template.write_text("\n".join([opening, yaml.safe_dump(crd), closing, ""]))
    return chart


async def test_upgrades_and_removal_keep_every_model(kube: Kube, helm: Helm, tmp_path: Path) -> None:
    helm.install()
    kube.kubectl("wait", "--for=condition=Established", "crd/models.tandem.dev", "--timeout=30s")
    body: Obj = {
        "apiVersion": "tandem.dev/v1alpha1", "kind": "Model", "metadata": {"name": "kept"},
        "spec": {"source": "pvc://weights/x", "device": "CPU", "slots": 3},
    }  # fmt: skip
    before = essence(kube.request("POST", MODELS, body))
    assert "moonPhase" not in spec_fields(kube)
    # Values, and the definitions with them: a chart's crds/ folder would never be upgraded.
    told = helm.upgrade(with_a_new_field(tmp_path), operator={"replicas": 2}, gateway={"replicas": 1})
    assert "2 operator(s), of which one leads" in told.stdout
    assert "moonPhase" in spec_fields(kube)
    assert essence(kube.find(f"{MODELS}/kept")) == before

    def accepted() -> bool:
        line = ("patch", "model", "kept", "-n", TEAM, "--type=merge", "-p", '{"spec": {"moonPhase": "full"}}')
        return kube.kubectl(*line, "--dry-run=server", check=False).returncode == 0

    await eventually("the new field is taken", accepted)
    # Removed: the definitions and all Models stay.
    uid = definition(kube)["metadata"]["uid"]
    helm.uninstall()
    assert kube.find(f"/apis/apps/v1/namespaces/{SYSTEM}/deployments/tandem-operator") is None
    assert kube.find(f"{CLUSTER_ROLES}/tandem-operator") is None
    assert essence(kube.find(f"{MODELS}/kept")) == before
    # Installed again, with the old definitions: they are adopted, not made anew.
    helm.install()
    assert definition(kube)["metadata"]["uid"] == uid
    assert "moonPhase" not in spec_fields(kube)
    assert essence(kube.find(f"{MODELS}/kept")) == before
    # Without definitions: the release lets go of them, and they stay as well.
    helm.upgrade(crds={"install": False})
    assert definition(kube)["metadata"]["uid"] == uid
    assert definition(kube, "modelpools")["metadata"]["annotations"]["helm.sh/resource-policy"] == "keep"
    assert essence(kube.find(f"{MODELS}/kept")) == before
    helm.upgrade()
    assert essence(kube.find(f"{MODELS}/kept")) == before


def test_the_strategy_can_be_changed_and_changed_back(kube: Kube, helm: Helm) -> None:
    path = f"/apis/apps/v1/namespaces/{SYSTEM}/deployments/tandem-operator"

    def strategy() -> Obj:
        return (kube.find(path) or {})["spec"]["strategy"]  # type: ignore[no-any-return]

    helm.upgrade(operator={"election": {"enabled": False}})
    assert strategy() == {"type": "Recreate"}
    helm.upgrade()
    assert strategy()["type"] == "RollingUpdate"


def test_a_second_installation_for_all_namespaces_is_refused(kube: Kube, fresh: Cluster) -> None:
    second = Helm(fresh, "second")
    told = second.install(check=False, crds={"install": False})
    assert told.returncode != 0
    assert "cannot be imported into the current release" in told.stderr
    assert "ClusterRole" in told.stderr
    assert kube.find("/apis/apps/v1/namespaces/second/deployments/tandem-operator") is None


def test_installations_for_one_namespace_each_stand_beside_it(kube: Kube, fresh: Cluster) -> None:
    """Also beside one for all: helm sees no collision, though nobody should care for a namespace twice."""
    for name in ("red", "blue"):
        own = Helm(fresh, f"{name}-system")
        kube.kubectl("create", "namespace", name)
        own.install(scope={"namespace": name}, crds={"install": False}, operator={"replicas": 2})
        text = kube.request("GET", f"/api/v1/namespaces/{name}-system/configmaps/tandem-operator")["data"]
        config = yaml.safe_load(text["config.yaml"])
        assert (config["namespace"], config["installNamespace"]) == (name, f"{name}-system")
        assert config["election"]["namespace"] == f"{name}-system"
    intruder = Helm(fresh, "intruder")
    told = intruder.install(check=False, scope={"namespace": "red"}, crds={"install": False})
    assert told.returncode != 0, "two installations for one namespace collide"
    assert 'Role "tandem-gateway" in namespace "red" exists and cannot be imported' in told.stderr
    for name in ("red", "blue"):
        Helm(fresh, f"{name}-system").uninstall()
        left = kube.items(f"/apis/rbac.authorization.k8s.io/v1/namespaces/{name}/roles")
        assert left == [], json.dumps(left)
