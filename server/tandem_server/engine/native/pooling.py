"""How a sentence-embedding checkpoint turns token states into one vector, from the folder's own description.

Sentence-Transformers folders say it in `modules.json` and the folders that it names; encoders without it get the mean.
"""

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F

from tandem_server.engine.interface import LoadError
from tandem_server.engine.native.checkpoint import Checkpoint
from tandem_server.engine.native.config import read_json
from tandem_server.engine.native.sentence import most_tokens

KINDS = {
    "mean": "mean",
    "mean_tokens": "mean",
    "cls": "cls",
    "cls_token": "cls",
    "lasttoken": "last",
    "last_token": "last",
}
"""Names in the files, and ours."""
ACTIVATIONS: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {
    "Identity": torch.nn.Identity(),
    "Tanh": torch.tanh,
    "ReLU": F.relu,
    "GELU": F.gelu,
}


@dataclass(frozen=True)
class Dense:
    """A linear layer behind the pooling."""

    folder: Path
    inputs: int
    outputs: int
    bias: bool
    activation: str
    """One of `ACTIVATIONS`."""


@dataclass(frozen=True)
class Normalize:
    """The vector gets length 1."""


@dataclass(frozen=True)
class PoolingConfig:
    """`kind` is mean, cls or last; `max_tokens` the longest input the checkpoint was made for, if it says."""

    kind: str = "mean"
    max_tokens: int | None = None
    steps: tuple[Dense | Normalize, ...] = ()
    """What follows the pooling, in order."""


def read_pooling(folder: Path) -> PoolingConfig:
    """What `folder` says of itself. Raises LoadError for a step that is not computed here."""
    kind = "mean"
    steps: list[Dense | Normalize] = []
    for module in _modules(folder):
        name, path = str(module.get("type", "")).rsplit(".", 1)[-1], folder / str(module.get("path", ""))
        if name == "Pooling":
            kind = _kind(read_json(path / "config.json"), folder)
        elif name == "Dense":
            steps.append(_dense(read_json(path / "config.json"), path))
        elif name == "Normalize":
            steps.append(Normalize())
        elif name != "Transformer":
            raise LoadError(
                f"modules.json names a {name} layer, which is not supported; Pooling, Dense and Normalize are"
            )
    return PoolingConfig(kind, most_tokens(folder), tuple(steps))


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


def _kind(config: dict[str, Any], folder: Path) -> str:
    mode = config.get("pooling_mode")
    chosen = [mode] if isinstance(mode, str) else mode if isinstance(mode, list) else []
    if not chosen:
        flags = {key.removeprefix("pooling_mode_"): on for key, on in config.items() if key.startswith("pooling_mode_")}
        chosen = [name for name, on in flags.items() if on]
    known = [KINDS.get(str(name)) for name in chosen]
    if len(known) != 1 or known[0] is None:
        names = " and ".join(KINDS.get(str(name), str(name)) for name in chosen)
        raise LoadError(f"pooling by {names or 'nothing'} is not supported; mean, cls or lasttoken is")
    if config.get("include_prompt") is False and _has_default_prompt(folder):
        raise LoadError("pooling without the prompt's tokens (include_prompt: false) is not supported")
    return known[0]


def _has_default_prompt(folder: Path) -> bool:
    file = folder / "config_sentence_transformers.json"
    return file.is_file() and bool(read_json(file).get("default_prompt_name"))


def _dense(config: dict[str, Any], path: Path) -> Dense:
    activation = str(config.get("activation_function") or "torch.nn.modules.activation.Tanh").rsplit(".", 1)[-1]
    if activation not in ACTIVATIONS:
        raise LoadError(f"{path.name}: activation {activation} is not supported; {', '.join(ACTIVATIONS)} are")
    for key in ("module_input_name", "module_output_name"):
        if config.get(key) not in (None, "sentence_embedding"):
            raise LoadError(f"{path.name}: {key} {config[key]} is not supported; sentence_embedding is")
    sizes = config.get("in_features"), config.get("out_features")
    if not all(isinstance(size, int) and size > 0 for size in sizes):
        raise LoadError(f"{path.name}/config.json: in_features and out_features must be positive whole numbers")
    return Dense(path, *sizes, bool(config.get("bias", True)), activation)  # type: ignore[arg-type]


class SentenceHead:
    """From the states of a batch's tokens to its vectors."""

    def __init__(self, config: PoolingConfig, size: int, device: torch.device) -> None:
        """Reads the weights of dense layers. Raises LoadError where one is missing or does not fit `size`."""
        self._kind, self.size = config.kind, size
        self._steps: list[tuple[torch.Tensor, torch.Tensor | None, str] | None] = []
        """Weight, bias and activation of each dense layer, None for a normalisation."""
        for step in config.steps:
            if isinstance(step, Normalize):
                self._steps.append(None)
                continue
            if step.inputs != self.size:
                raise LoadError(f"{step.folder.name} takes vectors of {step.inputs}, and they have {self.size}")
            checkpoint = Checkpoint(step.folder, lambda *_: None)
            weight = checkpoint.read("linear.weight", (step.outputs, step.inputs)).to(device, torch.float32)
            bias = checkpoint.read("linear.bias", (step.outputs,)).to(device, torch.float32) if step.bias else None
            checkpoint.check_all_used()
            # Copies: what stays mapped would fault when the file goes away.
            self._steps.append((weight.clone(), None if bias is None else bias.clone(), step.activation))
            self.size = step.outputs

    @property
    def tensors(self) -> list[torch.Tensor]:
        """All weights."""
        return [tensor for step in self._steps if step is not None for tensor in step[:2] if tensor is not None]

    def __call__(self, states: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        """One L2-normalised float32 vector a row.

        Args:
            states: `[rows, tokens, size]`.
            mask: int64 `[rows, tokens]`, 1 where a token is real; the real ones come first, at least one.
        """
        pooled = pool(states.float(), mask, self._kind)
        for step in self._steps:
            if step is None:
                pooled = F.normalize(pooled, dim=-1)
            else:
                weight, bias, activation = step
                pooled = ACTIVATIONS[activation](F.linear(pooled, weight, bias))
        return F.normalize(pooled, dim=-1)


def pool(states: torch.Tensor, mask: torch.Tensor, kind: str) -> torch.Tensor:
    """`[rows, size]` of `[rows, tokens, size]`: the first token's state, the last real one's, or the mean."""
    if kind == "cls":
        return states[:, 0]
    counts = mask.sum(1)
    if kind == "last":
        return states[torch.arange(len(states), device=states.device), counts - 1]
    return (states * mask[..., None]).sum(1) / counts[:, None]
