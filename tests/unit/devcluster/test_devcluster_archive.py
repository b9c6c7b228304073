"""The docker-archive that is written without a container engine, and what the development image is made of."""

import hashlib
import json
import tarfile
from pathlib import Path

import pytest

from tandem_devcluster import archive, dev_image
from tandem_devcluster.errors import DevclusterError


@pytest.fixture
def image(tmp_path: Path) -> Path:
    root = tmp_path / "root"
    (root / "bin").mkdir(parents=True)
    (root / "bin" / "tool").write_text("#!/bin/sh\n")
    (root / "bin" / "tool").chmod(0o755)
    (root / "bin" / "link").symlink_to("tool")
    archive.write_layer(tmp_path / "layer.tar", [("bin", root / "bin")])
    archive.write_archive(tmp_path / "image.tar", "example/tool:1", tmp_path / "layer.tar", {"User": "7:7"})
    return tmp_path / "image.tar"


def test_manifest_configuration_and_layer_name_each_other(image: Path, tmp_path: Path) -> None:
    with tarfile.open(image) as opened:
        (manifest,) = json.loads(opened.extractfile("manifest.json").read())  # type: ignore[union-attr]
        config = opened.extractfile(manifest["Config"]).read()  # type: ignore[union-attr]
        (layer_name,) = manifest["Layers"]
        layer = opened.extractfile(layer_name).read()  # type: ignore[union-attr]
    assert manifest["RepoTags"] == ["example/tool:1"]
    assert manifest["Config"] == f"{hashlib.sha256(config).hexdigest()}.json"
    value = json.loads(config)
    assert value["rootfs"]["diff_ids"] == [f"sha256:{hashlib.sha256(layer).hexdigest()}"]
    assert value["config"] == {"User": "7:7"}
    assert sorted(path.name for path in tmp_path.iterdir()) == ["image.tar", "layer.tar", "root"]


def test_the_layer_belongs_to_root_and_to_no_time(image: Path, tmp_path: Path) -> None:
    with tarfile.open(tmp_path / "layer.tar") as layer:
        entries = {entry.name: entry for entry in layer}
    assert set(entries) == {"bin", "bin/tool", "bin/link"}
    assert entries["bin/tool"].mode == 0o755
    assert entries["bin/link"].linkname == "tool"
    assert {(entry.uid, entry.gid, entry.mtime) for entry in entries.values()} == {(0, 0, 0)}


def test_the_same_files_give_the_same_image(image: Path, tmp_path: Path) -> None:
    again = tmp_path / "again.tar"
    archive.write_archive(again, "example/tool:1", tmp_path / "layer.tar", {"User": "7:7"})
    with tarfile.open(image) as first, tarfile.open(again) as second:
        assert first.getnames()[0] == second.getnames()[0]


@pytest.mark.parametrize(("machine", "name"), [("x86_64", "amd64"), ("aarch64", "arm64"), ("riscv64", "riscv64")])
def test_architectures(machine: str, name: str) -> None:
    assert archive.architecture(machine) == name


def test_the_key_of_the_development_image() -> None:
    assert dev_image.key(("a", "bc")) != dev_image.key(("ab", "c"))
    assert dev_image.key(("a",)) == dev_image.key(("a",))


def test_an_old_python_and_another_distribution_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dev_image.platform, "freedesktop_os_release", lambda: {"ID": "fedora", "NAME": "Fedora"})
    with pytest.raises(DevclusterError, match="this is Fedora"):
        dev_image.dev_image()
    monkeypatch.setattr(dev_image, "_release", lambda: {"ID": "debian", "VERSION_CODENAME": "x"})
    monkeypatch.setattr(dev_image, "_sources", lambda _release: [])
    monkeypatch.setattr(dev_image, "_python_version", lambda: (3, 10, 4))
    with pytest.raises(DevclusterError, match=r"is Python 3\.10\.4, but pods need 3\.11"):
        dev_image.dev_image()
