"""A program on a terminal of its own, as a person has it: typed to and read from, with a bound on every wait."""

import os
import pty
import re
import select
import signal
import struct
import subprocess
import termios
import time
from collections.abc import Sequence
from fcntl import ioctl
from typing import Self

_ESCAPES = re.compile(r"\x1b(\[[0-9;?<>=]*[a-zA-Z]|\][^\x07]*\x07|[=>])")


class Terminal:
    """A running program. `seen` is all that it wrote so far, without escape sequences."""

    def __init__(self, command: Sequence[str], columns: int = 100, **environment: str) -> None:
        self._master, slave = pty.openpty()
        ioctl(slave, termios.TIOCSWINSZ, struct.pack("HHHH", 40, columns, 0, 0))
        given = {**os.environ, "TERM": "xterm", "COLUMNS": "", "INPUTRC": "/dev/null", **environment}
        del given["COLUMNS"]

        def control() -> None:
            # Tests may themselves run in the background, where Ctrl-C is ignored; a login shell's children hear it.
            signal.signal(signal.SIGINT, signal.SIG_DFL)
            os.setsid()
            ioctl(0, termios.TIOCSCTTY, 0)

        self.process = subprocess.Popen(
            command, stdin=slave, stdout=slave, stderr=slave, env=given, preexec_fn=control, close_fds=True
        )
        os.close(slave)
        self._raw = b""
        self._from = 0

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        if self.process.poll() is None:
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()
        os.close(self._master)

    @property
    def seen(self) -> str:
        return _ESCAPES.sub("", self._raw.decode("utf-8", "replace")).replace("\r\n", "\n")

    @property
    def shown(self) -> list[str]:
        """The lines that stand on the screen, those that scrolled off it included."""
        lines, row, column = [""], 0, 0
        for part in re.findall(r"\x1b\[[0-9;?]*[a-zA-Z]|\x1b\][^\x07]*\x07|[\r\n]|[^\x1b\r\n]+", self._raw.decode()):
            if part == "\r":
                column = 0
            elif part == "\n":
                row += 1
                lines += [""] * (row + 1 - len(lines))
            elif part.endswith("A") and part.startswith("\x1b"):
                row -= int(part[2:-1] or 1)
            elif part == "\x1b[2K":
                lines[row] = ""
            elif not part.startswith("\x1b"):
                lines[row] = lines[row][:column].ljust(column) + part + lines[row][column + len(part) :]
                column += len(part)
        return [line.rstrip() for line in lines if line.strip()]

    @property
    def raw(self) -> bytes:
        return self._raw

    def type(self, text: str) -> None:
        """Keys, Return included where there is a newline. What was seen before no longer counts for `wait`."""
        self._from = len(self.seen)
        os.write(self._master, text.encode())

    def wait(self, pattern: str, seconds: float = 30.0) -> str:
        """What came since the last `type` once it matches."""
        deadline = time.monotonic() + seconds
        while True:
            found = self.seen[self._from :]
            if re.search(pattern, found, re.DOTALL):
                return found
            left = deadline - time.monotonic()
            assert left > 0, f"{pattern!r} did not come within {seconds:.0f} s; seen:\n{self.seen}"
            self._read(min(left, 0.5), pattern)

    def press(self, key: str, pattern: str, seconds: float = 30.0) -> None:
        """A key until it shows: a signal that comes just as a prompt begins to read is only seen with the next."""
        deadline = time.monotonic() + seconds
        self.type(key)
        while not re.search(pattern, self.seen[self._from :], re.DOTALL):
            assert time.monotonic() < deadline, f"{pattern!r} did not come within {seconds:.0f} s; seen:\n{self.seen}"
            before = len(self._raw)
            self._read(1.0, pattern)
            if len(self._raw) == before:
                os.write(self._master, key.encode())

    def end(self, seconds: float = 30.0) -> int:
        """The exit status, once the program has ended by itself."""
        deadline = time.monotonic() + seconds
        while self.process.poll() is None:
            assert time.monotonic() < deadline, f"the program goes on; seen:\n{self.seen}"
            self._read(0.1, None)
        self._read(0.0, None)
        return self.process.wait()

    def _read(self, seconds: float, pattern: str | None) -> None:
        if not select.select([self._master], [], [], seconds)[0]:
            return
        try:
            self._raw += os.read(self._master, 65536)
        except OSError:  # the program has closed its terminal
            self.process.wait(timeout=10)
            assert pattern is None, f"the program ended before {pattern!r} came; seen:\n{self.seen}"
