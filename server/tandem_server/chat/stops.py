"""Stop strings: ends an answer where one of them begins, wherever the borders of tokens or steps fall.

On the path of every generated piece of text, after `detokenizer` and before the dialect. What might yet become a
stop string is held back; what follows one is never given out.
"""


class StopStrings:
    """Looks for the first complete one of several stop strings in text that comes in pieces."""

    def __init__(self, stops: tuple[str, ...]) -> None:
        self._stops = stops
        self._held = ""
        self.found: str | None = None
        """The stop string that ended the answer."""

    def push(self, text: str) -> str:
        """Text that may be given out after this further piece; nothing more once `found` is set."""
        if self.found is not None:
            return ""
        if not self._stops:
            return text
        text = self._held + text
        self._held = ""
        hits = [(at + len(stop), at, stop) for stop in self._stops if (at := text.find(stop)) >= 0]
        if hits:
            # The one that is complete first wins: so the outcome does not depend on how the text was cut.
            _, at, self.found = min(hits)
            return text[:at]
        keep = max(_overlap(text, stop) for stop in self._stops)
        if keep:
            self._held = text[-keep:]
            return text[:-keep]
        return text

    def finish(self) -> str:
        """What was held back and became no stop string."""
        held, self._held = self._held, ""
        return held


def _overlap(text: str, stop: str) -> int:
    """Length of the longest proper beginning of `stop` that `text` ends with."""
    for length in range(min(len(stop) - 1, len(text)), 0, -1):
        if text.endswith(stop[:length]):
            return length
    return 0
