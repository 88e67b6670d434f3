"""Scores of rows or groups whose importance weights are poor: the posterior without them, sampled.

The posterior of the covariance parameters without some rows has few dimensions and a closed form,
so that adaptive importance sampling finds it anew for each group that needs it, without a chain.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial

import numpy as np
from numpy.typing import NDArray
from scipy.special import logsumexp

from bayeslmm.design.design import Design
from bayeslmm.exceptions import DataError
from bayeslmm.inference.covariance_sampler import is_dear
from bayeslmm.inference.importance import Adapter
from bayeslmm.inference.joint_draws import JointDraws
from bayeslmm.inference.pareto import smooth_weights
from bayeslmm.likelihood.batch import BatchSystem, batch_system
from bayeslmm.likelihood.batch_posterior import (
    log_posterior_batch,
    reduce_at,
    unconstrained_from_points,
)
from bayeslmm.likelihood.elimination import Plan
from bayeslmm.likelihood.factorise import single_threaded
from bayeslmm.likelihood.marginal import marginal_system
from bayeslmm.priors.record import Priors

Array = NDArray[np.float64]
Indices = NDArray[np.intp]

DRAWS = 4000
"""Draws of the final importance density."""


@dataclass(frozen=True, slots=True, eq=False, kw_only=True)
class Score:
    """Log predictive density of rows that are left out.

    Attributes
    ----------
    log_density : float
        log p(y_g | y without g).
    pareto_k : float
        Of the importance ratios.
    """

    log_density: float
    pareto_k: float


class Resampler:
    """Samples the posterior without some rows.

    Parameters
    ----------
    design, plan, priors : Design, Plan, Priors
        The model.
    joint : JointDraws
        Its posterior draws, from which the search starts.
    rng : numpy.random.Generator
        Source of randomness.
    """

    def __init__(
        self,
        design: Design,
        plan: Plan,
        priors: Priors,
        joint: JointDraws,
        rng: np.random.Generator,
    ) -> None:
        self.design, self.priors, self.rng = design, priors, rng
        self.full = batch_system(plan)
        beta = joint.beta if priors.beta_sampled else np.empty((joint.size, 0))
        x = unconstrained_from_points(plan.products.structures, joint.points, beta)
        self.centre = x.mean(axis=0)
        self.root = np.linalg.cholesky(np.atleast_2d(np.cov(x, rowvar=False)))

    @property
    def affordable(self) -> bool:
        """Whether evaluations are cheap enough."""
        return not is_dear(self.full)

    def score(self, rows: Indices) -> Score | None:
        """Score rows that are left out; None where the others do not determine the model."""
        try:
            rest = batch_system(marginal_system(_Rest(self.design, rows)))
        except DataError:
            return None
        with single_threaded():
            without = partial(self._density, rest)
            adapter = Adapter(without, self.centre, self.root, self.rng)
            density = adapter.adapt().density
            x = density.sample(self.rng, DRAWS)
            value = without(x)
            log_weights, k = smooth_weights(value - density.logpdf(x))
            ratio = self._density(self.full, x) - value
        finite = np.isfinite(log_weights) & np.isfinite(ratio)
        total = logsumexp(log_weights[finite] + ratio[finite])
        return Score(log_density=float(total - logsumexp(log_weights[finite])), pareto_k=k)

    def _density(self, system: BatchSystem, x: Array) -> Array:
        return log_posterior_batch(system.plan, self.priors, partial(reduce_at, system), x)


@dataclass(frozen=True, slots=True, eq=False)
class _RestOfFactor:
    codes: Indices
    Z: Array
    blocks: tuple[tuple[int, ...], ...]
    n_levels: int


class _Rest:
    """The rows of a design that are not left out, as far as its cross-products need them."""

    def __init__(self, design: Design, out: Indices) -> None:
        kept = np.ones(design.n, dtype=bool)
        kept[out] = False
        self.y, self.offset, self.X = design.y[kept], design.offset[kept], design.X[kept]
        self.weights = None if design.weights is None else design.weights[kept]
        self.random = [
            _RestOfFactor(f.codes[kept], f.Z[kept], f.blocks, f.n_levels) for f in design.random
        ]
