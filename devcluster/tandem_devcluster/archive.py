"""Writes a container image as a docker-archive file: a tar with a manifest, a configuration and one layer."""

import hashlib
import io
import json
import os
import platform
import tarfile
from collections.abc import Iterable
from pathlib import Path
from typing import Any

_ARCHITECTURES = {"x86_64": "amd64", "aarch64": "arm64"}


def architecture(machine: str) -> str:
    """The name that images use for the machine's architecture."""
    return _ARCHITECTURES.get(machine, machine)


def configuration(settings: dict[str, Any], layer_digest: str, machine: str) -> bytes:
    """The image's configuration: what runs by default, as whom, and the digest of the uncompressed layer."""
    value = {
        "architecture": architecture(machine),
        "os": "linux",
        "config": settings,
        "rootfs": {"type": "layers", "diff_ids": [f"sha256:{layer_digest}"]},
    }
    return json.dumps(value, sort_keys=True).encode()


def write_archive(target: Path, name: str, layer: Path, settings: dict[str, Any]) -> None:
    """Writes the image `name` with the one layer (an uncompressed tar) to `target`, which appears when complete."""
    with layer.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    config = configuration(settings, digest, platform.machine())
    config_name = f"{hashlib.sha256(config).hexdigest()}.json"
    manifest = [{"Config": config_name, "RepoTags": [name], "Layers": ["layer.tar"]}]
    temporary = target.with_name(f".{target.name}.{os.getpid()}")
    try:
        with tarfile.open(temporary, "w") as archive:
            _add(archive, config_name, config)
            _add(archive, "manifest.json", json.dumps(manifest).encode())
            archive.add(layer, "layer.tar", filter=_neutral)
        temporary.rename(target)
    finally:
        temporary.unlink(missing_ok=True)


def write_layer(target: Path, files: Iterable[tuple[str, Path]]) -> None:
    """Writes an uncompressed tar of (name inside, file or folder here), owned by root; folders with all below."""
    with tarfile.open(target, "w") as layer:
        for name, source in files:
            layer.add(source, name, filter=_neutral)


def _neutral(entry: tarfile.TarInfo) -> tarfile.TarInfo:
    entry.uid = entry.gid = 0
    entry.uname = entry.gname = ""
    entry.mtime = 0
    return entry


def _add(archive: tarfile.TarFile, name: str, data: bytes) -> None:
    entry = tarfile.TarInfo(name)
    entry.size = len(data)
    archive.addfile(entry, io.BytesIO(data))
