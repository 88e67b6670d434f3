"""Cross-products of a design: everything the marginal density needs of the data.

With rows weighted by their precision, these are Z'Z, Z'X, Z'y, X'X, X'y and y'y in a working basis.
Cross-products square the condition number of the columns, so the columns are first orthonormalised
(X, and each block of correlated coefficients of Z) and the response is replaced by its least
squares residuals. Both changes are linear and undone exactly afterwards.

Cross-products over one basis form a monoid: two parts of the data merge by adding. Correlated or
unequal residuals make them functions of parameters: see :mod:`bayeslmm.likelihood.stack`.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from itertools import combinations, permutations, product
from typing import NamedTuple, Protocol

import numpy as np
import scipy.sparse as sp
from numpy.typing import NDArray
from scipy.linalg import solve_triangular

from bayeslmm.covariance.kinds import structure_of
from bayeslmm.covariance.structure import DEPENDENT, Structure
from bayeslmm.data.memberships import Slot
from bayeslmm.data.relationships import Relationship

Array = NDArray[np.float64]
Indices = NDArray[np.intp]


class RandomColumns(Protocol):
    """What cross-products need of one grouping factor (``design.RandomFactor`` has it)."""

    @property
    def slots(self) -> tuple[Slot, ...]:
        """Level and covariates (n, k) of each row, over which effects are summed."""
        ...

    @property
    def n_levels(self) -> int:
        """Number of levels J."""
        ...

    @property
    def blocks(self) -> tuple[tuple[int, ...], ...]:
        """Partition of the coefficients into correlated ones."""
        ...

    @property
    def kinds(self) -> tuple[str, ...]:
        """Name of the covariance structure of each block."""
        ...

    @property
    def relationship(self) -> Relationship | None:
        """Known covariance of the levels, in their order; None where they are independent."""
        ...


@dataclass(frozen=True, slots=True, eq=False)
class Basis:
    """Linear maps between the user's coordinates and the working ones.

    Attributes
    ----------
    fixed : ndarray (p, p)
        Working fixed-effects columns are ``X @ fixed``; beta is ``fixed @ working + shift``.
    shift : ndarray (p,)
        Least squares coefficients: the working response is ``y - offset - X @ shift``.
    random : tuple of ndarray (k, k)
        Working columns of a grouping factor are ``Z @ random``; u is ``random @ working``.
    levels : ndarray (J, J) or None
        Map K of the levels of a single grouping factor, where related ones are exchanged for
        independent combinations: u of the levels is ``K @ working``. It has one coefficient.
    """

    fixed: Array
    shift: Array
    random: tuple[Array, ...]
    levels: Array | None = None

    def equals(self, other: Basis) -> bool:
        """Whether two bases are the same maps, number for number."""
        mine, theirs = ((b.fixed, b.shift, *b.random) for b in (self, other))
        same = len(mine) == len(theirs) and all(map(np.array_equal, mine, theirs))
        return same and self.levels is other.levels is None

    @property
    def log_det_fixed(self) -> float:
        """Log absolute determinant of the map of the fixed effects."""
        return float(np.sum(np.log(np.abs(np.diag(self.fixed)))))

    def effects(self, factor: int, working: Array) -> Array:
        """Random effects u (..., J, k) of the user's levels and columns from working ones."""
        if self.levels is not None:
            working = (working[..., 0] @ self.levels.T)[..., None]
        return np.asarray(working @ self.random[factor].T)


@dataclass(frozen=True, slots=True, eq=False)
class Coupling:
    """Cross-products between two grouping factors, one block per pair of levels that meet.

    Attributes
    ----------
    factors : tuple of int
        The two grouping factors, first < second; or one twice, where rows or correlated residuals
        tie its levels, which are then first < second.
    first, second : ndarray (n_cells,)
        Levels of the cells, sorted by first, then second.
    blocks : ndarray (n_cells, k_first, k_second)
        Sums of products of the two covariate rows.
    """

    factors: tuple[int, int]
    first: Indices
    second: Indices
    blocks: Array


@dataclass(frozen=True, slots=True, eq=False, kw_only=True)
class WorkingProducts:
    """Cross-products of the weighted rows in a working basis.

    Attributes
    ----------
    n_obs : int
        Number of rows.
    log_weights : float
        Sum of the log precision weights.
    fixed : ndarray (p + 1, p + 1)
        Of the columns of X and the response, which comes last.
    random : tuple of ndarray (J, k, k)
        Z'Z of each grouping factor, one block per level.
    mixed : tuple of ndarray (J, k, p + 1)
        Z'[X y] of each grouping factor.
    couplings : tuple of Coupling
        Z'Z between grouping factors.
    structures : tuple of Structure
        Covariance structure of each grouping factor.
    relationships : tuple of Relationship or None
        Known covariance A of the levels of each grouping factor: that of its random effects is
        A x Sigma.
    basis : Basis
        The working basis.
    """

    n_obs: int
    log_weights: float
    fixed: Array
    random: tuple[Array, ...]
    mixed: tuple[Array, ...]
    couplings: tuple[Coupling, ...]
    structures: tuple[Structure, ...]
    relationships: tuple[Relationship | None, ...]
    basis: Basis

    def related(self, factor: int, values: Array) -> Array:
        """A times values (J, ...) of the levels of a grouping factor."""
        relationship = self.relationships[factor]
        if relationship is None:
            return values
        return relationship.times(values.reshape(len(values), -1)).reshape(values.shape)

    def untied(self, factors: Sequence[RandomColumns]) -> WorkingProducts:
        """Themselves, as they are of independent residuals with one variance."""
        return self

    @property
    def n_fixed(self) -> int:
        """Number of fixed-effects coefficients p."""
        return self.fixed.shape[-1] - 1

    def __add__(self, other: WorkingProducts) -> WorkingProducts:
        """Merge two parts of the data that share levels and basis."""
        if not self.basis.equals(other.basis):
            raise ValueError("cross-products in different bases cannot be added")
        if self.structures != other.structures:
            raise ValueError("cross-products of different random-effects terms cannot be added")
        if not all(map(_same, self.relationships, other.relationships)):
            raise ValueError("cross-products of different relationships cannot be added")
        return replace(
            self,
            n_obs=self.n_obs + other.n_obs,
            log_weights=self.log_weights + other.log_weights,
            fixed=self.fixed + other.fixed,
            random=tuple(a + b for a, b in zip(self.random, other.random, strict=True)),
            mixed=tuple(a + b for a, b in zip(self.mixed, other.mixed, strict=True)),
            couplings=tuple(
                add_couplings([a, b]) for a, b in zip(self.couplings, other.couplings, strict=True)
            ),
        )


@dataclass(frozen=True, slots=True, eq=False)
class Split:
    """The columns [X y], in the working basis, as Z C + E with Z'E = 0.

    Attributes
    ----------
    rest : ndarray (p + 1, p + 1)
        E'E, with weights.
    coefs : tuple of ndarray (J, k, p + 1)
        C of each grouping factor.
    """

    rest: Array
    coefs: tuple[Array, ...]


def working_basis(
    y: Array, X: Array, factors: Sequence[RandomColumns], weights: Array | None = None
) -> Basis:
    """Basis in which the columns of X, and of each block of Z, are orthonormal up to sqrt(n).

    Parameters
    ----------
    y : ndarray (n,)
        Response less offset.
    X : ndarray (n, p)
        Fixed-effects columns of full rank.
    factors : sequence of RandomColumns
        The grouping factors.
    weights : ndarray (n,), optional
        Precision weights.

    Returns
    -------
    Basis
    """
    root = np.ones_like(y) if weights is None else np.sqrt(weights)
    covariates = [np.vstack([z * root[:, None] for _, z, _ in f.slots]) for f in factors]
    return basis_of_columns(
        y * root, X * root[:, None], covariates, [structure_of(f) for f in factors], len(y)
    )


def basis_of_columns(
    y: Array,
    X: Array,
    covariates: Sequence[Array],
    structures: Sequence[Structure],
    n: int,
) -> Basis:
    """The same from weighted columns of n rows, or from any that have their lengths and angles."""
    q, r = _qr(X)
    shift = _solve_upper(r, q.T @ y)
    fixed = _solve_upper(r, np.eye(X.shape[1])) * np.sqrt(n)
    pairs = zip(covariates, structures, strict=True)
    return Basis(fixed=fixed, shift=shift, random=tuple(_block_basis(z, s, n) for z, s in pairs))


def working_columns(
    y: Array,
    X: Array,
    factors: Sequence[RandomColumns],
    weights: Array | None,
    basis: Basis | None,
) -> tuple[Basis, Array, list[list[Slot]]]:
    """The weighted columns of which cross-products are sums.

    Parameters are those of :func:`cross_products`.

    Returns
    -------
    basis : Basis
        The one given, or that of the rows.
    columns : ndarray (n, p + 1)
        Of X and the response.
    random : list of list of Slot
        Of each grouping factor.
    """
    basis = replace(basis or working_basis(y, X, factors, weights), levels=None)
    root = np.ones_like(y) if weights is None else np.sqrt(weights)
    columns = np.column_stack([X @ basis.fixed, y - X @ basis.shift]) * root[:, None]
    random = [
        [slot._replace(Z=(slot.Z @ a) * root[:, None]) for slot in f.slots]
        for f, a in zip(factors, basis.random, strict=True)
    ]
    return basis, columns, random


def cross_products(
    y: Array,
    X: Array,
    factors: Sequence[RandomColumns],
    *,
    weights: Array | None = None,
    basis: Basis | None = None,
) -> WorkingProducts:
    """Accumulate the cross-products of a set of rows.

    Parameters
    ----------
    y : ndarray (n,)
        Response less offset.
    X : ndarray (n, p)
        Fixed-effects columns of full rank.
    factors : sequence of RandomColumns
        The grouping factors.
    weights : ndarray (n,), optional
        Precision weights: the residual variance of row i is sigma^2 / weights[i].
    basis : Basis, optional
        Working basis; by default that of these rows. Parts to be added must share one.

    Returns
    -------
    WorkingProducts
    """
    basis, columns, slots = working_columns(y, X, factors, weights, basis)
    sizes = [f.n_levels for f in factors]
    pooled = [f for f, own in enumerate(slots) if len(own) > 1]
    return WorkingProducts(
        n_obs=len(y),
        log_weights=0.0 if weights is None else float(np.sum(np.log(weights))),
        fixed=columns.T @ columns,
        random=tuple(map(_own_blocks, slots, sizes)),
        mixed=tuple(
            sums_by_level(own, columns, size) for own, size in zip(slots, sizes, strict=True)
        ),
        couplings=tuple(
            coupling((i, j), _meetings(slots[i], slots[j], same=i == j), sizes[j])
            for i, j in [*combinations(range(len(factors)), 2), *((f, f) for f in pooled)]
        ),
        structures=tuple(structure_of(f) for f in factors),
        relationships=tuple(f.relationship for f in factors),
        basis=basis,
    )


def _same(first: Relationship | None, second: Relationship | None) -> bool:
    if first is None or second is None:
        return first is second
    return first.equals(second)


def _block_basis(z: Array, structure: Structure, n: int) -> Array:
    """Map (k, k) that orthonormalises each block, or only scales it.

    That is where its columns are dependent, or where its structure would not survive mixing them.
    Coefficients of one standard deviation have one scale.
    """
    k = z.shape[1]
    basis = np.zeros((k, k))
    scale = np.sqrt(n)
    for block, part in zip(structure.blocks, structure.parts, strict=True):
        columns = list(block)
        r = _qr(z[:, columns])[1]
        lengths = np.linalg.norm(r, axis=0)
        if part.mixes and np.all(np.abs(np.diag(r)) > DEPENDENT * lengths):
            basis[np.ix_(columns, columns)] = _solve_upper(r, np.eye(len(block))) * scale
        else:
            if part.homogeneous:
                lengths = np.full_like(lengths, np.sqrt(np.mean(lengths**2)))
            basis[columns, columns] = scale / np.where(lengths > 0, lengths, scale)
    return basis


def _qr(columns: Array) -> tuple[Array, Array]:
    """QR with a positive diagonal, which lengths and angles alone decide on."""
    q, r = np.linalg.qr(columns)
    signs = np.where(np.diag(r) < 0, -1.0, 1.0)
    return q[:, : len(signs)] * signs, r[: len(signs)] * signs[:, None]


def _solve_upper(r: Array, b: Array) -> Array:
    return np.asarray(solve_triangular(r, b)) if r.size else np.zeros(b.shape)


def sums_by_level(slots: Sequence[Slot], columns: Array, n_levels: int) -> Array:
    """Sums (J, k, m) over the rows of each level of its covariates times columns (n, m)."""
    return _total(_sum_by_level(codes, z, columns, n_levels) for codes, z, _ in slots)


def _total(parts: Iterable[Array]) -> Array:
    """The sum; of one part, itself."""
    first, *others = parts
    return sum(others, first)


def _sum_by_level(codes: Indices, left: Array, right: Array, n_levels: int) -> Array:
    """Sums over the rows of each level of left_i' right_i: (J, k, m)."""
    n, k = left.shape
    indicator = sp.csr_array((np.ones(n), codes, np.arange(n + 1)), shape=(n, n_levels)).T
    sums = np.empty((n_levels, k, right.shape[1]))
    for i in range(k):
        sums[:, i, :] = indicator @ (left[:, i : i + 1] * right)
    return sums


def _own_blocks(slots: Sequence[Slot], n_levels: int) -> Array:
    """Z'Z (J, k, k) of the levels of one grouping factor with themselves."""
    total = _total(_sum_by_level(codes, z, z, n_levels) for codes, z, _ in slots)
    for one, two in permutations(slots, 2):  # a level that is two members of a row
        rows = np.flatnonzero(one.codes == two.codes)
        total = total + _sum_by_level(one.codes[rows], one.Z[rows], two.Z[rows], n_levels)
    return total


class Meetings(NamedTuple):
    """Pairs of levels (m,) in one row, and their covariates (m, k) and (m, l)."""

    first: Indices
    second: Indices
    left: Array
    right: Array


def _meetings(f: Sequence[Slot], g: Sequence[Slot], *, same: bool) -> Meetings:
    """All levels of one grouping factor that meet those of another, or later ones of its own."""
    parts = []
    for one, two in product(f, g):
        rows: Indices | slice = slice(None)
        if same:
            rows = np.flatnonzero(one.codes < two.codes)
        parts.append((one.codes[rows], two.codes[rows], one.Z[rows], two.Z[rows]))
    if len(parts) == 1:
        return Meetings(*parts[0])
    return Meetings(*(np.concatenate(part) for part in zip(*parts, strict=True)))


def coupling(pair: tuple[int, int], met: Meetings, n_second: int) -> Coupling:
    """Sums of products of the covariates of two grouping factors by the levels that meet."""
    cells, inverse = np.unique(
        met.first.astype(np.int64) * n_second + met.second, return_inverse=True
    )
    blocks = np.empty((len(cells), met.left.shape[1], met.right.shape[1]))
    for i in range(met.left.shape[1]):
        for j in range(met.right.shape[1]):
            blocks[:, i, j] = np.bincount(inverse, met.left[:, i] * met.right[:, j], len(cells))
    first, second = np.divmod(cells, n_second)
    return Coupling(pair, first.astype(np.intp), second.astype(np.intp), blocks)


def add_couplings(parts: Sequence[Coupling]) -> Coupling:
    """Sum of couplings of the same two grouping factors."""
    width = 1 + max(part.second.max(initial=0) for part in parts)
    keys = np.concatenate([part.first.astype(np.int64) * width + part.second for part in parts])
    cells, inverse = np.unique(keys, return_inverse=True)
    every = np.concatenate([part.blocks for part in parts])
    blocks = np.zeros((len(cells), *every.shape[1:]))
    np.add.at(blocks, inverse, every)
    first, second = np.divmod(cells, width)
    return Coupling(parts[0].factors, first.astype(np.intp), second.astype(np.intp), blocks)
