"""Tables of posterior draws: every quantity is computed on draws and summarised last."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from bayeslmm.data.design import Design
from bayeslmm.schema import BETA, SIGMA, cor_name, sd_name
from bayeslmm.summaries.parameters import (
    Parameter,
    covariance_parameters,
    parameter_draws,
    parameters,
    probability,
)
from bayeslmm.summaries.variance import variance_frame

if TYPE_CHECKING:
    import xarray as xr

Array = NDArray[np.float64]


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
    draws: Array, index: pd.Index, prob: float | None = None, kind: str | None = None
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


def parameter_matrix(dataset: xr.Dataset, design: Design, rows: Sequence[Parameter]) -> Array:
    """Draws (S, m) of several parameters."""
    return np.column_stack([parameter_draws(dataset, design, row).ravel() for row in rows])


def summary_table(dataset: xr.Dataset, design: Design) -> pd.DataFrame:
    """All parameters but the random effects, by label, with ArviZ's statistics and diagnostics."""
    import arviz_stats as az
    import xarray as xr

    rows = parameters(design)
    draws = xr.Dataset(
        {
            f"p{i}": (("chain", "draw"), parameter_draws(dataset, design, row))
            for i, row in enumerate(rows)
        }
    )
    table = pd.DataFrame(az.summary(draws, round_to="none"))
    table.index = pd.Index([row.label for row in rows], name="parameter")
    return table


def fixed_table(dataset: xr.Dataset, design: Design, prob: float | None) -> pd.DataFrame:
    """Fixed effects: mean, sd, median and interval, by coefficient."""
    draws = dataset[BETA].to_numpy()
    draws = draws.reshape(draws.shape[0] * draws.shape[1], design.p)
    return summarise(draws, pd.Index(design.coefs, name="term"), prob)


def variance_table(
    dataset: xr.Dataset,
    design: Design,
    covariances: Sequence[Array],
    sigma_squared: float,
    prob: float | None,
) -> pd.DataFrame:
    """Variances and covariances (posterior means) beside summaries of sds and correlations."""
    frame = variance_frame(design, covariances, float(np.sqrt(sigma_squared)))
    draws = parameter_matrix(dataset, design, covariance_parameters(design))
    table = summarise(draws, frame.index, prob)
    return pd.concat([frame.drop(columns="sdcor"), table], axis=1)


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


def sigma_draws(dataset: xr.Dataset) -> Array:
    """Draws (S,) of the residual standard deviation."""
    return dataset[SIGMA].to_numpy().ravel()


def sds_mean(dataset: xr.Dataset, design: Design) -> Mapping[str, pd.Series]:
    """Posterior means of the standard deviations per grouping factor."""
    return {
        factor.name: pd.Series(
            _flat(dataset[sd_name(factor.key)].to_numpy()).mean(axis=0),
            index=list(factor.coefs),
            name="sd",
        )
        for factor in design.random
    }


def correlations_mean(dataset: xr.Dataset, design: Design) -> dict[str, pd.DataFrame]:
    """Posterior means of the correlation matrices per grouping factor."""
    result = {}
    for factor in design.random:
        labels = list(factor.coefs)
        mean = np.eye(factor.n_coefs)
        if factor.n_coefs > 1:
            mean = _flat(dataset[cor_name(factor.key)].to_numpy()).mean(axis=0)
        result[factor.name] = pd.DataFrame(mean, index=labels, columns=labels)
    return result


def _flat(draws: Array) -> Array:
    return draws.reshape(-1, *draws.shape[2:])
