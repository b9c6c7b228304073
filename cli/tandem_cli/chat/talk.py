"""The chat at the terminal: prompt, streamed answer, commands, Ctrl-C and Ctrl-D; and one answer without a chat.

The shell around `conversation` (what is said) and `client` (who answers). Answers go to standard output, all else to
standard error, so that an answer can be piped on.
"""

import sys
import threading
import time
from contextlib import suppress
from typing import TextIO

from rich.console import Console
from rich.status import Status

from tandem_cli.chat.client import Server
from tandem_cli.chat.conversation import HELP, Conversation, command
from tandem_cli.chat.dialects import Piece
from tandem_cli.chat.prompt import read_entry
from tandem_cli.chat.trouble import Trouble

NOTICED_SECONDS = 0.5
_CONTROLS = {code: None for code in [*range(0x20), *range(0x7F, 0xA0)] if chr(code) not in "\n\t"}
"""Not shown on a terminal: a model's words must not move the cursor or change the title."""


class _Patience:
    """A line that says what is waited for, from when the waiting becomes noticeable until `stop`."""

    def __init__(self, console: Console, text: str) -> None:
        self._status = Status(text, console=console)
        self._timer = threading.Timer(NOTICED_SECONDS, self._status.start)
        self._timer.daemon = True
        if console.is_terminal:
            self._timer.start()

    def stop(self) -> None:
        """Takes the line away; may be called again."""
        self._timer.cancel()
        if self._timer.ident is not None:
            self._timer.join()
        self._status.stop()


class Talk:
    """One person, one model.

    Args:
        console: for what is not an answer.
        out: for answers.
    """

    def __init__(self, server: Server, model: str, conversation: Conversation, console: Console, out: TextIO) -> None:
        self._server = server
        self._model = model
        self._conversation = conversation
        self._console = console
        self._out = out

    def once(self, prompt: str) -> None:
        """One answer. Raises Trouble; Ctrl-C goes through as KeyboardInterrupt."""
        self._answer(prompt, [])

    def chat(self) -> None:
        """Until /bye or Ctrl-D. What goes wrong is told and the chat goes on."""
        with suppress(ImportError):
            import readline  # noqa: F401 - gives `input` editing and history
        while True:
            try:
                entry = read_entry(input)
            except EOFError:
                self._tell("")
                return
            except KeyboardInterrupt:
                self._tell("\nCtrl-D or /bye ends the chat.")
                continue
            asked = command(entry)
            if asked is not None:
                if asked[0] in ("bye", "exit"):
                    return
                self._obey(*asked)
            elif entry.strip():
                self._turn(entry)

    def _obey(self, name: str, argument: str) -> None:
        if name == "clear":
            self._conversation.said.clear()
            self._tell("What was said is forgotten.")
        elif name == "set":
            try:
                self._tell(self._conversation.set(argument))
            except ValueError as error:
                self._tell(str(error))
        elif name in ("help", "?"):
            self._tell(HELP)
        else:
            self._tell(f"there is no command /{name}; /help tells which there are")

    def _turn(self, prompt: str) -> None:
        parts: list[str] = []
        try:
            self._answer(prompt, parts)
        except KeyboardInterrupt:
            self._end_line(parts)
            self._tell("stopped")
        except Trouble as error:
            self._end_line(parts)
            self._tell(f"tandem run: {error}")
        self._out.write("\n")
        self._out.flush()
        self._conversation.answered(prompt, "".join(parts))

    def _answer(self, prompt: str, parts: list[str]) -> None:
        """Writes the answer as it comes and collects it in `parts`, so that it is known when it breaks off."""
        began = time.monotonic()
        first = 0.0
        messages = self._conversation.asking(prompt)
        pieces = self._server.answer(self._model, messages, self._conversation.settings)
        last = Piece()
        waiting = _Patience(self._console, f"{self._model} has not begun to answer yet")
        try:
            for piece in pieces:
                if not first:
                    waiting.stop()
                    first = time.monotonic()
                self._write(piece.text, parts)
                last = piece
        finally:
            waiting.stop()
            pieces.close()  # type: ignore[attr-defined]
        self._end_line(parts)
        if last.finish == "length":
            limited = "num_predict" in self._conversation.settings
            self._tell(f"(cut off: {'num_predict is reached' if limited else 'the context is full'})")
        if self._conversation.verbose:
            self._tell(statistics(last, first - began, time.monotonic() - first))

    def _write(self, text: str, parts: list[str]) -> None:
        shown = text.translate(_CONTROLS) if self._out.isatty() else text
        parts.append(text)
        self._out.write(shown)
        self._out.flush()

    def _end_line(self, parts: list[str]) -> None:
        if parts and not "".join(parts[-2:]).endswith("\n"):
            self._out.write("\n")
        self._out.flush()

    def _tell(self, text: str) -> None:
        self._console.print(text, markup=False, highlight=False, soft_wrap=True, style="dim")


def statistics(last: Piece, first_seconds: float, answer_seconds: float) -> str:
    """Counts and times of an answer, as one line."""
    parts = [f"first word after {first_seconds:.2f} s"]
    if last.prompt_tokens is not None:
        parts.append(f"{last.prompt_tokens} tokens of prompt")
    if last.answer_tokens is not None:
        parts.append(f"{last.answer_tokens} of answer")
        if last.answer_tokens > 1 and answer_seconds > 0:
            parts.append(f"{(last.answer_tokens - 1) / answer_seconds:.1f} tokens a second")
    return f"({', '.join(parts)})"


def standard_console() -> Console:
    """Standard error, for people."""
    return Console(stderr=True, file=sys.stderr)
