"""Arguments, the status table and errors of the command line; no cluster is started."""

import os
from pathlib import Path

import pytest

from tandem_devcluster import cleanup, cli, cluster, node_lock, packages, paths, state
from tandem_devcluster.children import describe_end, last_lines
from tandem_devcluster.cluster import Status
from tandem_devcluster.errors import DevclusterError
from tandem_devcluster.progress import Progress
from tandem_devcluster.state import Phase, ProcessId, Spec, State

ENDED = ProcessId(1, 0)


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("TANDEM_DEVCLUSTER_HOME", str(tmp_path / "clusters"))
    return tmp_path / "clusters"


def leave_behind(home: Path, name: str, phase: Phase, keeper: ProcessId = ENDED) -> Path:
    folder = home / name
    (folder / "log").mkdir(parents=True)
    state.write_json(folder / "spec.json", Spec(name, False, "/k"))
    state.write_json(folder / "state.json", State(keeper, 0.0))
    state.write_json(folder / "phase.json", phase)
    return folder


def test_arguments() -> None:
    options = cli.parser().parse_args(["up", "--node", "--name", "x", "--qps", "300"])
    assert (options.node, options.name, options.qps, options.helm) == (True, "x", 300, False)
    options = cli.parser().parse_args(["kubectl", "--name", "x", "--", "get", "pods", "-A"])
    assert (options.name, options.arguments[-3:]) == ("x", ["get", "pods", "-A"])
    with pytest.raises(SystemExit, match="2"):
        cli.parser().parse_args(["load-image"])


def test_prepare_builds_what_up_would_and_starts_nothing(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    built: list[str] = []
    monkeypatch.setattr("tandem_devcluster.packages.provide", lambda wanted, progress: None)

    def provide(name: str, progress: object) -> Path:
        built.append(name)
        return Path("/built") / name

    monkeypatch.setattr("tandem_devcluster.toolchain.provide", provide)
    assert cli.main(["prepare", "--helm", "--fake-nodes"]) == 0
    assert sorted(built) == ["helm", "kubernetes", "kwok"]
    assert not home.exists()


@pytest.mark.parametrize("name", ["", "A", "-a", "a/b", "..", "a" * 41])
def test_names_that_are_no_folder_of_ours(name: str) -> None:
    with pytest.raises(DevclusterError, match="cannot name a cluster") as refused:
        paths.cluster_folder(name)
    assert refused.value.code == 2


def test_commands_without_a_cluster(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["down"]) == 0
    assert capsys.readouterr().out == "There is no cluster 'dev'.\n"
    assert cli.main(["env", "--name", "x"]) == 1
    assert capsys.readouterr().err.startswith("error: no cluster 'x' runs: `python -m tandem_devcluster up --name x`")
    assert cli.main(["status"]) == 0
    assert capsys.readouterr().out.split()[:2] == ["NAME", "KIND"]
    assert cli.main(["down", "--name", "../x"]) == 2


def test_the_table_of_clusters() -> None:
    rows = [
        Status("dev", True, "ready", "", 77, 200.0),
        Status("old", False, "ended", "waiting", 0, 5.0),
        Status("bad", False, "failed", "etcd ended\nlog line", 0, 7200.0),
    ]
    lines = cli.table(rows)
    assert lines[1].split() == ["dev", "node", "ready", "77", "3m"]
    assert lines[2].split(maxsplit=5)[5] == "its processes are gone: run `down`"
    assert lines[3].endswith("2h       etcd ended")


def test_what_a_killed_keeper_left_is_listed_and_removed(home: Path) -> None:
    folder = leave_behind(home, "dead", Phase("ready"))
    (folder / "etcd").mkdir()
    assert [(row.name, row.phase) for row in cluster.status()] == [("dead", "ended")]
    with pytest.raises(DevclusterError, match="no cluster 'dead' runs"):
        cluster.find("dead")
    assert cluster.down("dead")
    assert not folder.exists()


def test_a_failed_cluster_says_why(home: Path) -> None:
    leave_behind(home, "bad", Phase("failed", "etcd ended with exit code 1; its last log lines:\nx"))
    with pytest.raises(DevclusterError, match=r"has failed \(etcd ended with exit code 1"):
        cluster.find("bad")


def test_a_running_cluster_is_not_started_twice(home: Path) -> None:
    me = state.identify(os.getpid())
    assert me is not None
    leave_behind(home, "here", Phase("ready"), me)
    assert cluster.up("here").kubeconfig == home / "here" / "kubeconfig"
    with pytest.raises(DevclusterError, match="already runs without a node"):
        cluster.up("here", node=True)
    state.write_json(home / "here" / "phase.json", Phase("starting"))
    with pytest.raises(DevclusterError, match="is being started by another run"):
        cluster.up("here")


def test_a_failed_cluster_keeps_its_logs(home: Path) -> None:
    folder = leave_behind(home, "bad", Phase("failed"))
    (folder / "etcd" / "member").mkdir(parents=True)
    (folder / "kubeconfig").touch()
    cleanup.remove_folder(folder, cleanup.KEPT_AFTER_FAILURE)
    assert sorted(path.name for path in folder.iterdir()) == ["log", "phase.json", "spec.json", "state.json"]
    cleanup.remove_folder(folder)
    cleanup.remove_folder(folder)
    assert not folder.exists()


def test_packages_that_are_missing_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    needed = {"sh": "dash", "no-such-command": "one", "/no/such/file": "two", "no-such-other": "one"}
    assert packages.missing(needed) == ["one", "two"]
    packages.provide({"sh": "dash"}, Progress(quiet=True))
    monkeypatch.setattr(packages.os, "geteuid", lambda: 1000)
    with pytest.raises(DevclusterError, match=r"lacks one two: install them .*sudo apt-get install one two"):
        packages.provide(needed, Progress(quiet=True))


def test_only_root_has_a_node(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cluster.os, "geteuid", lambda: 1000)
    with pytest.raises(DevclusterError, match="needs root: run the same command with sudo"):
        cluster.up("dev", node=True)


def test_the_node_lock_names_its_holder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(node_lock, "path", lambda: tmp_path / "lock")
    monkeypatch.setattr(node_lock, "_PATIENCE_S", 0.0)
    held = node_lock.take(tmp_path / "first")
    with pytest.raises(DevclusterError, match=rf"the cluster 'first' \(process {os.getpid()}, .*\) has it"):
        node_lock.take(tmp_path / "second")
    with node_lock.free() as free:
        assert not free
    node_lock.give_back(held)
    with node_lock.free() as free:
        assert free
    assert not (tmp_path / "lock").exists()


def test_a_component_s_end_is_told_with_its_last_words(tmp_path: Path) -> None:
    log = tmp_path / "x.log"
    assert describe_end("x", 9, log) == "x was killed by signal 9 without a word in its log"
    log.write_text("".join(f"line {number}\n" for number in range(50)) + "y" * 1000)
    said = describe_end("x", 3 << 8, log)
    assert said.startswith("x ended with exit code 3; its last log lines:\nline 39\n")
    assert max(map(len, said.splitlines())) <= 400
    assert last_lines(tmp_path / "none.log") == ""
