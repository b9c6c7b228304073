"""The public API: `up`, `down`, `status`, `find`. Used by the command line, the tests and the demo."""

import os
import shutil
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

from tandem_devcluster import (
    cgroups,
    cleanup,
    dev_image,
    network,
    node_lock,
    packages,
    paths,
    pause_image,
    ports,
    toolchain,
)
from tandem_devcluster.children import last_lines
from tandem_devcluster.errors import DevclusterError
from tandem_devcluster.node import import_command
from tandem_devcluster.progress import Progress
from tandem_devcluster.state import Phase, Spec, State, alive, identify, read_phase, read_spec, read_state, write_json

START_TIMEOUT_S = 300.0
DOWN_TIMEOUT_S = 60.0
_POLL_S = 0.05


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
    name: str, node: bool = False, progress: Progress | None = None, *, qps: int = 100, helm: bool = False
) -> Cluster:
    """Starts the cluster and returns when it is ready; one that runs already is returned as it is.

    `qps` bounds the API calls a second of controllers and scheduler. Raises DevclusterError.
    """
    progress = progress or Progress(quiet=True)
    folder = paths.cluster_folder(name)
    if (running := _running(folder, node)) is not None:
        return running
    spec = _specify(name, node, qps, progress)
    tools = {"helm": toolchain.provide("helm", progress)} if helm else {}
    lock = node_lock.take(folder) if node else None
    try:
        _create(folder, spec, tools)
        _start(folder, lock, progress)
    finally:
        if lock is not None:
            os.close(lock)  # the keeper holds it on
    return _cluster(folder)


def _specify(name: str, node: bool, qps: int, progress: Progress) -> Spec:
    """Makes everything that has to exist before a cluster can start."""
    if not node:
        packages.provide(packages.CONTROL_PLANE, progress)
        kubernetes = toolchain.provide("kubernetes", progress)
        return Spec(name, False, str(kubernetes), ports=ports.choose(["api", "etcd", "peer"]), qps=qps)
    if os.geteuid() != 0:
        raise DevclusterError("a cluster with a node needs root: run the same command with sudo, or without --node")
    packages.provide(packages.NODE, progress)
    kubernetes, coredns = toolchain.provide("kubernetes", progress), toolchain.provide("coredns", progress)
    images = [str(pause_image.provide(progress)), str(dev_image.dev_image(progress)[0])]
    return Spec(name, True, str(kubernetes), str(coredns), images, qps=qps)


def down(name: str) -> bool:
    """Ends the cluster and removes everything of it. False when there was none."""
    folder = paths.cluster_folder(name)
    if not folder.exists():
        return False
    state = read_state(folder)
    if state is not None and alive(state.keeper) and state.keeper.pid != os.getpid():
        cleanup.stop(state.keeper, DOWN_TIMEOUT_S)
    _clean_stale(folder, state)
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
    state, phase = read_state(folder), _phase(folder)
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
        spec, state, phase = read_spec(folder), read_state(folder), _phase(folder)
        if spec is None or state is None:
            continue
        runs = alive(state.keeper)
        shown = phase.phase if runs or phase.phase == "failed" else "ended"
        age = time.time() - state.created
        found.append(Status(spec.name, spec.node, shown, phase.step, state.keeper.pid if runs else 0, age))
    return found


def _running(folder: Path, node: bool) -> Cluster | None:
    state, spec = read_state(folder), read_spec(folder)
    if state is None or spec is None or not alive(state.keeper):
        return None
    phase = _phase(folder).phase
    if phase == "failed":  # its keeper is about to end
        cleanup.wait_for_end(state.keeper, DOWN_TIMEOUT_S)
        return None
    if phase != "ready":
        raise DevclusterError(f"the cluster '{spec.name}' is being started by another run: wait, or run `down` first")
    if spec.node != node:
        kind = "with a node" if spec.node else "without a node"
        raise DevclusterError(f"the cluster '{spec.name}' already runs {kind}: choose another --name or run `down`")
    return _cluster(folder)


def _create(folder: Path, spec: Spec, tools: dict[str, Path]) -> None:
    """Makes the folder under another name and renames it, so that two runs cannot both own it."""
    me = identify(os.getpid())
    if me is None:
        raise DevclusterError("/proc is not mounted: a cluster needs it")
    folder.parent.mkdir(parents=True, exist_ok=True)
    fresh = folder.with_name(f".{folder.name}.{os.getpid()}")
    fresh.mkdir(mode=0o700)
    try:
        write_json(fresh / "spec.json", spec)
        write_json(fresh / "state.json", State(me, time.time()))
        _write_commands(fresh / "bin", folder, Path(spec.kubernetes), tools)
        if folder.exists():
            _clean_stale(folder, read_state(folder))
        fresh.rename(folder)
    except OSError as error:
        raise DevclusterError(f"the folder {folder} could not be made: {error}") from error
    finally:
        shutil.rmtree(fresh, ignore_errors=True)


def _write_commands(folder: Path, cluster: Path, kubernetes: Path, tools: dict[str, Path]) -> None:
    """Executables for a PATH; without KUBECONFIG in the environment they mean this cluster."""
    folder.mkdir()
    programs = {"kubectl": f"'{kubernetes}' kubectl"} | {name: f"'{path}'" for name, path in tools.items()}
    for name, command in programs.items():
        script = folder / name
        script.write_text(
            f'#!/bin/sh\n: "${{KUBECONFIG:={cluster}/kubeconfig}}"\nexport KUBECONFIG\nexec {command} "$@"\n'
        )
        script.chmod(0o755)


def _start(folder: Path, lock: int | None, progress: Progress) -> None:
    """Starts the keeper and waits until the cluster is ready; whatever interrupts that ends the cluster."""
    try:
        _start_keeper(folder, lock)
        _wait(folder, progress)
    except BaseException:
        if _phase(folder).phase != "failed":  # a failed cluster's logs stay for its reader
            down(folder.name)
        raise


def _start_keeper(folder: Path, lock: int | None) -> None:
    inherited = () if lock is None else (lock,)
    search = os.pathsep.join(filter(None, [str(Path(__file__).parent.parent), os.environ.get("PYTHONPATH", "")]))
    (folder / "log").mkdir()
    with (folder / "log" / "keeper.log").open("ab") as log:
        started = subprocess.run(
            [sys.executable, "-m", "tandem_devcluster.keeper", str(folder), *map(str, inherited)],
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            cwd="/",
            env={**os.environ, "PYTHONPATH": search},
            start_new_session=True,
            pass_fds=inherited,
            check=False,
            timeout=30,
        )
    if started.returncode != 0:
        raise _ended(folder)


def _wait(folder: Path, progress: Progress) -> None:
    deadline = time.monotonic() + START_TIMEOUT_S
    first = read_state(folder)
    with progress.step(f"Starting the cluster '{folder.name}'", lambda: _phase(folder).step):
        while (phase := _phase(folder)).phase == "starting":
            state = read_state(folder)
            if state is None or not alive(state.keeper):
                if first is not None:
                    cleanup.wait_for_end(first.keeper, DOWN_TIMEOUT_S)
                raise _ended(folder)
            if time.monotonic() > deadline:
                raise DevclusterError(f"the cluster was not ready within {START_TIMEOUT_S:.0f} s, at: {phase.step}")
            time.sleep(_POLL_S)
    if phase.phase == "failed":
        raise DevclusterError(f"the cluster '{folder.name}' failed: {phase.step}\nAll logs: {folder}/log")


def _ended(folder: Path) -> DevclusterError:
    words = last_lines(folder / "log" / "keeper.log")
    if words:
        return DevclusterError(f"the cluster's keeper ended; its last log lines:\n{words}")
    return DevclusterError(f"the cluster '{folder.name}' was ended by someone while it started; nothing is left of it")


def _clean_stale(folder: Path, state: State | None) -> None:
    """Removes what a cluster left whose keeper is gone."""
    spec = read_spec(folder)
    if state is not None:
        cleanup.kill(state.supervisor)
    if spec is not None and spec.node:
        with node_lock.free() as free:
            if free:  # else they are another cluster's by now
                network.remove_link()
                cgroups.remove()
    cleanup.remove_folder(folder)


def _phase(folder: Path) -> Phase:
    return read_phase(folder) or Phase("starting")


def _cluster(folder: Path) -> Cluster:
    return Cluster(folder / "kubeconfig", folder.name, folder, folder / "bin")
