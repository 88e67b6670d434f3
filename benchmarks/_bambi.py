"""The competitor Bambi with nutpie on the models of the benchmark scripts, with our priors."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.util import find_spec
from typing import Any

import numpy as np
from _common import CORES

from bayeslmm.priors.record import Priors


@dataclass(frozen=True)
class Match:
    """A formula in Bambi's grammar and what its terms are called here.

    `common` goes from Bambi's terms to our coefficients, `groups` from Bambi's group-specific
    terms to our grouping factor and coefficient.
    """

    formula: str
    common: Mapping[str, str]
    groups: Mapping[str, tuple[str, str]]


SLEEPSTUDY = Match(
    "Reaction ~ Days + (Days | Subject)",  # our (Days || Subject): Bambi has no correlations
    {"Intercept": "Intercept", "Days": "Days"},
    {"1|Subject": ("Subject", "Intercept"), "Days|Subject": ("Subject", "Days")},
)

INSTEVAL = Match(
    "y ~ service + (1 | s) + (1 | d) + (1 | dept:service)",
    {"Intercept": "Intercept", "service": "service[T.1]"},
    {f"1|{name}": (name, "Intercept") for name in ("s", "d", "dept:service")},
)


def require_bambi() -> None:
    """Exit with a hint where Bambi is not installed."""
    if find_spec("bambi") is None:
        raise SystemExit('Bambi is not installed: pip install -e ".[bench,test]"')


def bambi_priors(priors: Priors, match: Match) -> dict[str, Any]:
    """Our priors as Bambi's. Bambi centres the predictors too, so the intercepts are the same."""
    import bambi as bmb

    records = priors.records()

    def convert(key: str) -> Any:
        record = records[key]
        return bmb.Prior(type(record).__name__, auto_scale=False, **record.parameters())

    result = {term: convert(coef) for term, coef in match.common.items()}
    for term, (group, coef) in match.groups.items():
        sd = convert(f"sd[{group}, {coef}]")
        result[term] = bmb.Prior("Normal", auto_scale=False, mu=0, sigma=sd)
    return result | {"sigma": convert("sigma")}


def build_bambi(match: Match, frame: Any, priors: Priors, *, noncentered: bool = True) -> Any:
    """Bambi's model, not yet compiled."""
    import bambi as bmb

    given = bambi_priors(priors, match)
    return bmb.Model(match.formula, frame, priors=given, noncentered=noncentered)


def fit_bambi(model: Any, seed: int, **kwargs: Any) -> Any:
    """Posterior by nutpie on all cores, with Bambi's defaults unless stated."""
    logging.getLogger("pymc").setLevel(logging.ERROR)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return model.fit(
            inference_method="nutpie", random_seed=seed, progressbar=False, cores=CORES, **kwargs
        )


def draws_of_bambi(tree: Any, match: Match) -> dict[str, np.ndarray]:
    """Draws (chain, draw) of Bambi's posterior by our names."""
    posterior = tree["posterior"].dataset
    draws = {}
    for term, coef in match.common.items():
        values = posterior[term].to_numpy()
        draws[f"beta[{coef}]"] = values.reshape(values.shape[:2])
    for term, (group, coef) in match.groups.items():
        draws[f"sd[{group}, {coef}]"] = posterior[f"{term}_sigma"].to_numpy()
        effects = posterior[term].transpose("chain", "draw", ...)
        levels = effects[effects.dims[2]].to_numpy()
        for j, level in enumerate(levels):
            draws[f"u[{group}, {level}, {coef}]"] = effects.to_numpy()[..., j]
    draws["sigma"] = posterior["sigma"].to_numpy()
    return draws
