"""What the priors did to the posterior: power-scaling sensitivity and contraction."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import pandas as pd
import xarray as xr
from numpy.typing import NDArray

from bayeslmm.covariance.structure import sd_leaders
from bayeslmm.data.design import Design, RandomFactor
from bayeslmm.data.seeds import seeded
from bayeslmm.data.summarised import SummarisedDesign
from bayeslmm.estimation.model import Model
from bayeslmm.exceptions import PriorError
from bayeslmm.likelihood.batch import reduce_equations
from bayeslmm.likelihood.factorise import single_threaded
from bayeslmm.likelihood.log_posterior import log_likelihood_batch
from bayeslmm.priors.record import Priors
from bayeslmm.sampling.joint_draws import JointDraws
from bayeslmm.sampling.pareto import smooth_weights
from bayeslmm.summaries.parameters import (
    Kind,
    free_parameters,
    joint_parameter,
    random_parameters,
)
from bayeslmm.summaries.text import Report, listed, percent

Array = NDArray[np.float64]
Indices = NDArray[np.intp]

THRESHOLD = 0.05
"""Sensitivity from which Kallioinen et al. (2024) speak of one."""

POWERS = (0.8, 1.25)
"""Powers of prior and likelihood whose posteriors are shown."""

NORMAL_IQR = 1.3489795003921634
"""Interquartile range of the standard normal distribution."""

BINS = 30
"""Bins, of equal probability under the even mixture of prior and posterior, for their overlap."""

LITTLE = 0.1
"""Contraction below which the data are said to add little to the prior."""

SAME = 0.5
"""Overlap from which such a posterior is said to be mostly the prior."""

TAIL = 0.01
"""Prior tail probability beyond which a posterior median is said to be in the tail of the prior."""


@dataclass(frozen=True, slots=True, eq=False, repr=False, kw_only=True)
class Sensitivity(Report):
    """Power-scaling sensitivity of the parameters to priors and likelihood.

    Attributes
    ----------
    table : pandas.DataFrame
        A row per parameter: sensitivity to all priors (`prior`) and to the data (`likelihood`),
        and a `diagnosis`: "potential prior-data conflict" (both reach the threshold), "potential
        strong prior / weak likelihood" (only the first does) or nothing.
    by_prior : pandas.DataFrame
        A row per parameter, a column per kind of prior (beta, sd, cor, sigma): sensitivity to
        those priors alone.
    threshold : float
        Sensitivity from which a parameter counts as sensitive.
    unbounded : mapping
        Parameters that too few levels leave to their priors, each with the reason in words.
    scaled : pandas.DataFrame
        Rows by `component` ("prior" or "likelihood"), its `power` (0.8 or 1.25) and parameter:
        `mean_shift`, change of the posterior mean in posterior standard deviations, and
        `sd_change`, relative change of the posterior standard deviation.
    """

    table: pd.DataFrame
    by_prior: pd.DataFrame
    threshold: float
    unbounded: Mapping[str, str]
    scaled: pd.DataFrame

    @property
    def heading(self) -> str:
        """First line of the printed form."""
        return "Power-scaling sensitivity of the posterior"

    @property
    def messages(self) -> tuple[str, ...]:
        """Findings and advice."""
        return tuple(_sensitivity_messages(self))

    def _tables(self) -> Mapping[str, pd.DataFrame]:
        return {
            "Sensitivity to all priors and to the data": self.table,
            "Sensitivity to one kind of prior at a time": self.by_prior,
        }


@dataclass(frozen=True, slots=True, eq=False, repr=False, kw_only=True)
class Contraction(Report):
    """Prior against posterior, parameter by parameter.

    Attributes
    ----------
    table : pandas.DataFrame
        `prior_scale` and `posterior_scale`, robust standard deviations (interquartile range over
        1.349); `contraction`, ``1 - (posterior_scale / prior_scale)**2``; `overlap` of the two
        densities, between 0 and 1; `z_score`, posterior less prior median over `posterior_scale`;
        `prior_quantile`, the prior probability of values below the posterior median. Correlations
        of random effects are those of the columns that their prior is about, which for an
        intercept and a slope are the levels' values at the mean of the covariate and their slopes.
    unbounded : mapping
        Parameters that too few levels leave to their priors, each with the reason in words.
    """

    table: pd.DataFrame
    unbounded: Mapping[str, str]

    @property
    def heading(self) -> str:
        """First line of the printed form."""
        return "Prior against posterior"

    @property
    def messages(self) -> tuple[str, ...]:
        """Findings and advice."""
        return tuple(_contraction_messages(self.table, self.unbounded))

    def _tables(self) -> Mapping[str, pd.DataFrame]:
        return {"Robust scales, contraction and overlap": self.table}


CONFLICT = "potential prior-data conflict"
STRONG = "potential strong prior / weak likelihood"

ADVICE = {
    CONFLICT: (
        "sensitive to the priors and to the data, so the two pull in different directions or the "
        "prior is informative. If the prior is what you know, keep it and report it; if it is a "
        "default, refit with a wider one and compare."
    ),
    STRONG: (
        "sensitive to the priors and hardly to the data: the prior decides. Report it with the "
        "result, or collect data that tell of it."
    ),
}

KIND_WORDS = {
    "beta": "the priors on fixed effects",
    "sd": "the priors on the random-effect standard deviations",
    "cor": "the priors on correlations",
    "sigma": "the prior on sigma",
}


def marginal_log_likelihood(model: Model, joint: JointDraws) -> Array:
    """Log p(y | beta, covariance parameters) of each draw, random effects integrated out: (S,)."""
    points = replace(joint.points, beta=joint.beta)
    given = replace(model.priors, beta_sampled=True)
    with single_threaded():
        reduced = reduce_equations(model.system, points)
        return log_likelihood_batch(model.system, given, reduced, points)


def log_prior_parts(priors: Priors, joint: JointDraws) -> dict[Kind, Array]:
    """Log prior density (S,) by kind of parameter; kinds that are all flat are left out."""
    gamma = joint.beta @ priors.fixed_map.T
    points = priors.coordinates.to_working(replace(joint.points, beta=joint.beta))
    parts: dict[Kind, list[Array]] = {"beta": [], "sd": [], "cor": [], "sigma": []}
    parts["beta"] = [p.logpdf(gamma[:, j]) for j, p in enumerate(priors.beta) if p.proper]
    for f, (sds, chols) in enumerate(zip(points.sds, points.chols, strict=True)):
        leaders = sd_leaders(priors.coordinates.structures[f])
        scales = zip(leaders, priors.sd[f], strict=True)
        parts["sd"] += [p.logpdf(sds[:, i]) for i, p in scales if p.proper]
        if any(prior is not None for prior in priors.cor[f]):
            parts["cor"].append(priors.log_cor(f, chols))
    if all(prior.proper for prior in priors.residuals.sd):
        parts["sigma"] = [priors.residuals.logpdf(joint.points.sigma, joint.points.shapes)]
    sums = {kind: np.sum(values, axis=0) for kind, values in parts.items() if values}
    known = priors.held  # of which densities are constant
    return {kind: part for kind, part in sums.items() if not known or np.ptp(part) > 0}


def power_scaling(model: Model, joint: JointDraws, threshold: float = THRESHOLD) -> Sensitivity:
    """Power-scaling sensitivity of every parameter but the random effects.

    Parameters
    ----------
    model : Model
        The model.
    joint : JointDraws
        Posterior draws.
    threshold : float
        Sensitivity from which a parameter counts as sensitive.

    Returns
    -------
    Sensitivity

    Raises
    ------
    PriorError
        If every prior is flat.
    """
    if not np.isfinite(threshold) or threshold <= 0:
        raise ValueError(f"threshold={threshold!r}: a positive number is expected, such as 0.05.")
    log_priors = log_prior_parts(model.priors, joint)
    if not any(np.ptp(part) > 0 for part in log_priors.values()):
        raise PriorError(
            "Every prior is flat, so there is no prior to be sensitive to. Fit the model with "
            "proper priors."
        )
    rows = free_parameters(model.design)
    draws = np.stack([joint_parameter(joint, row) for row in rows], axis=-1)
    likelihood = marginal_log_likelihood(model, joint)
    labels = pd.Index([row.label for row in rows], name="parameter")

    def sense(log_density: Array) -> Array:
        return _sensitivity(joint.shape, draws, log_density)

    table = pd.DataFrame(
        {
            "prior": sense(np.sum(list(log_priors.values()), axis=0)),
            "likelihood": sense(likelihood),
        },
        index=labels,
    )
    table["diagnosis"] = _diagnoses(table, threshold)
    by_prior = pd.DataFrame({kind: sense(part) for kind, part in log_priors.items()}, index=labels)
    return Sensitivity(
        table=table,
        by_prior=by_prior,
        threshold=threshold,
        unbounded=unbounded_parameters(model.design),
        scaled=_scaled(
            {"likelihood": likelihood, "prior": np.sum(list(log_priors.values()), axis=0)},
            draws,
            labels,
        ),
    )


def _scaled(log_densities: Mapping[str, Array], draws: Array, labels: pd.Index) -> pd.DataFrame:
    """What a power of each density does to posterior means and standard deviations."""
    mean, sd = draws.mean(axis=0), draws.std(axis=0)
    tables = {}
    for component, log_density in log_densities.items():
        for power in POWERS:
            weights = np.exp(smooth_weights((power - 1.0) * log_density)[0])
            moved = weights @ draws
            spread = np.sqrt(weights @ (draws - moved) ** 2)
            values = {"mean_shift": (moved - mean) / sd, "sd_change": spread / sd - 1.0}
            tables[component, power] = pd.DataFrame(values, index=labels)
    return pd.concat(tables, names=["component", "power"])


def prior_contraction(
    design: Design,
    priors: Priors,
    joint: JointDraws,
    draws: int,
    random_seed: int | np.random.Generator | None,
) -> Contraction:
    """Compare prior and posterior of every parameter but the random effects.

    Parameters
    ----------
    design : Design
        The design of the model.
    priors : Priors
        Its priors, all proper.
    joint : JointDraws
        Posterior draws.
    draws : int
        Number of draws from the prior.
    random_seed : int or numpy.random.Generator, optional
        Seed of them.

    Returns
    -------
    Contraction

    Raises
    ------
    PriorError
        If a prior is flat.
    """
    prior = priors.sample(seeded(random_seed), draws)
    rows = free_parameters(design)
    seen = (prior, joint)
    to_working = priors.coordinates.to_working  # what the priors of correlations are about
    working = (to_working(prior), to_working(replace(joint.points, beta=joint.beta)))
    records = []
    for row in rows:
        pair = working if row.kind == "cor" else seen
        records.append(compare_draws(*(joint_parameter(draws, row) for draws in pair)))
    return Contraction(
        table=pd.DataFrame(records, index=pd.Index([r.label for r in rows], name="parameter")),
        unbounded=unbounded_parameters(design),
    )


def compare_draws(prior: Array, posterior: Array) -> dict[str, float]:
    """Robust scales, contraction, overlap, z-score and prior quantile of two sets of draws."""
    scales = [
        float(np.subtract(*np.quantile(x, [0.75, 0.25]))) / NORMAL_IQR for x in (prior, posterior)
    ]
    middle = float(np.median(posterior))
    return {
        "prior_scale": scales[0],
        "posterior_scale": scales[1],
        "contraction": 1.0 - (scales[1] / scales[0]) ** 2,
        "overlap": overlap(prior, posterior),
        "z_score": (middle - float(np.median(prior))) / scales[1],
        "prior_quantile": float(np.mean(prior < middle)),
    }


def overlap(first: Array, second: Array) -> float:
    """Overlap of the densities of two samples: the integral of the smaller one.

    References
    ----------
    Inman, Bradley (1989), doi:10.1080/03610928908830127.
    """
    levels = np.linspace(0.0, 1.0, BINS + 1)[1:-1]
    # Quantiles of the even mixture, whatever the sizes of the two samples.
    weights = np.concatenate([np.full(len(x), 0.5 / len(x)) for x in (first, second)])
    values = np.concatenate([first, second])
    order = np.argsort(values)
    edges = values[order][np.searchsorted(np.cumsum(weights[order]), levels)]
    shares = [
        np.bincount(np.searchsorted(edges, x), minlength=BINS) / len(x) for x in (first, second)
    ]
    return float(np.sum(np.minimum(*shares)))


def _sensitivity(shape: tuple[int, int], draws: Array, log_density: Array) -> Array:
    """ArviZ's sensitivity of each column of draws (S, m) to powers of a density: (m,)."""
    if np.ptp(log_density) == 0.0:
        return np.zeros(draws.shape[1])
    import arviz_stats as az

    coords = {"chain": np.arange(shape[0]), "draw": np.arange(shape[1])}
    dims = ("chain", "draw")
    values = xr.Dataset({"value": ((*dims, "parameter"), draws.reshape(*shape, -1))}, coords)
    density = xr.Dataset({"density": (dims, log_density.reshape(shape))}, coords)
    tree = xr.DataTree.from_dict({"posterior": values, "log_prior": density})
    return np.asarray(az.psense(tree, group="prior", sample_dims=list(dims))["value"].to_numpy())


def _diagnoses(table: pd.DataFrame, threshold: float) -> list[str]:
    prior, likelihood = table["prior"] >= threshold, table["likelihood"] >= threshold
    found = np.where(likelihood, CONFLICT, STRONG)
    return [str(text) for text in np.where(prior, found, "")]


def _sensitivity_messages(result: Sensitivity) -> list[str]:
    table, limit = result.table, result.threshold
    messages = list(result.unbounded.values())
    for diagnosis, advice in ADVICE.items():
        labels = [str(label) for label in table.index[table["diagnosis"] == diagnosis]]
        if labels:
            causes = result.by_prior.loc[labels].idxmax(axis=1)
            kinds = listed(sorted({KIND_WORDS[str(kind)] for kind in causes}))
            messages.append(f"{listed(labels)}: {advice} Most of it comes from {kinds}.")
    if not messages:
        messages.append(
            f"No parameter is sensitive to the priors (all below {limit:g}): making all of them "
            "slightly stronger or weaker would hardly change the posterior. How far they move it "
            "from the estimate without them, compare_reml tells."
        )
    quiet = [str(x) for x in table.index[(table["likelihood"] < limit) & (table["prior"] < limit)]]
    if quiet:
        messages.append(
            f"{listed(quiet)}: the posterior reacts neither to the priors nor to the data at this "
            "threshold. Compare the posterior with the prior (contraction) before reading much "
            "into it."
        )
    return messages


def _contraction_messages(table: pd.DataFrame, unbounded: Mapping[str, str]) -> list[str]:
    messages = list(unbounded.values())
    little = (table["contraction"] < LITTLE) & ~table.index.isin(list(unbounded))
    for label in table.index[little]:
        share = float(table.loc[label, "overlap"])
        found = (
            f"contraction {table.loc[label, 'contraction']:.2f}, densities overlap by "
            f"{percent(share)}"
        )
        if share >= SAME:
            messages.append(
                f"{label}: the data add little to its prior ({found}). What is reported for it is "
                "mostly the prior; say so, or choose the prior with care."
            )
        else:
            messages.append(
                f"{label}: the posterior is no narrower than the prior but lies elsewhere "
                f"({found}): the data move it and the prior holds it back. Reconsider that prior."
            )
    tails = table["prior_quantile"]
    for label in table.index[(tails < TAIL) | (tails > 1.0 - TAIL)]:
        side = "lower" if tails[label] < TAIL else "upper"
        messages.append(
            f"{label}: its posterior median lies in the {side} {percent(TAIL)} tail of its prior. "
            "Prior and data disagree; check the prior's scale and the units of the data."
        )
    if not messages:
        messages.append(
            "The data narrow every parameter, and no posterior median lies in the tails of its "
            "prior."
        )
    return messages


# --- standard deviations that the data do not bound: too few levels beside the fixed effects ---


ENOUGH_DIRECTIONS = 2
"""Directions of the effects, beside the fixed effects, from which on the likelihood falls off fast
enough in a standard deviation that the data bound it above: it falls as the power of minus this."""

NEW_DIRECTION = 1e-8
"""Share of a squared length that counts as a direction of its own."""


def unbounded_parameters(design: Design) -> dict[str, str]:
    """Covariance parameters whose posterior is mostly the prior, each with the reason in words.

    With `r` directions of a coefficient's random effects left beside the fixed effects, the
    likelihood falls off as the power `-r` of its standard deviation: at `r` of one or less it
    cannot be normalised, so the upper end of the posterior is the prior's. Two levels and an
    intercept leave one.

    Parameters
    ----------
    design : Design
        The design of the model.

    Returns
    -------
    dict
        By label: those standard deviations and the correlations of their coefficients.
    """
    found = {}
    for row in random_parameters(design):
        factor = design.random[row.factor]
        fewest = min(_directions(design, factor, column) for column in row.index)
        if fewest < ENOUGH_DIRECTIONS:
            levels = len(factor.levels_of(row.index[0]))
            found[row.label] = _reason(row.label, factor, levels, fewest)
    return found


def _directions(design: Design, factor: RandomFactor, column: int) -> int:
    """Directions of a coefficient's effects beside the fixed effects; two stand for more."""
    if isinstance(design, SummarisedDesign):
        return _directions_of_sums(design, factor, column)
    slots = [(codes, z[:, column]) for codes, z, _ in factor.slots]
    used = np.unique(np.concatenate([codes[z != 0.0] for codes, z in slots]))
    enough = design.p + ENOUGH_DIRECTIONS
    if len(used) >= enough and not factor.pooled:
        return ENOUGH_DIRECTIONS
    some = _directions_among(design, slots, used[: 2 * enough])
    if some == ENOUGH_DIRECTIONS or len(used) <= 2 * enough:
        return some
    return _directions_among(design, slots, used)


def _directions_among(design: Design, slots: Sequence[tuple[Indices, Array]], used: Indices) -> int:
    """Directions of the effects of some levels, from levels and covariate of each row."""
    parts = [np.where(codes[:, None] == used, z[:, None], 0.0) for codes, z in slots]
    columns = np.sum(parts, axis=0)
    sizes = np.linalg.norm(columns, axis=0)
    columns = columns[:, sizes > 0.0] / sizes[sizes > 0.0]
    q = np.linalg.qr(design.X / np.linalg.norm(design.X, axis=0))[0]
    left = columns - q @ (q.T @ columns)
    own = np.linalg.eigvalsh(left.T @ left) > NEW_DIRECTION
    return min(ENOUGH_DIRECTIONS, int(own.sum()))


def _directions_of_sums(design: SummarisedDesign, factor: RandomFactor, column: int) -> int:
    """The same from cross-products."""
    products, place = design.plain_products, design.random.index(factor)
    back = np.linalg.inv(products.basis.random[place])[:, column]
    squares = back @ products.random[place] @ back
    used = squares > 0.0
    if used.sum() - design.p >= ENOUGH_DIRECTIONS:
        return ENOUGH_DIRECTIONS
    cross = (back @ products.mixed[place])[used, :-1] / np.sqrt(squares[used])[:, None]
    gram = np.diag(squares)  # rows that belong to several levels tie these
    for part in products.couplings:
        if part.factors == (place, place):
            gram[part.first, part.second] = back @ part.blocks @ back
            gram[part.second, part.first] = gram[part.first, part.second]
    sizes = np.sqrt(squares[used])
    gram = gram[np.ix_(used, used)] / np.outer(sizes, sizes)
    left = gram - cross @ np.linalg.solve(products.fixed[:-1, :-1], cross.T)
    own = np.linalg.eigvalsh(left) > NEW_DIRECTION
    return min(ENOUGH_DIRECTIONS, int(own.sum()))


def _reason(label: str, factor: RandomFactor, levels: int, directions: int) -> str:
    left = "one difference" if directions else "nothing"
    return (
        f"{label}: beside the fixed effects the {levels} levels of {factor.name} leave "
        f"{left} to learn it from, so the data set it no upper limit and its posterior is mostly "
        "its prior. Report it as that, or take the levels as fixed."
    )
