"""The one error type of this package: a sentence for the person at the terminal, on one line, saying what to do."""


class DevclusterError(Exception):
    """Something a user can act upon. `str()` is the line that is printed; the exit code of the command is `code`."""

    def __init__(self, message: str, code: int = 1) -> None:
        super().__init__(message)
        self.code = code
