"""Cross-products of data beyond memory: sums over batches in a basis that is known before.

The basis centres and scales, so that the sums lose no digits to large means or odd units, whatever
the order and the size of the batches.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from itertools import combinations
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bayeslmm.covariance.kinds import structure_of
from bayeslmm.data.batches import Batch, Reader, batch_columns
from bayeslmm.data.design import Encodings, Spec
from bayeslmm.data.grouping import lookup_levels
from bayeslmm.data.random_factors import FactorSpec
from bayeslmm.data.sources import CHANGED, Source
from bayeslmm.data.summarised import SummarisedDesign, Summary
from bayeslmm.data.survey import survey
from bayeslmm.exceptions import DataError, listed
from bayeslmm.formula.evaluation import UserFunctions
from bayeslmm.formula.grammar import Formula
from bayeslmm.formula.terms import Side
from bayeslmm.likelihood.crossprod import (
    Basis,
    Coupling,
    Meetings,
    WorkingProducts,
    add_couplings,
    basis_of_columns,
    coupling,
)
from bayeslmm.likelihood.pushed import pushed_design

_log = logging.getLogger(__name__)
Array = NDArray[np.float64]
Indices = NDArray[np.intp]

CHUNK = 1 << 18
"""Rows whose products are held at once."""

PENDING = 1 << 22
"""Cells of couplings that wait to be added up."""


def streamed_design(
    formula: Formula,
    source: Source,
    weights: Any,
    functions: UserFunctions,
    known: Mapping[str, Any],
    in_memory: Mapping[str, Any],
) -> SummarisedDesign:
    """Read data beyond memory: levels, columns and moments first, then cross-products.

    Parameters
    ----------
    formula : Formula
    source : Source
    weights : str or None
        Column of the precision weights.
    functions : mapping of str to callable
        The user's.
    known : mapping of str to number or matrix
        Covariance parameters that are held.
    in_memory : mapping of str to object
        Arguments that are for data in memory, None where they are not given.

    Returns
    -------
    SummarisedDesign

    Raises
    ------
    FormulaError, DataError
        As for data in memory, and if the source cannot be read.
    """
    if given := [name for name, value in in_memory.items() if value is not None]:
        raise DataError(
            f"{listed([f'{name}=' for name in given])}: for data in memory, not yet for "
            f"{source.words}. Read the data into a data frame, or leave it out."
        )
    if weights is not None and not isinstance(weights, str):
        raise DataError(
            f"weights= of {source.words} must be the name of a column, got "
            f"{type(weights).__name__}."
        )
    pushed = pushed_design(formula, source, weights, functions, known)
    if pushed is not None:
        return pushed
    spec, summary, reader = survey(
        formula, source, weights=weights, functions=functions, known=known
    )
    products = summed_products(reader, spec, summary)
    _log.info("%s: cross-products of %d rows.", source.words, summary.n)
    return SummarisedDesign(spec, summary, products)


def summed_products(reader: Reader, spec: Spec, summary: Summary) -> WorkingProducts:
    """Cross-products of all rows, batch by batch.

    Raises
    ------
    DataError
        If the rows are not those of the first reading.
    """
    assert isinstance(spec.encodings, Encodings)
    sums = ProductSums(spec, basis_of_summary(spec, summary))
    for batch in reader:
        columns = batch_columns(batch, spec.encodings)
        codes = [_codes(factor, batch) for factor in spec.random]
        if any(np.any(found < 0) for found in codes):
            raise DataError(CHANGED.format(words=reader.source.words))
        sides = columns.sides
        root = None if columns.weights is None else np.sqrt(columns.weights)
        sums.add(
            columns.y - columns.offset,
            spec.fixed.full_rank(sides[spec.formula.right]),
            [_joined([sides[side] for side in factor.sides]) for factor in spec.random],
            codes,
            root,
        )
    if reader.n != summary.n:
        raise DataError(CHANGED.format(words=reader.source.words))
    return sums.products(summary.n, summary.log_weights)


def basis_of_summary(spec: Spec, summary: Summary) -> Basis:
    """The working basis of all rows, from their moments."""
    whole = summary.columns(spec.formula.right)
    X, y = whole[:, :-1][:, spec.fixed.kept], whole[:, -1]
    structures = [structure_of(factor) for factor in spec.random]
    covariates = [_covariates(factor, summary) for factor in spec.random]
    return basis_of_columns(y, X, covariates, structures, summary.n)


def _covariates(factor: FactorSpec, summary: Summary) -> Array:
    """Columns with the lengths of Z, and the angles of those of each term."""
    first = next(iter(summary.sides))
    parts = []
    for side in factor.sides:
        columns = summary.columns(side)
        parts.append(columns[:, :-1] if side == first else columns)
    height = max(len(part) for part in parts)
    return np.hstack([np.pad(part, ((0, height - len(part)), (0, 0))) for part in parts])


def _joined(parts: Sequence[Array]) -> Array:
    return parts[0] if len(parts) == 1 else np.hstack(parts)


def _codes(factor: FactorSpec, batch: Batch) -> Indices:
    """Level of each row."""
    column, levels = batch.frame[factor.factors[0]], factor.parts[0]
    if len(factor.factors) > 1 or not column.dtype == levels.dtype == np.int64:
        return lookup_levels(factor, batch.frame)
    values, first, last = column.to_numpy(), int(levels[0]), int(levels[-1])
    ascending = last - first + 1 == len(levels) and levels.is_monotonic_increasing
    if ascending and first <= values.min() and values.max() <= last:  # all whole numbers between
        return np.asarray(values - first)
    return np.asarray(levels.get_indexer(values))


class ProductSums:
    """Cross-products of batches of rows, added up in place.

    Parameters
    ----------
    spec : Spec
        Of the model.
    basis : Basis
        The working basis.
    """

    def __init__(self, spec: Spec, basis: Basis) -> None:
        self.spec, self.basis = spec, basis
        width = len(basis.shift) + 1
        sizes = [len(factor.levels) for factor in spec.random]
        self._fixed = np.zeros((width, width))
        self._levels = [_LevelSums(spec, basis, f) for f in range(len(sizes))]
        self._couplings: dict[tuple[int, int], list[Coupling]] = {
            pair: [] for pair in combinations(range(len(sizes)), 2)
        }

    def add(
        self,
        y: Array,
        X: Array,
        covariates: Sequence[Array],
        codes: Sequence[Indices],
        root: Array | None,
    ) -> None:
        """Take in rows.

        Parameters
        ----------
        y : ndarray (n,)
            Response less offset.
        X : ndarray (n, p)
        covariates : sequence of ndarray (n, k)
            Z of each grouping factor.
        codes : sequence of ndarray of int (n,)
            Levels of each.
        root : ndarray (n,) or None
            Root of the precision weights.
        """
        for start in range(0, len(y), CHUNK):
            rows = slice(start, start + CHUNK)
            x = np.ascontiguousarray(X[rows].T)
            columns = np.vstack([self.basis.fixed.T @ x, y[rows] - self.basis.shift @ x])
            if root is not None:
                columns *= root[rows]
            self._fixed += columns @ columns.T
            own = [code[rows] for code in codes]
            zs = {}
            for f, sums in enumerate(self._levels):
                if sums.within is None or self._couplings:
                    z = self.basis.random[f].T @ np.ascontiguousarray(covariates[f][rows].T)
                    zs[f] = z if root is None else z * root[rows]
                sums.add(zs.get(f, columns), columns, own[f])
            for i, j in self._couplings:
                self._add_coupling((i, j), (zs[i].T, zs[j].T), (own[i], own[j]))

    def products(self, n: int, log_weights: float) -> WorkingProducts:
        """The sums as cross-products of n rows."""
        blocks = [sums.blocks() for sums in self._levels]
        return WorkingProducts(
            n_obs=n,
            log_weights=log_weights,
            fixed=self._fixed,
            random=tuple(random for random, _ in blocks),
            mixed=tuple(mixed for _, mixed in blocks),
            couplings=tuple(add_couplings(parts) for parts in self._couplings.values()),
            structures=tuple(structure_of(factor) for factor in self.spec.random),
            relationships=(None,) * len(blocks),
            basis=self.basis,
        )

    def _add_coupling(
        self,
        pair: tuple[int, int],
        covariates: tuple[Array, Array],
        codes: tuple[Indices, Indices],
    ) -> None:
        parts = self._couplings[pair]
        met = Meetings(*codes, *covariates)
        parts.append(coupling(pair, met, len(self.spec.random[pair[1]].levels)))
        waiting = sum(len(part.first) for part in parts[1:])
        if waiting > max(len(parts[0].first), PENDING):
            parts[:] = [add_couplings(parts)]


class _LevelSums:
    """Sums of Z'Z and Z'[X y] over the rows of each level of a grouping factor.

    Where each covariate is a column of X too, products of the working columns of X are summed,
    which are fewer, and made into those of Z at the end.

    Attributes
    ----------
    within : ndarray (m, k) or None
        Working columns of Z by the first m of X; None where Z has others.
    """

    def __init__(self, spec: Spec, basis: Basis, f: int) -> None:
        factor = spec.random[f]
        self.width = len(basis.shift) + 1
        self.within = _within(spec, factor, basis, basis.random[f])
        m = len(factor.coefs if self.within is None else self.within)
        first = [(i, j, True) for i in range(m) for j in range(i + 1)]
        if self.within is None:
            second = [(i, j, False) for i in range(m) for j in range(self.width)]
        else:
            second = [(i, j, False) for i in range(m) for j in range(m, self.width)]
        self.pairs = first + second
        self.size = m
        self.sums = np.zeros((len(self.pairs), len(factor.levels)))

    def add(self, z: Array, columns: Array, codes: Indices) -> None:
        """Take in rows: z (k, n), columns (p + 1, n) of [X y], codes (n,)."""
        places: Any = slice(None)
        size = self.sums.shape[1]
        if size > 4 * len(codes):
            places, codes = np.unique(codes, return_inverse=True)
            size = len(places)
        for row, (i, j, own) in zip(self.sums, self.pairs, strict=True):
            row[places] += np.bincount(codes, z[i] * (z[j] if own else columns[j]), size)

    def blocks(self) -> tuple[Array, Array]:
        """Z'Z (J, k, k) and Z'[X y] (J, k, p + 1)."""
        m, levels = self.size, self.sums.shape[1]
        random = np.empty((levels, m, m))
        mixed = np.empty((levels, m, self.width))
        for sums, (i, j, own) in zip(self.sums, self.pairs, strict=True):
            if own:
                random[:, i, j] = random[:, j, i] = sums
            else:
                mixed[:, i, j] = sums
        if self.within is None:
            return random, mixed
        mixed[:, :, :m] = random
        return self.within.T @ random @ self.within, self.within.T @ mixed


def _within(spec: Spec, factor: FactorSpec, basis: Basis, own: Array) -> Array | None:
    """Working columns (m, k) of Z by the first m of X; None where that takes more sums."""
    names = spec.fixed.coefs
    right = spec.formula.right
    plain = {"Intercept"} if () in right.terms else set()
    plain |= set(right.names)
    places: list[int] = []
    for side in factor.sides:
        coefs = factor.coefs[len(places) : len(places) + _width(spec, side)]
        same = side == right
        known = plain & ({"Intercept"} if () in side.terms else set()) | plain & set(side.names)
        if any(coef not in names or not (same or coef in known) for coef in coefs):
            return None
        places += [names.index(coef) for coef in coefs]
    chosen = np.zeros((len(names), len(places)))
    chosen[places, np.arange(len(places))] = 1.0
    within = np.linalg.solve(basis.fixed, chosen @ own)
    m = 1 + max(places)
    k, width = len(places), len(names) + 1
    fewer = m * (m + 1) // 2 + m * (width - m) < k * (k + 1) // 2 + k * width
    return within[:m] if fewer else None


def _width(spec: Spec, side: Side) -> int:
    assert isinstance(spec.encodings, Encodings)
    return len(spec.encodings.sides[side].builder.names)
