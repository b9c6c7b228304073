"""Brings folders of the host into pods: read-only PersistentVolumes, since `restricted` namespaces refuse hostPath.

A PersistentVolume is the administrator's to make, so Pod Security, which judges pods, lets a claim of it pass.
"""

from pathlib import Path
from typing import Any

_SIZE = "1Gi"  # nothing measures a hostPath volume; claim and volume must only agree


def host_volume_manifests(
    namespace: str, name: str, host_path: str | Path, read_only: bool = True
) -> list[dict[str, Any]]:
    """A PersistentVolume `<namespace>-<name>` of the host's folder and the PersistentVolumeClaim `name` bound to it.

    The folder must exist. With `read_only` no pod can write to it, whatever it asks for in its `volumeMounts`, as long
    as it mounts the claim with `readOnly: true`. Raises ValueError when `host_path` is not absolute.
    """
    if not Path(host_path).is_absolute():
        raise ValueError(f"{host_path} is not absolute")
    modes = ["ReadOnlyMany" if read_only else "ReadWriteOnce"]
    volume_name = f"{namespace}-{name}"
    common = {"accessModes": modes, "storageClassName": ""}
    volume = {
        "apiVersion": "v1",
        "kind": "PersistentVolume",
        "metadata": {"name": volume_name},
        "spec": {
            **common,
            "capacity": {"storage": _SIZE},
            "persistentVolumeReclaimPolicy": "Retain",
            "claimRef": {"namespace": namespace, "name": name},
            "hostPath": {"path": str(host_path), "type": "Directory"},
        },
    }
    claim = {
        "apiVersion": "v1",
        "kind": "PersistentVolumeClaim",
        "metadata": {"name": name, "namespace": namespace},
        "spec": {**common, "volumeName": volume_name, "resources": {"requests": {"storage": _SIZE}}},
    }
    return [volume, claim]
