"""A grammar without a tokenizer: written as a number, it forbids some tokens at each place and ends after so many.

Compiled only after some looks, so that requests overtake it; `bad` fails to compile.
"""

import random


class FakeGrammar:
    """See the module. `told` are the tokens that it was told, `asked` counts masks."""

    def __init__(self, text: str, vocabulary: int, looks: int) -> None:
        self._text, self._vocabulary, self._looks = text, vocabulary, looks
        self.told: list[int] = []

    @property
    def ready(self) -> bool:
        self._looks -= 1
        return self._looks < 0

    @property
    def error(self) -> str:
        if self._text == "bad":
            return "it is bad"
        wrong = [token for place, token in enumerate(self.told) if not possible(token, place)]
        return f"token {wrong[0]} is impossible" if wrong else ""

    @property
    def complete(self) -> bool:
        return len(self.told) >= int(self._text)

    def mask(self) -> bytes:
        bits = sum(1 << token for token in range(self._vocabulary) if possible(token, len(self.told)))
        return bits.to_bytes(-(-self._vocabulary // 32) * 4, "little")

    def accept(self, token: int) -> None:
        self.told.append(token)


def possible(token: int, place: int) -> bool:
    """Whether a token may stand there in the answer."""
    return (token + place) % 3 != 0


def nearest(token: int, allowed: "set[int]", vocabulary: int) -> int:
    """The first allowed token from `token` on, around the end; 0, which breaks the fake model, is none."""
    return next(t for t in [*range(token, vocabulary), *range(1, token)] if t in allowed)


def compiler(vocabulary: int, rng: random.Random):
    """What a scheduler compiles with."""
    return lambda text, ends: FakeGrammar(text, vocabulary, rng.choice([0, 0, 1, 5]))
