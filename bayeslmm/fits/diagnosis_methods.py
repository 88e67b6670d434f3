"""Diagnostics in words: methods of posteriors and estimates."""

from __future__ import annotations

from typing import TYPE_CHECKING

from bayeslmm.fits.estimate_base import EstimateBase
from bayeslmm.fits.posterior_base import PosteriorBase

if TYPE_CHECKING:
    import numpy as np

    from bayeslmm.checks.influence import GroupInfluence, RowInfluence
    from bayeslmm.checks.posterior_influence import PosteriorInfluence
    from bayeslmm.checks.residual_checks import ResidualChecks
    from bayeslmm.checks.sensitivity import Contraction, Sensitivity
    from bayeslmm.checks.singularity import EstimateSingularity, PosteriorSingularity


class EstimateDiagnosis(EstimateBase):
    """Singularity, influence and residual checks of an estimate."""

    def singularity(self, *, standardise: bool = True) -> EstimateSingularity:
        """Which covariance parameters are at a boundary, and principal components.

        Parameters
        ----------
        standardise : bool
            Take principal components of the coefficients times the standard deviation of their
            covariate, so that its units do not matter. Without it they are those of lme4.

        Returns
        -------
        EstimateSingularity
            Tables `table` and `pca`; prints with what they mean in words.

        References
        ----------
        lme4's ``isSingular`` and, with ``standardise=False``, ``rePCA``.

        Examples
        --------
        >>> import bayeslmm as blm
        >>> reml = blm.LMM("Yield ~ 1 + (1 | Batch)", blm.load_dataset("Dyestuff2")).reml()
        >>> reml.singularity().table["at_boundary"].tolist()
        [True]
        """
        from bayeslmm.checks.singularity import estimate_singularity

        return estimate_singularity(self.design, self.fit, standardise=standardise)

    def influence(
        self, by: str | None = None, *, progressbar: bool = True
    ) -> RowInfluence | GroupInfluence:
        """How much rows, or levels of a grouping variable, move the estimate.

        Parameters
        ----------
        by : str, optional
            A grouping factor of the model or a variable of its formula: the model is refitted
            without each level. By default single rows, in closed form at the estimated covariance
            parameters.
        progressbar : bool
            Whether to show one for the refits.

        Returns
        -------
        RowInfluence or GroupInfluence
            Its `table` has leverage, residuals and Cook's distance of each row; or Cook's
            distance, ratio of covariance determinants, largest dfbetas and largest change of a
            standard deviation for each level, with `dfbetas`, `estimates`, `change` and
            `relative_change` by parameter.

        Raises
        ------
        DataError
            If there is no such variable, it has one level, or a refit would have one level of a
            grouping factor left.
        ValueError
            For levels, if the estimate is a "MAP" one.

        References
        ----------
        lme4's ``hatvalues``, ``rstudent`` and ``cooks.distance`` for rows; Nieuwenhuis, te
        Grotenhuis, Pelzer (2012), doi:10.32614/RJ-2012-011 (influence.ME), for levels.

        Examples
        --------
        >>> import bayeslmm as blm
        >>> sleep = blm.load_dataset("sleepstudy")
        >>> reml = blm.LMM("Reaction ~ Days + (Days | Subject)", sleep).reml()
        >>> reml.influence("Subject", progressbar=False).table["cooks_distance"].idxmax()
        '309'
        """
        from bayeslmm.checks.influence import group_influence, row_influence

        if by is not None:
            return group_influence(self.design, self.fit, by, progressbar=progressbar)
        return row_influence(self.design, self.fit)

    def residual_checks(
        self, draws: int = 200, *, random_seed: int | np.random.Generator | None = None
    ) -> ResidualChecks:
        """Check residuals and random effects against the distributions the model gives them.

        Parameters
        ----------
        draws : int
            Number of responses simulated at the estimated covariance parameters.
        random_seed : int or numpy.random.Generator, optional
            Seed.

        Returns
        -------
        ResidualChecks
            `table` of checks with p-values, `largest` deviations by name, `residuals` of every
            kind by row.

        Notes
        -----
        Statistics of residuals and of random effects are compared with those of simulated
        responses: p-values are exact but for the covariance parameters being estimated. The row
        of the largest residual gets a mean of its own in a REML refit, whatever the estimate; its
        t test has Satterthwaite's degrees of freedom and Bonferroni's factor.

        References
        ----------
        Besag, Clifford (1989), doi:10.1093/biomet/76.4.633, for p-values by simulation. Haslett,
        Hayes (1998), doi:10.1111/1467-9868.00120, for residuals of correlated responses. lme4's
        ``residuals(scaled = TRUE)`` and ``rstudent`` for the columns pearson and standardised.

        Examples
        --------
        >>> import bayeslmm as blm
        >>> sleep = blm.load_dataset("sleepstudy")
        >>> reml = blm.LMM("Reaction ~ Days + (Days | Subject)", sleep).reml()
        >>> checks = reml.residual_checks(random_seed=1)
        >>> bool(checks.table.loc["normality of residuals", "p_value"] < 0.05)
        True
        """
        from bayeslmm.checks.residual_checks import check_estimate

        return check_estimate(self.design, self.fit, draws, random_seed)


class PosteriorDiagnosis(PosteriorBase):
    """Singularity, prior sensitivity, influence and residual checks of a posterior."""

    def singularity(
        self,
        eps: float = 0.05,
        rho: float = 0.95,
        *,
        standardise: bool = True,
        prob: float | None = None,
    ) -> PosteriorSingularity:
        """How near the random effects' covariance matrices are to losing rank, in words.

        Parameters
        ----------
        eps : float
            A random-effect standard deviation, times the standard deviation of its covariate, is
            called negligible below this share of the residual standard deviation.
        rho : float
            A correlation beyond this in size is called extreme.
        standardise : bool
            Take principal components of the coefficients times the standard deviation of their
            covariate, so that its units do not matter. Without it they are those of lme4.
        prob : float, optional
            Probability of the intervals; ArviZ's rcParams by default.

        Returns
        -------
        PosteriorSingularity
            Tables `table`, `pca` and `rank`; prints with what they mean in words.

        Notes
        -----
        Whether the boundary (a standard deviation of zero, a correlation of plus or minus one) is
        compatible with the data is judged by the integrated likelihood of that parameter, all
        others integrated out over their posterior: its value at the boundary over its maximum
        within the range of the posterior. It does not depend on the parameter's own prior nor on
        whether one looks at standard deviations or variances, as the posterior density would.
        Above 0.15, the 95 % limit of a likelihood ratio, the boundary is called compatible. The
        same integral gives the Savage-Dickey Bayes factor where the prior is proper. Correlations
        within three or more coefficients have bounds that depend on each other; there the principal
        components tell instead.

        References
        ----------
        Dickey (1971), doi:10.1214/aoms/1177693507. Bates, Kliegl, Vasishth, Baayen (2015),
        arXiv:1506.04967, for principal components (lme4's ``rePCA``). Roy, Vetterli (2007),
        EUSIPCO, 606-610, for the effective rank.

        Examples
        --------
        >>> import bayeslmm as blm
        >>> model = blm.LMM("Yield ~ 1 + (1 | Batch)", blm.load_dataset("Dyestuff2"))
        >>> found = model.fit(random_seed=1).singularity()
        >>> found.reml_singular, bool(found.table["support"].iloc[0] > 0.15)
        (True, True)
        """
        from bayeslmm.checks.singularity import posterior_singularity

        return posterior_singularity(
            self.design,
            self._plan,
            self.priors,
            self._joint,
            eps=eps,
            rho=rho,
            standardise=standardise,
            prob=prob,
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
        >>> list(model.fit(random_seed=1).sensitivity().table.columns)
        ['prior', 'likelihood', 'diagnosis']
        """
        from bayeslmm.checks.sensitivity import power_scaling

        return power_scaling(self.design, self._plan, self.priors, self._joint, threshold)

    def contraction(
        self, draws: int = 20_000, *, random_seed: int | np.random.Generator | None = None
    ) -> Contraction:
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
        >>> table = model.fit(random_seed=1).contraction(random_seed=2).table
        >>> bool((table["contraction"] > 0.5).all())
        True
        """
        from bayeslmm.checks.sensitivity import prior_contraction

        return prior_contraction(self.design, self.priors, self._joint, draws, random_seed)

    def influence(self, by: str | None = None, *, progressbar: bool = True) -> PosteriorInfluence:
        """How much rows, or levels of a grouping variable, move the posterior, without refits.

        Parameters
        ----------
        by : str, optional
            A grouping factor of the model or a variable of its formula; single rows by default.
        progressbar : bool
            Whether to show one.

        Returns
        -------
        PosteriorInfluence
            `table` with the largest shift of a posterior mean, the Kullback-Leibler divergence and
            the reliability of the weights; `shift` by parameter, in posterior standard deviations.

        Raises
        ------
        DataError
            If there is no such variable.

        References
        ----------
        Bradlow, Zaslavsky (1997), doi:10.1080/10618600.1997.10474746. Vehtari, Simpson, Gelman,
        Yao, Gabry (2024), arXiv:1507.02646.

        Examples
        --------
        >>> import bayeslmm as blm
        >>> sleep = blm.load_dataset("sleepstudy")
        >>> post = blm.LMM("Reaction ~ Days + (Days | Subject)", sleep).fit(random_seed=1)
        >>> post.influence("Subject", progressbar=False).table["kl"].idxmax()
        '332'
        """
        from bayeslmm.checks.posterior_influence import posterior_influence

        return posterior_influence(
            self.design, self._plan, self.priors, self._joint, by, progressbar=progressbar
        )

    def residual_checks(
        self, draws: int = 200, *, random_seed: int | np.random.Generator | None = None
    ) -> ResidualChecks:
        """Check residuals and random effects on posterior draws.

        Parameters
        ----------
        draws : int
            At most this many posterior draws, equally spaced.
        random_seed : int or numpy.random.Generator, optional
            Seed.

        Returns
        -------
        ResidualChecks
            `table` of checks with posterior predictive p-values, `largest` deviations by name,
            `residuals` of every kind by row (means over draws).

        Notes
        -----
        Given each draw of the covariance parameters, with fixed and random effects integrated out,
        the data are compared with simulated responses. The largest residual is judged by the
        leave-one-out predictive distribution of its row, times the number of rows (Bonferroni).

        References
        ----------
        Gelman, Meng, Stern (1996), Posterior predictive assessment of model fitness via realized
        discrepancies, Statistica Sinica 6, 733-760. Marshall, Spiegelhalter (2007),
        doi:10.1214/07-BA218, for predictions without the case.

        Examples
        --------
        >>> import bayeslmm as blm
        >>> sleep = blm.load_dataset("sleepstudy")
        >>> post = blm.LMM("Reaction ~ Days + (Days | Subject)", sleep).fit(random_seed=1)
        >>> post.residual_checks(random_seed=1).largest.loc["largest residual", "case"]
        'row 56 (Subject 332)'
        """
        from bayeslmm.checks.residual_checks import check_posterior

        return check_posterior(
            self.design, self._plan, self.priors, self._joint, draws, random_seed
        )
