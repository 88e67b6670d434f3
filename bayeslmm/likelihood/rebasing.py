"""Cross-products of parts of the data in one basis, and over one set of levels, so that they add.

While rows are read nothing is known of those to come, so that any column may yet turn out to
depend on others, or not to. The basis of a part therefore drops none: it is upper triangular and
takes from every column its projection on earlier ones, so that nothing is left in rows where it
depends on them. Bases of parts, and that of a model, are linear in the columns: the changes are
exact.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray
from scipy.linalg import block_diag, solve_triangular

from bayeslmm.covariance.structure import Structure
from bayeslmm.data.frames import Codes
from bayeslmm.formula.moments import Moments
from bayeslmm.formula.terms import Side
from bayeslmm.likelihood.crossprod import Basis, Coupling, WorkingProducts, basis_of_columns
from bayeslmm.likelihood.tied import TiedProducts, at_levels

Array = NDArray[np.float64]

NOTHING = 1e-13
"""Share of the length of a column below which what is left of it is rounding."""


def basis_of_part(moments: Mapping[Side, Moments], factors: Sequence[Sequence[Side]]) -> Basis:
    """The basis in which sums over some rows lose no digits.

    Parameters
    ----------
    moments : mapping of Side to Moments
        Of the columns of each side, with precision weights, that of the fixed effects first: its
        last column is the response less the offset.
    factors : sequence of sequence of Side
        What varies over the levels of each grouping factor.
    """
    right = next(iter(moments))
    whole = moments[right].columns
    fixed, coefs = _triangular(whole[:, :-1], moments[right].n, whole[:, -1])
    random = [
        block_diag(*(_triangular(_covariates(s, moments, right), moments[s].n)[0] for s in own))
        for own in factors
    ]
    return Basis(fixed=fixed, shift=coefs, random=tuple(random))


def basis_of_model(
    moments: Moments,
    covariates: Sequence[Array],
    structures: Sequence[Structure],
    kept: NDArray[np.bool_],
) -> Basis:
    """The working basis of a model, which :func:`crossprod.working_basis` finds of rows.

    Parameters
    ----------
    moments : Moments
        Of the columns of the fixed effects and the response, with precision weights.
    covariates : sequence of ndarray (m, k)
        Columns with the lengths of Z of each grouping factor, and the angles within each block.
    structures : sequence of Structure
        Covariance structure of each grouping factor.
    kept : ndarray of bool (p_full,)
        Columns of the fixed effects that the model has.
    """
    whole = moments.columns
    X = whole[:, :-1][:, kept]
    return basis_of_columns(whole[:, -1], X, covariates, structures, moments.n)


def in_basis[P: (WorkingProducts, TiedProducts)](
    products: P,
    new: Basis,
    kept: NDArray[np.bool_] | None = None,
    own: Sequence[Array | None] | None = None,
) -> P:
    """The sums of a part in another basis.

    Parameters
    ----------
    products : WorkingProducts or TiedProducts
        In the basis of a part, of all p_full columns.
    new : Basis
        Of all columns, or of some.
    kept : ndarray of bool (p_full,), optional
        Which they are.
    own : sequence of ndarray (J, k, m) or None, optional
        Columns of Z of each level of a grouping factor among the m of the new basis, where levels
        have different ones.
    """
    old = products.basis
    kept = np.ones(len(old.shift), dtype=bool) if kept is None else kept
    fixed = _step(old, new, kept)
    chosen = [None] * len(old.random) if own is None else own
    random = [
        np.linalg.solve(a, b if c is None else c @ b)
        for a, b, c in zip(old.random, new.random, chosen, strict=True)
    ]
    if isinstance(products, TiedProducts):
        return products.changed(new, fixed, random)
    left = [a.swapaxes(-1, -2) for a in random]
    return replace(
        products,
        fixed=fixed.T @ products.fixed @ fixed,
        random=tuple(b @ z @ a for b, z, a in zip(left, products.random, random, strict=True)),
        mixed=tuple(b @ z @ fixed for b, z in zip(left, products.mixed, strict=True)),
        couplings=tuple(_changed(c, random) for c in products.couplings),
        basis=new,
    )


def _changed(coupling: Coupling, random: Sequence[Array]) -> Coupling:
    i, j = coupling.factors
    left, right = at_levels(random[i], coupling.first), at_levels(random[j], coupling.second)
    return replace(coupling, blocks=left.swapaxes(-1, -2) @ coupling.blocks @ right)


def _step(old: Basis, new: Basis, kept: NDArray[np.bool_]) -> Array:
    """Map (p_full + 1, p + 1) from old working columns of [X y] to new ones."""
    shift = np.zeros(len(kept))
    shift[kept] = new.shift
    columns = np.zeros((len(kept), len(new.shift) + 1))
    columns[kept, :-1] = new.fixed
    columns[:, -1] = old.shift - shift
    step = np.zeros((len(kept) + 1, len(new.shift) + 1))
    step[:-1] = solve_triangular(old.fixed, columns) if len(kept) else columns
    step[-1, -1] = 1.0
    return step


def _triangular(columns: Array, n: int, target: Array | None = None) -> tuple[Array, Array]:
    """Upper triangular map (k, k) of columns (m, k), of n rows, to orthogonal ones, and a fit.

    What is left of a column that depends on earlier ones is rounding, and is scaled as the column.
    The fit has coefficients (k,) of the target.
    """
    k = columns.shape[1]
    r, basis = np.zeros((k, k)), np.zeros((len(columns), 0))
    kept: list[int] = []
    for j, column in enumerate(columns.T):
        r[kept, j], left = _projected(column, basis)
        length, whole = float(np.linalg.norm(left)), float(np.linalg.norm(column))
        if length > NOTHING * whole:
            r[j, j] = length
            kept.append(j)
            basis = np.column_stack([basis, left / length])
        else:
            r[j, j] = whole or np.sqrt(n)
    found = np.zeros(k)
    if target is not None:
        found[kept] = _projected(target, basis)[0]
    if not k:
        return r, found
    return solve_triangular(r, np.eye(k)) * np.sqrt(n), solve_triangular(r, found)


def _projected(column: Array, basis: Array) -> tuple[Array, Array]:
    """Coefficients of a column on an orthonormal basis, and what is left; twice is enough."""
    first = basis.T @ column
    left = column - basis @ first
    second = basis.T @ left
    return first + second, left - basis @ second


def _covariates(side: Side, moments: Mapping[Side, Moments], right: Side) -> Array:
    columns = moments[side].columns
    return columns[:, :-1] if side == right else columns


def placed[P: (WorkingProducts, TiedProducts)](
    products: P, places: Sequence[Codes], sizes: Sequence[int]
) -> P:
    """The same sums over more levels, or in another order.

    Parameters
    ----------
    products : WorkingProducts or TiedProducts
    places : sequence of ndarray of int (J,)
        New place of each level of each grouping factor.
    sizes : sequence of int
        New numbers of levels.
    """
    if isinstance(products, TiedProducts):
        return products.of_levels(places)

    def spread(parts: Sequence[Array]) -> tuple[Array, ...]:
        return tuple(map(_spread, parts, places, sizes))

    return replace(
        products,
        random=spread(products.random),
        mixed=spread(products.mixed),
        couplings=tuple(_moved(c, places, sizes) for c in products.couplings),
    )


def _spread(values: Array, places: Codes, size: int) -> Array:
    if len(places) == size and np.array_equal(places, np.arange(size)):
        return values
    result = np.zeros((size, *values.shape[1:]))
    result[places] = values
    return result


def _moved(coupling: Coupling, places: Sequence[Codes], sizes: Sequence[int]) -> Coupling:
    i, j = coupling.factors
    first, second = places[i][coupling.first], places[j][coupling.second]
    blocks = coupling.blocks
    if i == j:  # the smaller level first
        turned = first > second
        blocks = np.where(turned[:, None, None], blocks.swapaxes(1, 2), blocks)
        first, second = np.minimum(first, second), np.maximum(first, second)
    order = np.argsort(first.astype(np.int64) * sizes[j] + second)
    return Coupling((i, j), first[order], second[order], blocks[order])
