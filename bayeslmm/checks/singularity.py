"""Whether random effects are negligible, dependent or at a boundary: tables and words."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from scipy.special import logsumexp

from bayeslmm.covariance.coordinates import WorkingPoints
from bayeslmm.covariance.pattern import Pattern
from bayeslmm.covariance.structure import (
    Structure,
    is_singular,
    sds_and_correlation,
    zero_sds,
)
from bayeslmm.data.design import Design, coefficient_sets, require_random
from bayeslmm.estimation.estimate import SINGULAR, Fit, points_of_fits
from bayeslmm.estimation.model import Model
from bayeslmm.estimation.residuals import mean_variance
from bayeslmm.likelihood.batch import reduce_equations
from bayeslmm.likelihood.elimination import Plan
from bayeslmm.likelihood.factorise import single_threaded
from bayeslmm.likelihood.log_posterior import log_likelihood_batch
from bayeslmm.priors.defaults import covariate_scales
from bayeslmm.priors.families import LKJ, Prior
from bayeslmm.priors.record import Priors
from bayeslmm.sampling.joint_draws import JointDraws
from bayeslmm.summaries.parameters import (
    Parameter,
    joint_parameter,
    probability,
    random_parameters,
)
from bayeslmm.summaries.posterior_tables import summarise
from bayeslmm.summaries.text import Report, listed, percent, singular_notes

Array = NDArray[np.float64]

NOTHING = "no covariance matrix of theirs can be singular"
"""What follows where there are no random effects."""


@dataclass(frozen=True, slots=True, eq=False, repr=False, kw_only=True)
class PosteriorSingularity(Report):
    """How near the covariance matrices of the random effects are to losing rank.

    Attributes
    ----------
    table : pandas.DataFrame
        A row per standard deviation and correlation: `median` (posterior), `relative` (median of
        the standard deviation per unit of spread of its covariate over the residual one: free of
        units; NaN for correlations), `probability` (posterior probability that the sd is
        negligible, or the correlation beyond `rho`), `support` (integrated likelihood at the
        boundary over its maximum), `bayes_factor` (of the boundary against the model; NaN where the
        prior is improper) and `reml` (the REML estimate).
    pca : pandas.DataFrame
        A row per grouping factor and principal component: summaries of the cumulative share of the
        variance, computed on draws.
    rank : pandas.DataFrame
        A row per grouping factor: number of coefficients, summaries of the effective rank,
        `p_deficient`, the posterior probability that the smallest component has less than 1 % of
        the variance, and `p_negligible`, that its standard deviation (of coefficients per spread
        of their covariate) is below `eps` residual standard deviations. The first compares
        components with each other: a small share of a large variance may be far from negligible.
    eps, rho : float
        The limits asked for.
    reml_singular : bool or None
        Whether the REML fit is singular; None where there is none.
    """

    table: pd.DataFrame
    pca: pd.DataFrame
    rank: pd.DataFrame
    eps: float
    rho: float
    reml_singular: bool | None

    @property
    def heading(self) -> str:
        """First line of the printed form."""
        return "Singularity of the random effects' covariance matrices (posterior)"

    @property
    def messages(self) -> tuple[str, ...]:
        """Findings in words, one per parameter that calls for it, and on REML."""
        return posterior_messages(
            self.table, self.rank, eps=self.eps, rho=self.rho, reml_singular=self.reml_singular
        )

    def _tables(self) -> Mapping[str, pd.DataFrame]:
        several = self.rank["n_coefs"].max() > 1
        tables = {"Standard deviations and correlations": self.table}
        if several:
            tables["Cumulative share of the principal components"] = self.pca
            tables["Effective rank"] = self.rank
        return tables


@dataclass(frozen=True, slots=True, eq=False, repr=False, kw_only=True)
class EstimateSingularity(Report):
    """Which covariance parameters an estimate puts at a boundary.

    Attributes
    ----------
    table : pandas.DataFrame
        A row per standard deviation and correlation: `estimate`, `relative` (free of units, as for
        posteriors), `at_boundary`.
    pca : pandas.DataFrame
        A row per grouping factor and principal component: `sd` (relative to sigma), `proportion`
        and `cumulative` share of the variance.
    singular : bool
        Whether a covariance matrix has lost rank.
    notes : tuple of str
    """

    table: pd.DataFrame
    pca: pd.DataFrame
    singular: bool
    notes: tuple[str, ...]

    @property
    def heading(self) -> str:
        """First line of the printed form."""
        return "Singularity of the random effects' covariance matrices (estimate)"

    @property
    def messages(self) -> tuple[str, ...]:
        """Which parameters are at a boundary, and what that means."""
        return self.notes or (
            "The fit is not singular: no standard deviation is estimated at zero and no "
            "covariance matrix has lost rank.",
        )

    def _tables(self) -> Mapping[str, pd.DataFrame]:
        return {
            "Standard deviations and correlations": self.table,
            "Principal components of the random effects": self.pca,
        }


def posterior_singularity(
    model: Model,
    joint: JointDraws,
    *,
    eps: float = 0.05,
    rho: float = 0.95,
    standardise: bool = True,
    prob: float | None = None,
) -> PosteriorSingularity:
    """Singularity of the covariance matrices of posterior draws.

    Parameters
    ----------
    model : Model
        The model.
    joint : JointDraws
        Its posterior draws.
    eps, rho : float
        Limits below which a relative sd is negligible and beyond which a correlation is extreme.
    standardise : bool
        Whether principal components are of coefficients per spread of their covariate.
    prob : float, optional
        Probability of the intervals.

    Returns
    -------
    PosteriorSingularity
    """
    if isinstance(eps, bool) or not np.isfinite(eps) or eps <= 0:
        raise ValueError(f"eps={eps!r}: a positive number is expected, such as 0.05.")
    rho = probability(rho, "rho")
    design, reml = model.design, model.reml_or_none()
    require_random(design, NOTHING)
    scales = [covariate_scales(factor) for factor in design.random]
    residual = np.sqrt(mean_variance(design, joint.points))
    rows = random_parameters(design)
    estimates = [np.nan] * len(rows) if reml is None else _point_values(design, reml)
    supports = [
        boundary_support(model.system, model.priors, joint, row)
        if _has_boundary(model.priors.coordinates.structures[row.factor], row)
        else None
        for row in rows
    ]
    table = pd.DataFrame(
        [
            _row(joint, row, scales, residual, eps, rho, support) | {"reml": estimate}
            for row, support, estimate in zip(rows, supports, estimates, strict=True)
        ],
        index=pd.Index([row.label for row in rows], name="parameter"),
    )
    sets = [(scales[f][own], joint.roots[f][:, own]) for f, _, own in coefficient_sets(design)]
    scaled = [_component_sds(root, scale) for scale, root in sets]
    components = scaled if standardise else [_component_sds(root, 1.0) for _, root in sets]
    shares = [_shares(sds) for sds in components]
    smallest = [sds[:, -1] / residual for sds in scaled]
    return PosteriorSingularity(
        table=table,
        pca=_pca_table(design, shares, prob),
        rank=_rank_table(design, shares, smallest, eps, prob),
        eps=float(eps),
        rho=rho,
        reml_singular=None if reml is None else reml.singular,
    )


def estimate_singularity(
    design: Design, fit: Fit, *, standardise: bool = True
) -> EstimateSingularity:
    """Singularity of an estimate: parameters at a boundary and principal components.

    Parameters
    ----------
    design : Design
        The design of the model.
    fit : Fit
        Its estimate.
    standardise : bool
        Whether principal components are of coefficients per spread of their covariate.

    Returns
    -------
    EstimateSingularity
    """
    require_random(design, NOTHING)
    rows = random_parameters(design)
    values = _point_values(design, fit)
    residual = float(np.sqrt(mean_variance(design, points_of_fits([fit]))[0]))
    records = []
    for row, value in zip(rows, values, strict=True):
        scale = covariate_scales(design.random[row.factor])[row.index[0]]
        relative = value * scale / residual if row.kind == "sd" else np.nan
        boundary = _at_boundary(fit, row, value)
        records.append({"estimate": value, "relative": relative, "at_boundary": boundary})
    index = pd.Index([row.label for row in rows], name="parameter")
    return EstimateSingularity(
        table=pd.DataFrame(records, index=index),
        pca=_point_pca(design, fit, standardise),
        singular=fit.singular,
        notes=tuple(singular_notes(fit, design)),
    )


def effective_rank(shares: Array) -> Array:
    """Effective rank (...,) of shares of variance (..., k): exp of their entropy.

    References
    ----------
    Roy, Vetterli (2007), The effective rank: a measure of effective dimensionality, EUSIPCO,
    606-610.
    """
    logs = np.log(np.where(shares > 0, shares, 1.0))
    return np.asarray(np.exp(-np.sum(shares * logs, axis=-1)))


def _point_values(design: Design, fit: Fit) -> list[float]:
    """Standard deviations and correlations, in the order of the parameters, without sigma."""
    moments = [sds_and_correlation(t) for t in fit.factors]
    return [
        float(fit.sigma * moments[row.factor][0][row.index[0]])
        if row.kind == "sd"
        else float(moments[row.factor][1][row.index])
        for row in random_parameters(design)
    ]


def _at_boundary(fit: Fit, row: Parameter, value: float) -> bool:
    """Whether an sd is zero or a correlation at an end of its range, to lme4's tolerance.

    A correlation near one is none where a covariate's origin alone makes it so.
    """
    working = np.linalg.solve(fit.plan.products.basis.random[row.factor], fit.factors[row.factor])
    if row.kind == "cor":
        low, high = _ends(fit.plan.products.structures[row.factor], row)
        near = bool((value - low) * (high - value) < SINGULAR**2)
        return near and is_singular(working, SINGULAR)
    return bool(zero_sds(working, SINGULAR)[row.index[0]])


def _has_boundary(structure: Structure, row: Parameter) -> bool:
    """Whether the parameter's boundary does not depend on other parameters."""
    return row.kind == "sd" or _block(structure, row)[1].n_cors == 1


def _block(structure: Structure, row: Parameter) -> tuple[int, Structure]:
    """Number of the block that a parameter is of, and its structure."""
    number = next(b for b, block in enumerate(structure.blocks) if row.index[0] in block)
    return number, structure.parts[number]


def _ends(structure: Structure, row: Parameter) -> tuple[float, ...]:
    """Values of a parameter at which a covariance matrix is singular."""
    if row.kind == "sd":
        return (0.0,)
    part = _block(structure, row)[1]
    return (part.lowest if isinstance(part, Pattern) else -1.0, 1.0)


def _row(
    joint: JointDraws,
    row: Parameter,
    scales: Sequence[Array],
    residual: Array,
    eps: float,
    rho: float,
    support: BoundarySupport | None,
) -> dict[str, float]:
    draws = joint_parameter(joint, row)
    if row.kind == "sd":
        relative = draws * scales[row.factor][row.index[0]] / residual
        middle, probability = float(np.median(relative)), float(np.mean(relative < eps))
    else:
        middle, probability = np.nan, float(np.mean(np.abs(draws) > rho))
    return {
        "median": float(np.median(draws)),
        "relative": middle,
        "probability": probability,
        "support": np.nan if support is None else support.relative,
        "bayes_factor": np.nan if support is None else support.bayes_factor,
    }


def _component_sds(root: Array, scale: Array | float) -> Array:
    """Standard deviations (..., m) of the principal components, largest first, of rows (m, k)."""
    return np.linalg.svd(root * np.reshape(scale, (-1, 1)), compute_uv=False)


def _shares(sds: Array) -> Array:
    """Shares (..., k) of principal components in the variance; NaN where there is none."""
    total = np.sum(sds**2, axis=-1, keepdims=True)
    return sds**2 / np.where(total > 0, total, np.nan)


def _component_index(design: Design) -> pd.MultiIndex:
    labels = [(name, i + 1) for _, name, own in coefficient_sets(design) for i in range(len(own))]
    return pd.MultiIndex.from_tuples(labels, names=["group", "component"])


def _pca_table(design: Design, shares: Sequence[Array], prob: float | None) -> pd.DataFrame:
    draws = np.concatenate([np.cumsum(share, axis=1) for share in shares], axis=1)
    return summarise(draws, _component_index(design), prob)


def _rank_table(
    design: Design,
    shares: Sequence[Array],
    smallest: Sequence[Array],
    eps: float,
    prob: float | None,
) -> pd.DataFrame:
    found = coefficient_sets(design)
    names = pd.Index([name for _, name, _ in found], name="group")
    ranks = np.column_stack([effective_rank(share) for share in shares])
    table = summarise(ranks, names, prob)
    table.insert(0, "n_coefs", [len(own) for _, _, own in found])
    table["p_deficient"] = [float(np.mean(share[:, -1] < SMALL_SHARE)) for share in shares]
    table["p_negligible"] = [float(np.mean(sd < eps)) for sd in smallest]
    return table


def _point_pca(design: Design, fit: Fit, standardise: bool) -> pd.DataFrame:
    parts = []
    for f, _, own in coefficient_sets(design):
        scale = covariate_scales(design.random[f])[own] if standardise else 1.0
        sds = _component_sds(fit.factors[f][own], scale)
        shares = _shares(sds)
        columns = {"sd": sds, "proportion": shares, "cumulative": np.cumsum(shares)}
        parts.append(pd.DataFrame(columns))
    return pd.concat(parts, ignore_index=True).set_index(_component_index(design))


# --- what a posterior says about singular covariance matrices, in words ---


COMPATIBLE = float(np.exp(-1.92))
"""Relative likelihood from which a value is compatible with the data: 0.15, the 95 % limit of the
likelihood-ratio statistic with one degree of freedom."""

SMALL_SHARE = 0.01
"""Share of the variance below which a principal component is called small."""

LIKELY = 0.5
"""Posterior probability above which a finding is drawn from."""


def posterior_messages(
    table: pd.DataFrame,
    rank: pd.DataFrame,
    *,
    eps: float,
    rho: float,
    reml_singular: bool | None,
) -> tuple[str, ...]:
    """Findings: one per parameter, one per factor of three or more coefficients, one on REML.

    Parameters
    ----------
    table, rank : pandas.DataFrame
        Those of a :class:`~bayeslmm.checks.singularity.PosteriorSingularity`.
    eps, rho : float
        Its limits.
    reml_singular : bool or None
        Whether the REML fit is singular; None where there is none.

    Returns
    -------
    tuple of str
    """
    messages = [_parameter_message(table, str(label), eps, rho) for label in table.index]
    large = rank[rank["n_coefs"] > 2]
    messages += [_rank_message(row, str(group), eps) for group, row in large.iterrows()]
    return (*messages, _reml_message(table["support"], reml_singular))


def _parameter_message(table: pd.DataFrame, label: str, eps: float, rho: float) -> str:
    row = table.loc[label]
    chance = percent(row["probability"])
    if label.startswith("sd["):
        event = f"is negligible (below {eps:g} residual standard deviations)"
        boundary = "zero"
    else:
        event = f"is beyond {rho:g} in size"
        boundary = "a perfect correlation"
    tail = f"the posterior probability that it {event} is {chance}."
    if row["probability"] == 0.0:
        tail = f"in no posterior draw it {event}."
    if not np.isfinite(row["support"]):
        return f"{label}: {tail}"
    support = percent(max(row["support"], np.finfo(float).tiny))
    verdict = "is compatible" if row["support"] >= COMPATIBLE else "is not compatible"
    return (
        f"{label}: {boundary} {verdict} with the data (integrated likelihood there {support} of "
        f"its maximum); {tail}"
    )


def _rank_message(row: pd.Series, group: str, eps: float) -> str:
    """What the smallest principal component is to the others, and to the residuals."""
    deficient, negligible = row["p_deficient"], row["p_negligible"]
    text = (
        f"{group}: effective rank {row['mean']:.2f} of {row['n_coefs']:.0f} (posterior mean). The "
        f"smallest principal component has less than {100 * SMALL_SHARE:g} % of the variance in "
        f"{percent(deficient)} of the posterior draws, and is negligible (a standard deviation "
        f"below {eps:g} residual ones) in {percent(negligible)}."
    )
    if negligible > LIKELY:
        return f"{text} Fewer dimensions would do."
    if deficient > LIKELY:
        return (
            f"{text} A small share of a large variance need not be small: this does not show that "
            "fewer dimensions would do."
        )
    return text


def _reml_message(supports: pd.Series, singular: bool | None) -> str:
    if singular is None:
        return "There is no REML fit to compare with: its likelihood has no maximum."
    ends = [str(label) for label in supports.index[supports >= COMPATIBLE]]
    unjudged = [str(label) for label in supports.index[supports.isna()]]
    message = _open_message(singular, ends) if ends else _closed_message(singular, bool(unjudged))
    return f"{message} {_unjudged_message(unjudged)}".rstrip()


def _open_message(singular: bool, ends: Sequence[str]) -> str:
    """REML beside boundaries that are compatible with the data."""
    if not singular:
        return (
            f"REML is not singular, although the data do not rule the boundary out for "
            f"{listed(ends)}: a REML fit to similar data could well be."
        )
    return (
        f"REML is singular, and the posterior agrees that the boundary is possible "
        f"({listed(ends)}). It says no more than that: the intervals show which other "
        "values the data allow, and averages over them need no choice between keeping and "
        "dropping the effect."
    )


def _closed_message(singular: bool, unjudged: bool) -> str:
    """REML where no boundary that was judged is compatible with the data."""
    if not singular:
        if unjudged:
            return "REML is not singular, and every boundary that was judged is ruled out."
        return "REML is not singular, and the posterior stays away from the boundary too."
    if unjudged:
        return "REML is singular, although every boundary that was judged is ruled out."
    return (
        "REML is singular: it sits on the boundary jointly. No single parameter's boundary is "
        "supported once the others are integrated out."
    )


def _unjudged_message(labels: Sequence[str]) -> str:
    """Which boundaries say nothing, and what to look at instead."""
    if not labels:
        return ""
    return (
        f"Not judged were the boundaries of {listed(labels)}: correlations of three or more "
        "coefficients have bounds that depend on each other. The smallest principal component "
        "tells whether they are dependent."
    )


# --- how well the data support a boundary value, everything else integrated out ---
#
# Holding the other parameters at a posterior draw, the conditional density of one parameter is
# known on a grid up to a constant; its average over draws is the marginal posterior density (the
# Rao-Blackwell estimate). Divided by the prior density it is the integrated likelihood of the
# parameter, and at the boundary the Savage-Dickey Bayes factor.


GRID = 41
"""Points of the trapezoid rule over the range of the draws, which is some seven sds wide."""

PAD = 0.25
"""Share of the range of the draws by which the grid goes beyond it at either end."""

SLICES = 100
"""Posterior draws at which the other parameters are held, where evaluations are cheap."""

FEWEST_SLICES = 5

CELLS = 5e7
"""Levels eliminated per parameter: what bounds the number of draws for large data."""

NEARLY_ZERO = 1e-4
"""Where the grid of an sd begins, over its median: a prior density may be infinite at zero."""

FAR = 0.5
"""Where no draw comes nearer to the boundary than this share of the median distance, it is at
least six standard deviations away."""

ENOUGH = 400
"""Draws from which that says something."""


@dataclass(frozen=True, slots=True, kw_only=True)
class BoundarySupport:
    """Support of the data for a boundary value of one parameter.

    Attributes
    ----------
    value : float
        The boundary: 0 for a standard deviation; 1 or -1, the better supported one, for a
        correlation.
    relative : float
        Integrated likelihood at the boundary over its maximum within the range of the posterior.
    bayes_factor : float
        Savage-Dickey Bayes factor of the model with the parameter at the boundary against this one;
        NaN where its prior is improper.
    """

    value: float
    relative: float
    bayes_factor: float


def boundary_support(
    plan: Plan, priors: Priors, joint: JointDraws, parameter: Parameter
) -> BoundarySupport:
    """Support of the data for a standard deviation of zero or a correlation of one.

    Both are of the working columns, in which the priors are independent.

    Parameters
    ----------
    plan : Plan
        Cross-products of the data.
    priors : Priors
        The priors.
    joint : JointDraws
        Draws from the posterior.
    parameter : Parameter
        A standard deviation, or the correlation of a block of two coefficients.

    Returns
    -------
    BoundarySupport

    References
    ----------
    Dickey (1971), doi:10.1214/aoms/1177693507, for the Bayes factor.
    Gelfand, Smith (1990), doi:10.1080/01621459.1990.10476213, for the density estimate.
    """
    ends = _ends(priors.coordinates.structures[parameter.factor], parameter)
    proper = parameter.kind == "cor" or _sd_prior(priors, parameter).proper
    if _far(joint_parameter(working_points(priors, joint), parameter), ends):
        nothing = 0.0 if proper else float("nan")
        return BoundarySupport(value=ends[0], relative=0.0, bayes_factor=nothing)
    _, curve = integrated_likelihood(plan, priors, joint, parameter)
    at_ends = curve[-len(ends) :]
    best = int(np.argmax(at_ends))
    return BoundarySupport(
        value=ends[best],
        relative=float(np.exp(at_ends[best] - np.max(curve))),
        bayes_factor=float(np.exp(at_ends[best])) if proper else float("nan"),
    )


def integrated_likelihood(
    plan: Plan, priors: Priors, joint: JointDraws, parameter: Parameter
) -> tuple[Array, Array]:
    """Log integrated likelihood of one parameter, over the range of its draws and at its boundary.

    Parameters
    ----------
    plan, priors, joint, parameter : Plan, Priors, JointDraws, Parameter
        As for :func:`boundary_support`.

    Returns
    -------
    values : ndarray (m,)
        Values of the parameter; the boundaries come last.
    curve : ndarray (m,)
        Log of posterior over prior density. Relative only where the prior is improper.
    """
    points = _slices(plan, priors, joint)
    structure = priors.coordinates.structures[parameter.factor]
    draws = joint_parameter(working_points(priors, joint), parameter)
    values, weights = _grid(draws, parameter.kind, _ends(structure, parameter))
    with single_threaded():
        moved = (_moved(points, structure, parameter, value) for value in values)
        log_lik = np.array([_log_likelihood(plan, priors, at) for at in moved])
    with np.errstate(divide="ignore", invalid="ignore"):
        log_mass = _log_prior(priors, parameter)(values) + np.log(weights)
    log_mass[weights == 0.0] = -np.inf
    log_ratio = log_lik - logsumexp(log_lik + log_mass[:, None], axis=0)
    return values, logsumexp(log_ratio, axis=1) - np.log(log_ratio.shape[1])


def _far(draws: Array, ends: tuple[float, ...]) -> bool:
    """Whether the draws stay far from every boundary."""
    if len(draws) < ENOUGH:
        return False
    distances = [np.abs(draws - end) for end in ends]
    return all(np.min(d) > FAR * np.median(d) for d in distances)


def working_points(priors: Priors, joint: JointDraws) -> WorkingPoints:
    """Draws in the working columns, beta among them where it is sampled."""
    points = replace(joint.points, beta=joint.beta) if priors.beta_sampled else joint.points
    return priors.coordinates.to_working(points)


def _slices(plan: Plan, priors: Priors, joint: JointDraws) -> WorkingPoints:
    """Points at which the other parameters are held: fewer where an evaluation is dear."""
    cells = len(plan.classes.counts) + sum(len(block) for block in plan.products.random[1:])
    cells += plan.n_tail**3 // 30
    size = int(np.clip(CELLS / (GRID * cells), FEWEST_SLICES, SLICES))
    return working_points(priors, joint.thin(size))


def _grid(draws: Array, kind: str, ends: tuple[float, ...]) -> tuple[Array, Array]:
    """Values and trapezoid weights over the range of the draws; the boundaries come last.

    Equally spaced in the inverse hyperbolic sine of an sd over its median, for the long tail, and
    in the arcsine of a correlation, in which its likelihood is smooth at the boundary.
    """
    scale = float(np.median(draws)) if kind == "sd" else 1.0
    x = np.arcsinh(draws / scale) if kind == "sd" else np.arcsin(draws)
    low, high = float(np.min(x)), float(np.max(x))
    pad = PAD * (high - low)
    floor, ceiling = (NEARLY_ZERO, np.inf) if kind == "sd" else np.arcsin(ends)
    nodes = np.linspace(max(low - pad, floor), min(high + pad, ceiling), GRID)
    weights = np.full(GRID, nodes[1] - nodes[0])
    weights[[0, -1]] *= 0.5
    values = scale * np.sinh(nodes) if kind == "sd" else np.sin(nodes)
    slope = scale * np.cosh(nodes) if kind == "sd" else np.cos(nodes)
    return np.append(values, ends), np.append(weights * slope, np.zeros(len(ends)))


def _moved(
    points: WorkingPoints, structure: Structure, parameter: Parameter, value: float
) -> WorkingPoints:
    """The points with one parameter set to a value."""
    f, index = parameter.factor, parameter.index
    if parameter.kind == "sd":
        sds = points.sds[f].copy()
        sds[:, structure.sd_places == structure.sd_places[index[0]]] = value
        return replace(points, sds=(*points.sds[:f], sds, *points.sds[f + 1 :]))
    chols = np.array(points.chols[f])
    number, part = _block(structure, parameter)
    if isinstance(part, Pattern):
        rows = np.array(structure.blocks[number])
        lower = part.cholesky(part.from_correlations(np.array([value])))
        chols[:, rows[:, None], rows] = lower
        return replace(points, chols=(*points.chols[:f], chols, *points.chols[f + 1 :]))
    first, second = index
    chols[:, [first, second]] = 0.0
    chols[:, first, first] = 1.0
    chols[:, second, first] = value
    chols[:, second, second] = np.sqrt(max(0.0, 1.0 - value**2))
    return replace(points, chols=(*points.chols[:f], chols, *points.chols[f + 1 :]))


def _log_likelihood(plan: Plan, priors: Priors, points: WorkingPoints) -> Array:
    reduced = reduce_equations(plan, points)
    return log_likelihood_batch(plan, priors, reduced, points)


def _sd_prior(priors: Priors, parameter: Parameter) -> Prior:
    places = priors.coordinates.structures[parameter.factor].sd_places
    return priors.sd[parameter.factor][places[parameter.index[0]]]


def _log_prior(priors: Priors, parameter: Parameter) -> Callable[[Array], Array]:
    if parameter.kind == "sd":
        return _sd_prior(priors, parameter).logpdf
    number, _ = _block(priors.coordinates.structures[parameter.factor], parameter)
    prior = priors.cor[parameter.factor][number]
    if not isinstance(prior, LKJ):
        assert prior is not None
        return prior.logpdf
    lkj = prior

    def logpdf(values: Array) -> Array:
        chol = np.zeros((len(values), 2, 2))
        chol[:, 0, 0] = 1.0
        chol[:, 1, 0] = values
        chol[:, 1, 1] = np.sqrt(np.maximum(0.0, 1.0 - values**2))
        return lkj.logpdf(chol)

    return logpdf
