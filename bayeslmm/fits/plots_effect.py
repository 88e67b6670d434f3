"""Pictures of the levels of a posterior: methods."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from bayeslmm.fits.posterior_base import PosteriorBase
from bayeslmm.plots.common import Backend
from bayeslmm.plots.level_order import shown_levels

if TYPE_CHECKING:
    from arviz_plots import PlotCollection

Levels = Sequence[Any] | None
Visuals = Mapping[str, Any] | None


class PosteriorEffectPlots(PosteriorBase):
    """Pictures of the levels of grouping factors."""

    def plot_caterpillar(
        self,
        group: str | None = None,
        *,
        coefs: str | Sequence[str] | None = None,
        levels: Levels = None,
        order: str = "estimate",
        prob: float | None = None,
        backend: Backend | None = None,
        visuals: Visuals = None,
        **pc_kwargs: Any,
    ) -> PlotCollection:
        """Random effects by level with posterior intervals, a panel per coefficient.

        Parameters
        ----------
        group : str, optional
            Grouping factor as in the formula; needed where there are several.
        coefs : str or sequence of str, optional
            Coefficients; all by default.
        levels : sequence, optional
            Levels; all by default, of which a picture shows at most 2,000.
        order : str
            "estimate": levels in the order of the first coefficient drawn, in every panel;
            "label": as the model has them, from the top; or the name of a coefficient.
        prob : float, optional
            Probability of the intervals; ArviZ's rcParams by default, which also choose their kind.
        backend : {"matplotlib", "bokeh", "plotly", "none"}, optional
            ArviZ's ``rcParams["plot.backend"]`` by default.
        visuals : mapping, optional
            Settings of "interval", "point", "ref_line", "title", "xlabel", "ylabel", "yticks" and
            "figure_title"; False leaves one out.
        **pc_kwargs
            Passed on to ``arviz_plots.PlotCollection.wrap``.

        Returns
        -------
        arviz_plots.PlotCollection

        Raises
        ------
        DataError
            If there is no such grouping factor or level, or there are too many levels.
        ValueError
            If there is no such coefficient or order.

        Examples
        --------
        >>> import bayeslmm as blm
        >>> model = blm.LMM("Yield ~ 1 + (1 | Batch)", blm.load_dataset("Dyestuff"))
        >>> pc = model.fit(random_seed=1).plot_caterpillar(backend="none")
        >>> sorted(pc.viz.children)[:3]
        ['col_index', 'interval', 'plot']
        """
        from bayeslmm.plots import caterpillar, sources

        place, positions = shown_levels(self.design, group, levels)
        caterpillar.check_drawable(self.design, place, len(positions))
        effects = sources.effects_of_draws(self.design, self._joint, place, positions, prob)
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

    def plot_shrinkage(
        self,
        group: str | None = None,
        *,
        coefs: str | Sequence[str] | None = None,
        levels: Levels = None,
        backend: Backend | None = None,
        visuals: Visuals = None,
        **pc_kwargs: Any,
    ) -> PlotCollection:
        """What partial pooling does: each level alone, its posterior mean and its REML estimate.

        With one coefficient, levels lie above each other; with two, in the plane of both, with
        lines from where a level is by itself to where the posterior has it and with ellipses that
        hold 50 % and 90 % of levels at the posterior mean of their covariance matrix.

        Without pooling, the response less everything that is no coefficient of this factor (other
        fixed effects, other grouping factors and offsets, at posterior means) is regressed on the
        factor's covariates in each level by itself. Levels whose rows do not determine that have
        no such point.

        Parameters
        ----------
        group : str, optional
            Grouping factor as in the formula; needed where there are several.
        coefs : str or sequence of str, optional
            One or two coefficients; the first two by default.
        levels : sequence, optional
            Levels; all by default.
        backend : {"matplotlib", "bokeh", "plotly", "none"}, optional
            ArviZ's ``rcParams["plot.backend"]`` by default.
        visuals : mapping, optional
            Settings of "no_pooling", "partial_pooling", "reml", "arrow", "population", "ellipse",
            "xlabel", "ylabel", "yticks", "legend" and "figure_title"; False leaves one out.
        **pc_kwargs
            Passed on to ``arviz_plots.PlotCollection.wrap``.

        Returns
        -------
        arviz_plots.PlotCollection

        Raises
        ------
        DataError
            If there is no such grouping factor or level, or no level determines its coefficients.
        ValueError
            If there is no such coefficient.

        References
        ----------
        Bates, Mächler, Bolker, Walker (2015), doi:10.18637/jss.v067.i01; ``shrinkageplot`` of
        MixedModelsMakie.jl.

        Examples
        --------
        >>> import bayeslmm as blm
        >>> sleep = blm.load_dataset("sleepstudy")
        >>> post = blm.LMM("Reaction ~ Days + (Days | Subject)", sleep).fit(random_seed=1)
        >>> pc = post.plot_shrinkage(backend="none")
        >>> pc.get_viz("no_pooling")["x"].shape
        (18,)
        """
        from bayeslmm.plots.shrinkage import plot_posterior_shrinkage

        place, positions = shown_levels(self.design, group, levels)
        return plot_posterior_shrinkage(
            self.design,
            self._plan,
            place,
            positions,
            self._draws["beta"].mean(("chain", "draw")).to_numpy(),
            self._means,
            self._covariances[place],
            coefs=coefs,
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
        prob: float | None = None,
        backend: Backend | None = None,
        visuals: Visuals = None,
        **pc_kwargs: Any,
    ) -> PlotCollection:
        """Data and fitted lines by level of a grouping factor, and the population's line.

        Each panel has the data of one level, its conditional mean X beta + Z u with an interval,
        and X beta alone. Where the model has other covariates or grouping factors, both lines are
        averages over the rows of the level, with `x` set to one value after another.

        Parameters
        ----------
        x : str, optional
            Variable of the x axis, numeric or a factor; the first numeric one among the fixed
            effects by default.
        group : str, optional
            Grouping factor as in the formula; needed where there are several.
        levels : sequence, optional
            Levels; all by default, or 24 evenly spaced ones where there are more.
        prob : float, optional
            Probability of the intervals; ArviZ's rcParams by default, which also choose their kind.
        backend : {"matplotlib", "bokeh", "plotly", "none"}, optional
            ArviZ's ``rcParams["plot.backend"]`` by default.
        visuals : mapping, optional
            Settings of "data", "fitted", "interval", "population", "title", "xlabel", "ylabel",
            "xticks", "legend" and "figure_title"; False leaves one out.
        **pc_kwargs
            Passed on to ``arviz_plots.PlotCollection.wrap``.

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
        >>> post = blm.LMM("Reaction ~ Days + (Days | Subject)", sleep).fit(random_seed=1)
        >>> pc = post.plot_fitted(levels=["308", "309"], backend="none")
        >>> list(pc.viz["fitted"].data_vars)
        ['308', '309']
        """
        from bayeslmm.plots import fitted, sources

        place, along, grids = fitted.grids_of(self.design, x, group, levels)
        lines, label = sources.lines_of_draws(self._joint, grids, prob)
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
