"""Which tensors a checkpoint has, from the headers of its safetensors files alone (one, or several behind an index).

Second step of a load, and of an estimate before there is a runner: nothing here reads weights or needs torch.
"""

import json
import math
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from tandem_server.engine.interface import LoadError
from tandem_server.engine.native.config import read_json

INDEX = "model.safetensors.index.json"
SINGLE = "model.safetensors"


@dataclass(frozen=True)
class Stored:
    """One tensor as its file's header has it."""

    dtype: str
    """As safetensors names it, such as BF16."""
    shape: tuple[int, ...]
    bytes: int

    @property
    def elements(self) -> int:
        """Numbers in it."""
        return math.prod(self.shape)

    @property
    def is_float(self) -> bool:
        """Whether it is a number of the model and no index or mask."""
        return self.dtype.startswith(("F", "BF"))


def read_headers(folder: Path) -> dict[str, Stored]:
    """All tensors that a load would read. Raises LoadError as `locate` does."""
    where = locate(folder)
    read = {file: read_header(file) for file in set(where.values())}
    return {name: read[file][name] for name, file in where.items()}


def locate(folder: Path) -> dict[str, Path]:
    """Which file holds each tensor. Raises LoadError where files are missing, cut off or of another kind."""
    if (folder / INDEX).is_file():
        where = read_json(folder / INDEX).get("weight_map")
        if not isinstance(where, dict):
            raise LoadError(f"{folder / INDEX} has no weight_map")
        files = {name: folder / str(file) for name, file in where.items()}
        for file in sorted(set(files.values())):
            if file.parent != folder or file.suffix != ".safetensors":
                raise LoadError(f"{INDEX} names {file.name}, which is no safetensors file of the folder itself")
            if not file.is_file():
                raise LoadError(f"{INDEX} names {file.name}, which is missing; is the download complete?")
            absent = sorted({name for name, place in files.items() if place == file} - read_header(file).keys())
            if absent:
                raise LoadError(f"tensor {absent[0]} is missing from {file.name}, where {INDEX} places it")
        return files
    if (folder / SINGLE).is_file():
        return dict.fromkeys(read_header(folder / SINGLE), folder / SINGLE)
    others = sorted(p.name for p in folder.glob("*") if p.suffix in (".bin", ".pt", ".pth", ".ckpt", ".gguf", ".onnx"))
    if any(name.endswith(".gguf") for name in others):
        raise LoadError(
            f"{folder} carries {next(name for name in others if name.endswith('.gguf'))}; the native engine reads "
            "safetensors only: use the safetensors checkpoint, or set engine: VLLM"
        )
    if others:
        raise LoadError(
            f"{folder} carries {others[0]} but no {SINGLE}; only safetensors are read, because pickle files "
            "(.bin, .pt) can run code when opened: convert the checkpoint to safetensors"
        )
    raise LoadError(f"{folder} has no {SINGLE} and no {INDEX}")


def read_header(file: Path) -> dict[str, Stored]:
    """The tensors of one file. Raises LoadError where it is none, or is cut off."""
    try:
        with file.open("rb") as stream:
            (length,) = struct.unpack("<Q", stream.read(8))
            if length > file.stat().st_size:
                raise ValueError("its header is cut off")
            header = json.loads(stream.read(length))
        tensors = {name: _stored(info) for name, info in header.items() if name != "__metadata__"}
        ends = [info["data_offsets"][1] for name, info in header.items() if name != "__metadata__"]
        if ends and max(ends) + 8 + length > file.stat().st_size:
            raise ValueError("it is shorter than its header says; is the download complete?")
    except (OSError, ValueError, struct.error, KeyError, TypeError) as error:
        raise LoadError(f"{file.name} is no readable safetensors file: {error}") from None
    return tensors


def _stored(info: Mapping[str, object]) -> Stored:
    offsets, shape = info["data_offsets"], info["shape"]
    if not isinstance(offsets, list) or not isinstance(shape, list):
        raise TypeError("a tensor has no data_offsets or no shape")
    begin, end = offsets
    return Stored(str(info["dtype"]), tuple(int(size) for size in shape), int(end) - int(begin))
