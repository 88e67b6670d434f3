"""Averages of the linear predictor, or of differences of it, over the rows of a data frame."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pandas as pd
import scipy.sparse as sp
from numpy.typing import NDArray

from bayeslmm.data.design import Design
from bayeslmm.data.frames import missing, to_frame
from bayeslmm.data.inputs import nearest
from bayeslmm.effects.grid import is_factor, levels_of
from bayeslmm.effects.linear import Combinations
from bayeslmm.exceptions import DataError
from bayeslmm.sampling.joint_draws import JointDraws

Array = NDArray[np.float64]
Evaluation = tuple[pd.DataFrame, Array]
"""Rows at which the linear predictor is evaluated, and its weight (n,) in the result."""


SHOWN = 10
"""Positions of rows that a message lists."""


@dataclass(frozen=True, slots=True, eq=False, kw_only=True)
class Groups:
    """Groups of rows to average over.

    Attributes
    ----------
    labels : pandas.DataFrame
        One row per group.
    matrix : scipy.sparse.csr_array (groups, n)
        Weights of the rows in each average.
    """

    labels: pd.DataFrame
    matrix: sp.csr_array


def rows_frame(design: Design, new_data: Any) -> pd.DataFrame:
    """The rows of the model, or new ones as a pandas frame of their own."""
    frame = design.data if new_data is None else to_frame(new_data)
    return frame.reset_index(drop=True)


def row_groups(frame: pd.DataFrame, by: Sequence[str], overall: pd.DataFrame) -> Groups:
    """Group rows by the values of variables, which vary fastest first.

    Parameters
    ----------
    frame : pandas.DataFrame
        n rows.
    by : sequence of str
        Variables; none for one group of all rows.
    overall : pandas.DataFrame
        The label of that group, one row.

    Raises
    ------
    DataError
        If a variable is not in the frame, or missing in some rows.
    """
    for name in by:
        if name not in frame:
            raise DataError(
                f"by names `{name}`, which the rows do not have.{nearest(name, list(frame))} They "
                f"have {', '.join(map(str, frame.columns))}."
            )
        gaps = np.flatnonzero(missing(frame[name]))
        if len(gaps):
            more = f" and {len(gaps) - SHOWN} more" if len(gaps) > SHOWN else ""
            raise DataError(
                f"by names `{name}`, which has missing values in {len(gaps)} of {len(frame)} rows, "
                f"at positions {', '.join(map(str, gaps[:SHOWN]))}{more}. Fill them in or drop the "
                "rows."
            )
    if not by:
        share = np.full((1, len(frame)), 1.0 / len(frame))
        return Groups(labels=overall, matrix=sp.csr_array(share))
    codes = np.zeros(len(frame), dtype=np.intp)
    for name in reversed(by):
        order = {value: i for i, value in enumerate(levels_of(frame[name]))}
        codes = codes * len(order) + np.array([order[key] for key in frame[name]], dtype=np.intp)
    _, first, places, counts = np.unique(
        codes, return_index=True, return_inverse=True, return_counts=True
    )
    labels = frame.loc[first, list(by)].reset_index(drop=True)
    labels = labels.astype({n: object for n in labels if is_factor(labels[n])})
    entries = (1.0 / counts[places], (places, np.arange(len(frame))))
    matrix = sp.csr_array(entries, shape=(len(labels), len(frame)))
    return Groups(labels=labels, matrix=matrix)


def average_rows(
    design: Design,
    evaluations: Sequence[Evaluation],
    groups: Groups,
    joint: JointDraws | None,
) -> Combinations:
    """Averages over groups of rows of a weighted sum of linear predictors.

    Parameters
    ----------
    design : Design
        The design of the model.
    evaluations : sequence of (frame, weights)
        What to sum in each row.
    groups : Groups
        What to average over.
    joint : JointDraws or None
        Draws, to add the random effects of the levels in the rows; None leaves them out.

    Returns
    -------
    Combinations

    Raises
    ------
    DataError
        If random effects are wanted of a level that the model has not seen.
    """
    total: Array | None = None
    constant = np.zeros(len(groups.labels))
    effects = _EffectWeights(design, len(groups.labels))
    for frame, weights in evaluations:
        encoded = design.encode(frame, random="none" if joint is None else "levels")
        share = groups.matrix * weights
        part = share @ encoded.X_full
        total = part if total is None else total + part
        constant = constant + share @ encoded.offset
        if joint is not None:
            effects.add(encoded, share)
    assert total is not None
    averages = Combinations(labels=groups.labels, weights=total, constant=constant)
    if joint is None:
        return averages
    return replace(averages, constant=constant + effects.draws(joint))


class _EffectWeights:
    """Weights of the random effects in averages, gathered over evaluations."""

    def __init__(self, design: Design, count: int) -> None:
        self.factors = design.random
        self.weights = [
            sp.csr_array((count, factor.n_levels * factor.n_coefs)) for factor in design.random
        ]

    def add(self, encoded: Design, share: sp.csr_array) -> None:
        for f, factor in enumerate(encoded.random):
            if np.any(factor.codes < 0):
                raise DataError(
                    f"target='conditional' needs known levels of `{factor.name}`; the rows have "
                    f"new ones ({', '.join(map(str, factor.new_levels[:5]))}). Take "
                    "target='average'."
                )
            k = factor.n_coefs
            columns = factor.codes[:, None] * k + np.arange(k)
            rows = np.repeat(np.arange(len(columns)), k)
            entries = (factor.Z.ravel(), (rows, columns.ravel()))
            z = sp.csr_array(entries, shape=(len(columns), factor.n_levels * k))
            self.weights[f] = sp.csr_array(self.weights[f] + share @ z)

    def draws(self, joint: JointDraws) -> Array:
        """Draws (S, count) of the random part of the averages."""
        used = [
            np.unique(w.indices // factor.n_coefs)
            for w, factor in zip(self.weights, self.factors, strict=True)
        ]
        total = np.zeros((joint.size, self.weights[0].shape[0]))
        for factor, weights, levels, u in zip(
            self.factors, self.weights, used, joint.effects(used), strict=True
        ):
            columns = (levels[:, None] * factor.n_coefs + np.arange(factor.n_coefs)).ravel()
            total += (weights[:, columns] @ u.reshape(joint.size, -1).T).T
        return total


def stacked(parts: Sequence[Combinations], labels: pd.DataFrame) -> Combinations:
    """Several combinations below each other under new labels."""
    return Combinations(
        labels=labels,
        weights=np.vstack([part.weights for part in parts]),
        constant=np.concatenate([part.constant for part in parts], axis=-1),
    )
