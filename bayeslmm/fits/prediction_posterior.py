"""Predictions, simulations and predictive checks: methods of posteriors."""

from __future__ import annotations

from typing import Any, Literal, Self, overload

import numpy as np
import pandas as pd
import xarray as xr

from bayeslmm.fits.posterior_base import PosteriorBase
from bayeslmm.prediction import checks, predict
from bayeslmm.prediction.predict import Kind
from bayeslmm.prediction.rows import Target, Terms

Seed = int | np.random.Generator | None


class PosteriorPrediction(PosteriorBase):
    """Predictions and simulations of a posterior."""

    @overload
    def predict(
        self,
        new: Any = None,
        *,
        target: Target = "conditional",
        kind: Kind = "epred",
        terms: Terms | None = None,
        observed: Any = None,
        weights: Any = None,
        draws: int | None = None,
        summary: Literal[True] = True,
        prob: float | None = None,
        random_seed: Seed = None,
    ) -> pd.DataFrame: ...

    @overload
    def predict(
        self,
        new: Any = None,
        *,
        target: Target = "conditional",
        kind: Kind = "epred",
        terms: Terms | None = None,
        observed: Any = None,
        weights: Any = None,
        draws: int | None = None,
        summary: Literal[False],
        prob: float | None = None,
        random_seed: Seed = None,
    ) -> xr.DataTree: ...

    def predict(
        self,
        new: Any = None,
        *,
        target: Target = "conditional",
        kind: Kind = "epred",
        terms: Terms | None = None,
        observed: Any = None,
        weights: Any = None,
        draws: int | None = None,
        summary: bool = True,
        prob: float | None = None,
        random_seed: Seed = None,
    ) -> pd.DataFrame | xr.DataTree:
        """Predict the response at new rows.

        Parameters
        ----------
        new : data frame or mapping, optional
            Rows to predict, with the variables on the right of the formula; the rows of the model
            by default.
        target : {"conditional", "new", "population", "average"}
            "conditional": the levels of the model, an unknown one is an error. "new": known levels
            keep their random effects; each distinct unknown one gets an independent draw of its
            own, which its rows and coefficients share. "population": the random effects of every
            level are drawn anew, as for units outside the data; rows share a unit where `new` has
            the grouping variables, else each row is a unit. "average": u = 0.
        kind : {"linpred", "epred", "response"}
            Linear predictor; expected response, which is the same in a linear model; or responses,
            with residuals.
        terms : sequence of str or mapping, optional
            The random effects that count, where not all: names of grouping factors, or a mapping
            from these to their coefficients, such as ``{"Subject": ["Intercept"]}``; the others
            are zero. `new` needs no column of a grouping factor that does not count.
        observed : data frame or mapping, optional
            Rows of levels that the model has not seen, with their response: predictions for these
            levels are then updated in closed form given each draw, and the draws reweighted by how
            probable they make these rows. Needs ``target="new"``. Their weights are the column
            given to the model, if they have it, else one.
        weights : str or array-like, optional
            Precision weights of the new rows, for ``kind="response"``; by default the column given
            to the model, if `new` has it, else one.
        draws : int, optional
            Use at most so many draws of the posterior, equally spaced; at least 2 for a summary.
        summary : bool
            Whether to summarise, or to return the draws.
        prob : float, optional
            Probability of the intervals; ArviZ's rcParams by default.
        random_seed : int or numpy.random.Generator, optional
            Seed of new levels, residuals and resampling.

        Returns
        -------
        pandas.DataFrame or xarray.DataTree
            Mean, sd, median and interval per row, in the units of the response (after its
            transformation); or, with ``summary=False``, groups predictions (``mu``, or ``y`` for
            responses; dimensions chain, draw, pred_id) and predictions_constant_data. With
            `observed`, attribute ``pareto_k`` tells whether the reweighting is reliable (below
            0.7).

        Raises
        ------
        DataError
            If the rows cannot be used, or have unknown levels under "conditional".
        ValueError
            If an option is unknown.

        Notes
        -----
        lme4 sets the random effects of new levels to zero; rstanarm and Bambi give all new levels
        of a factor the same draw; brms, unless told otherwise, takes those of levels in the data.

        Examples
        --------
        >>> import bayeslmm as blm
        >>> sleep = blm.load_dataset("sleepstudy")
        >>> post = blm.LMM("Reaction ~ Days + (Days | Subject)", sleep).fit(random_seed=1)
        >>> new = {"Days": [10, 10], "Subject": ["308", "new one"]}
        >>> table = post.predict(new, target="new", random_seed=1)
        >>> bool(table["sd"].iloc[1] > table["sd"].iloc[0])
        True
        >>> seen = {"Days": [0, 1], "Subject": ["new one"] * 2, "Reaction": [300.0, 310.0]}
        >>> told = post.predict(new, target="new", observed=seen, random_seed=1)
        >>> bool(told["sd"].iloc[1] < table["sd"].iloc[1])
        True
        """
        joint = self._joint
        if draws is not None:
            joint = joint.thin(predict.count(draws, "draws", least=2 if summary else 1))
        prediction = predict.predict(
            self.design,
            joint,
            new,
            target=target,
            kind=kind,
            terms=terms,
            observed=observed,
            weights=weights,
            rng=np.random.default_rng(random_seed),
        )
        if not summary:
            return predict.prediction_tree(prediction, kind)
        return predict.posterior_predictions(prediction, prob)

    def simulate(
        self,
        n: int = 1,
        new: Any = None,
        *,
        target: Target = "population",
        weights: Any = None,
        random_seed: Seed = None,
    ) -> pd.DataFrame:
        """Simulate responses from the posterior predictive distribution.

        Parameters
        ----------
        n : int
            Number of responses, each from another draw of the posterior (with replacement where
            there are fewer draws).
        new : data frame or mapping, optional
            Rows to simulate; those of the model by default.
        target : {"population", "conditional", "new", "average"}
            As in :meth:`predict`; "population" draws the random effects of every level anew.
        weights : str or array-like, optional
            Precision weights of new rows.
        random_seed : int or numpy.random.Generator, optional
            Seed.

        Returns
        -------
        pandas.DataFrame
            Rows by simulations ``sim_1``, ``sim_2``, ...

        Examples
        --------
        >>> import bayeslmm as blm
        >>> model = blm.LMM("Yield ~ 1 + (1 | Batch)", blm.load_dataset("Dyestuff"))
        >>> model.fit(random_seed=1).simulate(3, random_seed=2).shape
        (30, 3)
        """
        rng = np.random.default_rng(random_seed)
        size = self._joint.size
        places = rng.choice(size, predict.count(n), replace=n > size)
        joint = self._joint.take(places)
        return predict.simulations(self.design, joint, new, target, weights, rng)

    def with_posterior_predictive(
        self, *, target: Target = "conditional", random_seed: Seed = None
    ) -> Self:
        """Add group posterior_predictive: replicated responses at the rows of the model.

        ArviZ's ``plot_ppc_*`` and, together with :meth:`with_log_likelihood`, ``plot_loo_pit``
        take the result's `data` as it is.

        Parameters
        ----------
        target : {"conditional", "population", "average"}
            Whether the levels are those of the data, or new ones from the same population.
        random_seed : int or numpy.random.Generator, optional
            Seed.

        Returns
        -------
        Posterior
            A new one.

        Examples
        --------
        >>> import bayeslmm as blm
        >>> model = blm.LMM("Yield ~ 1 + (1 | Batch)", blm.load_dataset("Dyestuff"))
        >>> post = model.fit(random_seed=1).with_posterior_predictive(random_seed=2)
        >>> post.data["posterior_predictive"]["y"].sizes["obs_id"]
        30
        """
        rng = np.random.default_rng(random_seed)
        dataset = checks.predictive_dataset(self.design, self._joint, target, rng)
        return self.with_groups(posterior_predictive=dataset)

    def predictive_check(
        self,
        statistic: str | checks.Statistic = "mean",
        *,
        by: Any = None,
        target: Target = "conditional",
        prob: float | None = None,
        random_seed: Seed = None,
    ) -> pd.DataFrame:
        """Compare a statistic of the data with its posterior predictive distribution.

        Parameters
        ----------
        statistic : {"mean", "sd", "min", "max", "median"} or callable
            A statistic, or a function of a vector of responses.
        by : str or array-like, optional
            Grouping factor or variable of the formula by whose levels it is computed, or one value
            per row of the data (a covariate that the model lacks); over all rows by default.
        target : {"conditional", "population", "average"}
            As in :meth:`with_posterior_predictive`.
        prob : float, optional
            Probability of the intervals; ArviZ's rcParams by default.
        random_seed : int or numpy.random.Generator, optional
            Seed.

        Returns
        -------
        pandas.DataFrame
            One row, or one per level: n, observed, mean, sd, median and interval of the replicates,
            p_value (probability that a replicate is larger; near 0 or 1 is a misfit).

        Raises
        ------
        DataError
            If `by` is no variable of the model, or has not one value per row.
        ValueError
            If the statistic or the target is unknown.

        References
        ----------
        Gelman, Meng, Stern (1996), Statistica Sinica 6, 733-760.

        Examples
        --------
        >>> import bayeslmm as blm
        >>> model = blm.LMM("Yield ~ 1 + (1 | Batch)", blm.load_dataset("Dyestuff"))
        >>> post = model.fit(random_seed=1)
        >>> post.predictive_check("max", by="Batch", random_seed=2).shape[0]
        6
        """
        checks.row_groups(self.design, by)
        checks.check_statistic(statistic)
        rng = np.random.default_rng(random_seed)
        prediction = predict.predict(
            self.design, self._joint, None, target=target, kind="response", rng=rng
        )
        return checks.check_table(self.design, prediction.draws(), statistic, by, prob)
