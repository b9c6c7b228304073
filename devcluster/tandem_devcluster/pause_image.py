"""The pause image, whose one program holds each pod's namespaces: made once a machine, imported by `up --node`."""

import tempfile
from pathlib import Path

from tandem_devcluster import archive, paths, toolchain
from tandem_devcluster.node_config import PAUSE_IMAGE
from tandem_devcluster.progress import Progress


def provide(progress: Progress) -> Path:
    """The docker-archive of the image, made first when it is not in the cache."""
    program = toolchain.provide("pause", progress)
    target = paths.cache_home() / "images" / f"{program.name}.tar"
    if not target.exists():
        target.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=target.parent) as folder:
            layer = Path(folder) / "layer.tar"
            archive.write_layer(layer, [("pause", program)])
            archive.write_archive(target, PAUSE_IMAGE, layer, {"Entrypoint": ["/pause"], "User": "65535:65535"})
    return target
