"""The result of ``model.check_calibration()``."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from bayeslmm.data.design import Design
from bayeslmm.data.summarised import SummarisedDesign
from bayeslmm.estimation.effects import linear_predictor
from bayeslmm.estimation.executor import Executor
from bayeslmm.estimation.residuals import residual_log_density
from bayeslmm.likelihood.sums import residual_squares
from bayeslmm.plots.common import drawing
from bayeslmm.plots.parameters import plot_calibration
from bayeslmm.priors.record import Priors
from bayeslmm.sampling.calibration import OUT_OF, Refit, run_simulations, uniformity
from bayeslmm.sampling.joint_draws import points_of
from bayeslmm.sampling.tree import effect_arrays, level_first
from bayeslmm.schema import BETA, u_name
from bayeslmm.summaries import text
from bayeslmm.summaries.parameters import free_parameters, parameter_draws, probability

if TYPE_CHECKING:
    import xarray as xr
    from arviz_plots import PlotCollection

Array = NDArray[np.float64]

OK, MISCALIBRATED = "ok", "miscalibrated"


@dataclass(frozen=True, eq=False, kw_only=True)
class CalibrationCheck:
    """Whether a sampler recovers parameters drawn from the prior, by simulation.

    Made by :meth:`bayeslmm.LMM.check_calibration`.

    Attributes
    ----------
    design : Design
        The design of the model.
    method : str
        How the simulated data were fitted.
    ranks : pandas.DataFrame
        Rank of each true value among its posterior draws, 0 to `draws`: one row per completed
        simulation, by its number, and one column per parameter.
    draws : int
        Number of draws the ranks are out of.
    kept : pandas.DataFrame
        Nearly independent draws that each rank rests on; fewer than `draws` where the effective
        sample size is smaller.
    failures : pandas.Series
        What the fit said where it failed, by number of the simulation.
    alpha : float
        Probability with which a correct sampler has any parameter called miscalibrated, at most.

    Notes
    -----
    The ranks of a correct sampler are uniform. Per parameter, their empirical distribution function
    is tested against the simultaneous band of Säilynoja et al. (2022) at level alpha divided by the
    number of parameters (Bonferroni): "miscalibrated" are those that leave the band, which are
    those with `p_adjusted` of at most alpha. Levels are exact for any number of simulations.

    Selecting simulations by their response leaves the ranks uniform, so the verdicts hold for those
    that could be fitted; but a check with failures is not passed.

    References
    ----------
    Talts, Betancourt, Simpson, Vehtari, Gelman (2018), arXiv:1804.06788.
    Modrák, Moon, Kim, Bürkner, Huurre, Faltejsková, Gelman, Vehtari (2023), doi:10.1214/23-BA1404.
    Säilynoja, Bürkner, Vehtari (2022), doi:10.1007/s11222-022-10090-6.

    Examples
    --------
    >>> import bayeslmm as blm
    >>> model = blm.LMM("travel ~ 1 + (1 | Rail)", blm.load_dataset("Rail"))
    >>> check = model.check_calibration(
    ...     5, method="laplace", draws=100, random_seed=1, progressbar=False
    ... )
    >>> check.ranks.shape
    (5, 7)
    >>> check.draws
    99
    """

    design: Design
    method: str
    ranks: pd.DataFrame
    draws: int
    kept: pd.DataFrame
    failures: pd.Series
    alpha: float

    @property
    def n(self) -> int:
        """Number of simulations, failed ones included."""
        return len(self.ranks) + len(self.failures)

    @property
    def passed(self) -> bool:
        """Whether no parameter is miscalibrated and no fit failed."""
        return not len(self.failures) and bool((self._table["verdict"] == OK).all())

    @property
    def level(self) -> float:
        """Level of the test of one parameter: alpha divided by their number."""
        return self.alpha / self.ranks.shape[1]

    def table(self) -> pd.DataFrame:
        """Verdict by parameter.

        Returns
        -------
        pandas.DataFrame
            One row per parameter. Columns: rank_mean and rank_sd, of the ranks divided by `draws`,
            0.5 and 0.29 for a correct sampler; statistic, the smallest pointwise tail
            probability of the empirical distribution function; p_value; p_adjusted for the number
            of parameters; inside (the band); verdict ("ok" or "miscalibrated").
        """
        return self._table.copy()

    @cached_property
    def _table(self) -> pd.DataFrame:
        shares = self.ranks / self.draws
        tests = [uniformity(self.ranks[name], self.draws) for name in self.ranks]
        p_value = np.array([p for _, p in tests])
        inside = p_value > self.level
        return pd.DataFrame(
            {
                "rank_mean": shares.mean(),
                "rank_sd": shares.std(ddof=0),
                "statistic": [statistic for statistic, _ in tests],
                "p_value": p_value,
                "p_adjusted": np.minimum(1.0, p_value * len(tests)),
                "inside": inside,
                "verdict": np.where(inside, OK, MISCALIBRATED),
            },
            index=pd.Index(self.ranks.columns, name="parameter"),
        )

    @property
    def notes(self) -> tuple[str, ...]:
        """The verdict in words, failed fits and ranks that rest on few draws."""
        return tuple(self._notes())

    def plot(
        self,
        *,
        labels: str | Sequence[str] | None = None,
        backend: Any = None,
        visuals: Mapping[str, Any] | None = None,
        **pc_kwargs: Any,
    ) -> PlotCollection:
        """Draw, per parameter, the empirical less the uniform distribution function of the ranks.

        Parameters
        ----------
        labels : str or sequence of str, optional
            Parameters to draw, such as ``"sd[Subject, Days]"``; all by default.
        backend : {"matplotlib", "bokeh", "plotly", "none"}, optional
            ArviZ's ``rcParams["plot.backend"]`` by default.
        visuals : mapping, optional
            Settings of "ecdf", "band", "ref_line", "title" and "xlabel"; False leaves one out.
        **pc_kwargs
            Passed on to ``arviz_plots.PlotCollection.wrap``.

        Returns
        -------
        arviz_plots.PlotCollection
            The line leaves the band where the verdict is "miscalibrated".
        """
        how = drawing(backend, visuals, pc_kwargs)
        return plot_calibration(self.ranks, self.draws, self.level, how, labels=labels)

    def _notes(self) -> Iterator[str]:
        bad = list(self.ranks.columns[~self._table["inside"].to_numpy()])
        chance = f"overall false-alarm probability at most {self.alpha:g}"
        if bad:
            count = f"{len(bad)} of {self.ranks.shape[1]} parameters"
            yield f"Miscalibrated, {count} ({chance}): {', '.join(bad)}."
        else:
            yield f"No miscalibration found in {self.ranks.shape[1]} parameters ({chance})."
        if len(self.failures):
            yield (
                f"{len(self.failures)} of {self.n} fits failed, so this is no pass; the verdicts "
                f"are about the others. The first, of simulation {self.failures.index[0]}: "
                f"{self.failures.iloc[0]}"
            )
        short = self.kept.to_numpy() < self.draws
        if short.any():
            worst = str(self.kept.min().idxmin())
            yield (
                f"In {int(short.any(axis=1).sum())} simulations some ranks rest on fewer than "
                f"{self.draws} effective draws (fewest: {self.kept[worst].min()}, {worst}), which "
                "costs power: raise draws."
            )

    def _heading(self) -> str:
        return (
            f"Simulation-based calibration, method {self.method!r}: {self.n} simulations, ranks "
            f"among {self.draws} draws\nFormula: {self.design.formula.source}"
        )

    def __repr__(self) -> str:
        shown = self._table.drop(columns=["statistic", "inside"]).rename_axis(None)
        return "\n".join([self._heading(), text.frame_text(shown), *self.notes])

    def _repr_html_(self) -> str:
        return text.html_page(self._heading(), self._table, self.notes)


def check_calibration(
    design: Design,
    priors: Priors,
    engine: Callable[[], Refit],
    *,
    n: int,
    method: str,
    alpha: float = 0.01,
    random_seed: int | np.random.Generator | None = None,
    executor: Executor | None = None,
    progressbar: bool = False,
) -> CalibrationCheck:
    """Check a sampler by simulation: see :meth:`bayeslmm.LMM.check_calibration`.

    Parameters
    ----------
    design, priors : Design, Priors
        The model.
    engine : callable
        Returns the function that refits, as in :func:`run_simulations`.
    n : int
        Number of simulations.
    method : str
        Name of what it does.
    alpha : float
        Overall false-alarm probability.
    random_seed : int or numpy.random.Generator, optional
        Seed.
    executor : Executor, optional
        Where the simulations run.
    progressbar : bool
        Whether to show a progress bar.

    Returns
    -------
    CalibrationCheck
    """
    alpha = probability(alpha, "alpha")
    found = run_simulations(
        design,
        priors,
        engine,
        ranked,
        n=n,
        random_seed=random_seed,
        executor=executor,
        progressbar=progressbar,
    )
    index = pd.Index(found.completed, name="simulation")
    columns = pd.Index(found.names, name="parameter")
    failed = pd.Index(list(found.failures), dtype=np.int64, name="simulation")
    return CalibrationCheck(
        design=design,
        method=method,
        ranks=pd.DataFrame(found.ranks, index, columns),
        draws=OUT_OF,
        kept=pd.DataFrame(found.kept, index, columns),
        failures=pd.Series(list(found.failures.values()), failed, dtype=object, name="error"),
        alpha=alpha,
    )


# --- what a calibration check ranks of every simulation ---


LEVELS_RANKED = 3
"""Levels of each grouping factor whose random effects are ranked."""

LOG_LIKELIHOOD = "log_likelihood"


def ranked(dataset: xr.Dataset, design: Design) -> dict[str, Array]:
    """What is ranked: every parameter, random effects of a few levels and the log likelihood.

    Parameters
    ----------
    dataset : Dataset
        Draws of the public variables.
    design : Design
        The design, its response being that of the simulation.

    Returns
    -------
    dict of str to ndarray (chain, draw)
    """
    values = {row.label: parameter_draws(dataset, design, row) for row in free_parameters(design)}
    drawn = [
        (factor, "u", factor.own(u))
        for factor, u in zip(design.random, effect_arrays(design, dataset), strict=True)
    ]
    for factor in () if design.scale_rows is None else design.scale_rows.random:
        own = level_first(factor, dataset[u_name(factor.key)]).to_numpy()
        drawn.append((factor, "u_sigma", own))
    for factor, kind, u in drawn:
        count = min(LEVELS_RANKED, factor.n_levels)
        for level in np.linspace(0, factor.n_levels - 1, count).round().astype(int):
            for i, coef in enumerate(factor.own_coefs):
                label = f"{kind}[{factor.name}, {factor.levels[level]}, {coef}]"
                values[label] = u[..., level, i]
    return values | {LOG_LIKELIHOOD: log_likelihood(dataset, design)}


def log_likelihood(dataset: xr.Dataset, design: Design) -> Array:
    """Log density (chain, draw) of the response given all parameters, up to a constant."""
    beta, random = dataset[BETA].to_numpy(), effect_arrays(design, dataset)
    points, draws = points_of(design, dataset), beta.shape[1]
    result = np.empty(beta.shape[:2])
    if isinstance(design, SummarisedDesign):
        for chain in range(len(beta)):
            squares = residual_squares(design, beta[chain], [u[chain] for u in random])
            sigma = points.sigma[chain * draws : (chain + 1) * draws]
            result[chain] = -design.n * np.log(sigma) - 0.5 * squares / sigma**2
        return result
    for chain in range(len(beta)):  # one at a time for the memory of (draw, n) arrays
        residuals = design.y - linear_predictor(design, beta[chain], [u[chain] for u in random])
        own = points.take(slice(chain * draws, (chain + 1) * draws))
        result[chain] = residual_log_density(design, own, residuals)
    return result
