"""Text into token ids, with control tokens only where the template put them.

On the path of every request, after the template. What a user writes is text: a control token's name inside a message
(`<|im_end|>`) is encoded as the characters it consists of, so that no message can end its own turn or play another
role. Raw prompts, which by their nature are written with control tokens, are parsed as they stand.
"""

import re
from functools import cached_property
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer as _Tokenizer

from tandem_server.chat.detokenizer import ByteDetokenizer, Detokenizer, WindowDetokenizer
from tandem_server.chat.pieces import REPLACEMENT_TEXT, byte_table

MARK = "\ufdd0"
"""A Unicode noncharacter: it stands in no text. It surrounds the number of a control token that a user spelt out."""


class Tokenizer:
    """A checkpoint's `tokenizer.json`. Safe to use from several threads."""

    def __init__(self, path: Path) -> None:
        self._plain = _Tokenizer.from_file(str(path))
        self._plain.no_truncation()
        self._plain.no_padding()
        added = self._plain.get_added_tokens_decoder()
        self.control: dict[str, int] = {token.content: number for number, token in added.items() if token.special}
        self._pieces = byte_table(self._plain)
        self.size: int = self._plain.get_vocab_size(with_added_tokens=True)

    @cached_property
    def _text_only(self) -> _Tokenizer:
        """The same tokenizer, for which control tokens' names are ordinary text."""
        copy = _Tokenizer.from_str(self._plain.to_str())
        copy.encode_special_tokens = True
        return copy

    @cached_property
    def _control_pattern(self) -> re.Pattern[str]:
        longest_first = sorted(self.control, key=len, reverse=True)
        return re.compile("|".join(map(re.escape, longest_first)) or r"(?!)")

    def token_id(self, text: str) -> int | None:
        """Id of the token that is spelt exactly so."""
        found: int | None = self._plain.token_to_id(text)
        return found

    def text_of(self, token: int) -> str:
        """The one token as text; bytes that are no whole character become U+FFFD."""
        return self.bytes_of(token).decode("utf-8", "replace")

    def bytes_of(self, token: int) -> bytes:
        """The one token's bytes, its name for control tokens."""
        name = self._plain.id_to_token(token)
        if name is None:
            return b""
        if name in self.control:
            return str(name).encode()
        if self._pieces is not None:
            return self._pieces.bytes_of(token)
        return str(self._plain.decode([token], skip_special_tokens=False)).encode()

    def detokenizer(self) -> Detokenizer:
        """For one answer."""
        return WindowDetokenizer(self._plain) if self._pieces is None else ByteDetokenizer(self._pieces)

    def encode_raw(self, text: str, add_special: bool = True) -> list[int]:
        """A raw prompt: control tokens in it are control tokens."""
        ids: list[int] = self._plain.encode(text.replace(MARK, REPLACEMENT_TEXT), add_special_tokens=add_special).ids
        return ids

    def encode_input(self, text: str, limit: int | None) -> tuple[list[int], int]:
        """A text to embed, with the model's frame ([CLS], [SEP]) and cut to `limit` tokens in all.

        Returns (ids, tokens before the cut).
        """
        encoding = self._text_only.encode(text, add_special_tokens=False)
        frame = self._plain.num_special_tokens_to_add(False)
        full = len(encoding.ids) + frame
        if limit is not None and full > limit:
            encoding.truncate(max(0, limit - frame))
        return list(self._text_only.post_process(encoding).ids), full

    def guard(self, value: Any) -> Any:
        """Messages with every control token's name in their text made unrecognisable, for `encode_prompt` to undo."""
        if isinstance(value, str):
            return self._control_pattern.sub(self._masked, value.replace(MARK, REPLACEMENT_TEXT))
        if isinstance(value, dict):
            return {key: self.guard(item) for key, item in value.items()}
        if isinstance(value, list):
            return [self.guard(item) for item in value]
        return value

    def encode_prompt(self, text: str) -> list[int]:
        """A prompt that a template made of guarded messages; the template's own control tokens are control tokens."""
        if MARK not in text:
            ids: list[int] = self._plain.encode(text, add_special_tokens=False).ids
            return ids
        out: list[int] = []
        position = 0
        for hit in self._control_pattern.finditer(text):
            out += self._encode_text(text[position : hit.start()])
            out.append(self.control[hit.group()])
            position = hit.end()
        return out + self._encode_text(text[position:])

    def _masked(self, hit: re.Match[str]) -> str:
        return f"{MARK}{self.control[hit.group()]}{MARK}"

    def _encode_text(self, text: str) -> list[int]:
        if not text:
            return []
        names = {str(number): name for name, number in self.control.items()}
        unmasked = re.sub(f"{MARK}(\\d+){MARK}", lambda hit: names[hit.group(1)], text)
        ids: list[int] = self._text_only.encode(unmasked, add_special_tokens=False).ids
        return ids
