"""Replicated responses, statistics of them against the data, and groups for ArviZ on request."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal, get_args

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from bayeslmm.data.design import Design
from bayeslmm.data.row_groups import group_names
from bayeslmm.data.row_groups import row_groups as find_groups
from bayeslmm.data.seeds import seeded
from bayeslmm.data.summarised import SummarisedDesign
from bayeslmm.estimation.model import Model
from bayeslmm.exceptions import DataError
from bayeslmm.prediction.predict import predict
from bayeslmm.prediction.rows import Target
from bayeslmm.priors.record import Priors
from bayeslmm.sampling.groups import log_likelihood, log_prior, prior_predictive
from bayeslmm.sampling.joint_draws import JointDraws
from bayeslmm.sampling.tree import RESPONSE, obs_coord, row_draws
from bayeslmm.schema import OBS_DIM
from bayeslmm.summaries.posterior_tables import has_draws, require_draws, summarise

if TYPE_CHECKING:
    import xarray as xr

Array = NDArray[np.float64]
Statistic = Callable[[Array], float]

STATISTICS: Mapping[str, Callable[[Array], Array]] = {
    "mean": lambda y: y.mean(axis=-1),
    "sd": lambda y: _sd(y),
    "min": lambda y: y.min(axis=-1),
    "max": lambda y: y.max(axis=-1),
    "median": lambda y: np.median(y, axis=-1),
}


def _sd(y: Array) -> Array:
    """Standard deviation along the last axis; NaN of a single value."""
    if y.shape[-1] < 2:
        return np.full(y.shape[:-1], np.nan)
    return np.asarray(y.std(axis=-1, ddof=1))


def predictive_dataset(
    design: Design, joint: JointDraws, target: Target, rng: np.random.Generator
) -> xr.Dataset:
    """Group posterior_predictive: replicated responses at the rows of the model."""
    prediction = predict(design, joint, None, target=target, kind="response", rng=rng)
    values = prediction.draws().reshape(*joint.shape, design.n)
    dataset = row_draws(RESPONSE, values, {OBS_DIM: obs_coord(design)}, design)
    dataset[RESPONSE].attrs["target"] = target
    return dataset


def predictive_check(
    design: Design,
    joint: JointDraws,
    statistic: str | Statistic | Sequence[str | Statistic],
    by: Any,
    target: Target,
    prob: float | None,
    random_seed: int | np.random.Generator | None,
) -> pd.DataFrame:
    """Statistics of the data beside those of responses simulated once from joint draws."""
    single = isinstance(statistic, str) or callable(statistic)
    statistics: list[Any] = [statistic] if single else list(statistic)  # type: ignore[arg-type]
    row_groups(design, by)
    for one in statistics:
        check_statistic(one)
    rng = seeded(random_seed)
    prediction = predict(design, joint, None, target=target, kind="response", rng=rng)
    replicated = prediction.draws()
    tables = [check_table(design, replicated, one, by, prob) for one in statistics]
    if single or by is None:
        return pd.concat(tables)
    return pd.concat(tables, keys=[_name(one) for one in statistics], names=["check"])


def check_table(
    design: Design,
    replicated: Array,
    statistic: str | Statistic,
    by: Any,
    prob: float | None,
) -> pd.DataFrame:
    """A statistic of the data beside its distribution over replicated responses.

    Parameters
    ----------
    design : Design
        The design, whose response is the data.
    replicated : ndarray (S, n)
        Replicated responses.
    statistic : str or callable
        A name in `STATISTICS`, or a function of a vector.
    by : str or array-like, optional
        Variable or grouping factor by whose levels the statistic is computed, or one value per row.
    prob : float, optional
        Probability of the intervals.

    Returns
    -------
    pandas.DataFrame
        One row, or one per level: n, observed, mean, sd, median and interval of the replicates,
        and p_value, the probability that a replicate is at least as large (ties count half).
    """
    function = _function(statistic)
    groups = row_groups(design, by)
    observed = np.array([function(design.y[rows]) for rows in groups.values()], dtype=float)
    parts = [slice(None)] if by is None else list(groups.values())
    columns = [function(replicated[:, rows]) for rows in parts]
    draws = np.column_stack(columns)
    if by is None:
        index = pd.Index([_name(statistic)], name="check")
    else:
        name = by if isinstance(by, str) else getattr(by, "name", None)
        index = pd.Index(list(groups), name=name or "group")
    table = summarise(draws, index, prob)
    table.insert(0, "n", [len(rows) for rows in groups.values()])
    table.insert(1, "observed", observed)
    above = (draws > observed).mean(axis=0) + 0.5 * (draws == observed).mean(axis=0)
    table["p_value"] = np.where(np.isfinite(observed), above, np.nan)
    return table


def row_groups(design: Design, by: Any) -> dict[Any, NDArray[np.intp]]:
    """Rows by the levels of a grouping factor or a variable; all rows without one.

    Parameters
    ----------
    design : Design
        The design.
    by : str or array-like or None
        A grouping factor or a variable of the formula, or one value per row of the data.

    Raises
    ------
    DataError
        If the model has no such grouping factor or variable, or the values are not one per row.
    """
    if by is None:
        return {"all": np.arange(design.n)}
    if not isinstance(by, str):
        return _rows_of(*pd.factorize(_row_values(design, by), sort=True))
    groups = find_groups(design, by)
    if groups is None:
        raise DataError(
            f"by={by!r} is no variable of the model; it has {', '.join(group_names(design))}. "
            "To group by another one, pass its values, one per row of the data."
        )
    return _rows_of(groups.codes, groups.values)


def _row_values(design: Design, by: Any) -> pd.Series:
    """Values of the rows of the model, given with or without those of the rows it dropped."""
    values = by.reset_index(drop=True) if isinstance(by, pd.Series) else pd.Series(list(by))
    if len(values) == design.n + len(design.dropped):
        values = values.drop(design.dropped)
    if len(values) != design.n:
        raise DataError(f"by= has {len(values)} values, but the model has {design.n} rows.")
    if values.isna().any():
        raise DataError(f"by= is missing in {values.isna().sum()} rows of the model.")
    return values


def _rows_of(codes: NDArray[np.intp], labels: pd.Index) -> dict[Any, NDArray[np.intp]]:
    parts = np.split(np.argsort(codes, kind="stable"), np.cumsum(np.bincount(codes))[:-1])
    return dict(zip(labels, parts, strict=True))


def _name(statistic: str | Statistic) -> str:
    if isinstance(statistic, str):
        return statistic
    name = str(getattr(statistic, "__name__", ""))
    return name if name.isidentifier() else "statistic"


def check_statistic(statistic: str | Statistic) -> None:
    """Raise ValueError for the name of a statistic that there is not."""
    if not callable(statistic) and statistic not in STATISTICS:
        allowed = ", ".join(map(repr, STATISTICS))
        raise ValueError(f"statistic={statistic!r}: one of {allowed} or a function is expected.")


def _function(statistic: str | Statistic) -> Callable[[Array], Array]:
    check_statistic(statistic)
    if isinstance(statistic, str):
        return STATISTICS[statistic]
    return lambda y: np.apply_along_axis(statistic, -1, y)


# --- groups of arviz's schema that a posterior has on request -----------------------

Group = Literal["log_likelihood", "log_prior", "posterior_predictive", "prior", "prior_predictive"]
"""Groups that are computed on request."""

_log = logging.getLogger(__name__)


def further_groups(
    model: Model,
    data: xr.DataTree,
    joint: JointDraws,
    groups: Literal["all"] | Group | Iterable[Group],
    rng: np.random.Generator,
) -> dict[str, xr.Dataset]:
    """Groups asked for that draws do not have: see :meth:`bayeslmm.Posterior.to_arviz`.

    Parameters
    ----------
    model : Model
        The model.
    data : xarray.DataTree
        Its draws.
    joint : JointDraws
        The same, with random effects.
    groups : "all" or str or iterable of str
        Which to have.
    rng : numpy.random.Generator
        For the predictive groups and the prior.
    """
    wanted = _possible(model, data) if groups == "all" else _checked(groups)
    wanted = [name for name in wanted if name not in data.children]
    found: dict[str, xr.Dataset] = {}
    if "log_likelihood" in wanted:
        found["log_likelihood"] = log_likelihood_group(data, model.design)
    if "log_prior" in wanted:
        found["log_prior"] = log_prior(data, model.priors)
    if "posterior_predictive" in wanted:
        predictive = predictive_dataset(model.design, joint, "conditional", rng)
        found["posterior_predictive"] = predictive
    if {"prior", "prior_predictive"} & set(wanted):
        prior = prior_groups(model.design, model.priors, random_seed=rng)
        found |= {name: prior[name] for name in wanted if name in prior}
    return found


def log_likelihood_group(data: xr.DataTree, design: Design) -> xr.Dataset:
    """Group log_likelihood: pointwise, given the random effects, whose draws it needs."""
    require_draws(data, design)
    return log_likelihood(data, design)


def prior_groups(
    design: Design,
    priors: Priors,
    draws: int = 500,
    random_seed: int | np.random.Generator | None = None,
) -> dict[str, xr.Dataset]:
    """Groups prior and prior_predictive."""
    tree = prior_predictive(design, priors, draws, random_seed)
    names = [name for name in ("prior", "prior_predictive") if name in tree.children]
    return {name: tree[name].to_dataset() for name in names}


def _possible(model: Model, data: xr.DataTree) -> list[str]:
    """Groups that a posterior can have; says which not."""
    missing = {}
    if not has_draws(data, model.design):
        missing["log_likelihood"] = "draws of the random effects are not stored"
    if improper := model.priors.improper():
        reason = f"flat priors cannot be drawn from ({', '.join(improper)})"
        missing |= {"prior": reason, "prior_predictive": reason}
    if isinstance(model.design, SummarisedDesign):
        reason = "the model keeps sums over rows, and not the rows"
        rows = ("log_likelihood", "posterior_predictive", "prior_predictive")
        missing = dict.fromkeys(rows, reason) | missing
    for name, reason in missing.items():
        if name not in data.children:
            _log.warning("The group %s is left out: %s", name, reason)
    return [name for name in get_args(Group) if name not in missing]


def _checked(groups: Any) -> list[str]:
    names = [groups] if isinstance(groups, str) else list(groups)
    if unknown := [name for name in names if name not in get_args(Group)]:
        known = ", ".join(map(repr, get_args(Group)))
        raise ValueError(f"groups={unknown!r}: 'all' or any of {known} are expected.")
    return names
