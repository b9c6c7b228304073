"""What `tandem plan` reads of a model: its configuration and its tensors' sizes, never its weights.

Of a folder all is at hand. Of a model on the hub `config.json` and the headers of its safetensors files are fetched.
"""

import os
from collections.abc import Mapping
from pathlib import Path

from tandem_cli.names import model_source
from tandem_server.engine.native.headers import Stored

FETCHED = ["config.json", "modules.json", "sentence_bert_config.json", "*_*/config.json"]
OFFLINE = (
    "the hub cannot be reached from here; set HTTPS_PROXY or HF_ENDPOINT, or download the model's config.json and "
    "safetensors files some other way and give their folder"
)


class SourceTrouble(Exception):
    """A source of which nothing can be read; a sentence that says what to do."""


def read_source(text: str) -> tuple[Path, Mapping[str, Stored] | None]:
    """A folder with `config.json`, and the tensors' sizes where the folder has no weights.

    Raises typer.BadParameter for what is no source, SourceTrouble where the hub does not give it.
    """
    source = model_source(text)
    scheme, _, rest = source.partition("://")
    return (Path(rest), None) if scheme == "file" else _from_hub(rest)


def _from_hub(name: str) -> tuple[Path, dict[str, Stored]]:
    from huggingface_hub import HfApi, snapshot_download
    from huggingface_hub.errors import (
        GatedRepoError,
        HFValidationError,
        NotASafetensorsRepoError,
        RepositoryNotFoundError,
    )

    repository, _, revision = name.partition("@")
    try:
        folder = Path(snapshot_download(repository, revision=revision or None, allow_patterns=FETCHED))
        metadata = HfApi().get_safetensors_metadata(repository, revision=revision or None)
    except GatedRepoError:
        raise SourceTrouble(
            f"hf://{name} is for accounts that accepted its terms: set HF_TOKEN to such a token"
        ) from None
    except RepositoryNotFoundError:
        raise SourceTrouble(f"the hub has no model {name}, or wants a token for it (HF_TOKEN)") from None
    except NotASafetensorsRepoError:
        raise SourceTrouble(f"hf://{name} has no safetensors files, and nothing else is read") from None
    except HFValidationError as error:
        raise SourceTrouble(f"hf://{name} is not of the form hf://organisation/name: {error}") from None
    except OSError as error:  # the library's own errors of the network are among them
        where = os.environ.get("HF_ENDPOINT")
        cause = next(iter(str(error).splitlines()), type(error).__name__).rstrip(".")
        raise SourceTrouble(f"{OFFLINE}{f' (HF_ENDPOINT is {where})' if where else ''}. {cause}") from None
    sizes = {
        tensor: Stored(info.dtype, tuple(info.shape), info.data_offsets[1] - info.data_offsets[0])
        for file in metadata.files_metadata.values()
        for tensor, info in file.tensors.items()
    }
    return folder, sizes
