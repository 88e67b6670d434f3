"""Cross-products of the same rows with one response after another.

Whatever does not depend on the response is computed once: the products of the columns of X and Z,
the layout of their elimination and the working basis.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from bayeslmm.data.design import Design
from bayeslmm.likelihood.crossprod import sums_by_level, working_columns
from bayeslmm.likelihood.elimination import Plan, with_products
from bayeslmm.likelihood.factorise import single_threaded
from bayeslmm.likelihood.marginal import marginal_system
from bayeslmm.likelihood.split_rows import is_suspect

Array = NDArray[np.float64]

CLOSE = 1e-12
"""Share of the response that fixed effects leave below which rows are looked at again."""


def systems_of(design: Design) -> Callable[[Array], Plan]:
    """Function from a response (n,) to what :func:`marginal_system` makes of the design with it.

    Parameters
    ----------
    design : Design
        Rows in memory. Their response must not be one that the fixed effects reproduce.

    Returns
    -------
    callable
        Raises DataError as :func:`marginal_system` does.
    """

    def from_rows(y: Array) -> Plan:
        return marginal_system(replace(design, y=y))

    plan = marginal_system(design)
    related = any(known is not None for known in plan.products.relationships)
    if plan.stack is not None or plan.held is not None or plan.split is not None or related:
        return from_rows
    return _updated(design, plan, from_rows)


def _updated(
    design: Design, plan: Plan, from_rows: Callable[[Array], Plan]
) -> Callable[[Array], Plan]:
    """The same by updating the response's part of cross-products of independent residuals."""
    products, p = plan.products, plan.products.n_fixed
    given = design.y - design.offset
    _, columns, slots = working_columns(
        given, design.X, design.random, design.weights, products.basis
    )
    x, root = columns[:, :p], np.sqrt(design.row_weights)
    levels = [factor.n_levels for factor in design.random]

    def with_response(y: Array) -> Plan:
        with single_threaded():
            response = (y - design.offset) * root
            shift = np.linalg.solve(products.fixed[:p, :p], x.T @ response)
            left = response - x @ shift
            fixed = products.fixed.copy()
            fixed[:p, p] = fixed[p, :p] = x.T @ left
            fixed[p, p] = left @ left
            mixed = [
                np.concatenate([part[:, :, :p], sums_by_level(own, left[:, None], size)], axis=2)
                for part, own, size in zip(products.mixed, slots, levels, strict=True)
            ]
            basis = replace(products.basis, shift=products.basis.fixed @ shift)
            changed = replace(products, fixed=fixed, mixed=tuple(mixed), basis=basis)
            made = with_products(plan, changed)
            close = fixed[p, p] < CLOSE * float(response @ response) or is_suspect(made)
        return from_rows(y) if close else made

    return with_response
