"""The files and command lines of the components, as pure functions."""

import base64
import ipaddress
import json
import tomllib
from pathlib import Path

import pytest
import yaml

from tandem_devcluster import cgroups, components, fake_nodes, network, node_config, pki, starting
from tandem_devcluster.components import Place
from tandem_devcluster.errors import DevclusterError
from tandem_devcluster.progress import Progress
from tandem_devcluster.volumes import host_volume_manifests

PLACE = Place(Path("/c"), "/bin/kubernetes", "198.18.0.1", 6443, 2379, 2380)


def flags(command: list[str]) -> dict[str, str]:
    return dict(part.lstrip("-").split("=", 1) for part in command if "=" in part)


def test_the_api_server_authorizes_and_is_reachable_from_inside_only_with_a_node() -> None:
    with_node, without = flags(components.apiserver(PLACE, True)), flags(components.apiserver(PLACE, False))
    for each in (with_node, without):
        assert each["authorization-mode"] == "Node,RBAC"
        assert each["bind-address"] == "198.18.0.1"
        assert "insecure-port" not in each
    assert without["endpoint-reconciler-type"] == "none"
    assert "kubelet-certificate-authority" in with_node
    assert "kubelet-certificate-authority" not in without


def test_etcd_listens_on_the_loopback_alone() -> None:
    given = flags(components.etcd(PLACE))
    assert {value for name, value in given.items() if name.startswith("listen")} == {
        "http://127.0.0.1:2379",
        "http://127.0.0.1:2380",
    }


@pytest.mark.parametrize("make", [components.controller_manager, components.scheduler])
def test_the_rate_of_calls_is_as_asked(make: object) -> None:
    given = flags(make(PLACE, 300))  # type: ignore[operator]
    assert (given["kube-api-qps"], given["kube-api-burst"], given["secure-port"]) == ("300", "600", "0")
    assert given["kubeconfig"] in {"/c/controller-manager.kubeconfig", "/c/scheduler.kubeconfig"}


def test_fake_nodes_come_without_endpoints() -> None:
    """The API server refuses EndpointSlices with addresses of the loopback, which is where fake pods live."""
    assert "controllers" not in flags(components.controller_manager(PLACE, 100))
    given = flags(components.controller_manager(PLACE, 100, endpoints=False))["controllers"]
    assert given == "*,-endpoints-controller,-endpointslice-controller,-endpointslice-mirroring-controller"
    kwok = flags(fake_nodes.command(PLACE, "/bin/kwok"))
    assert ipaddress.ip_network(kwok["cidr"]).is_loopback
    assert kwok["kubeconfig"] == "/c/kubeconfig"
    stages = list(yaml.safe_load_all(Path(kwok["config"]).read_text()))
    assert [one["metadata"]["name"] for one in stages] == ["node-ready", "pod-start", "pod-ready", "pod-end"]
    room = fake_nodes.node(3)["status"]["allocatable"]
    assert room["nvidia.com/gpu"] == str(fake_nodes.GPUS)


def test_flags_that_were_asked_for_reach_the_api_server() -> None:
    assert "--v=9" in components.apiserver(PLACE, False, ["--v=9"])


def test_a_cluster_has_either_a_node_or_fake_ones() -> None:
    with pytest.raises(DevclusterError, match="leave out one of the two"):
        starting.specify("c", starting.Wish(node=True, fake_nodes=1), Progress(quiet=True))


def test_names_of_the_api_server() -> None:
    hosts = components.api_hosts("127.0.0.1")
    assert len(hosts) == len(set(hosts))
    assert {"IP:127.0.0.1", "IP:198.19.0.1", "DNS:kubernetes.default.svc"} <= set(hosts)


def test_a_kubeconfig_holds_everything(tmp_path: Path) -> None:
    place = Place(tmp_path, "/k", "127.0.0.1", 1234, 1, 2)
    place.pki.mkdir()
    for name in ("ca.crt", "admin.crt", "admin.key"):
        (place.pki / name).write_text(f"the {name}")
    value = yaml.safe_load(components.kubeconfig(place, "admin"))
    assert value["clusters"][0]["cluster"]["server"] == "https://127.0.0.1:1234"
    assert base64.b64decode(value["users"][0]["user"]["client-key-data"]) == b"the admin.key"
    assert str(tmp_path) not in components.kubeconfig(place, "admin")
    assert (place.kubeconfig("admin").name, place.kubeconfig("kubelet").name) == ("kubeconfig", "kubelet.kubeconfig")


def test_certificates_name_user_group_and_use() -> None:
    for certificate in (*pki.control_plane(("IP:127.0.0.1",)), *pki.node("n", "198.18.0.1")):
        request = " ".join(pki.request(Path("/p"), certificate))
        assert ("extendedKeyUsage=serverAuth" in request) == bool(certificate.hosts)
        assert "CA:FALSE" in request
    by_file = {each.file: pki.request(Path("/p"), each) for each in pki.node("n", "198.18.0.1")}
    assert "/O=system:nodes/CN=system:node:n" in by_file["kubelet"]
    assert "subjectAltName=IP:198.18.0.1,DNS:n" in by_file["kubelet-serving"]
    masters = {each.file for each in pki.control_plane(()) if each.organization == "system:masters"}
    assert masters == {"admin"}


def test_containerd_writes_where_the_host_sees_nothing() -> None:
    value = tomllib.loads(node_config.containerd("/usr/lib/cni", Path("/c/cni")))
    cri = value["plugins"]["io.containerd.grpc.v1.cri"]
    assert cri["restrict_oom_score_adj"] is True
    assert cri["sandbox_image"] == node_config.PAUSE_IMAGE
    for path in (value["root"], value["state"], cri["containerd"]["runtimes"]["runc"]["options"]["Root"]):
        assert path.startswith("/run/tandem/")
    assert len(value["grpc"]["address"]) < 108


def test_the_kubelet_is_closed_and_keeps_to_its_cgroup() -> None:
    value = yaml.safe_load(node_config.kubelet(PLACE))
    assert value["authentication"]["anonymous"]["enabled"] is False
    assert value["authorization"]["mode"] == "Webhook"
    assert value["cgroupRoot"] == f"/{node_config.CGROUP}"
    assert value["podLogsDir"].startswith("/c/")


def test_kube_proxy_network_and_names_agree() -> None:
    proxy = yaml.safe_load(node_config.kube_proxy(PLACE))
    assert (proxy["mode"], proxy["nftables"]["minSyncPeriod"]) == ("nftables", "50ms")
    (bridge,) = json.loads(node_config.cni())["plugins"]
    assert bridge["bridge"] in " ".join(network.inner_commands())
    assert bridge["ipam"]["ranges"][0][0]["subnet"] == proxy["clusterCIDR"]
    assert f"bind {node_config.ADDRESS}" in node_config.corefile(PLACE)
    assert yaml.safe_load(node_config.kubelet(PLACE))["clusterDNS"] == [node_config.ADDRESS]


def test_the_host_s_routes_lead_into_the_cluster() -> None:
    commands = network.host_commands(77)
    assert commands[0].endswith("netns 77")
    assert {"route add 198.18.0.0/24 via 198.18.255.2", "route add 198.19.0.0/16 via 198.18.255.2"} <= set(commands)
    assert len(network.LINK) < 16


def test_dns_reads_and_no_more() -> None:
    (_, role), (_, binding) = node_config.dns_role()
    assert {verb for rule in role["rules"] for verb in rule["verbs"]} == {"list", "watch"}
    assert binding["roleRef"]["name"] == role["metadata"]["name"]


def test_cgroup_hierarchies_of_both_versions() -> None:
    first = (
        "31 30 0:26 / /sys/fs/cgroup/cpu,cpuacct rw,relatime shared:9 - cgroup cgroup rw,cpu,cpuacct\n"
        "32 30 0:27 / /sys/fs/cgroup/unified rw - cgroup2 cgroup2 rw\n"
        "33 1 0:28 / /tmp rw - tmpfs tmpfs rw\n"
    )
    assert cgroups.hierarchies(first) == [
        (Path("/sys/fs/cgroup/cpu,cpuacct"), {"rw", "cpu", "cpuacct"}),
        (Path("/sys/fs/cgroup/unified"), set()),
    ]


def test_a_host_folder_as_a_volume() -> None:
    volume, claim = host_volume_manifests("space", "models", Path("/data/models"))
    assert volume["spec"]["hostPath"]["path"] == "/data/models"
    assert volume["spec"]["claimRef"] == {"namespace": "space", "name": "models"}
    assert claim["spec"]["volumeName"] == volume["metadata"]["name"] == "space-models"
    assert volume["spec"]["accessModes"] == claim["spec"]["accessModes"] == ["ReadOnlyMany"]
    assert volume["spec"]["storageClassName"] == claim["spec"]["storageClassName"] == ""
    assert host_volume_manifests("s", "n", "/d", read_only=False)[0]["spec"]["accessModes"] == ["ReadWriteOnce"]
    with pytest.raises(ValueError, match="not absolute"):
        host_volume_manifests("s", "n", "data")
