"""The error that a user can act on."""


class MiloraError(ValueError):
    """A rule was broken: `message` names the rule and the value, `hint` says how to fix it."""

    def __init__(self, message: str, hint: str) -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint

    def __str__(self) -> str:
        return f"{self.message} ({self.hint})"
