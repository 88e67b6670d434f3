"""Marginal means, contrasts, slopes, tests and hypotheses: methods of estimates."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal

import pandas as pd
from numpy.typing import ArrayLike

from bayeslmm.fits.estimate_base import EstimateBase

if TYPE_CHECKING:
    from bayeslmm.effects.contrasts import Adjust
    from bayeslmm.effects.grid import Weights
    from bayeslmm.effects.hypothesis import Hypotheses
    from bayeslmm.effects.quantities import EstimateSource, LinearQuantities

Names = str | Sequence[str]
Target = Literal["average", "population"]


class EstimateMeans(EstimateBase):
    """Marginal means, contrasts, slopes, tests and hypotheses of an estimate."""

    def means(
        self,
        variables: Names = (),
        *,
        at: Mapping[str, Any] | None = None,
        weights: Weights = "equal",
        by: Names | None = None,
        target: Target = "average",
    ) -> LinearQuantities:
        """Estimate marginal means (least-squares means) over a reference grid.

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
            Estimates with standard errors, Satterthwaite df, tests against zero and 95 %
            intervals; ``.table(level=)``, ``.contrasts()`` and ``.joint_test()``. NaN where the
            data cannot say (an empty cell). On the scale of the response as the formula
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
        """
        from bayeslmm.effects.grid import marginal_means

        return marginal_means(
            self.design,
            self._means_source,
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
    ) -> LinearQuantities:
        """Contrasts of marginal means.

        Parameters
        ----------
        variables, at, weights, by
            As in :meth:`means`.
        method, adjust
            As in :meth:`bayeslmm.effects.quantities.LinearQuantities.contrasts`: pairwise with
            Tukey's adjustment by default, none with ``adjust=None``; "reference", "sequential",
            "polynomial", "effects" or weights of your own,
            ``{"late - early": {"9": 1, "0": -1}}``.

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
        new : data frame or "grid", optional
            Rows to average over instead of those of the model, or the reference grid.

        Returns
        -------
        LinearQuantities
            Slopes per unit of the variable, by differences of the design matrix.

        Raises
        ------
        DataError
            If the variable is no covariate of the fixed part.

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

        return slopes(self.design, self._means_source, variable, at=at, by=by, new=new)

    def comparisons(
        self,
        variable: str,
        change: Any = None,
        *,
        by: Names | None = None,
        new: Any = None,
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
        new : data frame, optional
            Rows to average over instead of those of the model.

        Returns
        -------
        LinearQuantities

        Raises
        ------
        DataError
            If the variable is not in the fixed part.
        ValueError
            If the change does not fit the variable.

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

        return comparisons(self.design, self._means_source, variable, change, by=by, new=new)

    def average_predictions(self, by: Names | None = None, new: Any = None) -> LinearQuantities:
        """Predictions of the fixed part (with offset), averaged over rows.

        Parameters
        ----------
        by : str or sequence of str, optional
            Variables within whose values predictions are averaged.
        new : data frame, optional
            Rows to average over instead of those of the model.

        Returns
        -------
        LinearQuantities

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

        return average_predictions(self.design, self._means_source, by=by, new=new)

    def hypothesis(self, expressions: Names, *, level: float = 0.95) -> Hypotheses:
        """Test hypotheses about the fixed effects, written as they are read.

        Parameters
        ----------
        expressions : str or sequence of str
            Linear combinations of coefficients (``"Days"``, ``"age:Sex[T.Female]"``, in backticks
            where they look like an operation) and marginal means of a factor's levels
            (``"Sex[Male]"``), compared by one of ``< > =``.
        level : float
            Coverage of the two-sided intervals.

        Returns
        -------
        Hypotheses
            Left side less right side with its standard error, Satterthwaite df and p-value:
            two-sided for ``=``; for ``>`` and ``<`` small where the data speak for it. Normal
            tests with posterior standard deviations for a MAP estimate.

        Raises
        ------
        FormulaError
            If an expression cannot be read, is not linear in the fixed effects, or has a label
            that stands for two things (a covariate called ``sigma``: write ``beta[sigma]``);
            shows the place.

        References
        ----------
        R's ``lmerTest::contest1D``; the language is that of ``brms::hypothesis``.

        Examples
        --------
        >>> import bayeslmm as blm
        >>> sleep = blm.load_dataset("sleepstudy")
        >>> reml = blm.LMM("Reaction ~ Days + (Days | Subject)", sleep).reml()
        >>> reml.hypothesis("Days = 8").table()["p_value"].round(3).to_dict()
        {'Days = 8': 0.129}
        """
        from bayeslmm.effects.hypothesis import estimate_hypotheses

        return estimate_hypotheses(self.design, self.fit, expressions, level)

    def anova(self, type: Literal[1, 2, 3] = 3) -> pd.DataFrame:
        """F test of each term of the fixed part with Satterthwaite's degrees of freedom.

        Parameters
        ----------
        type : {1, 2, 3}
            1: each term given those before it. 2: given all terms that do not contain it. 3: SAS'
            type III, which does not depend on the coding of factors or on how many rows a cell has.

        Returns
        -------
        pandas.DataFrame
            sum_sq, mean_sq, num_df, den_df, statistic and p_value, one row per term. NaN for a
            term that is a linear combination of earlier ones. For a MAP estimate, whose covariance
            matrix is a posterior one, chi-square tests: `den_df` is infinite. Where a combination
            of levels has no rows, a warning and ``attrs["note"]`` say which and what type III
            then is.

        Notes
        -----
        For terms of several degrees of freedom `den_df` depends on how the hypothesis is written,
        which F does not. It is written as in lmerTest under treatment coding; for polynomials and
        splines the columns have unit length here.

        References
        ----------
        Kuznetsova, Brockhoff, Christensen (2017), doi:10.18637/jss.v082.i13
        (``lmerTest::anova``); Fai, Cornelius (1996), doi:10.1080/00949659608811740.

        Examples
        --------
        >>> import bayeslmm as blm
        >>> model = blm.LMM("score ~ Machine + (1 | Worker)", blm.load_dataset("Machines"))
        >>> model.reml().anova()["statistic"].round(2).to_dict()
        {'Machine': 87.8}
        """
        from bayeslmm.effects.tests_of_fixed import anova_table

        return anova_table(self.design, self.fit, type)

    def contest(self, L: ArrayLike, rhs: ArrayLike | None = None) -> pd.DataFrame:
        """F test that several linear combinations of the fixed effects hold at once.

        Parameters
        ----------
        L : array-like (q, p) or DataFrame
            Weights of the coefficients, one hypothesis a row; the columns of a data frame are
            coefficients, and those not named have weight zero.
        rhs : array-like (q,), optional
            Values under the hypothesis; zeros by default.

        Returns
        -------
        pandas.DataFrame
            One row: sum_sq, mean_sq, num_df, den_df (Satterthwaite), statistic, p_value; a
            chi-square test for a MAP estimate, whose covariance matrix is a posterior one.

        Raises
        ------
        ValueError
            If the weights do not fit.

        References
        ----------
        R's ``lmerTest::contest``; Fai, Cornelius (1996), doi:10.1080/00949659608811740.

        Examples
        --------
        >>> import bayeslmm as blm
        >>> model = blm.LMM("score ~ Machine + (1 | Worker)", blm.load_dataset("Machines"))
        >>> model.reml().contest([[0, 1, 0], [0, 0, 1]])["statistic"].round(2).to_dict()
        {'contest': 87.8}
        """
        from bayeslmm.effects.tests_of_fixed import contest_table

        return contest_table(self.fit, self.design.coefs, L, rhs)

    @property
    def _means_source(self) -> EstimateSource:
        from bayeslmm.effects.quantities import source_of_fit

        return source_of_fit(self.design, self.fit)
