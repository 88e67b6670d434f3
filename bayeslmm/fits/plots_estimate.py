"""Pictures of an estimate: methods."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from bayeslmm.fits.estimate_base import EstimateBase
from bayeslmm.plots.common import Backend
from bayeslmm.plots.level_order import shown_levels
from bayeslmm.sampling.estimate_draws import Uncertainty, estimate_draws

if TYPE_CHECKING:
    from arviz_plots import PlotCollection

Levels = Sequence[Any] | None
Visuals = Mapping[str, Any] | None
Seed = int | np.random.Generator | None


class EstimatePlots(EstimateBase):
    """Pictures of an estimate."""

    def plot_caterpillar(
        self,
        group: str | None = None,
        *,
        coefs: str | Sequence[str] | None = None,
        levels: Levels = None,
        order: str = "estimate",
        level: float | None = None,
        backend: Backend | None = None,
        visuals: Visuals = None,
        **pc_kwargs: Any,
    ) -> PlotCollection:
        """Conditional modes of the random effects by level, with normal prediction intervals.

        Parameters
        ----------
        group, coefs, levels, order, backend, visuals, **pc_kwargs
            As in :meth:`Posterior.plot_caterpillar`.
        level : float, optional
            Coverage of the intervals, whose standard errors are those of :meth:`ranef_sd`; as in
            pictures of posteriors, ArviZ's ``rcParams["stats.ci_prob"]`` by default.

        Returns
        -------
        arviz_plots.PlotCollection

        Examples
        --------
        >>> import bayeslmm as blm
        >>> reml = blm.LMM("Yield ~ 1 + (1 | Batch)", blm.load_dataset("Dyestuff")).reml()
        >>> pc = reml.plot_caterpillar(backend="none")
        >>> pc.get_viz("point")["y"].tolist()
        [0.0, 1.0, 2.0, 3.0, 4.0, 5.0]
        """
        from bayeslmm.plots import caterpillar, sources

        place, positions = shown_levels(self.design, group, levels)
        caterpillar.check_drawable(self.design, place, len(positions))
        effects = sources.effects_of_fit(self.fit, place, positions, level)
        return caterpillar.plot_caterpillar(
            self.design,
            place,
            positions,
            effects,
            coefs=coefs,
            order=order,
            backend=backend,
            visuals=visuals,
            **pc_kwargs,
        )

    def plot_fitted(
        self,
        x: str | None = None,
        group: str | None = None,
        levels: Levels = None,
        *,
        level: float | None = None,
        uncertainty: Uncertainty = "laplace",
        draws: int = 1000,
        random_seed: Seed = 0,
        backend: Backend | None = None,
        visuals: Visuals = None,
        **pc_kwargs: Any,
    ) -> PlotCollection:
        """Data and fitted lines by level of a grouping factor, and the population's line.

        Parameters
        ----------
        x, group, levels, backend, visuals, **pc_kwargs
            As in :meth:`Posterior.plot_fitted`.
        level : float, optional
            Coverage of the intervals of the conditional mean; as in pictures of posteriors, ArviZ's
            ``rcParams["stats.ci_prob"]`` by default.
        uncertainty : {"laplace", "bootstrap", "plugin"}
            Where the uncertainty of the covariance parameters comes from, as in :meth:`predict`.
        draws : int
            Draws for the intervals.
        random_seed : int or numpy.random.Generator, optional
            Seed of these draws.

        Returns
        -------
        arviz_plots.PlotCollection

        Examples
        --------
        >>> import bayeslmm as blm
        >>> sleep = blm.load_dataset("sleepstudy")
        >>> reml = blm.LMM("Reaction ~ Days + (Days | Subject)", sleep).reml()
        >>> pc = reml.plot_fitted(levels=["308", "309"], backend="none")
        >>> list(pc.viz["fitted"].data_vars)
        ['308', '309']
        """
        from bayeslmm.plots import fitted, sources

        place, along, grids = fitted.grids_of(self.design, x, group, levels)
        joint = estimate_draws(self.design, self.fit, uncertainty, draws, random_seed)
        lines, label = sources.lines_of_fit(self.fit, joint, grids, level)
        return fitted.plot_fitted(
            self.design,
            place,
            along,
            grids,
            lines,
            label=label,
            backend=backend,
            visuals=visuals,
            **pc_kwargs,
        )

    def plot_covariance(
        self,
        which: str | Sequence[str] = "V",
        *,
        group: str | None = None,
        levels: Levels = None,
        rows: Sequence[Any] | None = None,
        correlation: bool = False,
        backend: Backend | None = None,
        visuals: Visuals = None,
        **pc_kwargs: Any,
    ) -> PlotCollection:
        """Heat maps of the estimated covariance matrices G, R and V = ZGZ' + R.

        Parameters
        ----------
        which, group, levels, rows, correlation, backend, visuals, **pc_kwargs
            As in :meth:`Posterior.plot_covariance`.

        Returns
        -------
        arviz_plots.PlotCollection

        Examples
        --------
        >>> import bayeslmm as blm
        >>> reml = blm.LMM("Yield ~ 1 + (1 | Batch)", blm.load_dataset("Dyestuff")).reml()
        >>> pc = reml.plot_covariance("G", backend="none")
        >>> pc.get_viz("heatmap")["values"].shape
        (6, 6)
        """
        from bayeslmm.plots import covariance

        return covariance.plot_matrices(
            self.design,
            which,
            self._covariances,
            self.fit.sigma**2,
            label=f"{self.fit.method} estimate",
            group=group,
            levels=levels,
            rows=rows,
            correlation=correlation,
            backend=backend,
            visuals=visuals,
            **pc_kwargs,
        )

    def plot_residuals(
        self,
        group: str | None = None,
        *,
        backend: Backend | None = None,
        visuals: Visuals = None,
        **pc_kwargs: Any,
    ) -> PlotCollection:
        """Residuals and conditional modes against what the model assumes of them.

        Parameters
        ----------
        group, backend, visuals, **pc_kwargs
            As in :meth:`Posterior.plot_residuals`.

        Returns
        -------
        arviz_plots.PlotCollection

        Examples
        --------
        >>> import bayeslmm as blm
        >>> reml = blm.LMM("Yield ~ 1 + (1 | Batch)", blm.load_dataset("Dyestuff")).reml()
        >>> list(reml.plot_residuals(backend="none").viz["qq_line"].data_vars)
        ['Q-Q of residuals', 'Q-Q of Batch: Intercept']
        """
        from bayeslmm.plots.residuals import plot_residuals

        return plot_residuals(
            self.design,
            group,
            self.fit.beta,
            self._modes,
            label=f"{self.fit.method} estimate",
            backend=backend,
            visuals=visuals,
            **pc_kwargs,
        )
