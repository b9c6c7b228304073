"""A checkpoint's tensors by name, read from safetensors files only (one, or several behind an index).

Second step of a load. Pickle files (`.bin`, `.pt`) can run code when opened and are never read.
"""

from collections.abc import Iterable
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open

from tandem_server.engine.interface import LoadError, ProgressReporter
from tandem_server.engine.native.headers import locate, read_header


class Checkpoint:
    """The tensors of a folder. Every one that is read is accounted for: `check_all_used` names those left over."""

    def __init__(self, folder: Path, report: ProgressReporter) -> None:
        self._report = report
        self._where = locate(folder)
        self._files: dict[Path, safe_open] = {}
        self._used: set[str] = set()
        self._done = 0
        headers = {file: read_header(file) for file in set(self._where.values())}
        self.stored = {name: headers[file][name] for name, file in self._where.items()}
        """Type and size of every tensor."""
        self.total_bytes = sum(tensor.bytes for tensor in self.stored.values())

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
