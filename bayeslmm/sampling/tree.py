"""Draws as an xarray.DataTree that follows the ArviZ schema, the same for every method."""

from __future__ import annotations

import json
import platform
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from functools import cache
from importlib.metadata import version
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from bayeslmm.data.design import Design
from bayeslmm.exceptions import SamplingError
from bayeslmm.priors.record import Priors
from bayeslmm.sampling.effect_summary import PROBABILITIES, EffectSummary
from bayeslmm.sampling.variables import arrange, parameter_coords, parameter_dims, text_labels
from bayeslmm.schema import COEF_DIM, OBS_DIM, SIGMA, coef_dim, level_dim, u_name
from bayeslmm.schema import SAMPLE_DIMS as SAMPLE_DIMS

if TYPE_CHECKING:
    import xarray as xr

RESPONSE = "y"
"""Name of the response in ``observed_data``, ``log_likelihood`` and the predictive groups.

It is the same for every model and reserved in the schema, so that it can never collide with a
grouping factor; the response as written is in its attribute ``label``.
"""

EFFECT_GROUP = "random_effects"
"""Group with summaries of random effects whose draws are not stored."""

LARGEST_U = 512 * 2**20
"""Bytes of draws of random effects that are stored or drawn unasked."""

_INFERENCE_ATTRS = ("inference_library", "inference_library_version", "sampling_time")


def posterior_tree(
    design: Design,
    priors: Priors,
    draws: Mapping[str, ArrayLike],
    sample_stats: Mapping[str, ArrayLike],
    attrs: Mapping[str, Any],
    extra: Mapping[str, xr.Dataset] | None = None,
) -> xr.DataTree:
    """Put posterior draws and sampler statistics into a DataTree.

    Parameters
    ----------
    design : Design
        The design of the model.
    priors : Priors
        Its priors.
    draws : mapping of str to ndarray (chain, draw, ...)
        All public variables: ``beta``, ``sigma`` and, per grouping factor with key g, ``sd_g``,
        ``cor_g`` (two or more coefficients) and ``u_g`` (chain, draw, level, coefficient), which
        may be left out together.
    sample_stats : mapping of str to ndarray (chain, draw) or (chain,)
        Sampler statistics, by ArviZ's names.
    attrs : mapping
        Attributes of the root, among them "method". "inference_library",
        "inference_library_version", "sampling_time" (seconds) and "tuning_steps" go to the
        groups of draws as well.
    extra : mapping of str to xarray.Dataset, optional
        Further groups.

    Returns
    -------
    xarray.DataTree
        Groups posterior, sample_stats, observed_data, constant_data and the extra ones.

    Raises
    ------
    SamplingError
        If a public variable is missing or has the wrong shape.
    """
    import xarray as xr

    inference = {
        key: attrs[key] for key in (*_INFERENCE_ATTRS, "tuning_steps") if attrs.get(key) is not None
    }
    group_attrs = {**creation_attrs(), **inference, "sample_dims": list(SAMPLE_DIMS)}
    arrays = {name: np.asarray(values) for name, values in sample_stats.items()}
    stats = {name: (SAMPLE_DIMS[: values.ndim], values) for name, values in arrays.items()}
    posterior = parameter_dataset(design, draws)
    chains = {dim: posterior[dim] for dim in SAMPLE_DIMS}
    groups = {
        "posterior": posterior.assign_attrs(group_attrs),
        "sample_stats": xr.Dataset(stats, coords=chains, attrs=group_attrs),
        **data_groups(design),
        **(extra or {}),
    }
    return assemble(groups, {**root_attrs(design, priors), **attrs})


def prior_tree(
    design: Design,
    priors: Priors,
    draws: Mapping[str, ArrayLike],
    response: ArrayLike,
) -> xr.DataTree:
    """Put prior draws and prior predictive draws into a DataTree.

    Parameters
    ----------
    design : Design
        The design of the model.
    priors : Priors
        Its priors.
    draws : mapping of str to ndarray (chain, draw, ...)
        All public variables, as in :func:`posterior_tree`.
    response : ndarray (chain, draw, n)
        Simulated responses.

    Returns
    -------
    xarray.DataTree
        Groups prior, prior_predictive, observed_data and constant_data.
    """
    import xarray as xr

    group_attrs = {**creation_attrs(), "sample_dims": list(SAMPLE_DIMS)}
    prior = parameter_dataset(design, draws)
    coords = {dim: prior[dim] for dim in SAMPLE_DIMS} | {OBS_DIM: obs_coord(design)}
    predictive = xr.Dataset({RESPONSE: ((*SAMPLE_DIMS, OBS_DIM), np.asarray(response))}, coords)
    predictive[RESPONSE].attrs["label"] = design.response
    groups = {
        "prior": prior.assign_attrs(group_attrs),
        "prior_predictive": predictive.assign_attrs(group_attrs),
        **data_groups(design),
    }
    return assemble(groups, {**root_attrs(design, priors), "method": "prior"})


def assemble(groups: Mapping[str, xr.Dataset], attrs: Mapping[str, Any]) -> xr.DataTree:
    """DataTree of named groups whose root carries `attrs`."""
    import xarray as xr

    tree = xr.DataTree.from_dict(dict(groups))
    tree.attrs.update({key: value for key, value in attrs.items() if value is not None})
    return tree


def with_groups(tree: xr.DataTree, **groups: xr.Dataset) -> xr.DataTree:
    """A copy of a tree that has further groups, or replaced ones."""
    present = {str(name): node.to_dataset() for name, node in tree.children.items()}
    return assemble({**present, **groups}, {str(k): v for k, v in tree.attrs.items()})


def parameter_dataset(design: Design, draws: Mapping[str, ArrayLike]) -> xr.Dataset:
    """Public variables of arrays as in :func:`posterior_tree`, laid out as ArviZ wants them."""
    import xarray as xr

    dims, coords = parameter_dims(design), parameter_coords(design)
    effects = {u_name(factor.key) for factor in design.random}
    if effects.isdisjoint(draws):
        dims = {name: dim for name, dim in dims.items() if name not in effects}
    missing = [name for name in dims if name not in draws]
    if missing:
        raise SamplingError(f"The draws lack the variables {', '.join(missing)}.")
    coords = {dim: coords[dim] for names in dims.values() for dim in names}
    arrays = {name: np.asarray(draws[name], dtype=float) for name in dims}
    arrays |= {name: array.swapaxes(-2, -1) for name, array in arrays.items() if name in effects}
    chains, per_chain = arrays[SIGMA].shape[:2]
    coords |= {"chain": np.arange(chains), "draw": np.arange(per_chain)}
    for name, array in arrays.items():
        expected = (chains, per_chain, *(len(coords[dim]) for dim in dims[name]))
        if array.shape != expected:
            raise SamplingError(f"{name} has shape {array.shape}; expected {expected}.")
    variables = {
        name: xr.Variable((*SAMPLE_DIMS, *dims[name]), array) for name, array in arrays.items()
    }
    labels = {name: xr.Variable(name, values) for name, values in coords.items()}
    return arrange(design, variables | labels, list(labels))


def effect_group(design: Design, summaries: Sequence[EffectSummary]) -> xr.Dataset:
    """Group random_effects: summaries of random effects whose draws are not stored.

    Variables ``u_g_mean``, ``u_g_sd`` (coefficient, level) and ``u_g_quantile`` (quantile,
    coefficient, level) per grouping factor with key g.
    """
    import xarray as xr

    coords: dict[str, Any] = {"quantile": np.array(PROBABILITIES)}
    variables: dict[str, Any] = {}
    for factor, summary in zip(design.random, summaries, strict=True):
        dims = (coef_dim(factor.key), level_dim(factor.key))
        coords |= {dims[0]: text_labels(factor.coefs), dims[1]: text_labels(factor.levels)}
        name = u_name(factor.key)
        variables[f"{name}_mean"] = (dims, summary.mean.T)
        variables[f"{name}_sd"] = (dims, summary.sd.T)
        variables[f"{name}_quantile"] = (("quantile", *dims), summary.quantiles.swapaxes(-2, -1))
    return xr.Dataset(variables, coords, creation_attrs() | {"sample_dims": []})


def obs_coord(design: Design) -> NDArray[Any]:
    """Labels of the rows: the index of the data where it is unique integers or text."""
    index = design.index
    if index.nlevels == 1 and index.is_unique:
        if index.inferred_type == "integer":
            return np.asarray(index, dtype=np.int64)
        if index.inferred_type == "string":
            return text_labels(index)
    return np.arange(design.n)


def data_groups(design: Design) -> dict[str, xr.Dataset]:
    """Groups observed_data and constant_data of a design."""
    import xarray as xr

    rows = {OBS_DIM: obs_coord(design)}
    observed = xr.Dataset({RESPONSE: (OBS_DIM, np.array(design.y))}, coords=rows)
    observed[RESPONSE].attrs["label"] = design.response
    constants: dict[str, Any] = {"X": ((OBS_DIM, COEF_DIM), np.array(design.X))}
    for factor in design.random:
        constants[f"{factor.key}_idx"] = (OBS_DIM, np.array(factor.codes, dtype=np.int64))
    if np.any(design.offset):
        constants["offset"] = (OBS_DIM, np.array(design.offset))
    if design.weights is not None:
        constants["weights"] = (OBS_DIM, np.array(design.weights))
    coords = {**rows, COEF_DIM: text_labels(design.coefs)}
    constant = xr.Dataset(constants, coords=coords)
    attrs = creation_attrs() | {"sample_dims": []}
    return {
        "observed_data": observed.assign_attrs(attrs),
        "constant_data": constant.assign_attrs(attrs),
    }


def root_attrs(design: Design, priors: Priors) -> dict[str, Any]:
    """Attributes that every tree of a model carries at its root."""
    return {
        "modeling_interface": "bayeslmm",
        "modeling_interface_version": own_version(),
        "python_version": platform.python_version(),
        "numpy_version": np.__version__,
        "formula": design.formula.source,
        "priors": json.dumps(priors.table().to_dict("records")),
    }


@cache
def own_version() -> str:
    """Version of this package, which is read from disk."""
    return version("bayeslmm")


def creation_attrs() -> dict[str, Any]:
    """Attributes by which the ArviZ schema records where a group comes from."""
    return {
        "created_at": datetime.now(UTC).isoformat(),
        "creation_library": "bayeslmm",
        "creation_library_version": own_version(),
        "creation_library_language": "Python",
    }
