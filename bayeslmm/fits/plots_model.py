"""Pictures of the model of a posterior: methods."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from bayeslmm.fits.loo_methods import PosteriorCrossValidation
from bayeslmm.plots.common import Backend

if TYPE_CHECKING:
    from arviz_plots import PlotCollection

    from bayeslmm.plots.predictive import Kind
    from bayeslmm.prediction.checks import Statistic

Levels = Sequence[Any] | None
Visuals = Mapping[str, Any] | None
Seed = int | np.random.Generator | None


class PosteriorModelPlots(PosteriorCrossValidation):
    """Pictures of priors, covariance matrices and the fit to the data."""

    def plot_prior_posterior(
        self,
        labels: str | Sequence[str] | None = None,
        *,
        random_seed: Seed = 0,
        backend: Backend | None = None,
        visuals: Visuals = None,
        **pc_kwargs: Any,
    ) -> PlotCollection:
        """Prior beside posterior densities of the parameters: what the data have said.

        Parameters
        ----------
        labels : str or sequence of str, optional
            Parameters to draw, such as ``"sd[Subject, Days]"``; all by default.
        random_seed : int or numpy.random.Generator, optional
            Seed of the draws from the prior, as many as there are from the posterior.
        backend : {"matplotlib", "bokeh", "plotly", "none"}, optional
            ArviZ's ``rcParams["plot.backend"]`` by default.
        visuals : mapping, optional
            Settings of ``arviz.plot_dist``, "legend" and "figure_title"; False leaves
            one out.
        **pc_kwargs
            Passed on to ``arviz_plots.PlotCollection.wrap``.

        Returns
        -------
        arviz_plots.PlotCollection
            Each panel shows the posterior and the central 90 % of the prior.

        Raises
        ------
        PriorError
            If a prior is flat.
        ValueError
            If there is no such parameter.

        Examples
        --------
        >>> import bayeslmm as blm
        >>> model = blm.LMM("Yield ~ 1 + (1 | Batch)", blm.load_dataset("Dyestuff"))
        >>> pc = model.fit(random_seed=1).plot_prior_posterior("sigma", backend="none")
        >>> list(pc.viz["dist"].data_vars)
        ['sigma']
        """
        from bayeslmm.plots.prior_posterior import plot_prior_posterior

        return plot_prior_posterior(
            self.design,
            self.priors,
            self._draws,
            labels=labels,
            random_seed=random_seed,
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
        """Heat maps of posterior means of the covariance matrices G, R and V = ZGZ' + R.

        Parameters
        ----------
        which : {"V", "G", "R"} or sequence of them
            Covariance matrix of the response, the random effects or the residuals; a panel each.
        group : str, optional
            Grouping factor by whose levels the rows of V and R are ordered, so that its blocks
            show; the first by default.
        levels : sequence, optional
            Levels of it whose rows and random effects are drawn; all by default.
        rows : sequence, optional
            Labels of the rows of the data (of V and R) to draw, instead of levels.
        correlation : bool
            Whether to draw correlations.
        backend : {"matplotlib", "none"}, optional
            ArviZ's ``rcParams["plot.backend"]`` by default. ArviZ has no visual for images, so
            that other backends cannot draw this one.
        visuals : mapping, optional
            Settings of "heatmap", "numbers" (where they fit), "title", "ylabel",
            "xticks", "yticks" and "figure_title"; False leaves one out.
        **pc_kwargs
            Passed on to ``arviz_plots.PlotCollection.wrap``.

        Returns
        -------
        arviz_plots.PlotCollection

        Raises
        ------
        DataError
            If there are more than 1,000 rows to draw, or no such level or row.
        ValueError
            If there is no such matrix, or the backend cannot draw it.

        Examples
        --------
        >>> import bayeslmm as blm
        >>> model = blm.LMM("Yield ~ 1 + (1 | Batch)", blm.load_dataset("Dyestuff"))
        >>> pc = model.fit(random_seed=1).plot_covariance(levels=["A", "B"], backend="none")
        >>> pc.get_viz("heatmap")["values"].shape
        (10, 10)
        """
        from bayeslmm.plots import covariance

        return covariance.plot_matrices(
            self.design,
            which,
            self._covariances,
            self._sigma_squared,
            label="posterior mean",
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
        """Residuals and random effects, at posterior means, against what the model assumes.

        Panels: residuals against fitted values, against normal quantiles and by level of a grouping
        factor, with their mean in each; random effects of every coefficient against normal
        quantiles. Lines go through the quartiles. With precision weights, residuals are multiplied
        by their roots.

        Parameters
        ----------
        group : str, optional
            Grouping factor of the panel by level; the first by default.
        backend : {"matplotlib", "bokeh", "plotly", "none"}, optional
            ArviZ's ``rcParams["plot.backend"]`` by default.
        visuals : mapping, optional
            Settings of "points", "zero", "qq_line", "level_mean", "title", "xlabel", "ylabel",
            "xticks" and "figure_title"; False leaves one out.
        **pc_kwargs
            Passed on to ``arviz_plots.PlotCollection.wrap``.

        Returns
        -------
        arviz_plots.PlotCollection

        Raises
        ------
        DataError
            If there is no such grouping factor.

        Examples
        --------
        >>> import bayeslmm as blm
        >>> model = blm.LMM("Yield ~ 1 + (1 | Batch)", blm.load_dataset("Dyestuff"))
        >>> pc = model.fit(random_seed=1).plot_residuals(backend="none")
        >>> list(pc.viz["qq_line"].data_vars)
        ['Q-Q of residuals', 'Q-Q of Batch: Intercept']
        """
        from bayeslmm.plots.residuals import plot_residuals

        return plot_residuals(
            self.design,
            group,
            self._draws["beta"].mean(("chain", "draw")).to_numpy(),
            self._means,
            label="posterior means",
            backend=backend,
            visuals=visuals,
            **pc_kwargs,
        )

    def plot_predictive(
        self,
        kind: Kind = "dist",
        *,
        by: str | None = None,
        statistic: str | Statistic = "mean",
        prob: float | None = None,
        random_seed: int | np.random.Generator | None = None,
        backend: Backend | None = None,
        visuals: Visuals = None,
        **kwargs: Any,
    ) -> PlotCollection:
        """Predictive checks: replicated responses against the observed ones.

        The replicates are those of group posterior_predictive (:meth:`with_posterior_predictive`),
        or, where `data` has none, conditional ones made for the picture.

        Parameters
        ----------
        kind : {"dist", "interval", "tstat", "pit", "loo_pit"}
            Densities, an interval per row, a statistic, or the probability integral transform:
            ArviZ's ``plot_ppc_dist``, ``plot_ppc_interval``, ``plot_ppc_tstat`` and
            ``plot_ppc_pit``; or the exact leave-one-out transform of :meth:`loo_pit`, as ArviZ's
            ``plot_loo_pit`` draws one.
        by : str, optional
            Grouping factor or variable, for "dist" (a panel per level) and "tstat" (the statistic
            of each level, as :meth:`predictive_check` computes it).
        statistic : {"mean", "sd", "min", "max", "median"} or callable
            For "tstat".
        prob : float, optional
            Probability of intervals; ArviZ's rcParams by default.
        random_seed : int or numpy.random.Generator, optional
            Seed of replicates made for the picture.
        backend : {"matplotlib", "bokeh", "plotly", "none"}, optional
            ArviZ's ``rcParams["plot.backend"]`` by default.
        visuals : mapping, optional
            Settings of ArviZ's function (by level: "observed", "replicated", "interval", "xlabel",
            "ylabel", "yticks"), "legend" and "figure_title"; False leaves one out.
        **kwargs
            Passed on to ArviZ's function.

        Returns
        -------
        arviz_plots.PlotCollection

        Raises
        ------
        DataError
            If there is no such variable, or it has too many levels for densities.
        ValueError
            If the kind or statistic is unknown.

        Examples
        --------
        >>> import bayeslmm as blm
        >>> model = blm.LMM("Yield ~ 1 + (1 | Batch)", blm.load_dataset("Dyestuff"))
        >>> post = model.fit(random_seed=1)
        >>> pc = post.plot_predictive("tstat", by="Batch", random_seed=2, backend="none")
        >>> pc.get_viz("observed")["x"].shape
        (6,)
        """
        from bayeslmm.plots.predictive import GROUP, plot_predictive
        from bayeslmm.prediction.checks import predictive_dataset

        fit = self
        if GROUP not in self.data.children and kind != "loo_pit":
            rng = np.random.default_rng(random_seed)
            dataset = predictive_dataset(self.design, self._joint, "conditional", rng)
            fit = self.with_groups(posterior_predictive=dataset)
        return plot_predictive(
            self.design,
            fit.data,
            kind,
            lambda: self.loo_pit().to_numpy(),
            by=by,
            statistic=statistic,
            prob=prob,
            backend=backend,
            visuals=visuals,
            **kwargs,
        )
