"""How far estimates with known sampling errors differ by more than these: a meta-analysis.

With W the inverse of the known covariance matrix V of n estimates, and X their p moderators,
``P = W - W X (X'WX)^-1 X'W``. Then ``Q = y'Py`` has n - p degrees of freedom where all estimates
with equal moderators are of one effect, and the typical sampling variance of some of the rows is
``tr(PV) / tr(P)``, the traces over these rows. I2 is the share of a variance of effects in the sum
of the variances of effects and the typical sampling variance, H the root of that sum over the
sampling variance.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import pandas as pd
import scipy.sparse as sp
from numpy.typing import NDArray
from scipy.special import chdtrc, stdtrit

from bayeslmm.checks.singularity import boundary_support
from bayeslmm.covariance.coordinates import Points
from bayeslmm.covariance.kinds import structure_of
from bayeslmm.data.design import Design
from bayeslmm.data.frames import plain_frame
from bayeslmm.data.random_factors import RandomFactor
from bayeslmm.estimation.estimate import Fit
from bayeslmm.estimation.model import Model
from bayeslmm.estimation.profile import profile_intervals
from bayeslmm.exceptions import DataError
from bayeslmm.sampling.joint_draws import JointDraws, point_draws
from bayeslmm.summaries.parameters import probability, random_parameters
from bayeslmm.summaries.posterior_tables import interval_defaults, summarise
from bayeslmm.summaries.text import Report, number
from bayeslmm.summaries.variance_explained import factor_variances

Array = NDArray[np.float64]
Indices = NDArray[np.intp]
Df = Literal["residual", "asymptotic"]

MOST_MODERATORS = 8
"""Combinations of moderators up to which each has a prediction interval unasked."""

COMPATIBLE = 0.15
"""Integrated likelihood at tau = 0 over its maximum: above it, zero is compatible with the data."""


@dataclass(frozen=True, slots=True, eq=False, repr=False, kw_only=True)
class Heterogeneity(Report):
    """How far estimates differ by more than their sampling errors; prints with words.

    Attributes
    ----------
    test : pandas.DataFrame
        One row, Q: `statistic`, `df` and `p_value` of the hypothesis that there is no
        heterogeneity (beside moderators).
    table : pandas.DataFrame
        ``tau[group, term]``, the standard deviation of the effects; ``I2[group, term]`` in percent;
        ``H[group, term]`` of a term that varies alone in its rows. Where several terms vary in the
        same rows, ``I2 total`` and ``H`` of their sum; these have the coefficient behind them
        (``I2 total[term]``), or ``[all rows]``, where terms differ in the rows that have them. Of
        an estimate the columns `estimate`, `conf_low`, `conf_high`; of a posterior mean, sd, median
        and interval.
    sampling : pandas.Series
        Typical sampling variance of the rows that each tau is of.
    prediction : pandas.DataFrame
        By combination of moderators: the mean of the effects and the interval in which the effect
        of a new unit (new level of every grouping factor) is expected. Empty where there are too
        many combinations and none was asked for.
    evidence : pandas.DataFrame or None
        Of a posterior, by tau: `support` of the data for tau = 0 (its integrated likelihood over
        the largest) and `bayes_factor` of tau = 0 against the model (NaN where the prior is
        improper).
    """

    test: pd.DataFrame
    table: pd.DataFrame
    sampling: pd.Series
    prediction: pd.DataFrame
    evidence: pd.DataFrame | None

    @property
    def heading(self) -> str:
        """First line of the printed form."""
        return "Heterogeneity of estimates with known sampling errors"

    @property
    def messages(self) -> tuple[str, ...]:
        """What the figures say."""
        return (*self._test_words(), *self._evidence_words(), *self._prediction_words())

    def _tables(self) -> Mapping[str, pd.DataFrame]:
        tables = {
            "Test of homogeneity": self.test,
            "Standard deviations of the effects (tau) and their share in percent (I2)": self.table,
            "A new unit": self.prediction,
        }
        return tables if self.evidence is None else tables | {"Evidence for tau = 0": self.evidence}

    def _test_words(self) -> tuple[str, ...]:
        statistic, df, p_value = self.test.iloc[0]
        more = "differ by more than" if p_value < 0.05 else "do not differ by more than"
        return (
            f"The estimates {more} their sampling errors explain at the 5 % level: Q = "
            f"{number(statistic)} on {df:g} degrees of freedom.",
        )

    def _evidence_words(self) -> tuple[str, ...]:
        if self.evidence is None:
            return ()
        said = []
        for label, row in self.evidence.iterrows():
            fits = "is compatible" if row["support"] > COMPATIBLE else "is not compatible"
            factor = row["bayes_factor"]
            words = f" (Bayes factor {number(factor)} for it)"
            if factor < 1.0:
                words = f" (Bayes factor {number(1.0 / factor) if factor else 'inf'} against it)"
            words = "" if np.isnan(factor) else words
            said.append(f"{label} = 0 {fits} with the data{words}.")
        return tuple(said)

    def _prediction_words(self) -> tuple[str, ...]:
        if len(self.prediction):
            return ()
        return (
            "The mean depends on moderators of many values: heterogeneity(at={...}) predicts a new "
            "unit at some.",
        )


# --- what is known of the sampling errors ----------------------------------------------


@dataclass(frozen=True, slots=True, eq=False)
class _Sampling:
    """Test of homogeneity, and the diagonals (n,) of PV and P."""

    statistic: float
    df: int
    in_units: Array
    precision: Array

    def typical(self, rows: Indices) -> float:
        """Typical sampling variance of some rows."""
        return float(self.in_units[rows].sum() / self.precision[rows].sum())

    @property
    def test(self) -> pd.DataFrame:
        p_value = float(chdtrc(self.df, self.statistic)) if self.df else np.nan
        values = {"statistic": [self.statistic], "df": [self.df], "p_value": [p_value]}
        return pd.DataFrame(values, index=pd.Index(["Q"], name="test"))


def _sampling(design: Design, points: Points) -> _Sampling:
    X, y = design.X, design.y - design.offset
    spec = design.spec.residual
    if spec is None or not spec.formula.known:
        raise DataError(
            "heterogeneity() is of estimates whose sampling errors are known: "
            'residual="se(column)", or residual="known(V | group)" with covariances=. Shares of '
            "the variance of other data are in icc() and variance_partition()."
        )
    precision = _precision(design, points)
    WX = np.asarray(precision @ X)
    inverse = np.linalg.inv(X.T @ WX) if design.p else np.zeros((0, 0))
    left = y - X @ (inverse @ (WX.T @ y))
    return _Sampling(
        statistic=float(left @ (precision @ left)),
        df=design.n - design.p,
        in_units=1.0 - np.sum((WX @ inverse) * X, axis=1),
        precision=precision.diagonal() - np.sum((WX @ inverse) * WX, axis=1),
    )


def _precision(design: Design, points: Points) -> sp.csr_array:
    """Inverse (n, n) of the sampling covariance matrix; at the mean of free correlations."""
    root = np.sqrt(design.row_weights)
    law = design.residual
    if law is None:
        return sp.csr_array(sp.diags_array(root**2))
    values = law.precision(points.shapes.mean(axis=0, keepdims=True))[0][0][law.entries.kinds]
    rows, cols = law.entries.rows, law.entries.cols
    lower = sp.csr_array((values * root[rows] * root[cols], (rows, cols)), shape=(design.n,) * 2)
    return sp.csr_array(lower + sp.tril(lower, -1).T)


# --- what varies -----------------------------------------------------------------------


@dataclass(frozen=True, slots=True, eq=False)
class _Varying:
    """Effects that vary: one coefficient on the rows that have it, or a whole grouping factor."""

    factor: int
    coef: int | None
    group: str
    name: str
    rows: Indices

    @property
    def label(self) -> str:
        """Its place in the names of quantities."""
        return f"{self.group}, {self.name}"

    def variances(self, design: Design, joint: JointDraws) -> tuple[Array, Array]:
        """Variances (S,) of these effects and of all effects, means over the rows."""
        every = factor_variances(design.take(self.rows), joint)
        own = every[:, self.factor]
        if self.coef is not None:
            own = np.sum(joint.roots[self.factor][:, self.coef] ** 2, axis=1)
        return own, every.sum(axis=1)


def _sources(design: Design) -> list[_Varying]:
    found = []
    for f, factor in enumerate(design.random):
        if _is_indicator(factor):
            for c, name in enumerate(factor.coefs):
                rows = np.flatnonzero(factor.Z[:, c])
                found.append(_Varying(f, c, factor.name, name, rows))
        else:
            name = f"mean of {' + '.join(factor.coefs)}"
            found.append(_Varying(f, None, factor.name, name, np.arange(design.n)))
    return found


def _is_indicator(factor: RandomFactor) -> bool:
    """Whether each row has one coefficient of one level, with covariate one."""
    if factor.pooled or factor.spec.divided or factor.relationship is not None:
        return False
    return bool(np.all((factor.Z == 0.0) | (factor.Z == 1.0)) and np.all(factor.Z.sum(axis=1) == 1))


@dataclass(frozen=True, slots=True, eq=False)
class _Shares:
    """Draws of the quantities of the table.

    Attributes
    ----------
    index : pandas.Index
        Their labels.
    values : ndarray (S, m)
    alone : list of bool
        Of each source: whether nothing else varies in its rows.
    """

    index: pd.Index
    values: Array
    alone: list[bool]


def _shares(
    design: Design, joint: JointDraws, sources: Sequence[_Varying], sampling: _Sampling
) -> _Shares:
    if not sources:
        ratio = sampling.statistic / sampling.df if sampling.df else np.nan
        values = [100.0 * max(0.0, 1.0 - 1.0 / ratio), np.sqrt(ratio)]
        return _Shares(_index(["I2", "H"]), np.tile(values, (joint.size, 1)), [])
    taus, shares, totals = {}, {}, {}
    varying = np.bincount(np.concatenate([source.rows for source in sources]), minlength=design.n)
    alone = [bool(np.all(varying[source.rows] == 1)) for source in sources]
    places = _places_of_rows(sources, design.n)
    for source, single, place in zip(sources, alone, places, strict=True):
        own, every = source.variances(design, joint)
        typical = sampling.typical(source.rows)
        taus[f"tau[{source.label}]"] = np.sqrt(own)
        shares[f"I2[{source.label}]"] = 100.0 * own / (every + typical)
        if not single:
            totals[f"I2 total{place}"] = 100.0 * every / (every + typical)
        named = f"H[{source.label}]" if single else f"H{place}"
        totals[named] = np.sqrt((every + typical) / typical)
    columns = taus | shares | totals
    return _Shares(_index(list(columns)), np.stack([*columns.values()], axis=1), alone)


def _places_of_rows(sources: Sequence[_Varying], n: int) -> list[str]:
    """What tells the rows of each source from those of others: nothing if all have the same."""
    keys = [source.rows.tobytes() for source in sources]
    if len(set(keys)) == 1:
        return [""] * len(sources)
    names: dict[bytes, set[str]] = {}
    for key, source in zip(keys, sources, strict=True):
        names.setdefault(key, set()).add("all rows" if len(source.rows) == n else source.name)
    return [f"[{' = '.join(sorted(names[key]))}]" for key in keys]


def _index(labels: Sequence[str]) -> pd.Index:
    return pd.Index(labels, name="quantity")


def _typical(sources: Sequence[_Varying], sampling: _Sampling, n: int) -> pd.Series:
    if not sources:
        labels, values = ["all rows"], [sampling.typical(np.arange(n))]
    else:
        labels = [f"tau[{source.label}]" for source in sources]
        values = [sampling.typical(source.rows) for source in sources]
    return pd.Series(values, index=_index(labels), name="sampling_variance")


# --- new units -------------------------------------------------------------------------


def _new_units(design: Design, at: Any) -> tuple[Design, pd.Index]:
    """Rows of new units, and their labels; none where there are too many."""
    if at is not None:
        rows = design.spec.rows(at, random="covariates")
        return rows, _labels(plain_frame(at, list(rows.data.columns)), rows.n)
    columns = np.hstack([design.X, *(factor.Z for factor in design.random)])
    first = np.sort(np.unique(columns, axis=0, return_index=True)[1])
    if len(first) > MOST_MODERATORS:
        first = first[:0]
    names = sorted(design.formula.predictors(groups=False) & set(design.data.columns))
    return design.take(first), _labels(design.data[names].iloc[first], len(first))


def _labels(frame: pd.DataFrame, n: int) -> pd.Index:
    if not len(frame.columns):
        return pd.Index(["mean"] * n, name="at")
    if len(frame.columns) == 1:
        return pd.Index(frame.iloc[:, 0].to_numpy(), name=frame.columns[0])
    return pd.MultiIndex.from_frame(frame)


def _new_variances(rows: Design, joint: JointDraws) -> Array:
    """Variances (S, m) of the effects of new units around their mean."""
    total = np.zeros((joint.size, rows.n))
    for factor, root in zip(rows.random, joint.roots, strict=True):
        total += np.sum((factor.Z @ root) ** 2, axis=2)
    return total


def _predicted_estimate(
    rows: Design, labels: pd.Index, fit: Fit, joint: JointDraws, level: float, df: float
) -> pd.DataFrame:
    variances = _new_variances(rows, joint)[0]
    error = np.sqrt(np.einsum("ni,ij,nj->n", rows.X, fit.vcov, rows.X))
    mean = rows.offset + rows.X @ fit.beta
    margin = -stdtrit(df, 0.5 * (1.0 - level)) * np.sqrt(error**2 + variances)
    columns = {
        "estimate": mean,
        "std_error": error,
        "sd": np.sqrt(variances),
        "pred_low": mean - margin,
        "pred_high": mean + margin,
    }
    return pd.DataFrame(columns, index=labels)


def _predicted_posterior(
    rows: Design, labels: pd.Index, joint: JointDraws, prob: float, kind: str, seed: Any
) -> pd.DataFrame:
    noise = np.random.default_rng(seed).standard_normal((joint.size, rows.n))
    mean = rows.offset + joint.beta @ rows.X.T
    return summarise(mean + noise * np.sqrt(_new_variances(rows, joint)), labels, prob, kind)


# --- of an estimate, of a posterior ----------------------------------------------------


def estimate_heterogeneity(
    design: Design,
    fit: Fit,
    modes: Sequence[Array],
    *,
    level: float = 0.95,
    at: Any = None,
    df: Df | float = "residual",
) -> Heterogeneity:
    """Heterogeneity at an estimate.

    Parameters
    ----------
    design : Design
        The design of the model.
    fit : Fit
        Its estimate.
    modes : sequence of ndarray (J, k)
        Conditional modes of the random effects.
    level : float
        Coverage of the intervals.
    at : data frame or mapping, optional
        Moderators of new units.
    df : {"residual", "asymptotic"} or float
        Degrees of freedom of the t distribution of prediction intervals.

    Returns
    -------
    Heterogeneity
    """
    level = probability(level, "level")
    joint = point_draws(fit, modes)
    sampling = _sampling(design, joint.points)
    sources = _sources(design)
    shares = _shares(design, joint, sources, sampling)
    table = pd.DataFrame({"estimate": shares.values[0]}, index=shares.index)
    table["conf_low"], table["conf_high"] = np.nan, np.nan
    limits = _tau_limits(design, fit, level) if sources else {}
    for source, alone in zip(sources, shares.alone, strict=True):
        found = limits.get((source.factor, source.coef))
        if found is None:
            continue
        both, columns = np.array(found), ["conf_low", "conf_high"]
        table.loc[f"tau[{source.label}]", columns] = both
        if alone:
            typical = sampling.typical(source.rows)
            table.loc[f"I2[{source.label}]", columns] = 100.0 * both**2 / (both**2 + typical)
            table.loc[f"H[{source.label}]", columns] = np.sqrt(1.0 + both**2 / typical)
    rows, labels = _new_units(design, at)
    size = _degrees(df, sampling.df)
    return Heterogeneity(
        test=sampling.test,
        table=table,
        sampling=_typical(sources, sampling, design.n),
        prediction=_predicted_estimate(rows, labels, fit, joint, level, size),
        evidence=None,
    )


def _degrees(df: Df | float, residual: int) -> float:
    named = {"residual": float(residual), "asymptotic": float("inf")}
    if isinstance(df, str) and df in named:
        return named[df]
    if isinstance(df, str | bool) or not df > 0:
        raise ValueError(f"df={df!r}: 'residual', 'asymptotic' or a positive number is expected.")
    return float(df)


def _tau_limits(
    design: Design, fit: Fit, level: float
) -> dict[tuple[int, int | None], tuple[float, float]]:
    """Profile limits of the standard deviations that are free, by grouping factor and coefficient.

    None of a MAP estimate, whose criterion is no likelihood.
    """
    if fit.method == "MAP":
        return {}
    found: dict[tuple[int, int | None], tuple[float, float]] = {}
    for one in profile_intervals(fit, level=level, kinds=["sd"]):
        assert one.factor is not None
        places = structure_of(design.random[one.factor]).sd_places
        for coef in np.flatnonzero(places == places[one.coefs[0]]).tolist():
            found[one.factor, coef] = (one.lower, one.upper)
    return found


def posterior_heterogeneity(
    model: Model,
    joint: JointDraws,
    *,
    prob: float | None = None,
    at: Any = None,
    random_seed: int | np.random.Generator | None = None,
) -> Heterogeneity:
    """Heterogeneity over posterior draws.

    Parameters
    ----------
    model : Model
        The model.
    joint : JointDraws
        Draws from its posterior.
    prob : float, optional
        Probability of the intervals.
    at : data frame or mapping, optional
        Moderators of new units.
    random_seed : int or numpy.random.Generator, optional
        Seed of the effects of new units.

    Returns
    -------
    Heterogeneity
    """
    prob, kind = interval_defaults(prob)
    design = model.design
    sampling = _sampling(design, joint.points)
    sources = _sources(design)
    shares = _shares(design, joint, sources, sampling)
    rows, labels = _new_units(design, at)
    return Heterogeneity(
        test=sampling.test,
        table=summarise(shares.values, shares.index, prob, kind),
        sampling=_typical(sources, sampling, design.n),
        prediction=_predicted_posterior(rows, labels, joint, prob, kind, random_seed),
        evidence=_evidence(model, joint) if sources else None,
    )


def _evidence(model: Model, joint: JointDraws) -> pd.DataFrame:
    records, labels = [], []
    for row in random_parameters(model.design):
        if row.kind != "sd":
            continue
        found = boundary_support(model.system, model.priors, joint, row)
        labels.append(f"tau{row.label.removeprefix('sd')}")
        records.append({"support": found.relative, "bayes_factor": found.bayes_factor})
    return pd.DataFrame(records, index=_index(labels))
