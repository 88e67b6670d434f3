"""What follows from an estimate or a posterior: predictions, means, contrasts, hypotheses."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike

from bayeslmm.exceptions import DataError
from bayeslmm.fits.rows import RowValues

if TYPE_CHECKING:
    from bayeslmm.effects.contrasts import Adjust
    from bayeslmm.effects.grid import Weights
    from bayeslmm.effects.hypothesis import Hypotheses
    from bayeslmm.effects.quantities import LinearQuantities, Source
    from bayeslmm.prediction.predict import Kind
    from bayeslmm.prediction.rows import Target
    from bayeslmm.sampling.joint_draws import JointDraws

Names = str | Sequence[str]
Seed = int | np.random.Generator | None
MeanTarget = Literal["average", "population"]
RowTarget = Literal["average", "population", "conditional"]


@dataclass(frozen=True, eq=False)
class Predictions(RowValues):
    """Predictions and effects that an estimate and a posterior both have."""

    # --- what each of the two provides ------------------------------------------------

    def _simulation_draws(self, n: Any, rng: np.random.Generator) -> JointDraws:
        """Parameters and random effects of `n` simulated responses."""
        raise NotImplementedError

    @property
    def _source(self) -> Source:
        """The fixed effects with their uncertainty."""
        raise NotImplementedError

    def _row_draws(self, target: str) -> JointDraws | None:
        """Draws whose random effects count in effects averaged over rows; None for none."""
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

        rng = np.random.default_rng(random_seed)
        joint = self._simulation_draws(n, rng)
        return simulations(self.design, joint, new, target, weights, rng)

    # --- marginal means and effects ---------------------------------------------------

    def means(
        self,
        variables: Names = (),
        *,
        at: Mapping[str, Any] | None = None,
        weights: Weights = "equal",
        by: Names | None = None,
        target: MeanTarget = "average",
    ) -> LinearQuantities:
        """Marginal means (least-squares means) over a reference grid.

        The grid has all levels of every factor and the mean of every numeric covariate; the
        linear predictor is averaged over whatever is not among `variables` and `by`.

        Parameters
        ----------
        variables : str or sequence of str
            Variables of the fixed part whose values are told apart; the overall mean without one.
        at : mapping, optional
            Values of covariates, ``{"age": [8, 14]}``, or some of a factor's levels. Several values
            of a covariate that is not told apart are averaged over.
        weights : {"equal", "proportional", "outer", "cells"}
            How the levels of other factors count: equally, by the number of rows with their
            combination, by the product of their marginal frequencies, or by the rows of each cell.
        by : str or sequence of str, optional
            Variables told apart too, within whose values contrasts will be taken.
        target : {"average", "population"}
            With random effects of zero, or averaged over: the same in a linear model.

        Returns
        -------
        LinearQuantities
            Of an estimate: estimates with standard errors, Satterthwaite df, tests against zero and
            95 % intervals; of a posterior mean, sd, median and interval, and ``.draws`` for ArviZ.
            Both have ``.table()`` and ``.contrasts()``, an estimate ``.joint_test()`` too. NaN
            where the data cannot say (an empty cell). On the scale of the response as the formula
            transforms it, which `notes` name.

        Raises
        ------
        DataError
            If a variable or a level is unknown.
        ValueError
            If an option is.

        Notes
        -----
        The offset is held at its mean unless one of its variables is set. Numeric variables with
        two values are covariates all the same (emmeans makes factors of them); give their values
        in `at`, or write ``C(x)`` in the formula. Rows count once in `weights`, whatever their
        precision weights. For a MAP estimate standard errors are posterior standard deviations
        given the covariance parameters at the mode, and tests and intervals are normal.

        References
        ----------
        Searle, Speed, Milliken (1980), doi:10.1080/00031305.1980.10483031; R's
        ``emmeans::emmeans``.

        Examples
        --------
        >>> import bayeslmm as blm
        >>> model = blm.LMM("score ~ Machine + (1 | Worker)", blm.load_dataset("Machines"))
        >>> model.reml().means("Machine")
        Marginal means of Machine
         Machine estimate std_error    df statistic   p_value conf_low conf_high
               A    52.36     2.229 5.833     23.49 5.328e-07    46.86     57.85
               B    60.32     2.229 5.833     27.06 2.348e-07    54.83     65.82
               C    66.27     2.229 5.833     29.73 1.361e-07    60.78     71.77
        >>> post = model.fit(method="laplace", draws=200, random_seed=1)
        >>> post.means("Machine").draws.sizes["quantity"]
        3
        """
        from bayeslmm.effects.grid import marginal_means

        return marginal_means(
            self.design, self._source, variables, at=at, weights=weights, by=by, target=target
        )

    def contrasts(
        self,
        variables: Names,
        method: str | Mapping[str, Any] | ArrayLike = "pairwise",
        *,
        at: Mapping[str, Any] | None = None,
        weights: Weights = "equal",
        by: Names | None = None,
        adjust: Adjust | Literal["default"] | None = "default",
    ) -> LinearQuantities:
        """Contrasts of marginal means.

        Parameters
        ----------
        variables, at, weights, by
            As in :meth:`means`.
        method, adjust
            As in :meth:`bayeslmm.effects.quantities.LinearQuantities.contrasts`: pairwise by
            default, with Tukey's adjustment for an estimate (none with ``adjust=None``);
            "reference", "sequential", "polynomial", "effects" or weights of your own,
            ``{"late - early": {"9": 1, "0": -1}}``. In a posterior there is nothing to adjust: for
            statements about all contrasts at once take ``.table(simultaneous=True)``.

        Returns
        -------
        LinearQuantities

        References
        ----------
        R's ``emmeans::contrast``.

        Examples
        --------
        >>> import bayeslmm as blm
        >>> model = blm.LMM("score ~ Machine + (1 | Worker)", blm.load_dataset("Machines"))
        >>> model.reml().contrasts("Machine").table()["estimate"].round(2).to_dict()
        {'A - B': -7.97, 'A - C': -13.92, 'B - C': -5.95}
        """
        means = self.means(variables, at=at, weights=weights, by=by)
        return means.contrasts(method, adjust=adjust)

    def slopes(
        self,
        variable: str,
        *,
        at: Mapping[str, Any] | None = None,
        by: Names | None = None,
        new: Any = None,
        target: RowTarget = "average",
    ) -> LinearQuantities:
        """Average slopes of the linear predictor by a covariate.

        Parameters
        ----------
        variable : str
            A numeric variable of the fixed part, however it is transformed there.
        at : mapping, optional
            Values of variables; the slopes are then those at the reference grid of :meth:`means`.
        by : str or sequence of str, optional
            Variables within whose values slopes are averaged.
        new : data frame, source or "grid", optional
            Rows to average over instead of those of the model, in batches if they are beyond
            memory; or the reference grid.
        target : {"average", "population", "conditional"}
            The fixed part; or, of a posterior, with "conditional" also the random slopes of the
            levels in the rows.

        Returns
        -------
        LinearQuantities
            Slopes per unit of the variable, by differences of the design matrix.

        Raises
        ------
        DataError
            If the variable is no covariate of the fixed part, or a level is new.
        ValueError
            If an option is unknown, or random effects are asked for of an estimate or at the
            reference grid.

        References
        ----------
        R's ``marginaleffects::avg_slopes`` over rows; ``emmeans::emtrends`` over the grid.

        Examples
        --------
        >>> import bayeslmm as blm
        >>> orthodont = blm.load_dataset("Orthodont")
        >>> reml = blm.LMM("distance ~ age * Sex + (age | Subject)", orthodont).reml()
        >>> reml.slopes("age", by="Sex").table()["estimate"].round(3).to_dict()
        {'Male': 0.784, 'Female': 0.48}
        """
        from bayeslmm.effects.averages import slopes

        joint = self._row_draws(target)
        return slopes(self.design, self._source, variable, at=at, by=by, new=new, joint=joint)

    def comparisons(
        self,
        variable: str,
        change: Any = None,
        *,
        by: Names | None = None,
        new: Any = None,
        target: RowTarget = "average",
    ) -> LinearQuantities:
        """Average differences of predictions when one variable changes.

        Parameters
        ----------
        variable : str
            A variable of the fixed part.
        change : optional
            For a covariate: a number added to the observed values (1 by default), a pair (from,
            to), "sd" or "2sd" (around the mean), "iqr" or "minmax". For a factor: a method of
            contrasts of its levels ("reference" by default), a pair of levels (from, to), or
            weights by label.
        by : str or sequence of str, optional
            Variables within whose values differences are averaged.
        new : data frame or source, optional
            Rows to average over instead of those of the model; data beyond memory in batches.
        target : {"average", "population", "conditional"}
            As in :meth:`slopes`.

        Returns
        -------
        LinearQuantities

        Raises
        ------
        DataError
            If the variable is not in the fixed part, or a level is new.
        ValueError
            If the change does not fit the variable, or an option is unknown.

        References
        ----------
        R's ``marginaleffects::avg_comparisons``.

        Examples
        --------
        >>> import bayeslmm as blm
        >>> sleep = blm.load_dataset("sleepstudy")
        >>> reml = blm.LMM("Reaction ~ Days + (Days | Subject)", sleep).reml()
        >>> reml.comparisons("Days", (0, 9)).table()["estimate"].round(1).to_dict()
        {'Days: 9 - 0': 94.2}
        """
        from bayeslmm.effects.averages import comparisons

        joint = self._row_draws(target)
        return comparisons(self.design, self._source, variable, change, by=by, new=new, joint=joint)

    def average_predictions(
        self, by: Names | None = None, new: Any = None, *, target: RowTarget = "average"
    ) -> LinearQuantities:
        """Predictions of the mean (with offset), averaged over rows.

        Parameters
        ----------
        by : str or sequence of str, optional
            Variables within whose values predictions are averaged.
        new : data frame or source, optional
            Rows to average over instead of those of the model; data beyond memory in batches.
        target : {"average", "population", "conditional"}
            The fixed part; or, of a posterior, with "conditional" also the random effects of the
            levels in the rows.

        Returns
        -------
        LinearQuantities
            Of a posterior, averages are taken draw by draw: intervals are those of the average, not
            averages of intervals.

        References
        ----------
        R's ``marginaleffects::avg_predictions``.

        Examples
        --------
        >>> import bayeslmm as blm
        >>> orthodont = blm.load_dataset("Orthodont")
        >>> reml = blm.LMM("distance ~ age * Sex + (age | Subject)", orthodont).reml()
        >>> reml.average_predictions("Sex").table()["estimate"].round(2).to_dict()
        {'Male': 24.97, 'Female': 22.65}
        """
        from bayeslmm.effects.averages import average_predictions

        joint = self._row_draws(target)
        return average_predictions(self.design, self._source, by=by, new=new, joint=joint)

    def hypothesis(self, *args: Any, **options: Any) -> Hypotheses:
        """Test or judge hypotheses, written as they are read.

        Parameters
        ----------
        expressions : str or sequence of str
            Arithmetic on coefficients (``"Days"``, ``"age:Sex[T.Female]"``) and marginal means of a
            factor's levels (``"Sex[Male]"``), compared by one of ``< > =``; of an estimate linear
            in the fixed effects, of a posterior anything, also with ``"sd[Subject, Days]"``,
            ``"cor[Subject, Intercept, Days]"`` (in either order) and ``"sigma"``. Labels that look
            like an operation stand in backticks: ``"`I(x ** 2)` < 0"``.
        level : float
            Of an estimate: coverage of the two-sided intervals.
        rope : float or pair of float, optional
            Of a posterior: region in which left side less right side is practically zero; a number
            stands for that far on either side.

        Returns
        -------
        Hypotheses
            Of an estimate: left side less right side with its standard error, Satterthwaite df and
            p-value: two-sided for ``=``; for ``>`` and ``<`` small where the data speak for it.
            Normal tests with posterior standard deviations for a MAP estimate.

            Of a posterior: mean, sd, median and interval of left side less right side; its
            `probability` of the sign that the hypothesis states; `posterior_odds` and `prior_odds`
            of it, and their quotient, the `evidence_ratio`. Where all S draws agree, the odds are
            only known to be beyond S: `bound` is then ">" or "<". For ``=`` the evidence ratio is
            the Savage-Dickey ratio of the posterior to the prior density at zero, above one where
            the data favour equality: both densities are exact given the covariance parameters. It
            is NaN where it is not known, and `notes` say why: under priors that are not proper or
            not normal, for ``=`` about anything else than fixed effects, or where no prior draw is
            on one side. `rope_probability` where asked for.

        Raises
        ------
        FormulaError
            If an expression cannot be read, is not linear in the fixed effects of an estimate, or
            has a label that stands for two things (a covariate called ``sigma``: write
            ``beta[sigma]``); shows the place.

        Notes
        -----
        brms calls `posterior_odds` the evidence ratio of an inequality; that is the same as here
        where the prior odds are one.

        References
        ----------
        R's ``lmerTest::contest1D`` for estimates; ``brms::hypothesis``; Dickey (1971),
        doi:10.1214/aoms/1177693507; Gelfand, Smith (1990), doi:10.1080/01621459.1990.10476213, for
        the average of conditional densities.

        Examples
        --------
        >>> import bayeslmm as blm
        >>> sleep = blm.load_dataset("sleepstudy")
        >>> model = blm.LMM("Reaction ~ Days + (Days | Subject)", sleep)
        >>> model.reml().hypothesis("Days = 8").table()["p_value"].round(3).to_dict()
        {'Days = 8': 0.129}
        >>> post = model.fit(method="laplace", draws=200, random_seed=1)
        >>> post.hypothesis(["Days > 0", "sd[Subject, Days] < sigma"]).table()["probability"]
        hypothesis
        Days > 0                     1.0
        sd[Subject, Days] < sigma    1.0
        Name: probability, dtype: float64
        """
        raise NotImplementedError
