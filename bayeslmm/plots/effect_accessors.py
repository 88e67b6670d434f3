"""``fit.plot``: pictures of what a fit says of its variables."""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache, partial
from typing import TYPE_CHECKING, Any

import numpy as np

from bayeslmm.data.seeds import seeded
from bayeslmm.plots.common import Backend, drawing
from bayeslmm.summaries import FitLike, is_estimate

if TYPE_CHECKING:
    from arviz_plots import PlotCollection

    from bayeslmm.plots.conditional import Kind, PredictionTarget, Request
    from bayeslmm.plots.panels import Bounds
    from bayeslmm.plots.quantities import Draws, Spread
    from bayeslmm.sampling.joint_draws import JointDraws

Names = str | Sequence[str]
Visuals = Mapping[str, Any] | None
Values = Mapping[str, Any] | None


@dataclass(frozen=True, eq=False, repr=False)
class EffectPlots:
    """Pictures of means, contrasts, slopes, comparisons and predictions."""

    _fit: FitLike

    def means(
        self,
        variables: Names = (),
        *,
        by: Names | None = None,
        at: Values = None,
        data: bool | None = None,
        draws: Draws | bool | None = None,
        lines: bool | None = None,
        prob: float | None = None,
        level: float | None = None,
        backend: Backend | None = None,
        visuals: Visuals = None,
        **options: Any,
    ) -> PlotCollection:
        """Marginal means with two intervals, the data and posterior draws behind them.

        What ``fit.means()`` says in numbers. The first variable makes the axis, the next colours
        and the others panels; one with more than eight levels makes panels. Where labels do not
        fit beside each other, means lie above each other.

        Parameters
        ----------
        variables, by, at
            As in ``fit.means()``; give numbers their values in `at`.
        data : bool, optional
            Whether to show the data, beside the means of their levels; numbers that colours or
            panels tell apart are those of the nearest value. By default where rows are in memory.
            At most 5,000 rows are drawn, evenly spaced, as the legend says then.
        draws : {"density", "points", "lines"} or bool, optional
            How posterior draws are shown: by default as lines along numbers, of 50 draws, and as
            densities otherwise. False for none.
        lines : bool, optional
            Whether means are joined, as in an interaction plot: by default over numbers and ordered
            categories.
        prob, level : float, optional
            Probability or coverage of the outer interval, ArviZ's ``rcParams["stats.ci_prob"]`` by
            default; the inner one has 50 %.
        backend
            As in all pictures (see :class:`~bayeslmm.plots.accessors.Plots`).
        visuals : mapping, optional
            Settings of "point", "interval", "inner_interval", "joined", "data", "draws" (lines),
            "draw_points", "density", "title", "xlabel", "ylabel", "xticks", "yticks", "legend" and
            "figure_title".
        **options
            Further arguments of ``fit.means()`` (`weights`, `target`); all else goes to
            ``arviz_plots.PlotCollection.wrap``.

        Returns
        -------
        arviz_plots.PlotCollection

        Raises
        ------
        DataError
            If a variable or a level is unknown, there are too many panels, or data beyond memory
            are asked for.
        ValueError
            If an option is unknown, or an estimate is asked for draws.

        References
        ----------
        R's ``emmeans::emmip`` and ``plot.emmGrid``; ``ggdist::stat_halfeye`` for densities.

        Examples
        --------
        >>> import bayeslmm as blm
        >>> model = blm.LMM("score ~ Machine + (1 | Worker)", blm.load_dataset("Machines"))
        >>> pc = model.reml().plot.means("Machine", backend="none")
        >>> pc.get_viz("point", " ")["y"].round(2).tolist()
        [52.36, 60.32, 66.27]
        """
        from bayeslmm.plots.quantities import plot_means

        own, rest = _split(self._fit.means, options)
        how = drawing(backend, visuals, rest)
        quantities = self._fit.means(variables, by=by, at=at, **own)
        return plot_means(
            self._fit.design,
            quantities,
            self._coverage(prob, level),
            self._source(),
            how,
            at=at,
            data=data,
            draws=draws,
            lines=lines,
        )

    def contrasts(
        self,
        variables: Names,
        method: Any = "pairwise",
        *,
        draws: Draws | bool | None = None,
        prob: float | None = None,
        level: float | None = None,
        backend: Backend | None = None,
        visuals: Visuals = None,
        **options: Any,
    ) -> PlotCollection:
        """Contrasts of marginal means with two intervals and a line at zero.

        Intervals of an estimate are adjusted as those of ``fit.contrasts().table()``.

        Parameters
        ----------
        variables, method
            As in ``fit.contrasts()``.
        draws
            As in :meth:`means`.
        prob, level, backend
            As in :meth:`means`.
        visuals : mapping, optional
            Settings of "zero", "point", "interval", "inner_interval", "draws", "draw_points",
            "density", "title", "xlabel", "ylabel", "yticks", "legend" and "figure_title".
        **options
            Further arguments of ``fit.contrasts()`` (`by`, `at`, `weights`, `adjust`): `by` makes
            colours. All else goes to ``arviz_plots.PlotCollection.wrap``.

        Returns
        -------
        arviz_plots.PlotCollection

        Raises
        ------
        DataError, ValueError
            As ``fit.contrasts()`` does, or if an estimate is asked for draws.

        Examples
        --------
        >>> import bayeslmm as blm
        >>> model = blm.LMM("score ~ Machine + (1 | Worker)", blm.load_dataset("Machines"))
        >>> pc = model.reml().plot.contrasts("Machine", backend="none")
        >>> pc.get_viz("point", " ")["x"].round(2).tolist()
        [-7.97, -13.92, -5.95]
        """
        own, rest = _split(self._fit.contrasts, options)
        quantities = self._fit.contrasts(variables, method, **own)
        value = f"difference in {self._fit.design.response}"
        how = drawing(backend, visuals, rest)
        return self._differences(quantities, value, how, "contrast", draws, prob, level)

    def comparisons(
        self,
        variable: str,
        change: Any = None,
        *,
        draws: Draws | bool | None = None,
        prob: float | None = None,
        level: float | None = None,
        backend: Backend | None = None,
        visuals: Visuals = None,
        **options: Any,
    ) -> PlotCollection:
        """Average differences of predictions with two intervals and a line at zero.

        Parameters
        ----------
        variable, change
            As in ``fit.comparisons()``.
        draws, prob, level, backend, visuals
            As in :meth:`contrasts`.
        **options
            Further arguments of ``fit.comparisons()`` (`by`, `new`, `target`): `by` makes colours.
            All else goes to ``arviz_plots.PlotCollection.wrap``.

        Returns
        -------
        arviz_plots.PlotCollection

        Raises
        ------
        DataError, ValueError
            As ``fit.comparisons()`` does, or if an estimate is asked for draws.

        References
        ----------
        R's ``marginaleffects::plot_comparisons``.

        Examples
        --------
        >>> import bayeslmm as blm
        >>> orthodont = blm.load_dataset("Orthodont")
        >>> reml = blm.LMM("distance ~ age * Sex + (age | Subject)", orthodont).reml()
        >>> pc = reml.plot.comparisons("age", (8, 14), by="Sex", backend="none")
        >>> pc.viz["point"].sizes["series"]
        2
        """
        own, rest = _split(self._fit.comparisons, options)
        quantities = self._fit.comparisons(variable, change, **own)
        value = f"difference in {self._fit.design.response}"
        how = drawing(backend, visuals, rest)
        return self._differences(quantities, value, how, "contrast", draws, prob, level)

    def slopes(
        self,
        variable: str,
        *,
        along: str | None = None,
        by: Names | None = None,
        at: Values = None,
        draws: Draws | bool | None = None,
        prob: float | None = None,
        level: float | None = None,
        backend: Backend | None = None,
        visuals: Visuals = None,
        **options: Any,
    ) -> PlotCollection:
        """Slopes by a covariate with two intervals and a line at zero, or along another variable.

        Parameters
        ----------
        variable, by, at
            As in ``fit.slopes()``; `by` makes colours and panels.
        along : str, optional
            A variable of the fixed effects along which the slope is drawn, a curve with bands over
            a number: the conditional slope, at the reference grid of ``fit.means()``. Other numbers
            in `by` have three values, the mean and the mean less and plus the standard deviation,
            unless `at` has theirs.
        draws, prob, level, backend, visuals
            As in :meth:`contrasts`; a curve has "band", "inner_band" and "curve".
        **options
            Further arguments of ``fit.slopes()`` (`new`, `target`); all else goes to
            ``arviz_plots.PlotCollection.wrap``.

        Returns
        -------
        arviz_plots.PlotCollection

        Raises
        ------
        DataError, ValueError
            As ``fit.slopes()`` does, or if an estimate is asked for draws.

        References
        ----------
        R's ``marginaleffects::plot_slopes``; ``emmeans::emtrends``; Brambor, Clark, Golder (2006),
        doi:10.1093/pan/mpi014, for slopes along a moderator.

        Examples
        --------
        >>> import bayeslmm as blm
        >>> orthodont = blm.load_dataset("Orthodont")
        >>> reml = blm.LMM("distance ~ age * Sex + (age | Subject)", orthodont).reml()
        >>> pc = reml.plot.slopes("age", by="Sex", backend="none")
        >>> pc.get_viz("point", " ")["x"].round(3).tolist()
        [0.784, 0.48]
        """
        from bayeslmm.plots.conditional import plot_slopes_along

        own, rest = _split(self._fit.slopes, options)
        how = drawing(backend, visuals, rest)
        if along is None:
            quantities = self._fit.slopes(variable, by=by, at=at, **own)
            value = f"change in {self._fit.design.response} per unit of {variable}"
            return self._differences(quantities, value, how, None, draws, prob, level)
        return plot_slopes_along(
            self._fit.design,
            lambda *args, **values: self._fit.slopes(*args, **values, **own),
            variable,
            along,
            self._coverage(prob, level),
            self._source(),
            how,
            by=by,
            at=at,
            draws=draws,
        )

    def predictions(
        self,
        x: str | None = None,
        *,
        by: Names | None = None,
        at: Values = None,
        target: PredictionTarget | None = None,
        kind: Kind = "epred",
        data: bool | None = None,
        draws: Draws | bool | None = None,
        prob: float | None = None,
        level: float | None = None,
        random_seed: int | np.random.Generator | None = 0,
        backend: Backend | None = None,
        visuals: Visuals = None,
        **options: Any,
    ) -> PlotCollection:
        """Predictions along a variable, with two bands of the mean and the data behind.

        Without `x`, a panel for each term of the fixed effects that is part of no other: the
        conditional effects of brms, the effects plots of R's effects. Curves over numbers, points
        over factors; an interaction has the values of its second variable in colours and those of
        further ones in panels. What is not told apart is averaged over as in ``fit.means()``:
        numbers are at their means, the levels of factors count equally. A curve is dotted where
        `at` takes it beyond the data.

        Parameters
        ----------
        x : str, optional
            Variable of the axis.
        by : str or sequence of str, optional
            Variables told apart by colours, the first, and panels. A number has three values, its
            mean and that less and plus its standard deviation, unless `at` says which.
        at : mapping, optional
            Values of variables, as in ``fit.means()``.
        target : {"average", "population"}, optional
            Whose predictions: those with random effects of zero, whose bands are those of the mean
            (the default); or also those of new levels, in wider, dashed bounds (the default for
            ``kind="response"``). Levels of the data have pictures of their own, :meth:`fitted`.
        kind : {"epred", "response"}
            With "response", dashed bounds are those of new responses.
        data : bool, optional
            Whether to show the data, as in :meth:`means`.
        draws : {"lines", "density", "points"} or bool, optional
            Whether and how to show posterior draws: none by default; lines are of 50 draws.
        prob, level : float, optional
            Probability or coverage of the outer band, ArviZ's ``rcParams["stats.ci_prob"]`` by
            default, and of dashed bounds; the inner band has 50 %.
        random_seed : int or numpy.random.Generator, optional
            Seed of the draws that dashed bounds are made of: of an estimate 1,000 around it, as in
            :meth:`bayeslmm.Estimate.predict`.
        backend
            As in all pictures (see :class:`~bayeslmm.plots.accessors.Plots`).
        visuals : mapping, optional
            Settings of "curve", "beyond", "band", "inner_band", "wider_band", of the visuals of
            :meth:`means`, and of "wider".
        **options
            Further arguments of ``fit.means()`` (`weights`); all else goes to
            ``arviz_plots.PlotCollection.wrap``.

        Returns
        -------
        arviz_plots.PlotCollection

        Raises
        ------
        DataError
            If a variable is unknown, there is none, or there are too many panels.
        ValueError
            If an option is unknown, or an estimate is asked for draws.

        Notes
        -----
        Dashed bounds are quantiles of draws at all combinations of the factors that are averaged
        over: the distribution of a response whose levels of these are equally likely.

        References
        ----------
        R's ``brms::conditional_effects``, ``marginaleffects::plot_predictions``,
        ``effects::allEffects`` and ``ggeffects::ggpredict``.

        Examples
        --------
        >>> import bayeslmm as blm
        >>> orthodont = blm.load_dataset("Orthodont")
        >>> reml = blm.LMM("distance ~ age * Sex + (age | Subject)", orthodont).reml()
        >>> pc = reml.plot.predictions("age", by="Sex", backend="none")
        >>> pc.viz["curve"].sizes["series"]
        2
        """
        from bayeslmm.plots.conditional import plot_predictions

        own, rest = _split(self._fit.means, options)
        chosen = target or ("population" if kind == "response" else "average")
        request = self._request(chosen, kind, self._coverage(prob, level), random_seed, own)
        how = drawing(backend, visuals, rest)
        return plot_predictions(request, x, by, at, how, data=data, draws=draws)

    def hypothesis(
        self,
        expressions: Names,
        *,
        rope: float | Sequence[float] | None = None,
        prob: float | None = None,
        level: float | None = None,
        backend: Backend | None = None,
        visuals: Visuals = None,
        **options: Any,
    ) -> PlotCollection:
        """Left side less right side of hypotheses, with a line at zero.

        Of a posterior its density in a panel each, the prior's beside it (that of the Savage-Dickey
        ratio at zero), and the region of practical equivalence shaded; probabilities and evidence
        ratios are written below. Of an estimate points with two intervals.

        Parameters
        ----------
        expressions : str or sequence of str
            As in ``fit.hypothesis()``, at most 24.
        rope : float or pair of float, optional
            Of a posterior: region of practical equivalence, as in ``fit.hypothesis()``.
        prob, level : float, optional
            Of an estimate: coverage of the outer interval, as in :meth:`means`.
        backend
            As in all pictures (see :class:`~bayeslmm.plots.accessors.Plots`).
        visuals : mapping, optional
            Settings of "posterior", "posterior_area", "prior", "prior_area", "line", "region",
            "title", "xlabel", "legend" and "figure_title"; of an estimate as in :meth:`contrasts`.
        **options
            Further arguments of ``fit.hypothesis()``; all else goes to
            ``arviz_plots.PlotCollection.wrap``.

        Returns
        -------
        arviz_plots.PlotCollection

        Raises
        ------
        DataError
            If there are too many hypotheses.
        FormulaError
            As ``fit.hypothesis()`` does.

        References
        ----------
        R's ``plot.brmshypothesis``; Wagenmakers and others (2010),
        doi:10.1016/j.cogpsych.2009.12.001, for the picture of a Savage-Dickey ratio.

        Examples
        --------
        >>> import bayeslmm as blm
        >>> sleep = blm.load_dataset("sleepstudy")
        >>> model = blm.LMM("Reaction ~ Days + (Days | Subject)", sleep)
        >>> pc = model.reml().plot.hypothesis(["Days = 0", "Days = 10"], backend="none")
        >>> pc.get_viz("point", " ")["x"].round(2).tolist()
        [10.47, 0.47]
        """
        own, rest = _split(self._fit.hypothesis, options)
        own |= {} if rope is None else {"rope": rope}
        found = self._fit.hypothesis(expressions, **own)
        how = drawing(backend, visuals, rest)
        coverage = self._coverage(prob, level)
        return self._hypotheses(found, expressions, coverage, how, own)

    def forest(
        self,
        group: str | None = None,
        *,
        order: str = "data",
        exp: bool = False,
        prob: float | None = None,
        level: float | None = None,
        backend: Backend | None = None,
        visuals: Visuals = None,
        **pc_kwargs: Any,
    ) -> PlotCollection:
        """Forest plot of estimates with known standard errors: a meta-analysis.

        Each row of the data is a line: what it reported (a grey square, larger where it is more
        precise) with a normal interval, and what the model knows of its effect, pulled towards the
        others. Below are the mean, as a diamond, and where the effect of a new unit lies, as
        ``fit.heterogeneity().prediction`` has it. With moderators both are at their means, and over
        the levels of factors equally.

        Parameters
        ----------
        group : str, optional
            Grouping factor whose levels label the rows; by default the one with most levels. Labels
            that are not of one row have its index too.
        order : {"data", "label", "estimate"}
            From the top: as in the data, by label in natural order, or by what was reported.
        exp : bool
            Whether to write exponentials, for log ratios: the axis is logarithmic then.
        prob, level : float, optional
            Probability or coverage of intervals, as in :meth:`means`.
        backend
            As in all pictures (see :class:`~bayeslmm.plots.accessors.Plots`).
        visuals : mapping, optional
            Settings of "observed", "observed_interval", "point", "interval", "inner_interval",
            "mean", "mean_line", "new", "ref_line", "numbers", "xlabel", "xticks", "yticks",
            "legend" and "figure_title".
        **pc_kwargs
            For ``arviz_plots.PlotCollection.wrap``.

        Returns
        -------
        arviz_plots.PlotCollection

        Raises
        ------
        DataError
            If standard errors are not known, there is no such grouping factor, or more than 500
            rows.
        ValueError
            If the order is unknown.

        References
        ----------
        Lewis, Clarke (2001), doi:10.1136/bmj.322.7300.1479; R's ``metafor::forest``.

        Examples
        --------
        >>> import numpy as np, bayeslmm as blm
        >>> rows = {"trial": list("abcd"), "effect": [0.1, 0.5, -0.2, 0.4], "se": [0.1] * 4}
        >>> reml = blm.LMM("effect ~ 1 + (1 | trial)", rows, residual="se(se)").reml()
        >>> pc = reml.plot.forest(order="estimate", backend="none")
        >>> pc.get_viz("observed")["x"].tolist()
        [-0.2, 0.1, 0.4, 0.5]
        """
        from bayeslmm.plots.conditional import chance_of, new_unit, wider_bounds
        from bayeslmm.plots.forest import Forest, plot_forest, reported_rows
        from bayeslmm.plots.quantities import spread_of

        design, coverage = self._fit.design, self._coverage(prob, level)
        labels, ranks = reported_rows(design, group)
        mean, mixed = self._fit.means(), len(design.random) > 0
        request = self._request("population", "epred", coverage, 0, {})
        at, told_apart = new_unit(design)
        new = None
        if mixed:
            new = (
                wider_bounds(request, mean, (), {})
                if told_apart
                else self._new_effect(coverage, at)
            )
        forest = Forest(
            labels=labels,
            reported=np.asarray(design.y),
            error=np.sqrt(self._fit._residual.diagonal()),
            shrunken=self._expected(coverage) if mixed else None,
            mean=spread_of(mean, coverage, self._source()),
            new=new,
            prob=chance_of(request)[0],
        )
        how = drawing(backend, visuals, pc_kwargs)
        return plot_forest(design, forest, ranks, how, order=order, exp=exp)

    # --- what each kind of fit provides -----------------------------------------------

    def _source(self, *, several: bool = False) -> str:
        """What the values drawn are."""
        raise NotImplementedError

    def _coverage(self, prob: float | None, level: float | None) -> float | None:
        """Coverage of intervals as this kind of fit is told it."""
        raise NotImplementedError

    def _prediction_draws(self, rng: np.random.Generator) -> JointDraws:
        """Draws of the parameters for predictions."""
        raise NotImplementedError

    def _expected(self, prob: float | None) -> Spread:
        """Expected response of each row of the data, with two intervals."""
        raise NotImplementedError

    def _hypotheses(
        self, found: Any, expressions: Names, prob: float | None, how: Any, options: Any
    ) -> PlotCollection:
        """Draw what hypotheses of this kind of fit say."""
        raise NotImplementedError

    def _new_effect(self, prob: float | None, at: Any) -> Bounds | None:
        """Bounds (1,) of the effect of a new unit; None where there are several kinds of units."""
        raise NotImplementedError

    def _request(
        self,
        target: str,
        kind: str,
        prob: float | None,
        random_seed: int | np.random.Generator | None,
        options: Mapping[str, Any],
    ) -> Request:
        """What is drawn of this fit by its variables."""
        from bayeslmm.plots.conditional import Request

        rng = seeded(random_seed)
        return Request(
            design=self._fit.design,
            means=self._fit.means,
            joint=cache(partial(self._prediction_draws, rng)),
            prob=prob,
            source=self._source(),
            target=target,
            kind=kind,
            seed=int(rng.integers(2**63)),
            estimated=is_estimate(self._fit),
            options=options,
        )

    def _differences(
        self,
        quantities: Any,
        value: str,
        how: Any,
        main: str | None,
        draws: Draws | bool | None,
        prob: float | None,
        level: float | None,
    ) -> PlotCollection:
        from bayeslmm.plots.quantities import plot_differences

        return plot_differences(
            self._fit.design,
            quantities,
            self._coverage(prob, level),
            self._source(),
            how,
            value=value,
            main=main,
            draws=draws,
        )


def _split(verb: Any, options: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """Options that a verb takes, and the others."""
    known = inspect.signature(verb).parameters
    own = {name: value for name, value in options.items() if name in known}
    return own, {name: value for name, value in options.items() if name not in known}
