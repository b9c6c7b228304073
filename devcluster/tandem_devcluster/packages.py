"""The system packages that a cluster needs: named, and installed where that can be done without a question."""

import os
import shutil
import subprocess
from pathlib import Path

from tandem_devcluster.errors import DevclusterError
from tandem_devcluster.progress import Progress

# What has to exist (a command, or one of several files) -> the Debian package that brings it.
CONTROL_PLANE = {"openssl": "openssl"}
NODE = {
    "openssl": "openssl",
    "containerd": "containerd",
    "ctr": "containerd",
    "runc": "runc",
    "/usr/lib/cni/bridge": "containernetworking-plugins",
    "nft": "nftables",
    "ip": "iproute2",
    "nsenter": "util-linux",
    "mount": "mount",
}
IMAGE = {"mmdebstrap": "mmdebstrap", "/etc/ssl/certs/ca-certificates.crt": "ca-certificates"}
_TIMEOUT_S = 900
_SYSTEM_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"


def missing(needed: dict[str, str]) -> list[str]:
    """The packages of those entries of `needed` that this machine lacks, each once."""

    def present(entry: str) -> bool:
        return Path(entry).exists() if entry.startswith("/") else shutil.which(entry, path=_SYSTEM_PATH) is not None

    return list(dict.fromkeys(package for entry, package in needed.items() if not present(entry)))


def provide(needed: dict[str, str], progress: Progress) -> None:
    """Installs what is missing with apt-get as root. Raises DevclusterError that names the packages otherwise."""
    packages = missing(needed)
    if not packages:
        return
    names = " ".join(packages)
    if os.geteuid() != 0 or shutil.which("apt-get") is None:
        raise DevclusterError(
            f"this machine lacks {names}: install them (Debian, Ubuntu: `sudo apt-get install {names}`)"
        )
    with progress.step(f"Installing {names} with apt-get, which the cluster needs"):
        result = _apt("install", *packages)
        if result.returncode != 0:  # the package lists may be absent or old
            _apt("update")
            result = _apt("install", *packages)
    left = missing(needed)
    if left:
        reason = "\n".join(result.stderr.strip().splitlines()[-5:])
        raise DevclusterError(f"apt-get could not install {' '.join(left)}: install them and try again\n{reason}")
    if "containerd" in packages and shutil.which("systemctl"):
        # A service of its own would only take memory: the cluster runs the program under its supervisor.
        subprocess.run(["systemctl", "disable", "containerd"], capture_output=True, check=False, timeout=60)


def _apt(command: str, *packages: str) -> subprocess.CompletedProcess[str]:
    """apt-get, with systemd hidden from the packages' scripts, so that none of them starts a service."""
    hidden = "[ ! -d /run/systemd ] || mount -t tmpfs tmpfs /run/systemd"
    options = ["-qq", "-o", "DPkg::Lock::Timeout=300", "-o", "APT::Install-Recommends=false", "--yes"]
    return subprocess.run(
        ["unshare", "--mount", "sh", "-c", f'{hidden}; exec "$@"', "sh", "apt-get", *options, command, *packages],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
        timeout=_TIMEOUT_S,
        env={**os.environ, "DEBIAN_FRONTEND": "noninteractive", "PATH": _SYSTEM_PATH},
    )
