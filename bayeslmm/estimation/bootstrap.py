"""Parametric bootstrap: refits of an estimate to responses simulated from it."""

from __future__ import annotations

from dataclasses import replace
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from bayeslmm.data.design import Design
from bayeslmm.estimation.effects import linear_predictor
from bayeslmm.estimation.estimate import Fit, fit_likelihood, points_of_fits
from bayeslmm.estimation.progress import tracked
from bayeslmm.estimation.residuals import draw_residuals
from bayeslmm.exceptions import DataError, SamplingError
from bayeslmm.likelihood.marginal import marginal_system

Array = NDArray[np.float64]

MOST_FAILURES = 0.1
"""Share of refits that may fail before the bootstrap is refused."""


def simulate_responses(design: Design, fit: Fit, size: int, rng: np.random.Generator) -> Array:
    """Simulate responses (size, n) at the estimate, with new random effects."""
    point, result = points_of_fits([fit]), np.empty((size, design.n))
    for row in result:
        effects = [
            factor.effects(
                rng.standard_normal((factor.n_levels, factor.n_coefs)) @ (fit.sigma * t).T
            )
            for factor, t in zip(design.random, fit.factors, strict=True)
        ]
        row[:] = linear_predictor(design, fit.beta, effects)
        row += draw_residuals(design, point, rng)[0]
    return result


def bootstrap_fits(
    design: Design,
    fit: Fit,
    size: int,
    random_seed: int | np.random.Generator | None = None,
    *,
    progressbar: bool = True,
) -> list[Fit]:
    """Refit a model to responses simulated from its estimate.

    Parameters
    ----------
    design : Design
        The design of the model.
    fit : Fit
        Its REML or ML estimate.
    size : int
        Number of refits.
    random_seed : int or numpy.random.Generator, optional
        Seed.
    progressbar : bool
        Whether to show one.

    Returns
    -------
    list of Fit
        Of length `size`; a simulated response whose refit fails is replaced by another.

    Raises
    ------
    SamplingError
        If the estimate is a "MAP" one, or too many refits fail.

    References
    ----------
    lme4's ``bootMer`` with ``use.u = FALSE``.
    """
    if fit.method not in ("REML", "ML"):
        raise SamplingError(
            f"A parametric bootstrap refits REML or ML estimates; this one is {fit.method}. Draw "
            "from the posterior with model.fit() instead."
        )
    rng = np.random.default_rng(random_seed)
    failures: list[DataError] = []
    fits: list[Fit] = []
    for _ in tracked(range(size), "Bootstrap", progressbar):
        refitted = None
        while refitted is None:
            refitted = _refit(design, fit, rng, failures)
            if len(failures) > max(1.0, MOST_FAILURES * size):
                raise SamplingError(
                    f"{len(failures)} refits failed beside {len(fits)} that succeeded, the last "
                    f"with: {failures[-1]}"
                ) from failures[-1]
        fits.append(refitted)
    return fits


def _refit(
    design: Design, fit: Fit, rng: np.random.Generator, failures: list[DataError]
) -> Fit | None:
    """Refit to one simulated response; a failure is recorded."""
    y = simulate_responses(design, fit, 1, rng)[0]
    method: Literal["REML", "ML"] = "REML" if fit.method == "REML" else "ML"
    try:
        return fit_likelihood(marginal_system(replace(design, y=y)), method)
    except DataError as error:
        failures.append(error)
        return None
