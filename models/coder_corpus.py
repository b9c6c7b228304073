"""Text for the demo model: the interpreter's own standard library, cut into training rows.

First step of `train_python_coder.py`: find the `.py` files, hold some whole files out for validation, and turn the
rest into an endless stream of token rows of three kinds of document: files, bare functions, and chats whose user turn
holds the first lines (or the purpose) of a piece of code and whose assistant turn holds the code that follows.
"""

from __future__ import annotations

import ast
import hashlib
import random
import textwrap
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

SKIPPED_FOLDERS = frozenset({"site-packages", "dist-packages", "__pycache__", "idle_test", "data", "badsyntax"})
TEST_FOLDERS = frozenset({"test", "tests"})
# Character tables and generated parsers: long lists of numbers that teach a small model nothing about code.
TABLE_PREFIXES = ("encodings/cp", "encodings/iso", "encodings/mac_", "encodings/koi", "encodings/ptcp", "encodings/tis")
LONGEST_FILE = 400_000  # bytes
VALIDATION_PERCENT = 4


@dataclass(frozen=True)
class SourceFile:
    """One file of the corpus: path relative to the library, text, and whether it is one of the library's tests."""

    path: str
    text: str
    is_test: bool


@dataclass(frozen=True)
class Unit:
    """One function or class, its indentation removed: its name, source lines, and first docstring line (or '')."""

    name: str
    lines: tuple[str, ...]
    summary: str


def read_library(root: Path) -> list[SourceFile]:
    """Every useful `.py` file below `root`, sorted by path; files that are not UTF-8 or do not parse are left out."""
    files = []
    for path in sorted(root.rglob("*.py")):
        relative = path.relative_to(root)
        parts = set(relative.parts[:-1])
        if parts & SKIPPED_FOLDERS or relative.as_posix().startswith(TABLE_PREFIXES):
            continue
        if path.stat().st_size > LONGEST_FILE:
            continue
        try:
            text = path.read_text(encoding="utf-8")
            ast.parse(text)
        except (UnicodeDecodeError, SyntaxError, ValueError):
            continue
        if text.strip():
            files.append(SourceFile(relative.as_posix(), text, bool(parts & TEST_FOLDERS)))
    return files


def is_held_out(file: SourceFile) -> bool:
    """Whether a file belongs to the validation set: decided by its path alone, never a test file."""
    digest = hashlib.sha256(file.path.encode()).digest()
    return not file.is_test and int.from_bytes(digest[:4], "big") % 100 < VALIDATION_PERCENT


def units_of(file: SourceFile, fewest: int = 4, most: int = 70) -> list[Unit]:
    """The functions, methods and classes of a file that are `fewest` to `most` lines long, in the file's order."""
    lines = file.text.splitlines()
    found = []
    for node in ast.walk(ast.parse(file.text)):
        if not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef) or node.end_lineno is None:
            continue
        start = min([node.lineno, *(d.lineno for d in node.decorator_list)]) - 1
        block = textwrap.dedent("\n".join(lines[start : node.end_lineno])).splitlines()
        if fewest <= len(block) <= most and not block[0].startswith((" ", "\t")):
            summary = (ast.get_docstring(node) or "").split("\n")[0].strip()
            found.append((start, Unit(node.name, tuple(block), summary)))
    return [unit for _, unit in sorted(found, key=lambda pair: pair[0])]


def passages_of(file: SourceFile, rng: random.Random, longest: int = 45) -> tuple[str, ...]:
    """Lines of a file from one random top-level statement up to a later one, at most about `longest` lines."""
    lines = file.text.splitlines()
    starts = [node.lineno - 1 for node in ast.parse(file.text).body]
    if len(starts) < 3:
        return ()
    first = rng.randrange(len(starts) - 1)
    ends = [s for s in starts[first + 1 :] if s - starts[first] <= longest]
    return tuple(lines[starts[first] : rng.choice(ends)]) if ends else ()


def pieces(tokens: NDArray[np.uint16], length: int, rng: random.Random) -> Iterator[NDArray[np.uint16]]:
    """Cut one file's tokens into stretches of at most `length`, at places that differ from one epoch to the next."""
    start = 0
    stop = rng.randint(length // 4, length)
    while start < len(tokens):
        yield tokens[start:stop]
        start, stop = stop, stop + length
