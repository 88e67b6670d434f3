"""A saved posterior, read back."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from os import PathLike
from pathlib import Path
from typing import Any

from bayeslmm.estimation.model import Model
from bayeslmm.fits.posterior import Posterior
from bayeslmm.storage.files import read_posterior


def load(
    path: str | PathLike[str], *, functions: Mapping[str, Callable[..., Any]] | None = None
) -> Posterior:
    """Load a posterior that :meth:`Posterior.save` wrote.

    The matrices and the priors are the stored ones, whatever the defaults and the installed
    libraries are now. The formula is evaluated when there are new data: on the stored data, which
    sets knots, centres and levels as they were and must give the stored columns, then on the new
    ones. All predictions are those of the posterior that was saved, to the last digit.

    Nothing in a file is run, and no library of another format reads it: a file from anybody gives
    the posterior that somebody saved or an error.

    Parameters
    ----------
    path : str or path
        A ``.nc`` file or a ``.zarr`` store.
    functions : mapping of str to callable, optional
        Functions of your own that the formula calls; a file holds their names only.

    Returns
    -------
    Posterior

    Raises
    ------
    FileNotFoundError
        If there is no such file.
    ValueError
        If the name does not end in ``.nc`` or ``.zarr``.
    StorageError
        If the file was not written by :meth:`Posterior.save`, is damaged or was changed (its
        SHA-256 is recorded), has another layout, or the installed libraries make other levels or
        priors of it; or if functions of yours are needed and not given. Predicting for new data
        raises it if they make other columns.

    Examples
    --------
    >>> import bayeslmm as blm, pathlib, tempfile
    >>> post = blm.LMM("Yield ~ 1 + (1 | Batch)", blm.load_dataset("Dyestuff")).fit(random_seed=1)
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     post.save(pathlib.Path(folder) / "dyestuff.nc")
    ...     loaded = blm.load(pathlib.Path(folder) / "dyestuff.nc")
    >>> loaded.fixef().equals(post.fixef())
    True
    """
    design, priors, tree = read_posterior(Path(path), functions)
    return Posterior(Model(design, priors), tree)
