"""Tests of the terms of an estimate."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import pandas as pd
from numpy.typing import ArrayLike

from bayeslmm.estimation.estimate import Fit
from bayeslmm.estimation.inference import DfMethod, Inference
from bayeslmm.fits.effects import Effects

if TYPE_CHECKING:
    from bayeslmm.selection.step import Step


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

    def ranova(self, *, reduce_terms: bool = True) -> pd.DataFrame:
        """Likelihood-ratio test of each random-effects term: the model without it against this one.

        Parameters
        ----------
        reduce_terms : bool
            Whether what varies by level is taken out term by term, ``(x | g)`` becoming
            ``(1 | g)``, or as a whole. Terms of a structure by name, with ``by=`` or ``mm()`` are
            always taken out whole.

        Returns
        -------
        pandas.DataFrame
            One row per deletion, ``"x in (x | g)"`` or ``"(1 | g)"``, after one of the model,
            ``"<none>"``: n_parameters, loglik, aic, chisq, df, p_value of chi-squared on df, and
            p_boundary. ``attrs["formulas"]`` has the formula of each row, ``attrs["method"]`` the
            criterion: restricted likelihoods of a REML estimate, likelihoods of an ML one.

        Raises
        ------
        DataError
            If there are no random effects, or rows have to be read again and the model does not
            know where they are.
        ValueError
            If the estimate is a "MAP" one.

        Notes
        -----
        A variance of zero is at the boundary of what it can be, so `p_value` is too large, for a
        single variance twice. `p_boundary` is of the mixture of half chi-squared on df - 1 and half
        on df [1]_ where a level has one effect less and the other variances are positive; NaN
        elsewhere. :func:`bayeslmm.exact_lrt` has no such approximation.

        References
        ----------
        R's ``lmerTest::ranova``.

        .. [1] Stram, Lee (1994), doi:10.2307/2533455.

        Examples
        --------
        >>> import bayeslmm as blm
        >>> sleep = blm.load_dataset("sleepstudy")
        >>> reml = blm.LMM("Reaction ~ Days + (Days | Subject)", sleep).reml()
        >>> reml.ranova()["chisq"].round(2).to_dict()
        {'<none>': nan, 'Days in (Days | Subject)': 42.84}
        """
        from bayeslmm.selection.random_part import Fitted, ranova_table

        return ranova_table(Fitted(self.design, self.fit), reduce_terms=reduce_terms)

    def drop1(
        self, scope: Collection[str] | None = None, *, df: DfMethod | None = None
    ) -> pd.DataFrame:
        """F test of each term of the fixed part that no other term contains.

        Parameters
        ----------
        scope : collection of str, optional
            Some of these terms; all by default.
        df : str, optional
            As in :meth:`anova`.

        Returns
        -------
        pandas.DataFrame
            As of :meth:`anova`. A term is left out as long as a larger one has all its variables:
            ``a`` where there is ``a:b``.

        Raises
        ------
        ValueError
            If the scope has something else.

        References
        ----------
        ``drop1`` of R's lmerTest.

        Examples
        --------
        >>> import bayeslmm as blm
        >>> oats = blm.load_dataset("Oats")
        >>> reml = blm.LMM("yield ~ nitro * Variety + (1 | Block/Variety)", oats).reml()
        >>> reml.drop1()["p_value"].round(3).to_dict()
        {'nitro:Variety': 0.61}
        """
        from bayeslmm.effects.tests_of_fixed import deletion_table

        return deletion_table(self.design, self._judged(df), scope)

    def step(
        self,
        *,
        alpha_random: float = 0.1,
        alpha_fixed: float = 0.05,
        reduce_random: bool = True,
        reduce_fixed: bool = True,
        keep: Collection[str] = (),
        df: DfMethod | None = None,
    ) -> Step:
        """Backward elimination: the random part by :meth:`ranova`, then the fixed part by `drop1`.

        In each step the term with the largest p-value is taken out, as long as that is above alpha.

        Parameters
        ----------
        alpha_random, alpha_fixed : float
            Levels of the tests.
        reduce_random, reduce_fixed : bool
            Whether the part is reduced at all.
        keep : collection of str
            Terms of the fixed part that stay.
        df : str, optional
            As in :meth:`anova`.

        Returns
        -------
        Step
            Both tables, and the estimate of the model that is left; prints as lmerTest's.

        Raises
        ------
        DataError, ValueError
            As :meth:`ranova` and :meth:`drop1`.

        Notes
        -----
        P-values, standard errors and intervals of a model that was found so do not know of the
        search: they are too small. ``p_value`` decides, not ``p_boundary``, as in lmerTest.

        References
        ----------
        R's ``lmerTest::step``; Kuznetsova, Brockhoff, Christensen (2017),
        doi:10.18637/jss.v082.i13.

        Examples
        --------
        >>> import bayeslmm as blm
        >>> oats = blm.load_dataset("Oats")
        >>> reml = blm.LMM("yield ~ nitro * Variety + (1 | Block/Variety)", oats).reml()
        >>> reml.step().formula
        'yield ~ nitro + (1 | Block/Variety)'
        """
        from bayeslmm.selection.step import stepped

        return stepped(
            self,
            df=df,
            alphas=(alpha_random if reduce_random else 1.0, alpha_fixed if reduce_fixed else 1.0),
            keep=keep,
        )
