"""Parametric bootstrap: refits of an estimate to responses simulated from it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from copy import deepcopy
from dataclasses import replace
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from bayeslmm.data.design import Design
from bayeslmm.data.seeds import seeded
from bayeslmm.data.summarised import SummarisedDesign
from bayeslmm.estimation.effects import linear_predictor
from bayeslmm.estimation.estimate import Fit, fit_likelihood, points_of_fits
from bayeslmm.estimation.executor import Executor, Tasks, results
from bayeslmm.estimation.residuals import draw_residuals
from bayeslmm.exceptions import DataError, SamplingError
from bayeslmm.likelihood.marginal import marginal_system
from bayeslmm.likelihood.simulated import noise_of, simulated_design

Array = NDArray[np.float64]

MOST_FAILURES = 0.1
"""Share of refits that may fail before the bootstrap is refused."""


def simulate_responses(design: Design, fit: Fit, size: int, rng: np.random.Generator) -> Array:
    """Simulate responses (size, n) at the estimate, with new random effects."""
    point, result = points_of_fits([fit]), np.empty((size, design.n))
    for row in result:
        row[:] = linear_predictor(design, fit.beta, _new_effects(design, fit, rng))
        row += draw_residuals(design, point, rng)[0]
    return result


def _new_effects(design: Design, fit: Fit, rng: np.random.Generator) -> list[Array]:
    """Random effects (J, k) of each grouping factor, drawn anew at the estimate."""
    return [
        factor.effects(rng.standard_normal((factor.n_levels, factor.n_coefs)) @ (fit.sigma * t).T)
        for factor, t in zip(design.random, fit.factors, strict=True)
    ]


def _simulator(design: Design, fit: Fit) -> Callable[[np.random.Generator], Design]:
    """Function that simulates the design with another response, or with sums of one."""
    if not isinstance(design, SummarisedDesign):
        return lambda rng: replace(design, y=simulate_responses(design, fit, 1, rng)[0])
    noise = noise_of(design)

    def simulate(rng: np.random.Generator) -> Design:
        effects = _new_effects(design, fit, rng)
        return simulated_design(noise, design, fit.beta, effects, fit.sigma, rng)

    return simulate


def bootstrap_fits(
    design: Design,
    fit: Fit,
    size: int,
    random_seed: int | np.random.Generator | None = None,
    *,
    executor: Executor | None = None,
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
    executor : Executor, optional
        Where the refits run; they are the same everywhere.
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
    rng = seeded(random_seed)
    failures: list[DataError] = []
    fits: list[Fit] = []
    while (missing := size - len(fits)) > 0:
        tasks = Tasks(
            make=_refitter,
            parts=(design.without_data(), fit),
            items=_streams(design, fit, rng, missing, here=executor is None),
            size=missing,
            title="Bootstrap",
            label=lambda number: f"Refit {number} of the bootstrap",
        )
        with results(tasks, executor, progressbar) as refits:
            for refit in refits:
                if isinstance(refit, Fit):
                    fits.append(refit)
                    continue
                failures.append(refit)
                if len(failures) > max(1.0, MOST_FAILURES * size):
                    raise SamplingError(
                        f"{len(failures)} refits failed beside {len(fits)} that succeeded, the "
                        f"last with: {refit}"
                    ) from refit
    return fits


def _streams(
    design: Design, fit: Fit, rng: np.random.Generator, size: int, *, here: bool
) -> Iterator[np.random.Generator]:
    """Random stream of each refit: `rng`, as the refits before have left it.

    Where these run elsewhere, it is brought there by simulating what they simulate.
    """
    simulate = None if here else _simulator(design, fit)
    for _ in range(size):
        if simulate is None:
            yield rng
        else:
            yield deepcopy(rng)
            simulate(rng)


def _refitter(design: Design, fit: Fit) -> Callable[[np.random.Generator], Fit | DataError]:
    """Work of the bootstrap: a refit to one simulated response, or why it failed."""
    method: Literal["REML", "ML"] = "REML" if fit.method == "REML" else "ML"
    simulate = _simulator(design, fit)

    def refit(rng: np.random.Generator) -> Fit | DataError:
        changed = simulate(rng)
        try:
            return fit_likelihood(marginal_system(changed), method)
        except DataError as error:
            return error

    return refit
