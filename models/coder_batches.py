"""Training rows of the demo model: files, bare functions and chats, mixed at fixed shares and packed without padding.

Sits between `coder_corpus.py` (text) and `train_python_coder.py` (the loop). Every choice comes from one seeded
generator, so the same library, seed and number of rows give the same training run.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator

import numpy as np
import torch
from coder_chat import BEGIN, END, chat_text
from coder_corpus import SourceFile, is_held_out, pieces, units_of
from numpy.typing import NDArray
from tokenizers import Tokenizer

# Share of the tokens of each kind of document. Tests are a smaller share than their size: they repeat themselves.
SHARES = {"library": 0.52, "tests": 0.14, "functions": 0.08, "chats": 0.26}


def encode_file(tokenizer: Tokenizer, file: SourceFile) -> NDArray[np.uint16]:
    """The tokens of one whole file between the begin and end tokens."""
    ids = tokenizer.encode(BEGIN + file.text + END, add_special_tokens=False).ids
    return np.array(ids, dtype=np.uint16)


class Corpus:
    """The training files, encoded once and shared by the row sources of every length."""

    def __init__(self, tokenizer: Tokenizer, files: list[SourceFile]) -> None:
        self.tokenizer = tokenizer
        self.library = [file for file in files if not file.is_test and not is_held_out(file)]
        self.library_tokens = [encode_file(tokenizer, file) for file in self.library]
        self.test_tokens = [encode_file(tokenizer, file) for file in files if file.is_test]
        self.units = {file.path: units_of(file) for file in self.library}


class RowSource:
    """Endless rows of `length + 1` tokens: inputs are all but the last, targets all but the first."""

    def __init__(self, corpus: Corpus, length: int, seed: int) -> None:
        self.tokenizer, self.length = corpus.tokenizer, length
        self.library, self.units = corpus.library, corpus.units
        self.rng = random.Random(seed)  # noqa: S311 - a repeatable run wants a plain seeded generator
        # Longer files are drawn more often for chats, so that every function has about the same chance.
        self.weights = [1 + len(self.units[file.path]) for file in self.library]
        self.streams = {
            "library": self._pieces(corpus.library_tokens),
            "tests": self._pieces(corpus.test_tokens),
            "functions": self._texts(self._function),
            "chats": self._texts(self._chat),
        }
        self.served = dict.fromkeys(SHARES, 0)
        if not corpus.test_tokens:
            self.served["tests"] = 1 << 60  # this library came without its tests: never their turn

    def _pieces(self, files: list[NDArray[np.uint16]]) -> Iterator[NDArray[np.uint16]]:
        """Epoch after epoch of file pieces, shuffled."""
        while True:
            epoch = [piece for file in files for piece in pieces(file, self.length, self.rng)]
            self.rng.shuffle(epoch)
            yield from epoch

    def _texts(self, make: Callable[[SourceFile], str]) -> Iterator[NDArray[np.uint16]]:
        """Encoded documents from a function of one file; documents it cannot make of that file are passed over."""
        while True:
            text = make(self.rng.choices(self.library, self.weights)[0])
            if text:
                yield np.array(self.tokenizer.encode(text, add_special_tokens=False).ids, dtype=np.uint16)

    def _function(self, file: SourceFile) -> str:
        """One function or class of the file as a document of its own."""
        units = self.units[file.path]
        return BEGIN + "\n".join(self.rng.choice(units).lines) + END if units else ""

    def _chat(self, file: SourceFile) -> str:
        return chat_text(file, self.units[file.path], self.rng)

    def rows(self) -> Iterator[NDArray[np.uint16]]:
        """Rows of `length + 1` tokens; the kind that is furthest behind its share comes next."""
        buffer: list[NDArray[np.uint16]] = []
        held = 0
        while True:
            while held <= self.length:
                kind = min(SHARES, key=lambda name: self.served[name] / SHARES[name])
                document = next(self.streams[kind])
                self.served[kind] += len(document)
                buffer.append(document)
                held += len(document)
            tokens = np.concatenate(buffer)
            yield tokens[: self.length + 1]
            buffer, held = [tokens[self.length + 1 :]], held - self.length - 1

    def batches(self, rows: int) -> Iterator[torch.Tensor]:
        """Tensors of shape [rows, length + 1], int64."""
        source = self.rows()
        while True:
            yield torch.from_numpy(np.stack([next(source) for _ in range(rows)]).astype(np.int64))


def validation_rows(tokenizer: Tokenizer, files: list[SourceFile], length: int) -> torch.Tensor:
    """The held-out files end to end as rows of `length + 1` tokens ([rows, length + 1], int64), the rest dropped."""
    tokens = np.concatenate([encode_file(tokenizer, file) for file in files if is_held_out(file)]).astype(np.int64)
    rows = len(tokens) // (length + 1)
    return torch.from_numpy(tokens[: rows * (length + 1)].reshape(rows, length + 1))


def bytes_per_token(tokenizer: Tokenizer, files: list[SourceFile]) -> float:
    """Bytes of held-out text per token: what turns a loss per token into bits per byte."""
    held_out = [file for file in files if is_held_out(file)]
    tokens = sum(len(encode_file(tokenizer, file)) for file in held_out)
    return sum(len(file.text.encode()) for file in held_out) / tokens
