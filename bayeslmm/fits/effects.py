"""Effects of a fit: marginal means, contrasts, slopes, comparisons and hypotheses."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from numpy.typing import ArrayLike

from bayeslmm.fits.predictions import Names, Predictions

if TYPE_CHECKING:
    from bayeslmm.effects.contrasts import Adjust
    from bayeslmm.effects.grid import Weights
    from bayeslmm.effects.hypothesis import Hypotheses
    from bayeslmm.effects.quantities import LinearQuantities, Source
    from bayeslmm.estimation.inference import DfMethod
    from bayeslmm.sampling.joint_draws import JointDraws

MeanTarget = Literal["average", "population"]
RowTarget = Literal["average", "population", "conditional"]


@dataclass(frozen=True, eq=False)
class Effects(Predictions):
    """Marginal means, slopes and hypotheses that an estimate and a posterior both have."""

    # --- what each of the two provides ------------------------------------------------

    def _source_by(self, df: DfMethod | None) -> Source:
        """The fixed effects with their uncertainty; of an estimate with these df."""
        raise NotImplementedError

    @property
    def _source(self) -> Source:
        """The fixed effects with their uncertainty."""
        return self._source_by(None)

    def _row_draws(self, target: str) -> JointDraws | None:
        """Draws whose random effects count in effects averaged over rows; None for none."""
        raise NotImplementedError

    # --- marginal means and effects ---------------------------------------------------

    def means(
        self,
        variables: Names = (),
        *,
        at: Mapping[str, Any] | None = None,
        weights: Weights = "equal",
        by: Names | None = None,
        target: MeanTarget = "average",
        df: DfMethod | None = None,
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
        df : {"satterthwaite", "kenward-roger", "kenward-roger-linear", "residual", "asymptotic"}
            Of an estimate: standard errors and degrees of freedom, as in
            :meth:`bayeslmm.Estimate.with_df`; those of the estimate by default.

        Returns
        -------
        LinearQuantities
            Of an estimate: estimates with standard errors, df, tests against zero and
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
            self.design,
            self._source_by(df),
            variables,
            at=at,
            weights=weights,
            by=by,
            target=target,
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
        df: DfMethod | None = None,
    ) -> LinearQuantities:
        """Contrasts of marginal means.

        Parameters
        ----------
        variables, at, weights, by, df
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
        means = self.means(variables, at=at, weights=weights, by=by, df=df)
        return means.contrasts(method, adjust=adjust)

    def slopes(
        self,
        variable: str,
        *,
        at: Mapping[str, Any] | None = None,
        by: Names | None = None,
        new: Any = None,
        target: RowTarget = "average",
        df: DfMethod | None = None,
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
        df : str, optional
            Of an estimate, as in :meth:`means`.

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
        source = self._source_by(df)
        return slopes(self.design, source, variable, at=at, by=by, new=new, joint=joint)

    def comparisons(
        self,
        variable: str,
        change: Any = None,
        *,
        by: Names | None = None,
        new: Any = None,
        target: RowTarget = "average",
        df: DfMethod | None = None,
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
        df : str, optional
            Of an estimate, as in :meth:`means`.

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
        source = self._source_by(df)
        return comparisons(self.design, source, variable, change, by=by, new=new, joint=joint)

    def average_predictions(
        self,
        by: Names | None = None,
        new: Any = None,
        *,
        target: RowTarget = "average",
        df: DfMethod | None = None,
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
        df : str, optional
            Of an estimate, as in :meth:`means`.

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
        return average_predictions(self.design, self._source_by(df), by=by, new=new, joint=joint)

    def hypothesis(self, *args: Any, **options: Any) -> Hypotheses:
        """Test or judge hypotheses, written as they are read.

        Parameters
        ----------
        expressions : str or sequence of str
            Arithmetic (``+ - * / **``, abs, exp, log, sqrt, max, min) on coefficients (``"Days"``,
            ``"age:Sex[T.Female]"``) and marginal means of a factor's levels (``"Sex[Male]"``),
            compared by one of ``< > =``; of an estimate linear in the fixed effects, of a posterior
            anything, also with ``"sd[Subject, Days]"``, ``"cor[Subject, Intercept, Days]"`` (in
            either order), ``"sigma"``, a level's random effect ``"u[Subject, 308, Days]"`` and its
            coefficient ``"coef[Subject, 308, Days]"``, fixed plus random. Of a posterior also order
            constraints: ``"f[a] < f[b] < f[c]"``, and several inequalities joined by ``&``. Labels
            that look like an operation stand in backticks: ``"`I(x ** 2)` < 0"``.
        level : float
            Of an estimate: coverage of the two-sided intervals.
        df : str, optional
            Of an estimate, as in :meth:`means`.
        rope : float or pair of float, optional
            Of a posterior: region in which left side less right side is practically zero; a number
            stands for that far on either side.
        scope : {"standard", "ranef", "coef"}
            Of a posterior: with "ranef" or "coef" names of coefficients are those of the random
            effects or of the coefficients of each level of `group`, and there is a row per level.
        group : str, optional
            Of a posterior: grouping factor of `scope`; needed where there are several.

        Returns
        -------
        Hypotheses
            Of an estimate: left side less right side with its standard error, df and
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

            For an order constraint mean, sd, median and interval are those of the smallest margin
            by which one of its inequalities holds, and `probability` is that of all together. Where
            there is one, `bayes_factor` compares each hypothesis with the model that leaves it
            open: posterior over `prior_probability` (encompassing prior), with the Monte Carlo
            error of its log; `evidence_ratio` compares it with its contrary.

        Raises
        ------
        FormulaError
            If an expression cannot be read, is not linear in the fixed effects of an estimate, or
            has a label that stands for two things (a covariate called ``sigma``: write
            ``beta[sigma]``), or an estimate is asked about an order constraint; shows the place.
        DataError
            If there is no grouping factor `group`, or draws would not fit into memory.

        Notes
        -----
        brms calls `posterior_odds` the evidence ratio of an inequality; that is the same as here
        where the prior odds are one.

        References
        ----------
        R's ``lmerTest::contest1D`` for estimates; ``brms::hypothesis``; Dickey (1971),
        doi:10.1214/aoms/1177693507; Gelfand, Smith (1990), doi:10.1080/01621459.1990.10476213, for
        the average of conditional densities; Klugkist, Hoijtink (2007),
        doi:10.1016/j.csda.2007.01.024, for order constraints.

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
