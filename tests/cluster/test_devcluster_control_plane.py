"""The control plane as a whole: several side by side, authorization on, nothing left afterwards."""

import contextlib
import json
import os
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

import pytest

from tandem_devcluster import cluster, state, toolchain
from tandem_devcluster.cluster import Cluster
from tandem_devcluster.errors import DevclusterError
from tandem_devcluster.progress import Progress

pytestmark = pytest.mark.timeout(240)
NOBODY = 65534


def kubectl(of: Cluster, *arguments: str, check: bool = True) -> subprocess.CompletedProcess[str]:
    command = [str(of.bin_dir / "kubectl"), "--kubeconfig", str(of.kubeconfig), *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=check, timeout=60)


def processes_of(folder: Path) -> list[str]:
    """Command lines that name the folder, without zombies."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit() and int(entry.name) != os.getpid():
            with contextlib.suppress(OSError):
                line = (entry / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
                if str(folder) in line and state.identify(int(entry.name)):
                    found.append(line)
    return found


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("TANDEM_DEVCLUSTER_HOME", str(tmp_path / "clusters"))
    return tmp_path / "clusters"


def test_two_control_planes_side_by_side_know_nothing_of_each_other(home: Path) -> None:
    made: dict[str, Cluster] = {}
    threads = [threading.Thread(target=lambda n=n: made.update({n: cluster.up(n)})) for n in ("one", "two")]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    try:
        assert set(made) == {"one", "two"}
        kubectl(made["one"], "create", "namespace", "only-in-one")
        assert kubectl(made["one"], "get", "namespace", "only-in-one", "-o", "name").stdout == "namespace/only-in-one\n"
        assert "not found" in kubectl(made["two"], "get", "namespace", "only-in-one", check=False).stderr
        assert [(row.name, row.phase) for row in cluster.status()] == [("one", "ready"), ("two", "ready")]
    finally:
        running = processes_of(home)
        cluster.down("one")
        cluster.down("two")
    # Each: keeper, supervisor, etcd, API server, controller manager, scheduler.
    assert len(running) == 12, running
    assert processes_of(home) == []
    assert list(home.iterdir()) == []


def test_rbac_is_on_and_controllers_act(control_plane: Cluster) -> None:
    """A ServiceAccount may do nothing until a role says so, and the controllers give it a token's trust root."""
    kubectl(control_plane, "create", "namespace", "devcluster-rbac")
    who = "--as=system:serviceaccount:devcluster-rbac:default"
    denied = kubectl(control_plane, "get", "pods", "-n", "devcluster-rbac", who, check=False)
    assert "Forbidden" in denied.stderr
    kubectl(control_plane, "-n", "devcluster-rbac", "create", "rolebinding", "view", "--clusterrole=view",
            "--serviceaccount=devcluster-rbac:default")  # fmt: skip
    deadline = time.monotonic() + 10
    while kubectl(control_plane, "get", "pods", "-n", "devcluster-rbac", who, check=False).returncode != 0:
        assert time.monotonic() < deadline, "the role binding had no effect within 10 s"
    kubectl(control_plane, "-n", "devcluster-rbac", "wait", "--for=create", "configmap/kube-root-ca.crt")
    version = json.loads(kubectl(control_plane, "version", "-o", "json").stdout)
    assert version["serverVersion"]["gitVersion"] == "v1.34.2"
    helm = subprocess.run([control_plane.bin_dir / "helm", "list"], capture_output=True, text=True, check=True)
    assert helm.stdout.startswith("NAME")


@pytest.mark.parametrize("victim", ["supervisor", "keeper"])
def test_kill_9_leaves_nothing(home: Path, victim: str) -> None:
    made = cluster.up("killed", fake_nodes=1)
    phase = state.read_phase(made.folder)
    assert phase is not None
    assert "kwok" in phase.components
    before = state.read_state(made.folder)
    assert before is not None
    assert before.supervisor is not None
    os.kill(getattr(before, victim).pid, 9)
    deadline = time.monotonic() + 10
    while processes_of(made.folder):
        assert time.monotonic() < deadline, processes_of(made.folder)
    if victim == "keeper":  # nobody is left to remove the folder: `down` does
        assert [row.phase for row in cluster.status()] == ["ended"]
        assert cluster.down("killed")
    assert list(home.iterdir()) == []


def test_a_component_that_ends_ends_the_cluster_and_says_so(home: Path) -> None:
    made = cluster.up("broken")
    phase = state.read_phase(made.folder)
    assert phase is not None
    os.kill(phase.components["etcd"], 9)
    deadline = time.monotonic() + 10
    while processes_of(made.folder):
        assert time.monotonic() < deadline, processes_of(made.folder)
    (row,) = cluster.status()
    assert row.phase == "failed"
    assert row.detail.startswith("etcd was killed by signal 9")
    with pytest.raises(DevclusterError, match=r"has failed .etcd was killed by signal 9"):
        cluster.find("broken")
    assert "etcd.log" in {path.name for path in made.logs.iterdir()}
    assert not (made.folder / "pki").exists(), "only the logs are kept"
    assert cluster.down("broken")
    assert list(home.iterdir()) == []


def test_a_user_without_any_right_can_have_one() -> None:
    """As the user `nobody`, in an empty home: no capability is needed, and nothing outside the home is written."""
    if os.geteuid() != 0:
        pytest.skip("every other test of this file ran without root already")
    kubernetes = toolchain.provide("kubernetes", Progress())
    with tempfile.TemporaryDirectory(prefix="tandem-nobody-") as folder:
        home = Path(folder)
        programs = home / ".cache" / "tandem" / "bin"
        programs.mkdir(parents=True)
        shutil.copyfile(kubernetes, programs / kubernetes.name)
        (programs / kubernetes.name).chmod(0o755)
        for path in (home, *home.rglob("*")):
            os.chown(path, NOBODY, NOBODY)
        environment = {"HOME": folder, "PATH": os.environ["PATH"], "GOTOOLCHAIN": "local"}

        def run(*arguments: str) -> subprocess.CompletedProcess[str]:
            command = [sys.executable, "-m", "tandem_devcluster", *arguments]
            return subprocess.run(command, user=NOBODY, group=NOBODY, extra_groups=[], env=environment, cwd=folder,
                                  capture_output=True, text=True, check=False, timeout=120)  # fmt: skip

        up = run("up")
        assert up.returncode == 0, up.stderr
        assert "Building" not in up.stderr
        assert run("kubectl", "--", "get", "namespaces", "-o", "name").stdout.startswith("namespace/default\n")
        assert run("up", "--node", "--name", "two").stderr.startswith("error: a cluster with a node needs root")
        assert run("down").returncode == 0
        assert processes_of(home) == []
        assert list((home / ".local" / "state" / "tandem" / "clusters").iterdir()) == []
