"""`tandem plan`: what it says of models that fit, shrink, or need another's room; from folders and from the hub."""

import json
from types import SimpleNamespace

import huggingface_hub
import pytest
from huggingface_hub.errors import NotASafetensorsRepoError
from typer.testing import CliRunner

from tandem_cli.main import app

LLAMA_8B = {
    "architectures": ["LlamaForCausalLM"],
    "hidden_size": 4096,
    "intermediate_size": 14336,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "vocab_size": 128_256,
    "max_position_embeddings": 131_072,
    "dtype": "bfloat16",
}
QWEN_06B = {
    "architectures": ["Qwen3ForCausalLM"],
    "hidden_size": 1024,
    "intermediate_size": 3072,
    "num_hidden_layers": 28,
    "num_attention_heads": 16,
    "num_key_value_heads": 8,
    "head_dim": 128,
    "vocab_size": 151_936,
    "max_position_embeddings": 40_960,
    "tie_word_embeddings": True,
    "dtype": "bfloat16",
}


@pytest.fixture
def folders(tmp_path):
    """Two models of which only `config.json` is there: for a fused decoder that is all that is needed."""
    for name, raw in (("llama", LLAMA_8B), ("qwen", QWEN_06B)):
        (tmp_path / name).mkdir()
        (tmp_path / name / "config.json").write_text(json.dumps(raw))
    return tmp_path


@pytest.fixture
def plan(folders, monkeypatch):
    monkeypatch.chdir(folders)
    monkeypatch.setenv("COLUMNS", "80")

    def run(*arguments: str, code: int = 0) -> str:
        result = CliRunner().invoke(app, ["plan", *arguments])
        assert result.exit_code == code, result.output
        return result.output

    return run


def as_json(plan, *arguments: str, code: int = 0):
    return json.loads(plan(*arguments, "--json", code=code))


def test_the_table_marks_what_fits_within_80_columns(plan):
    text = plan("llama", "--gpu", "24GiB", "--context", "8192")
    lines = text.splitlines()
    assert lines[0] == "llama: LlamaForCausalLM, 8.0 B parameters, BFloat16"
    assert lines[1] == "on GPU with 24.0 GiB, of which 1.2 GiB stay free; made for 131072 tokens"
    assert max(map(len, lines)) <= 80
    four = next(line for line in lines if line.split()[:1] == ["4"]).split()
    assert four[1:3] == ["21.7", "(25.8)"], "8192 tokens fit, 16384 do not"
    assert "4 slots of 8192 tokens fit: 21.7 GiB (weights 15.0 GiB" in text
    assert "Note: 640 MiB are assumed for the driver's context and kernels." in text


def test_every_cell_is_what_a_runner_would_be_granted(plan, monkeypatch):
    assert as_json(plan, "qwen", "--gpu", "24GiB")["keptFree"] == (24 << 30) // 20
    monkeypatch.setattr("tandem_cli.plan.reserve_bytes", lambda size: 0)
    told = as_json(plan, "qwen", "--gpu", "24GiB")
    assert (told["asked"], told["slots"], told["contextLimit"]) == (40_960, 4, 40_960)
    wanted = next(cell for cell in told["table"] if (cell["slots"], cell["context"]) == (4, 40_960))
    assert wanted["bytes"] == told["wantedBytes"] == told["alone"]["bytes"] == sum(told["alone"]["parts"].values())
    assert all(cell["fits"] == (cell["bytes"] <= 24 << 30) for cell in told["table"])
    again = as_json(plan, "qwen", "--gpu", str(told["wantedBytes"]))
    assert again["alone"]["context"] == 40_960
    less = as_json(plan, "qwen", "--gpu", str(told["wantedBytes"] - 1))
    assert 0 < less["alone"]["context"] < 40_960
    assert less["alone"]["neededBytes"] == told["wantedBytes"]


def test_a_context_that_shrinks_is_told_with_the_largest_that_fits(plan):
    text = plan("llama", "--gpu", "24GiB")
    assert "4 slots of 131072 tokens need 82.9 GiB: the context shrinks to 10240." in text
    refused = plan("llama", "--gpu", "24GiB", "--fail", code=3)
    assert "The context does not fit: 4 slots of 131072 tokens need" in refused
    assert "The weights need" in plan("llama", "--gpu", "8GiB", code=3)
    assert "share memory for" in plan("llama", "--gpu", "24GiB", "--context", "16384", "--shared")


def test_who_would_have_to_go_and_what_is_left_while_they_are_in_use(plan):
    text = plan("llama", "--gpu", "24GiB", "--context", "8192", "--with", "qwen")
    assert "qwen: 20.4 GiB (4 x 40960 tokens)" in text
    assert "While nobody uses them: qwen would be unloaded; its context is 8192, as asked." in text
    assert "While they are all in use it waits: it needs 16.6 GiB and 2.4 GiB is free." in text
    two = as_json(plan, "llama", "--gpu", "24GiB", "--gpus", "2", "--context", "8192", "--with", "qwen")
    assert two["with"][0]["device"] == 0
    assert two["besideIdle"]["evicted"] == two["besideBusy"]["evicted"] == []
    assert two["besideBusy"]["context"] == 8192
    full = as_json(plan, "llama", "--gpu", "46GiB", "--context", "32768", "--with", "qwen")
    assert full["besideIdle"]["evicted"] == ["qwen"]
    assert full["besideBusy"]["evicted"] == []
    assert 256 <= full["besideBusy"]["context"] < 32_768
    assert full["besideBusy"]["bytes"] + full["with"][0]["bytes"] <= 46 << 30


def test_residents_of_one_name_are_told_apart_and_those_without_room_are_named(plan):
    told = as_json(plan, "qwen", "--gpu", "24GiB", "--with", "qwen", "--with", "llama")
    assert [one["model"] for one in told["with"]] == ["qwen-2"]
    assert told["withoutRoom"] == ["llama"]


def test_formats_change_the_size(plan):
    sizes = {
        name: as_json(plan, "llama", "--gpu", "200GiB", *options)["weightBytes"]
        for name, options in (
            ("whole", ()),
            ("Int8", ("--quantization", "Int8")),
            ("Int4", ("--quantization", "int4")),
            ("Float32", ("--dtype", "Float32")),
        )
    }
    assert sizes["Float32"] == 2 * sizes["whole"]
    assert sizes["whole"] > 1.7 * sizes["Int8"] > 1.7 * 1.4 * sizes["Int4"]
    halves = [
        as_json(plan, "llama", "--gpu", "200GiB", "--kv-dtype", kind)["bytesPerToken"] for kind in ("auto", "FP8")
    ]
    assert halves[0] == 2 * halves[1]


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("qwen",), "say how much memory there is"),
        (("qwen", "--gpu", "1GiB", "--cpu", "1GiB"), "say how much memory there is"),
        (("qwen", "--cpu", "9GiB", "--gpus", "2"), "say their size by --gpu"),
        (("qwen", "--gpu", "24GiX"), "is no size of memory"),
        (("nowhere", "--gpu", "1GiB"), "there is no folder"),
        (("pvc://claim/folder", "--gpu", "1GiB"), "write a folder, or hf://organisation/name"),
    ],
)
def test_wrong_arguments_are_named(plan, arguments, said):
    assert said in " ".join(plan(*arguments, code=2).replace("│", " ").split())


def test_what_would_not_load_is_told(plan, folders):
    (folders / "qwen" / "config.json").write_text(json.dumps({**QWEN_06B, "quantization_config": {}, "hidden_size": 0}))
    assert "qwen would not load: config.json: hidden_size is 0" in plan("qwen", "--gpu", "9GiB", code=1)


@pytest.fixture
def hub(folders, monkeypatch):
    """A hub with one model: its configuration in a folder, its tensors in metadata."""
    tensor = SimpleNamespace(dtype="F32", shape=[1000, 64], data_offsets=(0, 256_000))
    metadata = SimpleNamespace(files_metadata={"model.safetensors": SimpleNamespace(tensors={"a.weight": tensor})})
    asked: list[tuple[str, str | None]] = []

    def snapshot(name, revision, allow_patterns):
        asked.append((name, revision))
        assert not any("safetensors" in pattern for pattern in allow_patterns), "no weights are fetched"
        return str(folders / "olmo")

    (folders / "olmo").mkdir()
    raw = {**QWEN_06B, "architectures": ["Olmo2ForCausalLM"]}
    (folders / "olmo" / "config.json").write_text(json.dumps(raw))
    monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot)
    monkeypatch.setattr(huggingface_hub.HfApi, "get_safetensors_metadata", lambda *_, **__: metadata)
    return asked


def test_of_a_model_on_the_hub_only_its_configuration_and_headers_are_read(plan, hub):
    told = as_json(plan, "hf://allenai/olmo@main", "--gpu", "24GiB", "--dtype", "Float32")
    assert hub == [("allenai/olmo", "main")]
    assert (told["parameters"], told["weightBytes"]) == (64_000, 256_000)
    assert any("the transformers library computes it" in bound for bound in told["bounds"])


def test_without_a_way_to_the_hub_it_says_what_to_do(plan, monkeypatch, hub):
    def offline(*_, **__):
        raise ConnectionError("no route")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", offline)
    text = " ".join(plan("hf://a/b", "--gpu", "24GiB", code=1).split())
    assert "the hub cannot be reached from here; set HTTPS_PROXY or HF_ENDPOINT" in text
    assert text.endswith("no route")

    def other(*_, **__):
        raise NotASafetensorsRepoError("none")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", other)
    assert "has no safetensors files" in " ".join(plan("hf://a/b", "--gpu", "24GiB", code=1).split())
