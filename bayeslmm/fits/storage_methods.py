"""Saving and extending: methods of posteriors."""

from __future__ import annotations

from dataclasses import replace
from os import PathLike
from pathlib import Path
from typing import Any, Self

import numpy as np

from bayeslmm.fits.posterior_base import PosteriorBase


class PosteriorStorage(PosteriorBase):
    """Saving and extending a posterior."""

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
        from bayeslmm.storage.files import check_target, write
        from bayeslmm.storage.layout import Contents
        from bayeslmm.storage.model import pack_model

        target = Path(path)
        check_target(target, overwrite=overwrite)
        model, arrays = pack_model(self.design, self.priors)
        contents = Contents(tree=self.data, model=model, arrays=arrays)
        functions = self.design.recipe.functions
        write(contents, target, overwrite=overwrite, functions=functions)

    def extend(
        self,
        draws: int,
        *,
        random_seed: int | np.random.Generator | None = None,
        **kwargs: Any,
    ) -> Self:
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
        from bayeslmm.storage.extending import extended_tree

        tree = extended_tree(
            self.design, lambda: self._plan, self.priors, self.data, draws, random_seed, kwargs
        )
        return replace(self, data=tree)
