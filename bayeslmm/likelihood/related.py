"""Related levels exchanged for independent combinations of them.

With u ~ N(0, sd^2 A), ``A = L L'`` and ``L'Z'Z L = Q D Q'``, the combinations w of ``u = L Q w``
are independent a priori and, Z'Z of them being the diagonal D, given the data as well: they are
levels of a grouping factor like any other. That serves a single random coefficient of a single
grouping factor; others would need their eigenvectors anew for each ratio of variances.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import scipy.sparse as sp
from numpy.typing import NDArray

from bayeslmm.likelihood.crossprod import WorkingProducts

Array = NDArray[np.float64]

LARGEST = 4_000
"""Levels up to which eigenvectors are found: 2,000 take 3 s, this many half a minute."""

FEW = 1_000
"""Random effects up to which matrices are dense, however sparse relationships are."""

NOTHING = 1e-13
"""Eigenvalue relative to the largest that is nothing but rounding."""


def can_diagonalise(products: WorkingProducts) -> bool:
    """Whether there is a single random coefficient, of related levels that are not too many."""
    if len(products.random) != 1 or products.relationships[0] is None:
        return False
    levels, k = products.random[0].shape[:2]
    return k == 1 and levels <= LARGEST and not stays_sparse(products)


def stays_sparse(products: WorkingProducts) -> bool:
    """Whether relationships are known by sparse inverses and random effects are many."""
    known = [r for r in products.relationships if r is not None]
    many = sum(gram.shape[0] * gram.shape[1] for gram in products.random) > FEW
    return many and any(sp.issparse(r.precision) for r in known if r.kind == "precision")


def diagonalised(products: WorkingProducts) -> WorkingProducts:
    """The same data with independent combinations of the levels in place of related levels."""
    (relationship,), (gram,), (mixed,) = products.relationships, products.random, products.mixed
    assert relationship is not None
    root = relationship.root
    gathered = gram[:, :, 0] * root
    for met in products.couplings:  # levels that are members of one row
        np.add.at(gathered, met.first, met.blocks[:, 0] * root[met.second])
        np.add.at(gathered, met.second, met.blocks[:, 0] * root[met.first])
    values, vectors = np.linalg.eigh(root.T @ gathered)
    levels = root @ vectors
    nothing = values < NOTHING * values[-1]
    values = np.where(nothing, 0.0, values)
    turned = np.where(nothing[:, None], 0.0, levels.T @ mixed[:, 0])
    return replace(
        products,
        random=(values[:, None, None],),
        mixed=(turned[:, None],),
        couplings=(),
        relationships=(None,),
        basis=replace(products.basis, levels=levels),
    )
