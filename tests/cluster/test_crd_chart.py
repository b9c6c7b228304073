"""The chart: what it renders, what it refuses, and an installation, an upgrade and a removal on a real API server."""

import base64
import importlib.util
import json
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import yaml

from tandem_devcluster.cluster import Cluster
from tandem_operator.config import Config, ElectionConfig, NetworkPolicyConfig, PodTemplateAllows
from tandem_testing.kube import Kube, Obj, eventually

pytestmark = pytest.mark.timeout(180)

ROOT = Path(__file__).parents[2]
CHART = ROOT / "charts" / "tandem"
NAMESPACE = "chart-test"
Render = Callable[..., list[Obj]]


@pytest.fixture(scope="module")
def helm(control_plane: Cluster) -> str:
    return str(control_plane.bin_dir / "helm")


def run(*command: str, text: str | None = None, check: bool = True) -> subprocess.CompletedProcess[str]:
    result = subprocess.run(command, input=text, capture_output=True, text=True, check=False, timeout=90)
    assert not check or result.returncode == 0, result.stderr
    return result


@pytest.fixture(scope="module")
def render(helm: str) -> Render:
    """The chart's objects with some values."""

    def made(**values: Any) -> list[Obj]:
        command = (helm, "template", "tandem", str(CHART), "--namespace", NAMESPACE, "--kube-version", "1.34.0")
        told = run(*command, "--values", "-", text=json.dumps(values))
        return [one for one in yaml.safe_load_all(told.stdout) if one]

    return made


def one(objects: list[Obj], kind: str, name: str) -> Obj:
    (found,) = [obj for obj in objects if obj["kind"] == kind and obj["metadata"]["name"] == name]
    return found


def generator() -> ModuleType:
    spec = importlib.util.spec_from_file_location("generate", ROOT / "tools" / "generate.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_what_is_generated_is_what_is_committed(helm: str) -> None:
    made = generator()
    for kind, path in made.CRD_TEMPLATES.items():
        assert path.read_text() == made.crd_template(kind), "run make generate"
    assert made.MANIFEST.read_text() == made.manifest(helm), "run make generate"
    assert made.REFERENCE.read_text() == made.reference(), "run make generate"


def test_lint(helm: str) -> None:
    run(helm, "lint", "--strict", str(CHART))


@pytest.mark.parametrize(
    "values",
    [
        {"operator": {"wrokers": 3}},
        {"operator": {"workers": 0}},
        {"gateway": {"replicas": "two"}},
        {"runtime": {"imagePullPolicy": "Sometimes"}},
        {"runtime": {"volumes": [{"persistentVolumeClaim": {}}]}},
        {"nonsense": 1},
        {"operator": {"replicas": -1}},
        {"operator": {"election": {"leaseSeconds": 0}}},
        {"scope": {"namespace": "Team A"}},
        {"scope": "team"},
        {"pools": {"podTemplateAllows": ["Everything"]}},
        {"pools": {"networkPolicy": {"extraFrom": [{"podSelectr": {}}]}}},
        {"networkPolicy": {"extraFrom": [{}]}},
        {"rbac": {"clusterRoles": True}},
    ],
    ids=str,
)
def test_wrong_values_are_refused(helm: str, values: Obj) -> None:
    result = run(helm, "template", "t", str(CHART), "--values", "-", text=json.dumps(values), check=False)
    assert result.returncode != 0
    assert "values don't meet the specifications of the schema" in result.stderr


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"operator": {"replicas": 2, "election": {"enabled": False}}}, "needs operator.election.enabled"),
        ({"operator": {"election": {"renewSeconds": 15}}}, "and that less than leaseSeconds"),
        ({"operator": {"election": {"retrySeconds": 10}}}, "retrySeconds must be less than renewSeconds"),
        (
            {"scope": {"namespace": "team"}, "gateway": {"defaultNamespace": "other"}},
            "must be scope.namespace, or empty",
        ),
    ],
    ids=str,
)
def test_values_that_do_not_go_together_are_refused(helm: str, values: Obj, said: str) -> None:
    result = run(helm, "template", "t", str(CHART), "--values", "-", text=json.dumps(values), check=False)
    assert result.returncode != 0
    assert said in result.stderr


def test_every_default_value_is_known_to_the_schema() -> None:
    schema = json.loads((CHART / "values.schema.json").read_text())

    def check(values: Obj, part: Obj, path: str) -> None:
        for key, value in values.items():
            assert key in part["properties"], f"{path}.{key}"
            if isinstance(value, dict) and "properties" in part["properties"][key]:
                check(value, part["properties"][key], f"{path}.{key}")

    check(yaml.safe_load((CHART / "values.yaml").read_text()), schema, "")


def test_the_operator_can_read_its_settings(render: Render) -> None:
    objects = render()
    config = Config.model_validate(yaml.safe_load(one(objects, "ConfigMap", "tandem-operator")["data"]["config.yaml"]))
    assert config.server.image == "tandem.dev/server:0.1.0"
    assert config.server.command == ["python", "-m", "tandem_server"]
    assert (config.namespace, config.install_namespace) == ("", NAMESPACE)
    assert config.election == ElectionConfig(enabled=True, namespace=NAMESPACE)
    assert config.network_policy == NetworkPolicyConfig()
    assert config.pod_template_allows == []
    peer = {"namespaceSelector": {"matchLabels": {"a": "b"}}}
    objects = render(
        scope={"namespace": "team"},
        operator={"replicas": 2, "election": {"leaseSeconds": 30, "renewSeconds": 20.5}},
        pools={"networkPolicy": {"enabled": False, "extraFrom": [peer]}, "podTemplateAllows": ["HostPath"]},
    )
    config = Config.model_validate(yaml.safe_load(one(objects, "ConfigMap", "tandem-operator")["data"]["config.yaml"]))
    assert config.namespace == "team"
    times = (config.election.lease_seconds, config.election.renew_seconds, config.election.retry_seconds)
    assert times == (30, 20.5, 2.0)
    assert config.network_policy == NetworkPolicyConfig(enabled=False, extra_from=[peer])
    assert config.pod_template_allows == [PodTemplateAllows.HOST_PATH]


def test_the_runtime_reaches_all_three_roles(render: Render) -> None:
    claim = {"name": "venv", "persistentVolumeClaim": {"claimName": "venv", "readOnly": True}}
    mount = {"name": "venv", "mountPath": "/venv", "readOnly": True}
    runtime = {
        "image": "dev:1", "imagePullPolicy": "Never", "python": "/venv/bin/python", "pythonPath": "/a:/b",
        "env": [{"name": "X", "value": "1"}], "volumes": [claim], "volumeMounts": [mount],
    }  # fmt: skip
    objects = render(runtime=runtime, gateway={"image": "own:2", "defaultNamespace": "models"})
    for role, image in (("operator", "dev:1"), ("gateway", "own:2")):
        pod = one(objects, "Deployment", f"tandem-{role}")["spec"]["template"]["spec"]
        (container,) = pod["containers"]
        assert (container["image"], container["imagePullPolicy"]) == (image, "Never")
        assert container["command"] == ["/venv/bin/python", "-m", f"tandem_{role}"]
        assert {"name": "PYTHONPATH", "value": "/a:/b"} in container["env"]
        assert {"name": "X", "value": "1"} in container["env"]
        assert claim in pod["volumes"]
        assert mount in container["volumeMounts"]
    text = one(objects, "ConfigMap", "tandem-operator")["data"]["config.yaml"]
    server = Config.model_validate(yaml.safe_load(text)).server
    assert server.command == ["/venv/bin/python", "-m", "tandem_server"]
    assert (server.image, server.extra_volumes, server.extra_volume_mounts) == ("dev:1", [claim], [mount])
    assert {"name": "PYTHONPATH", "value": "/a:/b"} in server.env
    gateway = one(objects, "Deployment", "tandem-gateway")["spec"]["template"]["spec"]["containers"][0]
    assert {"name": "TANDEM_DEFAULT_NAMESPACE", "value": "models"} in gateway["env"]


def test_no_right_is_a_wildcard_and_the_gateway_only_reads(render: Render) -> None:
    objects = render()
    roles = [obj for obj in objects if obj["kind"] in ("ClusterRole", "Role")]
    assert len(roles) == 6
    for role in roles:
        for rule in role["rules"]:
            assert "*" not in [*rule["apiGroups"], *rule["resources"], *rule["verbs"]]
    gateway = one(objects, "ClusterRole", "tandem-gateway")
    assert {verb for rule in gateway["rules"] for verb in rule["verbs"]} == {"list", "watch"}
    assert {resource for rule in gateway["rules"] for resource in rule["resources"]} == {
        "models", "modelpools", "pods"
    }  # fmt: skip


def test_only_the_operator_writes_status_and_no_person_reads_secrets(render: Render) -> None:
    for role in [obj for obj in render() if obj["kind"] == "ClusterRole"]:
        name = role["metadata"]["name"]
        written = {
            resource
            for rule in role["rules"]
            for resource in rule["resources"]
            if set(rule["verbs"]) & {"create", "update", "patch", "delete"}
        }
        read = {resource for rule in role["rules"] for resource in rule["resources"]}
        if name != "tandem-operator":
            assert not {one for one in written if one.endswith("/status")}, name
            assert read <= {"models", "modelpools", "pods", *(f"{one}/{sub}" for one in ("models", "modelpools")
                                                              for sub in ("status", "scale"))}, name  # fmt: skip


AGGREGATE = "rbac.authorization.k8s.io/aggregate-to-"


def aggregated(objects: list[Obj]) -> dict[str, set[str]]:
    roles = [obj for obj in objects if obj["kind"] in ("ClusterRole", "Role")]
    found = {
        role["metadata"]["name"]: {
            label.removeprefix(AGGREGATE) for label in role["metadata"]["labels"] if label.startswith(AGGREGATE)
        }
        for role in roles
    }
    return {name: to for name, to in found.items() if name.startswith(("tandem-model-", "tandem-pool-"))}


def test_roles_for_people_are_added_to_kubernetes_own_but_never_that_of_pools(render: Render) -> None:
    assert aggregated(render()) == {
        "tandem-model-viewer": {"view"}, "tandem-model-editor": {"edit", "admin"}, "tandem-pool-admin": set()
    }  # fmt: skip
    plain = aggregated(render(rbac={"clusterRoles": {"aggregate": False}}))
    assert plain == {"tandem-model-viewer": set(), "tandem-model-editor": set(), "tandem-pool-admin": set()}
    assert aggregated(render(rbac={"clusterRoles": {"create": False}})) == {}
    assert not any(aggregated(render(scope={"namespace": "team"})).values())


def test_in_one_namespace_nothing_is_cluster_wide_but_the_definitions(render: Render) -> None:
    objects = render(scope={"namespace": "team"}, operator={"replicas": 2})
    spread = {obj["kind"] for obj in objects if "namespace" not in obj["metadata"]}
    assert spread == {"CustomResourceDefinition"}
    objects = render(scope={"namespace": "team"}, crds={"install": False})
    assert all("namespace" in obj["metadata"] for obj in objects)
    there = {(obj["kind"], obj["metadata"]["name"]) for obj in objects if obj["metadata"]["namespace"] == "team"}
    people = {("Role", name) for name in ("tandem-model-viewer", "tandem-model-editor", "tandem-pool-admin")}
    roles = {(kind, f"tandem-{role}") for kind in ("Role", "RoleBinding") for role in ("operator", "gateway")}
    assert there == people | roles
    gateway = one(objects, "Deployment", "tandem-gateway")["spec"]["template"]["spec"]["containers"][0]
    assert {"name": "TANDEM_NAMESPACE", "value": "team"} in gateway["env"]
    assert {"name": "TANDEM_DEFAULT_NAMESPACE", "value": "team"} in gateway["env"]


def test_replicas_of_the_operator(render: Render) -> None:
    def spec(**operator: Any) -> tuple[Obj, set[str]]:
        objects = render(operator=operator)
        budgets = {obj["metadata"]["name"] for obj in objects if obj["kind"] == "PodDisruptionBudget"}
        return one(objects, "Deployment", "tandem-operator")["spec"], budgets

    single, budgets = spec()
    assert (single["replicas"], single["strategy"]["type"], budgets) == (1, "RollingUpdate", {"tandem-gateway"})
    double, budgets = spec(replicas=2)
    assert (double["replicas"], budgets) == (2, {"tandem-gateway", "tandem-operator"})
    assert double["template"]["spec"]["topologySpreadConstraints"][0]["whenUnsatisfiable"] == "ScheduleAnyway"
    alone, _ = spec(election={"enabled": False})
    assert alone["strategy"] == {"type": "Recreate"}, "the old one must have ended before the new one starts"


def test_network_policies_open_what_is_needed_and_no_more(render: Render) -> None:
    objects = render()
    assert one(objects, "NetworkPolicy", "tandem-operator")["spec"]["ingress"] == []
    rules = one(objects, "NetworkPolicy", "tandem-gateway")["spec"]["ingress"]
    assert [port["port"] for rule in rules if "from" not in rule for port in rule["ports"]] == ["http"]
    (internal,) = [rule for rule in rules if "from" in rule]
    labels = one(objects, "Deployment", "tandem-operator")["spec"]["template"]["metadata"]["labels"]
    assert internal["from"][0]["podSelector"]["matchLabels"].items() <= labels.items()
    peer = {"ipBlock": {"cidr": "10.0.0.0/8"}}
    objects = render(networkPolicy={"extraFrom": [peer]})
    for role in ("operator", "gateway"):
        assert one(objects, "NetworkPolicy", f"tandem-{role}")["spec"]["ingress"][-1]["from"] == [peer]
    assert "NetworkPolicy" not in {obj["kind"] for obj in render(networkPolicy={"enabled": False})}


def test_the_crd_can_be_left_out(render: Render) -> None:
    assert "CustomResourceDefinition" in {obj["kind"] for obj in render()}
    assert "CustomResourceDefinition" not in {obj["kind"] for obj in render(crds={"install": False})}


def test_a_secret_of_ones_own_is_used_and_none_is_made(render: Render) -> None:
    objects = render(masterSecret={"existingSecret": "mine"})
    assert "Secret" not in {obj["kind"] for obj in objects}
    for role in ("operator", "gateway"):
        volumes = one(objects, "Deployment", f"tandem-{role}")["spec"]["template"]["spec"]["volumes"]
        assert {"name": "master", "secret": {"secretName": "mine"}} in volumes


@pytest.fixture(scope="module")
def kube(control_plane: Cluster, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Kube]:
    made = Kube(control_plane, tmp_path_factory.mktemp("kube"))
    made.install_crd()
    made.kubectl("create", "namespace", NAMESPACE)
    made.kubectl("label", "namespace", NAMESPACE, "pod-security.kubernetes.io/enforce=restricted")
    yield made
    made.kubectl("delete", "namespace", NAMESPACE, "--wait=false")
    made.close()


async def test_install_upgrade_and_remove(kube: Kube, helm: str) -> None:
    base = (helm, "--kubeconfig", str(kube.cluster.kubeconfig), "--namespace", NAMESPACE)
    # Other tests of this cluster have the CRD already; a first installation needs no such flag.
    told = run(*base, "upgrade", "--install", "tandem", str(CHART), "--take-ownership").stdout
    assert f"kubectl -n {NAMESPACE} rollout status deployment/tandem-operator deployment/tandem-gateway" in told
    assert f"http://tandem-gateway.{NAMESPACE}, or from here" in told
    core = f"/api/v1/namespaces/{NAMESPACE}"
    pods = await eventually("pods within Pod Security restricted", lambda: len(kube.items(f"{core}/pods")) == 3)
    assert pods
    master = kube.find(f"{core}/secrets/tandem-master")
    assert master is not None
    assert len(base64.b64decode(master["data"]["key"])) == 48
    run(*base, "upgrade", "tandem", str(CHART), "--set", "gateway.replicas=1")
    after = kube.find(f"{core}/secrets/tandem-master")
    assert after is not None
    assert after["data"] == master["data"], "an upgrade keeps the key"
    run(*base, "uninstall", "tandem")
    assert kube.find(f"{core}/secrets/tandem-master") is None
    assert kube.find("/apis/apiextensions.k8s.io/v1/customresourcedefinitions/models.tandem.dev") is not None


def test_the_plain_manifests_are_taken_by_a_real_api_server(kube: Kube) -> None:
    kube.kubectl("create", "namespace", "tandem-system", check=False)
    told = kube.kubectl(
        "apply",
        "--server-side",
        "--force-conflicts",
        "--dry-run=server",
        "--validate=strict",
        "-f",
        str(ROOT / "manifests/tandem.yaml"),
    ).stdout
    assert "deployment.apps/tandem-gateway serverside-applied (server dry run)" in told
