"""Whether a live object is as desired: defaults and other people's fields are no difference, lacks are."""

import copy
from collections.abc import Callable

import pytest

from tandem_operator.compare import NO_LONGER_WANTED, difference
from tandem_operator.kinds import DEPLOYMENT, SERVICE, Obj
from tandem_testing.operator_world import model, plan_of


def desired() -> Obj:
    spec = {"resources": {"cpu": "0.5", "memory": "1024Mi"}, "device": "GPU"}
    made = plan_of(model(**spec))
    return next(one.obj for one in made.objects if one.kind == DEPLOYMENT)


def live() -> Obj:
    """The desired Deployment as an API server returns it."""
    obj = copy.deepcopy(desired())
    obj["metadata"] |= {"uid": "u", "resourceVersion": "5", "generation": 1}
    obj["metadata"]["annotations"]["deployment.kubernetes.io/revision"] = "1"
    pod = obj["spec"]["template"]["spec"]
    pod |= {"dnsPolicy": "ClusterFirst", "schedulerName": "default-scheduler"}
    pod["containers"][0]["resources"]["requests"]["cpu"] = "500m"
    pod["containers"][0]["resources"]["requests"]["memory"] = "1Gi"
    pod["containers"][0]["ports"][0]["protocol"] = "TCP"
    obj["status"] = {"replicas": 1}
    return obj


def test_defaults_and_fields_of_others_are_no_difference() -> None:
    assert difference(desired(), live()) is None


def _env(obj: Obj) -> Obj:
    return obj["spec"]["template"]["spec"]["containers"][0]


CHANGES: dict[str, tuple[Callable[[Obj], object], str]] = {
    "replicas": (lambda obj: obj["spec"].update(replicas=9), "spec.replicas"),
    "label": (lambda obj: obj["metadata"]["labels"].pop("tandem.dev/pool"), "metadata.labels.tandem.dev/pool"),
    "owner": (lambda obj: obj["metadata"].update(ownerReferences=[]), "metadata.ownerReferences"),
    "image": (lambda obj: _env(obj).update(image="evil"), "spec.template.spec.containers[server].image"),
    "env removed": (lambda obj: _env(obj)["env"].pop(0), "spec.template.spec.containers[server].env[TANDEM_CATALOG]"),
    "memory": (
        lambda obj: _env(obj)["resources"]["limits"].update(memory="2Gi"),
        "spec.template.spec.containers[server].resources.limits.memory",
    ),
    "command": (
        lambda obj: _env(obj)["command"].append("--x"),
        "spec.template.spec.containers[server].command",
    ),
    "digest": (
        lambda obj: obj["metadata"]["annotations"].update({"tandem.dev/template-hash": "old"}),
        NO_LONGER_WANTED,
    ),
    "no annotations": (lambda obj: obj["metadata"].pop("annotations"), NO_LONGER_WANTED),
}


@pytest.mark.parametrize("name", CHANGES)
def test_a_lack_is_named_by_its_path(name: str) -> None:
    change, path = CHANGES[name]
    obj = live()
    change(obj)
    found = difference(desired(), obj)
    assert found is not None
    assert found.startswith(path)


def test_a_service_with_what_the_api_server_adds() -> None:
    made = plan_of(model())
    wanted = next(one.obj for one in made.objects if one.kind == SERVICE)
    obj = copy.deepcopy(wanted)
    obj["spec"] |= {"clusterIP": "10.0.0.1", "sessionAffinity": "None"}
    obj["spec"]["ports"][0]["protocol"] = "TCP"
    assert difference(wanted, obj) is None
    obj["spec"]["ports"][0]["port"] = 81
    assert difference(wanted, obj) == "spec.ports[http].port"


@pytest.mark.parametrize(
    ("one", "other", "same"),
    [("0.5", "500m", True), ("1024Mi", "1Gi", True), ("1000", "1k", True), ("1G", "1Gi", False), ("a", "b", False)],
)
def test_quantities(one: str, other: str, same: bool) -> None:
    def obj(value: str) -> Obj:
        return {"metadata": {"annotations": {"tandem.dev/template-hash": "h"}}, "spec": {"q": value}}

    assert (difference(obj(one), obj(other)) is None) == same
