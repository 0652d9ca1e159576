"""The error that a user can act on, and the warning that a user should read."""


class MiloraError(ValueError):
    """A rule was broken: `message` names the rule and the value, `hint` says how to fix it."""

    def __init__(self, message: str, hint: str) -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint

    def __str__(self) -> str:
        return f"{self.message} ({self.hint})"

    def __reduce__(self) -> tuple[type["MiloraError"], tuple[str, str]]:
        return type(self), (self.message, self.hint)  # from a process of its own to the one that waits for it


class MiloraWarning(UserWarning):
    """Something is as it was asked for, and may not be what was meant."""
