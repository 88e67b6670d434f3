"""All equations of a small model at many residual parameters at once.

Where several grouping factors meet and cross-products change from point to point, the equations of
all random and fixed effects together are one linear map of the values of the residual precision
matrix: a batch of points is a batch of small dense systems.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import scipy.sparse as sp
from numpy.typing import NDArray

from bayeslmm.likelihood.blocks import TailBlock, bordered_cholesky, log_det_of
from bayeslmm.likelihood.stack import Stack

Array = NDArray[np.float64]
Indices = NDArray[np.intp]

LARGEST = 300
"""Equations up to which they are solved together: beyond, a dense factor takes all of the time."""

CHUNK = 1 << 18
"""Entries of equations that are worked on at once."""


@dataclass(frozen=True, eq=False, kw_only=True)
class Whole:
    """The lower triangle of [Z X y]'P[Z X y] as a function of the values of P.

    Attributes
    ----------
    stack : Stack
        Where its parts come from.
    blocks : tuple of TailBlock
        Places of the grouping factors.
    size : int
        Number N of columns of [Z X y].
    places : ndarray (n,)
        Entries that are not always zero: row times N plus column.
    map : scipy.sparse.csr_array (n, K)
        These entries from the values.
    """

    stack: Stack
    blocks: tuple[TailBlock, ...]
    size: int
    places: Indices
    map: sp.csr_array

    def cholesky(self, shapes: Array, working: Sequence[Array]) -> tuple[Array, Array]:
        """Factors of the scaled equations and ``log |V / sigma^2|`` (S,), NaN where there is none.

        Parameters
        ----------
        shapes : ndarray (S, r)
            Parameters of the residuals.
        working : sequence of ndarray (S, k, k)
            Relative factors in the working basis.

        Returns
        -------
        lower : ndarray (S, N, N)
        log_det : ndarray (S,)
        """
        values, log_det = self.stack.law.precision(shapes)
        count = len(shapes)
        flat = np.zeros((count, self.size**2))
        flat[:, self.places] = (self.map @ values.T).T
        system = flat.reshape(count, self.size, self.size)
        lower = bordered_cholesky(system, self.blocks, working)
        own = log_det_of(lower, self.blocks)
        return lower, own - log_det - self.stack.template.log_weights

    def chunks(self, size: int) -> list[slice]:
        """Slices of points that are worked on at once."""
        step = max(1, CHUNK // self.size**2)
        return [slice(start, min(start + step, size)) for start in range(0, size, step)]


def make_whole(stack: Stack, blocks: tuple[TailBlock, ...]) -> Whole | None:
    """The equations of a stack, all of whose grouping factors have the places `blocks`.

    None where they are too many.
    """
    q = sum(block.n_levels * block.n_coefs for block in blocks)
    size = q + stack.template.n_fixed + 1
    if size > LARGEST:
        return None
    parts = list(_parts(stack, blocks, q))
    rows, cols = (np.concatenate([part[i].ravel() for part in parts]) for i in (0, 1))
    lower = rows >= cols
    rest = sp.csr_array(sp.vstack([sp.csr_array(part[2]) for part in parts], format="csr"))
    return Whole(
        stack=stack,
        blocks=blocks,
        size=size,
        places=(rows * size + cols)[lower],
        map=sp.csr_array(rest[np.flatnonzero(lower)]),
    )


def _parts(
    stack: Stack, blocks: tuple[TailBlock, ...], q: int
) -> Iterator[tuple[Indices, Indices, sp.csr_array | Array]]:
    """Rows, columns and maps of the parts of the equations; of couplings the lower triangle."""
    fixed = q + np.arange(stack.template.n_fixed + 1, dtype=np.intp)
    yield _crossed(fixed[:, None], fixed, stack.fixed)
    for block in blocks:
        own = block.places(np.arange(block.n_levels))
        yield _crossed(own[:, :, None], own[:, None], stack.random[block.factor])
        yield _crossed(fixed, own[:, :, None], stack.mixed[block.factor])
    for coupling, found in zip(stack.template.couplings, stack.couplings, strict=True):
        first, second = (blocks[factor] for factor in coupling.factors)
        one, two = first.places(coupling.first), second.places(coupling.second)
        yield _crossed(two[:, None], one[:, :, None], found)


def _crossed(
    rows: Indices, cols: Indices, found: sp.csr_array | Array
) -> tuple[Indices, Indices, sp.csr_array | Array]:
    first, second = np.broadcast_arrays(rows, cols)
    return first, second, found
