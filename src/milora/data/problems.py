"""A row that cannot be read, and why."""

from typing import Any

DROP = "correct the row, or set data.on_bad_row=drop: such rows are then dropped and counted"


class BadRowError(ValueError):
    """A row that cannot be read, and why. Who knows the file and the row's number turns it into a `MiloraError`."""

    def __init__(self, message: str, hint: str = DROP) -> None:
        super().__init__(message)
        self.hint = hint


def describe(value: Any) -> str:
    """Return what a cell contains instead of text, with its type."""
    if isinstance(value, str):
        return "text (str)" if value.strip() else "empty (str)"
    words = {"NoneType": "null", "int": "a number", "float": "a number", "list": "a list", "dict": "an object"}
    kind = type(value).__name__
    return f"{words.get(kind, 'a value')} ({kind})"
