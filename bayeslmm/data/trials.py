"""Data frames of trials: a row for every visit, and the baseline as a response."""

from __future__ import annotations

from typing import Any

import pandas as pd

from bayeslmm.data.frames import to_frame
from bayeslmm.exceptions import DataError, listed


def expand_visits(data: Any, *, subject: str, visit: str) -> pd.DataFrame:
    """Add the rows that are not there, so that every subject has one at every visit.

    Parameters
    ----------
    data : data frame or mapping
        A row per subject and visit.
    subject, visit : str
        Columns. Visits are those that occur, in the order of their categories or numbers.

    Returns
    -------
    pandas.DataFrame
        Rows by subject and visit, numbered anew. Columns that are constant within every subject,
        such as arm and baseline, have their value in added rows too; all others are missing there.

    Raises
    ------
    DataError
        If a column is absent, a subject or visit is missing, or a visit stands twice.

    References
    ----------
    R's ``rbmi::expand_locf``, which carries the last value forward instead.

    Examples
    --------
    >>> import bayeslmm as blm
    >>> seen = blm.load_dataset("fev").dropna(subset="FEV1")
    >>> len(seen), len(blm.expand_visits(seen, subject="USUBJID", visit="AVISIT"))
    (537, 788)
    """
    frame = to_frame(data).copy()
    _check(frame, [subject, visit])
    _check_once(frame, [subject, visit])
    subjects = pd.unique(frame[subject])
    dtypes = frame.dtypes
    visits = pd.factorize(frame[visit], sort=True)[1]
    grid = pd.MultiIndex.from_product([subjects, visits], names=[subject, visit])
    groups = frame.groupby(subject, observed=True, sort=False)
    constant = frame.columns.difference([subject, visit, *_varying(frame, subject)], sort=False)
    full = frame.set_index([subject, visit]).reindex(grid).reset_index()
    for name in constant:
        values = groups[name].first()
        full[name] = pd.Series(full[subject].map(values), index=full.index)
    for name in (subject, visit, *constant):
        full[name] = full[name].astype(dtypes[name])
    return full[list(frame.columns)]


def clda(
    data: Any,
    *,
    response: str,
    baseline: str,
    subject: str,
    visit: str,
    arm: str,
    reference: Any,
    baseline_visit: str = "baseline",
) -> pd.DataFrame:
    """Make the baseline a response, for constrained longitudinal data analysis (cLDA).

    Subjects whose baseline or all of whose later responses are missing then count with what they
    have, and no covariate is left to be missing.

    Parameters
    ----------
    data : data frame or mapping
        A row per subject and visit, with the baseline of the subject in each.
    response, baseline, subject, visit, arm : str
        Columns.
    reference : object
        The reference arm.
    baseline_visit : str
        What the visit of the baseline is to be called.

    Returns
    -------
    pandas.DataFrame
        A row more per subject, first of its rows, with the baseline as its response. `visit` is
        categorical with `baseline_visit` first. A further column, ``<arm>_cLDA``, is the arm, but
        the reference arm for everyone at baseline, so that the fixed effects
        ``visit + visit:arm_cLDA`` have one mean at baseline, as randomisation says, and a
        difference from the reference at each visit. The column `baseline` is not there any more.

    Raises
    ------
    DataError
        If a column is absent, or a subject has several baselines or arms, or a visit twice.

    Notes
    -----
    With an unstructured residual matrix and every baseline observed, the differences by maximum
    likelihood are those of the model with the baseline as a covariate by visit, whichever later
    responses are missing.

    References
    ----------
    Liang, Zeger (2000), Sankhya B 62, 134-148; Lu (2010), doi:10.1111/j.1541-0420.2009.01332.x.

    Examples
    --------
    >>> import bayeslmm as blm
    >>> columns = dict(subject="USUBJID", visit="AVISIT", arm="ARMCD", reference="PBO")
    >>> fev = blm.clda(
    ...     blm.load_dataset("fev"), response="FEV1", baseline="FEV1_BL", **columns
    ... )
    >>> trial = blm.LMM("FEV1 ~ AVISIT + AVISIT:ARMCD_cLDA", fev, residual="us(AVISIT | USUBJID)")
    >>> print(trial.reml().beta.round(1).iloc[-1])
    5.0
    """
    frame = to_frame(data).copy()
    _check(frame, [subject, visit, arm], [response, baseline])
    _check_once(frame, [subject, visit])
    groups = frame.groupby(subject, observed=True, sort=False)
    for name in (baseline, arm):
        several = groups[name].nunique(dropna=False) > 1
        if several.any():
            raise DataError(
                f"`{name}` must be constant within a subject, and is not in {subject} "
                f"{listed(several.index[several].tolist())}."
            )
    arms, visits = frame[arm], pd.factorize(frame[visit], sort=True)[1].tolist()
    if reference not in pd.unique(arms).tolist():
        raise DataError(
            f"reference={reference!r} is none of the arms: {listed(pd.unique(arms).tolist())}."
        )
    if baseline_visit in visits or f"{arm}_cLDA" in frame.columns:
        raise DataError(
            f"The data have a visit `{baseline_visit}` or a column `{arm}_cLDA` already: the first "
            "is named by baseline_visit=."
        )
    first = frame[~frame[subject].duplicated()].copy()
    for name in _varying(frame, subject):
        first[name] = pd.Series(index=first.index, dtype=frame[name].dtype)
    first[response] = first[baseline]
    labels = [baseline_visit, *map(str, visits)]
    first[visit] = pd.Categorical([baseline_visit] * len(first), categories=labels)
    frame[visit] = pd.Categorical(frame[visit].map(str), categories=labels)
    both = pd.concat([first, frame], ignore_index=True)
    constrained = both[arm].astype(object).where(both[visit] != baseline_visit, reference)
    both[f"{arm}_cLDA"] = constrained.astype(arms.dtype)
    codes = pd.factorize(both[subject])[0]
    order = pd.DataFrame({"subject": codes, "visit": both[visit].cat.codes})
    order = order.sort_values(["subject", "visit"], kind="stable").index
    return both.loc[order].reset_index(drop=True).drop(columns=baseline)


def _varying(frame: pd.DataFrame, subject: str) -> list[str]:
    """Columns that are not constant within every subject."""
    counts = frame.groupby(subject, observed=True, sort=False).nunique(dropna=False)
    return [str(name) for name in counts.columns[(counts > 1).any()]]


def _check(frame: pd.DataFrame, complete: list[str], others: list[str] | None = None) -> None:
    """Refuse absent columns, and missing values in some."""
    names = [*complete, *(others or [])]
    if lost := [name for name in names if name not in frame.columns]:
        raise DataError(
            f"{listed(lost)}: no column of the data, which have {listed(list(frame.columns))}."
        )
    for name in complete:
        if frame[name].isna().any():
            raise DataError(f"`{name}` is missing in {int(frame[name].isna().sum())} rows.")


def _check_once(frame: pd.DataFrame, names: list[str]) -> None:
    """Refuse a visit that stands twice."""
    twice = frame.duplicated(names)
    if twice.any():
        where = frame.loc[twice, names].iloc[0].tolist()
        raise DataError(
            f"`{where[0]}` of {names[0]} has several rows at `{where[1]}` of {names[1]}: one is "
            "expected."
        )
