"""Cross-products under a residual precision matrix with tied entries.

Where entry (a, b) of the relative precision matrix is one of K values c_k, every cross-product is
a linear function of c. The functions are found once, in one pass over the rows; afterwards
cross-products at other parameters, and derivatives by these, cost nothing that depends on the
number of rows.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np
import scipy.sparse as sp
from numpy.typing import NDArray

from bayeslmm.covariance.kinds import structure_of
from bayeslmm.covariance.residual import BoundResidual
from bayeslmm.likelihood.crossprod import (
    Basis,
    Coupling,
    RandomColumns,
    WorkingProducts,
    working_columns,
)
from bayeslmm.likelihood.tied import AT_ONCE, TiedProducts, tied_products

Array = NDArray[np.float64]
Indices = NDArray[np.intp]

type Map = sp.csr_array | Array
"""A linear map of the K values, dense where most of its entries are not zero."""

FULL = 0.25
"""Share of entries that are not zero from which a dense map is faster than a sparse one."""

SAME_DIGITS = 12
"""Decimal digits to which the functions of two levels agree that are taken for equal."""


class ProductSlopes(NamedTuple):
    """Derivatives of a function by cross-products, laid out as those of ``WorkingProducts``.

    An entry that stands at two places, such as those of `mixed`, counts twice.
    """

    fixed: Array
    random: tuple[Array, ...]
    mixed: tuple[Array, ...]
    couplings: tuple[Array, ...]


@dataclass(frozen=True, slots=True, eq=False, kw_only=True)
class Stack:
    """Cross-products as functions of the residual parameters.

    Attributes
    ----------
    law : BoundResidual
        The relative precision matrix of the rows, without weights.
    template : WorkingProducts
        What does not depend on them, and the places of couplings; its other arrays are empty.
    fixed : ndarray or scipy.sparse.csr_array ((p + 1)^2, K)
        Linear map of the values to the cross-products of X and the response.
    random, mixed, couplings : tuple of scipy.sparse.csr_array
        Those of the other arrays of cross-products, laid flat.
    classes : tuple of ndarray of int (J,)
        Class of each level of a grouping factor: those of one have equal blocks at every shape.
    """

    law: BoundResidual
    template: WorkingProducts
    fixed: Map
    random: tuple[sp.csr_array, ...]
    mixed: tuple[sp.csr_array, ...]
    couplings: tuple[sp.csr_array, ...]
    classes: tuple[Indices, ...]

    def products(self, shape: Array) -> WorkingProducts:
        """Cross-products at a shape (r,)."""
        values, log_det = (part[0] for part in self.law.precision(shape[None]))
        if not np.all(np.isfinite(values)) or not np.isfinite(log_det):
            raise np.linalg.LinAlgError("the covariance matrix of the residuals is singular")
        part = self.template
        return replace(
            part,
            log_weights=part.log_weights + float(log_det),
            fixed=(self.fixed @ values).reshape(part.fixed.shape),
            random=_filled(self.random, values, part.random),
            mixed=_filled(self.mixed, values, part.mixed),
            couplings=tuple(
                replace(c, blocks=(m @ values).reshape(c.blocks.shape))
                for c, m in zip(part.couplings, self.couplings, strict=True)
            ),
        )

    def fixed_at(self, shapes: Array) -> tuple[Array, Array]:
        """Cross-products (S, p + 1, p + 1) of X and y, and log determinants, at shapes (S, r)."""
        fixed = np.empty((len(shapes), *self.template.fixed.shape))
        log_det = np.empty(len(shapes))
        step = max(1, AT_ONCE // max(self.fixed.shape))
        for start in range(0, len(shapes), step):
            rows = slice(start, start + step)
            values, log_det[rows] = self.law.precision(shapes[rows])
            fixed[rows] = _batch(self.fixed, values, self.template.fixed)
        return fixed, log_det + self.template.log_weights

    def factor_at(self, factor: int, shapes: Array) -> tuple[Array, Array, Array, Array]:
        """Cross-products of one grouping factor and the fixed effects at shapes (S, r).

        Returns
        -------
        gram : ndarray (k, k, S, C)
            Blocks of the classes of levels.
        mixed : ndarray (S, J, k, p + 1)
        fixed : ndarray (S, p + 1, p + 1)
        log_weights : ndarray (S,)
        """
        values, log_det = self.law.precision(shapes)
        part, k = self.template, self.template.random[factor].shape[1]
        first = np.unique(self.classes[factor], return_index=True)[1]
        rows = (first[:, None] * k * k + np.arange(k * k)).ravel()
        gram = (self.random[factor][rows] @ values.T).reshape(len(first), k, k, -1)
        mixed = _batch(self.mixed[factor], values, part.mixed[factor])
        fixed = _batch(self.fixed, values, part.fixed)
        return gram.transpose(1, 2, 3, 0), mixed, fixed, log_det + part.log_weights

    def pull_back(self, shape: Array, slopes: ProductSlopes, by_log_det: float) -> Array:
        """Derivatives (r,) at a shape (r,) from those by cross-products and log determinant."""
        by_value = self.fixed.T @ slopes.fixed.ravel()
        for maps, parts in (
            (self.random, slopes.random),
            (self.mixed, slopes.mixed),
            (self.couplings, slopes.couplings),
        ):
            for one, slope in zip(maps, parts, strict=True):
                by_value = by_value + one.T @ slope.ravel()
        return self.law.pull_back(shape, by_value, by_log_det)


def _filled(
    maps: Sequence[sp.csr_array], values: Array, like: Sequence[Array]
) -> tuple[Array, ...]:
    pairs = zip(maps, like, strict=True)
    return tuple((one @ values).reshape(part.shape) for one, part in pairs)


def _dense_if_full(one: sp.csr_array) -> Map:
    return one.toarray() if one.nnz > FULL * np.prod(one.shape) else one


def _batch(one: Map, values: Array, like: Array) -> Array:
    """A map of values (S, K), laid out as `like` for each."""
    return np.asarray((one @ values.T).T.reshape(-1, *like.shape))


def stack_products(
    y: Array,
    X: Array,
    factors: Sequence[RandomColumns],
    law: BoundResidual,
    *,
    weights: Array | None = None,
    basis: Basis | None = None,
) -> Stack:
    """Cross-products as functions of residual parameters.

    Parameters
    ----------
    y, X, factors, weights, basis
        As of :func:`bayeslmm.likelihood.crossprod.cross_products`.
    law : BoundResidual
        The relative precision matrix; weights come on top.

    Returns
    -------
    Stack
    """
    basis, columns, slots = working_columns(y, X, factors, weights, basis)
    log_weights = 0.0 if weights is None else float(np.sum(np.log(weights)))
    return stack_of_sums(tied_products(basis, columns, slots, law, log_weights), factors)


def stack_of_sums(tied: TiedProducts, factors: Sequence[RandomColumns]) -> Stack:
    """The stack of rows from the sums over all their ties."""
    size, width = tied.law.entries.size, tied.fixed.sums.shape[1]
    counts = [factor.n_levels for factor in factors]
    widths = [part.sums.shape[1] for part in tied.random]
    couplings, maps = [], []
    for (i, j), own in tied.couplings.items():
        first, second, cell = own.cells(factors[j].n_levels)
        if i == j and not len(first):
            continue
        blocks = np.empty((len(first), widths[i], widths[j]))
        couplings.append(Coupling((i, j), first, second, blocks))
        maps.append(own.map(cell, len(first), size))
    random = [s.map(s.first, n, size) for s, n in zip(tied.random, counts, strict=True)]
    mixed = [s.map(s.first, n, size) for s, n in zip(tied.mixed, counts, strict=True)]
    return Stack(
        law=tied.law,
        template=WorkingProducts(
            n_obs=tied.n_obs,
            log_weights=tied.log_weights,
            fixed=np.empty((width, width)),
            random=tuple(np.empty((n, k, k)) for n, k in zip(counts, widths, strict=True)),
            mixed=tuple(np.empty((n, k, width)) for n, k in zip(counts, widths, strict=True)),
            couplings=tuple(couplings),
            structures=tuple(map(structure_of, factors)),
            relationships=tuple(factor.relationship for factor in factors),
            basis=tied.basis,
        ),
        fixed=_dense_if_full(tied.fixed.map(tied.fixed.first, 1, size)),
        random=tuple(random),
        mixed=tuple(mixed),
        couplings=tuple(maps),
        classes=tuple(_classes(one, k * k) for one, k in zip(random, widths, strict=True)),
    )


def _classes(gram: sp.csr_array, width: int) -> Indices:
    """Class (J,) of each level by its rows of a map (J * width, K)."""
    size = float(np.max(np.abs(gram.data), initial=0.0))
    data = np.round(gram.data / (size or 1.0), SAME_DIGITS) + 0.0
    found: dict[bytes, int] = {}
    codes = np.empty(gram.shape[0] // width, dtype=np.intp)
    for level in range(len(codes)):
        ends = gram.indptr[level * width : (level + 1) * width + 1]
        own = slice(ends[0], ends[-1])
        key = np.diff(ends).tobytes() + gram.indices[own].tobytes() + data[own].tobytes()
        codes[level] = found.setdefault(key, len(found))
    return codes
