"""Tests of the terms of an estimate."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import pandas as pd
from numpy.typing import ArrayLike

from bayeslmm.estimation.estimate import Fit
from bayeslmm.estimation.inference import DfMethod, Inference
from bayeslmm.fits.effects import Effects


@dataclass(frozen=True, eq=False)
class EstimateTests(Effects):
    """Tests of terms that an estimate has and a posterior has not."""

    fit: Fit

    def _judged(self, df: DfMethod | None) -> Inference:
        """How fixed effects are judged: as chosen for the estimate, or by these df."""
        raise NotImplementedError

    def anova(self, type: Literal[1, 2, 3] = 3, *, df: DfMethod | None = None) -> pd.DataFrame:
        """F test of each term of the fixed part.

        Parameters
        ----------
        type : {1, 2, 3}
            1: each term given those before it. 2: given all terms that do not contain it. 3: SAS'
            type III, which does not depend on the coding of factors or on how many rows a cell has.
        df : str, optional
            As in :meth:`bayeslmm.Estimate.with_df`; that of the estimate by default, which is
            Satterthwaite's unless changed.

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

        return anova_table(self.design, self._judged(df), type)

    def contest(
        self, L: ArrayLike, rhs: ArrayLike | None = None, *, df: DfMethod | None = None
    ) -> pd.DataFrame:
        """F test that several linear combinations of the fixed effects hold at once.

        Parameters
        ----------
        L : array-like (q, p) or DataFrame
            Weights of the coefficients, one hypothesis a row; the columns of a data frame are
            coefficients, and those not named have weight zero.
        rhs : array-like (q,), optional
            Values under the hypothesis; zeros by default.
        df : str, optional
            As in :meth:`anova`.

        Returns
        -------
        pandas.DataFrame
            One row: sum_sq, mean_sq, num_df, den_df, statistic, p_value; a
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

        return contest_table(self._judged(df), self.design.coefs, L, rhs)
