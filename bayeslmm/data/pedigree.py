"""Pedigrees: who descends from whom, and the relationships that follow from it.

With parents before offspring, the additive relationship matrix is ``A = T D T'``: row i of
``P = I - T^-1`` has one half for each known parent of i, and D holds the variances of Mendelian
sampling, ``d_i = 1 - sum over known parents p of (1 + F_p) / 4``, F being the inbreeding
coefficients.

References
----------
Henderson (1976), A simple method for computing the inverse of a numerator relationship matrix,
Biometrics 32, 69-83, doi:10.2307/2529339.
Meuwissen, Luo (1992), Computing inbreeding coefficients in large populations, Genetics Selection
Evolution 24, 305-313, doi:10.1186/1297-9686-24-4-305.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import pandas as pd
import scipy.sparse as sp
from numpy.typing import NDArray
from scipy.sparse.linalg import spsolve_triangular

from bayeslmm.data.frames import column_names, missing, plain_frame, read_only
from bayeslmm.data.grouping import column_levels
from bayeslmm.exceptions import DataError, listed

_log = logging.getLogger(__name__)
Array = NDArray[np.float64]
Indices = NDArray[np.intp]

PAIRS = 2048
"""Pairs of parents whose ancestors are held at once."""

COLUMNS = 64
"""Columns of A that are held at once."""

PROBE = 32
"""Individuals whose ancestors are counted to choose between two ways."""

DEEP = 50
"""Generations beyond which ancestors are not listed."""

NOTHING = 1e-12
"""Variance of Mendelian sampling up to which an individual counts as a copy of its parents."""

LARGEST_DENSE = 20_000
"""Individuals up to which A is made as a dense matrix: 3.2 GB."""


@dataclass(frozen=True, eq=False)
class Pedigree:
    """Individuals and their parents, made by :func:`bayeslmm.pedigree`.

    Attributes
    ----------
    labels : pandas.Index
        The J individuals: those listed, in the order of the data, then parents that were not.
    sire, dam : ndarray of int (J,)
        Places of the parents; -1 where unknown.
    generation : ndarray of int (J,)
        0 without known parents, else one more than that of the later parent.
    """

    labels: pd.Index
    sire: Indices
    dam: Indices
    generation: Indices

    def __len__(self) -> int:
        return len(self.labels)

    @cached_property
    def inbreeding(self) -> pd.Series:
        """Inbreeding coefficients F by individual; the diagonal of A is 1 + F."""
        return pd.Series(_inbreeding(self), index=self.labels, name="inbreeding")

    @property
    def A(self) -> pd.DataFrame:
        """Additive relationship matrix (J, J), by label.

        Raises
        ------
        DataError
            If it would have more than 20,000 rows; `A_inverse` is sparse.
        """
        return pd.DataFrame(_dense(self), index=self.labels, columns=self.labels)

    @property
    def A_inverse(self) -> sp.csc_array:
        """Inverse of A (J, J), sparse, in the order of `labels`.

        Raises
        ------
        DataError
            If A is singular: an individual has completely inbred parents, after dozens of
            generations of selfing or of full sibs.
        """
        variance = self.mendelian
        if not np.all(variance > NOTHING):
            names = listed([str(label) for label in self.labels[variance <= NOTHING]])
            raise DataError(
                f"A has no inverse: the parents of {names} are completely inbred, so that nothing "
                "varies in the offspring. Take out individuals that are copies of their parents."
            )
        below = sp.eye_array(len(self), format="csr") - _descent(self)
        return sp.csc_array(below.T @ sp.diags_array(1.0 / variance) @ below)

    @cached_property
    def mendelian(self) -> Array:
        """Variances D (J,) of Mendelian sampling: of an individual given its parents."""
        return _mendelian(self, self.inbreeding.to_numpy())

    def factor(self) -> sp.csr_array:
        """Sparse root ``T D^(1/2)`` of A (J, J): row i is filled at i and at its ancestors.

        Returns
        -------
        scipy.sparse.csr_array
            L with ``L L' = A``.
        """
        step = _descent(self)
        total = reach = sp.eye_array(len(self), format="csr")
        while reach.nnz:
            reach = reach @ step
            total = total + reach
        return sp.csr_array(total @ sp.diags_array(np.sqrt(np.maximum(self.mendelian, 0.0))))

    def __repr__(self) -> str:
        founders = int(np.sum((self.sire < 0) & (self.dam < 0)))
        depth = int(self.generation.max(initial=0))
        return (
            f"Pedigree of {len(self):,} individuals: {founders:,} without known parents, "
            f"{depth} generation{'s' if depth != 1 else ''} after them"
        )


def pedigree(
    data: Any,
    *,
    id: str = "id",
    sire: str = "sire",
    dam: str = "dam",
    unknown: Any = None,
    selfing: bool = False,
) -> Pedigree:
    """Read a pedigree.

    Parameters
    ----------
    data : data frame or mapping
        A row per individual, in any order. Missing values in the columns of the parents are unknown
        parents. A parent without a row of its own is added without parents, said in a log message.
    id, sire, dam : str
        The columns of individuals, fathers and mothers.
    unknown : optional
        A value that stands for an unknown parent beside missing values, such as 0.
    selfing : bool
        Whether one individual may be the sire of some and the dam of others, or both parents of
        one, as in plants.

    Returns
    -------
    Pedigree

    Raises
    ------
    DataError
        If an individual is missing, has two rows or is its own ancestor, if one is sire and dam
        without `selfing`, or if columns are not there or mix numbers with text.

    Examples
    --------
    >>> import bayeslmm as blm
    >>> ped = blm.pedigree({"id": [3, 4], "sire": [1, None], "dam": [2, 3]})
    >>> ped
    Pedigree of 4 individuals: 2 without known parents, 2 generations after them
    >>> ped.A.loc[4].to_dict()
    {3: 0.5, 4: 1.0, 1: 0.25, 2: 0.25}
    """
    names = [id, sire, dam]
    given = column_names(data)
    absent = [name for name in names if name not in given]
    if absent:
        raise DataError(
            f"The pedigree has no column {listed(absent)}; its columns are {listed(sorted(given))}."
        )
    if len(set(names)) < 3:
        raise DataError("id, sire and dam must be three different columns.")
    codes, levels = _coded(plain_frame(data, names), names, unknown)
    own, fathers, mothers = codes
    _check_listed(own, levels, id)
    if not selfing:
        _check_roles(fathers, mothers, levels)
    labels, (father, mother) = _with_founders(own, (fathers, mothers), levels)
    return Pedigree(
        labels=labels,
        sire=read_only(father),
        dam=read_only(mother),
        generation=read_only(_generations(father, mother, labels)),
    )


# --- reading ---------------------------------------------------------------------------


def _coded(frame: pd.DataFrame, names: list[str], unknown: Any) -> tuple[list[Indices], pd.Index]:
    """Places (n,) of the values of three columns among all their values, -1 where missing."""
    gaps = [missing(frame[name]).copy() for name in names]
    if unknown is not None:
        for gap, name in zip(gaps[1:], names[1:], strict=True):
            gap |= np.array([value == unknown for value in frame[name].array], dtype=bool) & ~gap
    found = [column_levels(frame[name][~gap]) for name, gap in zip(names, gaps, strict=True)]
    kinds = [pd.api.types.is_numeric_dtype(levels.dtype) for _, levels in found if len(levels)]
    if len(set(kinds)) > 1 or any(_is_mixed(levels) for _, levels in found):
        raise DataError(
            f"The columns {listed(names)} mix numbers with text, so that parents would not be "
            "recognised; convert them to one type."
        )
    levels = pd.Index(np.concatenate([np.asarray(part, dtype=object) for _, part in found]))
    levels = levels.unique().infer_objects()
    codes = []
    for gap, (code, part) in zip(gaps, found, strict=True):
        place = np.full(len(frame), -1, dtype=np.intp)
        place[~gap] = levels.get_indexer(part.astype(levels.dtype))[code]
        codes.append(place)
    return codes, levels


def _is_mixed(levels: pd.Index) -> bool:
    """Whether some labels are text and others are not."""
    if levels.dtype != object:
        return False
    return len({isinstance(value, str) for value in levels}) > 1


def _check_listed(own: Indices, levels: pd.Index, name: str) -> None:
    """Refuse rows without an individual and individuals with two rows."""
    if np.any(own < 0):
        rows = np.flatnonzero(own < 0)
        raise DataError(
            f"`{name}` is missing in {len(rows)} rows of the pedigree, first at position {rows[0]}."
        )
    counts = np.bincount(own, minlength=len(levels))
    if np.any(counts > 1):
        twice = [str(label) for label in levels[counts > 1]]
        raise DataError(
            f"{listed(twice)} {'has' if len(twice) == 1 else 'have'} more than one row in the "
            "pedigree; keep one row per individual."
        )


def _check_roles(fathers: Indices, mothers: Indices, levels: pd.Index) -> None:
    both = np.intersect1d(fathers[fathers >= 0], mothers[mothers >= 0])
    if len(both):
        names = listed([str(label) for label in levels[both]])
        raise DataError(
            f"{names} {'occurs' if len(both) == 1 else 'occur'} both as sire and as dam. Correct "
            "the pedigree; allow it with selfing=True, as plants need; or, if this is a code for "
            "unknown parents, name it as `unknown`."
        )


def _with_founders(
    own: Indices, parents: tuple[Indices, Indices], levels: pd.Index
) -> tuple[pd.Index, list[Indices]]:
    """Labels of all individuals, and the places of their parents among them."""
    known = np.concatenate([parent[parent >= 0] for parent in parents])
    extra = np.setdiff1d(known, own)
    if len(extra):
        _log.info(
            "%d parents have no row in the pedigree and are added without parents: %s.",
            len(extra),
            listed([str(label) for label in levels[extra]]),
        )
    order = np.concatenate([own, extra])
    place = np.full(len(levels) + 1, -1, dtype=np.intp)
    place[order] = np.arange(len(order))
    unknown = np.full(len(extra), -1, dtype=np.intp)
    return levels[order], [np.concatenate([place[parent], unknown]) for parent in parents]


def _generations(sire: Indices, dam: Indices, labels: pd.Index) -> Indices:
    """Longest line of known ancestors of each individual, parents taken before offspring."""
    n = len(sire)
    parent = np.concatenate([sire, dam])
    child = np.tile(np.arange(n), 2)[parent >= 0]
    parent = parent[parent >= 0]
    waiting = np.bincount(child, minlength=n)
    order = np.argsort(parent, kind="stable")
    child, start = child[order], np.searchsorted(parent[order], np.arange(n + 1))
    generation = np.zeros(n, dtype=np.intp)
    ready = np.flatnonzero(waiting == 0)
    placed = 0
    while len(ready):
        placed += len(ready)
        spans = [child[start[i] : start[i + 1]] for i in ready]
        born = np.concatenate(spans)
        np.maximum.at(generation, born, generation[np.repeat(ready, list(map(len, spans)))] + 1)
        np.subtract.at(waiting, born, 1)
        born = np.unique(born)
        ready = born[waiting[born] == 0]
    if placed < n:
        raise DataError(_cycle(np.flatnonzero(waiting > 0), sire, dam, labels))
    return generation


def _cycle(stuck: Indices, sire: Indices, dam: Indices, labels: pd.Index) -> str:
    """Words for a circle of ancestors among individuals that never had all parents placed."""
    left = set(stuck.tolist())
    path: list[int] = [int(stuck[0])]
    while path.index(path[-1]) == len(path) - 1:
        path.append(next(int(p[path[-1]]) for p in (sire, dam) if int(p[path[-1]]) in left))
    circle = [f"`{labels[i]}`" for i in path[path.index(path[-1]) :]]
    if len(circle) > 12:
        circle = [*circle[:6], "...", *circle[-5:]]
    return (
        f"{circle[0]} is its own ancestor, each of these being an offspring of the next: "
        f"{', '.join(circle)}. Correct the pedigree."
    )


# --- relationships ---------------------------------------------------------------------


def _descent(ped: Pedigree) -> sp.csr_array:
    """P (J, J): one half at each known parent, one where a single individual is both."""
    n = len(ped)
    parent = np.concatenate([ped.sire, ped.dam])
    known = parent >= 0
    index = (np.tile(np.arange(n), 2)[known], parent[known])
    return sp.csr_array((np.full(int(known.sum()), 0.5), index), shape=(n, n))


def _mendelian(ped: Pedigree, inbreeding: Array, rows: Indices | slice = slice(None)) -> Array:
    """Variances of Mendelian sampling of some individuals, whose parents' inbreeding is known."""
    padded = np.append(inbreeding, -1.0)  # an unknown parent takes nothing away
    return 1.0 - 0.25 * (2.0 + padded[ped.sire[rows]] + padded[ped.dam[rows]])


def _inbreeding(ped: Pedigree) -> Array:
    """Inbreeding coefficients (J,), generation by generation: half the parents' relationship."""
    inbreeding, variance = np.zeros(len(ped)), np.ones(len(ped))
    bred = (ped.sire >= 0) & (ped.dam >= 0)
    parents = np.unique(np.concatenate([ped.sire, ped.dam]))
    parents = parents[parents >= 0]
    parents = parents[np.argsort(ped.generation[parents], kind="stable")]
    place = np.zeros(len(ped), dtype=np.int64)
    place[parents] = np.arange(len(parents))
    step = _descent(ped)[parents][:, parents]
    for members in _by_generation(ped):
        variance[members] = _mendelian(ped, inbreeding, members)
        own = members[bred[members]]
        if not len(own):
            continue
        earlier = np.searchsorted(ped.generation[parents], ped.generation[own[0]])
        keys = place[ped.sire[own]] * len(parents) + place[ped.dam[own]]
        pairs, inverse = np.unique(keys, return_inverse=True)
        known = step[:earlier, :earlier], variance[parents[:earlier]]
        shared = _relationships(*known, *np.divmod(pairs, len(parents)))
        inbreeding[own] = 0.5 * shared[inverse]
    return inbreeding


def _relationships(step: sp.csr_array, variance: Array, first: Indices, second: Indices) -> Array:
    """Relationships (m,) of pairs of individuals.

    That of s and d is the sum over their common ancestors j of ``T_sj d_j T_dj`` (Meuwissen and
    Luo). Where lists of ancestors are long and one sex is few, ``T D T'e_s`` is solved for instead
    for each s (Colleau, 2002, doi:10.1186/1297-9686-34-4-409).
    """
    few, many = sorted((first, second), key=lambda side: len(np.unique(side)))
    probe = _ancestors(step, many[:PROBE])
    rows = None if probe is None else probe.nnz / probe.shape[0] * len(np.unique(many))
    if rows is None or rows > len(np.unique(few)) * len(variance):
        return _by_column(step, variance, few, many)
    result = np.empty(len(first))
    for start in range(0, len(first), PAIRS):
        part = slice(start, start + PAIRS)
        left, right = (_ancestors(step, side[part]) for side in (few, many))
        if left is None or right is None:
            return _by_column(step, variance, few, many)
        result[part] = (left @ sp.diags_array(variance)).multiply(right).sum(axis=1)
    return result


def _ancestors(step: sp.csr_array, places: Indices) -> sp.csr_array | None:
    """Rows (m, J) of T of some individuals; None where there are very many generations."""
    own, inverse = np.unique(places, return_inverse=True)
    shape = (len(own), step.shape[0])
    reach = sp.csr_array((np.ones(len(own)), own, np.arange(len(own) + 1)), shape)
    rows = reach
    for _ in range(DEEP):
        reach = reach @ step
        if not reach.nnz:
            return rows[inverse]
        rows = rows + reach
    return None


def _by_column(step: sp.csr_array, variance: Array, few: Indices, many: Indices) -> Array:
    """Relationships (m,) of pairs, from the columns of A of the individuals among `few`."""
    own, column = np.unique(few, return_inverse=True)
    below = sp.csr_array(sp.eye_array(len(variance)) - step)
    above = sp.csr_array(below.T)
    result = np.empty(len(few))
    for start in range(0, len(own), COLUMNS):
        part = own[start : start + COLUMNS]
        unit = np.zeros((len(variance), len(part)))
        unit[part, np.arange(len(part))] = 1.0
        up = spsolve_triangular(above, unit, lower=False, unit_diagonal=True)
        down = spsolve_triangular(below, up * variance[:, None], unit_diagonal=True)
        here = (column >= start) & (column < start + COLUMNS)
        result[here] = down[many[here], column[here] - start]
    return result


def _by_generation(ped: Pedigree) -> Iterator[Indices]:
    """Places of the individuals of each generation, the earliest first."""
    order = np.argsort(ped.generation, kind="stable")
    bounds = np.flatnonzero(np.diff(ped.generation[order])) + 1
    yield from np.split(order, bounds)


def _dense(ped: Pedigree) -> Array:
    """A (J, J) by Henderson's table, a generation at a time."""
    n = len(ped)
    if n > LARGEST_DENSE:
        raise DataError(
            f"A of {n:,} individuals would take {8e-9 * n**2:,.1f} GB; A_inverse is sparse."
        )
    step, variance = _descent(ped), ped.mendelian
    matrix = np.zeros((n, n))
    for members in _by_generation(ped):
        own = step[members]
        rows = own @ matrix
        matrix[members] = rows
        matrix[:, members] = rows.T
        matrix[np.ix_(members, members)] = own @ rows.T
        matrix[members, members] += variance[members]
    return matrix
