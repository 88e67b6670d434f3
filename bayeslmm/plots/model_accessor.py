"""``model.plot``: pictures of the priors of a model, and of what they imply."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from bayeslmm.estimation.model import Model
from bayeslmm.plots.common import Backend, drawing
from bayeslmm.summaries import verbs

if TYPE_CHECKING:
    from arviz_plots import PlotCollection

    from bayeslmm.plots.conditional import Kind, PredictionTarget
    from bayeslmm.plots.quantities import Draws

Names = str | Sequence[str]
Visuals = Mapping[str, Any] | None
Seed = int | np.random.Generator | None


@dataclass(frozen=True, eq=False, repr=False)
class ModelPlots:
    """Pictures of priors and of what they imply, before any fit.

    Drawn by ArviZ, as those of fits, with the same arguments (see
    :class:`~bayeslmm.plots.accessors.Plots`). Priors have to be proper.
    """

    _model: Model

    def __repr__(self) -> str:
        return f"model.plot: {verbs(self)}"

    def priors(
        self,
        labels: Names | None = None,
        *,
        random_seed: Seed = 0,
        backend: Backend | None = None,
        visuals: Visuals = None,
        **pc_kwargs: Any,
    ) -> PlotCollection:
        """Prior densities of the parameters, over the central 90 %.

        Parameters
        ----------
        labels : str or sequence of str, optional
            Parameters to draw, such as ``"sd[Subject, Days]"``; all by default.
        random_seed : int or numpy.random.Generator, optional
            Seed of the draws from priors without a closed form, 100,000 of them.
        backend, **pc_kwargs
            As in all pictures.
        visuals : mapping, optional
            Settings of "prior", "prior_area", "title", "legend" and "figure_title".

        Returns
        -------
        arviz_plots.PlotCollection
            Densities are exact where they have a closed form, as in
            :meth:`bayeslmm.plots.accessors.PosteriorPlots.prior_posterior`.

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
        >>> list(model.plot.priors(backend="none").viz["prior"].data_vars)
        ['beta[Intercept]', 'sd[Batch, Intercept]', 'sigma']
        """
        from bayeslmm.plots.densities import plot_parameters

        how = drawing(backend, visuals, pc_kwargs)
        model = self._model
        return plot_parameters(
            model.design, model.priors, how, labels=labels, random_seed=random_seed
        )

    def implied_priors(
        self,
        *,
        draws: int = 4000,
        random_seed: Seed = 0,
        backend: Backend | None = None,
        visuals: Visuals = None,
        **pc_kwargs: Any,
    ) -> PlotCollection:
        """What the priors say of the intraclass correlation, R^2 and the response's spread.

        Parameters
        ----------
        draws : int
            Number of draws from the prior.
        random_seed : int or numpy.random.Generator, optional
            Seed.
        backend, **pc_kwargs
            As in all pictures.
        visuals : mapping, optional
            Settings of "prior", "prior_area", "line" (what was observed), "title", "xlabel",
            "legend" and "figure_title".

        Returns
        -------
        arviz_plots.PlotCollection
            A panel per row of ``model.implied_priors().table`` but the last, a ratio, with medians
            and central 90 % below. Standard deviations are drawn up to their 95 % quantile, and
            that of the response is beside them.

        Raises
        ------
        PriorError
            If a prior is flat.

        Examples
        --------
        >>> import bayeslmm as blm
        >>> model = blm.LMM("Yield ~ 1 + (1 | Batch)", blm.load_dataset("Dyestuff"))
        >>> list(model.plot.implied_priors(backend="none").viz["prior"].data_vars)[:2]
        ['icc[Batch]', 'r2[marginal]']
        """
        from bayeslmm.plots.priors import plot_implied

        how = drawing(backend, visuals, pc_kwargs)
        return plot_implied(self._model.design, self._model.priors, draws, random_seed, how)

    def prior_predictive(
        self,
        *,
        by: str | None = None,
        draws: int = 50,
        random_seed: Seed = 0,
        backend: Backend | None = None,
        visuals: Visuals = None,
        **kwargs: Any,
    ) -> PlotCollection:
        """Densities of responses drawn from the prior, and that of the data.

        Parameters
        ----------
        by : str, optional
            Grouping factor or variable, a panel per level.
        draws : int
            Number of draws from the prior, a density each.
        random_seed : int or numpy.random.Generator, optional
            Seed.
        backend
            As in all pictures.
        visuals : mapping, optional
            Settings of ``arviz.plot_ppc_dist``, "legend" and "figure_title".
        **kwargs
            Passed on to ArviZ's function.

        Returns
        -------
        arviz_plots.PlotCollection

        Raises
        ------
        PriorError
            If a prior is flat.
        DataError
            If rows are beyond memory, or there are too many levels.

        References
        ----------
        R's ``brms::pp_check`` of a fit with ``sample_prior = "only"``; Gabry and others (2019),
        doi:10.1111/rssa.12378.

        Examples
        --------
        >>> import bayeslmm as blm
        >>> model = blm.LMM("Yield ~ 1 + (1 | Batch)", blm.load_dataset("Dyestuff"))
        >>> pc = model.plot.prior_predictive(backend="none")
        >>> pc.viz["predictive_dist"].sizes["sample"]
        50
        """
        from bayeslmm.plots.predictive import plot_prior_predictive
        from bayeslmm.sampling.groups import prior_predictive

        design, how = self._model.design, drawing(backend, visuals, kwargs)
        drawn = prior_predictive(design, self._model.priors, draws, random_seed)
        return plot_prior_predictive(design, drawn, how, by=by)

    def prior_predictions(
        self,
        x: str | None = None,
        *,
        by: Names | None = None,
        at: Mapping[str, Any] | None = None,
        target: PredictionTarget | None = None,
        kind: Kind = "epred",
        data: bool | None = None,
        draws: Draws | bool | None = "lines",
        prob: float | None = None,
        random_seed: Seed = 0,
        backend: Backend | None = None,
        visuals: Visuals = None,
        **pc_kwargs: Any,
    ) -> PlotCollection:
        """What the priors predict along a variable, with draws and the data.

        Parameters
        ----------
        x, by, at, target, kind, data, prob, backend, visuals
            As in :meth:`bayeslmm.plots.accessors.Plots.predictions`, of 4,000 draws from the prior.
        draws : {"lines", "density", "points"} or bool
            How draws are shown: lines of 50 of them by default.
        random_seed : int or numpy.random.Generator, optional
            Seed.
        **pc_kwargs
            For ``arviz_plots.PlotCollection.wrap``.

        Returns
        -------
        arviz_plots.PlotCollection

        Raises
        ------
        PriorError
            If a prior is flat.
        DataError
            If a variable is unknown, or there is none.

        Examples
        --------
        >>> import bayeslmm as blm
        >>> sleep = blm.load_dataset("sleepstudy")
        >>> model = blm.LMM("Reaction ~ Days + (Days | Subject)", sleep)
        >>> pc = model.plot.prior_predictions("Days", backend="none")
        >>> sorted(pc.viz.children)[:3]
        ['band', 'col_index', 'curve']
        """
        from bayeslmm.plots.conditional import plot_predictions
        from bayeslmm.plots.priors import prior_request

        chosen = target or ("population" if kind == "response" else "average")
        request = prior_request(self._model, chosen, kind, prob, random_seed)
        how = drawing(backend, visuals, pc_kwargs)
        return plot_predictions(request, x, by, at, how, data=data, draws=draws)
