"""Exceptions raised by bayeslmm, how they list names, and checks that raise one of them."""

import importlib
import re
from collections.abc import Sequence
from types import ModuleType
from typing import Any

# half characters, controls and marks of direction, which files refuse or terminals obey
_UNPRINTABLE = re.compile(
    "[\x00-\x08\x0b-\x1f\x7f-\x9f\u200e\u200f\u202a-\u202e\u2066-\u2069\ud800-\udfff]"
)

_MAX_LISTED = 40


class BayesLMMError(Exception):
    """Base class of every error that bayeslmm raises on purpose."""


class FormulaError(BayesLMMError, ValueError):
    """A model formula that cannot be understood.

    Parameters
    ----------
    message : str
        What was found and what would be right.
    source : str, optional
        The formula as written.
    start, end : int, optional
        Position in `source` of the offending text; a caret line is drawn under it.
    """

    def __init__(
        self,
        message: str,
        source: str | None = None,
        start: int | None = None,
        end: int | None = None,
    ) -> None:
        super().__init__(message, source, start, end)
        self.message = message
        self.source = source
        self.start = start
        self.end = end

    def __str__(self) -> str:
        """Return the message, then the formula with carets under the offending text."""
        shown = self.message
        if self.source is not None and self.start is None:
            shown = f"{self.message}\n  {self.source}"
        elif self.source is not None and self.start is not None:
            end = self.start + 1 if self.end is None else self.end
            shown = f"{self.message}\n{_caret_lines(self.source, self.start, end)}"
        return _UNPRINTABLE.sub("\ufffd", shown)


def _caret_lines(source: str, start: int, end: int) -> str:
    """Lines of `source`, the one holding `start` followed by carets under `start:end`."""
    shown, position = [], 0
    for line in source.split("\n"):
        stop = position + len(line)
        shown.append(f"  {line}")
        if position <= start <= stop:
            indent = "".join("\t" if c == "\t" else " " for c in line[: start - position])
            shown.append(f"  {indent}{'^' * max(1, min(end, stop) - start)}")
        position = stop + 1
    return "\n".join(shown)


class DataError(BayesLMMError, ValueError):
    """Data that the model cannot use: missing columns, wrong types, empty frames."""


class NoEstimateError(DataError):
    """Data for which the likelihood has no maximum; a posterior may exist all the same."""


class PriorError(BayesLMMError, ValueError):
    """A prior with an unknown name or a distribution that does not fit its parameter."""


class SamplingError(BayesLMMError, RuntimeError):
    """Sampling or optimisation that failed or returned unusable results."""


class StorageError(BayesLMMError, RuntimeError):
    """A file that holds no posterior of this package, is damaged, or cannot be written."""


class OptionalDependencyError(BayesLMMError, ImportError):
    """A feature that needs a package which is not installed."""


def listed(names: Sequence[Any]) -> str:
    """Join names for a message, at most 40 of them."""
    shown = ", ".join(f"`{name}`" for name in names[:_MAX_LISTED])
    more = len(names) - _MAX_LISTED
    return f"{shown} and {more} more" if more > 0 else shown


def require(module: str, extra: str) -> ModuleType:
    """Import an optional module or say which extra installs it.

    Parameters
    ----------
    module : str
        Dotted name of the module, for example ``"matplotlib.pyplot"``.
    extra : str
        The extra of bayeslmm that installs it, for example ``"plots"``.

    Returns
    -------
    module
        The imported module.

    Raises
    ------
    OptionalDependencyError
        If the package is not installed. A failure inside an installed package is not hidden.
    """
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        top = module.partition(".")[0]
        if error.name is None or error.name.partition(".")[0] != top:
            raise
        raise OptionalDependencyError(
            f"This feature needs {top!r}, which is not installed. "
            f'Install it with: pip install "bayeslmm[{extra}]"',
            name=top,
        ) from error


def check_choice(value: Any, allowed: Sequence[Any], name: str) -> None:
    """Raise ValueError, which says what is allowed, unless a value is one of these."""
    if value not in allowed:
        known = ", ".join(map(repr, allowed))
        raise ValueError(f"{name}={value!r}: one of {known} is expected.")
