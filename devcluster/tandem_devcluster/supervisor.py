"""The process that a cluster lives and dies with: starts the components, then watches them.

With a node it is the first process of the cluster's PID namespace. It has no teardown: when it ends, for whatever
reason, the kernel ends its components, and the keeper outside cleans up.
"""

import os
import sys
from pathlib import Path

from tandem_devcluster import cgroups, control_plane, fake_nodes, mounts, network, node, node_config, pki
from tandem_devcluster.children import Children
from tandem_devcluster.components import Place
from tandem_devcluster.errors import DevclusterError
from tandem_devcluster.state import Phase, Spec, read_spec, write_json

_SYSTEM_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"


class Supervisor:
    """One cluster's start, told step by step in `phase.json`."""

    def __init__(self, folder: Path, spec: Spec) -> None:
        self._folder = folder
        self._spec = spec
        logs = folder / "log"
        logs.mkdir(exist_ok=True)
        temporary = folder / "tmp"  # what a killed program leaves in it goes with the folder
        temporary.mkdir()
        environment = {"PATH": _SYSTEM_PATH, "HOME": str(folder), "TMPDIR": str(temporary)}
        self._children = Children(logs, environment)

    def run(self) -> str:
        """Starts the cluster and watches it. Returns why it ended."""
        try:
            if self._spec.node:
                self._start_with_node()
            else:
                self._start_control_plane()
            self.tell("", "ready")
            while True:
                self._children.check(options=0)
        except (DevclusterError, OSError, RuntimeError) as error:
            return str(error)

    def tell(self, step: str, phase: str = "starting") -> None:
        """Writes how far the start is."""
        write_json(self._folder / "phase.json", Phase(phase, step, self._children.pids))

    def _start_control_plane(self) -> None:
        ports = self._spec.ports
        place = Place(self._folder, self._spec.kubernetes, "127.0.0.1", ports["api"], ports["etcd"], ports["peer"])
        self.tell("making certificates")
        control_plane.prepare(place, [])
        control_plane.start_api(place, self._spec, self._children, self.tell)
        api = control_plane.start_controllers(place, self._spec, self._children, self.tell)
        if self._spec.fake_nodes:
            fake_nodes.start(place, self._spec, api, self._children, self.tell)
        control_plane.wait_for_controllers(api, self._children)

    def _start_with_node(self) -> None:
        self.tell("making the node's namespaces")
        mounts.isolate(self._folder)
        network.set_up_inside()
        cgroups.make()
        place = Place(self._folder, self._spec.kubernetes, node_config.ADDRESS, 6443, 2379, 2380)
        self.tell("making certificates")
        certificates = pki.node(node_config.NODE, node_config.ADDRESS)
        control_plane.prepare(place, certificates, ("kubelet", "kube-proxy", "dns"))
        node.prepare(place)
        control_plane.start_api(place, self._spec, self._children, self.tell)
        node.start_runtime(place, self._spec, self._children, self.tell)
        api = control_plane.start_controllers(place, self._spec, self._children, self.tell)
        node.start(place, self._spec, api, self._children, self.tell)
        control_plane.wait_for_controllers(api, self._children)


def main() -> int:
    """`python -m tandem_devcluster.supervisor FOLDER`; started by the keeper alone."""
    folder = Path(sys.argv[1])
    spec = read_spec(folder)
    if spec is None:
        print(f"{folder} holds no spec.json", file=sys.stderr)
        return 2
    os.umask(0o022)
    supervisor = Supervisor(folder, spec)
    reason = supervisor.run()
    supervisor.tell(reason, "failed")
    print(reason, file=sys.stderr, flush=True)
    return 1


if __name__ == "__main__":
    sys.exit(main())
