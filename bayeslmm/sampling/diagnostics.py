"""Convergence checks of posterior draws, with advice in words."""

from __future__ import annotations

import logging
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import xarray as xr

from bayeslmm.sampling.pareto import MAX_PARETO_K, effective_fraction, smooth_weights
from bayeslmm.sampling.tree import FIXED, SAMPLE_DIMS

_log = logging.getLogger(__name__)

MAX_RHAT = 1.01
MIN_ESS_PER_CHAIN = 100.0
MIN_EBFMI = 0.3

MAX_DEPTH = "reached_max_treedepth"
MIN_EFFICIENCY = 0.7
"""Share of effective draws below which an approximation is visibly off."""

LONGEST_STAY = 20
"""Draws for which a whole chain may stay where it is."""

ROUNDING = 1e-12
"""Relative range of draws of a known parameter, which may be computed from others."""

MAX_ENTRIES = 200
"""Most entries of one variable that are checked: large random-effects vectors are thinned."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Diagnostics:
    """What the convergence checks found.

    Attributes
    ----------
    chains, draws : int
        Chains, and draws per chain.
    divergences : int
        Divergent transitions; 0 where the method has none.
    treedepth_hits : int
        Transitions that ended at the maximum tree depth.
    max_rhat : float
        Largest rank-normalised split R-hat; NaN with a single chain.
    max_rhat_parameter : str
        The parameter it belongs to.
    min_ess_bulk, min_ess_tail : float
        Smallest effective sample sizes.
    min_ess_bulk_parameter, min_ess_tail_parameter : str
        The parameters they belong to.
    pareto_k : float
        Pareto shape of the importance ratios of an approximation to the posterior; NaN for a
        sampler.
    importance_ess : float
        Effective number of draws that these ratios leave; NaN for a sampler.
    acceptance_rate : float
        Share of accepted proposals of the collapsed sampler; NaN for other methods.
    proposal_k : float
        Largest Pareto shape, over chains, of the importance ratios of its proposals. The sampler
        itself refuses where they are heavy-tailed and matter.
    evaluations : int
        Exact density evaluations of the collapsed sampler; 0 for other methods.
    surrogate_error : float
        Standard deviation, over the posterior, of the error in log density of the collapsed
        sampler's surrogate; 0 without one, NaN for other methods.
    min_ebfmi : float
        Smallest energy Bayesian fraction of missing information over chains; NaN where the method
        has no energy.
    stuck : str
        The first parameter that a whole chain of more than 20 draws leaves unchanged; empty where
        all move.

    References
    ----------
    Vehtari, Gelman, Simpson, Carpenter, Bürkner (2021), doi:10.1214/20-BA1221.
    Betancourt (2016), arXiv:1604.00695.
    Vehtari, Simpson, Gelman, Yao, Gabry (2024), Pareto smoothed importance sampling,
    https://jmlr.org/papers/v25/19-556.html.
    """

    chains: int
    draws: int
    divergences: int
    treedepth_hits: int
    max_rhat: float
    max_rhat_parameter: str
    min_ess_bulk: float
    min_ess_bulk_parameter: str
    min_ess_tail: float
    min_ess_tail_parameter: str
    min_ebfmi: float
    pareto_k: float = np.nan
    importance_ess: float = np.nan
    acceptance_rate: float = np.nan
    proposal_k: float = np.nan
    evaluations: int = 0
    surrogate_error: float = np.nan
    stuck: str = ""

    @property
    def approximate(self) -> bool:
        """Whether the draws are independent ones from an approximation."""
        return bool(np.isfinite(self.pareto_k))

    @property
    def ok(self) -> bool:
        """Whether nothing gives reason to doubt the draws."""
        return not self.messages()

    def messages(self) -> tuple[str, ...]:
        """Return one sentence of finding and advice per problem; empty where all is well."""
        if self.stuck:
            return (self._stuck_message(),)
        if self.approximate:
            efficiency = self.importance_ess / (self.chains * self.draws)
            poor = self.pareto_k > MAX_PARETO_K or efficiency < MIN_EFFICIENCY
            return (self._approximation_message(),) if poor else ()
        return tuple(self._chain_messages())

    def __str__(self) -> str:
        problems = self.messages() or ("No problems found.",)
        if self.approximate:
            lines = [
                f"{self.chains * self.draws} independent draws from an approximation",
                f"Pareto k of its importance ratios {self.pareto_k:.2f}",
                f"importance effective sample size {self.importance_ess:.0f}",
            ]
            return "\n".join((*lines, *problems))
        lines = [
            f"{self.chains} chains of {self.draws} draws",
            *self._sampler_lines(),
            f"largest R-hat {self.max_rhat:.3f} ({self.max_rhat_parameter})",
            f"smallest bulk ESS {self.min_ess_bulk:.0f} ({self.min_ess_bulk_parameter})",
            f"smallest tail ESS {self.min_ess_tail:.0f} ({self.min_ess_tail_parameter})",
        ]
        if np.isfinite(self.min_ebfmi):
            lines.append(f"smallest E-BFMI {self.min_ebfmi:.2f}")
        return "\n".join((*lines, *problems))

    def _sampler_lines(self) -> list[str]:
        if not self.evaluations:
            return [
                f"divergences {self.divergences}, tree depth limit reached {self.treedepth_hits}"
            ]
        line = (
            f"{self.evaluations} density evaluations, acceptance rate {self.acceptance_rate:.2f}, "
        )
        line += f"Pareto k of the proposals {self.proposal_k:.2f}"
        if not self.surrogate_error:
            return [line]
        return [line, f"error of the surrogate log density {self.surrogate_error:.1g}"]

    def _approximation_message(self) -> str:
        size = f"{self.importance_ess:.0f} of {self.chains * self.draws} draws"
        return (
            f"Pareto k is {self.pareto_k:.2f} (it should be below {MAX_PARETO_K}) and the "
            f"importance effective sample size {size}, so the Laplace approximation misses part of "
            'the posterior, most of all small standard deviations: sample with method="collapsed".'
        )

    def _stuck_message(self) -> str:
        return (
            f"{self.stuck} has the same value in all {self.draws} draws of a chain, so the draws "
            "are not a sample of the posterior: check that its prior and the data can be "
            "reconciled, and use another method."
        )

    def _chain_messages(self) -> Iterator[str]:
        if self.proposal_k == -np.inf:
            yield (
                "The importance ratios of the proposals do not vary, so the draws may cover a "
                'small part of the posterior: use method="nuts".'
            )
        if self.divergences:
            yield (
                f"{self.divergences} of {self.chains * self.draws} transitions diverged, so the "
                "draws may miss part of the posterior: raise target_accept towards 1, or "
                'sample with form="marginal", which is easier.'
            )
        if self.max_rhat > MAX_RHAT:
            more = "raise draws" if self.evaluations else "raise tune and draws"
            yield (
                f"R-hat is {self.max_rhat:.3f} for {self.max_rhat_parameter} (it should be below "
                f"{MAX_RHAT}), so the chains have not mixed: {more}, and check that the data "
                "identify this parameter."
            )
        bulk = (self.min_ess_bulk, "bulk", self.min_ess_bulk_parameter)
        tail = (self.min_ess_tail, "tail", self.min_ess_tail_parameter)
        size, kind, name = bulk if self.min_ess_bulk <= self.min_ess_tail else tail
        needed = MIN_ESS_PER_CHAIN * self.chains
        if size < needed:
            yield (
                f"The {kind} effective sample size is {size:.0f} for {name} (at least "
                f"{needed:.0f} is advised), so its estimates are noisy: raise draws."
            )
        if self.treedepth_hits:
            yield (
                f"{self.treedepth_hits} transitions reached the maximum tree depth, which makes "
                "sampling slow but not wrong: raise max_treedepth, or rescale covariates."
            )
        if self.min_ebfmi < MIN_EBFMI:
            yield (
                f"E-BFMI is {self.min_ebfmi:.2f} (it should be above {MIN_EBFMI}), so the sampler "
                "explores the tails slowly: raise tune and draws, or give the standard deviations "
                "priors with lighter tails."
            )


def check(dt: xr.DataTree) -> Diagnostics:
    """Check posterior draws for convergence and log what is wrong.

    Parameters
    ----------
    dt : xarray.DataTree
        Draws with the group posterior and, if the method has them, sampler statistics.

    Returns
    -------
    Diagnostics
        Problems are also logged, one WARNING each.

    Notes
    -----
    Of a variable with more than 200 entries, such as the random effects of a large grouping factor,
    200 entries spread over it are checked.
    """
    from arviz_base import rcParams
    from arviz_stats.base import array_stats

    posterior = dt["posterior"].dataset
    stats = dt["sample_stats"].dataset if "sample_stats" in dt else xr.Dataset()
    labels, values, stuck = _entries(posterior, dt.attrs.get(FIXED, ()))
    chains, draws = posterior.sizes["chain"], posterior.sizes["draw"]
    unknown = np.full(len(labels), np.nan)
    bulk = array_stats.ess(values, method="bulk") if labels else unknown
    tail = (
        array_stats.ess(values, method="tail", prob=rcParams["stats.ci_prob"])
        if labels
        else unknown
    )
    rhat = array_stats.rhat(values) if labels and chains > 1 else unknown
    max_rhat, max_rhat_parameter = _largest(rhat, labels)
    min_ess_bulk, min_ess_bulk_parameter = _largest(-bulk, labels)
    min_ess_tail, min_ess_tail_parameter = _largest(-tail, labels)
    found = Diagnostics(
        chains=chains,
        draws=draws,
        divergences=int(stats["diverging"].sum()) if "diverging" in stats else 0,
        treedepth_hits=int(stats[MAX_DEPTH].sum()) if MAX_DEPTH in stats else 0,
        max_rhat=max_rhat,
        max_rhat_parameter=max_rhat_parameter,
        min_ess_bulk=-min_ess_bulk,
        min_ess_bulk_parameter=min_ess_bulk_parameter,
        min_ess_tail=-min_ess_tail,
        min_ess_tail_parameter=min_ess_tail_parameter,
        min_ebfmi=_min_ebfmi(stats),
        stuck=stuck,
        **_importance(stats),
        **_collapsed(stats, dt.attrs),
    )
    for message in found.messages():
        _log.warning(message)
    return found


def _entries(
    posterior: xr.Dataset, fixed: Collection[str]
) -> tuple[list[str], np.ndarray[Any, Any], str]:
    """Labels of parameters that move, their draws (entry, chain, draw); the first that is stuck.

    Entries of the variables `fixed` that are the same in all chains are known.
    """
    labels: list[str] = []
    values: list[np.ndarray[Any, Any]] = []
    stuck: list[str] = []
    for name, variable in posterior.data_vars.items():
        ordered = variable.transpose(*SAMPLE_DIMS, ...)
        array: Any = ordered.to_numpy()
        places = np.argwhere(np.ones(array.shape[2:]))
        every = np.linspace(0, len(places) - 1, min(len(places), MAX_ENTRIES)).round().astype(int)
        for index in map(tuple, places[every]):
            draws = array[(slice(None), slice(None), *index)]
            label = _label(str(name), ordered, index)
            if name in fixed and np.ptp(draws) <= ROUNDING * np.max(np.abs(draws)):
                continue
            if draws.shape[1] > LONGEST_STAY and np.any(np.ptp(draws, axis=1) == 0):
                stuck += [label] if np.any(draws) else []
            elif np.ptp(draws) > 0:
                labels.append(label)
                values.append(draws)
    return labels, np.array(values), stuck[0] if stuck else ""


def _label(name: str, variable: xr.DataArray, index: tuple[int, ...]) -> str:
    """Name of an entry as the tables show it, such as ``sd[Subject, Days]``."""
    coords = [
        str(variable[dim].to_numpy()[i]) for dim, i in zip(variable.dims[2:], index, strict=True)
    ]
    if "grouping_factor" in variable.attrs:
        name = name.partition("_")[0].replace("corr", "cor")
        if name == "u":
            coords.reverse()  # tables name the level first
        coords.insert(0, str(variable.attrs["grouping_factor"]))
    return f"{name}[{', '.join(coords)}]" if coords else name


def _largest(values: np.ndarray[Any, Any], labels: list[str]) -> tuple[float, str]:
    """Largest value and its label; NaN, of the first, where none is finite."""
    if not np.isfinite(values).any():
        return float("nan"), labels[0] if labels else ""
    place = int(np.nanargmax(values))
    return float(values[place]), labels[place]


def _importance(stats: xr.Dataset) -> dict[str, Any]:
    """Pareto k and effective sample size of the importance ratios, where there are any."""
    if "log_weight" not in stats:
        return {}
    smoothed, pareto_k = smooth_weights(stats["log_weight"].to_numpy().ravel())
    return {"pareto_k": pareto_k, "importance_ess": effective_fraction(smoothed) * len(smoothed)}


def _collapsed(stats: xr.Dataset, attrs: Mapping[Any, Any]) -> dict[str, Any]:
    """Statistics of the collapsed sampler, where it made the draws."""
    if "n_evaluations" not in stats:
        return {}
    return {
        "acceptance_rate": float(stats["acceptance_rate"].mean()),
        "proposal_k": float(stats["pareto_k"].max()),
        "evaluations": round(float(stats["n_evaluations"].sum())),
        "surrogate_error": float(attrs.get("surrogate_error", 0.0)),
    }


def _min_ebfmi(stats: xr.Dataset) -> float:
    if "energy" not in stats:
        return float("nan")
    energy = stats["energy"].to_numpy()
    spread = np.var(energy, axis=1)
    with np.errstate(divide="ignore", invalid="ignore"):
        return float(np.min(np.mean(np.diff(energy, axis=1) ** 2, axis=1) / spread))
