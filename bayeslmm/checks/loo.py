"""Leave-one-out and leave-one-group-out cross-validation without refits."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Callable
from dataclasses import fields
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import xarray as xr
from arviz_stats import utils
from numpy.typing import NDArray
from scipy.special import logsumexp
from scipy.stats import norm

from bayeslmm.checks.integrated import (
    LeaveOut,
    affordable,
    case_groups,
    leave_out,
    packed_cases,
)
from bayeslmm.checks.resampled import RESAMPLE_K, Resampler, removed
from bayeslmm.data.design import Design
from bayeslmm.data.packed import Packed
from bayeslmm.data.row_tables import streams
from bayeslmm.data.second_pass import SOME_GROUPS
from bayeslmm.estimation.executor import Executor, Tasks, require_executor, results
from bayeslmm.estimation.model import Model
from bayeslmm.exceptions import DataError, SamplingError
from bayeslmm.sampling.groups import log_likelihood
from bayeslmm.sampling.joint_draws import JointDraws
from bayeslmm.sampling.pareto import MAX_PARETO_K, log_sums, smooth_columns, smooth_weights
from bayeslmm.sampling.tree import RESPONSE, SAMPLE_DIMS, obs_coord, with_groups
from bayeslmm.schema import OBS_DIM, level_dim
from bayeslmm.summaries.parameters import whole_number
from bayeslmm.summaries.posterior_tables import require_draws

if TYPE_CHECKING:
    from arviz_stats import ELPDData

Array = NDArray[np.float64]
Indices = NDArray[np.intp]

_log = logging.getLogger(__name__)

MOST_RESAMPLED = 50
"""Most rows or groups whose posterior is sampled."""


def posterior_loo(
    model: Model,
    data: xr.DataTree,
    joint: JointDraws,
    by: str | None = None,
    *,
    conditional: bool = False,
    draws: int | None = None,
    executor: Executor | None = None,
    progressbar: bool = False,
) -> ELPDData:
    """Cross-validation of a posterior: see :meth:`bayeslmm.Posterior.loo`."""
    require_executor(executor)
    reason = model.design.spec.conditional
    if reason is not None and not conditional:
        conditional = _without_effects(model.design, by)
        if not conditional:
            raise DataError(
                f"loo() integrates the random effects out, which {reason} does not allow. "
                "loo(conditional=True) scores rows given draws of the random effects, as brms's "
                "loo does, and arviz.compare takes such scores; levels left out one at a time need "
                "refits."
            )
    pack = None
    if by is not None and streams(model.design):
        pack = packed_cases(model.design, by)
        model = model.with_rows(pack.design)
    model = model.gathered("Cross-validation of all rows at once", SOME_GROUPS)
    if not conditional:
        joint, log_ratio = scored_draws(data, joint, draws)
        return integrated_loo(
            model,
            joint,
            by,
            log_ratio=log_ratio,
            pack=pack,
            executor=executor,
            progressbar=progressbar,
        )
    if by is not None or draws is not None:
        raise ValueError(
            "conditional=True scores single rows by all draws: leave by= and draws= out."
        )
    require_draws(data, model.design)
    tree = with_groups(data, log_likelihood=log_likelihood(data, model.design))
    return conditional_loo(tree, integrated=reason is None)


def _without_effects(design: Design, by: str | None) -> bool:
    """Whether rows can only be scored given the parameters, as there are no random effects."""
    scale = design.spec.scale
    return by is None and not design.random and (scale is None or not scale.random)


def integrated_loo(
    model: Model,
    joint: JointDraws,
    by: str | None = None,
    *,
    log_ratio: Array | None = None,
    pack: Packed | None = None,
    executor: Executor | None = None,
    progressbar: bool = False,
) -> ELPDData:
    """Expected log predictive density of rows, or of groups of rows, each left out.

    Parameters
    ----------
    model : Model
        The model.
    joint : JointDraws
        S draws of its posterior, or of an approximation.
    by : str, optional
        Grouping factor or variable whose levels are left out one by one; rows by default.
    log_ratio : ndarray (S,), optional
        Log density of the posterior over that of the approximation, up to a constant.
    pack : Packed, optional
        What the rows of the model stand for, where these are packed.
    executor : Executor, optional
        Where rows or groups with poor weights are left out anew.
    progressbar : bool
        Whether to show one.

    Returns
    -------
    arviz_stats.ELPDData
        With pointwise values. `p` is the difference to the log predictive density in the sample.
    """
    codes, labels, dim = group_codes(model.design, by)
    joint, log_ratio = _affordable(model, joint, log_ratio, codes, len(labels))
    scores = leave_out(model, joint, codes, pack=pack, progressbar=progressbar)
    result = _psis(scores, joint, log_ratio, labels, dim)
    poor = np.flatnonzero(np.asarray(result.pareto_k) > RESAMPLE_K)
    if len(poor):
        resampler = Resampler(model, joint, np.random.default_rng(0))
        _resample(result, resampler, poor, codes, pack, executor, progressbar=progressbar)
    _report(np.asarray(result.pareto_k), result.good_k, by)
    report_unknown(int(np.isnan(result.pareto_k).sum()), result.n_data_points, joint.size)
    if by is None:
        return result
    return of_levels(result, by)


def conditional_loo(tree: xr.DataTree, *, integrated: bool = True) -> ELPDData:
    """Score rows given draws of the random effects, with the warning that deserves.

    `integrated` says whether there are scores that integrate over them.
    """
    from arviz_stats import loo

    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Estimated shape parameter of Pareto")
        result: ELPDData = loo(tree, pointwise=True, var_name=RESPONSE)
    bad = int(np.sum(np.asarray(result.pareto_k) > result.good_k))
    if bad:
        _log.warning(
            "Conditional scores: each row is predicted from random effects that have seen it, so "
            "importance sampling has to undo that; %d of %d rows have a Pareto k above %.2f. %s",
            bad,
            result.n_data_points,
            result.good_k,
            "loo() integrates the random effects out."
            if integrated
            else "The scores of these rows are too good: refit without them to know.",
        )
    return result


def group_codes(design: Design, by: str | None) -> tuple[Indices | None, NDArray[Any], str]:
    """Group of each row (None where each is its own), labels of the groups, name of a dimension."""
    if by is None:
        return None, obs_coord(design), OBS_DIM
    groups = case_groups(design, by)
    return groups.codes, groups.factor.levels.astype(str), level_dim(groups.key)


def loo_pit_series(
    model: Model,
    data: xr.DataTree,
    joint: JointDraws,
    draws: int | None = None,
    *,
    progressbar: bool = False,
) -> pd.Series:
    """Probability of a value below each row's in its leave-one-out predictive distribution."""
    design = model.design
    joint, log_ratio = scored_draws(data, joint, draws)
    joint, log_ratio = _affordable(model, joint, log_ratio, None, design.n)
    scores = leave_out(model, joint, moments=True, progressbar=progressbar)
    weights, k = loo_weights(scores.log_density, log_ratio)
    _report(k, min(1.0 - 1.0 / np.log10(max(joint.size, 2)), MAX_PARETO_K), None)
    assert scores.mean is not None and scores.sd is not None
    below = norm.cdf((design.y - scores.mean) / scores.sd)
    return pd.Series(np.sum(weights * below, axis=0), index=design.index, name="loo_pit")


def loo_weights(log_density: Array, log_ratio: Array | None = None) -> tuple[Array, Array]:
    """Pareto-smoothed weights (S, m) of the posterior without each row or group, and their k."""
    ratios = -log_density if log_ratio is None else log_ratio[:, None] - log_density
    log_weights, k = smooth_columns(ratios)
    return np.exp(log_weights), k


def _affordable(
    model: Model,
    joint: JointDraws,
    log_ratio: Array | None,
    codes: Indices | None,
    scores: int,
) -> tuple[JointDraws, Array | None]:
    size = affordable(model.design, model.system, joint.size, scores, codes)
    return thin_to(joint, log_ratio, size)


def thin_to(
    joint: JointDraws, log_ratio: Array | None, size: int
) -> tuple[JointDraws, Array | None]:
    """As many draws as are affordable, and a line that says so."""
    if size < joint.size:
        _log.info("Leave-out densities use %d of %d draws, equally spaced.", size, joint.size)
    return thin(joint, log_ratio, size)


def scored_draws(
    data: xr.DataTree, joint: JointDraws, draws: Any
) -> tuple[JointDraws, Array | None]:
    """At most so many draws, and their log importance ratios where they are approximate.

    Raises
    ------
    ValueError
        If `draws` is no positive whole number.
    """
    wanted = joint.size if draws is None else whole_number(draws, "draws")
    log_ratio = None
    if data.attrs["method"] == "laplace":
        log_ratio = data["sample_stats"]["log_weight"].to_numpy().ravel()
    return thin(joint, log_ratio, wanted)


def thin(joint: JointDraws, log_ratio: Array | None, size: int) -> tuple[JointDraws, Array | None]:
    """At most `size` draws, equally spaced, and their log ratios."""
    if log_ratio is not None and size < joint.size:
        log_ratio = log_ratio[np.linspace(0, joint.size - 1, size).round().astype(np.intp)]
    return joint.thin(size), log_ratio


def _psis(
    scores: LeaveOut,
    joint: JointDraws,
    log_ratio: Array | None,
    labels: NDArray[Any],
    dim: str,
) -> ELPDData:
    smoother = Smoother(joint, log_ratio)
    elpd, k, p, log_weights = smoother.smooth(scores)
    chains, draws = joint.shape
    coords = {SAMPLE_DIMS[0]: np.arange(chains), SAMPLE_DIMS[1]: np.arange(draws), dim: labels}
    return Scores(
        elpd=float(elpd.sum()),
        se=float(np.sqrt(len(elpd) * np.var(elpd))),
        p=float(np.sum(p)),
        n_samples=joint.size,
        n_data_points=len(elpd),
        scale="log",
        warning=bool(np.any(k > smoother.good_k)),
        good_k=smoother.good_k,
        elpd_i=xr.DataArray(elpd, {dim: labels}, [dim]),
        pareto_k=xr.DataArray(k, {dim: labels}, [dim]),
        log_weights=xr.DataArray(
            log_weights.reshape(chains, draws, -1), coords, [*SAMPLE_DIMS, dim]
        ),
    )


class Smoother:
    """Pareto smoothing of the densities of rows or groups, as many at a time as one likes.

    Parameters
    ----------
    joint : JointDraws
        S draws.
    log_ratio : ndarray (S,) or None
        Log density of the posterior over that of the draws, up to a constant.
    """

    def __init__(self, joint: JointDraws, log_ratio: Array | None) -> None:
        self.log_ratio = log_ratio
        self.r_eff = 1.0 if log_ratio is not None else _relative_efficiency(joint)
        smoothed = np.zeros(joint.size) if log_ratio is None else smooth_weights(log_ratio)[0]
        self.smoothed, self.total = smoothed, logsumexp(smoothed)
        size = joint.size
        self.good_k = min(1.0 - 1.0 / np.log10(size), MAX_PARETO_K) if size > 1 else 0.0

    def smooth(self, scores: LeaveOut) -> tuple[Array, Array, Array, Array]:
        """Scores, Pareto k, effective numbers of parameters (m,) and log weights (S, m)."""
        values = scores.log_density
        ratios = -values if self.log_ratio is None else self.log_ratio[:, None] - values
        log_weights, k = smooth_columns(ratios, self.r_eff)
        elpd = log_sums(log_weights, values)
        in_sample = log_sums(scores.in_sample, self.smoothed[:, None]) - self.total
        return elpd, k, in_sample - elpd, log_weights


def _relative_efficiency(joint: JointDraws) -> float:
    """Mean effective over actual number of draws of the covariance parameters, as ArviZ has it."""
    chains, draws = joint.shape
    if chains == 1:
        return 1.0
    from arviz_stats.base import array_stats

    parameters = np.column_stack(
        [joint.points.sigma, *joint.points.sds, joint.points.shapes]
    ).reshape(chains, draws, -1)
    return float(np.mean(array_stats.ess(parameters, 0, 1, method="mean"))) / joint.size


def _resample(
    result: ELPDData,
    resampler: Resampler,
    poor: Indices,
    codes: Indices | None,
    pack: Packed | None,
    executor: Executor | None,
    *,
    progressbar: bool,
) -> None:
    """Replace scores with a large Pareto k by those from the evidence without the rows."""
    if not resampler.affordable:
        return
    elpd, k = result.elpd_i.copy(deep=True), result.pareto_k.copy(deep=True)
    worst = poor[np.argsort(-k.to_numpy()[poor], kind="stable")][:MOST_RESAMPLED]
    try:
        _ = resampler.log_evidence  # once, for all scores
    except SamplingError:
        worst = worst[:0]
    labels = elpd[elpd.dims[0]].to_numpy()
    tasks = Tasks(
        make=_scorer,
        parts=(resampler, codes, pack),
        items=worst.tolist(),
        size=len(worst),
        title="Leave-out anew",
        label=lambda number: f"The score of {labels[worst[number]]}",
    )
    replaced = 0
    with results(tasks, executor, progressbar) as scores:
        for place, score in zip(worst, scores, strict=True):
            if score is not None:
                elpd[place], k[place] = score, 0.0  # as ArviZ's reloo does
                replaced += 1
    result.p += float((result.elpd_i - elpd).sum())
    result.elpd_i, result.pareto_k = elpd, k
    result.elpd = float(elpd.sum())
    result.se = float(np.sqrt(len(elpd) * np.var(elpd.to_numpy())))
    result["log_weights"] = None  # those of the replaced rows are of other draws
    result.warning = bool((k > result.good_k).any())
    log_replaced(replaced, len(elpd))


def log_replaced(replaced: int, count: int) -> None:
    """Say how many scores were sampled anew."""
    _log.info("%d of %d scores come from the posterior without the rows.", replaced, count)


def _scorer(
    resampler: Resampler, codes: Indices | None, pack: Packed | None
) -> Callable[[int], float | None]:
    """Work of resampling: the score of one row or group, whose random stream is its own."""

    def score(place: int) -> float | None:
        rows = np.array([place]) if codes is None else np.flatnonzero(codes == place)
        out = rows if pack is None else removed(pack, rows)
        return resampler.score(out, np.random.default_rng([0, place]))

    return score


def _report(k: Array, good_k: float, by: str | None) -> None:
    report_poor(int(np.sum(k > good_k)), len(k), good_k, by)


def report_poor(bad: int, count: int, good_k: float, by: str | None = None) -> None:
    """Warn of scores with a large Pareto k."""
    if bad:
        _log.warning(
            "%d of %d %s have a Pareto k above %.2f: leaving them out changes the posterior of the "
            "covariance parameters so much that their scores are unreliable. Use more draws, or "
            "refit without them.",
            bad,
            count,
            "rows" if by is None else f"levels of {by}",
            good_k,
        )


def report_unknown(unknown: int, count: int, draws: int) -> None:
    """Warn where no score has a Pareto k."""
    if unknown == count:
        _log.warning(UNKNOWN_K, draws)


# --- scores of levels left out, which print as what they are ---


# ArviZ has a class of its own for leave-one-out scores since version 1.3.
_OfArviZ: Any = getattr(utils, "ELPDDataLOO", utils.ELPDData)

UNKNOWN_K = (
    "Pareto k cannot be estimated from so few draws (%d): nothing tells whether these scores "
    "can be relied on. Use more draws."
)


class Scores(_OfArviZ):
    """ArviZ's scores, whose table of Pareto k is left out where none could be estimated."""

    @property
    def unknown_k(self) -> bool:
        """Whether there are scores, and none has a Pareto k."""
        return self.pareto_k is not None and bool(np.isnan(self.pareto_k).all())

    def __str__(self) -> str:
        """Print as ArviZ does, or say that no Pareto k is known."""
        if not self.unknown_k:
            return str(super().__str__())
        with warnings.catch_warnings():  # of percentages of no counts
            warnings.simplefilter("ignore", RuntimeWarning)
            text = str(super().__str__())
        return f"{text.partition('Pareto k diagnostic')[0]}{UNKNOWN_K % self.n_samples}"

    def __repr__(self) -> str:
        return str(self)


class LevelScores(Scores):
    """ArviZ's scores where each is of all rows of a level.

    Attributes
    ----------
    by : str
        What the levels are of.
    """

    by: str

    def __str__(self) -> str:
        """Print the scores as ArviZ does, with levels in place of observations."""
        count, text = self.n_data_points, str(super().__str__())
        return text.replace(f"{count} observations", f"{count} levels of {self.by}", 1)

    def __repr__(self) -> str:
        return str(self)


def of_levels(scores: Any, by: str) -> LevelScores:
    """The scores as those of the levels of `by`."""
    result = LevelScores(**{field.name: getattr(scores, field.name) for field in fields(scores)})
    result.by = by
    return result
