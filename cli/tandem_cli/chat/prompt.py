"""What a person types, from one line or several, as one text.

First on the path of a chat's request. Editing and history are readline's, which only needs to be imported.
"""

from collections.abc import Callable

FIRST, MORE = ">>> ", "... "
_MARK = '"""'


def read_entry(read_line: Callable[[str], str]) -> str:
    """The next text: a line, a few that end with a backslash each, or what stands between two `\"\"\"`.

    Raises what `read_line` raises: EOFError for Ctrl-D, KeyboardInterrupt for Ctrl-C.
    """
    line = read_line(FIRST)
    if line.lstrip().startswith(_MARK):
        return _until_mark(line.lstrip().removeprefix(_MARK), read_line)
    lines = [line]
    while lines[-1].endswith("\\"):
        lines[-1] = lines[-1][:-1]
        lines.append(read_line(MORE))
    return "\n".join(lines)


def _until_mark(line: str, read_line: Callable[[str], str]) -> str:
    lines = [line]
    while not lines[-1].rstrip().endswith(_MARK):
        lines.append(read_line(MORE))
    lines[-1] = lines[-1].rstrip().removesuffix(_MARK)
    # The marks may stand on lines of their own, which are then no part of the text.
    if not lines[0]:
        del lines[0]
    if lines and not lines[-1]:
        del lines[-1]
    return "\n".join(lines)
