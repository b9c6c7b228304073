"""What the demo takes from this machine."""

import os
from pathlib import Path

import pytest

from tandem_cli.demo import assets, choose
from tandem_cli.demo.commands import run
from tandem_cli.demo.story import DemoError


@pytest.mark.parametrize(
    ("source", "name"),
    [
        ("hf://Qwen/Qwen3-0.6B", "qwen3-0-6b"),
        ("hf://org/My_Model.v2-", "my-model-v2"),
        ("hf://org/" + "a" * 60, "a" * 40),
    ],
)
def test_hub_name_is_a_valid_name_of_a_model(source: str, name: str) -> None:
    assert assets.hub_name(source) == name


def test_copy_replaces_only_what_changed(tmp_path: Path) -> None:
    source, target = tmp_path / "source", tmp_path / "target"
    (source / "sub").mkdir(parents=True)
    (source / "a.json").write_text("one")
    (source / "sub" / "b.json").write_text("two")
    (source / ".hidden").write_text("no")
    assets._copy(source, target)
    assert sorted(p.relative_to(target).as_posix() for p in target.rglob("*") if p.is_file()) == [
        "a.json",
        "sub/b.json",
    ]
    kept = (target / "sub" / "b.json").stat().st_ino
    (source / "a.json").write_text("longer")
    assets._copy(source, target)
    assert (target / "a.json").read_text() == "longer"
    assert (target / "sub" / "b.json").stat().st_ino == kept


def test_without_root_and_docker_the_message_names_tandem_serve(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    monkeypatch.setattr(choose, "docker_answers", lambda: False)
    with pytest.raises(DemoError, match=r"tandem serve --device CPU --model .*python-coder"):
        choose.choose("auto")


def test_current_without_an_image_says_what_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("IMAGE", raising=False)
    with pytest.raises(DemoError, match="IMAGE=registry/name:tag"):
        choose.choose("current")


def test_unknown_cluster_names_the_known_ones() -> None:
    with pytest.raises(DemoError, match="auto, node, kind, current"):
        choose.choose("minikube")


def test_a_failing_command_tells_its_complaint() -> None:
    with pytest.raises(DemoError, match=r"`sh -c .*` failed: no such thing"):
        run(["sh", "-c", "echo no such thing >&2; exit 3"])
    with pytest.raises(DemoError, match="is not installed"):
        run(["tandem-no-such-command"])
