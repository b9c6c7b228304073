"""Tokens in, text out, one step at a time.

On the path of every generated token, between the runner's rows and the stop strings. Never gives out half a character
(its bytes are held back until the rest has come) and never loses the tail (`finish` gives what is still held).
"""

import codecs
from typing import Protocol

from tokenizers import Tokenizer

from tandem_server.chat.pieces import REPLACEMENT_TEXT, PieceTable

WINDOW_MAX = 16
"""Tokens that a windowed detokenizer holds back at most before it gives out what it has."""


class Detokenizer(Protocol):
    """Puts the text of one answer together."""

    def push(self, tokens: list[int]) -> str:
        """Text that is certain after these further tokens; may be empty."""

    def finish(self) -> str:
        """The rest, with U+FFFD for bytes that never became a character."""


class ByteDetokenizer:
    """For tokenizers whose tokens are bytes: exact, and linear in the length of the answer."""

    def __init__(self, pieces: PieceTable) -> None:
        self._pieces = pieces
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")
        self._at_start = pieces.strip_first_space

    def push(self, tokens: list[int]) -> str:
        """See `Detokenizer.push`."""
        data = b"".join(map(self._pieces.bytes_of, tokens))
        if self._at_start and data:
            self._at_start = False
            data = data.removeprefix(b" ")
        return self._decoder.decode(data)

    def finish(self) -> str:
        """See `Detokenizer.finish`."""
        return self._decoder.decode(b"", final=True)


class WindowDetokenizer:
    """For any other decoder: decodes the last few tokens with and without the new ones, and takes the difference."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        self._context: list[int] = []
        """Tokens whose text is out already, kept because the text of the next may depend on them."""
        self._held: list[int] = []

    def push(self, tokens: list[int]) -> str:
        """See `Detokenizer.push`."""
        out = []
        for token in tokens:
            self._held.append(token)
            text = self._difference()
            if text and (not text.endswith(REPLACEMENT_TEXT) or len(self._held) >= WINDOW_MAX):
                out.append(self._release(text))
        return "".join(out)

    def finish(self) -> str:
        """See `Detokenizer.finish`."""
        return self._release(self._difference()) if self._held else ""

    def _difference(self) -> str:
        before = self._tokenizer.decode(self._context)
        after: str = self._tokenizer.decode(self._context + self._held)
        return after[len(before) :]

    def _release(self, text: str) -> str:
        # Whole releases only: a window that begins inside a character would garble all of it.
        self._context, self._held = self._held, []
        return text
