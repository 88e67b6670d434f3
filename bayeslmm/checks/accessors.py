"""``fit.check``: the checks of an estimate and of a posterior."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, overload, override

import numpy as np
import pandas as pd

from bayeslmm.summaries import EstimateLike, FitLike, PosteriorLike, verbs

if TYPE_CHECKING:
    from bayeslmm.checks.influence import GroupInfluence, PosteriorInfluence, RowInfluence
    from bayeslmm.checks.residual_checks import ResidualChecks
    from bayeslmm.checks.row_extremes import RowExtremes
    from bayeslmm.checks.sensitivity import Contraction, Sensitivity
    from bayeslmm.checks.singularity import EstimateSingularity, PosteriorSingularity
    from bayeslmm.data.row_tables import Out
    from bayeslmm.estimation.executor import Executor
    from bayeslmm.prediction.checks import Statistic
    from bayeslmm.prediction.rows import Target

Seed = int | np.random.Generator | None


@dataclass(frozen=True, eq=False, repr=False)
class Checks:
    """Checks that an estimate and a posterior both have."""

    _fit: FitLike

    def __repr__(self) -> str:
        return f"fit.check: {verbs(self)}"

    def influence(
        self, by: str | None = None, *, progressbar: bool = True
    ) -> RowInfluence | RowExtremes | GroupInfluence | PosteriorInfluence:
        """How much rows, or levels of a grouping variable, move the fit.

        A posterior is reweighted, without refits. For an estimate rows are left out in closed form
        at the estimated covariance parameters, and the model is refitted without each level.

        Parameters
        ----------
        by : str, optional
            A grouping factor of the model or a variable of its formula; single rows by default.
        executor : concurrent.futures.Executor or the like, optional
            Of an estimate: where the refits run, as in :meth:`bayeslmm.LMM.check_calibration`.
        progressbar : bool
            Whether to show one.

        Returns
        -------
        RowInfluence or GroupInfluence
            Of an estimate. Its `table` has leverage, residuals and Cook's distance of each row; or
            Cook's distance, ratio of covariance determinants, largest dfbetas and largest change
            of a standard deviation for each level, with `dfbetas`, `estimates`, `change` and
            `relative_change` by parameter.
        RowExtremes
            Of an estimate from more than about a million rows beyond memory: the hundred rows with
            the largest leverage, residual or Cook's distance.
        PosteriorInfluence
            Of a posterior. `table` with the largest shift of a posterior mean, the Kullback-Leibler
            divergence and the reliability of the weights; `shift` by parameter, in posterior
            standard deviations.

        Raises
        ------
        DataError
            If there is no such variable; of a posterior for rows beyond memory that are more than
            about a million; of an estimate also if it has one level, or a refit would
            have one level of a grouping factor left.
        ValueError
            For levels, if the estimate is a "MAP" one.

        References
        ----------
        Estimates: lme4's ``hatvalues``, ``rstudent`` and ``cooks.distance`` for rows; Nieuwenhuis,
        te Grotenhuis, Pelzer (2012), doi:10.32614/RJ-2012-011 (influence.ME), for levels.
        Posteriors: Bradlow, Zaslavsky (1997), doi:10.1080/10618600.1997.10474746. Vehtari, Simpson,
        Gelman, Yao, Gabry (2024), arXiv:1507.02646.

        Examples
        --------
        >>> import bayeslmm as blm
        >>> sleep = blm.load_dataset("sleepstudy")
        >>> model = blm.LMM("Reaction ~ Days + (Days | Subject)", sleep)
        >>> found = model.reml().check.influence("Subject", progressbar=False)
        >>> found.table["cooks_distance"].idxmax()
        '309'
        >>> found = model.fit(random_seed=1).check.influence("Subject", progressbar=False)
        >>> found.table["kl"].idxmax()
        '332'
        """
        raise NotImplementedError

    def residuals(self, draws: int = 200, *, random_seed: Seed = None) -> ResidualChecks:
        """Check residuals and random effects against the distributions the model gives them.

        Parameters
        ----------
        draws : int
            Number of responses simulated at the estimated covariance parameters; of a posterior, at
            most this many of its draws, equally spaced, each with a simulated response.
        random_seed : int or numpy.random.Generator, optional
            Seed.

        Returns
        -------
        ResidualChecks
            `table` of checks with p-values (of a posterior, posterior predictive ones), `largest`
            deviations by name, `residuals` of every kind by row (of a posterior, means over draws).

        Notes
        -----
        Statistics of residuals and of random effects are compared with those of simulated
        responses, with fixed and random effects integrated out. For an estimate p-values are exact
        but for the covariance parameters being estimated; the row of the largest residual gets a
        mean of its own in a REML refit, whatever the estimate, and its t test has Satterthwaite's
        degrees of freedom and Bonferroni's factor. For a posterior the largest residual is judged
        by the leave-one-out predictive distribution of its row, times the number of rows
        (Bonferroni).

        More rows beyond memory than about a million are read twice: responses are simulated and
        summed, then simulated again and compared. Statistics of residuals then come from counts in
        bins, of the data and of simulated responses alike; these are fewer, down to 20, the more
        rows there are.

        References
        ----------
        Besag, Clifford (1989), doi:10.1093/biomet/76.4.633, for p-values by simulation. Haslett,
        Hayes (1998), doi:10.1111/1467-9868.00120, for residuals of correlated responses. lme4's
        ``residuals(scaled = TRUE)`` and ``rstudent`` for the columns pearson and standardised.
        Gelman, Meng, Stern (1996), Posterior predictive assessment of model fitness via realized
        discrepancies, Statistica Sinica 6, 733-760. Marshall, Spiegelhalter (2007),
        doi:10.1214/07-BA218, for predictions without the case.

        Examples
        --------
        >>> import bayeslmm as blm
        >>> sleep = blm.load_dataset("sleepstudy")
        >>> model = blm.LMM("Reaction ~ Days + (Days | Subject)", sleep)
        >>> checks = model.reml().check.residuals(random_seed=1)
        >>> bool(checks.table.loc["normality of residuals", "p_value"] < 0.05)
        True
        >>> checks = model.fit(random_seed=1).check.residuals(random_seed=1)
        >>> checks.largest.loc["largest residual", "case"]
        'row 56 (Subject 332)'
        """
        raise NotImplementedError

    def singularity(self, *args: Any, **options: Any) -> EstimateSingularity | PosteriorSingularity:
        """Which covariance matrices of random effects are at, or near, a loss of rank, in words.

        Parameters
        ----------
        eps : float
            Of a posterior: a random-effect standard deviation, times the standard deviation of its
            covariate, is called negligible below this share of the residual standard deviation.
        rho : float
            Of a posterior: a correlation beyond this in size is called extreme.
        standardise : bool
            Take principal components of the coefficients times the standard deviation of their
            covariate, so that its units do not matter. Without it they are those of lme4.
        prob : float, optional
            Of a posterior: probability of the intervals; ArviZ's rcParams by default.

        Returns
        -------
        EstimateSingularity
            Of an estimate. Tables `table` (which parameters are at a boundary) and `pca`; prints
            with what they mean in words.
        PosteriorSingularity
            Of a posterior. Tables `table`, `pca` and `rank`, printed likewise.

        Notes
        -----
        Whether the boundary (a standard deviation of zero, a correlation of plus or minus one) is
        compatible with the data is judged for a posterior by the integrated likelihood of that
        parameter, all others integrated out over their posterior: its value at the boundary over
        its maximum within the range of the posterior. It does not depend on the parameter's own
        prior nor on whether one looks at standard deviations or variances, as the posterior density
        would. Above 0.15, the 95 % limit of a likelihood ratio, the boundary is called compatible.
        The same integral gives the Savage-Dickey Bayes factor where the prior is proper.
        Correlations within three or more coefficients have bounds that depend on each other; there
        the principal components tell instead.

        References
        ----------
        lme4's ``isSingular`` and, with ``standardise=False``, ``rePCA``. Dickey (1971),
        doi:10.1214/aoms/1177693507. Bates, Kliegl, Vasishth, Baayen (2015), arXiv:1506.04967, for
        principal components. Roy, Vetterli (2007), EUSIPCO, 606-610, for the effective rank.

        Examples
        --------
        >>> import bayeslmm as blm
        >>> model = blm.LMM("Yield ~ 1 + (1 | Batch)", blm.load_dataset("Dyestuff2"))
        >>> model.reml().check.singularity().table["at_boundary"].tolist()
        [True]
        >>> found = model.fit(random_seed=1).check.singularity()
        >>> found.reml_singular, bool(found.table["support"].iloc[0] > 0.15)
        (True, True)
        """
        raise NotImplementedError


@dataclass(frozen=True, eq=False, repr=False)
class EstimateChecks(Checks):
    """Checks of an estimate: influence, residuals, singularity."""

    _fit: EstimateLike

    @override
    def influence(
        self,
        by: str | None = None,
        *,
        executor: Executor | None = None,
        progressbar: bool = True,
    ) -> RowInfluence | RowExtremes | GroupInfluence:
        from bayeslmm.checks.row_extremes import influence

        return influence(
            self._fit.design, self._fit.fit, by, executor=executor, progressbar=progressbar
        )

    @override
    def residuals(self, draws: int = 200, *, random_seed: Seed = None) -> ResidualChecks:
        from bayeslmm.checks.residuals_again import residual_checks_of_estimate

        return residual_checks_of_estimate(self._fit.design, self._fit.fit, draws, random_seed)

    @override
    def singularity(self, *, standardise: bool = True) -> EstimateSingularity:
        from bayeslmm.checks.singularity import estimate_singularity

        return estimate_singularity(self._fit.design, self._fit.fit, standardise=standardise)


@dataclass(frozen=True, eq=False, repr=False)
class PosteriorChecks(Checks):
    """Checks of a posterior.

    Those of an estimate (influence, residuals, singularity), sensitivity to the priors,
    contraction, predictive checks and the leave-one-out probability integral transform. Convergence
    is in ``post.diagnostics``, cross-validation in ``post.loo()``, and ``post.findings()`` runs the
    checks and says what each found.
    """

    _fit: PosteriorLike

    @override
    def influence(self, by: str | None = None, *, progressbar: bool = True) -> PosteriorInfluence:
        from bayeslmm.checks.influence import posterior_influence

        return posterior_influence(self._fit.model, self._fit._joint, by, progressbar=progressbar)

    @override
    def residuals(self, draws: int = 200, *, random_seed: Seed = None) -> ResidualChecks:
        from bayeslmm.checks.residuals_again import residual_checks_of_posterior

        return residual_checks_of_posterior(self._fit.model, self._fit._joint, draws, random_seed)

    @override
    def singularity(
        self,
        eps: float = 0.05,
        rho: float = 0.95,
        *,
        standardise: bool = True,
        prob: float | None = None,
    ) -> PosteriorSingularity:
        from bayeslmm.checks.singularity import posterior_singularity

        return posterior_singularity(
            self._fit.model, self._fit._joint, eps=eps, rho=rho, standardise=standardise, prob=prob
        )

    def sensitivity(self, threshold: float = 0.05) -> Sensitivity:
        """How much the posterior depends on priors and data: power-scaling sensitivity.

        Parameters
        ----------
        threshold : float
            Sensitivity from which a parameter counts as sensitive.

        Returns
        -------
        Sensitivity
            `table` with the sensitivity to all priors, to the data and a diagnosis; `by_prior` with
            that to the priors of one kind; prints with advice.

        Raises
        ------
        PriorError
            If every prior is flat.

        Notes
        -----
        The likelihood that is raised to a power is p(y | beta, covariance parameters), with the
        random effects integrated out, and the prior is that of these parameters alone. The
        distribution of the random effects is part of the model of the data. With the likelihood
        given the random effects, it would belong to neither part: a stronger likelihood would be
        traded against a random-effects distribution that stays as it is, and the standard
        deviations, which act through that distribution only, would look insensitive to the data.

        References
        ----------
        Kallioinen, Paananen, Bürkner, Vehtari (2024), doi:10.1007/s11222-023-10366-5, computed by
        ArviZ's ``psense``.

        Examples
        --------
        >>> import bayeslmm as blm
        >>> model = blm.LMM("Yield ~ 1 + (1 | Batch)", blm.load_dataset("Dyestuff"))
        >>> list(model.fit(random_seed=1).check.sensitivity().table.columns)
        ['prior', 'likelihood', 'diagnosis']
        """
        from bayeslmm.checks.sensitivity import power_scaling

        return power_scaling(self._fit.model, self._fit._joint, threshold)

    def contraction(self, draws: int = 20_000, *, random_seed: Seed = None) -> Contraction:
        """Prior against posterior: how much the data have added, parameter by parameter.

        Parameters
        ----------
        draws : int
            Number of draws from the prior.
        random_seed : int or numpy.random.Generator, optional
            Seed.

        Returns
        -------
        Contraction
            `table` with scales, contraction, overlap, z-score and prior quantile; prints with
            advice.

        Raises
        ------
        PriorError
            If a prior is flat.

        Notes
        -----
        Scales are interquartile ranges over 1.349, the standard deviation of a normal
        distribution with that range: priors on standard deviations have heavy tails, whose variance
        is infinite or, estimated from draws, unstable. Fixed effects are compared as reported, the
        intercept at zero of the covariates.

        References
        ----------
        Schad, Betancourt, Vasishth (2021), doi:10.1037/met0000275, for contraction. Inman, Bradley
        (1989), doi:10.1080/03610928908830127, for the overlap.

        Examples
        --------
        >>> import bayeslmm as blm
        >>> model = blm.LMM("Yield ~ 1 + (1 | Batch)", blm.load_dataset("Dyestuff"))
        >>> table = model.fit(random_seed=1).check.contraction(random_seed=2).table
        >>> bool((table["contraction"] > 0.5).all())
        True
        """
        from bayeslmm.checks.sensitivity import prior_contraction

        fit = self._fit
        return prior_contraction(fit.design, fit.priors, fit._joint, draws, random_seed)

    def predictive(
        self,
        statistic: str | Statistic | Sequence[str | Statistic] = "mean",
        *,
        by: Any = None,
        target: Target = "conditional",
        prob: float | None = None,
        random_seed: Seed = None,
    ) -> pd.DataFrame:
        """Compare a statistic of the data with its posterior predictive distribution.

        Parameters
        ----------
        statistic : {"mean", "sd", "min", "max", "median"}, callable or sequence of them
            A statistic, or a function of a vector of responses; several are of the same simulated
            responses.
        by : str or array-like, optional
            Grouping factor or variable of the formula by whose levels it is computed, or one value
            per row of the data (a covariate that the model lacks); over all rows by default.
        target : {"conditional", "population", "average"}
            As in :meth:`bayeslmm.Posterior.with_posterior_predictive`.
        prob : float, optional
            Probability of the intervals; ArviZ's rcParams by default.
        random_seed : int or numpy.random.Generator, optional
            Seed.

        Returns
        -------
        pandas.DataFrame
            One row per statistic, or one per level of each: n, observed, mean, sd, median and
            interval of the replicates, p_value (probability that a replicate is larger; near 0 or 1
            is a misfit).

        Raises
        ------
        DataError
            If `by` is no variable of the model, or has not one value per row.
        ValueError
            If the statistic or the target is unknown.

        References
        ----------
        Gelman, Meng, Stern (1996), Statistica Sinica 6, 733-760.

        Examples
        --------
        >>> import bayeslmm as blm
        >>> model = blm.LMM("Yield ~ 1 + (1 | Batch)", blm.load_dataset("Dyestuff"))
        >>> post = model.fit(random_seed=1)
        >>> post.check.predictive("max", by="Batch", random_seed=2).shape[0]
        6
        """
        from bayeslmm.prediction.checks import predictive_check

        return predictive_check(
            self._fit.design, self._fit._joint, statistic, by, target, prob, random_seed
        )

    @overload
    def loo_pit(
        self, *, draws: int | None = None, progressbar: bool = True, out: None = None
    ) -> pd.Series: ...

    @overload
    def loo_pit(self, *, draws: int | None = None, progressbar: bool = True, out: Out) -> None: ...

    def loo_pit(
        self, *, draws: int | None = None, progressbar: bool = True, out: Out | None = None
    ) -> pd.Series | None:
        """Probability integral transform of each row by its leave-one-out predictive distribution.

        Uniform on (0, 1) where the model predicts well: near 0 or 1 too often means too narrow
        predictions, near 1/2 too often too wide ones.

        Parameters
        ----------
        draws : int, optional
            Use at most so many draws.
        progressbar : bool
            Whether to show one, on a terminal.
        out : str or path, optional
            A Parquet file to write them to, as in :meth:`bayeslmm.Posterior.fitted`.

        Returns
        -------
        pandas.Series
            One value per row.

        References
        ----------
        Gelfand, Dey, Chang (1992), Bayesian Statistics 4.

        Examples
        --------
        >>> import bayeslmm as blm
        >>> model = blm.LMM("Yield ~ 1 + (1 | Batch)", blm.load_dataset("Dyestuff"))
        >>> pit = model.fit(random_seed=1).check.loo_pit()
        >>> bool(pit.between(0, 1).all())
        True
        """
        from bayeslmm.checks.streamed_loo import loo_pit

        fit = self._fit
        return loo_pit(fit.model, fit.data, fit._joint, draws, out, progressbar=progressbar)
