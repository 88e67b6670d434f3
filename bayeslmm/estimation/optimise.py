"""Safeguarded minimisation of smooth criteria with analytic gradients.

Limited-memory BFGS does the travelling, Newton steps on a Hessian differenced from the gradient
finish, leave saddle points, and decide whether the result is a minimum.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import minimize

Array = NDArray[np.float64]
Objective = Callable[[Array], tuple[float, Array]]
BatchObjective = Callable[[Array], tuple[Array, Array]]
"""Criteria (S,) and gradients (S, d) at points (S, d)."""

DIFFERENCE = 1e-4
"""Step of the central differences of the gradient: the error is about its square."""

NEWTON_DECREMENT = 1e-11
"""Predicted decrease of the criterion (in deviance units) below which Newton steps stop."""

REUSE = 1e-8
"""Predicted decrease below which a step leaves the Hessian as it is, to 1e-4 or so."""

CURVATURE = 1e-7
"""Most negative eigenvalue of the Hessian, relative to the largest, taken for rounding."""

FIRM = 1e-4
"""Curvature, relative to the largest, from which a step too short to be checked is taken."""

FLAT = 1e-8
"""Curvature below which a criterion counts as flat everywhere."""

LONGEST_STEP = 5.0
"""Longest Newton step, in coordinates of order one."""

LONGEST_TRAVEL = 2.0
"""Longest Newton step while travelling, on logarithms where there are any."""

HOPELESS = 1e10
"""Scaled criterion reported to the line search where there is none."""

LARGEST_LOG = 30.0
"""Bound on logarithms while travelling."""

TOLERANCE = 1e-7
"""Predicted decrease of the criterion at which a search counts as converged."""

NOISE = 1e-5
"""Deviance units below which gradients judge a step that no decrease of the criterion confirms."""

MAX_NEWTON = 25

NEAR = 1e-8
"""Predicted decrease, in deviance units, at which one more step ends the travelling."""

SHORTER = np.array([0.5, 0.125, 1.0 / 64.0])
"""Parts of a step that are tried along with it."""


@dataclass(frozen=True, slots=True, eq=False, kw_only=True)
class Optimum:
    """A minimum and the evidence for it.

    Attributes
    ----------
    x : ndarray (d,)
        Location.
    value : float
        Criterion.
    gradient : ndarray (d,)
        Gradient at `x`.
    hessian : ndarray (d, d)
        Hessian at `x`.
    converged : bool
        Whether the gradient is negligible (by the Newton decrement) and the curvature not negative.
    evaluations : int
        Number of evaluations of criterion and gradient.
    message : str
        Why the search stopped, in words.
    """

    x: Array
    value: float
    gradient: Array
    hessian: Array
    converged: bool
    evaluations: int
    message: str


def minimise(
    objective: Objective,
    start: Array,
    scale: float,
    *,
    information: Array | None = None,
    on_log_scale: NDArray[np.bool_] | None = None,
    tolerance: float = TOLERANCE,
    batch: BatchObjective | None = None,
) -> Optimum:
    """Minimise a smooth function.

    Parameters
    ----------
    objective : callable
        Returns the criterion and its gradient (d,).
    start : ndarray (d,)
        Starting point, in coordinates of order one.
    scale : float
        Typical size of the criterion, such as the number of observations: keeps first steps short.
    information : ndarray (d,), optional
        Guess of the curvature along each coordinate, up to a common factor: the metric of the
        first steps.
    on_log_scale : ndarray of bool (d,), optional
        Coordinates that start positive and travel on the log scale. Only the Newton steps can
        take them to zero or below.
    tolerance : float
        Predicted decrease of the criterion at which the search counts as converged.
    batch : callable, optional
        The same function at many points at once, where that takes hardly longer than at one:
        Newton steps then do the travelling too.

    Returns
    -------
    Optimum
    """
    counted = _Counter(objective, batch)
    units = np.ones(len(start)) if information is None else np.sqrt(scale / information)
    logs = np.zeros(len(start), dtype=bool) if on_log_scale is None else on_log_scale

    def place(z: Array) -> Array:
        x = z * units
        x[logs] = np.exp(np.clip(x[logs], -LARGEST_LOG, LARGEST_LOG))
        return x

    def travelling(z: Array) -> tuple[float, Array]:
        x = place(z)
        value, gradient = counted(x)
        if not np.isfinite(value):
            return HOPELESS, np.zeros(len(z))
        return value / scale, gradient * np.where(logs, x, 1.0) * units / scale

    origin = start.copy()
    origin[logs] = np.log(start[logs])
    if batch is not None:

        def travelling_together(z: Array) -> tuple[Array, Array]:
            x = z.copy()
            x[:, logs] = np.exp(np.clip(x[:, logs], -LARGEST_LOG, LARGEST_LOG))
            values, gradients = counted.together(x)
            return values, gradients * np.where(logs, x, 1.0)

        near = _newton_travel(travelling_together, origin)
        if near is not None:
            near[logs] = np.exp(near[logs])
            return _finish(counted, near, tolerance)
    rough = minimize(
        travelling,
        origin / units,
        jac=True,
        method="L-BFGS-B",
        options={"maxiter": 500, "maxls": 40, "gtol": 1e-7, "ftol": 1e-13},
    )
    return _finish(counted, place(np.asarray(rough.x)), tolerance)


def hessian(gradient: Callable[[Array], Array], x: Array, step: float = DIFFERENCE) -> Array:
    """Symmetrised central-difference Hessian (d, d) from an analytic gradient."""
    d = len(x)
    result = np.empty((d, d))
    for i in range(d):
        shift = np.zeros(d)
        shift[i] = step * max(1.0, abs(x[i]))
        result[i] = (gradient(x + shift) - gradient(x - shift)) / (2.0 * shift[i])
    return 0.5 * (result + result.T)


def attempt(objective: Objective, x: Array) -> tuple[float, Array]:
    """Criterion and gradient; infinity and NaN where the arithmetic breaks down."""
    with np.errstate(all="ignore"):
        try:
            value, gradient = objective(x)
        except np.linalg.LinAlgError:
            value, gradient = np.nan, x
    if np.isfinite(value) and np.all(np.isfinite(gradient)):
        return value, gradient
    return np.inf, np.full(len(x), np.nan)


def _newton_travel(objective: BatchObjective, z: Array) -> Array | None:
    """Coordinates near a minimum, by Newton steps with the absolute curvature.

    A step, shorter ones and the surroundings of where it leads are evaluated together. None where
    the steps do not come to an end.
    """
    d = len(z)
    around = DIFFERENCE * np.vstack([np.zeros(d), np.eye(d), -np.eye(d)])
    values, gradients = objective(z + around)
    for _ in range(MAX_NEWTON):
        if not np.isfinite(values[0]) or not np.all(np.isfinite(gradients)):
            return None
        curvature = (gradients[1 : d + 1] - gradients[d + 1 : 2 * d + 1]) / (2.0 * DIFFERENCE)
        sizes, vectors = np.linalg.eigh(0.5 * (curvature + curvature.T))
        sizes = np.maximum(np.abs(sizes), max(CURVATURE * np.max(np.abs(sizes)), FLAT))
        along = vectors.T @ gradients[0]
        step = -vectors @ (along / sizes)
        if 0.5 * np.sum(along**2 / sizes) < NEAR:
            return z + step
        step *= min(1.0, LONGEST_TRAVEL / float(np.linalg.norm(step)))
        here = values[0]
        tried = np.vstack([z + step + around, z + SHORTER[:, None] * step])
        values, gradients = objective(tried)
        best = int(np.nanargmin(np.append(values[[0, *range(2 * d + 1, len(tried))]], np.inf)))
        if best == 0 and values[0] < here:
            z = z + step
            continue
        shorter = 2 * d + best
        if best > len(SHORTER) or not values[shorter] < here:
            return None
        z = tried[shorter]
        values, gradients = objective(z + around)
    return None


class _Counter:
    """Counts evaluations."""

    def __init__(self, objective: Objective, batch: BatchObjective | None = None) -> None:
        self.objective, self.batch = objective, batch
        self.count = 0

    def together(self, x: Array) -> tuple[Array, Array]:
        """Criteria and gradients at points (S, d)."""
        if self.batch is None:
            found = [self(row) for row in x]
            return np.array([value for value, _ in found]), np.array([slope for _, slope in found])
        self.count += len(x)
        return self.batch(x)

    def __call__(self, x: Array) -> tuple[float, Array]:
        self.count += 1
        return attempt(self.objective, x)


def _finish(counted: _Counter, x: Array, tolerance: float) -> Optimum:
    value, gradient = counted(x)
    curvature = np.zeros((len(x), len(x)))
    fresh = False
    for _ in range(MAX_NEWTON):
        if not fresh:
            curvature = _curvature(counted, x)
            fresh = True
        if not np.all(np.isfinite(curvature)):
            break
        step, decrement, saddle = _newton_step(curvature, gradient)
        if decrement < NEWTON_DECREMENT and not saddle:
            last = _firm_part(curvature, step)
            x, gradient = x + last, gradient + curvature @ last
            break
        moved = _line_search(counted, x, value, step)
        if moved is None and decrement < NOISE and not saddle:
            moved = _by_gradient(counted, x, step, curvature, decrement)
        if moved is None:
            break
        fresh = not saddle and decrement < REUSE
        x, value, gradient = moved
    converged, message = _verdict(curvature, gradient, tolerance)
    return Optimum(
        x=x,
        value=value,
        gradient=gradient,
        hessian=curvature,
        converged=converged,
        evaluations=counted.count,
        message=message,
    )


def _curvature(counted: _Counter, x: Array) -> Array:
    """Hessian (d, d) by central differences as of :func:`hessian`, all evaluated together."""
    steps = DIFFERENCE * np.maximum(1.0, np.abs(x))
    shifts = np.diag(steps)
    _, gradients = counted.together(np.vstack([x + shifts, x - shifts]))
    ahead, behind = np.split(gradients, 2)
    result = (ahead - behind) / (2.0 * steps[:, None])
    return 0.5 * (result + result.T)


def _verdict(curvature: Array, gradient: Array, tolerance: float) -> tuple[bool, str]:
    """Whether a search ended at a minimum, and why it stopped."""
    if not np.all(np.isfinite(curvature)):
        return False, "stopped where the criterion cannot be computed in double precision"
    _, decrement, saddle = _newton_step(curvature, gradient)
    if saddle:
        return False, "stopped at a point where the criterion still curves downwards"
    if decrement < tolerance:
        return True, "converged"
    return False, f"stopped {decrement:.2g} deviance units from a minimum"


def _newton_step(curvature: Array, gradient: Array) -> tuple[Array, float, bool]:
    """Step, predicted decrease, and whether the curvature is negative somewhere."""
    values, vectors = np.linalg.eigh(curvature)
    top = max(float(np.max(np.abs(values), initial=0.0)), FLAT)
    along = vectors.T @ gradient
    saddle = bool(values.size and values[0] < -CURVATURE * top)
    if saddle:
        # Leave along the most negative direction: the gradient alone can vanish at a saddle.
        sign = -1.0 if along[0] > 0 else 1.0
        return 0.1 * sign * vectors[:, 0], np.inf, True
    safe = np.maximum(values, CURVATURE * top)
    step = -vectors @ (along / safe)
    step *= min(1.0, LONGEST_STEP / max(float(np.linalg.norm(step)), LONGEST_STEP))
    return step, float(0.5 * np.sum(along**2 / safe)), False


def _firm_part(curvature: Array, step: Array) -> Array:
    """The part of a step along which the curvature is not nearly flat.

    It changes the criterion by less than its rounding, but takes the optimum to its own.
    """
    values, vectors = np.linalg.eigh(curvature)
    firm = vectors[:, values > FIRM * np.max(np.abs(values), initial=0.0)]
    return np.asarray(firm @ (firm.T @ step))


def _by_gradient(
    counted: _Counter, x: Array, step: Array, curvature: Array, decrement: float
) -> tuple[Array, float, Array] | None:
    """The step where the criterion is too rounded to tell, if the gradient then promises less."""
    trial = x + step
    value, gradient = counted(trial)
    if np.isfinite(value) and _newton_step(curvature, gradient)[1] < 0.5 * decrement:
        return trial, value, gradient
    return None


def _line_search(
    counted: _Counter, x: Array, value: float, step: Array
) -> tuple[Array, float, Array] | None:
    """Halve the step until the criterion falls; None where it does not, up to rounding."""
    slack = 1e-13 * abs(value)
    for halving in range(12):
        trial = x + step * 0.5**halving
        new_value, new_gradient = counted(trial)
        if np.isfinite(new_value) and new_value < value + slack:
            return trial, new_value, new_gradient
    return None
