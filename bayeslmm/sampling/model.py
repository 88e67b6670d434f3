"""Design and priors to a PyMC model, in three parametrisations of one posterior.

Variables that only the sampler needs have names that start with an underscore, which no public
variable does.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal, get_args

import numpy as np
import pymc as pm
import pytensor.tensor as pt
from numpy.typing import NDArray

from bayeslmm.covariance.coordinates import Points, is_identity
from bayeslmm.covariance.residual import Correlation
from bayeslmm.data.design import Design, RandomFactor, require_marginal
from bayeslmm.data.summarised import SummarisedDesign
from bayeslmm.estimation.residuals import draw_residuals
from bayeslmm.exceptions import DataError
from bayeslmm.likelihood.elimination import Plan
from bayeslmm.likelihood.factorise import GaussianBeta
from bayeslmm.likelihood.log_posterior import beta_prior
from bayeslmm.likelihood.marginal import (
    LOG_2PI,
    log_density_given_beta_grad,
    log_density_grad,
    marginal_system,
)
from bayeslmm.priors.families import LKJ, Prior
from bayeslmm.priors.record import Priors
from bayeslmm.sampling.operations import (
    DensityOp,
    ResidualOp,
    coordinates_of,
    correlations_of,
    run_by_python,
)
from bayeslmm.sampling.scale_model import residual_distribution, scale_of_rows
from bayeslmm.sampling.tree import RESPONSE, obs_coord, parameter_coords, parameter_dims
from bayeslmm.sampling.variables import (
    CorrelationTransform,
    covariance_root,
    lkj_cholesky,
    mixed,
    variable,
)
from bayeslmm.schema import (
    BETA,
    COEF_DIM,
    COR_RESIDUAL,
    OBS_DIM,
    POWER_DIM,
    POWER_RESIDUAL,
    SIGMA,
    coef_dim,
    effect_dim,
    level_dim,
    u_name,
)

Array = NDArray[np.float64]
Form = Literal["noncentered", "centered", "marginal"]

MARGINAL = "_log_marginal"
"""Name of the potential that holds the marginal density of the data."""

SHAPE = "_residual_shape"
"""Name of the parameters of the residuals beside sigma, as the covariance matrix takes them."""


def build_model(
    design: Design, priors: Priors, form: Form = "noncentered", system: Plan | None = None
) -> pm.Model:
    """Build the PyMC model of a design.

    Parameters
    ----------
    design : Design
        The design of the model.
    priors : Priors
        Its priors.
    form : {"noncentered", "centered", "marginal"}
        Random effects as standard normals times their scale, random effects as such, or integrated
        out (beta too, where its prior is normal or flat).
    system : Plan, optional
        The cross-products of the design if at hand; for the marginal form only.

    Returns
    -------
    pymc.Model
        With the variables ``beta``, ``sigma`` and, per grouping factor with key g, ``sd_g``,
        ``cor_g`` (two or more coefficients) and ``u_g``, and the observed ``y``; with a residual
        structure also ``power_residual`` and ``cor_residual``, where it has them; with Student-t
        residuals ``nu``; with predictors of the residual scale ``beta_sigma``, ``sd_sigma_g``,
        ``cor_sigma_g`` and ``u_sigma_g`` in place of ``sigma``. The marginal form
        has no ``u_g``, no ``y`` and, unless its prior requires sampling it, no ``beta``.

    Raises
    ------
    ValueError
        For an unknown form.
    DataError
        If only sums over the rows are kept and the form is not the marginal one.

    Notes
    -----
    Densities of correlations are with respect to the entries of the correlation matrix, so that
    the mode of ``model.logp(jacobian=False)`` in the marginal form is the posterior mode of the
    covariance parameters and, with flat priors, the REML estimate.
    """
    if form == "marginal":
        require_marginal(design, "The marginal PyMC model")
    if form not in get_args(Form):
        raise ValueError(f"form={form!r} is unknown: choose from {sorted(get_args(Form))}.")
    coords = parameter_coords(design)
    if not isinstance(design, SummarisedDesign):
        coords[OBS_DIM] = obs_coord(design)
    elif form != "marginal":
        raise DataError(
            f"form={form!r} needs the rows of the data, and the model has only sums over them: it "
            f"was built from {design.summary.words}. form='marginal' needs no rows."
        )
    with pm.Model(coords={dim: list(values) for dim, values in coords.items()}) as model:
        roots = [_root(design, priors, f) for f in range(len(design.random))]
        if design.spec.conditional is not None:
            sigma = scale_of_rows(design, priors, _spread(design))
            shape = None
        else:
            sigma, shape = _residual_parameters(design, priors)
        if form == "marginal":
            _marginal_density(design, priors, roots, sigma, shape, system)
        else:
            _response(design, priors, roots, sigma, shape, centered=form == "centered")
    return model


def _spread(design: Design) -> float:
    """Scale of the response, to start flat priors from."""
    if isinstance(design, SummarisedDesign):
        spread = float(np.sqrt(design.moments.variances[-1]))
    else:
        spread = float(np.std(design.y - design.offset))
    return spread if spread > 0 else 1.0


def _fixed_effects(design: Design, priors: Priors) -> Any:
    if design.p == 0:
        return pm.Deterministic(BETA, pt.zeros(0), dims=COEF_DIM)
    if isinstance(design, SummarisedDesign):
        mean, constant = float(design.moments.means[-1]), design.moments.constant[:-1]
    else:
        mean, constant = float(np.mean(design.y - design.offset)), np.ptp(design.X, axis=0) == 0
    plain = is_identity(priors.fixed_map)
    intercept = np.diag(priors.fixed_map) * constant
    gamma = variable(BETA if plain else f"_{BETA}_gamma", priors.beta, COEF_DIM, mean * intercept)
    if plain:
        return gamma
    return pm.Deterministic(BETA, pt.dot(np.linalg.inv(priors.fixed_map), gamma), dims=COEF_DIM)


def _root(design: Design, priors: Priors, position: int) -> Any:
    """Lower root (k, k) of the covariance matrix of one grouping factor's working columns."""
    structure, mixing = priors.coordinates.structures[position], priors.mixing[position]
    sd, cor = priors.sd[position], priors.cor[position]
    return covariance_root(design.random[position], structure, mixing, sd, cor, _spread(design))


def _residual_parameters(design: Design, priors: Priors) -> tuple[Any, Any]:
    """The scale sigma of the residuals and, where they have a structure, their shape (r,)."""
    own, spread = priors.residuals, _spread(design)
    if not design.spec.structured:
        return variable(SIGMA, own.sd, None, spread), None
    dims = parameter_dims(design)
    sds = pt.atleast_1d(variable(SIGMA, own.sd, dims[SIGMA][0] if dims[SIGMA] else None, spread))
    pieces = [pt.log(sds[1:]) - pt.log(sds[0])]
    if own.power:
        pieces.append(variable(POWER_RESIDUAL, own.power, POWER_DIM, 0.0))
    if own.structure.correlation is not None and own.cor:
        pieces.append(_residual_correlations(own.structure.correlation, own.cor, dims))
    return sds[0], pm.Deterministic(SHAPE, pt.concatenate(pieces))


def _residual_correlations(
    law: Correlation, priors: Sequence[LKJ | Prior], dims: Mapping[str, tuple[str, ...]]
) -> Any:
    """Coordinates (n_cors,) of the correlations of residuals, arm after arm."""
    names = (f"_{COR_RESIDUAL}_{arm}" for arm in range(law.n_arms))
    arms = [_arm_coordinates(*own, law) for own in zip(names, priors, strict=True)]
    z = pt.concatenate(arms)
    correlations = correlations_of(law, z)
    own = dims[COR_RESIDUAL]
    pm.Deterministic(COR_RESIDUAL, correlations if own else correlations[0], dims=own)
    return z


def _arm_coordinates(name: str, prior: LKJ | Prior, law: Correlation) -> Any:
    count = law.n_cors // law.n_arms
    if isinstance(prior, LKJ):
        size = round((1.0 + np.sqrt(1.0 + 8.0 * count)) / 2.0)  # of a matrix with so many pairs
        return CorrelationTransform(size).forward(lkj_cholesky(name, prior, size))
    parameters = [variable(f"{name}_{i}", (prior,), None, 0.0) for i in range(count)]
    return coordinates_of(law, pt.stack(parameters))


def _marginal_density(
    design: Design,
    priors: Priors,
    roots: Sequence[Any],
    sigma: Any,
    shape: Any,
    system: Plan | None,
) -> None:
    outputs: Any
    system = marginal_system(design) if system is None else system
    factors = [mixed(w, root) / sigma for w, root in zip(priors.mixing, roots, strict=True)]
    inputs = [*factors, sigma] if shape is None else [*factors, sigma, shape]
    if priors.beta_sampled:
        op = MarginalOp(system, given_beta=True)
        outputs = op(*inputs, _fixed_effects(design, priors))
    else:
        outputs = MarginalOp(system, beta_prior(priors))(*inputs)
    pm.Potential(MARGINAL, outputs[0])


def _response(
    design: Design,
    priors: Priors,
    roots: Sequence[Any],
    sigma: Any,
    shape: Any,
    *,
    centered: bool,
) -> None:
    """Likelihood given the random effects, with the data where a refit can change them."""
    beta = _fixed_effects(design, priors)
    mu = pt.dot(pm.Data("X", design.X, dims=(OBS_DIM, COEF_DIM)), beta)
    make = _centered_effects if centered else _noncentered_effects
    for factor, mixing, root in zip(design.random, priors.mixing, roots, strict=True):
        u = make(factor, mixing, root)
        for m, slot in enumerate(factor.slots):
            key = f"{factor.key}_{m + 1}" if factor.pooled else factor.key
            codes = pm.Data(f"_{key}_idx", slot.codes, dims=OBS_DIM)
            covariates = pm.Data(f"_{key}_Z", slot.Z, dims=(OBS_DIM, coef_dim(factor.key)))
            mu = mu + pt.sum(covariates * u.T[codes], axis=1)
    if np.any(design.offset):
        mu = mu + pm.Data("offset", design.offset, dims=OBS_DIM)
    scale = sigma
    if design.weights is not None:
        scale = sigma / pt.sqrt(pm.Data("weights", design.weights, dims=OBS_DIM))
    observed = pm.Data(f"_{RESPONSE}", design.y, dims=OBS_DIM)
    if shape is None:
        residual_distribution(mu, scale, priors, observed)
    else:
        _structured_response(design, mu, scale, shape, observed)


def _structured_response(design: Design, mu: Any, scale: Any, shape: Any, observed: Any) -> None:
    """Response of rows with residuals of a structure, at means (n,), scales (n,) and shape (r,)."""
    assert design.residual is not None
    density: Any = ResidualOp(design.residual)

    def logp(value: Any, mu: Any, scale: Any, shape: Any) -> Any:
        constants = 0.5 * design.n * LOG_2PI + pt.sum(pt.log(scale))
        return density((value - mu) / scale, shape)[0] - constants

    def random(mu: Array, scale: Array, shape: Array, rng: Any, size: Any) -> Array:
        batch = np.broadcast_shapes(*(a.shape[:-1] for a in (mu, scale, shape)), size or ())
        shapes = np.broadcast_to(shape, (*batch, shape.shape[-1])).reshape(-1, shape.shape[-1])
        residuals = _standard_residuals(design, shapes, rng)
        return np.asarray(mu + scale * residuals.reshape(*batch, design.n))

    response = pm.CustomDist(
        RESPONSE,
        mu,
        pt.broadcast_to(scale, mu.shape),
        shape,
        logp=logp,
        random=random,
        signature="(n),(n),(r)->(n)",
        class_name="StructuredNormal",
        observed=observed,
        dims=OBS_DIM,
    )
    run_by_python(type(response.owner.op))


def _standard_residuals(design: Design, shapes: Array, rng: np.random.Generator) -> Array:
    """Draws (S, n) of residuals where sigma and the weights are one, at shapes (S, r)."""
    points = Points(
        sds=(),
        chols=(),
        sigma=np.ones(len(shapes)),
        shapes=shapes,
        residual=design.spec.residual_structure,
        beta=np.empty((len(shapes), 0)),
    )
    return draw_residuals(design, points, rng) * np.sqrt(design.row_weights)


def _noncentered_effects(factor: RandomFactor, mixing: Array, root: Any) -> Any:
    """Random effects (k, J)."""
    dims = (coef_dim(factor.key), level_dim(factor.key))
    z = pm.Normal(f"_z_{factor.key}", 0.0, 1.0, dims=dims)
    scaled = root[0, 0] * z if factor.n_coefs == 1 else pt.dot(mixed(mixing, root), z)
    if factor.relationship is not None:
        scaled = pt.dot(scaled, factor.relationship.root.T)
    return _recorded(factor, scaled)


def _recorded(factor: RandomFactor, u: Any) -> Any:
    """Random effects (k, J) under their name, without coefficients that a level does not have."""
    name, levels = u_name(factor.key), level_dim(factor.key)
    if not factor.spec.divided:
        return pm.Deterministic(name, u, dims=(coef_dim(factor.key), levels))
    own = u[factor.spec.own_places.T, np.arange(factor.n_levels)]
    pm.Deterministic(name, own, dims=(effect_dim(factor.key), levels))
    return u


def _centered_effects(factor: RandomFactor, mixing: Array, root: Any) -> Any:
    """Random effects (k, J)."""
    dims = (coef_dim(factor.key), level_dim(factor.key))
    if factor.relationship is not None:
        flat = pm.MvNormal(
            f"_{u_name(factor.key)}",
            np.zeros(factor.n_levels * factor.n_coefs),
            chol=pt.linalg.kron(factor.relationship.root, root),
        )
        rows = flat.reshape((factor.n_levels, factor.n_coefs))
        return _recorded(factor, mixed(mixing, rows.T))
    if all(len(block) == 1 for block in factor.blocks) and not factor.spec.divided:
        return pm.Normal(u_name(factor.key), 0.0, pt.diagonal(root)[:, None], dims=dims)
    rows = pm.MvNormal(
        f"_{u_name(factor.key)}",
        np.zeros(factor.n_coefs),
        chol=root,
        shape=(factor.n_levels, factor.n_coefs),
    )
    return _recorded(factor, mixed(mixing, rows.T))


# --- the marginal density of the data as a PyTensor operation with a gradient ---


class MarginalOp(DensityOp):
    """Log density of the data with the random effects, and usually beta, integrated out.

    Inputs are the relative factors (k, k), one per grouping factor, then sigma, the shape (r,) of
    the residuals where they have a structure and, where beta is sampled, beta (p,).

    Parameters
    ----------
    system : Plan
        The data, from ``marginal.marginal_system``.
    prior : GaussianBeta, optional
        Prior on an integrated beta; flat by default.
    given_beta : bool
        Whether beta is an input rather than integrated out.

    Examples
    --------
    >>> op = MarginalOp(marginal_system(design))               # doctest: +SKIP
    >>> log_density = op(*factors, sigma)[0]                   # doctest: +SKIP
    """

    def __init__(
        self, system: Plan, prior: GaussianBeta | None = None, *, given_beta: bool = False
    ) -> None:
        self.system = system
        self.prior = prior
        self.given_beta = given_beta

    def evaluate(self, inputs: Sequence[Array]) -> list[Any]:
        """The log density and its derivatives by each input."""
        n_factors = len(self.system.products.structures)
        factors, (sigma, *rest) = list(inputs[:n_factors]), inputs[n_factors:]
        if sigma <= 0:
            raise np.linalg.LinAlgError("sigma is not positive")
        structured = self.system.stack is not None
        plan = self.system.at(rest[0]) if structured else self.system
        if self.given_beta:
            slopes = log_density_given_beta_grad(plan, factors, float(sigma), rest[-1])
        else:
            slopes = log_density_grad(plan, factors, float(sigma), self.prior)
        by_shape = [slopes.shape] if structured else []
        by_beta = [slopes.beta] if self.given_beta else []
        return [slopes.value, *slopes.factors, slopes.sigma, *by_shape, *by_beta]
