"""Functions of whole columns and of factors in formulas: formulaic's, and R's ``ns``."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from formulaic.materializers import FactorValues
from formulaic.transforms import TRANSFORMS as FORMULAICS
from formulaic.transforms import C, ContrastsRegistry
from formulaic.utils.stateful_transforms import stateful_transform
from scipy.interpolate import BSpline

from bayeslmm.column_types import EXACT
from bayeslmm.formula import expressions

_DEGREE = 3


@dataclass(frozen=True, slots=True, kw_only=True)
class NaturalSpline:
    """Knots of a natural cubic spline, fixed once and reused on new data.

    Parameters
    ----------
    interior : tuple of float
        Interior knots, increasing, strictly inside `boundary`.
    boundary : tuple of float
        The two boundary knots; the spline is linear outside them.
    intercept : bool
        Whether the basis contains the constant function.
    """

    interior: tuple[float, ...]
    boundary: tuple[float, float]
    intercept: bool = False


def place_knots(
    x: np.ndarray,
    df: int | None = None,
    knots: np.ndarray | None = None,
    boundary_knots: np.ndarray | None = None,
    intercept: bool = False,
) -> NaturalSpline:
    """Choose the knots of a natural cubic spline as R's ``ns`` does.

    Parameters
    ----------
    x : array, shape (n,)
        The covariate.
    df : int, optional
        Number of columns of the basis; ``df - 1 - intercept`` interior knots are put at
        quantiles of the values of `x` inside the boundary knots. Default ``1 + intercept``.
    knots : array, optional
        Interior knots; takes precedence over `df`.
    boundary_knots : array, shape (2,), optional
        Default: the range of `x`.
    intercept : bool
        Whether the basis contains the constant function.

    Returns
    -------
    NaturalSpline

    Raises
    ------
    ValueError
        If `df` is too small, a knot lies outside the boundary, or `x` is constant.
    """
    ends = (x.min(), x.max()) if boundary_knots is None else boundary_knots
    lower, upper = np.sort(np.asarray(ends, dtype=float))
    if not lower < upper:
        raise ValueError("ns() needs two different boundary knots; is the covariate constant?")
    if knots is None:
        count = 0 if df is None else df - 1 - intercept
        if count < 0:
            raise ValueError(f"ns() needs df >= {1 + intercept}, got df={df}")
        inside = x[(x >= lower) & (x <= upper)]
        interior = np.quantile(inside, np.linspace(0.0, 1.0, count + 2)[1:-1])
    else:
        interior = np.sort(np.atleast_1d(np.asarray(knots, dtype=float)))
    if interior.size and not (lower < interior[0] and interior[-1] < upper):
        raise ValueError("ns() needs its interior knots strictly between the boundary knots")
    return NaturalSpline(
        interior=tuple(interior.tolist()),
        boundary=(float(lower), float(upper)),
        intercept=intercept,
    )


def natural_spline_basis(x: np.ndarray, spline: NaturalSpline) -> np.ndarray:
    """Evaluate a natural cubic spline basis.

    The cubic B-spline basis is projected, by the Householder QR that R uses, onto the
    functions whose second derivative is zero at both boundary knots, so the columns
    agree with ``splines::ns`` including their signs.

    Parameters
    ----------
    x : array, shape (n,)
        Points; the basis is linear outside the boundary knots.
    spline : NaturalSpline
        The knots.

    Returns
    -------
    array, shape (n, len(spline.interior) + 1 + spline.intercept)

    References
    ----------
    Hastie, T. J. (1992). Generalized additive models. In J. M. Chambers and T. J. Hastie
    (Eds.), Statistical Models in S. Wadsworth & Brooks/Cole.
    """
    lower, upper = spline.boundary
    ends = _DEGREE + 1
    knots = np.concatenate([np.full(ends, lower), spline.interior, np.full(ends, upper)])
    size = knots.size - ends
    bspline = BSpline(knots, np.eye(size), _DEGREE)
    slope, curvature = bspline.derivative(1), bspline.derivative(2)
    clipped = np.clip(x, lower, upper)
    basis = bspline(clipped)
    outside = x != clipped
    basis[outside] += (x - clipped)[outside, None] * slope(clipped[outside])
    constraint = curvature(np.array([lower, upper]))
    if not spline.intercept:
        basis, constraint = basis[:, 1:], constraint[:, 1:]
    q, _ = np.linalg.qr(constraint.T, mode="complete")
    return basis @ q[:, 2:]


# --- what a formula calls ----------------------------------------------------------------


@stateful_transform
def _ns(
    x: Any,
    df: int | None = None,
    knots: Any = None,
    intercept: bool = False,
    boundary_knots: Any = None,
    _state: dict[str, Any] | None = None,
) -> FactorValues:
    """R's ``ns``: a natural cubic spline basis that remembers its knots."""
    values = np.asarray(x, dtype=float)
    state = {} if _state is None else _state
    if "spline" not in state:
        state["spline"] = place_knots(values, df, knots, boundary_knots, intercept)
    basis = natural_spline_basis(values, state["spline"])
    names = tuple(str(i + 1) for i in range(basis.shape[1]))
    return FactorValues(basis, column_names=names)


def _whole_numbers(values: Any) -> Any:
    """Levels that are whole numbers as integers, so that labels do not say ``2.0``."""
    if not isinstance(values, pd.Series) or values.dtype != np.float64:
        return values
    whole = (values == np.rint(values)) & (np.abs(values) < EXACT)
    return values.astype(np.int64) if whole.all() else values


def _factor(data: Any, *args: Any, **kwargs: Any) -> FactorValues:
    """R's ``factor``."""
    return C(_whole_numbers(data), *args, **kwargs)


TRANSFORMS: Mapping[str, Callable[..., Any]] = {
    **{name: FORMULAICS[name] for name in expressions.TRANSFORMS if name in FORMULAICS},
    "C": _factor,
    "factor": _factor,
    "ns": _ns,
}
"""By bare name."""

CONTRASTS: Mapping[str, Callable[..., Any]] = {
    name: FORMULAICS[name] if "." not in name else getattr(ContrastsRegistry, name[6:])
    for name in expressions.CONTRASTS
}
