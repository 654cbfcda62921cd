"""Errors whose message is for the person at the keyboard; `run_tool` turns them into exit codes."""


class ImpruverError(Exception):
    """Something that the user or the machine must put right: one message, exit code 2."""

    exit_code = 2


class RecipeError(ImpruverError):
    """All faults of a recipe at once, each with its file, line and key path."""

    def __init__(self, faults: list[str]):
        super().__init__("\n".join(faults))
        self.faults = faults


class CheckFailedError(ImpruverError):
    """A check of ours failed (mask, parity, quality, NaN): exit code 3."""

    exit_code = 3


class RefusedError(ImpruverError):
    """A conversation that can't be encoded exactly; `reason` is one of the ledger's."""

    def __init__(self, reason: str, detail: str):
        super().__init__(f"{reason}: {detail}")
        self.reason = reason
        self.detail = detail


def describe_error(error: Exception) -> str:
    """An error's text in one line; where a library gives no more than a name or an operand, with the error's kind."""
    text = " ".join(str(error).split())
    terse = isinstance(error, (TypeError, AttributeError, LookupError, ArithmeticError, AssertionError))
    return f"{type(error).__name__}: {text}" if terse or not text else text
