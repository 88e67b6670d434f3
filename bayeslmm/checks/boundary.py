"""How well the data support a covariance parameter at its boundary, everything else integrated out.

Holding the other parameters at a posterior draw, the conditional density of one parameter is known
on a grid up to a constant; its average over draws is the marginal posterior density (the
Rao-Blackwell estimate). Divided by the prior density it is the integrated likelihood of the
parameter, and at the boundary the Savage-Dickey Bayes factor.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray
from scipy.special import logsumexp

from bayeslmm.covariance.coordinates import WorkingPoints
from bayeslmm.likelihood.batch import BatchSystem, batch_system, reduce_equations
from bayeslmm.likelihood.batch_posterior import log_likelihood_batch
from bayeslmm.likelihood.elimination import Plan
from bayeslmm.likelihood.factorise import single_threaded
from bayeslmm.priors.families import Prior
from bayeslmm.priors.record import Priors
from bayeslmm.sampling.joint_draws import JointDraws
from bayeslmm.summaries.parameters import Parameter

Array = NDArray[np.float64]

BOUNDARIES: dict[str, tuple[float, ...]] = {"sd": (0.0,), "cor": (-1.0, 1.0)}

GRID = 41
"""Points of the trapezoid rule over the range of the draws, which is some seven sds wide."""

PAD = 0.25
"""Share of the range of the draws by which the grid goes beyond it at either end."""

SLICES = 100
"""Posterior draws at which the other parameters are held, where evaluations are cheap."""

FEWEST_SLICES = 5

CELLS = 5e7
"""Levels eliminated per parameter: what bounds the number of draws for large data."""

NEARLY_ZERO = 1e-4
"""Where the grid of an sd begins, over its median: a prior density may be infinite at zero."""

FAR = 0.5
"""Where no draw comes nearer to the boundary than this share of the median distance, it is at
least six standard deviations away."""

ENOUGH = 400
"""Draws from which that says something."""


@dataclass(frozen=True, slots=True, kw_only=True)
class BoundarySupport:
    """Support of the data for a boundary value of one parameter.

    Attributes
    ----------
    value : float
        The boundary: 0 for a standard deviation; 1 or -1, the better supported one, for a
        correlation.
    relative : float
        Integrated likelihood at the boundary over its maximum within the range of the posterior.
    bayes_factor : float
        Savage-Dickey Bayes factor of the model with the parameter at the boundary against this one;
        NaN where its prior is improper.
    """

    value: float
    relative: float
    bayes_factor: float


def boundary_support(
    plan: Plan, priors: Priors, joint: JointDraws, parameter: Parameter
) -> BoundarySupport:
    """Support of the data for a standard deviation of zero or a correlation of one.

    Both are of the working columns, in which the priors are independent.

    Parameters
    ----------
    plan : Plan
        Cross-products of the data.
    priors : Priors
        The priors.
    joint : JointDraws
        Draws from the posterior.
    parameter : Parameter
        A standard deviation, or the correlation of a block of two coefficients.

    Returns
    -------
    BoundarySupport

    References
    ----------
    Dickey (1971), doi:10.1214/aoms/1177693507, for the Bayes factor.
    Gelfand, Smith (1990), doi:10.1080/01621459.1990.10476213, for the density estimate.
    """
    ends = BOUNDARIES[parameter.kind]
    proper = parameter.kind == "cor" or _sd_prior(priors, parameter).proper
    if _far(_values(working_points(priors, joint), parameter), ends):
        nothing = 0.0 if proper else float("nan")
        return BoundarySupport(value=ends[0], relative=0.0, bayes_factor=nothing)
    _, curve = integrated_likelihood(plan, priors, joint, parameter)
    at_ends = curve[-len(ends) :]
    best = int(np.argmax(at_ends))
    return BoundarySupport(
        value=ends[best],
        relative=float(np.exp(at_ends[best] - np.max(curve))),
        bayes_factor=float(np.exp(at_ends[best])) if proper else float("nan"),
    )


def integrated_likelihood(
    plan: Plan, priors: Priors, joint: JointDraws, parameter: Parameter
) -> tuple[Array, Array]:
    """Log integrated likelihood of one parameter, over the range of its draws and at its boundary.

    Parameters
    ----------
    plan, priors, joint, parameter : Plan, Priors, JointDraws, Parameter
        As for :func:`boundary_support`.

    Returns
    -------
    values : ndarray (m,)
        Values of the parameter; the boundaries come last.
    curve : ndarray (m,)
        Log of posterior over prior density. Relative only where the prior is improper.
    """
    system = batch_system(plan)
    points = _slices(plan, system, priors, joint)
    values, weights = _grid(_values(working_points(priors, joint), parameter), parameter.kind)
    with single_threaded():
        log_lik = np.array(
            [_log_likelihood(system, priors, _moved(points, parameter, v)) for v in values]
        )
    with np.errstate(divide="ignore", invalid="ignore"):
        log_mass = _log_prior(priors, parameter)(values) + np.log(weights)
    log_mass[weights == 0.0] = -np.inf
    log_ratio = log_lik - logsumexp(log_lik + log_mass[:, None], axis=0)
    return values, logsumexp(log_ratio, axis=1) - np.log(log_ratio.shape[1])


def _far(draws: Array, ends: tuple[float, ...]) -> bool:
    """Whether the draws stay far from every boundary."""
    if len(draws) < ENOUGH:
        return False
    distances = [np.abs(draws - end) for end in ends]
    return all(np.min(d) > FAR * np.median(d) for d in distances)


def working_points(priors: Priors, joint: JointDraws) -> WorkingPoints:
    """Draws in the working columns, beta among them where it is sampled."""
    points = replace(joint.points, beta=joint.beta) if priors.beta_sampled else joint.points
    return priors.coordinates.to_working(points)


def _values(points: WorkingPoints, parameter: Parameter) -> Array:
    """Values (S,) of a parameter of working columns."""
    f, index = parameter.factor, parameter.index
    if parameter.kind == "sd":
        return points.sds[f][:, index[0]]
    rows = points.chols[f]
    return np.einsum("sk,sk->s", rows[:, index[0]], rows[:, index[1]])


def _slices(plan: Plan, system: BatchSystem, priors: Priors, joint: JointDraws) -> WorkingPoints:
    """Points at which the other parameters are held: fewer where an evaluation is dear."""
    cells = len(system.counts) + sum(len(block) for block in plan.products.random[1:])
    cells += plan.n_tail**3 // 30
    size = int(np.clip(CELLS / (GRID * cells), FEWEST_SLICES, SLICES))
    return working_points(priors, joint.thin(size))


def _grid(draws: Array, kind: str) -> tuple[Array, Array]:
    """Values and trapezoid weights over the range of the draws; the boundaries come last.

    Equally spaced in the inverse hyperbolic sine of an sd over its median, for the long tail, and
    in the arcsine of a correlation, in which its likelihood is smooth at the boundary.
    """
    scale = float(np.median(draws)) if kind == "sd" else 1.0
    x = np.arcsinh(draws / scale) if kind == "sd" else np.arcsin(draws)
    low, high = float(np.min(x)), float(np.max(x))
    pad = PAD * (high - low)
    floor, ceiling = (NEARLY_ZERO, np.inf) if kind == "sd" else (-0.5 * np.pi, 0.5 * np.pi)
    nodes = np.linspace(max(low - pad, floor), min(high + pad, ceiling), GRID)
    weights = np.full(GRID, nodes[1] - nodes[0])
    weights[[0, -1]] *= 0.5
    values = scale * np.sinh(nodes) if kind == "sd" else np.sin(nodes)
    slope = scale * np.cosh(nodes) if kind == "sd" else np.cos(nodes)
    ends = BOUNDARIES[kind]
    return np.append(values, ends), np.append(weights * slope, np.zeros(len(ends)))


def _moved(points: WorkingPoints, parameter: Parameter, value: float) -> WorkingPoints:
    """The points with one parameter set to a value."""
    f, index = parameter.factor, parameter.index
    if parameter.kind == "sd":
        sds = points.sds[f].copy()
        sds[:, index[0]] = value
        return replace(points, sds=(*points.sds[:f], sds, *points.sds[f + 1 :]))
    chols = np.array(points.chols[f])
    first, second = index
    chols[:, [first, second]] = 0.0
    chols[:, first, first] = 1.0
    chols[:, second, first] = value
    chols[:, second, second] = np.sqrt(max(0.0, 1.0 - value**2))
    return replace(points, chols=(*points.chols[:f], chols, *points.chols[f + 1 :]))


def _log_likelihood(system: BatchSystem, priors: Priors, points: WorkingPoints) -> Array:
    reduced = reduce_equations(system, points.factors)
    return log_likelihood_batch(system.plan, priors, reduced, points)


def _sd_prior(priors: Priors, parameter: Parameter) -> Prior:
    return priors.sd[parameter.factor][parameter.index[0]]


def _log_prior(priors: Priors, parameter: Parameter) -> Callable[[Array], Array]:
    if parameter.kind == "sd":
        return _sd_prior(priors, parameter).logpdf
    blocks = priors.blocks[parameter.factor]
    lkj = next(
        prior
        for block, prior in zip(blocks, priors.cor[parameter.factor], strict=True)
        if parameter.index[0] in block and prior is not None
    )

    def logpdf(values: Array) -> Array:
        chol = np.zeros((len(values), 2, 2))
        chol[:, 0, 0] = 1.0
        chol[:, 1, 0] = values
        chol[:, 1, 1] = np.sqrt(np.maximum(0.0, 1.0 - values**2))
        return lkj.logpdf(chol)

    return logpdf
