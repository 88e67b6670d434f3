"""The tail of the random effects, those that are eliminated together, and their relative factors.

Lambda stands for the block-diagonal matrix of the relative factors T of all levels. Arrays may have
points first: (..., q, m), with relative factors (..., k, k).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]


@dataclass(frozen=True, slots=True, eq=False)
class TailBlock:
    """Place of one grouping factor in the tail: columns ``start : start + n_levels * n_coefs``."""

    factor: int
    start: int
    n_levels: int
    n_coefs: int

    @property
    def columns(self) -> slice:
        """Columns of this factor in the tail."""
        return slice(self.start, self.start + self.n_levels * self.n_coefs)

    @property
    def shape(self) -> tuple[int, int]:
        """Its levels and coefficients."""
        return self.n_levels, self.n_coefs


def scaled(
    rows: Array, tail: Sequence[TailBlock], factors: Sequence[Array], *, transposed: bool = False
) -> Array:
    """Lambda or Lambda' times rows (..., q, m)."""
    result = np.empty_like(rows)
    for block in tail:
        t = factors[block.factor]
        t = t.swapaxes(-1, -2) if transposed else t
        own = rows[..., block.columns, :]
        if own.shape[-1] == 1:  # one product for all levels
            product = own.reshape(*own.shape[:-2], *block.shape) @ t.swapaxes(-1, -2)
        else:
            part = own.reshape(*own.shape[:-2], *block.shape, own.shape[-1])
            product = t[..., None, :, :] @ part
        result[..., block.columns, :] = product.reshape(own.shape)
    return result


def scaled_both(
    lower: Array,
    tail: Sequence[TailBlock],
    factors: Sequence[Array],
    *,
    transposed: bool = False,
    overwrite: bool = False,
) -> Array:
    """Lambda S Lambda', or Lambda' S Lambda where `transposed`, from a lower triangle (..., q, q).

    The lower triangle of the result is valid. Where every block has one coefficient the result can
    take the place of S.
    """
    if all(block.n_coefs == 1 for block in tail):
        scale = np.concatenate(
            [np.repeat(factors[b.factor][..., 0], b.n_levels, axis=-1) for b in tail], axis=-1
        )
        system = np.multiply(lower, scale[..., None], out=lower if overwrite else None)
        system *= scale[..., None, :]
        return system
    half = scaled(symmetric(lower), tail, factors, transposed=transposed)
    return scaled(half.swapaxes(-1, -2), tail, factors, transposed=transposed)


def symmetric(lower: Array) -> Array:
    """Symmetric matrices (..., q, q) from their lower triangles."""
    return np.tril(lower) + np.tril(lower, -1).swapaxes(-1, -2)
