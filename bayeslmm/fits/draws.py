"""Posterior draws: what they are, further groups for ArviZ, files and further draws."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Self

import numpy as np

from bayeslmm.fits.effects import Effects
from bayeslmm.fits.predictions import Seed
from bayeslmm.prediction import checks
from bayeslmm.prediction.checks import Group
from bayeslmm.prediction.rows import Target
from bayeslmm.sampling import tree
from bayeslmm.sampling.joint_draws import JointDraws, posterior_draws
from bayeslmm.summaries import posterior_tables

if TYPE_CHECKING:
    import xarray as xr

    from bayeslmm.effects.tidy_draws import Engine, Format


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
        rng = np.random.default_rng(random_seed)
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
        rng = np.random.default_rng(random_seed)
        found = checks.further_groups(self.model, self.data, self._joint, groups, rng)
        return self.with_groups(**found).data

    def with_groups(self, **groups: xr.Dataset) -> Self:
        """A copy whose `data` has further groups, or replaced ones.

        Parameters
        ----------
        **groups : xarray.Dataset
            Groups by name.
        """
        return replace(self, data=tree.with_groups(self.data, **groups))

    def with_log_likelihood(self) -> Self:
        """Add group log_likelihood: pointwise, given the random effects, whose draws it needs.

        Returns
        -------
        Posterior
            A new one; its `data` has the group, which ``arviz.loo`` reads.
        """
        return self.with_groups(log_likelihood=checks.log_likelihood_group(self.data, self.design))

    def with_log_prior(self) -> Self:
        """Add group log_prior, which ArviZ's power-scaling sensitivity (psense) reads."""
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
        rng = np.random.default_rng(random_seed)
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
            Seed. That of the first run does no harm: its random numbers are not used again.
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
