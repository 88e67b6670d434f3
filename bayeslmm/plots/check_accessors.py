"""``fit.plot``: pictures of variances and residuals, of single levels and of what moves a fit."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from bayeslmm.data.seeds import seeded
from bayeslmm.plots.common import Backend, drawing
from bayeslmm.summaries import FitLike

if TYPE_CHECKING:
    from arviz_plots import PlotCollection

    from bayeslmm.estimation.residuals import ResidualKind
    from bayeslmm.sampling.joint_draws import JointDraws

Names = str | Sequence[str] | None
Levels = Sequence[Any] | None
Visuals = Mapping[str, Any] | None
Seed = int | np.random.Generator | None


@dataclass(frozen=True, eq=False, repr=False)
class CheckPlots:
    """Pictures of covariance matrices, parts of the variance, residuals, influence, new levels."""

    _fit: FitLike

    def fitted(self, *args: Any, **options: Any) -> PlotCollection:
        """Data and fitted lines by level of a grouping factor, and the population's line.

        Each panel has the data of one level, its conditional mean X beta + Z u with two intervals,
        and X beta alone. Where the model has other covariates or grouping factors, both lines are
        averages over the rows of the level, with `x` set to one value after another. A model
        without random effects has one panel, of all rows.

        Parameters
        ----------
        x : str, optional
            Variable of the x axis, numeric or a factor; the first numeric one among the fixed
            effects by default.
        group : str, optional
            Grouping factor as in the formula; needed where there are several.
        levels : sequence, optional
            Levels; all by default, or 30 evenly spaced ones where there are more.
        prob, level : float, optional
            Probability of the intervals of a posterior, coverage of those of an estimate, as in
            ``fit.plot.caterpillar()``.
        uncertainty : {"laplace", "bootstrap", "plugin"}
            Of an estimate: where the uncertainty of the covariance parameters comes from, as in
            :meth:`bayeslmm.Estimate.predict`.
        draws : int
            Of an estimate: draws for the intervals.
        random_seed : int or numpy.random.Generator, optional
            Of an estimate: seed of these draws.
        backend, **pc_kwargs
            As in all pictures (see :class:`~bayeslmm.plots.accessors.Plots`).
        visuals : mapping, optional
            Settings of "data", "fitted", "interval", "inner_interval", "population", "title",
            "xlabel", "ylabel", "xticks", "ticks", "legend" and "figure_title".

        Returns
        -------
        arviz_plots.PlotCollection

        Raises
        ------
        DataError
            If there is no such variable, grouping factor or level, or a combination of `x` and
            levels has not been seen.

        Examples
        --------
        >>> import bayeslmm as blm
        >>> sleep = blm.load_dataset("sleepstudy")
        >>> reml = blm.LMM("Reaction ~ Days + (Days | Subject)", sleep).reml()
        >>> pc = reml.plot.fitted(levels=["308", "309"], backend="none")
        >>> list(pc.viz["fitted"].data_vars)
        ['308', '309']
        """
        raise NotImplementedError

    def covariance(
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
        """Heat maps of the covariance matrices G, R and V = ZGZ' + R, or their posterior means.

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
        backend, **pc_kwargs
            As in all pictures (see :class:`~bayeslmm.plots.accessors.Plots`), but "matplotlib" or
            "none": ArviZ has no visual for images, so that other backends cannot draw this one.
        visuals : mapping, optional
            Settings of "heatmap", "blocks" (outlines of levels), "numbers" (where they fit),
            "title", "ylabel", "xticks", "yticks" and "figure_title".

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
        >>> reml = blm.LMM("Yield ~ 1 + (1 | Batch)", blm.load_dataset("Dyestuff")).reml()
        >>> pc = reml.plot.covariance(levels=["A", "B"], backend="none")
        >>> pc.get_viz("heatmap")["values"].shape
        (10, 10)
        """
        from bayeslmm.plots.covariance import plot_matrices

        return plot_matrices(
            self._fit.design,
            which,
            self._fit._covariances,
            self._fit._residual,
            drawing(backend, visuals, pc_kwargs),
            label=self._source(),
            group=group,
            levels=levels,
            rows=rows,
            correlation=correlation,
        )

    def residuals(
        self,
        group: str | None = None,
        *,
        kind: ResidualKind | None = None,
        backend: Backend | None = None,
        visuals: Visuals = None,
        **pc_kwargs: Any,
    ) -> PlotCollection:
        """Residuals and random effects against what the model assumes of them.

        Both are those of an estimate (conditional modes), or at posterior means. Panels: residuals
        against fitted values with a smooth trend, against normal quantiles and by level of a
        grouping factor, with their mean in each; random effects of every coefficient against normal
        quantiles. Lines go through the quartiles.

        Parameters
        ----------
        group : str, optional
            Grouping factor of the panel by level; the first by default.
        kind : {"response", "pearson", "normalised"}, optional
            Residuals in the unit of the response, over their standard deviations, or whitened by
            their covariance matrix, as in :meth:`bayeslmm.Estimate.residuals`. "normalised" for a
            model with a residual structure and "pearson" for others by default.
        backend, **pc_kwargs
            As in all pictures (see :class:`~bayeslmm.plots.accessors.Plots`).
        visuals : mapping, optional
            Settings of "points", "zero", "qq_line", "level_mean", "trend", "trend_band",
            "inner_trend_band", "title", "xlabel", "ylabel", "xticks", "legend" and "figure_title".

        Returns
        -------
        arviz_plots.PlotCollection

        Raises
        ------
        DataError
            If there is no such grouping factor.
        ValueError
            If there is no such kind.

        Notes
        -----
        The trend is a local line through the nearest three quarters of the rows, tricube weights,
        as R's ``loess(degree = 1)``; its bands are pointwise and take residuals as independent.
        Residuals of a level that is pulled towards the mean keep a part of its effect, so that a
        small upward slope is expected where levels have few rows.

        Examples
        --------
        >>> import bayeslmm as blm
        >>> reml = blm.LMM("Yield ~ 1 + (1 | Batch)", blm.load_dataset("Dyestuff")).reml()
        >>> list(reml.plot.residuals(backend="none").viz["qq_line"].data_vars)
        ['Q-Q of residuals', 'Q-Q of Batch: Intercept']
        """
        from bayeslmm.plots.residuals import plot_residuals

        fit, how = self._fit, drawing(backend, visuals, pc_kwargs)
        label = self._source(several=True)
        covariance = fit._residual
        return plot_residuals(
            fit.design, group, fit._beta, fit._u, covariance, how, label=label, kind=kind
        )

    def variance(
        self,
        *,
        fixed: bool = True,
        prob: float | None = None,
        level: float | None = None,
        random_seed: Seed = 0,
        backend: Backend | None = None,
        visuals: Visuals = None,
        **pc_kwargs: Any,
    ) -> PlotCollection:
        """Share of each part of the model in the variance of the response, with two intervals.

        What ``fit.variance_partition()`` says in numbers: fixed effects, each grouping factor and
        the residual. Shares sum to one; without the fixed effects, those of grouping factors are
        intraclass correlations. Of an estimate, intervals are quantiles of draws around it.

        Parameters
        ----------
        fixed : bool
            Whether the fixed effects are one of the parts.
        prob, level : float, optional
            Probability of the outer intervals of a posterior, coverage of those of an estimate;
            both ArviZ's ``rcParams["stats.ci_prob"]`` by default.
        random_seed : int or numpy.random.Generator, optional
            Of an estimate: seed of the draws.
        backend, **pc_kwargs
            As in all pictures (see :class:`~bayeslmm.plots.accessors.Plots`).
        visuals : mapping, optional
            Settings of "interval", "inner_interval", "point", "density", "zero", "xlabel",
            "ylabel", "yticks", "legend" and "figure_title".

        Returns
        -------
        arviz_plots.PlotCollection

        References
        ----------
        Johnson (2014), doi:10.1111/2041-210X.12225, for the variance of random slopes.

        Examples
        --------
        >>> import bayeslmm as blm
        >>> reml = blm.LMM("Yield ~ 1 + (1 | Batch)", blm.load_dataset("Dyestuff")).reml()
        >>> pc = reml.plot.variance(fixed=False, backend="none")
        >>> pc.get_viz("point")["x"].round(2).tolist()
        [0.42, 0.58]
        """
        from bayeslmm.plots.variance import plot_variance

        joint, point = self._around(random_seed)
        return plot_variance(
            self._fit.design,
            joint,
            point,
            self._coverage(prob, level),
            self._source(),
            drawing(backend, visuals, pc_kwargs),
            fixed=fixed,
        )

    def new_level(
        self,
        group: str | None = None,
        *,
        coefs: Names = None,
        levels: Levels = None,
        order: str = "estimate",
        prob: float | None = None,
        level: float | None = None,
        random_seed: Seed = 0,
        backend: Backend | None = None,
        visuals: Visuals = None,
        **pc_kwargs: Any,
    ) -> PlotCollection:
        """Coefficients of a level that has not been seen, below those of the levels of the data.

        A coefficient of a level is its fixed plus its random effect. That of a new level is a draw
        from the distribution between levels, for each draw of the parameters: what a prediction of
        a new level rests on.

        Parameters
        ----------
        group : str, optional
            Grouping factor as in the formula; needed where there are several.
        coefs : str or sequence of str, optional
            Coefficients, a panel each; all by default.
        levels : sequence, optional
            Levels to show beside the new one; all by default.
        order : {"estimate", "label"}
            Levels by the first coefficient drawn, or as the model has them.
        prob, level : float, optional
            As in :meth:`variance`.
        random_seed : int or numpy.random.Generator, optional
            Seed of the new level, and of the draws around an estimate.
        backend, **pc_kwargs
            As in all pictures (see :class:`~bayeslmm.plots.accessors.Plots`).
        visuals : mapping, optional
            Settings of "interval", "inner_interval", "point", "density", "title", "xlabel",
            "ylabel", "yticks", "legend" and "figure_title".

        Returns
        -------
        arviz_plots.PlotCollection

        Raises
        ------
        DataError
            If there is no such grouping factor or level, there are more than a hundred levels, or
            these have covariance matrices by stratum.
        ValueError
            If there is no such coefficient or order.

        Examples
        --------
        >>> import bayeslmm as blm
        >>> model = blm.LMM("Yield ~ 1 + (1 | Batch)", blm.load_dataset("Dyestuff"))
        >>> pc = model.reml().plot.new_level(backend="none")
        >>> list(pc.viz["point"].data_vars)
        ['Intercept']
        """
        from bayeslmm.plots.variance import plot_new_level

        rng = seeded(random_seed)
        joint, point = self._around(rng)
        return plot_new_level(
            self._fit.design,
            joint,
            point,
            group,
            levels,
            self._coverage(prob, level),
            self._source(),
            drawing(backend, visuals, pc_kwargs),
            coefs=coefs,
            order=order,
            rng=rng,
        )

    def influence(
        self,
        by: Any = None,
        *,
        backend: Backend | None = None,
        visuals: Visuals = None,
        **pc_kwargs: Any,
    ) -> PlotCollection:
        """How much rows, or levels of a grouping variable, move the fit.

        Rows of an estimate: Cook's distances, and residuals against leverages. Levels of an
        estimate: Cook's distance, and how far each coefficient and each standard deviation moves
        where the level is left out. Of a posterior: Kullback-Leibler divergences and shifts of
        posterior means. Levels are ordered by how much they matter; the 40 first are drawn.

        Parameters
        ----------
        by : str or value of ``fit.check.influence()``, optional
            A grouping factor or variable of the formula, whose levels are left out; single rows by
            default. Of an estimate each level costs a refit: what ``fit.check.influence(by)``
            returned is drawn without any.
        backend, **pc_kwargs
            As in all pictures (see :class:`~bayeslmm.plots.accessors.Plots`).
        visuals : mapping, optional
            Settings of "points", "stems", "named", "zero", "title", "xlabel" and "ylabel" (rows)
            or of "point", "interval", "zero", "title", "ylabel", "yticks" and "legend" (levels),
            and of "figure_title".

        Returns
        -------
        arviz_plots.PlotCollection

        Raises
        ------
        DataError
            If there is no such variable, or only the most extreme of many rows are known.
        TypeError
            If `by` is neither a name nor an influence.

        Examples
        --------
        >>> import bayeslmm as blm
        >>> sleep = blm.load_dataset("sleepstudy")
        >>> reml = blm.LMM("Reaction ~ Days + (Days | Subject)", sleep).reml()
        >>> found = reml.check.influence("Subject", progressbar=False)
        >>> pc = reml.plot.influence(found, backend="none")
        >>> list(pc.viz["point"].data_vars)[0]
        "Cook's distance"
        """
        from bayeslmm.plots.judged import plot_influence

        found = self._influence(by) if by is None or isinstance(by, str) else by
        return plot_influence(found, drawing(backend, visuals, pc_kwargs))

    # --- what each kind of fit provides -----------------------------------------------

    def _source(self, *, several: bool = False) -> str:
        """What the values drawn are."""
        raise NotImplementedError

    def _coverage(self, prob: float | None, level: float | None) -> float | None:
        """Coverage of intervals as this kind of fit is told it."""
        raise NotImplementedError

    def _around(self, random_seed: Seed) -> tuple[JointDraws, JointDraws | None]:
        """Draws of all that is not known and, of an estimate, the one at the estimate."""
        raise NotImplementedError

    def _influence(self, by: str | None) -> object:
        """What the check of influence of this kind of fit finds."""
        raise NotImplementedError
