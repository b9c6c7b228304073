"""Up and down, and kill -9: the machine is listed before and after, and must be the same.

`TANDEM_CYCLES` says how often the cluster goes up and down (1 here, 10 before a release).
"""

import contextlib
import json
import os
import re
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from tandem_devcluster import cluster, mounts, node_lock, state
from tandem_devcluster.dev_image import NAME
from tandem_devcluster.errors import DevclusterError

CYCLES = int(os.environ.get("TANDEM_CYCLES", "1"))
pytestmark = [pytest.mark.timeout(60 + 40 * CYCLES), pytest.mark.usefixtures("free_machine")]
Listing = dict[str, set[str]]
SETTINGS = (*mounts.SHOWN_SETTINGS, "net/ipv4/ip_forward", "net/netfilter/nf_conntrack_max")
WATCHED_FOLDERS = ("/run", "/run/lock", "/var/lib", "/var/log", "/opt", "/etc/cni", "/var/tmp", "/sys/fs/cgroup")


def _output(*command: str) -> set[str]:
    shown = subprocess.run(command, capture_output=True, text=True, check=True, timeout=30).stdout
    # Addresses' remaining lifetimes and route caches change by themselves.
    return {re.sub(r"(expires|valid_lft|preferred_lft) \S+", "", line) for line in shown.splitlines()}


def _processes(home: Path) -> set[str]:
    """Those that name our folder or live in namespaces other than this process'."""
    own = {kind: os.readlink(f"/proc/self/ns/{kind}") for kind in ("pid", "net", "mnt")}
    found = set()
    for entry in Path("/proc").iterdir():
        if not entry.name.isdigit() or int(entry.name) == os.getpid() or not state.identify(int(entry.name)):
            continue
        with contextlib.suppress(OSError):
            command = (entry / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
            foreign = any(os.readlink(entry / "ns" / kind) != value for kind, value in own.items())
            if command and (foreign or str(home) in command or "containerd" in command):
                found.add(f"{entry.name} {command}")
    return found


def listing(home: Path) -> Listing:
    """What of this machine a cluster could leave something in."""
    cgroups = {path for path, _, _ in os.walk("/sys/fs/cgroup") if re.search("tandem|kubepods", path)}
    folders = (Path(folder) for folder in WATCHED_FOLDERS)
    return {
        "processes": _processes(home),
        "mounts": {line.split(" ", 2)[2] for line in Path("/proc/self/mountinfo").read_text().splitlines()},
        "links": {path.name for path in Path("/sys/class/net").iterdir()},
        "addresses": _output("ip", "-o", "address"),
        "routes": _output("ip", "route", "show", "table", "all"),
        "nftables": _output("nft", "list", "ruleset"),
        "network namespaces": _output("ip", "netns"),
        "cgroups": cgroups,
        "folders": {str(path) for folder in folders if folder.is_dir() for path in folder.iterdir()},
        "clusters": {path for path, _, _ in os.walk(home)},
        "temporary files": {str(path) for path in Path("/tmp").glob("*containerd*")},
        "settings": {f"{each} {_setting(each)}" for each in SETTINGS},
    }


def _setting(name: str) -> str:
    path = Path("/proc/sys") / name
    return path.read_text().strip() if path.exists() else "absent"


def difference(before: Listing, after: Listing) -> dict[str, list[str]]:
    """What is there after and was not before, or is gone."""
    return {kind: sorted(before[kind] ^ after[kind]) for kind in before if before[kind] != after[kind]}


def assert_restored(before: Listing, home: Path, within_s: float) -> float:
    """Seconds until the machine was as before; fails with what was left."""
    started = time.monotonic()
    while left := difference(before, listing(home)):
        assert time.monotonic() - started < within_s, json.dumps(left, indent=1)
    return time.monotonic() - started


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "clusters"
    folder.mkdir()
    monkeypatch.setenv("TANDEM_DEVCLUSTER_HOME", str(folder))
    return folder


@pytest.fixture(scope="module")
def warm(tmp_path_factory: pytest.TempPathFactory) -> None:
    """A first cluster has been up and down: what is done once a machine (modules, packages, images) is done."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TANDEM_DEVCLUSTER_HOME", str(tmp_path_factory.mktemp("warm")))
        cluster.up("warm", node=True)
        cluster.down("warm")


@pytest.fixture
def before(home: Path, warm: None) -> Listing:
    """The machine before."""
    return listing(home)


def run_pods(made: cluster.Cluster) -> None:
    """Four pods, running, with a Service: sandboxes, network namespaces, mounts, cgroups and rules."""
    for arguments in (
        ["create", "deployment", "sleepers", f"--image={NAME}", "--replicas=4", "--", "sleep", "1000"],
        ["patch", "deployment", "sleepers", "--type=json", "--patch",
         '[{"op":"add","path":"/spec/template/spec/containers/0/imagePullPolicy","value":"Never"}]'],
        ["create", "service", "clusterip", "sleepers", "--tcp=80"],
        ["rollout", "status", "deployment/sleepers", "--timeout=60s"],
    ):  # fmt: skip
        subprocess.run([made.bin_dir / "kubectl", *arguments], check=True, capture_output=True, timeout=90)


def test_up_and_down_leave_the_machine_as_it_was(
    before: Listing, home: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for cycle in range(CYCLES):
        started = time.monotonic()
        made = cluster.up("cycle", node=True)
        ready = time.monotonic()
        during = difference(before, listing(home))
        # The listing sees a cluster at all; nothing of these kinds may appear on the host even while it runs.
        assert {"processes", "links", "routes", "cgroups", "clusters"} <= set(during)
        assert set(during).isdisjoint({"mounts", "nftables", "network namespaces", "temporary files", "settings"})
        assert all("tandem-devcluster" in each for each in during["folders"]), during["folders"]
        run_pods(made)
        running = time.monotonic()
        cluster.down("cycle")
        down = time.monotonic()
        assert_restored(before, home, within_s=0)
        with capsys.disabled():
            print(f"\ncycle {cycle + 1}: up {ready - started:.1f} s, 4 pods {running - ready:.1f} s, "
                  f"down {down - running:.1f} s", end="")  # fmt: skip


def _kill(folder: Path, victim: str, when: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 60
    while not when():
        assert time.monotonic() < deadline, "the moment to kill never came"
    found = state.read_state(folder)
    assert found is not None, "the cluster ended before the moment to kill"
    os.kill(getattr(found, victim).pid, 9)


@pytest.mark.parametrize("step", ["making certificates", "importing", "waiting for the node"])
def test_kill_9_during_the_start(before: Listing, home: Path, step: str) -> None:
    command = [sys.executable, "-m", "tandem_devcluster", "up", "--node", "--name", "early"]
    up = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)

    def reached() -> bool:
        phase = state.read_phase(home / "early")
        return phase is not None and phase.step.startswith(step)

    try:
        _kill(home / "early", "supervisor", lambda: reached() or up.poll() is not None)
        errors = up.communicate(timeout=60)[1]
    finally:
        up.kill()
        up.communicate()
    assert up.returncode == 1
    assert "was ended by someone while it started" in errors
    assert_restored(before, home, within_s=10)


@pytest.mark.parametrize("pods", [False, True], ids=["right after ready", "with pods"])
def test_kill_9_of_a_running_cluster(before: Listing, home: Path, pods: bool) -> None:
    made = cluster.up("killed", node=True)
    if pods:
        run_pods(made)
    _kill(made.folder, "supervisor", lambda: True)
    assert_restored(before, home, within_s=10)


def test_kill_9_of_the_keeper_is_cleaned_up_by_the_next_command(before: Listing, home: Path) -> None:
    made = cluster.up("killed", node=True)
    run_pods(made)
    _kill(made.folder, "keeper", lambda: True)
    assert cluster.down("killed")
    assert_restored(before, home, within_s=10)


def test_a_second_node_is_refused_with_the_holder_s_name(home: Path) -> None:
    made = cluster.up("first", node=True)
    try:
        found = state.read_state(made.folder)
        assert found is not None
        with pytest.raises(DevclusterError, match=rf"the cluster 'first' \(process {found.keeper.pid}, .*\) has it"):
            cluster.up("second", node=True)
        assert [row.name for row in cluster.status()] == ["first"]
    finally:
        cluster.down("first")
    assert not node_lock.path().exists()
