"""Predictions and simulations: methods of estimates."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd

from bayeslmm.estimation.bootstrap import bootstrap_fits
from bayeslmm.fits.estimate_base import EstimateBase
from bayeslmm.prediction import predict
from bayeslmm.prediction.predict import Kind
from bayeslmm.prediction.rows import Target, Terms
from bayeslmm.sampling.estimate_draws import Uncertainty, estimate_draws
from bayeslmm.sampling.point_draws import point_draws

Seed = int | np.random.Generator | None


class EstimatePrediction(EstimateBase):
    """Predictions and simulations of an estimate."""

    def predict(
        self,
        new: Any = None,
        *,
        target: Target = "conditional",
        kind: Kind = "epred",
        terms: Terms | None = None,
        observed: Any = None,
        weights: Any = None,
        uncertainty: Uncertainty = "laplace",
        draws: int = 1000,
        level: float = 0.95,
        random_seed: Seed = None,
        progressbar: bool = True,
    ) -> pd.DataFrame:
        """Predict the response at new rows, with intervals.

        Parameters
        ----------
        new : data frame or mapping, optional
            Rows to predict, with the variables on the right of the formula; the rows of the model
            by default.
        target, kind, terms, observed, weights
            As in :meth:`Posterior.predict`.
        uncertainty : {"laplace", "bootstrap", "plugin"}
            Where the uncertainty of the covariance parameters comes from: their asymptotic normal
            distribution on the log and inverse hyperbolic tangent scales (of singular fits, that
            of the relative factors), refits to simulated responses (Laird and Louis 1987), or
            nowhere. That of the fixed and random effects
            given them is always in.
        draws : int
            Draws for the standard errors and intervals, and so refits for "bootstrap"; at least 2.
        level : float
            Coverage of the intervals.
        random_seed : int or numpy.random.Generator, optional
            Seed.
        progressbar : bool
            Whether to show one for "bootstrap".

        Returns
        -------
        pandas.DataFrame
            One row per row predicted, in the units of the response (after its transformation):
            estimate (exact: fixed effects and conditional modes, zero for new levels; with
            `observed`, those given old and observed rows at the estimated covariance parameters),
            std_error, conf_low, conf_high. Under "average" std_error is exact, that of the fixed
            part, with Satterthwaite's t intervals ("plugin": normal ones); so it is under "plugin"
            for levels that the model has not seen. Others are from draws. With `observed`,
            attribute ``pareto_k``.

        Raises
        ------
        DataError
            If the rows cannot be used, or have unknown levels under "conditional".
        ValueError
            If an option is unknown.
        SamplingError
            If the criterion is flat in some direction and `uncertainty` is "laplace", or the
            estimate is a "MAP" one and `uncertainty` is "bootstrap".

        References
        ----------
        Laird, Louis (1987), doi:10.1080/01621459.1987.10478490.

        Examples
        --------
        >>> import bayeslmm as blm
        >>> sleep = blm.load_dataset("sleepstudy")
        >>> reml = blm.LMM("Reaction ~ Days + (Days | Subject)", sleep).reml()
        >>> new = {"Days": [10, 10], "Subject": ["308", "new one"]}
        >>> reml.predict(new, target="new", random_seed=1)["estimate"].round(1).tolist()
        [450.3, 356.1]
        """
        options: dict[str, Any] = {
            "target": target,
            "kind": kind,
            "terms": terms,
            "observed": observed,
            "weights": weights,
        }
        size = predict.count(draws, "draws", least=2)
        return predict.estimate_predictions(
            self.design,
            lambda rng: estimate_draws(
                self.design, self.fit, uncertainty, size, rng, progressbar=progressbar
            ),
            self.fit,
            self._modes,
            new,
            options,
            uncertainty,
            level,
            np.random.default_rng(random_seed),
        )

    def simulate(
        self,
        n: int = 1,
        new: Any = None,
        *,
        target: Target = "population",
        weights: Any = None,
        random_seed: Seed = None,
    ) -> pd.DataFrame:
        """Simulate responses at the estimate.

        Parameters
        ----------
        n : int
            Number of responses.
        new : data frame or mapping, optional
            Rows to simulate; those of the model by default.
        target : {"population", "conditional", "new", "average"}
            "population" draws the random effects of every level anew, as lme4's
            ``simulate(use.u = FALSE)``; "conditional" holds them at their modes (``use.u = TRUE``).
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
        >>> reml = blm.LMM("Yield ~ 1 + (1 | Batch)", blm.load_dataset("Dyestuff")).reml()
        >>> reml.simulate(3, random_seed=1).shape
        (30, 3)
        """
        joint = point_draws(self.fit, self._modes).take(np.zeros(predict.count(n), dtype=np.intp))
        rng = np.random.default_rng(random_seed)
        return predict.simulations(self.design, joint, new, target, weights, rng)

    def bootstrap(
        self, n: int = 500, *, random_seed: Seed = None, progressbar: bool = True
    ) -> pd.DataFrame:
        """Parametric bootstrap: refit the model to responses simulated from the estimate.

        Parameters
        ----------
        n : int
            Number of refits.
        random_seed : int or numpy.random.Generator, optional
            Seed.
        progressbar : bool
            Whether to show one.

        Returns
        -------
        pandas.DataFrame
            One row per refit, one column per parameter (``beta[Days]``, ``sd[Subject, Days]``,
            ...); its quantiles are percentile intervals, which ``confint("bootstrap")`` gives.

        Raises
        ------
        SamplingError
            If the estimate is a "MAP" one, or too many refits fail.

        References
        ----------
        lme4's ``bootMer``.

        Examples
        --------
        >>> import bayeslmm as blm
        >>> reml = blm.LMM("Yield ~ 1 + (1 | Batch)", blm.load_dataset("Dyestuff")).reml()
        >>> reml.bootstrap(20, random_seed=1, progressbar=False).columns.tolist()
        ['beta[Intercept]', 'sd[Batch, Intercept]', 'sigma']
        """
        fits = bootstrap_fits(
            self.design, self.fit, predict.count(n), random_seed, progressbar=progressbar
        )
        return predict.bootstrap_frame(self.design, fits)
