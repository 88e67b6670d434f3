"""Power of tests: what the simulated data sets of a study say of it, and the size it takes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from scipy import stats

from bayeslmm.exceptions import DataError
from bayeslmm.planning.outcomes import Plans, proportion
from bayeslmm.planning.refits import FIGURES
from bayeslmm.summaries import text
from bayeslmm.summaries.parameters import probability

if TYPE_CHECKING:
    from arviz_plots import PlotCollection

Array = NDArray[np.float64]


@dataclass(frozen=True, eq=False, repr=False, kw_only=True)
class Power:
    """Power of tests in a planned study, by simulation; prints as a table.

    Made by :meth:`bayeslmm.Study.power` and :meth:`bayeslmm.Study.power_curve`.

    Attributes
    ----------
    plans : Plans
        The simulations.
    alpha : float
        Level of the tests.

    Notes
    -----
    Power is the share of all data sets in which the test rejects; one whose analysis fails rejects
    nothing. Its error is that of the number of simulations: the interval is the exact one of
    Clopper and Pearson.

    References
    ----------
    Green, MacLeod (2016), doi:10.1111/2041-210X.12504 (``simr``); Gelman, Carlin (2014),
    doi:10.1177/1745691614551642 for errors of type S and M.

    Examples
    --------
    >>> import bayeslmm as blm
    >>> design = blm.simulate_design({"g": 8, "x": range(4)})
    >>> truth = {"x": 0.5, "sd[g]": 1.0, "sigma": 1.0}
    >>> study = blm.LMM.planned("y ~ x + (1 | g)", design, truth)
    >>> power = study.power("x", n=20, random_seed=1, progressbar=False)
    >>> power.table().columns.tolist()[:3]
    ['power', 'conf_low', 'conf_high']
    """

    plans: Plans
    alpha: float

    def table(self, level: float = 0.95) -> pd.DataFrame:
        """Power and its Monte Carlo error.

        Parameters
        ----------
        level : float
            Coverage of the interval of the power.

        Returns
        -------
        pandas.DataFrame
            One row per effect, or per size and effect. Columns: power, conf_low and conf_high; n,
            the number of simulations; failed and singular, the number of fits that failed, and of
            those at a boundary; truth, the mean of the true values; estimate, the mean of the
            estimates; type_s, the share of significant estimates of the wrong sign; type_m, the
            mean of the ratio of significant estimates to the truth, without signs; coverage, of the
            1 - alpha intervals. NaN where a figure is not defined: of terms, of a truth of zero, or
            without a significant estimate.
        """
        level = probability(level, "level")
        rows = []
        for outcome, place in self.plans.pairs():
            values, truth = outcome.values[:, place], outcome.truth[:, place]
            found = proportion(int(np.sum(values[:, 3] < self.alpha)), outcome.size, level)
            row: dict[str, Any] = {"power": found.pop("share"), **found, "n": outcome.size}
            row |= {"failed": len(outcome.failures), "singular": int(outcome.singular.sum())}
            rows.append(row | _errors(values, truth, self.alpha))
        return pd.DataFrame(rows, index=self.plans.index())

    def runs(self) -> pd.DataFrame:
        """Each data set: truth, estimate, std_error, df and p_value, one row per effect."""
        return self.plans.runs(FIGURES)

    @property
    def power(self) -> pd.Series:
        """Share of data sets in which the test rejects."""
        return self.table()["power"]

    def sample_size(
        self, power: float = 0.8, effect: str | None = None, *, level: float = 0.95
    ) -> SampleSize:
        """Size at which a power is reached, from a curve fitted to all simulations.

        Parameters
        ----------
        power : float
            The power wanted.
        effect : str, optional
            Which effect; the one there is by default.
        level : float
            Coverage of the interval of the size, for the Monte Carlo error.

        Returns
        -------
        SampleSize

        Raises
        ------
        DataError
            If there are fewer than two sizes, or power does not rise with them.

        Notes
        -----
        The normal quantile of the power is taken to be linear in the square root of the size, as it
        is for a test whose standard error falls with the square root: a probit regression of the
        rejections.
        """
        power, level = probability(power, "power"), probability(level, "level")
        if len(self.plans.sizes) < 2:
            raise DataError(
                "A sample size takes powers at two sizes or more: see Study.power_curve."
            )
        counts, totals = self._counts(effect)
        size, low, high = required_size(np.array(self.plans.sizes), counts, totals, power, level)
        return SampleSize(size=size, conf_low=low, conf_high=high, power=power, curve=self)

    def _counts(self, effect: str | None) -> tuple[Array, Array]:
        labels = [target.label for target in self.plans.targets]
        if (effect is None and len(labels) > 1) or (effect is not None and effect not in labels):
            raise DataError(f"effect={effect!r}: one of {', '.join(labels)} is expected.")
        place = 0 if effect is None else labels.index(effect)
        outcomes = self.plans.outcomes
        counts = [np.sum(outcome.values[:, place, 3] < self.alpha) for outcome in outcomes]
        return np.array(counts, float), np.array([outcome.size for outcome in outcomes], float)

    def plot(
        self,
        *,
        level: float = 0.95,
        target: float | None = 0.8,
        backend: Any = None,
        visuals: Mapping[str, Any] | None = None,
        **pc_kwargs: Any,
    ) -> PlotCollection:
        """Draw power by size, a panel per effect, with intervals for the Monte Carlo error.

        Parameters
        ----------
        level : float
            Coverage of the intervals.
        target : float, optional
            Power at which a line is drawn; None for no line.
        backend : {"matplotlib", "bokeh", "plotly", "none"}, optional
            ArviZ's ``rcParams["plot.backend"]`` by default.
        visuals : mapping, optional
            Settings of "interval", "line", "points", "target", "alpha", "title", "xlabel",
            "xticks", "ylabel" and "legend"; False leaves one out.
        **pc_kwargs
            Passed on to ``arviz_plots.PlotCollection.wrap``.

        Returns
        -------
        arviz_plots.PlotCollection

        Raises
        ------
        DataError
            If there is one size only.
        """
        from bayeslmm.plots.common import drawing

        how = drawing(backend, visuals, pc_kwargs)
        return self.plans.curve(self.table(level), "power", how, target, self.alpha)

    @property
    def notes(self) -> tuple[str, ...]:
        """Failed, singular and unconverged fits, in words."""
        return tuple(self.plans.notes())

    def __repr__(self) -> str:
        return "\n".join([self._heading(), text.frame_text(self._shown()), *self.notes])

    def _repr_html_(self) -> str:
        return text.html_page(self._heading(), self._shown(), self.notes)

    def _heading(self) -> str:
        return f"Power at alpha = {self.alpha:g}, {self.plans.heading}"

    def _shown(self) -> pd.DataFrame:
        table = self.table().drop(columns=["n", "failed"])
        return table.dropna(axis="columns", how="all")


def _errors(values: Array, truth: Array, alpha: float) -> dict[str, float]:
    """Figures about the estimates (s, 4) given the true values (s,)."""
    estimate, error, df, p = values.T
    if np.isnan(truth).all():
        names = ("truth", "estimate", "type_s", "type_m", "coverage")
        return dict.fromkeys(names, np.nan)
    shown = (p < alpha) & (truth != 0.0)
    ratio = estimate[shown] / truth[shown]
    margin = stats.t.ppf(1.0 - 0.5 * alpha, df) * error
    return {
        "truth": float(truth.mean()),
        "estimate": float(estimate.mean()),
        "type_s": float(np.mean(ratio < 0.0)) if len(ratio) else np.nan,
        "type_m": float(np.mean(np.abs(ratio))) if len(ratio) else np.nan,
        "coverage": float(np.mean(np.abs(estimate - truth) <= margin)),
    }


# --- the size that a power takes -------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class SampleSize:
    """Size at which a power is reached.

    Attributes
    ----------
    size : int
        The smallest whole number of levels or rows at which the fitted curve reaches the power.
    conf_low, conf_high : float
        Interval of where the curve crosses the power: the Monte Carlo error of the simulations.
    power : float
        The power wanted.
    curve : Power
        The simulations it rests on.
    """

    size: int
    conf_low: float
    conf_high: float
    power: float
    curve: Power = field(repr=False)


MOST_STEPS = 50
"""Newton steps of the probit regression."""


def required_size(
    sizes: Array, counts: Array, totals: Array, power: float, level: float
) -> tuple[int, float, float]:
    """Size, and its interval, at which a fitted curve has a power.

    Parameters
    ----------
    sizes, counts, totals : ndarray (K,)
        Sizes, rejections and simulations.
    power : float
        The power.
    level : float
        Coverage of the interval.

    Raises
    ------
    DataError
        If power does not rise with the size.
    """
    coefs, cov = probit_regression(np.sqrt(sizes), counts, totals)
    root = (stats.norm.ppf(power) - coefs[0]) / coefs[1]
    error = np.sqrt(np.array([1.0, root]) @ cov @ np.array([1.0, root])) / abs(coefs[1])
    z = stats.norm.ppf(0.5 + 0.5 * level)
    if coefs[1] <= z * np.sqrt(cov[1, 1]) or root <= 0.0:
        raise DataError(
            "Power does not clearly rise with the size in these simulations: take more of them, or "
            "sizes further apart."
        )
    low, high = (max(root + sign * z * error, 0.0) ** 2 for sign in (-1.0, 1.0))
    return int(np.ceil(root**2 - 1e-9)), float(low), float(high)


def probit_regression(x: Array, counts: Array, totals: Array) -> tuple[Array, Array]:
    """Coefficients (2,) of a probit regression on x, and their covariance matrix.

    Half a rejection and half a failure are added at each x, so that powers of 0 and 1 have an end.
    """
    X, share = np.column_stack([np.ones_like(x), x]), (counts + 0.5) / (totals + 1.0)
    start = np.linalg.lstsq(X, stats.norm.ppf(share), rcond=None)[0]
    beta, information = start, np.eye(2)
    for _ in range(MOST_STEPS):
        eta = np.clip(X @ beta, -8.0, 8.0)
        mean, density = stats.norm.cdf(eta), stats.norm.pdf(eta)
        weight = (totals + 1.0) / (mean * (1.0 - mean))
        information = (X * (weight * density**2)[:, None]).T @ X
        step = np.linalg.lstsq(information, X.T @ (weight * density * (share - mean)), rcond=None)[
            0
        ]
        beta = beta + step
        if np.max(np.abs(step)) < 1e-10:
            break
    return beta, np.linalg.pinv(information)
