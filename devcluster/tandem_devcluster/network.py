"""The node's network: a bridge for the pods in a network namespace of its own, joined to the host by one link.

The keeper makes the host's end, the supervisor everything inside. The link and the host's routes vanish with the
namespace; `remove_link` only makes that happen at once.
"""

import subprocess
from pathlib import Path

from tandem_devcluster.components import SERVICES
from tandem_devcluster.errors import DevclusterError
from tandem_devcluster.node_config import ADDRESS, BRIDGE, PODS

LINK = "tandem0"
_INSIDE = "uplink0"
_HOST_END, _INNER_END = "198.18.255.1", "198.18.255.2"
_TIMEOUT_S = 20


def host_commands(pid: int) -> list[str]:
    """What `ip` is told on the host; `pid` is a process in the new namespace, which gets the link's other end."""
    return [
        f"link add {LINK} type veth peer name {_INSIDE} netns {pid}",
        f"address add {_HOST_END}/30 dev {LINK}",
        f"link set {LINK} up",
        f"route add {PODS} via {_INNER_END}",
        f"route add {SERVICES} via {_INNER_END}",
    ]


def inner_commands() -> list[str]:
    """What `ip` is told inside. The bridge has an address of its own choice, which no joining pod can change."""
    return [
        "link set lo up",
        f"link add {BRIDGE} address 02:00:c6:12:00:01 type bridge",
        f"address add {ADDRESS}/24 dev {BRIDGE}",
        f"link set {BRIDGE} up",
        f"address add {_INNER_END}/30 dev {_INSIDE}",
        f"link set {_INSIDE} up",
        f"route add default via {_HOST_END}",
    ]


def connect_host(pid: int) -> None:
    """Makes the host's end of the link and the routes. The caller holds the machine's node lock."""
    remove_link()
    _ip(host_commands(pid))


def set_up_inside() -> None:
    """Makes the bridge and the way to the host, in the namespace of the calling process."""
    _ip(inner_commands())
    Path("/proc/sys/net/ipv4/ip_forward").write_text("1")


def remove_link() -> None:
    """Removes the link if it is there; routes through it go with it."""
    if Path(f"/sys/class/net/{LINK}").exists():
        subprocess.run(["ip", "link", "delete", LINK], capture_output=True, check=False, timeout=_TIMEOUT_S)


def _ip(commands: list[str]) -> None:
    result = subprocess.run(
        ["ip", "-batch", "-"],
        input="\n".join(commands) + "\n",
        capture_output=True,
        text=True,
        check=False,
        timeout=_TIMEOUT_S,
    )
    if result.returncode != 0:
        reason = " ".join(result.stderr.split())
        raise DevclusterError(f"the node's network could not be made: {reason} (it needs 198.18.0.0/15 for itself)")
