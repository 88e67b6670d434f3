"""Several optimisers and starts for one criterion: lme4's ``allFit``."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from time import perf_counter
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import minimize

from bayeslmm.estimation.estimate import Fit, Search, search_for
from bayeslmm.estimation.optimise import HOPELESS, Optimum, attempt
from bayeslmm.exceptions import DataError
from bayeslmm.likelihood.elimination import Plan
from bayeslmm.likelihood.factorise import single_threaded

Array = NDArray[np.float64]

OWN = "bayeslmm"
"""The search of the estimate itself."""

STARTS = {f"{OWN}, start x 0.1": 0.1, f"{OWN}, start x 10": 10.0}
"""The same from other starts: all coordinates multiplied."""

SCIPY: dict[str, dict[str, float]] = {
    "L-BFGS-B": {"maxiter": 1000, "ftol": 1e-14, "gtol": 1e-7},
    "BFGS": {"maxiter": 1000, "gtol": 1e-5},
    "trust-constr": {"maxiter": 1000, "gtol": 1e-7},
    "Nelder-Mead": {"maxfev": 10_000, "xatol": 1e-6, "fatol": 1e-9, "adaptive": True},
    "Powell": {"maxfev": 10_000, "xtol": 1e-8, "ftol": 1e-13},
}
"""Optimisers of SciPy and their options; the last two use no gradients."""

OPTIMISERS = (OWN, *STARTS, *SCIPY)

WITHOUT_GRADIENT = ("Nelder-Mead", "Powell")


@dataclass(frozen=True, slots=True, eq=False, kw_only=True)
class Outcome:
    """How a search ended.

    Attributes
    ----------
    name : str
        The optimiser.
    fit : Fit or None
        The estimate where it ended; None where it failed.
    converged : bool
        Whether the optimiser says so.
    evaluations : int
        Evaluations of the criterion.
    seconds : float
        Its time.
    message : str
        What it says.
    """

    name: str
    fit: Fit | None
    converged: bool
    evaluations: int
    seconds: float
    message: str


def compare_searches(
    plan: Plan, fit: Fit, method: Literal["REML", "ML"], optimisers: Sequence[str]
) -> list[Outcome]:
    """Minimise a criterion by several optimisers.

    Parameters
    ----------
    plan : Plan
        The data.
    fit : Fit
        The estimate by the search of its own, which stands first.
    method : {"REML", "ML"}
        The criterion.
    optimisers : sequence of str
        Some of `OPTIMISERS`.

    Raises
    ------
    DataError
        If there is nothing to search for.
    """
    search = search_for(plan, method)
    if not len(search.start):
        raise DataError(
            "This model has no parameters to search for: its estimate is least squares, for which "
            "there is a formula."
        )
    with single_threaded():
        return [_outcome(name, search, fit) for name in optimisers]


def _outcome(name: str, search: Search, fit: Fit) -> Outcome:
    began = perf_counter()
    try:
        found = _runner(name, search)()
        seconds = perf_counter() - began
        own = fit if name == OWN else search.fit(_with_curvature(found, fit))
    except (np.linalg.LinAlgError, DataError, ValueError) as error:
        message = f"failed: {error}"
        return Outcome(
            name=name,
            fit=None,
            converged=False,
            evaluations=0,
            seconds=perf_counter() - began,
            message=message,
        )
    return Outcome(
        name=name,
        fit=own,
        converged=found.converged,
        evaluations=found.evaluations,
        seconds=seconds,
        message=found.message,
    )


def _runner(name: str, search: Search) -> Callable[[], Optimum]:
    if name == OWN:
        return lambda: search.minimise(search.start)
    if name in STARTS:
        return lambda: search.minimise(STARTS[name] * search.start)
    return lambda: _by_scipy(name, search)


def _with_curvature(found: Optimum, fit: Fit) -> Optimum:
    """An optimum with the curvature at the estimate, which only standard errors ask for."""
    return Optimum(
        x=found.x,
        value=found.value,
        gradient=found.gradient,
        hessian=fit.optimum.hessian,
        converged=found.converged,
        evaluations=found.evaluations,
        message=found.message,
    )


def _by_scipy(name: str, search: Search) -> Optimum:
    def objective(x: Array) -> tuple[float, Array]:
        value, gradient = attempt(search.objective, x)
        if not np.isfinite(value):
            return HOPELESS, np.zeros(len(x))
        return value, gradient

    free = name in WITHOUT_GRADIENT
    result = minimize(
        (lambda x: objective(x)[0]) if free else objective,
        search.start,
        jac=None if free else True,
        method=name,
        options=dict(SCIPY[name]),
    )
    return Optimum(
        x=np.asarray(result.x),
        value=float(result.fun),
        gradient=objective(np.asarray(result.x))[1],
        hessian=np.empty((0, 0)),
        converged=bool(result.success),
        evaluations=int(result.nfev),
        message=str(result.message),
    )
