"""From an estimate to Kenward and Roger's adjustment."""

from __future__ import annotations

from typing import Literal

import numpy as np
from numpy.typing import NDArray

from bayeslmm.data.design import Design
from bayeslmm.estimation.directions import directions
from bayeslmm.estimation.estimate import Fit
from bayeslmm.estimation.inference import Inference
from bayeslmm.estimation.kenward_roger import (
    Adjustment,
    KenwardRoger,
    KenwardRogerLinear,
    inverse_information,
    weighted_bias,
)
from bayeslmm.estimation.structured_forms import from_rows
from bayeslmm.estimation.variance_forms import entry_forms
from bayeslmm.exceptions import DataError

Array = NDArray[np.float64]
Form = Literal["full", "linear"]

NOT_REML = (
    "Kenward and Roger's method is for REML estimates, of which it corrects the bias; this one is "
    "by {method}. Take model.reml(), or df='satterthwaite'."
)
KNOWN = (
    "Kenward and Roger's method is not there where parameters other than sigma are known (fixed=): "
    "take df='satterthwaite'."
)


def kenward_roger(design: Design, fit: Fit, form: Form = "full") -> Inference:
    """Judge the fixed effects as Kenward and Roger do.

    Raises
    ------
    ValueError
        If the estimate is not by REML, or a pattern is at the boundary of its parameters.
    DataError
        If parameters other than sigma are known, or too much is tied to each other.
    """
    if fit.method != "REML":
        raise ValueError(NOT_REML.format(method=fit.method))
    full = form == "full"
    plain = fit.plan.residual.plain
    adjustment = from_sums(fit, full=full) if plain else from_rows(design, fit, full=full)
    made = KenwardRoger if full else KenwardRogerLinear
    return made(fit, adjustment)


def from_sums(fit: Fit, *, full: bool) -> Adjustment:
    """The adjustment where residuals are independent with one variance, from cross-products.

    With the expected information, as pbkrtest; parameters of residuals count with those of
    random effects. A direction of which the data say nothing is left out (pbkrtest: ``ginv``).
    """
    fact, held = fit.factorisation, fit.plan.held
    if held is not None and list(held.held_places) != [held.sigma]:
        raise DataError(KNOWN)
    products = fit.plan.products
    forms, entries = entry_forms(fact)
    covariances = [t @ t.T for t in fit.factors]
    slopes, bends = directions(products.structures, products.basis.random, covariances, entries)
    weights = np.column_stack([slopes, np.zeros(len(slopes))])
    if held is None:
        working = [t @ t.T for t in fact.factors]
        own = np.array([-working[f][row, col] for f, row, col in entries])
        weights = np.vstack([weights, np.append(own, 1.0)])  # the residuals': V less ZGZ'
    mine = forms.combined(weights)
    spread = inverse_information(mine.information)
    bias = weighted_bias(mine.first, mine.pairs, spread)
    if full and bends.any():
        f = len(bends)
        bent = np.einsum("ij,ijm->m", spread[:f, :f], bends)
        bias = bias - 0.25 * np.tensordot(bent, forms.first[:-1], 1)
    return Adjustment(root=fit.sigma * mine.root, first=mine.first, spread=spread, bias=bias)
