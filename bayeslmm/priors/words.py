"""Priors written as Stan and brms write them: ``"normal(0, 10)"``, ``"student_t(3, 0, 2.5)"``.

The text is one name of a list and numbers; nothing is evaluated. What it gives is what the same
distribution of PyMC gives, truncated to where the parameter lives, as brms does.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from bayeslmm.exceptions import FormulaError, PriorError
from bayeslmm.priors.families import (
    LKJ,
    Exponential,
    Flat,
    Gamma,
    HalfCauchy,
    HalfNormal,
    HalfStudentT,
    InverseGamma,
    LogNormal,
    Normal,
    Prior,
)

LONGEST = 200
"""Characters of a prior."""

Bounds = tuple[float, float]
EVERYWHERE: Bounds = (-np.inf, np.inf)
POSITIVE: Bounds = (0.0, np.inf)

_CALL = re.compile(r"\s*(?P<name>[A-Za-z_]\w*)\s*(?P<open>\()?")
_NUMBER = re.compile(r"\s*(?P<number>[-+]?(\d+\.?\d*|\.\d+)([eE][-+]?\d+)?)\s*")


@dataclass(frozen=True, slots=True)
class Word:
    """A distribution by its name in Stan.

    Attributes
    ----------
    parameters : tuple of str
        Names of its numbers, in Stan's order.
    make : callable
        From the numbers to a prior, or to a distribution of PyMC.
    half : callable or None
        The same for the half above zero, where that has a closed form and the location is zero.
    location : int
        Place of the location among the numbers; -1 without one.
    """

    parameters: tuple[str, ...]
    make: Callable[..., Any]
    half: Callable[..., Any] | None = None
    location: int = -1


def prior_of_words(text: str, name: str, bounds: Bounds) -> Any:
    """Read a prior.

    Parameters
    ----------
    text : str
        Such as ``"normal(0, 10)"``; ``"flat"``, ``"(flat)"`` or an empty text for none.
    name : str
        The key of the prior, for messages.
    bounds : pair of float
        Where the parameter lives; a distribution that goes beyond is truncated there.

    Returns
    -------
    Prior, LKJ or TensorVariable
        What a user could have given in its place.

    Raises
    ------
    PriorError
        Showing the place, with what is allowed.
    """
    if len(text) > LONGEST:
        raise PriorError(
            f"The prior for {name!r} has {len(text)} characters; at most {LONGEST} are allowed."
        )
    if text.strip() in ("", "flat", "(flat)", "flat()"):
        return Flat()
    word, numbers = _read(text, name)
    return _truncated(word, numbers, bounds, text, name)


def _read(text: str, name: str) -> tuple[Word, list[float]]:
    """The distribution and its numbers."""
    start = _CALL.match(text)
    if start is None:
        raise _fault(f"The prior for {name!r} begins with the name of a distribution.", text, 0, 1)
    word = WORDS.get(start["name"])
    if word is None:
        raise _fault(
            f"`{start['name']}` is no distribution known here, for the prior of {name!r}. Known "
            f"are {_known()}; any other one of PyMC as pm.Name.dist(...).",
            text,
            *start.span("name"),
        )
    if start["open"] is None:
        raise _fault(f"Numbers in parentheses are missing: {_shape(start['name'])}.", text, 0, None)
    numbers, end = _numbers(text, start.end(), start["name"])
    if len(numbers) != len(word.parameters):
        raise _fault(
            f"{len(numbers)} numbers where {len(word.parameters)} are expected: "
            f"{_shape(start['name'])}.",
            text,
            start.start("open"),
            end,
        )
    if text[end:].strip():
        raise _fault("The prior should end here.", text, end, len(text))
    return word, numbers


def _numbers(text: str, at: int, word: str) -> tuple[list[float], int]:
    """Numbers up to the closing parenthesis, and the place after it."""
    numbers: list[float] = []
    if text[at:].lstrip().startswith(")"):
        return numbers, text.index(")", at) + 1
    while True:
        found = _NUMBER.match(text, at)
        if found is None:
            raise _fault(f"A number is expected here, as in {_shape(word)}.", text, at, None)
        number = float(found["number"])
        if not np.isfinite(number):
            raise _fault("This number is too large.", text, *found.span("number"))
        numbers.append(number)
        at = found.end()
        sign = text[at : at + 1]
        if sign == ")":
            return numbers, at + 1
        if sign != ",":
            raise _fault("A comma or a closing parenthesis is expected here.", text, at, None)
        at += 1


def _truncated(word: Word, numbers: list[float], bounds: Bounds, text: str, name: str) -> Any:
    try:
        centred = word.location < 0 or numbers[word.location] == 0.0
        if bounds == POSITIVE and word.half is not None and centred:
            return word.half(*(v for i, v in enumerate(numbers) if i != word.location))
        prior = word.make(*numbers)
        if bounds == EVERYWHERE or isinstance(prior, LKJ) or _inside(prior, bounds):
            return prior
        return _cut(prior, bounds)
    except PriorError as error:
        raise _fault(f"The prior for {name!r}: {error}", text, 0, len(text)) from error


def _inside(prior: Any, bounds: Bounds) -> bool:
    """Whether a distribution has no density outside the bounds, as far as that is known here."""
    if isinstance(prior, Prior):
        return bool(prior.positive) and bounds == POSITIVE
    from bayeslmm.priors.pymc_priors import as_prior

    low, high = bounds
    outside = [low - np.logspace(-6, 6, 13)] if np.isfinite(low) else []
    outside += [high + np.logspace(-6, 6, 13)] if np.isfinite(high) else []
    known = as_prior(prior, "prior")
    return isinstance(known, Prior) and not np.any(known.logpdf(np.concatenate(outside)) > -np.inf)


def _cut(prior: Any, bounds: Bounds) -> Any:
    """A distribution of PyMC within bounds."""
    import pymc as pm

    low, high = (bound if np.isfinite(bound) else None for bound in bounds)
    if isinstance(prior, Normal):
        return pm.TruncatedNormal.dist(prior.mu, prior.sigma, lower=low, upper=high)
    dist = prior.dist() if isinstance(prior, Prior) else prior
    return pm.Truncated.dist(dist, lower=low, upper=high)


def _pymc(family: str, *names: str) -> Callable[..., Any]:
    """A distribution of PyMC from numbers with these names there."""

    def make(*numbers: float) -> Any:
        import pymc as pm

        return getattr(pm, family).dist(**dict(zip(names, numbers, strict=True)))

    return make


def _half_laplace(scale: float) -> Any:
    return Exponential(1.0 / scale) if scale > 0 else _pymc("Laplace", "mu", "b")(0.0, scale)


WORDS: Mapping[str, Word] = {
    "normal": Word(("mu", "sigma"), Normal, HalfNormal, 0),
    "std_normal": Word((), lambda: Normal(0.0, 1.0), lambda: HalfNormal(1.0)),
    "student_t": Word(
        ("nu", "mu", "sigma"), _pymc("StudentT", "nu", "mu", "sigma"), HalfStudentT, 1
    ),
    "cauchy": Word(("mu", "sigma"), _pymc("Cauchy", "alpha", "beta"), HalfCauchy, 0),
    "double_exponential": Word(("mu", "sigma"), _pymc("Laplace", "mu", "b"), _half_laplace, 0),
    "logistic": Word(("mu", "sigma"), _pymc("Logistic", "mu", "s")),
    "skew_normal": Word(("mu", "sigma", "alpha"), _pymc("SkewNormal", "mu", "sigma", "alpha")),
    "gumbel": Word(("mu", "beta"), _pymc("Gumbel", "mu", "beta")),
    "exponential": Word(("rate",), Exponential),
    "gamma": Word(("alpha", "beta"), Gamma),
    "inv_gamma": Word(("alpha", "beta"), InverseGamma),
    "lognormal": Word(("mu", "sigma"), LogNormal),
    "weibull": Word(("alpha", "sigma"), _pymc("Weibull", "alpha", "beta")),
    "chi_square": Word(("nu",), _pymc("ChiSquared", "nu")),
    "beta": Word(("alpha", "beta"), _pymc("Beta", "alpha", "beta")),
    "uniform": Word(("lower", "upper"), _pymc("Uniform", "lower", "upper")),
    "lkj": Word(("eta",), LKJ),
    "lkj_corr": Word(("eta",), LKJ),
    "lkj_corr_cholesky": Word(("eta",), LKJ),
}
"""Distributions by their names in Stan, with Stan's numbers in Stan's order."""


def _known() -> str:
    return ", ".join(_shape(name) for name in WORDS)


def _shape(name: str) -> str:
    return f"{name}({', '.join(WORDS[name].parameters)})"


def _fault(message: str, text: str, start: int, end: int | None) -> PriorError:
    return PriorError(str(FormulaError(message, text, start, len(text) if end is None else end)))
