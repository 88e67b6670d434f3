"""A trial as subjects by visits: responses, and their joint normal law under a model.

Given the fixed effects, the covariance parameters and the effects of levels that subjects share
(sites), the T responses of a subject are normal: random effects of levels within the subject are
integrated out. The law is that of the subject's own arm, or of the reference arm with everything
else as it is.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from bayeslmm.data.design import Design
from bayeslmm.data.random_factors import RandomFactor
from bayeslmm.estimation.residuals import require_normal_residuals, residual_blocks
from bayeslmm.exceptions import DataError, listed
from bayeslmm.prediction.rows import (
    effects_of_rows,
    linear_draws,
    prediction_rows,
    require_memory,
)
from bayeslmm.sampling.joint_draws import JointDraws

Array = NDArray[np.float64]
Indices = NDArray[np.intp]
Flags = NDArray[np.bool_]


@dataclass(frozen=True, slots=True, eq=False, kw_only=True)
class Trial:
    """N subjects by T visits; rows go by subject, then visit.

    Attributes
    ----------
    design : Design
        The design of the model.
    frame : pandas.DataFrame
        N T rows of the variables of the model, with the response, NaN where missing.
    positions : ndarray of int (N T,)
        Places of these rows in the data of the model.
    weights : ndarray (N T,) or None
        Their precision weights.
    names : tuple of str
        Columns of subjects, visits and arms; further ones say the arm too.
    subjects, visits : pandas.Index
        Labels (N,) and (T,).
    arms : ndarray of object (N,)
        Arm of each subject.
    reference : object
        The reference arm.
    y : ndarray (N, T)
        Responses, NaN where missing.
    """

    design: Design
    frame: pd.DataFrame
    positions: Indices
    weights: Array | None
    names: tuple[str, ...]
    subjects: pd.Index
    visits: pd.Index
    arms: NDArray[np.object_]
    reference: Any
    y: Array

    @property
    def missing(self) -> Flags:
        """Which responses (N, T) are missing."""
        return np.isnan(self.y)

    @property
    def late(self) -> Flags:
        """Which of them come after the last visit with a response."""
        seen = ~self.missing
        return ~np.logical_or.accumulate(seen[:, ::-1], axis=1)[:, ::-1]

    def under_reference(self) -> pd.DataFrame:
        """The rows with every subject in the reference arm."""
        changed = {}
        for name in self.names[2:]:
            column = self.frame[name]
            values = np.full(len(column), self.reference, dtype=object)
            changed[name] = pd.Series(values, index=column.index).astype(column.dtype)
        return self.frame.assign(**changed)


def trial_of(
    design: Design, arm: tuple[str, ...], reference: Any, visit: str | None, subject: str | None
) -> Trial:
    """The data of a model that keeps rows without a response, by subject and visit.

    Raises
    ------
    DataError
        If they are not rows of subjects by visits with a constant arm, or rows were dropped.
    """
    require_normal_residuals(design, "Imputation")
    kept = design.unobserved
    if kept is None or not kept.n:
        raise DataError(
            "There are no responses to impute: "
            + ("none is missing." if kept is not None else 'the model needs missing="keep".')
        )
    if design.n_dropped:
        raise DataError(
            f"{design.n_dropped} rows lack more than the response, such as a baseline, and are not "
            "in the model, so that completed data would be without them. Give such covariates a "
            "value (of a baseline: the mean of all arms), make the baseline a response "
            "(blm.clda), or leave these subjects out of the data."
        )
    names = (*_subject_and_visit(design, subject, visit), *arm)
    frame, positions, weights = _all_rows(design)
    _check_columns(frame, names)
    order, subjects, visits = _grid(frame, names[0], names[1])
    frame, positions = frame.iloc[order], positions[order]
    shape = (len(subjects), len(visits))
    response = np.concatenate([design.y, np.full(kept.n, np.nan)])[order].reshape(shape)
    return Trial(
        design=design,
        frame=frame,
        positions=positions,
        weights=None if weights is None else weights[order],
        names=names,
        subjects=subjects,
        visits=visits,
        arms=_arms(frame, names, reference, shape, subjects),
        reference=reference,
        y=response,
    )


def _subject_and_visit(design: Design, subject: str | None, visit: str | None) -> tuple[str, str]:
    """Columns of subjects and visits: those of the residual structure where not given."""
    spec = design.spec.residual
    term = None if spec is None else spec.formula.correlation
    if term is not None:
        subject = term.group[0] if subject is None and len(term.group) == 1 else subject
        visit = term.place[0] if visit is None and term.place != ("1",) else visit
    if subject is None or visit is None:
        raise DataError(
            "The model does not say which columns are subjects and visits, as "
            'residual="us(visit | subject)" would: give subject= and visit=.'
        )
    return subject, visit


def _all_rows(design: Design) -> tuple[pd.DataFrame, Indices, Array | None]:
    """Rows with and then without a response, their places in the data, their weights."""
    kept = design.unobserved
    assert kept is not None
    frame = pd.concat([design.data, kept.data.reindex(columns=design.data.columns)])
    total = design.n + len(design.dropped)
    seen = np.setdiff1d(np.arange(total), design.dropped)
    weights = None
    if design.weights is not None and kept.weights is not None:
        weights = np.concatenate([design.weights, kept.weights])
    for name in kept.data.columns:  # concatenation forgets categories and whole numbers
        frame[name] = frame[name].astype(design.data[name].dtype)
    return frame, np.concatenate([seen, kept.rows]), weights


def _check_columns(frame: pd.DataFrame, names: tuple[str, ...]) -> None:
    if lost := [name for name in names if name not in frame.columns]:
        raise DataError(
            f"{listed(lost)}: no variable of the model. It has {listed(list(frame.columns))}."
        )
    if not isinstance(frame[names[1]].dtype, pd.CategoricalDtype) and not (
        pd.api.types.is_numeric_dtype(frame[names[1]].dtype)
    ):
        raise DataError(
            f"The visits `{names[1]}` are text, which has no order. Make them numbers or "
            f"categories in order: pd.Categorical(data[{names[1]!r}], categories=[...])."
        )


def _grid(frame: pd.DataFrame, subject: str, visit: str) -> tuple[Indices, pd.Index, pd.Index]:
    """Order of the rows by subject and visit, with the labels of both."""
    codes, subjects = pd.factorize(frame[subject], sort=True)
    places, visits = pd.factorize(frame[visit], sort=True)
    count = np.zeros((len(subjects), len(visits)), dtype=np.intp)
    np.add.at(count, (codes, places), 1)
    if (count > 1).any():
        i, t = np.argwhere(count > 1)[0]
        raise DataError(
            f"`{subjects[i]}` of {subject} has {count[i, t]} rows at `{visits[t]}` of {visit}: "
            "one is expected."
        )
    if (count < 1).any():
        i, t = np.argwhere(count < 1)[0]
        raise DataError(
            f"{int((count < 1).sum())} visits have no row, the first `{visits[t]}` of "
            f"`{subjects[i]}`: every subject needs a row at every visit, without a response where "
            "there is none. blm.expand_visits() adds them."
        )
    return np.lexsort((places, codes)), pd.Index(subjects), pd.Index(visits)


def _arms(
    frame: pd.DataFrame,
    names: tuple[str, ...],
    reference: Any,
    shape: tuple[int, int],
    subjects: pd.Index,
) -> NDArray[np.object_]:
    """Arm (N,) of each subject; rows may be of the reference arm besides, as a common baseline."""
    for name in names[2:]:
        known = pd.unique(frame[name]).tolist()
        if reference not in known:
            raise DataError(
                f"reference={reference!r} is none of the arms `{name}`: {listed(known)}."
            )
    values = frame[names[2]].to_numpy(dtype=object).reshape(shape)
    others = values != reference
    first = values[np.arange(shape[0]), others.argmax(axis=1)]
    strange = (others & (values != first[:, None])).any(axis=1)
    if strange.any():
        raise DataError(
            f"`{subjects[int(strange.argmax())]}` of {names[0]} is in several arms `{names[2]}`."
        )
    return first


# --- laws of the responses -----------------------------------------------------------


@dataclass(frozen=True, slots=True, eq=False, kw_only=True)
class Laws:
    """Means and covariances of the responses of a trial, for S draws.

    Attributes
    ----------
    designs : tuple of Design
        The rows in their own arms, and all in the reference arm.
    means : tuple of ndarray (S, N, T)
        Under each.
    joint : JointDraws
    within : tuple of (int, ...)
        Grouping factors whose levels are within subjects.
    """

    designs: tuple[Design, Design]
    means: tuple[Array, Array]
    joint: JointDraws
    within: tuple[int, ...]

    def covariances(self, which: int, subject: int) -> Array:
        """Covariance matrix (S, T, T) of a subject, in its own arm (0) or the reference arm (1)."""
        design, visits = self.designs[which], self.means[0].shape[2]
        here = np.arange(subject * visits, (subject + 1) * visits)
        total = residual_blocks(design, self.joint.points, here)
        for f in self.within:
            sigma = self.joint.covariances[f]
            slots = [slot.take(here) for slot in design.random[f].slots]
            for one, two in product(slots, slots):
                same = one.extended_codes[:, None] == two.extended_codes
                total = total + same * np.einsum("ti,sij,uj->stu", one.Z, sigma, two.Z)
        return np.asarray(total)

    def alike(self) -> list[Indices]:
        """Sets of subjects with the same covariances."""
        n, visits = self.means[0].shape[1:]
        columns = [np.zeros((n, 1))]
        for design in self.designs:
            known = design.residual_rows
            if known is not None:
                columns.append(known.log_sd.reshape(n, -1))
                columns.append(known.arm.reshape(n, -1).astype(np.float64))
            if known is not None and known.place is not None:
                columns.append(np.asarray(known.place, dtype=np.float64).reshape(n, -1))
            if design.weights is not None:
                columns.append(design.weights.reshape(n, -1))
            for f in self.within:
                slots = design.random[f].slots
                columns += [slot.Z.reshape(n, -1) for slot in slots]
                codes = np.concatenate(
                    [slot.extended_codes.reshape(n, visits) for slot in slots], axis=1
                )
                first = (codes[:, :, None] == codes[:, None, :]).argmax(axis=2)
                columns.append(first.astype(np.float64))
        return equal_rows(np.concatenate(columns, axis=1))


def equal_rows(values: Array) -> list[Indices]:
    """Places of rows (n, m) that are equal, set by set."""
    _, group = np.unique(values, axis=0, return_inverse=True)
    group = group.ravel()
    order = np.argsort(group, kind="stable")
    return np.split(order, np.flatnonzero(np.diff(group[order])) + 1)


def laws_of(trial: Trial, joint: JointDraws, rng: np.random.Generator | None) -> Laws:
    """The laws of the responses of a trial under draws of the parameters."""
    design, n, visits = trial.design, len(trial.subjects), len(trial.visits)
    require_memory(2 * joint.size * n * visits, "responses of all subjects")
    frames = (trial.frame, trial.under_reference())
    own, other = (design.spec.rows(frame, weights=trial.weights, residual=True) for frame in frames)
    subject = trial.frame[trial.names[0]]
    within = tuple(f for f, factor in enumerate(own.random) if _within(factor, subject))
    factors = [factor for f, factor in enumerate(own.random) if f not in within]
    _refuse_arms(factors, trial.names[2:])
    shared = [factor.name for factor in factors]
    generator = np.random.default_rng(0) if rng is None else rng
    rows = [prediction_rows(design, frame, "new", shared, trial.weights) for frame in frames]
    effects = effects_of_rows(rows[0], joint, generator)
    means = [linear_draws(one, joint, effects, slice(None)) for one in rows]
    shape = (joint.size, n, visits)
    return Laws(
        designs=(own, other),
        means=(means[0].reshape(shape), means[1].reshape(shape)),
        joint=joint,
        within=within,
    )


def _within(factor: RandomFactor, subject: pd.Series) -> bool:
    """Whether every level is of one subject, and independent of the others."""
    if factor.relationship is not None:
        return False
    codes = pd.factorize(subject)[0]
    pairs = [np.column_stack([slot.extended_codes, codes]) for slot in factor.slots]
    found = np.unique(np.concatenate(pairs), axis=0)
    return len(np.unique(found[:, 0])) == len(found)


def _refuse_arms(shared: Sequence[RandomFactor], arms: tuple[str, ...]) -> None:
    """Refuse effects of levels that subjects share, where these are levels of the arm too."""
    for factor in shared:
        if set(factor.factors).intersection(arms):
            raise DataError(
                f"The grouping factor `{factor.name}` has the arm and levels that subjects share: "
                "what its effects would be in the reference arm is not known."
            )


def with_response(trial: Trial, y: Array) -> pd.DataFrame:
    """The rows in the order of the data, with responses (N, T) as the formula has them.

    What the formula transforms is left out: it is known where the response was observed only.
    """
    response = trial.design.response
    given = trial.design.formula.left.variables
    frame = trial.frame.drop(columns=[name for name in given if name != response])
    frame = frame.assign(**{response: y.ravel()})
    return frame.iloc[np.argsort(trial.positions)]
