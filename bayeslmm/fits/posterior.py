"""The result of ``model.fit()``."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import scipy.sparse as sp
import xarray as xr

from bayeslmm.comparison.evidence import LogEvidence, log_evidence
from bayeslmm.estimation import effects
from bayeslmm.fits.assessment_methods import PosteriorAssessment
from bayeslmm.fits.diagnosis_methods import PosteriorDiagnosis
from bayeslmm.fits.effects_methods import PosteriorMeans
from bayeslmm.fits.plots_methods import PosteriorPlots
from bayeslmm.fits.prediction_methods import PosteriorArviz, PosteriorPrediction
from bayeslmm.fits.report_posterior import PosteriorReporting
from bayeslmm.fits.storage_methods import PosteriorStorage
from bayeslmm.summaries import matrices, posterior_tables, text
from bayeslmm.summaries.tidy import Effects, tidy_posterior

if TYPE_CHECKING:
    from arviz_plots import PlotCollection

    from bayeslmm.sampling.diagnostics import Diagnostics


@dataclass(frozen=True, eq=False)
class Posterior(
    PosteriorArviz,
    PosteriorPrediction,
    PosteriorAssessment,
    PosteriorDiagnosis,
    PosteriorMeans,
    PosteriorPlots,
    PosteriorReporting,
    PosteriorStorage,
):
    """Posterior draws of a linear mixed model.

    Made by :meth:`LMM.fit`. Point summaries (`beta`, `sds`, `sigma`, ...) are posterior means;
    everything else is in `data` for ArviZ.

    Attributes
    ----------
    design : Design
        The design of the model.
    priors : Priors
        Its priors.
    data : xarray.DataTree
        Draws in the ArviZ schema: groups posterior, sample_stats, observed_data, constant_data,
        random_effects (summaries of random effects that are too many to store) and those added on
        request (see :meth:`to_arviz`). Variables of posterior, per grouping factor with key g, are
        ``beta``, ``u_g``, ``sd_g``, ``corr_g`` (correlations by pair of coefficients) and
        ``sigma``; correlation matrices ``cor_g`` are coordinates. Its attributes name the method
        and, where they apply, why another one was fallen back to and the error of the surrogate.

    Examples
    --------
    >>> import bayeslmm as blm
    >>> model = blm.LMM("Yield ~ 1 + (1 | Batch)", blm.load_dataset("Dyestuff"))
    >>> post = model.fit(method="laplace", random_seed=1)
    >>> sorted(post.data["posterior"].data_vars)
    ['beta', 'sd_Batch', 'sigma', 'u_Batch']
    """

    @property
    def method(self) -> str:
        """Engine that made the draws."""
        return str(self.data.attrs["method"])

    @property
    def beta(self) -> pd.Series:
        """Posterior means of the fixed effects by coefficient."""
        mean = posterior_tables.beta_mean(self._draws)
        return pd.Series(mean, index=list(self.design.coefs), name="beta")

    @property
    def sigma(self) -> float:
        """Posterior mean of the residual standard deviation."""
        return float(posterior_tables.sigma_draws(self._draws).mean())

    @property
    def sds(self) -> dict[str, pd.Series]:
        """Posterior means of the random-effect standard deviations by grouping factor."""
        return dict(posterior_tables.sds_mean(self._draws, self.design))

    @property
    def corrs(self) -> dict[str, pd.DataFrame]:
        """Posterior means of the random-effect correlation matrices by grouping factor."""
        return posterior_tables.correlations_mean(self._draws, self.design)

    @property
    def nobs(self) -> int:
        """Number of rows used."""
        return self.design.n

    @property
    def notes(self) -> tuple[str, ...]:
        """Everything a reader should know: dropped columns, poor convergence or approximation."""
        about = text.posterior_notes(
            self.data.attrs,
            beta_sampled=self.priors.beta_sampled,
            has_effects=posterior_tables.has_draws(self.data, self.design),
        )
        return (*text.design_notes(self.design), *about, *self.diagnostics.messages())

    @cached_property
    def diagnostics(self) -> Diagnostics:
        """Convergence checks of the draws, with advice in words."""
        from bayeslmm.sampling.diagnostics import check

        return check(self.data)

    def summary(self) -> pd.DataFrame:
        """All parameters but the random effects, with ArviZ's statistics and diagnostics.

        Returns
        -------
        pandas.DataFrame
            Rows ``beta[Days]``, ``sd[Subject, Days]``, ``cor[Subject, Intercept, Days]``,
            ``sigma``; columns of ``arviz.summary``, whose intervals follow ``arviz.rcParams``.

        Examples
        --------
        >>> import bayeslmm as blm
        >>> model = blm.LMM("Yield ~ 1 + (1 | Batch)", blm.load_dataset("Dyestuff"))
        >>> post = model.fit(method="laplace", draws=100, random_seed=1)
        >>> list(post.summary().index)
        ['beta[Intercept]', 'sd[Batch, Intercept]', 'sigma']
        """
        return posterior_tables.summary_table(self._draws, self.design)

    def fixef(self, prob: float | None = None) -> pd.DataFrame:
        """Fixed effects: mean, sd, median and interval.

        Parameters
        ----------
        prob : float, optional
            Probability of the interval; ArviZ's ``rcParams["stats.ci_prob"]`` by default.

        Returns
        -------
        pandas.DataFrame
            One row per coefficient.
        """
        draws = self._draws["beta"].to_numpy()
        draws = draws.reshape(draws.shape[0] * draws.shape[1], self.design.p)
        index = pd.Index(self.design.coefs, name="term")
        return posterior_tables.summarise(draws, index, prob)

    @property
    def log_evidence(self) -> LogEvidence:
        """Log marginal likelihood with its Monte Carlo error (collapsed sampler only).

        Raises
        ------
        PriorError
            If a prior is improper.
        SamplingError
            If another method made the draws.
        """
        return log_evidence(self.data.attrs, self.priors)

    def draw_u(
        self,
        levels: Sequence[Any] | None = None,
        *,
        group: str | None = None,
        random_seed: int | np.random.Generator | None = None,
    ) -> xr.DataArray:
        """Draw random effects of chosen levels, exactly, given the draws of everything else.

        Parameters
        ----------
        levels : sequence, optional
            Labels of levels; all by default.
        group : str, optional
            Grouping factor as in the formula; needed where there are several.
        random_seed : int or numpy.random.Generator, optional
            Seed.

        Returns
        -------
        xarray.DataArray
            Dimensions chain, draw, coefficient and level.

        Raises
        ------
        DataError
            If there is no such grouping factor or level.

        Examples
        --------
        >>> import bayeslmm as blm
        >>> model = blm.LMM("Yield ~ 1 + (1 | Batch)", blm.load_dataset("Dyestuff"))
        >>> post = model.fit(random_seed=1, store_u=False)
        >>> post.draw_u(["A", "C"], random_seed=2).sizes["Batch"]
        2
        """
        rng = np.random.default_rng(random_seed)
        return posterior_tables.drawn_effects(
            self.design, self._plan, self._draws, group, levels, rng
        )

    def ranef(self) -> dict[str, pd.DataFrame]:
        """Posterior means of the random effects: levels by coefficients, per grouping factor."""
        return effects.effect_frames(self.design, self._means)

    def ranef_sd(self) -> dict[str, pd.DataFrame]:
        """Posterior standard deviations of the random effects, as :meth:`ranef`."""
        sds = posterior_tables.sd_arrays(self.data, self.design)
        return effects.effect_frames(self.design, sds)

    def coef(self) -> dict[str, pd.DataFrame]:
        """Posterior means of fixed plus random effects: levels by coefficients."""
        beta = self.beta.to_numpy()
        return effects.coefficient_frames(self.design, beta, self._means)

    def varcorr(self, prob: float | None = None) -> pd.DataFrame:
        """Variances, covariances, standard deviations and correlations of the random effects.

        Parameters
        ----------
        prob : float, optional
            Probability of the intervals; ArviZ's rcParams by default.

        Returns
        -------
        pandas.DataFrame
            Columns group, term, term_2, vcov (posterior mean) and mean, sd, median and interval
            of the standard deviation or correlation.
        """
        return posterior_tables.variance_table(
            self._draws, self.design, self._covariances, self._sigma_squared, prob
        )

    def G(self, *, sparse: bool = False) -> pd.DataFrame | sp.csr_array:
        """Posterior mean of the covariance matrix of all random effects."""
        return matrices.random_covariance(self.design, self._covariances, sparse=sparse)

    def R(self, *, sparse: bool = False) -> pd.DataFrame | sp.csr_array:
        """Posterior mean of the covariance matrix of the residuals."""
        return matrices.residual_covariance(self.design, self._sigma_squared, sparse=sparse)

    def V(self, *, sparse: bool = False) -> pd.DataFrame | sp.csr_array:
        """Posterior mean of the marginal covariance matrix of the response, ZGZ' + R."""
        return matrices.response_covariance(
            self.design, self._covariances, self._sigma_squared, sparse=sparse
        )

    def fitted(self, *, random_effects: bool = True) -> pd.Series:
        """Posterior mean of offset + X beta, plus Zu unless `random_effects` is false."""
        u = self._means if random_effects else None
        values = effects.linear_predictor(self.design, self.beta.to_numpy(), u)
        return pd.Series(values, index=self.design.index, name="fitted")

    def residuals(self, *, random_effects: bool = True) -> pd.Series:
        """Response less fitted values."""
        values = self.design.y - self.fitted(random_effects=random_effects)
        return values.rename("residual")

    def tidy(
        self,
        effects: Effects | Sequence[Effects] = ("fixed", "ran_pars"),
        prob: float | None = None,
    ) -> pd.DataFrame:
        """Tidy table with broom.mixed's columns: posterior mean, sd and interval.

        Parameters
        ----------
        effects : {"fixed", "ran_pars", "ran_vals", "ran_coefs"} or sequence of them
            Which parts.
        prob : float, optional
            Probability of the intervals; ArviZ's rcParams by default, which also choose their kind.

        Returns
        -------
        pandas.DataFrame
            Columns effect, group, level, term, estimate, std_error, conf_low, conf_high.
        """
        chosen, kind = posterior_tables.interval_defaults(prob)
        return tidy_posterior(self.data, self.design, effects, chosen, kind)

    def compare_reml(
        self, reml: Any, *, prob: float | None = None, names: Mapping[str, str] | None = None
    ) -> pd.DataFrame:
        """Put the posterior beside an estimate: see :func:`bayeslmm.compare_reml`."""
        from bayeslmm.comparison.reml import compare_reml

        return compare_reml(self, reml, prob=prob, names=names)

    def plot_reml(self, reml: Any, **kwargs: Any) -> PlotCollection:
        """Densities with an estimate: :func:`~bayeslmm.plots.reml.plot_compare_reml`."""
        from bayeslmm.plots.reml import plot_compare_reml

        return plot_compare_reml(self, reml, **kwargs)

    def with_log_likelihood(self) -> Posterior:
        """Add group log_likelihood: pointwise, given the random effects, whose draws it needs.

        Returns
        -------
        Posterior
            A new one; its `data` has the group, which ``arviz.loo`` reads.
        """
        from bayeslmm.sampling.log_densities import log_likelihood

        posterior_tables.require_draws(self.data, self.design)
        return self.with_groups(log_likelihood=log_likelihood(self.data, self.design))

    def with_log_prior(self) -> Posterior:
        """Add group log_prior, which ArviZ's power-scaling sensitivity (psense) reads."""
        from bayeslmm.sampling.log_densities import log_prior

        return self.with_groups(log_prior=log_prior(self.data, self.priors))

    def with_prior(
        self, draws: int = 500, *, random_seed: int | np.random.Generator | None = None
    ) -> Posterior:
        """Add groups prior and prior_predictive.

        Parameters
        ----------
        draws : int
            Number of draws from the prior.
        random_seed : int or numpy.random.Generator, optional
            Seed.

        Returns
        -------
        Posterior

        Raises
        ------
        PriorError
            If a prior is flat.
        """
        from bayeslmm.sampling.prior_predictive import prior_predictive

        tree = prior_predictive(self.design, self.priors, draws, random_seed)
        names = ("prior", "prior_predictive")
        return self.with_groups(**{name: tree[name].to_dataset() for name in names})

    def __repr__(self) -> str:
        sizes = self._draws.sizes
        size = f"{sizes['chain']} chains of {sizes['draw']} draws"
        design = self.design
        parts = [
            f"Linear mixed model, posterior by {self.method} ({size})",
            f"Formula: {design.formula.source}",
            "Random effects (posterior means):",
            text.random_effects_block(design, self.sds, self.corrs, self.sigma),
            text.groups_line(design),
            "Fixed effects:",
            text.frame_text(self.fixef().rename_axis(None)),
            *self.notes,
        ]
        return "\n".join(parts)

    def _repr_html_(self) -> str:
        heading = repr(self).split("Random effects")[0]
        return text.html_page(heading, self.summary(), self.notes)
