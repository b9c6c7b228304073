"""The development image: the machine's own Debian or Ubuntu at its smallest, with Python and nothing of ours in it.

Its /usr/bin/python3 is the machine's, so a virtual environment made by the machine's /usr/bin/python3 works in it when
it is mounted at the same path. Made by `up --node` once a machine, without a registry and without a container engine.
"""

import hashlib
import os
import platform
import shutil
import subprocess
import tempfile
from pathlib import Path

from tandem_devcluster import archive, locks, packages, paths
from tandem_devcluster.errors import DevclusterError
from tandem_devcluster.progress import Progress

NAME = "tandem.dev/dev:1"
USER = 10001
PYTHON = "/usr/bin/python3"
MINIMUM = (3, 11)
PACKAGES = (
    "python3",
    "libstdc++6",
    "zlib1g",
    "dash",
    "coreutils",
    "grep",
    "base-files",
    "netbase",
    "tzdata",
    "libc-bin",
)
_BUNDLE = Path("/etc/ssl/certs/ca-certificates.crt")
_TRIMMED = (
    *("usr/share/doc", "usr/share/man", "usr/share/info", "usr/share/locale", "usr/share/lintian", "usr/share/bug"),
    *("usr/share/doc-base", "usr/share/i18n", "usr/lib/python3/dist-packages/lib2to3"),
    *("var/cache/apt", "var/lib/apt", "var/lib/dpkg/info", "var/log", "dev", "proc", "sys"),
)
_SETTINGS = {
    "User": f"{USER}:{USER}",
    "WorkingDir": "/tmp",  # noqa: S108 - the image's
    "Env": [
        "PATH=/usr/local/bin:/usr/bin:/bin:/usr/sbin:/sbin",
        "HOME=/tmp",
        "LANG=C.UTF-8",
        f"SSL_CERT_FILE={_BUNDLE}",
    ],
    "Cmd": [PYTHON],
}
_VERSION = "2"  # of what this module makes of the packages
_TIMEOUT_S = 900


def dev_image(progress: Progress | None = None) -> tuple[Path, str]:
    """(docker-archive file, image name); made first when it is not in the cache. Raises DevclusterError."""
    progress = progress or Progress(quiet=True)
    release = _release()
    sources = _sources(release)
    version = _python_version()
    if version < MINIMUM:
        shown = ".".join(map(str, version))
        raise DevclusterError(f"{PYTHON} is Python {shown}, but pods need 3.11: use a newer Debian or Ubuntu")
    parts = (_VERSION, *PACKAGES, *(file.read_text() for file in sources), repr(version), platform.machine())
    target = paths.cache_home() / "images" / f"dev-{key(parts)}.tar"
    if target.exists():
        return target, NAME
    packages.provide(packages.IMAGE, progress)
    target.parent.mkdir(parents=True, exist_ok=True)
    with (
        progress.step("Making the development image from this machine's Debian or Ubuntu packages (about 30 s)"),
        locks.locked(target.with_name(f".{target.name}.lock"), _TIMEOUT_S),
        tempfile.TemporaryDirectory(dir=target.parent, prefix=".dev-") as folder,
    ):
        if not target.exists():
            _make(Path(folder), target, release["VERSION_CODENAME"], sources)
    return target, NAME


def key(parts: tuple[str, ...]) -> str:
    """Names one image by what it is made of. 16 hexadecimal digits."""
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()[:16]


def _make(work: Path, target: Path, suite: str, sources: list[Path]) -> None:
    root, layer = work / "root", work / "layer.tar"
    _bootstrap(work, root, suite, sources)
    for name in _TRIMMED:
        shutil.rmtree(root / name, ignore_errors=True)
    _finish(root)
    # Debian compiles the library when it installs a package; these were only unpacked, and a pod cannot write there.
    arguments = ["-m", "compileall", "-q", "-j", "0", "--invalidation-mode", "unchecked-hash"]
    _run([PYTHON, *arguments, "-s", str(root), "-p", "/", str(next((root / "usr/lib").glob("python3.*")))], work)
    archive.write_layer(layer, [(entry.name, entry) for entry in sorted(root.iterdir())])
    archive.write_archive(target, NAME, layer, _SETTINGS)


def _bootstrap(work: Path, root: Path, suite: str, sources: list[Path]) -> None:
    settings = subprocess.run(["apt-config", "dump"], capture_output=True, text=True, check=True, timeout=60).stdout
    chosen = [line for line in settings.splitlines() if line.startswith(("Acquire::http", "Acquire::Check"))]
    apt = work / "apt.conf"
    apt.write_text("\n".join(chosen) + "\n")
    _run(
        [
            *["unshare", "--mount", "mmdebstrap", "--quiet", "--variant=extract", "--format=directory"],
            *[f"--include={','.join(PACKAGES)}", f"--aptopt={apt}", suite, str(root), *map(str, sources)],
        ],
        work,
    )


def _finish(root: Path) -> None:
    """Writes what the packages' scripts would have, and who the user is."""
    etc = root / "etc"
    files = {
        "passwd": f"root:x:0:0:root:/root:/bin/sh\nnonroot:x:{USER}:{USER}:nonroot:/tmp:/bin/sh\n",
        "group": f"root:x:0:\nnonroot:x:{USER}:\n",
        "nsswitch.conf": "passwd: files\ngroup: files\nhosts: files dns\n",
        "ssl/certs/ca-certificates.crt": _BUNDLE.read_text(),
    }
    (etc / "ssl" / "certs").mkdir(parents=True, exist_ok=True)
    for name, text in files.items():
        (etc / name).write_text(text)
        (etc / name).chmod(0o644)
    for name in ("hostname", "resolv.conf"):  # the build machine's
        (etc / name).unlink(missing_ok=True)
    for name in ("tmp", "proc", "sys", "dev", "var/log", "etc/ssl", "etc/ssl/certs"):
        (root / name).mkdir(exist_ok=True)
        (root / name).chmod(0o1777 if name == "tmp" else 0o755)


def _run(command: list[str], work: Path) -> None:
    environment = {**os.environ, "TMPDIR": str(work)}
    result = subprocess.run(
        command, capture_output=True, text=True, check=False, timeout=_TIMEOUT_S, cwd=work, env=environment, umask=0o022
    )
    if result.returncode != 0:
        words = "\n".join((result.stderr or result.stdout).strip().splitlines()[-10:])
        raise DevclusterError(f"the development image could not be made: `apt-get update` has to work here\n{words}")


def _release() -> dict[str, str]:
    release = platform.freedesktop_os_release()
    if release.get("ID") not in {"debian", "ubuntu"} or "VERSION_CODENAME" not in release:
        raise DevclusterError(
            f"the development image is made of Debian or Ubuntu packages, and this is {release.get('NAME')}: "
            "run on one of them, or use a cluster of your own"
        )
    return release


def _sources(release: dict[str, str]) -> list[Path]:
    """The distribution's own package sources; those of others have no part in the image."""
    folder = Path("/etc/apt")
    candidates = [folder / "sources.list.d" / f"{release['ID']}.sources", folder / "sources.list"]
    found = [file for file in candidates if file.is_file() and _has_source(file.read_text())]
    if not found:
        raise DevclusterError(f"neither {candidates[0]} nor {candidates[1]} names a package source")
    return found[:1]


def _has_source(text: str) -> bool:
    return any(line.startswith(("deb ", "Types:")) for line in text.splitlines())


def _python_version() -> tuple[int, ...]:
    shown = subprocess.run(
        [PYTHON, "-c", "import sys; print(*sys.version_info[:3])"], capture_output=True, text=True, check=False
    )
    if shown.returncode != 0:
        raise DevclusterError(f"{PYTHON} is missing: install python3, which the development image is a copy of")
    return tuple(map(int, shown.stdout.split()))
