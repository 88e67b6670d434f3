"""What priors on parameters imply for quantities one has an opinion on."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from bayeslmm.covariance.coordinates import Points
from bayeslmm.data.design import Design
from bayeslmm.data.seeds import seeded
from bayeslmm.data.summarised import SummarisedDesign
from bayeslmm.estimation.effects import linear_predictor
from bayeslmm.estimation.residuals import draw_residuals, with_scale_effects
from bayeslmm.exceptions import DataError
from bayeslmm.likelihood.sums import fitted_sums
from bayeslmm.priors.record import Priors
from bayeslmm.sampling.joint_draws import JointDraws, all_levels
from bayeslmm.summaries.text import Report, percent
from bayeslmm.summaries.variance_explained import (
    intraclass_correlation,
    r_squared,
    variance_parts,
)

Array = NDArray[np.float64]

QUANTILES = (0.05, 0.25, 0.5, 0.75, 0.95)

AT_ONCE = 1 << 22
"""Responses simulated at once: 32 MB."""

FAR_OUT = 0.01
"""Prior tail probability beyond which the observed value is a surprise to the priors."""

WIDE = 100.0
"""Ratio of simulated to observed standard deviation beyond which priors are called vague."""


@dataclass(frozen=True, slots=True, eq=False, repr=False, kw_only=True)
class ImpliedPriors(Report):
    """Prior distributions of quantities that follow from the parameters.

    Attributes
    ----------
    table : pandas.DataFrame
        Rows ``icc[group]`` per grouping factor, ``r2[marginal]``, ``r2[conditional]``,
        ``total_sd`` (of a response given the row, fixed effects included), ``sd_y`` (sample
        standard deviation of a simulated response) and ``sd_y / observed``; columns mean and
        quantiles 5 to 95 %, then `observed` and `prior_quantile`, the prior probability of values
        below it, where the data show one.
    draws : int
        Number of prior draws.
    lacking : str
        Why the spread of a simulated response is left out, which takes rows in models of data
        beyond memory with weights or without an intercept; empty where it is there.
    """

    table: pd.DataFrame
    draws: int
    lacking: str = ""

    @property
    def heading(self) -> str:
        """First line of the printed form."""
        return f"What the priors imply ({self.draws} draws)"

    @property
    def messages(self) -> tuple[str, ...]:
        """Findings and advice."""
        spread = (self.lacking,) if self.lacking else tuple(_spread_messages(self.table))
        return (*spread, *_share_messages(self.table))

    def _tables(self) -> Mapping[str, pd.DataFrame]:
        return {"Prior mean and quantiles": self.table}


def implied_priors(
    design: Design,
    priors: Priors,
    draws: int = 4000,
    random_seed: int | np.random.Generator | None = None,
) -> ImpliedPriors:
    """Prior distribution of ICC, R2 and the spread of the response.

    Parameters
    ----------
    design : Design
        The design of a model.
    priors : Priors
        Its priors, all proper.
    draws : int
        Number of draws from the prior.
    random_seed : int or numpy.random.Generator, optional
        Seed.

    Returns
    -------
    ImpliedPriors

    Raises
    ------
    PriorError
        If a prior is flat.
    ValueError
        If `draws` is not at least 2.

    Notes
    -----
    R2 is that of Nakagawa and Schielzeth with the extension to random slopes: variances of X beta
    over the rows (marginal), and of X beta plus the random effects (conditional), over the total.
    The offset counts neither to the response nor to its variance.

    References
    ----------
    Nakagawa, Schielzeth (2013), doi:10.1111/j.2041-210x.2012.00261.x.
    Johnson (2014), doi:10.1111/2041-210X.12225.
    Gabry, Simpson, Vehtari, Betancourt, Gelman (2019), doi:10.1111/rssa.12378, for looking at
    priors through what they imply.

    Examples
    --------
    >>> import bayeslmm as blm
    >>> model = blm.LMM("Yield ~ 1 + (1 | Batch)", blm.load_dataset("Dyestuff"))
    >>> implied = implied_priors(model.design, model.priors, 500, random_seed=1)
    >>> list(implied.table.index[:3])
    ['icc[Batch]', 'r2[marginal]', 'r2[conditional]']
    """
    rows, seen, lacking = implied_draws(design, priors, draws, random_seed)
    records = [_record(values, seen.get(name)) for name, values in rows.items()]
    table = pd.DataFrame(records, index=pd.Index(list(rows), name="quantity"))
    return ImpliedPriors(table=table, draws=int(draws), lacking=lacking)


def implied_draws(
    design: Design,
    priors: Priors,
    draws: int,
    random_seed: int | np.random.Generator | None,
) -> tuple[dict[str, Array], dict[str, float], str]:
    """Draws (S,) of each quantity, what was observed of some, and why others are left out."""
    if isinstance(draws, bool) or int(draws) != draws or draws < 2:
        raise ValueError(f"draws={draws!r}: a whole number of at least 2 is expected.")
    rng = seeded(random_seed)
    prior = with_scale_effects(design, priors.sample(rng, int(draws)), rng)
    joint = prior_joint(design, prior, rng)
    variances = variance_parts(design, joint)
    shares = intraclass_correlation(design, joint)
    r2 = r_squared(design, joint, "nakagawa")
    sd_y, lacking = _spread_or_reason(design, prior, rng)
    observed = float(np.sqrt(design.moments.variances[-1]))
    rows = {f"icc[{f.name}]": shares[:, i] for i, f in enumerate(design.random)}
    rows |= {"r2[marginal]": r2[:, 0], "r2[conditional]": r2[:, 1]}
    rows["total_sd"] = np.sqrt(variances.sum(axis=1))
    if sd_y is not None:
        rows |= {"sd_y": sd_y, "sd_y / observed": sd_y / observed}
    return rows, {"total_sd": observed, "sd_y": observed, "sd_y / observed": 1.0}, lacking


def _spread_or_reason(
    design: Design, prior: Points, rng: np.random.Generator
) -> tuple[Array | None, str]:
    """Spread of simulated responses, or why it takes rows that are not kept."""
    if not isinstance(design, SummarisedDesign):
        return simulated_spread(design, prior, rng), ""
    try:
        return _spread_of_sums(design, prior, rng), ""
    except DataError as error:
        return None, f"sd_y is left out. {error}"


def _spread_of_sums(design: SummarisedDesign, prior: Points, rng: np.random.Generator) -> Array:
    """The same from sums: noise along the fitted values, and in all other directions."""
    size, n = len(prior.sigma), design.n
    squares = np.empty(size)
    total = sum(factor.n_levels * factor.n_coefs for factor in design.random)
    step = max(1, AT_ONCE // max(total, 1))
    for start in range(0, size, step):
        rows = slice(start, min(start + step, size))
        joint = prior_joint(design, prior.take(rows), rng)
        _, squares[rows] = fitted_sums(design, joint.beta, joint.effects, AT_ONCE)
    along = np.sqrt(squares) + prior.sigma * rng.standard_normal(size)
    across = prior.sigma**2 * rng.chisquare(n - 2, size)
    return np.sqrt((along**2 + across) / (n - 1))


def simulated_spread(design: Design, prior: Points, rng: np.random.Generator) -> Array:
    """Sample standard deviation (S,) over the rows of a response simulated per draw."""
    size = len(prior.sigma)
    spread = np.empty(size)
    step = max(1, AT_ONCE // design.n)
    for start in range(0, size, step):
        rows = slice(start, min(start + step, size))
        joint = prior_joint(design, prior.take(rows), rng)
        effects = joint.effects(all_levels(design))
        response = linear_predictor(design, joint.beta, effects) - design.offset
        response += draw_residuals(design, joint.points, rng)
        spread[rows] = np.std(response, axis=1, ddof=1)
    return spread


def prior_joint(design: Design, prior: Points, rng: np.random.Generator) -> JointDraws:
    """Draws from the prior as joint draws; each call for random effects draws anew."""
    size = len(prior.sigma)

    def effects(wanted: Sequence[NDArray[np.intp]]) -> list[Array]:
        result = []
        for factor, levels, root in zip(design.random, wanted, prior.roots, strict=True):
            alone = factor.relationship is None
            count = len(levels) if alone else factor.n_levels
            drawn = rng.standard_normal((size, count, root.shape[1])) @ root.transpose(0, 2, 1)
            result.append(drawn if alone else factor.effects(drawn)[:, levels])
        return result

    return JointDraws(shape=(1, size), beta=prior.beta, points=prior, effects=effects)


def _record(values: Array, observed: float | None) -> dict[str, float]:
    record = {"mean": float(np.mean(values))}
    quantiles = np.quantile(values, QUANTILES)
    record |= {f"q{100 * q:g}": float(v) for q, v in zip(QUANTILES, quantiles, strict=True)}
    record["observed"] = np.nan if observed is None else observed
    below = np.nan if observed is None else float(np.mean(values < observed))
    return record | {"prior_quantile": below}


def _spread_messages(table: pd.DataFrame) -> list[str]:
    spread = table.loc["sd_y"]
    ratio = table.loc["sd_y / observed"]
    messages = [
        f"With probability 90 % the priors expect a response whose standard deviation is between "
        f"{ratio['q5']:.2g} and {ratio['q95']:.2g} times the observed {spread['observed']:.4g}."
    ]
    below = float(spread["prior_quantile"])
    if below > 1.0 - FAR_OUT:
        messages.append(
            f"The observed spread surprises the priors: with probability {percent(below)} they "
            "expect a smaller one. Check the units."
        )
    elif below < FAR_OUT:
        messages.append(
            f"With probability {percent(1.0 - below)} the priors expect a larger spread than the "
            "observed one: they are weak, as the default ones are on purpose."
        )
    if ratio["q95"] > WIDE:
        messages.append(
            "The priors give weight to responses with more than a hundred times the observed "
            "spread: they are vague to the point of being unbelievable."
        )
    return messages


def _share_messages(table: pd.DataFrame) -> list[str]:
    messages = []
    for name in table.index[table.index.str.startswith(("icc", "r2"))]:
        low, high = table.loc[name, "q5"], table.loc[name, "q95"]
        if low < high and (low > 0.5 or high < 0.5):
            messages.append(
                f"{name} is between {low:.2g} and {high:.2g} with probability 90 % before any "
                "data: make sure that this is meant."
            )
    return messages
