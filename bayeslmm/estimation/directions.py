"""Covariance parameters as Kenward and Roger's method counts them, and V's derivatives by these.

They are those of SAS: variances and covariances of unstructured, diagonal and homogeneous compound
symmetric or Toeplitz matrices, in which V is linear; variances and correlations of the others.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from bayeslmm.covariance.autoregressive import Autoregressive
from bayeslmm.covariance.structure import Structure, sd_leaders
from bayeslmm.estimation.variance_forms import Entry
from bayeslmm.exceptions import DataError

Array = NDArray[np.float64]

STEP = 1e-4
"""Step of central differences over the size of a parameter."""

BOUNDARY = (
    "Kenward and Roger's method needs derivatives by the parameters of {name} random effects, of "
    "which a variance is zero or a correlation plus or minus one here. Simplify the model, "
    "or take df='satterthwaite'."
)


class Directions(NamedTuple):
    """Derivatives of the entries of covariance matrices by f parameters.

    Attributes
    ----------
    slopes : ndarray (f, m)
        First derivatives of the m entries.
    bends : ndarray (f, f, m)
        Second ones.
    """

    slopes: Array
    bends: Array


def directions(
    structures: Sequence[Structure],
    bases: Sequence[Array],
    covariances: Sequence[Array],
    entries: Sequence[Entry],
) -> Directions:
    """Derivatives of the working covariance matrices by the parameters of all grouping factors.

    Parameters
    ----------
    structures : sequence of Structure
        Of each grouping factor.
    bases : sequence of ndarray (k, k)
        Working columns are ``Z @ basis``.
    covariances : sequence of ndarray (k, k)
        Of the user's columns, over sigma^2.
    entries : sequence of Entry
        Places of the m entries.

    Raises
    ------
    DataError
        If a pattern is at the boundary of its parameters.
    """
    parts = []
    for f, (structure, basis, covariance) in enumerate(
        zip(structures, bases, covariances, strict=True)
    ):
        back = np.linalg.inv(basis)
        for block, part in zip(structure.blocks, structure.parts, strict=True):
            own = np.ix_(block, block)
            for slopes in pattern_directions(part, covariance[own]):
                wide = np.zeros((*slopes.shape[:-2], *covariance.shape))
                wide[(..., *own)] = slopes
                parts.append((f, back @ wide @ back.T))
    return _joined(parts, entries)


def _joined(parts: Sequence[tuple[int, Array]], entries: Sequence[Entry]) -> Directions:
    """Parameters of all blocks: pairs of first (f, k, k) and second (f, f, k, k) derivatives."""
    sizes = [len(first) for _, first in parts[::2]]
    total, m = sum(sizes), len(entries)
    slopes, bends = np.zeros((total, m)), np.zeros((total, total, m))
    start = 0
    for size, (f, first), (_, second) in zip(sizes, parts[::2], parts[1::2], strict=True):
        rows = slice(start, start + size)
        for place, (factor, row, col) in enumerate(entries):
            if factor == f:
                slopes[rows, place] = first[:, row, col]
                bends[rows, rows, place] = second[:, :, row, col]
        start += size
    return Directions(slopes, bends)


def pattern_directions(part: Structure, covariance: Array) -> tuple[Array, Array]:
    """Derivatives (f, k, k) and (f, f, k, k) of the covariance matrix of one block."""
    if not is_bent(part):
        return _linear(part, len(covariance))
    point = pattern_parameters(part, covariance[None])[0]
    n_sds, variances = part.n_sds, point[: part.n_sds]
    scale = variances[0] if _by_covariance(part) else 1.0
    if not np.all(np.abs(point[n_sds:]) < (1.0 - STEP) * scale):
        raise DataError(BOUNDARY.format(name=part.name))
    steps = STEP * np.concatenate([variances, np.full(len(point) - n_sds, scale)])

    def at(x: Array) -> Array:
        sd = np.sqrt(x[..., :n_sds])
        rho = x[..., n_sds:] / (x[..., :1] if _by_covariance(part) else 1.0)
        lower = sd[..., part.sd_places, None] * part.cholesky(part.from_correlations(rho))
        return np.asarray(lower @ lower.swapaxes(-1, -2))

    return differences(at, point, steps)


def is_bent(part: Structure) -> bool:
    """Whether a structure of one block has a pattern of correlations."""
    return bool(part.n_cors) and not part.mixes


def pattern_parameters(part: Structure, covariance: Array) -> Array:
    """Parameters (S, f) of a pattern from its covariance matrices (S, k, k).

    Variances, and correlations or, where V is linear in them, covariances; NaN at zero variances.
    """
    rows, cols = np.array(part.pairs, dtype=np.intp).T
    variances = np.diagonal(covariance, axis1=1, axis2=2)
    own = covariance[:, rows, cols]
    if not _by_covariance(part):
        with np.errstate(invalid="ignore", divide="ignore"):
            own = own / np.sqrt(variances[:, rows] * variances[:, cols])
    return np.concatenate([variances[:, sd_leaders(part)], own], axis=1)


def _by_covariance(part: Structure) -> bool:
    return part.homogeneous and not isinstance(part, Autoregressive)


def _linear(part: Structure, k: int) -> tuple[Array, Array]:
    """Of a matrix that is linear in its variances and, unless diagonal, covariances."""
    if part.mixes:
        places = [[(a, b)] for b in range(k) for a in range(b + 1)]
    else:
        places = [
            [(int(i), int(i)) for i in np.flatnonzero(part.sd_places == s)]
            for s in range(part.n_sds)
        ]
    slopes = np.zeros((len(places), k, k))
    for i, pairs in enumerate(places):
        for a, b in pairs:
            slopes[i, a, b] = slopes[i, b, a] = 1.0
    return slopes, np.zeros((len(places), *slopes.shape))


def differences(
    function: Callable[[Array], Array], point: Array, steps: Array
) -> tuple[Array, Array]:
    """First (f, ...) and second (f, f, ...) derivatives by central differences.

    Parameters
    ----------
    function : callable
        From points (S, f) to values (S, ...).
    point, steps : ndarray (f,)
        Where, and how far apart.
    """
    f = len(point)
    shifts = np.eye(f) * steps
    centre = function(point[None])[0]
    ahead, behind = function(point + shifts), function(point - shifts)
    wide = steps.reshape(-1, *[1] * (ahead.ndim - 1))
    first = (ahead - behind) / (2.0 * wide)
    second = np.zeros((f, *first.shape))
    for i in range(f):
        second[i, i] = (ahead[i] - 2.0 * centre + behind[i]) / steps[i] ** 2
        for j in range(i):
            corners = [shifts[i] + shifts[j], shifts[i] - shifts[j]]
            values = function(point + np.array([*corners, -corners[0], -corners[1]]))
            mixed = (values[0] + values[2] - values[1] - values[3]) / (4.0 * steps[i] * steps[j])
            second[i, j] = second[j, i] = mixed
    return first, second
