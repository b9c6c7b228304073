"""How a sentence-embedding checkpoint turns token states into one vector, from the folder's own description.

Sentence-Transformers folders say it in `modules.json` and `1_Pooling/config.json`; folders without them get the mean.
"""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from tandem_server.engine.interface import LoadError
from tandem_server.engine.native.config import read_json

KINDS = ("mean", "cls")


@dataclass(frozen=True)
class PoolingConfig:
    """`kind` is mean or cls; `max_tokens` the longest input the checkpoint was made for, if it says."""

    kind: str = "mean"
    max_tokens: int | None = None


def read_pooling(folder: Path) -> PoolingConfig:
    """What `folder` says of itself. Raises LoadError for a way of pooling that is not computed here."""
    max_tokens = None
    if (folder / "sentence_bert_config.json").is_file():
        max_tokens = read_json(folder / "sentence_bert_config.json").get("max_seq_length")
    kind = "mean"
    for module in _modules(folder):
        name = str(module.get("type", "")).rsplit(".", 1)[-1]
        if name == "Pooling":
            kind = _kind(read_json(folder / str(module.get("path", "")) / "config.json"))
        elif name not in ("Transformer", "Normalize"):
            raise LoadError(f"modules.json names a {name} layer, which is not supported; Pooling and Normalize are")
    return PoolingConfig(kind, max_tokens if isinstance(max_tokens, int) and max_tokens > 0 else None)


def _modules(folder: Path) -> list[dict[str, Any]]:
    file = folder / "modules.json"
    if not file.is_file():
        return []
    try:
        modules = json.loads(file.read_text(encoding="utf-8"))
    except ValueError as error:
        raise LoadError(f"{file} cannot be read as JSON: {error}") from None
    if not isinstance(modules, list) or not all(isinstance(module, dict) for module in modules):
        raise LoadError(f"{file} is no list of modules")
    if any(".." in str(module.get("path", "")) or str(module.get("path", "")).startswith("/") for module in modules):
        raise LoadError(f"{file} names a path outside the checkpoint")
    return modules


def _kind(config: dict[str, Any]) -> str:
    mode = config.get("pooling_mode")
    chosen = [mode] if isinstance(mode, str) else mode if isinstance(mode, list) else []
    if not chosen:
        flags = {key.removeprefix("pooling_mode_"): on for key, on in config.items() if key.startswith("pooling_mode_")}
        chosen = [name for name, on in flags.items() if on]
    chosen = [{"mean_tokens": "mean", "cls_token": "cls"}.get(str(name), str(name)) for name in chosen]
    if len(chosen) != 1 or chosen[0] not in KINDS:
        raise LoadError(f"pooling by {' and '.join(chosen) or 'nothing'} is not supported; mean or cls is")
    return str(chosen[0])


def pool(states: torch.Tensor, mask: torch.Tensor, kind: str) -> torch.Tensor:
    """One L2-normalised float32 vector a row.

    Args:
        states: `[rows, tokens, size]`.
        mask: int64 `[rows, tokens]`, 1 where a token is real; the first always is.
        kind: mean or cls.
    """
    states = states.float()
    if kind == "cls":
        pooled = states[:, 0]
    else:
        weights = mask[..., None].float()
        pooled = (states * weights).sum(1) / weights.sum(1)
    return torch.nn.functional.normalize(pooled, dim=-1)
