"""Posterior draws: what they are, further groups for ArviZ, files and further draws."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Self

from bayeslmm.comparison.models import LogEvidence, log_evidence
from bayeslmm.data.seeds import seeded
from bayeslmm.fits.effects import Effects
from bayeslmm.fits.predictions import Names, Seed
from bayeslmm.prediction import checks
from bayeslmm.prediction.checks import Group
from bayeslmm.prediction.predict import Kind
from bayeslmm.prediction.rows import Target, Terms
from bayeslmm.sampling import tree
from bayeslmm.sampling.joint_draws import JointDraws, posterior_draws
from bayeslmm.summaries import posterior_tables
from bayeslmm.summaries.parameters import whole_number

if TYPE_CHECKING:
    import xarray as xr

    from bayeslmm.effects.imputed import ArmEffects, Imputations
    from bayeslmm.effects.tidy_draws import Engine, Format
    from bayeslmm.prediction.reference_based import Strategy
    from bayeslmm.prediction.trajectories import Trial
    from bayeslmm.sampling.diagnostics import Diagnostics


@dataclass(frozen=True, eq=False)
class PosteriorDraws(Effects):
    """The draws of a posterior; :class:`~bayeslmm.Posterior` adds what they say."""

    data: xr.DataTree

    @cached_property
    def _draws(self) -> xr.Dataset:
        return self.data["posterior"].to_dataset()

    @cached_property
    def _joint(self) -> JointDraws:
        return posterior_draws(self.design, lambda: self.model.system, self._draws)

    @cached_property
    def diagnostics(self) -> Diagnostics:
        """Convergence checks of the draws, with advice in words."""
        from bayeslmm.sampling.diagnostics import check

        return check(self.data)

    @property
    def log_evidence(self) -> LogEvidence:
        """Log marginal likelihood with its Monte Carlo error (collapsed sampler only).

        Raises
        ------
        PriorError
            If a prior is improper.
        SamplingError
            If another method made the draws.
        """
        return log_evidence(self.data.attrs, self.priors)

    def draw_u(
        self,
        levels: Sequence[Any] | None = None,
        *,
        group: str | None = None,
        random_seed: Seed = None,
    ) -> xr.DataArray:
        """Draw random effects of chosen levels, exactly, given the draws of everything else.

        Parameters
        ----------
        levels : sequence, optional
            Labels of levels; all by default.
        group : str, optional
            Grouping factor as in the formula; needed where there are several.
        random_seed : int or numpy.random.Generator, optional
            Seed.

        Returns
        -------
        xarray.DataArray
            Dimensions chain, draw, coefficient and level.

        Raises
        ------
        DataError
            If there is no such grouping factor or level.

        Examples
        --------
        >>> import bayeslmm as blm
        >>> model = blm.LMM("Yield ~ 1 + (1 | Batch)", blm.load_dataset("Dyestuff"))
        >>> post = model.fit(random_seed=1, store_u=False)
        >>> post.draw_u(["A", "C"], random_seed=2).sizes["Batch"]
        2
        """
        rng = seeded(random_seed)
        system = self.model.system
        return posterior_tables.drawn_effects(self.design, system, self._draws, group, levels, rng)

    def draws(
        self,
        names: str | Sequence[str] | Mapping[str, str] | None = None,
        *,
        format: Format = "wide",
        regex: bool = False,
        engine: Engine = "pandas",
    ) -> Any:
        """Draws of parameters, and of functions of them, in a tidy frame.

        Parameters
        ----------
        names : str, sequence of str or mapping, optional
            Labels of :meth:`summary` (``"beta[Days]"``, ``"sd[Subject, Days]"``, ``"sigma"``);
            random effects of a level ``"u[Subject, 308, Days]"``, or its coefficients
            ``"coef[Subject, 308, Days]"``, fixed plus random; ``"u[Subject]"`` or ``"coef"`` for
            those of all levels; and arithmetic on these as in :meth:`hypothesis`, best under a name
            of its own: ``{"ratio": "sd[Subject, Days] / sigma"}``. By default all of
            :meth:`summary`.
        format : {"wide", "long", "levels"}
            A column per quantity; a row per quantity and draw; or a row per level, coefficient and
            draw, where one of the names is that of all levels, with the others in columns.
        regex : bool
            Whether names are regular expressions, searched for in the labels of parameters and
            random effects.
        engine : {"pandas", "polars"}
            What the frame is.

        Returns
        -------
        data frame
            Columns ``.chain``, ``.iteration`` (draw within the chain) and ``.draw`` (among all),
            from 0, as ArviZ counts. Then the quantities; or ``.variable`` and ``.value``; or, by
            level, the grouping factor, ``term`` and ``u`` or ``coef``.

        Raises
        ------
        FormulaError
            If a name is no parameter or expression; shows the place.
        DataError
            If the draws would not fit into memory.
        ValueError
            If an option is unknown, or a regular expression matches nothing.
        OptionalDependencyError
            If Polars is not installed.

        Notes
        -----
        Random effects that are not stored are drawn, exactly, given the draws of everything else.

        References
        ----------
        R's ``tidybayes::spread_draws``, ``gather_draws``; ``posterior::as_draws_df``.

        Examples
        --------
        >>> import bayeslmm as blm
        >>> sleep = blm.load_dataset("sleepstudy")
        >>> post = blm.LMM("Reaction ~ Days + (Days | Subject)", sleep).fit(random_seed=1)
        >>> list(post.draws(["beta[Days]", "u[Subject, 308, Days]"]))
        ['.chain', '.iteration', '.draw', 'beta[Days]', 'u[Subject, 308, Days]']
        >>> list(post.draws(["beta[Days]", "u[Subject]"], format="levels"))[3:]
        ['beta[Days]', 'Subject', 'term', 'u']
        """
        from bayeslmm.effects.tidy_draws import tidy_draws

        return tidy_draws(self.design, self._joint, names, format, engine, regex=regex)

    def predict_draws(
        self,
        new: Any = None,
        *,
        target: Target = "conditional",
        kind: Kind = "epred",
        terms: Terms | None = None,
        draws: int | None = None,
        random_seed: Seed = None,
        engine: Engine = "pandas",
    ) -> Any:
        """Draws of predictions in a tidy frame, a row per row predicted and draw.

        Parameters
        ----------
        new : data frame or mapping, optional
            Rows to predict; those of the model by default.
        target, kind, terms
            As in :meth:`predict`.
        draws : int, optional
            Use at most so many draws, equally spaced.
        random_seed : int or numpy.random.Generator, optional
            Seed of new levels and residuals.
        engine : {"pandas", "polars"}
            What the frame is.

        Returns
        -------
        data frame
            The columns of `new`, ``.row`` (its index), ``.chain``, ``.iteration`` and ``.draw``,
            from 0, and ``.epred``, ``.linpred`` or (responses) ``.prediction``.

        Raises
        ------
        DataError
            As :meth:`predict`; or if the frame would not fit into memory.

        References
        ----------
        R's ``tidybayes::add_epred_draws``, ``add_linpred_draws``, ``add_predicted_draws``.

        Examples
        --------
        >>> import bayeslmm as blm
        >>> sleep = blm.load_dataset("sleepstudy")
        >>> post = blm.LMM("Reaction ~ Days + (Days | Subject)", sleep).fit(random_seed=1)
        >>> frame = post.predict_draws({"Days": [0, 9], "Subject": ["308", "309"]}, draws=100)
        >>> list(frame)
        ['Days', 'Subject', '.row', '.chain', '.iteration', '.draw', '.epred']
        >>> len(frame)
        200
        """
        from bayeslmm.effects.tidy_draws import check_engine, prediction_draws

        check_engine(engine)
        found = self.predict(
            new,
            target=target,
            kind=kind,
            terms=terms,
            draws=draws,
            summary=False,
            random_seed=random_seed,
        )
        rows = self.design.data if new is None else new
        return prediction_draws(rows, found["predictions"].to_dataset(), kind, engine)

    # --- missing responses of trials ------------------------------------------------------

    def impute(
        self,
        strategy: Strategy | Mapping[Any, Strategy] = "MAR",
        *,
        arm: Names,
        reference: Any,
        n: int = 100,
        visit: str | None = None,
        subject: str | None = None,
        random_seed: Seed = None,
    ) -> Imputations:
        """Complete the data of a trial under reference-based assumptions.

        Each completed data set is drawn given another posterior draw of the fixed effects and the
        covariance parameters. What is missing is drawn given what was observed of the subject, and
        given the random effects of levels that subjects share, such as sites.

        Parameters
        ----------
        strategy : {"MAR", "J2R", "CR", "CIR", "LMCF"} or mapping
            What is assumed after the last visit with a response: missing at random; jump to
            reference, copy reference, copy increments in reference (rbmi's "JR" is "J2R"); last
            mean carried forward. Of all subjects, or by the label of a subject, the others being
            "MAR". Responses missing before that visit are missing at random, but under "CR", where
            all are those of the reference arm.
        arm : str or sequence of str
            The column of the arms; further ones that say the arm too, such as that of
            :func:`bayeslmm.clda`, are set to the reference along with it.
        reference : object
            The reference arm.
        n : int
            Number of completed data sets, from as many draws, equally spaced.
        visit, subject : str, optional
            Columns; by default those of the structure of the residuals, ``us(visit | subject)``.
        random_seed : int or numpy.random.Generator, optional
            Seed.

        Returns
        -------
        Imputations
            With ``.frames()``, ``.analyse(...).pool()`` and ``.shift(delta)``.

        Raises
        ------
        DataError
            If the model was not built with ``missing="keep"``, rows lack more than the response, a
            subject lacks a row at a visit, or LMCF has no mean to carry forward.
        ValueError
            If a strategy is unknown, or there are fewer draws than `n`.

        References
        ----------
        Carpenter, Roger, Kenward (2013), doi:10.1080/10543406.2013.834911; R's ``rbmi::impute``
        with ``method_bayes``.

        Examples
        --------
        >>> import bayeslmm as blm
        >>> fev = blm.load_dataset("fev")
        >>> model = blm.LMM(
        ...     "FEV1 ~ ARMCD * AVISIT + FEV1_BL",
        ...     fev,
        ...     residual="us(AVISIT | USUBJID)",
        ...     missing="keep",
        ... )
        >>> post = model.fit(method="laplace", draws=50, random_seed=1)
        >>> completed = post.impute("J2R", arm="ARMCD", reference="PBO", n=100, random_seed=2)
        >>> pooled = completed.analyse("FEV1 ~ ARMCD + FEV1_BL", at="VIS4").pool()
        >>> pooled.index.get_level_values("quantity").tolist()
        ['PBO', 'TRT', 'TRT - PBO']
        """
        from bayeslmm.effects.imputed import impute

        trial = self._trial(arm, reference, visit, subject)
        return impute(trial, self._joint, strategy, n, seeded(random_seed))

    def reference_based_effect(
        self,
        strategy: Strategy | Mapping[Any, Strategy] = "MAR",
        *,
        arm: Names,
        reference: Any,
        at: Any = None,
        draws: int | None = None,
        visit: str | None = None,
        subject: str | None = None,
        random_seed: Seed = None,
    ) -> ArmEffects:
        """Posterior of the differences of arms under reference-based assumptions.

        Without imputation: each draw of the parameters says what subjects of an arm would have on
        average, those with a response at all visits and those without at some, and how that
        differs from the reference arm. How many subjects stop at which visit is uncertain too.

        Parameters
        ----------
        strategy, arm, reference, visit, subject
            As in :meth:`impute`.
        at : label or sequence of labels, optional
            Visits; by default all at which arms differ.
        draws : int, optional
            Use at most so many draws, equally spaced.
        random_seed : int or numpy.random.Generator, optional
            Seed of the weights of subjects.

        Returns
        -------
        ArmEffects
            With ``.table()`` and ``.draws``.

        Raises
        ------
        DataError
            As by :meth:`impute`, and if there is no such visit.

        Notes
        -----
        Subjects of an arm have Dirichlet weights (the Bayesian bootstrap), and the reference arm is
        that which the covariates of the same subjects would give. Jump to reference so multiplies
        the difference at a visit by the share of subjects who have not left before it. The spread
        is that of the estimate over repeated trials, and smaller than that of Rubin's rules.

        References
        ----------
        Liu, Pang (2016), doi:10.1080/10543406.2015.1094810; Rubin (1981),
        doi:10.1214/aos/1176345338.

        Examples
        --------
        >>> import bayeslmm as blm
        >>> fev = blm.load_dataset("fev")
        >>> model = blm.LMM(
        ...     "FEV1 ~ ARMCD * AVISIT", fev, residual="us(AVISIT | USUBJID)", missing="keep"
        ... )
        >>> post = model.fit(method="laplace", random_seed=1)
        >>> j2r = post.reference_based_effect("J2R", arm="ARMCD", reference="PBO", random_seed=2)
        >>> j2r.table().index[-1]
        ('VIS4', 'TRT - PBO')
        """
        from bayeslmm.effects.imputed import arm_effects

        trial = self._trial(arm, reference, visit, subject)
        joint = self._joint if draws is None else self._joint.thin(whole_number(draws, "draws", 2))
        return arm_effects(trial, joint, strategy, at, seeded(random_seed))

    def _trial(self, arm: Names, reference: Any, visit: str | None, subject: str | None) -> Trial:
        from bayeslmm.prediction.trajectories import trial_of

        arms = (arm,) if isinstance(arm, str) else tuple(arm)
        return trial_of(self.design, arms, reference, visit, subject)

    # --- ArviZ ------------------------------------------------------------------------

    def to_arviz(
        self, groups: Literal["all"] | Group | Iterable[Group] = "all", *, random_seed: Seed = None
    ) -> xr.DataTree:
        """Return the draws with further groups, for ArviZ's functions.

        Parameters
        ----------
        groups : "all" or str or iterable of str
            Groups to have beside those of `data`, among ``"log_likelihood"``, ``"log_prior"``,
            ``"posterior_predictive"``, ``"prior"`` and ``"prior_predictive"``. Those that `data`
            has already stay as they are. "all" leaves out, and logs, what does not exist: prior
            groups under flat priors, the log likelihood where draws of the random effects are not
            stored.
        random_seed : int or numpy.random.Generator, optional
            Seed of the predictive groups and of the prior.

        Returns
        -------
        xarray.DataTree

        Raises
        ------
        ValueError
            If there is no such group.
        PriorError
            If prior groups are asked for and a prior is flat.
        SamplingError
            If the log likelihood is asked for and draws of the random effects are not stored.

        Notes
        -----
        The log likelihood takes 8 bytes per draw and row, as does the posterior predictive.

        Examples
        --------
        >>> import bayeslmm as blm
        >>> model = blm.LMM("Yield ~ 1 + (1 | Batch)", blm.load_dataset("Dyestuff"))
        >>> tree = model.fit(random_seed=1).to_arviz("all", random_seed=2)
        >>> "log_likelihood" in tree, "prior" in tree, "posterior_predictive" in tree
        (True, True, True)
        """
        rng = seeded(random_seed)
        found = checks.further_groups(self.model, self.data, self._joint, groups, rng)
        return self.with_groups(**found).data

    def with_groups(self, **groups: xr.Dataset) -> Self:
        """A copy whose `data` has further groups, or replaced ones.

        Parameters
        ----------
        **groups : xarray.Dataset
            Groups by name.

        Returns
        -------
        Posterior

        Examples
        --------
        >>> import bayeslmm as blm
        >>> model = blm.LMM("Yield ~ 1 + (1 | Batch)", blm.load_dataset("Dyestuff"))
        >>> post = model.fit(method="laplace", random_seed=1)
        >>> thinned = post.data["posterior"].to_dataset().isel(draw=slice(None, None, 10))
        >>> post.with_groups(posterior=thinned).data["posterior"].sizes["draw"]
        100
        """
        return replace(self, data=tree.with_groups(self.data, **groups))

    def with_log_likelihood(self) -> Self:
        """Add group log_likelihood: pointwise, given the random effects, whose draws it needs.

        Returns
        -------
        Posterior
            A new one; its `data` has the group, which :func:`arviz.loo <arviz_stats.loo>` reads.

        Examples
        --------
        >>> import bayeslmm as blm
        >>> model = blm.LMM("Yield ~ 1 + (1 | Batch)", blm.load_dataset("Dyestuff"))
        >>> post = model.fit(method="laplace", random_seed=1)
        >>> post.with_log_likelihood().data["log_likelihood"]["y"].dims
        ('chain', 'draw', 'obs_id')
        """
        return self.with_groups(log_likelihood=checks.log_likelihood_group(self.data, self.design))

    def with_log_prior(self) -> Self:
        """Add group log_prior, which ArviZ's power-scaling sensitivity (psense) reads.

        Returns
        -------
        Posterior
            A new one.

        Examples
        --------
        >>> import bayeslmm as blm
        >>> model = blm.LMM("Yield ~ 1 + (1 | Batch)", blm.load_dataset("Dyestuff"))
        >>> post = model.fit(method="laplace", random_seed=1)
        >>> sorted(post.with_log_prior().data["log_prior"].data_vars)
        ['beta', 'sd_Batch', 'sigma']
        """
        return self.with_groups(log_prior=checks.log_prior(self.data, self.priors))

    def with_prior(self, draws: int = 500, *, random_seed: Seed = None) -> Self:
        """Add groups prior and prior_predictive.

        Parameters
        ----------
        draws : int
            Number of draws from the prior.
        random_seed : int or numpy.random.Generator, optional
            Seed.

        Returns
        -------
        Posterior

        Raises
        ------
        PriorError
            If a prior is flat.

        Examples
        --------
        >>> import bayeslmm as blm
        >>> model = blm.LMM("Yield ~ 1 + (1 | Batch)", blm.load_dataset("Dyestuff"))
        >>> post = model.fit(method="laplace", random_seed=1)
        >>> post.with_prior(100, random_seed=2).data["prior"].sizes["draw"]
        100
        """
        found = checks.prior_groups(self.design, self.priors, draws, random_seed)
        return self.with_groups(**found)

    def with_posterior_predictive(
        self, *, target: Target = "conditional", random_seed: Seed = None
    ) -> Self:
        """Add group posterior_predictive: replicated responses at the rows of the model.

        ArviZ's ``plot_ppc_*`` and, together with :meth:`with_log_likelihood`, ``plot_loo_pit``
        take the result's `data` as it is.

        Parameters
        ----------
        target : {"conditional", "population", "average"}
            Whether the levels are those of the data, or new ones from the same population.
        random_seed : int or numpy.random.Generator, optional
            Seed.

        Returns
        -------
        Posterior
            A new one.

        Examples
        --------
        >>> import bayeslmm as blm
        >>> model = blm.LMM("Yield ~ 1 + (1 | Batch)", blm.load_dataset("Dyestuff"))
        >>> post = model.fit(random_seed=1).with_posterior_predictive(random_seed=2)
        >>> post.data["posterior_predictive"]["y"].sizes["obs_id"]
        30
        """
        rng = seeded(random_seed)
        dataset = checks.predictive_dataset(self.design, self._joint, target, rng)
        return self.with_groups(posterior_predictive=dataset)

    # --- files and further draws ------------------------------------------------------

    def save(self, path: str | PathLike[str], *, overwrite: bool = False) -> None:
        """Save the draws and the model, so that :func:`bayeslmm.load` gives the same posterior.

        The file holds all groups of `data`, and of the model the formula, the rows of its variables
        that were used, the weights and every prior by family and parameters. No pickle: other
        programs read the draws with ``arviz.from_netcdf`` or ``arviz.from_zarr``.

        Parameters
        ----------
        path : str or path
            A name that ends in ``.nc``, for one netCDF file, or ``.zarr``, for a Zarr store, a
            folder (needs ``bayeslmm[zarr]``).
        overwrite : bool
            Whether to replace what is there. The new file is complete and has been read back and
            checked before it takes the place of the old one.

        Raises
        ------
        ValueError
            If the name ends otherwise.
        FileExistsError
            If there is a file already and `overwrite` is false.
        FileNotFoundError
            If the folder does not exist.
        StorageError
            If a variable or a prior is of a type that cannot be stored, such as a ``CustomDist``,
            or the system refuses to write: no room, no permission. An old file stays as it is.

        Examples
        --------
        >>> import bayeslmm as blm, pathlib, tempfile
        >>> post = blm.LMM("Yield ~ 1 + (1 | Batch)", blm.load_dataset("Dyestuff")).fit()
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     post.save(pathlib.Path(folder) / "dyestuff.nc")
        ...     print([path.name for path in pathlib.Path(folder).iterdir()])
        ['dyestuff.nc']
        """
        from bayeslmm.storage.files import save

        save(self.design, self.priors, self.data, Path(path), overwrite=overwrite)

    def extend(self, draws: int, *, random_seed: Seed = None, **kwargs: Any) -> Self:
        """Add draws to every chain by another run of the method that made these.

        Draws of the collapsed sampler and of NUTS from chains that have converged, and the
        independent ones of the Laplace approximation, are draws from the same distribution whether
        they come from one run or two, so the second run is put behind the first. R-hat and the
        effective sample sizes of the result compare the runs too. NUTS is tuned anew.

        Parameters
        ----------
        draws : int
            Further draws per chain.
        random_seed : int or numpy.random.Generator, optional
            Seed, kept in `random_seeds`. That of the first run does no harm: its random numbers are
            not used again.
        **kwargs
            Options of the method as in :meth:`LMM.fit`; those of the first run that its attributes
            tell (`store_u`, `form`, `tune`) are the default.

        Returns
        -------
        Posterior
            A new one. Log likelihood, log prior and summaries of random effects that are not stored
            are computed anew, groups of predictive draws are left out. Two estimates of the log
            evidence are weighted by their inverse variances; of Pareto k and the error of a
            surrogate the larger counts. The attribute ``draws_of_runs`` of `data` has the draws per
            chain of each run.

        Raises
        ------
        ValueError
            If `draws` is not a positive whole number.
        SamplingError
            If the method fails.

        Examples
        --------
        >>> import bayeslmm as blm
        >>> model = blm.LMM("Yield ~ 1 + (1 | Batch)", blm.load_dataset("Dyestuff"))
        >>> post = model.fit(draws=500, random_seed=1).extend(1500, random_seed=1)
        >>> post.data["posterior"].sizes["draw"]
        2000
        """
        from bayeslmm.storage.changes import extended_tree

        data = extended_tree(self.model, self.data, draws, random_seed, kwargs)
        return replace(self, data=data)
