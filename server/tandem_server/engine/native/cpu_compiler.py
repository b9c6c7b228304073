"""Compiles `cpu_kernels` for the machine at hand, once, and keeps the library in the user's cache folder.

First use is in a load on a CPU. Where there is no C compiler, or what it made does not work, the decoder computes by
torch's operators alone, and the load tells why. Like torch, the library computes on the GNU OpenMP that is loaded
already, so both share one pool of threads.
"""

import ctypes
import hashlib
import os
import platform
import shutil
import subprocess
import tempfile
from functools import cache
from pathlib import Path

import torch

SOURCES = Path(__file__).with_name("cpu_kernels")
COMPILERS = ("cc", "gcc", "clang")
FLAGS = ("-O3", "-march=native", "-fopenmp", "-shared", "-fPIC", "-fno-math-errno", "-Wno-psabi")
FORMATS = {torch.bfloat16: ("-DTANDEM_BF16",), torch.float32: ()}
SECONDS = 60.0
"""For the compiler; it takes about two."""


class NotCompiled(Exception):
    """There is no library; the text says why in half a sentence."""


def folder() -> Path:
    """Where libraries are kept; nobody else may write there."""
    found = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "tandem" / "kernels"
    try:
        found.mkdir(mode=0o700, parents=True, exist_ok=True)
        if found.stat().st_uid == os.getuid() and os.access(found, os.W_OK):
            return found
    except OSError:
        pass  # a home that cannot be written to: the library lives as long as this process's temporary folder
    return Path(tempfile.mkdtemp(prefix="tandem-kernels-"))


def kernels(dtype: torch.dtype) -> ctypes.CDLL:
    """What multiplies and attends in numbers of `dtype`. Raises NotCompiled."""
    if dtype not in FORMATS:
        raise NotCompiled(f"there are no kernels for {str(dtype).removeprefix('torch.')}")
    return library_of("layers.c", FORMATS[dtype])


@cache
def library_of(name: str, more: tuple[str, ...] = ()) -> ctypes.CDLL:
    """Of a source file and what it includes. Raises NotCompiled."""
    compiler = next((path for name in COMPILERS if (path := shutil.which(name))), None)
    if compiler is None:
        raise NotCompiled("there is no C compiler")
    flags = (*FLAGS, *more)
    try:
        version = subprocess.run([compiler, "--version"], capture_output=True, timeout=SECONDS, check=True).stdout
        texts = (path.read_bytes() for path in sorted(SOURCES.glob("*.[ch]")))
        told = b"\0".join((*texts, version, " ".join((name, *flags)).encode(), _processor()))
        library = folder() / f"{hashlib.sha256(told).hexdigest()[:24]}.so"
        if not library.exists():
            _compile([compiler, *flags, str(SOURCES / name)], library)
        return ctypes.CDLL(str(library))
    except subprocess.CalledProcessError as error:
        said = error.stderr.decode(errors="replace").strip().splitlines() or ["it says no more"]
        raise NotCompiled(f"the C compiler failed: {said[0]}") from None
    except (OSError, subprocess.TimeoutExpired) as error:
        raise NotCompiled(f"the kernels could not be compiled or loaded: {error}") from None


def _compile(command: list[str], library: Path) -> None:
    """Several runners may do so at once: each writes a file of its own, and the last one to be renamed stays."""
    with tempfile.TemporaryDirectory(dir=library.parent) as scratch:
        made = Path(scratch) / library.name
        subprocess.run([*command, "-o", str(made), "-lm"], capture_output=True, timeout=SECONDS, check=True)
        made.replace(library)


def _processor() -> bytes:
    """What decides which instructions `-march=native` may use."""
    try:
        lines = Path("/proc/cpuinfo").read_bytes().splitlines()
    except OSError:
        return platform.processor().encode()
    return b"\n".join(sorted({line for line in lines if line.startswith((b"flags", b"Features", b"model name"))}))
