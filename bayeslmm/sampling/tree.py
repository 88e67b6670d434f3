"""Draws as an xarray.DataTree that follows the ArviZ schema, the same for every method.

ArviZ stacks the dimensions of all variables in the order in which they first appear, but labels
each variable by its own order. The two agree, whichever variables are chosen in whatever order,
where every variable has the dimensions that it shares before those that it has alone: so ``u_g`` is
(coefficient, level). It takes every data variable for something to be estimated: so correlation
matrices, whose diagonals are constant, are coordinates, and the correlations of pairs are
variables.
"""

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

from bayeslmm.covariance.coordinates import Points, WorkingPoints
from bayeslmm.covariance.kinds import structure_of
from bayeslmm.data.design import Design, RandomFactor
from bayeslmm.data.summarised import SummarisedDesign
from bayeslmm.exceptions import SamplingError
from bayeslmm.likelihood.batch import Reduced
from bayeslmm.likelihood.draws import draw_random, normal_draws
from bayeslmm.likelihood.elimination import Plan
from bayeslmm.likelihood.log_posterior import Reduce, beta_prior, fixed_effects_at
from bayeslmm.priors.families import Fixed
from bayeslmm.priors.record import Priors
from bayeslmm.schema import (
    BETA,
    BETA_SIGMA,
    COEF_DIM,
    COR_RESIDUAL,
    NU,
    OBS_DIM,
    OCCASION_DIM,
    PAIR_DIM,
    POWER_DIM,
    POWER_RESIDUAL,
    SAMPLE_DIMS,
    SIGMA,
    SIGMA_COEF_DIM,
    STRATUM_DIM,
    coef_bis_dim,
    coef_dim,
    cor_name,
    corr_name,
    effect_dim,
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
    factors = all_factors(design)
    dims: dict[str, tuple[str, ...]] = {BETA: (COEF_DIM,)}
    dims |= {u_name(f.key): (own_dim(f), level_dim(f.key)) for f in factors}
    dims |= {sd_name(f.key): (coef_dim(f.key),) for f in factors}
    dims |= {
        cor_name(f.key): (coef_dim(f.key), coef_bis_dim(f.key)) for f in factors if f.n_coefs > 1
    }
    return dims | _residual_dims(design)


def all_factors(design: Design) -> tuple[RandomFactor, ...]:
    """Grouping factors of the linear predictor, then those of the log residual scale."""
    return (*design.random, *(() if design.scale_rows is None else design.scale_rows.random))


def _residual_dims(design: Design) -> dict[str, tuple[str, ...]]:
    """Public variables of the residuals with their dimensions."""
    spec = design.spec.residual
    if spec is None:
        return _scale_dims(design)
    structure = spec.structure
    dims: dict[str, tuple[str, ...]] = {SIGMA: (spec.dim,) if len(structure.scales) > 1 else ()}
    if structure.powers:
        dims[POWER_RESIDUAL] = (POWER_DIM,)
    if structure.n_cors:
        dims[COR_RESIDUAL] = (PAIR_DIM,) if structure.n_cors > 1 else ()
    return dims


def _scale_dims(design: Design) -> dict[str, tuple[str, ...]]:
    """Public variables of independent residuals but random effects in their scale."""
    dims: dict[str, tuple[str, ...]] = {SIGMA: ()}
    if design.spec.scale is not None:
        dims = {BETA_SIGMA: (SIGMA_COEF_DIM,)}
    if design.spec.family == "student":
        dims[NU] = ()
    return dims


def parameter_coords(design: Design) -> dict[str, NDArray[Any]]:
    """Coordinates of these dimensions."""
    coords: dict[str, NDArray[Any]] = {COEF_DIM: text_labels(design.coefs)}
    for factor in all_factors(design):
        coords[coef_dim(factor.key)] = text_labels(factor.coefs)
        coords[own_dim(factor)] = text_labels(factor.own_coefs)
        coords[level_dim(factor.key)] = text_labels(factor.levels)
        if factor.n_coefs > 1:
            coords[coef_bis_dim(factor.key)] = text_labels(factor.coefs)
    structure = design.spec.residual_structure
    labels = {STRATUM_DIM: structure.scales, OCCASION_DIM: structure.scales}
    labels |= {POWER_DIM: structure.powers, PAIR_DIM: structure.cors}
    labels |= {SIGMA_COEF_DIM: () if design.spec.scale is None else design.spec.scale.coefs}
    wanted = {dim for dims in _residual_dims(design).values() for dim in dims}
    return coords | {dim: text_labels(labels[dim]) for dim in labels if dim in wanted}


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
    factors = all_factors(design)
    for factor in factors:
        name = cor_name(factor.key)
        if name in laid:
            matrices[name] = _exact_correlations(laid.pop(name))
            laid |= _pair_correlations(factor, matrices[name])
    makers = (u_name, sd_name, corr_name)
    order = [BETA, *(make(f.key) for make in makers for f in factors)]
    order += list(_residual_dims(design))
    others = [name for name in given if name not in {*order, *matrices, *coords}]
    labels = {
        pair_dim(f.key): xr.Variable(pair_dim(f.key), _pair_labels(f))
        for f in factors
        if corr_name(f.key) in laid
    }
    for factor in factors:
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
    """Draws (chain, draw, J, k) of the random effects of each grouping factor.

    Zero for coefficients that a level does not have, those of other strata.
    """
    return [f.spread(level_first(f, dataset[u_name(f.key)]).to_numpy()) for f in design.random]


def own_dim(factor: RandomFactor) -> str:
    """Dimension of the coefficients that one level has."""
    return effect_dim(factor.key) if factor.spec.divided else coef_dim(factor.key)


def level_first(factor: RandomFactor, u: xr.DataArray) -> xr.DataArray:
    """Random effects with the coefficients of a level along the last axis."""
    return u.transpose(..., level_dim(factor.key), own_dim(factor))


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


def complete(
    design: Design,
    priors: Priors,
    plan: Plan,
    reduce: Reduce,
    x: Array,
    rng: np.random.Generator,
    *,
    random_effects: bool = True,
) -> dict[str, Array]:
    """Public variables at unconstrained coordinates, with one exact draw of (beta, u) each.

    Parameters
    ----------
    design, priors : Design, Priors
        The model.
    plan : Plan
        Its cross-products.
    reduce : callable
        Eliminates the random effects.
    x : ndarray (S, d)
        Unconstrained coordinates.
    rng : numpy.random.Generator
        Source of randomness.
    random_effects : bool
        Whether u is drawn.

    Returns
    -------
    dict of str to ndarray (S, ...)
    """
    points = priors.coordinates.points(x)
    reduced = None if priors.beta_sampled else reduce(x)
    beta = draw_beta(priors, plan, reduced, points, rng)
    result = covariance_variables(design, priors.coordinates.to_user(points)) | {BETA: beta}
    if random_effects:
        result |= effect_variables(design, draw_random(plan, points, beta, rng))
    return result


def draw_beta(
    priors: Priors,
    plan: Plan,
    reduced: Reduced | None,
    points: WorkingPoints,
    rng: np.random.Generator,
) -> Array:
    """Fixed effects (S, p) at each point: those sampled, or one exact draw where it is reduced."""
    if reduced is None:
        return points.beta
    noise = normal_draws(rng, plan.products.n_fixed, len(points.sigma))
    return fixed_effects_at(plan, beta_prior(priors), reduced, points.sigma, noise)


def effect_variables(design: Design, effects: Sequence[Array]) -> dict[str, Array]:
    """Public variables of the random effects, one array per grouping factor."""
    pairs = zip(design.random, effects, strict=True)
    return {u_name(factor.key): factor.own(u) for factor, u in pairs}


def as_chains(variables: Mapping[str, Array], chains: int, draws: int) -> dict[str, Array]:
    """Arrays (chain * draw, ...) as (chain, draw, ...)."""
    return {k: v.reshape(chains, draws, *v.shape[1:]) for k, v in variables.items()}


def covariance_variables(design: Design, points: Points) -> dict[str, Array]:
    """Public variables that are functions of the covariance parameters."""
    own = dict(zip((SIGMA, POWER_RESIDUAL, COR_RESIDUAL), points.natural, strict=True))
    scale = points.scale
    if scale is not None:
        own[BETA_SIGMA] = scale.gamma
        if scale.nu is not None:
            own[NU] = scale.nu[:, None]
    dims = _residual_dims(design)
    result = {name: own[name] if dims[name] else own[name][:, 0] for name in dims}
    sds_of, chols_of = points.sds, points.chols
    if scale is not None:
        sds_of, chols_of = (*sds_of, *scale.sds), (*chols_of, *scale.chols)
        extra = all_factors(design)[len(design.random) :]
        result |= {u_name(f.key): u for f, u in zip(extra, scale.effects, strict=True)}
    for factor, sds, chols in zip(all_factors(design), sds_of, chols_of, strict=True):
        result[sd_name(factor.key)] = sds
        if factor.n_coefs > 1:
            result[cor_name(factor.key)] = chols @ chols.transpose(0, 2, 1)
    return result


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
        ``cor_g`` (two or more coefficients) and ``u_g`` (chain, draw, level, own coefficient),
        which may be left out together.
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
    group_attrs = {**draw_attrs(), **inference}
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
    design: Design, priors: Priors, draws: Mapping[str, ArrayLike], response: Array
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
    groups = {
        "prior": parameter_dataset(design, draws).assign_attrs(draw_attrs()),
        "prior_predictive": row_draws(RESPONSE, response, {OBS_DIM: obs_coord(design)}, design),
        **data_groups(design),
    }
    return assemble(groups, {**root_attrs(design, priors), "method": "prior"})


def prior_of_sums(design: Design, priors: Priors, draws: Mapping[str, ArrayLike]) -> xr.DataTree:
    """The same without responses, which take rows."""
    dataset = parameter_dataset(design, draws).assign_attrs(draw_attrs())
    return assemble({"prior": dataset}, {**root_attrs(design, priors), "method": "prior"})


def row_draws(name: str, values: Array, coords: Mapping[str, Any], design: Design) -> xr.Dataset:
    """Draws (chain, draw, n) of one variable at rows, whose coordinate is the first of `coords`."""
    import xarray as xr

    rows, steps = next(iter(coords)), zip(SAMPLE_DIMS, values.shape, strict=False)
    coords = {dim: np.arange(size) for dim, size in steps} | dict(coords)
    dataset = xr.Dataset({name: ((*SAMPLE_DIMS, rows), values)}, coords, draw_attrs())
    dataset[name].attrs["label"] = design.response
    return dataset


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
    effects = {u_name(factor.key) for factor in all_factors(design)}
    missing = [name for name in dims if name not in draws]
    if missing:
        raise SamplingError(f"The draws lack the variables {', '.join(missing)}.")
    coords = {dim: coords[dim] for names in dims.values() for dim in names}
    arrays = {name: np.asarray(draws[name], dtype=float) for name in dims}
    arrays |= {name: array.swapaxes(-2, -1) for name, array in arrays.items() if name in effects}
    chains, per_chain = arrays[BETA].shape[:2]
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
    """Groups observed_data and constant_data of a design; none where it does not keep its rows."""
    import xarray as xr

    if isinstance(design, SummarisedDesign):
        return {}

    rows = {OBS_DIM: obs_coord(design)}
    observed = xr.Dataset({RESPONSE: (OBS_DIM, np.array(design.y))}, coords=rows)
    observed[RESPONSE].attrs["label"] = design.response
    constants: dict[str, Any] = {"X": ((OBS_DIM, COEF_DIM), np.array(design.X))}
    for factor in design.random:
        for m, member in enumerate(factor.members):
            key = f"{factor.key}_{m + 1}" if factor.pooled else factor.key
            constants[f"{key}_idx"] = (OBS_DIM, np.array(member.codes, dtype=np.int64))
            if member.weights is not None:
                constants[f"{key}_weight"] = (OBS_DIM, np.array(member.weights))
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
        **({FIXED: held_variables(design, priors)} if priors.held else {}),
    }


FIXED = "fixed"
"""Attribute with the variables of which some or all entries are known."""


def held_variables(design: Design, priors: Priors) -> list[str]:
    """Names of the variables of which some or all entries are known."""
    pairs = zip(design.random, priors.sd, priors.cor, strict=True)
    own = priors.residuals
    records: dict[str, Sequence[object]] = {SIGMA: own.sd, POWER_RESIDUAL: own.power}
    records[COR_RESIDUAL] = own.cor
    for factor, sds, cors in pairs:
        records |= {sd_name(factor.key): sds, corr_name(factor.key): cors}
    return [name for name, row in records.items() if any(isinstance(one, Fixed) for one in row)]


@cache
def own_version() -> str:
    """Version of this package, which is read from disk."""
    return version("bayeslmm")


def draw_attrs() -> dict[str, Any]:
    """Attributes of a group of draws."""
    return creation_attrs() | {"sample_dims": list(SAMPLE_DIMS)}


def creation_attrs() -> dict[str, Any]:
    """Attributes by which the ArviZ schema records where a group comes from."""
    return {
        "created_at": datetime.now(UTC).isoformat(),
        "creation_library": "bayeslmm",
        "creation_library_version": own_version(),
        "creation_library_language": "Python",
    }
