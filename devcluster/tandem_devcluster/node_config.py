"""The configuration files of a node's programs, as pure functions: what `node` writes before it starts them.

Addresses are fixed, since the network namespace is the cluster's own: 198.18.0.0/15 is set aside for tests of
network equipment, so it meets neither a VPN nor a container engine's networks.
"""

import json
from pathlib import Path
from typing import Any

import yaml

from tandem_devcluster.components import DOMAIN, Place

NODE = "tandem-node"
ADDRESS = "198.18.0.1"
PODS = "198.18.0.0/24"
BRIDGE = "pods0"
PAUSE_IMAGE = "tandem.dev/pause:1"
CGROUP = "tandem-devcluster"
# Inside the mount namespace: short, since a socket's path may have 107 letters at most.
RUNTIME = Path("/run/tandem")
SOCKET = Path("/run/containerd/containerd.sock")  # where cAdvisor in the kubelet looks for it
KUBELET_ROOT = Path("/var/lib/kubelet")
PROXY_HEALTH = "127.0.0.1:10256"
DNS_READY = "127.0.0.1:8181"
_UNUSED_PLUGINS = (
    "io.containerd.snapshotter.v1.btrfs",
    "io.containerd.snapshotter.v1.zfs",
    "io.containerd.snapshotter.v1.devmapper",
    "io.containerd.snapshotter.v1.aufs",
    "io.containerd.internal.v1.opt",
    "io.containerd.tracing.processor.v1.otlp",
)


def containerd(cni_bin: str, cni_conf: Path) -> str:
    """containerd's TOML. Without `restrict_oom_score_adj` no sandbox starts where root lacks CAP_SYS_RESOURCE."""
    return f"""version = 2
root = "{RUNTIME}/images/root"
state = "{RUNTIME}/state"
oom_score = 0
disabled_plugins = {json.dumps(_UNUSED_PLUGINS)}
[grpc]
  address = "{SOCKET}"
[plugins."io.containerd.grpc.v1.cri"]
  sandbox_image = "{PAUSE_IMAGE}"
  restrict_oom_score_adj = true
  netns_mounts_under_state_dir = true
  stream_server_address = "127.0.0.1"
  [plugins."io.containerd.grpc.v1.cri".cni]
    bin_dir = "{cni_bin}"
    conf_dir = "{cni_conf}"
  [plugins."io.containerd.grpc.v1.cri".containerd]
    snapshotter = "overlayfs"
    default_runtime_name = "runc"
    [plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runc]
      runtime_type = "io.containerd.runc.v2"
      [plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runc.options]
        SystemdCgroup = false
        Root = "{RUNTIME}/runc"
"""


def cni() -> str:
    """The pods' network: one bridge, addresses from one range, no masquerading."""
    addresses = {
        "type": "host-local",
        "dataDir": f"{RUNTIME}/addresses",
        "ranges": [[{"subnet": PODS, "gateway": ADDRESS}]],
        "routes": [{"dst": "0.0.0.0/0"}],
    }
    bridge = {"type": "bridge", "bridge": BRIDGE, "isGateway": True, "hairpinMode": True, "ipMasq": False}
    plugins = [{**bridge, "ipam": addresses}]
    return json.dumps({"cniVersion": "1.0.0", "name": "tandem", "plugins": plugins}, indent=1)


def kubelet(place: Place) -> str:
    """The kubelet's configuration: cgroupfs below one cgroup of ours, webhook authorization, no image collection."""
    evict = dict.fromkeys(("nodefs.available", "imagefs.available", "nodefs.inodesFree", "imagefs.inodesFree"), "1%")
    value: dict[str, Any] = {
        "apiVersion": "kubelet.config.k8s.io/v1beta1",
        "kind": "KubeletConfiguration",
        "address": ADDRESS,
        "tlsCertFile": f"{place.pki}/kubelet-serving.crt",
        "tlsPrivateKeyFile": f"{place.pki}/kubelet-serving.key",
        "authentication": {
            "anonymous": {"enabled": False},
            "webhook": {"enabled": True},
            "x509": {"clientCAFile": f"{place.pki}/ca.crt"},
        },
        "authorization": {"mode": "Webhook"},
        "containerRuntimeEndpoint": f"unix://{SOCKET}",
        "clusterDNS": [ADDRESS],
        "clusterDomain": DOMAIN,
        "cgroupDriver": "cgroupfs",
        "cgroupRoot": f"/{CGROUP}",
        "failCgroupV1": False,
        "failSwapOn": False,
        "oomScoreAdj": 0,
        "makeIPTablesUtilChains": False,
        "podLogsDir": f"{place.folder}/pod-logs",
        "volumePluginDir": f"{KUBELET_ROOT}/volume-plugins",
        "resolvConf": f"{place.folder}/resolv.conf",
        "imageGCHighThresholdPercent": 100,
        "imageGCLowThresholdPercent": 99,
        "evictionHard": {"memory.available": "100Mi", **evict},
        "nodeStatusUpdateFrequency": "2s",
        "nodeStatusReportFrequency": "30s",
        "syncFrequency": "10s",
    }
    return yaml.safe_dump(value, sort_keys=False)


def kube_proxy(place: Place) -> str:
    """kube-proxy with nftables; the short sync period keeps the first call to a new Service from being refused."""
    value: dict[str, Any] = {
        "apiVersion": "kubeproxy.config.k8s.io/v1alpha1",
        "kind": "KubeProxyConfiguration",
        "mode": "nftables",
        "clientConnection": {"kubeconfig": str(place.kubeconfig("kube-proxy"))},
        "hostnameOverride": NODE,
        "clusterCIDR": PODS,
        "bindAddress": ADDRESS,
        "healthzBindAddress": PROXY_HEALTH,
        "metricsBindAddress": "127.0.0.1:10249",
        "conntrack": {"maxPerCore": 0},
        "nftables": {"minSyncPeriod": "50ms", "syncPeriod": "30s"},
        "nodePortAddresses": ["primary"],
    }
    return yaml.safe_dump(value, sort_keys=False)


def corefile(place: Place) -> str:
    """DNS: the cluster's names from the API, every other name does not exist (there is no way out of the cluster)."""
    return f"""{DOMAIN} in-addr.arpa {{
  bind {ADDRESS}
  ready {DNS_READY}
  errors
  cache 5
  kubernetes {DOMAIN} in-addr.arpa {{
    kubeconfig {place.kubeconfig("dns")}
    ttl 5
  }}
}}
. {{
  bind {ADDRESS}
  template ANY ANY {{
    rcode NXDOMAIN
  }}
}}
"""


def dns_role() -> list[tuple[str, dict[str, Any]]]:
    """What the DNS server may read: (path in the API, object)."""
    name, group = "system:coredns", "rbac.authorization.k8s.io"
    rules = [
        {"apiGroups": [""], "resources": ["endpoints", "services", "pods", "namespaces"], "verbs": ["list", "watch"]},
        {"apiGroups": ["discovery.k8s.io"], "resources": ["endpointslices"], "verbs": ["list", "watch"]},
    ]
    head = {"apiVersion": f"{group}/v1", "metadata": {"name": name}}
    reference = {"apiGroup": group, "kind": "ClusterRole", "name": name}
    subjects = [{"kind": "User", "name": name, "apiGroup": group}]
    path = f"/apis/{group}/v1"
    return [
        (f"{path}/clusterroles/{name}", {**head, "kind": "ClusterRole", "rules": rules}),
        (
            f"{path}/clusterrolebindings/{name}",
            {**head, "kind": "ClusterRoleBinding", "roleRef": reference, "subjects": subjects},
        ),
    ]
