"""Random effects of a posterior, whether their draws are stored or only their summaries."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from bayeslmm.data.design import Design, RandomFactor
from bayeslmm.exceptions import DataError, SamplingError
from bayeslmm.likelihood.elimination import Plan
from bayeslmm.sampling.joint_draws import draw_effects, points_of
from bayeslmm.sampling.tree import EFFECT_GROUP, LARGEST_U, SAMPLE_DIMS
from bayeslmm.sampling.variables import effect_arrays, level_first
from bayeslmm.schema import BETA, coef_dim, level_dim, u_name

if TYPE_CHECKING:
    import xarray as xr

Array = NDArray[np.float64]
Indices = NDArray[np.intp]


def has_draws(data: xr.DataTree, design: Design) -> bool:
    """Whether draws of the random effects are stored."""
    return all(u_name(factor.key) in data["posterior"] for factor in design.random)


def require_draws(data: xr.DataTree, design: Design) -> None:
    """Raise unless draws of the random effects are stored."""
    if not has_draws(data, design):
        raise SamplingError(
            "Draws of the random effects are not stored because there are too many: draw those of "
            "chosen levels with draw_u(levels), or fit with store_u=True."
        )


def mean_arrays(data: xr.DataTree, design: Design) -> list[Array]:
    """Posterior means of the random effects (J, k) per grouping factor."""
    if not has_draws(data, design):
        return [_stored(data, f, "mean") for f in design.random]
    dataset = data["posterior"].dataset
    return [u.mean(axis=(0, 1)) for u in effect_arrays(design, dataset)]


def sd_arrays(data: xr.DataTree, design: Design) -> list[Array]:
    """Posterior standard deviations of the random effects (J, k) per grouping factor."""
    if not has_draws(data, design):
        return [_stored(data, f, "sd") for f in design.random]
    dataset = data["posterior"].dataset
    return [u.std(axis=(0, 1), ddof=1) for u in effect_arrays(design, dataset)]


def stored_interval(
    data: xr.DataTree, factor: RandomFactor, prob: float, kind: str
) -> tuple[Array, Array]:
    """Bounds (J, k) of intervals from stored quantiles.

    Raises
    ------
    SamplingError
        If the quantiles of such intervals are not stored.
    """
    quantiles = level_first(factor, data[EFFECT_GROUP].dataset[f"{u_name(factor.key)}_quantile"])
    stored = quantiles["quantile"].to_numpy()
    tail = (1.0 - prob) / 2.0
    places = [np.flatnonzero(np.isclose(stored, p)) for p in (tail, 1.0 - tail)]
    if kind != "eti" or not all(map(len, places)):
        known = ", ".join(f"{1 - 2 * p:g}" for p in stored[stored < 0.5])
        raise SamplingError(
            "Draws of the random effects are not stored, so their intervals are known only for "
            f"prob {known} and kind 'eti'; got {prob:g} and {kind!r}. Draw chosen levels with "
            "draw_u(levels), or fit with store_u=True."
        )
    lower, upper = (quantiles.to_numpy()[int(place[0])] for place in places)
    return lower, upper


def locate_levels(
    design: Design, group: str | None, levels: Sequence[Any] | None
) -> tuple[int, Indices]:
    """Places of a grouping factor and of some of its levels.

    Raises
    ------
    DataError
        If one of them does not exist.
    """
    names = [factor.name for factor in design.random]
    if group is None and len(names) > 1:
        raise DataError(f"Several grouping factors: give group=, one of {', '.join(names)}.")
    if group is not None and group not in names:
        raise DataError(f"group={group!r} is no grouping factor: they are {', '.join(names)}.")
    place = 0 if group is None else names.index(group)
    factor = design.random[place]
    if levels is None:
        return place, np.arange(factor.n_levels)
    levels = [levels] if isinstance(levels, str) else list(levels)
    if not levels:
        raise DataError(f"levels is empty: name at least one level of {factor.name}.")
    known = {str(label): position for position, label in enumerate(factor.levels)}
    if unknown := [str(label) for label in levels if str(label) not in known]:
        shown = ", ".join(unknown[:5])
        raise DataError(f"{factor.name} has no level {shown}: see fit.ranef() for its levels.")
    return place, np.array([known[str(label)] for label in levels], dtype=np.intp)


def drawn_effects(
    design: Design,
    plan: Plan,
    draws: xr.Dataset,
    group: str | None,
    levels: Sequence[Any] | None,
    rng: np.random.Generator,
) -> xr.DataArray:
    """Draws of random effects of chosen levels, labelled."""
    import xarray as xr

    place, positions = locate_levels(design, group, levels)
    size = 8 * draws.sizes["chain"] * draws.sizes["draw"] * len(positions)
    size *= design.random[place].n_coefs
    if levels is None and size > LARGEST_U:
        raise DataError(
            f"Draws of all {len(positions):,} levels would take {size / 2**30:.1f} GB: name the "
            "levels that you need."
        )
    wanted = [np.empty(0, dtype=np.intp)] * len(design.random)
    wanted[place] = positions
    size = draws.sizes["chain"] * draws.sizes["draw"]
    beta = draws[BETA].to_numpy().reshape(size, design.p)
    values = draw_effects(plan, points_of(design, draws), beta, wanted, rng)[place]
    factor = design.random[place]
    dims = (*SAMPLE_DIMS, level_dim(factor.key), coef_dim(factor.key))
    labels = (np.array([str(factor.levels[i]) for i in positions]), np.array(factor.coefs))
    coords = [*(draws[dim] for dim in SAMPLE_DIMS), *labels]
    shape = (draws.sizes["chain"], draws.sizes["draw"], *values.shape[1:])
    drawn = xr.DataArray(
        values.reshape(shape),
        coords=dict(zip(dims, coords, strict=True)),
        dims=dims,
        name=u_name(factor.key),
    )
    return drawn.transpose(..., coef_dim(factor.key), level_dim(factor.key))


def _stored(data: xr.DataTree, factor: RandomFactor, statistic: str) -> Array:
    summaries = data[EFFECT_GROUP].dataset
    return level_first(factor, summaries[f"{u_name(factor.key)}_{statistic}"]).to_numpy()
