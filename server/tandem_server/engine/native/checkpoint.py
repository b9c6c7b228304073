"""A checkpoint's tensors by name, read from safetensors files only (one, or several behind an index).

Second step of a load. Pickle files (`.bin`, `.pt`) can run code when opened and are never read.
"""

import json
import struct
from collections.abc import Iterable
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open

from tandem_server.engine.interface import LoadError, ProgressReporter
from tandem_server.engine.native.config import read_json

INDEX = "model.safetensors.index.json"
SINGLE = "model.safetensors"


class Checkpoint:
    """The tensors of a folder. Every one that is read is accounted for: `check_all_used` names those left over."""

    def __init__(self, folder: Path, report: ProgressReporter) -> None:
        self._report = report
        self._where = _locate(folder)
        self._files: dict[Path, safe_open] = {}
        self._used: set[str] = set()
        self._done = 0
        self._sizes = {name: size for file in set(self._where.values()) for name, size in _sizes(file).items()}
        self.total_bytes = sum(self._sizes[name] for name in self._where)

    def __contains__(self, name: str) -> bool:
        return name in self._where

    def names(self) -> set[str]:
        """All tensors of the checkpoint."""
        return set(self._where)

    def shape(self, name: str) -> tuple[int, ...]:
        """Shape of a tensor, without reading it. Raises LoadError when it is missing."""
        return tuple(self._open(name).get_slice(name).get_shape())  # type: ignore[no-untyped-call]

    def read(self, name: str, shape: tuple[int, ...]) -> torch.Tensor:
        """The tensor on the CPU as the file has it. Raises LoadError when it is missing or of another shape."""
        try:
            tensor: torch.Tensor = self._open(name).get_tensor(name)  # type: ignore[no-untyped-call]
        except SafetensorError as error:
            raise LoadError(f"tensor {name} in {self._where[name].name} cannot be read: {error}") from None
        if tuple(tensor.shape) != shape:
            raise LoadError(
                f"tensor {name} in {self._where[name].name} has shape {list(tensor.shape)}, "
                f"config.json calls for {list(shape)}"
            )
        if not tensor.is_floating_point() or tensor.element_size() < 2:
            raise LoadError(
                f"tensor {name} is of type {tensor.dtype}; quantised weights are not supported; "
                "use the unquantised checkpoint, or set engine: VLLM"
            )
        self._used.add(name)
        self._done += tensor.nbytes
        self._report("reading weights", min(self._done, self.total_bytes), self.total_bytes)
        return tensor

    def check_all_used(self, ignored_suffixes: Iterable[str] = ()) -> None:
        """Raises LoadError naming tensors that nothing asked for, but for those whose names end in a suffix given."""
        ignored = tuple(ignored_suffixes)
        left = sorted(name for name in self.names() - self._used if not name.endswith(ignored))
        if left:
            more = f" and {len(left) - 3} more" if len(left) > 3 else ""
            raise LoadError(
                f"the checkpoint holds tensors that its architecture does not use: {', '.join(left[:3])}{more}; "
                "config.json and the weights do not belong together"
            )

    def close(self) -> None:
        """Lets go of the mapped files."""
        self._files.clear()

    def _open(self, name: str) -> safe_open:
        file = self._where.get(name)
        if file is None:
            raise LoadError(f"tensor {name} is missing from the checkpoint; is the download complete?")
        if file not in self._files:
            self._files[file] = safe_open(file, framework="pt", device="cpu")
        return self._files[file]


def _locate(folder: Path) -> dict[str, Path]:
    """Which file holds each tensor."""
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
            absent = sorted({name for name, place in files.items() if place == file} - _sizes(file).keys())
            if absent:
                raise LoadError(f"tensor {absent[0]} is missing from {file.name}, where {INDEX} places it")
        return files
    if (folder / SINGLE).is_file():
        return dict.fromkeys(_sizes(folder / SINGLE), folder / SINGLE)
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


def _sizes(file: Path) -> dict[str, int]:
    """Bytes of each tensor, from the file's header alone."""
    try:
        with file.open("rb") as stream:
            (length,) = struct.unpack("<Q", stream.read(8))
            if length > file.stat().st_size:
                raise ValueError("its header is cut off")
            header = json.loads(stream.read(length))
        sizes = {name: info["data_offsets"] for name, info in header.items() if name != "__metadata__"}
        if sizes and max(end for _, end in sizes.values()) + 8 + length > file.stat().st_size:
            raise ValueError("it is shorter than its header says; is the download complete?")
    except (OSError, ValueError, struct.error, KeyError, TypeError) as error:
        raise LoadError(f"{file.name} is no readable safetensors file: {error}") from None
    return {name: end - begin for name, (begin, end) in sizes.items()}
