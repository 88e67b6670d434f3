"""The maximum an estimate should be at, and how far the prior moves it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from bayeslmm.comparison.frequentist import Reported, unconstrained
from bayeslmm.estimation.estimate import Fit, fit_likelihood
from bayeslmm.estimation.map_estimate import fit_map
from bayeslmm.estimation.model import Model
from bayeslmm.exceptions import SamplingError
from bayeslmm.summaries.parameters import Parameter

Array = NDArray[np.float64]

MAX_ATANH = 6.0
"""Inverse hyperbolic tangent of a correlation that counts as one: 0.99999."""


@dataclass(frozen=True, slots=True, eq=False, kw_only=True)
class Reference:
    """Our own maximum and what the prior does to it.

    Attributes
    ----------
    values, errors : ndarray (m,)
        The maximum that an estimate should be at, and its standard errors, on the unconstrained
        scale; NaN or infinite at a boundary.
    prior_shift : ndarray (m,)
        Posterior mode less REML estimate in standard errors, on that scale; NaN where either is
        not known.
    width : ndarray (m,)
        Standard error at the posterior mode over that at the REML estimate.
    """

    values: Array
    errors: Array
    prior_shift: Array
    width: Array


def reference_modes(
    model: Model,
    reported: Reported,
    rows: Sequence[Parameter],
    own: Fit | None = None,
) -> Reference:
    """Find the REML or ML estimate and the posterior mode of a model.

    Parameters
    ----------
    model : Model
        The model.
    reported : Reported
        An estimate made elsewhere, which says what was maximised or is close to it.
    rows : sequence of Parameter
        Its parameters: all, or the fixed effects.
    own : Fit, optional
        The estimate itself where it was made here on this design.

    Returns
    -------
    Reference
    """
    restricted = own if own and own.method == "REML" else model.reml
    if own is None:
        own = _closest(reported, rows, restricted)
    values, errors = _unconstrained(own, rows)
    center, spread = _unconstrained(restricted, rows)
    prior_shift, width = np.full((2, len(rows)), np.nan)
    try:
        mode = fit_map(restricted.plan, model.priors, restricted)
    except SamplingError:  # no mode inside the support of the priors
        return Reference(values=values, errors=errors, prior_shift=prior_shift, width=width)
    moved, narrowed = _unconstrained(mode, rows)
    # A mode joint in beta differs from REML by more than the prior.
    if mode.optimum.converged and not mode.given_beta:
        with np.errstate(invalid="ignore"):
            prior_shift = (moved - center) / spread
    return Reference(values=values, errors=errors, prior_shift=prior_shift, width=narrowed / spread)


def on_scale(values: Array, rows: Sequence[Parameter]) -> Array:
    """Values (m, ...) of the parameters on their unconstrained scales."""
    return np.array([unconstrained(p.kind, v) for p, v in zip(rows, values, strict=True)])


def at_boundary(values: Array, rows: Sequence[Parameter]) -> NDArray[np.bool_]:
    """Whether values (m,) on the unconstrained scale mean an sd of zero or a correlation of one."""
    correlation = np.array([p.kind == "cor" for p in rows])
    return ~np.isfinite(values) | (correlation & (np.abs(values) > MAX_ATANH))


def _closest(reported: Reported, rows: Sequence[Parameter], restricted: Fit) -> Fit:
    """The fit by the estimate's method or, where that is not known, the nearer one."""
    if reported.method == "REML":
        return restricted
    full = fit_likelihood(restricted.plan, "ML")
    estimates = on_scale(reported.table["estimate"].to_numpy(), rows)

    def distance(fit: Fit) -> float:
        values, errors = _unconstrained(fit, rows)
        with np.errstate(invalid="ignore"):
            return float(np.nansum(np.abs((estimates - values) / errors)))

    return full if reported.method == "ML" or distance(full) < distance(restricted) else restricted


def _unconstrained(fit: Fit, rows: Sequence[Parameter]) -> tuple[Array, Array]:
    """Parameters and standard errors on the unconstrained scale; no error at a boundary."""
    values = np.concatenate([fit.beta, fit.parameters])[: len(rows)]
    variances = np.concatenate([np.diag(fit.vcov), np.diag(fit.parameter_cov)])[: len(rows)]
    with np.errstate(invalid="ignore"):
        errors = np.sqrt(variances)
    return values, np.where(at_boundary(values, rows), np.nan, errors)
