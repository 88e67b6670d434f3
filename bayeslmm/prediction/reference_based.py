"""Missing responses of a trial under reference-based assumptions.

After the last visit with a response, the mean of a subject is that of its own arm (MAR), that of
the reference arm (J2R), goes on from its own in parallel with that of the reference arm (CIR), or
stays where it was (LMCF); or the subject has had the law of the reference arm all along (CR).
Before that visit responses are missing at random. What is missing is normal given what was
observed.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, Literal, get_args

import numpy as np
from numpy.typing import NDArray

from bayeslmm.exceptions import DataError, listed
from bayeslmm.likelihood.blocks import batched_cholesky
from bayeslmm.prediction.trajectories import Laws, Trial, equal_rows, laws_of
from bayeslmm.sampling.joint_draws import JointDraws

Array = NDArray[np.float64]
Indices = NDArray[np.intp]
Flags = NDArray[np.bool_]

Strategy = Literal["MAR", "J2R", "CR", "CIR", "LMCF"]
STRATEGIES = get_args(Strategy)
ALIASES = {"JR": "J2R"}
"""Names that the R package rbmi has for some."""


def strategies_of(trial: Trial, strategy: str | Mapping[Any, str]) -> NDArray[np.object_]:
    """Strategy (N,) of each subject: that of all, or "MAR" where a mapping names others only.

    Raises
    ------
    ValueError
        If a strategy is unknown.
    DataError
        If a mapping names a subject that is not there, or LMCF has no mean to carry forward.
    """
    if isinstance(strategy, str):
        found = np.full(len(trial.subjects), _known(strategy), dtype=object)
    else:
        given = {label: _known(value) for label, value in strategy.items()}
        if lost := [label for label in given if label not in trial.subjects]:
            raise DataError(f"strategy: {listed(lost)} of {trial.names[0]} are not in the data.")
        found = np.array([given.get(label, "MAR") for label in trial.subjects], dtype=object)
    empty = (found == "LMCF") & trial.missing.all(axis=1)
    if empty.any():
        names = trial.subjects[empty].tolist()
        raise DataError(
            f"LMCF carries the mean at the last visit with a response forward, and {listed(names)} "
            f"of {trial.names[0]} have no response. Give them another strategy by a mapping, such "
            "as {subject: 'MAR'}."
        )
    return np.where(trial.late.any(axis=1), found, "MAR")


def _known(strategy: str) -> str:
    name = ALIASES.get(strategy, strategy)
    if name not in STRATEGIES:
        raise ValueError(f"strategy={strategy!r}: one of {', '.join(STRATEGIES)} is expected.")
    return name


def imputed_values(
    trial: Trial,
    joint: JointDraws,
    strategies: NDArray[np.object_],
    rng: np.random.Generator | None,
) -> Array:
    """Responses (S, N, T) completed for each draw of the parameters.

    Parameters
    ----------
    trial : Trial
    joint : JointDraws
        S draws.
    strategies : ndarray of str (N,)
    rng : numpy.random.Generator or None
        Source of randomness; None for the expectation of what is missing.
    """
    laws = laws_of(trial, joint, rng)
    result = np.broadcast_to(trial.y, laws.means[0].shape).copy()
    for subjects, mean, covariance in strategy_laws(trial, laws, strategies):
        lost = trial.missing[subjects[0]]
        if not lost.any():
            continue
        told = trial.y[subjects][:, ~lost] - mean[:, :, ~lost]
        expected, left = _given(covariance, told, lost)
        values = mean[:, :, lost] + expected
        if rng is not None:
            noise = rng.standard_normal(values.shape)
            values += np.einsum("sab,snb->sna", batched_cholesky(left), noise)
        result[:, subjects[:, None], np.flatnonzero(lost)] = values
    return result


def expected_responses(
    trial: Trial, joint: JointDraws, strategies: NDArray[np.object_]
) -> tuple[Array, Array]:
    """Means (S, N, T) of responses with the missing ones under a strategy, and in the reference.

    Over what subjects of the same arm and covariates would have had at the visits observed.
    """
    laws = laws_of(trial, joint, None)
    result = laws.means[0].copy()
    for subjects, mean, covariance in strategy_laws(trial, laws, strategies):
        lost = trial.missing[subjects[0]]
        told = (laws.means[0][:, subjects] - mean)[:, :, ~lost]
        expected = mean[:, :, lost] + _given(covariance, told, lost)[0]
        result[:, subjects[:, None], np.flatnonzero(lost)] = expected
    return result, laws.means[1]


def _given(covariance: Array, told: Array, lost: Flags) -> tuple[Array, Array]:
    """Expectation (S, n, m) of the deviations of what is missing given those (S, n, o) observed.

    Also the covariance (S, m, m) that is left.
    """
    across = covariance[:, ~lost][:, :, lost]
    gain = np.linalg.solve(covariance[:, ~lost][:, :, ~lost], across)
    left = covariance[:, lost][:, :, lost] - across.transpose(0, 2, 1) @ gain
    return told @ gain, left


def strategy_laws(
    trial: Trial, laws: Laws, strategies: NDArray[np.object_]
) -> Iterator[tuple[Indices, Array, Array]]:
    """Laws of the responses under the strategies, for subjects that have the same covariances.

    Yields
    ------
    (subjects, mean, covariance)
        Places (n,) of subjects with the same responses missing; (S, n, T); (S, T, T).
    """
    numbers = np.array([STRATEGIES.index(name) for name in strategies])
    for alike in laws.alike():
        own, reference = (laws.covariances(which, int(alike[0])) for which in (0, 1))
        for part in equal_rows(np.column_stack([trial.missing[alike], numbers[alike]])):
            subjects = alike[part]
            strategy, late = str(strategies[subjects[0]]), trial.late[subjects[0]]
            means = [mean[:, subjects] for mean in laws.means]
            mean = _mean(strategy, means[0], means[1], late)
            yield subjects, mean, _covariance(strategy, own, reference, late)


def _mean(strategy: str, own: Array, reference: Array, late: Flags) -> Array:
    """Means (S, n, T) under a strategy whose first deviation is at the first late visit."""
    if strategy == "MAR":
        return own
    if strategy == "CR" or (late.all() and strategy in ("J2R", "CIR")):
        return reference
    mean, last = own.copy(), int(late.argmax()) - 1
    if strategy == "J2R":
        mean[:, :, late] = reference[:, :, late]
    elif strategy == "CIR":
        step = own[:, :, last] - reference[:, :, last]
        mean[:, :, late] = reference[:, :, late] + step[:, :, None]
    else:
        mean[:, :, late] = own[:, :, last, None]
    return mean


def _covariance(strategy: str, own: Array, reference: Array, late: Flags) -> Array:
    """Covariances (S, T, T): for J2R and CIR the regression on the past is the reference arm's.

    Carpenter, Roger, Kenward (2013), section 4.2.
    """
    if strategy in ("MAR", "LMCF"):
        return own
    if strategy == "CR" or late.all() or np.array_equal(own, reference):
        return reference
    early = ~late
    past = own[:, early][:, :, early]
    slope = np.linalg.solve(reference[:, early][:, :, early], reference[:, early][:, :, late])
    result = own.copy()
    across = past @ slope
    rest = reference[:, late][:, :, late] - reference[:, late][:, :, early] @ slope
    before, after = np.flatnonzero(early), np.flatnonzero(late)
    result[:, before[:, None], after] = across
    result[:, after[:, None], before] = across.transpose(0, 2, 1)
    result[:, after[:, None], after] = rest + slope.transpose(0, 2, 1) @ across
    return result
