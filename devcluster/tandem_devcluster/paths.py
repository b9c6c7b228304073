"""Where things live: binaries and images in the cache folder, clusters in the state folder."""

import os
import re
from pathlib import Path

from tandem_devcluster.errors import DevclusterError

ASSEMBLY = Path(__file__).resolve().parent.parent / "assembly"
_NAME = re.compile(r"[a-z0-9]([a-z0-9-]{0,38}[a-z0-9])?")


def cache_home() -> Path:
    """`${XDG_CACHE_HOME:-~/.cache}/tandem`: everything in it can be made again."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "tandem"


def clusters_home() -> Path:
    """The folder with one folder a cluster; `TANDEM_DEVCLUSTER_HOME` overrides the XDG state folder."""
    override = os.environ.get("TANDEM_DEVCLUSTER_HOME")
    if override:
        return Path(override).absolute()
    return Path(os.environ.get("XDG_STATE_HOME") or Path.home() / ".local" / "state") / "tandem" / "clusters"


def cluster_folder(name: str) -> Path:
    """The folder of the cluster `name`. Raises DevclusterError when the name is no DNS label of at most 40 letters."""
    if not _NAME.fullmatch(name):
        raise DevclusterError(
            f"'{name}' cannot name a cluster: use lower-case letters, digits and '-', at most 40 of them", code=2
        )
    return clusters_home() / name
