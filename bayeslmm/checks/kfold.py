"""K-fold cross-validation: the posterior is sampled anew without the rows of each fold.

A refit samples the few covariance parameters given the other rows. The rows of the fold then have a
normal distribution in closed form, with the fixed effects and the random effects, those of new
levels among them, integrated out.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Literal, get_args

import numpy as np
import pandas as pd
import xarray as xr
from arviz_stats import utils
from numpy.typing import ArrayLike, NDArray
from scipy.special import logsumexp

from bayeslmm.checks.integrated import (
    affordable,
    case_groups,
    check_determined,
    check_finite,
    predicted_densities,
    structured_predictions,
)
from bayeslmm.checks.loo import Smoother, scored_draws, thin
from bayeslmm.checks.resampled import Resampler
from bayeslmm.data.design import Design
from bayeslmm.data.second_pass import SOME_GROUPS
from bayeslmm.data.seeds import seeded
from bayeslmm.estimation.executor import Executor, Tasks, require_executor, results
from bayeslmm.estimation.model import Model
from bayeslmm.exceptions import BayesLMMError, DataError, SamplingError, check_choice
from bayeslmm.sampling.collapsed import fit_collapsed
from bayeslmm.sampling.joint_draws import JointDraws, posterior_draws
from bayeslmm.sampling.pareto import log_sums
from bayeslmm.sampling.tree import obs_coord
from bayeslmm.schema import OBS_DIM, level_dim
from bayeslmm.summaries.parameters import whole_number

if TYPE_CHECKING:
    from arviz_stats import ELPDData

Array = NDArray[np.float64]
Indices = NDArray[np.intp]
Joint = Literal["obs", "group", "fold"]

CHAINS = 4
"""Chains of a refit by the collapsed sampler."""

DRAWS = {"obs": 1000, "group": 4000, "fold": 4000}
"""Draws by default: densities of many rows together differ more from draw to draw."""

STRUCTURED_DRAWS = 400
"""The same where residuals have a structure, when each is dear."""

FROM = 4000
"""Most posterior draws that refits start from."""

# ArviZ has a class of its own for K-fold scores since version 1.3.
Scores: Any = getattr(utils, "ELPDDataLOOKFold", utils.ELPDData)


class FoldScores(Scores):
    """ArviZ's K-fold scores, with the folds.

    Attributes
    ----------
    folds : pandas.Series
        Fold of each row, from 1.
    joint : {"obs", "group", "fold"}
        What is scored together.
    """

    folds: pd.Series
    joint: Joint


@dataclass(frozen=True, slots=True, eq=False, kw_only=True)
class Folds:
    """How rows are left out and scored.

    Attributes
    ----------
    codes : ndarray of int (n,)
        Fold of each row, from 0 without gaps.
    items : ndarray of int (n,)
        Number of the item that a row is scored with.
    labels : ndarray (m,)
        Labels of the items.
    dim : str
        Name of their dimension.
    joint : {"obs", "group", "fold"}
    """

    codes: Indices
    items: Indices
    labels: NDArray[Any]
    dim: str
    joint: Joint

    @property
    def count(self) -> int:
        """Number of folds."""
        return int(self.codes.max()) + 1

    @property
    def groups(self) -> Indices | None:
        """Items of rows where some have several; None where each row is its own."""
        return None if self.joint == "obs" else self.items


def posterior_kfold(
    model: Model,
    data: xr.DataTree,
    joint_draws: JointDraws,
    K: int | None = 10,
    by: str | None = None,
    *,
    stratify: str | None = None,
    folds: ArrayLike | None = None,
    joint: Joint = "obs",
    draws: int | None = None,
    random_seed: int | np.random.Generator | None = None,
    executor: Executor | None = None,
    progressbar: bool = False,
) -> ELPDData:
    """K-fold cross-validation of a posterior: see :meth:`bayeslmm.Posterior.kfold`."""
    require_executor(executor)
    wanted = None if draws is None else whole_number(draws, "draws", least=2)
    check_choice(joint, get_args(Joint), "joint")
    if reason := model.design.spec.conditional:
        raise DataError(
            f"kfold() integrates the random effects out in its refits, which {reason} does not "
            "allow. loo(conditional=True) scores rows given draws of the random effects."
        )
    model = model.gathered("K-fold cross-validation", SOME_GROUPS)
    rng = seeded(random_seed)
    plan = make_folds(model.design, K, by, stratify, folds, joint, rng)
    check_determined(model.design, model.priors, plan.codes)
    size = wanted or _default_draws(model.design, joint)
    size = affordable(model.design, model.system, size, len(plan.labels), plan.groups)
    start = replace(joint_draws.thin(FROM), effects=_no_effects)
    refits = Refits(model, start, plan, size, int(rng.integers(2**31)))
    tasks = Tasks(
        make=_scorer,
        parts=(refits,),
        items=range(plan.count),
        size=plan.count,
        title="K-fold",
        label=lambda number: f"Fold {number + 1}",
    )
    elpd = np.empty(len(plan.labels))
    with results(tasks, executor, progressbar) as scores:
        for fold, score in enumerate(scores):
            elpd[np.unique(plan.items[plan.codes == fold])] = score
    check_finite(elpd[None])
    return _scores(elpd, _in_sample(model, data, joint_draws, plan, size), plan, model.design, size)


def _default_draws(design: Design, joint: Joint) -> int:
    return STRUCTURED_DRAWS if design.spec.structured else DRAWS[joint]


# --- folds -----------------------------------------------------------------------------


def make_folds(
    design: Design,
    K: int | None,
    by: str | None,
    stratify: str | None,
    folds: ArrayLike | None,
    joint: Joint,
    rng: np.random.Generator,
) -> Folds:
    """Folds of rows: by chance, by levels, within levels, or as given.

    Raises
    ------
    DataError
        If there is no such grouping factor or variable.
    ValueError
        If there are fewer rows or levels than folds, or options contradict each other.
    """
    given = [name for name, value in (("by", by), ("stratify", stratify)) if value is not None]
    if len(given) == 2:
        raise ValueError("by= keeps levels whole and stratify= divides each: give one of them.")
    if joint == "group" and by is None:
        raise ValueError("joint='group' scores all rows of a level together: give by=.")
    groups = None if by is None else case_groups(design, by)
    if folds is not None:
        codes = _given_folds(design, folds, None if groups is None else groups.codes, by)
    elif groups is not None:
        levels = len(groups.factor.levels)
        deal = _dealt(levels, _number(K, levels, f"levels of {by}"), rng)
        codes = deal[groups.codes]
    elif stratify is not None:
        strata = case_groups(design, stratify, "stratify").codes
        codes = _stratified(strata, _number(K, design.n, "rows"), rng)
    else:
        codes = _dealt(design.n, _number(K, design.n, "rows"), rng)
    if joint == "obs":
        items, labels, dim = np.arange(design.n), obs_coord(design), OBS_DIM
    elif joint == "group" and groups is not None:
        items, labels = groups.codes, groups.factor.levels.astype(str)
        dim = level_dim(groups.key)
    else:
        items, labels, dim = codes, np.arange(1, codes.max() + 2), "fold"
    return Folds(codes=codes, items=items, labels=labels, dim=dim, joint=joint)


def _number(K: int | None, most: int, what: str) -> int:
    if K is None:
        return most
    count = whole_number(K, "K", least=2)
    if count > most:
        raise ValueError(f"K={count}: there are only {most} {what}; give at most as many folds.")
    return count


def _dealt(size: int, K: int, rng: np.random.Generator) -> Indices:
    """Folds of equal size, up to one, by chance."""
    codes = np.empty(size, dtype=np.intp)
    codes[rng.permutation(size)] = np.arange(size) % K
    return codes


def _stratified(strata: Indices, K: int, rng: np.random.Generator) -> Indices:
    """Folds among which the rows of each stratum are dealt out, one stratum after the other."""
    order = rng.permutation(len(strata))
    order = order[np.argsort(strata[order], kind="stable")]
    codes = np.empty(len(strata), dtype=np.intp)
    codes[order] = np.arange(len(strata)) % K
    return codes


def _given_folds(
    design: Design, folds: ArrayLike, groups: Indices | None, by: str | None
) -> Indices:
    """Folds of a user, one per row of the model or of the data before rows were dropped."""
    values = pd.Series(np.asarray(folds).ravel())
    if len(values) == design.n + len(design.dropped):
        values = values.drop(design.dropped)
    if len(values) != design.n:
        raise ValueError(
            f"folds= has {len(values)} values, but the model has {design.n} rows: give the fold of "
            "each."
        )
    if values.isna().any():
        raise ValueError("folds= has missing values: give the fold of every row.")
    codes, found = pd.factorize(values, sort=True)
    if len(found) < 2:
        raise ValueError("folds= has one fold; at least two are needed.")
    if groups is not None and len(np.unique(np.column_stack([groups, codes]), axis=0)) > len(
        np.unique(groups)
    ):
        raise ValueError(f"folds= divides levels of {by}: leave by= out, or keep levels whole.")
    return np.asarray(codes, dtype=np.intp)


# --- refits ----------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, eq=False)
class Refits:
    """All that the refit of a fold needs.

    Attributes
    ----------
    model : Model
        The model of all rows.
    joint : JointDraws
        Draws of its posterior, from which refits start.
    folds : Folds
    size : int
        Draws of the covariance parameters that scores are averaged over.
    seed : int
    """

    model: Model
    joint: JointDraws
    folds: Folds
    size: int
    seed: int


def _no_effects(wanted: Sequence[Indices]) -> list[Array]:
    raise NotImplementedError("random effects are integrated out")


def _scorer(refits: Refits) -> Callable[[int], Array]:
    """Work of a fold: log predictive densities of its items."""
    resampler = Resampler(refits.model, refits.joint, np.random.default_rng(refits.seed))

    def score(fold: int) -> Array:
        rng = np.random.default_rng([refits.seed, fold])
        out = np.flatnonzero(refits.folds.codes == fold)
        try:
            joint, log_weights = _refit(refits, resampler, out, rng)
        except BayesLMMError as error:
            raise type(error)(f"Fold {fold + 1} cannot be left out: {error}") from error
        values = _densities(refits, resampler, joint, out)
        return log_sums(values, log_weights[:, None]) - logsumexp(log_weights)

    return score


def _refit(
    refits: Refits, resampler: Resampler, out: Indices, rng: np.random.Generator
) -> tuple[JointDraws, Array]:
    """Draws of the covariance parameters without some rows, and their log weights (S,)."""
    if resampler.affordable:
        try:
            points, log_weights = resampler.weighted(out, refits.size, rng)
        except SamplingError:
            pass  # the chains of the collapsed sampler manage what importance weights do not
        else:
            shape = (1, len(points.sigma))
            drawn = replace(refits.joint, shape=shape, beta=points.beta, points=points)
            return drawn, log_weights
    rest = _without(refits.model, resampler, out)
    per_chain = -(-refits.size // CHAINS)
    tree = fit_collapsed(
        rest, draws=per_chain, chains=CHAINS, random_seed=rng, store_u=False, progressbar=False
    )
    posterior = tree["posterior"].to_dataset()
    drawn = posterior_draws(rest.design, lambda: rest.system, posterior)
    return drawn, np.zeros(drawn.size)


def _without(model: Model, resampler: Resampler, out: Indices) -> Model:
    """The model of the other rows, with all levels and the priors that it has."""
    kept = np.ones(model.design.n, dtype=bool)
    kept[out] = False
    rest = Model(model.design.take(np.flatnonzero(kept)), model.priors)
    rest.__dict__["system"] = resampler.plan_without(out)
    return rest


def _densities(refits: Refits, resampler: Resampler, joint: JointDraws, out: Indices) -> Array:
    """Log densities (S, m) of the items of a fold, given the other rows and each draw."""
    items, folds = np.unique(refits.folds.items[out], return_inverse=True)
    members = None
    if refits.folds.joint != "obs":
        members = [np.flatnonzero(folds == item) for item in range(len(items))]
    model = refits.model
    if model.design.spec.structured:
        return structured_predictions(model, joint, out, members)
    rest = _without(model, resampler, out)
    return predicted_densities(rest, model.design.take(out), joint, members)


# --- what comes out --------------------------------------------------------------------


def _in_sample(
    model: Model, data: xr.DataTree, joint: JointDraws, folds: Folds, size: int
) -> Array:
    """Log densities (m,) of replicates of the items given all rows, at their values."""
    joint, log_ratio = thin(*scored_draws(data, joint, None), size)
    members: Sequence[Indices] | None = None
    if folds.joint != "obs":
        members = [np.flatnonzero(folds.items == item) for item in range(len(folds.labels))]
    if model.design.spec.structured:
        values = structured_predictions(model, joint, None, members)
    else:
        values = predicted_densities(model, model.design, joint, members)
    smoother = Smoother(joint, log_ratio)
    return log_sums(values, smoother.smoothed[:, None]) - smoother.total


def _scores(elpd: Array, in_sample: Array, folds: Folds, design: Design, size: int) -> ELPDData:
    p = in_sample - elpd
    values = {"elpd_i": elpd, "p_kfold_i": p}
    arrays: dict[str, Any] = {
        name: xr.DataArray(value, {folds.dim: folds.labels}, [folds.dim])
        for name, value in values.items()
    }
    if Scores is utils.ELPDData:
        del arrays["p_kfold_i"]
    else:
        arrays["n_folds"] = folds.count
    result = FoldScores(
        elpd=float(elpd.sum()),
        se=float(np.sqrt(len(elpd) * np.var(elpd))),
        p=float(p.sum()),
        n_samples=size,
        n_data_points=len(elpd),
        scale="log",
        warning=False,
        good_k=None,
        **arrays,
    )
    result.folds = pd.Series(folds.codes + 1, index=design.index, name="fold")
    result.joint = folds.joint
    return result
