"""Effects whose tests are planned: coefficients, hypotheses and terms of the fixed part."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np
from numpy.typing import NDArray

from bayeslmm.data.design import Design
from bayeslmm.effects.expressions import NotLinearError, symbols_of
from bayeslmm.effects.hypothesis import read_hypotheses, single_comparisons
from bayeslmm.effects.tests_of_fixed import term_hypotheses
from bayeslmm.exceptions import DataError, FormulaError, check_choice

Array = NDArray[np.float64]

TestKind = Literal["auto", "t", "F"]


@dataclass(frozen=True, slots=True, eq=False)
class Target:
    """A hypothesis ``weights @ beta + constant = 0``, or that it is not above or below zero.

    Attributes
    ----------
    label : str
        As given.
    weights : ndarray (q, p)
        Weights of the coefficients.
    constant : float
        Added to a single combination.
    relation : {"=", ">", "<"}
        What is to be shown: any difference, more, or less than zero.
    joint : bool
        Whether it is the F test of a term.
    """

    label: str
    weights: Array
    constant: float = 0.0
    relation: str = "="
    joint: bool = False

    def value(self, beta: Array) -> float:
        """The combination at given coefficients; NaN of a term."""
        return np.nan if self.joint else float(self.weights[0] @ beta + self.constant)


def targets_of(
    design: Design, effects: str | Sequence[str] | None, test: TestKind = "auto"
) -> tuple[Target, ...]:
    """What is tested, by its names.

    Parameters
    ----------
    design : Design
        The design of the study.
    effects : str or sequence of str or None
        Labels of coefficients, hypotheses such as ``"arm[b] - arm[a] > 0"``, or terms; all
        coefficients but the intercept by default.
    test : {"auto", "t", "F"}
        "F": names are terms. "auto": a name that is both is the coefficient.

    Raises
    ------
    DataError
        If a name is unknown, or its effect cannot be estimated in this design.
    FormulaError
        If a hypothesis cannot be read, or is not linear in the fixed effects.
    """
    check_choice(test, get_args(TestKind), "test")
    if effects is None:
        effects = [coef for coef in design.coefs if coef != "Intercept"]
    names = [effects] if isinstance(effects, str) else list(effects)
    if not names or not all(isinstance(name, str) for name in names):
        raise DataError(f"effects={effects!r}: names of effects are expected.")
    return tuple(_target(design, name, test) for name in names)


def _target(design: Design, name: str, test: TestKind) -> Target:
    if test != "F" and name in design.coefs:
        return Target(name, np.eye(design.p)[[design.coefs.index(name)]])
    if test != "F" and any(sign in name for sign in "<>="):
        return _hypothesis(design, name)
    terms = term_hypotheses(design, 3)
    if test == "t" or name not in terms:
        known = f"The coefficients are {', '.join(design.coefs)}; the terms are {', '.join(terms)}."
        if name in design.aliased:
            known = "It is a combination of other coefficients in this design. " + known
        raise DataError(
            f"{name!r} is no effect of {design.formula.source!r}. {known} A hypothesis has a "
            "relation, as in 'arm[b] - arm[a] = 0'."
        )
    if not len(terms[name]):
        raise DataError(f"The term {name!r} is a combination of others in this design.")
    return Target(name, terms[name], joint=True)


def _hypothesis(design: Design, source: str) -> Target:
    symbols = symbols_of(design)
    (comparison,) = single_comparisons(read_hypotheses(source, symbols))
    try:
        form = symbols.form(comparison.difference)
    except NotLinearError as error:
        raise FormulaError(
            "Power is that of tests of linear combinations of the fixed effects.", source
        ) from error
    weights = design.spec.fixed.reduce(form.weights[None])
    if not np.isfinite(weights).all():
        raise DataError(
            f"{source!r} cannot be estimated in this design: it has cells without rows."
        )
    if not weights.any():
        raise DataError(f"{source!r} does not depend on the fixed effects.")
    return Target(source, weights, float(form.constant), comparison.relation)
