"""What an estimate and a posterior both are: values and tables of one model."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import scipy.sparse as sp
from numpy.typing import NDArray

from bayeslmm.covariance.coordinates import Points
from bayeslmm.data.design import Design, require_random
from bayeslmm.estimation import effects
from bayeslmm.estimation.model import Model, field_values
from bayeslmm.estimation.residuals import mean_scales
from bayeslmm.priors.record import Priors
from bayeslmm.summaries import parameters
from bayeslmm.summaries.text import covariance_heading, html_page

if TYPE_CHECKING:
    from bayeslmm.estimation.inference import DfMethod
    from bayeslmm.fits.study import Study
    from bayeslmm.planning.truth import Truth
    from bayeslmm.report.broom import Column
    from bayeslmm.report.tables import Markup

Array = NDArray[np.float64]

NO_EFFECTS = "there are none by level: fixef() has all coefficients"
"""What follows where there are no random effects."""


@dataclass(frozen=True, eq=False)
class FittedModel:
    """Values and tables that :class:`~bayeslmm.Estimate` and :class:`~bayeslmm.Posterior` share.

    What differs between them is said once, here: an estimate has standard errors and confidence
    intervals of coverage `level`, 0.95 by default; a posterior has means and standard deviations
    over its draws and intervals of probability `prob`, ArviZ's ``rcParams["stats.ci_prob"]`` by
    default, of the kind that ``rcParams["stats.ci_kind"]`` says. Either refuses the other's word.
    """

    model: Model

    # --- what each of the two provides ------------------------------------------------

    @property
    def _beta(self) -> Array:
        """Fixed effects (p,): estimates, or posterior means."""
        raise NotImplementedError

    @property
    def _u(self) -> list[Array]:
        """Random effects (J, k) per grouping factor: conditional modes, or posterior means."""
        raise NotImplementedError

    @property
    def _covariances(self) -> list[Array]:
        """Covariance matrices (k, k) of the random effects, or their posterior means."""
        raise NotImplementedError

    @property
    def _points(self) -> Points:
        """Covariance parameters: one point, or a point per draw."""
        raise NotImplementedError

    @property
    def _residual_parameters(self) -> list[float]:
        """Standard deviations, powers and correlations of the residuals, or their means."""
        rows = parameters.residual_parameters(self.design)
        return [float(parameters.joint_parameter(self._points, row).mean()) for row in rows]

    @cached_property
    def _residual(self) -> sp.csr_array:
        """Covariance matrix R (n, n) of the residuals, or its posterior mean."""
        return parameters.residual_covariance(self.design, self._points)

    def _column(self, level: float) -> Column:
        """Numbers of the fit in a table of several."""
        raise NotImplementedError

    # --- the model --------------------------------------------------------------------

    @property
    def design(self) -> Design:
        """The design of the model."""
        return self.model.design

    @property
    def priors(self) -> Priors:
        """The priors of the model, which REML and ML estimates do not depend on."""
        return self.model.priors

    @property
    def nobs(self) -> int:
        """Number of rows used."""
        return self.design.n

    @property
    def method(self) -> str:
        """What was maximised ("REML", "ML" or "MAP"), or the engine that made the draws."""
        raise NotImplementedError

    @property
    def notes(self) -> tuple[str, ...]:
        """Everything a reader should know.

        Dropped columns; of an estimate a singular fit and failed convergence; of a posterior poor
        convergence or approximation, and an engine that was fallen back to.
        """
        raise NotImplementedError

    # --- parameters -------------------------------------------------------------------

    @property
    def beta(self) -> pd.Series:
        """Fixed effects by coefficient: estimates, or posterior means."""
        return pd.Series(self._beta, index=list(self.design.coefs), name="beta")

    @property
    def sigma(self) -> float | pd.Series:
        """Residual standard deviation (of a row with weight one), or its posterior mean.

        A series where strata or occasions have their own, and by row where it has predictors. That
        of Student-t residuals is their scale: their standard deviation is larger by the factor
        ``sqrt(nu / (nu - 2))``.
        """
        if self.design.scale_rows is not None:
            values = mean_scales(self.design, self._points)
            return pd.Series(values, index=self.design.index, name="sigma")
        sds = self._points.natural[0].mean(axis=0)
        if len(sds) == 1:
            return float(sds[0])
        labels = pd.Index(self.design.spec.residual_structure.scales)
        return pd.Series(sds, index=labels, name="sigma")

    @property
    def sds(self) -> dict[str, pd.Series]:
        """Random-effect standard deviations by grouping factor, or their posterior means."""
        raise NotImplementedError

    @property
    def corrs(self) -> dict[str, pd.DataFrame]:
        """Random-effect correlation matrices by grouping factor, or their posterior means."""
        raise NotImplementedError

    def summary(self, *args: Any, **options: Any) -> pd.DataFrame:
        """All parameters but the random effects.

        Parameters
        ----------
        level : float
            Of an estimate: coverage of the intervals.
        prob : float, optional
            Of a posterior: probability of the intervals.
        direction : bool
            Of a posterior: add `pd`, the probability of direction: that of the more probable sign,
            of parameters that have both.
        df : str, optional
            Of an estimate: degrees of freedom of fixed effects, as in
            :meth:`bayeslmm.Estimate.with_df`.

        Returns
        -------
        pandas.DataFrame
            Rows ``beta[Days]``, ``sd[Subject, Days]``, ``cor[Subject, Intercept, Days]``,
            ``sigma``. Of an estimate: columns estimate, std_error, conf_low, conf_high and, for
            fixed effects, df, t statistic and p-value. Standard errors of covariance
            parameters come by the delta method from the log and inverse hyperbolic tangent scales,
            on which their Wald intervals are symmetric; NaN at a boundary (use profile intervals
            there). Of a posterior: the statistics and diagnostics of ``arviz.summary``.

        References
        ----------
        Makowski, Ben-Shachar, Chen, Luedecke (2019), doi:10.3389/fpsyg.2019.02767, for the
        probability of direction (``bayestestR::p_direction``).

        Examples
        --------
        >>> import bayeslmm as blm
        >>> model = blm.LMM("Yield ~ 1 + (1 | Batch)", blm.load_dataset("Dyestuff"))
        >>> list(model.reml().summary().index)
        ['beta[Intercept]', 'sd[Batch, Intercept]', 'sigma']
        """
        raise NotImplementedError

    def fixef(self, *args: Any, **options: Any) -> pd.DataFrame:
        """Fixed effects with their uncertainty.

        Parameters
        ----------
        level : float
            Of an estimate: coverage of the intervals.
        prob : float, optional
            Of a posterior: probability of the intervals.
        df : str, optional
            Of an estimate: as in :meth:`bayeslmm.Estimate.with_df`.

        Returns
        -------
        pandas.DataFrame
            One row per coefficient. Of an estimate: estimate, std_error, df (Satterthwaite's
            unless chosen otherwise), statistic, p_value, conf_low, conf_high; of a posterior: mean,
            sd, median and interval.

        References
        ----------
        Kuznetsova, Brockhoff, Christensen (2017), doi:10.18637/jss.v082.i13 (lmerTest).

        Examples
        --------
        >>> import bayeslmm as blm
        >>> sleep = blm.load_dataset("sleepstudy")
        >>> reml = blm.LMM("Reaction ~ Days + (Days | Subject)", sleep).reml()
        >>> reml.fixef()["estimate"].round(3).tolist()
        [251.405, 10.467]
        """
        raise NotImplementedError

    def varcorr(self, *args: Any, **options: Any) -> pd.DataFrame:
        """Variances, covariances, standard deviations and correlations of the random effects.

        Parameters
        ----------
        level : float
            Of an estimate: coverage of the intervals.
        prob : float, optional
            Of a posterior: probability of the intervals.
        style : {"default", "nlme"}
            "nlme" for the numbers that nlme reports: `sigma` where variance covariates are zero (of
            ``power(x)`` where x is one), in the first stratum; ratios of the standard deviations of
            others to it (varIdent), exponents of the covariates as they are (varPower, varExp), and
            Phi, Rho, range or correlations.

        Returns
        -------
        pandas.DataFrame
            For "nlme" a row per parameter, with column estimate or, of a posterior, mean, sd,
            median and interval. Else columns group, term, term_2 and vcov, the variance or
            covariance or its posterior mean. Of an estimate also sdcor (as lme4's
            ``as.data.frame(VarCorr())``) with its std_error, conf_low and conf_high; of a posterior
            mean, sd, median and interval of the standard deviation or correlation.

        Examples
        --------
        >>> import bayeslmm as blm
        >>> reml = blm.LMM("Yield ~ 1 + (1 | Batch)", blm.load_dataset("Dyestuff")).reml()
        >>> reml.varcorr()["sdcor"].round(1).tolist()
        [42.0, 49.5]
        """
        raise NotImplementedError

    # --- random effects, matrices -------------------------------------------------------

    def ranef(
        self,
        *,
        interval: bool = False,
        prob: float | None = None,
        level: float | None = None,
    ) -> dict[str, pd.DataFrame]:
        """Random effects: levels by coefficients, per grouping factor.

        Conditional modes of an estimate, means of a posterior.

        Parameters
        ----------
        interval : bool
            Give uncertainty too: a row per level and coefficient. So does `prob` or `level`.
        prob : float, optional
            Of a posterior: probability of the intervals.
        level : float, optional
            Of an estimate: coverage of the intervals; 0.95 by default.

        Returns
        -------
        dict of str to pandas.DataFrame
            Levels by coefficients. With intervals rows by level and term: of a posterior mean, sd,
            median and interval; of an estimate estimate, std_error (of prediction: fixed effects
            count as uncertain, as in :meth:`ranef_sd`), conf_low and conf_high, which are normal.

        Raises
        ------
        DataError
            If there are no random effects, or draws of all of them would not fit into memory.
        ValueError
            If the coverage is not between 0 and 1, or is the other kind of fit's word.

        References
        ----------
        R's ``lme4::ranef(condVar = TRUE)``, ``brms::ranef``.

        Examples
        --------
        >>> import bayeslmm as blm
        >>> reml = blm.LMM("Yield ~ 1 + (1 | Batch)", blm.load_dataset("Dyestuff")).reml()
        >>> reml.ranef()["Batch"].shape
        (6, 1)
        >>> reml.ranef(interval=True)["Batch"].loc[("A", "Intercept")].round(1).tolist()
        [-17.6, 24.8, -66.2, 30.9]
        """
        require_random(self.design, NO_EFFECTS)
        if self._wants_intervals(interval, prob, level):
            return self._level_tables(prob, level, with_fixed=False)
        return effects.effect_frames(self.design, self._u)

    @staticmethod
    def _wants_intervals(interval: bool, prob: float | None, level: float | None) -> bool:
        return interval or prob is not None or level is not None

    def _level_tables(
        self, prob: float | None, level: float | None, *, with_fixed: bool
    ) -> dict[str, pd.DataFrame]:
        """Random effects or coefficients with intervals, a row per level and coefficient."""
        raise NotImplementedError

    def ranef_sd(self, *args: Any, **options: Any) -> dict[str, pd.DataFrame]:
        """Standard deviations of the random effects: posterior ones, or of an estimate.

        Parameters
        ----------
        given_beta : bool
            Of an estimate, whose standard deviations are those at the estimated covariance
            parameters: take the fixed effects as known too, as lme4's ``ranef(condVar = TRUE)``
            does. By default their uncertainty counts (the standard error of prediction).

        Returns
        -------
        dict of str to pandas.DataFrame
            Levels by coefficients, per grouping factor.

        Examples
        --------
        >>> import bayeslmm as blm
        >>> reml = blm.LMM("Yield ~ 1 + (1 | Batch)", blm.load_dataset("Dyestuff")).reml()
        >>> [float(reml.ranef_sd(given_beta=x)["Batch"].iloc[0, 0].round(1)) for x in (False, True)]
        [24.8, 19.6]
        """
        raise NotImplementedError

    def coef(
        self,
        *,
        interval: bool = False,
        prob: float | None = None,
        level: float | None = None,
    ) -> dict[str, pd.DataFrame]:
        """Fixed plus random effects: levels by coefficients, per grouping factor.

        Parameters
        ----------
        interval, prob, level
            As in :meth:`ranef`. Standard errors of an estimate are those of the sum, given the
            covariance parameters: beta, u and their covariance count.

        Returns
        -------
        dict of str to pandas.DataFrame
            As of :meth:`ranef`, with every fixed effect among the coefficients.

        Raises
        ------
        DataError
            As :meth:`ranef`; and with intervals, of a MAP estimate whose fixed effects have other
            than normal priors.
        ValueError
            As :meth:`ranef`.

        References
        ----------
        R's ``lme4::coef``, ``brms::coef``; Henderson (1975), doi:10.2307/2529430.

        Examples
        --------
        >>> import bayeslmm as blm
        >>> sleep = blm.load_dataset("sleepstudy")
        >>> reml = blm.LMM("Reaction ~ Days + (Days | Subject)", sleep).reml()
        >>> reml.coef(level=0.9)["Subject"].loc[("308", "Days")].round(1).tolist()
        [19.7, 2.3, 15.8, 23.5]
        """
        require_random(self.design, NO_EFFECTS)
        if self._wants_intervals(interval, prob, level):
            return self._level_tables(prob, level, with_fixed=True)
        return effects.coefficient_frames(self.design, self._beta, self._u)

    def G(self, *, sparse: bool = False) -> pd.DataFrame | sp.csr_array:
        """Covariance matrix of all random effects, labelled by group, level and term.

        Of a posterior its mean over the draws, as those of R and V.

        Parameters
        ----------
        sparse : bool
            Give a sparse matrix without labels, whatever its size.

        Returns
        -------
        pandas.DataFrame or scipy.sparse.csr_array (q, q)

        Examples
        --------
        >>> import bayeslmm as blm
        >>> reml = blm.LMM("Yield ~ 1 + (1 | Batch)", blm.load_dataset("Dyestuff")).reml()
        >>> reml.G().shape
        (6, 6)
        """
        return parameters.random_covariance(self.design, self._covariances, sparse=sparse)

    def R(self, *, sparse: bool = False) -> pd.DataFrame | sp.csr_array:
        """Covariance matrix (n, n) of the residuals; option and result as of :meth:`G`."""
        return parameters.labelled_matrix(self._residual, self.design.index, "R", sparse)

    def V(self, *, sparse: bool = False) -> pd.DataFrame | sp.csr_array:
        """Marginal covariance matrix (n, n) of the response, ZGZ' + R; as of :meth:`G`."""
        matrix = parameters.response_covariance(self.design, self._covariances, self._residual)
        return parameters.labelled_matrix(matrix, self.design.index, "V", sparse)

    def tidy(self, *args: Any, **options: Any) -> pd.DataFrame:
        """Tidy table with broom.mixed's columns.

        Parameters
        ----------
        effects : {"fixed", "ran_pars", "ran_vals", "ran_coefs"} or sequence of them
            Which parts.
        level : float
            Of an estimate: coverage of the intervals.
        prob : float, optional
            Of a posterior: probability of the intervals.
        df : str, optional
            Of an estimate: as in :meth:`bayeslmm.Estimate.with_df`.

        Returns
        -------
        pandas.DataFrame
            Columns effect, group, level, term, estimate, std_error, conf_low, conf_high (of a
            posterior mean, sd and interval) and, of an estimate, df, statistic, p_value where fixed
            effects are asked for.

        Examples
        --------
        >>> import bayeslmm as blm
        >>> reml = blm.LMM("Yield ~ 1 + (1 | Batch)", blm.load_dataset("Dyestuff")).reml()
        >>> reml.tidy("ran_pars")["term"].tolist()
        ['sd__Intercept', 'sd__Observation']
        """
        raise NotImplementedError

    # --- variance explained -----------------------------------------------------------

    def icc(self, *args: Any, **options: Any) -> pd.DataFrame:
        """Intraclass correlation: share of each grouping factor in the variance given beta.

        Parameters
        ----------
        level : float
            Of an estimate: coverage of the intervals.
        prob : float, optional
            Of a posterior: probability of the intervals.
        at : data frame or mapping, optional
            Rows of the covariates that the random effects depend on, such as
            ``{"Days": [0, 5, 9]}``; other variables need not be there. Without it the variances
            are means over the rows of the data.
        uncertainty : {"laplace", "bootstrap"}, optional
            Of an estimate: add a standard error and an interval from draws around it, of the
            asymptotic normal distribution of log standard deviations and correlations, or of a
            parametric bootstrap, which also serves singular estimates.
        draws : int
            Of an estimate: number of draws or refits.
        random_seed : int or numpy.random.Generator, optional
            Of an estimate: seed.

        Returns
        -------
        pandas.DataFrame
            One row per grouping factor; where residual standard deviations are by stratum or by
            occasion, for each of them (means over its rows); with `at` per row of `at`. Of a
            posterior mean, sd, median and interval, computed on draws and summarised last; of an
            estimate column estimate and, with `uncertainty`, std_error, conf_low, conf_high.

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
        It is the correlation of two observations, with the same covariates, of one level of this
        factor and of different levels of every other; observations that share levels of several
        factors have the sum of theirs, as do two of one cask in ``(1 | batch/cask)``. With
        precision weights the residual variance is the mean of sigma^2 / weight over the rows;
        with `at`, sigma^2, or sigma^2 / weight if `at` has the column of the weights.

        Of an estimate, their sum is ``performance::icc``'s adjusted ICC; the unadjusted one is the
        difference of the two rows of :meth:`r2`. Where performance returns NA because the fit is
        singular, the values at the estimate are given all the same.

        References
        ----------
        Johnson (2014), doi:10.1111/2041-210X.12225, for the mean over the rows; Goldstein,
        Browne, Rasbash (2002), doi:10.1207/S15328031US0104_02, for `at`.

        Examples
        --------
        >>> import bayeslmm as blm
        >>> model = blm.LMM("Reaction ~ Days + (Days | Subject)", blm.load_dataset("sleepstudy"))
        >>> model.reml().icc(at={"Days": [0, 5, 9]})["estimate"].round(3).to_list()
        [0.483, 0.708, 0.847]
        >>> post = model.fit(method="laplace", draws=200, random_seed=1)
        >>> post.icc(at={"Days": [0, 9]}).index.to_list()
        [('Subject', 0), ('Subject', 9)]
        """
        raise NotImplementedError

    def r2(self, *args: Any, **options: Any) -> pd.DataFrame:
        """Marginal and conditional R2.

        Parameters
        ----------
        method : {"nakagawa", "gelman"}
            The marginal one is the share of the fixed effects, ``var(X beta)``, in the variance
            of the response. The conditional one adds the random effects: under "nakagawa" their
            variance in the population of levels, ``mean(z' Sigma z)``; under "gelman" their
            values at the levels in the data, ``var(X beta + Zu)``.
        level : float
            Of an estimate: coverage of the intervals.
        prob : float, optional
            Of a posterior: probability of the intervals.
        uncertainty, draws, random_seed
            Of an estimate: as in :meth:`icc`.

        Returns
        -------
        pandas.DataFrame
            Rows marginal and conditional; columns as in :meth:`icc`.

        Raises
        ------
        ValueError
            If the method is unknown, or another option is not among those allowed.
        DataError
            If "gelman" would need more draws of random effects than memory should hold.
        SamplingError
            If the criterion is flat in some direction and `uncertainty` is "laplace".

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

        Of an estimate, "nakagawa" is ``performance::r2_nakagawa``, except that precision weights
        count (that has sigma^2 for the residual variance), that random slopes without a fixed
        counterpart and all terms of ``(x || g)`` count, and that singular fits have values. Under
        "gelman", u are the conditional modes, which vary less than the random effects do: the
        estimate tends to lie below its draws.

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
        raise NotImplementedError

    def variance_partition(self, *args: Any, **options: Any) -> pd.DataFrame:
        """Variance of the response by source: fixed effects, random effects, residual.

        Parameters
        ----------
        level : float
            Of an estimate: coverage of the intervals.
        prob : float, optional
            Of a posterior: probability of the intervals.
        uncertainty, draws, random_seed
            Of an estimate: as in :meth:`icc`.

        Returns
        -------
        pandas.DataFrame
            Columns component ("fixed", "random" or "residual"), group and term. Of an estimate
            variance and share, and with `uncertainty` std_error, conf_low and conf_high of both; of
            a posterior mean, sd and interval of both. The shares add up to one, on every draw of a
            posterior and so in the mean.

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
        raise NotImplementedError

    # --- papers ------------------------------------------------------------------------

    def to_html(self, **options: Any) -> Markup:
        """Table of the fit in HTML: see :func:`bayeslmm.model_table`.

        Parameters
        ----------
        **options
            Of :func:`bayeslmm.model_table`, but `format`.

        Returns
        -------
        Markup
            A string that notebooks show as a table.

        Examples
        --------
        >>> import bayeslmm as blm
        >>> reml = blm.LMM("Yield ~ 1 + (1 | Batch)", blm.load_dataset("Dyestuff")).reml()
        >>> print(reml.to_markdown().splitlines()[5])
        | Intercept | 1527.5 [1477.7, 1577.3] |
        """
        from bayeslmm.report.model_table import table_text

        return table_text(self, format="html", **options)

    def to_latex(self, **options: Any) -> Markup:
        """Table of the fit in LaTeX, for the package booktabs; see :meth:`to_html`."""
        from bayeslmm.report.model_table import table_text

        return table_text(self, format="latex", **options)

    def to_markdown(self, **options: Any) -> Markup:
        """Table of the fit in Markdown; see :meth:`to_html`."""
        from bayeslmm.report.model_table import table_text

        return table_text(self, format="markdown", **options)

    def glance(self) -> pd.DataFrame:
        """One row about the fit, as broom.mixed's ``glance``.

        Returns
        -------
        pandas.DataFrame
            Columns method, nobs, rows_dropped and sigma (of a posterior its mean; NaN where it has
            predictors).

            Of an estimate then loglik, aic, bic, criterion (REML criterion, or -2 log likelihood),
            n_parameters, df_residual (nobs less n_parameters), singular and converged. Of a
            posterior log_evidence and its Monte Carlo error (NaN where there is none), chains,
            draws (of all chains together), max_rhat, min_ess_bulk, min_ess_tail, pareto_k (of the
            approximation, or of the sampler's proposals), divergences (NaN where the method has
            none) and ok (whether all checks passed).

            Last ``ngrps_`` and the name of each grouping factor: its number of levels.

        References
        ----------
        R's ``broom.mixed::glance.merMod``.

        Examples
        --------
        >>> import bayeslmm as blm
        >>> sleep = blm.load_dataset("sleepstudy")
        >>> model = blm.LMM("Reaction ~ Days + (Days | Subject)", sleep)
        >>> row = model.reml().glance().iloc[0]
        >>> int(row["nobs"]), int(row["df_residual"]), int(row["ngrps_Subject"])
        (180, 174, 18)
        >>> row = model.fit(random_seed=1).glance().iloc[0]
        >>> row["method"], int(row["nobs"]), int(row["draws"]), int(row["ngrps_Subject"])
        ('collapsed', 180, 4000, 18)
        """
        raise NotImplementedError

    def methods_paragraph(self, *args: Any, **options: Any) -> str:
        """Describe model and estimation or sampling in prose, for the methods section of a paper.

        Parameters
        ----------
        references : bool
            Whether the literature to cite follows.
        findings : Findings, optional
            Of a posterior: what :meth:`Posterior.findings` found, to be said too; without it, of
            the checks only those of convergence are told of.

        Returns
        -------
        str
            Formula, fixed and random effects, rows and columns dropped; of a posterior and of a MAP
            estimate the priors with their values and whether they are defaults; how parameters were
            estimated, a singular fit or failed convergence, or the engine (and why another one was
            fallen back to), draws and chains and what the convergence checks found; versions of the
            software.

        Examples
        --------
        >>> import bayeslmm as blm
        >>> model = blm.LMM("Yield ~ 1 + (1 | Batch)", blm.load_dataset("Dyestuff"))
        >>> print(model.reml().methods_paragraph())
        A linear mixed model of Yield was fitted to 30 observations ...
        >>> text = model.fit(random_seed=1).methods_paragraph()
        >>> "sd[Batch, Intercept] ~ HalfStudentT(3, 63)" in text
        True
        """
        raise NotImplementedError

    # --- copies and prints ------------------------------------------------------------

    def __getstate__(self) -> dict[str, Any]:
        return field_values(self)

    def _repr_html_(self) -> str:
        heading = repr(self).split(f"\n{covariance_heading(self.design)}")[0]
        return html_page(heading, self.summary(), self.notes)

    # --- plans ------------------------------------------------------------------------

    @property
    def _truth(self) -> Truth:
        """What a planned study takes to be true."""
        raise NotImplementedError

    @property
    def _tests_by(self) -> DfMethod:
        """Degrees of freedom by which a planned study is tested."""
        return "satterthwaite"

    def study(self, effects: Mapping[str, float] | None = None) -> Study:
        """A study with the rows of this one, a pilot, and what it found as the truth.

        The truth is the estimate or, of a posterior, another draw for each data set: power is then
        the average over them, the assurance of a test.

        Parameters
        ----------
        effects : mapping of str to float, optional
            True fixed effects in place of the estimated ones, by the labels of coefficients.

        Returns
        -------
        Study
            With power, power curves, sample sizes and assurance.

        Raises
        ------
        PriorError
            If there is no such coefficient.
        DataError
            If the model keeps no rows.

        Notes
        -----
        The power of the estimated effect itself says no more than its p-value: put in the smallest
        effect that matters.

        References
        ----------
        ``simr``, ``fixef(fit)["x"] <- 0.5``.

        Examples
        --------
        >>> import bayeslmm as blm
        >>> reml = blm.LMM("Yield ~ 1 + (1 | Batch)", blm.load_dataset("Dyestuff")).reml()
        >>> reml.study({"Intercept": 1500}).truth["value"].round(1).tolist()
        [1500.0, 42.0, 49.5]
        """
        from bayeslmm.fits.study import Study
        from bayeslmm.planning.studies import Planned

        found = Study(Planned(self.design, self._truth, self._tests_by))
        return found.with_effects(effects) if effects else found
