"""Scores of single rows of data beyond memory, given all other rows, batch by batch.

The equations of all rows are solved from sums at every draw, once. What is left for a row is linear
algebra on its own covariates and the equations of its levels. Rows are taken in the order of their
levels, so that what is held is the equations of a few levels at all draws.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping

import numpy as np
from numpy.typing import NDArray

from bayeslmm.checks.integrated import (
    SEPARATE,
    LeaveOut,
    check_finite,
    refuse_undetermined,
    score_rows,
)
from bayeslmm.checks.row_forms import (
    ENTRIES,
    RowSystem,
    Solved,
    leverages_at,
    row_system,
    solve_border,
    solve_levels,
)
from bayeslmm.data.design import Design
from bayeslmm.data.second_pass import row_parts
from bayeslmm.estimation.model import Model
from bayeslmm.likelihood.factorise import single_threaded
from bayeslmm.likelihood.log_posterior import beta_prior
from bayeslmm.sampling.joint_draws import JointDraws

Array = NDArray[np.float64]
Indices = NDArray[np.intp]
Values = Mapping[str, Array]


def scored_parts(
    model: Model,
    joint: JointDraws,
    summarise: Callable[[Array, LeaveOut], Values],
    *,
    moments: bool = False,
) -> Iterator[tuple[Design, Values]]:
    """Summaries of the scores of each row at all draws, some rows at a time.

    Parameters
    ----------
    model : Model
    joint : JointDraws
        S draws.
    summarise : callable
        From the responses (n,) and scores (S, n) of some rows to values (n,) by name.
    moments : bool
        Whether means and sds of the rows given the others are wanted too.

    Yields
    ------
    rows : Design
    values : mapping of str to ndarray (n,)

    Raises
    ------
    SamplingError
        If flat priors leave the fixed effects undetermined without a row.
    DataError
        If the rows cannot be read again, or are not those of the model.
    """
    given = model.priors.beta_sampled
    prior = None if given else beta_prior(model.priors)
    system = row_system(model.design, model.system, prior, given_beta=given)
    with single_threaded():
        border = solve_border(system, joint)
    support, lost = _Support(model), 0
    for part in row_parts(model.design):
        lost += support.lost(part)
        if lost:  # how many there are is known at the end
            continue
        own = system.with_rows(part)
        found: dict[str, Array] = {}
        for rows in row_pieces(own, joint.size):
            with single_threaded(), np.errstate(divide="ignore", invalid="ignore"):
                scores = _scores(own, rows, part.y[rows], border, joint, moments=moments)
            check_finite(scores.log_density)
            for name, values in summarise(part.y[rows], scores).items():
                found.setdefault(name, np.empty(part.n))[rows] = values
        yield part, found
    refuse_undetermined(lost)


def row_pieces(system: RowSystem, draws: int) -> Iterator[Indices]:
    """Rows whose values at so many draws are held at once, in the order of their first level."""
    n, order = len(system.y), np.arange(len(system.y))
    if system.plan.stages:
        (slot,) = system.slots[system.plan.stages[0].factor]
        order = np.argsort(slot.codes, kind="stable")
    step = max(1, ENTRIES // draws)
    for start in range(0, n, step):
        yield order[start : start + step]


def _scores(
    system: RowSystem,
    rows: Indices,
    y: Array,
    border: Solved,
    joint: JointDraws,
    *,
    moments: bool,
) -> LeaveOut:
    """Scores (S, n) of some rows of a system."""
    part = system.take(rows).at_own_levels()
    result = LeaveOut.empty(joint.size, len(rows), moments=moments)
    for draws in part.batches(joint.size):
        solved = solve_levels(part, border.take(draws))
        found = leverages_at(part, solved)
        score_rows(found, part.weights, y, joint.sigma[draws], result.take(draws))
    return result


class _Support:
    """Which rows alone determine a direction of the fixed effects whose priors are flat."""

    def __init__(self, model: Model) -> None:
        priors, products = model.priors, model.system.products
        flat = np.array([not prior.proper for prior in priors.beta], dtype=bool)
        self.shape: Array | None = None
        if not flat.any():
            return
        # The prior is on `fixed_map @ beta`: these are the columns of its coordinates.
        columns = np.linalg.solve(products.basis.fixed, np.linalg.inv(priors.fixed_map))[:, flat]
        gram = columns.T @ products.fixed[:-1, :-1] @ columns
        size = np.sqrt(np.diag(gram))
        lower = np.linalg.cholesky(gram / np.outer(size, size))
        self.shape = products.basis.fixed @ np.linalg.solve(lower, (columns / size).T).T

    def lost(self, part: Design) -> int:
        """How many of some rows do."""
        if self.shape is None:
            return 0
        share = part.row_weights * np.sum((part.X @ self.shape) ** 2, axis=1)
        return int(np.sum(1.0 - share < SEPARATE))
