"""Variance explained: methods of posteriors and estimates."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd

from bayeslmm.fits.estimate_base import EstimateBase
from bayeslmm.fits.posterior_base import PosteriorBase
from bayeslmm.summaries.variance_explained import (
    R2Method,
    Spread,
    Uncertainty,
    estimate_partition,
    estimate_table,
    icc_quantity,
    posterior_partition,
    posterior_table,
    r2_quantity,
)


class PosteriorVarianceExplained(PosteriorBase):
    """Variance explained, computed on draws and summarised last."""

    def icc(self, prob: float | None = None, *, at: Any = None) -> pd.DataFrame:
        """Intraclass correlation: share of each grouping factor in the variance given beta.

        Parameters
        ----------
        prob : float, optional
            Probability of the intervals; ArviZ's rcParams by default.
        at : data frame or mapping, optional
            Rows of the covariates that the random effects depend on, such as
            ``{"Days": [0, 5, 9]}``; other variables need not be there. Without it the variances
            are means over the rows of the data.

        Returns
        -------
        pandas.DataFrame
            Mean, sd, median and interval; one row per grouping factor, with `at` per grouping
            factor and row of `at`.

        Raises
        ------
        DataError
            If `at` lacks a covariate of the random effects, or has a missing value.

        Notes
        -----
        It is the correlation of two observations, with the same covariates, of one level of this
        factor and of different levels of every other; observations that share levels of several
        factors have the sum of theirs, as do two of one cask in ``(1 | batch/cask)``. With
        precision weights the residual variance is the mean of sigma^2 / weight over the rows;
        with `at`, sigma^2, or sigma^2 / weight if `at` has the column of the weights.

        References
        ----------
        Johnson (2014), doi:10.1111/2041-210X.12225, for the mean over the rows; Goldstein,
        Browne, Rasbash (2002), doi:10.1207/S15328031US0104_02, for `at`.

        Examples
        --------
        >>> import bayeslmm as blm
        >>> model = blm.LMM("Reaction ~ Days + (Days | Subject)", blm.load_dataset("sleepstudy"))
        >>> post = model.fit(method="laplace", draws=200, random_seed=1)
        >>> post.icc(at={"Days": [0, 9]}).index.to_list()
        [('Subject', 0), ('Subject', 9)]
        """
        return posterior_table(icc_quantity(self.design, at), self._joint, prob)

    def r2(self, method: R2Method = "nakagawa", prob: float | None = None) -> pd.DataFrame:
        """Marginal and conditional R2.

        Parameters
        ----------
        method : {"nakagawa", "gelman"}
            The marginal one is the share of the fixed effects, ``var(X beta)``, in the variance
            of the response. The conditional one adds the random effects: under "nakagawa" their
            variance in the population of levels, ``mean(z' Sigma z)``; under "gelman" their
            values at the levels in the data, ``var(X beta + Zu)``.
        prob : float, optional
            Probability of the intervals; ArviZ's rcParams by default.

        Returns
        -------
        pandas.DataFrame
            Rows marginal and conditional; mean, sd, median and interval.

        Raises
        ------
        ValueError
            If the method is unknown.
        DataError
            If "gelman" would need more draws of random effects than memory should hold.

        Notes
        -----
        Variances of X beta and X beta + Zu are sample variances over the rows (divisor n - 1).
        An offset is no part of the model's explanation: shares are those in the variance of the
        response less its offset. The residual variance is that of the model, the mean of
        sigma^2 / weight over the rows, not the variance of the observed residuals.

        Both methods are the Bayesian R2 of Gelman et al. of one model. Where u is integrated out
        its variance belongs to the residual, so that their marginal R2 are the same.
        ``brms::bayes_R2(re_formula = NA)`` with its model-based residual variance leaves them out
        of the denominator as well, and can exceed the conditional R2.

        References
        ----------
        Nakagawa, Schielzeth (2013), doi:10.1111/j.2041-210x.2012.00261.x; Johnson (2014),
        doi:10.1111/2041-210X.12225; Nakagawa, Johnson, Schielzeth (2017),
        doi:10.1098/rsif.2017.0213; Gelman, Goodrich, Gabry, Vehtari (2019),
        doi:10.1080/00031305.2018.1549100; ``performance::r2_nakagawa`` in R.

        Examples
        --------
        >>> import bayeslmm as blm
        >>> model = blm.LMM("Reaction ~ Days + (Days | Subject)", blm.load_dataset("sleepstudy"))
        >>> post = model.fit(method="laplace", draws=200, random_seed=1)
        >>> list(post.r2().index)
        ['marginal', 'conditional']
        """
        return posterior_table(r2_quantity(self.design, method), self._joint, prob)

    def variance_partition(self, prob: float | None = None) -> pd.DataFrame:
        """Variance of the response by source: fixed effects, random effects, residual.

        Parameters
        ----------
        prob : float, optional
            Probability of the intervals; ArviZ's rcParams by default.

        Returns
        -------
        pandas.DataFrame
            Columns component ("fixed", "random" or "residual"), group, term, and mean, sd and
            interval of the variance and of its share in the sum. The shares add up to one on
            every draw, and so do their means.

        Notes
        -----
        The parts are those of :meth:`r2` under "nakagawa". A grouping factor has one row, or
        several where its coefficients are independent by the formula, as in ``(Days || Subject)``:
        correlated coefficients have no variance of their own to share out.

        References
        ----------
        Nakagawa, Johnson, Schielzeth (2017), doi:10.1098/rsif.2017.0213; Johnson (2014),
        doi:10.1111/2041-210X.12225.

        Examples
        --------
        >>> import bayeslmm as blm
        >>> model = blm.LMM("Yield ~ 1 + (1 | Batch)", blm.load_dataset("Dyestuff"))
        >>> table = model.fit(method="laplace", draws=200, random_seed=1).variance_partition()
        >>> print(round(table["share_mean"].sum(), 12))
        1.0
        """
        return posterior_partition(self.design, self._joint, prob)


class EstimateVarianceExplained(EstimateBase):
    """Variance explained, at the estimate or with its uncertainty."""

    def icc(
        self,
        level: float = 0.95,
        *,
        at: Any = None,
        uncertainty: Spread | None = None,
        draws: int = 1000,
        random_seed: int | np.random.Generator | None = None,
    ) -> pd.DataFrame:
        """Intraclass correlation: share of each grouping factor in the variance given beta.

        Parameters
        ----------
        level : float
            Coverage of the intervals.
        at : data frame or mapping, optional
            Rows of the covariates that the random effects depend on, such as
            ``{"Days": [0, 5, 9]}``; other variables need not be there. Without it the variances
            are means over the rows of the data.
        uncertainty : {"laplace", "bootstrap"}, optional
            Add a standard error and an interval from draws around the estimate: of the asymptotic
            normal distribution of log standard deviations and correlations, or of a parametric
            bootstrap, which also serves singular estimates.
        draws : int
            Number of draws or refits.
        random_seed : int or numpy.random.Generator, optional
            Seed.

        Returns
        -------
        pandas.DataFrame
            Column estimate and, with `uncertainty`, std_error, conf_low, conf_high; one row per
            grouping factor, with `at` per grouping factor and row of `at`.

        Raises
        ------
        ValueError
            If an option is not among those allowed.
        DataError
            If `at` lacks a covariate of the random effects, or has a missing value.
        SamplingError
            If the criterion is flat in some direction and `uncertainty` is "laplace".

        Notes
        -----
        Their sum is ``performance::icc``'s adjusted ICC; the unadjusted one is the difference of
        the two rows of :meth:`r2`. Where performance returns NA because the fit is singular, the
        values at the estimate are given all the same. See :meth:`Posterior.icc` for what it
        means with several grouping factors and with weights.

        References
        ----------
        Johnson (2014), doi:10.1111/2041-210X.12225, for the mean over the rows; Goldstein,
        Browne, Rasbash (2002), doi:10.1207/S15328031US0104_02, for `at`.

        Examples
        --------
        >>> import bayeslmm as blm
        >>> sleep = blm.load_dataset("sleepstudy")
        >>> reml = blm.LMM("Reaction ~ Days + (Days | Subject)", sleep).reml()
        >>> reml.icc(at={"Days": [0, 5, 9]})["estimate"].round(3).to_list()
        [0.483, 0.708, 0.847]
        """
        chosen = Uncertainty(method=uncertainty, level=level, draws=draws, random_seed=random_seed)
        quantity = icc_quantity(self.design, at)
        return estimate_table(quantity, self.design, self.fit, self._modes, chosen)

    def r2(
        self,
        method: R2Method = "nakagawa",
        level: float = 0.95,
        *,
        uncertainty: Spread | None = None,
        draws: int = 1000,
        random_seed: int | np.random.Generator | None = None,
    ) -> pd.DataFrame:
        """Marginal and conditional R2.

        Parameters
        ----------
        method : {"nakagawa", "gelman"}
            The marginal one is the share of the fixed effects, ``var(X beta)``, in the variance
            of the response. The conditional one adds the random effects: under "nakagawa" their
            variance in the population of levels, ``mean(z' Sigma z)``; under "gelman" their
            values at the levels in the data, ``var(X beta + Zu)``.
        level : float
            Coverage of the intervals.
        uncertainty : {"laplace", "bootstrap"}, optional
            Add a standard error and an interval, as for :meth:`icc`.
        draws : int
            Number of draws or refits.
        random_seed : int or numpy.random.Generator, optional
            Seed.

        Returns
        -------
        pandas.DataFrame
            Rows marginal and conditional; column estimate and, with `uncertainty`, std_error,
            conf_low, conf_high.

        Raises
        ------
        ValueError
            If an option is not among those allowed.
        SamplingError
            If the criterion is flat in some direction and `uncertainty` is "laplace".

        Notes
        -----
        "nakagawa" is ``performance::r2_nakagawa``, except that precision weights count (the
        residual variance is the mean of sigma^2 / weight over the rows, not sigma^2), that random
        slopes without a fixed counterpart and all terms of ``(x || g)`` count, and that singular
        fits have values. Under "gelman", u are the conditional modes, which vary less than the
        random effects do: the estimate tends to lie below its draws. See :meth:`Posterior.r2` for
        what both have in common.

        References
        ----------
        Nakagawa, Schielzeth (2013), doi:10.1111/j.2041-210x.2012.00261.x; Johnson (2014),
        doi:10.1111/2041-210X.12225; Nakagawa, Johnson, Schielzeth (2017),
        doi:10.1098/rsif.2017.0213; Gelman, Goodrich, Gabry, Vehtari (2019),
        doi:10.1080/00031305.2018.1549100; ``performance::r2_nakagawa`` in R.

        Examples
        --------
        >>> import bayeslmm as blm
        >>> sleep = blm.load_dataset("sleepstudy")
        >>> reml = blm.LMM("Reaction ~ Days + (Days | Subject)", sleep).reml()
        >>> reml.r2()["estimate"].round(3).to_dict()
        {'marginal': 0.279, 'conditional': 0.799}
        """
        chosen = Uncertainty(method=uncertainty, level=level, draws=draws, random_seed=random_seed)
        quantity = r2_quantity(self.design, method)
        return estimate_table(quantity, self.design, self.fit, self._modes, chosen)

    def variance_partition(
        self,
        level: float = 0.95,
        *,
        uncertainty: Spread | None = None,
        draws: int = 1000,
        random_seed: int | np.random.Generator | None = None,
    ) -> pd.DataFrame:
        """Variance of the response by source: fixed effects, random effects, residual.

        Parameters
        ----------
        level : float
            Coverage of the intervals.
        uncertainty : {"laplace", "bootstrap"}, optional
            Add standard errors and intervals, as for :meth:`icc`.
        draws : int
            Number of draws or refits.
        random_seed : int or numpy.random.Generator, optional
            Seed.

        Returns
        -------
        pandas.DataFrame
            Columns component ("fixed", "random" or "residual"), group, term, variance and share;
            the shares add up to one. With `uncertainty` also std_error, conf_low and conf_high of
            both.

        Raises
        ------
        ValueError
            If an option is not among those allowed.
        SamplingError
            If the criterion is flat in some direction and `uncertainty` is "laplace".

        Notes
        -----
        The parts are those of :meth:`r2` under "nakagawa". A grouping factor has one row, or
        several where its coefficients are independent by the formula, as in ``(Days || Subject)``:
        correlated coefficients have no variance of their own to share out.

        References
        ----------
        Nakagawa, Johnson, Schielzeth (2017), doi:10.1098/rsif.2017.0213; Johnson (2014),
        doi:10.1111/2041-210X.12225.

        Examples
        --------
        >>> import bayeslmm as blm
        >>> pastes = blm.load_dataset("Pastes")
        >>> table = blm.LMM("strength ~ 1 + (1 | batch/cask)", pastes).reml().variance_partition()
        >>> table["share"].round(3).to_list()
        [0.0, 0.154, 0.783, 0.063]
        """
        chosen = Uncertainty(method=uncertainty, level=level, draws=draws, random_seed=random_seed)
        return estimate_partition(self.design, self.fit, self._modes, chosen)
