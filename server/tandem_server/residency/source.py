"""Where weights come from: a source such as `pvc://claim/folder` or `hf://org/name` to a folder on local disk.

First step of a load, before the runner starts. Mounted claims are only looked up; hub models are downloaded into the
cache folder by a process of its own (`download`), which can be ended at any time and goes on where it stopped.
"""

import asyncio
import json
import os
import re
import sys
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from tandem_api.report import Progress
from tandem_server.config import Settings
from tandem_server.residency.threads import in_thread

_CLAIM_NAME = re.compile(r"^[a-z0-9]([-a-z0-9.]*[a-z0-9])?$")
_HUB_NAME = re.compile(r"^[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*$")
DOWNLOAD_STALL_SECONDS = 300.0


class SourceError(Exception):
    """A source that gives no folder; the message says what to do. `lasting`: trying again soon cannot help."""

    def __init__(self, message: str, lasting: bool = True) -> None:
        super().__init__(message)
        self.lasting = lasting


OnProgress = Callable[[Progress], None]


async def resolve(
    source: str, revision: str | None, settings: Settings, on_progress: OnProgress, model: str = ""
) -> Path:
    """The folder of `source`, fetched if need be with the credentials of `model`. Raises SourceError."""
    scheme, separator, rest = source.partition("://")
    if not separator:
        raise SourceError(f"source '{source}' has no scheme; write hf://org/name, pvc://claim/folder or file:///folder")
    if scheme == "hf":
        if not _HUB_NAME.match(rest):
            raise SourceError(f"source '{source}' is not of the form hf://organisation/name")
        token = await in_thread(read_token, settings.credentials, model)
        return await _download(rest, revision, settings, on_progress, token)
    if scheme == "pvc":
        claim, _, below = rest.partition("/")
        if not _CLAIM_NAME.match(claim):
            raise SourceError(f"source '{source}' names no claim; write pvc://claim/folder")
        missing = f"the claim '{claim}' is not mounted in this pod"
        return await in_thread(_inside, settings.claims_folder / claim, below, source, missing)
    if scheme == "file":
        return await in_thread(_file, rest, source, settings.file_roots)
    raise SourceError(f"source '{source}': the scheme {scheme}:// is not supported; use hf://, pvc:// or file://")


def _file(path: str, source: str, roots: tuple[Path, ...]) -> Path:
    """The folder of a file:// source, which must lie below a root as written and as resolved."""
    if not roots:
        raise SourceError(f"source '{source}': this pool lists no folder from which file:// may be read")
    if not path.startswith("/"):
        raise SourceError(f"source '{source}': write file:///absolute/folder")
    for root in roots:
        if Path(path).is_relative_to(root):
            return _inside(root, str(Path(path).relative_to(root)), source, "")
    listed = ", ".join(map(str, roots))
    raise SourceError(f"source '{source}' does not lie below a folder that this pool lists: {listed}")


def read_token(folder: Path, model: str) -> str | None:
    """The hub's token among the model's credentials (key `token` or `HF_TOKEN` of its Secret), or None."""
    for key in ("token", "HF_TOKEN"):
        file = folder / f"{model}.{key}"
        try:
            return file.read_text().strip()
        except FileNotFoundError:
            continue
        except OSError as error:
            raise SourceError(f"the credentials {file} cannot be read: {error.strerror}", lasting=False) from error
    return None


def _inside(root: Path, below: str, source: str, when_missing: str) -> Path:
    """`root/below` if that exists and does not lead out of `root` (neither by `..` nor by a symbolic link)."""
    if not root.is_dir():
        raise SourceError(f"source '{source}': {when_missing or f'there is no folder {root}'}", lasting=False)
    base = root.resolve()
    folder = (base / below).resolve()
    if not folder.is_relative_to(base):
        raise SourceError(f"source '{source}' leads out of {root}")
    if not folder.is_dir():
        held = ", ".join(sorted(entry.name for entry in base.iterdir())[:10]) or "nothing"
        raise SourceError(f"source '{source}': there is no folder {folder}; {root} holds {held}", lasting=False)
    return folder


async def _download(
    name: str, revision: str | None, settings: Settings, on_progress: OnProgress, token: str | None
) -> Path:
    on_progress(Progress(phase="asking the hub"))
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        "-m",
        "tandem_server.residency.download",
        name,
        revision or "",
        str(settings.cache / "hub"),
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.PIPE,
        env={**os.environ, "HF_HUB_DISABLE_PROGRESS_BARS": "1", **({"HF_TOKEN": token} if token else {})},
    )
    assert process.stdout is not None
    last: deque[dict[str, object]] = deque(maxlen=1)
    try:
        while line := await asyncio.wait_for(process.stdout.readline(), DOWNLOAD_STALL_SECONDS):
            message = json.loads(line)
            if message["kind"] != "progress":
                last.append(message)
                continue
            done, total = int(message["done"]), int(message["total"])
            fraction = min(1.0, done / total) if total else 0.0
            on_progress(Progress(phase="downloading", fraction=fraction, done_bytes=done, total_bytes=total))
        await process.wait()
    except TimeoutError:
        raise SourceError(
            f"the download of hf://{name} told nothing for {DOWNLOAD_STALL_SECONDS:.0f} s", False
        ) from None
    finally:
        if process.returncode is None:
            with suppress(ProcessLookupError):
                process.kill()
            await process.wait()
    outcome = last[0] if last else {"kind": "error", "message": f"the download ended with code {process.returncode}"}
    if outcome["kind"] == "error":
        raise SourceError(f"hf://{name}: {outcome['message']}", lasting=bool(outcome.get("lasting")))
    return Path(str(outcome["path"]))
