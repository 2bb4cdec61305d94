"""The errors that users of this package are meant to read.

HelpersError
├── ConfigError        a parameter is wrong, or two contradict each other
├── DataError          a data file, a row or a prompt is not what it should be
├── TemplateError      a chat template or its tokens are not what the model was trained on
├── ContractError      tokens and labels would teach the model something unintended
├── StackError         the installed packages or the hardware cannot do what is asked
├── RunError           a run directory cannot be used, or a run failed
│   └── CellError      a notebook was started and did not run to its end
├── ExportError        an adapter or a merged model cannot be written, read or trusted
└── EvaluationError    answers, scores or votes cannot be compared
"""

from __future__ import annotations

__all__ = [
    "CellError",
    "ConfigError",
    "ContractError",
    "DataError",
    "EvaluationError",
    "ExportError",
    "HelpersError",
    "RunError",
    "StackError",
    "TemplateError",
]


class HelpersError(Exception):
    """Something a user can put right.

    The message has four parts, each also an attribute: which `field` is wrong, what was
    `expected`, what was `got`, and the `remedy`: what to do next.

    Args:
        field: The parameter, file, column or row at fault, as the user knows it.
        expected: What would have been right, as a noun phrase.
        got: What was found. Shown with `repr`, shortened to 200 characters.
        remedy: One or two sentences on what to do.

    Example:
        >>> raise ConfigError("max_steps", "a whole number of at least 1", -3, "Use 60.")
        Traceback (most recent call last):
        helpers.core.errors.ConfigError: max_steps: expected a whole number of at least 1, got -3. Use 60.
    """

    def __init__(self, field: str, expected: str, got: object, remedy: str = "") -> None:
        self.field = field
        self.expected = expected
        self.got = got
        self.remedy = remedy
        super().__init__(field, expected, got, remedy)

    def __str__(self) -> str:
        shown = _shown(self.got)
        shown = shown if len(shown) <= 200 else shown[:197] + "..."
        return f"{self.field}: expected {self.expected}, got {shown}. {self.remedy}".rstrip()


def _shown(value: object) -> str:
    """Return a value as Python writes it, or its type where Python cannot.

    Integers of more than 4300 digits have no repr, nor do lists that are nested too deeply.
    """
    try:
        return repr(value)
    except (ValueError, RecursionError, OverflowError):
        return f"a value of type {type(value).__name__} that cannot be shown"


class ConfigError(HelpersError):
    """A parameter is wrong, or two parameters contradict each other."""


class DataError(HelpersError):
    """A data file, a row or a prompt is not what it should be."""


class TemplateError(HelpersError):
    """A chat template or its tokens are not what the model was trained on."""


class ContractError(HelpersError):
    """Tokens and labels would teach the model something else than meant."""


class StackError(HelpersError):
    """The installed packages or the hardware cannot do what is asked."""


class RunError(HelpersError):
    """A run directory cannot be used, or a run failed."""


class CellError(RunError):
    """A notebook was started and did not run to its end.

    Args:
        expected: What it should have done.
        details: Several lines to show above the message: the cell's source and its error.
    """

    def __init__(self, place: str, expected: str, got: object, remedy: str = "", details: str = "") -> None:
        super().__init__(place, expected, got, remedy)
        self.details = details


class ExportError(HelpersError):
    """An adapter or a merged model cannot be written, read or trusted."""


class EvaluationError(HelpersError):
    """Answers, scores or votes cannot be compared."""
