"""Completed data of a trial, their analyses, and effects of arms under the same assumptions."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, override

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from scipy.stats import t as student

from bayeslmm.data.building import build_design
from bayeslmm.exceptions import DataError, listed
from bayeslmm.formula.grammar import parse
from bayeslmm.prediction.reference_based import (
    Strategy,
    expected_responses,
    imputed_values,
    strategies_of,
)
from bayeslmm.prediction.trajectories import Trial, with_response
from bayeslmm.sampling.joint_draws import JointDraws
from bayeslmm.summaries.parameters import probability, whole_number
from bayeslmm.summaries.posterior_tables import summarise
from bayeslmm.summaries.text import Report

if TYPE_CHECKING:
    import xarray as xr

Array = NDArray[np.float64]
Indices = NDArray[np.intp]
Analysis = str | Callable[[pd.DataFrame], Any]

RESPONSE = "imputed_response"
"""Name of the response while the columns of an analysis are made."""


@dataclass(frozen=True, slots=True, eq=False, kw_only=True, repr=False)
class Imputations(Report):
    """Completed data of a trial, one for each of some posterior draws.

    Made by :meth:`bayeslmm.Posterior.impute`.

    Attributes
    ----------
    trial : Trial
        The data as subjects by visits.
    strategies : ndarray of str (N,)
        What is assumed of each subject after its last visit with a response.
    values : ndarray (n, N, T)
        Responses, those that are missing imputed.
    """

    trial: Trial
    strategies: NDArray[np.object_]
    values: Array

    @property
    def n(self) -> int:
        """Number of completed data sets."""
        return len(self.values)

    @property
    def rows(self) -> pd.DataFrame:
        """What was imputed: subject, visit and arm, whether after the last response, and how."""
        trial = self.trial
        i, t = np.nonzero(trial.missing)
        subject, visit, arm = trial.names[:3]
        columns = {
            subject: trial.subjects[i],
            visit: trial.visits[t],
            arm: trial.arms[i],
            "late": trial.late[i, t],
            "strategy": np.where(trial.late[i, t], self.strategies[i], "MAR"),
        }
        return pd.DataFrame(columns)

    def frames(self) -> Iterator[pd.DataFrame]:
        """The completed data sets one after another.

        Yields
        ------
        pandas.DataFrame
            The variables of the model, in the order of its data, without a missing response. A
            response that the formula transforms has the name that it has there, ``"log(y)"``.
        """
        for values in self.values:
            yield with_response(self.trial, values)

    def shift(
        self, delta: float | Mapping[Any, float | Sequence[float]], *, intermittent: bool = False
    ) -> Imputations:
        """Add something to what was imputed, as in a tipping-point analysis.

        Parameters
        ----------
        delta : float or mapping
            What is added, in units of the response: in all arms, or by arm; a number or one for
            each visit.
        intermittent : bool
            Whether to add it to responses too that are missing before the last one observed.

        Returns
        -------
        Imputations

        Raises
        ------
        DataError
            If there is no such arm.
        ValueError
            If there are not as many numbers as visits.

        References
        ----------
        R's ``rbmi::delta_template``.
        """
        trial = self.trial
        arms = pd.unique(trial.arms).tolist()
        by_arm = delta if isinstance(delta, Mapping) else dict.fromkeys(arms, delta)
        if lost := [arm for arm in by_arm if arm not in arms]:
            raise DataError(f"delta: {listed(lost)} is no arm; there are {listed(arms)}.")
        added = np.zeros(trial.y.shape)
        for arm, value in by_arm.items():
            numbers = np.asarray(value, dtype=np.float64)
            if numbers.shape not in ((), (len(trial.visits),)) or not np.isfinite(numbers).all():
                raise ValueError(
                    f"delta: a finite number or {len(trial.visits)} of them, one for each visit, "
                    f"are expected for arm {arm!r}."
                )
            added[trial.arms == arm] = numbers
        where = trial.missing if intermittent else trial.late
        return replace(self, values=self.values + np.where(where, added, 0.0))

    def analyse(self, analysis: Analysis, *, at: Any = None) -> Analyses:
        """Analyse each completed data set.

        Parameters
        ----------
        analysis : str or callable
            A formula without random effects, such as ``"FEV1 ~ ARMCD + FEV1_BL"``, fitted by least
            squares at each visit (ANCOVA), with the weights of the model if it has any: means of
            the arms, averaged over the covariates of all subjects, and differences from the
            reference. Or a function that takes a completed data frame and returns a table with
            columns `estimate`, `std_error` and, where they are finite, `df`, or what has such a
            ``.table()``.
        at : label or sequence of labels, optional
            Visits; by default all at which arms differ. Of a formula only.

        Returns
        -------
        Analyses
            ``.pool()`` combines them.

        Raises
        ------
        DataError
            If the formula has another response, no arm, or random effects, or a visit is unknown.
        TypeError
            If a function returns something else.
        """
        if callable(analysis):
            if at is not None:
                raise ValueError("at= is for a formula; a function chooses its rows itself.")
            return _by_function(self, analysis)
        visits = _visits(self.trial, at)
        parts = [_least_squares(self, analysis, t) for t in visits]
        labels = [
            (self.trial.visits[t], name)
            for t, part in zip(visits, parts, strict=True)
            for name in part[0]
        ]
        index = pd.MultiIndex.from_tuples(labels, names=[self.trial.names[1], "quantity"])
        return Analyses(
            index=index,
            estimates=np.concatenate([part[1] for part in parts], axis=1),
            std_errors=np.concatenate([part[2] for part in parts], axis=1),
            df=np.concatenate([part[3] for part in parts]),
        )

    @property
    @override
    def heading(self) -> str:
        trial = self.trial
        return (
            f"{self.n} completed data sets: {int(trial.missing.sum())} of {trial.y.size} responses "
            f"imputed, {int(trial.late.sum())} of them after the last one observed"
        )

    @property
    @override
    def messages(self) -> tuple[str, ...]:
        return ()

    @override
    def _tables(self) -> Mapping[str, pd.DataFrame]:
        subject, _, arm = self.trial.names[:3]
        counts = self.rows.groupby([arm, "strategy"], observed=True)[subject].agg(
            ["nunique", "size"]
        )
        counts.columns = pd.Index(["subjects", "responses"])
        return {"What was imputed": counts.reset_index()}


@dataclass(frozen=True, slots=True, eq=False, kw_only=True, repr=False)
class Analyses(Report):
    """Estimates of K quantities in n completed data sets.

    Attributes
    ----------
    index : pandas.Index
        What they are.
    estimates, std_errors : ndarray (n, K)
    df : ndarray (K,)
        Degrees of freedom of the analysis of complete data.
    """

    index: pd.Index
    estimates: Array
    std_errors: Array
    df: Array

    def pool(self, level: float = 0.95) -> pd.DataFrame:
        """Combine the analyses by Rubin's rules.

        Parameters
        ----------
        level : float
            Coverage of the intervals.

        Returns
        -------
        pandas.DataFrame
            estimate, std_error, df (Barnard and Rubin's), statistic, p_value, conf_low, conf_high
            and fmi, the fraction of missing information.

        Raises
        ------
        ValueError
            If `level` is not between 0 and 1.

        Notes
        -----
        Under reference-based assumptions this standard error is as large as if the information lost
        were lost under MAR ("information-anchored"), and larger than the spread of the estimate
        over repeated trials, of which :meth:`bayeslmm.Posterior.reference_based_effect` is the
        Bayesian counterpart.

        References
        ----------
        Rubin (1987), doi:10.1002/9780470316696; Barnard, Rubin (1999),
        doi:10.1093/biomet/86.4.948; Cro, Carpenter, Kenward (2019), doi:10.1111/rssa.12423.
        """
        level = probability(level, "level")
        n = len(self.estimates)
        estimate = self.estimates.mean(axis=0)
        within = np.mean(self.std_errors**2, axis=0)
        between = self.estimates.var(axis=0, ddof=1)
        added = (1.0 + 1.0 / n) * between
        total = within + added
        error, df = np.sqrt(total), pooled_df(self.df, added / total, n)
        with np.errstate(divide="ignore", invalid="ignore"):
            statistic, increase = estimate / error, added / within
        margin = student.ppf(0.5 + level / 2.0, df) * error
        columns = {
            "estimate": estimate,
            "std_error": error,
            "df": df,
            "statistic": statistic,
            "p_value": 2.0 * student.sf(np.abs(statistic), df),
            "conf_low": estimate - margin,
            "conf_high": estimate + margin,
            "fmi": (increase + 2.0 / (df + 3.0)) / (increase + 1.0),
        }
        return pd.DataFrame(columns, index=self.index)

    @property
    @override
    def heading(self) -> str:
        return f"{len(self.estimates)} analyses of completed data, combined by Rubin's rules"

    @property
    @override
    def messages(self) -> tuple[str, ...]:
        return ()

    @override
    def _tables(self) -> Mapping[str, pd.DataFrame]:
        return {"Pooled estimates": self.pool()}


def pooled_df(complete: Array, share: Array, n: int) -> Array:
    """Barnard and Rubin's degrees of freedom.

    Parameters
    ----------
    complete : ndarray (K,)
        Those of complete data; infinite in large samples.
    share : ndarray (K,)
        Share of the variance between data sets in the total.
    n : int
        Number of data sets.
    """
    with np.errstate(divide="ignore", invalid="ignore"):
        old = (n - 1.0) / share**2
        observed = (complete + 1.0) / (complete + 3.0) * complete * (1.0 - share)
        observed = np.where(np.isinf(complete), np.inf, observed)
        return np.asarray(1.0 / (1.0 / old + 1.0 / observed))


# --- analyses of completed data ------------------------------------------------------


def _visits(trial: Trial, at: Any) -> list[int]:
    """Places of visits by their labels; by default of those at which arms differ."""
    labels = trial.visits.tolist()
    if at is None:
        arm = trial.frame[trial.names[2]].to_numpy(dtype=object).reshape(trial.y.shape)
        return [t for t in range(len(labels)) if len(pd.unique(arm[:, t])) > 1]
    wanted = list(at) if pd.api.types.is_list_like(at) else [at]
    if lost := [label for label in wanted if label not in labels]:
        raise DataError(f"at: {listed(lost)} is no visit; there are {listed(labels)}.")
    return [labels.index(label) for label in wanted]


def _least_squares(made: Imputations, source: str, t: int) -> tuple[list[Any], Array, Array, Array]:
    """Names, estimates (n, K), standard errors (n, K) and df (K,) of means and differences."""
    trial, read = made.trial, parse(source)
    arm, visits = trial.names[2], len(trial.visits)
    if read.random:
        raise DataError(
            f"`{source}` has random effects. Give a function of a completed data frame that fits "
            "the model and returns a table of estimates."
        )
    if read.response != trial.design.response:
        raise DataError(f"The response that was imputed is {trial.design.response}.")
    if arm not in read.right.variables:
        raise DataError(f"`{source}` does not have the arm, `{arm}`.")
    frame = trial.frame.iloc[t::visits]
    zeros = frame.assign(**{RESPONSE: np.arange(len(frame), dtype=np.float64)})
    design = build_design(f"{RESPONSE} ~ {source.split('~', 1)[1]}", zeros)
    root = np.ones(design.n) if trial.weights is None else np.sqrt(trial.weights[t::visits])
    X, df = design.X * root[:, None], design.n - design.p
    if df < 1:
        raise DataError(f"`{source}` has {design.p} coefficients for {design.n} subjects.")
    y = (made.values[:, :, t] - design.offset) * root
    inverse = np.linalg.inv(X.T @ X)
    beta = y @ X @ inverse
    variance = np.sum((y - beta @ X.T) ** 2, axis=1) / df
    names, weights = _of_arms(trial, design, zeros)
    scale = np.sqrt(np.einsum("kp,pq,kq->k", weights, inverse, weights))
    constant = np.array([design.offset.mean() if name in trial.arms else 0.0 for name in names])
    errors = np.sqrt(variance)[:, None] * scale
    return names, beta @ weights.T + constant, errors, np.full(len(names), float(df))


def _of_arms(trial: Trial, design: Any, frame: pd.DataFrame) -> tuple[list[Any], Array]:
    """Weights (K, p) of the mean of each arm, and of its difference from the reference."""
    arm, reference = trial.names[2], trial.reference
    others = [label for label in _in_order(trial) if label != reference]
    means = {}
    for label in (reference, *others):
        column = pd.Series(np.full(len(frame), label, dtype=object), index=frame.index)
        everyone = frame.assign(**{arm: column.astype(frame[arm].dtype)})
        means[label] = design.spec.rows(everyone).X.mean(axis=0)
    names = [*means, *(f"{label} - {reference}" for label in others)]
    differences = [means[label] - means[reference] for label in others]
    return names, np.array([*means.values(), *differences])


def _in_order(trial: Trial) -> list[Any]:
    """Arms in the order of their categories."""
    column = pd.Series(trial.arms).astype(trial.frame[trial.names[2]].dtype)
    return list(pd.factorize(column, sort=True)[1])


def _by_function(made: Imputations, function: Callable[[pd.DataFrame], Any]) -> Analyses:
    """Tables that a function returns for each completed data frame, side by side."""
    tables: list[pd.DataFrame] = []
    for frame in made.frames():
        found = function(frame)
        table = (
            found if isinstance(found, pd.DataFrame) else getattr(found, "table", lambda: None)()
        )
        if not isinstance(table, pd.DataFrame) or not {"estimate", "std_error"} <= {*table.columns}:
            raise TypeError(
                f"The analysis returned {type(found).__name__}: a table with columns estimate, "
                "std_error and df, or what has such a .table(), is expected."
            )
        if tables and not table.index.equals(tables[0].index):
            raise DataError("The analysis returned different rows for different data sets.")
        tables.append(table)
    df = [t["df"].to_numpy(float) if "df" in t else np.full(len(t), np.inf) for t in tables]
    return Analyses(
        index=tables[0].index,
        estimates=np.array([table["estimate"].to_numpy(float) for table in tables]),
        std_errors=np.array([table["std_error"].to_numpy(float) for table in tables]),
        df=np.mean(df, axis=0),
    )


# --- from draws ------------------------------------------------------------------------


def impute(
    trial: Trial,
    joint: JointDraws,
    strategy: Strategy | Mapping[Any, Strategy],
    n: int,
    rng: np.random.Generator,
) -> Imputations:
    """Complete the data of a trial n times.

    Raises
    ------
    ValueError
        If there are fewer draws than that.
    """
    n = whole_number(n, "n", 2)
    if n > joint.size:
        raise ValueError(f"n={n}: the posterior has {joint.size} draws, one for each data set.")
    strategies = strategies_of(trial, strategy)
    values = imputed_values(trial, joint.thin(n), strategies, rng)
    return Imputations(trial=trial, strategies=strategies, values=values)


@dataclass(frozen=True, slots=True, eq=False, kw_only=True, repr=False)
class ArmEffects(Report):
    """Posterior of the differences of arms from the reference under assumptions about the missing.

    Made by :meth:`bayeslmm.Posterior.reference_based_effect`.

    Attributes
    ----------
    index : pandas.MultiIndex
        Visit and difference.
    values : ndarray (S, K)
        Draws.
    shape : tuple of int
        Chains and draws per chain.
    """

    index: pd.MultiIndex
    values: Array
    shape: tuple[int, int]

    @property
    def draws(self) -> xr.DataArray:
        """Draws with dimensions chain, draw and quantity, for ArviZ."""
        import xarray as xr

        coords = {"quantity": [f"{visit} {name}" for visit, name in self.index]}
        values = self.values.reshape(*self.shape, -1)
        return xr.DataArray(values, dims=("chain", "draw", "quantity"), coords=coords, name="value")

    def table(self, prob: float | None = None) -> pd.DataFrame:
        """Mean, sd, median and interval of each."""
        return summarise(self.values, self.index, prob)

    @property
    @override
    def heading(self) -> str:
        return "Differences from the reference arm"

    @property
    @override
    def messages(self) -> tuple[str, ...]:
        return ()

    @override
    def _tables(self) -> Mapping[str, pd.DataFrame]:
        return {"Posterior": self.table()}


def arm_effects(
    trial: Trial,
    joint: JointDraws,
    strategy: Strategy | Mapping[Any, Strategy],
    at: Any,
    rng: np.random.Generator,
) -> ArmEffects:
    """Posterior of the differences of arms; see :meth:`bayeslmm.Posterior.reference_based_effect`.

    How often subjects of an arm leave, and with which covariates, is uncertain too: subjects have
    Dirichlet weights, as in the Bayesian bootstrap.
    """
    visits = _visits(trial, at)
    expected, reference = expected_responses(trial, joint, strategies_of(trial, strategy))
    excess = (expected - reference)[:, :, visits]
    means = {}
    for arm in _in_order(trial):
        own = np.flatnonzero(trial.arms == arm)
        weights = rng.standard_exponential((joint.size, len(own)))
        weights /= weights.sum(axis=1, keepdims=True)
        means[arm] = np.einsum("si,sit->st", weights, excess[:, own])
    base = means.pop(trial.reference)
    names = [f"{arm} - {trial.reference}" for arm in means]
    index = pd.MultiIndex.from_product(
        [trial.visits[visits], names], names=[trial.names[1], "quantity"]
    )
    values = np.stack([mean - base for mean in means.values()], axis=2)
    return ArmEffects(index=index, values=values.reshape(joint.size, -1), shape=joint.shape)
