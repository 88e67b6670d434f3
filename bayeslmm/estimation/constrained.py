"""Deviance of a linear mixed model with one parameter held fixed and every other re-estimated.

The coefficients of the random-effects term in question are reordered by an orthogonal rotation of
the working basis, so that the relative factor stays lower triangular and the parameter held fixes
its leading entries. What is left is smooth and unconstrained, also where the fit is singular. A
covariance pattern keeps its columns: the parameter held fixes an entry of its theta.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import override

import numpy as np
from numpy.typing import NDArray
from scipy.linalg import solve_triangular

from bayeslmm.covariance.pattern import Pattern
from bayeslmm.covariance.structure import lower_factor
from bayeslmm.estimation.estimate import Fit, plan_at, working_factors
from bayeslmm.estimation.optimise import hessian
from bayeslmm.likelihood.elimination import Plan
from bayeslmm.likelihood.factorise import Factorisation, factorise_working
from bayeslmm.likelihood.marginal import LOG_2PI, Score, ml_criterion, reml_criterion, score

Array = NDArray[np.float64]
Evaluation = tuple[float, Array, float]
"""Deviance, its gradient by the free coordinates, its derivative by the value held fixed."""

DECREMENT = 1e-9
"""Predicted decrease (deviance units) below which the other parameters count as optimal."""

NUDGE = 0.02
"""Smallest diagonal entry of a relative factor at the start of a search: zero is a saddle."""

LONGEST_STEP = 2.0
"""Longest step of a search, relative to one or to the length of the coordinates."""

REACHED = 1e-9
"""Error of a correlation of a pattern beyond which the others do not allow it."""

ROOM = 0.1
"""Cosine of an angle at the start of a search: zero is a wall."""

SHRINKING = 11
"""Number of shares of the other angles that are tried until there is room."""

SINGULAR_SLOPE = 1e-12
"""Derivative of a correlation by its angle below which it is at an end of its range."""

MAX_STEPS = 200
MAX_SHORTENINGS = 20


@dataclass(frozen=True, slots=True, eq=False, kw_only=True)
class Frame:
    """Working coordinates theta in which chosen coefficients of one block come first.

    Attributes
    ----------
    plan : Plan
        The data.
    restricted : bool
        Whether the deviance is that of the restricted likelihood.
    rotations : tuple of ndarray (k, k)
        Working factors are ``rotations[f] @ T_f`` with T_f lower triangular with entries theta.
    root : ndarray (b, b)
        Lower triangular: ``root @ T`` is the user's relative factor of the reordered block; of a
        pattern, the unit of the standard deviation of the first coefficient.
    first : int
        Place of that block in theta, or of that standard deviation.
    power : float
        Its power of the entry of theta.
    """

    plan: Plan
    restricted: bool
    rotations: tuple[Array, ...]
    root: Array
    first: int
    power: float = 1.0

    @property
    def dof(self) -> int:
        """Degrees of freedom of the residual variance."""
        products = self.plan.products
        return products.n_obs - (products.n_fixed if self.restricted else 0)

    def theta(self, factors: Sequence[Array]) -> Array:
        """Coordinates of relative factors given in the user's coordinates."""
        products = self.plan.products
        parts = zip(
            products.structures, products.basis.random, self.rotations, factors, strict=True
        )
        lower = [lower_factor(s, q.T @ np.linalg.solve(a, t)) for s, a, q, t in parts]
        return self.plan.theta.vector(lower, self.plan.shape)

    def nudged(self, theta: Array) -> Array:
        """Theta moved off the saddles at which a diagonal entry is zero."""
        small = self.plan.theta.sds & (np.abs(theta) < NUDGE)
        return np.where(small, NUDGE, theta)

    def working(self, theta: Array) -> list[Array]:
        """Relative factors in the working basis."""
        factors = working_factors(self.plan, theta)
        return [q @ t for q, t in zip(self.rotations, factors, strict=True)]

    def pull_back(self, theta: Array, slopes: Score) -> Array:
        """Gradient by theta from derivatives by the working factors and the residuals' shape."""
        rotated = [q.T @ g for q, g in zip(self.rotations, slopes.factors, strict=True)]
        return self.plan.theta.gradient(theta, rotated, slopes.shape)

    def factorise(self, theta: Array) -> Factorisation:
        """The equations factorised at theta."""
        return factorise_working(plan_at(self.plan, theta), self.working(theta))


def make_frame(
    plan: Plan, restricted: bool, factor: int = 0, leading: tuple[int, ...] = ()
) -> Frame:
    """Frame in which the coefficients `leading` of a grouping factor come first in their block."""
    structures, bases = plan.products.structures, plan.products.basis.random
    rotations = [np.eye(s.n_coefs) for s in structures]
    first, root, power = plan.theta.places(factor).start if structures else 0, np.eye(0), 1.0
    parts = zip(structures[factor].blocks, structures[factor].parts, strict=True) if leading else ()
    for block, part in parts:
        if leading[0] in block and isinstance(part, Pattern):
            place = int(part.sd_places[block.index(leading[0])])
            root = bases[factor][leading[0], leading[0]].reshape(1, 1)
            first, power = first + place, 1.0 if part.even[place] else 2.0
            break
        if leading[0] in block:
            order = [*leading, *(i for i in block if i not in leading)]
            q, r = np.linalg.qr(bases[factor][np.ix_(order, block)].T)
            signs = np.where(np.diag(r) < 0, -1.0, 1.0)
            rotations[factor][np.ix_(block, block)] = q * signs
            root = (r * signs[:, None]).T
            break
        first += part.n_theta
    return Frame(
        plan=plan,
        restricted=restricted,
        rotations=tuple(rotations),
        root=root,
        first=first,
        power=power,
    )


@dataclass(frozen=True, slots=True, eq=False)
class Target(ABC):
    """A parameter to hold fixed, with a frame that suits it."""

    frame: Frame

    @abstractmethod
    def start(self, value: float, theta: Array, log_sigma: float) -> Array:
        """Free coordinates near a state at which the parameter has another value."""

    @abstractmethod
    def state(self, value: float, free: Array) -> tuple[Array, float]:
        """Theta and log sigma (NaN where profiled out) at free coordinates."""

    @abstractmethod
    def deviance(self, value: float, free: Array) -> Evaluation:
        """Deviance and its derivatives."""


@dataclass(frozen=True, slots=True, eq=False)
class StandardDeviation(Target):
    """The sd of the first coefficient of the frame; free are the rest of theta and log sigma."""

    @property
    def unit(self) -> float:
        """The sd over sigma at which the coefficient adds about one residual variance."""
        return float(self.frame.root[0, 0])

    @override
    def start(self, value: float, theta: Array, log_sigma: float) -> Array:
        return np.append(np.delete(theta, self.frame.first), log_sigma)

    @override
    def state(self, value: float, free: Array) -> tuple[Array, float]:
        entry = (value * np.exp(-free[-1]) / self.unit) ** (1.0 / self.frame.power)
        return np.insert(free[:-1], self.frame.first, entry), float(free[-1])

    @override
    def deviance(self, value: float, free: Array) -> Evaluation:
        theta, log_sigma = self.state(value, free)
        deviance, gradient, d_log_sigma = _deviance(self.frame, theta, log_sigma)
        first, power = self.frame.first, self.frame.power
        d_log_sigma -= gradient[first] * theta[first] / power
        by_value = gradient[first] * np.exp(-log_sigma) / self.unit
        if power != 1.0:
            with np.errstate(divide="ignore", invalid="ignore"):
                by_value /= power * theta[first] ** (power - 1.0)
        return deviance, np.append(np.delete(gradient, first), d_log_sigma), float(by_value)


@dataclass(frozen=True, slots=True, eq=False)
class Correlation(Target):
    """The angle whose cosine is the correlation of the first two coefficients of the frame.

    The rows of their factor in the user's coordinates are (s, 0) and t (cos, sin), so theta lies
    in a linear subspace; where s and t have opposite signs the correlation is the negative.
    """

    @override
    def start(self, value: float, theta: Array, log_sigma: float) -> Array:
        subspace, entries, root = self._subspace(value), self._entries(), self.frame.root
        free = subspace.T @ theta
        if self._lengths(value, subspace @ free)[1] <= 0.0:
            # The nearest factor has the negative correlation: keep the two sds instead.
            first, second, third = theta[entries]
            length = np.hypot(root[1, 0] * first + root[1, 1] * second, root[1, 1] * third)
            theta = theta.copy()
            theta[entries[1]] = (length * np.cos(value) - root[1, 0] * first) / root[1, 1]
            theta[entries[2]] = length * np.sin(value) / root[1, 1]
            free = subspace.T @ theta
        return free

    @override
    def state(self, value: float, free: Array) -> tuple[Array, float]:
        return self._subspace(value) @ free, np.nan

    @override
    def deviance(self, value: float, free: Array) -> Evaluation:
        subspace = self._subspace(value)
        theta = subspace @ free
        deviance, gradient = _profiled_deviance(self.frame, theta)
        length, sign = self._lengths(value, theta)
        turn = length * np.array([-np.sin(value), np.cos(value)]) / self.frame.root[1, 1]
        by_value = float(gradient[self._entries()[1:]] @ turn)
        return deviance if sign >= 0.0 else np.inf, subspace.T @ gradient, by_value

    def _lengths(self, angle: float, theta: Array) -> tuple[float, float]:
        """Signed length t, and the product s t."""
        root, (first, second, third) = self.frame.root, self._entries()
        along = root[1, 0] * theta[first] + root[1, 1] * theta[second]
        length = np.cos(angle) * along + np.sin(angle) * root[1, 1] * theta[third]
        return float(length), float(length * theta[first])

    def _entries(self) -> list[int]:
        first = self.frame.first
        return [first, first + 1, first + len(self.frame.root)]

    def _subspace(self, angle: float) -> Array:
        """Orthonormal basis (d, d - 1) of the theta with this correlation."""
        root, entries = self.frame.root, self._entries()
        spanning = np.array([[root[1, 1], -root[1, 0], 0.0], [0.0, np.cos(angle), np.sin(angle)]])
        q, r = np.linalg.qr(spanning.T)
        m = self.frame.plan.theta.size
        others = np.delete(np.arange(m), entries)
        subspace = np.zeros((m, m - 1))
        subspace[entries, :2] = q * np.where(np.diag(r) < 0, -1.0, 1.0)
        subspace[others, np.arange(2, m - 1)] = 1.0
        return subspace


@dataclass(frozen=True, slots=True, eq=False)
class PatternCorrelation(Target):
    """The angle whose cosine is a correlation of a pattern; free is theta without the entry for it.

    Attributes
    ----------
    part : Pattern
        The pattern.
    number : int
        Which of its correlations, of ``part.pairs``.
    start_of_part : int
        Place of the part in theta.
    """

    part: Pattern
    number: int
    start_of_part: int

    @property
    def place(self) -> int:
        """The entry of theta that follows from the others and the correlation."""
        return self.start_of_part + self.part.n_sds + self.number

    @override
    def start(self, value: float, theta: Array, log_sigma: float) -> Array:
        """The other angles, those before shrunk until they allow the correlation with room."""
        before = slice(self.start_of_part + self.part.n_sds, self.place)
        for shrunk in np.linspace(1.0, 0.0, SHRINKING):
            free = np.delete(theta, self.place)
            free[before] *= shrunk
            at = self.state(value, free)[0]
            if abs(np.cos(at[self.place])) > ROOM:
                break
        return free

    @override
    def state(self, value: float, free: Array) -> tuple[Array, float]:
        theta = np.insert(free, self.place, 0.0)
        known = self._correlations(theta)[0]
        known[self.number] = np.cos(value)
        theta[self.place] = np.arcsin(np.clip(self.part.sines_of(known)[self.number], -1.0, 1.0))
        return theta, np.nan

    @override
    def deviance(self, value: float, free: Array) -> Evaluation:
        theta, _ = self.state(value, free)
        found, slopes = self._correlations(theta)
        deviance, gradient = _profiled_deviance(self.frame, theta)
        own = slopes[:, self.number]  # (n_theta of the part,)
        first, place = self.start_of_part, self.place
        by_entry = own[place - first]
        ratio = gradient[place] / by_entry if abs(by_entry) > SINGULAR_SLOPE else 0.0
        gradient[first : first + len(own)] -= ratio * own
        reached = abs(found[self.number] - np.cos(value)) < REACHED
        by_value = -float(np.sin(value)) * ratio
        return deviance if reached else np.inf, np.delete(gradient, place), by_value

    def _correlations(self, theta: Array) -> tuple[Array, Array]:
        """Correlations (n_cors,) at the pairs and their derivatives (n_theta, n_cors)."""
        own = theta[self.start_of_part :][: self.part.n_theta].copy()
        own[: self.part.n_sds] = 1.0
        lower, slopes = self.part.factor(own), self.part.theta_slopes(own)
        slopes[: self.part.n_sds] = 0.0
        rows, cols = np.array(self.part.pairs).T
        products = slopes[:, rows] * lower[cols] + slopes[:, cols] * lower[rows]
        return np.sum(lower[rows] * lower[cols], axis=-1), np.sum(products, axis=-1)


def correlation_target(
    plan: Plan, restricted: bool, factor: int, pair: tuple[int, int]
) -> Correlation | PatternCorrelation:
    """The target for the correlation of a pair of coefficients, one of those of the structure."""
    structure = plan.products.structures[factor]
    start = plan.theta.places(factor).start
    for block, part in zip(structure.blocks, structure.parts, strict=True):
        if pair[0] in block and isinstance(part, Pattern):
            number = part.pairs.index((block.index(pair[0]), block.index(pair[1])))
            frame = make_frame(plan, restricted)
            return PatternCorrelation(frame, part=part, number=number, start_of_part=start)
        start += part.n_theta
    return Correlation(make_frame(plan, restricted, factor, pair))


@dataclass(frozen=True, slots=True, eq=False)
class ResidualSd(Target):
    """Log sigma; free is theta."""

    @override
    def start(self, value: float, theta: Array, log_sigma: float) -> Array:
        free = theta.copy()
        free[: self.frame.plan.theta.shape.start] *= np.exp(log_sigma - value)
        return free  # the sds of the random effects stay

    @override
    def state(self, value: float, free: Array) -> tuple[Array, float]:
        return free, value

    @override
    def deviance(self, value: float, free: Array) -> Evaluation:
        return _deviance(self.frame, free, value)


@dataclass(frozen=True, slots=True, eq=False)
class StratumSd(Target):
    """Log sd of a stratum or occasion but the first; free are the rest of theta and log sigma.

    `entry` is the place in theta of its log ratio to sigma.
    """

    entry: int

    @override
    def start(self, value: float, theta: Array, log_sigma: float) -> Array:
        return np.append(np.delete(theta, self.entry), log_sigma)

    @override
    def state(self, value: float, free: Array) -> tuple[Array, float]:
        return np.insert(free[:-1], self.entry, value - free[-1]), float(free[-1])

    @override
    def deviance(self, value: float, free: Array) -> Evaluation:
        theta, log_sigma = self.state(value, free)
        deviance, gradient, d_log_sigma = _deviance(self.frame, theta, log_sigma)
        by_value = gradient[self.entry]
        rest = np.append(np.delete(gradient, self.entry), d_log_sigma - by_value)
        return deviance, rest, float(by_value)


@dataclass(frozen=True, slots=True, eq=False)
class Entry(Target):
    """One entry of theta; free are the others, sigma is profiled out."""

    entry: int

    @override
    def start(self, value: float, theta: Array, log_sigma: float) -> Array:
        return np.delete(theta, self.entry)

    @override
    def state(self, value: float, free: Array) -> tuple[Array, float]:
        return np.insert(free, self.entry, value), np.nan

    @override
    def deviance(self, value: float, free: Array) -> Evaluation:
        theta = np.insert(free, self.entry, value)
        deviance, gradient = _profiled_deviance(self.frame, theta)
        return deviance, np.delete(gradient, self.entry), float(gradient[self.entry])


@dataclass(frozen=True, slots=True, eq=False)
class FixedEffect(Target):
    """One fixed effect; free is theta, sigma and the other fixed effects are profiled out."""

    coef: int

    @override
    def start(self, value: float, theta: Array, log_sigma: float) -> Array:
        return theta

    @override
    def state(self, value: float, free: Array) -> tuple[Array, float]:
        return free, np.nan

    @override
    def deviance(self, value: float, free: Array) -> Evaluation:
        fact = self.frame.factorise(free)
        row = fact.beta_root[self.coef]
        variance = float(row @ row)
        gap = value - float(fact.beta[self.coef])
        rss = fact.rss + gap**2 / variance
        n = self.frame.plan.products.n_obs
        shift = solve_triangular(fact.fixed_chol, row, lower=True, trans="T") * (gap / variance)
        gradients = score(fact, n / rss, restricted=False, beta_working=fact.beta_working + shift)
        deviance = ml_criterion(fact) + n * float(np.log(rss / fact.rss))
        return deviance, self.frame.pull_back(free, gradients), 2.0 * n * gap / (variance * rss)


class Curve:
    """Signed root of the deviance drop as a function of one parameter.

    Neighbouring values share their optimum and curvature, so a curve remembers both.

    Parameters
    ----------
    target : Target
        The parameter.
    fit : Fit
        Estimate of the criterion to be profiled.
    value : float
        The parameter at the estimate.
    """

    def __init__(self, target: Target, fit: Fit, value: float) -> None:
        self.target = target
        self.minimum = fit.criterion
        self.states = {value: (target.frame.theta(fit.factors), float(np.log(fit.sigma)))}
        self.inverse: Array | None = None

    def __call__(self, value: float) -> tuple[float, float]:
        """Root of the deviance over its minimum (nonnegative), and its derivative."""
        nearest = min(self.states, key=lambda known: abs(known - value))
        theta, log_sigma = self.states[nearest]
        free = self.target.start(value, self.target.frame.nudged(theta), log_sigma)
        free, evaluation, self.inverse = _descend(
            lambda z: self.target.deviance(value, z), free, self.inverse
        )
        self.states[value] = self.target.state(value, free)
        root = float(np.sqrt(max(evaluation[0] - self.minimum, 0.0)))
        with np.errstate(divide="ignore", invalid="ignore"):
            return root, float(np.float64(evaluation[2]) / (2.0 * root))

    def on_log_scale(self, log_value: float) -> tuple[float, float]:
        """The curve as a function of the log parameter."""
        value = float(np.exp(log_value))
        root, slope = self(value)
        return root, slope * value


def _deviance(frame: Frame, theta: Array, log_sigma: float) -> Evaluation:
    """Deviance at given sigma; derivatives by theta and log sigma."""
    fact = frame.factorise(theta)
    precision = float(np.exp(-2.0 * log_sigma))
    value = frame.dof * (LOG_2PI + 2.0 * log_sigma) - fact.plan.products.log_weights
    value += fact.log_det_random + fact.rss * precision
    if frame.restricted:
        value += fact.log_det_fixed
    gradient = frame.pull_back(theta, score(fact, precision, restricted=frame.restricted))
    return value, gradient, 2.0 * frame.dof - 2.0 * fact.rss * precision


def _profiled_deviance(frame: Frame, theta: Array) -> tuple[float, Array]:
    """Deviance with sigma profiled out, and its gradient."""
    fact = frame.factorise(theta)
    value = reml_criterion(fact) if frame.restricted else ml_criterion(fact)
    gradients = score(fact, frame.dof / fact.rss, restricted=frame.restricted)
    return value, frame.pull_back(theta, gradients)


def _descend(
    objective: Callable[[Array], Evaluation], x: Array, inverse: Array | None
) -> tuple[Array, Evaluation, Array]:
    """Minimise by BFGS from a known or differenced inverse Hessian."""
    fresh = inverse is None
    inverse = _inverse_curvature(objective, x) if inverse is None else inverse
    here = objective(x)
    for _ in range(MAX_STEPS):
        step = -inverse @ here[1]
        if -0.5 * here[1] @ step < DECREMENT:
            break
        moved = _line_search(objective, x, here, step)
        if moved is None and fresh:
            break
        if moved is None:
            inverse, fresh = _inverse_curvature(objective, x), True
            continue
        inverse = _update(inverse, moved[0] - x, moved[1][1] - here[1])
        x, here, fresh = *moved, False
    return x, here, inverse


def _line_search(
    objective: Callable[[Array], Evaluation], x: Array, here: Evaluation, step: Array
) -> tuple[Array, Evaluation] | None:
    """Shorten the step until the deviance falls enough; None where it does not."""
    longest = LONGEST_STEP * max(1.0, float(np.linalg.norm(x)))
    step = step * min(1.0, longest / float(np.linalg.norm(step)))
    slope = float(here[1] @ step)
    for _ in range(MAX_SHORTENINGS):
        there = _guarded(objective, x + step)
        if there[0] <= here[0] + 1e-4 * slope:
            return x + step, there
        step, slope = 0.4 * step, 0.4 * slope
    return None


def _guarded(objective: Callable[[Array], Evaluation], x: Array) -> Evaluation:
    try:
        with np.errstate(over="raise", invalid="raise"):
            return objective(x)
    except (np.linalg.LinAlgError, FloatingPointError):
        return np.inf, np.zeros_like(x), 0.0


def _update(inverse: Array, step: Array, change: Array) -> Array:
    """BFGS update of an inverse Hessian; none where the curvature along the step is negative."""
    along = float(step @ change)
    if along <= 1e-10 * float(np.linalg.norm(step) * np.linalg.norm(change)):
        return inverse
    projector = np.eye(len(step)) - np.outer(step, change) / along
    return projector @ inverse @ projector.T + np.outer(step, step) / along


def _inverse_curvature(objective: Callable[[Array], Evaluation], x: Array) -> Array:
    """Inverse of the differenced Hessian, its eigenvalues made positive."""
    if not len(x):
        return np.zeros((0, 0))
    values, vectors = np.linalg.eigh(hessian(lambda z: objective(z)[1], x))
    size = np.abs(values)
    return (vectors / np.maximum(size, 1e-4 * np.max(size))) @ vectors.T
