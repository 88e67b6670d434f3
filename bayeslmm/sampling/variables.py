"""The public variables of a posterior as a dataset, laid out so that ArviZ labels them rightly.

ArviZ stacks the dimensions of all variables in the order in which they first appear, but labels
each variable by its own order. The two agree, whichever variables are chosen in whatever order,
where every variable has the dimensions that it shares before those that it has alone: so ``u_g`` is
(coefficient, level). It takes every data variable for something to be estimated: so correlation
matrices, whose diagonals are constant, are coordinates, and the correlations of pairs are
variables.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from bayeslmm.covariance.unstructured import structure_of
from bayeslmm.data.design import Design, RandomFactor
from bayeslmm.schema import (
    BETA,
    COEF_DIM,
    SAMPLE_DIMS,
    SIGMA,
    coef_bis_dim,
    coef_dim,
    cor_name,
    corr_name,
    level_dim,
    pair_dim,
    sd_name,
    u_name,
)

if TYPE_CHECKING:
    import xarray as xr

Array = NDArray[np.float64]


def parameter_dims(design: Design) -> dict[str, tuple[str, ...]]:
    """Dimensions, beyond chain and draw, of all that the draws of a model determine."""
    factors = design.random
    dims: dict[str, tuple[str, ...]] = {BETA: (COEF_DIM,)}
    dims |= {u_name(f.key): (coef_dim(f.key), level_dim(f.key)) for f in factors}
    dims |= {sd_name(f.key): (coef_dim(f.key),) for f in factors}
    dims |= {
        cor_name(f.key): (coef_dim(f.key), coef_bis_dim(f.key)) for f in factors if f.n_coefs > 1
    }
    return dims | {SIGMA: ()}


def parameter_coords(design: Design) -> dict[str, NDArray[Any]]:
    """Coordinates of these dimensions."""
    coords: dict[str, NDArray[Any]] = {COEF_DIM: text_labels(design.coefs)}
    for factor in design.random:
        coords[coef_dim(factor.key)] = text_labels(factor.coefs)
        coords[level_dim(factor.key)] = text_labels(factor.levels)
        if factor.n_coefs > 1:
            coords[coef_bis_dim(factor.key)] = text_labels(factor.coefs)
    return coords


def arranged(design: Design, dataset: xr.Dataset) -> xr.Dataset:
    """The dataset of :func:`arrange` from public variables that a dataset has in any order."""
    given = {str(name): variable for name, variable in dataset.variables.items()}
    return arrange(design, given, [str(name) for name in dataset.coords], dataset.attrs)


def arrange(
    design: Design,
    given: Mapping[str, xr.Variable],
    coords: Sequence[str],
    attrs: Mapping[Any, Any] | None = None,
) -> xr.Dataset:
    """Public variables in the order and with the dimensions of the schema.

    Parameters
    ----------
    design : Design
        The design of the model.
    given : mapping of str to xarray.Variable
        Public variables, and whatever others, in any order with dimensions in any order.
    coords : sequence of str
        Which of them are coordinates; correlation matrices may be.
    attrs : mapping, optional
        Attributes.

    Returns
    -------
    xarray.Dataset
        Variables ``beta``, ``u_g``, ``sd_g``, ``corr_g``, ``sigma``, then the others, and ``cor_g``
        among the coordinates, exactly symmetric with a diagonal of exactly one. ``corr_g`` (pair)
        has the correlations that are not zero by the formula.
    """
    import xarray as xr

    dims = parameter_dims(design)
    laid = {k: given[k].transpose(*SAMPLE_DIMS, *dim) for k, dim in dims.items() if k in given}
    matrices = {}
    for factor in design.random:
        name = cor_name(factor.key)
        if name in laid:
            matrices[name] = _exact_correlations(laid.pop(name))
            laid |= _pair_correlations(factor, matrices[name])
    makers = (u_name, sd_name, corr_name)
    order = [BETA, *(make(f.key) for make in makers for f in design.random), SIGMA]
    others = [name for name in given if name not in {*order, *matrices, *coords}]
    labels = {
        pair_dim(f.key): xr.Variable(pair_dim(f.key), _pair_labels(f))
        for f in design.random
        if corr_name(f.key) in laid
    }
    for factor in design.random:
        for make in (*makers, cor_name):
            if (variable := (laid | matrices).get(make(factor.key))) is not None:
                variable.attrs["grouping_factor"] = factor.name
    variables = {name: laid[name] for name in order if name in laid}
    return xr.Dataset(
        variables | {name: given[name] for name in others},
        {name: given[name] for name in coords if name not in matrices} | labels | matrices,
        attrs,
    )


def effect_arrays(design: Design, dataset: xr.Dataset) -> list[Array]:
    """Draws (chain, draw, J, k) of the random effects of each grouping factor."""
    return [level_first(f, dataset[u_name(f.key)]).to_numpy() for f in design.random]


def level_first(factor: RandomFactor, u: xr.DataArray) -> xr.DataArray:
    """Random effects with the coefficients of a level along the last axis."""
    return u.transpose(..., level_dim(factor.key), coef_dim(factor.key))


def text_labels(labels: ArrayLike) -> NDArray[Any]:
    """Text coordinates in one dtype, the one a netCDF file gives back."""
    values = [str(label) for label in np.asarray(labels, dtype=object)]
    return np.asarray(values, dtype=str) if values else np.empty(0, dtype="<U1")


def _pairs(factor: RandomFactor) -> list[tuple[int, int]]:
    """Places of the correlated coefficients, the one that is written first before the other."""
    return [(min(pair), max(pair)) for pair in structure_of(factor).pairs]


def _pair_labels(factor: RandomFactor) -> NDArray[Any]:
    return text_labels([f"{factor.coefs[i]}, {factor.coefs[j]}" for i, j in _pairs(factor)])


def _pair_correlations(factor: RandomFactor, matrix: xr.Variable) -> dict[str, xr.Variable]:
    """Variable ``corr_g`` (chain, draw, pair), if there are pairs."""
    import xarray as xr

    if not (pairs := _pairs(factor)):
        return {}
    rows, cols = np.array(pairs).T
    dims = (*SAMPLE_DIMS, pair_dim(factor.key))
    return {corr_name(factor.key): xr.Variable(dims, matrix.to_numpy()[..., rows, cols])}


def _exact_correlations(matrix: xr.Variable) -> xr.Variable:
    """Correlation matrices without the rounding errors of the product that made them."""
    import xarray as xr

    values = matrix.to_numpy()
    below = np.clip(np.tril(values, -1), -1.0, 1.0)
    exact = below + below.swapaxes(-2, -1) + np.eye(values.shape[-1])
    return xr.Variable(matrix.dims, exact, matrix.attrs)
