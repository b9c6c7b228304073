"""Answers that must follow a grammar: which tokens may come next, known as soon as the last one is.

Beside the scheduler, which asks for the mask of each such row once its last token has reached the host, and tells it
the token that was drawn. llguidance does the work; compiling runs on a thread of its own, since a large schema takes
up to a second and the loop serves others.
"""

from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from tandem_server.engine.native.config import read_json

if TYPE_CHECKING:
    from llguidance import LLMatcher, LLTokenizer

MASK_BITS = 32


class Grammar(Protocol):
    """Where one answer stands in its grammar."""

    @property
    def ready(self) -> bool:
        """Whether it is compiled, or has failed to be."""

    @property
    def error(self) -> str:
        """Why it cannot be followed; empty while it can."""

    @property
    def complete(self) -> bool:
        """Nothing but the end may follow."""

    def mask(self) -> bytes:
        """One bit a token of the vocabulary, lowest first, in whole little-endian 32-bit words: 1 may come next."""

    def accept(self, token: int) -> None:
        """`token` was drawn."""


class Grammars:
    """Compiles the grammars of one model.

    Args:
        folder: of the checkpoint; its `tokenizer.json` says what each token spells.
        vocabulary: rows of the output matrix, which may be more than the tokenizer has tokens.
    """

    def __init__(self, folder: Path, vocabulary: int) -> None:
        self._folder, self._vocabulary = folder, vocabulary
        self._pool = ThreadPoolExecutor(1, thread_name_prefix="grammar")
        self._tokenizer: LLTokenizer | None = None

    def begin(self, text: str, ends: tuple[int, ...]) -> "CompiledGrammar":
        """Compiles `text` (see `chat.grammar`) in the background; `ends` are the tokens that may end the answer."""
        words = -(-self._vocabulary // MASK_BITS)
        return CompiledGrammar(self._pool.submit(self._compile, text), words * 4, ends, self._own_ends())

    def close(self) -> None:
        """Ends the thread; what was not begun is dropped."""
        self._pool.shutdown(wait=False, cancel_futures=True)

    def _compile(self, text: str) -> "LLMatcher":
        from llguidance import LLMatcher, LLTokenizer

        if self._tokenizer is None:
            file = (self._folder / "tokenizer.json").read_text(encoding="utf-8")
            self._tokenizer = LLTokenizer(file, n_vocab=self._vocabulary, eos_token=list(self._own_ends()))
        return LLMatcher(self._tokenizer, text, log_level=0)

    def _own_ends(self) -> tuple[int, ...]:
        """What the checkpoint ends answers with; the library must be told some token, so the last one if it has none.

        Which tokens may end an answer is the request's affair: see `CompiledGrammar.mask`.
        """
        ends = read_json(self._folder / "config.json").get("eos_token_id")
        return tuple(ends) if isinstance(ends, list) else (ends if isinstance(ends, int) else self._vocabulary - 1,)


class CompiledGrammar:
    """A grammar of llguidance's, from its order to compile on."""

    def __init__(
        self, compiled: "Future[LLMatcher]", mask_bytes: int, ends: tuple[int, ...], library_ends: tuple[int, ...]
    ) -> None:
        self._compiled, self._mask_bytes = compiled, mask_bytes
        self._ends, self._library_ends = ends, library_ends

    @property
    def ready(self) -> bool:
        """See `Grammar`."""
        return self._compiled.done()

    @property
    def error(self) -> str:
        """See `Grammar`."""
        if not self.ready:
            return ""
        failure = self._compiled.exception()
        if failure is not None:
            return f"the grammar cannot be compiled: {failure}"
        return str(self._compiled.result().get_error())

    @property
    def complete(self) -> bool:
        """See `Grammar`."""
        matcher = self._compiled.result()
        return matcher.is_stopped() and not matcher.is_error()

    def mask(self) -> bytes:
        """See `Grammar`."""
        matcher = self._compiled.result()
        bits = bytearray(matcher.compute_bitmask()[: self._mask_bytes])
        for token in self._library_ends:
            bits[token // 8] &= ~(1 << token % 8)
        if matcher.is_accepting():
            for token in self._ends:
                bits[token // 8] |= 1 << token % 8
        return bytes(bits)

    def accept(self, token: int) -> None:
        """See `Grammar`."""
        self._compiled.result().consume_token(token)
