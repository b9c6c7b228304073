"""What bytes each token id stands for, read from a checkpoint's tokenizer.

On the path of every generated token, before `detokenizer`. Byte-level BPE (GPT-2, Llama 3, Qwen) and byte-fallback
(Llama 2, Mistral, Gemma) tokenizers have an exact table of bytes, so text can be put together without ever decoding
twice; the others are decoded by the tokenizer over a sliding window (`None` from `byte_table`).
"""

import json
from typing import Any

from tokenizers import Tokenizer

SPACE_MARK = "\u2581"
REPLACEMENT_TEXT = "\ufffd"


def _byte_level_alphabet() -> dict[str, int]:
    """GPT-2's printable stand-in for each byte, reversed."""
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    table = {chr(byte): byte for byte in printable}
    following = 256
    for byte in range(256):
        if byte not in printable:
            table[chr(following)] = byte
            following += 1
    return table


class PieceTable:
    """Bytes of each token id, filled as ids are met. Special tokens have none.

    Args:
        byte_level: True for byte-level BPE, False for byte-fallback with `\u2581` as the space.
        strip_first_space: whether the very first space of an answer is an artefact of the tokenizer.
    """

    def __init__(self, tokenizer: Tokenizer, byte_level: bool, strip_first_space: bool) -> None:
        self._tokenizer = tokenizer
        self._byte_level = byte_level
        self.strip_first_space = strip_first_space
        self._alphabet = _byte_level_alphabet()
        self._added = tokenizer.get_added_tokens_decoder()
        self._known: dict[int, bytes] = {}

    def bytes_of(self, token: int) -> bytes:
        """Bytes that `token` adds to the answer; an id that the tokenizer does not know adds none."""
        found = self._known.get(token)
        if found is None:
            found = self._known[token] = self._look_up(token)
        return found

    def _look_up(self, token: int) -> bytes:
        added = self._added.get(token)
        if added is not None:
            return b"" if added.special else added.content.encode()
        piece = self._tokenizer.id_to_token(token)
        if piece is None:
            return b""
        if self._byte_level:
            if all(character in self._alphabet for character in piece):
                return bytes(self._alphabet[character] for character in piece)
            return piece.encode()
        if len(piece) == 6 and piece.startswith("<0x") and piece.endswith(">"):
            try:
                return bytes([int(piece[3:5], 16)])
            except ValueError:
                return piece.encode()
        return piece.replace(SPACE_MARK, " ").encode()


def byte_table(tokenizer: Tokenizer) -> PieceTable | None:
    """The table for a tokenizer whose decoder works on bytes; None for any other decoder."""
    steps = _decoder_steps(tokenizer)
    kinds = [step["type"] for step in steps]
    if kinds == ["ByteLevel"]:
        return PieceTable(tokenizer, byte_level=True, strip_first_space=False)
    if "ByteFallback" in kinds and set(kinds) <= {"Replace", "ByteFallback", "Fuse", "Strip"}:
        for step in steps:
            if step["type"] == "Replace" and (step["pattern"], step["content"]) != ({"String": SPACE_MARK}, " "):
                return None
            if step["type"] == "Strip" and (step["content"], step["start"], step["stop"]) != (" ", 1, 0):
                return None
        return PieceTable(tokenizer, byte_level=False, strip_first_space="Strip" in kinds)
    return None


def _decoder_steps(tokenizer: Tokenizer) -> list[dict[str, Any]]:
    decoder = json.loads(tokenizer.to_str()).get("decoder")
    if decoder is None:
        return []
    return list(decoder["decoders"]) if decoder["type"] == "Sequence" else [decoder]
