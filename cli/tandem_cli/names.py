"""What a person types as a model, as a source and as a name; shared by `tandem serve` and `tandem run`."""

import re
from pathlib import Path

import typer

_UNFIT = re.compile(r"[^a-z0-9._-]+")
_SCHEME = re.compile(r"^[a-z0-9]+://")


def model_source(text: str) -> str:
    """What a person typed as `--model`, as a source: folders become `file://` ones. Raises typer.BadParameter."""
    if _SCHEME.match(text):
        if not text.startswith(("hf://", "file://")):
            raise typer.BadParameter(f"'{text}': write a folder, or hf://organisation/name")
        return text
    folder = Path(text).expanduser().resolve()
    if not folder.is_dir():
        hint = (
            f"; for the hub write hf://{text}" if text.count("/") == 1 and not text.startswith((".", "~", "/")) else ""
        )
        raise typer.BadParameter(f"there is no folder {folder}{hint}")
    return f"file://{folder}"


def model_name(source: str) -> str:
    """The name that requests use: the last part of the source, in lower case."""
    last = source.partition("://")[2].rstrip("/").rsplit("/", 1)[-1].lower()
    return _UNFIT.sub("-", last).strip("-.") or "model"
