"""Effects of a fit: marginal means, contrasts, slopes, comparisons and hypotheses."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, get_args

from numpy.typing import ArrayLike

from bayeslmm.exceptions import check_choice
from bayeslmm.fits.predictions import Names, Predictions

if TYPE_CHECKING:
    import pandas as pd
    from marginaleffects.classes import ModelAbstract

    from bayeslmm.effects.grid import Weights
    from bayeslmm.effects.heterogeneity import Heterogeneity
    from bayeslmm.effects.hypothesis import Hypotheses
    from bayeslmm.effects.multiplicity import Adjust
    from bayeslmm.effects.quantities import LinearQuantities
    from bayeslmm.effects.reference_grid import ReferenceGrid
    from bayeslmm.effects.sources import Source
    from bayeslmm.estimation.inference import DfMethod
    from bayeslmm.sampling.joint_draws import JointDraws

MeanScale = Literal["link", "response"]
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
        type: MeanScale = "link",
        bias_correct: bool | float = False,
    ) -> LinearQuantities:
        """Marginal means (least-squares means) over a reference grid.

        The grid has all levels of every factor and the mean of every numeric covariate; the
        linear predictor is averaged over whatever is not among `variables` and `by`.

        Parameters
        ----------
        variables : str or sequence of str
            Variables of the fixed part whose values are told apart; the overall mean without one.
        at : mapping, optional
            Values of covariates, ``{"age": [8, 14]}``, some of a factor's levels, or functions of
            the column, ``{"age": np.median}``. Several values of a covariate that is not told apart
            are averaged over.
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
        type : {"link", "response"}
            The scale of the model, or that of the response where the formula transforms it, as
            :meth:`bayeslmm.effects.quantities.LinearQuantities.response` does.
        bias_correct : bool or float
            With ``type="response"``, as there.

        Returns
        -------
        LinearQuantities
            Of an estimate: estimates with standard errors, df, tests against zero and
            95 % intervals; of a posterior mean, sd, median and interval, and ``.draws`` for ArviZ.
            Both have ``.table()``, ``.contrasts()``, ``.letters()``, ``.effect_sizes()`` and
            ``.equivalence()``, an estimate ``.joint_test()`` too, and ``.grid``, which says what is
            averaged over. NaN where the data cannot say (an empty cell). `notes` name the scale of
            a transformed response, and interactions with what is averaged over.

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
        in `at`, or write ``C(x)`` in the formula. A factor that is nested in another one, in the
        data and in the formula, is told apart within the levels of that one. Rows count once in
        `weights`, whatever their precision weights. For a MAP estimate standard errors are
        posterior standard deviations given the covariance parameters at the mode, and tests and
        intervals are normal.

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

        check_choice(type, get_args(MeanScale), "type")
        if bias_correct is not False and type != "response":
            raise ValueError("bias_correct= is for type='response'.")
        means = marginal_means(
            self.design,
            self._source_by(df),
            variables,
            at=at,
            weights=weights,
            by=by,
            target=target,
        )
        return means.response(bias_correct) if type == "response" else means

    def reference_grid(
        self, *, at: Mapping[str, Any] | None = None, weights: Weights = "equal"
    ) -> ReferenceGrid:
        """The combinations of values that marginal means are averages of.

        Parameters
        ----------
        at, weights
            As in :meth:`means`, whose results have their own grid in ``.grid``.

        Returns
        -------
        ReferenceGrid
            Prints each variable with its values, and whether it is averaged over or held; has the
            combinations with their weights in `frame`.

        Raises
        ------
        DataError
            If a variable or a level is unknown.

        References
        ----------
        R's ``emmeans::ref_grid``.

        Examples
        --------
        >>> import bayeslmm as blm
        >>> orthodont = blm.load_dataset("Orthodont")
        >>> blm.LMM("distance ~ age * Sex + (age | Subject)", orthodont).reml().reference_grid()
        Reference grid of 2 combinations, weights 'equal'
         variable      kind       values           use
              Sex    factor Male, Female averaged over
              age covariate           11          held
        """
        from bayeslmm.effects.grid import mean_combinations

        return mean_combinations(self.design, (), at=at, weights=weights, by=None)[1]

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
        ref: Any = None,
        reverse: bool = False,
        interaction: Any = None,
        type: MeanScale = "link",
    ) -> LinearQuantities:
        """Contrasts of marginal means.

        Parameters
        ----------
        variables, at, weights, by, df, type
            As in :meth:`means`; differences of logarithms are ratios with ``type="response"``.
        method, adjust, ref, reverse, interaction
            As in :meth:`bayeslmm.effects.quantities.LinearQuantities.contrasts`: pairwise by
            default, with Tukey's adjustment for an estimate (none with ``adjust=None``);
            "reference" with `ref`, "sequential", "polynomial", "effects", "others", "mean-change",
            "helmert" or weights of your own, ``{"late - early": {"9": 1, "0": -1}}``; contrasts of
            contrasts with ``interaction=("pairwise", "pairwise")``. In a posterior there is nothing
            to adjust: for statements about all contrasts at once take
            ``.table(simultaneous=True)``.

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
        means = self.means(variables, at=at, weights=weights, by=by, df=df, type=type)
        return means.contrasts(
            method, adjust=adjust, ref=ref, reverse=reverse, interaction=interaction
        )

    def joint_tests(
        self,
        by: Names | None = None,
        *,
        at: Mapping[str, Any] | None = None,
        weights: Weights = "equal",
        df: DfMethod | None = None,
    ) -> pd.DataFrame:
        """Joint tests of all terms by contrasts of marginal means, also within values of others.

        Parameters
        ----------
        by : str or sequence of str, optional
            Variables within whose values the terms of the others are tested.
        at, weights, df
            As in :meth:`means`. Covariates take two values, one unit on either side of their mean,
            or less to stay within their range, unless `at` has others.

        Returns
        -------
        pandas.DataFrame
            One row per term and values of `by`. Of an estimate F tests: num_df, den_df, statistic,
            p_value and, where residuals have no structure, sum_sq and mean_sq. Without `by`, and
            with balanced weights, those of factors are type III tests.

            Of a posterior: rank, the number of independent contrasts; distance, how far zero is
            from their posterior mean (Mahalanobis); contour_probability, the share of draws that
            are farther away than zero. That is the posterior probability outside the contour of the
            density through zero, if the posterior is about elliptical. It is small where zero lies
            far out, and is no probability that there is no effect.

        Raises
        ------
        DataError
            If a variable or a level is unknown.
        ValueError
            If there is no term to test.

        References
        ----------
        R's ``emmeans::joint_tests``; Box, Tiao (1973), "Bayesian Inference in Statistical
        Analysis", section 2.8, and Held (2004), doi:10.1198/1061860043137, for posteriors.

        Examples
        --------
        >>> import bayeslmm as blm
        >>> cake = blm.load_dataset("cake")
        >>> reml = blm.LMM("angle ~ recipe * temp + (1 | recipe:replicate)", cake).reml()
        >>> reml.joint_tests()["p_value"].round(3).to_dict()
        {'recipe': 0.781, 'temp': 0.0, 'recipe:temp': 0.959}
        """
        from bayeslmm.effects.joint_tests import joint_tests

        source = self._source_by(df)
        return joint_tests(self.design, source, by=by, at=at, weights=weights)

    def to_marginaleffects(self, df: DfMethod | None = None) -> ModelAbstract:
        """The fixed effects as a model of the Python package marginaleffects.

        Parameters
        ----------
        df : str, optional
            Of an estimate: whose standard errors, as in :meth:`means`.

        Returns
        -------
        marginaleffects.classes.ModelAbstract
            What ``marginaleffects.predictions()``, ``slopes()``, ``comparisons()``,
            ``hypotheses()`` and the ``avg_`` and ``plot_`` forms of them take. Its predictions are
            those of the fixed part; its tests are normal ones. Of a posterior: posterior means and
            covariances of the fixed effects. Under Polars 2, marginaleffects 0.6 itself cannot
            compare levels of factors (take :meth:`comparisons`); its other functions work.

        Raises
        ------
        ImportError
            If marginaleffects is not installed.
        DataError
            If the rows of the model are not in memory.

        References
        ----------
        Arel-Bundock, Greifer, Heiss (2024), doi:10.18637/jss.v111.i09.

        Examples
        --------
        >>> import bayeslmm as blm, marginaleffects as me
        >>> sleep = blm.load_dataset("sleepstudy")
        >>> reml = blm.LMM("Reaction ~ Days + (Days | Subject)", sleep).reml()
        >>> slopes = me.avg_slopes(reml.to_marginaleffects(), variables="Days")
        >>> round(float(slopes["estimate"][0]), 2)
        10.47
        """
        from bayeslmm.effects.marginaleffects_model import marginaleffects_model

        return marginaleffects_model(self.design, self._source_by(df))

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

    def heterogeneity(self, *args: Any, **options: Any) -> Heterogeneity:
        """How far estimates differ by more than their known sampling errors: a meta-analysis.

        Parameters
        ----------
        level : float
            Of an estimate: coverage of the intervals.
        prob : float, optional
            Of a posterior: probability of the intervals.
        at : data frame or mapping, optional
            Moderators, and covariates of random effects, of new units to predict. By default the
            combinations of the data, where they are few.
        df : {"residual", "asymptotic"} or float
            Of an estimate: degrees of freedom of the t distribution of prediction intervals; n - p,
            infinitely many, or a number.
        random_seed : int or numpy.random.Generator, optional
            Of a posterior: seed of the effects of new units.

        Returns
        -------
        Heterogeneity
            Tables `test` (Q, its degrees of freedom and p-value), `table` (tau and I2 by grouping
            factor and coefficient, I2 in total, H), `prediction` (mean and interval for the effect
            of a new unit), of a posterior `evidence` (for tau = 0); prints with what they say.

        Raises
        ------
        DataError
            If the sampling errors are not known (``residual="se(column)"`` or
            ``residual="known(V | group)"``), or rows are beyond memory.
        ValueError
            If an option is not among those allowed.

        Notes
        -----
        I2 is the variance of effects over the sum of all variances of effects and the typical
        sampling variance tr(PV) / tr(P), which for one tau and no moderators is that of Higgins and
        Thompson. Where rows have one of several coefficients (outcomes), each has its own rows,
        with their typical sampling variance. Without random effects I2 is (Q - df) / Q and H the
        root of Q / df. Intervals of tau of an estimate are of the profile likelihood, and I2 and H
        follow from them where nothing else varies; a posterior has intervals of all.

        The prediction interval of an estimate is mean ± t sqrt(std_error^2 + tau^2): metafor's
        ``predict()`` has ``df="asymptotic"`` by default and ``df="residual"`` with ``test="t"``;
        Higgins, Thompson and Spiegelhalter have ``df=k - 2`` with k studies. That of a posterior
        needs no such choice.

        References
        ----------
        Higgins, Thompson (2002), doi:10.1002/sim.1186, for I2 and H. Higgins, Thompson,
        Spiegelhalter (2009), doi:10.1111/j.1467-985X.2008.00552.x, for prediction intervals.
        Jackson, White, Riley (2012), doi:10.1002/sim.5453, for several outcomes. Viechtbauer
        (2010), doi:10.18637/jss.v036.i03 (R's ``metafor``).

        Examples
        --------
        >>> import bayeslmm as blm
        >>> schools = blm.load_dataset("school_calendar")
        >>> model = blm.LMM("d ~ 1 + (1 | district / school)", schools, residual="se(se)")
        >>> found = model.reml().heterogeneity()
        >>> found.test.round(1).values.tolist()
        [[578.9, 55.0, 0.0]]
        >>> found.table.filter(like="I2[", axis=0)["estimate"].round(1).to_list()
        [63.3, 31.9]
        """
        raise NotImplementedError

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
