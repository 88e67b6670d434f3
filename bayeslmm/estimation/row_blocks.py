"""The covariance matrix V of the response in blocks of rows that nothing ties to other rows."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from bayeslmm.covariance.coordinates import Points
from bayeslmm.data.design import Design, RandomFactor
from bayeslmm.estimation.residuals import residual_blocks
from bayeslmm.exceptions import DataError

Array = NDArray[np.float64]
Indices = NDArray[np.intp]

MOST_ROWS = 4000
"""Rows that may be tied to each other: a matrix of them takes 0.13 GB."""

AT_ONCE = 1 << 23
"""Entries of matrices that are held at once: 64 MB."""

TIED = (
    "{what} needs a dense matrix of all rows that random effects or residuals tie to each other, "
    "here {count:,} of them; it is done for up to {most:,}. {instead}"
)


class Alike(NamedTuple):
    """Rows (C, o) of C blocks that have one covariance matrix, and this at S points (S, o, o)."""

    rows: Indices
    covariances: Array


def check_blocks(blocks: Sequence[Indices], what: str, instead: str) -> None:
    """Raise DataError where more rows are tied than a dense matrix of is reasonable."""
    largest = max(map(len, blocks))
    if largest > MOST_ROWS:
        raise DataError(TIED.format(what=what, count=largest, most=MOST_ROWS, instead=instead))


def alike_blocks(
    design: Design, points: Points, blocks: Sequence[Indices], copies: int = 1
) -> Iterator[Alike]:
    """V at S points in blocks, those that have one matrix together.

    Parameters
    ----------
    design : Design
        Rows in memory.
    points : Points
        Covariance parameters.
    blocks : sequence of ndarray of int
        Rows of each block.
    copies : int
        Matrices by row of a block that the caller holds at once.
    """
    found: dict[bytes, list[Indices]] = {}
    for i, rows in enumerate(blocks):
        found.setdefault(_key(design, rows, i), []).append(rows)
    for members in found.values():
        covariances = block_covariances(design, points, members[0])
        step = max(1, AT_ONCE // max(1, copies * len(members[0])))
        for start in range(0, len(members), step):
            yield Alike(np.stack(members[start : start + step]), covariances)


def _key(design: Design, rows: Indices, i: int) -> bytes:
    """Equal for blocks of which the covariance matrices are equal at all parameters."""
    if any(factor.relationship is not None for factor in design.random):
        return i.to_bytes(8, "little")
    parts: list[NDArray[np.generic]] = [np.array([len(rows)])]
    known = design.residual_rows
    if known is not None:
        own = known.take(rows)
        parts += [own.arm, own.log_sd]
        if own.group is not None and own.place is not None:
            parts += [_ranks(own.group), own.place]
    if design.weights is not None:
        parts.append(design.weights[rows])
    for factor in design.random:
        slots = factor.slots
        parts.append(_ranks(np.concatenate([slot.codes[rows] for slot in slots])))
        parts += [slot.Z[rows] for slot in slots]
    return b"".join(np.ascontiguousarray(part).tobytes() for part in parts)


def _ranks(codes: Indices) -> Indices:
    """Codes in order of first appearance."""
    _, first, inverse = np.unique(codes, return_index=True, return_inverse=True)
    return np.argsort(np.argsort(first))[inverse.ravel()]


def block_covariances(design: Design, points: Points, rows: Indices) -> Array:
    """V (S, o, o) of some rows."""
    total = residual_blocks(design, points, rows)
    for factor, root in zip(design.random, points.roots, strict=True):
        total += random_part(factor, root @ root.swapaxes(1, 2), rows)
    return total


def random_part(factor: RandomFactor, sigma: Array, rows: Indices) -> Array:
    """ZGZ' (S, o, o) of some rows and one grouping factor with covariance matrices (S, k, k)."""
    total = np.zeros((len(sigma), len(rows), len(rows)))
    for one in factor.slots:
        for two in factor.slots:
            a, b = one.codes[rows], two.codes[rows]
            if factor.relationship is None:
                tie = (a[:, None] == b).astype(np.float64)
            else:
                tie = factor.relationship.covariance[np.ix_(a, b)]
            total += tie * (one.Z[rows] @ sigma @ two.Z[rows].T)
    return total
