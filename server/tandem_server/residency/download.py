"""Downloads a model from the hub: `python -m tandem_server.residency.download ORG/NAME REVISION CACHE`.

A process of its own, started by `source`. It tells its progress as JSON lines on standard output, the last of which
is the folder or the error. Only weights as safetensors, configuration, tokenizer and template files are fetched:
nothing that could hold code. What is there already, or half there, is not fetched again.
"""

import fnmatch
import json
import os
import sys
import threading
from pathlib import Path

from huggingface_hub import HfApi, snapshot_download
from huggingface_hub.errors import (
    GatedRepoError,
    LocalEntryNotFoundError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)

PATTERNS = ["*.safetensors", "*.json", "*.jinja"]
OFFLINE_ADVICE = (
    "the hub cannot be reached from here. Give the pod a way to it (a proxy by HTTPS_PROXY, a mirror by HF_ENDPOINT), "
    "or put the model's folder on a volume and use pvc://claim/folder (file:///folder with tandem serve)"
)


def _tell(**message: object) -> None:
    print(json.dumps(message), flush=True)


def _matches(name: str) -> bool:
    return any(fnmatch.fnmatch(name, pattern) for pattern in PATTERNS)


def _watch(cache: Path, total: int, ended: threading.Event) -> None:
    """Tells how many bytes lie in the model's cache folder, once a second."""
    while not ended.wait(1.0):
        done = sum(file.stat().st_size for file in cache.glob("blobs/*") if file.is_file())
        _tell(kind="progress", done=min(done, total), total=total)


def download(name: str, revision: str | None, cache: str) -> str:
    """The folder of the complete snapshot. Raises the hub library's errors."""
    total = 0
    try:
        info = HfApi().model_info(name, revision=revision, files_metadata=True)
        total = sum(file.size or 0 for file in info.siblings or [] if _matches(file.rfilename))
        revision = info.sha or revision
    except (RepositoryNotFoundError, RevisionNotFoundError, GatedRepoError):
        raise
    except Exception as error:  # noqa: BLE001 - offline, it may all be in the cache; the next call tells if it is not
        _tell(kind="progress", done=0, total=0, note=f"{type(error).__name__}: {error}")
    ended = threading.Event()
    folder = Path(cache) / f"models--{name.replace('/', '--')}"
    watcher = threading.Thread(target=_watch, args=(folder, total, ended), daemon=True)
    watcher.start()
    try:
        return str(snapshot_download(name, revision=revision, cache_dir=cache, allow_patterns=PATTERNS))
    finally:
        ended.set()
        watcher.join()


def main(name: str, revision: str, cache: str) -> int:
    """Downloads and tells the outcome; 0 when it worked."""
    try:
        _tell(kind="done", path=download(name, revision or None, cache))
    except GatedRepoError:
        _tell(
            kind="error",
            lasting=True,
            message="the hub wants a token of an account that accepted its terms "
            "(secretRef with the key token; HF_TOKEN with tandem serve)",
        )
    except RevisionNotFoundError:
        _tell(kind="error", lasting=True, message=f"the hub has no revision '{revision}' of it")
    except RepositoryNotFoundError:
        _tell(
            kind="error",
            lasting=True,
            message="the hub has no such model, or wants a token for it (secretRef, HF_TOKEN)",
        )
    except LocalEntryNotFoundError:
        where = os.environ.get("HF_ENDPOINT", "")
        _tell(kind="error", lasting=False, message=OFFLINE_ADVICE + (f" (HF_ENDPOINT is {where})" if where else ""))
    except Exception as error:  # noqa: BLE001 - whatever it is, the parent process must be told
        _tell(kind="error", lasting=False, message=f"{type(error).__name__}: {error}")
    else:
        return 0
    return 1


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:4]))
