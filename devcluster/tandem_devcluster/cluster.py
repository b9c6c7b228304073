"""The public API: `up`, `down`, `status`, `find`. Used by the command line, the tests and the demo."""

import os
import subprocess
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from tandem_devcluster import cleanup, node_lock, paths, starting, toolchain
from tandem_devcluster.errors import DevclusterError
from tandem_devcluster.node import import_command
from tandem_devcluster.progress import Progress
from tandem_devcluster.state import alive, read_spec, read_state


@dataclass(frozen=True)
class Cluster:
    """A running cluster. `kubeconfig` is self-contained and the administrator's; `bin_dir` holds kubectl and helm."""

    kubeconfig: Path
    name: str
    folder: Path
    bin_dir: Path

    @property
    def logs(self) -> Path:
        """One log file a component."""
        return self.folder / "log"


@dataclass(frozen=True)
class Status:
    """One line of `status`. `phase` is `starting`, `ready`, `failed`, or `ended` when its processes are gone."""

    name: str
    node: bool
    phase: str
    detail: str
    keeper: int
    age_s: float


def up(
    name: str,
    node: bool = False,
    progress: Progress | None = None,
    *,
    qps: int = 100,
    helm: bool = False,
    fake_nodes: int = 0,
    api_flags: Sequence[str] = (),
) -> Cluster:
    """Starts the cluster and returns when it is ready; one that runs already is returned as it is.

    `qps` bounds the API calls a second of controllers and scheduler. `fake_nodes` are nodes of kwok, on which pods turn
    ready without running (not together with `node`); `api_flags` are further flags of kube-apiserver. Raises
    DevclusterError.
    """
    progress = progress or Progress(quiet=True)
    folder = paths.cluster_folder(name)
    tools = {"helm": f"'{toolchain.provide('helm', progress)}'"} if helm else {}
    if _running(folder, node) is None:
        _start(folder, starting.Wish(node, qps, fake_nodes, tuple(api_flags)), progress)
    starting.write_commands(folder / "bin", folder, tools)
    return _cluster(folder)


def prepare(node: bool = False, progress: Progress | None = None, *, helm: bool = False, fake_nodes: int = 0) -> None:
    """Makes what such a cluster starts from, so that `up` is quick: minutes on a machine that has nothing of it yet.

    Raises DevclusterError.
    """
    progress = progress or Progress(quiet=True)
    starting.specify("prepared", starting.Wish(node, fake_nodes=fake_nodes), progress)
    if helm:
        toolchain.provide("helm", progress)


def down(name: str) -> bool:
    """Ends the cluster and removes everything of it. False when there was none."""
    folder = paths.cluster_folder(name)
    if not folder.exists():
        return False
    starting.end(folder)
    return True


def load_image(name: str, file: Path) -> None:
    """Brings the image of a docker-archive file into the node of the running cluster `name`. Raises DevclusterError."""
    find(name)
    folder = paths.cluster_folder(name)
    spec, state = read_spec(folder), read_state(folder)
    if spec is None or state is None or state.supervisor is None or not spec.node:
        raise DevclusterError(f"the cluster '{name}' has no node to load images into: start one with `up --node`")
    if not file.is_file():
        raise DevclusterError(f"there is no image file {file}")
    command = ["nsenter", f"--target={state.supervisor.pid}", "--mount", "--", *import_command(str(file.absolute()))]
    result = subprocess.run(command, capture_output=True, text=True, check=False, timeout=600)
    if result.returncode != 0:
        raise DevclusterError(f"{file} could not be imported: {result.stderr.strip()}")


def find(name: str) -> Cluster:
    """The running cluster of that name. Raises DevclusterError when there is none, or it is not ready."""
    folder = paths.cluster_folder(name)
    state, phase = read_state(folder), starting.phase_of(folder)
    if phase.phase == "failed":
        reason = phase.step.partition("\n")[0]
        raise DevclusterError(f"the cluster '{name}' has failed ({reason}): read the logs in {folder}/log, then `down`")
    if state is None or not alive(state.keeper):
        raise DevclusterError(f"no cluster '{name}' runs: `python -m tandem_devcluster up --name {name}` starts one")
    if phase.phase != "ready":
        raise DevclusterError(f"the cluster '{name}' is not ready yet ({phase.step}): wait for its `up` to end")
    return _cluster(folder)


def status() -> list[Status]:
    """Every cluster that has a folder, running or not, by name."""
    home = paths.clusters_home()
    folders = sorted(each for each in home.iterdir() if not each.name.startswith(".")) if home.is_dir() else []
    found = []
    for folder in folders:
        spec, state, phase = read_spec(folder), read_state(folder), starting.phase_of(folder)
        if spec is None or state is None:
            continue
        runs = alive(state.keeper)
        shown = phase.phase if runs or phase.phase == "failed" else "ended"
        age = time.time() - state.created
        found.append(Status(spec.name, spec.node, shown, phase.step, state.keeper.pid if runs else 0, age))
    return found


def _start(folder: Path, wish: starting.Wish, progress: Progress) -> None:
    spec = starting.specify(folder.name, wish, progress)
    if not wish.node:
        starting.create(folder, spec)
        starting.run(folder, None, progress)
        return
    lock = node_lock.take(folder)
    try:
        starting.create(folder, spec)
        starting.run(folder, lock, progress)
    except BaseException:
        node_lock.give_back(lock)  # the keeper, if it came to one, has ended
        raise
    os.close(lock)  # the keeper holds it on


def _running(folder: Path, node: bool) -> Cluster | None:
    state, spec = read_state(folder), read_spec(folder)
    if state is None or spec is None or not alive(state.keeper):
        return None
    phase = starting.phase_of(folder).phase
    if phase == "failed":  # its keeper is about to end
        cleanup.wait_for_end(state.keeper, starting.END_TIMEOUT_S)
        return None
    if phase != "ready":
        raise DevclusterError(f"the cluster '{spec.name}' is being started by another run: wait, or run `down` first")
    if spec.node != node:
        kind = "with a node" if spec.node else "without a node"
        raise DevclusterError(f"the cluster '{spec.name}' already runs {kind}: choose another --name or run `down`")
    return _cluster(folder)


def _cluster(folder: Path) -> Cluster:
    return Cluster(folder / "kubeconfig", folder.name, folder, folder / "bin")
