"""Tables of posterior draws: every quantity is computed on draws and summarised last."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from bayeslmm.data.design import Design, RandomFactor, require_random
from bayeslmm.exceptions import DataError, SamplingError
from bayeslmm.likelihood.elimination import Plan
from bayeslmm.sampling.joint_draws import draw_effects, points_of
from bayeslmm.sampling.tree import (
    EFFECT_GROUP,
    LARGEST_U,
    SAMPLE_DIMS,
    effect_arrays,
    level_first,
    own_dim,
)
from bayeslmm.schema import BETA, cor_name, level_dim, sd_name, u_name
from bayeslmm.summaries.parameters import (
    KINDS,
    TIDY,
    Effects,
    Kind,
    broom,
    check_effects,
    correlations_by_group,
    joint_parameter,
    kinds_of,
    known_labels,
    label_index,
    labelled,
    level_rows,
    marked,
    parameter_draws,
    parameter_matrix,
    parameters,
    probability,
    residual_parameters,
    sds_by_group,
    variance_frame,
)

if TYPE_CHECKING:
    import xarray as xr

SIGNED = ("beta", "cor", "power_residual", "cor_residual", "beta_sigma", "cor_sigma")
"""Kinds of parameters that may be of either sign."""

Array = NDArray[np.float64]
Indices = NDArray[np.intp]


def interval_defaults(prob: float | None = None, kind: str | None = None) -> tuple[float, str]:
    """Probability and kind ("eti" or "hdi") of intervals: ArviZ's rcParams where not given."""
    if prob is not None:
        prob = probability(prob, "prob")
    if prob is not None and kind is not None:
        return prob, kind
    from arviz_base import rcParams

    return (
        rcParams["stats.ci_prob"] if prob is None else prob,
        rcParams["stats.ci_kind"] if kind is None else kind,
    )


def interval(draws: Array, prob: float, kind: str) -> tuple[Array, Array]:
    """Interval bounds along the first axis of draws (S, ...)."""
    if kind == "eti":
        tail = (1.0 - prob) / 2.0
        lower, upper = np.quantile(draws, [tail, 1.0 - tail], axis=0)
        return lower, upper
    ordered = np.sort(draws, axis=0)
    inside = int(np.floor(prob * len(ordered)))
    widths = ordered[inside:] - ordered[: len(ordered) - inside]
    start = np.argmin(widths, axis=0)[None]
    lower = np.take_along_axis(ordered, start, axis=0)[0]
    upper = np.take_along_axis(ordered, start + inside, axis=0)[0]
    return lower, upper


def summarise(
    draws: Array, index: pd.Index | None, prob: float | None = None, kind: str | None = None
) -> pd.DataFrame:
    """Mean, standard deviation, median and interval of draws (S, m), a row per column."""
    prob, kind = interval_defaults(prob, kind)
    lower, upper = interval(draws, prob, kind)
    return pd.DataFrame(
        {
            "mean": draws.mean(axis=0),
            "sd": draws.std(axis=0, ddof=1),
            "median": np.median(draws, axis=0),
            f"{kind}{100 * prob:g}_lb": lower,
            f"{kind}{100 * prob:g}_ub": upper,
        },
        index=index,
    )


def parameter_table(
    dataset: xr.Dataset,
    design: Design,
    prob: float | None = None,
    kind: str | None = None,
    *,
    kinds: Sequence[Kind] = KINDS,
) -> pd.DataFrame:
    """Summaries of the draws of the parameters, or of some kinds of them.

    Returns
    -------
    pandas.DataFrame
        As :func:`~bayeslmm.summaries.parameters.labelled`, with the columns of `summarise`.
    """
    rows = [p for p in parameters(design) if p.kind in kinds]
    draws = parameter_matrix(dataset, design, rows)
    return labelled(rows, summarise(draws, pd.RangeIndex(len(rows)), prob, kind))


def as_estimates(table: pd.DataFrame) -> pd.DataFrame:
    """Summaries of draws under the names that an estimate has for their like."""
    low, high = table.columns[-2:]
    names = {"mean": "estimate", "sd": "std_error", low: "conf_low", high: "conf_high"}
    return table.rename(columns=names)


def summary_table(dataset: xr.Dataset, design: Design, prob: float | None = None) -> pd.DataFrame:
    """All parameters but the random effects, by label, with ArviZ's statistics and diagnostics."""
    import arviz_stats as az
    import xarray as xr

    if prob is not None:
        prob = probability(prob, "prob")
    rows, known = parameters(design), known_labels(design)
    drawn = [parameter_draws(dataset, design, row) for row in rows]
    free = [i for i, row in enumerate(rows) if row.label not in known]
    table = pd.DataFrame()
    if free:  # one variable of all: ArviZ takes its time per variable
        together = np.moveaxis(np.stack([drawn[i] for i in free]), 0, -1)
        draws = xr.Dataset({"parameter": (("chain", "draw", "row"), together)})
        table = pd.DataFrame(az.summary(draws, ci_prob=prob, round_to="none"))
    table = table.set_axis(label_index([rows[i] for i in free]), axis=0)
    for i in set(range(len(rows))) - set(free):
        value = drawn[i].ravel()[0]
        table.loc[rows[i].label] = [_of_known(str(name), value) for name in table]
    return marked(table.loc[label_index(rows)], design)


def with_direction(
    table: pd.DataFrame, dataset: xr.Dataset, design: Design, wanted: bool
) -> pd.DataFrame:
    """A summary with the column `pd`, the probability of the more probable sign, if wanted.

    NaN of parameters that are positive by definition. Draws of exactly zero count half.
    """
    if not wanted:
        return table
    rows = [row for row in parameters(design) if row.kind in SIGNED]
    draws = parameter_matrix(dataset, design, rows)
    above = np.mean(draws > 0, axis=0) + 0.5 * np.mean(draws == 0, axis=0)
    found = pd.Series(np.maximum(above, 1.0 - above), index=label_index(rows))
    return table.assign(pd=found.reindex(table.index))


def _of_known(statistic: str, value: float) -> float:
    """A statistic of a known value: itself, no spread, no convergence to speak of."""
    if statistic in ("mean", "median") or statistic.startswith(("eti", "hdi")):
        return float(value)
    return 0.0 if statistic == "sd" else np.nan


def fixed_table(dataset: xr.Dataset, design: Design, prob: float | None) -> pd.DataFrame:
    """Fixed effects: mean, sd, median and interval, by coefficient."""
    draws = dataset[BETA].to_numpy()
    draws = draws.reshape(draws.shape[0] * draws.shape[1], design.p)
    return summarise(draws, pd.Index(design.coefs, name="term"), prob)


def variance_table(
    dataset: xr.Dataset,
    design: Design,
    covariances: Sequence[Array],
    prob: float | None,
) -> pd.DataFrame:
    """Variances and covariances (posterior means) beside summaries of sds and correlations."""
    points, residuals = points_of(design, dataset), []
    for p in residual_parameters(design):
        values = joint_parameter(points, p)
        spread = p.kind in ("sigma", "sd_sigma")
        residuals.append(float(np.sqrt(np.mean(values**2)) if spread else np.mean(values)))
    frame = variance_frame(design, covariances, residuals)
    table = parameter_table(dataset, design, prob, kinds=KINDS[1:])
    numbers = table.loc[:, "mean":].set_axis(frame.index, axis=0)
    return pd.concat([frame.drop(columns="sdcor"), numbers], axis=1)


def beta_mean(dataset: xr.Dataset) -> Array:
    """Posterior mean of the fixed effects (p,)."""
    return dataset[BETA].mean(("chain", "draw")).to_numpy()


def covariance_draws(dataset: xr.Dataset, design: Design) -> list[Array]:
    """Draws (S, k, k) of the covariance matrix of each grouping factor's coefficients."""
    result = []
    for factor in design.random:
        sds = _flat(dataset[sd_name(factor.key)].to_numpy())
        products = sds[:, :, None] * sds[:, None, :]
        if factor.n_coefs > 1:
            products = products * _flat(dataset[cor_name(factor.key)].to_numpy())
        result.append(products)
    return result


def sds_mean(dataset: xr.Dataset, design: Design) -> Mapping[str, pd.Series]:
    """Posterior means of the standard deviations per grouping factor."""
    draws = [_flat(dataset[sd_name(factor.key)].to_numpy()) for factor in design.random]
    return sds_by_group(design, [sds.mean(axis=0) for sds in draws])


def correlations_mean(dataset: xr.Dataset, design: Design) -> dict[str, pd.DataFrame]:
    """Posterior means of the correlation matrices per grouping factor."""
    means = [
        _flat(dataset[cor_name(f.key)].to_numpy()).mean(axis=0) if f.n_coefs > 1 else np.eye(1)
        for f in design.random
    ]
    return correlations_by_group(design, means)


def _flat(draws: Array) -> Array:
    return draws.reshape(-1, *draws.shape[2:])


# --- random effects, whether their draws are stored or only their summaries -----------


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
    """Bounds (J, m), of the coefficients that a level has, of intervals from stored quantiles.

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


def tidy_table(
    data: xr.DataTree, design: Design, effects: Effects | Sequence[Effects], prob: float | None
) -> pd.DataFrame:
    """Tidy table of posterior draws: mean, standard deviation and interval."""
    prob, kind = interval_defaults(prob)
    chosen = check_effects(effects)
    parts = []
    if kinds := kinds_of(chosen):
        table = parameter_table(data["posterior"].to_dataset(), design, prob, kind, kinds=kinds)
        parts.append(broom(as_estimates(table)))
    if "ran_coefs" in chosen:
        require_draws(data, design)
    if {"ran_vals", "ran_coefs"} & set(chosen):
        rows = _drawn_rows if has_draws(data, design) else _stored_rows
        parts += rows(data, design, chosen, prob, kind)
    parts = parts or [pd.DataFrame(columns=TIDY)]
    return pd.concat(parts, ignore_index=True).reindex(columns=TIDY)


def _drawn_rows(
    data: xr.DataTree, design: Design, chosen: Sequence[str], prob: float, kind: str
) -> Iterator[pd.DataFrame]:
    """Rows of the random effects and of coefficients by level."""
    dataset = data["posterior"].to_dataset()
    for factor, u in zip(design.random, effect_arrays(design, dataset), strict=True):
        u = _flat(u)  # (S, J, k)
        u, coefs = factor.own(u), factor.own_coefs
        shown: dict[str, tuple[Sequence[str], Array]] = {"ran_vals": (coefs, u)}
        if "ran_coefs" in chosen:
            beta = dataset[BETA].to_numpy().reshape(len(u), -1)
            shown["ran_coefs"] = _coefficient_draws(design, coefs, beta, u)
        for effect, (labels, draws) in shown.items():
            if effect in chosen:
                table = summarise(draws.reshape(len(u), -1), None, prob, kind)
                yield level_rows(factor, effect, labels, as_estimates(table))


def _stored_rows(
    data: xr.DataTree, design: Design, chosen: Sequence[str], prob: float, kind: str
) -> Iterator[pd.DataFrame]:
    """Rows of random effects of which only summaries are stored."""
    moments = zip(mean_arrays(data, design), sd_arrays(data, design), strict=True)
    for factor, (mean, sd) in zip(design.random, moments, strict=True):
        lower, upper = stored_interval(data, factor, prob, kind)
        numbers = {"estimate": factor.own(mean), "std_error": factor.own(sd)}
        numbers |= {"conf_low": lower, "conf_high": upper}
        yield level_rows(factor, "ran_vals", factor.own_coefs, numbers)


def _coefficient_draws(
    design: Design, coefs: Sequence[str], beta: Array, u: Array
) -> tuple[Sequence[str], Array]:
    """Fixed plus random effects by level, on draws: (S, J, columns)."""
    labels = [*design.coefs, *(c for c in coefs if c not in design.coefs)]
    totals = np.zeros((*u.shape[:2], len(labels)))
    totals[:, :, : len(design.coefs)] = beta[:, None, :]
    for position, coef in enumerate(coefs):
        totals[:, :, labels.index(coef)] += u[:, :, position]
    return labels, totals


def locate_levels(
    design: Design, group: str | None, levels: Sequence[Any] | None
) -> tuple[int, Indices]:
    """Places of a grouping factor and of some of its levels.

    Raises
    ------
    DataError
        If one of them does not exist.
    """
    require_random(design, "there is no grouping factor")
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
    values = factor.own(values, positions)
    dims = (*SAMPLE_DIMS, level_dim(factor.key), own_dim(factor))
    labels = (np.array([str(factor.levels[i]) for i in positions]), np.array(factor.own_coefs))
    coords = [*(draws[dim] for dim in SAMPLE_DIMS), *labels]
    shape = (draws.sizes["chain"], draws.sizes["draw"], *values.shape[1:])
    drawn = xr.DataArray(
        values.reshape(shape),
        coords=dict(zip(dims, coords, strict=True)),
        dims=dims,
        name=u_name(factor.key),
    )
    return drawn.transpose(..., own_dim(factor), level_dim(factor.key))


def _stored(data: xr.DataTree, factor: RandomFactor, statistic: str) -> Array:
    summaries = data[EFFECT_GROUP].dataset
    values = level_first(factor, summaries[f"{u_name(factor.key)}_{statistic}"])
    return factor.spread(values.to_numpy())
