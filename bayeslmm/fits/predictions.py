"""What follows from an estimate or a posterior for rows: predictions and simulations."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import pandas as pd

from bayeslmm.data.seeds import seeded
from bayeslmm.exceptions import DataError
from bayeslmm.fits.rows import RowValues

if TYPE_CHECKING:
    from bayeslmm.prediction.predict import Kind
    from bayeslmm.prediction.rows import Target
    from bayeslmm.sampling.joint_draws import JointDraws

Names = str | Sequence[str]
Seed = int | np.random.Generator | None
MeanTarget = Literal["average", "population"]
RowTarget = Literal["average", "population", "conditional"]


@dataclass(frozen=True, eq=False)
class Predictions(RowValues):
    """Predictions and simulations that an estimate and a posterior both have."""

    # --- what each of the two provides ------------------------------------------------

    def _simulation_draws(self, n: Any, rng: np.random.Generator) -> JointDraws:
        """Parameters and random effects of `n` simulated responses."""
        raise NotImplementedError

    # --- predictions ------------------------------------------------------------------

    def predict(self, *args: Any, **options: Any) -> Any:
        """Predict the response at new rows, with intervals.

        Parameters
        ----------
        new : data frame, mapping or source, optional
            Rows to predict, with the variables on the right of the formula; the rows of the model
            by default. Data beyond memory are predicted in batches, see `out`.
        target : {"conditional", "new", "population", "average"}
            "conditional": the levels of the model, an unknown one is an error. "new": known levels
            keep their random effects; each distinct unknown one gets an independent draw of its
            own, which its rows and coefficients share. "population": the random effects of every
            level are drawn anew, as for units outside the data; rows share a unit where `new` has
            the grouping variables, else each row is a unit. "average": u = 0.
        kind : {"linpred", "epred", "response"}
            Linear predictor; expected response, which is the same in a linear model unless
            residuals are conditional; or responses, with residuals. "epred" by default.
        terms : sequence of str or mapping, optional
            The random effects that count, where not all: names of grouping factors, or a mapping
            from these to their coefficients, such as ``{"Subject": ["Intercept"]}``; the others
            are zero. `new` needs no column of a grouping factor that does not count.
        observed : data frame or mapping, optional
            Rows of levels that the model has not seen, with their response: predictions for these
            levels are then updated in closed form given each draw, and the draws reweighted by how
            probable they make these rows. Needs ``target="new"``. Their weights are the column
            given to the model, if they have it, else one. Where residuals are correlated within
            groups, their groups are to be new too, and `residuals` are conditional on theirs.
        weights : str or array-like, optional
            Precision weights of the new rows, for ``kind="response"``; by default the column given
            to the model, if `new` has it, else one.
        residuals : {"conditional", "new"}, optional
            Where residuals are correlated within groups, those of the new rows: "conditional" on
            the residuals of the group's rows in the data of the model, so that "epred" is the
            linear predictor plus their expectation, or "new", as if the group had been observed
            anew. By default "conditional" for ``kind="response"`` of new rows under the targets
            "conditional" and "new", else "new". A row at an occasion or time at which the data
            have one of its group is refused under "conditional". Rows without times, such as those
            of ``ar1(1 | g)``, come after those of the data.
        draws : int, optional
            Of a posterior: use at most so many of its draws, equally spaced. Of an estimate: draws
            for the standard errors and intervals, and so refits for "bootstrap"; 1,000 by default.
            At least 2 for a table.
        random_seed : int or numpy.random.Generator, optional
            Seed of new levels, residuals and resampling.
        summary : bool
            Of a posterior: whether to summarise, or to return the draws.
        prob : float, optional
            Of a posterior: probability of the intervals.
        uncertainty : {"laplace", "bootstrap", "plugin"}
            Of an estimate: where the uncertainty of the covariance parameters comes from: their
            asymptotic normal distribution on the log and inverse hyperbolic tangent scales (of
            singular fits, that of the relative factors), refits to simulated responses (Laird and
            Louis 1987), or nowhere. That of the fixed and random effects given them is always in.
        level : float
            Of an estimate: coverage of the intervals.
        executor : concurrent.futures.Executor or the like, optional
            Of an estimate: where the refits of "bootstrap" run, as in :meth:`Estimate.bootstrap`.
        progressbar : bool
            Of an estimate: whether to show one for "bootstrap".
        out : str or path, optional
            A Parquet file to write the table to, with the variables of the formula, batch by batch;
            nothing is returned then. Each row has the table's figures; draws of a new level differ
            between batches.

        Returns
        -------
        pandas.DataFrame
            One row per row predicted, in the units of the response (after its transformation).
            Of a posterior: mean, sd, median and interval. Of an estimate: estimate (exact: fixed
            effects and conditional modes, zero for new levels; with `observed`, those given old and
            observed rows at the estimated covariance parameters), std_error, conf_low, conf_high.
            Under "average" std_error is exact, that of the fixed part, with Satterthwaite's t
            intervals ("plugin": normal ones); so it is under "plugin" for levels that the model has
            not seen. Others are from draws. With `observed`, attribute ``pareto_k`` tells whether
            the reweighting is reliable (below 0.7).
        xarray.DataTree
            Of a posterior with ``summary=False``: groups predictions (``mu``, or ``y`` for
            responses; dimensions chain, draw, pred_id) and predictions_constant_data.

        Raises
        ------
        DataError
            If the rows cannot be used, or have unknown levels under "conditional".
        ValueError
            If an option is unknown.
        SamplingError
            Of an estimate: if the criterion is flat in some direction and `uncertainty` is
            "laplace", or the estimate is a "MAP" one and `uncertainty` is "bootstrap".

        Notes
        -----
        lme4 sets the random effects of new levels to zero; rstanarm and Bambi give all new levels
        of a factor the same draw; brms, unless told otherwise, takes those of levels in the data.

        References
        ----------
        Laird, Louis (1987), doi:10.1080/01621459.1987.10478490.

        Examples
        --------
        >>> import bayeslmm as blm
        >>> sleep = blm.load_dataset("sleepstudy")
        >>> model = blm.LMM("Reaction ~ Days + (Days | Subject)", sleep)
        >>> new = {"Days": [10, 10], "Subject": ["308", "new one"]}
        >>> table = model.reml().predict(new, target="new", random_seed=1)
        >>> table["estimate"].round(1).tolist()
        [450.3, 356.1]
        >>> post = model.fit(random_seed=1)
        >>> table = post.predict(new, target="new", random_seed=1)
        >>> bool(table["sd"].iloc[1] > table["sd"].iloc[0])
        True
        >>> seen = {"Days": [0, 1], "Subject": ["new one"] * 2, "Reaction": [300.0, 310.0]}
        >>> told = post.predict(new, target="new", observed=seen, random_seed=1)
        >>> bool(told["sd"].iloc[1] < table["sd"].iloc[1])
        True
        """
        raise NotImplementedError

    def predict_missing(self, *, kind: Kind = "response", **options: Any) -> Any:
        """Predict the responses that are missing in rows kept by ``missing="keep"``.

        Each is predicted from all that was observed: the fixed effects, the random effects of its
        levels (of a level without any response those of a new one) and, where residuals are
        correlated within groups, those of the observed rows of its group. Draws are joint over
        rows, and with the draws of the parameters in the same place.

        Parameters
        ----------
        kind : {"response", "epred"}
            Responses, which are imputations of those that are missing, or their expectations.
        **options
            Of a posterior `draws`, `summary`, `prob` and `random_seed`, of an estimate
            `uncertainty`, `draws`, `level`, `random_seed`, `executor` and `progressbar`, as in
            :meth:`predict`.

        Returns
        -------
        pandas.DataFrame or xarray.DataTree
            As of :meth:`predict`, a row per row without a response.

        Raises
        ------
        DataError
            If the model keeps no such rows.

        Notes
        -----
        Where responses are missing at random given covariates and observed responses, the posterior
        of the parameters is that of the rows with a response, whether the others are dropped or
        kept, and draws of these responses are proper multiple imputations under the model.

        References
        ----------
        Rubin (1987), doi:10.1002/9780470316696.

        Examples
        --------
        >>> import bayeslmm as blm
        >>> sleep = blm.load_dataset("sleepstudy")
        >>> sleep.loc[sleep["Days"] == 9, "Reaction"] = float("nan")
        >>> model = blm.LMM("Reaction ~ Days + (Days | Subject)", sleep, missing="keep")
        >>> len(model.reml().predict_missing(draws=100, random_seed=1))
        18
        """
        kept = self.design.unobserved
        if kept is None or not kept.n:
            raise DataError(
                "The model keeps no rows that lack the response alone: "
                + ("there are none." if kept is not None else 'LMM(..., missing="keep") does.')
            )
        if kind not in ("response", "epred"):
            raise ValueError(f"kind={kind!r}: 'response' or 'epred' is expected.")
        return self.predict(
            kept.data,
            target="new",
            kind=kind,
            weights=kept.weights,
            residuals="conditional",
            **options,
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
        """Simulate responses at the estimate, or from the posterior predictive distribution.

        Residuals are drawn anew, also where those of new rows are correlated with observed ones.

        Parameters
        ----------
        n : int
            Number of responses; of a posterior each from another of its draws (with replacement
            where there are fewer draws).
        new : data frame or mapping, optional
            Rows to simulate; those of the model by default.
        target : {"population", "conditional", "new", "average"}
            As in :meth:`predict`. "population" draws the random effects of every level anew, as
            lme4's ``simulate(use.u = FALSE)``; "conditional" holds those of an estimate at their
            modes (``use.u = TRUE``).
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
        from bayeslmm.prediction.predict import simulations

        rng = seeded(random_seed)
        joint = self._simulation_draws(n, rng)
        return simulations(self.design, joint, new, target, weights, rng)
