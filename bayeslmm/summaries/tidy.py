"""Tidy tables with broom.mixed's columns, for estimates and posteriors alike.

Columns: effect ("fixed", "ran_pars", "ran_vals" or "ran_coefs"), group, level, term, estimate,
std_error, conf_low, conf_high. Terms of covariance parameters are ``sd__Intercept``,
``cor__Intercept.Days`` and, with group "Residual", ``sd__Observation``.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal, get_args

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from scipy.special import ndtri

from bayeslmm.data.design import Design, RandomFactor
from bayeslmm.estimation.effects import coefficient_frames
from bayeslmm.estimation.estimate import Fit
from bayeslmm.sampling.tree import effect_arrays
from bayeslmm.schema import BETA
from bayeslmm.summaries.estimate_tables import mode_arrays, mode_sds, parameter_table
from bayeslmm.summaries.parameters import KINDS, Kind
from bayeslmm.summaries.posterior_tables import (
    as_estimates,
    has_draws,
    interval,
    interval_defaults,
    mean_arrays,
    require_draws,
    sd_arrays,
    stored_interval,
)
from bayeslmm.summaries.posterior_tables import parameter_table as draws_table

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
    if kinds := _kinds(chosen):
        parts.append(_broom(parameter_table(fit, design, level, kinds)))
    if {"ran_vals", "ran_coefs"} & set(chosen):
        modes = mode_arrays(fit)
    if "ran_vals" in chosen:
        margin = ndtri(0.5 + level / 2.0)
        for factor, mode, sd in zip(design.random, modes, mode_sds(fit), strict=True):
            numbers = {
                "estimate": mode,
                "std_error": sd,
                "conf_low": mode - margin * sd,
                "conf_high": mode + margin * sd,
            }
            parts.append(_level_rows(factor, "ran_vals", factor.coefs, numbers))
    if "ran_coefs" in chosen:
        frames = coefficient_frames(design, fit.beta, modes)
        for factor in design.random:
            frame = frames[factor.name]
            numbers = {"estimate": frame.to_numpy()}
            parts.append(_level_rows(factor, "ran_coefs", list(frame), numbers))
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
    parts = []
    if kinds := _kinds(chosen):
        table = draws_table(data["posterior"].to_dataset(), design, prob, kind, kinds=kinds)
        parts.append(_broom(as_estimates(table)))
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
        return _stored_rows(data, design, prob, kind)
    parts = []
    dataset = data["posterior"].to_dataset()
    for factor, u in zip(design.random, effect_arrays(design, dataset), strict=True):
        u = u.reshape(-1, *u.shape[2:])  # (S, J, k)
        if "ran_vals" in chosen:
            numbers = _statistics(u, prob, kind)
            parts.append(_level_rows(factor, "ran_vals", factor.coefs, numbers))
        if "ran_coefs" in chosen:
            beta = dataset[BETA].to_numpy().reshape(len(u), -1)
            labels, totals = _coefficient_draws(design, factor.coefs, beta, u)
            numbers = _statistics(totals, prob, kind)
            parts.append(_level_rows(factor, "ran_coefs", labels, numbers))
    return parts


def _stored_rows(data: xr.DataTree, design: Design, prob: float, kind: str) -> list[pd.DataFrame]:
    """Rows of random effects of which only summaries are stored."""
    parts = []
    moments = zip(mean_arrays(data, design), sd_arrays(data, design), strict=True)
    for factor, (mean, sd) in zip(design.random, moments, strict=True):
        lower, upper = stored_interval(data, factor, prob, kind)
        numbers = {"estimate": mean, "std_error": sd, "conf_low": lower, "conf_high": upper}
        parts.append(_level_rows(factor, "ran_vals", factor.coefs, numbers))
    return parts


def check_effects(effects: str | Iterable[str]) -> tuple[str, ...]:
    """Names of effects as a tuple; refuses anything else."""
    effects = (effects,) if isinstance(effects, str) else tuple(effects)
    unknown = [name for name in effects if name not in EFFECTS]
    if unknown:
        raise ValueError(
            f"effects={unknown!r}: one or several of {', '.join(map(repr, EFFECTS))} are expected."
        )
    return effects


def _kinds(effects: Sequence[str]) -> tuple[Kind, ...]:
    """Kinds of parameters that effects ask for."""
    fixed: tuple[Kind, ...] = ("beta",) if "fixed" in effects else ()
    return (*fixed, *KINDS[1:]) if "ran_pars" in effects else fixed


def _broom(table: pd.DataFrame) -> pd.DataFrame:
    """A table of parameters with effect, group and term as broom.mixed names them."""

    def names(kind: str, group: str | None, *coefs: str | None) -> tuple[str, str | None, Any]:
        if kind == "beta":
            return "fixed", None, coefs[0]
        if kind == "sigma":
            return "ran_pars", "Residual", "sd__Observation"
        return "ran_pars", group, f"{kind}__{'.'.join(filter(None, coefs))}"

    columns = (table[name] for name in ("kind", "group", "coef", "coef_2"))
    rows = [names(*row) for row in zip(*columns, strict=True)]
    found = pd.DataFrame(rows, columns=["effect", "group", "term"])
    numbers = table.drop(columns=["kind", "group", "coef", "coef_2"]).reset_index(drop=True)
    return pd.concat([found, numbers], axis=1)


def _level_rows(
    factor: RandomFactor, effect: str, labels: Sequence[str], numbers: Mapping[str, Array]
) -> pd.DataFrame:
    """A row per level and coefficient, from numbers (J, k)."""
    names = {
        "effect": effect,
        "group": factor.name,
        "level": np.repeat(np.asarray(factor.levels), len(labels)),
        "term": np.tile(np.asarray(labels, dtype=object), factor.n_levels),
    }
    return pd.DataFrame({**names, **{name: values.ravel() for name, values in numbers.items()}})


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


def _statistics(draws: Array, prob: float, kind: str) -> dict[str, Array]:
    """Summaries (J, k) of draws (S, J, k)."""
    lower, upper = interval(draws, prob, kind)
    return {
        "estimate": draws.mean(axis=0),
        "std_error": draws.std(axis=0, ddof=1),
        "conf_low": lower,
        "conf_high": upper,
    }
