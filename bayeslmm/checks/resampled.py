"""Scores of rows or groups whose importance weights are poor: the evidence with and without them.

p(y_g | y without g) is the ratio of the evidence of all data to that without g, also under improper
priors that cancel from it. The posterior of the covariance parameters has few dimensions and a
closed form, so that adaptive importance sampling finds the evidence without a chain, anew for each
group that needs it.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property, partial

import numpy as np
from numpy.typing import NDArray

from bayeslmm.covariance.coordinates import Points
from bayeslmm.data.design import Design
from bayeslmm.data.memberships import Slot
from bayeslmm.data.packed import Packed
from bayeslmm.data.relationships import Relationship
from bayeslmm.estimation.model import Model
from bayeslmm.exceptions import PriorError, SamplingError
from bayeslmm.likelihood.crossprod import WorkingProducts, cross_products
from bayeslmm.likelihood.elimination import Plan, make_plan, plan_of_stack
from bayeslmm.likelihood.factorise import single_threaded
from bayeslmm.likelihood.log_posterior import log_posterior_batch, reduce_at
from bayeslmm.likelihood.stack import stack_products
from bayeslmm.sampling.collapsed import require_proper
from bayeslmm.sampling.importance import ATTEMPTS, Adapter, is_reliable
from bayeslmm.sampling.joint_draws import JointDraws
from bayeslmm.sampling.pareto import log_mean
from bayeslmm.sampling.surrogate import is_dear

Array = NDArray[np.float64]
Indices = NDArray[np.intp]

RESAMPLE_K = 0.3
"""Pareto k from which on the posterior without the rows is sampled, which then is more accurate."""

DRAWS = 8000
"""Draws whose importance ratios estimate an evidence, to 0.005 or so."""

PER_COORDINATE = 10
"""Posterior draws per coordinate that are needed to start from."""


@dataclass(frozen=True, slots=True, eq=False)
class Removed:
    """Rows that are taken out of sums.

    Attributes
    ----------
    rows : Design
        They themselves, or rows with their cross-products.
    n : int
        How many they are.
    log_weights : float
        Sum of the logs of their precision weights.
    """

    rows: Design
    n: int
    log_weights: float


def removed(pack: Packed, rows: Indices) -> Removed:
    """Whole cells of packed rows, to be taken out."""
    n, logs = int(pack.counts[rows].sum()), float(pack.log_weights[rows].sum())
    return Removed(pack.design.take(rows), n, logs)


class Resampler:
    """Samples the posterior with and without some rows.

    Parameters
    ----------
    model : Model
        The model.
    joint : JointDraws
        Its posterior draws, from which the search starts.
    rng : numpy.random.Generator
        Source of randomness.
    """

    def __init__(self, model: Model, joint: JointDraws, rng: np.random.Generator) -> None:
        self.model, self.rng = model, rng
        coordinates = model.priors.coordinates
        x = coordinates.vector(coordinates.to_working(replace(joint.points, beta=joint.beta)))
        self.x = x[np.isfinite(x).all(axis=1)]

    @property
    def affordable(self) -> bool:
        """Whether evaluations are cheap enough, and there are draws enough to start from."""
        enough = len(self.x) >= PER_COORDINATE * len(self.model.priors.coordinates.free)
        return enough and not is_dear(self.model.system)

    def score(
        self, rows: Indices | Removed, rng: np.random.Generator | None = None
    ) -> float | None:
        """Log p(y_g | y without g) of some rows, with a random stream of its own if there is one.

        None where the posterior without them is improper, or cannot be sampled.
        """
        rest = self.plan_without(rows)
        try:
            self._require_proper(rest)
            return self.log_evidence[0] - self._log_evidence(rest, rng)[0]
        except (PriorError, SamplingError):
            return None

    @cached_property
    def log_evidence(self) -> tuple[float, float]:
        """Log p(y) of all rows and its Monte Carlo standard error.

        Raises
        ------
        SamplingError
            If the posterior cannot be sampled.
        """
        return self._log_evidence(self.model.system)

    def draws(self, rows: Indices | Removed, size: int) -> Points | None:
        """At most `size` draws from the posterior without some rows; None as for `score`."""
        rest = self.plan_without(rows)
        try:
            self._require_proper(rest)
            x, log_ratios = self._sample(rest)
        except (PriorError, SamplingError):
            return None
        weights = np.exp(log_ratios - np.max(log_ratios))
        chosen = self.rng.choice(len(x), size, p=weights / weights.sum())
        coordinates = self.model.priors.coordinates
        return coordinates.to_user(coordinates.points(x[chosen]))

    def weighted(self, rows: Indices, size: int, rng: np.random.Generator) -> tuple[Points, Array]:
        """At most `size` draws, and log weights, that stand for the posterior without some rows.

        Raises
        ------
        PriorError
            If that posterior is improper.
        SamplingError
            If it cannot be sampled.
        """
        rest = self.plan_without(rows)
        self._require_proper(rest)
        x, log_ratios = self._sample(rest, rng)
        chosen = rng.choice(len(x), min(size, len(x)), replace=False)
        coordinates = self.model.priors.coordinates
        return coordinates.to_user(coordinates.points(x[chosen])), log_ratios[chosen]

    def _require_proper(self, rest: Plan) -> None:
        start = self.x.mean(axis=0)
        require_proper(partial(self._density, rest), rest, self.model.priors, start)

    def _log_evidence(
        self, plan: Plan, rng: np.random.Generator | None = None
    ) -> tuple[float, float]:
        return log_mean(self._sample(plan, rng)[1])

    def _sample(self, plan: Plan, rng: np.random.Generator | None = None) -> tuple[Array, Array]:
        """Draws (S, d) and log importance ratios (S,) whose mean is the evidence."""
        rng, coordinates = rng or self.rng, self.model.priors.coordinates
        free = self.x[:, coordinates.free]

        def target(z: Array) -> Array:
            return self._density(plan, coordinates.complete(z))

        if not free.shape[1]:
            return self.x[:1], target(free[:1])
        root = np.linalg.cholesky(np.atleast_2d(np.cov(free, rowvar=False)))
        with single_threaded():
            adapter = Adapter(target, free.mean(axis=0), root, rng)
            for _ in range(ATTEMPTS):
                adapter.density = adapter.adapt().density
                x = adapter.density.sample(rng, DRAWS)
                value = target(x)
                log_ratios = value - adapter.density.logpdf(x)
                if is_reliable(log_ratios):
                    return coordinates.complete(x), log_ratios
                adapter.learn(x, value)
        raise SamplingError("The importance ratios of the covariance parameters have heavy tails.")

    def _density(self, plan: Plan, x: Array) -> Array:
        return log_posterior_batch(
            plan, self.model.priors, partial(reduce_at, plan, self.model.priors.coordinates), x
        )

    def plan_without(self, out: Indices | Removed) -> Plan:
        """Cross-products of the other rows, in the basis of all: theirs may have lower rank."""
        design = self.model.design
        if isinstance(out, Removed):
            return make_plan(products_without(self.model.system.products, out))
        kept = np.ones(design.n, dtype=bool)
        kept[out] = False
        factors = [
            _RestOfFactor(
                tuple(slot.take(kept) for slot in f.slots),
                f.blocks,
                f.kinds,
                f.n_levels,
                f.relationship,
            )
            for f in design.random
        ]
        y, X = (design.y - design.offset)[kept], design.X[kept]
        weights = None if design.weights is None else design.weights[kept]
        basis = self.model.system.products.basis
        if design.residual is None or design.residual_rows is None:
            return make_plan(cross_products(y, X, factors, weights=weights, basis=basis))
        structure = design.spec.residual_structure
        law = structure.bind(design.residual_rows.take(np.flatnonzero(kept)))
        return plan_of_stack(stack_products(y, X, factors, law, weights=weights, basis=basis))


def products_without(products: WorkingProducts, out: Removed) -> WorkingProducts:
    """Cross-products of all rows less those of some."""
    rows = out.rows
    own = cross_products(
        rows.y - rows.offset, rows.X, rows.random, weights=rows.weights, basis=products.basis
    )
    less = replace(
        own,
        n_obs=-out.n,
        log_weights=-out.log_weights,
        fixed=-own.fixed,
        random=tuple(-part for part in own.random),
        mixed=tuple(-part for part in own.mixed),
        couplings=tuple(replace(part, blocks=-part.blocks) for part in own.couplings),
    )
    return products + less


@dataclass(frozen=True, slots=True, eq=False)
class _RestOfFactor:
    slots: tuple[Slot, ...]
    blocks: tuple[tuple[int, ...], ...]
    kinds: tuple[str, ...]
    n_levels: int
    relationship: Relationship | None
