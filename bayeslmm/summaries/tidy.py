"""Tidy tables with broom.mixed's columns, for estimates and posteriors alike.

Columns: effect ("fixed", "ran_pars", "ran_vals" or "ran_coefs"), group, level, term, estimate,
std_error, conf_low, conf_high. Terms of covariance parameters are ``sd__Intercept``,
``cor__Intercept.Days`` and, with group "Residual", ``sd__Observation``.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Literal, get_args

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from scipy.special import ndtri

from bayeslmm.data.design import Design, RandomFactor
from bayeslmm.estimation.effects import coefficient_frames
from bayeslmm.estimation.estimate import Fit
from bayeslmm.sampling.variables import effect_arrays
from bayeslmm.schema import BETA
from bayeslmm.summaries.estimate_tables import covariance_table, fixed_table, mode_arrays, mode_sds
from bayeslmm.summaries.parameters import Parameter, covariance_parameters, fixed_parameters
from bayeslmm.summaries.posterior_tables import interval, interval_defaults, parameter_matrix
from bayeslmm.summaries.random_tables import (
    has_draws,
    mean_arrays,
    require_draws,
    sd_arrays,
    stored_interval,
)

if TYPE_CHECKING:
    import xarray as xr

Array = NDArray[np.float64]
Effects = Literal["fixed", "ran_pars", "ran_vals", "ran_coefs"]
EFFECTS: tuple[Effects, ...] = get_args(Effects)

COLUMNS = ["effect", "group", "level", "term", "estimate", "std_error", "conf_low", "conf_high"]


def tidy_fit(
    fit: Fit, design: Design, effects: Effects | Sequence[Effects], level: float
) -> pd.DataFrame:
    """Tidy table of a point estimate; fixed effects also have df, statistic and p_value."""
    chosen = check_effects(effects)
    parts = []
    if "fixed" in chosen:
        fixed = fixed_table(fit, design, level).reset_index()
        parts.append(fixed.assign(effect="fixed"))
    if "ran_pars" in chosen:
        table = covariance_table(fit, design, level)
        names = pd.DataFrame([_broom(p) for p in covariance_parameters(design)], index=table.index)
        numbers = table[["estimate", "std_error", "conf_low", "conf_high"]]
        parts.append(pd.concat([names, numbers], axis=1))
    if "ran_vals" in chosen or "ran_coefs" in chosen:
        modes, sds = mode_arrays(fit), mode_sds(fit)
        z = ndtri(0.5 + level / 2.0)
        values = _level_rows(design, "ran_vals", [f.coefs for f in design.random], modes)
        values["std_error"] = _ravel(sds)
        values["conf_low"] = values["estimate"] - z * values["std_error"]
        values["conf_high"] = values["estimate"] + z * values["std_error"]
        if "ran_vals" in chosen:
            parts.append(values)
        if "ran_coefs" in chosen:
            frames = coefficient_frames(design, fit.beta, modes)
            parts.append(_coefficient_rows(design, frames))
    extra = ["df", "statistic", "p_value"] if "fixed" in chosen else []
    return pd.concat(parts, ignore_index=True).reindex(columns=COLUMNS + extra)


def tidy_posterior(
    data: xr.DataTree,
    design: Design,
    effects: Effects | Sequence[Effects],
    prob: float | None,
) -> pd.DataFrame:
    """Tidy table of posterior draws: mean, standard deviation and interval."""
    prob, kind = interval_defaults(prob)
    chosen = check_effects(effects)
    dataset = data["posterior"].to_dataset()
    parts = []
    rows: list[Parameter] = []
    if "fixed" in chosen:
        rows += fixed_parameters(design)
    if "ran_pars" in chosen:
        rows += covariance_parameters(design)
    if rows:
        names = pd.DataFrame([_broom(row) for row in rows])
        draws = parameter_matrix(dataset, design, rows)
        parts.append(pd.concat([names, _statistics(draws, prob, kind)], axis=1))
    if {"ran_vals", "ran_coefs"} & set(chosen):
        parts += _random_parts(data, design, chosen, prob, kind)
    return pd.concat(parts, ignore_index=True).reindex(columns=COLUMNS)


def _random_parts(
    data: xr.DataTree, design: Design, chosen: Sequence[str], prob: float, kind: str
) -> list[pd.DataFrame]:
    """Rows of the random effects and of coefficients by level."""
    if "ran_coefs" in chosen:
        require_draws(data, design)
    if not has_draws(data, design):
        return [_stored_rows(data, design, prob, kind)]
    parts = []
    dataset = data["posterior"].to_dataset()
    for factor, u in zip(design.random, effect_arrays(design, dataset), strict=True):
        u = u.reshape(-1, *u.shape[2:])
        if "ran_vals" in chosen:
            parts.append(_draw_rows(factor, "ran_vals", factor.coefs, u, prob, kind))
        if "ran_coefs" in chosen:
            beta = dataset[BETA].to_numpy().reshape(len(u), -1)
            labels, totals = _coefficient_draws(design, factor.coefs, beta, u)
            parts.append(_draw_rows(factor, "ran_coefs", labels, totals, prob, kind))
    return parts


def _stored_rows(data: xr.DataTree, design: Design, prob: float, kind: str) -> pd.DataFrame:
    """Rows of random effects of which only summaries are stored."""
    labels = [factor.coefs for factor in design.random]
    rows = _level_rows(design, "ran_vals", labels, mean_arrays(data, design))
    bounds = [stored_interval(data, factor, prob, kind) for factor in design.random]
    return rows.assign(
        std_error=_ravel(sd_arrays(data, design)),
        conf_low=_ravel([lower for lower, _ in bounds]),
        conf_high=_ravel([upper for _, upper in bounds]),
    )


def check_effects(effects: str | Iterable[str]) -> tuple[str, ...]:
    """Names of effects as a tuple; refuses anything else."""
    effects = (effects,) if isinstance(effects, str) else tuple(effects)
    unknown = [name for name in effects if name not in EFFECTS]
    if unknown:
        raise ValueError(
            f"effects={unknown!r}: one or several of {', '.join(map(repr, EFFECTS))} are expected."
        )
    return effects


def _broom(parameter: Parameter) -> dict[str, str | None]:
    """Effect, group and term of a parameter as broom.mixed names them."""
    if parameter.kind == "beta":
        return {"effect": "fixed", "group": None, "term": parameter.terms[0]}
    if parameter.kind == "sigma":
        return {"effect": "ran_pars", "group": "Residual", "term": "sd__Observation"}
    term = f"{parameter.kind}__{'.'.join(parameter.terms)}"
    return {"effect": "ran_pars", "group": parameter.group, "term": term}


def _level_rows(
    design: Design, effect: str, labels: Sequence[Sequence[str]], values: Sequence[Array]
) -> pd.DataFrame:
    frames = [
        pd.DataFrame(
            {
                "effect": effect,
                "group": factor.name,
                "level": np.repeat(np.asarray(factor.levels), len(names)),
                "term": np.tile(np.asarray(names, dtype=object), factor.n_levels),
            }
        )
        for factor, names in zip(design.random, labels, strict=True)
    ]
    return pd.concat(frames, ignore_index=True).assign(estimate=_ravel(values))


def _coefficient_rows(design: Design, frames: dict[str, pd.DataFrame]) -> pd.DataFrame:
    labels = [list(frames[f.name].columns) for f in design.random]
    values = [frames[f.name].to_numpy() for f in design.random]
    return _level_rows(design, "ran_coefs", labels, values)


def _coefficient_draws(
    design: Design, coefs: Sequence[str], beta: Array, u: Array
) -> tuple[list[str], Array]:
    """Fixed plus random effects by level, on draws: (S, J, columns)."""
    labels = [*design.coefs, *(c for c in coefs if c not in design.coefs)]
    totals = np.zeros((*u.shape[:2], len(labels)))
    totals[:, :, : len(design.coefs)] = beta[:, None, :]
    for position, coef in enumerate(coefs):
        totals[:, :, labels.index(coef)] += u[:, :, position]
    return labels, totals


def _draw_rows(
    factor: RandomFactor, effect: str, labels: Sequence[str], draws: Array, prob: float, kind: str
) -> pd.DataFrame:
    levels = np.asarray(factor.levels)
    names = pd.DataFrame(
        {
            "effect": effect,
            "group": factor.name,
            "level": np.repeat(levels, len(labels)),
            "term": np.tile(np.asarray(labels, dtype=object), len(levels)),
        }
    )
    return pd.concat([names, _statistics(draws.reshape(len(draws), -1), prob, kind)], axis=1)


def _statistics(draws: Array, prob: float, kind: str) -> pd.DataFrame:
    lower, upper = interval(draws, prob, kind)
    return pd.DataFrame(
        {
            "estimate": draws.mean(axis=0),
            "std_error": draws.std(axis=0, ddof=1),
            "conf_low": lower,
            "conf_high": upper,
        }
    )


def _ravel(values: Sequence[Array]) -> Array:
    return np.concatenate([value.ravel() for value in values])
