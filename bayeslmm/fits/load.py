"""Reading a saved posterior."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from os import PathLike
from pathlib import Path
from typing import Any

import xarray as xr

from bayeslmm.data.design import Design
from bayeslmm.fits.posterior import Posterior
from bayeslmm.sampling.tree import assemble
from bayeslmm.sampling.variables import arranged
from bayeslmm.storage.files import read, unpacked

_DRAWS = ("posterior", "prior")


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
    contents = read(Path(path))
    design, priors = unpacked(contents, str(path), functions)
    return Posterior(design, priors, _arranged(design, contents.tree))


def _arranged(design: Design, tree: xr.DataTree) -> xr.DataTree:
    """The groups of draws as this version lays them out, whichever wrote them."""
    groups = {str(name): node.to_dataset() for name, node in tree.children.items()}
    draws = {name: arranged(design, groups[name]) for name in _DRAWS if name in groups}
    return assemble({**groups, **draws}, {str(key): value for key, value in tree.attrs.items()})
