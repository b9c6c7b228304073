"""Small random checkpoints made by transformers, and a link that records: what the engine's tests share."""

import os
import shutil
import sys
from pathlib import Path
from zlib import crc32

import pytest

sys.path.insert(0, str(Path(__file__).parent))

from engine_fakes import RecordingLink

SMALL = {
    "vocab_size": 160,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 1100,
    "initializer_range": 0.15,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 0,
}


def pytest_ignore_collect(collection_path: Path, config: pytest.Config) -> bool | None:
    """Importing torch takes seconds: the tier without torch does not even read the files that need it."""
    if config.option.markexpr != "not torch" or collection_path.suffix != ".py":
        return None
    return True if "pytest.mark.torch" in collection_path.read_text() else None


@pytest.fixture(scope="session", autouse=True)
def one_thread() -> None:
    """The models here are too small for a second thread, which stalls every operation where the CPUs are shared."""
    if "torch" in sys.modules:
        sys.modules["torch"].set_num_threads(1)


@pytest.fixture(scope="session")
def seeds() -> list[int]:
    """Seeds of the property tests; many with TANDEM_SEEDS."""
    return list(range(int(os.environ.get("TANDEM_SEEDS", "3"))))


@pytest.fixture(scope="session")
def make_checkpoint(tmp_path_factory):
    """A folder with a random checkpoint of `architecture`, made once for the same arguments."""
    import torch
    import transformers

    made: dict[str, Path] = {}

    def make(architecture: str, shard: str | None = None, dtype: str = "float32", **overrides) -> Path:
        key = repr((architecture, shard, dtype, sorted(overrides.items(), key=str)))
        if key not in made:
            model_class = getattr(transformers, architecture)
            config = model_class.config_class(**{**SMALL, **overrides})
            torch.manual_seed(crc32(key.encode()))  # the same weights whichever test comes first
            model = model_class(config).to(getattr(torch, dtype))
            with torch.no_grad():
                for parameter_name, parameter in model.named_parameters():
                    if parameter_name.endswith(("bias", "norm.weight")):
                        parameter.add_(torch.randn_like(parameter) * 0.1)
            made[key] = tmp_path_factory.mktemp(architecture)
            model.save_pretrained(made[key], **({"max_shard_size": shard} if shard else {}))
        return made[key]

    return make


@pytest.fixture(scope="session")
def recording_link():
    """The class, to be made with arrivals."""
    return RecordingLink


@pytest.fixture
def a_compiler() -> None:
    """Skips what needs one where there is none."""
    from tandem_server.engine.native.cpu_compiler import COMPILERS

    if not any(map(shutil.which, COMPILERS)):
        pytest.skip("there is no C compiler")


@pytest.fixture(params=["compiled", "torch"])
def kernels(request, monkeypatch) -> str:
    """What computes a fused decoder's steps on a CPU; without a C compiler torch's operators alone do."""
    from tandem_server.engine.native.cpu_compiler import NotCompiled

    if request.param == "torch":

        def missing(_):
            raise NotCompiled("the test asked for torch")

        monkeypatch.setattr("tandem_server.engine.native.cpu_layout.compiled_linear", missing)
    else:
        request.getfixturevalue("a_compiler")
    return request.param


@pytest.fixture(params=["compiled", "torch"])
def draws(request, monkeypatch) -> str:
    """What draws tokens on a CPU; a GPU's sampler is torch's operators too."""
    if request.param == "torch":
        monkeypatch.setattr("tandem_server.engine.native.sampler.compiled_draw", lambda *_: None)
    else:
        request.getfixturevalue("a_compiler")
    return request.param
