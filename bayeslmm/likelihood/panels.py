"""The equations that one related factor leaves, interpolated over its standard deviation.

After eliminating a single coefficient of related levels, the log determinant and the equations of
all other columns are functions of one number, its relative standard deviation, and analytic in its
logarithm t: with ``u = L Q w`` as in ``related`` they are sums of ``log(1 + exp(2 t) d)`` and of
``m m' exp(2 t) / (1 + exp(2 t) d)``, whose singularities have an imaginary part of pi / 2. On a
panel of unit length Chebyshev polynomials of 16 terms therefore reach 12 digits. Panels are made
where many points lie, each by as many sparse factorisations, and checked at points between.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.polynomial.chebyshev import chebvander
from numpy.typing import NDArray

from bayeslmm.likelihood.blocks import bordered_cholesky, log_det_of, rest_of
from bayeslmm.likelihood.elimination import Border
from bayeslmm.likelihood.factorise import eliminate_random

Array = NDArray[np.float64]

NODES = 16
"""Factorisations per panel."""

CHECKS = np.array([-1.0, 0.21])
"""Places in a panel at which it is compared with a factorisation."""

ACCURATE = 1e-10
"""Largest error there, relative to the equations without random effects."""

ENTRIES = 1 << 22
"""Entries of the equations worked on at once."""


def panel_of(border: Border, working: Sequence[Array]) -> NDArray[np.int64]:
    """Number of the panel (S,) of each point; that of points with no variance is the lowest."""
    return np.floor(log_sds(border, working)).astype(np.int64)


def log_sds(border: Border, working: Sequence[Array]) -> Array:
    """Logarithms t (S,) of the related factor's standard deviation, within bounds."""
    size = np.abs(working[border.factor][:, 0, 0])
    return np.log(np.clip(size, 1e-12, 1e12))


def panel_nodes(number: int) -> Array:
    """Logarithms t at which the equations of a panel are needed: its nodes, and its checks."""
    return number + 0.5 + 0.5 * np.concatenate([_nodes(), CHECKS])


def bordered(border: Border, log_sd: float) -> Array:
    """Log determinant and equations, laid flat, at one logarithm t of the standard deviation."""
    found = eliminate_random(border.plan, [np.full((1, 1), np.exp(log_sd))])
    return np.append(found.log_det, found.fixed)


def make_panel(border: Border, values: Array) -> Array | None:
    """Coefficients from values at :func:`panel_nodes`; None where they are not accurate."""
    coefficients = np.linalg.solve(chebvander(_nodes(), NODES - 1), values[:NODES])
    error = chebvander(CHECKS, NODES - 1) @ coefficients - values[NODES:]
    diagonal = np.sqrt(np.diag(border.plan.products.fixed))
    scale = np.append(border.plan.n_tail, np.outer(diagonal, diagonal))
    return coefficients if bool(np.all(np.abs(error) <= ACCURATE * scale)) else None


def _nodes() -> Array:
    return np.cos(np.pi * (np.arange(NODES) + 0.5) / NODES)


def interpolated(border: Border, working: Sequence[Array], number: int) -> Array:
    """Log determinants and equations (S, 1 + m^2) at points of one panel that is known."""
    coefficients = border.panels[number]
    assert coefficients is not None
    places = 2.0 * (log_sds(border, working) - number) - 1.0
    return np.asarray(chebvander(places, NODES - 1) @ coefficients)


def eliminate_rest(border: Border, working: Sequence[Array], values: Array) -> tuple[Array, Array]:
    """Log determinants (S,) and equations (S, p + 1, p + 1) after the other factors as well."""
    width = len(border.plan.products.fixed)
    log_det, whole = values[:, 0], values[:, 1:].reshape(-1, width, width)
    if not border.tail:
        return log_det, whole
    lower = bordered_cholesky(whole, border.tail, working)
    return log_det + log_det_of(lower, border.tail), rest_of(lower, border.tail)
