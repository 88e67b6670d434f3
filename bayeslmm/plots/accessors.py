"""``fit.plot``: the pictures of an estimate and of a posterior."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, override

import numpy as np
import pandas as pd

from bayeslmm.plots.check_accessors import CheckPlots
from bayeslmm.plots.common import Backend, Drawing, drawing, level_of_picture
from bayeslmm.plots.effect_accessors import EffectPlots
from bayeslmm.summaries import EstimateLike, PosteriorLike, verbs

if TYPE_CHECKING:
    from arviz_plots import PlotCollection

    from bayeslmm.checks.sensitivity import Sensitivity
    from bayeslmm.estimation.executor import Executor
    from bayeslmm.plots.panels import Bounds
    from bayeslmm.plots.predictive import Kind
    from bayeslmm.plots.quantities import Spread
    from bayeslmm.prediction.checks import Statistic
    from bayeslmm.sampling.joint_draws import JointDraws, Uncertainty

Names = str | Sequence[str] | None
Levels = Sequence[Any] | None
Visuals = Mapping[str, Any] | None
Seed = int | np.random.Generator | None


@dataclass(frozen=True, eq=False, repr=False)
class Plots(EffectPlots, CheckPlots):
    """Pictures that an estimate and a posterior both have.

    All are drawn by ArviZ and returned as its ``PlotCollection``. Three arguments are the same in
    all of them: `backend` is "matplotlib", "bokeh", "plotly" or "none", ArviZ's
    ``rcParams["plot.backend"]`` by default; `visuals` has settings by part of the picture, or
    False, which leaves it out; and what else is given goes to ``arviz_plots.PlotCollection.wrap``.
    """

    def __repr__(self) -> str:
        return f"fit.plot: {verbs(self)}"

    def caterpillar(self, *args: Any, **options: Any) -> PlotCollection:
        """Random effects by level with two intervals, a panel per coefficient.

        Posterior means with posterior intervals, or conditional modes with normal prediction
        intervals, whose standard errors are those of ``ranef_sd()``.

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
        prob, level : float, optional
            Probability of the intervals of a posterior, coverage of those of an estimate; both
            ArviZ's ``rcParams["stats.ci_prob"]`` by default. Its rcParams also choose the kind of
            posterior intervals.
        backend, **pc_kwargs
            As in all pictures (see :class:`Plots`).
        visuals : mapping, optional
            Settings of "interval", "inner_interval", "point", "ref_line", "title", "xlabel",
            "ylabel", "yticks" and "figure_title".

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
        >>> pc = model.fit(random_seed=1).plot.caterpillar(backend="none")
        >>> sorted(pc.viz.children)[:3]
        ['col_index', 'inner_interval', 'interval']
        >>> pc = model.reml().plot.caterpillar(backend="none")
        >>> pc.get_viz("point")["y"].tolist()
        [0.0, 1.0, 2.0, 3.0, 4.0, 5.0]
        """
        raise NotImplementedError


@dataclass(frozen=True, eq=False, repr=False)
class EstimatePlots(Plots):
    """Pictures of an estimate: those that a posterior has too, and profiles."""

    _fit: EstimateLike

    @override
    def caterpillar(
        self,
        group: str | None = None,
        *,
        coefs: Names = None,
        levels: Levels = None,
        order: str = "estimate",
        level: float | None = None,
        backend: Backend | None = None,
        visuals: Visuals = None,
        **pc_kwargs: Any,
    ) -> PlotCollection:
        from bayeslmm.plots.effects import effects_of_fit, plot_caterpillar

        design, how = self._fit.design, drawing(backend, visuals, pc_kwargs)
        intervals = partial(effects_of_fit, self._fit.fit, level)
        return plot_caterpillar(design, group, levels, intervals, how, coefs=coefs, order=order)

    @override
    def fitted(
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
        from bayeslmm.plots.fitted import lines_of_fit, plot_fitted
        from bayeslmm.sampling.joint_draws import estimate_draws

        design, fit, how = self._fit.design, self._fit.fit, drawing(backend, visuals, pc_kwargs)

        def lines(grids: Any) -> Any:
            joint = estimate_draws(design, fit, uncertainty, draws, random_seed)
            return lines_of_fit(fit, joint, grids, level)

        return plot_fitted(design, x, group, levels, lines, how)

    @override
    def _source(self, *, several: bool = False) -> str:
        return f"{self._fit.method} estimate"

    @override
    def _coverage(self, prob: float | None, level: float | None) -> float | None:
        from bayeslmm.effects.sources import one_level

        return one_level(prob, level, level_of_picture(None))

    @override
    def _prediction_draws(self, rng: np.random.Generator) -> JointDraws:
        from bayeslmm.sampling.joint_draws import estimate_draws

        return estimate_draws(self._fit.design, self._fit.fit, random_seed=rng)

    @override
    def _around(self, random_seed: Seed) -> tuple[JointDraws, JointDraws | None]:
        from bayeslmm.sampling.joint_draws import estimate_draws, point_draws

        fit = self._fit.fit
        around = estimate_draws(self._fit.design, fit, random_seed=random_seed)
        return around, point_draws(fit, self._fit._u)

    @override
    def _influence(self, by: str | None) -> object:
        from bayeslmm.checks.row_extremes import influence

        return influence(self._fit.design, self._fit.fit, by)

    @override
    def _expected(self, prob: float | None) -> Spread:
        from bayeslmm.plots.quantities import spread_of_tables

        def table(level: float) -> pd.DataFrame:
            return self._fit.predict(kind="epred", level=level, random_seed=0)

        return spread_of_tables(table, prob, self._source(), estimated=True)

    @override
    def _hypotheses(
        self, found: Any, expressions: Any, prob: float | None, how: Drawing, options: Any
    ) -> PlotCollection:
        from bayeslmm.plots.hypotheses import plot_tests

        return plot_tests(found, prob, self._source(), self._fit.design.response, how)

    @override
    def _new_effect(self, prob: float | None, at: Any) -> Bounds | None:
        level = level_of_picture(prob)
        table = self._fit.heterogeneity(level=level, at=at).prediction
        return (
            None
            if len(table) != 1
            else (table["pred_low"].to_numpy(), table["pred_high"].to_numpy())
        )

    def profile(
        self,
        labels: Names = None,
        *,
        level: float | None = None,
        executor: Executor | None = None,
        backend: Backend | None = None,
        visuals: Visuals = None,
        **pc_kwargs: Any,
    ) -> PlotCollection:
        """Profile likelihoods: the signed root of the deviance along each parameter.

        Zeta is the root of twice the log-likelihood lost where the parameter is held at a value,
        below zero on the left of its maximum. A straight line is a normal likelihood, for which
        Wald intervals are right; a curved one is a skewed likelihood. Confidence limits are where
        zeta reaches normal quantiles. A line that ends inside the panel ends at the last root that
        is found before a bound of the parameter, such as a standard deviation of zero.

        Parameters
        ----------
        labels : str or sequence of str, optional
            Parameters, such as ``"sd[Subject, Days]"``; all that have a profile by default.
        level : float, optional
            Coverage of the outer limits; ArviZ's ``rcParams["stats.ci_prob"]`` by default.
        executor : concurrent.futures.Executor or the like, optional
            Where profiles are computed, as in ``fit.confint("profile")``.
        backend, **pc_kwargs
            As in all pictures (see :class:`Plots`).
        visuals : mapping, optional
            Settings of "profile", "normal", "limits", "zero", "title", "ylabel", "ticks", "legend"
            and "figure_title".

        Returns
        -------
        arviz_plots.PlotCollection

        Raises
        ------
        DataError
            If one of `labels` has no profile, or no parameter has.
        ValueError
            If a label is unknown, or the fit is a MAP estimate.

        Notes
        -----
        Covariance parameters are profiled on the criterion of the fit, fixed effects always on the
        full likelihood around its own maximum. Profiles are found at ten roots, those of the limits
        among them, and joined by a monotone spline.

        References
        ----------
        Bates, Mächler, Bolker, Walker (2015), doi:10.18637/jss.v067.i01, section 5.1;
        ``xyplot(profile(fit))`` of lme4.

        Examples
        --------
        >>> import bayeslmm as blm
        >>> reml = blm.LMM("Yield ~ 1 + (1 | Batch)", blm.load_dataset("Dyestuff")).reml()
        >>> pc = reml.plot.profile("sigma", backend="none")
        >>> list(pc.viz["profile"].data_vars)
        ['sigma']
        """
        from bayeslmm.plots.profiles import plot_profile

        fit, how = self._fit.fit, drawing(backend, visuals, pc_kwargs)
        return plot_profile(fit, self._fit.design, level, how, labels=labels, executor=executor)


@dataclass(frozen=True, eq=False, repr=False)
class PosteriorPlots(Plots):
    """Pictures of a posterior.

    Those of an estimate but profiles; shrinkage, prior beside posterior, predictive checks,
    sensitivity, Pareto k and densities with an estimate.
    """

    _fit: PosteriorLike

    @override
    def caterpillar(
        self,
        group: str | None = None,
        *,
        coefs: Names = None,
        levels: Levels = None,
        order: str = "estimate",
        prob: float | None = None,
        backend: Backend | None = None,
        visuals: Visuals = None,
        **pc_kwargs: Any,
    ) -> PlotCollection:
        from bayeslmm.plots.effects import effects_of_draws, plot_caterpillar

        design, how = self._fit.design, drawing(backend, visuals, pc_kwargs)
        intervals = partial(effects_of_draws, self._fit._joint, prob)
        return plot_caterpillar(design, group, levels, intervals, how, coefs=coefs, order=order)

    @override
    def fitted(
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
        from bayeslmm.plots.fitted import lines_of_draws, plot_fitted

        lines = partial(lines_of_draws, self._fit._joint, prob)
        how = drawing(backend, visuals, pc_kwargs)
        return plot_fitted(self._fit.design, x, group, levels, lines, how)

    @override
    def _source(self, *, several: bool = False) -> str:
        return "posterior means" if several else "posterior mean"

    @override
    def _coverage(self, prob: float | None, level: float | None) -> float | None:
        from bayeslmm.effects.sources import refuse_level

        refuse_level(level)
        return prob

    @override
    def _prediction_draws(self, rng: np.random.Generator) -> JointDraws:
        return self._fit._joint

    @override
    def _around(self, random_seed: Seed) -> tuple[JointDraws, JointDraws | None]:
        return self._fit._joint, None

    @override
    def _influence(self, by: str | None) -> object:
        from bayeslmm.checks.influence import posterior_influence

        return posterior_influence(self._fit.model, self._fit._joint, by)

    @override
    def _expected(self, prob: float | None) -> Spread:
        from bayeslmm.plots.quantities import spread_of_tables

        def table(chance: float) -> pd.DataFrame:
            return self._fit.predict(kind="epred", prob=chance)

        return spread_of_tables(table, prob, self._source(), estimated=False)

    @override
    def _hypotheses(
        self, found: Any, expressions: Any, prob: float | None, how: Drawing, options: Any
    ) -> PlotCollection:
        from bayeslmm.plots.hypotheses import plot_judged, prior_differences

        whole = options.get("scope", "standard") == "standard"
        model, joint = self._fit.model, self._fit._joint
        before = prior_differences(model, joint, expressions) if whole else None
        return plot_judged(found, before, options.get("rope"), how)

    @override
    def _new_effect(self, prob: float | None, at: Any) -> Bounds | None:
        from bayeslmm.plots.quantities import bounds_of

        table = self._fit.heterogeneity(prob, at=at, random_seed=0).prediction
        return None if len(table) != 1 else bounds_of(table)

    def shrinkage(
        self,
        group: str | None = None,
        *,
        coefs: Names = None,
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
        backend, **pc_kwargs
            As in all pictures (see :class:`Plots`).
        visuals : mapping, optional
            Settings of "no_pooling", "partial_pooling", "reml", "arrow", "population", "ellipse",
            "xlabel", "ylabel", "yticks", "legend" and "figure_title".

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
        >>> pc = post.plot.shrinkage(backend="none")
        >>> pc.get_viz("no_pooling")["x"].shape
        (18,)
        """
        from bayeslmm.plots.effects import plot_shrinkage

        return plot_shrinkage(
            self._fit.design,
            self._fit.model.reml,
            group,
            levels,
            self._fit._beta,
            self._fit._u,
            self._fit._covariances,
            drawing(backend, visuals, pc_kwargs),
            coefs=coefs,
        )

    def prior_posterior(
        self,
        labels: Names = None,
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
            Parameters to draw, such as ``"sd[Subject, Days]"``; all that are not known by default.
        random_seed : int or numpy.random.Generator, optional
            Seed of the draws from priors without a closed form, 100,000 of them.
        backend, **pc_kwargs
            As in all pictures (see :class:`Plots`).
        visuals : mapping, optional
            Settings of "prior", "prior_area", "posterior", "posterior_area", "title", "legend" and
            "figure_title".

        Returns
        -------
        arviz_plots.PlotCollection
            Each panel shows the posterior and the central 90 % of the prior. Prior densities are
            exact where they have a closed form: those of fixed effects, of correlations and of
            standard deviations whose columns are not mixed with others (see ``model.priors``);
            elsewhere, as posterior ones, of draws.

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
        >>> pc = model.fit(random_seed=1).plot.prior_posterior("sigma", backend="none")
        >>> list(pc.viz["prior"].data_vars)
        ['sigma']
        """
        from bayeslmm.plots.densities import plot_parameters
        from bayeslmm.summaries.parameters import parameter_draws

        design, draws = self._fit.design, self._fit._draws
        return plot_parameters(
            design,
            self._fit.priors,
            drawing(backend, visuals, pc_kwargs),
            labels=labels,
            random_seed=random_seed,
            posterior=lambda row: parameter_draws(draws, design, row).ravel(),
        )

    def predictive(
        self,
        kind: Kind = "dist",
        *,
        by: str | None = None,
        x: str | None = None,
        statistic: str | Statistic = "mean",
        prob: float | None = None,
        random_seed: Seed = None,
        backend: Backend | None = None,
        visuals: Visuals = None,
        **kwargs: Any,
    ) -> PlotCollection:
        """Predictive checks: replicated responses against the observed ones.

        The replicates are those of group posterior_predictive
        (:meth:`bayeslmm.Posterior.with_posterior_predictive`), or, where `data` has none,
        conditional ones made for the picture.

        Parameters
        ----------
        kind : {"dist", "interval", "tstat", "pit", "loo_pit"}
            Densities or a statistic, by ArviZ's ``plot_ppc_dist`` and ``plot_ppc_tstat``; two
            intervals of each row, of which more than 60 make bands, ordered by predicted mean; the
            probability integral transform, or the exact leave-one-out transform of
            ``post.check.loo_pit()``: their distribution function less the uniform one, in a
            simultaneous band.
        by : str, optional
            Grouping factor or variable, for "dist" and "interval" (a panel per level) and "tstat"
            (the statistic of each level, as ``post.check.predictive()`` computes it, in the order
            of a numeric variable, else of the observed statistic).
        x : str, optional
            Covariate along which panels of "interval" by level run; the first numeric one among the
            fixed effects by default.
        statistic : {"mean", "sd", "min", "max", "median"} or callable
            For "tstat".
        prob : float, optional
            Probability of intervals and bands; ArviZ's rcParams by default.
        random_seed : int or numpy.random.Generator, optional
            Seed of replicates made for the picture.
        backend
            As in all pictures (see :class:`Plots`).
        visuals : mapping, optional
            Settings of ArviZ's function ("tstat" by level: "observed", "replicated", "interval",
            "inner_interval", "xlabel", "ylabel", "yticks"; "interval": "interval",
            "inner_interval", "observed", "outside", "title", "xlabel", "ylabel", "ticks"; "pit":
            "ecdf", "band", "ref_line", "xlabel", "ylabel"), "legend" and "figure_title".
        **kwargs
            Passed on to ArviZ's function, or to ``PlotCollection.wrap``.

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
        >>> pc = post.plot.predictive("tstat", by="Batch", random_seed=2, backend="none")
        >>> pc.get_viz("observed")["x"].shape
        (6,)
        """
        from bayeslmm.checks.loo import loo_pit_series
        from bayeslmm.plots.predictive import plot_predictive, with_replicates

        model, data, joint = self._fit.model, self._fit.data, self._fit._joint
        how = drawing(backend, visuals, kwargs)
        return plot_predictive(
            model.design,
            with_replicates(data, model.design, joint, kind, random_seed),
            kind,
            lambda: loo_pit_series(model, data, joint, progressbar=True).to_numpy(),
            how,
            by=by,
            x=x,
            statistic=statistic,
            prob=prob,
        )

    def reml(
        self,
        reml: Any,
        *,
        labels: Names = None,
        prob: float | None = None,
        names: Mapping[str, str] | None = None,
        backend: Backend | None = None,
        visuals: Visuals = None,
        **pc_kwargs: Any,
    ) -> PlotCollection:
        """Posterior densities with the REML estimate and its confidence interval.

        Parameters
        ----------
        reml : Estimate, statsmodels MixedLMResults, DataFrame, str or path
            The estimate, as :func:`bayeslmm.compare_reml` takes it.
        labels : str or sequence of str, optional
            Parameters to draw, such as ``"sd[Subject, Days]"``; all that are not known by default.
        prob : float, optional
            Probability of both intervals; ArviZ's ``rcParams["stats.ci_prob"]`` by default.
        names : mapping of str to str, optional
            Names in the estimate, to ours.
        backend, **pc_kwargs
            As in all pictures (see :class:`Plots`).
        visuals : mapping, optional
            What to draw and how: the keys of ``arviz.plot_dist``, and "estimate" (a vertical line)
            and "confidence_interval" (a band).

        Returns
        -------
        arviz_plots.PlotCollection
            One plot per parameter. At a boundary there is no band.

        Raises
        ------
        OptionalDependencyError
            If no plotting library is installed.
        ValueError
            If a label is unknown.

        Examples
        --------
        >>> import bayeslmm as blm
        >>> model = blm.LMM("Yield ~ 1 + (1 | Batch)", blm.load_dataset("Dyestuff"))
        >>> post = model.fit(method="laplace", random_seed=1)
        >>> pc = post.plot.reml(model.reml(), labels="sigma", backend="none")
        >>> "estimate" in pc.viz.children
        True
        """
        from bayeslmm.comparison.reml import compare_reml
        from bayeslmm.plots.parameters import plot_compared

        how = drawing(backend, visuals, pc_kwargs)
        table = compare_reml(self._fit, reml, prob=prob, names=names)
        return plot_compared(self._fit.design, self._fit._draws, table, how, labels=labels)

    def sensitivity(
        self,
        found: Sensitivity | None = None,
        *,
        backend: Backend | None = None,
        visuals: Visuals = None,
        **pc_kwargs: Any,
    ) -> PlotCollection:
        """How posterior means and standard deviations move with powers of prior and likelihood.

        A line goes from where the prior (or the likelihood) is weaker, at the power of 0.8, to
        where it is stronger, at 1.25. What a parameter's likelihood moves and its prior does not is
        learned from the data.

        Parameters
        ----------
        found : Sensitivity, optional
            What ``post.check.sensitivity()`` returned; made for the picture by default.
        backend, **pc_kwargs
            As in all pictures (see :class:`Plots`).
        visuals : mapping, optional
            Settings of "point", "interval", "zero", "title", "ylabel", "yticks", "legend" and
            "figure_title".

        Returns
        -------
        arviz_plots.PlotCollection

        Raises
        ------
        PriorError
            If every prior is flat.

        References
        ----------
        Kallioinen, Paananen, Bürkner, Vehtari (2024), doi:10.1007/s11222-023-10366-5.

        Examples
        --------
        >>> import bayeslmm as blm
        >>> model = blm.LMM("Yield ~ 1 + (1 | Batch)", blm.load_dataset("Dyestuff"))
        >>> pc = model.fit(random_seed=1).plot.sensitivity(backend="none")
        >>> list(pc.viz["point"].data_vars)
        ['shift of the mean (sd)', 'relative change of the sd']
        """
        from bayeslmm.checks.sensitivity import power_scaling
        from bayeslmm.plots.judged import plot_sensitivity

        how = drawing(backend, visuals, pc_kwargs)
        return plot_sensitivity(found or power_scaling(self._fit.model, self._fit._joint), how)

    def pareto_k(
        self,
        by: str | None = None,
        *,
        conditional: bool = False,
        scores: Any = None,
        backend: Backend | None = None,
        visuals: Visuals = None,
        **pc_kwargs: Any,
    ) -> PlotCollection:
        """Pareto k of leave-one-out scores: which rows or levels the posterior depends on.

        Rows above 0.3 are sampled anew by ``post.loo()``, which leaves them at zero; they are the
        ones whose removal changes the covariance parameters. ``conditional=True`` shows what the
        weights would be given draws of the random effects, as ``arviz.plot_khat`` does.

        Parameters
        ----------
        by : str, optional
            Grouping factor or variable whose levels are left out; single rows by default.
        conditional : bool
            As in :meth:`bayeslmm.Posterior.loo`.
        scores : arviz_stats.ELPDData, optional
            What ``post.loo()`` returned, by whatever `by` it was; computed for the picture by
            default.
        backend, **pc_kwargs
            As in all pictures (see :class:`Plots`).
        visuals : mapping, optional
            Settings of "points", "again" (sampled anew), "poor" (unreliable), "limit",
            "again_limit", "named", "xlabel", "ylabel", "legend" and "figure_title".

        Returns
        -------
        arviz_plots.PlotCollection

        Raises
        ------
        DataError
            If the model has no grouping factor or variable `by`, or scores have no values by row.

        References
        ----------
        Vehtari, Simpson, Gelman, Yao, Gabry (2024), arXiv:1507.02646.

        Examples
        --------
        >>> import bayeslmm as blm
        >>> model = blm.LMM("Yield ~ 1 + (1 | Batch)", blm.load_dataset("Dyestuff"))
        >>> pc = model.fit(random_seed=1).plot.pareto_k(backend="none")
        >>> pc.get_viz("points")["y"].shape
        (30,)
        """
        from bayeslmm.checks.loo import posterior_loo
        from bayeslmm.plots.judged import plot_pareto_k

        model, data, joint = self._fit.model, self._fit.data, self._fit._joint
        how = drawing(backend, visuals, pc_kwargs)
        if scores is None:
            scores = posterior_loo(model, data, joint, by, conditional=conditional)
        by = getattr(scores, "by", None)
        return plot_pareto_k(scores, by, how, conditional=conditional)
