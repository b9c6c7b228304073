"""The node's mount namespace: covers the fixed paths that Kubernetes writes to, so that the host's stay untouched.

The supervisor calls `isolate` first of all. Everything made here vanishes with the namespace.
"""

import os
from pathlib import Path

from tandem_devcluster import kernel
from tandem_devcluster.node_config import KUBELET_ROOT, RUNTIME

# Fixed paths of kubelet, containerd and CNI plugins, whatever their root folders are set to.
COVERED = {
    Path("/run"): ("containerd", "netns", "cni", "nri", "tandem"),
    Path("/var/lib"): ("kubelet", "cni"),
    Path("/var/log"): ("containers", "pods"),
}
# What a kubelet wants the kernel's settings to be. They are the whole machine's, so it gets to see files instead.
SHOWN_SETTINGS = {
    "vm/overcommit_memory": "1",
    "vm/panic_on_oom": "0",
    "kernel/panic": "10",
    "kernel/panic_on_oops": "1",
    "kernel/keys/root_maxkeys": "1000000",
    "kernel/keys/root_maxbytes": "25000000",
}
_IMAGES_SIZE = "8g"  # an upper bound: a tmpfs takes what is in it


def isolate(folder: Path) -> None:
    """Makes the calling process' mount namespace the node's; `folder` is the cluster's. Raises OSError."""
    # Mounts made by the host later still arrive here; none of ours ever reaches the host.
    kernel.mount("none", "/", flags=kernel.MS_REC | kernel.MS_SLAVE)
    kernel.mount("none", "/", flags=kernel.MS_REC | kernel.MS_SHARED)
    kernel.mount("proc", "/proc", "proc", kernel.MS_NOSUID | kernel.MS_NODEV)
    for parent, names in COVERED.items():
        cover(parent, names)
    images = RUNTIME / "images"
    images.mkdir()
    kernel.mount("tandem-images", str(images), "tmpfs", data=f"size={_IMAGES_SIZE},mode=0711")
    volumes = folder / "kubelet"  # on disk: it holds the pods' emptyDir volumes
    volumes.mkdir(exist_ok=True)
    kernel.mount(str(volumes), str(KUBELET_ROOT), flags=kernel.MS_BIND)
    _show_settings(RUNTIME / "settings")


def cover(parent: Path, names: tuple[str, ...]) -> None:
    """Gives each of `names` in `parent` an empty folder in memory, everything else staying as it is.

    A name that the host lacks has nothing to mount upon, and making it would touch the host. So the parent itself is
    replaced by a folder in memory, into which each of its other entries is bound.
    """
    if all((parent / name).is_dir() for name in names):
        for name in names:
            kernel.mount("tandem", str(parent / name), "tmpfs", data="mode=0755")
        return
    entries = [entry for entry in os.scandir(parent) if entry.name not in names]
    original = os.open(parent, os.O_PATH | os.O_DIRECTORY)
    try:
        kernel.mount("tandem", str(parent), "tmpfs", data="mode=0755")
        for entry in entries:
            _bind(Path(f"/proc/self/fd/{original}") / entry.name, parent / entry.name)
    finally:
        os.close(original)
    for name in names:
        (parent / name).mkdir()


def _bind(source: Path, target: Path) -> None:
    if source.is_symlink():
        target.symlink_to(source.readlink())
        return
    if source.is_dir():
        target.mkdir()
    else:
        target.touch()
    kernel.mount(str(source), str(target), flags=kernel.MS_BIND | kernel.MS_REC)


def _show_settings(folder: Path) -> None:
    folder.mkdir()
    for name, value in SHOWN_SETTINGS.items():
        setting = Path("/proc/sys") / name
        if not setting.exists():
            continue
        file = folder / name.replace("/", ".")
        file.write_text(f"{value}\n")
        kernel.mount(str(file), str(setting), flags=kernel.MS_BIND)
