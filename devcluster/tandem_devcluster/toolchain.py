"""Builds the programs of a cluster from Go modules, each once a machine: the slow first step of `cluster.up`.

A program lies in the cache folder as `bin/<name>-<key>`; the key covers its sources, flags, Go and architecture.
"""

import hashlib
import os
import platform
import subprocess
from dataclasses import dataclass
from pathlib import Path

from tandem_devcluster import golang, locks, paths
from tandem_devcluster.errors import DevclusterError
from tandem_devcluster.progress import Progress

KUBERNETES = "v1.34.2"
HELM = "v3.21.4"
_STRIP = "-s -w"
_BUILD_TIMEOUT_S = 3600.0
_SHOWN_LINES = 15


@dataclass(frozen=True)
class Program:
    """One program: its folder in `assembly/`, what is built there, the linker's flags, and what to expect."""

    name: str
    package: str
    ldflags: str
    expectation: str


PROGRAMS = {
    program.name: program
    for program in (
        Program(
            "kubernetes",
            ".",
            f"{_STRIP} -X k8s.io/component-base/version.gitVersion={KUBERNETES}",
            "the first build takes 5 to 12 minutes on 2 cores",
        ),
        Program("coredns", ".", _STRIP, "the first build takes 1 to 3 minutes on 2 cores"),
        Program(
            "helm",
            "helm.sh/helm/v3/cmd/helm",
            f"{_STRIP} -X helm.sh/helm/v3/internal/version.version={HELM}"
            " -X helm.sh/helm/v3/pkg/chartutil.k8sVersionMajor=1"
            f" -X helm.sh/helm/v3/pkg/chartutil.k8sVersionMinor={KUBERNETES.split('.')[1]}",
            "the first build takes 1 to 5 minutes on 2 cores",
        ),
        Program("kwok", "sigs.k8s.io/kwok/cmd/kwok", _STRIP, "the first build takes 1 to 5 minutes on 2 cores"),
        Program("pause", ".", _STRIP, "a few seconds"),
    )
}


def key(sources: dict[str, bytes], program: Program, go_version: str, machine: str) -> str:
    """Names one build: equal inputs give the equal key, any difference another. 16 hexadecimal digits."""
    digest = hashlib.sha256()
    for part in (program.name, program.package, program.ldflags, go_version, machine):
        digest.update(f"{len(part)}:{part}".encode())
    for name in sorted(sources):
        digest.update(f"{len(name)}:{name}{len(sources[name])}:".encode() + sources[name])
    return digest.hexdigest()[:16]


def provide(name: str, progress: Progress) -> Path:
    """The executable file of the program `name`, built first when it is not in the cache.

    Raises DevclusterError with the compiler's last lines. Two runs at once build once: the second waits.
    """
    program, folder = PROGRAMS[name], paths.ASSEMBLY / name
    if not folder.is_dir():
        raise DevclusterError(f"{folder} is missing: run from a checkout of the project, not from an installed wheel")
    sources = {file.name: file.read_bytes() for file in folder.iterdir() if file.suffix in {".go", ".mod", ".sum"}}
    go = golang.find(golang.wanted(sources["go.mod"].decode()))
    home = paths.cache_home() / "bin"
    target = home / f"{name}-{key(sources, program, go.version, platform.machine())}"
    if target.exists():
        return target
    home.mkdir(parents=True, exist_ok=True)
    go = golang.provide(go, progress)
    log = home / f"{target.name}.log"
    try:
        with (
            progress.step(f"Building {name}: {program.expectation}", lambda: _compiled(log)),
            locks.locked(home / f".{target.name}.lock", _BUILD_TIMEOUT_S),
        ):
            if not target.exists():
                _build(program, folder, go, target, log)
    except (TimeoutError, subprocess.TimeoutExpired) as error:
        raise DevclusterError(f"building {name} took too long ({error}): run the same command again") from error
    return target


def _build(program: Program, folder: Path, go: golang.Go, target: Path, log: Path) -> None:
    temporary = target.with_name(f".{target.name}.{os.getpid()}")
    command = [go.command, "build", "-v", "-buildvcs=false", "-ldflags", program.ldflags, "-o", str(temporary)]
    environment = {**os.environ, "CGO_ENABLED": "0", "GOTOOLCHAIN": "local", "GOFLAGS": "", "GOWORK": "off"}
    try:
        with log.open("w") as output:
            result = subprocess.run(
                ["nice", "-n", "10", *command, program.package],
                cwd=folder,
                env=environment,
                stdout=output,
                stderr=subprocess.STDOUT,
                check=False,
                timeout=_BUILD_TIMEOUT_S,
            )
        if result.returncode != 0:
            raise DevclusterError(failure(program.name, log.read_text(errors="replace")))
        temporary.rename(target)
        log.unlink()
    finally:
        temporary.unlink(missing_ok=True)


def failure(name: str, log: str) -> str:
    """What a failed build tells: the compiler's last lines and what can be done about each usual reason."""
    last = [line for line in log.splitlines() if line.strip()][-_SHOWN_LINES:]
    text = "\n".join(last)
    if "no space left" in text:
        advice = "free about 6 GB where GOCACHE, GOMODCACHE and the temporary folder lie"
    elif "signal: killed" in text:
        advice = "the compiler ran out of memory: free 3 GB, or set GOFLAGS=-p=1 in `go env -w`"
    elif "dial tcp" in text or "lookup " in text or "connection refused" in text:
        advice = "the Go module proxy cannot be reached: check the network, HTTPS_PROXY and GOPROXY"
    else:
        advice = "read the compiler's last lines below; `go clean -cache` rules out a damaged build cache"
    return f"building {name} failed: {advice}; then run the same command again\n{text}"


def _compiled(log: Path) -> str:
    try:
        lines = log.read_text(errors="replace").splitlines()
    except OSError:
        return "waiting for another run that builds it"
    loaded = sum(line.startswith("go: downloading") for line in lines)
    return f"{loaded} modules loaded, {len(lines) - loaded} packages compiled"
