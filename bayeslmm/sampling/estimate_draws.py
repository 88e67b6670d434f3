"""Joint draws that stand for the uncertainty of a point estimate."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, get_args

import numpy as np
from numpy.typing import NDArray

from bayeslmm.covariance.coordinates import (
    Coordinates,
    Points,
    plain_coordinates,
    unit_rows,
)
from bayeslmm.data.design import Design
from bayeslmm.estimation.bootstrap import bootstrap_fits
from bayeslmm.estimation.estimate import Fit, user_factors, working_factors
from bayeslmm.exceptions import SamplingError
from bayeslmm.likelihood.batch import batch_system, reduce_equations
from bayeslmm.likelihood.batch_posterior import fixed_effects_at
from bayeslmm.likelihood.draws import normal_draws
from bayeslmm.likelihood.factorise import single_threaded
from bayeslmm.sampling.joint_draws import JointDraws, draw_effects

Array = NDArray[np.float64]
Uncertainty = Literal["laplace", "bootstrap", "plugin"]

STEP = 1e-5
"""Step of central differences on the log and inverse hyperbolic tangent scales."""

NEAR_ZERO = 1.0
"""Standard error of the log of a standard deviation that may as well be zero."""

FLAT = 5.0
"""Standard error of such a log at a posterior mode beyond which the draws would mean nothing."""


def estimate_draws(
    design: Design,
    fit: Fit,
    uncertainty: Uncertainty = "laplace",
    draws: int = 1000,
    random_seed: int | np.random.Generator | None = None,
    *,
    progressbar: bool = False,
) -> JointDraws:
    """Draw covariance parameters around an estimate, and (beta, u) exactly given each.

    Parameters
    ----------
    design : Design
        The design of the model.
    fit : Fit
        The estimate.
    uncertainty : {"laplace", "bootstrap", "plugin"}
        Covariance parameters from their asymptotic normal distribution on the unconstrained
        scale; from refits to responses simulated from the estimate; or held at the estimate.
    draws : int
        Number of draws.
    random_seed : int or numpy.random.Generator, optional
        Seed.
    progressbar : bool
        Whether to show one for the bootstrap.

    Returns
    -------
    JointDraws
        One chain. Given the covariance parameters, (beta, u) has its conditional normal
        distribution under a flat prior on beta (its normal prior for "MAP").

    Raises
    ------
    ValueError
        If `uncertainty` is unknown.
    SamplingError
        If the criterion is flat in some direction, where "laplace" has no meaning.

    Notes
    -----
    At a boundary, where log standard deviations are infinite, and within a standard error of one,
    "laplace" is normal in the free entries of the relative factors (lme4's theta) instead.

    References
    ----------
    Laird, Louis (1987), doi:10.1080/01621459.1987.10478490, for "bootstrap": draws of the effects
    given bootstrapped covariance parameters and the data.
    """
    if uncertainty not in get_args(Uncertainty):
        allowed = ", ".join(map(repr, get_args(Uncertainty)))
        raise ValueError(f"uncertainty={uncertainty!r}: one of {allowed} is expected")
    rng = np.random.default_rng(random_seed)
    if uncertainty == "laplace":
        points = _laplace_points(fit, draws, rng)
    elif uncertainty == "bootstrap":
        fits = bootstrap_fits(design, fit, draws, rng, progressbar=progressbar)
        points = points_of_fits(fits)
    else:
        points = points_of_fits([fit] * draws)
    beta = _draw_beta(fit, points, rng)
    seed = int(rng.integers(2**63))
    return JointDraws(
        shape=(1, draws),
        beta=beta,
        points=points,
        effects=lambda wanted: draw_effects(
            fit.plan, points, beta, wanted, np.random.default_rng(seed)
        ),
    )


def _draw_beta(fit: Fit, points: Points, rng: np.random.Generator) -> Array:
    noise = normal_draws(rng, len(fit.beta), len(points.sigma))
    if fit.given_beta:
        return fit.beta + noise @ fit.vcov_root.T
    with single_threaded():
        reduced = reduce_equations(batch_system(fit.plan), points.factors)
        return fixed_effects_at(fit.plan, fit.prior, reduced, points.sigma, noise)


def points_of_fits(fits: Sequence[Fit]) -> Points:
    """Covariance parameters of several estimates."""
    return _points([fit.factors for fit in fits], np.array([fit.sigma for fit in fits]))


def _points(factors: Sequence[tuple[Array, ...]], sigma: Array) -> Points:
    """From relative factors per grouping factor, one tuple per draw, and sigma (S,)."""
    stacks = [np.stack(stack) * sigma[:, None, None] for stack in zip(*factors, strict=True)]
    moments = [unit_rows(roots) for roots in stacks]
    return Points(
        sds=tuple(sds for sds, _ in moments),
        chols=tuple(rows for _, rows in moments),
        sigma=sigma,
        beta=np.empty((len(sigma), 0)),
    )


def _laplace_points(fit: Fit, draws: int, rng: np.random.Generator) -> Points:
    coordinates = plain_coordinates(fit.plan.products.structures)
    known = np.isfinite(fit.parameters).all() and np.isfinite(fit.parameter_cov).all()
    if fit.singular or not known or _is_open_below(fit):
        return _boundary_points(fit, draws, rng)
    shifts = STEP * np.eye(len(fit.parameters))
    centre = _unconstrained(coordinates, fit.parameters[None])[0]
    ahead = _unconstrained(coordinates, fit.parameters + shifts)
    behind = _unconstrained(coordinates, fit.parameters - shifts)
    jacobian = (ahead - behind).T / (2.0 * STEP)
    covariance = jacobian @ fit.parameter_cov @ jacobian.T
    values, vectors = np.linalg.eigh(covariance)
    root = vectors * np.sqrt(np.maximum(values, 0.0))
    x = centre + normal_draws(rng, len(centre), draws) @ root.T
    return coordinates.to_user(coordinates.points(x))


def _is_open_below(fit: Fit) -> bool:
    """Whether zero is so near to a standard deviation that its log is not nearly normal."""
    logs = plain_coordinates(fit.plan.products.structures).logs
    limit = FLAT if fit.method == "MAP" else NEAR_ZERO
    return bool(np.any(np.diag(fit.parameter_cov)[logs] > limit**2))


def _boundary_points(fit: Fit, draws: int, rng: np.random.Generator) -> Points:
    """Normal draws of the free entries of the relative factors and of log sigma.

    The criterion is an even function of a relative factor whose standard deviation is estimated at
    zero, so that the normal distribution about zero, folded, has its curvature.
    """
    flat = not fit.singular and not np.isfinite(fit.parameter_cov).all()
    if fit.method == "MAP" or flat:
        raise SamplingError(
            "The criterion is flat in some direction at the estimate, where the covariance "
            "parameters have no asymptotic normal distribution. Use uncertainty='bootstrap', or "
            "'plugin' to hold them at the estimate."
        )
    values, vectors = np.linalg.eigh(fit.internal_cov)
    root = vectors * np.sqrt(np.maximum(values, 0.0))
    centre = np.append(fit.optimum.x, np.log(fit.sigma))
    x = centre + normal_draws(rng, len(centre), draws) @ root.T
    factors = [user_factors(fit.plan, working_factors(fit.plan, row[:-1])) for row in x]
    return _points(factors, np.exp(x[:, -1]))


def _unconstrained(coordinates: Coordinates, parameters: Array) -> Array:
    """From log sds and inverse hyperbolic tangents of correlations to coordinates, (S, d) both."""
    x = parameters.copy()
    for f, structure in enumerate(coordinates.structures):
        rho = np.tanh(parameters[:, coordinates.cors(f)])
        corr = np.tile(np.eye(structure.n_coefs), (len(x), 1, 1))
        for place, (i, j) in enumerate(structure.pairs):
            corr[:, i, j] = corr[:, j, i] = rho[:, place]
        x[:, coordinates.cors(f)] = structure.coordinates(np.linalg.cholesky(corr))
    return x


# --- a point estimate as a single draw, so that it goes through what draws go through ---


def point_draws(fit: Fit, modes: Sequence[Array]) -> JointDraws:
    """The estimate as one draw, with the conditional modes (J, k) as random effects."""
    return JointDraws(
        shape=(1, 1),
        beta=fit.beta[None],
        points=points_of_fits([fit]),
        effects=lambda wanted: [u[levels][None] for u, levels in zip(modes, wanted, strict=True)],
    )
