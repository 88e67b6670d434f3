"""Default and user priors of a design, as records with densities, draws and a table.

The defaults do not depend on units: rescaling or shifting the response, or rescaling a covariate,
leaves the prior on the linear predictor equivalent. So does shifting a covariate that enters alone;
with a random slope, an interaction or a power of it, a shift changes what the other parameters of
the term mean, and their priors stay where they are. The fixed effects are put in centred
coordinates ``gamma = C beta`` first, whose intercept is the linear predictor at the column means.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from difflib import get_close_matches
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from bayeslmm.data.design import Design
from bayeslmm.exceptions import PriorError
from bayeslmm.priors.families import Flat, HalfFlat, HalfStudentT, Normal, Prior
from bayeslmm.priors.lkj import LKJ
from bayeslmm.priors.pymc_priors import PymcPrior, as_prior, correlation_size
from bayeslmm.priors.record import PriorDraws, Priors, coef_label, sd_label

__all__ = [
    "LKJ",
    "Flat",
    "HalfFlat",
    "HalfStudentT",
    "Normal",
    "Prior",
    "PriorDraws",
    "Priors",
    "PymcPrior",
    "addressed",
    "column_scales",
    "default_priors",
    "flat_priors",
    "resolve_priors",
]

Array = NDArray[np.float64]
Slot = tuple[str, int, int]

WIDTH = 2.5
DEGREES_OF_FREEDOM = 3.0
LKJ_SHAPE = 2.0
INTERCEPT = "Intercept"


def default_priors(design: Design) -> Priors:
    """Weakly informative priors that do not depend on units.

    With s_y the standard deviation of the response (offset subtracted), s_x that of a column of X
    and s_z that of a random-effects covariate (1 for a constant column): Normal(mean, 2.5 s_y) on
    the centred intercept, Normal(0, 2.5 s_y / s_x) on the other coefficients,
    HalfStudentT(3, s_y / s_z) on random-effect standard deviations, LKJ(2) on correlations and
    HalfStudentT(3, s_y) on sigma. Without an intercept, but with 1 in the span of X, the prior
    mean of beta puts the linear predictor at the mean of the response.

    Centre a covariate that has a random slope, an interaction or a power: the scales are those of
    the columns as they stand, and a product with a covariate far from zero varies with its origin.

    Parameters
    ----------
    design : Design
        The design of a model.

    Returns
    -------
    Priors

    Raises
    ------
    PriorError
        If the response does not vary, so that it sets no scale.
    """
    mean, scale = _response_location(design)
    means = _coefficient_means(design, mean)
    widths = WIDTH * scale / column_scales(design.X)
    beta = tuple(Normal(float(m), float(w)) for m, w in zip(means, widths, strict=True))
    sd = tuple(
        tuple(HalfStudentT(DEGREES_OF_FREEDOM, float(scale / s)) for s in column_scales(factor.Z))
        for factor in design.random
    )
    sigma = HalfStudentT(DEGREES_OF_FREEDOM, scale)
    return _assemble(design, beta, sd, LKJ(LKJ_SHAPE), sigma, "default")


def flat_priors(design: Design) -> Priors:
    """Flat priors on beta, standard deviations and sigma, uniform ones on correlation matrices.

    The posterior mode of the covariance parameters is then the REML estimate.

    Parameters
    ----------
    design : Design
        The design of a model.

    Returns
    -------
    Priors
    """
    beta = (Flat(),) * design.p
    sd = tuple((HalfFlat(),) * factor.n_coefs for factor in design.random)
    return _assemble(design, beta, sd, LKJ(1.0), HalfFlat(), "flat")


def resolve_priors(
    design: Design,
    user: str | Mapping[str, Any] | Priors | None = None,
    *,
    preset: Literal["default", "flat"] = "default",
) -> Priors:
    """Priors of a model: the defaults, a preset, or the defaults with a user's changes.

    Parameters
    ----------
    design : Design
        The design of a model.
    user : {"default", "flat"}, mapping or Priors, optional
        A mapping goes from keys to PyMC distributions made with ``.dist`` or to the records of
        this module. Keys are "Intercept" (the centred intercept), a coefficient's label or
        "beta[label]", "beta" (all but the intercept), "sd", "sd[factor]", "sd[factor, coef]",
        "cor", "cor[factor]" and "sigma". The more specific key wins, whatever the order.
    preset : {"default", "flat"}
        What a mapping changes.

    Returns
    -------
    Priors

    Raises
    ------
    PriorError
        For an unknown key, which lists the valid ones, or a distribution that does not fit.
    """
    if isinstance(user, Priors):
        return user
    if user is None or user == "default":
        return default_priors(design)
    if user == "flat":
        return flat_priors(design)
    if not isinstance(user, Mapping):
        raise PriorError(
            f"priors={user!r} is not understood: give 'default', 'flat' or a mapping from "
            "parameters to distributions."
        )
    return _override(default_priors(design) if preset == "default" else flat_priors(design), user)


def addressed(priors: Priors, keys: Iterable[str]) -> set[str]:
    """Names in the table of the parameters that a user's keys address; raises for unknown ones."""
    slots, names = _slots(priors), _slot_names(priors)
    given = _match_keys(slots, dict.fromkeys(keys))
    return {names[slot] for key in given for slot in slots[key]}


def column_scales(columns: Array) -> Array:
    """Standard deviation of each column, 1 for a constant one."""
    if len(columns) < 2:
        return np.ones(columns.shape[1])
    constant = np.ptp(columns, axis=0) == 0
    return np.where(constant, 1.0, np.std(columns, axis=0, ddof=1))


def _response_location(design: Design) -> tuple[float, float]:
    response = design.y - design.offset
    scale = float(np.std(response, ddof=1)) if len(response) > 1 else 0.0
    if scale == 0.0 or np.ptp(response) == 0.0:
        raise PriorError(
            f"The response {design.response!r} does not vary, so it sets no scale for the default "
            "priors."
        )
    return float(np.mean(response)), scale


def _intercept_column(coefs: tuple[str, ...], X: Array) -> int | None:
    """Position of the intercept among the columns of X."""
    if INTERCEPT not in coefs:
        return None
    position = coefs.index(INTERCEPT)
    return position if np.all(X[:, position] == 1.0) else None


def _centering(design: Design) -> Array:
    centering = np.eye(design.p)
    intercept = _intercept_column(design.coefs, design.X)
    if intercept is not None:
        centering[intercept] = design.X.mean(axis=0)
    return centering


def _coefficient_means(design: Design, mean: float) -> Array:
    """Prior means in centred coordinates: the linear predictor at the mean of the response."""
    means = np.zeros(design.p)
    intercept = _intercept_column(design.coefs, design.X)
    if intercept is not None:
        means[intercept] = mean
        return means
    lengths = np.linalg.norm(design.X, axis=0)
    scaled = design.X / lengths
    weights = np.linalg.lstsq(scaled, np.ones(design.n), rcond=None)[0]
    in_span = np.allclose(scaled @ weights, 1.0, rtol=0.0, atol=1e-8)
    return mean * weights / lengths if in_span else means


def _assemble(
    design: Design,
    beta: tuple[Prior, ...],
    sd: tuple[tuple[Prior, ...], ...],
    lkj: LKJ,
    sigma: Prior,
    source: str,
) -> Priors:
    centering = _centering(design)
    cor = tuple(
        tuple(lkj if len(block) > 1 else None for block in factor.blocks)
        for factor in design.random
    )
    mean, root, sampled = _beta_moments(beta, centering)
    priors = Priors(
        coefs=design.coefs,
        centering=centering,
        beta=beta,
        beta_mean=mean,
        beta_root=root,
        beta_sampled=sampled,
        factors=tuple(factor.name for factor in design.random),
        factor_coefs=tuple(factor.coefs for factor in design.random),
        blocks=tuple(factor.blocks for factor in design.random),
        sd=sd,
        cor=cor,
        sigma=sigma,
        sources={},
    )
    return replace(priors, sources=dict.fromkeys(priors.records(), source))


def _beta_moments(beta: Sequence[Prior], centering: Array) -> tuple[Array, Array | None, bool]:
    """Mean, root of the precision and whether beta has to be sampled, from the priors on gamma."""
    zeros = np.zeros(len(beta))
    normal = [prior for prior in beta if isinstance(prior, Normal)]
    if len(normal) == len(beta):
        mean = np.linalg.solve(centering, np.array([prior.mu for prior in normal]))
        return mean, centering / np.array([prior.sigma for prior in normal])[:, None], False
    flat = all(type(prior) is Flat for prior in beta)
    return zeros, None, not flat


def _override(priors: Priors, user: Mapping[str, Any]) -> Priors:
    """Apply a user's priors, the general keys first."""
    slots = _slots(priors)
    given = _match_keys(slots, user)
    beta = list(priors.beta)
    sd = [list(row) for row in priors.sd]
    cor = [list(row) for row in priors.cor]
    sigma, sources, names = priors.sigma, dict(priors.sources), _slot_names(priors)
    for key in slots:
        if key not in given:
            continue
        prior = as_prior(given[key], key)
        for slot in slots[key]:
            kind, f, i = slot
            if kind == "beta":
                beta[i] = _coefficient_prior(prior, key)
            elif kind == "sd":
                sd[f][i] = _scale_prior(prior, key)
            elif kind == "sigma":
                sigma = _scale_prior(prior, key)
            else:
                size = len(priors.blocks[f][i])
                cor[f][i] = _correlation_prior(prior, given[key], size, key)
            sources[names[slot]] = "user"
    mean, root, sampled = _beta_moments(beta, priors.centering)
    return replace(
        priors,
        beta=tuple(beta),
        beta_mean=mean,
        beta_root=root,
        beta_sampled=sampled,
        sd=tuple(tuple(row) for row in sd),
        cor=tuple(tuple(row) for row in cor),
        sigma=sigma,
        sources=sources,
    )


def _slots(priors: Priors) -> dict[str, list[Slot]]:
    """Parameters that each valid key addresses, from the general keys to the specific ones."""
    betas: list[Slot] = [("beta", 0, j) for j in range(len(priors.coefs))]
    sds: list[list[Slot]] = [
        [("sd", f, c) for c in range(len(row))] for f, row in enumerate(priors.sd)
    ]
    cors: list[list[Slot]] = [
        [("cor", f, b) for b, lkj in enumerate(row) if lkj is not None]
        for f, row in enumerate(priors.cor)
    ]
    slots = {
        "beta": [s for s in betas if priors.coefs[s[2]] != INTERCEPT],
        "sd": [slot for row in sds for slot in row],
        "cor": [slot for row in cors for slot in row],
        "sigma": [("sigma", 0, 0)],
    }
    for f, factor in enumerate(priors.factors):
        slots[f"sd[{factor}]"] = sds[f]
        slots[f"cor[{factor}]"] = cors[f]
    for names in (_slot_names(priors), {s: f"beta[{priors.coefs[s[2]]}]" for s in betas}):
        for slot, name in names.items():
            slots.setdefault(name, [slot])
    return {key: value for key, value in slots.items() if value}


def _slot_names(priors: Priors) -> dict[Slot, str]:
    """Name in the table of each parameter."""
    names: dict[Slot, str] = {
        ("beta", 0, j): coef_label(coef) for j, coef in enumerate(priors.coefs)
    }
    for f, factor in enumerate(priors.factors):
        for c, coef in enumerate(priors.factor_coefs[f]):
            names["sd", f, c] = sd_label(factor, coef)
        for b, lkj in enumerate(priors.cor[f]):
            if lkj is not None:
                names["cor", f, b] = priors.cor_label(f, b)
    names["sigma", 0, 0] = "sigma"
    return names


def _match_keys(slots: Mapping[str, Any], user: Mapping[str, Any]) -> dict[str, Any]:
    """User's priors under the valid keys; blanks in a key do not matter."""
    squeezed = {_squeeze(key): key for key in slots}
    given: dict[str, Any] = {}
    for key, value in user.items():
        if not isinstance(key, str):
            raise PriorError(f"Keys of priors are text; got {key!r}.")
        match = key if key in slots else squeezed.get(_squeeze(key))
        if match is None:
            raise PriorError(_unknown_key(key, list(slots)))
        if match in given:
            raise PriorError(f"The prior of {match!r} is given twice.")
        given[match] = value
    return given


def _squeeze(key: str) -> str:
    return re.sub(r"\s+", "", key)


def _unknown_key(key: str, valid: list[str]) -> str:
    close = get_close_matches(key, valid, n=1, cutoff=0.5)
    hint = f" Did you mean {close[0]!r}?" if close else ""
    shown = [k for k in valid if not (k.startswith("beta[") and k[5:-1] in valid)]
    return (
        f"There is no parameter {key!r} to give a prior to.{hint} "
        f"Valid keys: {', '.join(repr(k) for k in sorted(shown))}."
    )


def _coefficient_prior(prior: Prior | LKJ, key: str) -> Prior:
    if isinstance(prior, LKJ):
        raise PriorError(f"{prior} is a prior for correlations; {key!r} is a coefficient.")
    return prior


def _scale_prior(prior: Prior | LKJ, key: str) -> Prior:
    if isinstance(prior, LKJ):
        raise PriorError(f"{prior} is a prior for correlations; {key!r} is a standard deviation.")
    if type(prior) is Flat:
        return HalfFlat()
    if not prior.positive:
        raise PriorError(
            f"The prior {prior} for {key!r} allows negative values. A prior on a standard "
            "deviation must live on the positive half line: use for example "
            "pm.HalfNormal.dist(1), or truncate it at 0 with "
            "pm.Truncated.dist(pm.Normal.dist(1, 2), lower=0)."
        )
    return prior


def _correlation_prior(prior: Prior | LKJ, given: Any, size: int, key: str) -> LKJ:
    if type(prior) is Flat:
        return LKJ(1.0)
    if not isinstance(prior, LKJ):
        raise PriorError(
            f"The prior {prior} for {key!r} is not one for a correlation matrix: give "
            f"bayeslmm.priors.defaults.LKJ(eta) or pm.LKJCorr.dist(n={size}, eta=2)."
        )
    stated = correlation_size(given)
    if stated is not None and stated != size:
        raise PriorError(
            f"The prior for {key!r} is for {stated} x {stated} matrices, but the random effects "
            f"have {size} correlated coefficients: give pm.LKJCorr.dist(n={size}, eta=...)."
        )
    return prior
