"""Starts a cluster: what has to exist first, its folder, its keeper, and the wait until it is ready.

The half of `cluster.up` that is not its public face. `clean_stale` is the other end: what a killed keeper left.
"""

import os
import shutil
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tandem_devcluster import (
    cgroups,
    cleanup,
    dev_image,
    network,
    node_lock,
    packages,
    pause_image,
    ports,
    toolchain,
)
from tandem_devcluster.children import last_lines
from tandem_devcluster.errors import DevclusterError
from tandem_devcluster.progress import Progress
from tandem_devcluster.state import Phase, Spec, State, alive, identify, read_phase, read_spec, read_state, write_json

START_TIMEOUT_S = 300.0
END_TIMEOUT_S = 60.0
_POLL_S = 0.05


@dataclass(frozen=True)
class Wish:
    """What kind of cluster somebody asks for; see `cluster.up`."""

    node: bool = False
    qps: int = 100
    fake_nodes: int = 0
    api_flags: tuple[str, ...] = ()


def specify(name: str, wish: Wish, progress: Progress) -> Spec:
    """Makes everything that has to exist before a cluster can start."""
    if wish.node and wish.fake_nodes:
        raise DevclusterError("a cluster has either a node that runs pods or fake ones: leave out one of the two")
    more: dict[str, Any] = {"qps": wish.qps, "api_flags": list(wish.api_flags)}
    if not wish.node:
        packages.provide(packages.CONTROL_PLANE, progress)
        kubernetes = toolchain.provide("kubernetes", progress)
        if wish.fake_nodes:
            more |= {"fake_nodes": wish.fake_nodes, "kwok": str(toolchain.provide("kwok", progress))}
        return Spec(name, False, str(kubernetes), ports=ports.choose(["api", "etcd", "peer"]), **more)
    if os.geteuid() != 0:
        raise DevclusterError("a cluster with a node needs root: run the same command with sudo, or without --node")
    packages.provide(packages.NODE, progress)
    kubernetes, coredns = toolchain.provide("kubernetes", progress), toolchain.provide("coredns", progress)
    images = [str(pause_image.provide(progress)), str(dev_image.dev_image(progress)[0])]
    return Spec(name, True, str(kubernetes), str(coredns), images, **more)


def create(folder: Path, spec: Spec) -> None:
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
        write_commands(fresh / "bin", folder, {"kubectl": f"'{spec.kubernetes}' kubectl"})
        if folder.exists():
            clean_stale(folder, read_state(folder))
        fresh.rename(folder)
    except OSError as error:
        raise DevclusterError(f"the folder {folder} could not be made: {error}") from error
    finally:
        shutil.rmtree(fresh, ignore_errors=True)


def write_commands(folder: Path, cluster: Path, programs: dict[str, str]) -> None:
    """Executables for a PATH: (name, shell words). Without KUBECONFIG in the environment they mean this cluster."""
    folder.mkdir(exist_ok=True)
    for name, command in programs.items():
        script = folder / name
        script.write_text(
            f'#!/bin/sh\n: "${{KUBECONFIG:={cluster}/kubeconfig}}"\nexport KUBECONFIG\nexec {command} "$@"\n'
        )
        script.chmod(0o755)


def run(folder: Path, lock: int | None, progress: Progress) -> None:
    """Starts the keeper and waits until the cluster is ready; whatever interrupts that ends the cluster."""
    try:
        _start_keeper(folder, lock)
        _wait(folder, progress)
    except BaseException:
        if phase_of(folder).phase != "failed":
            end(folder)
        elif (state := read_state(folder)) is not None:  # its keeper cleans up; the logs stay for their reader
            cleanup.wait_for_end(state.keeper, END_TIMEOUT_S)
        raise


def end(folder: Path) -> None:
    """Ends a cluster, running or not, and removes everything of it."""
    state = read_state(folder)
    if state is not None and alive(state.keeper) and state.keeper.pid != os.getpid():
        cleanup.stop(state.keeper, END_TIMEOUT_S)
    clean_stale(folder, state)


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
    with progress.step(f"Starting the cluster '{folder.name}'", lambda: phase_of(folder).step):
        while (phase := phase_of(folder)).phase == "starting":
            state = read_state(folder)
            if state is None or not alive(state.keeper):
                if first is not None:
                    cleanup.wait_for_end(first.keeper, END_TIMEOUT_S)
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


def clean_stale(folder: Path, state: State | None) -> None:
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


def phase_of(folder: Path) -> Phase:
    """How far the cluster is; before the supervisor's first word it is starting."""
    return read_phase(folder) or Phase("starting")
